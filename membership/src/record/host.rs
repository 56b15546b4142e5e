//! Hosts and their VTEPs.

use std::net::IpAddr;

use encap::MacAddr;
use serde::{Deserialize, Serialize};

use super::{Extra, Mode, Stored, VERSION};
use crate::key::{HostId, HostName, Key};

/// A host, at `hosts/HOST` while it is present and at `known/HOST` for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Version of the record.
    pub version: u32,
    /// Its name, as in the key.
    pub name: HostName,
    /// Its identity, made once.
    pub id: HostId,
    /// The identity of this run of the machine's kernel.
    #[serde(default)]
    pub boot_id: String,
    /// How often its agent started.
    pub incarnation: u64,
    /// The MAC that routed frames of this host carry.
    pub router_mac: MacAddr,
    /// The least MTU of its VTEPs' interfaces in bytes; 0 when it is unknown.
    #[serde(default)]
    pub underlay_mtu: u16,
    /// Name and version of its program.
    #[serde(default)]
    pub software: String,
    /// Its VTEPs, the preferred one of each family first.
    #[serde(default)]
    pub vteps: Vec<VtepRecord>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl HostRecord {
    /// A host without VTEPs.
    #[must_use]
    pub fn new(name: HostName, id: HostId, incarnation: u64, router_mac: MacAddr) -> Self {
        Self {
            version: VERSION,
            name,
            id,
            boot_id: String::new(),
            incarnation,
            router_mac,
            underlay_mtu: 0,
            software: String::new(),
            vteps: Vec::new(),
            extra: Extra::new(),
        }
    }
}

impl Stored for HostRecord {
    fn contradicts(&self, key: &Key) -> Option<Key> {
        let same = matches!(key, Key::Host(name) | Key::KnownHost(name) if *name == self.name);
        (!same).then(|| Key::Host(self.name.clone()))
    }
}

/// One IP end of a host that encapsulates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VtepRecord {
    /// The address that others send to and that it sends from.
    pub advertise: IpAddr,
    /// Its UDP port.
    pub port: u16,
    /// MTU of its interface in bytes; 0 when it is unknown.
    #[serde(default)]
    pub mtu: u16,
    /// Further source addresses that its datagrams may have.
    #[serde(default)]
    pub accept: Vec<IpAddr>,
    /// What it can receive, by the names of [`Mode`]. Empty means `vxlan`. Texts and not [`Mode`],
    /// so that a host with a newer encapsulation can still be read.
    #[serde(default)]
    pub encapsulations: Vec<String>,
    /// Whether others shall fill in the outer UDP checksum towards it.
    #[serde(default = "yes")]
    pub checksum: bool,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

pub(super) const fn yes() -> bool {
    true
}

impl VtepRecord {
    /// A VTEP of unknown MTU that carries VXLAN; [`Self::all_modes`] is for those that carry all.
    #[must_use]
    pub fn new(advertise: IpAddr, port: u16) -> Self {
        Self {
            advertise,
            port,
            mtu: 0,
            accept: Vec::new(),
            encapsulations: vec![Mode::Vxlan.as_str().to_owned()],
            checksum: true,
            extra: Extra::new(),
        }
    }

    /// The same VTEP, which carries networks of every mode.
    #[must_use]
    pub fn all_modes(mut self) -> Self {
        let modes = [Mode::Vxlan, Mode::IpIp, Mode::IpUdp];
        self.encapsulations = modes.iter().map(|mode| mode.as_str().to_owned()).collect();
        self
    }

    /// Whether it can receive networks of this mode.
    #[must_use]
    pub fn carries(&self, mode: Mode) -> bool {
        if self.encapsulations.is_empty() {
            return mode == Mode::Vxlan;
        }
        self.encapsulations.iter().any(|name| name == mode.as_str())
    }
}

/// Who advertises a VTEP address, at `vteps/ADDRESS` under the host's lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VtepClaimRecord {
    /// Version of the record.
    pub version: u32,
    /// The host.
    pub host: HostName,
    /// Its identity.
    pub id: HostId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Stored for VtepClaimRecord {}

/// A host that somebody saw absent, at `absent/HOST` under a lease of twice the grace. How much of
/// that lease is used tells how long the host has been absent at least: nobody's clock is asked. A
/// host that registers removes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbsentRecord {
    /// Version of the record.
    pub version: u32,
    /// The host.
    pub host: HostName,
    /// The host that saw it absent.
    pub seen_by: HostName,
    /// When, in seconds since 1970, for people.
    #[serde(default)]
    pub since: u64,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Stored for AbsentRecord {
    fn contradicts(&self, key: &Key) -> Option<Key> {
        let named = Key::Absent(self.host.clone());
        (named != *key).then_some(named)
    }
}

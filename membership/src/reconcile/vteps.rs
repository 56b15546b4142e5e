//! The dense slots of VTEPs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use fdb::{Delta, Vtep, VtepKey};

use super::{Defaults, Slots};
use crate::key::HostName;
use crate::record::{HostRecord, Mode, StaticVtep, VtepRecord};

/// Whose slot it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// The `ordinal`-th VTEP of a family of a host. Not by address, so that a host which changes its
    /// address keeps its slot, and what points to it.
    Host { host: HostName, ipv6: bool, ordinal: u32 },
    /// The address that a host is reached at, at the port of a network that has one of its own.
    Ported { host: HostName, port: u16 },
    /// A static VTEP. One address may be several, at the ports of several networks.
    Static(IpAddr, u16),
}

#[derive(Debug, Default)]
pub(super) struct Vteps {
    slots: Slots<Slot>,
    keys: HashMap<Slot, VtepKey>,
    put: HashMap<VtepKey, Vtep>,
    /// The slots of each host, and the one it is reached by.
    hosts: BTreeMap<HostName, Hosted>,
    /// Hosts that IP-in-IP gets through to.
    ip_in_ip: BTreeSet<HostName>,
    /// The ports that networks have for their own.
    ports: BTreeSet<u16>,
}

#[derive(Debug, Default)]
struct Hosted {
    keys: Vec<VtepKey>,
    primary: Option<VtepKey>,
    /// The modes that can be sent to it.
    modes: Vec<Mode>,
    ported: BTreeMap<u16, VtepKey>,
}

impl Vteps {
    pub(super) fn slot(&self, key: VtepKey) -> Option<&Slot> {
        self.slots.get(key.0)
    }

    pub(super) fn primary(&self, host: &HostName) -> Option<VtepKey> {
        self.hosts.get(host)?.primary
    }

    pub(super) fn address(&self, key: VtepKey) -> Option<IpAddr> {
        self.put.get(&key).map(|vtep| vtep.address)
    }

    /// Notes whether IP-in-IP gets through to a host; whether that is news.
    pub(super) fn set_ip_in_ip(&mut self, host: &HostName, reaches: bool) -> bool {
        match reaches {
            true => self.ip_in_ip.insert(host.clone()),
            false => self.ip_in_ip.remove(host),
        }
    }

    /// Whether networks of this mode can be sent to a host.
    pub(super) fn carries(&self, host: &HostName, mode: Mode) -> bool {
        self.hosts.get(host).is_some_and(|hosted| hosted.modes.contains(&mode))
    }

    /// What its entries depend on.
    pub(super) fn standing(&self, host: &HostName) -> Option<(Option<VtepKey>, Vec<Mode>)> {
        self.hosts.get(host).map(|hosted| (hosted.primary, hosted.modes.clone()))
    }

    /// Where a host is reached in a network with this UDP port; `None` is each host's own.
    pub(super) fn primary_at(&self, host: &HostName, port: Option<u16>) -> Option<VtepKey> {
        let hosted = self.hosts.get(host)?;
        match port {
            None => hosted.primary,
            Some(port) => hosted.ported.get(&port).copied(),
        }
    }

    /// Everything that a host's entries may point to: at its own port, and at those of networks.
    pub(super) fn places(&self, host: &HostName) -> (Option<VtepKey>, BTreeMap<u16, VtepKey>) {
        self.hosts
            .get(host)
            .map(|hosted| (hosted.primary, hosted.ported.clone()))
            .unwrap_or_default()
    }

    /// The ports that hosts shall be reached at beside their own. False when it was so before;
    /// otherwise every host is to be put again.
    pub(super) fn set_ports(&mut self, ports: BTreeSet<u16>) -> bool {
        if self.ports == ports {
            return false;
        }
        self.ports = ports;
        true
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = HostName> {
        self.hosts.keys().cloned()
    }

    /// Puts the VTEPs of a host and returns the slots that it no longer has, which the caller
    /// frees when nothing points to them.
    pub(super) fn put_host(
        &mut self,
        host: &HostName,
        record: Option<&HostRecord>,
        suspect: bool,
        defaults: &Defaults,
        out: &mut Vec<Delta>,
    ) -> Vec<VtepKey> {
        let before = self.hosts.remove(host).unwrap_or_default();
        let mut hosted = Hosted::default();
        let mut ordinals = [0_u32; 2];
        for vtep in record.iter().flat_map(|record| &record.vteps) {
            let ipv6 = vtep.advertise.is_ipv6();
            let Some(count) = ordinals.get_mut(usize::from(ipv6)) else { continue };
            let slot = Slot::Host { host: host.clone(), ipv6, ordinal: *count };
            *count += 1;
            let key = self.key(slot);
            let mtu = if vtep.mtu != 0 {
                vtep.mtu
            } else {
                record.map_or(0, |record| record.underlay_mtu)
            };
            let wanted = Vtep {
                address: vtep.advertise,
                port: vtep.port,
                mtu,
                accept: vtep.accept.clone(),
                host: Some(host.as_str().into()),
                checksum: vtep.checksum,
                suspect,
                ip_in_ip: self.ip_in_ip.contains(host),
            };
            self.put(key, wanted.clone(), out);
            hosted.keys.push(key);
            let ours = |own: &VtepRecord| own.advertise.is_ipv6() == ipv6;
            if hosted.primary.is_none()
                && (defaults.vteps.is_empty() || defaults.vteps.iter().any(ours))
            {
                hosted.primary = Some(key);
                let modes = [Mode::IpIp, Mode::IpUdp, Mode::Vxlan].into_iter();
                hosted.modes = modes.filter(|mode| vtep.carries(*mode)).collect();
                for port in self.ports.clone() {
                    if port == vtep.port {
                        hosted.ported.insert(port, key);
                        continue;
                    }
                    let key = self.key(Slot::Ported { host: host.clone(), port });
                    self.put(key, Vtep { port, ..wanted.clone() }, out);
                    hosted.keys.push(key);
                    hosted.ported.insert(port, key);
                }
            }
        }
        let gone = before.keys.into_iter().filter(|key| !hosted.keys.contains(key)).collect();
        if record.is_some() {
            self.hosts.insert(host.clone(), hosted);
        }
        gone
    }

    /// Puts a static VTEP.
    pub(super) fn put_static(&mut self, vtep: &StaticVtep, port: u16, out: &mut Vec<Delta>) {
        let key = self.key(Slot::Static(vtep.address, port));
        let wanted = Vtep {
            address: vtep.address,
            port,
            mtu: vtep.mtu,
            accept: Vec::new(),
            host: None,
            checksum: vtep.checksum,
            suspect: false,
            ip_in_ip: true,
        };
        self.put(key, wanted, out);
    }

    /// The slot of a static VTEP.
    pub(super) fn static_key(&self, address: IpAddr, port: u16) -> Option<VtepKey> {
        self.keys.get(&Slot::Static(address, port)).copied()
    }

    /// The slots of static VTEPs.
    pub(super) fn statics(&self) -> Vec<VtepKey> {
        let statics = self.keys.iter().filter(|(slot, _)| matches!(slot, Slot::Static(..)));
        let mut keys: Vec<VtepKey> = statics.map(|(_, key)| *key).collect();
        keys.sort_unstable();
        keys
    }

    /// Frees a slot.
    pub(super) fn release(&mut self, key: VtepKey) {
        if let Some(slot) = self.slots.get(key.0) {
            self.keys.remove(slot);
        }
        self.put.remove(&key);
        self.slots.release(key.0);
    }

    fn key(&mut self, slot: Slot) -> VtepKey {
        if let Some(key) = self.keys.get(&slot) {
            return *key;
        }
        let key = VtepKey(self.slots.take(slot.clone()));
        self.keys.insert(slot, key);
        key
    }

    fn put(&mut self, key: VtepKey, wanted: Vtep, out: &mut Vec<Delta>) {
        if self.put.get(&key) != Some(&wanted) {
            self.put.insert(key, wanted.clone());
            out.push(Delta::PutVtep { key, vtep: wanted });
        }
    }
}

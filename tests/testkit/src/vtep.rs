//! The kernel's vxlan device as the other side.

use std::net::IpAddr;
use std::sync::Arc;

use crate::container::{Container, set_offloads};
use crate::lab::{Family, Host, Lab};
use crate::netns::Netns;

/// How the kernel's VTEP is set up.
#[derive(Debug, Clone)]
pub struct VtepSpec {
    vni: u32,
    port: u16,
    family: Family,
    remotes: Vec<IpAddr>,
    checksum: bool,
}

impl VtepSpec {
    /// A VTEP of network `vni` over `family` that floods to nobody yet.
    #[must_use]
    pub fn new(vni: u32, family: Family) -> Self {
        Self { vni, port: 4789, family, remotes: Vec::new(), checksum: false }
    }

    /// Floods unknown and broadcast frames to `remote` as well.
    #[must_use]
    pub fn remote(mut self, remote: IpAddr) -> Self {
        self.remotes.push(remote);
        self
    }

    /// Sends the outer UDP checksum. Off is what the kernel does over IPv4 unless told otherwise.
    #[must_use]
    pub fn checksum(mut self, on: bool) -> Self {
        self.checksum = on;
        self
    }

    /// Uses another UDP port than 4789.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }
}

/// A host of a lab whose kernel does what an agent would: a vxlan device in a bridge, with
/// containers behind it.
#[derive(Debug)]
pub struct KernelVtep {
    netns: Arc<Netns>,
    address: IpAddr,
    mtu: u16,
}

impl KernelVtep {
    /// Name of the vxlan device.
    pub const DEVICE: &'static str = "vx0";

    /// Sets up the device on `host`; it learns from what it receives.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[track_caller]
    #[must_use]
    pub fn create(lab: &Lab, host: &Host, spec: &VtepSpec) -> Self {
        let netns = Arc::clone(host.netns());
        let address = host.address(spec.family);
        let overhead = match spec.family {
            Family::V4 => 50,
            Family::V6 => 70,
        };
        let mtu = lab.mtu() - overhead;
        let checksum = match (spec.family, spec.checksum) {
            (Family::V4, true) => "udpcsum",
            (Family::V4, false) => "noudpcsum",
            (Family::V6, true) => "noudp6zerocsumtx udp6zerocsumrx",
            (Family::V6, false) => "udp6zerocsumtx udp6zerocsumrx",
        };
        let (vni, port, device) = (spec.vni, spec.port, Self::DEVICE);
        netns.ip("link add br0 type bridge mcast_snooping 0");
        netns.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        netns.sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
        netns.ip(&format!(
            "link add {device} mtu {mtu} type vxlan id {vni} local {address} dstport {port} {checksum}"
        ));
        netns.ip(&format!("link set {device} master br0 up"));
        netns.ip("link set br0 up");
        let vtep = Self { netns, address, mtu };
        for remote in &spec.remotes {
            vtep.flood_to(*remote);
        }
        vtep
    }

    /// Its underlay address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Sends unknown and broadcast frames to `remote` as well.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[track_caller]
    pub fn flood_to(&self, remote: IpAddr) {
        let device = Self::DEVICE;
        self.netns.bridge(&format!("fdb append 00:00:00:00:00:00 dev {device} dst {remote}"));
    }

    /// A container behind this VTEP with addresses like `198.51.100.9/24`.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[track_caller]
    #[must_use]
    pub fn container(&self, lab: &Lab, name: &str, addresses: &[&str]) -> Container {
        let container = Container::plug(lab, &self.netns, (name, self.mtu), addresses);
        self.netns.ip(&format!("link set {name} master br0"));
        container
    }

    /// Switches the offloads of the bridge port of container `name` on or off.
    #[track_caller]
    pub fn set_port_offloads(&self, name: &str, on: bool) {
        set_offloads(&self.netns, name, on);
    }
}

//! Vxlan devices of the kernel that somebody else keeps: what they know, and what we enter.
//!
//! # Theory of operation
//!
//! ```text
//!   FDB        MAC -> VTEP      (RTM_NEWNEIGH, AF_BRIDGE)            what is sent where
//!   neighbors  IP -> MAC        (RTM_NEWNEIGH, AF_INET, AF_INET6)    what `proxy` answers ARP and ND with
//!   bridge     ports, their other ends in containers                 who is on this side
//! ```
//!
//! Docker's overlay, and whoever works like it, has a permanent FDB and neighbor entry for every remote
//! container and floods nothing. Entries of ours are permanent as well, and marked, so that they are
//! found again after a restart and told from those of others: forwarding entries by the flag
//! `extern_learn` beside the state `permanent`, neighbors by the protocol [`PROTOCOL`]. The kernel keeps
//! both marks and shows them (`bridge fdb`, `ip neigh`). What others entered is never replaced.
//!
//! [`Monitor`] says that something may have changed, not what: each change is a new look at all of it.
//! So a lost notification costs nothing but the look that the next one brings, and one that the kernel
//! reports as lost (`ENOBUFS`) is a change like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use encap::MacAddr;
use ipnet::IpNet;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use super::view::{Kind, Link};
use super::{Error, NetNs, NetNsRef, Netlink, run_in};

/// The protocol number of neighbors that we enter; no program of iproute2's `rt_protos` has it.
pub const PROTOCOL: u8 = 91;
/// Most namespaces of a folder that are looked at for the other ends of ports.
const NAMESPACES_MAX: usize = 2048;

/// A vxlan device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// The VNI of what it sends.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// Whether it sends over IPv6, where that can be told: it takes VTEPs of one family only.
    pub ipv6: Option<bool>,
    /// Index of the bridge that it is a port of.
    pub bridge: Option<u32>,
}

/// A forwarding entry to a VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it leads.
    pub vtep: IpAddr,
    /// The port there, where it is not the device's.
    pub port: Option<u16>,
    /// It stays until it is removed.
    pub permanent: bool,
    /// We have entered it.
    pub ours: bool,
}

/// A neighbor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its MAC.
    pub mac: MacAddr,
    /// It stays until it is removed.
    pub permanent: bool,
    /// We have entered it.
    pub ours: bool,
}

/// All that a device knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The device.
    pub device: Device,
    /// Its forwarding entries of one MAC, to the first VTEP of each.
    pub forwards: BTreeMap<MacAddr, Forward>,
    /// Its neighbors.
    pub neighbors: BTreeMap<IpAddr, Resolved>,
}

/// Reads the device of that name. `None` when there is none, or it is no vxlan device.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn read(netlink: &Netlink, name: &str) -> Result<Option<Known>, Error> {
    let Some(device) = device(netlink, name).await? else { return Ok(None) };
    let mut known = Known { device, forwards: BTreeMap::new(), neighbors: BTreeMap::new() };
    let index = known.device.index;
    for message in netlink.neighbours(AddressFamily::Bridge).await? {
        if message.header.ifindex == index
            && let Some((mac, forward)) = as_forward(&message, known.device.vni)
        {
            known.forwards.entry(mac).or_insert(forward);
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in netlink.neighbours(family).await? {
            if message.header.ifindex == index
                && let Some((ip, neighbor)) = as_neighbor(&message)
            {
                known.neighbors.insert(ip, neighbor);
            }
        }
    }
    let first = known.forwards.values().next();
    known.device.ipv6 = known.device.ipv6.or_else(|| first.map(|it| it.vtep.is_ipv6()));
    Ok(Some(known))
}

/// Whether a link of that name is there and is no vxlan device.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn is_another(netlink: &Netlink, name: &str) -> Result<bool, Error> {
    Ok(netlink.link_message(name).await?.is_some() && device(netlink, name).await?.is_none())
}

async fn device(netlink: &Netlink, name: &str) -> Result<Option<Device>, Error> {
    let Some(message) = netlink.link_message(name).await? else { return Ok(None) };
    let (mut vni, mut port, mut is_vxlan) = (0, 0, false);
    let (mut bridge, mut ipv6) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => bridge = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => is_vxlan = *kind == InfoKind::Vxlan,
                        LinkInfo::Data(InfoData::Vxlan(settings)) => {
                            for setting in settings {
                                match setting {
                                    InfoVxlan::Id(id) => vni = *id,
                                    InfoVxlan::Port(number) => port = *number,
                                    InfoVxlan::Local(_) | InfoVxlan::Group(_) => {
                                        ipv6 = Some(false);
                                    }
                                    InfoVxlan::Local6(_) | InfoVxlan::Group6(_) => {
                                        ipv6 = Some(true);
                                    }
                                    _ => (),
                                }
                            }
                        }
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
    let index = message.header.index;
    Ok(is_vxlan.then(|| Device { index, name: name.to_owned(), vni, port, ipv6, bridge }))
}

fn address(bytes: &NeighbourAddress) -> Option<IpAddr> {
    match bytes {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            let v6 = <[u8; 16]>::try_from(bytes.as_slice()).ok().map(Ipv6Addr::from);
            v4.map(IpAddr::from).or_else(|| v6.map(IpAddr::from))
        }
        _ => None,
    }
}

/// A state is a set of bits: bridge(8) sets both of these.
fn has(message: &NeighbourMessage, state: NeighbourState) -> bool {
    u16::from(message.header.state) & u16::from(state) != 0
}

fn is_permanent(message: &NeighbourMessage) -> bool {
    has(message, NeighbourState::Permanent) || has(message, NeighbourState::Noarp)
}

fn as_forward(message: &NeighbourMessage, own_vni: u32) -> Option<(MacAddr, Forward)> {
    let (mut mac, mut vtep, mut port) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_slice(bytes),
            NeighbourAttribute::Destination(bytes) => vtep = address(bytes),
            NeighbourAttribute::Port(number) => port = Some(*number),
            // Sent with another VNI: nothing of this network.
            NeighbourAttribute::Vni(vni) if *vni != own_vni => return None,
            _ => (),
        }
    }
    let mac = mac.filter(|mac| mac.is_unicast() && *mac != MacAddr::ZERO)?;
    let vtep = vtep.filter(|ip| !ip.is_unspecified() && !ip.is_multicast())?;
    let ours = has(message, NeighbourState::Permanent)
        && message.header.flags.contains(NeighbourFlags::ExtLearned);
    Some((mac, Forward { vtep, port, permanent: is_permanent(message), ours }))
}

fn as_neighbor(message: &NeighbourMessage) -> Option<(IpAddr, Resolved)> {
    let (mut mac, mut ip, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_slice(bytes),
            NeighbourAttribute::Destination(bytes) => ip = address(bytes),
            NeighbourAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => (),
        }
    }
    let ip = ip.filter(|ip| !ip.is_multicast())?;
    let mac = mac.filter(|mac| mac.is_unicast() && *mac != MacAddr::ZERO)?;
    Some((ip, Resolved { mac, permanent: is_permanent(message), ours }))
}

// ===== what we enter =====

fn forward_message(device: &Device, mac: MacAddr, vtep: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device.index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own | NeighbourFlags::ExtLearned;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(vtep.into()));
    message
}

fn neighbor_message(device: &Device, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = device.index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(ip.into()));
    message
}

/// Enters where a MAC is, in the place of what the device knows of it.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn enter_forward(
    netlink: &Netlink,
    device: &Device,
    mac: MacAddr,
    vtep: IpAddr,
    port: u16,
) -> Result<(), Error> {
    let mut message = forward_message(device, mac, vtep);
    if port != device.port {
        message.attributes.push(NeighbourAttribute::Port(port));
    }
    netlink.neighbour_replace(message, &format!("{mac} on {} to {vtep}", device.name)).await
}

/// Removes a forwarding entry.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn remove_forward(
    netlink: &Netlink,
    device: &Device,
    mac: MacAddr,
    forward: &Forward,
) -> Result<(), Error> {
    let mut message = forward_message(device, mac, forward.vtep);
    message.attributes.extend(forward.port.map(NeighbourAttribute::Port));
    let text = format!("{mac} on {} to {}", device.name, forward.vtep);
    netlink.neighbour_delete(message, &text).await
}

/// Enters whose MAC an address is, in the place of what the device knows of it.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn enter_neighbor(
    netlink: &Netlink,
    device: &Device,
    ip: IpAddr,
    mac: MacAddr,
) -> Result<(), Error> {
    let mut message = neighbor_message(device, ip);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    netlink.neighbour_replace(message, &format!("{ip} with {mac} on {}", device.name)).await
}

/// Removes a neighbor.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn remove_neighbor(netlink: &Netlink, device: &Device, ip: IpAddr) -> Result<(), Error> {
    let text = format!("{ip} on {}", device.name);
    netlink.neighbour_delete(neighbor_message(device, ip), &text).await
}

// ===== who is on this side =====

/// The other end of a port of a bridge, in a namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Behind {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpNet>,
}

/// The other end of a veth port of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The number that its namespace has in the bridge's.
    namespace: i32,
    /// Its index there.
    index: u32,
}

/// The other ends of the ports of the device's bridge that are in other namespaces.
///
/// # Errors
/// See [`Netlink::links`].
pub async fn ends(netlink: &Netlink, device: &Device) -> Result<BTreeSet<End>, Error> {
    let Some(bridge) = device.bridge else { return Ok(BTreeSet::new()) };
    let links = netlink.links().await?;
    let ports = links.iter().filter(|link| link.master == Some(bridge) && link.kind == Kind::Veth);
    Ok(ports
        .filter_map(|link| Some(End { namespace: link.peer_namespace?, index: link.peer? }))
        .collect())
}

/// Looks for `ends` in the namespaces that have files in `folder`, as Docker keeps its sandboxes and
/// `ip netns` its namespaces. An interface counts when it has an address in one of `subnets`. One with
/// the length of a whole address is no address of a container: Docker puts the virtual address of each
/// service that way beside the one of its load balancer, on every host.
pub async fn behind(
    bridge: &Netlink,
    ends: &BTreeSet<End>,
    folder: &Path,
    subnets: &[IpNet],
) -> BTreeSet<Behind> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries.flatten().take(NAMESPACES_MAX) {
        if found.len() >= ends.len() {
            break;
        }
        // A namespace that goes away meanwhile has nothing to tell.
        let Ok(namespace) = NetNs::open(&NetNsRef::Path(entry.path())) else { continue };
        let Ok(Some(number)) = bridge.number_of(&namespace).await else { continue };
        if !ends.iter().any(|end| end.namespace == number) {
            continue;
        }
        let Ok(netlink) = Netlink::open(&namespace) else { continue };
        let Ok(links) = netlink.links().await else { continue };
        let is_end = |link: &&Link| ends.contains(&End { namespace: number, index: link.index });
        let ends: Vec<&Link> = links.iter().filter(is_end).collect();
        let Ok(addresses) = netlink.addresses().await else { continue };
        for link in ends {
            let mut ips: Vec<IpNet> = addresses
                .iter()
                .filter(|(index, net)| {
                    *index == link.index && subnets.iter().any(|subnet| is_of(subnet, net))
                })
                .map(|(_, net)| *net)
                .collect();
            ips.sort();
            if !ips.is_empty() {
                found.insert(Behind { mac: link.mac, ips });
            }
        }
    }
    found
}

/// Whether an interface with this address is in the subnet.
fn is_of(subnet: &IpNet, net: &IpNet) -> bool {
    let is_alias = net.prefix_len() == net.max_prefix_len();
    subnet.contains(&net.addr()) && (!is_alias || subnet.prefix_len() == net.prefix_len())
}

// ===== changes =====

/// Says when entries or links of a namespace may have changed.
#[derive(Debug)]
pub struct Monitor {
    tasks: [JoinHandle<()>; 2],
    changed: Arc<tokio::sync::Notify>,
    ended: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Monitor {
    /// Listens in `namespace` from now on. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// As [`Netlink::open`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(namespace: &NetNs) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let groups = [MulticastGroup::Neigh, MulticastGroup::Link];
        let opened = run_in(namespace, || {
            let _context = runtime.enter();
            rtnetlink::new_multicast_connection(&groups)
        })?;
        let (connection, handle, mut messages) = opened.map_err(|source| Error::Netlink {
            doing: format!("follow changes of {}", namespace.label()),
            source,
        })?;
        let changed = Arc::new(tokio::sync::Notify::new());
        let ended = Arc::new(AtomicBool::new(false));
        let lost = Arc::new(AtomicU64::new(0));
        let (tell, over, missed) = (Arc::clone(&changed), Arc::clone(&ended), Arc::clone(&lost));
        let listen = async move {
            // The connection ends with its last handle.
            let _handle = handle;
            while let Some((message, _)) = messages.next().await {
                match message.payload {
                    NetlinkPayload::InnerMessage(
                        RouteNetlinkMessage::NewNeighbour(_)
                        | RouteNetlinkMessage::DelNeighbour(_)
                        | RouteNetlinkMessage::NewLink(_)
                        | RouteNetlinkMessage::DelLink(_),
                    ) => tell.notify_one(),
                    NetlinkPayload::Overrun(_) => {
                        missed.fetch_add(1, Ordering::Relaxed);
                        tell.notify_one();
                    }
                    // Look-ups in vain (`l2miss`, `l3miss`) come with the traffic and change nothing.
                    _ => (),
                }
            }
            over.store(true, Ordering::Relaxed);
            tell.notify_one();
        };
        let tasks = [runtime.spawn(connection), runtime.spawn(listen)];
        Ok(Self { tasks, changed, ended, lost })
    }

    /// Returns when something may have changed since the last return.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether it hears nothing any more, and another one is needed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// How often the kernel had no room for what it had to tell.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_address_is_none_of_a_larger_subnet() {
        let is_of =
            |subnet: &str, net: &str| is_of(&subnet.parse().unwrap(), &net.parse().unwrap());
        assert!(is_of("198.51.100.0/24", "198.51.100.7/24"));
        assert!(is_of("198.51.100.0/24", "198.51.100.7/25"));
        assert!(!is_of("198.51.100.0/24", "198.51.100.7/32"));
        assert!(!is_of("198.51.100.0/24", "203.0.113.7/24"));
        assert!(is_of("198.51.100.7/32", "198.51.100.7/32"));
        assert!(!is_of("2001:db8::/64", "2001:db8::7/128"));
    }
}

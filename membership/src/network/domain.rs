//! Routing domains: which routed networks the wire can tell apart.
//!
//! # Theory of operation
//!
//! ```text
//!   ipip, and ipudp on the default ports   one domain: nothing on the wire names the network
//!   ipudp with ports of its own            a domain by itself: the destination port names it
//! ```
//!
//! In one domain a packet finds its network by its inner destination, so no two subnets of a domain
//! may overlap. Creating a routed network reads the others, chooses, and writes, under one guard:
//! a key that each such transaction finds unchanged and changes. Two hosts that create at once
//! therefore see each other; the second one chooses again.

use std::collections::BTreeSet;

use etcd_client::{Compare, TxnOp};
use ipnet::IpNet;

use super::{Error, list};
use crate::key::{Guard, Key, Range};
use crate::record::{GuardRecord, HostRecord, Mode, NetworkRecord};
use crate::store::{self, Found, Store};

/// The UDP port of IPv4 packets in networks that have no ports of their own.
pub const UDP_PORT_V4: u16 = 4760;
/// The UDP port of IPv6 packets there.
pub const UDP_PORT_V6: u16 = UDP_PORT_V4 + 1;
/// The first port that is given out by itself; each network takes two.
pub const FIRST_UDP_PORT: u16 = UDP_PORT_V6 + 1;
/// The last one: those above are for sockets that ask for none.
const LAST_UDP_PORT: u16 = 32_766;

/// The UDP ports that a routed network's packets arrive at where they are carried in UDP: of IPv4
/// packets and of IPv6 packets.
#[must_use]
pub fn udp_ports(network: &NetworkRecord) -> (u16, u16) {
    match network.udp_port.filter(|_| network.mode == Mode::IpUdp) {
        Some(port) => (port, port.saturating_add(1)),
        None => (UDP_PORT_V4, UDP_PORT_V6),
    }
}

/// Whether nothing on the wire tells these two apart.
fn same_domain(a: &NetworkRecord, b: &NetworkRecord) -> bool {
    a.mode.is_routed() && b.mode.is_routed() && udp_ports(a) == udp_ports(b)
}

/// A subnet of `network` that one of another network of its domain overlaps, with that network.
pub fn overlap<'a>(
    network: &NetworkRecord,
    others: impl IntoIterator<Item = &'a NetworkRecord>,
) -> Option<(IpNet, &'a NetworkRecord, IpNet)> {
    let others = others.into_iter().filter(|other| other.id != network.id);
    let same = others.filter(|other| same_domain(network, other));
    same.flat_map(|other| other.subnets.iter().map(move |theirs| (other, *theirs))).find_map(
        |(other, theirs)| {
            let mut ours = network.subnets.iter();
            let ours = ours.find(|ours| ours.contains(&theirs) || theirs.contains(*ours))?;
            Some((*ours, other, theirs))
        },
    )
}

/// What the transaction that writes a routed network must find, and change.
pub(crate) struct Turn {
    revision: i64,
}

impl Turn {
    pub(crate) fn when(&self, store: &Store) -> Compare {
        store.unchanged(&Key::Guard(Guard::Routed), self.revision)
    }

    pub(crate) fn then(
        &self,
        store: &Store,
        record: &NetworkRecord,
    ) -> Result<TxnOp, store::Error> {
        store.put(&Key::Guard(Guard::Routed), &GuardRecord::new(record.id.clone()), 0)
    }
}

/// Finds a routed network its place among the others. With `chooses`, an ipudp network that asks for
/// no ports and overlaps gets ports of its own. `None` where there is nothing to be found: for most vxlan
/// networks.
///
/// # Errors
///
/// [`Error::Domain`], [`Error::UdpPort`], [`Error::OwnUdpPort`], [`Error::NoUdpPort`], or why the store
/// did not answer.
pub(crate) async fn enter(
    store: &Store,
    record: &mut NetworkRecord,
    chooses: bool,
) -> Result<Option<Turn>, Error> {
    let frames = !record.mode.is_routed();
    // A vxlan network is no part of a domain. One with a port of its own, when it is made, must find a
    // port that no routed network has.
    if frames && (record.udp_port.is_none() || !chooses) {
        return Ok(None);
    }
    // Before the networks: what comes later changes it.
    let guard = store.get::<GuardRecord>(&Key::Guard(Guard::Routed)).await?;
    let turn = Turn { revision: guard.map_or(0, |found| found.mod_revision) };
    let others = list(store).await?;
    let others: Vec<&NetworkRecord> =
        others.iter().map(|found| &found.record).filter(|other| other.id != record.id).collect();
    match record.udp_port {
        Some(port) if frames => check_vxlan_port(port, &others)?,
        Some(port) => {
            let pair = [port, port.saturating_add(1)];
            if pair.into_iter().any(is_well_known) {
                let cause = "one of them is that of VXLAN".to_owned();
                return Err(Error::UdpPort { port, cause });
            }
            let holder =
                others.iter().find(|other| pair.iter().any(|port| own_ports(other).contains(port)));
            if let Some(other) = holder {
                let cause = format!("network {} has one of them", other.name);
                return Err(Error::UdpPort { port, cause });
            }
            let hosts: Vec<(Key, Found<HostRecord>)> = store.records(Range::KnownHosts).await?;
            let vtep = hosts.iter().find_map(|(_, found)| {
                let mut vteps = found.record.vteps.iter();
                vteps.find(|vtep| pair.contains(&vtep.port))?;
                Some(found.record.name.clone())
            });
            if let Some(host) = vtep {
                let cause = format!("the VTEP of host {host} has one of them for VXLAN");
                return Err(Error::UdpPort { port, cause });
            }
        }
        None => {
            let found = overlap(record, others.iter().copied());
            if let Some((subnet, other, theirs)) = found {
                if record.mode != Mode::IpUdp || !chooses {
                    return Err(Error::Domain { subnet, other: other.name.clone(), theirs });
                }
                let hosts: Vec<(Key, Found<HostRecord>)> = store.records(Range::KnownHosts).await?;
                let vteps = hosts.iter().flat_map(|(_, found)| &found.record.vteps);
                let mut taken: BTreeSet<u16> = vteps.map(|vtep| vtep.port).collect();
                taken.extend(others.iter().flat_map(|other| own_ports(other)));
                record.udp_port = Some(free_pair(&taken).ok_or(Error::NoUdpPort)?);
            }
        }
    }
    Ok(Some(turn))
}

/// The UDP ports that a network has by itself, and not as its hosts' VTEPs have them.
fn own_ports(network: &NetworkRecord) -> Vec<u16> {
    if network.mode.is_routed() {
        let (v4, v6) = udp_ports(network);
        return vec![v4, v6];
    }
    network.udp_port.into_iter().collect()
}

/// A vxlan network's own port, which other vxlan networks may have too.
fn check_vxlan_port(port: u16, others: &[&NetworkRecord]) -> Result<(), Error> {
    if [UDP_PORT_V4, UDP_PORT_V6].contains(&port) {
        let cause = "it is that of IP in UDP".to_owned();
        return Err(Error::OwnUdpPort { port, cause });
    }
    let mut routed = others.iter().filter(|other| other.mode.is_routed());
    match routed.find(|other| own_ports(other).contains(&port)) {
        Some(other) => {
            let cause = format!("network {} of mode {} has it", other.name, other.mode);
            Err(Error::OwnUdpPort { port, cause })
        }
        None => Ok(()),
    }
}

/// The first of two free ports.
fn free_pair(taken: &BTreeSet<u16>) -> Option<u16> {
    let free = |port: &u16| {
        ![*port, port + 1].iter().any(|port| taken.contains(port) || is_well_known(*port))
    };
    (FIRST_UDP_PORT..LAST_UDP_PORT).step_by(2).find(free)
}

/// VXLAN's port (IANA), and the Linux kernel's before that was given.
fn is_well_known(port: u16) -> bool {
    matches!(port, 4789 | 8472)
}

#[cfg(test)]
mod tests {
    use encap::Vni;

    use super::*;
    use crate::key::NetworkId;

    fn network(id: &str, mode: Mode, subnet: &str, udp_port: Option<u16>) -> NetworkRecord {
        let (id, name) = (NetworkId::new(id).unwrap(), id.parse().unwrap());
        let mut record = NetworkRecord::new(id, name, Vni::new(7).unwrap());
        record.mode = mode;
        record.subnets = vec![subnet.parse().unwrap()];
        record.udp_port = udp_port;
        record
    }

    #[test]
    fn only_networks_of_one_domain_must_not_overlap() {
        let one = network("n1", Mode::IpIp, "198.51.100.0/24", None);
        for (other, overlaps) in [
            (network("n2", Mode::IpIp, "198.51.100.128/25", None), true),
            (network("n2", Mode::IpUdp, "198.51.0.0/16", None), true),
            (network("n2", Mode::IpUdp, "198.51.100.0/24", Some(4762)), false),
            (network("n2", Mode::Vxlan, "198.51.100.0/24", None), false),
            (network("n2", Mode::IpIp, "203.0.113.0/24", None), false),
            (network("n1", Mode::IpIp, "198.51.100.0/24", None), false),
        ] {
            assert_eq!(overlap(&one, [&other]).is_some(), overlaps, "{other:?}");
            assert_eq!(overlap(&other, [&one]).is_some(), overlaps, "{other:?}");
        }
    }

    #[test]
    fn ports_come_in_pairs_and_spare_those_of_vxlan() {
        let mut taken = BTreeSet::from([UDP_PORT_V4, UDP_PORT_V6]);
        assert_eq!(free_pair(&taken), Some(4762));
        taken.insert(4763);
        assert_eq!(free_pair(&taken), Some(4764));
        taken.extend(4764..4788);
        assert_eq!(free_pair(&taken), Some(4790));
        taken.extend(4790..=LAST_UDP_PORT);
        assert_eq!(free_pair(&taken), None);
    }
}

//! To which hosts there may be several ways, and which these are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::probe::Way;
use ipnet::IpNet;
use membership::gateway;
use membership::key::{HostName, NetworkId};
use membership::network::{UDP_PORT_V4, UDP_PORT_V6, udp_ports};
use membership::reconcile::Reconciler;
use membership::record::{Encapsulate, Mode, NetworkRecord};
use membership::view::View;

/// Another host that shares a network with this one whose packets need not always be encapsulated in
/// the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its VTEP.
    pub vtep: IpAddr,
    /// This host's VTEP of that family.
    pub source: IpAddr,
    /// All addresses that what it encapsulates may come from.
    pub vteps: Vec<IpAddr>,
    /// Where it takes hellos in UDP: at the port of the first network of the two that asks for the best
    /// way, for which both listen. Nobody listens for one that only looks at the subnet.
    pub port: u16,
    /// Whether a network of the two that asks for the best way is carried in IP, and so whether that way
    /// is of any use.
    pub ipip: bool,
    /// Whether a network of the two that does not ask is carried in IP.
    pub plainly_ipip: bool,
    /// Whether a network of the two asks for the best way, so that hellos are sent.
    pub probed: bool,
    /// Between which addresses direct hellos are sent, where the two are on one subnet.
    pub direct: Option<(IpAddr, IpAddr)>,
    /// Whether the two are on one subnet of the underlay.
    pub same_subnet: bool,
    /// Its own addresses in the networks. In each it has one as soon as it can take packets as they are.
    pub own: Vec<(NetworkId, IpAddr)>,
}

impl Peer {
    /// Whether hellos are sent by a way.
    #[must_use]
    pub fn has(&self, way: Way) -> bool {
        match way {
            Way::Direct => self.direct.is_some(),
            Way::IpIp => self.ipip,
            Way::Udp => true,
        }
    }

    /// Takes over how a network of the two is carried. The first one by its identity comes first: so both
    /// hosts choose the same.
    fn shares(&mut self, record: &NetworkRecord, probed: bool) {
        let ip_in_ip = record.mode == Mode::IpIp;
        if probed && !self.probed {
            let (v4, v6) = udp_ports(record);
            self.port = if self.vtep.is_ipv6() { v6 } else { v4 };
        }
        self.probed |= probed;
        self.ipip |= probed && ip_in_ip;
        self.plainly_ipip |= !probed && ip_in_ip;
    }

    /// Whether it takes packets of a network as they are.
    #[must_use]
    pub fn is_ready(&self, network: &NetworkId) -> bool {
        let v6 = self.vtep.is_ipv6();
        self.own.iter().any(|(of, ip)| of == network && ip.is_ipv6() == v6)
    }
}

/// When a network's packets are encapsulated; `None` for a network of frames, whose always are.
#[must_use]
pub fn encapsulate(record: &NetworkRecord) -> Option<Encapsulate> {
    record.mode.is_routed().then(|| record.options.encapsulate.unwrap_or_default())
}

/// The addresses that a host has in a network by itself.
fn own_addresses(view: &View, network: &NetworkId, host: &HostName) -> Vec<IpAddr> {
    let id = gateway::host_endpoint(host);
    let item = id.and_then(|id| view.endpoint(network, &id));
    let item = item.filter(|item| item.record.host == *host);
    item.map(|item| item.record.ips.clone()).unwrap_or_default()
}

/// The addresses that a host's outer packets may come from.
fn vteps_of(view: &View, host: &HostName) -> Vec<IpAddr> {
    let record = view.host(host).and_then(|found| found.record());
    let vteps = record.into_iter().flat_map(|record| &record.vteps);
    vteps.flat_map(|vtep| vtep.accept.iter().chain([&vtep.advertise])).copied().collect()
}

/// All of them. `vteps` are this host's VTEP addresses with the prefix lengths of their interfaces.
#[must_use]
pub fn find(
    own: &HostName,
    vteps: &[IpNet],
    reconciler: &Reconciler,
    view: &View,
) -> BTreeMap<HostName, Peer> {
    let mut found: BTreeMap<HostName, Peer> = BTreeMap::new();
    for (id, _) in reconciler.active() {
        let Some(record) = view.network(id).map(|item| &item.record) else { continue };
        let probed = match encapsulate(record) {
            None | Some(Encapsulate::Always) => continue,
            Some(Encapsulate::Auto) => true,
            Some(Encapsulate::CrossSubnet) => false,
        };
        let hosts: BTreeSet<&HostName> =
            view.endpoints_of(id).map(|item| &item.record.host).filter(|it| *it != own).collect();
        for host in hosts {
            let Some(vtep) = reconciler.vtep_address(host) else { continue };
            let v6 = vtep.is_ipv6();
            let Some(here) = vteps.iter().find(|here| here.addr().is_ipv6() == v6) else {
                continue;
            };
            let peer = found.entry(host.clone()).or_insert_with(|| Peer {
                vtep,
                source: here.addr(),
                vteps: vteps_of(view, host),
                port: if v6 { UDP_PORT_V6 } else { UDP_PORT_V4 },
                ipip: false,
                plainly_ipip: false,
                probed: false,
                direct: None,
                same_subnet: here.contains(&vtep),
                own: Vec::new(),
            });
            peer.shares(record, probed);
            let theirs = own_addresses(view, id, host);
            if probed && peer.same_subnet && peer.direct.is_none() {
                let of_family = |ips: &[IpAddr]| ips.iter().find(|ip| ip.is_ipv6() == v6).copied();
                peer.direct = of_family(&own_addresses(view, id, own)).zip(of_family(&theirs));
            }
            peer.own.extend(theirs.into_iter().map(|ip| (id.clone(), ip)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use encap::Vni;

    use super::*;

    fn network(mode: Mode, udp_port: Option<u16>) -> NetworkRecord {
        let (id, name) = (NetworkId::new("n1").unwrap(), "red".parse().unwrap());
        let mut record = NetworkRecord::new(id, name, Vni::new(7).unwrap());
        (record.mode, record.udp_port) = (mode, udp_port);
        record
    }

    #[test]
    fn hellos_go_to_a_port_that_a_network_is_listened_for_at() {
        let plain = (network(Mode::IpIp, None), false);
        let own = |port| (network(Mode::IpUdp, Some(port)), true);
        let not_asked = (network(Mode::IpUdp, Some(5010)), false);
        let falls_back = (network(Mode::IpIp, None), true);
        for (networks, v4) in [
            (vec![plain.clone(), own(5000)], 5000),
            (vec![not_asked.clone(), own(5000), own(5002)], 5000),
            (vec![own(5002), plain.clone(), falls_back.clone()], 5002),
            (vec![not_asked, falls_back], UDP_PORT_V4),
        ] {
            for (vtep, port) in [("192.0.2.2", v4), ("2001:db8::2", v4 + 1)] {
                let vtep: IpAddr = vtep.parse().unwrap();
                let mut peer = Peer {
                    vtep,
                    source: vtep,
                    vteps: Vec::new(),
                    port: 0,
                    ipip: false,
                    plainly_ipip: false,
                    probed: false,
                    direct: None,
                    same_subnet: false,
                    own: Vec::new(),
                };
                networks.iter().for_each(|(record, probed)| peer.shares(record, *probed));
                assert_eq!(peer.port, port, "{networks:?}");
            }
        }
    }
}

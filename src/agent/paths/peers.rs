//! To which hosts there may be several ways, and which these are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use encap::probe::Way;
use ipnet::IpNet;
use membership::gateway;
use membership::key::{HostName, NetworkId};
use membership::network::udp_ports;
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
    /// Where it takes hellos in UDP.
    pub port: u16,
    /// Whether a network of the two is carried in IP, and so whether that way is of any use.
    pub ipip: bool,
    /// Whether a network of the two asks for the best way, so that hellos are sent.
    pub probed: bool,
    /// Between which addresses direct hellos are sent, where the two are on one subnet.
    pub direct: Option<(IpAddr, IpAddr)>,
    /// Whether the two are on one subnet of the underlay.
    pub same_subnet: bool,
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
}

/// When a network's packets are encapsulated; `None` for a network of frames, whose always are.
#[must_use]
pub fn encapsulate(record: &NetworkRecord) -> Option<Encapsulate> {
    record.mode.is_routed().then(|| record.options.encapsulate.unwrap_or_default())
}

/// The address that a host has in a network by itself, of one family.
fn own_address(view: &View, network: &NetworkId, host: &HostName, v6: bool) -> Option<IpAddr> {
    let item = view.endpoint(network, &gateway::host_endpoint(host)?)?;
    let mut ips = item.record.ips.iter().filter(|_| item.record.host == *host);
    ips.find(|ip| ip.is_ipv6() == v6).copied()
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
        for item in view.endpoints_of(id) {
            let host = &item.record.host;
            if host == own {
                continue;
            }
            let Some(vtep) = reconciler.vtep_address(host) else { continue };
            let v6 = vtep.is_ipv6();
            let Some(here) = vteps.iter().find(|here| here.addr().is_ipv6() == v6) else {
                continue;
            };
            let ports = udp_ports(record);
            let peer = found.entry(host.clone()).or_insert_with(|| Peer {
                vtep,
                source: here.addr(),
                port: if v6 { ports.1 } else { ports.0 },
                ipip: false,
                probed: false,
                direct: None,
                same_subnet: here.contains(&vtep),
            });
            peer.probed |= probed;
            peer.ipip |= probed && record.mode == Mode::IpIp;
            if probed && peer.same_subnet && peer.direct.is_none() {
                let of = |host: &HostName| own_address(view, id, host, v6);
                peer.direct = of(own).zip(of(host));
            }
        }
    }
    found
}

//! What a network's record says of its way out: gateway, masquerading, access to the host.
//!
//! # Theory of operation
//!
//! ```text
//!   gateways of the record ── those of routers behind static VTEPs ──► own gateways
//!        one MAC from the record, the same on every host
//!   nat_outgoing, host_access, ──► routed: the subnets have routes in the hosts' own namespaces
//!   encapsulate
//!        routed networks must not overlap, because a host has one route per prefix
//!   host_access, or several subnets of a family ──► a host endpoint per host
//! ```
//!
//! Nothing here knows how a host does it, so it holds for every mode.

use std::net::IpAddr;

use encap::MacAddr;
use ipnet::IpNet;

use crate::endpoint;
use crate::key::{EndpointId, HostName, NetworkId};
use crate::record::{Encapsulate, NetworkRecord};

/// Before the host's name in the id of its endpoint: an id of an attachment is all hexadecimal.
const HOST_ENDPOINT: &str = "host-";
/// What stands for the gateway where its MAC is made from ids.
const GATEWAY: &str = "gateway";

/// The id of the endpoint that a host itself has in a network. Unlike that of an attachment it is
/// told by the host's name, so that the host finds it again whatever became of its notes. `None`
/// when the name is too long to leave room.
#[must_use]
pub fn host_endpoint(host: &HostName) -> Option<EndpointId> {
    EndpointId::new(format!("{HOST_ENDPOINT}{host}")).ok()
}

/// Whether this is the endpoint of a host itself.
#[must_use]
pub fn is_host_endpoint(id: &EndpointId) -> bool {
    id.as_str().starts_with(HOST_ENDPOINT)
}

/// The gateways that every host answers for, with the prefix lengths of their subnets: those of the
/// record, but not those that a static VTEP has as a router of its own.
#[must_use]
pub fn own(network: &NetworkRecord) -> Vec<IpNet> {
    let elsewhere = |ip: &IpAddr| {
        let mut behind = network.static_vteps.iter().flat_map(|vtep| &vtep.macs);
        behind.any(|known| known.ips.contains(ip))
    };
    let own = network.gateways.iter().filter(|ip| !elsewhere(ip));
    let with_prefix = |ip: &IpAddr| {
        let subnet = network.subnet_of(*ip)?;
        IpNet::new(*ip, subnet.prefix_len()).ok()
    };
    own.filter_map(with_prefix).collect()
}

/// The gateway's MAC: `02:42` and its first IPv4 address, or one from the network's id. `None`
/// without a gateway of our own.
#[must_use]
pub fn mac(network: &NetworkRecord) -> Option<MacAddr> {
    let ips: Vec<IpAddr> = own(network).iter().map(IpNet::addr).collect();
    let id = EndpointId::new(GATEWAY).ok()?;
    (!ips.is_empty()).then(|| endpoint::default_mac(&network.id, &id, &ips))
}

/// The link-local address of a MAC (RFC 4291 appendix A).
#[must_use]
pub fn link_local(mac: MacAddr) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    IpAddr::from(octets)
}

/// What the datapath is told of the gateway.
#[must_use]
pub fn of_tables(network: &NetworkRecord) -> Option<fdb::Gateway> {
    let mac = mac(network)?;
    let mut addresses: Vec<IpAddr> = own(network).iter().map(IpNet::addr).collect();
    if addresses.iter().any(IpAddr::is_ipv6) {
        addresses.push(link_local(mac));
    }
    Some(fdb::Gateway { mac, addresses: addresses.into() })
}

/// Whether what leaves the network is masqueraded.
#[must_use]
pub fn masquerades(network: &NetworkRecord) -> bool {
    network.options.nat_outgoing.unwrap_or(false)
}

/// Whether endpoints reach their own host and hosts reach endpoints; who may go out to the world may
/// go to the host unless somebody says otherwise.
#[must_use]
pub fn reaches_hosts(network: &NetworkRecord) -> bool {
    network.options.host_access.unwrap_or_else(|| masquerades(network))
}

/// Whether packets of the network may go from host to host as they are.
#[must_use]
pub fn goes_direct(network: &NetworkRecord) -> bool {
    let wanted = network.options.encapsulate.unwrap_or_default();
    network.mode.is_routed() && wanted != Encapsulate::Always
}

/// Whether the hosts have routes to the network.
#[must_use]
pub fn is_routed(network: &NetworkRecord) -> bool {
    masquerades(network) || reaches_hosts(network) || goes_direct(network)
}

/// Whether each host has an endpoint of its own: it sends into the network itself, or routes between
/// subnets to endpoints elsewhere.
#[must_use]
pub fn has_host_endpoints(network: &NetworkRecord) -> bool {
    if network.mode.is_routed() {
        // Where packets go as they are it tells the others that a host takes them; and hosts that look
        // for the best way ask each other from there.
        return reaches_hosts(network) || goes_direct(network);
    }
    let own = own(network);
    let several =
        |v6: bool| own.iter().filter(|gateway| gateway.addr().is_ipv6() == v6).count() > 1;
    (reaches_hosts(network) && !own.is_empty()) || several(false) || several(true)
}

/// A subnet of `network` that one of another routed network overlaps, with that network. `None` also
/// when `network` itself is not routed.
pub fn overlap<'a>(
    network: &NetworkRecord,
    others: impl IntoIterator<Item = &'a NetworkRecord>,
) -> Option<(IpNet, &'a NetworkRecord, IpNet)> {
    if !is_routed(network) {
        return None;
    }
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let routed = others.into_iter().filter(|other| other.id != network.id && is_routed(other));
    routed.flat_map(|other| other.subnets.iter().map(move |theirs| (other, *theirs))).find_map(
        |(other, theirs)| {
            let ours = network.subnets.iter().find(|ours| overlaps(ours, &theirs))?;
            Some((*ours, other, theirs))
        },
    )
}

/// Whether a host gives way: of two routed networks that overlap, which only a race can make, the
/// one with the lower id has the routes on every host.
#[must_use]
pub fn gives_way(network: &NetworkId, other: &NetworkId) -> bool {
    other < network
}

#[cfg(test)]
mod tests {
    use encap::Vni;

    use super::*;
    use crate::record::{StaticMac, StaticVtep};

    fn network(id: &str, subnets: &[&str], gateways: &[&str]) -> NetworkRecord {
        let (id, name) = (NetworkId::new(id).unwrap(), "blue".parse().unwrap());
        let mut record = NetworkRecord::new(id, name, Vni::new(7001).unwrap());
        record.subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
        record.gateways = gateways.iter().map(|ip| ip.parse().unwrap()).collect();
        record
    }

    #[test]
    fn the_mac_is_that_of_the_first_ipv4_gateway_or_made_from_the_id() {
        let both = network("n1", &["2001:db8::/64", "192.0.2.0/24"], &["2001:db8::1", "192.0.2.1"]);
        assert_eq!(mac(&both).unwrap().to_string(), "02:42:c0:00:02:01");
        let v6 = network("n1", &["2001:db8::/64"], &["2001:db8::1"]);
        let made = mac(&v6).unwrap();
        assert!(made.is_unicast() && mac(&v6) == Some(made));
        assert_ne!(mac(&network("n2", &["2001:db8::/64"], &["2001:db8::1"])), Some(made));
        let told = of_tables(&v6).unwrap();
        assert_eq!(told.addresses.len(), 2, "the link-local address too: {told:?}");
        assert_eq!(mac(&network("n1", &["192.0.2.0/24"], &[])), None);
    }

    #[test]
    fn a_router_behind_a_static_vtep_keeps_its_address() {
        let mut record = network("n1", &["192.0.2.0/24"], &["192.0.2.1"]);
        let mut vtep = StaticVtep::new("198.51.100.9".parse().unwrap());
        let mac_of_theirs = MacAddr([0, 0, 0x5e, 0, 0x53, 9]);
        vtep.macs.push(StaticMac { mac: mac_of_theirs, ips: vec!["192.0.2.1".parse().unwrap()] });
        record.static_vteps.push(vtep);
        assert!(own(&record).is_empty() && mac(&record).is_none());
        record.options.host_access = Some(true);
        assert!(!has_host_endpoints(&record));
    }

    #[test]
    fn host_access_comes_with_masquerading_unless_it_is_refused() {
        let mut record = network("n1", &["192.0.2.0/24"], &["192.0.2.1"]);
        assert!(!is_routed(&record) && !has_host_endpoints(&record));
        record.options.nat_outgoing = Some(true);
        assert!(reaches_hosts(&record) && has_host_endpoints(&record));
        record.options.host_access = Some(false);
        assert!(is_routed(&record) && !reaches_hosts(&record) && !has_host_endpoints(&record));
        let subnets = ["192.0.2.0/25", "192.0.2.128/25"];
        let several = network("n1", &subnets, &["192.0.2.1", "192.0.2.129"]);
        assert!(has_host_endpoints(&several) && !is_routed(&several));
    }

    #[test]
    fn only_routed_networks_must_not_overlap() {
        let mut one = network("n1", &["192.0.2.0/24"], &["192.0.2.1"]);
        let mut other = network("n2", &["198.51.100.0/24", "192.0.2.128/25"], &["192.0.2.129"]);
        assert!(overlap(&one, [&other]).is_none());
        one.options.nat_outgoing = Some(true);
        assert!(overlap(&one, [&other]).is_none());
        other.options.host_access = Some(true);
        let (ours, found, theirs) = overlap(&one, [&other]).unwrap();
        assert_eq!((ours, theirs), (one.subnets[0], other.subnets[1]));
        assert_eq!(found.id, other.id);
        assert!(overlap(&one, [&one.clone()]).is_none(), "a network does not overlap itself");
        assert!(gives_way(&other.id, &one.id) && !gives_way(&one.id, &other.id));
    }

    #[test]
    fn a_host_endpoint_is_told_by_its_host() {
        let id = host_endpoint(&HostName::new("h1").unwrap()).unwrap();
        assert!(id.as_str() == "host-h1" && is_host_endpoint(&id));
        assert!(!is_host_endpoint(&EndpointId::random()));
    }
}

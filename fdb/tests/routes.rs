//! Longest-prefix look-up against the plain list, and precedence of claims.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::Vni;
use fdb::{
    Carrier, Delta, Limits, Network, NetworkKey, Origin, OriginKind, Place, Prefix, Revision,
    Route, Routed, SourceCheck, UdpPorts, Via, VtepKey, channel_with,
};
use proptest::prelude::*;

const NETWORK: NetworkKey = NetworkKey(0);

fn network() -> Delta {
    let network = Network {
        vni: Vni::new(7).unwrap(),
        udp_port: 4789,
        mtu: 1480,
        name: "routed".into(),
        id: "0".into(),
        learning: false,
        flood_unknown: false,
        flood_broadcast: false,
        flood_multicast: false,
        flood_rate: 0,
        flood_arp: false,
        source_check: SourceCheck::Mac,
        df: true,
        switch_local: false,
        gateway: None,
        routed: None,
    };
    Delta::PutNetwork { key: NETWORK, network }
}

fn route(vtep: u32, revision: i64) -> Route {
    let origin = Origin::Store { revision: Revision(revision) };
    Route { place: Place::Vtep(VtepKey(vtep)), origin }
}

fn prefix(text: &str) -> Prefix {
    let (ip, len) = text.split_once('/').unwrap();
    Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn put(text: &str, route: Route) -> Delta {
    Delta::PutRoute { network: NETWORK, prefix: prefix(text), route }
}

fn remove(text: &str, origin: OriginKind) -> Delta {
    Delta::RemoveRoute { network: NETWORK, prefix: prefix(text), origin }
}

/// Few bits differ, so that prefixes nest.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..=3_u8, 0..=255_u8).prop_map(|(c, d)| Ipv4Addr::new(198, 51, 100 + c, d).into()),
        (0..=3_u16, 0..=255_u16)
            .prop_map(|(g, h)| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, g, h).into()),
    ]
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (address(), 0..=33_u8, 96..=128_u8).prop_map(|(ip, short, long)| {
        let len = if ip.is_ipv4() { short.min(32) } else { long };
        Prefix::new(ip, len).unwrap()
    })
}

fn holds(prefix: Prefix, ip: IpAddr) -> bool {
    prefix.address().is_ipv4() == ip.is_ipv4()
        && Prefix::new(ip, prefix.len()).is_some_and(|of| of == prefix)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_longest_prefix_has_it(
        changes in prop::collection::vec((any_prefix(), any::<Option<u8>>()), 1..80),
        asked in prop::collection::vec(address(), 1..60),
    ) {
        let (mut writer, reader) = channel_with(Limits::default());
        writer.apply(network());
        let mut model: BTreeMap<Prefix, u32> = BTreeMap::new();
        for (index, (prefix, vtep)) in changes.into_iter().enumerate() {
            writer.apply(match vtep {
                Some(vtep) => {
                    model.insert(prefix, vtep.into());
                    let route = route(vtep.into(), index as i64);
                    Delta::PutRoute { network: NETWORK, prefix, route }
                }
                None => {
                    model.remove(&prefix);
                    Delta::RemoveRoute { network: NETWORK, prefix, origin: OriginKind::Store }
                }
            });
        }
        writer.publish();
        let snapshot = reader.load();
        let tables = snapshot.network(NETWORK).unwrap();
        prop_assert_eq!(tables.routes_len(), model.len());
        let listed: BTreeMap<Prefix, u32> = tables
            .routes()
            .map(|(prefix, route)| match route.place {
                Place::Vtep(VtepKey(vtep)) => (prefix, vtep),
                Place::Local => unreachable!("none was put"),
            })
            .collect();
        prop_assert_eq!(&listed, &model);
        for ip in asked {
            let found = tables.route(ip).map(|route| route.place);
            let best = model.iter().filter(|(prefix, _)| holds(**prefix, ip));
            let best = best.max_by_key(|(prefix, _)| prefix.len());
            prop_assert_eq!(found, best.map(|(_, vtep)| Place::Vtep(VtepKey(*vtep))), "{}", ip);
        }
    }
}

#[test]
fn claims_have_their_precedence() {
    let (mut writer, reader) = channel_with(Limits::default());
    writer.apply(put("198.51.100.0/24", route(1, 1)));
    assert_eq!(writer.stats().unknown_network, 1, "no network yet");
    writer.apply(network());
    let fixed = Route { place: Place::Local, origin: Origin::Static };
    writer.apply(put("198.51.100.0/24", route(1, 5)));
    writer.apply(put("198.51.100.0/24", route(2, 4)));
    writer.apply(put("198.51.100.0/24", fixed));
    writer.apply(put("198.51.100.0/24", route(3, 6)));
    writer.publish();
    let found = |ip: &str| {
        let snapshot = reader.load();
        snapshot.network(NETWORK).unwrap().route(ip.parse().unwrap()).copied()
    };
    assert_eq!(found("198.51.100.77"), Some(fixed));
    assert_eq!(found("::ffff:198.51.100.77"), Some(fixed));
    assert_eq!(found("198.51.101.1"), None);
    writer.apply(remove("198.51.100.0/24", OriginKind::Static));
    writer.publish();
    assert_eq!(found("198.51.100.77"), Some(route(3, 6)), "what was beneath comes back");
    writer.apply(remove("198.51.100.0/24", OriginKind::Store));
    writer.publish();
    assert_eq!(found("198.51.100.77"), None);
    let learned = Route { origin: Origin::Learned { at: fdb::Millis(1) }, ..fixed };
    writer.apply(put("::/0", learned));
    assert_eq!((writer.stats().stale, writer.stats().refused), (1, 1));
}

#[test]
fn prefixes_have_no_host_bits() {
    assert_eq!(prefix("198.51.100.77/26"), prefix("198.51.100.64/26"));
    assert_eq!(prefix("2001:db8::ffff/64").to_string(), "2001:db8::/64");
    assert_eq!(prefix("::ffff:198.51.100.7/120").to_string(), "198.51.100.0/24");
    assert_eq!(prefix("0.0.0.0/0").to_string(), "0.0.0.0/0");
    assert_eq!(Prefix::new("192.0.2.1".parse().unwrap(), 33), None);
    assert_eq!(Prefix::new("::".parse().unwrap(), 129), None);
}

// ===== which network =====

fn routed(carrier: Carrier, port: u16, subnets: &[&str]) -> Network {
    let prefix = |text: &&str| {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap()
    };
    let Delta::PutNetwork { network, .. } = network() else { unreachable!() };
    let routed = Routed {
        carrier,
        fallback: false,
        ports: UdpPorts { v4: port, v6: port + 1 },
        subnets: subnets.iter().map(prefix).collect(),
        mss: false,
    };
    Network { routed: Some(routed), ..network }
}

#[test]
fn a_destination_tells_the_network_of_its_domain() {
    let (mut writer, reader) = fdb::channel();
    let networks = [
        routed(Carrier::IpIp, 4760, &["198.51.100.0/24", "2001:db8:1::/64"]),
        routed(Carrier::IpUdp, 4760, &["203.0.113.0/25"]),
        routed(Carrier::IpUdp, 6000, &["198.51.100.0/24"]),
        // As creation would refuse it: the longer prefix wins, of equal ones the lower key.
        routed(Carrier::IpIp, 4760, &["198.51.100.128/25", "198.51.100.0/24"]),
    ];
    for (key, network) in (0..).map(NetworkKey).zip(networks) {
        writer.apply(Delta::PutNetwork { key, network });
    }
    writer.publish();
    let find = |via, ip: &str| reader.load().routed(via, ip.parse().unwrap()).map(|key| key.0);
    assert_eq!(find(Via::Ip, "198.51.100.1"), Some(0));
    assert_eq!(find(Via::Ip, "198.51.100.200"), Some(3));
    assert_eq!(find(Via::Ip, "2001:db8:1::9"), Some(0));
    assert_eq!(find(Via::Ip, "203.0.113.1"), None, "a network in UDP only");
    assert_eq!(find(Via::Udp(4760), "203.0.113.1"), Some(1));
    assert_eq!(find(Via::Udp(4760), "198.51.100.1"), Some(0), "as its fallback");
    assert_eq!(find(Via::Udp(4760), "::ffff:198.51.100.1"), Some(0));
    assert_eq!(find(Via::Udp(4760), "2001:db8:1::9"), None, "the other family has its own port");
    assert_eq!(find(Via::Udp(4761), "2001:db8:1::9"), Some(0));
    assert_eq!(find(Via::Udp(6000), "198.51.100.1"), Some(2));
    assert_eq!(find(Via::Udp(6002), "198.51.100.1"), None);
    let vni = Vni::new(7).unwrap();
    assert_eq!(reader.load().by_vni(4789, vni), None, "no VNI leads to a network of packets");

    // A network that becomes one of frames is found by its VNI, and only so.
    writer.apply(network());
    writer.apply(Delta::RemoveNetwork { key: NetworkKey(3) });
    writer.publish();
    let find = |via, ip: &str| reader.load().routed(via, ip.parse().unwrap());
    assert_eq!(find(Via::Ip, "198.51.100.200"), None);
    assert_eq!(reader.load().by_vni(4789, vni), Some(NETWORK));
}

//! Keys and records: round trips, and nothing panics on any bytes.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::net::IpAddr;

use encap::{MacAddr, Vni};
use ipnet::IpNet;
use membership::key::{DockerId, EndpointId, HostId, HostName, Key, Keys, NetworkId, NetworkName};
use membership::record::{
    Bitmap, BlockRecord, EndpointRecord, Error, HostRecord, Mode, NetworkOptions, NetworkRecord,
    Record, StaticVtep, Stored, VtepRecord,
};
use membership::view::View;
use membership::watch::Event;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
}

fn cidr() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), any::<u8>()).prop_map(|(ip, len)| {
        let max = if ip.is_ipv6() { 128 } else { 32 };
        IpNet::new(ip, len % (max + 1)).unwrap().trunc()
    })
}

fn key() -> impl Strategy<Value = Key> {
    let network = || name().prop_map(|text| NetworkId::new(text).unwrap());
    prop_oneof![
        (network(), any::<IpAddr>()).prop_map(|(n, ip)| Key::Address(n, ip)),
        (network(), cidr()).prop_map(|(n, cidr)| Key::Block(n, cidr)),
        (network(), name(), name()).prop_map(|(n, h, d)| {
            Key::Docker(n, HostName::new(h).unwrap(), DockerId::new(d).unwrap())
        }),
        (network(), name()).prop_map(|(n, e)| Key::Endpoint(n, EndpointId::new(e).unwrap())),
        name().prop_map(|text| Key::Host(HostName::new(text).unwrap())),
        name().prop_map(|text| Key::KnownHost(HostName::new(text).unwrap())),
        (network(), any::<[u8; 6]>()).prop_map(|(n, mac)| Key::Mac(n, MacAddr(mac))),
        name().prop_map(|text| Key::Name(NetworkName::new(text).unwrap())),
        network().prop_map(Key::Network),
        (network(), any::<IpAddr>()).prop_map(|(n, ip)| Key::Resting(n, ip)),
        (0..1_u32 << 24).prop_map(|vni| Key::Vni(Vni::new(vni).unwrap())),
        any::<IpAddr>().prop_map(Key::VtepClaim),
    ]
}

proptest! {
    #[test]
    fn keys_round_trip(key in key(), prefix in "[!-~]{0,20}") {
        let keys = Keys::new(&prefix).unwrap();
        prop_assert_eq!(keys.parse(keys.encode(&key).as_bytes()), Ok(key));
    }

    #[test]
    fn keys_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let keys = Keys::new("").unwrap();
        let _ = keys.parse(&bytes);
        let mut below = keys.root().as_bytes().to_vec();
        below.extend(&bytes);
        if let Ok(key) = keys.parse(&below) {
            prop_assert_eq!(keys.encode(&key).into_bytes(), below);
        }
    }

    /// Paths that look like ours: the parser's every branch, not only its first.
    #[test]
    fn keys_take_any_path(
        parts in prop::collection::vec(
            prop_oneof![
                Just("ipam".to_owned()), Just("blocks".to_owned()), Just("endpoints".to_owned()),
                Just("addresses".to_owned()), Just("vnis".to_owned()), Just("macs".to_owned()),
                name(), "\\PC{0,8}",
            ],
            0..6,
        ),
    ) {
        let keys = Keys::new("").unwrap();
        let text = format!("{}{}", keys.root(), parts.join("/"));
        if let Ok(key) = keys.parse(text.as_bytes()) {
            prop_assert_eq!(keys.encode(&key), text);
        }
    }

    #[test]
    fn records_take_any_bytes(key in key(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Record::decode(&key, &bytes).is_err());
    }

    /// Real records with a piece of them replaced.
    #[test]
    fn records_take_damaged_ones(at in any::<prop::sample::Index>(), piece in "\\PC{0,6}") {
        for (key, text) in samples() {
            let mut damaged: Vec<char> = text.chars().collect();
            let at = at.index(damaged.len());
            damaged.splice(at..(at + 1), piece.chars());
            let damaged: String = damaged.into_iter().collect();
            let mut view = View::new();
            if let Ok(record) = Record::decode(&key, damaged.as_bytes()) {
                let revision = fdb::Revision(1);
                view.apply(Event::Put { key, record: Box::new(record), revision });
            }
        }
    }
}

fn network() -> NetworkRecord {
    let name = NetworkName::new("web").unwrap();
    let mut record =
        NetworkRecord::new(NetworkId::new("n1").unwrap(), name, Vni::new(4096).unwrap());
    record.subnets = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()];
    record.static_vteps = vec![StaticVtep::new("203.0.113.1".parse().unwrap())];
    record.options.set("source-check", "mac+ip").unwrap();
    record.created = 0;
    record
}

fn samples() -> Vec<(Key, String)> {
    let id = NetworkId::new("n1").unwrap();
    let mut host = HostRecord::new(
        HostName::new("h1").unwrap(),
        HostId::new("id1").unwrap(),
        3,
        MacAddr([0, 0, 0x5e, 0, 0x53, 1]),
    );
    host.vteps = vec![VtepRecord::new("198.51.100.1".parse().unwrap(), 4789)];
    let mut block = BlockRecord::new(host.name.clone());
    block.allocated.insert(63);
    let endpoint = "{\"version\":1,\"id\":\"e1\",\"network\":\"n1\",\"host\":\"h1\",\
                    \"incarnation\":3,\"mac\":\"00:00:5e:00:53:01\",\"ips\":[\"192.0.2.7\"]}";
    let json = |value: serde_json::Value| value.to_string();
    vec![
        (Key::Network(id.clone()), json(serde_json::to_value(network()).unwrap())),
        (Key::Host(host.name.clone()), json(serde_json::to_value(&host).unwrap())),
        (
            Key::Block(id.clone(), "192.0.2.0/29".parse().unwrap()),
            json(serde_json::to_value(&block).unwrap()),
        ),
        (Key::Endpoint(id, EndpointId::new("e1").unwrap()), endpoint.to_owned()),
    ]
}

#[test]
fn samples_are_records() {
    for (key, text) in samples() {
        Record::decode(&key, text.as_bytes()).unwrap();
    }
}

#[test]
fn the_json_of_a_network_is_this() {
    let text = serde_json::to_string(&network()).unwrap();
    assert_eq!(
        text,
        "{\"version\":1,\"id\":\"n1\",\"name\":\"web\",\"mode\":\"vxlan\",\"vni\":4096,\
         \"subnets\":[\"192.0.2.0/24\",\"2001:db8::/64\"],\"gateways\":[],\
         \"options\":{\"source_check\":\"mac+ip\"},\"labels\":{},\
         \"static_vteps\":[{\"address\":\"203.0.113.1\",\"mtu\":0,\"checksum\":true,\"macs\":[]}],\
         \"created\":0}"
    );
}

#[test]
fn the_next_version_is_read_and_its_fields_are_kept() {
    let (key, text) = samples().remove(0);
    let newer = text
        .replacen("\"version\":1", "\"version\":2,\"colour\":{\"deep\":[1]}", 1)
        .replacen("\"source_check\"", "\"taste\":\"sweet\",\"source_check\"", 1)
        .replacen("\"checksum\"", "\"weight\":7,\"checksum\"", 1);
    let mut record = NetworkRecord::decode(&key, newer.as_bytes()).unwrap();
    record.mtu = Some(1400);
    let written = String::from_utf8(record.encode(&key).unwrap()).unwrap();
    for kept in
        ["\"version\":2", "\"colour\":{\"deep\":[1]}", "\"taste\":\"sweet\"", "\"weight\":7"]
    {
        assert!(written.contains(kept), "{kept} in {written}");
    }
    let newest = text.replacen("\"version\":1", "\"version\":3", 1);
    let error = NetworkRecord::decode(&key, newest.as_bytes()).unwrap_err();
    assert_eq!(error, Error::Newer { key: "networks/n1".to_owned(), version: 3 });
}

#[test]
fn a_record_that_contradicts_its_key_or_is_too_large_is_refused() {
    let (_, text) = samples().remove(0);
    let other = Key::Network(NetworkId::new("n2").unwrap());
    let error = Record::decode(&other, text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("networks/n2") && error.contains("networks/n1"), "{error}");
    let mut record = network();
    record.labels.insert("k".to_owned(), "v".repeat(70_000));
    let error = record.encode(&Key::Network(record.id.clone())).unwrap_err();
    assert!(matches!(error, Error::Oversized { .. }), "{error}");
    let deep = format!("{{\"version\":1,\"x\":{}", "[".repeat(60_000));
    assert!(matches!(
        EndpointRecord::decode(&other, deep.as_bytes()),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn options_are_set_from_texts() {
    let mut options = NetworkOptions::default();
    options.set("learning", "").unwrap();
    options.set("flood-unknown", "off").unwrap();
    assert_eq!((options.learning, options.flood_unknown), (Some(true), Some(false)));
    let error = options.set("colour", "red").unwrap_err().to_string();
    assert!(error.contains("colour") && error.contains("source_check"), "{error}");
    let error = options.set("local", "moon").unwrap_err().to_string();
    assert!(error.contains("kernel or switch"), "{error}");
    assert_eq!("ipudp".parse::<Mode>(), Ok(Mode::IpUdp));
}

#[test]
fn bitmaps() {
    let mut map = Bitmap::default();
    map.insert(0);
    map.insert(63);
    map.insert(64);
    assert_eq!((map.count(), map.iter().collect::<Vec<_>>()), (2, vec![0, 63]));
    assert_eq!(serde_json::to_string(&map).unwrap(), "\"8000000000000001\"");
    map.remove(63);
    assert!(map.contains(0) && !map.contains(63) && !map.is_empty());
    assert!(serde_json::from_str::<Bitmap>("\"1\"").is_err());
}

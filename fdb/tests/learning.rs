//! Learned entries: limits, fairness, ageing, precedence.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use encap::{MacAddr, Vni};
use fdb::{
    Delta, Limits, MacEntry, Millis, Network, NetworkKey, Origin, OriginKind, Place, Reader,
    Revision, SourceCheck, Vtep, VtepKey, Writer,
};

const NETWORK: NetworkKey = NetworkKey(0);
const LIMIT: usize = 1000;
const HONEST: VtepKey = VtepKey(0);
const FLOODER: VtepKey = VtepKey(1);
const LISTED: VtepKey = VtepKey(2);
const UNLISTED: VtepKey = VtepKey(3);

fn tables() -> (Writer, Reader) {
    let limits = Limits { learned_per_network: LIMIT, ..Limits::default() };
    let (mut writer, reader) = fdb::channel_with(limits);
    for (i, host) in [Some("h1".into()), Some("h2".into()), None, None].into_iter().enumerate() {
        let vtep = Vtep {
            address: IpAddr::from([192, 0, 2, i as u8 + 1]),
            port: 4789,
            mtu: 1500,
            accept: Vec::new(),
            host,
            checksum: true,
            suspect: false,
            ip_in_ip: true,
        };
        writer.apply(Delta::PutVtep { key: VtepKey(i as u32), vtep });
    }
    writer.apply(Delta::PutNetwork { key: NETWORK, network: network(true) });
    writer.apply(Delta::SetStaticVteps { network: NETWORK, vteps: vec![LISTED] });
    (writer, reader)
}

fn network(learning: bool) -> Network {
    Network {
        vni: Vni::MAX,
        udp_port: 4789,
        mtu: 1450,
        name: "red".into(),
        id: "1".into(),
        learning,
        flood_unknown: true,
        flood_broadcast: true,
        flood_multicast: true,
        flood_rate: 10_000,
        flood_arp: true,
        source_check: SourceCheck::Mac,
        df: true,
        switch_local: false,
        gateway: None,
        routed: None,
    }
}

fn mac(vtep: VtepKey, i: u32) -> MacAddr {
    let [_, a, b, c] = i.to_be_bytes();
    MacAddr([0x02, 0x42, vtep.0 as u8, a, b, c])
}

fn learn(writer: &mut Writer, vtep: VtepKey, i: u32, at: u64) {
    writer.apply(Delta::Learn { network: NETWORK, mac: mac(vtep, i), vtep, at: Millis(at) });
}

fn learned(writer: &mut Writer, reader: &Reader, vtep: VtepKey) -> usize {
    writer.publish();
    let snapshot = reader.load();
    let place = Place::Vtep(vtep);
    snapshot.network(NETWORK).unwrap().macs().filter(|(_, entry)| entry.place == place).count()
}

#[test]
fn a_mac_flood_evicts_only_the_flooder() {
    let (mut writer, reader) = tables();
    for i in 0..100 {
        learn(&mut writer, HONEST, i, u64::from(i));
    }
    for i in 0..50_000 {
        learn(&mut writer, FLOODER, i, 1000 + u64::from(i));
    }
    assert_eq!(learned(&mut writer, &reader, HONEST), 100);
    assert_eq!(learned(&mut writer, &reader, FLOODER), LIMIT - 100);
    assert_eq!(writer.stats().learn_evicted, 50_000 - (LIMIT as u64 - 100));
    // A newcomer takes its share from the flooder, up to an equal one.
    for i in 0..2 * LIMIT as u32 {
        learn(&mut writer, LISTED, i, 100_000 + u64::from(i));
    }
    assert_eq!(learned(&mut writer, &reader, HONEST), 100);
    assert_eq!(learned(&mut writer, &reader, LISTED), (LIMIT - 100) / 2);
    assert_eq!(learned(&mut writer, &reader, FLOODER), (LIMIT - 100) / 2);
    // What is left of each is its youngest.
    let snapshot = reader.load();
    let tables = snapshot.network(NETWORK).unwrap();
    assert!(tables.mac(mac(FLOODER, 49_999)).is_some() && tables.mac(mac(FLOODER, 0)).is_none());
    assert_eq!(tables.learned_len(), LIMIT);
}

#[test]
fn entries_age_from_their_last_confirmation() {
    let (mut writer, reader) = tables();
    for i in 0..10 {
        learn(&mut writer, HONEST, i, 0);
    }
    learn(&mut writer, HONEST, 3, 5000);
    writer.apply(Delta::Age { now: Millis(5999), max_age: Millis(6000) });
    assert_eq!(learned(&mut writer, &reader, HONEST), 10);
    writer.apply(Delta::Age { now: Millis(6000), max_age: Millis(6000) });
    assert_eq!(learned(&mut writer, &reader, HONEST), 1);
    assert_eq!(writer.stats().learn_expired, 9);
    let entry = *reader.load().network(NETWORK).unwrap().mac(mac(HONEST, 3)).unwrap();
    assert_eq!(entry.origin, Origin::Learned { at: Millis(5000) });
}

#[test]
fn confirmations_within_the_refresh_make_no_generation() {
    let (mut writer, _reader) = tables();
    learn(&mut writer, HONEST, 1, 10_000);
    writer.publish();
    for at in [10_001, 10_999, 9_000] {
        learn(&mut writer, HONEST, 1, at);
        assert!(!writer.is_dirty(), "at {at}");
    }
    learn(&mut writer, HONEST, 1, 11_000);
    assert!(writer.is_dirty());
}

#[test]
fn only_admitted_vteps_teach() {
    let (mut writer, reader) = tables();
    learn(&mut writer, LISTED, 1, 0);
    learn(&mut writer, UNLISTED, 1, 0);
    learn(&mut writer, VtepKey(9), 1, 0);
    let group = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
    writer.apply(Delta::Learn { network: NETWORK, mac: group, vtep: HONEST, at: Millis(0) });
    assert_eq!(writer.stats().learn_refused, 3);
    assert_eq!(learned(&mut writer, &reader, LISTED), 1);
    let admitted: Vec<_> = [HONEST, FLOODER, LISTED, UNLISTED]
        .map(|vtep| reader.load().network(NETWORK).unwrap().admits(vtep))
        .into();
    assert_eq!(admitted, [true, true, true, false]);
}

#[test]
fn what_ends_a_vtep_or_learning_ends_its_entries() {
    let (mut writer, reader) = tables();
    for vtep in [HONEST, FLOODER, LISTED] {
        learn(&mut writer, vtep, 1, 0);
    }
    writer.apply(Delta::RemoveVtep { key: HONEST });
    assert_eq!(learned(&mut writer, &reader, HONEST), 0);
    assert!(!reader.load().network(NETWORK).unwrap().admits(HONEST));
    writer.apply(Delta::SetStaticVteps { network: NETWORK, vteps: Vec::new() });
    assert_eq!(learned(&mut writer, &reader, LISTED), 0);
    assert_eq!(learned(&mut writer, &reader, FLOODER), 1);
    writer.apply(Delta::PutNetwork { key: NETWORK, network: network(false) });
    assert_eq!(learned(&mut writer, &reader, FLOODER), 0);
    learn(&mut writer, FLOODER, 1, 0);
    assert_eq!(learned(&mut writer, &reader, FLOODER), 0);
}

#[test]
fn claims_displace_learned_entries_for_good() {
    let (mut writer, reader) = tables();
    let origin = Origin::Store { revision: Revision(7) };
    let entry = MacEntry { place: Place::Local, origin };
    learn(&mut writer, HONEST, 1, 0);
    writer.apply(Delta::PutMac { network: NETWORK, mac: mac(HONEST, 1), entry });
    learn(&mut writer, FLOODER, 1, 9000);
    writer.apply(Delta::Learn {
        network: NETWORK,
        mac: mac(HONEST, 1),
        vtep: FLOODER,
        at: Millis(9000),
    });
    assert_eq!(writer.stats().learn_shadowed, 1);
    writer.publish();
    assert_eq!(reader.load().network(NETWORK).unwrap().mac(mac(HONEST, 1)), Some(&entry));
    writer.apply(Delta::RemoveMac {
        network: NETWORK,
        mac: mac(HONEST, 1),
        origin: OriginKind::Store,
    });
    writer.publish();
    assert_eq!(reader.load().network(NETWORK).unwrap().mac(mac(HONEST, 1)), None);
}

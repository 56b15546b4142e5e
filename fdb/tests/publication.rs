//! Readers beside a writer: generations are never torn, and all of them are freed in the end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use encap::{MacAddr, Vni};
use fdb::{
    Delta, Generation, Limits, MacEntry, Neighbor, Network, NetworkKey, Origin, Place, Revision,
    Snapshot, SourceCheck, Vtep, VtepKey,
};

const NETWORK: NetworkKey = NetworkKey(3);

fn network(mtu: u16) -> Network {
    Network {
        vni: Vni::MAX,
        udp_port: 4789,
        mtu,
        name: "red".into(),
        id: "1".into(),
        learning: true,
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

fn mac(i: u32) -> MacAddr {
    MacAddr::from_ipv4(ip(i))
}

fn ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes([198, 51, 100, 0]) + i)
}

fn vtep(mtu: u16) -> Vtep {
    Vtep {
        address: IpAddr::from([192, 0, 2, 1]),
        port: 4789,
        mtu,
        accept: Vec::new(),
        host: Some("h1".into()),
        checksum: true,
        suspect: false,
        ip_in_ip: true,
    }
}

/// Deltas after which every table of a snapshot tells `number`.
fn telling(number: u32, keys: std::ops::Range<u32>) -> Vec<Delta> {
    let origin = Origin::Store { revision: Revision(i64::from(number)) };
    let place = Place::Vtep(VtepKey(number));
    let mut deltas = vec![
        Delta::PutVtep { key: VtepKey(0), vtep: vtep(number as u16) },
        Delta::PutNetwork { key: NETWORK, network: network(number as u16) },
        Delta::SetFlood { network: NETWORK, vteps: vec![VtepKey(number)] },
    ];
    for i in keys {
        let (mac, ip) = (mac(i), IpAddr::V4(ip(i)));
        let neighbor = Neighbor { mac, place, origin };
        deltas.push(Delta::PutMac { network: NETWORK, mac, entry: MacEntry { place, origin } });
        deltas.push(Delta::PutNeighbor { network: NETWORK, ip, neighbor });
    }
    deltas
}

/// Checks that all tables tell the same number, and gives it.
fn told(snapshot: &Snapshot, keys: std::ops::Range<u32>) -> u64 {
    let number = snapshot.generation().0;
    if number == 0 {
        assert!(snapshot.network(NETWORK).is_none());
        return 0;
    }
    let place = Place::Vtep(VtepKey(number as u32));
    let tables = snapshot.network(NETWORK).unwrap();
    assert_eq!(tables.flood(), [VtepKey(number as u32)]);
    assert_eq!(tables.params().mtu, number as u16);
    assert_eq!(snapshot.vtep(VtepKey(0)).unwrap().mtu, number as u16);
    for i in keys {
        assert_eq!(tables.mac(mac(i)).unwrap().place, place);
        assert_eq!(tables.neighbor(IpAddr::V4(ip(i))).unwrap().place, place);
    }
    number
}

#[test]
fn readers_never_see_a_torn_generation() {
    const KEYS: std::ops::Range<u32> = 0..40;
    const GENERATIONS_MAX: u32 = 60_000;
    let (mut writer, reader) = fdb::channel();
    let stop = AtomicBool::new(false);
    let loads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for keeps in [false, true, true] {
            let (reader, stop, loads) = (reader.clone(), &stop, &loads);
            scope.spawn(move || {
                let mut last = 0;
                let mut kept = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let now = told(&reader.load(), KEYS);
                    assert!(now >= last, "generation {now} after {last}");
                    last = now;
                    loads.fetch_add(1, Ordering::Relaxed);
                    // Some hold on to what they saw while the writer goes on and reclaims.
                    if keeps {
                        kept.push(reader.load_full());
                        if kept.len() == 8 {
                            for snapshot in kept.drain(..) {
                                told(&snapshot, KEYS);
                            }
                        }
                    }
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(1);
        let mut number = 0;
        while number < GENERATIONS_MAX && Instant::now() < end {
            number += 1;
            for delta in telling(number, KEYS) {
                writer.apply(delta);
            }
            assert_eq!(writer.publish(), Generation(u64::from(number)));
            writer.reclaim();
            assert!(writer.retired() <= writer.limits().retired);
        }
        // On a loaded machine the readers may not have had a turn yet.
        while loads.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    writer.reclaim();
    let stats = writer.stats();
    assert_eq!(writer.retired(), 0);
    assert_eq!(stats.reclaimed + stats.released, stats.publications);
}

#[test]
fn a_reader_keeps_its_generation_and_nothing_else() {
    let (mut writer, reader) = fdb::channel();
    for delta in telling(1, 0..500) {
        writer.apply(delta);
    }
    writer.publish();
    let kept = reader.load_full();
    for number in 2..10 {
        for delta in telling(number, 0..500) {
            writer.apply(delta);
        }
        writer.publish();
    }
    writer.reclaim();
    assert_eq!(writer.retired(), 1);
    assert_eq!(told(&kept, 0..500), 1);
    assert_eq!(told(&reader.load(), 0..500), 9);
    drop(kept);
    assert_eq!(writer.reclaim(), 1);
}

#[test]
fn a_loan_counts_as_held() {
    let (mut writer, reader) = fdb::channel();
    let loan = reader.load();
    for delta in telling(1, 0..4) {
        writer.apply(delta);
    }
    writer.publish();
    assert_eq!(writer.reclaim(), 0);
    assert_eq!(told(&loan, 0..4), 0);
    drop(loan);
    assert_eq!(writer.reclaim(), 1);
}

#[test]
fn retired_snapshots_are_bounded() {
    let limits = Limits { retired: 4, ..Limits::default() };
    let (mut writer, reader) = fdb::channel_with(limits);
    let mut kept = Vec::new();
    for number in 1..=20 {
        for delta in telling(number, 0..10) {
            writer.apply(delta);
        }
        writer.publish();
        kept.push(reader.load_full());
        assert!(writer.retired() <= 4);
    }
    // The first snapshot had no reader; of the other 19 retired ones four still wait.
    assert_eq!(writer.stats().reclaimed, 1);
    assert_eq!(writer.stats().released, 15);
    for (snapshot, number) in kept.iter().zip(1..) {
        assert_eq!(told(snapshot, 0..10), number);
    }
}

#[test]
fn publishing_nothing_makes_no_generation() {
    let (mut writer, reader) = fdb::channel();
    for delta in telling(1, 0..10).into_iter().chain(telling(1, 0..10)) {
        writer.apply(delta);
    }
    assert_eq!(writer.publish(), Generation(1));
    for delta in telling(1, 0..10) {
        writer.apply(delta);
    }
    assert!(!writer.is_dirty());
    assert_eq!(writer.publish(), Generation(1));
    assert_eq!(reader.load().generation(), Generation(1));
}

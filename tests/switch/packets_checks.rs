//! Whose packets are taken from the underlay and from a port; each drop reason of networks of packets
//! by one crafted packet; and arbitrary bytes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use encap::{ecn, ipv4, udp, vnet};
use fdb::{Carrier, Delta, Place, SourceCheck, UdpPorts, Via, VtepKey};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use skybridge::datapath::drop::DropReason::{self, *};
use skybridge::datapath::outbound::Outcome;
use skybridge::datapath::probe;

use super::frames::{Spec, v4, v6};
use super::lab::{
    Arrived, At, Host, Lab, NETWORK, Options, Weather, translated, vtep_address, vtep_address_v6,
};
use super::packets::{
    PORTS, by_ip, by_udp, partial, prefix, put_route, received, routed, routed_network, set_routed,
    whole,
};

type Case = (DropReason, At, fn(&mut Host));

/// For each direction of the arbitrary bytes.
const TIME: Duration = Duration::from_millis(1000);

fn tcp(from: u8, to: u8) -> Vec<u8> {
    whole(&Spec::new(from, to, false, true, 100))
}

fn tcp6(from: u8, to: u8) -> Vec<u8> {
    whole(&Spec::new(from, to, true, true, 100))
}

/// With its source (12) or destination (16) replaced.
fn with(at: usize, address: IpAddr, mut packet: Vec<u8>) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => packet[at..at + 4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => {
            let at = if at == 12 { 8 } else { 24 };
            packet[at..at + 16].copy_from_slice(&address.octets());
        }
    }
    packet
}

fn with_ttl(ttl: u8, mut packet: Vec<u8>) -> Vec<u8> {
    let at = if packet[0] >> 4 == 6 { 7 } else { 8 };
    packet[at] = ttl;
    packet
}

/// `inner` in a tunnel from endpoint 17 to `to`, by this protocol.
fn tunnel(to: IpAddr, protocol: u8, inner: &[u8]) -> Vec<u8> {
    let header = ipv4::Header {
        tos: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol,
        source: v4(17),
        destination: v4(1),
    };
    let mut packet = header.emit(inner.len()).unwrap().to_vec();
    packet.extend(inner);
    with(16, to, packet)
}

fn udp_to(port: u16, payload: &[u8]) -> Vec<u8> {
    [&udp::emit(port, port, payload.len()).unwrap()[..], payload].concat()
}

fn send(host: &mut Host, packet: &[u8]) {
    host.send_whole(packet);
}

fn read(host: &mut Host, bytes: &[u8]) {
    host.offer_read(bytes);
}

fn check(host: &mut Host, source_check: SourceCheck) {
    let network = fdb::Network { source_check, ..routed_network(Carrier::IpIp, false) };
    host.apply([Delta::PutNetwork { key: NETWORK, network }]);
}

fn own(slot: usize) -> IpAddr {
    vtep_address(slot)
}

const CASES: &[Case] = &[
    (OutMalformed, At::Port, |host| read(host, &[0; 7])),
    (OutMalformed, At::Port, |host| read(host, &[])),
    (OutMalformed, At::Port, |host| read(host, &[0; vnet::LEN])),
    (OutMalformed, At::Port, |host| send(host, &tcp(1, 17)[..139])),
    (OutMalformed, At::Port, |host| send(host, &[0x50; 60])),
    (OutMalformed, At::Port, |host| {
        let header = vnet::Header { gso_type: vnet::GSO_TCPV6, gso_size: 50, ..vnet::Header::NONE };
        host.send(&header, &tcp(1, 17));
    }),
    (OutMalformed, At::Port, |host| {
        let header =
            vnet::Header { flags: vnet::NEEDS_CSUM, csum_start: 9999, ..vnet::Header::NONE };
        host.send(&header, &tcp(1, 17));
    }),
    (OutMalformed, At::Port, |host| {
        // Its source would be written as the checksum.
        let header = vnet::Header {
            flags: vnet::NEEDS_CSUM,
            csum_start: 20,
            csum_offset: 2,
            ..vnet::Header::NONE
        };
        host.send(&header, &tcp6(1, 17));
    }),
    (OutSourceNotLocal, At::Port, |host| send(host, &tcp(33, 17))),
    (OutSourceNotLocal, At::Port, |host| send(host, &tcp6(17, 33))),
    (OutSourceForeign, At::Port, |host| {
        send(host, &with(12, [203, 0, 113, 1].into(), tcp(1, 17)));
    }),
    (OutSourceForeign, At::Port, |host| {
        send(host, &with(12, "fe80::1".parse().unwrap(), tcp6(1, 17)));
    }),
    (OutTtl, At::Port, |host| send(host, &with_ttl(0, tcp(1, 17)))),
    (OutTtl, At::Port, |host| send(host, &with_ttl(0, tcp6(1, 17)))),
    (OutLoop, At::Port, |host| send(host, &with(12, own(0), tcp(1, 17)))),
    (OutLoop, At::Port, |host| send(host, &with(12, vtep_address_v6(0), tcp6(1, 17)))),
    (OutLoop, At::Port, |host| {
        put_route(host, prefix(own(1), 32), Place::Local);
        send(host, &with(12, own(1), tcp(1, 17)));
    }),
    (OutLoop, At::Port, |host| {
        put_route(host, prefix(own(1), 32), Place::Vtep(VtepKey(1)));
        send(host, &with(16, own(1), tcp(1, 17)));
    }),
    (OutGroup, At::Port, |host| send(host, &with(16, [224, 0, 0, 251].into(), tcp(1, 17)))),
    (OutGroup, At::Port, |host| send(host, &with(16, [255; 4].into(), tcp(1, 17)))),
    (OutGroup, At::Port, |host| send(host, &with(16, "ff02::1".parse().unwrap(), tcp6(1, 17)))),
    (OutRouteUnknown, At::Port, |host| {
        host.apply([Delta::RemoveNetwork { key: NETWORK }]);
        send(host, &tcp(1, 17));
    }),
    (OutVtepUnknown, At::Port, |host| {
        put_route(host, prefix(v4(200), 32), Place::Vtep(VtepKey(77)));
        send(host, &tcp(1, 200));
    }),
    (OutFamilyUnavailable, At::Worker, |host| {
        host.wire.faults.push_back(libc::EAFNOSUPPORT);
        send(host, &tcp(1, 17));
    }),
    (OutUnderlayError, At::Worker, |host| {
        host.wire.faults.push_back(libc::EPERM);
        send(host, &tcp(1, 17));
    }),
    (InMalformed, At::Worker, |host| host.receive(&[by_udp(1, &[])])),
    (InMalformed, At::Worker, |host| host.receive(&[by_ip(1, &tcp(17, 1)[..139])])),
    (InMalformed, At::Worker, |host| host.receive(&[by_udp(1, &tcp(17, 1)[..19])])),
    (InMalformed, At::Worker, |host| {
        let mut arrived = by_ip(1, &tcp(17, 1));
        arrived.bytes.truncate(19);
        host.receive(&[arrived]);
    }),
    (InFamily, At::Worker, |host| {
        host.receive(&[Arrived {
            packets: by_ip(1, &tcp6(17, 1)).packets,
            ..by_ip(1, &tcp(17, 1))
        }]);
    }),
    (InFamily, At::Worker, |host| {
        let other = by_udp(1, &tcp(17, 1)).packets;
        host.receive(&[Arrived { packets: other, ..by_udp(1, &tcp6(17, 1)) }]);
    }),
    (InTruncated, At::Worker, |host| {
        host.receive(&[Arrived { truncated: true, ..by_udp(1, &tcp(17, 1)) }]);
    }),
    (InVtepUnknown, At::Worker, |host| {
        host.receive(&[Arrived { source: vtep_address(50), ..by_ip(1, &tcp(17, 1)) }]);
    }),
    (InNetworkUnknown, At::Worker, |host| {
        host.receive(&[by_ip(1, &with(16, [203, 0, 113, 1].into(), tcp(17, 1)))]);
    }),
    (InNetworkUnknown, At::Worker, |host| {
        // Not carried this way.
        set_routed(host, Carrier::IpUdp, |_| {});
        host.receive(&[by_ip(1, &tcp(17, 1))]);
    }),
    (InNetworkUnknown, At::Worker, |host| {
        // No port of the network here.
        host.taps.ports.clear();
        host.receive(&[by_ip(1, &tcp(17, 1))]);
    }),
    (InVtepNotMember, At::Port, |host| {
        host.set_vtep(5, |vtep| vtep.host = None);
        host.receive(&[by_ip(5, &tcp(17, 1))]);
    }),
    (InSourceInvalid, At::Port, |host| {
        host.receive(&[by_ip(1, &with(12, [0; 4].into(), tcp(17, 1)))]);
    }),
    (InSourceInvalid, At::Port, |host| {
        host.receive(&[by_udp(1, &with(12, "ff02::1".parse().unwrap(), tcp6(17, 1)))]);
    }),
    (InSourceOwn, At::Port, |host| host.receive(&[by_ip(1, &tcp(2, 1))])),
    (InSourceSpoofed, At::Port, |host| host.receive(&[by_udp(1, &tcp(33, 1))])),
    (InSourceSpoofed, At::Port, |host| {
        // A single address that moved out of its block.
        put_route(host, prefix(v6(18), 128), Place::Vtep(VtepKey(2)));
        host.receive(&[by_ip(1, &tcp6(18, 1))]);
    }),
    (InSourceForeign, At::Port, |host| {
        host.receive(&[by_ip(1, &with(12, [203, 0, 113, 1].into(), tcp(17, 1)))]);
    }),
    (InSourceForeign, At::Port, |host| {
        // A nameless router sends ICMP and nothing else.
        host.receive(&[by_ip(1, &with(12, [192, 0, 0, 8].into(), tcp(17, 1)))]);
    }),
    (InSourcePending, At::Port, |host| {
        check(host, SourceCheck::Strict);
        host.receive(&[by_ip(1, &tcp(200, 1))]);
    }),
    (InNested, At::Worker, |host| {
        host.receive(&[by_ip(1, &tunnel(own(0), 4, &tcp(17, 1)))]);
    }),
    (InNested, At::Worker, |host| {
        host.receive(&[by_udp(1, &tunnel(own(0), 41, &tcp6(17, 1)))]);
    }),
    (InNested, At::Worker, |host| {
        host.inbound.add_own((own(0), PORTS.v4));
        host.receive(&[by_ip(1, &tunnel(own(0), 17, &udp_to(PORTS.v4, &tcp(17, 1))))]);
    }),
    (InTtl, At::Port, |host| host.receive(&[by_ip(1, &with_ttl(0, tcp(17, 1)))])),
    (InDatagramSizes, At::Port, |host| {
        host.receive(&[by_ip(1, &partial(&Spec::new(17, 1, false, false, 1453), 0).1)]);
    }),
    (InEcn, At::Port, |host| {
        let mut arrived = by_ip(1, &tcp(17, 1));
        arrived.bytes[1] = ecn::CE;
        host.receive(&[arrived]);
    }),
    (InDestinationNotHere, At::Port, |host| host.receive(&[by_ip(1, &tcp(17, 33))])),
    (InDestinationNotHere, At::Port, |host| host.receive(&[by_udp(1, &tcp(17, 200))])),
    (InPortError, At::Port, |host| {
        host.taps.refuses = true;
        host.receive(&[by_ip(1, &tcp(17, 1))]);
    }),
];

/// The reasons that have a case here or in [`super::packets`].
pub fn reasons() -> impl Iterator<Item = DropReason> {
    CASES.iter().map(|(reason, ..)| *reason).chain([OutRouteLocal])
}

#[test]
fn each_reason_is_counted_once_where_it_belongs() {
    for (index, (reason, at, act)) in CASES.iter().enumerate() {
        let mut lab = routed(3, Options::default(), Carrier::IpIp, false);
        let host = &mut lab.hosts[0];
        act(host);
        assert_eq!(host.dropped(), [(*reason, *at, 1)], "case {index}, {}", reason.name());
        assert!(host.wire.sent.is_empty() && host.replies.is_empty(), "case {index}");
        assert!(host.taps.written.is_empty(), "case {index}");
    }
}

#[test]
fn a_source_without_owner_passes_counted_within_the_subnets() {
    let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
    let host = &mut lab.hosts[0];
    let packet = tcp(200, 1);
    host.receive(&[by_ip(1, &packet), by_udp(1, &packet)]);
    assert_eq!(received(host), [packet.clone(), packet]);
    assert_eq!(host.counters.source_pending.get(), 2);
    assert_eq!(host.dropped(), []);
}

#[test]
fn a_host_sends_from_any_of_its_addresses_and_nameless_routers_report_errors() {
    let mut lab = routed(3, Options::default(), Carrier::IpIp, false);
    let host = &mut lab.hosts[0];
    host.set_vtep(9, |vtep| {
        vtep.address = vtep_address_v6(1);
        vtep.host = Some("host-1".into());
    });
    let six = Arrived { source: vtep_address_v6(1), ..by_udp(1, &tcp6(17, 1)) };
    let mut error = with(12, [192, 0, 0, 8].into(), tcp(17, 1));
    error[9] = 1;
    host.receive(&[six, by_ip(1, &error)]);
    assert_eq!(host.taps.written.len(), 2);
    assert_eq!(host.dropped(), []);
    // Not so that another protocol passes behind it.
    let mut other = error.clone();
    other[9] = 6;
    let mut there = routed(3, Options::default(), Carrier::IpIp, false);
    there.hosts[0].receive(&[by_ip(1, &error), by_ip(1, &other)]);
    assert_eq!(there.hosts[0].dropped(), [(InSourceForeign, At::Port, 1)]);
    // And on the way out.
    error[16..20].copy_from_slice(&v4(17).octets());
    assert_eq!(host.send_whole(&error), Outcome::Done);
    assert_eq!(host.wire.sent.len(), 1);
}

#[test]
fn one_bad_packet_of_a_train_is_dropped_alone_and_no_verdict_outlives_its_batch() {
    let mut lab = routed(3, Options::default(), Carrier::IpUdp, false);
    let host = &mut lab.hosts[0];
    let good = |number: u32| {
        let mut spec = Spec::new(17, 1, false, true, 100);
        spec.sequence = 7 + number * 100;
        spec.ident = number as u16 + 1;
        whole(&spec)
    };
    let packets = [good(0), good(1), tcp(33, 1), good(2), with_ttl(0, good(3)), good(4)];
    let mut train = by_udp(1, &packets.concat());
    train.gro_size = packets[0].len();
    host.receive(&[train]);
    assert_eq!(received(host), [good(0), good(1), good(2), good(4)]);
    assert_eq!(host.dropped(), [(InSourceSpoofed, At::Port, 1), (InTtl, At::Port, 1)]);
    put_route(host, prefix(v4(17), 32), Place::Vtep(VtepKey(2)));
    host.receive(&[by_udp(1, &good(0))]);
    assert!(host.dropped().contains(&(InSourceSpoofed, At::Port, 2)));
}

#[test]
fn probes_are_for_the_agent() {
    let mut lab = routed(3, Options::default(), Carrier::IpIp, false);
    let host = &mut lab.hosts[0];
    let from_vtep =
        |payload: &[u8]| with(12, own(1), tunnel(own(0), 17, &udp_to(encap::probe::PORT, payload)));
    host.receive(&[by_ip(1, &from_vtep(b"hello")), by_udp(1, &from_vtep(&[7; 100]))]);
    let got: Vec<_> = host.probes.drain().collect();
    assert_eq!((got[0].source, got[0].via, got[0].payload()), (own(1), Via::Ip, &b"hello"[..]));
    assert_eq!((got[1].via, got[1].payload()), (Via::Udp(PORTS.v4), &[7; probe::PAYLOAD][..]));
    assert_eq!(host.dropped(), []);
    // Of anybody else it is none, nor to anybody else.
    for forged in
        [(12, v4(17).into()), (12, own(2)), (12, own(0)), (12, translated(1)), (16, own(1))]
    {
        host.receive(&[by_ip(1, &with(forged.0, forged.1, from_vtep(b"x")))]);
    }
    assert_eq!(host.probes.drain().count(), 0);
    assert_eq!(host.dropped(), [(InNetworkUnknown, At::Worker, 5)]);
    // Addresses may be translated on the way, or be others of the host.
    for [known, accepted] in [[own(1), translated(1)], [translated(1), own(1)]] {
        host.set_vtep(1, |vtep| (vtep.address, vtep.accept) = (known, vec![accepted]));
        for inside in [own(1), translated(1)] {
            let hello = with(16, translated(0), with(12, inside, from_vtep(b"far")));
            host.receive(&[by_ip(1, &hello), by_udp(1, &hello)]);
        }
        let got: Vec<_> = host.probes.drain().collect();
        assert!(got.iter().all(|it| it.source == own(1) && it.payload() == b"far"), "{got:?}");
        assert_eq!(got.len(), 4);
    }
    host.receive(&[by_ip(1, &with(12, own(2), from_vtep(b"x")))]);
    assert_eq!(host.probes.drain().count(), 0);
    assert_eq!(host.dropped(), [(InNetworkUnknown, At::Worker, 6)]);
    for _ in 0..2 * probe::CAPACITY {
        host.receive(&[by_ip(1, &from_vtep(b"many"))]);
    }
    assert_eq!(host.probes.drain().count(), probe::CAPACITY);
    let full = (InProbeOverflow, At::Worker, probe::CAPACITY as u64);
    assert!(host.dropped().contains(&full), "{:?}", host.dropped());
}

/// A packet that is right, or nearly, or not at all.
fn some_packet(random: &mut StdRng, from: u8, to: u8) -> (vnet::Header, Vec<u8>) {
    let payload = [0, 10, 60, 1000, 1460, 9000, 65_000][random.random_range(0..7)];
    let mut spec = Spec::new(from, to, random.random(), random.random(), payload);
    spec.tos = random.random();
    let gso_size = if payload > 1000 { random.random_range(0..1500) } else { 0 };
    let (mut header, frame) = spec.partial(gso_size);
    header.csum_start -= 14;
    let mut packet = frame[14..].to_vec();
    if random.random_range(0..8) == 0 {
        packet = vec![0; random.random_range(0..300)];
        random.fill_bytes(&mut packet);
    }
    for _ in 0..random.random_range(0..4) {
        let span = packet.len().min(if random.random() { 64 } else { 20 });
        if span != 0 {
            let at = random.random_range(0..span);
            packet[at] = random.random();
        }
    }
    if random.random_range(0..6) == 0 {
        packet.truncate(random.random_range(0..=packet.len()));
    }
    if random.random_range(0..6) == 0 {
        let mut bytes = header.emit();
        bytes[random.random_range(0..10)] = random.random();
        header = vnet::Header::parse(&bytes);
    }
    (header, packet)
}

fn drops(host: &Host) -> u64 {
    host.dropped().iter().map(|(.., count)| count).sum()
}

fn some_carrier(random: &mut StdRng) -> Carrier {
    if random.random() { Carrier::IpIp } else { Carrier::IpUdp }
}

fn some_lab(random: &mut StdRng, hosts: usize) -> Lab {
    let carrier = some_carrier(random);
    let segments = if random.random() { 64 } else { 1 };
    let options = Options { segments, coalesce: random.random(), ..Options::default() };
    let mut lab = routed(hosts, options, carrier, false);
    for host in &mut lab.hosts {
        let mut network = routed_network(carrier, false);
        if let Some(routed) = &mut network.routed {
            routed.mss = random.random();
            routed.ports = UdpPorts { ..PORTS };
        }
        host.apply([Delta::PutNetwork { key: NETWORK, network }]);
    }
    lab
}

#[test]
fn every_packet_out_is_queued_or_dropped() {
    let begun = Instant::now();
    let mut seen = [0_u64; 3];
    for seed in 0.. {
        if begun.elapsed() > TIME && seed >= 4 {
            break;
        }
        let mut random = StdRng::seed_from_u64(seed);
        let mut lab = some_lab(&mut random, 2);
        for _ in 0..40 {
            let host = &mut lab.hosts[0];
            for _ in 0..random.random_range(1..50) {
                let (header, packet) = some_packet(&mut random, 1, 17);
                let (queued, dropped) = (host.frames_out(), drops(host));
                let outcome = host.offer(&header, &packet);
                let (queued, dropped) = (host.frames_out() != queued, drops(host) - dropped);
                assert_eq!(u64::from(queued) + dropped, 1, "seed {seed}: {header:?} {packet:02x?}");
                let replied = matches!(outcome, Outcome::Reply(_));
                assert!(dropped == 1 || !replied);
                let ways = [queued, dropped == 1, replied];
                for (count, way) in seen.iter_mut().zip(ways) {
                    *count += u64::from(way);
                }
            }
            host.flush();
            assert_eq!(host.frames_out(), host.counters.datagrams_out.get(), "queued is sent");
            lab.carry(0, &mut Weather::fair(random.random()));
            let there = &lab.hosts[1];
            assert_eq!(there.counters.datagrams_in.get(), there.frames_in() + drops(there));
            lab.hosts[1].taps.written.clear();
            lab.hosts[0].replies.clear();
        }
    }
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}

#[test]
fn every_packet_in_is_delivered_or_dropped() {
    let begun = Instant::now();
    let mut seen = [0_u64; 2];
    for seed in 0.. {
        if begun.elapsed() > TIME && seed >= 4 {
            break;
        }
        let mut random = StdRng::seed_from_u64(seed);
        let mut lab = some_lab(&mut random, 3);
        let host = &mut lab.hosts[0];
        for _ in 0..20 {
            let arrived: Vec<Arrived> = (0..random.random_range(1..40))
                .map(|_| {
                    let from = random.random_range(1..3);
                    let (_, mut packet) = some_packet(&mut random, from as u8 * 16 + 1, 1);
                    let mut gro_size = 0;
                    if random.random_range(0..4) == 0 {
                        gro_size = packet.len();
                        packet.extend(some_packet(&mut random, from as u8 * 16 + 1, 2).1);
                    }
                    packet.truncate(65_507);
                    if random.random_range(0..8) == 0 && !packet.is_empty() {
                        gro_size = random.random_range(packet.len().div_ceil(64)..=70_000);
                    }
                    let mut datagram = if random.random() && gro_size == 0 {
                        by_ip(from, &packet)
                    } else {
                        Arrived { gro_size, ..by_udp(from, &packet) }
                    };
                    datagram.tos = random.random();
                    if random.random_range(0..8) == 0 && !datagram.bytes.is_empty() {
                        let at = random.random_range(0..datagram.bytes.len().min(20));
                        datagram.bytes[at] = random.random();
                    }
                    datagram
                })
                .collect();
            host.receive(&arrived);
            let (elements, accepted) = (host.counters.datagrams_in.get(), host.frames_in());
            assert_eq!(elements, accepted + drops(host), "seed {seed}");
            seen = [seen[0] + host.taps.written.len() as u64, seen[1].max(drops(host))];
            host.taps.written.clear();
        }
    }
    assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    // The IPv6 addresses of the cases are of the network too.
    assert_eq!(prefix(v6(1), 64), prefix(v6(17), 64));
}

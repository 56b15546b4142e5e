//! Networks of packets: IP-in-IP and IP in UDP, both families inside and under.

use std::collections::HashMap;
use std::net::IpAddr;

use encap::checksum::Sum;
use encap::{Link, ecn, icmpv4, icmpv6, ipv4, ipv6, mss, segment, tcp, vnet};
use fdb::{
    Carrier, Delta, Network, Origin, Place, Prefix, Revision, Route, Routed, UdpPorts, Via, VtepKey,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::outbound::Outcome;
use skybridge::datapath::packets_in::Source;
use skybridge::underlay::Carries;

use super::frames::{ETHERNET, Spec, checksums_verify, v4, v6};
use super::lab::{
    self, Arrived, At, Host, Lab, NETWORK, Options, RAW, Sent, UNDERLAY_MTU, Weather,
    vtep_address_v6,
};
use super::{KINDS, PLAIN, nothing_dropped};

pub const PORTS: UdpPorts = UdpPorts { v4: 4760, v6: 4761 };
const CARRIERS: [Carrier; 2] = [Carrier::IpIp, Carrier::IpUdp];

/// All carriers, over and with both families.
pub fn ways() -> impl Iterator<Item = (Carrier, bool)> {
    CARRIERS.into_iter().flat_map(|carrier| [false, true].map(|under| (carrier, under)))
}

/// Inner MTU of a way.
pub fn mtu(carrier: Carrier, ipv6_under: bool) -> u16 {
    let udp = if carrier == Carrier::IpUdp { 8 } else { 0 };
    UNDERLAY_MTU - udp - if ipv6_under { 40 } else { 20 }
}

pub fn prefix(address: impl Into<IpAddr>, len: u8) -> Prefix {
    Prefix::new(address.into(), len).unwrap()
}

pub fn routed_network(carrier: Carrier, ipv6_under: bool) -> Network {
    Network {
        mtu: mtu(carrier, ipv6_under),
        routed: Some(Routed {
            carrier,
            fallback: false,
            ports: PORTS,
            subnets: [prefix(v4(0), 24), prefix(v6(0), 64)].into(),
            mss: false,
        }),
        ..lab::network(NETWORK)
    }
}

pub fn put_route(host: &mut Host, prefix: Prefix, place: Place) {
    let origin = Origin::Store { revision: Revision(1) };
    host.apply([Delta::PutRoute { network: NETWORK, prefix, route: Route { place, origin } }]);
}

/// As [`Lab::new`]: host `h` has the addresses `16 h` to `16 h + 15` of both subnets.
pub fn routed(hosts: usize, options: Options, carrier: Carrier, ipv6_under: bool) -> Lab {
    let mut lab = Lab::new(hosts, options);
    for (own, host) in lab.hosts.iter_mut().enumerate() {
        host.apply([
            Delta::RemoveNetwork { key: NETWORK },
            Delta::PutNetwork { key: NETWORK, network: routed_network(carrier, ipv6_under) },
        ]);
        host.port().link = Link::None;
        for slot in 0..hosts {
            if ipv6_under {
                host.set_vtep(slot, |vtep| vtep.address = vtep_address_v6(slot));
            }
            let place = if slot == own { Place::Local } else { Place::Vtep(VtepKey(slot as u32)) };
            put_route(host, prefix(v4(slot as u8 * 16), 28), place);
            put_route(host, prefix(v6(slot as u8 * 16), 124), place);
        }
    }
    lab
}

pub fn set_routed(host: &mut Host, carrier: Carrier, change: impl FnOnce(&mut Routed)) {
    let mut network = routed_network(carrier, false);
    change(network.routed.as_mut().unwrap());
    host.apply([Delta::PutNetwork { key: NETWORK, network }]);
}

/// What a send is when it arrives.
pub fn arrived(sent: &Sent, plain: Arrived) -> Arrived {
    let Some(port) = sent.port else { return plain };
    let over_ip = sent.flavor >= RAW;
    let ipv6_inside = if over_ip { sent.flavor & 2 != 0 } else { port == PORTS.v6 };
    let via = if over_ip { Via::Ip } else { Via::Udp(port) };
    come(plain, via, ipv6_inside)
}

/// A packet by this way, with what a raw socket puts in front.
pub fn come(plain: Arrived, via: Via, ipv6_inside: bool) -> Arrived {
    let carries = if ipv6_inside { Carries::Ipv6 } else { Carries::Ipv4 };
    let mut arrived = plain;
    let mut outer_header = false;
    if let (Via::Ip, IpAddr::V4(source)) = (via, arrived.source) {
        let header = ipv4::Header {
            tos: arrived.tos,
            ident: 0,
            dont_fragment: true,
            ttl: 64,
            protocol: if ipv6_inside { 41 } else { 4 },
            source,
            destination: [192, 0, 2, 1].into(),
        };
        let header = header.emit(arrived.bytes.len()).unwrap();
        arrived.bytes.splice(0..0, header);
        arrived.tos = 0;
        outer_header = true;
    }
    Arrived { packets: Some(Source { via, carries, outer_header }), ..arrived }
}

/// `packet` from VTEP `slot` by IP-in-IP over IPv4.
pub fn by_ip(slot: usize, packet: &[u8]) -> Arrived {
    come(Arrived::raw(slot, packet.to_vec()), Via::Ip, packet.first().is_some_and(|b| b >> 4 == 6))
}

/// `packet` from VTEP `slot` by UDP.
pub fn by_udp(slot: usize, packet: &[u8]) -> Arrived {
    let ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let port = if ipv6 { PORTS.v6 } else { PORTS.v4 };
    come(Arrived::raw(slot, packet.to_vec()), Via::Udp(port), ipv6)
}

/// `packet` from an IPv4 or IPv6 VTEP by this carrier; the source is still to be given.
pub fn by_way(carrier: Carrier, ipv6_under: bool, packet: &[u8]) -> Arrived {
    let arrived = if carrier == Carrier::IpIp { by_ip(1, packet) } else { by_udp(1, packet) };
    let Some(source) = arrived.packets.filter(|_| ipv6_under) else { return arrived };
    let outer_header = Source { outer_header: false, ..source };
    Arrived { bytes: packet.to_vec(), packets: Some(outer_header), ..arrived }
}

pub fn whole(spec: &Spec) -> Vec<u8> {
    spec.whole()[ETHERNET..].to_vec()
}

pub fn partial(spec: &Spec, gso_size: u16) -> (vnet::Header, Vec<u8>) {
    let (header, frame) = spec.partial(gso_size);
    let ethernet = ETHERNET as u16;
    let header = vnet::Header {
        hdr_len: header.hdr_len - ethernet,
        csum_start: header.csum_start - ethernet,
        ..header
    };
    (header, frame[ETHERNET..].to_vec())
}

/// What a receiver makes of one write to its TUN.
pub fn cut(header: &vnet::Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    match segment::plan_on(Link::None, header, &mut packet, usize::MAX).unwrap() {
        segment::Plan::Single => vec![packet],
        segment::Plan::Segments(segments) => (0..segments.count())
            .map(|i| {
                let mut out = vec![0; segments.frame_len(i)];
                assert_eq!(segments.write(i, &packet, &mut out), out.len());
                out
            })
            .collect(),
    }
}

pub fn received(host: &Host) -> Vec<Vec<u8>> {
    host.taps.written.iter().flat_map(|written| cut(&written.header, &written.frame)).collect()
}

/// Both checksums of a packet.
fn verifies(packet: &[u8]) -> bool {
    checksums_verify(&[&[0; ETHERNET][..], packet].concat())
}

fn headers(spec: &Spec) -> usize {
    spec.header_len() - ETHERNET
}

#[test]
fn packets_cross_whole_by_every_way() {
    for (carrier, under) in ways() {
        for (ipv6, tcp) in KINDS {
            for payload in [0, 1, 1000, 1001] {
                let mut lab = routed(2, Options::default(), carrier, under);
                let spec = Spec::new(1, 17, ipv6, tcp, payload);
                let (header, packet) = partial(&spec, 0);
                assert_eq!(lab.hosts[0].send(&header, &packet), Outcome::Done);
                let sent = lab.hosts[0].wire.sent[0].clone();
                assert_eq!(sent.bytes, whole(&spec), "the bare packet, its checksum complete");
                assert!(verifies(&sent.bytes));
                assert_eq!(sent.flavor & 1 != 0, under);
                let port = if ipv6 { PORTS.v6 } else { PORTS.v4 };
                match carrier {
                    Carrier::IpUdp => {
                        assert_eq!((sent.port, sent.flavor < RAW), (Some(port), true))
                    }
                    Carrier::IpIp => {
                        assert_eq!((sent.port, sent.flavor >= RAW), (Some(0), true));
                        assert_eq!(sent.flavor & 2 != 0, ipv6, "the protocol by what is inside");
                    }
                }
                lab.carry(0, &mut Weather::fair(false));
                assert_eq!(received(&lab.hosts[1]), [whole(&spec)]);
                assert_eq!((lab.hosts[0].frames_out(), lab.hosts[1].frames_in()), (1, 1));
                assert!(lab.hosts[1].heard.take(VtepKey(0)));
                nothing_dropped(&lab);
            }
        }
    }
}

#[test]
fn super_packets_arrive_byte_for_byte() {
    for (carrier, under) in ways() {
        for options in [
            Options::default(),
            Options { segments: 1, ..Options::default() },
            Options { coalesce: false, ..Options::default() },
        ] {
            for (ipv6, tcp) in KINDS {
                for trains in [false, true] {
                    let mut lab = routed(2, options, carrier, under);
                    let size =
                        usize::from(mtu(carrier, under)) - headers(&Spec::new(1, 17, ipv6, tcp, 0));
                    let mut spec = Spec::new(1, 17, ipv6, tcp, 40 * size + 77);
                    spec.flags = tcp::ACK | tcp::PSH;
                    let (header, packet) = partial(&spec, size as u16);
                    assert_eq!(lab.hosts[0].send(&header, &packet), Outcome::Done);
                    let wire = lab.hosts[0].wire.datagrams();
                    assert_eq!(wire.len(), 41);
                    assert!(wire.iter().all(|(_, packet)| verifies(packet)));
                    let most = wire.iter().map(|(_, packet)| packet.len()).max();
                    assert_eq!(most, Some(usize::from(mtu(carrier, under))));
                    lab.carry(0, &mut Weather::fair(trains));
                    let there = &lab.hosts[1];
                    assert_eq!(received(there), cut(&header, &packet));
                    if options.coalesce {
                        assert!(there.taps.written.len() <= 4, "{}", there.taps.written.len());
                    }
                    assert_eq!(lab.hosts[0].counters.segments_out.get(), 41);
                    nothing_dropped(&lab);
                }
            }
        }
    }
}

#[test]
fn udp_is_cut_by_the_kernel_and_spread_by_flow() {
    let mut lab = routed(2, Options::default(), Carrier::IpUdp, false);
    let host = &mut lab.hosts[0];
    let spec = Spec::new(1, 17, false, true, 30_000);
    let (header, packet) = partial(&spec, 1432);
    host.send(&header, &packet);
    assert_eq!(host.wire.sent.len(), 1, "one send of many segments");
    assert_eq!(host.wire.sent[0].segment, 1472);
    host.wire.sent.clear();
    for port in 0..64 {
        let mut spec = Spec::new(1, 17, false, false, 10);
        spec.port = 30_000 + port;
        host.send_whole(&whole(&spec));
    }
    let buckets: std::collections::HashSet<u8> =
        host.wire.sent.iter().map(|sent| sent.bucket).collect();
    assert_eq!(buckets.len(), 4, "all of the fan");
    // Both families to one VTEP: two destinations, never one send.
    host.wire.sent.clear();
    host.offer(&PLAIN, &whole(&Spec::new(1, 17, false, false, 120)));
    host.offer(&PLAIN, &whole(&Spec::new(1, 17, true, false, 100)));
    host.flush();
    assert_eq!(host.wire.sent.len(), 2);
}

#[test]
fn networks_with_ports_of_their_own_do_not_meet() {
    let mut lab = routed(2, Options::default(), Carrier::IpUdp, false);
    for host in &mut lab.hosts {
        set_routed(host, Carrier::IpUdp, |routed| routed.ports = UdpPorts { v4: 6000, v6: 6001 });
    }
    let packet = whole(&Spec::new(1, 17, false, false, 100));
    lab.hosts[0].send_whole(&packet);
    assert_eq!(lab.hosts[0].wire.sent[0].port, Some(6000));
    lab.carry(0, &mut Weather::fair(false));
    assert_eq!(received(&lab.hosts[1]), std::slice::from_ref(&packet));
    nothing_dropped(&lab);
    lab.hosts[1].receive(&[by_udp(0, &packet)]);
    assert_eq!(lab.hosts[1].dropped(), [(DropReason::InNetworkUnknown, At::Worker, 1)]);
}

#[test]
fn udp_stands_in_where_ip_in_ip_does_not_get_through() {
    for fallback in [false, true] {
        for reached in [false, true] {
            let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
            for host in &mut lab.hosts {
                set_routed(host, Carrier::IpIp, |routed| routed.fallback = fallback);
            }
            lab.hosts[0].set_vtep(1, |vtep| vtep.ip_in_ip = reached);
            for ipv6 in [false, true] {
                lab.hosts[0].send_whole(&whole(&Spec::new(1, 17, ipv6, true, 100)));
            }
            let ports: Vec<_> = lab.hosts[0].wire.sent.iter().map(|sent| sent.port).collect();
            let mut expected = [Some(0), Some(0)];
            if fallback && !reached {
                expected = [Some(PORTS.v4), Some(PORTS.v6)];
            }
            assert_eq!(ports, expected, "{fallback} {reached}");
            lab.carry(0, &mut Weather::fair(false));
            assert_eq!(received(&lab.hosts[1]).len(), 2);
            nothing_dropped(&lab);
        }
    }
}

/// The ICMP message of an answer to endpoint 1: kind, code, the word of the MTU.
pub fn message(reply: &[u8], from: u8) -> (u8, u8, u32) {
    if reply[0] >> 4 == 6 {
        let ip = ipv6::Packet::parse(reply).unwrap();
        assert_eq!((ip.source(), ip.destination()), (v6(from), v6(1)));
        let message = icmpv6::Message::parse(ip.payload()).unwrap();
        assert!(message.checksum_verifies(ip.source(), ip.destination()));
        (message.kind(), message.code(), message.mtu().unwrap_or(0))
    } else {
        let ip = ipv4::Packet::parse(reply).unwrap();
        assert!(ip.checksum_verifies());
        assert_eq!((ip.source(), ip.destination()), (v4(from), v4(1)));
        let message = icmpv4::Message::parse(ip.payload()).unwrap();
        assert!(message.checksum_verifies());
        (message.kind(), message.code(), message.mtu().map_or(0, u32::from))
    }
}

#[test]
fn what_does_not_fit_is_told_to_the_sender_in_the_name_of_its_destination() {
    for (carrier, under) in ways() {
        for ipv6 in [false, true] {
            let mut lab = routed(2, Options::default(), carrier, under);
            let host = &mut lab.hosts[0];
            let most = mtu(carrier, under);
            let fits = usize::from(most) - headers(&Spec::new(1, 17, ipv6, false, 0));
            host.send_whole(&whole(&Spec::new(1, 17, ipv6, false, fits)));
            assert_eq!(host.wire.sent.len(), 1);
            let above = Spec::new(1, 17, ipv6, false, fits + 1);
            let joined = partial(&Spec::new(1, 17, ipv6, false, 8000), 1500);
            for (header, packet) in [(PLAIN, whole(&above)), partial(&above, 0), joined] {
                host.replies.clear();
                assert!(matches!(host.send(&header, &packet), Outcome::Reply(_)));
                let expected = if ipv6 { (2, 0) } else { (3, 4) };
                let told = message(&host.replies[0], 17);
                assert_eq!(told, (expected.0, expected.1, most.into()));
            }
            assert_eq!(host.counters.too_big_answers.get(), 3);
            assert_eq!(host.dropped(), [(DropReason::OutTooBig, At::Port, 3)]);
        }
    }
}

#[test]
fn a_path_that_shrinks_is_learned_from_the_raw_socket_too() {
    for (carrier, under) in ways() {
        let mut lab = routed(2, Options::default(), carrier, under);
        let host = &mut lab.hosts[0];
        host.wire.mtu = 1400;
        let packet = whole(&Spec::new(1, 17, false, false, 1400 - 20));
        host.send_whole(&packet);
        assert_eq!(host.dropped(), [(DropReason::OutPathMtu, At::Worker, 1)]);
        assert!(matches!(host.send_whole(&packet), Outcome::Reply(_)));
        let (_, _, told) = message(&host.replies[0], 17);
        assert_eq!(told, u32::from(mtu(carrier, under)) - 100);
    }
}

#[test]
fn ipv6_keeps_its_least_mtu_by_fragments_outside() {
    for (carrier, mtu, fragmented) in [
        (Carrier::IpUdp, 1308, false),
        (Carrier::IpUdp, 1307, true),
        (Carrier::IpIp, 1300, false),
        (Carrier::IpIp, 1299, true),
        (Carrier::IpIp, 600, true),
    ] {
        let mut lab = routed(2, Options::default(), carrier, false);
        let host = &mut lab.hosts[0];
        host.outbound.paths.set_own_mtu(mtu, 0);
        host.wire.mtu = usize::from(mtu);
        let largest = whole(&Spec::new(1, 17, true, false, 1280 - 48));
        assert_eq!(host.send_whole(&largest), Outcome::Done);
        let flavor = host.wire.sent[0].flavor;
        let df = if flavor >= RAW { flavor & 4 == 0 } else { flavor & 2 != 0 };
        assert_eq!(df, !fragmented, "don't-fragment");
        assert!(matches!(
            host.send_whole(&whole(&Spec::new(1, 17, true, false, 1281 - 48))),
            Outcome::Reply(_)
        ));
        assert_eq!(message(&host.replies[0], 17), (2, 0, 1280));
        // IPv4 does with less.
        let (header, packet) = partial(&Spec::new(1, 17, false, true, 3000), 1432);
        host.wire.sent.clear();
        host.send(&header, &packet);
        let longest = host.wire.datagrams().iter().map(|(_, packet)| packet.len()).max();
        let outer = if carrier == Carrier::IpIp { 20 } else { 28 };
        assert_eq!(longest, Some(usize::from(mtu) - outer));
        host.wire.sent.clear();
        host.send_whole(&largest);
        lab.carry(0, &mut Weather::fair(false));
        assert_eq!(received(&lab.hosts[1]), [largest]);
    }
}

#[test]
fn ecn_follows_rfc_6040_and_ip_in_ip_copies_the_rest_of_the_tos() {
    let bits = [ecn::NOT_ECT, ecn::ECT_0, ecn::ECT_1, ecn::CE];
    for (carrier, under) in ways() {
        for ipv6 in [false, true] {
            for inner in bits {
                for outer in bits {
                    let mut lab = routed(2, Options::default(), carrier, under);
                    let mut spec = Spec::new(1, 17, ipv6, true, 100);
                    spec.tos = 0xb8 | inner;
                    lab.hosts[0].send_whole(&whole(&spec));
                    let tos = if carrier == Carrier::IpIp { spec.tos } else { inner };
                    assert_eq!(lab.hosts[0].wire.sent[0].tos, tos);
                    lab.hosts[0].wire.sent[0].tos = outer | 0x20;
                    lab.carry(0, &mut Weather::fair(false));
                    let there = &lab.hosts[1];
                    let expected = match (inner, outer) {
                        (ecn::NOT_ECT, ecn::CE) => None,
                        (_, ecn::CE) => Some(ecn::CE),
                        (ecn::ECT_0, ecn::ECT_1) => Some(ecn::ECT_1),
                        _ => Some(inner),
                    };
                    match expected {
                        None => assert_eq!(there.dropped(), [(DropReason::InEcn, At::Port, 1)]),
                        Some(bits) => {
                            spec.tos = 0xb8 | bits;
                            assert_eq!(received(there), [whole(&spec)]);
                            spec.tos = 0xb8 | inner;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_kernels_leave_unfinished_is_described_to_the_port() {
    for ipv6 in [false, true] {
        // Joined by the kernel before the raw socket, or never cut: no size is told.
        let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
        let host = &mut lab.hosts[0];
        let spec = Spec::new(17, 1, ipv6, true, 20_000);
        let (_, packet) = partial(&spec, 1000);
        let (_, single) = partial(&Spec::new(17, 1, ipv6, false, 100), 0);
        host.receive(&[by_ip(1, &packet), by_ip(1, &single)]);
        let got = received(host);
        let payload: Vec<u8> = got[..got.len() - 1]
            .iter()
            .flat_map(|packet| packet[headers(&spec)..].to_vec())
            .collect();
        assert_eq!(payload, spec.payload);
        assert!(got.iter().all(|packet| verifies(packet) && packet.len() <= 1480));
        assert_eq!(host.counters.partial_in.get(), 2);
        assert_eq!(host.dropped(), []);
        // In UDP the size of a datagram is told.
        let mut lab = routed(2, Options::default(), Carrier::IpUdp, false);
        let host = &mut lab.hosts[0];
        let (header, packet) = partial(&Spec::new(17, 1, ipv6, false, 20_000), 1200);
        host.receive(&[Arrived { gro_size: 1200, ..by_udp(1, &packet) }]);
        assert_eq!(received(host), cut(&header, &packet));
        assert_eq!(host.dropped(), []);
    }
}

#[test]
fn a_datagram_longer_than_the_mtu_arrives_as_one() {
    for ipv6 in [false, true] {
        let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
        let packet = whole(&Spec::new(17, 1, ipv6, false, 3000));
        lab.hosts[0].receive(&[by_ip(1, &packet), by_udp(1, &packet)]);
        let written: Vec<_> = lab.hosts[0].taps.written.iter().map(|it| &it.frame).collect();
        assert_eq!(written, [&packet, &packet]);
        assert_eq!(received(&lab.hosts[0]).len(), 2);
        nothing_dropped(&lab);
    }
}

/// A SYN that announces 9,000 bytes.
fn syn(from: u8, to: u8, ipv6: bool) -> Vec<u8> {
    let mut spec = Spec::new(from, to, ipv6, true, 4);
    spec.flags = tcp::SYN;
    spec.payload = vec![2, 4, 0x23, 0x28];
    let mut packet = whole(&spec);
    let at = headers(&spec) - 20;
    // What was payload is an option now.
    packet[at + 12] = 0x60;
    packet[at + 16..at + 18].fill(0);
    let addresses = if ipv6 { 8..40 } else { 12..20 };
    let sum = Sum::of(&packet[addresses]).u16(6).u16(24).bytes(&packet[at..]).finish();
    packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    assert!(verifies(&packet));
    packet
}

#[test]
fn the_segment_size_of_tcp_is_lowered_to_the_path_both_ways() {
    for (carrier, under) in ways() {
        for ipv6 in [false, true] {
            for on in [false, true] {
                let mut lab = routed(2, Options::default(), carrier, under);
                for host in &mut lab.hosts {
                    set_routed(host, carrier, |routed| routed.mss = on);
                }
                let packet = syn(1, 17, ipv6);
                let expected = if on {
                    let mut lowered = packet.clone();
                    assert!(mss::clamp(Link::None, &mut lowered, mtu(carrier, under), false));
                    lowered
                } else {
                    packet.clone()
                };
                lab.hosts[0].send_whole(&packet);
                assert_eq!(lab.hosts[0].wire.sent[0].bytes, expected);
                assert!(verifies(&expected));
                // From one that does not.
                lab.hosts[0].wire.sent[0].bytes = packet;
                lab.carry(0, &mut Weather::fair(false));
                assert_eq!(received(&lab.hosts[1]), [expected]);
                nothing_dropped(&lab);
            }
        }
    }
}

#[test]
fn order_within_a_flow_is_kept() {
    for (carrier, under) in ways() {
        let mut random = StdRng::seed_from_u64(7);
        let mut lab = routed(3, Options::default(), carrier, under);
        let mut weather =
            Weather { reorders: true, random: StdRng::seed_from_u64(8), ..Weather::fair(true) };
        let mut next = HashMap::<u16, u32>::new();
        for _ in 0..20 {
            for _ in 0..100 {
                let port = 1000 + random.random_range(0..24_u16);
                let to = if port % 2 == 0 { 17 } else { 33 };
                let number = next.entry(port).or_default();
                let size = [4, 5, 64, 64, 700, 1400][random.random_range(0..6)];
                let count = if random.random_range(0..10) == 0 { 30 } else { 1 };
                let mut spec = Spec::new(1, to, false, false, size * count);
                spec.port = port;
                for part in spec.payload.chunks_mut(size) {
                    part[..4].copy_from_slice(&number.to_be_bytes());
                    *number += 1;
                }
                let (header, packet) = partial(&spec, if count == 1 { 0 } else { size as u16 });
                assert_eq!(lab.hosts[0].offer(&header, &packet), Outcome::Done);
            }
            lab.hosts[0].flush();
            lab.carry(0, &mut weather);
        }
        nothing_dropped(&lab);
        let mut last = HashMap::<u16, u32>::new();
        for packet in lab.hosts[1..].iter().flat_map(received) {
            assert!(verifies(&packet));
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            let number = u32::from_be_bytes(*packet[28..32].first_chunk().unwrap());
            let expected = last.get(&port).map_or(0, |before| before + 1);
            assert_eq!(number, expected, "flow {port}");
            last.insert(port, number);
        }
        assert!(next.iter().all(|(port, count)| last[port] + 1 == *count), "each once");
    }
}

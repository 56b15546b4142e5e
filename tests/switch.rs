//! The switch without a kernel: several hosts in one process, joined by a wire in memory.
//!
//! - this file: frames end to end, flooding, answers, ECN, order;
//! - `switch/local.rs`: frames between containers of one host;
//! - `switch/checks.rs`: whose frames are taken, and learning;
//! - `switch/paths.rs`: what a path refuses, what is learned of it, and when it is forgotten;
//! - `switch/packets.rs`: networks of packets, end to end and what their paths refuse;
//! - `switch/packets_checks.rs`: whose packets are taken, and each drop reason of theirs;
//! - `switch/packets_told.rs`: what the senders of packets are told by ICMP;
//! - `switch/drops.rs`: each drop reason by one crafted frame, counted once, at the right place;
//! - `switch/random.rs`: arbitrary bytes never panic, and no frame is lost from the counters.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(unreachable_pub, reason = "the modules belong to this file alone")]

#[path = "switch/checks.rs"]
mod checks;
#[path = "switch/drops.rs"]
mod drops;
#[path = "switch/frames.rs"]
mod frames;
#[path = "switch/lab.rs"]
mod lab;
#[path = "switch/local.rs"]
mod local;
#[path = "switch/packets.rs"]
mod packets;
#[path = "switch/packets_checks.rs"]
mod packets_checks;
#[path = "switch/packets_told.rs"]
mod packets_told;
#[path = "switch/paths.rs"]
mod paths;
#[path = "switch/random.rs"]
mod random;

use std::collections::HashMap;

use encap::{MacAddr, arp, ecn, ethernet, icmpv4, icmpv6, ipv4, ipv6, ndp, tcp, vnet, vxlan};
use fdb::{Delta, Place, VtepKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skybridge::datapath::batch::DATAGRAMS;
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::outbound::Outcome;

use frames::{
    ETHERNET, Spec, arp_request, checksums_verify, cut, mac, other, solicitation, v4, v6,
};
use lab::{Arrived, At, Host, Lab, MTU, NETWORK, Options, Weather, vtep};

const PLAIN: vnet::Header = vnet::Header::NONE;
/// Inner frame bytes of a path with an underlay MTU of 1500 over IPv4.
const MAX_FRAME: usize = MTU as usize + ETHERNET;

/// Both families and both transports.
const KINDS: [(bool, bool); 4] = [(false, true), (false, false), (true, true), (true, false)];

/// What arrived at a host's port, cut into frames.
fn received(host: &Host) -> Vec<Vec<u8>> {
    host.taps.written.iter().flat_map(|written| cut(&written.header, &written.frame)).collect()
}

fn nothing_dropped(lab: &Lab) {
    for host in &lab.hosts {
        assert_eq!(host.dropped(), []);
    }
}

#[test]
fn single_frames_cross_whole_and_with_checksums_completed() {
    for trains in [false, true] {
        for (ipv6, tcp) in KINDS {
            for payload in [0, 1, 2, 63, 1000, 1001] {
                let mut lab = Lab::new(2, Options::default());
                let spec = Spec::new(1, 17, ipv6, tcp, payload);
                let (header, frame) = spec.partial(0);
                assert_eq!(lab.hosts[0].offer(&header, &frame), Outcome::Done);
                // The next packet, or the same bytes again where there is no payload to join.
                let mut second = spec.clone();
                second.ident += 1;
                second.sequence += payload as u32;
                assert_eq!(lab.hosts[0].offer(&PLAIN, &second.whole()), Outcome::Done);
                lab.hosts[0].flush();
                lab.carry(0, &mut Weather::fair(trains));
                assert_eq!(received(&lab.hosts[1]), [spec.whole(), second.whole()]);
                assert!(checksums_verify(&spec.whole()));
                assert_eq!(lab.hosts[0].counters.checksums_completed.get(), 1);
                assert_eq!(lab.hosts[1].frames_in(), 2);
                assert!(lab.hosts[1].heard.take(VtepKey(0)));
                assert!(!lab.hosts[1].heard.take(VtepKey(0)));
                nothing_dropped(&lab);
            }
        }
    }
}

#[test]
fn super_frames_arrive_byte_for_byte() {
    for options in [
        Options::default(),
        Options { segments: 128, ..Options::default() },
        Options { segments: 1, ..Options::default() },
        Options { coalesce: false, ..Options::default() },
        Options { segments: 1, coalesce: false, fan: 1 },
    ] {
        for trains in [false, true] {
            for (ipv6, tcp) in KINDS {
                let mut lab = Lab::new(2, options);
                let headers = Spec::new(1, 17, ipv6, tcp, 0).header_len();
                let size = MAX_FRAME - headers;
                let mut spec = Spec::new(1, 17, ipv6, tcp, 40 * size + 77);
                spec.flags = tcp::ACK | tcp::PSH;
                let (header, frame) = spec.partial(size as u16);
                assert_eq!(lab.hosts[0].send(&header, &frame), Outcome::Done);
                let wire = lab.hosts[0].wire.datagrams();
                assert_eq!(wire.len(), 41);
                for (_, datagram) in &wire {
                    assert!(datagram.len() <= MAX_FRAME + vxlan::HEADER_LEN);
                    assert!(checksums_verify(&datagram[vxlan::HEADER_LEN..]));
                }
                if options.segments == 1 {
                    assert!(lab.hosts[0].wire.sent.iter().all(|sent| sent.segment == 0));
                }
                lab.carry(0, &mut Weather::fair(trains));
                let there = &lab.hosts[1];
                assert_eq!(received(there), cut(&header, &frame));
                let payload: Vec<u8> =
                    received(there).iter().flat_map(|frame| frame[headers..].to_vec()).collect();
                assert_eq!(payload, spec.payload);
                let writes = there.taps.written.len();
                if options.coalesce {
                    assert!(writes <= 4, "{writes} writes for one super-frame");
                    assert_eq!(there.counters.coalesced_in.get(), 41);
                } else {
                    assert_eq!(writes, 41);
                    assert!(there.taps.written.iter().all(|w| w.header.gso_type == vnet::GSO_NONE));
                }
                assert_eq!(lab.hosts[0].frames_out(), 41);
                assert_eq!(there.frames_in(), 41);
                assert_eq!(lab.hosts[0].counters.segments_out.get(), 41);
                assert_eq!(lab.hosts[0].counters.datagrams_out.get(), 41);
                assert_eq!(there.counters.datagrams_in.get(), 41);
                nothing_dropped(&lab);
            }
        }
    }
}

#[test]
fn the_largest_super_frames_and_tiny_segments_are_taken() {
    for (ipv6, tcp) in KINDS {
        let headers = Spec::new(1, 17, ipv6, tcp, 0).header_len();
        let mut lab = Lab::new(2, Options::default());
        let largest = Spec::new(1, 17, ipv6, tcp, 65_535 - (headers - ETHERNET));
        let (header, frame) = largest.partial((MAX_FRAME - headers) as u16);
        let tiny = Spec::new(2, 17, ipv6, tcp, 1200);
        let (tiny_header, tiny_frame) = tiny.partial(1);
        lab.hosts[0].offer(&header, &frame);
        lab.hosts[0].offer(&tiny_header, &tiny_frame);
        lab.hosts[0].flush();
        lab.carry(0, &mut Weather::fair(true));
        let expected = [cut(&header, &frame), cut(&tiny_header, &tiny_frame)].concat();
        let (mut got, mut expected) = (received(&lab.hosts[1]), expected);
        // Two flows: only the order within each is kept.
        got.sort_by_key(|frame| frame[11]);
        expected.sort_by_key(|frame| frame[11]);
        assert_eq!(got, expected);
        nothing_dropped(&lab);
    }
}

#[test]
fn a_super_frame_of_more_segments_than_a_flush_takes_is_one_drop() {
    let mut lab = Lab::new(2, Options::default());
    let (header, frame) = Spec::new(1, 17, false, true, 60_000).partial(1);
    for _ in 0..2 {
        assert_eq!(lab.hosts[0].send(&header, &frame), Outcome::Done);
        // A frame waits already the second time.
        lab.hosts[0].offer(&PLAIN, &Spec::new(1, 17, false, true, 9).whole());
    }
    assert_eq!(lab.hosts[0].dropped(), [(DropReason::OutMalformed, At::Port, 2)]);
}

#[test]
fn a_group_frame_reaches_every_other_host_once() {
    for (header, frame) in [
        Spec::new(1, 255, false, false, 400).partial(0),
        Spec::new(1, 255, true, false, 20_000).partial(1000),
        (PLAIN, other(MacAddr::BROADCAST, mac(1), 46)),
    ] {
        let mut frame = frame;
        frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
        let mut lab = Lab::new(4, Options::default());
        assert_eq!(lab.hosts[0].send(&header, &frame), Outcome::Done);
        assert_eq!(lab.hosts[0].counters.flood_copies.get(), 3);
        let single = u64::from(header.gso_size == 0 && header.flags != 0);
        assert_eq!(lab.hosts[0].counters.checksums_completed.get(), single, "done once");
        lab.carry(0, &mut Weather::fair(false));
        assert!(lab.hosts[0].taps.written.is_empty(), "a sender never gets its own frame");
        for host in &lab.hosts[1..] {
            assert_eq!(received(host), cut(&header, &frame));
        }
        nothing_dropped(&lab);
    }
}

#[test]
fn unknown_unicast_is_flooded_where_the_network_says_so() {
    let mut lab = Lab::new(3, Options::default());
    lab.hosts[0].set_network(|network| network.flood_unknown = true);
    lab.hosts[0].send_whole(&Spec::new(1, 200, false, false, 64).whole());
    assert_eq!(lab.hosts[0].wire.datagrams().len(), 2);
    nothing_dropped(&lab);
}

/// A host whose network floods to `count` VTEPs.
fn flooder(count: usize) -> Lab {
    let mut lab = Lab::new(1, Options { segments: 1, ..Options::default() });
    let host = &mut lab.hosts[0];
    for slot in 1..=count {
        host.wire.addresses.push(lab::vtep_address(slot));
        host.writer.apply(Delta::PutVtep { key: VtepKey(slot as u32), vtep: vtep(slot) });
    }
    let vteps = (1..=count).map(|slot| VtepKey(slot as u32)).collect();
    host.apply([Delta::SetFlood { network: NETWORK, vteps }]);
    lab
}

#[test]
fn a_flood_to_more_vteps_than_a_flush_takes_is_resumed() {
    const COUNT: usize = DATAGRAMS + 900;
    let mut lab = flooder(COUNT);
    let host = &mut lab.hosts[0];
    let (header, mut frame) = Spec::new(1, 255, false, false, 300).partial(0);
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    host.send(&header, &frame);
    assert_eq!(host.full, 1);
    let datagrams = host.wire.datagrams();
    let to: Vec<u32> = datagrams.iter().map(|(to, _)| *to).collect();
    assert_eq!(to, (1..=COUNT as u32).collect::<Vec<_>>(), "each once, in order");
    let whole = &cut(&header, &frame)[0];
    assert!(datagrams.iter().all(|(_, d)| d[vxlan::HEADER_LEN..] == whole[..]));
    assert_eq!(host.counters.flood_copies.get(), COUNT as u64);
    assert_eq!(host.counters.checksums_completed.get(), 1);
    assert_eq!(host.frames_out(), COUNT as u64);
    assert_eq!(host.dropped(), []);
}

#[test]
fn a_flooded_super_frame_fills_the_queue_more_than_once() {
    const COUNT: usize = 300;
    let mut lab = flooder(COUNT);
    let host = &mut lab.hosts[0];
    let (header, mut frame) = Spec::new(1, 255, false, false, 60_000).partial(1000);
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    host.send(&header, &frame);
    assert!(host.full > 3);
    let expected = cut(&header, &frame);
    let mut per_vtep: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    for (to, datagram) in host.wire.datagrams() {
        per_vtep.entry(to).or_default().push(datagram[vxlan::HEADER_LEN..].to_vec());
    }
    assert_eq!(per_vtep.len(), COUNT);
    assert!(per_vtep.values().all(|got| *got == expected));
    assert_eq!(host.dropped(), []);
}

#[test]
fn the_budget_is_of_frames_whatever_they_cost_and_comes_back() {
    const COUNT: usize = 500;
    const RATE: u32 = 100;
    let mut lab = flooder(COUNT);
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.flood_rate = RATE);
    host.put_endpoint(200, Place::Vtep(VtepKey(1)));
    let frame = other(MacAddr::BROADCAST, mac(1), 50);
    for _ in 0..RATE / 10 {
        // The queue is full before the first copy, so the frame is offered twice.
        for _ in 0..DATAGRAMS {
            host.offer(&PLAIN, &other(mac(200), mac(1), 50));
        }
        host.send_whole(&frame);
        // A super-frame is as many frames as it becomes.
        let (header, mut large) = Spec::new(1, 17, false, false, 8900).partial(1000);
        large[..6].copy_from_slice(&MacAddr::BROADCAST.0);
        host.send(&header, &large);
        host.wire.sent.clear();
    }
    assert_eq!(host.dropped(), []);
    host.send_whole(&frame);
    assert_eq!(host.dropped(), [(DropReason::OutFloodBudget, At::Port, 1)]);
    // What is known is not flooded and does not count.
    host.send_whole(&other(mac(200), mac(1), 50));
    host.now_ms = 10;
    host.send_whole(&frame);
    assert_eq!(host.counters.flood_copies.get(), u64::from(RATE / 10 * 2 + 1) * COUNT as u64);
    assert_eq!(host.dropped(), [(DropReason::OutFloodBudget, At::Port, 1)]);
}

#[test]
fn broadcast_and_multicast_are_options_of_their_own() {
    let group = MacAddr([0x01, 0, 0x5e, 1, 2, 3]);
    for (broadcast, multicast) in [(true, false), (false, true), (false, false)] {
        let mut lab = Lab::new(2, Options::default());
        let host = &mut lab.hosts[0];
        host.set_network(|network| {
            (network.flood_broadcast, network.flood_multicast) = (broadcast, multicast);
        });
        for (to, goes) in [(MacAddr::BROADCAST, broadcast), (group, multicast)] {
            let before = host.wire.sent.len();
            host.send_whole(&other(to, mac(1), 60));
            assert_eq!(host.wire.sent.len() - before, usize::from(goes), "{to}");
        }
        let refused = u64::from(!broadcast) + u64::from(!multicast);
        assert_eq!(host.dropped(), [(DropReason::OutFloodDisabled, At::Port, refused)]);
    }
}

#[test]
fn arp_and_neighbor_questions_are_answered_from_the_tables() {
    type Make = fn(u8, Option<u8>, u8) -> Vec<u8>;
    for (make, is_arp) in [(arp_request as Make, true), (solicitation as Make, false)] {
        let mut lab = Lab::new(2, Options::default());
        let host = &mut lab.hosts[0];
        // An endpoint elsewhere; asked by an owner, by one without address, by a prober.
        for sender in [Some(1), Some(99), None] {
            host.replies.clear();
            let request = make(1, sender, 17);
            assert!(matches!(host.send_whole(&request), Outcome::Reply(_)), "{sender:?}");
            let reply = &host.replies[0];
            let link = ethernet::Frame::parse(reply).unwrap();
            if is_arp {
                let answer = arp::Packet::of_frame(reply).unwrap();
                assert_eq!(answer.operation(), arp::REPLY);
                assert_eq!((answer.sender(), answer.sender_mac()), (v4(17), mac(17)));
                assert_eq!(answer.target_mac(), mac(1));
                assert_eq!(link.destination(), mac(1));
            } else {
                let answer = ndp::advertised(reply).unwrap();
                assert_eq!((answer.target, answer.target_link_layer), (v6(17), Some(mac(17))));
                assert_eq!(answer.solicited, sender.is_some());
            }
        }
        assert_eq!(host.counters.suppressed.get(), 3);
        // One's own address, by probe and by announcement.
        assert_eq!(host.send_whole(&make(1, None, 1)), Outcome::Done);
        assert_eq!(host.send_whole(&make(1, Some(1), 1)), Outcome::Done);
        assert_eq!(host.counters.probes_ignored.get(), 2);
        // A neighbor on this host answers by itself.
        assert_eq!(host.send_whole(&make(1, Some(1), 2)), Outcome::Done);
        assert_eq!(host.send_whole(&make(1, None, 2)), Outcome::Done);
        assert_eq!(host.counters.suppressed_local.get(), 2);
        assert_eq!(host.dropped(), []);
        assert!(host.wire.sent.is_empty(), "no question crosses the underlay");
        // Nobody's: dropped, or flooded where the network does.
        host.send_whole(&make(1, Some(1), 99));
        assert_eq!(host.dropped(), [(DropReason::OutNeighborUnknown, At::Port, 1)]);
        host.set_network(|network| network.flood_arp = true);
        host.send_whole(&make(1, Some(1), 99));
        assert_eq!(host.wire.sent.len(), 1);
        assert_eq!(host.dropped(), [(DropReason::OutNeighborUnknown, At::Port, 1)]);
    }
}

#[test]
fn what_does_not_fit_is_told_to_the_sender() {
    for ipv6 in [false, true] {
        let mut lab = Lab::new(2, Options::default());
        let host = &mut lab.hosts[0];
        let headers = Spec::new(1, 17, ipv6, false, 0).header_len();
        let fits = Spec::new(1, 17, ipv6, false, MAX_FRAME - headers);
        assert_eq!(host.send_whole(&fits.whole()), Outcome::Done);
        assert_eq!(host.wire.sent.len(), 1);
        let above = Spec::new(1, 17, ipv6, false, MAX_FRAME - headers + 1);
        let uso = Spec::new(1, 17, ipv6, false, 8000).partial(1500);
        for (header, frame) in [(PLAIN, above.whole()), above.partial(0), uso] {
            host.replies.clear();
            assert!(matches!(host.send(&header, &frame), Outcome::Reply(_)));
            let reply = &host.replies[0];
            let link = ethernet::Frame::parse(reply).unwrap();
            assert_eq!((link.source(), link.destination()), (mac(17), mac(1)));
            assert!(reply.len() <= MAX_FRAME);
            let mtu = if ipv6 {
                let ip = ipv6::Packet::parse(&reply[ETHERNET..]).unwrap();
                assert_eq!((ip.source(), ip.destination()), (v6(17), v6(1)));
                let message = icmpv6::Message::parse(ip.payload()).unwrap();
                assert!(message.checksum_verifies(ip.source(), ip.destination()));
                message.mtu().unwrap()
            } else {
                let ip = ipv4::Packet::parse(&reply[ETHERNET..]).unwrap();
                assert_eq!((ip.source(), ip.destination()), (v4(17), v4(1)));
                let message = icmpv4::Message::parse(ip.payload()).unwrap();
                assert!(message.checksum_verifies());
                u32::from(message.mtu().unwrap())
            };
            assert_eq!(mtu, u32::from(MTU));
        }
        assert_eq!(host.counters.too_big_answers.get(), 3);
        assert_eq!(host.dropped(), [(DropReason::OutTooBig, At::Port, 3)]);
        assert_eq!(host.wire.sent.len(), 1);
    }
}

#[test]
fn tcp_is_cut_to_a_smaller_path() {
    for ipv6 in [false, true] {
        let mut lab = Lab::new(2, Options::default());
        lab.hosts[0].set_vtep(1, |vtep| vtep.mtu = 1400);
        let spec = Spec::new(1, 17, ipv6, true, 30_000);
        let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
        lab.hosts[0].send(&header, &frame);
        let longest = lab.hosts[0].wire.datagrams().iter().map(|(_, d)| d.len()).max();
        assert_eq!(longest, Some(1400 - 28));
        lab.carry(0, &mut Weather::fair(true));
        let payload: Vec<u8> = received(&lab.hosts[1])
            .iter()
            .flat_map(|frame| frame[spec.header_len()..].to_vec())
            .collect();
        assert_eq!(payload, spec.payload);
        nothing_dropped(&lab);
    }
}

#[test]
fn ecn_follows_rfc_6040_both_ways() {
    let inner = [ecn::NOT_ECT, ecn::ECT_0, ecn::ECT_1, ecn::CE];
    for ipv6 in [false, true] {
        for bits in inner {
            for outer in inner {
                let mut lab = Lab::new(2, Options::default());
                let mut spec = Spec::new(1, 17, ipv6, true, 100);
                spec.tos = 0xb8 | bits;
                lab.hosts[0].send_whole(&spec.whole());
                assert_eq!(lab.hosts[0].wire.sent[0].tos, bits, "only ECN is copied out");
                lab.hosts[0].wire.sent[0].tos = outer | 0x20;
                lab.carry(0, &mut Weather::fair(false));
                let there = &lab.hosts[1];
                let expected = match (bits, outer) {
                    (ecn::NOT_ECT, ecn::CE) => None,
                    (_, ecn::CE) => Some(ecn::CE),
                    (ecn::ECT_0, ecn::ECT_1) => Some(ecn::ECT_1),
                    _ => Some(bits),
                };
                match expected {
                    None => {
                        assert!(there.taps.written.is_empty());
                        assert_eq!(there.dropped(), [(DropReason::InEcn, At::Port, 1)]);
                    }
                    Some(bits) => {
                        let mut changed = spec.clone();
                        changed.tos = 0xb8 | bits;
                        assert_eq!(received(there), [changed.whole()]);
                    }
                }
            }
        }
    }
}

#[test]
fn frames_of_different_tos_share_no_send_and_no_super_frame() {
    let mut lab = Lab::new(2, Options::default());
    let size = 1000;
    for i in 0..10 {
        let mut spec = Spec::new(1, 17, false, true, size);
        spec.sequence = 7 + i * size as u32;
        spec.tos = if i < 5 { ecn::ECT_0 } else { ecn::CE };
        lab.hosts[0].offer(&PLAIN, &spec.whole());
    }
    lab.hosts[0].flush();
    let tos: Vec<u8> = lab.hosts[0].wire.sent.iter().map(|sent| sent.tos).collect();
    assert_eq!(tos, [ecn::ECT_0, ecn::CE]);
    lab.carry(0, &mut Weather::fair(true));
    assert_eq!(lab.hosts[1].taps.written.len(), 2);
}

#[test]
fn kernel_peers_super_frames_and_partial_checksums_are_described_to_the_port() {
    for (ipv6, tcp) in KINDS {
        let mut lab = Lab::new(2, Options::default());
        let host = &mut lab.hosts[0];
        let headers = Spec::new(17, 1, ipv6, tcp, 0).header_len();
        let size = if tcp { MAX_FRAME - headers } else { 1200 };
        let spec = Spec::new(17, 1, ipv6, tcp, 20 * size + 5);
        let (header, frame) = spec.partial(size as u16);
        let mut arrived = Arrived::frame(1, &frame);
        if !tcp {
            arrived.gro_size = size;
        }
        let (single_header, single) = Spec::new(17, 1, ipv6, tcp, 100).partial(0);
        host.receive(&[arrived, Arrived::frame(1, &single)]);
        let expected = [cut(&header, &frame), cut(&single_header, &single)].concat();
        assert_eq!(received(host), expected);
        assert_eq!(host.counters.partial_in.get(), 2);
        // A wrong checksum is neither repaired nor joined.
        let mut wrong = Spec::new(17, 1, ipv6, tcp, 100).whole();
        *wrong.last_mut().unwrap() ^= 1;
        host.taps.written.clear();
        host.receive(&[Arrived::frame(1, &wrong)]);
        assert_eq!(host.taps.written[0].header, PLAIN);
        assert_eq!(host.taps.written[0].frame, wrong);
        assert_eq!(host.counters.bad_checksum_in.get(), 1);
        assert_eq!(host.dropped(), []);
    }
}

/// Flow and number of a frame of the ordering case.
fn numbered(frame: &[u8]) -> (u16, u32) {
    let port = u16::from_be_bytes([frame[34], frame[35]]);
    (port, u32::from_be_bytes(*frame[42..46].first_chunk().unwrap()))
}

#[test]
fn order_within_a_flow_is_kept_over_thousands_of_mixed_frames() {
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let segments = if seed == 3 { 1 } else { 64 };
        let mut lab = Lab::new(3, Options { segments, ..Options::default() });
        let mut weather = Weather {
            trains: seed % 2 == 0,
            lost_percent: if seed == 0 { 0 } else { 3 },
            reorders: true,
            random: StdRng::seed_from_u64(seed + 100),
        };
        let mut next = HashMap::<u16, u32>::new();
        for _ in 0..40 {
            for _ in 0..100 {
                let port = 1000 + random.random_range(0..24_u16);
                let to = if port % 2 == 0 { 17 } else { 33 };
                let number = next.entry(port).or_default();
                let sizes = [4, 5, 64, 64, 64, 700, 1400];
                let size = sizes[random.random_range(0..sizes.len())];
                let count = if random.random_range(0..10) == 0 { 30 } else { 1 };
                let mut spec = Spec::new(1, to, false, false, size * count);
                spec.port = port;
                for part in spec.payload.chunks_mut(size) {
                    part[..4].copy_from_slice(&number.to_be_bytes());
                    *number += 1;
                }
                let gso_size = if count == 1 { 0 } else { size as u16 };
                let (header, frame) = spec.partial(gso_size);
                assert_eq!(lab.hosts[0].offer(&header, &frame), Outcome::Done);
            }
            lab.hosts[0].flush();
            lab.carry(0, &mut weather);
        }
        nothing_dropped(&lab);
        let mut last = HashMap::<u16, u32>::new();
        let mut count = 0;
        for host in &lab.hosts[1..] {
            for frame in received(host) {
                assert!(checksums_verify(&frame));
                let (port, number) = numbered(&frame);
                if let Some(before) = last.insert(port, number) {
                    assert!(before < number, "flow {port}: {number} after {before}");
                }
                count += 1;
            }
        }
        let sent: u32 = next.values().sum();
        if weather.lost_percent == 0 {
            assert_eq!(count, sent);
        }
        assert!(count > sent / 2);
    }
}

//! The switch without a kernel: several hosts in one process, joined by a wire in memory.
//!
//! - this file: frames end to end, flooding, answers, checks, learning, what a path refuses;
//! - `switch/drops.rs`: each drop reason by one crafted frame, counted once, at the right place;
//! - `switch/random.rs`: arbitrary bytes never panic, and no frame is lost from the counters.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(unreachable_pub, reason = "the modules belong to this file alone")]

#[path = "switch/drops.rs"]
mod drops;
#[path = "switch/frames.rs"]
mod frames;
#[path = "switch/lab.rs"]
mod lab;
#[path = "switch/random.rs"]
mod random;

use std::collections::HashMap;

use encap::{MacAddr, arp, ecn, ethernet, icmpv4, icmpv6, ipv4, ipv6, ndp, tcp, vnet, vxlan};
use fdb::{Delta, Millis, Place, SourceCheck, VtepKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skybridge::datapath::batch::DATAGRAMS;
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::flood::BURST;
use skybridge::datapath::learn::Learned;
use skybridge::datapath::outbound::Outcome;

use frames::{
    ETHERNET, Spec, arp_request, checksums_verify, cut, mac, other, solicitation, v4, v6,
};
use lab::{Arrived, At, Host, Lab, MTU, NETWORK, Options, Weather, vtep, vtep_address_v6};

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
                assert_eq!(lab.hosts[0].offer(&PLAIN, &spec.whole()), Outcome::Done);
                lab.hosts[0].flush();
                lab.carry(0, &mut Weather::fair(trains));
                assert_eq!(received(&lab.hosts[1]), [spec.whole(), spec.whole()]);
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
                let payload: Vec<u8> = received(there)
                    .iter()
                    .flat_map(|frame| frame[headers..].to_vec())
                    .collect();
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
fn the_budget_is_charged_once_per_copy_and_comes_back() {
    const COUNT: usize = 4000;
    let mut lab = flooder(COUNT);
    let host = &mut lab.hosts[0];
    host.put_endpoint(200, Place::Vtep(VtepKey(1)));
    let frame = other(MacAddr::BROADCAST, mac(1), 50);
    for _ in 0..BURST / COUNT as u64 {
        // The queue is full before the first copy, so the frame is offered twice.
        for _ in 0..DATAGRAMS {
            host.offer(&PLAIN, &other(mac(200), mac(1), 50));
        }
        host.send_whole(&frame);
    }
    assert_eq!(host.dropped(), []);
    host.send_whole(&frame);
    assert_eq!(host.dropped(), [(DropReason::OutFloodBudget, At::Port, 1)]);
    host.now_ms = 1000;
    host.send_whole(&frame);
    assert_eq!(host.counters.flood_copies.get(), BURST + COUNT as u64);
    assert_eq!(host.dropped(), [(DropReason::OutFloodBudget, At::Port, 1)]);
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
fn a_mac_counts_for_its_owner_whichever_address_it_sends_from() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    // The IPv6 VTEP of the second host has a slot of its own.
    host.set_vtep(9, |vtep| {
        vtep.address = vtep_address_v6(1);
        vtep.host = Some("host-1".into());
    });
    host.set_vtep(1, |vtep| vtep.accept = vec![[203, 0, 113, 7].into()]);
    let frame = Spec::new(17, 1, false, true, 10).whole();
    let mut sources = vec![lab::vtep_address(1), vtep_address_v6(1), [203, 0, 113, 7].into()];
    for source in sources.drain(..) {
        host.receive(&[Arrived { source, ..Arrived::frame(1, &frame) }]);
    }
    assert_eq!(received(host).len(), 3);
    assert_eq!(host.dropped(), []);
    host.receive(&[Arrived::frame(2, &frame)]);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 1)]);
}

#[test]
fn one_bad_frame_of_a_train_is_dropped_alone() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    let good = |sequence| {
        let mut spec = Spec::new(17, 1, false, true, 100);
        spec.sequence = sequence;
        spec.whole()
    };
    // The same MACs again after the spoofed one: a cached verdict must not let that one pass.
    let spoofed = Spec::new(33, 1, false, true, 100).whole();
    let frames = [good(7), good(107), spoofed.clone(), good(207), spoofed, good(307)];
    let mut train = Arrived::frame(1, &frames[0]);
    train.gro_size = train.bytes.len();
    for frame in &frames[1..] {
        train.bytes.extend(Arrived::frame(1, frame).bytes);
    }
    host.receive(&[train]);
    assert_eq!(received(host), [good(7), good(107), good(207), good(307)]);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 2)]);
    assert_eq!(host.counters.datagrams_in.get(), 6);
    // And no verdict outlives its batch: the owner moves, the old place is refused.
    host.put_endpoint(17, Place::Vtep(VtepKey(2)));
    host.receive(&[Arrived::frame(1, &good(7))]);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 3)]);
}

#[test]
fn a_source_without_owner_passes_counted_and_unlearned_unless_strict() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    let frame = Spec::new(200, 1, false, true, 10).whole();
    host.receive(&[Arrived::frame(1, &frame), Arrived::frame(1, &frame)]);
    assert_eq!(host.taps.written.len(), 2);
    assert_eq!(host.counters.source_pending.get(), 2);
    assert_eq!(host.learn.drain().count(), 0);
    assert_eq!(host.dropped(), []);
    host.set_network(|network| network.source_check = SourceCheck::Strict);
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(host.dropped(), [(DropReason::InSourcePending, At::Port, 1)]);
}

#[test]
fn addresses_are_learned_moved_and_confirmed_no_more_than_needed() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.learning = true);
    let frame = Spec::new(200, 1, false, true, 10).whole();
    let seen = |vtep| Learned { network: NETWORK, mac: mac(200), vtep: VtepKey(vtep) };
    let learn = |host: &mut Host| {
        let all: Vec<Learned> = host.learn.drain().collect();
        let at = Millis(host.now_ms);
        host.apply(all.iter().map(|l| Delta::Learn {
            network: l.network,
            mac: l.mac,
            vtep: l.vtep,
            at,
        }));
        all
    };
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(learn(host), [seen(1)]);
    assert_eq!(host.counters.source_pending.get(), 0);
    // Known and fresh: nothing is told, up to the confirmation's age.
    for now in [0, 5000, 9999] {
        host.now_ms = now;
        host.receive(&[Arrived::frame(1, &frame)]);
        assert_eq!(learn(host), []);
    }
    host.now_ms = 10_000;
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(learn(host), [seen(1)]);
    host.now_ms = 19_999;
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(learn(host), [], "confirmed at 10 s");
    // A move is told at once, and the way back goes there.
    host.receive(&[Arrived::frame(2, &frame)]);
    assert_eq!(learn(host), [seen(2)]);
    host.send_whole(&Spec::new(1, 200, false, true, 10).whole());
    assert_eq!(host.wire.sent[0].destination, 2);
    // What the store says is not unlearned by a frame.
    host.receive(&[Arrived::frame(2, &Spec::new(17, 1, false, true, 10).whole())]);
    assert_eq!(learn(host), []);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 1)]);
    // Age brings it back to unknown.
    host.apply([Delta::Age { now: Millis(400_000), max_age: Millis(300_000) }]);
    host.send_whole(&Spec::new(1, 200, false, true, 10).whole());
    assert_eq!(host.dropped().len(), 2);
    assert_eq!(host.dropped()[0], (DropReason::OutDestinationUnknown, At::Port, 1));
}

#[test]
fn a_full_learn_queue_is_counted_and_the_frames_pass() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.learning = true);
    let count = skybridge::datapath::learn::CAPACITY + 5;
    let all: Vec<Arrived> = (0..count)
        .map(|i| {
            let mut frame = other(mac(1), mac(200), 50);
            frame[6..9].copy_from_slice(&[2, (i >> 8) as u8, i as u8]);
            Arrived::frame(1, &frame)
        })
        .collect();
    host.receive(&all);
    assert_eq!(host.counters.learn_overflow.get(), 5);
    assert_eq!(host.taps.written.len(), count);
}

#[test]
fn refused_segmentation_is_repeated_singly_and_remembered() {
    for refusal in [libc::EINVAL, libc::EIO] {
        let mut lab = Lab::new(2, Options::default());
        let spec = Spec::new(1, 17, false, true, 10_000);
        let (header, frame) = spec.partial(1000);
        let host = &mut lab.hosts[0];
        host.now_ms = 1000;
        host.wire.faults.push_back(refusal);
        host.send(&header, &frame);
        assert_eq!(host.counters.gso_fallbacks.get(), 1);
        assert!(host.wire.sent.iter().all(|sent| sent.segment == 0));
        host.send(&header, &frame);
        assert_eq!(host.counters.gso_fallbacks.get(), 1, "remembered");
        assert!(host.wire.sent.iter().all(|sent| sent.segment == 0));
        assert_eq!(host.counters.datagrams_out.get(), 20);
        host.now_ms = 62_000;
        host.send(&header, &frame);
        assert!(host.wire.sent.last().unwrap().segment != 0, "tried again after a minute");
        lab.carry(0, &mut Weather::fair(true));
        assert_eq!(received(&lab.hosts[1]), cut(&header, &frame).repeat(3));
        nothing_dropped(&lab);
    }
}

#[test]
fn a_path_that_shrinks_teaches_its_mtu() {
    for segments in [64, 1] {
        let mut lab = Lab::new(2, Options { segments, ..Options::default() });
        let host = &mut lab.hosts[0];
        let spec = Spec::new(1, 17, false, true, 20_000);
        let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
        host.wire.mtu = 1400;
        host.send(&header, &frame);
        // A train that is too long leaves nothing in the error queue: its datagrams are tried.
        let lost = host.dropped();
        assert_eq!(lost.len(), 1);
        assert_eq!((lost[0].0, lost[0].1), (DropReason::OutPathMtu, At::Worker));
        let dropped = lost[0].2 + host.counters.datagrams_out.get();
        assert_eq!(dropped, cut(&header, &frame).len() as u64, "each sent or dropped");
        assert!(host.counters.underlay_errors.get() > 0);
        host.wire.sent.clear();
        host.send(&header, &frame);
        let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
        assert_eq!(longest, Some(1400 - 28), "cut to what was learned");
        assert_eq!(host.dropped(), lost);
        assert!(matches!(
            host.send_whole(&Spec::new(1, 17, false, false, 1390).whole()),
            Outcome::Reply(_)
        ));
        // Forgotten when the kernel forgets.
        host.wire.mtu = 1500;
        host.now_ms = 601_000;
        host.outbound.paths.expire(host.now_ms);
        host.wire.sent.clear();
        host.send(&header, &frame);
        let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
        assert_eq!(longest, Some(1500 - 28));
    }
}

#[test]
fn a_train_too_long_for_the_path_is_fragmented_where_df_is_clear() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.df = false);
    host.wire.mtu = 1400;
    let spec = Spec::new(1, 17, false, true, 20_000);
    let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
    host.send(&header, &frame);
    assert!(host.wire.sent.iter().all(|sent| sent.segment == 0));
    lab.carry(0, &mut Weather::fair(false));
    assert_eq!(received(&lab.hosts[1]), cut(&header, &frame));
    nothing_dropped(&lab);
}

#[test]
fn a_forged_path_mtu_has_a_floor() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    host.outbound.paths.learn_mtu(lab::vtep_address(1), 60, 0);
    host.wire.sent.clear();
    let (header, frame) = Spec::new(1, 17, false, true, 20_000).partial(1398);
    host.send(&header, &frame);
    let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
    assert_eq!(longest, Some(552 - 28));
}

#[test]
fn a_pending_error_does_not_cost_the_next_datagram() {
    for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EMSGSIZE] {
        let mut lab = Lab::new(3, Options::default());
        let host = &mut lab.hosts[0];
        // Told by ICMP about an earlier datagram to another VTEP.
        host.wire.faults.push_back(errno);
        host.wire.errors.push((lab::vtep_address(2), 1400));
        host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
        assert_eq!(host.wire.sent.len(), 1, "errno {errno}");
        assert_eq!(host.counters.underlay_errors.get(), 1);
        assert_eq!(host.dropped(), []);
    }
}

#[test]
fn a_full_socket_is_waited_for_once() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    // Full, then room again: nothing is lost.
    host.wire.faults.push_back(libc::EAGAIN);
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    assert_eq!((host.wire.sent.len(), host.wire.waits), (1, 1));
    assert_eq!(host.dropped(), []);
    // Says that there is room but has none: one retry.
    host.wire.faults.extend([libc::ENOBUFS, libc::ENOBUFS]);
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    assert_eq!(host.dropped(), [(DropReason::OutUnderlayBusy, At::Worker, 1)]);
    // Stays full: one wait for the whole flush, and every datagram counted.
    host.wire.faults.extend([libc::EAGAIN; 400]);
    host.wire.wakes = false;
    host.wire.waits = 0;
    for i in 0..200 {
        let mut spec = Spec::new(1, 17, false, false, 10 + i);
        spec.port += i as u16;
        host.offer(&PLAIN, &spec.whole());
    }
    host.flush();
    assert_eq!(host.wire.waits, 1);
    assert_eq!(host.dropped(), [(DropReason::OutUnderlayBusy, At::Worker, 201)]);
    // The next flush waits anew.
    host.wire.faults.clear();
    host.wire.faults.push_back(libc::EAGAIN);
    host.wire.wakes = true;
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    assert_eq!((host.wire.sent.len(), host.wire.waits), (2, 2));
}

#[test]
fn interrupted_and_partly_taken_calls_go_on() {
    let mut lab = Lab::new(2, Options { segments: 1, ..Options::default() });
    let host = &mut lab.hosts[0];
    host.wire.faults.extend([libc::EINTR, 0, libc::EINTR, libc::EINTR]);
    host.wire.per_call = 3;
    for i in 0..200 {
        host.offer(&PLAIN, &Spec::new(1, 17, false, false, i).whole());
    }
    host.flush();
    let lens: Vec<usize> = host.wire.sent.iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(lens, (0..200).map(|i| 50 + i).collect::<Vec<_>>());
    assert_eq!(host.counters.datagrams_out.get(), 200);
    assert_eq!(host.counters.messages_out.get(), 200);
    assert_eq!(host.dropped(), []);
}

#[test]
fn one_refused_message_does_not_take_the_others_with_it() {
    let mut lab = Lab::new(3, Options { fan: 1, ..Options::default() });
    let host = &mut lab.hosts[0];
    host.wire.faults.extend([0, libc::EPERM]);
    host.wire.per_call = 1;
    for to in [17, 33, 17] {
        host.offer(&PLAIN, &Spec::new(1, to, false, false, usize::from(to)).whole());
    }
    host.offer(&PLAIN, &Spec::new(1, 33, false, false, 900).whole());
    host.flush();
    // Four lengths to two VTEPs: of the three messages the second, one datagram, is refused.
    let dropped: u64 = host.dropped().iter().map(|(.., count)| count).sum();
    assert_eq!(host.dropped()[0].0, DropReason::OutUnderlayError);
    assert_eq!(dropped + host.wire.datagrams().len() as u64, 4);
    assert_eq!(host.counters.datagrams_out.get(), host.wire.datagrams().len() as u64);
}

#[test]
fn a_vtep_that_leaves_takes_what_was_known_of_its_path() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    let spec = Spec::new(1, 17, false, true, 20_000);
    let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
    host.send(&header, &frame);
    host.outbound.paths.learn_mtu(lab::vtep_address(1), 1300, 0);
    host.apply([Delta::RemoveVtep { key: VtepKey(1) }]);
    host.send(&header, &frame);
    assert_eq!(host.dropped(), [(DropReason::OutVtepUnknown, At::Port, 1)]);
    // The slot comes back with another host behind it, over IPv6.
    host.set_vtep(1, |vtep| vtep.address = vtep_address_v6(5));
    host.wire.sent.clear();
    host.send(&header, &frame);
    assert!(host.wire.sent.iter().all(|sent| sent.flavor & 1 == 1));
    let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
    assert_eq!(longest, Some(1500 - 48));
    // And again the first one, without passing through a removal.
    host.set_vtep(1, |vtep| vtep.checksum = false);
    host.wire.sent.clear();
    host.send(&header, &frame);
    assert!(host.wire.sent.iter().all(|sent| sent.flavor & 5 == 0 && sent.segment == 0));
    let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
    assert_eq!(longest, Some(1500 - 28), "nothing of the old path is left");
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

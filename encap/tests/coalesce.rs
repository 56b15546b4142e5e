//! The rules of inbound coalescing, one test each.

mod support;

use encap::coalesce::{Coalescer, FLOWS_MAX, SEGMENTS_MAX, Seen, is_unfinished_datagram};
use encap::ethernet::{self, EtherType};
use encap::{Link, ipv4, tcp, vnet};
use support::{
    Arrival, Gather, MAC_A, MAC_B, Spec, Written, cut, payload, receive, receive_frames,
};

const MTU: u16 = 1450;

/// Segments of `sizes` bytes one after another.
fn stream(base: &Spec, sizes: &[usize]) -> Vec<Spec> {
    let mut next = base.clone();
    sizes
        .iter()
        .map(|&size| {
            let spec = Spec { payload: payload(size, next.sequence), ..next.clone() };
            next.sequence = next.sequence.wrapping_add(size as u32);
            next.ident = next.ident.wrapping_add(1);
            spec
        })
        .collect()
}

fn wire(specs: &[Spec]) -> Vec<Vec<u8>> {
    specs.iter().map(Spec::wire).collect()
}

/// How many frames each write holds.
fn counts(written: &[Written]) -> Vec<usize> {
    written.iter().map(|write| write.pieces.len()).collect()
}

fn counts_of(specs: &[Spec]) -> Vec<usize> {
    let (seen, written) = receive_frames(&wire(specs), MTU);
    assert!(seen.iter().all(|seen| *seen == Seen::Valid));
    counts(&written)
}

#[test]
fn segments_become_the_super_frame_that_a_sender_would_hand_over() {
    for base in Spec::variants(&Spec::tcp(0)) {
        let specs = stream(&base, &[700, 700, 700, 333]);
        let (seen, written) = receive_frames(&wire(&specs), MTU);
        assert_eq!(seen, [Seen::Valid; 4]);
        let whole = Spec {
            payload: specs.iter().flat_map(|spec| spec.payload.clone()).collect(),
            ..base.clone()
        };
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].vnet, whole.vnet(700));
        assert_eq!(written[0].frame, whole.partial());
        assert_eq!(written[0].pieces.len(), 4);
        assert!(written[0].rebuilt);
    }
}

#[test]
fn lone_frame_passes_unmodified_and_marked_valid() {
    for spec in Spec::variants(&Spec::tcp(100)) {
        let (seen, written) = receive_frames(&[spec.wire()], MTU);
        assert_eq!(seen, [Seen::Valid]);
        let valid = vnet::Header { flags: vnet::DATA_VALID, ..vnet::Header::NONE };
        assert_eq!((written[0].vnet, &written[0].frame), (valid, &spec.wire()));
        assert!(!written[0].rebuilt);
    }
}

#[test]
fn push_closes_and_is_kept() {
    let mut specs = stream(&Spec::tcp(0), &[500, 500, 500]);
    specs[1].flags |= tcp::PSH;
    let (_, written) = receive_frames(&wire(&specs), MTU);
    assert_eq!(counts(&written), [2, 1]);
    let header = tcp::Segment::parse(&written[0].frame[34..]).unwrap();
    assert_eq!(header.flags(), tcp::ACK | tcp::PSH);
    specs[0].flags |= tcp::PSH;
    assert_eq!(counts_of(&specs), [1, 1, 1]);
}

#[test]
fn shorter_payload_closes_and_longer_opens_anew() {
    for udp in [false, true] {
        let base = Spec { udp, ..Spec::tcp(0) };
        assert_eq!(counts_of(&stream(&base, &[500, 500, 499, 500, 500])), [3, 2]);
        assert_eq!(counts_of(&stream(&base, &[500, 501, 501])), [1, 2]);
    }
}

type Change = fn(&mut Spec);

#[test]
fn whatever_differs_in_the_headers_does_not_join() {
    let changes: [(&str, Change); 6] = [
        ("tos", |spec| spec.tos = 3),
        ("ttl", |spec| spec.ttl -= 1),
        ("don't fragment", |spec| spec.dont_fragment = false),
        ("acknowledgement", |spec| spec.acknowledgement += 1),
        ("window", |spec| spec.window += 1),
        ("options", |spec| spec.options[7] += 1),
    ];
    for v6 in [false, true] {
        for (name, change) in changes {
            if v6 && name == "don't fragment" {
                continue;
            }
            let mut specs = stream(&Spec { v6, ..Spec::tcp(0) }, &[500, 500, 500, 500]);
            specs[2..].iter_mut().for_each(change);
            assert_eq!(counts_of(&specs), [2, 2], "{name}");
        }
        let mut specs = stream(&Spec { v6, ..Spec::tcp(0) }, &[500, 500, 500, 500]);
        specs[2..].iter_mut().for_each(|spec| spec.sequence += 1);
        assert_eq!(counts_of(&specs), [2, 2], "sequence");
        specs[2..].iter_mut().for_each(|spec| spec.sequence -= 501);
        assert_eq!(counts_of(&specs), [2, 2], "retransmission");
        let mut frames = wire(&stream(&Spec { v6, ..Spec::tcp(0) }, &[500, 500]));
        frames[1][5] ^= 1;
        assert_eq!(counts(&receive_frames(&frames, MTU).1), [1, 1], "destination MAC");
    }
}

#[test]
fn other_flags_end_the_flow_and_pass_alone() {
    for other in [tcp::FIN, tcp::SYN, tcp::RST, tcp::URG, tcp::ECE, tcp::CWR, 0x100] {
        let mut specs = stream(&Spec::tcp(0), &[500, 500, 500, 500, 500]);
        specs[2].flags |= other;
        let (_, written) = receive_frames(&wire(&specs), MTU);
        assert_eq!(counts(&written), [2, 1, 2], "{other:#x}");
        assert_eq!(written[1].frame, specs[2].wire());
    }
    let mut no_ack = stream(&Spec::tcp(0), &[500, 500]);
    no_ack.iter_mut().for_each(|spec| spec.flags = 0);
    assert_eq!(counts_of(&no_ack), [1, 1]);
}

#[test]
fn pure_acknowledgement_ends_the_flow() {
    assert_eq!(counts_of(&stream(&Spec::tcp(0), &[500, 500, 0, 500])), [2, 1, 1]);
    assert_eq!(counts_of(&stream(&Spec::udp(0), &[500, 500, 0, 500])), [2, 1, 1]);
}

#[test]
fn identification_counts_only_where_fragments_are_allowed() {
    for (dont_fragment, expected) in [(true, vec![3]), (false, vec![1, 2])] {
        let mut specs = stream(&Spec { dont_fragment, ..Spec::tcp(0) }, &[500, 500, 500]);
        specs[0].ident = 0;
        assert_eq!(counts_of(&specs), expected);
    }
}

#[test]
fn limits_of_a_super_frame() {
    let many = vec![10; SEGMENTS_MAX + 3];
    assert_eq!(counts_of(&stream(&Spec::udp(0), &many)), [SEGMENTS_MAX, 3]);
    assert_eq!(counts_of(&stream(&Spec::tcp(0), &many)), [SEGMENTS_MAX, 3]);
    for v6 in [false, true] {
        let specs = stream(&Spec { v6, ..Spec::tcp(0) }, &[1398; 50]);
        let (_, written) = receive_frames(&wire(&specs), 1500);
        assert_eq!(counts(&written), [46, 4]);
        assert!(written[0].frame.len() - 14 <= 65_535);
    }
}

#[test]
fn bad_checksum_passes_unmodified_and_ends_the_flow() {
    for base in Spec::variants(&Spec::tcp(0)) {
        let specs = stream(&base, &[500, 500, 500]);
        let mut frames = wire(&specs);
        let last = frames[1].len() - 1;
        frames[1][last] ^= 1;
        let (seen, written) = receive_frames(&frames, MTU);
        assert_eq!(seen, [Seen::Valid, Seen::BadChecksum, Seen::Valid]);
        assert_eq!(counts(&written), [1, 1, 1]);
        assert_eq!((written[1].vnet, &written[1].frame), (vnet::Header::NONE, &frames[1]));
    }
}

#[test]
fn wrong_ipv4_header_checksum_is_not_healed() {
    let mut frames = wire(&stream(&Spec::tcp(0), &[500, 500, 500]));
    frames[1][14 + 10] ^= 1;
    let (seen, written) = receive_frames(&frames, MTU);
    assert_eq!(seen, [Seen::Valid; 3], "the transport's checksum is right");
    assert_eq!(counts(&written), [1, 1, 1]);
    assert_eq!(written[1].frame, frames[1]);
}

#[test]
fn partial_checksum_is_left_to_the_tap() {
    for spec in Spec::variants(&Spec::tcp(900)) {
        let (seen, written) = receive_frames(&[spec.partial(), spec.partial()], MTU);
        assert_eq!(seen, [Seen::Partial; 2]);
        for write in written {
            assert_eq!((write.vnet, write.frame), (spec.vnet(0), spec.partial()));
        }
    }
}

#[test]
fn kernel_super_frame_gets_its_type_whatever_its_checksum() {
    for spec in Spec::variants(&Spec::tcp(30_000)).into_iter().filter(|spec| !spec.udp) {
        let size = MTU - (spec.header_len() - spec.l3()) as u16;
        for (frame, expected) in [(spec.partial(), Seen::Partial), (spec.wire(), Seen::Valid)] {
            let (seen, written) = receive_frames(&[frame], MTU);
            assert_eq!(seen, [expected]);
            assert_eq!(written[0].vnet, spec.vnet(size));
            assert_eq!(written[0].frame, spec.partial());
        }
    }
}

#[test]
fn datagram_above_the_mtu_stays_one() {
    for spec in Spec::variants(&Spec::udp(3000)).into_iter().filter(|spec| spec.udp) {
        let (frame, unfinished) = (spec.wire(), spec.partial());
        let (seen, written) = receive_frames(&[frame.clone(), unfinished.clone()], MTU);
        assert_eq!(seen, [Seen::Valid, Seen::Partial]);
        assert_eq!((written[0].vnet.gso_type, &written[0].frame), (vnet::GSO_NONE, &frame));
        assert_eq!((written[1].vnet, &written[1].frame), (spec.vnet(0), &unfinished));
        assert!(is_unfinished_datagram(Link::Ethernet, &unfinished));
        assert!(!is_unfinished_datagram(Link::Ethernet, &frame));
    }
}

#[test]
fn congestion_window_reduced_marks_the_super_frame() {
    let spec = Spec { flags: tcp::ACK | tcp::CWR, ..Spec::tcp(30_000) };
    let (_, written) = receive_frames(&[spec.partial()], MTU);
    assert_eq!(written[0].vnet.gso_type, vnet::GSO_TCPV4 | vnet::GSO_ECN);
}

#[test]
fn kernel_udp_super_frame_keeps_its_given_size() {
    for v6 in [false, true] {
        let spec = Spec { v6, ..Spec::udp(1200) };
        for frame in [spec.partial(), spec.wire()] {
            // Below the MTU, yet three datagrams.
            let arrival = Arrival { frame, tag: 1, gso_size: 500 };
            let (_, written) = receive(&[arrival], MTU);
            assert_eq!(written[0].vnet, spec.vnet(500));
            assert_eq!(written[0].frame, spec.partial());
        }
        let arrival = Arrival { frame: spec.wire(), tag: 1, gso_size: 1200 };
        assert_eq!(receive(&[arrival], MTU).1[0].vnet.gso_type, vnet::GSO_NONE);
    }
}

#[test]
fn a_port_without_super_frames_of_udp_gets_datagrams() {
    for v6 in [false, true] {
        let spec = Spec { v6, ..Spec::udp(1200) };
        let tcp = Spec { v6, ..Spec::tcp(0) };
        let (joined, partial) = (spec.wire(), spec.partial());
        let alone = stream(&Spec { v6, ..Spec::udp(0) }, &[500, 500]);
        let tcp = wire(&stream(&tcp, &[500, 500]));
        let arena =
            [joined.clone(), partial, alone[0].wire(), alone[1].wire(), tcp.concat()].concat();
        let mut sink = Gather { arena: &arena, written: Vec::new() };
        let mut coalescer = Coalescer::new();
        coalescer.set_uso(false);
        let mut at = 0;
        let lengths = [joined.len(); 2].into_iter().chain([alone[0].wire().len(); 2]);
        for (len, gso_size) in lengths.chain(tcp.iter().map(Vec::len)).zip([500, 500, 0, 0, 0, 0]) {
            coalescer.push(&arena, at..at + len, 1, gso_size, MTU, &mut sink);
            at += len;
        }
        coalescer.flush(&arena, &mut sink);
        let types: Vec<_> = sink.written.iter().map(|write| write.vnet.gso_type).collect();
        assert_eq!(types[..8], [vnet::GSO_NONE; 8]);
        assert_eq!((types.len(), types[8] != vnet::GSO_NONE), (9, true), "TCP is joined");
        let expected = cut(&spec.vnet(500), &spec.partial(), 1500);
        for (write, expected) in sink.written.iter().zip(expected.iter().chain(&expected)) {
            assert_eq!(&cut(&write.vnet, &write.frame, 1500)[0], expected);
        }
        assert_eq!(
            (&sink.written[6].frame, &sink.written[7].frame),
            (&alone[0].wire(), &alone[1].wire())
        );
    }
}

#[test]
fn super_frame_ends_its_flow_and_is_not_joined() {
    let specs = stream(&Spec::tcp(0), &[500, 500, 3000, 500, 500]);
    let (_, written) = receive_frames(&wire(&specs), MTU);
    assert_eq!(counts(&written), [2, 1, 2]);
    assert_eq!(written[1].frame, specs[2].partial());
}

#[test]
fn udp_without_checksum_passes_in_order() {
    let specs = stream(&Spec::udp(0), &[500, 500, 500, 500]);
    let mut frames = wire(&specs);
    let at = specs[2].check_at();
    frames[2][at..at + 2].fill(0);
    let (seen, written) = receive_frames(&frames, MTU);
    assert_eq!(seen, [Seen::Valid, Seen::Valid, Seen::Other, Seen::Valid]);
    assert_eq!(counts(&written), [2, 1, 1]);
    assert_eq!((written[1].vnet, &written[1].frame), (vnet::Header::NONE, &frames[2]));
}

#[test]
fn padding_is_never_joined() {
    for udp in [false, true] {
        let base = Spec { udp, options: vec![], ..Spec::tcp(0) };
        let specs = stream(&base, &[4, 4, 3]);
        let mut frames = wire(&specs);
        frames.iter_mut().for_each(|frame| frame.resize(60, 0xee));
        let (_, written) = receive_frames(&frames, MTU);
        let whole = Spec {
            payload: specs.iter().flat_map(|spec| spec.payload.clone()).collect(),
            ..base.clone()
        };
        assert_eq!(written.len(), 1);
        assert_eq!((&written[0].frame, written[0].vnet), (&whole.partial(), whole.vnet(4)));
        let (seen, written) = receive_frames(&frames[..1], MTU);
        assert_eq!((seen, &written[0].frame), (vec![Seen::Valid], &frames[0]));
    }
}

#[test]
fn flows_are_open_side_by_side_and_flushed_oldest_first() {
    let flow = |port, tag| (Spec { source_port: port, ..Spec::tcp(0) }, tag);
    let flows = [flow(1, 1), flow(2, 1), flow(1, 2)];
    let mut arrivals = Vec::new();
    for i in 0..3 {
        for (base, tag) in &flows {
            let frame = stream(base, &[500; 3])[i].wire();
            arrivals.push(Arrival { frame, tag: *tag, gso_size: 0 });
        }
    }
    let (_, written) = receive(&arrivals, MTU);
    assert_eq!(counts(&written), [3, 3, 3]);
    assert_eq!(written.iter().map(|write| write.tag).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(written[1].frame[34..36], [0, 2]);
}

#[test]
fn oldest_flow_makes_room() {
    let flows = FLOWS_MAX + 5;
    let of = |port: usize| stream(&Spec { source_port: port as u16, ..Spec::udp(0) }, &[100; 2]);
    let mut frames: Vec<_> = (0..flows).map(|port| of(port)[0].wire()).collect();
    frames.extend((0..flows).rev().map(|port| of(port)[1].wire()));
    let (_, written) = receive_frames(&frames, MTU);
    assert_eq!(written.iter().map(|write| write.pieces.len()).sum::<usize>(), 2 * flows);
    let joined = written.iter().filter(|write| write.pieces.len() == 2).count();
    assert_eq!(joined, FLOWS_MAX);
    assert_eq!(written[0].frame, frames[0]);
}

#[test]
fn flows_that_close_early_leave_room() {
    // Far more flows than slots, each closed by its short end while one old flow stays open.
    let old = stream(&Spec { source_port: 9, ..Spec::udp(0) }, &[100; 2]);
    let mut frames = vec![old[0].wire()];
    for port in 100..100 + 40 {
        frames.extend(wire(&stream(&Spec { source_port: port, ..Spec::udp(0) }, &[100, 99])));
    }
    frames.push(old[1].wire());
    let (_, written) = receive_frames(&frames, MTU);
    assert_eq!(counts(&written), [2; 41]);
}

#[test]
fn fragments_stay_behind_the_flows_of_their_hosts() {
    let specs = stream(&Spec::udp(0), &[500, 500, 500]);
    let mut frames = wire(&specs);
    frames[1][14 + 6] = 0x20;
    let (seen, written) = receive_frames(&frames, MTU);
    assert_eq!(seen, [Seen::Valid, Seen::Other, Seen::Valid]);
    assert_eq!(written[1].frame, frames[1]);
}

#[test]
fn ipv6_extension_headers_are_judged_but_not_joined() {
    let spec = Spec { v6: true, ..Spec::tcp(500) };
    let with_options = |mut frame: Vec<u8>| {
        frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        frame[14 + 6] = 60;
        let len = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame
    };
    let frames = [with_options(spec.wire()), with_options(spec.partial())];
    let (seen, written) = receive_frames(&frames, MTU);
    assert_eq!(seen, [Seen::Valid, Seen::Partial]);
    assert_eq!(counts(&written), [1, 1]);
    assert_eq!((written[1].vnet.csum_start, &written[1].frame), (62, &frames[1]));
}

#[test]
fn other_frames_pass_at_once() {
    let mut arp = ethernet::emit(MAC_B, MAC_A, EtherType::ARP).to_vec();
    arp.resize(42, 1);
    let icmp = ipv4::Header {
        tos: 0,
        ident: 0,
        dont_fragment: false,
        ttl: 1,
        protocol: 1,
        source: [192, 0, 2, 1].into(),
        destination: [192, 0, 2, 2].into(),
    };
    let mut ping = ethernet::emit(MAC_B, MAC_A, EtherType::IPV4).to_vec();
    ping.extend(icmp.emit(8).unwrap());
    ping.extend([8; 8]);
    let frames = [stream(&Spec::tcp(0), &[9])[0].wire(), arp, ping, vec![1, 2, 3], vec![]];
    let (seen, written) = receive_frames(&frames, MTU);
    assert_eq!(seen[1..], [Seen::Other; 4]);
    for (write, frame) in written.iter().zip(&frames[1..]) {
        assert_eq!((write.vnet, &write.frame), (vnet::Header::NONE, frame));
    }
    assert_eq!(written[4].frame, frames[0]);
}

#[test]
fn range_outside_the_arena_is_left_out() {
    let mut sink = Gather { arena: &[], written: vec![] };
    let mut coalescer = Coalescer::new();
    assert_eq!(coalescer.push(&[], 3..9, 1, 0, MTU, &mut sink), Seen::Other);
    assert!(sink.written.is_empty());
}

#[test]
fn what_was_cut_outbound_is_whole_again_inbound() {
    for spec in Spec::variants(&Spec { flags: tcp::ACK | tcp::PSH, ..Spec::tcp(40_001) }) {
        let frames = cut(&spec.vnet(1397), &spec.partial(), 1500);
        let (_, written) = receive_frames(&frames, 1500);
        assert_eq!(written.len(), 1);
        assert_eq!((written[0].vnet, &written[0].frame), (spec.vnet(1397), &spec.partial()));
    }
}

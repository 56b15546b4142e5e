//! The rules of outbound segmentation, one test each.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

mod support;

use encap::segment::{self, Error, Malformed, Plan};
use encap::{Link, ipv4, tcp, vnet};
use support::{Spec, cut, plain_sum};

fn refused(vnet: &vnet::Header, frame: &[u8], max_frame: usize) -> Error {
    let mut copy = frame.to_vec();
    let error = segment::plan(vnet, &mut copy, max_frame).unwrap_err();
    assert_eq!(copy, frame, "a refused frame is unchanged");
    error
}

/// The frames that a sender without offloads would have made.
fn expected(spec: &Spec, size: usize) -> Vec<Vec<u8>> {
    let chunks: Vec<&[u8]> = spec.payload.chunks(size).collect();
    let last = chunks.len() - 1;
    chunks
        .iter()
        .enumerate()
        .map(|(i, chunk)| {
            let mut flags = spec.flags;
            if i != 0 {
                flags &= !tcp::CWR;
            }
            if i != last {
                flags &= !(tcp::FIN | tcp::PSH);
            }
            let segment = Spec {
                ident: spec.ident.wrapping_add(i as u16),
                sequence: spec.sequence.wrapping_add((i * size) as u32),
                flags,
                payload: chunk.to_vec(),
                ..spec.clone()
            };
            segment.wire()
        })
        .collect()
}

#[test]
fn super_frames_become_what_a_sender_without_offloads_sends() {
    let base = Spec {
        ident: 0xfffe,
        tos: 2,
        flags: tcp::ACK | tcp::PSH | tcp::FIN | tcp::CWR,
        ..Spec::tcp(10_007)
    };
    for spec in Spec::variants(&base) {
        for size in [1398, 1399, 1000, 1] {
            let mut vnet = spec.vnet(size);
            if !spec.udp {
                vnet.gso_type |= vnet::GSO_ECN;
            }
            let frames = cut(&vnet, &spec.partial(), 65_535);
            assert_eq!(frames, expected(&spec, usize::from(size)), "{spec:?} {size}");
        }
    }
}

#[test]
fn tcp_is_cut_to_the_path() {
    for spec in Spec::variants(&Spec::tcp(6000)).into_iter().filter(|spec| !spec.udp) {
        let frames = cut(&spec.vnet(1400), &spec.partial(), 800);
        assert_eq!(frames, expected(&spec, 800 - spec.header_len()));
        assert!(frames.iter().all(|frame| frame.len() <= 800));
    }
}

#[test]
fn udp_datagrams_are_not_cut_to_the_path() {
    let spec = Spec::udp(3000);
    let fits = spec.header_len() + 1000;
    assert_eq!(cut(&spec.vnet(1000), &spec.partial(), fits).len(), 3);
    assert_eq!(refused(&spec.vnet(1000), &spec.partial(), fits - 1), Error::TooBig);
    let empty = Spec::udp(0);
    let fits = empty.header_len();
    assert_eq!(cut(&empty.vnet(1000), &empty.partial(), fits), [empty.wire()]);
    assert_eq!(refused(&empty.vnet(1000), &empty.partial(), fits - 1), Error::TooBig);
}

#[test]
fn path_without_room_for_a_byte_is_too_small() {
    let spec = Spec::tcp(3000);
    let error = refused(&spec.vnet(1000), &spec.partial(), spec.header_len());
    assert_eq!(error, Error::TooBig);
    assert_eq!(cut(&spec.vnet(1000), &spec.partial(), spec.header_len() + 1).len(), 3000);
}

#[test]
fn one_remaining_segment_still_gets_its_checksum() {
    for spec in Spec::variants(&Spec::tcp(900)) {
        let frames = cut(&spec.vnet(1400), &spec.partial(), 65_535);
        assert_eq!(frames, [spec.wire()]);
    }
    let empty = Spec::tcp(0);
    assert_eq!(cut(&empty.vnet(1400), &empty.partial(), 65_535), [empty.wire()]);
}

#[test]
fn ordinary_frame_is_finished_in_place() {
    for base in [Spec::tcp(999), Spec::tcp(0)] {
        for spec in Spec::variants(&base) {
            assert_eq!(cut(&spec.vnet(0), &spec.partial(), 1500), [spec.wire()]);
            // Without the flag it is complete already.
            assert_eq!(cut(&vnet::Header::NONE, &spec.wire(), 1500), [spec.wire()]);
        }
    }
}

#[test]
fn udp_checksum_of_zero_is_sent_as_all_ones() {
    let mut spec = Spec::udp(4);
    spec.payload = vec![0; 4];
    // Let the payload complete the sum to all ones, so that its complement is zero.
    let rest = !plain_sum(&[&spec.partial()[spec.l4()..]]);
    spec.payload[..2].copy_from_slice(&rest.to_be_bytes());
    let frame = &cut(&spec.vnet(0), &spec.partial(), 1500)[0];
    assert_eq!(frame[spec.check_at()..spec.check_at() + 2], [0xff, 0xff]);
    let frame = &cut(&spec.vnet(4), &spec.partial(), 1500)[0];
    assert_eq!(frame[spec.check_at()..spec.check_at() + 2], [0xff, 0xff]);
}

#[test]
fn ordinary_frame_larger_than_the_path_is_too_big() {
    let spec = Spec::tcp(1400);
    let frame = spec.partial();
    assert_eq!(refused(&spec.vnet(0), &frame, frame.len() - 1), Error::TooBig);
    assert_eq!(cut(&spec.vnet(0), &frame, frame.len()).len(), 1);
}

#[test]
fn checksum_range_must_lie_in_the_frame() {
    let spec = Spec::tcp(100);
    let frame = spec.partial();
    let good = spec.vnet(0);
    for (csum_start, csum_offset) in
        [(0, 16), (13, 16), (34, frame.len() as u16 - 35), (u16::MAX, 16), (34, u16::MAX)]
    {
        let vnet = vnet::Header { csum_start, csum_offset, ..good };
        assert_eq!(refused(&vnet, &frame, 1500), Error::Malformed(Malformed::Checksum));
    }
}

/// Addresses and what neighbor discovery claims are checked before the checksum is finished.
#[test]
fn no_field_that_was_checked_is_written_as_a_checksum() {
    for spec in Spec::variants(&Spec::tcp(100)) {
        let (frame, l3, l4) = (spec.partial(), spec.l3(), spec.l4());
        for csum_start in (0..l4).step_by(2) {
            for at in (csum_start..l4 + 20).step_by(2) {
                let [csum_start, csum_offset] = [csum_start, at - csum_start].map(|it| it as u16);
                let vnet = vnet::Header { csum_start, csum_offset, ..spec.vnet(0) };
                let error = refused(&vnet, &frame, 1500);
                assert_eq!(error, Error::Malformed(Malformed::Checksum), "{vnet:?}");
                let (packet, unlinked) = (&frame[l3..], support::unlinked(&vnet, l3));
                if usize::from(csum_start) >= l3 {
                    let plan = segment::plan_on(Link::None, &unlinked, &mut packet.to_vec(), 1500);
                    assert_eq!(plan.err(), Some(error), "{unlinked:?}");
                }
            }
        }
        // Of a tunnel in the sandbox it lies deeper, as may be.
        let inner = vnet::Header { csum_start: l4 as u16 + 40, ..spec.vnet(0) };
        assert_eq!(cut(&inner, &frame, 1500).len(), 1);
    }
    let spec = Spec { v6: true, ..Spec::tcp(100) };
    let mut discovery = spec.partial();
    discovery[spec.l3() + 6] = 58;
    for (further, csum_offset, good) in [(0, 2, true), (0, 8, false), (0, 22, false), (8, 2, false)]
    {
        let csum_start = spec.l4() as u16 + further;
        let vnet = vnet::Header { csum_start, csum_offset, ..spec.vnet(0) };
        let plan = segment::plan(&vnet, &mut discovery.clone(), 1500);
        assert_eq!(plan.is_ok(), good, "{vnet:?}");
    }
    // What is no whole IP packet has none.
    let spec = Spec::tcp(100);
    let mut arp = spec.partial();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut fragment = spec.partial();
    fragment[14 + 7] = 1;
    for frame in [arp, fragment] {
        assert_eq!(refused(&spec.vnet(0), &frame, 1500), Error::Malformed(Malformed::Checksum));
    }
}

#[test]
fn super_frame_checksum_must_be_the_transports() {
    let spec = Spec::tcp(4000);
    for (csum_start, csum_offset) in [(spec.l4() as u16 + 2, 16), (spec.l4() as u16, 6)] {
        let vnet = vnet::Header { csum_start, csum_offset, ..spec.vnet(1000) };
        let error = refused(&vnet, &spec.partial(), 1500);
        assert_eq!(error, Error::Malformed(Malformed::Checksum));
    }
}

#[test]
fn type_must_be_known_and_match_the_headers() {
    let spec = Spec::tcp(4000);
    let typed =
        |gso_type| refused(&vnet::Header { gso_type, ..spec.vnet(1000) }, &spec.partial(), 1500);
    for unknown in [2, vnet::GSO_UDP, 6, 0x20 | vnet::GSO_TCPV4] {
        assert_eq!(typed(unknown), Error::Malformed(Malformed::GsoType));
    }
    for other in [vnet::GSO_TCPV6, vnet::GSO_UDP_L4] {
        assert_eq!(typed(other), Error::Malformed(Malformed::Headers));
    }
    let no_size = vnet::Header { gso_size: 0, ..spec.vnet(1000) };
    let error = refused(&no_size, &spec.partial(), 1500);
    assert_eq!(error, Error::Malformed(Malformed::SegmentSize));
}

#[test]
fn what_no_tcp_sends_as_a_super_frame_is_refused() {
    for flags in [tcp::SYN, tcp::ACK | tcp::RST] {
        let spec = Spec { flags, ..Spec::tcp(4000) };
        let error = refused(&spec.vnet(1000), &spec.partial(), 1500);
        assert_eq!(error, Error::Malformed(Malformed::Headers));
    }
    let spec = Spec::tcp(4000);
    let mut fragment = spec.partial();
    fragment[14 + 6] = 0x20;
    let error = refused(&spec.vnet(1000), &fragment, 1500);
    assert_eq!(error, Error::Malformed(Malformed::Headers));
    let cut_short = &spec.partial()[..3000];
    let error = refused(&spec.vnet(1000), cut_short, 1500);
    assert_eq!(error, Error::Malformed(Malformed::Headers));
}

#[test]
fn header_length_of_the_hint_does_not_matter() {
    let spec = Spec::tcp(4000);
    let lying = vnet::Header { hdr_len: 9, ..spec.vnet(1000) };
    assert_eq!(cut(&lying, &spec.partial(), 1500), cut(&spec.vnet(1000), &spec.partial(), 1500));
}

#[test]
fn padding_is_not_payload() {
    let spec = Spec::tcp(2500);
    let mut padded = spec.partial();
    padded.extend([0xee; 9]);
    assert_eq!(cut(&spec.vnet(1000), &padded, 1500), expected(&spec, 1000));
}

#[test]
fn ipv4_options_are_in_every_segment() {
    let spec = Spec::tcp(2500);
    let mut frame = spec.partial();
    let l3 = spec.l3();
    frame.splice(l3 + 20..l3 + 20, [1, 1, 1, 0]);
    frame[l3] = 0x46;
    let total = (frame.len() - l3) as u16;
    frame[l3 + 2..l3 + 4].copy_from_slice(&total.to_be_bytes());
    let vnet = vnet::Header { csum_start: spec.l4() as u16 + 4, ..spec.vnet(1000) };
    let frames = cut(&vnet, &frame, 1500);
    assert_eq!(frames.len(), 3);
    for (frame, plain) in frames.iter().zip(expected(&spec, 1000)) {
        let packet = ipv4::Packet::parse(&frame[l3..]).unwrap();
        assert!(packet.checksum_verifies());
        assert_eq!(frame[l3 + 20..l3 + 24], [1, 1, 1, 0]);
        assert_eq!(frame[l3 + 24..], plain[l3 + 20..]);
    }
}

#[test]
fn ipv6_extension_headers_are_in_every_segment() {
    // A routing header with another final destination: only the partial sum knows it.
    let spec = Spec { v6: true, ..Spec::tcp(2500) };
    let mut frame = spec.partial();
    let l3 = spec.l3();
    let routing = [6, 0, 4, 0, 0, 0, 0, 0];
    frame.splice(l3 + 40..l3 + 40, routing);
    frame[l3 + 6] = 43;
    frame[l3 + 39] = 0x77;
    let payload_len = (frame.len() - l3 - 40) as u16;
    frame[l3 + 4..l3 + 6].copy_from_slice(&payload_len.to_be_bytes());
    let vnet = vnet::Header { csum_start: spec.l4() as u16 + 8, ..spec.vnet(1000) };
    let frames = cut(&vnet, &frame, 1500);
    assert_eq!(frames.len(), 3);
    for (frame, plain) in frames.iter().zip(expected(&spec, 1000)) {
        assert_eq!(frame[l3 + 40..l3 + 48], routing);
        assert_eq!(frame[l3 + 48..], plain[l3 + 40..], "checksums for the final destination");
    }
}

#[test]
fn same_super_frame_can_be_planned_for_several_paths() {
    let spec = Spec::tcp(20_000);
    let mut frame = spec.partial();
    for max_frame in [1464, 9000, 65_535] {
        let plan = segment::plan(&spec.vnet(1398), &mut frame, max_frame);
        assert!(matches!(plan, Ok(Plan::Segments(segments)) if segments.count() == 15));
    }
    assert_eq!(frame, spec.partial());
}

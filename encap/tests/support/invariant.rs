//! What must hold for any bytes. Each function is the body of a fuzz target: it takes bytes as they
//! come, asserts, and returns. Needs nothing but `encap`, so that a fuzz crate can include the file.

#![allow(dead_code, reason = "every user takes a part")]

use std::ops::Range;

use encap::coalesce::{Coalescer, FLOWS_MAX, SEGMENTS_MAX, Seen, Sink};
use encap::ethernet::EtherType;
use encap::segment::{self, Plan};
use encap::{
    Link, MacAddr, arp, checksum, ecn, ethernet, flow, icmpv4, icmpv6, ipip, ipudp, ipv4, ipv6,
    ndp, tcp, udp, vlan, vnet, vxlan,
};

const OWNER: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 0xff]);
const UNTOUCHED: u8 = 0xa5;

/// `bytes`: GRO size (two bytes), then the datagram.
pub(crate) fn vxlan_train(bytes: &[u8]) {
    let Some((gro_size, datagram)) = bytes.split_first_chunk::<2>() else { return };
    let gro_size = usize::from(u16::from_be_bytes(*gro_size));
    let train = vxlan::train(datagram, gro_size);
    let (least, most) = train.size_hint();
    let mut count = 0;
    let mut next = 0;
    for element in train {
        count += 1;
        assert!(element.frame.start <= element.frame.end && element.frame.end <= datagram.len());
        assert!(element.frame.start >= next, "elements do not overlap");
        next = element.frame.end;
        match element.vni {
            Ok(vni) => {
                assert!(element.frame.start >= vxlan::HEADER_LEN);
                let header = &datagram[element.frame.start - vxlan::HEADER_LEN..];
                assert_eq!(vxlan::parse(header), Ok(vni));
                assert_eq!(vxlan::emit(vni)[4..7], header[4..7]);
            }
            Err(vxlan::Error::Truncated) => assert!(element.frame.is_empty()),
            Err(vxlan::Error::VniFlagClear) => {}
        }
        if element.gso_size != 0 {
            assert_eq!(usize::from(element.gso_size), gro_size);
            assert_eq!(element.frame, vxlan::HEADER_LEN..datagram.len());
        }
    }
    assert!(count >= 1 && count >= least && most.is_some_and(|most| count <= most));
    assert_eq!(next, datagram.len(), "elements cover the datagram");
}

/// `bytes`: an Ethernet frame.
pub(crate) fn frame(bytes: &[u8]) {
    let hash = flow::hash(bytes);
    if let Some(view) = ethernet::Frame::parse(bytes) {
        let header = ethernet::emit(view.destination(), view.source(), view.ether_type());
        assert_eq!(header, bytes[..14]);
    }
    if let Some((_, offset)) = vlan::payload(bytes) {
        network(&bytes[offset..]);
    }
    network(bytes);
    congestion(bytes, hash);
    for mtu in [0, 1280, u16::MAX] {
        answer(bytes, |out| icmpv4::fragmentation_needed(bytes, mtu, out));
        answer(bytes, |out| icmpv6::packet_too_big(bytes, mtu, out));
    }
}

fn network(bytes: &[u8]) {
    if let Some(packet) = ipv4::Packet::parse(bytes) {
        assert!(packet.header_len() + packet.payload().len() == packet.total_len());
        assert!(packet.total_len() <= bytes.len());
        let _ = (packet.tos(), packet.ident(), packet.ttl(), packet.checksum_verifies());
        transport(packet.payload());
    }
    if let Some(packet) = ipv6::Packet::parse(bytes) {
        assert!(ipv6::HEADER_LEN + packet.payload().len() == packet.total_len());
        assert!(packet.flow_label() < 1 << 20);
        if let Some(found) = packet.extensions() {
            transport(&packet.payload()[found.len..]);
        }
    }
}

fn transport(bytes: &[u8]) {
    if let Some(segment) = tcp::Segment::parse(bytes) {
        let options = segment.options().len();
        assert_eq!(tcp::HEADER_LEN + options, segment.header_len());
        assert_eq!(segment.header_len() + segment.payload().len(), bytes.len());
    }
    if let Some(datagram) = udp::Datagram::parse(bytes) {
        assert_eq!(udp::HEADER_LEN + datagram.payload().len(), datagram.length());
    }
    if let Some(message) = icmpv4::Message::parse(bytes) {
        let _ = (message.kind(), message.mtu(), message.is_error(), message.checksum_verifies());
    }
    if let Some(message) = icmpv6::Message::parse(bytes) {
        let _ = (message.kind(), message.mtu(), message.is_error(), message.payload());
    }
}

fn congestion(bytes: &[u8], hash: u32) {
    let Some(tos) = ecn::tos_of(bytes) else {
        let mut copy = bytes.to_vec();
        ecn::set_ecn(&mut copy, ecn::CE);
        assert_eq!(copy, bytes, "no bits, no change");
        return;
    };
    let verified =
        |frame: &[u8]| Some(ipv4::Packet::parse(&frame[ip_offset(frame)?..])?.checksum_verifies());
    for bits in [ecn::NOT_ECT, ecn::ECT_0, ecn::ECT_1, ecn::CE] {
        let mut copy = bytes.to_vec();
        ecn::set_ecn(&mut copy, bits);
        // A header cut short shows its bits but is not written to.
        if copy != bytes {
            assert_eq!(ecn::tos_of(&copy), Some((tos & !ecn::MASK) | bits));
        }
        assert_eq!(flow::hash(&copy), hash, "bits do not move a flow");
        if verified(bytes) == Some(true) {
            assert_eq!(verified(&copy), Some(true));
            ecn::set_ecn(&mut copy, tos);
            assert_eq!(copy, bytes);
        }
        if let ecn::Decapsulated::Set(new) = ecn::decapsulate(tos, bits) {
            assert!(new <= ecn::MASK);
        }
    }
}

/// An answer goes back to the sender and touches nothing behind its end.
fn answer(asked: &[u8], build: impl Fn(&mut [u8]) -> Option<usize>) {
    let mut out = [UNTOUCHED; 1400];
    if let Some(len) = build(&mut out) {
        assert!(len <= out.len() && out[len..].iter().all(|byte| *byte == UNTOUCHED));
        let (asked, told) = (ethernet::Frame::parse(asked), ethernet::Frame::parse(&out[..len]));
        let (Some(asked), Some(told)) = (asked, told) else { panic!("no frame") };
        assert_eq!(told.destination(), asked.source());
        assert_eq!(told.ether_type(), asked.ether_type());
        network(&out[..len]);
        for short in [0, len / 2, len - 1] {
            assert_eq!(build(&mut out[..short]), None, "too small a buffer is refused");
        }
    }
}

/// `bytes`: an Ethernet frame.
pub(crate) fn arp_ndp(bytes: &[u8]) {
    let mut out = [UNTOUCHED; 128];
    match (arp::question(bytes), arp::reply(bytes, OWNER, &mut out)) {
        (None, None) => {}
        (Some(asked), Some(len)) => {
            let Some(told) = arp::Packet::of_frame(&out[..len]) else { panic!("no reply") };
            assert_eq!(told.operation(), arp::REPLY);
            assert_eq!((told.sender(), told.sender_mac()), (asked.target, OWNER));
            assert_eq!((told.target(), told.target_mac()), (asked.sender, asked.sender_mac));
            assert!(out[len..].iter().all(|byte| *byte == UNTOUCHED));
        }
        other => panic!("question and reply disagree: {other:?}"),
    }
    let mut out = [UNTOUCHED; 128];
    match (ndp::question(bytes), ndp::reply(bytes, OWNER, &mut out)) {
        (None, None) => {}
        (Some(asked), Some(len)) => {
            let Some(told) = ndp::advertised(&out[..len]) else { panic!("no advertisement") };
            assert_eq!((told.target, told.target_link_layer), (asked.target, Some(OWNER)));
            assert_eq!(told.solicited, !asked.is_probe());
            assert!(out[len..].iter().all(|byte| *byte == UNTOUCHED));
        }
        other => panic!("question and reply disagree: {other:?}"),
    }
    if let Some(told) = ndp::advertised(bytes) {
        assert!(!told.target.is_multicast());
    }
}

/// `bytes` as a packet without a link layer: what is said of it is what is said of the same packet in
/// a frame.
pub(crate) fn packet(bytes: &[u8]) {
    for size in [0, 1, 40, 576, 1480] {
        let mut end = 0;
        for element in ipudp::train(bytes, size) {
            assert_eq!(element.packet.start, end, "nothing is left out");
            end = element.packet.end;
            assert!(element.gso_size == 0 || usize::from(element.gso_size) == size);
        }
        assert_eq!(end, bytes.len());
    }
    if let Some(outer) = ipip::outer(bytes) {
        assert!(outer.inner.start >= 20 && outer.inner.end <= bytes.len());
    }
    let Some(protocol) = ipip::protocol_of(bytes) else { return };
    let ether_type = if protocol == ipip::IPV4 { EtherType::IPV4 } else { EtherType::IPV6 };
    let mut frame = ethernet::emit(OWNER, OWNER, ether_type).to_vec();
    frame.extend(bytes);
    assert_eq!(ecn::tos_on(Link::None, bytes), ecn::tos_of(&frame));
    if ipv4::Packet::parse(bytes).is_some() || ipv6::Packet::parse(bytes).is_some() {
        assert_eq!(flow::hash_packet(bytes), flow::hash(&frame));
    }
    let mut marked = bytes.to_vec();
    ecn::set_ecn_on(Link::None, &mut marked, ecn::CE);
    ecn::set_ecn(&mut frame, ecn::CE);
    assert_eq!(marked, frame[14..]);
    // The answers are compared before the frame was marked, so that they quote the same.
    frame[14..].copy_from_slice(bytes);
    type Answer = fn(Link, &[u8], u16, &mut [u8]) -> Option<usize>;
    let answers: [Answer; 2] = [icmpv4::fragmentation_needed_on, icmpv6::packet_too_big_on];
    for answer in answers {
        let (mut out, mut framed) = ([UNTOUCHED; 1400], [UNTOUCHED; 1400]);
        let len = answer(Link::None, bytes, 1400, &mut out);
        assert_eq!(len.map(|len| len + 14), answer(Link::Ethernet, &frame, 1400, &mut framed));
        if let Some(len) = len {
            assert_eq!(out[..len], framed[14..len + 14]);
        }
    }
}

/// `bytes`: virtio header (12), largest frame (two bytes), then the frame.
pub(crate) fn vnet_segment(bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_first_chunk::<{ vnet::LEN }>() else { return };
    let Some((max_frame, original)) = rest.split_first_chunk::<2>() else { return };
    let header = vnet::Header::parse(header);
    let max_frame = usize::from(u16::from_be_bytes(*max_frame));
    assert_eq!(vnet::Header::parse(&header.emit()), header);
    let mut frame = original.to_vec();
    match segment::plan(&header, &mut frame, max_frame) {
        Err(_) => assert_eq!(frame, original, "a refused frame is unchanged"),
        Ok(Plan::Single) => {
            assert!(frame.len() <= max_frame && frame.len() == original.len());
            let start = usize::from(header.csum_start);
            let at = start + usize::from(header.csum_offset);
            if header.flags & vnet::NEEDS_CSUM == 0 {
                assert_eq!(frame, original);
            } else {
                assert_eq!(
                    (&frame[..at], &frame[at + 2..]),
                    (&original[..at], &original[at + 2..])
                );
            }
        }
        Ok(Plan::Segments(segments)) => {
            assert_eq!(frame, original, "a super-frame is unchanged");
            segments_hold(&segments, &frame, max_frame);
        }
    }
}

fn segments_hold(segments: &segment::Segments, frame: &[u8], max_frame: usize) {
    let count = segments.count();
    let header_len = segments.header_len();
    assert!(count >= 1 && header_len <= segment::HEADER_LEN_MAX);
    let mut next = header_len;
    for i in 0..count {
        // Thousands of tiny segments are all alike; the first and the last ones are looked at.
        if i > 40 && i + 3 < count {
            continue;
        }
        let len = segments.frame_len(i);
        let mut out = vec![UNTOUCHED; len + 4];
        assert_eq!(segments.write(i, frame, &mut out), len);
        assert_eq!(out[len..], [UNTOUCHED; 4]);
        assert_eq!(out[..14], frame[..14]);
        assert!(len <= max_frame);
        assert!(len - header_len <= segments.size());
        if i <= 40 {
            let end = next + len - header_len;
            assert_eq!(out[header_len..len], frame[next..end], "payload goes on where it ended");
            next = end;
        }
        out.truncate(len);
        transport_verifies(&out);
        if i == 0 {
            out.fill(UNTOUCHED);
            assert_eq!(segments.write(i, frame, &mut out[..len - 1]), 0);
            assert!(out.iter().all(|byte| *byte == UNTOUCHED));
        }
    }
    assert_eq!(segments.write(count, frame, &mut vec![0; frame.len()]), 0);
}

/// Where the IP header is, if the frame's type and version say that there is one.
fn ip_offset(frame: &[u8]) -> Option<usize> {
    let (ether_type, l3) = vlan::payload(frame)?;
    match (ether_type, frame.get(l3)? >> 4) {
        (EtherType::IPV4, 4) | (EtherType::IPV6, 6) => Some(l3),
        _ => None,
    }
}

/// Whether a plain TCP or UDP frame's IPv4 header and transport checksums are right, by a sum over
/// the frame's own fields; `None` for what is not one.
fn verifies(frame: &[u8]) -> Option<bool> {
    let packet = &frame[ip_offset(frame)?..];
    let (addresses, protocol, payload) = if let Some(packet) = ipv4::Packet::parse(packet) {
        if packet.is_fragment() {
            return None;
        }
        if !packet.checksum_verifies() {
            return Some(false);
        }
        let addresses = [packet.source().octets(), packet.destination().octets()].concat();
        (addresses, packet.protocol(), packet.payload())
    } else {
        let packet = ipv6::Packet::parse(packet)?;
        if packet.extensions()?.len != 0 {
            return None;
        }
        let addresses = [packet.source().octets(), packet.destination().octets()].concat();
        (addresses, packet.next_header(), packet.payload())
    };
    let sum = checksum::Sum::of(&addresses)
        .u32(u32::try_from(payload.len()).ok()?)
        .u16(u16::from(protocol));
    Some(sum.bytes(payload).verifies())
}

fn transport_verifies(frame: &[u8]) {
    assert_ne!(verifies(frame), Some(false), "a segment's checksums are right");
}

/// One pushed frame of [`coalesce`].
struct Pushed {
    range: Range<usize>,
    tag: u32,
    gso_size: u16,
    seen: Seen,
    given: bool,
}

/// One call of the sink.
struct Given {
    tag: u32,
    vnet: vnet::Header,
    headers: Vec<u8>,
    pieces: Vec<Range<usize>>,
}

struct Recorder<'a> {
    arena: &'a [u8],
    given: Vec<Given>,
}

impl Sink for Recorder<'_> {
    fn frame(&mut self, tag: u32, vnet: &vnet::Header, headers: &[u8], pieces: &[Range<usize>]) {
        assert!(!pieces.is_empty() && pieces.len() <= SEGMENTS_MAX);
        assert!(pieces.iter().all(|piece| self.arena.get(piece.clone()).is_some()));
        let (vnet, headers, pieces) = (*vnet, headers.to_vec(), pieces.to_vec());
        self.given.push(Given { tag, vnet, headers, pieces });
    }
}

/// `bytes`: MTU (two bytes), then frames, each after length (two bytes), tag (one) and segment size
/// (one, times eight; mostly to be zero).
pub(crate) fn coalesce(bytes: &[u8]) {
    let Some((mtu, arena)) = bytes.split_first_chunk::<2>() else { return };
    let mtu = u16::from_be_bytes(*mtu);
    let mut coalescer = Coalescer::new();
    let mut sink = Recorder { arena, given: Vec::new() };
    let mut pushed = Vec::new();
    let mut at = 0;
    while let Some([a, b, tag, size]) = arena.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let start = at + 4;
        let end = (start + usize::from(u16::from_be_bytes([*a, *b]))).min(arena.len());
        let (range, tag, gso_size) = (start..end, u32::from(*tag), u16::from(*size) * 8);
        let seen = coalescer.push(arena, range.clone(), tag, gso_size, mtu, &mut sink);
        pushed.push(Pushed { range, tag, gso_size, seen, given: false });
        assert!(pushed.len() - frames_in(&sink) <= FLOWS_MAX * SEGMENTS_MAX);
        at = end;
    }
    coalescer.flush(arena, &mut sink);
    let mut last = std::collections::HashMap::new();
    for Given { tag, vnet, headers, pieces } in &sink.given {
        let members: Vec<usize> = pieces.iter().map(|piece| owner(&pushed, piece)).collect();
        for &member in &members {
            let frame = &mut pushed[member];
            assert!(!frame.given, "a frame is given once");
            frame.given = true;
            assert_eq!(frame.tag, *tag);
            if let Some(key) = flow_key(&arena[frame.range.clone()]) {
                let before = last.insert((*tag, key), member);
                assert!(
                    before.is_none_or(|before| before < member),
                    "order within a flow: frame {member} after {before:?}"
                );
            }
        }
        given_holds(arena, &pushed, &members, vnet, headers, pieces, mtu);
    }
    assert!(pushed.iter().all(|frame| frame.given), "no frame is lost");
}

fn frames_in(sink: &Recorder<'_>) -> usize {
    sink.given.iter().map(|given| given.pieces.len()).sum()
}

/// The frame that a piece lies in. An empty frame's piece is found by its equal range.
fn owner(pushed: &[Pushed], piece: &Range<usize>) -> usize {
    let inside = |frame: &Pushed| {
        frame.range == *piece
            || (!piece.is_empty()
                && frame.range.start <= piece.start
                && piece.end <= frame.range.end)
    };
    pushed.iter().position(inside).unwrap_or_else(|| panic!("piece {piece:?} of no frame"))
}

/// Addresses, ports and protocol of what can be ordered by them.
fn flow_key(frame: &[u8]) -> Option<(Vec<u8>, u8, [u8; 4])> {
    let bytes = &frame[ip_offset(frame)?..];
    let (addresses, protocol, payload) = if let Some(packet) = ipv4::Packet::parse(bytes) {
        if packet.is_fragment() {
            return None;
        }
        (bytes[12..20].to_vec(), packet.protocol(), packet.payload())
    } else {
        let packet = ipv6::Packet::parse(bytes)?;
        if packet.extensions()?.len != 0 {
            return None;
        }
        (bytes[8..40].to_vec(), packet.next_header(), packet.payload())
    };
    let whole = match protocol {
        tcp::PROTOCOL => tcp::Segment::parse(payload).is_some(),
        udp::PROTOCOL => udp::Datagram::parse(payload).is_some(),
        _ => false,
    };
    whole.then(|| Some((addresses, protocol, *payload.first_chunk()?)))?
}

fn given_holds(
    arena: &[u8],
    pushed: &[Pushed],
    members: &[usize],
    vnet: &vnet::Header,
    headers: &[u8],
    pieces: &[Range<usize>],
    mtu: u16,
) {
    let mut whole = headers.to_vec();
    for piece in pieces {
        whole.extend(&arena[piece.clone()]);
    }
    let first = &pushed[members[0]];
    if members.len() == 1 {
        let original = &arena[first.range.clone()];
        match first.seen {
            Seen::BadChecksum | Seen::Other => {
                assert_eq!((vnet, &whole[..]), (&vnet::Header::NONE, original));
            }
            Seen::Valid if vnet.gso_type == vnet::GSO_NONE => {
                assert_eq!((vnet.flags, &whole[..]), (vnet::DATA_VALID, original));
            }
            Seen::Valid => {
                assert_eq!(vnet.flags, vnet::NEEDS_CSUM);
                let at = usize::from(vnet.csum_start + vnet.csum_offset);
                assert_eq!(whole[..at], original[..at], "only the checksum changes");
                assert_eq!(whole[at + 2..], original[at + 2..whole.len()]);
            }
            Seen::Partial => {
                assert_eq!(vnet.flags, vnet::NEEDS_CSUM);
                assert_eq!(whole[..], original[..whole.len()]);
            }
        }
        if vnet.gso_type != vnet::GSO_NONE {
            assert!(whole.len() > usize::from(mtu) || first.gso_size != 0);
        }
        return;
    }
    // Several: cutting the super-frame again must give back the very frames.
    assert_eq!(vnet.flags, vnet::NEEDS_CSUM);
    assert_eq!(usize::from(vnet.hdr_len), headers.len());
    assert!(whole.len() - ethernet::HEADER_LEN <= 65_535 + vlan::TAG_LEN * vlan::TAGS_MAX);
    let Ok(Plan::Segments(segments)) = segment::plan(vnet, &mut whole, usize::MAX) else {
        panic!("not a super-frame");
    };
    assert_eq!(segments.count(), members.len());
    for (i, &member) in members.iter().enumerate() {
        assert_eq!(pushed[member].seen, Seen::Valid);
        let mut again = vec![0; segments.frame_len(i)];
        assert_eq!(segments.write(i, &whole, &mut again), again.len());
        let mut original = arena[pushed[member].range.clone()][..again.len()].to_vec();
        assert_eq!(verifies(&original), Some(true), "only verified frames are joined");
        disregard_what_may_differ(&mut again);
        disregard_what_may_differ(&mut original);
        assert_eq!(again, original, "segment {i}");
    }
}

/// The identification of packets that may not be fragmented, with the checksum over it; and which
/// of the two zeros a checksum is.
fn disregard_what_may_differ(frame: &mut [u8]) {
    let Some(l3) = ip_offset(frame) else { return };
    let Some(packet) = ipv4::Packet::parse(&frame[l3..]) else {
        zeros_are_equal(frame, l3 + 40, frame[l3 + 6]);
        return;
    };
    let (dont_fragment, l4, protocol) =
        (packet.dont_fragment(), l3 + packet.header_len(), packet.protocol());
    if dont_fragment {
        frame[l3 + 4..l3 + 6].fill(0);
        frame[l3 + 10..l3 + 12].fill(0);
    }
    zeros_are_equal(frame, l4, protocol);
}

fn zeros_are_equal(frame: &mut [u8], l4: usize, protocol: u8) {
    let at = l4 + if protocol == tcp::PROTOCOL { 16 } else { 6 };
    if frame[at..at + 2] == [0xff, 0xff] {
        frame[at..at + 2].fill(0);
    }
}

//! What must hold for any bytes. Each fuzz target in `tests/fuzz` is one call into this module, and
//! `tests/invariant.rs` calls the same for a bounded time in every test run.
//!
//! Every function panics when its invariant is broken, and reads its parameters from the front of
//! its input, so that a fuzzer can vary them too.

use std::ops::Range;

use encap::coalesce::{Coalescer, Seen, Sink};
use encap::segment::{self, Plan};
use encap::{MacAddr, arp, ecn, flow, icmpv4, icmpv6, ndp, vnet, vxlan};
use membership::key::Keys;
use membership::record::Record;

/// The longest frame that a datagram or a port can carry.
const LONGEST: usize = 65_535;

/// A received UDP payload: its trains are split within bounds, and what the coalescer makes of them
/// holds neither a byte more than arrived nor one of another frame.
///
/// Input: `UDP_GRO` size (2 bytes), inner MTU (2), datagram.
pub fn received_datagram(input: &[u8]) {
    let Some(([g0, g1, m0, m1], datagram)) = input.split_first_chunk::<4>() else { return };
    let datagram = &datagram[..datagram.len().min(LONGEST)];
    let gro_size = usize::from(u16::from_be_bytes([*g0, *g1]));
    let mtu = u16::from_be_bytes([*m0, *m1]).max(68);

    let elements: Vec<_> = vxlan::train(datagram, gro_size).collect();
    assert!(!elements.is_empty(), "each datagram is seen, if only to be counted");
    let mut end = 0;
    for element in &elements {
        assert!(element.frame.start <= element.frame.end);
        assert!(element.frame.end <= datagram.len(), "the frame lies in the datagram");
        assert!(element.frame.start >= end, "frames are in order and do not overlap");
        end = element.frame.end;
    }
    assert_eq!(end, datagram.len(), "no byte at the end is passed over");

    let mut coalescer = Coalescer::new();
    let mut written = Written { arena: datagram, bytes: 0, frames: 0 };
    let mut pushed = (0, 0);
    for element in &elements {
        let frame = element.frame.clone();
        pushed = (pushed.0 + frame.len(), pushed.1 + 1);
        let seen = coalescer.push(datagram, frame, 1, element.gso_size, mtu, &mut written);
        assert!(matches!(seen, Seen::BadChecksum | Seen::Other | Seen::Partial | Seen::Valid));
    }
    coalescer.flush(datagram, &mut written);
    assert!(written.bytes <= pushed.0, "{} bytes became {}", pushed.0, written.bytes);
    assert!(written.frames <= pushed.1, "{} frames became {}", pushed.1, written.frames);
    let before = written.frames;
    coalescer.flush(datagram, &mut written);
    assert_eq!(written.frames, before, "a flush leaves nothing");
}

/// Checks what the coalescer hands to the port.
struct Written<'a> {
    arena: &'a [u8],
    bytes: usize,
    frames: usize,
}

impl Sink for Written<'_> {
    fn frame(&mut self, tag: u32, header: &vnet::Header, headers: &[u8], pieces: &[Range<usize>]) {
        assert_eq!(tag, 1);
        assert!(!pieces.is_empty());
        let payload: usize = pieces.iter().map(|piece| self.arena[piece.clone()].len()).sum();
        let len = headers.len() + payload;
        if header.gso_type != vnet::GSO_NONE {
            assert!(header.gso_size > 0, "a super-frame has a segment size");
            assert!(header.flags & vnet::NEEDS_CSUM != 0, "and asks for its checksum");
        }
        if header.flags & vnet::NEEDS_CSUM != 0 {
            let field = usize::from(header.csum_start) + usize::from(header.csum_offset);
            assert!(field + 2 <= len, "the checksum field lies in the frame");
        }
        assert!(len <= LONGEST + 22, "{len} bytes are more than a port takes");
        self.bytes += len;
        self.frames += 1;
    }
}

/// A frame from a port with its virtio header: segments fit, follow each other without gap, and
/// carry the payload once.
///
/// Input: virtio header (12 bytes), largest inner frame (2), frame.
pub fn frame_to_send(input: &[u8]) {
    let Some((header, rest)) = input.split_first_chunk::<{ vnet::LEN }>() else { return };
    let Some(([f0, f1], frame)) = rest.split_first_chunk::<2>() else { return };
    let header = vnet::Header::parse(header);
    let max_frame = usize::from(u16::from_be_bytes([*f0, *f1]));
    let original = &frame[..frame.len().min(LONGEST)];
    let mut frame = original.to_vec();
    match segment::plan(&header, &mut frame, max_frame) {
        Err(_) => assert_eq!(frame, original, "a refused frame is not changed"),
        Ok(Plan::Single) => assert!(frame.len() <= max_frame),
        Ok(Plan::Segments(segments)) => {
            assert!(segments.count() > 0);
            let mut out = vec![0xa5; frame.len()];
            let mut next = segments.header_len();
            for i in 0..segments.count() {
                let len = segments.frame_len(i);
                assert!(len <= max_frame, "segment {i} is too large");
                assert_eq!(segments.write(i, &frame, &mut out), len);
                let payload = &out[segments.header_len()..len];
                // A super-frame without payload is one frame of headers.
                assert!(!payload.is_empty() || segments.count() == 1, "segment {i} is empty");
                let end = next + payload.len();
                assert_eq!(frame.get(next..end), Some(payload), "segment {i} goes on");
                next = end;
            }
            let behind = segments.write(segments.count(), &frame, &mut out);
            assert_eq!(behind, 0, "there is nothing behind the last segment");
        }
    }
}

/// A frame that is only looked at: views, hashes and the answers built from it.
///
/// Input: MTU (2 bytes), frame.
pub fn frame_seen(input: &[u8]) {
    let Some(([m0, m1], frame)) = input.split_first_chunk::<2>() else { return };
    let mtu = u16::from_be_bytes([*m0, *m1]);
    assert_eq!(flow::hash(frame), flow::hash(frame));

    if let Some(tos) = ecn::tos_of(frame) {
        for bits in 0..4 {
            let mut marked = frame.to_vec();
            ecn::set_ecn(&mut marked, bits);
            assert_eq!(ecn::tos_of(&marked), Some(tos & !3 | bits), "only the ECN bits change");
        }
    }

    let owner = MacAddr::from_ipv4(std::net::Ipv4Addr::new(198, 51, 100, 1));
    let mut out = [0xa5; 2048];
    let answers = [
        arp::reply(frame, owner, &mut out),
        ndp::reply(frame, owner, &mut out),
        icmpv4::fragmentation_needed(frame, mtu, &mut out),
        icmpv6::packet_too_big(frame, mtu, &mut out),
    ];
    for len in answers.into_iter().flatten() {
        assert!(len <= out.len());
    }
    // A buffer that is too small is refused, not overrun.
    let mut small = [0xa5; 13];
    assert_eq!(arp::reply(frame, owner, &mut small), None);
    assert_eq!(ndp::reply(frame, owner, &mut small), None);
}

/// A key and value of the store: nothing that a store holds makes a reader fail other than by an
/// error, and a key that is understood is spelled the one way.
///
/// Input: key, a newline, value.
pub fn store_entry(input: &[u8]) {
    let split = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (key, value) = input.split_at(split);
    let value = value.get(1..).unwrap_or_default();
    let Ok(keys) = Keys::new("") else { unreachable!("the empty prefix is allowed") };
    let full = [keys.root().as_bytes(), key].concat();
    if let Ok(parsed) = keys.parse(&full) {
        assert_eq!(keys.encode(&parsed).as_bytes(), full, "one spelling of each key");
        if let Ok(record) = Record::decode(&parsed, value) {
            assert_eq!(Record::decode(&parsed, value).ok(), Some(record));
        }
    }
}

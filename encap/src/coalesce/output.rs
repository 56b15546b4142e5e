//! Writes to the sink: frames that pass alone, and super-frames with rebuilt headers.

use core::ops::Range;

use super::candidate::{Candidate, unfinished};
use super::{Flow, Seen, Sink};
use crate::bytes::{put_u16, u16_at};
use crate::checksum::Sum;
use crate::layers::{HEADER_LEN_MAX, Network, Protocol, Transport, Version};
use crate::{ipv4, ipv6, tcp, udp, vnet};

/// What is said of a frame whose checksum was verified.
pub(super) const VERIFIED: vnet::Header =
    vnet::Header { flags: vnet::DATA_VALID, ..vnet::Header::NONE };

/// Gives a frame that is not joined to `sink`.
pub(super) fn pass(
    candidate: &Candidate<'_>,
    partial: u16,
    seen: Seen,
    size: Option<u16>,
    sink: &mut impl Sink,
) {
    let Candidate { tag, ref frame, ip, transport, .. } = *candidate;
    // A super-frame must not carry padding into its last segment.
    let trimmed = frame.start..frame.start + ip.end;
    match (seen, size) {
        (Seen::Partial, None) => {
            sink.frame(tag, &candidate.unfinished(None), &[], core::slice::from_ref(frame));
        }
        (Seen::Partial, Some(_)) => {
            sink.frame(tag, &candidate.unfinished(size), &[], &[trimmed]);
        }
        (Seen::Valid, Some(_)) if transport.payload <= HEADER_LEN_MAX => {
            let mut headers = [0; HEADER_LEN_MAX];
            let (Some(headers), Some(original)) =
                (headers.get_mut(..transport.payload), candidate.bytes.get(..transport.payload))
            else {
                return;
            };
            headers.copy_from_slice(original);
            put_u16(headers, ip.l4 + transport.protocol.checksum_offset(), partial);
            sink.frame(tag, &candidate.unfinished(size), headers, &[candidate.payload()]);
        }
        (Seen::Valid, _) => sink.frame(tag, &VERIFIED, &[], core::slice::from_ref(frame)),
        (Seen::BadChecksum | Seen::Other, _) => {
            sink.frame(tag, &vnet::Header::NONE, &[], core::slice::from_ref(frame));
        }
    }
}

/// Gives the datagrams of a UDP super-frame to `sink`, `size` bytes of payload each, unfinished.
pub(super) fn cut(candidate: &Candidate<'_>, size: usize, sink: &mut impl Sink) {
    let Candidate { tag, ip, transport, .. } = *candidate;
    let Network { l3, l4, .. } = ip;
    let mut headers = [0; HEADER_LEN_MAX];
    let (Some(headers), Some(original)) =
        (headers.get_mut(..transport.payload), candidate.bytes.get(..transport.payload))
    else {
        // Headers of that length are no kernel's; the end host sees a wrong checksum.
        sink.frame(tag, &vnet::Header::NONE, &[], core::slice::from_ref(&candidate.frame));
        return;
    };
    headers.copy_from_slice(original);
    let Range { start, end } = candidate.payload();
    for (index, from) in (start..end).step_by(size.max(1)).enumerate() {
        let piece = from..end.min(from + size);
        let l4_len = (transport.payload - l4 + piece.len()) as u16;
        match ip.version {
            Version::V4 => {
                let ident = u16_at(original, l3 + ipv4::field::IDENT).wrapping_add(index as u16);
                put_u16(headers, l3 + ipv4::field::TOTAL_LEN, (l4 - l3) as u16 + l4_len);
                put_u16(headers, l3 + ipv4::field::IDENT, ident);
                put_u16(headers, l3 + ipv4::field::CHECKSUM, 0);
                let check = Sum::of(headers.get(l3..l4).unwrap_or(&[])).finish();
                put_u16(headers, l3 + ipv4::field::CHECKSUM, check);
            }
            Version::V6 => {
                let extensions = (l4 - l3 - ipv6::HEADER_LEN) as u16;
                put_u16(headers, l3 + ipv6::field::PAYLOAD_LEN, extensions + l4_len);
            }
        }
        put_u16(headers, l4 + udp::field::LENGTH, l4_len);
        let partial = ip.pseudo_header(original).u16(l4_len).fold();
        put_u16(headers, l4 + udp::field::CHECKSUM, partial);
        sink.frame(tag, &unfinished(&ip, transport, None), headers, &[piece]);
    }
}

/// Gives a closed flow to `sink`: a frame that stayed alone as it came, else a super-frame.
pub(super) fn flow(arena: &[u8], flow: &Flow, sink: &mut impl Sink) {
    if flow.count == 1 {
        sink.frame(flow.tag, &VERIFIED, &[], core::slice::from_ref(&flow.first));
        return;
    }
    let Network { l3, l4, .. } = flow.ip;
    let mut headers = [0; HEADER_LEN_MAX];
    let (Some(first), Some(headers), Some(pieces)) = (
        arena.get(flow.first.clone()),
        headers.get_mut(..flow.header_len),
        flow.pieces.get(..flow.count),
    ) else {
        return;
    };
    let Some(template) = first.get(..flow.header_len) else { return };
    headers.copy_from_slice(template);
    match flow.ip.version {
        Version::V4 => {
            put_u16(headers, l3 + ipv4::field::TOTAL_LEN, flow.packet_len as u16);
            put_u16(headers, l3 + ipv4::field::CHECKSUM, 0);
            let check = Sum::of(headers.get(l3..l4).unwrap_or(&[])).finish();
            put_u16(headers, l3 + ipv4::field::CHECKSUM, check);
        }
        Version::V6 => {
            let len = flow.packet_len - ipv6::HEADER_LEN;
            put_u16(headers, l3 + ipv6::field::PAYLOAD_LEN, len as u16);
        }
    }
    let l4_len = (flow.packet_len - (l4 - l3)) as u16;
    match flow.protocol {
        Protocol::Tcp if flow.pushed => {
            let flags = u16_at(headers, l4 + tcp::field::FLAGS);
            put_u16(headers, l4 + tcp::field::FLAGS, flags | tcp::PSH);
        }
        Protocol::Tcp => {}
        Protocol::Udp => put_u16(headers, l4 + udp::field::LENGTH, l4_len),
    }
    let partial = flow.ip.pseudo_header(first).u16(l4_len).fold();
    put_u16(headers, l4 + flow.protocol.checksum_offset(), partial);
    let transport = Transport { protocol: flow.protocol, payload: flow.header_len };
    let vnet = unfinished(&flow.ip, transport, Some(flow.size as u16));
    sink.frame(flow.tag, &vnet, headers, pieces);
}

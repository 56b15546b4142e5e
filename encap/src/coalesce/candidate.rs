//! One pushed frame: what its checksum says, whether it may join, what a TAP is told of it.

use core::ops::Range;

use super::{Flow, PACKET_LEN_MAX, SEGMENTS_MAX, Seen};
use crate::bytes::{u16_at, u32_at};
use crate::checksum::Sum;
use crate::layers::{Network, Protocol, Transport, Version};
use crate::{ipv4, ipv6, tcp, vnet};

/// A pushed frame and what was found in it.
pub(super) struct Candidate<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) frame: Range<usize>,
    pub(super) tag: u32,
    pub(super) hash: u32,
    pub(super) ip: Network,
    pub(super) transport: Transport,
}

impl Candidate<'_> {
    pub(super) fn payload_len(&self) -> usize {
        self.ip.end - self.transport.payload
    }

    /// The payload, in the arena.
    pub(super) fn payload(&self) -> Range<usize> {
        self.frame.start + self.transport.payload..self.frame.start + self.ip.end
    }

    fn tcp_flags(&self) -> u16 {
        u16_at(self.bytes, self.ip.l4 + tcp::field::FLAGS) & tcp::FLAGS_MASK
    }

    pub(super) fn is_pushed(&self) -> bool {
        self.transport.protocol == Protocol::Tcp && self.tcp_flags() & tcp::PSH != 0
    }

    pub(super) fn sequence(&self) -> u32 {
        u32_at(self.bytes, self.ip.l4 + tcp::field::SEQUENCE)
    }

    /// The folded pseudo-header sum for the frame's own length, and what that makes the checksum.
    pub(super) fn judge(&self) -> (u16, Seen) {
        let field = u16_at(self.bytes, self.ip.l4 + self.transport.protocol.checksum_offset());
        let pseudo_header =
            self.ip.pseudo_header(self.bytes).u16((self.ip.end - self.ip.l4) as u16);
        let partial = pseudo_header.fold();
        if self.transport.protocol == Protocol::Udp && field == 0 {
            return (partial, Seen::Other);
        }
        let l4 = self.bytes.get(self.ip.l4..self.ip.end).unwrap_or(&[]);
        let seen = if pseudo_header.bytes(l4).verifies() {
            Seen::Valid
        } else if field == partial {
            Seen::Partial
        } else {
            Seen::BadChecksum
        };
        (partial, seen)
    }

    /// Whether its headers allow it to be part of a super-frame at all.
    pub(super) fn can_join(&self) -> bool {
        if !self.ip.plain || self.payload_len() == 0 {
            return false;
        }
        if self.ip.version == Version::V4 {
            // The header checksum is made anew, which must not heal a wrong one.
            let header = self.bytes.get(self.ip.l3..self.ip.l4).unwrap_or(&[]);
            if !Sum::of(header).verifies() {
                return false;
            }
        }
        match self.transport.protocol {
            Protocol::Tcp => matches!(self.tcp_flags() & !tcp::PSH, tcp::ACK),
            Protocol::Udp => true,
        }
    }

    /// Whether it is the next of `flow`, whose first frame is `first`.
    pub(super) fn continues(&self, flow: &Flow, first: &[u8]) -> bool {
        let Network { l3, l4, .. } = self.ip;
        let same = |from: usize, to: usize| {
            let range = from..to;
            self.bytes.get(range.clone()).is_some_and(|bytes| Some(bytes) == first.get(range))
        };
        if flow.ip.l3 != l3
            || flow.header_len != self.transport.payload
            || self.payload_len() > flow.size
            || flow.count >= SEGMENTS_MAX
            || flow.packet_len + self.payload_len() > PACKET_LEN_MAX
            || !same(0, l3)
        {
            return false;
        }
        let network = match self.ip.version {
            Version::V4 => {
                let ident = |bytes| u16_at(bytes, l3 + ipv4::field::IDENT);
                let fixed = u16_at(first, l3 + ipv4::field::FLAGS) & ipv4::DONT_FRAGMENT != 0;
                same(l3, l3 + ipv4::field::TOTAL_LEN)
                    && same(l3 + ipv4::field::FLAGS, l3 + ipv4::field::CHECKSUM)
                    && (fixed || ident(self.bytes) == ident(first).wrapping_add(flow.count as u16))
            }
            Version::V6 => {
                same(l3, l3 + ipv6::field::PAYLOAD_LEN)
                    && same(l3 + ipv6::field::NEXT_HEADER, l3 + ipv6::field::SOURCE)
            }
        };
        network
            && match self.transport.protocol {
                // Flags need no comparison: none but ACK and PSH get here. The data offset is
                // compared as the header's length.
                Protocol::Tcp => {
                    self.sequence() == flow.sequence
                        && same(l4 + tcp::field::ACKNOWLEDGEMENT, l4 + tcp::field::FLAGS)
                        && same(l4 + tcp::field::WINDOW, l4 + tcp::field::CHECKSUM)
                        && same(l4 + tcp::field::URGENT, self.transport.payload)
                }
                Protocol::Udp => true,
            }
    }

    /// The segment size of a frame that is a super-frame already. Any will do for TCP; one that was
    /// not told would make several datagrams of one.
    pub(super) fn super_frame(&self, gso_size: u16, mtu: u16) -> Option<u16> {
        let headers = self.transport.payload - self.ip.l3;
        if gso_size != 0 && self.payload_len() > usize::from(gso_size) {
            return Some(gso_size);
        }
        if self.transport.protocol == Protocol::Udp {
            return None;
        }
        let fits = usize::from(mtu).checked_sub(headers).filter(|fits| *fits != 0)?;
        (self.payload_len() > fits).then_some(fits as u16)
    }

    /// What the TAP is told of a frame whose checksum field holds a partial sum.
    pub(super) fn unfinished(&self, size: Option<u16>) -> vnet::Header {
        let mut vnet = unfinished(&self.ip, self.transport, size);
        if vnet.gso_type != vnet::GSO_NONE
            && self.transport.protocol == Protocol::Tcp
            && self.tcp_flags() & tcp::CWR != 0
        {
            vnet.gso_type |= vnet::GSO_ECN;
        }
        vnet
    }
}

/// Whether `bytes` is the next full-size TCP segment of `flow`, whose first frame is `first`, by
/// comparing rather than parsing. True only where [`Candidate::continues`] and
/// [`Candidate::judge`] would find the same; false says nothing.
pub(super) fn repeats(flow: &Flow, first: &[u8], bytes: &[u8]) -> bool {
    let Network { l3, l4, end, .. } = flow.ip;
    // No padding in either, so that the frame's length is the packet's.
    if flow.protocol != Protocol::Tcp
        || bytes.len() != first.len()
        || end != first.len()
        || flow.packet_len + flow.size > PACKET_LEN_MAX
        || u32_at(bytes, l4 + tcp::field::SEQUENCE) != flow.sequence
    {
        return false;
    }
    let same = |from: usize, to: usize| {
        let range = from..to;
        bytes.get(range.clone()).is_some_and(|bytes| Some(bytes) == first.get(range))
    };
    let network = match flow.ip.version {
        // With DF the ident is free; it and the checksum are all that may differ.
        Version::V4 => {
            u16_at(first, l3 + ipv4::field::FLAGS) & ipv4::DONT_FRAGMENT != 0
                && same(0, l3 + ipv4::field::IDENT)
                && same(l3 + ipv4::field::FLAGS, l3 + ipv4::field::CHECKSUM)
                && same(l3 + ipv4::field::SOURCE, l4 + tcp::field::SEQUENCE)
                && Sum::of(bytes.get(l3..l4).unwrap_or(&[])).verifies()
        }
        Version::V6 => same(0, l4 + tcp::field::SEQUENCE),
    };
    network
        // The flags too: an opened flow has no PSH, and one ends it.
        && same(l4 + tcp::field::ACKNOWLEDGEMENT, l4 + tcp::field::CHECKSUM)
        && same(l4 + tcp::field::URGENT, flow.header_len)
        && flow
            .ip
            .pseudo_header(first)
            .u16((end - l4) as u16)
            .bytes(bytes.get(l4..).unwrap_or(&[]))
            .verifies()
}

pub(super) fn unfinished(ip: &Network, transport: Transport, size: Option<u16>) -> vnet::Header {
    let gso_type = match (transport.protocol, ip.version) {
        _ if size.is_none() => vnet::GSO_NONE,
        (Protocol::Tcp, Version::V4) => vnet::GSO_TCPV4,
        (Protocol::Tcp, Version::V6) => vnet::GSO_TCPV6,
        (Protocol::Udp, _) => vnet::GSO_UDP_L4,
    };
    vnet::Header {
        flags: vnet::NEEDS_CSUM,
        gso_type,
        hdr_len: transport.payload as u16,
        gso_size: size.unwrap_or(0),
        csum_start: ip.l4 as u16,
        csum_offset: transport.protocol.checksum_offset() as u16,
    }
}

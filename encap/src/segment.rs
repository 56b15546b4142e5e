//! Outbound: makes wire frames of what a TAP with offloads hands over.
//!
//! # Theory of operation
//!
//! Purpose: a container sends TCP and UDP super-frames of up to 64 KB and leaves checksums
//! unfinished, as to a network card; the wire needs frames that fit the path, with complete
//! checksums.
//!
//! Steps:
//! 1. [`plan`] checks the virtio header against the frame's own headers. Nothing in the virtio
//!    header is believed that the frame does not confirm; `hdr_len` is not read at all.
//! 2. An ordinary frame gets its checksum finished in place: [`Plan::Single`]. The field must lie
//!    behind the IP headers: what is in front of it was checked already.
//! 3. A super-frame is left as it is, so that it can be planned again for another path, and gives
//!    [`Plan::Segments`]: offsets, and the sums of all header fields that are equal in every
//!    segment.
//! 4. [`Segments::write`] writes one segment. Its payload is copied while it is summed, which costs
//!    little more than summing it: a send of one piece is so much cheaper for the kernel than one
//!    of two pieces per segment that the copy pays twice. Of the headers only the fields that
//!    differ are summed.
//!
//! Of each segment: IPv4 total length, identification (one more each) and header checksum, or IPv6
//! payload length; TCP sequence number, PSH and FIN only on the last, CWR only on the first, or UDP
//! length; the complete TCP or UDP checksum. A TCP super-frame is cut to the path when the path
//! takes less than its segment size; UDP cannot be, since that would change the datagrams.
//!
//! Limits: headers up to [`HEADER_LEN_MAX`] bytes, two VLAN tags, IPv6 extension headers within
//! that; no IP fragments, no TCP SYN or RST. The number of segments has no limit of its own: it is
//! the payload through the segment size, which the sender chooses; the caller bounds it by what it
//! can queue.
//!
//! Ownership: nothing is allocated or borrowed; `Segments` is plain numbers and only valid with the
//! frame it was planned for, unchanged.

use core::fmt;
use core::ops::Range;

use crate::bytes::{put, put_u16, u16_at, u32_at};
use crate::checksum::Sum;
use crate::layers::{Network, Protocol, Transport, Version};
use crate::{Link, icmpv6, ipv4, ipv6, tcp, udp, vnet};

pub use crate::layers::HEADER_LEN_MAX;

/// What to do with a frame.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Cut it into these.
    Segments(Segments),
    /// Send it as it now is.
    Single,
}

/// Why a frame cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// The virtio header and the frame contradict each other.
    Malformed(Malformed),
    /// The frame, or a UDP segment of it, is larger than the path takes and may not be cut.
    TooBig,
}

/// What is wrong with a malformed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The checksum's range or field is not behind the headers of an IP packet that is whole.
    Checksum,
    /// A super-frame of a type that was never negotiated.
    GsoType,
    /// The headers are not those of the super-frame's type.
    Headers,
    /// A super-frame without a segment size.
    SegmentSize,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(Malformed::Checksum) => "checksum range outside the frame's transport",
            Self::Malformed(Malformed::GsoType) => "unknown super-frame type",
            Self::Malformed(Malformed::Headers) => "headers do not fit the super-frame type",
            Self::Malformed(Malformed::SegmentSize) => "super-frame without a segment size",
            Self::TooBig => "larger than the path takes",
        })
    }
}

impl core::error::Error for Error {}

/// Decides how a frame read from a TAP goes out, and finishes the partial checksum of an ordinary
/// frame in place.
///
/// `frame` begins with its Ethernet header. `max_frame` is the largest inner frame in bytes,
/// Ethernet header included, that the path to the VTEP takes. A super-frame is not changed.
///
/// # Errors
/// [`Error::TooBig`] when an ordinary frame is larger than `max_frame`, when a datagram of a UDP
/// super-frame would be, or when not even one byte of TCP payload fits; the frame is unchanged then.
/// [`Error::Malformed`] as its variants say.
pub fn plan(vnet: &vnet::Header, frame: &mut [u8], max_frame: usize) -> Result<Plan, Error> {
    plan_on(Link::Ethernet, vnet, frame, max_frame)
}

/// As [`plan`], for the frames of any link: without one, `frame` begins with its IP header, and
/// `max_frame` is the largest inner packet.
///
/// # Errors
/// As [`plan`].
pub fn plan_on(
    link: Link,
    vnet: &vnet::Header,
    frame: &mut [u8],
    max_frame: usize,
) -> Result<Plan, Error> {
    let needs_csum = vnet.flags & vnet::NEEDS_CSUM != 0;
    let expected = match vnet.gso_type & !vnet::GSO_ECN {
        vnet::GSO_NONE => {
            let check = if needs_csum { Some(checksum_place(link, vnet, frame)?) } else { None };
            if frame.len() > max_frame {
                return Err(Error::TooBig);
            }
            if let Some((start, at)) = check {
                finish(frame, start, at);
            }
            return Ok(Plan::Single);
        }
        vnet::GSO_TCPV4 => (Protocol::Tcp, Some(Version::V4)),
        vnet::GSO_TCPV6 => (Protocol::Tcp, Some(Version::V6)),
        vnet::GSO_UDP_L4 => (Protocol::Udp, None),
        _ => return Err(Error::Malformed(Malformed::GsoType)),
    };
    Segments::of(link, vnet, frame, max_frame, expected).map(Plan::Segments)
}

/// Where the checksummed range begins and where the field lies. Any field of a header that was checked
/// before could else be written by us, after the check: addresses, or what neighbor discovery claims.
fn checksum_place(link: Link, vnet: &vnet::Header, frame: &[u8]) -> Result<(usize, usize), Error> {
    let start = usize::from(vnet.csum_start);
    let offset = usize::from(vnet.csum_offset);
    let at = start + offset;
    // A fragment has no checksum of its own; kernels finish it before they cut.
    let place = Network::parse(link, frame).filter(|ip| {
        let allowed = match ip.protocol {
            icmpv6::PROTOCOL => start == ip.l4 && offset == icmpv6::CHECKSUM,
            _ => start >= ip.l4,
        };
        allowed && !ip.opaque && at + 2 <= ip.end
    });
    place.map(|_| (start, at)).ok_or(Error::Malformed(Malformed::Checksum))
}

/// The field holds the pseudo-header's sum, so the sum over the range with the field in it is the
/// checksum's complement.
fn finish(frame: &mut [u8], start: usize, at: usize) {
    let sum = Sum::of(frame.get(start..).unwrap_or(&[]));
    let is_udp = at - start == udp::field::CHECKSUM;
    put_u16(frame, at, if is_udp { sum.finish_udp() } else { sum.finish() });
}

/// How a super-frame is cut. Valid with the frame it was planned for.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    version: Version,
    protocol: Protocol,
    l3: usize,
    l4: usize,
    /// Offset of the payload: all headers.
    header_len: usize,
    /// Offset behind the payload.
    end: usize,
    /// Payload bytes per segment, at least 1.
    size: usize,
    count: usize,
    /// IPv4 identification of the first.
    ident: u16,
    /// TCP sequence number of the first.
    sequence: u32,
    /// TCP data offset and flags of the whole.
    flags: u16,
    /// The IPv4 header without total length, identification and checksum.
    network: Sum,
    /// Pseudo-header and transport header without lengths, sequence number, flags and checksum.
    transport: Sum,
}

impl Segments {
    fn of(
        link: Link,
        vnet: &vnet::Header,
        frame: &[u8],
        max_frame: usize,
        (protocol, version): (Protocol, Option<Version>),
    ) -> Result<Self, Error> {
        const HEADERS: Error = Error::Malformed(Malformed::Headers);
        let ip = Network::parse(link, frame).ok_or(HEADERS)?;
        let transport = Transport::parse(frame, &ip).ok_or(HEADERS)?;
        let Network { l3, l4, end, .. } = ip;
        let header_len = transport.payload;
        if transport.protocol != protocol
            || version.is_some_and(|version| version != ip.version)
            || header_len > HEADER_LEN_MAX
        {
            return Err(HEADERS);
        }
        let needs_csum = vnet.flags & vnet::NEEDS_CSUM != 0;
        if needs_csum
            && (usize::from(vnet.csum_start) != l4
                || usize::from(vnet.csum_offset) != protocol.checksum_offset())
        {
            return Err(Error::Malformed(Malformed::Checksum));
        }
        let gso_size = usize::from(vnet.gso_size);
        if gso_size == 0 {
            return Err(Error::Malformed(Malformed::SegmentSize));
        }
        let payload_len = end - header_len;
        let room = max_frame.saturating_sub(header_len);
        let size = match protocol {
            Protocol::Tcp if room == 0 => return Err(Error::TooBig),
            Protocol::Tcp => gso_size.min(room),
            Protocol::Udp if header_len + payload_len.min(gso_size) > max_frame => {
                return Err(Error::TooBig);
            }
            Protocol::Udp => gso_size,
        };
        let sum = |from: usize, to: usize| Sum::of(frame.get(from..to).unwrap_or(&[]));
        let pseudo_header = if needs_csum && !ip.plain {
            // With a routing header the pseudo-header has another destination than the header, so
            // the partial sum is taken from the field, less the length that it was made with.
            let partial = u16_at(frame, l4 + protocol.checksum_offset());
            Sum::ZERO.u16(partial).u16(!((end - l4) as u16))
        } else {
            ip.pseudo_header(frame)
        };
        let ports = pseudo_header.sum(sum(l4, l4 + 4));
        let (sequence, flags, transport_sum) = match protocol {
            Protocol::Tcp => {
                let flags = u16_at(frame, l4 + tcp::field::FLAGS);
                if flags & (tcp::SYN | tcp::RST) != 0 {
                    return Err(HEADERS);
                }
                let sum = ports
                    .sum(sum(l4 + tcp::field::ACKNOWLEDGEMENT, l4 + tcp::field::FLAGS))
                    .sum(sum(l4 + tcp::field::WINDOW, l4 + tcp::field::CHECKSUM))
                    .sum(sum(l4 + tcp::field::URGENT, header_len));
                (u32_at(frame, l4 + tcp::field::SEQUENCE), flags, sum)
            }
            Protocol::Udp => (0, 0, ports),
        };
        let (ident, network) = match ip.version {
            Version::V4 => (
                u16_at(frame, l3 + ipv4::field::IDENT),
                sum(l3, l3 + ipv4::field::TOTAL_LEN)
                    .sum(sum(l3 + ipv4::field::FLAGS, l3 + ipv4::field::CHECKSUM))
                    .sum(sum(l3 + ipv4::field::SOURCE, l4)),
            ),
            Version::V6 => (0, Sum::ZERO),
        };
        Ok(Self {
            version: ip.version,
            protocol,
            l3,
            l4,
            header_len,
            end,
            size,
            count: payload_len.div_ceil(size).max(1),
            ident,
            sequence,
            flags,
            network,
            transport: transport_sum,
        })
    }

    /// How many segments, at least one.
    #[must_use]
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of each segment's headers, the first to TCP or UDP: at most [`HEADER_LEN_MAX`].
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Payload bytes of every segment but the last, which may have fewer.
    #[must_use]
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes of segment `i` as a whole frame; only the headers for an `i` that is not below
    /// [`count`](Self::count).
    #[must_use]
    #[inline]
    pub fn frame_len(&self, i: usize) -> usize {
        self.header_len + self.payload(i).len()
    }

    /// Where the payload of segment `i` lies in the super-frame.
    #[inline]
    fn payload(&self, i: usize) -> Range<usize> {
        let start = self.header_len.saturating_add(i.saturating_mul(self.size)).min(self.end);
        start..start.saturating_add(self.size).min(self.end)
    }

    /// Writes segment `i` of `frame`, the super-frame as it was planned, to the beginning of `out`,
    /// checksums complete, and gives its length, [`frame_len`](Self::frame_len).
    ///
    /// Writes nothing and gives 0 when `i` is not below [`count`](Self::count) or `out` or `frame`
    /// is too short.
    pub fn write(&self, i: usize, frame: &[u8], out: &mut [u8]) -> usize {
        let (Some(payload), Some(template), Some((out, rest))) = (
            frame.get(self.payload(i)),
            frame.get(..self.header_len),
            out.split_at_mut_checked(self.header_len),
        ) else {
            return 0;
        };
        let Some(room) = rest.get_mut(..payload.len()).filter(|_| i < self.count) else { return 0 };
        out.copy_from_slice(template);
        self.write_network(i, payload.len(), out);
        let l4_len = (self.header_len - self.l4 + payload.len()) as u16;
        let sum = self.transport.sum(Sum::of_copied(payload, room)).u16(l4_len);
        match self.protocol {
            Protocol::Tcp => {
                let sequence = self.sequence.wrapping_add((i * self.size) as u32);
                let mut flags = self.flags;
                if i != 0 {
                    flags &= !tcp::CWR;
                }
                if i + 1 != self.count {
                    flags &= !(tcp::FIN | tcp::PSH);
                }
                put(out, self.l4 + tcp::field::SEQUENCE, sequence.to_be_bytes());
                put_u16(out, self.l4 + tcp::field::FLAGS, flags);
                let check = sum.u32(sequence).u16(flags).finish();
                put_u16(out, self.l4 + tcp::field::CHECKSUM, check);
            }
            Protocol::Udp => {
                put_u16(out, self.l4 + udp::field::LENGTH, l4_len);
                let check = sum.u16(l4_len).finish_udp();
                put_u16(out, self.l4 + udp::field::CHECKSUM, check);
            }
        }
        self.header_len + payload.len()
    }

    fn write_network(&self, i: usize, payload_len: usize, out: &mut [u8]) {
        match self.version {
            Version::V4 => {
                let total_len = (self.header_len - self.l3 + payload_len) as u16;
                let ident = self.ident.wrapping_add(i as u16);
                put_u16(out, self.l3 + ipv4::field::TOTAL_LEN, total_len);
                put_u16(out, self.l3 + ipv4::field::IDENT, ident);
                let check = self.network.u16(total_len).u16(ident).finish();
                put_u16(out, self.l3 + ipv4::field::CHECKSUM, check);
            }
            Version::V6 => {
                let len = (self.header_len - self.l3 - ipv6::HEADER_LEN + payload_len) as u16;
                put_u16(out, self.l3 + ipv6::field::PAYLOAD_LEN, len);
            }
        }
    }
}

//! Where the layers of a frame lie: offsets, checked once, that segmentation, coalescing and the
//! flow hash work with.

use crate::bytes::u32_at;
use crate::checksum::Sum;
use crate::ethernet::EtherType;
use crate::{Link, ipv4, ipv6, tcp, udp};

/// All headers of a frame at most, in bytes: Ethernet with two tags, IPv4 and TCP with all options.
/// IPv6 extension headers must fit beside them.
pub const HEADER_LEN_MAX: usize = 22 + 60 + 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V6,
}

/// The IP packet of a frame. INVARIANT: `l3 < l4 <= end <= frame.len()`, the fixed header lies in
/// `l3..l4`, and `end - l3 <= 65575`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    pub(crate) version: Version,
    /// Offset of the IP header: 14, 18 or 22, or 0 without a link layer.
    pub(crate) l3: usize,
    /// Offset behind the IP header with its options or extension headers.
    pub(crate) l4: usize,
    /// Offset behind the packet; what follows in the frame is padding.
    pub(crate) end: usize,
    pub(crate) protocol: u8,
    /// Neither options nor extension headers.
    pub(crate) plain: bool,
    pub(crate) fragment: bool,
    /// A later fragment, or extension headers that cannot be walked: no transport header at `l4`.
    pub(crate) opaque: bool,
    /// The pseudo-header's destination may not be the header's.
    pub(crate) routing: bool,
}

impl Network {
    /// No packet at all.
    pub(crate) const NOWHERE: Self = Self {
        version: Version::V4,
        l3: 0,
        l4: 0,
        end: 0,
        protocol: 0,
        plain: false,
        fragment: false,
        opaque: true,
        routing: false,
    };

    /// `None` when the frame carries no IP packet or a malformed one.
    pub(crate) fn parse(link: Link, frame: &[u8]) -> Option<Self> {
        let (ether_type, l3) = link.payload(frame)?;
        let bytes = frame.get(l3..)?;
        match ether_type {
            EtherType::IPV4 => {
                let packet = ipv4::Packet::parse(bytes)?;
                let header_len = packet.header_len();
                Some(Self {
                    version: Version::V4,
                    l3,
                    l4: l3 + header_len,
                    end: l3 + packet.total_len(),
                    protocol: packet.protocol(),
                    plain: header_len == ipv4::HEADER_LEN,
                    fragment: packet.is_fragment(),
                    opaque: packet.fragment_offset() != 0,
                    routing: false,
                })
            }
            EtherType::IPV6 => {
                let packet = ipv6::Packet::parse(bytes)?;
                let found = packet.extensions();
                let (protocol, len) = match found {
                    Some(found) => (found.protocol, found.len),
                    None => (packet.next_header(), 0),
                };
                Some(Self {
                    version: Version::V6,
                    l3,
                    l4: l3 + ipv6::HEADER_LEN + len,
                    end: l3 + packet.total_len(),
                    protocol,
                    plain: found.is_some_and(|found| found.len == 0),
                    fragment: found.is_some_and(|found| found.fragment),
                    opaque: found.is_none_or(|found| found.fragment),
                    routing: found.is_some_and(|found| found.routing),
                })
            }
            _ => None,
        }
    }

    /// Source and destination address: 8 or 32 bytes.
    #[inline]
    pub(crate) fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let (from, len) = match self.version {
            Version::V4 => (ipv4::field::SOURCE, 8),
            Version::V6 => (ipv6::field::SOURCE, 32),
        };
        frame.get(self.l3 + from..self.l3 + from + len).unwrap_or(&[])
    }

    /// The pseudo-header without its length (RFC 9293 section 3.1, RFC 8200 section 8.1).
    pub(crate) fn pseudo_header(&self, frame: &[u8]) -> Sum {
        Sum::of(self.addresses(frame)).u16(u16::from(self.protocol))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Offset of the checksum field in the transport header.
    #[inline]
    pub(crate) const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => tcp::field::CHECKSUM,
            Self::Udp => udp::field::CHECKSUM,
        }
    }
}

/// A whole TCP or UDP header behind an IP header. INVARIANT: `ip.l4 < payload <= ip.end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport {
    pub(crate) protocol: Protocol,
    /// Offset of the payload.
    pub(crate) payload: usize,
}

impl Transport {
    /// `None` for fragments, other protocols and malformed headers. A UDP length that is not the
    /// length of the IP payload counts as malformed.
    pub(crate) fn parse(frame: &[u8], ip: &Network) -> Option<Self> {
        if ip.fragment || ip.opaque {
            return None;
        }
        let bytes = frame.get(ip.l4..ip.end)?;
        match ip.protocol {
            tcp::PROTOCOL => {
                let len = tcp::Segment::parse(bytes)?.header_len();
                Some(Self { protocol: Protocol::Tcp, payload: ip.l4 + len })
            }
            udp::PROTOCOL => {
                let datagram = udp::Datagram::parse(bytes)?;
                (datagram.length() == bytes.len())
                    .then_some(Self { protocol: Protocol::Udp, payload: ip.l4 + udp::HEADER_LEN })
            }
            _ => None,
        }
    }
}

/// Source and destination port as one number, when the first four transport bytes are ports and are
/// there.
pub(crate) fn ports(frame: &[u8], ip: &Network) -> Option<u32> {
    const DCCP: u8 = 33;
    const SCTP: u8 = 132;
    const UDP_LITE: u8 = 136;
    let has_ports = matches!(ip.protocol, tcp::PROTOCOL | udp::PROTOCOL | DCCP | SCTP | UDP_LITE);
    (has_ports && !ip.fragment && !ip.opaque && ip.end - ip.l4 >= 4).then(|| u32_at(frame, ip.l4))
}

//! IPv6 (RFC 8200) and its extension headers.
//!
//! ```text
//!  0                               4               6       7       8
//! +-------------------------------+---------------+-------+-------+
//! |6 | traffic class | flow label | payload length| next  | limit |
//! +-------------------------------+---------------+-------+-------+
//! |                     source (8 to 24)                          |
//! |                     destination (24 to 40)                    |
//! +---------------------------------------------------------------+
//! ```

use core::net::Ipv6Addr;

use crate::bytes::{array_at, put, put_u16, u16_at, u32_at};

pub(crate) mod field {
    pub(crate) const VERSION_CLASS_LABEL: usize = 0;
    pub(crate) const PAYLOAD_LEN: usize = 4;
    pub(crate) const NEXT_HEADER: usize = 6;
    pub(crate) const HOP_LIMIT: usize = 7;
    pub(crate) const SOURCE: usize = 8;
    pub(crate) const DESTINATION: usize = 24;
}

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Extension headers that are walked; a packet with more has no transport that we know.
pub const EXTENSIONS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A checked view of a packet: the header is whole, and the payload length is within the bytes
/// there are. Jumbograms (payload length zero with more bytes) appear as empty packets.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` when the bytes are not a whole IPv6 packet. Bytes after the payload (Ethernet
    /// padding) are left out.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        if header[field::VERSION_CLASS_LABEL] >> 4 != 6 {
            return None;
        }
        let payload = rest.get(..usize::from(u16_at(header, field::PAYLOAD_LEN)))?;
        Some(Self { header, payload })
    }

    /// Traffic class: DSCP and ECN.
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        (u32_at(self.header, field::VERSION_CLASS_LABEL) >> 20) as u8
    }

    /// Flow label, 20 bits.
    #[must_use]
    pub fn flow_label(&self) -> u32 {
        u32_at(self.header, field::VERSION_CLASS_LABEL) & 0x000f_ffff
    }

    /// Header and payload, in bytes.
    #[must_use]
    #[inline]
    pub fn total_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    /// What follows the fixed header: an extension header or a protocol.
    #[must_use]
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.header[field::NEXT_HEADER]
    }

    /// Hop limit.
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        self.header[field::HOP_LIMIT]
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        array_at::<16>(self.header, field::SOURCE).into()
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv6Addr {
        array_at::<16>(self.header, field::DESTINATION).into()
    }

    /// Extension headers and everything after them, padding left out.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Walks the extension headers; `None` when one is cut short or there are more than
    /// [`EXTENSIONS_MAX`].
    #[must_use]
    pub fn extensions(&self) -> Option<Extensions> {
        let mut found = Extensions {
            protocol: self.next_header(),
            len: 0,
            fragment: false,
            offset: 0,
            routing: false,
        };
        for _ in 0..EXTENSIONS_MAX {
            if !matches!(found.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                return Some(found);
            }
            let header: &[u8; 8] = self.payload.get(found.len..)?.first_chunk()?;
            let len = match found.protocol {
                FRAGMENT => 8,
                _ => (usize::from(header[1]) + 1) * 8,
            };
            found.len += len;
            if found.len > self.payload.len() {
                return None;
            }
            found.routing |= found.protocol == ROUTING;
            let fragment = found.protocol == FRAGMENT;
            found.fragment |= fragment;
            found.protocol = header[0];
            if fragment {
                found.offset = u16_at(header, 2) & 0xfff8;
                // What follows the header of a later fragment is a piece of payload.
                if found.offset != 0 {
                    return Some(found);
                }
            }
        }
        None
    }
}

/// What the extension headers of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// The protocol behind the last of them.
    pub protocol: u8,
    /// Bytes of all of them; 0 when there are none.
    pub len: usize,
    /// There is a fragment header, so that the transport is or may be incomplete.
    pub fragment: bool,
    /// Where the fragment's payload belongs, in bytes.
    pub offset: u16,
    /// There is a routing header, so that the pseudo-header's destination may be another one.
    pub routing: bool,
}

/// What a new header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Protocol of the payload.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Header {
    /// The header in front of `payload_len` bytes; `None` above 65535.
    #[must_use]
    pub fn emit(&self, payload_len: usize) -> Option<[u8; HEADER_LEN]> {
        let payload_len = u16::try_from(payload_len).ok()?;
        let first =
            (6 << 28) | (u32::from(self.traffic_class) << 20) | (self.flow_label & 0x000f_ffff);
        let mut header = [0; HEADER_LEN];
        put(&mut header, field::VERSION_CLASS_LABEL, first.to_be_bytes());
        put_u16(&mut header, field::PAYLOAD_LEN, payload_len);
        header[field::NEXT_HEADER] = self.next_header;
        header[field::HOP_LIMIT] = self.hop_limit;
        put(&mut header, field::SOURCE, self.source.octets());
        put(&mut header, field::DESTINATION, self.destination.octets());
        Some(header)
    }
}

/// Changes the traffic class of the packet at the front of `packet`. Nothing happens when the
/// bytes are no IPv6 header.
pub(crate) fn set_traffic_class(packet: &mut [u8], class: u8) {
    if packet.len() < HEADER_LEN {
        return;
    }
    let first = u32_at(packet, field::VERSION_CLASS_LABEL);
    if first >> 28 == 6 {
        let first = (first & 0xf00f_ffff) | (u32::from(class) << 20);
        put(packet, field::VERSION_CLASS_LABEL, first.to_be_bytes());
    }
}

/// The destination in a header of which what follows may be cut.
pub(crate) fn quoted_destination(bytes: &[u8]) -> Option<Ipv6Addr> {
    let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
    let is_one = header[field::VERSION_CLASS_LABEL] >> 4 == 6;
    is_one.then(|| array_at::<16>(header, field::DESTINATION).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        traffic_class: 0xb9,
        flow_label: 0x000a_bcde,
        next_header: 6,
        hop_limit: 63,
        source: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    };

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Header { next_header, ..HEADER }.emit(payload.len()).unwrap().to_vec();
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn emitted_fields_are_read_back() {
        let mut bytes = [0xa5; 50];
        bytes[..HEADER_LEN].copy_from_slice(&HEADER.emit(8).unwrap());
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.traffic_class(), packet.flow_label()), (0xb9, 0x000a_bcde));
        assert_eq!((packet.next_header(), packet.hop_limit()), (6, 63));
        assert_eq!((packet.source(), packet.destination()), (HEADER.source, HEADER.destination));
        assert_eq!(packet.total_len(), 48);
        assert_eq!(packet.payload(), [0xa5; 8], "padding is left out");
    }

    #[test]
    fn lengths_that_contradict_are_refused() {
        let good = HEADER.emit(0).unwrap();
        assert!(Packet::parse(&good).is_some());
        assert!(Packet::parse(&good[..39]).is_none());
        assert!(Packet::parse(&HEADER.emit(1).unwrap()).is_none());
        let mut bad = good;
        bad[0] = 0x4b;
        assert!(Packet::parse(&bad).is_none());
        assert_eq!(HEADER.emit(65536), None);
    }

    #[test]
    fn walks_extension_headers() {
        let plain = packet(6, &[0; 20]);
        let expected =
            Extensions { protocol: 6, len: 0, fragment: false, offset: 0, routing: false };
        assert_eq!(Packet::parse(&plain).unwrap().extensions(), Some(expected));

        let mut payload = vec![DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([17, 1]);
        payload.extend([0; 14]);
        let bytes = packet(HOP_BY_HOP, &payload);
        let found = Packet::parse(&bytes).unwrap().extensions().unwrap();
        assert_eq!((found.protocol, found.len, found.fragment), (17, 24, false));

        let bytes = packet(FRAGMENT, &[6, 0, 0x01, 0x00, 0, 0, 0, 1, 44, 44]);
        let found = Packet::parse(&bytes).unwrap().extensions().unwrap();
        assert_eq!((found.protocol, found.len, found.fragment), (6, 8, true));
        assert_eq!(found.offset, 256);

        let bytes = packet(HOP_BY_HOP, &[6, 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Packet::parse(&bytes).unwrap().extensions(), None);
        let bytes = packet(HOP_BY_HOP, &[0; 8 * (EXTENSIONS_MAX + 1)]);
        assert_eq!(Packet::parse(&bytes).unwrap().extensions(), None);
    }

    #[test]
    fn traffic_class_changes_alone() {
        let mut bytes = HEADER.emit(0).unwrap();
        set_traffic_class(&mut bytes, 0x47);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.traffic_class(), packet.flow_label()), (0x47, 0x000a_bcde));
    }
}

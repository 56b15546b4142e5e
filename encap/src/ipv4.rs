//! IPv4 (RFC 791).
//!
//! ```text
//!  0       1       2               4               6               8
//! +-------+-------+---------------+---------------+---------------+
//! |4 | IHL|  TOS  | total length  | identification|flags, offset/8|
//! +-------+-------+---------------+---------------+---------------+
//! |  TTL  | proto |   checksum    |            source             |
//! +-------+-------+---------------+-------------------------------+
//! |          destination          |  options (IHL * 4 - 20) ...
//! +-------------------------------+---------------- - -
//! ```

use core::net::Ipv4Addr;

use crate::bytes::{array_at, put, put_u16, u8_at, u16_at};
use crate::checksum::{Sum, checksum};

pub(crate) mod field {
    pub(crate) const VERSION_IHL: usize = 0;
    pub(crate) const TOS: usize = 1;
    pub(crate) const TOTAL_LEN: usize = 2;
    pub(crate) const IDENT: usize = 4;
    pub(crate) const FLAGS: usize = 6;
    pub(crate) const TTL: usize = 8;
    pub(crate) const PROTOCOL: usize = 9;
    pub(crate) const CHECKSUM: usize = 10;
    pub(crate) const SOURCE: usize = 12;
    pub(crate) const DESTINATION: usize = 16;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// A checked view of a packet: the header is whole, and the total length lies between the header
/// and the bytes there are. The header checksum is not part of the check.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    /// Exactly total length bytes.
    packet: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` when the bytes are not a whole IPv4 packet. Bytes after the total length (Ethernet
    /// padding) are left out.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let total_len = usize::from(u16_at(header, field::TOTAL_LEN));
        let header_len = usize::from(header[field::VERSION_IHL] & 0x0f) * 4;
        if header[field::VERSION_IHL] >> 4 != 4 || header_len < HEADER_LEN || total_len < header_len
        {
            return None;
        }
        Some(Self { header, packet: bytes.get(..total_len)? })
    }

    /// Header bytes, options included: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.header[field::VERSION_IHL] & 0x0f) * 4
    }

    /// Type of service: DSCP and ECN.
    #[must_use]
    pub fn tos(&self) -> u8 {
        self.header[field::TOS]
    }

    /// Header and payload, in bytes.
    #[must_use]
    #[inline]
    pub fn total_len(&self) -> usize {
        self.packet.len()
    }

    /// Identification.
    #[must_use]
    pub fn ident(&self) -> u16 {
        u16_at(self.header, field::IDENT)
    }

    /// The don't-fragment flag.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        u16_at(self.header, field::FLAGS) & DONT_FRAGMENT != 0
    }

    /// The more-fragments flag.
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        u16_at(self.header, field::FLAGS) & MORE_FRAGMENTS != 0
    }

    /// Where this fragment's payload belongs, in bytes.
    #[must_use]
    pub fn fragment_offset(&self) -> usize {
        usize::from(u16_at(self.header, field::FLAGS) & OFFSET_MASK) * 8
    }

    /// Part of a fragmented packet, the first part included.
    #[must_use]
    #[inline]
    pub fn is_fragment(&self) -> bool {
        u16_at(self.header, field::FLAGS) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Time to live.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.header[field::TTL]
    }

    /// The payload's protocol (IANA protocol-numbers).
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.header[field::PROTOCOL]
    }

    /// The header checksum field.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.header, field::CHECKSUM)
    }

    /// Whether the header checksum is right.
    #[must_use]
    pub fn checksum_verifies(&self) -> bool {
        self.packet.get(..self.header_len()).is_some_and(|header| Sum::of(header).verifies())
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        array_at::<4>(self.header, field::SOURCE).into()
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        array_at::<4>(self.header, field::DESTINATION).into()
    }

    /// Everything after the header, padding left out.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.packet.get(self.header_len()..).unwrap_or(&[])
    }
}

/// What a new header without options says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification.
    pub ident: u16,
    /// The don't-fragment flag.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// The payload's protocol.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Header {
    /// The header in front of `payload_len` bytes, checksum included; `None` when the packet would
    /// be longer than 65535 bytes.
    #[must_use]
    pub fn emit(&self, payload_len: usize) -> Option<[u8; HEADER_LEN]> {
        let total_len = u16::try_from(payload_len.checked_add(HEADER_LEN)?).ok()?;
        let mut header = [0; HEADER_LEN];
        header[field::VERSION_IHL] = 0x45;
        header[field::TOS] = self.tos;
        put_u16(&mut header, field::TOTAL_LEN, total_len);
        put_u16(&mut header, field::IDENT, self.ident);
        put_u16(&mut header, field::FLAGS, if self.dont_fragment { DONT_FRAGMENT } else { 0 });
        header[field::TTL] = self.ttl;
        header[field::PROTOCOL] = self.protocol;
        put(&mut header, field::SOURCE, self.source.octets());
        put(&mut header, field::DESTINATION, self.destination.octets());
        let check = checksum(&header);
        put_u16(&mut header, field::CHECKSUM, check);
        Some(header)
    }
}

/// Changes the TOS byte of the packet at the front of `packet` and keeps its checksum right (or
/// wrong, if it was). Nothing happens when the bytes are no IPv4 header.
pub(crate) fn set_tos(packet: &mut [u8], tos: u8) {
    if packet.len() < HEADER_LEN || u8_at(packet, field::VERSION_IHL) >> 4 != 4 {
        return;
    }
    let old = u16_at(packet, field::VERSION_IHL);
    let new = (old & 0xff00) | u16::from(tos);
    let check = crate::checksum::update(u16_at(packet, field::CHECKSUM), old, new);
    put_u16(packet, field::VERSION_IHL, new);
    put_u16(packet, field::CHECKSUM, check);
}

/// Changes the source of the packet at the front of `packet` and keeps the header's checksum right (or
/// wrong, if it was). Nothing happens when the bytes are no IPv4 header.
pub fn set_source(packet: &mut [u8], source: Ipv4Addr) {
    if packet.len() < HEADER_LEN || u8_at(packet, field::VERSION_IHL) >> 4 != 4 {
        return;
    }
    let mut check = u16_at(packet, field::CHECKSUM);
    let [a, b, c, d] = source.octets();
    for (at, new) in [(field::SOURCE, [a, b]), (field::SOURCE + 2, [c, d])] {
        let new = u16::from_be_bytes(new);
        check = crate::checksum::update(check, u16_at(packet, at), new);
        put_u16(packet, at, new);
    }
    put_u16(packet, field::CHECKSUM, check);
}

/// The destination in a header of which what follows may be cut.
pub(crate) fn quoted_destination(bytes: &[u8]) -> Option<Ipv4Addr> {
    let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
    let is_one = header[field::VERSION_IHL] >> 4 == 4;
    is_one.then(|| array_at::<4>(header, field::DESTINATION).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        tos: 0xb9,
        ident: 0x1234,
        dont_fragment: true,
        ttl: 63,
        protocol: 17,
        source: Ipv4Addr::new(192, 0, 2, 1),
        destination: Ipv4Addr::new(198, 51, 100, 2),
    };

    #[test]
    fn emitted_fields_are_read_back() {
        let mut bytes = [0xa5; 30];
        bytes[..HEADER_LEN].copy_from_slice(&HEADER.emit(8).unwrap());
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.tos(), packet.ident(), packet.ttl()), (0xb9, 0x1234, 63));
        assert!(packet.dont_fragment() && !packet.more_fragments() && !packet.is_fragment());
        assert_eq!(packet.protocol(), 17);
        assert_eq!((packet.source(), packet.destination()), (HEADER.source, HEADER.destination));
        assert_eq!((packet.header_len(), packet.total_len()), (20, 28));
        assert_eq!(packet.payload(), [0xa5; 8], "padding is left out");
        assert!(packet.checksum_verifies());
    }

    #[test]
    fn lengths_that_contradict_are_refused() {
        let good = HEADER.emit(0).unwrap();
        assert!(Packet::parse(&good).is_some());
        assert!(Packet::parse(&good[..19]).is_none());
        for (at, value) in [(0, 0x65), (0, 0x44), (0, 0x46), (3, 19), (3, 21)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Packet::parse(&bad).is_none(), "byte {at} = {value:#x}");
        }
        assert_eq!(HEADER.emit(65516), None);
    }

    #[test]
    fn changing_the_source_keeps_the_checksum_right() {
        let mut bytes = HEADER.emit(0).unwrap();
        let source = Ipv4Addr::new(203, 0, 113, 255);
        set_source(&mut bytes, source);
        let expected = Header { source, ..HEADER }.emit(0).unwrap();
        assert_eq!(bytes, expected);
        assert_eq!(quoted_destination(&bytes), Some(HEADER.destination));
        assert_eq!(quoted_destination(&bytes[..19]), None);
    }

    #[test]
    fn changing_tos_keeps_the_checksum_right() {
        let mut bytes = HEADER.emit(0).unwrap();
        set_tos(&mut bytes, 0x03);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.tos(), 3);
        assert!(packet.checksum_verifies());
    }
}

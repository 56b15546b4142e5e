//! Ethernet II frames (IEEE 802.3).
//!
//! ```text
//!  0               6               12      14
//! +---------------+---------------+-------+----------- - -
//! |  destination  |    source     | type  | payload
//! +---------------+---------------+-------+----------- - -
//! ```

use crate::MacAddr;
use crate::bytes::{array_at, put, u16_at};

mod field {
    pub(super) const DESTINATION: usize = 0;
    pub(super) const SOURCE: usize = 6;
    pub(super) const ETHER_TYPE: usize = 12;
}

/// Bytes of the header without tags.
pub const HEADER_LEN: usize = 14;

/// The type of a frame's payload (IANA ieee-802-numbers). Values below 0x0600 are 802.3 lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// ARP (RFC 826).
    pub const ARP: Self = Self(0x0806);
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self(0x0800);
    /// IPv6 (RFC 2464).
    pub const IPV6: Self = Self(0x86dd);
    /// 802.1Q customer tag.
    pub const VLAN: Self = Self(0x8100);
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: Self = Self(0x88a8);

    /// A VLAN tag follows.
    #[must_use]
    #[inline]
    pub fn is_tag(self) -> bool {
        self == Self::VLAN || self == Self::SERVICE_VLAN
    }
}

/// A checked view of a frame: at least a whole header.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` when `bytes` are fewer than a header.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, payload) = bytes.split_first_chunk()?;
        Some(Self { header, payload })
    }

    /// Where the frame goes.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> MacAddr {
        MacAddr(array_at(self.header, field::DESTINATION))
    }

    /// Where the frame comes from.
    #[must_use]
    #[inline]
    pub fn source(&self) -> MacAddr {
        MacAddr(array_at(self.header, field::SOURCE))
    }

    /// The type field right after the addresses: a tag's type when the frame is tagged; see
    /// [`vlan::payload`](crate::vlan::payload) for the type behind tags.
    #[must_use]
    #[inline]
    pub fn ether_type(&self) -> EtherType {
        EtherType(u16_at(self.header, field::ETHER_TYPE))
    }

    /// Everything after the 14 bytes of header, tags and padding included.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The 14 bytes of a header.
#[must_use]
pub fn emit(destination: MacAddr, source: MacAddr, ether_type: EtherType) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    put(&mut header, field::DESTINATION, destination.0);
    put(&mut header, field::SOURCE, source.0);
    put(&mut header, field::ETHER_TYPE, ether_type.0.to_be_bytes());
    header
}

/// Rewrites the addresses of the frame at the front of `frame`.
pub(crate) fn set_addresses(frame: &mut [u8], destination: MacAddr, source: MacAddr) {
    put(frame, field::DESTINATION, destination.0);
    put(frame, field::SOURCE, source.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_A: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    const HOST_B: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);

    #[test]
    fn emitted_fields_are_read_back() {
        let mut bytes = [0xa5; 20];
        bytes[..HEADER_LEN].copy_from_slice(&emit(HOST_A, HOST_B, EtherType::ARP));
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.destination(), HOST_A);
        assert_eq!(frame.source(), HOST_B);
        assert_eq!(frame.ether_type(), EtherType::ARP);
        assert_eq!(frame.payload(), [0xa5; 6]);
    }

    #[test]
    fn short_frames_are_refused() {
        assert!(Frame::parse(&[0; 13]).is_none());
        assert!(Frame::parse(&[0; 14]).is_some());
    }
}

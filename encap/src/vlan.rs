//! VLAN tags inside a frame (IEEE 802.1Q and 802.1ad), at most two of them.
//!
//! ```text
//!  type 0x8100 / 0x88a8   2                4
//! +----------------------+----------------+----------- - -
//! |  (of the frame)      | PCP DEI  VID   | next type
//! +----------------------+----------------+----------- - -
//! ```

use crate::bytes::{put_u16, u16_at};
use crate::ethernet::{self, EtherType, Frame};

mod field {
    pub(super) const CONTROL: usize = 0;
    pub(super) const ETHER_TYPE: usize = 2;
}

/// Bytes that one tag adds to a frame.
pub const TAG_LEN: usize = 4;

/// Tags that are looked through; a frame with more is not parsed further.
pub const TAGS_MAX: usize = 2;

/// A checked view of one tag: the four bytes after a tag's type field.
#[derive(Clone, Copy, Debug)]
pub struct Tag<'a> {
    bytes: &'a [u8; TAG_LEN],
}

impl<'a> Tag<'a> {
    /// From the payload of a frame (or tag) whose type says that a tag follows; `None` when it is
    /// cut short.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { bytes: bytes.first_chunk()? })
    }

    /// VLAN identifier, 0 to 4095; 0 means that only the priority counts.
    #[must_use]
    pub fn vid(&self) -> u16 {
        u16_at(self.bytes, field::CONTROL) & 0x0fff
    }

    /// Priority code point, 0 to 7.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.bytes[field::CONTROL] >> 5
    }

    /// The type of what follows the tag.
    #[must_use]
    pub fn ether_type(&self) -> EtherType {
        EtherType(u16_at(self.bytes, field::ETHER_TYPE))
    }
}

/// The bytes after a tag's type field: control word and the type of what follows.
#[must_use]
pub fn emit(priority: u8, vid: u16, next: EtherType) -> [u8; TAG_LEN] {
    let mut tag = [0; TAG_LEN];
    put_u16(&mut tag, field::CONTROL, (u16::from(priority & 7) << 13) | (vid & 0x0fff));
    put_u16(&mut tag, field::ETHER_TYPE, next.0);
    tag
}

/// The type and offset of a frame's payload behind up to [`TAGS_MAX`] tags; `None` when a header is
/// cut short. With more tags the type is that of the third tag.
#[must_use]
pub fn payload(frame: &[u8]) -> Option<(EtherType, usize)> {
    let mut ether_type = Frame::parse(frame)?.ether_type();
    let mut offset = ethernet::HEADER_LEN;
    for _ in 0..TAGS_MAX {
        if !ether_type.is_tag() {
            break;
        }
        ether_type = Tag::parse(frame.get(offset..)?)?.ether_type();
        offset += TAG_LEN;
    }
    Some((ether_type, offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;

    fn frame(types: &[EtherType], last: EtherType) -> Vec<u8> {
        let mut types = types.iter().chain([&last]);
        let mut bytes =
            ethernet::emit(MacAddr::ZERO, MacAddr::ZERO, *types.next().unwrap()).to_vec();
        for next in types {
            bytes.extend(emit(5, 0xabc, *next));
        }
        bytes
    }

    #[test]
    fn tag_fields_are_read_back() {
        let tag = emit(5, 0xabc, EtherType::IPV6);
        let tag = Tag::parse(&tag).unwrap();
        assert_eq!((tag.priority(), tag.vid(), tag.ether_type()), (5, 0xabc, EtherType::IPV6));
    }

    #[test]
    fn looks_behind_two_tags_and_not_three() {
        let (q, ad, v4) = (EtherType::VLAN, EtherType::SERVICE_VLAN, EtherType::IPV4);
        assert_eq!(payload(&frame(&[], v4)), Some((v4, 14)));
        assert_eq!(payload(&frame(&[q], v4)), Some((v4, 18)));
        assert_eq!(payload(&frame(&[ad, q], v4)), Some((v4, 22)));
        assert_eq!(payload(&frame(&[ad, q, q], v4)), Some((q, 22)));
        assert_eq!(payload(&frame(&[q], v4)[..17]), None);
    }
}

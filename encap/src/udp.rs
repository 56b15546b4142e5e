//! UDP (RFC 768).
//!
//! ```text
//!  0               2               4               6               8
//! +---------------+---------------+---------------+---------------+
//! |  source port  |  dest. port   |    length     |   checksum    |
//! +---------------+---------------+---------------+---------------+
//! ```

use crate::bytes::{put_u16, u16_at};

pub(crate) mod field {
    pub(crate) const SOURCE: usize = 0;
    pub(crate) const DESTINATION: usize = 2;
    pub(crate) const LENGTH: usize = 4;
    pub(crate) const CHECKSUM: usize = 6;
}

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;
/// The protocol's number in IP.
pub const PROTOCOL: u8 = 17;

/// A checked view of a datagram: the header is whole, and the length lies between the header and
/// the bytes there are.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    header: &'a [u8; HEADER_LEN],
    /// Exactly length bytes.
    bytes: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// From an IP payload; `None` when the lengths contradict. Bytes after the length are left out.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let len = usize::from(u16_at(header, field::LENGTH));
        if len < HEADER_LEN {
            return None;
        }
        Some(Self { header, bytes: bytes.get(..len)? })
    }

    /// Source port.
    #[must_use]
    pub fn source(&self) -> u16 {
        u16_at(self.header, field::SOURCE)
    }

    /// Destination port.
    #[must_use]
    pub fn destination(&self) -> u16 {
        u16_at(self.header, field::DESTINATION)
    }

    /// Header and payload, in bytes.
    #[must_use]
    #[inline]
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The checksum field; zero says that there is none.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.header, field::CHECKSUM)
    }

    /// Everything after the header.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
}

/// The header in front of `payload_len` bytes, checksum zero; `None` when the datagram would be
/// longer than 65535 bytes.
#[must_use]
pub fn emit(source: u16, destination: u16, payload_len: usize) -> Option<[u8; HEADER_LEN]> {
    let length = u16::try_from(payload_len.checked_add(HEADER_LEN)?).ok()?;
    let mut header = [0; HEADER_LEN];
    put_u16(&mut header, field::SOURCE, source);
    put_u16(&mut header, field::DESTINATION, destination);
    put_u16(&mut header, field::LENGTH, length);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emitted_fields_are_read_back() {
        let mut bytes = [0xa5; 20];
        bytes[..HEADER_LEN].copy_from_slice(&emit(49152, 53, 4).unwrap());
        let datagram = Datagram::parse(&bytes).unwrap();
        assert_eq!((datagram.source(), datagram.destination()), (49152, 53));
        assert_eq!((datagram.length(), datagram.checksum()), (12, 0));
        assert_eq!(datagram.payload(), [0xa5; 4]);
    }

    #[test]
    fn lengths_that_contradict_are_refused() {
        assert!(Datagram::parse(&[0; 7]).is_none());
        assert!(Datagram::parse(&[0, 0, 0, 0, 0, 7, 0, 0]).is_none());
        assert!(Datagram::parse(&[0, 0, 0, 0, 0, 9, 0, 0]).is_none());
        assert!(Datagram::parse(&[0, 0, 0, 0, 0, 8, 0, 0]).is_some());
        assert_eq!(emit(1, 2, 65528), None);
    }
}

//! TCP (RFC 9293).
//!
//! ```text
//!  0               2               4                               8
//! +---------------+---------------+-------------------------------+
//! |  source port  |  dest. port   |        sequence number        |
//! +---------------+---------------+----+--------+-----------------+
//! |    acknowledgement number     |off | flags  |     window      |
//! +---------------+---------------+----+--------+-----------------+
//! |   checksum    |    urgent     |  options (off * 4 - 20) ...
//! +---------------+---------------+---------------- - -
//! ```

use crate::bytes::{put, put_u16, u16_at, u32_at};

pub(crate) mod field {
    pub(crate) const SOURCE: usize = 0;
    pub(crate) const DESTINATION: usize = 2;
    pub(crate) const SEQUENCE: usize = 4;
    pub(crate) const ACKNOWLEDGEMENT: usize = 8;
    /// Data offset, reserved bits and flags as one 16-bit word.
    pub(crate) const FLAGS: usize = 12;
    pub(crate) const WINDOW: usize = 14;
    pub(crate) const CHECKSUM: usize = 16;
    pub(crate) const URGENT: usize = 18;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// The protocol's number in IP.
pub const PROTOCOL: u8 = 6;

/// No more data from the sender.
pub const FIN: u16 = 0x01;
/// Synchronize sequence numbers.
pub const SYN: u16 = 0x02;
/// Reset the connection.
pub const RST: u16 = 0x04;
/// Push.
pub const PSH: u16 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u16 = 0x10;
/// The urgent pointer counts.
pub const URG: u16 = 0x20;
/// ECN echo (RFC 3168).
pub const ECE: u16 = 0x40;
/// Congestion window reduced (RFC 3168).
pub const CWR: u16 = 0x80;
/// All flags and the reserved bits: everything of the word but the data offset.
pub(crate) const FLAGS_MASK: u16 = 0x0fff;

/// A checked view of a segment: the header with its options is whole.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    header: &'a [u8; HEADER_LEN],
    bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    /// From an IP payload; `None` when the header is cut short or its length impossible.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let segment = Self { header, bytes };
        (HEADER_LEN..=bytes.len()).contains(&segment.header_len()).then_some(segment)
    }

    /// Header bytes, options included: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.header[field::FLAGS] >> 4) * 4
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

    /// Sequence number of the first payload byte (or of SYN).
    #[must_use]
    pub fn sequence(&self) -> u32 {
        u32_at(self.header, field::SEQUENCE)
    }

    /// Acknowledgement number.
    #[must_use]
    pub fn acknowledgement(&self) -> u32 {
        u32_at(self.header, field::ACKNOWLEDGEMENT)
    }

    /// Flags and reserved bits, the lower 12 bits of their word.
    #[must_use]
    pub fn flags(&self) -> u16 {
        u16_at(self.header, field::FLAGS) & FLAGS_MASK
    }

    /// Window, unscaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        u16_at(self.header, field::WINDOW)
    }

    /// The checksum field.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        u16_at(self.header, field::CHECKSUM)
    }

    /// Urgent pointer.
    #[must_use]
    pub fn urgent(&self) -> u16 {
        u16_at(self.header, field::URGENT)
    }

    /// Options, padding included.
    #[must_use]
    pub fn options(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..self.header_len()).unwrap_or(&[])
    }

    /// Everything after the header.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header_len()..).unwrap_or(&[])
    }
}

/// What a new header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flags: [`FIN`] to [`CWR`].
    pub flags: u16,
    /// Window, unscaled.
    pub window: u16,
}

impl Header {
    /// The header in front of `options_len` bytes of options, checksum zero; `None` when the
    /// options are more than 40 bytes or not a multiple of four.
    #[must_use]
    pub fn emit(&self, options_len: usize) -> Option<[u8; HEADER_LEN]> {
        if options_len > 40 || !options_len.is_multiple_of(4) {
            return None;
        }
        let offset = ((HEADER_LEN + options_len) / 4) as u16;
        let mut header = [0; HEADER_LEN];
        put_u16(&mut header, field::SOURCE, self.source);
        put_u16(&mut header, field::DESTINATION, self.destination);
        put(&mut header, field::SEQUENCE, self.sequence.to_be_bytes());
        put(&mut header, field::ACKNOWLEDGEMENT, self.acknowledgement.to_be_bytes());
        put_u16(&mut header, field::FLAGS, (offset << 12) | (self.flags & FLAGS_MASK));
        put_u16(&mut header, field::WINDOW, self.window);
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emitted_fields_are_read_back() {
        let header = Header {
            source: 49152,
            destination: 443,
            sequence: 0x0102_0304,
            acknowledgement: 0x0506_0708,
            flags: ACK | PSH,
            window: 0x1122,
        };
        let mut bytes = [0xa5; 30];
        bytes[..HEADER_LEN].copy_from_slice(&header.emit(4).unwrap());
        let segment = Segment::parse(&bytes).unwrap();
        assert_eq!((segment.source(), segment.destination()), (49152, 443));
        assert_eq!((segment.sequence(), segment.acknowledgement()), (0x0102_0304, 0x0506_0708));
        assert_eq!((segment.flags(), segment.window()), (ACK | PSH, 0x1122));
        assert_eq!((segment.checksum(), segment.urgent()), (0, 0));
        assert_eq!((segment.header_len(), segment.options()), (24, &[0xa5; 4][..]));
        assert_eq!(segment.payload(), [0xa5; 6]);
    }

    #[test]
    fn impossible_header_lengths_are_refused() {
        let mut bytes = Header::default().emit(0).unwrap();
        assert!(Segment::parse(&bytes).is_some());
        assert!(Segment::parse(&bytes[..19]).is_none());
        for offset in [0x00, 0x40, 0x60] {
            bytes[12] = offset;
            assert!(Segment::parse(&bytes).is_none());
        }
        assert_eq!(Header::default().emit(3), None);
        assert_eq!(Header::default().emit(44), None);
    }
}

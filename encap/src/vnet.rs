//! The virtio network header in front of every frame of a TAP opened with `IFF_VNET_HDR`
//! (virtio 1.2 section 5.1.6; include/uapi/linux/virtio_net.h).
//!
//! ```text
//!  0       1          2         4          6            8             10            12
//! +-------+----------+---------+----------+------------+-------------+-------------+
//! | flags | gso type | hdr len | gso size | csum start | csum offset | num buffers |
//! +-------+----------+---------+----------+------------+-------------+-------------+
//! ```
//!
//! Numbers are in the machine's byte order, which is the TAP's default. A TAP ignores the last
//! field.

mod field {
    pub(super) const FLAGS: usize = 0;
    pub(super) const GSO_TYPE: usize = 1;
    pub(super) const HDR_LEN: usize = 2;
    pub(super) const GSO_SIZE: usize = 4;
    pub(super) const CSUM_START: usize = 6;
    pub(super) const CSUM_OFFSET: usize = 8;
}

/// Bytes of the header, `num_buffers` included: what `TUNSETVNETHDRSZ` is set to.
pub const LEN: usize = 12;

/// Flag: the checksum field holds only the pseudo-header sum; the range is `csum_start` to the end.
pub const NEEDS_CSUM: u8 = 1;
/// Flag: the checksum was verified.
pub const DATA_VALID: u8 = 2;

/// Not a super-frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP fragmentation offload; obsolete, never negotiated here.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP segmentation (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Bit beside a TCP type: the super-frame has CWR set, which belongs to its first segment only.
pub const GSO_ECN: u8 = 0x80;

/// The header's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`], or none.
    pub flags: u8,
    /// One of the `GSO_` numbers, with [`GSO_ECN`] or without.
    pub gso_type: u8,
    /// All headers in bytes. On frames read from a TAP this is only a hint.
    pub hdr_len: u16,
    /// TCP or UDP payload bytes per segment; 0 without a type.
    pub gso_size: u16,
    /// Offset in the frame where the checksummed range begins.
    pub csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: u16,
}

impl Header {
    /// An ordinary frame of which nothing is known.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// From the bytes in front of a frame. Every value is possible; [`segment::plan`] judges them.
    ///
    /// [`segment::plan`]: crate::segment::plan
    #[must_use]
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[field::FLAGS],
            gso_type: bytes[field::GSO_TYPE],
            hdr_len: number(field::HDR_LEN),
            gso_size: number(field::GSO_SIZE),
            csum_start: number(field::CSUM_START),
            csum_offset: number(field::CSUM_OFFSET),
        }
    }

    /// The bytes to write in front of a frame.
    #[must_use]
    pub fn emit(&self) -> [u8; LEN] {
        let [hdr_len, gso_size, csum_start, csum_offset] =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].map(u16::to_ne_bytes);
        let mut bytes = [0; LEN];
        bytes[field::FLAGS] = self.flags;
        bytes[field::GSO_TYPE] = self.gso_type;
        bytes[field::HDR_LEN..field::GSO_SIZE].copy_from_slice(&hdr_len);
        bytes[field::GSO_SIZE..field::CSUM_START].copy_from_slice(&gso_size);
        bytes[field::CSUM_START..field::CSUM_OFFSET].copy_from_slice(&csum_start);
        bytes[field::CSUM_OFFSET..field::CSUM_OFFSET + 2].copy_from_slice(&csum_offset);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_back() {
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 66,
            gso_size: 1398,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(Header::parse(&header.emit()), header);
        assert_eq!(Header::NONE.emit(), [0; LEN]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn layout_is_the_kernels() {
        let bytes = [1, 0x81, 66, 0, 0x76, 5, 34, 0, 16, 0, 0xa5, 0xa5];
        let header = Header::parse(&bytes);
        assert_eq!((header.gso_size, header.csum_start, header.csum_offset), (1398, 34, 16));
        assert_eq!(header.emit()[..10], bytes[..10]);
    }
}

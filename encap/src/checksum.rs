//! The Internet checksum (RFC 1071), in pieces that can be added, and its incremental update
//! (RFC 1624).
//!
//! A [`Sum`] is kept in the machine's byte order: the ones' complement sum does not depend on the
//! order (RFC 1071 section 2 B), so words are added as they are loaded and only the folded result
//! is turned round.

/// An unfinished ones' complement sum.
///
/// Every part added must begin at an even offset of the checksummed range; only the last part may
/// have an odd length (RFC 1071 pads it with a zero byte).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of `bytes`, of any length.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        // 32-bit words into eight 64-bit lanes: no carry can be lost below 2^32 words, and the
        // fixed chunk lets the compiler use vector registers.
        let mut lanes = [0_u64; 8];
        let (chunks, rest) = bytes.as_chunks::<32>();
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum = 0_u64;
        for lane in lanes {
            sum += half(lane);
        }
        let (words, tail) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        Self(half(sum + u64::from(u32::from_ne_bytes(last))))
    }

    /// The sum of `from`, of any length, which is copied to `to` on the way: as far as both reach.
    #[must_use]
    pub fn of_copied(from: &[u8], to: &mut [u8]) -> Self {
        let len = from.len().min(to.len());
        let mut lanes = [0_u64; 8];
        let (chunks, rest) = from[..len].as_chunks::<32>();
        let (copies, rest_copy) = to[..len].as_chunks_mut::<32>();
        for (chunk, copy) in chunks.iter().zip(copies) {
            *copy = *chunk;
            let (words, _) = chunk.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        rest_copy.copy_from_slice(rest);
        let mut sum = Self::of(rest).0;
        for lane in lanes {
            sum += half(lane);
        }
        Self(half(sum))
    }

    /// Adds `bytes`.
    #[must_use]
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.sum(Self::of(bytes))
    }

    /// Adds another sum.
    #[must_use]
    #[inline]
    pub fn sum(self, other: Self) -> Self {
        Self(half(self.0.wrapping_add(other.0)))
    }

    /// Adds a 16-bit field by its value.
    #[must_use]
    #[inline]
    pub fn u16(self, value: u16) -> Self {
        self.sum(Self(u64::from(value.to_be())))
    }

    /// Adds a 32-bit field by its value.
    #[must_use]
    #[inline]
    pub fn u32(self, value: u32) -> Self {
        self.sum(Self(u64::from(value.to_be())))
    }

    /// The sum folded to 16 bits, *not* complemented: what a partial checksum field holds. Zero
    /// only when everything added was zero.
    #[must_use]
    #[inline]
    pub fn fold(self) -> u16 {
        let sum = half(half(self.0));
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be((sum & 0xffff) as u16)
    }

    /// The complement of [`fold`](Self::fold): the value for a checksum field that was zero (or
    /// left out) while adding.
    #[must_use]
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// As [`finish`](Self::finish) for UDP, where a computed zero is sent as all ones because zero
    /// means that there is no checksum (RFC 768).
    #[must_use]
    #[inline]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            check => check,
        }
    }

    /// A sum over a range that includes its own checksum field is right exactly when it is all
    /// ones.
    #[must_use]
    #[inline]
    pub fn verifies(self) -> bool {
        self.fold() == 0xffff
    }
}

/// Folds 64 bits to 33 with the value kept modulo 2^16 - 1.
#[inline]
const fn half(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// The checksum field of one run of bytes whose field is zero or left out.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::of(bytes).finish()
}

/// The checksum field after one 16-bit word of the range changed from `old` to `new`.
//= https://www.rfc-editor.org/rfc/rfc1624#section-3 (equation 3)
#[must_use]
pub fn update(check: u16, old: u16, new: u16) -> u16 {
    Sum::ZERO.u16(!check).u16(!old).u16(new).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(checksum(&bytes), !0xddf2);
    }

    #[test]
    fn agrees_with_the_plain_sum_at_every_length() {
        let bytes: Vec<u8> =
            (0..200_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(Sum::of(&bytes[..len]).fold(), plain(&bytes[..len]), "{len}");
        }
        assert_eq!(Sum::of(&[0xff; 70_001]).fold(), plain(&[0xff; 70_001]));
    }

    #[test]
    fn parts_add_up() {
        let bytes: Vec<u8> = (0..=255).collect();
        let whole = Sum::of(&bytes).fold();
        assert_eq!(Sum::of(&bytes[..34]).bytes(&bytes[34..]).fold(), whole);
        let fields = Sum::ZERO.u16(0x0001).u32(0x0203_0405).bytes(&bytes[6..]);
        assert_eq!(fields.fold(), whole);
    }

    #[test]
    fn update_equals_a_new_sum() {
        let mut header =
            [0x45, 0, 0, 84, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        for tos in 0..=255_u8 {
            header[1] = 0;
            let before = checksum(&header);
            header[1] = tos;
            assert_eq!(update(before, 0x4500, 0x4500 | u16::from(tos)), checksum(&header));
        }
    }

    #[test]
    fn udp_zero_becomes_all_ones() {
        assert_eq!(Sum::of(&[0xff, 0xff]).finish_udp(), 0xffff);
        assert_eq!(Sum::of(&[0xff, 0xff]).finish(), 0);
    }
}

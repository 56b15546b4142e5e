//! The position-dependent byte sequence that receivers check.
//!
//! Byte `n` of a sequence is byte `n % 8`, little-endian, of a 64-bit word made from the seed and
//! `n / 8` alone. So any piece can be made or checked without what came before it, and two
//! positions practically never carry the same eight bytes.

/// Bytes per word of the sequence.
const WORD: usize = 8;

/// Word `index` of the sequence of `seed`: Steele, Lea and Flood's SplitMix64 finaliser over a
/// Weyl sequence, which passes through a bijection and is two multiplications per eight bytes.
#[inline]
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes the bytes from position `offset` of the sequence of `seed` over the whole of `out`.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let (head, index) = head_len(offset, out.len());
    let (first, rest) = out.split_at_mut(head);
    copy_within_word(seed, offset, first);
    let mut index = index;
    let mut words = rest.chunks_exact_mut(WORD);
    for chunk in &mut words {
        chunk.copy_from_slice(&word(seed, index).to_le_bytes());
        index = index.wrapping_add(1);
    }
    copy_within_word(seed, index.wrapping_mul(WORD as u64), words.into_remainder());
}

/// The index in `data` of the first byte that differs from the sequence of `seed` at position
/// `offset`, `None` if all of it is right.
#[must_use]
pub fn first_difference(seed: u64, offset: u64, data: &[u8]) -> Option<usize> {
    let (head, mut index) = head_len(offset, data.len());
    let (first, rest) = data.split_at(head);
    if let Some(at) = differs_within_word(seed, offset, first) {
        return Some(at);
    }
    let mut at = head;
    let mut words = rest.chunks_exact(WORD);
    for chunk in &mut words {
        let want = word(seed, index);
        if chunk != want.to_le_bytes() {
            return differs_within_word(seed, index.wrapping_mul(WORD as u64), chunk)
                .map(|inside| at + inside);
        }
        index = index.wrapping_add(1);
        at += WORD;
    }
    differs_within_word(seed, index.wrapping_mul(WORD as u64), words.remainder())
        .map(|inside| at + inside)
}

/// Bytes up to the next word boundary (at most `len`), and the index of the word after them.
fn head_len(offset: u64, len: usize) -> (usize, u64) {
    let inside = (offset % WORD as u64) as usize;
    let head = if inside == 0 { 0 } else { (WORD - inside).min(len) };
    (head, offset.div_ceil(WORD as u64))
}

/// Fills a piece that does not cross a word boundary.
fn copy_within_word(seed: u64, offset: u64, out: &mut [u8]) {
    let bytes = word(seed, offset / WORD as u64).to_le_bytes();
    let from = (offset % WORD as u64) as usize;
    for (to, byte) in out.iter_mut().zip(bytes.iter().skip(from)) {
        *to = *byte;
    }
}

/// Compares a piece that does not cross a word boundary.
fn differs_within_word(seed: u64, offset: u64, data: &[u8]) -> Option<usize> {
    let bytes = word(seed, offset / WORD as u64).to_le_bytes();
    let from = (offset % WORD as u64) as usize;
    data.iter().zip(bytes.iter().skip(from)).position(|(is, want)| is != want)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_equals_the_same_range_of_the_whole() {
        let mut whole = [0; 200];
        fill(7, 0, &mut whole);
        for start in 0..40 {
            for len in 0..60 {
                let mut piece = vec![0xa5; len];
                fill(7, start as u64, &mut piece);
                assert_eq!(piece, &whole[start..start + len], "start {start} len {len}");
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_found_at_every_position() {
        for start in 0..9_u64 {
            let mut data = [0; 43];
            fill(3, start, &mut data);
            assert_eq!(first_difference(3, start, &data), None);
            for at in 0..data.len() {
                data[at] ^= 0x40;
                assert_eq!(first_difference(3, start, &data), Some(at), "start {start}");
                data[at] ^= 0x40;
            }
        }
    }

    #[test]
    fn a_shifted_piece_does_not_pass() {
        let mut data = [0; 64];
        fill(9, 8, &mut data);
        assert_eq!(first_difference(9, 0, &data), Some(0));
        assert_eq!(first_difference(10, 8, &data), Some(0));
    }
}

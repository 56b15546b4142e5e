//! Reads and writes at an offset that never panic: a read past the end gives zeros, a write past
//! the end does nothing. Callers have checked lengths before; this only keeps a mistake there from
//! becoming a crash.

/// `N` bytes from offset `at`.
#[inline(always)]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

#[inline(always)]
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, at))
}

#[inline(always)]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

/// Writes `value` at offset `at`.
#[inline(always)]
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *place = value;
    }
}

#[inline(always)]
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, value.to_be_bytes());
}

/// Copies the parts one after another to the front of `out`; the length in all, `None` when `out`
/// is too small.
pub(crate) fn gather(out: &mut [u8], parts: &[&[u8]]) -> Option<usize> {
    let mut len = 0_usize;
    for part in parts {
        out.get_mut(len..len.checked_add(part.len())?)?.copy_from_slice(part);
        len += part.len();
    }
    Some(len)
}

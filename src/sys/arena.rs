//! Large buffers that packets are copied into and out of.

use std::alloc::{self, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Size of a huge page on every platform that we know.
const HUGE: usize = 2 << 20;

/// A zeroed buffer on huge pages where the kernel gives them (`madvise(2)`, `MADV_HUGEPAGE`): every
/// packet passes through it twice, and with small pages each pass misses the TLB many times, which
/// is dear in a virtual machine.
pub struct Arena {
    start: NonNull<u8>,
    len: usize,
    layout: Layout,
}

// SAFETY: the value owns its memory alone, as a `Vec<u8>` would.
unsafe impl Send for Arena {}

impl Arena {
    /// `len` zero bytes, rounded up to whole huge pages for the allocator.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let size = len.max(1).next_multiple_of(HUGE);
        let Ok(layout) = Layout::from_size_align(size, HUGE) else {
            alloc::handle_alloc_error(Layout::new::<u8>());
        };
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc::alloc(layout) };
        let Some(start) = NonNull::new(start) else { alloc::handle_alloc_error(layout) };
        // SAFETY: the range is the allocation just made, aligned to whole pages; the advice changes
        // neither its contents nor its validity. A refusal leaves small pages.
        unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        // Only after the advice: the first touch decides on the page's size.
        // SAFETY: the whole allocation is written, which nobody else knows of yet.
        unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        Self { start, len, layout }
    }
}

impl Deref for Arena {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes of an allocation that lives as long as the value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Arena {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the value is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new` and freed only here.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_asked_for_zeroed_and_aligned() {
        for len in [0, 1, HUGE - 1, HUGE, HUGE + 1] {
            let mut arena = Arena::new(len);
            assert_eq!(arena.len(), len);
            assert!(arena.iter().all(|byte| *byte == 0));
            assert_eq!(arena.as_ptr() as usize % HUGE, 0);
            arena.fill(0xa5);
            assert!(arena.iter().all(|byte| *byte == 0xa5));
        }
    }
}

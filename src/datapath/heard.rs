//! What all workers know of a VTEP together: whether valid datagrams came from it lately, and whether
//! the path says that it cannot be reached.
//!
//! A host whose lease ended stays in flood lists for as long as it is heard. That a VTEP is
//! unreachable is told to senders, and what the path says of it comes to any of the workers, as what
//! the VTEP sends does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fdb::VtepKey;

/// VTEPs that are followed; those beyond are never reported as heard, nor as unreachable.
pub const SLOTS: usize = 65_536;
/// How long a VTEP is said to be unreachable before a sender is told.
const UNREACHABLE_MS: u64 = 1000;
/// What was said this long ago belongs to another trouble.
const UNREACHABLE_STALE_MS: u64 = 10_000;

#[derive(Debug, Default)]
struct Slot {
    heard: AtomicBool,
    /// Times are of the workers' clock, from 1 on; 0 is never.
    heard_ms: AtomicU64,
    /// Since when it is said to be unreachable.
    unreachable_ms: AtomicU64,
    /// When that was said last.
    said_ms: AtomicU64,
}

/// One slot per VTEP, written by the workers. A race between them costs one answer more or less.
#[derive(Debug)]
pub struct Heard(Box<[Slot]>);

impl Default for Heard {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| Slot::default()).collect())
    }
}

impl Heard {
    fn slot(&self, vtep: VtepKey) -> Option<&Slot> {
        self.0.get(vtep.0 as usize)
    }

    /// Notes a datagram of `vtep`. What is set, or later by another worker's clock, is only read, so that
    /// workers do not fight for its cache line.
    #[inline]
    pub fn mark(&self, vtep: VtepKey, now_ms: u64) {
        let Some(slot) = self.slot(vtep) else { return };
        if !slot.heard.load(Ordering::Relaxed) {
            slot.heard.store(true, Ordering::Relaxed);
        }
        if slot.heard_ms.load(Ordering::Relaxed) <= now_ms {
            slot.heard_ms.store(now_ms + 1, Ordering::Relaxed);
        }
    }

    /// Notes that the path says that `vtep` cannot be reached. What its address sends is marked as
    /// `heard_as`, which is another slot where it is a VTEP on several ports.
    pub fn note_unreachable(&self, vtep: VtepKey, heard_as: VtepKey, now_ms: u64) {
        let Some(slot) = self.slot(vtep) else { return };
        let said = slot.said_ms.swap(now_ms + 1, Ordering::Relaxed);
        let goes_on = !self.heard_since(heard_as, said)
            && (now_ms + 1).saturating_sub(said) < UNREACHABLE_STALE_MS;
        if !goes_on {
            slot.unreachable_ms.store(now_ms + 1, Ordering::Relaxed);
        }
    }

    fn heard_since(&self, vtep: VtepKey, said: u64) -> bool {
        self.slot(vtep).is_some_and(|slot| said <= slot.heard_ms.load(Ordering::Relaxed))
    }

    /// Whether `vtep` was heard since the last call.
    pub fn take(&self, vtep: VtepKey) -> bool {
        self.slot(vtep).is_some_and(|slot| slot.heard.swap(false, Ordering::Relaxed))
    }

    /// When it was said last that `vtep` cannot be reached, if that is to be believed: it was said
    /// for a while, lately, and nothing came from there since, which is marked as `heard_as`.
    #[inline]
    #[must_use]
    pub fn unreachable(&self, vtep: VtepKey, heard_as: VtepKey, now_ms: u64) -> Option<u64> {
        let slot = self.slot(vtep)?;
        let said = slot.said_ms.load(Ordering::Relaxed);
        (said != 0
            && !self.heard_since(heard_as, said)
            && said.saturating_sub(slot.unreachable_ms.load(Ordering::Relaxed)) >= UNREACHABLE_MS
            && (now_ms + 1).saturating_sub(said) < UNREACHABLE_STALE_MS)
            .then_some(said)
    }
}

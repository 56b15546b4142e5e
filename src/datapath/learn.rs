//! Learned addresses on their way from the workers to the table writer.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use encap::MacAddr;
use fdb::{NetworkKey, VtepKey};

/// Addresses waiting for the writer; more are counted and lost, to be seen again with the next
/// frame of that source.
pub const CAPACITY: usize = 4096;

/// A source MAC seen behind a VTEP, in a network that learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Where it was seen.
    pub network: NetworkKey,
    /// Whom.
    pub mac: MacAddr,
    /// Behind which VTEP.
    pub vtep: VtepKey,
}

/// The bounded queue that all workers fill and the writer empties.
#[derive(Debug)]
pub struct LearnQueue {
    waiting: ArrayQueue<Learned>,
    /// The most that the writer has found in it.
    high: AtomicUsize,
}

impl Default for LearnQueue {
    fn default() -> Self {
        Self { waiting: ArrayQueue::new(CAPACITY), high: AtomicUsize::new(0) }
    }
}

impl LearnQueue {
    /// False when the queue is full.
    #[inline]
    pub fn push(&self, learned: Learned) -> bool {
        self.waiting.push(learned).is_ok()
    }

    /// Takes what is waiting.
    pub fn drain(&self) -> impl Iterator<Item = Learned> + '_ {
        self.high.fetch_max(self.waiting.len(), Ordering::Relaxed);
        std::iter::from_fn(|| self.waiting.pop())
    }

    /// How many wait now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The most that the writer has found waiting.
    #[must_use]
    pub fn high(&self) -> usize {
        self.high.load(Ordering::Relaxed)
    }
}

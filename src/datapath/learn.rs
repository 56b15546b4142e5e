//! Learned addresses on their way from the workers to the table writer.
//!
//! # Theory of operation
//!
//! Every worker puts what it sees into one bounded queue, which the writer empties every 50 ms. A VTEP
//! that floods source MACs must not fill it for the others: each worker tells of at most [`SHARE`]
//! addresses of a VTEP within that time, so that many VTEPs have to flood before anything else is
//! lost. What is not told now is told with the next frame of that source. The frames themselves go on
//! in any case.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use encap::MacAddr;
use fdb::{NetworkKey, VtepKey};

/// Addresses waiting for the writer; more are counted and lost, to be seen again with the next
/// frame of that source.
pub const CAPACITY: usize = 4096;

/// Addresses of one VTEP that a worker tells of within [`WINDOW_MS`].
pub const SHARE: u16 = 256;
/// As often as the writer empties the queue.
pub const WINDOW_MS: u64 = 50;
/// VTEPs are told apart by this many slots; those of one slot share.
const SLOTS: usize = 256;

/// What a worker has told of in the present window.
#[derive(Debug)]
pub struct Share {
    told: Box<[u16; SLOTS]>,
    last: Option<Learned>,
    since_ms: u64,
}

/// Whether an address is to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is.
    Fresh,
    /// Its VTEP's share is used up.
    Spent,
    /// It was just told.
    Told,
}

impl Default for Share {
    fn default() -> Self {
        Self { told: Box::new([0; SLOTS]), last: None, since_ms: 0 }
    }
}

impl Share {
    /// Takes one address from its VTEP's share.
    #[inline]
    pub fn take(&mut self, learned: Learned, now_ms: u64) -> Taken {
        if now_ms.saturating_sub(self.since_ms) >= WINDOW_MS {
            self.since_ms = now_ms;
            self.last = None;
            self.told.fill(0);
        }
        // A stream of a source that the tables do not have yet.
        if self.last == Some(learned) {
            return Taken::Told;
        }
        let Some(told) = self.told.get_mut(learned.vtep.0 as usize % SLOTS) else {
            return Taken::Spent;
        };
        if *told >= SHARE {
            return Taken::Spent;
        }
        *told += 1;
        self.last = Some(learned);
        Taken::Fresh
    }
}

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

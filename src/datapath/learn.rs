//! Learned addresses on their way from the workers to the table writer.

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
pub struct LearnQueue(ArrayQueue<Learned>);

impl Default for LearnQueue {
    fn default() -> Self {
        Self(ArrayQueue::new(CAPACITY))
    }
}

impl LearnQueue {
    /// False when the queue is full.
    #[inline]
    pub fn push(&self, learned: Learned) -> bool {
        self.0.push(learned).is_ok()
    }

    /// Takes what is waiting.
    pub fn drain(&self) -> impl Iterator<Item = Learned> + '_ {
        std::iter::from_fn(|| self.0.pop())
    }
}

//! Ingress replication: one copy of a broadcast, multicast or unknown frame for each VTEP of the
//! network (RFC 8365 section 3), within a rate budget.
//!
//! # Theory of operation
//!
//! The budget is of frames that containers of this host may have flooded in one network, as a
//! switch's storm control counts them: it does not shrink when hosts join. What a host sends is at
//! most the budget times the other hosts. A super-frame counts as the frames that it becomes.
//!
//! It is a bucket that holds one second's worth, kept as the one moment at which it will be full
//! again (the generic cell rate algorithm), so that all workers share it without a lock. Only
//! flooded frames touch it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds of budget that may be used at once after a quiet second.
const BURST_NS: u64 = 1_000_000_000;

/// What the containers of one host may have flooded in one network.
#[derive(Debug, Default)]
pub struct Budget {
    /// When it will be full again, in nanoseconds of the turn's clock.
    full_ns: AtomicU64,
}

impl Budget {
    /// Takes `frames` from a budget of `rate` frames per second if it has them. More than a second's
    /// worth at once is taken from a full one.
    #[inline]
    pub fn take(&self, frames: u64, rate: u32, now_ms: u64) -> bool {
        let now = now_ms.saturating_mul(1_000_000);
        let cost = frames.saturating_mul(1_000_000_000) / u64::from(rate.max(1));
        let taken = self.full_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            let next = full.max(now).saturating_add(cost);
            (full <= now || next - now <= BURST_NS).then_some(next)
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_spent_and_comes_back_with_time() {
        let budget = Budget::default();
        for _ in 0..1000 {
            assert!(budget.take(1, 1000, 5000));
        }
        assert!(!budget.take(1, 1000, 5000));
        assert!(budget.take(10, 1000, 5010));
        assert!(!budget.take(1, 1000, 5010));
        // After a quiet second it is full, and not fuller after ten.
        assert!(budget.take(1000, 1000, 15_010));
        assert!(!budget.take(1, 1000, 15_010));
    }

    #[test]
    fn a_large_super_frame_needs_a_full_budget() {
        let budget = Budget::default();
        assert!(budget.take(64, 10, 1000));
        assert!(!budget.take(1, 10, 2000));
        assert!(budget.take(64, 10, 8000));
    }
}

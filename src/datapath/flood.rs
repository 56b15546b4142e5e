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
//! flooded frames touch it. A port's ICMP answers have such a bucket too, which holds less.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND_NS: u64 = 1_000_000_000;

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
        self.take_of(frames, rate, rate, now_ms)
    }

    /// As [`take`](Self::take), from a budget that holds `burst` frames.
    #[inline]
    pub fn take_of(&self, frames: u64, rate: u32, burst: u32, now_ms: u64) -> bool {
        let now = now_ms.saturating_mul(1_000_000);
        let time = |frames: u64| frames.saturating_mul(SECOND_NS) / u64::from(rate.max(1));
        let (cost, burst_ns) = (time(frames), time(u64::from(burst.max(1))));
        let taken = self.full_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            let next = full.max(now).saturating_add(cost);
            (full <= now || next - now <= burst_ns).then_some(next)
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

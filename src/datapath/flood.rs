//! Ingress replication: one copy of a broadcast, multicast or unknown frame for each VTEP of the
//! network (RFC 8365 section 3), within a rate budget.

/// Copies per second that one port may cause on one worker, and the burst it may do at once.
pub const COPIES_PER_SECOND: u64 = 20_000;
/// Copies that may go at once after a quiet second.
pub const BURST: u64 = 20_000;

/// A token bucket, refilled by the turn's clock.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    tokens: u64,
    refilled_ms: u64,
}

impl Budget {
    /// Full.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self { tokens: BURST, refilled_ms: now_ms }
    }

    /// Takes `copies` if the budget has them.
    #[inline]
    pub fn take(&mut self, copies: u64, now_ms: u64) -> bool {
        let elapsed = now_ms.saturating_sub(self.refilled_ms);
        if elapsed != 0 {
            let fresh = elapsed.saturating_mul(COPIES_PER_SECOND) / 1000;
            self.tokens = self.tokens.saturating_add(fresh).min(BURST);
            self.refilled_ms = now_ms;
        }
        if self.tokens < copies {
            return false;
        }
        self.tokens -= copies;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_spent_and_comes_back_with_time() {
        let mut budget = Budget::new(0);
        assert!(budget.take(BURST, 0));
        assert!(!budget.take(1, 0));
        assert!(budget.take(COPIES_PER_SECOND / 100, 10));
        assert!(!budget.take(1, 10));
    }
}

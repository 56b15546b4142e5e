//! Whether a worker still turns: the control plane asks, the worker answers with its next turn.

use std::sync::atomic::{AtomicU64, Ordering};

/// Questions and answers of one worker, numbered.
#[derive(Debug, Default)]
pub struct Pulse {
    asked: AtomicU64,
    answered: AtomicU64,
}

impl Pulse {
    /// Asks once more. True when the last question was answered; the caller wakes the worker.
    pub fn ask(&self) -> bool {
        let before = self.asked.fetch_add(1, Ordering::Relaxed);
        self.answered.load(Ordering::Relaxed) >= before
    }

    /// Answers whatever was asked so far. Only the worker calls it.
    pub fn answer(&self) {
        self.answered.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_turn_is_found_at_the_next_question() {
        let pulse = Pulse::default();
        assert!(pulse.ask(), "nothing was asked before");
        assert!(!pulse.ask());
        pulse.answer();
        assert!(pulse.ask());
        assert!(!pulse.ask());
    }
}

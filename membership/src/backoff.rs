//! Pauses between attempts to reach the store.
//!
//! A store that is away is asked again soon and for ever: the tables of every host shall be right
//! again within two seconds of its return, so the longest pause is a second. A thousand hosts then
//! knock about fourteen hundred times a second, each with one packet that is refused or lost. What
//! costs the store more than a packet is rarer: answers that say no (a password is checked with a
//! slow hash) are followed by pauses up to five seconds.

use std::time::Duration;

use crate::store::Error;

/// The first pause.
pub(crate) const FIRST: Duration = Duration::from_millis(50);
/// The longest pause while nobody answers.
pub(crate) const AWAY: Duration = Duration::from_secs(1);
/// The longest pause after an answer that somebody must do something about.
pub(crate) const REFUSED: Duration = Duration::from_secs(5);

/// Counts attempts and tells how long to wait after each.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempt: u32,
}

impl Backoff {
    /// The last attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The pause after one more failure: from half to the whole of one that doubles from `first`
    /// to `longest`, so that many hosts do not act in step.
    pub(crate) fn next(&mut self, first: Duration, longest: Duration) -> Duration {
        let doubled = first.saturating_mul(1 << self.attempt.min(16));
        self.attempt = self.attempt.saturating_add(1);
        doubled.min(longest).mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

/// The longest pause after this error, where `away` is that of a store that does not answer.
pub(crate) fn longest(error: &Error, away: Duration) -> Duration {
    if error.is_transient() || *error == Error::LeaseEnded { away } else { away.max(REFUSED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_longest_and_start_again() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.next(FIRST, AWAY)).collect();
        for (number, pause) in pauses.iter().enumerate() {
            let whole = FIRST.saturating_mul(1 << number.min(16)).min(AWAY);
            assert!(*pause >= whole / 2 && *pause <= whole, "pause {number}: {pause:?}");
        }
        backoff.reset();
        assert!(backoff.next(FIRST, AWAY) <= FIRST);
    }

    #[test]
    fn who_is_refused_waits_longer() {
        let endpoints = "http://192.0.2.1:2379".to_owned();
        let away = Error::NoLeader { endpoints: endpoints.clone() };
        let refused = Error::Access { endpoints, cause: "no such user".to_owned() };
        assert_eq!(longest(&away, AWAY), AWAY);
        assert_eq!(longest(&Error::LeaseEnded, AWAY), AWAY);
        assert_eq!(longest(&refused, AWAY), REFUSED);
    }
}

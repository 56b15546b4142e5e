//! How fast the tables follow the store.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use membership::key::EndpointId;

use crate::control::types::{self, Listing};

/// Times that percentiles are made of.
const WINDOW: usize = 1000;
/// Attaches under way at a time; those beyond are not measured.
const EXPECTED_MAX: usize = 1024;

/// Times of one kind: all of them counted, the last [`WINDOW`] kept.
#[derive(Debug, Default)]
struct Times {
    last: VecDeque<u64>,
    count: u64,
    max: u64,
}

impl Times {
    fn add(&mut self, took: Duration) {
        let micros = micros(took);
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(micros);
        self.count += 1;
        self.max = self.max.max(micros);
    }

    fn summary(&self) -> types::Latency {
        let mut sorted: Vec<u64> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        // The least time that this share of them did not exceed.
        let within = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        types::Latency {
            count: self.count,
            p50_us: within(50),
            p99_us: within(99),
            max_us: self.max,
        }
    }
}

/// What was measured since the agent started.
#[derive(Debug, Default)]
pub(super) struct Convergence {
    changes: Times,
    own: Times,
    expected: HashMap<EndpointId, Instant>,
    listing: Option<Listing>,
}

impl Convergence {
    /// An endpoint is about to be written to the store.
    pub(super) fn expect(&mut self, endpoint: EndpointId) {
        if self.expected.len() < EXPECTED_MAX {
            self.expected.insert(endpoint, Instant::now());
        }
    }

    /// It will not come, or has come.
    pub(super) fn forget(&mut self, endpoint: &EndpointId) -> Option<Instant> {
        self.expected.remove(endpoint)
    }

    /// Tables with an endpoint that was written at `asked` are published.
    pub(super) fn came(&mut self, asked: Instant) {
        self.own.add(asked.elapsed());
    }

    /// Tables with a change of the store are published, `took` after it came here.
    pub(super) fn changed(&mut self, took: Duration) {
        self.changes.add(took);
    }

    /// Tables with a whole listing are published.
    pub(super) fn listed(&mut self, took: Duration, endpoints: usize) {
        self.listing = Some(Listing { took_us: micros(took), endpoints: endpoints as u64 });
    }

    /// For the status.
    pub(super) fn summary(&self) -> types::Convergence {
        types::Convergence {
            changes: self.changes.summary(),
            own: self.own.summary(),
            listing: self.listing,
        }
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_thousand() {
        let mut times = Times::default();
        assert_eq!(times.summary(), types::Latency::default());
        times.add(Duration::from_micros(7));
        let one = types::Latency { count: 1, p50_us: 7, p99_us: 7, max_us: 7 };
        assert_eq!(times.summary(), one);
        times.add(Duration::from_secs(1));
        for micros in 1..=1000 {
            times.add(Duration::from_micros(micros));
        }
        let all = types::Latency { count: 1002, p50_us: 500, p99_us: 990, max_us: 1_000_000 };
        assert_eq!(times.summary(), all);
    }
}

//! What the ports counted, for as long as the agent runs.
//!
//! # Theory of operation
//!
//! A port comes and goes with the endpoints of its network, and comes anew when it is set up again;
//! its totals must neither fall nor be lost. So they belong to the network's name, and a port only
//! adds to them. Each worker writes the counters of its own queue. Those of a port that is taken
//! away stay in the sums until the worker has let go of them, and only then are they folded into
//! the account: what a worker counted with its last turn is not lost either.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::drop::DropReason;
use super::port::PortStats;
use crate::telemetry::counters::PortCounters;

/// Networks whose totals are kept, here or gone; those of the first ones beyond, by name, are added
/// to the figures that have no network.
pub const NETWORKS: usize = 4096;

/// The values of each network, by its name.
pub type ByNetwork = Vec<(Arc<str>, Vec<u64>)>;

/// Sums in the order of [`PortCounters::DESCRIPTIONS`] and of [`DropReason::ALL`].
#[derive(Clone, Debug)]
struct Sums {
    traffic: Vec<u64>,
    drops: Vec<u64>,
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            traffic: vec![0; PortCounters::DESCRIPTIONS.len()],
            drops: vec![0; DropReason::ALL.len()],
        }
    }
}

impl Sums {
    fn add(&mut self, stats: &PortStats) {
        for (sum, value) in self.traffic.iter_mut().zip(stats.traffic.values()) {
            *sum += value;
        }
        for (sum, reason) in self.drops.iter_mut().zip(DropReason::ALL) {
            *sum += stats.drops.get(*reason);
        }
    }

    fn join(&mut self, other: &Self) {
        let all = self.traffic.iter_mut().chain(&mut self.drops);
        for (sum, value) in all.zip(other.traffic.iter().chain(&other.drops)) {
            *sum += value;
        }
    }
}

#[derive(Default)]
struct Account {
    folded: Sums,
    /// Counters that somebody may still write.
    open: Vec<Arc<PortStats>>,
}

impl Account {
    /// Folds the counters that nobody else holds any more.
    fn settle(&mut self) {
        let Self { folded, open } = self;
        open.retain(|stats| {
            let written = Arc::strong_count(stats) > 1;
            if !written {
                folded.add(stats);
            }
            written
        });
    }

    fn sums(&self) -> Sums {
        let mut sums = self.folded.clone();
        for stats in &self.open {
            sums.add(stats);
        }
        sums
    }
}

#[derive(Default)]
struct Accounts {
    by_network: BTreeMap<Arc<str>, Account>,
    /// Of networks that had to make room.
    others: Sums,
}

/// The totals of all networks that were ever set up on this host since the start.
#[derive(Default)]
pub struct Ledger(Mutex<Accounts>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters for one more writer of `network`; they are folded when the writer drops its handle.
    pub fn open(&self, network: &Arc<str>) -> Arc<PortStats> {
        let stats = Arc::new(PortStats::default());
        let mut accounts = self.lock();
        let Accounts { by_network, others } = &mut *accounts;
        if by_network.len() >= NETWORKS && !by_network.contains_key(network) {
            for account in by_network.values_mut() {
                account.settle();
            }
            let gone = by_network.iter().find(|(_, account)| account.open.is_empty());
            if let Some(gone) = gone.map(|(name, _)| Arc::clone(name))
                && let Some(account) = by_network.remove(&gone)
            {
                others.join(&account.folded);
            }
        }
        let account = by_network.entry(Arc::clone(network)).or_default();
        account.settle();
        account.open.push(Arc::clone(&stats));
        stats
    }

    /// How many networks have an account.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.lock().by_network.len()
    }

    /// What passed the ports of each network, in the order of [`PortCounters::DESCRIPTIONS`].
    #[must_use]
    pub fn traffic(&self) -> ByNetwork {
        let accounts = self.lock();
        let sums = accounts.by_network.iter();
        sums.map(|(name, account)| (Arc::clone(name), account.sums().traffic)).collect()
    }

    /// What was dropped for each of [`DropReason::ALL`]: in networks that had to make room, and by
    /// network.
    #[must_use]
    pub fn drops(&self) -> (Vec<u64>, ByNetwork) {
        let accounts = self.lock();
        let sums = accounts.by_network.iter();
        let by_network =
            sums.map(|(name, account)| (Arc::clone(name), account.sums().drops)).collect();
        (accounts.others.drops.clone(), by_network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames_out(ledger: &Ledger, network: &str) -> u64 {
        let all = ledger.traffic();
        all.into_iter().find(|(name, _)| &**name == network).map_or(0, |(_, values)| values[0])
    }

    #[test]
    fn totals_survive_ports_and_count_what_comes_after_the_removal() {
        let (ledger, blue): (_, Arc<str>) = (Ledger::default(), "blue".into());
        let first = ledger.open(&blue);
        first.traffic.frames_out.add(5);
        // Set up again while the worker still has the old counters.
        let second = ledger.open(&blue);
        second.traffic.frames_out.add(7);
        first.traffic.frames_out.add(1);
        first.drops.add(DropReason::OutMalformed, 2);
        assert_eq!(frames_out(&ledger, "blue"), 13);
        drop((first, second));
        assert_eq!(frames_out(&ledger, "blue"), 13);
        let third = ledger.open(&blue);
        third.traffic.frames_out.add(1);
        assert_eq!(frames_out(&ledger, "blue"), 14);
        assert_eq!(ledger.lock().by_network["blue"].open.len(), 1, "what nobody writes is folded");
        let (_, drops) = ledger.drops();
        assert_eq!(drops[0].1[DropReason::OutMalformed as usize], 2);
    }

    #[test]
    fn the_number_of_networks_is_bounded_and_nothing_is_lost() {
        let ledger = Ledger::default();
        let kept = ledger.open(&"0000 in use".into());
        kept.drops.add(DropReason::InPortError, 1);
        for number in 0..NETWORKS + 10 {
            let stats = ledger.open(&format!("n{number:05}").into());
            stats.drops.add(DropReason::InPortError, 1);
        }
        assert_eq!(ledger.networks(), NETWORKS);
        let reason = DropReason::InPortError as usize;
        let (others, by_network) = ledger.drops();
        let listed: u64 = by_network.iter().map(|(_, drops)| drops[reason]).sum();
        assert_eq!(others[reason] + listed, NETWORKS as u64 + 11);
        assert!(by_network.iter().any(|(name, _)| &**name == "0000 in use"));
    }
}

//! Leases: their ttl, their deadlines and their keys.
//!
//! # Theory of operation
//!
//! A grant and a revoke are writes and on disk; a renewal only moves the deadline in memory, as in
//! etcd. Which keys hang on a lease follows from the keys' newest versions, so it is not stored
//! but rebuilt. An expired lease is taken for gone by renewals and reads at once, and its keys
//! are deleted by the writer, one revision per lease, with a last look at the deadline: a renewal
//! that was answered always wins.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Refusal;
use super::limits;

#[derive(Debug)]
struct Lease {
    ttl: i64,
    deadline: Instant,
    keys: BTreeSet<Arc<[u8]>>,
}

/// What a client may ask about a lease.
pub(crate) struct Remaining {
    /// Whole seconds left.
    pub(crate) ttl: i64,
    pub(crate) granted: i64,
    pub(crate) keys: Vec<Vec<u8>>,
}

/// All leases of the store.
#[derive(Debug)]
pub(crate) struct Leases {
    leases: HashMap<i64, Lease>,
    /// When the clock was last looked at; a far step from there means the process was stopped.
    seen: Instant,
}

impl Leases {
    /// The leases the disk holds, each with its full ttl from `now`.
    pub(crate) fn load(stored: BTreeMap<i64, i64>, now: Instant) -> Self {
        let leases = stored
            .into_iter()
            .map(|(id, ttl)| {
                (id, Lease { ttl, deadline: deadline(now, ttl), keys: BTreeSet::new() })
            })
            .collect();
        Self { leases, seen: now }
    }

    /// Takes note of the time. The clock task does so every [`limits::LEASE_TICK`], so a step of
    /// more than [`limits::LEASE_PAUSE`] is a pause in which nobody could renew: every lease gets
    /// it back before anything is decided by its deadline. Returns the pause.
    pub(crate) fn observe(&mut self, now: Instant) -> Option<Duration> {
        let pause = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        if pause <= limits::LEASE_PAUSE {
            return None;
        }
        for lease in self.leases.values_mut() {
            lease.deadline = lease.deadline.checked_add(pause).unwrap_or(lease.deadline);
        }
        Some(pause)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Ids in order.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.leases.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Adds a lease; returns the ttl it gets.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Instant) -> Result<i64, Refusal> {
        if ttl > limits::LEASE_MAX_TTL {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.contains(id) {
            return Err(Refusal::LeaseExists);
        }
        if self.len() >= limits::LEASES {
            return Err(Refusal::TooManyRequests);
        }
        let ttl = ttl.max(limits::LEASE_MIN_TTL);
        let lease = Lease { ttl, deadline: deadline(now, ttl), keys: BTreeSet::new() };
        self.leases.insert(id, lease);
        Ok(ttl)
    }

    /// Removes a lease; returns its keys in order.
    pub(crate) fn remove(&mut self, id: i64) -> Option<BTreeSet<Arc<[u8]>>> {
        self.leases.remove(&id).map(|lease| lease.keys)
    }

    /// Moves the deadline to a full ttl from `now`; `None` when it is gone or expired.
    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Option<i64> {
        self.observe(now);
        let lease = self.leases.get_mut(&id).filter(|lease| lease.deadline > now)?;
        lease.deadline = deadline(now, lease.ttl);
        Some(lease.ttl)
    }

    /// State of a lease; `None` when it is gone or expired.
    pub(crate) fn remaining(
        &mut self,
        id: i64,
        with_keys: bool,
        now: Instant,
    ) -> Option<Remaining> {
        self.observe(now);
        let lease = self.leases.get(&id).filter(|lease| lease.deadline > now)?;
        let left = lease.deadline.saturating_duration_since(now).as_secs();
        Some(Remaining {
            ttl: i64::try_from(left).unwrap_or(i64::MAX),
            granted: lease.ttl,
            keys: if with_keys {
                lease.keys.iter().map(|key| key.to_vec()).collect()
            } else {
                Vec::new()
            },
        })
    }

    /// Keys that hang on a lease; none when it is not there.
    pub(crate) fn keys(&self, id: i64) -> impl Iterator<Item = &Arc<[u8]>> {
        self.leases.get(&id).into_iter().flat_map(|lease| &lease.keys)
    }

    /// Ties a key to its lease (0: none) and unties it from the one before.
    pub(crate) fn attach(&mut self, key: &Arc<[u8]>, before: i64, after: i64) {
        if before == after {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&before) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&after) {
            lease.keys.insert(Arc::clone(key));
        }
    }

    /// Leases whose deadline has passed.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<i64> {
        self.observe(now);
        let mut ids: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn has_expired(&mut self, id: i64, now: Instant) -> bool {
        self.observe(now);
        self.leases.get(&id).is_some_and(|lease| lease.deadline <= now)
    }
}

fn deadline(now: Instant, ttl: i64) -> Instant {
    // The ttl is at least LEASE_MIN_TTL; three centuries stay below what an Instant can hold.
    let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    now.checked_add(ttl).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Arc<[u8]> {
        text.as_bytes().into()
    }

    /// Lets the time pass in the steps of the clock task.
    fn pass(leases: &mut Leases, from: Instant, seconds: u64) -> Instant {
        let end = from + Duration::from_secs(seconds);
        let mut now = from;
        while now < end {
            now += limits::LEASE_TICK;
            assert_eq!(leases.observe(now), None);
        }
        end
    }

    #[test]
    fn a_renewal_after_the_deadline_is_refused_and_before_it_counts() {
        let start = Instant::now();
        let mut leases = Leases::load(BTreeMap::new(), start);
        assert_eq!(leases.grant(7, 10, start).unwrap(), 10);
        let renewed = pass(&mut leases, start, 9);
        assert_eq!(leases.renew(7, renewed), Some(10));
        let almost = pass(&mut leases, renewed, 9);
        assert!(leases.expired(almost).is_empty());
        let gone = pass(&mut leases, almost, 1);
        assert_eq!(leases.renew(7, gone), None);
        assert!(leases.remaining(7, false, gone).is_none());
        assert_eq!(leases.expired(gone), [7]);
        assert!(leases.has_expired(7, gone));
    }

    #[test]
    fn a_lease_is_granted_within_the_bounds_and_once() {
        let now = Instant::now();
        let mut leases = Leases::load(BTreeMap::new(), now);
        assert_eq!(leases.grant(1, -5, now).unwrap(), limits::LEASE_MIN_TTL);
        assert_eq!(leases.grant(1, 5, now), Err(Refusal::LeaseExists));
        assert_eq!(leases.grant(2, i64::MAX, now), Err(Refusal::LeaseTtlTooLarge));
        assert_eq!(leases.grant(3, limits::LEASE_MAX_TTL, now).unwrap(), limits::LEASE_MAX_TTL);
    }

    #[test]
    fn a_key_hangs_on_its_last_lease() {
        let now = Instant::now();
        let mut leases = Leases::load(BTreeMap::from([(1, 5), (2, 5)]), now);
        leases.attach(&key("a"), 0, 1);
        leases.attach(&key("b"), 0, 1);
        leases.attach(&key("a"), 1, 2);
        assert_eq!(leases.remaining(1, true, now).unwrap().keys, [b"b".to_vec()]);
        leases.attach(&key("b"), 1, 0);
        assert!(leases.remove(1).unwrap().is_empty());
        assert_eq!(leases.ids(), [2]);
    }

    #[test]
    fn a_pause_of_the_process_is_given_back_before_anything_is_decided() {
        let start = Instant::now();
        let mut leases = Leases::load(BTreeMap::from([(1, 5)]), start);
        let resumed = start + Duration::from_secs(60);
        assert_eq!(leases.renew(1, resumed), Some(5), "the first renewal after the pause counts");
        let mut leases = Leases::load(BTreeMap::from([(1, 5)]), start);
        assert!(leases.expired(resumed).is_empty());
        let end = pass(&mut leases, resumed, 5);
        assert_eq!(leases.expired(end), [1]);
    }
}

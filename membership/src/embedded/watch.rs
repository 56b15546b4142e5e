//! The watches of one stream, as positions in the revision log.
//!
//! # Theory of operation
//!
//! A watch knows the next revision it has to look at. [`Watches::pull`] walks the log from the
//! hindmost position, a bounded number of revisions and bytes at a time, and gives each watch what
//! it asked for; nothing is queued for a watch that is behind, the log is its queue. A position
//! that compaction has overtaken ends the watch. Events of one revision stay together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::limits;
use super::mvcc::{KeyRange, State};
use super::record::Version;

/// The id in answers that concern no single watch.
pub(crate) const NO_WATCH: i64 = -1;

/// One watch.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) range: KeyRange,
    /// The revision it looks at next.
    pub(crate) next: i64,
    pub(crate) puts: bool,
    pub(crate) deletes: bool,
    pub(crate) previous: bool,
    pub(crate) progress: bool,
    pub(crate) fragment: bool,
    /// Nothing was sent since the last progress notice.
    pub(crate) quiet: bool,
}

/// A change with the version before it, where that was asked for and is known.
pub(crate) type Change = (Arc<Version>, Option<Arc<Version>>);

/// What a turn has for the client.
pub(crate) enum Delivery {
    /// The watch is over: its position has been compacted.
    Compacted { id: i64, compacted: i64, revision: i64 },
    /// Changes of whole revisions up to `revision`.
    Events { id: i64, revision: i64, changes: Vec<Change>, fragment: bool },
}

/// All watches of one stream.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
}

impl Watches {
    /// Adds a watch under `id` (0: the next free one), or tells etcd's reason why not.
    pub(crate) fn create(&mut self, id: i64, watch: Watch) -> Result<i64, &'static str> {
        if watch.range.is_empty() {
            return Err("mvcc: watcher range is empty");
        }
        if self.watches.len() >= limits::WATCHES_PER_STREAM {
            return Err("etcdserver: too many requests");
        }
        let id = if id == 0 {
            while self.watches.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            self.next_id += 1;
            self.next_id - 1
        } else if self.watches.contains_key(&id) {
            return Err("mvcc: duplicate watch ID provided on the WatchStream");
        } else {
            id
        };
        self.watches.insert(id, watch);
        Ok(id)
    }

    /// Whether there was such a watch.
    pub(crate) fn cancel(&mut self, id: i64) -> bool {
        self.watches.remove(&id).is_some()
    }

    /// Whether some watch has not looked at `visible` yet.
    pub(crate) fn behind(&self, visible: i64) -> bool {
        self.watches.values().any(|watch| watch.next <= visible)
    }

    /// Whether every watch has seen everything up to `visible` and waits for nothing later.
    pub(crate) fn all_at(&self, visible: i64) -> bool {
        !self.watches.is_empty() && self.watches.values().all(|watch| watch.next == visible + 1)
    }

    /// Watches that have seen `visible`, asked for progress, and had nothing since the last call.
    pub(crate) fn due_progress(&mut self, visible: i64) -> Vec<i64> {
        let mut due = Vec::new();
        for (id, watch) in &mut self.watches {
            if watch.progress && watch.quiet && watch.next == visible + 1 {
                due.push(*id);
            }
            watch.quiet = true;
        }
        due
    }

    /// One turn: whole revisions from the hindmost position on, within the turn's bounds.
    pub(crate) fn pull(&mut self, state: &State) -> Vec<Delivery> {
        let visible = state.visible();
        let mut deliveries = Vec::new();
        self.watches.retain(|id, watch| {
            let lost = watch.next < state.compacted() && watch.next <= visible;
            if lost {
                let compacted = state.compacted();
                deliveries.push(Delivery::Compacted { id: *id, compacted, revision: visible });
            }
            !lost
        });
        let Some(first) = self.watches.values().map(|watch| watch.next).min() else {
            return deliveries;
        };
        let last = visible.min(first.saturating_add(limits::WATCH_TURN_REVISIONS - 1));
        let mut events: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
        let mut bytes = 0;
        let mut seen = first - 1;
        while seen < last && bytes < limits::WATCH_TURN_BYTES {
            seen += 1;
            for change in state.changes(seen) {
                for (id, watch) in &self.watches {
                    if let Some(change) = watch.take(state, seen, change) {
                        bytes += change.0.size();
                        bytes += change.1.as_ref().map_or(0, |previous| previous.size());
                        events.entry(*id).or_default().push(change);
                    }
                }
            }
        }
        for watch in self.watches.values_mut().filter(|watch| watch.next <= seen) {
            watch.next = seen + 1;
        }
        for (id, changes) in events {
            if let Some(watch) = self.watches.get_mut(&id) {
                watch.quiet = false;
                let fragment = watch.fragment;
                deliveries.push(Delivery::Events { id, revision: seen, changes, fragment });
            }
        }
        deliveries
    }
}

impl Watch {
    fn take(&self, state: &State, revision: i64, change: &Arc<Version>) -> Option<Change> {
        let wanted = if change.deleted { self.deletes } else { self.puts };
        if revision < self.next || !wanted || !self.range.contains(&change.key) {
            return None;
        }
        // The version before may have been compacted; then it is left out, as in etcd.
        let readable = revision > state.compacted();
        let previous = (self.previous && readable)
            .then(|| state.get(&change.key, revision - 1).cloned())
            .flatten();
        Some((Arc::clone(change), previous))
    }
}

#[cfg(test)]
mod tests {
    use super::super::mvcc::NEVER_COMPACTED;
    use super::*;

    fn state(revisions: i64, value_len: usize) -> State {
        let versions = (2..=revisions).map(|revision| Version {
            key: Arc::from(&b"k"[..]),
            value: vec![0; value_len].into(),
            modified: revision,
            sub: 0,
            created: 2,
            version: revision - 1,
            lease: 0,
            deleted: false,
        });
        State::load(versions, revisions, NEVER_COMPACTED)
    }

    fn watch(next: i64) -> Watch {
        Watch {
            range: KeyRange::new(b"k", b""),
            next,
            puts: true,
            deletes: true,
            previous: false,
            progress: false,
            fragment: false,
            quiet: true,
        }
    }

    fn revisions(deliveries: &[Delivery], wanted: i64) -> Vec<i64> {
        deliveries
            .iter()
            .filter_map(|delivery| match delivery {
                Delivery::Events { id, changes, .. } if *id == wanted => Some(changes),
                _ => None,
            })
            .flatten()
            .map(|(change, _)| change.modified)
            .collect()
    }

    #[test]
    fn a_turn_is_bounded_and_the_next_goes_on_without_gap() {
        let state = state(2500, 1);
        let mut watches = Watches::default();
        let id = watches.create(0, watch(2)).unwrap();
        let mut all = Vec::new();
        let mut turns = 0;
        while watches.behind(state.visible()) {
            all.extend(revisions(&watches.pull(&state), id));
            turns += 1;
        }
        assert_eq!(all, (2..=2500).collect::<Vec<_>>());
        assert!(turns >= 3, "{turns}");
    }

    #[test]
    fn large_values_end_a_turn_early() {
        let state = state(50, 200 * 1024);
        let mut watches = Watches::default();
        let id = watches.create(0, watch(2)).unwrap();
        assert_eq!(revisions(&watches.pull(&state), id), [2, 3, 4]);
    }

    #[test]
    fn watches_at_different_positions_get_each_revision_once() {
        let state = state(10, 1);
        let mut watches = Watches::default();
        let old = watches.create(0, watch(3)).unwrap();
        let new = watches.create(7, watch(9)).unwrap();
        let later = watches.create(0, watch(20)).unwrap();
        let deliveries = watches.pull(&state);
        assert_eq!(revisions(&deliveries, old), (3..=10).collect::<Vec<_>>());
        assert_eq!(revisions(&deliveries, new), [9, 10]);
        assert!(revisions(&deliveries, later).is_empty());
        assert!(!watches.behind(10) && !watches.all_at(10), "one waits for revision 20");
        assert!(watches.cancel(later) && !watches.cancel(later));
        assert!(watches.all_at(10));
    }

    #[test]
    fn a_position_below_the_compaction_ends_the_watch() {
        let mut state = state(10, 1);
        state.compact(5);
        let mut watches = Watches::default();
        let lost = watches.create(0, watch(4)).unwrap();
        let kept = watches.create(0, watch(5)).unwrap();
        let deliveries = watches.pull(&state);
        assert!(matches!(
            deliveries.first(),
            Some(Delivery::Compacted { id, compacted: 5, revision: 10 }) if *id == lost
        ));
        assert_eq!(revisions(&deliveries, kept), (5..=10).collect::<Vec<_>>());
    }

    #[test]
    fn ids_are_the_servers_or_the_clients_and_never_twice() {
        let mut watches = Watches::default();
        assert_eq!(watches.create(0, watch(1)), Ok(0));
        assert_eq!(watches.create(1, watch(1)), Ok(1));
        assert_eq!(watches.create(0, watch(1)), Ok(2));
        assert!(watches.create(1, watch(1)).is_err());
        let mut empty = watch(1);
        empty.range = KeyRange::new(b"b", b"a");
        assert!(watches.create(0, empty).is_err());
    }

    #[test]
    fn progress_is_due_only_for_a_quiet_watch() {
        let state = state(3, 1);
        let mut watches = Watches::default();
        let mut asks = watch(3);
        asks.progress = true;
        let id = watches.create(0, asks).unwrap();
        assert!(watches.due_progress(3).is_empty(), "it has not seen revision 3");
        watches.pull(&state);
        assert!(watches.due_progress(3).is_empty(), "an event was sent");
        assert_eq!(watches.due_progress(3), [id]);
    }
}

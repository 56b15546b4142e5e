//! The multi-version memory: an ordered index of all versions, and the log of revisions.
//!
//! # Theory of operation
//!
//! The index maps a key to its versions in the order of their revisions; a read at revision `r`
//! takes the last one at or below `r`. The log holds the changes of each revision since the last
//! compaction, one slot per revision, so that a watch finds "everything since r" by subtraction.
//! Both point at the same [`Version`]s.
//!
//! Three revisions matter: `compacted` <= `visible` <= `applied`. The writer applies above
//! `visible`; readers look at or below it; [`State::publish`] moves it after the disk has the data.
//!
//! Compaction at `c` keeps, per key, the last version at or below `c` (a tombstone only when it is
//! exactly at `c`), so that reads and watches at `c` and later are as before.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::record::Version;

/// The revision of an empty store, as etcd counts.
pub(crate) const FIRST_REVISION: i64 = 1;

/// `compacted` of a store that was never compacted.
pub(crate) const NEVER_COMPACTED: i64 = -1;

/// A range of keys as requests give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRange {
    start: Vec<u8>,
    end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// Only the key `start`.
    Key,
    /// Up to this key, which is not in the range.
    Before(Vec<u8>),
    /// All keys from `start` on.
    Open,
}

impl KeyRange {
    /// Reads etcd's two fields: no end is one key, an end of one zero byte is "and all above".
    pub(crate) fn new(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            [] => End::Key,
            [0] => End::Open,
            end => End::Before(end.to_vec()),
        };
        Self { start: key.to_vec(), end }
    }

    /// The same, but an end of one zero byte is taken as it stands. etcd looks at the deletes of a
    /// transaction in this way when it searches for overlaps, so "and all above" overlaps nothing.
    pub(crate) fn verbatim(key: &[u8], range_end: &[u8]) -> Self {
        let end = if range_end.is_empty() { End::Key } else { End::Before(range_end.to_vec()) };
        Self { start: key.to_vec(), end }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Key => key == self.start,
            End::Before(end) => key >= self.start.as_slice() && key < end.as_slice(),
            End::Open => key >= self.start.as_slice(),
        }
    }

    /// Whether no key can be in it (an end at or below the start).
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = Bound::Included(self.start.as_slice());
        match &self.end {
            End::Key => (start, start),
            End::Before(end) => (start, Bound::Excluded(end.as_slice())),
            End::Open => (start, Bound::Unbounded),
        }
    }
}

/// What a read of a range gives.
pub(crate) struct Found {
    pub(crate) versions: Vec<Arc<Version>>,
    /// Keys in the range, whatever the limit.
    pub(crate) count: usize,
}

/// All versions since the last compaction.
pub(crate) struct State {
    index: BTreeMap<Arc<[u8]>, Vec<Arc<Version>>>,
    /// Changes of revision `log_first + i` in slot `i`.
    log: VecDeque<Vec<Arc<Version>>>,
    log_first: i64,
    applied: i64,
    visible: i64,
    compacted: i64,
    live_bytes: usize,
    total_bytes: usize,
}

impl State {
    /// Memory of what the disk holds: `versions` in the order of their revisions.
    pub(crate) fn load(
        versions: impl IntoIterator<Item = Version>,
        revision: i64,
        compacted: i64,
    ) -> Self {
        let mut state = Self {
            index: BTreeMap::new(),
            log: VecDeque::new(),
            log_first: compacted.max(FIRST_REVISION + 1),
            applied: revision,
            visible: revision,
            compacted,
            live_bytes: 0,
            total_bytes: 0,
        };
        for version in versions {
            state.insert(Arc::new(version));
        }
        state.extend_log(revision);
        state
    }

    /// The last revision readers see.
    pub(crate) fn visible(&self) -> i64 {
        self.visible
    }

    /// The last revision the writer has applied.
    pub(crate) fn applied(&self) -> i64 {
        self.applied
    }

    /// Revisions below this one cannot be read.
    pub(crate) fn compacted(&self) -> i64 {
        self.compacted
    }

    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Bytes of versions that are not the newest of their key.
    pub(crate) fn history_bytes(&self) -> usize {
        self.total_bytes.saturating_sub(self.live_bytes)
    }

    pub(crate) fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// The last change of `key` at or below `at`, unless it deleted the key.
    pub(crate) fn get(&self, key: &[u8], at: i64) -> Option<&Arc<Version>> {
        version_at(self.index.get(key)?, at)
    }

    /// Keys of a range at revision `at`, in order; at most `limit` of them (0: all), all counted.
    pub(crate) fn range(&self, range: &KeyRange, at: i64, limit: usize) -> Found {
        let mut found = Found { versions: Vec::new(), count: 0 };
        self.scan(range, at, |version| {
            found.count += 1;
            if limit == 0 || found.versions.len() < limit {
                found.versions.push(Arc::clone(version));
            }
        });
        found
    }

    /// How many keys of a range exist at revision `at`.
    pub(crate) fn count(&self, range: &KeyRange, at: i64) -> usize {
        let mut count = 0;
        self.scan(range, at, |_| count += 1);
        count
    }

    fn scan<'a>(&'a self, range: &KeyRange, at: i64, mut take: impl FnMut(&'a Arc<Version>)) {
        if range.is_empty() {
            return;
        }
        for versions in self.index.range::<[u8], _>(range.bounds()).map(|(_, versions)| versions) {
            if let Some(version) = version_at(versions, at) {
                take(version);
            }
        }
    }

    /// Changes of revision `revision` in their order; none outside the log.
    pub(crate) fn changes(&self, revision: i64) -> &[Arc<Version>] {
        usize::try_from(revision - self.log_first)
            .ok()
            .and_then(|slot| self.log.get(slot))
            .map_or(&[], Vec::as_slice)
    }

    /// All versions in memory with their keys in order (for hashes and tests).
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.index.values().flatten()
    }

    /// The newest version of every key that exists, in the order of the keys.
    pub(crate) fn newest(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.index.values().filter_map(|versions| versions.last()).filter(|last| !last.deleted)
    }

    /// Adds a change at revision `version.modified`, which is the newest or a new one.
    pub(crate) fn insert(&mut self, version: Arc<Version>) {
        let size = version.size();
        self.total_bytes += size;
        if !version.deleted {
            self.live_bytes += size;
        }
        if version.modified >= self.log_first {
            self.extend_log(version.modified);
            if let Some(slot) = self.log.back_mut() {
                slot.push(Arc::clone(&version));
            }
        }
        self.applied = self.applied.max(version.modified);
        let versions = self.index.entry(Arc::clone(&version.key)).or_default();
        if let Some(last) = versions.last().filter(|last| !last.deleted) {
            self.live_bytes = self.live_bytes.saturating_sub(last.size());
        }
        versions.push(version);
    }

    fn extend_log(&mut self, revision: i64) {
        // Revisions follow each other, so this adds one slot at a time; a file that skips some
        // (written by nothing we know) gets empty ones, bounded by what the file claims to hold.
        while self.log_first + (self.log.len() as i64) <= revision {
            self.log.push_back(Vec::new());
        }
    }

    /// Makes everything applied visible.
    pub(crate) fn publish(&mut self) -> i64 {
        self.visible = self.applied;
        self.visible
    }

    /// Forgets what is not needed at `at` and above; returns the places of what was forgotten.
    /// The caller has checked that `compacted` < `at` <= `visible`.
    pub(crate) fn compact(&mut self, at: i64) -> Vec<(i64, u32)> {
        let mut forgotten = Vec::new();
        for revision in self.log_first..=at {
            for change in self.changes(revision).to_vec() {
                self.trim(&change.key, at, &mut forgotten);
            }
        }
        while self.log_first < at && self.log.pop_front().is_some() {
            self.log_first += 1;
        }
        self.compacted = at;
        forgotten
    }

    fn trim(&mut self, key: &Arc<[u8]>, at: i64, forgotten: &mut Vec<(i64, u32)>) {
        let Some(versions) = self.index.get_mut(key) else { return };
        let upto = versions.partition_point(|version| version.modified <= at);
        let keeps_last = upto
            .checked_sub(1)
            .and_then(|last| versions.get(last))
            .is_some_and(|last| !last.deleted || last.modified == at);
        for version in versions.drain(..upto - usize::from(keeps_last)) {
            self.total_bytes = self.total_bytes.saturating_sub(version.size());
            forgotten.push((version.modified, version.sub));
        }
        if versions.is_empty() {
            self.index.remove(key);
        }
    }
}

fn version_at(versions: &[Arc<Version>], at: i64) -> Option<&Arc<Version>> {
    // Nearly every read is of the newest version.
    let last = versions.last()?;
    let version = if last.modified <= at {
        last
    } else {
        let upto = versions.partition_point(|version| version.modified <= at);
        versions.get(upto.checked_sub(1)?)?
    };
    (!version.deleted).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, revision: i64, value: Option<&str>) -> Version {
        Version {
            key: key.as_bytes().into(),
            value: value.unwrap_or("").as_bytes().into(),
            modified: revision,
            sub: 0,
            created: revision,
            version: 1,
            lease: 0,
            deleted: value.is_none(),
        }
    }

    fn state(changes: Vec<Version>) -> State {
        let revision = changes.iter().map(|change| change.modified).max().unwrap();
        State::load(changes, revision, NEVER_COMPACTED)
    }

    fn value(state: &State, key: &str, at: i64) -> Option<Vec<u8>> {
        state.get(key.as_bytes(), at).map(|version| version.value.to_vec())
    }

    #[test]
    fn ranges_read_etcds_forms_and_never_panic() {
        let all = KeyRange::new(b"\0", b"\0");
        assert!(all.contains(b"\0") && all.contains(b"\xff\xff"));
        let one = KeyRange::new(b"a", b"");
        assert!(one.contains(b"a") && !one.contains(b"a\0"));
        let prefix = KeyRange::new(b"a", b"b");
        assert!(prefix.contains(b"a") && prefix.contains(b"azz") && !prefix.contains(b"b"));
        let backward = KeyRange::new(b"b", b"a");
        assert!(backward.is_empty() && !backward.contains(b"a") && !backward.contains(b"b"));
        let state = state(vec![change("a", 2, Some("1"))]);
        assert_eq!(state.count(&backward, 2), 0);
        assert_eq!(state.count(&KeyRange::new(b"a", b"a"), 2), 0);
    }

    #[test]
    fn a_read_at_a_revision_sees_what_was_then() {
        let state = state(vec![
            change("a", 2, Some("1")),
            change("a", 3, Some("2")),
            change("a", 4, None),
            change("a", 5, Some("3")),
        ]);
        assert_eq!(value(&state, "a", 1), None);
        assert_eq!(value(&state, "a", 2).unwrap(), b"1");
        assert_eq!(value(&state, "a", 3).unwrap(), b"2");
        assert_eq!(value(&state, "a", 4), None);
        assert_eq!(value(&state, "a", 9).unwrap(), b"3");
    }

    #[test]
    fn compaction_keeps_what_its_revision_shows() {
        let mut state = state(vec![
            change("a", 2, Some("1")),
            change("a", 3, Some("2")),
            change("b", 4, Some("x")),
            change("b", 5, None),
            change("c", 6, Some("y")),
            change("c", 7, None),
        ]);
        let bytes = state.total_bytes();
        let mut forgotten = state.compact(5);
        forgotten.sort_unstable();
        assert_eq!(forgotten, [(2, 0), (4, 0)]);
        assert_eq!(value(&state, "a", 5).unwrap(), b"2");
        assert_eq!(state.changes(5).len(), 1, "the tombstone at the revision itself stays");
        assert!(state.changes(4).is_empty());
        assert!(state.total_bytes() < bytes);
        let mut forgotten = state.compact(7);
        forgotten.sort_unstable();
        assert_eq!(forgotten, [(5, 0), (6, 0)]);
        assert_eq!(state.versions().count(), 2);
        assert_eq!(state.live_bytes(), change("a", 3, Some("2")).size());
    }

    #[test]
    fn a_store_loaded_after_compaction_has_the_same_log() {
        let state = State::load(vec![change("a", 3, Some("2")), change("b", 8, Some("x"))], 9, 8);
        assert_eq!(state.changes(8).len(), 1);
        assert!(state.changes(3).is_empty() && state.changes(9).is_empty());
        assert_eq!(value(&state, "a", 9).unwrap(), b"2");
        assert_eq!((state.visible(), state.applied(), state.compacted()), (9, 9, 8));
    }
}

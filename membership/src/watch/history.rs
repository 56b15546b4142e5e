//! Telling one history of the store from another.
//!
//! A store that is restored from a backup counts on from an older revision, and gives revisions
//! that we have seen to other changes. Nothing that it says of itself need differ: etcd's cluster
//! id and Raft term come out the same when a member is restored under its old name and address.
//! What differs is what lies at the revision of the last change that we have seen ([`Mark`]), and
//! the contents of keys ([`Print`]).

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use crate::key::Range;
use crate::store::{Entry, Error, Store};

/// What tells one content of a key from another, also over histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    revision: i64,
    digest: u64,
}

impl Print {
    pub(super) fn of(entry: &Entry) -> Self {
        let mut hasher = DefaultHasher::new();
        (&entry.value, entry.create_revision, entry.lease).hash(&mut hasher);
        Self { revision: entry.mod_revision, digest: hasher.finish() }
    }
}

/// What we have last seen under our prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A change.
    Change {
        key: Vec<u8>,
        revision: i64,
        /// `None` where the change was a deletion.
        print: Option<Print>,
    },
    /// A listing. What was deleted just before it left nothing that could be looked at, so the
    /// number of keys counts too.
    Listing {
        /// The key that was changed last.
        newest: Option<(Vec<u8>, Print)>,
        revision: i64,
        count: usize,
    },
}

impl Mark {
    pub(super) fn put(entry: &Entry) -> Self {
        let print = Some(Print::of(entry));
        Self::Change { key: entry.key.clone(), revision: entry.mod_revision, print }
    }

    pub(super) fn deleted(key: Vec<u8>, revision: i64) -> Self {
        Self::Change { key, revision, print: None }
    }

    pub(super) fn listing(listed: &HashMap<Vec<u8>, Option<Print>>, revision: i64) -> Self {
        let prints = listed.iter().filter_map(|(key, print)| Some((key, (*print)?)));
        let newest =
            prints.max_by_key(|(_, print)| print.revision).map(|(key, print)| (key.clone(), print));
        Self::Listing { newest, revision, count: listed.len() }
    }

    fn revision(&self) -> i64 {
        match self {
            Self::Change { revision, .. } | Self::Listing { revision, .. } => *revision,
        }
    }

    /// Whether the store has what this says at `at`, 0 for now, while its own revision is at least
    /// `last`.
    async fn holds(&self, store: &Store, at: i64, last: i64) -> Result<bool, Error> {
        let (key, print) = match self {
            Self::Change { key, print, .. } => (key.as_slice(), *print),
            Self::Listing { newest: Some((key, print)), .. } => (key.as_slice(), Some(*print)),
            // No key has this name.
            Self::Listing { newest: None, .. } => (store.keys().root().as_bytes(), None),
        };
        let look = store.look(key, at).await?;
        let same = look.revision >= last && look.entry.as_ref().map(Print::of) == print;
        Ok(same
            && match self {
                Self::Change { .. } => true,
                Self::Listing { count, .. } => store.count(Range::All, at).await? == *count,
            })
    }
}

/// Whether the store's history is the one that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    /// It is. Changes from this revision on are new to us; between it and the last one that we
    /// know of nothing of ours was changed.
    Same {
        /// From where to watch.
        from: i64,
    },
    /// It is another one.
    Other,
    /// It was compacted, and nothing can be said.
    Compacted,
}

/// Compares what the store has with `mark`, when we know it up to revision `last`.
pub(super) async fn compare(store: &Store, mark: &Mark, last: i64) -> Result<History, Error> {
    // Where the mark is compacted, the latest revision that we know of will do, for nothing of ours
    // was changed in between; an idle watch keeps that fresh by asking for progress.
    for at in [mark.revision(), last] {
        match mark.holds(store, at, last).await {
            Ok(true) => return Ok(History::Same { from: at.saturating_add(1) }),
            Ok(false) | Err(Error::Future) => return Ok(History::Other),
            Err(Error::Compacted) => {}
            Err(error) => return Err(error),
        }
    }
    // If it holds now, then nothing has changed since.
    Ok(match mark.holds(store, 0, last).await? {
        true => History::Same { from: last.saturating_add(1) },
        false => History::Compacted,
    })
}

/// Keys that a store restored from a backup does not have. Their owners write them again, so they
/// count as present for a while.
#[derive(Debug, Default)]
pub(super) struct Missing {
    keys: BTreeSet<Vec<u8>>,
    until: Option<Instant>,
}

impl Missing {
    pub(super) fn wait(&mut self, keys: BTreeSet<Vec<u8>>, grace: Duration) {
        self.until = (!keys.is_empty()).then(|| Instant::now() + grace);
        self.keys = keys;
    }

    /// The key is present, or deleted for good.
    pub(super) fn settled(&mut self, key: &[u8]) {
        if self.keys.remove(key) && self.keys.is_empty() {
            self.until = None;
        }
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Gives up: nobody has written these again.
    pub(super) fn take(&mut self) -> BTreeSet<Vec<u8>> {
        self.until = None;
        std::mem::take(&mut self.keys)
    }

    /// Those of `known` that wait, which a consumer still has.
    pub(super) fn keep(&self, known: &mut HashMap<Vec<u8>, Option<Print>>) {
        known.extend(self.keys.iter().map(|key| (key.clone(), None)));
    }
}

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

/// The last change that we have seen under our prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    key: Vec<u8>,
    revision: i64,
    /// `None` where the change was a deletion.
    print: Option<Print>,
}

impl Mark {
    pub(super) fn put(entry: &Entry) -> Self {
        let print = Some(Print::of(entry));
        Self { key: entry.key.clone(), revision: entry.mod_revision, print }
    }

    pub(super) fn deleted(key: Vec<u8>, revision: i64) -> Self {
        Self { key, revision, print: None }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
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
pub(super) async fn compare(
    store: &Store,
    mark: Option<&Mark>,
    last: i64,
) -> Result<History, Error> {
    let Some(mark) = mark else {
        // There was nothing under our prefix; a key that cannot exist tells the revision.
        let now = store.look(store.keys().root().as_bytes(), 0).await?;
        let from = last.saturating_add(1);
        return Ok(if now.revision < last { History::Other } else { History::Same { from } });
    };
    match store.look(&mark.key, mark.revision).await {
        Ok(then) => {
            let same = then.revision >= last && then.entry.as_ref().map(Print::of) == mark.print;
            let from = mark.revision.saturating_add(1);
            Ok(if same { History::Same { from } } else { History::Other })
        }
        Err(Error::Future) => Ok(History::Other),
        Err(Error::Compacted) => {
            let now = store.look(&mark.key, 0).await?;
            let from = last.saturating_add(1);
            Ok(if now.revision < last {
                History::Other
            } else if now.entry.as_ref().map(Print::of) == mark.print {
                History::Same { from }
            } else {
                History::Compacted
            })
        }
        Err(error) => Err(error),
    }
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

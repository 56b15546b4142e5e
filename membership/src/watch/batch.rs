//! What a watch hands on: changes, in batches.

use fdb::Revision;
use tokio::time::Instant;

use crate::key::Key;
use crate::record::Record;

/// One change of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A key holds something that is no record, or is no key of ours.
    Bad {
        /// The full key, as far as it is text.
        key: String,
        /// What it would name; `None` when the key itself cannot be read.
        parsed: Option<Key>,
        /// Why it is set aside.
        error: String,
        /// The revision of the change.
        revision: Revision,
    },
    /// A key is gone.
    Delete {
        /// The key.
        key: Key,
        /// The revision of the change; in a listing, that of the listing.
        revision: Revision,
    },
    /// A key that was bad is gone.
    DeleteBad {
        /// The full key, as far as it is text.
        key: String,
        /// The revision of the change.
        revision: Revision,
    },
    /// A key holds this record.
    Put {
        /// The key.
        key: Key,
        /// The record.
        record: Box<Record>,
        /// The revision of the change.
        revision: Revision,
    },
}

/// Changes that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The revision that the consumer has when it has applied these and all earlier ones. During a
    /// listing, that of the listing.
    pub revision: Revision,
    /// The changes, in the order of their revisions (of their keys, when they are listed).
    pub events: Vec<Event>,
    /// Whether they come from a listing and not from the watch.
    pub resync: bool,
    /// Whether the consumer has everything up to `revision` now: false only in all but the last
    /// batch of a listing.
    pub complete: bool,
    /// When it came from the store; for all batches of a listing, when that began.
    pub began: Instant,
    /// Whether the store turned out to have another history: true in the last batch of the listing
    /// that found out.
    pub rolled_back: bool,
}

impl Batch {
    /// Takes in the batch that follows, so that both can be applied as one; it began when the
    /// earlier one did.
    pub fn join(&mut self, next: Self) {
        self.revision = next.revision;
        self.events.extend(next.events);
        self.resync |= next.resync;
        self.complete = next.complete;
        self.rolled_back |= next.rolled_back;
    }

    pub(super) fn listed(began: Instant, revision: i64, events: Vec<Event>) -> Self {
        let revision = Revision(revision);
        Self { revision, events, resync: true, complete: false, began, rolled_back: false }
    }

    pub(super) fn watched(began: Instant, revision: i64, events: Vec<Event>) -> Self {
        let revision = Revision(revision);
        Self { revision, events, resync: false, complete: true, began, rolled_back: false }
    }
}

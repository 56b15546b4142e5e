//! List and watch: everything under the prefix, as a stream of events that never ends.
//!
//! # Theory of operation
//!
//! ```text
//!   list in pages at one revision R  ->  watch from R + 1  ->  watch from last + 1 ...
//!        ^                                     |  stream ends: again from last + 1
//!        +---------- compacted ----------------+
//! ```
//!
//! One task lists all keys, watches from the next revision, and hands what it finds to a bounded
//! channel. The revision advances with every event *and* every progress notice, so that an idle
//! watch does not fall behind a compaction. It asks for these notices itself: by the clock a store
//! sends one every ten minutes, and how to change that depends on its version. When the stream ends, for whatever reason, it is opened
//! again from the last revision on, after a jittered pause that grows to [`WatchConfig::pause_max`]
//! (the client library's stream does not resume by itself). When that revision is compacted, or the
//! store's revision is behind ours, or it is another cluster (it was restored from a backup, or the
//! endpoints were changed), everything is listed again and compared with what is known, so that the
//! consumer gets puts for what changed and deletes for what vanished.
//!
//! Streams ask for a leader: a lost quorum ends them with an error, where they would else be silent
//! for ever. Messages are rate limited. A consumer that does not read stops the task, and the
//! stream behind it; nothing piles up.

use std::collections::HashMap;
use std::time::Duration;

use etcd_client::WatchOptions;
use fdb::Revision;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug, info, info_span, warn};

use crate::key::{Key, Range};
use crate::record::{self, Record};
use crate::store::{Entry, Error, Pages, Store, jitter};

/// The id that a notice of progress has when it was asked for: it is about the whole stream.
const ASKED_FOR: i64 = -1;
/// Questions without an answer after which a stream counts as broken.
const UNANSWERED_MAX: u32 = 3;

/// How the watch behaves.
#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// Batches that wait for the consumer.
    pub batches: usize,
    /// First pause before a stream is opened again.
    pub pause_min: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// After how long a silence the store is asked how far it is.
    pub progress: Duration,
    /// The least time between two warnings about the same trouble.
    pub warn_interval: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            batches: 64,
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(5),
            progress: Duration::from_secs(30),
            warn_interval: Duration::from_secs(60),
        }
    }
}

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
}

/// Whether the watch is connected.
#[derive(Clone, Debug)]
pub enum WatchStatus {
    /// Events arrive.
    Connected {
        /// The latest revision.
        revision: Revision,
        /// Since when.
        since: Instant,
    },
    /// Events do not arrive; the watch tries again.
    Disconnected {
        /// Since when.
        since: Instant,
        /// Why.
        cause: String,
    },
}

impl WatchStatus {
    /// Whether events arrive.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

/// What a consumer knows already, from an earlier run: the revisions of its keys. Whatever has
/// vanished since is reported as deleted by the first listing.
pub type Known = HashMap<Key, Revision>;

/// A running watch. It ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    batches: mpsc::Receiver<Batch>,
    status: watch::Receiver<WatchStatus>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts to list and watch everything under the store's prefix. Must be called in a tokio
    /// runtime. Never fails: the status tells whether it has a connection.
    #[must_use]
    pub fn start(store: Store, config: WatchConfig, known: Known) -> Self {
        let (sender, batches) = mpsc::channel(config.batches.max(1));
        let cause = "not connected yet".to_owned();
        let (status, receiver) =
            watch::channel(WatchStatus::Disconnected { since: Instant::now(), cause });
        let known = known
            .into_iter()
            .map(|(key, revision)| (store.keys().encode(&key).into_bytes(), revision.0))
            .collect();
        let task = Task { store, config, sender, status, known, last: 0, cluster: 0, warned: None };
        let task = tokio::spawn(task.run());
        Self { batches, status: receiver, task }
    }

    /// The next batch; `None` never comes while the runtime lives.
    ///
    /// # Cancel safety
    ///
    /// No batch is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// The next batch, if one is waiting.
    pub fn try_next(&mut self) -> Option<Batch> {
        self.batches.try_recv().ok()
    }

    /// Whether it is connected.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why one stream ended.
enum End {
    /// The consumer is gone.
    Closed,
    /// The history that we need is gone: list again.
    Lost(String),
    /// The store has another connection: open the stream on that.
    Moved,
    /// The stream broke: open it again.
    Broken(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Compacted => Self::Lost("history compacted".to_owned()),
            error => Self::Broken(error),
        }
    }
}

/// What a stream has said about its progress since it was asked.
#[derive(Default)]
struct Progress {
    /// The revision of the latest answer. Before 3.4.25 and 3.5.8 an answer could overtake events
    /// that were under way (etcd issue 15220), so it counts when the next one is here.
    told: i64,
    /// Questions since the last message.
    unanswered: u32,
}

struct Task {
    store: Store,
    config: WatchConfig,
    sender: mpsc::Sender<Batch>,
    status: watch::Sender<WatchStatus>,
    /// Full keys that the consumer has, with their revisions.
    known: HashMap<Vec<u8>, i64>,
    /// The latest revision that the consumer has; 0 before the first listing.
    last: i64,
    /// The id of the cluster that it is a revision of.
    cluster: u64,
    /// When we last warned.
    warned: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        let mut attempt = 0_u32;
        loop {
            let before = self.last;
            let span = info_span!("watch", revision = self.last);
            let end = async {
                if self.last == 0 {
                    self.list().await?;
                }
                self.follow().await
            }
            .instrument(span)
            .await;
            // What was connected for a while starts again with the shortest pause.
            if self.last != before || self.status.borrow().is_connected() {
                attempt = 0;
            }
            let cause = match end {
                Ok(()) | Err(End::Closed) => return,
                Err(End::Moved) => continue,
                Err(End::Lost(cause)) => {
                    self.last = 0;
                    cause
                }
                Err(End::Broken(error)) => error.to_string(),
            };
            self.disconnected(&cause);
            attempt = attempt.saturating_add(1);
            let pause = self.config.pause_min.saturating_mul(1 << (attempt - 1).min(16));
            tokio::select! {
                () = sleep(jitter(pause.min(self.config.pause_max))) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    fn disconnected(&mut self, cause: &str) {
        self.status.send_if_modified(|status| match status {
            WatchStatus::Connected { .. } => {
                *status =
                    WatchStatus::Disconnected { since: Instant::now(), cause: cause.to_owned() };
                true
            }
            WatchStatus::Disconnected { cause: present, .. } if present != cause => {
                cause.clone_into(present);
                true
            }
            WatchStatus::Disconnected { .. } => false,
        });
        let now = Instant::now();
        if self.warned.is_none_or(|at| now.duration_since(at) >= self.config.warn_interval) {
            self.warned = Some(now);
            warn!(err = cause, revision = self.last, "the watch of the store is interrupted");
        } else {
            debug!(err = cause, revision = self.last, "the watch of the store is interrupted");
        }
    }

    /// Lists everything and hands on what the consumer does not have.
    async fn list(&mut self) -> Result<(), End> {
        let began = Instant::now();
        let mut pages = Pages::new(&self.store.keys().range(Range::All));
        let mut listed = HashMap::with_capacity(self.known.len());
        while let Some(entries) = self.store.page(&mut pages).await? {
            let mut events = Vec::with_capacity(entries.len());
            for entry in entries {
                if self.known.get(&entry.key) != Some(&entry.mod_revision) {
                    events.push(self.put(&entry));
                }
                listed.insert(entry.key, entry.mod_revision);
            }
            // What was handed on is known even if the listing is not finished.
            for event in &events {
                if let Some(key) = self.event_key(event) {
                    self.known.insert(key, event_revision(event));
                }
            }
            self.send(began, pages.revision, events, true, false).await?;
        }
        let mut vanished: Vec<Vec<u8>> =
            self.known.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
        vanished.sort_unstable();
        let deletes = vanished.iter().map(|key| self.delete(key, pages.revision)).collect();
        self.known = listed;
        self.last = pages.revision;
        self.cluster = pages.cluster;
        info!(revision = self.last, keys = self.known.len(), "the store is listed");
        self.send(began, pages.revision, deletes, true, true).await
    }

    /// Watches from the last revision on until the stream ends.
    async fn follow(&mut self) -> Result<(), End> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.last.saturating_add(1))
            .with_progress_notify();
        let wait = self.store.request_timeout();
        let mut moves = self.store.moves();
        let mut stream = self.store.watch(Range::All, options).await?;
        let mut created = false;
        let mut progress = Progress::default();
        loop {
            let message = if created {
                let next = tokio::select! {
                    _ = moves.changed() => return Err(End::Moved),
                    next = timeout(self.config.progress, stream.message()) => next,
                };
                let Ok(message) = next else {
                    progress.unanswered += 1;
                    if progress.unanswered > UNANSWERED_MAX {
                        return Err(self.store.late(self.config.progress * UNANSWERED_MAX).into());
                    }
                    let asked = stream.request_progress().await;
                    asked.map_err(|error| self.store.sort(&error))?;
                    continue;
                };
                progress.unanswered = 0;
                message
            } else {
                // Only the answer to our request has a deadline, events come when they come.
                timeout(wait, stream.message()).await.map_err(|_| self.store.late(wait))?
            };
            let Some(message) = message.map_err(|error| self.store.sort(&error))? else {
                return Err(End::Broken(Error::Unreachable {
                    endpoints: self.store.endpoints(),
                    cause: "the watch was closed".to_owned(),
                    hint: "it is opened again by itself",
                }));
            };
            let began = Instant::now();
            if message.compact_revision() != 0 {
                return Err(Error::Compacted.into());
            }
            if message.canceled() {
                let status = tonic::Status::unavailable(message.cancel_reason());
                return Err(self.store.sort(&etcd_client::Error::GRpcStatus(status)).into());
            }
            let now = message.header().map_or(0, etcd_client::ResponseHeader::revision);
            if message.created() {
                let cluster = message.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
                if cluster != self.cluster {
                    return Err(End::Lost("this is another store".to_owned()));
                }
                // A store that was restored from a backup counts anew from an older revision, and
                // the watch would wait for one that means something else.
                if now < self.last {
                    return Err(End::Lost("the store's revision went back".to_owned()));
                }
                created = true;
                self.connected();
            }
            // Not `events`: its `event_type` panics on a type that the library does not know.
            let message = message.0;
            if message.events.is_empty() {
                // A progress notice, or the confirmation. The confirmation's revision says nothing
                // about what is still to come.
                let reached = match message.watch_id {
                    _ if message.created => 0,
                    ASKED_FOR => std::mem::replace(&mut progress.told, now),
                    _ => now,
                };
                if reached > self.last {
                    self.last = reached;
                    self.connected();
                }
                continue;
            }
            let mut events = Vec::with_capacity(message.events.len());
            let mut revision = self.last;
            for event in message.events {
                let Some(kv) = event.kv else { continue };
                // An event that the consumer has already says nothing new.
                if kv.mod_revision <= self.last {
                    continue;
                }
                revision = revision.max(kv.mod_revision);
                match event.r#type {
                    0 => {
                        self.known.insert(kv.key.clone(), kv.mod_revision);
                        let entry = Entry {
                            key: kv.key,
                            value: kv.value,
                            create_revision: kv.create_revision,
                            mod_revision: kv.mod_revision,
                            lease: kv.lease,
                        };
                        events.push(self.put(&entry));
                    }
                    1 => {
                        self.known.remove(&kv.key);
                        events.push(self.delete(&kv.key, kv.mod_revision));
                    }
                    other => warn!(kind = other, "an event of an unknown kind was left out"),
                }
            }
            self.last = revision;
            self.send(began, revision, events, false, true).await?;
            self.connected();
        }
    }

    fn connected(&mut self) {
        let revision = Revision(self.last);
        if self.status.borrow().is_connected() {
            self.status.send_modify(|status| {
                if let WatchStatus::Connected { revision: present, .. } = status {
                    *present = revision;
                }
            });
        } else {
            self.status.send_replace(WatchStatus::Connected { revision, since: Instant::now() });
            if self.warned.take().is_some() {
                info!(revision = self.last, "the watch of the store is back");
            }
        }
    }

    async fn send(
        &self,
        began: Instant,
        revision: i64,
        events: Vec<Event>,
        resync: bool,
        complete: bool,
    ) -> Result<(), End> {
        if events.is_empty() && !(resync && complete) {
            return Ok(());
        }
        let batch = Batch { revision: Revision(revision), events, resync, complete, began };
        self.sender.send(batch).await.map_err(|_| End::Closed)
    }

    fn put(&self, entry: &Entry) -> Event {
        let revision = Revision(entry.mod_revision);
        let text = || String::from_utf8_lossy(&entry.key).into_owned();
        let key = match self.store.keys().parse(&entry.key) {
            Ok(key) => key,
            Err(error) => {
                return Event::Bad {
                    key: text(),
                    parsed: None,
                    error: error.to_string(),
                    revision,
                };
            }
        };
        match Record::decode(&key, &entry.value) {
            Ok(record) => Event::Put { key, record: Box::new(record), revision },
            Err(error) => set_aside(text(), key, &error, revision),
        }
    }

    fn delete(&self, key: &[u8], revision: i64) -> Event {
        let revision = Revision(revision);
        match self.store.keys().parse(key) {
            Ok(key) => Event::Delete { key, revision },
            Err(_) => Event::DeleteBad { key: String::from_utf8_lossy(key).into_owned(), revision },
        }
    }

    /// The full key of an event, as it is in `known`.
    fn event_key(&self, event: &Event) -> Option<Vec<u8>> {
        match event {
            Event::Put { key, .. } | Event::Delete { key, .. } => {
                Some(self.store.keys().encode(key).into_bytes())
            }
            Event::Bad { key, .. } | Event::DeleteBad { key, .. } => Some(key.clone().into_bytes()),
        }
    }
}

fn set_aside(key: String, parsed: Key, error: &record::Error, revision: Revision) -> Event {
    Event::Bad { key, parsed: Some(parsed), error: error.to_string(), revision }
}

fn event_revision(event: &Event) -> i64 {
    match event {
        Event::Bad { revision, .. }
        | Event::Delete { revision, .. }
        | Event::DeleteBad { revision, .. }
        | Event::Put { revision, .. } => revision.0,
    }
}

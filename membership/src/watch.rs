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
//! sends one every ten minutes, and how to change that depends on its version. When the stream
//! ends, for whatever reason, or the store has another connection, it is opened again after a short
//! jittered pause (the client library's stream does not resume by itself), from behind the last change that was seen, once the store has proved that it still has that
//! change (`watch::history`). When it is compacted, everything is listed again and compared with
//! what is known, so that the consumer gets puts for what changed and deletes for what vanished.
//!
//! **A store restored from a backup** has another history, whatever its revision is by now.
//! Everything is listed and compared by content; what vanished with the backup is written again by
//! its owners, so it counts as present for [`WatchConfig::grace`] and is deleted only then. The
//! batch says so ([`Batch::rolled_back`]), and owners look to what is theirs.
//!
//! Streams ask for a leader: a lost quorum ends them with an error, where they would else be silent
//! for ever. Messages are rate limited. A consumer that does not read stops the task, and the
//! stream behind it; nothing piles up.

mod batch;
mod history;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use etcd_client::WatchOptions;
use fdb::Revision;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument, debug, info, info_span, warn};

pub use batch::{Batch, Event};

use crate::backoff::{self, Backoff};
use crate::key::{Key, Range};
use crate::record::{self, Record};
use crate::store::{Entry, Error, Pages, Store};
use history::{History, Mark, Missing, Print};

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
    /// Longest pause while the store does not answer.
    pub pause_max: Duration,
    /// After how long a silence the store is asked how far it is.
    pub progress: Duration,
    /// The least time between two warnings about the same trouble.
    pub warn_interval: Duration,
    /// How long what a restored store lacks counts as present.
    pub grace: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            batches: 64,
            pause_min: backoff::FIRST,
            pause_max: backoff::AWAY,
            progress: Duration::from_secs(30),
            warn_interval: Duration::from_secs(60),
            grace: Duration::from_secs(30),
        }
    }
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
        let seen = known.values().map(|revision| revision.0).max().unwrap_or(0);
        // What lies at these keys is told again: the store may have been restored meanwhile, and
        // then a revision says nothing about a content.
        let known =
            known.into_keys().map(|key| (store.keys().encode(&key).into_bytes(), None)).collect();
        let task = Task {
            store,
            config,
            sender,
            status,
            known,
            missing: Missing::default(),
            seen,
            last: 0,
            mark: None,
            cluster: 0,
            rolled_back: false,
            warned: None,
        };
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

    /// How many batches wait, and how many may before the watch waits for room.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        (self.batches.len(), self.batches.max_capacity())
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
    Lost,
    /// The history is another one: list again, and believe nothing.
    RolledBack(&'static str),
    /// The store has another connection: open the stream on that.
    Moved,
    /// The stream broke: open it again.
    Broken(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Compacted => Self::Lost,
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
    /// Full keys that the consumer has; `None` where it is not known what it has there.
    known: HashMap<Vec<u8>, Option<Print>>,
    /// Keys that the consumer has and a restored store has not.
    missing: Missing,
    /// The latest revision that the consumer ever had.
    seen: i64,
    /// The latest revision that the consumer has; 0 when it needs a listing.
    last: i64,
    mark: Option<Mark>,
    /// Id of the cluster that was listed; 0 before the first listing.
    cluster: u64,
    /// Whether the next listing is of another history.
    rolled_back: bool,
    /// When we last warned.
    warned: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let span = info_span!("watch", revision = self.last);
            let end = async {
                if self.last == 0 {
                    self.list().await?;
                }
                self.follow().await
            }
            .instrument(span)
            .await;
            // What was connected for a while starts again with the shortest pause; one that breaks
            // whenever it is made does not.
            if let WatchStatus::Connected { since, .. } = &*self.status.borrow()
                && since.elapsed() >= self.config.pause_max
            {
                backoff.reset();
            }
            let (cause, longest) = match end {
                Ok(()) | Err(End::Closed) => return,
                Err(End::Moved) => continue,
                Err(End::Lost) => {
                    self.last = 0;
                    ("its history was compacted".to_owned(), self.config.pause_max)
                }
                Err(End::RolledBack(cause)) => {
                    self.last = 0;
                    self.rolled_back = true;
                    (cause.to_owned(), self.config.pause_max)
                }
                Err(End::Broken(error)) => {
                    (error.to_string(), backoff::longest(&error, self.config.pause_max))
                }
            };
            self.disconnected(&cause);
            let pause = backoff.next(self.config.pause_min, longest);
            // Another call's success ends the pause, but not so soon that we would knock with each.
            let woken = async {
                sleep(pause / 2).await;
                self.store.answered().await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = woken, if longest <= self.config.pause_max => {}
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
            self.rolled_back |= pages.revision < self.seen;
            let mut events = Vec::with_capacity(entries.len());
            for entry in entries {
                let print = Print::of(&entry);
                if self.known.get(&entry.key) != Some(&Some(print)) {
                    events.push(self.put(&entry));
                    // What is handed on is known even if the listing is not finished.
                    self.known.insert(entry.key.clone(), Some(print));
                }
                listed.insert(entry.key, Some(print));
            }
            self.send(Batch::listed(began, pages.revision, events)).await?;
        }
        let vanished: BTreeSet<Vec<u8>> =
            self.known.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
        let mark = Mark::listing(&listed, pages.revision);
        let rolled_back = std::mem::take(&mut self.rolled_back);
        let mut events = Vec::new();
        if rolled_back {
            let (revision, seen, missing) = (pages.revision, self.seen, vanished.len());
            warn!(revision, seen, missing, "the store has gone back, from a backup it seems");
            self.missing.wait(vanished, self.config.grace);
            self.missing.keep(&mut listed);
        } else {
            self.missing.take();
            events.extend(vanished.iter().map(|key| self.delete(key, pages.revision)));
        }
        self.known = listed;
        self.mark = Some(mark);
        self.last = pages.revision;
        self.seen = pages.revision;
        self.cluster = pages.cluster;
        info!(revision = self.last, keys = self.known.len(), "the store is listed");
        let batch = Batch::listed(began, pages.revision, events);
        self.send(Batch { complete: true, rolled_back, ..batch }).await
    }

    /// Watches from the last revision on until the stream ends.
    async fn follow(&mut self) -> Result<(), End> {
        let mut moves = self.store.moves();
        // There is a mark after every listing, and no watch before one.
        let Some(mark) = self.mark.clone() else { return Err(End::Lost) };
        let from = match history::compare(&self.store, &mark, self.last).await? {
            History::Same { from } => from,
            History::Other => return Err(End::RolledBack("it has another history")),
            History::Compacted => return Err(End::Lost),
        };
        let options =
            WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let wait = self.store.request_timeout();
        let mut stream = self.store.watch(Range::All, options).await?;
        let mut created = false;
        let mut progress = Progress::default();
        loop {
            let given_up = self.missing.until();
            let message = if created {
                let next = tokio::select! {
                    next = timeout(self.config.progress, stream.message()) => next,
                    _ = moves.changed() => return Err(End::Moved),
                    () = sleep_until(given_up.unwrap_or_else(Instant::now)), if given_up.is_some() => {
                        self.give_up().await?;
                        continue;
                    }
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
            // Not `events`: its `event_type` panics on a type that the library does not know.
            let message = message.0;
            let header = message.header.as_ref();
            if message.created {
                let cluster = header.map_or(0, |header| header.cluster_id);
                if self.cluster != cluster {
                    return Err(End::RolledBack("it is another cluster"));
                }
                // Once more, now that the stream would end with the store that it is of: the store may
                // have been restored between the first look and the opening.
                let history = history::compare(&self.store, &mark, self.last).await?;
                if history == History::Other {
                    return Err(End::RolledBack("it has another history"));
                }
                created = true;
                self.connected();
            }
            if message.events.is_empty() {
                // A progress notice, or the confirmation. The confirmation's revision says nothing
                // about what is still to come.
                let now = header.map_or(0, |header| header.revision);
                let reached = match message.watch_id {
                    _ if message.created => 0,
                    ASKED_FOR => std::mem::replace(&mut progress.told, now),
                    _ => now,
                };
                if reached > self.last {
                    self.reached(reached);
                    self.connected();
                }
                continue;
            }
            let mut events = Vec::with_capacity(message.events.len());
            let mut revision = self.last;
            for event in message.events {
                let Some(kv) = event.kv else { continue };
                // Between the mark and there nothing of ours was changed in the history that we know.
                if kv.mod_revision <= self.last {
                    return Err(End::RolledBack("it has another history"));
                }
                revision = revision.max(kv.mod_revision);
                self.missing.settled(&kv.key);
                match event.r#type {
                    0 => {
                        let entry = Entry {
                            key: kv.key,
                            value: kv.value,
                            create_revision: kv.create_revision,
                            mod_revision: kv.mod_revision,
                            lease: kv.lease,
                        };
                        self.known.insert(entry.key.clone(), Some(Print::of(&entry)));
                        self.mark = Some(Mark::put(&entry));
                        events.push(self.put(&entry));
                    }
                    1 => {
                        self.known.remove(&kv.key);
                        events.push(self.delete(&kv.key, kv.mod_revision));
                        self.mark = Some(Mark::deleted(kv.key, kv.mod_revision));
                    }
                    other => warn!(kind = other, "an event of an unknown kind was left out"),
                }
            }
            self.reached(revision);
            self.send(Batch::watched(began, revision, events)).await?;
            self.connected();
        }
    }

    fn reached(&mut self, revision: i64) {
        self.last = revision;
        self.seen = revision;
    }

    /// What a restored store lacks has not been written again: it is gone.
    async fn give_up(&mut self) -> Result<(), End> {
        let mut events = Vec::new();
        for key in self.missing.take() {
            events.push(self.delete(&key, self.last));
            self.known.remove(&key);
        }
        info!(keys = events.len(), "what the restored store lacks is given up");
        self.send(Batch::watched(Instant::now(), self.last, events)).await
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

    async fn send(&self, batch: Batch) -> Result<(), End> {
        if batch.events.is_empty() && !(batch.resync && batch.complete) {
            return Ok(());
        }
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
}

fn set_aside(key: String, parsed: Key, error: &record::Error, revision: Revision) -> Event {
    Event::Bad { key, parsed: Some(parsed), error: error.to_string(), revision }
}

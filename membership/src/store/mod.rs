//! The client of the store: one connection set, typed reads and transactions.
//!
//! # Theory of operation
//!
//! A [`Store`] is cheap to clone and is shared by everything that talks to the store. It connects
//! when it is first used, balances over the endpoints, asks for a leader in every request (a lost
//! quorum is an error and not silence), and gives each call a deadline of its own. A call that an
//! endpoint did not answer is repeated on the next until the deadline: **every transaction in this
//! crate may therefore be carried out twice**, and each is written so that the second one finds
//! the first one's result and takes it for its own.

mod admin;
mod config;
mod error;
mod history;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KvClient, LeaseClient, LeaseKeepAliveStream,
    LeaseKeeper, MaintenanceClient, PutOptions, Txn, TxnOp, WatchClient, WatchOptions, WatchStream,
};
use tokio::sync::{Mutex, MutexGuard, Notify, OnceCell, watch};
use tokio::time::{Instant, sleep, timeout_at};

pub use admin::{Member, Scope};
pub use config::{Credentials, StoreConfig, TlsFiles};
pub use error::Error;

use crate::key::{Key, Keys, Range};
use crate::record::{self, Stored};

/// Largest answer that is taken, in bytes. A page of 500 records of 64 KiB each stays below it; the
/// client library's own limit of 4 MiB would not.
pub const MESSAGE_MAX: usize = 64 * 1024 * 1024;
/// Most tries of one call.
const TRIES_MAX: usize = 40;
/// Longest pause between the tries of one call while the store has no leader.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(500);
/// Keys in one page of a listing.
pub const PAGE: usize = 500;

#[derive(Clone)]
struct Clients {
    kv: KvClient,
    lease: LeaseClient,
    maintenance: MaintenanceClient,
    watch: WatchClient,
}

struct Connection {
    config: StoreConfig,
    endpoints: String,
    clients: OnceCell<Clients>,
}

struct Inner {
    keys: Keys,
    connection: RwLock<Arc<Connection>>,
    /// Counts how often it was replaced.
    moves: watch::Sender<u64>,
    turn: Mutex<()>,
    /// Notified with every answer.
    answered: Notify,
}

/// The store. Clones share one connection set.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

/// What the store says about itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// Size of its file in bytes.
    pub size: u64,
    /// The revision of its latest change.
    pub revision: i64,
    /// Whether the member that answered has a leader.
    pub leader: bool,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The full key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that created the key.
    pub create_revision: i64,
    /// The revision that last changed it.
    pub mod_revision: i64,
    /// Its lease; 0 for none.
    pub lease: i64,
}

impl Entry {
    fn new(kv: &etcd_client::KeyValue) -> Self {
        Self {
            key: kv.key().to_vec(),
            value: kv.value().to_vec(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

/// A record with its revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    /// The record.
    pub record: T,
    /// The revision that created the key.
    pub create_revision: i64,
    /// The revision that last changed it.
    pub mod_revision: i64,
    /// Its lease; 0 for none.
    pub lease: i64,
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// The revision of the store after it.
    pub revision: i64,
    /// What each read of it found, in their order; other operations leave nothing here.
    pub reads: Vec<Vec<Entry>>,
}

impl Store {
    /// A store whose reachability has been checked.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] and [`Error::TlsFile`] for what is wrong here, [`Error::Unreachable`],
    /// [`Error::Timeout`] and [`Error::Access`] for what is wrong there.
    pub async fn connect(config: StoreConfig) -> Result<Self, Error> {
        let store = Self::lazy(config)?;
        store.status().await?;
        Ok(store)
    }

    /// A store that connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] or [`Error::Key`] for a configuration that cannot work.
    pub fn lazy(config: StoreConfig) -> Result<Self, Error> {
        config.check()?;
        let keys = Keys::new(&config.prefix)?;
        let connection = RwLock::new(Arc::new(Connection::new(config)));
        Ok(Self {
            inner: Arc::new(Inner {
                keys,
                connection,
                moves: watch::Sender::new(0),
                turn: Mutex::new(()),
                answered: Notify::new(),
            }),
        })
    }

    /// Uses other endpoints, files or credentials from the next call on. Files are read again even
    /// if their names are the same. Open watches and sessions move over at once.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a configuration that cannot work, another prefix among them.
    pub fn reload(&self, config: StoreConfig) -> Result<(), Error> {
        self.adopt(&Self::lazy(config)?)
    }

    /// Uses the connection of another one, which has been tried, from the next call on; else as
    /// [`Self::reload`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when the other one has another prefix.
    pub fn adopt(&self, tried: &Self) -> Result<(), Error> {
        if tried.inner.keys != self.inner.keys {
            return Err(Error::Config("the prefix cannot change while the agent runs".into()));
        }
        let connection = tried.connection();
        *self.inner.connection.write().unwrap_or_else(PoisonError::into_inner) = connection;
        self.inner.moves.send_modify(|moves| *moves += 1);
        Ok(())
    }

    /// Tells each time that [`Self::reload`] or [`Self::adopt`] has replaced the connection.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.inner.moves.subscribe()
    }

    /// The keys of this store.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// The endpoints, for messages.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.connection().endpoints.clone()
    }

    /// How long one call may take.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.connection().config.request_timeout
    }

    /// Asks the store for its state.
    ///
    /// # Errors
    ///
    /// Each variant that says why there is no answer.
    pub async fn status(&self) -> Result<Status, Error> {
        let status = self.call(|mut c| async move { c.maintenance.status().await }).await?;
        Ok(Status {
            version: status.version().to_owned(),
            size: u64::try_from(status.db_size()).unwrap_or(0),
            revision: status.header().map_or(0, etcd_client::ResponseHeader::revision),
            leader: status.leader() != 0,
        })
    }

    /// Reads one record.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] for one that cannot be read, else why there is no answer.
    pub async fn get<T: Stored>(&self, key: &Key) -> Result<Option<Found<T>>, Error> {
        let entries = self.read(vec![self.read_key(key)]).await?.reads;
        let entry = entries.into_iter().flatten().next();
        entry.map(|entry| Self::decode(key, &entry)).transpose()
    }

    /// Reads all keys of a range at one revision, in pages. Returns them with that revision.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] when the history was compacted between two pages.
    pub async fn list(&self, range: Range<'_>) -> Result<(i64, Vec<Entry>), Error> {
        let prefix = self.keys().range(range);
        let mut pages = Pages::new(&prefix);
        let mut all = Vec::new();
        while let Some(page) = self.page(&mut pages).await? {
            all.extend(page);
        }
        Ok((pages.revision, all))
    }

    /// The records of a range that can be read, with their revisions. Others are left out;
    /// the watch sets them aside and names them.
    pub(crate) async fn records<T: Stored>(
        &self,
        range: Range<'_>,
    ) -> Result<Vec<(Key, Found<T>)>, Error> {
        let (_, entries) = self.list(range).await?;
        let parsed = entries.iter().filter_map(|entry| {
            let key = self.keys().parse(&entry.key).ok()?;
            let found = Self::decode(&key, entry).ok()?;
            Some((key, found))
        });
        Ok(parsed.collect())
    }

    pub(crate) fn decode<T: Stored>(key: &Key, entry: &Entry) -> Result<Found<T>, Error> {
        Ok(Self::decode_record(key, entry)?)
    }

    pub(crate) fn decode_record<T: Stored>(
        key: &Key,
        entry: &Entry,
    ) -> Result<Found<T>, record::Error> {
        Ok(Found {
            record: T::decode(key, &entry.value)?,
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
            lease: entry.lease,
        })
    }

    /// The next page, or `None` after the last.
    pub(crate) async fn page(&self, pages: &mut Pages) -> Result<Option<Vec<Entry>>, Error> {
        let Some(from) = pages.next.take() else { return Ok(None) };
        let mut options = GetOptions::new()
            .with_range(pages.end.clone())
            .with_limit(i64::try_from(PAGE).unwrap_or(i64::MAX));
        if pages.revision != 0 {
            options = options.with_revision(pages.revision);
        }
        let answer = self
            .call(|mut c| {
                let (from, options) = (from.clone(), options.clone());
                async move { c.kv.get(from, Some(options)).await }
            })
            .await?;
        let header = answer.header();
        let cluster = header.map_or(0, etcd_client::ResponseHeader::cluster_id);
        if pages.revision == 0 {
            pages.revision = header.map_or(0, etcd_client::ResponseHeader::revision);
            pages.cluster = cluster;
        } else if pages.cluster != cluster {
            // The connection has moved to another store: its revisions are others.
            return Err(Error::Compacted);
        }
        let entries: Vec<Entry> = answer.kvs().iter().map(Entry::new).collect();
        if answer.more()
            && let Some(last) = entries.last()
        {
            // The least key after the last one.
            let mut next = last.key.clone();
            next.push(0);
            pages.next = Some(next);
        }
        Ok(Some(entries))
    }

    /// Several reads at one revision.
    pub(crate) async fn read(&self, reads: Vec<TxnOp>) -> Result<Outcome, Error> {
        self.txn(Vec::new(), reads, Vec::new()).await
    }

    /// One transaction. It may be carried out twice when an answer is lost.
    pub(crate) async fn txn(
        &self,
        when: Vec<Compare>,
        then: Vec<TxnOp>,
        or_else: Vec<TxnOp>,
    ) -> Result<Outcome, Error> {
        let txn = Txn::new().when(when).and_then(then).or_else(or_else);
        let answer = self
            .call(|mut c| {
                let txn = txn.clone();
                async move { c.kv.txn(txn).await }
            })
            .await?;
        // Not `op_responses`: it panics when a server leaves out an answer.
        let reads = answer.0.responses.iter().filter_map(|response| match &response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => Some(
                range
                    .kvs
                    .iter()
                    .map(|kv| Entry {
                        key: kv.key.clone(),
                        value: kv.value.clone(),
                        create_revision: kv.create_revision,
                        mod_revision: kv.mod_revision,
                        lease: kv.lease,
                    })
                    .collect(),
            ),
            _ => None,
        });
        Ok(Outcome {
            succeeded: answer.succeeded(),
            revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision),
            reads: reads.collect(),
        })
    }

    /// Whether the comparisons hold now.
    pub(crate) async fn holds(&self, when: &[Compare]) -> Result<bool, Error> {
        Ok(self.txn(when.to_vec(), Vec::new(), Vec::new()).await?.succeeded)
    }

    /// Reads one key within a transaction.
    pub(crate) fn read_key(&self, key: &Key) -> TxnOp {
        TxnOp::get(self.keys().encode(key), None)
    }

    /// Reads up to `limit` keys of a range within a transaction; 0 is all.
    pub(crate) fn read_range(&self, range: Range<'_>, limit: i64) -> TxnOp {
        let options = GetOptions::new().with_prefix().with_limit(limit);
        TxnOp::get(self.keys().range(range), Some(options))
    }

    /// Writes a record within a transaction.
    pub(crate) fn put<T: Stored>(&self, key: &Key, record: &T, lease: i64) -> Result<TxnOp, Error> {
        let value = record.encode(key)?;
        let options = (lease != 0).then(|| PutOptions::new().with_lease(lease));
        Ok(TxnOp::put(self.keys().encode(key), value, options))
    }

    /// Deletes a key within a transaction.
    pub(crate) fn delete(&self, key: &Key) -> TxnOp {
        TxnOp::delete(self.keys().encode(key), None)
    }

    /// Holds when the key is as it was read; revision 0 means that it was absent.
    pub(crate) fn unchanged(&self, key: &Key, mod_revision: i64) -> Compare {
        Compare::mod_revision(self.keys().encode(key), CompareOp::Equal, mod_revision)
    }

    /// Holds when the key is absent.
    pub(crate) fn absent(&self, key: &Key) -> Compare {
        self.unchanged(key, 0)
    }

    /// Holds when the key is present.
    pub(crate) fn present(&self, key: &Key) -> Compare {
        Compare::mod_revision(self.keys().encode(key), CompareOp::Greater, 0)
    }

    /// Holds when no key of the range is present.
    pub(crate) fn empty(&self, range: Range<'_>) -> Compare {
        Compare::create_revision(self.keys().range(range), CompareOp::Equal, 0).with_prefix()
    }

    /// A new lease.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64, Error> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        Ok(self.call(|mut c| async move { c.lease.grant(seconds, None).await }).await?.id())
    }

    /// How long a lease has been running at least without being renewed; `None` when it has ended.
    pub(crate) async fn lease_age(&self, lease: i64) -> Result<Option<Duration>, Error> {
        let answer = self.call(|mut c| async move { c.lease.time_to_live(lease, None).await });
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(Error::LeaseEnded) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(least_age(answer.granted_ttl(), answer.ttl()))
    }

    /// Ends a lease; one that has ended already is fine.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), Error> {
        match self.call(|mut c| async move { c.lease.revoke(lease).await }).await {
            Ok(_) | Err(Error::LeaseEnded) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens the stream that keeps a lease alive; it has been renewed once then.
    pub(crate) async fn keep_alive(
        &self,
        lease: i64,
    ) -> Result<(LeaseKeeper, LeaseKeepAliveStream), Error> {
        self.call(|mut c| async move { c.lease.keep_alive(lease).await }).await
    }

    /// Opens a watch of a range.
    pub(crate) async fn watch(
        &self,
        range: Range<'_>,
        options: WatchOptions,
    ) -> Result<WatchStream, Error> {
        let prefix = self.keys().range(range);
        self.call(|mut c| {
            let (prefix, options) = (prefix.clone(), options.clone());
            async move { c.watch.watch(prefix, Some(options)).await }
        })
        .await
    }

    /// Sorts an error of a client that was taken out of here.
    pub(crate) fn sort(&self, error: &etcd_client::Error) -> Error {
        Error::from_client(error, &self.connection().endpoints)
    }

    /// That a stream did not answer in time.
    pub(crate) fn late(&self, waited: Duration) -> Error {
        let seconds = waited.as_secs().max(1);
        Error::Timeout { endpoints: self.endpoints(), seconds }
    }

    /// Waits until a call of anybody in this process is answered: who waits to try again need not
    /// wait longer.
    pub(crate) async fn answered(&self) {
        self.inner.answered.notified().await;
    }

    /// Orders the allocations of this process one after the other, so that they do not make each
    /// other's transactions fail. Other processes meet in the store.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.turn.lock().await
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.inner.connection.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls until there is an answer that another endpoint would not change, or no time is left.
    async fn call<T, F>(&self, request: impl Fn(Clients) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let connection = self.connection();
        let limit = connection.config.request_timeout;
        let deadline = Instant::now() + limit;
        // The balancer does not avoid an endpoint that is down, so one that is up may need several
        // tries to be met.
        let tries = match connection.config.endpoints.len() {
            0 | 1 => 2,
            many => many.saturating_mul(8).min(TRIES_MAX),
        };
        let mut attempt = 0;
        let mut pause = Duration::from_millis(20);
        loop {
            let once = async {
                let clients = connection.clients().await?;
                request(clients)
                    .await
                    .map_err(|error| Error::from_client(&error, &connection.endpoints))
            };
            let error = match timeout_at(deadline, once).await {
                Ok(Ok(answer)) => {
                    self.inner.answered.notify_waiters();
                    return Ok(answer);
                }
                Ok(Err(Error::Timeout { .. })) | Err(_) => {
                    return Err(Error::Timeout {
                        endpoints: connection.endpoints.clone(),
                        seconds: limit.as_secs(),
                    });
                }
                Ok(Err(error)) => error,
            };
            attempt += 1;
            if attempt >= tries || !error.is_transient() || Instant::now() >= deadline {
                return Err(error);
            }
            // A cluster without a leader answers at once, and asking it often does not help it.
            sleep(jitter(pause)).await;
            if matches!(error, Error::NoLeader { .. }) {
                pause = (pause * 2).min(NO_LEADER_PAUSE);
            }
        }
    }
}

impl Connection {
    fn new(config: StoreConfig) -> Self {
        let endpoints = config.endpoints.join(", ");
        Self { config, endpoints, clients: OnceCell::new() }
    }

    async fn clients(&self) -> Result<Clients, Error> {
        // With a user the client authenticates while it connects, so this can fail and be repeated.
        let connect = || async {
            let options = self.config.options().await?;
            let client = Client::connect(&self.config.endpoints, Some(options))
                .await
                .map_err(|error| Error::from_client(&error, &self.endpoints))?;
            Ok(Clients {
                kv: client.kv_client().max_decoding_message_size(MESSAGE_MAX),
                lease: client.lease_client(),
                maintenance: client.maintenance_client(),
                watch: client.watch_client().max_decoding_message_size(MESSAGE_MAX),
            })
        };
        self.clients.get_or_try_init(connect).await.cloned()
    }
}

/// Where a paged listing stands.
pub(crate) struct Pages {
    next: Option<Vec<u8>>,
    end: Vec<u8>,
    /// The revision of the listing, known after the first page.
    pub(crate) revision: i64,
    /// The id of the cluster that answers, as its revision.
    pub(crate) cluster: u64,
}

impl Pages {
    /// All keys there are.
    pub(crate) fn everything() -> Self {
        Self { next: Some(vec![0]), end: vec![0], revision: 0, cluster: 0 }
    }
}

impl Pages {
    pub(crate) fn new(prefix: &str) -> Self {
        // A prefix ends in `/`, so the end of its range is the same with `0`, the next character.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        Self { next: Some(prefix.as_bytes().to_vec()), end, revision: 0, cluster: 0 }
    }
}

/// How long a lease of `granted` seconds has been running at least, by what a store says is `left`:
/// that is rounded down, so 0 is less than a second, and -1 a lease that has ended.
fn least_age(granted: i64, left: i64) -> Option<Duration> {
    // After a restart or a pause of the store more can be left than was granted.
    let age = granted.saturating_sub(left).saturating_sub(1);
    (left >= 0).then(|| Duration::from_secs(u64::try_from(age).unwrap_or(0)))
}

/// A duration from half to one and a half of `base`, so that many hosts do not act in step.
pub(crate) fn jitter(base: Duration) -> Duration {
    base.mul_f64(0.5 + rand::random::<f64>())
}

/// The pause before attempt `attempt` (from 1) of something that others may have disturbed.
pub(crate) fn conflict_pause(attempt: u32) -> Duration {
    jitter(Duration::from_millis(2 << attempt.min(6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_at_least_as_old_as_it_is_taken_for() {
        let age = |left| least_age(4, left).map(|age| age.as_secs());
        // A moment after the grant 3.9 s are left, which the store says as 3.
        assert_eq!([4, 3, 2, 1, 0].map(age), [0, 0, 1, 2, 3].map(Some));
        assert_eq!(age(9), Some(0), "extended by the store");
        assert_eq!(age(-1), None, "it has ended");
        assert_eq!(least_age(0, -1), None, "it is not known any more");
    }
}

//! What the services work on: the memory, the leases, and the way to the writer.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use etcd_client::proto::PbResponseHeader;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::auth::password::Hasher;
use super::auth::permission::Kind;
use super::auth::token::Tokens;
use super::auth::{Auth, Caller};
use super::backend::{Backend, Changes, Identity};
use super::error::{Error, Refusal};
use super::lease::{Leases, Remaining};
use super::limits;
use super::mvcc::State;
use super::txn::WriteTxn;
use super::writer::{Ack, Command, Job, Writer};

/// What the writer thread and the services share.
///
/// Lock order: `state`, `leases`, `auth_applied`, `auth`, `tokens`. None is held across an await or a
/// disk access.
pub(crate) struct Shared {
    state: RwLock<State>,
    leases: Mutex<Leases>,
    /// Users and roles as the writer has applied them.
    auth_applied: Mutex<Arc<Auth>>,
    /// The same as it is visible: on disk.
    auth: RwLock<Arc<Auth>>,
    tokens: Mutex<Tokens>,
    /// The visible revision, for those who wait for the next one.
    visible: watch::Sender<i64>,
    file_size: AtomicU64,
    /// Why nothing can be written any more.
    failed: OnceLock<String>,
}

impl Shared {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn auth(&self) -> Arc<Auth> {
        Arc::clone(&self.auth.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn auth_applied(&self) -> MutexGuard<'_, Arc<Auth>> {
        self.auth_applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the memory. `look` should only clone pointers.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state())
    }

    /// Runs a request above the visible revision (writer thread only).
    pub(crate) fn apply(&self, changes: &mut Changes, now: Instant, job: Job) -> Ack {
        let mut state = self.state_mut();
        let mut leases = self.leases();
        let mut auth = self.auth_applied();
        let mut txn = WriteTxn::new(&mut state, &mut leases, &mut auth, changes, now);
        job(Ok(&mut txn))
    }

    /// Forgets history in memory (writer thread only, nothing uncommitted); tells the places.
    pub(crate) fn compact(&self, at: i64) -> Result<Vec<(i64, u32)>, Refusal> {
        let mut state = self.state_mut();
        if at <= state.compacted() {
            return Err(Refusal::Compacted);
        }
        if at > state.visible() {
            return Err(Refusal::FutureRevision);
        }
        Ok(state.compact(at))
    }

    /// Makes what is on disk visible (writer thread only).
    pub(crate) fn publish(&self) {
        // Users and roles first: whoever sees the revision is judged by what came with it.
        let auth = Arc::clone(&self.auth_applied());
        *self.auth.write().unwrap_or_else(PoisonError::into_inner) = auth;
        let visible = self.state_mut().publish();
        self.visible.send_replace(visible);
    }

    /// Notes that the disk failed; the first cause stays.
    pub(crate) fn fail(&self, cause: String) {
        self.failed.get_or_init(|| cause);
    }

    /// Refuses when nothing can be written any more.
    pub(crate) fn check_writable(&self) -> Result<(), Refusal> {
        match self.failed.get() {
            Some(cause) => Err(Refusal::StorageFailed(cause.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn set_file_size(&self, bytes: u64) {
        self.file_size.store(bytes, Ordering::Relaxed);
    }
}

/// The store as the services see it.
pub(crate) struct Store {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    identity: Identity,
    stopping: watch::Sender<bool>,
    /// One permit per open watch stream.
    pub(crate) watch_streams: Arc<Semaphore>,
    pub(crate) passwords: Hasher,
}

impl Store {
    /// Opens the data directory and starts the writer thread.
    pub(crate) fn open(dir: &Path) -> Result<(Arc<Self>, JoinHandle<()>), Error> {
        let (store, writer, queue) = Self::load(dir)?;
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|source| Error::Thread { source })?;
        Ok((store, thread))
    }

    /// A store whose writer the test drives.
    #[cfg(test)]
    pub(crate) fn without_thread(dir: &Path) -> Result<(Arc<Self>, Writer), Error> {
        Self::load(dir).map(|(store, writer, _)| (store, writer))
    }

    fn load(dir: &Path) -> Result<(Arc<Self>, Writer, mpsc::Receiver<Command>), Error> {
        let start = Instant::now();
        let (backend, loaded) = Backend::open(dir)?;
        let mut leases = Leases::load(loaded.leases, Instant::now());
        let versions = loaded.versions.len();
        let state = State::load(loaded.versions, loaded.revision, loaded.compacted);
        for version in state.newest() {
            leases.attach(&version.key, 0, version.lease);
        }
        let (leased, ms) = (leases.len(), start.elapsed().as_millis() as u64);
        info!(versions, leases = leased, revision = loaded.revision, ms, "the store is loaded");
        let auth = Arc::new(loaded.auth);
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            leases: Mutex::new(leases),
            auth_applied: Mutex::new(Arc::clone(&auth)),
            auth: RwLock::new(auth),
            tokens: Mutex::default(),
            visible: watch::Sender::new(loaded.revision),
            file_size: AtomicU64::new(backend.file_size()),
            failed: OnceLock::new(),
        });
        let (commands, queue) = mpsc::channel(limits::WRITE_QUEUE);
        let writer = Writer::new(Arc::clone(&shared), backend);
        let store = Arc::new(Self {
            shared,
            commands,
            identity: loaded.identity,
            stopping: watch::Sender::new(false),
            watch_streams: Arc::new(Semaphore::new(limits::WATCH_STREAMS)),
            passwords: Hasher::new(),
        });
        Ok((store, writer, queue))
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Looks at the memory. `look` should only clone pointers.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.shared.read(look)
    }

    /// Users and roles as they are visible.
    pub(crate) fn auth(&self) -> Arc<Auth> {
        self.shared.auth()
    }

    /// Gives a token to a user whose password was right at `revision`.
    pub(crate) fn give_token(&self, user: &str, revision: u64) -> String {
        self.shared.tokens().give(user, revision, Instant::now())
    }

    /// Whose token it is, when it still counts.
    pub(crate) fn token_user(&self, text: &str) -> Option<String> {
        let (user, revision) = self.shared.tokens().find(text, Instant::now())?;
        self.auth().honours(&user, revision).then_some(user)
    }

    /// Whether somebody may do with all keys of a lease what is asked.
    pub(crate) fn permit_lease(&self, caller: &Caller, id: i64, kind: Kind) -> Result<(), Refusal> {
        let leases = self.shared.leases();
        self.auth().lease(caller, &leases, id, kind)
    }

    /// The header of a response at `revision`.
    pub(crate) fn header(&self, revision: i64) -> PbResponseHeader {
        PbResponseHeader {
            cluster_id: self.identity.cluster,
            member_id: self.identity.member,
            revision,
            raft_term: self.identity.term,
        }
    }

    /// The header of a response that changes and reads nothing.
    pub(crate) fn current_header(&self) -> PbResponseHeader {
        self.header(self.read(State::visible))
    }

    /// Refuses when nothing can be written any more.
    pub(crate) fn check_writable(&self) -> Result<(), Refusal> {
        self.shared.check_writable()
    }

    /// Size of the file on disk in bytes.
    pub(crate) fn file_size(&self) -> u64 {
        self.shared.file_size.load(Ordering::Relaxed)
    }

    /// Tells the visible revision and each later one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<i64> {
        self.shared.visible.subscribe()
    }

    /// Turns true when the server stops.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Runs `change` on the writer thread and answers once its effect is on disk.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTxn<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |txn| {
            let outcome = txn.and_then(change);
            // The asker may have gone; the change stands all the same.
            Box::new(move |durable| drop(reply.send(durable.and(outcome))))
        });
        self.command(Command::Write(job)).await?;
        answer.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// Forgets the history below `at`.
    pub(crate) async fn compact(&self, at: i64) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Compact { at, reply }).await?;
        answer.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// Shrinks the file.
    pub(crate) async fn defragment(&self) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Defragment { reply }).await?;
        answer.await.unwrap_or(Err(Refusal::Stopped))
    }

    async fn command(&self, command: Command) -> Result<(), Refusal> {
        self.commands.send(command).await.map_err(|_| Refusal::Stopped)
    }

    /// Moves a lease's deadline; tells its ttl.
    pub(crate) fn renew(&self, id: i64) -> Option<i64> {
        self.shared.leases().renew(id, Instant::now())
    }

    pub(crate) fn remaining(&self, id: i64, with_keys: bool) -> Option<Remaining> {
        self.shared.leases().remaining(id, with_keys, Instant::now())
    }

    pub(crate) fn lease_ids(&self) -> Vec<i64> {
        self.shared.leases().ids()
    }

    /// Ends expired leases, and notices pauses of this process, until the server stops.
    pub(crate) async fn expire_leases(self: Arc<Self>) {
        let mut stopping = self.stopping();
        tokio::select! {
            // In this order: whoever looks at the clock first is the one that learns of a pause.
            biased;
            _ = stopping.wait_for(|stop| *stop) => {}
            // Beside the other and not after it: a slow disk is no process that was stopped.
            () = self.watch_clock() => {}
            () = self.end_expired() => {}
        }
    }

    async fn watch_clock(&self) {
        loop {
            tokio::time::sleep(limits::LEASE_TICK).await;
            let Some(pause) = self.shared.leases().observe(Instant::now()) else { continue };
            let ms = pause.as_millis() as u64;
            if pause < limits::LEASE_NOTICED {
                info!(ms, "the store's process was stopped for a moment");
            } else {
                warn!(ms, "the store's process was stopped; every lease is extended by that");
            }
        }
    }

    async fn end_expired(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(limits::LEASE_TICK).await;
            // All at once, so that they share commits; each is a revision of its own.
            let mut writes = JoinSet::new();
            for id in self.expired(Instant::now()) {
                let store = Arc::clone(self);
                writes.spawn(async move {
                    match store.write(move |txn| txn.expire(id)).await {
                        Ok(()) => debug!(lease = id, "a lease has expired"),
                        // It has been revoked in the meantime, or nothing can be written.
                        Err(error) => debug!(lease = id, %error, "a lease could not be ended"),
                    }
                });
            }
            writes.join_all().await;
        }
    }

    fn expired(&self, now: Instant) -> Vec<i64> {
        self.shared.leases().expired(now)
    }

    /// Ends the streams.
    pub(crate) fn stop_streams(&self) {
        self.stopping.send_replace(true);
    }

    /// Ends the writer once it has done what is queued.
    pub(crate) async fn stop_writer(&self) {
        // It is gone already when this fails.
        let _ = self.command(Command::Stop).await;
    }

    /// Ends the writer from a place that cannot wait.
    pub(crate) fn stop_writer_now(&self) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(Command::Stop)
        {
            let commands = self.commands.clone();
            thread::spawn(move || drop(commands.blocking_send(command)));
        }
    }
}

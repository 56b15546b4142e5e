//! What runs on a host.
//!
//! # Theory of operation
//!
//! ```text
//!              control API ──► api ──► driver::attach ──► networks ──► link, port, datapath
//!                                          │
//!   store ──► watch ──► tables ──► workers │ endpoint records
//!     ▲                                    ▼
//!     └──────── session (this host's record under its lease) ── membership
//! ```
//!
//! The agent owns one of each: the locked state directory, the store client, the session, the
//! tables, the workers, the networks of this host. Its tasks are
//!
//! - *follow* ([`tasks`]): applies the watch to the tables and reacts to what changed;
//! - *session*: keeps this host's record under a lease, for as long as the agent runs;
//! - *republish*: writes again what the store has lost of this host;
//! - *look after*: restores attachments of an earlier run, tells the store what it could not be
//!   told, notices sandboxes that are gone;
//! - *keep* ([`reserve`]): holds addresses ready for attaching while the store is away;
//! - *underlay* ([`underlay`]): follows this host's own interfaces;
//! - *keep* the ways to other hosts ([`paths`]) as good as they can be;
//! - *keep* gateways and uplinks ([`routers`]) as they shall be, and the host's rules with them;
//! - *run* ([`kernel`]): exchanges entries with vxlan devices of the kernel;
//! - *collect* ([`garbage`]): removes from the store what no living owner has.
//!
//! Nothing here is on the way of a frame, and no task is needed for forwarding to go on.

pub mod api;
pub mod attention;
pub mod bounds;
pub mod claims;
pub mod docker;
pub mod figures;
pub mod garbage;
mod guards;
pub mod kernel;
pub mod networks;
pub mod paths;
pub mod republish;
pub mod reserve;
pub mod routers;
pub mod state;
pub mod store;
pub mod tables;
pub mod tasks;
pub mod underlay;

mod convergence;
mod errors;
mod rivals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use membership::embedded::Admission;
use membership::key::{HostId, HostName, NetworkId};
use membership::record::NetworkRecord;
use membership::store::Store;
use membership::view::Journal;
use membership::watch::WatchStatus;
use tokio::sync::watch;

pub use errors::{endpoint_error, link_error, network_error, state_error, store_error};

use crate::config::Config;
use crate::control::types::{Error, Reload};
use crate::datapath::Datapath;
use networks::Networks;
use paths::Paths;
use reserve::Book;
use routers::Routers;
use state::{Attachment, Stage, StateDir};
use tables::Tables;

/// How long an operation that needs the store waits for one that is away.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// The snapshot of the records, in the state directory.
pub const SNAPSHOT: &str = "tables.json";
/// What was applied since, in the state directory.
pub const JOURNAL: &str = "tables.log";

/// Something that an operator should know of.
#[derive(Clone, Debug)]
pub struct Warning {
    /// Since when.
    pub since: Instant,
    /// What it is.
    pub text: String,
    /// What to do.
    pub next_step: Option<String>,
}

/// A host's agent.
pub struct Agent {
    /// The host's name.
    pub name: HostName,
    /// The host's id.
    pub id: HostId,
    /// The effective configuration.
    pub config: Arc<Config>,
    /// The store.
    pub store: Store,
    /// The tables.
    pub tables: Tables,
    /// The workers.
    pub datapath: Datapath,
    /// The networks of this host.
    pub networks: Networks,
    /// What is kept of Docker's networks.
    pub dockers: docker::Dockers,
    /// Addresses to attach with while the store is away.
    pub reserve: Book,
    /// The ways out of networks.
    pub routers: Routers,
    /// The ways to other hosts.
    pub paths: Paths,
    /// Vxlan devices of the kernel that networks exchange entries with.
    pub kernel: kernel::Kernel,
    state: StateDir,
    attachments: Mutex<BTreeMap<String, Attachment>>,
    /// Endpoints whose devices this run has set up or taken over.
    settled: Mutex<BTreeSet<String>>,
    warnings: Mutex<BTreeMap<String, Warning>>,
    /// What the last reload of the configuration came to, and when.
    reload: Mutex<Option<(Instant, Reload)>>,
    /// What was applied since the snapshot.
    journal: Mutex<Journal>,
    /// Held while the snapshot is written: an aborted task goes on writing for a while.
    saving: Mutex<()>,
    /// Held while attachments of an earlier run are restored, each once.
    restoring: tokio::sync::Mutex<()>,
    /// Held while the store is told of an endpoint that was attached without it, or while such an
    /// endpoint is forgotten.
    pub publishing: tokio::sync::Mutex<()>,
    /// Told when this host is present in the store.
    present: tokio::sync::Notify,
    session: Mutex<tasks::SessionView>,
    watch: watch::Receiver<WatchStatus>,
    /// How full things were.
    pub marks: bounds::Marks,
    /// When the tables were last looked after.
    pub(crate) followed: Mutex<Instant>,
    /// What the store may have lost of this host.
    doubts: republish::Doubts,
    /// Who has which MAC and address may have changed.
    claims: tokio::sync::Notify,
    /// Address on which this process serves the embedded store.
    pub embedded: Option<String>,
    /// By whom hosts are let in to the store that this process serves.
    pub admission: Option<Arc<Admission>>,
    /// When it started.
    pub started: Instant,
}

/// What an agent is made of.
pub struct Parts {
    /// The host's name.
    pub name: HostName,
    /// The host's id.
    pub id: HostId,
    /// The effective configuration.
    pub config: Arc<Config>,
    /// The store.
    pub store: Store,
    /// The tables.
    pub tables: Tables,
    /// The workers.
    pub datapath: Datapath,
    /// The networks of this host.
    pub networks: Networks,
    /// The locked state directory.
    pub state: StateDir,
    /// The attachments of the last run.
    pub attachments: BTreeMap<String, Attachment>,
    /// The session as it begins.
    pub session: tasks::SessionView,
    /// The connection to the store.
    pub watch: watch::Receiver<WatchStatus>,
    /// Address on which this process serves the embedded store.
    pub embedded: Option<String>,
    /// By whom hosts are let in to it.
    pub admission: Option<Arc<Admission>>,
}

impl Agent {
    /// Puts the parts together; nothing is started.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let journal = Journal::new(parts.state.path().join(JOURNAL));
        let reserve = Book::open(parts.state.path(), parts.attachments.values());
        Self {
            dockers: docker::Dockers::open(parts.state.path()),
            reserve,
            routers: Routers::default(),
            paths: Paths::default(),
            kernel: kernel::Kernel::open(parts.state.path()),
            name: parts.name,
            id: parts.id,
            config: parts.config,
            store: parts.store,
            tables: parts.tables,
            datapath: parts.datapath,
            networks: parts.networks,
            state: parts.state,
            attachments: Mutex::new(parts.attachments),
            settled: Mutex::default(),
            warnings: Mutex::default(),
            reload: Mutex::default(),
            journal: Mutex::new(journal),
            saving: Mutex::default(),
            restoring: tokio::sync::Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
            present: tokio::sync::Notify::new(),
            session: Mutex::new(parts.session),
            watch: parts.watch,
            marks: bounds::Marks::default(),
            followed: Mutex::new(Instant::now()),
            doubts: republish::Doubts::default(),
            claims: tokio::sync::Notify::new(),
            embedded: parts.embedded,
            admission: parts.admission,
            started: Instant::now(),
        }
    }

    /// Where the namespace of a network is pinned, by the network's id.
    #[must_use]
    pub fn pin_of(&self, network: &str) -> std::path::PathBuf {
        self.networks.owner().pin(network)
    }

    /// Whether this run has set up or taken over an endpoint's devices.
    #[must_use]
    pub fn is_settled(&self, endpoint: &str) -> bool {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).contains(endpoint)
    }

    /// Notes that an endpoint's devices are set up.
    pub fn mark_settled(&self, endpoint: &str) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.insert(endpoint.to_owned());
    }

    /// Notes that an endpoint's devices are to be set up anew.
    pub(crate) fn mark_unsettled(&self, endpoint: &str) {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint);
    }

    /// A network by name or id, asked of the store where this host does not know it yet.
    ///
    /// # Errors
    /// When there is none, or the store must be asked and is away.
    pub async fn network_record(&self, name_or_id: &str) -> Result<Arc<NetworkRecord>, Error> {
        if let Some(record) = self.known_by(name_or_id) {
            return Ok(record);
        }
        let found = membership::network::get(&self.store, name_or_id)
            .await
            .map_err(|err| network_error(&err))?;
        self.tables.wait_for_network(&found.record.id, true, tables::ECHO).await?;
        Ok(Arc::new(found.record))
    }

    /// A network by name or id, where this host knows it.
    #[must_use]
    pub fn known_by(&self, name_or_id: &str) -> Option<Arc<NetworkRecord>> {
        self.tables.view(|view| view.network_by(name_or_id).map(|item| Arc::clone(&item.record)))
    }

    /// Waits a moment for a store that went away just now.
    ///
    /// # Errors
    /// Why it is away, when it does not come back in that time.
    pub async fn await_store(&self) -> Result<(), String> {
        let waited = match self.watch_status() {
            WatchStatus::Connected { .. } => return Ok(()),
            WatchStatus::Disconnected { since, .. } => since.elapsed(),
        };
        self.await_store_for(STORE_PATIENCE.saturating_sub(waited)).await
    }

    /// Waits for a store that is away, however long it has been.
    ///
    /// # Errors
    /// Why it is away, when it does not come back in that time.
    pub async fn await_store_for(&self, patience: Duration) -> Result<(), String> {
        let mut status = self.watch.clone();
        let connected = status.wait_for(WatchStatus::is_connected);
        if tokio::time::timeout(patience, connected).await.is_ok() {
            return Ok(());
        }
        match self.watch_status() {
            WatchStatus::Disconnected { cause, .. } => Err(cause),
            WatchStatus::Connected { .. } => Ok(()),
        }
    }

    /// Removes namespaces of networks that no attachment needs.
    ///
    /// # Errors
    /// When one could not be removed.
    pub async fn remove_unused_networks(&self) -> Result<(), Error> {
        let notes = self.attachments();
        let needed = notes.into_iter().filter(|note| note.stage != Stage::Detaching);
        let needed = needed.map(|note| note.network).collect();
        self.networks.remove_unused(&needed).await.map_err(|err| link_error(&err))
    }

    /// How often this host's agent started, as the store knows it.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).incarnation
    }

    /// The session as last seen.
    #[must_use]
    pub fn session(&self) -> tasks::SessionView {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection to the store as last seen.
    #[must_use]
    pub fn watch_status(&self) -> WatchStatus {
        self.watch.borrow().clone()
    }

    /// All attachments, whatever their stage.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        let all = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Whether an endpoint is attached here, and the store was told of it.
    #[must_use]
    pub fn is_published(&self, endpoint: &str) -> bool {
        let all = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(endpoint).is_some_and(Attachment::is_published)
    }

    /// One attachment as it is noted now.
    #[must_use]
    pub fn attachment(&self, endpoint: &str) -> Option<Attachment> {
        let all = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(endpoint).cloned()
    }

    /// Notes an attachment on disk and in memory.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put_attachment(&self, note: &Attachment) -> Result<(), Error> {
        self.state.put(note).map_err(|err| state_error(&err))?;
        let mut all = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(note.endpoint.clone(), note.clone());
        Ok(())
    }

    /// Changes the note of an attachment on disk and in memory, as it is now; one that is gone stays
    /// so.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn change_attachment(
        &self,
        endpoint: &str,
        change: impl FnOnce(&mut Attachment),
    ) -> Result<(), Error> {
        let mut all = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(present) = all.get_mut(endpoint) else { return Ok(()) };
        let mut note = present.clone();
        change(&mut note);
        self.state.put(&note).map_err(|err| state_error(&err))?;
        *present = note;
        Ok(())
    }

    /// Forgets an attachment on disk and in memory.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_attachment(&self, endpoint: &str) -> Result<(), Error> {
        self.state.remove(endpoint).map_err(|err| state_error(&err))?;
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint);
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint);
        Ok(())
    }

    /// Notes something that needs attention, once per `key`.
    pub fn warn(&self, key: &str, text: String, next_step: Option<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        match warnings.get_mut(key) {
            Some(present) => {
                present.text = text;
                present.next_step = next_step;
            }
            None => {
                tracing::warn!(key, text, "needs attention");
                let since = Instant::now();
                warnings.insert(key.to_owned(), Warning { since, text, next_step });
            }
        }
    }

    /// What `key` warned of is over.
    pub fn clear_warning(&self, key: &str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.remove(key).is_some() {
            tracing::info!(key, "no longer needs attention");
        }
    }

    /// Notes what a reload of the configuration came to.
    pub fn note_reload(&self, reload: Reload) {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), reload));
    }

    /// What the last reload of the configuration came to.
    #[must_use]
    pub fn last_reload(&self) -> Option<Reload> {
        let last = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, reload) = last.as_ref()?;
        Some(Reload { since_ms: at.elapsed().as_millis() as u64, ..reload.clone() })
    }

    /// What needs attention now.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.values().cloned().collect()
    }

    /// The network with this id, where this host knows it.
    #[must_use]
    pub fn known_network(&self, id: &NetworkId) -> Option<Arc<NetworkRecord>> {
        self.tables.view(|view| view.network(id).map(|item| Arc::clone(&item.record)))
    }
}

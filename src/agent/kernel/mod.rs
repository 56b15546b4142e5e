//! Vxlan devices of the kernel beside the switch: Docker Swarm's overlay, or whoever works like it.
//!
//! # Theory of operation
//!
//! ```text
//!   device's entries, its bridge's ports ──► import ──► static VTEPs in the network's record (store)
//!   endpoints of the network (store)     ──► export ──► FDB and neighbor entries of the device
//! ```
//!
//! Each device that is followed has a *note* in the state directory and a task (`follow`) that looks
//! for its namespace, opens it and makes things so: after every change that the kernel tells of, after
//! every change of the network's records, and every few seconds, since a sandbox may be replaced by
//! another one with the same name. Everything is compared with what is there and only the difference is
//! written. A namespace or device that is gone is waited for, and what was read of others is kept until
//! a host that imports itself takes it back. With the network, its notes go.
//!
//! A device that shall not be followed any longer is given up in this order: its task ends, what was done
//! is taken back, the note goes. Where that fails the note stays, and the device is followed on.
//!
//! The entries that this host's devices tell of a network are one set (`import`); the store's record
//! names the host with each, so hosts that know the same do not take each other's word back.

mod export;
mod follow;
mod import;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use encap::MacAddr;
use membership::key::NetworkId;
use membership::network::Imported;
use membership::record::NetworkRecord;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{Agent, state, state_error};
use crate::control::types::{Error, KernelDirection, KernelLink, KernelState};

pub use request::{change, exported, links};

/// The notes, in the state directory.
const NOTES: &str = "kernel.json";
/// Version of the notes.
const VERSION: u32 = 1;
/// How soon what the store did not take is told again.
const FORGET_AGAIN: Duration = Duration::from_secs(5);

/// What is followed, as it is noted on disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    /// The network's id.
    network: NetworkId,
    direction: KernelDirection,
    netns: String,
    dev: String,
    /// Address of the device's own VTEP.
    #[serde(default)]
    vtep: Option<IpAddr>,
    /// The network's name, for people.
    name: String,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    version: u32,
    links: Vec<Note>,
}

/// How it is with a device.
#[derive(Clone, Debug)]
struct Shown {
    state: KernelState,
    since: Instant,
    entries: u64,
    conflicts: Vec<String>,
    reason: Option<String>,
}

/// What was read of a device.
#[derive(Clone, Debug, Default)]
struct Read {
    entries: Vec<Imported>,
    /// The device is not there now, and this is what is left of an earlier look.
    kept: bool,
    /// Of what is kept, what the host that it is on has said too.
    seconded: BTreeSet<(MacAddr, IpAddr)>,
}

/// A device that is followed.
struct Link {
    note: Note,
    shown: Mutex<Shown>,
    /// What was read of it; `None` until it was.
    read: Mutex<Option<Read>>,
    /// Held while its task runs.
    running: tokio::sync::Mutex<()>,
    /// Told each time it was looked at; `true` ends the task.
    looked: watch::Sender<u64>,
    stop: watch::Sender<bool>,
}

impl Link {
    fn new(note: Note) -> Arc<Self> {
        let shown = Shown {
            state: KernelState::Waiting,
            since: Instant::now(),
            entries: 0,
            conflicts: Vec::new(),
            reason: None,
        };
        Arc::new(Self {
            note,
            shown: Mutex::new(shown),
            read: Mutex::default(),
            running: tokio::sync::Mutex::default(),
            looked: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        })
    }

    fn read(&self) -> MutexGuard<'_, Option<Read>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Ends its task, which may be amid a look: what it does is over then.
    async fn end(&self) {
        self.stop.send_replace(true);
        drop(self.running.lock().await);
    }

    fn show(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how it is, and tells those who wait for it.
    fn looked(&self, agent: &Agent, state: KernelState, reason: Option<String>) {
        let Note { network, direction, netns, dev, .. } = &self.note;
        let key = format!("kernel-{direction}-{network}-{netns}-{dev}");
        let changed = {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = shown.state != state;
            if changed {
                shown.state = state;
                shown.since = Instant::now();
            }
            shown.reason.clone_from(&reason);
            changed
        };
        let what = format!(
            "{} of network {} with {} in {}",
            self.note.direction, self.note.name, self.note.dev, self.note.netns
        );
        match reason {
            // A sandbox comes with its first container: to wait is no fault.
            Some(reason) if state == KernelState::Failed => agent.warn(
                &key,
                format!("the {what} does not go on: {reason}"),
                Some(
                    "it goes on by itself once that is over; `skybridge network vtep` stops it \
                     with --stop"
                        .to_owned(),
                ),
            ),
            _ => agent.clear_warning(&key),
        }
        if changed {
            tracing::info!(%state, "{what}");
        }
        self.looked.send_modify(|times| *times += 1);
    }

    fn count(&self, entries: usize, conflicts: Vec<String>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.entries = entries as u64;
        shown.conflicts = conflicts;
    }

    fn listed(&self) -> KernelLink {
        let shown = self.show();
        KernelLink {
            network: self.note.name.clone(),
            direction: self.note.direction,
            netns: self.note.netns.clone(),
            dev: self.note.dev.clone(),
            state: shown.state,
            since_ms: shown.since.elapsed().as_millis() as u64,
            entries: shown.entries,
            conflicts: shown.conflicts,
            reason: shown.reason,
        }
    }
}

/// All devices that are followed.
pub struct Kernel {
    path: PathBuf,
    links: Mutex<BTreeMap<Note, Arc<Link>>>,
    /// Held while a request changes which devices are followed.
    changing: tokio::sync::Mutex<()>,
    /// Told when there is a link whose task does not run yet.
    added: Notify,
    /// Why the notes could not be read.
    unread: Option<String>,
}

impl Kernel {
    /// Reads the notes of the last run from the state directory.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let path = state.join(NOTES);
        let (notes, unread) = match noted(&path) {
            Ok(notes) => (notes, None),
            Err(cause) => (Vec::new(), Some(cause)),
        };
        let unread = unread.map(|cause| {
            let _ = std::fs::rename(&path, path.with_extension("bad"));
            format!("{} cannot be read and was set aside: {cause}", path.display())
        });
        let links = notes.into_iter().map(|note| (note.clone(), Link::new(note))).collect();
        Self {
            path,
            links: Mutex::new(links),
            changing: tokio::sync::Mutex::default(),
            added: Notify::new(),
            unread,
        }
    }

    fn all(&self) -> Vec<Arc<Link>> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.values().cloned().collect()
    }

    fn of(&self, network: &NetworkId, direction: KernelDirection) -> Vec<Arc<Link>> {
        let matches =
            |link: &Arc<Link>| link.note.network == *network && link.note.direction == direction;
        self.all().into_iter().filter(matches).collect()
    }

    /// Follows a device on that could not be given up.
    fn resume(&self, link: &Link) {
        let again = Link::new(link.note.clone());
        (*again.read()).clone_from(&link.read());
        {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.insert(link.note.clone(), again);
        }
        self.added.notify_one();
    }

    /// Changes the set and its file together.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<Note, Arc<Link>>)) -> Result<(), Error> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = links.clone();
        change(&mut wanted);
        let notes = Notes { version: VERSION, links: wanted.keys().cloned().collect() };
        let bytes = serde_json::to_vec_pretty(&notes).unwrap_or_default();
        state::replace(&self.path, &bytes).map_err(|err| state_error(&err))?;
        *links = wanted;
        Ok(())
    }
}

/// The notes of a file; one that is not there has none.
fn noted(path: &Path) -> Result<Vec<Note>, String> {
    let bytes = match std::fs::read(path) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|err| err.to_string())?,
    };
    match serde_json::from_slice::<Notes>(&bytes) {
        Ok(notes) if notes.version <= VERSION + 1 => Ok(notes.links),
        Ok(notes) => Err(format!("it has version {}", notes.version)),
        Err(err) => Err(err.to_string()),
    }
}

/// What [`clean_up`] did.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// The devices that entries of ours were removed from.
    pub removed: Vec<String>,
    /// What could not be done.
    pub failed: Vec<String>,
}

/// Removes what an agent of this state directory, which must not run, has entered into devices that are
/// there, and then its notes. What it imported goes from the store with the next start.
pub async fn clean_up(state: &Path) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let path = state.join(NOTES);
    let notes = match noted(&path) {
        Ok(notes) => notes,
        Err(cause) => {
            cleaned.failed.push(format!("{} cannot be read: {cause}", path.display()));
            return cleaned;
        }
    };
    for note in notes.into_iter().filter(|note| note.direction == KernelDirection::Export) {
        let place = format!("{} in {}", note.dev, note.netns);
        match follow::take_back(&Link::new(note)).await {
            Ok(true) => cleaned.removed.push(format!("entries of endpoints from {place}")),
            Ok(false) => {}
            Err(trouble) => cleaned.failed.push(format!("{place}: {}", trouble.reason)),
        }
    }
    if cleaned.failed.is_empty()
        && let Err(err) = std::fs::remove_file(&path)
        && err.kind() != std::io::ErrorKind::NotFound
    {
        cleaned.failed.push(format!("{}: {err}", path.display()));
    }
    cleaned
}

/// Follows the devices, for ever.
pub async fn run(agent: Arc<Agent>) {
    tokio::join!(follow_all(&agent), forget_own(&agent));
}

/// Takes back what this host said of networks that it imports nothing into: by a stop that the store was
/// not told of, or with a state directory that is gone.
async fn forget_own(agent: &Agent) {
    // Notes that could not be read may be those of devices that are still there.
    if agent.kernel.unread.is_some() {
        return;
    }
    let mut reached = agent.tables.reached();
    while !agent.tables.is_complete() {
        if reached.changed().await.is_err() {
            return;
        }
    }
    loop {
        let said: Vec<NetworkId> = agent.tables.view(|view| {
            let is_said = |record: &NetworkRecord| {
                let mut known = record.static_vteps.iter().flat_map(|vtep| &vtep.imported);
                known.any(|known| known.by.contains(&agent.name))
            };
            let said = view.networks().filter(|item| is_said(&item.record));
            said.map(|item| item.record.id.clone()).collect()
        });
        let mut failed = false;
        for network in said {
            let _changing = agent.kernel.changing.lock().await;
            if agent.kernel.of(&network, KernelDirection::Import).is_empty() {
                failed |= import::push(agent, &network).await.is_err();
            }
        }
        if !failed {
            return;
        }
        tokio::time::sleep(FORGET_AGAIN).await;
    }
}

async fn follow_all(agent: &Arc<Agent>) {
    if let Some(text) = &agent.kernel.unread {
        agent.warn("kernel-notes", text.clone(), Some("export and import anew".to_owned()));
    }
    let mut tasks = JoinSet::new();
    let mut running = BTreeSet::new();
    loop {
        for link in agent.kernel.all() {
            if !link.is_stopped() && running.insert(link.note.clone()) {
                let agent = Arc::clone(agent);
                tasks.spawn(async move {
                    follow::follow(&agent, &link).await;
                    link.note.clone()
                });
            }
        }
        tokio::select! {
            () = agent.kernel.added.notified() => {}
            Some(ended) = tasks.join_next() => match ended {
                Ok(note) => { running.remove(&note); }
                Err(err) => tracing::error!(%err, "a task that follows a device failed"),
            }
        }
    }
}

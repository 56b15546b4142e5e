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
//! written. A namespace or device that is gone is waited for, and what was read of it is kept.
//!
//! The entries that this host's devices tell of a network are one set (`import`); the store's record
//! names the host with each, so hosts that know the same do not take each other's word back.

mod export;
mod follow;
mod import;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use membership::key::{HostName, NetworkId};
use membership::network as records;
use membership::network::Imported;
use membership::record::NetworkRecord;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{Agent, network_error, state, state_error};
use crate::control::types::{
    Error, ExportedEntry, KernelAction, KernelDirection, KernelLink, KernelState, LinkKernel,
};

/// The notes, in the state directory.
const NOTES: &str = "kernel.json";
/// Version of the notes.
const VERSION: u32 = 1;
/// Most devices that are followed.
const LINKS_MAX: usize = 64;
/// How long a command waits for the first look at a device.
const FIRST_LOOK: Duration = Duration::from_secs(5);

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

/// A device that is followed.
struct Link {
    note: Note,
    shown: Mutex<Shown>,
    /// What was read of it; `None` until it was.
    found: Mutex<Option<Vec<Imported>>>,
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
            found: Mutex::default(),
            looked: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        })
    }

    fn show(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how it is, and tells those who wait for it.
    fn looked(&self, agent: &Agent, state: KernelState, reason: Option<String>) {
        let key = format!("kernel-{}-{}", self.note.direction, self.note.netns);
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
        let (notes, unread) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Notes>(&bytes) {
                Ok(notes) if notes.version <= VERSION + 1 => (notes.links, None),
                Ok(notes) => (Vec::new(), Some(format!("it has version {}", notes.version))),
                Err(err) => (Vec::new(), Some(err.to_string())),
            },
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => (Vec::new(), None),
            Err(err) => (Vec::new(), Some(err.to_string())),
        };
        let unread = unread.map(|cause| {
            let _ = std::fs::rename(&path, path.with_extension("bad"));
            format!("{} cannot be read and was set aside: {cause}", path.display())
        });
        let links = notes.into_iter().map(|note| (note.clone(), Link::new(note))).collect();
        Self { path, links: Mutex::new(links), added: Notify::new(), unread }
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

/// Follows the devices, for ever.
pub async fn run(agent: Arc<Agent>) {
    if let Some(text) = &agent.kernel.unread {
        agent.warn("kernel-notes", text.clone(), Some("export and import anew".to_owned()));
    }
    let mut tasks = JoinSet::new();
    let mut running = std::collections::BTreeSet::new();
    loop {
        for link in agent.kernel.all() {
            if running.insert(link.note.clone()) {
                let agent = Arc::clone(&agent);
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

// ===== the API =====

/// The devices that are followed for a network.
pub fn links(agent: &Agent, record: &NetworkRecord) -> Vec<KernelLink> {
    let ours = |link: &Arc<Link>| link.note.network == record.id;
    agent.kernel.all().iter().filter(|link| ours(link)).map(|link| link.listed()).collect()
}

/// The endpoints of a network as a device is told of them.
pub fn exported(agent: &Agent, record: &NetworkRecord) -> Vec<ExportedEntry> {
    export::entries(agent, record)
}

/// Carries a request out.
///
/// # Errors
/// What is wrong with it, or what the kernel or the store refused.
pub async fn change(
    agent: &Agent,
    record: &NetworkRecord,
    request: LinkKernel,
) -> Result<Vec<KernelLink>, Error> {
    match (request.action, request.direction) {
        (KernelAction::Stop, _) => stop(agent, record, &request).await,
        (_, KernelDirection::Unknown) => Err(Error::bad_request("no such direction")),
        (KernelAction::Once, KernelDirection::Import) => {
            Err(Error::bad_request("an import is always followed"))
        }
        (KernelAction::Once, _) => {
            let link = Link::new(note(record, &request)?);
            follow::once(agent, &link).await?;
            Ok(vec![link.listed()])
        }
        (KernelAction::Follow, _) => start(agent, record, &request).await,
    }
}

fn note(record: &NetworkRecord, request: &LinkKernel) -> Result<Note, Error> {
    let netns = request.netns.clone().ok_or_else(|| {
        Error::bad_request("no namespace is given").next_step("give it with --netns")
    })?;
    Ok(Note {
        network: record.id.clone(),
        direction: request.direction,
        netns,
        dev: request.dev.clone(),
        vtep: request.vtep,
        name: record.name.to_string(),
    })
}

async fn start(
    agent: &Agent,
    record: &NetworkRecord,
    request: &LinkKernel,
) -> Result<Vec<KernelLink>, Error> {
    let note = note(record, request)?;
    if agent.kernel.all().len() >= LINKS_MAX {
        return Err(Error::conflict(format!("{LINKS_MAX} devices are followed already"))
            .next_step("stop one that is not needed: `--stop`"));
    }
    // Only what the kernel says now can be wrong: a sandbox that is not there yet is waited for.
    let link = Link::new(note.clone());
    follow::check(agent, &link).await?;
    let mut looked = link.looked.subscribe();
    let mut present = None;
    agent.kernel.change(|links| {
        present = Some(Arc::clone(links.entry(note).or_insert(link)));
    })?;
    agent.kernel.added.notify_one();
    let Some(link) = present else { return Err(Error::internal("the device is not followed")) };
    // One that was followed before has been looked at already, and this changes nothing of it.
    let first =
        async { while *looked.borrow_and_update() == 0 && looked.changed().await.is_ok() {} };
    if *link.looked.borrow() == 0 {
        let _ = tokio::time::timeout(FIRST_LOOK, first).await;
    }
    Ok(vec![link.listed()])
}

async fn stop(
    agent: &Agent,
    record: &NetworkRecord,
    request: &LinkKernel,
) -> Result<Vec<KernelLink>, Error> {
    if let Some(host) = &request.host {
        let host = HostName::new(host).map_err(|err| Error::bad_request(err.to_string()))?;
        return forget_host(agent, record, &host).await;
    }
    let wanted = |link: &Arc<Link>| {
        request
            .netns
            .as_ref()
            .is_none_or(|netns| link.note.netns == *netns && link.note.dev == request.dev)
    };
    let links: Vec<Arc<Link>> =
        agent.kernel.of(&record.id, request.direction).into_iter().filter(wanted).collect();
    if links.is_empty() {
        let direction = request.direction;
        return Err(Error::not_found(format!(
            "no {direction} of network {} is followed here that way",
            record.name
        ))
        .next_step(format!("`skybridge network vtep ls {}` lists those that are", record.name)));
    }
    let mut stopped = Vec::new();
    for link in links {
        let note = link.note.clone();
        agent.kernel.change(|links| {
            links.remove(&note);
        })?;
        let _ = link.stop.send(true);
        // What the device cannot be told any more went with it.
        match request.direction {
            KernelDirection::Export => follow::take_back(agent, &link).await,
            _ => import::push(agent, &record.id).await?,
        }
        link.looked(agent, KernelState::Stopped, None);
        stopped.push(link.listed());
    }
    Ok(stopped)
}

/// Takes out of a network what a host imported that is gone.
async fn forget_host(
    agent: &Agent,
    record: &NetworkRecord,
    host: &HostName,
) -> Result<Vec<KernelLink>, Error> {
    let present = agent.tables.view(|view| view.host(host).is_some_and(|host| host.is_present()));
    if present {
        return Err(Error::conflict(format!("host {host} is alive"))
            .next_step("stop its import there, or it imports the same again"));
    }
    records::import(&agent.store, record.id.as_str(), host, &[], |_| true)
        .await
        .map_err(|err| network_error(&err))?;
    Ok(Vec::new())
}

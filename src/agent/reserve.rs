//! Addresses that this host may give out while the store is away.
//!
//! # Theory of operation
//!
//! ```text
//!   store: block of this host, `reserved`  ──reserve, acknowledged──►  book (memory and file)
//!                                                                        │ take
//!   store: endpoint, address  ◄──confirmed when the store is there──  attachment's note
//! ```
//!
//! The book lists addresses that the store has acknowledged as this host's reserve. An attach takes
//! the lowest of each family out of it, whether the store is there or not, so that two attaches
//! never have one address. An address leaves the file before anybody else can get it, and enters it
//! after the store has said so; in between it is in the note of an attachment, which is on the disk
//! before the file changes. So the file is never wrong after a crash, at most short, and what it
//! lacks comes back with the next look at the store.
//!
//! An address that somebody else asks for by name leaves the file, and is given up then; it is not
//! reserved again for a while.
//!
//! The background task ([`keep`]) tops the book up for every network of this host and gives back
//! what belongs to networks that this host does not use any more.
//!
//! A store that was restored from a backup may have given them to others, or not know of them. The
//! book is emptied then, and filled again when the owners of what the backup lacks have had the time
//! to write it again, since their addresses look free until then.
//!
//! Without the store addresses may be given out until nine tenths of the grace have passed, after
//! which others may collect what a host that is away has. The time runs by the kernel's clock since
//! the boot, sleep included, and is kept over restarts of the agent but not of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use membership::ipam::plan;
use membership::ipam::reserve::{self, Wish};
use membership::key::NetworkId;
use membership::record::{NetworkRecord, Record};
use membership::watch::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use super::state::{self, Attachment, Stage};
use super::tasks::{self, SessionState};

/// The book, in the state directory.
const FILE: &str = "reserved.json";
/// Version of the file.
const VERSION: u32 = 1;
/// How often the book is compared with what is wanted.
const LOOK: Duration = Duration::from_secs(5);
/// How far the noted moment of the last contact stays behind.
const CONTACT_NOTED: Duration = Duration::from_secs(30);
/// Seconds between two ticks that mean that this process was stopped in between.
const GAP: Duration = Duration::from_secs(5);
/// How long an address that was given up for somebody else is left to them.
const YIELDED: Duration = Duration::from_secs(10);
/// How often a top-up is repeated when attachments end meanwhile.
const ATTEMPTS: usize = 3;

/// The last moment at which this host was surely present in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Contact {
    boot_id: String,
    /// Since the boot.
    at: Duration,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    contact: Option<Contact>,
    networks: BTreeMap<String, BTreeSet<IpAddr>>,
}

#[derive(Debug, Default)]
struct Pages {
    networks: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Taken by attaches that have not decided yet.
    out: BTreeSet<(String, IpAddr)>,
    contact: Option<Contact>,
    /// The contact in the file.
    noted: Option<Contact>,
    /// Whether the last try to write that failed.
    unnoted: bool,
    /// Counts attachments that ended: what the store said before may not hold any more.
    ended: u64,
    ticked: Option<Duration>,
    /// Since when this process runs without having been stopped.
    running: Option<Duration>,
    /// What the store's blocks were when a network could not be topped up further.
    short: BTreeMap<String, (i64, usize)>,
    /// Networks in whose blocks no request of this host can be on its way any more.
    fenced: BTreeSet<String>,
    /// What was given up because somebody asked for it, and when.
    yielded: BTreeMap<(String, IpAddr), Instant>,
    /// Until when nothing is reserved in a store that was restored.
    doubted: Option<Instant>,
}

impl Pages {
    fn is_doubtful(&self) -> bool {
        self.doubted.is_some_and(|until| Instant::now() < until)
    }

    /// Takes out of the book what others asked for.
    fn give_up(&mut self, network: &str, asked: &BTreeSet<IpAddr>) {
        if let Some(ready) = self.networks.get_mut(network) {
            ready.retain(|ip| !asked.contains(ip));
        }
        let now = Instant::now();
        self.yielded.retain(|_, since| now.duration_since(*since) < YIELDED);
        self.yielded.extend(asked.iter().map(|ip| ((network.to_owned(), *ip), now)));
    }

    /// What was given up not long ago.
    fn yielded(&self, network: &str) -> BTreeSet<IpAddr> {
        let here = self.yielded.keys().filter(|(id, _)| id == network);
        here.map(|(_, ip)| *ip).collect()
    }
}

/// The reserve of this host.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    boot_id: String,
    pages: Mutex<Pages>,
    wake: Notify,
}

/// Addresses that one attach has taken. Dropped, they go back.
#[derive(Debug)]
pub struct Taken<'a> {
    book: &'a Book,
    network: String,
    /// The addresses, at most one of each subnet.
    pub ips: Vec<IpAddr>,
}

impl Taken<'_> {
    /// The attach has noted them on the disk: they are in the book no more.
    ///
    /// # Errors
    /// When the disk refuses; the addresses are spent all the same.
    pub fn spend(mut self) -> Result<(), state::Error> {
        let ips = std::mem::take(&mut self.ips);
        if ips.is_empty() {
            return Ok(());
        }
        let mut pages = self.book.lock();
        pages.short.remove(&self.network);
        for ip in ips {
            pages.out.remove(&(self.network.clone(), ip));
        }
        self.book.save(&mut pages)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut pages = self.book.lock();
        for ip in &self.ips {
            if pages.out.remove(&(self.network.clone(), *ip)) && !pages.is_doubtful() {
                pages.networks.entry(self.network.clone()).or_default().insert(*ip);
            }
        }
    }
}

impl Book {
    /// Reads the book. Addresses of `notes` are not in it, whatever the file says.
    #[must_use]
    pub fn open<'a>(directory: &Path, notes: impl Iterator<Item = &'a Attachment>) -> Self {
        let path = directory.join(FILE);
        let found = fs::read(&path).ok();
        let file: File = found
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|file: &File| file.version <= VERSION + 1)
            .unwrap_or_default();
        let mut networks = file.networks;
        for note in notes {
            if let Some(ips) = networks.get_mut(&note.network) {
                ips.retain(|ip| !note.ips.iter().any(|net| net.addr() == *ip));
            }
        }
        let boot_id = boot_id();
        // A machine that has been off for a while does not know for how long.
        let contact = file.contact.filter(|contact| contact.boot_id == boot_id);
        let noted = contact.clone();
        let pages = Pages { networks, contact, noted, ..Pages::default() };
        Self { path, boot_id, pages: Mutex::new(pages), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, pages: &mut Pages) -> Result<(), state::Error> {
        let file = File {
            version: VERSION,
            contact: pages.contact.clone(),
            networks: pages.networks.clone(),
        };
        state::replace(&self.path, &serde_json::to_vec_pretty(&file).unwrap_or_default())?;
        pages.noted = file.contact;
        Ok(())
    }

    /// Takes what an attach needs: of the `wanted` addresses those that are in the book, and for
    /// each family without a wanted one the lowest that is.
    #[must_use]
    pub fn take(&self, network: &NetworkRecord, wanted: &[IpAddr]) -> Taken<'_> {
        let id = network.id.to_string();
        let mut pages = self.lock();
        let mut ips = Vec::new();
        if let Some(ready) = pages.networks.get_mut(&id) {
            ips.extend(wanted.iter().copied().filter(|ip| ready.remove(ip)));
            for ipv6 in [false, true] {
                if wanted.iter().any(|ip| ip.is_ipv6() == ipv6) {
                    continue;
                }
                let lowest = ready.iter().copied().find(|ip| ip.is_ipv6() == ipv6);
                if let Some(ip) = lowest {
                    ready.remove(&ip);
                    ips.push(ip);
                }
            }
        }
        pages.out.extend(ips.iter().map(|ip| (id.clone(), *ip)));
        Taken { book: self, network: id, ips }
    }

    /// How many addresses of a network are ready, and how many of them are IPv6.
    #[must_use]
    pub fn ready(&self, network: &NetworkId) -> BTreeSet<IpAddr> {
        self.lock().networks.get(network.as_str()).cloned().unwrap_or_default()
    }

    /// An attachment's note is about to be removed. `unused` are addresses of it that the store still
    /// has as this host's reserve: it has never been told of them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn ended(&self, network: &str, unused: &[IpAddr]) -> Result<(), state::Error> {
        let mut pages = self.lock();
        pages.ended += 1;
        pages.short.remove(network);
        if unused.is_empty() || pages.is_doubtful() {
            return Ok(());
        }
        pages.networks.entry(network.to_owned()).or_default().extend(unused);
        self.save(&mut pages)
    }

    /// The store did not answer a request about addresses of this network: it may still do what it
    /// was asked.
    pub fn unanswered(&self, network: &str) {
        self.lock().fenced.remove(network);
    }

    /// The store has another history: nothing is known to be reserved, and nothing is reserved for
    /// `grace`.
    pub fn doubt(&self, grace: Duration) {
        let mut pages = self.lock();
        pages.networks.clear();
        pages.short.clear();
        pages.fenced.clear();
        // What is being reserved just now may be of the history before.
        pages.ended += 1;
        pages.doubted = Some(Instant::now() + grace);
        if let Err(err) = self.save(&mut pages) {
            tracing::warn!(%err, "the reserved addresses cannot be noted");
        }
    }

    /// Networks in which there was no room may have some now.
    pub fn again(&self) {
        self.lock().short.clear();
        self.wake();
    }

    /// Has the background task look at once.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Notes whether this host is present in the store now; to be called about every second.
    pub fn contact(&self, present: bool, lease: Duration) {
        let Some(now) = uptime() else { return };
        let mut pages = self.lock();
        let stopped = pages.ticked.is_some_and(|before| now.saturating_sub(before) > GAP);
        pages.ticked = Some(now);
        if stopped || pages.running.is_none() {
            // What the session says may be from before.
            pages.running = Some(now);
        }
        let running = now.saturating_sub(pages.running.unwrap_or(now));
        // A start has nothing from before: its first presence is a fresh one.
        let trusted = pages.contact.is_none() || running >= lease;
        if present && trusted {
            pages.contact = Some(Contact { boot_id: self.boot_id.clone(), at: now });
        }
        let behind = match (&pages.contact, &pages.noted) {
            (Some(contact), Some(noted)) => contact.at.saturating_sub(noted.at) >= CONTACT_NOTED,
            (contact, noted) => contact != noted,
        };
        let failed = if behind { self.save(&mut pages).err() } else { None };
        let told = std::mem::replace(&mut pages.unnoted, failed.is_some());
        // Once, and not every second until there is room again.
        if let Some(err) = failed
            && !told
        {
            tracing::warn!(%err, "the last contact with the store cannot be noted");
        }
    }

    /// How much longer addresses may be given out without the store.
    ///
    /// # Errors
    /// Why they may not, with how long the store has been away where that is known.
    pub fn allowance(&self, grace: Duration) -> Result<Duration, String> {
        let allowed = grace / 10 * 9;
        let text = |duration: Duration| crate::config::show_duration(rounded(duration));
        let away = match (uptime(), &self.lock().contact) {
            (Some(now), Some(contact)) => now.saturating_sub(contact.at),
            _ => {
                return Err("this host has not reached the store since it was booted".to_owned());
            }
        };
        allowed.checked_sub(away).filter(|left| !left.is_zero()).ok_or_else(|| {
            format!(
                "the store has been away for {}, and this host's addresses are safe for {} only \
                 (nine tenths of session.garbage_after)",
                text(away),
                text(allowed)
            )
        })
    }
}

fn rounded(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The time since the boot, sleep included (fs/proc/uptime.c).
fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether somebody asks this host to give up an address ([`membership::ipam::reserve`]).
pub fn is_asked(agent: &Agent, events: &[Event]) -> bool {
    events.iter().any(|event| match event {
        Event::Put { record, .. } => match &**record {
            Record::Block(block) => block.host == agent.name && !block.wanted.is_empty(),
            _ => false,
        },
        _ => false,
    })
}

/// Keeps the reserve of each network of this host at what the configuration says, for ever.
pub async fn keep(agent: Arc<Agent>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = agent.reserve.wake.notified() => {}
        }
        let session = agent.session().state == SessionState::Held;
        if !session || !agent.watch_status().is_connected() || !agent.tables.is_complete() {
            continue;
        }
        // The reserve is of the run that speaks for this host now.
        if !tasks::is_told_rightly(&agent) {
            continue;
        }
        match settle(&agent).await {
            Ok(()) => agent.clear_warning("reserve"),
            Err(Failure::Store(err)) => {
                tracing::debug!(%err, "addresses could not be reserved now");
            }
            Err(Failure::Disk(err)) => agent.warn(
                "reserve",
                format!("the reserved addresses cannot be noted: {err}"),
                Some("is the disk of the state directory full or read-only?".to_owned()),
            ),
        }
    }
}

#[derive(Debug)]
enum Failure {
    Store(String),
    Disk(state::Error),
}

impl From<state::Error> for Failure {
    fn from(error: state::Error) -> Self {
        Self::Disk(error)
    }
}

async fn settle(agent: &Agent) -> Result<(), Failure> {
    let mut wanted: BTreeSet<NetworkId> =
        agent.networks.all().await.into_iter().map(|local| local.id.clone()).collect();
    for note in agent.attachments() {
        if note.stage != Stage::Detaching
            && let Ok(id) = NetworkId::new(&note.network)
        {
            wanted.insert(id);
        }
    }
    for id in &wanted {
        if let Some(record) = agent.known_network(id) {
            top_up(agent, &record).await?;
        }
    }
    give_back(agent, &wanted).await
}

/// Addresses of a network that are in use or about to be. The store may not know of them, not even of
/// those that it was told of, when it was restored since.
fn used(agent: &Agent, network: &NetworkId) -> BTreeSet<IpAddr> {
    let notes = agent.attachments().into_iter();
    let here = notes.filter(|note| note.network == network.as_str());
    let mut used: BTreeSet<IpAddr> = here.flat_map(|note| note.ips).map(|net| net.addr()).collect();
    let pages = agent.reserve.lock();
    used.extend(pages.out.iter().filter(|(id, _)| id == network.as_str()).map(|(_, ip)| *ip));
    used
}

async fn top_up(agent: &Agent, record: &NetworkRecord) -> Result<(), Failure> {
    let book = &agent.reserve;
    let (id, count) = (record.id.as_str(), agent.config.store.reserved_addresses);
    // What the network's blocks are says whether another try could find more.
    let (blocks, told, asked) = agent.tables.view(|view| {
        let revisions = view.blocks_of(&record.id).map(|(_, item)| item.revision);
        let blocks = (revisions.max().unwrap_or(0), view.blocks_of(&record.id).count());
        let ours = view.blocks_of(&record.id).filter(|(_, item)| item.record.host == agent.name);
        let told: BTreeSet<IpAddr> = ours
            .flat_map(|(cidr, item)| {
                item.record.reserved.iter().map(move |offset| plan::address(*cidr, offset))
            })
            .collect();
        let ours = view.blocks_of(&record.id).filter(|(_, item)| item.record.host == agent.name);
        let asked: BTreeSet<IpAddr> = ours
            .flat_map(|(cidr, item)| {
                item.record.wanted.iter().map(move |offset| plan::address(*cidr, offset))
            })
            .collect();
        (blocks, told, asked)
    });
    {
        let mut pages = book.lock();
        if pages.is_doubtful() {
            return Ok(());
        }
        pages.give_up(id, &asked);
        let ready = pages.networks.get(id).cloned().unwrap_or_default();
        let of = |ipv6: bool| ready.iter().filter(move |ip| ip.is_ipv6() == ipv6);
        let has = |ipv6: bool| record.subnets.iter().any(|net| net.addr().is_ipv6() == ipv6);
        let exact = |ipv6: bool| of(ipv6).count() == if has(ipv6) { count } else { 0 };
        let settled = exact(false) && exact(true) || pages.short.get(id) == Some(&blocks);
        // What the store is not known to hold for us is looked for there.
        if settled && ready.is_subset(&told) && asked.is_empty() {
            return Ok(());
        }
        // What is too much must not be taken by an attach while the store gives it up.
        let excess: Vec<IpAddr> =
            [false, true].into_iter().flat_map(|ipv6| of(ipv6).skip(count)).copied().collect();
        if !excess.is_empty() || !asked.is_empty() {
            if let Some(present) = pages.networks.get_mut(id) {
                present.retain(|ip| !excess.contains(ip));
            }
            book.save(&mut pages)?;
        }
    }
    for _ in 0..ATTEMPTS {
        let (ended, ready, yielded, fence) = {
            let mut pages = book.lock();
            // Set again by its success; what goes unanswered meanwhile takes it back.
            let fence = !pages.fenced.contains(id);
            pages.fenced.insert(id.to_owned());
            let ready = pages.networks.get(id).cloned().unwrap_or_default();
            (pages.ended, ready, pages.yielded(id), fence)
        };
        let wish = Wish {
            network: record,
            host: &agent.name,
            count,
            used: &used(agent, &record.id),
            ready: &ready,
            yielded: &yielded,
            fence,
        };
        let reserved = match reserve::reserve(&agent.store, wish).await {
            Ok(reserved) => reserved,
            Err(err) => {
                book.unanswered(id);
                return Err(Failure::Store(err.to_string()));
            }
        };
        let notes = agent.attachments();
        let mut pages = book.lock();
        if pages.is_doubtful() {
            return Ok(());
        }
        if pages.ended != ended {
            // What ended may have been given to others since the store was read.
            continue;
        }
        let here = notes.iter().filter(|note| note.network == id);
        let noted: BTreeSet<IpAddr> =
            here.flat_map(|note| &note.ips).map(ipnet::IpNet::addr).collect();
        let free = |ip: &IpAddr| !noted.contains(ip) && !pages.out.contains(&(id.to_owned(), *ip));
        let reserved: BTreeSet<IpAddr> = reserved.into_iter().filter(free).collect();
        let families = record.subnets.iter().map(|net| net.addr().is_ipv6());
        let families = families.collect::<BTreeSet<bool>>().len();
        if reserved.len() < count * families {
            pages.short.insert(id.to_owned(), blocks);
        } else {
            pages.short.remove(id);
        }
        if pages.networks.get(id) != Some(&reserved) {
            tracing::debug!(network = %record.name, count = reserved.len(), "addresses reserved");
            pages.networks.insert(id.to_owned(), reserved);
            book.save(&mut pages)?;
        }
        return Ok(());
    }
    Ok(())
}

/// Gives back what is reserved in networks that this host does not use.
async fn give_back(agent: &Agent, wanted: &BTreeSet<NetworkId>) -> Result<(), Failure> {
    let mut left: BTreeSet<NetworkId> = agent.tables.view(|view| {
        let networks = view.networks().map(|item| item.record.id.clone());
        let ours = |id: &NetworkId| {
            let mut blocks = view.blocks_of(id).map(|(_, item)| &item.record);
            blocks.any(|block| block.host == agent.name && !block.reserved.is_empty())
        };
        networks.filter(|id| !wanted.contains(id) && ours(id)).collect()
    });
    {
        let mut pages = agent.reserve.lock();
        let here = |id: &String| wanted.iter().any(|network| network.as_str() == id);
        let gone: Vec<String> = pages.networks.keys().filter(|id| !here(id)).cloned().collect();
        for id in &gone {
            pages.networks.remove(id);
            pages.short.remove(id);
            pages.fenced.remove(id);
        }
        if !gone.is_empty() {
            agent.reserve.save(&mut pages)?;
        }
        left.extend(gone.iter().filter_map(|id| NetworkId::new(id).ok()));
    }
    for network in left {
        let used = used(agent, &network);
        reserve::unreserve(&agent.store, &network, &agent.name, &used)
            .await
            .map_err(|err| Failure::Store(err.to_string()))?;
    }
    Ok(())
}

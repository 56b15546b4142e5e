//! Which way packets of routed networks take to each other host: as they are, in IP or in UDP.
//!
//! # Theory of operation
//!
//! ```text
//!   records ─► peers: hosts with which a network is shared that says `encapsulate=auto`
//!                │
//!   wire  ◄── hellos, every PAUSE, by every way ──► other host
//!   workers, sockets in private namespaces ─► hellos of others ─► pair ─► the best way that works
//!                                                                  │
//!        tables: in IP or in UDP ◄─────────────────────────────────┤
//!        routers: routes of the kernel, where nothing is needed ◄──┘
//! ```
//!
//! [`pair`] decides, `wire` sends, [`peers`] knows to whom. Everything here is control: packets go
//! on by the way that was last chosen, whatever becomes of this task or of the agent.
//!
//! With `encapsulate=cross-subnet` nothing is asked: hosts of one subnet reach each other directly.
//!
//! The pause grows with the number of hosts, so that an agent sends at most a thousand hellos a second;
//! what takes three seconds among a hundred hosts takes longer among a thousand.

pub mod pair;
pub mod peers;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use encap::probe::{self, Hello, Way};
use fdb::{Millis, Via};
use ipnet::IpNet;
use membership::gateway;
use membership::key::{HostName, NetworkId};
use membership::record::{Encapsulate, NetworkRecord};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::link::{self, NetNs};
use pair::{Pair, Why};
use peers::Peer;
use wire::Sender;

/// How often what has arrived is looked at.
const TICK: Duration = Duration::from_millis(100);
/// The time between two hellos by one way.
const PAUSE: Millis = Millis(400);
/// Hellos that an agent sends in a second, at most.
const RATE: u64 = 1_000;
/// How often hosts are gathered when no record has changed: a network may have been set up.
const GATHER: Millis = Millis(500);
/// How often the interfaces of the VTEPs are looked at.
const LOOK: Millis = Millis(2_000);
/// What needs attention.
const UNPROBED: &str = "paths";

/// What is known of the way to one host.
#[derive(Clone, Debug)]
struct Entry {
    peer: Peer,
    pair: Pair,
}

/// How a host is reached, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The way that is used.
    pub used: Way,
    /// Why.
    pub why: String,
    /// Since when.
    pub since: Duration,
    /// How each way is doing; empty where none is probed.
    pub ways: Vec<pair::Report>,
}

/// The ways to all hosts to which there are several.
#[derive(Debug, Default)]
pub struct Paths {
    entries: Mutex<BTreeMap<HostName, Entry>>,
}

impl Paths {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostName, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a host is reached; `None` where there is only one way.
    #[must_use]
    pub fn of(&self, host: &HostName, now: Millis) -> Option<Path> {
        let entries = self.lock();
        let entry = entries.get(host)?;
        let (used, since, why) = entry.pair.used();
        let since = Duration::from_millis(now.since(since).0);
        if !entry.peer.probed {
            let same = entry.peer.same_subnet;
            let used = if same { Way::Direct } else { used };
            let why = if same { "same underlay subnet" } else { "another underlay subnet" };
            return Some(Path { used, why: why.to_owned(), since, ways: Vec::new() });
        }
        let pause = pause_of(entries.len());
        let ways = entry.pair.report(pause, now).into_iter();
        let ways = ways.filter(|report| entry.peer.has(report.way)).collect();
        Some(Path { used, why: text(why), since, ways })
    }

    /// The VTEP to which packets of a network for this host go as they are; `None` when they are
    /// encapsulated.
    #[must_use]
    pub fn direct(&self, record: &NetworkRecord, host: &HostName) -> Option<IpAddr> {
        let entries = self.lock();
        let entry = entries.get(host).filter(|entry| entry.peer.same_subnet)?;
        let direct = match peers::encapsulate(record)? {
            Encapsulate::Always => false,
            Encapsulate::Auto => entry.pair.used().0 == Way::Direct,
            Encapsulate::CrossSubnet => true,
        };
        direct.then_some(entry.peer.vtep)
    }
}

/// The routes of packets of a network that go as they are: what another host has, and its VTEP.
#[must_use]
pub fn direct_routes(agent: &Agent, record: &NetworkRecord) -> Vec<(IpNet, IpAddr)> {
    if !gateway::goes_direct(record) {
        return Vec::new();
    }
    let all = agent.tables.elsewhere(&record.id).into_iter();
    let direct = all.filter_map(|(to, host)| {
        let via = agent.paths.direct(record, &host)?;
        (via.is_ipv6() == to.addr().is_ipv6()).then_some((to, via))
    });
    direct.collect()
}

/// Where direct hellos come from, by the VTEPs of their senders. A host that refuses what it would not
/// answer by the same interface (`rp_filter`) needs routes to them, before anything else goes that way.
#[must_use]
pub fn hello_routes(agent: &Agent) -> Vec<(IpNet, IpAddr)> {
    let entries = agent.paths.lock();
    let of = |entry: &Entry| Some((IpNet::from(entry.peer.direct?.1), entry.peer.vtep));
    entries.values().filter_map(of).collect()
}

fn text(why: Why) -> String {
    match why {
        Why::Start => "nothing is known of cheaper ways yet".to_owned(),
        Why::Works => "the cheapest that works".to_owned(),
        Why::Failed(way) => format!("{} stopped working", way.name()),
        Why::Withdrawn(way) => format!("{} is not used any more", way.name()),
    }
}

fn pause_of(hosts: usize) -> Millis {
    Millis(PAUSE.0.max((hosts * Way::COUNT) as u64 * 1000 / RATE))
}

/// The sockets of the task.
#[derive(Default)]
struct Sockets {
    senders: Vec<Sender>,
    /// Of direct hellos, at this host's own address in each network.
    receivers: BTreeMap<(NetworkId, IpAddr), UdpSocket>,
}

/// Keeps the ways up to date, for ever.
pub async fn keep(agent: Arc<Agent>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sockets = Sockets::default();
    let mut vteps: Vec<IpNet> = Vec::new();
    let (mut looked, mut sent, mut gathered) = (None, None, None);
    // A number that no earlier run of this host had.
    let run = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    loop {
        tick.tick().await;
        let now = agent.tables.now();
        if !agent.tables.has_ways() {
            forget(&agent, &mut sockets);
            gathered = None;
            continue;
        }
        if looked.is_none_or(|at| now.since(at) >= LOOK) {
            looked = Some(now);
            vteps = own_vteps(&agent).await;
            open(&agent, &mut sockets, &vteps).await;
        }
        let mut changed = false;
        let revision = agent.tables.view(|view| view.revision());
        if gathered.is_none_or(|(of, at)| of != revision || now.since(at) >= GATHER) {
            gathered = Some((revision, now));
            let found = agent
                .tables
                .reconciler(|reconciler, view| peers::find(&agent.name, &vteps, reconciler, view));
            changed = settle(&agent, found, now);
        }
        hear(&agent, &sockets, now);
        let pause = pause_of(agent.paths.lock().len());
        if sent.is_none_or(|at| now.since(at) >= pause) {
            sent = Some(now);
            send(&agent, &sockets, run, pause, now);
        }
        changed |= choose(&agent, pause, now);
        if changed {
            agent.routers.wake();
        }
    }
}

/// No network here has several ways.
fn forget(agent: &Agent, sockets: &mut Sockets) {
    let mut entries = agent.paths.lock();
    if entries.is_empty() && sockets.senders.is_empty() {
        return;
    }
    entries.clear();
    *sockets = Sockets::default();
    drop(entries);
    // Hellos of hosts that do not know it yet.
    agent.datapath.probes().drain().for_each(drop);
    agent.clear_warning(UNPROBED);
    agent.routers.wake();
}

/// This host's VTEP addresses with the prefix lengths of their interfaces.
async fn own_vteps(agent: &Agent) -> Vec<IpNet> {
    let Ok(namespace) = NetNs::host() else { return Vec::new() };
    let mut found = Vec::new();
    for vtep in &agent.config.vteps {
        if let Ok(interface) = link::underlay::interface(&namespace, vtep.bind).await {
            // The prefix is the interface's; what others see may be another address behind NAT, and
            // then nobody is on one subnet with us.
            let len = if vtep.bind == vtep.advertise { interface.prefix_len } else { 255 };
            let single = if vtep.bind.is_ipv4() { 32 } else { 128 };
            found.extend(IpNet::new(vtep.bind, len.min(single)).ok());
        }
    }
    found
}

/// Opens what is missing of the sockets, and closes those of addresses that are gone.
async fn open(agent: &Agent, sockets: &mut Sockets, vteps: &[IpNet]) {
    sockets.senders.retain(|sender| vteps.iter().any(|vtep| vtep.addr() == sender.source()));
    for vtep in vteps {
        if sockets.senders.iter().any(|sender| sender.source() == vtep.addr()) {
            continue;
        }
        match Sender::open(vtep.addr()) {
            Ok(sender) => {
                sockets.senders.push(sender);
                agent.clear_warning(UNPROBED);
            }
            Err(err) => agent.warn(
                UNPROBED,
                format!("no hellos can be sent from {}: {err}", vtep.addr()),
                Some("the agent needs CAP_NET_RAW; packets go in UDP meanwhile".to_owned()),
            ),
        }
    }
    let mut wanted = Vec::new();
    for local in agent.networks.all().await {
        let Some(record) = agent.known_network(&local.id) else { continue };
        if peers::encapsulate(&record) == Some(Encapsulate::Auto) {
            // The option may have changed since the network was set up.
            if let Err(err) = super::networks::listen(&agent.tables, &agent.datapath, local.key) {
                tracing::debug!(network = %local.id, err, "a way to this host is closed");
            }
            for address in super::routers::own_addresses(agent, &record) {
                wanted.push((local.id.clone(), address));
                let key = (local.id.clone(), address);
                if sockets.receivers.contains_key(&key) {
                    continue;
                }
                let bound = link::run_in(local.namespace.namespace(), || receiver(address));
                match bound.map_err(std::io::Error::other).and_then(|socket| socket) {
                    Ok(socket) => drop(sockets.receivers.insert(key, socket)),
                    // The address comes a moment after its record.
                    Err(err) => tracing::debug!(%address, %err, "no direct hellos yet"),
                }
            }
        }
    }
    sockets.receivers.retain(|key, _| wanted.contains(key));
}

fn receiver(address: IpAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(address, probe::PORT))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Takes over who is there now. Whether routes depend on what changed.
fn settle(agent: &Agent, found: BTreeMap<HostName, Peer>, now: Millis) -> bool {
    let mut entries = agent.paths.lock();
    let before = entries.len();
    entries.retain(|host, _| found.contains_key(host));
    let mut changed = entries.len() != before;
    for (host, peer) in found {
        match entries.get_mut(&host) {
            Some(entry) if entry.peer == peer => {}
            Some(entry) => {
                entry.peer = peer;
                changed = true;
            }
            None => {
                entries.insert(host, Entry { peer, pair: Pair::new(now) });
                changed = true;
            }
        }
    }
    changed
}

/// Takes what others sent.
fn hear(agent: &Agent, sockets: &Sockets, now: Millis) {
    let mut entries = agent.paths.lock();
    for found in agent.datapath.probes().drain() {
        let Some(hello) = Hello::parse(found.payload()) else { continue };
        let way = if found.via == Via::Ip { Way::IpIp } else { Way::Udp };
        let from = entries.values_mut().find(|entry| entry.peer.vtep == found.source);
        if let Some(entry) = from.filter(|_| hello.way == way) {
            entry.pair.hear(&hello, now);
        }
    }
    let mut room = [0; 256];
    for ((_, own), socket) in &sockets.receivers {
        while let Ok((len, from)) = socket.recv_from(&mut room) {
            let Some(hello) = room.get(..len).and_then(Hello::parse) else { continue };
            let between = Some((*own, from.ip()));
            let entry = entries.values_mut().find(|entry| entry.peer.direct == between);
            if let Some(entry) = entry.filter(|_| hello.way == Way::Direct) {
                entry.pair.hear(&hello, now);
            }
        }
    }
}

/// Sends a hello to everybody by every way.
fn send(agent: &Agent, sockets: &Sockets, run: u64, pause: Millis, now: Millis) {
    let sender_id = u64::from_str_radix(agent.id.as_str(), 16).unwrap_or_default();
    for (host, entry) in agent.paths.lock().iter_mut().filter(|(_, entry)| entry.peer.probed) {
        let Entry { peer, pair } = entry;
        let Some(sender) = sockets.senders.iter().find(|it| it.source() == peer.source) else {
            continue;
        };
        for way in Way::ALL.into_iter().filter(|way| peer.has(*way)) {
            let hello = pair.next(way, sender_id, run, pause, now);
            let told = match (way, peer.direct) {
                (Way::Direct, Some((own, theirs))) => sender.direct(&hello, own, theirs, peer.vtep),
                _ => sender.encapsulated(&hello, peer.vtep, peer.port),
            };
            if let Err(err) = told {
                tracing::debug!(%host, way = way.name(), %err, "a hello was not sent");
            }
        }
    }
}

/// Takes the best ways, and tells of changes. Whether routes depend on them.
fn choose(agent: &Agent, pause: Millis, now: Millis) -> bool {
    let mut rerouted = false;
    let mut in_ip = Vec::new();
    for (host, entry) in agent.paths.lock().iter_mut().filter(|(_, entry)| entry.peer.probed) {
        let Entry { peer, pair } = entry;
        let change = pair.choose(|way| peer.has(way), pause, now);
        if let Some(change) = change {
            tracing::info!(
                %host, vtep = %peer.vtep, from = change.from.name(), to = change.to.name(),
                why = text(change.why), "the way to a host changed"
            );
            rerouted |= change.from == Way::Direct || change.to == Way::Direct;
        }
        // What cannot go directly, because its family is not the underlay's, is not left behind.
        let reaches = match pair.used().0 {
            Way::Direct => pair.works(Way::IpIp),
            used => used == Way::IpIp,
        };
        in_ip.push((host.clone(), reaches));
    }
    agent.tables.set_ip_in_ip(&in_ip);
    rerouted
}

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
//! With `encapsulate=cross-subnet` nothing is asked: hosts of one subnet reach each other directly. In
//! either case a host says that it takes packets of a network as they are by having an endpoint of its
//! own there ([`super::routers`]), and gets none before.
//!
//! An agent that starts finds the routes of the kernel by which packets go directly. They stay as they
//! are until something is known of the host that they lead to.
//!
//! The pause grows with the number of hosts, so that an agent sends at most a thousand hellos a second;
//! what takes three seconds among a hundred hosts takes longer among a thousand.

pub mod pair;
pub mod peers;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use encap::probe::{self, Hello, Way};
use fdb::{Millis, Via};
use ipnet::IpNet;
use membership::gateway;
use membership::key::{HostName, NetworkId};
use membership::record::{Encapsulate, NetworkRecord};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::link::{self, NetNs, NetNsId};
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
/// How long after hosts begin to be asked routes of an earlier run stay where nothing is known of theirs.
const INHERITED: Millis = Millis(30_000);
/// Hellos that are taken in at a turn: those of a thousand hosts. Direct ones are counted for each of this
/// host's addresses, those from tunnels together. More of them wait, so that a flood does not keep others
/// from the ways.
const HELLOS: usize = 1_024;
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
    /// What went directly when this agent started.
    inherited: Mutex<BTreeMap<NetworkId, BTreeSet<IpNet>>>,
    /// When hosts began to be asked: what there was of attachments is restored.
    began: OnceLock<Millis>,
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
            let used = match (same, entry.peer.plainly_ipip) {
                (true, _) => Way::Direct,
                (false, true) => Way::IpIp,
                (false, false) => used,
            };
            let why = if same { "same underlay subnet" } else { "another underlay subnet" };
            return Some(Path { used, why: why.to_owned(), since, ways: Vec::new() });
        }
        let pause = pause_of(entries.len());
        let ways = entry.pair.report(pause, now).into_iter();
        let ways = ways.filter(|report| entry.peer.has(report.way)).collect();
        Some(Path { used, why: text(why), since, ways })
    }

    /// Whether packets of a network for this host go as they are; `None` while nothing is known of it.
    fn is_direct(&self, record: &NetworkRecord, host: &HostName) -> Option<bool> {
        let entries = self.lock();
        let entry = entries.get(host)?;
        if !entry.peer.same_subnet || !entry.peer.is_ready(&record.id) {
            return Some(false);
        }
        Some(match peers::encapsulate(record) {
            None | Some(Encapsulate::Always) => false,
            Some(Encapsulate::Auto) => entry.pair.used().0 == Way::Direct,
            Some(Encapsulate::CrossSubnet) => true,
        })
    }

    /// The VTEP of a host on this one's subnet.
    fn neighbor(&self, host: &HostName) -> Option<IpAddr> {
        let entries = self.lock();
        entries.get(host).filter(|entry| entry.peer.same_subnet).map(|entry| entry.peer.vtep)
    }

    fn inherited(&self) -> std::sync::MutexGuard<'_, BTreeMap<NetworkId, BTreeSet<IpNet>>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what packets of a network go directly to, as an earlier run of this host has left it.
    pub fn inherit(&self, network: &NetworkId, routes: impl IntoIterator<Item = IpNet>) {
        self.inherited().entry(network.clone()).or_insert_with(|| routes.into_iter().collect());
    }

    /// Whether what an earlier run has left still counts.
    fn is_early(&self, now: Millis) -> bool {
        self.began.get().is_none_or(|began| now.since(*began) < INHERITED)
    }

    fn inherits(&self, network: &NetworkId, to: &IpNet) -> bool {
        self.inherited().get(network).is_some_and(|routes| routes.contains(to))
    }
}

/// How packets of a network get to what other hosts have of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// What goes as it is.
    pub direct: Vec<IpNet>,
    /// What lies in that and does not: it is of this host, or encapsulated.
    pub except: Vec<IpNet>,
}

/// How packets of a network go now.
#[must_use]
pub fn ways(agent: &Agent, record: &NetworkRecord) -> Ways {
    let mut found = Ways::default();
    if !gateway::goes_direct(record) {
        return found;
    }
    let early = agent.paths.is_early(agent.tables.now());
    let v6 = |to: &IpNet| to.addr().is_ipv6();
    for (to, place) in agent.tables.routes(&record.id) {
        let direct = place.is_some_and(|(host, vtep)| {
            let known = agent.paths.is_direct(record, &host);
            let of_family = vtep.is_ipv6() == v6(&to);
            of_family && known.unwrap_or_else(|| early && agent.paths.inherits(&record.id, &to))
        });
        if direct { &mut found.direct } else { &mut found.except }.push(to);
    }
    let Ways { direct, except } = &mut found;
    except.retain(|to| direct.iter().any(|prefix| prefix != to && prefix.contains(to)));
    found
}

/// The routes to what hosts of this one's subnet have of a network, however packets go to them now:
/// what comes from them as it is, is looked for here too.
#[must_use]
pub fn neighbor_routes(agent: &Agent, record: &NetworkRecord) -> Vec<(IpNet, IpAddr)> {
    if !gateway::goes_direct(record) {
        return Vec::new();
    }
    let early = agent.paths.is_early(agent.tables.now());
    let all = agent.tables.routes(&record.id).into_iter();
    let near = all.filter_map(|(to, place)| {
        let (host, vtep) = place?;
        let inherited = || (early && agent.paths.inherits(&record.id, &to)).then_some(vtep);
        let via = agent.paths.neighbor(&host).or_else(inherited)?;
        (via.is_ipv6() == to.addr().is_ipv6()).then_some((to, via))
    });
    near.collect()
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

/// A socket in a network's private namespace.
struct Receiver {
    socket: UdpSocket,
    /// The namespace: a network that was let go of and set up again has another one.
    namespace: NetNsId,
}

/// The sockets of the task.
#[derive(Default)]
struct Sockets {
    senders: Vec<Sender>,
    /// Of direct hellos, at this host's own address in each network.
    receivers: BTreeMap<(NetworkId, IpAddr), Receiver>,
}

/// Keeps the ways up to date, for ever.
pub async fn keep(agent: Arc<Agent>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sockets = Sockets::default();
    agent.paths.began.get_or_init(|| agent.tables.now());
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
            // What cannot be read now is as it was.
            vteps = own_vteps(&agent).await.unwrap_or(vteps);
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
async fn own_vteps(agent: &Agent) -> Result<Vec<IpNet>, link::Error> {
    let namespace = NetNs::host()?;
    let mut found = Vec::new();
    for vtep in &agent.config.vteps {
        let interface = match link::underlay::interface(&namespace, vtep.bind).await {
            Ok(interface) => interface,
            Err(link::Error::NoSuchAddress { .. }) => continue,
            Err(error) => return Err(error),
        };
        // The prefix is the interface's; what others see may be another address behind NAT, and
        // then nobody is on one subnet with us.
        let len = if vtep.bind == vtep.advertise { interface.prefix_len } else { 255 };
        let single = if vtep.bind.is_ipv4() { 32 } else { 128 };
        found.extend(IpNet::new(vtep.bind, len.min(single)).ok());
    }
    Ok(found)
}

/// Opens what is missing of the sockets, and closes those of addresses that are gone.
async fn open(agent: &Agent, sockets: &mut Sockets, vteps: &[IpNet]) {
    sockets.senders.retain(|sender| vteps.iter().any(|vtep| vtep.addr() == sender.source()));
    for vtep in vteps {
        let source = vtep.addr();
        if sockets.senders.iter().any(|sender| sender.source() == source) {
            continue;
        }
        let known = agent.config.vteps.iter().find(|own| own.bind == source);
        match Sender::open(source, known.map_or(source, |own| own.advertise)) {
            Ok(sender) => {
                sockets.senders.push(sender);
                agent.clear_warning(UNPROBED);
            }
            Err(err) => agent.warn(
                UNPROBED,
                format!("no hellos can be sent from {source}: {err}"),
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
            let namespace = local.namespace.namespace();
            for address in super::routers::own_addresses(agent, &record) {
                wanted.push((local.id.clone(), address));
                let key = (local.id.clone(), address);
                let open = sockets.receivers.get(&key);
                if open.is_some_and(|open| open.namespace == namespace.id()) {
                    continue;
                }
                let bound = link::run_in(namespace, || receiver(address));
                match bound.map_err(std::io::Error::other).and_then(|socket| socket) {
                    Ok(socket) => {
                        let open = Receiver { socket, namespace: namespace.id() };
                        sockets.receivers.insert(key, open);
                    }
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
    // Before the lock: listings take the two in the other order.
    let early = agent.paths.is_early(now);
    let direct = if early { were_direct(agent) } else { BTreeSet::new() };
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
                let inherited = peer.same_subnet && direct.contains(&host);
                entries.insert(host, Entry { peer, pair: Pair::new(inherited, now) });
                changed = true;
            }
        }
    }
    changed
}

/// The hosts that packets went to directly when this agent started.
fn were_direct(agent: &Agent) -> BTreeSet<HostName> {
    let inherited = agent.paths.inherited().clone();
    let of = |(network, routes): (&NetworkId, &BTreeSet<IpNet>)| {
        let mut all = agent.tables.routes(network);
        all.retain(|(to, _)| routes.contains(to));
        all.into_iter().filter_map(|(_, place)| Some(place?.0)).collect::<Vec<_>>()
    };
    inherited.iter().flat_map(of).collect()
}

/// Takes what others sent.
fn hear(agent: &Agent, sockets: &Sockets, now: Millis) {
    let mut entries = agent.paths.lock();
    for found in agent.datapath.probes().drain().take(HELLOS) {
        let Some(hello) = Hello::parse(found.payload()) else { continue };
        let way = if found.via == Via::Ip { Way::IpIp } else { Way::Udp };
        let from = entries.values_mut().find(|entry| entry.peer.vteps.contains(&found.source));
        if let Some(entry) = from.filter(|_| hello.way == way) {
            entry.pair.hear(&hello, now);
        }
    }
    let mut room = [0; 256];
    for ((network, _), receiver) in &sockets.receivers {
        for _ in 0..HELLOS {
            let Ok((len, from)) = receiver.socket.recv_from(&mut room) else { break };
            let Some(hello) = room.get(..len).and_then(Hello::parse) else { continue };
            let has = |(of, ip): &(NetworkId, IpAddr)| of == network && *ip == from.ip();
            let entry = entries.values_mut().find(|entry| entry.peer.own.iter().any(has));
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
        in_ip.push((host.clone(), pair.tunnel(now) == Way::IpIp));
    }
    agent.tables.set_ip_in_ip(&in_ip);
    rerouted
}

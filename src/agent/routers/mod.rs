//! Gateways, and the ways from networks to their hosts and to the world.
//!
//! # Theory of operation
//!
//! ```text
//!   record of the network ─┐
//!   own endpoint in it ────┼─► settle ─► link::router   gateway in the private namespace
//!   MTU ───────────────────┘      │
//!                                 ├─► link::firewall    rules in the host's namespace, all networks
//!                                 └─► link::uplink      veth and routes, where the network is routed
//!   every CHECK: routes, rules, permission (link::permission) and forwarding as they shall be?
//! ```
//!
//! All of it is compared with what it shall be and corrected; the kernel does the work, also while no
//! agent runs. Nothing here fails an attach: what cannot be had is a warning of `status`, and tried
//! again.
//!
//! Two tasks do it, so that a packet's way never waits for nft or for the store: one settles networks
//! and routes, this file and `direct`; the other one rules (`rules`) and this host's own
//! endpoints (`own`).

mod direct;
mod own;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use encap::MacAddr;
use ipnet::IpNet;
use membership::gateway;
use membership::key::NetworkId;
use membership::record::NetworkRecord;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use super::networks::LocalNetwork;
use super::paths;
use crate::link::direct::Half;
use crate::link::firewall::Way;
use crate::link::forwarding::Forwarding;
use crate::link::permission::Place;
use crate::link::routed::{self, Inside};
use crate::link::router::{self, Router};
use crate::link::uplink::{self, Pair, Pools, Uplink};
use crate::link::{self, NetNs, Netlink};

pub use own::{addresses as own_addresses, settle as settle_own_endpoints};
pub use rules::write as write_rules;

/// How often rules of the host are looked at, which others may have thrown away.
pub const CHECK: Duration = Duration::from_secs(2);
/// How often devices are looked at, which nobody else has a reason to touch.
const DEVICES: Duration = Duration::from_secs(30);
/// How long changes of the store are gathered.
const TOGETHER: Duration = Duration::from_millis(50);

/// The MAC of frames that this host routes: stable for a host, locally administered.
#[must_use]
pub fn router_mac(id: &str) -> MacAddr {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    MacAddr([0x06, a, b, c, d, e])
}

/// What a network that is set up here has of a gateway.
#[derive(Debug, Default)]
pub struct RouterState {
    router: Option<Router>,
    /// Of a routed network, in the place of the router.
    inside: Option<Inside>,
    uplink: Option<(Uplink, Vec<Pair>)>,
    /// What an earlier run may have left has been looked at.
    seen: bool,
    /// What goes directly in it has been looked at too.
    inherited: bool,
    /// The network was let go of: nothing is to be made for it any more.
    closed: bool,
    /// When the devices were last looked at.
    at: Option<Instant>,
}

/// The ways out of a network on this host, for listings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The gateway's MAC, where this host answers for one.
    pub gateway_mac: Option<MacAddr>,
    /// This host's own addresses in the network.
    pub own: Vec<IpAddr>,
    /// The uplink's name in the host's namespace.
    pub interface: Option<String>,
    /// The addresses of its end there.
    pub addresses: Vec<IpNet>,
}

/// What the host's namespace has of ours, for listings.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The table of our rules.
    pub table: Option<String>,
    /// Ports that masqueraded UDP has.
    pub udp_ports: Option<RangeInclusive<u16>>,
    /// Where other people's rules let us pass.
    pub permission: Vec<Place>,
    /// Where they could not be told to, and why.
    pub refused: Vec<String>,
    /// How often rules were gone and had to be written again.
    pub reasserted: u64,
    /// Settings that were changed so that the host forwards.
    pub changed: BTreeSet<String>,
    /// Whether it forwards.
    pub forwarding: Forwarding,
    /// The uplinks that the rules name.
    uplinks: BTreeSet<String>,
}

/// What is common to the uplinks of a host.
pub struct Routers {
    wake: watch::Sender<()>,
    netlink: tokio::sync::OnceCell<Netlink>,
    ways: Mutex<BTreeMap<NetworkId, Way>>,
    written: tokio::sync::Mutex<rules::Written>,
    host: Mutex<Host>,
    /// The host's half of what goes directly, as it was written last.
    direct: tokio::sync::Mutex<Option<Half>>,
    /// Held while this host's own endpoints are written or removed: since when each network is not
    /// ready to have one.
    publishing: tokio::sync::Mutex<BTreeMap<NetworkId, Instant>>,
}

impl Default for Routers {
    fn default() -> Self {
        Self {
            wake: watch::Sender::new(()),
            netlink: tokio::sync::OnceCell::new(),
            ways: Mutex::default(),
            written: tokio::sync::Mutex::default(),
            host: Mutex::default(),
            direct: tokio::sync::Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
        }
    }
}

impl Routers {
    /// Something changed that gateways depend on.
    pub fn wake(&self) {
        self.wake.send_replace(());
    }

    /// A connection in the host's namespace.
    async fn netlink(&self) -> Result<&Netlink, link::Error> {
        self.netlink.get_or_try_init(|| async { Netlink::open(&NetNs::host()?) }).await
    }

    /// What the host's namespace has of ours; `None` while it has nothing.
    #[must_use]
    pub fn host(&self) -> Option<Host> {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner).clone();
        host.table.is_some().then_some(host)
    }

    /// Notes, or forgets, a network's way out. Returns whether anything changed.
    fn put_way(&self, network: &NetworkId, way: Option<Way>) -> bool {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        match way {
            Some(way) if ways.get(network) == Some(&way) => false,
            Some(way) => {
                ways.insert(network.clone(), way);
                true
            }
            None => ways.remove(network).is_some(),
        }
    }

    /// Changes what is told of the host.
    fn note(&self, change: impl FnOnce(&mut Host)) {
        change(&mut self.host.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Keeps gateways and uplinks as they shall be, for ever.
pub async fn keep(agent: Arc<Agent>) {
    tokio::join!(keep_ways(&agent), keep_rules(&agent));
}

/// What the two tasks wait for.
struct Turns {
    tick: tokio::time::Interval,
    wake: watch::Receiver<()>,
    reached: watch::Receiver<fdb::Revision>,
}

impl Turns {
    fn new(agent: &Agent) -> Self {
        let mut tick = interval(CHECK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let wake = agent.routers.wake.subscribe();
        Self { tick, wake, reached: agent.tables.reached() }
    }

    /// Waits for the next turn: whether it is one to look at what is there.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.tick.tick() => true,
            Ok(()) = self.wake.changed() => false,
            Ok(()) = self.reached.changed() => {
                // What comes together is looked at together.
                tokio::time::sleep(TOGETHER).await;
                false
            }
        }
    }
}

async fn keep_ways(agent: &Agent) {
    let mut turns = Turns::new(agent);
    loop {
        let check = turns.next().await;
        let locals = agent.networks.all().await;
        for local in &locals {
            inherit(agent, local).await;
        }
        // Routes of the host before those that lead to it, and after them.
        direct::settle(agent, &locals, true, check).await;
        for local in &locals {
            settle(agent, local).await;
        }
        // Networks that are still to be restored lead there too.
        let pending = !rules::pending(agent).await.is_empty();
        direct::settle(agent, &locals, pending, false).await;
    }
}

async fn keep_rules(agent: &Agent) {
    let mut turns = Turns::new(agent);
    loop {
        let check = turns.next().await;
        rules::write(agent, check).await;
        own::settle(agent).await;
    }
}

/// Notes what an earlier run of this host has left to go directly, before anything is changed.
async fn inherit(agent: &Agent, local: &LocalNetwork) {
    let mut state = local.router.lock().await;
    inherit_locked(agent, local, &mut state).await;
}

async fn inherit_locked(agent: &Agent, local: &LocalNetwork, state: &mut RouterState) {
    if state.inherited || !local.is_routed() {
        return;
    }
    state.inherited = true;
    match uplink::direct(local.namespace.netlink()).await {
        Ok(routes) => agent.paths.inherit(&local.id, routes),
        Err(error) => tracing::debug!(%error, "what an earlier run left is not known"),
    }
}

/// Brings gateway and uplink of a network to what its record says.
pub async fn settle(agent: &Agent, local: &LocalNetwork) {
    let Some(record) = agent.known_network(&local.id) else { return };
    let mut state = local.router.lock().await;
    if state.closed {
        return;
    }
    let force = state.at.is_none_or(|at| at.elapsed() >= DEVICES);
    let key = format!("gateway-{}", record.id);
    match settle_locked(agent, local, &record, &mut state, force).await {
        Ok(()) => agent.clear_warning(&key),
        Err(error) => {
            let text = format!("network {} has no whole way out here: {error}", record.name);
            agent.warn(&key, text, Some("it is tried again by itself".to_owned()));
        }
    }
    if force {
        state.at = Some(Instant::now());
    }
}

async fn settle_locked(
    agent: &Agent,
    local: &LocalNetwork,
    record: &NetworkRecord,
    state: &mut RouterState,
    force: bool,
) -> Result<(), link::Error> {
    inherit_locked(agent, local, state).await;
    let ways = paths::ways(agent, record);
    if local.is_routed() {
        settle_inside(agent, local, record, state, force, ways.except).await?;
    }
    match wanted_router(agent, record, u32::from(local.mtu())) {
        _ if local.is_routed() => {}
        Some(wanted) => {
            if force || state.router.as_ref() != Some(&wanted) {
                let before = state.router.take();
                let rules = before.is_none_or(|before| before.subnets != wanted.subnets);
                router::settle(&local.namespace, &wanted, rules).await?;
                state.router = Some(wanted);
            }
        }
        None => {
            let netlink = local.namespace.netlink();
            let left = !state.seen && netlink.link(router::GATEWAY_PORT).await?.is_some();
            if state.router.is_some() || left {
                router::remove(&local.namespace).await?;
                state.router = None;
            }
        }
    }
    let owner = agent.networks.owner();
    let name = owner.uplink(record.id.as_str());
    let leads_out = state.router.is_some() || local.is_routed();
    if !leads_out || !gateway::is_routed(record) || gives_way(agent, record) {
        if state.uplink.is_some() || !state.seen {
            uplink::remove(agent.routers.netlink().await?, &name).await?;
            state.uplink = None;
        }
        if agent.routers.put_way(&record.id, None) {
            rules::write(agent, false).await;
        }
        state.seen = true;
        return Ok(());
    }
    let way = Way {
        uplink: name.clone(),
        subnets: record.subnets.clone(),
        masquerade: gateway::masquerades(record),
        host_access: gateway::reaches_hosts(record),
        direct: gateway::goes_direct(record),
    };
    if agent.routers.put_way(&record.id, Some(way)) {
        // Before the first packet, so that what is forbidden never passes.
        rules::write(agent, false).await;
    }
    let wanted = Uplink {
        alias: owner.uplink_alias(record.id.as_str()),
        name,
        mtu: u32::from(local.mtu()),
        subnets: record.subnets.clone(),
        direct: direct::written(agent, ways.direct).await?,
        pools: Pools { v4: agent.config.uplink.ipv4, v6: agent.config.uplink.ipv6 },
    };
    if force || state.uplink.as_ref().is_none_or(|(before, _)| *before != wanted) {
        let host = agent.routers.netlink().await?;
        let before = state.uplink.take();
        let pairs = uplink::settle(local.namespace.netlink(), host, &wanted).await?;
        state.uplink = Some((wanted, pairs));
        if before.is_none() {
            // This host may have an endpoint of its own now.
            agent.routers.wake();
        }
    }
    state.seen = true;
    Ok(())
}

/// Addresses, routes and rules of a routed network's namespace.
async fn settle_inside(
    agent: &Agent,
    local: &LocalNetwork,
    record: &NetworkRecord,
    state: &mut RouterState,
    force: bool,
    except: Vec<IpNet>,
) -> Result<(), link::Error> {
    let wanted = Inside {
        subnets: record.subnets.clone(),
        except,
        gateways: record.gateways.clone(),
        own: own_addresses(agent, record),
        way_out: gateway::is_routed(record),
    };
    if !force && state.inside.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let before = state.inside.take();
    let rules = before.is_none_or(|before| !before.same_rules(&wanted));
    routed::settle(&local.namespace, &wanted, rules).await?;
    state.inside = Some(wanted);
    Ok(())
}

fn wanted_router(agent: &Agent, record: &NetworkRecord, mtu: u32) -> Option<Router> {
    let gateway_mac = gateway::mac(record)?;
    let own: Vec<IpNet> = own_addresses(agent, record)
        .into_iter()
        .filter_map(|ip| {
            let subnet = record.subnet_of(ip)?;
            IpNet::new(ip, subnet.prefix_len()).ok()
        })
        .collect();
    Some(Router {
        gateway_mac,
        gateways: gateway::own(record),
        router_mac: agent.networks.router_mac(),
        own,
        subnets: record.subnets.clone(),
        mtu,
    })
}

/// Whether another network has the routes that this one would have. Creating them refuses it, so this
/// takes two that were made in the same moment.
fn gives_way(agent: &Agent, record: &NetworkRecord) -> bool {
    let key = format!("overlap-{}", record.id);
    let found = agent.tables.view(|view| {
        let others = view.networks().map(|item| &*item.record);
        let before = others.filter(|other| gateway::gives_way(&record.id, &other.id));
        gateway::overlap(record, before)
            .map(|(subnet, other, theirs)| (subnet, other.name.to_string(), theirs))
    });
    match found {
        Some((subnet, other, theirs)) => {
            let text = format!(
                "network {} has no way out: its subnet {subnet} overlaps with {theirs} of network \
                 {other}, which has one",
                record.name
            );
            let next_step = "turn nat_outgoing and host_access off for one of them";
            agent.warn(&key, text, Some(next_step.to_owned()));
            true
        }
        None => {
            agent.clear_warning(&key);
            false
        }
    }
}

/// A network, which was `before`, was let go of: if that was the last holder, its way out goes with it.
pub async fn released(agent: &Agent, network: &NetworkId, before: Option<&Arc<LocalNetwork>>) {
    let now = agent.networks.get(network).await;
    if let Some(before) = before
        && !now.as_ref().is_some_and(|now| Arc::ptr_eq(now, before))
    {
        // Whoever is settling it has ended then.
        before.router.lock().await.closed = true;
    }
    if now.is_none() && agent.routers.put_way(network, None) {
        rules::write(agent, false).await;
    }
}

/// What a network has of a gateway here.
pub async fn local(local: &LocalNetwork) -> Local {
    let state = local.router.lock().await;
    let router = state.router.as_ref();
    let uplink = state.uplink.as_ref();
    Local {
        gateway_mac: router.map(|router| router.gateway_mac),
        own: router
            .into_iter()
            .flat_map(|router| &router.own)
            .map(IpNet::addr)
            .chain(state.inside.iter().flat_map(|inside| inside.own.iter().copied()))
            .collect(),
        interface: uplink.map(|(uplink, _)| uplink.name.clone()),
        addresses: uplink.into_iter().flat_map(|(_, pairs)| pairs).map(|pair| pair.host).collect(),
    }
}

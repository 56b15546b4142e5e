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
//!   every CHECK: rules, permission (link::permission) and forwarding as they shall be?
//! ```
//!
//! All of it is compared with what it shall be and corrected; the kernel does the work, also while no
//! agent runs. Nothing here fails an attach: what cannot be had is a warning of `status`, and tried
//! again.
//!
//! The host's own endpoint in a network is written when an uplink needs it and removed with the last
//! attachment. Its id is made from the host's name, so that it needs no note on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use encap::MacAddr;
use ipnet::IpNet;
use membership::endpoint::{self, EndpointSpec};
use membership::gateway;
use membership::key::{EndpointId, NetworkId};
use membership::record::NetworkRecord;
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use super::networks::LocalNetwork;
use super::paths;
use super::state::Stage;
use super::tasks::SessionState;
use crate::driver::attach;
use crate::link::direct::{self, Direct, Half};
use crate::link::firewall::{self, Rules, Way};
use crate::link::forwarding::{self, Forwarding};
use crate::link::permission::{self, Place};
use crate::link::routed::{self, Inside};
use crate::link::router::{self, Router};
use crate::link::uplink::{self, Pair, Pools, Uplink};
use crate::link::{self, NetNs, Netlink};

/// How often rules of the host are looked at, which others may have thrown away.
pub const CHECK: Duration = Duration::from_secs(2);
/// How often devices are looked at, which nobody else has a reason to touch.
const DEVICES: Duration = Duration::from_secs(30);
/// How long after a failure the host's rules are looked at once more.
const AGAIN: Duration = Duration::from_millis(300);
/// How long changes of the store are gathered.
const TOGETHER: Duration = Duration::from_millis(50);
/// How long an agent that starts waits with changing the host's rules for attachments that it has
/// not restored yet.
const RESTORING: Duration = Duration::from_secs(60);
/// How long the watch may take to tell of this host's own endpoint.
const ECHO: Duration = Duration::from_secs(5);
/// The warning that routes of the host cannot be written.
const DIRECT: &str = "direct-routes";
/// The warning that rules cannot be written.
const RULES: &str = "uplink-rules";

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
    /// How often rules were gone and had to be written again.
    pub reasserted: u64,
    /// Settings that were changed so that the host forwards.
    pub changed: BTreeSet<String>,
    /// Whether it forwards.
    pub forwarding: Forwarding,
}

#[derive(Default)]
struct Written {
    netlink: Option<Arc<Netlink>>,
    rules: Option<Rules>,
    /// The table as nft showed it after it was written.
    shown: Option<String>,
}

/// What is common to the uplinks of a host.
#[derive(Default)]
pub struct Routers {
    wake: tokio::sync::Notify,
    ways: Mutex<BTreeMap<NetworkId, Way>>,
    written: tokio::sync::Mutex<Written>,
    host: Mutex<Host>,
    /// The host's half of what goes directly, as it was written last.
    direct: tokio::sync::Mutex<Option<Half>>,
    /// Held while this host's own endpoints are written or removed.
    publishing: tokio::sync::Mutex<()>,
}

impl Routers {
    /// Something changed that gateways depend on.
    pub fn wake(&self) {
        self.wake.notify_one();
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
    let mut tick = interval(CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reached = agent.tables.reached();
    loop {
        let check = tokio::select! {
            _ = tick.tick() => true,
            () = agent.routers.wake.notified() => false,
            Ok(()) = reached.changed() => {
                // What comes together is looked at together.
                tokio::time::sleep(TOGETHER).await;
                false
            }
        };
        let locals = agent.networks.all().await;
        // Routes of the host before those that lead to it, and after them.
        settle_direct(&agent, &locals, true, check).await;
        for local in &locals {
            settle(&agent, local).await;
        }
        settle_direct(&agent, &locals, false, false).await;
        settle_own_endpoints(&agent).await;
        write_rules(&agent, check).await;
    }
}

/// Brings the host's half of what goes directly to what it shall be. With `keep` the routes that private
/// namespaces still lead to stay as they were; with `check` it is read what is there.
async fn settle_direct(agent: &Agent, locals: &[Arc<LocalNetwork>], keep: bool, check: bool) {
    let mut routes: BTreeMap<IpNet, IpAddr> = BTreeMap::new();
    let mut uplinks = Vec::new();
    for local in locals {
        let Some(record) = agent.known_network(&local.id) else { continue };
        if gateway::goes_direct(&record) && !gives_way(agent, &record) {
            uplinks.push(agent.networks.owner().uplink(record.id.as_str()));
            routes.extend(paths::direct_routes(agent, &record));
        }
    }
    uplinks.sort_unstable();
    let mut present = agent.routers.direct.lock().await;
    if uplinks.is_empty() && present.as_ref().is_some_and(|half| *half == Half::default()) {
        return;
    }
    match settle_half(agent, routes, uplinks, keep, check, present.take()).await {
        Ok(now) => {
            *present = Some(now);
            agent.clear_warning(DIRECT);
        }
        Err(error) => agent.warn(
            DIRECT,
            format!("packets that could go directly are encapsulated: {error}"),
            Some("it is tried again by itself".to_owned()),
        ),
    }
}

async fn settle_half(
    agent: &Agent,
    mut wanted: BTreeMap<IpNet, IpAddr>,
    uplinks: Vec<String>,
    keep: bool,
    check: bool,
    before: Option<Half>,
) -> Result<Half, link::Error> {
    let host = host_netlink(agent).await?;
    let mut interfaces = Vec::new();
    for vtep in &agent.config.vteps {
        // One that is gone has taken its routes along.
        if let Ok(interface) = link::underlay::interface(host.namespace(), vtep.bind).await {
            interfaces.push(interface);
        }
    }
    // A strict host takes hellos only where it would send its own.
    for (to, via) in paths::hello_routes(agent) {
        wanted.entry(to).or_insert(via);
    }
    let mut routes: Vec<Direct> = Vec::with_capacity(wanted.len());
    for (to, via) in wanted {
        let found = interfaces.iter().find(|interface| {
            let subnet = IpNet::new(interface.address, interface.prefix_len);
            subnet.is_ok_and(|subnet| subnet.contains(&via))
        });
        routes.extend(found.map(|found| Direct { to, via, interface: found.index }));
    }
    let mut half = Half { routes, uplinks };
    let present = match &before {
        Some(before) => before.clone(),
        None => direct::present(&host).await?,
    };
    if keep {
        let gone = |it: &&Direct| !half.routes.iter().any(|route| route.to == it.to);
        let left: Vec<Direct> = present.routes.iter().filter(gone).cloned().collect();
        half.routes.extend(left);
        half.uplinks.extend(present.uplinks.iter().cloned());
    }
    half.routes.sort_unstable();
    half.uplinks.sort_unstable();
    half.uplinks.dedup();
    if check || present != half {
        let lost = direct::settle(&host, &half, before.as_ref()).await?;
        if lost {
            tracing::info!("somebody had removed routes to other hosts; they are there again");
        }
    }
    Ok(half)
}

/// Brings gateway and uplink of a network to what its record says.
pub async fn settle(agent: &Agent, local: &LocalNetwork) {
    let Some(record) = agent.known_network(&local.id) else { return };
    let mut state = local.router.lock().await;
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
    if local.is_routed() {
        settle_inside(agent, local, record, state, force).await?;
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
            uplink::remove(&*host_netlink(agent).await?, &name).await?;
            state.uplink = None;
        }
        if agent.routers.put_way(&record.id, None) {
            write_rules(agent, false).await;
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
        write_rules(agent, false).await;
    }
    let wanted = Uplink {
        alias: owner.uplink_alias(record.id.as_str()),
        name,
        mtu: u32::from(local.mtu()),
        subnets: record.subnets.clone(),
        direct: written_routes(agent, record).await,
        pools: Pools { v4: agent.config.uplink.ipv4, v6: agent.config.uplink.ipv6 },
    };
    if force || state.uplink.as_ref().is_none_or(|(before, _)| *before != wanted) {
        let host = host_netlink(agent).await?;
        let pairs = uplink::settle(local.namespace.netlink(), &host, &wanted).await?;
        state.uplink = Some((wanted, pairs));
    }
    state.seen = true;
    Ok(())
}

/// What the host sends on directly: the private namespace leads there what the host has routes to.
async fn written_routes(agent: &Agent, record: &NetworkRecord) -> Vec<IpNet> {
    let wanted = paths::direct_routes(agent, record).into_iter();
    let half = agent.routers.direct.lock().await;
    let Some(half) = &*half else { return Vec::new() };
    let written = |(to, via): (IpNet, IpAddr)| {
        half.routes.iter().any(|it| it.to == to && it.via == via).then_some(to)
    };
    wanted.filter_map(written).collect()
}

/// Addresses, routes and rules of a routed network's namespace.
async fn settle_inside(
    agent: &Agent,
    local: &LocalNetwork,
    record: &NetworkRecord,
    state: &mut RouterState,
    force: bool,
) -> Result<(), link::Error> {
    let wanted = Inside {
        subnets: record.subnets.clone(),
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

/// This host's own addresses in a network, as the store last told.
pub fn own_addresses(agent: &Agent, record: &NetworkRecord) -> Vec<IpAddr> {
    let Some(id) = gateway::host_endpoint(&agent.name) else { return Vec::new() };
    if !gateway::has_host_endpoints(record) {
        return Vec::new();
    }
    agent.tables.view(|view| {
        let found = view.endpoint(&record.id, &id).filter(|item| item.record.host == agent.name);
        found.map(|item| item.record.ips.clone()).unwrap_or_default()
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

async fn host_netlink(agent: &Agent) -> Result<Arc<Netlink>, link::Error> {
    let mut written = agent.routers.written.lock().await;
    if let Some(netlink) = &written.netlink {
        return Ok(Arc::clone(netlink));
    }
    let netlink = Arc::new(Netlink::open(&NetNs::host()?)?);
    written.netlink = Some(Arc::clone(&netlink));
    Ok(netlink)
}

/// Writes the host's rules where they are not those of the networks that are set up here; with `check`
/// also where somebody else changed them.
pub async fn write_rules(agent: &Agent, check: bool) {
    if is_restoring(agent).await {
        return;
    }
    let mut result = write_rules_now(agent, check).await;
    if result.is_err() {
        // Somebody may be reloading their rules in this moment: what was listed is gone already.
        tokio::time::sleep(AGAIN).await;
        result = write_rules_now(agent, check).await;
    }
    match result {
        Ok(()) => agent.clear_warning(RULES),
        Err(error) => agent.warn(
            RULES,
            format!("networks do not reach the world or this host: {error}"),
            Some("it is tried again by itself; `nft list ruleset` shows what is there".to_owned()),
        ),
    }
}

/// Whether attachments of an earlier run are still to come: their rules must not go meanwhile.
async fn is_restoring(agent: &Agent) -> bool {
    if agent.started.elapsed() > RESTORING {
        return false;
    }
    for note in agent.attachments() {
        if note.stage != Stage::Attached {
            continue;
        }
        let Ok(id) = NetworkId::new(&note.network) else { continue };
        let may_come = !agent.tables.is_complete() || agent.known_network(&id).is_some();
        if may_come && agent.networks.get(&id).await.is_none() {
            return true;
        }
    }
    false
}

async fn write_rules_now(agent: &Agent, check: bool) -> Result<(), link::Error> {
    let mut written = agent.routers.written.lock().await;
    let host = NetNs::host()?;
    let owner = agent.networks.owner();
    let ways: Vec<Way> = {
        let ways = agent.routers.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.values().cloned().collect()
    };
    let udp_ports = firewall::udp_ports(&own_ports(agent), &ephemeral());
    let rules = Rules { owner: owner.clone(), ways, udp_ports };
    let changed = written.rules.as_ref() != Some(&rules);
    if !changed && (!check || rules.ways.is_empty()) {
        return Ok(());
    }
    if rules.ways.is_empty() {
        let removed = async {
            firewall::remove(&host, owner).await?;
            permission::remove(&host, owner).await
        };
        match removed.await {
            // Nothing of this run is there, and without nft nothing of an earlier one.
            Err(link::Error::Nft { .. }) if written.rules.is_none() => {}
            removed => drop(removed?),
        }
        agent.routers.note(|host| *host = Host::default());
        written.rules = Some(rules);
        return Ok(());
    }
    let lost = !changed && firewall::present(&host, owner).await? != written.shown;
    if changed || lost {
        written.shown = firewall::apply(&host, &rules).await?;
    }
    let has = |v6: bool| {
        let mut out = rules.ways.iter().filter(|way| way.masquerade || way.direct);
        out.any(|way| way.subnets.iter().any(|subnet| subnet.addr().is_ipv6() == v6))
    };
    let wanted = Forwarding { v4: has(false), v6: has(true) };
    let set = forwarding::enable(&host, wanted).await?;
    let forwarding = forwarding::state(&host).await?;
    let permission = permission::settle(&host, owner).await?;
    let again = lost || (!changed && permission.made > 0);
    if again {
        tracing::info!(
            rules = lost,
            jumps = permission.made,
            "the host's firewall was changed; the rules of the uplinks are there again"
        );
    }
    if !set.is_empty() {
        tracing::info!(settings = set.join(", "), "the host forwards now, which ways out need");
    }
    agent.routers.note(|host| {
        host.table = Some(format!("inet {}", firewall::table(owner)));
        host.udp_ports = Some(rules.udp_ports.clone());
        host.permission = permission.places;
        host.reasserted += u64::from(again);
        host.changed.extend(set);
        host.forwarding = forwarding;
    });
    written.rules = Some(rules);
    Ok(())
}

/// The UDP ports that the switch receives on, those of networks that are not here yet included.
fn own_ports(agent: &Agent) -> Vec<u16> {
    let mut ports = agent.datapath.config().ports.clone();
    agent.tables.view(|view| {
        for item in view.networks().filter(|item| item.record.mode.is_routed()) {
            let (v4, v6) = membership::network::udp_ports(&item.record);
            ports.extend([v4, v6]);
        }
    });
    ports
}

/// The ports that the kernel gives to sockets which ask for none.
fn ephemeral() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    numbers.next().unwrap_or(32_768)..=numbers.next().unwrap_or(60_999)
}

/// Writes this host's own endpoints where they are needed, and removes those that are not. Does
/// nothing while this host is not present in the store: it may be another's name by now.
pub async fn settle_own_endpoints(agent: &Agent) {
    let Some(id) = gateway::host_endpoint(&agent.name) else { return };
    let there = agent.session().state == SessionState::Held && agent.tables.is_complete();
    if !there || !agent.watch_status().is_connected() {
        return;
    }
    let _turn = agent.routers.publishing.lock().await;
    let mut wanted = BTreeSet::new();
    for local in agent.networks.all().await {
        let Some(record) = agent.known_network(&local.id) else { continue };
        if !gateway::has_host_endpoints(&record) {
            continue;
        }
        wanted.insert(record.id.clone());
        let key = format!("host-endpoint-{}", record.id);
        if agent.tables.view(|view| view.endpoint(&record.id, &id).is_some()) {
            agent.clear_warning(&key);
            continue;
        }
        match create(agent, &record, &id).await {
            Ok(()) => {
                agent.clear_warning(&key);
                settle(agent, &local).await;
            }
            Err(error) => {
                let text =
                    format!("this host has no address of its own in network {}", record.name);
                agent.warn(&key, format!("{text}: {error}"), None);
            }
        }
    }
    let noted = agent.attachments().into_iter().filter(|note| note.stage != Stage::Detaching);
    let noted: BTreeSet<String> = noted.map(|note| note.network).collect();
    let left: Vec<NetworkId> = agent.tables.view(|view| {
        view.networks()
            .filter_map(|network| view.endpoint(&network.record.id, &id))
            .filter(|item| item.record.host == agent.name)
            .filter(|item| item.record.incarnation <= agent.incarnation())
            .map(|item| item.record.network.clone())
            .collect()
    });
    for network in left {
        let set_up = agent.networks.get(&network).await.is_some();
        let in_use = wanted.contains(&network) || (!set_up && noted.contains(network.as_str()));
        if in_use {
            continue;
        }
        match endpoint::remove(&agent.store, &network, &id, attach::REST).await {
            Ok(_) | Err(endpoint::Error::NotFound { .. }) => {
                let gone = agent.tables.wait(ECHO, |view| view.endpoint(&network, &id).is_none());
                let _ = gone.await;
                tracing::info!(%network, "this host's own endpoint is removed");
            }
            Err(error) => tracing::debug!(%network, %error, "an endpoint of this host is left"),
        }
    }
}

async fn create(agent: &Agent, record: &NetworkRecord, id: &EndpointId) -> Result<(), String> {
    let spec = EndpointSpec {
        id: Some(id.clone()),
        mac: Some(agent.networks.router_mac()),
        name: Some(id.to_string()),
        ..EndpointSpec::default()
    };
    let made =
        endpoint::create(&agent.store, record, &agent.name, agent.incarnation(), &spec).await;
    match made {
        Ok(made) => {
            tracing::info!(network = %record.name, ips = ?made.ips, "this host has an endpoint");
        }
        // The watch lags.
        Err(endpoint::Error::Exists { .. }) => {}
        Err(error) => return Err(error.to_string()),
    }
    let waited = agent.tables.wait_for_endpoint(&record.id, id, ECHO).await;
    waited.map_err(|error| error.to_string())
}

/// A network was let go of: if that was the last holder, its way out goes with it.
pub async fn released(agent: &Agent, network: &NetworkId) {
    if agent.networks.get(network).await.is_some() {
        return;
    }
    if agent.routers.put_way(network, None) {
        write_rules(agent, false).await;
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

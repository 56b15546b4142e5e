//! Attach and detach.
//!
//! # Theory of operation
//!
//! ```text
//!   attach                                   undone on failure by
//!   1  hold the network on this host         release
//!   2  note the attachment on disk, with     remove the note
//!      the reserved addresses that it takes
//!   3  endpoint in the store, addresses      remove it there (queued while the store is away)
//!      and MAC in the same transaction;
//!      while the store is away, later
//!   4  interface in the sandbox, down        unplug
//!   5  this host's tables have the endpoint
//!   6  interface up
//! ```
//!
//! Other hosts hear of the endpoint at step 3, before it can send its first frame. Without the store
//! ([`super::offline`]) they hear of it when that is back; on its own host it is reached at once. The
//! note of step 2 names the endpoint before anything of it exists, so a crash at any point leaves
//! nothing that the next start does not find ([`crate::agent::tasks::restore_attachments`]).
//!
//! Detach is the reverse and never needs the store: what the store cannot be told now is noted and
//! told when it is back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fdb::Revision;
use ipnet::IpNet;
use membership::endpoint::{self, EndpointSpec};
use membership::gateway;
use membership::key::{EndpointId, NetworkId};
use membership::record::{EndpointRecord, NetworkRecord};
use membership::watch::WatchStatus;

use super::{offline, presence};
use crate::agent::networks::LocalNetwork;
use crate::agent::reserve::Taken;
use crate::agent::routers;
use crate::agent::state::{self, Attachment, Publication, Stage};
use crate::agent::tables::ECHO;
use crate::agent::{Agent, endpoint_error, link_error, state_error};
use crate::control::types::{self, Attach, Detach, DetachTarget, Detached, Error};
use crate::link::endpoint::{Plug, adopt, plug, unplug, up};
use crate::link::routed;
use crate::link::{NetNs, NetNsRef, NetworkNs};

/// The warning that detaches wait for the store.
pub const DETACHES: &str = "detaches";
/// How long a released address rests before it is given to another endpoint.
pub const REST: Duration = Duration::from_secs(60);

/// Puts what the endpoint that moves here has into the request, and gives its id.
fn move_here(
    agent: &Agent,
    network: &NetworkRecord,
    request: &mut Attach,
    away: Option<&str>,
) -> Result<Option<EndpointId>, Error> {
    let Some(name) = request.moves.clone() else { return Ok(None) };
    if let Some(cause) = away {
        return Err(Error::unavailable("the store is away, and a move needs it").cause(cause));
    }
    let found = agent.tables.view(|view| {
        let of_network = view.endpoints_by(&name).filter(|item| item.record.network == network.id);
        of_network.map(|item| Arc::clone(&item.record)).collect::<Vec<_>>()
    });
    let [endpoint] = found.as_slice() else {
        let what = if found.is_empty() { "no endpoint" } else { "more than one endpoint" };
        return Err(Error::not_found(format!(
            "network {} has {what} of the id or name {name}",
            network.name
        ))
        .next_step("`skybridge endpoints` lists the ids"));
    };
    request.ips.clone_from(&endpoint.ips);
    request.mac = Some(endpoint.mac);
    if request.name.is_none() {
        request.name.clone_from(&endpoint.name);
    }
    for (key, value) in &endpoint.labels {
        request.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    Ok(Some(endpoint.id.clone()))
}

/// Attaches a sandbox.
///
/// # Errors
/// With cause and next step; nothing of the attachment is left then.
pub async fn attach(agent: &Agent, mut request: Attach) -> Result<types::Attachment, Error> {
    let started = Instant::now();
    let away = agent.await_store().await.err();
    let network = match (&away, agent.known_by(&request.network)) {
        (_, Some(known)) => known,
        (None, None) => agent.network_record(&request.network).await?,
        (Some(cause), None) => {
            return Err(Error::unavailable(format!(
                "the store is away, and network {} is not known on this host",
                request.network
            ))
            .cause(cause)
            .next_step("`skybridge status` shows the store connection; traffic goes on"));
        }
    };
    let sandbox = open_sandbox(&request.netns)?;
    // A routed network's router is there whatever its record says.
    if request.default_route && network.gateways.is_empty() && !network.mode.is_routed() {
        return Err(Error::conflict(format!(
            "network {} has no gateway, so it cannot have the default route",
            network.name
        ))
        .next_step("leave --default-route out, or create the network with a gateway"));
    }
    let replaces = move_here(agent, &network, &mut request, away.as_deref())?;
    let gateway_mac = match network.mode.is_routed() {
        true => Some(routed::GATEWAY_MAC),
        false => gateway::mac(&network),
    };
    if request.mac.is_some() && request.mac == gateway_mac {
        return Err(Error::conflict(format!(
            "the gateway of network {} has that MAC",
            network.name
        ))
        .next_step("ask for another MAC, or leave --mac out"));
    }
    membership::ipam::check_wanted(&network, &request.ips)
        .map_err(|err| endpoint_error(&err.into()))?;
    let taken = agent.reserve.take(&network, &request.ips);
    if let Some(cause) = &away {
        offline::check(agent, &network, &request, &taken.ips, cause)?;
    }
    let id = EndpointId::random();
    let local = agent.networks.hold(&network, id.as_str(), &agent.tables, &agent.datapath).await?;
    routers::settle(agent, &local).await;
    let asked = Asked { request: &request, network: &network, id: id.clone(), replaces, away };
    let attached = attach_held(agent, &asked, &local, sandbox, taken).await;
    agent.reserve.wake();
    match attached {
        Ok((record, ips, queued)) => {
            // The host's own endpoint, if it is to have one, is not waited for.
            agent.routers.wake();
            Ok(types::Attachment {
                endpoint: record.id.to_string(),
                name: record.name.clone(),
                network: network.name.to_string(),
                ips,
                mac: record.mac,
                ifname: request.ifname.clone(),
                mtu: local.mtu(),
                gateways: gateways(&request, &network),
                host: agent.name.to_string(),
                elapsed_ms: started.elapsed().as_secs_f64() * 1000.0,
                queued,
            })
        }
        Err(error) => {
            let _ = release(agent, &network.id, id.as_str()).await;
            Err(error)
        }
    }
}

pub(super) async fn release(
    agent: &Agent,
    network: &NetworkId,
    endpoint: &str,
) -> Result<(), Error> {
    let before = agent.networks.get(network).await;
    let released = agent.networks.release(network, endpoint, &agent.tables, &agent.datapath).await;
    routers::released(agent, network, before.as_ref()).await;
    released
}

/// What an attach is about.
struct Asked<'a> {
    request: &'a Attach,
    network: &'a NetworkRecord,
    id: EndpointId,
    /// The endpoint that moves here.
    replaces: Option<EndpointId>,
    /// Why the store is away.
    away: Option<String>,
}

async fn attach_held(
    agent: &Agent,
    asked: &Asked<'_>,
    local: &LocalNetwork,
    sandbox: NetNs,
    taken: Taken<'_>,
) -> Result<(EndpointRecord, Vec<IpNet>, bool), Error> {
    let Asked { request, network, id, .. } = asked;
    let reserved = taken.ips.clone();
    let mut note = Attachment {
        version: state::VERSION,
        stage: Stage::Attaching,
        endpoint: id.to_string(),
        network: network.id.to_string(),
        network_name: network.name.to_string(),
        name: request.name.clone().unwrap_or_default(),
        sandbox: request.netns.clone(),
        ifname: request.ifname.clone(),
        mac: request.mac.unwrap_or_default(),
        ips: with_prefixes(&reserved, network),
        gateways: gateways(request, network),
        labels: request.labels.clone(),
        publication: match asked.away {
            Some(_) => Publication::Queued,
            None => Publication::Unsure,
        },
        docker: None,
        moved: false,
        reason: None,
    };
    agent.put_attachment(&note)?;
    if let Err(err) = taken.spend() {
        let _ = agent.remove_attachment(&note.endpoint);
        return Err(state_error(&err));
    }
    let record = match &asked.away {
        Some(_) => offline::record(agent, network, request, id, &reserved),
        None => publish(agent, asked, &mut note, &reserved).await?,
    };
    note.mac = record.mac;
    note.ips = with_prefixes(&record.ips, network);
    let queued = note.publication != Publication::Done;
    let done = async {
        agent.put_attachment(&note)?;
        let plug_in = plug_of(&note, network, local, sandbox);
        let plugged = plug(&local.namespace, agent.networks.owner(), &plug_in)
            .await
            .map_err(|err| link_error(&err))?;
        if queued {
            agent.tables.put_own(record.clone());
        } else {
            agent.tables.wait_for_endpoint(&network.id, id, ECHO).await?;
        }
        agent.guard_port(local, &note).await?;
        up(&local.namespace, &plugged).await.map_err(|err| link_error(&err))?;
        note.stage = Stage::Attached;
        agent.mark_settled(&note.endpoint);
        agent.put_attachment(&note)?;
        // From now on changes of the network reach the interface; one may have come before.
        let (mtu, isolated) = (u32::from(local.mtu()), local.is_switched());
        if (mtu, isolated) != (plug_in.mtu, plug_in.isolated) {
            let settled = Plug { mtu, isolated, ..plug_in };
            adopt(&local.namespace, agent.networks.owner(), &settled)
                .await
                .map_err(|err| link_error(&err))?;
        }
        Ok::<(), Error>(())
    }
    .await;
    match done {
        Ok(()) => {
            tracing::info!(
                network = %network.name, endpoint = %id, mac = %record.mac, ips = ?record.ips,
                sandbox = %request.netns, queued, "attached"
            );
            Ok((record, note.ips, queued))
        }
        Err(error) => {
            // What cannot be removed now stays noted, and the agent tries again.
            match take_down(agent, &mut note).await {
                Ok(()) if queued || !error.is(types::ErrorCode::Unavailable) => {
                    forget(agent, &note).await;
                }
                Ok(()) => {}
                Err(left) => tracing::warn!(endpoint = %id, err = %left, "half an attach is left"),
            }
            Err(error)
        }
    }
}

/// Creates the endpoint in the store. When that does not answer and the reserve suffices, the
/// endpoint comes to be without it, under the same id: what the store may have done is then the same.
async fn publish(
    agent: &Agent,
    asked: &Asked<'_>,
    note: &mut Attachment,
    reserved: &[IpAddr],
) -> Result<EndpointRecord, Error> {
    let Asked { request, network, id, .. } = asked;
    let spec = EndpointSpec {
        id: Some(id.clone()),
        ips: request.ips.clone(),
        mac: request.mac,
        name: request.name.clone(),
        labels: request.labels.clone(),
        reserved: reserved.to_vec(),
        replaces: asked.replaces.clone(),
        ..EndpointSpec::default()
    };
    agent.tables.expect_endpoint(id);
    let created =
        endpoint::create(&agent.store, network, &agent.name, agent.incarnation(), &spec).await;
    let error = match created {
        Ok(record) => {
            note.publication = Publication::Done;
            return Ok(record);
        }
        Err(error) => endpoint_error(&error),
    };
    if !error.is(types::ErrorCode::Unavailable) {
        forget(agent, note).await;
        return Err(error);
    }
    agent.reserve.unanswered(network.id.as_str());
    let cause = error.cause.clone().unwrap_or_default();
    if offline::check(agent, network, request, reserved, &cause).is_ok() {
        return Ok(offline::record(agent, network, request, id, reserved));
    }
    // The answer may have been lost and the record be there all the same. A store that did not
    // answer now is not asked again while the caller waits.
    note.stage = Stage::Detaching;
    agent.put_attachment(note)?;
    Err(error)
}

/// Detaches what the request names.
///
/// # Errors
/// When nothing matches, or a device could not be removed.
pub async fn detach(agent: &Agent, request: Detach) -> Result<Vec<Detached>, Error> {
    let target = request.target()?;
    let notes = matching(agent, &target).await?;
    let mut detached = Vec::with_capacity(notes.len());
    if let Some(note) = notes.iter().find(|note| note.stage == Stage::Attaching) {
        return Err(Error::conflict(format!("{} is being attached", note.sandbox))
            .next_step("detach it when that has ended, in a few seconds"));
    }
    for note in notes {
        detached.push(detach_one(agent, note).await?);
    }
    Ok(detached)
}

/// Takes one attachment down and tells the store.
///
/// # Errors
/// When a device could not be removed; what is left is tried again by the agent.
pub async fn detach_one(agent: &Agent, mut note: Attachment) -> Result<Detached, Error> {
    take_down(agent, &mut note).await?;
    let queued = !forget(agent, &note).await;
    // With the last attachment the host itself leaves, before anybody removes the network.
    routers::settle_own_endpoints(agent).await;
    tracing::info!(network = %note.network_name, endpoint = %note.endpoint, queued, "detached");
    Ok(Detached {
        endpoint: note.endpoint,
        name: (!note.name.is_empty()).then_some(note.name),
        network: note.network_name,
        ips: note.ips.iter().map(IpNet::addr).collect(),
        queued,
    })
}

/// Removes what an attachment has on this host, whatever is there of it; its note says from the
/// first moment that it goes. May be repeated.
///
/// # Errors
/// When a device could not be removed.
pub async fn take_down(agent: &Agent, note: &mut Attachment) -> Result<(), Error> {
    if note.stage != Stage::Detaching {
        note.stage = Stage::Detaching;
        // What else is noted may have changed meanwhile: that stays.
        agent.change_attachment(&note.endpoint, |noted| noted.stage = Stage::Detaching)?;
    }
    let id = NetworkId::new(&note.network).ok();
    let local = match &id {
        Some(id) => agent.networks.get(id).await,
        None => None,
    };
    // A network that this run has not set up may still have the devices of an earlier one.
    let earlier = match &local {
        Some(_) => None,
        None => NetworkNs::open(&agent.pin_of(&note.network)).await.ok(),
    };
    let sandbox = open_sandbox(&note.sandbox).ok();
    let namespace = local.as_ref().map(|local| &local.namespace).or(earlier.as_ref());
    unplug(namespace, agent.networks.owner(), &note.endpoint, sandbox.as_ref())
        .await
        .map_err(|err| link_error(&err))?;
    if let (Some(local), Some(id)) = (local, id) {
        if let Ok(endpoint) = EndpointId::new(&note.endpoint) {
            agent.tables.forget_endpoint(&id, &endpoint);
        }
        agent.unguard_port(&local, &note.endpoint).await?;
        drop(local);
        release(agent, &id, &note.endpoint).await?;
    } else {
        drop(earlier);
        agent.remove_unused_networks().await?;
    }
    Ok(())
}

/// Sets an attachment of an earlier run up again, or takes it over as it stands.
///
/// # Errors
/// What could not be set up.
pub async fn restore(
    agent: &Agent,
    note: &Attachment,
    network: &NetworkRecord,
) -> Result<(), Error> {
    let sandbox = match note.docker {
        // Docker moves the interface when it likes, into a sandbox that may not be seen from here.
        Some(_) => None,
        None => Some(open_sandbox(&note.sandbox)?),
    };
    let local =
        agent.networks.hold(network, &note.endpoint, &agent.tables, &agent.datapath).await?;
    routers::settle(agent, &local).await;
    let restored = async {
        let Some(sandbox) = sandbox else { return presence::take_over(agent, note, &local).await };
        let wanted = plug_of(note, network, &local, sandbox);
        let owner = agent.networks.owner();
        let failed = |err| link_error(&err);
        let plugged = match adopt(&local.namespace, owner, &wanted).await.map_err(failed)? {
            Some(plugged) => plugged,
            None => plug(&local.namespace, owner, &wanted).await.map_err(failed)?,
        };
        if note.publication != Publication::Done
            && let Some(record) = offline::noted(agent, note)
        {
            agent.tables.put_own(record);
        }
        agent.guard_port(&local, note).await?;
        up(&local.namespace, &plugged).await.map_err(failed)
    }
    .await;
    if restored.is_err() {
        let _ = release(agent, &network.id, &note.endpoint).await;
    }
    restored
}

/// Removes the endpoint from the store and the note from the disk. False when the store could not
/// be told: the note stays, as `Detaching`, and is told again later.
pub async fn forget(agent: &Agent, note: &Attachment) -> bool {
    let ids = (NetworkId::new(&note.network), EndpointId::new(&note.endpoint));
    let _turn = agent.publishing.lock().await;
    let publication = agent.attachment(&note.endpoint).map(|note| note.publication);
    // The store was never told of it: its addresses are as reserved as they were.
    let unsaid = publication == Some(Publication::Queued);
    if let (Ok(network), Ok(endpoint)) = ids {
        agent.tables.forget_endpoint(&network, &endpoint);
        if unsaid {
            agent.tables.endpoint_gone(&endpoint, Revision(0));
        } else if let Err(cause) = remove_record(agent, &network, &endpoint).await {
            let marked =
                agent.change_attachment(&note.endpoint, |waiting| waiting.stage = Stage::Detaching);
            if let Err(err) = marked {
                tracing::error!(endpoint = %note.endpoint, %err, "cannot note a detach");
            }
            agent.warn(
                DETACHES,
                format!("the store has not been told of all detaches yet: {cause}"),
                Some("they are told when it answers; nothing needs to be done here".to_owned()),
            );
            return false;
        }
    }
    let unused: Vec<IpAddr> =
        if unsaid { note.ips.iter().map(IpNet::addr).collect() } else { Vec::new() };
    if let Err(err) = agent.reserve.ended(&note.network, &unused) {
        tracing::warn!(%err, "a reserved address is not noted; it is found again with the store");
    }
    if let Err(err) = agent.remove_attachment(&note.endpoint) {
        tracing::error!(endpoint = %note.endpoint, %err, "cannot forget an attachment");
    }
    agent.reserve.wake();
    true
}

async fn remove_record(
    agent: &Agent,
    network: &NetworkId,
    endpoint: &EndpointId,
) -> Result<(), String> {
    // One that is known to be away is not waited for again with every detach.
    if let WatchStatus::Disconnected { cause, .. } = agent.watch_status() {
        return Err(cause);
    }
    let gone = match endpoint::remove(&agent.store, network, endpoint, REST).await {
        Ok(removed) => removed.revision,
        Err(endpoint::Error::NotFound { revision, .. }) => revision,
        Err(error) => return Err(error.to_string()),
    };
    agent.tables.endpoint_gone(endpoint, Revision(gone));
    Ok(())
}

async fn matching(agent: &Agent, target: &DetachTarget<'_>) -> Result<Vec<Attachment>, Error> {
    let all = agent.attachments();
    let of_network =
        |note: &Attachment, name: &str| note.network_name == name || note.network == name;
    let found: Vec<Attachment> = match target {
        DetachTarget::Endpoint { endpoint, network } => all
            .into_iter()
            .filter(|note| note.endpoint == *endpoint)
            .filter(|note| network.is_none_or(|name| of_network(note, name)))
            .collect(),
        DetachTarget::Sandbox { network, netns } => {
            // The same namespace may have been named in another way when it was attached; one that
            // is gone can only be told by its name.
            let wanted = open_sandbox(netns).ok().map(|sandbox| sandbox.id());
            all.into_iter()
                .filter(|note| of_network(note, network))
                .filter(|note| {
                    note.sandbox == *netns
                        || wanted.is_some_and(|id| {
                            open_sandbox(&note.sandbox).is_ok_and(|sandbox| sandbox.id() == id)
                        })
                })
                .collect()
        }
    };
    if found.is_empty() {
        let what = match target {
            DetachTarget::Endpoint { endpoint, .. } => format!("endpoint {endpoint}"),
            DetachTarget::Sandbox { network, netns } => {
                format!("sandbox {netns} in network {network}")
            }
        };
        return Err(Error::not_found(format!("{what} is not attached on this host"))
            .next_step("`skybridge endpoints` lists what is attached, and where"));
    }
    Ok(found)
}

fn plug_of(
    note: &Attachment,
    network: &NetworkRecord,
    local: &LocalNetwork,
    sandbox: NetNs,
) -> Plug {
    let subnets = if local.is_routed() { network.subnets.clone() } else { Vec::new() };
    Plug {
        subnets,
        endpoint: note.endpoint.clone(),
        sandbox,
        ifname: note.ifname.clone(),
        mac: note.mac,
        addresses: note.ips.clone(),
        mtu: u32::from(local.mtu()),
        gateways: note.gateways.clone(),
        isolated: local.is_switched(),
    }
}

pub(super) fn open_sandbox(reference: &str) -> Result<NetNs, Error> {
    let parsed: NetNsRef = reference.parse().map_err(|err: crate::link::Error| link_error(&err))?;
    NetNs::open(&parsed).map_err(|err| link_error(&err))
}

fn gateways(request: &Attach, network: &NetworkRecord) -> Vec<IpAddr> {
    match (request.default_route, network.mode.is_routed()) {
        (false, _) => Vec::new(),
        (true, false) => network.gateways.clone(),
        (true, true) => [routed::GATEWAY_V4.into(), routed::GATEWAY_V6.into()]
            .into_iter()
            .filter(|gateway: &IpAddr| {
                let same = |subnet: &IpNet| subnet.addr().is_ipv6() == gateway.is_ipv6();
                network.subnets.iter().any(same)
            })
            .collect(),
    }
}

pub(super) fn with_prefixes(ips: &[IpAddr], network: &NetworkRecord) -> Vec<IpNet> {
    ips.iter()
        .map(|ip| {
            let full = if ip.is_ipv4() { 32 } else { 128 };
            // In a routed network nobody else is on the sandbox's link.
            let subnet = network.subnet_of(*ip).filter(|_| !network.mode.is_routed());
            let len = subnet.map_or(full, |subnet| subnet.prefix_len());
            IpNet::new(*ip, len).unwrap_or_else(|_| IpNet::from(*ip))
        })
        .collect()
}

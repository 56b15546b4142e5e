//! Attaching while the store is away, and telling it afterwards.
//!
//! # Theory of operation
//!
//! ```text
//!   attach, store away       reserved address and its MAC ──► note (queued) ──► devices, own tables
//!   store back, session held ──► endpoint and address in one transaction, compared with what is there
//!        ├─ done            the note says so; other hosts hear of it by their watch
//!        ├─ not now         tried again
//!        └─ given to others quarantined: cut off, named in `status`, kept until it is detached
//! ```
//!
//! Nobody else can get a reserved address, or the MAC that belongs to it, so being told "given to
//! others" takes a reserve that was lost: records removed by hand, a store restored from an old
//! backup, or a host that stayed away longer than the grace.

use std::net::IpAddr;

use ipnet::IpNet;
use membership::endpoint::{self, EndpointSpec};
use membership::ipam;
use membership::key::{EndpointId, NetworkId};
use membership::record::{EndpointRecord, Extra, NetworkRecord, VERSION, now_seconds};

use crate::agent::state::{Attachment, Publication, Stage};
use crate::agent::tasks::SessionState;
use crate::agent::{Agent, link_error};
use crate::control::types::{Attach, Error};
use crate::link;

/// The warning that endpoints wait for the store.
const WAITING: &str = "attaches";

/// Whether an attach can do without the store, with the addresses it has taken from the reserve.
///
/// # Errors
/// Why not, with the store's own cause.
pub fn check(
    agent: &Agent,
    network: &NetworkRecord,
    request: &Attach,
    taken: &[IpAddr],
    cause: &str,
) -> Result<(), Error> {
    let refused = |why: String| {
        Err(Error::unavailable(format!("the store is away, and {why}"))
            .cause(cause)
            .next_step("`skybridge status` shows the store connection; traffic goes on without it"))
    };
    if let Some(ip) = request.ips.iter().find(|ip| !taken.contains(ip)) {
        return refused(format!(
            "address {ip} is none of those that this host has reserved in network {}",
            network.name
        ));
    }
    for (ipv6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let has = network.subnets.iter().any(|subnet| subnet.addr().is_ipv6() == ipv6);
        if has && !taken.iter().any(|ip| ip.is_ipv6() == ipv6) {
            return refused(format!(
                "this host has no reserved {family} address left in network {}",
                network.name
            ));
        }
    }
    if let Some(mac) = request.mac
        && !taken.iter().any(|ip| mac.to_ipv4().map(IpAddr::V4) == Some(*ip))
    {
        return refused(format!("MAC {mac} belongs to none of the addresses it has reserved"));
    }
    match agent.reserve.allowance(agent.config.store.garbage_after) {
        Ok(_) => Ok(()),
        Err(why) => refused(why),
    }
}

/// The record that the endpoint will have in the store.
#[must_use]
pub fn record(
    agent: &Agent,
    network: &NetworkRecord,
    request: &Attach,
    id: &EndpointId,
    taken: &[IpAddr],
) -> EndpointRecord {
    let mac = request.mac.unwrap_or_else(|| endpoint::default_mac(&network.id, id, taken));
    EndpointRecord {
        version: VERSION,
        id: id.clone(),
        network: network.id.clone(),
        host: agent.name.clone(),
        incarnation: agent.incarnation(),
        mac,
        ips: taken.to_vec(),
        name: request.name.clone(),
        labels: request.labels.clone(),
        created: now_seconds(),
        extra: Extra::new(),
    }
}

/// The record of an attachment that the store may not have, from its note.
#[must_use]
pub fn noted(agent: &Agent, note: &Attachment) -> Option<EndpointRecord> {
    Some(EndpointRecord {
        version: VERSION,
        id: EndpointId::new(&note.endpoint).ok()?,
        network: NetworkId::new(&note.network).ok()?,
        host: agent.name.clone(),
        incarnation: agent.incarnation(),
        mac: note.mac,
        ips: addresses(note),
        name: (!note.name.is_empty()).then(|| note.name.clone()),
        labels: note.labels.clone(),
        created: now_seconds(),
        extra: Extra::new(),
    })
}

fn addresses(note: &Attachment) -> Vec<IpAddr> {
    note.ips.iter().map(IpNet::addr).collect()
}

/// Tells the store of the endpoints that it was not told of. Does nothing while this host is not
/// present there: what it published could be collected.
pub async fn publish(agent: &Agent) {
    let notes = agent.attachments().into_iter();
    let mut waiting: Vec<Attachment> = notes
        .filter(|note| note.stage == Stage::Attached && note.publication != Publication::Done)
        .collect();
    let mut told = false;
    while let Some(note) = waiting.last() {
        let there = agent.session().state == SessionState::Held && agent.tables.is_complete();
        if !there || !agent.watch_status().is_connected() {
            break;
        }
        // A detach of this endpoint waits, so that it knows what there is to remove.
        let turn = agent.publishing.lock().await;
        let published = publish_one(agent, note).await;
        drop(turn);
        match published {
            Ok(()) => {}
            Err(err) => {
                tracing::debug!(endpoint = %note.endpoint, %err, "it cannot be published now");
                break;
            }
        }
        told = true;
        waiting.pop();
    }
    if waiting.is_empty() {
        agent.clear_warning(WAITING);
    } else {
        agent.warn(
            WAITING,
            format!(
                "{} endpoints of this host were attached while the store was away: other hosts do \
                 not know of them yet",
                waiting.len()
            ),
            Some("they are published when the store is back; nothing needs to be done".to_owned()),
        );
    }
    if told {
        agent.reserve.wake();
    }
}

/// Publishes one endpoint, or quarantines it.
async fn publish_one(agent: &Agent, note: &Attachment) -> Result<(), String> {
    let Some(now) = agent.attachment(&note.endpoint) else { return Ok(()) };
    if now.stage != Stage::Attached {
        return Ok(());
    }
    if now.publication == Publication::Queued {
        // From here on the store may have it.
        agent
            .change_attachment(&note.endpoint, |note| note.publication = Publication::Unsure)
            .map_err(|err| err.to_string())?;
    }
    let Some(wanted) = noted(agent, note) else {
        return quarantine(agent, note, "its note has no valid ids".to_owned()).await;
    };
    let Some(network) = agent.known_network(&wanted.network) else {
        let why = format!("network {} does not exist any more", note.network_name);
        return quarantine(agent, note, why).await;
    };
    let spec = EndpointSpec {
        id: Some(wanted.id.clone()),
        ips: wanted.ips.clone(),
        mac: Some(wanted.mac),
        name: wanted.name,
        labels: wanted.labels,
        adopt: None,
        replaces: None,
        reserved: wanted.ips,
        again: true,
    };
    let made =
        endpoint::create(&agent.store, &network, &agent.name, agent.incarnation(), &spec).await;
    match made {
        Ok(record) => {
            // The sandbox may have been detached meanwhile: then its note says so, and the record
            // goes with it.
            let done = agent.change_attachment(&note.endpoint, |note| {
                note.publication = Publication::Done;
            });
            done.map_err(|err| err.to_string())?;
            tracing::info!(
                endpoint = %record.id, network = %note.network_name, ips = ?record.ips,
                "the store knows of an attach now"
            );
            Ok(())
        }
        Err(endpoint::Error::Store(err) | endpoint::Error::Address(ipam::Error::Store(err))) => {
            agent.reserve.unanswered(&note.network);
            Err(err.to_string())
        }
        // Nothing is somebody else's. A network that only a restored store lacks is written again
        // (`crate::agent::republish`), one that was removed is not known here any more by then; and
        // an older run of a host that was copied tells nothing.
        Err(err @ (endpoint::Error::NetworkGone(_) | endpoint::Error::Superseded { .. })) => {
            Err(err.to_string())
        }
        Err(refused) => quarantine(agent, note, refused.to_string()).await,
    }
}

/// Cuts an endpoint off whose addresses or MAC are somebody else's: no frame of it goes on, the
/// sandbox keeps its interface, and `status` names it until it is detached.
async fn quarantine(agent: &Agent, note: &Attachment, why: String) -> Result<(), String> {
    if let (Ok(network), Ok(id)) = (NetworkId::new(&note.network), EndpointId::new(&note.endpoint))
    {
        if let Some(local) = agent.networks.get(&network).await {
            let down = link::endpoint::down(&local.namespace, agent.networks.owner(), id.as_str());
            down.await.map_err(|err| link_error(&err).to_string())?;
        }
        agent.tables.forget_endpoint(&network, &id);
    }
    tracing::error!(
        endpoint = %note.endpoint, network = %note.network_name, sandbox = %note.sandbox, why,
        "an endpoint that was attached without the store is quarantined"
    );
    let changed = agent.change_attachment(&note.endpoint, |note| {
        if note.stage == Stage::Attached {
            note.stage = Stage::Quarantined;
            note.reason = Some(why);
        }
    });
    changed.map_err(|err| err.to_string())
}

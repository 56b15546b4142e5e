//! Writes again what the store has lost of this host.
//!
//! # Theory of operation
//!
//! A record of an attached endpoint goes by its detach alone. When the watch tells that one is gone
//! although its sandbox is attached (somebody deleted it, or garbage collection did while this host
//! was away), it is written again with its MAC and addresses. When the store turns out to be
//! restored from a backup, every attachment is compared with the store itself, networks of them
//! that came after the backup are written again first, and endpoints that this host detached since
//! are removed again. Others count what the backup lacks as present meanwhile
//! ([`membership::watch::Batch::rolled_back`]), so no frame is lost. Addresses in reserve are of the
//! history before, too: they are forgotten, and reserved anew when that time is over.
//!
//! Which network each network of this host's Docker is, Docker tells but once: it is compared with
//! the copy on the disk ([`super::docker`]) whenever something may be missing.
//!
//! Endpoints that the store was never told of, and those that are cut off, are not written here
//! ([`crate::driver::offline`]), only their networks.
//!
//! Only a host whose session is held speaks for its name; an older run that was stopped for a while
//! is refused by the transaction itself ([`membership::endpoint::Error::Superseded`]). What another
//! endpoint has taken meanwhile stays its own, and a warning says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use membership::docker::DockerNetwork;
use membership::endpoint::EndpointSpec;
use membership::key::{EndpointId, Key, NetworkId};
use membership::record::NetworkRecord;
use membership::restore;
use membership::store;
use membership::watch::{Batch, Event};
use tokio::sync::Notify;

use super::state::{Attachment, Stage};
use super::tasks::{self, SessionState};
use super::{Agent, endpoint_error, network_error};
use crate::config::Config;
use crate::control::types;

/// The least time that what a restored store lacks counts as present: its owners come back within
/// two seconds and write it again.
const GRACE: Duration = Duration::from_secs(10);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long what a restored store lacks counts as present.
#[must_use]
pub fn grace(config: &Config) -> Duration {
    config.store.hold_down.max(GRACE)
}

/// What the store may have lost.
#[derive(Default)]
pub struct Doubts {
    /// Something of ours may be missing.
    missing: AtomicBool,
    /// The store has another history.
    rolled_back: AtomicBool,
    raised: Notify,
}

impl Doubts {
    /// Notes what a batch of the watch says of this host, before it is applied.
    pub fn look(&self, agent: &Agent, batch: &Batch) {
        let gone = |event: &Event| {
            matches!(event, Event::Delete { key: Key::Endpoint(_, endpoint), .. }
                if agent.is_published(endpoint.as_str()))
        };
        if batch.rolled_back {
            agent.reserve.doubt(grace(&agent.config));
        }
        let missing = (batch.resync && batch.complete) || batch.events.iter().any(gone);
        self.missing.fetch_or(missing, Ordering::AcqRel);
        self.rolled_back.fetch_or(batch.rolled_back, Ordering::AcqRel);
    }

    /// Something of ours is missing.
    pub fn suspect(&self) {
        self.missing.store(true, Ordering::Release);
        self.raised.notify_one();
    }

    /// What was noted has been applied.
    pub fn raise(&self) {
        let noted = [&self.missing, &self.rolled_back];
        if noted.iter().any(|flag| flag.load(Ordering::Acquire)) {
            self.raised.notify_one();
        }
    }
}

/// Keeps what the store has of this host complete, for ever.
pub async fn run(agent: Arc<Agent>) {
    loop {
        agent.doubts.raised.notified().await;
        loop {
            let rolled_back = agent.doubts.rolled_back.swap(false, Ordering::AcqRel);
            let missing = agent.doubts.missing.swap(false, Ordering::AcqRel);
            if !rolled_back && !missing {
                break;
            }
            // Only who is admitted under this name may say what belongs to it.
            let held = agent.session().state == SessionState::Held;
            if held && repair(&agent, rolled_back).await {
                continue;
            }
            agent.doubts.rolled_back.fetch_or(rolled_back, Ordering::AcqRel);
            agent.doubts.missing.fetch_or(missing, Ordering::AcqRel);
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Writes what is missing. False when the store did not answer.
async fn repair(agent: &Agent, rolled_back: bool) -> bool {
    let mut attached = agent.attachments();
    attached.retain(|note| note.stage == Stage::Attached);
    let mut whole = true;
    let dockers = agent.dockers.networks(&agent.name);
    if rolled_back {
        let mut networks: BTreeMap<&str, &str> =
            dockers.iter().map(|noted| (noted.network.as_str(), noted.network.as_str())).collect();
        networks.extend(
            attached.iter().map(|note| (note.network.as_str(), note.network_name.as_str())),
        );
        for (id, name) in networks {
            whole &= network(agent, id, name).await;
        }
        // A network that was not there had no room.
        agent.reserve.again();
        if whole {
            tasks::remove_orphans(agent).await;
        }
    }
    if let Err(err) = dockers_again(agent, &dockers).await {
        tracing::debug!(%err, "Docker's networks cannot be compared now");
        whole = false;
    }
    let mut written = BTreeSet::new();
    for note in &attached {
        let (Ok(network), Ok(id)) =
            (NetworkId::new(&note.network), EndpointId::new(&note.endpoint))
        else {
            continue;
        };
        // A network that is gone is told of elsewhere.
        let Some(network) = agent.known_network(&network) else { continue };
        // Of a store with another history the view says what may be written again.
        let told = agent.tables.view(|view| view.endpoint(&network.id, &id).is_some());
        // It may have been detached since the list was made.
        if (told && !rolled_back) || !agent.is_published(&note.endpoint) {
            continue;
        }
        // What somebody else has by now is his (`super::claims`).
        if !told && !rolled_back && agent.rival(note).is_some() {
            continue;
        }
        match endpoint(agent, note, &network, &id).await {
            Ok(true) => {
                written.insert(note.endpoint.as_str());
            }
            Ok(false) => {}
            Err(()) => whole = false,
        }
    }
    if !written.is_empty() {
        tracing::info!(endpoints = written.len(), "written to the store again");
    }
    whole
}

/// Writes what the store lacks of Docker's networks. One whose network is gone is nobody's.
async fn dockers_again(agent: &Agent, kept: &[DockerNetwork]) -> Result<(), store::Error> {
    if kept.is_empty() {
        return Ok(());
    }
    let there = membership::docker::list(&agent.store).await?;
    for noted in kept {
        let same = |other: &DockerNetwork| {
            (&other.network, &other.host, &other.id) == (&noted.network, &noted.host, &noted.id)
        };
        if there.iter().any(same) {
            continue;
        }
        if !membership::docker::put(&agent.store, noted).await? {
            continue;
        }
        tracing::info!(
            network = %noted.network, docker = %noted.id, "Docker's network is written again"
        );
        // Docker has removed it meanwhile, which found nothing to remove.
        if !agent.dockers.networks(&agent.name).contains(noted) {
            membership::docker::remove(&agent.store, noted).await?;
        }
    }
    Ok(())
}

/// Writes one endpoint if the store lacks it. `Err` when it is worth another try.
async fn endpoint(
    agent: &Agent,
    note: &Attachment,
    network: &NetworkRecord,
    id: &EndpointId,
) -> Result<bool, ()> {
    let ips: Vec<IpAddr> = note.ips.iter().map(IpNet::addr).collect();
    let spec = EndpointSpec {
        // In a backup they may still be this host's reserve.
        reserved: ips.clone(),
        ips,
        mac: Some(note.mac),
        name: (!note.name.is_empty()).then(|| note.name.clone()),
        labels: note.labels.clone(),
        ..EndpointSpec::default()
    };
    let (store, incarnation) = (&agent.store, agent.incarnation());
    let key = format!("republish-{id}");
    match restore::endpoint(store, network, &agent.name, incarnation, id, spec).await {
        Ok(written) => {
            agent.clear_warning(&key);
            // It was detached meanwhile, which found nothing to remove.
            if written && !agent.is_published(&note.endpoint) {
                tasks::remove_orphans(agent).await;
            }
            Ok(written)
        }
        Err(error) => {
            let error = endpoint_error(&error);
            if error.is(types::ErrorCode::Unavailable) {
                return Err(());
            }
            let text = format!("endpoint {id} is no longer in the store: {error}");
            let next_step = format!("detach {} and attach it again", note.sandbox);
            agent.warn(&key, text, Some(next_step));
            Ok(false)
        }
    }
}

/// Writes a network if the store lacks it. False when the store did not answer.
async fn network(agent: &Agent, id: &str, name: &str) -> bool {
    let known = NetworkId::new(id).ok().and_then(|id| agent.known_network(&id));
    let Some(record) = known else { return true };
    let key = format!("republish-network-{id}");
    match restore::network(&agent.store, &record).await {
        Ok(written) => {
            agent.clear_warning(&key);
            if written {
                tracing::info!(network = name, "written to the store again");
            }
            true
        }
        Err(error) => {
            let error = network_error(&error);
            if error.is(types::ErrorCode::Unavailable) {
                return false;
            }
            let text = format!("network {name} is no longer in the store: {error}");
            agent.warn(&key, text, Some("attach its sandboxes to another network".to_owned()));
            true
        }
    }
}

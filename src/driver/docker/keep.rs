//! What Docker did not end is ended: an endpoint whose Join never came or whose DeleteEndpoint was
//! lost, an interface that Docker took out of a sandbox without a Leave, an address that no endpoint
//! followed, a network that was made for Docker and that no Docker has. Interfaces that went with their sandbox are noticed for all attachments alike
//! ([`crate::agent::tasks`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use membership::docker::MADE_BY;
use membership::ipam;
use membership::key::{Key, NetworkId, Range};
use membership::record::{AddressRecord, Stored as _};
use tokio::time::{MissedTickBehavior, interval};

use super::Driver;
use super::network::is_of_one_docker;
use crate::agent::state::{Attachment, Stage};
use crate::agent::tasks::SessionState;
use crate::config::DockerScope;
use crate::control::types::Error;
use crate::driver::attach;
use crate::link::{NetNs, handover};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(10);
/// How long an endpoint may be without a sandbox: Docker goes on within milliseconds, and repeats
/// what was not answered for half a minute.
const FORLORN: Duration = Duration::from_secs(60);
/// How long an interface may wait in the host's namespace before Docker takes it for the first time.
/// Between Join and that it mounts the container's volumes, which may lie in a network.
const UNTAKEN: Duration = Duration::from_secs(15 * 60);
/// How long an address may be without an endpoint.
const EARLY: Duration = Duration::from_secs(300);
/// How long a network that was made for Docker may be nobody's: milliseconds lie between its making
/// and the note of whose it is, and between the removals of both.
const NOBODYS: Duration = Duration::from_secs(300);
/// How often the store is asked for such addresses and networks.
const EARLY_LOOK: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Seen {
    /// Endpoints without a sandbox, or with an interface that is not in it, and since when.
    forlorn: BTreeMap<String, Instant>,
    early: BTreeMap<(NetworkId, IpAddr), Instant>,
    nobodys: BTreeMap<NetworkId, Instant>,
    looked: Option<Instant>,
}

pub(super) async fn run(driver: &Driver) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    loop {
        tick.tick().await;
        endpoints(driver, &mut seen).await;
        let agent = &driver.agent;
        let there = agent.session().state == SessionState::Held
            && agent.watch_status().is_connected()
            && agent.tables.is_complete();
        let due = seen.looked.is_none_or(|at| at.elapsed() >= EARLY_LOOK);
        if there && due {
            seen.looked = Some(Instant::now());
            if let Err(err) = addresses(driver, &mut seen).await {
                tracing::debug!(%err, "addresses that Docker asked for cannot be looked at");
            }
            if let Err(err) = networks(driver, &mut seen).await {
                tracing::debug!(%err, "networks that were made for Docker cannot be looked at");
            }
        }
    }
}

async fn endpoints(driver: &Driver, seen: &mut Seen) {
    let now = Instant::now();
    let mut forlorn = BTreeMap::new();
    for note in driver.agent.attachments().into_iter().filter(|note| note.docker.is_some()) {
        let Some(patience) = patience(driver, &note).await else { continue };
        let since = seen.forlorn.get(&note.endpoint).copied().unwrap_or(now);
        forlorn.insert(note.endpoint.clone(), since);
        if now.duration_since(since) < patience {
            continue;
        }
        let _turn = driver.endpoints.lock().await;
        // Docker may have gone on meanwhile.
        let Some(present) = driver.agent.attachment(&note.endpoint) else { continue };
        if present != note {
            continue;
        }
        tracing::info!(
            endpoint = %note.endpoint, network = %note.network_name,
            "no container has this endpoint of Docker any more; removing it"
        );
        if let Err(err) = attach::detach_one(&driver.agent, present).await {
            tracing::warn!(endpoint = %note.endpoint, %err, "cannot remove it");
        }
    }
    seen.forlorn = forlorn;
}

/// How long an endpoint may stay as it is; `None` for one that a container has.
async fn patience(driver: &Driver, note: &Attachment) -> Option<Duration> {
    match note.stage {
        Stage::Reserved => Some(FORLORN),
        Stage::Attached => {
            let agent = &driver.agent;
            let host = NetNs::host().ok()?;
            let owner = agent.networks.owner();
            match handover::is_in(&host, owner, &note.endpoint).await.ok()? {
                // Where Docker puts it back before Leave.
                true if note.moved => Some(FORLORN),
                // Where Join left it.
                true => Some(UNTAKEN),
                false if note.moved => None,
                false => {
                    let taken = agent.change_attachment(&note.endpoint, |noted| {
                        // It may have been joined anew meanwhile.
                        noted.moved |= *noted == *note;
                    });
                    if let Err(err) = taken {
                        tracing::debug!(endpoint = %note.endpoint, %err, "cannot be noted");
                    }
                    None
                }
            }
        }
        _ => None,
    }
}

async fn addresses(driver: &Driver, seen: &mut Seen) -> Result<(), String> {
    let agent = &driver.agent;
    let store = &agent.store;
    let early = driver.early_id().map_err(|err| err.to_string())?;
    let turn = driver.networks.lock().await;
    let noted = driver.noted().await.map_err(|err| err.to_string())?;
    for noted in noted.iter().filter(|noted| noted.host == agent.name) {
        // Those that an earlier version wrote have no copy yet.
        driver.keep_copy(noted).map_err(|err| err.to_string())?;
    }
    drop(turn);
    let mut networks: Vec<NetworkId> = noted
        .into_iter()
        .filter(|noted| match driver.scope {
            DockerScope::Local => noted.host == agent.name,
            // With a cluster store one host is told of the network, and each asks for addresses of
            // its own containers. In a Swarm a manager asks for those of all hosts.
            DockerScope::Global => is_of_one_docker(noted.id.as_str()),
        })
        .map(|noted| noted.network)
        .collect();
    networks.sort();
    networks.dedup();
    let now = Instant::now();
    let mut found = BTreeMap::new();
    for network in networks {
        let listed = store.list(Range::Addresses(&network)).await;
        for entry in listed.map_err(|err| err.to_string())?.1 {
            let Ok(key @ Key::Address(_, ip)) = store.keys().parse(&entry.key) else { continue };
            let Ok(record) = AddressRecord::decode(&key, &entry.value) else { continue };
            if !record.early || record.endpoint != early {
                continue;
            }
            let place = (network.clone(), ip);
            let given = driver.early().get(&place).copied();
            let since = given.or_else(|| seen.early.get(&place).copied()).unwrap_or(now);
            found.insert(place.clone(), since);
            if now.duration_since(since) < EARLY {
                continue;
            }
            tracing::info!(%network, %ip, "no endpoint has followed this address; giving it back");
            let released = ipam::release(store, &network, &early, &[ip], Duration::ZERO).await;
            released.map_err(|err| err.to_string())?;
            driver.early().remove(&place);
        }
    }
    seen.early = found;
    Ok(())
}

/// Removes networks that were made for Docker and that nobody has: an agent was stopped between their
/// making and the note, or between the removals of both.
async fn networks(driver: &Driver, seen: &mut Seen) -> Result<(), Error> {
    let store = &driver.agent.store;
    let noted = driver.noted().await?;
    let all = driver.networks().await?;
    let now = Instant::now();
    let mut nobodys = BTreeMap::new();
    for network in all {
        let made = network.labels.get(MADE_BY.0).is_some_and(|value| value == MADE_BY.1);
        if !made || noted.iter().any(|noted| noted.network == network.id) {
            continue;
        }
        let since = seen.nobodys.get(&network.id).copied().unwrap_or(now);
        nobodys.insert(network.id.clone(), since);
        if now.duration_since(since) < NOBODYS {
            continue;
        }
        // In one transaction with the look at whether somebody has it after all.
        match membership::network::remove(store, network.id.as_str(), false).await {
            Ok(gone) => tracing::info!(network = %gone.name, "no Docker has this network; removed"),
            Err(err) => tracing::debug!(network = %network.name, %err, "it is not removed"),
        }
    }
    seen.nobodys = nobodys;
    Ok(())
}

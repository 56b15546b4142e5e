//! This host's own endpoints in networks. One is written when an uplink needs it and removed with the
//! last attachment. Its id is made from the host's name, so that it needs no note on disk.
//!
//! Where packets go as they are it says more: that this host takes them. So there it comes after the
//! uplink and the rules, and goes when these cannot be had.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use membership::endpoint::{self, EndpointSpec};
use membership::gateway;
use membership::key::{EndpointId, NetworkId};
use membership::record::NetworkRecord;

use crate::agent::Agent;
use crate::agent::networks::LocalNetwork;
use crate::agent::state::Stage;
use crate::agent::tables::ECHO;
use crate::agent::tasks::SessionState;
use crate::driver::attach;

/// How long uplink or rules may be missing before other hosts are told.
const UNREADY: Duration = Duration::from_secs(60);

/// This host's own addresses in a network, as the store last told.
pub fn addresses(agent: &Agent, record: &NetworkRecord) -> Vec<IpAddr> {
    let Some(id) = gateway::host_endpoint(&agent.name) else { return Vec::new() };
    if !gateway::has_host_endpoints(record) {
        return Vec::new();
    }
    agent.tables.view(|view| {
        let found = view.endpoint(&record.id, &id).filter(|item| item.record.host == agent.name);
        found.map(|item| item.record.ips.clone()).unwrap_or_default()
    })
}

/// Whether this host takes packets of a network as they are, where such may come.
async fn is_ready(agent: &Agent, local: &LocalNetwork, record: &NetworkRecord) -> bool {
    if !gateway::goes_direct(record) {
        return true;
    }
    let uplink = local.router.lock().await.uplink.as_ref().map(|(uplink, _)| uplink.name.clone());
    let Some(host) = agent.routers.host() else { return false };
    let forwards = |v6: bool| if v6 { host.forwarding.v6 } else { host.forwarding.v4 };
    let has = |v6: bool| record.subnets.iter().any(|subnet| subnet.addr().is_ipv6() == v6);
    let mut families = agent.config.vteps.iter().map(|vtep| vtep.bind.is_ipv6());
    uplink.is_some_and(|uplink| host.uplinks.contains(&uplink))
        && families.all(|v6| !has(v6) || forwards(v6))
}

/// Writes this host's own endpoints where they are needed, and removes those that are not. Does
/// nothing while this host is not present in the store: it may be another's name by now.
pub async fn settle(agent: &Agent) {
    let Some(id) = gateway::host_endpoint(&agent.name) else { return };
    let there = agent.session().state == SessionState::Held && agent.tables.is_complete();
    if !there || !agent.watch_status().is_connected() {
        return;
    }
    let mut unready = agent.routers.publishing.lock().await;
    let mut wanted = BTreeSet::new();
    for local in agent.networks.all().await {
        let Some(record) = agent.known_network(&local.id) else { continue };
        if !gateway::has_host_endpoints(&record) {
            continue;
        }
        if is_ready(agent, &local, &record).await {
            unready.remove(&record.id);
        } else {
            let since = *unready.entry(record.id.clone()).or_insert_with(Instant::now);
            if since.elapsed() < UNREADY {
                wanted.insert(record.id.clone());
            }
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
                super::settle(agent, &local).await;
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

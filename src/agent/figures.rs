//! The agent's figures for the metrics endpoint.

use std::time::Duration;

use super::Agent;
use super::tasks::SessionState;
use crate::datapath::drop::DropReason;
use crate::telemetry::metrics::{self, Figures};

/// This moment's figures.
#[must_use]
pub fn figures(agent: &Agent) -> Figures {
    let snapshot = agent.tables.reader().load();
    let mut drops = Vec::new();
    for (reason, found) in DropReason::ALL.iter().zip(agent.datapath.drops()) {
        let direction = reason.direction().name();
        drops.push((reason.name(), direction, String::new(), found.without_network));
        for (network, count) in found.by_network {
            drops.push((reason.name(), direction, network.to_string(), count));
        }
    }
    let traffic = agent.datapath.traffic().into_iter();
    let ports = traffic.map(|(network, values)| (network.to_string(), values)).collect();
    let bounds = super::bounds::all(agent)
        .into_iter()
        .map(|bound| metrics::Bound {
            name: bound.name,
            used: bound.used.map(|used| used as f64),
            limit: bound.limit as f64,
            high: bound.high.map(|high| high as f64),
        })
        .collect();
    let truth = |value: bool| if value { 1.0 } else { 0.0 };
    let macs: usize = snapshot.networks().map(|(_, tables)| tables.macs_len()).sum();
    let neighbors: usize = snapshot.networks().map(|(_, tables)| tables.neighbors_len()).sum();
    let (revision, hosts, endpoints) = agent
        .tables
        .view(|view| (view.revision().0, view.hosts().count(), view.endpoints().count()));
    let convergence = agent.tables.convergence();
    let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
    let gauges = vec![
        (
            "skybridge_store_connected",
            "Whether the store's watch is connected",
            truth(agent.watch_status().is_connected()),
        ),
        (
            "skybridge_session_held",
            "Whether this host's lease is held",
            truth(agent.session().state == SessionState::Held),
        ),
        ("skybridge_store_revision", "Store revision of the tables", revision as f64),
        ("skybridge_generation", "Generation of the tables", snapshot.generation().0 as f64),
        ("skybridge_hosts", "Hosts known", hosts as f64),
        ("skybridge_endpoints", "Endpoints known", endpoints as f64),
        ("skybridge_fdb_entries", "FDB entries on this host", macs as f64),
        ("skybridge_neighbors", "Neighbor entries on this host", neighbors as f64),
        (
            "skybridge_convergence_p50_seconds",
            "From a change's arrival to the tables that hold it, half of the last 1000",
            seconds(convergence.changes.p50_us),
        ),
        (
            "skybridge_convergence_p99_seconds",
            "From a change's arrival to the tables that hold it, 99 of 100 of the last 1000",
            seconds(convergence.changes.p99_us),
        ),
        (
            "skybridge_convergence_max_seconds",
            "From a change's arrival to the tables that hold it, the longest since the start",
            seconds(convergence.changes.max_us),
        ),
        (
            "skybridge_own_writes_p50_seconds",
            "From the request for an endpoint here to the tables that hold it, half of the last 1000",
            seconds(convergence.own.p50_us),
        ),
        (
            "skybridge_own_writes_p99_seconds",
            "From the request for an endpoint here to the tables that hold it, 99 of 100 of the last 1000",
            seconds(convergence.own.p99_us),
        ),
        (
            "skybridge_listing_seconds",
            "The last listing of the store, from its beginning to the tables that hold it",
            seconds(convergence.listing.map_or(0, |listing| listing.took_us)),
        ),
        (
            "skybridge_uptime_seconds",
            "Seconds since the agent started",
            agent.started.elapsed().as_secs_f64(),
        ),
    ];
    Figures { workers: agent.datapath.counters(), ports, drops, bounds, gauges }
}

//! How the agent and the hosts are.

use std::collections::BTreeSet;

use membership::key::HostName;
use membership::record::{HostRecord, Mode};
use membership::watch::WatchStatus;

use super::listings::drops;
use super::network::networks;
use super::{Agent, Answer};
use crate::agent::tasks::{self, SessionState};
use crate::control::types;

pub(super) async fn status(agent: &Agent) -> Answer<types::Status> {
    let since = |instant: tokio::time::Instant| instant.elapsed().as_millis() as u64;
    let revision = agent.tables.view(|view| view.revision().0);
    let listed = agent.tables.is_complete();
    let (state, since_ms, cause) = match agent.watch_status() {
        WatchStatus::Connected { since: at, .. } if listed => {
            (types::StoreState::Connected, since(at), None)
        }
        WatchStatus::Connected { since: at, .. } => {
            (types::StoreState::Connecting, since(at), None)
        }
        WatchStatus::Disconnected { since: at, cause } => {
            (types::StoreState::Away, since(at), Some(cause))
        }
    };
    let session = agent.session();
    let all = networks(agent).await?;
    let drops_total = drops(agent).iter().map(|drop| drop.count).sum();
    Ok(types::Status {
        ready: listed,
        host: agent.name.to_string(),
        id: agent.id.to_string(),
        incarnation: agent.incarnation(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: agent.started.elapsed().as_millis() as u64,
        store: types::Store {
            state,
            endpoint: Some(agent.store.endpoints()),
            revision: Some(revision).filter(|revision| *revision != 0),
            since_ms,
            cause,
            embedded: agent.embedded.clone(),
        },
        session: types::Session {
            state: match session.state {
                SessionState::Held => types::SessionState::Held,
                SessionState::Lost => types::SessionState::Lost,
                SessionState::Starting => types::SessionState::Starting,
            },
            lease: session.lease.map(|lease| format!("{lease:x}")),
            ttl_ms: session.ttl.as_millis() as u64,
        },
        convergence: Some(agent.tables.convergence()),
        reload: agent.last_reload(),
        datapath: types::Datapath {
            workers: agent.datapath.config().workers as u64,
            generation: agent.tables.reader().load().generation().0,
            offloads: tasks::offloads(agent).await,
            vteps: own_vteps(agent),
            mtu: agent.datapath.underlay_mtu(),
        },
        outside: outside(agent),
        networks: all,
        drops_total,
        warnings: agent
            .warnings()
            .into_iter()
            .map(|warning| types::Warning {
                since_ms: warning.since.elapsed().as_millis() as u64,
                text: warning.text,
                next_step: warning.next_step,
            })
            .collect(),
    })
}

fn outside(agent: &Agent) -> Option<types::Outside> {
    let host = agent.routers.host()?;
    Some(types::Outside {
        table: host.table?,
        forwards_ipv4: host.forwarding.v4,
        forwards_ipv6: host.forwarding.v6,
        changed: host.changed.into_iter().collect(),
        permission: host.permission.iter().map(ToString::to_string).collect(),
        refused: host.refused.clone(),
        reasserted: host.reasserted,
        udp_ports: host.udp_ports.map(|ports| format!("{}-{}", ports.start(), ports.end())),
    })
}

fn own_vteps(agent: &Agent) -> Vec<types::HostVtep> {
    let config = agent.datapath.config();
    config
        .addresses
        .iter()
        .flat_map(|address| {
            config.ports.iter().map(|port| types::HostVtep { address: *address, port: *port })
        })
        .collect()
}

fn path_to(agent: &Agent, host: &HostName) -> Option<types::HostPath> {
    let now = agent.tables.now();
    let path = agent.paths.of(host, now)?;
    let ways = path.ways.iter().map(|report| types::HostWay {
        way: report.way.name().to_owned(),
        reaches: report.reaches,
        arrives: report.arrives,
        works_ms: report.works_since.map(|at| now.since(at).0),
    });
    Some(types::HostPath {
        used: path.used.name().to_owned(),
        why: path.why,
        since_ms: path.since.as_millis() as u64,
        ways: ways.collect(),
    })
}

/// The modes that the VTEP which a host is reached by first can receive.
fn modes(record: &HostRecord) -> Vec<String> {
    let all = [Mode::Vxlan, Mode::IpIp, Mode::IpUdp];
    let Some(vtep) = record.vteps.first() else { return Vec::new() };
    all.iter().filter(|mode| vtep.carries(**mode)).map(ToString::to_string).collect()
}

pub(super) fn hosts(agent: &Agent) -> Vec<types::Host> {
    agent.tables.reconciler(|reconciler, view| {
        view.hosts()
            .filter_map(|(name, host)| {
                let record = host.record()?;
                let mut endpoints = 0;
                let mut networks = BTreeSet::new();
                for item in view.endpoints().filter(|item| item.record.host == *name) {
                    endpoints += 1;
                    networks.insert(item.record.network.clone());
                }
                let suspect =
                    reconciler.suspects().find(|(other, _)| *other == name).map(|(_, at)| at);
                Some(types::Host {
                    name: name.to_string(),
                    id: record.id.to_string(),
                    incarnation: record.incarnation,
                    vteps: record
                        .vteps
                        .iter()
                        .map(|vtep| types::HostVtep { address: vtep.advertise, port: vtep.port })
                        .collect(),
                    mtu: record.underlay_mtu,
                    modes: modes(record),
                    version: record.software.clone(),
                    state: if host.is_present() {
                        types::HostState::Alive
                    } else {
                        types::HostState::Suspect
                    },
                    since_ms: suspect.map(|at| agent.tables.now().since(at).0),
                    is_self: *name == agent.name,
                    path: path_to(agent, name),
                    networks: networks.len() as u64,
                    endpoints,
                })
            })
            .collect()
    })
}

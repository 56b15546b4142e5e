//! Tables, endpoints, drops and counters as listings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use encap::MacAddr;
use fdb::{NetworkKey, NetworkTables, Origin, Place, Snapshot};
use membership::gateway;
use membership::key::NetworkId;
use membership::record::{EndpointRecord, NetworkRecord};

use super::Agent;
use crate::agent::state::{Attachment, Publication, Stage};
use crate::agent::{bounds, tasks};
use crate::control::types;
use crate::datapath::drop::{Direction, DropReason};
use crate::driver::offline;
use crate::telemetry::counters::{PortCounters, WorkerCounters};

/// Where a destination is.
pub(super) struct PlaceOf {
    pub(super) kind: types::PlaceKind,
    pub(super) vtep: Option<IpAddr>,
    pub(super) host: Option<String>,
}

impl PlaceOf {
    pub(super) fn of(snapshot: &Snapshot, place: Place) -> Self {
        match place {
            Place::Local => Self { kind: types::PlaceKind::Local, vtep: None, host: None },
            Place::Vtep(key) => {
                let vtep = snapshot.vtep(key);
                Self {
                    kind: types::PlaceKind::Vtep,
                    vtep: vtep.map(|vtep| vtep.address),
                    host: vtep.and_then(|vtep| vtep.host.as_deref().map(str::to_owned)),
                }
            }
        }
    }
}

/// Who says so.
pub(super) struct SourceOf {
    pub(super) kind: types::SourceKind,
    pub(super) revision: Option<i64>,
    pub(super) age_ms: Option<u64>,
}

impl SourceOf {
    pub(super) fn of(agent: &Agent, origin: Origin) -> Self {
        let millis = |age: Duration| age.as_millis() as u64;
        match origin {
            Origin::Learned { at } => Self {
                kind: types::SourceKind::Learned,
                revision: None,
                age_ms: Some(agent.tables.now().since(at).0),
            },
            Origin::Static => {
                Self { kind: types::SourceKind::Static, revision: None, age_ms: None }
            }
            Origin::Store { revision } => Self {
                kind: types::SourceKind::Store,
                revision: Some(revision.0),
                age_ms: agent.tables.age(revision).map(millis),
            },
        }
    }
}

impl SourceOf {
    /// With what came from kernel devices told from what somebody wrote down.
    pub(super) fn of_import(mut self, imported: &BTreeSet<MacAddr>, mac: MacAddr) -> Self {
        if self.kind == types::SourceKind::Static && imported.contains(&mac) {
            self.kind = types::SourceKind::Imported;
        }
        self
    }
}

/// The MACs of a network that are known from kernel devices.
pub(super) fn imported(agent: &Agent, tables: &NetworkTables) -> BTreeSet<MacAddr> {
    let Ok(id) = NetworkId::new(&*tables.params().id) else { return BTreeSet::new() };
    let Some(record) = agent.known_network(&id) else { return BTreeSet::new() };
    let known = record.static_vteps.iter().flat_map(|vtep| &vtep.imported);
    known.map(|known| known.mac).collect()
}

pub(super) fn endpoints(agent: &Agent, only: Option<&NetworkRecord>) -> Vec<types::Endpoint> {
    let notes: BTreeMap<String, Attachment> =
        agent.attachments().into_iter().map(|note| (note.endpoint.clone(), note)).collect();
    let now = membership::record::now_seconds();
    let conflicts = agent.tables.reconciler(|reconciler, _| reconciler.conflicts());
    let losers: BTreeSet<&str> = conflicts
        .iter()
        .flat_map(|conflict| conflict.losers.iter().map(|(endpoint, _)| endpoint.as_str()))
        .collect();
    agent.tables.view(|view| {
        let name_of = |id: &NetworkId| {
            view.network(id).map_or_else(|| id.to_string(), |item| item.record.name.to_string())
        };
        let unsaid = |record: &EndpointRecord| {
            let note = notes.get(record.id.as_str());
            note.is_some_and(|note| note.publication != Publication::Done)
        };
        let listed = |record: &EndpointRecord, revision: i64| types::Endpoint {
            id: record.id.to_string(),
            name: record.name.clone(),
            network: name_of(&record.network),
            host: record.host.to_string(),
            mac: record.mac,
            ips: record.ips.clone(),
            age_ms: Some(now.saturating_sub(record.created) * 1000),
            revision: (!unsaid(record)).then_some(revision),
            state: match losers.contains(record.id.as_str()) {
                true => types::EndpointState::Quarantined,
                false => state_of(agent, record, &notes, view.host(&record.host)),
            },
        };
        // What is quarantined may have no record any more, and must be seen all the same.
        let cut_off = notes.values().filter(|note| note.stage == Stage::Quarantined);
        let cut_off: Vec<EndpointRecord> = cut_off
            .filter_map(|note| offline::noted(agent, note))
            .filter(|record| view.endpoint(&record.network, &record.id).is_none())
            .collect();
        let cut_off = cut_off.iter().map(|record| types::Endpoint {
            age_ms: None,
            revision: None,
            ..listed(record, 0)
        });
        let here = |network: &NetworkId| only.is_none_or(|only| only.id == *network);
        let wanted = only.map(|only| only.name.as_str());
        view.endpoints()
            .filter(|item| here(&item.record.network))
            .map(|item| listed(&item.record, item.revision))
            .chain(cut_off.filter(|item| wanted.is_none_or(|name| name == item.network)))
            .collect()
    })
}

fn state_of(
    agent: &Agent,
    record: &EndpointRecord,
    notes: &BTreeMap<String, Attachment>,
    host: Option<&membership::view::Host>,
) -> types::EndpointState {
    if record.host == agent.name {
        let note = notes.get(record.id.as_str());
        return match note.map(|note| (note.stage, note.publication)) {
            Some((Stage::Attaching | Stage::Reserved, _)) => types::EndpointState::Attaching,
            Some((Stage::Attached, Publication::Done)) => types::EndpointState::Attached,
            Some((Stage::Attached, _)) => types::EndpointState::Queued,
            Some((Stage::Quarantined, _)) => types::EndpointState::Quarantined,
            None if gateway::is_host_endpoint(&record.id) => types::EndpointState::Attached,
            Some((Stage::Detaching, _)) | None => types::EndpointState::Detaching,
        };
    }
    if host.is_some_and(membership::view::Host::is_present) {
        types::EndpointState::Attached
    } else {
        types::EndpointState::Suspect
    }
}

fn network_name(snapshot: &Snapshot, key: NetworkKey) -> String {
    snapshot
        .network(key)
        .map_or_else(|| key.0.to_string(), |tables| tables.params().name.to_string())
}

pub(super) fn drops(agent: &Agent) -> Vec<types::Drops> {
    let mut listed = Vec::new();
    for (reason, found) in DropReason::ALL.iter().zip(agent.datapath.drops()) {
        let mut list = |network: Option<String>, count: u64| {
            listed.push(types::Drops {
                reason: reason.name().to_owned(),
                direction: match reason.direction() {
                    Direction::Inbound => types::Direction::Inbound,
                    Direction::Outbound => types::Direction::Outbound,
                },
                network,
                endpoint: None,
                count,
                description: reason.description().to_owned(),
                hint: reason.hint().to_owned(),
            });
        };
        if found.without_network != 0 || found.by_network.is_empty() {
            list(None, found.without_network);
        }
        for (network, count) in found.by_network {
            list(Some(network.to_string()), count);
        }
    }
    listed
}

/// What the rules at the sandboxes' veths refused, which never reached the switch.
pub(super) async fn bridge_drops(agent: &Agent) -> Vec<types::Drops> {
    let mut listed = Vec::new();
    let snapshot = agent.tables.reader().load_full();
    for local in agent.networks.all().await {
        let Ok(found) = crate::link::source_check::drops(&local.namespace).await else { continue };
        let attached = agent.attachments().into_iter();
        let endpoints: BTreeMap<String, String> = attached
            .map(|note| (agent.networks.owner().port(&note.endpoint), note.endpoint))
            .collect();
        let names = [
            ("veth_source_mac", "A sandbox sent a frame from a MAC that is not its own."),
            ("veth_source_arp", "A sandbox claimed an address that is not its own in ARP."),
            ("veth_source_ip", "A sandbox sent a packet from an address that is not its own."),
            ("veth_source_nd", "A sandbox claimed an address that is not its own in ND."),
        ];
        for (check, (reason, description)) in names.into_iter().enumerate() {
            let mut list = |endpoint: Option<String>, count: u64| {
                listed.push(types::Drops {
                    reason: reason.to_owned(),
                    direction: types::Direction::Outbound,
                    network: Some(network_name(&snapshot, local.key)),
                    endpoint,
                    count,
                    description: description.to_owned(),
                    hint: "that endpoint's sandbox forges addresses, or was given further ones by \
                           hand"
                        .to_owned(),
                });
            };
            let counts = found.iter().map(|(port, drops)| {
                let counts = [drops.mac, drops.arp, drops.ip + drops.ip6, drops.nd];
                (port, counts.get(check).copied().unwrap_or(0))
            });
            let counts: Vec<_> = counts.filter(|(_, count)| *count != 0).collect();
            if counts.is_empty() {
                list(None, 0);
            }
            for (port, count) in counts {
                list(endpoints.get(port).cloned(), count);
            }
        }
    }
    listed
}

pub(super) fn stats(agent: &Agent) -> types::Stats {
    let workers = agent.datapath.counters();
    let mut counters: Vec<types::Counter> = WorkerCounters::DESCRIPTIONS
        .iter()
        .enumerate()
        .map(|(index, (name, unit, help))| {
            let each: Vec<u64> =
                workers.iter().map(|values| values.get(index).copied().unwrap_or(0)).collect();
            types::Counter {
                name: (*name).to_owned(),
                help: (*help).to_owned(),
                unit: (*unit).to_owned(),
                value: each.iter().sum(),
                workers: each,
            }
        })
        .collect();
    counters.extend(tasks::table_counters(agent));
    let networks = agent.datapath.traffic().into_iter();
    let networks = networks
        .map(|(network, values)| types::NetworkStats {
            network: network.to_string(),
            counters: PortCounters::DESCRIPTIONS
                .iter()
                .zip(values)
                .map(|((name, unit, help), value)| types::Counter {
                    name: (*name).to_owned(),
                    help: (*help).to_owned(),
                    unit: (*unit).to_owned(),
                    value,
                    workers: Vec::new(),
                })
                .collect(),
        })
        .collect();
    let limits = bounds::all(agent)
        .into_iter()
        .map(|bound| types::Limit {
            name: bound.name.to_owned(),
            help: bound.help.to_owned(),
            unit: bound.unit.to_owned(),
            used: bound.used,
            limit: bound.limit,
            high: bound.high,
        })
        .collect();
    types::Stats {
        uptime_ms: agent.started.elapsed().as_millis() as u64,
        workers: workers.len() as u64,
        counters,
        networks,
        limits,
    }
}

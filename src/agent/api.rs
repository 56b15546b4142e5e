//! The control API's operations: requests to deeds, tables to listings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fdb::{NetworkKey, NetworkTables, Origin, OriginKind, Place, Snapshot};
use membership::key::{NetworkId, NetworkName};
use membership::network::{self, NetworkSpec};
use membership::record::{EndpointRecord, Mode, NetworkRecord, SourceCheck, StaticMac, StaticVtep};
use membership::watch::WatchStatus;

use super::networks::TAP;
use super::state::Stage;
use super::tasks::SessionState;
use super::{Agent, ECHO_TIMEOUT, network_error};
use crate::control::Api;
use crate::control::types::{self, Error};
use crate::datapath::drop::{Direction, DropReason};
use crate::driver::attach;
use crate::telemetry::counters::{PortCounters, WorkerCounters};

type Answer<T> = Result<T, Error>;

/// The agent as the control server sees it.
#[derive(Clone)]
pub struct Control(pub Arc<Agent>);

impl Api for Control {
    async fn status(&self) -> Answer<types::Status> {
        status(&self.0).await
    }

    async fn hosts(&self) -> Answer<Vec<types::Host>> {
        Ok(hosts(&self.0))
    }

    async fn networks(&self) -> Answer<Vec<types::Network>> {
        networks(&self.0).await
    }

    async fn network(&self, network: String) -> Answer<types::NetworkDetail> {
        let record = self.0.network_record(&network).await?;
        detail(&self.0, &record).await
    }

    async fn create_network(&self, request: types::CreateNetwork) -> Answer<types::NetworkDetail> {
        let agent = &self.0;
        let spec = spec_of(request)?;
        let record =
            network::create(&agent.store, &spec).await.map_err(|err| network_error(&err))?;
        agent.tables.wait_for_network(&record.id, true, ECHO_TIMEOUT).await?;
        tracing::info!(network = %record.name, vni = %record.vni, "network created");
        detail(agent, &record).await
    }

    async fn update_network(
        &self,
        network: String,
        request: types::UpdateNetwork,
    ) -> Answer<types::NetworkDetail> {
        let agent = &self.0;
        // Options are tried on a copy first, so that a wrong one is told as a bad request.
        let mut trial = (*agent.network_record(&network).await?).clone();
        change(&mut trial, &request)?;
        let record = network::update(&agent.store, &network, |record| {
            // What the trial took, a newer record of the same network takes too.
            let _ = change(record, &request);
            Ok(())
        })
        .await
        .map_err(|err| network_error(&err))?;
        let id = record.id.clone();
        let wanted = record.clone();
        agent
            .tables
            .wait(ECHO_TIMEOUT, move |view| {
                view.network(&id).is_some_and(|item| *item.record == wanted)
            })
            .await?;
        super::tasks::settle_mtus(agent).await;
        detail(agent, &record).await
    }

    async fn remove_network(&self, network: String) -> Answer<()> {
        let agent = &self.0;
        let record = network::remove(&agent.store, &network, false)
            .await
            .map_err(|err| network_error(&err))?;
        agent.tables.wait_for_network(&record.id, false, ECHO_TIMEOUT).await?;
        tracing::info!(network = %record.name, "network removed");
        Ok(())
    }

    async fn vteps(&self, network: String) -> Answer<Vec<types::StaticVtep>> {
        let record = self.0.network_record(&network).await?;
        Ok(static_vteps(&self.0, &record))
    }

    async fn add_vtep(
        &self,
        network: String,
        request: types::VtepAdd,
    ) -> Answer<types::StaticVtep> {
        let agent = &self.0;
        let mut vtep = StaticVtep::new(request.address);
        vtep.port = request.port;
        vtep.macs = request
            .macs
            .into_iter()
            .map(|known| StaticMac { mac: known.mac, ips: known.ips })
            .collect();
        let record = network::vtep_add(&agent.store, &network, &vtep)
            .await
            .map_err(|err| network_error(&err))?;
        wait_for_record(agent, &record).await?;
        static_vteps(agent, &record)
            .into_iter()
            .find(|listed| listed.address == vtep.address)
            .ok_or_else(|| Error::internal("the VTEP was added and is gone again"))
    }

    async fn remove_vtep(&self, network: String, address: IpAddr) -> Answer<()> {
        let agent = &self.0;
        let record = network::vtep_remove(&agent.store, &network, address)
            .await
            .map_err(|err| network_error(&err))?;
        wait_for_record(agent, &record).await
    }

    async fn namespace(&self, network: String) -> Answer<types::Namespace> {
        let agent = &self.0;
        let record = agent.network_record(&network).await?;
        let local = agent.networks.get(&record.id).await.ok_or_else(|| {
            Error::not_found(format!("network {} is not set up on this host", record.name))
                .next_step("it is as soon as a sandbox of this host is attached to it")
        })?;
        Ok(types::Namespace {
            network: record.name.to_string(),
            path: local.namespace.pin().to_owned(),
            bridge: crate::link::names::BRIDGE.to_owned(),
            port: TAP.to_owned(),
        })
    }

    async fn attach(&self, request: types::Attach) -> Answer<types::Attachment> {
        attach::attach(&self.0, request).await
    }

    async fn detach(&self, request: types::Detach) -> Answer<Vec<types::Detached>> {
        attach::detach(&self.0, request).await
    }

    async fn endpoints(&self, network: Option<String>) -> Answer<Vec<types::Endpoint>> {
        let only = self.only(network).await?;
        Ok(endpoints(&self.0, only.as_deref()))
    }

    async fn fdb(&self, network: Option<String>) -> Answer<Vec<types::FdbEntry>> {
        let only = self.only(network).await?;
        let mut listed = Vec::new();
        self.each_network(only.as_deref(), |snapshot, tables| {
            for (mac, entry) in tables.macs() {
                let place = PlaceOf::of(snapshot, entry.place);
                let source = SourceOf::of(&self.0, entry.origin);
                listed.push(types::FdbEntry {
                    network: tables.params().name.to_string(),
                    vni: tables.params().vni.get(),
                    mac,
                    place: place.kind,
                    vtep: place.vtep,
                    host: place.host.or_else(|| self.own_name(entry.place)),
                    source: source.kind,
                    revision: source.revision,
                    age_ms: source.age_ms,
                });
            }
        });
        Ok(listed)
    }

    async fn neighbors(&self, network: Option<String>) -> Answer<Vec<types::NeighborEntry>> {
        let only = self.only(network).await?;
        let mut listed = Vec::new();
        self.each_network(only.as_deref(), |snapshot, tables| {
            for (ip, neighbor) in tables.neighbors() {
                let place = PlaceOf::of(snapshot, neighbor.place);
                let source = SourceOf::of(&self.0, neighbor.origin);
                listed.push(types::NeighborEntry {
                    network: tables.params().name.to_string(),
                    vni: tables.params().vni.get(),
                    ip,
                    mac: neighbor.mac,
                    place: place.kind,
                    vtep: place.vtep,
                    host: place.host.or_else(|| self.own_name(neighbor.place)),
                    source: source.kind,
                    revision: source.revision,
                    age_ms: source.age_ms,
                });
            }
        });
        Ok(listed)
    }

    async fn drops(&self) -> Answer<Vec<types::Drops>> {
        let mut listed = drops(&self.0);
        listed.extend(bridge_drops(&self.0).await);
        Ok(listed)
    }

    async fn store(&self) -> Answer<types::StoreAccess> {
        Ok(super::store::access(&self.0))
    }

    async fn make_token(&self, request: types::MakeToken) -> Answer<types::Token> {
        super::store::make_token(&self.0, request).await
    }

    async fn stats(&self) -> Answer<types::Stats> {
        Ok(stats(&self.0))
    }
}

impl Control {
    async fn only(&self, network: Option<String>) -> Answer<Option<Arc<NetworkRecord>>> {
        match network {
            Some(name) => self.0.network_record(&name).await.map(Some),
            None => Ok(None),
        }
    }

    fn each_network(
        &self,
        only: Option<&NetworkRecord>,
        mut visit: impl FnMut(&Snapshot, &NetworkTables),
    ) {
        let snapshot = self.0.tables.reader().load();
        for (_, tables) in snapshot.networks() {
            if only.is_none_or(|record| *record.id.as_str() == *tables.params().id) {
                visit(&snapshot, tables);
            }
        }
    }

    fn own_name(&self, place: Place) -> Option<String> {
        (place == Place::Local).then(|| self.0.name.to_string())
    }
}

struct PlaceOf {
    kind: types::PlaceKind,
    vtep: Option<IpAddr>,
    host: Option<String>,
}

impl PlaceOf {
    fn of(snapshot: &Snapshot, place: Place) -> Self {
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

struct SourceOf {
    kind: types::SourceKind,
    revision: Option<i64>,
    age_ms: Option<u64>,
}

impl SourceOf {
    fn of(agent: &Agent, origin: Origin) -> Self {
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

/// Waits until this host's watch has told of what the store now has.
async fn wait_for_record(agent: &Agent, record: &NetworkRecord) -> Answer<()> {
    let id = record.id.clone();
    let vteps = record.static_vteps.clone();
    agent
        .tables
        .wait(ECHO_TIMEOUT, move |view| {
            view.network(&id).is_some_and(|item| item.record.static_vteps == vteps)
        })
        .await
}

fn spec_of(request: types::CreateNetwork) -> Answer<NetworkSpec> {
    let name =
        NetworkName::new(&request.name).map_err(|err| Error::bad_request(err.to_string()))?;
    let mut spec = NetworkSpec::new(name, request.subnets);
    spec.mode = match request.mode {
        types::Mode::Vxlan => Mode::Vxlan,
    };
    spec.vni = match request.vni {
        Some(number) => Some(
            encap::Vni::new(number)
                .ok_or_else(|| Error::bad_request(encap::VniError.to_string()))?,
        ),
        None => None,
    };
    spec.mtu = request.mtu;
    spec.gateways = match request.gateway {
        types::Gateway::Addresses(addresses) => addresses,
        types::Gateway::None => Vec::new(),
    };
    spec.labels = request.labels;
    if request.nat_outgoing {
        return Err(unsupported_nat());
    }
    for (name, value) in &request.options {
        set_option(&mut spec.options, name, value)?;
    }
    Ok(spec)
}

fn set_option(
    options: &mut membership::record::NetworkOptions,
    name: &str,
    value: &str,
) -> Answer<()> {
    match (name.replace('-', "_").as_str(), value) {
        ("nat_outgoing", _) => return Err(unsupported_nat()),
        ("local", "switch") => {
            return Err(Error::unsupported("this version leaves same-host traffic to the bridge")
                .next_step("leave the option `local` out"));
        }
        _ => {}
    }
    options.set(name, value).map_err(|err| Error::bad_request(err.to_string()))
}

fn unsupported_nat() -> Error {
    Error::unsupported("this version has no gateway and no NAT")
        .next_step("leave `nat_outgoing` out; give the sandbox a second interface for the world")
}

fn change(record: &mut NetworkRecord, request: &types::UpdateNetwork) -> Answer<()> {
    if let Some(mtu) = request.mtu {
        record.mtu = (mtu != 0).then_some(mtu);
    }
    if request.nat_outgoing == Some(true) {
        return Err(unsupported_nat());
    }
    for (name, value) in &request.options {
        match value {
            Some(value) => set_option(&mut record.options, name, value)?,
            None => {
                let defaults = membership::record::NetworkOptions::default();
                record
                    .options
                    .copy(name, &defaults)
                    .map_err(|err| Error::bad_request(err.to_string()))?;
            }
        }
    }
    for (label, value) in &request.labels {
        match value {
            Some(value) => {
                record.labels.insert(label.clone(), value.clone());
            }
            None => {
                record.labels.remove(label);
            }
        }
    }
    Ok(())
}

async fn status(agent: &Agent) -> Answer<types::Status> {
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
            offloads: super::tasks::offloads(agent).await,
            vteps: own_vteps(agent),
            mtu: agent.datapath.config().underlay_mtu,
        },
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

fn hosts(agent: &Agent) -> Vec<types::Host> {
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
                    version: record.software.clone(),
                    state: if host.is_present() {
                        types::HostState::Alive
                    } else {
                        types::HostState::Suspect
                    },
                    since_ms: suspect.map(|at| agent.tables.now().since(at).0),
                    is_self: *name == agent.name,
                    networks: networks.len() as u64,
                    endpoints,
                })
            })
            .collect()
    })
}

async fn networks(agent: &Agent) -> Answer<Vec<types::Network>> {
    let records: Vec<Arc<NetworkRecord>> =
        agent.tables.view(|view| view.networks().map(|item| Arc::clone(&item.record)).collect());
    let mut listed = Vec::with_capacity(records.len());
    for record in records {
        listed.push(listing(agent, &record).await);
    }
    Ok(listed)
}

async fn listing(agent: &Agent, record: &NetworkRecord) -> types::Network {
    let up = agent.networks.get(&record.id).await.is_some();
    let starting = agent
        .attachments()
        .iter()
        .any(|note| note.network == record.id.as_str() && note.stage != Stage::Detaching);
    let (endpoints, hosts) = agent.tables.view(|view| {
        let hosts: BTreeSet<_> =
            view.endpoints_of(&record.id).map(|item| item.record.host.clone()).collect();
        (view.endpoint_count(&record.id), hosts.len())
    });
    types::Network {
        id: record.id.to_string(),
        name: record.name.to_string(),
        mode: record.mode.to_string(),
        vni: record.vni.get(),
        udp_port: record.udp_port.unwrap_or_else(|| own_port(agent)),
        subnets: record.subnets.clone(),
        mtu: agent.tables.network_mtu(&record.id),
        endpoints: endpoints as u64,
        hosts: hosts as u64,
        state: match (up, starting) {
            (true, _) => types::NetworkState::Up,
            (false, true) => types::NetworkState::Starting,
            (false, false) => types::NetworkState::Absent,
        },
    }
}

fn own_port(agent: &Agent) -> u16 {
    agent.datapath.config().ports.first().copied().unwrap_or(encap::vxlan::PORT)
}

async fn detail(agent: &Agent, record: &NetworkRecord) -> Answer<types::NetworkDetail> {
    let local = agent.networks.get(&record.id).await;
    let (host_names, revision, endpoints_here) = agent.tables.view(|view| {
        let names: BTreeSet<String> =
            view.endpoints_of(&record.id).map(|item| item.record.host.to_string()).collect();
        let here = view.endpoints_of(&record.id).filter(|item| item.record.host == agent.name);
        (
            names.into_iter().collect(),
            view.network(&record.id).map(|item| item.revision),
            here.count(),
        )
    });
    Ok(types::NetworkDetail {
        network: listing(agent, record).await,
        mtu_requested: record.mtu,
        gateways: record.gateways.clone(),
        nat_outgoing: record.options.nat_outgoing.unwrap_or(false),
        options: options_in_use(record),
        labels: record.labels.clone(),
        host_names,
        static_vteps: static_vteps(agent, record),
        revision,
        local: local.map(|local| types::LocalNetwork {
            namespace: local.namespace.pin().to_owned(),
            bridge: crate::link::names::BRIDGE.to_owned(),
            port: TAP.to_owned(),
            queues: u16::try_from(local.queues).unwrap_or(u16::MAX),
            endpoints: endpoints_here as u64,
            reason: None,
        }),
    })
}

/// The options by name, as `--option` takes them, with what holds where none was given.
fn options_in_use(record: &NetworkRecord) -> BTreeMap<String, String> {
    let options = &record.options;
    let swarm = options.compat.is_some();
    let learning = options.learning.unwrap_or(!record.static_vteps.is_empty());
    let check = match options.source_check {
        Some(SourceCheck::MacIp) => "mac+ip",
        Some(SourceCheck::Strict) => "strict",
        Some(SourceCheck::Mac) | None => "mac",
    };
    let rows = [
        ("broadcast", options.broadcast.unwrap_or(!swarm).to_string()),
        ("compat", if swarm { "swarm" } else { "none" }.to_owned()),
        ("flood_unknown", options.flood_unknown.unwrap_or(learning).to_string()),
        ("learning", learning.to_string()),
        ("source_check", check.to_owned()),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn static_vteps(agent: &Agent, record: &NetworkRecord) -> Vec<types::StaticVtep> {
    let revision = agent.tables.view(|view| view.network(&record.id).map(|item| item.revision));
    let snapshot = agent.tables.reader().load();
    let tables = snapshot
        .networks()
        .find(|(_, tables)| *tables.params().id == *record.id.as_str())
        .map(|(_, tables)| tables);
    record
        .static_vteps
        .iter()
        .map(|vtep| {
            let key = snapshot.vtep_by_address(vtep.address);
            let learned = tables.map_or(0, |tables| {
                tables
                    .macs()
                    .filter(|(_, entry)| entry.origin.kind() == OriginKind::Learned)
                    .filter(|(_, entry)| key.is_some_and(|key| entry.place == Place::Vtep(key)))
                    .count()
            });
            types::StaticVtep {
                network: record.name.to_string(),
                address: vtep.address,
                port: vtep.port.or(record.udp_port).unwrap_or_else(|| own_port(agent)),
                macs: vtep
                    .macs
                    .iter()
                    .map(|known| types::StaticMac { mac: known.mac, ips: known.ips.clone() })
                    .collect(),
                learned: learned as u64,
                revision,
            }
        })
        .collect()
}

fn endpoints(agent: &Agent, only: Option<&NetworkRecord>) -> Vec<types::Endpoint> {
    let stages: BTreeMap<String, Stage> =
        agent.attachments().into_iter().map(|note| (note.endpoint, note.stage)).collect();
    let now = membership::record::now_seconds();
    agent.tables.view(|view| {
        let name_of = |id: &NetworkId| {
            view.network(id).map_or_else(|| id.to_string(), |item| item.record.name.to_string())
        };
        let listed = |record: &EndpointRecord, revision: i64| types::Endpoint {
            id: record.id.to_string(),
            name: record.name.clone(),
            network: name_of(&record.network),
            host: record.host.to_string(),
            mac: record.mac,
            ips: record.ips.clone(),
            age_ms: Some(now.saturating_sub(record.created) * 1000),
            revision: Some(revision),
            state: state_of(agent, record, &stages, view.host(&record.host)),
        };
        view.endpoints()
            .filter(|item| only.is_none_or(|network| network.id == item.record.network))
            .map(|item| listed(&item.record, item.revision))
            .collect()
    })
}

fn state_of(
    agent: &Agent,
    record: &EndpointRecord,
    stages: &BTreeMap<String, Stage>,
    host: Option<&membership::view::Host>,
) -> types::EndpointState {
    if record.host == agent.name {
        return match stages.get(record.id.as_str()) {
            Some(Stage::Attaching) => types::EndpointState::Attaching,
            Some(Stage::Attached) => types::EndpointState::Attached,
            Some(Stage::Detaching) | None => types::EndpointState::Detaching,
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

fn drops(agent: &Agent) -> Vec<types::Drops> {
    let snapshot = agent.tables.reader().load();
    let mut listed = Vec::new();
    for reason in DropReason::ALL {
        let found = agent.datapath.drops(*reason);
        let mut list = |network: Option<String>, count: u64| {
            listed.push(types::Drops {
                reason: reason.name().to_owned(),
                direction: match reason.direction() {
                    Direction::Inbound => types::Direction::Inbound,
                    Direction::Outbound => types::Direction::Outbound,
                },
                network,
                count,
                description: reason.description().to_owned(),
                hint: reason.hint().to_owned(),
            });
        };
        if found.without_network != 0 || found.by_network.is_empty() {
            list(None, found.without_network);
        }
        for (key, count) in found.by_network {
            list(Some(network_name(&snapshot, key)), count);
        }
    }
    listed
}

/// What the rules at the sandboxes' veths refused, which never reached the switch.
async fn bridge_drops(agent: &Agent) -> Vec<types::Drops> {
    let mut listed = Vec::new();
    let snapshot = agent.tables.reader().load_full();
    for local in agent.networks.all().await {
        let Ok(found) = crate::link::source_check::drops(&local.namespace).await else { continue };
        let mut sums = [0u64; 4];
        for drops in found.values() {
            for (sum, count) in
                sums.iter_mut().zip([drops.mac, drops.arp, drops.ip + drops.ip6, drops.nd])
            {
                *sum += count;
            }
        }
        let names = [
            ("veth_source_mac", "A sandbox sent a frame from a MAC that is not its own."),
            ("veth_source_arp", "A sandbox claimed an address that is not its own in ARP."),
            ("veth_source_ip", "A sandbox sent a packet from an address that is not its own."),
            ("veth_source_nd", "A sandbox claimed an address that is not its own in ND."),
        ];
        for ((reason, description), count) in names.into_iter().zip(sums) {
            listed.push(types::Drops {
                reason: reason.to_owned(),
                direction: types::Direction::Outbound,
                network: Some(network_name(&snapshot, local.key)),
                count,
                description: description.to_owned(),
                hint: "a sandbox forges addresses, or was given further ones by hand".to_owned(),
            });
        }
    }
    listed
}

fn stats(agent: &Agent) -> types::Stats {
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
    counters.extend(super::tasks::table_counters(agent));
    let snapshot = agent.tables.reader().load();
    let networks = snapshot
        .networks()
        .map(|(key, tables)| {
            let values = agent.datapath.port_counters(key);
            types::NetworkStats {
                network: tables.params().name.to_string(),
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
            }
        })
        .collect();
    types::Stats {
        uptime_ms: agent.started.elapsed().as_millis() as u64,
        workers: workers.len() as u64,
        counters,
        networks,
    }
}

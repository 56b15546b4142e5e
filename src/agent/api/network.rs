//! Networks: requests to records, records to listings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fdb::{OriginKind, Place};
use membership::gateway;
use membership::ipam;
use membership::key::{HostName, NetworkName};
use membership::network::NetworkSpec;
use membership::record::{Local, Mode, NetworkOptions, NetworkRecord, RangeError, SourceCheck};

use super::{Agent, Answer};
use crate::agent::routers;
use crate::agent::state::Stage;
use crate::control::types::{self, Error};
use crate::link::names;

pub(super) fn spec_of(request: types::CreateNetwork) -> Answer<NetworkSpec> {
    let name =
        NetworkName::new(&request.name).map_err(|err| Error::bad_request(err.to_string()))?;
    let mut spec = NetworkSpec::new(name, request.subnets);
    spec.mode = match request.mode {
        types::Mode::Ipip => Mode::IpIp,
        types::Mode::Ipudp => Mode::IpUdp,
        types::Mode::Vxlan => Mode::Vxlan,
    };
    spec.vni = match request.vni {
        Some(number) => Some(
            encap::Vni::new(number)
                .ok_or_else(|| Error::bad_request(encap::VniError.to_string()))?,
        ),
        None => None,
    };
    spec.udp_port = request.udp_port;
    spec.mtu = request.mtu;
    spec.gateways = match request.gateway {
        types::Gateway::Addresses(addresses) => addresses,
        types::Gateway::None => Vec::new(),
    };
    for range in &request.exclude {
        let range = range.parse().map_err(|err: RangeError| Error::bad_request(err.to_string()))?;
        spec.exclude.push(range);
    }
    spec.labels = request.labels;
    if request.nat_outgoing {
        spec.options.nat_outgoing = Some(true);
    }
    for (name, value) in &request.options {
        let port = NetworkOptions::udp_port(name, value)
            .map_err(|err| Error::bad_request(err.to_string()))?;
        if port.is_none() {
            set_option(&mut spec.options, name, value)?;
        } else if spec.mode == Mode::IpUdp {
            spec.udp_port = port;
        } else {
            return Err(Error::bad_request(format!(
                "network option `udp_port` cannot be used with mode {}",
                spec.mode
            ))
            .next_step("leave it out: only networks of mode ipudp have UDP ports of their own"));
        }
    }
    Ok(spec)
}

fn set_option(options: &mut NetworkOptions, name: &str, value: &str) -> Answer<()> {
    options.set(name, value).map_err(|err| Error::bad_request(err.to_string()))
}

pub(super) fn change(record: &mut NetworkRecord, request: &types::UpdateNetwork) -> Answer<()> {
    if let Some(mtu) = request.mtu {
        record.mtu = (mtu != 0).then_some(mtu);
    }
    if let Some(nat_outgoing) = request.nat_outgoing {
        record.options.nat_outgoing = nat_outgoing.then_some(true);
    }
    for (name, value) in &request.options {
        match value {
            Some(value) => set_option(&mut record.options, name, value)?,
            None => {
                let defaults = NetworkOptions::default();
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

pub(super) async fn networks(agent: &Agent) -> Answer<Vec<types::Network>> {
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
        vni: (!record.mode.is_routed()).then_some(record.vni.get()),
        udp_port: match record.mode {
            Mode::IpIp => None,
            Mode::IpUdp => Some(membership::network::udp_ports(record).0),
            Mode::Vxlan => Some(record.udp_port.unwrap_or_else(|| own_port(agent))),
        },
        subnets: record.subnets.clone(),
        mtu: agent.tables.network_mtu(&record.id),
        reaches: reaches(record),
        endpoints: endpoints as u64,
        hosts: hosts as u64,
        state: match (up, starting) {
            (true, _) => types::NetworkState::Up,
            (false, true) => types::NetworkState::Starting,
            (false, false) => types::NetworkState::Absent,
        },
    }
}

/// What its endpoints reach beyond the network.
fn reaches(record: &NetworkRecord) -> Vec<String> {
    let all = [(gateway::masquerades(record), "world"), (gateway::reaches_hosts(record), "host")];
    all.iter().filter(|(on, _)| *on).map(|(_, word)| (*word).to_owned()).collect()
}

fn own_port(agent: &Agent) -> u16 {
    agent.datapath.config().ports.first().copied().unwrap_or(encap::vxlan::PORT)
}

pub(super) async fn detail(agent: &Agent, record: &NetworkRecord) -> Answer<types::NetworkDetail> {
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
    let router = match &local {
        Some(local) => routers::local(local).await,
        None => routers::Local::default(),
    };
    Ok(types::NetworkDetail {
        network: listing(agent, record).await,
        mtu_requested: record.mtu,
        gateways: record.gateways.clone(),
        gateway_mac: gateway::mac(record).filter(|_| !record.mode.is_routed()),
        exclude: record.exclude.iter().map(ToString::to_string).collect(),
        pools: pools(agent, record),
        nat_outgoing: gateway::masquerades(record),
        host_access: gateway::reaches_hosts(record),
        options: options_in_use(record),
        labels: record.labels.clone(),
        host_names,
        static_vteps: static_vteps(agent, record),
        revision,
        local: local.as_deref().map(|local| types::LocalNetwork {
            host_ips: router.own,
            uplink: router.interface,
            uplink_addresses: router.addresses,
            namespace: local.namespace.pin().to_owned(),
            bridge: (!record.mode.is_routed()).then(|| names::BRIDGE.to_owned()),
            port: local.port().to_owned(),
            queues: u16::try_from(local.queues).unwrap_or(u16::MAX),
            endpoints: endpoints_here as u64,
            reserved: agent.reserve.ready(&record.id).into_iter().collect(),
            reason: None,
        }),
    })
}

/// How full the subnets are, by the blocks and the endpoints.
fn pools(agent: &Agent, record: &NetworkRecord) -> Vec<types::Pool> {
    let told = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    agent.tables.view(|view| {
        let blocks = view.blocks_of(&record.id).map(|(cidr, item)| (cidr, item.record.as_ref()));
        let pool = |usage: ipam::Usage| {
            let mut hosts: BTreeMap<&str, types::PoolHost> = BTreeMap::new();
            let fresh = |host: &HostName| types::PoolHost {
                host: host.to_string(),
                endpoints: 0,
                reserved: 0,
                blocks: 0,
            };
            for (host, share) in &usage.by_host {
                let row = hosts.entry(host.as_str()).or_insert_with(|| fresh(host));
                row.reserved = share.reserved.into();
                row.blocks = share.blocks.into();
            }
            for item in view.endpoints_of(&record.id) {
                let here = item.record.ips.iter().filter(|ip| usage.subnet.contains(*ip)).count();
                if here != 0 {
                    let host = &item.record.host;
                    hosts.entry(host.as_str()).or_insert_with(|| fresh(host)).endpoints +=
                        here as u64;
                }
            }
            types::Pool {
                subnet: usage.subnet,
                capacity: told(usage.capacity),
                used: told(usage.used),
                reserved: told(usage.reserved),
                percent: usage.percent(),
                hosts: hosts.into_values().collect(),
            }
        };
        ipam::usage(record, blocks).into_iter().map(pool).collect()
    })
}

/// The options by name, as `--option` takes them, with what holds where none was given.
fn options_in_use(record: &NetworkRecord) -> BTreeMap<String, String> {
    let options = &record.options;
    let swarm = options.compat.is_some();
    let learning = options.learns(!record.static_vteps.is_empty());
    let broadcast = options.broadcast.unwrap_or(!swarm);
    let check = match options.source_check {
        Some(SourceCheck::MacIp) => "mac+ip",
        Some(SourceCheck::Strict) => "strict",
        Some(SourceCheck::Mac) | None => "mac",
    };
    let switched = match options.local {
        Some(Local::Switch) => "switch",
        Some(Local::Kernel) | None => "kernel",
    };
    if record.mode.is_routed() {
        let rows = [
            ("encapsulate", options.encapsulate.unwrap_or_default().as_str().to_owned()),
            ("host_access", gateway::reaches_hosts(record).to_string()),
            ("mss_clamp", options.mss_clamp.unwrap_or(false).to_string()),
            ("nat_outgoing", gateway::masquerades(record).to_string()),
        ];
        return rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    }
    let rows = [
        ("broadcast", broadcast.to_string()),
        ("compat", if swarm { "swarm" } else { "none" }.to_owned()),
        ("flood_rate", options.flood_rate.unwrap_or(NetworkOptions::FLOOD_RATE).to_string()),
        ("host_access", gateway::reaches_hosts(record).to_string()),
        ("nat_outgoing", gateway::masquerades(record).to_string()),
        ("flood_unknown", options.flood_unknown.unwrap_or(learning).to_string()),
        ("learning", learning.to_string()),
        ("local", switched.to_owned()),
        ("multicast", options.multicast.unwrap_or(broadcast).to_string()),
        ("source_check", check.to_owned()),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

pub(super) fn static_vteps(agent: &Agent, record: &NetworkRecord) -> Vec<types::StaticVtep> {
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
            let is_behind = |place: Place| match place {
                Place::Local => false,
                Place::Vtep(key) => {
                    snapshot.vtep(key).is_some_and(|known| known.address == vtep.address)
                }
            };
            let learned = tables.map_or(0, |tables| {
                tables
                    .macs()
                    .filter(|(_, entry)| entry.origin.kind() == OriginKind::Learned)
                    .filter(|(_, entry)| is_behind(entry.place))
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
                imported: vtep
                    .imported
                    .iter()
                    .map(|known| types::ImportedMac {
                        mac: known.mac,
                        ips: known.ips.clone(),
                        by: known.by.iter().map(ToString::to_string).collect(),
                    })
                    .collect(),
                learned: learned as u64,
                revision,
            }
        })
        .collect()
}

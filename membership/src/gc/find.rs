//! What of the store nobody has. Pure: no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use encap::MacAddr;
use ipnet::IpNet;

use super::model::{Gone, Item, Model, Network};
use super::{Finding, Kind};
use crate::ipam::plan;
use crate::key::{EndpointId, HostName, Key, NetworkId};
use crate::record::{BlockRecord, EndpointRecord};

/// How a finding is removed.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// It is only named.
    None,
    /// An endpoint of a host that is gone.
    Endpoint { network: NetworkId, endpoint: EndpointId, host: HostName, mark: Option<i64> },
    /// An address whose endpoint does not exist.
    Address { network: NetworkId, ip: IpAddr, endpoint: EndpointId, revision: i64 },
    /// A key that nothing hangs on, as long as these are absent.
    Key { key: Key, revision: i64, absent: Vec<Key> },
    /// A block that shall be this, or nothing.
    Block {
        key: Key,
        revision: i64,
        record: Option<BlockRecord>,
        gone: Option<(HostName, Option<i64>)>,
    },
    /// All addresses, MACs and blocks of a network without record and endpoints.
    Addresses(NetworkId),
    /// A key of a network without record and endpoints.
    OfNetwork { key: Key, revision: i64, network: NetworkId },
    /// The record of a host that is absent, with the mark of its absence.
    Host(HostName),
}

fn finding(kind: Kind, key: &Key, reason: impl Into<String>, action: Action) -> Finding {
    Finding { kind, key: key.to_string(), reason: reason.into(), host: None, age: None, action }
}

/// `26 h`, for people.
fn hours(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn absence(host: &HostName, gone: Gone) -> String {
    match (gone.mark, gone.age) {
        (Some(_), Some(age)) => format!("host {host} has been absent for {}", hours(age)),
        _ => format!("host {host} is absent and was said to be removed"),
    }
}

/// Everything that nobody has, in the order in which it is removed.
pub(super) fn findings(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    // Networks whose record is gone and that nobody alive is in.
    let mut dead = BTreeSet::new();
    for (id, network) in &model.networks {
        dockers(model, id, network, &mut found);
        let gone = endpoints(model, id, network, &mut found);
        if network.record.is_none() {
            let lives = network.endpoints.keys().any(|endpoint| !gone.contains(endpoint));
            if !lives {
                dead.insert(id.clone());
                leftovers(id, network, &mut found);
            }
            // Else the record may be brought back, with everything as it was.
            continue;
        }
        duplicates(id, network, &gone, &mut found);
        let freed = addresses(model, id, network, &gone, &mut found);
        macs(id, network, &gone, &mut found);
        blocks(model, id, network, &freed, &mut found);
        resting(id, network, &mut found);
    }
    let lacks =
        |network: &NetworkId| dead.contains(network) || !model.networks.contains_key(network);
    for (name, item) in &model.names {
        if let Some(record) = item.record.as_ref().filter(|record| lacks(&record.network)) {
            found.push(of_network(Kind::Name, Key::Name(name.clone()), item, &record.network));
        }
    }
    for (vni, item) in &model.vnis {
        if let Some(record) = item.record.as_ref().filter(|record| lacks(&record.network)) {
            found.push(of_network(Kind::Vni, Key::Vni(*vni), item, &record.network));
        }
    }
    if let Some(host) = &model.removed
        && model.known.contains_key(host)
        && !model.present.contains(host)
    {
        let reason = format!("host {host} is absent and was said to be removed");
        let action = Action::Host(host.clone());
        let mut known = finding(Kind::Host, &Key::KnownHost(host.clone()), reason, action);
        known.host = Some(host.clone());
        found.push(known);
    }
    found.sort_by_key(|finding| finding.kind);
    found
}

fn of_network<T>(kind: Kind, key: Key, item: &Item<T>, network: &NetworkId) -> Finding {
    let action =
        Action::OfNetwork { key: key.clone(), revision: item.revision, network: network.clone() };
    finding(kind, &key, format!("network {network} has no record"), action)
}

/// Networks of Docker on hosts that were said to be removed, or that are no network any more. One
/// that is only absent comes back with its Docker, which tells of its networks but once.
fn dockers(model: &Model, id: &NetworkId, network: &Network, found: &mut Vec<Finding>) {
    for ((host, docker), revision) in &network.dockers {
        let key = Key::Docker(id.clone(), host.clone(), docker.clone());
        let (reason, absent, age) = match model.gone(host).filter(|gone| gone.mark.is_none()) {
            Some(gone) => (absence(host, gone), Key::Host(host.clone()), gone.age),
            None if network.record.is_none() => {
                (format!("network {id} has no record"), Key::Network(id.clone()), None)
            }
            None => continue,
        };
        let action = Action::Key { key: key.clone(), revision: *revision, absent: vec![absent] };
        let mut finding = finding(Kind::Docker, &key, reason, action);
        finding.host = Some(host.clone());
        finding.age = age;
        found.push(finding);
    }
}

/// Endpoints whose hosts are gone; returns their ids.
fn endpoints(
    model: &Model,
    id: &NetworkId,
    network: &Network,
    found: &mut Vec<Finding>,
) -> BTreeSet<EndpointId> {
    let mut gone_ids = BTreeSet::new();
    for (endpoint, item) in &network.endpoints {
        let Some(record) = &item.record else { continue };
        let Some(gone) = model.gone(&record.host) else { continue };
        let key = Key::Endpoint(id.clone(), endpoint.clone());
        let action = Action::Endpoint {
            network: id.clone(),
            endpoint: endpoint.clone(),
            host: record.host.clone(),
            mark: gone.mark,
        };
        let ips: Vec<String> = record.ips.iter().map(ToString::to_string).collect();
        let reason = format!("{} ({})", absence(&record.host, gone), ips.join(", "));
        let mut finding = finding(Kind::Endpoint, &key, reason, action);
        finding.host = Some(record.host.clone());
        finding.age = gone.age.filter(|_| gone.mark.is_some());
        found.push(finding);
        gone_ids.insert(endpoint.clone());
    }
    gone_ids
}

/// What is left of a network without record and endpoints.
fn leftovers(id: &NetworkId, network: &Network, found: &mut Vec<Finding>) {
    let count =
        network.blocks.len() + network.addresses.len() + network.macs.len() + network.resting.len();
    if count == 0 {
        return;
    }
    found.push(Finding {
        kind: Kind::Addresses,
        key: format!("ipam/{id}/"),
        reason: format!("network {id} has no record and no endpoint ({count} keys)"),
        host: None,
        age: None,
        action: Action::Addresses(id.clone()),
    });
}

/// Two endpoints with one address or MAC. The address record names the one that has it.
fn duplicates(
    id: &NetworkId,
    network: &Network,
    gone: &BTreeSet<EndpointId>,
    found: &mut Vec<Finding>,
) {
    let mut ips: BTreeMap<IpAddr, Vec<&EndpointRecord>> = BTreeMap::new();
    let mut macs: BTreeMap<MacAddr, Vec<&EndpointRecord>> = BTreeMap::new();
    for (endpoint, item) in &network.endpoints {
        let Some(record) = item.record.as_ref().filter(|_| !gone.contains(endpoint)) else {
            continue;
        };
        for ip in &record.ips {
            ips.entry(*ip).or_default().push(record);
        }
        macs.entry(record.mac).or_default().push(record);
    }
    let mut tell = |what: String, holder: Option<EndpointId>, several: Vec<&EndpointRecord>| {
        if several.len() < 2 {
            return;
        }
        let named: Vec<String> =
            several.iter().map(|record| format!("{} on {}", record.id, record.host)).collect();
        let holder = holder.map_or_else(
            || "no record says whose it is".to_owned(),
            |holder| format!("it is the one of endpoint {holder}"),
        );
        let reason = format!(
            "{what} is claimed by endpoints {}; {holder}: detach the others",
            named.join(" and ")
        );
        for record in several.iter().skip(1) {
            let key = Key::Endpoint(id.clone(), record.id.clone());
            found.push(finding(Kind::Duplicate, &key, reason.clone(), Action::None));
        }
    };
    for (ip, several) in ips {
        let holder = network.addresses.get(&ip).and_then(|item| item.record.as_ref());
        tell(ip.to_string(), holder.map(|record| record.endpoint.clone()), several);
    }
    for (mac, several) in macs {
        let holder = network.macs.get(&mac).and_then(|item| item.record.as_ref());
        tell(mac.to_string(), holder.map(|record| record.endpoint.clone()), several);
    }
}

/// Addresses without endpoint; returns all that are free once everything found is removed.
fn addresses(
    model: &Model,
    id: &NetworkId,
    network: &Network,
    gone: &BTreeSet<EndpointId>,
    found: &mut Vec<Finding>,
) -> BTreeSet<IpAddr> {
    let mut freed = BTreeSet::new();
    for (ip, item) in &network.addresses {
        let Some(record) = &item.record else { continue };
        if gone.contains(&record.endpoint) {
            freed.insert(*ip);
            continue;
        }
        if network.endpoints.contains_key(&record.endpoint) {
            continue;
        }
        let absent = model.gone(&record.host);
        if record.early && absent.is_none() {
            // Its endpoint is still to come.
            continue;
        }
        let key = Key::Address(id.clone(), *ip);
        let action = Action::Address {
            network: id.clone(),
            ip: *ip,
            endpoint: record.endpoint.clone(),
            revision: item.revision,
        };
        let reason = format!("endpoint {} does not exist", record.endpoint);
        let mut finding = finding(Kind::Address, &key, reason, action);
        finding.host = Some(record.host.clone());
        found.push(finding);
        freed.insert(*ip);
    }
    freed
}

/// MACs without endpoint.
fn macs(id: &NetworkId, network: &Network, gone: &BTreeSet<EndpointId>, found: &mut Vec<Finding>) {
    for (mac, item) in &network.macs {
        let Some(record) = &item.record else { continue };
        if gone.contains(&record.endpoint) || network.endpoints.contains_key(&record.endpoint) {
            continue;
        }
        let key = Key::Mac(id.clone(), *mac);
        let reason = format!("endpoint {} does not exist", record.endpoint);
        let absent = vec![Key::Endpoint(id.clone(), record.endpoint.clone())];
        let action = Action::Key { key: key.clone(), revision: item.revision, absent };
        let mut finding = finding(Kind::Mac, &key, reason, action);
        finding.host = Some(record.host.clone());
        found.push(finding);
    }
}

/// Blocks of hosts that are gone, and blocks whose maps are wrong.
fn blocks(
    model: &Model,
    id: &NetworkId,
    network: &Network,
    freed: &BTreeSet<IpAddr>,
    found: &mut Vec<Finding>,
) {
    let mut held: BTreeMap<IpNet, BTreeSet<u32>> = BTreeMap::new();
    for (ip, item) in network.addresses.iter().filter(|(ip, _)| !freed.contains(*ip)) {
        let block = match &item.record {
            Some(record) => Some(record.block),
            // Whatever it says, it is an address of the block that it lies in.
            None => network.blocks.keys().copied().find(|cidr| cidr.contains(ip)),
        };
        if let Some((block, offset)) = block.and_then(|cidr| Some((cidr, plan::offset(cidr, *ip)?)))
        {
            held.entry(block).or_default().insert(offset);
        }
    }
    for (cidr, item) in &network.blocks {
        let Some(record) = &item.record else { continue };
        let gone = model.gone(&record.host);
        let mut wanted = record.clone();
        let offsets = held.get(cidr).cloned().unwrap_or_default();
        let mut leaked = 0;
        for offset in record.allocated.iter().filter(|offset| !offsets.contains(offset)) {
            let reserved = record.reserved.contains(offset);
            if !reserved || gone.is_some() {
                wanted.allocated.remove(offset);
                wanted.reserved.remove(offset);
                let freed = freed.contains(&plan::address(*cidr, offset));
                leaked += usize::from(!reserved && !freed);
            }
        }
        let missing = offsets.iter().filter(|offset| !record.allocated.contains(**offset)).count();
        for offset in offsets {
            wanted.allocated.insert(offset);
            wanted.reserved.remove(offset);
        }
        let key = Key::Block(id.clone(), *cidr);
        let empty = gone.is_some() && wanted.allocated.is_empty();
        let given_back = record.reserved.count() - wanted.reserved.count();
        let reason = match gone {
            Some(gone) if empty => absence(&record.host, gone),
            Some(gone) if given_back != 0 => {
                format!("{}; it reserved {given_back} addresses", absence(&record.host, gone))
            }
            _ if leaked + missing != 0 => format!(
                "its map has {leaked} addresses that nobody has, and lacks {missing} that are held"
            ),
            _ => continue,
        };
        let action = Action::Block {
            key: key.clone(),
            revision: item.revision,
            record: (!empty).then_some(wanted),
            gone: gone.map(|gone| (record.host.clone(), gone.mark)),
        };
        let mut finding = finding(Kind::Block, &key, reason, action);
        finding.host = Some(record.host.clone());
        let by_absence = gone.filter(|gone| gone.mark.is_some() && leaked + missing == 0);
        finding.age = by_absence.and_then(|gone| gone.age);
        found.push(finding);
    }
}

/// Resting addresses without a lease.
fn resting(id: &NetworkId, network: &Network, found: &mut Vec<Finding>) {
    for (ip, (revision, lease)) in &network.resting {
        if *lease == 0 {
            let key = Key::Resting(id.clone(), *ip);
            let reason = "it has no lease and would rest for ever";
            let action = Action::Key { key: key.clone(), revision: *revision, absent: Vec::new() };
            found.push(finding(Kind::Resting, &key, reason, action));
        }
    }
}

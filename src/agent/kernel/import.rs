//! From a device to the network: what it knows of others, and who is on its own side.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::MacAddr;
use membership::key::{HostName, NetworkId};
use membership::network as records;
use membership::network::Imported;
use membership::record::{ImportedMac, NetworkRecord};

use super::{Link, Read};
use crate::agent::{Agent, network_error};
use crate::control::types::{Error, KernelDirection};
use crate::link::vxlan::{Behind, Known};

/// Most conflicts that are told.
const CONFLICTS_MAX: usize = 8;

/// What a device says, sorted. `before` is what it said at the last look, `None` at the first.
pub(super) fn entries(
    known: &Known,
    local: &BTreeSet<Behind>,
    own_vtep: Option<IpAddr>,
    before: Option<&[Imported]>,
) -> Vec<Imported> {
    let same = |mac: MacAddr, vtep: IpAddr| {
        before.is_some_and(|all| all.iter().any(|old| old.mac == mac && old.vtep == vtep))
    };
    let mut found = Vec::new();
    for (mac, forward) in &known.forwards {
        if !forward.permanent || forward.ours {
            continue;
        }
        let has = |neighbor: &crate::link::vxlan::Resolved| {
            neighbor.mac == *mac && neighbor.permanent && !neighbor.ours
        };
        let ips = known.neighbors.iter().filter(|(_, it)| has(it)).map(|(ip, _)| *ip).collect();
        found.push(Imported {
            mac: *mac,
            vtep: forward.vtep,
            port: forward.port,
            ips,
            // What was there before this agent looked is no news.
            fresh: before.is_some() && !same(*mac, forward.vtep),
            local: false,
        });
    }
    for end in local {
        let Some(vtep) = own_vtep else { break };
        // Who is here is not elsewhere, whatever the device still says.
        found.retain(|other| other.mac != end.mac);
        let ips = end.ips.iter().map(ipnet::IpNet::addr).collect();
        let fresh = !same(end.mac, vtep);
        found.push(Imported { mac: end.mac, vtep, port: None, ips, fresh, local: true });
    }
    found.sort();
    found
}

/// Tells the store what all devices of this host say of a network, where that differs from what the
/// record has. A device that is not followed any longer says nothing.
///
/// # Errors
/// What the store refused.
pub(super) async fn push(agent: &Agent, network: &NetworkId) -> Result<(), Error> {
    tell(agent, network, false).await
}

/// As [`push`], and asks the store whether that differs: the record that is known here may be older than
/// what was told last.
///
/// # Errors
/// What the store refused.
pub(super) async fn push_surely(agent: &Agent, network: &NetworkId) -> Result<(), Error> {
    tell(agent, network, true).await
}

async fn tell(agent: &Agent, network: &NetworkId, surely: bool) -> Result<(), Error> {
    let Some(record) = agent.known_network(network) else { return Ok(()) };
    let mut links = agent.kernel.of(network, KernelDirection::Import);
    links.retain(|link| !link.is_stopped());
    // What is left of an earlier look counts only where there is nothing better.
    let looked = links.iter().any(|link| link.read().as_ref().is_some_and(|read| !read.kept));
    let mut wanted = Vec::new();
    for link in &links {
        let entries = match &mut *link.read() {
            Some(read) if !read.kept => read.entries.clone(),
            // It is not to come back either when the better one goes.
            Some(read) if looked => {
                read.entries.clear();
                Vec::new()
            }
            Some(read) => {
                drop_withdrawn(agent, &record, read);
                read.entries.clone()
            }
            // Not looked at since the start: what it said before stays.
            None if !looked => told_before(agent, &record),
            None => Vec::new(),
        };
        let (taken, conflicts) = without_conflicts(agent, &record, entries);
        link.count(taken.len(), conflicts);
        wanted.extend(taken);
    }
    let is_known = |host: &HostName| agent.tables.view(|view| view.host(host).is_some());
    if surely || !records::is_imported(&record, &agent.name, &wanted, is_known) {
        records::import(&agent.store, network.as_str(), &agent.name, &wanted, is_known)
            .await
            .map_err(|err| network_error(&err))?;
    }
    // What was told is news no longer.
    for link in &links {
        for entry in link.read().iter_mut().flat_map(|read| &mut read.entries) {
            entry.fresh = false;
        }
    }
    Ok(())
}

/// The device is not there: who was on its side is not there either, what it knew of others is kept.
pub(super) fn keep(agent: &Agent, link: &Link) {
    let Some(record) = agent.known_network(&link.note.network) else { return };
    let is_own = |vtep: IpAddr| match link.note.vtep {
        Some(own) => own == vtep,
        None => agent.config.vteps.iter().any(|own| own.advertise == vtep),
    };
    let mut read = link.read();
    let read = read
        .get_or_insert_with(|| Read { entries: told_before(agent, &record), ..Read::default() });
    read.kept = true;
    read.entries.retain(|entry| !entry.local && !is_own(entry.vtep));
}

/// Drops what is only kept of a host that imports by itself and does not say it any more.
fn drop_withdrawn(agent: &Agent, record: &NetworkRecord, read: &mut Read) {
    let at = |vtep: IpAddr| -> Option<HostName> {
        agent.tables.view(|view| {
            let is_at = |host: &&HostName| {
                let record = view.host(host).and_then(|host| host.record());
                record.is_some_and(|it| it.vteps.iter().any(|own| own.advertise == vtep))
            };
            view.hosts().map(|(name, _)| name).find(is_at).cloned()
        })
    };
    let said: BTreeMap<(MacAddr, IpAddr), &ImportedMac> = record
        .static_vteps
        .iter()
        .flat_map(|vtep| vtep.imported.iter().map(|known| ((known.mac, vtep.address), known)))
        .collect();
    let importing: BTreeSet<&HostName> = said.values().flat_map(|known| &known.by).collect();
    let hosts: BTreeMap<IpAddr, Option<HostName>> = read
        .entries
        .iter()
        .map(|entry| entry.vtep)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|vtep| (vtep, at(vtep)))
        .collect();
    let seconded = &mut read.seconded;
    read.entries.retain(|entry| {
        let place = (entry.mac, entry.vtep);
        let host = hosts.get(&entry.vtep).and_then(Option::as_ref);
        let Some(host) = host.filter(|host| **host != agent.name) else { return true };
        if said.get(&place).is_some_and(|known| known.by.contains(host)) {
            seconded.insert(place);
            return true;
        }
        !seconded.contains(&place) && !importing.contains(host)
    });
}

/// Leaves out what an endpoint of ours or the network itself has, and names it.
fn without_conflicts(
    agent: &Agent,
    record: &NetworkRecord,
    found: Vec<Imported>,
) -> (Vec<Imported>, Vec<String>) {
    let (macs, ips): (BTreeSet<MacAddr>, BTreeSet<IpAddr>) = agent.tables.view(|view| {
        let records = || view.endpoints_of(&record.id).map(|item| &item.record);
        (
            records().map(|endpoint| endpoint.mac).collect(),
            records().flat_map(|endpoint| endpoint.ips.iter().copied()).collect(),
        )
    });
    let gateways: BTreeSet<IpAddr> =
        membership::gateway::own(record).iter().map(ipnet::IpNet::addr).collect();
    let mut conflicts = Vec::new();
    let mut taken = Vec::with_capacity(found.len());
    for entry in found {
        let clash = entry.ips.iter().find(|ip| ips.contains(*ip) || gateways.contains(*ip));
        let text = match clash {
            Some(ip) => Some(format!("{ip} is behind {} and in this network", entry.vtep)),
            None if macs.contains(&entry.mac) => {
                Some(format!("{} is behind {} and in this network", entry.mac, entry.vtep))
            }
            None => None,
        };
        match text {
            None => taken.push(entry),
            Some(text) if conflicts.len() < CONFLICTS_MAX => conflicts.push(text),
            Some(_) => {}
        }
    }
    (taken, conflicts)
}

/// What the record says that this host's devices told.
fn told_before(agent: &Agent, record: &NetworkRecord) -> Vec<Imported> {
    let mut found = Vec::new();
    for vtep in &record.static_vteps {
        for known in vtep.imported.iter().filter(|known| known.by.contains(&agent.name)) {
            found.push(Imported {
                mac: known.mac,
                vtep: vtep.address,
                port: vtep.port,
                ips: known.ips.clone(),
                fresh: false,
                local: known.local && known.ips_by.as_ref() == Some(&agent.name),
            });
        }
    }
    found
}

/// The folder whose namespaces the other ends of local ports are looked for in: the device's own.
pub(super) fn folder(path: &std::path::Path) -> Option<&std::path::Path> {
    // The files of /proc/PID/ns are no namespaces of others.
    path.parent().filter(|folder| !folder.starts_with("/proc") || !folder.ends_with("ns"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::vxlan::{Device, Forward, Resolved};

    fn mac(last: u8) -> MacAddr {
        MacAddr([0, 0, 0x5e, 0, 0x53, last])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_others_entered_to_stay_is_taken_and_what_is_on_this_side_wins() {
        let device = Device {
            index: 7,
            name: "vxlan0".to_owned(),
            vni: 9,
            port: 4789,
            ipv6: None,
            bridge: None,
        };
        let forward =
            |permanent, ours| Forward { vtep: ip("192.0.2.2"), port: None, permanent, ours };
        let known = Known {
            device,
            forwards: BTreeMap::from([
                (mac(1), forward(true, false)),
                (mac(2), forward(false, false)),
                (mac(3), forward(true, true)),
                (mac(4), forward(true, false)),
            ]),
            neighbors: BTreeMap::from([
                (ip("198.51.100.1"), Resolved { mac: mac(1), permanent: true, ours: false }),
                (ip("198.51.100.9"), Resolved { mac: mac(1), permanent: false, ours: false }),
                (ip("198.51.100.3"), Resolved { mac: mac(3), permanent: true, ours: true }),
            ]),
        };
        let local =
            BTreeSet::from([Behind { mac: mac(4), ips: vec!["198.51.100.4/24".parse().unwrap()] }]);
        let own = ip("192.0.2.1");
        let first = entries(&known, &local, Some(own), None);
        let row = |last: u8, vtep: IpAddr, fresh, local| Imported {
            mac: mac(last),
            vtep,
            port: None,
            ips: vec![ip(&format!("198.51.100.{last}"))],
            fresh,
            local,
        };
        assert_eq!(first, [row(1, ip("192.0.2.2"), false, false), row(4, own, true, true)]);
        let again = entries(&known, &local, Some(own), Some(&first));
        assert_eq!(again, [row(1, ip("192.0.2.2"), false, false), row(4, own, false, true)]);
        let news = entries(&known, &local, Some(own), Some(&[]));
        assert_eq!(news, [row(1, ip("192.0.2.2"), true, false), row(4, own, true, true)]);
    }

    #[test]
    fn the_folder_of_a_process_has_no_other_namespaces() {
        use std::path::Path;
        assert_eq!(
            folder(Path::new("/run/docker/netns/1-ab")),
            Some(Path::new("/run/docker/netns"))
        );
        assert_eq!(folder(Path::new("/proc/7/ns/net")), None);
    }
}

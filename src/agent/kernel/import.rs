//! From a device to the network: what it knows of others, and who is on its own side.

use std::collections::BTreeSet;
use std::net::IpAddr;

use encap::MacAddr;
use membership::key::NetworkId;
use membership::network as records;
use membership::network::Imported;
use membership::record::NetworkRecord;

use super::Link;
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
/// record has.
///
/// # Errors
/// What the store refused.
pub(super) async fn push(agent: &Agent, network: &NetworkId) -> Result<(), Error> {
    let Some(record) = agent.known_network(network) else { return Ok(()) };
    let links = agent.kernel.of(network, KernelDirection::Import);
    let mut wanted = Vec::new();
    for link in &links {
        let found = link.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match found {
            Some(found) => {
                let (taken, conflicts) = without_conflicts(agent, &record, found);
                link.count(taken.len(), conflicts);
                wanted.extend(taken);
            }
            // Not looked at since the start: what it said before stays.
            None => wanted.extend(told_before(agent, &record)),
        }
    }
    let is_known =
        |host: &membership::key::HostName| agent.tables.view(|view| view.host(host).is_some());
    if records::is_imported(&record, &agent.name, &wanted, is_known) {
        settle(&links);
        return Ok(());
    }
    let id = network.as_str();
    records::import(&agent.store, id, &agent.name, &wanted, is_known)
        .await
        .map_err(|err| network_error(&err))?;
    settle(&links);
    Ok(())
}

/// What was told is news no longer.
fn settle(links: &[std::sync::Arc<Link>]) {
    for link in links {
        let mut found = link.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for entry in found.iter_mut().flatten() {
            entry.fresh = false;
        }
    }
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
    use std::collections::BTreeMap;

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
        let device =
            Device { index: 7, name: "vxlan0".to_owned(), vni: 9, port: 4789, bridge: None };
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

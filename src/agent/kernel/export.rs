//! From the network to a device: its endpoints as forwarding and neighbor entries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use encap::MacAddr;
use membership::record::NetworkRecord;

use crate::agent::Agent;
use crate::control::types::ExportedEntry;
use crate::link::vxlan::{self, Known};
use crate::link::{self, Netlink};

/// Most conflicts that are told.
const CONFLICTS_MAX: usize = 8;

/// The endpoints of a network and where they are, sorted. An endpoint whose host told no VTEP of a
/// family that this host has is nowhere.
pub(super) fn entries(agent: &Agent, record: &NetworkRecord) -> Vec<ExportedEntry> {
    let families: Vec<bool> =
        agent.config.vteps.iter().map(|vtep| vtep.advertise.is_ipv6()).collect();
    let mut entries: Vec<ExportedEntry> = agent.tables.view(|view| {
        let entry = |endpoint: &membership::record::EndpointRecord| {
            let host = view.host(&endpoint.host)?.record()?;
            let vtep = host
                .vteps
                .iter()
                .find(|vtep| families.is_empty() || families.contains(&vtep.advertise.is_ipv6()))?;
            Some(ExportedEntry {
                endpoint: endpoint.id.to_string(),
                host: endpoint.host.to_string(),
                mac: endpoint.mac,
                ips: endpoint.ips.clone(),
                vtep: vtep.advertise,
                port: record.udp_port.unwrap_or(vtep.port),
            })
        };
        view.endpoints_of(&record.id).filter_map(|item| entry(&item.record)).collect()
    });
    entries.sort_by(|a, b| (&a.ips, a.mac, &a.endpoint).cmp(&(&b.ips, b.mac, &b.endpoint)));
    entries
}

/// Makes what we have entered into a device exactly `entries`, but for what somebody else entered to
/// stay there. Gives what was left out for that.
///
/// # Errors
/// What the kernel refused.
pub(super) async fn apply(
    netlink: &Netlink,
    known: &Known,
    entries: &[ExportedEntry],
) -> Result<Vec<String>, link::Error> {
    let device = &known.device;
    let forwards: BTreeMap<MacAddr, (IpAddr, u16)> =
        entries.iter().map(|entry| (entry.mac, (entry.vtep, entry.port))).collect();
    let neighbors: BTreeMap<IpAddr, MacAddr> =
        entries.iter().flat_map(|entry| entry.ips.iter().map(move |ip| (*ip, entry.mac))).collect();
    // Nothing is answered for an address whose MAC leads nowhere: neighbors go first and come last.
    for (ip, present) in known.neighbors.iter().filter(|(_, present)| present.ours) {
        if neighbors.get(ip) != Some(&present.mac) {
            vxlan::remove_neighbor(netlink, device, *ip).await?;
        }
    }
    for (mac, present) in known.forwards.iter().filter(|(_, present)| present.ours) {
        if !forwards.contains_key(mac) {
            vxlan::remove_forward(netlink, device, *mac, present).await?;
        }
    }
    let mut conflicts = Vec::new();
    let mut conflict = |text: String| {
        if conflicts.len() < CONFLICTS_MAX {
            conflicts.push(text);
        }
    };
    for (mac, (vtep, port)) in &forwards {
        match known.forwards.get(mac) {
            Some(present) if present.ours => {
                let at = present.port.unwrap_or(device.port);
                if (present.vtep, at) == (*vtep, *port) {
                    continue;
                }
                // A replaced entry keeps a port that the new one does not name.
                vxlan::remove_forward(netlink, device, *mac, present).await?;
            }
            Some(present) if present.permanent => {
                conflict(format!("{mac} is there already, behind {}", present.vtep));
                continue;
            }
            // What the device has learned is replaced by what is known.
            Some(_) | None => {}
        }
        vxlan::enter_forward(netlink, device, *mac, *vtep, *port).await?;
    }
    for (ip, mac) in &neighbors {
        match known.neighbors.get(ip) {
            Some(present) if present.ours && present.mac == *mac => continue,
            Some(present) if present.permanent && !present.ours => {
                conflict(format!("{ip} is there already, with {}", present.mac));
                continue;
            }
            Some(_) | None => {}
        }
        vxlan::enter_neighbor(netlink, device, *ip, *mac).await?;
    }
    Ok(conflicts)
}

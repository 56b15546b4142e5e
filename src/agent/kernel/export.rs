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

/// The endpoints of a network and where they are, sorted. An endpoint whose host told no VTEP of the
/// device's family is nowhere; where that is not known, of a family that this host has.
pub(super) fn entries(
    agent: &Agent,
    record: &NetworkRecord,
    ipv6: Option<bool>,
) -> Vec<ExportedEntry> {
    let families: Vec<bool> = match ipv6 {
        Some(ipv6) => vec![ipv6],
        None => agent.config.vteps.iter().map(|vtep| vtep.advertise.is_ipv6()).collect(),
    };
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

/// What came of entering.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// How many MACs the device has as they shall be.
    pub(super) entered: usize,
    /// What was left out, at most a few.
    pub(super) conflicts: Vec<String>,
    /// What the kernel refused first.
    pub(super) refused: Option<link::Error>,
}

impl Applied {
    fn left_out(&mut self, text: String) {
        if self.conflicts.len() < CONFLICTS_MAX {
            self.conflicts.push(text);
        }
    }

    /// Notes what the kernel said; whether it did it.
    fn took(&mut self, result: Result<(), link::Error>) -> bool {
        let Err(err) = result else { return true };
        self.left_out(err.to_string());
        self.refused.get_or_insert(err);
        false
    }
}

/// Makes what we have entered into a device exactly `entries`, but for what somebody else entered to
/// stay there, and what the kernel refuses.
pub(super) async fn apply(netlink: &Netlink, known: &Known, entries: &[ExportedEntry]) -> Applied {
    let device = &known.device;
    let forwards: BTreeMap<MacAddr, (IpAddr, u16)> =
        entries.iter().map(|entry| (entry.mac, (entry.vtep, entry.port))).collect();
    let neighbors: BTreeMap<IpAddr, MacAddr> =
        entries.iter().flat_map(|entry| entry.ips.iter().map(move |ip| (*ip, entry.mac))).collect();
    let mut applied = Applied::default();
    // Nothing is answered for an address whose MAC leads nowhere: neighbors go first and come last.
    for (ip, present) in known.neighbors.iter().filter(|(_, present)| present.ours) {
        if neighbors.get(ip) != Some(&present.mac) {
            let _ = applied.took(vxlan::remove_neighbor(netlink, device, *ip).await);
        }
    }
    for (mac, present) in known.forwards.iter().filter(|(_, present)| present.ours) {
        if !forwards.contains_key(mac) {
            let _ = applied.took(vxlan::remove_forward(netlink, device, *mac, present).await);
        }
    }
    for (mac, (vtep, port)) in &forwards {
        match known.forwards.get(mac) {
            Some(present) if present.ours => {
                let at = present.port.unwrap_or(device.port);
                if (present.vtep, at) == (*vtep, *port) {
                    applied.entered += 1;
                    continue;
                }
                // A replaced entry keeps a port that the new one does not name.
                if !applied.took(vxlan::remove_forward(netlink, device, *mac, present).await) {
                    continue;
                }
            }
            Some(present) if present.permanent => {
                applied.left_out(format!("{mac} is there already, behind {}", present.vtep));
                continue;
            }
            // What the device has learned is replaced by what is known.
            Some(_) | None => {}
        }
        if applied.took(vxlan::enter_forward(netlink, device, *mac, *vtep, *port).await) {
            applied.entered += 1;
        }
    }
    for (ip, mac) in &neighbors {
        match known.neighbors.get(ip) {
            Some(present) if present.ours && present.mac == *mac => continue,
            Some(present) if present.permanent && !present.ours => {
                applied.left_out(format!("{ip} is there already, with {}", present.mac));
                continue;
            }
            Some(_) | None => {}
        }
        let _ = applied.took(vxlan::enter_neighbor(netlink, device, *ip, *mac).await);
    }
    applied
}

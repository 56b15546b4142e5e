//! Networks and static VTEPs.

use std::fmt::Write as _;

use super::super::table::{Cell, Facts, Style, Table, Tone, joined};
use super::{or_dash, plural, sorted};
use crate::control::types::{Network, NetworkDetail, NetworkState, Pool, StaticVtep};

/// `skybridge network ls`.
#[must_use]
pub fn networks(networks: &[Network], style: Style) -> String {
    if networks.is_empty() {
        return "no networks; make one with `skybridge network create NAME --subnet CIDR`\n"
            .to_owned();
    }
    table(networks).render(style, 0)
}

pub(super) fn table(networks: &[Network]) -> Table {
    let mut table = Table::new(&[
        "NETWORK",
        "MODE",
        ">VNI",
        ">PORT",
        "SUBNETS",
        ">MTU",
        ">ENDPOINTS",
        ">HOSTS",
        "REACHES",
        "HERE",
        "ID",
    ]);
    for network in sorted(networks) {
        table.row(vec![
            network.name.into(),
            network.mode.into(),
            number_or_dash(network.vni).into(),
            number_or_dash(network.udp_port).into(),
            joined(network.subnets).into(),
            network.mtu.into(),
            network.endpoints.into(),
            network.hosts.into(),
            joined(network.reaches).into(),
            state(network.state),
            network.id.into(),
        ]);
    }
    table
}

fn number_or_dash(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn state(state: NetworkState) -> Cell {
    match state {
        NetworkState::Absent => "-".into(),
        NetworkState::Failed => Cell::toned("failed", Tone::Alarm),
        NetworkState::Starting => Cell::toned("starting", Tone::Warning),
        NetworkState::Unknown => "unknown".into(),
        NetworkState::Up => Cell::toned("up", Tone::Good),
    }
}

fn state_text(state: NetworkState) -> &'static str {
    match state {
        NetworkState::Absent => "not set up; the first attach on this host does it",
        NetworkState::Failed => "failed",
        NetworkState::Starting => "starting",
        NetworkState::Unknown => "unknown",
        NetworkState::Up => "up",
    }
}

/// `skybridge network inspect`, `create` and `update`.
#[must_use]
pub fn network(detail: &NetworkDetail, style: Style) -> String {
    let network = &detail.network;
    let mut facts = Facts::default();
    facts.add("network", &network.name);
    facts.add("id", &network.id);
    let carried = match (network.vni, network.udp_port) {
        (Some(vni), Some(port)) => format!(", VNI {vni}, UDP port {port}"),
        (None, Some(port)) => {
            format!(", UDP ports {port} (IPv4 inside) and {} (IPv6)", port.saturating_add(1))
        }
        (Some(vni), None) => format!(", VNI {vni}"),
        (None, None) => String::new(),
    };
    facts.add("mode", format!("{}{carried}", network.mode));
    facts.add("subnets", joined(&network.subnets));
    let mtu = match detail.mtu_requested {
        Some(requested) if requested == network.mtu => format!("{} (asked for)", network.mtu),
        Some(requested) => format!("{} ({requested} asked for)", network.mtu),
        None => format!("{} (from the underlay)", network.mtu),
    };
    facts.add("mtu", mtu);
    let gateways = match (detail.gateways.is_empty(), detail.gateway_mac) {
        (true, _) => "none".to_owned(),
        (false, Some(mac)) => format!("{} at {mac} on every host", joined(&detail.gateways)),
        (false, None) if network.vni.is_none() => {
            format!("{} on every host", joined(&detail.gateways))
        }
        (false, None) => format!("{}, a router behind a static VTEP", joined(&detail.gateways)),
    };
    facts.add("gateway", gateways);
    let reaches = match (detail.nat_outgoing, detail.host_access) {
        (false, false) => "nothing beyond the network",
        (false, true) => "its hosts",
        (true, false) => "the world, not its hosts",
        (true, true) => "the world and its hosts",
    };
    facts.add("reaches", reaches);
    if !detail.exclude.is_empty() {
        facts.add("excluded", joined(&detail.exclude));
    }
    facts.add("options", pairs(&detail.options));
    facts.add("labels", pairs(&detail.labels));
    let hosts = match detail.host_names.is_empty() {
        true => "no hosts".to_owned(),
        false => format!("{} ({})", plural(network.hosts, "host"), joined(&detail.host_names)),
    };
    facts.add("endpoints", format!("{} on {hosts}", network.endpoints));
    let revision = detail.revision.map(|revision| format!("store {revision}"));
    facts.add("source", or_dash(revision.as_deref()));
    let here = state_text(network.state).to_owned();
    match &detail.local {
        Some(local) => {
            let reason = local.reason.as_ref().map(|reason| format!(": {reason}"));
            facts.add("here", format!("{here}{}", reason.unwrap_or_default()));
            facts.add("namespace", local.namespace.display());
            if let Some(bridge) = &local.bridge {
                facts.add("bridge", bridge);
            }
            facts.add("port", format!("{}, {}", local.port, plural(local.queues.into(), "queue")));
            if let Some(uplink) = &local.uplink {
                let addresses = joined(&local.uplink_addresses);
                facts.add("uplink", format!("{uplink} of the host, {addresses}"));
            }
            if !local.host_ips.is_empty() {
                facts.add("host addresses", joined(&local.host_ips));
            }
            facts.add("local endpoints", local.endpoints);
            facts.add("reserved here", joined(&local.reserved));
        }
        None => facts.add("here", here),
    }
    let mut text = facts.render(style);
    if !detail.pools.is_empty() {
        let _ = write!(text, "\n{}", pools(&detail.pools, style));
    }
    if !detail.static_vteps.is_empty() {
        let _ = write!(text, "\n{}", vteps(&detail.static_vteps, style));
    }
    text
}

/// How full the subnets are, with a row for each host below.
fn pools(pools: &[Pool], style: Style) -> String {
    let mut table =
        Table::new(&["SUBNET", ">USED", ">OF", ">FULL", "HOST", ">ENDPOINTS", ">RESERVED"]);
    for pool in pools {
        let tone = match pool.percent {
            95.. => Some(Tone::Alarm),
            80.. => Some(Tone::Warning),
            _ => None,
        };
        let percent = format!("{} %", pool.percent);
        let capacity = if pool.capacity == u64::MAX {
            "2^64 or more".to_owned()
        } else {
            pool.capacity.to_string()
        };
        let endpoints: u64 = pool.hosts.iter().map(|host| host.endpoints).sum();
        table.row(vec![
            pool.subnet.into(),
            pool.used.into(),
            capacity.into(),
            tone.map_or_else(|| percent.as_str().into(), |tone| Cell::toned(&percent, tone)),
            "all".into(),
            endpoints.into(),
            pool.reserved.into(),
        ]);
        for host in &pool.hosts {
            table.row(vec![
                "".into(),
                "".into(),
                "".into(),
                "".into(),
                host.host.as_str().into(),
                host.endpoints.into(),
                host.reserved.into(),
            ]);
        }
    }
    table.render(style, 0)
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> String {
    joined(map.iter().map(|(key, value)| format!("{key}={value}")))
}

/// `skybridge network vtep ls`.
#[must_use]
pub fn vteps(vteps: &[StaticVtep], style: Style) -> String {
    if vteps.is_empty() {
        return "no static VTEPs; add one with `skybridge network vtep add NAME ADDRESS`\n"
            .to_owned();
    }
    let mut table = Table::new(&["NETWORK", "VTEP", ">PORT", ">LEARNED", "SOURCE", "BEHIND IT"]);
    for vtep in sorted(vteps) {
        let revision = vtep.revision.map(|revision| format!("store {revision}"));
        let mut behind: Vec<String> = Vec::new();
        for known in &vtep.macs {
            let ips: String = known.ips.iter().map(|ip| format!(" {ip}")).collect();
            behind.push(format!("{}{ips}", known.mac));
        }
        for known in &vtep.imported {
            let ips: String = known.ips.iter().map(|ip| format!(" {ip}")).collect();
            behind.push(format!("{}{ips} (imported by {})", known.mac, known.by.join(" and ")));
        }
        table.row(vec![
            vtep.network.into(),
            vtep.address.into(),
            vtep.port.into(),
            vtep.learned.into(),
            or_dash(revision.as_deref()).into(),
            joined(behind).into(),
        ]);
    }
    table.render(style, 0)
}

/// `skybridge network vtep add`.
#[must_use]
pub fn vtep(vtep: &StaticVtep, style: Style) -> String {
    vteps(std::slice::from_ref(vtep), style)
}

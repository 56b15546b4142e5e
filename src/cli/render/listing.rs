//! Hosts, endpoints, table entries, drops.

use std::fmt::Write as _;

use super::super::table::{Cell, Facts, Style, Table, Tone, age, age_or_dash, joined};
use super::{or_dash, place, socket_addresses, sorted, source};
use crate::control::types::{
    Attachment, Detached, Direction, Drops, Endpoint, EndpointState, FdbEntry, Host, HostState,
    NeighborEntry, RouteEntry,
};

/// `skybridge hosts`.
#[must_use]
pub fn hosts(hosts: &[Host], style: Style) -> String {
    if hosts.is_empty() {
        return "no host is known yet; `skybridge status` shows whether the store answers\n"
            .to_owned();
    }
    let mut table = Table::new(&[
        "HOST",
        "STATE",
        ">SINCE",
        "VTEP",
        ">MTU",
        "MODES",
        ">NETWORKS",
        ">ENDPOINTS",
        "VERSION",
        ">START",
        "ID",
    ]);
    for host in sorted(hosts) {
        let state = match host.state {
            HostState::Alive => Cell::toned("alive", Tone::Good),
            HostState::Suspect => Cell::toned("suspect", Tone::Warning),
            HostState::Unknown => "unknown".into(),
        };
        let own = if host.is_self { " *" } else { "" };
        table.row(vec![
            format!("{}{own}", host.name).into(),
            state,
            age_or_dash(host.since_ms).into(),
            joined(socket_addresses(&host.vteps)).into(),
            mtu(host.mtu).into(),
            joined(host.modes).into(),
            host.networks.into(),
            host.endpoints.into(),
            host.version.into(),
            host.incarnation.into(),
            host.id.into(),
        ]);
    }
    format!("{}* this host\n{}", table.render(style, 0), ways(hosts, style))
}

/// The ways to hosts to which there are several.
fn ways(hosts: &[Host], style: Style) -> String {
    let mut table = Table::new(&["HOST", "WAY", ">SINCE", "WHY", "DIRECT", "IPIP", "IPUDP"]);
    let mut any = false;
    for host in sorted(hosts) {
        let Some(path) = host.path else { continue };
        any = true;
        let state = |name: &str| {
            let way = path.ways.iter().find(|way| way.way == name);
            match way.map(|way| (way.reaches, way.arrives, way.works_ms)) {
                None => "-".into(),
                Some((_, _, Some(ms))) => Cell::toned(format!("works {}", age(ms)), Tone::Good),
                Some((true, ..)) => Cell::toned("only there", Tone::Warning),
                Some((_, true, _)) => Cell::toned("only back", Tone::Warning),
                Some(_) => Cell::toned("silent", Tone::Alarm),
            }
        };
        let states = ["direct", "ipip", "ipudp"].map(state);
        let facts =
            [host.name.into(), path.used.into(), age(path.since_ms).into(), path.why.into()];
        table.row(facts.into_iter().chain(states).collect());
    }
    if any { format!("\n{}", table.render(style, 0)) } else { String::new() }
}

fn mtu(bytes: u16) -> String {
    if bytes == 0 { "-".to_owned() } else { bytes.to_string() }
}

/// `skybridge endpoints`.
#[must_use]
pub fn endpoints(endpoints: &[Endpoint], style: Style) -> String {
    if endpoints.is_empty() {
        return "no endpoints; attach one with `skybridge attach NETWORK --netns NAME`\n"
            .to_owned();
    }
    let mut table = Table::new(&[
        "NETWORK",
        "NAME",
        "HOST",
        "ADDRESSES",
        "MAC",
        "STATE",
        ">AGE",
        "SOURCE",
        "ID",
    ]);
    for endpoint in sorted(endpoints) {
        let state = match endpoint.state {
            EndpointState::Attached => Cell::toned("attached", Tone::Good),
            EndpointState::Attaching => "attaching".into(),
            EndpointState::Detaching => "detaching".into(),
            EndpointState::Quarantined => Cell::toned("quarantined", Tone::Alarm),
            EndpointState::Queued => Cell::toned("queued", Tone::Warning),
            EndpointState::Suspect => Cell::toned("suspect", Tone::Warning),
            EndpointState::Unknown => "unknown".into(),
        };
        let revision = endpoint.revision.map(|revision| format!("store {revision}"));
        table.row(vec![
            endpoint.network.into(),
            or_dash(endpoint.name.as_deref()).into(),
            endpoint.host.into(),
            joined(endpoint.ips).into(),
            endpoint.mac.into(),
            state,
            age_or_dash(endpoint.age_ms).into(),
            or_dash(revision.as_deref()).into(),
            endpoint.id.into(),
        ]);
    }
    table.render(style, 0)
}

/// `skybridge fdb`.
#[must_use]
pub fn fdb(entries: &[FdbEntry], style: Style) -> String {
    if entries.is_empty() {
        return "no MAC is known; `skybridge endpoints` shows what is attached\n".to_owned();
    }
    let mut table = Table::new(&["NETWORK", ">VNI", "MAC", "WHERE", "SOURCE", ">AGE"]);
    for entry in sorted(entries) {
        table.row(vec![
            entry.network.into(),
            entry.vni.into(),
            entry.mac.into(),
            place(entry.place, entry.vtep, entry.host.as_deref()).into(),
            source(entry.source, entry.revision),
            age_or_dash(entry.age_ms).into(),
        ]);
    }
    table.render(style, 0)
}

/// `skybridge neighbors`.
#[must_use]
pub fn neighbors(entries: &[NeighborEntry], style: Style) -> String {
    if entries.is_empty() {
        return "no address is known; `skybridge endpoints` shows what is attached\n".to_owned();
    }
    let mut table = Table::new(&["NETWORK", ">VNI", "ADDRESS", "MAC", "WHERE", "SOURCE", ">AGE"]);
    for entry in sorted(entries) {
        table.row(vec![
            entry.network.into(),
            entry.vni.into(),
            entry.ip.into(),
            entry.mac.into(),
            place(entry.place, entry.vtep, entry.host.as_deref()).into(),
            source(entry.source, entry.revision),
            age_or_dash(entry.age_ms).into(),
        ]);
    }
    table.render(style, 0)
}

/// `skybridge routes`.
#[must_use]
pub fn routes(entries: &[RouteEntry], style: Style) -> String {
    if entries.is_empty() {
        return "no route is known; only networks of mode ipip and ipudp have routes, where they \
                have endpoints\n"
            .to_owned();
    }
    let mut table = Table::new(&["NETWORK", "PREFIX", "WHERE", "SOURCE", ">AGE"]);
    for entry in sorted(entries) {
        table.row(vec![
            entry.network.into(),
            entry.prefix.into(),
            place(entry.place, entry.vtep, entry.host.as_deref()).into(),
            source(entry.source, entry.revision),
            age_or_dash(entry.age_ms).into(),
        ]);
    }
    table.render(style, 0)
}

/// `skybridge drops`. With `all`, reasons that never happened are shown too, with their meaning.
#[must_use]
pub fn drops(drops: &[Drops], all: bool, style: Style) -> String {
    let rows: Vec<Drops> =
        sorted(drops).into_iter().filter(|drops| all || drops.count > 0).collect();
    if rows.is_empty() {
        return "nothing was dropped; `--all` shows the reasons there are\n".to_owned();
    }
    let mut table = Table::new(&[">COUNT", "DIRECTION", "NETWORK", "ENDPOINT", "REASON"]);
    for drops in &rows {
        let direction = match drops.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        table.row(vec![
            drops.count.into(),
            direction.into(),
            or_dash(drops.network.as_deref()).into(),
            or_dash(drops.endpoint.as_deref()).into(),
            drops.reason.as_str().into(),
        ]);
    }
    let mut text = table.render(style, 0);
    let mut told: Vec<&str> = Vec::new();
    for drops in &rows {
        if told.contains(&drops.reason.as_str()) {
            continue;
        }
        told.push(&drops.reason);
        let name = style.paint(Tone::Heading, &drops.reason);
        let _ = write!(text, "\n{name}\n  {}\n  try: {}\n", drops.description, drops.hint);
    }
    text
}

/// `skybridge attach`.
#[must_use]
pub fn attachment(attachment: &Attachment, style: Style) -> String {
    let mut facts = Facts::default();
    let name = attachment.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    facts.add("endpoint", format!("{}{name}", attachment.endpoint));
    facts.add("network", &attachment.network);
    facts.add("addresses", joined(&attachment.ips));
    facts.add("mac", attachment.mac);
    facts.add("interface", format!("{}, MTU {}", attachment.ifname, attachment.mtu));
    if !attachment.gateways.is_empty() {
        facts.add("default route", joined(&attachment.gateways));
    }
    facts.add("host", &attachment.host);
    facts.add("took", format!("{:.1} ms", attachment.elapsed_ms));
    let mut text = facts.render(style);
    if attachment.queued {
        let note = "the store is away: other hosts reach it when it is back";
        let _ = writeln!(text, "{}", style.paint(Tone::Warning, note));
    }
    text
}

/// `skybridge detach`.
#[must_use]
pub fn detached(detached: &[Detached], style: Style) -> String {
    let mut text = String::new();
    for endpoint in detached {
        let name = endpoint.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let addresses = joined(&endpoint.ips);
        let _ = writeln!(
            text,
            "detached {}{name} from {}: {addresses}",
            endpoint.endpoint, endpoint.network
        );
        if endpoint.queued {
            let note = "the store is away: other hosts are told when it is back";
            let _ = writeln!(text, "  {}", style.paint(Tone::Warning, note));
        }
    }
    if text.is_empty() { "nothing was attached\n".to_owned() } else { text }
}

/// `2m ago`.
pub(super) fn ago(ms: u64) -> String {
    format!("{} ago", age(ms))
}

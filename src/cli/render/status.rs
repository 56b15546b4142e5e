//! The agent's status.

use std::fmt::Write as _;

use super::super::table::{Facts, Style, Tone, age, joined};
use super::listing::ago;
use super::{network, plural, socket_addresses};
use crate::control::types::{
    Convergence, Offload, OffloadState, Outside, Reload, Session, SessionState, Status, Store,
    StoreState,
};

/// `skybridge status`.
#[must_use]
pub fn status(status: &Status, style: Style) -> String {
    let mut facts = Facts::default();
    let ready = match status.ready {
        true => style.paint(Tone::Good, "ready"),
        false => style.paint(Tone::Warning, "not ready yet"),
    };
    facts
        .add("agent", format!("{ready}, version {}, up {}", status.version, age(status.uptime_ms)));
    facts.add("host", format!("{} (id {}), start {}", status.host, status.id, status.incarnation));
    let mtu = match status.datapath.mtu {
        0 => String::new(),
        mtu => format!(", underlay MTU {mtu}"),
    };
    facts.add("vtep", format!("{}{mtu}", joined(socket_addresses(&status.datapath.vteps))));
    facts.add("store", store(&status.store, style));
    facts.add("session", session(&status.session, style));
    if let Some(convergence) = &status.convergence {
        facts.add("tables", tables(convergence));
    }
    if let Some(reload) = &status.reload {
        facts.add("reload", reloaded(reload, style));
    }
    facts.add(
        "datapath",
        format!(
            "{}, tables at generation {}",
            plural(status.datapath.workers, "worker"),
            status.datapath.generation
        ),
    );
    facts.add("offloads", offloads(&status.datapath.offloads, style));
    if let Some(outside) = &status.outside {
        facts.add("outside", told(outside));
    }
    facts.add(
        "drops",
        match status.drops_total {
            0 => "none".to_owned(),
            count => format!("{count}; `skybridge drops` tells why"),
        },
    );
    let mut text = facts.render(style);
    let _ = write!(text, "\n{}", network::networks(&status.networks, style));
    for warning in &status.warnings {
        let since = format!("warning, {}:", ago(warning.since_ms));
        let _ = write!(text, "\n{} {}\n", style.paint(Tone::Warning, &since), warning.text);
        if let Some(next_step) = &warning.next_step {
            let _ = writeln!(text, "  try: {next_step}");
        }
    }
    text
}

fn store(store: &Store, style: Style) -> String {
    let endpoint = store.endpoint.as_deref().unwrap_or("no endpoint");
    let since = age(store.since_ms);
    let mut text = match store.state {
        StoreState::Away => {
            let away = style.paint(Tone::Warning, "away");
            format!("{away} for {since}, {endpoint}")
        }
        StoreState::Connected => {
            format!("{} for {since}, {endpoint}", style.paint(Tone::Good, "connected"))
        }
        StoreState::Connecting => {
            format!("{} for {since}, {endpoint}", style.paint(Tone::Warning, "connecting"))
        }
        StoreState::Unknown => format!("in an unknown state, {endpoint}"),
    };
    if let Some(revision) = store.revision {
        let _ = write!(text, ", revision {revision}");
    }
    if let Some(embedded) = &store.embedded {
        let _ = write!(text, ", embedded here at {embedded}");
    }
    if let Some(cause) = &store.cause {
        let _ = write!(text, " ({cause})");
    }
    if store.state == StoreState::Away {
        text.push_str("; forwarding goes on");
    }
    text
}

fn session(session: &Session, style: Style) -> String {
    let state = match session.state {
        SessionState::Held => style.paint(Tone::Good, "held"),
        SessionState::Lost => style.paint(Tone::Warning, "lost"),
        SessionState::Starting => style.paint(Tone::Warning, "starting"),
        SessionState::Unknown => "in an unknown state".to_owned(),
    };
    let lease = session.lease.as_ref().map(|lease| format!(", lease {lease}")).unwrap_or_default();
    format!("{state}{lease}, time to live {}", age(session.ttl_ms))
}

/// How fast the tables follow the store.
fn tables(convergence: &Convergence) -> String {
    let mut parts = Vec::new();
    for (what, times) in [("changes", convergence.changes), ("own", convergence.own)] {
        if times.count > 0 {
            parts.push(format!(
                "{what} in {} (99 % in {}, {} measured)",
                short(times.p50_us),
                short(times.p99_us),
                times.count
            ));
        }
    }
    if let Some(listing) = convergence.listing {
        let endpoints = plural(listing.endpoints, "endpoint");
        parts.push(format!("listing of {endpoints} in {}", short(listing.took_us)));
    }
    if parts.is_empty() { "nothing has come yet".to_owned() } else { parts.join(", ") }
}

/// Microseconds with the unit that suits them.
fn short(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..10_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

fn reloaded(reload: &Reload, style: Style) -> String {
    let when = ago(reload.since_ms);
    let mut text = if !reload.applied {
        format!("{}, {when}: nothing was changed", style.paint(Tone::Warning, "refused"))
    } else if reload.changed.is_empty() {
        format!("applied, {when}: no other values, files read again")
    } else {
        format!("applied, {when}: {}", reload.changed.join(", "))
    };
    if !reload.kept.is_empty() {
        let kept = format!("; after a restart: {}", reload.kept.join(", "));
        text.push_str(&style.paint(Tone::Warning, &kept));
    }
    if let Some(cause) = &reload.cause {
        let _ = write!(text, " ({cause})");
    }
    text
}

/// What the host has for networks that reach beyond.
fn told(outside: &Outside) -> String {
    let families = [(outside.forwards_ipv4, "IPv4"), (outside.forwards_ipv6, "IPv6")];
    let on: Vec<&str> = families.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let forwards = match on.is_empty() {
        true => "forwards nothing".to_owned(),
        false => format!("forwards {}", on.join(" and ")),
    };
    let mut text = format!("table {}, host {forwards}", outside.table);
    if !outside.changed.is_empty() {
        let _ = write!(text, " (set by this agent: {})", outside.changed.join(", "));
    }
    let permission = match (outside.permission.as_slice(), outside.refused.as_slice()) {
        ([], []) => "not needed".to_owned(),
        ([], refused) => format!("refused by {}", refused.join(", ")),
        (places, []) => format!("in {}", places.join(", ")),
        (places, refused) => format!("in {}, refused by {}", places.join(", "), refused.join(", ")),
    };
    let _ = write!(text, ", permission {permission}");
    if outside.reasserted > 0 {
        let _ = write!(text, ", rules written again {} times", outside.reasserted);
    }
    text
}

fn offloads(offloads: &[Offload], style: Style) -> String {
    let mut texts = Vec::new();
    for offload in offloads {
        let reason = offload.reason.as_ref().map(|reason| format!(" ({reason})"));
        let reason = reason.unwrap_or_default();
        let state = match offload.state {
            OffloadState::Lost => style.paint(Tone::Alarm, &format!("lost{reason}")),
            OffloadState::Off => style.paint(Tone::Warning, &format!("off{reason}")),
            OffloadState::On => style.paint(Tone::Good, "on"),
            OffloadState::Unknown => "unknown".to_owned(),
        };
        texts.push(format!("{} {state}", offload.name));
    }
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}

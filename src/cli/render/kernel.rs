//! Entries of kernel devices, and the devices.

use std::fmt::Write as _;

use super::super::table::{Cell, Style, Table, Tone};
use crate::control::types::{ExportedEntry, KernelLink, KernelState};

/// The entries as lines of bridge(8) and ip-neighbour(8), as the agent would enter them: permanent,
/// and with the marks by which it finds them again.
#[must_use]
pub fn exported(entries: &[ExportedEntry], netns: Option<&str>, dev: &str) -> String {
    let inside = match netns {
        Some(path) if path.starts_with('/') => format!("nsenter --net={path} "),
        Some(pid) if pid.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("nsenter --net=/proc/{pid}/ns/net ")
        }
        Some(name) => format!("ip netns exec {name} "),
        None => String::new(),
    };
    let mut text = String::new();
    for entry in entries {
        let ExportedEntry { mac, vtep, port, .. } = entry;
        let _ = writeln!(
            text,
            "{inside}bridge fdb replace {mac} dev {dev} dst {vtep} port {port} self permanent \
             extern_learn"
        );
        for ip in &entry.ips {
            let _ = writeln!(
                text,
                "{inside}ip neigh replace {ip} lladdr {mac} dev {dev} nud permanent protocol 91"
            );
        }
    }
    text
}

/// The devices that a network exchanges entries with.
#[must_use]
pub fn kernel_links(links: &[KernelLink], style: Style) -> String {
    let mut table = Table::new(&["NETWORK", "WAY", "DEVICE", "NAMESPACE", "STATE", ">ENTRIES"]);
    let mut notes = String::new();
    for link in links {
        let state = link.state.to_string();
        let state: Cell = match link.state {
            KernelState::Failed => Cell::toned(&state, Tone::Alarm),
            KernelState::Waiting | KernelState::Unknown => Cell::toned(&state, Tone::Warning),
            KernelState::Following | KernelState::Once | KernelState::Stopped => state.into(),
        };
        table.row(vec![
            link.network.as_str().into(),
            link.direction.to_string().into(),
            link.dev.as_str().into(),
            link.netns.as_str().into(),
            state,
            link.entries.into(),
        ]);
        if let Some(reason) = &link.reason {
            let _ = writeln!(notes, "{} {}: {reason}", link.direction, link.state);
        }
        for conflict in &link.conflicts {
            let _ = writeln!(notes, "{} left out: {conflict}", link.direction);
        }
    }
    table.render(style, 0) + &notes
}

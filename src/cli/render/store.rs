//! The members of the store.

use super::super::table::{Cell, Style, Table, Tone};
use crate::store::admin::MemberStatus;

/// `skybridge store status`.
#[must_use]
pub fn members(members: &[MemberStatus], style: Style) -> String {
    let mut table = Table::new(&["ENDPOINT", "STATE", ">REVISION", ">SIZE", ">IN USE", "VERSION"]);
    let mut notes = String::new();
    for member in members {
        let state = match (member.answers, member.errors.is_empty(), member.leads) {
            (false, ..) => Cell::toned("away", Tone::Alarm),
            (true, false, _) => Cell::toned("ailing", Tone::Warning),
            (true, true, true) => Cell::toned("leads", Tone::Good),
            (true, true, false) => Cell::toned("follows", Tone::Good),
        };
        let dash = || "-".to_owned();
        table.row(vec![
            member.endpoint.as_str().into(),
            state,
            member.revision.map_or_else(dash, |revision| revision.to_string()).into(),
            member.size_bytes.map_or_else(dash, size).into(),
            member.in_use_bytes.map_or_else(dash, size).into(),
            member.version.clone().unwrap_or_else(dash).into(),
        ]);
        for error in &member.errors {
            notes.push_str(&format!("{}: {error}\n", member.endpoint));
        }
    }
    format!("{}{notes}", table.render(style, 0))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1024 / 1024),
    }
}

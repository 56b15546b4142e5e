//! Garbage.

use std::fmt::Write as _;

use super::super::table::{Cell, Style, Table, Tone, age};
use super::{or_dash, plural, sorted};
use crate::control::types::{Garbage, GarbageState};

/// `skybridge gc`.
#[must_use]
pub fn garbage(found: &[Garbage], style: Style) -> String {
    if found.is_empty() {
        return "nothing is without a living owner\n".to_owned();
    }
    let mut table = Table::new(&["WHAT", "KEY", "NETWORK", ">AGE", "STATE", "REASON"]);
    for row in sorted(found) {
        let age = row.age_ms.map(age);
        let reason = match &row.cause {
            Some(cause) => format!("{}; {cause}", row.reason),
            None => row.reason.clone(),
        };
        table.row(vec![
            row.kind.into(),
            row.key.into(),
            or_dash(row.network.as_deref()).into(),
            or_dash(age.as_deref()).into(),
            state(row.state),
            reason.into(),
        ]);
    }
    let mut text = table.render(style, 0);
    let waiting = found.iter().filter(|row| row.state == GarbageState::Found).count() as u64;
    if waiting != 0 {
        let what = plural(waiting, "thing");
        let _ = writeln!(text, "\nnothing was removed; `skybridge gc --apply` removes {what}");
    }
    text
}

fn state(state: GarbageState) -> Cell {
    match state {
        GarbageState::Changed => Cell::toned("changed", Tone::Warning),
        GarbageState::Failed => Cell::toned("failed", Tone::Alarm),
        GarbageState::Found => "found".into(),
        GarbageState::Named => Cell::toned("named", Tone::Warning),
        GarbageState::Removed => Cell::toned("removed", Tone::Good),
        GarbageState::Unknown => "unknown".into(),
    }
}

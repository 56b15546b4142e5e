//! Counters and rates.

use std::fmt::Write as _;

use super::super::table::{Style, Table, Tone, age};
use super::plural;
use crate::control::types::{Counter, Stats};

/// `skybridge stats`: counters that are not zero, or `all`; with the share of each worker or their
/// meaning.
#[must_use]
pub fn stats(stats: &Stats, all: bool, workers: bool, style: Style) -> String {
    let mut text = format!("{}, up {}\n", plural(stats.workers, "worker"), age(stats.uptime_ms));
    let mut section = |title: &str, counters: &[Counter]| {
        let counters: Vec<&Counter> =
            counters.iter().filter(|counter| all || counter.value != 0).collect();
        if counters.is_empty() {
            return;
        }
        let _ = write!(text, "\n{}\n", style.paint(Tone::Heading, title));
        text.push_str(&if workers {
            by_worker(&counters, style)
        } else {
            with_meaning(&counters, style)
        });
    };
    section("agent", &stats.counters);
    let mut networks: Vec<_> = stats.networks.iter().collect();
    networks.sort_by_key(|network| &network.network);
    for network in networks {
        section(&format!("network {}", network.network), &network.counters);
    }
    if !stats.limits.is_empty() {
        let _ =
            write!(text, "\n{}\n{}", style.paint(Tone::Heading, "limits"), limits(stats, style));
    }
    text
}

/// How full queues and tables are, the fullest first.
fn limits(stats: &Stats, style: Style) -> String {
    let share = |used: Option<u64>, limit: u64| {
        used.map_or(0, |used| u128::from(used) * 1000 / u128::from(limit.max(1)))
    };
    let mut limits: Vec<_> = stats.limits.iter().collect();
    limits.sort_by_key(|limit| std::cmp::Reverse(share(limit.high.max(limit.used), limit.limit)));
    let mut table = Table::new(&["NAME", ">USED", ">HIGH", ">LIMIT", "UNIT", "MEANING"]);
    let told = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for limit in limits {
        table.row(vec![
            limit.name.as_str().into(),
            told(limit.used).into(),
            told(limit.high).into(),
            limit.limit.into(),
            limit.unit.as_str().into(),
            limit.help.as_str().into(),
        ]);
    }
    table.render(style, 2)
}

fn with_meaning(counters: &[&Counter], style: Style) -> String {
    let mut table = Table::new(&["COUNTER", ">VALUE", "UNIT", "MEANING"]);
    for counter in counters {
        table.row(vec![
            counter.name.as_str().into(),
            counter.value.into(),
            counter.unit.as_str().into(),
            counter.help.as_str().into(),
        ]);
    }
    table.render(style, 2)
}

fn by_worker(counters: &[&Counter], style: Style) -> String {
    let mut table = Table::new(&["COUNTER", ">VALUE", "UNIT", "BY WORKER"]);
    for counter in counters {
        let shares: Vec<String> = counter.workers.iter().map(u64::to_string).collect();
        table.row(vec![
            counter.name.as_str().into(),
            counter.value.into(),
            counter.unit.as_str().into(),
            shares.join(" ").into(),
        ]);
    }
    table.render(style, 2)
}

/// `skybridge stats --watch`: what happened per second between two looks, counters that moved or
/// `all`. The spans are told by the agent's own clock; after a restart everything counts from zero.
#[must_use]
pub fn rates(before: &Stats, now: &Stats, all: bool, style: Style) -> String {
    let restarted = now.uptime_ms < before.uptime_ms;
    let span_ms = if restarted { now.uptime_ms } else { now.uptime_ms - before.uptime_ms }.max(1);
    let mut table = Table::new(&["COUNTER", "NETWORK", ">PER SECOND", "UNIT", ">TOTAL"]);
    let mut section = |network: &str, now: &[Counter], before: Option<&[Counter]>| {
        for counter in now {
            let earlier = before
                .filter(|_| !restarted)
                .and_then(|before| before.iter().find(|earlier| earlier.name == counter.name))
                .map_or(0, |earlier| earlier.value);
            let moved = counter.value.saturating_sub(earlier);
            if moved == 0 && !all {
                continue;
            }
            let per_second = u128::from(moved) * 1000 / u128::from(span_ms);
            table.row(vec![
                counter.name.as_str().into(),
                network.into(),
                per_second.into(),
                counter.unit.as_str().into(),
                counter.value.into(),
            ]);
        }
    };
    section("-", &now.counters, Some(&before.counters));
    let mut networks: Vec<_> = now.networks.iter().collect();
    networks.sort_by_key(|network| &network.network);
    for network in networks {
        let earlier = before.networks.iter().find(|earlier| earlier.network == network.network);
        let earlier = earlier.map(|earlier| earlier.counters.as_slice());
        section(&network.network, &network.counters, earlier);
    }
    let restart = if restarted { ", restarted since the last look" } else { "" };
    format!(
        "{}, up {}{restart}\n\n{}",
        plural(now.workers, "worker"),
        age(now.uptime_ms),
        table.render(style, 0)
    )
}

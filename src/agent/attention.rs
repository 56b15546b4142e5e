//! What in the store needs somebody's attention, as warnings of `skybridge status`.
//!
//! # Theory of operation
//!
//! The tables go on with the best they can make of the records: a record that cannot be read is set
//! aside, one of two claims wins, hosts that vanish together keep their entries. Each of these is a
//! warning under a key of its own, which comes with its cause and goes with it; the log has one line
//! for either. Of each kind at most `LISTED` are told, and how many more there are.

use std::collections::{BTreeMap, BTreeSet};

use membership::ipam;
use membership::key::NetworkId;
use membership::reconcile::{Claim, Conflict, Reconciler};
use membership::view::View;

use super::Agent;
use super::rivals;
use super::state::Stage;

/// Warnings of one kind.
const LISTED: usize = 16;

/// The warnings that are up.
#[derive(Default)]
pub struct Attention {
    up: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Note {
    text: String,
    next_step: &'static str,
}

impl Attention {
    /// Brings the agent's warnings to what its tables say now.
    pub fn look(&mut self, agent: &Agent) {
        let mut notes = agent.tables.reconciler(notes);
        let lost = lost_networks(agent);
        if !lost.is_empty() {
            let text = format!(
                "the store does not have networks that sandboxes here are attached to ({}): they \
                 carry no traffic",
                some(&lost)
            );
            let next_step = "`skybridge detach` those sandboxes, or bring the records back";
            notes.insert("lost networks".to_owned(), Note { text, next_step });
        }
        list(
            &mut notes,
            "quarantined endpoints",
            quarantined(agent),
            "detach that sandbox and attach it again; where both should not be, detach the other",
        );
        let now: BTreeSet<String> = notes.keys().cloned().collect();
        for key in self.up.difference(&now) {
            agent.clear_warning(key);
        }
        for (key, note) in notes {
            agent.warn(&key, note.text, Some(note.next_step.to_owned()));
        }
        self.up = now;
    }
}

/// Endpoints of this host with a MAC or an address that somebody else has.
fn quarantined(agent: &Agent) -> Vec<(String, String)> {
    let notes = agent.attachments().into_iter().filter(|note| note.stage == Stage::Quarantined);
    let told = notes.map(|note| {
        let text = format!(
            "endpoint {} (sandbox {}) of network {} is cut off: {}",
            note.endpoint,
            note.sandbox,
            note.network_name,
            note.reason.as_deref().unwrap_or("its addresses are somebody else's now")
        );
        (format!("quarantine {}", note.endpoint), text)
    });
    told.collect()
}

/// Networks of attachments that a complete listing did not have.
fn lost_networks(agent: &Agent) -> Vec<String> {
    if !agent.tables.is_complete() {
        return Vec::new();
    }
    let attached = agent.attachments().into_iter().filter(|note| note.stage == Stage::Attached);
    let lost: BTreeSet<String> = attached
        .filter(|note| {
            let id = NetworkId::new(&note.network).ok();
            id.is_none_or(|id| agent.known_network(&id).is_none())
        })
        .map(|note| note.network_name)
        .collect();
    lost.into_iter().collect()
}

fn notes(reconciler: &Reconciler, view: &View) -> BTreeMap<String, Note> {
    let mut notes = BTreeMap::new();
    let bad = view.bad().map(|(key, bad)| {
        // Anybody may have written it: nothing in it may act on a terminal.
        let (key, error) = (key.escape_debug(), bad.error.escape_debug());
        let text = format!("{key} in the store cannot be used and is set aside: {error}");
        (format!("record {key}"), text)
    });
    list(
        &mut notes,
        "records",
        bad.collect(),
        "repair or delete that key; what it held before is still in use",
    );
    let conflicts = reconciler.conflicts();
    let conflicts = conflicts.iter().map(|conflict| (conflict_key(conflict), told(conflict, view)));
    list(&mut notes, "conflicts", conflicts.collect(), "detach all but one of them");
    let next_step = "which is right? delete the others' records from the store";
    list(&mut notes, "rivals", rivals::find(view), next_step);
    unable(&mut notes, reconciler, view);
    pools(&mut notes, view);
    let frozen: Vec<String> = reconciler.frozen().into_iter().map(ToString::to_string).collect();
    if !frozen.is_empty() {
        let text = format!(
            "the leases of {} hosts ended together ({}): nothing of them is removed",
            frozen.len(),
            some(&frozen)
        );
        let next_step =
            "is the store or the underlay cut off from them? `skybridge hosts` has more";
        notes.insert("expiry".to_owned(), Note { text, next_step });
    }
    notes
}

/// Hosts with endpoints in networks that they cannot receive.
fn unable(notes: &mut BTreeMap<String, Note>, reconciler: &Reconciler, view: &View) {
    let mut found = Vec::new();
    for (id, _) in reconciler.active() {
        let Some(network) = view.network(id) else { continue };
        let (name, mode) = (&network.record.name, network.record.mode);
        for host in reconciler.unable(id) {
            let text = format!(
                "host {host} has endpoints in network {name} and does not say that it can receive \
                 {mode}: they are not sent to"
            );
            found.push((format!("mode {id} {host}"), text));
        }
    }
    let next_step =
        "upgrade the program on that host; `skybridge hosts` shows what each can receive";
    list(notes, "hosts", found, next_step);
}

/// Subnets that are nearly used up. Those of IPv6 have never been seen so.
fn pools(notes: &mut BTreeMap<String, Note>, view: &View) {
    let mut found = Vec::new();
    for item in view.networks() {
        let network = &item.record;
        let blocks = view.blocks_of(&network.id).map(|(cidr, item)| (cidr, item.record.as_ref()));
        for usage in ipam::usage(network, blocks) {
            let how = match usage.percent() {
                100 => "is used up",
                95.. => "is all but used up",
                80.. => "is filling up",
                _ => continue,
            };
            let text = format!(
                "subnet {} of network {} {how}: {} of {} addresses are taken, {} of them reserved \
                 by hosts",
                usage.subnet, network.name, usage.used, usage.capacity, usage.reserved
            );
            found.push((format!("pool {} {}", network.id, usage.subnet), text));
        }
    }
    let next_step = "detach what is not needed, or create a network with a larger subnet; \
                     `skybridge network inspect` shows who has what, `skybridge gc` what nobody has";
    list(notes, "subnets", found, next_step);
}

fn list(
    notes: &mut BTreeMap<String, Note>,
    kind: &str,
    found: Vec<(String, String)>,
    next_step: &'static str,
) {
    let more = found.len().saturating_sub(LISTED);
    for (key, text) in found.into_iter().take(LISTED) {
        notes.insert(key, Note { text, next_step });
    }
    if more > 0 {
        let text = format!("{more} more {kind} like these");
        notes.insert(format!("more {kind}"), Note { text, next_step });
    }
}

fn claim(claim: Claim) -> String {
    match claim {
        Claim::Ip(ip) => ip.to_string(),
        Claim::Mac(mac) => mac.to_string(),
    }
}

fn conflict_key(conflict: &Conflict) -> String {
    format!("conflict {} {}", conflict.network, claim(conflict.claim))
}

fn told(conflict: &Conflict, view: &View) -> String {
    let network = view
        .network(&conflict.network)
        .map_or_else(|| conflict.network.to_string(), |item| item.record.name.to_string());
    let losers: Vec<String> =
        conflict.losers.iter().map(|(endpoint, host)| format!("{endpoint} on {host}")).collect();
    format!(
        "{} in network {network} is claimed by endpoint {} on {}, which has it, and by {}",
        claim(conflict.claim),
        conflict.winner,
        conflict.winner_host,
        some(&losers)
    )
}

/// The first few, and how many more there are.
fn some(items: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use fdb::Revision;
    use membership::reconcile::Defaults;
    use membership::watch::Event;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_and_bounded() {
        let reconciler = Reconciler::new("h1".parse().unwrap(), Defaults::default());
        let mut view = View::new();
        for number in 0..20_i64 {
            view.apply(Event::Bad {
                key: format!("/skybridge/v1/hosts/x{number:02}"),
                error: "not JSON".to_owned(),
                parsed: None,
                revision: Revision(number),
            });
        }
        let found = notes(&reconciler, &view);
        assert_eq!(found.len(), LISTED + 1);
        let first = &found["record /skybridge/v1/hosts/x00"];
        assert!(first.text.contains("/skybridge/v1/hosts/x00") && first.text.contains("not JSON"));
        assert_eq!(found["more records"].text, "4 more records like these");
    }
}

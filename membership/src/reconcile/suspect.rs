//! Hosts whose leases have ended.
//!
//! Every [`Suspects::tick`] decides anew from three things only: when each lease ended, when each
//! host was last heard, and how many hosts are present. So the outcome does not depend on the order
//! in which expiries arrive, nor on how the hold-down compares with the span of expiring together:
//! a host that left alone comes back when others turn out to have expired with it, and one that is
//! heard again comes back too.

use std::collections::{BTreeMap, BTreeSet};

use fdb::Millis;

use super::Defaults;
use crate::key::HostName;

#[derive(Debug)]
struct Suspect {
    since: Millis,
    /// When its VTEP was last heard, else `since`.
    heard: Millis,
    /// Whether it was present in this run: only those can expire together. A host that was away
    /// from the start is no news.
    expired: bool,
    /// Whether it has left the flood lists.
    left: bool,
    /// Whether something has happened since it left that may bring it back.
    revisit: bool,
    /// Whether it stays because many expired together.
    frozen: bool,
}

/// Hosts whose leases have ended, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    suspects: BTreeMap<HostName, Suspect>,
    seen: BTreeSet<HostName>,
}

impl Suspects {
    pub(super) fn present(&mut self, host: &HostName) {
        self.seen.insert(host.clone());
        self.remove(host);
    }

    pub(super) fn absent(&mut self, host: &HostName, now: Millis) {
        if self.suspects.contains_key(host) {
            return;
        }
        let expired = self.seen.contains(host);
        // It may have expired together with one that has left.
        for suspect in self.suspects.values_mut() {
            suspect.revisit = suspect.left;
        }
        self.suspects.entry(host.clone()).or_insert(Suspect {
            since: now,
            heard: now,
            expired,
            left: false,
            revisit: false,
            frozen: false,
        });
    }

    pub(super) fn forget(&mut self, host: &HostName) {
        self.seen.remove(host);
        self.remove(host);
    }

    fn remove(&mut self, host: &HostName) {
        if self.suspects.remove(host).is_some() {
            // With one less, the others may no longer be many: the next tick decides again.
            for suspect in self.suspects.values_mut() {
                suspect.frozen = false;
            }
        }
    }

    pub(super) fn heard(&mut self, host: &HostName, now: Millis) {
        if let Some(suspect) = self.suspects.get_mut(host) {
            suspect.heard = suspect.heard.max(now);
            suspect.revisit = suspect.left;
        }
    }

    pub(super) fn contains(&self, host: &HostName) -> bool {
        self.suspects.contains_key(host)
    }

    /// Whether the host has left the flood lists.
    pub(super) fn has_left(&self, host: &HostName) -> bool {
        self.suspects.get(host).is_some_and(|suspect| suspect.left)
    }

    /// Whether a suspect host still counts for the MTU: it was here in this run and may return.
    pub(super) fn counts(&self, host: &HostName) -> bool {
        self.suspects.get(host).is_some_and(|suspect| suspect.expired && !suspect.left)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&HostName, Millis)> {
        self.suspects.iter().map(|(host, suspect)| (host, suspect.since))
    }

    pub(super) fn frozen(&self) -> Vec<&HostName> {
        let frozen = self.suspects.iter().filter(|(_, suspect)| suspect.frozen);
        frozen.map(|(host, _)| host).collect()
    }

    pub(super) fn next_deadline(&self, defaults: &Defaults) -> Option<Millis> {
        let deadline = |suspect: &Suspect| match suspect {
            Suspect { revisit: true, heard, .. } => Some(*heard),
            Suspect { left: true, .. } | Suspect { frozen: true, .. } => None,
            suspect => Some(due(suspect, defaults)),
        };
        self.suspects.values().filter_map(deadline).min()
    }

    /// Lets hosts leave whose hold-down has passed, and come back that were heard. `present` is how
    /// many others are present. True when a flood list may have changed.
    pub(super) fn tick(&mut self, defaults: &Defaults, present: usize, now: Millis) -> bool {
        let expired: Vec<Millis> = self
            .suspects
            .values()
            .filter(|suspect| suspect.expired)
            .map(|suspect| suspect.since)
            .collect();
        let percent = usize::try_from(defaults.freeze_percent).unwrap_or(100);
        let mut changed = false;
        for suspect in self.suspects.values_mut() {
            let apart = |since: &&Millis| {
                since.since(suspect.since).max(suspect.since.since(**since)) <= defaults.together
            };
            let group = expired.iter().filter(apart).count();
            // Of those that were there before this group expired.
            let many = group >= 2 && group * 100 > (present + group) * percent;
            let silent = due(suspect, defaults) <= now;
            suspect.frozen = silent && suspect.expired && many;
            suspect.revisit = false;
            let left = silent && !suspect.frozen;
            changed |= left != suspect.left;
            suspect.left = left;
        }
        changed
    }
}

/// When the hold-down of a suspect has passed.
fn due(suspect: &Suspect, defaults: &Defaults) -> Millis {
    Millis(suspect.heard.0.saturating_add(defaults.hold_down.0))
}

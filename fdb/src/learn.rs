//! The writer's account of one network's learned entries.
//!
//! # Theory of operation
//!
//! Learning maps a source MAC to the VTEP that sent it, in networks that have VTEPs outside the
//! store. The entries themselves are in the MAC table, marked as learned. This account is the
//! writer's own and orders them: per VTEP by the time of their last confirmation, and the VTEPs by
//! how many they have.
//!
//! - Ageing removes what was not confirmed for long, oldest first, and touches nothing else.
//! - The number of entries is limited. A new one in a full network takes the place of the oldest
//!   entry of the VTEP that has the most; the new entry's own VTEP goes first among equals. So a
//!   flood of MACs from one VTEP pushes out only that VTEP's entries once it has the largest share,
//!   and cannot take a VTEP below an equal share of the limit.
//! - Static and store entries are not learned, do not age and do not count.
//!
//! Every operation takes time logarithmic in the limit. One thread, the writer's.

use std::collections::{BTreeMap, BTreeSet};

use encap::MacAddr;

use crate::types::{Millis, VtepKey};

#[derive(Debug, Default)]
pub(crate) struct Learned {
    by_age: BTreeMap<VtepKey, BTreeSet<(Millis, MacAddr)>>,
    /// One element per VTEP of `by_age`: how many it has.
    by_count: BTreeSet<(usize, VtepKey)>,
    len: usize,
}

impl Learned {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, vtep: VtepKey, at: Millis, mac: MacAddr) {
        let entries = self.by_age.entry(vtep).or_default();
        let before = entries.len();
        if entries.insert((at, mac)) {
            self.len += 1;
            self.by_count.remove(&(before, vtep));
            self.by_count.insert((before + 1, vtep));
        }
    }

    pub(crate) fn remove(&mut self, vtep: VtepKey, at: Millis, mac: MacAddr) {
        let Some(entries) = self.by_age.get_mut(&vtep) else { return };
        let before = entries.len();
        if !entries.remove(&(at, mac)) {
            return;
        }
        self.len -= 1;
        self.by_count.remove(&(before, vtep));
        if before > 1 {
            self.by_count.insert((before - 1, vtep));
        } else {
            self.by_age.remove(&vtep);
        }
    }

    /// Takes out the entry that makes room for a new one of `vtep`: the oldest of the VTEP with the
    /// most.
    pub(crate) fn evict(&mut self, vtep: VtepKey) -> Option<MacAddr> {
        let (most, mut from) = *self.by_count.last()?;
        if self.by_age.get(&vtep).is_some_and(|entries| entries.len() == most) {
            from = vtep;
        }
        let (at, mac) = *self.by_age.get(&from)?.first()?;
        self.remove(from, at, mac);
        Some(mac)
    }

    /// Takes out everything last confirmed at `deadline` or before.
    pub(crate) fn expire(&mut self, deadline: Millis) -> Vec<MacAddr> {
        let expired: Vec<_> = self
            .by_age
            .iter()
            .flat_map(|(vtep, entries)| {
                let old = entries.iter().take_while(|(at, _)| *at <= deadline);
                old.map(|(at, mac)| (*vtep, *at, *mac))
            })
            .collect();
        for (vtep, at, mac) in &expired {
            self.remove(*vtep, *at, *mac);
        }
        expired.into_iter().map(|(_, _, mac)| mac).collect()
    }

    /// Takes out everything of one VTEP.
    pub(crate) fn take_vtep(&mut self, vtep: VtepKey) -> Vec<MacAddr> {
        let Some(entries) = self.by_age.remove(&vtep) else { return Vec::new() };
        self.len -= entries.len();
        self.by_count.remove(&(entries.len(), vtep));
        entries.into_iter().map(|(_, mac)| mac).collect()
    }

    /// The VTEPs that something was learned from.
    pub(crate) fn vteps(&self) -> Vec<VtepKey> {
        self.by_age.keys().copied().collect()
    }
}

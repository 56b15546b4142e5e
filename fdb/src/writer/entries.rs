//! MACs, neighbors and routes: claims, and what is learned.

use std::net::IpAddr;

use encap::MacAddr;

use super::{Ledger, Writer};
use crate::claims::{self, Outcome};
use crate::fanout::{Fanout, Full};
use crate::snapshot::NetworkTables;
use crate::types::{
    MacEntry, Millis, Neighbor, NetworkKey, Origin, OriginKind, Place, Prefix, Route, VtepKey,
};

impl Ledger {
    /// Strikes out a MAC whose entry was learned.
    fn forget(&mut self, mac: MacAddr, entry: Option<MacEntry>) {
        if let Some(MacEntry { place: Place::Vtep(vtep), origin: Origin::Learned { at } }) = entry {
            self.learned.remove(vtep, at, mac);
        }
    }
}

/// Static and store entries.
impl Writer {
    pub(super) fn put_mac(&mut self, network: NetworkKey, mac: MacAddr, entry: MacEntry) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let present = tables.macs.get(&mac).copied();
        let outcome = claims::put(&mut ledger.macs, mac, present, entry);
        if outcome == Outcome::Show(entry) {
            ledger.forget(mac, present);
            self.change_macs(network, |macs| macs.insert(mac, entry).map(|_| ()));
        } else {
            self.count(outcome);
        }
    }

    pub(super) fn remove_mac(&mut self, network: NetworkKey, mac: MacAddr, kind: OriginKind) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let present = tables.macs.get(&mac).copied();
        match claims::remove(&mut ledger.macs, mac, present, kind) {
            Outcome::Hide => {
                ledger.forget(mac, present);
                self.change_macs(network, |macs| {
                    macs.remove(&mac);
                    Ok(())
                });
            }
            Outcome::Show(entry) => {
                self.change_macs(network, |macs| macs.insert(mac, entry).map(|_| ()));
            }
            Outcome::Keep | Outcome::Refused | Outcome::Stale => {}
        }
    }

    pub(super) fn put_neighbor(&mut self, network: NetworkKey, ip: IpAddr, neighbor: Neighbor) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let present = tables.neighbors.get(&ip).copied();
        let outcome = claims::put(&mut ledger.neighbors, ip, present, neighbor);
        if outcome == Outcome::Show(neighbor) {
            self.show_neighbor(network, ip, Some(neighbor));
        } else {
            self.count(outcome);
        }
    }

    pub(super) fn remove_neighbor(&mut self, network: NetworkKey, ip: IpAddr, kind: OriginKind) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let present = tables.neighbors.get(&ip).copied();
        match claims::remove(&mut ledger.neighbors, ip, present, kind) {
            Outcome::Hide => self.show_neighbor(network, ip, None),
            Outcome::Show(neighbor) => self.show_neighbor(network, ip, Some(neighbor)),
            Outcome::Keep | Outcome::Refused | Outcome::Stale => {}
        }
    }

    fn show_neighbor(&mut self, network: NetworkKey, ip: IpAddr, neighbor: Option<Neighbor>) {
        let Some(tables) = self.working.networks.get_mut(network.0) else { return };
        let changed = match neighbor {
            Some(neighbor) => tables.neighbors.insert(ip, neighbor).map(|_| ()),
            None => {
                tables.neighbors.remove(&ip);
                Ok(())
            }
        };
        self.dirty = true;
        self.stats.full += u64::from(changed == Err(Full));
    }

    pub(super) fn put_route(&mut self, network: NetworkKey, prefix: Prefix, route: Route) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let present = tables.routes.get(prefix).copied();
        let outcome = claims::put(&mut ledger.routes, prefix, present, route);
        if outcome == Outcome::Show(route) {
            self.show_route(network, prefix, Some(route));
        } else {
            self.count(outcome);
        }
    }

    pub(super) fn remove_route(&mut self, network: NetworkKey, prefix: Prefix, kind: OriginKind) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let present = tables.routes.get(prefix).copied();
        match claims::remove(&mut ledger.routes, prefix, present, kind) {
            Outcome::Hide => self.show_route(network, prefix, None),
            Outcome::Show(route) => self.show_route(network, prefix, Some(route)),
            Outcome::Keep | Outcome::Refused | Outcome::Stale => {}
        }
    }

    fn show_route(&mut self, network: NetworkKey, prefix: Prefix, route: Option<Route>) {
        let Some(tables) = self.working.networks.get_mut(network.0) else { return };
        let changed = match route {
            Some(route) => tables.routes.insert(prefix, route),
            None => {
                tables.routes.remove(prefix);
                Ok(())
            }
        };
        self.dirty = true;
        self.stats.full += u64::from(changed == Err(Full));
    }

    fn count<V>(&mut self, outcome: Outcome<V>) {
        match outcome {
            Outcome::Refused => self.stats.refused += 1,
            Outcome::Stale => self.stats.stale += 1,
            Outcome::Hide | Outcome::Keep | Outcome::Show(_) => {}
        }
    }

    /// Changes a network's MAC table and takes over the number of learned entries.
    fn change_macs(
        &mut self,
        network: NetworkKey,
        change: impl FnOnce(&mut Fanout<MacAddr, MacEntry>) -> Result<(), Full>,
    ) -> bool {
        let Some(tables) = self.working.networks.get_mut(network.0) else { return false };
        let done = change(&mut tables.macs).is_ok();
        tables.learned_len = self.ledgers.get(&network).map_or(0, |ledger| ledger.learned.len());
        self.dirty = true;
        self.stats.full += u64::from(!done);
        done
    }
}

/// Learned entries.
impl Writer {
    pub(super) fn learn(&mut self, network: NetworkKey, mac: MacAddr, vtep: VtepKey, at: Millis) {
        let limit = self.limits.learned_per_network;
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            self.stats.unknown_network += 1;
            return;
        };
        let admitted = self.cluster.contains(vtep.0)
            || (tables.static_vteps.binary_search(&vtep).is_ok()
                && self.working.vtep(vtep).is_some());
        if !tables.params.learning || !mac.is_unicast() || limit == 0 || !admitted {
            self.stats.learn_refused += 1;
            return;
        }
        let mut evicted = None;
        match tables.macs.get(&mac).copied() {
            Some(MacEntry { place: Place::Vtep(from), origin: Origin::Learned { at: last } }) => {
                if from == vtep && at.since(last) < self.limits.refresh {
                    return;
                }
                // Reports of several workers may come out of order.
                if at < last {
                    return;
                }
                ledger.learned.remove(from, last, mac);
                self.stats.learn_moved += u64::from(from != vtep);
            }
            Some(_) => {
                self.stats.learn_shadowed += 1;
                return;
            }
            None => {
                if ledger.learned.len() >= limit {
                    evicted = ledger.learned.evict(vtep);
                    self.stats.learn_evicted += u64::from(evicted.is_some());
                }
                self.stats.learned += 1;
            }
        }
        ledger.learned.insert(vtep, at, mac);
        let entry = MacEntry { place: Place::Vtep(vtep), origin: Origin::Learned { at } };
        let done = self.change_macs(network, |macs| {
            if let Some(evicted) = evicted {
                macs.remove(&evicted);
            }
            macs.insert(mac, entry).map(|_| ())
        });
        if !done && let Some(ledger) = self.ledgers.get_mut(&network) {
            ledger.learned.remove(vtep, at, mac);
            self.change_macs(network, |_| Ok(()));
        }
    }

    pub(super) fn age(&mut self, now: Millis, max_age: Millis) {
        let Some(deadline) = now.0.checked_sub(max_age.0).map(Millis) else { return };
        let networks: Vec<NetworkKey> = self.ledgers.keys().copied().collect();
        for network in networks {
            let Some(ledger) = self.ledgers.get_mut(&network) else { continue };
            let expired = ledger.learned.expire(deadline);
            self.stats.learn_expired += expired.len() as u64;
            self.drop_learned(network, &expired);
        }
    }

    /// Drops what was learned from VTEPs that a network no longer admits.
    pub(super) fn forget_unadmitted(&mut self) {
        let cluster = self.cluster.clone();
        let networks: Vec<NetworkKey> = self.ledgers.keys().copied().collect();
        for network in networks {
            self.forget(network, |tables, vtep| {
                !cluster.contains(vtep.0) && tables.static_vteps.binary_search(&vtep).is_err()
            });
        }
    }

    /// Drops what a network learned from the VTEPs that are `gone`.
    pub(super) fn forget(
        &mut self,
        network: NetworkKey,
        gone: impl Fn(&NetworkTables, VtepKey) -> bool,
    ) {
        let (Some(tables), Some(ledger)) =
            (self.working.network(network), self.ledgers.get_mut(&network))
        else {
            return;
        };
        let mut macs = Vec::new();
        for vtep in ledger.learned.vteps() {
            if gone(tables, vtep) {
                macs.append(&mut ledger.learned.take_vtep(vtep));
            }
        }
        self.drop_learned(network, &macs);
    }

    fn drop_learned(&mut self, network: NetworkKey, gone: &[MacAddr]) {
        if gone.is_empty() {
            return;
        }
        self.change_macs(network, |macs| {
            for mac in gone {
                macs.remove(mac);
            }
            Ok(())
        });
    }
}

//! Static entries that agents read from kernel devices.
//!
//! # Theory of operation
//!
//! ```text
//!   host h1: device says M1 at V2 ──┐
//!   host h2: device says M1 at V2 ──┼─► static VTEP V2: M1, by h1 and h2
//!   host h2: device no longer does ─┘                   M1, by h1 (a device of h1 still says so)
//! ```
//!
//! Several hosts may know the same, so each entry names the hosts that say so, and stays until the
//! last of them takes its word back. A host tells everything it knows at each change; what it told
//! before and does not tell now is taken back, nothing else is touched. Where two say that one MAC or
//! address is at different VTEPs, the newer word counts: a `fresh` entry replaces what others said,
//! and an old one does not come back while the newer one stands. What somebody wrote down by hand is
//! neither changed nor repeated. The word of a host that the store no longer knows counts no more.
//!
//! Hosts that agree on the VTEP may know different addresses of a MAC. Those of one host count, and
//! which one that is follows from what all say and not from who spoke last, or two hosts would correct
//! each other without end: the host on whose own side it is, else one that knows any address, else the
//! first by name.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::MacAddr;

use super::{Error, update};
use crate::key::HostName;
use crate::record::{ImportedMac, NetworkRecord, StaticVtep};
use crate::store::Store;

/// Most imported entries of one network: they lie in its record, which a store takes up to 1.5 MB of.
pub const IMPORTED_MAX: usize = 4096;

/// What a device says of a MAC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Imported {
    /// The MAC.
    pub mac: MacAddr,
    /// Address of the VTEP that it is behind.
    pub vtep: IpAddr,
    /// Port of that VTEP; `None` is the network's.
    pub port: Option<u16>,
    /// Its addresses, sorted.
    pub ips: Vec<IpAddr>,
    /// Whether it was not known here before, so that it beats what others said.
    pub fresh: bool,
    /// Whether it is on the host's own side of the device.
    pub local: bool,
}

/// Makes what `host` says of a network exactly `entries`. `is_known` tells which hosts the store still
/// knows.
///
/// # Errors
///
/// [`Error::TooManyImported`], [`Error::Vtep`], or as [`update`].
pub async fn import(
    store: &Store,
    name_or_id: &str,
    host: &HostName,
    entries: &[Imported],
    is_known: impl Fn(&HostName) -> bool,
) -> Result<NetworkRecord, Error> {
    update(store, name_or_id, |record| {
        merge(record, host, entries, &is_known);
        let count = record.static_vteps.iter().map(|vtep| vtep.imported.len()).sum();
        if count > IMPORTED_MAX {
            return Err(Error::TooManyImported { name: record.name.clone(), count });
        }
        Ok(())
    })
    .await
}

/// Whether [`import`] would change nothing of `record`.
#[must_use]
pub fn is_imported(
    record: &NetworkRecord,
    host: &HostName,
    entries: &[Imported],
    is_known: impl Fn(&HostName) -> bool,
) -> bool {
    let mut trial = record.clone();
    merge(&mut trial, host, entries, is_known);
    trial.static_vteps == record.static_vteps
}

/// Changes the static VTEPs of `record` to what `host` says now.
pub(super) fn merge(
    record: &mut NetworkRecord,
    host: &HostName,
    entries: &[Imported],
    is_known: impl Fn(&HostName) -> bool,
) {
    let by_hand: BTreeSet<MacAddr> =
        record.static_vteps.iter().flat_map(|vtep| &vtep.macs).map(|known| known.mac).collect();
    let wanted: BTreeMap<Place, &Imported> = entries
        .iter()
        .filter(|entry| !by_hand.contains(&entry.mac))
        .map(|entry| ((entry.mac, entry.vtep), entry))
        .collect();
    let mut said = Said::default();
    for vtep in &mut record.static_vteps {
        for mut known in std::mem::take(&mut vtep.imported) {
            let place = (known.mac, vtep.address);
            // What is no longer said goes first, so that it contradicts nothing.
            let still = wanted.contains_key(&place);
            known.by.retain(|other| if other == host { still } else { is_known(other) });
            if known.ips_by.as_ref().is_some_and(|told| !known.by.contains(told)) {
                known.ips_by = None;
                known.local = false;
            }
            if !known.by.is_empty() && !by_hand.contains(&known.mac) {
                said.put(place, known);
            }
        }
    }
    for (place, entry) in wanted {
        said.take(place, host, entry);
    }
    for ((_, address), known) in said.all {
        let at = record.static_vteps.iter().position(|vtep| vtep.address == address);
        let at = at.unwrap_or_else(|| {
            let mut vtep = StaticVtep::new(address);
            let entry = entries.iter().find(|entry| entry.vtep == address);
            vtep.port = entry.and_then(|entry| entry.port);
            vtep.by_import = true;
            record.static_vteps.push(vtep);
            record.static_vteps.len() - 1
        });
        if let Some(vtep) = record.static_vteps.get_mut(at) {
            vtep.imported.push(known);
        }
    }
    record
        .static_vteps
        .retain(|vtep| !vtep.by_import || !vtep.imported.is_empty() || !vtep.macs.is_empty());
}

/// A MAC behind a VTEP.
type Place = (MacAddr, IpAddr);

/// All that is said, with an index of what may contradict it.
#[derive(Default)]
struct Said {
    all: BTreeMap<Place, ImportedMac>,
    macs: BTreeMap<MacAddr, BTreeSet<Place>>,
    ips: BTreeMap<IpAddr, BTreeSet<Place>>,
}

impl Said {
    fn put(&mut self, place: Place, known: ImportedMac) {
        self.remove(place);
        self.macs.entry(place.0).or_default().insert(place);
        for ip in &known.ips {
            self.ips.entry(*ip).or_default().insert(place);
        }
        self.all.insert(place, known);
    }

    fn remove(&mut self, place: Place) {
        let Some(known) = self.all.remove(&place) else { return };
        if let Some(places) = self.macs.get_mut(&place.0) {
            places.remove(&place);
        }
        for ip in &known.ips {
            if let Some(places) = self.ips.get_mut(ip) {
                places.remove(&place);
            }
        }
    }

    /// What says that the MAC or an address of `entry` is at another place.
    fn against(&self, place: Place, entry: &Imported) -> BTreeSet<Place> {
        let same_mac = self.macs.get(&entry.mac).into_iter().flatten();
        let same_ip = entry.ips.iter().filter_map(|ip| self.ips.get(ip)).flatten();
        same_mac.chain(same_ip).copied().filter(|other| *other != place).collect()
    }

    /// Takes what `host` says, unless it is old and contradicted.
    fn take(&mut self, place: Place, host: &HostName, entry: &Imported) {
        let against = self.against(place, entry);
        if !against.is_empty() && !entry.fresh {
            return;
        }
        for other in against {
            self.remove(other);
        }
        let known = self.all.get(&place).cloned();
        let mut now = known.unwrap_or_else(|| ImportedMac::new(entry.mac));
        if let Err(at) = now.by.binary_search(host) {
            now.by.insert(at, host.clone());
        }
        let rank = |local, ips: &[IpAddr], host| (local, !ips.is_empty(), Reverse(host));
        let stays = now.ips_by.as_ref().is_some_and(|told| {
            told != host && rank(now.local, &now.ips, told) > rank(entry.local, &entry.ips, host)
        });
        if !stays {
            now.ips.clone_from(&entry.ips);
            now.ips_by = Some(host.clone());
            now.local = entry.local;
        }
        self.put(place, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{NetworkId, NetworkName};
    use crate::record::StaticMac;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr([0, 0, 0x5e, 0, 0x53, last])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn entry(last: u8, vtep: &str, fresh: bool) -> Imported {
        let ips = vec![ip(&format!("198.51.100.{last}"))];
        Imported { mac: mac(last), vtep: ip(vtep), port: None, ips, fresh, local: false }
    }

    fn record() -> NetworkRecord {
        let name = NetworkName::new("blue").unwrap();
        NetworkRecord::new(NetworkId::random(), name, encap::Vni::new(7).unwrap())
    }

    /// Each imported MAC by its last byte, with its VTEP and who says so.
    fn said(record: &NetworkRecord) -> Vec<(u8, String, String)> {
        let mut all: Vec<_> = record
            .static_vteps
            .iter()
            .flat_map(|vtep| vtep.imported.iter().map(move |known| (vtep.address, known)))
            .map(|(vtep, known)| {
                let by: Vec<&str> = known.by.iter().map(HostName::as_str).collect();
                (known.mac.0[5], vtep.to_string(), by.join(" "))
            })
            .collect();
        all.sort();
        all
    }

    fn row(last: u8, vtep: &str, by: &str) -> (u8, String, String) {
        (last, vtep.to_owned(), by.to_owned())
    }

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";

    #[test]
    fn an_entry_stays_until_the_last_host_takes_its_word_back() {
        let mut net = record();
        merge(&mut net, &host("h1"), &[entry(1, B, true)], |_| true);
        merge(&mut net, &host("h2"), &[entry(1, B, false), entry(2, A, true)], |_| true);
        assert_eq!(said(&net), [row(1, B, "h1 h2"), row(2, A, "h2")]);
        merge(&mut net, &host("h1"), &[], |_| true);
        assert_eq!(said(&net), [row(1, B, "h2"), row(2, A, "h2")]);
        merge(&mut net, &host("h2"), &[], |_| true);
        assert!(net.static_vteps.is_empty(), "{:?}", net.static_vteps);
    }

    #[test]
    fn the_newer_word_counts_and_an_old_one_does_not_come_back() {
        let mut net = record();
        merge(&mut net, &host("h1"), &[entry(1, A, true)], |_| true);
        merge(&mut net, &host("h2"), &[entry(1, B, true)], |_| true);
        merge(&mut net, &host("h1"), &[entry(1, A, false)], |_| true);
        assert_eq!(said(&net), [row(1, B, "h2")]);
        // The address alone makes it the same thing.
        let moved = Imported { mac: mac(9), ..entry(1, A, true) };
        merge(&mut net, &host("h3"), &[moved], |_| true);
        assert_eq!(said(&net), [row(9, A, "h3")]);
        // Once nobody says otherwise, the old word counts again.
        merge(&mut net, &host("h3"), &[], |_| true);
        merge(&mut net, &host("h1"), &[entry(1, A, false)], |_| true);
        assert_eq!(said(&net), [row(1, A, "h1")]);
    }

    /// Two hosts that know different addresses of a MAC, told in turns until nobody has news.
    #[test]
    fn hosts_that_know_different_addresses_come_to_rest() {
        let told = |ips: &[&str], local| Imported {
            ips: ips.iter().map(|text| ip(text)).collect(),
            local,
            ..entry(1, B, false)
        };
        let none = told(&[], false);
        let one = told(&["198.51.100.1"], false);
        let both = told(&["198.51.100.1", "198.51.100.7"], false);
        let side = told(&["198.51.100.9"], true);
        let cases = [(&one, &both, &one), (&both, &one, &both), (&none, &one, &one)];
        for (first, second, wanted) in cases.into_iter().chain([(&both, &side, &side)]) {
            let words = [(host("h1"), first.clone()), (host("h2"), second.clone())];
            for order in [[0, 1], [1, 0]] {
                let mut net = record();
                for at in order.into_iter().chain(order) {
                    let (name, word) = &words[at];
                    merge(&mut net, name, std::slice::from_ref(word), |_| true);
                }
                for (name, word) in &words {
                    assert!(is_imported(&net, name, std::slice::from_ref(word), |_| true));
                }
                assert_eq!(net.static_vteps[0].imported[0].ips, wanted.ips);
            }
        }
        // What the one told goes with its word.
        let mut net = record();
        merge(&mut net, &host("h2"), &[side], |_| true);
        merge(&mut net, &host("h1"), std::slice::from_ref(&one), |_| true);
        merge(&mut net, &host("h2"), &[], |_| true);
        merge(&mut net, &host("h1"), std::slice::from_ref(&one), |_| true);
        assert_eq!(net.static_vteps[0].imported[0].ips, one.ips);
    }

    #[test]
    fn what_was_written_down_by_hand_stays_as_it_is() {
        let mut net = record();
        let mut vtep = StaticVtep::new(ip(A));
        vtep.macs.push(StaticMac { mac: mac(1), ips: Vec::new() });
        net.static_vteps.push(vtep.clone());
        merge(&mut net, &host("h1"), &[entry(1, B, true), entry(2, A, true)], |_| true);
        assert_eq!(said(&net), [row(2, A, "h1")]);
        merge(&mut net, &host("h1"), &[], |_| true);
        assert_eq!(net.static_vteps, [vtep]);
    }

    #[test]
    fn as_many_as_there_may_be_are_merged_in_no_time() {
        let entries: Vec<Imported> = (0..IMPORTED_MAX as u32)
            .map(|n| {
                let [_, _, high, low] = n.to_be_bytes();
                let mac = MacAddr([0, 0, 0x5e, 0, high, low]);
                let ips = vec![IpAddr::from([198, 51, high, low])];
                Imported { mac, vtep: ip(A), port: None, ips, fresh: true, local: false }
            })
            .collect();
        let mut net = record();
        let begun = std::time::Instant::now();
        merge(&mut net, &host("h1"), &entries, |_| true);
        assert!(is_imported(&net, &host("h1"), &entries, |_| true));
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        assert_eq!(said(&net).len(), IMPORTED_MAX);
    }

    #[test]
    fn the_word_of_a_host_that_is_gone_for_good_counts_no_more() {
        let mut net = record();
        merge(&mut net, &host("h1"), &[entry(1, B, true), entry(2, B, true)], |_| true);
        let gone = |name: &HostName| name.as_str() != "h1";
        merge(&mut net, &host("h2"), &[entry(2, B, false)], gone);
        assert_eq!(said(&net), [row(2, B, "h2")]);
    }
}

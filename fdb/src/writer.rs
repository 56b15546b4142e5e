//! The one thread's end that changes the tables.
//!
//! # Theory of operation
//!
//! ```text
//!   Delta --apply--> working state --publish--> current snapshot <--load-- readers
//!                    (shares pages              |
//!                     with the current)         +--> retired --reclaim--> freed
//! ```
//!
//! `apply` changes the working state; pages that the published snapshot shares are copied first,
//! once per batch. `publish` numbers the state and swaps it in, so all changes since the last call
//! appear at once. The former snapshot is retired: the writer keeps a reference, so that no reader
//! is ever the last one to let go and pays for freeing. `reclaim` frees retired snapshots that
//! nobody else holds.
//!
//! A reader that holds on to old snapshots cannot make the writer keep them without end: beyond
//! [`Limits::retired`] the writer lets go of the oldest one, whose last reader then frees it.
//!
//! What readers do not need stays in the writer: claims beneath better ones, the account of
//! learned entries, rival claims on an address or a VNI.

mod entries;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use encap::MacAddr;

use crate::delta::Delta;
use crate::dense::KeySet;
use crate::domains::Domains;
use crate::fanout::Full;
use crate::hash::PortVni;
use crate::learn::Learned;
use crate::snapshot::{NetworkTables, Snapshot};
use crate::types::{
    Generation, MacEntry, Millis, Neighbor, Network, NetworkKey, Prefix, Route, Vtep, VtepKey,
};

/// Bounds of what the writer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Learned entries per network; 0 refuses all. Default 16384.
    pub learned_per_network: usize,
    /// Retired snapshots that wait for their readers. Default 64.
    pub retired: usize,
    /// A confirmation of a learned entry that is younger than this is not recorded, so that
    /// traffic does not make a generation per frame. Default 1000 ms.
    pub refresh: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self { learned_per_network: 16384, retired: 64, refresh: Millis(1000) }
    }
}

/// Counters since the writer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Deltas applied.
    pub deltas: u64,
    /// Snapshots published.
    pub publications: u64,
    /// Retired snapshots freed by the writer.
    pub reclaimed: u64,
    /// Retired snapshots left to their readers because too many waited.
    pub released: u64,
    /// Deltas that named a network which does not exist.
    pub unknown_network: u64,
    /// Deltas refused because a key was out of range or a put had a learned origin.
    pub refused: u64,
    /// Puts ignored because a newer revision was there.
    pub stale: u64,
    /// Puts refused because keys collide beyond the bounds of the table.
    pub full: u64,
    /// MACs learned.
    pub learned: u64,
    /// Learned MACs that moved to another VTEP.
    pub learn_moved: u64,
    /// Learns refused by a network's parameters, its limit or the kind of address.
    pub learn_refused: u64,
    /// Learns ignored because the MAC has a static or store claim.
    pub learn_shadowed: u64,
    /// Learned entries that made room for others.
    pub learn_evicted: u64,
    /// Learned entries that aged out.
    pub learn_expired: u64,
}

/// What the writer knows of a network beyond its tables.
#[derive(Debug, Default)]
struct Ledger {
    /// Store claims beneath static ones.
    macs: BTreeMap<MacAddr, MacEntry>,
    /// Store claims beneath static ones.
    neighbors: BTreeMap<IpAddr, Neighbor>,
    /// Store claims beneath static ones.
    routes: BTreeMap<Prefix, Route>,
    learned: Learned,
}

/// The end that applies deltas and publishes snapshots. One thread.
#[derive(Debug)]
pub struct Writer {
    working: Snapshot,
    shared: Arc<ArcSwap<Snapshot>>,
    dirty: bool,
    cluster: KeySet,
    cluster_dirty: bool,
    domains_dirty: bool,
    ledgers: BTreeMap<NetworkKey, Ledger>,
    /// Who claims an address, the best claim first.
    addresses: BTreeMap<IpAddr, BTreeSet<(Rank, VtepKey)>>,
    vnis: BTreeMap<PortVni, BTreeSet<NetworkKey>>,
    retired: VecDeque<Arc<Snapshot>>,
    limits: Limits,
    stats: Stats,
}

impl Writer {
    pub(crate) fn new(limits: Limits) -> Self {
        let working = Snapshot::empty();
        Self {
            shared: Arc::new(ArcSwap::from_pointee(working.clone())),
            working,
            dirty: false,
            cluster: KeySet::new(),
            cluster_dirty: false,
            domains_dirty: false,
            ledgers: BTreeMap::new(),
            addresses: BTreeMap::new(),
            vnis: BTreeMap::new(),
            retired: VecDeque::new(),
            limits,
            stats: Stats::default(),
        }
    }

    pub(crate) fn shared(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.shared)
    }

    /// Counters since the writer was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The bounds given at construction.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The state that the next publication will show, under the number of the last one. For
    /// listings by the writer's own thread.
    #[must_use]
    pub fn working(&self) -> &Snapshot {
        &self.working
    }

    /// Snapshots that wait for their readers.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Whether there are changes to publish.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Makes all changes since the last call visible at once, and gives the number of the current
    /// snapshot. Without changes nothing is published.
    pub fn publish(&mut self) -> Generation {
        if !self.dirty {
            return self.working.generation;
        }
        if self.cluster_dirty {
            let keys: Vec<u32> = self.working.networks.iter().map(|(slot, _)| slot).collect();
            for slot in keys {
                if let Some(tables) = self.working.networks.get_mut(slot) {
                    tables.cluster = self.cluster.clone();
                }
            }
            self.cluster_dirty = false;
        }
        if self.domains_dirty {
            let networks = self.working.networks().map(|(key, tables)| (key, tables.params()));
            self.working.domains = Domains::of(networks);
            self.domains_dirty = false;
        }
        self.dirty = false;
        self.working.generation.0 += 1;
        self.stats.publications += 1;
        self.retired.push_back(self.shared.swap(Arc::new(self.working.clone())));
        if self.retired.len() > self.limits.retired {
            self.reclaim();
        }
        while self.retired.len() > self.limits.retired {
            self.retired.pop_front();
            self.stats.released += 1;
        }
        self.working.generation
    }

    /// Frees the retired snapshots that no reader holds; gives how many those were.
    pub fn reclaim(&mut self) -> usize {
        let before = self.retired.len();
        // Once swapped out, a snapshot gets no new readers, so a count of one stays one.
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        let freed = before - self.retired.len();
        self.stats.reclaimed += freed as u64;
        freed
    }

    /// Applies one change to the working state. It shows at the next [`Self::publish`].
    pub fn apply(&mut self, delta: Delta) {
        self.stats.deltas += 1;
        match delta {
            Delta::Age { now, max_age } => self.age(now, max_age),
            Delta::Learn { network, mac, vtep, at } => self.learn(network, mac, vtep, at),
            Delta::PutMac { network, mac, entry } => self.put_mac(network, mac, entry),
            Delta::PutNeighbor { network, ip, neighbor } => {
                self.put_neighbor(network, ip.to_canonical(), neighbor);
            }
            Delta::PutNetwork { key, network } => self.put_network(key, network),
            Delta::PutRoute { network, prefix, route } => self.put_route(network, prefix, route),
            Delta::PutVtep { key, vtep } => self.put_vtep(key, vtep),
            Delta::RemoveMac { network, mac, origin } => self.remove_mac(network, mac, origin),
            Delta::RemoveNeighbor { network, ip, origin } => {
                self.remove_neighbor(network, ip.to_canonical(), origin);
            }
            Delta::RemoveNetwork { key } => self.remove_network(key),
            Delta::RemoveRoute { network, prefix, origin } => {
                self.remove_route(network, prefix, origin);
            }
            Delta::RemoveVtep { key } => self.remove_vtep(key),
            Delta::SetFlood { network, vteps } => self.set_flood(network, vteps),
            Delta::SetStaticVteps { network, vteps } => self.set_static_vteps(network, vteps),
        }
    }
}

/// VTEPs.
impl Writer {
    fn put_vtep(&mut self, key: VtepKey, vtep: Vtep) {
        let old = self.working.vtep(key);
        if old == Some(&vtep) {
            return;
        }
        let before = old.map(addresses).unwrap_or_default();
        let after = addresses(&vtep);
        let cluster = vtep.host.is_some();
        if !self.working.vteps.set(key.0, vtep) {
            self.stats.refused += 1;
            return;
        }
        self.dirty = true;
        self.claim_addresses(key, &before, &after);
        self.set_cluster(key, cluster);
    }

    fn remove_vtep(&mut self, key: VtepKey) {
        let before = self.working.vtep(key).map(addresses).unwrap_or_default();
        if !self.working.vteps.remove(key.0) {
            return;
        }
        self.dirty = true;
        self.claim_addresses(key, &before, &BTreeMap::new());
        let networks: Vec<NetworkKey> = self.ledgers.keys().copied().collect();
        for network in networks {
            let Some(tables) = self.working.network(network) else { continue };
            let without = |list: &[VtepKey]| -> Option<Arc<[VtepKey]>> {
                list.contains(&key)
                    .then(|| list.iter().copied().filter(|other| *other != key).collect())
            };
            let (flood, statics) = (without(&tables.flood), without(&tables.static_vteps));
            if flood.is_none() && statics.is_none() {
                continue;
            }
            if let Some(tables) = self.working.networks.get_mut(network.0) {
                tables.flood = flood.unwrap_or_else(|| Arc::clone(&tables.flood));
                tables.static_vteps = statics.unwrap_or_else(|| Arc::clone(&tables.static_vteps));
            }
        }
        self.set_cluster(key, false);
        // A static VTEP was in no cluster set, so its learned entries are still there.
        self.forget_unadmitted();
    }

    fn set_cluster(&mut self, key: VtepKey, present: bool) {
        if self.cluster.set(key.0, present) {
            self.cluster_dirty = true;
            if !present {
                self.forget_unadmitted();
            }
        }
    }

    /// Keeps `by_address` at the first claim of each address.
    fn claim_addresses(
        &mut self,
        key: VtepKey,
        before: &BTreeMap<IpAddr, Rank>,
        after: &BTreeMap<IpAddr, Rank>,
    ) {
        for (address, rank) in before {
            if let Some(rivals) = self.addresses.get_mut(address) {
                rivals.remove(&(*rank, key));
            }
        }
        for (address, rank) in after {
            self.addresses.entry(*address).or_default().insert((*rank, key));
        }
        for address in before.keys().chain(after.keys()) {
            let first = self.addresses.get(address).and_then(|rivals| rivals.first().copied());
            let present = self.working.by_address.get(address).copied();
            match first {
                Some((_, vtep)) if present != Some(vtep) => {
                    let put = self.working.by_address.insert(*address, vtep);
                    self.stats.full += u64::from(put == Err(Full));
                }
                Some(_) => {}
                None => {
                    self.addresses.remove(address);
                    self.working.by_address.remove(address);
                }
            }
        }
    }
}

/// How good a claim on an address is, the least first: whether the VTEP only accepts it, and whether
/// it is a static one. A host may have a kernel device with a VTEP of its own beside the switch's:
/// every network admits the host, the static one only those that list it.
type Rank = (bool, bool);

/// The addresses of a VTEP, with the rank of its claim on each.
fn addresses(vtep: &Vtep) -> BTreeMap<IpAddr, Rank> {
    let is_static = vtep.host.is_none();
    let accepted = vtep.accept.iter().map(|address| (address.to_canonical(), (true, is_static)));
    accepted.chain([(vtep.address.to_canonical(), (false, is_static))]).collect()
}

/// By what a network's datagrams are known; those of a routed one carry no VNI.
fn port_vni_of(network: &Network) -> Option<PortVni> {
    network.routed.is_none().then_some(PortVni(network.udp_port, network.vni))
}

/// Networks.
impl Writer {
    fn put_network(&mut self, key: NetworkKey, network: Network) {
        let old = self.working.network(key).map(|tables| Arc::clone(&tables.params));
        if old.as_deref() == Some(&network) {
            return;
        }
        let port_vni = port_vni_of(&network);
        let learning = network.learning;
        let is_routed = network.routed.is_some();
        let was_routed = old.as_ref().is_some_and(|params| params.routed.is_some());
        if let Some(tables) = self.working.networks.get_mut(key.0) {
            tables.params = Arc::new(network);
        } else if !self
            .working
            .networks
            .set(key.0, NetworkTables::new(network, self.cluster.clone()))
        {
            self.stats.refused += 1;
            return;
        }
        self.dirty = true;
        self.ledgers.entry(key).or_default();
        self.domains_dirty |= is_routed || was_routed;
        let before = old.and_then(|params| port_vni_of(&params));
        if before != port_vni {
            if let Some(before) = before {
                self.claim_vni(key, before, false);
            }
            if let Some(after) = port_vni {
                self.claim_vni(key, after, true);
            }
        }
        if !learning {
            self.forget(key, |_, _| true);
        }
    }

    fn remove_network(&mut self, key: NetworkKey) {
        let Some(tables) = self.working.network(key) else {
            self.stats.unknown_network += 1;
            return;
        };
        self.domains_dirty |= tables.params.routed.is_some();
        if let Some(port_vni) = port_vni_of(&tables.params) {
            self.claim_vni(key, port_vni, false);
        }
        self.working.networks.remove(key.0);
        self.ledgers.remove(&key);
        self.dirty = true;
    }

    /// Keeps `by_vni` at the lowest key of each port and VNI.
    fn claim_vni(&mut self, key: NetworkKey, port_vni: PortVni, present: bool) {
        let rivals = self.vnis.entry(port_vni).or_default();
        if present {
            rivals.insert(key);
        } else {
            rivals.remove(&key);
        }
        match rivals.first().copied() {
            Some(first) => {
                let put = self.working.by_vni.insert(port_vni, first);
                self.stats.full += u64::from(put == Err(Full));
            }
            None => {
                self.vnis.remove(&port_vni);
                self.working.by_vni.remove(&port_vni);
            }
        }
    }

    fn set_flood(&mut self, network: NetworkKey, vteps: Vec<VtepKey>) {
        let mut seen = BTreeSet::new();
        let list: Arc<[VtepKey]> = vteps.into_iter().filter(|vtep| seen.insert(*vtep)).collect();
        match self.working.network(network) {
            None => self.stats.unknown_network += 1,
            Some(tables) if tables.flood == list => {}
            Some(_) => {
                if let Some(tables) = self.working.networks.get_mut(network.0) {
                    tables.flood = list;
                    self.dirty = true;
                }
            }
        }
    }

    fn set_static_vteps(&mut self, network: NetworkKey, vteps: Vec<VtepKey>) {
        let list: Arc<[VtepKey]> = vteps.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        match self.working.network(network) {
            None => self.stats.unknown_network += 1,
            Some(tables) if tables.static_vteps == list => {}
            Some(_) => {
                if let Some(tables) = self.working.networks.get_mut(network.0) {
                    tables.static_vteps = list;
                    self.dirty = true;
                }
                self.forget_unadmitted();
            }
        }
    }
}

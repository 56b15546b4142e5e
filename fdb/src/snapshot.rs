//! What readers see: the tables of one generation.
//!
//! # Theory of operation
//!
//! A [`Snapshot`] never changes. It is also the writer's working state: the writer changes its own
//! clone, and everything in it that a published snapshot shares is copied before it is changed.
//! So VTEPs, parameters, MACs, neighbors and flood lists of one generation belong together, and a
//! clone costs a handful of counters.

use std::net::IpAddr;
use std::sync::Arc;

use encap::{MacAddr, Vni};

use crate::dense::{Dense, KeySet};
use crate::domains::Domains;
use crate::fanout::Fanout;
use crate::hash::{PortVni, Seed};
use crate::routes::Routes;
use crate::types::{
    Generation, MacEntry, Neighbor, Network, NetworkKey, OriginKind, Prefix, Route, Via, Vtep,
    VtepKey,
};

/// All tables of one generation. Shared between threads, never changed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) generation: Generation,
    pub(crate) networks: Dense<NetworkTables>,
    pub(crate) vteps: Dense<Vtep>,
    pub(crate) by_vni: Fanout<PortVni, NetworkKey>,
    pub(crate) by_address: Fanout<IpAddr, VtepKey>,
    pub(crate) domains: Domains,
}

/// The tables of one network.
#[derive(Clone, Debug)]
pub struct NetworkTables {
    pub(crate) params: Arc<Network>,
    pub(crate) macs: Fanout<MacAddr, MacEntry>,
    pub(crate) neighbors: Fanout<IpAddr, Neighbor>,
    pub(crate) routes: Routes<Route>,
    pub(crate) flood: Arc<[VtepKey]>,
    /// Sorted.
    pub(crate) static_vteps: Arc<[VtepKey]>,
    /// The VTEPs that have a host; one set for all networks.
    pub(crate) cluster: KeySet,
    pub(crate) learned_len: usize,
}

// ===== impl Snapshot =====

impl Snapshot {
    pub(crate) fn empty() -> Self {
        Self {
            generation: Generation(0),
            networks: Dense::new(),
            vteps: Dense::new(),
            by_vni: Fanout::new(Seed::random()),
            by_address: Fanout::new(Seed::random()),
            domains: Domains::default(),
        }
    }

    /// The number of this snapshot.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The tables of a network.
    #[inline]
    #[must_use]
    pub fn network(&self, key: NetworkKey) -> Option<&NetworkTables> {
        self.networks.get(key.0)
    }

    /// All networks, in ascending order of their keys.
    pub fn networks(&self) -> impl Iterator<Item = (NetworkKey, &NetworkTables)> {
        self.networks.iter().map(|(slot, tables)| (NetworkKey(slot), tables))
    }

    /// Number of networks.
    #[must_use]
    pub fn networks_len(&self) -> usize {
        self.networks.len()
    }

    /// The network of a datagram that arrived on `udp_port` with this VNI.
    #[inline]
    #[must_use]
    pub fn by_vni(&self, udp_port: u16, vni: Vni) -> Option<NetworkKey> {
        self.by_vni.get(&PortVni(udp_port, vni)).copied()
    }

    /// The network of a packet that came in this way and has this destination. An IPv4-mapped
    /// address is taken as IPv4.
    #[inline]
    #[must_use]
    pub fn routed(&self, via: Via, destination: IpAddr) -> Option<NetworkKey> {
        self.domains.find(via, destination.to_canonical())
    }

    /// A VTEP.
    #[inline]
    #[must_use]
    pub fn vtep(&self, key: VtepKey) -> Option<&Vtep> {
        self.vteps.get(key.0)
    }

    /// All VTEPs, in ascending order of their keys.
    pub fn vteps(&self) -> impl Iterator<Item = (VtepKey, &Vtep)> {
        self.vteps.iter().map(|(slot, vtep)| (VtepKey(slot), vtep))
    }

    /// Number of VTEPs.
    #[must_use]
    pub fn vteps_len(&self) -> usize {
        self.vteps.len()
    }

    /// The VTEP that a datagram with this source address comes from: its own address or one that
    /// it accepts. An IPv4-mapped address is taken as IPv4.
    #[inline]
    #[must_use]
    pub fn vtep_by_address(&self, address: IpAddr) -> Option<VtepKey> {
        self.by_address.get(&address.to_canonical()).copied()
    }

    /// Approximate size in bytes of all tables, without the text of names. Memory that is shared
    /// with other generations is counted too. Walks all pages: for listings.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.networks.memory_bytes()
            + self.vteps.memory_bytes()
            + self.by_vni.memory_bytes()
            + self.by_address.memory_bytes()
            + self.domains.memory_bytes()
            + self.networks().map(|(_, tables)| tables.memory_bytes()).sum::<usize>()
    }
}

// ===== impl NetworkTables =====

impl NetworkTables {
    pub(crate) fn new(params: Network, cluster: KeySet) -> Self {
        Self {
            params: Arc::new(params),
            macs: Fanout::new(Seed::random()),
            neighbors: Fanout::new(Seed::random()),
            routes: Routes::new(),
            flood: Arc::new([]),
            static_vteps: Arc::new([]),
            cluster,
            learned_len: 0,
        }
    }

    /// The network's parameters.
    #[inline]
    #[must_use]
    pub fn params(&self) -> &Network {
        &self.params
    }

    /// Where a MAC is.
    #[inline]
    #[must_use]
    pub fn mac(&self, mac: MacAddr) -> Option<&MacEntry> {
        self.macs.get(&mac)
    }

    /// Who has an IP address. An IPv4-mapped one is taken as IPv4.
    #[inline]
    #[must_use]
    pub fn neighbor(&self, ip: IpAddr) -> Option<&Neighbor> {
        self.neighbors.get(&ip.to_canonical())
    }

    /// Where packets to an address go: the route with the longest prefix that holds it. An
    /// IPv4-mapped address is taken as IPv4.
    #[inline]
    #[must_use]
    pub fn route(&self, ip: IpAddr) -> Option<&Route> {
        self.routes.find(ip.to_canonical())
    }

    /// All routes, longest prefixes first.
    pub fn routes(&self) -> impl Iterator<Item = (Prefix, &Route)> {
        self.routes.iter()
    }

    /// Number of routes.
    #[must_use]
    pub fn routes_len(&self) -> usize {
        self.routes.len()
    }

    /// The ingress replication list: the VTEPs that get a copy of each flooded frame.
    #[inline]
    #[must_use]
    pub fn flood(&self) -> &[VtepKey] {
        &self.flood
    }

    /// The static VTEPs that this network lists, ascending.
    #[must_use]
    pub fn static_vteps(&self) -> &[VtepKey] {
        &self.static_vteps
    }

    /// Whether frames from this VTEP may enter the network: every VTEP with a host may, a static
    /// one only where it is listed.
    #[inline]
    #[must_use]
    pub fn admits(&self, vtep: VtepKey) -> bool {
        self.cluster.contains(vtep.0) || self.static_vteps.binary_search(&vtep).is_ok()
    }

    /// All MACs that look-ups find, in no particular order.
    pub fn macs(&self) -> impl Iterator<Item = (MacAddr, &MacEntry)> {
        self.macs.iter().map(|(mac, entry)| (*mac, entry))
    }

    /// Number of MACs, learned ones included.
    #[must_use]
    pub fn macs_len(&self) -> usize {
        self.macs.len()
    }

    /// Number of learned MACs.
    #[must_use]
    pub fn learned_len(&self) -> usize {
        self.learned_len
    }

    /// Number of MACs whose visible claim is of this kind. Walks the table: for listings.
    #[must_use]
    pub fn macs_of(&self, kind: OriginKind) -> usize {
        self.macs().filter(|(_, entry)| entry.origin.kind() == kind).count()
    }

    /// All neighbors that look-ups find, in no particular order.
    pub fn neighbors(&self) -> impl Iterator<Item = (IpAddr, &Neighbor)> {
        self.neighbors.iter().map(|(ip, neighbor)| (*ip, neighbor))
    }

    /// Number of neighbors.
    #[must_use]
    pub fn neighbors_len(&self) -> usize {
        self.neighbors.len()
    }

    /// Approximate size in bytes of this network's tables; see [`Snapshot::memory_bytes`].
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Network>()
            + self.macs.memory_bytes()
            + self.neighbors.memory_bytes()
            + self.routes.memory_bytes()
            + size_of_val(&*self.flood)
            + size_of_val(&*self.static_vteps)
    }
}

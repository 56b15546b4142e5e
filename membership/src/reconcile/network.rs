//! The tables of one network: claims of endpoints, static entries, flood list.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use encap::MacAddr;
use fdb::{Delta, MacEntry, Neighbor, NetworkKey, Origin, OriginKind, Place, Revision, VtepKey};
use ipnet::IpNet;

use super::routes::Routes;
use super::vteps::Vteps;
use super::{Claim, Conflict, Reconciler};
use crate::ipam::plan;
use crate::key::{EndpointId, HostName, NetworkId};
use crate::record::{EndpointRecord, Mode, NetworkRecord, StaticVtep};
use crate::view::View;

/// What the tables of one network hold, as far as it came from here.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) key: NetworkKey,
    /// Its UDP port, where that is not each VTEP's own.
    pub(super) port: Option<u16>,
    params: Option<fdb::Network>,
    /// What each endpoint claims, as last seen.
    endpoints: HashMap<EndpointId, Claimant>,
    /// Who claims what.
    claims: HashMap<Claim, BTreeSet<EndpointId>>,
    /// What is claimed more than once.
    contested: BTreeSet<Claim>,
    /// The winners' entries that are in the tables.
    macs: HashMap<MacAddr, (Place, Revision)>,
    neighbors: HashMap<IpAddr, (MacAddr, Place, Revision)>,
    static_macs: BTreeMap<MacAddr, VtepKey>,
    static_neighbors: BTreeMap<IpAddr, (MacAddr, VtepKey)>,
    /// What was imported, whether it is in the tables or an endpoint has it.
    imported: HashSet<Claim>,
    statics: Vec<VtepKey>,
    flood: Vec<VtepKey>,
    /// The endpoints that each host has here.
    members: BTreeMap<HostName, HashSet<EndpointId>>,
    /// Whether a host has joined or left since the flood list was made.
    members_changed: bool,
    winners: HashMap<Claim, EndpointId>,
    /// Of a routed network: what it has in the place of MACs and neighbors.
    pub(super) routes: Option<Routes>,
}

#[derive(Clone, Debug, PartialEq)]
struct Claimant {
    host: HostName,
    mac: MacAddr,
    ips: Vec<IpAddr>,
    revision: Revision,
}

impl Claimant {
    fn claims(&self) -> impl Iterator<Item = Claim> {
        std::iter::once(Claim::Mac(self.mac)).chain(self.ips.iter().map(|ip| Claim::Ip(*ip)))
    }
}

impl Tables {
    pub(super) fn new(key: NetworkKey, record: &NetworkRecord) -> Self {
        let routed = record.mode.is_routed();
        Self {
            key,
            // Packets in UDP have ports beside those of VTEPs.
            port: record.udp_port.filter(|_| !routed),
            routes: routed.then(|| Routes::new(record.mode, record.subnets.clone())),
            params: None,
            endpoints: HashMap::new(),
            claims: HashMap::new(),
            contested: BTreeSet::new(),
            macs: HashMap::new(),
            neighbors: HashMap::new(),
            static_macs: BTreeMap::new(),
            static_neighbors: BTreeMap::new(),
            imported: HashSet::new(),
            statics: Vec::new(),
            flood: Vec::new(),
            members: BTreeMap::new(),
            members_changed: true,
            winners: HashMap::new(),
        }
    }

    /// Takes what an endpoint claims now and returns the claims that this touches.
    fn note(
        &mut self,
        endpoint: &EndpointId,
        record: Option<(&EndpointRecord, Revision)>,
    ) -> Vec<Claim> {
        let now = record.map(|(record, revision)| Claimant {
            host: record.host.clone(),
            mac: record.mac,
            ips: record.ips.clone(),
            revision,
        });
        let before = self.endpoints.remove(endpoint);
        if now == before {
            if let Some(now) = now {
                self.endpoints.insert(endpoint.clone(), now);
            }
            return Vec::new();
        }
        let mut touched = HashSet::new();
        if let Some(before) = before {
            for claim in before.claims() {
                if let Some(claimants) = self.claims.get_mut(&claim) {
                    claimants.remove(endpoint);
                    if claimants.is_empty() {
                        self.claims.remove(&claim);
                    }
                }
                touched.insert(claim);
            }
            if let Some(of_host) = self.members.get_mut(&before.host) {
                of_host.remove(endpoint);
                if of_host.is_empty() {
                    self.members.remove(&before.host);
                    self.members_changed = true;
                }
            }
        }
        if let Some(now) = now {
            for claim in now.claims() {
                self.claims.entry(claim).or_default().insert(endpoint.clone());
                touched.insert(claim);
            }
            self.members_changed |= !self.members.contains_key(&now.host);
            self.members.entry(now.host.clone()).or_default().insert(endpoint.clone());
            self.endpoints.insert(endpoint.clone(), now);
        }
        let mut touched: Vec<Claim> = touched.into_iter().collect();
        // MACs after addresses would do as well, but the order must not depend on chance.
        touched.sort_unstable();
        touched
    }

    /// The hosts with endpoints here.
    pub(super) fn members(&self) -> impl Iterator<Item = &HostName> {
        self.members.keys()
    }

    /// All claims of addresses.
    fn addresses(&self) -> Vec<Claim> {
        let ips = self.claims.keys().filter(|claim| matches!(claim, Claim::Ip(_)));
        let mut ips: Vec<Claim> = ips.copied().collect();
        ips.sort_unstable();
        ips
    }

    /// The claims of addresses in a block.
    pub(super) fn addresses_in(&self, block: IpNet) -> Vec<Claim> {
        let offsets = (0..64).map(|offset| plan::address(block, offset));
        let inside = offsets.filter(|ip| block.contains(ip)).map(Claim::Ip);
        inside.filter(|claim| self.claims.contains_key(claim)).collect()
    }

    /// The claims of a host's endpoints.
    fn claims_of(&self, host: &HostName) -> BTreeSet<Claim> {
        let of_host = self.members.get(host).into_iter().flatten();
        of_host.filter_map(|id| self.endpoints.get(id)).flat_map(Claimant::claims).collect()
    }

    pub(super) fn conflicts(&self, network: &NetworkId) -> Vec<Conflict> {
        let conflict = |claim: &Claim| {
            let winner = self.winners.get(claim)?;
            let host = |endpoint: &EndpointId| Some(self.endpoints.get(endpoint)?.host.clone());
            let losers = self.claims.get(claim)?.iter().filter(|endpoint| *endpoint != winner);
            Some(Conflict {
                network: network.clone(),
                claim: *claim,
                winner: winner.clone(),
                winner_host: host(winner)?,
                losers: losers
                    .filter_map(|endpoint| Some((endpoint.clone(), host(endpoint)?)))
                    .collect(),
            })
        };
        self.contested.iter().filter_map(conflict).collect()
    }

    /// Makes the store's entry of a MAC what it shall be.
    fn put_mac(&mut self, mac: MacAddr, wanted: Option<(Place, Revision)>, out: &mut Vec<Delta>) {
        let (network, before) = (self.key, self.macs.get(&mac).copied());
        if before == wanted {
            return;
        }
        let stays = matches!((before, wanted), (Some((_, old)), Some((_, new))) if new >= old);
        if before.is_some() && !stays {
            out.push(Delta::RemoveMac { network, mac, origin: OriginKind::Store });
            self.macs.remove(&mac);
        }
        if let Some((place, revision)) = wanted {
            let entry = MacEntry { place, origin: Origin::Store { revision } };
            out.push(Delta::PutMac { network, mac, entry });
            self.macs.insert(mac, (place, revision));
        }
    }

    /// Makes the store's neighbor entry of an address what it shall be.
    fn put_neighbor(
        &mut self,
        ip: IpAddr,
        wanted: Option<(MacAddr, Place, Revision)>,
        out: &mut Vec<Delta>,
    ) {
        let (network, before) = (self.key, self.neighbors.get(&ip).copied());
        if before == wanted {
            return;
        }
        let stays =
            matches!((before, wanted), (Some((_, _, old)), Some((_, _, new))) if new >= old);
        if before.is_some() && !stays {
            out.push(Delta::RemoveNeighbor { network, ip, origin: OriginKind::Store });
            self.neighbors.remove(&ip);
        }
        if let Some((mac, place, revision)) = wanted {
            let neighbor = Neighbor { mac, place, origin: Origin::Store { revision } };
            out.push(Delta::PutNeighbor { network, ip, neighbor });
            self.neighbors.insert(ip, (mac, place, revision));
        }
    }

    /// Makes the static entries what they shall be. The first VTEP that names a MAC or an address
    /// has it, what somebody wrote down before what was imported. What an endpoint of the store claims
    /// is no import: its host knows, a device may be late.
    fn put_statics(&mut self, vteps: &[(&StaticVtep, VtepKey)], out: &mut Vec<Delta>) {
        let network = self.key;
        let mut macs = BTreeMap::new();
        let mut neighbors = BTreeMap::new();
        for (vtep, key) in vteps {
            for known in &vtep.macs {
                macs.entry(known.mac).or_insert(*key);
                for ip in &known.ips {
                    neighbors.entry(*ip).or_insert((known.mac, *key));
                }
            }
        }
        self.imported.clear();
        for (vtep, key) in vteps {
            for known in &vtep.imported {
                self.imported.insert(Claim::Mac(known.mac));
                self.imported.extend(known.ips.iter().map(|ip| Claim::Ip(*ip)));
                if self.claims.contains_key(&Claim::Mac(known.mac))
                    || *macs.entry(known.mac).or_insert(*key) != *key
                {
                    continue;
                }
                let ips = known.ips.iter().filter(|ip| !self.claims.contains_key(&Claim::Ip(**ip)));
                for ip in ips {
                    neighbors.entry(*ip).or_insert((known.mac, *key));
                }
            }
        }
        let keys: Vec<VtepKey> = vteps.iter().map(|(_, key)| *key).collect();
        if self.statics != keys {
            out.push(Delta::SetStaticVteps { network, vteps: keys.clone() });
            self.statics = keys;
        }
        for mac in self.static_macs.keys().filter(|mac| !macs.contains_key(*mac)) {
            out.push(Delta::RemoveMac { network, mac: *mac, origin: OriginKind::Static });
        }
        for ip in self.static_neighbors.keys().filter(|ip| !neighbors.contains_key(*ip)) {
            out.push(Delta::RemoveNeighbor { network, ip: *ip, origin: OriginKind::Static });
        }
        for (mac, key) in macs.iter().filter(|(mac, key)| self.static_macs.get(*mac) != Some(*key))
        {
            let entry = MacEntry { place: Place::Vtep(*key), origin: Origin::Static };
            out.push(Delta::PutMac { network, mac: *mac, entry });
        }
        for (ip, (mac, key)) in &neighbors {
            if self.static_neighbors.get(ip) != Some(&(*mac, *key)) {
                let place = Place::Vtep(*key);
                let neighbor = Neighbor { mac: *mac, place, origin: Origin::Static };
                out.push(Delta::PutNeighbor { network, ip: *ip, neighbor });
            }
        }
        self.static_macs = macs;
        self.static_neighbors = neighbors;
    }
}

impl Reconciler {
    /// Parameters, static VTEPs and flood list of a network with tables.
    pub(super) fn refresh_network(
        &mut self,
        view: &View,
        record: &NetworkRecord,
        out: &mut Vec<Delta>,
    ) {
        let params = self.params(&self.underlay(view), record);
        self.put_statics(view, out);
        let Some(tables) = self.tables.get_mut(&record.id) else { return };
        if tables.params.as_ref() != Some(&params) {
            out.push(Delta::PutNetwork { key: tables.key, network: params.clone() });
            tables.params = Some(params);
        }
        self.refresh_statics(record, out);
        let Some(tables) = self.tables.get_mut(&record.id) else { return };
        let changed = tables.routes.as_mut().is_some_and(|it| it.set_subnets(&record.subnets));
        let moved = if changed { tables.addresses() } else { Vec::new() };
        self.decide(&record.id, moved, out);
        self.refresh_flood(&record.id, out);
        self.drop_statics(out);
    }

    /// The static entries of a network with tables.
    fn refresh_statics(&mut self, record: &NetworkRecord, out: &mut Vec<Delta>) {
        let Some(tables) = self.tables.get_mut(&record.id) else { return };
        let port = |vtep: &StaticVtep| port_of(record, vtep, self.defaults.udp_port);
        let vteps: Vec<(&StaticVtep, VtepKey)> = record
            .static_vteps
            .iter()
            .filter_map(|vtep| Some((vtep, self.vteps.static_key(vtep.address, port(vtep))?)))
            .collect();
        tables.put_statics(&vteps, out);
    }

    /// Decides what endpoints claim, and what of the imported entries that leaves.
    fn claims_changed(
        &mut self,
        view: &View,
        network: &NetworkId,
        touched: impl IntoIterator<Item = Claim>,
        out: &mut Vec<Delta>,
    ) {
        let touched: Vec<Claim> = touched.into_iter().collect();
        let tables = self.tables.get(network);
        let meets =
            tables.is_some_and(|it| touched.iter().any(|claim| it.imported.contains(claim)));
        self.decide(network, touched, out);
        if meets && let Some(item) = view.network(network) {
            self.refresh_statics(&item.record, out);
        }
    }

    /// Puts the static VTEPs of all networks with tables. One address and port is one VTEP: the first
    /// network that names it, by id, decides its MTU and checksum.
    pub(super) fn put_statics(&mut self, view: &View, out: &mut Vec<Delta>) {
        let mut seen = HashSet::new();
        for id in self.tables.keys() {
            let Some(item) = view.network(id) else { continue };
            for vtep in &item.record.static_vteps {
                let port = port_of(&item.record, vtep, self.defaults.udp_port);
                if seen.insert((vtep.address, port)) {
                    self.vteps.put_static(vtep, port, out);
                }
            }
        }
    }

    /// Frees the slots of static VTEPs that no network with tables has.
    pub(super) fn drop_statics(&mut self, out: &mut Vec<Delta>) {
        let used: BTreeSet<VtepKey> =
            self.tables.values().flat_map(|tables| tables.statics.iter().copied()).collect();
        for key in self.vteps.statics().into_iter().filter(|key| !used.contains(key)) {
            out.push(Delta::RemoveVtep { key });
            self.vteps.release(key);
        }
    }

    /// Parameters of all networks with tables: the MTU depends on the hosts.
    pub(super) fn refresh_params(&mut self, view: &View, out: &mut Vec<Delta>) {
        let underlay = self.underlay(view);
        let ids: Vec<NetworkId> = self.tables.keys().cloned().collect();
        for id in ids {
            let Some(item) = view.network(&id) else { continue };
            let params = self.params(&underlay, &item.record);
            let Some(tables) = self.tables.get_mut(&id) else { continue };
            if tables.params.as_ref() != Some(&params) {
                out.push(Delta::PutNetwork { key: tables.key, network: params.clone() });
                tables.params = Some(params);
            }
        }
    }

    /// Flood lists of all networks with tables.
    pub(super) fn refresh_floods(&mut self, out: &mut Vec<Delta>) {
        let ids: Vec<NetworkId> = self.tables.keys().cloned().collect();
        for id in ids {
            self.refresh_flood(&id, out);
        }
    }

    fn refresh_flood(&mut self, network: &NetworkId, out: &mut Vec<Delta>) {
        let Some(tables) = self.tables.get_mut(network) else { return };
        if tables.routes.is_some() {
            tables.members_changed = false;
            return;
        }
        let hosts = tables
            .members
            .keys()
            .filter(|host| **host != self.own && !self.suspects.has_left(host))
            .filter_map(|host| self.vteps.primary_at(host, tables.port));
        tables.members_changed = false;
        let mut flood: Vec<VtepKey> = hosts.chain(tables.statics.iter().copied()).collect();
        flood.sort_unstable();
        flood.dedup();
        if tables.flood != flood {
            out.push(Delta::SetFlood { network: tables.key, vteps: flood.clone() });
            tables.flood = flood;
        }
    }

    /// What all endpoints of a network claim, for tables that were just made.
    pub(super) fn refresh_all_claims(
        &mut self,
        view: &View,
        network: &NetworkId,
        out: &mut Vec<Delta>,
    ) {
        let Some(tables) = self.tables.get_mut(network) else { return };
        let mut touched = BTreeSet::new();
        for item in view.endpoints_of(network) {
            touched.extend(tables.note(&item.record.id, Some((&item.record, item.revision()))));
        }
        self.claims_changed(view, network, touched, out);
        self.refresh_flood(network, out);
    }

    /// One endpoint has changed.
    pub(super) fn endpoint_changed(
        &mut self,
        view: &View,
        network: &NetworkId,
        endpoint: &EndpointId,
        out: &mut Vec<Delta>,
    ) {
        let Some(tables) = self.tables.get_mut(network) else { return };
        let item = view.endpoint(network, endpoint);
        let touched =
            tables.note(endpoint, item.map(|item| (item.record.as_ref(), item.revision())));
        let members_changed = tables.members_changed;
        self.claims_changed(view, network, touched, out);
        if members_changed {
            self.refresh_flood(network, out);
        }
    }

    /// A host's slot or standing has changed: what its endpoints claim is decided again.
    pub(super) fn refresh_host(&mut self, host: &HostName, out: &mut Vec<Delta>) {
        let ids: Vec<NetworkId> = self.tables.keys().cloned().collect();
        for id in ids {
            self.refresh_blocks_of(&id, host, out);
            let Some(tables) = self.tables.get(&id) else { continue };
            if !tables.members.contains_key(host) {
                continue;
            }
            let touched = tables.claims_of(host);
            self.decide(&id, touched, out);
            self.refresh_flood(&id, out);
        }
    }

    /// Puts the winners of these claims into the tables.
    pub(super) fn decide(
        &mut self,
        network: &NetworkId,
        touched: impl IntoIterator<Item = Claim>,
        out: &mut Vec<Delta>,
    ) {
        let Some(tables) = self.tables.get_mut(network) else { return };
        let mode = tables.routes.as_ref().map_or(Mode::Vxlan, |routes| routes.mode);
        for claim in touched {
            let claimants = tables.claims.get(&claim);
            // A host without a VTEP that we can reach has no place; it cannot win.
            let placed = claimants.into_iter().flatten().filter_map(|endpoint| {
                let claimant = tables.endpoints.get(endpoint)?;
                let place = place_of(&self.own, &self.vteps, &claimant.host, mode, tables.port)?;
                let alive = !self.suspects.contains(&claimant.host);
                Some(((alive, claimant.revision, endpoint), claimant.mac, place))
            });
            let winner =
                placed.max_by(|a, b| a.0.cmp(&b.0)).map(|((_, revision, endpoint), mac, place)| {
                    (endpoint.clone(), mac, place, revision)
                });
            if claimants.is_some_and(|claimants| claimants.len() > 1) {
                tables.contested.insert(claim);
            } else {
                tables.contested.remove(&claim);
            }
            match &winner {
                Some((endpoint, ..)) => tables.winners.insert(claim, endpoint.clone()),
                None => tables.winners.remove(&claim),
            };
            if let Some(routes) = tables.routes.as_mut() {
                if let Claim::Ip(ip) = claim {
                    let winner = winner.as_ref().and_then(|(endpoint, _, place, revision)| {
                        let claimant = tables.endpoints.get(endpoint)?;
                        Some((&claimant.host, *place, *revision))
                    });
                    routes.put_address(tables.key, ip, winner, out);
                }
                continue;
            }
            match claim {
                Claim::Mac(mac) => {
                    let entry = winner.map(|(_, _, place, revision)| (place, revision));
                    tables.put_mac(mac, entry, out);
                }
                Claim::Ip(ip) => {
                    let entry = winner.map(|(_, mac, place, revision)| (mac, place, revision));
                    tables.put_neighbor(ip, entry, out);
                }
            }
        }
    }
}

/// The port of a static VTEP.
fn port_of(record: &NetworkRecord, vtep: &StaticVtep, default: u16) -> u16 {
    vtep.port.or(record.udp_port).unwrap_or(default)
}

/// Where what is on a host is, for a network of this mode; `None` where it cannot be sent to.
pub(super) fn place_of(
    own: &HostName,
    vteps: &Vteps,
    host: &HostName,
    mode: Mode,
    port: Option<u16>,
) -> Option<Place> {
    if host == own {
        return Some(Place::Local);
    }
    // Hosts that carry no vxlan network do not take part in one.
    let carries = !mode.is_routed() || vteps.carries(host, mode);
    vteps.primary_at(host, port).filter(|_| carries).map(Place::Vtep)
}

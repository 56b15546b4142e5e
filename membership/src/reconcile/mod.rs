//! From records to table deltas: which VTEPs, networks, MACs, neighbors and flood lists this host
//! shall have. Pure: no I/O, no clock.
//!
//! # Theory of operation
//!
//! ```text
//!   View (mirror of the store) + Change ---> Reconciler ---> fdb::Delta ... ---> fdb::Writer
//!                          now (Millis) ---^          ^--- tick(now) at next_deadline()
//! ```
//!
//! * **VTEPs.** Every VTEP of every other host has a dense slot that stays while the host is known,
//!   also when its address changes (then the slot is put again). A host's entries point to the
//!   first of its VTEPs whose family we have ourselves; those of a network with a UDP port of its own
//!   to one more slot with the same address and that port. Static VTEPs have one slot per address.
//! * **Networks** have tables while an endpoint of this host is in them, or while the caller asked
//!   for them ([`Reconciler::activate`]). Building a network's tables and keeping them is the same
//!   code: wanted entries are computed per MAC and address and compared with those that are there.
//! * **Claims.** Endpoints claim a MAC and addresses. Where two claim the same, one on a host that
//!   is not suspect wins, then the one with the higher revision, then the greater id. The others
//!   are listed as [`Conflict`]s. The tables take a higher revision over a lower one by themselves,
//!   so when a lower one wins its put is preceded by a removal.
//! * **Suspect.** A host whose lease has ended is suspect: its entries stay, it loses to live
//!   claims, and after a hold-down ([`Defaults::hold_down`]) it leaves the flood lists, unless its
//!   VTEP was heard meanwhile ([`Reconciler::heard`]). When many hosts expire together it is the
//!   store or the network that failed: then none leaves ([`Reconciler::frozen`]).
//! * **Routed networks** have routes in the place of MACs and neighbors: the blocks of hosts, and
//!   single addresses where somebody else has them (`routes`).
//! * **MTU.** A network's inner MTU is the least underlay MTU of the hosts that are not away, minus
//!   the overhead, and at most what its record asks for.

mod network;
mod routes;
mod suspect;
mod vteps;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::MacAddr;
use fdb::{Delta, Millis, NetworkKey, SourceCheck, VtepKey};
use serde::Serialize;

use crate::gateway;
use crate::key::{EndpointId, HostName, NetworkId};
use crate::record::{Compat, Encapsulate, Local, Mode, NetworkOptions, NetworkRecord, VtepRecord};
use crate::view::{Change, View};
use network::Tables;
use suspect::Suspects;
use vteps::{Slot, Vteps};

/// Underlay MTU assumed where no host tells one: Ethernet's.
pub const UNDERLAY_MTU: u16 = 1500;

/// Inner MTU of Docker Swarm's overlay where nobody asks for another, whatever the underlay takes
/// (moby daemon/libnetwork/drivers/overlay: 1500 less 50).
pub const SWARM_MTU: u16 = 1450;

/// What holds for all networks of this host.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// UDP port of networks whose record names none.
    pub udp_port: u16,
    /// This host's own VTEPs; their families and MTUs count.
    pub vteps: Vec<VtepRecord>,
    /// How long a suspect host stays in flood lists.
    pub hold_down: Millis,
    /// Hosts that expire within this span of each other expire together.
    pub together: Millis,
    /// From this share of all hosts on, in percent, expiry together freezes the flood lists.
    pub freeze_percent: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            udp_port: 4789,
            vteps: Vec::new(),
            hold_down: Millis(30_000),
            together: Millis(10_000),
            freeze_percent: 20,
        }
    }
}

/// Two endpoints that claim the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The network.
    pub network: NetworkId,
    /// What both claim.
    pub claim: Claim,
    /// The endpoint whose claim is in the tables.
    pub winner: EndpointId,
    /// Its host.
    pub winner_host: HostName,
    /// The endpoints whose claims are not, with their hosts.
    pub losers: Vec<(EndpointId, HostName)>,
}

/// What an endpoint claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// An address.
    Ip(IpAddr),
    /// A MAC.
    Mac(MacAddr),
}

/// Turns changes of the view into deltas of the tables. See the module.
#[derive(Debug)]
pub struct Reconciler {
    own: HostName,
    defaults: Defaults,
    vteps: Vteps,
    suspects: Suspects,
    /// Networks with tables.
    tables: BTreeMap<NetworkId, Tables>,
    /// Networks that the caller asked for.
    asked: BTreeSet<NetworkId>,
    keys: Slots<NetworkId>,
}

impl Reconciler {
    /// For the host of this name.
    #[must_use]
    pub fn new(own: HostName, defaults: Defaults) -> Self {
        Self {
            own,
            defaults,
            vteps: Vteps::default(),
            suspects: Suspects::default(),
            tables: BTreeMap::new(),
            asked: BTreeSet::new(),
            keys: Slots::default(),
        }
    }

    /// The deltas of one change that `view` has just applied.
    pub fn apply(&mut self, view: &View, change: &Change, now: Millis) -> Vec<Delta> {
        let mut out = Vec::new();
        match change {
            Change::Host(host) => self.host_changed(view, host, now, &mut out),
            Change::Network { network, .. } => self.network_changed(view, network, &mut out),
            Change::Endpoint { network, endpoint, before } => {
                let is_own = |host: &HostName| *host == self.own;
                let touches_us = before.as_ref().is_some_and(|record| is_own(&record.host))
                    || view
                        .endpoint(network, endpoint)
                        .is_some_and(|item| is_own(&item.record.host));
                if touches_us {
                    self.refresh_activity(view, network, &mut out);
                }
                self.endpoint_changed(view, network, endpoint, &mut out);
            }
            Change::Block { network, cidr } => {
                self.block_changed(view, network, *cidr, &mut out);
            }
            Change::Bad(_) | Change::None => {}
        }
        out
    }

    /// The deltas that make the tables what `view` says, for a view that was not filled change by
    /// change: one that was loaded from a snapshot.
    pub fn resync(&mut self, view: &View, now: Millis) -> Vec<Delta> {
        let mut out = Vec::new();
        let hosts: BTreeSet<HostName> =
            view.hosts().map(|(name, _)| name.clone()).chain(self.vteps.hosts()).collect();
        for host in &hosts {
            self.host_changed(view, host, now, &mut out);
        }
        let networks: BTreeSet<NetworkId> = view
            .networks()
            .map(|item| item.record.id.clone())
            .chain(self.tables.keys().cloned())
            .collect();
        for network in &networks {
            self.network_changed(view, network, &mut out);
        }
        out
    }

    /// Gives a network tables although no endpoint of this host is in it (yet). Its slot is known
    /// afterwards, when its record is.
    pub fn activate(&mut self, view: &View, network: &NetworkId) -> Vec<Delta> {
        self.asked.insert(network.clone());
        let mut out = Vec::new();
        self.refresh_activity(view, network, &mut out);
        out
    }

    /// Takes [`Self::activate`] back. The tables stay while an endpoint of this host is there.
    pub fn deactivate(&mut self, view: &View, network: &NetworkId) -> Vec<Delta> {
        self.asked.remove(network);
        let mut out = Vec::new();
        self.refresh_activity(view, network, &mut out);
        out
    }

    /// This host's own VTEPs have changed.
    pub fn set_own_vteps(
        &mut self,
        view: &View,
        vteps: Vec<VtepRecord>,
        now: Millis,
    ) -> Vec<Delta> {
        self.defaults.vteps = vteps;
        self.resync(view, now)
    }

    /// Valid traffic has come from this VTEP. A suspect host stays in flood lists for another
    /// hold-down from then on.
    pub fn heard(&mut self, vtep: VtepKey, now: Millis) {
        if let Some(Slot::Host { host, .. } | Slot::Ported { host, .. }) = self.vteps.slot(vtep) {
            let host = host.clone();
            self.suspects.heard(&host, now);
        }
    }

    /// When [`Self::tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.suspects.next_deadline(&self.defaults)
    }

    /// Does what is due by now: suspect hosts leave the flood lists.
    pub fn tick(&mut self, view: &View, now: Millis) -> Vec<Delta> {
        let mut out = Vec::new();
        if self.suspects.tick(&self.defaults, self.present_count(view), now) {
            self.refresh_floods(&mut out);
            self.refresh_params(view, &mut out);
        }
        out
    }

    /// The suspect hosts, with the time since when.
    pub fn suspects(&self) -> impl Iterator<Item = (&HostName, Millis)> {
        self.suspects.iter()
    }

    /// The suspect hosts that stay in flood lists because so many expired together. Empty when
    /// nothing is frozen.
    #[must_use]
    pub fn frozen(&self) -> Vec<&HostName> {
        self.suspects.frozen()
    }

    /// What is claimed twice in networks with tables, by network and claim.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.tables.iter().flat_map(|(id, tables)| tables.conflicts(id)).collect()
    }

    /// The slot of a network with tables.
    #[must_use]
    pub fn network_key(&self, network: &NetworkId) -> Option<NetworkKey> {
        self.tables.get(network).map(|tables| tables.key)
    }

    /// The network of a slot.
    #[must_use]
    pub fn network_of(&self, key: NetworkKey) -> Option<&NetworkId> {
        self.keys.get(key.0)
    }

    /// The networks with tables.
    pub fn active(&self) -> impl Iterator<Item = (&NetworkId, NetworkKey)> {
        self.tables.iter().map(|(id, tables)| (id, tables.key))
    }

    /// The slot of the VTEP that a host is reached by.
    #[must_use]
    pub fn vtep_key(&self, host: &HostName) -> Option<VtepKey> {
        self.vteps.primary(host)
    }

    /// The address of the VTEP that a host is reached by.
    #[must_use]
    pub fn vtep_address(&self, host: &HostName) -> Option<IpAddr> {
        self.vteps.address(self.vteps.primary(host)?)
    }

    /// Says whether IP-in-IP gets through to a host. Until somebody says so it is taken not to, which
    /// only networks that fall back to UDP ask.
    pub fn set_ip_in_ip(
        &mut self,
        view: &View,
        host: &HostName,
        reaches: bool,
        now: Millis,
    ) -> Vec<Delta> {
        let mut out = Vec::new();
        if self.vteps.set_ip_in_ip(host, reaches) {
            self.host_changed(view, host, now, &mut out);
        }
        out
    }

    /// Whether a network with tables may reach a host in more than one way.
    #[must_use]
    pub fn has_ways(&self, view: &View) -> bool {
        let mut records = self.tables.keys().filter_map(|id| view.network(id));
        records.any(|item| gateway::goes_direct(&item.record))
    }

    /// The host of a VTEP's slot; `None` for a static one.
    #[must_use]
    pub fn host_of(&self, key: VtepKey) -> Option<&HostName> {
        match self.vteps.slot(key)? {
            Slot::Host { host, .. } | Slot::Ported { host, .. } => Some(host),
            Slot::Static(..) => None,
        }
    }

    /// The hosts with endpoints in a network that cannot be sent to in its mode: their program is
    /// older, or was told so.
    pub fn unable(&self, network: &NetworkId) -> impl Iterator<Item = &HostName> {
        let tables = self.tables.get(network);
        let mode = tables.and_then(|tables| tables.routes.as_ref()).map(|routes| routes.mode);
        let members = tables.into_iter().flat_map(|tables| tables.members());
        members.filter(move |host| {
            let carries = |mode| self.vteps.carries(host, mode);
            **host != self.own
                && self.vteps.primary(host).is_some()
                && mode.is_some_and(|mode| !carries(mode))
        })
    }

    /// The inner MTU of a network in bytes; `None` when its record is not known.
    #[must_use]
    pub fn network_mtu(&self, view: &View, network: &NetworkId) -> Option<u16> {
        let record = &view.network(network)?.record;
        Some(self.underlay(view).mtu_of(record))
    }

    /// What the hosts that are not away can carry.
    fn underlay(&self, view: &View) -> Underlay {
        fn told(mtu: u16) -> Option<u16> {
            (mtu != 0).then_some(mtu)
        }
        let least = |vteps: &[VtepRecord]| vteps.iter().filter_map(|vtep| told(vtep.mtu)).min();
        let first_is_v6 =
            |vteps: &[VtepRecord]| vteps.first().is_some_and(|vtep| vtep.advertise.is_ipv6());
        let mut underlay =
            Underlay { mtu: least(&self.defaults.vteps), ipv6: first_is_v6(&self.defaults.vteps) };
        for (name, host) in view.hosts() {
            let counts = host.is_present() || self.suspects.counts(name);
            let Some(record) = host.record().filter(|_| *name != self.own && counts) else {
                continue;
            };
            let mtu = least(&record.vteps).or_else(|| told(record.underlay_mtu));
            underlay.mtu = underlay.mtu.into_iter().chain(mtu).min();
            underlay.ipv6 |= first_is_v6(&record.vteps);
        }
        underlay
    }

    /// The parameters of a network's tables.
    fn params(&self, underlay: &Underlay, record: &NetworkRecord) -> fdb::Network {
        let options = &record.options;
        let swarm = options.compat == Some(Compat::Swarm);
        let learning = options.learns(!record.static_vteps.is_empty());
        let broadcast = options.broadcast.unwrap_or_else(|| !swarm && !record.mode.is_routed());
        fdb::Network {
            vni: record.vni,
            udp_port: record.udp_port.unwrap_or(self.defaults.udp_port),
            mtu: underlay.mtu_of(record),
            name: record.name.as_str().into(),
            id: record.id.as_str().into(),
            learning,
            flood_unknown: options.flood_unknown.unwrap_or(learning),
            flood_broadcast: broadcast,
            flood_multicast: options.multicast.unwrap_or(broadcast),
            flood_rate: options.flood_rate.unwrap_or(NetworkOptions::FLOOD_RATE),
            flood_arp: learning,
            source_check: options.source_check.map_or(SourceCheck::Mac, Into::into),
            df: !swarm,
            switch_local: options.local == Some(Local::Switch),
            gateway: gateway::of_tables(record).filter(|_| !record.mode.is_routed()),
            routed: routed(record),
        }
    }

    fn present_count(&self, view: &View) -> usize {
        view.hosts().filter(|(name, host)| **name != self.own && host.is_present()).count()
    }

    fn host_changed(&mut self, view: &View, host: &HostName, now: Millis, out: &mut Vec<Delta>) {
        if *host == self.own {
            return;
        }
        let state = view.host(host);
        let before = (self.vteps.standing(host), self.vteps.places(host));
        let was_suspect = self.suspects.contains(host);
        match state {
            None => self.suspects.forget(host),
            Some(state) if state.is_present() => self.suspects.present(host),
            Some(_) => self.suspects.absent(host, now),
        }
        let suspect = self.suspects.contains(host);
        let record = state.and_then(|state| state.record());
        // Entries move away from slots before these are freed, and come to them after they are put.
        let record = record.map(AsRef::as_ref);
        let freed = self.vteps.put_host(host, record, suspect, &self.defaults, out);
        let after = (self.vteps.standing(host), self.vteps.places(host));
        if before != after || was_suspect != suspect {
            self.refresh_host(host, out);
        }
        self.refresh_params(view, out);
        for key in freed {
            out.push(Delta::RemoveVtep { key });
            self.vteps.release(key);
        }
    }

    fn network_changed(&mut self, view: &View, network: &NetworkId, out: &mut Vec<Delta>) {
        self.refresh_activity(view, network, out);
        if let Some(item) = view.network(network) {
            let record = item.record.clone();
            self.refresh_network(view, &record, out);
        }
    }

    /// Gives every host a VTEP at each port that a network with tables has for its own, and takes
    /// those of other ports away.
    fn refresh_ports(&mut self, view: &View, out: &mut Vec<Delta>) {
        let ports = self.tables.values().filter_map(|tables| tables.port).collect();
        if !self.vteps.set_ports(ports) {
            return;
        }
        let hosts: Vec<HostName> = self.vteps.hosts().collect();
        for host in hosts {
            let record = view.host(&host).and_then(|state| state.record());
            let record = record.map(AsRef::as_ref);
            let suspect = self.suspects.contains(&host);
            for key in self.vteps.put_host(&host, record, suspect, &self.defaults, out) {
                out.push(Delta::RemoveVtep { key });
                self.vteps.release(key);
            }
        }
    }

    /// Builds or removes the tables of a network, as it is active or not.
    fn refresh_activity(&mut self, view: &View, network: &NetworkId, out: &mut Vec<Delta>) {
        let wanted = view.network(network).filter(|_| {
            self.asked.contains(network)
                || view.endpoints_of(network).any(|item| item.record.host == self.own)
        });
        match (wanted, self.tables.contains_key(network)) {
            (Some(item), false) => {
                let record = item.record.clone();
                let key = NetworkKey(self.keys.take(network.clone()));
                self.tables.insert(network.clone(), Tables::new(key, &record));
                self.refresh_ports(view, out);
                self.refresh_network(view, &record, out);
                self.refresh_blocks(view, network, out);
                self.refresh_all_claims(view, network, out);
            }
            (None, true) => {
                if let Some(tables) = self.tables.remove(network) {
                    out.push(Delta::RemoveNetwork { key: tables.key });
                    self.keys.release(tables.key.0);
                    self.refresh_ports(view, out);
                    self.put_statics(view, out);
                    self.drop_statics(out);
                }
            }
            _ => {}
        }
    }
}

/// Whether a network's packets go in UDP where protocol 4 does not get through.
fn falls_back(record: &NetworkRecord) -> bool {
    record.mode == Mode::IpIp && record.options.encapsulate == Some(Encapsulate::Auto)
}

/// What the tables are told of a routed network.
fn routed(record: &NetworkRecord) -> Option<fdb::Routed> {
    let carrier = match record.mode {
        Mode::IpIp => fdb::Carrier::IpIp,
        Mode::IpUdp => fdb::Carrier::IpUdp,
        Mode::Vxlan => return None,
    };
    let (v4, v6) = crate::network::udp_ports(record);
    let subnets = record.subnets.iter();
    let subnets = subnets.filter_map(|net| fdb::Prefix::new(net.network(), net.prefix_len()));
    Some(fdb::Routed {
        carrier,
        fallback: falls_back(record),
        mss: record.options.mss_clamp.unwrap_or(false),
        ports: fdb::UdpPorts { v4, v6 },
        subnets: subnets.collect(),
    })
}

/// What the hosts can carry.
#[derive(Debug)]
struct Underlay {
    /// The least MTU that any of them told.
    mtu: Option<u16>,
    /// Whether any of them may be reached by IPv6. A sender takes the receiver's first VTEP of a
    /// family that it has too, so this is so when anybody's first one is IPv6; all hosts find the
    /// same.
    ipv6: bool,
}

impl Underlay {
    fn mtu_of(&self, record: &NetworkRecord) -> u16 {
        let statics = &record.static_vteps;
        let told = statics.iter().map(|vtep| vtep.mtu).filter(|mtu| *mtu != 0);
        let mtu = told.chain(self.mtu).min().unwrap_or(UNDERLAY_MTU);
        let ipv6 = self.ipv6 || statics.iter().any(|vtep| vtep.address.is_ipv6());
        // Where UDP may stand in for protocol 4, what is carried fits into either.
        let encapsulation = if falls_back(record) {
            Mode::IpUdp.encapsulation()
        } else {
            record.mode.encapsulation()
        };
        let inner = encap::mtu::inner(encapsulation, ipv6, mtu);
        let swarm = record.options.compat == Some(Compat::Swarm);
        let wanted = record.mtu.or_else(|| swarm.then_some(SWARM_MTU));
        wanted.map_or(inner, |wanted| wanted.min(inner))
    }
}

/// Dense slots: the lowest free one is given out, and one is free again after its release.
#[derive(Debug)]
struct Slots<T> {
    slots: Vec<Option<T>>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn take(&mut self, owner: T) -> u32 {
        let index = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Some(owner));
        } else if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(owner);
        }
        // Hosts and networks are far below 2^32; the tables refuse slots long before.
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    fn release(&mut self, index: u32) {
        if let Some(slot) = usize::try_from(index).ok().and_then(|index| self.slots.get_mut(index))
        {
            *slot = None;
        }
    }

    fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(usize::try_from(index).ok()?)?.as_ref()
    }
}

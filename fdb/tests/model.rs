//! Random deltas against a plain model: after every publication the snapshot says what the model
//! says, and every earlier snapshot still says what it said.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use encap::{MacAddr, Vni};
use fdb::{
    Delta, Limits, MacEntry, Millis, Neighbor, Network, NetworkKey, Origin, OriginKind, Place,
    Prefix, Revision, Route, Snapshot, SourceCheck, Vtep, VtepKey,
};
use proptest::prelude::*;

const LEARNED_MAX: usize = 4;
const REFRESH: Millis = Millis(3);

// ===== the model =====

/// Everything that a snapshot shows, as plain maps.
#[derive(Clone, Debug, Default, PartialEq)]
struct View {
    networks: BTreeMap<NetworkKey, NetworkView>,
    vteps: BTreeMap<VtepKey, Vtep>,
    by_vni: BTreeMap<(u16, Vni), NetworkKey>,
    by_address: BTreeMap<IpAddr, VtepKey>,
}

#[derive(Clone, Debug, PartialEq)]
struct NetworkView {
    params: Network,
    macs: BTreeMap<MacAddr, MacEntry>,
    neighbors: BTreeMap<IpAddr, Neighbor>,
    routes: BTreeMap<Prefix, Route>,
    flood: Vec<VtepKey>,
    statics: Vec<VtepKey>,
    admits: BTreeSet<VtepKey>,
}

/// The claims on one key.
#[derive(Clone, Debug)]
struct Claims<V> {
    fixed: Option<V>,
    store: Option<(Revision, V)>,
}

impl<V: Copy> Claims<V> {
    fn put(&mut self, origin: Origin, value: V) {
        match origin {
            Origin::Learned { .. } => {}
            Origin::Static => self.fixed = Some(value),
            Origin::Store { revision } => {
                if self.store.is_none_or(|(present, _)| present <= revision) {
                    self.store = Some((revision, value));
                }
            }
        }
    }

    fn remove(&mut self, kind: OriginKind) {
        match kind {
            OriginKind::Learned => {}
            OriginKind::Store => self.store = None,
            OriginKind::Static => self.fixed = None,
        }
    }

    fn best(&self) -> Option<V> {
        self.fixed.or_else(|| self.store.map(|(_, value)| value))
    }
}

impl<V> Default for Claims<V> {
    fn default() -> Self {
        Self { fixed: None, store: None }
    }
}

#[derive(Clone, Debug)]
struct ModelNetwork {
    params: Network,
    macs: BTreeMap<MacAddr, Claims<MacEntry>>,
    neighbors: BTreeMap<IpAddr, Claims<Neighbor>>,
    routes: BTreeMap<Prefix, Claims<Route>>,
    learned: BTreeMap<MacAddr, (VtepKey, Millis)>,
    flood: Vec<VtepKey>,
    statics: BTreeSet<VtepKey>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    networks: BTreeMap<NetworkKey, ModelNetwork>,
    vteps: BTreeMap<VtepKey, Vtep>,
}

impl Model {
    fn admits(&self, network: &ModelNetwork, vtep: VtepKey) -> bool {
        self.vteps.get(&vtep).is_some_and(|vtep| vtep.host.is_some())
            || network.statics.contains(&vtep)
    }

    fn apply(&mut self, delta: Delta) {
        match delta {
            Delta::Age { now, max_age } => {
                for network in self.networks.values_mut() {
                    network.learned.retain(|_, (_, at)| at.0 + max_age.0 > now.0);
                }
            }
            Delta::Learn { network: key, mac, vtep, at } => {
                let Some(network) = self.networks.get(&key) else { return };
                let claimed = network.macs.get(&mac).is_some_and(|c| c.best().is_some());
                let known = self.vteps.contains_key(&vtep) && self.admits(network, vtep);
                if !network.params.learning || !mac.is_unicast() || !known || claimed {
                    return;
                }
                let mut learned = network.learned.clone();
                match learned.get(&mac) {
                    Some((from, last)) if *from == vtep && at.since(*last) < REFRESH => return,
                    Some((_, last)) if at < *last => return,
                    None if learned.len() >= LEARNED_MAX => evict(&mut learned, vtep),
                    _ => {}
                }
                learned.insert(mac, (vtep, at));
                self.networks.get_mut(&key).unwrap().learned = learned;
            }
            Delta::PutMac { network, mac, entry } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                let claims = network.macs.entry(mac).or_default();
                claims.put(entry.origin, entry);
                if claims.best().is_some() {
                    network.learned.remove(&mac);
                }
            }
            Delta::PutNeighbor { network, ip, neighbor } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                let claims = network.neighbors.entry(ip.to_canonical()).or_default();
                claims.put(neighbor.origin, neighbor);
            }
            Delta::PutNetwork { key, network } => {
                let present = self.networks.entry(key).or_insert_with(|| ModelNetwork {
                    params: network.clone(),
                    macs: BTreeMap::new(),
                    neighbors: BTreeMap::new(),
                    routes: BTreeMap::new(),
                    learned: BTreeMap::new(),
                    flood: Vec::new(),
                    statics: BTreeSet::new(),
                });
                if !network.learning {
                    present.learned.clear();
                }
                present.params = network;
            }
            Delta::PutRoute { network, prefix, route } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                network.routes.entry(prefix).or_default().put(route.origin, route);
            }
            Delta::PutVtep { key, vtep } => {
                self.vteps.insert(key, vtep);
                self.forget_unadmitted();
            }
            Delta::RemoveMac { network, mac, origin } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                network.macs.entry(mac).or_default().remove(origin);
                if origin == OriginKind::Learned {
                    network.learned.remove(&mac);
                }
            }
            Delta::RemoveNeighbor { network, ip, origin } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                network.neighbors.entry(ip.to_canonical()).or_default().remove(origin);
            }
            Delta::RemoveRoute { network, prefix, origin } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                network.routes.entry(prefix).or_default().remove(origin);
            }
            Delta::RemoveNetwork { key } => {
                self.networks.remove(&key);
            }
            Delta::RemoveVtep { key } => {
                if self.vteps.remove(&key).is_none() {
                    return;
                }
                for network in self.networks.values_mut() {
                    network.flood.retain(|vtep| *vtep != key);
                    network.statics.remove(&key);
                }
                self.forget_unadmitted();
            }
            Delta::SetFlood { network, vteps } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                network.flood.clear();
                for vtep in vteps {
                    if !network.flood.contains(&vtep) {
                        network.flood.push(vtep);
                    }
                }
            }
            Delta::SetStaticVteps { network, vteps } => {
                let Some(network) = self.networks.get_mut(&network) else { return };
                network.statics = vteps.into_iter().collect();
                self.forget_unadmitted();
            }
        }
    }

    fn forget_unadmitted(&mut self) {
        let model = self.clone();
        for (key, network) in &mut self.networks {
            let before = &model.networks[key];
            network.learned.retain(|_, (vtep, _)| model.admits(before, *vtep));
        }
    }

    fn view(&self) -> View {
        let mut view = View { vteps: self.vteps.clone(), ..View::default() };
        for (key, network) in &self.networks {
            view.by_vni.entry((network.params.udp_port, network.params.vni)).or_insert(*key);
            let learned = network.learned.iter().map(|(mac, (vtep, at))| {
                let origin = Origin::Learned { at: *at };
                (*mac, MacEntry { place: Place::Vtep(*vtep), origin })
            });
            let claimed = network.macs.iter().filter_map(|(mac, c)| Some((*mac, c.best()?)));
            let neighbors =
                network.neighbors.iter().filter_map(|(ip, c)| Some((*ip, c.best()?))).collect();
            let routes =
                network.routes.iter().filter_map(|(ip, c)| Some((*ip, c.best()?))).collect();
            view.networks.insert(
                *key,
                NetworkView {
                    params: network.params.clone(),
                    macs: learned.chain(claimed).collect(),
                    neighbors,
                    routes,
                    flood: network.flood.clone(),
                    statics: network.statics.iter().copied().collect(),
                    admits: all_vteps().filter(|vtep| self.admits(network, *vtep)).collect(),
                },
            );
        }
        // A static VTEP has what no host claims as well as it does.
        let mut ranked: Vec<_> = self.vteps.iter().collect();
        ranked.sort_by_key(|(key, vtep)| (vtep.host.is_none(), **key));
        for (key, vtep) in &ranked {
            view.by_address.entry(vtep.address.to_canonical()).or_insert(**key);
        }
        for (key, vtep) in &ranked {
            for address in &vtep.accept {
                view.by_address.entry(address.to_canonical()).or_insert(**key);
            }
        }
        view
    }
}

/// Removes the oldest entry of the VTEP with the most, `newcomer` first among equals.
fn evict(learned: &mut BTreeMap<MacAddr, (VtepKey, Millis)>, newcomer: VtepKey) {
    let count = |vtep| learned.values().filter(|(other, _)| *other == vtep).count();
    let most = all_vteps().max_by_key(|v| (count(*v), *v == newcomer, *v)).unwrap();
    let of_most = learned.iter().filter(|(_, (vtep, _))| *vtep == most);
    let oldest = of_most.map(|(mac, (_, at))| (*at, *mac)).min().unwrap();
    learned.remove(&oldest.1);
}

/// What a snapshot shows, by look-up and by listing.
fn view(snapshot: &Snapshot) -> View {
    let mut view = View {
        vteps: snapshot.vteps().map(|(key, vtep)| (key, vtep.clone())).collect(),
        ..View::default()
    };
    for (key, tables) in snapshot.networks() {
        assert!(std::ptr::eq(snapshot.network(key).unwrap(), tables));
        let macs: BTreeMap<_, _> = tables.macs().map(|(mac, entry)| (mac, *entry)).collect();
        let neighbors: BTreeMap<_, _> = tables.neighbors().map(|(ip, n)| (ip, *n)).collect();
        assert_eq!(macs.len(), tables.macs_len());
        assert_eq!(neighbors.len(), tables.neighbors_len());
        let routes: BTreeMap<_, _> = tables.routes().map(|(p, route)| (p, *route)).collect();
        assert_eq!(routes.len(), tables.routes_len());
        assert_eq!(tables.learned_len(), tables.macs_of(OriginKind::Learned));
        assert!(tables.learned_len() <= LEARNED_MAX);
        for mac in all_macs() {
            assert_eq!(tables.mac(mac), macs.get(&mac));
        }
        for ip in all_addresses() {
            assert_eq!(tables.neighbor(ip), neighbors.get(&ip.to_canonical()));
        }
        view.networks.insert(
            key,
            NetworkView {
                params: tables.params().clone(),
                macs,
                neighbors,
                routes,
                flood: tables.flood().to_vec(),
                statics: tables.static_vteps().to_vec(),
                admits: all_vteps().filter(|vtep| tables.admits(*vtep)).collect(),
            },
        );
    }
    for (port, vni) in all_vnis() {
        view.by_vni.extend(snapshot.by_vni(port, vni).map(|key| ((port, vni), key)));
    }
    for ip in all_addresses() {
        let ip = ip.to_canonical();
        view.by_address.extend(snapshot.vtep_by_address(ip).map(|key| (ip, key)));
    }
    assert_eq!(snapshot.networks_len(), view.networks.len());
    assert_eq!(snapshot.vteps_len(), view.vteps.len());
    view
}

// ===== small worlds, so that deltas meet =====

fn all_vteps() -> impl Iterator<Item = VtepKey> {
    [0, 1, 2, 65].into_iter().map(VtepKey)
}

fn all_macs() -> impl Iterator<Item = MacAddr> {
    (0..8).map(|i| MacAddr([0, 0, 0x5e, 0, 0x53, i])).chain([MacAddr::BROADCAST, MacAddr::ZERO])
}

fn all_addresses() -> impl Iterator<Item = IpAddr> {
    ["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.2", "198.51.100.1", "2001:db8::1", "2001:db8::2"]
        .into_iter()
        .map(|text| text.parse().unwrap())
}

fn all_vnis() -> impl Iterator<Item = (u16, Vni)> {
    [(4789, 1), (4789, 2), (8472, 1)].into_iter().map(|(port, n)| (port, Vni::new(n).unwrap()))
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(
    all: impl Iterator<Item = T>,
) -> impl Strategy<Value = T> + Clone {
    proptest::sample::select(all.collect::<Vec<_>>())
}

fn network_key() -> impl Strategy<Value = NetworkKey> {
    one_of([0, 1, 70].into_iter().map(NetworkKey))
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        1 => (0..9u64).prop_map(|at| Origin::Learned { at: Millis(at) }),
        3 => Just(Origin::Static),
        6 => (0..6i64).prop_map(|revision| Origin::Store { revision: Revision(revision) }),
    ]
}

fn origin_kind() -> impl Strategy<Value = OriginKind> {
    one_of([OriginKind::Learned, OriginKind::Static, OriginKind::Store].into_iter())
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![Just(Place::Local), one_of(all_vteps()).prop_map(Place::Vtep)]
}

fn vtep() -> impl Strategy<Value = Vtep> {
    let addresses = proptest::collection::vec(one_of(all_addresses()), 0..3);
    (one_of(all_addresses()), addresses, any::<bool>(), any::<bool>()).prop_map(
        |(address, accept, hosted, suspect)| Vtep {
            address,
            port: 4789,
            mtu: 1500,
            accept,
            host: hosted.then(|| "h1".into()),
            checksum: true,
            suspect,
            ip_in_ip: true,
        },
    )
}

fn network() -> impl Strategy<Value = Network> {
    (one_of(all_vnis()), proptest::bool::weighted(0.8)).prop_map(|((udp_port, vni), learning)| {
        Network {
            vni,
            udp_port,
            mtu: 1450,
            name: "red".into(),
            id: "1".into(),
            learning,
            flood_unknown: false,
            flood_broadcast: true,
            flood_multicast: true,
            flood_rate: 10_000,
            flood_arp: false,
            source_check: SourceCheck::Strict,
            df: true,
            switch_local: false,
            gateway: None,
            routed: None,
        }
    })
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (one_of(all_addresses()), one_of([0, 8, 24, 32].into_iter()))
        .prop_map(|(ip, len)| Prefix::new(ip, len).unwrap())
}

fn delta() -> impl Strategy<Value = Delta> {
    let (key, mac, ip) = (network_key, || one_of(all_macs()), || one_of(all_addresses()));
    let vteps = || proptest::collection::vec(one_of(all_vteps()), 0..5);
    prop_oneof![
        1 => (0..60u64, 5..20u64)
            .prop_map(|(now, age)| Delta::Age { now: Millis(now), max_age: Millis(age) }),
        12 => (key(), mac(), one_of(all_vteps()), 0..60u64).prop_map(|(network, mac, vtep, at)| {
            Delta::Learn { network, mac, vtep, at: Millis(at) }
        }),
        8 => (key(), mac(), place(), origin()).prop_map(|(network, mac, place, origin)| {
            Delta::PutMac { network, mac, entry: MacEntry { place, origin } }
        }),
        8 => (key(), ip(), mac(), place(), origin()).prop_map(
            |(network, ip, mac, place, origin)| {
                Delta::PutNeighbor { network, ip, neighbor: Neighbor { mac, place, origin } }
            }
        ),
        6 => (key(), prefix(), place(), origin()).prop_map(|(network, prefix, place, origin)| {
            Delta::PutRoute { network, prefix, route: Route { place, origin } }
        }),
        3 => (key(), prefix(), origin_kind())
            .prop_map(|(network, prefix, origin)| Delta::RemoveRoute { network, prefix, origin }),
        4 => (key(), network()).prop_map(|(key, network)| Delta::PutNetwork { key, network }),
        4 => (one_of(all_vteps()), vtep()).prop_map(|(key, vtep)| Delta::PutVtep { key, vtep }),
        5 => (key(), mac(), origin_kind())
            .prop_map(|(network, mac, origin)| Delta::RemoveMac { network, mac, origin }),
        5 => (key(), ip(), origin_kind())
            .prop_map(|(network, ip, origin)| Delta::RemoveNeighbor { network, ip, origin }),
        1 => key().prop_map(|key| Delta::RemoveNetwork { key }),
        1 => one_of(all_vteps()).prop_map(|key| Delta::RemoveVtep { key }),
        2 => (key(), vteps()).prop_map(|(network, vteps)| Delta::SetFlood { network, vteps }),
        2 => (key(), vteps())
            .prop_map(|(network, vteps)| Delta::SetStaticVteps { network, vteps }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn snapshots_say_what_the_model_says(
        batches in proptest::collection::vec(proptest::collection::vec(delta(), 0..12), 1..24)
    ) {
        let limits = Limits { learned_per_network: LEARNED_MAX, retired: 64, refresh: REFRESH };
        let (mut writer, reader) = fdb::channel_with(limits);
        let mut model = Model::default();
        let mut history: Vec<(Arc<Snapshot>, View)> = Vec::new();
        // Most deltas need their networks and VTEPs to be there.
        let first = (0..3u32).flat_map(|i| {
            let vtep = Vtep {
                address: IpAddr::from([198, 51, 100, 1]),
                port: 4789,
                mtu: 0,
                accept: Vec::new(),
                host: (i != 1).then(|| "h0".into()),
                checksum: true,
                suspect: false,
                ip_in_ip: true,
            };
            [Delta::PutVtep { key: VtepKey(i), vtep }]
        });
        for batch in std::iter::once(first.collect()).chain(batches) {
            for delta in batch {
                model.apply(delta.clone());
                writer.apply(delta);
            }
            let generation = writer.publish();
            let snapshot = reader.load_full();
            prop_assert_eq!(snapshot.generation(), generation);
            prop_assert_eq!(view(&snapshot), model.view());
            history.push((snapshot, model.view()));
        }
        for (snapshot, expected) in &history {
            prop_assert_eq!(&view(snapshot), expected);
        }
        drop(history);
        writer.reclaim();
        prop_assert_eq!(writer.retired(), 0);
    }
}

//! The store as one listing shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use encap::{MacAddr, Vni};
use ipnet::IpNet;

use super::{Options, everything};
use crate::key::{DockerId, EndpointId, HostName, Key, NetworkId, NetworkName};
use crate::record::{
    AddressRecord, BlockRecord, EndpointRecord, MacRecord, NameRecord, NetworkRecord, Stored,
    VniRecord,
};
use crate::store::{Entry, Error, Store};

/// A record with its revision; `None` for one that cannot be read, which exists all the same.
#[derive(Clone, Debug)]
pub(super) struct Item<T> {
    pub(super) record: Option<T>,
    pub(super) revision: i64,
}

/// A mark of absence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) revision: i64,
    /// How long its lease has been running at least; `None` for a mark that counts for nothing.
    pub(super) age: Option<Duration>,
}

/// Of one network.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Its record; `None` without one.
    pub(super) record: Option<Item<NetworkRecord>>,
    pub(super) endpoints: BTreeMap<EndpointId, Item<EndpointRecord>>,
    /// Networks of Docker that it is, with their revisions.
    pub(super) dockers: BTreeMap<(HostName, DockerId), i64>,
    pub(super) blocks: BTreeMap<IpNet, Item<BlockRecord>>,
    pub(super) addresses: BTreeMap<IpAddr, Item<AddressRecord>>,
    pub(super) macs: BTreeMap<MacAddr, Item<MacRecord>>,
    /// Resting addresses with their leases.
    pub(super) resting: BTreeMap<IpAddr, (i64, i64)>,
}

/// The whole store.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) grace: Duration,
    /// A host of which somebody says that it will not come back.
    pub(super) removed: Option<HostName>,
    pub(super) present: BTreeSet<HostName>,
    /// Revisions of `known/` records.
    pub(super) known: BTreeMap<HostName, i64>,
    pub(super) marks: BTreeMap<HostName, Mark>,
    pub(super) networks: BTreeMap<NetworkId, Network>,
    pub(super) names: BTreeMap<NetworkName, Item<NameRecord>>,
    pub(super) vnis: BTreeMap<Vni, Item<VniRecord>>,
}

fn item<T: Stored>(key: &Key, entry: &Entry) -> Item<T> {
    Item { record: T::decode(key, &entry.value).ok(), revision: entry.mod_revision }
}

impl Model {
    pub(super) async fn read(store: &Store, options: &Options) -> Result<Self, Error> {
        let mut model = Self {
            grace: options.grace,
            removed: options.host.clone(),
            present: BTreeSet::new(),
            known: BTreeMap::new(),
            marks: BTreeMap::new(),
            networks: BTreeMap::new(),
            names: BTreeMap::new(),
            vnis: BTreeMap::new(),
        };
        let mut leases = Vec::new();
        for entry in everything(store).await? {
            // A key that cannot be read names nothing that we could remove.
            let Ok(key) = store.keys().parse(&entry.key) else { continue };
            if let Key::Absent(host) = &key {
                leases.push((host.clone(), entry.lease));
            }
            model.take(key, &entry);
        }
        for (host, lease) in leases.into_iter().filter(|(_, lease)| *lease != 0) {
            let age = store.lease_age(lease).await?;
            if let Some(mark) = model.marks.get_mut(&host) {
                mark.age = age;
            }
        }
        Ok(model)
    }

    fn take(&mut self, key: Key, entry: &Entry) {
        let revision = entry.mod_revision;
        match &key {
            Key::Absent(host) => {
                self.marks.insert(host.clone(), Mark { revision, age: None });
            }
            Key::Address(network, ip) => {
                let item = item(&key, entry);
                self.network(network).addresses.insert(*ip, item);
            }
            Key::Block(network, cidr) => {
                let item = item(&key, entry);
                self.network(network).blocks.insert(*cidr, item);
            }
            Key::Docker(network, host, id) => {
                let of = (host.clone(), id.clone());
                self.network(network).dockers.insert(of, revision);
            }
            Key::Endpoint(network, endpoint) => {
                let item = item(&key, entry);
                self.network(network).endpoints.insert(endpoint.clone(), item);
            }
            Key::Host(host) => {
                self.present.insert(host.clone());
            }
            Key::KnownHost(host) => {
                self.known.insert(host.clone(), revision);
            }
            Key::Mac(network, mac) => {
                let item = item(&key, entry);
                self.network(network).macs.insert(*mac, item);
            }
            Key::Name(name) => {
                self.names.insert(name.clone(), item(&key, entry));
            }
            Key::Network(network) => {
                let item = item(&key, entry);
                self.network(network).record = Some(item);
            }
            Key::Resting(network, ip) => {
                self.network(network).resting.insert(*ip, (revision, entry.lease));
            }
            Key::Vni(vni) => {
                self.vnis.insert(*vni, item(&key, entry));
            }
            Key::Guard(_) | Key::VtepClaim(_) => {}
        }
    }

    fn network(&mut self, id: &NetworkId) -> &mut Network {
        self.networks.entry(id.clone()).or_default()
    }

    /// The hosts that records name as owners.
    fn owners(&self) -> BTreeSet<&HostName> {
        let mut owners: BTreeSet<&HostName> = self.known.keys().collect();
        for network in self.networks.values() {
            let endpoints = network.endpoints.values().filter_map(|item| item.record.as_ref());
            owners.extend(endpoints.map(|record| &record.host));
            let blocks = network.blocks.values().filter_map(|item| item.record.as_ref());
            owners.extend(blocks.map(|record| &record.host));
            let addresses = network.addresses.values().filter_map(|item| item.record.as_ref());
            owners.extend(addresses.map(|record| &record.host));
            owners.extend(network.dockers.keys().map(|(host, _)| host));
        }
        owners
    }

    /// Whether any record names this host as its owner.
    pub(super) fn names_host(&self, host: &HostName) -> bool {
        self.owners().contains(host)
    }

    /// Hosts that are absent without a mark that counts.
    pub(super) fn unmarked(&self) -> Vec<HostName> {
        let absent = self.owners().into_iter().filter(|host| !self.present.contains(*host));
        let unmarked =
            absent.filter(|host| self.marks.get(*host).is_none_or(|mark| mark.age.is_none()));
        unmarked.cloned().collect()
    }

    /// How long a host has been gone, when that is long enough for what it has to be garbage.
    pub(super) fn gone(&self, host: &HostName) -> Option<Gone> {
        if self.present.contains(host) {
            return None;
        }
        let mark = self.marks.get(host);
        let age = mark.and_then(|mark| mark.age);
        if self.removed.as_ref() == Some(host) {
            return Some(Gone { age, mark: None });
        }
        let age = age.filter(|age| *age >= self.grace)?;
        Some(Gone { age: Some(age), mark: mark.map(|mark| mark.revision) })
    }
}

/// A host that is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) age: Option<Duration>,
    /// The revision of the mark that says so; `None` where somebody says so.
    pub(super) mark: Option<i64>,
}

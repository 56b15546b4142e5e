//! The mirror of the store that everything else reads: hosts, networks, endpoints, blocks.
//!
//! The [`watch`](crate::watch) fills it, [`reconcile`](crate::reconcile) and the listings read it.
//! It is plain memory with one owner. A snapshot of it lies in the state directory, with a
//! [`Journal`] of what was applied since, so that an agent which starts while the store is away
//! knows what it knew.
//!
//! A record that becomes bad does not remove what its key held before: forwarding goes on with the
//! last good record, and the bad one is listed with its key until it is repaired or deleted.

mod journal;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fdb::Revision;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use journal::Journal;

use crate::file;
use crate::key::{EndpointId, HostName, Key, NetworkId, NetworkName};
use crate::record::{BlockRecord, EndpointRecord, HostRecord, NetworkRecord, Record};
use crate::watch::{Event, Known};

/// A record with the revision that it was last changed at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "T: Serialize", deserialize = "T: Deserialize<'de>"))]
pub struct Item<T> {
    /// The record.
    #[serde(with = "shared")]
    pub record: Arc<T>,
    /// The revision of its last change.
    pub revision: i64,
}

/// Shared records are written as if each had one owner.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        record: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        T::serialize(record, serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

impl<T> Item<T> {
    fn new(record: T, revision: Revision) -> Self {
        Self { record: Arc::new(record), revision: revision.0 }
    }

    /// The revision as the tables have it.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        Revision(self.revision)
    }
}

/// A host: what it published under its lease, and what is kept of it when that ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its record while its lease lives.
    pub present: Option<Item<HostRecord>>,
    /// Its record without a lease.
    pub known: Option<Item<HostRecord>>,
}

impl Host {
    /// Whether its lease lives.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        self.present.is_some()
    }

    /// What it last published.
    #[must_use]
    pub fn record(&self) -> Option<&Arc<HostRecord>> {
        self.present.as_ref().or(self.known.as_ref()).map(|item| &item.record)
    }

    /// The revision of what it last published.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.present.as_ref().or(self.known.as_ref()).map_or(Revision(0), Item::revision)
    }
}

/// A key that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// Why.
    pub error: String,
    /// The revision of the change.
    pub revision: i64,
}

/// What an event changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The set of bad records.
    Bad(String),
    /// A block of addresses.
    Block {
        /// Its network.
        network: NetworkId,
        /// The block.
        cidr: IpNet,
    },
    /// An endpoint.
    Endpoint {
        /// Its network.
        network: NetworkId,
        /// Its id.
        endpoint: EndpointId,
        /// What it was before.
        before: Option<Arc<EndpointRecord>>,
    },
    /// A host, present or known.
    Host(HostName),
    /// A network.
    Network {
        /// Its id.
        network: NetworkId,
        /// What it was before.
        before: Option<Arc<NetworkRecord>>,
    },
    /// Nothing that the view holds.
    None,
}

/// The mirror of the store.
#[derive(Clone, Debug, Default)]
pub struct View {
    revision: Revision,
    hosts: BTreeMap<HostName, Host>,
    networks: BTreeMap<NetworkId, Item<NetworkRecord>>,
    names: HashMap<NetworkName, NetworkId>,
    endpoints: BTreeMap<NetworkId, BTreeMap<EndpointId, Item<EndpointRecord>>>,
    blocks: BTreeMap<NetworkId, BTreeMap<IpNet, Item<BlockRecord>>>,
    bad: BTreeMap<String, Bad>,
}

impl View {
    /// An empty mirror.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The latest revision that was applied.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Notes that the mirror is complete up to `revision` ([`crate::watch::Batch::revision`]).
    pub fn reached(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = (&HostName, &Host)> {
        self.hosts.iter()
    }

    /// One host.
    #[must_use]
    pub fn host(&self, name: &HostName) -> Option<&Host> {
        self.hosts.get(name)
    }

    /// All networks, by id.
    pub fn networks(&self) -> impl Iterator<Item = &Item<NetworkRecord>> {
        self.networks.values()
    }

    /// One network.
    #[must_use]
    pub fn network(&self, id: &NetworkId) -> Option<&Item<NetworkRecord>> {
        self.networks.get(id)
    }

    /// The network of this name, or else of this id.
    #[must_use]
    pub fn network_by(&self, name_or_id: &str) -> Option<&Item<NetworkRecord>> {
        let by_name = NetworkName::new(name_or_id).ok().and_then(|name| self.names.get(&name));
        let by_name = by_name.and_then(|id| self.networks.get(id));
        by_name.or_else(|| self.networks.get(&NetworkId::new(name_or_id).ok()?))
    }

    /// All endpoints, by network and id.
    pub fn endpoints(&self) -> impl Iterator<Item = &Item<EndpointRecord>> {
        self.endpoints.values().flat_map(BTreeMap::values)
    }

    /// The endpoints of a network, by id.
    pub fn endpoints_of(&self, network: &NetworkId) -> impl Iterator<Item = &Item<EndpointRecord>> {
        self.endpoints.get(network).into_iter().flat_map(BTreeMap::values)
    }

    /// How many endpoints a network has.
    #[must_use]
    pub fn endpoint_count(&self, network: &NetworkId) -> usize {
        self.endpoints.get(network).map_or(0, BTreeMap::len)
    }

    /// One endpoint.
    #[must_use]
    pub fn endpoint(
        &self,
        network: &NetworkId,
        endpoint: &EndpointId,
    ) -> Option<&Item<EndpointRecord>> {
        self.endpoints.get(network)?.get(endpoint)
    }

    /// Endpoints with this id or name, in any network.
    pub fn endpoints_by<'a>(
        &'a self,
        id_or_name: &'a str,
    ) -> impl Iterator<Item = &'a Item<EndpointRecord>> {
        self.endpoints().filter(move |item| {
            item.record.id.as_str() == id_or_name || item.record.name.as_deref() == Some(id_or_name)
        })
    }

    /// The blocks of a network, by prefix.
    pub fn blocks_of(
        &self,
        network: &NetworkId,
    ) -> impl Iterator<Item = (&IpNet, &Item<BlockRecord>)> {
        self.blocks.get(network).into_iter().flatten()
    }

    /// What was set aside, by full key.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &Bad)> {
        self.bad.iter().map(|(key, bad)| (key.as_str(), bad))
    }

    /// The revisions of all keys held, so that a watch can report what vanished meanwhile.
    #[must_use]
    pub fn known(&self) -> Known {
        let mut known = Known::new();
        for (name, host) in &self.hosts {
            if let Some(item) = &host.present {
                known.insert(Key::Host(name.clone()), item.revision());
            }
            if let Some(item) = &host.known {
                known.insert(Key::KnownHost(name.clone()), item.revision());
            }
        }
        for (id, item) in &self.networks {
            known.insert(Key::Network(id.clone()), item.revision());
        }
        for item in self.endpoints() {
            let key = Key::Endpoint(item.record.network.clone(), item.record.id.clone());
            known.insert(key, item.revision());
        }
        for (network, blocks) in &self.blocks {
            for (cidr, item) in blocks {
                known.insert(Key::Block(network.clone(), *cidr), item.revision());
            }
        }
        known
    }

    /// Applies one event and says what it changed. Events come in order; one with a lower revision than
    /// what is held comes from a store that was restored, and counts.
    pub fn apply(&mut self, event: Event) -> Change {
        match event {
            Event::Bad { key, error, revision, .. } => {
                self.revision = self.revision.max(revision);
                self.bad.insert(key.clone(), Bad { error, revision: revision.0 });
                Change::Bad(key)
            }
            Event::Delete { key, revision } => {
                self.revision = self.revision.max(revision);
                self.repaired(&key);
                self.delete(key)
            }
            Event::DeleteBad { key, revision } => {
                self.revision = self.revision.max(revision);
                if self.bad.remove(&key).is_some() { Change::Bad(key) } else { Change::None }
            }
            Event::Put { key, record, revision } => {
                self.revision = self.revision.max(revision);
                self.repaired(&key);
                self.put(key, *record, revision)
            }
        }
    }

    /// Forgets that a key was bad. Keys are full there, so the prefix is matched by their end.
    fn repaired(&mut self, key: &Key) {
        if self.bad.is_empty() {
            return;
        }
        let end = format!("/{key}");
        self.bad.retain(|full, _| !full.ends_with(&end));
    }

    fn put(&mut self, key: Key, record: Record, revision: Revision) -> Change {
        match (key, record) {
            (Key::Host(name), Record::Host(record)) => {
                let host = self.hosts.entry(name.clone()).or_default();
                host.present = Some(Item::new(record, revision));
                Change::Host(name)
            }
            (Key::KnownHost(name), Record::KnownHost(record)) => {
                let host = self.hosts.entry(name.clone()).or_default();
                host.known = Some(Item::new(record, revision));
                Change::Host(name)
            }
            (Key::Network(network), Record::Network(record)) => {
                self.names.insert(record.name.clone(), network.clone());
                let name = record.name.clone();
                let before = self.networks.insert(network.clone(), Item::new(record, revision));
                let before = before.map(|item| item.record);
                if let Some(before) = &before
                    && before.name != name
                {
                    self.forget_name(&before.name, &network);
                }
                Change::Network { network, before }
            }
            (Key::Endpoint(network, endpoint), Record::Endpoint(record)) => {
                let before = self
                    .endpoints
                    .entry(network.clone())
                    .or_default()
                    .insert(endpoint.clone(), Item::new(record, revision))
                    .map(|item| item.record);
                Change::Endpoint { network, endpoint, before }
            }
            (Key::Block(network, cidr), Record::Block(record)) => {
                let item = Item::new(record, revision);
                self.blocks.entry(network.clone()).or_default().insert(cidr, item);
                Change::Block { network, cidr }
            }
            _ => Change::None,
        }
    }

    fn delete(&mut self, key: Key) -> Change {
        match key {
            Key::Host(name) => {
                let Some(host) = self.hosts.get_mut(&name) else { return Change::None };
                // What it last published stays readable until its known record is collected.
                if let Some(item) = host.present.take()
                    && host.known.is_none()
                {
                    host.known = Some(item);
                }
                Change::Host(name)
            }
            Key::KnownHost(name) => {
                let Some(host) = self.hosts.get_mut(&name) else { return Change::None };
                host.known = None;
                if host.present.is_none() {
                    self.hosts.remove(&name);
                }
                Change::Host(name)
            }
            Key::Network(network) => {
                let Some(item) = self.networks.remove(&network) else { return Change::None };
                self.forget_name(&item.record.name, &network);
                Change::Network { network, before: Some(item.record) }
            }
            Key::Endpoint(network, endpoint) => {
                let Some(of_network) = self.endpoints.get_mut(&network) else {
                    return Change::None;
                };
                let before = of_network.remove(&endpoint).map(|item| item.record);
                if of_network.is_empty() {
                    self.endpoints.remove(&network);
                }
                if before.is_none() {
                    return Change::None;
                }
                Change::Endpoint { network, endpoint, before }
            }
            Key::Block(network, cidr) => {
                let Some(of_network) = self.blocks.get_mut(&network) else { return Change::None };
                of_network.remove(&cidr);
                if of_network.is_empty() {
                    self.blocks.remove(&network);
                }
                Change::Block { network, cidr }
            }
            _ => Change::None,
        }
    }

    fn forget_name(&mut self, name: &NetworkName, network: &NetworkId) {
        if self.names.get(name) == Some(network) {
            self.names.remove(name);
        }
    }
}

/// Why a snapshot of the view cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("snapshot {} cannot be {what} ({source}): check the state directory", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("snapshot {} is damaged ({cause}): it is made again once the store answers",
        path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// The snapshot as it is in the file.
#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    revision: i64,
    hosts: BTreeMap<HostName, Host>,
    networks: Vec<Item<NetworkRecord>>,
    endpoints: Vec<Item<EndpointRecord>>,
    /// Of routed networks, whose routes they are.
    #[serde(default)]
    blocks: Vec<(NetworkId, IpNet, Item<BlockRecord>)>,
}

/// Version of the snapshot's form.
const SNAPSHOT: u32 = 1;

impl View {
    /// Writes hosts, networks, endpoints and the blocks of routed networks to a file, replacing it in one step.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let saved = Saved {
            version: SNAPSHOT,
            revision: self.revision.0,
            hosts: self.hosts.clone(),
            networks: self.networks.values().cloned().collect(),
            endpoints: self.endpoints().cloned().collect(),
            blocks: self.routed_blocks(),
        };
        let failed = |source| Error::File { path: path.to_owned(), what: "written", source };
        let bytes = serde_json::to_vec(&saved).map_err(|error| failed(error.into()))?;
        file::replace(path, &bytes).map_err(failed)
    }

    /// The blocks of routed networks.
    fn routed_blocks(&self) -> Vec<(NetworkId, IpNet, Item<BlockRecord>)> {
        let routed = self.networks().filter(|item| item.record.mode.is_routed());
        let of = |item: &Item<NetworkRecord>| {
            let id = item.record.id.clone();
            let blocks = self.blocks_of(&id).map(|(cidr, item)| (id.clone(), *cidr, item.clone()));
            blocks.collect::<Vec<_>>()
        };
        routed.flat_map(of).collect()
    }

    /// Reads what [`Self::save`] wrote; `None` when there is no file.
    ///
    /// # Errors
    ///
    /// [`Error::File`] or [`Error::Damaged`].
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { path: path.to_owned(), what: "read", source }),
        };
        let damaged = |cause: String| Error::Damaged { path: path.to_owned(), cause };
        let saved: Saved =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if saved.version != SNAPSHOT {
            return Err(damaged(format!("its version is {}", saved.version)));
        }
        let mut view = Self { revision: Revision(saved.revision), ..Self::default() };
        view.hosts = saved.hosts;
        for item in saved.networks {
            let id = item.record.id.clone();
            view.names.insert(item.record.name.clone(), id.clone());
            view.networks.insert(id, item);
        }
        for (network, cidr, item) in saved.blocks {
            view.blocks.entry(network).or_default().insert(cidr, item);
        }
        for item in saved.endpoints {
            let record = &item.record;
            let (network, id) = (record.network.clone(), record.id.clone());
            view.endpoints.entry(network).or_default().insert(id, item);
        }
        Ok(Some(view))
    }
}

//! Endpoints: addresses, MAC and record in one transaction.
//!
//! A MAC is unique within its network: `ipam/NETWORK/macs/MAC` is created with the endpoint if it
//! is absent, and removed with it. The transaction also compares that the network is there, so that
//! an endpoint cannot appear in a network that is being removed.
//!
//! An endpoint that was made without the store, with addresses that its host had reserved
//! ([`ipam::reserve`]), is created afterwards with `again` set: an endpoint that is there already and
//! is the same counts as created, and whoever else has got its address or MAC is named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use encap::MacAddr;
use etcd_client::Compare;
use tokio::time::sleep;
use tracing::{Instrument, info, info_span};

use crate::ipam::{self, ATTEMPTS, Allocation, Asker, Pool, Steps};
use crate::key::{EndpointId, HostName, Key, NetworkId, Range};
use crate::record::{
    EndpointRecord, Extra, HostRecord, MacRecord, NetworkRecord, StaticVtep, Stored, VERSION,
    now_seconds,
};
use crate::store::{self, Entry, Found, Store, conflict_pause};

/// Why an endpoint cannot be created or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no address for it.
    #[error(transparent)]
    Address(#[from] ipam::Error),
    /// Another endpoint has this id.
    #[error("endpoint {endpoint} exists already on host {host}")]
    Exists {
        /// The id.
        endpoint: EndpointId,
        /// Where it is.
        host: HostName,
    },
    /// The MAC is in use outside the store.
    #[error("MAC {mac} is behind static VTEP {vtep} of the network: ask for another")]
    MacBehindVtep {
        /// The MAC.
        mac: MacAddr,
        /// The VTEP.
        vtep: IpAddr,
    },
    /// Another endpoint of the network has this MAC.
    #[error("MAC {mac} is in use by endpoint {endpoint} on host {host}: ask for another")]
    MacInUse {
        /// The MAC.
        mac: MacAddr,
        /// Who has it.
        endpoint: EndpointId,
        /// Where.
        host: HostName,
    },
    /// The MAC belongs to an address that a host holds for attaching without the store.
    #[error(
        "MAC {mac} belongs to address {ip}, which host {host} has reserved for attaching without \
         the store and does not give up now: ask for another, or try again when that host is \
         present"
    )]
    MacReserved {
        /// The MAC.
        mac: MacAddr,
        /// The address.
        ip: IpAddr,
        /// The host.
        host: HostName,
    },
    /// A MAC that no interface can have.
    #[error("MAC {0} cannot be used: it must be a unicast address and not zero")]
    MacInvalid(MacAddr),
    /// The network was removed meanwhile.
    #[error("network {0} does not exist any more")]
    NetworkGone(String),
    /// No such endpoint.
    #[error("endpoint {endpoint} does not exist in network {network}")]
    NotFound {
        /// The id.
        endpoint: EndpointId,
        /// The network's id.
        network: NetworkId,
        /// The revision of the store at which it did not exist.
        revision: i64,
    },
    /// A newer run of this host is registered: it speaks for the host now.
    #[error(
        "host {host} runs a second time: incarnation {theirs} is registered, this one is {ours}; \
         stop one of them"
    )]
    Superseded {
        /// The host.
        host: HostName,
        /// The incarnation that is registered.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The reserved address that is in the way.
    const fn reserved(&self) -> Option<IpAddr> {
        match self {
            Self::Address(ipam::Error::Reserved { ip, .. }) | Self::MacReserved { ip, .. } => {
                Some(*ip)
            }
            _ => None,
        }
    }
}

/// What an endpoint shall be.
#[derive(Clone, Debug, Default)]
pub struct EndpointSpec {
    /// Its id; `None` makes one.
    pub id: Option<EndpointId>,
    /// Addresses that it must have, at most one per subnet. Families without one get the lowest
    /// free address.
    pub ips: Vec<IpAddr>,
    /// Its MAC; `None` gives `02:42` and the IPv4 address, or one from the ids.
    pub mac: Option<MacAddr>,
    /// The user's name for it.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Wanted addresses that are held under this id ([`ipam::allocate`]), and a wanted MAC, become
    /// the endpoint's.
    pub adopt: Option<EndpointId>,
    /// Addresses that the host has reserved ([`ipam::reserve`]) and that may be given to this
    /// endpoint. They come before others for families without a wanted one.
    pub reserved: Vec<IpAddr>,
    /// This endpoint, wherever it is, makes room in the same transaction: its record goes, and what
    /// it held may be wanted.
    pub replaces: Option<EndpointId>,
    /// An endpoint of this id that is there already, on this host and with these addresses and this
    /// MAC, is taken for this one.
    pub again: bool,
}

/// A MAC from the ids: locally administered, unicast, the same for the same ids.
#[must_use]
pub fn mac_from_ids(network: &NetworkId, endpoint: &EndpointId) -> MacAddr {
    // FNV-1a: it must only spread, uniqueness is the store's matter.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in network.as_str().bytes().chain([b'/']).chain(endpoint.as_str().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    MacAddr([0x02, a ^ f, b ^ g, c ^ h, d, e])
}

/// The MAC of an endpoint that asks for none: `02:42` and the IPv4 address, or one from the ids.
#[must_use]
pub fn default_mac(network: &NetworkId, endpoint: &EndpointId, ips: &[IpAddr]) -> MacAddr {
    let ipv4 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    });
    ipv4.map_or_else(|| mac_from_ids(network, endpoint), MacAddr::from_ipv4)
}

/// Creates an endpoint of `host`.
///
/// # Errors
///
/// Each variant of [`Error`]; [`Error::NotFound`] for one that shall be replaced.
pub async fn create(
    store: &Store,
    network: &NetworkRecord,
    host: &HostName,
    incarnation: u64,
    spec: &EndpointSpec,
) -> Result<EndpointRecord, Error> {
    create_with(store, network, host, incarnation, spec, ipam::reserve::PATIENCE).await
}

/// As [`create`], and a host that has reserved what is wanted is given `patience` to give it up.
///
/// # Errors
///
/// As [`create`].
pub async fn create_with(
    store: &Store,
    network: &NetworkRecord,
    host: &HostName,
    incarnation: u64,
    spec: &EndpointSpec,
    patience: Duration,
) -> Result<EndpointRecord, Error> {
    if let Some(mac) = spec.mac
        && !mac.is_unicast()
    {
        return Err(Error::MacInvalid(mac));
    }
    ipam::check_wanted(network, &spec.ips)?;
    let id = spec.id.clone().unwrap_or_else(EndpointId::random);
    let span = info_span!("endpoint", id = %id, network = %network.name);
    let mut attempt = Attempt { store, network, host, incarnation, spec, id, tried: None };
    async {
        let mut turn = store.turn().await;
        let mut asked = BTreeSet::new();
        for number in 0..ATTEMPTS {
            if number > 0 {
                sleep(conflict_pause(number)).await;
            }
            match attempt.make(number).await {
                Ok(Some(record)) => {
                    info!(mac = %record.mac, host = %record.host, "endpoint created");
                    return Ok(record);
                }
                Ok(None) => {}
                Err(error) => match error.reserved() {
                    Some(ip) if asked.insert(ip) => {
                        // Its owner may need a turn of its own, when that is this process.
                        drop(turn);
                        if !ipam::reserve::ask(store, network, ip, patience).await? {
                            return Err(error);
                        }
                        turn = store.turn().await;
                    }
                    _ => return Err(error),
                },
            }
        }
        drop(turn);
        Err(store::Error::Busy { what: "creation of an endpoint", attempts: ATTEMPTS }.into())
    }
    .instrument(span)
    .await
}

struct Attempt<'a> {
    store: &'a Store,
    network: &'a NetworkRecord,
    host: &'a HostName,
    incarnation: u64,
    spec: &'a EndpointSpec,
    id: EndpointId,
    /// What the attempt before wanted to write.
    tried: Option<EndpointRecord>,
}

impl Attempt<'_> {
    /// One attempt; `None` when others were faster.
    async fn make(&mut self, number: u32) -> Result<Option<EndpointRecord>, Error> {
        let (store, spec, network) = (self.store, self.spec, &self.network.id);
        let endpoint_key = Key::Endpoint(network.clone(), self.id.clone());
        let mut reads = Pool::reads(store, network);
        let network_key = Key::Network(network.clone());
        reads.push(store.read_key(&network_key));
        reads.push(store.read_key(&endpoint_key));
        let known_key = Key::KnownHost(self.host.clone());
        reads.push(store.read_key(&known_key));
        // One key more is read in any case, so that the answers keep their places.
        let replaced = spec.replaces.as_ref().unwrap_or(&self.id);
        let replaced_key = Key::Endpoint(network.clone(), replaced.clone());
        reads.push(store.read_key(&replaced_key));
        reads.extend(spec.ips.iter().map(|ip| store.read_key(&Key::Address(network.clone(), *ip))));
        let answer = store.read(reads).await?;
        let found = answer.reads;
        let [blocks, resting, present, endpoint, known, replaced, addresses @ ..] =
            found.as_slice()
        else {
            return Ok(None);
        };
        let Some(present) = present.first() else {
            return Err(Error::NetworkGone(self.network.name.to_string()));
        };
        // What is behind static VTEPs changes while the network's record is kept here.
        let present: Option<Found<NetworkRecord>> = Store::decode(&network_key, present).ok();
        let newest = present.as_ref().map_or(self.network, |found| &found.record);
        if let Some(entry) = endpoint.first() {
            let there: Found<EndpointRecord> = Store::decode(&endpoint_key, entry)?;
            // The answer to our own earlier attempt was lost, its effect was not.
            if self.tried.as_ref() == Some(&there.record) {
                return Ok(self.tried.take());
            }
            if spec.again && self.is_same(&there.record) {
                return Ok(Some(there.record));
            }
            return Err(Error::Exists { endpoint: self.id.clone(), host: there.record.host });
        }
        let pool = Pool::parse(store, blocks, resting);
        let held = ipam::held(network, &spec.ips, addresses.iter())?;
        let asker = Asker {
            network: newest,
            host: self.host,
            endpoint: &self.id,
            adopt: spec.adopt.as_ref().or(spec.replaces.as_ref()),
            reserved: &spec.reserved,
            early: false,
        };
        let mut steps = Steps::default();
        let theirs = known.first().and_then(|entry| Store::decode(&known_key, entry).ok());
        if let Some(Found { record: HostRecord { incarnation: theirs, .. }, .. }) = theirs
            && theirs > self.incarnation
        {
            let (host, ours) = (self.host.clone(), self.incarnation);
            return Err(Error::Superseded { host, theirs, ours });
        }
        let revision = known.first().map_or(0, |entry| entry.mod_revision);
        steps.when.push(store.unchanged(&known_key, revision));
        if let Some(id) = &spec.replaces {
            let Some(entry) = replaced.first() else {
                let (endpoint, network) = (id.clone(), network.clone());
                return Err(Error::NotFound { endpoint, network, revision: answer.revision });
            };
            steps.when.push(store.unchanged(&replaced_key, entry.mod_revision));
            steps.then.push(store.delete(&replaced_key));
        }
        let allocations = asker.plan(store, &pool, &spec.ips, &held, number, &mut steps)?;
        self.check_mac(newest, &pool, &allocations, &mut steps)?;
        self.write(newest, &allocations, steps).await
    }

    fn is_same(&self, there: &EndpointRecord) -> bool {
        // It may have got others beside those that it must have.
        there.host == *self.host
            && self.spec.ips.iter().all(|ip| there.ips.contains(ip))
            && self.spec.mac.is_none_or(|mac| mac == there.mac)
    }

    /// A MAC that was asked for must not be that of a reserved address, or somebody's outside the store.
    fn check_mac(
        &self,
        newest: &NetworkRecord,
        pool: &Pool,
        allocations: &[Allocation],
        steps: &mut Steps,
    ) -> Result<(), Error> {
        let Some(mac) = self.spec.mac else { return Ok(()) };
        if self.spec.adopt.is_none()
            && self.spec.replaces.is_none()
            && let Some(vtep) = vtep_of(newest, mac)
        {
            return Err(Error::MacBehindVtep { mac, vtep });
        }
        let Some(ip) = mac.to_ipv4().map(IpAddr::V4) else { return Ok(()) };
        if allocations.iter().any(|allocation| allocation.ip == ip) {
            return Ok(());
        }
        match ipam::reserved_by(pool, self.network, ip) {
            None => Ok(()),
            Some(ipam::Reserver::Host(host)) => Err(Error::MacReserved { mac, ip, host }),
            Some(ipam::Reserver::Nobody(key, revision)) => {
                steps.when.push(self.store.unchanged(&key, revision));
                Ok(())
            }
        }
    }

    async fn write(
        &mut self,
        newest: &NetworkRecord,
        allocations: &[Allocation],
        mut steps: Steps,
    ) -> Result<Option<EndpointRecord>, Error> {
        let (store, network) = (self.store, &self.network.id);
        let ips: Vec<IpAddr> = allocations.iter().map(|allocation| allocation.ip).collect();
        let mac = match self.spec.mac {
            Some(mac) => mac,
            None => self.free_mac(newest, &ips).await?,
        };
        let record = EndpointRecord {
            version: VERSION,
            id: self.id.clone(),
            network: network.clone(),
            host: self.host.clone(),
            incarnation: self.incarnation,
            mac,
            ips,
            name: self.spec.name.clone(),
            labels: self.spec.labels.clone(),
            created: now_seconds(),
            extra: Extra::new(),
        };
        let endpoint_key = Key::Endpoint(network.clone(), self.id.clone());
        let mac_key = Key::Mac(network.clone(), mac);
        let holder = MacRecord {
            version: VERSION,
            endpoint: self.id.clone(),
            host: self.host.clone(),
            extra: Extra::new(),
        };
        steps.when.push(store.present(&Key::Network(network.clone())));
        steps.when.push(store.absent(&endpoint_key));
        steps.when.push(self.may_have(&mac_key).await?);
        steps.then.push(store.put(&endpoint_key, &record, 0)?);
        steps.then.push(store.put(&mac_key, &holder, 0)?);
        let or_else = vec![store.read_key(&mac_key)];
        let outcome = store.txn(steps.when, steps.then, or_else).await?;
        if outcome.succeeded {
            return Ok(Some(record));
        }
        if self.spec.mac.is_some()
            && let Some(entry) = outcome.reads.first().and_then(|found| found.first())
        {
            let holder = decode_mac(&mac_key, entry)?;
            if holder.endpoint != self.id {
                return Err(Error::MacInUse { mac, endpoint: holder.endpoint, host: holder.host });
            }
        }
        self.tried = Some(record);
        Ok(None)
    }

    /// Holds while nobody has the MAC, or who is adopted.
    async fn may_have(&self, key: &Key) -> Result<Compare, Error> {
        if let Some(adopted) = self.spec.adopt.as_ref().or(self.spec.replaces.as_ref())
            && let Some(holder) = self.store.get::<MacRecord>(key).await?
            && holder.record.endpoint == *adopted
        {
            return Ok(self.store.unchanged(key, holder.mod_revision));
        }
        Ok(self.store.absent(key))
    }

    /// The default MAC, unless somebody asked for just that one or has it behind a static VTEP: then a
    /// random one.
    async fn free_mac(&self, newest: &NetworkRecord, ips: &[IpAddr]) -> Result<MacAddr, Error> {
        let mac = default_mac(&self.network.id, &self.id, ips);
        let key = Key::Mac(self.network.id.clone(), mac);
        let holder = self.store.get::<MacRecord>(&key).await?;
        let is_held = holder.is_some_and(|holder| holder.record.endpoint != self.id);
        Ok(if is_held || vtep_of(newest, mac).is_some() {
            // Locally administered, and never one that belongs to an address.
            let [_, a, b, c, d, e] = rand::random::<[u8; 6]>();
            MacAddr([0x0a, a, b, c, d, e])
        } else {
            mac
        })
    }
}

/// The static VTEP that a MAC is known behind.
fn vtep_of(network: &NetworkRecord, mac: MacAddr) -> Option<IpAddr> {
    let is_there = |vtep: &&StaticVtep| vtep.known().any(|(known, _)| known == mac);
    network.static_vteps.iter().find(is_there).map(|vtep| vtep.address)
}

fn decode_mac(key: &Key, entry: &Entry) -> Result<MacRecord, store::Error> {
    Ok(MacRecord::decode(key, &entry.value)?)
}

/// Removes an endpoint: record, MAC and addresses in one transaction. The addresses rest for
/// `rest` ([`ipam::REST`]); zero lets them be given out at once. Returns what was removed.
///
/// # Errors
///
/// [`Error::NotFound`], or why the store did not do it.
pub async fn remove(
    store: &Store,
    network: &NetworkId,
    endpoint: &EndpointId,
    rest: Duration,
) -> Result<Removed, Error> {
    match remove_when(store, network, endpoint, rest, &[]).await? {
        Some(removed) => Ok(removed),
        // Nothing was asked that could not hold.
        None => Err(store::Error::Busy { what: REMOVAL, attempts: ATTEMPTS }.into()),
    }
}

const REMOVAL: &str = "removal of an endpoint";

/// An endpoint that was removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Removed {
    /// What it was.
    pub record: EndpointRecord,
    /// A revision of the store at which it was gone.
    pub revision: i64,
}

/// As [`remove`], and only while `conditions` hold; `None` when they do not.
pub(crate) async fn remove_when(
    store: &Store,
    network: &NetworkId,
    endpoint: &EndpointId,
    rest: Duration,
    conditions: &[Compare],
) -> Result<Option<Removed>, Error> {
    let _turn = store.turn().await;
    let key = Key::Endpoint(network.clone(), endpoint.clone());
    let mut lease = 0;
    let mut seen = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(conflict_pause(attempt)).await;
        }
        let now = store.read(vec![store.read_key(&key)]).await?;
        let Some(entry) = now.reads.first().and_then(|found| found.first()) else {
            // Gone after we tried: that was us.
            let gone = seen.map(|record| Removed { record, revision: now.revision });
            return gone.map(Some).ok_or_else(|| Error::NotFound {
                endpoint: endpoint.clone(),
                network: network.clone(),
                revision: now.revision,
            });
        };
        let found: Found<EndpointRecord> = Store::decode(&key, entry)?;
        let record = found.record;
        let mac_key = Key::Mac(network.clone(), record.mac);
        let mut steps = Steps::default();
        let ips = &record.ips;
        ipam::plan_release(store, network, endpoint, ips, rest, &mut lease, &mut steps).await?;
        steps.when.push(store.unchanged(&key, found.mod_revision));
        steps.then.push(store.delete(&key));
        if let Some(holder) = store.get::<MacRecord>(&mac_key).await?
            && holder.record.endpoint == *endpoint
        {
            steps.when.push(store.unchanged(&mac_key, holder.mod_revision));
            steps.then.push(store.delete(&mac_key));
        }
        steps.when.extend_from_slice(conditions);
        let outcome = store.txn(steps.when, steps.then, Vec::new()).await?;
        if outcome.succeeded {
            info!(%endpoint, %network, "endpoint removed");
            return Ok(Some(Removed { record, revision: outcome.revision }));
        }
        if !conditions.is_empty() && !store.holds(conditions).await? {
            return Ok(None);
        }
        seen = Some(record);
    }
    Err(store::Error::Busy { what: REMOVAL, attempts: ATTEMPTS }.into())
}

/// The endpoints of a network whose records can be read, by id.
///
/// # Errors
///
/// Why the store did not answer.
pub async fn list(store: &Store, network: &NetworkId) -> Result<Vec<Found<EndpointRecord>>, Error> {
    let records = store.records(Range::Endpoints(network)).await?;
    Ok(records.into_iter().map(|(_, found)| found).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_macs() {
        let network = NetworkId::new("n1").unwrap();
        let endpoint = EndpointId::new("e1").unwrap();
        let v6 = "2001:db8::1".parse().unwrap();
        let with_v4 = default_mac(&network, &endpoint, &[v6, "192.0.2.5".parse().unwrap()]);
        assert_eq!(with_v4.to_string(), "02:42:c0:00:02:05");
        let hashed = default_mac(&network, &endpoint, &[v6]);
        assert!(hashed.is_unicast() && hashed.0[0] == 2);
        assert_ne!(hashed, mac_from_ids(&network, &EndpointId::new("e2").unwrap()));
    }
}

//! Addresses: blocks per host, allocation by transaction, rest after release.
//!
//! # Theory of operation
//!
//! A subnet is cut into equal blocks ([`plan::block_len`]). A host claims a block and gives out its
//! addresses, lowest first; when its blocks are full it claims another, and when no block is left
//! it borrows single addresses from other hosts' blocks. The block's map and the address record
//! change in **one transaction** that compares the block's revision, so that no address is ever
//! given twice, whoever asks at the same time; the loser reads again and tries again.
//!
//! A released address rests under a lease of the store before it is given out again, since other
//! hosts and containers may still have it cached. Whoever asks for that very address gets it
//! nonetheless. Network, broadcast, gateway and excluded addresses are never given out, and
//! addresses that a host reserved for attaching without the store ([`reserve`]) only by that host.

pub mod plan;
mod release;
pub mod reserve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use etcd_client::{Compare, TxnOp};
use ipnet::IpNet;
use serde::Serialize;
use tokio::time::sleep;

use crate::key::{EndpointId, HostName, Key, NetworkId, Range};
use crate::record::{self, AddressRecord, BlockRecord, Extra, NetworkRecord, VERSION};
use crate::store::{self, Entry, Found, Store, conflict_pause};

pub use release::release;
pub(crate) use release::{plan_release, release_when};

/// How long a released address rests unless the caller says otherwise.
pub const REST: Duration = Duration::from_secs(60);
/// How often a transaction is tried before [`store::Error::Busy`].
pub(crate) const ATTEMPTS: u32 = 64;

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The address is in use outside the store.
    #[error(
        "address {ip} is behind a static VTEP of the network: choose another, or leave it out; \
         `skybridge network vtep ls` shows what is known there"
    )]
    BehindVtep {
        /// The address.
        ip: IpAddr,
    },
    /// The address is network, broadcast or gateway address.
    #[error("address {ip} cannot be given to an endpoint: it is {what} of {subnet}")]
    Excluded {
        /// The address.
        ip: IpAddr,
        /// What it is.
        what: &'static str,
        /// Of which subnet.
        subnet: IpNet,
    },
    /// No address is left.
    #[error(
        "no address is left in {subnet}: {used} of {capacity} are in use and {resting} rest after \
         release; remove endpoints, wait a minute, or create a network with a larger subnet"
    )]
    Exhausted {
        /// The subnet.
        subnet: IpNet,
        /// Addresses that can be given out.
        capacity: u128,
        /// Addresses that are given out.
        used: u128,
        /// Released addresses that rest.
        resting: usize,
    },
    /// Another endpoint has the address.
    #[error("address {ip} is in use by endpoint {endpoint} on host {host}: ask for another")]
    InUse {
        /// The address.
        ip: IpAddr,
        /// Who has it.
        endpoint: EndpointId,
        /// Where.
        host: HostName,
    },
    /// The network has no subnet with the address.
    #[error("address {ip} lies outside the subnets of network {network} ({subnets})")]
    Outside {
        /// The address.
        ip: IpAddr,
        /// The network's name.
        network: String,
        /// Its subnets.
        subnets: String,
    },
    /// A host holds the address for attaching without the store.
    #[error(
        "address {ip} is reserved by host {host} for attaching without the store, and {host} does \
         not give it up now: ask for another, or try again when that host is present"
    )]
    Reserved {
        /// The address.
        ip: IpAddr,
        /// The host.
        host: HostName,
    },
    /// Two addresses of one subnet were asked for.
    #[error("addresses {first} and {second} lie in one subnet: ask for one of each")]
    Twice {
        /// One.
        first: IpAddr,
        /// The other.
        second: IpAddr,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// An address that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allocation {
    /// The address.
    pub ip: IpAddr,
    /// The length of its subnet's prefix.
    pub prefix_len: u8,
    /// The block that it was taken from.
    pub block: IpNet,
}

/// What the store held when an allocation was planned.
pub(crate) struct Pool {
    blocks: BTreeMap<IpNet, Found<BlockRecord>>,
    /// Blocks whose records cannot be read: nothing is given out of them.
    bad: BTreeMap<IpNet, record::Error>,
    resting: BTreeSet<IpAddr>,
}

impl Pool {
    /// The reads of a pool, to be put into one transaction with others.
    pub(crate) fn reads(store: &Store, network: &NetworkId) -> Vec<TxnOp> {
        vec![
            store.read_range(Range::Blocks(network), 0),
            store.read_range(Range::Resting(network), 0),
        ]
    }

    /// Parses what [`Self::reads`] found.
    pub(crate) fn parse(store: &Store, blocks: &[Entry], resting: &[Entry]) -> Self {
        let mut pool =
            Self { blocks: BTreeMap::new(), bad: BTreeMap::new(), resting: BTreeSet::new() };
        for entry in blocks {
            let Ok(key @ Key::Block(_, cidr)) = store.keys().parse(&entry.key) else { continue };
            match Store::decode_record(&key, entry) {
                Ok(found) => {
                    pool.blocks.insert(cidr, found);
                }
                Err(error) => {
                    pool.bad.insert(cidr, error);
                }
            }
        }
        for entry in resting {
            if let Ok(Key::Resting(_, ip)) = store.keys().parse(&entry.key) {
                pool.resting.insert(ip);
            }
        }
        pool
    }
}

/// The comparisons and writes that carry out a plan.
#[derive(Default)]
pub(crate) struct Steps {
    pub(crate) when: Vec<Compare>,
    pub(crate) then: Vec<TxnOp>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) network: &'a NetworkRecord,
    pub(crate) host: &'a HostName,
    pub(crate) endpoint: &'a EndpointId,
    /// Addresses held under this id are taken over.
    pub(crate) adopt: Option<&'a EndpointId>,
    /// Addresses that the host has reserved and that may be given to this endpoint.
    pub(crate) reserved: &'a [IpAddr],
    /// Whether the endpoint does not exist yet.
    pub(crate) early: bool,
}

impl Asker<'_> {
    /// Adds what gives out one address of each family to `steps`: the wanted ones, and for families
    /// without a wanted one a reserved or else the lowest free one. `held` are the records of the
    /// wanted addresses.
    pub(crate) fn plan(
        &self,
        store: &Store,
        pool: &Pool,
        wanted: &[IpAddr],
        held: &BTreeMap<IpAddr, Found<AddressRecord>>,
        spread: u32,
        steps: &mut Steps,
    ) -> Result<Vec<Allocation>, Error> {
        let mut allocations = Vec::new();
        for ip in wanted {
            let subnet = self.subnet_of(*ip)?;
            allocations.push(self.wanted(store, pool, *ip, subnet, held.get(ip), steps)?);
        }
        for ipv6 in [false, true] {
            let is_family = |ip: &IpAddr| ip.is_ipv6() == ipv6;
            let mut subnets =
                self.network.subnets.iter().filter(|subnet| is_family(&subnet.addr())).peekable();
            if subnets.peek().is_none() || wanted.iter().any(is_family) {
                continue;
            }
            let ready = self.reserved.iter().filter(|ip| is_family(ip));
            let ready = ready.filter_map(|ip| self.reserved_block(pool, *ip)).next();
            if let Some((allocation, offset)) = ready {
                let block = pool.blocks.get(&allocation.block);
                let rests = pool.resting.contains(&allocation.ip);
                self.take(store, &allocation, offset, block, rests, steps)?;
                allocations.push(allocation);
                continue;
            }
            let mut failure = None;
            let found =
                subnets.find_map(|subnet| match self.lowest(store, pool, *subnet, spread, steps) {
                    Ok(allocation) => Some(allocation),
                    Err(error) => {
                        failure.get_or_insert(error);
                        None
                    }
                });
            match (found, failure) {
                (Some(allocation), _) => allocations.push(allocation),
                (None, Some(error)) => return Err(error),
                (None, None) => {}
            }
        }
        Ok(allocations)
    }

    /// The place of an address that may be given to this endpoint because its host reserved it.
    fn reserved_block(&self, pool: &Pool, ip: IpAddr) -> Option<(Allocation, u32)> {
        let subnet = self.network.subnet_of(ip)?;
        if plan::excluded(self.network, subnet, ip).is_some()
            || plan::is_behind_vtep(self.network, ip)
        {
            return None;
        }
        let (block, offset) = plan::block_of(subnet, ip);
        let record = &pool.blocks.get(&block)?.record;
        let ours = record.host == *self.host && record.reserved.contains(offset);
        ours.then(|| (Allocation { ip, prefix_len: subnet.prefix_len(), block }, offset))
    }

    /// The subnet of a wanted address.
    fn subnet_of(&self, ip: IpAddr) -> Result<IpNet, Error> {
        self.network.subnet_of(ip).ok_or_else(|| Error::Outside {
            ip,
            network: self.network.name.to_string(),
            subnets: self
                .network
                .subnets
                .iter()
                .map(IpNet::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn wanted(
        &self,
        store: &Store,
        pool: &Pool,
        ip: IpAddr,
        subnet: IpNet,
        held: Option<&Found<AddressRecord>>,
        steps: &mut Steps,
    ) -> Result<Allocation, Error> {
        if let Some(what) = plan::excluded(self.network, subnet, ip) {
            return Err(Error::Excluded { ip, what, subnet });
        }
        let (cidr, offset) = plan::block_of(subnet, ip);
        let allocation = Allocation { ip, prefix_len: subnet.prefix_len(), block: cidr };
        if let Some(held) = held {
            let owner = &held.record.endpoint;
            if owner != self.endpoint && Some(owner) != self.adopt {
                return Err(Error::InUse {
                    ip,
                    endpoint: owner.clone(),
                    host: held.record.host.clone(),
                });
            }
            let key = Key::Address(self.network.id.clone(), ip);
            steps.when.push(store.unchanged(&key, held.mod_revision));
            steps.then.push(store.put(&key, &self.address(held.record.block), 0)?);
            return Ok(allocation);
        }
        if plan::is_behind_vtep(self.network, ip) {
            return Err(Error::BehindVtep { ip });
        }
        if let Some(error) = pool.bad.get(&cidr) {
            return Err(store::Error::Record(error.clone()).into());
        }
        let block = pool.blocks.get(&cidr);
        if let Some(block) = block
            && block.record.reserved.contains(offset)
            && (block.record.host != *self.host || !self.reserved.contains(&ip))
        {
            return Err(Error::Reserved { ip, host: block.record.host.clone() });
        }
        self.take(store, &allocation, offset, block, pool.resting.contains(&ip), steps)?;
        Ok(allocation)
    }

    fn lowest(
        &self,
        store: &Store,
        pool: &Pool,
        subnet: IpNet,
        spread: u32,
        steps: &mut Steps,
    ) -> Result<Allocation, Error> {
        let records = pool.blocks.iter().map(|(cidr, found)| (*cidr, &found.record));
        let scene = plan::Scene::new(self.network, subnet, records, &pool.resting)
            .without(pool.bad.keys().copied());
        let Some((cidr, offset)) = scene.choose(self.host, spread) else {
            return Err(Error::Exhausted {
                subnet,
                capacity: plan::capacity(self.network, subnet),
                used: scene.used(),
                resting: pool.resting.iter().filter(|ip| subnet.contains(*ip)).count(),
            });
        };
        let ip = plan::address(cidr, offset);
        let allocation = Allocation { ip, prefix_len: subnet.prefix_len(), block: cidr };
        self.take(store, &allocation, offset, pool.blocks.get(&cidr), false, steps)?;
        Ok(allocation)
    }

    /// Marks the address in its block, which is claimed when nobody has it.
    fn take(
        &self,
        store: &Store,
        allocation: &Allocation,
        offset: u32,
        block: Option<&Found<BlockRecord>>,
        rests: bool,
        steps: &mut Steps,
    ) -> Result<(), Error> {
        let id = &self.network.id;
        let key = Key::Block(id.clone(), allocation.block);
        let mut record =
            block.map_or_else(|| BlockRecord::new(self.host.clone()), |block| block.record.clone());
        record.allocated.insert(offset);
        record.reserved.remove(offset);
        record.wanted.remove(offset);
        steps.when.push(store.unchanged(&key, block.map_or(0, |block| block.mod_revision)));
        steps.then.push(store.put(&key, &record, 0)?);

        let key = Key::Address(id.clone(), allocation.ip);
        steps.when.push(store.absent(&key));
        steps.then.push(store.put(&key, &self.address(allocation.block), 0)?);

        let key = Key::Resting(id.clone(), allocation.ip);
        if rests {
            steps.then.push(store.delete(&key));
        } else {
            steps.when.push(store.absent(&key));
        }
        Ok(())
    }

    fn address(&self, block: IpNet) -> AddressRecord {
        AddressRecord {
            version: VERSION,
            endpoint: self.endpoint.clone(),
            host: self.host.clone(),
            block,
            early: self.early,
            extra: Extra::new(),
        }
    }
}

/// Who has reserved an address.
pub(crate) enum Reserver {
    /// A host.
    Host(HostName),
    /// Nobody, as long as this block stays at this revision.
    Nobody(Key, i64),
}

/// Who has reserved an address; `None` for one that lies in no subnet of the network.
pub(crate) fn reserved_by(pool: &Pool, network: &NetworkRecord, ip: IpAddr) -> Option<Reserver> {
    let (cidr, offset) = plan::block_of(network.subnet_of(ip)?, ip);
    let key = Key::Block(network.id.clone(), cidr);
    Some(match pool.blocks.get(&cidr) {
        Some(block) if block.record.reserved.contains(offset) => {
            Reserver::Host(block.record.host.clone())
        }
        Some(block) => Reserver::Nobody(key, block.mod_revision),
        // One that cannot be read is reserved by nobody whom we could ask.
        None if pool.bad.contains_key(&cidr) => return None,
        None => Reserver::Nobody(key, 0),
    })
}

/// At most one wanted address per subnet.
///
/// # Errors
///
/// [`Error::Twice`].
pub fn check_wanted(network: &NetworkRecord, wanted: &[IpAddr]) -> Result<(), Error> {
    let mut seen: BTreeMap<Option<IpNet>, IpAddr> = BTreeMap::new();
    for ip in wanted {
        if let Some(first) = seen.insert(network.subnet_of(*ip), *ip) {
            return Err(Error::Twice { first, second: *ip });
        }
    }
    Ok(())
}

/// The records of the wanted addresses, from the answers to their reads.
pub(crate) fn held<'a>(
    network: &NetworkId,
    wanted: &[IpAddr],
    answers: impl Iterator<Item = &'a Vec<Entry>>,
) -> Result<BTreeMap<IpAddr, Found<AddressRecord>>, store::Error> {
    let mut held = BTreeMap::new();
    for (ip, entries) in wanted.iter().zip(answers) {
        if let Some(entry) = entries.first() {
            let key = Key::Address(network.clone(), *ip);
            held.insert(*ip, Store::decode(&key, entry)?);
        }
    }
    Ok(held)
}

/// Gives out addresses to `endpoint` before it exists, as Docker asks for them: the wanted ones,
/// and one of each family that none was wanted of. Asking again for addresses that the endpoint
/// holds gives them again.
///
/// # Errors
///
/// Each variant of [`Error`].
pub async fn allocate(
    store: &Store,
    network: &NetworkRecord,
    host: &HostName,
    endpoint: &EndpointId,
    wanted: &[IpAddr],
) -> Result<Vec<Allocation>, Error> {
    check_wanted(network, wanted)?;
    let mut turn = store.turn().await;
    let mut asked = BTreeSet::new();
    let asker = Asker { network, host, endpoint, adopt: None, reserved: &[], early: true };
    let mut tried: Vec<Allocation> = Vec::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(conflict_pause(attempt)).await;
        }
        let mut reads = Pool::reads(store, &network.id);
        // What was tried before is read too: its answer may have been lost, not its effect.
        let look: Vec<IpAddr> =
            wanted.iter().copied().chain(tried.iter().map(|tried| tried.ip)).collect();
        reads.extend(look.iter().map(|ip| store.read_key(&Key::Address(network.id.clone(), *ip))));
        let found = store.read(reads).await?.reads;
        let [blocks, resting, addresses @ ..] = found.as_slice() else { continue };
        let pool = Pool::parse(store, blocks, resting);
        let held = held(&network.id, &look, addresses.iter())?;
        let is_ours = |done: &Allocation| {
            held.get(&done.ip).is_some_and(|held| held.record.endpoint == *endpoint)
        };
        if !tried.is_empty() && tried.iter().all(is_ours) {
            return Ok(tried);
        }
        let mut steps = Steps::default();
        let allocations = match asker.plan(store, &pool, wanted, &held, attempt, &mut steps) {
            Err(Error::Reserved { ip, host }) if asked.insert(ip) => {
                // Its owner may need a turn of its own, when that is this process.
                drop(turn);
                if !reserve::ask(store, network, ip, reserve::PATIENCE).await? {
                    return Err(Error::Reserved { ip, host });
                }
                turn = store.turn().await;
                continue;
            }
            planned => planned?,
        };
        steps.when.push(store.present(&Key::Network(network.id.clone())));
        if store.txn(steps.when, steps.then, Vec::new()).await?.succeeded {
            return Ok(allocations);
        }
        tried = allocations;
    }
    drop(turn);
    Err(store::Error::Busy { what: "allocation of an address", attempts: ATTEMPTS }.into())
}

/// How full a subnet is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The subnet.
    pub subnet: IpNet,
    /// Addresses that can be given out.
    pub capacity: u128,
    /// Addresses that are given out or reserved.
    pub used: u128,
    /// Of these, addresses that hosts reserved for attaching without the store.
    pub reserved: u128,
    /// What of it is in the blocks of each host.
    pub by_host: BTreeMap<HostName, HostUsage>,
    /// Blocks that are claimed.
    pub blocks: usize,
}

/// What is in the blocks of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostUsage {
    /// Its blocks.
    pub blocks: u32,
    /// Addresses of them that are given out or reserved.
    pub used: u32,
    /// Of these, those that it reserved for itself.
    pub reserved: u32,
}

impl Usage {
    /// How full it is in percent, rounded down.
    #[must_use]
    pub fn percent(&self) -> u8 {
        // An IPv6 subnet may have more addresses than can be multiplied by 100.
        let share = match self.used.checked_mul(100) {
            _ if self.capacity == 0 => 100,
            Some(hundredfold) => hundredfold / self.capacity,
            None => self.used / (self.capacity / 100).max(1),
        };
        u8::try_from(share.min(100)).unwrap_or(100)
    }
}

/// How full the subnets of a network are, by its blocks.
pub fn usage<'a>(
    network: &NetworkRecord,
    blocks: impl Iterator<Item = (&'a IpNet, &'a BlockRecord)>,
) -> Vec<Usage> {
    let mut usage: Vec<Usage> = network
        .subnets
        .iter()
        .map(|subnet| Usage {
            subnet: *subnet,
            capacity: plan::capacity(network, *subnet),
            used: 0,
            reserved: 0,
            by_host: BTreeMap::new(),
            blocks: 0,
        })
        .collect();
    for (cidr, record) in blocks {
        if let Some(usage) = usage.iter_mut().find(|usage| usage.subnet.contains(cidr)) {
            let count = record.allocated.count();
            usage.used += u128::from(count);
            let reserved = record.reserved.count();
            usage.reserved += u128::from(reserved);
            usage.blocks += 1;
            let host = usage.by_host.entry(record.host.clone()).or_default();
            host.blocks += 1;
            host.used += count;
            host.reserved += reserved;
        }
    }
    usage
}

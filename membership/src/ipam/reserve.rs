//! Addresses that a host holds for attaching without the store.
//!
//! # Theory of operation
//!
//! ```text
//!   block of h1   allocated 0111_1111   reserved 0111_1000
//!                           |  endpoints' -^        ^- h1 may give these out by itself
//! ```
//!
//! A host marks addresses of its own blocks as reserved by a transaction. From its answer on nobody
//! else gets them: not whoever asks for one by name, not whoever borrows. So the host may give them
//! to endpoints while the store is away, and have that confirmed later ([`crate::endpoint`]'s
//! `again`): then the mark goes and the address record comes, in one transaction.
//!
//! The MAC that belongs to a reserved IPv4 address is as good as held: an address whose MAC
//! somebody has is not reserved, and nobody is given the MAC of a reserved address.
//!
//! **Asked for by name.** Whoever asks for an address that another host has reserved marks it as
//! wanted in the block and waits a moment. The owner, if it is there, takes the address
//! out of its book, and then out of the reserved ones. So only the owner ever gives up a reserved
//! address, and a host that is away keeps all of its own.
//!
//! **Late requests.** A request whose answer was lost may be carried out long after. So an address
//! enters the host's book only by the answer of a [`reserve`] that wrote its block after such a request
//! was made ([`Wish::fence`]): whatever is still on its way compares the block as it was before.
//!
//! A host reserves at most a sixteenth of a subnet, and nothing of one that is three quarters full:
//! where addresses are scarce, they are for those who are there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use encap::MacAddr;
use ipnet::IpNet;
use tokio::time::{Instant, sleep};

use super::{ATTEMPTS, Error, Pool, Steps, plan};
use crate::key::{HostName, Key, NetworkId, Range};
use crate::record::{BlockRecord, NetworkRecord};
use crate::store::{self, Found, Store, conflict_pause};

/// Part of a subnet that one host reserves at most.
const SHARE: u128 = 16;
/// Addresses that are reserved in one transaction: each brings three comparisons, and etcd takes
/// 128 (`--max-txn-ops`).
const AT_ONCE: usize = 32;
/// How long whoever asks for a reserved address waits for its owner, unless it says otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How many addresses of a subnet one host may have reserved, when it wants `count`.
#[must_use]
pub fn limit(network: &NetworkRecord, subnet: IpNet, count: usize) -> usize {
    let share = plan::capacity(network, subnet) / SHARE;
    usize::try_from(share).unwrap_or(usize::MAX).min(count)
}

/// Asks the owner of a reserved address to give it up, since somebody asks for that very address,
/// and waits for `patience` until it has: true when the address is not reserved any more. An owner
/// that is away is not asked.
///
/// # Errors
///
/// Why the store did not do it.
pub(crate) async fn ask(
    store: &Store,
    network: &NetworkRecord,
    ip: IpAddr,
    patience: Duration,
) -> Result<bool, store::Error> {
    let Some(subnet) = network.subnet_of(ip) else { return Ok(false) };
    let (cidr, offset) = plan::block_of(subnet, ip);
    let key = Key::Block(network.id.clone(), cidr);
    let deadline = Instant::now() + patience;
    let mut asked = false;
    while Instant::now() < deadline {
        let Some(mut found) = store.get::<BlockRecord>(&key).await? else { return Ok(true) };
        if !found.record.reserved.contains(offset) {
            return Ok(true);
        }
        if found.record.wanted.contains(offset) {
            asked = true;
        } else if asked {
            // The owner has seen it, and keeps the address.
            return Ok(false);
        } else {
            let owner = Key::Host(found.record.host.clone());
            found.record.wanted.insert(offset);
            let when = vec![store.unchanged(&key, found.mod_revision), store.present(&owner)];
            let then = vec![store.put(&key, &found.record, 0)?];
            asked = store.txn(when, then, Vec::new()).await?.succeeded;
            if !asked && !store.holds(&[store.present(&owner)]).await? {
                return Ok(false);
            }
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(false)
}

/// What a host wants to have reserved in a network.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The network.
    pub network: &'a NetworkRecord,
    /// The host.
    pub host: &'a HostName,
    /// How many addresses of each family.
    pub count: usize,
    /// Addresses that are in use while the store has not been told: not counted, and they stay as
    /// they are.
    pub used: &'a BTreeSet<IpAddr>,
    /// Addresses that the host counts on: they stay reserved if they are.
    pub ready: &'a BTreeSet<IpAddr>,
    /// Addresses that others asked for and that are not to be reserved again for now.
    pub yielded: &'a BTreeSet<IpAddr>,
    /// Whether a request of this host about these addresses may still be on its way, because its
    /// answer never came. The blocks are written then though nothing changes, and the late request,
    /// which compares them, comes to nothing.
    pub fence: bool,
}

/// Brings what a host has reserved to what it wants, as far as the subnets allow. Returns all that
/// is reserved then, without what is in use.
///
/// # Errors
///
/// Why the store did not do it. A subnet without room is none.
pub async fn reserve(store: &Store, wish: Wish<'_>) -> Result<BTreeSet<IpAddr>, Error> {
    let network = wish.network;
    let _turn = store.turn().await;
    // Addresses in use, whatever the store has of them, and addresses whose MAC somebody has.
    let mut skip: BTreeSet<IpAddr> = wish.used.union(wish.yielded).copied().collect();
    let mut failures = 0;
    loop {
        let found = store.read(Pool::reads(store, &network.id)).await?.reads;
        let [blocks, resting, ..] = found.as_slice() else { return Ok(BTreeSet::new()) };
        let pool = Pool::parse(store, blocks, resting);
        let change = wish.change(&pool, &skip);
        if change.blocks.is_empty() {
            return Ok(change.reserved);
        }
        let steps = change.steps(store, network, &pool)?;
        let macs: Vec<Key> = change.added.iter().filter_map(|ip| mac_key(network, *ip)).collect();
        let or_else = macs.iter().map(|key| store.read_key(key)).collect();
        let outcome = store.txn(steps.when, steps.then, or_else).await?;
        if outcome.succeeded {
            if change.complete {
                return Ok(change.reserved);
            }
            continue;
        }
        let held = change.added.iter().filter(|ip| mac_key(network, **ip).is_some());
        let held = held.zip(&outcome.reads).filter(|(_, found)| !found.is_empty());
        skip.extend(held.map(|(ip, _)| *ip));
        if !store.holds(&[store.present(&Key::Network(network.id.clone()))]).await? {
            return Ok(BTreeSet::new());
        }
        failures += 1;
        if failures >= ATTEMPTS {
            let what = "reservation of addresses";
            return Err(store::Error::Busy { what, attempts: ATTEMPTS }.into());
        }
        sleep(conflict_pause(failures)).await;
    }
}

/// Gives back what `host` has reserved in the network, but not `keep`.
///
/// # Errors
///
/// Why the store did not do it.
pub async fn unreserve(
    store: &Store,
    network: &NetworkId,
    host: &HostName,
    keep: &BTreeSet<IpAddr>,
) -> Result<(), store::Error> {
    let _turn = store.turn().await;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(conflict_pause(attempt)).await;
        }
        let mut steps = Steps::default();
        for (key, found) in store.records::<BlockRecord>(Range::Blocks(network)).await? {
            let Key::Block(_, cidr) = key else { continue };
            if found.record.host == *host && steps.then.len() < AT_ONCE {
                clear(store, &key, cidr, &found, keep, &mut steps)?;
            }
        }
        let more = steps.then.len() == AT_ONCE;
        if steps.then.is_empty() {
            return Ok(());
        }
        if store.txn(steps.when, steps.then, Vec::new()).await?.succeeded && !more {
            return Ok(());
        }
    }
    Err(store::Error::Busy { what: "release of reserved addresses", attempts: ATTEMPTS })
}

/// Adds what takes the reserved addresses out of a block, and an empty block away.
fn clear(
    store: &Store,
    key: &Key,
    cidr: IpNet,
    found: &Found<BlockRecord>,
    keep: &BTreeSet<IpAddr>,
    steps: &mut Steps,
) -> Result<(), store::Error> {
    let mut record = found.record.clone();
    for offset in found.record.reserved.iter() {
        if !keep.contains(&plan::address(cidr, offset)) {
            record.reserved.remove(offset);
            record.allocated.remove(offset);
        }
    }
    if record == found.record {
        return Ok(());
    }
    steps.when.push(store.unchanged(key, found.mod_revision));
    steps.then.push(if record.allocated.is_empty() {
        store.delete(key)
    } else {
        store.put(key, &record, 0)?
    });
    Ok(())
}

/// The key of the MAC that belongs to an IPv4 address.
fn mac_key(network: &NetworkRecord, ip: IpAddr) -> Option<Key> {
    match ip {
        IpAddr::V4(ip) => Some(Key::Mac(network.id.clone(), MacAddr::from_ipv4(ip))),
        IpAddr::V6(_) => None,
    }
}

/// What has to be written for it.
struct Change {
    /// Blocks as they shall be.
    blocks: BTreeMap<IpNet, BlockRecord>,
    added: Vec<IpAddr>,
    /// All that are reserved then.
    reserved: BTreeSet<IpAddr>,
    /// Whether that is all that can be done.
    complete: bool,
}

impl Wish<'_> {
    fn change(&self, pool: &Pool, skip: &BTreeSet<IpAddr>) -> Change {
        let mut blocks: BTreeMap<IpNet, BlockRecord> =
            pool.blocks.iter().map(|(cidr, found)| (*cidr, found.record.clone())).collect();
        let mut change = Change {
            blocks: BTreeMap::new(),
            added: Vec::new(),
            reserved: BTreeSet::new(),
            complete: true,
        };
        for (cidr, block) in blocks.iter_mut().filter(|(_, block)| block.host == *self.host) {
            if self.give_up(*cidr, block) {
                change.blocks.insert(*cidr, block.clone());
            }
            let all = block.reserved.iter().map(|offset| plan::address(*cidr, offset));
            change.reserved.extend(all.filter(|ip| !self.used.contains(ip)));
            if self.fence && !block.reserved.is_empty() {
                change.blocks.insert(*cidr, block.clone());
            }
        }
        for ipv6 in [false, true] {
            let mut left = self.count;
            for subnet in self.network.subnets.iter().filter(|net| net.addr().is_ipv6() == ipv6) {
                let limit = limit(self.network, *subnet, left);
                let have = self.settle(*subnet, limit, pool, skip, &mut blocks, &mut change);
                left = left.saturating_sub(have);
            }
        }
        change
    }

    /// Takes out of a block what others asked for, but not what is in use or counted on. Returns
    /// whether the block changed.
    fn give_up(&self, cidr: IpNet, block: &mut BlockRecord) -> bool {
        let mut changed = false;
        for offset in block.wanted.iter() {
            let ip = plan::address(cidr, offset);
            if self.ready.contains(&ip) {
                continue;
            }
            changed = true;
            block.wanted.remove(offset);
            if !self.used.contains(&ip) && block.reserved.contains(offset) {
                block.reserved.remove(offset);
                block.allocated.remove(offset);
            }
        }
        changed
    }

    /// Brings one subnet to `limit` reserved addresses; returns how many it has then.
    fn settle(
        &self,
        subnet: IpNet,
        limit: usize,
        pool: &Pool,
        skip: &BTreeSet<IpAddr>,
        blocks: &mut BTreeMap<IpNet, BlockRecord>,
        change: &mut Change,
    ) -> usize {
        let here = |change: &Change| -> Vec<IpAddr> {
            change.reserved.iter().copied().filter(|ip| subnet.contains(ip)).collect()
        };
        let mut have = here(change);
        // The highest go first, as the lowest are given out first.
        let surplus = have.len().saturating_sub(limit);
        let spare = have.iter().rev().filter(|ip| !self.ready.contains(ip)).take(surplus);
        let spare: Vec<IpAddr> = spare.copied().collect();
        have.retain(|ip| !spare.contains(ip));
        for ip in spare {
            let (cidr, offset) = plan::block_of(subnet, ip);
            if let Some(block) = blocks.get_mut(&cidr) {
                block.reserved.remove(offset);
                block.allocated.remove(offset);
                change.blocks.insert(cidr, block.clone());
            }
            change.reserved.remove(&ip);
        }
        let capacity = plan::capacity(self.network, subnet);
        while have.len() < limit {
            if change.added.len() >= AT_ONCE {
                change.complete = false;
                break;
            }
            let records = blocks.iter().map(|(cidr, block)| (*cidr, block));
            let scene = plan::Scene::new(self.network, subnet, records, &pool.resting)
                .without(pool.bad.keys().copied());
            if scene.used() >= capacity / 4 * 3 {
                break;
            }
            let Some((cidr, offset)) = scene.reservable(self.host, skip) else { break };
            let block = blocks.entry(cidr).or_insert_with(|| BlockRecord::new(self.host.clone()));
            block.allocated.insert(offset);
            block.reserved.insert(offset);
            change.blocks.insert(cidr, block.clone());
            let ip = plan::address(cidr, offset);
            change.added.push(ip);
            change.reserved.insert(ip);
            have.push(ip);
        }
        have.len()
    }
}

impl Change {
    fn steps(
        &self,
        store: &Store,
        network: &NetworkRecord,
        pool: &Pool,
    ) -> Result<Steps, store::Error> {
        let mut steps = Steps::default();
        steps.when.push(store.present(&Key::Network(network.id.clone())));
        for (cidr, block) in &self.blocks {
            let key = Key::Block(network.id.clone(), *cidr);
            let before = pool.blocks.get(cidr).map_or(0, |found| found.mod_revision);
            steps.when.push(store.unchanged(&key, before));
            steps.then.push(store.put(&key, block, 0)?);
        }
        for ip in &self.added {
            steps.when.push(store.absent(&Key::Address(network.id.clone(), *ip)));
            steps.when.push(store.absent(&Key::Resting(network.id.clone(), *ip)));
            if let Some(key) = mac_key(network, *ip) {
                steps.when.push(store.absent(&key));
            }
        }
        Ok(steps)
    }
}

//! Addresses that are taken back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use etcd_client::Compare;
use ipnet::IpNet;
use tokio::time::sleep;

use super::{ATTEMPTS, Error, Steps, held, plan};
use crate::key::{EndpointId, Key, NetworkId};
use crate::record::{BlockRecord, Extra, RestRecord, VERSION};
use crate::store::{self, Found, Store, conflict_pause};

/// Takes back addresses that `endpoint` holds and lets them rest. Addresses that it does not hold
/// are left alone.
///
/// # Errors
///
/// Why the store did not do it.
pub async fn release(
    store: &Store,
    network: &NetworkId,
    endpoint: &EndpointId,
    ips: &[IpAddr],
    rest: Duration,
) -> Result<(), Error> {
    release_when(store, network, endpoint, ips, rest, &[]).await?;
    Ok(())
}

/// As [`release`], and only while `conditions` hold. False when they do not.
pub(crate) async fn release_when(
    store: &Store,
    network: &NetworkId,
    endpoint: &EndpointId,
    ips: &[IpAddr],
    rest: Duration,
    conditions: &[Compare],
) -> Result<bool, store::Error> {
    let _turn = store.turn().await;
    let mut lease = 0;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(conflict_pause(attempt)).await;
        }
        let mut steps = Steps::default();
        if plan_release(store, network, endpoint, ips, rest, &mut lease, &mut steps).await? == 0 {
            return Ok(true);
        }
        steps.when.extend_from_slice(conditions);
        if store.txn(steps.when, steps.then, Vec::new()).await?.succeeded {
            return Ok(true);
        }
        if !conditions.is_empty() && !store.holds(conditions).await? {
            return Ok(false);
        }
    }
    Err(store::Error::Busy { what: "release of an address", attempts: ATTEMPTS })
}

/// Adds what takes back those of `ips` that `endpoint` holds. `lease` is made when it is 0. Returns
/// how many there are.
pub(crate) async fn plan_release(
    store: &Store,
    network: &NetworkId,
    endpoint: &EndpointId,
    ips: &[IpAddr],
    rest: Duration,
    lease: &mut i64,
    steps: &mut Steps,
) -> Result<usize, store::Error> {
    if ips.is_empty() {
        return Ok(0);
    }
    let reads = ips.iter().map(|ip| store.read_key(&Key::Address(network.clone(), *ip))).collect();
    let found = store.read(reads).await?.reads;
    let mut held = held(network, ips, found.iter())?;
    held.retain(|_, address| address.record.endpoint == *endpoint);
    // Several addresses of one block leave it in one write.
    let cidrs: BTreeSet<IpNet> = held.values().map(|address| address.record.block).collect();
    let reads =
        cidrs.iter().map(|cidr| store.read_key(&Key::Block(network.clone(), *cidr))).collect();
    let found = store.read(reads).await?.reads;
    for (cidr, entries) in cidrs.iter().zip(&found) {
        let Some(entry) = entries.first() else { continue };
        let key = Key::Block(network.clone(), *cidr);
        let block: Found<BlockRecord> = Store::decode(&key, entry)?;
        let mut record = block.record;
        for (ip, _) in held.iter().filter(|(_, address)| address.record.block == *cidr) {
            if let Some(offset) = plan::offset(*cidr, *ip) {
                record.allocated.remove(offset);
                record.reserved.remove(offset);
            }
        }
        steps.when.push(store.unchanged(&key, block.mod_revision));
        steps.then.push(store.put(&key, &record, 0)?);
    }
    if *lease == 0 && !held.is_empty() && !rest.is_zero() {
        *lease = store.grant(rest).await?;
    }
    for (ip, address) in &held {
        let key = Key::Address(network.clone(), *ip);
        steps.when.push(store.unchanged(&key, address.mod_revision));
        steps.then.push(store.delete(&key));
        if *lease != 0 {
            let record = RestRecord {
                version: VERSION,
                endpoint: endpoint.clone(),
                host: address.record.host.clone(),
                extra: Extra::new(),
            };
            let key = Key::Resting(network.clone(), *ip);
            steps.then.push(store.put(&key, &record, *lease)?);
        }
    }
    Ok(held.len())
}

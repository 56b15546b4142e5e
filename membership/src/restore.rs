//! Writing again what the store has lost: after it was restored from a backup, or somebody deleted
//! a record whose owner is alive.
//!
//! Both functions write only what is absent, in one transaction with everything that belongs to
//! it, and say whether they did. What others have taken meanwhile stays theirs.

use crate::endpoint::{self, EndpointSpec};
use crate::key::{EndpointId, HostName, Key};
use crate::network;
use crate::record::{EndpointRecord, NameRecord, NetworkRecord, VniRecord};
use crate::store::{self, Found, Store, conflict_pause};

/// How often a transaction that meets others is tried.
const ATTEMPTS: u32 = 8;

/// Writes a network again under its id, with its name and VNI.
///
/// # Errors
///
/// [`network::Error::NameTaken`] or [`network::Error::VniTaken`] when another network has them now,
/// [`network::Error::Domain`] or [`network::Error::UdpPort`] when a routed one has its subnets, or why the store did not do it.
pub async fn network(store: &Store, record: &NetworkRecord) -> Result<bool, network::Error> {
    let id = &record.id;
    let (id_key, name_key, vni_key) =
        (Key::Network(id.clone()), Key::Name(record.name.clone()), Key::Vni(record.vni));
    for attempt in 1..=ATTEMPTS {
        let reads = [&id_key, &name_key, &vni_key].map(|key| store.read_key(key));
        let found = store.read(reads.into()).await?.reads;
        let [there, name, vni] = found.as_slice() else { continue };
        if !there.is_empty() {
            return Ok(false);
        }
        let name_revision = match name.first() {
            None => 0,
            Some(entry) => {
                let holder: Found<NameRecord> = Store::decode(&name_key, entry)?;
                if holder.record.network != *id {
                    let (name, id) = (record.name.clone(), holder.record.network);
                    return Err(network::Error::NameTaken { name, id });
                }
                entry.mod_revision
            }
        };
        let vni_revision = match vni.first() {
            None => 0,
            Some(entry) => {
                let holder: Found<VniRecord> = Store::decode(&vni_key, entry)?;
                if holder.record.network != *id {
                    let (vni, holder) = (record.vni, holder.record.network.to_string());
                    return Err(network::Error::VniTaken { vni, holder });
                }
                entry.mod_revision
            }
        };
        let turn = network::enter(store, &mut record.clone(), false).await?;
        let mut when = vec![
            store.absent(&id_key),
            store.unchanged(&name_key, name_revision),
            store.unchanged(&vni_key, vni_revision),
        ];
        let mut then = vec![
            store.put(&name_key, &NameRecord::new(id.clone()), 0)?,
            store.put(&id_key, record, 0)?,
            store.put(&vni_key, &VniRecord::new(id.clone()), 0)?,
        ];
        if let Some(turn) = turn {
            when.push(turn.when(store));
            then.push(turn.then(store, record)?);
        }
        if store.txn(when, then, Vec::new()).await?.succeeded {
            return Ok(true);
        }
        tokio::time::sleep(conflict_pause(attempt)).await;
    }
    Err(store::Error::Busy { what: "restoration of a network", attempts: ATTEMPTS }.into())
}

/// Writes an endpoint of `host` again, with its id, MAC and addresses; `spec` must name them all.
///
/// # Errors
///
/// Each variant of [`endpoint::Error`]: its addresses or its MAC may be another's now.
pub async fn endpoint(
    store: &Store,
    network: &NetworkRecord,
    host: &HostName,
    incarnation: u64,
    id: &EndpointId,
    spec: EndpointSpec,
) -> Result<bool, endpoint::Error> {
    let key = Key::Endpoint(network.id.clone(), id.clone());
    let present = store.get::<EndpointRecord>(&key).await?;
    match present {
        Some(found) if found.record.host == *host => Ok(false),
        Some(found) => {
            Err(endpoint::Error::Exists { endpoint: id.clone(), host: found.record.host })
        }
        None => {
            let spec = EndpointSpec { id: Some(id.clone()), adopt: Some(id.clone()), ..spec };
            endpoint::create(store, network, host, incarnation, &spec).await.map(|_| true)
        }
    }
}

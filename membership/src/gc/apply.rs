//! Findings that are removed.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Compare, DeleteOptions, TxnOp};

use super::find::Action;
use super::{Finding, GcError, Kind, Options, find};
use crate::key::{HostName, Key, NetworkId, Range};
use crate::store::{Error, Store};
use crate::{endpoint, ipam};

/// How often everything is looked at again: what was removed sets other things free.
const ROUNDS: usize = 4;

/// What became of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone.
    Removed,
    /// Somebody changed it meanwhile; it is looked at again next time.
    Changed,
    /// It stays: it is only named.
    Named,
    /// The store did not do it.
    Failed(String),
}

/// A finding and what became of it.
#[derive(Clone, Debug)]
pub struct Collected {
    /// What was found.
    pub finding: Finding,
    /// What became of it.
    pub outcome: Outcome,
}

/// Removes what nobody has, if `select` says so of it. What is set free by that is removed as well.
/// Released addresses rest for `rest`.
///
/// # Errors
///
/// [`GcError`]; what a single finding met is in its outcome.
pub async fn collect(
    store: &Store,
    options: &Options,
    rest: Duration,
    mut select: impl FnMut(&Finding) -> bool,
) -> Result<Vec<Collected>, GcError> {
    let mut done: BTreeMap<(Kind, String), Collected> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let found = match find(store, options).await {
            // Its last record was just removed.
            Err(GcError::Unknown(_)) if !done.is_empty() => break,
            found => found?,
        };
        let mut removed = false;
        for finding in found {
            if !select(&finding) {
                continue;
            }
            let outcome = match remove(store, &finding, rest).await {
                Ok(outcome) => outcome,
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(error) => Outcome::Failed(error.to_string()),
            };
            if outcome == Outcome::Removed {
                removed = true;
                tracing::info!(key = finding.key, reason = finding.reason, "garbage removed");
            }
            let id = (finding.kind, finding.key.clone());
            let before = done.get(&id).map(|before| before.outcome.clone());
            if before != Some(Outcome::Removed) {
                done.insert(id, Collected { finding, outcome });
            }
        }
        if !removed {
            break;
        }
    }
    Ok(done.into_values().collect())
}

/// The comparisons that say that a host is gone.
fn absent(store: &Store, host: &HostName, mark: Option<i64>) -> Vec<Compare> {
    let mut when = vec![store.absent(&Key::Host(host.clone()))];
    if let Some(revision) = mark {
        when.push(store.unchanged(&Key::Absent(host.clone()), revision));
    }
    when
}

/// The comparisons that say that a network has no record and no endpoint.
fn dead(store: &Store, network: &NetworkId) -> Vec<Compare> {
    vec![store.absent(&Key::Network(network.clone())), store.empty(Range::Endpoints(network))]
}

async fn remove(store: &Store, finding: &Finding, rest: Duration) -> Result<Outcome, Error> {
    let done = match &finding.action {
        Action::None => return Ok(Outcome::Named),
        Action::Endpoint { network, endpoint, host, mark } => {
            let when = absent(store, host, *mark);
            match endpoint::remove_when(store, network, endpoint, rest, &when).await {
                Ok(removed) => removed.is_some(),
                Err(endpoint::Error::NotFound { .. }) => true,
                Err(endpoint::Error::Store(error)) => return Err(error),
                Err(other) => return Ok(Outcome::Failed(other.to_string())),
            }
        }
        Action::Address { network, ip, endpoint, revision } => {
            let when = [
                store.absent(&Key::Endpoint(network.clone(), endpoint.clone())),
                store.unchanged(&Key::Address(network.clone(), *ip), *revision),
            ];
            ipam::release_when(store, network, endpoint, &[*ip], rest, &when).await?
        }
        Action::Key { key, revision, absent } => {
            let mut when = vec![store.unchanged(key, *revision)];
            when.extend(absent.iter().map(|key| store.absent(key)));
            store.txn(when, vec![store.delete(key)], Vec::new()).await?.succeeded
        }
        Action::Block { key, revision, record, gone } => {
            let mut when = vec![store.unchanged(key, *revision)];
            if let Some((host, mark)) = gone {
                when.extend(absent(store, host, *mark));
            }
            let then = match record {
                Some(record) => store.put(key, record, 0)?,
                None => store.delete(key),
            };
            store.txn(when, vec![then], Vec::new()).await?.succeeded
        }
        Action::Addresses(network) => {
            let prefix = store.keys().range(Range::Ipam(network));
            let all = TxnOp::delete(prefix, Some(DeleteOptions::new().with_prefix()));
            store.txn(dead(store, network), vec![all], Vec::new()).await?.succeeded
        }
        Action::OfNetwork { key, revision, network } => {
            let mut when = dead(store, network);
            when.push(store.unchanged(key, *revision));
            store.txn(when, vec![store.delete(key)], Vec::new()).await?.succeeded
        }
        Action::Host(host) => {
            let keys = [Key::KnownHost(host.clone()), Key::Absent(host.clone())];
            let then = keys.iter().map(|key| store.delete(key)).collect();
            store.txn(absent(store, host, None), then, Vec::new()).await?.succeeded
        }
    };
    Ok(if done { Outcome::Removed } else { Outcome::Changed })
}

//! Which network a network of Docker is.
//!
//! A record stands for each network that the Docker of a host has; the network cannot be removed
//! while there is one. One that was made because Docker asked goes with the last of its records.

use etcd_client::TxnOp;

use crate::key::{DockerId, HostName, Key, NetworkId, Range};
use crate::network;
use crate::record::{DockerRecord, NetworkRecord};
use crate::store::{self, Store};

/// The label of a network that was made because Docker asked for it.
pub const MADE_BY: (&str, &str) = ("skybridge.made-by", "docker");

/// A network of a host's Docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerNetwork {
    /// The network that it is.
    pub network: NetworkId,
    /// The host.
    pub host: HostName,
    /// Docker's id.
    pub id: DockerId,
    /// What is noted of it.
    pub record: DockerRecord,
}

impl DockerNetwork {
    fn key(&self) -> Key {
        Key::Docker(self.network.clone(), self.host.clone(), self.id.clone())
    }
}

/// All networks of all hosts' Dockers.
///
/// # Errors
///
/// Why the store did not answer.
pub async fn list(store: &Store) -> Result<Vec<DockerNetwork>, store::Error> {
    let records = store.records::<DockerRecord>(Range::EveryDocker).await?;
    let found = records.into_iter().filter_map(|(key, found)| match key {
        Key::Docker(network, host, id) => {
            Some(DockerNetwork { network, host, id, record: found.record })
        }
        _ => None,
    });
    Ok(found.collect())
}

/// Notes a network of Docker, as long as the network that it is exists. False when it does not.
///
/// # Errors
///
/// Why the store did not do it.
pub async fn put(store: &Store, noted: &DockerNetwork) -> Result<bool, store::Error> {
    let when = vec![store.present(&Key::Network(noted.network.clone()))];
    let then = vec![store.put(&noted.key(), &noted.record, 0)?];
    Ok(store.txn(when, then, Vec::new()).await?.succeeded)
}

/// Forgets a network of Docker. The network that it was is removed if it was made for Docker and
/// nobody has or is in it any more; then it is returned.
///
/// # Errors
///
/// Why the store did not do it.
pub async fn remove(
    store: &Store,
    noted: &DockerNetwork,
) -> Result<Option<NetworkRecord>, store::Error> {
    let then: Vec<TxnOp> = vec![store.delete(&noted.key())];
    store.txn(Vec::new(), then, Vec::new()).await?;
    let network = store.get::<NetworkRecord>(&Key::Network(noted.network.clone())).await?;
    let made = network
        .filter(|found| found.record.labels.get(MADE_BY.0).is_some_and(|value| value == MADE_BY.1));
    if made.is_none() {
        return Ok(None);
    }
    match network::remove(store, noted.network.as_str(), false).await {
        Ok(record) => Ok(Some(record)),
        Err(network::Error::Store(error)) => Err(error),
        // Somebody has it, or has removed it.
        Err(_) => Ok(None),
    }
}

//! Docker's networks: the network driver and the IPAM driver of a plugin.
//!
//! # Theory of operation
//!
//! ```text
//!   docker network create     RequestPool, RequestAddress(gateway)  ──► nothing is written
//!                             CreateNetwork  ──► network (joined or made), docker/NETWORK/HOST/ID
//!   docker run                RequestAddress ──► address in the store, held early
//!                             CreateEndpoint ──► endpoint in the store, with that address; a note
//!                             Join           ──► veth: its end lies in the host's namespace, and
//!                                                Docker moves, renames and addresses it
//!   docker stop               Leave          ──► the veth goes
//!                             DeleteEndpoint ──► endpoint and note go; the address rests
//! ```
//!
//! **Which network it is.** Docker gives a network of local scope another id on each host, and asks
//! for pools before it tells of the network. So the id of a pool is made of what the user wrote, its
//! prefix and the options of `--ipam-opt`, and is the same on every host; the network is found by
//! the options `network` and `vni` or else by its subnets (`network`). What was found is written
//! to the store, where it is found again by Docker's id or the pool's, on this host first and then
//! on any: a network of global scope is told to one host only.
//!
//! **Nothing is in memory alone.** Docker neither repeats anything when the plugin comes back nor
//! tells of all that ended when it was away itself. An endpoint is an attachment like any other,
//! with a note on the disk; between CreateEndpoint and Join it is `Reserved`. What Docker forgot to
//! end is found by what is left of it (`keep`): an interface that is gone, one that Docker put
//! back, an address or endpoint that nothing follows.
//!
//! **The gateway.** Docker wants one per pool and has every container's default route end in it,
//! unless the driver says otherwise. A network that reaches beyond itself (`nat_outgoing`,
//! `host_access`) has a gateway of its own and says so; in any other network the gateway has the
//! address and answers, and the way out is Docker's own bridge, a second interface, as with Docker's
//! overlay.

mod choose;
mod endpoint;
mod keep;
mod network;
mod options;
mod pool;
mod server;
mod types;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use membership::docker::DockerNetwork;
use membership::key::{EndpointId, NetworkId};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use server::serve;

use crate::agent::{Agent, store_error};
use crate::config::DockerScope;
use crate::control::types::Error;

/// The address spaces of our pools.
const LOCAL_SPACE: &str = "skybridge-local";
const GLOBAL_SPACE: &str = "skybridge-global";

/// How long an operation waits for a store that is away. When a machine starts Docker asks once for
/// each container, and starts none of those that are refused; it gives an operation half a minute.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an operation comes to.
type Answer = Result<Value, Error>;

/// The driver of one Docker.
pub struct Driver {
    agent: Arc<Agent>,
    scope: DockerScope,
    /// One at a time finds out which network it is.
    networks: tokio::sync::Mutex<()>,
    /// Docker repeats what was not answered in time: the second finds what the first has done.
    endpoints: tokio::sync::Mutex<()>,
    /// Addresses that were given out and have no endpoint yet: nobody else gets them.
    early: Mutex<BTreeMap<(NetworkId, IpAddr), Instant>>,
    repeats: choose::Repeats,
}

impl Driver {
    /// The driver of an agent.
    #[must_use]
    pub fn new(agent: Arc<Agent>, scope: DockerScope) -> Arc<Self> {
        Arc::new(Self {
            agent,
            scope,
            networks: tokio::sync::Mutex::default(),
            endpoints: tokio::sync::Mutex::default(),
            early: Mutex::default(),
            repeats: choose::Repeats::default(),
        })
    }

    /// Looks after what Docker did not end, for ever.
    pub async fn keep(self: Arc<Self>) {
        keep::run(&self).await;
    }

    /// Does what a method says; `None` for one that does not exist.
    async fn answer(&self, method: &str, body: Value) -> Option<Answer> {
        let nothing = || Ok(json!({}));
        tracing::debug!(method, %body, "Docker asks");
        Some(match method {
            "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),

            "NetworkDriver.GetCapabilities" => Ok(json!({
                "Scope": self.scope.name(),
                "ConnectivityScope": "global",
                "GwAllocChecker": true,
            })),
            "NetworkDriver.GwAllocCheck" => {
                self.with_store(body, |asked| self.gateways(asked)).await
            }
            "NetworkDriver.AllocateNetwork" => {
                self.with_store(body, |asked| self.allocate(asked)).await
            }
            "NetworkDriver.FreeNetwork" => with(body, |asked| self.free(asked)).await,
            "NetworkDriver.CreateNetwork" => {
                self.with_store(body, |asked| self.create_network(asked)).await
            }
            "NetworkDriver.DeleteNetwork" => {
                self.with_store(body, |asked| self.delete_network(asked)).await
            }
            "NetworkDriver.CreateEndpoint" => {
                self.with_store(body, |asked| self.create_endpoint(asked)).await
            }
            "NetworkDriver.EndpointOperInfo" => with(body, |asked| self.endpoint_info(asked)).await,
            "NetworkDriver.DeleteEndpoint" => with(body, |asked| self.delete_endpoint(asked)).await,
            "NetworkDriver.Join" => self.with_store(body, |asked| self.join(asked)).await,
            "NetworkDriver.Leave" => with(body, |asked| self.leave(asked)).await,
            // Hosts are known by the store, and ports are published by Docker's own bridge.
            "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity" => nothing(),

            "IpamDriver.GetCapabilities" => {
                Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false }))
            }
            "IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
                "LocalDefaultAddressSpace": LOCAL_SPACE,
                "GlobalDefaultAddressSpace": GLOBAL_SPACE,
            })),
            "IpamDriver.RequestPool" => {
                self.with_store(body, |asked| self.request_pool(asked)).await
            }
            // Nothing is written for a pool.
            "IpamDriver.ReleasePool" => nothing(),
            "IpamDriver.RequestAddress" => {
                self.with_store(body, |asked| self.request_address(asked)).await
            }
            "IpamDriver.ReleaseAddress" => with(body, |asked| self.release_address(asked)).await,
            _ => return None,
        })
    }

    /// Reads a request and does it once the store is there.
    async fn with_store<T, F, D>(&self, body: Value, deed: F) -> Answer
    where
        T: DeserializeOwned,
        F: FnOnce(T) -> D,
        D: Future<Output = Answer>,
    {
        self.agent.await_store_for(PATIENCE).await.map_err(|cause| {
            Error::unavailable("the store is away, and Docker's networks need it")
                .cause(cause)
                .next_step(
                    "`skybridge status` shows the store connection; containers that run go on",
                )
        })?;
        with(body, deed).await
    }

    /// The id under which addresses are held that have no endpoint yet.
    fn early_id(&self) -> Result<EndpointId, Error> {
        let host: String = self.agent.id.as_str().chars().take(48).collect();
        EndpointId::new(format!("docker-{host}")).map_err(|err| Error::internal(err.to_string()))
    }

    /// All networks of all Dockers, this host's first.
    async fn noted(&self) -> Result<Vec<DockerNetwork>, Error> {
        let all = membership::docker::list(&self.agent.store).await;
        let mut all = all.map_err(|err| store_error(&err))?;
        all.sort_by_key(|noted| noted.host != self.agent.name);
        Ok(all)
    }
}

/// Reads a request and does it.
async fn with<T, F, D>(body: Value, deed: F) -> Answer
where
    T: DeserializeOwned,
    F: FnOnce(T) -> D,
    D: Future<Output = Answer>,
{
    match serde_json::from_value(body) {
        Ok(asked) => deed(asked).await,
        Err(err) => Err(Error::bad_request("the request of Docker is not understood")
            .cause(err.to_string())
            .next_step("report it with the versions of Docker and of skybridge")),
    }
}

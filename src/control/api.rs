//! What an agent can be asked.

use std::future::Future;

use super::types::{
    Attach, Attachment, CollectGarbage, CreateNetwork, Detach, Detached, Drops, Endpoint, Error,
    ExportedEntry, FdbEntry, Garbage, Host, KernelLink, LinkKernel, MakeToken, Namespace,
    NeighborEntry, Network, NetworkDetail, RouteEntry, StaticVtep, Stats, Status, StoreAccess,
    Token, UpdateNetwork, VtepAdd,
};

/// What every operation gives.
pub type Answer<T> = Result<T, Error>;

/// The agent as the control socket sees it. One method per operation; an implementation writes
/// them as `async fn`.
///
/// Every call runs in a task of its own that ends by itself: a client that goes away does not
/// cancel an operation half way. Networks are named by name or id. Listings come unsorted.
pub trait Api: Send + Sync + 'static {
    /// How the agent is.
    fn status(&self) -> impl Future<Output = Answer<Status>> + Send;
    /// All hosts, this one included.
    fn hosts(&self) -> impl Future<Output = Answer<Vec<Host>>> + Send;
    /// All networks.
    fn networks(&self) -> impl Future<Output = Answer<Vec<Network>>> + Send;
    /// One network.
    fn network(&self, network: String) -> impl Future<Output = Answer<NetworkDetail>> + Send;
    /// Makes a network; returns when its record is in the store.
    fn create_network(
        &self,
        request: CreateNetwork,
    ) -> impl Future<Output = Answer<NetworkDetail>> + Send;
    /// Changes a network; returns when its record is in the store.
    fn update_network(
        &self,
        network: String,
        request: UpdateNetwork,
    ) -> impl Future<Output = Answer<NetworkDetail>> + Send;
    /// Removes a network that has no endpoints.
    fn remove_network(&self, network: String) -> impl Future<Output = Answer<()>> + Send;
    /// The static VTEPs of a network.
    fn vteps(&self, network: String) -> impl Future<Output = Answer<Vec<StaticVtep>>> + Send;
    /// Adds a static VTEP, or replaces what is known of the one with that address.
    fn add_vtep(
        &self,
        network: String,
        request: VtepAdd,
    ) -> impl Future<Output = Answer<StaticVtep>> + Send;
    /// Removes a static VTEP.
    fn remove_vtep(
        &self,
        network: String,
        address: std::net::IpAddr,
    ) -> impl Future<Output = Answer<()>> + Send;
    /// The endpoints of a network as a vxlan device of the kernel is told of them.
    fn exported(&self, network: String) -> impl Future<Output = Answer<Vec<ExportedEntry>>> + Send;
    /// The vxlan devices of this host that a network exchanges entries with.
    fn kernel_links(&self, network: String)
    -> impl Future<Output = Answer<Vec<KernelLink>>> + Send;
    /// Begins or ends to exchange entries with a vxlan device of this host.
    fn link_kernel(
        &self,
        network: String,
        request: LinkKernel,
    ) -> impl Future<Output = Answer<Vec<KernelLink>>> + Send;
    /// Where a network's private namespace is on this host.
    fn namespace(&self, network: String) -> impl Future<Output = Answer<Namespace>> + Send;
    /// Attaches a sandbox; returns when its interface is up and its record is in the store.
    fn attach(&self, request: Attach) -> impl Future<Output = Answer<Attachment>> + Send;
    /// Detaches; `request` has a valid target.
    fn detach(&self, request: Detach) -> impl Future<Output = Answer<Vec<Detached>>> + Send;
    /// Endpoints of one network or of all.
    fn endpoints(
        &self,
        network: Option<String>,
    ) -> impl Future<Output = Answer<Vec<Endpoint>>> + Send;
    /// FDB entries of one network or of all.
    fn fdb(&self, network: Option<String>) -> impl Future<Output = Answer<Vec<FdbEntry>>> + Send;
    /// Neighbor entries of one network or of all.
    fn neighbors(
        &self,
        network: Option<String>,
    ) -> impl Future<Output = Answer<Vec<NeighborEntry>>> + Send;
    /// Routes of one network or of all.
    fn routes(
        &self,
        network: Option<String>,
    ) -> impl Future<Output = Answer<Vec<RouteEntry>>> + Send;
    /// Drops by reason and network, those that never happened included.
    fn drops(&self) -> impl Future<Output = Answer<Vec<Drops>>> + Send;
    /// How the agent reaches its store.
    fn store(&self) -> impl Future<Output = Answer<StoreAccess>> + Send;
    /// Makes a token by which a host joins the store that this agent serves.
    fn make_token(&self, request: MakeToken) -> impl Future<Output = Answer<Token>> + Send;
    /// What no living owner has; removed only where the request says so.
    fn collect_garbage(
        &self,
        request: CollectGarbage,
    ) -> impl Future<Output = Answer<Vec<Garbage>>> + Send;
    /// All counters.
    fn stats(&self) -> impl Future<Output = Answer<Stats>> + Send;
}

//! What goes over the control socket. JSON field names are stable; ages and durations are in
//! milliseconds, sizes in bytes; a value that is not known is `null`.

mod endpoint;
mod error;
mod garbage;
mod kernel;
mod listing;
mod network;
mod status;
mod store;

pub use endpoint::{
    Attach, Attachment, DEFAULT_IFNAME, Detach, DetachTarget, Detached, Endpoint, EndpointState,
};
pub use error::{Error, ErrorCode};
pub use garbage::{CollectGarbage, Garbage, GarbageState};
pub use kernel::{
    DEFAULT_DEVICE, ExportedEntry, KernelAction, KernelDirection, KernelLink, KernelState,
    LinkKernel,
};
pub use listing::{
    Counter, Direction, Drops, FdbEntry, Host, HostPath, HostState, HostVtep, HostWay, Limit,
    NeighborEntry, NetworkStats, PlaceKind, RouteEntry, SourceKind, Stats,
};
pub use network::{
    CreateNetwork, Gateway, ImportedMac, LocalNetwork, Mode, Namespace, Network, NetworkDetail,
    NetworkState, Pool, PoolHost, StaticMac, StaticVtep, UpdateNetwork, VtepAdd,
};
pub use status::{
    Convergence, Datapath, Latency, Listing, Offload, OffloadState, Outside, Reload, Session,
    SessionState, Status, Store, StoreState, Warning,
};
pub use store::{MakeToken, StoreAccess, Token};

//! The agent's status.

use serde::{Deserialize, Serialize};

use super::{HostVtep, Network};

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it is able to serve: tables loaded, datapath running.
    pub ready: bool,
    /// The host's name.
    pub host: String,
    /// The host's immutable id.
    pub id: String,
    /// Counts the starts of this agent.
    pub incarnation: u64,
    /// Version of the agent.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The store.
    pub store: Store,
    /// The host's session in the store.
    pub session: Session,
    /// How fast the tables follow the store.
    pub convergence: Option<Convergence>,
    /// What the last reload of the configuration came to; `None` before the first.
    pub reload: Option<Reload>,
    /// The datapath.
    pub datapath: Datapath,
    /// What this host has for networks that reach it or the world; `None` without one.
    #[serde(default)]
    pub outside: Option<Outside>,
    /// The networks.
    pub networks: Vec<Network>,
    /// Frames dropped for any reason since it started.
    pub drops_total: u64,
    /// What needs somebody's attention.
    pub warnings: Vec<Warning>,
}

/// Whether the store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreState {
    /// It does not answer; forwarding goes on from the tables as they are.
    Away,
    /// It answers and is watched.
    Connected,
    /// First contact is being made, or records are being listed.
    Connecting,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// The store as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// Whether it answers.
    pub state: StoreState,
    /// The endpoint in use, or the one tried last.
    pub endpoint: Option<String>,
    /// The revision that the tables are at.
    pub revision: Option<i64>,
    /// Milliseconds in this state.
    pub since_ms: u64,
    /// Why it does not answer.
    pub cause: Option<String>,
    /// The address on which this agent serves the embedded store.
    pub embedded: Option<String>,
}

/// Whether the lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Held and renewed.
    Held,
    /// It ended, or renewing fails: other hosts see this one as suspect after the time to live.
    Lost,
    /// None has been granted yet.
    Starting,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// The host's session in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whether the lease is held.
    pub state: SessionState,
    /// The lease's id, hexadecimal as `etcdctl` prints it.
    pub lease: Option<String>,
    /// The lease's time to live in milliseconds.
    pub ttl_ms: u64,
}

/// How fast the tables follow the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convergence {
    /// Changes of the store: from their arrival to the tables that hold them.
    pub changes: Latency,
    /// Endpoints attached here: from the request to the store to this host's tables, with the way
    /// to the store, its disk and its watch.
    pub own: Latency,
    /// The last listing of all records: from its beginning to the tables that hold it.
    pub listing: Option<Listing>,
}

/// Times of one kind since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Microseconds that half of the last 1000 took at most.
    pub p50_us: u64,
    /// Microseconds that 99 of 100 of the last 1000 took at most.
    pub p99_us: u64,
    /// Microseconds of the longest of all.
    pub max_us: u64,
}

/// A listing of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Microseconds that it took.
    pub took_us: u64,
    /// Endpoints that were known at its end.
    pub endpoints: u64,
}

/// What a reload of the configuration came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Milliseconds since then.
    pub since_ms: u64,
    /// Whether the new settings are in use; if not, nothing was changed.
    pub applied: bool,
    /// Keys whose values were changed.
    pub changed: Vec<String>,
    /// Keys whose new values need a restart of the agent; the former ones are in use.
    pub kept: Vec<String>,
    /// Why the new settings are not in use.
    pub cause: Option<String>,
    /// What to do.
    pub next_step: Option<String>,
}

/// Whether a capability is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OffloadState {
    /// It worked and was given up at run time.
    Lost,
    /// Not available, or switched off.
    Off,
    /// In use.
    On,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// A capability of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// Its name, as in the configuration's `datapath.disable`.
    pub name: String,
    /// Whether it is in use.
    pub state: OffloadState,
    /// Why not.
    pub reason: Option<String>,
}

/// The datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// Worker threads.
    pub workers: u64,
    /// Generation of the tables in use.
    pub generation: u64,
    /// Capabilities.
    pub offloads: Vec<Offload>,
    /// This host's VTEPs.
    pub vteps: Vec<HostVtep>,
    /// Underlay MTU in bytes; 0 when unknown.
    pub mtu: u16,
}

/// What a host has for networks that reach it or the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// The nftables table with our rules, family first.
    pub table: String,
    /// Whether the host forwards IPv4.
    pub forwards_ipv4: bool,
    /// Whether the host forwards IPv6.
    pub forwards_ipv6: bool,
    /// Settings that this run changed so that the host forwards.
    pub changed: Vec<String>,
    /// Chains of others, with family and table, that have a jump to our permission; empty when none
    /// drops what it is not told of.
    pub permission: Vec<String>,
    /// Chains of others that needed one and could not be given it, each with the reason.
    pub refused: Vec<String>,
    /// How often this run found rules gone and wrote them again.
    pub reasserted: u64,
    /// Source ports of masqueraded UDP, `FIRST-LAST`.
    pub udp_ports: Option<String>,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Milliseconds since it began.
    pub since_ms: u64,
    /// What it is.
    pub text: String,
    /// What to do.
    pub next_step: Option<String>,
}

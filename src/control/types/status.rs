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
    /// The datapath.
    pub datapath: Datapath,
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

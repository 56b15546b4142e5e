//! Hosts, table entries, drops and counters.

use std::net::IpAddr;

use encap::MacAddr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Its lease is held.
    Alive,
    /// Its lease has ended; its entries stay in use until a newer claim or garbage collection.
    Suspect,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// A machine that runs an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Name, unique in the cluster.
    pub name: String,
    /// Immutable id.
    pub id: String,
    /// Counts the starts of its agent.
    pub incarnation: u64,
    /// Its VTEPs.
    pub vteps: Vec<HostVtep>,
    /// Its underlay MTU in bytes; 0 when unknown.
    pub mtu: u16,
    /// Modes of networks that can be sent to it.
    #[serde(default)]
    pub modes: Vec<String>,
    /// Version of its agent.
    pub version: String,
    /// How it is.
    pub state: HostState,
    /// Milliseconds since it entered that state, as this agent saw it.
    pub since_ms: Option<u64>,
    /// Whether it is the host that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
    /// How packets get to it, where there are several ways; an agent of an earlier version tells of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HostPath>,
    /// Networks with an endpoint on it.
    pub networks: u64,
    /// Endpoints on it.
    pub endpoints: u64,
}

/// How packets of routed networks with `encapsulate=auto` or `cross-subnet` get to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPath {
    /// The way that is used: `direct`, `ipip` or `ipudp`.
    pub used: String,
    /// Why.
    pub why: String,
    /// Milliseconds since it is.
    pub since_ms: u64,
    /// How each way is doing, the cheapest first; empty where none is probed.
    pub ways: Vec<HostWay>,
}

/// How one way to a host is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostWay {
    /// `direct`, `ipip` or `ipudp`.
    pub way: String,
    /// Whether what we send arrives.
    pub reaches: bool,
    /// Whether what it sends arrives.
    pub arrives: bool,
    /// Milliseconds since both are so; `None` while they are not.
    pub works_ms: Option<u64>,
}

/// A VTEP of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVtep {
    /// Advertised underlay address.
    pub address: IpAddr,
    /// UDP port.
    pub port: u16,
}

/// Where a MAC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaceKind {
    /// On the host that answers.
    Local,
    /// Behind a VTEP.
    Vtep,
    /// A place of a newer agent.
    #[serde(other)]
    Unknown,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Read from a kernel device that knows of a static VTEP.
    Imported,
    /// Learned from received frames.
    Learned,
    /// Configured: a static VTEP.
    Static,
    /// A record of the store, see `revision`.
    Store,
    /// A source of a newer agent.
    #[serde(other)]
    Unknown,
}

/// An FDB entry: a MAC of a network and its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The network's name.
    pub network: String,
    /// The network's VNI.
    pub vni: u32,
    /// The MAC.
    pub mac: MacAddr,
    /// Where it is.
    pub place: PlaceKind,
    /// The VTEP it is behind.
    pub vtep: Option<IpAddr>,
    /// The host it is on; `None` behind a static VTEP.
    pub host: Option<String>,
    /// Who says so.
    pub source: SourceKind,
    /// Store revision of the record that says so.
    pub revision: Option<i64>,
    /// Milliseconds since the entry was made, for a learned one since it was last confirmed.
    pub age_ms: Option<u64>,
}

/// A neighbor entry: an address of a network and its MAC, as ARP and ND are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborEntry {
    /// The network's name.
    pub network: String,
    /// The network's VNI.
    pub vni: u32,
    /// The address.
    pub ip: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
    /// Where it is.
    pub place: PlaceKind,
    /// The VTEP it is behind.
    pub vtep: Option<IpAddr>,
    /// The host it is on; `None` behind a static VTEP.
    pub host: Option<String>,
    /// Who says so.
    pub source: SourceKind,
    /// Store revision of the record that says so.
    pub revision: Option<i64>,
    /// Milliseconds since the entry was made.
    pub age_ms: Option<u64>,
}

/// A route: a range of addresses of a network of packets, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The network's name.
    pub network: String,
    /// The range of addresses.
    pub prefix: IpNet,
    /// Where it is.
    pub place: PlaceKind,
    /// The VTEP it is behind.
    pub vtep: Option<IpAddr>,
    /// The host it is on.
    pub host: Option<String>,
    /// Who says so.
    pub source: SourceKind,
    /// Store revision at which it came to be there.
    pub revision: Option<i64>,
    /// Milliseconds since the entry was made.
    pub age_ms: Option<u64>,
}

/// Which way a dropped frame was going, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the underlay to a sandbox.
    Inbound,
    /// From a sandbox to the underlay.
    Outbound,
}

/// Frames dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// The reason's stable name.
    pub reason: String,
    /// Which way the frames were going.
    pub direction: Direction,
    /// The network's name; `None` where no network was known.
    pub network: Option<String>,
    /// The endpoint that sent them; `None` where it is not kept by endpoint.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// How many since the agent started; for an endpoint since it was attached, whatever agent ran.
    pub count: u64,
    /// What the reason means, one sentence.
    pub description: String,
    /// What to look at next.
    pub hint: String,
}

/// A counter or gauge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Stable name.
    pub name: String,
    /// What is counted, one sentence.
    pub help: String,
    /// What one is: `frames`, `bytes`, `calls`.
    pub unit: String,
    /// Over all workers.
    pub value: u64,
    /// Of each worker, in their order; empty when it is not kept by worker.
    #[serde(default)]
    pub workers: Vec<u64>,
}

/// The counters of one network on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStats {
    /// The network's name.
    pub network: String,
    /// Its counters.
    pub counters: Vec<Counter>,
}

/// A queue or table with its bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Stable name.
    pub name: String,
    /// What it is and what happens at the limit, one sentence.
    pub help: String,
    /// What one is: `entries`, `bytes`, `commands`.
    pub unit: String,
    /// How much there is now; `None` where the kernel does not tell.
    pub used: Option<u64>,
    /// How much there may be.
    pub limit: u64,
    /// The most that there was since the agent started, as far as it was looked at.
    pub high: Option<u64>,
}

/// Every counter of the agent, since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Milliseconds since the agent started.
    pub uptime_ms: u64,
    /// Worker threads.
    pub workers: u64,
    /// Counters of the datapath and of the control plane.
    pub counters: Vec<Counter>,
    /// Counters by network, of all that were here since it started.
    pub networks: Vec<NetworkStats>,
    /// Queues and tables with their bounds; an agent of an earlier version tells of none.
    #[serde(default)]
    pub limits: Vec<Limit>,
}

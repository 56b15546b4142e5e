//! Vxlan devices of the kernel that networks exchange entries with.

use std::fmt;
use std::net::IpAddr;

use encap::MacAddr;
use serde::{Deserialize, Serialize};

/// Which way entries go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelDirection {
    /// From the network into the device.
    Export,
    /// From the device into the network.
    Import,
    /// A direction of a newer agent.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for KernelDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Export => "export",
            Self::Import => "import",
            Self::Unknown => "unknown",
        })
    }
}

/// What is asked for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelAction {
    /// Make it so now, and keep it so until it is stopped, also by agents that start later.
    Follow,
    /// Make it so now, once. Exports only.
    Once,
    /// Follow no longer, and take back what was done.
    Stop,
}

/// Asks for entries to be exchanged with a vxlan device of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkKernel {
    /// Which way.
    pub direction: KernelDirection,
    /// What to do.
    pub action: KernelAction,
    /// Namespace of the device: a name, a path whose last part may have one `*`, or a process id.
    /// Only to stop it may be left out: then all of the network are meant.
    #[serde(default)]
    pub netns: Option<String>,
    /// The device.
    #[serde(default = "default_device")]
    pub dev: String,
    /// Address of the device's own VTEP, of imports; `None` is this host's.
    #[serde(default)]
    pub vtep: Option<IpAddr>,
    /// To stop for a host that is gone: takes its imported entries out of the network.
    #[serde(default)]
    pub host: Option<String>,
}

/// The device of Docker's overlay.
pub const DEFAULT_DEVICE: &str = "vxlan0";

fn default_device() -> String {
    DEFAULT_DEVICE.to_owned()
}

/// How it is with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelState {
    /// Something is wrong, see the reason.
    Failed,
    /// It is followed.
    Following,
    /// It was done once, and is not followed.
    Once,
    /// It was stopped.
    Stopped,
    /// Namespace or device is not there; what was known is kept.
    Waiting,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for KernelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Failed => "failed",
            Self::Following => "following",
            Self::Once => "once",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Unknown => "unknown",
        })
    }
}

/// A vxlan device of this host that a network exchanges entries with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLink {
    /// The network's name.
    pub network: String,
    /// Which way.
    pub direction: KernelDirection,
    /// Namespace of the device, as it was asked for.
    pub netns: String,
    /// The device.
    pub dev: String,
    /// How it is.
    pub state: KernelState,
    /// Milliseconds since it is so.
    pub since_ms: u64,
    /// MACs that are exchanged.
    pub entries: u64,
    /// What was left out because somebody else has it, at most a few.
    pub conflicts: Vec<String>,
    /// Why it waits or failed.
    pub reason: Option<String>,
}

/// An endpoint as a vxlan device of the kernel is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedEntry {
    /// The endpoint's id.
    pub endpoint: String,
    /// Its host.
    pub host: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The VTEP it is behind.
    pub vtep: IpAddr,
    /// UDP port of that VTEP.
    pub port: u16,
}

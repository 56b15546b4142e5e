//! Attachments of sandboxes to networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use encap::MacAddr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Error;

/// The interface name in a sandbox when none is asked for.
pub const DEFAULT_IFNAME: &str = "eth0";

fn default_ifname() -> String {
    DEFAULT_IFNAME.to_owned()
}

/// Attaches a sandbox to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The network's name or id.
    pub network: String,
    /// The sandbox: a name below `/run/netns`, an absolute path, or the id of a process in it. The
    /// agent resolves it.
    pub netns: String,
    /// Addresses asked for, at most one per subnet; empty takes free ones.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The MAC asked for; `None` derives it from the first address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// The endpoint that moves here: its MAC, addresses, name and labels are taken over, and where
    /// it was it is cut off. Without `ips` and `mac`.
    #[serde(default, rename = "move")]
    pub moves: Option<String>,
    /// The interface's name in the sandbox.
    #[serde(default = "default_ifname")]
    pub ifname: String,
    /// The endpoint's name; `None` leaves it without one.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether the sandbox's default routes go through the network's gateway.
    #[serde(default)]
    pub default_route: bool,
    /// The user's own labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A sandbox that is attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The endpoint's id.
    pub endpoint: String,
    /// The endpoint's name, where it has one.
    pub name: Option<String>,
    /// The network's name.
    pub network: String,
    /// Addresses with the prefix length of their subnet.
    pub ips: Vec<IpNet>,
    /// The interface's MAC.
    pub mac: MacAddr,
    /// The interface's name in the sandbox.
    pub ifname: String,
    /// The interface's MTU in bytes.
    pub mtu: u16,
    /// Gateways that default routes go through; empty when none was set.
    pub gateways: Vec<IpAddr>,
    /// The host's name.
    pub host: String,
    /// How long the agent took, in milliseconds.
    pub elapsed_ms: f64,
    /// The store is away: its record is published, and other hosts hear of it, when that is back.
    #[serde(default)]
    pub queued: bool,
}

/// Detaches: by `endpoint`, or by `network` and `netns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// The network's name or id.
    #[serde(default)]
    pub network: Option<String>,
    /// The sandbox, as in [`Attach`].
    #[serde(default)]
    pub netns: Option<String>,
    /// The endpoint's id.
    #[serde(default)]
    pub endpoint: Option<String>,
}

/// What [`Detach`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachTarget<'a> {
    /// One endpoint of this host, by id; when `network` is given it must be of that network.
    Endpoint {
        /// The endpoint's id.
        endpoint: &'a str,
        /// The network's name or id.
        network: Option<&'a str>,
    },
    /// Every endpoint of the network in the sandbox.
    Sandbox {
        /// The network's name or id.
        network: &'a str,
        /// The sandbox, as in [`Attach`].
        netns: &'a str,
    },
}

impl Detach {
    /// What is to be detached.
    ///
    /// # Errors
    /// A bad request when both, neither or half of a target is named.
    pub fn target(&self) -> Result<DetachTarget<'_>, Error> {
        match (self.network.as_deref(), self.netns.as_deref(), self.endpoint.as_deref()) {
            (network, None, Some(endpoint)) => Ok(DetachTarget::Endpoint { endpoint, network }),
            (Some(network), Some(netns), None) => Ok(DetachTarget::Sandbox { network, netns }),
            _ => Err(Error::bad_request("cannot tell what to detach")
                .next_step("name a network and a sandbox, or an endpoint by its id")),
        }
    }
}

/// One endpoint that was detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// The endpoint's id.
    pub endpoint: String,
    /// The endpoint's name, where it has one.
    pub name: Option<String>,
    /// The network's name.
    pub network: String,
    /// Addresses that it had.
    pub ips: Vec<IpAddr>,
    /// The store is away: its record is removed when the store is back.
    pub queued: bool,
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// In use.
    Attached,
    /// Being made.
    Attaching,
    /// Taken down here; its record in the store still has to go.
    Detaching,
    /// Attached while the store was away with what is somebody else's now: cut off until it is
    /// detached.
    Quarantined,
    /// In use here; its record waits for the store.
    Queued,
    /// Its host's lease has ended; its entries stay in use.
    Suspect,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// An endpoint as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Immutable id.
    pub id: String,
    /// Name, where it has one.
    pub name: Option<String>,
    /// The network's name.
    pub network: String,
    /// The host's name.
    pub host: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Milliseconds since it was attached, by the wall clocks of two hosts.
    pub age_ms: Option<u64>,
    /// Store revision of its record; `None` while it waits for the store.
    pub revision: Option<i64>,
    /// How it is.
    pub state: EndpointState,
}

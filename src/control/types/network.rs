//! Networks and their static VTEPs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use encap::MacAddr;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a network's traffic crosses the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// L3 in IP (RFC 2003, RFC 4213, RFC 2473).
    Ipip,
    /// L3 directly in UDP, as Linux FOU.
    Ipudp,
    /// L2 over UDP (RFC 7348).
    #[default]
    Vxlan,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "ipip",
            Self::Ipudp => "ipudp",
            Self::Vxlan => "vxlan",
        })
    }
}

/// A network's gateway: the address that a default route goes through, which something in the
/// network must have. In JSON `"none"` or an array of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gateway {
    /// These addresses, at most one per family.
    Addresses(Vec<IpAddr>),
    /// None: the network has no way out.
    #[default]
    None,
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(addresses) => {
                for (index, address) in addresses.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{address}")?;
                }
                Ok(())
            }
            Self::None => f.write_str("none"),
        }
    }
}

impl Serialize for Gateway {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Addresses(addresses) => addresses.serialize(serializer),
            Self::None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Gateway {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Gateway;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", an address, or an array of addresses")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Gateway, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Gateway, A::Error> {
                let mut addresses = Vec::new();
                while let Some(address) = seq.next_element()? {
                    addresses.push(address);
                }
                Ok(Gateway::Addresses(addresses))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The text is neither `none` nor an IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a gateway: write an IP address or `none`")]
pub struct ParseGatewayError;

impl FromStr for Gateway {
    type Err = ParseGatewayError;

    fn from_str(text: &str) -> Result<Self, ParseGatewayError> {
        match text {
            "none" => Ok(Self::None),
            _ => text
                .parse()
                .map(|address| Self::Addresses(vec![address]))
                .map_err(|_| ParseGatewayError),
        }
    }
}

/// Asks for a new network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// The network's name, unique in the cluster.
    pub name: String,
    /// Its subnets, without host bits; at least one.
    pub subnets: Vec<IpNet>,
    /// How it crosses the underlay.
    #[serde(default)]
    pub mode: Mode,
    /// The VNI, 1 to 16777215; `None` takes a free one.
    #[serde(default)]
    pub vni: Option<u32>,
    /// UDP port of its datagrams; `None` is that of each host.
    #[serde(default)]
    pub udp_port: Option<u16>,
    /// Inner IP MTU in bytes; `None` derives it from the underlay of the member hosts.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// The gateway.
    #[serde(default)]
    pub gateway: Gateway,
    /// Addresses that are never given out: `IP`, `IP-IP` or a prefix.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Whether what leaves the network is masqueraded.
    #[serde(default)]
    pub nat_outgoing: bool,
    /// Further options by name.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The user's own labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Changes a network. What is `None` or absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateNetwork {
    /// Inner IP MTU in bytes; 0 goes back to deriving it from the underlay.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Whether what leaves the network is masqueraded.
    #[serde(default)]
    pub nat_outgoing: Option<bool>,
    /// Options to set; a `null` goes back to the option's default.
    #[serde(default)]
    pub options: BTreeMap<String, Option<String>>,
    /// Labels to set; a `null` removes one.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
}

impl UpdateNetwork {
    /// Whether it would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What this host does for a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkState {
    /// No endpoint of it is here, so nothing is set up.
    Absent,
    /// It should be here, and something of it could not be set up.
    Failed,
    /// Being set up or taken over.
    Starting,
    /// Here and forwarding.
    Up,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// A network as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Immutable id.
    pub id: String,
    /// Name, unique in the cluster.
    pub name: String,
    /// Mode, such as `vxlan`.
    pub mode: String,
    /// VNI on the wire; `None` where nothing on the wire has one: in networks of packets.
    pub vni: Option<u32>,
    /// UDP port of its datagrams, for `ipudp` of those with IPv4 inside, and the next one is of
    /// those with IPv6 inside; `None` without UDP.
    pub udp_port: Option<u16>,
    /// Subnets.
    pub subnets: Vec<IpNet>,
    /// Inner IP MTU in use, in bytes.
    pub mtu: u16,
    /// What its endpoints reach beyond it: `world`, `host`.
    #[serde(default)]
    pub reaches: Vec<String>,
    /// Endpoints on all hosts.
    pub endpoints: u64,
    /// Hosts that have an endpoint of it.
    pub hosts: u64,
    /// What this host does for it.
    pub state: NetworkState,
}

/// A network in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDetail {
    /// What is listed.
    #[serde(flatten)]
    pub network: Network,
    /// The MTU that was asked for, in bytes; `None` when it is derived.
    pub mtu_requested: Option<u16>,
    /// Gateway addresses in use; empty without a gateway.
    pub gateways: Vec<IpAddr>,
    /// The gateway's MAC, the same on every host; `None` when no host answers for it.
    #[serde(default)]
    pub gateway_mac: Option<MacAddr>,
    /// Addresses that are never given out: `IP` or `IP-IP`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// How full each subnet is.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Whether what leaves the network is masqueraded.
    pub nat_outgoing: bool,
    /// Whether endpoints reach their own host, and hosts reach endpoints.
    #[serde(default)]
    pub host_access: bool,
    /// Options in use, defaults included.
    pub options: BTreeMap<String, String>,
    /// The user's own labels.
    pub labels: BTreeMap<String, String>,
    /// Names of the hosts that have an endpoint of it.
    pub host_names: Vec<String>,
    /// VTEPs outside the store.
    pub static_vteps: Vec<StaticVtep>,
    /// Store revision of its record.
    pub revision: Option<i64>,
    /// What exists of it on this host.
    pub local: Option<LocalNetwork>,
}

/// How full a subnet is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The subnet.
    pub subnet: IpNet,
    /// Addresses that can be given out; of an IPv6 subnet at most 2^64 - 1 are told.
    pub capacity: u64,
    /// Addresses that endpoints have or hosts have reserved.
    pub used: u64,
    /// Of these, addresses that hosts have reserved for attaching while the store is away.
    pub reserved: u64,
    /// The part that is used, in percent, rounded down.
    pub percent: u8,
    /// What each host has of it.
    pub hosts: Vec<PoolHost>,
}

/// What a host has of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolHost {
    /// The host's name.
    pub host: String,
    /// Addresses of its endpoints, borrowed ones included.
    pub endpoints: u64,
    /// Addresses that it has reserved.
    pub reserved: u64,
    /// Blocks that it gives out of first.
    pub blocks: u64,
}

/// What exists of a network on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNetwork {
    /// Where its private namespace is pinned.
    pub namespace: PathBuf,
    /// The bridge in that namespace; `None` in networks of packets, which are routed.
    pub bridge: Option<String>,
    /// The switch's port in that namespace.
    pub port: String,
    /// Queues of the port, one per worker.
    pub queues: u16,
    /// Endpoints on this host.
    pub endpoints: u64,
    /// Addresses that this host holds ready for attaching while the store is away.
    #[serde(default)]
    pub reserved: Vec<IpAddr>,
    /// Addresses that this host itself has in the network.
    #[serde(default)]
    pub host_ips: Vec<IpAddr>,
    /// The interface of the host that leads into the network.
    #[serde(default)]
    pub uplink: Option<String>,
    /// Its addresses.
    #[serde(default)]
    pub uplink_addresses: Vec<IpNet>,
    /// Why it is not up.
    pub reason: Option<String>,
}

/// Adds a VTEP that is not in the store (a kernel vxlan device, OVS, hardware) to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VtepAdd {
    /// Its underlay address.
    pub address: IpAddr,
    /// Its UDP port; `None` is the network's.
    #[serde(default)]
    pub port: Option<u16>,
    /// What is known to be behind it.
    #[serde(default)]
    pub macs: Vec<StaticMac>,
}

/// A MAC behind a static VTEP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticMac {
    /// The MAC.
    pub mac: MacAddr,
    /// Addresses that ARP and ND are answered with.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// A MAC behind a static VTEP, read from kernel devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedMac {
    /// The MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The hosts whose devices say so.
    pub by: Vec<String>,
}

/// A VTEP outside the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticVtep {
    /// The network's name.
    pub network: String,
    /// Its underlay address.
    pub address: IpAddr,
    /// Its UDP port.
    pub port: u16,
    /// What is known to be behind it.
    pub macs: Vec<StaticMac>,
    /// What agents read from kernel devices that know of it.
    #[serde(default)]
    pub imported: Vec<ImportedMac>,
    /// MACs learned from its frames.
    pub learned: u64,
    /// Store revision of its record.
    pub revision: Option<i64>,
}

/// Where a network's private namespace is on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The network's name.
    pub network: String,
    /// The pin: a file to open and enter by setns(2).
    pub path: PathBuf,
    /// The bridge in it; `None` in networks of packets, which are routed.
    pub bridge: Option<String>,
    /// The switch's port in it.
    pub port: String,
}

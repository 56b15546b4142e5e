//! Networks and endpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use encap::mtu::Encapsulation;
use encap::{MacAddr, Vni};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::host::yes;
use super::{AddressRange, Extra, Stored, VERSION};
use crate::key::{EndpointId, HostName, Key, NetworkId, NetworkName};

/// How a network is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// IP packets in IP, protocol 4 or 41.
    IpIp,
    /// IP packets in UDP.
    IpUdp,
    /// Ethernet frames in VXLAN.
    #[default]
    Vxlan,
}

impl Mode {
    /// Its name in records and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IpIp => "ipip",
            Self::IpUdp => "ipudp",
            Self::Vxlan => "vxlan",
        }
    }

    /// Whether it carries IP packets by routes, and not frames by MACs.
    #[must_use]
    pub const fn is_routed(self) -> bool {
        match self {
            Self::IpIp | Self::IpUdp => true,
            Self::Vxlan => false,
        }
    }

    /// The encapsulation for MTU arithmetic.
    #[must_use]
    pub const fn encapsulation(self) -> Encapsulation {
        match self {
            Self::IpIp => Encapsulation::IpIp,
            Self::IpUdp => Encapsulation::IpUdp,
            Self::Vxlan => Encapsulation::Vxlan,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An option of a network that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// An option that is chosen when the network is created.
    #[error("network option `{0}` cannot be changed: create another network")]
    Fixed(&'static str),
    /// No mode of this name.
    #[error("mode `{0}` is not known: write vxlan, ipip or ipudp")]
    Mode(String),
    /// No option of this name.
    #[error("network option `{name}` is not known: the options are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A value that the option does not take.
    #[error("network option `{name}` cannot be `{value}`: write {allowed}")]
    Value {
        /// The name.
        name: &'static str,
        /// The value.
        value: String,
        /// What it takes.
        allowed: &'static str,
    },
}

impl FromStr for Mode {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        match text {
            "ipip" => Ok(Self::IpIp),
            "ipudp" => Ok(Self::IpUdp),
            "vxlan" => Ok(Self::Vxlan),
            _ => Err(OptionError::Mode(text.to_owned())),
        }
    }
}

/// How the source of received frames is checked ([`fdb::SourceCheck`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceCheck {
    /// The MAC must not belong to another VTEP.
    #[serde(rename = "mac")]
    Mac,
    /// The address neither.
    #[serde(rename = "mac+ip")]
    MacIp,
    /// The MAC must be known.
    #[serde(rename = "strict")]
    Strict,
}

impl From<SourceCheck> for fdb::SourceCheck {
    fn from(check: SourceCheck) -> Self {
        match check {
            SourceCheck::Mac => Self::Mac,
            SourceCheck::MacIp => Self::MacIp,
            SourceCheck::Strict => Self::Strict,
        }
    }
}

/// Who carries traffic between two endpoints of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Local {
    /// The kernel's bridge.
    #[default]
    Kernel,
    /// The switch, which sees everything then.
    Switch,
}

/// When packets of a routed network are encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulate {
    /// Always.
    #[default]
    Always,
    /// As the probes between each two hosts say.
    Auto,
    /// Only between hosts of different underlay subnets.
    CrossSubnet,
}

impl Encapsulate {
    /// Its name in records and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Auto => "auto",
            Self::CrossSubnet => "cross-subnet",
        }
    }
}

/// A foreign data path that the network shall behave like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// Docker Swarm's overlay: outer DF clear, no broadcast on the wire.
    Swarm,
}

/// The options of a network. `None` is the default, which may depend on other fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkOptions {
    /// Whether MACs are learned; default: only where static VTEPs exist, without `compat=swarm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    /// Whether unknown unicast is flooded; default: where the network learns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flood_unknown: Option<bool>,
    /// Whether broadcast crosses hosts; default: yes, without `compat=swarm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<bool>,
    /// Whether multicast crosses hosts; default: as broadcast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast: Option<bool>,
    /// Frames per second that the containers of one host may have flooded to the others; default:
    /// [`Self::FLOOD_RATE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flood_rate: Option<u32>,
    /// How sources are checked; default: `mac`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_check: Option<SourceCheck>,
    /// Who carries traffic within a host; default: the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    /// A foreign data path to behave like; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
    /// Whether endpoints reach the outside by masquerading; default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_outgoing: Option<bool>,
    /// Whether endpoints reach their own host and hosts reach endpoints; default: as
    /// `nat_outgoing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_access: Option<bool>,
    /// When a routed network encapsulates; default: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulate: Option<Encapsulate>,
    /// Whether a routed network lowers the segment size of TCP connections to its MTU; default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mss_clamp: Option<bool>,
    /// Options of later versions.
    #[serde(flatten)]
    pub other: Extra,
}

impl NetworkOptions {
    /// Frames per second that are flooded where the network does not say.
    pub const FLOOD_RATE: u32 = 10_000;
    /// The most that a network can say.
    pub const FLOOD_RATE_MAX: u32 = 10_000_000;

    /// The names that [`Self::set`] takes.
    pub const NAMES: [&'static str; 12] = [
        "broadcast",
        "compat",
        "encapsulate",
        "flood_rate",
        "flood_unknown",
        "host_access",
        "learning",
        "local",
        "mss_clamp",
        "multicast",
        "nat_outgoing",
        "source_check",
    ];
    /// What stands beside [`Self::NAMES`] when a network is created: it is a field of the record.
    pub const UDP_PORT: &'static str = "udp_port";

    /// Whether MACs are learned, in a network `with` static VTEPs or without: Docker Swarm's overlay
    /// knows all there is to know, and floods nothing.
    #[must_use]
    pub fn learns(&self, with: bool) -> bool {
        self.learning.unwrap_or_else(|| with && self.compat != Some(Compat::Swarm))
    }

    /// Takes one option over from `other`, such as the default.
    ///
    /// # Errors
    ///
    /// [`OptionError::Unknown`].
    pub fn copy(&mut self, name: &str, other: &Self) -> Result<(), OptionError> {
        match name.replace('-', "_").as_str() {
            "broadcast" => self.broadcast = other.broadcast,
            "compat" => self.compat = other.compat,
            "encapsulate" => self.encapsulate = other.encapsulate,
            "flood_rate" => self.flood_rate = other.flood_rate,
            "flood_unknown" => self.flood_unknown = other.flood_unknown,
            "host_access" => self.host_access = other.host_access,
            "learning" => self.learning = other.learning,
            "local" => self.local = other.local,
            "mss_clamp" => self.mss_clamp = other.mss_clamp,
            "multicast" => self.multicast = other.multicast,
            "nat_outgoing" => self.nat_outgoing = other.nat_outgoing,
            "source_check" => self.source_check = other.source_check,
            _ => {
                return Err(Self::unknown(name));
            }
        }
        Ok(())
    }

    /// What is said of a name that is none; the UDP port is one only while a network is created.
    fn unknown(name: &str) -> OptionError {
        if name.replace('-', "_") == Self::UDP_PORT {
            return OptionError::Fixed(Self::UDP_PORT);
        }
        let known: Vec<&str> = Self::NAMES.into_iter().chain([Self::UDP_PORT]).collect();
        OptionError::Unknown { name: name.to_owned(), known: known.join(", ") }
    }

    /// The UDP port that an option of a new network asks for; `None` when it is another option.
    ///
    /// # Errors
    ///
    /// [`OptionError::Value`].
    pub fn udp_port(name: &str, value: &str) -> Result<Option<u16>, OptionError> {
        if name.replace('-', "_") != Self::UDP_PORT {
            return Ok(None);
        }
        let bad = || OptionError::Value {
            name: Self::UDP_PORT,
            value: value.to_owned(),
            allowed: "a port, 1 to 65534: the network has that one and the next",
        };
        let port = value.parse().ok().filter(|port| (1..u16::MAX).contains(port));
        port.map(Some).ok_or_else(bad)
    }

    /// Sets one option from texts, as the command line and Docker give them. `-` in the name is
    /// taken as `_`, an empty value as `true` where the option is a switch.
    ///
    /// # Errors
    ///
    /// [`OptionError`], which names what is allowed.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        fn switch(name: &'static str, value: &str) -> Result<Option<bool>, OptionError> {
            match value {
                "" | "true" | "on" | "yes" | "1" => Ok(Some(true)),
                "false" | "off" | "no" | "0" => Ok(Some(false)),
                _ => Err(OptionError::Value {
                    name,
                    value: value.to_owned(),
                    allowed: "true or false",
                }),
            }
        }
        let bad = |name, allowed| OptionError::Value { name, value: value.to_owned(), allowed };
        match name.replace('-', "_").as_str() {
            "broadcast" => self.broadcast = switch("broadcast", value)?,
            "compat" => {
                self.compat = match value {
                    "swarm" => Some(Compat::Swarm),
                    "none" => None,
                    _ => return Err(bad("compat", "swarm or none")),
                }
            }
            "encapsulate" => {
                self.encapsulate = match value {
                    "always" => Some(Encapsulate::Always),
                    "auto" => Some(Encapsulate::Auto),
                    "cross-subnet" => Some(Encapsulate::CrossSubnet),
                    _ => return Err(bad("encapsulate", "always, cross-subnet or auto")),
                }
            }
            "flood_rate" => {
                let rate =
                    value.parse().ok().filter(|rate| (1..=Self::FLOOD_RATE_MAX).contains(rate));
                self.flood_rate = Some(
                    rate.ok_or_else(|| bad("flood_rate", "frames per second, 1 to 10000000"))?,
                );
            }
            "flood_unknown" => self.flood_unknown = switch("flood_unknown", value)?,
            "host_access" => self.host_access = switch("host_access", value)?,
            "learning" => self.learning = switch("learning", value)?,
            "local" => {
                self.local = match value {
                    "kernel" => Some(Local::Kernel),
                    "switch" => Some(Local::Switch),
                    _ => return Err(bad("local", "kernel or switch")),
                }
            }
            "mss_clamp" => self.mss_clamp = switch("mss_clamp", value)?,
            "multicast" => self.multicast = switch("multicast", value)?,
            "nat_outgoing" => self.nat_outgoing = switch("nat_outgoing", value)?,
            "source_check" => {
                self.source_check = match value {
                    "mac" => Some(SourceCheck::Mac),
                    "mac+ip" => Some(SourceCheck::MacIp),
                    "strict" => Some(SourceCheck::Strict),
                    _ => return Err(bad("source_check", "strict, mac or mac+ip")),
                }
            }
            _ => {
                return Err(Self::unknown(name));
            }
        }
        Ok(())
    }
}

/// A network, at `networks/NETWORK`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Version of the record.
    pub version: u32,
    /// Its id, as in the key.
    pub id: NetworkId,
    /// The user's name for it.
    pub name: NetworkName,
    /// How it is carried.
    pub mode: Mode,
    /// Its number, unique in the store; on the wire in vxlan networks.
    pub vni: Vni,
    /// Its UDP port where that is not each VTEP's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<u16>,
    /// The prefixes that endpoints have addresses of, at most one of each family gives a default
    /// address.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// The inner MTU that was asked for; `None` is the largest that every host can carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Gateway addresses, at most one per subnet; empty means that there is none.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Addresses that are never given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<AddressRange>,
    /// Its options.
    #[serde(default)]
    pub options: NetworkOptions,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// VTEPs outside the store: kernel vxlan, OVS, hardware.
    #[serde(default)]
    pub static_vteps: Vec<StaticVtep>,
    /// When it was created, in seconds since 1970, for people.
    #[serde(default)]
    pub created: u64,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl NetworkRecord {
    /// A vxlan network without subnets and with default options.
    #[must_use]
    pub fn new(id: NetworkId, name: NetworkName, vni: Vni) -> Self {
        Self {
            version: VERSION,
            id,
            name,
            mode: Mode::Vxlan,
            vni,
            udp_port: None,
            subnets: Vec::new(),
            mtu: None,
            gateways: Vec::new(),
            exclude: Vec::new(),
            options: NetworkOptions::default(),
            labels: BTreeMap::new(),
            static_vteps: Vec::new(),
            created: super::now_seconds(),
            extra: Extra::new(),
        }
    }

    /// The subnet that an address lies in.
    #[must_use]
    pub fn subnet_of(&self, ip: IpAddr) -> Option<IpNet> {
        self.subnets.iter().copied().find(|subnet| subnet.contains(&ip))
    }

    /// The gateway of a subnet.
    #[must_use]
    pub fn gateway_of(&self, subnet: IpNet) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| subnet.contains(gateway))
    }
}

impl Stored for NetworkRecord {
    fn contradicts(&self, key: &Key) -> Option<Key> {
        let named = Key::Network(self.id.clone());
        (named != *key).then_some(named)
    }
}

/// A VTEP outside the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StaticVtep {
    /// Its address.
    pub address: IpAddr,
    /// Its UDP port; `None` is the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// MTU of the underlay towards it in bytes; 0 when it is unknown.
    #[serde(default)]
    pub mtu: u16,
    /// Whether the outer UDP checksum is filled in towards it.
    #[serde(default = "yes")]
    pub checksum: bool,
    /// What is known to be behind it; the rest is learned.
    #[serde(default)]
    pub macs: Vec<StaticMac>,
    /// What agents read from kernel devices that know of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imported: Vec<ImportedMac>,
    /// Whether it is here only because of what was imported.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_import: bool,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl StaticVtep {
    /// All that is known behind it, with its addresses; what somebody wrote down comes first.
    pub fn known(&self) -> impl Iterator<Item = (MacAddr, &[IpAddr])> {
        let by_hand = self.macs.iter().map(|known| (known.mac, known.ips.as_slice()));
        by_hand.chain(self.imported.iter().map(|known| (known.mac, known.ips.as_slice())))
    }

    /// A VTEP with nothing known behind it.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            port: None,
            mtu: 0,
            checksum: true,
            macs: Vec::new(),
            imported: Vec::new(),
            by_import: false,
            extra: Extra::new(),
        }
    }
}

/// A MAC behind a static VTEP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticMac {
    /// The MAC.
    pub mac: MacAddr,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// A MAC behind a static VTEP, as agents read it from kernel devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedMac {
    /// The MAC.
    pub mac: MacAddr,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The hosts whose devices say so, sorted. The last one that no longer does removes it.
    pub by: Vec<HostName>,
    /// Which of them told the addresses; `None` once that one has taken its word back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ips_by: Option<HostName>,
    /// Whether it is on that host's own side, which knows best.
    #[serde(default, skip_serializing_if = "is_false")]
    pub local: bool,
}

impl ImportedMac {
    /// A MAC without addresses that nobody has told of.
    #[must_use]
    pub const fn new(mac: MacAddr) -> Self {
        Self { mac, ips: Vec::new(), by: Vec::new(), ips_by: None, local: false }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// An endpoint, at `endpoints/NETWORK/ENDPOINT`. Not under a lease: a host that loses the store
/// keeps its endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// Version of the record.
    pub version: u32,
    /// Its id, as in the key.
    pub id: EndpointId,
    /// Its network, as in the key.
    pub network: NetworkId,
    /// The host it is on.
    pub host: HostName,
    /// The host's incarnation that wrote the record.
    pub incarnation: u64,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses, at most one per subnet.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The user's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user's labels, and what the driver that made it notes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was created, in seconds since 1970, for people.
    #[serde(default)]
    pub created: u64,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Stored for EndpointRecord {
    fn contradicts(&self, key: &Key) -> Option<Key> {
        let named = Key::Endpoint(self.network.clone(), self.id.clone());
        (named != *key).then_some(named)
    }
}

/// The network of a name, at `names/NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NameRecord {
    /// Version of the record.
    pub version: u32,
    /// The network.
    pub network: NetworkId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl NameRecord {
    /// A name of `network`.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        Self { version: VERSION, network, extra: Extra::new() }
    }
}

impl Stored for NameRecord {}

/// The network that holds a VNI, at `vnis/VNI`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VniRecord {
    /// Version of the record.
    pub version: u32,
    /// The network.
    pub network: NetworkId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl VniRecord {
    /// A VNI held by `network`.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        Self { version: VERSION, network, extra: Extra::new() }
    }
}

impl Stored for VniRecord {}

/// What changes with every routed network that is created, at `guards/routed`: two creations that
/// do not know of each other cannot both find it as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardRecord {
    /// Version of the record.
    pub version: u32,
    /// The network that was written last.
    pub network: NetworkId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl GuardRecord {
    /// The guard after `network` was written.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        Self { version: VERSION, network, extra: Extra::new() }
    }
}

impl Stored for GuardRecord {}

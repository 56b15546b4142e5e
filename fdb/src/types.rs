//! What the tables hold: keys, VTEPs, networks, entries.

use core::fmt;
use std::net::IpAddr;

use encap::{MacAddr, Vni};

/// A dense slot of the network table, assigned by the control plane. Slots are indices of an
/// array, so assign the lowest free one; those from [`crate::SLOTS_MAX`] on are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkKey(pub u32);

/// A dense slot of the VTEP table, assigned by the control plane. The rules of [`NetworkKey`]
/// apply. Before a slot is given to another VTEP, the entries that point to it must be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepKey(pub u32);

/// The number of a published snapshot: 0 is the empty one, each publication adds one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// A revision of the store (etcd's `mod_revision` of the record that an entry came from).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// Milliseconds of the caller's monotonic clock, or a span of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The span from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One IP end that encapsulates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// Where datagrams to it are sent, and the source it is known by.
    pub address: IpAddr,
    /// Destination UDP port.
    pub port: u16,
    /// Underlay MTU that it advertises, in bytes; 0 when it is unknown.
    pub mtu: u16,
    /// Further source addresses that are taken as this VTEP.
    pub accept: Vec<IpAddr>,
    /// The host that publishes it; `None` for a static VTEP from outside the store.
    pub host: Option<Box<str>>,
    /// Whether the outer UDP checksum is filled in towards it.
    pub checksum: bool,
    /// Whether its host's lease has ended (its entries stay in use, newer claims beat them).
    pub suspect: bool,
    /// Whether IP-in-IP gets through to it, as far as is known.
    pub ip_in_ip: bool,
}

/// How the source of an inner frame is checked against the tables on receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceCheck {
    /// The inner source MAC must not belong to another VTEP.
    Mac,
    /// As `Mac`, and the source address of ARP, ND and IP must not belong to another MAC.
    MacIp,
    /// The inner source MAC must be known and belong to the sending VTEP.
    Strict,
}

/// The parameters of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The number on the wire.
    pub vni: Vni,
    /// The UDP port that this network's datagrams arrive on; with `vni` the look-up key.
    pub udp_port: u16,
    /// Inner IP MTU in bytes.
    pub mtu: u16,
    /// The user's name for it.
    pub name: Box<str>,
    /// The immutable id of its record.
    pub id: Box<str>,
    /// Whether MACs are learned from received frames.
    pub learning: bool,
    /// Whether frames to an unknown unicast MAC are flooded.
    pub flood_unknown: bool,
    /// Whether broadcast frames are flooded.
    pub flood_broadcast: bool,
    /// Whether multicast frames are flooded.
    pub flood_multicast: bool,
    /// Frames per second that the containers of one host may have flooded.
    pub flood_rate: u32,
    /// Whether ARP and ND requests for an unknown target are flooded.
    pub flood_arp: bool,
    /// Which source check received frames undergo.
    pub source_check: SourceCheck,
    /// Whether the outer DF bit is set.
    pub df: bool,
    /// Whether frames between two containers of this host go through the switch.
    pub switch_local: bool,
    /// What every host with endpoints of this network answers to by itself, if anything.
    pub gateway: Option<Gateway>,
    /// How its packets are carried, where it is a network of packets and not of frames. Such a
    /// network has routes and no MACs, and is not found by `vni`.
    pub routed: Option<Routed>,
}

/// How a network of packets is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// Inside what.
    pub carrier: Carrier,
    /// Whether packets go in UDP to VTEPs that IP-in-IP does not reach ([`Vtep::ip_in_ip`]).
    pub fallback: bool,
    /// Where its packets in UDP arrive.
    pub ports: UdpPorts,
    /// Its addresses, which tell the network of a received packet among those of its domain.
    pub subnets: Box<[Prefix]>,
    /// Whether the segment size that TCP connections announce is lowered to the path.
    pub mss: bool,
}

/// What an IP packet is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// Another IP packet.
    IpIp,
    /// A UDP datagram.
    IpUdp,
}

/// Destination ports of IP packets in UDP, by the family inside, as the kernel's FOU has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpPorts {
    /// Of IPv4 packets.
    pub v4: u16,
    /// Of IPv6 packets.
    pub v6: u16,
}

/// By what a packet without a frame came: together with its destination that tells its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// IP-in-IP, which carries no number of a network.
    Ip,
    /// UDP, to this port.
    Udp(u16),
}

/// A network's gateway: the same on every host, so nothing of it may cross between hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses, with the link-local one where it has IPv6.
    pub addresses: Box<[IpAddr]>,
}

/// Where a MAC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Behind this host's own port.
    Local,
    /// Behind this VTEP.
    Vtep(VtepKey),
}

/// Who says so. Precedence: static over store over learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Learned from received frames; `at` is when the source was last confirmed.
    Learned {
        /// Time of the latest confirmation.
        at: Millis,
    },
    /// Configured on this host.
    Static,
    /// From a record of the store.
    Store {
        /// The revision of that record.
        revision: Revision,
    },
}

impl Origin {
    /// The origin without its detail.
    #[must_use]
    pub const fn kind(self) -> OriginKind {
        match self {
            Self::Learned { .. } => OriginKind::Learned,
            Self::Static => OriginKind::Static,
            Self::Store { .. } => OriginKind::Store,
        }
    }
}

/// An [`Origin`] without its detail, in order of precedence: the greater shadows the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OriginKind {
    /// Learned from received frames.
    Learned,
    /// From a record of the store.
    Store,
    /// Configured on this host.
    Static,
}

impl fmt::Display for OriginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Learned => "learned",
            Self::Store => "store",
            Self::Static => "static",
        })
    }
}

/// The destination of a MAC within a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacEntry {
    /// Where it is.
    pub place: Place,
    /// Who says so.
    pub origin: Origin,
}

/// The MAC of an IP address within a network, for ARP and ND suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbor {
    /// The owner's MAC.
    pub mac: MacAddr,
    /// Where the owner is.
    pub place: Place,
    /// Who says so.
    pub origin: Origin,
}

/// A range of addresses with a common beginning, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits that holds `ip`; `None` for more bits than the family has. An
    /// IPv4-mapped address is taken as IPv4 where the length allows it.
    #[must_use]
    pub fn new(ip: IpAddr, len: u8) -> Option<Self> {
        let (address, len) = match (ip, ip.to_canonical()) {
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if len >= 96 => (mapped, len - 96),
            _ => (ip, len),
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        (len <= most).then(|| Self { address: crate::routes::masked(address, len), len })
    }

    /// The first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits are common.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is a length in bits")]
    pub const fn len(self) -> u8 {
        self.len
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// The destination of a range of addresses within a routed network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where packets to it go.
    pub place: Place,
    /// Who says so.
    pub origin: Origin,
}

/// What the writer's precedence rules read of an entry.
pub(crate) trait Claim: Copy + Eq {
    /// Who says so.
    fn origin(&self) -> Origin;
}

impl Claim for MacEntry {
    fn origin(&self) -> Origin {
        self.origin
    }
}

impl Claim for Route {
    fn origin(&self) -> Origin {
        self.origin
    }
}

impl Claim for Neighbor {
    fn origin(&self) -> Origin {
        self.origin
    }
}

//! What we read of the kernel's links and forwarding entries.

use encap::MacAddr;
use netlink_packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

/// The kinds of link that we tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// Anything else.
    Other,
    /// A TUN or TAP.
    Tun,
    /// An end of a veth pair.
    Veth,
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Alias, empty when it has none.
    pub alias: String,
    /// What it is.
    pub kind: Kind,
    /// Hardware address; zero for links that have none of six bytes.
    pub mac: MacAddr,
    /// IP MTU in bytes.
    pub mtu: u32,
    /// Set up by configuration.
    pub up: bool,
    /// Able to carry frames (operational state, RFC 2863).
    pub operational: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// For a veth: index of the other end, in its own namespace.
    pub peer: Option<u32>,
    /// For a veth whose other end is in another namespace: that namespace's number in this one.
    pub peer_namespace: Option<i32>,
    /// Settings of a bridge.
    pub bridge: Option<BridgeView>,
    /// Settings of a bridge port.
    pub port: Option<PortView>,
}

/// The settings of a bridge that we care about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeView {
    /// Spanning tree is on.
    pub stp: bool,
    /// Forward delay, in centiseconds.
    pub forward_delay_cs: u32,
    /// IGMP and MLD snooping is on.
    pub multicast_snooping: bool,
    /// VLAN filtering is on.
    pub vlan_filtering: bool,
    /// Passes frames to iptables, ip6tables or arptables whatever the sysctl says.
    pub netfilter: bool,
}

impl Default for BridgeView {
    /// What ours are like.
    fn default() -> Self {
        Self {
            stp: false,
            forward_delay_cs: 0,
            multicast_snooping: false,
            vlan_filtering: false,
            netfilter: false,
        }
    }
}

impl BridgeView {
    /// The attributes that turn `present` into these settings, or a new bridge. What is off already
    /// is not switched off: kernels without VLAN filtering or bridge-netfilter refuse even that.
    pub(super) fn attributes(self, present: Option<Self>) -> Vec<InfoBridge> {
        let stp = if self.stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
        let mut attributes = vec![
            InfoBridge::StpState(stp),
            InfoBridge::ForwardDelay(self.forward_delay_cs),
            InfoBridge::MulticastSnooping(self.multicast_snooping),
        ];
        let present = present.unwrap_or_default();
        if present.vlan_filtering != self.vlan_filtering {
            attributes.push(InfoBridge::VlanFiltering(self.vlan_filtering));
        }
        if present.netfilter != self.netfilter {
            attributes.extend([
                InfoBridge::NfCallIpTables(self.netfilter),
                InfoBridge::NfCallIp6Tables(self.netfilter),
                InfoBridge::NfCallArpTables(self.netfilter),
            ]);
        }
        attributes
    }

    fn read(infos: &[InfoBridge]) -> Self {
        let mut view = Self::default();
        for info in infos {
            match info {
                InfoBridge::StpState(state) => view.stp = *state != BridgeStpState::Disabled,
                InfoBridge::ForwardDelay(delay) => view.forward_delay_cs = *delay,
                InfoBridge::MulticastSnooping(on) => view.multicast_snooping = *on,
                InfoBridge::VlanFiltering(on) => view.vlan_filtering = *on,
                InfoBridge::NfCallIpTables(on)
                | InfoBridge::NfCallIp6Tables(on)
                | InfoBridge::NfCallArpTables(on) => view.netfilter |= *on,
                _ => (),
            }
        }
        view
    }
}

/// The settings of a bridge port that we care about, and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortView {
    /// Learns source addresses.
    pub learning: bool,
    /// Takes frames only from MACs that have an FDB entry on it.
    pub locked: bool,
    /// Cannot exchange frames with other isolated ports.
    pub isolated: bool,
    /// Gets frames to unknown unicast addresses.
    pub flood: bool,
    /// Gets multicast.
    pub multicast_flood: bool,
    /// Gets broadcast.
    pub broadcast_flood: bool,
    /// Gets its own frames back.
    pub hairpin: bool,
    /// Forwards frames now.
    pub forwarding: bool,
}

impl PortView {
    /// The port of an endpoint: gets what is sent to its MAC, broadcast and multicast; sends from
    /// its MAC only.
    pub(super) fn endpoint(isolated: bool) -> Self {
        Self {
            learning: false,
            locked: true,
            isolated,
            flood: false,
            multicast_flood: true,
            broadcast_flood: true,
            hairpin: false,
            forwarding: true,
        }
    }

    /// The switch's TAP: gets all that is not for an endpoint here.
    pub(super) fn tap() -> Self {
        Self { locked: false, flood: true, ..Self::endpoint(false) }
    }

    /// Whether the settings are the same, whatever the state.
    pub(super) fn same_settings(self, other: Self) -> bool {
        self == Self { forwarding: self.forwarding, ..other }
    }

    pub(super) fn attributes(self) -> Vec<InfoBridgePort> {
        vec![
            InfoBridgePort::Learning(self.learning),
            InfoBridgePort::Locked(self.locked),
            InfoBridgePort::Isolated(self.isolated),
            InfoBridgePort::UnicastFlood(self.flood),
            InfoBridgePort::MulticastFlood(self.multicast_flood),
            InfoBridgePort::BroadcastFlood(self.broadcast_flood),
            InfoBridgePort::HairpinMode(self.hairpin),
        ]
    }

    fn read(infos: &[InfoBridgePort]) -> Self {
        let mut view = Self { locked: false, forwarding: false, ..Self::endpoint(false) };
        for info in infos {
            match info {
                InfoBridgePort::Learning(on) => view.learning = *on,
                InfoBridgePort::Locked(on) => view.locked = *on,
                InfoBridgePort::Isolated(on) => view.isolated = *on,
                InfoBridgePort::UnicastFlood(on) => view.flood = *on,
                InfoBridgePort::MulticastFlood(on) => view.multicast_flood = *on,
                InfoBridgePort::BroadcastFlood(on) => view.broadcast_flood = *on,
                InfoBridgePort::HairpinMode(on) => view.hairpin = *on,
                InfoBridgePort::State(state) => {
                    view.forwarding = *state == BridgePortState::Forwarding;
                }
                _ => (),
            }
        }
        view
    }
}

impl Link {
    pub(super) fn read(message: &LinkMessage) -> Option<Self> {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            kind: Kind::Other,
            mac: MacAddr::ZERO,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            operational: false,
            master: None,
            peer: None,
            peer_namespace: None,
            bridge: None,
            port: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Address(bytes) => {
                    link.mac = MacAddr::from_slice(bytes).unwrap_or(MacAddr::ZERO);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::OperState(state) => {
                    link.operational = matches!(state, State::Up | State::Unknown);
                }
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkNetNsId(number) => link.peer_namespace = Some(*number),
                LinkAttribute::LinkInfo(infos) => link.read_infos(infos),
                _ => (),
            }
        }
        if link.kind != Kind::Veth {
            link.peer = None;
            link.peer_namespace = None;
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn read_infos(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Bridge) => self.kind = Kind::Bridge,
                LinkInfo::Kind(InfoKind::Tun) => self.kind = Kind::Tun,
                LinkInfo::Kind(InfoKind::Veth) => self.kind = Kind::Veth,
                LinkInfo::Data(InfoData::Bridge(infos)) => {
                    self.bridge = Some(BridgeView::read(infos));
                }
                LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
                    self.port = Some(PortView::read(infos));
                }
                _ => (),
            }
        }
    }
}

/// An entry of a bridge's forwarding database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: MacAddr,
    /// Index of the port.
    pub port: u32,
    /// Index of the bridge; `None` for an entry of the port's own filter.
    pub bridge: Option<u32>,
    /// What kind of entry it is.
    pub kind: FdbKind,
}

/// Kinds of forwarding entry, by the words of bridge(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdbKind {
    /// Learned from traffic, or added to age.
    Dynamic,
    /// An address of the bridge or of a port itself (`permanent`).
    Local,
    /// Added to stay.
    Static,
}

impl FdbEntry {
    pub(super) fn read(message: &NeighbourMessage) -> Option<Self> {
        let mut mac = None;
        let mut bridge = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_slice(bytes),
                NeighbourAttribute::Controller(index) => bridge = Some(*index),
                _ => (),
            }
        }
        let kind = match message.header.state {
            NeighbourState::Permanent => FdbKind::Local,
            NeighbourState::Noarp => FdbKind::Static,
            _ => FdbKind::Dynamic,
        };
        let own = message.header.flags.contains(NeighbourFlags::Own);
        let bridge = bridge.filter(|_| !own);
        Some(Self { mac: mac?, port: message.header.ifindex, bridge, kind })
    }
}

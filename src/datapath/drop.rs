//! Drop reasons: why a frame did not go on. Each has one name, one counter and one explanation.

/// Which way a frame was going when it was dropped, as seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a port to the underlay.
    Outbound,
    /// From the underlay to a port.
    Inbound,
}

impl Direction {
    /// `outbound` or `inbound`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

macro_rules! reasons {
    ($($(#[$attr:meta])* $variant:ident = $name:literal, $direction:ident, $text:literal, $hint:literal;)*) => {
        /// Why a frame was dropped. Names are stable: they are metric labels and listing keys.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $text] $(#[$attr])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Which way the frame was going.
            #[must_use]
            pub fn direction(self) -> Direction {
                match self { $(Self::$variant => Direction::$direction,)* }
            }

            /// What it means, one sentence.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What an operator looks at next.
            #[must_use]
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }
        }
    };
}

reasons! {
    // Outbound, in the order of the checks.
    OutPortOverflow = "out_port_overflow", Outbound,
        "The port's queue had no room for a frame: the sandboxes send faster than the workers read.",
        "`skybridge stats --workers` shows whether one worker has all the load; give the agent more CPU";
    OutMalformed = "out_malformed", Outbound,
        "A frame from the port is shorter than its headers say, or its virtio header makes no sense.",
        "a sandbox sends crafted frames; a capture on its interface shows them";
    OutSourceInvalid = "out_source_invalid", Outbound,
        "The source MAC of a frame from the port is zero or a group address.",
        "a sandbox sends crafted frames; a capture on its interface shows them";
    OutSourceNotLocal = "out_source_not_local", Outbound,
        "The source MAC, of a packet the source address, belongs to an endpoint of another host.",
        "an endpoint moved and the old sandbox still sends, or a sandbox forges its address";
    OutTtl = "out_ttl", Outbound,
        "A packet without any TTL or hop limit left, which must not be carried on (RFC 2003 section 3.1).",
        "a routing loop, or a sandbox that sends crafted packets";
    OutLoop = "out_loop", Outbound,
        "A packet from a VTEP address of this host, or from or to the VTEP that it would be sent to (RFC 2003 section 3.2).",
        "a route leads the underlay into the overlay: compare `ip route` of the host with the network's subnets";
    OutSourceForeign = "out_source_foreign", Outbound,
        "The source address of a packet is in none of the network's subnets.",
        "a sandbox sends with an address that is not its own; `skybridge endpoints` lists the addresses";
    OutGroup = "out_group", Outbound,
        "A packet to a multicast or broadcast address, which networks of packets do not carry.",
        "normal for neighbor discovery and service announcements; use a vxlan network for multicast";
    OutGateway = "out_gateway", Outbound,
        "A frame from or to the MAC of the network's gateway, which every host has for its own sandboxes.",
        "normal for a moment while a gateway is set up; lasting: `skybridge status` shows the uplinks";
    OutDestinationLocal = "out_destination_local", Outbound,
        "The destination is an endpoint of this host, whose bridge delivers it.",
        "normal for a moment after an attach; `skybridge fdb` shows the entry";
    OutDestinationUnknown = "out_destination_unknown", Outbound,
        "No endpoint has the destination MAC, and the network does not flood unknown unicast.",
        "`skybridge endpoints` lists who exists; a stale neighbor entry in the sandbox heals by itself";
    OutRouteLocal = "out_route_local", Outbound,
        "The destination address belongs to this host, where no endpoint has it; the sender was told by ICMP.",
        "`skybridge endpoints` lists who exists; normal for a moment after a detach";
    OutRouteUnknown = "out_route_unknown", Outbound,
        "No host has the destination address; the sender was told by ICMP.",
        "`skybridge routes` lists which host has which addresses; is the target attached?";
    OutNeighborUnknown = "out_neighbor_unknown", Outbound,
        "ARP or neighbor solicitation for an address that no endpoint has.",
        "`skybridge neighbors` lists the addresses; is the target attached?";
    OutFloodDisabled = "out_flood_disabled", Outbound,
        "Broadcast or multicast in a network that does not carry it.",
        "the network options `broadcast` and `multicast` decide";
    OutFloodBudget = "out_flood_budget", Outbound,
        "Broadcast, multicast or unknown unicast beyond the network's rate budget on this host.",
        "a sandbox floods; the network option `flood_rate` is the budget";
    OutLinkLocalControl = "out_link_local_control", Outbound,
        "A frame of a link-local control protocol (01:80:c2:00:00:0x: STP, LLDP, pause) never leaves a host.",
        "normal where a sandbox runs a bridge or LLDP";
    OutTooBig = "out_too_big", Outbound,
        "The frame does not fit the path to its VTEP; its sender was told by ICMP where its protocol has that.",
        "`skybridge status` shows the network's MTU, `skybridge hosts` each host's";
    OutVtepUnknown = "out_vtep_unknown", Outbound,
        "The table names a VTEP that it does not describe.",
        "transient while a host leaves; `skybridge hosts` shows it";
    OutFamilyUnavailable = "out_family_unavailable", Outbound,
        "The VTEP has an address of a family in which this host has no VTEP.",
        "give this agent a VTEP address of that family";
    OutUnderlayBusy = "out_underlay_busy", Outbound,
        "The underlay socket's buffer stayed full.",
        "the underlay is slower than the load, or its interface is down";
    OutUnderlayError = "out_underlay_error", Outbound,
        "The kernel refused to send to the VTEP: no route, unreachable, or a local firewall.",
        "`ip route get` towards the VTEP, and the host's output rules";
    OutPathMtu = "out_path_mtu", Outbound,
        "The path to the VTEP takes less than was known; it is known from now on.",
        "a few after a path change are normal; many mean ICMP is filtered on the path";
    // Inbound, in the order of the checks.
    InUnderlayOverflow = "in_underlay_overflow", Inbound,
        "The kernel had no room for a datagram in a receive socket, or its outer checksum was wrong.",
        "`skybridge stats` shows how full the buffer was; give the agent more CPU";
    InTruncated = "in_truncated", Inbound,
        "A datagram is shorter than a VXLAN header and an Ethernet header, or was cut by the kernel.",
        "something other than VXLAN is sent to this port";
    InVniFlagClear = "in_vni_flag_clear", Inbound,
        "The VXLAN header does not have the I flag, so carries no valid VNI (RFC 7348 section 5).",
        "something other than VXLAN is sent to this port";
    InMalformed = "in_malformed", Inbound,
        "What IP-in-IP or UDP carried is no whole IP packet.",
        "something else is sent to this port, or the sending VTEP forwards crafted packets";
    InFamily = "in_family", Inbound,
        "The packet inside is not of the family that its protocol number or UDP port is for.",
        "the sender's two ports are exchanged: the lower one is for IPv4 inside, the next for IPv6";
    InVtepUnknown = "in_vtep_unknown", Inbound,
        "The outer source address is no VTEP of any host or static entry.",
        "`skybridge hosts` lists the known ones; a host behind NAT sends from another address";
    InVniUnknown = "in_vni_unknown", Inbound,
        "No network on this host has that VNI on that port.",
        "normal for a moment after the last endpoint detached; `skybridge network ls` shows VNIs";
    InNetworkUnknown = "in_network_unknown", Inbound,
        "No network of this host that is carried this way has the destination address of the packet.",
        "normal for a moment after the last endpoint detached; `skybridge network ls` shows the subnets";
    InVtepNotMember = "in_vtep_not_member", Inbound,
        "The VTEP is a static one of another network.",
        "`skybridge network vtep ls` shows which VTEPs a network has";
    InSourceInvalid = "in_source_invalid", Inbound,
        "The inner source MAC is zero or a group address, or that of a packet no host's address.",
        "the sending VTEP forwards crafted frames";
    InGateway = "in_gateway", Inbound,
        "A frame from another host from or to the MAC of the network's gateway, or with its address as the source.",
        "a forgery behind that VTEP, or a router there with the gateway's address: `skybridge network vtep add --mac MAC=IP` tells of one";
    InSourceOwn = "in_source_own", Inbound,
        "The inner source MAC or address is an endpoint of this host: a loop, a forgery, or a move not yet known.",
        "`skybridge endpoints` shows where it lives";
    InSourceSpoofed = "in_source_spoofed", Inbound,
        "The inner source MAC, of a packet the source address, belongs to an endpoint behind another VTEP.",
        "a move not yet known there, or a forgery; `skybridge fdb` and `skybridge routes` show the owner";
    InSourceForeign = "in_source_foreign", Inbound,
        "The inner source address of a packet is in none of the network's subnets.",
        "a forgery behind that VTEP, or its host does not masquerade what it lets into the network";
    InSourceAddressSpoofed = "in_source_address_spoofed", Inbound,
        "The inner source IP, or an address that ARP or neighbor discovery claim, belongs to an endpoint with another MAC.",
        "a forgery behind that VTEP; `skybridge neighbors` shows the owner";
    InSourcePending = "in_source_pending", Inbound,
        "The inner source MAC or address has no owner yet, and the network's source check is strict.",
        "normal for a moment after an attach elsewhere; lasting: the sender is not in the store";
    InNested = "in_nested", Inbound,
        "The inner packet is itself VXLAN, IP-in-IP or IP in UDP for a VTEP of this host.",
        "a loop: an overlay route swallows its own underlay";
    InTtl = "in_ttl", Inbound,
        "The packet inside has no TTL or hop limit left (RFC 2003 section 3.1).",
        "the sending VTEP forwards crafted packets";
    InDatagramSizes = "in_datagram_sizes", Inbound,
        "UDP longer than the MTU, joined by a kernel on the way: IP-in-IP does not tell the sizes of the datagrams in it.",
        "switch UDP segmentation off at the sending kernel (`ethtool -K DEVICE tx-udp-segmentation off`), or use `--mode ipudp`";
    InEcn = "in_ecn", Inbound,
        "Congestion was marked outside a packet that does not support ECN (RFC 6040 section 4.2).",
        "congestion on the underlay; the inner sender must see a loss";
    InDestinationNotHere = "in_destination_not_here", Inbound,
        "The destination MAC or address is not an endpoint of this host.",
        "the sender's table is stale for a moment after a move; lasting: compare `skybridge fdb`, or `skybridge routes`, on both";
    InLinkLocalControl = "in_link_local_control", Inbound,
        "A frame of a link-local control protocol arrived from another host.",
        "the sending VTEP bridges control frames";
    InPortError = "in_port_error", Inbound,
        "The kernel refused the frame at the port.",
        "is the network's bridge up? `skybridge enter NETWORK ip -d link`";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_their_direction() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            let prefix = match reason.direction() {
                Direction::Inbound => "in_",
                Direction::Outbound => "out_",
            };
            assert!(reason.name().starts_with(prefix));
        }
    }
}

//! An IP packet as both directions of a network of packets see it: read once, asked by each check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::{icmpv4, icmpv6, ipip, ipv4, ipv6, udp};

/// The source of ICMP errors of an IPv4 router without an address of its own (RFC 7600).
const DUMMY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8));

/// The private router of a network of packets, the same on every host.
const ROUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const ROUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// What the checks read of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS byte or traffic class.
    pub tos: u8,
    /// What is inside; of IPv6 the first extension header, if any.
    pub protocol: u8,
    /// A part of a packet.
    pub fragment: bool,
    /// Bytes of the IP header without extension headers.
    pub header_len: usize,
    /// Bytes of the packet as it says itself.
    pub len: usize,
}

impl Packet {
    /// `None` for what is no IP packet, or not all of one.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match ipip::protocol_of(bytes)? {
            ipip::IPV4 => {
                let packet = ipv4::Packet::parse(bytes)?;
                Some(Self {
                    source: packet.source().into(),
                    destination: packet.destination().into(),
                    ttl: packet.ttl(),
                    tos: packet.tos(),
                    protocol: packet.protocol(),
                    fragment: packet.is_fragment(),
                    header_len: packet.header_len(),
                    len: packet.total_len(),
                })
            }
            _ => {
                let packet = ipv6::Packet::parse(bytes)?;
                Some(Self {
                    source: packet.source().into(),
                    destination: packet.destination().into(),
                    ttl: packet.hop_limit(),
                    tos: packet.traffic_class(),
                    protocol: packet.next_header(),
                    fragment: false,
                    header_len: ipv6::HEADER_LEN,
                    len: packet.total_len(),
                })
            }
        }
    }

    /// Whether its source is one host's address.
    #[must_use]
    pub fn has_host_source(&self) -> bool {
        let broadcast = matches!(self.source, IpAddr::V4(source) if source.is_broadcast());
        !self.source.is_unspecified()
            && !self.source.is_multicast()
            && !self.source.is_loopback()
            && !broadcast
    }

    /// Whether it is for a group of hosts.
    #[must_use]
    pub fn is_for_group(&self) -> bool {
        let broadcast = matches!(self.destination, IpAddr::V4(to) if to.is_broadcast());
        broadcast || self.destination.is_multicast() || self.destination.is_unspecified()
    }

    /// Whether it comes from a router on the way that has no address of its own.
    #[must_use]
    pub fn is_of_nameless_router(&self) -> bool {
        self.source == DUMMY && self.protocol == icmpv4::PROTOCOL
    }

    /// Whose packet the private router reports an error about, as `bytes` say, which are the packet's:
    /// where that one went.
    #[must_use]
    pub fn reported_by_router(&self, bytes: &[u8]) -> Option<IpAddr> {
        match self.source {
            ROUTER_V4 => icmpv4::quoted_destination(bytes).map(IpAddr::V4),
            ROUTER_V6 => icmpv6::quoted_destination(bytes).map(IpAddr::V6),
            _ => None,
        }
    }

    /// Gives an ICMP error another source, in `bytes` too.
    pub fn rename(&mut self, bytes: &mut [u8], source: IpAddr) {
        match source {
            IpAddr::V4(source) => ipv4::set_source(bytes, source),
            IpAddr::V6(source) => icmpv6::set_source(bytes, source),
        }
        self.source = source;
    }

    /// The destination port of a UDP packet that is whole.
    #[must_use]
    pub fn udp_port(&self, bytes: &[u8]) -> Option<u16> {
        let port = bytes.get(self.header_len + 2..)?.first_chunk()?;
        (self.protocol == udp::PROTOCOL && !self.fragment).then(|| u16::from_be_bytes(*port))
    }

    /// Whether it is a tunnelled packet for one of `own`, a loop: `bytes` are the packet's.
    #[must_use]
    pub fn is_tunnel_to(&self, bytes: &[u8], own: &[(IpAddr, u16)]) -> bool {
        let ip_in_ip = matches!(self.protocol, ipip::IPV4 | ipip::IPV6);
        let port = self.udp_port(bytes);
        own.iter().any(|(address, listened)| {
            *address == self.destination && (ip_in_ip || port == Some(*listened))
        })
    }
}

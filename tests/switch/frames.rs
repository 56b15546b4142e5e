//! Frames that the cases send, and what is expected of those that arrive.

use std::net::{Ipv4Addr, Ipv6Addr};

use encap::checksum::Sum;
use encap::ethernet::{self, EtherType};
use encap::{MacAddr, arp, icmpv6, ipv4, ipv6, ndp, segment, tcp, udp, vlan, vnet};

pub const ETHERNET: usize = ethernet::HEADER_LEN;

/// The MAC address of endpoint `n`.
pub fn mac(n: u8) -> MacAddr {
    MacAddr([0, 0, 0x5e, 0, 0x53, n])
}

/// The IPv4 address of endpoint `n`.
pub fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, n)
}

/// The IPv6 address of endpoint `n`.
pub fn v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n))
}

/// A TCP or UDP packet between two endpoints.
#[derive(Clone, Debug)]
pub struct Spec {
    pub from: u8,
    pub to: u8,
    pub ipv6: bool,
    pub tcp: bool,
    pub port: u16,
    pub sequence: u32,
    pub flags: u16,
    pub ident: u16,
    pub tos: u8,
    pub payload: Vec<u8>,
}

impl Spec {
    pub fn new(from: u8, to: u8, ipv6: bool, tcp: bool, payload: usize) -> Self {
        Self {
            from,
            to,
            ipv6,
            tcp,
            port: 40_000,
            sequence: 7,
            flags: tcp::ACK,
            ident: 1,
            tos: 0,
            payload: (0..payload).map(|i| (i * 31 + i / 251) as u8).collect(),
        }
    }

    fn l4(&self) -> usize {
        ETHERNET + if self.ipv6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN }
    }

    fn check_offset(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// All headers in bytes.
    pub fn header_len(&self) -> usize {
        self.l4() + if self.tcp { tcp::HEADER_LEN } else { udp::HEADER_LEN }
    }

    /// The frame with a checksum of zero, and the pseudo-header's sum.
    fn raw(&self) -> (Vec<u8>, Sum) {
        let (mut l4, protocol) = if self.tcp {
            let header = tcp::Header {
                source: self.port,
                destination: 443,
                sequence: self.sequence,
                acknowledgement: 99,
                flags: self.flags,
                window: 512,
            };
            (header.emit(0).unwrap().to_vec(), tcp::PROTOCOL)
        } else {
            (udp::emit(self.port, 443, self.payload.len()).unwrap().to_vec(), udp::PROTOCOL)
        };
        l4.extend(&self.payload);
        let link = if self.ipv6 { EtherType::IPV6 } else { EtherType::IPV4 };
        let mut frame = ethernet::emit(mac(self.to), mac(self.from), link).to_vec();
        let mut pseudo = Sum::ZERO.u16(u16::from(protocol)).u16(l4.len() as u16);
        if self.ipv6 {
            let (source, destination) = (v6(self.from), v6(self.to));
            let header = ipv6::Header {
                traffic_class: self.tos,
                flow_label: 0,
                next_header: protocol,
                hop_limit: 64,
                source,
                destination,
            };
            frame.extend(header.emit(l4.len()).unwrap());
            pseudo = pseudo.bytes(&source.octets()).bytes(&destination.octets());
        } else {
            let (source, destination) = (v4(self.from), v4(self.to));
            let header = ipv4::Header {
                tos: self.tos,
                ident: self.ident,
                dont_fragment: true,
                ttl: 64,
                protocol,
                source,
                destination,
            };
            frame.extend(header.emit(l4.len()).unwrap());
            pseudo = pseudo.bytes(&source.octets()).bytes(&destination.octets());
        }
        frame.extend(l4);
        (frame, pseudo)
    }

    /// With a complete checksum.
    pub fn whole(&self) -> Vec<u8> {
        let (mut frame, pseudo) = self.raw();
        let sum = pseudo.sum(Sum::of(&frame[self.l4()..]));
        let check = if self.tcp { sum.finish() } else { sum.finish_udp() };
        let at = self.l4() + self.check_offset();
        frame[at..at + 2].copy_from_slice(&check.to_be_bytes());
        frame
    }

    /// As a container's kernel leaves it to a card: a partial checksum, and a super-frame when
    /// `gso_size` is not 0.
    pub fn partial(&self, gso_size: u16) -> (vnet::Header, Vec<u8>) {
        let (mut frame, pseudo) = self.raw();
        let at = self.l4() + self.check_offset();
        frame[at..at + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
        let gso_type = match (gso_size, self.tcp, self.ipv6) {
            (0, ..) => vnet::GSO_NONE,
            (_, true, false) => vnet::GSO_TCPV4,
            (_, true, true) => vnet::GSO_TCPV6,
            (_, false, _) => vnet::GSO_UDP_L4,
        };
        let header = vnet::Header {
            flags: vnet::NEEDS_CSUM,
            gso_type,
            hdr_len: self.header_len() as u16,
            gso_size,
            csum_start: self.l4() as u16,
            csum_offset: self.check_offset() as u16,
        };
        (header, frame)
    }
}

/// What a receiver makes of one write to its port: frames with complete checksums, in order.
pub fn cut(header: &vnet::Header, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut frame = frame.to_vec();
    match segment::plan(header, &mut frame, usize::MAX).unwrap() {
        segment::Plan::Single => vec![frame],
        segment::Plan::Segments(segments) => (0..segments.count())
            .map(|i| {
                let mut out = vec![0; segments.frame_len(i)];
                assert_eq!(segments.write(i, &frame, &mut out), out.len());
                out
            })
            .collect(),
    }
}

/// Whether the IP header's and the transport's checksum of an untagged frame are right.
pub fn checksums_verify(frame: &[u8]) -> bool {
    let packet = &frame[ETHERNET..];
    let (pseudo, l4, network) = if packet[0] >> 4 == 4 {
        let ip = ipv4::Packet::parse(packet).unwrap();
        let sum = Sum::of(&ip.source().octets()).bytes(&ip.destination().octets());
        (sum.u16(u16::from(ip.protocol())), ip.payload().to_vec(), ip.checksum_verifies())
    } else {
        let ip = ipv6::Packet::parse(packet).unwrap();
        let sum = Sum::of(&ip.source().octets()).bytes(&ip.destination().octets());
        (sum.u16(u16::from(ip.next_header())), ip.payload().to_vec(), true)
    };
    network && pseudo.u16(l4.len() as u16).sum(Sum::of(&l4)).verifies()
}

/// An untagged frame behind a priority tag (VLAN 0).
pub fn priority_tagged(frame: &[u8]) -> Vec<u8> {
    let inner = EtherType(u16::from_be_bytes([frame[12], frame[13]]));
    let mut tagged = frame[..12].to_vec();
    tagged.extend(EtherType::VLAN.0.to_be_bytes());
    tagged.extend(vlan::emit(5, 0, inner));
    tagged.extend(&frame[ETHERNET..]);
    tagged
}

/// Not IP: a local experimental type (IEEE 802 section 9.2.3) with `len` bytes of payload.
pub fn other(to: MacAddr, from: MacAddr, len: usize) -> Vec<u8> {
    let mut frame = ethernet::emit(to, from, EtherType(0x88b5)).to_vec();
    frame.resize(ETHERNET + len, 0xa5);
    frame
}

/// An ARP request by endpoint `from` for the address of `target`; a probe without a `sender`.
pub fn arp_request(from: u8, sender: Option<u8>, target: u8) -> Vec<u8> {
    let request = arp::Repr {
        operation: arp::REQUEST,
        sender_mac: mac(from),
        sender: sender.map_or(Ipv4Addr::UNSPECIFIED, v4),
        target_mac: MacAddr::ZERO,
        target: v4(target),
    };
    let mut frame = ethernet::emit(MacAddr::BROADCAST, mac(from), EtherType::ARP).to_vec();
    frame.extend(request.emit());
    frame
}

/// A neighbor solicitation by endpoint `from` for the address of `target`; duplicate address
/// detection without a `sender`.
pub fn solicitation(from: u8, sender: Option<u8>, target: u8) -> Vec<u8> {
    let source = sender.map_or(Ipv6Addr::UNSPECIFIED, v6);
    let destination = ndp::solicited_node(v6(target));
    let mut message = vec![ndp::SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(v6(target).octets());
    if sender.is_some() {
        message.extend([1, 1]);
        message.extend(mac(from).0);
    }
    let check = icmpv6::sum(source, destination, &message).finish();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        next_header: icmpv6::PROTOCOL,
        hop_limit: 255,
        source,
        destination,
    };
    let [.., a, b, c, d] = destination.octets();
    let group = MacAddr([0x33, 0x33, a, b, c, d]);
    let mut frame = ethernet::emit(group, mac(from), EtherType::IPV6).to_vec();
    frame.extend(header.emit(message.len()).unwrap());
    frame.extend(message);
    frame
}

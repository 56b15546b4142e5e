//! Sending hellos, by every way.
//!
//! # Theory of operation
//!
//! ```text
//!   in UDP    datagram to the other host's port of IP in UDP, the hello is its payload
//!   in IP     a whole outer header before it, through a raw socket that never receives
//!   direct    the hello as it is, through the same socket, given to the other VTEP as the next hop
//! ```
//!
//! A raw socket of protocol 255 (`IPPROTO_RAW`) takes packets with their headers and gets none
//! (raw(7)). The kernel looks up the way to the address that the call names, whatever the header
//! says, so a direct hello needs no route and takes the way that packets would take with one.
//!
//! What two hosts send each other directly must not look like one connection to a firewall that lets
//! answers pass and nothing else: each has a source port of its own, and another one every few
//! seconds, as the packets of containers have.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use encap::probe::{self, Hello, Way};
use encap::{ipip, ipv4, ipv6};
use socket2::{Domain, Protocol, Socket, Type};

const TTL: u8 = 64;
/// Hellos that have one source port.
const SAME_PORT: u32 = 8;
const OUTER_MAX: usize = ipv6::HEADER_LEN;

/// The sockets of one of this host's VTEP addresses.
#[derive(Debug)]
pub(super) struct Sender {
    source: IpAddr,
    /// What other hosts know the address as, which is another one behind NAT: tunnelled hellos say it
    /// inside, where nobody translates.
    advertised: IpAddr,
    raw: Socket,
    udp: UdpSocket,
}

impl Sender {
    /// Opens the sockets at `source`, which others know as `advertised`. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// The address is not here, or the capability is missing.
    pub(super) fn open(source: IpAddr, advertised: IpAddr) -> io::Result<Self> {
        let at = SocketAddr::new(source, 0);
        let domain = Domain::for_address(at);
        let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        raw.set_nonblocking(true)?;
        let udp = UdpSocket::bind(at)?;
        udp.set_nonblocking(true)?;
        Ok(Self { source, advertised, raw, udp })
    }

    /// The address that they send from.
    #[must_use]
    pub(super) fn source(&self) -> IpAddr {
        self.source
    }

    /// Sends a hello inside something to the VTEP `to`; `port` is where that takes IP in UDP.
    ///
    /// # Errors
    /// As the kernel says; a hello that is not sent is one that is lost.
    pub(super) fn encapsulated(&self, hello: &Hello, to: IpAddr, port: u16) -> io::Result<()> {
        let mut packet = [0; OUTER_MAX + probe::PACKET_MAX];
        let (outer, inner) = packet.split_at_mut(OUTER_MAX);
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = hello.emit((self.advertised, probe::PORT), to, inner).ok_or_else(invalid)?;
        if hello.way == Way::Udp {
            let datagram = inner.get(..len).ok_or_else(invalid)?;
            return self.udp.send_to(datagram, SocketAddr::new(to, port)).map(drop);
        }
        let protocol = ipip::protocol_of(inner).ok_or_else(invalid)?;
        let header_len = match (self.source, to) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4::Header {
                    tos: 0,
                    ident: 0,
                    dont_fragment: true,
                    ttl: TTL,
                    protocol,
                    source,
                    destination,
                };
                let header = header.emit(len).ok_or_else(invalid)?;
                // Right in front of the packet.
                if let Some((_, room)) = outer.split_last_chunk_mut() {
                    *room = header;
                }
                ipv4::HEADER_LEN
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6::Header {
                    traffic_class: 0,
                    flow_label: 0,
                    next_header: protocol,
                    hop_limit: TTL,
                    source,
                    destination,
                };
                let header = header.emit(len).ok_or_else(invalid)?;
                if let Some((_, room)) = outer.split_last_chunk_mut() {
                    *room = header;
                }
                ipv6::HEADER_LEN
            }
            _ => return Err(invalid()),
        };
        let from = OUTER_MAX - header_len;
        let whole = packet.get(from..OUTER_MAX + len).ok_or_else(invalid)?;
        self.raw.send_to(whole, &SocketAddr::new(to, 0).into()).map(drop)
    }

    /// Sends a hello as it is from one host's own address in a network to the other's, by way of the
    /// VTEP `next_hop`.
    ///
    /// # Errors
    /// As the kernel says; a hello that is not sent is one that is lost.
    pub(super) fn direct(
        &self,
        hello: &Hello,
        source: IpAddr,
        to: IpAddr,
        next_hop: IpAddr,
    ) -> io::Result<()> {
        let mut packet = [0; probe::PACKET_MAX];
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = hello.emit((source, port_of(hello)), to, &mut packet).ok_or_else(invalid)?;
        let whole = packet.get(..len).ok_or_else(invalid)?;
        self.raw.send_to(whole, &SocketAddr::new(next_hop, 0).into()).map(drop)
    }
}

/// A source port out of the dynamic ones (RFC 6335 section 6).
fn port_of(hello: &Hello) -> u16 {
    let several = u64::from(hello.sequence / SAME_PORT);
    // Fibonacci hashing: neighbors lie far apart.
    let mixed = (hello.run ^ hello.sender ^ several).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    0xc000 | (mixed >> 50) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_change_and_are_dynamic() {
        let hello = |sequence| Hello {
            way: Way::Direct,
            pause_ms: 400,
            sender: 7,
            run: 9,
            sequence,
            heard: [None; Way::COUNT],
        };
        let ports: Vec<u16> = (0..64).map(|sequence| port_of(&hello(sequence))).collect();
        assert!(ports.iter().all(|port| *port >= 49_152));
        let mut distinct = ports.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), 8, "{ports:?}");
    }
}

//! IP in IP: an IP packet as the payload of another (RFC 2003; RFC 4213 for IPv6 inside IPv4;
//! RFC 2473 over IPv6).
//!
//! The outer header is the kernel's to make: a raw socket is given the inner packet. What a raw
//! socket delivers differs: over IPv4 the outer header comes first, over IPv6 it does not.

use core::net::Ipv4Addr;
use core::ops::Range;

use crate::ipv4;

/// Protocol number of an IPv4 packet inside (RFC 2003 section 3.1).
pub const IPV4: u8 = 4;
/// Protocol number of an IPv6 packet inside (RFC 4213 section 3.5).
pub const IPV6: u8 = 41;

/// The protocol number that says what is inside, by the packet's own version; `None` for what is no
/// IP packet.
#[must_use]
#[inline]
pub fn protocol_of(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => Some(IPV4),
        6 => Some(IPV6),
        _ => None,
    }
}

/// The outer header of a packet from a raw IPv4 socket, and where the inner packet lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Who sent it: the VTEP.
    pub source: Ipv4Addr,
    /// To which of our addresses.
    pub destination: Ipv4Addr,
    /// Its TOS byte, for ECN.
    pub tos: u8,
    /// What the header says is inside: [`IPV4`], [`IPV6`] or something else.
    pub protocol: u8,
    /// The inner packet.
    pub inner: Range<usize>,
}

/// Reads the outer header; `None` when the bytes are not one whole IPv4 packet. The kernel has
/// verified its checksum and put fragments together.
#[must_use]
pub fn outer(packet: &[u8]) -> Option<Outer> {
    let view = ipv4::Packet::parse(packet)?;
    Some(Outer {
        source: view.source(),
        destination: view.destination(),
        tos: view.tos(),
        protocol: view.protocol(),
        inner: view.header_len()..view.total_len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_headers_are_read() {
        let header = ipv4::Header {
            tos: 3,
            ident: 1,
            dont_fragment: true,
            ttl: 64,
            protocol: IPV4,
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: Ipv4Addr::new(192, 0, 2, 2),
        };
        let mut packet = header.emit(5).unwrap().to_vec();
        packet.extend([0x45, 1, 2, 3, 4, 99]);
        let outer = outer(&packet).unwrap();
        assert_eq!((outer.source, outer.destination), (header.source, header.destination));
        assert_eq!((outer.tos, outer.protocol, outer.inner), (3, IPV4, 20..25));
        assert_eq!(protocol_of(&packet[20..]), Some(IPV4));
        assert_eq!(protocol_of(&[0x60]), Some(IPV6));
        assert_eq!((protocol_of(&[0x50]), protocol_of(&[])), (None, None));
        assert_eq!(super::outer(&packet[..24]), None, "cut short");
    }
}

//! IP in UDP: an IP packet as the payload of a UDP datagram, nothing between them, as the kernel's
//! FOU (net/ipv4/fou_core.c, direct encapsulation) has it. One port is for IPv4 inside, another for
//! IPv6.

use core::ops::Range;

use crate::Link;
use crate::layers::Network;

/// One packet of a received UDP payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The inner packet, as a range of the datagram; possibly empty.
    pub packet: Range<usize>,
    /// Not 0: the packet is an inner super-packet of segments with this many payload bytes.
    pub gso_size: u16,
}

/// Iterator over the packets of a received UDP payload; see [`train`].
#[derive(Clone, Debug)]
pub struct Train {
    len: usize,
    next: usize,
    /// Bytes per packet, at least 1.
    stride: usize,
    gso_size: u16,
}

/// Splits a received UDP payload into its packets. An empty payload gives one empty element.
///
/// `gro_size` is the value of the `UDP_GRO` control message, 0 without one. As with
/// [`vxlan::train`](crate::vxlan::train), a first packet that alone says that it is longer than
/// `gro_size`, and is there as a whole, is one inner super-packet and not a train.
#[must_use]
pub fn train(datagram: &[u8], gro_size: usize) -> Train {
    let len = datagram.len();
    let whole = Train { len, next: 0, stride: len.max(1), gso_size: 0 };
    if gro_size == 0 || gro_size >= len {
        return whole;
    }
    let claimed = Network::parse(Link::None, datagram).map_or(0, |ip| ip.end);
    match u16::try_from(gro_size) {
        Ok(gso_size) if claimed > gro_size => Train { gso_size, ..whole },
        _ => Train { stride: gro_size, ..whole },
    }
}

impl Iterator for Train {
    type Item = Element;

    fn next(&mut self) -> Option<Element> {
        if self.next >= self.len && self.next != 0 {
            return None;
        }
        let start = self.next;
        let end = start.saturating_add(self.stride).min(self.len);
        // Beyond the end even where the payload is empty.
        self.next = end.max(start + 1);
        Some(Element { packet: start..end, gso_size: self.gso_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipv4;

    fn packet(len: usize) -> Vec<u8> {
        let header = ipv4::Header {
            tos: 0,
            ident: 1,
            dont_fragment: true,
            ttl: 64,
            protocol: 17,
            source: [198, 51, 100, 1].into(),
            destination: [198, 51, 100, 2].into(),
        };
        let mut packet = header.emit(len - 20).unwrap().to_vec();
        packet.resize(len, 7);
        packet
    }

    fn ranges(datagram: &[u8], gro_size: usize) -> Vec<(Range<usize>, u16)> {
        train(datagram, gro_size).map(|element| (element.packet, element.gso_size)).collect()
    }

    #[test]
    fn trains_and_super_packets() {
        let one = packet(100);
        assert_eq!(ranges(&one, 0), [(0..100, 0)]);
        let three = [packet(100), packet(100), packet(40)].concat();
        assert_eq!(ranges(&three, 100), [(0..100, 0), (100..200, 0), (200..240, 0)]);
        let large = packet(4000);
        assert_eq!(ranges(&large, 1372), [(0..4000, 1372)]);
        assert_eq!(ranges(&[], 0), [(0..0, 0)]);
        assert_eq!(ranges(&[1, 2, 3], 1), [(0..1, 0), (1..2, 0), (2..3, 0)]);
    }
}

//! What stands in front of an IP packet.

use crate::ethernet::EtherType;
use crate::vlan;

/// The link layer of a port: what the bytes that it reads and writes begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Link {
    /// An Ethernet header with up to two VLAN tags: frames of a TAP.
    #[default]
    Ethernet,
    /// Nothing: packets of a TUN, which tell their family by their first four bits.
    None,
}

impl Link {
    /// The type and offset of the network layer; `None` when a header is cut short or, without a
    /// link layer, the bytes are no IP packet's.
    #[must_use]
    #[inline]
    pub fn payload(self, frame: &[u8]) -> Option<(EtherType, usize)> {
        match self {
            Self::Ethernet => vlan::payload(frame),
            Self::None => match frame.first()? >> 4 {
                4 => Some((EtherType::IPV4, 0)),
                6 => Some((EtherType::IPV6, 0)),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_tell_their_family() {
        assert_eq!(Link::None.payload(&[0x45]), Some((EtherType::IPV4, 0)));
        assert_eq!(Link::None.payload(&[0x60, 1]), Some((EtherType::IPV6, 0)));
        for first in (0..=255).filter(|first| ![4, 6].contains(&(first >> 4))) {
            assert_eq!(Link::None.payload(&[first, 0, 0, 0]), None);
        }
        assert_eq!(Link::None.payload(&[]), None);
        assert_eq!(Link::Ethernet.payload(&[0x45; 13]), None);
        assert_eq!(Link::Ethernet.payload(&[0x45; 14]), Some((EtherType(0x4545), 14)));
    }
}

//! ARP for IPv4 over Ethernet (RFC 826, RFC 5227).
//!
//! ```text
//!  0               2               4       5       6               8
//! +---------------+---------------+-------+-------+---------------+
//! |  hardware 1   | protocol 0800 |   6   |   4   |   operation   |
//! +---------------+---------------+-------+-------+---------------+
//! |  sender MAC (8 to 14)         |  sender address (14 to 18)    |
//! |  target MAC (18 to 24)        |  target address (24 to 28)    |
//! +-------------------------------+-------------------------------+
//! ```

use core::net::Ipv4Addr;

use crate::MacAddr;
use crate::bytes::{array_at, gather, put, put_u16, u16_at};
use crate::ethernet::{self, EtherType, Frame};
use crate::vlan;

mod field {
    pub(super) const HARDWARE: usize = 0;
    pub(super) const PROTOCOL: usize = 2;
    pub(super) const LENGTHS: usize = 4;
    pub(super) const OPERATION: usize = 6;
    pub(super) const SENDER_MAC: usize = 8;
    pub(super) const SENDER: usize = 14;
    pub(super) const TARGET_MAC: usize = 18;
    pub(super) const TARGET: usize = 24;
}

/// Bytes of a packet for IPv4 over Ethernet.
pub const PACKET_LEN: usize = 28;

/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has the sender address.
pub const REPLY: u16 = 2;

const HARDWARE_ETHERNET: u16 = 1;
const LENGTHS: u16 = 0x0604;

/// A checked view of a packet: whole, and for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8; PACKET_LEN],
}

impl<'a> Packet<'a> {
    /// From a frame's payload; `None` when it is cut short or for another pair of protocols.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.first_chunk()?;
        let expected = u16_at(bytes, field::HARDWARE) == HARDWARE_ETHERNET
            && u16_at(bytes, field::PROTOCOL) == EtherType::IPV4.0
            && u16_at(bytes, field::LENGTHS) == LENGTHS;
        expected.then_some(Self { bytes })
    }

    /// From a whole frame, behind up to two VLAN tags.
    #[must_use]
    pub fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let (ether_type, offset) = vlan::payload(frame)?;
        if ether_type != EtherType::ARP {
            return None;
        }
        Self::parse(frame.get(offset..)?)
    }

    /// [`REQUEST`], [`REPLY`] or something rare.
    #[must_use]
    pub fn operation(&self) -> u16 {
        u16_at(self.bytes, field::OPERATION)
    }

    /// MAC address of the sender.
    #[must_use]
    pub fn sender_mac(&self) -> MacAddr {
        MacAddr(array_at(self.bytes, field::SENDER_MAC))
    }

    /// Address of the sender; 0.0.0.0 in a probe.
    #[must_use]
    pub fn sender(&self) -> Ipv4Addr {
        array_at::<4>(self.bytes, field::SENDER).into()
    }

    /// MAC address of the target; without meaning in a request.
    #[must_use]
    pub fn target_mac(&self) -> MacAddr {
        MacAddr(array_at(self.bytes, field::TARGET_MAC))
    }

    /// Address of the target.
    #[must_use]
    pub fn target(&self) -> Ipv4Addr {
        array_at::<4>(self.bytes, field::TARGET).into()
    }
}

/// What a new packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// MAC address of the sender.
    pub sender_mac: MacAddr,
    /// Address of the sender.
    pub sender: Ipv4Addr,
    /// MAC address of the target.
    pub target_mac: MacAddr,
    /// Address of the target.
    pub target: Ipv4Addr,
}

impl Repr {
    /// The packet.
    #[must_use]
    pub fn emit(&self) -> [u8; PACKET_LEN] {
        let mut bytes = [0; PACKET_LEN];
        put_u16(&mut bytes, field::HARDWARE, HARDWARE_ETHERNET);
        put_u16(&mut bytes, field::PROTOCOL, EtherType::IPV4.0);
        put_u16(&mut bytes, field::LENGTHS, LENGTHS);
        put_u16(&mut bytes, field::OPERATION, self.operation);
        put(&mut bytes, field::SENDER_MAC, self.sender_mac.0);
        put(&mut bytes, field::SENDER, self.sender.octets());
        put(&mut bytes, field::TARGET_MAC, self.target_mac.0);
        put(&mut bytes, field::TARGET, self.target.octets());
        bytes
    }
}

/// A request as the responder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose MAC address is asked for.
    pub target: Ipv4Addr,
    /// Who asks; 0.0.0.0 in a probe, the target itself in an announcement (RFC 5227).
    pub sender: Ipv4Addr,
    /// MAC address that asks.
    pub sender_mac: MacAddr,
}

impl Question {
    /// The asker checks whether an address is free before it takes it (RFC 5227 section 2.1.1).
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.sender.is_unspecified()
    }
}

/// The question in a frame; `None` when it is no ARP request from a unicast MAC address.
#[must_use]
pub fn question(frame: &[u8]) -> Option<Question> {
    let packet = Packet::of_frame(frame)?;
    (packet.operation() == REQUEST && packet.sender_mac().is_unicast()).then(|| Question {
        target: packet.target(),
        sender: packet.sender(),
        sender_mac: packet.sender_mac(),
    })
}

/// Answers the request in `request_frame` in the name of the target's `owner`: writes a frame to
/// `out`, VLAN tags kept, and gives its length (42 bytes, more with tags). `None` when the frame is
/// no request or `out` is too small.
#[must_use]
pub fn reply(request_frame: &[u8], owner: MacAddr, out: &mut [u8]) -> Option<usize> {
    let asked = question(request_frame)?;
    let (_, offset) = vlan::payload(request_frame)?;
    let packet = Repr {
        operation: REPLY,
        sender_mac: owner,
        sender: asked.target,
        target_mac: asked.sender_mac,
        target: asked.sender,
    };
    let len = gather(out, &[request_frame.get(..offset)?, &packet.emit()])?;
    ethernet::set_addresses(out, Frame::parse(request_frame)?.source(), owner);
    Some(len)
}

/// An announcement that `mac` has `address` (RFC 5227 section 2.3): writes an untagged broadcast
/// frame to `out` and gives its length, 42 bytes. `None` when `out` is too small.
#[must_use]
pub fn announcement(address: Ipv4Addr, mac: MacAddr, out: &mut [u8]) -> Option<usize> {
    let packet = Repr {
        operation: REQUEST,
        sender_mac: mac,
        sender: address,
        target_mac: MacAddr::ZERO,
        target: address,
    };
    gather(out, &[&ethernet::emit(MacAddr::BROADCAST, mac, EtherType::ARP), &packet.emit()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    const OWNER: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);
    const REQUEST_REPR: Repr = Repr {
        operation: REQUEST,
        sender_mac: ASKER,
        sender: Ipv4Addr::new(192, 0, 2, 1),
        target_mac: MacAddr::ZERO,
        target: Ipv4Addr::new(192, 0, 2, 2),
    };

    fn request(tagged: bool) -> Vec<u8> {
        let link = if tagged { EtherType::VLAN } else { EtherType::ARP };
        let mut frame = ethernet::emit(MacAddr::BROADCAST, ASKER, link).to_vec();
        if tagged {
            frame.extend(vlan::emit(3, 100, EtherType::ARP));
        }
        frame.extend(REQUEST_REPR.emit());
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn emitted_fields_are_read_back() {
        let mut bytes = [0xa5; PACKET_LEN + 3];
        bytes[..PACKET_LEN].copy_from_slice(&REQUEST_REPR.emit());
        let packet = Packet::parse(&bytes).unwrap();
        let read = Repr {
            operation: packet.operation(),
            sender_mac: packet.sender_mac(),
            sender: packet.sender(),
            target_mac: packet.target_mac(),
            target: packet.target(),
        };
        assert_eq!(read, REQUEST_REPR);
    }

    #[test]
    fn other_hardware_and_short_packets_are_refused() {
        let good = REQUEST_REPR.emit();
        assert!(Packet::parse(&good[..PACKET_LEN - 1]).is_none());
        for at in 0..6 {
            let mut bad = good;
            bad[at] ^= 1;
            assert!(Packet::parse(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn reply_goes_to_the_asker_with_its_tags() {
        for tagged in [false, true] {
            let mut out = [0xa5; 64];
            let len = reply(&request(tagged), OWNER, &mut out).unwrap();
            assert_eq!(len, if tagged { 46 } else { 42 });
            let frame = Frame::parse(&out[..len]).unwrap();
            assert_eq!((frame.destination(), frame.source()), (ASKER, OWNER));
            let packet = Packet::of_frame(&out[..len]).unwrap();
            assert_eq!(packet.operation(), REPLY);
            assert_eq!((packet.sender_mac(), packet.sender()), (OWNER, REQUEST_REPR.target));
            assert_eq!((packet.target_mac(), packet.target()), (ASKER, REQUEST_REPR.sender));
            assert!(out[len..].iter().all(|b| *b == 0xa5));
            assert_eq!(question(&out[..len]), None, "a reply is not a question");
        }
        assert_eq!(reply(&request(false), OWNER, &mut [0; 41]), None);
    }

    #[test]
    fn announcement_is_a_broadcast_request_for_itself() {
        let mut out = [0xa5; 64];
        let len = announcement(REQUEST_REPR.sender, ASKER, &mut out).unwrap();
        assert_eq!(len, 42);
        assert_eq!(Frame::parse(&out).unwrap().destination(), MacAddr::BROADCAST);
        let asked = question(&out[..len]).unwrap();
        assert_eq!((asked.target, asked.sender_mac), (REQUEST_REPR.sender, ASKER));
        assert_eq!(asked.sender, asked.target);
        assert!(!asked.is_probe());
    }
}

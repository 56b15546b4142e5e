//! ICMP for IPv4 (RFC 792): a view, and the answers to a packet that does not fit (RFC 1191) or
//! cannot be delivered.
//!
//! ```text
//!  0       1       2               4               6               8
//! +-------+-------+---------------+---------------+---------------+
//! |  type | code  |   checksum    |  (of the type)| next-hop MTU  |
//! +-------+-------+---------------+---------------+---------------+
//! |  the packet that did not fit, from its IP header on ...
//! ```

use core::net::Ipv4Addr;

use crate::bytes::{gather, put_u16, u16_at};
use crate::checksum::Sum;
use crate::ethernet::{self, EtherType, Frame};
use crate::{Link, ipv4};

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const CHECKSUM: usize = 2;
    pub(super) const MTU: usize = 6;
}

/// Bytes of the header that all messages begin with.
pub const HEADER_LEN: usize = 8;
/// The protocol's number in IP.
pub const PROTOCOL: u8 = 1;

const DESTINATION_UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const REDIRECT: u8 = 5;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of "destination unreachable": no way to its network.
pub const NET_UNREACHABLE: u8 = 0;
/// Code of "destination unreachable": no way to it within its network.
pub const HOST_UNREACHABLE: u8 = 1;

/// An answer is at most this long, so that it fits wherever IPv4 does (RFC 1812 section 4.3.2.3).
const ANSWER_MAX: usize = 576;
const ANSWER_TTL: u8 = 64;

/// A checked view of a message: the first eight bytes are whole.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    header: &'a [u8; HEADER_LEN],
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// From an IP payload; `None` when it is cut short.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { header: bytes.first_chunk()?, bytes })
    }

    /// Type of the message.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.header[field::TYPE]
    }

    /// Code within the type.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.header[field::CODE]
    }

    /// The message reports an error, so none may be reported about it (RFC 1122 section 3.2.2).
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(
            self.kind(),
            DESTINATION_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
        )
    }

    /// Next-hop MTU, when this says "fragmentation needed".
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        (self.kind() == DESTINATION_UNREACHABLE && self.code() == FRAGMENTATION_NEEDED)
            .then(|| u16_at(self.header, field::MTU))
    }

    /// Whether the checksum is right.
    #[must_use]
    pub fn checksum_verifies(&self) -> bool {
        Sum::of(self.bytes).verifies()
    }

    /// Everything after the first eight bytes.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
}

/// Where the packet went that the error in `packet` is about; `None` when that is none, or not whole.
#[must_use]
pub fn quoted_destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let packet = ipv4::Packet::parse(packet)?;
    let message = Message::parse(packet.payload())?;
    let reports = packet.protocol() == PROTOCOL && !packet.is_fragment() && message.is_error();
    reports.then(|| ipv4::quoted_destination(message.payload()))?
}

/// The answer "fragmentation needed, next hop takes `mtu` bytes" to the IPv4 packet in `frame`, in
/// the name of its destination: writes a frame to `out` (at most 590 bytes, more with VLAN tags,
/// which are kept) and gives its length.
///
/// `None` when nothing may be answered: not IPv4, an ICMP error, a later fragment, or a source or
/// destination that is not one host (RFC 1122 section 3.2.2); also when `out` is too small. Whether
/// the packet asked not to be fragmented is not looked at.
#[must_use]
pub fn fragmentation_needed(frame: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    let link = Frame::parse(frame)?;
    if !link.destination().is_unicast() || !link.source().is_unicast() {
        return None;
    }
    let len = fragmentation_needed_on(Link::Ethernet, frame, mtu, out)?;
    ethernet::set_addresses(out, link.source(), link.destination());
    Some(len)
}

/// As [`fragmentation_needed`], for a frame of any link; what stands in front of the packet is kept as it
/// is.
#[must_use]
pub fn fragmentation_needed_on(
    link: Link,
    frame: &[u8],
    mtu: u16,
    out: &mut [u8],
) -> Option<usize> {
    unreachable(link, frame, FRAGMENTATION_NEEDED, mtu, out)
}

/// As [`fragmentation_needed_on`], the answer "destination unreachable" with this code.
#[must_use]
pub fn unreachable_on(link: Link, frame: &[u8], code: u8, out: &mut [u8]) -> Option<usize> {
    unreachable(link, frame, code, 0, out)
}

fn unreachable(link: Link, frame: &[u8], code: u8, mtu: u16, out: &mut [u8]) -> Option<usize> {
    let (ether_type, offset) = link.payload(frame)?;
    if ether_type != EtherType::IPV4 {
        return None;
    }
    let bytes = frame.get(offset..)?;
    let packet = ipv4::Packet::parse(bytes)?;
    if packet.fragment_offset() != 0
        || !is_one_host(packet.source())
        || !is_one_host(packet.destination())
        || (packet.protocol() == PROTOCOL && Message::parse(packet.payload())?.is_error())
    {
        return None;
    }
    let quoted_len = packet.total_len().min(ANSWER_MAX - ipv4::HEADER_LEN - HEADER_LEN);
    let quoted = bytes.get(..quoted_len)?;
    let mut message = [0; HEADER_LEN];
    message[field::TYPE] = DESTINATION_UNREACHABLE;
    message[field::CODE] = code;
    put_u16(&mut message, field::MTU, mtu);
    let check = Sum::of(&message).bytes(quoted).finish();
    put_u16(&mut message, field::CHECKSUM, check);
    let header = ipv4::Header {
        tos: 0,
        ident: 0,
        dont_fragment: true,
        ttl: ANSWER_TTL,
        protocol: PROTOCOL,
        source: packet.destination(),
        destination: packet.source(),
    };
    let header = header.emit(HEADER_LEN + quoted_len)?;
    gather(out, &[frame.get(..offset)?, &header, &message, quoted])
}

fn is_one_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_broadcast()
        && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MacAddr, vlan};

    const A: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    const B: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);

    fn frame(header: ipv4::Header, payload: &[u8], tagged: bool) -> Vec<u8> {
        let link = if tagged { EtherType::SERVICE_VLAN } else { EtherType::IPV4 };
        let mut frame = ethernet::emit(B, A, link).to_vec();
        if tagged {
            frame.extend(vlan::emit(0, 9, EtherType::IPV4));
        }
        frame.extend(header.emit(payload.len()).unwrap());
        frame.extend(payload);
        frame
    }

    const HEADER: ipv4::Header = ipv4::Header {
        tos: 0,
        ident: 1,
        dont_fragment: true,
        ttl: 64,
        protocol: 17,
        source: Ipv4Addr::new(192, 0, 2, 1),
        destination: Ipv4Addr::new(198, 51, 100, 2),
    };

    #[test]
    fn answer_comes_from_the_destination_and_quotes_the_packet() {
        for (tagged, payload_len) in [(false, 3000), (true, 3000), (false, 30)] {
            let asked = frame(HEADER, &vec![0x5a; payload_len], tagged);
            let mut out = [0xa5; 700];
            let len = fragmentation_needed(&asked, 1450, &mut out).unwrap();
            let offset = if tagged { 18 } else { 14 };
            let link = Frame::parse(&out).unwrap();
            assert_eq!((link.destination(), link.source()), (A, B));
            assert_eq!(vlan::payload(&out), Some((EtherType::IPV4, offset)));
            let packet = ipv4::Packet::parse(&out[offset..len]).unwrap();
            assert!(packet.checksum_verifies());
            assert_eq!(
                (packet.source(), packet.destination()),
                (HEADER.destination, HEADER.source)
            );
            assert_eq!(packet.total_len(), (payload_len + 48).min(576));
            let message = Message::parse(packet.payload()).unwrap();
            assert!(message.checksum_verifies() && message.is_error());
            assert_eq!(message.mtu(), Some(1450));
            assert_eq!(message.payload(), &asked[offset..offset + message.payload().len()]);
            assert_eq!(len, offset + packet.total_len());
            assert!(out[len..].iter().all(|b| *b == 0xa5));
        }
    }

    #[test]
    fn nothing_is_answered_where_the_rfc_forbids_it() {
        let mut out = [0; 700];
        let mut refused = |frame: &[u8]| fragmentation_needed(frame, 1450, &mut out).is_none();
        let payload = [0; 1000];
        let later = |mut frame: Vec<u8>| {
            frame[14 + 7] = 1;
            frame
        };
        assert!(refused(&later(frame(HEADER, &payload, false))));
        let group = Ipv4Addr::new(224, 0, 0, 1);
        assert!(refused(&frame(ipv4::Header { destination: group, ..HEADER }, &payload, false)));
        let nobody = Ipv4Addr::UNSPECIFIED;
        assert!(refused(&frame(ipv4::Header { source: nobody, ..HEADER }, &payload, false)));
        let icmp = ipv4::Header { protocol: PROTOCOL, ..HEADER };
        assert!(refused(&frame(icmp, &[3; 1000], false)));
        assert!(refused(&frame(icmp, &[], false)), "type unknown");
        assert!(!refused(&frame(icmp, &[8; 1000], false)), "echo request");
        let mut to_group = frame(HEADER, &payload, false);
        to_group[0] |= 1;
        assert!(refused(&to_group));
        assert!(fragmentation_needed(&frame(HEADER, &payload, false), 1, &mut [0; 589]).is_none());
    }
}

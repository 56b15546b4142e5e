//! ICMPv6 (RFC 4443): a view, and the answers to a packet that does not fit (RFC 8201) or cannot be
//! delivered.
//!
//! ```text
//!  0       1       2               4                               8
//! +-------+-------+---------------+-------------------------------+
//! |  type | code  |   checksum    |   MTU (packet too big)        |
//! +-------+-------+---------------+-------------------------------+
//! |  the packet that did not fit, from its IPv6 header on ...
//! ```

use core::net::Ipv6Addr;

use crate::bytes::{gather, put, put_u16, u32_at};
use crate::checksum::Sum;
use crate::ethernet::{self, EtherType, Frame};
use crate::{Link, ipv6};

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const CHECKSUM: usize = 2;
    pub(super) const MTU: usize = 4;
}

/// Bytes of the header that all messages begin with, the word of the type included.
pub const HEADER_LEN: usize = 8;
/// The protocol's number in IP.
pub const PROTOCOL: u8 = 58;
/// Offset of the checksum in a message.
pub(crate) const CHECKSUM: usize = field::CHECKSUM;
/// Code of "destination unreachable": no route to it.
pub const NO_ROUTE: u8 = 0;
/// Code of "destination unreachable": it does not answer where it should be.
pub const ADDRESS_UNREACHABLE: u8 = 3;

const DESTINATION_UNREACHABLE: u8 = 1;
const PACKET_TOO_BIG: u8 = 2;
const REDIRECT: u8 = 137;
/// Types below are errors, the others inform (section 2.1).
const INFORMATIONAL: u8 = 128;

/// An answer is at most the least MTU of IPv6 (section 2.4 (c)).
const ANSWER_MAX: usize = 1280;
const ANSWER_HOP_LIMIT: u8 = 64;

/// The sum of the pseudo-header (RFC 8200 section 8.1) and a whole message.
#[must_use]
pub fn sum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Sum {
    Sum::of(&source.octets())
        .bytes(&destination.octets())
        .u32(u32::try_from(message.len()).unwrap_or(0))
        .u16(u16::from(PROTOCOL))
        .bytes(message)
}

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

    /// No error may be reported about this message (section 2.4 (e)).
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.kind() < INFORMATIONAL || self.kind() == REDIRECT
    }

    /// The MTU, when this says "packet too big".
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        (self.kind() == PACKET_TOO_BIG).then(|| u32_at(self.header, field::MTU))
    }

    /// Whether the checksum is right between these addresses.
    #[must_use]
    pub fn checksum_verifies(&self, source: Ipv6Addr, destination: Ipv6Addr) -> bool {
        sum(source, destination, self.bytes).verifies()
    }

    /// Everything after the first eight bytes.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
}

/// Where the packet went that the error in `packet` is about; `None` when that is none, or not whole.
#[must_use]
pub fn quoted_destination(packet: &[u8]) -> Option<Ipv6Addr> {
    let message = error_in(packet)?;
    ipv6::quoted_destination(message.payload())
}

/// Changes the source of the error in `packet`, and the message's checksum with it. Nothing happens
/// when that is none.
pub fn set_source(packet: &mut [u8], source: Ipv6Addr) {
    let Some(message) = error_in(packet) else { return };
    let old = ipv6::Packet::parse(packet).map_or(Ipv6Addr::UNSPECIFIED, |packet| packet.source());
    let mut check = crate::bytes::u16_at(message.header, field::CHECKSUM);
    for (old, new) in old.segments().into_iter().zip(source.segments()) {
        check = crate::checksum::update(check, old, new);
    }
    put(packet, ipv6::field::SOURCE, source.octets());
    put_u16(packet, ipv6::HEADER_LEN + field::CHECKSUM, check);
}

/// The error that a packet without extension headers is.
fn error_in(packet: &[u8]) -> Option<Message<'_>> {
    let packet = ipv6::Packet::parse(packet)?;
    let message = Message::parse(packet.payload())?;
    (packet.next_header() == PROTOCOL && message.kind() < INFORMATIONAL).then_some(message)
}

/// The answer "packet too big, next hop takes `mtu` bytes" to the IPv6 packet in `frame`, in the
/// name of its destination: writes a frame to `out` (at most 1294 bytes, more with VLAN tags, which
/// are kept) and gives its length.
///
/// `None` when nothing may be answered: not IPv6, an ICMPv6 error or redirect, a later fragment, a
/// source or destination that is not one host (Deviation: RFC 4443 allows the answer to a multicast
/// packet; we do not let one frame to a group call forth many); also when `out` is too small.
#[must_use]
pub fn packet_too_big(frame: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    let link = Frame::parse(frame)?;
    if !link.destination().is_unicast() || !link.source().is_unicast() {
        return None;
    }
    let len = packet_too_big_on(Link::Ethernet, frame, mtu, out)?;
    ethernet::set_addresses(out, link.source(), link.destination());
    Some(len)
}

/// As [`packet_too_big`], for a frame of any link; what stands in front of the packet is kept as it
/// is.
#[must_use]
pub fn packet_too_big_on(link: Link, frame: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    error(link, frame, (PACKET_TOO_BIG, 0), u32::from(mtu), out)
}

/// As [`packet_too_big_on`], the answer "destination unreachable" with this code.
#[must_use]
pub fn unreachable_on(link: Link, frame: &[u8], code: u8, out: &mut [u8]) -> Option<usize> {
    error(link, frame, (DESTINATION_UNREACHABLE, code), 0, out)
}

fn error(
    link: Link,
    frame: &[u8],
    (kind, code): (u8, u8),
    word: u32,
    out: &mut [u8],
) -> Option<usize> {
    let (ether_type, offset) = link.payload(frame)?;
    if ether_type != EtherType::IPV6 {
        return None;
    }
    let bytes = frame.get(offset..)?;
    let packet = ipv6::Packet::parse(bytes)?;
    let extensions = packet.extensions()?;
    let transport = packet.payload().get(extensions.len..)?;
    let is_later_fragment = extensions.fragment && extensions.offset != 0;
    if is_later_fragment
        || !is_one_host(packet.source())
        || !is_one_host(packet.destination())
        || (extensions.protocol == PROTOCOL && Message::parse(transport)?.is_error())
    {
        return None;
    }
    let quoted_len = packet.total_len().min(ANSWER_MAX - ipv6::HEADER_LEN - HEADER_LEN);
    let quoted = bytes.get(..quoted_len)?;
    let (source, destination) = (packet.destination(), packet.source());
    let mut message = [0; HEADER_LEN];
    message[field::TYPE] = kind;
    message[field::CODE] = code;
    put(&mut message, field::MTU, word.to_be_bytes());
    let len = u32::try_from(HEADER_LEN + quoted_len).ok()?;
    let check = sum(source, destination, &[]).u32(len).bytes(&message).bytes(quoted).finish();
    put_u16(&mut message, field::CHECKSUM, check);
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        next_header: PROTOCOL,
        hop_limit: ANSWER_HOP_LIMIT,
        source,
        destination,
    };
    let header = header.emit(HEADER_LEN + quoted_len)?;
    gather(out, &[frame.get(..offset)?, &header, &message, quoted])
}

fn is_one_host(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MacAddr, vlan};

    const A: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    const B: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);
    const HEADER: ipv6::Header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        next_header: 17,
        hop_limit: 64,
        source: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    };

    fn frame(header: ipv6::Header, payload: &[u8], tagged: bool) -> Vec<u8> {
        let link = if tagged { EtherType::VLAN } else { EtherType::IPV6 };
        let mut frame = ethernet::emit(B, A, link).to_vec();
        if tagged {
            frame.extend(vlan::emit(0, 9, EtherType::IPV6));
        }
        frame.extend(header.emit(payload.len()).unwrap());
        frame.extend(payload);
        frame
    }

    #[test]
    fn answer_comes_from_the_destination_and_quotes_the_packet() {
        for (tagged, payload_len) in [(false, 3000), (true, 3000), (false, 31)] {
            let asked = frame(HEADER, &vec![0x5a; payload_len], tagged);
            let mut out = [0xa5; 1400];
            let len = packet_too_big(&asked, 1430, &mut out).unwrap();
            let offset = if tagged { 18 } else { 14 };
            let link = Frame::parse(&out).unwrap();
            assert_eq!((link.destination(), link.source()), (A, B));
            let packet = ipv6::Packet::parse(&out[offset..len]).unwrap();
            assert_eq!(
                (packet.source(), packet.destination()),
                (HEADER.destination, HEADER.source)
            );
            assert_eq!(packet.total_len(), (payload_len + 88).min(1280));
            let message = Message::parse(packet.payload()).unwrap();
            assert!(message.checksum_verifies(packet.source(), packet.destination()));
            assert_eq!(message.mtu(), Some(1430));
            assert_eq!(message.payload(), &asked[offset..offset + message.payload().len()]);
            assert_eq!(len, offset + packet.total_len());
            assert!(out[len..].iter().all(|b| *b == 0xa5));
        }
    }

    #[test]
    fn nothing_is_answered_where_the_rfc_forbids_it() {
        let mut out = [0; 1400];
        let mut refused = |frame: &[u8]| packet_too_big(frame, 1430, &mut out).is_none();
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert!(refused(&frame(ipv6::Header { destination: group, ..HEADER }, &[0; 9], false)));
        let nobody = Ipv6Addr::UNSPECIFIED;
        assert!(refused(&frame(ipv6::Header { source: nobody, ..HEADER }, &[0; 9], false)));
        let icmp = ipv6::Header { next_header: PROTOCOL, ..HEADER };
        assert!(refused(&frame(icmp, &[2; 100], false)));
        assert!(refused(&frame(icmp, &[137; 100], false)));
        assert!(!refused(&frame(icmp, &[128; 100], false)), "echo request");
        let fragment = ipv6::Header { next_header: 44, ..HEADER };
        assert!(refused(&frame(fragment, &[17, 0, 1, 0, 0, 0, 0, 1, 9, 9], false)));
        assert!(!refused(&frame(fragment, &[17, 0, 0, 1, 0, 0, 0, 1, 9, 9], false)), "first");
        let mut to_group = frame(HEADER, &[0; 100], false);
        to_group[0] |= 1;
        assert!(refused(&to_group));
    }
}

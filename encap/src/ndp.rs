//! Neighbor discovery for IPv6 (RFC 4861): the solicitation as a question, the advertisement as its
//! answer.
//!
//! ```text
//!  0       1       2               4                               8
//! +-------+-------+---------------+-------------------------------+
//! |  type | code 0|   checksum    | R S O (advertisement), else 0 |
//! +-------+-------+---------------+-------------------------------+
//! |                 target address (8 to 24)                      |
//! +-------+-------+-----------------------------------------------+
//! |option | len/8 |  link-layer address of source (1), target (2) |
//! +-------+-------+-----------------------------------------------+
//! ```

use core::net::Ipv6Addr;

use crate::MacAddr;
use crate::bytes::{array_at, gather, put, put_u16, u8_at};
use crate::ethernet::{self, EtherType, Frame};
use crate::{icmpv6, ipv6, vlan};

mod field {
    pub(super) const CHECKSUM: usize = 2;
    pub(super) const FLAGS: usize = 4;
    pub(super) const TARGET: usize = 8;
    pub(super) const OPTIONS: usize = 24;
}

/// ICMPv6 type of a solicitation.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of an advertisement.
pub const ADVERTISEMENT: u8 = 136;

const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
/// Nobody off the link can send with it (RFC 4861 section 7.1).
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
/// Advertisement with its one option.
const ADVERTISEMENT_LEN: usize = field::OPTIONS + 8;

/// A valid neighbor solicitation as the responder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose MAC address is asked for.
    pub target: Ipv6Addr,
    /// Who asks; unspecified during duplicate address detection.
    pub sender: Ipv6Addr,
    /// MAC address that asks: the frame's source.
    pub sender_mac: MacAddr,
    /// The source link-layer address option, if there is one.
    pub source_link_layer: Option<MacAddr>,
}

impl Question {
    /// The asker checks whether an address is free before it takes it (RFC 4862 section 5.4.2).
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.sender.is_unspecified()
    }
}

/// The question in a frame, behind up to two VLAN tags; `None` when it is no valid neighbor
/// solicitation from a unicast MAC address.
//= https://www.rfc-editor.org/rfc/rfc4861#section-7.1.1
#[must_use]
pub fn question(frame: &[u8]) -> Option<Question> {
    let (ether_type, offset) = vlan::payload(frame)?;
    if ether_type != EtherType::IPV6 {
        return None;
    }
    let packet = ipv6::Packet::parse(frame.get(offset..)?)?;
    if packet.next_header() != icmpv6::PROTOCOL || packet.hop_limit() != HOP_LIMIT {
        return None;
    }
    let bytes = packet.payload();
    let message = icmpv6::Message::parse(bytes)?;
    if message.kind() != SOLICITATION
        || message.code() != 0
        || bytes.len() < field::OPTIONS
        || !message.checksum_verifies(packet.source(), packet.destination())
    {
        return None;
    }
    let sender_mac = Frame::parse(frame)?.source();
    let target: Ipv6Addr = array_at::<16>(bytes, field::TARGET).into();
    let source_link_layer = link_layer(bytes.get(field::OPTIONS..)?, OPTION_SOURCE_LINK_LAYER)?;
    let sender = packet.source();
    if target.is_multicast() || sender.is_multicast() || !sender_mac.is_unicast() {
        return None;
    }
    if sender.is_unspecified()
        && (source_link_layer.is_some() || packet.destination() != solicited_node(target))
    {
        return None;
    }
    Some(Question { target, sender, sender_mac, source_link_layer })
}

/// The multicast address on which the owner of `address` listens (RFC 4291 section 2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Walks the options; outer `None` when they are malformed, inner `None` when there is no such one.
fn link_layer(mut options: &[u8], wanted: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        // A length of zero makes the whole message invalid (section 4.6).
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return None;
        }
        if kind == wanted && found.is_none() {
            found = MacAddr::from_slice(options.get(2..len)?);
        }
        options = options.get(len..)?;
    }
    options.is_empty().then_some(found)
}

/// Answers the solicitation in `frame` in the name of the target's `owner`: writes a frame to
/// `out`, VLAN tags kept, and gives its length (86 bytes, more with tags). A probe is answered to
/// all nodes. `None` when the frame is no valid solicitation or `out` is too small.
//= https://www.rfc-editor.org/rfc/rfc4861#section-7.2.4
#[must_use]
pub fn reply(frame: &[u8], owner: MacAddr, out: &mut [u8]) -> Option<usize> {
    let asked = question(frame)?;
    let (_, offset) = vlan::payload(frame)?;
    let (destination, destination_mac, flags) = if asked.is_probe() {
        (ALL_NODES, ALL_NODES_MAC, FLAG_OVERRIDE)
    } else {
        (asked.sender, asked.sender_mac, FLAG_SOLICITED | FLAG_OVERRIDE)
    };
    let message = advertisement(asked.target, destination, owner, flags);
    let header = header(asked.target, destination).emit(message.len())?;
    let len = gather(out, &[frame.get(..offset)?, &header, &message])?;
    ethernet::set_addresses(out, destination_mac, owner);
    Some(len)
}

/// An unsolicited advertisement to all nodes that `mac` has `address` (RFC 4861 section 7.2.6):
/// writes an untagged frame to `out` and gives its length, 86 bytes. `None` when `out` is too
/// small.
#[must_use]
pub fn announcement(address: Ipv6Addr, mac: MacAddr, out: &mut [u8]) -> Option<usize> {
    let link = ethernet::emit(ALL_NODES_MAC, mac, EtherType::IPV6);
    let message = advertisement(address, ALL_NODES, mac, FLAG_OVERRIDE);
    gather(out, &[&link, &header(address, ALL_NODES).emit(message.len())?, &message])
}

fn header(source: Ipv6Addr, destination: Ipv6Addr) -> ipv6::Header {
    ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        next_header: icmpv6::PROTOCOL,
        hop_limit: HOP_LIMIT,
        source,
        destination,
    }
}

fn advertisement(
    target: Ipv6Addr,
    destination: Ipv6Addr,
    owner: MacAddr,
    flags: u8,
) -> [u8; ADVERTISEMENT_LEN] {
    let mut message = [0; ADVERTISEMENT_LEN];
    message[0] = ADVERTISEMENT;
    message[field::FLAGS] = flags;
    put(&mut message, field::TARGET, target.octets());
    put(&mut message, field::OPTIONS, [OPTION_TARGET_LINK_LAYER, 1]);
    put(&mut message, field::OPTIONS + 2, owner.0);
    let check = icmpv6::sum(target, destination, &message).finish();
    put_u16(&mut message, field::CHECKSUM, check);
    message
}

/// A neighbor advertisement as a view, for those who check an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// The address that it is about.
    pub target: Ipv6Addr,
    /// The MAC address that has it.
    pub target_link_layer: Option<MacAddr>,
    /// It answers a solicitation.
    pub solicited: bool,
    /// It replaces what is cached.
    pub replaces: bool,
}

/// The advertisement in a frame, behind up to two VLAN tags; `None` when it is no valid one.
//= https://www.rfc-editor.org/rfc/rfc4861#section-7.1.2
#[must_use]
pub fn advertised(frame: &[u8]) -> Option<Advertisement> {
    let (ether_type, offset) = vlan::payload(frame)?;
    if ether_type != EtherType::IPV6 {
        return None;
    }
    let packet = ipv6::Packet::parse(frame.get(offset..)?)?;
    if packet.next_header() != icmpv6::PROTOCOL || packet.hop_limit() != HOP_LIMIT {
        return None;
    }
    let bytes = packet.payload();
    let message = icmpv6::Message::parse(bytes)?;
    if message.kind() != ADVERTISEMENT
        || message.code() != 0
        || bytes.len() < field::OPTIONS
        || !message.checksum_verifies(packet.source(), packet.destination())
    {
        return None;
    }
    let flags = u8_at(bytes, field::FLAGS);
    let target: Ipv6Addr = array_at::<16>(bytes, field::TARGET).into();
    let target_link_layer = link_layer(bytes.get(field::OPTIONS..)?, OPTION_TARGET_LINK_LAYER)?;
    let solicited = flags & FLAG_SOLICITED != 0;
    if target.is_multicast() || (solicited && packet.destination().is_multicast()) {
        return None;
    }
    let replaces = flags & FLAG_OVERRIDE != 0;
    Some(Advertisement { target, target_link_layer, solicited, replaces })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER_MAC: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    const OWNER: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);
    const ASKER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const TARGET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);

    fn solicitation(source: Ipv6Addr, options: &[u8], tagged: bool) -> Vec<u8> {
        let destination = solicited_node(TARGET);
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(TARGET.octets());
        message.extend(options);
        let check = icmpv6::sum(source, destination, &message).finish();
        message[2..4].copy_from_slice(&check.to_be_bytes());
        let group = MacAddr([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let link = if tagged { EtherType::VLAN } else { EtherType::IPV6 };
        let mut frame = ethernet::emit(group, ASKER_MAC, link).to_vec();
        if tagged {
            frame.extend(vlan::emit(0, 9, EtherType::IPV6));
        }
        frame.extend(header(source, destination).emit(message.len()).unwrap());
        frame.extend(message);
        frame
    }

    const OPTION: [u8; 8] = [1, 1, 0, 0, 0x5e, 0, 0x53, 1];

    #[test]
    fn solicitation_is_a_question() {
        for tagged in [false, true] {
            let asked = question(&solicitation(ASKER, &OPTION, tagged)).unwrap();
            assert_eq!((asked.target, asked.sender), (TARGET, ASKER));
            assert_eq!(asked.sender_mac, ASKER_MAC);
            assert_eq!(asked.source_link_layer, Some(ASKER_MAC));
            assert!(!asked.is_probe());
        }
        let probe = question(&solicitation(Ipv6Addr::UNSPECIFIED, &[], false)).unwrap();
        assert!(probe.is_probe());
    }

    #[test]
    fn invalid_solicitations_are_not_questions() {
        let good = solicitation(ASKER, &OPTION, false);
        let mut hop_limit = good.clone();
        hop_limit[14 + 7] = 254;
        let mut checksum = good.clone();
        checksum[14 + 40 + 2] ^= 1;
        let probe_with_option = solicitation(Ipv6Addr::UNSPECIFIED, &OPTION, false);
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let from_a_group = solicitation(group, &OPTION, false);
        let zero_option = solicitation(ASKER, &[1, 0, 0, 0, 0, 0, 0, 0], false);
        let long_option = solicitation(ASKER, &[1, 2, 0, 0, 0, 0, 0, 0], false);
        for bad in [hop_limit, checksum, probe_with_option, from_a_group, zero_option, long_option]
        {
            assert_eq!(question(&bad), None);
        }
    }

    #[test]
    fn reply_is_solicited_and_overrides() {
        for tagged in [false, true] {
            let mut out = [0xa5; 100];
            let len = reply(&solicitation(ASKER, &OPTION, tagged), OWNER, &mut out).unwrap();
            assert_eq!(len, if tagged { 90 } else { 86 });
            let frame = Frame::parse(&out).unwrap();
            assert_eq!((frame.destination(), frame.source()), (ASKER_MAC, OWNER));
            let expected = Advertisement {
                target: TARGET,
                target_link_layer: Some(OWNER),
                solicited: true,
                replaces: true,
            };
            assert_eq!(advertised(&out[..len]), Some(expected));
            assert!(out[len..].iter().all(|b| *b == 0xa5));
        }
    }

    #[test]
    fn probe_is_answered_to_all_nodes() {
        let mut out = [0xa5; 86];
        let probe = solicitation(Ipv6Addr::UNSPECIFIED, &[], false);
        assert_eq!(reply(&probe, OWNER, &mut out), Some(86));
        assert_eq!(Frame::parse(&out).unwrap().destination(), ALL_NODES_MAC);
        let told = advertised(&out).unwrap();
        assert!(!told.solicited && told.replaces);
        assert_eq!(reply(&probe, OWNER, &mut [0; 85]), None);
    }

    #[test]
    fn announcement_is_unsolicited() {
        let mut out = [0xa5; 90];
        assert_eq!(announcement(TARGET, OWNER, &mut out), Some(86));
        let told = advertised(&out).unwrap();
        assert_eq!((told.target, told.target_link_layer), (TARGET, Some(OWNER)));
        assert!(!told.solicited && told.replaces);
        assert_eq!(question(&out), None);
    }
}

//! Explicit congestion notification across the tunnel (RFC 6040, normal mode).

use crate::ethernet::EtherType;
use crate::{Link, ipv4, ipv6};

/// The ECN bits of a TOS byte or traffic class.
pub const MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, ECT(1).
pub const ECT_1: u8 = 0b01;
/// ECN-capable, ECT(0).
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The ECN bits of the outer header; all other bits are zero.
//= https://www.rfc-editor.org/rfc/rfc6040#section-4.1 (normal mode copies the field)
#[must_use]
#[inline]
pub const fn encapsulate(inner_tos: u8) -> u8 {
    inner_tos & MASK
}

/// What becomes of the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decapsulated {
    /// Drop it: congestion was marked on a packet whose sender cannot hear of it.
    Drop,
    /// The inner bits stay as they are.
    Keep,
    /// The inner bits become these.
    Set(u8),
}

/// Joins the outer ECN bits into the inner ones.
//= https://www.rfc-editor.org/rfc/rfc6040#section-4.2 (figure 4)
#[must_use]
#[inline]
pub const fn decapsulate(inner_tos: u8, outer_tos: u8) -> Decapsulated {
    match (inner_tos & MASK, outer_tos & MASK) {
        (NOT_ECT, CE) => Decapsulated::Drop,
        (ECT_0 | ECT_1, CE) => Decapsulated::Set(CE),
        (ECT_0, ECT_1) => Decapsulated::Set(ECT_1),
        _ => Decapsulated::Keep,
    }
}

/// TOS byte or traffic class of a frame's IP header, up to two VLAN tags looked through; `None`
/// when it carries no IP header.
#[must_use]
pub fn tos_of(frame: &[u8]) -> Option<u8> {
    tos_on(Link::Ethernet, frame)
}

/// As [`tos_of`], for a frame of any link.
#[must_use]
pub fn tos_on(link: Link, frame: &[u8]) -> Option<u8> {
    let (ether_type, l3) = link.payload(frame)?;
    let header = frame.get(l3..)?;
    match (ether_type, header.first()? >> 4) {
        (EtherType::IPV4, 4) => header.get(ipv4::field::TOS).copied(),
        (EtherType::IPV6, 6) => {
            let [a, b] = *header.first_chunk::<2>()?;
            Some((a << 4) | (b >> 4))
        }
        _ => None,
    }
}

/// Sets the two ECN bits of a frame's IP header and keeps an IPv4 header checksum right. Nothing
/// happens to a frame without an IP header.
pub fn set_ecn(frame: &mut [u8], ecn: u8) {
    set_ecn_on(Link::Ethernet, frame, ecn);
}

/// As [`set_ecn`], for a frame of any link.
pub fn set_ecn_on(link: Link, frame: &mut [u8], ecn: u8) {
    let Some((tos, (ether_type, l3))) = tos_on(link, frame).zip(link.payload(frame)) else {
        return;
    };
    let tos = (tos & !MASK) | (ecn & MASK);
    let Some(packet) = frame.get_mut(l3..) else { return };
    match ether_type {
        EtherType::IPV4 => ipv4::set_tos(packet, tos),
        _ => ipv6::set_traffic_class(packet, tos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MacAddr, ethernet, vlan};

    #[test]
    fn outer_bits_are_copied() {
        for tos in 0..=255 {
            assert_eq!(encapsulate(tos), tos & 3);
        }
    }

    #[test]
    fn decapsulation_is_the_rfcs_table() {
        use Decapsulated::{Drop, Keep, Set};
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let order = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Keep, Keep, Keep, Drop],
            [Keep, Keep, Set(ECT_1), Set(CE)],
            [Keep, Keep, Keep, Set(CE)],
            [Keep, Keep, Keep, Keep],
        ];
        for (inner, row) in order.iter().zip(table) {
            for (outer, expected) in order.iter().zip(row) {
                assert_eq!(decapsulate(inner | 0xb8, outer | 0x40), expected, "{inner} {outer}");
            }
        }
    }

    #[test]
    fn bits_of_both_families_behind_tags() {
        let v4 = ipv4::Header {
            tos: 0xb8,
            ident: 7,
            dont_fragment: false,
            ttl: 1,
            protocol: 1,
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
        };
        let v6 = ipv6::Header {
            traffic_class: 0xb8,
            flow_label: 0xf_ffff,
            next_header: 59,
            hop_limit: 1,
            source: "2001:db8::1".parse().unwrap(),
            destination: "2001:db8::2".parse().unwrap(),
        };
        for (ether_type, packet) in [
            (EtherType::IPV4, v4.emit(0).unwrap().to_vec()),
            (EtherType::IPV6, v6.emit(0).unwrap().to_vec()),
        ] {
            let mut frame = ethernet::emit(MacAddr::ZERO, MacAddr::ZERO, EtherType::VLAN).to_vec();
            frame.extend(vlan::emit(0, 5, ether_type));
            frame.extend(&packet);
            assert_eq!(tos_of(&frame), Some(0xb8));
            set_ecn(&mut frame, CE);
            assert_eq!(tos_of(&frame), Some(0xbb));
            if let Some(packet) = ipv4::Packet::parse(&frame[18..]) {
                assert!(packet.checksum_verifies());
            } else {
                assert_eq!(ipv6::Packet::parse(&frame[18..]).unwrap().flow_label(), 0xf_ffff);
            }
            set_ecn(&mut frame, NOT_ECT);
            assert_eq!(frame[18..], packet);
        }
    }

    #[test]
    fn other_frames_have_no_bits() {
        let arp = ethernet::emit(MacAddr::ZERO, MacAddr::ZERO, EtherType::ARP);
        assert_eq!(tos_of(&arp), None);
        assert_eq!(tos_of(&[]), None);
        let mut cut = ethernet::emit(MacAddr::ZERO, MacAddr::ZERO, EtherType::IPV4).to_vec();
        cut.extend([0x45, 0]);
        set_ecn(&mut cut, CE);
        assert_eq!(cut[14..], [0x45, 0]);
    }
}

//! The maximum segment size of TCP (RFC 9293 section 3.7.1): lowered on a connection's first packets,
//! for paths whose "too big" answers get lost on the way to the sender.

use crate::bytes::{put_u16, u16_at};
use crate::checksum;
use crate::layers::{Network, Protocol, Transport, Version};
use crate::{Link, ipv4, ipv6, tcp};

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
/// Kind and length of the option.
const MSS: [u8; 2] = [2, 4];

/// Lowers the maximum segment size that a SYN announces to what `mtu` bytes of IP packet leave, and
/// keeps its checksum as right or wrong as it is. `partial` says that the checksum field holds only
/// the pseudo-header's sum, which the options are no part of.
///
/// True when it was lowered. Everything else is left alone: other packets, a SYN that announces
/// nothing (which means 536 or 1220 bytes) or less.
pub fn clamp(link: Link, frame: &mut [u8], mtu: u16, partial: bool) -> bool {
    let Some(ip) = Network::parse(link, frame).filter(|ip| ip.protocol == tcp::PROTOCOL) else {
        return false;
    };
    let Some(transport) = Transport::parse(frame, &ip) else { return false };
    if u16_at(frame, ip.l4 + tcp::field::FLAGS) & tcp::SYN == 0 {
        return false;
    }
    let headers = tcp::HEADER_LEN
        + match ip.version {
            Version::V4 => ipv4::HEADER_LEN,
            Version::V6 => ipv6::HEADER_LEN,
        };
    let most = mtu.saturating_sub(headers as u16);
    let options = frame.get(ip.l4 + tcp::HEADER_LEN..transport.payload).unwrap_or(&[]);
    let Some(at) = value_at(options).map(|at| ip.l4 + tcp::HEADER_LEN + at) else { return false };
    let announced = u16_at(frame, at);
    if announced <= most || most == 0 {
        return false;
    }
    put_u16(frame, at, most);
    if !partial {
        let field = ip.l4 + Protocol::Tcp.checksum_offset();
        let check = u16_at(frame, field);
        // A value at an odd place counts with its bytes swapped.
        let turned = |value: u16| if (at - ip.l4) % 2 == 0 { value } else { value.swap_bytes() };
        put_u16(frame, field, checksum::update(check, turned(announced), turned(most)));
    }
    true
}

/// As [`clamp`], for a packet from the wire, whose checksum is complete, or partial as a kernel peer on
/// an offloading underlay leaves it. One that is neither is left alone.
pub fn clamp_received(link: Link, frame: &mut [u8], mtu: u16) -> bool {
    let Some(ip) = Network::parse(link, frame).filter(|ip| ip.protocol == tcp::PROTOCOL) else {
        return false;
    };
    if u16_at(frame, ip.l4 + tcp::field::FLAGS) & tcp::SYN == 0 || ip.opaque {
        return false;
    }
    let pseudo_header = ip.pseudo_header(frame).u16((ip.end - ip.l4) as u16);
    let whole = pseudo_header.bytes(frame.get(ip.l4..ip.end).unwrap_or(&[])).verifies();
    let partial = u16_at(frame, ip.l4 + tcp::field::CHECKSUM) == pseudo_header.fold();
    (whole || partial) && clamp(link, frame, mtu, !whole)
}

/// Where the option's value lies in `options`.
fn value_at(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match options.get(at..)? {
            [END, ..] | [] => return None,
            [NO_OPERATION, ..] => at += 1,
            [kind, len, _, _, ..] if [*kind, *len] == MSS => return Some(at + 2),
            [_, len, ..] if *len >= 2 => at += usize::from(*len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Sum;

    /// A SYN of IPv4 (or IPv6) with these options, its checksum complete.
    fn syn(v6: bool, flags: u16, options: &[u8]) -> Vec<u8> {
        let header = tcp::Header { flags, ..tcp::Header::default() };
        let mut segment = header.emit(options.len()).unwrap().to_vec();
        segment.extend(options);
        let mut packet = if v6 {
            let header = ipv6::Header {
                traffic_class: 0,
                flow_label: 0,
                next_header: tcp::PROTOCOL,
                hop_limit: 64,
                source: "2001:db8::1".parse().unwrap(),
                destination: "2001:db8::2".parse().unwrap(),
            };
            header.emit(segment.len()).unwrap().to_vec()
        } else {
            let header = ipv4::Header {
                tos: 0,
                ident: 0,
                dont_fragment: true,
                ttl: 64,
                protocol: tcp::PROTOCOL,
                source: [192, 0, 2, 1].into(),
                destination: [192, 0, 2, 2].into(),
            };
            header.emit(segment.len()).unwrap().to_vec()
        };
        packet.extend(segment);
        let ip = Network::parse(Link::None, &packet).unwrap();
        let sum = sum(&packet, &ip);
        put_u16(&mut packet, ip.l4 + tcp::field::CHECKSUM, sum.finish());
        packet
    }

    fn sum(packet: &[u8], ip: &Network) -> Sum {
        ip.pseudo_header(packet).u16((ip.end - ip.l4) as u16).bytes(&packet[ip.l4..])
    }

    #[test]
    fn a_larger_size_is_lowered_and_the_checksum_stays_right() {
        for (v6, least) in [(false, 40), (true, 60)] {
            for options in [
                &[2, 4, 0x05, 0xb4][..],
                &[1, 1, 2, 4, 0x05, 0xb4, 1, 0],
                // At an odd place.
                &[1, 2, 4, 0x05, 0xb4, 3, 3, 7],
                &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 2, 4, 0x23, 0],
            ] {
                for flags in [tcp::SYN, tcp::SYN | tcp::ACK] {
                    let mut packet = syn(v6, flags, options);
                    assert!(clamp(Link::None, &mut packet, 1400, false));
                    let ip = Network::parse(Link::None, &packet).unwrap();
                    assert!(sum(&packet, &ip).verifies(), "{options:?}");
                    let segment = tcp::Segment::parse(&packet[ip.l4..]).unwrap();
                    let at = value_at(segment.options()).unwrap();
                    assert_eq!(u16_at(segment.options(), at), 1400 - least);
                    assert!(!clamp(Link::None, &mut packet, 1400, false), "once");
                }
            }
        }
    }

    #[test]
    fn a_partial_checksum_and_all_else_are_left_alone() {
        let mut packet = syn(false, tcp::SYN, &[2, 4, 0x05, 0xb4]);
        let mut received = packet.clone();
        assert!(clamp_received(Link::None, &mut received, 1000));
        let ip = Network::parse(Link::None, &received).unwrap();
        assert!(sum(&received, &ip).verifies());
        let mut wrong = packet.clone();
        wrong[36] ^= 1;
        assert!(!clamp_received(Link::None, &mut wrong, 1000));
        let before = u16_at(&packet, 36);
        assert!(clamp(Link::None, &mut packet, 1000, true));
        assert_eq!(u16_at(&packet, 36), before);
        for (flags, options) in [
            (tcp::ACK, &[2, 4, 0x05, 0xb4][..]),
            (tcp::SYN, &[]),
            (tcp::SYN, &[0, 0, 2, 4]),
            (tcp::SYN, &[3, 0, 2, 4]),
            (tcp::SYN, &[8, 40, 2, 4]),
            (tcp::SYN, &[1, 1, 1, 2]),
            (tcp::SYN, &[2, 4, 0x01, 0x00]),
        ] {
            let whole = syn(true, flags, options);
            let mut packet = whole.clone();
            assert!(!clamp(Link::None, &mut packet, 1280, false), "{options:?}");
            assert_eq!(packet, whole);
        }
        assert!(!clamp(Link::None, &mut [], 1280, false));
    }
}

//! The flow hash: spreads inner flows over underlay source ports, batches and queues.

use crate::bytes::array_at;
use crate::layers::{Network, ports};
use crate::{Link, vlan};

/// A hash of an inner frame's flow. Frames of one flow give one value on one host and build; the
/// value has no meaning elsewhere.
///
/// The 5-tuple for TCP, UDP, UDP-Lite, DCCP and SCTP; addresses and protocol for other IP packets
/// and for every fragment, so that the parts of a packet stay together; the MAC addresses and the
/// type for all else. Up to two VLAN tags are looked through.
#[must_use]
pub fn hash(frame: &[u8]) -> u32 {
    network(Link::Ethernet, frame).unwrap_or_else(|| {
        let [a, b] = [array_at::<8>(frame, 0), array_at::<8>(frame, 4)].map(u64::from_ne_bytes);
        let ether_type = vlan::payload(frame).map_or(0, |(ether_type, _)| ether_type.0);
        finish(mix(mix(u64::from(ether_type), a), b))
    })
}

/// As [`hash`], for an IP packet without a link layer. Whatever is no packet has one value.
#[must_use]
pub fn hash_packet(packet: &[u8]) -> u32 {
    network(Link::None, packet).unwrap_or(0)
}

fn network(link: Link, frame: &[u8]) -> Option<u32> {
    let ip = Network::parse(link, frame)?;
    let ports = ports(frame, &ip).unwrap_or(0);
    Some(transport(ip.addresses(frame), ports, ip.protocol, 0))
}

/// A hash of addresses (a multiple of eight bytes), both ports, protocol and port tag.
pub(crate) fn transport(addresses: &[u8], ports: u32, protocol: u8, tag: u32) -> u32 {
    let mut state = (u64::from(ports) << 8) | u64::from(protocol) | (u64::from(tag) << 40);
    let (words, _) = addresses.as_chunks::<8>();
    for word in words {
        state = mix(state, u64::from_ne_bytes(*word));
    }
    finish(state)
}

/// One folded 64 x 64 bit multiplication: every bit of both inputs reaches every bit of the result.
#[inline]
fn mix(state: u64, word: u64) -> u64 {
    let product = u128::from(state ^ 0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(u128::from(word ^ 0xd1b5_4a32_d192_ed03) | 1);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn finish(state: u64) -> u32 {
    let state = mix(state, 0x8bb8_4b93_962e_acc9);
    (state >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethernet::{self, EtherType};
    use crate::{MacAddr, ipv4, udp};

    fn frame(host: u8, source: u16, flags: u16, tagged: bool) -> Vec<u8> {
        let ip = ipv4::Header {
            tos: 0,
            ident: 7,
            dont_fragment: false,
            ttl: 64,
            protocol: udp::PROTOCOL,
            source: [192, 0, 2, host].into(),
            destination: [198, 51, 100, 1].into(),
        };
        let link = if tagged { EtherType::VLAN } else { EtherType::IPV4 };
        let mut bytes = ethernet::emit(MacAddr::ZERO, MacAddr::BROADCAST, link).to_vec();
        if tagged {
            bytes.extend(vlan::emit(0, 7, EtherType::IPV4));
        }
        let mut header = ip.emit(16).unwrap();
        header[6..8].copy_from_slice(&flags.to_be_bytes());
        bytes.extend(header);
        bytes.extend(udp::emit(source, 53, 8).unwrap());
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn five_tuple_counts_and_tags_do_not() {
        let hash_of = |host, source, tagged| hash(&frame(host, source, 0, tagged));
        assert_eq!(hash_of(1, 1000, false), hash_of(1, 1000, true));
        assert_ne!(hash_of(1, 1000, false), hash_of(1, 1001, false));
        assert_ne!(hash_of(1, 1000, false), hash_of(2, 1000, false));
    }

    #[test]
    fn parts_of_one_packet_stay_together() {
        let first = frame(1, 1000, 0x2000, false);
        let second = frame(1, 4711, 0x0001, false);
        assert_eq!(hash(&first), hash(&second));
    }

    #[test]
    fn spreads_neighbouring_ports() {
        let mut buckets = [0_u32; 8];
        for port in 0..4096 {
            buckets[(hash(&frame(1, 32768 + port, 0, false)) % 8) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (384..640).contains(n)), "{buckets:?}");
    }

    #[test]
    fn other_frames_go_by_their_addresses() {
        let arp = |last| {
            ethernet::emit(MacAddr::BROADCAST, MacAddr([0, 0, 0x5e, 0, 0x53, last]), EtherType::ARP)
        };
        assert_eq!(hash(&arp(1)), hash(&arp(1)));
        assert_ne!(hash(&arp(1)), hash(&arp(2)));
        assert_eq!(hash(&[]), hash(&[0; 3]));
    }
}

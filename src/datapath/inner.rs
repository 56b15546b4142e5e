//! Questions about an inner frame that the inbound checks ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::ethernet::{self, EtherType, Frame};
use encap::{ndp, vlan};

const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Bytes of an IPv6 header.
const IPV6_LEN: usize = 40;
/// Where an advertisement has its target, from the ICMPv6 header on (RFC 4861 section 4.4).
const TARGET: usize = 8;

/// Type and offset of the payload. Tags of VLAN 0, which every receiver takes off as if they were
/// not there, are looked through; behind any other tag is another network.
pub(super) fn payload(frame: &[u8]) -> Option<(EtherType, usize)> {
    let mut found = (Frame::parse(frame)?.ether_type(), ethernet::HEADER_LEN);
    while found.0.is_tag() {
        let tag = vlan::Tag::parse(frame.get(found.1..)?)?;
        if tag.vid() != 0 {
            break;
        }
        found = (tag.ether_type(), found.1 + vlan::TAG_LEN);
    }
    Some(found)
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 4] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv4Addr::from(bytes).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(bytes).into())
}

/// The address at the place where a frame of this type has its source.
fn source_at(frame: &[u8], ether_type: EtherType, at: usize) -> Option<IpAddr> {
    match ether_type {
        EtherType::IPV4 => v4(frame, at + 12),
        EtherType::IPV6 => v6(frame, at + 8),
        EtherType::ARP => v4(frame, at + 14),
        _ => None,
    }
}

/// Whether the frame says that its sender has one of `addresses`: as the source of IPv4, IPv6 or ARP,
/// or as the target of a neighbor advertisement.
#[must_use]
pub fn claims(frame: &[u8], addresses: &[IpAddr]) -> bool {
    let Some((ether_type, at)) = payload(frame) else { return false };
    let has = |address: Option<IpAddr>| address.is_some_and(|it| addresses.contains(&it));
    if has(source_at(frame, ether_type, at)) {
        return true;
    }
    let message = at + IPV6_LEN;
    ether_type == EtherType::IPV6
        && frame.get(at + 6) == Some(&ICMPV6)
        && frame.get(message) == Some(&ndp::ADVERTISEMENT)
        && has(v6(frame, message + TARGET))
}

/// The address that an untagged IPv4, IPv6 or ARP frame claims as its source. Unspecified and
/// link-local addresses, which nobody owns in the tables, are `None`.
#[must_use]
pub fn source_address(frame: &[u8]) -> Option<IpAddr> {
    let (ether_type, at) = payload(frame)?;
    let address = source_at(frame, ether_type, at)?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!address.is_unspecified() && !link_local).then_some(address)
}

/// Whether the frame is a UDP packet to one of `own`: VXLAN inside VXLAN to ourselves, a loop.
#[must_use]
pub fn is_vxlan_to(frame: &[u8], own: &[(IpAddr, u16)]) -> bool {
    let found = || {
        let (ether_type, at) = payload(frame)?;
        let (address, udp) = match ether_type {
            EtherType::IPV4 if frame.get(at + 9) == Some(&UDP) => {
                let header = usize::from(frame.get(at)? & 0x0f) * 4;
                (v4(frame, at + 16)?, at + header)
            }
            EtherType::IPV6 if frame.get(at + 6) == Some(&UDP) => (v6(frame, at + 24)?, at + 40),
            _ => return None,
        };
        let port = u16::from_be_bytes(*frame.get(udp + 2..)?.first_chunk()?);
        Some(own.contains(&(address, port)))
    };
    found().unwrap_or(false)
}

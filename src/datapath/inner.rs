//! Two questions about an inner frame that the inbound checks ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;

fn ether_type(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(12..14)?.first_chunk()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 4] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv4Addr::from(bytes).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(bytes).into())
}

/// The address that an untagged IPv4, IPv6 or ARP frame claims as its source. Unspecified and
/// link-local addresses, which nobody owns in the tables, are `None`.
#[must_use]
pub fn source_address(frame: &[u8]) -> Option<IpAddr> {
    let address = match ether_type(frame)? {
        IPV4 => v4(frame, 14 + 12)?,
        IPV6 => v6(frame, 14 + 8)?,
        ARP => v4(frame, 14 + 14)?,
        _ => return None,
    };
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
        let (address, udp) = match ether_type(frame)? {
            IPV4 if frame.get(14 + 9) == Some(&UDP) => {
                let header = usize::from(frame.get(14)? & 0x0f) * 4;
                (v4(frame, 14 + 16)?, 14 + header)
            }
            IPV6 if frame.get(14 + 6) == Some(&UDP) => (v6(frame, 14 + 24)?, 14 + 40),
            _ => return None,
        };
        let port = u16::from_be_bytes(*frame.get(udp + 2..)?.first_chunk()?);
        Some(own.contains(&(address, port)))
    };
    found().unwrap_or(false)
}

//! An inner frame as the inbound checks see it: its type is found once, and each check asks it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::ethernet::{self, EtherType, Frame};
use encap::{udp, vlan};

/// An inner frame and where its payload begins.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    pub(super) frame: &'a [u8],
    pub(super) ether_type: EtherType,
    /// Offset of the payload in bytes.
    pub(super) at: usize,
}

pub(super) fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 4] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv4Addr::from(bytes).into())
}

pub(super) fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(bytes).into())
}

impl<'a> Inner<'a> {
    /// Tags of VLAN 0, which every receiver takes off as if they were not there, are looked through;
    /// behind any other tag is another network. `None` when a header is cut short.
    #[must_use]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (mut ether_type, mut at) = (Frame::parse(frame)?.ether_type(), ethernet::HEADER_LEN);
        while ether_type.is_tag() {
            let tag = vlan::Tag::parse(frame.get(at..)?)?;
            if tag.vid() != 0 {
                break;
            }
            (ether_type, at) = (tag.ether_type(), at + vlan::TAG_LEN);
        }
        Some(Self { frame, ether_type, at })
    }

    /// The address at the place where a frame of this type has its source.
    pub(super) fn source(&self) -> Option<IpAddr> {
        match self.ether_type {
            EtherType::IPV4 => v4(self.frame, self.at + 12),
            EtherType::IPV6 => v6(self.frame, self.at + 8),
            EtherType::ARP => v4(self.frame, self.at + 14),
            _ => None,
        }
    }

    /// The address that an IPv4, IPv6 or ARP frame claims as its source. Unspecified and link-local
    /// addresses, which nobody owns in the tables, are `None`.
    #[must_use]
    pub fn source_address(&self) -> Option<IpAddr> {
        let address = self.source()?;
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        (!address.is_unspecified() && !link_local).then_some(address)
    }

    /// Whether it is a UDP packet to one of `own`: VXLAN inside VXLAN to ourselves, a loop.
    #[must_use]
    pub fn is_vxlan_to(&self, own: &[(IpAddr, u16)]) -> bool {
        let Self { frame, at, .. } = *self;
        let found = || {
            let (address, datagram) = match self.ether_type {
                EtherType::IPV4 if frame.get(at + 9) == Some(&udp::PROTOCOL) => {
                    let header = usize::from(frame.get(at)? & 0x0f) * 4;
                    (v4(frame, at + 16)?, at + header)
                }
                EtherType::IPV6 if frame.get(at + 6) == Some(&udp::PROTOCOL) => {
                    (v6(frame, at + 24)?, at + 40)
                }
                _ => return None,
            };
            let port = u16::from_be_bytes(*frame.get(datagram + 2..)?.first_chunk()?);
            Some(own.contains(&(address, port)))
        };
        found().unwrap_or(false)
    }
}

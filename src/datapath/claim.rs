//! What ARP and neighbor discovery say about who has an address.
//!
//! Receivers believe such frames, so one that contradicts the tables would lead the traffic of its
//! victim astray until the victim's neighbors ask again. Those from the wire are therefore held
//! against the tables in every network, whatever its source check; no other frame costs more than
//! the look at its type.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::MacAddr;
use encap::ethernet::EtherType;
use fdb::NetworkTables;

use super::inner;

const ICMPV6: u8 = 58;
/// Bytes of an IPv6 header.
const IPV6_LEN: usize = 40;
/// Redirects are the last of the five messages (RFC 4861 section 4).
const FIRST: u8 = 133;
const REDIRECT: u8 = 137;
/// Where the options of each message begin, from router solicitation on (RFC 4861 sections 4.1 to
/// 4.5).
const OPTIONS: [usize; 5] = [8, 16, 24, 24, 40];
const ADVERTISEMENT: u8 = 136;
/// Where an advertisement has its target.
const TARGET: usize = 8;
/// Source and target link-layer address, each one unit of eight bytes long on Ethernet (RFC 2464
/// section 6).
const LINK_LAYER: [u8; 2] = [1, 2];
/// Options that are looked at; a message of more says nothing that anybody needs.
const OPTIONS_MAX: usize = 16;

/// Whether the frame claims an address for a MAC that the tables give to another one. `source` is the
/// frame's source MAC.
#[must_use]
pub fn contradicts(frame: &[u8], source: MacAddr, tables: &NetworkTables) -> bool {
    let owner = |address: IpAddr| tables.neighbor(address).map(|neighbor| neighbor.mac);
    match inner::payload(frame) {
        Some((EtherType::ARP, at)) => {
            let claim = || {
                let mac = MacAddr::from_slice(frame.get(at + 8..)?)?;
                let sender: [u8; 4] = *frame.get(at + 14..)?.first_chunk()?;
                Some(owner(Ipv4Addr::from(sender).into())? != mac)
            };
            claim().unwrap_or(false)
        }
        Some((EtherType::IPV6, at)) if frame.get(at + 6) == Some(&ICMPV6) => {
            discovery(frame, at, source, owner).unwrap_or(false)
        }
        _ => false,
    }
}

/// As [`contradicts`], for ICMPv6 in the packet at `at`; `None` where nothing is claimed.
fn discovery(
    frame: &[u8],
    at: usize,
    source: MacAddr,
    owner: impl Fn(IpAddr) -> Option<MacAddr>,
) -> Option<bool> {
    let message = frame.get(at + IPV6_LEN..)?;
    let kind = *message.first()?;
    if !(FIRST..=REDIRECT).contains(&kind) {
        return None;
    }
    // An advertisement is about its target, the others about who sends them.
    let address =
        if kind == ADVERTISEMENT { message.get(TARGET..)? } else { frame.get(at + 8..)? };
    let address: [u8; 16] = *address.first_chunk()?;
    let owner = owner(Ipv6Addr::from(address).into())?;
    if owner != source {
        return Some(true);
    }
    // A redirect's option is about its destination.
    if kind == REDIRECT {
        return None;
    }
    let mut options = message.get(*OPTIONS.get(usize::from(kind - FIRST))?..)?;
    for _ in 0..OPTIONS_MAX {
        let [option, units, ..] = *options else { break };
        let len = usize::from(units) * 8;
        if len == 0 {
            break;
        }
        if LINK_LAYER.contains(&option)
            && options.get(2..).and_then(MacAddr::from_slice) != Some(owner)
        {
            return Some(true);
        }
        options = options.get(len..).unwrap_or_default();
    }
    Some(false)
}

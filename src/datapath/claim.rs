//! What a frame from the wire says about who has an address.
//!
//! Receivers believe ARP and neighbor discovery, so one that contradicts the tables would lead the
//! traffic of its victim astray until the victim's neighbors ask again. Those from the wire are
//! therefore held against the tables in every network, whatever its source check; no other frame
//! costs more than the look at its type.
//!
//! Fields are read where they lie and not by the views of `encap`, which are stricter than
//! receivers: Linux takes ARP of the hardware type of IEEE 802 too (net/ipv4/arp.c, `arp_process`).

use std::net::IpAddr;

use encap::ethernet::EtherType;
use encap::{MacAddr, icmpv6, ipv6, ndp};
use fdb::NetworkTables;

use super::inner::{self, Inner};

/// Router solicitation is the first of the five messages, redirect the last (RFC 4861 section 4).
const FIRST: u8 = 133;
const REDIRECT: u8 = 137;
/// Where the options of each message begin, from router solicitation on (RFC 4861 sections 4.1 to
/// 4.5).
const OPTIONS: [usize; 5] = [8, 16, 24, 24, 40];
/// Where an advertisement has its target (RFC 4861 section 4.4).
const TARGET: usize = 8;
/// Source and target link-layer address, each one unit of eight bytes long on Ethernet (RFC 2464
/// section 6).
const LINK_LAYER: [u8; 2] = [1, 2];
/// Options that are looked at; a message of more says nothing that anybody needs.
const OPTIONS_MAX: usize = 16;

/// Whether the frame says that its sender has one of `addresses`: as the source of IPv4, IPv6 or
/// ARP, or as the target of a neighbor advertisement.
#[must_use]
pub fn names_one_of(inner: &Inner<'_>, addresses: &[IpAddr]) -> bool {
    let has = |address: Option<IpAddr>| address.is_some_and(|it| addresses.contains(&it));
    has(inner.source())
        || discovery(inner).is_some_and(|message| {
            message.first() == Some(&ndp::ADVERTISEMENT) && has(inner::v6(message, TARGET))
        })
}

/// Whether the frame claims, by ARP or neighbor discovery, an address for a MAC that the tables give
/// to another one. `source` is the frame's source MAC.
#[must_use]
pub fn contradicts(inner: &Inner<'_>, source: MacAddr, tables: &NetworkTables) -> bool {
    let owner = |address: IpAddr| tables.neighbor(address).map(|neighbor| neighbor.mac);
    let claim = || match inner.ether_type {
        EtherType::ARP => {
            let mac = MacAddr::from_slice(inner.frame.get(inner.at + 8..)?)?;
            Some(owner(inner.source()?)? != mac)
        }
        EtherType::IPV6 => told(inner, discovery(inner)?, source, owner),
        _ => None,
    };
    claim().unwrap_or(false)
}

/// The neighbor discovery message of a frame, from its ICMPv6 header on, also behind extension
/// headers.
fn discovery<'a>(inner: &Inner<'a>) -> Option<&'a [u8]> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    if inner.ether_type != EtherType::IPV6 {
        return None;
    }
    let bytes = inner.frame.get(inner.at..)?;
    let extensions = match *bytes.get(6)? {
        icmpv6::PROTOCOL => 0,
        // A fragment of neighbor discovery is taken by nobody (RFC 6980).
        HOP_BY_HOP | ROUTING | DESTINATION => {
            let found = ipv6::Packet::parse(bytes)?.extensions()?;
            (found.protocol == icmpv6::PROTOCOL).then_some(found.len)?
        }
        _ => return None,
    };
    let message = bytes.get(ipv6::HEADER_LEN + extensions..)?;
    (FIRST..=REDIRECT).contains(message.first()?).then_some(message)
}

/// As [`contradicts`], for a neighbor discovery message; `None` where nothing is claimed.
fn told(
    inner: &Inner<'_>,
    message: &[u8],
    source: MacAddr,
    owner: impl Fn(IpAddr) -> Option<MacAddr>,
) -> Option<bool> {
    let kind = *message.first()?;
    // An advertisement is about its target, the others about who sends them.
    let about =
        if kind == ndp::ADVERTISEMENT { inner::v6(message, TARGET) } else { inner.source() };
    let owner = owner(about?)?;
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

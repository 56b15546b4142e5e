//! ARP and ND suppression, and the answers to frames that do not fit or cannot be delivered.
//!
//! # Theory of operation
//!
//! A question for an address is answered from the tables, in the name of the endpoint that owns it,
//! so it never crosses the underlay:
//!
//! - the owner is on this host: left to the owner, who hears the question through the bridge; where
//!   the switch carries local frames the owner does not hear it, and it is answered as the next;
//! - the network's gateway, which is on every host: left to it;
//! - the owner is elsewhere: answered here, probes too (RFC 5227: the prober must learn that the
//!   address is taken), unless the prober is itself the owner: duplicate detection of one's own
//!   address stays silent;
//! - nobody owns it: the network's rule (drop, or flood where it learns).
//!
//! An IPv6 link-local address is in no record. The one that an interface makes of its MAC (RFC 4291
//! appendix A) is the only one that a sandbox may use, so its owner is found by the MAC.

use std::net::IpAddr;

use encap::{Link, MacAddr, arp, icmpv4, icmpv6, ndp};
use fdb::{NetworkTables, Place};

/// What to do with a group frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The target is on this host and answers by itself.
    LeftToTarget,
    /// No question that we answer.
    NotAsked,
    /// A probe for the asker's own address.
    OwnProbe,
    /// The answer, a frame of this many bytes.
    Reply(usize),
    /// Nobody has that address.
    UnknownTarget,
}

/// Looks at a group frame and writes the answer to `reply` when there is one, with `everyone` also
/// for owners on this host.
pub fn answer(tables: &NetworkTables, frame: &[u8], everyone: bool, reply: &mut [u8]) -> Answer {
    let (target, asker) = if let Some(question) = arp::question(frame) {
        (IpAddr::V4(question.target), question.sender_mac)
    } else if let Some(question) = ndp::question(frame) {
        (IpAddr::V6(question.target), question.sender_mac)
    } else {
        return Answer::NotAsked;
    };
    if tables.params().gateway.as_ref().is_some_and(|it| it.addresses.contains(&target)) {
        return Answer::LeftToTarget;
    }
    let Some((mac, place)) = owner(tables, target) else { return Answer::UnknownTarget };
    if mac == asker {
        return Answer::OwnProbe;
    }
    if place == Place::Local && !everyone {
        return Answer::LeftToTarget;
    }
    let len = match target {
        IpAddr::V4(_) => arp::reply(frame, mac, reply),
        IpAddr::V6(_) => ndp::reply(frame, mac, reply),
    };
    len.map_or(Answer::NotAsked, Answer::Reply)
}

/// Who has an address, and where.
fn owner(tables: &NetworkTables, address: IpAddr) -> Option<(MacAddr, Place)> {
    if let Some(neighbor) = tables.neighbor(address) {
        return Some((neighbor.mac, neighbor.place));
    }
    let IpAddr::V6(address) = address else { return None };
    let mac = MacAddr::from_link_local(address)?;
    Some((mac, tables.mac(mac)?.place))
}

/// Writes the ICMP answer that tells the sender of `frame` that `mtu` bytes is the most; `None`
/// where its protocol has no such answer.
pub fn too_big(frame: &[u8], mtu: u16, reply: &mut [u8]) -> Option<usize> {
    icmpv4::fragmentation_needed(frame, mtu, reply)
        .or_else(|| icmpv6::packet_too_big(frame, mtu, reply))
}

/// As [`too_big`], for a packet without a link layer.
pub fn packet_too_big(packet: &[u8], mtu: u16, reply: &mut [u8]) -> Option<usize> {
    icmpv4::fragmentation_needed_on(Link::None, packet, mtu, reply)
        .or_else(|| icmpv6::packet_too_big_on(Link::None, packet, mtu, reply))
}

/// Why a packet cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Nobody has such addresses.
    Net,
    /// Nobody has this address, or its host is not to be reached.
    Host,
}

/// Writes the ICMP answer that tells the sender of `packet` that it cannot be delivered; `None` where
/// its protocol has no such answer. It comes from the destination: a port has no address of its own,
/// and what comes in by it must not have one of this host's.
pub fn unreachable(packet: &[u8], why: Unreachable, reply: &mut [u8]) -> Option<usize> {
    let (v4, v6) = match why {
        Unreachable::Net => (icmpv4::NET_UNREACHABLE, icmpv6::NO_ROUTE),
        Unreachable::Host => (icmpv4::HOST_UNREACHABLE, icmpv6::ADDRESS_UNREACHABLE),
    };
    icmpv4::unreachable_on(Link::None, packet, v4, reply)
        .or_else(|| icmpv6::unreachable_on(Link::None, packet, v6, reply))
}

/// Writes the announcement that makes the containers of this host replace what they cached for
/// `address`: a gratuitous ARP or an unsolicited neighbor advertisement.
pub fn announcement(address: IpAddr, mac: MacAddr, out: &mut [u8]) -> Option<usize> {
    match address {
        IpAddr::V4(v4) => arp::announcement(v4, mac, out),
        IpAddr::V6(v6) => ndp::announcement(v6, mac, out),
    }
}

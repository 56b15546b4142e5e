//! Routes in the host's namespace to what other hosts of the same subnet have of a network, for packets
//! that go as they are.
//!
//! # Theory of operation
//!
//! ```text
//!   private namespace              host's namespace
//!     prefix ─► up0 ──── uplink ─────┐ rule: what comes in by the uplink asks our table first
//!                          ▲         └─► prefix ─► VTEP of the other host, on the underlay's interface
//!                          └──────────── subnets ◄─ from the underlay, and from the host itself
//! ```
//!
//! The routes are in a table of their own, and only what comes in by an uplink asks it. All else takes
//! the main table, where the network's subnets lead to the uplink: a packet from the wire for an
//! address of this host that lies in another host's block, and what the host itself sends, which
//! gets its address in the network on the way through the private namespace ([`super::routed`]) and
//! comes back by the uplink. The kernel's check of sources (`rp_filter`) asks for the way back as if
//! from the interface that a packet leaves by, so it finds these routes too
//! (net/ipv4/fib_frontend.c, `__fib_validate_source`).
//!
//! The uplink leads to the host and back; these routes are the other half. All hosts of the subnet have
//! them, also those that packets are encapsulated to: the private namespace alone says which way is
//! taken, and what a host sends as it is passes the check while this one still encapsulates. They come
//! before those in the private namespace and go after them: without them a packet would come back
//! by the uplink, where the rules ([`super::firewall`]) end it.
//!
//! Routes and rules stay when the agent ends, as everything that carries packets does, and are found
//! by the next one. Others take them away (an interface that is set down, a network manager that
//! starts): so they are read again and again.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::routing::{PROTOCOL, Route, device};
use super::{Error, Netlink};

/// Our table: the number that marks our routes, twice.
const TABLE: u32 = 0x5b5b;
/// Our rules come before those of programs that take the whole of the host's traffic elsewhere.
const PREFERENCE: u32 = 1000;
/// Metric of the routes.
const METRIC: u32 = 40;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// One of the routes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direct {
    /// What the other host has.
    pub to: IpNet,
    /// Its VTEP, of the same family.
    pub via: IpAddr,
    /// Index of the interface that the VTEP's subnet is on.
    pub interface: u32,
}

/// What is to be, or is, in the host's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Half {
    /// The routes, sorted.
    pub routes: Vec<Direct>,
    /// The uplinks of networks whose packets go directly, sorted: what comes in by them is asked.
    pub uplinks: Vec<String>,
}

impl Half {
    fn has(&self, family: AddressFamily) -> bool {
        let v6 = family == AddressFamily::Inet6;
        self.routes.iter().any(|direct| direct.to.addr().is_ipv6() == v6)
    }

    fn asks(&self, family: AddressFamily, uplink: &String) -> bool {
        self.has(family) && self.uplinks.contains(uplink)
    }
}

/// What became of making the host's half as it shall be.
#[derive(Debug, Default)]
pub struct Settled {
    /// Something was missing that an earlier call had made.
    pub lost: bool,
    /// Routes that the kernel refused; all others are there.
    pub refused: Vec<Direct>,
    /// Why it refused the first of them.
    pub error: Option<Error>,
}

/// Makes the host's half as `wanted`, where it is not; `before` is what an earlier call has made.
///
/// # Errors
/// `Netlink`, `Timeout`, for all but single routes.
pub async fn settle(
    host: &Netlink,
    wanted: &Half,
    before: Option<&Half>,
) -> Result<Settled, Error> {
    let mut settled = Settled::default();
    for family in FAMILIES {
        settle_routes(host, family, &wanted.routes, before, &mut settled).await?;
        // Nothing is asked for a family that no route has.
        let uplinks: &[String] = if wanted.has(family) { &wanted.uplinks } else { &[] };
        settled.lost |= settle_rules(host, family, uplinks, before).await?;
    }
    Ok(settled)
}

async fn settle_routes(
    host: &Netlink,
    family: AddressFamily,
    wanted: &[Direct],
    before: Option<&Half>,
    settled: &mut Settled,
) -> Result<(), Error> {
    let mut present = Vec::new();
    for message in host.routes_of(family, TABLE).await? {
        let found = read(&message);
        match found.filter(|direct| wanted.contains(direct)) {
            Some(direct) => present.push(direct),
            // Not only ours: the table has nothing else in it.
            None => host.route_delete(message, "of packets that went directly").await?,
        }
    }
    let v6 = family == AddressFamily::Inet6;
    let of_family = wanted.iter().filter(|direct| direct.to.addr().is_ipv6() == v6);
    for direct in of_family.filter(|direct| !present.contains(direct)) {
        settled.lost |= before.is_some_and(|before| before.routes.contains(direct));
        let (to, via) = (direct.to, Some(direct.via));
        let route = Route { to, via, source: None, metric: METRIC };
        let message = route.message(TABLE, direct.interface);
        // One that the kernel refuses (an interface that is down) says nothing of the others.
        if let Err(error) = host.route_replace(message, &format!("{to} via {}", direct.via)).await {
            settled.refused.push(direct.clone());
            settled.error.get_or_insert(error);
        }
    }
    Ok(())
}

async fn settle_rules(
    host: &Netlink,
    family: AddressFamily,
    wanted: &[String],
    before: Option<&Half>,
) -> Result<bool, Error> {
    let mut present = Vec::new();
    for message in host.rules(family).await? {
        if !is_ours(&message) {
            continue;
        }
        match uplink_of(&message).filter(|uplink| wanted.contains(uplink)) {
            Some(uplink) if !present.contains(&uplink) => present.push(uplink),
            _ => host.rule_delete(message, "of an uplink").await?,
        }
    }
    let mut lost = false;
    for uplink in wanted.iter().filter(|uplink| !present.contains(uplink)) {
        lost |= before.is_some_and(|before| before.asks(family, uplink));
        host.rule_add(rule(family, uplink), &format!("of uplink {uplink}")).await?;
    }
    Ok(lost)
}

fn rule(family: AddressFamily, uplink: &str) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Iifname(uplink.to_owned()),
        RuleAttribute::Priority(PREFERENCE),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    message
}

fn is_ours(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Table(TABLE))
        && message.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

fn uplink_of(message: &RuleMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(name) => Some(name.clone()),
        _ => None,
    })
}

fn read(message: &netlink_packet_route::route::RouteMessage) -> Option<Direct> {
    let (route, interface) = (Route::read(message)?, device(message)?);
    Some(Direct { to: route.to, via: route.via?, interface })
}

/// What is there.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn present(host: &Netlink) -> Result<Half, Error> {
    let mut half = Half::default();
    for family in FAMILIES {
        let routes = host.routes_of(family, TABLE).await?;
        half.routes.extend(routes.iter().filter_map(read));
        let rules = host.rules(family).await?;
        half.uplinks.extend(rules.iter().filter(|rule| is_ours(rule)).filter_map(uplink_of));
    }
    half.routes.sort_unstable();
    half.uplinks.sort_unstable();
    half.uplinks.dedup();
    Ok(half)
}

/// Removes it all. Returns whether there was anything.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn remove(host: &Netlink) -> Result<bool, Error> {
    let any = present(host).await? != Half::default();
    settle(host, &Half::default(), None).await?;
    Ok(any)
}

//! Routes in the host's namespace to what other hosts of the same subnet have of a network, for packets
//! that go as they are.
//!
//! # Theory of operation
//!
//! ```text
//!   private namespace                host's namespace
//!     prefix ─► up0 ──── uplink ────── prefix ─► VTEP of the other host, on the underlay's interface
//! ```
//!
//! The uplink ([`super::uplink`]) leads to the host and back; these routes are the other half. They
//! come before those in the private namespace and go after them: without them a packet would come
//! back by the uplink, where the rules ([`super::firewall`]) end it.
//!
//! All our routes through interfaces that are not uplinks are these. They stay when the agent ends, as
//! everything that carries packets does, and are found by the next one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::names::UPLINK;
use super::routing::{Route, our_routes, settle_routes};
use super::{Error, Netlink, sysctl};

/// Metric of the routes; those of subnets through the uplinks have another.
const METRIC: u32 = 40;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direct {
    /// What the other host has.
    pub to: IpNet,
    /// Its VTEP, of the same family.
    pub via: IpAddr,
    /// Index of the interface that the VTEP's subnet is on.
    pub interface: u32,
}

/// Makes `wanted` exactly these routes in the namespace of `host`.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn settle(host: &Netlink, wanted: &[Direct]) -> Result<(), Error> {
    for link in host.links().await?.iter().filter(|link| !link.name.starts_with(UPLINK)) {
        let here = wanted.iter().filter(|direct| direct.interface == link.index);
        let here = here.map(|direct| Route {
            to: direct.to,
            via: Some(direct.via),
            source: None,
            metric: METRIC,
        });
        settle_routes(host, link, &here.collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// Those that are there.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn present(host: &Netlink) -> Result<Vec<Direct>, Error> {
    let links = host.links().await?;
    let uplinks = links.iter().filter(|link| link.name.starts_with(UPLINK));
    let uplinks: Vec<u32> = uplinks.map(|link| link.index).collect();
    let ours = our_routes(host).await?.into_iter();
    let direct = ours.filter(|(interface, _)| !uplinks.contains(interface));
    let of = |(interface, route): (u32, Route)| {
        Some(Direct { to: route.to, via: route.via?, interface })
    };
    Ok(direct.filter_map(of).collect())
}

/// Removes them all. Returns whether there were any.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn remove(host: &Netlink) -> Result<bool, Error> {
    let any = !present(host).await?.is_empty();
    if any {
        settle(host, &[]).await?;
    }
    Ok(any)
}

/// Whether the calling thread's namespace refuses what comes in by an interface that it would not
/// answer by (`rp_filter`, the stricter of the two settings).
#[must_use]
pub fn is_strict(interface: &str) -> bool {
    let of = |name: &str| {
        let text = sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter"));
        text.and_then(|text| text.parse::<u8>().ok()).unwrap_or(0)
    };
    // Loose, 2, goes before strict, 1 (Documentation/networking/ip-sysctl.rst).
    of("all").max(of(interface)) == 1
}

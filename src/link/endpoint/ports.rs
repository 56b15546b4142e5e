//! The router's end of a sandbox's link in a network that is routed, and the routes on both ends.
//!
//! Routes and neighbors are written whenever the link is set up, since the kernel forgets them when it
//! is set down. What the source check lets through is checked once more by the routes themselves
//! (`rp_filter`, IPv4 only).

use std::net::IpAddr;

use netlink_packet_route::link::LinkAttribute;

use super::super::routed::{self, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use super::super::routing::{Route, settle_addresses, settle_routes};
use super::super::view::Link;
use super::super::{Error, Netlink, NetworkNs, run_in, sysctl};
use super::{Plug, Plugged, route_via};

/// Metric of the routes to sandboxes: one that both families can have.
const METRIC: u32 = 100;

/// Brings the router's end to what `plug` says; it may be down.
pub(super) async fn settle(
    network: &NetworkNs,
    port: &Link,
    plug: &Plug,
    alias: &str,
) -> Result<(), Error> {
    let netlink = network.netlink();
    let ipv6 = plug.has_ipv6();
    run_in(network.namespace(), || {
        routed::settle_ipv6(&port.name, ipv6)?;
        sysctl::ensure(&format!("net/ipv4/conf/{}/rp_filter", port.name), "1")
    })??;
    let mut changes = Vec::new();
    if port.mac != GATEWAY_MAC {
        changes.push(LinkAttribute::Address(GATEWAY_MAC.0.to_vec()));
    }
    if port.mtu != plug.mtu {
        changes.push(LinkAttribute::Mtu(plug.mtu));
    }
    if port.alias != alias {
        changes.push(LinkAttribute::IfAlias(alias.into()));
    }
    if !changes.is_empty() {
        netlink.set(port, changes, None).await?;
    }
    let addresses = if ipv6 { vec![routed::near_address()] } else { Vec::new() };
    settle_addresses(netlink, port, &addresses).await
}

/// The routes and neighbors of both ends, which are up.
pub(super) async fn route(
    network: &NetworkNs,
    sandbox: &Netlink,
    plugged: &Plugged,
) -> Result<(), Error> {
    let Plugged { plug, port, inner } = plugged;
    let netlink = network.netlink();
    let on_link = |ip: IpAddr| Route { to: ip.into(), via: None, source: None, metric: METRIC };
    let mut routes: Vec<Route> = plug.addresses.iter().map(|it| on_link(it.addr())).collect();
    for address in &plug.addresses {
        netlink.neighbor_replace(port, address.addr(), plug.mac).await?;
    }
    if plug.has_ipv6() {
        let link_local: IpAddr = super::link_local(plug.mac).into();
        netlink.neighbor_replace(port, link_local, plug.mac).await?;
        // The prefix of the router's own link-local address, which has no route with it.
        let prefix = routed::near_address().trunc();
        routes.push(Route { to: prefix, via: None, source: None, metric: METRIC });
    }
    settle_routes(netlink, port, &routes).await?;
    for (v6, gateway) in [(false, IpAddr::from(GATEWAY_V4)), (true, GATEWAY_V6.into())] {
        if !plug.addresses.iter().any(|address| address.addr().is_ipv6() == v6) {
            continue;
        }
        sandbox.neighbor_replace(inner, gateway, GATEWAY_MAC).await?;
        if !v6 {
            // Of several such networks each has a router of its own behind its own link.
            let metric = inner.index;
            let to_router = Route { metric, ..on_link(gateway) };
            settle_routes(sandbox, inner, &[to_router]).await?;
        }
        let subnets = plug.subnets.iter().filter(|subnet| subnet.addr().is_ipv6() == v6);
        for subnet in subnets {
            route_via(sandbox, plugged, subnet.addr(), subnet.prefix_len(), gateway).await?;
        }
    }
    Ok(())
}

//! The gateway of a network, in its private namespace.
//!
//! # Theory of operation
//!
//! ```text
//!   sandboxes    wire                            host
//!     ve*        tap0                              |
//!      \          |                                |
//!   +---- br0 ----+---- gwp0 -- gw0                |
//!   |     router MAC            gateway MAC        |
//!   |     own addresses         gateway addresses  |
//!   |          \________ routed ________/          |
//!   |                      \______ up0 ____________|   (super::uplink)
//! ```
//!
//! A host has two addresses in a network, and they must not be mixed up. The *gateway's* are the same
//! on every host: `gw0` has them, with a MAC that is the same on every host too, and rules of the
//! bridge keep its frames and the wire's apart, also while no agent runs. The host's *own* address and
//! router MAC are known to all hosts as an endpoint of this one: the bridge device has them, and what
//! is routed into the network goes out with them. A host that has no address of its own there
//! (nothing asks for one, or the store has not given it yet) routes to its own sandboxes only, through
//! `gw0`.
//!
//! The kernel does it all, so the gateway works on while the agent does not run. ARP is answered by
//! the device that has the address and asked with the address of the device that asks (`arp_ignore`,
//! `arp_announce`): nobody learns the gateway's address with the router MAC.
//!
//! Sources from outside of the network are masqueraded on the way in: an answer to any other address
//! would leave by the gateway of whatever host the endpoint is on, and never come back here.

use std::fmt::Write as _;

use encap::MacAddr;
use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::link::LinkAttribute;

use super::endpoint::{link_local, settle_fdb};
use super::names::{BRIDGE, TAP};
use super::nft::{in_namespace, nft};
use super::routing::{Route, settle_addresses, settle_routes};
use super::view::{Kind, Link, PortView};
use super::{Error, NetworkNs, run_in, sysctl};

/// The device that has the gateway's addresses.
pub const GATEWAY: &str = "gw0";
/// Its other end, a port of the bridge.
pub const GATEWAY_PORT: &str = "gwp0";
/// Marks the port in listings.
const ALIAS: &str = "skybridge gateway";
/// Routes of the host's own addresses come before those of the gateway's.
const METRIC_OWN: u32 = 100;
const METRIC_GATEWAY: u32 = 200;

/// Settings of the namespace, before anything is made in it.
const SETTINGS: [(&str, &str); 7] = [
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    // The answer's way differs from the question's: in by gw0, out by br0. Sources are checked at
    // the ports.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    // Who is told of an error hears it from the gateway that it knows.
    ("net/ipv4/icmp_errors_use_inbound_ifaddr", "1"),
];

/// What a gateway is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// The gateway's MAC, the same on every host.
    pub gateway_mac: MacAddr,
    /// Its addresses, with the prefix lengths of their subnets.
    pub gateways: Vec<IpNet>,
    /// MAC of frames that this host routes into the network.
    pub router_mac: MacAddr,
    /// This host's own addresses in the network, with prefix lengths; may be empty.
    pub own: Vec<IpNet>,
    /// All subnets of the network.
    pub subnets: Vec<IpNet>,
    /// IP MTU in bytes.
    pub mtu: u32,
}

impl Router {
    fn routes(&self, addresses: &[IpNet], metric: u32) -> Vec<Route> {
        let route = |address: &IpNet| Route {
            to: address.trunc(),
            via: None,
            source: Some(address.addr()),
            metric,
        };
        addresses.iter().map(route).collect()
    }

    /// Rules of the private namespace.
    fn rules(&self) -> String {
        let mut text = REMOVE.to_owned();
        let mut line = |rest: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{rest}");
        };
        for family in ["bridge", "inet"] {
            line(format_args!("add table {family} skybridge_router"));
        }
        line(format_args!(
            "add chain bridge skybridge_router forward {{ type filter hook forward priority 0; }}"
        ));
        for (from, to) in [(GATEWAY_PORT, TAP), (TAP, GATEWAY_PORT)] {
            line(format_args!(
                "add rule bridge skybridge_router forward iifname \"{from}\" oifname \"{to}\" drop"
            ));
        }
        line(format_args!(
            "add chain inet skybridge_router postrouting \
             {{ type nat hook postrouting priority 100; }}"
        ));
        for (v6, word) in [(false, "ip"), (true, "ip6")] {
            let of_family = self.subnets.iter().filter(|subnet| subnet.addr().is_ipv6() == v6);
            let of_family: Vec<String> = of_family.map(ToString::to_string).collect();
            if !of_family.is_empty() {
                line(format_args!(
                    "add rule inet skybridge_router postrouting \
                     oifname {{ \"{BRIDGE}\", \"{GATEWAY}\" }} {word} saddr != {{ {} }} \
                     masquerade",
                    of_family.join(", ")
                ));
            }
        }
        text
    }
}

/// Removes the rules whether they are there or not.
const REMOVE: &str = "add table bridge skybridge_router\ndelete table bridge skybridge_router\n\
                      add table inet skybridge_router\ndelete table inet skybridge_router\n";

/// Makes the gateway as `wanted`, whatever is there of it. The rules are written when `rules` is set;
/// the rest is compared first.
///
/// # Errors
/// `Nft`, with all the rest done; `Sysctl`, `Netlink`, `Timeout`.
pub async fn settle(network: &NetworkNs, wanted: &Router, rules: bool) -> Result<(), Error> {
    let netlink = network.netlink();
    let namespace = network.namespace();
    run_in(namespace, || {
        SETTINGS.iter().try_for_each(|(name, value)| sysctl::ensure(name, value).map(drop))
    })??;
    // Before the first frame. Without them the switch still drops what the gateway sends to it.
    let ruled = if rules {
        let text = wanted.rules();
        let work = move || nft("keep the gateway's frames on this host", &["-f", "-"], &text);
        in_namespace(namespace, work).await.map(drop)
    } else {
        Ok(())
    };
    let (gateway, port) = devices(network, wanted).await?;
    network.settle_port(&port, PortView::endpoint(false), wanted.mtu, ALIAS).await?;
    settle_fdb(netlink, &port, wanted.gateway_mac).await?;
    let bridge = look_up(network, BRIDGE).await?;
    for (link, mac) in [(&gateway, wanted.gateway_mac), (&bridge, wanted.router_mac)] {
        let mut changes = Vec::new();
        if link.mac != mac {
            changes.push(LinkAttribute::Address(mac.0.to_vec()));
        }
        if link.mtu != wanted.mtu {
            changes.push(LinkAttribute::Mtu(wanted.mtu));
        }
        if !changes.is_empty() {
            netlink.set(link, changes, None).await?;
        }
    }
    let settings = |link: &Link, addresses: &[IpNet]| {
        let (name, v6) = (link.name.clone(), addresses.iter().any(|it| it.addr().is_ipv6()));
        run_in(namespace, move || prepare(&name, v6))
    };
    settings(&gateway, &wanted.gateways)??;
    settings(&bridge, &wanted.own)??;
    for link in [&port, &gateway] {
        if !link.up {
            netlink.set(link, Vec::new(), Some(true)).await?;
        }
    }
    for (link, mac, addresses, metric) in [
        (&gateway, wanted.gateway_mac, &wanted.gateways, METRIC_GATEWAY),
        (&bridge, wanted.router_mac, &wanted.own, METRIC_OWN),
    ] {
        let mut all = addresses.clone();
        if all.iter().any(|address| address.addr().is_ipv6()) {
            all.push(Ipv6Net::new_assert(link_local(mac), 64).into());
        }
        settle_addresses(netlink, link, &all).await?;
        let mut routes = wanted.routes(addresses, metric);
        if routes.len() < all.len() {
            // Whoever asks by its link-local address is answered there.
            let to = Ipv6Net::new_assert(link_local(mac), 64).trunc().into();
            routes.push(Route { to, via: None, source: None, metric });
        }
        settle_routes(netlink, link, &routes).await?;
    }
    run_in(namespace, || {
        // Last: until here nothing that is half made forwards.
        let on = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        on.iter().try_for_each(|name| sysctl::ensure(name, "1").map(drop))
    })??;
    ruled
}

/// Ends the gateway: its devices and rules go, the bridge has no addresses any more, and nothing is
/// routed. Returns whether there was one.
///
/// # Errors
/// As [`settle`].
pub async fn remove(network: &NetworkNs) -> Result<bool, Error> {
    let netlink = network.netlink();
    run_in(network.namespace(), || {
        let off = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        off.iter().try_for_each(|name| sysctl::ensure(name, "0").map(drop))
    })??;
    let there = netlink.delete_name(GATEWAY_PORT).await?;
    let bridge = look_up(network, BRIDGE).await?;
    settle_routes(netlink, &bridge, &[]).await?;
    settle_addresses(netlink, &bridge, &[]).await?;
    run_in(network.namespace(), || prepare(BRIDGE, false))??;
    if there {
        let work = || nft("remove the gateway's rules", &["-f", "-"], REMOVE);
        in_namespace(network.namespace(), work).await?;
    }
    Ok(there)
}

/// The gateway's device and its port, made where they are not.
async fn devices(network: &NetworkNs, wanted: &Router) -> Result<(Link, Link), Error> {
    let netlink = network.netlink();
    let (gateway, port) = (netlink.link(GATEWAY).await?, netlink.link(GATEWAY_PORT).await?);
    if let (Some(gateway), Some(port)) = (&gateway, &port)
        && gateway.kind == Kind::Veth
        && gateway.peer == Some(port.index)
    {
        return Ok((gateway.clone(), port.clone()));
    }
    for link in [gateway, port].into_iter().flatten() {
        netlink.delete(&link).await?;
    }
    let mtu = LinkAttribute::Mtu(wanted.mtu);
    let near = vec![mtu.clone(), LinkAttribute::Controller(network.needed_bridge()?)];
    let far = vec![mtu, LinkAttribute::Address(wanted.gateway_mac.0.to_vec())];
    netlink.create_veth(GATEWAY_PORT, near, GATEWAY, network.namespace(), far).await?;
    Ok((look_up(network, GATEWAY).await?, look_up(network, GATEWAY_PORT).await?))
}

async fn look_up(network: &NetworkNs, name: &str) -> Result<Link, Error> {
    let gone = || Error::NoLink { what: network.namespace().label().into(), link: name.into() };
    network.netlink().link(name).await?.ok_or_else(gone)
}

/// Settings of a device that routes, in the calling thread's namespace.
fn prepare(name: &str, ipv6: bool) -> Result<(), Error> {
    let of = |family: &str, setting: &str| format!("net/{family}/conf/{name}/{setting}");
    sysctl::ensure(&of("ipv4", "rp_filter"), "0")?;
    sysctl::ensure(&of("ipv4", "send_redirects"), "0")?;
    // Its link-local address is added, not made with a second of detection.
    sysctl::ensure(&of("ipv6", "addr_gen_mode"), "1")?;
    sysctl::ensure(&of("ipv6", "accept_ra"), "0")?;
    sysctl::ensure(&of("ipv6", "disable_ipv6"), if ipv6 { "0" } else { "1" })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_keep_gateway_and_wire_apart_and_masquerade_what_is_not_of_the_network() {
        let router = Router {
            gateway_mac: "02:42:c0:00:02:01".parse().unwrap(),
            gateways: vec!["192.0.2.1/24".parse().unwrap()],
            router_mac: "06:00:00:00:00:01".parse().unwrap(),
            own: Vec::new(),
            subnets: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            mtu: 1450,
        };
        let rules = router.rules();
        for part in [
            "forward iifname \"gwp0\" oifname \"tap0\" drop",
            "forward iifname \"tap0\" oifname \"gwp0\" drop",
            "oifname { \"br0\", \"gw0\" } ip saddr != { 192.0.2.0/24 } masquerade",
            "oifname { \"br0\", \"gw0\" } ip6 saddr != { 2001:db8::/64 } masquerade",
        ] {
            assert!(rules.contains(part), "{part} is not in\n{rules}");
        }
    }
}

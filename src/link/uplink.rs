//! The way out of a network's private namespace: a veth to the host's namespace.
//!
//! # Theory of operation
//!
//! ```text
//!   private namespace                     host's namespace
//!     default route ─► up0 ────────── sky<hash>   route to each subnet ─► up0's address
//!          odd address of the pair        even address of the pair
//! ```
//!
//! The pair of addresses is only for the two ends to find each other; nobody else sees it. It comes
//! from a pool that is the same on every host, link-local for IPv4; the first pair that no interface
//! of the host has is taken, and kept for as long as the interface lives. What the host itself sends
//! to the network has the even address and is masqueraded on the way in ([`super::router`]).
//!
//! Nothing here knows a bridge: a namespace with a TUN is led out in the same way.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::LinkAttribute;

use super::endpoint::link_local;
use super::routing::{Route, our_routes, rivals, settle_addresses, settle_routes};
use super::view::{Kind, Link};
use super::{Error, Netlink, run_in, sysctl};

/// The end in the private namespace.
pub const INSIDE: &str = "up0";
/// Metric of the routes: any that an administrator adds without one is lower.
const METRIC: u32 = 50;

/// Where pairs of addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// Of IPv4.
    pub v4: Ipv4Net,
    /// Of IPv6.
    pub v6: Ipv6Net,
}

/// What an uplink is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Name of the end in the host's namespace, see [`super::Owner::uplink`].
    pub name: String,
    /// Its alias, see [`super::Owner::uplink_alias`].
    pub alias: String,
    /// IP MTU in bytes.
    pub mtu: u32,
    /// What the host has routes to.
    pub subnets: Vec<IpNet>,
    /// What goes out by it although it is in the subnets: the host sends it on ([`super::direct`]).
    pub direct: Vec<IpNet>,
    /// Where the addresses of the two ends come from.
    pub pools: Pools,
}

/// The addresses of the two ends, with the prefix length of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// In the host's namespace.
    pub host: IpNet,
    /// In the private namespace.
    pub inside: IpNet,
}

impl Uplink {
    fn has(&self, v6: bool) -> bool {
        self.subnets.iter().any(|subnet| subnet.addr().is_ipv6() == v6)
    }
}

/// Makes the uplink as `wanted` between the namespaces of `inside` and `host`, whatever is there of
/// it. Gives a pair of addresses for each family that the subnets have.
///
/// # Errors
/// `RouteTaken`, `PoolUsed`, `Sysctl`, `Netlink`, `Timeout`.
pub async fn settle(inside: &Netlink, host: &Netlink, wanted: &Uplink) -> Result<Vec<Pair>, Error> {
    let (near, far) = ends(inside, host, wanted).await?;
    for subnet in &wanted.subnets {
        if let Some((route, index)) = rivals(host, *subnet, Some(far.index)).await? {
            // Nothing goes as it is where the answers would not come back.
            let mut kept = our_routes(inside, &near).await?;
            kept.retain(|route| !is_direct(route));
            settle_routes(inside, &near, &kept).await?;
            let links = host.links().await?;
            let ifname = links.into_iter().find(|link| link.index == index);
            let ifname = ifname.map_or_else(|| format!("interface {index}"), |link| link.name);
            return Err(Error::RouteTaken { subnet: *subnet, route, ifname });
        }
    }
    let mut pairs = Vec::new();
    for v6 in [false, true] {
        if wanted.has(v6) {
            pairs.push(pair(host, &far, wanted, v6).await?);
        }
    }
    let v6 = i32::from(!wanted.has(true));
    prepare(inside, INSIDE, v6)?;
    prepare(host, &wanted.name, v6)?;
    for (netlink, link, alias) in [(inside, &near, ""), (host, &far, wanted.alias.as_str())] {
        let mut changes = Vec::new();
        if link.mtu != wanted.mtu {
            changes.push(LinkAttribute::Mtu(wanted.mtu));
        }
        if link.alias != alias {
            changes.push(LinkAttribute::IfAlias(alias.into()));
        }
        if !changes.is_empty() || !link.up {
            netlink.set(link, changes, Some(true)).await?;
        }
    }
    let of = |end: fn(&Pair) -> IpNet| pairs.iter().map(end).collect::<Vec<_>>();
    settle_connected(inside, &near, &of(|pair| pair.inside)).await?;
    settle_connected(host, &far, &of(|pair| pair.host)).await?;
    let with =
        |ip: IpAddr| pairs.iter().find(move |pair| pair.host.addr().is_ipv6() == ip.is_ipv6());
    let mut out = connected(&of(|pair| pair.inside));
    out.extend(pairs.iter().filter_map(|pair| {
        let any = if pair.host.addr().is_ipv6() { IpAddr::from([0; 16]) } else { [0; 4].into() };
        let to = IpNet::new(any, 0).ok()?;
        Some(Route { to, via: Some(pair.host.addr()), source: None, metric: METRIC })
    }));
    out.extend(wanted.direct.iter().filter_map(|to| {
        let via = Some(with(to.addr())?.host.addr());
        Some(Route { to: *to, via, source: None, metric: METRIC })
    }));
    settle_routes(inside, &near, &out).await?;
    let mut back = connected(&of(|pair| pair.host));
    back.extend(wanted.subnets.iter().filter_map(|subnet| {
        let pair = with(subnet.addr())?;
        let (via, source) = (Some(pair.inside.addr()), Some(pair.host.addr()));
        Some(Route { to: *subnet, via, source, metric: METRIC })
    }));
    settle_routes(host, &far, &back).await?;
    Ok(pairs)
}

/// What goes out by the uplink of a private namespace although it is in its subnets, as it is now.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn direct(inside: &Netlink) -> Result<Vec<IpNet>, Error> {
    let Some(near) = inside.link(INSIDE).await? else { return Ok(Vec::new()) };
    let routes = our_routes(inside, &near).await?.into_iter();
    Ok(routes.filter(is_direct).map(|route| route.to).collect())
}

fn is_direct(route: &Route) -> bool {
    route.via.is_some() && route.to.prefix_len() > 0
}

/// Removes an uplink by the name of its end in the host's namespace. Returns whether there was one.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn remove(host: &Netlink, name: &str) -> Result<bool, Error> {
    // The kernel removes the other end with it, and the routes.
    host.delete_name(name).await
}

/// The two ends, made where they are not.
async fn ends(inside: &Netlink, host: &Netlink, wanted: &Uplink) -> Result<(Link, Link), Error> {
    let (near, far) = (inside.link(INSIDE).await?, host.link(&wanted.name).await?);
    if let (Some(near), Some(far)) = (&near, &far)
        && near.kind == Kind::Veth
        && near.peer == Some(far.index)
        && far.peer == Some(near.index)
    {
        return Ok((near.clone(), far.clone()));
    }
    if let Some(near) = near {
        inside.delete(&near).await?;
    }
    if let Some(far) = far {
        host.delete(&far).await?;
    }
    let mtu = vec![LinkAttribute::Mtu(wanted.mtu)];
    inside.create_veth(INSIDE, mtu.clone(), &wanted.name, host.namespace(), mtu).await?;
    Ok((look_up(inside, INSIDE).await?, look_up(host, &wanted.name).await?))
}

async fn look_up(netlink: &Netlink, name: &str) -> Result<Link, Error> {
    let gone = || Error::NoLink { what: netlink.namespace().label().into(), link: name.into() };
    netlink.link(name).await?.ok_or_else(gone)
}

/// The pair that the interface has, or the first that is free.
async fn pair(host: &Netlink, far: &Link, wanted: &Uplink, v6: bool) -> Result<Pair, Error> {
    let taken = host.addresses().await?;
    let (pool, key) = match v6 {
        true => (IpNet::from(wanted.pools.v6), "ipv6"),
        false => (IpNet::from(wanted.pools.v4), "ipv4"),
    };
    let (_, length) = base(pool);
    let made = |number: u128| {
        let (first, length) = base(pool);
        let ip = |number: u128| match pool {
            IpNet::V4(_) => IpAddr::from(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()),
            IpNet::V6(_) => IpAddr::from(number.to_be_bytes()),
        };
        let host = IpNet::new(ip(first + 2 * number), length).ok()?;
        let inside = IpNet::new(ip(first + 2 * number + 1), length).ok()?;
        Some(Pair { host, inside })
    };
    let present = taken.iter().filter(|(index, _)| *index == far.index);
    let kept = present
        .map(|(_, address)| *address)
        .find(|address| pool.contains(&address.addr()) && address.prefix_len() == length);
    if let Some(host) = kept {
        let (first, _) = base(pool);
        let found = made((number_of(host.addr()) - first) / 2);
        if let Some(pair) = found.filter(|pair| pair.host == host) {
            return Ok(pair);
        }
    }
    let free = |pair: &Pair| {
        let used = |end: IpNet| taken.iter().any(|(_, address)| address.addr() == end.addr());
        !used(pair.host) && !used(pair.inside)
    };
    let count = 1_u128 << u32::from(length - pool.prefix_len()).min(PAIRS_BITS);
    (0..count).filter_map(made).find(free).ok_or(Error::PoolUsed { pool, key })
}

/// So many pairs are looked at: far more than a host has networks.
const PAIRS_BITS: u32 = 16;

/// The first address of a pool as a number, and the prefix length of a pair.
fn base(pool: IpNet) -> (u128, u8) {
    (number_of(pool.network()), if pool.addr().is_ipv6() { 127 } else { 31 })
}

fn number_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The routes that come with addresses, as ours.
fn connected(addresses: &[IpNet]) -> Vec<Route> {
    let route =
        |address: &IpNet| Route { to: address.trunc(), via: None, source: None, metric: METRIC };
    addresses.iter().map(route).collect()
}

/// Addresses with the routes to their other ends, before routes through those. With IPv6 comes a
/// link-local address: without one the kernel asks for no neighbor on behalf of somebody else
/// (net/ipv6/ndisc.c, `ndisc_send_ns`).
async fn settle_connected(netlink: &Netlink, link: &Link, all: &[IpNet]) -> Result<(), Error> {
    let present = netlink.addresses().await?;
    let same = all.iter().all(|address| present.contains(&(link.index, *address)));
    let mut wanted = all.to_vec();
    if all.iter().any(|address| address.addr().is_ipv6()) {
        wanted.push(Ipv6Net::new_assert(link_local(link.mac), 64).into());
    }
    settle_addresses(netlink, link, &wanted).await?;
    if !same {
        settle_routes(netlink, link, &connected(all)).await?;
    }
    Ok(())
}

/// Settings of one end.
fn prepare(netlink: &Netlink, name: &str, no_ipv6: i32) -> Result<(), Error> {
    let name = name.to_owned();
    run_in(netlink.namespace(), move || {
        let of = |setting: &str| format!("net/ipv6/conf/{name}/{setting}");
        // The link-local address is added, not made with a second of detection.
        sysctl::ensure(&of("addr_gen_mode"), "1")?;
        sysctl::ensure(&of("accept_ra"), "0")?;
        sysctl::ensure(&of("disable_ipv6"), if no_ipv6 == 0 { "0" } else { "1" })?;
        Ok(())
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_cut_into_pairs() {
        let v4: IpNet = "169.254.64.0/18".parse().unwrap();
        assert_eq!(base(v4), (u32::from_be_bytes([169, 254, 64, 0]).into(), 31));
        let v6: IpNet = "fdb1:5c7e:d42::/64".parse().unwrap();
        assert_eq!(base(v6).1, 127);
        let pair: IpNet = "169.254.64.0/31".parse().unwrap();
        let routes = connected(&[pair]);
        assert_eq!(routes.first().map(|route| route.to), Some(pair));
    }
}

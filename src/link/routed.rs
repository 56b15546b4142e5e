//! The private namespace of a network of packets: the kernel routes between the sandboxes of this host
//! and the switch's TUN.
//!
//! # Theory of operation
//!
//! ```text
//!   sandbox                     private namespace                          switch
//!   eth0 198.51.100.5/32        ve<hash>  198.51.100.5/32 ─► ve<hash>
//!   198.51.100.0/24 via  ─veth─ 169.254.1.1, fe80::1        subnets     ─► tun0 ── queues
//!       169.254.1.1                                         the world   ─► up0   (super::uplink)
//! ```
//!
//! There is no bridge: each sandbox has a link of its own to the router, with an address of full
//! length, so there is nobody on it to ask for. The router is `169.254.1.1` and `fe80::1` with one
//! MAC, the same on every link of every host; both ends know each other's MAC for good, so no ARP
//! and no neighbor discovery is needed, and what is asked all the same is answered.
//!
//! The longest prefix decides: an endpoint of this host has its own route, all other addresses of the
//! network go to the switch, which knows where they are and answers for those that nobody has. So a
//! packet from the wire for an endpoint that has just gone comes back to the switch once, and its
//! sender is told.
//!
//! An address of the host's own, where the store has given it one, lies on the TUN. What the host
//! itself sends into the network comes from there: the other hosts take nothing that is not of it.
//!
//! The kernel does it all, so local traffic goes on while no agent runs.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use encap::MacAddr;
use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::link::LinkAttribute;

use super::names::TUN;
use super::network::{TAP_QUEUE_FRAMES, missing};
use super::nft::{in_namespace, nft};
use super::routing::{Route, settle_addresses, settle_routes};
use super::uplink;
use super::view::{Kind, Link};
use super::{Error, NetNs, Netlink, NetworkNs, Pinned, netns, run_in, sysctl};

/// The router as every sandbox sees it, in IPv4.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The router in IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The router's MAC; locally administered, and on links with one sandbox only.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, b's', b'k', b'y', 0, 1]);
/// Metric of the routes of subnets.
const METRIC: u32 = 100;
/// Metric of what lies in other routes; the route to a sandbox of this host comes before it.
const METRIC_EXCEPT: u32 = 200;

/// Settings of the whole namespace, before there is a device in it.
const SETTINGS: [(&str, &str); 11] = [
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    // Of a port it is the stricter of the two; the TUN and the uplink have none.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    // Link-local addresses are added, not made with a second of detection.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// What a routed network's namespace is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedLink {
    /// Where the namespace is pinned, see [`super::Owner::pin`].
    pub pin: PathBuf,
    /// Whether the network has IPv6.
    pub ipv6: bool,
}

/// What is routed in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// The network's subnets.
    pub subnets: Vec<IpNet>,
    /// What the switch carries although it lies in what goes as it is ([`super::direct`]).
    pub except: Vec<IpNet>,
    /// Addresses that the network's record calls gateways: every host answers to them.
    pub gateways: Vec<IpAddr>,
    /// This host's own addresses in the network; may be empty.
    pub own: Vec<IpAddr>,
    /// Whether an uplink leads out.
    pub way_out: bool,
}

/// A prefix that holds one address.
fn single(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

impl Inside {
    fn routes(&self) -> Vec<Route> {
        let route = |to: IpNet, metric| Route { to, via: None, source: None, metric };
        let subnets = self.subnets.iter().map(|to| route(*to, METRIC));
        subnets.chain(self.except.iter().map(|to| route(*to, METRIC_EXCEPT))).collect()
    }

    /// Whether the rules of the namespace would be the same.
    #[must_use]
    pub fn same_rules(&self, other: &Self) -> bool {
        self.rules() == other.rules()
    }

    /// Rules of the private namespace.
    fn rules(&self) -> String {
        let mut text = REMOVE.to_owned();
        let mut line = |rest: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{rest}");
        };
        if !self.way_out {
            return text;
        }
        line(format_args!("add table inet skybridge_routed"));
        line(format_args!(
            "add chain inet skybridge_routed postrouting \
             {{ type nat hook postrouting priority 100; }}"
        ));
        for (v6, word) in [(false, "ip"), (true, "ip6")] {
            let of_family = self.subnets.iter().filter(|subnet| subnet.addr().is_ipv6() == v6);
            let of_family: Vec<String> = of_family.map(ToString::to_string).collect();
            if of_family.is_empty() {
                continue;
            }
            let own = self.own.iter().find(|own| own.is_ipv6() == v6);
            let to =
                own.map_or_else(|| "masquerade".to_owned(), |own| format!("snat {word} to {own}"));
            line(format_args!(
                "add rule inet skybridge_routed postrouting iifname \"{}\" \
                 {word} saddr != {{ {} }} {to}",
                uplink::INSIDE,
                of_family.join(", ")
            ));
        }
        text
    }
}

/// Removes the rules whether they are there or not.
const REMOVE: &str = "add table inet skybridge_routed\ndelete table inet skybridge_routed\n";

/// Makes the namespace of a routed network as `wanted`, whatever is there of it.
///
/// # Errors
/// Those of [`NetNs::create_pinned`], `Sysctl`, `Netlink`, `Timeout`. A namespace made by a call
/// that fails is removed; one that was there stays.
pub async fn ensure(wanted: &RoutedLink) -> Result<NetworkNs, Error> {
    let (namespace, pinned) = NetNs::create_pinned(&wanted.pin)?;
    match prepare(wanted, &namespace).await {
        Ok(netlink) => Ok(NetworkNs::routed(wanted.pin.clone(), netlink, pinned)),
        Err(error) if pinned == Pinned::Adopted => Err(error),
        Err(error) => match netns::unpin(&wanted.pin) {
            Ok(_) => Err(error),
            Err(undo) => Err(Error::Undo { cause: error.into(), undo: vec![undo] }),
        },
    }
}

async fn prepare(wanted: &RoutedLink, namespace: &NetNs) -> Result<Netlink, Error> {
    let no_ipv6 = if wanted.ipv6 { "0" } else { "1" };
    run_in(namespace, || {
        let all =
            SETTINGS.iter().try_for_each(|(name, value)| sysctl::ensure(name, value).map(drop));
        all.and_then(|()| sysctl::ensure("net/ipv6/conf/default/disable_ipv6", no_ipv6).map(drop))
    })??;
    let netlink = Netlink::open(namespace)?;
    let loopback = look_up(&netlink, "lo").await?;
    if !loopback.up {
        netlink.set(&loopback, Vec::new(), Some(true)).await?;
    }
    Ok(netlink)
}

async fn look_up(netlink: &Netlink, name: &str) -> Result<Link, Error> {
    netlink.link(name).await?.ok_or_else(|| missing(netlink.namespace(), name))
}

/// Sets the TUN of a routed network up. Returns it as it was found, with its index.
///
/// # Errors
/// `NoLink` when there is no such TUN; `Sysctl`, `Netlink`, `Timeout`.
pub async fn attach_tun(network: &NetworkNs, mtu: u32, ipv6: bool) -> Result<Link, Error> {
    let netlink = network.netlink();
    let tun = look_up(netlink, TUN).await?;
    if tun.kind != Kind::Tun {
        return Err(missing(network.namespace(), TUN));
    }
    run_in(network.namespace(), || settle_ipv6(TUN, ipv6))??;
    let changes = vec![LinkAttribute::TxQueueLen(TAP_QUEUE_FRAMES), LinkAttribute::Mtu(mtu)];
    // Before it is up: the queues are sized by it.
    netlink.set(&tun, changes, None).await?;
    if !tun.up {
        netlink.set(&tun, Vec::new(), Some(true)).await?;
    }
    Ok(tun)
}

/// IPv6 of a device here, which is silent until it has an address.
pub(super) fn settle_ipv6(name: &str, on: bool) -> Result<(), Error> {
    let of = |setting: &str| format!("net/ipv6/conf/{name}/{setting}");
    sysctl::ensure(&of("addr_gen_mode"), "1")?;
    sysctl::ensure(&of("accept_ra"), "0")?;
    sysctl::ensure(&of("disable_ipv6"), if on { "0" } else { "1" })?;
    Ok(())
}

/// Makes addresses, routes and rules as `wanted`. The rules are written when `rules` is set; the rest is
/// compared first.
///
/// # Errors
/// `Nft`, with all the rest done; `NoLink`, `Netlink`, `Timeout`.
pub async fn settle(network: &NetworkNs, wanted: &Inside, rules: bool) -> Result<(), Error> {
    let netlink = network.netlink();
    let tun = look_up(netlink, TUN).await?;
    let loopback = look_up(netlink, "lo").await?;
    // The router first: of several addresses the kernel takes that one for its errors.
    let mut here = vec![single(GATEWAY_V4.into())];
    here.extend(wanted.gateways.iter().copied().map(single));
    let present = netlink.addresses().await?;
    let present = present.into_iter().filter(|(index, _)| *index == loopback.index);
    here.extend(present.map(|(_, address)| address).filter(|it| it.addr().is_loopback()));
    settle_addresses(netlink, &loopback, &here).await?;
    let own: Vec<IpNet> = wanted.own.iter().copied().map(single).collect();
    settle_addresses(netlink, &tun, &own).await?;
    settle_routes(netlink, &tun, &wanted.routes()).await?;
    if !rules {
        return Ok(());
    }
    let text = wanted.rules();
    let work = move || nft("lead the network out", &["-f", "-"], &text);
    match in_namespace(network.namespace(), work).await {
        // Without nft there are no rules of an earlier run either.
        Err(Error::Nft { .. }) if !wanted.way_out => Ok(()),
        written => written.map(drop),
    }
}

/// What the router's end of a sandbox's link has of addresses.
pub(super) fn near_address() -> IpNet {
    Ipv6Net::new_assert(GATEWAY_V6, 64).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_only_where_something_needs_them() {
        let mut inside = Inside {
            subnets: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            own: vec!["192.0.2.7".parse().unwrap()],
            ..Inside::default()
        };
        assert_eq!(inside.rules(), REMOVE);
        inside.way_out = true;
        let rules = inside.rules();
        for part in [
            "iifname \"up0\" ip saddr != { 192.0.2.0/24 } snat ip to 192.0.2.7",
            "iifname \"up0\" ip6 saddr != { 2001:db8::/64 } masquerade",
        ] {
            assert!(rules.contains(part), "{part} is not in\n{rules}");
        }
    }
}

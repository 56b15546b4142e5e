//! The attachment of a sandbox: a veth pair between it and the network's bridge, or the router of a
//! network that is routed (`ports`).
//!
//! [`plug`] makes the pair with both ends down and everything set, [`up`] lets frames flow. Between
//! the two come the rules of [`super::source_check`] and the change of the cluster's tables, so that
//! the first frame finds both.
//!
//! IPv6 without delay: the store proves that addresses are unique, so they are added with
//! `IFA_F_NODAD`, and so is the link-local address, which the kernel would otherwise make by itself
//! and probe for a second. The kernel's own mode stays EUI-64, which gives the same address: should
//! the sandbox set its interface down and up, the kernel makes it again (with detection).

mod ports;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use encap::MacAddr;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::routed::GATEWAY_MAC;
use super::view::{FdbKind, Kind, Link, PortView};
use super::{Error, NetNs, Netlink, NetworkNs, Owner, names, run_in, sysctl};

/// How long [`up`] waits for the bridge to forward. The kernel's link watch may take a second, and
/// more where the kernel's lock is held by many links that come and namespaces that go.
const FORWARDING: Duration = Duration::from_secs(10);

/// Least MTU of an IPv6 link (RFC 8200 section 5).
const IPV6_MTU_MIN: u32 = 1280;

/// What an attachment is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// Id of the endpoint.
    pub endpoint: String,
    /// The namespace that gets the interface.
    pub sandbox: NetNs,
    /// Name of the interface there.
    pub ifname: String,
    /// Its MAC, the only one it may send from.
    pub mac: MacAddr,
    /// Its addresses with their prefix lengths; may be empty for a runtime that adds them itself.
    pub addresses: Vec<IpNet>,
    /// IP MTU in bytes.
    pub mtu: u32,
    /// Default routes of the sandbox, at most one per family.
    pub gateways: Vec<IpAddr>,
    /// Same-host frames go through the switch and not from port to port (`local = switch`).
    pub isolated: bool,
    /// Of a routed network: the prefixes that the sandbox reaches through the router.
    pub subnets: Vec<IpNet>,
}

impl Plug {
    /// Refuses what the kernel would refuse later and with less to say.
    fn check(&self) -> Result<(), Error> {
        names::check_ifname(&self.ifname)?;
        if !self.mac.is_unicast() || self.mac == MacAddr::ZERO {
            return Err(Error::InvalidMac { mac: self.mac });
        }
        if self.has_ipv6() && self.mtu < IPV6_MTU_MIN {
            return Err(Error::MtuTooSmall { mtu: self.mtu });
        }
        Ok(())
    }

    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| matches!(address, IpNet::V6(_)))
    }
}

/// An attachment that was made or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// What it was made from.
    pub plug: Plug,
    /// The port in the private namespace, as last seen.
    pub port: Link,
    /// The interface in the sandbox, as last seen.
    pub inner: Link,
}

/// A port found in a network's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The endpoint, if the alias says; without one the port was left half made.
    pub endpoint: Option<String>,
    /// The port.
    pub port: Link,
    /// The MACs with a static entry on it.
    pub macs: Vec<MacAddr>,
    /// Whether the other end is still somewhere.
    pub has_peer: bool,
}

/// Makes an attachment, with both ends down. On failure nothing of it is left.
///
/// # Cancel safety
/// Not cancel safe: what a dropped call leaves is completed by [`adopt`], replaced by the next
/// `plug`, or found by [`find`].
///
/// # Errors
/// `InvalidIfname`, `InvalidMac`, `MtuTooSmall`, `InterfaceExists`, `AddressPresent`, `AlreadyPlugged`, `Permission`, `Sysctl`,
/// `Netlink`, `Timeout`; `Undo` when the failure could not be undone.
pub async fn plug(network: &NetworkNs, owner: &Owner, plug: &Plug) -> Result<Plugged, Error> {
    plug.check()?;
    let sandbox = Netlink::open(&plug.sandbox)?;
    let port = owner.port(&plug.endpoint);
    if let Some(present) = network.netlink().link(&port).await? {
        if present.alias.is_empty() {
            // Cut off between making it and naming it; the sandbox's end goes with it.
            network.netlink().delete(&present).await?;
        } else {
            let endpoint = owner.endpoint(&present.alias).unwrap_or(&present.alias).to_owned();
            return Err(Error::AlreadyPlugged { endpoint, port });
        }
    }
    check_free(&sandbox, plug).await?;
    let mtu = LinkAttribute::Mtu(plug.mtu);
    let address = LinkAttribute::Address(plug.mac.0.to_vec());
    let near = match network.bridge() {
        Some(bridge) => vec![mtu.clone(), LinkAttribute::Controller(bridge)],
        None => vec![mtu.clone(), LinkAttribute::Address(GATEWAY_MAC.0.to_vec())],
    };
    let far = vec![mtu, address];
    let netlink = network.netlink();
    netlink.create_veth(&port, near, &plug.ifname, &plug.sandbox, far).await.map_err(|error| {
        match error.errno() {
            // The port's name was free above, so it is the sandbox's end that another one took.
            Some(libc::EEXIST) => Error::InterfaceExists {
                ifname: plug.ifname.clone(),
                sandbox: plug.sandbox.label().into(),
            },
            _ => error,
        }
    })?;
    let settled = async {
        let made = look_up(netlink, &port).await?;
        let inner = look_up(&sandbox, &plug.ifname).await?;
        settle(network, owner, plug, &sandbox, &made, &inner).await?;
        if !network.is_routed() {
            netlink.fdb_replace(&made, plug.mac).await?;
        }
        Ok(Plugged { plug: plug.clone(), port: made, inner })
    };
    match settled.await {
        Ok(plugged) => Ok(plugged),
        Err(cause) => match netlink.delete_name(&port).await {
            Ok(_) => Err(cause),
            Err(undo) => Err(Error::Undo { cause: Box::new(cause), undo: vec![undo] }),
        },
    }
}

async fn look_up(netlink: &Netlink, name: &str) -> Result<Link, Error> {
    let gone = || Error::NoLink { what: netlink.namespace().label().into(), link: name.into() };
    netlink.link(name).await?.ok_or_else(gone)
}

/// Takes over an attachment that is there: corrects what differs from `plug` and gives it back, with
/// the interface names and indexes it had. `None` when it is not there; what is left of one that
/// leads elsewhere is removed, so that [`plug`] can follow.
///
/// # Errors
/// As [`plug`].
pub async fn adopt(
    network: &NetworkNs,
    owner: &Owner,
    plug: &Plug,
) -> Result<Option<Plugged>, Error> {
    plug.check()?;
    let netlink = network.netlink();
    let Some(port) = netlink.link(&owner.port(&plug.endpoint)).await? else { return Ok(None) };
    let sandbox = Netlink::open(&plug.sandbox)?;
    let inner = sandbox.links().await?.into_iter().find(|link| {
        link.kind == Kind::Veth && link.peer == Some(port.index) && port.peer == Some(link.index)
    });
    let ours = port.kind == Kind::Veth && owner.endpoint(&port.alias) == Some(&*plug.endpoint);
    let Some(inner) = inner.filter(|_| ours) else {
        netlink.delete(&port).await?;
        return Ok(None);
    };
    settle(network, owner, plug, &sandbox, &port, &inner).await?;
    if !network.is_routed() {
        settle_fdb(netlink, &port, plug.mac).await?;
    }
    Ok(Some(Plugged { plug: plug.clone(), port, inner }))
}

/// Has frames for `mac` go to a port, and for no other MAC.
pub(super) async fn settle_fdb(netlink: &Netlink, port: &Link, mac: MacAddr) -> Result<(), Error> {
    let mut present = false;
    for entry in netlink.fdb().await? {
        if entry.port != port.index || entry.bridge.is_none() || entry.kind == FdbKind::Local {
            continue;
        }
        if entry.mac == mac && entry.kind == FdbKind::Static {
            present = true;
        } else {
            netlink.fdb_delete(port, entry.mac).await?;
        }
    }
    if !present {
        netlink.fdb_replace(port, mac).await?;
    }
    Ok(())
}

/// Refuses what would collide in the sandbox.
async fn check_free(sandbox: &Netlink, plug: &Plug) -> Result<(), Error> {
    let label = || plug.sandbox.label().to_owned();
    let links = sandbox.links().await?;
    if links.iter().any(|link| link.name == plug.ifname) {
        return Err(Error::InterfaceExists { ifname: plug.ifname.clone(), sandbox: label() });
    }
    if plug.addresses.is_empty() {
        return Ok(());
    }
    for (index, present) in sandbox.addresses().await? {
        if plug.addresses.iter().any(|address| address.addr() == present.addr()) {
            let holder = links.iter().find(|link| link.index == index);
            let ifname = holder.map_or_else(|| index.to_string(), |link| link.name.clone());
            return Err(Error::AddressPresent {
                address: present.addr(),
                ifname,
                sandbox: label(),
            });
        }
    }
    Ok(())
}

/// Brings both ends to what `plug` says, all but the forwarding entry.
async fn settle(
    network: &NetworkNs,
    owner: &Owner,
    plug: &Plug,
    sandbox: &Netlink,
    port: &Link,
    inner: &Link,
) -> Result<(), Error> {
    let alias = owner.alias(&plug.endpoint);
    if network.is_routed() {
        ports::settle(network, port, plug, &alias).await?;
    } else {
        network.settle_port(port, PortView::endpoint(plug.isolated), plug.mtu, &alias).await?;
    }
    let ipv6 = run_in(&plug.sandbox, || settle_ipv6(&inner.name, plug.has_ipv6()))??;
    let mut changes = Vec::new();
    if inner.alias != alias {
        changes.push(LinkAttribute::IfAlias(alias));
    }
    if inner.mac != plug.mac {
        changes.push(LinkAttribute::Address(plug.mac.0.to_vec()));
    }
    if inner.mtu != plug.mtu {
        changes.push(LinkAttribute::Mtu(plug.mtu));
    }
    if ipv6 && !changes.is_empty() {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::Eui64);
        changes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    }
    if !changes.is_empty() {
        sandbox.set(inner, changes, None).await?;
    }
    if ipv6 {
        let link_local = ipnet::Ipv6Net::new_assert(link_local(plug.mac), 64);
        sandbox.address_add(inner, link_local.into()).await?;
    }
    for address in &plug.addresses {
        sandbox.address_add(inner, *address).await?;
    }
    Ok(())
}

/// Prepares an interface of the calling thread's namespace for IPv6. Returns whether it is on.
fn settle_ipv6(ifname: &str, wanted: bool) -> Result<bool, Error> {
    let name = |setting: &str| format!("net/ipv6/conf/{ifname}/{setting}");
    // Runtimes turn IPv6 off in sandboxes that have no address of it.
    if wanted {
        sysctl::ensure(&name("disable_ipv6"), "0")?;
    }
    let on = sysctl::read(&name("disable_ipv6")).as_deref() == Some("0");
    // Routers are told, not heard: another container could claim to be one. Where it cannot be
    // written the sandbox keeps the kernel's default.
    if let Err(error) = sysctl::ensure(&name("accept_ra"), "0") {
        tracing::debug!(%error, "the sandbox goes on accepting router advertisements");
    }
    Ok(on)
}

/// The link-local address of a MAC (RFC 4291 appendix A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Sets both ends up, adds the default routes and waits until the bridge forwards. May be repeated.
/// A failure leaves the attachment as it is; [`unplug`] removes it.
///
/// # Errors
/// `RouteExists`, `PortNotForwarding`, `Netlink`, `Timeout`.
pub async fn up(network: &NetworkNs, plugged: &Plugged) -> Result<(), Error> {
    let plug = &plugged.plug;
    let sandbox = Netlink::open(&plug.sandbox)?;
    sandbox.set(&plugged.inner, Vec::new(), Some(true)).await?;
    network.netlink().set(&plugged.port, Vec::new(), Some(true)).await?;
    if network.is_routed() {
        ports::route(network, &sandbox, plugged).await?;
    }
    for gateway in &plug.gateways {
        default_route(&sandbox, plugged, *gateway).await?;
    }
    wait_forwarding(network, &sandbox, plugged).await
}

/// Waits for what the kernel does behind our back: both ends learn of each other asynchronously, and
/// until then the bridge does not forward and the sandbox's end drops what it is given
/// (net/core/link_watch.c); and the sandbox joins the groups of its IPv6 addresses.
async fn wait_forwarding(
    network: &NetworkNs,
    sandbox: &Netlink,
    plugged: &Plugged,
) -> Result<(), Error> {
    let plug = &plugged.plug;
    let groups = plug.addresses.iter().filter_map(|address| match address {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some(solicited_node(net.addr())),
    });
    let groups = groups.collect::<Vec<_>>();
    let started = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        let port = network.netlink().link(&plugged.port.name).await?;
        let inner = sandbox.link(&plugged.inner.name).await?;
        let state = match (&port, &inner) {
            (None, _) | (_, None) => "gone",
            (Some(port), Some(inner)) if !port.operational || !inner.operational => "no carrier",
            (Some(port), _)
                if !network.is_routed() && !port.port.is_some_and(|port| port.forwarding) =>
            {
                "blocked"
            }
            (Some(_), Some(inner)) => {
                let groups = groups.iter().map(String::as_str);
                if run_in(&plugged.plug.sandbox, || has_joined(inner.index, groups))? {
                    return Ok(());
                }
                "not in the groups of its addresses"
            }
        };
        let waited = started.elapsed();
        if waited > FORWARDING {
            let port = plugged.port.name.clone();
            return Err(Error::PortNotForwarding { port, state, waited });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// The group that neighbor solicitations for an address go to (RFC 4291 section 2.7.1), in hex.
fn solicited_node(address: Ipv6Addr) -> String {
    format!("ff0200000000000000000001ff{:06x}", u128::from(address) & 0xff_ffff)
}

/// Whether the interface `index` of the calling thread's namespace is a member of all `groups`. The
/// kernel joins in a work queue, also for addresses without detection (net/ipv6/addrconf.c,
/// `addrconf_dad_start`), and a solicitation that comes before is lost for a second.
fn has_joined<'a>(index: u32, mut groups: impl Iterator<Item = &'a str>) -> bool {
    // Of the thread: /proc/net is that of the process's first one.
    let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/igmp6") else { return true };
    let index = index.to_string();
    groups.all(|group| {
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&*index) && words.nth(1) == Some(group)
        })
    })
}

async fn default_route(sandbox: &Netlink, plugged: &Plugged, gateway: IpAddr) -> Result<(), Error> {
    let any = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    route_via(sandbox, plugged, any, 0, gateway).await
}

/// Adds a route to the sandbox; one that is there already is no error.
async fn route_via(
    sandbox: &Netlink,
    plugged: &Plugged,
    destination: IpAddr,
    length: u8,
    gateway: IpAddr,
) -> Result<(), Error> {
    let family = match gateway {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let text = format!("{destination}/{length} via {gateway}");
    let on_subnet = plugged.plug.addresses.iter().any(|address| address.contains(&gateway));
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = length;
    if length > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.into()));
    }
    if !on_subnet {
        // A gateway outside of the subnet, as with /32 addresses, is reached on the link.
        message.header.flags = RouteFlags::Onlink;
    }
    let wanted =
        [RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(plugged.inner.index)];
    message.attributes.extend(wanted.clone());
    match sandbox.route_add(message, &text).await {
        Err(error) if error.errno() == Some(libc::EEXIST) => {
            let same = |route: &RouteMessage| {
                let to =
                    route.attributes.contains(&RouteAttribute::Destination(destination.into()));
                route.header.destination_prefix_length == length
                    && (length == 0 || to)
                    && wanted.iter().all(|attribute| route.attributes.contains(attribute))
            };
            if sandbox.routes(family).await?.iter().any(same) {
                return Ok(());
            }
            Err(Error::RouteExists {
                destination: format!("{destination}/{length}"),
                sandbox: plugged.plug.sandbox.label().into(),
            })
        }
        other => other,
    }
}

/// The port of an attachment: its name and its index.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn port(
    network: &NetworkNs,
    owner: &Owner,
    endpoint: &str,
) -> Result<Option<(String, u32)>, Error> {
    let found = network.netlink().link(&owner.port(endpoint)).await?;
    Ok(found.map(|port| (port.name, port.index)))
}

/// Sets the port of an attachment down and takes its MAC out of the bridge: nothing comes from it or
/// goes to it any more, and the sandbox sees that its link is gone. Returns whether it was found.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn down(network: &NetworkNs, owner: &Owner, endpoint: &str) -> Result<bool, Error> {
    let Some(port) = network.netlink().link(&owner.port(endpoint)).await? else {
        return Ok(false);
    };
    let netlink = network.netlink();
    netlink.set(&port, Vec::new(), Some(false)).await?;
    // Its MAC may be that of an endpoint elsewhere, which the bridge must not look for here.
    for entry in netlink.fdb().await? {
        if entry.port == port.index && entry.bridge.is_some() && entry.kind != FdbKind::Local {
            netlink.fdb_delete(&port, entry.mac).await?;
        }
    }
    Ok(true)
}

/// Removes an attachment from whichever end still exists. Needs no sandbox; give it where the
/// network's namespace may have lost the port. Returns whether there was anything.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn unplug(
    network: Option<&NetworkNs>,
    owner: &Owner,
    endpoint: &str,
    sandbox: Option<&NetNs>,
) -> Result<bool, Error> {
    if let Some(network) = network
        && let Some(port) = network.netlink().link(&owner.port(endpoint)).await?
    {
        // The kernel removes the other end with it, wherever that is.
        return network.netlink().delete(&port).await;
    }
    let Some(sandbox) = sandbox else { return Ok(false) };
    let netlink = Netlink::open(sandbox)?;
    match inner(&netlink, owner, endpoint).await? {
        Some(link) => netlink.delete(&link).await,
        None => Ok(false),
    }
}

/// Gives an attachment's interface in the sandbox another MTU, by whatever name it has. Returns
/// whether it was found.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn set_mtu(
    sandbox: &NetNs,
    owner: &Owner,
    endpoint: &str,
    mtu: u32,
) -> Result<bool, Error> {
    let netlink = Netlink::open(sandbox)?;
    let Some(link) = inner(&netlink, owner, endpoint).await? else { return Ok(false) };
    if link.mtu != mtu {
        netlink.set(&link, vec![LinkAttribute::Mtu(mtu)], None).await?;
    }
    Ok(true)
}

async fn inner(sandbox: &Netlink, owner: &Owner, endpoint: &str) -> Result<Option<Link>, Error> {
    let links = sandbox.links().await?;
    Ok(links
        .into_iter()
        .find(|link| link.kind == Kind::Veth && owner.endpoint(&link.alias) == Some(endpoint)))
}

/// Lists the ports of endpoints in a network's namespace, for takeover, by index. What has no
/// endpoint was left half made and can be deleted with [`unplug_port`].
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn find(network: &NetworkNs, owner: &Owner) -> Result<Vec<Found>, Error> {
    if network.is_routed() {
        let links = network.netlink().links().await?;
        let ports = links.into_iter().filter(|link| network.is_port(link));
        let found = ports.map(|port| Found {
            endpoint: owner.endpoint(&port.alias).map(str::to_owned),
            macs: Vec::new(),
            has_peer: port.peer.is_some_and(|index| index != 0),
            port,
        });
        return Ok(found.collect());
    }
    let state = network.inspect().await?;
    let found = state.ports.into_iter().filter(|port| port.kind == Kind::Veth).map(|port| Found {
        endpoint: owner.endpoint(&port.alias).map(str::to_owned),
        macs: state
            .fdb
            .iter()
            .filter(|entry| entry.port == port.index && entry.kind == FdbKind::Static)
            .map(|entry| entry.mac)
            .collect(),
        has_peer: port.peer.is_some_and(|index| index != 0),
        port,
    });
    Ok(found.collect())
}

/// Isolates the ports of all endpoints from each other, or ends that (`local = switch`).
///
/// # Errors
/// `Netlink`, `Timeout`; goes on to the end and gives the first.
pub async fn set_isolated(network: &NetworkNs, owner: &Owner, on: bool) -> Result<(), Error> {
    let mut result = Ok(());
    for found in find(network, owner).await?.into_iter().filter(|found| found.endpoint.is_some()) {
        let port = &found.port;
        let set = network.settle_port(port, PortView::endpoint(on), port.mtu, &port.alias).await;
        result = result.and(set);
    }
    result
}

/// Removes a port that [`find`] gave. Returns whether it was still there.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn unplug_port(network: &NetworkNs, found: &Found) -> Result<bool, Error> {
    network.netlink().delete(&found.port).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_made_as_the_kernel_makes_it() {
        let mac = "02:42:c0:00:02:05".parse().unwrap();
        assert_eq!(link_local(mac), "fe80::42:c0ff:fe00:205".parse::<Ipv6Addr>().unwrap());
    }
}

//! Attachments whose sandbox end a runtime moves, renames and addresses by itself, as Docker does:
//! what we can do for them, and where that end is now.

use encap::MacAddr;
use netlink_packet_route::link::LinkAttribute;

use super::endpoint::{Plugged, settle_fdb};
use super::view::{Kind, PortView};
use super::{Error, NetNs, Netlink, NetworkNs, Owner};

/// Sets the port of a fresh attachment up. Its other end is still down: the runtime sets it up, and
/// frames flow from then on.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn open(network: &NetworkNs, plugged: &Plugged) -> Result<(), Error> {
    network.netlink().set(&plugged.port, Vec::<LinkAttribute>::new(), Some(true)).await
}

/// Takes the port of an attachment over, wherever its other end is: with that the port would have
/// gone too. False when there is none.
///
/// # Errors
/// `Netlink`, `Timeout`, `Sysctl`.
pub async fn take_over(
    network: &NetworkNs,
    owner: &Owner,
    endpoint: &str,
    mac: MacAddr,
    mtu: u32,
    isolated: bool,
) -> Result<bool, Error> {
    let netlink = network.netlink();
    let Some(port) = netlink.link(&owner.port(endpoint)).await? else { return Ok(false) };
    let view = PortView::endpoint(isolated);
    network.settle_port(&port, view, mtu, &owner.alias(endpoint)).await?;
    settle_fdb(netlink, &port, mac).await?;
    netlink.set(&port, Vec::<LinkAttribute>::new(), Some(true)).await?;
    Ok(true)
}

/// Whether the sandbox end of an attachment is in this namespace, by whatever name.
///
/// # Errors
/// `Netlink`, `Timeout`, or as opening the namespace.
pub async fn is_in(namespace: &NetNs, owner: &Owner, endpoint: &str) -> Result<bool, Error> {
    let links = Netlink::open(namespace)?.links().await?;
    let ours = |alias: &str| owner.endpoint(alias).is_some_and(|of| of == endpoint);
    Ok(links.iter().any(|link| link.kind == Kind::Veth && ours(&link.alias)))
}

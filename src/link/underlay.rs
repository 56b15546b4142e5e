//! What carries the underlay: the interface of a VTEP address and the path to another VTEP.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric};

use super::view::Link;
use super::{Addresses, Error, NetNs, Netlink};

/// The interface that has a VTEP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// IP MTU in bytes.
    pub mtu: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Set up and able to carry frames.
    pub operational: bool,
}

impl Interface {
    fn of(link: &Link, address: IpAddr, prefix_len: u8) -> Self {
        Self {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            address,
            prefix_len,
            operational: link.up && link.operational,
        }
    }
}

/// The way that the kernel takes to another VTEP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Index of the interface it leaves by.
    pub interface: u32,
    /// IP MTU in bytes: the route's where it has one (path MTU discovery included), else the
    /// interface's.
    pub mtu: u32,
}

/// The interfaces that have `addresses`, of those that any has.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn interfaces(netlink: &Netlink, addresses: &[IpAddr]) -> Result<Vec<Interface>, Error> {
    let present = netlink.addresses().await?;
    let links = netlink.links().await?;
    let of = |address: &IpAddr| {
        let (index, found) = present.iter().find(|(_, found)| found.addr() == *address)?;
        let link = links.iter().find(|link| link.index == *index)?;
        Some(Interface::of(link, *address, found.prefix_len()))
    };
    Ok(addresses.iter().filter_map(of).collect())
}

/// Finds the interface that has `address` in `namespace`.
///
/// # Errors
/// `NoSuchAddress`, naming those that exist; `Netlink`, `Timeout`.
pub async fn interface(namespace: &NetNs, address: IpAddr) -> Result<Interface, Error> {
    let netlink = Netlink::open(namespace)?;
    let addresses = netlink.addresses().await?;
    let links = netlink.links().await?;
    let found = addresses.iter().find(|(_, present)| present.addr() == address).and_then(
        |(index, present)| Some((links.iter().find(|link| link.index == *index)?, present)),
    );
    let Some((link, present)) = found else {
        let name = |index: u32| {
            let link = links.iter().find(|link| link.index == index);
            link.map_or_else(|| index.to_string(), |link| link.name.clone())
        };
        // Loopback and link-local addresses cannot be VTEPs: naming them would mislead.
        let usable = addresses.iter().filter(|(_, present)| match present.addr() {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        });
        let present = usable.map(|(index, present)| (name(*index), *present)).collect();
        return Err(Error::NoSuchAddress { address, present: Addresses(present) });
    };
    Ok(Interface::of(link, address, present.prefix_len()))
}

/// Looks up the way from `source` to the VTEP `to` in `namespace`; `None` when there is no route.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub async fn path(namespace: &NetNs, source: IpAddr, to: IpAddr) -> Result<Option<Path>, Error> {
    let netlink = Netlink::open(namespace)?;
    let mut message = RouteMessage::default();
    let (family, bits) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(to.into()));
    if source.is_ipv4() == to.is_ipv4() {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    let route = match netlink.route_get(message, to).await {
        Ok(Some(route)) => route,
        Ok(None) => return Ok(None),
        Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut interface = None;
    let mut mtu = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => (),
        }
    }
    let Some(interface) = interface else { return Ok(None) };
    let mtu = match mtu {
        Some(mtu) => mtu,
        None => match netlink.links().await?.iter().find(|link| link.index == interface) {
            Some(link) => link.mtu,
            None => return Ok(None),
        },
    };
    Ok(Some(Path { interface, mtu }))
}

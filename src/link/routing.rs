//! Addresses and routes of one link, and routes of one table, brought to what they shall be.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::view::Link;
use super::{Error, Netlink};

/// What tells our routes from others in a namespace that is not ours (rtnetlink(7): numbers above
/// RTPROT_STATIC are the administrator's).
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x5b);
/// The table that is asked where no rule says otherwise.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// One route through a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Where to.
    pub(super) to: IpNet,
    /// The next hop; without one the destination is on the link.
    pub(super) via: Option<IpAddr>,
    /// The source address that is preferred.
    pub(super) source: Option<IpAddr>,
    /// The lower one of two wins.
    pub(super) metric: u32,
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn as_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl Route {
    /// As a request, for a table and the interface that it leads through.
    pub(super) fn message(&self, table: u32, interface: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.to.addr());
        message.header.destination_prefix_length = self.to.prefix_len();
        match u8::try_from(table) {
            Ok(table) => message.header.table = table,
            Err(_) => message.attributes.push(RouteAttribute::Table(table)),
        }
        message.header.protocol = PROTOCOL;
        let on_link = self.via.is_none() && self.to.addr().is_ipv4();
        message.header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
        message.header.kind = RouteType::Unicast;
        if self.to.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(self.to.addr().into()));
        }
        if let Some(via) = self.via {
            message.attributes.push(RouteAttribute::Gateway(via.into()));
        }
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        message.attributes.push(RouteAttribute::Priority(self.metric));
        message.attributes.push(RouteAttribute::Oif(interface));
        message
    }

    /// As the kernel tells of it.
    pub(super) fn read(message: &RouteMessage) -> Option<Self> {
        let v6 = message.header.address_family == AddressFamily::Inet6;
        let mut to = if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
        let (mut via, mut source, mut metric) = (None, None, 0);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => to = as_ip(address)?,
                RouteAttribute::Gateway(address) => via = as_ip(address),
                RouteAttribute::PrefSource(address) => source = as_ip(address),
                RouteAttribute::Priority(value) => metric = *value,
                _ => (),
            }
        }
        let to = IpNet::new(to, message.header.destination_prefix_length).ok()?;
        Some(Self { to, via, source, metric })
    }
}

/// The interface that a route leads through.
pub(super) fn device(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Our routes through `link`, with what the kernel says of them.
async fn present(netlink: &Netlink, link: &Link) -> Result<Vec<(Route, RouteMessage)>, Error> {
    let mut present = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in netlink.routes_of(family, MAIN).await? {
            if message.header.protocol == PROTOCOL && device(&message) == Some(link.index) {
                present.extend(Route::read(&message).map(|route| (route, message)));
            }
        }
    }
    Ok(present)
}

/// Our routes through `link`.
pub(super) async fn our_routes(netlink: &Netlink, link: &Link) -> Result<Vec<Route>, Error> {
    Ok(present(netlink, link).await?.into_iter().map(|(route, _)| route).collect())
}

/// Makes `wanted` exactly our routes through `link`.
pub(super) async fn settle_routes(
    netlink: &Netlink,
    link: &Link,
    wanted: &[Route],
) -> Result<(), Error> {
    let present = present(netlink, link).await?;
    for (route, message) in &present {
        if !wanted.contains(route) {
            netlink.route_delete(message.clone(), &route.to.to_string()).await?;
        }
    }
    for route in wanted {
        if !present.iter().any(|(found, _)| found == route) {
            let message = route.message(MAIN, link.index);
            netlink.route_replace(message, &route.to.to_string()).await?;
        }
    }
    Ok(())
}

/// Makes `wanted` exactly the addresses of `link`, without routes of their own.
pub(super) async fn settle_addresses(
    netlink: &Netlink,
    link: &Link,
    wanted: &[IpNet],
) -> Result<(), Error> {
    let mut present = netlink.addresses().await?;
    present.retain(|(index, _)| *index == link.index);
    for (_, address) in &present {
        if !wanted.contains(address) {
            netlink.address_delete(link, *address).await?;
        }
    }
    for address in wanted {
        if !present.iter().any(|(_, found)| found == address) {
            netlink.address_add_bare(link, *address).await?;
        }
    }
    Ok(())
}

/// Routes of others to a part of `subnet`, or to all of it: they would win over one of ours.
pub(super) async fn rivals(
    netlink: &Netlink,
    subnet: IpNet,
    own: Option<u32>,
) -> Result<Option<(IpNet, u32)>, Error> {
    let all = netlink.routes_of(family(subnet.addr()), MAIN).await?;
    let found = all.into_iter().find_map(|message| {
        let index = device(&message)?;
        let route = Route::read(&message)?;
        let rival =
            message.header.protocol != PROTOCOL && Some(index) != own && subnet.contains(&route.to);
        rival.then_some((route.to, index))
    });
    Ok(found)
}

//! Addresses, routes and the rules that choose between tables of routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::super::Error;
use super::super::view::Link;
use super::Netlink;

impl Netlink {
    // ===== addresses =====

    /// All addresses, as (link index, address with prefix length).
    ///
    /// # Errors
    /// See [`Netlink::links`].
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, Error> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(message, "addresses").await?;
        Ok(answers.iter().filter_map(as_address).collect())
    }

    /// Adds an address without duplicate address detection; one that the link has is no error.
    pub(in crate::link) async fn address_add(
        &self,
        link: &Link,
        address: IpNet,
    ) -> Result<(), Error> {
        self.address_add_with(link, address, AddressFlags::Nodad).await
    }

    /// As [`Netlink::address_add`], without the route that comes with an address.
    pub(in crate::link) async fn address_add_bare(
        &self,
        link: &Link,
        address: IpNet,
    ) -> Result<(), Error> {
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        self.address_add_with(link, address, flags).await
    }

    async fn address_add_with(
        &self,
        link: &Link,
        address: IpNet,
        flags: AddressFlags,
    ) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.prefix_len = address.prefix_len();
        message.header.flags = AddressHeaderFlags::Nodad;
        let ip = address.addr();
        message.attributes.push(AddressAttribute::Local(ip));
        message.attributes.push(AddressAttribute::Address(ip));
        message.attributes.push(AddressAttribute::Flags(flags));
        message.header.family = AddressFamily::Inet6;
        match address {
            IpNet::V4(net) => {
                message.header.family = AddressFamily::Inet;
                if net.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
                }
            }
            IpNet::V6(net) if net.addr().is_unicast_link_local() => {
                message.header.scope = AddressScope::Link;
            }
            IpNet::V6(_) => (),
        }
        let doing = || format!("add {address} to {} in {}", link.name, self.namespace.label());
        let message = RouteNetlinkMessage::NewAddress(message);
        match self.change(message, NLM_F_CREATE | NLM_F_EXCL, &doing).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes an address; one that is gone already is no error.
    pub(in crate::link) async fn address_delete(
        &self,
        link: &Link,
        address: IpNet,
    ) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = match address {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        let doing = || format!("remove {address} from {} in {}", link.name, self.namespace.label());
        match self.change(RouteNetlinkMessage::DelAddress(message), 0, &doing).await {
            Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    // ===== routes =====

    /// Adds a route, in the place of one to the same prefix with the same metric.
    pub(in crate::link) async fn route_replace(
        &self,
        message: RouteMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("add route {text} in {}", self.namespace.label());
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewRoute(message), flags, &doing).await
    }

    /// Removes a route as it was read; one that is gone already is no error.
    pub(in crate::link) async fn route_delete(
        &self,
        message: RouteMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("remove route {text} in {}", self.namespace.label());
        match self.change(RouteNetlinkMessage::DelRoute(message), 0, &doing).await {
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Adds a route.
    pub(in crate::link) async fn route_add(
        &self,
        message: RouteMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("add route {text} in {}", self.namespace.label());
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewRoute(message), flags, &doing).await
    }

    /// All routes of one family.
    pub(in crate::link) async fn routes(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let answers = self.dump(RouteNetlinkMessage::GetRoute(message), "routes").await?;
        Ok(answers.into_iter().filter_map(as_route).collect())
    }

    /// All routes of one table of one family. A kernel that cannot choose (before 4.20) is asked for
    /// all of them.
    pub(in crate::link) async fn routes_of(
        &self,
        family: AddressFamily,
        table: u32,
    ) -> Result<Vec<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.attributes.push(RouteAttribute::Table(table));
        let answers = self.dump(RouteNetlinkMessage::GetRoute(message), "routes").await;
        let answers = match answers {
            // There was never a route in it.
            Err(error) if error.errno() == Some(libc::ENOENT) => Vec::new(),
            answers => answers?,
        };
        let in_table = |message: &RouteMessage| table_of(message) == table;
        Ok(answers.into_iter().filter_map(as_route).filter(in_table).collect())
    }

    /// The route that the kernel takes, as asked in `message`.
    pub(in crate::link) async fn route_get(
        &self,
        message: RouteMessage,
        to: IpAddr,
    ) -> Result<Option<RouteMessage>, Error> {
        let doing = || format!("look up the route to {to} in {}", self.namespace.label());
        let (answers, _) = self.exchange(RouteNetlinkMessage::GetRoute(message), 0, &doing).await?;
        Ok(answers.into_iter().find_map(as_route))
    }

    // ===== rules =====

    /// All rules of one family.
    pub(in crate::link) async fn rules(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<RuleMessage>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = family;
        let answers = self.dump(RouteNetlinkMessage::GetRule(message), "routing rules").await;
        let answers = match answers {
            // A kernel without the family has no rules of it.
            Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                Vec::new()
            }
            answers => answers?,
        };
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRule(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    /// Adds a rule; one that is there is no error.
    pub(in crate::link) async fn rule_add(
        &self,
        message: RuleMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("add the routing rule {text} in {}", self.namespace.label());
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.change(RouteNetlinkMessage::NewRule(message), flags, &doing).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes a rule as it was read; one that is gone already is no error.
    pub(in crate::link) async fn rule_delete(
        &self,
        message: RuleMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("remove the routing rule {text} in {}", self.namespace.label());
        match self.change(RouteNetlinkMessage::DelRule(message), 0, &doing).await {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// The table of a route; the header has no room for large numbers.
fn table_of(message: &RouteMessage) -> u32 {
    let told = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    told.unwrap_or_else(|| message.header.table.into())
}

fn as_route(answer: RouteNetlinkMessage) -> Option<RouteMessage> {
    match answer {
        RouteNetlinkMessage::NewRoute(message) => Some(message),
        _ => None,
    }
}

fn as_address(answer: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    // On a point-to-point link `Address` is the other side, so `Local` comes first.
    let ip = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })?;
    Some((message.header.index, IpNet::new(ip, message.header.prefix_len).ok()?))
}

//! One rtnetlink connection in one namespace, and the few requests we make of it.
//!
//! The connection's task runs on the tokio runtime that opened it and ends with the handle. Every
//! request has a deadline: an answer that cannot be decoded is dropped below us, and must not hang
//! an attach. Dumps that the kernel marks as interrupted are read again.

mod routes;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use encap::MacAddr;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::AsyncSocket as _;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use super::view::{FdbEntry, Link};
use super::{Error, NetNs, run_in};

/// How long the kernel may take for one request; creating devices can wait for its RTNL lock.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often an interrupted dump is read again before what came is taken.
const DUMP_TRIES: usize = 8;

/// A connection to rtnetlink in one namespace. Requests may be made concurrently.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    task: JoinHandle<()>,
    namespace: NetNs,
    /// The kernel refuses a second dump on a socket while one goes on (EBUSY).
    dumping: tokio::sync::Mutex<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netlink {
    /// Opens a connection in `namespace`. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// As [`run_in`]; `Netlink` when no socket can be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(namespace: &NetNs) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let opened = run_in(namespace, || {
            let _context = runtime.enter();
            rtnetlink::new_connection()
        })?;
        let (mut connection, handle, _) = opened.map_err(|source| Error::Netlink {
            doing: format!("open a netlink socket in {}", namespace.label()),
            source,
        })?;
        // So that the kernel itself chooses what is asked for; an older one gives all, and we choose.
        let strict = connection.socket_mut().socket_ref().set_netlink_get_strict_chk(true);
        if let Err(error) = strict {
            tracing::debug!(%error, "the kernel lists more than it is asked for");
        }
        // A dump that fails says so in its last message.
        connection.set_forward_done(true);
        Ok(Self {
            handle,
            task: runtime.spawn(connection),
            namespace: namespace.clone(),
            dumping: tokio::sync::Mutex::default(),
        })
    }

    /// The namespace it speaks for.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Sends one request and gathers its answers. The second value tells whether a dump was
    /// interrupted by a change.
    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        doing: &(dyn Fn() -> String + Sync),
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Error> {
        let failed = |source| match io::Error::kind(&source) {
            io::ErrorKind::PermissionDenied if source.raw_os_error() == Some(libc::EPERM) => {
                Error::Permission { doing: doing() }
            }
            _ => Error::Netlink { doing: doing(), source },
        };
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let gather = async {
            let closed = || io::Error::other("the netlink connection is closed");
            let mut answers = handle.request(request).map_err(|_| failed(closed()))?;
            let (mut messages, mut interrupted) = (Vec::new(), false);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::Error(error) if error.raw_code() != 0 => {
                        return Err(failed(error.to_io()));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(failed(io::Error::from_raw_os_error(
                            done.code.saturating_neg(),
                        )));
                    }
                    NetlinkPayload::InnerMessage(inner) => messages.push(inner),
                    _ => (),
                }
            }
            Ok((messages, interrupted))
        };
        match tokio::time::timeout(DEADLINE, gather).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { doing: doing(), after: DEADLINE }),
        }
    }

    async fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        doing: &(dyn Fn() -> String + Sync),
    ) -> Result<(), Error> {
        self.exchange(message, NLM_F_ACK | flags, doing).await.map(drop)
    }

    async fn dump(
        &self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let doing = || format!("list {what} of {}", self.namespace.label());
        let _turn = self.dumping.lock().await;
        let mut last = Vec::new();
        for _ in 0..DUMP_TRIES {
            let (messages, interrupted) =
                self.exchange(message.clone(), NLM_F_DUMP, &doing).await?;
            if !interrupted {
                return Ok(messages);
            }
            last = messages;
        }
        Ok(last)
    }

    // ===== links =====

    /// All links.
    ///
    /// # Errors
    /// `Netlink`, `Permission`, `Timeout`: so for every request below.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let answers =
            self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "links").await?;
        Ok(answers.iter().filter_map(as_link).collect())
    }

    /// The vxlan devices and the UDP ports that they hold.
    ///
    /// # Errors
    /// See [`Netlink::links`].
    pub async fn vxlan_devices(&self) -> Result<Vec<(String, u16)>, Error> {
        let answers =
            self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "links").await?;
        Ok(answers.iter().filter_map(as_vxlan).collect())
    }

    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// See [`Netlink::links`].
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let doing = || format!("look up {name} in {}", self.namespace.label());
        let found = self.exchange(RouteNetlinkMessage::GetLink(message), 0, &doing).await;
        match found {
            Ok((answers, _)) => Ok(answers.iter().find_map(as_link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many frames the device of that name dropped on the way out since it was made; for a TAP,
    /// those that its queues had no room for. `None` when there is no such device.
    ///
    /// # Errors
    /// See [`Netlink::links`].
    pub async fn dropped(&self, name: &str) -> Result<Option<u64>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let doing = || format!("read the counters of {name} in {}", self.namespace.label());
        let found = self.exchange(RouteNetlinkMessage::GetLink(message), 0, &doing).await;
        match found {
            Ok((answers, _)) => Ok(answers.iter().find_map(as_dropped)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of that name as the kernel tells of it, with what only its kind has.
    pub(super) async fn link_message(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let doing = || format!("look up {name} in {}", self.namespace.label());
        let found = self.exchange(RouteNetlinkMessage::GetLink(message), 0, &doing).await;
        match found {
            Ok((answers, _)) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(message),
                _ => None,
            })),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a link from attributes.
    pub(super) async fn create(
        &self,
        name: &str,
        attributes: Vec<LinkAttribute>,
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.extend(attributes);
        let doing = || format!("create {name} in {}", self.namespace.label());
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewLink(message), flags, &doing).await
    }

    /// Creates a veth pair: `near` here with `attributes`, `far` in another namespace.
    pub(super) async fn create_veth(
        &self,
        near: &str,
        attributes: Vec<LinkAttribute>,
        far: &str,
        far_namespace: &NetNs,
        far_attributes: Vec<LinkAttribute>,
    ) -> Result<(), Error> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(far.into()));
        peer.attributes.push(LinkAttribute::NetNsFd(far_namespace.number()));
        peer.attributes.extend(far_attributes);
        let mut all = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ])];
        all.extend(attributes);
        self.create(near, all).await
    }

    /// Changes attributes of a link, and its flags `up` when given. The only request that takes a
    /// bridge port's settings is `RTM_NEWLINK` without `NLM_F_CREATE` (net/core/rtnetlink.c,
    /// `rtnl_changelink`).
    pub(super) async fn set(
        &self,
        link: &Link,
        attributes: Vec<LinkAttribute>,
        up: Option<bool>,
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes = attributes;
        if let Some(up) = up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        let doing = || format!("configure {} in {}", link.name, self.namespace.label());
        self.change(RouteNetlinkMessage::NewLink(message), 0, &doing).await
    }

    /// Deletes a link; one that is gone already is no error. Returns whether there was one.
    pub(super) async fn delete(&self, link: &Link) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        self.delete_message(message, &link.name).await
    }

    /// As [`Netlink::delete`], by name.
    pub(super) async fn delete_name(&self, name: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.delete_message(message, name).await
    }

    async fn delete_message(&self, message: LinkMessage, name: &str) -> Result<bool, Error> {
        let doing = || format!("delete {name} in {}", self.namespace.label());
        match self.change(RouteNetlinkMessage::DelLink(message), 0, &doing).await {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    // ===== forwarding database =====

    /// All entries of the bridges here.
    ///
    /// # Errors
    /// See [`Netlink::links`].
    pub async fn fdb(&self) -> Result<Vec<FdbEntry>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message), "FDB entries").await?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => FdbEntry::read(message),
                _ => None,
            })
            .collect())
    }

    /// Makes `mac` a static entry of the bridge port `link`, wherever it was before.
    pub(super) async fn fdb_replace(&self, link: &Link, mac: MacAddr) -> Result<(), Error> {
        let mut message = fdb_message(link, mac);
        // NUD_NOARP without NUD_PERMANENT is `static`; PERMANENT would make the MAC the bridge's own.
        message.header.state = NeighbourState::Noarp;
        let doing = || format!("add {mac} to {} in {}", link.name, self.namespace.label());
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewNeighbour(message), flags, &doing).await
    }

    /// Removes an entry of the bridge port `link`; one that is gone already is no error.
    pub(super) async fn fdb_delete(&self, link: &Link, mac: MacAddr) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(fdb_message(link, mac));
        let doing = || format!("remove {mac} from {} in {}", link.name, self.namespace.label());
        match self.change(message, 0, &doing).await {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    // ===== neighbors =====

    /// Makes `mac` the address of `ip` on a link for good, so that nobody is asked for it.
    pub(super) async fn neighbor_replace(
        &self,
        link: &Link,
        ip: IpAddr,
        mac: MacAddr,
    ) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = link.index;
        message.header.state = NeighbourState::Permanent;
        let (family, address) = match ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
        };
        message.header.family = family;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.neighbour_replace(message, &format!("neighbor {ip} of {}", link.name)).await
    }

    /// All neighbors of one family; of `Bridge`, the forwarding entries of bridges and vxlan devices.
    pub(super) async fn neighbours(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<NeighbourMessage>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message), "neighbors").await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    /// Enters a neighbor or forwarding entry in the place of what is there.
    pub(super) async fn neighbour_replace(
        &self,
        message: NeighbourMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("enter {text} in {}", self.namespace.label());
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewNeighbour(message), flags, &doing).await
    }

    /// Removes a neighbor or forwarding entry; one that is gone already is no error.
    pub(super) async fn neighbour_delete(
        &self,
        message: NeighbourMessage,
        text: &str,
    ) -> Result<(), Error> {
        let doing = || format!("remove {text} in {}", self.namespace.label());
        match self.change(RouteNetlinkMessage::DelNeighbour(message), 0, &doing).await {
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// The number that `other` has in this namespace; `None` when it has none, and no link leads there.
    pub(super) async fn number_of(&self, other: &NetNs) -> Result<Option<i32>, Error> {
        let mut message = NsidMessage::default();
        let descriptor = u32::try_from(other.number()).unwrap_or(u32::MAX);
        message.attributes.push(NsidAttribute::Fd(descriptor));
        let doing = || format!("look up {} in {}", other.label(), self.namespace.label());
        let (answers, _) = self.exchange(RouteNetlinkMessage::GetNsId(message), 0, &doing).await?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => {
                message.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) => Some(*number).filter(|number| *number >= 0),
                    _ => None,
                })
            }
            _ => None,
        }))
    }
}

fn fdb_message(link: &Link, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link.index;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn as_link(answer: &RouteNetlinkMessage) -> Option<Link> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Link::read(message),
        _ => None,
    }
}

fn as_vxlan(answer: &RouteNetlinkMessage) -> Option<(String, u16)> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let port = message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else { return None };
        infos.iter().find_map(|info| {
            let LinkInfo::Data(InfoData::Vxlan(vxlan)) = info else { return None };
            vxlan.iter().find_map(|info| match info {
                InfoVxlan::Port(port) => Some(*port),
                _ => None,
            })
        })
    })?;
    Some((name, port))
}

fn as_dropped(answer: &RouteNetlinkMessage) -> Option<u64> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
        _ => None,
    })
}

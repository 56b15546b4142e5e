//! The private namespace of a network: its bridge and the switch's TAP as a port of it. That of a
//! network which is routed has neither and is made by [`super::routed`].

use std::path::{Path, PathBuf};

use encap::MacAddr;
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkInfo,
};

use super::names::{BRIDGE, PORT, TAP, TUN};
use super::view::{BridgeView, FdbEntry, Kind, Link, PortView};
use super::{Error, NetNs, Netlink, Pinned, netns, run_in, sysctl};

/// Settings of the whole namespace, in the order they are written: what could touch a frame first.
const SETTINGS: [(&str, &str); 6] = [
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    // Devices made from here on start without IPv6, the TAP that a worker opens included.
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

/// Frames that wait in each queue of the TAP before more are dropped. The kernel's default for
/// Ethernet devices, said aloud: it bridges a millisecond in which the worker does not run at a
/// million frames per second, and adds no delay that a sandbox's TCP would not. What waits is charged
/// to the sockets that sent it, so super-frames do not make it a memory of its own.
pub const TAP_QUEUE_FRAMES: u32 = 1000;

/// Where there is no gateway, which routes ([`super::router`]).
const NO_ROUTER: [(&str, &str); 2] =
    [("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "0")];

/// What a network's namespace is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkLink {
    /// Where the namespace is pinned, see [`super::Owner::pin`].
    pub pin: PathBuf,
    /// IP MTU of bridge and ports, in bytes.
    pub mtu: u32,
    /// Whether it has a gateway: then forwarding, and IPv6 on the bridge, are [`super::router`]'s.
    pub router: bool,
    /// MAC of the bridge; fixed, so that it does not change with the ports.
    pub bridge_mac: MacAddr,
}

/// A network's namespace with a netlink connection in it.
#[derive(Debug)]
pub struct NetworkNs {
    pin: PathBuf,
    netlink: Netlink,
    /// Index of the bridge; `None` where the network is routed.
    bridge: Option<u32>,
    pinned: Pinned,
}

/// Everything that is in a network's namespace, for takeover and diagnosis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// The bridge.
    pub bridge: Link,
    /// The switch's TAP, once it is there.
    pub tap: Option<Link>,
    /// All other ports of the bridge, by index.
    pub ports: Vec<Link>,
    /// The entries of the bridge.
    pub fdb: Vec<FdbEntry>,
}

/// Makes the namespace and bridge of a network as `wanted`, whatever is there of it.
///
/// # Errors
/// Those of [`NetNs::create_pinned`], `Sysctl`, `Netlink`, `Timeout`. A namespace made by a call
/// that fails is removed; one that was there stays.
pub async fn ensure(wanted: &NetworkLink) -> Result<NetworkNs, Error> {
    let (namespace, pinned) = NetNs::create_pinned(&wanted.pin)?;
    match settle(wanted, &namespace, pinned).await {
        Ok(network) => Ok(network),
        Err(error) if pinned == Pinned::Adopted => Err(error),
        Err(error) => match netns::unpin(&wanted.pin) {
            Ok(_) => Err(error),
            Err(undo) => Err(Error::Undo { cause: error.into(), undo: vec![undo] }),
        },
    }
}

async fn settle(
    wanted: &NetworkLink,
    namespace: &NetNs,
    pinned: Pinned,
) -> Result<NetworkNs, Error> {
    run_in(namespace, || {
        let plain = NO_ROUTER.iter().filter(|_| !wanted.router);
        let all = SETTINGS.iter().chain(plain);
        all.into_iter().try_for_each(|(name, value)| sysctl::ensure(name, value).map(drop))
    })??;
    let netlink = Netlink::open(namespace)?;
    let links = netlink.links().await?;
    if let Some(loopback) = links.iter().find(|link| link.name == "lo" && !link.up) {
        netlink.set(loopback, Vec::new(), Some(true)).await?;
    }
    let bridge = settle_bridge(&netlink, wanted, links.iter().find(|l| l.name == BRIDGE)).await?;
    let ports = links.iter().filter(|link| link.master == Some(bridge.index));
    let silent = (!wanted.router).then_some(&bridge);
    silence(namespace, ports.chain(silent))?;
    if !bridge.up {
        netlink.set(&bridge, Vec::new(), Some(true)).await?;
    }
    Ok(NetworkNs { pin: wanted.pin.clone(), netlink, bridge: Some(bridge.index), pinned })
}

/// The bridge with the settings wanted; it may be down.
async fn settle_bridge(
    netlink: &Netlink,
    wanted: &NetworkLink,
    present: Option<&Link>,
) -> Result<Link, Error> {
    let settings = BridgeView::default();
    let address = LinkAttribute::Address(wanted.bridge_mac.0.to_vec());
    let mtu = LinkAttribute::Mtu(wanted.mtu);
    let data = |present| bridge_data(settings.attributes(present));
    match present {
        Some(link) if link.kind == Kind::Bridge => {
            if link.bridge.is_some_and(|view| view.stp) {
                // With STP on the kernel refuses a forward delay of zero.
                let off = vec![InfoBridge::StpState(BridgeStpState::Disabled)];
                netlink.set(link, vec![bridge_data(off)], None).await?;
            }
            let mut changes = Vec::new();
            if link.bridge != Some(settings) {
                changes.push(data(link.bridge));
            }
            if link.mac != wanted.bridge_mac {
                changes.push(address);
            }
            if link.mtu != wanted.mtu {
                changes.push(mtu);
            }
            if !changes.is_empty() {
                netlink.set(link, changes, None).await?;
            }
            return Ok(link.clone());
        }
        Some(link) => drop(netlink.delete(link).await?),
        None => (),
    }
    netlink.create(BRIDGE, vec![data(None), address, mtu]).await?;
    let link = netlink.link(BRIDGE).await?;
    link.ok_or_else(|| missing(netlink.namespace(), BRIDGE))
}

/// Turns IPv6 off on devices that came to be before the namespace's default was set.
fn silence<'a>(namespace: &NetNs, links: impl Iterator<Item = &'a Link>) -> Result<(), Error> {
    let names =
        links.map(|link| format!("net/ipv6/conf/{}/disable_ipv6", link.name)).collect::<Vec<_>>();
    run_in(namespace, || names.iter().try_for_each(|name| sysctl::ensure(name, "1").map(drop)))?
}

pub(super) fn missing(namespace: &NetNs, link: &str) -> Error {
    Error::NoLink { what: namespace.label().into(), link: link.into() }
}

/// The attribute that carries a bridge's settings.
fn bridge_data(settings: Vec<InfoBridge>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(settings)),
    ])
}

/// The attribute that carries a port's settings.
fn port_data(settings: PortView) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings.attributes())),
    ])
}

impl NetworkNs {
    /// Opens a namespace that is there, changing nothing.
    ///
    /// # Errors
    /// `NamespaceGone`, `NoLink` when it has neither bridge nor TUN, `Netlink`, `Timeout`.
    pub async fn open(pin: &Path) -> Result<Self, Error> {
        let namespace = NetNs::open_pin(pin)?;
        let netlink = Netlink::open(&namespace)?;
        let bridge = netlink.link(BRIDGE).await?.filter(|link| link.kind == Kind::Bridge);
        let bridge = bridge.map(|link| link.index);
        if bridge.is_none() && netlink.link(TUN).await?.is_none() {
            return Err(missing(&namespace, BRIDGE));
        }
        Ok(Self { pin: pin.into(), netlink, bridge, pinned: Pinned::Adopted })
    }

    /// A namespace without a bridge.
    pub(super) fn routed(pin: PathBuf, netlink: Netlink, pinned: Pinned) -> Self {
        Self { pin, netlink, bridge: None, pinned }
    }

    /// Whether the network is routed.
    pub fn is_routed(&self) -> bool {
        self.bridge.is_none()
    }

    /// The namespace, to open the TAP's queues in.
    pub fn namespace(&self) -> &NetNs {
        self.netlink.namespace()
    }

    /// Where it is pinned.
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    /// Whether it was found or made.
    pub fn pinned(&self) -> Pinned {
        self.pinned
    }

    /// Index of the bridge; `None` where the network is routed.
    pub fn bridge(&self) -> Option<u32> {
        self.bridge
    }

    /// Index of the bridge that a port is to be of.
    pub(super) fn needed_bridge(&self) -> Result<u32, Error> {
        self.bridge.ok_or_else(|| missing(self.namespace(), BRIDGE))
    }

    /// The connection.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Makes the TAP `name` ([`TAP`]) the switch's port of the bridge and sets it up. Returns it as
    /// it was found, with its index.
    ///
    /// # Errors
    /// `NoLink` when there is no such TAP; `Sysctl`, `Netlink`, `Timeout`.
    pub async fn attach_tap(&self, name: &str, mtu: u32) -> Result<Link, Error> {
        let tap = self.netlink.link(name).await?.filter(|link| link.kind == Kind::Tun);
        let tap = tap.ok_or_else(|| missing(self.namespace(), name))?;
        silence(self.namespace(), [&tap].into_iter())?;
        // Before it is up: the queues are sized by it.
        self.netlink.set(&tap, vec![LinkAttribute::TxQueueLen(TAP_QUEUE_FRAMES)], None).await?;
        self.settle_port(&tap, PortView::tap(), mtu, &tap.alias).await?;
        if !tap.up {
            self.netlink.set(&tap, Vec::new(), Some(true)).await?;
        }
        Ok(tap)
    }

    /// How many frames the queues of the TAP `name` had no room for since it was made; none when it
    /// is not there.
    ///
    /// # Errors
    /// `Netlink`, `Timeout`.
    pub async fn overflowed(&self, name: &str) -> Result<u64, Error> {
        Ok(self.netlink.dropped(name).await?.unwrap_or_default())
    }

    /// Makes `link` a port of the bridge with these settings, MTU and alias, as far as it is not.
    pub(super) async fn settle_port(
        &self,
        link: &Link,
        wanted: PortView,
        mtu: u32,
        alias: &str,
    ) -> Result<(), Error> {
        let bridge = self.needed_bridge()?;
        let joins = link.master != Some(bridge);
        if joins {
            // A port's settings can be written only once it is one.
            self.netlink.set(link, vec![LinkAttribute::Controller(bridge)], None).await?;
        }
        let mut changes = Vec::new();
        if joins || !link.port.is_some_and(|port| port.same_settings(wanted)) {
            changes.push(port_data(wanted));
        }
        if link.mtu != mtu {
            changes.push(LinkAttribute::Mtu(mtu));
        }
        if link.alias != alias {
            changes.push(LinkAttribute::IfAlias(alias.into()));
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.netlink.set(link, changes, None).await
    }

    /// Gives the bridge and all its ports another MTU, or the TUN and all that is routed to it. The sandboxes' ends have their own:
    /// [`super::endpoint::set_mtu`]; lower those first, raise those last.
    ///
    /// # Errors
    /// `Netlink`, `Timeout`; goes on to the end and gives the first.
    pub async fn set_mtu(&self, mtu: u32) -> Result<(), Error> {
        let mut result = Ok(());
        for link in self.netlink.links().await? {
            let ours = match self.bridge {
                Some(bridge) => link.index == bridge || link.master == Some(bridge),
                None => link.name == TUN || self.is_port(&link),
            };
            if ours && link.mtu != mtu {
                let set = self.netlink.set(&link, vec![LinkAttribute::Mtu(mtu)], None).await;
                result = result.and(set);
            }
        }
        result
    }

    /// Whether a link is the port of an endpoint, where the network is routed.
    pub(super) fn is_port(&self, link: &Link) -> bool {
        link.kind == Kind::Veth && link.name.starts_with(PORT)
    }

    /// Reads everything that is there.
    ///
    /// # Errors
    /// `NoLink` without a bridge; `Netlink`, `Timeout`.
    pub async fn inspect(&self) -> Result<NetworkState, Error> {
        let links = self.netlink.links().await?;
        let index = self.needed_bridge()?;
        let bridge = links.iter().find(|link| link.index == index).cloned();
        let bridge = bridge.ok_or_else(|| missing(self.namespace(), BRIDGE))?;
        let (mut taps, mut ports) = links
            .into_iter()
            .filter(|link| link.master == Some(index))
            .partition::<Vec<_>, _>(|link| link.kind == Kind::Tun && link.name == TAP);
        ports.sort_by_key(|link| link.index);
        let mut fdb = self.netlink.fdb().await?;
        fdb.retain(|entry| entry.bridge == Some(index));
        Ok(NetworkState { bridge, tap: taps.pop(), ports, fdb })
    }
}

/// Removes a network's namespace with all that is in it. The sandboxes lose their interfaces, and
/// descriptors of the TAP become useless. Returns whether there was anything.
///
/// # Errors
/// `Netlink`, `Pin`, `Permission`, `Timeout`.
pub async fn remove(pin: &Path) -> Result<bool, Error> {
    match NetNs::open_pin(pin) {
        // The namespace would live on as long as anyone holds it, the devices must not.
        Ok(namespace) => {
            let netlink = Netlink::open(&namespace)?;
            for link in netlink.links().await? {
                if link.kind != Kind::Other {
                    netlink.delete(&link).await?;
                }
            }
        }
        Err(Error::NamespaceGone { .. } | Error::NotANamespace { .. }) => (),
        Err(error) => return Err(error),
    }
    netns::unpin(pin)
}

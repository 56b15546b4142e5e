//! The networks that are set up on this host.
//!
//! # Theory of operation
//!
//! A network is set up here while an endpoint holds it: one that is attached, or being attached.
//! Holders are named, so that whoever takes an endpoint down twice takes nothing from the others.
//! Setting up is, in order: the private namespace with its bridge; the TAP with one queue per
//! worker, opened in that namespace; the TAP as a port of the bridge; the tables; the port at the
//! workers. A network of packets has routes in the place of the bridge and a TUN in that of the TAP. Taking down is the reverse. Every step is level-triggered, so that setting up a network
//! that an earlier agent left behind takes it over: same namespace, same devices, containers not
//! touched.
//!
//! One lock covers the set of networks: setting up takes some milliseconds of netlink, once per
//! network and host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use encap::MacAddr;
use fdb::{Carrier, NetworkKey};
use membership::gateway;
use membership::key::NetworkId;
use membership::record::{Mode, NetworkRecord};

use super::routers::RouterState;
use super::tables::Tables;
use crate::control::types::Error;
use crate::datapath::Datapath;
use crate::link::names::{TAP, TUN};
use crate::link::routed::{self, RoutedLink};
use crate::link::source_check::Guarded;
use crate::link::{self, NetworkLink, NetworkNs, Owner};
use crate::port::queue::PortOffload;
use crate::port::{tap, tun};

/// The switch's port in the private namespace of a network.
#[must_use]
pub fn port_name(mode: Mode) -> &'static str {
    if mode.is_routed() { TUN } else { TAP }
}

/// A network that is set up here.
pub struct LocalNetwork {
    /// Its id.
    pub id: NetworkId,
    /// Its slot in the tables.
    pub key: NetworkKey,
    /// Its private namespace.
    pub namespace: NetworkNs,
    /// What its port granted.
    pub offload: PortOffload,
    /// Queues of its port.
    pub queues: usize,
    /// The ports whose sources this run has had checked, by endpoint; `None` until all of them have
    /// been looked at once. Held while the checks change, or who carries local frames.
    pub(super) guarded: tokio::sync::Mutex<Option<BTreeMap<String, Guarded>>>,
    /// Gateway and uplink. Held while they change.
    pub(super) router: tokio::sync::Mutex<RouterState>,
    mtu: AtomicU16,
    switched: AtomicBool,
}

impl LocalNetwork {
    /// The inner MTU that its devices have, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Whether its packets are routed, and its namespace has no bridge.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.namespace.is_routed()
    }

    /// The switch's port in its namespace.
    #[must_use]
    pub fn port(&self) -> &'static str {
        if self.is_routed() { TUN } else { TAP }
    }

    /// Notes the MTU that the devices were given.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Whether the switch carries frames between two sandboxes of this host, and not the bridge.
    #[must_use]
    pub fn is_switched(&self) -> bool {
        self.switched.load(Ordering::Relaxed)
    }

    /// Notes who carries them from now on.
    pub(super) fn set_switched(&self, switched: bool) {
        self.switched.store(switched, Ordering::Relaxed);
    }
}

struct Held {
    network: Arc<LocalNetwork>,
    /// Ids of endpoints.
    holders: BTreeSet<String>,
}

/// All networks of this host.
pub struct Networks {
    owner: Owner,
    workers: usize,
    offload: PortOffload,
    router_mac: MacAddr,
    held: tokio::sync::Mutex<HashMap<NetworkId, Held>>,
}

impl Networks {
    /// `workers` queues per port, each with at most `offload`; `router_mac` is that of frames which
    /// this host routes.
    #[must_use]
    pub fn new(owner: Owner, workers: usize, offload: PortOffload, router_mac: MacAddr) -> Self {
        Self { owner, workers, offload, router_mac, held: tokio::sync::Mutex::default() }
    }

    /// The MAC of frames that this host routes.
    #[must_use]
    pub fn router_mac(&self) -> MacAddr {
        self.router_mac
    }

    /// Whose devices these are.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The pin of a network's namespace.
    #[must_use]
    pub fn pin(&self, network: &NetworkId) -> PathBuf {
        self.owner.pin(network.as_str())
    }

    /// Sets the network up if it is not, and holds it for an endpoint until [`Self::release`].
    ///
    /// # Errors
    /// What could not be set up; nothing of it stays but what was there before.
    pub async fn hold(
        &self,
        record: &NetworkRecord,
        endpoint: &str,
        tables: &Tables,
        datapath: &Datapath,
    ) -> Result<Arc<LocalNetwork>, Error> {
        let mut held = self.held.lock().await;
        if let Some(present) = held.get_mut(&record.id) {
            present.holders.insert(endpoint.to_owned());
            return Ok(Arc::clone(&present.network));
        }
        let network = Arc::new(self.set_up(record, tables, datapath).await?);
        let holders = BTreeSet::from([endpoint.to_owned()]);
        let entry = Held { network: Arc::clone(&network), holders };
        held.insert(record.id.clone(), entry);
        Ok(network)
    }

    /// Lets go of a network for an endpoint; the last one to do so takes it down. Nothing happens
    /// when the endpoint does not hold it.
    ///
    /// # Errors
    /// When devices could not be removed; the network is not served any more all the same.
    pub async fn release(
        &self,
        id: &NetworkId,
        endpoint: &str,
        tables: &Tables,
        datapath: &Datapath,
    ) -> Result<(), Error> {
        let mut held = self.held.lock().await;
        let Some(present) = held.get_mut(id) else { return Ok(()) };
        if !present.holders.remove(endpoint) || !present.holders.is_empty() {
            return Ok(());
        }
        let Some(last) = held.remove(id) else { return Ok(()) };
        datapath.remove_port(last.network.key);
        tables.deactivate(id);
        let removed = link::network::remove(&self.pin(id)).await;
        removed.map(drop).map_err(|err| super::link_error(&err))
    }

    /// Removes namespaces of networks that an earlier run left and that nothing here holds, but not
    /// those that `needed` names by their ids.
    ///
    /// # Errors
    /// The last failure; the others are removed.
    pub async fn remove_unused(&self, needed: &BTreeSet<String>) -> Result<(), link::Error> {
        let held = self.held.lock().await;
        let used: BTreeSet<PathBuf> = held
            .keys()
            .map(NetworkId::as_str)
            .chain(needed.iter().map(String::as_str))
            .map(|network| self.owner.pin(network))
            .collect();
        let mut result = Ok(());
        for pin in self.owner.pins()?.into_iter().filter(|pin| !used.contains(&pin.path)) {
            match link::network::remove(&pin.path).await {
                Ok(_) => {
                    let pin = pin.path.display();
                    tracing::info!(%pin, "removed the namespace of a network that nothing uses");
                }
                Err(err) => result = Err(err),
            }
        }
        result
    }

    /// The network, if it is set up here.
    pub async fn get(&self, id: &NetworkId) -> Option<Arc<LocalNetwork>> {
        self.held.lock().await.get(id).map(|held| Arc::clone(&held.network))
    }

    /// All that are set up here.
    pub async fn all(&self) -> Vec<Arc<LocalNetwork>> {
        self.held.lock().await.values().map(|held| Arc::clone(&held.network)).collect()
    }

    /// Asks the devices which frames their queues had no room for.
    pub async fn note_overflows(&self, datapath: &Datapath) {
        for local in self.all().await {
            match local.namespace.overflowed(local.port()).await {
                Ok(overflowed) => datapath.note_overflow(local.key, overflowed),
                Err(err) => tracing::debug!(network = %local.id, %err, "no counters of a port"),
            }
        }
    }

    async fn namespace_of(
        &self,
        record: &NetworkRecord,
        mtu: u16,
    ) -> Result<NetworkNs, link::Error> {
        let pin = self.pin(&record.id);
        if record.mode.is_routed() {
            return routed::ensure(&RoutedLink { pin, ipv6: has_ipv6(record) }).await;
        }
        let router = !gateway::own(record).is_empty();
        let wanted = NetworkLink {
            pin,
            mtu: u32::from(mtu),
            router,
            bridge_mac: if router {
                self.router_mac
            } else {
                bridge_mac(self.owner.hash(), record.id.as_str())
            },
        };
        link::network::ensure(&wanted).await
    }

    async fn set_up(
        &self,
        record: &NetworkRecord,
        tables: &Tables,
        datapath: &Datapath,
    ) -> Result<LocalNetwork, Error> {
        let mtu = tables.network_mtu(&record.id);
        let port = port_name(record.mode);
        let namespace = self.namespace_of(record, mtu).await.map_err(|e| super::link_error(&e))?;
        let opened = link::run_in(namespace.namespace(), || match record.mode.is_routed() {
            true => tun::open(port, self.workers, self.offload),
            false => tap::open(port, self.workers, self.offload),
        })
        .map_err(|err| super::link_error(&err))?;
        let (queues, offload) = opened.map_err(|err| {
            Error::internal(format!("cannot open the port {port} of network {}", record.name))
                .cause(err.to_string())
                .next_step(
                    "EBUSY means that another agent still holds it: is one running with this \
                     state directory?",
                )
        })?;
        let attached = match record.mode.is_routed() {
            true => routed::attach_tun(&namespace, u32::from(mtu), has_ipv6(record)).await,
            false => namespace.attach_tap(port, u32::from(mtu)).await,
        };
        attached.map_err(|err| super::link_error(&err))?;
        let overflowed = namespace.overflowed(port).await.map_err(|err| super::link_error(&err))?;
        let key = tables.activate(&record.id)?;
        if let Err(err) = listen(tables, datapath, key) {
            tables.deactivate(&record.id);
            return Err(
                Error::conflict(format!("network {} cannot be received", record.name)).cause(err)
            );
        }
        let count = queues.len();
        let switched = tables.switches_locally(key);
        datapath.add_port(key, record.name.as_str(), queues, overflowed, switched);
        Ok(LocalNetwork {
            id: record.id.clone(),
            key,
            namespace,
            offload,
            queues: count,
            guarded: tokio::sync::Mutex::default(),
            router: tokio::sync::Mutex::default(),
            mtu: AtomicU16::new(mtu),
            switched: AtomicBool::new(switched),
        })
    }
}

fn has_ipv6(record: &NetworkRecord) -> bool {
    record.subnets.iter().any(|subnet| subnet.addr().is_ipv6())
}

/// Has the workers receive what a network's tables say; may be repeated.
///
/// # Errors
/// Why a socket cannot be opened.
pub fn listen(tables: &Tables, datapath: &Datapath, key: NetworkKey) -> Result<(), String> {
    let Some((udp_port, routed)) = tables.received_by(key) else { return Ok(()) };
    let Some(routed) = routed else {
        return datapath.listen(udp_port).map_err(|err| err.to_string());
    };
    if routed.carrier == Carrier::IpIp {
        datapath.listen_ip().map_err(|err| err.to_string())?;
    }
    if routed.carrier == Carrier::IpUdp || routed.fallback {
        datapath.listen_routed(routed.ports).map_err(|err| err.to_string())?;
    }
    Ok(())
}

/// A stable, locally administered MAC for a bridge, which never leaves its namespace.
fn bridge_mac(owner: &str, network: &str) -> MacAddr {
    // FNV-1a, 64 bits: no more is wanted than different bytes for different names.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in owner.bytes().chain([b'/']).chain(network.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

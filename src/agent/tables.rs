//! The tables of this host: from records to generations.
//!
//! # Theory of operation
//!
//! ```text
//!   watch batch ─► View ─► Reconciler ─► deltas ─► fdb::Writer ─► generation
//!   learned addresses, timers, networks set up or taken down ──┘
//! ```
//!
//! One lock holds view, reconciler and writer together; it is taken by the control plane only and
//! never across an await. Workers read published generations and do not know of it.
//!
//! When a published change gives an address another owner, the containers of this host must
//! replace what they cached: an announcement is written to the network's port. So it is for an
//! address that is new elsewhere: whoever asked for it in vain would else ask again only after its
//! retransmission timer, a second (RFC 4861 section 7.2.2; net/core/neighbour.c).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use encap::MacAddr;
use fdb::{Delta, Millis, NetworkKey, Place, Revision, VtepKey};
use ipnet::IpNet;
use membership::key::{EndpointId, HostName, Key, NetworkId};
use membership::reconcile::{Defaults, Reconciler};
use membership::record::{EndpointRecord, Record, VtepRecord};
use membership::view::View;
use membership::watch::{Batch, Event};
use tokio::sync::watch;

use super::convergence::Convergence;
use crate::control::types::{self, Error};
use crate::datapath::Datapath;
use crate::datapath::learn::Learned;
use crate::datapath::responder;

/// How long this host's own watch may take to tell of what the store has just taken.
pub const ECHO: Duration = Duration::from_secs(5);
/// An announcement is at most an unsolicited neighbor advertisement.
const ANNOUNCEMENT_BYTES: usize = 128;

/// An address that has another owner now, or its first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    network: NetworkKey,
    address: IpAddr,
    mac: MacAddr,
}

struct Inner {
    view: View,
    reconciler: Reconciler,
    writer: fdb::Writer,
    /// When each record's revision was first seen, by this host's clock.
    seen: HashMap<i64, Millis>,
    /// Endpoints of this host that are being removed: the store may still tell of them. With the
    /// revision from which on it does not, once that is known.
    leaving: HashMap<EndpointId, Option<Revision>>,
    /// Endpoints of this host that the store has not been told of yet.
    unsaid: HashSet<EndpointId>,
    complete: bool,
    convergence: Convergence,
}

/// View, reconciler and writer behind one lock.
pub struct Tables {
    inner: Mutex<Inner>,
    reader: fdb::Reader,
    started: Instant,
    host: HostName,
    learned_age: Millis,
    reached: watch::Sender<Revision>,
}

impl Tables {
    /// Starts from `view`, which may be a snapshot of an earlier run or empty. A learned address is
    /// forgotten when it was not confirmed for `learned_age`.
    #[must_use]
    pub fn new(host: HostName, defaults: Defaults, view: View, learned_age: Millis) -> Self {
        let (writer, reader) = fdb::channel();
        let reconciler = Reconciler::new(host.clone(), defaults);
        let revision = view.revision();
        let tables = Self {
            inner: Mutex::new(Inner {
                view,
                reconciler,
                writer,
                seen: HashMap::new(),
                leaving: HashMap::new(),
                unsaid: HashSet::new(),
                complete: false,
                convergence: Convergence::default(),
            }),
            reader,
            started: Instant::now(),
            host,
            learned_age,
            reached: watch::Sender::new(revision),
        };
        tables.change(|inner, now| inner.reconciler.resync(&inner.view, now));
        tables
    }

    /// For the workers.
    #[must_use]
    pub fn reader(&self) -> &fdb::Reader {
        &self.reader
    }

    /// The zero of this agent's clock.
    #[must_use]
    pub fn epoch(&self) -> Instant {
        self.started
    }

    /// This agent's clock.
    #[must_use]
    pub fn now(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` under the lock, applies the deltas that it returns and publishes them together.
    fn change(&self, work: impl FnOnce(&mut Inner, Millis) -> Vec<Delta>) -> Vec<Announcement> {
        let now = self.now();
        let mut inner = self.lock();
        let deltas = work(&mut inner, now);
        let mut announcements = Vec::new();
        for delta in deltas {
            if let Delta::PutNeighbor { network, ip, neighbor } = &delta {
                let before = inner
                    .writer
                    .working()
                    .network(*network)
                    .and_then(|tables| tables.neighbor(*ip))
                    .copied();
                let announced = match before {
                    Some(b) => b.mac != neighbor.mac || b.place != neighbor.place,
                    // What the first listing tells of is old news, and our own announce themselves.
                    None => inner.complete && neighbor.place != Place::Local,
                };
                if announced {
                    announcements.push(Announcement {
                        network: *network,
                        address: *ip,
                        mac: neighbor.mac,
                    });
                }
            }
            inner.writer.apply(delta);
        }
        if inner.writer.is_dirty() {
            inner.writer.publish();
        }
        inner.writer.reclaim();
        announcements
    }

    /// Applies a batch of the watch.
    #[must_use]
    pub fn apply(&self, batch: Batch) -> Vec<Announcement> {
        let revision = batch.revision;
        let (complete, resync, began) = (batch.complete, batch.resync, batch.began);
        let rolled_back = batch.rolled_back;
        let mut own = Vec::new();
        let announcements = self.change(|inner, now| {
            let mut deltas = Vec::new();
            for event in batch.events {
                // What a listing tells anew is no echo of what is being removed: a store that was
                // restored has it again.
                if resync {
                    inner.forget_leaving(&event);
                } else if inner.is_leaving(&event) {
                    continue;
                }
                if inner.is_unsaid(&event) {
                    continue;
                }
                if let Event::Put { revision, key, .. } = &event {
                    inner.seen.entry(revision.0).or_insert(now);
                    if let Key::Endpoint(_, endpoint) = key {
                        own.extend(inner.convergence.forget(endpoint));
                    }
                }
                let change = inner.view.apply(event);
                deltas.extend(inner.reconciler.apply(&inner.view, &change, now));
            }
            if complete {
                inner.view.reached(revision);
                inner.complete = true;
                inner.forget_seen();
                // A revision of the history before says nothing about this one.
                let to_come = |gone: Revision| gone > revision && !rolled_back;
                inner.leaving.retain(|_, gone| gone.is_none_or(to_come));
            }
            deltas
        });
        if complete {
            let inner = &mut *self.lock();
            if resync {
                inner.convergence.listed(began.elapsed(), inner.view.endpoints().count());
            } else {
                inner.convergence.changed(began.elapsed());
            }
            own.into_iter().for_each(|asked| inner.convergence.came(asked));
            self.reached.send_replace(revision);
        }
        announcements
    }

    /// Applies what the workers learned.
    #[must_use]
    pub fn learn(&self, learned: impl Iterator<Item = Learned>) -> Vec<Announcement> {
        let mut learned = learned.peekable();
        if learned.peek().is_none() {
            return Vec::new();
        }
        self.change(|_, now| {
            let delta = |seen: Learned| Delta::Learn {
                network: seen.network,
                mac: seen.mac,
                vtep: seen.vtep,
                at: now,
            };
            learned.map(delta).collect()
        })
    }

    /// Applies what the workers heard and what time brings.
    #[must_use]
    pub fn tick(&self, heard: impl Fn(VtepKey) -> bool) -> Vec<Announcement> {
        self.change(|inner, now| {
            let suspects: Vec<VtepKey> = inner
                .reconciler
                .suspects()
                .filter_map(|(host, _)| inner.reconciler.vtep_key(host))
                .collect();
            for vtep in suspects.into_iter().filter(|vtep| heard(*vtep)) {
                inner.reconciler.heard(vtep, now);
            }
            let mut deltas = vec![Delta::Age { now, max_age: self.learned_age }];
            deltas.extend(inner.reconciler.tick(&inner.view, now));
            deltas
        })
    }

    /// Writes announcements to the ports of their networks.
    pub fn announce(&self, announcements: Vec<Announcement>, datapath: &Datapath) {
        for changed in announcements {
            let mut frame = vec![0; ANNOUNCEMENT_BYTES];
            if let Some(len) = responder::announcement(changed.address, changed.mac, &mut frame) {
                frame.truncate(len);
                datapath.inject(changed.network, frame);
            }
        }
    }

    /// Gives a network tables on this host.
    ///
    /// # Errors
    /// When its record is not known.
    pub fn activate(&self, network: &NetworkId) -> Result<NetworkKey, Error> {
        let _ = self.change(|inner, _| inner.reconciler.activate(&inner.view, network));
        self.lock().reconciler.network_key(network).ok_or_else(|| {
            Error::not_found(format!("network {network} is not known on this host"))
                .next_step("`skybridge status` shows whether the store is connected")
        })
    }

    /// This host's own VTEPs have changed.
    pub fn set_own_vteps(&self, vteps: &[VtepRecord]) {
        let _ = self
            .change(|inner, now| inner.reconciler.set_own_vteps(&inner.view, vteps.to_vec(), now));
    }

    /// Takes a network's tables away.
    pub fn deactivate(&self, network: &NetworkId) {
        let _ = self.change(|inner, _| inner.reconciler.deactivate(&inner.view, network));
    }

    /// An endpoint of this host leaves: its entries go now, whatever the store still says.
    pub fn forget_endpoint(&self, network: &NetworkId, endpoint: &EndpointId) {
        let key = Key::Endpoint(network.clone(), endpoint.clone());
        let _ = self.change(|inner, now| {
            inner.leaving.insert(endpoint.clone(), None);
            inner.unsaid.remove(endpoint);
            inner.convergence.forget(endpoint);
            let revision = inner.view.revision();
            let change = inner.view.apply(Event::Delete { key, revision });
            inner.reconciler.apply(&inner.view, &change, now)
        });
    }

    /// An endpoint is about to be written to the store: how long it takes to come back is measured.
    pub fn expect_endpoint(&self, endpoint: &EndpointId) {
        self.lock().convergence.expect(endpoint.clone());
    }

    /// How fast these tables follow the store.
    #[must_use]
    pub fn convergence(&self) -> types::Convergence {
        self.lock().convergence.summary()
    }

    /// The store does not have a forgotten endpoint from `gone` on. What it tells of it at a later
    /// revision is a request that was given up and carried out all the same.
    pub fn endpoint_gone(&self, endpoint: &EndpointId, gone: Revision) {
        let mut inner = self.lock();
        if gone <= inner.view.revision() {
            inner.leaving.remove(endpoint);
        } else if let Some(present) = inner.leaving.get_mut(endpoint) {
            *present = Some(gone);
        }
    }

    /// An endpoint of this host that the store has not been told of: its entries come now, and what
    /// the store tells of it counts from when it has it.
    pub fn put_own(&self, record: EndpointRecord) {
        let key = Key::Endpoint(record.network.clone(), record.id.clone());
        let _ = self.change(|inner, now| {
            inner.leaving.remove(&record.id);
            inner.unsaid.insert(record.id.clone());
            // How long the store takes to answer is no measure of the watch.
            inner.convergence.forget(&record.id);
            let revision = inner.view.revision();
            let record = Box::new(Record::Endpoint(record));
            let change = inner.view.apply(Event::Put { key, record, revision });
            inner.reconciler.apply(&inner.view, &change, now)
        });
    }

    /// Waits until this host's own watch has told of an endpoint.
    ///
    /// # Errors
    /// When it does not within `timeout`.
    pub async fn wait_for_endpoint(
        &self,
        network: &NetworkId,
        endpoint: &EndpointId,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.wait(timeout, |view| view.endpoint(network, endpoint).is_some()).await
    }

    /// Waits until this host's own watch has told of a network, or of its removal.
    ///
    /// # Errors
    /// When it does not within `timeout`.
    pub async fn wait_for_network(
        &self,
        network: &NetworkId,
        present: bool,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.wait(timeout, |view| view.network(network).is_some() == present).await
    }

    /// Waits until the view is what `done` wants.
    ///
    /// # Errors
    /// When it is not within `timeout`.
    pub async fn wait(&self, timeout: Duration, done: impl Fn(&View) -> bool) -> Result<(), Error> {
        let mut reached = self.reached.subscribe();
        let waited = tokio::time::timeout(timeout, async {
            loop {
                if done(&self.lock().view) {
                    return;
                }
                if reached.changed().await.is_err() {
                    return;
                }
            }
        })
        .await;
        waited.map_err(|_| {
            Error::unavailable(
                "the store took the change and this host's watch does not tell of it",
            )
            .next_step("`skybridge status` shows the state of the store connection")
        })
    }

    /// Looks at the view.
    pub fn view<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.lock().view)
    }

    /// Looks at the reconciler.
    pub fn reconciler<R>(&self, look: impl FnOnce(&Reconciler, &View) -> R) -> R {
        let inner = self.lock();
        look(&inner.reconciler, &inner.view)
    }

    /// Tells of each revision that the view reaches.
    #[must_use]
    pub fn reached(&self) -> watch::Receiver<Revision> {
        self.reached.subscribe()
    }

    /// Whether a listing of the store was complete since the start.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lock().complete
    }

    /// A network's inner MTU in bytes.
    #[must_use]
    pub fn network_mtu(&self, network: &NetworkId) -> u16 {
        let inner = self.lock();
        inner.reconciler.network_mtu(&inner.view, network).unwrap_or(0)
    }

    /// Whether a network here may reach a host in more than one way.
    #[must_use]
    pub fn has_ways(&self) -> bool {
        let inner = self.lock();
        inner.reconciler.has_ways(&inner.view)
    }

    /// The routes of a routed network, sorted: each with the host that has it and the VTEP that this is
    /// reached by, or none of what is here.
    #[must_use]
    pub fn routes(&self, network: &NetworkId) -> Vec<(IpNet, Option<(HostName, IpAddr)>)> {
        let inner = self.lock();
        let Some(key) = inner.reconciler.network_key(network) else { return Vec::new() };
        let tables = inner.writer.working().network(key);
        let routes = tables.into_iter().flat_map(|tables| tables.routes());
        let of = |(prefix, route): (fdb::Prefix, &fdb::Route)| {
            let net = IpNet::new(prefix.address(), prefix.len()).ok()?;
            let place = match route.place {
                Place::Local => None,
                Place::Vtep(vtep) => {
                    let host = inner.reconciler.host_of(vtep)?;
                    Some((host.clone(), inner.reconciler.vtep_address(host)?))
                }
            };
            Some((net, place))
        };
        let mut found: Vec<_> = routes.filter_map(of).collect();
        found.sort_unstable();
        found
    }

    /// Says to which hosts IP-in-IP gets through.
    pub fn set_ip_in_ip(&self, hosts: &[(HostName, bool)]) {
        self.change(|inner, now| {
            let Inner { reconciler, view, .. } = inner;
            let told = |(host, reaches): &(HostName, bool)| {
                reconciler.set_ip_in_ip(view, host, *reaches, now)
            };
            hosts.iter().flat_map(told).collect()
        });
    }

    /// What a network is received on: its UDP port and, where it is routed, how it is carried.
    #[must_use]
    pub fn received_by(&self, network: NetworkKey) -> Option<(u16, Option<fdb::Routed>)> {
        let snapshot = self.reader.load();
        let params = snapshot.network(network)?.params();
        Some((params.udp_port, params.routed.clone()))
    }

    /// Whether frames between two containers of this host go through the switch.
    #[must_use]
    pub fn switches_locally(&self, network: NetworkKey) -> bool {
        self.reader.load().network(network).is_some_and(|tables| tables.params().switch_local)
    }

    /// How long ago this host first saw the record of `revision`.
    #[must_use]
    pub fn age(&self, revision: Revision) -> Option<Duration> {
        let at = *self.lock().seen.get(&revision.0)?;
        Some(Duration::from_millis(self.now().since(at).0))
    }

    /// Counters and limits of the table writer.
    #[must_use]
    pub fn writer_stats(&self) -> fdb::Stats {
        self.lock().writer.stats()
    }

    /// The limits of the table writer, and how many former generations wait for their readers.
    #[must_use]
    pub fn writer_limits(&self) -> (fdb::Limits, usize) {
        let inner = self.lock();
        (inner.writer.limits(), inner.writer.retired())
    }

    /// The host that these tables are of.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }
}

impl Inner {
    /// Whether the event tells of an endpoint that this host is removing. Its deletion ends that.
    fn is_leaving(&mut self, event: &Event) -> bool {
        match event {
            Event::Put { key: Key::Endpoint(_, endpoint), revision, .. } => {
                match self.leaving.get(endpoint) {
                    None => false,
                    Some(Some(gone)) if revision > gone => {
                        self.leaving.remove(endpoint);
                        false
                    }
                    Some(_) => true,
                }
            }
            Event::Delete { key: Key::Endpoint(_, endpoint), .. } => {
                self.leaving.remove(endpoint);
                false
            }
            _ => false,
        }
    }

    /// What a listing tells of an endpoint is so, whatever became of it here.
    fn forget_leaving(&mut self, event: &Event) {
        if let Event::Put { key: Key::Endpoint(_, endpoint), .. } = event {
            self.leaving.remove(endpoint);
        }
    }

    /// Whether the event says that the store lacks an endpoint that it was not told of. Once it has
    /// the endpoint, its word counts.
    fn is_unsaid(&mut self, event: &Event) -> bool {
        match event {
            Event::Put { key: Key::Endpoint(_, endpoint), .. } => {
                self.unsaid.remove(endpoint);
                false
            }
            Event::Delete { key: Key::Endpoint(_, endpoint), .. } => self.unsaid.contains(endpoint),
            _ => false,
        }
    }

    /// Drops the times of revisions that no record has any more.
    fn forget_seen(&mut self) {
        if self.seen.len() > 2 * (self.view.endpoints().count() + 1024) {
            let live: HashSet<i64> = self.view.endpoints().map(|item| item.revision).collect();
            self.seen.retain(|revision, _| live.contains(revision));
        }
    }
}

//! Many hosts allocate, crash, lose the store and come back: no address, MAC or VNI is ever given
//! twice, and nothing is left once the garbage is collected.
//!
//! Each host is a task with a random generator of its own, seeded by the run's seed, and a connection
//! of its own through a door that the run opens and shuts. A crash is an operation whose future is
//! dropped at a random moment. What happened is judged by the store's own history, revision by
//! revision: at each of them the records must agree with each other, and what a host uses without
//! the store must be nobody else's. So whatever order the store carried things out in, it is that
//! order which is checked.
//!
//! `SKYBRIDGE_MODEL_SEEDS=FIRST..LAST` runs other seeds; a failure names its seed.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{Backend, Door, State, World};
use encap::{MacAddr, Vni};
use etcd_servers::Version;
use membership::endpoint::{self, EndpointSpec};
use membership::gc;
use membership::ipam::reserve::{self, Wish};
use membership::ipam::{self, plan};
use membership::key::{EndpointId, HostName, Key, NetworkId, NetworkName, Range};
use membership::network::{self, NetworkSpec};
use membership::record::{
    AddressRecord, BlockRecord, EndpointRecord, HostRecord, MacRecord, NetworkRecord, Stored,
    VniRecord,
};
use membership::session::Session;
use membership::store::{self, Store};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

const HOSTS: usize = 4;
const STEPS: usize = 26;
/// Seeds that run at once.
const AT_ONCE: usize = 4;
/// What hosts want to have reserved.
const RESERVED: usize = 3;
/// As short as the leases that the stores grant can be.
const GRACE: Duration = Duration::from_secs(2);
/// The grace for which hosts are marked: a mark ends after twice that, and must not while a slow
/// machine collects what is older than [`GRACE`].
const MARKED: Duration = Duration::from_secs(60);

/// What a host used without the store: from which revision on, and until which.
#[derive(Clone, Debug)]
struct Use {
    network: NetworkId,
    endpoint: EndpointId,
    ips: Vec<IpAddr>,
    mac: MacAddr,
    from: i64,
    to: Option<i64>,
}

type Uses = Arc<Mutex<Vec<Use>>>;

fn locked(uses: &Uses) -> std::sync::MutexGuard<'_, Vec<Use>> {
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One host: what it knows of itself.
struct Host {
    name: HostName,
    random: StdRng,
    door: Door,
    store: Store,
    /// Straight to the store, for the test's own questions.
    direct: Store,
    networks: Vec<NetworkRecord>,
    attached: Vec<(NetworkId, EndpointId)>,
    /// Endpoints that the store has not been told of, with their place in `uses`.
    queued: Vec<(EndpointRecord, usize)>,
    /// The book: what the store acknowledged as reserved, and what was not used since.
    ready: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    /// Addresses of attaches whose outcome is not known.
    unsure: BTreeMap<EndpointId, Vec<IpAddr>>,
    /// Networks about whose blocks a request may still be on its way.
    unanswered: BTreeSet<NetworkId>,
    uses: Uses,
    done: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    attached: usize,
    offline: usize,
    published: usize,
    detached: usize,
    crashed: usize,
    refused: usize,
    away: usize,
}

/// Whether an operation ended because the store was not there, or others were faster for long.
fn is_away(error: &store::Error) -> bool {
    error.is_transient()
}

impl Host {
    async fn run(mut self) -> Self {
        for _ in 0..STEPS {
            match self.random.random_range(0..100) {
                0..34 => self.attach().await,
                34..50 => self.detach().await,
                50..64 => self.reserve().await,
                64..78 => self.attach_offline().await,
                78..88 => self.publish().await,
                88..91 => self.create_network().await,
                _ => self.weather().await,
            }
        }
        self.door.set(State::Open);
        self
    }

    fn network(&mut self) -> NetworkRecord {
        let at = self.random.random_range(0..self.networks.len());
        self.networks[at].clone()
    }

    /// Runs an operation, or drops it at a random moment: then its effect is not known.
    async fn or_crash<T>(&mut self, operation: impl Future<Output = T>) -> Option<T> {
        if self.random.random_range(0..5) != 0 {
            return Some(operation.await);
        }
        let moment = Duration::from_micros(self.random.random_range(0..12_000));
        tokio::select! {
            done = operation => Some(done),
            () = sleep(moment) => {
                self.done.crashed += 1;
                None
            }
        }
    }

    async fn attach(&mut self) {
        let network = self.network();
        let id = EndpointId::random();
        let mut spec = EndpointSpec { id: Some(id.clone()), ..EndpointSpec::default() };
        // Somewhere in the few addresses that everybody wants, reserved or not.
        let few = IpAddr::from([192, 0, 2, self.random.random_range(1..40)]);
        match self.random.random_range(0..4) {
            0 => spec.ips = vec![few],
            1 => {
                let IpAddr::V4(ip) = few else { unreachable!() };
                spec.mac = Some(MacAddr::from_ipv4(ip));
            }
            2 => spec.reserved = self.take(&network.id),
            _ => {}
        }
        let reserved = spec.reserved.clone();
        let (store, name) = (self.store.clone(), self.name.clone());
        let made =
            self.or_crash(async { endpoint::create(&store, &network, &name, 1, &spec).await });
        match made.await {
            Some(Ok(_)) => {
                self.done.attached += 1;
                self.attached.push((network.id, id));
            }
            Some(Err(
                endpoint::Error::Store(error) | endpoint::Error::Address(ipam::Error::Store(error)),
            )) => {
                assert!(is_away(&error), "{error}");
                self.done.away += 1;
                self.unsure(network.id, id, reserved);
            }
            Some(Err(_)) => self.done.refused += 1,
            // It may be there: as an agent does after a crash, it is removed.
            None => self.unsure(network.id, id, reserved),
        }
    }

    /// An attach may have been carried out, or may yet be.
    fn unsure(&mut self, network: NetworkId, id: EndpointId, reserved: Vec<IpAddr>) {
        self.unanswered.insert(network.clone());
        self.unsure.insert(id.clone(), reserved);
        self.attached.push((network, id));
    }

    async fn detach(&mut self) {
        if !self.queued.is_empty() && self.random.random_bool(0.3) {
            let at = self.random.random_range(0..self.queued.len());
            let (record, place) = self.queued.swap_remove(at);
            let now = self.revision().await;
            locked(&self.uses)[place].to = Some(now);
            self.unsure(record.network, record.id, record.ips);
            return;
        }
        if self.attached.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.attached.len());
        let (network, id) = self.attached[at].clone();
        let rest = if self.random.random_bool(0.5) { Duration::ZERO } else { GRACE };
        let store = self.store.clone();
        let gone = self.or_crash(async { endpoint::remove(&store, &network, &id, rest).await });
        if let Some(Ok(_) | Err(endpoint::Error::NotFound { .. })) = gone.await {
            self.attached.swap_remove(at);
            self.unsure.remove(&id);
            self.done.detached += 1;
        }
    }

    /// Takes an address of each family out of the book.
    fn take(&mut self, network: &NetworkId) -> Vec<IpAddr> {
        let Some(ready) = self.ready.get_mut(network) else { return Vec::new() };
        let mut taken = Vec::new();
        for ipv6 in [false, true] {
            if let Some(ip) = ready.iter().copied().find(|ip| ip.is_ipv6() == ipv6) {
                ready.remove(&ip);
                taken.push(ip);
            }
        }
        taken
    }

    async fn reserve(&mut self) {
        let network = self.network();
        let used: BTreeSet<IpAddr> = self
            .queued
            .iter()
            .filter(|(record, _)| record.network == network.id)
            .flat_map(|(record, _)| record.ips.clone())
            .chain(self.unsure.values().flatten().copied())
            .collect();
        let ready = self.ready.get(&network.id).cloned().unwrap_or_default();
        let (store, name) = (self.store.clone(), self.name.clone());
        let give_back = self.random.random_range(0..6) == 0;
        if give_back {
            // What is given up must not be counted on, whatever becomes of the request.
            self.ready.remove(&network.id);
            self.unanswered.insert(network.id.clone());
            let _ = self
                .or_crash(async { reserve::unreserve(&store, &network.id, &name, &used).await })
                .await;
            return;
        }
        let wish = Wish {
            network: &network,
            host: &name,
            count: RESERVED,
            used: &used,
            ready: &ready,
            yielded: &BTreeSet::new(),
            fence: self.unanswered.contains(&network.id),
        };
        let reserved = self.or_crash(reserve::reserve(&store, wish)).await;
        if let Some(Ok(reserved)) = reserved {
            assert!(reserved.len() <= 2 * RESERVED, "{reserved:?}");
            assert!(reserved.is_disjoint(&used));
            self.unanswered.remove(&network.id);
            self.ready.insert(network.id, reserved);
        } else {
            self.unanswered.insert(network.id);
        }
    }

    async fn attach_offline(&mut self) {
        let network = self.network();
        let ips = self.take(&network.id);
        if ips.len() < 2 {
            self.ready.entry(network.id).or_default().extend(ips);
            return;
        }
        let id = EndpointId::random();
        let mac = endpoint::default_mac(&network.id, &id, &ips);
        let mut record = EndpointRecord {
            version: 1,
            id: id.clone(),
            network: network.id.clone(),
            host: self.name.clone(),
            incarnation: 1,
            mac,
            ips: ips.clone(),
            name: None,
            labels: BTreeMap::new(),
            created: 0,
            extra: serde_json::Map::new(),
        };
        record.ips.sort_unstable();
        let from = self.revision().await;
        let mut uses = locked(&self.uses);
        uses.push(Use { network: network.id, endpoint: id, ips, mac, from, to: None });
        self.queued.push((record, uses.len() - 1));
        self.done.offline += 1;
    }

    async fn publish(&mut self) {
        let Some((record, place)) = self.queued.last().cloned() else { return };
        let network = self.networks.iter().find(|it| it.id == record.network).unwrap().clone();
        let spec = EndpointSpec {
            id: Some(record.id.clone()),
            ips: record.ips.clone(),
            mac: Some(record.mac),
            reserved: record.ips.clone(),
            again: true,
            ..EndpointSpec::default()
        };
        let (store, name) = (self.store.clone(), self.name.clone());
        let made =
            self.or_crash(async { endpoint::create(&store, &network, &name, 1, &spec).await });
        match made.await {
            Some(Ok(_)) => {
                self.queued.pop();
                // From here on the record says whose it is.
                let now = self.revision().await;
                locked(&self.uses)[place].to = Some(now);
                self.attached.push((record.network, record.id));
                self.done.published += 1;
            }
            Some(Err(
                endpoint::Error::Store(error) | endpoint::Error::Address(ipam::Error::Store(error)),
            )) => {
                assert!(is_away(&error), "{error}");
                self.unanswered.insert(record.network);
            }
            Some(Err(refused)) => panic!("a reserved address was somebody else's: {refused}"),
            None => {
                self.unanswered.insert(record.network);
            }
        }
    }

    async fn create_network(&mut self) {
        let name = format!("n{}", self.random.random_range(0..6));
        let spec = NetworkSpec::new(NetworkName::new(&name).unwrap(), Vec::new());
        let store = self.store.clone();
        if self.random.random_bool(0.5) {
            let _ = self.or_crash(async { network::create(&store, &spec).await.is_ok() }).await;
        } else {
            let _ = self.or_crash(async { network::remove(&store, &name, false).await }).await;
        }
    }

    /// The store goes away for a moment, in one of several ways.
    async fn weather(&mut self) {
        let state = match self.random.random_range(0..6) {
            0 => State::Deaf,
            1 => State::Shut,
            2 => State::Stalled,
            _ => State::Late,
        };
        self.door.set(state);
        self.attach_offline().await;
        match self.random.random_range(0..4) {
            0 => self.attach().await,
            1 => self.reserve().await,
            2 => self.detach().await,
            _ => self.publish().await,
        }
        self.door.set(State::Open);
    }

    async fn revision(&self) -> i64 {
        self.direct.status().await.unwrap().revision
    }
}

/// The records at one revision.
#[derive(Default)]
struct Picture {
    endpoints: BTreeMap<(NetworkId, EndpointId), EndpointRecord>,
    addresses: BTreeMap<(NetworkId, IpAddr), AddressRecord>,
    macs: BTreeMap<(NetworkId, MacAddr), MacRecord>,
    blocks: BTreeMap<(NetworkId, ipnet::IpNet), BlockRecord>,
    vnis: BTreeMap<Vni, VniRecord>,
    networks: BTreeMap<NetworkId, NetworkRecord>,
}

impl Picture {
    fn put(&mut self, key: Key, value: Option<&[u8]>) {
        fn change<K: Ord, T: Stored>(
            map: &mut BTreeMap<K, T>,
            at: K,
            key: &Key,
            value: Option<&[u8]>,
        ) {
            match value {
                Some(bytes) => map.insert(at, T::decode(key, bytes).unwrap()),
                None => map.remove(&at),
            };
        }
        match key.clone() {
            Key::Address(n, ip) => change(&mut self.addresses, (n, ip), &key, value),
            Key::Block(n, cidr) => change(&mut self.blocks, (n, cidr), &key, value),
            Key::Endpoint(n, id) => change(&mut self.endpoints, (n, id), &key, value),
            Key::Mac(n, mac) => change(&mut self.macs, (n, mac), &key, value),
            Key::Network(n) => change(&mut self.networks, n, &key, value),
            Key::Vni(vni) => change(&mut self.vnis, vni, &key, value),
            _ => {}
        }
    }

    /// Everything that must hold at every revision.
    fn check(&self, revision: i64, uses: &[Use]) {
        let mut ips = BTreeMap::new();
        let mut macs = BTreeMap::new();
        for ((network, id), record) in &self.endpoints {
            for ip in &record.ips {
                let before = ips.insert((network.clone(), *ip), id.clone());
                assert!(before.is_none(), "at {revision} {ip} is {id}'s and {before:?}'s");
                let holder = self.addresses.get(&(network.clone(), *ip));
                assert_eq!(holder.map(|it| &it.endpoint), Some(id), "at {revision}, {ip}");
            }
            let before = macs.insert((network.clone(), record.mac), id.clone());
            assert!(before.is_none(), "at {revision} {} is {id}'s and {before:?}'s", record.mac);
            let holder = self.macs.get(&(network.clone(), record.mac));
            assert_eq!(holder.map(|it| &it.endpoint), Some(id), "at {revision}, {}", record.mac);
        }
        assert_eq!(ips.len(), self.addresses.len(), "at {revision} an address has no endpoint");
        assert_eq!(macs.len(), self.macs.len(), "at {revision} a MAC has no endpoint");
        for ((network, cidr), block) in &self.blocks {
            for offset in 0..64 {
                let at = (network.clone(), plan::address(*cidr, offset));
                let held = cidr.contains(&at.1) && self.addresses.contains_key(&at);
                let (given, reserved) =
                    (block.allocated.contains(offset), block.reserved.contains(offset));
                assert!(!reserved || given && !held, "at {revision} {} is reserved and held", at.1);
                assert_eq!(given, held || reserved, "at {revision} the map of {cidr} is wrong");
            }
        }
        let mut vnis = BTreeMap::new();
        for (id, network) in &self.networks {
            let before = vnis.insert(network.vni, id);
            assert!(before.is_none(), "at {revision} VNI {} is given twice", network.vni);
            let holder = self.vnis.get(&network.vni).map(|record| &record.network);
            assert_eq!(holder, Some(id), "at {revision}");
        }
        assert_eq!(vnis.len(), self.vnis.len(), "at {revision} a VNI has no network");
        // What is used without the store is nobody else's meanwhile.
        let now =
            uses.iter().filter(|it| it.from < revision && it.to.is_none_or(|to| revision <= to));
        let (mut used_ips, mut used_macs) = (BTreeSet::new(), BTreeSet::new());
        for it in now {
            for ip in &it.ips {
                assert!(used_ips.insert((it.network.clone(), *ip)), "{ip} is used twice");
                let holder = ips.get(&(it.network.clone(), *ip));
                let ours = holder.is_none_or(|id| *id == it.endpoint);
                assert!(ours, "at {revision} {ip} is {holder:?}'s and {it:?} uses it");
            }
            assert!(used_macs.insert((it.network.clone(), it.mac)), "{} is used twice", it.mac);
            let holder = macs.get(&(it.network.clone(), it.mac));
            assert!(
                holder.is_none_or(|id| *id == it.endpoint),
                "at {revision} {} is {holder:?}'s",
                it.mac
            );
        }
    }
}

/// A key with its new value; `None` for one that is gone.
type Change = (Key, Option<Vec<u8>>);

/// Plays the store's history and checks it at each revision. Returns how many there were.
async fn judge(world: &World, from: i64, to: i64, uses: &[Use]) -> usize {
    let store = world.store();
    let mut raw = world.raw().await;
    let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(from);
    let mut stream = raw.watch(store.keys().range(Range::All), Some(options)).await.unwrap();
    let mut history: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
    // The last write of the run is a mark of the test's own.
    while history.keys().next_back().is_none_or(|last| *last < to) {
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.compact_revision(), 0, "the history is gone");
        for event in message.events() {
            let kv = event.kv().unwrap();
            let key = store.keys().parse(kv.key()).unwrap();
            let put = event.event_type() == etcd_client::EventType::Put;
            let value = put.then(|| kv.value().to_vec());
            history.entry(kv.mod_revision()).or_default().push((key, value));
        }
    }
    let mut picture = Picture::default();
    for (revision, changes) in &history {
        for (key, value) in changes {
            picture.put(key.clone(), value.as_deref());
        }
        picture.check(*revision, uses);
    }
    history.len()
}

fn host_record(name: &HostName, number: usize) -> HostRecord {
    let id = membership::key::HostId::new(format!("id-{name}")).unwrap();
    let mac = MacAddr([0, 0, 0x5e, 0, 0x53, u8::try_from(number).unwrap()]);
    HostRecord::new(name.clone(), id, 1, mac)
}

async fn run(backend: Backend, seed: u64) {
    let world = World::alone(backend).await;
    let direct = world.store();
    let from = direct.status().await.unwrap().revision;
    let mut networks = Vec::new();
    for name in ["web", "db"] {
        let subnets = ["192.0.2.0/24", "2001:db8::/120"].map(|net| net.parse().unwrap());
        let name = NetworkName::new(name).unwrap();
        let mut spec = NetworkSpec::new(name, subnets.to_vec());
        spec.exclude = vec!["192.0.2.3-192.0.2.6".parse().unwrap()];
        networks.push(network::create(&direct, &spec).await.unwrap());
    }
    let uses: Uses = Arc::default();
    let mut tasks = Vec::new();
    let mut sessions = Vec::new();
    for number in 0..HOSTS {
        let name = HostName::new(format!("h{number}")).unwrap();
        let session = Session::start_with(direct.clone(), host_record(&name, number), GRACE);
        sessions.push(session.await.unwrap());
        let door = Door::open(&world).await;
        let mut config = world.config();
        config.endpoints = vec![door.url(); 2];
        config.request_timeout = Duration::from_millis(400);
        let host = Host {
            name,
            random: StdRng::seed_from_u64(seed << 8 | number as u64),
            door,
            store: Store::lazy(config).unwrap(),
            direct: direct.clone(),
            networks: networks.clone(),
            attached: Vec::new(),
            queued: Vec::new(),
            ready: BTreeMap::new(),
            unsure: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            uses: Arc::clone(&uses),
            done: Counts::default(),
        };
        tasks.push(tokio::spawn(host.run()));
    }
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await.unwrap().done);
    }
    // A mark, so that the history is known to be complete. Requests whose answers were lost may
    // still be carried out: the store has had them by now, since the doors are gone.
    let mark = NetworkSpec::new(NetworkName::new("mark").unwrap(), Vec::new());
    network::create(&direct, &mark).await.unwrap();
    let to = direct.status().await.unwrap().revision;
    let played = locked(&uses).clone();
    let revisions = judge(&world, from, to, &played).await;

    // Two hosts go for good, the others are said to be removed; what they had is collected.
    for session in sessions {
        session.close().await;
    }
    // A store that is busy may not have ended a lease when its session is closed.
    common::until("the hosts are gone", async || {
        direct.list(Range::Hosts).await.unwrap().1.is_empty()
    })
    .await;
    let by = HostName::new("h0").unwrap();
    let before = Instant::now();
    let marked = gc::mark_absent(&direct, &by, MARKED).await.unwrap();
    assert_eq!(marked.len(), HOSTS);
    let options = gc::Options { grace: GRACE, host: None };
    let early = gc::find(&direct, &options).await.unwrap();
    // On a busy machine it is not early any more.
    if before.elapsed() < GRACE {
        assert!(early.iter().all(|found| !found.is_absence()), "seed {seed}: too early {early:?}");
    }
    common::until("the grace is over", async || {
        let found = gc::find(&direct, &options).await.unwrap();
        gc::collect(&direct, &options, Duration::ZERO, |_| true).await.unwrap();
        found.is_empty() && empty(&direct, &networks).await
    })
    .await;
    for network in network::list(&direct).await.unwrap() {
        network::remove(&direct, network.record.id.as_str(), false).await.unwrap();
    }
    for number in 0..HOSTS {
        let host = Some(HostName::new(format!("h{number}")).unwrap());
        let options = gc::Options { grace: GRACE, host };
        gc::collect(&direct, &options, Duration::ZERO, |_| true).await.unwrap();
    }
    let (_, left) = direct.list(Range::All).await.unwrap();
    let left: Vec<String> =
        left.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect();
    assert!(left.is_empty(), "seed {seed}: left in the store: {left:?}");
    let sum = |of: fn(&Counts) -> usize| counts.iter().map(of).sum::<usize>();
    println!(
        "seed {seed} on {backend:?}: {revisions} revisions, {} attached, {} offline, {} published, \
         {} detached, {} refused, {} crashes, {} without answer",
        sum(|c| c.attached),
        sum(|c| c.offline),
        sum(|c| c.published),
        sum(|c| c.detached),
        sum(|c| c.refused),
        sum(|c| c.crashed),
        sum(|c| c.away),
    );
    assert!(sum(|c| c.attached) > 0 && revisions > 20, "seed {seed}: nothing happened");
}

/// Whether nothing of any address is left in these networks.
async fn empty(store: &Store, networks: &[NetworkRecord]) -> bool {
    for network in networks {
        let (_, ipam) = store.list(Range::Ipam(&network.id)).await.unwrap();
        let (_, endpoints) = store.list(Range::Endpoints(&network.id)).await.unwrap();
        if !ipam.is_empty() || !endpoints.is_empty() {
            return false;
        }
    }
    true
}

/// Runs seeds, several at a time: most of a run is waiting.
fn seeds(backend: Backend, default: std::ops::Range<u64>) {
    let wanted = std::env::var("SKYBRIDGE_MODEL_SEEDS").ok().and_then(|text| {
        let (first, last) = text.split_once("..")?;
        Some(first.parse().ok()?..last.parse().ok()?)
    });
    let seeds: Vec<u64> = wanted.unwrap_or(default).collect();
    for some in seeds.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for seed in some {
                scope.spawn(move || {
                    println!("seed {seed} on {backend:?} begins");
                    let mut runtime = tokio::runtime::Builder::new_multi_thread();
                    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
                    runtime.block_on(run(backend, *seed));
                });
            }
        });
    }
}

#[test]
fn nothing_is_given_twice_on_the_embedded_store() {
    seeds(Backend::Embedded, 0..24);
}

#[test]
fn nothing_is_given_twice_on_etcd() {
    seeds(Backend::Etcd(Version::NEWEST), 100..104);
}

//! The tables' fan-out beside its rivals, at 1e2 to 1e6 entries.
//!
//! | name | structure | publication |
//! |---|---|---|
//! | `fanout` | `fdb::fanout::Fanout` | arc-swap; the former one is kept and freed by the writer |
//! | `rpds` | hash array mapped trie, 32 wide | the same |
//! | `left-right` | two `HashMap`s, every change applied to both | left-right's own |
//! | `fdb` | `fanout` within the whole of `Writer` and `Snapshot` | `publish` and `reclaim` |
//!
//! All use the same keyed hash, the same keys (MACs as numbers) and the same value. Look-ups go to
//! all keys in random order within one loaded snapshot, as a worker loads one per turn; `load` is
//! the cost of that. `change` moves one MAC and publishes, `batch` moves 256 and publishes once.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group};
use encap::{MacAddr, Vni};
use fdb::fanout::Fanout;
use fdb::hash::Seed;
use fdb::{
    Delta, MacEntry, Network, NetworkKey, Origin, Place, Reader, Revision, SourceCheck, VtepKey,
    Writer,
};
use left_right::{Absorb, ReadHandle, WriteHandle};

const SIZES: [usize; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];
const BATCH: usize = 256;
const NETWORK: NetworkKey = NetworkKey(0);

/// The tables' own hash, for maps that want a `BuildHasher`.
#[derive(Clone)]
struct Keyed(Seed);

struct KeyedHasher(Seed, u64);

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;
    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher(self.0, 0)
    }
}

impl Hasher for KeyedHasher {
    fn finish(&self) -> u64 {
        self.1
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers")
    }
    fn write_u64(&mut self, key: u64) {
        self.1 = self.0.hash(&key);
    }
}

/// `len` different keys: the numbers from `first` on, mapped one to one to 48 bits.
fn keys(first: u64, len: usize) -> Vec<u64> {
    let numbers = first..first + len as u64;
    numbers.map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_ffff_ffff).collect()
}

/// The same keys in another order, so that no structure is probed in its order of allocation.
fn shuffled(keys: &[u64]) -> Vec<u64> {
    let mut keys = keys.to_vec();
    keys.sort_unstable_by_key(|key| key.wrapping_mul(0xd6e8_feb8_6659_fd93));
    keys
}

fn entry(number: u64) -> MacEntry {
    let place = Place::Vtep(VtepKey(number as u32 % 1000));
    MacEntry { place, origin: Origin::Store { revision: Revision(number as i64) } }
}

fn mac(key: u64) -> MacAddr {
    let [_, _, a, b, c, d, e, f] = key.to_be_bytes();
    MacAddr([a, b, c, d, e, f])
}

/// One structure with its publication.
trait Subject {
    const NAME: &'static str;
    fn new() -> Self;
    fn put(&mut self, key: u64, entry: MacEntry);
    fn publish(&mut self);
    /// Runs `body` with a look-up function on one loaded snapshot.
    fn with<R>(&self, body: impl FnOnce(&dyn Fn(u64) -> Option<MacEntry>) -> R) -> R;
    /// Loads the current snapshot and lets go of it.
    fn load(&self);
}

/// A structure with cheap clones behind arc-swap, with a list of retired ones.
struct Swapped<M> {
    working: M,
    shared: Arc<ArcSwap<M>>,
    retired: VecDeque<Arc<M>>,
}

impl<M: Clone> Swapped<M> {
    fn new(map: M) -> Self {
        let shared = Arc::new(ArcSwap::from_pointee(map.clone()));
        Self { working: map, shared, retired: VecDeque::new() }
    }

    fn publish(&mut self) {
        self.retired.push_back(self.shared.swap(Arc::new(self.working.clone())));
        self.retired.retain(|map| Arc::strong_count(map) > 1);
    }
}

impl Subject for Swapped<Fanout<u64, MacEntry>> {
    const NAME: &'static str = "fanout";
    fn new() -> Self {
        Self::new(Fanout::new(Seed::random()))
    }
    fn put(&mut self, key: u64, entry: MacEntry) {
        let _ = self.working.insert(key, entry);
    }
    fn publish(&mut self) {
        self.publish();
    }
    fn with<R>(&self, body: impl FnOnce(&dyn Fn(u64) -> Option<MacEntry>) -> R) -> R {
        let map = self.shared.load();
        body(&|key| map.get(&key).copied())
    }
    fn load(&self) {
        black_box(self.shared.load());
    }
}

type Trie = rpds::HashTrieMapSync<u64, MacEntry, Keyed>;

impl Subject for Swapped<Trie> {
    const NAME: &'static str = "rpds";
    fn new() -> Self {
        Self::new(Trie::new_with_hasher_and_ptr_kind(Keyed(Seed::random())))
    }
    fn put(&mut self, key: u64, entry: MacEntry) {
        self.working.insert_mut(key, entry);
    }
    fn publish(&mut self) {
        self.publish();
    }
    fn with<R>(&self, body: impl FnOnce(&dyn Fn(u64) -> Option<MacEntry>) -> R) -> R {
        let map = self.shared.load();
        body(&|key| map.get(&key).copied())
    }
    fn load(&self) {
        black_box(self.shared.load());
    }
}

#[derive(Clone)]
struct Map(HashMap<u64, MacEntry, Keyed>);

struct Put(u64, MacEntry);

impl Absorb<Put> for Map {
    fn absorb_first(&mut self, put: &mut Put, _: &Self) {
        self.0.insert(put.0, put.1);
    }
    fn sync_with(&mut self, first: &Self) {
        self.0.clone_from(&first.0);
    }
}

struct LeftRight(WriteHandle<Map, Put>, ReadHandle<Map>);

impl Subject for LeftRight {
    const NAME: &'static str = "left-right";
    fn new() -> Self {
        let (writer, reader) =
            left_right::new_from_empty(Map(HashMap::with_hasher(Keyed(Seed::random()))));
        Self(writer, reader)
    }
    fn put(&mut self, key: u64, entry: MacEntry) {
        self.0.append(Put(key, entry));
    }
    fn publish(&mut self) {
        self.0.publish();
    }
    fn with<R>(&self, body: impl FnOnce(&dyn Fn(u64) -> Option<MacEntry>) -> R) -> R {
        let map = self.1.enter().expect("the writer lives");
        body(&|key| map.0.get(&key).copied())
    }
    fn load(&self) {
        black_box(self.1.enter());
    }
}

struct Fdb(Writer, Reader);

impl Subject for Fdb {
    const NAME: &'static str = "fdb";
    fn new() -> Self {
        let (mut writer, reader) = fdb::channel();
        let network = Network {
            vni: Vni::MAX,
            udp_port: 4789,
            mtu: 1450,
            name: "bench".into(),
            id: "bench".into(),
            learning: false,
            flood_unknown: false,
            flood_broadcast: true,
            flood_multicast: true,
            flood_rate: 10_000,
            flood_arp: false,
            source_check: SourceCheck::Strict,
            df: true,
            switch_local: false,
            gateway: None,
            routed: None,
        };
        writer.apply(Delta::PutNetwork { key: NETWORK, network });
        writer.publish();
        Self(writer, reader)
    }
    fn put(&mut self, key: u64, entry: MacEntry) {
        self.0.apply(Delta::PutMac { network: NETWORK, mac: mac(key), entry });
    }
    fn publish(&mut self) {
        self.0.publish();
        self.0.reclaim();
    }
    fn with<R>(&self, body: impl FnOnce(&dyn Fn(u64) -> Option<MacEntry>) -> R) -> R {
        let snapshot = self.1.load();
        body(&|key| snapshot.network(NETWORK)?.mac(mac(key)).copied())
    }
    fn load(&self) {
        black_box(self.1.load());
    }
}

fn filled<S: Subject>(keys: &[u64]) -> S {
    let mut subject = S::new();
    for (key, number) in keys.iter().zip(0..) {
        subject.put(*key, entry(number));
    }
    subject.publish();
    // Left-right applies the first batch to its second map at the second publication.
    subject.publish();
    subject
}

fn run<S: Subject>(group: &mut BenchmarkGroup<'_, WallTime>, size: usize) {
    let present = keys(0, size);
    let absent = shuffled(&keys(1 << 40, size));
    let mut subject = filled::<S>(&present);
    let present = shuffled(&present);
    for (name, probes) in [("hit", &present), ("miss", &absent)] {
        group.bench_function(BenchmarkId::new(format!("{name}/{}", S::NAME), size), |b| {
            subject.with(|get| {
                let mut probes = probes.iter().cycle();
                b.iter(|| probes.next().map(|key| get(*key)))
            })
        });
    }
    group.bench_function(BenchmarkId::new(format!("load/{}", S::NAME), size), |b| {
        b.iter(|| subject.load())
    });
    // Every change has a higher revision, so that none is refused as stale or unchanged.
    let mut moves = present.iter().cycle().zip(size as u64..);
    for (name, changes) in [("change", 1), ("batch", BATCH)] {
        group.bench_function(BenchmarkId::new(format!("{name}/{}", S::NAME), size), |b| {
            b.iter(|| {
                for (key, number) in moves.by_ref().take(changes) {
                    subject.put(*key, entry(number));
                }
                subject.publish();
            })
        });
    }
}

fn compare(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    for size in SIZES {
        run::<Swapped<Fanout<u64, MacEntry>>>(&mut group, size);
        run::<Swapped<Trie>>(&mut group, size);
        run::<LeftRight>(&mut group, size);
        run::<Fdb>(&mut group, size);
    }
    group.finish();
}

/// Resident memory of this process in bytes.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

#[expect(clippy::print_stdout, reason = "a bench reports on stdout, as criterion does")]
fn memory() {
    fn one<S: Subject>(keys: &[u64]) -> Option<S> {
        let before = resident()?;
        let subject = filled::<S>(keys);
        let bytes = resident()?.saturating_sub(before);
        println!("fdb/memory/{}: {} bytes per entry", S::NAME, bytes / keys.len() as u64);
        Some(subject)
    }
    let keys = keys(0, 1_000_000);
    // All are kept to the end, so that none takes memory that another gave back.
    let kept = (
        one::<Swapped<Fanout<u64, MacEntry>>>(&keys),
        one::<Swapped<Trie>>(&keys),
        one::<LeftRight>(&keys),
        one::<Fdb>(&keys),
    );
    drop(kept);
}

/// The longest single change while a structure grows from nothing to a million entries: what a
/// worker's table would lag behind at worst.
#[expect(clippy::print_stdout, reason = "a bench reports on stdout, as criterion does")]
fn longest_change() {
    fn one<S: Subject>(keys: &[u64]) {
        let run = || {
            let mut subject = S::new();
            let timed = keys.iter().zip(0..).map(|(key, number)| {
                let start = Instant::now();
                subject.put(*key, entry(number));
                subject.publish();
                start.elapsed()
            });
            timed.max().unwrap_or_default()
        };
        // The least of several runs, as other processes interrupt some of them.
        let longest = (0..4).map(|_| run()).min().unwrap_or_default();
        println!("fdb/longest change/{}: {longest:?}", S::NAME);
    }
    let keys = keys(0, 1_000_000);
    one::<Swapped<Fanout<u64, MacEntry>>>(&keys);
    one::<Swapped<Trie>>(&keys);
    one::<LeftRight>(&keys);
    one::<Fdb>(&keys);
}

criterion_group!(benches, compare);

fn main() {
    memory();
    longest_change();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

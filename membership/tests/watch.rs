//! List and watch over interruptions: against etcd and the embedded store.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::time::Duration;

use common::{Backend, DEADLINE, Door, State, World};
use etcd_client::{Client, TxnOp};
use membership::endpoint::{self, EndpointSpec};
use membership::ipam::REST;
use membership::key::{EndpointId, HostName, Key, NetworkName, Range};
use membership::network::{self, NetworkSpec};
use membership::record::{EndpointRecord, NetworkRecord};
use membership::store::Store;
use membership::view::View;
use membership::watch::{Known, Watch, WatchConfig, WatchStatus};
use tokio::time::{Instant, timeout_at};

on_both!(
    a_restored_store_is_noticed_when_it_is_ahead_again,
    a_restored_store_is_noticed_by_what_it_no_longer_lacks,
    a_restored_store_is_noticed_while_it_is_behind,
    a_silent_store_is_noticed,
    a_snapshot_of_another_history_is_corrected,
    a_snapshot_tells_what_vanished,
    bad_records_are_set_aside_and_the_rest_goes_on,
    compaction_while_away_is_healed_by_a_listing,
    many_pages_are_one_listing,
    the_watch_survives_the_end_of_the_store,
    what_was_deleted_before_a_listing_is_no_other_history,
);

fn spec(text: &str) -> NetworkSpec {
    NetworkSpec::new(NetworkName::new(text).unwrap(), vec!["198.51.0.0/16".parse().unwrap()])
}

async fn create(store: &Store, name: &str) -> NetworkRecord {
    network::create(store, &spec(name)).await.unwrap()
}

async fn attach(store: &Store, network: &NetworkRecord) -> EndpointRecord {
    let host = HostName::new("h1").unwrap();
    endpoint::create(store, network, &host, 1, &EndpointSpec::default()).await.unwrap()
}

fn quick() -> WatchConfig {
    let pause_max = Duration::from_millis(200);
    WatchConfig { pause_max, grace: Duration::from_secs(2), ..WatchConfig::default() }
}

/// A watch with the view that it fills.
struct Follower {
    watch: Watch,
    view: View,
    resyncs: u32,
    rollbacks: u32,
}

impl Follower {
    fn new(store: Store, view: View, known: Known) -> Self {
        Self { watch: Watch::start(store, quick(), known), view, resyncs: 0, rollbacks: 0 }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&View) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut complete = false;
        while !(complete && holds(&self.view)) {
            let batch = timeout_at(deadline, self.watch.next()).await;
            let batch = batch.unwrap_or_else(|_| panic!("not in time: {what}")).unwrap();
            complete = batch.complete;
            self.resyncs += u32::from(batch.resync && batch.complete);
            self.rollbacks += u32::from(batch.rolled_back);
            for event in batch.events {
                self.view.apply(event);
            }
            self.view.reached(batch.revision);
        }
    }

    /// The view holds what a fresh listing says.
    async fn equals(&self, store: &Store) {
        let mut fresh = Self::new(store.clone(), View::new(), Known::new());
        fresh.until("a listing", |_| true).await;
        let networks = |view: &View| view.networks().cloned().collect::<Vec<_>>();
        let endpoints = |view: &View| view.endpoints().cloned().collect::<Vec<_>>();
        let hosts = |view: &View| {
            view.hosts().map(|(name, host)| (name.clone(), host.clone())).collect::<Vec<_>>()
        };
        assert_eq!(networks(&self.view), networks(&fresh.view));
        assert_eq!(endpoints(&self.view), endpoints(&fresh.view));
        assert_eq!(hosts(&self.view), hosts(&fresh.view));
    }
}

async fn the_watch_survives_the_end_of_the_store(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let kept = attach(&store, &network).await;
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the first listing", |view| view.endpoints().count() == 1).await;
    for round in 0..2 {
        world.stop().await;
        let mut status = follower.watch.status();
        status.wait_for(|status| !status.is_connected()).await.unwrap();
        world.restart().await;
        let extra = attach(&store, &network).await;
        follower
            .until("an endpoint made after the restart", |view| {
                view.endpoint(&network.id, &extra.id).is_some()
            })
            .await;
        endpoint::remove(&store, &network.id, &extra.id, REST).await.unwrap();
        follower.until("its removal", |view| view.endpoint(&network.id, &extra.id).is_none()).await;
        assert!(follower.view.endpoint(&network.id, &kept.id).is_some(), "round {round}");
    }
    assert_eq!(follower.resyncs, 1, "resumed, not listed again");
    assert!(follower.watch.status().borrow().is_connected());
    follower.equals(&store).await;
}

/// The store is put back to a backup, and by the time that the watch sees it again it has counted
/// beyond what the watch has seen: no revision tells. One endpoint came after the backup, one went,
/// one key has another content at the same revision.
async fn a_restored_store_is_noticed_when_it_is_ahead_again(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let (kept, gone) = (attach(&store, &network).await, attach(&store, &network).await);
    let backup = world.backup().await;
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    let mut away = Follower::new(Store::lazy(config).unwrap(), View::new(), Known::new());
    away.until("the listing", |view| view.endpoints().count() == 2).await;
    let late = attach(&store, &network).await;
    endpoint::remove(&store, &network.id, &gone.id, Duration::ZERO).await.unwrap();
    away.until("what changed after the backup", |view| {
        view.endpoint(&network.id, &late.id).is_some()
            && view.endpoint(&network.id, &gone.id).is_none()
    })
    .await;
    let seen = away.view.revision().0;
    door.set(State::Shut);
    world.stop().await;
    world.restore(&backup);
    world.restart().await;
    let other = attach(&store, &network).await;
    while store.status().await.unwrap().revision <= seen + 3 {
        let more = attach(&store, &network).await;
        endpoint::remove(&store, &network.id, &more.id, Duration::ZERO).await.unwrap();
    }
    door.set(State::Open);
    away.until("what the backup has", |view| {
        view.endpoint(&network.id, &gone.id).is_some()
            && view.endpoint(&network.id, &other.id).is_some()
    })
    .await;
    assert_eq!((away.rollbacks, away.resyncs), (1, 2));
    // What its owner may write again stays for a while.
    assert!(away.view.endpoint(&network.id, &late.id).is_some());
    assert!(away.view.endpoint(&network.id, &kept.id).is_some());
    away.until("what nobody wrote again", |view| view.endpoint(&network.id, &late.id).is_none())
        .await;
    away.equals(&store).await;
}

/// Deletions are the last that happened before a listing, and nothing of ours after it: the watch
/// resumes and takes nothing for a sign of another history.
async fn what_was_deleted_before_a_listing_is_no_other_history(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let gone = attach(&store, &network).await;
    endpoint::remove(&store, &network.id, &gone.id, Duration::ZERO).await.unwrap();
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    let mut follower = Follower::new(Store::lazy(config).unwrap(), View::new(), Known::new());
    follower.until("the listing", |view| view.networks().count() == 1).await;
    let mut status = follower.watch.status();
    status.wait_for(WatchStatus::is_connected).await.unwrap();
    for round in 0..2 {
        door.set(State::Shut);
        status.wait_for(|status| !status.is_connected()).await.unwrap();
        world.raw().await.put("/elsewhere", "", None).await.unwrap();
        door.set(State::Open);
        status.wait_for(WatchStatus::is_connected).await.unwrap();
        let made = attach(&store, &network).await;
        follower
            .until("what came later", |view| view.endpoint(&network.id, &made.id).is_some())
            .await;
        assert_eq!((follower.resyncs, follower.rollbacks), (1, 0), "round {round}");
    }
}

/// The only change after the backup was a deletion, and the agent listed the store after it.
async fn a_restored_store_is_noticed_by_what_it_no_longer_lacks(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let gone = attach(&store, &network).await;
    let backup = world.backup().await;
    endpoint::remove(&store, &network.id, &gone.id, Duration::ZERO).await.unwrap();
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    let mut away = Follower::new(Store::lazy(config).unwrap(), View::new(), Known::new());
    away.until("the listing", |view| view.networks().count() == 1).await;
    assert_eq!(away.view.endpoints().count(), 0);
    door.set(State::Shut);
    world.stop().await;
    world.restore(&backup);
    world.restart().await;
    for _ in 0..5 {
        world.raw().await.put("/elsewhere", "", None).await.unwrap();
    }
    door.set(State::Open);
    away.until("what is back", |view| view.endpoint(&network.id, &gone.id).is_some()).await;
    assert_eq!(away.rollbacks, 1);
    away.equals(&store).await;
}

/// The store is put back to a backup under an open watch; what its owner writes again never leaves.
async fn a_restored_store_is_noticed_while_it_is_behind(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let backup = world.backup().await;
    let late = attach(&store, &network).await;
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the listing", |view| view.endpoints().count() == 1).await;
    world.stop().await;
    world.restore(&backup);
    world.restart().await;
    follower.until("the restored store", |view| view.endpoints().count() == 1).await;
    assert_eq!(follower.rollbacks, 1);
    let host = HostName::new("h1").unwrap();
    let again = EndpointSpec {
        id: Some(late.id.clone()),
        ips: late.ips.clone(),
        mac: Some(late.mac),
        ..EndpointSpec::default()
    };
    let again = endpoint::create(&store, &network, &host, 2, &again).await.unwrap();
    follower
        .until("it is written again", |view| {
            view.endpoint(&network.id, &late.id).is_some_and(|item| *item.record == again)
        })
        .await;
    let other = attach(&store, &network).await;
    // Past the grace, with something to wake for.
    tokio::time::sleep(quick().grace).await;
    endpoint::remove(&store, &network.id, &other.id, REST).await.unwrap();
    follower.until("the rest", |view| view.endpoints().count() == 1).await;
    assert!(follower.view.endpoint(&network.id, &late.id).is_some());
    follower.equals(&store).await;
}

/// Writes an endpoint's record with another name, in one revision.
async fn rename(world: &World, record: &EndpointRecord, name: &str) {
    let record = EndpointRecord { name: Some(name.to_owned()), ..record.clone() };
    let key = Key::Endpoint(record.network.clone(), record.id.clone());
    let key = world.store().keys().encode(&key);
    world.raw().await.put(key, serde_json::to_vec(&record).unwrap(), None).await.unwrap();
}

/// A snapshot of a host that was away over a restoration: the same key has another content at the
/// same revision.
async fn a_snapshot_of_another_history_is_corrected(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let kept = attach(&store, &network).await;
    let backup = world.backup().await;
    rename(&world, &kept, "before").await;
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the listing", |view| view.endpoints().count() == 1).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("view.json");
    follower.view.save(&path).unwrap();
    let revision = follower.view.revision();
    drop(follower);
    world.stop().await;
    world.restore(&backup);
    world.restart().await;
    rename(&world, &kept, "after").await;
    assert_eq!(store.status().await.unwrap().revision, revision.0, "the revision says nothing");
    let view = View::load(&path).unwrap().unwrap();
    let known = view.known();
    let mut later = Follower::new(world.store(), view, known);
    later
        .until("the content that counts", |view| {
            view.endpoint(&network.id, &kept.id)
                .is_some_and(|item| item.record.name.as_deref() == Some("after"))
        })
        .await;
    later.equals(&store).await;
}

/// An idle watch in a store that others write to: progress notices keep it ahead of compaction.
#[test]
fn progress_notices_keep_an_idle_watch_fresh() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut world = World::etcd_with(&["--watch-progress-notify-interval=200ms"]).await;
        let store = world.store();
        let network = create(&store, "web").await;
        let mut follower = Follower::new(world.store(), View::new(), Known::new());
        follower.until("the listing", |view| view.networks().count() == 1).await;
        let mut raw = world.raw().await;
        for number in 0..50 {
            raw.put("/elsewhere", number.to_string(), None).await.unwrap();
        }
        let revision = store.status().await.unwrap().revision;
        let mut status = follower.watch.status();
        let told = status.wait_for(|status| {
            matches!(status, WatchStatus::Connected { revision: told, .. } if told.0 >= revision)
        });
        assert!(tokio::time::timeout(DEADLINE, told).await.is_ok(), "a progress notice");
        raw.compact(revision, None).await.unwrap();
        world.stop().await;
        status.wait_for(|status| !status.is_connected()).await.unwrap();
        world.restart().await;
        let made = attach(&store, &network).await;
        follower
            .until("what came later", |view| view.endpoint(&network.id, &made.id).is_some())
            .await;
        assert_eq!(follower.resyncs, 1, "resumed, not listed again");
    });
}

async fn compaction_while_away_is_healed_by_a_listing(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let gone = attach(&store, &network).await;
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the first listing", |view| view.endpoints().count() == 1).await;

    // The follower's own connection goes through a door that is shut meanwhile.
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    let mut away = Follower::new(Store::lazy(config).unwrap(), View::new(), Known::new());
    away.until("its first listing", |view| view.endpoints().count() == 1).await;
    door.set(State::Shut);
    let mut status = away.watch.status();
    status.wait_for(|status| !status.is_connected()).await.unwrap();

    endpoint::remove(&store, &network.id, &gone.id, REST).await.unwrap();
    let other = create(&store, "other").await;
    let made = attach(&store, &other).await;
    let revision = store.status().await.unwrap().revision;
    world.raw().await.compact(revision, None).await.unwrap();
    door.set(State::Open);
    away.until("what changed meanwhile", |view| {
        view.endpoint(&other.id, &made.id).is_some()
            && view.endpoint(&network.id, &gone.id).is_none()
    })
    .await;
    assert_eq!(away.resyncs, 2, "listed again");
    away.equals(&store).await;
    follower
        .until("the one that stayed sees it too", |view| {
            view.endpoint(&network.id, &gone.id).is_none()
        })
        .await;
    world.stop().await;
}

async fn many_pages_are_one_listing(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    // Written as the operations write them, but many at once.
    let record = attach(&store, &network).await;
    let mut raw: Client = world.raw().await;
    let count = 1300;
    let ops: Vec<TxnOp> = (0..count)
        .map(|number| {
            let id = EndpointId::new(format!("e{number:05}")).unwrap();
            let record = EndpointRecord { id: id.clone(), ..record.clone() };
            let key = Key::Endpoint(network.id.clone(), id);
            TxnOp::put(store.keys().encode(&key), serde_json::to_vec(&record).unwrap(), None)
        })
        .collect();
    for chunk in ops.chunks(100) {
        raw.txn(etcd_client::Txn::new().and_then(chunk.to_vec())).await.unwrap();
    }
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("all pages", |view| view.endpoints().count() == count + 1).await;
    assert_eq!(follower.resyncs, 1);
    let (_, listed) = store.list(Range::EveryEndpoint).await.unwrap();
    assert_eq!(listed.len(), count + 1);
    network::remove(&store, "web", true).await.unwrap();
    follower.until("all are gone", |view| view.endpoints().count() == 0).await;
}

async fn bad_records_are_set_aside_and_the_rest_goes_on(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let good = attach(&store, &network).await;
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the listing", |view| view.endpoints().count() == 1).await;
    let mut raw = world.raw().await;
    let root = store.keys().root().to_owned();
    let bad: Vec<(String, Vec<u8>, &str)> = vec![
        ("endpoints/n1/garbage".into(), b"\xff\x00".to_vec(), "malformed"),
        ("endpoints/n1/newer".into(), b"{\"version\":3}".to_vec(), "version 3"),
        ("hosts/large".into(), vec![b' '; 65 * 1024], "65536 are allowed"),
        ("what/is/this".into(), b"{}".to_vec(), "names nothing known"),
        // The good one's key with what is no endpoint: the last good record stays in use.
        (format!("endpoints/{}/{}", network.id, good.id), b"{}".to_vec(), "malformed"),
    ];
    for (key, value, _) in &bad {
        raw.put(format!("{root}{key}"), value.clone(), None).await.unwrap();
    }
    follower.until("all are set aside", |view| view.bad().count() == bad.len()).await;
    for (key, _, says) in &bad {
        let (_, found) = follower.view.bad().find(|(full, _)| full.ends_with(key)).unwrap();
        assert!(found.error.contains(says), "{found:?}");
    }
    assert!(follower.view.endpoint(&network.id, &good.id).is_some());
    let other = attach(&store, &network).await;
    follower
        .until("the rest goes on", |view| view.endpoint(&network.id, &other.id).is_some())
        .await;
    for (key, ..) in &bad {
        raw.delete(format!("{root}{key}"), None).await.unwrap();
    }
    follower.until("none is left", |view| view.bad().count() == 0).await;
    assert_eq!(follower.view.endpoints().count(), 1);
}

async fn a_snapshot_tells_what_vanished(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let gone = attach(&store, &network).await;
    let kept = attach(&store, &network).await;
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the listing", |view| view.endpoints().count() == 2).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("view.json");
    assert!(View::load(&path).unwrap().is_none());
    follower.view.save(&path).unwrap();
    drop(follower);
    endpoint::remove(&store, &network.id, &gone.id, REST).await.unwrap();
    let view = View::load(&path).unwrap().unwrap();
    assert_eq!((view.endpoints().count(), view.networks().count()), (2, 1));
    assert!(view.network_by("web").is_some());
    let known = view.known();
    let mut later = Follower::new(world.store(), view, known);
    later.until("what vanished", |view| view.endpoint(&network.id, &gone.id).is_none()).await;
    assert!(later.view.endpoint(&network.id, &kept.id).is_some());
    later.equals(&store).await;
    std::fs::write(&path, b"{\"version\":1").unwrap();
    assert!(View::load(&path).unwrap_err().to_string().contains("damaged"));
}

async fn a_silent_store_is_noticed(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    config.keep_alive_interval = Duration::from_millis(300);
    config.keep_alive_timeout = Duration::from_millis(300);
    config.request_timeout = Duration::from_secs(1);
    let mut follower = Follower::new(Store::lazy(config).unwrap(), View::new(), Known::new());
    follower.until("the listing", |view| view.networks().count() == 1).await;
    // Connections stay open and nothing comes: a stopped process, a cut cable.
    door.set(State::Stalled);
    let mut status = follower.watch.status();
    let waited = tokio::time::timeout(DEADLINE, status.wait_for(|status| !status.is_connected()));
    assert!(waited.await.is_ok(), "silence is noticed");
    let made = attach(&store, &network).await;
    door.set(State::Open);
    follower
        .until("what happened meanwhile", |view| view.endpoint(&network.id, &made.id).is_some())
        .await;
    assert_eq!(follower.resyncs, 1, "resumed, not listed again");
}

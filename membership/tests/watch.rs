//! List and watch over interruptions: against the embedded store and etcd 3.4 to 3.7.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::time::Duration;

use common::{Backend, DEADLINE, Door, State, World, until};
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

on_each_store!(
    a_deletion_before_the_listing_is_no_other_history,
    a_reload_moves_the_watch_at_once,
    a_restored_store_is_noticed_when_it_is_ahead_again,
    a_restored_store_is_noticed_by_what_it_no_longer_lacks,
    a_restored_store_is_noticed_while_it_is_behind,
    a_silent_store_is_noticed,
    a_snapshot_of_another_history_is_corrected,
    a_snapshot_tells_what_vanished,
    an_idle_watch_keeps_up_with_what_does_not_concern_it,
    another_store_is_listed_and_compared,
    bad_records_are_set_aside_and_the_rest_goes_on,
    compaction_while_away_is_healed_by_a_listing,
    every_kind_of_bad_record_is_set_aside,
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

/// The last change before a listing is a deletion, which the listing cannot have.
async fn a_deletion_before_the_listing_is_no_other_history(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    attach(&store, &network).await;
    let mut raw = world.raw().await;
    let key = format!("{}hosts/h1", store.keys().root());
    for _ in 0..2 {
        raw.put(key.clone(), "{}", None).await.unwrap();
        raw.delete(key.clone(), None).await.unwrap();
    }
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("the listing", |view| view.endpoints().count() == 1).await;
    let made = attach(&store, &network).await;
    follower.until("what comes now", |view| view.endpoint(&network.id, &made.id).is_some()).await;
    assert_eq!((follower.resyncs, follower.rollbacks), (1, 0));
}

async fn a_reload_moves_the_watch_at_once(_: Backend, world: World) {
    let network = create(&world.store(), "web").await;
    let (old, new) = (Door::open(&world).await, Door::open(&world).await);
    let mut config = world.config();
    config.endpoints = vec![old.url()];
    let store = Store::lazy(config.clone()).unwrap();
    let mut follower = Follower::new(store.clone(), View::new(), Known::new());
    follower.until("the listing", |view| view.networks().count() == 1).await;
    config.endpoints = vec![new.url()];
    store.reload(config).unwrap();
    assert!(store.endpoints().contains(&new.url()));
    // The old way is closed as soon as the new one is in use: nobody is there to miss it.
    until("the watch has moved", async || new.connections() > 0 && old.connections() == 0).await;
    old.set(State::Shut);
    let made = attach(&world.store(), &network).await;
    follower.until("what comes now", |view| view.endpoint(&network.id, &made.id).is_some()).await;
    assert_eq!(follower.resyncs, 1, "resumed, not listed again");
}

async fn another_store_is_listed_and_compared(backend: Backend, _: World) {
    let (first, second) = (World::alone(backend).await, World::alone(backend).await);
    let gone = create(&first.store(), "gone").await;
    // The second one's revisions are ahead, so a watch could go on in it and tell nothing.
    let mut config = second.config();
    config.prefix = first.config().prefix;
    let other = Store::lazy(config.clone()).unwrap();
    let present = create(&other, "present").await;
    for _ in 0..5 {
        attach(&other, &present).await;
    }
    let store = first.store();
    let mut follower = Follower::new(store.clone(), View::new(), Known::new());
    follower.until("the listing", |view| view.networks().count() == 1).await;
    store.reload(config).unwrap();
    follower
        .until("the other store", |view| {
            view.network(&gone.id).is_none() && view.endpoints().count() == 5
        })
        .await;
    assert_eq!(follower.resyncs, 2, "listed again");
    follower.equals(&other).await;
}

/// With the servers as they come: without being asked, etcd would say nothing for ten minutes.
async fn an_idle_watch_keeps_up_with_what_does_not_concern_it(backend: Backend, _: World) {
    let world = World::alone(backend).await;
    let store = world.store();
    let network = create(&store, "web").await;
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    let watch = WatchConfig { progress: Duration::from_millis(100), ..quick() };
    let watch = Watch::start(Store::lazy(config).unwrap(), watch, Known::new());
    let mut follower = Follower { watch, view: View::new(), resyncs: 0, rollbacks: 0 };
    follower.until("the listing", |view| view.networks().count() == 1).await;

    let mut raw = world.raw().await;
    let mut revision = 0;
    for number in 0..20 {
        let put = raw.put("/other/key", number.to_string(), None).await.unwrap();
        revision = put.header().unwrap().revision();
    }
    let mut status = follower.watch.status();
    let reached = status.wait_for(|status| {
        matches!(status, WatchStatus::Connected { revision: reached, .. } if reached.0 == revision)
    });
    timeout_at(Instant::now() + DEADLINE, reached).await.expect("the watch keeps up").unwrap();
    raw.compact(revision, None).await.unwrap();

    // A watch from where the last record was would be refused now.
    door.set(State::Shut);
    status.wait_for(|status| !status.is_connected()).await.unwrap();
    door.set(State::Open);
    let made = attach(&store, &network).await;
    follower
        .until("what came afterwards", |view| view.endpoint(&network.id, &made.id).is_some())
        .await;
    assert_eq!(follower.resyncs, 1, "resumed, not listed again");
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

/// Every kind of record with every fault that it can have, before the listing and after it: each is
/// named with its key and set aside, and what is right goes on.
async fn every_kind_of_bad_record_is_set_aside(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let good = attach(&store, &network).await;
    let root = store.keys().root().to_owned();
    // Where each kind lies, and a record of that kind that belongs elsewhere, where it says so.
    let host = "{\"version\":1,\"name\":\"h9\",\"id\":\"i\",\"boot_id\":\"\",\"incarnation\":1,\
                \"router_mac\":\"00:00:5e:00:53:01\",\"underlay_mtu\":0,\"software\":\"\",\"vteps\":[]}";
    let elsewhere = serde_json::to_string(&network).unwrap();
    let endpoint = serde_json::to_string(&good).unwrap();
    let kinds: [(&str, Option<&str>); 11] = [
        ("hosts/{}", Some(host)),
        ("known/{}", Some(host)),
        ("vteps/192.0.2.{n}", None),
        ("names/{}", None),
        ("networks/{}", Some(&elsewhere)),
        ("vnis/90{n}", None),
        ("endpoints/n1/{}", Some(&endpoint)),
        ("ipam/n1/blocks/198.51.100.{n}/32", None),
        ("ipam/n1/addresses/198.51.100.{n}", None),
        ("ipam/n1/macs/00:00:5e:00:53:0{n}", None),
        ("ipam/n1/resting/198.51.100.{n}", None),
    ];
    let mut bad: Vec<(String, Vec<u8>, &str)> = Vec::new();
    for (place, contradictory) in kinds {
        let faults: [(&str, Vec<u8>, &str); 5] = [
            ("garbage", b"\xff\x00{".to_vec(), "malformed"),
            ("newer", b"{\"version\":3}".to_vec(), "version 3"),
            ("oversized", vec![b' '; 65 * 1024], "65536 are allowed"),
            ("incomplete", b"{\"version\":1,\"x\":[]}".to_vec(), "malformed"),
            ("contradictory", contradictory.unwrap_or_default().into(), "contradicts its key"),
        ];
        for (number, (fault, value, says)) in (1..).zip(faults) {
            if !value.is_empty() {
                let key = place.replace("{n}", &number.to_string()).replace("{}", fault);
                bad.push((format!("{root}{key}"), value, says));
            }
        }
    }
    assert_eq!(bad.len(), 11 * 4 + 4);
    let mut raw = world.raw().await;
    // Half of them are there when the watch begins.
    let half = bad.len() / 2;
    for (key, value, _) in &bad[..half] {
        raw.put(key.clone(), value.clone(), None).await.unwrap();
    }
    let mut follower = Follower::new(world.store(), View::new(), Known::new());
    follower.until("those of the listing", |view| view.bad().count() == half).await;
    for (key, value, _) in &bad[half..] {
        raw.put(key.clone(), value.clone(), None).await.unwrap();
    }
    follower.until("all of them", |view| view.bad().count() == bad.len()).await;
    for (key, _, says) in &bad {
        let named = follower.view.bad().find(|(name, _)| name == key);
        let (_, found) = named.unwrap_or_else(|| panic!("{key} is not named"));
        let short = key.strip_prefix(&root).unwrap();
        assert!(found.error.contains(says) && found.error.contains(short), "{key}: {found:?}");
    }
    let other = attach(&store, &network).await;
    follower
        .until("the rest goes on", |view| view.endpoint(&network.id, &other.id).is_some())
        .await;
    assert!(follower.view.endpoint(&network.id, &good.id).is_some());
    for (key, ..) in &bad {
        raw.delete(key.clone(), None).await.unwrap();
    }
    follower.until("none is left", |view| view.bad().count() == 0).await;
    follower.equals(&store).await;
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

//! The presence of hosts: against the embedded store and etcd 3.4 to 3.7.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::{Backend, Door, State, World, until};
use encap::MacAddr;
use membership::key::{HostId, HostName, Key};
use membership::network;
use membership::record::{HostRecord, StaticVtep, VtepRecord};
use membership::session::{Error, Session, SessionState};
use membership::store::Store;

on_each_store!(
    a_newer_run_is_not_overwritten,
    a_record_that_others_changed_is_written_again,
    a_restored_store_is_told_again,
    a_session_comes_back_with_the_store,
    a_session_starts_without_the_store,
    closing_ends_the_presence,
    names_and_vteps_belong_to_one_id,
    the_lease_is_kept_and_taken_again,
    updates_are_published,
);

const TTL: Duration = Duration::from_secs(2);
/// Of sessions that must not lose their lease while the test or the store is held up for a moment.
const KEPT_TTL: Duration = Duration::from_secs(6);

fn record(name: &str, id: &str, vteps: &[&str]) -> HostRecord {
    let mac = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    let mut host = HostRecord::new(HostName::new(name).unwrap(), HostId::new(id).unwrap(), 1, mac);
    host.vteps =
        vteps.iter().map(|text| VtepRecord::new(text.parse::<IpAddr>().unwrap(), 4789)).collect();
    host
}

async fn present(store: &Store, name: &str) -> Option<HostRecord> {
    let key = Key::Host(HostName::new(name).unwrap());
    store.get::<HostRecord>(&key).await.unwrap().map(|found| found.record)
}

async fn known(store: &Store, name: &str) -> Option<HostRecord> {
    let key = Key::KnownHost(HostName::new(name).unwrap());
    store.get::<HostRecord>(&key).await.unwrap().map(|found| found.record)
}

async fn state(session: &Session, what: &str, is: impl Fn(&SessionState) -> bool) {
    let mut state = session.state();
    let waited = tokio::time::timeout(common::DEADLINE, state.wait_for(|state| is(state))).await;
    assert!(waited.is_ok(), "not in time: {what}");
}

/// Waits until a lease that nobody renews has ended, and with it every other that nobody renews.
async fn outlive(world: &World, ttl: Duration) {
    let mut raw = world.raw().await;
    let lease = raw.lease_grant(ttl.as_secs() as i64, None).await.unwrap().id();
    let key = format!("{}/canary", world.config().prefix);
    let options = etcd_client::PutOptions::new().with_lease(lease);
    raw.put(key.clone(), "", Some(options)).await.unwrap();
    until("the canary's lease has ended", async || {
        let mut raw = raw.clone();
        raw.get(key.clone(), None).await.unwrap().kvs().is_empty()
    })
    .await;
}

async fn names_and_vteps_belong_to_one_id(_: Backend, world: World) {
    let store = world.store();
    let first = record("h1", "id1", &["192.0.2.1"]);
    let session = Session::start_with(world.store(), first.clone(), TTL).await.unwrap();
    assert!(session.state().borrow().is_online());

    let other = record("h1", "id2", &["192.0.2.2"]);
    let error = Session::start_with(world.store(), other, TTL).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::NameTaken { .. }), "{text}");
    assert!(text.contains("id1") && text.contains("id2") && text.contains("h1"), "{text}");

    let other = record("h2", "id2", &["192.0.2.2", "192.0.2.1"]);
    let error = Session::start_with(world.store(), other, TTL).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::VtepTaken { .. }), "{text}");
    assert!(text.contains("192.0.2.1") && text.contains("h1"), "{text}");
    assert_eq!(present(&store, "h2").await, None, "nothing half done");
    assert_eq!(present(&store, "h1").await.unwrap().id, first.id);

    // Both want one VTEP at the same time: one has it.
    let a = Session::start_with(world.store(), record("a", "ida", &["192.0.2.9"]), TTL);
    let b = Session::start_with(world.store(), record("b", "idb", &["192.0.2.9"]), TTL);
    let (a, b) = tokio::join!(a, b);
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");

    // A host needs no static VTEP.
    network::create(
        &store,
        &network::NetworkSpec::new("web".parse().unwrap(), vec!["192.0.2.0/24".parse().unwrap()]),
    )
    .await
    .unwrap();
    let vtep = StaticVtep::new("192.0.2.1".parse().unwrap());
    let error = network::vtep_add(&store, "web", &vtep).await.unwrap_err();
    assert!(error.to_string().contains("h1"), "{error}");

    // The name is free again when the lease has ended, and the reinstalled host counts anew.
    drop(session);
    let reinstalled = record("h1", "id3", &["192.0.2.1"]);
    let session = Session::spawn(world.store(), reinstalled, TTL);
    state(&session, "the reinstalled host is taken", SessionState::is_online).await;
    assert_eq!(present(&store, "h1").await.unwrap().id.as_str(), "id3");
}

async fn the_lease_is_kept_and_taken_again(_: Backend, world: World) {
    let store = world.store();
    let session = Session::start_with(world.store(), record("h1", "id1", &["192.0.2.1"]), KEPT_TTL)
        .await
        .unwrap();
    let SessionState::Online { lease, .. } = *session.state().borrow() else { panic!() };
    outlive(&world, KEPT_TTL).await;
    assert!(present(&store, "h1").await.is_some());
    // Taken away from outside: it comes back under another lease.
    world.raw().await.lease_revoke(lease).await.unwrap();
    state(
        &session,
        "another lease",
        |state| matches!(state, SessionState::Online { lease: now, .. } if *now != lease),
    )
    .await;
    let back = present(&store, "h1").await.unwrap();
    assert_eq!(back.incarnation, session.incarnation());
    assert_eq!(back.incarnation, 1, "the same run of the host");
}

async fn closing_ends_the_presence(_: Backend, world: World) {
    let store = world.store();
    let long = Duration::from_secs(600);
    let session = Session::start_with(world.store(), record("h1", "id1", &["192.0.2.1"]), long)
        .await
        .unwrap();
    session.close().await;
    assert_eq!(present(&store, "h1").await, None);
    assert!(known(&store, "h1").await.is_some(), "others still know its VTEP");
    let claim = Key::VtepClaim("192.0.2.1".parse().unwrap());
    let claim = store.get::<membership::record::VtepClaimRecord>(&claim).await.unwrap();
    assert_eq!(claim, None);
}

async fn a_newer_run_is_not_overwritten(_: Backend, world: World) {
    let store = world.store();
    let old =
        Session::start_with(world.store(), record("h1", "id1", &["192.0.2.1"]), TTL).await.unwrap();
    let SessionState::Online { lease, .. } = *old.state().borrow() else { panic!() };
    // The directory of the second run says 1 as well: the store knows better.
    let new =
        Session::start_with(world.store(), record("h1", "id1", &["192.0.2.7"]), TTL).await.unwrap();
    assert_eq!((old.incarnation(), new.incarnation()), (1, 2));
    // The old one loses its lease (as after a SIGSTOP) and tries to come back.
    world.raw().await.lease_revoke(lease).await.unwrap();
    state(&old, "the old run is refused", |state| {
        matches!(state, SessionState::Refused { cause, .. } if cause.contains("second time"))
    })
    .await;
    let now = present(&store, "h1").await.unwrap();
    assert_eq!(now.incarnation, 2);
    assert_eq!(now.vteps[0].advertise.to_string(), "192.0.2.7");
    assert_eq!(known(&store, "h1").await.unwrap(), now);
}

/// A second run of the host that the first would only notice when its lease ends: it is told to
/// look. And a record that somebody deleted is written again, under the same lease.
async fn a_record_that_others_changed_is_written_again(backend: Backend, _: World) {
    // Alone: its revisions are counted.
    let world = World::alone(backend).await;
    let store = world.store();
    let long = Duration::from_secs(600);
    let first = record("h1", "id1", &["192.0.2.1"]);
    let old = Session::start_with(world.store(), first, long).await.unwrap();
    let revision = async || store.status().await.unwrap().revision;
    let SessionState::Online { lease, .. } = *old.state().borrow() else { panic!() };
    let key = store.keys().encode(&Key::Host(HostName::new("h1").unwrap()));
    world.raw().await.delete(key, None).await.unwrap();
    old.check();
    until("it is written again", async || present(&store, "h1").await.is_some()).await;
    let SessionState::Online { lease: now, .. } = *old.state().borrow() else { panic!() };
    assert_eq!(lease, now);

    let new = Session::start_with(world.store(), record("h1", "id1", &["192.0.2.7"]), long)
        .await
        .unwrap();
    assert_eq!((old.incarnation(), new.incarnation()), (1, 2));
    assert!(old.state().borrow().is_online(), "its lease still lives");
    old.check();
    state(&old, "the old run is refused", |state| {
        matches!(state, SessionState::Refused { cause, .. } if cause.contains("second time"))
    })
    .await;
    assert_eq!(present(&store, "h1").await.unwrap().incarnation, 2);

    // Who looks and finds all well writes nothing.
    let before = revision().await;
    new.check();
    new.check();
    // Commands are served in order: the looks are over when this one is.
    let mut changed = record("h1", "id1", &["192.0.2.7"]);
    changed.underlay_mtu = 1400;
    new.update(changed).await.unwrap();
    let after = present(&store, "h1").await.unwrap();
    assert_eq!((after.underlay_mtu, revision().await), (1400, before + 1));
}

/// A restored store has the lease and not what was written under it since.
async fn a_restored_store_is_told_again(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let door = Door::open(&world).await;
    let mut config = world.config();
    config.endpoints = vec![door.url()];
    let store = Store::lazy(config).unwrap();
    let session =
        Session::start_with(store, record("h1", "id1", &["192.0.2.1"]), KEPT_TTL).await.unwrap();
    let SessionState::Online { lease, .. } = *session.state().borrow() else { panic!() };
    let backup = world.backup().await;
    until("it is back", async || session.state().borrow().is_online()).await;
    let mut changed = record("h1", "id1", &["192.0.2.8"]);
    changed.underlay_mtu = 9000;
    session.update(changed).await.unwrap();
    // The session meets the restored store when the test has seen what is in it, and not before: it
    // waits for an answer meanwhile, and opens its stream of keep-alives again.
    door.set(State::Stalled);
    world.stop().await;
    world.restore(&backup);
    world.restart().await;
    let store = world.store();
    assert_ne!(present(&store, "h1").await.unwrap().underlay_mtu, 9000);
    door.set(State::Open);
    until("it is told again", async || {
        let record = async |record: Option<HostRecord>| record.map(|record| record.underlay_mtu);
        let (present, known) = (present(&store, "h1").await, known(&store, "h1").await);
        (record(present).await, record(known).await) == (Some(9000), Some(9000))
    })
    .await;
    let claim = Key::VtepClaim("192.0.2.8".parse().unwrap());
    let claim = store.get::<membership::record::VtepClaimRecord>(&claim).await.unwrap();
    assert_eq!(claim.map(|found| found.lease), Some(lease), "under the lease that is still there");
    let gone = Key::VtepClaim("192.0.2.1".parse().unwrap());
    assert_eq!(store.get::<membership::record::VtepClaimRecord>(&gone).await.unwrap(), None);
}

async fn updates_are_published(_: Backend, world: World) {
    let store = world.store();
    let start = async |host| Session::start_with(world.store(), host, KEPT_TTL).await.unwrap();
    let other = start(record("h2", "id2", &["192.0.2.2"])).await;
    let session = start(record("h1", "id1", &["192.0.2.1"])).await;
    let mut changed = record("h1", "id1", &["192.0.2.11"]);
    changed.underlay_mtu = 9000;
    session.update(changed).await.unwrap();
    let now = present(&store, "h1").await.unwrap();
    assert_eq!((now.underlay_mtu, now.incarnation), (9000, 1));
    // The address that it no longer has can be another's.
    other.update(record("h2", "id2", &["192.0.2.1"])).await.unwrap();
    let refused = session.update(record("h1", "id1", &["192.0.2.1"])).await.unwrap_err();
    assert!(matches!(refused, Error::VtepTaken { .. }), "{refused}");
    // What cannot be had costs nothing: it is present as before.
    outlive(&world, KEPT_TTL).await;
    assert_eq!(present(&store, "h1").await.unwrap().underlay_mtu, 9000);
    assert!(session.state().borrow().is_online());
}

async fn a_session_comes_back_with_the_store(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    let session =
        Session::start_with(world.store(), record("h1", "id1", &["192.0.2.1"]), TTL).await.unwrap();
    world.stop().await;
    state(&session, "offline", |state| !state.is_online()).await;
    // Away for as long as the pauses need to be at their longest.
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.restart().await;
    let back = std::time::Instant::now();
    state(&session, "online again", SessionState::is_online).await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(20), "ten times what is promised; it took {took:?}");
    let store = world.store();
    until("its record is there", async || present(&store, "h1").await.is_some()).await;
}

async fn a_session_starts_without_the_store(backend: Backend, _: World) {
    let mut world = World::alone(backend).await;
    world.stop().await;
    let host = record("h1", "id1", &["192.0.2.1"]);
    let mut config = world.config();
    config.request_timeout = Duration::from_millis(500);
    let store = Store::lazy(config).unwrap();
    let error = Session::start_with(store.clone(), host.clone(), TTL).await.unwrap_err();
    assert!(matches!(error, Error::Store(_)) && !error.is_refusal(), "{error}");
    let session = Session::spawn(store, host, TTL);
    world.restart().await;
    state(&session, "online", SessionState::is_online).await;
}

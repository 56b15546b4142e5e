//! Writing again what the store has lost: against the embedded store and etcd 3.4 to 3.7.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::time::Duration;

use common::{Backend, World};
use encap::MacAddr;
use membership::endpoint::{self, EndpointSpec};
use membership::key::{HostId, HostName, Key, NetworkName, Range};
use membership::network::{self, NetworkSpec};
use membership::record::{EndpointRecord, HostRecord, NetworkRecord};
use membership::session::Session;
use membership::store::Store;
use membership::{ipam, restore};

on_each_store!(
    a_lost_endpoint_is_written_again,
    a_lost_network_is_written_again,
    an_older_run_makes_no_endpoint,
);

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

async fn create(store: &Store, name: &str) -> NetworkRecord {
    let subnets = vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()];
    network::create(store, &NetworkSpec::new(NetworkName::new(name).unwrap(), subnets))
        .await
        .unwrap()
}

async fn delete(world: &World, key: &Key) {
    let key = world.store().keys().encode(key);
    let deleted = world.raw().await.delete(key, None).await.unwrap().deleted();
    assert_eq!(deleted, 1);
}

/// Everything under the prefix, without what a rewriting changes by itself.
async fn keys(store: &Store) -> Vec<String> {
    let (_, entries) = store.list(Range::All).await.unwrap();
    entries.into_iter().map(|entry| String::from_utf8(entry.key).unwrap()).collect()
}

async fn again(
    store: &Store,
    network: &NetworkRecord,
    lost: &EndpointRecord,
) -> Result<bool, endpoint::Error> {
    let spec = EndpointSpec {
        ips: lost.ips.clone(),
        mac: Some(lost.mac),
        name: lost.name.clone(),
        labels: lost.labels.clone(),
        ..EndpointSpec::default()
    };
    restore::endpoint(store, network, &lost.host, 1, &lost.id, spec).await
}

async fn a_lost_endpoint_is_written_again(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let make = async |ips: Vec<std::net::IpAddr>| {
        let spec = EndpointSpec { ips, name: Some("db".to_owned()), ..EndpointSpec::default() };
        endpoint::create(&store, &network, &host("h1"), 1, &spec).await
    };
    let lost = make(Vec::new()).await.unwrap();
    let whole = keys(&store).await;
    assert_eq!(again(&store, &network, &lost).await, Ok(false), "nothing is lost yet");

    let id = network.id.clone();
    let record = Key::Endpoint(id.clone(), lost.id.clone());
    let parts: Vec<Key> = lost
        .ips
        .iter()
        .map(|ip| Key::Address(id.clone(), *ip))
        .chain([Key::Mac(id.clone(), lost.mac)])
        .collect();
    // The record alone, with each of its parts, and all of it.
    for missing in [&[][..], &parts[..1], &parts[2..], &parts[..]] {
        delete(&world, &record).await;
        for key in missing {
            // The block still says that the address is taken; only its holder is lost.
            delete(&world, key).await;
        }
        assert_eq!(again(&store, &network, &lost).await, Ok(true), "without {missing:?}");
        assert_eq!(keys(&store).await, whole);
        let found: EndpointRecord = store.get(&record).await.unwrap().unwrap().record;
        assert_eq!(EndpointRecord { created: lost.created, ..found }, lost);
    }

    // Its blocks too, as in a store that was restored from before.
    endpoint::remove(&store, &network.id, &lost.id, Duration::ZERO).await.unwrap();
    let (_, blocks) = store.list(Range::Blocks(&network.id)).await.unwrap();
    let mut raw = world.raw().await;
    for block in blocks {
        raw.delete(block.key, None).await.unwrap();
    }
    assert_eq!(again(&store, &network, &lost).await, Ok(true));
    assert_eq!(keys(&store).await, whole);

    // What another has taken meanwhile stays its own.
    endpoint::remove(&store, &network.id, &lost.id, Duration::ZERO).await.unwrap();
    let thief = make(lost.ips.clone()).await.unwrap();
    let refused = again(&store, &network, &lost).await.unwrap_err();
    assert!(
        matches!(&refused, endpoint::Error::Address(ipam::Error::InUse { endpoint, .. })
            if *endpoint == thief.id),
        "{refused}"
    );
}

async fn a_lost_network_is_written_again(_: Backend, world: World) {
    let store = world.store();
    let lost = create(&store, "web").await;
    let whole = keys(&store).await;
    assert_eq!(restore::network(&store, &lost).await, Ok(false));
    network::remove(&store, "web", true).await.unwrap();
    assert_eq!(restore::network(&store, &lost).await, Ok(true));
    assert_eq!(keys(&store).await, whole);
    delete(&world, &Key::Network(lost.id.clone())).await;
    assert_eq!(restore::network(&store, &lost).await, Ok(true));
    let found = store.get::<NetworkRecord>(&Key::Network(lost.id.clone())).await.unwrap().unwrap();
    assert_eq!(found.record, lost);

    network::remove(&store, "web", true).await.unwrap();
    let other = create(&store, "web").await;
    let refused = restore::network(&store, &lost).await.unwrap_err();
    assert!(
        matches!(&refused, network::Error::NameTaken { id, .. } if *id == other.id),
        "{refused}"
    );
}

/// A run of a host that was stopped while another one took over writes nothing under its name.
async fn an_older_run_makes_no_endpoint(_: Backend, world: World) {
    let store = world.store();
    let network = create(&store, "web").await;
    let mac = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    let record = HostRecord::new(host("h1"), HostId::new("id1").unwrap(), 5, mac);
    let session = Session::start(world.store(), record).await.unwrap();
    let make = async |incarnation| {
        let spec = EndpointSpec::default();
        endpoint::create(&store, &network, &host("h1"), incarnation, &spec).await
    };
    let refused = make(session.incarnation() - 1).await.unwrap_err();
    assert!(
        matches!(&refused, endpoint::Error::Superseded { theirs: 5, ours: 4, .. }),
        "{refused}"
    );
    assert!(store.list(Range::EveryEndpoint).await.unwrap().1.is_empty());
    make(session.incarnation()).await.unwrap();
}

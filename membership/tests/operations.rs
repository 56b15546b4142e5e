//! Networks (`operations/networks.rs`), addresses, endpoints: against the embedded store and etcd 3.4
//! to 3.7.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;
#[path = "operations/networks.rs"]
mod networks;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use common::{Backend, Door, State, World, until};
use encap::{MacAddr, Vni};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use membership::docker::{self, DockerNetwork};
use membership::endpoint::{self, EndpointSpec};
use membership::gc;
use membership::ipam::reserve::Wish;
use membership::ipam::{self, REST};
use membership::key::{DockerId, EndpointId, HostName, Key, NetworkName};
use membership::network::{self, NetworkSpec};
use membership::record::{BlockRecord, DockerRecord, NetworkRecord, StaticMac, StaticVtep};
use membership::store::{self, Credentials, Store};
use tokio::task::JoinHandle;

on_each_store!(
    a_dead_endpoint_is_told_and_passed_over,
    a_late_request_comes_to_nothing,
    an_owner_gives_up_what_is_asked_for,
    an_endpoint_makes_room_for_another,
    an_unreadable_block_is_left_alone,
    answers_that_are_lost_do_no_harm,
    concurrent_allocation_gives_no_address_twice,
    docker_takes_an_address_first,
    endpoint_errors_name_the_holder,
    endpoints_need_no_subnet,
    exhaustion_and_borrowing,
    released_addresses_rest,
    reserved_addresses_are_their_hosts,
);

fn name(text: &str) -> NetworkName {
    NetworkName::new(text).unwrap()
}

fn host(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

fn spec(text: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec::new(name(text), subnets.iter().map(|subnet| subnet.parse().unwrap()).collect())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wanting(ips: &[&str]) -> EndpointSpec {
    EndpointSpec { ips: ips.iter().map(|text| ip(text)).collect(), ..EndpointSpec::default() }
}

async fn attach(
    store: &Store,
    network: &NetworkRecord,
    on: &str,
    spec: &EndpointSpec,
) -> Result<membership::record::EndpointRecord, endpoint::Error> {
    endpoint::create(store, network, &host(on), 1, spec).await
}

/// As [`attach`], by somebody who waits for the owner of a reserved address as long as it takes.
fn ask(
    world: &World,
    network: &NetworkRecord,
    spec: EndpointSpec,
) -> JoinHandle<Result<membership::record::EndpointRecord, endpoint::Error>> {
    let (store, network) = (world.store(), network.clone());
    let patience = 3 * common::DEADLINE;
    tokio::spawn(async move {
        endpoint::create_with(&store, &network, &host("h2"), 1, &spec, patience).await
    })
}

async fn concurrent_allocation_gives_no_address_twice(_: Backend, world: World) {
    let subnets = ["198.51.100.0/25", "2001:db8::/120"];
    let store = world.store();
    let network = network::create(&store, &spec("web", &subnets)).await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..4 {
        // Two of the four tasks are on the same host, through connections of their own.
        let on = format!("h{}", number % 3);
        let (store, network) = (world.store(), network.clone());
        tasks.push(tokio::spawn(async move {
            let mut made = Vec::new();
            for round in 0..14 {
                let endpoint = attach(&store, &network, &on, &EndpointSpec::default()).await;
                made.push(endpoint.unwrap());
                if round % 4 == 3 {
                    let gone: membership::record::EndpointRecord = made.remove(0);
                    endpoint::remove(&store, &network.id, &gone.id, REST).await.unwrap();
                }
            }
            made
        }));
    }
    let mut ips = BTreeSet::new();
    let mut macs = BTreeSet::new();
    let mut count = 0;
    for task in tasks {
        for endpoint in task.await.unwrap() {
            assert_eq!(endpoint.ips.len(), 2, "one address of each family");
            assert!(macs.insert(endpoint.mac), "{endpoint:?}");
            for ip in &endpoint.ips {
                assert!(ips.insert(*ip), "{ip} given twice");
                assert!(network.subnet_of(*ip).is_some());
            }
            count += 1;
        }
    }
    assert_eq!(endpoint::list(&store, &network.id).await.unwrap().len(), count);
    // The blocks' maps, the address records and the endpoints tell the same.
    let (_, blocks) = store.list(membership::key::Range::Blocks(&network.id)).await.unwrap();
    let mut allocated = 0;
    for entry in &blocks {
        let key = store.keys().parse(&entry.key).unwrap();
        let found = store.get::<BlockRecord>(&key).await.unwrap().unwrap();
        allocated += found.record.allocated.count();
    }
    let (_, addresses) = store.list(membership::key::Range::Addresses(&network.id)).await.unwrap();
    assert_eq!((allocated as usize, addresses.len()), (ips.len(), ips.len()));
}

async fn released_addresses_rest(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("web", &["192.0.2.0/29"])).await.unwrap();
    let first = attach(&store, &network, "h1", &EndpointSpec::default()).await.unwrap();
    assert_eq!(first.ips, vec![ip("192.0.2.1")]);
    assert_eq!(first.mac.to_string(), "02:42:c0:00:02:01");
    endpoint::remove(&store, &network.id, &first.id, REST).await.unwrap();
    let again = endpoint::remove(&store, &network.id, &first.id, REST).await.unwrap_err();
    assert!(matches!(again, endpoint::Error::NotFound { .. }), "{again}");
    let second = attach(&store, &network, "h1", &EndpointSpec::default()).await.unwrap();
    assert_eq!(second.ips, vec![ip("192.0.2.2")], "the first one rests");
    // Whoever asks for the resting address gets it.
    let wanted = attach(&store, &network, "h2", &wanting(&["192.0.2.1"])).await.unwrap();
    let rest = Duration::from_secs(2);
    endpoint::remove(&store, &network.id, &wanted.id, rest).await.unwrap();
    until("the rest is over", async || {
        let (_, resting) = store.list(membership::key::Range::Resting(&network.id)).await.unwrap();
        resting.is_empty()
    })
    .await;
    let third = attach(&store, &network, "h1", &EndpointSpec::default()).await.unwrap();
    assert_eq!(third.ips, vec![ip("192.0.2.1")]);
}

/// What `on` has reserved when it wants eight of each family.
async fn reserve(
    store: &Store,
    network: &NetworkRecord,
    on: &str,
    fence: bool,
) -> BTreeSet<IpAddr> {
    let none = BTreeSet::new();
    let (count, host) = (8, host(on));
    let wish =
        Wish { network, host: &host, count, used: &none, ready: &none, yielded: &none, fence };
    ipam::reserve::reserve(store, wish).await.unwrap()
}

async fn reserved_addresses_are_their_hosts(_: Backend, world: World) {
    let store = world.store();
    let subnets = ["192.0.2.0/24", "2001:db8::/64"];
    let network = network::create(&store, &spec("web", &subnets)).await.unwrap();
    // Somebody has the MAC of an address that would be reserved else.
    let other = EndpointSpec {
        mac: Some(MacAddr::from_ipv4([192, 0, 2, 10].into())),
        ..wanting(&["192.0.2.77"])
    };
    attach(&store, &network, "h2", &other).await.unwrap();
    let reserved = reserve(&store, &network, "h1", false).await;
    assert_eq!(reserved.len(), 16, "{reserved:?}");
    assert!(!reserved.contains(&ip("192.0.2.10")) && reserved.contains(&ip("192.0.2.1")));
    assert_eq!(reserve(&store, &network, "h1", false).await, reserved, "nothing to do");
    for on in ["h1", "h2"] {
        let error = attach(&store, &network, on, &wanting(&["192.0.2.1"])).await.unwrap_err();
        assert!(error.to_string().contains("reserved by host h1"), "{error}");
        let mac = MacAddr::from_ipv4([192, 0, 2, 1].into());
        let theirs = EndpointSpec { mac: Some(mac), ..EndpointSpec::default() };
        let error = attach(&store, &network, on, &theirs).await.unwrap_err();
        assert!(matches!(error, endpoint::Error::MacReserved { .. }), "{error}");
        let free = attach(&store, &network, on, &EndpointSpec::default()).await.unwrap();
        assert!(free.ips.iter().all(|ip| !reserved.contains(ip)), "{free:?}");
    }
    // What was attached without the store is published, and published again when nobody knows.
    let given: Vec<IpAddr> =
        vec![ip("192.0.2.1"), *reserved.iter().find(|ip| ip.is_ipv6()).unwrap()];
    let offline = EndpointSpec {
        id: Some(EndpointId::new("offline").unwrap()),
        ips: given.clone(),
        mac: Some(MacAddr::from_ipv4([192, 0, 2, 1].into())),
        reserved: given.clone(),
        again: true,
        ..EndpointSpec::default()
    };
    let made = attach(&store, &network, "h1", &offline).await.unwrap();
    assert_eq!(attach(&store, &network, "h1", &offline).await.unwrap(), made);
    let error = attach(&store, &network, "h2", &offline).await.unwrap_err();
    assert!(matches!(error, endpoint::Error::Exists { .. }), "{error}");
    let now = reserve(&store, &network, "h1", false).await;
    assert!(now.len() == 16 && given.iter().all(|ip| !now.contains(ip)), "{now:?}");
    let used = BTreeSet::from([*now.first().unwrap()]);
    ipam::reserve::unreserve(&store, &network.id, &host("h1"), &used).await.unwrap();
    assert_eq!(reserve(&store, &network, "h3", false).await.len(), 16);
    let kept = wanting(&[&used.first().unwrap().to_string()]);
    let error = attach(&store, &network, "h2", &kept).await.unwrap_err();
    assert!(error.to_string().contains("reserved by host h1"), "{error}");
    // Where addresses are scarce nothing is reserved.
    let small = network::create(&store, &spec("small", &["198.51.100.0/28"])).await.unwrap();
    assert!(reserve(&store, &small, "h1", false).await.is_empty());
    let medium = network::create(&store, &spec("medium", &["198.51.100.0/26"])).await.unwrap();
    assert_eq!(reserve(&store, &medium, "h1", false).await.len(), 3);
}

/// Whoever asks for a reserved address by name gets it from an owner that is there and does not
/// count on it, and from no other.
async fn an_owner_gives_up_what_is_asked_for(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let mut ready = reserve(&store, &network, "h1", false).await;
    let error = attach(&store, &network, "h2", &wanting(&["192.0.2.3"])).await.unwrap_err();
    assert!(error.to_string().contains("does not give it up now"), "h1 is away: {error}");

    let present = store.keys().encode(&Key::Host(host("h1")));
    world.raw().await.put(present, "{}", None).await.unwrap();
    let mac = MacAddr::from_ipv4([192, 0, 2, 5].into());
    let by_mac = EndpointSpec { mac: Some(mac), ..EndpointSpec::default() };
    for (asks, ip) in [(wanting(&["192.0.2.3"]), ip("192.0.2.3")), (by_mac, ip("192.0.2.5"))] {
        let asker = ask(&world, &network, asks);
        let block = Key::Block(network.id.clone(), "192.0.2.0/29".parse().unwrap());
        until("the address is asked for", async || {
            let block = store.get::<BlockRecord>(&block).await.unwrap().unwrap();
            !block.record.wanted.is_empty()
        })
        .await;
        let (owner, none) = (host("h1"), BTreeSet::new());
        let wish = Wish {
            network: &network,
            host: &owner,
            count: 8,
            used: &none,
            ready: &ready,
            yielded: &none,
            fence: false,
        };
        // As long as it is counted on it stays.
        assert_eq!(ipam::reserve::reserve(&store, wish).await.unwrap(), ready);
        assert!(!asker.is_finished());
        let (mut rest, yielded) = (ready.clone(), BTreeSet::from([ip]));
        rest.remove(&ip);
        let wish = Wish { ready: &rest, yielded: &yielded, ..wish };
        ready = ipam::reserve::reserve(&store, wish).await.unwrap();
        assert!(ready.len() == 8 && !ready.contains(&ip), "{ready:?}");
        asker.await.unwrap().unwrap();
    }
    // What is in use already is not given up, and whoever asks is told without waiting for long.
    let used = BTreeSet::from([*ready.first().unwrap()]);
    let asker = ask(&world, &network, wanting(&[&used.first().unwrap().to_string()]));
    let (owner, none) = (host("h1"), BTreeSet::new());
    until("the owner has looked", async || {
        let wish = Wish {
            network: &network,
            host: &owner,
            count: 8,
            used: &used,
            ready: &none,
            yielded: &none,
            fence: false,
        };
        ipam::reserve::reserve(&store, wish).await.unwrap();
        asker.is_finished()
    })
    .await;
    let error = asker.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("reserved by host h1"), "{error}");
}

/// A request that was given up and is carried out after all compares blocks as they were before the
/// reserve was confirmed.
async fn a_late_request_comes_to_nothing(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let reserved = reserve(&store, &network, "h1", false).await;
    let block = Key::Block(network.id.clone(), "192.0.2.0/29".parse().unwrap());
    let before = store.get::<BlockRecord>(&block).await.unwrap().unwrap();
    let key = store.keys().encode(&block);
    let late = || {
        let same = Compare::mod_revision(key.clone(), CompareOp::Equal, before.mod_revision);
        Txn::new().when([same]).and_then([TxnOp::delete(key.clone(), None)])
    };
    assert_eq!(reserve(&store, &network, "h1", false).await, reserved);
    let unfenced = store.get::<BlockRecord>(&block).await.unwrap().unwrap();
    assert_eq!(unfenced.mod_revision, before.mod_revision, "nothing was written");
    assert_eq!(reserve(&store, &network, "h1", true).await, reserved);
    let mut raw = world.raw().await;
    assert!(!raw.txn(late()).await.unwrap().succeeded(), "the late request was carried out");
    assert_eq!(reserve(&store, &network, "h1", false).await, reserved);
}

async fn exhaustion_and_borrowing(_: Backend, world: World) {
    let store = world.store();
    let mut wanted = spec("web", &["192.0.2.0/26"]);
    wanted.gateways = vec![ip("192.0.2.1")];
    let network = network::create(&store, &wanted).await.unwrap();
    // 32 blocks of two: h1 takes most of them, h2 has some, then each borrows of the other's.
    let mut given = BTreeSet::new();
    for number in 0..61 {
        let on = if number % 7 == 0 { "h2" } else { "h1" };
        let endpoint = attach(&store, &network, on, &EndpointSpec::default()).await.unwrap();
        assert!(given.insert(endpoint.ips[0]), "{endpoint:?}");
    }
    assert!(!given.contains(&ip("192.0.2.1")) && !given.contains(&ip("192.0.2.63")));
    let error = attach(&store, &network, "h2", &EndpointSpec::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("61 of 61") && text.contains("192.0.2.0/26"), "{text}");
    let blocks = store.list(membership::key::Range::Blocks(&network.id)).await.unwrap().1;
    // One of the 32 has the network address and the gateway only.
    assert_eq!(blocks.len(), 31);
}

async fn endpoint_errors_name_the_holder(_: Backend, world: World) {
    let store = world.store();
    let mut wanted = spec("web", &["192.0.2.0/24"]);
    wanted.gateways = vec![ip("192.0.2.9")];
    let network = network::create(&store, &wanted).await.unwrap();
    let id = EndpointId::new("first").unwrap();
    let holder = EndpointSpec { id: Some(id), ..wanting(&["192.0.2.5"]) };
    attach(&store, &network, "h1", &holder).await.unwrap();
    for (ips, says) in [
        (&["192.0.2.5"][..], "in use by endpoint first on host h1"),
        (&["192.0.2.0"], "network address"),
        (&["192.0.2.255"], "broadcast address"),
        (&["192.0.2.9"], "gateway"),
        (&["198.51.100.1"], "lies outside the subnets of network web (192.0.2.0/24)"),
        (&["192.0.2.7", "192.0.2.8"], "one of each"),
    ] {
        let error = attach(&store, &network, "h2", &wanting(ips)).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let mac = MacAddr::from_ipv4([192, 0, 2, 5].into());
    let same_mac = EndpointSpec { mac: Some(mac), ..EndpointSpec::default() };
    let error = attach(&store, &network, "h2", &same_mac).await.unwrap_err();
    assert!(error.to_string().contains("in use by endpoint first on host h1"), "{error}");
    let group = EndpointSpec { mac: Some(MacAddr::BROADCAST), ..EndpointSpec::default() };
    let error = attach(&store, &network, "h2", &group).await.unwrap_err();
    assert_eq!(error, endpoint::Error::MacInvalid(MacAddr::BROADCAST));
    let error = attach(&store, &network, "h2", &EndpointSpec { ips: vec![], ..holder }).await;
    assert!(matches!(error, Err(endpoint::Error::Exists { .. })), "{error:?}");
    // Nothing half done: one endpoint, one address, one MAC.
    let (_, ipam) = store.list(membership::key::Range::Ipam(&network.id)).await.unwrap();
    assert_eq!(ipam.len(), 3, "{ipam:?}");
}

async fn endpoints_need_no_subnet(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("bare", &[])).await.unwrap();
    let endpoint = attach(&store, &network, "h1", &EndpointSpec::default()).await.unwrap();
    assert!(endpoint.ips.is_empty());
    assert_eq!(endpoint.mac, endpoint::mac_from_ids(&network.id, &endpoint.id));
    endpoint::remove(&store, &network.id, &endpoint.id, REST).await.unwrap();
    network::remove(&store, "bare", false).await.unwrap();
    let again = network::remove(&store, "bare", false).await.unwrap_err();
    assert_eq!(again, network::Error::NotFound("bare".to_owned()));
}

async fn docker_takes_an_address_first(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let (h1, early) = (host("h1"), EndpointId::new("early").unwrap());
    let held = ipam::allocate(&store, &network, &h1, &early, &[]).await.unwrap();
    assert_eq!((held[0].ip, held[0].prefix_len), (ip("192.0.2.1"), 24));
    let adopting = EndpointSpec { adopt: Some(early.clone()), ..wanting(&["192.0.2.1"]) };
    let endpoint = attach(&store, &network, "h1", &adopting).await.unwrap();
    // The early id holds nothing any more, so releasing under it changes nothing.
    ipam::release(&store, &network.id, &early, &[held[0].ip], REST).await.unwrap();
    let error = attach(&store, &network, "h2", &wanting(&["192.0.2.1"])).await.unwrap_err();
    assert!(error.to_string().contains(endpoint.id.as_str()), "{error}");
    let other = ipam::allocate(&store, &network, &h1, &early, &[ip("192.0.2.40")]).await.unwrap();
    ipam::release(&store, &network.id, &early, &[other[0].ip], Duration::ZERO).await.unwrap();
    attach(&store, &network, "h2", &wanting(&["192.0.2.40"])).await.unwrap();
}

/// The new one has all that the old one had, and of the old one nothing is left that would be given
/// out or that could be removed twice.
async fn an_endpoint_makes_room_for_another(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let old = attach(&store, &network, "h1", &EndpointSpec::default()).await.unwrap();
    let moving = EndpointSpec {
        ips: old.ips.clone(),
        mac: Some(old.mac),
        replaces: Some(old.id.clone()),
        ..EndpointSpec::default()
    };
    // Of two that take its place at once one has it.
    let (one, two) = tokio::join!(
        attach(&store, &network, "h2", &moving),
        attach(&store, &network, "h3", &moving)
    );
    let (new, refused) = match (one, two) {
        (Ok(new), Err(error)) | (Err(error), Ok(new)) => (new, error),
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused, endpoint::Error::NotFound { .. }), "{refused}");
    assert_eq!((&new.ips, new.mac), (&old.ips, old.mac));
    let left = endpoint::list(&store, &network.id).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].record.id, new.id);
    let gone = endpoint::remove(&store, &network.id, &old.id, REST).await.unwrap_err();
    assert!(matches!(gone, endpoint::Error::NotFound { .. }), "{gone}");
    let taken = wanting(&[&old.ips[0].to_string()]);
    let error = attach(&store, &network, "h1", &taken).await.unwrap_err();
    assert!(error.to_string().contains(new.id.as_str()), "{error}");
    // Without the word that it makes room, it does not.
    let greedy = EndpointSpec { replaces: None, ..moving };
    assert!(attach(&store, &network, "h1", &greedy).await.is_err());
    endpoint::remove(&store, &network.id, &new.id, Duration::ZERO).await.unwrap();
    attach(&store, &network, "h1", &taken).await.unwrap();
}

async fn an_unreadable_block_is_left_alone(_: Backend, world: World) {
    let store = world.store();
    let network = network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let block = Key::Block(network.id.clone(), "192.0.2.0/29".parse().unwrap());
    let mut raw = world.raw().await;
    raw.put(store.keys().encode(&block), "{\"version\": 9}", None).await.unwrap();
    let endpoint = attach(&store, &network, "h1", &EndpointSpec::default()).await.unwrap();
    assert_eq!(endpoint.ips, vec![ip("192.0.2.8")]);
    let error = attach(&store, &network, "h1", &wanting(&["192.0.2.3"])).await.unwrap_err();
    assert!(error.to_string().contains("192.0.2.0/29"), "{error}");
}

async fn a_dead_endpoint_is_told_and_passed_over(_: Backend, world: World) {
    let mut config = world.config();
    config.endpoints = vec![format!("http://127.0.0.1:{}", common::free_port())];
    let error = Store::connect(config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("connection refused") && error.contains("running there"), "{error}");
    // A dead endpoint beside a living one costs nothing but a little time.
    config.endpoints.extend(world.config().endpoints);
    let store = Store::connect(config).await.unwrap();
    for number in 0..8 {
        network::create(&store, &spec(&format!("n{number}"), &[])).await.unwrap();
    }
}

/// Again and again requests arrive and their answers are lost with the connection. Each operation either succeeds, once, or says that the store was away; it never meets itself.
async fn answers_that_are_lost_do_no_harm(_: Backend, world: World) {
    let direct = world.store();
    let door = std::sync::Arc::new(Door::open(&world).await);
    let mut config = world.config();
    // Several times the same, so that a call is tried more often.
    config.endpoints = vec![door.url(); 3];
    let store = Store::lazy(config).unwrap();
    let cutting = tokio::spawn({
        let door = std::sync::Arc::clone(&door);
        async move {
            loop {
                door.set(State::Open);
                tokio::time::sleep(Duration::from_millis(rand::random_range(5..40))).await;
                door.set(State::Deaf);
                tokio::time::sleep(Duration::from_millis(rand::random_range(5..20))).await;
                door.set(State::Shut);
            }
        }
    });
    /// What became of one operation: its result, or `None` when the store was away.
    fn outcome<T, E: std::fmt::Display>(
        result: Result<T, E>,
        away: impl Fn(&E) -> bool,
    ) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(error) if away(&error) => None,
            Err(error) => panic!("{error}"),
        }
    }
    let no_network =
        |error: &network::Error| matches!(error, network::Error::Store(e) if e.is_transient());
    let no_endpoint = |error: &endpoint::Error| match error {
        endpoint::Error::Store(error) | endpoint::Error::Address(ipam::Error::Store(error)) => {
            error.is_transient()
        }
        _ => false,
    };
    let network = network::create(&direct, &spec("web", &["198.51.100.0/24"])).await.unwrap();
    for round in 0..4 {
        let name = format!("n{round}");
        let made = network::create(&store, &spec(&name, &["192.0.2.0/24"])).await;
        if let Some(made) = outcome(made, no_network) {
            let found = network::get(&direct, &name).await.unwrap().record;
            assert_eq!(found, made);
            let vtep = StaticVtep::new(ip("203.0.113.9"));
            if outcome(network::vtep_add(&store, &name, &vtep).await, no_network).is_some() {
                outcome(network::vtep_remove(&store, &name, vtep.address).await, no_network);
            }
            outcome(network::remove(&store, &name, false).await, no_network);
        }
        let made = attach(&store, &network, "h1", &EndpointSpec::default()).await;
        if let Some(made) = outcome(made, no_endpoint)
            && round % 2 == 0
        {
            let rest = Duration::ZERO;
            let removed = endpoint::remove(&store, &network.id, &made.id, rest).await;
            outcome(removed, no_endpoint);
        }
    }
    cutting.abort();
    // Whatever was carried out was carried out whole.
    let endpoints = endpoint::list(&direct, &network.id).await.unwrap();
    let mut held = BTreeSet::new();
    for endpoint in &endpoints {
        assert!(endpoint.record.ips.iter().all(|ip| held.insert(*ip)));
    }
    let range = membership::key::Range::Addresses(&network.id);
    let (_, addresses) = direct.list(range).await.unwrap();
    assert_eq!(addresses.len(), held.len());
    let (_, vnis) = direct.list(membership::key::Range::Vnis).await.unwrap();
    assert_eq!(vnis.len(), network::list(&direct).await.unwrap().len());
}

#[test]
fn credentials_are_checked() {
    for version in etcd_servers::Version::ALL {
        common::run(Backend::Etcd(version), async |backend, _| credentials(backend).await);
    }
}

async fn credentials(backend: Backend) {
    let world = World::alone(backend).await;
    let mut raw = world.raw().await;
    raw.user_add("root", "secret", None).await.unwrap();
    raw.role_add("root").await.unwrap();
    raw.user_grant_role("root", "root").await.unwrap();
    raw.auth_enable().await.unwrap();
    let mut config = world.config();
    let refused = |error: store::Error| {
        let text = error.to_string();
        assert!(matches!(error, store::Error::Access { .. }), "{text}");
        assert!(text.contains("check the user, password") && !text.contains("secret"), "{text}");
    };
    let anonymous = Store::lazy(config.clone()).unwrap();
    refused(anonymous.list(membership::key::Range::Networks).await.unwrap_err());
    let user = |password: &str| {
        Some(Credentials { name: "root".to_owned(), password: password.to_owned() })
    };
    config.user = user("wrong");
    assert!(!format!("{config:?}").contains("wrong"));
    refused(Store::connect(config.clone()).await.unwrap_err());
    // Corrected while it runs.
    let store = Store::lazy(config.clone()).unwrap();
    refused(store.status().await.unwrap_err());
    config.user = user("secret");
    store.reload(config).unwrap();
    network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
}

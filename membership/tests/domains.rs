//! Routed networks and what tells them apart: against the embedded store and etcd 3.4 to 3.7.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod common;

use std::collections::BTreeSet;

use common::{Backend, World};
use membership::network::{self, Error, NetworkSpec, UDP_PORT_V4};
use membership::record::Mode;
use membership::restore;

on_each_store!(
    only_one_of_two_that_are_made_at_once_gets_the_subnet,
    overlapping_networks_get_ports_of_their_own,
    ports_that_are_asked_for_must_be_free,
    ports_of_vxlan_networks_are_theirs,
    subnets_that_are_added_are_checked,
    what_is_restored_is_checked,
);

fn spec(name: &str, mode: Mode, subnet: &str) -> NetworkSpec {
    let subnets = vec![subnet.parse().unwrap()];
    NetworkSpec { mode, ..NetworkSpec::new(name.parse().unwrap(), subnets) }
}

/// Networks of one domain with one subnet, from many hosts at once.
async fn only_one_of_two_that_are_made_at_once_gets_the_subnet(_: Backend, world: World) {
    let mut tasks = Vec::new();
    for number in 0..8 {
        let store = world.store();
        tasks.push(tokio::spawn(async move {
            network::create(&store, &spec(&format!("n{number}"), Mode::IpIp, "192.0.2.0/24")).await
        }));
    }
    let mut made = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Ok(record) => made.push(record),
            Err(error @ Error::Domain { .. }) => {
                assert!(error.to_string().contains("--mode ipudp"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(made.len(), 1, "{made:?}");
    let store = world.store();
    let other = network::create(&store, &spec("other", Mode::IpIp, "198.51.100.0/24")).await;
    assert_eq!(other.unwrap().mode, Mode::IpIp);
    // Frames carry their network's number, whatever is inside.
    network::create(&store, &spec("frames", Mode::Vxlan, "192.0.2.0/24")).await.unwrap();
    network::remove(&store, made[0].name.as_str(), false).await.unwrap();
    network::create(&store, &spec("again", Mode::IpIp, "192.0.2.128/25")).await.unwrap();
}

/// A host receives on a port for one kind of network only.
async fn ports_of_vxlan_networks_are_theirs(_: Backend, world: World) {
    let store = world.store();
    let with = |name: &str, mode, subnet: &str, port| NetworkSpec {
        udp_port: Some(port),
        ..spec(name, mode, subnet)
    };
    let first = network::FIRST_UDP_PORT;
    for (name, port) in [("a", first + 1), ("b", first + 1), ("c", 4789)] {
        network::create(&store, &with(name, Mode::Vxlan, "192.0.2.0/24", port)).await.unwrap();
    }
    let error = network::create(&store, &with("d", Mode::Vxlan, "192.0.2.0/24", UDP_PORT_V4)).await;
    assert!(error.unwrap_err().to_string().contains("that of IP in UDP"));
    let error = network::create(&store, &with("e", Mode::IpUdp, "192.0.2.0/24", first)).await;
    assert!(error.unwrap_err().to_string().contains("has one of them"));
    // What chooses for itself keeps off them.
    network::create(&store, &spec("f", Mode::IpUdp, "192.0.2.0/24")).await.unwrap();
    let chosen = network::create(&store, &spec("g", Mode::IpUdp, "192.0.2.0/24")).await.unwrap();
    assert_eq!(chosen.udp_port, Some(first + 2));
    let error = network::create(&store, &with("h", Mode::Vxlan, "192.0.2.0/24", first + 3)).await;
    assert!(error.unwrap_err().to_string().contains("network g of mode ipudp has it"));
}

async fn overlapping_networks_get_ports_of_their_own(_: Backend, world: World) {
    let mut tasks = Vec::new();
    for number in 0..6 {
        let store = world.store();
        tasks.push(tokio::spawn(async move {
            network::create(&store, &spec(&format!("n{number}"), Mode::IpUdp, "192.0.2.0/24")).await
        }));
    }
    let mut ports = BTreeSet::new();
    for task in tasks {
        let (v4, v6) = network::udp_ports(&task.await.unwrap().unwrap());
        assert!(v6 == v4 + 1 && ports.insert(v4) && ports.insert(v6), "{v4} {v6} {ports:?}");
    }
    assert!(ports.contains(&UDP_PORT_V4) && ports.len() == 12, "{ports:?}");
    // What overlaps with nothing shares the ports of all.
    let store = world.store();
    let alone = network::create(&store, &spec("alone", Mode::IpUdp, "198.51.100.0/24")).await;
    assert_eq!(alone.unwrap().udp_port, None);
}

async fn ports_that_are_asked_for_must_be_free(_: Backend, world: World) {
    let store = world.store();
    let asking = |name: &str, port: u16| NetworkSpec {
        udp_port: Some(port),
        ..spec(name, Mode::IpUdp, "192.0.2.0/24")
    };
    let record = network::create(&store, &asking("one", 5000)).await.unwrap();
    assert_eq!(network::udp_ports(&record), (5000, 5001));
    for (port, says) in
        [(5000, "network one"), (4999, "network one"), (4789, "VXLAN"), (4788, "VXLAN")]
    {
        let error = network::create(&store, &asking("two", port)).await.unwrap_err();
        assert!(error.to_string().contains(says), "{port}: {error}");
    }
    network::create(&store, &asking("two", 5002)).await.unwrap();
    let error =
        network::create(&store, &NetworkSpec { mode: Mode::IpIp, ..asking("x", 6000) }).await;
    assert!(matches!(error, Err(Error::ModeOption { option: "udp_port", .. })), "{error:?}");
}

async fn subnets_that_are_added_are_checked(_: Backend, world: World) {
    let store = world.store();
    network::create(&store, &spec("one", Mode::IpIp, "192.0.2.0/24")).await.unwrap();
    network::create(&store, &spec("two", Mode::IpUdp, "198.51.100.0/24")).await.unwrap();
    let add = |subnet: &'static str| {
        network::update(&store, "two", move |record| {
            record.subnets.push(subnet.parse().unwrap());
            Ok(())
        })
    };
    let error = add("192.0.2.64/26").await.unwrap_err();
    assert!(matches!(error, Error::Domain { .. }), "{error}");
    assert_eq!(add("203.0.113.0/24").await.unwrap().subnets.len(), 2);
}

async fn what_is_restored_is_checked(_: Backend, world: World) {
    let store = world.store();
    let record = network::create(&store, &spec("one", Mode::IpIp, "192.0.2.0/24")).await.unwrap();
    network::remove(&store, "one", false).await.unwrap();
    let mut two = spec("two", Mode::IpIp, "192.0.2.0/25");
    two.vni = encap::Vni::new(9000);
    network::create(&store, &two).await.unwrap();
    let error = restore::network(&store, &record).await.unwrap_err();
    assert!(matches!(error, Error::Domain { .. }), "{error}");
    network::remove(&store, "two", false).await.unwrap();
    assert!(restore::network(&store, &record).await.unwrap());
}

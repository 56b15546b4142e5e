//! Ping, TCP and UDP between containers of two and three hosts, over every combination of store,
//! underlay family and underlay model, both families inside.

use testkit::traffic::{Tcp, tcp};
use testkit::{Family, Lab, Store, Suite, Underlay};

use crate::support::{
    AGENTS, DUAL, NETWORK, WITH_ETCD, assert_no_checksum_errors, cluster, containers, exchange,
    word,
};

const BYTES: u64 = 30_000_001;

pub(crate) fn register(suite: &mut Suite) {
    for family in [Family::V4, Family::V6] {
        for underlay in [Underlay::Offloading, Underlay::Plain] {
            for store in [Store::Embedded, Store::Etcd] {
                let (family_word, caps) =
                    (word(family), if store == Store::Etcd { WITH_ETCD } else { AGENTS });
                let name = format!("traffic::two_hosts_{family_word}_{underlay:?}_{store:?}")
                    .to_lowercase();
                suite.test(name, caps, move || two_hosts(underlay, store, family));
            }
        }
        let name = format!("traffic::three_hosts_{}", word(family));
        suite.test(name, AGENTS, move || three_hosts(family));
    }
    suite.test("traffic::same_host", AGENTS, same_host);
    for mtu in [1280, 9000] {
        suite.test(format!("traffic::underlay_mtu_{mtu}"), AGENTS, move || underlay_mtu(mtu));
    }
    suite.test("traffic::two_networks_with_one_subnet", AGENTS, two_networks);
}

fn two_hosts(underlay: Underlay, store: Store, family: Family) {
    let (lab, _agents, containers) = cluster(2, underlay, store, family);
    let [a, b] = &containers[..] else { unreachable!("a container on each host") };
    assert_eq!(a.families().len(), 2, "the network has a subnet of each family");
    let overhead = if family == Family::V4 { 50 } else { 70 };
    assert_eq!((a.mtu(), b.mtu()), (1500 - overhead, 1500 - overhead));
    exchange(&lab, a, b, BYTES);
    exchange(&lab, b, a, BYTES / 4);
    assert_no_checksum_errors(&[a, b]);
}

fn three_hosts(family: Family) {
    let (lab, _agents, containers) = cluster(3, Underlay::Offloading, Store::Embedded, family);
    for from in &containers {
        for to in containers.iter().filter(|to| to.mac() != from.mac()) {
            exchange(&lab, from, to, BYTES / 10);
        }
    }
    assert_no_checksum_errors(&containers.iter().collect::<Vec<_>>());
}

/// Containers of one host reach each other, and still reach another host.
fn same_host() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let third = agents[0].container(&lab, NETWORK, "c3", &[]);
    exchange(&lab, &containers[0], &third, BYTES / 4);
    exchange(&lab, &third, &containers[1], BYTES / 10);
}

fn underlay_mtu(mtu: u16) {
    let lab = Lab::with_hosts(2).mtu(mtu).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    // IPv6 asks for 1280 bytes inside, which the smaller underlay does not have.
    let args = if mtu < 1330 { &DUAL[..2] } else { DUAL };
    agents[0].create_network(NETWORK, args);
    let containers = containers(&lab, &agents);
    assert_eq!(containers[0].mtu(), mtu - 50);
    assert_eq!(containers[1].mtu(), mtu - 50);
    exchange(&lab, &containers[0], &containers[1], BYTES / 4);
}

/// The VNI keeps networks apart, also where they use the same addresses.
fn two_networks() {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    let mut ends = Vec::new();
    for network in ["red", "green"] {
        agents[0].create_network(network, &["--subnet", "198.51.100.0/24"]);
        for (agent, ip) in agents.iter().zip(["198.51.100.10", "198.51.100.130"]) {
            let name = format!("{network}-{}", agent.name());
            ends.push(agent.container(&lab, network, &name, &["--ip", ip]));
        }
    }
    let how = Tcp { bytes: 1_000_000, streams: 1, odd_sizes: false };
    for pair in ends.chunks_exact(2) {
        tcp(&lab, &pair[0], &pair[1], Family::V4, how);
    }
    // Only the own network's container answers: with it gone, the address is silent.
    agents[1].detach("red", &ends[1]);
    assert!(!testkit::traffic::reaches(ends[0].netns(), "198.51.100.130".parse().unwrap()));
    assert!(testkit::traffic::reaches(ends[2].netns(), "198.51.100.130".parse().unwrap()));
}

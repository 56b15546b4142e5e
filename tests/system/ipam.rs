//! Addresses: attaching and detaching while the store is away, what happens to a reserve that was
//! lost, pools that are used up, and garbage.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::traffic;
use testkit::{Agent, Cap, Container, Family, Lab, Store, Suite, Underlay, wait_until};

use crate::faults::{
    SHORT, count, delete, get, network_id, notes, own_endpoints, pins, put, warnings,
};
use crate::support::{DUAL, NETWORK, WITH_ETCD, cluster, measured};

pub(crate) fn register(suite: &mut Suite) {
    suite.timed("ipam::attach_while_the_store_is_away", WITH_ETCD, attach_while_the_store_is_away);
    suite.timed("ipam::detach_while_the_store_is_away", WITH_ETCD, detach_while_the_store_is_away);
    suite.test("ipam::a_lost_reserve_is_quarantined", WITH_ETCD, a_lost_reserve_is_quarantined);
    suite.timed("ipam::a_restored_store_gets_new_reserves", WITH_ETCDCTL, a_restored_store);
    suite.test("ipam::a_reserved_address_by_name", WITH_ETCD, a_reserved_address_by_name);
    suite.test("ipam::a_pool_is_used_up", WITH_ETCD, a_pool_is_used_up);
    suite.test("ipam::garbage_is_found_and_removed", WITH_ETCD, garbage_is_found_and_removed);
}

const WITH_ETCDCTL: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd, Cap::Etcdctl];

/// Addresses of each family that a host has reserved when the configuration does not say otherwise.
const RESERVED: usize = 8;

/// What an agent has reserved in a network on its own host.
fn reserved(agent: &Agent, network: &str) -> Vec<IpAddr> {
    let found = agent.json(&["network", "inspect", network]);
    let listed = found["local"]["reserved"].as_array().cloned().unwrap_or_default();
    listed.iter().map(|ip| ip.as_str().unwrap().parse().unwrap()).collect()
}

fn wait_reserved(agent: &Agent) {
    wait_until("addresses are reserved", Duration::from_secs(50), || {
        (reserved(agent, NETWORK).len() == 2 * RESERVED).then_some(())
    });
}

fn wait_away(agent: &Agent) {
    wait_until("the agent sees that the store is away", Duration::from_secs(20), || {
        (agent.json(&["status"])["store"]["state"] == "away").then_some(())
    });
}

/// The state that an agent lists for the endpoint with this address.
fn state_of(agent: &Agent, ip: IpAddr) -> Option<String> {
    let all = agent.json(&["endpoints"]);
    let has = |item: &&Value| {
        item["ips"].as_array().is_some_and(|ips| ips.iter().any(|it| *it == ip.to_string()))
    };
    let found = all.as_array()?.iter().find(has)?;
    Some(found["state"].as_str()?.to_owned())
}

pub(crate) fn allow_away(agents: &[Agent]) {
    for agent in agents {
        for text in ["store", "lease", "watch", "needs attention"] {
            agent.allow_log(text);
        }
    }
}

/// A sandbox is attached while the store is stopped: it talks on its own host at once and over a
/// restart of the agent, other hosts reach it when the store is back, and what cannot be known to be
/// free is refused.
fn attach_while_the_store_is_away() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    allow_away(&agents);
    let agent = &agents[1];
    wait_reserved(agent);
    let ready = reserved(agent, NETWORK);
    lab.etcd().kill9();
    wait_away(agent);

    let sandbox = lab.sandbox("offline");
    for (flag, value, says) in [
        ("--ip", "198.51.100.200", "198.51.100.200 is none of those"),
        ("--mac", "00:00:5e:00:53:09", "00:00:5e:00:53:09 belongs to none"),
    ] {
        let args = ["attach", NETWORK, "--netns", sandbox.name(), flag, value];
        let refused = agent.try_cli(&args);
        assert!(!refused.status.success(), "{refused}");
        assert!(refused.stderr.contains("the store is away"), "{refused}");
        assert!(refused.stderr.contains(says) && refused.stderr.contains("try:"), "{refused}");
    }
    assert!(notes(agent).len() == 1, "a refused attach leaves no note");

    let asked = Instant::now();
    let offline = agent.attach(&sandbox, NETWORK, &[]);
    let took = asked.elapsed();
    measured("attach, the store away", format_args!("{took:?}"));
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    let address = offline.address(Family::V4);
    assert!(ready.contains(&address), "{address} of {ready:?}");
    assert!(ready.contains(&offline.address(Family::V6)));
    assert_eq!(state_of(agent, address).as_deref(), Some("queued"));
    let wanted = ready.iter().rev().find(|ip| ip.is_ipv4()).unwrap().to_string();
    let asked_for = agent.container(&lab, NETWORK, "wanted", &["--ip", &wanted]);
    assert_eq!(asked_for.address(Family::V4).to_string(), wanted);
    for family in [Family::V4, Family::V6] {
        traffic::ping(containers[1].netns(), offline.address(family), 56);
        traffic::ping(asked_for.netns(), offline.address(family), 56);
        traffic::ping(containers[0].netns(), containers[1].address(family), 56);
    }
    wait_until("status tells of both", Duration::from_secs(10), || {
        warnings(agent)
            .contains("2 endpoints of this host were attached while the store")
            .then_some(())
    });

    // It outlives the agent, whose next run has no store either.
    agent.kill9();
    agent.start_without_waiting();
    wait_until("it is taken over", Duration::from_secs(20), || {
        let answer = agent.try_cli(&["endpoints", "--json"]);
        (answer.status.success() && state_of(agent, address).as_deref() == Some("queued"))
            .then_some(())
    });
    traffic::ping(containers[1].netns(), address, 56);
    let third = agent.container(&lab, NETWORK, "third", &[]);
    assert!(ready.contains(&third.address(Family::V4)));
    let taken = [address, asked_for.address(Family::V4), third.address(Family::V4)];
    assert!(taken[0] != taken[1] && taken[1] != taken[2] && taken[0] != taken[2], "{taken:?}");

    let back = Instant::now();
    lab.etcd().restart();
    for container in [&offline, &asked_for, &third] {
        let ip = container.address(Family::V4);
        wait_until("the other host hears of it", Duration::from_secs(20), || {
            (state_of(&agents[0], ip).as_deref() == Some("attached")).then_some(())
        });
        traffic::ping(containers[0].netns(), ip, 56);
        traffic::ping(containers[0].netns(), container.address(Family::V6), 56);
    }
    measured("published after the store is back", format_args!("{:?}", back.elapsed()));
    wait_until("nothing is wrong any more", Duration::from_secs(20), || {
        (warnings(agent) == "[]").then_some(())
    });
    wait_reserved(agent);
    // The store and the reserve agree: the next one has an address of its own.
    let next = agent.container(&lab, NETWORK, "next", &[]);
    assert!(!taken.contains(&next.address(Family::V4)));
}

/// Detached while the store is stopped: gone here at once, noted over a restart, and gone elsewhere
/// when the store is back; an endpoint that the store never heard of is simply gone.
fn detach_while_the_store_is_away() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    allow_away(&agents);
    let agent = &agents[1];
    let network = network_id(agent);
    let second = agent.container(&lab, NETWORK, "second", &[]);
    wait_reserved(agent);
    lab.etcd().kill9();
    wait_away(agent);
    let before = reserved(agent, NETWORK);
    let offline = agent.container(&lab, NETWORK, "offline", &[]);
    assert_eq!(reserved(agent, NETWORK).len(), before.len() - 2);
    agent.detach(NETWORK, &offline);
    assert_eq!(reserved(agent, NETWORK), before, "nobody else ever knew of it");
    assert_eq!(notes(agent).len(), 2);

    let _ = agent.cli(&["detach", NETWORK, "--netns", second.netns().name()]);
    assert!(!traffic::reaches(containers[1].netns(), second.address(Family::V4)));
    assert_eq!(notes(agent).len(), 2, "it waits for the store");
    agent.kill9();
    agent.start_without_waiting();
    wait_until("the agent answers", Duration::from_secs(20), || {
        agent.try_cli(&["endpoints"]).status.success().then_some(())
    });
    assert_eq!(notes(agent).len(), 2, "it waits over a restart");
    lab.etcd().restart();
    wait_until("the other host hears of it", Duration::from_secs(20), || {
        let gone = state_of(&agents[0], second.address(Family::V4)).is_none();
        (gone && notes(agent).len() == 1).then_some(())
    });
    let addresses = format!("/skybridge/v1/ipam/{network}/addresses/");
    assert_eq!(count(&lab, &addresses), 4, "two endpoints with two addresses each");
    wait_until("nothing is wrong any more", Duration::from_secs(10), || {
        (warnings(agent) == "[]").then_some(())
    });
    traffic::ping(containers[0].netns(), containers[1].address(Family::V4), 56);

    // A host that leaves the network leaves no reserve there.
    agent.detach(NETWORK, &containers[1]);
    wait_until("the reserve is given back", Duration::from_secs(50), || {
        let found = agents[0].json(&["network", "inspect", NETWORK]);
        let pools = found["pools"].as_array().cloned().unwrap_or_default();
        let rows = pools.iter().flat_map(|pool| pool["hosts"].as_array().cloned().unwrap());
        let theirs: u64 = rows
            .filter(|row| row["host"] == agent.name())
            .map(|row| row["reserved"].as_u64().unwrap())
            .sum();
        (theirs == 0 && pins(&network) == 1).then_some(())
    });
}

/// An address that another host has reserved is for whoever asks for it by name, while that host is
/// there to give it up; nobody gets one of a host that is not.
fn a_reserved_address_by_name() {
    let lab = Lab::with_hosts(2).build();
    let spec = |host| lab.spec(host, Store::Etcd, Family::V4).config(SHORT);
    let agents = [1, 2].map(|host| lab.start_agent(host, spec(host)));
    agents[0].create_network(NETWORK, DUAL);
    let containers = crate::support::containers(&lab, &agents);
    allow_away(&agents);
    let [owner, other] = &agents;
    agents.iter().for_each(wait_reserved);
    let theirs = reserved(owner, NETWORK);
    let asked = Instant::now();
    let named = other.container(&lab, NETWORK, "named", &["--ip", &theirs[0].to_string()]);
    measured(
        "attach with an address that another host had reserved",
        format_args!("{:?}", asked.elapsed()),
    );
    assert_eq!(named.address(Family::V4), theirs[0]);
    traffic::ping(containers[0].netns(), theirs[0], 56);
    wait_until("another one is reserved in its place", Duration::from_secs(10), || {
        let now = reserved(owner, NETWORK);
        (now.len() == 2 * RESERVED && !now.contains(&theirs[0])).then_some(())
    });

    owner.signal(Signal::SIGSTOP);
    wait_until("the host that is stopped is away", Duration::from_secs(30), || {
        let hosts = other.json(&["hosts"]);
        let host = hosts.as_array()?.iter().find(|host| host["name"] == owner.name())?;
        (host["state"] == "suspect").then_some(())
    });
    let (sandbox, ip) = (lab.sandbox("refused"), theirs[1].to_string());
    let refused = other.try_cli(&["attach", NETWORK, "--netns", sandbox.name(), "--ip", &ip]);
    owner.signal(Signal::SIGCONT);
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("does not give it up now"), "{refused}");
}

/// The store gave a reserved address to somebody else: that one has it, the endpoint that was
/// attached with it is cut off and named until it is detached, and nobody else notices.
fn a_lost_reserve_is_quarantined() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    allow_away(&agents);
    agents[1].allow_log("quarantined");
    let agent = &agents[1];
    let network = network_id(agent);
    wait_reserved(agent);
    lab.etcd().kill9();
    wait_away(agent);
    let offline = agent.container(&lab, NETWORK, "offline", &[]);
    let address = offline.address(Family::V4);
    agent.kill9();
    lab.etcd().restart();
    wait_until("the first host has the store again", Duration::from_secs(20), || {
        (agents[0].json(&["status"])["store"]["state"] == "connected").then_some(())
    });
    // Somebody takes the reserve away by hand.
    let blocks = format!("/skybridge/v1/ipam/{network}/blocks/");
    for block in blocks_of(&lab, &blocks) {
        let record: Value = serde_json::from_str(&get(&lab, &block)).unwrap();
        if record["host"] == agent.name() {
            let mut changed = record.clone();
            let bits =
                |name: &str| u64::from_str_radix(record[name].as_str().unwrap(), 16).unwrap();
            let left = bits("allocated") & !bits("reserved");
            changed["allocated"] = format!("{left:016x}").into();
            changed["reserved"] = format!("{:016x}", 0).into();
            put(&lab, &block, &changed.to_string());
        }
    }
    let holder = agents[0].container(&lab, NETWORK, "holder", &["--ip", &address.to_string()]);
    agent.start();
    wait_until("it is quarantined", Duration::from_secs(20), || {
        let text = warnings(agent);
        let named = text.contains(&address.to_string()) && text.contains("is cut off");
        (named && state_listed(agent, "quarantined")).then_some(())
    });
    assert!(warnings(agent).contains("in use by endpoint"), "{}", warnings(agent));
    traffic::ping(containers[1].netns(), address, 56);
    traffic::ping(containers[0].netns(), address, 56);
    assert!(!traffic::reaches(offline.netns(), containers[0].address(Family::V4)));
    assert_eq!(state_of(&agents[0], address).as_deref(), Some("attached"));
    // Detached and attached again it is an endpoint like any other; the holder keeps what it has.
    agent.detach(NETWORK, &offline);
    let again = agent.attach(offline.netns(), NETWORK, &[]);
    assert_ne!(again.address(Family::V4), address);
    traffic::ping(again.netns(), holder.address(Family::V4), 56);
    wait_until("nothing is wrong any more", Duration::from_secs(20), || {
        (warnings(agent) == "[]").then_some(())
    });
}

/// The store is put back to a backup of before most of what is attached and reserved: the endpoints
/// are written again with what was reserved for them, and only then is anything reserved anew, so
/// that a host attaches without the store with what nobody else has.
fn a_restored_store() {
    let lab = Lab::with_hosts(2).build();
    let spec = |host| lab.spec(host, Store::Etcd, Family::V4).config(SHORT);
    let agents: Vec<Agent> = (1..=2).map(|host| lab.start_agent(host, spec(host))).collect();
    allow_away(&agents);
    agents[0].create_network(NETWORK, DUAL);
    let network = network_id(&agents[0]);
    let mut attached = crate::support::containers(&lab, &agents);
    agents.iter().for_each(wait_reserved);
    let file = lab.directory().join("backup.db");
    lab.etcd().backup(&file);
    // Some were in reserve then, the others lie in blocks that nobody had.
    for number in 0..RESERVED + 2 {
        attached.push(agents[number % 2].container(&lab, NETWORK, &format!("later{number}"), &[]));
    }
    agents.iter().for_each(wait_reserved);
    let queued = {
        lab.etcd().kill9();
        wait_away(&agents[1]);
        agents[1].container(&lab, NETWORK, "queued", &[])
    };
    lab.etcd().restore(&file);
    lab.etcd().wait_healthy();
    let back = Instant::now();
    attached.push(queued);
    let addresses = format!("/skybridge/v1/ipam/{network}/addresses/");
    wait_until("all endpoints are in the store again", Duration::from_secs(30), || {
        (count(&lab, &addresses) == 2 * attached.len() as u64).then_some(())
    });
    measured("endpoints are whole again after", format_args!("{:?}", back.elapsed()));
    for agent in &agents {
        assert!(agent.log().contains("gone back"), "{} has noticed", agent.name());
        wait_until("addresses are reserved anew", Duration::from_secs(60), || {
            (reserved(agent, NETWORK).len() == 2 * RESERVED).then_some(())
        });
    }
    measured("reserves are whole again after", format_args!("{:?}", back.elapsed()));
    let books: Vec<IpAddr> = agents.iter().flat_map(|agent| reserved(agent, NETWORK)).collect();
    let used = attached.iter().flat_map(|it| [it.address(Family::V4), it.address(Family::V6)]);
    let all: BTreeSet<IpAddr> = books.iter().copied().chain(used).collect();
    assert_eq!(all.len(), 4 * RESERVED + 2 * attached.len(), "each has one owner");
    for agent in &agents {
        let held: u64 = agents[0].json(&["network", "inspect", NETWORK])["pools"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|pool| pool["hosts"].as_array().cloned().unwrap())
            .filter(|row| row["host"] == agent.name())
            .map(|row| row["reserved"].as_u64().unwrap())
            .sum();
        assert_eq!(held, 2 * RESERVED as u64, "the store says so of {}", agent.name());
    }
    assert!(agents[0].json(&["gc"]).as_array().unwrap().is_empty());

    // Both attach without the store, and all of it is theirs when it is back.
    lab.etcd().kill9();
    agents.iter().for_each(wait_away);
    for agent in &agents {
        let name = format!("without-{}", agent.name());
        attached.push(agent.container(&lab, NETWORK, &name, &[]));
    }
    lab.etcd().restart();
    lab.etcd().wait_healthy();
    wait_until("they are in the store", Duration::from_secs(20), || {
        (count(&lab, &addresses) == 2 * attached.len() as u64).then_some(())
    });
    for agent in &agents {
        wait_until("nothing is wrong any more", Duration::from_secs(20), || {
            (warnings(agent) == "[]").then_some(())
        });
    }
    for to in &attached[1..] {
        traffic::ping(attached[0].netns(), to.address(Family::V4), 56);
    }
}

fn state_listed(agent: &Agent, state: &str) -> bool {
    own_endpoints(agent).iter().any(|(_, found)| found == state)
}

/// The keys of blocks, from the addresses that exist.
fn blocks_of(lab: &Lab, prefix: &str) -> Vec<String> {
    let network: ipnet::Ipv4Net = "198.51.100.0/24".parse().unwrap();
    let blocks = network.subnets(29).unwrap().map(|block| format!("{prefix}{block}"));
    blocks.filter(|key| count(lab, key) == 1).collect()
}

/// A small pool fills: `status` warns before it is empty, `inspect` says who has what, excluded
/// addresses are never given, and the one too many is told why and what to do.
fn a_pool_is_used_up() {
    let (lab, agents, _) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    agents[0].allow_log("needs attention");
    agents[1].allow_log("needs attention");
    let excluded = ["--exclude", "203.0.113.4-203.0.113.7", "--exclude", "203.0.113.12"];
    let subnet = ["--subnet", "203.0.113.0/28"];
    agents[0].create_network("small", &[&subnet[..], &excluded].concat());
    let refused = agents[0].try_cli(&[
        "network",
        "create",
        "bad",
        "--subnet",
        "192.0.2.0/24",
        "--exclude",
        "203.0.113.9",
    ]);
    assert!(refused.stderr.contains("203.0.113.9 cannot be excluded"), "{refused}");
    let pool = |agent: &Agent| agent.json(&["network", "inspect", "small"])["pools"][0].clone();
    // 16 addresses less two ends and five excluded ones.
    assert_eq!(pool(&agents[0])["capacity"], 9);
    let mut made: Vec<Container> = Vec::new();
    for number in 0..9 {
        let agent = &agents[number % 2];
        let container = agent.container(&lab, "small", &format!("p{number}"), &[]);
        let IpAddr::V4(ip) = container.address(Family::V4) else { unreachable!() };
        let last = ip.octets()[3];
        assert!(!(4..8).contains(&last) && last != 12, "{ip} is excluded");
        made.push(container);
        let says = match number + 1 {
            8 => "is filling up: 8 of 9",
            9 => "is used up: 9 of 9",
            _ => continue,
        };
        wait_until("status warns", Duration::from_secs(10), || {
            (agents.iter().all(|agent| warnings(agent).contains(says))).then_some(())
        });
    }
    let full = pool(&agents[1]);
    assert_eq!((&full["used"], &full["percent"]), (&9.into(), &100.into()), "{full}");
    let hosts: Vec<u64> = full["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| host["endpoints"].as_u64().unwrap())
        .collect();
    assert_eq!(hosts, [5, 4]);
    let sandbox = lab.sandbox("one-too-many");
    let refused = agents[1].try_cli(&["attach", "small", "--netns", sandbox.name()]);
    assert!(!refused.status.success());
    for says in ["no address is left in 203.0.113.0/28", "9 of 9 are in use", "larger subnet"] {
        assert!(refused.stderr.contains(says), "{refused}");
    }
    let taken =
        agents[1].try_cli(&["attach", "small", "--netns", sandbox.name(), "--ip", "203.0.113.5"]);
    assert!(taken.stderr.contains("an excluded address"), "{taken}");
    for (number, container) in made.iter().enumerate() {
        agents[number % 2].detach("small", container);
    }
    wait_until("nothing is wrong any more", Duration::from_secs(10), || {
        (warnings(&agents[0]) == "[]").then_some(())
    });
}

/// What a host leaves that will not come back, and what hangs on a network that somebody deleted, is
/// shown with its reason and removed on demand; what lives stays.
fn garbage_is_found_and_removed() {
    let lab = Lab::with_hosts(3).build();
    let spec = |host| lab.spec(host, Store::Etcd, Family::V4).config(SHORT);
    let agents: Vec<Agent> = (1..=3).map(|host| lab.start_agent(host, spec(host))).collect();
    agents[0].create_network(NETWORK, DUAL);
    let network = network_id(&agents[0]);
    for agent in &agents {
        for text in ["needs attention", "lease", "expired", "absent", "store", "watch"] {
            agent.allow_log(text);
        }
    }
    let containers = crate::support::containers(&lab, &agents);
    for agent in &agents {
        wait_reserved(agent);
    }
    let rows = |args: &[&str]| agents[0].json(args).as_array().cloned().unwrap();
    let keys = |rows: &[Value], kind: &str| -> Vec<String> {
        let of_kind = rows.iter().filter(|row| row["kind"] == kind);
        of_kind.map(|row| row["key"].as_str().unwrap().to_owned()).collect()
    };
    assert!(rows(&["gc"]).is_empty());
    let refused = agents[0].try_cli(&["gc", "--host", "h3"]);
    assert!(refused.stderr.contains("h3 is present"), "{refused}");
    let refused = agents[0].try_cli(&["gc", "--host", "h9"]);
    assert!(refused.stderr.contains("h9 is not known"), "{refused}");

    agents[2].kill9();
    wait_until("its lease has ended", Duration::from_secs(20), || {
        (count(&lab, "/skybridge/v1/hosts/h3") == 0).then_some(())
    });
    // The grace is a day: nothing is garbage by itself.
    assert!(rows(&["gc", "--apply"]).is_empty());
    assert_eq!(count(&lab, "/skybridge/v1/absent/h3"), 1, "its grace has begun");
    let gone = containers[2].address(Family::V4);
    let found = rows(&["gc", "--host", "h3"]);
    assert_eq!(keys(&found, "host"), ["known/h3"]);
    assert_eq!(keys(&found, "endpoint").len(), 1, "{found:?}");
    assert!(!keys(&found, "block").is_empty(), "what it reserved too: {found:?}");
    assert!(found.iter().all(|row| row["state"] == "found"));
    assert!(found[0]["reason"].as_str().unwrap().contains("h3"), "{found:?}");
    let of = |what: &str| format!("/skybridge/v1/{what}");
    let endpoints = of(&format!("endpoints/{network}/"));
    assert_eq!(count(&lab, &endpoints), 3, "nothing was removed");
    let text = agents[0].cli(&["gc", "--host", "h3"]).stdout;
    assert!(text.contains("nothing was removed") && text.contains(&gone.to_string()), "{text}");

    let removed = rows(&["gc", "--host", "h3", "--apply"]);
    assert!(removed.iter().all(|row| row["state"] == "removed"), "{removed:?}");
    for prefix in [of("known/h3"), of("absent/h3"), of(&format!("ipam/{network}/addresses/{gone}"))]
    {
        assert_eq!(count(&lab, &prefix), 0, "{prefix} is left");
    }
    assert_eq!(count(&lab, &endpoints), 2);
    wait_until("the tables forget it", Duration::from_secs(5), || {
        state_of(&agents[0], gone).is_none().then_some(())
    });
    traffic::ping(containers[0].netns(), containers[1].address(Family::V4), 56);
    assert!(rows(&["gc"]).is_empty());

    // An endpoint's key that somebody deletes leaves its addresses and its MAC, while its owner is
    // down. Then it is written again.
    let spare = agents[1].container(&lab, NETWORK, "spare", &[]);
    let (id, _) = own_endpoints(&agents[1])
        .into_iter()
        .find(|(id, _)| {
            get(&lab, &format!("{endpoints}{id}")).contains(&spare.address(Family::V4).to_string())
        })
        .unwrap();
    agents[1].kill9();
    delete(&lab, &format!("{endpoints}{id}"));
    let found = rows(&["gc"]);
    assert_eq!((keys(&found, "address").len(), keys(&found, "mac").len()), (2, 1), "{found:?}");
    let removed = rows(&["gc", "--apply"]);
    assert!(removed.iter().all(|row| row["state"] == "removed"), "{removed:?}");
    assert!(rows(&["gc"]).is_empty());
    agents[1].start();
    wait_until("its owner writes it again", Duration::from_secs(20), || {
        let there = count(&lab, &format!("{endpoints}{id}")) == 1;
        let known = state_of(&agents[0], spare.address(Family::V4)).is_some();
        (there && known && count(&lab, &of("absent/h2")) == 0).then_some(())
    });
    traffic::ping(containers[0].netns(), spare.address(Family::V4), 56);
    assert!(rows(&["gc"]).is_empty());

    // A network's record that somebody deletes leaves its name, its number and its blocks: for as
    // long as somebody lives in it, all of it stays.
    let record = of(&format!("networks/{network}"));
    let kept = get(&lab, &record);
    delete(&lab, &record);
    assert!(rows(&["gc"]).is_empty());
    put(&lab, &record, &kept);
    wait_until("it carries traffic again", Duration::from_secs(15), || {
        traffic::reaches(containers[0].netns(), containers[1].address(Family::V4)).then_some(())
    });
    agents[1].create_network("bare", &["--subnet", "203.0.113.0/24"]);
    let bare = agents[1].json(&["network", "inspect", "bare"])["id"].as_str().unwrap().to_owned();
    let lone = agents[1].container(&lab, "bare", "lone", &[]);
    agents[1].detach("bare", &lone);
    delete(&lab, &of(&format!("networks/{bare}")));
    let found = rows(&["gc"]);
    assert_eq!(keys(&found, "name"), ["names/bare"], "{found:?}");
    assert_eq!((keys(&found, "vni").len(), keys(&found, "addresses").len()), (1, 1), "{found:?}");
    let removed = rows(&["gc", "--apply"]);
    assert!(removed.iter().all(|row| row["state"] == "removed"), "{removed:?}");
    for prefix in [of("names/bare"), of(&format!("ipam/{bare}/"))] {
        assert_eq!(count(&lab, &prefix), 0, "{prefix} is left");
    }
    agents[1].create_network("bare", &["--subnet", "203.0.113.0/24"]);
}

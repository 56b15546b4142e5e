//! Endpoints come, are reachable at once, and go without a trace.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use testkit::traffic::{self, finish, start};
use testkit::{Agent, Family, Lab, Store, Suite, Underlay, wait_until};

use crate::faults::network_id;
use crate::support::{AGENTS, DUAL, NETWORK, WITH_ETCD, cluster, exchange, measured, number};

pub(crate) fn register(suite: &mut Suite) {
    for (name, store, caps) in
        [("embedded", Store::Embedded, AGENTS), ("etcd", Store::Etcd, WITH_ETCD)]
    {
        suite.timed(format!("attach::reachable_at_once_{name}"), caps, move || {
            reachable_at_once(store);
        });
    }
    suite.test("attach::asked_addresses_are_given", AGENTS, asked_addresses_are_given);
    suite.test("attach::detach_leaves_nothing", AGENTS, detach_leaves_nothing);
    suite.test("attach::cleanup_leaves_nothing", AGENTS, cleanup_leaves_nothing);
    suite.test("attach::an_endpoint_moves", AGENTS, an_endpoint_moves);
    suite.test("attach::listings_show_it", AGENTS, listings_show_it);
}

fn unix_us() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1e6
}

/// From the return of `attach` to the first answer, seen by one container that has been asking for
/// the address all the time and by one that never had.
fn reachable_at_once(store: Store) {
    let (lab, agents, containers) = cluster(3, Underlay::Offloading, store, Family::V4);
    let mut worst: f64 = 0.0;
    for (round, host) in ["50", "51", "52", "53", "54"].into_iter().enumerate() {
        let address = format!("198.51.100.{host}");
        let name = format!("n{round}");
        let sandbox = lab.sandbox(&name);
        let asking = start(
            containers[0].netns(),
            &lab.logs(),
            &format!("probe{round}"),
            &["probe", &address, "--deadline", "20"],
        );
        // Long enough for its kernel to hold a failed neighbor entry.
        std::thread::sleep(Duration::from_millis(300));
        let begun = unix_us();
        let _ = agents[1].attach(&sandbox, NETWORK, &["--ip", &address]);
        let returned = unix_us();
        let fresh = finish(containers[2].netns(), &["probe", &address, "--deadline", "20"]);
        let fresh = number(&fresh.expect_success().json(), "elapsed_ms");
        let asking = asking.finish(Duration::from_secs(30)).expect_success().json();
        let waited = (number(&asking, "reached_unix_us") - returned) / 1e3;
        measured(
            &format!("attach with {store:?}, round {round}"),
            format_args!(
                "command and inspection {:.1} ms; then reachable after {fresh:.1} ms (fresh), \
                 {waited:.1} ms (asking)",
                (returned - begun) / 1e3
            ),
        );
        worst = worst.max(fresh).max(waited);
    }
    measured(&format!("attach with {store:?}, worst of five"), format_args!("{worst:.1} ms"));
    assert!(worst < 1000.0, "reachable only after {worst:.1} ms");
}

fn asked_addresses_are_given() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let asked = agents[1].container(
        &lab,
        NETWORK,
        "asked",
        &[
            "--ip",
            "198.51.100.77",
            "--ip",
            "2001:db8:1::77",
            "--mac",
            "02:00:5e:00:53:77",
            "--ifname",
            "net0",
            "--name",
            "asked",
        ],
    );
    assert_eq!(asked.ifname(), "net0");
    assert_eq!(asked.mac(), [0x02, 0, 0x5e, 0, 0x53, 0x77]);
    assert_eq!(asked.address(Family::V4), "198.51.100.77".parse::<IpAddr>().unwrap());
    assert_eq!(asked.address(Family::V6), "2001:db8:1::77".parse::<IpAddr>().unwrap());
    exchange(&lab, &containers[0], &asked, 1_000_000);
}

fn links(netns: &testkit::Netns) -> BTreeSet<String> {
    let listing = netns.ip_json("link show");
    listing
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
        .collect()
}

/// Whether the listing names the address anywhere.
fn lists(agent: &Agent, listing: &str, text: &str) -> bool {
    agent.json(&[listing]).to_string().contains(text)
}

fn detach_leaves_nothing() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let before: Vec<_> = agents.iter().map(|agent| links(agent.netns())).collect();
    let gone = agents[1].container(&lab, NETWORK, "gone", &[]);
    let address = gone.address(Family::V4);
    exchange(&lab, &containers[0], &gone, 1_000_000);
    agents[1].detach(NETWORK, &gone);
    assert_eq!(links(gone.netns()), ["lo".to_owned()].into(), "only the loopback is left");
    let text = format!("{address}");
    wait_until("the other host forgets it", Duration::from_secs(5), || {
        let known = ["endpoints", "neighbors"].iter().any(|listing| {
            // The address followed by anything but a digit.
            let quoted = format!("\"{text}\"");
            let prefixed = format!("\"{text}/");
            lists(&agents[0], listing, &quoted) || lists(&agents[0], listing, &prefixed)
        });
        (!known).then_some(())
    });
    assert!(!traffic::reaches(containers[0].netns(), address));
    let after: Vec<_> = agents.iter().map(|agent| links(agent.netns())).collect();
    assert_eq!(before, after, "links of the hosts");
    // Again, and by a namespace that is gone: neither is a reason to fail for long.
    let again = agents[1].try_cli(&["detach", NETWORK, "--netns", gone.netns().name()]);
    assert!(matches!(again.code(), 0 | 1), "{again}");
}

/// Everything on a host that an agent could leave behind of `network`. Mounts are those of the whole
/// machine, on which other agents may come and go meanwhile.
fn traces(agent: &Agent, network: &str) -> BTreeSet<String> {
    let mut traces: BTreeSet<String> =
        links(agent.netns()).into_iter().map(|link| format!("link {link}")).collect();
    let nft = agent.netns().exec("nft", &["list", "tables"]);
    traces.extend(nft.lines().map(|line| format!("nft {line}")));
    traces.extend(agent.netns().ip("rule").lines().map(|line| format!("rule {}", line.trim())));
    traces.extend(agent.netns().ip("route").lines().map(|line| format!("route {}", line.trim())));
    let state = agent.directory().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    traces.extend(
        mounts
            .lines()
            .filter(|line| line.contains(network) || line.contains(&state))
            .map(|line| format!("mount {line}")),
    );
    traces
}

fn cleanup_leaves_nothing() {
    let lab = Lab::with_hosts(1).build();
    let agent = lab.agent(1, lab.spec(1, Store::Embedded, Family::V4));
    agent.start();
    agent.create_network(NETWORK, DUAL);
    let network = network_id(&agent);
    let before = traces(&agent, &network);
    let containers: Vec<_> =
        ["c1", "c2"].iter().map(|name| agent.container(&lab, NETWORK, name, &[])).collect();
    traffic::ping(containers[0].netns(), containers[1].address(Family::V4), 56);
    agent.stop();
    assert_ne!(traces(&agent, &network), before, "it is pinned");
    // Stopped is not removed: containers keep their interfaces over an upgrade.
    assert!(links(containers[0].netns()).contains("eth0"));
    let cleaned = agent.clean_up();
    assert_eq!(cleaned.code(), 0, "{cleaned}");
    for container in &containers {
        assert_eq!(links(container.netns()), ["lo".to_owned()].into());
    }
    assert_eq!(traces(&agent, &network), before);
    let again = agent.clean_up();
    assert_eq!(again.code(), 0, "with nothing left to remove: {again}");
}

/// The address and MAC of an endpoint appear on another host; everybody follows.
fn an_endpoint_moves() {
    let (lab, agents, containers) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    let place = ["--ip", "198.51.100.99", "--mac", "02:00:5e:00:53:99"];
    let first = agents[1].container(&lab, NETWORK, "m1", &place);
    let address = first.address(Family::V4);
    traffic::ping(containers[0].netns(), address, 56);
    agents[1].detach(NETWORK, &first);
    let second = agents[2].container(&lab, NETWORK, "m2", &place);
    assert_eq!(second.mac(), first.mac());
    let ((), elapsed) = wait_until("the move is followed", Duration::from_secs(5), || {
        traffic::reaches(containers[0].netns(), address).then_some(())
    });
    measured("a move is followed after", format_args!("{elapsed:?}"));
    exchange(&lab, &containers[1], &second, 1_000_000);
}

fn listings_show_it() {
    let (_lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    for agent in &agents {
        for container in &containers {
            let address = container.address(Family::V4).to_string();
            let mac = container.mac().map(|byte| format!("{byte:02x}")).join(":");
            wait_until("every listing has it", Duration::from_secs(5), || {
                let all = lists(agent, "endpoints", &address)
                    && lists(agent, "neighbors", &address)
                    && lists(agent, "fdb", &mac);
                all.then_some(())
            });
        }
        let hosts = agent.json(&["hosts"]).to_string();
        assert!(hosts.contains("\"h1\"") && hosts.contains("\"h2\""), "{hosts}");
        let networks: Value = agent.json(&["network", "ls"]);
        assert!(networks.to_string().contains("7001"), "{networks}");
        for listing in [
            &["status"][..],
            &["hosts"],
            &["endpoints"],
            &["fdb"],
            &["neighbors"],
            &["drops"],
            &["network", "ls"],
            &["network", "inspect", NETWORK],
        ] {
            assert!(!agent.cli(listing).stdout.trim().is_empty(), "{listing:?} says nothing");
        }
    }
}

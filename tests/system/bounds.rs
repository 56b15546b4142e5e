//! Limits that are named and shown, overflow that is counted, and totals that never fall.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::traffic::{self, next_port, start};
use testkit::{Agent, Container, Family, Lab, Store, Suite, Underlay, wait_until};

use crate::support::{AGENTS, NETWORK, carry, cluster, drops, measured};

pub(crate) fn register(suite: &mut Suite) {
    suite.test("bounds::totals_survive_ports", AGENTS, totals_survive_ports);
    suite.test("bounds::limits_are_shown", AGENTS, limits_are_shown);
    suite.timed("bounds::overflow_is_counted", AGENTS, overflow_is_counted);
}

/// A counter of the network in `skybridge stats`.
fn total(agent: &Agent, name: &str) -> u64 {
    let stats = agent.json(&["stats"]);
    let networks = stats["networks"].as_array().unwrap();
    let network = networks.iter().find(|network| network["network"] == NETWORK);
    let counters = network.and_then(|network| network["counters"].as_array());
    let mut counters = counters.into_iter().flatten();
    counters.find(|counter| counter["name"] == name).map_or(0, |it| it["value"].as_u64().unwrap())
}

/// The row of a limit.
pub(crate) fn limit(agent: &Agent, name: &str) -> Value {
    let stats = agent.json(&["stats"]);
    let limits = stats["limits"].as_array().cloned().unwrap_or_default();
    limits.into_iter().find(|limit| limit["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// A line of the metrics that begins with these words.
fn metric(agent: &Agent, begins: &str) -> Option<f64> {
    use std::io::{Read as _, Write as _};
    let text = agent.netns().enter(|| {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9474").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let line = text.lines().find(|line| line.starts_with(begins))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// What a network has counted stays when its last endpoint on this host goes, and goes on when one
/// comes again: traffic and drops, in listings and metrics.
fn totals_survive_ports() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let (agent, from) = (&agents[0], &containers[0]);
    let nobody = || {
        let asked = ["-c", "1", "-W", "1", "198.51.100.250"];
        assert!(!from.netns().try_exec("ping", &asked).status.success());
    };
    let unknown = || drops(agent, "out_neighbor_unknown");
    carry(&lab, from, &containers[1], 200_000);
    nobody();
    let counted = (total(agent, "frames_out"), total(agent, "bytes_in"), unknown());
    assert!(counted.0 > 100 && counted.1 > 1000 && counted.2 > 0, "{counted:?}");
    let again = |before: (u64, u64, u64)| {
        let now = (total(agent, "frames_out"), total(agent, "bytes_in"), unknown());
        assert!(now.0 >= before.0 && now.1 >= before.1 && now.2 >= before.2, "{before:?} {now:?}");
        now
    };
    let mut before = counted;
    for _ in 0..3 {
        agent.detach(NETWORK, from);
        before = again(before);
        let back = agent.attach(from.netns(), NETWORK, &[]);
        before = again(before);
        traffic::ping(back.netns(), containers[1].address(Family::V4), 56);
        nobody();
        let now = again(before);
        assert!(now.0 > before.0 && now.2 > before.2, "nothing was added: {before:?} {now:?}");
        before = now;
    }
}

/// Every limit has its use and its high-water mark, in the listing and in the metrics.
fn limits_are_shown() {
    let lab = Lab::with_hosts(1).build();
    let spec = lab.spec(1, Store::Embedded, Family::V4).args(&["--metrics", "127.0.0.1:9474"]);
    let agent = lab.start_agent(1, spec);
    agent.create_network(NETWORK, crate::support::DUAL);
    let sandboxes: Vec<Container> =
        (0..3).map(|at| agent.container(&lab, NETWORK, &format!("c{at}"), &[])).collect();
    let stats = agent.json(&["stats"]);
    let limits = stats["limits"].as_array().unwrap();
    assert!(limits.len() >= 10, "{limits:?}");
    for limit in limits {
        let number = |key: &str| limit[key].as_u64();
        assert!(number("limit") > Some(0), "{limit}");
        if let Some(used) = number("used") {
            assert!(number("high") >= Some(used), "{limit}");
            assert!(Some(used) <= number("limit"), "{limit}");
        }
        let name = limit["name"].as_str().unwrap();
        assert_eq!(
            metric(&agent, &format!("skybridge_limit{{name=\"{name}\"}}")),
            number("limit").map(|limit| limit as f64),
            "{name}"
        );
    }
    assert_eq!(limit(&agent, "endpoints_per_network")["used"], 3);
    for container in &sandboxes[1..] {
        agent.detach(NETWORK, container);
    }
    let endpoints = limit(&agent, "endpoints_per_network");
    assert_eq!((&endpoints["used"], &endpoints["high"]), (&1.into(), &3.into()));
    let text = agent.cli(&["stats"]).stdout;
    for word in ["limits", "HIGH", "port_queue", "open_files"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

/// An agent that does not run for a while, under load: what its TAP and its receive sockets had no
/// room for has a name and a number, and good traffic goes on afterwards.
fn overflow_is_counted() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    for agent in &agents {
        for text in ["store", "lease", "watch", "needs attention"] {
            agent.allow_log(text);
        }
    }
    let flood = || {
        let to = format!("{}:{}", containers[1].address(Family::V4), next_port());
        let send = ["udp-send", &to, "--seconds", "6", "--rate", "40000", "--size", "900"];
        let receiver = start(containers[1].netns(), &lab.logs(), "flood", &["udp-receive", &to]);
        [receiver, start(containers[0].netns(), &lab.logs(), "flood", &send)]
    };
    for (stopped, reason) in [(0, "out_port_overflow"), (1, "in_underlay_overflow")] {
        let before = drops(&agents[stopped], reason);
        let flows = flood();
        let frames = total(&agents[0], "frames_out");
        wait_until("it flows", Duration::from_secs(20), || {
            (total(&agents[0], "frames_out") > frames + 1000).then_some(())
        });
        agents[stopped].signal(Signal::SIGSTOP);
        // Long enough for a hundred times what the queue takes.
        std::thread::sleep(Duration::from_secs(3));
        agents[stopped].signal(Signal::SIGCONT);
        let (counted, _) =
            wait_until(&format!("{reason} is counted"), Duration::from_secs(20), || {
                let now = drops(&agents[stopped], reason);
                (now > before + 100).then_some(now - before)
            });
        measured(reason, counted);
        drop(flows);
        wait_until("good traffic goes on", Duration::from_secs(20), || {
            traffic::reaches(containers[0].netns(), containers[1].address(Family::V4)).then_some(())
        });
    }
    let listed = agents[0].json(&["drops"]);
    let overflow = listed.as_array().unwrap().iter().find(|it| it["reason"] == "out_port_overflow");
    assert_eq!(overflow.unwrap()["network"], NETWORK, "{listed}");
    let buffer = limit(&agents[1], "underlay_receive_buffer");
    let high = buffer["high"].as_u64().unwrap();
    assert!(high > 1_000_000, "the buffer was full: {buffer}");
    // The counter of the device stays over a restart of the agent; ours begins anew.
    agents[0].kill9();
    agents[0].start();
    assert_eq!(drops(&agents[0], "out_port_overflow"), 0);
}

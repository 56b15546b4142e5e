//! Agents and stores that die under traffic.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::traffic::{self, next_port, start};
use testkit::{Agent, Container, Family, Lab, Process, Store, Suite, Underlay, wait_until};

use crate::privileges::{UNDER_UNIT, unit};
use crate::support::{
    AGENTS, DUAL, NETWORK, WITH_ETCD, cluster, containers, exchange, measured, number,
};

pub(crate) fn register(suite: &mut Suite) {
    suite.timed("recovery::kill_of_an_agent", WITH_ETCD, || kill_of_an_agent(None));
    let unit = || kill_of_an_agent(Some(unit("skybridge.service")));
    suite.timed("recovery::kill_of_an_agent_under_the_unit", UNDER_UNIT, unit);
    suite.timed("recovery::kill_of_the_store_host", AGENTS, kill_of_the_store_host);
    suite.timed("recovery::stop_and_start", AGENTS, stop_and_start);
    suite.timed("recovery::store_away", WITH_ETCD, store_away);
    suite.test("recovery::start_without_store", WITH_ETCD, start_without_store);
    suite.timed("recovery::another_number_of_workers", WITH_ETCD, another_number_of_workers);
}

/// Numbered datagrams and a verified TCP stream from one container to another, going on while the
/// test does its worst.
struct Flows {
    udp: [Process; 2],
    tcp: [Process; 2],
}

impl Flows {
    fn start(lab: &Lab, from: &Container, to: &Container, seconds: u32) -> Self {
        let logs = lab.logs();
        let seconds = seconds.to_string();
        let run = |container: &Container, name: &str, args: &[&str]| {
            start(container.netns(), &logs, name, args)
        };
        let address = |port: u16| format!("{}:{port}", to.address(Family::V4));
        let (udp, tcp) = (next_port(), next_port());
        let (udp_name, tcp_name) = (format!("udp-{udp}"), format!("tcp-{tcp}"));
        let (udp_to, tcp_to) = (address(udp), address(tcp));
        let udp_args = ["udp-send", &udp_to, "--seconds", &seconds, "--rate", "1000", "--verify"];
        let tcp_args = ["tcp-send", &tcp_to, "--seconds", &seconds, "--verify"];
        let flows = Self {
            udp: [run(to, &udp_name, &["udp-receive", &udp_to]), run(from, &udp_name, &udp_args)],
            tcp: [run(to, &tcp_name, &["tcp-receive", &tcp_to]), run(from, &tcp_name, &tcp_args)],
        };
        // Both must be flowing before anything happens to them.
        std::thread::sleep(Duration::from_secs(2));
        flows
    }

    /// The receivers' reports: UDP, TCP.
    fn finish(self) -> (Value, Value) {
        let limit = Duration::from_secs(60);
        let report = |process: Process| process.finish(limit).expect_success().json();
        let [udp_receiver, udp_sender] = self.udp;
        let [tcp_receiver, tcp_sender] = self.tcp;
        let (udp, tcp) = (report(udp_receiver), report(tcp_receiver));
        let (_, sent) = (report(udp_sender), report(tcp_sender));
        assert_eq!(sent["sha256"], tcp["sha256"]);
        (udp, tcp)
    }
}

fn identity(container: &Container) -> (Value, Value) {
    let link = container.netns().ip_json("link show dev eth0");
    (link[0]["ifindex"].clone(), link[0]["address"].clone())
}

/// kill -9 and a restart at once: the containers' interfaces stay, traffic comes back by itself.
fn kill_of_an_agent(unit: Option<PathBuf>) {
    let lab = Lab::with_hosts(2).build();
    let agents: Vec<Agent> = [1, 2]
        .into_iter()
        .map(|host| {
            let spec = lab.spec(host, Store::Etcd, Family::V4);
            let spec = unit.iter().fold(spec, |spec, unit| spec.unit(unit));
            lab.start_agent(host, spec)
        })
        .collect();
    agents[0].create_network(NETWORK, DUAL);
    let containers = containers(&lab, &agents);
    let before: Vec<_> = containers.iter().map(identity).collect();
    let flows = Flows::start(&lab, &containers[0], &containers[1], 12);
    let killed = Instant::now();
    agents[1].kill9();
    let during: Vec<_> = containers.iter().map(identity).collect();
    assert_eq!(before, during, "interfaces while the agent is dead");
    agents[1].start();
    measured("an agent is ready again after kill -9", format_args!("{:?}", killed.elapsed()));
    let (udp, tcp) = flows.finish();
    let (udp_ms, tcp_ms) = (number(&udp, "longest_pause_ms"), number(&tcp, "longest_pause_ms"));
    measured(
        "kill -9 and restart",
        format_args!(
            "UDP silent for {udp_ms:.0} ms ({} of {} lost), TCP for {tcp_ms:.0} ms",
            udp["lost"], udp["sent"]
        ),
    );
    let after: Vec<_> = containers.iter().map(identity).collect();
    assert_eq!(before, after, "interfaces after the restart");
    assert!(udp_ms < 10_000.0 && tcp_ms < 10_000.0, "traffic was away for too long");
    assert_eq!(udp["corrupt"], 0, "{udp}");
    exchange(&lab, &containers[1], &containers[0], 1_000_000);
    let third = agents[1].container(&lab, NETWORK, "c3", &[]);
    exchange(&lab, &containers[0], &third, 1_000_000);
}

/// The host that serves the embedded store dies: the others lose no frame, and when it is back
/// everything can be changed again.
fn kill_of_the_store_host() {
    let (lab, agents, containers) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    for agent in &agents[1..] {
        agent.allow_log("store");
        agent.allow_log("lease");
        agent.allow_log("watch");
    }
    let flows = Flows::start(&lab, &containers[1], &containers[2], 10);
    agents[0].kill9();
    std::thread::sleep(Duration::from_secs(4));
    agents[0].start();
    let (udp, _) = flows.finish();
    assert_eq!(udp["lost"], 0, "a host that only loses its store loses no frame: {udp}");
    exchange(&lab, &containers[0], &containers[1], 1_000_000);
    wait_until("the store is in use again", Duration::from_secs(20), || {
        let sandbox = lab.sandbox(&format!("later{}", next_port()));
        let attach = ["attach", NETWORK, "--netns", sandbox.name()];
        agents[1].try_cli(&attach).status.success().then_some(())
    });
}

/// An orderly stop keeps the containers' interfaces too, for an upgrade.
fn stop_and_start() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let before: Vec<_> = containers.iter().map(identity).collect();
    let flows = Flows::start(&lab, &containers[0], &containers[1], 10);
    let stopped = Instant::now();
    agents[1].stop();
    agents[1].start();
    measured("stop and start of an agent", format_args!("{:?}", stopped.elapsed()));
    let (udp, tcp) = flows.finish();
    measured(
        "stop and start",
        format_args!(
            "UDP silent for {:.0} ms, TCP for {:.0} ms",
            number(&udp, "longest_pause_ms"),
            number(&tcp, "longest_pause_ms")
        ),
    );
    assert!(number(&tcp, "longest_pause_ms") < 10_000.0);
    let after: Vec<_> = containers.iter().map(identity).collect();
    assert_eq!(before, after);
}

/// The store dies under traffic for longer than a lease: no frame is lost; on its return the
/// network can be changed again.
fn store_away() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    for agent in &agents {
        agent.allow_log("store");
        agent.allow_log("lease");
        agent.allow_log("watch");
    }
    let flows = Flows::start(&lab, &containers[0], &containers[1], 20);
    lab.etcd().kill9();
    // Detach is queued and forwarding goes on while the store is away.
    std::thread::sleep(Duration::from_secs(13));
    lab.etcd().restart();
    let (udp, _) = flows.finish();
    assert_eq!(udp["lost"], 0, "{udp}");
    wait_until("the store is in use again", Duration::from_secs(20), || {
        let sandbox = lab.sandbox(&format!("later{}", next_port()));
        let attach = ["attach", NETWORK, "--netns", sandbox.name()];
        agents[1].try_cli(&attach).status.success().then_some(())
    });
    traffic::ping(containers[0].netns(), containers[1].address(Family::V4), 56);
}

/// An agent that starts while the store is away forwards from what it last knew.
fn start_without_store() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    for agent in &agents {
        agent.allow_log("store");
        agent.allow_log("lease");
        agent.allow_log("watch");
    }
    let (from, to) = (&containers[0], containers[1].address(Family::V4));
    traffic::ping(from.netns(), to, 56);
    // What it forwards to at the last moment it knows afterwards.
    let last = agents[1].container(&lab, NETWORK, "last", &[]);
    let last = last.address(Family::V4);
    wait_until("it reaches the last one", Duration::from_secs(5), || {
        traffic::reaches(from.netns(), last).then_some(())
    });
    agents[0].kill9();
    lab.etcd().kill9();
    agents[0].start_without_waiting();
    wait_until("it forwards from its snapshot", Duration::from_secs(20), || {
        (traffic::reaches(from.netns(), to) && traffic::reaches(from.netns(), last)).then_some(())
    });
    lab.etcd().restart();
    agents[0].wait_ready();
    exchange(&lab, &containers[1], &containers[0], 1_000_000);
}

/// Takeover opens the TAPs that are there with as many queues as the new agent has workers.
fn another_number_of_workers() {
    let lab = Lab::with_hosts(2).build();
    let spec = |host: usize| lab.spec(host, Store::Etcd, Family::V4);
    let first = lab.start_agent(1, spec(1));
    let second = lab.start_agent(2, spec(2).args(&["--workers", "1"]));
    first.create_network(NETWORK, DUAL);
    let containers = containers(&lab, &[first.clone(), second.clone()]);
    exchange(&lab, &containers[0], &containers[1], 1_000_000);
    // Under traffic, up and down again.
    let flows = Flows::start(&lab, &containers[0], &containers[1], 14);
    second.kill9();
    let again = lab.start_agent(2, spec(2).args(&["--workers", "2"]));
    assert_eq!(again.json(&["status"])["datapath"]["workers"], 2);
    exchange(&lab, &containers[0], &containers[1], 200_000);
    again.kill9();
    second.start();
    assert_eq!(second.json(&["status"])["datapath"]["workers"], 1);
    let (udp, tcp) = flows.finish();
    assert_eq!(udp["corrupt"], 0, "{udp}");
    measured(
        "workers changed twice under traffic",
        format_args!(
            "UDP silent for {:.0} ms, TCP for {:.0} ms",
            number(&udp, "longest_pause_ms"),
            number(&tcp, "longest_pause_ms")
        ),
    );
    assert!(number(&tcp, "longest_pause_ms") < 10_000.0, "{tcp}");
    exchange(&lab, &containers[1], &containers[0], 1_000_000);
}

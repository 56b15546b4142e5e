//! The soak: attach, detach, networks that come and go, and a store that is restarted, all under
//! load and for as long as asked. What an agent holds must not grow with what it has done.
//!
//! `make soak SECONDS=600` runs the long form; the suite has a short one of about a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::traffic::{self, next_port, start};
use testkit::{Agent, Container, Family, Lab, Process, Store, Suite, run, wait_until};

use crate::support::{DUAL, NETWORK, WITH_ETCD, carry, containers, measured};

/// The environment variable with the length in seconds.
const SECONDS: &str = "SKYBRIDGE_SOAK_SECONDS";
/// The length without it.
const SHORT: u64 = 40;
/// Rounds of the warm-up, and from one restart of the store to the next.
const ROUNDS_BETWEEN: u32 = 4;
/// The least time of a round: an address rests for a minute after its release, and a subnet of 254
/// must not be used up by those.
const ROUND: Duration = Duration::from_secs(2);

pub(crate) fn register(suite: &mut Suite) {
    suite.test("soak::churn", WITH_ETCD, churn);
}

/// What is counted of one agent and of the machine at one moment.
#[derive(Clone, Debug)]
struct Holdings(BTreeMap<&'static str, u64>);

/// What each may be more at the end than after the warm-up: nothing, but for memory, where the
/// allocator's habits and the tables' history have their share; for descriptors of requests that
/// are under way; and for the blocks of addresses that a host takes while those that it gave back
/// rest, of which each subnet of the network has 32.
const SLACK: &[(&str, u64)] = &[
    ("RSS, KiB", 24 * 1024),
    ("descriptors", 8),
    ("threads", 6),
    ("pins", 0),
    ("attachments", 0),
    ("links", 0),
    ("nft rules", 0),
    ("IPAM blocks", 64),
    ("store keys", 0),
];

impl Holdings {
    fn of(lab: &Lab, agent: &Agent) -> Self {
        let proc = format!("/proc/{}", agent.pid());
        let entries = |path: &str| fs::read_dir(path).map_or(0, |all| all.count() as u64);
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let rss = rss.trim().trim_end_matches(" kB").parse().unwrap();
        let owner = skybridge::link::Owner::new(&agent.state_dir()).hash().to_owned();
        let pins = fs::read_dir("/run/skybridge/netns").unwrap().flatten();
        let pins = pins.map(|entry| entry.path()).filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&owner))
        });
        let pins: Vec<_> = pins.collect();
        let lines = |path: &Path, program: &str, args: &[&str]| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path.display())).args(["--", program]).args(args);
            run(command).stdout.lines().filter(|line| !line.trim().is_empty()).count() as u64
        };
        let keys = keys(lab);
        let blocks = keys.iter().filter(|key| key.contains("/blocks/")).count() as u64;
        Self(BTreeMap::from([
            ("RSS, KiB", rss),
            ("descriptors", entries(&format!("{proc}/fd"))),
            ("threads", entries(&format!("{proc}/task"))),
            ("pins", pins.len() as u64),
            ("attachments", entries(&agent.state_dir().join("attachments").display().to_string())),
            ("links", pins.iter().map(|pin| lines(pin, "ip", &["-o", "link"])).sum()),
            ("nft rules", pins.iter().map(|pin| lines(pin, "nft", &["list", "ruleset"])).sum()),
            ("IPAM blocks", blocks),
            ("store keys", keys.len() as u64 - blocks),
        ]))
    }
}

/// What the store has; addresses that rest before they are given again go with their leases.
fn keys(lab: &Lab) -> BTreeSet<String> {
    let keys = lab.etcd().ctl(&["get", "--prefix", "--keys-only", "/skybridge/"]).stdout;
    let keys = keys.lines().filter(|key| !key.is_empty() && !key.contains("/resting/"));
    keys.map(str::to_owned).collect()
}

/// A verified stream and numbered datagrams that go on until they are stopped.
struct Load([Process; 4]);

impl Load {
    fn start(lab: &Lab, from: &Container, to: &Container, seconds: u64) -> Self {
        let (deadline, seconds) = ((seconds + 300).to_string(), seconds.to_string());
        let address = || format!("{}:{}", to.address(Family::V4), next_port());
        let (udp, tcp) = (address(), address());
        let run = |container: &Container, args: &[&str]| {
            start(container.netns(), &lab.logs(), args[0], args)
        };
        Self([
            run(to, &["udp-receive", &udp, "--deadline", &deadline]),
            run(to, &["tcp-receive", &tcp, "--deadline", &deadline]),
            run(
                from,
                &[
                    "udp-send",
                    &udp,
                    "--seconds",
                    &seconds,
                    "--rate",
                    "200",
                    "--size",
                    "100",
                    "--verify",
                    "--deadline",
                    &deadline,
                ],
            ),
            run(
                from,
                &["tcp-send", &tcp, "--seconds", &seconds, "--verify", "--deadline", &deadline],
            ),
        ])
    }

    /// Both must have gone on to the end without a wrong byte.
    fn finish(self, what: &str) {
        let [udp_receiver, tcp_receiver, udp_sender, tcp_sender] = self.0;
        let limit = Duration::from_secs(120);
        let _ = udp_sender.finish(limit).expect_success();
        let sent = tcp_sender.finish(limit).expect_success().json();
        let tcp = tcp_receiver.finish(limit).expect_success().json();
        assert_eq!(sent["sha256"], tcp["sha256"], "{what}");
        let udp = udp_receiver.finish(limit).expect_success().json();
        assert_eq!(udp["corrupt"], 0, "{what}: {udp}");
        let (lost, all) = (udp["lost"].as_u64().unwrap(), udp["sent"].as_u64().unwrap());
        measured("soak: datagrams lost", format_args!("{lost} of {all}"));
        // The load competes with everything else for two processors; what the churn costs is less.
        assert!(lost * 100 <= all, "{what}: {lost} of {all} datagrams lost");
        measured("soak: TCP bytes, all verified", &sent["bytes"]);
    }
}

fn churn() {
    let asked = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok());
    let seconds: u64 = asked.unwrap_or(SHORT);
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Etcd, Family::V4);
    for agent in &agents {
        for text in ["store", "watch", "lease", "session", "needs attention"] {
            agent.allow_log(text);
        }
    }
    agents[0].create_network(NETWORK, DUAL);
    let steady = containers(&lab, &agents);
    carry(&lab, &steady[0], &steady[1], 200_000);
    let sandboxes: Vec<_> = (0..6).map(|at| lab.sandbox(&format!("s{at}"))).collect();
    let mut rounds = 0_u32;
    let mut round = |restart_store: bool| {
        let begun = Instant::now();
        rounds += 1;
        let agent = &agents[rounds as usize % 2];
        let short = format!("short{}", rounds % 8);
        let subnet = format!("203.0.113.{}/26", 64 * (rounds % 4));
        agent.create_network(&short, &["--subnet", &subnet]);
        for (at, sandbox) in sandboxes.iter().enumerate() {
            let network = if at % 2 == 0 { NETWORK } else { &short };
            let _ = agents[at / 3].attach(sandbox, network, &[]);
        }
        for pair in [[0, 4], [1, 5]] {
            let [from, to] = pair.map(|at| Container::inspect(sandboxes[at].clone(), "eth0"));
            // The one that was attached last may be news to the other host still.
            if from.netns().name() != to.netns().name() {
                let reached =
                    || traffic::reaches(from.netns(), to.address(Family::V4)).then_some(());
                let _ = wait_until("a fresh pair talks", Duration::from_secs(20), reached);
            }
        }
        if restart_store {
            lab.etcd().kill9();
            lab.etcd().restart();
        }
        for (at, sandbox) in sandboxes.iter().enumerate() {
            let network = if at % 2 == 0 { NETWORK } else { &short };
            let detach = ["detach", network, "--netns", sandbox.name()];
            let _ = agents[at / 3].cli(&detach);
        }
        wait_until("the network can go", Duration::from_secs(60), || {
            agent.try_cli(&["network", "rm", &short]).status.success().then_some(())
        });
        std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
    };
    // Warm: every table, thread pool and allocator has seen its share.
    for warm in 0..ROUNDS_BETWEEN {
        round(warm == 1);
    }
    let settled = |name: &str| {
        wait_until(&format!("all is told {name}"), Duration::from_secs(60), || {
            let told = agents.iter().all(|agent| {
                let status = agent.json(&["status"]);
                status["session"]["state"] == "held" && status["store"]["state"] == "connected"
            });
            let one = |agent: &Agent| {
                fs::read_dir(agent.state_dir().join("attachments")).map_or(0, |all| all.count())
                    == 1
            };
            (told && agents.iter().all(one)).then_some(())
        });
        agents.iter().map(|agent| Holdings::of(&lab, agent)).collect::<Vec<_>>()
    };
    let first = settled("before");
    let keys_before = keys(&lab);
    let begun = Instant::now();
    let load = Load::start(&lab, &steady[0], &steady[1], seconds);
    let mut highest = first.clone();
    let mut done = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        done += 1;
        round(done % ROUNDS_BETWEEN == 2);
        for (agent, high) in agents.iter().zip(&mut highest) {
            for (key, value) in Holdings::of(&lab, agent).0 {
                let high = high.0.entry(key).or_default();
                *high = value.max(*high);
            }
        }
    }
    load.finish("the soak");
    let last = settled("after");
    let mut table = format!(
        "{done} rounds in {} s\n{:<16}{:>12}{:>12}{:>12}",
        begun.elapsed().as_secs(),
        "",
        "warm",
        "highest",
        "end"
    );
    let mut grown = Vec::new();
    for (at, agent) in agents.iter().enumerate() {
        for (key, slack) in SLACK {
            let [warm, high, end] = [&first, &highest, &last].map(|all| all[at].0[key]);
            let name = agent.name();
            table.push_str(&format!(
                "\n{:<16}{warm:>12}{high:>12}{end:>12}",
                format!("{name} {key}")
            ));
            if end > warm + slack {
                grown.push(format!("{name}: {key} from {warm} to {end}"));
            }
        }
    }
    measured("soak", &table);
    let fresh: Vec<_> = keys(&lab).difference(&keys_before).cloned().collect();
    assert!(
        grown.is_empty(),
        "what an agent holds has grown: {}\n{table}\nnew in the store: {}",
        grown.join("; "),
        fresh.join(" ")
    );
    assert!(done >= 3, "only {done} rounds: the soak has shown nothing");
    carry(&lab, &steady[0], &steady[1], 200_000);
}

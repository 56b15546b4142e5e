//! A cluster under counted traffic, and how its tables compare with the store.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::traffic::{next_port, start};
use testkit::{Agent, AgentSpec, Container, Etcd, Family, Lab, Process, Store, wait_until};

use crate::support::{DUAL, NETWORK, containers, measured};

/// What every change of the store must have reached every table within, after an outage.
pub(crate) const PROMISE: Duration = Duration::from_secs(2);
/// Timing asserts allow ten times what is promised, for a machine that is busy.
pub(crate) const ALLOWED: Duration = Duration::from_secs(20);
/// Times that a test can wait for.
pub(crate) const SHORT: &str = "[session]\nlease = \"2s\"\nhold_down = \"2s\"";
/// How long traffic goes on when all is well again: three of these leases.
const AFTER: Duration = Duration::from_secs(6);
/// Seconds after which traffic ends by itself, for a test that does not end it.
const MOST: &str = "600";
/// Datagrams per second of each flow.
const RATE: u64 = 200;
/// Where endpoints lie in the store.
const ENDPOINTS: &str = "/skybridge/v1/endpoints/";
const HOSTS: &str = "/skybridge/v1/hosts/";

/// Whether the long forms of tests were asked for: outages of minutes with default times.
pub(crate) fn long() -> bool {
    std::env::var_os("SKYBRIDGE_TEST_LONG").is_some_and(|value| !value.is_empty())
}

/// Numbered, verified datagrams from each container to each other one.
pub(crate) struct Mesh {
    flows: Vec<(String, [Process; 2])>,
    rate: u64,
    started: Instant,
}

impl Mesh {
    pub(crate) fn start(lab: &Lab, containers: &[Container]) -> Self {
        let containers: Vec<&Container> = containers.iter().collect();
        Self::among(lab, &containers, RATE)
    }

    /// With `rate` datagrams per second of each flow.
    pub(crate) fn among(lab: &Lab, containers: &[&Container], rate: u64) -> Self {
        let logs = lab.logs();
        let rate_text = rate.to_string();
        let mut flows = Vec::new();
        for (index, from) in containers.iter().enumerate() {
            for to in containers[..index].iter().chain(&containers[index + 1..]) {
                let port = next_port();
                let address = format!("{}:{port}", to.address(Family::V4));
                let name = format!("{} to {}", from.netns().name(), to.netns().name());
                let receive = ["udp-receive", &address, "--deadline", MOST];
                let send = [
                    "udp-send",
                    &address,
                    "--seconds",
                    MOST,
                    "--rate",
                    &rate_text,
                    "--size",
                    "400",
                    "--verify",
                    "--deadline",
                    MOST,
                ];
                let label = format!("udp-{port}");
                let receiver = start(to.netns(), &logs, &label, &receive);
                flows.push((name, [receiver, start(from.netns(), &logs, &label, &send)]));
            }
        }
        let started = Instant::now();
        // All must be flowing before anything happens to them.
        std::thread::sleep(Duration::from_secs(1));
        Self { flows, rate, started }
    }

    /// Asserts that the traffic went on beyond this moment and three leases more, and that not one
    /// datagram of it is lost.
    #[track_caller]
    pub(crate) fn lost_nothing(self, what: &str) {
        // What an outage leaves behind may come late.
        std::thread::sleep(AFTER);
        let seconds = self.started.elapsed().as_secs();
        let mut flows = self.flows;
        for (name, [_, sender]) in &mut flows {
            assert!(sender.running(), "{name} ended before {what} did: it proves nothing");
            sender.signal(Signal::SIGINT);
        }
        let (mut sent, mut pause) = (0, 0.0_f64);
        for (name, [receiver, sender]) in flows {
            let limit = Duration::from_secs(30);
            // The sender first: a receiver whose sender has died says only that it waited.
            let _ = sender.finish(limit).expect_success();
            let report = receiver.finish(limit).expect_success().json();
            for key in ["lost", "duplicates", "corrupt"] {
                assert_eq!(report[key], 0, "{what}: {key} from {name}: {report}");
            }
            let of_flow = report["sent"].as_u64().unwrap_or_default();
            assert!(of_flow > self.rate * seconds / 2, "{name} was no traffic: {report}");
            sent += of_flow;
            pause = pause.max(report["longest_pause_ms"].as_f64().unwrap_or_default());
        }
        measured(what, format_args!("0 of {sent} lost, longest pause {pause:.0} ms"));
    }
}

/// A cluster with an etcd.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) agents: Vec<Agent>,
    pub(crate) containers: Vec<Container>,
    pub(crate) network: String,
}

impl Scene {
    /// Agents on all hosts of a lab, started as `spec` says, each with a container.
    pub(crate) fn new(lab: Lab, spec: impl Fn(&Lab, usize) -> AgentSpec) -> Self {
        let hosts: Vec<usize> = (1..=lab.hosts().len()).collect();
        Self::of(lab, &hosts, spec)
    }

    /// Agents on these hosts of a lab.
    pub(crate) fn of(lab: Lab, hosts: &[usize], spec: impl Fn(&Lab, usize) -> AgentSpec) -> Self {
        let agents: Vec<Agent> =
            hosts.iter().map(|host| lab.start_agent(*host, spec(&lab, *host))).collect();
        for agent in &agents {
            // Its owner removes a marker, sooner or later.
            for text in ["store", "lease", "watch", "is not attached; removing"] {
                agent.allow_log(text);
            }
        }
        agents[0].create_network(NETWORK, DUAL);
        let containers = containers(&lab, &agents);
        let network = network_id(&lab);
        let scene = Self { lab, agents, containers, network };
        scene.wait_equal("the cluster is whole", Instant::now());
        scene
    }

    /// Three hosts with an etcd of one member and short times.
    pub(crate) fn three() -> Self {
        Self::new(Lab::with_hosts(3).build(), |lab, host| {
            lab.spec(host, Store::Etcd, Family::V4).config(SHORT)
        })
    }

    /// Writes an endpoint of `agent`'s host by hand, as the first change after an outage.
    pub(crate) fn put_marker(&self, agent: &Agent) {
        let etcd = self.lab.etcd();
        let place = format!("{ENDPOINTS}{}/", self.network);
        let mark = u8::try_from(next_port() % 200).unwrap();
        let (id, host) = (format!("feedfeedfeedfe{mark:02x}"), agent.name());
        let record = format!(
            "{{\"version\":1,\"id\":\"{id}\",\"network\":\"{}\",\"host\":\"{host}\",\
             \"incarnation\":1,\"mac\":\"02:00:5e:00:53:{mark:02x}\",\
             \"ips\":[\"198.51.100.{}\"],\"labels\":{{}},\"created\":0}}",
            self.network,
            u32::from(mark) + 50
        );
        let _ = etcd.ctl(&["put", &format!("{place}{id}"), &record]);
    }

    /// The ids of the endpoints in the store.
    fn stored(&self, prefix: &str) -> BTreeSet<String> {
        let found = self.lab.etcd().try_ctl(&["get", "--prefix", "--keys-only", prefix]);
        let keys = found.stdout.lines().filter_map(|line| line.rsplit_once('/'));
        keys.map(|(_, id)| id.to_owned()).collect()
    }

    /// How many endpoints the store has.
    pub(crate) fn endpoints_in_store(&self) -> usize {
        self.stored(ENDPOINTS).len()
    }

    /// Why the tables of the agents are not what the store says.
    fn difference(&self) -> Option<String> {
        let (endpoints, hosts) = (self.stored(ENDPOINTS), self.stored(HOSTS));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for agent in &self.agents {
            let listed = agent.json(&["endpoints"]);
            let listed = listed.as_array().cloned().unwrap_or_default();
            let told: BTreeSet<String> = listed.iter().map(|item| text(&item["id"])).collect();
            if told != endpoints {
                return Some(format!("{}: endpoints {told:?}, stored {endpoints:?}", agent.name()));
            }
            let table = agent.json(&["fdb"]).to_string();
            // Tables are of the networks that this host takes part in.
            let own = |item: &&Value| item["host"] == agent.name();
            let here: BTreeSet<String> =
                listed.iter().filter(own).map(|item| text(&item["network"])).collect();
            let lacks = listed
                .iter()
                .filter(|item| here.contains(&text(&item["network"])))
                .find(|item| !table.contains(&text(&item["mac"])));
            if let Some(item) = lacks {
                return Some(format!("{}: {item} is not in the tables", agent.name()));
            }
            let seen = agent.json(&["hosts"]);
            let alive = seen.as_array().into_iter().flatten().filter(|it| it["state"] == "alive");
            let alive: BTreeSet<String> = alive.map(|host| text(&host["name"])).collect();
            if alive != hosts {
                return Some(format!("{}: alive {alive:?}, stored {hosts:?}", agent.name()));
            }
        }
        None
    }

    /// Waits until every agent's tables are what the store says and every host is present, and
    /// says how long that took `since` the store was back.
    #[track_caller]
    pub(crate) fn wait_equal(&self, what: &str, since: Instant) {
        let deadline = Instant::now() + ALLOWED;
        while let Some(why) = self.difference() {
            assert!(Instant::now() < deadline, "{what}: {why}");
        }
        let equal = since.elapsed();
        wait_until("all sessions are held", ALLOWED, || {
            let held = |agent: &Agent| agent.json(&["status"])["session"]["state"] == "held";
            let all = self.stored(HOSTS).len() == self.agents.len();
            (all && self.agents.iter().all(held)).then_some(())
        });
        let held = since.elapsed();
        self.still_equal();
        measured(
            what,
            format_args!("tables equal after {equal:.1?}, all hosts present {held:.1?}"),
        );
        assert!(equal < ALLOWED, "{what}: promised is {PROMISE:?}");
    }

    #[track_caller]
    fn still_equal(&self) {
        wait_until("the tables are what the store says", ALLOWED, || {
            self.difference().is_none().then_some(())
        });
    }

    /// Waits until an agent says that it has no store.
    #[track_caller]
    pub(crate) fn wait_away(agent: &Agent) {
        wait_until("the agent misses the store", ALLOWED, || {
            (agent.json(&["status"])["store"]["state"] == "away").then_some(())
        });
    }

    /// Waits until all agents but `away` hold it for suspect.
    #[track_caller]
    pub(crate) fn wait_suspect(&self, away: &Agent) {
        let others = self.agents.iter().filter(|agent| agent.name() != away.name());
        for agent in others {
            wait_until("it is suspect", ALLOWED, || {
                let hosts = agent.json(&["hosts"]);
                let mut hosts = hosts.as_array()?.iter();
                let found = hosts.find(|host| host["name"] == away.name())?;
                (found["state"] == "suspect").then_some(())
            });
        }
    }

    /// The etcd.
    pub(crate) fn etcd(&self) -> std::sync::Arc<Etcd> {
        self.lab.etcd()
    }
}

/// The id of the only network.
fn network_id(lab: &Lab) -> String {
    let prefix = "/skybridge/v1/networks/";
    let found = lab.etcd().ctl(&["get", "--prefix", "--keys-only", prefix]);
    let key = found.stdout.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
    key.expect("there is a network")
}

//! The embedded store with its own authority: hosts join it by tokens, and nobody else is let in.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use membership::pki::{Authority, Facts, Files};
use serde_json::Value;
use testkit::{
    Agent, AgentSpec, Family, Finished, Host, Lab, Suite, binary, run, traffic, wait_until,
};

use crate::support::{AGENTS, DUAL, NETWORK, containers, measured};

pub(crate) fn register(suite: &mut Suite) {
    suite.test("join::three_hosts", AGENTS, three_hosts);
    suite.test("join::from_every_address", AGENTS, from_every_address);
    suite.test("join::renewal", AGENTS, renewal);
    suite.test("join::refusals", AGENTS, refusals);
    suite.test("join::records_move", AGENTS, records_move);
}

/// A lab whose first host serves the store with an authority.
fn serving(hosts: usize) -> (Lab, Agent) {
    let lab = Lab::with_hosts(hosts).build();
    let address = SocketAddr::new(lab.host(1).address(Family::V4), 2379);
    let spec = AgentSpec::new(lab.host(1).address(Family::V4)).embedded_store(address).secure();
    let agent = lab.start_agent(1, spec);
    (lab, agent)
}

fn token(agent: &Agent, args: &[&str]) -> String {
    agent.cli(&[&["store", "token"], args].concat()).stdout.trim().to_owned()
}

fn skybridge(host: &Host, args: &[&str]) -> Command {
    let mut command = host.netns().command(binary());
    command.env("NO_COLOR", "1").env_remove("SKYBRIDGE_SOCKET").args(args);
    command
}

fn join(host: &Host, token: &str, name: &str, state: &Path) -> Finished {
    let state = state.display().to_string();
    run(skybridge(host, &["join", token, "--name", name, "--state-dir", &state]))
}

/// An agent of a host that has joined; it is told nothing of the store.
fn joined(lab: &Lab, serving: &Agent, host: usize) -> Agent {
    let agent = lab.agent(host, AgentSpec::new(lab.host(host).address(Family::V4)).secure());
    let token = token(serving, &["--host", agent.name()]);
    let said = join(lab.host(host), &token, agent.name(), &agent.state_dir()).expect_success();
    assert!(said.stdout.contains("joined the store at https://192.0.2.1:2379"), "{said}");
    agent.start();
    agent
}

fn three_hosts() {
    let (lab, first) = serving(3);
    let started = SystemTime::now();
    let agents = [first.clone(), joined(&lab, &first, 2), joined(&lab, &first, 3)];
    let took = started.elapsed().unwrap_or_default();
    measured("two hosts joined and their agents ready", format!("{took:?}"));
    first.create_network(NETWORK, DUAL);
    let containers = containers(&lab, &agents);
    for from in &containers {
        for to in containers.iter().filter(|to| to.netns().name() != from.netns().name()) {
            for family in from.families() {
                traffic::ping(from.netns(), to.address(family), 56);
            }
        }
    }
    // Everything again from the state directories alone, the serving host included.
    for agent in &agents {
        agent.stop();
    }
    for agent in &agents {
        agent.start();
    }
    let from = agents[2].container(&lab, NETWORK, "later", &[]);
    traffic::ping(from.netns(), containers[1].address(Family::V4), 56);
    for agent in &agents {
        let connected = || {
            let status = agent.json(&["status"]);
            (status["store"]["state"] == "connected").then_some(())
        };
        wait_until("the store is connected", Duration::from_secs(20), connected);
        let members = agent.json(&["store", "status"]);
        assert_eq!(members[0]["answers"], Value::Bool(true), "{members}");
        for file in ["host.pem", "ca.pem"] {
            let path = agent.state_dir().join("pki").join(file);
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &fs::metadata(&path).unwrap().permissions(),
            );
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }
    // A host may do what a host does, and its administrator everything.
    let refused = agents[1].try_cli(&["store", "compact"]);
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("permission denied"), "{refused}");
    let _ = first.cli(&["store", "compact", "--keep", "0", "--defragment"]);
    // The hosts reached the store late while it was stopped; that is all that may be warned of.
    for agent in &agents {
        agent.allow_log("store");
        agent.allow_log("clients kept their connections");
    }
}

/// The store is served on all addresses: tokens carry those at which other hosts reach it, of both
/// families.
fn from_every_address() {
    for (listen, family) in [("[::]:2379", Family::V6), ("0.0.0.0:2379", Family::V4)] {
        let lab = Lab::with_hosts(2).build();
        let vtep = |host: usize| lab.host(host).address(family);
        let spec = AgentSpec::new(vtep(1)).embedded_store(listen.parse().unwrap()).secure();
        let first = lab.start_agent(1, spec);
        let second = lab.agent(2, AgentSpec::new(vtep(2)).secure());
        let token = token(&first, &["--host", second.name()]);
        let said = join(lab.host(2), &token, second.name(), &second.state_dir()).expect_success();
        let url = format!("https://{}", SocketAddr::new(vtep(1), 2379));
        assert!(said.stdout.contains(&url), "{said}");
        second.start();
        let agents = [first, second];
        agents[1].create_network(NETWORK, DUAL);
        let containers = containers(&lab, &agents);
        traffic::ping(containers[0].netns(), containers[1].address(family), 56);
    }
}

/// A joined host whose certificate is about to end gets the next one while it runs, and one that is
/// taken out does not.
fn renewal() {
    let (lab, first) = serving(2);
    let agent = lab.agent(2, AgentSpec::new(lab.host(2).address(Family::V4)).secure());
    let token = token(&first, &[]);
    let _ = join(lab.host(2), &token, "h2", &agent.state_dir()).expect_success();
    let files = Files::of(&agent.state_dir());
    let year = Facts::load(&files.host()).unwrap();
    assert!(year.left(SystemTime::now()) > Duration::from_secs(364 * 86_400), "{year:?}");
    // In place of one of a year, one of which less than a third is left.
    let authority = Authority::open(&Files::of(&first.state_dir())).unwrap();
    let short = authority.with_life(Duration::from_secs(20));
    fs::remove_file(files.host()).unwrap();
    short.keep_client(&files.host(), "h2").unwrap();
    let ends = Facts::load(&files.host()).unwrap();
    wait_until("the certificate is due", Duration::from_secs(30), || {
        ends.is_due(SystemTime::now()).then_some(())
    });
    agent.start();
    agent.wait_log("the certificate for the store is renewed", Duration::from_secs(20));
    let fresh = Facts::load(&files.host()).unwrap();
    assert!(fresh.left(SystemTime::now()) > Duration::from_secs(364 * 86_400), "{fresh:?}");
    assert_ne!(fresh.public_key, ends.public_key, "a new key each time");
    // The first one has ended; the agent works with the second.
    wait_until("the first certificate has ended", Duration::from_secs(30), || {
        ends.left(SystemTime::now()).is_zero().then_some(())
    });
    agent.create_network(NETWORK, DUAL);
}

fn refusals() {
    let (lab, first) = serving(3);
    first.allow_log("a host has not joined");
    let directory = lab.directory().join("refused");
    let refused = |finished: &Finished, words: &[&str]| {
        assert_eq!(finished.code(), 1, "{finished}");
        for word in words {
            assert!(finished.stderr.contains(word), "no {word:?}: {finished}");
        }
        assert!(finished.stderr.contains("try:"), "{finished}");
        assert!(!directory.exists(), "something was left by {finished}");
    };
    let host = lab.host(2);
    let bound = token(&first, &["--host", "h2"]);
    refused(&join(host, &bound, "h3", &directory), &["for host h2"]);
    let cut = &bound[..bound.len() - 3];
    refused(&join(host, cut, "h2", &directory), &["no join token"]);
    let used = token(&first, &["--ttl", "10m"]);
    let _ = join(lab.host(3), &used, "h3", &lab.directory().join("h3/state")).expect_success();
    refused(&join(host, &used, "h2", &directory), &["used already, by host h3"]);
    let ended = token(&first, &["--ttl", "1s"]);
    let end = SystemTime::now() + Duration::from_secs(2);
    wait_until("the token has ended", Duration::from_secs(10), || {
        (SystemTime::now() > end).then_some(())
    });
    refused(&join(host, &ended, "h2", &directory), &["the token ended"]);
    first.stop();
    refused(&join(host, &bound, "h2", &directory), &["cannot be reached", "still good"]);
    first.start();

    // Without a certificate nothing is read, whatever is tried.
    let ca = lab.directory().join("ca.pem");
    fs::copy(Files::of(&first.state_dir()).ca(), &ca).unwrap();
    let (ca, url) = (ca.display().to_string(), "https://192.0.2.1:2379");
    let export = ["store", "export", "--store", url, "--tls-ca", &ca];
    refused(&run(skybridge(host, &export)), &["skybridge join TOKEN"]);
    let clear = ["store", "export", "--store", "http://192.0.2.1:2379", "--insecure-store"];
    let finished = run(skybridge(host, &clear));
    assert_eq!(finished.code(), 1, "{finished}");
    assert!(finished.stderr.contains("does it want https://?"), "{finished}");
    // An agent without a certificate goes on without the store, and says why.
    let spec = AgentSpec::new(host.address(Family::V4)).secure();
    let agent = lab.agent(2, spec.args(&["--store", url, "--tls-ca", &ca]));
    agent.allow_log("store");
    agent.start_without_waiting();
    let told = || {
        let status = agent.try_cli(&["status"]);
        status.stdout.contains("skybridge join TOKEN").then_some(())
    };
    wait_until("the status tells how to join", Duration::from_secs(20), told);
    let refused = agent.try_cli(&["store", "token"]);
    assert!(refused.stderr.contains("does not serve the embedded store"), "{refused}");
    // Joined before under another name.
    let state = lab.directory().join("h3/state").display().to_string();
    let wrong = ["agent", "--check", "--name", "h9", "--vtep", "192.0.2.3", "--state-dir", &state];
    let finished = run(skybridge(lab.host(3), &wrong));
    assert_eq!(finished.code(), 2, "{finished}");
    assert!(finished.stderr.contains("has joined its store as h3"), "{finished}");
}

/// Export and import by the commands, with the agent's own way to the store.
fn records_move() {
    let (lab, first) = serving(1);
    first.create_network(NETWORK, DUAL);
    let container = first.container(&lab, NETWORK, "c1", &[]);
    let file = lab.directory().join("export.jsonl");
    let file = file.display().to_string();
    let said = first.cli(&["store", "export", "--output", &file]);
    assert!(said.stderr.contains("keys of revision"), "{said}");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("/skybridge/v1/names/blue"), "{text}");
    let again = first.cli(&["store", "import", &file]);
    assert!(again.stdout.contains("0 keys created, 0 replaced"), "{again}");
    first.detach(NETWORK, &container);
    let _ = first.cli(&["network", "rm", NETWORK]);
    let dry = first.cli(&["store", "import", &file, "--dry-run"]);
    assert!(dry.stdout.contains("nothing was written"), "{dry}");
    assert_eq!(first.json(&["network", "ls"]), serde_json::json!([]));
    let _ = first.cli(&["store", "import", &file]);
    wait_until("the network is back", Duration::from_secs(10), || {
        (first.json(&["network", "ls"])[0]["name"] == NETWORK).then_some(())
    });
    first.stop();
    let data = first.state_dir().join("store").display().to_string();
    let offline =
        run(skybridge(lab.host(1), &["store", "export", "--data", &data])).expect_success();
    assert!(offline.stdout.contains("/skybridge/v1/names/blue"), "{offline}");
}

//! What people get wrong: a message with cause and next step, the right exit code, and nothing
//! half done.

use std::fs;
use std::time::Duration;

use testkit::{
    Agent, Family, Finished, KernelVtep, Lab, Store, Suite, VtepSpec, binary, run_within,
};

use crate::support::{AGENTS, DUAL, NETWORK, VNI, WITH_ETCD, WITH_VXLAN};

/// Exit codes of the program.
const FAILED: i32 = 1;
const USAGE: i32 = 2;

pub(crate) fn register(suite: &mut Suite) {
    suite.test("errors::usage", &[], usage);
    suite.test("errors::configuration", &[], configuration);
    suite.test("errors::no_agent", &[], no_agent);
    suite.test("errors::networks", AGENTS, networks);
    suite.test("errors::attachments", AGENTS, attachments);
    suite.test("errors::second_agent", AGENTS, second_agent);
    suite.test("errors::port_taken", WITH_VXLAN, port_taken);
    suite.test("errors::host_name_taken", AGENTS, host_name_taken);
    suite.test("errors::store_away", WITH_ETCD, store_away);
}

fn program(args: &[&str]) -> Finished {
    let mut command = std::process::Command::new(binary());
    command.args(args).env("NO_COLOR", "1").env_remove("SKYBRIDGE_SOCKET");
    run_within(command, Duration::from_secs(20))
}

/// Checks the exit code, that standard error explains with each of `words`, and that it is a
/// message for people.
#[track_caller]
fn refused(finished: &Finished, codes: &[i32], words: &[&str]) {
    assert!(codes.contains(&finished.code()), "wanted {codes:?}: {finished}");
    let text = finished.stderr.to_lowercase();
    for word in words {
        assert!(text.contains(&word.to_lowercase()), "no {word:?} in: {finished}");
    }
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{finished}");
    assert!(text.trim().len() > 20, "too short to explain anything: {finished}");
    assert!(finished.stdout.trim().is_empty(), "errors belong on standard error: {finished}");
}

fn usage() {
    refused(&program(&["netwrok", "ls"]), &[USAGE], &["netwrok", "network"]);
    refused(&program(&["status", "--jsno"]), &[USAGE], &["--jsno"]);
    refused(&program(&["network", "create"]), &[USAGE], &["name"]);
    refused(
        &program(&["network", "create", NETWORK, "--subnet", "198.51.100.0/40"]),
        &[USAGE],
        &["198.51.100.0/40"],
    );
    for vni in ["0", "16777216", "x"] {
        let args = ["network", "create", NETWORK, "--subnet", "198.51.100.0/24", "--vni", vni];
        refused(&program(&args), &[USAGE], &["vni", vni]);
    }
    refused(
        &program(&["attach", NETWORK, "--netns", "x", "--mac", "02:42:zz"]),
        &[USAGE],
        &["02:42:zz"],
    );
    refused(
        &program(&["attach", NETWORK, "--netns", "x", "--ip", "198.51.100.300"]),
        &[USAGE],
        &["198.51.100.300"],
    );
    refused(&program(&["attach", NETWORK]), &[USAGE], &["--netns"]);
    let nowhere = ["agent", "--check", "--vtep", "nowhere"];
    refused(&program(&nowhere), &[FAILED, USAGE], &["nowhere"]);
    for args in [&["--help"][..], &["network", "create", "--help"], &["attach", "--help"]] {
        let help = program(args);
        assert_eq!(help.code(), 0, "{help}");
        assert!(help.stdout.contains("Usage"), "{help}");
    }
    assert!(!program(&["--help"]).stdout.contains("traffic"), "the generator is not advertised");
    let version = program(&["--version"]);
    assert!(version.stdout.contains("skybridge"), "{version}");
}

fn configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skybridge.toml");
    let path = file.display().to_string();
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        program(&["agent", "--config", &path, "--check"])
    };
    let refusals: [(&str, &[&str]); 4] = [
        ("name = \"h1\"\nunknown_key = 1\n", &["unknown_key", "skybridge.toml"]),
        ("name = \n", &["skybridge.toml"]),
        (
            "vtep = \"192.0.2.1\"\nstores = [\"http://127.0.0.1:2379\"]\n\
             [datapath]\ndisable = [\"warp\"]\n",
            &["warp", "line 4"],
        ),
        ("name = \"h1\"\nvtep = \"not an address\"\n", &["skybridge.toml"]),
    ];
    for (text, words) in refusals {
        refused(&check(text), &[FAILED, USAGE], words);
    }
    let missing = directory.path().join("missing.toml").display().to_string();
    refused(
        &program(&["agent", "--config", &missing, "--check"]),
        &[FAILED, USAGE],
        &["missing.toml"],
    );
}

fn no_agent() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock").display().to_string();
    for args in [&["status"][..], &["network", "ls"], &["fdb", "--json"]] {
        let args = [args, &["--socket", &socket]].concat();
        refused(&program(&args), &[FAILED], &["none.sock", "agent"]);
    }
}

/// An agent alone with the embedded store.
fn alone() -> (Lab, Agent) {
    let lab = Lab::with_hosts(1).build();
    let agent = lab.start_agents(&[1], Store::Embedded, Family::V4).remove(0);
    (lab, agent)
}

/// Everything that a refused command could have left half done.
fn everything(agent: &Agent) -> String {
    let lists = [&["network", "ls"][..], &["endpoints"]].map(|args| {
        let mut list = agent.json(args);
        // Ages go on by themselves.
        for item in list.as_array_mut().into_iter().flatten() {
            if let Some(item) = item.as_object_mut() {
                item.remove("age_ms");
            }
        }
        list.to_string()
    });
    let links = agent.netns().ip_json("link show");
    let names: Vec<_> =
        links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str()).collect();
    format!("{lists:?} {names:?}")
}

#[track_caller]
fn refused_without_trace(agent: &Agent, args: &[&str], codes: &[i32], words: &[&str]) {
    let before = everything(agent);
    refused(&agent.try_cli(args), codes, words);
    assert_eq!(before, everything(agent), "{args:?} left something");
}

fn networks() {
    let (lab, agent) = alone();
    agent.create_network(NETWORK, DUAL);
    let create = ["network", "create"];
    let cases: [(&[&str], &[&str]); 6] = [
        // The name and the VNI are taken.
        (&[NETWORK, "--subnet", "203.0.113.0/24"], &[NETWORK]),
        (&["red", "--subnet", "203.0.113.0/24", "--vni", "7001"], &["7001", NETWORK]),
        (&["Red/1", "--subnet", "203.0.113.0/24"], &["Red/1"]),
        (&["red", "--subnet", "203.0.113.7/24"], &["203.0.113.7/24"]),
        (&["red", "--subnet", "203.0.113.0/24", "--gateway", "192.0.2.1"], &["192.0.2.1"]),
        (&["red", "--subnet", "203.0.113.0/24", "--option", "no-such=1"], &["no-such"]),
    ];
    for (args, words) in cases {
        refused_without_trace(&agent, &[&create, args].concat(), &[FAILED, USAGE], words);
    }
    refused_without_trace(&agent, &["network", "rm", "none"], &[FAILED], &["none"]);
    refused_without_trace(&agent, &["network", "inspect", "none"], &[FAILED], &["none"]);
    let vtep = ["network", "vtep", "add", "none", "192.0.2.9"];
    refused_without_trace(&agent, &vtep, &[FAILED], &["none"]);
    // In use.
    let container = agent.container(&lab, NETWORK, "c1", &[]);
    refused_without_trace(&agent, &["network", "rm", NETWORK], &[FAILED], &[NETWORK, "endpoint"]);
    agent.detach(NETWORK, &container);
    let _ = agent.cli(&["network", "rm", NETWORK]);
    assert!(!agent.json(&["network", "ls"]).to_string().contains(NETWORK));
}

fn attachments() {
    let (lab, agent) = alone();
    agent.create_network(NETWORK, DUAL);
    let _taken = agent.container(&lab, NETWORK, "c1", &["--ip", "198.51.100.20"]);
    let sandbox = lab.sandbox("empty");
    let name = sandbox.name();
    let attach = |args: &[&'static str]| {
        let mut all = vec!["attach".to_owned(), NETWORK.to_owned()];
        all.extend(["--netns".to_owned(), name.to_owned()]);
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        all
    };
    let cases: [(Vec<String>, &[&str]); 5] = [
        (attach(&["--ip", "198.51.100.20"]), &["198.51.100.20"]),
        (attach(&["--ip", "203.0.113.5"]), &["203.0.113.5"]),
        (attach(&["--ip", "198.51.100.0"]), &["198.51.100.0"]),
        (attach(&["--ip", "198.51.100.255"]), &["198.51.100.255"]),
        (attach(&["--ifname", "a-name-much-too-long"]), &["a-name-much-too-long"]),
    ];
    for (args, words) in cases {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        refused_without_trace(&agent, &args, &[FAILED, USAGE], words);
    }
    let elsewhere = ["attach", "none", "--netns", name];
    refused_without_trace(&agent, &elsewhere, &[FAILED], &["none"]);
    let gone = ["attach", NETWORK, "--netns", "no-such-namespace"];
    refused_without_trace(&agent, &gone, &[FAILED], &["no-such-namespace"]);
    let gone = ["attach", NETWORK, "--netns", "/run/netns/no-such-path"];
    refused_without_trace(&agent, &gone, &[FAILED], &["no-such-path"]);
    let gone = ["attach", NETWORK, "--netns", "4194305"];
    refused_without_trace(&agent, &gone, &[FAILED], &["4194305"]);
    // Not a namespace at all.
    let file = ["attach", NETWORK, "--netns", "/etc/hostname"];
    refused_without_trace(&agent, &file, &[FAILED], &["/etc/hostname"]);
    // The interface's name is taken inside.
    sandbox.ip("link add eth0 type bridge");
    let taken = ["attach", NETWORK, "--netns", name];
    refused_without_trace(&agent, &taken, &[FAILED], &["eth0"]);
    sandbox.ip("link del eth0");
    // After all of that it works, and the address is the first free one.
    let _ = agent.attach(&sandbox, NETWORK, &[]);
    let nobody = ["detach", NETWORK, "--netns", "no-such-namespace"];
    refused(&agent.try_cli(&nobody), &[FAILED], &["no-such-namespace"]);
}

/// Two agents cannot share a state directory; the second says so and leaves the first alone.
fn second_agent() {
    let (_lab, agent) = alone();
    let mut command = agent.command();
    let socket = agent.directory().join("second.sock");
    command.arg("--socket").arg(socket);
    let second = run_within(agent.command(), Duration::from_secs(20));
    assert_ne!(second.code(), 0, "{second}");
    let holder = format!("process {}", agent.pid());
    for word in ["state", &holder, "--state-dir"] {
        assert!(second.stderr.contains(word), "{word} is not said: {second}");
    }
    assert!(agent.running());
    let _ = agent.cli(&["status"]);
}

/// The kernel's vxlan device holds the UDP port: the agent names it.
fn port_taken() {
    let lab = Lab::with_hosts(1).build();
    let host = lab.host(1);
    let _kernel = KernelVtep::create(&lab, host, &VtepSpec::new(VNI, Family::V4));
    let agent = lab.agent(1, lab.spec(1, Store::Embedded, Family::V4));
    let mut command = agent.command();
    // It may come up and refuse the network, or not come up: either way it says who has the port.
    agent.allow_log("4789");
    command.arg("--udp-port").arg("4789");
    let process = testkit::Process::spawn(command, &lab.logs(), "taken");
    let log = lab.logs().join("taken.log");
    testkit::wait_until("it names the device", Duration::from_secs(20), || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        (text.contains("4789") && text.contains(KernelVtep::DEVICE)).then_some(())
    });
    drop(process);
}

/// The same name on another machine is refused and named.
fn host_name_taken() {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1], Store::Embedded, Family::V4);
    let spec = lab.spec(2, Store::Embedded, Family::V4);
    let other = lab.agent(2, spec);
    let mut command = other.command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut replaced = std::process::Command::new(command.get_program());
    let mut follows_name = false;
    for argument in arguments {
        replaced.arg(if follows_name { "h1".as_ref() } else { argument.as_os_str() });
        follows_name = argument == "--name";
    }
    replaced.env("NO_COLOR", "1");
    command = replaced;
    let process = testkit::Process::spawn(command, &lab.logs(), "double");
    let log = lab.logs().join("double.log");
    testkit::wait_until("the name is refused", Duration::from_secs(20), || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        (text.contains("h1") && text.contains("name")).then_some(())
    });
    drop(process);
    assert!(agents[0].running());
    let _ = agents[0].cli(&["status"]);
}

/// What needs the store says that the store is away; what does not, works.
fn store_away() {
    let lab = Lab::with_hosts(1).build();
    let agent = lab.start_agents(&[1], Store::Etcd, Family::V4).remove(0);
    for text in ["store", "lease", "watch"] {
        agent.allow_log(text);
    }
    agent.create_network(NETWORK, DUAL);
    let before = agent.json(&["network", "ls"]);
    lab.etcd().kill9();
    let create = ["network", "create", "red", "--subnet", "203.0.113.0/24"];
    refused(&agent.try_cli(&create), &[FAILED], &["store", "2379"]);
    for listing in ["status", "hosts", "fdb", "neighbors", "endpoints", "drops"] {
        let _ = agent.cli(&[listing]);
    }
    lab.etcd().restart();
    let (after, _) = testkit::wait_until("the store is back", Duration::from_secs(20), || {
        let created = agent.try_cli(&create);
        created.status.success().then(|| agent.json(&["network", "ls"]))
    });
    assert_ne!(before, after);
}

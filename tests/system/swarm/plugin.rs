//! The managed plugin: a Swarm's own way to a driver, with services on both hosts.

use std::path::Path;
use std::process::Command;

use testkit::traffic::{self, Tcp};
use testkit::{Container, Docker, Family, Lab, Store, wait_until};

use super::{SOON, two_node_swarm};
use crate::support::measured;

/// As the Swarm wants it written.
const DRIVER: &str = "skybridge:latest";
const SUBNET: &str = "198.51.100.0/24";

/// The plugin's folder, made of the program that is tested.
fn build(lab: &Lab) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/docker-plugin/build");
    let folder = lab.directory().join("plugin");
    let built = Command::new(script).arg(env!("CARGO_BIN_EXE_skybridge")).arg(&folder).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    folder.display().to_string()
}

/// Installs the plugin, with the agent's socket in `sockets`.
fn install(docker: &Docker, folder: &str, sockets: &Path) {
    let source = format!("agent.source={}", sockets.display());
    for words in [
        &["plugin", "create", "skybridge", folder][..],
        &["plugin", "set", "skybridge", &source],
        &["plugin", "enable", "skybridge"],
    ] {
        let _ = docker.docker(words);
    }
}

/// The running tasks of a service on a node, as containers.
fn tasks(docker: &Docker, service: &str) -> Vec<Container> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let listed = docker.docker(&["ps", "--quiet", "--filter", &filter]);
    listed.lines().map(|id| docker.container(id, "eth0")).collect()
}

pub(super) fn managed_plugin_and_service() {
    let lab = Lab::with_hosts(3).build();
    let folder = build(&lab);
    let sockets: Vec<_> = [1, 2].map(|host| lab.directory().join(format!("sockets{host}"))).into();
    let agents: Vec<_> = (1..=3)
        .map(|host| {
            let spec = lab.spec(host, Store::Embedded, Family::V4);
            let Some(folder) = sockets.get(host - 1) else { return lab.start_agent(host, spec) };
            std::fs::create_dir_all(folder).unwrap();
            let socket = folder.join("docker.sock").display().to_string();
            let docker = ["--docker", "--docker-scope", "global", "--docker-socket", &socket];
            lab.start_agent(host, spec.args(&docker))
        })
        .collect();
    let dockers = two_node_swarm(&lab);
    for (docker, sockets) in dockers.iter().zip(&sockets) {
        install(docker, &folder, sockets);
    }
    // The scheduler takes a node only once it has told of its plugins, which nodes do now and then.
    let nodes = dockers[0].docker(&["node", "ls", "--quiet"]);
    for node in nodes.lines() {
        let shown = "{{range .Description.Engine.Plugins}}{{.Name}} {{end}}";
        wait_until("the manager knows of the node's plugin", SOON * 2, || {
            let plugins = dockers[0].docker(&["node", "inspect", "--format", shown, node]);
            plugins.contains("skybridge").then_some(())
        });
    }
    // What the manager was told comes back on every host: the network is found there by it.
    let _ = dockers[0].docker(&[
        "network",
        "create",
        "--driver",
        DRIVER,
        "--attachable",
        "--subnet",
        SUBNET,
        "--opt",
        "vni=7777",
        "web",
    ]);
    // The manager allocates by itself, after the command.
    wait_until("the option reaches the driver", SOON, || {
        agents[2].cli(&["network", "ls"]).stdout.contains("7777").then_some(())
    });
    let begun = std::time::Instant::now();
    let _ = dockers[0].docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "sv",
        "--endpoint-mode",
        "dnsrr",
        "--network",
        "web",
        "--replicas",
        "4",
        "--no-resolve-image",
        "bb:latest",
        "sleep",
        "1d",
    ]);
    let of = |docker: &Docker| -> Option<Vec<Container>> {
        let tasks = tasks(docker, "sv");
        (tasks.len() == 2).then_some(tasks)
    };
    let first = wait_until("two tasks run on the manager", SOON * 2, || of(&dockers[0])).0;
    let second = wait_until("two tasks run on the worker", SOON * 2, || of(&dockers[1])).0;
    measured("a service of four tasks on two nodes", format!("{:?}", begun.elapsed()));
    for one in &first {
        for other in &second {
            traffic::ping(one.netns(), other.address(Family::V4), 56);
        }
    }
    let how = Tcp { bytes: 3_000_001, streams: 2, odd_sizes: true };
    traffic::tcp(&lab, &first[0], &second[0], Family::V4, how);
    // Names come from Docker's own DNS, one address per task.
    let filter = "label=com.docker.swarm.service.name=sv";
    let id = dockers[0].docker(&["ps", "--quiet", "--last", "1", "--filter", filter]);
    let addresses: Vec<String> =
        first.iter().chain(&second).map(|task| task.address(Family::V4).to_string()).collect();
    // The nodes tell each other of their tasks by gossip.
    wait_until("every task has its name", SOON, || {
        let names = dockers[0].exec(&id, &["nslookup", "tasks.sv"]);
        addresses.iter().all(|address| names.contains(address)).then_some(())
    });
    // A host without Docker is in the same network.
    let network = agents[2].json(&["network", "ls"])[0]["name"].as_str().unwrap().to_owned();
    let c3 = agents[2].container(&lab, &network, "c3", &[]);
    traffic::ping(c3.netns(), second[0].address(Family::V4), 56);
    agents[2].detach(&network, &c3);
    drop((first, second));
    let _ = dockers[0].docker(&["service", "rm", "sv"]);
    wait_until("all endpoints are gone", SOON * 2, || {
        let listed = agents[2].json(&["endpoints"]);
        listed.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    wait_until("the network goes", SOON * 2, || {
        let _ = dockers[0].try_docker(&["network", "rm", "web"]);
        let listed = agents[2].json(&["network", "ls"]);
        listed.as_array().is_some_and(Vec::is_empty).then_some(())
    });
}

//! Docker networks: real daemons on two hosts, with our agents as their driver.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;
use testkit::traffic;
use testkit::{
    Agent, Cap, Container, Docker, DockerRelease, Family, Lab, Store, Suite, wait_until,
};

use crate::privileges::unit;
use crate::support::{AGENTS, exchange, measured};

mod faults;
mod global;
mod pools;
mod replay;
mod starts;

pub(crate) const WITH_DOCKER: &[Cap] = &with(Cap::Docker);
const WITH_LATER: &[Cap] = &with(Cap::DockerLater);

const fn with(docker: Cap) -> [Cap; 9] {
    use Cap::{Etcd, Ethtool, Iptables, Links, Nft, Root, SystemdAnalyze, Tun};
    [Root, Links, Tun, Ethtool, Nft, Iptables, Etcd, SystemdAnalyze, docker]
}

const WITH_ETCD: &[Cap] = &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd];

/// What our answers to Docker may take on a busy machine.
pub(crate) const ALLOWED: Duration = Duration::from_secs(20);

pub(crate) fn register(suite: &mut Suite) {
    suite.test("docker::daemons_live_side_by_side", WITH_DOCKER, daemons_live_side_by_side);
    for (release, caps, suffix) in
        [(DockerRelease::Usual, WITH_DOCKER, ""), (DockerRelease::Later, WITH_LATER, "_later")]
    {
        suite.test(format!("docker::two_hosts{suffix}"), caps, move || two_hosts(release));
        suite.test(format!("docker::users_options{suffix}"), caps, move || users_options(release));
        suite.test(format!("docker::crashes{suffix}"), caps, move || faults::crashes(release));
    }
    suite.test("docker::lost_messages", AGENTS, faults::lost_messages);
    suite.test("docker::bad_requests", AGENTS, faults::bad_requests);
    suite.test("docker::cut_off", AGENTS, starts::cut_off);
    suite.test("docker::restart_before_the_move", AGENTS, starts::restart_before_the_move);
    suite.test("docker::stop_of_the_agent", AGENTS, starts::stop_of_the_agent);
    suite.test("docker::published_ports", AGENTS, starts::published_ports);
    suite.test("docker::store_comes_later", WITH_ETCD, starts::store_comes_later);
    suite.test("docker::pools_outlive_the_agent", AGENTS, starts::pools_outlive_the_agent);
    suite.test("docker::set_aside", AGENTS, starts::set_aside);
    suite.test("docker::swarm_frees", AGENTS, starts::swarm_frees);
    suite.test("docker::prefix_that_nobody_wrote", AGENTS, pools::prefix_that_nobody_wrote);
    suite.test("docker::routed_networks_are_refused", AGENTS, pools::routed_networks_are_refused);
    suite.test("docker::pools_beside_routes", AGENTS, pools::pools_beside_routes);
    suite.test("docker::gateways_that_are_not_needed", AGENTS, pools::gateways_that_are_not_needed);
    suite.test("docker::global_scope", WITH_DOCKER, global::global_scope);
    for name in ["local", "fail", "kv", "swarm"] {
        suite.test(format!("docker::replay_{name}"), AGENTS, move || replay::replay(name));
    }
}

/// Two hosts with Docker and an agent each, and an etcd.
pub(crate) struct Scene {
    pub(crate) dockers: Vec<Docker>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) lab: Lab,
}

impl Scene {
    pub(crate) fn new(scope: &str, release: DockerRelease) -> Self {
        let lab = Lab::with_hosts(2).build();
        let hosts = lab.hosts().iter();
        let dockers: Vec<Docker> = hosts.map(|host| Docker::new(&lab, host, release)).collect();
        let agents = dockers
            .iter()
            .zip(1..)
            .map(|(docker, host)| {
                let socket = docker.plugins().join("skybridge.sock").display().to_string();
                let spec = lab.spec(host, Store::Etcd, Family::V4);
                let docker = ["--docker", "--docker-scope", scope, "--docker-socket", &socket];
                let spec = spec.args(&docker);
                // One of them as the shipped unit lets it be.
                let shipped = host == 2;
                let spec = if shipped { spec.unit(unit("skybridge.service")) } else { spec };
                lab.start_agent(host, spec)
            })
            .collect();
        Self { dockers, agents, lab }
    }

    /// As [`new`](Self::new), with the daemons started.
    pub(crate) fn started(release: DockerRelease) -> Self {
        let scene = Self::new("local", release);
        for docker in &scene.dockers {
            docker.start(&[]);
        }
        scene
    }

    /// The same command for both Dockers.
    #[track_caller]
    pub(crate) fn both(&self, args: &[&str]) {
        for docker in &self.dockers {
            let _ = docker.docker(args);
        }
    }

    /// Everything that is left of networks: links and namespaces of the hosts, notes, records. What
    /// the hosts are and what rests for a minute is left out, and Docker's own bridge.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        let keys = self.lab.etcd().ctl(&["get", "--prefix", "--keys-only", "/skybridge/v1/"]);
        let lasting = ["/hosts/", "/known/", "/vteps/", "/resting/"];
        let keys = keys.stdout.lines().filter(|line| !line.is_empty());
        let keys = keys.filter(|key| !lasting.iter().any(|part| key.contains(part)));
        traces.extend(keys.map(|key| format!("key {key}")));
        for agent in &self.agents {
            let name = agent.name();
            let links = agent.netns().ip_json("link show");
            let links = links.as_array().cloned().unwrap_or_default();
            let links = links.iter().filter_map(|link| link["ifname"].as_str());
            let links = links.filter(|link| !link.contains("docker_gwbridge"));
            traces.extend(links.map(|link| format!("{name} link {link}")));
            let notes = fs::read_dir(agent.state_dir().join("attachments")).unwrap();
            traces
                .extend(notes.flatten().map(|note| format!("{name} note {:?}", note.file_name())));
            let state = agent.state_dir();
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            let hash = owner_hash(&state);
            let pins = mounts.lines().filter(|line| line.contains(&hash));
            traces.extend(pins.map(|line| format!("{name} mount {line}")));
        }
        traces
    }

    /// Waits until nothing but `before` is left.
    #[track_caller]
    pub(crate) fn wait_traces(&self, before: &BTreeSet<String>) {
        let started = std::time::Instant::now();
        while self.traces() != *before {
            let left: Vec<_> = self.traces().symmetric_difference(before).cloned().collect();
            assert!(started.elapsed() < Duration::from_secs(90), "left: {left:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// What pins of an agent are named after.
fn owner_hash(state: &std::path::Path) -> String {
    skybridge::link::Owner::new(state).hash().to_owned()
}

/// What Docker says of a container in a network.
pub(crate) fn seen(docker: &Docker, container: &str, network: &str) -> Value {
    let format = format!("{{{{json (index .NetworkSettings.Networks {network:?})}}}}");
    let text = docker.docker(&["inspect", "--format", &format, container]);
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err} in {text}"))
}

/// The lab's own part: two daemons, one of which crashes and comes back.
fn daemons_live_side_by_side() {
    let lab = Lab::with_hosts(2).build();
    let daemons = [1, 2].map(|host| Docker::new(&lab, lab.host(host), DockerRelease::Usual));
    for docker in &daemons {
        docker.start(&[]);
        let _ = docker.docker(&["run", "-d", "--name", "c1", "--network", "none", "bb"]);
        let key = docker.docker(&["inspect", "-f", "{{.NetworkSettings.SandboxKey}}", "c1"]);
        assert!(fs::exists(&key).unwrap(), "the sandbox {key} is seen from outside");
        assert_eq!(docker.exec("c1", &["hostname"]).trim().len(), 12);
    }
    daemons[0].kill9();
    assert!(!daemons[0].try_docker(&["ps"]).status.success());
    daemons[0].start(&[]);
    let _ = daemons[0].docker(&["start", "c1"]);
    assert_eq!(daemons[1].docker(&["ps", "--format", "{{.Names}}"]), "c1");
    for docker in &daemons {
        assert_eq!(docker.docker(&["rm", "-f", "c1"]), "c1");
    }
}

/// The same command on both hosts makes one network of both.
fn two_hosts(release: DockerRelease) {
    let scene = Scene::started(release);
    let [one, two] = scene.dockers.as_slice() else { panic!("two of them") };
    let before = scene.traces();
    scene.both(&[
        "network",
        "create",
        "-d",
        "skybridge",
        "--ipam-driver",
        "skybridge",
        "--ipv6",
        "--subnet",
        "198.51.100.0/24",
        "--gateway",
        "198.51.100.1",
        "--subnet",
        "2001:db8:1::/64",
        "web",
    ]);
    let networks = scene.agents[0].json(&["network", "ls"]);
    assert_eq!(networks.as_array().map(Vec::len), Some(1), "one for both: {networks}");

    // Docker drops what is forwarded, and has bridges pass its rules. From 28 on it leaves the policy
    // to others where it finds forwarding turned on.
    for docker in &scene.dockers {
        let rules = docker.netns().exec("iptables-nft", &["-S", "FORWARD"]);
        if !rules.contains("-P FORWARD DROP") {
            assert!(rules.contains("DOCKER-FORWARD"), "{rules}");
            let _ = docker.netns().exec("iptables-nft", &["-P", "FORWARD", "DROP"]);
        }
        docker.netns().sysctl("net/bridge/bridge-nf-call-iptables", "1");
        docker.netns().sysctl("net/bridge/bridge-nf-call-ip6tables", "1");
    }
    let started = std::time::Instant::now();
    let a = one.run("ca", "web", &[]);
    measured("docker run", format_args!("{:?}", started.elapsed()));
    let b = two.run("cb", "web", &[]);
    let c = two.run("cc", "web", &["--ip6", "2001:db8:1::77"]);
    assert_eq!(c.address(Family::V6), "2001:db8:1::77".parse::<std::net::IpAddr>().unwrap());
    let all: BTreeSet<_> = [&a, &b, &c].map(|c| c.address(Family::V4)).into();
    assert_eq!(all.len(), 3, "no address twice: {all:?}");
    let told = seen(one, "ca", "web");
    assert_eq!(told["IPAddress"], a.address(Family::V4).to_string());
    assert_eq!(told["GlobalIPv6Address"], a.address(Family::V6).to_string());
    let mac = a.mac().map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!(told["MacAddress"].as_str(), Some(&*mac));
    assert_eq!(a.mtu(), 1450, "the veth has the network's MTU");
    for (from, docker) in [("ca", one), ("cb", two)] {
        for to in [&a, &b, &c] {
            for family in [Family::V4, Family::V6] {
                let to = to.address(family).to_string();
                let _ = docker.exec(from, &["ping", "-c", "1", "-W", "5", &to]);
            }
        }
    }
    exchange(&scene.lab, &a, &b, 2_000_000);
    exchange(&scene.lab, &b, &c, 1_000_000);
    assert_eq!(scene.agents[0].json(&["endpoints"]).as_array().map(Vec::len), Some(3));

    // Between hosts no TTL is lost and none of Docker's bridges is on the way.
    connect_and_disconnect(&scene);
    assert!(!one.try_docker(&["network", "rm", "web"]).status.success(), "it is in use");
    let refused = scene.agents[0].try_cli(&["network", "rm", "docker-198.51.100.0-24"]);
    assert_eq!(refused.code(), 1, "{refused}");
    let _ = one.docker(&["stop", "-t", "0", "ca"]);
    wait_until("the address of a stopped container is free", ALLOWED, || {
        let left = scene.agents[1].json(&["endpoints"]);
        (left.as_array().map(Vec::len) == Some(2)).then_some(())
    });
    let _ = one.docker(&["start", "ca"]);
    let again = one.container("ca", "eth0");
    traffic::ping(again.netns(), b.address(Family::V4), 56);
    let _ = one.docker(&["rm", "-f", "ca"]);
    let _ = two.docker(&["rm", "-f", "cb", "cc"]);
    scene.both(&["network", "rm", "web"]);
    drop((a, b, c, again));
    scene.wait_traces(&before);
}

/// A running container gets a second network on both hosts, and loses it again.
fn connect_and_disconnect(scene: &Scene) {
    let [one, two] = scene.dockers.as_slice() else { panic!("two of them") };
    scene.both(&[
        "network",
        "create",
        "-d",
        "skybridge",
        "--ipam-driver",
        "skybridge",
        "--internal",
        "--subnet",
        "203.0.113.0/24",
        "-o",
        "vni=4711",
        "-o",
        "mtu=1300",
        "inner",
    ]);
    let _ = one.docker(&["network", "connect", "--alias", "first", "inner", "ca"]);
    let _ = two.docker(&["network", "connect", "--ip", "203.0.113.77", "inner", "cb"]);
    let told = seen(two, "cb", "inner");
    assert_eq!(told["IPAddress"], "203.0.113.77");
    let _ = one.exec("ca", &["ping", "-c", "1", "-W", "5", "203.0.113.77"]);
    let listed = scene.agents[0].json(&["network", "ls"]);
    assert!(listed.to_string().contains("4711"), "{listed}");
    let interface = one.exec("ca", &["ip", "addr"]);
    assert!(interface.contains("203.0.113.") && interface.contains("mtu 1300"), "{interface}");
    // Both names of a container are found by another one of the same Docker.
    let d = one.run("cd", "inner", &[]);
    let _ = one.exec("cd", &["ping", "-c", "1", "-W", "5", "first"]);
    let routes = one.exec("cd", &["ip", "route"]);
    assert!(!routes.contains("default") && !routes.contains("eth1"), "no way out: {routes}");
    let refused =
        one.try_docker(&["run", "--rm", "--network", "inner", "--ip", "203.0.113.77", "bb"]);
    assert!(refused.stderr.contains("203.0.113.77 is in use by"), "{refused}");
    drop(d);
    let _ = one.docker(&["rm", "-f", "cd"]);
    let _ = one.docker(&["network", "disconnect", "inner", "ca"]);
    let _ = two.docker(&["network", "disconnect", "-f", "inner", "cb"]);
    let addresses = one.exec("ca", &["ip", "addr"]);
    assert!(!addresses.contains("203.0.113."), "{addresses}");
    scene.both(&["network", "rm", "inner"]);
    wait_until("the network is gone with its last Docker", ALLOWED, || {
        let listed = scene.agents[1].json(&["network", "ls"]);
        (!listed.to_string().contains("4711")).then_some(())
    });
}

/// A network with a way out of its own is the container's default route.
fn out(scene: &Scene) {
    let one = &scene.dockers[0];
    let _ = one.docker(&[
        "network",
        "create",
        "-d",
        "skybridge",
        "--ipam-driver",
        "skybridge",
        "--subnet",
        "203.0.113.192/26",
        "-o",
        "nat_outgoing=true",
        "b4",
    ]);
    let e = one.run("ce", "b4", &[]);
    let routes = one.exec("ce", &["ip", "route"]);
    assert!(routes.contains("default via 203.0.113.193 dev eth0"), "{routes}");
    assert!(!routes.contains("eth1"), "Docker's own bridge is not needed: {routes}");
    wait_until("the world answers", ALLOWED, || {
        traffic::reaches(e.netns(), "192.0.2.254".parse().unwrap()).then_some(())
    });
    let refused = one.try_docker(&["run", "-d", "--network", "b4", "-p", "8080:80", "bb"]);
    assert!(refused.stderr.contains("ports cannot be published from this network"), "{refused}");
    drop(e);
    let all = one.docker(&["ps", "-aq", "--filter", "network=b4"]);
    let _ = one.docker(&[&["rm", "-f"], all.lines().collect::<Vec<_>>().as_slice()].concat());
    let _ = one.docker(&["network", "rm", "b4"]);
}

/// Names, what users ask for, and what they are told when that cannot be.
fn users_options(release: DockerRelease) {
    let scene = Scene::started(release);
    let [one, two] = scene.dockers.as_slice() else { panic!("two of them") };
    let create = |docker: &Docker, args: &[&str]| {
        docker.try_docker(&[&["network", "create", "-d", "skybridge"], args].concat())
    };
    let ours = ["--ipam-driver", "skybridge"];
    // One that an administrator has made is taken by its name, without its subnet being repeated.
    scene.agents[0].create_network("blue", &["--subnet", "198.51.100.0/24", "--vni", "7001"]);
    let by_name = [&ours[..], &["--ipam-opt", "network=blue", "-o", "network=blue", "b1"]].concat();
    // Docker has --ip only where it was given the subnet.
    let with_subnet = [&["--subnet", "198.51.100.0/24"], &by_name[..]].concat();
    let _ = create(one, &with_subnet).expect_success();
    let _ = create(two, &by_name).expect_success();
    let a = one.run("ca", "b1", &["--ip", "198.51.100.50", "--mac-address", "02:00:5e:00:53:01"]);
    assert_eq!(a.mac(), [2, 0, 0x5e, 0, 0x53, 1]);
    assert_eq!(a.address(Family::V4).to_string(), "198.51.100.50");
    // Containers of Docker and sandboxes of the command line are neighbors.
    let plain: Container = scene.agents[1].container(&scene.lab, "blue", "plain", &[]);
    traffic::ping(plain.netns(), a.address(Family::V4), 56);
    // Docker's own IPAM with a range per host.
    let range = [
        "--subnet",
        "203.0.113.0/24",
        "--gateway",
        "203.0.113.1",
        "-o",
        "vni=7002",
        "-o",
        "gwbridge=false",
    ];
    for (docker, own) in [(one, "203.0.113.64/26"), (two, "203.0.113.128/26")] {
        let _ = create(docker, &[&range[..], &["--ip-range", own, "b2"]].concat()).expect_success();
    }
    let b = two.run("cb", "b2", &[]);
    let c = one.run("cc", "b2", &[]);
    traffic::ping(b.netns(), c.address(Family::V4), 56);
    let links = two.exec("cb", &["ip", "link"]);
    assert!(!links.contains("eth1"), "no second interface: {links}");
    // Where nobody writes an IPv6 subnet, the second host takes over what the first has chosen.
    for docker in &scene.dockers {
        let args = [&ours[..], &["--ipv6", "--subnet", "198.18.0.0/24", "b5"]].concat();
        let _ = create(docker, &args).expect_success();
    }
    let (e, f) = (one.run("ce", "b5", &[]), two.run("cf", "b5", &[]));
    traffic::ping(e.netns(), f.address(Family::V6), 56);
    drop((e, f));
    let _ = one.docker(&["rm", "-f", "ce"]);

    for (args, says) in [
        (
            &["-o", "network=blue", "--subnet", "192.0.2.0/24", "x1"][..],
            "its subnets are 198.51.100.0/24",
        ),
        (&["-o", "vni=99999999", "x2"], "16777215"),
        (&["-o", "colour=red", "x3"], "nat_outgoing"),
        (&["-o", "vni=7001", "-o", "network=green", "x4"], "VNI 7001 is held by"),
        (&["--ipam-driver", "skybridge", "--ipam-opt", "colour=red", "x5"], "network and vni"),
        (
            &[
                "--ipam-driver",
                "skybridge",
                "--subnet",
                "203.0.113.0/24",
                "--gateway",
                "203.0.113.9",
                "x6",
            ],
            "--gateway 203.0.113.1",
        ),
    ] {
        let refused = create(one, args);
        assert!(!refused.status.success() && refused.stderr.contains(says), "{refused}");
    }
    // The second host's Docker would give the same address again, were it not for the store.
    let twice = ["--subnet", "192.0.2.128/25", "-o", "network=twice", "b3"];
    for docker in &scene.dockers {
        let _ = create(docker, &twice).expect_success();
    }
    let d = one.run("cd", "b3", &[]);
    let refused = two.try_docker(&["run", "-d", "--network", "b3", "bb"]);
    assert!(refused.stderr.contains("--ipam-driver skybridge"), "{refused}");
    out(&scene);
    drop((a, b, c, d));
    let _ = one.docker(&["rm", "-f", "ca", "cc", "cd"]);
    let left = two.docker(&["ps", "-aq"]);
    let _ = two
        .docker(&[&["rm", "-f"], left.split_whitespace().collect::<Vec<_>>().as_slice()].concat());
    scene.both(&["network", "rm", "b1", "b2", "b3", "b5"]);
    wait_until("what an administrator made stays, and nothing else", ALLOWED, || {
        let listed = scene.agents[0].json(&["network", "ls"]);
        let names: Vec<_> = listed.as_array()?.iter().map(|net| net["name"].clone()).collect();
        (names == ["blue"]).then_some(())
    });
}

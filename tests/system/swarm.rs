//! Docker Swarm's overlay on some hosts and Skybridge on others, in one network: entries of a kernel
//! device that floods nothing, read and entered by agents. With a device as Docker sets it up, and with
//! Docker itself.

mod notes;
mod plugin;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::traffic::{self, Tcp, Udp};
use testkit::{
    Agent, Cap, Capture, Container, Docker, DockerRelease, Family, Host, Lab, Netns, Store, Suite,
    Underlay, wait_until,
};

use crate::support::{WITH_VXLAN, carry, mac_text, measured};

const WITH_CAPTURE: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Vxlan, Cap::Tcpdump];
const WITH_DOCKER: &[Cap] = &[
    Cap::Root,
    Cap::Links,
    Cap::Tun,
    Cap::Ethtool,
    Cap::Nft,
    Cap::Vxlan,
    Cap::Tcpdump,
    Cap::Docker,
];

/// The network that both sides are in, and its VNI. Docker gives out the lower half of its addresses.
const SWARM: &str = "swarm";
const SWARM_VNI: u32 = 5099;
const SUBNET: &str = "203.0.113.0/24";
const THEIRS: &str = "203.0.113.0/25";
/// Docker's port, and the one that our other networks have beside it.
const THEIR_PORT: u16 = 4789;
const OUR_PORT: &str = "4790";
/// A network of ours alone, on the other port.
const OWN: &str = "own";

/// How long a change may take from one side to the other: ten times what is promised.
const SOON: Duration = Duration::from_secs(30);

pub(crate) fn register(suite: &mut Suite) {
    suite.test("swarm::kernel_device_both_ways", WITH_CAPTURE, kernel_device_both_ways);
    suite.test("swarm::follows_over_restarts", WITH_VXLAN, follows_over_restarts);
    suite.test("swarm::hosts_that_differ_come_to_rest", WITH_VXLAN, hosts_that_differ_come_to_rest);
    suite.test("swarm::many_entries_at_once", WITH_VXLAN, many_entries_at_once);
    suite.test("swarm::what_does_not_fit_is_refused", WITH_VXLAN, what_does_not_fit_is_refused);
    suite.test("swarm::entered_once", WITH_VXLAN, entered_once);
    for (name, test) in [
        (
            "swarm::notes::a_removed_network_is_given_up",
            notes::a_removed_network_is_given_up as fn(),
        ),
        ("swarm::notes::a_device_is_followed_once", notes::a_device_is_followed_once),
        ("swarm::notes::what_is_gone_is_not_kept", notes::what_is_gone_is_not_kept),
        ("swarm::notes::nobody_says_what_nobody_follows", notes::nobody_says_what_nobody_follows),
        (
            "swarm::notes::imported_addresses_are_not_given_out",
            notes::imported_addresses_are_not_given_out,
        ),
    ] {
        suite.test(name, WITH_VXLAN, test);
    }
    suite.test(
        "swarm::managed_plugin_and_service",
        WITH_DOCKER,
        plugin::managed_plugin_and_service,
    );
    suite.test("swarm::docker_overlay_both_ways", WITH_DOCKER, docker_overlay_both_ways);
}

/// Agents on the first hosts with our networks' port, and the network that is like Docker's.
fn agents(lab: &Lab, hosts: usize) -> Vec<Agent> {
    let start = |host| {
        let spec = lab.spec(host, Store::Embedded, Family::V4).args(&["--udp-port", OUR_PORT]);
        lab.start_agent(host, spec)
    };
    let agents: Vec<Agent> = (1..=hosts).map(start).collect();
    create(&agents[0]);
    agents
}

/// The network that is like Docker's.
fn create(agent: &Agent) {
    let (vni, port) = (SWARM_VNI.to_string(), THEIR_PORT.to_string());
    agent.create_network(
        SWARM,
        &[
            "--subnet",
            SUBNET,
            "--exclude",
            THEIRS,
            "--vni",
            &vni,
            "--udp-port",
            &port,
            "--option",
            "compat=swarm",
        ],
    );
}

/// A device like that of Docker's overlay on a host, in a namespace of its own.
struct Sandbox {
    netns: Arc<Netns>,
    host: Arc<Netns>,
}

impl Sandbox {
    fn new(lab: &Lab, host: &Host, name: &str) -> Self {
        let sandbox = Self { netns: lab.sandbox(name), host: Arc::clone(host.netns()) };
        sandbox.netns.ip("link add br0 type bridge mcast_snooping 0");
        sandbox.netns.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        sandbox.netns.ip("link set br0 up");
        sandbox.add_device();
        sandbox
    }

    /// Made on the host, where its socket stays, and moved.
    fn add_device(&self) {
        self.host.ip(&format!(
            "link add vxlan0 type vxlan id {SWARM_VNI} dstport {THEIR_PORT} proxy learning l2miss \
             l3miss udpcsum"
        ));
        self.host.ip(&format!("link set vxlan0 netns {}", self.netns.name()));
        self.netns.ip("link set vxlan0 mtu 1450 master br0 up");
    }

    fn container(&self, lab: &Lab, name: &str, address: &str) -> Container {
        let container = Container::plug(lab, &self.netns, (name, 1450), &[address]);
        self.netns.ip(&format!("link set {name} master br0"));
        container
    }

    /// What Docker enters for a container of another host.
    fn knows(&self, container: &Container, host: &Host) {
        let (mac, vtep) = (mac_text(container.mac()), host.address(Family::V4));
        self.netns.bridge(&format!("fdb replace {mac} dev vxlan0 dst {vtep} self permanent"));
        let ip = container.address(Family::V4);
        self.netns.ip(&format!("neigh replace {ip} lladdr {mac} dev vxlan0 nud permanent"));
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.netns.name())
    }

    fn entries(&self) -> String {
        // Without what the bridge has learned at that port.
        let forwards = self.netns.bridge("fdb show dev vxlan0");
        let forwards = forwards.lines().filter(|line| !line.contains("master"));
        let permanent = self.netns.ip("neigh show dev vxlan0 nud permanent");
        forwards.chain(permanent.lines()).map(|line| format!("{line}\n")).collect()
    }
}

/// Both ways between a network and a device of the agent's host.
fn link(agent: &Agent, netns: &str) {
    for way in [&["import"][..], &["export", "--watch"]] {
        let mut args = vec!["network", "vtep", way[0], SWARM, "--netns", netns];
        args.extend(&way[1..]);
        let _ = agent.cli(&args);
    }
}

/// The VTEP that an agent has a MAC behind, of imported entries.
fn imported(agent: &Agent, mac: [u8; 6]) -> Option<String> {
    let listed = agent.json(&["fdb", SWARM]);
    let entry = listed.as_array()?.iter().find(|entry| entry["mac"] == mac_text(mac).as_str())?;
    (entry["source"] == "imported").then(|| entry["vtep"].as_str().unwrap_or_default().to_owned())
}

/// Waits until `agent` has the container behind the host.
#[track_caller]
fn wait_imported(agent: &Agent, container: &Container, host: &Host) -> Duration {
    let wanted = host.address(Family::V4).to_string();
    let begun = Instant::now();
    while imported(agent, container.mac()).as_deref() != Some(&wanted) {
        if begun.elapsed() > SOON {
            let listed = agent.cli(&["network", "vtep", "ls", SWARM]).stdout;
            panic!("{} is not imported behind {wanted}:\n{listed}", mac_text(container.mac()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

/// Waits until the device has the container's MAC and address.
#[track_caller]
fn wait_entered(sandbox: &Sandbox, container: &Container) {
    let (mac, ip) = (mac_text(container.mac()), container.address(Family::V4).to_string());
    wait_until("a container of ours is known to the device", SOON, || {
        let entries = sandbox.entries();
        (entries.contains(&mac) && entries.contains(&format!("{ip} "))).then_some(())
    });
}

#[track_caller]
fn wait_gone(agent: &Agent, mac: [u8; 6]) {
    wait_until("the entry is gone", SOON, || imported(agent, mac).is_none().then_some(()));
}

fn state(agent: &Agent, way: &str) -> Value {
    let listed = agent.cli(&["network", "vtep", "ls", SWARM]).stdout;
    let row = listed.lines().find(|line| line.split_whitespace().nth(1) == Some(way));
    row.and_then(|row| row.split_whitespace().nth(4)).into()
}

/// What is on the wire at Docker's port is what Docker's own overlay sends: no don't-fragment bit, a
/// checksum, the network's VNI, nothing for a group, no question for an address.
#[track_caller]
fn looks_like_docker(capture: &Capture) -> usize {
    let frames = capture.frames();
    for frame in &frames {
        let outer = &frame[14..];
        assert_eq!(outer[6] & 0x40, 0, "don't-fragment is set: {frame:02x?}");
        let udp = &outer[20..];
        assert_ne!(udp[6..8], [0, 0], "no outer checksum: {frame:02x?}");
        assert_eq!(udp[8], 8, "flags of VXLAN: {frame:02x?}");
        assert_eq!(udp[12..15], SWARM_VNI.to_be_bytes()[1..], "VNI: {frame:02x?}");
        let inner = &udp[16..];
        assert_eq!(inner[0] & 1, 0, "broadcast or multicast between hosts: {inner:02x?}");
        assert_ne!(inner[12..14], [8, 6], "ARP between hosts: {inner:02x?}");
    }
    frames.len()
}

/// Ping, TCP and UDP between two containers, from both ends.
fn converse(lab: &Lab, ours: &Container, theirs: &Container) {
    for (from, to) in [(ours, theirs), (theirs, ours)] {
        let at = to.address(Family::V4);
        traffic::ping(from.netns(), at, 56);
        traffic::ping(from.netns(), at, 1422);
        traffic::tcp(
            lab,
            from,
            to,
            Family::V4,
            Tcp { bytes: 3_000_001, streams: 2, odd_sizes: true },
        );
        let how = Udp { count: 200, size: 1200, rate: 1000, gso: false };
        traffic::udp(lab, from, to, Family::V4, how);
    }
}

/// Kernel devices on two hosts, with a container each that the other one knows, and agents on three, of
/// which the first two follow them.
fn linked(lab: &Lab) -> (Vec<Sandbox>, [Container; 2], Vec<Agent>) {
    let sandboxes: Vec<Sandbox> =
        [1, 2].map(|host| Sandbox::new(lab, lab.host(host), &format!("ov{host}"))).into();
    let k1 = sandboxes[0].container(lab, "k1", "203.0.113.11/24");
    let k2 = sandboxes[1].container(lab, "k2", "203.0.113.12/24");
    sandboxes[0].knows(&k2, lab.host(2));
    sandboxes[1].knows(&k1, lab.host(1));
    let agents = agents(lab, 3);
    for (agent, sandbox) in agents.iter().zip(&sandboxes) {
        link(agent, &sandbox.path());
    }
    (sandboxes, [k1, k2], agents)
}

fn kernel_device_both_ways() {
    let lab = Lab::with_hosts(3).underlay(Underlay::Plain).build();
    let (sandboxes, [k1, k2], agents) = linked(&lab);
    let capture =
        Capture::start(lab.switch(), "p3", &format!("udp port {THEIR_PORT}"), &lab.logs(), "outer");
    let c3 = agents[2].container(&lab, SWARM, "c3", &[]);
    assert_eq!((c3.mtu(), k1.mtu()), (1450, 1450));
    assert_eq!(c3.mac()[..2], [2, 0x42], "MACs are as Docker makes them");
    wait_imported(&agents[2], &k1, lab.host(1));
    wait_imported(&agents[2], &k2, lab.host(2));
    let neighbors = agents[2].json(&["neighbors", SWARM]).to_string();
    for container in [&k1, &k2] {
        let ip = container.address(Family::V4).to_string();
        assert!(neighbors.contains(&ip), "{ip} is not in {neighbors}");
    }
    sandboxes.iter().for_each(|sandbox| wait_entered(sandbox, &c3));
    converse(&lab, &c3, &k1);
    converse(&lab, &c3, &k2);
    carry(&lab, &k1, &k2, 100_000);
    // Ours alone, on the other port, between the same hosts.
    agents[0].create_network(OWN, &["--subnet", "198.51.100.0/24"]);
    let own: Vec<Container> =
        [0, 2].map(|at| agents[at].container(&lab, OWN, &format!("own{at}"), &[])).into();
    carry(&lab, &own[0], &own[1], 100_000);

    // Who comes later is followed, on both sides, and so is who goes.
    let later = sandboxes[0].container(&lab, "k3", "203.0.113.13/24");
    measured(
        "a container there, imported on another host",
        format!("{:?}", wait_imported(&agents[2], &later, lab.host(1))),
    );
    traffic::ping(c3.netns(), later.address(Family::V4), 56);
    let c4 = agents[2].container(&lab, SWARM, "c4", &[]);
    let mac = mac_text(c4.mac());
    sandboxes.iter().for_each(|sandbox| wait_entered(sandbox, &c4));
    traffic::ping(later.netns(), c4.address(Family::V4), 56);
    traffic::ping(k2.netns(), c4.address(Family::V4), 56);
    agents[2].detach(SWARM, &c4);
    wait_until("it is forgotten there", SOON, || {
        (!sandboxes[0].entries().contains(&mac)).then_some(())
    });
    let entries = sandboxes[0].entries();
    assert!(entries.contains(&mac_text(k2.mac())), "entries of others stay: {entries}");
    sandboxes[0].netns.ip("link del k3");
    wait_gone(&agents[2], later.mac());
    // Broadcasts and questions of both sides stay where they are.
    let _ = c3.netns().try_exec("ping", &["-c1", "-W1", "-b", "203.0.113.255"]);
    let _ = c3.netns().try_exec("ping", &["-c1", "-W1", "203.0.113.250"]);
    let seen = looks_like_docker(&capture);
    assert!(seen > 1000, "{seen} packets");

    // What is printed is what was entered, and can be run.
    let printed = agents[0].cli(&["network", "vtep", "export", SWARM]).stdout;
    let (mac, vtep) = (mac_text(c3.mac()), lab.host(3).address(Family::V4));
    assert!(
        printed.contains(&format!("bridge fdb replace {mac} dev vxlan0 dst {vtep}")),
        "{printed}"
    );
    for line in printed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let _ = sandboxes[0].netns.exec(words[0], &words[1..]);
    }
    // And taken back.
    for way in ["export", "import"] {
        let _ = agents[0].cli(&["network", "vtep", way, SWARM, "--stop"]);
        let _ = agents[1].cli(&["network", "vtep", way, SWARM, "--stop"]);
    }
    let entries = sandboxes[0].entries();
    assert!(!entries.contains(&mac), "{entries}");
    assert!(entries.contains(&mac_text(k2.mac())), "{entries}");
    wait_gone(&agents[2], k1.mac());
    let vteps = agents[2].json(&["network", "vtep", "ls", SWARM]);
    assert_eq!(vteps.as_array().map(Vec::len), Some(0), "{vteps}");
}

fn follows_over_restarts() {
    let lab = Lab::with_hosts(2).build();
    let sandbox = Sandbox::new(&lab, lab.host(2), "ov2");
    let k1 = sandbox.container(&lab, "k1", "203.0.113.11/24");
    let agents = agents(&lab, 2);
    // By a pattern, as Docker's sandboxes change their number.
    let pattern = sandbox.path().replace("-ov2", "-*2");
    link(&agents[1], &pattern);
    let c1 = agents[0].container(&lab, SWARM, "c1", &[]);
    wait_imported(&agents[0], &k1, lab.host(2));
    wait_entered(&sandbox, &c1);
    traffic::ping(c1.netns(), k1.address(Family::V4), 56);

    // What happens while the agent is away is made good by the next one.
    agents[1].kill9();
    let meanwhile = sandbox.container(&lab, "k2", "203.0.113.12/24");
    agents[1].start();
    wait_imported(&agents[0], &meanwhile, lab.host(2));
    traffic::ping(c1.netns(), meanwhile.address(Family::V4), 56);

    // The device goes: who was on its side goes with it, and all comes back with the next one.
    sandbox.netns.ip("link del vxlan0");
    wait_until("the missing device is told", SOON, || {
        (state(&agents[1], "export") == "waiting" && state(&agents[1], "import") == "waiting")
            .then_some(())
    });
    wait_gone(&agents[0], k1.mac());
    sandbox.add_device();
    wait_imported(&agents[0], &k1, lab.host(2));
    wait_entered(&sandbox, &c1);
    traffic::ping(k1.netns(), c1.address(Family::V4), 56);
    wait_until("it is followed again", SOON, || {
        (state(&agents[1], "export") == "following").then_some(())
    });

    // An address of ours is not given up to a device that has it too, and the clash is named.
    let clash = sandbox.container(&lab, "k9", &format!("{}/24", c1.address(Family::V4)));
    wait_until("the clash is told", SOON, || {
        let listed = agents[1].cli(&["network", "vtep", "ls", SWARM]).stdout;
        listed.contains("left out").then_some(())
    });
    assert_eq!(imported(&agents[0], clash.mac()), None);
    sandbox.netns.ip("link del k9");

    // A host that is gone for good leaves what it said, until somebody says so.
    let forget =
        || agents[0].try_cli(&["network", "vtep", "import", SWARM, "--stop", "--host", "h2"]);
    let refused = forget();
    assert!(!refused.status.success() && refused.stderr.contains("alive"), "{refused}");
    agents[1].kill9();
    assert!(imported(&agents[0], k1.mac()).is_some());
    wait_until("its lease ends", SOON, || forget().status.success().then_some(()));
    wait_gone(&agents[0], k1.mac());
}

/// Docker puts the virtual address of a service beside that of its load balancer on every host, and
/// devices may know a MAC without its address: hosts that differ do not correct each other for ever.
fn hosts_that_differ_come_to_rest() {
    let lab = Lab::with_hosts(3).build();
    let sandboxes: Vec<Sandbox> =
        [1, 2].map(|host| Sandbox::new(&lab, lab.host(host), &format!("ov{host}"))).into();
    let k1 = sandboxes[0].container(&lab, "k1", "203.0.113.11/24");
    let k2 = sandboxes[1].container(&lab, "k2", "203.0.113.12/24");
    k1.netns().ip(&format!("addr add 203.0.113.99/32 dev {}", k1.ifname()));
    k1.netns().ip(&format!("addr add 203.0.113.21/24 dev {}", k1.ifname()));
    sandboxes[1].knows(&k1, lab.host(1));
    let (mac, vtep) = (mac_text(k2.mac()), lab.host(2).address(Family::V4));
    sandboxes[0].netns.bridge(&format!("fdb replace {mac} dev vxlan0 dst {vtep} self permanent"));
    let agents = agents(&lab, 3);
    for (agent, sandbox) in agents.iter().zip(&sandboxes) {
        link(agent, &sandbox.path());
    }
    let _c3 = agents[2].container(&lab, SWARM, "c3", &[]);
    let listed = || agents[2].json(&["network", "vtep", "ls", SWARM]);
    let told = |listed: &Value, mac: [u8; 6]| -> Option<Value> {
        let known = listed.as_array()?.iter().flat_map(|vtep| vtep["imported"].as_array());
        known.flatten().find(|known| known["mac"] == mac_text(mac).as_str()).cloned()
    };
    wait_until("both hosts say both", SOON, || {
        let listed = listed();
        [k1.mac(), k2.mac()]
            .iter()
            .all(|mac| told(&listed, *mac).is_some_and(|it| it["by"] == json!(["h1", "h2"])))
            .then_some(())
    });
    // Each round, both agents have seen the store change.
    let before = listed();
    assert_eq!(told(&before, k1.mac()).unwrap()["ips"], json!(["203.0.113.11", "203.0.113.21"]));
    assert_eq!(told(&before, k2.mac()).unwrap()["ips"], json!(["203.0.113.12"]));
    for round in 0..5 {
        let container = agents[2].container(&lab, SWARM, &format!("r{round}"), &[]);
        sandboxes.iter().for_each(|sandbox| wait_entered(sandbox, &container));
    }
    assert_eq!(listed()[0]["revision"], before[0]["revision"], "the record stands still");
}

fn many_entries_at_once() {
    const MANY: usize = 1000;
    let lab = Lab::with_hosts(2).build();
    let sandbox = Sandbox::new(&lab, lab.host(1), "ov1");
    let agents = agents(&lab, 2);
    link(&agents[0], &sandbox.path());
    // So many at once are more than a socket holds: it is told, and all is read anew.
    agents[0].allow_log("netlink socket buffer full");
    let _c2 = agents[1].container(&lab, SWARM, "c2", &[]);
    let batch = |verb: &str| -> String {
        (0..MANY)
            .map(|n| {
                let mac = format!("00:00:5e:00:{:02x}:{:02x}", n / 250 + 1, n % 250);
                format!("fdb {verb} {mac} dev vxlan0 dst 192.0.2.77 self permanent\n")
            })
            .collect()
    };
    let file = lab.directory().join("entries");
    let run = |verb: &str| {
        std::fs::write(&file, batch(verb)).unwrap();
        let _ = sandbox.netns.exec("bridge", &["-batch", file.to_str().unwrap()]);
    };
    let count = || {
        let listed = agents[1].json(&["fdb", SWARM]);
        listed.as_array().into_iter().flatten().filter(|row| row["source"] == "imported").count()
    };
    for _ in 0..2 {
        run("add");
        let begun = Instant::now();
        wait_until("all are imported", SOON, || (count() == MANY).then_some(()));
        measured("1000 entries of a device on another host", format!("{:?}", begun.elapsed()));
        run("del");
        wait_until("all are gone", SOON, || (count() == 0).then_some(()));
    }
}

fn what_does_not_fit_is_refused() {
    let lab = Lab::with_hosts(1).build();
    let sandbox = Sandbox::new(&lab, lab.host(1), "ov1");
    let agents = agents(&lab, 1);
    agents[0].create_network(OWN, &["--subnet", "198.51.100.0/24"]);
    let path = sandbox.path();
    let refused = agents[0].try_cli(&["network", "vtep", "import", OWN, "--netns", &path]);
    assert!(!refused.status.success() && refused.stderr.contains("VNI"), "{refused}");
    let words = ["network", "vtep", "export", SWARM, "--netns", &path, "--dev", "br0", "--apply"];
    let refused = agents[0].try_cli(&words);
    assert!(!refused.status.success() && refused.stderr.contains("br0"), "{refused}");
    let refused = agents[0].try_cli(&["network", "vtep", "import", SWARM, "--stop"]);
    assert!(!refused.status.success() && refused.stderr.contains("followed"), "{refused}");
    // The port is Docker's here, so the network cannot be attached to on this host.
    let refused = agents[0].try_cli(&["attach", SWARM, "--netns", &path]);
    assert!(!refused.status.success() && refused.stderr.contains("4789"), "{refused}");
}

/// Once is once: what is there is entered, and nothing is followed.
fn entered_once() {
    let lab = Lab::with_hosts(2).build();
    let sandbox = Sandbox::new(&lab, lab.host(1), "ov1");
    let agents = agents(&lab, 2);
    let path = sandbox.path();
    let once = ["network", "vtep", "export", SWARM, "--netns", &path, "--apply"];
    let known = |count: usize| {
        wait_until("the endpoint is known", SOON, || {
            let known = agents[0].json(&["endpoints"]);
            (known.as_array().map(Vec::len) == Some(count)).then_some(())
        });
    };
    let first = agents[1].container(&lab, SWARM, "c1", &[]);
    known(1);
    assert!(agents[0].cli(&once).stdout.contains("once"));
    wait_entered(&sandbox, &first);
    let listed = agents[0].cli(&["network", "vtep", "ls", SWARM]).stdout;
    assert!(!listed.contains("export"), "{listed}");
    let second = agents[1].container(&lab, SWARM, "c2", &[]);
    known(2);
    assert!(!sandbox.entries().contains(&mac_text(second.mac())));
    let _ = agents[0].cli(&once);
    wait_entered(&sandbox, &second);
}

/// Docker on the first two hosts of the lab, in one Swarm; the first one is its manager.
fn two_node_swarm(lab: &Lab) -> [Docker; 2] {
    let dockers = [1, 2].map(|host| Docker::new(lab, lab.host(host), DockerRelease::Usual));
    let at = |host: usize| lab.host(host).address(Family::V4).to_string();
    for docker in &dockers {
        docker.start(&[]);
    }
    let _ = dockers[0].docker(&["swarm", "init", "--advertise-addr", &at(1)]);
    let token = dockers[0].docker(&["swarm", "join-token", "-q", "worker"]);
    let manager = format!("{}:2377", at(1));
    let _ = dockers[1].docker(&[
        "swarm",
        "join",
        "--token",
        &token,
        "--advertise-addr",
        &at(2),
        &manager,
    ]);
    dockers
}

fn docker_overlay_both_ways() {
    let lab = Lab::with_hosts(3).underlay(Underlay::Plain).build();
    let dockers = two_node_swarm(&lab);
    let vni = format!("com.docker.network.driver.overlay.vxlanid_list={SWARM_VNI}");
    let id = dockers[0].docker(&[
        "network",
        "create",
        "--driver",
        "overlay",
        "--attachable",
        "--subnet",
        SUBNET,
        "--ip-range",
        THEIRS,
        "--opt",
        &vni,
        SWARM,
    ]);
    let short = id.get(..10).unwrap();
    let agents = agents(&lab, 3);
    // Followed before there is anything: the sandbox comes with the first container.
    for (agent, docker) in agents.iter().zip(&dockers) {
        link(agent, &format!("{}/exec/netns/*-{short}", docker.directory().display()));
    }
    let capture =
        Capture::start(lab.switch(), "p3", &format!("udp port {THEIR_PORT}"), &lab.logs(), "outer");
    let c3 = agents[2].container(&lab, SWARM, "c3", &[]);
    let run = |docker: &Docker, name: &str| {
        let begun = Instant::now();
        // A worker hears of a network of the manager's within moments.
        let container = docker.run(name, SWARM, &[]);
        measured(&format!("docker run {name}"), format!("{:?}", begun.elapsed()));
        container
    };
    let a1 = run(&dockers[0], "a1");
    let a2 = run(&dockers[1], "a2");
    assert_eq!((a1.mtu(), c3.mtu()), (1450, 1450));
    wait_imported(&agents[2], &a1, lab.host(1));
    wait_imported(&agents[2], &a2, lab.host(2));
    converse(&lab, &c3, &a1);
    converse(&lab, &c3, &a2);
    carry(&lab, &a1, &a2, 100_000);

    // Who comes later is followed, on both sides, and so is who goes.
    let b2 = run(&dockers[1], "b2");
    let took = wait_imported(&agents[2], &b2, lab.host(2));
    measured("a container of Docker's, imported on another host", format!("{took:?}"));
    traffic::ping(c3.netns(), b2.address(Family::V4), 56);
    let d3 = agents[2].container(&lab, SWARM, "d3", &[]);
    wait_until("Docker's containers reach it", SOON, || {
        let to = d3.address(Family::V4);
        (traffic::reaches(a1.netns(), to) && traffic::reaches(b2.netns(), to)).then_some(())
    });
    let gone = b2.mac();
    drop(b2);
    let _ = dockers[1].docker(&["rm", "--force", "b2"]);
    wait_gone(&agents[2], gone);
    let seen = looks_like_docker(&capture);
    assert!(seen > 1000, "{seen} packets");

    // The last container of a host takes the sandbox with it; the next one brings another.
    drop(a2);
    let _ = dockers[1].docker(&["rm", "--force", "a2"]);
    wait_until("the sandbox is gone", SOON, || {
        (state(&agents[1], "import") == "waiting").then_some(())
    });
    let a2 = run(&dockers[1], "a2");
    wait_imported(&agents[2], &a2, lab.host(2));
    wait_until("the new sandbox knows ours", SOON, || {
        traffic::reaches(a2.netns(), c3.address(Family::V4)).then_some(())
    });
    converse(&lab, &c3, &a2);
}

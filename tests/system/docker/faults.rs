//! Crashes of Docker and of the agent, and what Docker does not say then.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Agent, DockerRelease, Family, Lab, Netns, Store, traffic, wait_until};

use super::replay::{ask, send};
use super::{ALLOWED, Scene};
use crate::support::{exchange, measured};

/// Both are killed while containers run; in the end nothing is left of anything.
pub(crate) fn crashes(release: DockerRelease) {
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
        "--subnet",
        "198.51.100.0/24",
        "web",
    ]);
    let first = one.run("c1", "web", &[]);
    let second = two.run("c2", "web", &[]);
    traffic::ping(first.netns(), second.address(Family::V4), 56);

    // The agent: containers keep their interfaces, and are reached again when it is back.
    let interface = first.netns().ip("-br link show eth0");
    scene.agents[0].kill9();
    scene.agents[0].start();
    let ((), took) = wait_until("traffic flows again", ALLOWED, || {
        traffic::reaches(first.netns(), second.address(Family::V4)).then_some(())
    });
    measured("after the agent's restart, the first answer", format_args!("{took:?}"));
    assert_eq!(first.netns().ip("-br link show eth0"), interface, "the same interface");
    exchange(&scene.lab, &first, &second, 1_000_000);
    let third = one.run("c3", "web", &[]);
    traffic::ping(third.netns(), first.address(Family::V4), 56);

    // Docker: its containers go on, until the next daemon ends them without a word to us.
    one.kill9();
    traffic::ping(first.netns(), second.address(Family::V4), 56);
    one.start(&[]);
    wait_until("what Docker has forgotten is gone", ALLOWED, || {
        let left = scene.agents[1].json(&["endpoints"]);
        (left.as_array().map(Vec::len) == Some(1)).then_some(())
    });
    let _ = one.docker(&["start", "c1", "c3"]);
    drop(first);
    let first = one.container("c1", "eth0");
    traffic::ping(first.netns(), second.address(Family::V4), 56);

    // Both at once, with the agent back first or last.
    one.kill9();
    scene.agents[0].kill9();
    scene.agents[0].start();
    one.start(&[]);
    let _ = one.docker(&["start", "c1"]);
    drop((first, third));
    let first = one.container("c1", "eth0");
    traffic::ping(first.netns(), second.address(Family::V4), 56);

    drop((first, second));
    let _ = one.docker(&["rm", "-f", "c1", "c3"]);
    let _ = two.docker(&["rm", "-f", "c2"]);
    scene.both(&["network", "rm", "web"]);
    scene.wait_traces(&before);
}

/// Docker by hand, without the daemon: what it does to an interface, and what it may leave out.
pub(super) struct Hand<'a> {
    pub(super) socket: &'a Path,
    pub(super) network: &'static str,
}

impl Hand<'_> {
    pub(super) fn ids(&self, endpoint: &str) -> Value {
        json!({ "NetworkID": self.network, "EndpointID": endpoint })
    }

    #[track_caller]
    pub(super) fn done(&self, method: &str, request: &Value) -> Value {
        let answer = ask(self.socket, method, request);
        assert!(answer.get("Err").is_none() && answer.get("Error").is_none(), "{method}: {answer}");
        answer
    }

    /// CreateEndpoint with this address.
    #[track_caller]
    pub(super) fn create(&self, endpoint: &str, address: &str) -> Value {
        let mut request = self.ids(endpoint);
        request["Interface"] = json!({ "Address": address, "AddressIPv6": "", "MacAddress": "" });
        self.done("NetworkDriver.CreateEndpoint", &request)
    }

    /// Join with a sandbox that is not there yet, as Docker does; gives the interface's name.
    #[track_caller]
    pub(super) fn join_early(&self, endpoint: &str) -> String {
        let mut request = self.ids(endpoint);
        request["SandboxKey"] = json!(format!("/var/run/docker/netns/{endpoint}"));
        let answer = self.done("NetworkDriver.Join", &request);
        // Not heard by Docker, and asked again.
        assert_eq!(self.done("NetworkDriver.Join", &request), answer);
        answer["InterfaceName"]["SrcName"].as_str().unwrap().to_owned()
    }

    /// Join, and what Docker does then.
    #[track_caller]
    fn join(&self, agent: &Agent, endpoint: &str, address: &str, sandbox: &Netns) {
        let name = self.join_early(endpoint);
        self.take(agent, &name, address, sandbox);
    }

    /// What Docker does with an interface.
    #[track_caller]
    pub(super) fn take(&self, agent: &Agent, name: &str, address: &str, sandbox: &Netns) {
        let _ = agent.netns().ip(&format!("link set {name} netns {} name eth0", sandbox.name()));
        let _ = sandbox.ip(&format!("addr add {address} dev eth0"));
        let _ = sandbox.ip("link set eth0 up");
    }
}

#[track_caller]
pub(super) fn wait_endpoints(agent: &Agent, count: usize) {
    wait_endpoints_within(agent, count, ALLOWED);
}

#[track_caller]
fn wait_endpoints_within(agent: &Agent, count: usize, limit: Duration) {
    wait_until(&format!("{count} endpoints are left"), limit, || {
        let left = agent.json(&["endpoints"]);
        (left.as_array().map(Vec::len) == Some(count)).then_some(())
    });
}

/// What an endpoint's note says.
#[track_caller]
pub(super) fn note(agent: &Agent, endpoint: &str) -> Value {
    let path = agent.state_dir().join("attachments").join(endpoint);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Longer than what Docker did not end is left alone, and than the pause between two looks.
const FORLORN: Duration = Duration::from_secs(100);

/// Under the settings of the unit: it shows that they leave enough for Docker.
pub(crate) fn lost_messages() {
    const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/skybridge.service");
    let lab = Lab::with_hosts(1).build();
    let socket = lab.directory().join("docker1.sock");
    let path = socket.display().to_string();
    let spec = lab.spec(1, Store::Embedded, Family::V4).unit(UNIT);
    let agent = lab.start_agent(1, spec.args(&["--docker", "--docker-socket", &path]));
    let mode = std::os::unix::fs::PermissionsExt::mode(&socket.metadata().unwrap().permissions());
    assert_eq!(mode & 0o007, 0, "nobody else may open it: {mode:o}");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let asked = json!({ "Pool": "198.51.100.0/24", "AddressSpace": "skybridge-local" });
    let pool = hand.done("IpamDriver.RequestPool", &asked)["PoolID"].clone();
    assert_eq!(hand.done("IpamDriver.RequestPool", &asked)["PoolID"], pool, "the same again");
    let create = json!({
        "NetworkID": hand.network,
        "Options": { "com.docker.network.generic": {} },
        "IPv4Data": [{ "AddressSpace": "skybridge-local", "Pool": "198.51.100.0/24",
            "Gateway": "198.51.100.1/24", "AuxAddresses": { "printer": "198.51.100.2/24" } }],
        "IPv6Data": null,
    });
    let _ = hand.done("NetworkDriver.CreateNetwork", &create);
    let _ = hand.done("NetworkDriver.CreateNetwork", &create);
    let wanted = json!({ "PoolID": pool, "Address": "" });
    let given = |wanted: &Value| {
        let answer = hand.done("IpamDriver.RequestAddress", wanted);
        answer["Address"].as_str().unwrap().to_owned()
    };
    let address = given(&wanted);
    assert_eq!(address, "198.51.100.3/24", "neither the gateway nor what was set aside");

    // An endpoint that a restart of the agent finds again, and that its sandbox takes with it.
    let sandbox = lab.sandbox("s1");
    let made = hand.create("e1", &address);
    assert_eq!(made["Interface"]["MacAddress"], "02:42:c6:33:64:03");
    assert_eq!(hand.create("e1", &address), made, "the same again");
    hand.join(&agent, "e1", &address, &sandbox);
    let other = agent.container(&lab, "docker-198.51.100.0-24", "other", &[]);
    let inside = |netns: &std::sync::Arc<Netns>| {
        let to = address.split('/').next().unwrap().parse().unwrap();
        wait_until("it is reached", ALLOWED, || traffic::reaches(netns, to).then_some(()));
    };
    inside(other.netns());
    agent.kill9();
    agent.start();
    inside(other.netns());
    wait_endpoints(&agent, 2);
    drop(sandbox);
    let _ = run_ip(&["netns", "del", &format!("{}-s1", lab.prefix())]);
    wait_endpoints(&agent, 1);

    // A sandbox that ended while the agent was away: its address is given to the next endpoint.
    let sandbox = lab.sandbox("s2");
    let address = "198.51.100.50/24";
    let _ = given(&json!({ "PoolID": pool, "Address": "198.51.100.50" }));
    let twice = ask(
        &socket,
        "IpamDriver.RequestAddress",
        &json!({ "PoolID": pool, "Address": "198.51.100.50" }),
    );
    assert!(twice["Error"].as_str().is_some_and(|text| text.contains("198.51.100.50")), "{twice}");
    let _ = hand.create("e2", address);
    hand.join(&agent, "e2", address, &sandbox);
    let inspected = agent.json(&["network", "inspect", "docker-198.51.100.0-24"]);
    let pin = format!("--net={}", inspected["local"]["namespace"].as_str().unwrap());
    let host = agent.netns().clone();
    let ports = || host.exec("nsenter", &[&pin, "ip", "-br", "link", "show", "type", "veth"]);
    let before = ports().lines().count();
    agent.kill9();
    drop(sandbox);
    let _ = run_ip(&["netns", "del", &format!("{}-s2", lab.prefix())]);
    // The kernel takes a namespace down later, and one after the other.
    wait_until("its interface is gone", ALLOWED, || {
        (ports().lines().count() < before).then_some(())
    });
    agent.start();
    let _ = hand.create("e3", address);
    wait_endpoints(&agent, 2);
    // A container that is just starting is not ended by what another one gives back.
    let fifty = json!({ "PoolID": pool, "Address": "198.51.100.50" });
    let _ = hand.done("IpamDriver.ReleaseAddress", &fifty);
    let refused = ask(&socket, "IpamDriver.RequestAddress", &fifty);
    assert!(refused["Error"].as_str().is_some_and(|text| text.contains("in use")), "{refused}");
    // So is one whose interface Docker takes its time to move; it asked for an address, too, that
    // its first start has left.
    let sixty = json!({ "PoolID": pool, "Address": "198.51.100.60" });
    let _ = given(&sixty);
    let slow = given(&wanted);
    let _ = hand.create("e5", &slow);
    let interface = hand.join_early("e5");
    let bare = slow.split('/').next().unwrap();
    let _ = hand.done("IpamDriver.ReleaseAddress", &json!({ "PoolID": pool, "Address": bare }));
    wait_endpoints(&agent, 3);

    // An interface that Docker has put back, and an endpoint that it has not removed.
    let sandbox = lab.sandbox("s3");
    let address = given(&wanted);
    let _ = hand.create("e4", &address);
    hand.join(&agent, "e4", &address, &sandbox);
    wait_until("the move of the interface is noted", ALLOWED, || {
        (note(&agent, "e4")["moved"] == true).then_some(())
    });
    agent.kill9();
    let host = agent.netns().name().to_owned();
    let _ = sandbox.ip(&format!("link set eth0 netns {host} name back0"));
    agent.start();
    wait_endpoints_within(&agent, 2, FORLORN);
    assert_eq!(note(&agent, "e5")["stage"], "attached", "a start may take longer");
    let _ = agent.netns().ip(&format!("link show {interface}"));
    assert_eq!(given(&sixty), "198.51.100.60/24", "its start has failed");

    for method in ["NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"] {
        for endpoint in ["e1", "e2", "e3", "e4", "e5", "never"] {
            let _ = hand.done(method, &hand.ids(endpoint));
            let _ = hand.done(method, &hand.ids(endpoint));
        }
    }
    let left = agent.netns().ip("-br link");
    assert!(!left.contains("back0") && !left.contains("vs"), "{left}");
    agent.detach("docker-198.51.100.0-24", &other);
    for _ in 0..2 {
        let _ = hand.done("NetworkDriver.DeleteNetwork", &json!({ "NetworkID": hand.network }));
    }
    assert_eq!(agent.json(&["network", "ls"]), json!([]));
    agent.stop();
    assert!(!socket.exists(), "the socket goes with the agent");
}

fn run_ip(args: &[&str]) -> testkit::Finished {
    let mut command = std::process::Command::new("ip");
    command.args(args);
    testkit::run(command)
}

/// Whatever comes is answered, and the agent goes on.
pub(crate) fn bad_requests() {
    let lab = Lab::with_hosts(1).build();
    let (agent, socket) = super::replay::agent(&lab, 1, "local");
    let status = |head: &str, body: &str| send(&socket, head, body).0;
    assert_eq!(status("POST /NetworkDriver.Dance", "{}"), 404);
    assert_eq!(status("POST /", ""), 404);
    assert_eq!(status("GET /Plugin.Activate", ""), 405);
    assert_eq!(status("POST /NetworkDriver.Join", "{\"NetworkID\": "), 400);
    assert_eq!(status("POST /NetworkDriver.Join", &" ".repeat(2 << 20)), 413);
    for method in ["NetworkDriver.CreateNetwork", "NetworkDriver.CreateEndpoint"] {
        for body in ["", "{}", "null", "{\"NetworkID\":null,\"IPv4Data\":null,\"x\":[1]}"] {
            let (status, answer) = send(&socket, &format!("POST /{method}"), body);
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert!(status == 200 && answer["Err"].is_string(), "{method} {body}: {answer}");
        }
    }
    for (body, says) in [
        ("{}", "no pool of this driver"),
        ("{\"PoolID\":\"198.51.100.0/24;what=x\"}", "no pool of this driver"),
        ("{\"PoolID\":\"198.51.100.0/24\",\"Address\":\"192.0.2.1\"}", "outside"),
        ("{\"PoolID\":\"198.51.100.0/24\",\"Address\":\"x\"}", "no address"),
        ("{\"PoolID\":\"198.51.100.0/24\"}", "--ipam-driver skybridge"),
        ("{\"PoolID\":7}", "not understood"),
    ] {
        let (_, answer) = send(&socket, "POST /IpamDriver.RequestAddress", body);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["Error"].as_str().is_some_and(|text| text.contains(says)), "{answer}");
    }
    let random = b"POST /NetworkDriver.CreateNetwork HTTP/1.1\r\n\x00\xff\xfe garbage\r\n\r\n";
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(&mut stream, random).unwrap();
    drop(stream);
    let check = ask(&socket, "NetworkDriver.GwAllocCheck", &json!({ "Options": {} }));
    assert_eq!(check, json!({ "SkipIPv4": false, "SkipIPv6": false }));
    let chosen = ask(&socket, "IpamDriver.RequestPool", &json!({ "V6": true }));
    assert!(chosen["Pool"].as_str().is_some_and(|pool| pool.starts_with("fd")), "{chosen}");
    assert_eq!(agent.json(&["network", "ls"]), json!([]));
}

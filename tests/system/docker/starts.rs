//! What Docker asks in the moment in which an agent stops or starts, on one host and on the second.

use std::fs;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{Agent, Family, Lab, Store, traffic, wait_until};

use super::ALLOWED;
use super::faults::{Hand, note, wait_endpoints};
use super::replay::ask;

const NETWORK: &str = "docker-198.51.100.0-24";

/// A network of local scope with this subnet and these options of the user; gives the pool's id.
#[track_caller]
fn network(hand: &Hand<'_>, aside: &Value, options: &Value) -> Value {
    let asked = json!({ "Pool": "198.51.100.0/24", "AddressSpace": "skybridge-local" });
    let pool = hand.done("IpamDriver.RequestPool", &asked)["PoolID"].clone();
    for address in aside.as_object().into_iter().flat_map(|all| all.values()) {
        let asked = json!({ "PoolID": pool, "Address": address });
        let _ = hand.done("IpamDriver.RequestAddress", &asked);
    }
    let create = json!({
        "NetworkID": hand.network,
        "Options": { "com.docker.network.generic": options },
        "IPv4Data": [{ "AddressSpace": "skybridge-local", "Pool": "198.51.100.0/24",
            "Gateway": "198.51.100.1/24", "AuxAddresses": aside }],
    });
    let _ = hand.done("NetworkDriver.CreateNetwork", &create);
    pool
}

/// Writes into the note of an agent that does not run what it says before the store has answered.
fn unsay(agent: &Agent, from: &str, to: &str, address: &str) {
    let mut cut_off = note(agent, from);
    cut_off["endpoint"] = json!(to);
    cut_off["publication"] = json!("unsure");
    cut_off["mac"] = json!("00:00:00:00:00:00");
    cut_off["ips"] = json!([address]);
    let path = agent.state_dir().join("attachments").join(to);
    fs::write(path, cut_off.to_string()).unwrap();
}

/// CreateEndpoint and Join complete what an earlier run has begun, whether the store has it or not.
pub(crate) fn cut_off() {
    let lab = Lab::with_hosts(1).build();
    let (agent, socket) = super::replay::agent(&lab, 1, "local");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let _ = network(&hand, &json!({}), &json!({}));
    let (first, second, third) = ("198.51.100.40/24", "198.51.100.41/24", "198.51.100.42/24");
    let made = hand.create("e1", first);
    assert_eq!(made["Interface"]["MacAddress"], "02:42:c6:33:64:28");
    agent.kill9();
    unsay(&agent, "e1", "e1", first);
    unsay(&agent, "e1", "e2", second);
    unsay(&agent, "e1", "e3", third);
    agent.start();
    assert_eq!(hand.create("e1", first), made, "what the store has");
    assert_eq!(hand.create("e2", second)["Interface"]["MacAddress"], "02:42:c6:33:64:29");
    let interface = hand.join_early("e3");
    let shown = agent.netns().ip(&format!("link show {interface}"));
    assert!(shown.contains("02:42:c6:33:64:2a"), "{shown}");
    wait_endpoints(&agent, 3);
    for (endpoint, state) in [("e1", "reserved"), ("e2", "reserved"), ("e3", "attached")] {
        let note = note(&agent, endpoint);
        assert_eq!((&note["stage"], &note["publication"]), (&json!(state), &json!("done")));
    }
}

/// Docker moves the interface when it likes, into a sandbox that the agent need not see.
pub(crate) fn restart_before_the_move() {
    let lab = Lab::with_hosts(1).build();
    let (agent, socket) = super::replay::agent(&lab, 1, "local");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let _ = network(&hand, &json!({}), &json!({}));
    let address = "198.51.100.40/24";
    let _ = hand.create("e1", address);
    let interface = hand.join_early("e1");
    let index = || agent.netns().ip(&format!("-br link show {interface}"));
    let before = index();
    agent.kill9();
    agent.start();
    assert_eq!(index(), before, "the same interface waits for Docker");
    let sandbox = lab.sandbox("s1");
    hand.take(&agent, &interface, address, &sandbox);
    let other = agent.container(&lab, NETWORK, "other", &[]);
    let reached = || {
        wait_until("the container is reached", ALLOWED, || {
            traffic::reaches(other.netns(), "198.51.100.40".parse().unwrap()).then_some(())
        });
    };
    reached();
    // Its sandbox can still not be opened.
    agent.kill9();
    agent.start();
    reached();
    wait_endpoints(&agent, 2);
}

/// What is under way when the agent is told to stop is answered.
pub(crate) fn stop_of_the_agent() {
    let lab = Lab::with_hosts(1).build();
    let (agent, socket) = super::replay::agent(&lab, 1, "local");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let _ = network(&hand, &json!({}), &json!({}));
    for number in 0..3_u8 {
        let endpoint = format!("e{number}");
        let mut request = hand.ids(&endpoint);
        request["Interface"] = json!({ "Address": format!("198.51.100.{}/24", 40 + number) });
        let note = agent.state_dir().join("attachments").join(&endpoint);
        thread::scope(|scope| {
            let asking = scope.spawn(|| hand.done("NetworkDriver.CreateEndpoint", &request));
            wait_until("it is under way", ALLOWED, || note.exists().then_some(()));
            agent.signal(Signal::SIGTERM);
            let answer = asking.join().unwrap();
            assert_eq!(
                answer["Interface"]["MacAddress"],
                format!("02:42:c6:33:64:{:02x}", 40 + number)
            );
        });
        wait_until("the agent has stopped", ALLOWED, || (!agent.running()).then_some(()));
        agent.start();
    }
    wait_endpoints(&agent, 3);
}

/// Ports are refused where the user asks for them, and not because the container has some elsewhere.
pub(crate) fn published_ports() {
    let lab = Lab::with_hosts(1).build();
    let (_agent, socket) = super::replay::agent(&lab, 1, "local");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let _ = network(&hand, &json!({}), &json!({ "nat_outgoing": "true" }));
    let ports = json!({ "com.docker.network.portmap": [{ "Proto": 6, "Port": 80 }] });
    let mut request = hand.ids("e1");
    request["Interface"] = json!({ "Address": "198.51.100.40/24" });
    request["Options"] = ports.clone();
    let refused = ask(&socket, "NetworkDriver.CreateEndpoint", &request);
    assert!(refused["Err"].as_str().is_some_and(|text| text.contains("--publish")), "{refused}");
    let _ = hand.create("e1", "198.51.100.40/24");
    let mut request = hand.ids("e1");
    request["SandboxKey"] = json!("/var/run/docker/netns/e1");
    request["Options"] = ports;
    let _ = hand.done("NetworkDriver.Join", &request);
}

/// The same command with --aux-address on two hosts.
pub(crate) fn set_aside() {
    let lab = Lab::with_hosts(2).build();
    let agents = [1, 2].map(|host| super::replay::agent(&lab, host, "local"));
    let aside = json!({ "printer": "198.51.100.2" });
    for ((_, socket), network_id) in agents.iter().zip(["0123456789abcdef", "fedcba9876543210"]) {
        let hand = Hand { socket, network: network_id };
        let pool = network(&hand, &aside, &json!({}));
        let mut request = hand.ids("e1");
        request["Interface"] = json!({ "Address": "198.51.100.2/24" });
        let refused = ask(socket, "NetworkDriver.CreateEndpoint", &request);
        assert!(refused["Err"].as_str().is_some_and(|text| text.contains("cannot be given")));
        let any = hand.done("IpamDriver.RequestAddress", &json!({ "PoolID": pool }));
        assert_ne!(any["Address"], "198.51.100.2/24");
    }
    assert_eq!(agents[0].0.json(&["network", "ls"]).as_array().map(Vec::len), Some(1));
}

/// Two leaders of a Swarm allocate, the last one frees, and what is repeated harms nobody.
pub(crate) fn swarm_frees() {
    let lab = Lab::with_hosts(2).build();
    let agents = [1, 2].map(|host| super::replay::agent(&lab, host, "global"));
    let hands =
        agents.each_ref().map(|(_, socket)| Hand { socket, network: "p6n4cehdm1xjw2v0a9tqrk3sy" });
    let data = json!([{ "AddressSpace": "skybridge-global", "Pool": "198.51.100.0/24",
        "Gateway": "198.51.100.1/24" }]);
    let mut options = Value::Null;
    for hand in &hands {
        let asked =
            json!({ "NetworkID": hand.network, "Options": { "vni": "77" }, "IPv4Data": data });
        options = hand.done("NetworkDriver.AllocateNetwork", &asked)["Options"].clone();
    }
    for hand in &hands {
        let options = json!({
            "com.docker.network.generic": options,
            "com.docker.network.internal": true,
        });
        let asked = json!({ "NetworkID": hand.network, "Options": options, "IPv4Data": data });
        let _ = hand.done("NetworkDriver.CreateNetwork", &asked);
    }
    let [one, two] = &hands;
    // A node that becomes the leader allocates what it has already, and is not told that it is internal.
    let asked = json!({ "NetworkID": one.network, "Options": options, "IPv4Data": data });
    let _ = one.done("NetworkDriver.AllocateNetwork", &asked);
    let noted = fs::read_to_string(agents[0].0.state_dir().join("docker.json")).unwrap();
    assert!(noted.contains("\"internal\": true"), "{noted}");
    let ids = json!({ "NetworkID": one.network });
    let _ = two.done("NetworkDriver.FreeNetwork", &ids);
    for _ in 0..2 {
        let _ = one.done("NetworkDriver.DeleteNetwork", &ids);
    }
    let _ = two.create("e1", "198.51.100.40/24");
    let _ = two.done("NetworkDriver.DeleteEndpoint", &two.ids("e1"));
    let _ = two.done("NetworkDriver.DeleteNetwork", &ids);
    wait_until("the other host hears of it", ALLOWED, || {
        (agents[0].0.json(&["network", "ls"]) == json!([])).then_some(())
    });
}

/// A store that is not there yet is waited for, as when the machines start.
pub(crate) fn store_comes_later() {
    let lab = Lab::with_hosts(1).build();
    let socket = lab.directory().join("docker1.sock");
    let path = socket.display().to_string();
    let spec = lab.spec(1, Store::Etcd, Family::V4);
    let agent = lab.start_agent(1, spec.args(&["--docker", "--docker-socket", &path]));
    agent.allow_log("store");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let pool = network(&hand, &json!({}), &json!({}));
    let etcd = lab.etcd();
    agent.kill9();
    etcd.kill9();
    // It is ready with the store, and serves Docker before.
    agent.start_without_waiting();
    wait_until("Docker is served", ALLOWED, || UnixStream::connect(&socket).ok());
    let asked = json!({ "PoolID": pool });
    let given = thread::scope(|scope| {
        let asking = scope.spawn(|| hand.done("IpamDriver.RequestAddress", &asked));
        etcd.restart();
        asking.join().unwrap()
    });
    assert_eq!(given["Address"], "198.51.100.2/24");
    agent.wait_ready();

    // What the store has lost of Docker's networks is written again: Docker would not repeat it.
    let keys = || etcd.ctl(&["get", "--prefix", "--keys-only", "/skybridge/v1/docker/"]).stdout;
    let before = keys();
    assert!(before.contains(hand.network), "{before}");
    let _ = etcd.ctl(&["del", "--prefix", "/skybridge/v1/docker/"]);
    agent.kill9();
    agent.start();
    wait_until("it is written again", ALLOWED, || (keys() == before).then_some(()));
    let _ = hand.create("e1", "198.51.100.2/24");
    let _ = hand.done("NetworkDriver.DeleteEndpoint", &hand.ids("e1"));
    let _ = hand.done("NetworkDriver.DeleteNetwork", &json!({ "NetworkID": hand.network }));
    agent.kill9();
    agent.start();
    assert_eq!(agent.json(&["network", "ls"]), json!([]), "what is removed does not come back");
}

/// The network that Docker makes of a pool is the same when the agent was restarted in between, and
/// what is noted of it does not get less when Docker repeats itself late.
pub(crate) fn pools_outlive_the_agent() {
    let lab = Lab::with_hosts(1).build();
    let (agent, socket) = super::replay::agent(&lab, 1, "local");
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let asked = json!({ "Pool": "198.51.100.0/24", "SubPool": "198.51.100.128/25",
        "AddressSpace": "skybridge-local", "Options": { "network": "web" } });
    let pool = hand.done("IpamDriver.RequestPool", &asked)["PoolID"].clone();
    agent.kill9();
    agent.start();
    let create = json!({
        "NetworkID": hand.network,
        "IPv4Data": [{ "AddressSpace": "skybridge-local", "Pool": "198.51.100.0/24",
            "Gateway": "198.51.100.1/24" }],
    });
    let in_the_range = || {
        let given = hand.done("IpamDriver.RequestAddress", &json!({ "PoolID": pool }));
        let address = given["Address"].as_str().unwrap().to_owned();
        let last = address.trim_start_matches("198.51.100.").trim_end_matches("/24");
        assert!(last.parse::<u8>().unwrap() >= 128, "{address}");
    };
    let _ = hand.done("NetworkDriver.CreateNetwork", &create);
    in_the_range();
    assert_eq!(agent.json(&["network", "ls"])[0]["name"], "web");
    agent.kill9();
    fs::remove_file(agent.state_dir().join("docker.json")).unwrap();
    agent.start();
    let again = json!({ "NetworkID": hand.network, "IPv4Data": create["IPv4Data"],
        "Options": { "com.docker.network.generic": { "network": "web" } } });
    let _ = hand.done("NetworkDriver.CreateNetwork", &again);
    in_the_range();
}

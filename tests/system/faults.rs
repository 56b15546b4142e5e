//! What goes wrong around the agent: crashes in the middle of things, sandboxes and stores that go
//! away, records that nobody should have written, many callers at once.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::traffic;
use testkit::{Agent, Container, Family, Lab, Store, Suite, Underlay, wait_until};

use crate::ipam::allow_away;
use crate::support::{AGENTS, DUAL, NETWORK, WITH_ETCD, cluster, measured};

pub(crate) fn register(suite: &mut Suite) {
    suite.test("faults::kill_during_attach_and_detach", WITH_ETCD, kill_during_attach_and_detach);
    suite.test("faults::many_at_once", AGENTS, many_at_once);
    suite.test("faults::a_sandbox_goes", AGENTS, a_sandbox_goes);
    suite.timed("faults::a_store_that_is_silent", WITH_ETCD, a_store_that_is_silent);
    suite.test("faults::records_by_hand", WITH_ETCD, records_by_hand);
    suite.test("faults::a_lower_underlay_joins", AGENTS, a_lower_underlay_joins);
    suite.test("faults::hosts_expire_together", AGENTS, hosts_expire_together);
    suite.test("faults::agents_before_their_store", AGENTS, agents_before_their_store);
    suite.test("faults::an_underlay_address_comes_back", AGENTS, an_underlay_address_comes_back);
    suite.test("faults::a_name_is_taken", AGENTS, a_name_is_taken);
    suite.test("faults::cleanup_is_told_to_the_store", AGENTS, cleanup_is_told_to_the_store);
}

/// Times that a test can wait for.
pub(crate) const SHORT: &str = "[session]\nlease = \"2s\"\nhold_down = \"2s\"";

/// The names of attachments in an agent's state directory, unfinished files included.
pub(crate) fn notes(agent: &Agent) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(agent.state_dir().join("attachments")) else {
        return BTreeSet::new();
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Pinned namespaces of a network, of all agents of this machine.
pub(crate) fn pins(network: &str) -> usize {
    let Ok(entries) = fs::read_dir("/run/skybridge/netns") else { return 0 };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(&format!("-{network}"))).count()
}

pub(crate) fn network_id(agent: &Agent) -> String {
    let found = agent.json(&["network", "inspect", NETWORK]);
    let id = find(&found, "id").unwrap_or_else(|| panic!("no id in {found}"));
    id.as_str().unwrap().to_owned()
}

/// The value of the first field of that name, at any depth.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => {
            fields.get(name).or_else(|| fields.values().find_map(|field| find(field, name)))
        }
        Value::Array(items) => items.iter().find_map(|item| find(item, name)),
        _ => None,
    }
}

/// The endpoints that an agent lists for its own host: id and state.
pub(crate) fn own_endpoints(agent: &Agent) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = agent.json(&["endpoints"]);
    let own = all.as_array().into_iter().flatten().filter(|item| item["host"] == agent.name());
    own.map(|item| (text(&item["id"]), text(&item["state"]))).collect()
}

pub(crate) fn warnings(agent: &Agent) -> String {
    agent.json(&["status"])["warnings"].to_string()
}

fn has_eth0(netns: &testkit::Netns) -> bool {
    netns.try_exec("ip", &["link", "show", "dev", "eth0"]).status.success()
}

/// Waits until nothing of any attachment is left on the agent's host and in the store.
fn wait_nothing_left(agent: &Agent, network: &str) {
    wait_until("nothing is left", Duration::from_secs(15), || {
        let none = own_endpoints(agent).is_empty() && notes(agent).is_empty();
        (none && pins(network) == 0).then_some(())
    });
}

/// etcd's JSON gateway: enough to write what no agent would.
pub(crate) fn etcd(lab: &Lab, call: &str, body: &Value) -> Value {
    let address = lab.etcd().address(Family::V4);
    let answer = lab.switch().enter(|| {
        let body = body.to_string();
        // It may have been started just now.
        let connect = || TcpStream::connect(address).ok();
        let (mut stream, _) = wait_until("etcd answers", Duration::from_secs(20), connect);
        let length = body.len();
        let head = format!("POST /v3/kv/{call} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}

pub(crate) fn put(lab: &Lab, key: &str, value: &str) {
    let body = json!({"key": base64(key.as_bytes()), "value": base64(value.as_bytes())});
    let _ = etcd(lab, "put", &body);
}

pub(crate) fn delete(lab: &Lab, key: &str) {
    let _ = etcd(lab, "deleterange", &json!({"key": base64(key.as_bytes())}));
}

/// How many keys begin so.
pub(crate) fn count(lab: &Lab, prefix: &str) -> u64 {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    let body =
        json!({"key": base64(prefix.as_bytes()), "range_end": base64(&end), "count_only": true});
    etcd(lab, "range", &body)["count"].as_str().map_or(0, |count| count.parse().unwrap())
}

pub(crate) fn get(lab: &Lab, key: &str) -> String {
    let found = etcd(lab, "range", &json!({"key": base64(key.as_bytes())}));
    let value = found["kvs"][0]["value"].as_str().unwrap_or_default();
    String::from_utf8(unbase64(value)).unwrap()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| u32::from(chunk.get(at).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for at in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Vec<u8> {
    let (mut bits, mut have, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter_map(|byte| ALPHABET.iter().position(|other| *other == byte)) {
        bits = bits << 6 | digit as u32;
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have & 0xff) as u8);
        }
    }
    bytes
}

/// Starts a command of the program and does not wait for it.
fn begin(agent: &Agent, args: &[&str]) -> std::process::Child {
    let mut command = agent.netns().command(testkit::binary());
    command.args(args).arg("--socket").arg(agent.socket());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The agent dies at many moments of an attach and of a detach. After each restart the sandbox is
/// either attached whole, or nothing of it is left anywhere, and it can be attached again.
fn kill_during_attach_and_detach() {
    let lab = Lab::with_hosts(1).build();
    let agent = lab.start_agent(1, lab.spec(1, Store::Etcd, Family::V4));
    agent.create_network(NETWORK, DUAL);
    let network = network_id(&agent);
    let sandbox = lab.sandbox("s");
    let of = |what: &str| format!("/skybridge/v1/{what}");
    let (endpoints, addresses, macs) = (
        of(&format!("endpoints/{network}/")),
        of(&format!("ipam/{network}/addresses/")),
        of(&format!("ipam/{network}/macs/")),
    );
    let records = || [&endpoints, &addresses, &macs].map(|prefix| count(&lab, prefix));
    let settled = || {
        wait_until("attached whole or not at all", Duration::from_secs(15), || {
            let states = own_endpoints(&agent);
            if states.iter().any(|(_, state)| state != "attached") {
                return None;
            }
            let attached = match (states.len(), has_eth0(&sandbox), notes(&agent).len()) {
                (1, true, 1) => true,
                (0, false, 0) => false,
                _ => return None,
            };
            let wanted = if attached { [1, 2, 1] } else { [0; 3] };
            let pinned = pins(&network) == usize::from(attached);
            (records() == wanted && pinned).then_some(attached)
        })
        .0
    };
    let (mut whole, mut undone) = (0, 0);
    for round in 0..12_u64 {
        // Spread over what the operation takes, without repeating.
        let pause = Duration::from_millis(round * 23 % 97);
        let mut attach = begin(&agent, &["attach", NETWORK, "--netns", sandbox.name()]);
        std::thread::sleep(pause);
        agent.kill9();
        attach.wait().unwrap();
        agent.start();
        if !settled() {
            undone += 1;
            let _ = agent.attach(&sandbox, NETWORK, &[]);
        } else {
            whole += 1;
        }
        let mut detach = begin(&agent, &["detach", NETWORK, "--netns", sandbox.name()]);
        std::thread::sleep(pause / 4);
        agent.kill9();
        detach.wait().unwrap();
        agent.start();
        if settled() {
            let _ = agent.cli(&["detach", NETWORK, "--netns", sandbox.name()]);
            wait_nothing_left(&agent, &network);
        }
    }
    measured("attaches cut off", format_args!("{undone} undone, {whole} were complete"));
    assert_eq!(records(), [0; 3]);
    let again = agent.attach(&sandbox, NETWORK, &[]);
    assert_eq!(again.families().len(), 2);
}

/// Thirty sandboxes at once on one host; the same sandbox twice at once; nothing is mixed up and
/// nothing is left.
fn many_at_once() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let network = network_id(&agents[1]);
    let before = pins(&network);
    let sandboxes: Vec<_> = (0..30).map(|at| lab.sandbox(&format!("m{at}"))).collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for sandbox in &sandboxes {
            scope.spawn(|| agents[1].cli(&["attach", NETWORK, "--netns", sandbox.name()]));
        }
    });
    measured("thirty attaches at once", format_args!("{:?}", started.elapsed()));
    let attached: Vec<_> =
        sandboxes.iter().map(|it| Container::inspect(it.clone(), "eth0")).collect();
    let addresses: BTreeSet<_> =
        attached.iter().map(|container| container.address(Family::V4)).collect();
    assert_eq!(addresses.len(), 30, "no address twice");
    for container in &attached {
        traffic::ping(containers[0].netns(), container.address(Family::V4), 56);
    }
    // Each detach twice: what was attached before keeps its network.
    std::thread::scope(|scope| {
        for sandbox in sandboxes.iter().chain(&sandboxes) {
            scope.spawn(|| {
                let done = agents[1].try_cli(&["detach", NETWORK, "--netns", sandbox.name()]);
                let twice = format!("{done}").contains("is not attached");
                assert!(done.status.success() || twice, "{done}");
            });
        }
    });
    assert_eq!(own_endpoints(&agents[1]).len(), 1);
    assert_eq!((notes(&agents[1]).len(), pins(&network)), (1, before));
    assert!(sandboxes.iter().all(|sandbox| !has_eth0(sandbox)));
    traffic::ping(containers[0].netns(), containers[1].address(Family::V4), 56);

    let contested = lab.sandbox("contested");
    let results: Vec<_> = std::thread::scope(|scope| {
        let attach = || agents[1].try_cli(&["attach", NETWORK, "--netns", contested.name()]);
        let both = [scope.spawn(attach), scope.spawn(attach)];
        both.map(|thread| thread.join().unwrap()).into()
    });
    let won = results.iter().filter(|result| result.status.success()).count();
    assert_eq!(won, 1, "{results:?}");
    assert_eq!(own_endpoints(&agents[1]).len(), 2);
    let _ = agents[1].cli(&["detach", NETWORK, "--netns", contested.name()]);

    // The network can go when the last one has gone, and not before.
    let refused = agents[0].try_cli(&["network", "rm", NETWORK]);
    assert!(!refused.status.success() && format!("{refused}").contains("detach"), "{refused}");
    for (agent, container) in agents.iter().zip(&containers) {
        agent.detach(NETWORK, container);
    }
    let _ = agents[0].cli(&["network", "rm", NETWORK]);
    assert_eq!(pins(&network), 0);
}

/// A sandbox that is deleted is detached by itself, also when it went while the agent was away.
fn a_sandbox_goes() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let agent = &agents[1];
    let own = own_endpoints(agent).len();
    for away in [false, true] {
        let name = format!("{}-short{away}", lab.prefix());
        drop(lab.switch().exec("ip", &["netns", "add", &name]));
        let _ = agent.cli(&["attach", NETWORK, "--netns", &name]);
        assert_eq!(own_endpoints(agent).len(), own + 1);
        if away {
            agent.kill9();
        }
        drop(lab.switch().exec("ip", &["netns", "del", &name]));
        if away {
            agent.start();
        }
        let ((), took) = wait_until("it is detached", Duration::from_secs(50), || {
            let others = agents[0].json(&["endpoints"]).as_array().unwrap().len();
            (own_endpoints(agent).len() == own && others == 2 && notes(agent).len() == 1)
                .then_some(())
        });
        measured("a deleted sandbox is detached after", format_args!("{took:?}"));
    }
    traffic::ping(containers[0].netns(), containers[1].address(Family::V4), 56);
}

/// A store that takes connections and says nothing: commands that need it end soon and leave nothing
/// half done; a detach is done here and told later.
fn a_store_that_is_silent() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    for agent in &agents {
        for text in ["store", "lease", "watch"] {
            agent.allow_log(text);
        }
    }
    let sandbox = lab.sandbox("late");
    // Nothing is reserved in a network that the host is not in.
    agents[1].create_network("cold", &["--subnet", "203.0.113.0/24"]);
    lab.etcd().signal(Signal::SIGSTOP);
    for round in ["just now", "for a while"] {
        let asked = Instant::now();
        let refused = agents[1].try_cli(&["attach", "cold", "--netns", sandbox.name()]);
        let took = asked.elapsed();
        measured(&format!("attach, the store silent {round}"), format_args!("{took:?}"));
        assert!(!refused.status.success());
        assert!(refused.stderr.contains("store") && refused.stderr.contains("try:"), "{refused}");
        assert!(took < Duration::from_secs(5), "it took {took:?}");
        assert!(!has_eth0(&sandbox));
        if round == "just now" {
            wait_until("the agent sees it", Duration::from_secs(15), || {
                (agents[1].json(&["status"])["store"]["state"] == "away").then_some(())
            });
        }
    }
    let asked = Instant::now();
    agents[1].detach(NETWORK, &containers[1]);
    measured("detach, the store silent", format_args!("{:?}", asked.elapsed()));
    assert!(!has_eth0(containers[1].netns()));
    assert!(!notes(&agents[1]).is_empty(), "it is noted");
    lab.etcd().signal(Signal::SIGCONT);
    wait_until("the other host hears of it", Duration::from_secs(20), || {
        let listed = agents[0].json(&["endpoints"]).as_array().unwrap().len();
        (listed == 1 && notes(&agents[1]).is_empty()).then_some(())
    });
    let _ = agents[1].attach(&sandbox, NETWORK, &[]);
    wait_until("nothing is wrong any more", Duration::from_secs(10), || {
        (warnings(&agents[1]) == "[]").then_some(())
    });
}

/// Records that cannot be read and endpoints that claim what another has are named by `status`,
/// harm nobody else, and are forgotten when they are gone.
fn records_by_hand() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Etcd, Family::V4);
    for agent in &agents {
        agent.allow_log("needs attention");
        agent.allow_log("set aside");
    }
    let network = network_id(&agents[0]);
    let broken = [
        (format!("/skybridge/v1/endpoints/{network}/zzzz"), "{"),
        ("/skybridge/v1/hosts/h9".to_owned(), "[]"),
        ("/skybridge/v1/networks/abcd".to_owned(), "{\"version\":1}"),
    ];
    for (key, value) in &broken {
        put(&lab, key, value);
    }
    let (own, _) = own_endpoints(&agents[0]).remove(0);
    let twin = format!("/skybridge/v1/endpoints/{network}/feedfeedfeedfeed");
    let record = get(&lab, &format!("/skybridge/v1/endpoints/{network}/{own}"));
    put(&lab, &twin, &record.replace(&own, "feedfeedfeedfeed").replace("\"h1\"", "\"h7\""));
    // Another network with the same VNI.
    let rival = "/skybridge/v1/networks/beefbeefbeefbeef";
    let record = get(&lab, &format!("/skybridge/v1/networks/{network}"));
    let record = record.replace(&network, "beefbeefbeefbeef").replace(NETWORK, "rival");
    put(&lab, rival, &record);
    let address = containers[0].address(Family::V4).to_string();
    for agent in &agents {
        wait_until("status names them", Duration::from_secs(5), || {
            let text = warnings(agent);
            let keys = broken.iter().all(|(key, _)| text.contains(key));
            let claim = text.contains(&format!("{address} in network {NETWORK}"));
            let vni = text.contains("VNI 7001 belongs to network") && text.contains("rival");
            (keys && claim && vni && text.contains("feedfeedfeedfeed")).then_some(())
        });
    }
    // The one that lives has the address, and the rest goes on.
    traffic::ping(containers[1].netns(), containers[0].address(Family::V4), 56);
    let further = agents[0].container(&lab, NETWORK, "further", &[]);
    traffic::ping(containers[1].netns(), further.address(Family::V4), 56);
    for key in broken.iter().map(|(key, _)| key).chain([&twin, &rival.to_owned()]) {
        delete(&lab, key);
    }
    for agent in &agents {
        wait_until("nothing is wrong any more", Duration::from_secs(5), || {
            (warnings(agent) == "[]").then_some(())
        });
    }
    traffic::ping(containers[1].netns(), containers[0].address(Family::V4), 56);

    // A network that somebody deletes is missed, over a restart too, and works again with its record.
    let key = format!("/skybridge/v1/networks/{network}");
    let record = get(&lab, &key);
    delete(&lab, &key);
    let missed = || {
        wait_until("status misses it", Duration::from_secs(5), || {
            warnings(&agents[1]).contains("does not have networks").then_some(())
        })
    };
    missed();
    agents[1].kill9();
    agents[1].start();
    missed();
    put(&lab, &key, &record);
    wait_until("it carries traffic again", Duration::from_secs(15), || {
        let back = traffic::reaches(containers[1].netns(), containers[0].address(Family::V4));
        (back && warnings(&agents[1]) == "[]").then_some(())
    });
}

/// A host with a lower underlay MTU joins: the running interfaces of the others are lowered, and
/// raised again when it has taken its leave.
fn a_lower_underlay_joins() {
    let lab = Lab::with_hosts(3).build();
    lab.host(3).netns().ip("link set eth0 mtu 1400");
    let spec = |host| lab.spec(host, Store::Embedded, Family::V4).config(SHORT);
    let agents = [1, 2].map(|host| lab.start_agent(host, spec(host)));
    agents[0].create_network(NETWORK, DUAL);
    let containers = crate::support::containers(&lab, &agents);
    let before = containers[0].mtu();
    let third = lab.start_agent(3, spec(3));
    allow_away(&agents);
    allow_away(std::slice::from_ref(&third));
    let low = third.container(&lab, NETWORK, "low", &[]);
    assert!(low.mtu() < before, "{} is not less than {before}", low.mtu());
    let all_have = |mtu: u16| {
        let inside = containers.iter().all(|container| {
            let link = container.netns().ip_json("link show dev eth0");
            link[0]["mtu"] == mtu
        });
        let outside = agents.iter().all(|agent| {
            let place = agent.json(&["network", "inspect", NETWORK]);
            let pin = find(&place, "namespace").and_then(Value::as_str).unwrap_or_default();
            let shown = std::process::Command::new("nsenter")
                .arg(format!("--net={pin}"))
                .args(["ip", "-j", "link"])
                .output()
                .unwrap();
            let links: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            let links = links.as_array().cloned().unwrap_or_default();
            let used = links.iter().filter(|link| link["ifname"] != "lo");
            links.len() >= 4 && used.clone().all(|link| link["mtu"] == mtu)
        });
        inside && outside
    };
    let ((), took) = wait_until("all are lowered", Duration::from_secs(10), || {
        all_have(low.mtu()).then_some(())
    });
    measured("running interfaces are lowered after", format_args!("{took:?}"));
    for agent in &agents {
        let listed = agent.json(&["network", "ls"]);
        assert_eq!(listed[0]["mtu"], low.mtu(), "{listed}");
        agent.wait_log("MTU changed", Duration::from_secs(5));
    }
    let fits = traffic::largest_ping(low.mtu(), Family::V4);
    traffic::ping(containers[0].netns(), low.address(Family::V4), fits);
    traffic::ping(low.netns(), containers[1].address(Family::V4), fits);
    third.detach(NETWORK, &low);
    third.stop();
    let ((), took) =
        wait_until("all are raised", Duration::from_secs(15), || all_have(before).then_some(()));
    measured("and raised after it left, hold-down included", format_args!("{took:?}"));
}

/// Hosts that end together are not taken for dead, and this is reported.
fn hosts_expire_together() {
    let lab = Lab::with_hosts(3).build();
    let spec = |host| lab.spec(host, Store::Embedded, Family::V4).config(SHORT);
    let agents = [1, 2, 3].map(|host| lab.start_agent(host, spec(host)));
    agents[0].allow_log("needs attention");
    allow_away(&agents);
    agents[0].create_network(NETWORK, DUAL);
    let _containers = crate::support::containers(&lab, &agents);
    agents[1].kill9();
    agents[2].kill9();
    wait_until("it is reported", Duration::from_secs(15), || {
        let text = warnings(&agents[0]);
        (text.contains("ended together") && text.contains("h2, h3")).then_some(())
    });
    assert_eq!(agents[0].json(&["endpoints"]).as_array().unwrap().len(), 3);
    agents[1].start();
    agents[2].start();
    wait_until("it is over", Duration::from_secs(15), || {
        (warnings(&agents[0]) == "[]").then_some(())
    });
}

/// Agents that are there before the store converge soon after it is.
fn agents_before_their_store() {
    let lab = Lab::with_hosts(3).build();
    let agents: Vec<_> =
        (1..=3).map(|host| lab.agent(host, lab.spec(host, Store::Embedded, Family::V4))).collect();
    for agent in &agents[1..] {
        for text in ["store", "lease", "watch"] {
            agent.allow_log(text);
        }
        agent.start_without_waiting();
    }
    for agent in &agents[1..] {
        wait_until("it says that the store is away", Duration::from_secs(10), || {
            let status = agent.try_cli(&["status", "--json"]);
            (status.status.success() && status.json()["store"]["state"] != "connected")
                .then_some(())
        });
    }
    agents[0].start();
    let started = Instant::now();
    for agent in &agents {
        agent.wait_ready();
        wait_until("all hosts are seen", Duration::from_secs(15), || {
            let hosts = agent.json(&["hosts"]);
            let alive = hosts.as_array()?.iter().filter(|host| host["state"] == "alive").count();
            (alive == 3).then_some(())
        });
    }
    let took = started.elapsed();
    measured("agents converge after their store came", format_args!("{took:?}"));
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    agents[2].create_network(NETWORK, DUAL);
    let containers = crate::support::containers(&lab, &agents);
    traffic::ping(containers[1].netns(), containers[2].address(Family::V4), 56);
}

/// The underlay goes and comes back in several ways; traffic does by itself.
fn an_underlay_address_comes_back() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    for agent in &agents {
        for text in ["store", "lease", "watch", "needs attention"] {
            agent.allow_log(text);
        }
    }
    let (from, to) = (containers[0].netns(), containers[1].address(Family::V4));
    let host = lab.host(2);
    let address = host.address(Family::V4);
    let remove = format!("addr del {address}/24 dev eth0");
    let add = format!("addr add {address}/24 dev eth0");
    for (down, up) in [(remove.as_str(), add.as_str()), ("link set eth0 down", "link set eth0 up")]
    {
        traffic::ping(from, to, 56);
        host.netns().ip(down);
        assert!(!traffic::reaches(from, to), "{down}");
        host.netns().ip(up);
        let ((), took) = wait_until("traffic is back", Duration::from_secs(10), || {
            traffic::reaches(from, to).then_some(())
        });
        measured(&format!("traffic is back after `{up}`"), format_args!("{took:?}"));
    }
    wait_until("the store is in use again", Duration::from_secs(20), || {
        let status = agents[1].json(&["status"]);
        let back = status["store"]["state"] == "connected" && status["session"]["state"] == "held";
        back.then_some(())
    });
}

/// A host whose name another one has is refused, and says so in one piece.
fn a_name_is_taken() {
    let lab = Lab::with_hosts(2).build();
    let first = lab.start_agent(1, lab.spec(1, Store::Embedded, Family::V4));
    let host = lab.host(2);
    let (state, socket) = (lab.directory().join("other"), lab.directory().join("other.sock"));
    let store = format!("http://{}:2379", first.vtep());
    let vtep = host.address(Family::V4).to_string();
    let mut command = host.netns().command(testkit::binary());
    command.args(["agent", "--name", first.name(), "--vtep", &vtep, "--store", &store]);
    command.arg("--insecure-store").arg("--state-dir").arg(state).arg("--socket").arg(&socket);
    let ended = testkit::run_within(command, Duration::from_secs(20));
    assert_eq!(ended.code(), 1, "{ended}");
    let said = format!("{ended}");
    assert!(said.contains("host name h1 is in use") && !said.contains("panicked"), "{said}");
    assert!(!socket.exists(), "it takes its socket along");
}

/// What `agent --cleanup` removed on the host, the next start removes from the store.
fn cleanup_is_told_to_the_store() {
    let (_lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let network = network_id(&agents[0]);
    agents[1].stop();
    assert_eq!(agents[1].clean_up().code(), 0);
    assert!(!has_eth0(containers[1].netns()));
    agents[1].start();
    let ((), took) = wait_until("its record is gone", Duration::from_secs(5), || {
        let listed = agents[0].json(&["endpoints"]).as_array().unwrap().len();
        (listed == 1 && notes(&agents[1]).is_empty()).then_some(())
    });
    measured("records of a cleaned host are gone after", format_args!("{took:?}"));
    assert_eq!(pins(&network), 1);
    let again = agents[1].attach(containers[1].netns(), NETWORK, &[]);
    traffic::ping(containers[0].netns(), again.address(Family::V4), 56);
}

//! Endpoints that move between hosts, and endpoints that claim the same.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::traffic::{self, finish};
use testkit::{
    Agent, Cap, Capture, Container, Family, Host, Lab, Store, Suite, Underlay, udp_frame,
    wait_until,
};

use crate::scene::SHORT;
use crate::support::{
    AGENTS, NETWORK, VNI, WITH_ETCD, cluster, containers, drops, measured, number,
};

const WITH_TCPDUMP: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Tcpdump];
/// What a third host's traffic must follow a move within, tenfold.
const ALLOWED_MS: f64 = 1000.0;
const PLACE: [&str; 6] =
    ["--ip", "198.51.100.99", "--ip", "2001:db8:1::99", "--mac", "02:00:5e:00:53:99"];

pub(crate) fn register(suite: &mut Suite) {
    suite.timed("moves::detached_and_attached_elsewhere", WITH_TCPDUMP, detached_and_attached);
    suite.timed("moves::live", AGENTS, live);
    suite.test("moves::what_cannot_move_is_refused", AGENTS, refused);
    suite.test(
        "moves::a_partition_ends_with_one_owner",
        WITH_ETCD,
        a_partition_ends_with_one_owner,
    );
    suite.test("moves::two_records_have_one_winner", WITH_ETCD, two_records_have_one_winner);
}

/// The worse of the times until a container's kernel has an answer from both addresses.
fn reached(from: &Container, to: &Container) -> f64 {
    [Family::V4, Family::V6].into_iter().fold(0.0, |worst: f64, family| {
        let to = to.address(family).to_string();
        let report = finish(from.netns(), &["probe", &to, "--deadline", "20"]);
        worst.max(number(&report.expect_success().json(), "elapsed_ms"))
    })
}

/// The same MAC and addresses, there and back: a third host's traffic follows, its containers are
/// told, and the host that was left delivers nothing any more.
fn detached_and_attached() {
    let (lab, agents, all) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    let sandboxes = [lab.sandbox("m1"), lab.sandbox("m2")];
    let mut here = agents[1].attach(&sandboxes[0], NETWORK, &PLACE);
    let _ = reached(&all[0], &here);
    let filter = "arp or (icmp6 and ip6[40] == 136)";
    let capture =
        Capture::start(all[0].netns(), all[0].ifname(), filter, &lab.logs(), "announcements");
    let (mut worst, mut reaches): (f64, Vec<String>) = (0.0, Vec::new());
    for round in 0..6 {
        let (from, to) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        agents[from].detach(NETWORK, &here);
        here = agents[to].attach(&sandboxes[to - 1], NETWORK, &PLACE);
        let took = reached(&all[0], &here);
        reaches.push(format!("{took:.1}"));
        worst = worst.max(took);
        // A frame for it that is still on its way to the host that was left.
        stale(&lab, &all[0], &here, lab.host(from + 1), &agents[from]);
    }
    measured("moves are followed after", format_args!("{} ms", reaches.join(", ")));
    assert!(worst < ALLOWED_MS, "followed only after {worst:.1} ms");
    capture.wait(12, Duration::from_secs(10));
    let told = capture.stop();
    let (v4, v6) = (here.address(Family::V4).to_string(), here.address(Family::V6).to_string());
    let announced = |what: &str, address: &str| {
        told.iter().filter(|packet| packet.contains(what) && packet.contains(address)).count()
    };
    assert!(announced("who-has", &format!("tell {v4}")) >= 6, "no gratuitous ARP: {told:#?}");
    assert!(announced("neighbor advertisement", &v6) >= 6, "no advertisement: {told:#?}");
    traffic::ping(all[1].netns(), here.address(Family::V4), 56);
}

/// Sends a frame from `sender`'s host for `moved` to the host that it has left, and asserts that it
/// is counted there.
fn stale(lab: &Lab, sender: &Container, moved: &Container, left: &Host, agent: &Agent) {
    let v4 = |container: &Container| match container.address(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let frame =
        udp_frame((moved.mac(), sender.mac()), (v4(sender), v4(moved)), (1, 5310), b"stale");
    let [_, high, middle, low] = VNI.to_be_bytes();
    let mut datagram = vec![8, 0, 0, 0, high, middle, low, 0];
    datagram.extend(frame);
    let listening = listen(moved, 5310);
    let before = drops(agent, "in_destination_not_here");
    let host = lab.host(1);
    host.netns().enter(|| {
        let socket = UdpSocket::bind((host.address(Family::V4), 0)).unwrap();
        socket.send_to(&datagram, (left.address(Family::V4), 4789)).unwrap();
    });
    wait_until("a stale frame is counted", Duration::from_secs(5), || {
        (drops(agent, "in_destination_not_here") > before).then_some(())
    });
    let mut buffer = [0; 64];
    listening.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(listening.recv(&mut buffer).is_err(), "it was sent on");
}

fn listen(container: &Container, port: u16) -> UdpSocket {
    let address = container.address(Family::V4);
    let socket = container.netns().enter(|| UdpSocket::bind((address, port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

/// Numbers that arrive at a socket, with the time, until told to stop.
fn collect(
    socket: UdpSocket,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<Vec<(u32, Instant)>> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            if let Ok(4) = socket.recv(&mut buffer) {
                let number = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                seen.push((number, Instant::now()));
            }
        }
        seen
    })
}

/// Attached on the new host before it is detached on the old one: what is sent to it arrives at one
/// of the two and soon only at the new one, and the old one is cut off and told of.
fn live() {
    let (lab, agents, all) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    let old = agents[1].container(&lab, NETWORK, "m1", &PLACE);
    let beside = agents[1].container(&lab, NETWORK, "beside", &[]);
    for from in [&all[0], &beside] {
        traffic::ping(from.netns(), old.address(Family::V4), 56);
    }
    let moved = endpoint_of(&agents[1], &old);
    agents[1].allow_log("is cut off");
    let stop = Arc::new(AtomicBool::new(false));
    let at_old = collect(listen(&old, 5311), &stop);
    let to = old.address(Family::V4);
    let sender = {
        let socket = all[0].netns().enter(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap();
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut sent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let number = u32::try_from(sent.len()).unwrap();
                // A port that nobody listens on yet is told by ICMP, with the next send.
                let _ = socket.send_to(&number.to_be_bytes(), (to, 5311));
                sent.push(Instant::now());
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        })
    };
    std::thread::sleep(Duration::from_millis(300));
    let new = agents[2].attach(&lab.sandbox("m2"), NETWORK, &["--move", &moved]);
    let returned = Instant::now();
    assert_eq!((new.mac(), new.address(Family::V4)), (old.mac(), to));
    assert_eq!(new.address(Family::V6), old.address(Family::V6));
    let at_new = collect(listen(&new, 5311), &stop);
    wait_until("the old one is cut off", Duration::from_secs(5), || {
        (state_of(&agents[1], &moved).as_deref() == Some("quarantined")).then_some(())
    });
    // From the containers beside the old one too.
    let beside_follows = finish(beside.netns(), &["probe", &to.to_string(), "--deadline", "20"]);
    let _ = beside_follows.expect_success();
    traffic::ping(beside.netns(), to, 56);
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    let (at_old, at_new, sent) =
        (at_old.join().unwrap(), at_new.join().unwrap(), sender.join().unwrap());
    assert!(at_old.len() > 50, "{} arrived before the move", at_old.len());
    let last = at_old.last().unwrap();
    let first = at_new.first().expect("nothing follows");
    measured(
        "a live move",
        format_args!(
            "the last at the old host {:.1} ms before and the first at the new one {:.1} ms after \
             attach returned; {} of {} lost",
            returned.saturating_duration_since(last.1).as_secs_f64() * 1e3,
            first.1.saturating_duration_since(returned).as_secs_f64() * 1e3,
            sent.len() - at_old.len() - at_new.len(),
            sent.len(),
        ),
    );
    assert!(last.0 < first.0, "number {} at the old one after {} at the new one", last.0, first.0);
    let followed = first.1.saturating_duration_since(returned).as_secs_f64() * 1e3;
    assert!(followed < ALLOWED_MS, "followed only after {followed:.1} ms");
    wait_until("the operator is told", Duration::from_secs(10), || {
        let told = warnings(&agents[1]);
        (told.contains("is cut off") && told.contains(&moved)).then_some(())
    });
    assert!(!traffic::reaches(old.netns(), all[0].address(Family::V4)));
    // A restart does not bring it back.
    agents[1].kill9();
    agents[1].start();
    traffic::ping(all[0].netns(), to, 56);
    assert_eq!(state_of(&agents[1], &moved).as_deref(), Some("quarantined"));
    agents[1].detach(NETWORK, &old);
    for from in [&all[0], &beside, &all[2]] {
        traffic::ping(from.netns(), to, 56);
    }
    wait_until("nothing is wrong any more", Duration::from_secs(10), || {
        (warnings(&agents[1]) == "[]").then_some(())
    });
}

fn refused() {
    let (lab, agents, _all) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let old = agents[1].container(&lab, NETWORK, "m1", &PLACE);
    let sandbox = lab.sandbox("m2");
    let attach = |args: &[&str]| {
        let place = ["attach", NETWORK, "--netns", sandbox.name()];
        agents[0].try_cli(&[&place, args].concat())
    };
    // Without the word that it moves, what another has stays its own.
    let taken = attach(&PLACE);
    assert!(!taken.status.success() && taken.stderr.contains("in use"), "{taken}");
    let unknown = attach(&["--move", "nobody"]);
    assert!(!unknown.status.success() && unknown.stderr.contains("no endpoint"), "{unknown}");
    let both = attach(&["--move", "m1", "--mac", "02:00:5e:00:53:98"]);
    assert_eq!(both.status.code(), Some(2), "{both}");
    traffic::ping(old.netns(), "198.51.100.1".parse().unwrap(), 56);
    // By its name too, with which it stays known.
    agents[1].detach(NETWORK, &old);
    let _ = agents[1].attach(old.netns(), NETWORK, &[&PLACE[..], &["--name", "web"]].concat());
    wait_until("the other host knows the name", Duration::from_secs(10), || {
        agents[0].json(&["endpoints"]).to_string().contains("\"web\"").then_some(())
    });
    let _ = attach(&["--move", "web"]).expect_success();
    let listed = agents[0].json(&["endpoints"]).to_string();
    assert_eq!(listed.matches("\"web\"").count(), 1, "{listed}");
    agents[1].allow_log("cut off");
}

fn rows(agent: &Agent) -> Vec<Value> {
    agent.json(&["endpoints"]).as_array().cloned().unwrap_or_default()
}

fn endpoint_of(agent: &Agent, container: &Container) -> String {
    let ip = container.address(Family::V4).to_string();
    let has = |row: &Value| row["ips"].as_array().into_iter().flatten().any(|it| *it == *ip);
    let found = rows(agent).into_iter().find(has).unwrap_or_else(|| panic!("nobody has {ip}"));
    found["id"].as_str().unwrap().to_owned()
}

fn state_of(agent: &Agent, endpoint: &str) -> Option<String> {
    let found = rows(agent).into_iter().find(|row| row["id"] == endpoint)?;
    found["state"].as_str().map(str::to_owned)
}

fn warnings(agent: &Agent) -> String {
    agent.json(&["status"])["warnings"].to_string()
}

/// A cluster whose hosts are missed after two seconds.
fn short(hosts: usize) -> (Lab, Vec<Agent>, Vec<Container>) {
    let lab = Lab::with_hosts(hosts).build();
    let agents: Vec<Agent> = (1..=hosts)
        .map(|host| lab.start_agent(host, lab.spec(host, Store::Etcd, Family::V4).config(SHORT)))
        .collect();
    for agent in &agents {
        for text in ["store", "lease", "watch", "cut off", "is not attached; removing", "claimed"] {
            agent.allow_log(text);
        }
    }
    agents[0].create_network(NETWORK, crate::support::DUAL);
    let all = containers(&lab, &agents);
    (lab, agents, all)
}

/// A host is cut off from the store for so long that its endpoint's addresses are given to another
/// one. When it is back, the new owner keeps them, the old endpoint is cut off and named, and comes
/// back when the new one goes.
fn a_partition_ends_with_one_owner() {
    let (lab, agents, all) = short(3);
    let old = agents[1].container(&lab, NETWORK, "m1", &PLACE);
    let to = old.address(Family::V4);
    traffic::ping(all[0].netns(), to, 56);
    let lost = endpoint_of(&agents[0], &old);
    lab.host(2).drop_tcp(2379);
    wait_until("its host is missed", Duration::from_secs(30), || {
        let listed = agents[0].json(&["hosts"]).to_string();
        listed.contains("suspect").then_some(())
    });
    // Somebody decides that the host is gone for good.
    let _ = agents[0].cli(&["gc", "--host", "h2", "--apply"]);
    let new = agents[2].container(&lab, NETWORK, "m2", &PLACE);
    traffic::ping(all[0].netns(), to, 56);
    lab.host(2).pass_tcp();
    wait_until("the old one is cut off", Duration::from_secs(30), || {
        let told = warnings(&agents[1]);
        let named = told.contains("is cut off") && told.contains(&lost);
        (named && state_of(&agents[1], &lost).as_deref() == Some("quarantined")).then_some(())
    });
    let receives = |container: &Container| received(&all[0], container);
    assert!(receives(&new) && !receives(&old), "the traffic goes to the new owner alone");
    assert!(!traffic::reaches(old.netns(), all[0].address(Family::V4)));
    wait_until("the other endpoint of its host is there again", Duration::from_secs(20), || {
        traffic::reaches(all[1].netns(), to).then_some(())
    });
    // The new one goes, and the old one has its addresses again.
    agents[2].detach(NETWORK, &new);
    wait_until("it is an endpoint again", Duration::from_secs(30), || {
        let own = state_of(&agents[1], &lost).as_deref() == Some("attached");
        let there = state_of(&agents[0], &lost).as_deref() == Some("attached");
        (own && there).then_some(())
    });
    wait_until("it is served again", Duration::from_secs(10), || receives(&old).then_some(()));
    traffic::ping(old.netns(), all[0].address(Family::V4), 56);
    wait_until("nothing is wrong any more", Duration::from_secs(20), || {
        (warnings(&agents[1]) == "[]").then_some(())
    });
}

/// Whether datagrams from `from` to the address of `to` arrive in just that sandbox.
fn received(from: &Container, to: &Container) -> bool {
    let listening = listen(to, 5312);
    let socket = from.netns().enter(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap();
    let mut buffer = [0; 16];
    (0..5).any(|_| {
        let _ = socket.send_to(b"whose", (to.address(Family::V4), 5312));
        listening.recv(&mut buffer).is_ok()
    })
}

/// Two records claim one address and MAC: every host chooses the later one, the host of the other
/// cuts its endpoint off, and either can go.
fn two_records_have_one_winner() {
    let (lab, agents, all) = short(3);
    let [first, second, third] = &all[..] else { unreachable!("three containers") };
    let network = agents[0].json(&["network", "inspect", NETWORK])["id"].clone();
    let network = network.as_str().unwrap();
    let prefix = format!("/skybridge/v1/endpoints/{network}/");
    // A record for the third host's endpoint that claims what the second one has as well.
    let (loser, winner) = (endpoint_of(&agents[0], second), endpoint_of(&agents[0], third));
    let key = format!("{prefix}{winner}");
    let stored = |key: &str| lab.etcd().ctl(&["get", "--print-value-only", key]).stdout;
    let honest = stored(&key).trim().to_owned();
    let mut claims: Value = serde_json::from_str(&honest).unwrap();
    let contested = second.address(Family::V4);
    claims["ips"] = serde_json::json!([contested.to_string()]);
    let _ = lab.etcd().ctl(&["put", &key, &claims.to_string()]);
    for agent in &agents {
        wait_until("the loser is named everywhere", Duration::from_secs(20), || {
            let state = state_of(agent, &loser);
            let told = warnings(agent).contains(&contested.to_string());
            (state.as_deref() == Some("quarantined") && told).then_some(())
        });
        let table = agent.json(&["neighbors"]);
        let row = table.as_array().unwrap().iter().find(|row| row["ip"] == contested.to_string());
        let mac = third.mac().map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(row.unwrap()["mac"], mac, "{}: {table}", agent.name());
    }
    wait_until("it cannot speak", Duration::from_secs(5), || {
        (!traffic::reaches(second.netns(), first.address(Family::V4))).then_some(())
    });
    // The other claim goes, and all is as it was.
    let _ = lab.etcd().ctl(&["put", &key, &honest]);
    wait_until("it is an endpoint again", Duration::from_secs(20), || {
        let healed = |agent: &Agent| state_of(agent, &loser).as_deref() == Some("attached");
        agents.iter().all(healed).then_some(())
    });
    // Its port is set up a moment later.
    wait_until("it can speak", Duration::from_secs(10), || {
        traffic::reaches(second.netns(), first.address(Family::V4)).then_some(())
    });
    for (from, to) in [(first, second), (second, first), (third, second), (first, third)] {
        for family in [Family::V4, Family::V6] {
            traffic::ping(from.netns(), to.address(family), 56);
        }
    }
    for agent in &agents {
        wait_until("nothing is wrong any more", Duration::from_secs(20), || {
            (warnings(agent) == "[]").then_some(())
        });
    }
}

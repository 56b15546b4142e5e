//! Broadcast, multicast and what is learned: budgets, options, ageing, and a flood of MACs.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::traffic;
use testkit::{Agent, Container, Family, Host, Lab, Store, Suite, Underlay, udp_frame, wait_until};

use crate::support::{AGENTS, DUAL, NETWORK, VNI, cluster, drops, measured};

pub(crate) fn register(suite: &mut Suite) {
    suite.test("flood::the_budget_is_of_frames", AGENTS, the_budget_is_of_frames);
    suite.test("flood::options_decide_what_crosses", AGENTS, options_decide_what_crosses);
    suite.test("flood::learned_addresses_age_and_move", AGENTS, learned_addresses_age_and_move);
    suite.test("flood::a_mac_flood_evicts_only_itself", AGENTS, a_mac_flood_evicts_only_itself);
}

fn option(agent: &Agent, option: &str) {
    let _ = agent.cli(&["network", "update", NETWORK, "--option", option]);
}

/// A socket that receives at any address, in a container.
fn listen(container: &Container, port: u16) -> UdpSocket {
    let socket = container.netns().enter(|| UdpSocket::bind(("0.0.0.0", port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// How many datagrams arrive until none has for a while.
fn count(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 2048];
    let mut count = 0;
    while socket.recv(&mut buffer).is_ok() {
        count += 1;
    }
    count
}

fn burst(from: &Container, port: u16, count: u64) {
    let address = from.address(Family::V4);
    let socket = from.netns().enter(|| UdpSocket::bind((address, 0))).unwrap();
    socket.set_broadcast(true).unwrap();
    for _ in 0..count {
        socket.send_to(b"to all", ("198.51.100.255", port)).unwrap();
    }
}

/// A host may send `flood_rate` frames a second and no more, whatever the number of hosts; what is
/// for one container is not slowed; and the option counts from the moment at which it is set.
fn the_budget_is_of_frames() {
    const RATE: u64 = 50;
    let (_lab, agents, all) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    let listening: Vec<UdpSocket> = all[1..].iter().map(|to| listen(to, 5320)).collect();
    option(&agents[0], &format!("flood_rate={RATE}"));
    wait_until("the budget is the new one", Duration::from_secs(5), || {
        let options = agents[0].json(&["network", "inspect", NETWORK])["options"].clone();
        (options["flood_rate"] == *RATE.to_string()).then_some(())
    });
    let began = Instant::now();
    burst(&all[0], 5320, 1000);
    // A second's worth at once, and what is added until a worker has seen the last of it.
    let (most, _) = wait_until("the rest is refused", Duration::from_secs(5), || {
        let dropped = drops(&agents[0], "out_flood_budget");
        let most = RATE + RATE * u64::try_from(began.elapsed().as_millis()).unwrap() / 1000 + 2;
        (dropped + most >= 1000).then_some(most)
    });
    for socket in &listening {
        let arrived = count(socket);
        assert!(arrived <= most && arrived >= RATE / 2, "{arrived} arrived, of {most}");
    }
    let dropped = drops(&agents[0], "out_flood_budget");
    assert!(dropped > 900, "only {dropped} were refused");
    traffic::ping(all[0].netns(), all[1].address(Family::V4), 56);
    // Another host's budget is its own.
    burst(&all[1], 5320, RATE / 2);
    assert_eq!(count(&listening[1]), RATE / 2);
    option(&agents[0], "flood_rate=100000");
    wait_until("the budget is large", Duration::from_secs(5), || {
        let before = drops(&agents[0], "out_flood_budget");
        burst(&all[0], 5321, 200);
        (drops(&agents[0], "out_flood_budget") == before).then_some(())
    });
    let refused = agents[0].try_cli(&["network", "update", NETWORK, "--option", "flood_rate=0"]);
    assert!(!refused.status.success() && refused.stderr.contains("1 to 10000000"), "{refused}");
}

fn options_decide_what_crosses() {
    let (_lab, agents, all) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let v4 = |container: &Container| match container.address(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let nobody = [0x02, 0, 0x5e, 0, 0x53, 0xaa];
    let from = all[0].mac();
    let frame = |mac, to| udp_frame((mac, from), (v4(&all[0]), to), (1, 5322), b"which");
    let frames = [
        ("broadcast", frame([0xff; 6], Ipv4Addr::new(198, 51, 100, 255))),
        ("multicast", frame([0x01, 0, 0x5e, 1, 2, 3], group)),
        ("flood_unknown", frame(nobody, v4(&all[1]))),
    ];
    let sent = |agent: &Agent| {
        let stats = agent.json(&["stats"]);
        let counters = stats["counters"].as_array().cloned().unwrap();
        let found = counters.iter().find(|item| item["name"] == "flood_copies").cloned();
        found.and_then(|item| item["value"].as_u64()).unwrap()
    };
    for (on, _) in &frames {
        for (name, _) in &frames {
            option(&agents[0], &format!("{name}={}", name == on));
        }
        wait_until(on, Duration::from_secs(10), || {
            let before = sent(&agents[0]);
            let reasons = ["out_flood_disabled", "out_destination_unknown"];
            let dropped =
                |agent: &Agent| reasons.map(|reason| drops(agent, reason)).iter().sum::<u64>();
            let refused = dropped(&agents[0]);
            for (_, frame) in &frames {
                testkit::send_frames(all[0].netns(), all[0].ifname(), std::slice::from_ref(frame));
            }
            // One of them goes to the one other host, two are refused; what the kernels send by
            // themselves may come between.
            for _ in 0..20 {
                let seen = (sent(&agents[0]) - before, dropped(&agents[0]) - refused);
                if seen == (1, 2) {
                    return Some(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            None
        });
    }
}

/// An agent on host 1 whose network has the other hosts of the lab as static VTEPs.
fn learner(hosts: usize, learned_age: &str) -> (Lab, Agent, Container) {
    let lab = Lab::with_hosts(hosts).build();
    let spec = lab
        .spec(1, Store::Embedded, Family::V4)
        .config(&format!("[datapath]\nlearned_age = \"{learned_age}\""));
    let agent = lab.start_agent(1, spec);
    agent.create_network(NETWORK, DUAL);
    for host in 2..=hosts {
        let address = lab.host(host).address(Family::V4).to_string();
        let _ = agent.cli(&["network", "vtep", "add", NETWORK, &address]);
    }
    let container = agent.container(&lab, NETWORK, "c1", &[]);
    (lab, agent, container)
}

/// A MAC of a static VTEP's side.
fn mac_of(host: u8, number: u32) -> [u8; 6] {
    let [_, a, b, c] = number.to_be_bytes();
    [0x02, host, 0x5e, a, b, c]
}

/// Sends one datagram per MAC from a host that is no agent's, as a VTEP does.
struct Sender {
    socket: UdpSocket,
    to: IpAddr,
    destination: [u8; 6],
}

impl Sender {
    fn new(host: &Host, agent: &Agent, to: &Container) -> Self {
        let address = host.address(Family::V4);
        let socket = host.netns().enter(|| UdpSocket::bind((address, 0))).unwrap();
        Self { socket, to: agent.vtep(), destination: to.mac() }
    }

    fn send(&self, mac: [u8; 6]) {
        let addresses = (Ipv4Addr::new(198, 51, 100, 200), Ipv4Addr::new(198, 51, 100, 1));
        let [_, high, middle, low] = VNI.to_be_bytes();
        let mut datagram = vec![8, 0, 0, 0, high, middle, low, 0];
        datagram.extend(udp_frame((self.destination, mac), addresses, (1, 5323), b"hello"));
        self.socket.send_to(&datagram, (self.to, 4789)).unwrap();
    }
}

/// The learned entries: MAC and VTEP.
fn learned(agent: &Agent) -> Vec<(String, String)> {
    let table = agent.json(&["fdb"]);
    let rows = table.as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.filter(|row| row["source"] == "learned")
        .map(|row| (text(&row["mac"]), text(&row["vtep"])))
        .collect()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn counter(agent: &Agent, name: &str) -> u64 {
    let stats = agent.json(&["stats"]);
    let counters = stats["counters"].as_array().cloned().unwrap_or_default();
    let found = counters.iter().find(|item| item["name"] == name);
    found.and_then(|item| item["value"].as_u64()).unwrap_or_else(|| panic!("no counter {name}"))
}

fn learned_addresses_age_and_move() {
    let (lab, agent, container) = learner(3, "2s");
    let senders = [2, 3].map(|host| Sender::new(lab.host(host), &agent, &container));
    let addresses = [2, 3].map(|host| lab.host(host).address(Family::V4).to_string());
    let (stays, goes) = (mac_of(2, 1), mac_of(2, 2));
    let place = |mac| learned(&agent).into_iter().find(|row| row.0 == text(mac)).map(|row| row.1);
    senders[0].send(goes);
    senders[0].send(stays);
    wait_until("both are learned", Duration::from_secs(5), || {
        (place(stays).is_some() && place(goes).is_some()).then_some(())
    });
    // One goes on sending and stays, also behind another VTEP; the other ages out.
    let mut from = 0;
    let until = Instant::now() + Duration::from_secs(20);
    while place(goes).is_some() {
        assert!(Instant::now() < until, "it does not age");
        senders[from].send(stays);
        std::thread::sleep(Duration::from_millis(100));
        from = usize::from(Instant::now() + Duration::from_secs(19) > until);
    }
    assert!(place(stays).is_some(), "what goes on sending is forgotten");
    senders[1].send(stays);
    wait_until("it has moved", Duration::from_secs(5), || {
        (place(stays).as_deref() == Some(&*addresses[1])).then_some(())
    });
    assert!(counter(&agent, "learn_moved") >= 1 && counter(&agent, "learn_expired") >= 1);
    // A static entry is not learned away.
    let known = mac_of(2, 3);
    let argument = format!("{}=198.51.100.201", text(known));
    let _ = agent.cli(&["network", "vtep", "add", NETWORK, &addresses[0], "--mac", &argument]);
    wait_until("what is configured stays", Duration::from_secs(10), || {
        senders[1].send(known);
        (drops(&agent, "in_source_spoofed") > 0).then_some(())
    });
    assert_eq!(place(known), None);
    wait_until("all are forgotten", Duration::from_secs(20), || {
        learned(&agent).is_empty().then_some(())
    });
}

/// One VTEP floods more MACs than the table takes, from many ports and so to all workers. It pushes
/// out its own, those of the other stay, new ones of the other are learned at once, and memory does
/// not grow with it.
fn a_mac_flood_evicts_only_itself() {
    const LIMIT: usize = 16_384;
    const HONEST: u32 = 50;
    let (lab, agent, container) = learner(3, "5m");
    let honest = Sender::new(lab.host(3), &agent, &container);
    for number in 0..HONEST {
        honest.send(mac_of(3, number));
    }
    let of_honest = || learned(&agent).iter().filter(|(mac, _)| mac.starts_with("02:03:")).count();
    wait_until("the honest ones are learned", Duration::from_secs(5), || {
        (of_honest() == HONEST as usize).then_some(())
    });
    let flooding: Vec<Sender> =
        (0..8).map(|_| Sender::new(lab.host(2), &agent, &container)).collect();
    let mut number = 0;
    let began = Instant::now();
    wait_until("the table is full and has begun to evict", Duration::from_secs(60), || {
        for _ in 0..4000 {
            for sender in &flooding {
                sender.send(mac_of(2, number));
                number += 1;
            }
        }
        (counter(&agent, "learn_evicted") > 1000).then_some(())
    });
    measured(
        "a flood of MACs",
        format_args!(
            "{number} in {:?}, {} not told, {} evicted, {} lost in the queue",
            began.elapsed(),
            counter(&agent, "learn_limited"),
            counter(&agent, "learn_evicted"),
            counter(&agent, "learn_overflow"),
        ),
    );
    assert_eq!(of_honest(), HONEST as usize, "the flood has pushed out another's entries");
    assert!(learned(&agent).len() <= LIMIT, "more than the limit");
    // While it goes on, what is new elsewhere is learned.
    for sender in &flooding {
        for _ in 0..1000 {
            sender.send(mac_of(2, number));
            number += 1;
        }
    }
    honest.send(mac_of(3, HONEST));
    // The listing of a full table takes a while.
    wait_until("a new honest one is learned", Duration::from_secs(60), || {
        honest.send(mac_of(3, HONEST));
        (of_honest() == HONEST as usize + 1).then_some(())
    });
    assert!(learned(&agent).len() <= LIMIT);
    assert!(counter(&agent, "learn_limited") > 0, "no share was needed: the flood was none");
    // What one container sends under MACs that are not its own is not even seen.
    let frames: Vec<Vec<u8>> = (0..100)
        .map(|number| {
            let addresses = (Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2));
            udp_frame(([0xff; 6], mac_of(9, number)), addresses, (1, 5324), b"flood")
        })
        .collect();
    testkit::send_frames(container.netns(), container.ifname(), &frames);
    wait_until("they are refused", Duration::from_secs(5), || {
        (drops(&agent, "veth_source_mac") >= 100).then_some(())
    });
}

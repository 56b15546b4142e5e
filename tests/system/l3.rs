//! Networks of packets: both modes, between hosts and within one, from the store's records to what a
//! sandbox sees.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use skybridge::sys::sockopt::{self, Icmp};
use testkit::traffic::{self, Tcp};
use testkit::{
    Agent, AgentSpec, Cap, Capture, Container, Family, Lab, Netns, Store, Suite, Underlay,
    wait_until,
};

use crate::offload;
use crate::scene::Mesh;
use crate::support::{
    AGENTS, WITH_ETCD, assert_no_checksum_errors, carry, drops, exchange, measured, word,
};

const WITH_TCPDUMP: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Tcpdump];
const MODES: [&str; 2] = ["ipip", "ipudp"];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The network of these tests.
const RED: &str = "red";
const SUBNETS: [&str; 4] = ["--subnet", "198.51.100.0/24", "--subnet", "2001:db8:1::/64"];
/// How long something may take that happens by itself within two seconds.
const SOON: Duration = Duration::from_secs(20);
/// The router that every sandbox sees.
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

pub(crate) fn register(suite: &mut Suite) {
    for mode in MODES {
        suite.test(format!("l3::one_host_{mode}"), WITH_TCPDUMP, move || one_host(mode));
        for family in FAMILIES {
            let name = format!("l3::three_hosts_{mode}_{}", word(family));
            suite.test(name, AGENTS, move || three_hosts(mode, family));
        }
        for (name, mask) in offload::MASKS {
            let name = format!("l3::without_{name}_{mode}");
            suite.test(name, AGENTS, move || without(mode, mask));
        }
        suite.test(format!("l3::containers_without_offloads_{mode}"), AGENTS, move || {
            containers_without_offloads(mode);
        });
        suite.test(format!("l3::segment_sizes_{mode}"), WITH_TCPDUMP, move || segment_sizes(mode));
        suite.timed(format!("l3::an_agent_that_is_killed_{mode}"), AGENTS, move || {
            an_agent_that_is_killed(mode);
        });
        suite.test(format!("l3::a_way_out_{mode}"), AGENTS, move || a_way_out(mode));
        suite.test(format!("l3::a_move_{mode}"), AGENTS, move || a_move(mode));
        suite.test(format!("l3::another_hosts_router_{mode}"), AGENTS, move || {
            what_another_hosts_router_says(mode);
        });
        suite.test(format!("l3::hostile_packets_{mode}"), AGENTS, move || hostile_packets(mode));
    }
    for mode in ["ipip", "ipudp"] {
        suite.timed(format!("l3::store_away_{mode}"), WITH_ETCD, move || store_away(mode));
    }
    suite.test("l3::tenants", AGENTS, tenants);
    suite.test("l3::what_is_refused", AGENTS, what_is_refused);
}

fn create(agent: &Agent, mode: &str, more: &[&str]) {
    agent.create_network(RED, &[&SUBNETS[..], &["--mode", mode], more].concat());
}

/// A lab with an agent on each host, a network of `mode`, and a container on each: `c1` on host 1, ...
fn red(
    lab: &Lab,
    mode: &str,
    family: Family,
    change: impl Fn(AgentSpec) -> AgentSpec,
) -> (Vec<Agent>, Vec<Container>) {
    let hosts = 1..=lab.hosts().len();
    let agents: Vec<Agent> = hosts
        .map(|host| lab.start_agent(host, change(lab.spec(host, Store::Embedded, family))))
        .collect();
    create(&agents[0], mode, &[]);
    let containers = (1..)
        .zip(&agents)
        .map(|(index, agent)| agent.container(lab, RED, &format!("c{index}"), &[]))
        .collect();
    (agents, containers)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Where the longest route to an address leads on a host: a host's name, if any.
pub(crate) fn route_to(agent: &Agent, ip: IpAddr) -> Option<String> {
    let routes = agent.json(&["routes", RED]);
    let prefix = |route: &Value| {
        text(&route["prefix"])
            .split_once('/')
            .map(|(base, len)| (base.parse::<IpAddr>().unwrap(), len.parse::<u32>().unwrap()))
    };
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let holds = |(base, len): (IpAddr, u32)| {
        let full = if base.is_ipv4() { 32 } else { 128 };
        let shift = |ip| number(ip).checked_shr(full - len).unwrap_or(0);
        base.is_ipv4() == ip.is_ipv4() && shift(base) == shift(ip)
    };
    let all = routes.as_array().into_iter().flatten();
    let found = all.filter_map(|route| Some((prefix(route)?, text(&route["host"]))));
    let best = found.filter(|(prefix, _)| holds(*prefix)).max_by_key(|((_, len), _)| *len);
    best.map(|(_, host)| host.to_owned())
}

/// Two sandboxes of one host: routed by the kernel, without a question on the link, and neither can
/// be the other.
fn one_host(mode: &str) {
    let lab = Lab::with_hosts(1).build();
    let (agents, mut ends) = red(&lab, mode, Family::V4, |spec| spec);
    let agent = &agents[0];
    ends.push(agent.container(&lab, RED, "c2", &[]));
    let [a, b] = &ends[..] else { unreachable!("two containers") };
    let expected = if mode == "ipip" { 1480 } else { 1472 };
    assert_eq!((a.mtu(), b.mtu()), (expected, expected));
    let questions = "arp or (icmp6 and (ip6[40] == 135 or ip6[40] == 136))";
    let capture = Capture::start(a.netns(), "eth0", questions, &lab.logs(), "questions");
    exchange(&lab, a, b, 2_000_000);
    exchange(&lab, b, a, 2_000_000);
    traffic::ping(a.netns(), ROUTER, 56);
    let asked = capture.stop();
    assert!(asked.is_empty(), "nobody needs to ask: {asked:?}");
    let link = a.netns().ip_json("addr show dev eth0");
    let lengths: Vec<_> = link[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["scope"] == "global")
        .map(|it| it["prefixlen"].as_u64().unwrap())
        .collect();
    assert_eq!(lengths, [32, 128]);

    // What nobody has is answered, and soon.
    let started = Instant::now();
    for nobody in ["198.51.100.7:9", "[2001:db8:1::7]:9"] {
        let refused = a.netns().enter(|| TcpStream::connect(nobody)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{nobody}: {refused}");
    }
    measured("an address that nobody has", format_args!("told after {:?}", started.elapsed()));

    // Its own address taken away and another's put on, a sandbox reaches nobody.
    let (IpAddr::V4(own), IpAddr::V4(theirs)) = (a.address(Family::V4), b.address(Family::V4))
    else {
        unreachable!("IPv4")
    };
    for forged in [theirs, [198, 51, 100, 200].into(), [203, 0, 113, 9].into()] {
        let before = drops(agent, "veth_source_ip");
        let frame = testkit::udp_frame(
            (router_mac(a), a.mac()),
            (forged, theirs),
            (1000, 2000),
            b"not from me",
        );
        testkit::send_frames(a.netns(), "eth0", &[frame]);
        wait_until("the forgery is refused", SOON, || {
            (drops(agent, "veth_source_ip") > before).then_some(())
        });
    }
    traffic::ping(a.netns(), own.into(), 56);
    assert!(agent.json(&["fdb", RED]).as_array().unwrap().is_empty());
    assert!(agent.json(&["neighbors", RED]).as_array().unwrap().is_empty());

    // Taken over, half made, another MTU, gone.
    let before = a.netns().ip_json("link show dev eth0");
    agent.kill9();
    carry(&lab, a, b, 1_000_000);
    agent.start();
    carry(&lab, b, a, 1_000_000);
    assert_eq!(before, a.netns().ip_json("link show dev eth0"), "the interface is the same");
    let _ = agent.cli(&["network", "update", RED, "--mtu", "1300"]);
    wait_until("the MTU is lowered", SOON, || {
        (Container::inspect(Arc::clone(a.netns()), "eth0").mtu() == 1300).then_some(())
    });
    carry(&lab, a, b, 1_000_000);
    agent.detach(RED, b);
    assert!(!traffic::reaches(a.netns(), theirs.into()));
    let inside = agent.json(&["network", "inspect", RED]);
    let inside = format!("--net={}", text(&inside["local"]["namespace"]));
    let inside = agent.netns().exec("nsenter", &[&inside, "ip", "route"]);
    assert!(inside.contains("198.51.100.0/24 dev tun0"), "{inside}");
    agent.stop();
    let report = agent.clean_up();
    assert!(report.status.success(), "{report:?}");
    assert!(report.stdout.contains("network namespace"), "{report:?}");
}

/// The other end of a container's link.
fn router_mac(container: &Container) -> [u8; 6] {
    let found = container.netns().ip_json("neigh show to 169.254.1.1");
    let mut mac = [0; 6];
    let bytes = text(&found[0]["lladdr"]).split(':').map(|byte| u8::from_str_radix(byte, 16));
    mac.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte.unwrap());
    mac
}

fn three_hosts(mode: &str, family: Family) {
    let lab = Lab::with_hosts(3).build();
    let (agents, ends) = red(&lab, mode, family, |spec| spec.args(&["--workers", "3"]));
    let overhead = match (mode, family) {
        ("ipip", Family::V4) => 20,
        ("ipip", Family::V6) => 40,
        (_, Family::V4) => 28,
        (_, Family::V6) => 48,
    };
    assert_eq!(ends[0].mtu(), 1500 - overhead);
    for from in &ends {
        for to in ends.iter().filter(|to| to.mac() != from.mac()) {
            if family == Family::V4 && to.mac() == ends[1].mac() {
                exchange(&lab, from, to, 1_000_000);
            } else {
                carry(&lab, from, to, 1_000_001);
            }
        }
    }
    exchange(&lab, &ends[0], &ends[2], 1_000_000);
    assert_no_checksum_errors(&ends.iter().collect::<Vec<_>>());
    for (index, agent) in agents.iter().enumerate() {
        for (at, end) in ends.iter().enumerate() {
            let host = route_to(agent, end.address(Family::V4));
            assert_eq!(host.as_deref(), Some(agents[at].name()), "on {}", agents[index].name());
        }
        // Blocks are all that is needed: no address has a route of its own.
        let routes = agent.json(&["routes", RED]);
        let single = |route: &&Value| {
            text(&route["prefix"]).ends_with("/32") || text(&route["prefix"]).ends_with("/128")
        };
        assert!(routes.as_array().unwrap().iter().find(single).is_none(), "{routes}");
    }
    let listed = agents[1].json(&["network", "ls"]);
    assert_eq!((text(&listed[0]["mode"]), &listed[0]["vni"]), (mode, &Value::Null));
}

/// Each capability of the datapath switched off, and all of them, over both kinds of underlay.
fn without(mode: &str, mask: &[&str]) {
    for underlay in [Underlay::Offloading, Underlay::Plain] {
        let lab = Lab::with_hosts(2).underlay(underlay).build();
        let change = |spec: AgentSpec| spec.config("[datapath]").config(&offload::disable(mask));
        let (_agents, ends) = red(&lab, mode, Family::V4, change);
        offload::bytes(&lab, &ends[0], &ends[1]);
        offload::bytes(&lab, &ends[1], &ends[0]);
        assert_no_checksum_errors(&[&ends[0], &ends[1]]);
    }
}

/// The containers' own offloads off, on both sides and on either.
fn containers_without_offloads(mode: &str) {
    let lab = Lab::with_hosts(2).build();
    let (_agents, ends) = red(&lab, mode, Family::V4, |spec| spec);
    for switched in [[false, false], [true, false], [false, true]] {
        for (end, on) in ends.iter().zip(switched) {
            end.set_offloads(on);
        }
        exchange(&lab, &ends[0], &ends[1], 2_000_001);
        exchange(&lab, &ends[1], &ends[0], 2_000_001);
    }
    assert_no_checksum_errors(&[&ends[0], &ends[1]]);
}

/// A container that announces larger segments than its interface takes is believed, until the
/// network is told to lower what they announce.
fn segment_sizes(mode: &str) {
    const ANNOUNCED: u16 = 8000;
    let lab = Lab::with_hosts(2).build();
    let (agents, ends) = red(&lab, mode, Family::V4, |spec| spec);
    let [from, to] = &ends[..] else { unreachable!("two containers") };
    for (family, router) in [(Family::V4, "169.254.1.1"), (Family::V6, "fe80::1")] {
        let address = to.address(family);
        let way = format!("via {router} dev eth0 onlink advmss {ANNOUNCED}");
        from.netns().ip(&format!("route add {address} {way}"));
    }
    // What the other container sees in the SYN of a connection.
    let announced = |family: Family| -> u16 {
        let at = SocketAddr::new(to.address(family), traffic::next_port());
        let filter = format!("tcp dst port {}", at.port());
        let name = format!("syn-{}", at.port());
        let capture = Capture::start(to.netns(), "eth0", &filter, &lab.logs(), &name);
        let _listener = to.netns().enter(|| TcpListener::bind(at)).unwrap();
        let _stream = from.netns().enter(|| TcpStream::connect(at)).unwrap();
        capture.wait(1, SOON);
        let seen = capture.stop();
        let size = seen[0].split_once("mss ").expect("a SYN says the size").1;
        size.split([',', ']']).next().unwrap().parse().unwrap()
    };
    assert_eq!(FAMILIES.map(announced), [ANNOUNCED; 2]);
    let _ = agents[0].cli(&["network", "update", RED, "-o", "mss_clamp=true"]);
    let fits = from.mtu() - 20;
    wait_until("it is lowered to what the path carries", SOON, || {
        (FAMILIES.map(announced) == [fits - 20, fits - 40]).then_some(())
    });
    carry(&lab, from, to, 1_000_000);
    carry(&lab, to, from, 1_000_000);
}

/// kill -9 under traffic, and back with another number of workers.
fn an_agent_that_is_killed(mode: &str) {
    let lab = Lab::with_hosts(2).build();
    let (agents, ends) = red(&lab, mode, Family::V4, |spec| spec);
    let before: Vec<Value> =
        ends.iter().map(|end| end.netns().ip_json("link show dev eth0")).collect();
    let (from, to) = (&ends[0], &ends[1]);
    let port = traffic::next_port();
    let address = SocketAddr::new(to.address(Family::V4), port).to_string();
    let receive = traffic::start(to.netns(), &lab.logs(), "in", &["udp-receive", &address]);
    let args = ["udp-send", &address, "--seconds", "8", "--rate", "1000", "--verify"];
    let send = traffic::start(from.netns(), &lab.logs(), "out", &args);
    std::thread::sleep(Duration::from_secs(2));
    agents[1].kill9();
    let again = lab.spec(2, Store::Embedded, Family::V4).args(&["--workers", "3"]);
    let again = lab.start_agent(2, again);
    assert_eq!(again.json(&["status"])["datapath"]["workers"], 3);
    let report = receive.finish(Duration::from_secs(60)).expect_success().json();
    let _ = send.finish(Duration::from_secs(60)).expect_success();
    let pause = report["longest_pause_ms"].as_f64().unwrap();
    measured("kill -9 and restart", format_args!("{mode}: silent for {pause:.0} ms, {report}"));
    assert!(pause < 10_000.0 && report["corrupt"] == 0 && report["duplicates"] == 0, "{report}");
    let after: Vec<Value> =
        ends.iter().map(|end| end.netns().ip_json("link show dev eth0")).collect();
    assert_eq!(before, after);
    carry(&lab, to, from, 2_000_000);
    let third = again.container(&lab, RED, "c3", &[]);
    carry(&lab, from, &third, 1_000_000);
}

/// Without the store traffic goes on, and what is attached from the reserve is reached by who knows
/// its block.
fn store_away(mode: &str) {
    let lab = Lab::with_hosts(3).build();
    let agents = lab.start_agents(&[1, 2, 3], Store::Etcd, Family::V4);
    for agent in &agents {
        for text in ["store", "lease", "watch"] {
            agent.allow_log(text);
        }
    }
    create(&agents[0], mode, &[]);
    let ends: Vec<Container> = (1..)
        .zip(&agents)
        .map(|(index, agent)| agent.container(&lab, RED, &format!("c{index}"), &[]))
        .collect();
    wait_until("addresses are reserved", SOON, || {
        let detail = agents[1].json(&["network", "inspect", RED]);
        (detail["local"]["reserved"].as_array()?.len() >= 2).then_some(())
    });
    let mesh = Mesh::start(&lab, &ends);
    lab.etcd().kill9();
    wait_until("the store is missed", SOON, || {
        (agents[1].json(&["status"])["store"]["state"] == "away").then_some(())
    });
    let late = agents[1].container(&lab, RED, "late", &[]);
    // Its block is known everywhere, so it is reached before the store has heard of it.
    for end in &ends {
        traffic::ping(end.netns(), late.address(Family::V4), 56);
        traffic::ping(end.netns(), late.address(Family::V6), 56);
    }
    mesh.lost_nothing("packets without the store");
    agents[2].kill9();
    agents[2].start_without_waiting();
    wait_until("an agent that starts without the store forwards", SOON, || {
        traffic::reaches(ends[2].netns(), ends[0].address(Family::V4)).then_some(())
    });
    lab.etcd().restart();
    wait_until("the late one is told", SOON, || {
        let listed = agents[0].json(&["endpoints", RED]);
        let ip = late.address(Family::V4).to_string();
        listed.to_string().contains(&ip).then_some(())
    });
    carry(&lab, &ends[2], &late, 1_000_000);
}

/// Tenants with the same addresses: each has its own.
fn tenants() {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    let names = ["one", "two", "three"];
    let mut ends = Vec::new();
    for name in names {
        agents[0].create_network(name, &[&SUBNETS[..], &["--mode", "ipudp"]].concat());
        for (agent, ip) in agents.iter().zip(["198.51.100.10", "198.51.100.130"]) {
            let sandbox = format!("{name}-{}", agent.name());
            ends.push(agent.container(&lab, name, &sandbox, &["--ip", ip]));
        }
    }
    let ports: Vec<u64> = names
        .iter()
        .map(|name| agents[1].json(&["network", "inspect", name])["udp_port"].as_u64().unwrap())
        .collect();
    assert_eq!(ports, [4760, 4762, 4764]);
    for pair in ends.chunks_exact(2) {
        let how = Tcp { bytes: 1_000_000, streams: 1, odd_sizes: false };
        traffic::tcp(&lab, &pair[0], &pair[1], Family::V4, how);
    }
    // Only the own tenant's container answers: with it gone, the address is silent.
    agents[1].detach("one", &ends[1]);
    let there = "198.51.100.130".parse().unwrap();
    assert!(!traffic::reaches(ends[0].netns(), there));
    assert!(traffic::reaches(ends[2].netns(), there));
    let refused = agents[0].try_cli(&[
        "network",
        "create",
        "four",
        "--subnet",
        "198.51.100.0/25",
        "--mode",
        "ipip",
    ]);
    assert!(refused.code() == 1 && refused.stderr.contains("--mode ipudp"), "{refused:?}");
}

fn what_is_refused() {
    let lab = Lab::with_hosts(1).build();
    let agents = lab.start_agents(&[1], Store::Embedded, Family::V4);
    for (mode, option, says) in [
        ("ipip", "learning=true", "learning cannot be used in a network of mode ipip"),
        ("ipudp", "local=switch", "local cannot be used in a network of mode ipudp"),
        ("ipip", "compat=swarm", "compat cannot be used"),
        ("ipip", "udp_port=5000", "only networks of mode ipudp"),
        ("vxlan", "mss_clamp=true", "mss_clamp cannot be used in a network of mode vxlan"),
    ] {
        let args = [&["network", "create", RED], &SUBNETS[..], &["--mode", mode, "-o", option]];
        let refused = agents[0].try_cli(&args.concat());
        assert!(refused.code() == 1 && refused.stderr.contains(says), "{option}: {refused:?}");
    }
    create(&agents[0], "ipip", &[]);
    let refused = agents[0].try_cli(&["network", "vtep", "add", RED, "192.0.2.9"]);
    assert!(refused.stderr.contains("no VTEPs outside of the store"), "{refused:?}");
    let refused = agents[0].try_cli(&["network", "update", RED, "-o", "flood_rate=5"]);
    assert!(refused.stderr.contains("flood_rate cannot be used"), "{refused:?}");
}

/// A namespace behind a host, which knows no route to any network of ours.
fn world(lab: &Lab, index: usize) -> Arc<Netns> {
    let netns = lab.sandbox(&format!("world{index}"));
    let host = lab.host(index).netns();
    host.ip(&format!("link add w0 type veth peer name eth0 netns {}", netns.name()));
    for (netns, link, end) in [(host, "w0", 1), (&netns, "eth0", 9)] {
        netns.ip(&format!("addr add 203.0.113.{end}/24 dev {link}"));
        netns.ip(&format!("addr add 2001:db8:9::{end}/64 dev {link} nodad"));
        netns.ip(&format!("link set {link} up"));
    }
    netns
}

/// To the world, to hosts and from hosts, without a gateway of the network's own.
fn a_way_out(mode: &str) {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    create(&agents[0], mode, &["--nat-outgoing"]);
    let [a, b] =
        [0, 1].map(|at| agents[at].container(&lab, RED, &format!("c{at}"), &["--default-route"]));
    let outside = Container::inspect(world(&lab, 1), "eth0");
    for family in FAMILIES {
        let to = outside.address(family);
        wait_until("the world is reached", SOON, || traffic::reaches(a.netns(), to).then_some(()));
        let how = Tcp { bytes: 1_000_000, streams: 2, odd_sizes: true };
        traffic::tcp(&lab, &a, &outside, family, how);
        // Its own host, and from each host its own container and the other one's.
        let host = lab.host(1).address(family);
        wait_until("the host is reached", SOON, || traffic::reaches(a.netns(), host).then_some(()));
        for end in [&a, &b] {
            let to = end.address(family);
            let reached = || traffic::reaches(lab.host(1).netns(), to).then_some(());
            wait_until("a container is reached from a host", SOON, reached);
        }
        assert!(!traffic::reaches(outside.netns(), a.address(family)), "not from the world");
    }
    carry(&lab, &a, &b, 1_000_000);
    let own = agents[1].json(&["network", "inspect", RED]);
    let own = own["local"]["host_ips"].as_array().unwrap().clone();
    assert_eq!(own.len(), 2, "a host has an address of each family in a network of packets");
    for ip in &own {
        traffic::ping(a.netns(), text(ip).parse().unwrap(), 1000);
    }
    // Off again.
    let _ = agents[0].cli(&["network", "update", RED, "--nat-outgoing=false"]);
    wait_until("the way out is gone", SOON, || {
        (!traffic::reaches(a.netns(), outside.address(Family::V4))).then_some(())
    });
    carry(&lab, &a, &b, 1_000_000);
}

/// An endpoint that moves keeps its address, and a block no longer says where it is.
fn a_move(mode: &str) {
    let lab = Lab::with_hosts(3).build();
    let (agents, ends) = red(&lab, mode, Family::V4, |spec| spec);
    let moved = agents[0].container(&lab, RED, "m1", &["--name", "mover"]);
    let beside = agents[0].container(&lab, RED, "n1", &[]);
    let ip = moved.address(Family::V4);
    traffic::ping(ends[1].netns(), ip, 56);
    let there = lab.sandbox("m2");
    agents[0].allow_log("is cut off");
    let args = ["attach", RED, "--netns", there.name(), "--move", "mover"];
    let _ = agents[2].cli(&args);
    for agent in &agents {
        wait_until("its route leads to its new host", SOON, || {
            (route_to(agent, ip).as_deref() == Some(agents[2].name())).then_some(())
        });
    }
    // From its old host, whose block it is of, too.
    for from in [&ends[0], &ends[1], &ends[2], &beside] {
        wait_until("it is reached", SOON, || traffic::reaches(from.netns(), ip).then_some(()));
    }
    let arrived = Container::inspect(there, "eth0");
    assert_eq!(arrived.address(Family::V4), ip);
    carry(&lab, &beside, &arrived, 1_000_000);
}

/// The router of another host tells as that of the own one does: nobody has an address, and a packet
/// has gone far enough.
fn what_another_hosts_router_says(mode: &str) {
    let lab = Lab::with_hosts(2).build();
    let (_agents, ends) = red(&lab, mode, Family::V4, |spec| spec);
    let [a, b] = &ends[..] else { unreachable!("two containers") };
    for family in FAMILIES {
        let there = b.address(family);
        wait_until("it is reached", SOON, || traffic::reaches(a.netns(), there).then_some(()));
        // Of the same block, with nobody.
        let free = match there {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) ^ 4).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) ^ 4).to_be_bytes()),
        };
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(free, 9), SOON);
        let refused = a.netns().enter(connect).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{free}: {refused}");
        let told = a.netns().enter(|| at_the_second_hop(there));
        let expected = match family {
            Family::V4 => Icmp::V4 { kind: 11, code: 0 },
            Family::V6 => Icmp::V6 { kind: 3, code: 0 },
        };
        assert_eq!(told, expected, "the hop limit is exceeded");
    }
}

/// What a packet's sender is told that may pass one router.
fn at_the_second_hop(to: IpAddr) -> Icmp {
    let (any, level, hops, errors): (IpAddr, _, _, _) = match to {
        IpAddr::V4(_) => {
            (Ipv4Addr::UNSPECIFIED.into(), libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR)
        }
        IpAddr::V6(_) => (
            Ipv6Addr::UNSPECIFIED.into(),
            libc::IPPROTO_IPV6,
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_RECVERR,
        ),
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    sockopt::set_int(socket.as_fd(), level, hops, 2).unwrap();
    sockopt::set_int(socket.as_fd(), level, errors, 1).unwrap();
    socket.send_to(b"far", (to, 9)).unwrap();
    wait_until("the sender is told", SOON, || {
        sockopt::take_error(socket.as_fd()).unwrap().and_then(|error| error.icmp)
    })
    .0
}

/// Packets from a VTEP that is none, and from one that claims what is not its own.
fn hostile_packets(mode: &str) {
    let lab = Lab::with_hosts(3).build();
    let hosts = [1, 2];
    let agents = lab.start_agents(&hosts, Store::Embedded, Family::V4);
    create(&agents[0], mode, &[]);
    let ends: Vec<Container> = (1..)
        .zip(&agents)
        .map(|(index, agent)| agent.container(&lab, RED, &format!("c{index}"), &[]))
        .collect();
    carry(&lab, &ends[0], &ends[1], 100_000);
    let (IpAddr::V4(a), IpAddr::V4(b)) = (ends[0].address(Family::V4), ends[1].address(Family::V4))
    else {
        unreachable!("IPv4")
    };
    let listening =
        ends[0].netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 2000))).unwrap();
    listening.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let inbound = || {
        let all = agents[0].json(&["drops"]);
        let rows = all.as_array().unwrap().iter().filter(|row| row["direction"] == "inbound");
        rows.map(|row| row["count"].as_u64().unwrap()).sum::<u64>()
    };
    let strange = [203, 0, 113, 77].into();
    for (from, source, to, what) in [
        (3, b, a, "from a stranger"),
        (2, strange, a, "a source that nobody has"),
        (2, a, a, "a source of our own"),
        (2, b, [198, 51, 100, 77].into(), "a destination that nobody has"),
        (2, b, strange, "a destination of no network"),
    ] {
        let before = inbound();
        send(&lab, mode, (from, 1), (source, to), b"evil");
        if what == "a destination that nobody has" {
            // The kernel of that host may be the one who answers; it must not arrive.
        } else {
            wait_until(what, SOON, || (inbound() > before).then_some(()));
        }
        assert!(listening.recv(&mut [0; 64]).is_err(), "{what} arrived");
    }
    // What is right arrives: the packets above were refused for the right reason.
    send(&lab, mode, (2, 1), (b, a), b"good");
    let mut buffer = [0; 64];
    listening.set_read_timeout(Some(SOON)).unwrap();
    let len = listening.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"good");
    carry(&lab, &ends[1], &ends[0], 100_000);
}

/// Sends a packet from one host's VTEP address to another's, as the mode carries it.
fn send(
    lab: &Lab,
    mode: &str,
    (from, to): (usize, usize),
    inner: (Ipv4Addr, Ipv4Addr),
    payload: &[u8],
) {
    let frame = testkit::udp_frame(([0; 6], [0; 6]), inner, (1000, 2000), payload);
    let packet = &frame[14..];
    let host = lab.host(from);
    let (source, target) = (host.address(Family::V4), lab.host(to).address(Family::V4));
    if mode == "ipudp" {
        host.netns().enter(|| {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.send_to(packet, (target, 4760)).unwrap();
        });
        return;
    }
    let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else { unreachable!("IPv4") };
    testkit::send_protocol(host.netns(), 4, (source, target), packet);
}

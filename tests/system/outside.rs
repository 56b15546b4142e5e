//! Gateways, the way to the world, and the way between networks and their hosts: on hosts whose
//! firewall drops what it does not know, and on hosts without one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use testkit::traffic::{self, Tcp, Udp};
use testkit::{Agent, Cap, Container, Family, Lab, Netns, Store, Suite, wait_until};

use firewalls::Firewall;

use crate::support::{AGENTS, drops};

mod firewalls;

const WITH_IPTABLES: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Iptables];

/// The network of these tests.
const GREEN: &str = "green";
const SUBNETS: &[&str] = &["--subnet", "198.51.100.0/24", "--subnet", "2001:db8:1::/64"];
const GATEWAYS: &[&str] = &["--gateway", "198.51.100.1", "--gateway", "2001:db8:1::1"];
/// The gateway's MAC, on every host.
const GATEWAY_MAC: [u8; 6] = [0x02, 0x42, 198, 51, 100, 1];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// How long something may take that happens by itself within two seconds.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn register(suite: &mut Suite) {
    suite.test("outside::a_gateway_is_on_every_host", AGENTS, a_gateway_is_on_every_host);
    suite.test("outside::the_world_is_reached", AGENTS, the_world_is_reached);
    suite.test("outside::hosts_are_reached", AGENTS, hosts_are_reached);
    suite.test("outside::subnets_that_overlap", AGENTS, subnets_that_overlap);
    for (name, caps, firewall) in [
        ("outside::a_firewall_of_docker", WITH_IPTABLES, Firewall::Docker),
        ("outside::a_firewall_of_docker_legacy", WITH_IPTABLES, Firewall::Legacy),
        ("outside::a_firewall_of_docker_in_nft", AGENTS, Firewall::DockerNft),
        ("outside::a_firewall_that_rejects_last", WITH_IPTABLES, Firewall::RejectsLast),
        (
            "outside::a_firewall_that_rejects_last_legacy",
            WITH_IPTABLES,
            Firewall::LegacyRejectsLast,
        ),
        ("outside::a_firewall_like_firewalld", AGENTS, Firewall::Firewalld),
        ("outside::a_firewall_in_nft", AGENTS, Firewall::Nft),
    ] {
        suite.test(name, caps, move || firewalls::one_that_drops(firewall));
    }
    suite.test("outside::a_firewall_that_owns_its_table", AGENTS, firewalls::one_of_its_owner);
    suite.test("outside::an_agent_that_is_killed", AGENTS, an_agent_that_is_killed);
    suite.test("outside::two_agents_of_one_host", AGENTS, two_agents_of_one_host);
    suite.test("outside::large_packets", AGENTS, large_packets);
}

/// `--subnet`s and `--gateway`s of both families, and more.
fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [SUBNETS, GATEWAYS, more].concat()
}

/// Agents with the embedded store, whose complaints about a machine that is busy do not matter here.
fn start(lab: &Lab, hosts: &[usize]) -> Vec<Agent> {
    let agents = lab.start_agents(hosts, Store::Embedded, Family::V4);
    for agent in &agents {
        tolerate(agent);
    }
    agents
}

fn tolerate(agent: &Agent) {
    // A check may also meet a reload half way, more than once when that takes long.
    for text in ["store", "lease", "watch", "uplink-rules"] {
        agent.allow_log(text);
    }
}

/// What is behind a host: a namespace that knows no route to any network of ours.
struct World {
    netns: Arc<Netns>,
}

impl World {
    /// Behind host `index` of the lab.
    fn behind(lab: &Lab, index: usize, mtu: u16) -> Self {
        let netns = lab.sandbox(&format!("world{index}"));
        let host = lab.host(index).netns();
        host.ip(&format!(
            "link add w0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            netns.name()
        ));
        for (netns, link, end) in [(host, "w0", 1), (&netns, "eth0", 9)] {
            netns.ip(&format!("addr add 203.0.113.{end}/24 dev {link}"));
            netns.ip(&format!("addr add 2001:db8:9::{end}/64 dev {link} nodad"));
            netns.ip(&format!("link set {link} up"));
        }
        Self { netns }
    }

    fn address(family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([203, 0, 113, 9]),
            Family::V6 => "2001:db8:9::9".parse().unwrap(),
        }
    }

    /// As something that traffic goes to.
    fn container(&self) -> Container {
        Container::inspect(Arc::clone(&self.netns), "eth0")
    }
}

#[track_caller]
fn reaches_world(from: &Container) {
    for family in FAMILIES {
        traffic::ping(from.netns(), World::address(family), 56);
    }
}

#[track_caller]
fn wait_reaches(what: &str, from: &Netns, to: IpAddr) {
    wait_until(what, SOON, || traffic::reaches(from, to).then_some(()));
}

/// The MAC by which a namespace knows an address.
fn neighbor(netns: &Netns, address: &str) -> String {
    let found = netns.ip_json(&format!("neigh show to {address}"));
    found[0]["lladdr"].as_str().unwrap_or_default().to_owned()
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Sends an inner frame in VXLAN from the VTEP of one host to another's.
fn from_wire(lab: &Lab, from: usize, to: usize, vni: u32, frame: &[u8]) {
    let to = SocketAddr::new(lab.host(to).address(Family::V4), 4789);
    let source = SocketAddr::new(lab.host(from).address(Family::V4), 0);
    let [_, a, b, c] = vni.to_be_bytes();
    let datagram = [&[8, 0, 0, 0, a, b, c, 0], frame].concat();
    lab.host(from).netns().enter(|| {
        UdpSocket::bind(source).unwrap().send_to(&datagram, to).unwrap();
    });
}

fn vni(agent: &Agent) -> u32 {
    let vni = agent.json(&["network", "inspect", GREEN])["vni"].as_u64();
    u32::try_from(vni.unwrap()).unwrap()
}

fn a_gateway_is_on_every_host() {
    let lab = Lab::with_hosts(2).build();
    let agents = start(&lab, &[1, 2]);
    agents[0].create_network(GREEN, &with(&[]));
    let [a, b] =
        [0, 1].map(|at| agents[at].container(&lab, GREEN, &format!("c{at}"), &["--default-route"]));
    for container in [&a, &b] {
        for gateway in ["198.51.100.1", "2001:db8:1::1"] {
            traffic::ping(container.netns(), gateway.parse().unwrap(), 1000);
            assert_eq!(neighbor(container.netns(), gateway), mac_text(GATEWAY_MAC));
        }
        let routes = container.netns().ip("route show default");
        assert!(routes.contains("via 198.51.100.1"), "{routes}");
    }
    for family in FAMILIES {
        traffic::ping(a.netns(), b.address(family), 5000);
        traffic::tcp(&lab, &a, &b, family, Tcp { bytes: 1_000_000, streams: 1, odd_sizes: true });
    }
    // Without another option a gateway leads nowhere, and takes no address of a host's own.
    for address in [lab.host(1).address(Family::V4), lab.host(1).address(Family::V6)] {
        assert!(!traffic::reaches(a.netns(), address));
    }
    assert_eq!(agents[0].json(&["endpoints"]).as_array().map(Vec::len), Some(2));
    assert!(agents[0].json(&["status"])["outside"].is_null());

    // Nobody else may have what is the gateway's.
    let refused =
        agents[0].try_cli(&["attach", GREEN, "--netns", "x", "--mac", &mac_text(GATEWAY_MAC)]);
    assert_ne!(refused.code(), 0);
    let v4 = |container: &Container| match container.address(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!(),
    };
    let gateway = [198, 51, 100, 1].into();
    for (frame, what) in [
        (
            testkit::udp_frame((a.mac(), GATEWAY_MAC), (v4(&b), v4(&a)), (1, 2), b"as its MAC"),
            "its MAC as the source",
        ),
        (
            testkit::udp_frame((GATEWAY_MAC, b.mac()), (v4(&b), gateway), (1, 2), b"to its MAC"),
            "its MAC as the destination",
        ),
        (
            testkit::udp_frame((a.mac(), b.mac()), (gateway, v4(&a)), (1, 2), b"as its address"),
            "its address as the source",
        ),
    ] {
        let before = drops(&agents[0], "in_gateway");
        from_wire(&lab, 2, 1, vni(&agents[0]), &frame);
        wait_until(what, SOON, || (drops(&agents[0], "in_gateway") == before + 1).then_some(()));
    }
    for agent in &agents {
        assert_eq!(drops(agent, "out_gateway"), 0, "the bridge keeps the gateway's frames here");
        assert_eq!(drops(agent, "out_neighbor_unknown"), 0);
    }
    assert_eq!(drops(&agents[1], "in_gateway"), 0);
}

fn the_world_is_reached() {
    let lab = Lab::with_hosts(2).build();
    let world = World::behind(&lab, 1, 1500);
    let agents = start(&lab, &[1, 2]);
    agents[0].create_network(GREEN, &with(&["--nat-outgoing"]));
    let inside = agents[0].container(&lab, GREEN, "c1", &["--default-route"]);
    reaches_world(&inside);
    let there = world.container();
    for family in FAMILIES {
        let how = Tcp { bytes: 5_000_000, streams: 2, odd_sizes: true };
        traffic::tcp(&lab, &inside, &there, family, how);
        for (size, gso) in [(18, false), (1200, true), (4000, false)] {
            traffic::udp(&lab, &inside, &there, family, Udp { count: 200, size, rate: 1000, gso });
        }
    }
    // The world sees the host, and of UDP a port that none of the switch's own sockets can have.
    let listener = world.netns.enter(|| UdpSocket::bind("203.0.113.9:4789").unwrap());
    listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    inside.netns().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:4789").unwrap();
        socket.send_to(b"x", "203.0.113.9:4789").unwrap();
    });
    let (_, seen) = listener.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(seen.ip(), IpAddr::from([203, 0, 113, 1]));
    assert!((4790..=32767).contains(&seen.port()), "{seen}");
    // Nor does it reach in, even if it is told the way.
    world.netns.ip("route add 198.51.100.0/24 via 203.0.113.1");
    assert!(!traffic::reaches(&world.netns, inside.address(Family::V4)));

    let status = agents[0].json(&["status"]);
    assert_eq!(status["outside"]["forwards_ipv4"], true, "{status}");
    assert_eq!(status["outside"]["permission"], serde_json::json!([]));
    let detail = agents[0].json(&["network", "inspect", GREEN]);
    assert_eq!(detail["reaches"], serde_json::json!(["world", "host"]));

    // Off and on again, while it carries traffic.
    let _ = agents[0].cli(&["network", "update", GREEN, "--nat-outgoing=false"]);
    wait_until("the world is out of reach", SOON, || {
        (!traffic::reaches(inside.netns(), World::address(Family::V4))).then_some(())
    });
    assert_eq!(names(lab.host(1).netns(), "sky"), Vec::<String>::new());
    let _ = agents[0].cli(&["network", "update", GREEN, "--nat-outgoing"]);
    wait_reaches("the world", inside.netns(), World::address(Family::V4));

    // Without access to the host there is still the world.
    let _ = agents[0].cli(&["network", "update", GREEN, "--option", "host_access=false"]);
    let host = lab.host(1).address(Family::V4);
    wait_until("the host is out of reach", SOON, || {
        (!traffic::reaches(inside.netns(), host)).then_some(())
    });
    reaches_world(&inside);
    assert!(!traffic::reaches(lab.host(1).netns(), inside.address(Family::V4)));
    wait_until("the host's endpoint is gone", SOON, || {
        (agents[0].json(&["endpoints"]).as_array().map(Vec::len) == Some(1)).then_some(())
    });

    // All of it goes with the last endpoint, and the network can be removed at once.
    agents[0].detach(GREEN, &inside);
    nothing_is_left(&agents[0]);
    let _ = agents[0].cli(&["network", "rm", GREEN]);
}

/// The interfaces whose names begin like this.
fn names(netns: &Netns, beginning: &str) -> Vec<String> {
    let listing = netns.ip_json("link show");
    let all = listing.as_array().into_iter().flatten();
    all.filter_map(|link| link["ifname"].as_str())
        .filter(|name| name.starts_with(beginning))
        .map(str::to_owned)
        .collect()
}

/// What is left of ours in a host's namespace: interfaces, tables, chains, routes.
#[track_caller]
fn nothing_is_left(agent: &Agent) {
    let netns = agent.netns();
    assert_eq!(names(netns, "sky"), Vec::<String>::new());
    let rules = netns.exec("nft", &["list", "ruleset"]);
    assert!(!rules.to_lowercase().contains("skybridge"), "{rules}");
    let routes = netns.ip("route show") + &netns.ip("-6 route show");
    assert!(!routes.contains("198.51.100.") && !routes.contains("2001:db8:1:"), "{routes}");
}

fn hosts_are_reached() {
    let lab = Lab::with_hosts(3).build();
    let agents = start(&lab, &[1, 2]);
    agents[0].create_network(GREEN, &with(&["--option", "host_access=true"]));
    let [a, b] =
        [0, 1].map(|at| agents[at].container(&lab, GREEN, &format!("c{at}"), &["--default-route"]));
    for (at, own) in [(1, &a), (2, &b)] {
        let host = lab.host(at);
        for family in FAMILIES {
            // A host's own endpoint comes a moment after the first container.
            for to in [&a, &b] {
                wait_reaches("a container from a host", host.netns(), to.address(family));
            }
            traffic::ping(own.netns(), host.address(family), 1400);
        }
        // But not what is beyond the host.
        assert!(!traffic::reaches(own.netns(), lab.host(3).address(Family::V4)));
    }
    // Services in both directions, local and across.
    let host = Container::inspect(Arc::clone(lab.host(1).netns()), "eth0");
    for family in FAMILIES {
        let how = Tcp { bytes: 2_000_000, streams: 1, odd_sizes: false };
        traffic::tcp(&lab, &host, &b, family, how);
        traffic::tcp(&lab, &host, &a, family, how);
        traffic::tcp(&lab, &a, &host, family, how);
    }
    // Each host is an endpoint: its own address, its router MAC.
    let listed = agents[0].json(&["endpoints"]);
    let own: Vec<&Value> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter(|item| item["id"].as_str().is_some_and(|id| id.starts_with("host-")))
        .collect();
    assert_eq!(own.len(), 2, "{listed}");
    let mac = |at: usize| own[at]["mac"].as_str().unwrap_or_default().to_owned();
    assert!(mac(0) != mac(1) && mac(0) != mac_text(GATEWAY_MAC), "{own:?}");
    let told = agents[0].json(&["network", "inspect", GREEN])["local"]["host_ips"].clone();
    assert_eq!(told.as_array().map(Vec::len), Some(2));
    for agent in &agents {
        for reason in ["out_gateway", "in_gateway", "in_source_spoofed", "out_source_not_local"] {
            assert_eq!(drops(agent, reason), 0, "{reason} of {}", agent.name());
        }
    }
    for (agent, container) in agents.iter().zip([&a, &b]) {
        agent.detach(GREEN, container);
        nothing_is_left(agent);
    }
    let _ = agents[0].cli(&["network", "rm", GREEN]);
}

fn subnets_that_overlap() {
    let lab = Lab::with_hosts(1).build();
    let world = World::behind(&lab, 1, 1500);
    let agent = &start(&lab, &[1])[0];
    agent.create_network(GREEN, &with(&["--nat-outgoing"]));
    let inner = ["--subnet", "198.51.100.128/25", "--gateway", "198.51.100.129"];
    for way in [&["--nat-outgoing"][..], &["--option", "host_access=true"]] {
        let refused = agent.try_cli(&[&["network", "create", "red"], &inner[..], way].concat());
        assert_eq!(refused.code(), 1);
        assert!(
            refused.stderr.contains("198.51.100.0/24 of network green"),
            "the other is named: {}",
            refused.stderr
        );
    }
    // Without a way out it is isolated, and works.
    agent.create_network("red", &inner);
    let green = agent.container(&lab, GREEN, "c1", &["--default-route", "--ip", "198.51.100.200"]);
    let [one, two] = ["198.51.100.200", "198.51.100.250"].map(|ip| {
        agent.container(&lab, "red", &format!("r{ip}"), &["--default-route", "--ip", ip])
    });
    reaches_world(&green);
    traffic::ping(one.netns(), two.address(Family::V4), 1000);
    traffic::ping(one.netns(), IpAddr::from([198, 51, 100, 129]), 1000);
    assert!(!traffic::reaches(one.netns(), World::address(Family::V4)));
    // Green has no such address: what answers here is in the other network.
    assert!(!traffic::reaches(green.netns(), two.address(Family::V4)));
    let refused = agent.try_cli(&["network", "update", "red", "--nat-outgoing"]);
    assert!(refused.code() == 1 && refused.stderr.contains("network green"), "{}", refused.stderr);
    // Two networks that both reach the world do not reach each other through the host.
    agent.create_network(
        "blue",
        &["--subnet", "192.0.2.128/25", "--gateway", "192.0.2.129", "--nat-outgoing"],
    );
    // Its subnet is a part of the underlay's, where more specific routes win.
    let blue = agent.container(&lab, "blue", "b1", &["--default-route"]);
    traffic::ping(blue.netns(), World::address(Family::V4), 100);
    assert!(!traffic::reaches(blue.netns(), green.address(Family::V4)));
    assert!(!traffic::reaches(green.netns(), blue.address(Family::V4)));
    drop(world);
}

fn an_agent_that_is_killed() {
    let lab = Lab::with_hosts(1).build();
    let world = World::behind(&lab, 1, 1500);
    let agent = &start(&lab, &[1])[0];
    agent.create_network(GREEN, &with(&["--nat-outgoing"]));
    let inside = agent.container(&lab, GREEN, "c1", &["--default-route"]);
    reaches_world(&inside);
    let uplinks = names(lab.host(1).netns(), "sky");
    let host = lab.host(1).netns();
    wait_reaches("the container from its host", host, inside.address(Family::V4));
    agent.kill9();
    // Also for those who have forgotten everything.
    inside.netns().ip("neigh flush all");
    reaches_world(&inside);
    for family in FAMILIES {
        traffic::ping(inside.netns(), lab.host(1).address(family), 100);
        traffic::ping(host, inside.address(family), 100);
    }
    // A connection that goes on over the next start: nothing is made anew under it.
    let there = world.container();
    let flow = std::thread::scope(|scope| {
        let flow = scope.spawn(|| {
            let how = Udp { count: 4000, size: 400, rate: 1000, gso: false };
            traffic::udp(&lab, &inside, &there, Family::V4, how)
        });
        agent.start();
        flow.join().is_ok()
    });
    assert!(flow, "the flow to the world went on over the start");
    reaches_world(&inside);
    assert_eq!(names(host, "sky"), uplinks, "taken over, not made anew");
    assert_eq!(names(host, "sky").len(), 1);
    agent.detach(GREEN, &inside);
    nothing_is_left(agent);
}

/// Two state directories in one namespace: each has its own uplinks, rules and jumps.
fn two_agents_of_one_host() {
    let lab = Lab::with_hosts(1).build();
    let _world = World::behind(&lab, 1, 1500);
    let host = lab.host(1);
    Firewall::Nft.load(host.netns());
    host.netns().ip("addr add 192.0.2.101/24 dev eth0");
    let first = lab.start_agent(1, lab.spec(1, Store::Embedded, Family::V4));
    let store = SocketAddr::new(host.address(Family::V4), 2379);
    let spec = testkit::AgentSpec::new(IpAddr::from([192, 0, 2, 101])).store(store);
    let second = lab.agent_as("h1b", "h1b", 1, spec);
    second.start();
    let _ = second.wait_ready();
    tolerate(&first);
    tolerate(&second);
    first.create_network(GREEN, &with(&["--nat-outgoing"]));
    first.create_network(
        "red",
        &["--subnet", "198.18.0.0/24", "--gateway", "198.18.0.1", "--nat-outgoing"],
    );
    let one = first.container(&lab, GREEN, "c1", &["--default-route"]);
    let two = second.container(&lab, "red", "c2", &["--default-route"]);
    assert_eq!(names(host.netns(), "sky").len(), 2);
    for container in [&one, &two] {
        traffic::ping(container.netns(), World::address(Family::V4), 100);
    }
    assert!(!traffic::reaches(one.netns(), two.address(Family::V4)));
    assert!(!traffic::reaches(two.netns(), one.address(Family::V4)));
    // What one takes away is not the other's.
    second.detach("red", &two);
    assert_eq!(names(host.netns(), "sky").len(), 1);
    reaches_world(&one);
    second.stop();
    let _ = second.clean_up().expect_success();
    reaches_world(&one);
    first.detach(GREEN, &one);
    nothing_is_left(&first);
}

/// A world with a smaller MTU than the network, and one with a larger.
fn large_packets() {
    for world_mtu in [1300, 9000] {
        let lab = Lab::with_hosts(1).build();
        let world = World::behind(&lab, 1, world_mtu);
        let agent = &start(&lab, &[1])[0];
        agent.create_network(GREEN, &with(&["--nat-outgoing"]));
        let inside = agent.container(&lab, GREEN, "c1", &["--default-route"]);
        let there = world.container();
        let uplink = names(lab.host(1).netns(), "sky");
        let link = lab.host(1).netns().ip_json(&format!("link show dev {}", uplink[0]));
        assert_eq!(link[0]["mtu"].as_u64(), Some(inside.mtu().into()), "{link}");
        for family in FAMILIES {
            if world_mtu < inside.mtu() {
                // Told by the host, in the words of the protocol, what fits.
                let size = traffic::largest_ping(inside.mtu(), family).to_string();
                let to = World::address(family).to_string();
                let words = ["-M", "do", "-c", "2", "-W", "2", "-s", &size, &to];
                let answer = inside.netns().try_exec("ping", &words);
                let text = answer.stdout + &answer.stderr;
                assert!(text.contains("1300"), "no word of the MTU for {family:?}: {text}");
            }
            let how = Tcp { bytes: 5_000_000, streams: 1, odd_sizes: true };
            traffic::tcp(&lab, &inside, &there, family, how);
        }
        // The network's MTU goes on to all that leads out of it.
        let _ = agent.cli(&["network", "update", GREEN, "--mtu", "1290"]);
        let ends = [(lab.host(1).netns(), uplink[0].as_str()), (inside.netns(), "eth0")];
        for (netns, link) in ends {
            wait_until("the new MTU", SOON, || {
                let found = netns.ip_json(&format!("link show dev {link}"));
                (found[0]["mtu"].as_u64() == Some(1290)).then_some(())
            });
        }
        let how = Tcp { bytes: 1_000_000, streams: 1, odd_sizes: true };
        traffic::tcp(&lab, &inside, &there, Family::V4, how);
    }
}

//! Packets of routed networks that go as they are: all addresses of a host wherever they lie, the hosts
//! themselves, and what becomes of it when something is missing on the way.

use std::net::IpAddr;
use std::time::Duration;

use testkit::traffic;
use testkit::{Agent, Cap, Container, Family, Lab, Store, Suite, wait_until};

use crate::l3::route_to;
use crate::paths::{
    ALLOWED, IN_IP, RED, TABLE, cut, host_half, path_of, red, under_traffic, wait_direct,
    wait_direct_in, wait_for,
};
use crate::support::{AGENTS, carry, measured};

const WITH_TCPDUMP: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Tcpdump];
const SUBNET: &[&str] = &["--subnet", "198.51.100.0/24", "--mode", "ipip"];

pub(crate) fn register(suite: &mut Suite) {
    suite.test("direct::addresses_that_moved", AGENTS, addresses_that_moved);
    for value in ["auto", "cross-subnet"] {
        let name = format!("direct::hosts_reach_containers_{value}").replace('-', "_");
        suite.test(name, AGENTS, move || hosts_reach_containers(value));
    }
    suite.test("direct::what_is_taken_away", AGENTS, what_is_taken_away);
    suite.timed("direct::restart", AGENTS, restart);
    suite.test("direct::a_firewall_that_knows_answers", AGENTS, a_firewall_that_knows_answers);
    suite.test("direct::a_host_that_cannot", AGENTS, a_host_that_cannot);
    suite.test("direct::only_by_the_underlay", WITH_TCPDUMP, only_by_the_underlay);
}

/// Agents on hosts that refuse what they would not answer by the same interface.
fn strict(options: &[&str]) -> (Lab, Vec<Agent>, Vec<Container>) {
    let lab = Lab::with_hosts(2).build();
    for host in lab.hosts() {
        host.netns().sysctl("net/ipv4/conf/all/rp_filter", "1");
        host.netns().sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    }
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    agents[0].create_network(RED, &[SUBNET, options].concat());
    let ends = (1..)
        .zip(&agents)
        .map(|(index, agent)| agent.container(&lab, RED, &format!("c{index}"), &[]))
        .collect();
    (lab, agents, ends)
}

#[track_caller]
fn wait_reached(from: &testkit::Netns, to: IpAddr) {
    wait_until(&format!("{} reaches {to}", from.name()), ALLOWED, || {
        traffic::reaches(from, to).then_some(())
    });
}

/// Endpoints move between two hosts of one subnet and a distant one, and keep addresses that lie in the
/// blocks of others.
fn addresses_that_moved() {
    let (lab, agents, mut ends) = red(Family::V4, 3, true, &["-o", "encapsulate=cross-subnet"]);
    wait_direct(&agents[0], &ends[1], true);
    wait_direct(&agents[1], &ends[0], true);
    agents[1].allow_log("is cut off");
    let carried = |one: &Container, others: &[Container]| {
        for other in others {
            for (from, to) in [(one, other), (other, one)] {
                wait_reached(from.netns(), to.address(Family::V4));
                carry(&lab, from, to, 100_000);
            }
        }
    };
    // From host 2 to its neighbor, on to the distant one, and back: each time one more address lies
    // where its block does not lead.
    for (index, to) in [0, 2, 1].into_iter().enumerate() {
        let named = format!("mover{index}");
        let mover = agents[1].container(&lab, RED, &named, &["--name", &named]);
        let there = lab.sandbox(&format!("m{index}"));
        let moved = agents[to].attach(&there, RED, &["--move", &named]);
        assert_eq!(mover.address(Family::V4), moved.address(Family::V4));
        for agent in &agents {
            wait_until("its route leads to its new host", ALLOWED, || {
                let found = route_to(agent, moved.address(Family::V4));
                (found.as_deref() == Some(agents[to].name())).then_some(())
            });
        }
        carried(&moved, &ends);
        ends.push(moved);
    }
    // Which way each address takes, as the first host sees it.
    for (end, direct) in [(4, false), (5, true)] {
        wait_direct(&agents[0], &ends[end], direct);
    }
}

/// A host reaches containers of the other host, and is reached, on strict hosts too.
fn hosts_reach_containers(value: &str) {
    let option = format!("encapsulate={value}");
    let (lab, agents, ends) = strict(&["-o", &option, "-o", "host_access=true"]);
    wait_for("direct", [&agents[0], &agents[1]]);
    wait_direct(&agents[0], &ends[1], true);
    wait_direct(&agents[1], &ends[0], true);
    for (host, end) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        wait_reached(lab.host(host).netns(), ends[end].address(Family::V4));
    }
    for (index, agent) in agents.iter().enumerate() {
        let other = ends[1 - index].netns();
        let own = agent.json(&["network", "inspect", RED]);
        let own = own["local"]["host_ips"][0].as_str().expect("an own address").to_owned();
        wait_reached(other, own.parse().expect("an address"));
    }
}

/// Routes and rules that somebody removes, and an interface that goes down and up.
fn what_is_taken_away() {
    let (lab, agents, ends) = red(Family::V4, 2, false, &["-o", "encapsulate=auto"]);
    wait_for("direct", [&agents[0], &agents[1]]);
    wait_direct(&agents[0], &ends[1], true);
    let host = lab.host(1).netns();
    let whole = host_half(&lab, 1);
    assert!(whole.contains("via 192.0.2.2"), "{whole}");
    let back = |what: &str| {
        wait_until(what, ALLOWED, || (host_half(&lab, 1) == whole).then_some(()));
        wait_reached(ends[0].netns(), ends[1].address(Family::V4));
    };
    host.ip(&format!("route flush table {TABLE}"));
    back("the routes are there again");
    agents[0].wait_log("somebody had removed routes", ALLOWED);
    host.ip("rule del pref 1000");
    back("the rule is there again");
    for text in ["underlay", "packets that could go directly are encapsulated"] {
        agents[0].allow_log(text);
    }
    host.ip("link set eth0 down");
    host.ip("link set eth0 up");
    back("the interface is up again");
    wait_for("direct", [&agents[0], &agents[1]]);
    carry(&lab, &ends[0], &ends[1], 1_000_000);
}

/// An agent that starts finds packets going directly, and they go on: here nothing else passes.
fn restart() {
    let (lab, agents, ends) = red(Family::V4, 2, false, &["-o", "encapsulate=auto"]);
    let both = [&agents[0], &agents[1]];
    wait_for("direct", both);
    wait_direct(&agents[0], &ends[1], true);
    wait_direct(&agents[1], &ends[0], true);
    cut(&lab, IN_IP);
    cut(&lab, "udp dport { 4760, 4761 }");
    let pauses = under_traffic(&lab, Family::V4, &ends[0], &ends[1], || {
        agents[1].kill9();
        agents[1].start();
        wait_until("it is known", ALLOWED, || {
            let path = path_of(&agents[1], &agents[0]);
            (path["used"] == "direct" && path["ways"][0]["arrives"] == true).then_some(())
        });
        wait_direct(&agents[1], &ends[0], true);
    });
    measured("a restart where only direct packets pass", format_args!("{pauses:.0?} ms"));
    assert!(pauses.iter().all(|pause| *pause < 1_000.0), "{pauses:?}");
    for agent in both {
        assert!(!agent.log().contains("from=\"direct\""), "{} left the way", agent.name());
    }
}

/// A firewall that lets answers pass, and nothing that comes by itself, closes the direct way.
fn a_firewall_that_knows_answers() {
    let (lab, agents, ends) = red(Family::V4, 2, false, &[]);
    for host in [1, 2] {
        lab.host(host).netns().exec(
            "nft",
            &["table inet lab_answers {
                chain forward {
                    type filter hook forward priority 10; policy accept;
                    ct state established,related accept
                    iifname \"eth0\" reject
                }
            }"],
        );
    }
    let _ = agents[0].cli(&["network", "update", RED, "-o", "encapsulate=auto"]);
    wait_for("ipip", [&agents[0], &agents[1]]);
    carry(&lab, &ends[0], &ends[1], 500_000);
    let direct = |of: usize| path_of(&agents[of], &agents[1 - of])["ways"][0].clone();
    wait_until("the direct way is known to be closed", ALLOWED, || {
        (direct(0)["arrives"] == false && direct(1)["arrives"] == false).then_some(())
    });
    for host in [1, 2] {
        lab.host(host).netns().exec("nft", &["delete", "table", "inet", "lab_answers"]);
    }
    wait_for("direct", [&agents[0], &agents[1]]);
    carry(&lab, &ends[1], &ends[0], 500_000);
}

/// A host that has no way in for a network gets its packets in the tunnel, and another network's go
/// directly all the same.
fn a_host_that_cannot() {
    let (lab, agents, ends) = red(Family::V4, 2, false, &[]);
    lab.host(2).netns().ip("link add other type bridge");
    lab.host(2).netns().ip("link set other up");
    lab.host(2).netns().ip("addr add 198.51.100.241/29 dev other");
    agents[1].allow_log("has no whole way out");
    let _ = agents[0].cli(&["network", "update", RED, "-o", "encapsulate=cross-subnet"]);
    agents[0].create_network(
        "blue",
        &["--subnet", "203.0.113.0/25", "--mode", "ipip", "-o", "encapsulate=cross-subnet"],
    );
    let blue: Vec<Container> = agents
        .iter()
        .enumerate()
        .map(|(index, agent)| agent.container(&lab, "blue", &format!("b{index}"), &[]))
        .collect();
    agents[1].wait_log("has no whole way out", ALLOWED);
    wait_direct_in(&agents[0], "blue", blue[1].address(Family::V4), true);
    carry(&lab, &blue[0], &blue[1], 500_000);
    wait_direct(&agents[0], &ends[1], false);
    carry(&lab, &ends[0], &ends[1], 500_000);
    // As soon as it can, it says so.
    lab.host(2).netns().ip("link del other");
    wait_direct(&agents[0], &ends[1], true);
    carry(&lab, &ends[1], &ends[0], 500_000);
}

/// Nobody gets packets into a network as a host's by any interface but the underlay's.
fn only_by_the_underlay() {
    let (lab, agents, ends) = red(Family::V4, 2, false, &["-o", "encapsulate=cross-subnet"]);
    wait_direct(&agents[0], &ends[1], true);
    wait_direct(&agents[1], &ends[0], true);
    carry(&lab, &ends[0], &ends[1], 200_000);
    // A container of something else, on the first host, that takes the other host's container's address.
    let stranger = lab.sandbox("stranger");
    let host = lab.host(1).netns();
    host.ip(&format!("link add v0 type veth peer name eth0 netns {}", stranger.name()));
    host.ip("addr add 203.0.113.1/30 dev v0");
    host.ip("link set v0 up");
    for name in ["all", "v0"] {
        host.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
    }
    stranger.ip("link set eth0 up");
    stranger.ip("addr add 203.0.113.2/30 dev eth0");
    stranger.ip(&format!("addr add {}/32 dev lo", ends[1].address(Family::V4)));
    stranger.ip("route add default via 203.0.113.1");
    let capture =
        testkit::Capture::start(ends[0].netns(), "eth0", "udp port 7777", &lab.logs(), "stranger");
    let to = std::net::SocketAddr::new(ends[0].address(Family::V4), 7777);
    let send = |from: &testkit::Netns, ip: IpAddr| {
        from.enter(|| {
            let socket = std::net::UdpSocket::bind((ip, 0)).expect("an address");
            for _ in 0..10 {
                socket.send_to(b"stranger", to).expect("a route");
            }
        });
    };
    send(&stranger, ends[1].address(Family::V4));
    // Those of the real one come after them.
    send(ends[1].netns(), ends[1].address(Family::V4));
    capture.wait(10, Duration::from_secs(30));
    assert_eq!(capture.stop().len(), 10);
}

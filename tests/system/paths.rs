//! Which way packets of routed networks take: what the hosts find out, what is on the wire, and how
//! soon they leave a way that is closed and take it again.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::traffic;
use testkit::{
    Agent, AgentSpec, Cap, Capture, Container, Family, Lab, Netns, Store, Suite, wait_until,
};

use crate::support::{carry, drops, measured};

const CAPS: &[Cap] = &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Tcpdump];
pub(crate) const RED: &str = "red";
/// How long a change of the way may take: ten times what is promised.
pub(crate) const ALLOWED: Duration = Duration::from_secs(30);
/// The table that only uplinks ask.
pub(crate) const TABLE: &str = "23387";
/// What a tunnel's packets are on the wire, but not the hosts' own hellos.
const ENCAPSULATED: &str = "(ip proto 4 or ip proto 41 or ip6 proto 4 or ip6 proto 41 \
                            or udp portrange 4760-4761) and greater 300";
/// Which packets are cut off that IP carries in IP, of whatever families.
pub(crate) const IN_IP: &str = "meta l4proto { 4, 41 }";

pub(crate) fn register(suite: &mut Suite) {
    for (family, over) in [(Family::V4, ""), (Family::V6, "_over_ipv6")] {
        suite.timed(format!("paths::protocol_4_is_dropped{over}"), CAPS, move || {
            protocol_4_is_dropped(family);
        });
        suite.timed(format!("paths::one_subnet{over}"), CAPS, move || one_subnet(family));
        suite.test(format!("paths::cross_subnet{over}"), CAPS, move || cross_subnet(family));
    }
    suite.test("paths::behind_nat", CAPS, behind_nat);
    suite.test("paths::a_strict_host", CAPS, a_strict_host);
    suite.test("paths::the_option_changes", CAPS, the_option_changes);
}

/// Takes host `index` to a subnet of its own, which the switch routes to; gives its new address.
pub(crate) fn apart(lab: &Lab, family: Family, index: usize) -> IpAddr {
    // The subnet of all, the other one, and the length of their prefixes.
    let (common, other, len) = match family {
        Family::V4 => ("192.0.2.", "203.0.113.", 24),
        Family::V6 => ("2001:db8::", "2001:db8:f::", 64),
    };
    let (net, router) = match family {
        Family::V4 => ("0", "254"),
        Family::V6 => ("", "fe"),
    };
    let switch = lab.switch();
    if !switch.ip("addr show dev br0").contains(&format!("{other}{router}/")) {
        switch.sysctl("net/ipv4/ip_forward", "1");
        switch.sysctl("net/ipv6/conf/all/forwarding", "1");
        switch.sysctl("net/ipv4/conf/all/send_redirects", "0");
        switch.sysctl("net/ipv4/conf/br0/send_redirects", "0");
        add_address(switch, &format!("{other}{router}/{len}"), "br0");
        for host in lab.hosts() {
            // IPv6 has no switch for sending them.
            host.netns().sysctl("net/ipv6/conf/eth0/accept_redirects", "0");
            host.netns().ip(&format!("route add {other}{net}/{len} via {common}{router}"));
        }
    }
    let host = lab.host(index).netns();
    let before = lab.host(index).address(family);
    let _ = host.try_exec("ip", &["addr", "del", &format!("{before}/{len}"), "dev", "eth0"]);
    add_address(host, &format!("{other}{index}/{len}"), "eth0");
    host.ip(&format!("route replace {common}{net}/{len} via {other}{router}"));
    let to_other = format!("{other}{net}/{len}");
    let _ = host.try_exec("ip", &["route", "del", &to_other, "via", &format!("{common}{router}")]);
    format!("{other}{index}").parse().unwrap()
}

fn add_address(netns: &Netns, address: &str, interface: &str) {
    let at_once = if address.contains(':') { " nodad" } else { "" };
    netns.ip(&format!("addr add {address} dev {interface}{at_once}"));
}

/// Agents on two or three hosts with an underlay of `family`, the last one in another subnet if
/// `distant`, and a container each.
pub(crate) fn red(
    family: Family,
    hosts: usize,
    distant: bool,
    options: &[&str],
) -> (Lab, Vec<Agent>, Vec<Container>) {
    let lab = Lab::with_hosts(hosts).build();
    let mut specs: Vec<AgentSpec> =
        (1..=hosts).map(|host| lab.spec(host, Store::Embedded, family)).collect();
    if distant {
        let store = SocketAddr::new(lab.host(1).address(family), 2379);
        specs[hosts - 1] = AgentSpec::new(apart(&lab, family, hosts)).store(store);
    }
    let agents: Vec<Agent> =
        (1..).zip(specs).map(|(host, spec)| lab.start_agent(host, spec)).collect();
    let containers = join(&lab, &agents, options);
    (lab, agents, containers)
}

/// Makes the network with an agent, and a container on each one's host.
fn join(lab: &Lab, agents: &[Agent], options: &[&str]) -> Vec<Container> {
    let subnets = [Family::V4, Family::V6].map(|family| ["--subnet", subnet(family)]).concat();
    agents[0].create_network(RED, &[&subnets[..], &["--mode", "ipip"], options].concat());
    (1..)
        .zip(agents)
        .map(|(index, agent)| agent.container(lab, RED, &format!("c{index}"), &[]))
        .collect()
}

/// The network's subnet of a family.
fn subnet(family: Family) -> &'static str {
    match family {
        Family::V4 => "198.51.100.0/24",
        Family::V6 => "2001:db8:1::/64",
    }
}

pub(crate) fn path_of(agent: &Agent, to: &Agent) -> Value {
    let hosts = agent.json(&["hosts"]);
    let mut hosts = hosts.as_array().into_iter().flatten();
    hosts.find(|host| host["name"] == to.name()).map_or(Value::Null, |host| host["path"].clone())
}

/// Waits until two agents use `way` to each other, and says how long that took.
#[track_caller]
pub(crate) fn wait_for(way: &str, [a, b]: [&Agent; 2]) -> Duration {
    let began = Instant::now();
    wait_until(&format!("both use {way}"), ALLOWED, || {
        let both = [path_of(a, b), path_of(b, a)];
        both.iter().all(|path| path["used"] == way).then_some(())
    });
    began.elapsed()
}

/// Drops packets in the underlay: `rule` says which.
pub(crate) fn cut(lab: &Lab, rule: &str) {
    let table = |family: &str| {
        format!(
            "table {family} lab_cut {{
                chain cut {{ type filter hook forward priority 0; {rule} drop; }}
            }}"
        )
    };
    for family in ["bridge", "inet"] {
        let _ = lab.switch().exec("nft", &[&table(family)]);
    }
}

pub(crate) fn mend(lab: &Lab) {
    for family in ["bridge", "inet"] {
        let _ = lab.switch().exec("nft", &["delete", "table", family, "lab_cut"]);
    }
}

/// Datagrams of both families that a container's kernel has given to its programs.
fn received(container: &Container) -> u64 {
    let text = container.netns().exec("cat", &["/proc/net/snmp", "/proc/net/snmp6"]);
    let line = |start: &str| text.lines().rfind(|line| line.starts_with(start));
    let of = |start: &str| line(start)?.split_whitespace().nth(1)?.parse::<u64>().ok();
    of("Udp: ").unwrap_or(0) + of("Udp6InDatagrams ").unwrap_or(0)
}

/// A stream of datagrams both ways while `work` goes on: the longest pause of each.
pub(crate) fn under_traffic(
    lab: &Lab,
    family: Family,
    a: &Container,
    b: &Container,
    work: impl FnOnce(),
) -> [f64; 2] {
    let flows = [(a, b, "there"), (b, a, "back")].map(|(from, to, name)| {
        let port = traffic::next_port();
        let at = SocketAddr::new(to.address(family), port).to_string();
        let receive =
            traffic::start(to.netns(), &lab.logs(), &format!("{name}-in"), &["udp-receive", &at]);
        let args = ["udp-send", &at, "--seconds", "300", "--rate", "500", "--verify"];
        (receive, traffic::start(from.netns(), &lab.logs(), &format!("{name}-out"), &args))
    });
    for end in [a, b] {
        let before = received(end);
        wait_until("datagrams arrive", ALLOWED, || (received(end) > before + 50).then_some(()));
    }
    work();
    for end in [a, b] {
        let before = received(end);
        wait_until("they go on", ALLOWED, || (received(end) > before + 500).then_some(()));
    }
    flows.map(|(receive, mut send)| {
        assert!(send.running(), "the traffic ended before");
        send.signal(Signal::SIGINT);
        let _ = send.finish(Duration::from_secs(90)).expect_success();
        let report = receive.finish(Duration::from_secs(90)).expect_success().json();
        assert!(report["corrupt"] == 0 && report["duplicates"] == 0, "{report}");
        report["longest_pause_ms"].as_f64().unwrap()
    })
}

/// Between two subnets: IP-in-IP while it works, UDP while it does not.
fn protocol_4_is_dropped(family: Family) {
    let (lab, agents, ends) = red(family, 2, true, &["-o", "encapsulate=auto"]);
    let both = [&agents[0], &agents[1]];
    measured("ipip at first", format_args!("after {:.1?}", wait_for("ipip", both)));
    let path = path_of(both[0], both[1]);
    assert_eq!(path["ways"].as_array().map(Vec::len), Some(2), "no direct way: {path}");
    carry(&lab, &ends[0], &ends[1], 2_000_000);
    let capture = Capture::start(lab.host(1).netns(), "eth0", ENCAPSULATED, &lab.logs(), "wire");
    let mut took = [Duration::ZERO; 2];
    let pauses = under_traffic(&lab, family, &ends[0], &ends[1], || {
        cut(&lab, IN_IP);
        took[0] = wait_for("ipudp", both);
        carry(&lab, &ends[0], &ends[1], 2_000_000);
        mend(&lab);
        took[1] = wait_for("ipip", both);
    });
    measured(
        "protocol 4 dropped",
        format_args!(
            "on UDP after {:.1?}, back after {:.1?}, silent for {pauses:.0?} ms",
            took[0], took[1]
        ),
    );
    assert!(pauses.iter().all(|pause| *pause < 30_000.0), "{pauses:?}");
    carry(&lab, &ends[1], &ends[0], 2_000_000);
    for protocol in ["(4)", "(41)", "(17)"] {
        capture.wait_for(&format!("{protocol} was on the wire"), ALLOWED, |seen| {
            seen.iter().any(|line| outer_protocol(line) == Some(protocol))
        });
    }
    let _ = capture.stop();
    let path = path_of(both[0], both[1]);
    assert_eq!(path["why"], "the cheapest that works");
    let shown = agents[0].cli(&["hosts"]).stdout;
    assert!(shown.contains("WHY") && shown.contains("works"), "{shown}");
    for agent in both {
        for text in ["from=\"ipip\" to=\"ipudp\"", "from=\"ipudp\" to=\"ipip\""] {
            assert!(agent.log().contains(text), "{} said nothing of {text}", agent.name());
        }
    }
}

/// The number of the outer packet's protocol in tcpdump's line, which also tells what is in it.
fn outer_protocol(line: &str) -> Option<&str> {
    let at = ["proto ", "next-header "].iter().filter_map(|word| line.find(word)).min()?;
    line.get(at..)?.split([' ', ',']).find(|word| word.starts_with('('))
}

/// Within one subnet: nothing of the underlay's family is encapsulated while that works.
fn one_subnet(family: Family) {
    let (lab, agents, ends) = red(family, 2, false, &["-o", "encapsulate=auto"]);
    let both = [&agents[0], &agents[1]];
    measured("direct at first", format_args!("after {:.1?}", wait_for("direct", both)));
    for (agent, end) in [(0, 1), (1, 0)] {
        wait_direct_in(&agents[agent], RED, ends[end].address(family), true);
    }
    let wire = |name: &str, filter: &str| {
        Capture::start(lab.host(1).netns(), "eth0", filter, &lab.logs(), name)
    };
    // Of the underlay's family inside.
    let encapsulated = match family {
        Family::V4 => "ip proto 4 or udp port 4760",
        Family::V6 => "ip6 proto 41 or udp port 4761",
    };
    let none = wire("none", &format!("({encapsulated}) and greater 300"));
    let all = wire("plain", &format!("net {} and greater 300", subnet(family)));
    for (from, to) in [(0, 1), (1, 0)] {
        let how = traffic::Tcp { bytes: 4_000_000, streams: 2, odd_sizes: true };
        traffic::tcp(&lab, &ends[from], &ends[to], family, how);
    }
    all.wait(20, ALLOWED);
    let (seen, encapsulated) = (all.stop(), none.stop());
    assert!(seen.len() >= 20, "packets as they are");
    assert!(encapsulated.is_empty(), "and no others: {encapsulated:#?}");
    // The other family inside cannot go as it is, and goes all the same.
    carry(&lab, &ends[0], &ends[1], 2_000_000);
    let mut took = [Duration::ZERO; 2];
    let pauses = under_traffic(&lab, family, &ends[0], &ends[1], || {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        cut(&lab, &format!("{ip} saddr {}", subnet(family)));
        took[0] = wait_for("ipip", both);
        carry(&lab, &ends[0], &ends[1], 2_000_000);
        mend(&lab);
        took[1] = wait_for("direct", both);
    });
    measured(
        "plain packets dropped",
        format_args!(
            "in IP after {:.1?}, back after {:.1?}, silent for {pauses:.0?} ms",
            took[0], took[1]
        ),
    );
    // The kernel carries without the agent.
    agents[1].kill9();
    let how = traffic::Tcp { bytes: 4_000_000, streams: 2, odd_sizes: true };
    traffic::tcp(&lab, &ends[0], &ends[1], family, how);
    agents[1].start();
    wait_for("direct", both);
    carry(&lab, &ends[1], &ends[0], 2_000_000);
    // What was made in the host's namespace goes with the agent, and with this one the store.
    agents[1].allow_log("store");
    let via = format!("via {}", lab.host(2).address(family));
    assert!(host_half(&lab, 1).contains(&via), "{}", host_half(&lab, 1));
    agents[0].stop();
    let report = agents[0].clean_up();
    assert!(report.stdout.contains("direct routes"), "{report:?}");
    assert_eq!(host_half(&lab, 1), "");
}

/// Our routes and rules in a host's namespace for packets that go as they are.
pub(crate) fn host_half(lab: &Lab, host: usize) -> String {
    let netns = lab.host(host).netns();
    let mut half = String::new();
    for family in ["-4", "-6"] {
        let rules = netns.ip(&format!("{family} rule show"));
        half.extend(rules.lines().filter(|line| line.contains("iif sky")));
        half += &netns.try_exec("ip", &[family, "route", "show", "table", TABLE]).stdout;
    }
    half
}

/// Waits until a host sends what is for a container of `RED` as it is, or in a tunnel.
#[track_caller]
pub(crate) fn wait_direct(agent: &Agent, to: &Container, direct: bool) {
    wait_direct_in(agent, RED, to.address(Family::V4), direct);
}

/// The same of any address and network.
#[track_caller]
pub(crate) fn wait_direct_in(agent: &Agent, network: &str, to: IpAddr, direct: bool) {
    let to = to.to_string();
    let by = if direct { "dev up0" } else { "dev tun0" };
    let inspected = agent.json(&["network", "inspect", network]);
    let inside = inspected["local"]["namespace"].as_str().unwrap_or_default().to_owned();
    let inside = format!("--net={inside}");
    wait_until(&format!("{} sends to {to} by {by}", agent.name()), ALLOWED, || {
        let route = agent.netns().exec("nsenter", &[&inside, "ip", "route", "get", &to]);
        route.contains(by).then_some(())
    });
}

/// Hosts of one subnet reach each other directly and nobody is asked; another one by the tunnel.
fn cross_subnet(family: Family) {
    let (lab, agents, ends) = red(family, 3, true, &["-o", "encapsulate=cross-subnet"]);
    wait_for("direct", [&agents[0], &agents[1]]);
    wait_until("the far one is known", ALLOWED, || {
        (path_of(&agents[0], &agents[2])["why"] == "another underlay subnet").then_some(())
    });
    assert_eq!(path_of(&agents[0], &agents[2])["used"], "ipip");
    let reached = |from: &Container, to: &Container| {
        traffic::reaches(from.netns(), to.address(family)).then_some(())
    };
    wait_until("the near one is reached", ALLOWED, || reached(&ends[0], &ends[1]));
    wait_direct_in(&agents[0], RED, ends[1].address(family), true);
    wait_direct_in(&agents[1], RED, ends[0].address(family), true);
    let hellos = "udp port 4759 or udp portrange 4760-4761 and less 200";
    // The other family inside is not captured here: it always is in the tunnel.
    let in_ip = if family == Family::V4 { "ip proto 4" } else { "ip6 proto 41" };
    for (agent, end) in [(0, 1), (1, 0)] {
        wait_direct_in(&agents[agent], RED, ends[end].address(family), true);
    }
    let wire = |name: &str, filter: &str| {
        Capture::start(lab.host(1).netns(), "eth0", filter, &lab.logs(), name)
    };
    let (asked, tunnel) =
        (wire("hellos", hellos), wire("tunnel", &format!("{in_ip} and greater 300")));
    let near = wire("near", &format!("net {} and greater 300", subnet(family)));
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2)] {
        carry(&lab, &ends[from], &ends[to], 1_000_000);
    }
    tunnel.wait(20, ALLOWED);
    near.wait(20, ALLOWED);
    let to = |agent: &Agent| format!("{} > {}:", agents[0].vtep(), agent.vtep());
    let (to_near, to_far) = (to(&agents[1]), to(&agents[2]));
    let encapsulated = tunnel.stop();
    assert!(encapsulated.iter().any(|line| line.contains(&to_far)), "{encapsulated:#?}");
    let wrong: Vec<_> = encapsulated.iter().filter(|line| line.contains(&to_near)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(near.stop().len() >= 20);
    assert_eq!(asked.stop(), Vec::<String>::new(), "nobody asks");
}

/// Hosts that know each other by addresses that are translated on the way hear each other by every way.
fn behind_nat() {
    let lab = Lab::with_hosts(2).build();
    let inside = apart(&lab, Family::V4, 2);
    let known = IpAddr::from([198, 18, 0, 2]);
    lab.host(1).netns().ip("route add 198.18.0.0/24 via 192.0.2.254");
    let table = format!(
        "table ip lab_nat {{
            chain in {{ type nat hook prerouting priority -100; ip daddr {known} dnat to {inside}; }}
            chain out {{ type nat hook postrouting priority 100; ip saddr {inside} snat to {known}; }}
        }}"
    );
    let _ = lab.switch().exec("nft", &[&table]);
    let store = SocketAddr::new(lab.host(1).address(Family::V4), 2379);
    let agents = [
        lab.start_agent(1, lab.spec(1, Store::Embedded, Family::V4)),
        lab.start_agent(2, AgentSpec::new(known).bind(inside).store(store)),
    ];
    let ends = join(&lab, &agents, &["-o", "encapsulate=auto"]);
    let both = [&agents[0], &agents[1]];
    wait_for("ipip", both);
    for (from, to) in [(0, 1), (1, 0)] {
        wait_until("hellos arrive by every way", ALLOWED, || {
            let path = path_of(both[from], both[to]);
            let arrive = path["ways"].as_array()?.iter().filter(|way| way["arrives"] == true);
            (arrive.count() == 2).then_some(())
        });
        carry(&lab, &ends[from], &ends[to], 1_000_000);
        assert_eq!(drops(both[from], "in_network_unknown"), 0);
    }
}

/// A host that only takes what it would answer by the same interface finds the direct way too.
fn a_strict_host() {
    let (lab, agents, ends) = {
        let lab = Lab::with_hosts(2).build();
        for host in lab.hosts() {
            host.netns().sysctl("net/ipv4/conf/all/rp_filter", "1");
            host.netns().sysctl("net/ipv4/conf/eth0/rp_filter", "1");
        }
        let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
        let more = ["--subnet", "198.51.100.0/24", "--mode", "ipudp", "-o", "encapsulate=auto"];
        agents[0].create_network(RED, &more);
        let ends: Vec<Container> = (1..)
            .zip(&agents)
            .map(|(index, agent)| agent.container(&lab, RED, &format!("c{index}"), &[]))
            .collect();
        (lab, agents, ends)
    };
    wait_for("direct", [&agents[0], &agents[1]]);
    carry(&lab, &ends[0], &ends[1], 2_000_000);
    let path = path_of(&agents[0], &agents[1]);
    let ways: Vec<_> = path["ways"].as_array().unwrap().iter().map(|way| &way["way"]).collect();
    assert_eq!(ways, ["direct", "ipudp"], "protocol 4 is of no use to this network");
}

/// Under traffic a network is told to look for the best way, and not to any more.
fn the_option_changes() {
    let (lab, agents, ends) = red(Family::V4, 2, false, &[]);
    let both = [&agents[0], &agents[1]];
    assert_eq!(path_of(both[0], both[1]), Value::Null);
    carry(&lab, &ends[0], &ends[1], 1_000_000);
    let set = |value: &str| {
        let option = format!("encapsulate={value}");
        let _ = agents[0].cli(&["network", "update", RED, "-o", &option]);
    };
    set("auto");
    wait_for("direct", both);
    carry(&lab, &ends[0], &ends[1], 1_000_000);
    set("always");
    wait_until("there is one way again", ALLOWED, || {
        let gone = [path_of(both[0], both[1]), path_of(both[1], both[0])];
        let none = gone.iter().all(Value::is_null)
            && [1, 2].iter().all(|it| host_half(&lab, *it).is_empty());
        none.then_some(())
    });
    carry(&lab, &ends[0], &ends[1], 1_000_000);
}

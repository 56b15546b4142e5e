//! What containers of one host say to each other, and what they must not: source checks at their
//! veths, and the option `local`.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use encap::MacAddr;
use serde_json::Value;
use testkit::traffic::{self, Tcp};
use testkit::{
    Agent, Cap, Capture, Container, Family, Lab, Store, Suite, Underlay, send_frames, udp_frame,
    wait_until,
};

use crate::scene::Mesh;
use crate::support::{
    AGENTS, DUAL, NETWORK, assert_no_checksum_errors, cluster, drops, exchange, measured,
};

const WITH_TCPDUMP: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Tcpdump];
const SWITCH: &[&str] = &["network", "update", NETWORK, "--option", "local=switch"];
const KERNEL: &[&str] = &["network", "update", NETWORK, "--option", "local=kernel"];

pub(crate) fn register(suite: &mut Suite) {
    for switched in [false, true] {
        let name = if switched { "switch" } else { "kernel" };
        suite.test(format!("local::forged_frames_reach_nobody_{name}"), WITH_TCPDUMP, move || {
            forged_frames_reach_nobody(switched);
        });
    }
    suite.test("local::switch_carries_everything", WITH_TCPDUMP, switch_carries_everything);
    suite.test("local::a_sender_hears_no_echo", WITH_TCPDUMP, a_sender_hears_no_echo);
    suite.test("local::switch_answers_for_neighbors", AGENTS, switch_answers_for_neighbors);
    suite.timed("local::turned_under_traffic", AGENTS, turned_under_traffic);
    suite.test("local::switch_is_taken_over", AGENTS, switch_is_taken_over);
}

/// Two hosts, two containers on the first one and one on the other.
fn three(switched: bool) -> (Lab, Vec<Agent>, [Container; 3]) {
    let (lab, agents, mut containers) =
        cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    if switched {
        turn(&agents[0], true);
    }
    let beside = agents[0].container(&lab, NETWORK, "c3", &[]);
    let far = containers.remove(1);
    (lab, agents, [containers.remove(0), beside, far])
}

/// Sets the option and waits until the agent has turned its ports.
fn turn(agent: &Agent, switched: bool) {
    let before = agent.log().matches("local frames are turned").count();
    let _ = agent.cli(if switched { SWITCH } else { KERNEL });
    wait_until("the local frames are turned", Duration::from_secs(10), || {
        (agent.log().matches("local frames are turned").count() > before).then_some(())
    });
}

/// A counter of the network.
fn of_network(agent: &Agent, name: &str) -> u64 {
    let stats = agent.json(&["stats"]);
    let networks = stats["networks"].as_array().cloned().unwrap_or_default();
    let blue = networks.into_iter().find(|item| item["network"] == NETWORK).unwrap_or_default();
    value(&blue["counters"], name)
}

/// A counter of the worker threads.
fn of_workers(agent: &Agent, name: &str) -> u64 {
    value(&agent.json(&["stats"])["counters"], name)
}

fn value(counters: &Value, name: &str) -> u64 {
    let found = counters.as_array().into_iter().flatten().find(|item| item["name"] == name);
    found.and_then(|item| item["value"].as_u64()).unwrap_or_else(|| panic!("no counter {name}"))
}

fn v4(container: &Container) -> Ipv4Addr {
    match container.address(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    }
}

fn endpoint_of(agent: &Agent, container: &Container) -> String {
    let ip = container.address(Family::V4).to_string();
    let listed = agent.json(&["endpoints"]);
    let found =
        listed.as_array().into_iter().flatten().find(|item| {
            item["ips"].as_array().into_iter().flatten().any(|address| *address == *ip)
        });
    found.and_then(|item| item["id"].as_str()).map(str::to_owned).unwrap_or_else(|| {
        panic!("no endpoint has {ip}: {listed}");
    })
}

/// The count of a reason at one endpoint's port.
fn drops_of(agent: &Agent, reason: &str, endpoint: &str) -> u64 {
    let listed = agent.json(&["drops"]);
    let rows = listed.as_array().into_iter().flatten();
    rows.filter(|row| row["reason"] == reason && row["endpoint"] == endpoint)
        .filter_map(|row| row["count"].as_u64())
        .sum()
}

/// An announcement, of ARP or of neighbor discovery, as whoever stole the address would send it.
fn announcement(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 128];
    let mac = MacAddr(mac);
    let len = match address {
        IpAddr::V4(address) => encap::arp::announcement(address, mac, &mut frame),
        IpAddr::V6(address) => encap::ndp::announcement(address, mac, &mut frame),
    };
    frame.truncate(len.unwrap());
    frame
}

/// Each kind of forgery reaches neither the container beside nor the one on another host, is
/// counted under its name at the forger's endpoint, and changes nobody's mind.
fn forged_frames_reach_nobody(switched: bool) {
    let (lab, agents, [forger, beside, far]) = three(switched);
    let nobody = [0x02, 0, 0x5e, 0, 0x53, 0xee];
    for (from, to) in [(&beside, &far), (&far, &beside)] {
        for family in [Family::V4, Family::V6] {
            traffic::ping(from.netns(), to.address(family), 56);
        }
    }
    let mut forged: Vec<(&str, Vec<u8>)> = Vec::new();
    for victim in [&beside, &far] {
        for other in [&beside, &far] {
            // Another's MAC and address, its own MAC and another's address.
            let addresses = (v4(other), v4(victim));
            let with = |mac| udp_frame((victim.mac(), mac), addresses, (1, 5306), b"forged");
            forged.push(("veth_source_mac", with(other.mac())));
            forged.push(("veth_source_mac", with(nobody)));
            forged.push(("veth_source_ip", with(forger.mac())));
        }
        // Its own MAC for another's address: by a gratuitous ARP, in ARP of another's MAC, in ND.
        forged.push(("veth_source_arp", announcement(victim.address(Family::V4), forger.mac())));
        let mut wrong = announcement(victim.address(Family::V4), victim.mac());
        wrong[6..12].copy_from_slice(&forger.mac());
        forged.push(("veth_source_arp", wrong));
        let v6 = announcement(victim.address(Family::V6), forger.mac());
        // The packet's source is the address: that alone is stopped. From the link-local address
        // of the forger it is the target that is wrong.
        let mut nd = v6.clone();
        let own = MacAddr(forger.mac()).0;
        let [a, b, c, d, e, f] = own;
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        nd[22..38].copy_from_slice(&link_local);
        forged.push(("veth_source_ip", v6));
        forged.push(("veth_source_nd", nd));
    }
    let wanted = "udp port 5306 or (ether src FORGER and (arp or icmp6)) or ether src NOBODY"
        .replace("FORGER", &mac_text(forger.mac()))
        .replace("NOBODY", &mac_text(nobody));
    let capture = |container: &Container, name: &str| {
        Capture::start(container.netns(), container.ifname(), &wanted, &lab.logs(), name)
    };
    let captures = [capture(&beside, "beside"), capture(&far, "far")];
    let underlay = Capture::start(lab.switch(), "p1", "udp port 4789", &lab.logs(), "underlay");
    let frames: Vec<Vec<u8>> = forged.iter().map(|(_, frame)| frame.clone()).collect();
    let rounds = 5;
    for _ in 0..rounds {
        send_frames(forger.netns(), forger.ifname(), &frames);
    }
    let endpoint = endpoint_of(&agents[0], &forger);
    for reason in ["veth_source_mac", "veth_source_ip", "veth_source_arp", "veth_source_nd"] {
        let of_reason = forged.iter().filter(|(of, _)| *of == reason).count() as u64;
        wait_until(reason, Duration::from_secs(5), || {
            (drops_of(&agents[0], reason, &endpoint) >= of_reason * rounds).then_some(())
        });
    }
    // What is honest arrives, after all that is forged.
    let honest =
        udp_frame((beside.mac(), forger.mac()), (v4(&forger), v4(&beside)), (1, 5307), b"honest");
    let listening = listen(&beside, 5307);
    send_frames(forger.netns(), forger.ifname(), &[honest]);
    let mut buffer = [0; 64];
    assert_eq!(listening.recv(&mut buffer).unwrap(), b"honest".len());
    for capture in captures {
        assert_eq!(capture.stop(), Vec::<String>::new(), "forged frames arrived");
    }
    let crossed = underlay.stop();
    let words = ["5306", "who-has", "neighbor advertisement"];
    let forgery = |packet: &&String| words.iter().any(|word| packet.contains(word));
    assert_eq!(crossed.iter().find(forgery), None, "forged frames crossed the underlay");
    for (from, to) in [(&beside, &far), (&far, &beside)] {
        for family in [Family::V4, Family::V6] {
            let known = from.netns().ip(&format!("neigh show {}", to.address(family)));
            assert!(known.contains(&mac_text(to.mac())), "{known}");
            traffic::ping(from.netns(), to.address(family), 56);
        }
    }
    let told = agents[0].cli(&["drops"]).stdout;
    assert!(told.contains("veth_source_arp") && told.contains(&endpoint), "{told}");
}

fn listen(container: &Container, port: u16) -> UdpSocket {
    let address = container.address(Family::V4);
    let socket = container.netns().enter(|| UdpSocket::bind((address, port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// All that two containers of one host say to each other passes the switch, which counts it;
/// super-frames pass whole.
fn switch_carries_everything() {
    let (lab, agents, [a, b, far]) = three(true);
    exchange(&lab, &a, &b, 10_000_001);
    exchange(&lab, &b, &a, 10_000_001);
    exchange(&lab, &a, &far, 5_000_001);
    let counters = ["frames_local", "bytes_local"];
    let before = counters.map(|name| of_network(&agents[0], name));
    let segments = of_workers(&agents[0], "segments_out");
    let completed = of_workers(&agents[0], "checksums_completed");
    let bytes = 50_000_000;
    let how = Tcp { bytes, streams: 1, odd_sizes: false };
    traffic::tcp(&lab, &a, &b, Family::V4, how);
    let after = counters.map(|name| of_network(&agents[0], name));
    let (frames, carried) = (after[0] - before[0], after[1] - before[1]);
    assert!(carried > bytes, "{carried} bytes passed the switch, of {bytes}");
    // Acknowledgements are frames too.
    let mean = carried / frames;
    measured("mean local frame of a TCP stream", format_args!("{mean} bytes"));
    assert!(mean > 4 * 1450, "super-frames were cut: {mean} bytes a frame");
    assert_eq!(of_workers(&agents[0], "segments_out"), segments, "segmented for the same host");
    assert_eq!(of_workers(&agents[0], "checksums_completed"), completed, "summed for nobody");
    // A tagged frame passes as it is.
    let filter = "vlan 5 and udp port 5309";
    let capture = Capture::start(b.netns(), b.ifname(), filter, &lab.logs(), "tagged");
    let mut tagged = udp_frame((b.mac(), a.mac()), (v4(&a), v4(&b)), (1, 5309), b"tagged");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    send_frames(a.netns(), a.ifname(), &[tagged]);
    capture.wait(1, Duration::from_secs(10));
    assert_eq!(capture.stop().len(), 1);
    assert_no_checksum_errors(&[&a, &b, &far]);
    let options = agents[0].json(&["network", "inspect", NETWORK])["options"].clone();
    assert_eq!(options["local"], "switch", "{options}");
    // Back with the bridge: it carries, and the switch sees none of it.
    turn(&agents[0], false);
    let before = of_network(&agents[0], "frames_local");
    exchange(&lab, &a, &b, 1_000_001);
    assert_eq!(of_network(&agents[0], "frames_local"), before);
    assert_no_checksum_errors(&[&a, &b, &far]);
}

/// A group frame reaches each other container once, on this host and on others, and not its sender.
fn a_sender_hears_no_echo() {
    let (lab, agents, [a, b, far]) = three(true);
    let filter = format!("udp port 5308 and ether src {}", mac_text(a.mac()));
    let capture = |container: &Container, name: &str| {
        Capture::start(container.netns(), container.ifname(), &filter, &lab.logs(), name)
    };
    let captures = [capture(&a, "sender"), capture(&b, "beside"), capture(&far, "far")];
    let count = 20;
    let group = [0x01, 0, 0x5e, 0x01, 0x02, 0x03];
    let mut frames = Vec::new();
    for (mac, ip) in [([0xff; 6], [198, 51, 100, 255]), (group, [239, 1, 2, 3])] {
        let frame = udp_frame((mac, a.mac()), (v4(&a), ip.into()), (1, 5308), b"to all");
        frames.extend(std::iter::repeat_n(frame, count));
    }
    let before = of_network(&agents[0], "frames_local");
    send_frames(a.netns(), a.ifname(), &frames);
    wait_until("the switch has carried them", Duration::from_secs(5), || {
        (of_network(&agents[0], "frames_local") >= before + 2 * count as u64).then_some(())
    });
    traffic::ping(a.netns(), b.address(Family::V4), 56);
    traffic::ping(a.netns(), far.address(Family::V4), 56);
    // At its own interface a sender's capture has what it sent itself, once.
    for (who, capture) in ["the sender", "beside", "far"].iter().zip(captures) {
        capture.wait(2 * count, Duration::from_secs(10));
        let seen = capture.stop();
        assert_eq!(seen.len(), 2 * count, "{who}: {seen:#?}");
    }
}

/// Questions for a neighbor on the same host are answered by the switch: also a probe, whose
/// sender must learn that the address is taken; and nobody is told that its own address is.
fn switch_answers_for_neighbors() {
    let (_lab, agents, [a, b, _far]) = three(true);
    let before = of_workers(&agents[0], "suppressed");
    for family in [Family::V4, Family::V6] {
        traffic::ping(a.netns(), b.address(family), 56);
    }
    // The address that its kernel has made of the MAC, as routers and routing daemons use it.
    let beside = b.netns().ip("-6 -o addr show dev eth0 scope link");
    let beside = beside.split_whitespace().nth(3).and_then(|net| net.split('/').next()).unwrap();
    let _ = a.netns().exec("ping", &["-6", "-c", "1", "-W", "5", &format!("{beside}%eth0")]);
    let answered = of_workers(&agents[0], "suppressed") - before;
    assert!(answered >= 3, "{answered} questions were answered");
    // Duplicate address detection, by the kernel itself.
    a.netns().sysctl("net/ipv6/conf/all/accept_dad", "1");
    a.netns().sysctl("net/ipv6/conf/eth0/accept_dad", "1");
    let taken = b.address(Family::V6);
    a.netns().ip(&format!("addr add {taken}/64 dev eth0"));
    wait_until("the kernel sees that the address is taken", Duration::from_secs(10), || {
        a.netns().ip("-6 addr show dev eth0").contains("dadfailed").then_some(())
    });
    a.netns().ip(&format!("addr del {taken}/64 dev eth0"));
    let own = a.address(Family::V6);
    let probes = of_workers(&agents[0], "probes_ignored");
    a.netns().ip(&format!("addr del {own}/64 dev eth0"));
    a.netns().ip(&format!("addr add {own}/64 dev eth0"));
    wait_until("the probe for its own address is over", Duration::from_secs(10), || {
        let listed = a.netns().ip("-6 addr show dev eth0");
        (listed.contains(&own.to_string()) && !listed.contains("tentative")).then_some(())
    });
    assert!(!a.netns().ip("-6 addr show dev eth0").contains("dadfailed"));
    assert!(of_workers(&agents[0], "probes_ignored") > probes, "no probe was seen");
    traffic::ping(a.netns(), b.address(Family::V6), 56);
}

/// The option changes while containers talk, to the switch and back, and nothing is lost.
fn turned_under_traffic() {
    let (lab, agents, containers) = three(false);
    let mesh = Mesh::start(&lab, &containers);
    let before = of_network(&agents[0], "frames_local");
    for _ in 0..2 {
        turn(&agents[0], true);
        wait_until("the switch carries", Duration::from_secs(5), || {
            (of_network(&agents[0], "frames_local") > before).then_some(())
        });
        turn(&agents[0], false);
    }
    mesh.lost_nothing("the option `local` changed four times");
}

/// Killed and started again, with another number of workers too, the agent finds who carries what;
/// and what changed meanwhile.
fn switch_is_taken_over() {
    let lab = Lab::with_hosts(1).build();
    let spec =
        |workers: &str| lab.spec(1, Store::Embedded, Family::V4).args(&["--workers", workers]);
    let agent = lab.start_agent(1, spec("2"));
    agent.create_network(NETWORK, &[DUAL, &["--option", "local=switch"]].concat());
    let a = agent.container(&lab, NETWORK, "c1", &[]);
    let b = agent.container(&lab, NETWORK, "c2", &[]);
    let carries = |agent: &Agent| {
        traffic::ping(a.netns(), b.address(Family::V4), 56);
        let before = of_network(agent, "frames_local");
        let how = Tcp { bytes: 1_000_000, streams: 1, odd_sizes: true };
        traffic::tcp(&lab, &a, &b, Family::V4, how);
        of_network(agent, "frames_local") > before
    };
    assert!(carries(&agent));
    agent.kill9();
    agent.start();
    assert!(carries(&agent));
    agent.kill9();
    let again = lab.agent(1, spec("1"));
    again.start();
    assert!(carries(&again));
    turn(&again, false);
    assert!(!carries(&again));
    turn(&again, true);
    // Nothing is left of a port that goes, and what comes works.
    again.detach(NETWORK, &b);
    let b = again.attach(b.netns(), NETWORK, &[]);
    traffic::ping(a.netns(), b.address(Family::V4), 56);
    let socket = again.socket().display().to_string();
    let enter = ["enter", "--socket", &socket, NETWORK, "nft", "list", "ruleset"];
    let rules = again.netns().exec(env!("CARGO_BIN_EXE_skybridge"), &enter);
    assert_eq!(rules.matches("type filter hook ingress").count(), 2, "{rules}");
    assert_eq!(drops(&again, "in_port_error"), 0);
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

//! What is and what is not on the wire: floods, suppression, headers, hostile frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use testkit::traffic::{self, Tcp};
use testkit::{Cap, Capture, Container, Family, Store, Suite, Underlay, send_frames, udp_frame};

use crate::support::{AGENTS, VNI, cluster, drops};

const WITH_TCPDUMP: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Tcpdump];

pub(crate) fn register(suite: &mut Suite) {
    suite.test("wire::broadcast_reaches_all_others", AGENTS, broadcast);
    suite.test("wire::multicast_reaches_all_others", AGENTS, multicast);
    suite.test("wire::neighbor_questions_stay_home", WITH_TCPDUMP, suppression);
    suite.test("wire::outer_headers", WITH_TCPDUMP, outer_headers);
    suite.test("wire::drops_are_named", AGENTS, drops_are_named);
    suite.test("wire::a_container_cannot_forge", AGENTS, a_container_cannot_forge);
}

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x5b, 0x1234);

/// A socket inside a container; it stays there after the thread that made it.
fn socket(container: &Container, bind: (IpAddr, u16)) -> UdpSocket {
    let socket = container.netns().enter(|| UdpSocket::bind(bind)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// How many datagrams with this text arrive within half a second after the first.
fn copies(socket: &UdpSocket, text: &[u8]) -> usize {
    let mut buffer = [0; 2048];
    let mut count = 0;
    let mut until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let wait = until.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
        if let Ok(len) = socket.recv(&mut buffer)
            && &buffer[..len] == text
        {
            count += 1;
            until = Instant::now() + Duration::from_millis(500);
        }
    }
    count
}

fn broadcast() {
    let (_lab, _agents, containers) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    let any = Ipv4Addr::UNSPECIFIED.into();
    let listening: Vec<_> = containers.iter().skip(1).map(|c| socket(c, (any, 5300))).collect();
    let sender = socket(&containers[0], (containers[0].address(Family::V4), 5301));
    sender.set_broadcast(true).unwrap();
    sender.send_to(b"to all", "198.51.100.255:5300").unwrap();
    for socket in &listening {
        assert_eq!(copies(socket, b"to all"), 1);
    }
}

fn multicast() {
    let (_lab, _agents, containers) = cluster(3, Underlay::Offloading, Store::Embedded, Family::V4);
    // The sender listens too, on another socket: its own frame must not come back.
    let join = |container: &Container| {
        container.netns().enter(|| {
            let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5300)).unwrap();
            let IpAddr::V4(own) = container.address(Family::V4) else { unreachable!() };
            v4.join_multicast_v4(&GROUP_V4, &own).unwrap();
            let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 5302)).unwrap();
            v6.join_multicast_v6(&GROUP_V6, index(container)).unwrap();
            (v4, v6)
        })
    };
    let listening: Vec<_> = containers.iter().map(join).collect();
    let v4 = socket(&containers[0], (containers[0].address(Family::V4), 0));
    v4.set_multicast_loop_v4(false).unwrap();
    // Through the interface of the address: a multicast route by the subnet's device.
    containers[0].netns().ip("route add 239.0.0.0/8 dev eth0");
    v4.send_to(b"group", (GROUP_V4, 5300)).unwrap();
    let v6 = socket(&containers[0], (containers[0].address(Family::V6), 0));
    v6.set_multicast_loop_v6(false).unwrap();
    let scope = index(&containers[0]);
    v6.send_to(b"group", std::net::SocketAddrV6::new(GROUP_V6, 5302, 0, scope)).unwrap();
    for (index, (v4, v6)) in listening.iter().enumerate() {
        let wanted = usize::from(index > 0);
        assert_eq!(copies(v4, b"group"), wanted, "IPv4 at container {}", index + 1);
        assert_eq!(copies(v6, b"group"), wanted, "IPv6 at container {}", index + 1);
    }
}

/// The interface index of the container's interface.
fn index(container: &Container) -> u32 {
    let listing = container.netns().ip_json("link show dev eth0");
    listing[0]["ifindex"].as_u64().and_then(|index| u32::try_from(index).ok()).unwrap()
}

/// ARP and neighbor solicitations are answered from the tables: none crosses the underlay.
fn suppression() {
    let (lab, _agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let capture = Capture::start(lab.switch(), "p1", "udp port 4789", &lab.logs(), "underlay");
    for family in [Family::V4, Family::V6] {
        traffic::ping(containers[0].netns(), containers[1].address(family), 56);
    }
    // An address that nobody has is not asked for on the underlay either.
    assert!(!traffic::reaches(containers[0].netns(), "198.51.100.250".parse().unwrap()));
    let packets = capture.stop();
    assert!(packets.iter().any(|packet| packet.contains("echo request")), "{packets:#?}");
    for packet in &packets {
        let question = packet.contains("who-has") && !packet.contains("Announcement")
            || packet.contains("neighbor solicitation");
        assert!(!question, "crossed the underlay: {packet}");
    }
}

/// What RFC 7348 and the kernel's device put there.
fn outer_headers() {
    let (lab, agents, containers) = cluster(2, Underlay::Plain, Store::Embedded, Family::V4);
    let capture = Capture::start(lab.switch(), "p1", "udp port 4789", &lab.logs(), "underlay");
    let how = Tcp { bytes: 2_000_000, streams: 8, odd_sizes: false };
    traffic::tcp(&lab, &containers[0], &containers[1], Family::V4, how);
    let packets = capture.stop();
    let from = agents[0].vtep().to_string();
    let sent: Vec<_> = packets.iter().filter(|p| p.contains(&format!("{from}."))).collect();
    assert!(sent.len() > 100, "{} packets", sent.len());
    let mut ports = std::collections::BTreeSet::new();
    for packet in &sent {
        assert!(packet.contains(&format!("vni {VNI}")), "{packet}");
        assert!(packet.contains("flags [I]"), "{packet}");
        assert!(packet.contains("ttl 64"), "{packet}");
        assert!(!packet.contains("bad udp cksum"), "{packet}");
        let source = packet
            .split(&format!("{from}."))
            .nth(1)
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        ports.extend(source.and_then(|port| port.parse::<u16>().ok()));
    }
    assert!(ports.len() > 1, "the flows of eight streams use one source port: {ports:?}");
}

/// A datagram of host 2's underlay towards the VTEP of host 1.
fn vxlan(flags: u8, vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    let mut datagram = vec![flags, 0, 0, 0, high, middle, low, 0];
    datagram.extend(frame);
    datagram
}

fn drops_are_named() {
    // Host 3 has no agent: it is a stranger.
    let lab = testkit::Lab::with_hosts(3).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    agents[0].create_network(crate::support::NETWORK, crate::support::DUAL);
    let containers = crate::support::containers(&lab, &agents);
    let [a, b] = &containers[..] else { unreachable!("two containers") };
    traffic::ping(a.netns(), b.address(Family::V4), 56);

    let (IpAddr::V4(to), IpAddr::V4(from)) = (a.address(Family::V4), b.address(Family::V4)) else {
        unreachable!("IPv4 addresses")
    };
    let frame = |source: [u8; 6]| udp_frame((a.mac(), source), (from, to), (1, 5305), b"crafted");
    let nobody = [0x02, 0, 0x5e, 0, 0x53, 0xee];
    let group = [0x01, 0, 0x5e, 0, 0x53, 0x01];
    let elsewhere = udp_frame((nobody, b.mac()), (from, to), (1, 5305), b"crafted");
    // The source address of an agent's own traffic: the socket is bound to its VTEP's address.
    let cases: [(&str, usize, Vec<u8>); 8] = [
        ("in_truncated", 2, vec![8, 0, 0]),
        ("in_vni_flag_clear", 2, vxlan(0, VNI, &frame(b.mac()))),
        ("in_vtep_unknown", 3, vxlan(8, VNI, &frame(b.mac()))),
        ("in_vni_unknown", 2, vxlan(8, VNI + 1, &frame(b.mac()))),
        ("in_source_invalid", 2, vxlan(8, VNI, &frame(group))),
        ("in_source_own", 2, vxlan(8, VNI, &frame(a.mac()))),
        ("in_destination_not_here", 2, vxlan(8, VNI, &elsewhere)),
        ("in_truncated", 2, vxlan(8, VNI, &[0; 9])),
    ];
    let listening = socket(a, (to.into(), 5305));
    for (reason, host, datagram) in cases {
        let before = drops(&agents[0], reason);
        let host = lab.host(host);
        host.netns().enter(|| {
            let socket = UdpSocket::bind((host.address(Family::V4), 0)).unwrap();
            socket.send_to(&datagram, (agents[0].vtep(), 4789)).unwrap();
        });
        testkit::wait_until(reason, Duration::from_secs(5), || {
            (drops(&agents[0], reason) > before).then_some(())
        });
    }
    // None of them arrived, and an honest one does.
    let honest = vxlan(8, VNI, &frame(b.mac()));
    lab.host(2).netns().enter(|| {
        let socket = UdpSocket::bind((lab.host(2).address(Family::V4), 0)).unwrap();
        socket.send_to(&honest, (agents[0].vtep(), 4789)).unwrap();
    });
    assert_eq!(copies(&listening, b"crafted"), 1);
    let text = agents[0].cli(&["drops"]).stdout;
    assert!(text.contains("in_vni_unknown"), "{text}");
}

/// Frames with a MAC or an address that is not the sender's reach nobody, and do not move the
/// traffic of the one they belong to.
fn a_container_cannot_forge() {
    let (lab, agents, containers) = cluster(2, Underlay::Offloading, Store::Embedded, Family::V4);
    let neighbor = agents[0].container(&lab, crate::support::NETWORK, "c3", &[]);
    let [forger, victim] = &containers[..] else { unreachable!("two containers") };
    let v4 = |container: &Container| match container.address(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let listening: Vec<_> =
        [victim, &neighbor].map(|container| socket(container, (v4(container).into(), 5306))).into();
    let mut frames = Vec::new();
    for target in [victim, &neighbor] {
        for owner in [victim, &neighbor] {
            let macs = (target.mac(), owner.mac());
            frames.push(udp_frame(macs, (v4(owner), v4(target)), (1, 5306), b"forged"));
        }
        // Its own MAC, another's address.
        let macs = (target.mac(), forger.mac());
        let address = Ipv4Addr::new(198, 51, 100, 240);
        frames.push(udp_frame(macs, (address, v4(target)), (1, 5306), b"forged"));
    }
    for _ in 0..20 {
        send_frames(forger.netns(), forger.ifname(), &frames);
    }
    for socket in &listening {
        assert_eq!(copies(socket, b"forged"), 0);
    }
    traffic::ping(neighbor.netns(), victim.address(Family::V4), 56);
    traffic::ping(victim.netns(), neighbor.address(Family::V4), 56);
}

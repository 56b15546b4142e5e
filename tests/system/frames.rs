//! Frames that no ordinary program sends, unchanged from end to end, and what becomes of their outer
//! headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use etherparse::{IpNumber, Ipv4Header, Ipv6Header};
use testkit::traffic::{self, Udp};
use testkit::{
    Agent, Cap, Capture, Container, Family, KernelVtep, Lab, Store, Suite, VtepSpec, send_frames,
    wait_until,
};

use crate::support::{DUAL, NETWORK, VNI, assert_no_checksum_errors, cluster, drops, exchange};

const CAPS: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Vxlan, Cap::Tcpdump];

const KERNEL_ADDRESSES: &[&str] = &["198.51.100.200/24", "2001:db8:1::200/64"];
/// In every frame of these tests.
const MARK: &[u8] = b"made by hand";

pub(crate) fn register(suite: &mut Suite) {
    suite.test("frames::between_agents", CAPS, between_agents);
    suite.test("frames::to_and_from_the_kernel", CAPS, to_and_from_the_kernel);
    suite.test("frames::ecn_outward", CAPS, ecn_outward);
    suite.test("frames::ecn_inward", CAPS, ecn_inward);
    suite.test("frames::underlays_of_both_families", CAPS, underlays_of_both_families);
    for (name, ours, theirs) in
        [("senders", false, true), ("receivers", true, false), ("neither", false, false)]
    {
        suite.test(format!("frames::offloads_only_of_{name}"), CAPS, move || mixed(ours, theirs));
    }
    suite.test("frames::jumbo_to_the_kernel", CAPS, jumbo_to_the_kernel);
}

fn v4(container: &Container) -> Ipv4Addr {
    match container.address(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    }
}

fn v6(container: &Container) -> Ipv6Addr {
    match container.address(Family::V6) {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(_) => unreachable!("asked for IPv6"),
    }
}

/// A frame from one container to another with `rest` behind the MACs.
fn framed(from: &Container, to: &Container, rest: &[&[u8]]) -> Vec<u8> {
    let mut frame = [to.mac(), from.mac()].concat();
    frame.extend(rest.concat());
    frame
}

/// An IPv4 packet of that protocol.
fn ipv4(
    from: &Container,
    to: &Container,
    protocol: u8,
    change: impl FnOnce(&mut Ipv4Header),
) -> Vec<u8> {
    let len = u16::try_from(MARK.len() + 8).unwrap();
    let (source, destination) = (v4(from).octets(), v4(to).octets());
    let mut header = Ipv4Header::new(len, 64, IpNumber(protocol), source, destination).unwrap();
    change(&mut header);
    header.header_checksum = header.calc_header_checksum();
    let mut packet = Vec::new();
    header.write(&mut packet).unwrap();
    packet.extend([protocol; 8]);
    packet.extend(MARK);
    packet
}

/// An IPv6 packet whose header is followed by `rest`.
fn ipv6(from: &Container, to: &Container, next: u8, rest: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: u16::try_from(rest.len() + MARK.len()).unwrap(),
        next_header: IpNumber(next),
        hop_limit: 64,
        source: v6(from).octets(),
        destination: v6(to).octets(),
        ..Ipv6Header::default()
    };
    let mut packet = header.to_bytes().to_vec();
    packet.extend(rest);
    packet.extend(MARK);
    packet
}

/// Frames of many kinds, each different from the others.
fn crafted(from: &Container, to: &Container) -> Vec<(&'static str, Vec<u8>)> {
    let frame = |rest: &[&[u8]]| framed(from, to, rest);
    let plain = ipv4(from, to, 253, |_| ());
    let options = ipv4(from, to, 254, |header| {
        // Router alert (RFC 2113).
        header.options = [148, 4, 0, 0].into();
        header.total_len += 4;
    });
    let first = ipv4(from, to, 17, |header| header.more_fragments = true);
    let last = ipv4(from, to, 17, |header| header.fragment_offset = 3.try_into().unwrap());
    let marked = ipv4(from, to, 252, |header| header.dscp = 46.try_into().unwrap());
    vec![
        ("experimental protocol", frame(&[&[8, 0], &plain])),
        ("SCTP", frame(&[&[8, 0], &ipv4(from, to, 132, |_| ())])),
        ("GRE", frame(&[&[8, 0], &ipv4(from, to, 47, |_| ())])),
        ("IP options", frame(&[&[8, 0], &options])),
        ("first fragment", frame(&[&[8, 0], &first])),
        ("last fragment", frame(&[&[8, 0], &last])),
        ("DSCP", frame(&[&[8, 0], &marked])),
        ("802.1Q", frame(&[&[0x81, 0, 0xa0, 0x64, 8, 0], &plain])),
        ("priority tag", frame(&[&[0x81, 0, 0xe0, 0, 8, 0], &plain])),
        ("IPv6 fragment", frame(&[&[0x86, 0xdd], &ipv6(from, to, 44, &[17, 0, 0, 1, 1, 2, 3, 4])])),
        (
            "IPv6 hop-by-hop",
            frame(&[&[0x86, 0xdd], &ipv6(from, to, 0, &[253, 0, 1, 4, 0, 0, 0, 0])]),
        ),
        ("IPv6 without payload", frame(&[&[0x86, 0xdd], &ipv6(from, to, 59, &[])])),
        ("802.3 with LLC", frame(&[&[0, 15], &[0xaa, 0xaa, 3], MARK])),
        ("MPLS", frame(&[&[0x88, 0x47], &[0, 1, 1, 64], MARK])),
        ("PPPoE", frame(&[&[0x88, 0x64], &[0x11, 0, 0, 1, 0, 12], MARK])),
        ("local experiment", frame(&[&[0x88, 0xb5], MARK])),
        ("large", frame(&[&[0x88, 0xb6], MARK, &[7; 1400]])),
    ]
}

/// Sends each frame once: each arrives once, with the same bytes.
fn arrive(lab: &Lab, from: &Container, to: &Container) {
    let name = format!("from-{}", from.netns().name());
    let capture = Capture::start(to.netns(), to.ifname(), "", &lab.logs(), &name);
    let frames = crafted(from, to);
    let raw: Vec<Vec<u8>> = frames.iter().map(|(_, frame)| frame.clone()).collect();
    send_frames(from.netns(), from.ifname(), &raw);
    let count = |wanted: &Vec<u8>| capture.frames().iter().filter(|got| *got == wanted).count();
    for (what, frame) in &frames {
        wait_until(what, Duration::from_secs(10), || (count(frame) > 0).then_some(()));
    }
    for (what, frame) in &frames {
        assert_eq!(count(frame), 1, "{what}");
    }
    let packets = capture.stop();
    assert!(packets.iter().any(|packet| packet.contains("vlan 100, p 5")), "{packets:#?}");
}

fn between_agents() {
    let (lab, _agents, ends) =
        cluster(2, testkit::Underlay::Offloading, Store::Embedded, Family::V4);
    arrive(&lab, &ends[0], &ends[1]);
    arrive(&lab, &ends[1], &ends[0]);
}

fn with_kernel(lab: &Lab, family: Family) -> (Agent, KernelVtep) {
    let agent = lab.start_agent(1, lab.spec(1, Store::Embedded, family));
    agent.create_network(NETWORK, &[DUAL, &["--option", "learning=true"]].concat());
    let other = lab.host(2);
    let _ = agent.cli(&["network", "vtep", "add", NETWORK, &other.address(family).to_string()]);
    let spec = VtepSpec::new(VNI, family).remote(agent.vtep());
    let kernel = KernelVtep::create(lab, other, &spec);
    (agent, kernel)
}

fn to_and_from_the_kernel() {
    let lab = Lab::with_hosts(2).build();
    let (agent, kernel) = with_kernel(&lab, Family::V4);
    let ours = agent.container(&lab, NETWORK, "c1", &[]);
    let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
    traffic::ping(theirs.netns(), ours.address(Family::V4), 56);
    arrive(&lab, &ours, &theirs);
    arrive(&lab, &theirs, &ours);
}

/// The ECN field of an IPv4 frame made by [`udp_with`].
const TOS_AT: usize = 15;

/// A UDP frame with this ECN field.
fn udp_with(from: &Container, to: &Container, ecn: u8) -> Vec<u8> {
    let frame = ipv4(from, to, 253, |header| header.ecn = ecn.try_into().unwrap());
    framed(from, to, &[&[8, 0], &frame])
}

/// The inner field is copied out, and the kernel's decapsulation gives the same inner field again
/// (RFC 6040 section 4.1, normal mode).
fn ecn_outward() {
    let lab = Lab::with_hosts(2).build();
    let (agent, kernel) = with_kernel(&lab, Family::V4);
    let ours = agent.container(&lab, NETWORK, "c1", &[]);
    let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
    traffic::ping(theirs.netns(), ours.address(Family::V4), 56);
    let outer = Capture::start(lab.switch(), "p1", "udp dst port 4789", &lab.logs(), "outer");
    let inner = Capture::start(theirs.netns(), "eth0", "", &lab.logs(), "inner");
    let from = match agent.vtep() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    for ecn in 0..4 {
        let frame = udp_with(&ours, &theirs, ecn);
        send_frames(ours.netns(), ours.ifname(), std::slice::from_ref(&frame));
        wait_until("it arrives unchanged", Duration::from_secs(10), || {
            inner.frames().contains(&frame).then_some(())
        });
        let (sent, _) = wait_until("it is on the wire", Duration::from_secs(10), || {
            outer.frames().into_iter().find(|datagram| datagram.ends_with(&frame))
        });
        assert_eq!(&sent[26..30], &from, "the outer source");
        assert_eq!(sent[TOS_AT], ecn, "only the ECN field is copied out");
    }
}

/// What arrives with an outer field is joined with the inner one (RFC 6040 section 4.2).
fn ecn_inward() {
    let (lab, agents, ends) =
        cluster(2, testkit::Underlay::Offloading, Store::Embedded, Family::V4);
    let [to, from] = &ends[..] else { unreachable!("two containers") };
    let capture = Capture::start(to.netns(), "eth0", "", &lab.logs(), "inner");
    let other = lab.host(2);
    for outer in 0..4_u8 {
        for inner in 0..4_u8 {
            let frame = udp_with(from, to, inner);
            let [_, high, middle, low] = VNI.to_be_bytes();
            let datagram = [&[8, 0, 0, 0, high, middle, low, 0], &frame[..]].concat();
            let lost = drops(&agents[0], "in_ecn");
            let before = capture.frames().len();
            other.netns().enter(|| {
                let socket = UdpSocket::bind((other.address(Family::V4), 0)).unwrap();
                nix::sys::socket::setsockopt(
                    &socket,
                    nix::sys::socket::sockopt::Ipv4Tos,
                    &i32::from(outer),
                )
                .unwrap();
                socket.send_to(&datagram, (agents[0].vtep(), 4789)).unwrap();
            });
            let wanted = match (inner, outer) {
                (0, 3) => None,
                (_, 3) => Some(3),
                (2, 1) => Some(1),
                _ => Some(inner),
            };
            let Some(wanted) = wanted else {
                wait_until(
                    "a mark that nobody can see is dropped",
                    Duration::from_secs(10),
                    || (drops(&agents[0], "in_ecn") == lost + 1).then_some(()),
                );
                continue;
            };
            let frame = udp_with(from, to, wanted);
            wait_until("it arrives", Duration::from_secs(10), || {
                capture.frames()[before..].contains(&frame).then_some(())
            });
        }
    }
}

/// One network over both families: an agent that has a VTEP of each, kernel VTEPs of one each.
fn underlays_of_both_families() {
    let lab = Lab::with_hosts(3).build();
    let own = lab.host(1).address(Family::V6).to_string();
    let spec = lab.spec(1, Store::Embedded, Family::V4).args(&["--vtep", &own]);
    let agent = lab.start_agent(1, spec);
    agent.create_network(NETWORK, &[DUAL, &["--option", "learning=true"]].concat());
    let kernels = [(2, Family::V4), (3, Family::V6)].map(|(index, family)| {
        let host = lab.host(index);
        let _ = agent.cli(&["network", "vtep", "add", NETWORK, &host.address(family).to_string()]);
        let spec = VtepSpec::new(VNI, family).remote(lab.host(1).address(family));
        (index, KernelVtep::create(&lab, host, &spec))
    });
    let mut ends = vec![agent.container(&lab, NETWORK, "c1", &[])];
    assert_eq!(ends[0].mtu(), 1430, "the larger headers count for everybody");
    for (index, kernel) in &kernels {
        let addresses = [format!("198.51.100.20{index}/24"), format!("2001:db8:1::20{index}/64")];
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let end = kernel.container(&lab, &format!("k{index}"), &addresses);
        end.netns().ip("link set eth0 mtu 1430");
        ends.push(Container::inspect(Arc::clone(end.netns()), "eth0"));
    }
    for end in &ends[1..] {
        traffic::ping(end.netns(), ends[0].address(Family::V4), 56);
        exchange(&lab, &ends[0], end, 1_000_001);
        exchange(&lab, end, &ends[0], 1_000_001);
    }
    assert_no_checksum_errors(&ends.iter().collect::<Vec<_>>());
}

/// The containers' offloads differ from each other.
fn mixed(ours: bool, theirs: bool) {
    let (lab, _agents, ends) =
        cluster(2, testkit::Underlay::Offloading, Store::Embedded, Family::V4);
    ends[0].set_offloads(ours);
    ends[1].set_offloads(theirs);
    exchange(&lab, &ends[0], &ends[1], 4_000_001);
    exchange(&lab, &ends[1], &ends[0], 4_000_001);
    assert_no_checksum_errors(&[&ends[0], &ends[1]]);
}

/// An underlay of 9000, on the other side the kernel.
fn jumbo_to_the_kernel() {
    for family in [Family::V4, Family::V6] {
        let lab = Lab::with_hosts(2).mtu(9000).build();
        let (agent, kernel) = with_kernel(&lab, family);
        let ours = agent.container(&lab, NETWORK, "c1", &[]);
        let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
        assert_eq!(ours.mtu(), theirs.mtu());
        assert!(ours.mtu() > 8900);
        traffic::ping(theirs.netns(), ours.address(Family::V4), 56);
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            exchange(&lab, from, to, 10_000_001);
            for inner in from.families() {
                let how = Udp { count: 1000, size: 8800, rate: 4000, gso: false };
                traffic::udp(&lab, from, to, inner, how);
            }
        }
        assert_no_checksum_errors(&[&ours, &theirs]);
    }
}

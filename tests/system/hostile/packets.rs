//! The same of networks of packets: IP in IP, by raw sockets, and IP in UDP.

use std::net::{IpAddr, SocketAddr};

use testkit::{Attack, Family, Lab, Pace, Store};

use super::{FLOOD, Forger, Held, Scene, all_accounted_for, flood, goes_on};
use crate::support::{DUAL, NETWORK, containers};

/// UDP port of IPv4 packets; that of IPv6 is the next one.
const PORT: u16 = 4760;

fn scene(mode: &str) -> Scene {
    let lab = Lab::with_hosts(3).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    agents[0].create_network(NETWORK, &[&DUAL[..4], &["--mode", mode]].concat());
    let ends = containers(&lab, &agents);
    let scene = Scene { ends, agents, lab };
    scene.ping();
    scene
}

/// Packets from a host's VTEP address to the first agent, by the way of IPv4 inside or of IPv6.
fn attack(scene: &Scene, mode: &str, (host, ipv6): (usize, bool), pace: Pace, seed: u64) -> Attack {
    let mut forger = Forger::new(scene, seed);
    let host = scene.lab.host(host);
    let (from, to) = (host.address(Family::V4), scene.agents[0].vtep());
    let good = good_ipv6(scene);
    let make = move |out: &mut Vec<u8>| match ipv6 {
        // Some of the other family, which does not belong there.
        true if forger.dice.below(8) > 0 => packet_ipv6(&mut forger, &good, out),
        _ => packet(&mut forger, out),
    };
    if mode == "ipudp" {
        let to = SocketAddr::new(to, PORT + u16::from(ipv6));
        return Attack::datagrams(host.netns(), (from, to), pace, None, make);
    }
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { unreachable!("asked for IPv4") };
    Attack::packets(host.netns(), (from, to), if ipv6 { 41 } else { 4 }, pace, make)
}

/// Trains of packets of one length, of which one or more are bad.
fn trains(scene: &Scene, host: usize, pace: Pace, seed: u64) -> Attack {
    let to = SocketAddr::new(scene.agents[0].vtep(), PORT);
    let good = |forger: &mut Forger, out: &mut Vec<u8>| out.extend_from_slice(&forger.good[14..]);
    scene.trains_of((host, to), pace, seed, good, packet)
}

/// A packet that is random, mutated, or wrong on purpose.
fn packet(forger: &mut Forger, out: &mut Vec<u8>) {
    let good = forger.good[14..].to_vec();
    match forger.dice.below(12) {
        0 => forger.noise(out, 1400),
        1..=3 => {
            out.extend(good);
            forger.mutate(out);
        }
        4 => out.extend(&good[..forger.dice.below(good.len())]),
        5 => nested(forger, &good, out),
        6 => forger.ipv4_packet(out),
        7 => forger.ipv6_packet(out),
        8 => {
            // Of a host of its own, of nobody, of groups, and for as many.
            out.extend(good);
            let at = forger.dice.of(&[12, 16]);
            let [own, theirs] = forger.addresses.map(|address| address.octets());
            let drawn = [198, 51, 100, forger.dice.byte()];
            let odd = [own, theirs, drawn, [0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]];
            let address = forger.dice.of(&odd);
            out[at..at + 4].copy_from_slice(&address);
        }
        9 => errors(forger, &good, out),
        10 => {
            // No more hops, or another mark of congestion than the outer header bears.
            out.extend(good);
            let (at, value) = forger.dice.of(&[(8, 0), (8, 1), (1, 1), (1, 2), (1, 3), (1, 0xff)]);
            out[at] = value;
        }
        _ => out.extend(good),
    }
}

/// The same of IPv6.
fn packet_ipv6(forger: &mut Forger, good: &[u8], out: &mut Vec<u8>) {
    match forger.dice.below(6) {
        0 => forger.noise(out, 1400),
        1 => {
            out.extend(good);
            forger.mutate(out);
        }
        2 => out.extend(&good[..forger.dice.below(good.len())]),
        3 => forger.ipv6_packet(out),
        4 => {
            // A true address or two, and headers that lie.
            forger.ipv6_packet(out);
            out.resize(out.len().max(40), 0);
            out[8..40].copy_from_slice(&good[8..40]);
        }
        _ => out.extend(good),
    }
}

/// A UDP datagram of the second container for the first one.
fn good_ipv6(scene: &Scene) -> Vec<u8> {
    const UDP: [u8; 8] = [0, 9, 0, 9, 0, 8, 0xbe, 0xef];
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    for end in [1, 0] {
        let IpAddr::V6(address) = scene.ends[end].address(Family::V6) else {
            unreachable!("asked for IPv6")
        };
        packet.extend(address.octets());
    }
    packet.extend(UDP);
    packet
}

/// Tunnels in the tunnel for the same VTEP: loops, if they were taken.
fn nested(forger: &mut Forger, good: &[u8], out: &mut Vec<u8>) {
    let mut inner = good.to_vec();
    for _ in 0..=forger.dice.below(3) {
        let ports = forger.dice.of(&[PORT, PORT + 1, 4789]);
        let ends = (forger.addresses[1], forger.vtep);
        let frame = testkit::udp_frame(([0; 6], [0; 6]), ends, (ports, ports), &inner);
        let mut packet = frame[14..].to_vec();
        if forger.dice.below(2) == 0 {
            // The UDP header goes, and the packet is IP in IP.
            packet.drain(20..28);
            let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[9] = forger.dice.of(&[4, 41]);
        }
        inner = packet;
    }
    out.extend(inner);
}

/// ICMP errors about packets that nobody sent, cut anywhere.
fn errors(forger: &mut Forger, good: &[u8], out: &mut Vec<u8>) {
    out.extend(&good[..20]);
    out[9] = 1;
    out.extend([forger.dice.of(&[3, 4, 5, 11, 12]), forger.dice.below(16) as u8, 0, 0]);
    out.extend([0, 0, forger.dice.byte(), forger.dice.byte()]);
    out.extend(&good[..forger.dice.below(good.len())]);
    let length = forger.dice.of(&[u16::try_from(out.len()).unwrap_or(0), 0, 28, 576, 65_535]);
    out[2..4].copy_from_slice(&length.to_be_bytes());
}

/// As fast as they can, for half the time that frames get.
pub(super) fn wire_at_full_speed(mode: &str) {
    let scene = scene(mode);
    let held = Held::of(&scene.agents[0]);
    let free = Pace::default();
    let first = if mode == "ipudp" {
        trains(&scene, 2, free, 12)
    } else {
        attack(&scene, mode, (2, true), free, 12)
    };
    let attacks = [
        attack(&scene, mode, (2, false), free, 11),
        first,
        attack(&scene, mode, (3, false), free, 13),
    ];
    flood(&scene, attacks, FLOOD / 2);
    goes_on(&scene);
    held.still_holds(&scene.agents[0], "the wire at full speed");
}

pub(super) fn every_packet_is_accounted_for(mode: &str) {
    const COUNT: u64 = 40_000;
    let scene = scene(mode);
    let pace = Pace { rate: 10_000, count: COUNT };
    all_accounted_for(&scene, |scene| {
        let kinds = [(2, false), (2, true), (3, false)];
        let attacks = (14..).zip(kinds).map(|(seed, way)| attack(scene, mode, way, pace, seed));
        // What the kernel joins on its way to a raw socket is one packet there.
        let joined = if mode == "ipip" { 4 } else { 1 };
        attacks.map(Attack::finish).sum::<u64>() / joined
    });
    if mode == "ipudp" {
        let pace = Pace { rate: 500, count: 1000 };
        all_accounted_for(&scene, |scene| trains(scene, 2, pace, 18).finish());
    }
    goes_on(&scene);
}

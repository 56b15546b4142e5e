//! Each drop reason by one crafted frame or datagram: dropped for that reason and no other, counted
//! once, where it belongs. All of them can be reached without a kernel; those that only a socket or
//! a port causes are caused by what stands in for it.

use std::collections::HashSet;

use encap::{MacAddr, ecn, ndp, vnet};
use fdb::{Delta, Gateway, Network, Place, SourceCheck, VtepKey};
use skybridge::datapath::drop::DropReason::{self, *};

use super::frames::{Spec, arp_request, mac, other, priority_tagged, solicitation, v4, v6};
use super::lab::{
    Arrived, At, ELSEWHERE, Host, Lab, NETWORK, Options, UDP_PORT, vtep_address, vtep_address_v6,
};

type Case = (DropReason, At, fn(&mut Host));

const STP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]);

fn tcp(from: u8, to: u8) -> Vec<u8> {
    Spec::new(from, to, false, true, 100).whole()
}

fn with_source(source: MacAddr, mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&source.0);
    frame
}

fn send(host: &mut Host, frame: &[u8]) {
    host.send_whole(frame);
}

fn read(host: &mut Host, bytes: &[u8]) {
    host.offer_read(bytes);
}

fn arrives(host: &mut Host, frame: &[u8]) {
    host.receive(&[Arrived::frame(1, frame)]);
}

fn check(host: &mut Host, source_check: SourceCheck) {
    host.set_network(|network: &mut Network| network.source_check = source_check);
}

/// A UDP packet to a VTEP address of host 0, in a frame that is otherwise right.
fn nested(ipv6: bool) -> Vec<u8> {
    let mut frame = Spec::new(17, 1, ipv6, false, 100).whole();
    let (at, port) = if ipv6 { (38, 56) } else { (30, 36) };
    match vtep_address_v6(0) {
        std::net::IpAddr::V6(address) if ipv6 => {
            frame[at..at + 16].copy_from_slice(&address.octets());
        }
        _ => frame[at..at + 4].copy_from_slice(&[192, 0, 2, 1]),
    }
    frame[port..port + 2].copy_from_slice(&UDP_PORT.to_be_bytes());
    frame
}

/// From the right MAC, with the address of an endpoint that has another.
fn address_spoofed(ipv6: bool) -> Vec<u8> {
    with_source(mac(17), Spec::new(33, 1, ipv6, true, 100).whole())
}

/// An advertisement by endpoint `from` that the address of endpoint `of` is its own.
fn advertisement(from: u8, of: u8) -> Vec<u8> {
    let mut frame = [0; 128];
    let len = ndp::announcement(v6(of), mac(from), &mut frame).unwrap();
    frame[..len].to_vec()
}

/// The gateway of the cases: MAC and addresses of an endpoint that nobody has.
const GATEWAY: u8 = 250;

fn with_gateway(host: &mut Host) {
    host.set_network(|network| {
        let addresses = [v4(GATEWAY).into(), v6(GATEWAY).into()].into();
        network.gateway = Some(Gateway { mac: mac(GATEWAY), addresses });
    });
}

/// A frame with the gateway's address as that of endpoint 17, which is elsewhere.
fn claims_gateway(host: &mut Host, frame: Vec<u8>) {
    with_gateway(host);
    let mut frame = with_source(mac(17), frame);
    frame[..6].copy_from_slice(&mac(1).0);
    arrives(host, &frame);
}

fn gateway_advertisement() -> Vec<u8> {
    let mut frame = vec![0; 128];
    let len = ndp::announcement(v6(GATEWAY), mac(17), &mut frame).unwrap();
    frame.truncate(len);
    // What it claims is told by its target: its source may be any.
    frame[22..38].copy_from_slice(&v6(17).octets());
    frame
}

fn fails(host: &mut Host, errno: i32) {
    host.wire.faults.push_back(errno);
    send(host, &tcp(1, 17));
}

const CASES: &[Case] = &[
    (OutMalformed, At::Port, |host| read(host, &[0; 7])),
    (OutMalformed, At::Port, |host| read(host, &[0; vnet::LEN + 13])),
    (OutMalformed, At::Port, |host| read(host, &[])),
    (OutMalformed, At::Port, |host| {
        // A checksum range outside of the frame.
        let header =
            vnet::Header { flags: vnet::NEEDS_CSUM, csum_start: 9999, ..vnet::Header::NONE };
        host.send(&header, &tcp(1, 17));
    }),
    (OutMalformed, At::Port, |host| {
        // Its source address would be written as the checksum.
        let header = vnet::Header {
            flags: vnet::NEEDS_CSUM,
            csum_start: 14,
            csum_offset: 12,
            ..vnet::Header::NONE
        };
        host.send(&header, &tcp(1, 17));
    }),
    (OutMalformed, At::Port, |host| {
        // A super-frame of the wrong family, to every VTEP.
        let (header, mut frame) = Spec::new(1, 17, true, true, 5000).partial(1000);
        frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
        host.send(&vnet::Header { gso_type: vnet::GSO_TCPV4, ..header }, &frame);
    }),
    (OutMalformed, At::Port, |host| {
        let (header, frame) = Spec::new(1, 17, false, true, 5000).partial(1000);
        host.send(&vnet::Header { gso_size: 0, ..header }, &frame);
    }),
    (OutSourceInvalid, At::Port, |host| send(host, &with_source(MacAddr::ZERO, tcp(1, 17)))),
    (OutSourceInvalid, At::Port, |host| send(host, &with_source(STP, tcp(1, 17)))),
    (OutSourceNotLocal, At::Port, |host| send(host, &tcp(33, 17))),
    (OutGateway, At::Port, |host| {
        with_gateway(host);
        send(host, &tcp(GATEWAY, 17));
    }),
    (OutGateway, At::Port, |host| {
        with_gateway(host);
        send(host, &other(MacAddr::BROADCAST, mac(GATEWAY), 60));
    }),
    (OutGateway, At::Port, |host| {
        with_gateway(host);
        send(host, &tcp(1, GATEWAY));
    }),
    (OutDestinationLocal, At::Port, |host| send(host, &tcp(1, 2))),
    (OutDestinationUnknown, At::Port, |host| send(host, &tcp(1, 99))),
    (OutDestinationUnknown, At::Port, |host| {
        host.apply([Delta::RemoveNetwork { key: NETWORK }]);
        send(host, &tcp(1, 17));
    }),
    (OutNeighborUnknown, At::Port, |host| send(host, &arp_request(1, Some(1), 99))),
    (OutFloodDisabled, At::Port, |host| {
        host.set_network(|network| network.flood_broadcast = false);
        send(host, &other(MacAddr::BROADCAST, mac(1), 60));
    }),
    (OutFloodBudget, At::Port, |host| {
        while host.port().budget.take(1, 1000, 0) {}
        send(host, &other(MacAddr::BROADCAST, mac(1), 60));
    }),
    (OutLinkLocalControl, At::Port, |host| send(host, &other(STP, mac(1), 60))),
    (OutTooBig, At::Port, |host| send(host, &other(mac(17), mac(1), 1451))),
    (OutVtepUnknown, At::Port, |host| {
        host.put_endpoint(200, Place::Vtep(VtepKey(77)));
        send(host, &tcp(1, 200));
    }),
    (OutFamilyUnavailable, At::Worker, |host| fails(host, libc::EAFNOSUPPORT)),
    (OutUnderlayBusy, At::Worker, |host| {
        host.wire.wakes = false;
        fails(host, libc::EAGAIN);
    }),
    (OutUnderlayError, At::Worker, |host| fails(host, libc::EHOSTUNREACH)),
    (OutUnderlayError, At::Worker, |host| fails(host, libc::EPERM)),
    (OutUnderlayError, At::Worker, |host| fails(host, libc::EINVAL)),
    (OutPathMtu, At::Worker, |host| {
        host.wire.mtu = 100;
        send(host, &tcp(1, 17));
    }),
    (InTruncated, At::Worker, |host| host.receive(&[Arrived::raw(1, vec![8; 7])])),
    (InTruncated, At::Worker, |host| host.receive(&[Arrived::raw(1, Vec::new())])),
    (InTruncated, At::Worker, |host| {
        host.receive(&[Arrived { truncated: true, ..Arrived::frame(1, &tcp(17, 1)) }]);
    }),
    (InTruncated, At::Port, |host| arrives(host, &tcp(17, 1)[..13])),
    (InVniFlagClear, At::Worker, |host| {
        let mut datagram = Arrived::frame(1, &tcp(17, 1));
        datagram.bytes[0] = 0;
        host.receive(&[datagram]);
    }),
    (InVtepUnknown, At::Worker, |host| {
        host.receive(&[Arrived { source: vtep_address(50), ..Arrived::frame(1, &tcp(17, 1)) }]);
    }),
    (InVniUnknown, At::Worker, |host| {
        let mut datagram = Arrived::frame(1, &tcp(17, 1));
        datagram.bytes[4] = 9;
        host.receive(&[datagram]);
    }),
    // The network is known, but has no port here.
    (InVniUnknown, At::Worker, |host| host.receive(&[Arrived::of(1, ELSEWHERE, &tcp(17, 1))])),
    (InVtepNotMember, At::Port, |host| {
        host.set_vtep(5, |vtep| vtep.host = None);
        let vteps = vec![VtepKey(5)];
        host.apply([Delta::SetStaticVteps { network: ELSEWHERE, vteps }]);
        host.receive(&[Arrived::frame(5, &tcp(200, 1))]);
    }),
    (InSourceInvalid, At::Port, |host| arrives(host, &with_source(MacAddr::ZERO, tcp(17, 1)))),
    (InSourceInvalid, At::Port, |host| arrives(host, &with_source(STP, tcp(17, 1)))),
    (InGateway, At::Port, |host| {
        with_gateway(host);
        arrives(host, &tcp(GATEWAY, 1));
    }),
    (InGateway, At::Port, |host| {
        with_gateway(host);
        arrives(host, &tcp(17, GATEWAY));
    }),
    (InGateway, At::Port, |host| claims_gateway(host, arp_request(17, Some(GATEWAY), 1))),
    (InGateway, At::Port, |host| {
        claims_gateway(host, priority_tagged(&arp_request(17, Some(GATEWAY), 1)));
    }),
    (InGateway, At::Port, |host| claims_gateway(host, tcp(GATEWAY, 1))),
    (InGateway, At::Port, |host| {
        claims_gateway(host, Spec::new(GATEWAY, 1, true, true, 100).whole());
    }),
    (InGateway, At::Port, |host| claims_gateway(host, gateway_advertisement())),
    (InSourceOwn, At::Port, |host| arrives(host, &tcp(2, 1))),
    (InSourceSpoofed, At::Port, |host| arrives(host, &tcp(33, 1))),
    (InSourceAddressSpoofed, At::Port, |host| {
        check(host, SourceCheck::MacIp);
        arrives(host, &address_spoofed(false));
    }),
    (InSourceAddressSpoofed, At::Port, |host| {
        check(host, SourceCheck::MacIp);
        arrives(host, &priority_tagged(&address_spoofed(true)));
    }),
    (InSourceAddressSpoofed, At::Port, |host| {
        check(host, SourceCheck::MacIp);
        arrives(host, &with_source(mac(17), arp_request(33, Some(33), 1)));
    }),
    // ARP and neighbor discovery are held against the tables whatever the network checks.
    (InSourceAddressSpoofed, At::Port, |host| arrives(host, &arp_request(17, Some(1), 2))),
    (InSourceAddressSpoofed, At::Port, |host| {
        arrives(host, &priority_tagged(&solicitation(17, Some(33), 1)));
    }),
    (InSourceAddressSpoofed, At::Port, |host| arrives(host, &advertisement(17, 1))),
    (InSourceAddressSpoofed, At::Port, |host| {
        // The right sender with another's link-layer address.
        let mut frame = solicitation(17, Some(17), 1);
        let at = frame.len() - 1;
        frame[at] ^= 0xff;
        arrives(host, &frame);
    }),
    (InSourceAddressSpoofed, At::Port, |host| {
        // Behind an empty hop-by-hop header.
        let mut frame = advertisement(17, 1);
        let payload = u16::from_be_bytes([frame[18], frame[19]]) + 8;
        frame[18..20].copy_from_slice(&payload.to_be_bytes());
        let next = std::mem::replace(&mut frame[20], 0);
        frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        arrives(host, &frame);
    }),
    (InSourcePending, At::Port, |host| {
        check(host, SourceCheck::Strict);
        arrives(host, &tcp(200, 1));
    }),
    (InNested, At::Port, |host| arrives(host, &nested(false))),
    (InNested, At::Port, |host| arrives(host, &nested(true))),
    (InNested, At::Port, |host| arrives(host, &priority_tagged(&nested(false)))),
    (InEcn, At::Port, |host| {
        host.receive(&[Arrived { tos: ecn::CE, ..Arrived::frame(1, &tcp(17, 1)) }]);
    }),
    (InDestinationNotHere, At::Port, |host| arrives(host, &tcp(17, 33))),
    (InDestinationNotHere, At::Port, |host| arrives(host, &tcp(17, 99))),
    (InLinkLocalControl, At::Port, |host| arrives(host, &other(STP, mac(17), 60))),
    (InPortError, At::Port, |host| {
        host.taps.refuses = true;
        arrives(host, &tcp(17, 1));
    }),
];

#[test]
fn each_reason_is_counted_once_where_it_belongs() {
    let mut reached = HashSet::new();
    for (index, (reason, at, act)) in CASES.iter().enumerate() {
        let mut lab = Lab::new(3, Options::default());
        let host = &mut lab.hosts[0];
        act(host);
        assert_eq!(host.dropped(), [(*reason, *at, 1)], "case {index}, {}", reason.name());
        assert!(host.wire.sent.is_empty() && host.replies.is_empty(), "case {index}");
        assert!(host.taps.written.is_empty(), "case {index}");
        assert_eq!(host.counters.flood_copies.get(), 0, "case {index}");
        reached.insert(*reason);
    }
    reached.extend(super::packets_checks::reasons());
    // packets_checks::probes_are_for_the_agent has this one.
    reached.insert(InProbeOverflow);
    // What the kernel drops at the switch's two ends, it has to be there for: the system tests
    // (bounds::overflow_is_counted) have these.
    reached.extend([OutPortOverflow, InUnderlayOverflow]);
    let missed: Vec<_> = DropReason::ALL.iter().filter(|r| !reached.contains(r)).collect();
    assert!(missed.is_empty(), "no case for {missed:?}");
}

#[test]
fn a_refused_super_frame_counts_each_frame_in_it() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.taps.refuses = true;
    let (header, frame) = Spec::new(17, 1, false, true, 10_000).partial(1000);
    let all: Vec<Arrived> =
        super::cut(&header, &frame).iter().map(|frame| Arrived::frame(1, frame)).collect();
    host.receive(&all);
    assert_eq!(host.dropped(), [(InPortError, At::Port, 10)]);
}

#[test]
fn right_addresses_pass_the_strictest_checks() {
    for source_check in [SourceCheck::Mac, SourceCheck::MacIp, SourceCheck::Strict] {
        let mut lab = Lab::new(2, Options::default());
        let host = &mut lab.hosts[0];
        check(host, source_check);
        let mut unspecified = arp_request(17, None, 1);
        unspecified[..6].copy_from_slice(&mac(1).0);
        for frame in [tcp(17, 1), Spec::new(17, 2, true, true, 5).whole(), unspecified] {
            arrives(host, &frame);
            arrives(host, &priority_tagged(&frame));
        }
        assert_eq!(host.dropped(), []);
        assert_eq!(host.taps.written.len(), 6);
    }
}

#[test]
fn a_question_for_the_gateway_is_left_to_it() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    with_gateway(host);
    send(host, &arp_request(1, Some(1), GATEWAY));
    send(host, &solicitation(1, Some(1), GATEWAY));
    assert_eq!(host.dropped(), []);
    assert!(host.wire.sent.is_empty() && host.replies.is_empty());
    assert_eq!(host.counters.suppressed_local.get(), 2);
}

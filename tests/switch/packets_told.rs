//! What the senders of packets are told by ICMP, and by whom.

use encap::checksum::Sum;
use encap::{Link, icmpv4, icmpv6, ipv4, ipv6};
use fdb::{Carrier, VtepKey};
use skybridge::datapath::drop::DropReason::*;
use skybridge::datapath::outbound::Outcome;
use skybridge::link::routed::{GATEWAY_V4, GATEWAY_V6};

use super::frames::{Spec, v4, v6};
use super::lab::{Arrived, At, Options, Weather, vtep_address, vtep_address_v6};
use super::nothing_dropped;
use super::packets::{by_way, cut, message, mtu, partial, received, routed, ways, whole};

#[test]
fn that_a_vtep_is_unreachable_is_told_once_each_time_and_the_packet_sent_all_the_same() {
    for (carrier, under) in ways() {
        let mut lab = routed(3, Options::default(), carrier, under);
        let host = &mut lab.hosts[0];
        let packet = whole(&Spec::new(1, 17, false, false, 10));
        let other = whole(&Spec::new(1, 33, false, false, 10));
        for packet in [&packet, &other] {
            assert_eq!(host.send_whole(packet), Outcome::Done);
        }
        let vtep = if under { vtep_address_v6(1) } else { vtep_address(1) };
        let there = Arrived {
            source: vtep,
            ..by_way(carrier, under, &whole(&Spec::new(17, 1, false, false, 10)))
        };
        // At these times it is said, or something is heard by this worker or another one; and then
        // a sender is told or not.
        for (now_ms, said, heard, by_another, told) in [
            (0, true, false, false, false),
            (900, true, true, false, false),
            (1000, true, false, false, false),
            (1900, true, false, true, false),
            (2900, true, false, false, false),
            (30_000, true, false, false, false),
            (31_000, true, false, false, true),
            (31_001, false, false, false, false),
            (32_000, true, false, false, true),
            // No longer said, heard, or said too long ago.
            (33_000, true, true, false, false),
            (34_000, true, false, false, false),
            (35_000, true, false, false, true),
            (36_000, true, false, false, true),
            (50_000, false, false, false, false),
        ] {
            host.now_ms = now_ms;
            host.replies.clear();
            if said {
                host.outbound.paths.note_unreachable(vtep, now_ms);
            }
            if heard {
                host.receive(std::slice::from_ref(&there));
            }
            if by_another {
                host.heard.mark(VtepKey(1), now_ms);
            }
            assert_eq!(host.send_whole(&other), Outcome::Done, "another VTEP");
            let outcome = host.send_whole(&packet);
            assert_eq!(matches!(outcome, Outcome::Reply(_)), told, "{now_ms}");
            if told {
                let (kind, code, _) = message(&host.replies[0], 17);
                assert_eq!((kind, code), (3, 1));
                assert_eq!(host.send_whole(&packet), Outcome::Done, "once");
            }
        }
        // Said last before anybody sent.
        host.outbound.paths.note_unreachable(vtep, 60_000);
        host.outbound.paths.note_unreachable(vtep, 61_000);
        host.now_ms = 71_000;
        assert_eq!(host.send_whole(&packet), Outcome::Done, "too long ago");
        assert_eq!(host.dropped(), []);
    }
}

#[test]
fn what_may_be_cut_is_cut_and_not_told() {
    for (carrier, under) in ways() {
        let mut lab = routed(2, Options::default(), carrier, under);
        let (header, mut packet) = partial(&Spec::new(1, 17, false, false, 3000), 0);
        packet[6] = 0;
        packet[10..12].fill(0);
        let check = Sum::of(&packet[..20]).finish();
        packet[10..12].copy_from_slice(&check.to_be_bytes());
        let host = &mut lab.hosts[0];
        assert_eq!(host.send(&header, &packet), Outcome::Done);
        assert!(host.replies.is_empty());
        assert_eq!(host.counters.fragmented_out.get(), 1);
        lab.carry(0, &mut Weather::fair(false));
        let got: Vec<_> = lab.hosts[1].taps.written.iter().map(|it| it.frame.clone()).collect();
        assert_eq!(got.len(), 3);
        let payload: Vec<u8> = got.iter().flat_map(|fragment| fragment[20..].to_vec()).collect();
        assert_eq!(payload, cut(&header, &packet)[0][20..], "with its checksum");
        assert!(got.iter().all(|fragment| fragment.len() <= usize::from(mtu(carrier, under))));
        assert_eq!((lab.hosts[0].frames_out(), lab.hosts[1].frames_in()), (3, 3));
        nothing_dropped(&lab);
    }
}

#[test]
fn who_cannot_be_reached_is_told_to_the_sender() {
    for ipv6 in [false, true] {
        let (net, host_code) = if ipv6 { ((1, 0), (1, 3)) } else { ((3, 0), (3, 1)) };
        let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
        let host = &mut lab.hosts[0];
        // Nobody's, but of the subnet; one of this host's that no endpoint has.
        for (to, reason) in [(200, OutRouteUnknown), (9, OutRouteLocal)] {
            host.replies.clear();
            let before = host.dropped().len();
            assert!(matches!(
                host.send_whole(&whole(&Spec::new(1, to, ipv6, false, 10))),
                Outcome::Reply(_)
            ));
            let (kind, code, _) = message(&host.replies[0], to);
            assert_eq!((kind, code), host_code);
            assert_eq!(host.dropped().len(), before + 1);
            assert!(host.dropped().contains(&(reason, At::Port, 1)));
        }
        // No subnet's.
        host.replies.clear();
        let mut packet = whole(&Spec::new(1, 17, ipv6, false, 10));
        let at = if ipv6 { 24 } else { 16 };
        packet[at + 2] ^= 1;
        assert!(matches!(host.send_whole(&packet), Outcome::Reply(_)));
        let reply = &host.replies[0];
        let icmp = if ipv6 { 40 } else { 20 };
        assert_eq!((reply[icmp], reply[icmp + 1]), net);
        assert_eq!(host.counters.unreachable_answers.get(), 3);
        assert!(host.wire.sent.is_empty());
    }
}

#[test]
fn answers_are_limited() {
    for ipv6 in [false, true] {
        let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
        let host = &mut lab.hosts[0];
        let long = whole(&Spec::new(1, 17, ipv6, false, 3000));
        let nobodys = whole(&Spec::new(1, 200, ipv6, false, 100));
        let mut now = |now_ms: u64, expected: usize| {
            host.now_ms = now_ms;
            host.replies.clear();
            for _ in 0..100 {
                let _ = (host.send_whole(&long), host.send_whole(&nobodys));
            }
            assert_eq!(host.replies.len(), expected, "{now_ms}");
        };
        // As many of each kind: neither takes anything from the other.
        now(1000, 2 * 100);
        now(1010, 2 * 10);
        now(9000, 2 * 100);
        assert_eq!(host.counters.answers_limited.get(), 2 * 90);
        let drops = [(OutRouteUnknown, At::Port, 300), (OutTooBig, At::Port, 300)];
        assert_eq!(host.dropped(), drops);
    }
}

/// What the private router of `host` 1 reports about a packet of endpoint 1 to one of its own.
fn report(ipv6: bool, to: u8) -> Vec<u8> {
    let quoted = whole(&Spec::new(1, to, ipv6, false, 100));
    let mut packet = vec![0; 700];
    let len = if ipv6 {
        icmpv6::unreachable_on(Link::None, &quoted, 3, &mut packet)
    } else {
        icmpv4::unreachable_on(Link::None, &quoted, 1, &mut packet)
    };
    packet.truncate(len.unwrap());
    if ipv6 {
        icmpv6::set_source(&mut packet, GATEWAY_V6);
    } else {
        ipv4::set_source(&mut packet, GATEWAY_V4);
    }
    packet
}

#[test]
fn the_private_routers_errors_go_out_in_the_name_of_the_destination() {
    for ipv6 in [false, true] {
        let mut lab = routed(3, Options::default(), Carrier::IpIp, false);
        assert_eq!(lab.hosts[1].send_whole(&report(ipv6, 17)), Outcome::Done);
        lab.carry(1, &mut Weather::fair(false));
        let got = received(&lab.hosts[0]);
        let [answer] = &got[..] else { panic!("{got:?}") };
        let message = if ipv6 {
            let packet = ipv6::Packet::parse(answer).unwrap();
            assert_eq!((packet.source(), packet.destination()), (v6(17), v6(1)));
            let message = icmpv6::Message::parse(packet.payload()).unwrap();
            assert!(message.checksum_verifies(v6(17), v6(1)));
            (message.kind(), message.code())
        } else {
            let packet = ipv4::Packet::parse(answer).unwrap();
            assert!(packet.checksum_verifies());
            assert_eq!((packet.source(), packet.destination()), (v4(17), v4(1)));
            let message = icmpv4::Message::parse(packet.payload()).unwrap();
            assert!(message.checksum_verifies());
            (message.kind(), message.code())
        };
        assert_eq!(message, if ipv6 { (1, 3) } else { (3, 1) });
        nothing_dropped(&lab);
        // About what went elsewhere it says nothing.
        assert_eq!(lab.hosts[1].send_whole(&report(ipv6, 33)), Outcome::Done);
        assert_eq!(lab.hosts[1].dropped(), [(OutSourceForeign, At::Port, 1)]);
        // Nor is it taken for other packets.
        let mut other = report(ipv6, 17);
        let protocol = if ipv6 { 6 } else { 9 };
        other[protocol] = 17;
        assert_eq!(lab.hosts[1].send_whole(&other), Outcome::Done);
        assert_eq!(lab.hosts[1].dropped(), [(OutSourceForeign, At::Port, 2)]);
    }
}

#[test]
fn a_packet_from_another_host_that_nobody_here_takes_is_answered() {
    for ipv6 in [false, true] {
        for (to, reason) in [(25, OutRouteLocal), (200, OutRouteUnknown)] {
            let mut lab = routed(2, Options::default(), Carrier::IpIp, false);
            let host = &mut lab.hosts[1];
            // As the router gives it back.
            let packet = whole(&Spec::new(1, to, ipv6, false, 100));
            assert!(matches!(host.send_whole(&packet), Outcome::Reply(_)));
            assert_eq!(host.dropped(), [(reason, At::Port, 1)]);
            // The answer comes back by the router as well, and crosses.
            let reply = host.replies.pop().unwrap();
            assert_eq!(host.send_whole(&reply), Outcome::Done);
            lab.carry(1, &mut Weather::fair(false));
            assert_eq!(received(&lab.hosts[0]), [reply]);
        }
    }
}

/// A host with networks on several UDP ports has a slot for each, and all that it sends is marked as
/// one of them.
#[test]
fn what_comes_from_an_address_speaks_for_all_its_ports() {
    for (carrier, under) in ways() {
        let mut lab = routed(3, Options::default(), carrier, under);
        let host = &mut lab.hosts[0];
        let address = if under { vtep_address_v6(2) } else { vtep_address(2) };
        host.set_vtep(1, |vtep| {
            *vtep = fdb::Vtep { address, port: 4790, host: Some("host-2".into()), ..vtep.clone() };
        });
        let packet = whole(&Spec::new(1, 33, false, false, 10));
        assert_eq!(host.send_whole(&packet), Outcome::Done);
        let there = Arrived {
            source: address,
            ..by_way(carrier, under, &whole(&Spec::new(33, 1, false, false, 10)))
        };
        for (now_ms, heard, told) in [
            (1000, true, false),
            (2500, true, false),
            (4000, false, false),
            (5500, false, true),
            (7000, true, true),
            (8500, false, false),
        ] {
            host.now_ms = now_ms;
            host.outbound.paths.note_unreachable(address, now_ms);
            let outcome = host.send_whole(&packet);
            assert_eq!(matches!(outcome, Outcome::Reply(_)), told, "{now_ms}");
            if heard {
                host.receive(std::slice::from_ref(&there));
                host.outbound.paths.note_unreachable(address, now_ms);
            }
            assert_eq!(host.send_whole(&packet), Outcome::Done, "{now_ms}");
        }
    }
}

//! Frames between containers of one host that the switch carries.

use encap::{MacAddr, vnet};
use fdb::{Place, VtepKey};
use skybridge::datapath::batch::DATAGRAMS;
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::outbound::Outcome;

use super::frames::{Spec, arp_request, checksums_verify, cut, mac, other, solicitation};
use super::lab::{At, Host, Lab, Options};

const PLAIN: vnet::Header = vnet::Header::NONE;

fn switched() -> Lab {
    let mut lab = Lab::new(3, Options::default());
    lab.hosts[0].port().local = true;
    lab
}

/// What went back to the port since the last call.
fn given_back(host: &mut Host) -> Vec<(vnet::Header, Vec<u8>)> {
    host.taps.written.drain(..).map(|written| (written.header, written.frame)).collect()
}

#[test]
fn what_is_for_a_neighbor_goes_back_as_it_came() {
    let mut lab = switched();
    let host = &mut lab.hosts[0];
    for ipv6 in [false, true] {
        for tcp in [false, true] {
            let (header, frame) = Spec::new(1, 2, ipv6, tcp, 5000).partial(1000);
            assert_ne!(header.gso_type, vnet::GSO_NONE);
            assert_eq!(host.send(&header, &frame), Outcome::Local);
            assert_eq!(given_back(host), [(header, frame)]);
        }
    }
    assert_eq!(host.dropped(), []);
    assert!(host.wire.sent.is_empty());
    let traffic = &host.port().stats.traffic;
    assert_eq!((traffic.frames_local.get(), traffic.frames_out.get()), (4, 0));
    assert!(traffic.bytes_local.get() > 20_000);
    // Nobody gets a frame of its own.
    assert_eq!(host.send_whole(&other(mac(1), mac(1), 60)), Outcome::Done);
    assert_eq!(host.dropped(), [(DropReason::OutDestinationLocal, At::Port, 1)]);
}

#[test]
fn a_group_frame_goes_back_once_and_to_every_other_host() {
    let mut lab = switched();
    let host = &mut lab.hosts[0];
    let (header, mut frame) = Spec::new(1, 17, false, false, 4000).partial(1000);
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    assert_eq!(host.send(&header, &frame), Outcome::Done);
    // Here as it came, elsewhere in segments with whole checksums.
    assert_eq!(given_back(host), [(header, frame.clone())]);
    let sent = host.wire.datagrams();
    assert_eq!(sent.len(), 2 * cut(&header, &frame).len());
    assert!(sent.iter().all(|(_, datagram)| checksums_verify(&datagram[8..])));
    // With a queue that is full before the first copy the frame is offered once more, but not
    // given back again.
    host.put_endpoint(200, Place::Vtep(VtepKey(1)));
    for _ in 0..DATAGRAMS {
        host.offer(&PLAIN, &other(mac(200), mac(1), 50));
    }
    let full = host.full;
    let short = other(MacAddr::BROADCAST, mac(1), 50);
    host.send_whole(&short);
    assert_eq!((host.full - full, given_back(host)), (1, vec![(PLAIN, short.clone())]));
    assert_eq!(host.dropped(), []);
    // The option `broadcast` is about other hosts.
    host.set_network(|network| network.flood_broadcast = false);
    assert_eq!(host.send_whole(&short), Outcome::Local);
    assert_eq!(given_back(host).len(), 1);
    assert_eq!(host.dropped(), []);
}

#[test]
fn questions_for_neighbors_are_answered() {
    type Make = fn(u8, Option<u8>, u8) -> Vec<u8>;
    for make in [arp_request as Make, solicitation as Make] {
        let mut lab = switched();
        let host = &mut lab.hosts[0];
        for sender in [Some(1), None] {
            assert!(matches!(host.send_whole(&make(1, sender, 2)), Outcome::Reply(_)));
        }
        // Its own address, and one that nobody has.
        assert_eq!(host.send_whole(&make(1, None, 1)), Outcome::Done);
        assert_eq!(host.send_whole(&make(1, Some(1), 99)), Outcome::Done);
        assert_eq!(host.counters.suppressed.get(), 2);
        assert_eq!(host.counters.probes_ignored.get(), 1);
        assert_eq!(host.dropped(), [(DropReason::OutNeighborUnknown, At::Port, 1)]);
        assert_eq!(given_back(host), []);
    }
}

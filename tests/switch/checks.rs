//! Whose frames are taken from the underlay, and what is learned of them.

use fdb::{Delta, Millis, Place, SourceCheck, VtepKey};
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::learn::{CAPACITY, Learned, SHARE, WINDOW_MS};

use super::frames::{Spec, mac, other};
use super::lab::{self, Arrived, At, Host, Lab, NETWORK, Options, vtep_address_v6};
use super::received;

#[test]
fn a_mac_counts_for_its_owner_whichever_address_it_sends_from() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    // The IPv6 VTEP of the second host has a slot of its own.
    host.set_vtep(9, |vtep| {
        vtep.address = vtep_address_v6(1);
        vtep.host = Some("host-1".into());
    });
    host.set_vtep(1, |vtep| vtep.accept = vec![[203, 0, 113, 7].into()]);
    let frame = Spec::new(17, 1, false, true, 10).whole();
    let mut sources = vec![lab::vtep_address(1), vtep_address_v6(1), [203, 0, 113, 7].into()];
    for source in sources.drain(..) {
        host.receive(&[Arrived { source, ..Arrived::frame(1, &frame) }]);
    }
    assert_eq!(received(host).len(), 3);
    assert_eq!(host.dropped(), []);
    host.receive(&[Arrived::frame(2, &frame)]);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 1)]);
}

#[test]
fn one_bad_frame_of_a_train_is_dropped_alone() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    let good = |sequence| {
        let mut spec = Spec::new(17, 1, false, true, 100);
        spec.sequence = sequence;
        spec.ident = sequence as u16 / 100;
        spec.whole()
    };
    // The same MACs again after the spoofed one: a cached verdict must not let that one pass.
    let spoofed = Spec::new(33, 1, false, true, 100).whole();
    let frames = [good(7), good(107), spoofed.clone(), good(207), spoofed, good(307)];
    let mut train = Arrived::frame(1, &frames[0]);
    train.gro_size = train.bytes.len();
    for frame in &frames[1..] {
        train.bytes.extend(Arrived::frame(1, frame).bytes);
    }
    host.receive(&[train]);
    assert_eq!(received(host), [good(7), good(107), good(207), good(307)]);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 2)]);
    assert_eq!(host.counters.datagrams_in.get(), 6);
    // And no verdict outlives its batch: the owner moves, the old place is refused.
    host.put_endpoint(17, Place::Vtep(VtepKey(2)));
    host.receive(&[Arrived::frame(1, &good(7))]);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 3)]);
}

#[test]
fn a_source_without_owner_passes_counted_and_unlearned_unless_strict() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    let frame = Spec::new(200, 1, false, true, 10).whole();
    host.receive(&[Arrived::frame(1, &frame), Arrived::frame(1, &frame)]);
    assert_eq!(host.taps.written.len(), 2);
    assert_eq!(host.counters.source_pending.get(), 2);
    assert_eq!(host.learn.drain().count(), 0);
    assert_eq!(host.dropped(), []);
    host.set_network(|network| network.source_check = SourceCheck::Strict);
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(host.dropped(), [(DropReason::InSourcePending, At::Port, 1)]);
}

#[test]
fn addresses_are_learned_moved_and_confirmed_no_more_than_needed() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.learning = true);
    let frame = Spec::new(200, 1, false, true, 10).whole();
    let seen = |vtep| Learned { network: NETWORK, mac: mac(200), vtep: VtepKey(vtep) };
    let learn = |host: &mut Host| {
        let all: Vec<Learned> = host.learn.drain().collect();
        let at = Millis(host.now_ms);
        host.apply(all.iter().map(|l| Delta::Learn {
            network: l.network,
            mac: l.mac,
            vtep: l.vtep,
            at,
        }));
        all
    };
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(learn(host), [seen(1)]);
    assert_eq!(host.counters.source_pending.get(), 0);
    // Known and fresh: nothing is told, up to the confirmation's age.
    for now in [0, 5000, 9999] {
        host.now_ms = now;
        host.receive(&[Arrived::frame(1, &frame)]);
        assert_eq!(learn(host), []);
    }
    host.now_ms = 10_000;
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(learn(host), [seen(1)]);
    host.now_ms = 19_999;
    host.receive(&[Arrived::frame(1, &frame)]);
    assert_eq!(learn(host), [], "confirmed at 10 s");
    // A move is told at once, and the way back goes there.
    host.receive(&[Arrived::frame(2, &frame)]);
    assert_eq!(learn(host), [seen(2)]);
    host.send_whole(&Spec::new(1, 200, false, true, 10).whole());
    assert_eq!(host.wire.sent[0].destination, 2);
    // What the store says is not unlearned by a frame.
    host.receive(&[Arrived::frame(2, &Spec::new(17, 1, false, true, 10).whole())]);
    assert_eq!(learn(host), []);
    assert_eq!(host.dropped(), [(DropReason::InSourceSpoofed, At::Port, 1)]);
    // Age brings it back to unknown.
    host.apply([Delta::Age { now: Millis(400_000), max_age: Millis(300_000) }]);
    host.send_whole(&Spec::new(1, 200, false, true, 10).whole());
    assert_eq!(host.dropped().len(), 2);
    assert_eq!(host.dropped()[0], (DropReason::OutDestinationUnknown, At::Port, 1));
}

/// A frame of source `i` of many.
fn of_source(i: usize) -> Vec<u8> {
    let mut frame = other(mac(1), mac(200), 50);
    frame[6..9].copy_from_slice(&[2, (i >> 8) as u8, i as u8]);
    frame
}

#[test]
fn a_vtep_that_floods_sources_leaves_room_for_the_others() {
    let mut lab = Lab::new(3, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.learning = true);
    let share = usize::from(SHARE);
    let flood: Vec<Arrived> = (0..share + 1000).map(|i| Arrived::frame(1, &of_source(i))).collect();
    host.receive(&flood);
    // Many frames of one source are told of once.
    host.receive(&vec![Arrived::frame(2, &of_source(9999)); 100]);
    let told: Vec<Learned> = host.learn.drain().collect();
    assert_eq!(told.iter().filter(|learned| learned.vtep == VtepKey(1)).count(), share);
    assert_eq!(told.iter().filter(|learned| learned.vtep == VtepKey(2)).count(), 1);
    assert_eq!(host.counters.learn_limited.get(), 1000);
    assert_eq!(host.counters.learn_overflow.get(), 0);
    assert_eq!(host.taps.written.len(), share + 1100, "the frames go on");
    // The next window has a share of its own.
    host.now_ms += WINDOW_MS;
    host.receive(&[Arrived::frame(1, &of_source(5000))]);
    assert_eq!(host.learn.drain().count(), 1);
}

#[test]
fn a_full_learn_queue_is_counted_and_the_frames_pass() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.learning = true);
    let count = CAPACITY + 5;
    for chunk in (0..count).collect::<Vec<_>>().chunks(usize::from(SHARE)) {
        host.now_ms += WINDOW_MS;
        host.receive(&chunk.iter().map(|i| Arrived::frame(1, &of_source(*i))).collect::<Vec<_>>());
    }
    assert_eq!(host.counters.learn_overflow.get(), 5);
    assert_eq!(host.taps.written.len(), count);
}

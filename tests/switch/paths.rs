//! What the underlay refuses: segmentation, length, room; and VTEPs that leave.

use fdb::{Delta, VtepKey};
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::outbound::Outcome;

use super::frames::{Spec, cut};
use super::lab::{self, At, Lab, Options, Weather, vtep_address_v6};
use super::{MAX_FRAME, PLAIN, nothing_dropped, received};

#[test]
fn refused_segmentation_is_repeated_singly_and_remembered() {
    for refusal in [libc::EINVAL, libc::EIO] {
        let mut lab = Lab::new(2, Options::default());
        let spec = Spec::new(1, 17, false, true, 10_000);
        let (header, frame) = spec.partial(1000);
        let host = &mut lab.hosts[0];
        host.now_ms = 1000;
        host.wire.faults.push_back(refusal);
        host.send(&header, &frame);
        assert_eq!(host.counters.gso_fallbacks.get(), 1);
        assert!(host.wire.sent.iter().all(|sent| sent.segment == 0));
        host.send(&header, &frame);
        assert_eq!(host.counters.gso_fallbacks.get(), 1, "remembered");
        assert!(host.wire.sent.iter().all(|sent| sent.segment == 0));
        assert_eq!(host.counters.datagrams_out.get(), 20);
        host.now_ms = 62_000;
        host.send(&header, &frame);
        assert!(host.wire.sent.last().unwrap().segment != 0, "tried again after a minute");
        lab.carry(0, &mut Weather::fair(true));
        let once = cut(&header, &frame);
        assert_eq!(received(&lab.hosts[1]), [once.clone(), once.clone(), once].concat());
        nothing_dropped(&lab);
    }
}

#[test]
fn a_path_that_shrinks_teaches_its_mtu() {
    for segments in [64, 1] {
        let mut lab = Lab::new(2, Options { segments, ..Options::default() });
        let host = &mut lab.hosts[0];
        let spec = Spec::new(1, 17, false, true, 20_000);
        let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
        host.wire.mtu = 1400;
        host.send(&header, &frame);
        // A train that is too long leaves nothing in the error queue: its datagrams are tried.
        let lost = host.dropped();
        assert_eq!(lost.len(), 1);
        assert_eq!((lost[0].0, lost[0].1), (DropReason::OutPathMtu, At::Worker));
        let dropped = lost[0].2 + host.counters.datagrams_out.get();
        assert_eq!(dropped, cut(&header, &frame).len() as u64, "each sent or dropped");
        assert!(host.counters.underlay_errors.get() > 0);
        host.wire.sent.clear();
        host.send(&header, &frame);
        let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
        assert_eq!(longest, Some(1400 - 28), "cut to what was learned");
        assert_eq!(host.dropped(), lost);
        assert!(matches!(
            host.send_whole(&Spec::new(1, 17, false, false, 1390).whole()),
            Outcome::Reply(_)
        ));
        // Forgotten when the kernel forgets.
        host.wire.mtu = 1500;
        host.now_ms = 601_000;
        host.outbound.paths.expire(host.now_ms);
        host.wire.sent.clear();
        host.send(&header, &frame);
        let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
        assert_eq!(longest, Some(1500 - 28));
    }
}

#[test]
fn a_train_too_long_for_the_path_is_fragmented_where_df_is_clear() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.set_network(|network| network.df = false);
    host.wire.mtu = 1400;
    let spec = Spec::new(1, 17, false, true, 20_000);
    let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
    host.send(&header, &frame);
    assert!(host.wire.sent.iter().all(|sent| sent.segment == 0));
    lab.carry(0, &mut Weather::fair(false));
    assert_eq!(received(&lab.hosts[1]), cut(&header, &frame));
    nothing_dropped(&lab);
}

#[test]
fn a_forged_path_mtu_has_a_floor() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    host.outbound.paths.learn_mtu(lab::vtep_address(1), 60, 0);
    host.wire.sent.clear();
    let (header, frame) = Spec::new(1, 17, false, true, 20_000).partial(1398);
    host.send(&header, &frame);
    let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
    assert_eq!(longest, Some(552 - 28));
}

#[test]
fn a_pending_error_does_not_cost_the_next_datagram() {
    for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EMSGSIZE] {
        let mut lab = Lab::new(3, Options::default());
        let host = &mut lab.hosts[0];
        // Told by ICMP about an earlier datagram to another VTEP.
        host.wire.faults.push_back(errno);
        host.wire.errors.push((lab::vtep_address(2), 1400));
        host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
        assert_eq!(host.wire.sent.len(), 1, "errno {errno}");
        assert_eq!(host.counters.underlay_errors.get(), 1);
        assert_eq!(host.dropped(), []);
    }
}

#[test]
fn a_full_socket_is_waited_for_once() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    // Full, then room again: nothing is lost.
    host.wire.faults.push_back(libc::EAGAIN);
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    assert_eq!((host.wire.sent.len(), host.wire.waits), (1, 1));
    assert_eq!(host.dropped(), []);
    // Says that there is room but has none: one retry.
    host.wire.faults.extend([libc::ENOBUFS, libc::ENOBUFS]);
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    assert_eq!(host.dropped(), [(DropReason::OutUnderlayBusy, At::Worker, 1)]);
    // Stays full: one wait for the whole flush, and every datagram counted.
    host.wire.faults.extend([libc::EAGAIN; 400]);
    host.wire.wakes = false;
    host.wire.waits = 0;
    for i in 0..200 {
        let mut spec = Spec::new(1, 17, false, false, 10 + i);
        spec.port += i as u16;
        host.offer(&PLAIN, &spec.whole());
    }
    host.flush();
    assert_eq!(host.wire.waits, 1);
    assert_eq!(host.dropped(), [(DropReason::OutUnderlayBusy, At::Worker, 201)]);
    // The next flush waits anew.
    host.wire.faults.clear();
    host.wire.faults.push_back(libc::EAGAIN);
    host.wire.wakes = true;
    host.send_whole(&Spec::new(1, 17, false, true, 10).whole());
    assert_eq!((host.wire.sent.len(), host.wire.waits), (2, 2));
}

#[test]
fn interrupted_and_partly_taken_calls_go_on() {
    let mut lab = Lab::new(2, Options { segments: 1, ..Options::default() });
    let host = &mut lab.hosts[0];
    host.wire.faults.extend([libc::EINTR, 0, libc::EINTR, libc::EINTR]);
    host.wire.per_call = 3;
    for i in 0..200 {
        host.offer(&PLAIN, &Spec::new(1, 17, false, false, i).whole());
    }
    host.flush();
    let lens: Vec<usize> = host.wire.sent.iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(lens, (0..200).map(|i| 50 + i).collect::<Vec<_>>());
    assert_eq!(host.counters.datagrams_out.get(), 200);
    assert_eq!(host.counters.messages_out.get(), 200);
    assert_eq!(host.dropped(), []);
}

#[test]
fn one_refused_message_does_not_take_the_others_with_it() {
    let mut lab = Lab::new(3, Options { fan: 1, ..Options::default() });
    let host = &mut lab.hosts[0];
    host.wire.faults.extend([0, libc::EPERM]);
    host.wire.per_call = 1;
    for to in [17, 33, 17] {
        host.offer(&PLAIN, &Spec::new(1, to, false, false, usize::from(to)).whole());
    }
    host.offer(&PLAIN, &Spec::new(1, 33, false, false, 900).whole());
    host.flush();
    // Four lengths to two VTEPs: of the three messages the second, one datagram, is refused.
    let dropped: u64 = host.dropped().iter().map(|(.., count)| count).sum();
    assert_eq!(host.dropped()[0].0, DropReason::OutUnderlayError);
    assert_eq!(dropped + host.wire.datagrams().len() as u64, 4);
    assert_eq!(host.counters.datagrams_out.get(), host.wire.datagrams().len() as u64);
}

#[test]
fn a_vtep_that_leaves_takes_what_was_known_of_its_path() {
    let mut lab = Lab::new(2, Options::default());
    let host = &mut lab.hosts[0];
    let spec = Spec::new(1, 17, false, true, 20_000);
    let (header, frame) = spec.partial((MAX_FRAME - spec.header_len()) as u16);
    host.send(&header, &frame);
    host.outbound.paths.learn_mtu(lab::vtep_address(1), 1300, 0);
    host.apply([Delta::RemoveVtep { key: VtepKey(1) }]);
    host.send(&header, &frame);
    assert_eq!(host.dropped(), [(DropReason::OutVtepUnknown, At::Port, 1)]);
    // The slot comes back with another host behind it, over IPv6.
    host.set_vtep(1, |vtep| vtep.address = vtep_address_v6(5));
    host.wire.sent.clear();
    host.send(&header, &frame);
    assert!(host.wire.sent.iter().all(|sent| sent.flavor & 1 == 1));
    let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
    assert_eq!(longest, Some(1500 - 48));
    // And again the first one, without passing through a removal.
    host.set_vtep(1, |vtep| vtep.checksum = false);
    host.wire.sent.clear();
    host.send(&header, &frame);
    assert!(host.wire.sent.iter().all(|sent| sent.flavor & 5 == 0 && sent.segment == 0));
    let longest = host.wire.datagrams().iter().map(|(_, d)| d.len()).max();
    assert_eq!(longest, Some(1500 - 28), "nothing of the old path is left");
}

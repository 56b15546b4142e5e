//! Arbitrary bytes: nothing panics, and every frame ends in one way that a counter knows.

use std::time::{Duration, Instant};

use encap::vnet;
use fdb::SourceCheck;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use skybridge::datapath::outbound::Outcome;

use super::frames::{Spec, arp_request, other, solicitation};
use super::lab::{Arrived, Host, Lab, Options, Weather};

/// For each direction.
const TIME: Duration = Duration::from_millis(1500);

/// A frame that is right, or nearly, or not at all; with a virtio header of the same kind.
fn some_frame(random: &mut StdRng, from: u8, to: u8) -> (vnet::Header, Vec<u8>) {
    let payload = [0, 10, 60, 1000, 1450, 9000, 65_000][random.random_range(0..7)];
    let (ipv6, tcp) = (random.random(), random.random());
    let mut spec = Spec::new(from, to, ipv6, tcp, payload);
    spec.tos = random.random();
    let gso_size = if payload > 1000 { random.random_range(0..1500) } else { 0 };
    let (mut header, mut frame) = match random.random_range(0..8) {
        0 => (vnet::Header::NONE, arp_request(from, Some(from), to)),
        1 => (vnet::Header::NONE, solicitation(from, Some(from), to)),
        2 => (vnet::Header::NONE, other(super::mac(to), super::mac(from), payload)),
        3 => {
            let mut bytes = vec![0; random.random_range(0..300)];
            random.fill_bytes(&mut bytes);
            (vnet::Header::NONE, bytes)
        }
        _ => spec.partial(gso_size),
    };
    // Most of what makes a header wrong lies in the first bytes.
    for _ in 0..random.random_range(0..4) {
        let span = frame.len().min(if random.random() { 64 } else { 12 });
        if span != 0 {
            let at = random.random_range(0..span);
            frame[at] = random.random();
        }
    }
    if random.random_range(0..6) == 0 {
        let len = random.random_range(0..=frame.len());
        frame.truncate(len);
    }
    if random.random_range(0..6) == 0 {
        let mut bytes = header.emit();
        bytes[random.random_range(0..10)] = random.random();
        header = vnet::Header::parse(&bytes);
    }
    (header, frame)
}

fn drops(host: &Host) -> u64 {
    host.dropped().iter().map(|(.., count)| count).sum()
}

#[test]
fn every_frame_out_is_queued_or_answered_or_dropped() {
    let begun = Instant::now();
    let mut seen = [0_u64; 5];
    for seed in 0.. {
        if begun.elapsed() > TIME && seed >= 4 {
            break;
        }
        let mut random = StdRng::seed_from_u64(seed);
        let segments = if seed % 3 == 0 { 1 } else { 64 };
        // One VTEP beside ours, so that a flood is one copy.
        let mut lab = Lab::new(2, Options { segments, ..Options::default() });
        lab.hosts[0].set_network(|network| {
            network.flood_unknown = random.random();
            network.flood_arp = random.random();
            network.flood_broadcast = random.random();
            network.flood_multicast = random.random();
        });
        let local: bool = random.random();
        lab.hosts[0].port().local = local;
        for round in 0..40 {
            let host = &mut lab.hosts[0];
            host.now_ms += 50;
            for _ in 0..random.random_range(1..50) {
                let (header, frame) = some_frame(&mut random, 1, 17);
                host.taps.written.clear();
                let before = (
                    host.frames_out(),
                    host.replies.len(),
                    drops(host),
                    host.counters.suppressed_local.get() + host.counters.probes_ignored.get(),
                    host.counters.too_big_answers.get(),
                    host.counters.datagrams_out.get(),
                );
                let outcome = host.offer(&header, &frame);
                let queued = host.frames_out() != before.0;
                let replied = host.replies.len() != before.1;
                let dropped = drops(host) - before.2;
                let silent = host.counters.suppressed_local.get()
                    + host.counters.probes_ignored.get()
                    - before.3;
                // The answer to what is too big accompanies its drop.
                let told = host.counters.too_big_answers.get() - before.4;
                let ways = u64::from(queued) + u64::from(replied) + dropped + silent - told;
                // A group frame is for this host and for others, where it may still be dropped.
                let kept = host.taps.written.len() as u64;
                let whole = host.taps.written.iter().all(|written| written.frame == frame);
                assert!(kept <= u64::from(local) && whole, "seed {seed} round {round}");
                let ways = if kept != 0 && ways <= 1 { 1 } else { ways };
                assert_eq!(ways, 1, "seed {seed} round {round}: {header:?} {frame:02x?}");
                assert_eq!(replied, matches!(outcome, Outcome::Reply(_)));
                for (count, way) in
                    seen.iter_mut().zip([queued, replied, dropped != 0, kept != 0, silent != 0])
                {
                    *count += u64::from(way);
                }
            }
            host.flush();
            assert_eq!(host.frames_out(), host.counters.datagrams_out.get(), "queued is sent");
            let weather = &mut Weather::fair(random.random());
            lab.carry(0, weather);
            // What is flooded or sent in good order passes or is dropped for its destination.
            let there = &lab.hosts[1];
            assert_eq!(there.counters.datagrams_in.get(), there.frames_in() + drops(there));
            lab.hosts[1].taps.written.clear();
            lab.hosts[0].replies.clear();
        }
    }
    assert!(seen[..4].iter().all(|count| *count > 100), "{seen:?}");
}

#[test]
fn every_datagram_in_is_delivered_or_dropped() {
    let begun = Instant::now();
    let mut seen = [0_u64; 2];
    for seed in 0.. {
        if begun.elapsed() > TIME && seed >= 4 {
            break;
        }
        let mut random = StdRng::seed_from_u64(seed);
        let mut lab = Lab::new(3, Options { coalesce: seed % 3 != 0, ..Options::default() });
        let host = &mut lab.hosts[0];
        host.set_network(|network| {
            network.learning = random.random();
            network.source_check = [SourceCheck::Mac, SourceCheck::MacIp, SourceCheck::Strict]
                [random.random_range(0..3)];
        });
        for _ in 0..20 {
            let arrived: Vec<Arrived> = (0..random.random_range(1..40))
                .map(|_| {
                    let from = random.random_range(1..3);
                    let (_, frame) = some_frame(&mut random, from as u8 * 16 + 1, 1);
                    let mut datagram = Arrived::frame(from, &frame);
                    if random.random_range(0..4) == 0 {
                        let (_, next) = some_frame(&mut random, from as u8 * 16 + 1, 2);
                        datagram.gro_size = datagram.bytes.len();
                        datagram.bytes.extend(Arrived::frame(from, &next).bytes);
                        datagram.bytes.truncate(65_507);
                    }
                    if random.random_range(0..8) == 0 && !datagram.bytes.is_empty() {
                        // Not shorter than the most elements of one train ask for.
                        datagram.gro_size =
                            random.random_range(datagram.bytes.len().div_ceil(64)..=70_000);
                    }
                    if random.random_range(0..8) == 0 {
                        datagram.bytes[random.random_range(0..8)] = random.random();
                    }
                    datagram.tos = random.random();
                    datagram
                })
                .collect();
            host.receive(&arrived);
            host.learn.drain().for_each(drop);
            let (elements, accepted) = (host.counters.datagrams_in.get(), host.frames_in());
            assert_eq!(elements, accepted + drops(host), "seed {seed}");
            seen = [seen[0] + host.taps.written.len() as u64, seen[1].max(drops(host))];
            host.taps.written.clear();
        }
    }
    assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
}

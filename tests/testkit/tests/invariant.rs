//! The bodies of the fuzz targets on arbitrary and on half-right input, for a bounded time.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use testkit::invariant;

/// The time of each target.
const TIME: Duration = Duration::from_secs(3);

/// Runs `body` on inputs of `strategy` until the time is over.
fn run(strategy: impl Strategy<Value = Vec<u8>>, body: fn(&[u8])) {
    let until = Instant::now() + TIME;
    while Instant::now() < until {
        let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
        let outcome = TestRunner::new(config).run(&strategy, |input| {
            body(&input);
            Ok(())
        });
        if let Err(err) = outcome {
            panic!("{err}");
        }
    }
}

/// A frame whose headers are nearly right, so that the deeper code is reached: TCP or UDP over IPv4
/// or IPv6, lengths and types sometimes off by little.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 1000..4000),
    ];
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), -1_i32..=1, payload);
    let noise = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (shape, noise).prop_map(|((ipv6, tcp, tagged, off, payload), noise)| {
        let mut frame = vec![2, 0, 0x5e, 0, 0x53, 1, 2, 0, 0x5e, 0, 0x53, 2];
        if tagged {
            frame.extend([0x81, 0x00, 0x00, 0x05]);
        }
        let l4_len = if tcp { 20 } else { 8 };
        let len = i32::try_from(l4_len + payload.len()).expect("a payload is short") + off;
        let protocol = if tcp { 6 } else { 17 };
        if ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(u16::try_from(len).unwrap_or(0).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([0x20; 32]);
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(u16::try_from(len + 20).unwrap_or(0).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend([198, 51, 100, 1, 198, 51, 100, 2]);
        }
        frame.extend([0x10, 0x00, 0x20, 0x00]);
        if tcp {
            frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        } else {
            frame.extend(u16::try_from(len).unwrap_or(0).to_be_bytes());
            frame.extend([0, 0]);
        }
        frame.extend(payload);
        if let Some((at, byte)) = noise {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        frame
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

#[test]
fn received_datagrams() {
    let train = (any::<u16>(), 500_u16..2000, prop::collection::vec(frame(), 1..6), any::<bool>())
        .prop_map(|(gro, mtu, frames, fitting)| {
            let gro = if fitting { u16::try_from(8 + frames[0].len()).unwrap_or(0) } else { gro };
            let mut input = [gro.to_be_bytes(), mtu.to_be_bytes()].concat();
            for frame in frames {
                input.extend([8, 0, 0, 0, 0, 0, 7, 0]);
                input.extend(frame);
            }
            input
        });
    run(prop_oneof![3 => train, 1 => bytes()], invariant::received_datagram);
}

#[test]
fn frames_to_send() {
    let header = (0_u8..4, prop::sample::select(vec![0_u8, 1, 4, 5, 0x81, 3]), 0_u16..1500);
    let offsets = (prop::sample::select(vec![34_u16, 54, 38, 58, 0, 60_000]), 0_u16..20);
    let sent = (header, offsets, 60_u16..2000, frame()).prop_map(
        |((flags, gso_type, size), (start, offset), max_frame, frame)| {
            let mut input = vec![flags, gso_type];
            for field in [0, size, start, offset, 0] {
                input.extend(field.to_le_bytes());
            }
            input.extend(max_frame.to_be_bytes());
            input.extend(frame);
            input
        },
    );
    run(prop_oneof![3 => sent, 1 => bytes()], invariant::frame_to_send);
}

#[test]
fn frames_seen() {
    let seen = (any::<u16>(), frame()).prop_map(|(mtu, frame)| {
        let mut input = mtu.to_be_bytes().to_vec();
        input.extend(frame);
        input
    });
    run(prop_oneof![3 => seen, 1 => bytes()], invariant::frame_seen);
}

#[test]
fn store_entries() {
    let keys = prop::sample::select(vec![
        "hosts/h1",
        "names/blue",
        "networks/0123456789abcdef",
        "vnis/7",
        "vnis/007",
        "endpoints/0123456789abcdef/0123456789abcdef",
        "ipam/0123456789abcdef/blocks/198.51.100.0/26",
        "ipam/0123456789abcdef/addresses/198.51.100.1",
        "ipam/0123456789abcdef/resting/2001:db8::1",
    ]);
    let values = prop_oneof![
        Just(b"{}".to_vec()),
        Just(br#"{"version":1}"#.to_vec()),
        Just(br#"{"version":4294967296,"host":"h1","name":"blue","vni":7}"#.to_vec()),
        bytes(),
    ];
    let entry = (keys, values).prop_map(|(key, value)| [key.as_bytes(), b"\n", &value].concat());
    run(prop_oneof![3 => entry, 1 => bytes()], invariant::store_entry);
}

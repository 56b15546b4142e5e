//! The invariants on random and mutated structured input, for a bounded time each. A failure names
//! the seed; `ENCAP_FUZZ_SEED` runs that one again.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use encap::ethernet::{self, EtherType};
use encap::{MacAddr, Vni, arp, icmpv6, ipv6, ndp, tcp, vxlan};
use support::{MAC_A, Spec, invariant, payload};

const TIME: Duration = Duration::from_secs(2);
const COUNT: u64 = 200_000;

/// xorshift64*, enough to vary input.
struct Dice(u64);

impl Dice {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Changes some bytes, or the length.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            match self.below(6) {
                0 if !bytes.is_empty() => {
                    let at = self.below(bytes.len());
                    bytes.truncate(at);
                }
                1 => {
                    let more = self.below(20);
                    bytes.extend(payload(more, 3));
                }
                _ if !bytes.is_empty() => {
                    // Headers are where it matters.
                    let limit = if self.one_in(4) { bytes.len() } else { bytes.len().min(100) };
                    let at = self.below(limit);
                    let value = self.number() as u8;
                    bytes[at] = self.pick(&[0, 1, 4, 0x45, 0x60, 0x7f, 0x80, 0xff, value]);
                }
                _ => {}
            }
        }
    }

    fn spec(&mut self, most: usize) -> Spec {
        let len = self.below(most);
        let options = 4 * self.pick(&[0, 0, 3, 3, 10]);
        Spec {
            v6: self.one_in(2),
            udp: self.one_in(2),
            tags: self.pick(&[0, 0, 0, 1, 2]),
            tos: self.pick(&[0, 2, 3]),
            dont_fragment: !self.one_in(3),
            ident: self.number() as u16,
            source_port: 40_000 + self.below(3) as u16,
            flags: self.pick(&[tcp::ACK, tcp::ACK, tcp::ACK | tcp::PSH, 0x91, 0x55]),
            options: self.bytes(options),
            payload: payload(len, self.number() as u32),
            ..Spec::default()
        }
    }

    fn frame(&mut self, most: usize) -> Vec<u8> {
        let spec = self.spec(most);
        let mut frame = if self.one_in(4) { spec.partial() } else { spec.wire() };
        if self.one_in(6) {
            frame.resize(frame.len().max(60), 0);
        }
        frame
    }

    fn question(&mut self) -> Vec<u8> {
        if self.one_in(2) {
            let request = arp::Repr {
                operation: arp::REQUEST,
                sender_mac: MAC_A,
                sender: [192, 0, 2, 1].into(),
                target_mac: MacAddr::ZERO,
                target: [192, 0, 2, 2].into(),
            };
            let mut frame = ethernet::emit(MacAddr::BROADCAST, MAC_A, EtherType::ARP).to_vec();
            frame.extend(request.emit());
            return frame;
        }
        let source = self.pick(&["::", "2001:db8::1"]).parse().unwrap();
        let target: std::net::Ipv6Addr = "2001:db8::2".parse().unwrap();
        let destination = ndp::solicited_node(target);
        let mut message = vec![ndp::SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        if self.one_in(2) {
            message.extend([1, 1, 0, 0, 0x5e, 0, 0x53, 1]);
        }
        if self.one_in(4) {
            self.mutate(&mut message);
        }
        if message.len() >= 4 {
            message[2..4].fill(0);
            let check = icmpv6::sum(source, destination, &message).finish();
            message[2..4].copy_from_slice(&check.to_be_bytes());
        }
        let header = ipv6::Header {
            traffic_class: 0,
            flow_label: 0,
            next_header: icmpv6::PROTOCOL,
            hop_limit: 255,
            source,
            destination,
        };
        let mut frame = ethernet::emit(MacAddr::BROADCAST, MAC_A, EtherType::IPV6).to_vec();
        frame.extend(header.emit(message.len()).unwrap());
        frame.extend(message);
        frame
    }
}

/// Runs `body` on what `make` makes until the time or the count is used up.
fn run(name: &str, body: fn(&[u8]), make: impl Fn(&mut Dice) -> Vec<u8>) {
    let given = std::env::var("ENCAP_FUZZ_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let start = Instant::now();
    let seeds = given.map_or(1..COUNT, |seed| seed..seed + 1);
    for seed in seeds {
        // Seeds differ little; a first multiplication spreads them.
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let input = if dice.one_in(8) {
            let len = dice.below(300);
            dice.bytes(len)
        } else {
            make(&mut dice)
        };
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| body(&input))) {
            let head = &input[..input.len().min(256)];
            panic_with(name, seed, head, failure);
        }
        if start.elapsed() > TIME {
            break;
        }
    }
}

#[allow(clippy::print_stderr, reason = "a failing test says how to repeat it")]
fn panic_with(name: &str, seed: u64, head: &[u8], failure: Box<dyn std::any::Any + Send>) -> ! {
    eprintln!("{name} failed with ENCAP_FUZZ_SEED={seed}; input begins {head:02x?}");
    resume_unwind(failure)
}

#[test]
fn vxlan_train() {
    run("vxlan_train", invariant::vxlan_train, |dice| {
        let mut datagram = Vec::new();
        let mut stride = 0;
        let spec = dice.spec(400);
        for _ in 0..=dice.below(4) {
            datagram.extend(vxlan::emit(Vni::MAX));
            datagram.extend(spec.wire());
            if stride == 0 {
                stride = datagram.len();
            }
        }
        dice.mutate(&mut datagram);
        let near = dice.below(stride);
        let size = dice.pick(&[0, stride, stride, near, 1, 65_535]);
        let mut input = (size as u16).to_be_bytes().to_vec();
        input.extend(datagram);
        input
    });
}

#[test]
fn frame() {
    run("frame", invariant::frame, |dice| {
        let mut frame = dice.frame(300);
        dice.mutate(&mut frame);
        frame
    });
}

#[test]
fn arp_ndp() {
    run("arp_ndp", invariant::arp_ndp, |dice| {
        let mut frame = dice.question();
        if dice.one_in(2) {
            dice.mutate(&mut frame);
        }
        frame
    });
}

#[test]
fn vnet_segment() {
    run("vnet_segment", invariant::vnet_segment, |dice| {
        let most = dice.pick(&[100, 3000, 20_000]);
        let spec = dice.spec(most);
        let gso_size = dice.below(1600) as u16;
        let mut header = spec.vnet(dice.pick(&[gso_size, gso_size, 0])).emit().to_vec();
        let mut frame = spec.partial();
        if dice.one_in(3) {
            dice.mutate(&mut frame);
        }
        if dice.one_in(4) {
            let at = dice.below(header.len());
            header[at] = dice.number() as u8;
        }
        let near = dice.below(2000);
        let max_frame = dice.pick(&[1464, 1464, near, 65_535]) as u16;
        header.extend(max_frame.to_be_bytes());
        header.extend(frame);
        header
    });
}

#[test]
fn coalesce() {
    run("coalesce", invariant::coalesce, |dice| {
        let mut input = dice.pick(&[1450_u16, 1450, 1450, 500, 0]).to_be_bytes().to_vec();
        let mut specs = [dice.spec(600), dice.spec(600), dice.spec(60)];
        let tiny = dice.one_in(10);
        for _ in 0..dice.below(if tiny { 200 } else { 20 }) {
            let index = dice.below(3);
            let spec = &mut specs[index];
            if dice.one_in(12) {
                spec.flags ^= tcp::PSH;
            }
            let mut frame = if dice.one_in(20) { spec.partial() } else { spec.wire() };
            let len = spec.payload.len() as u32;
            if !dice.one_in(20) {
                spec.sequence = spec.sequence.wrapping_add(len);
                spec.ident = spec.ident.wrapping_add(1);
            }
            if dice.one_in(15) {
                let shorter = dice.below(spec.payload.len());
                spec.payload.truncate(shorter);
            }
            if dice.one_in(15) {
                dice.mutate(&mut frame);
            }
            if dice.one_in(15) {
                frame.resize(frame.len().max(60), 0xee);
            }
            let size = if dice.one_in(20) { dice.number() as u8 } else { 0 };
            input.extend((frame.len() as u16).to_be_bytes());
            input.extend([dice.pick(&[1, 1, 1, 2]), size]);
            input.extend(frame);
        }
        input
    });
}

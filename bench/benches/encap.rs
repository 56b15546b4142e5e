//! What the datapath does to the bytes of a frame.
//!
//! - `checksum`: the Internet checksum of a run of bytes.
//! - `flow hash`: of a TCP frame over IPv4 and over IPv6.
//! - `segment`: a TCP super-frame of 44 segments, from the TAP's header to wire frames. The payload
//!   is summed, headers are written, nothing is copied.
//! - `coalesce`: the same 44 segments, verified and joined to one super-frame.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::ops::Range;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::coalesce::{Coalescer, Seen, Sink};
use encap::segment::{self, Plan, Segments};
use encap::{checksum, flow, vnet};

const MTU: u16 = 1450;
const ETHERNET_LEN: usize = 14;
/// TCP with the timestamp option, as Linux sends it.
const TCP_LEN: usize = 32;
const SEGMENTS: usize = 44;

/// A TCP frame, checksum unfinished, with `payload_len` bytes of payload.
fn tcp_frame(ipv6: bool, payload_len: usize) -> Vec<u8> {
    let mut frame = vec![0, 0, 0x5e, 0, 0x53, 1, 0, 0, 0x5e, 0, 0x53, 2];
    let l4_len = (TCP_LEN + payload_len) as u16;
    let addresses_at = if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(l4_len.to_be_bytes());
        frame.extend([6, 64]);
        for host in [1, 2] {
            frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        ETHERNET_LEN + 8
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((l4_len + 20).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        let check = checksum::checksum(&frame[ETHERNET_LEN..]).to_be_bytes();
        frame[ETHERNET_LEN + 10..ETHERNET_LEN + 12].copy_from_slice(&check);
        ETHERNET_LEN + 12
    };
    let pseudo = checksum::Sum::of(&frame[addresses_at..]).u16(6).u16(l4_len).fold();
    frame.extend([0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 2, 0]);
    frame.extend(pseudo.to_be_bytes());
    frame.extend([0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend((0..payload_len).map(|i| (i * 7) as u8));
    frame
}

/// The virtio header and the frame of a super-frame of [`SEGMENTS`] segments.
fn super_frame() -> (vnet::Header, Vec<u8>) {
    let l3_len = 20;
    let gso_size = MTU - l3_len - TCP_LEN as u16;
    let header = vnet::Header {
        flags: vnet::NEEDS_CSUM,
        gso_type: vnet::GSO_TCPV4,
        hdr_len: ETHERNET_LEN as u16 + l3_len + TCP_LEN as u16,
        gso_size,
        csum_start: ETHERNET_LEN as u16 + l3_len,
        csum_offset: 16,
    };
    (header, tcp_frame(false, SEGMENTS * usize::from(gso_size)))
}

fn plan(header: &vnet::Header, frame: &mut [u8]) -> Segments {
    match segment::plan(header, frame, ETHERNET_LEN + usize::from(MTU)) {
        Ok(Plan::Segments(segments)) => segments,
        other => panic!("a super-frame gives segments, not {other:?}"),
    }
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64usize, 512, 1450, 9000, 65000] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| checksum::checksum(black_box(&bytes)))
        });
    }
    group.finish();
}

fn hashes(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow hash");
    for (name, ipv6) in [("ipv4", false), ("ipv6", true)] {
        let frame = tcp_frame(ipv6, 1000);
        group.bench_function(name, |b| b.iter(|| flow::hash(black_box(&frame))));
    }
    group.finish();
}

fn segmentation(c: &mut Criterion) {
    let (header, mut frame) = super_frame();
    let mut out = [0; 2048];
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function(BenchmarkId::new("tcp", SEGMENTS), |b| {
        b.iter(|| {
            let segments = plan(&header, black_box(&mut frame));
            for i in 0..segments.count() {
                black_box(segments.write(i, &frame, &mut out));
            }
            segments.count()
        })
    });
    group.finish();
}

/// Counts frames and the bytes of their pieces.
#[derive(Default)]
struct Count {
    frames: usize,
    bytes: usize,
}

impl Sink for Count {
    fn frame(&mut self, _: u32, _: &vnet::Header, headers: &[u8], pieces: &[Range<usize>]) {
        self.frames += 1;
        self.bytes += headers.len() + pieces.iter().map(ExactSizeIterator::len).sum::<usize>();
    }
}

fn coalescing(c: &mut Criterion) {
    let (header, mut frame) = super_frame();
    let segments = plan(&header, &mut frame);
    let (mut arena, mut frames) = (Vec::new(), Vec::new());
    for i in 0..segments.count() {
        let start = arena.len();
        arena.resize(start + segments.frame_len(i), 0);
        segments.write(i, &frame, &mut arena[start..]);
        frames.push(start..arena.len());
    }
    let mut coalescer = Coalescer::new();
    let mut run = || {
        let mut sink = Count::default();
        for range in &frames {
            let seen = coalescer.push(&arena, range.clone(), 0, 0, MTU, &mut sink);
            debug_assert_eq!(seen, Seen::Valid);
        }
        coalescer.flush(&arena, &mut sink);
        sink
    };
    // The figure is worth nothing unless the segments do become one super-frame again.
    let sink = run();
    assert_eq!((sink.frames, sink.bytes), (1, frame.len()));
    let mut group = c.benchmark_group("coalesce");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function(BenchmarkId::new("tcp", SEGMENTS), |b| b.iter(|| run().bytes));
    group.finish();
}

criterion_group!(benches, checksums, hashes, segmentation, coalescing);
criterion_main!(benches);

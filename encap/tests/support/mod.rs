//! Frames to test with, built and checked without the code under test where it matters: checksums
//! are the plain sum of RFC 1071.

#![allow(dead_code, reason = "every test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

pub(crate) mod invariant;

use std::ops::Range;

use encap::coalesce::{Coalescer, Seen, Sink};
use encap::ethernet::{self, EtherType};
use encap::segment::{self, Plan};
use encap::{Link, MacAddr, ipv4, ipv6, tcp, udp, vlan, vnet};

pub(crate) const MAC_A: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
pub(crate) const MAC_B: MacAddr = MacAddr([0, 0, 0x5e, 0, 0x53, 2]);

/// A TCP or UDP frame in words.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// 0 to 2.
    pub(crate) tags: usize,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) ident: u16,
    pub(crate) source_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u16,
    pub(crate) window: u16,
    /// A multiple of four bytes.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            tags: 0,
            tos: 0,
            ttl: 64,
            dont_fragment: true,
            ident: 0x1234,
            source_port: 40_000,
            sequence: 0xffff_f000,
            acknowledgement: 77,
            flags: tcp::ACK,
            window: 501,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: Vec::new(),
        }
    }
}

/// The folded, uncomplemented sum, the slow way.
pub(crate) fn plain_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

pub(crate) fn payload(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

impl Spec {
    pub(crate) fn tcp(len: usize) -> Self {
        Self { payload: payload(len, 7), ..Self::default() }
    }

    pub(crate) fn udp(len: usize) -> Self {
        Self { udp: true, payload: payload(len, 9), ..Self::default() }
    }

    pub(crate) fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    pub(crate) fn l4(&self) -> usize {
        self.l3() + if self.v6 { 40 } else { 20 }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    pub(crate) fn check_at(&self) -> usize {
        self.l4() + if self.udp { 6 } else { 16 }
    }

    /// The frame with its partial checksum: what a container leaves to offloads.
    pub(crate) fn partial(&self) -> Vec<u8> {
        let ip_type = if self.v6 { EtherType::IPV6 } else { EtherType::IPV4 };
        let types = [EtherType::SERVICE_VLAN, EtherType::VLAN];
        let mut types = types[2 - self.tags..].iter().copied().chain([ip_type]);
        let mut frame = ethernet::emit(MAC_B, MAC_A, types.next().unwrap()).to_vec();
        for next in types {
            frame.extend(vlan::emit(0, 42, next));
        }
        let mut transport = if self.udp {
            udp::emit(self.source_port, 53, self.payload.len()).unwrap().to_vec()
        } else {
            let header = tcp::Header {
                source: self.source_port,
                destination: 443,
                sequence: self.sequence,
                acknowledgement: self.acknowledgement,
                flags: self.flags,
                window: self.window,
            };
            let mut bytes = header.emit(self.options.len()).unwrap().to_vec();
            bytes.extend(&self.options);
            bytes
        };
        transport.extend(&self.payload);
        let protocol = if self.udp { udp::PROTOCOL } else { tcp::PROTOCOL };
        let addresses: Vec<u8> = if self.v6 {
            let header = ipv6::Header {
                traffic_class: self.tos,
                flow_label: 0x0001_2345,
                next_header: protocol,
                hop_limit: self.ttl,
                source: "2001:db8::1".parse().unwrap(),
                destination: "2001:db8::2".parse().unwrap(),
            };
            let header = header.emit(transport.len()).unwrap();
            frame.extend(header);
            header[8..].to_vec()
        } else {
            let header = ipv4::Header {
                tos: self.tos,
                ident: self.ident,
                dont_fragment: self.dont_fragment,
                ttl: self.ttl,
                protocol,
                source: [192, 0, 2, 1].into(),
                destination: [192, 0, 2, 2].into(),
            };
            let header = header.emit(transport.len()).unwrap();
            frame.extend(header);
            header[12..].to_vec()
        };
        let len = u16::try_from(transport.len()).unwrap().to_be_bytes();
        let sum = plain_sum(&[&addresses, &[0, protocol], &len]);
        frame.extend(transport);
        frame[self.check_at()..self.check_at() + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The frame with its complete checksum, as on the wire.
    pub(crate) fn wire(&self) -> Vec<u8> {
        let mut frame = self.partial();
        let mut check = !plain_sum(&[&frame[self.l4()..]]);
        if self.udp && check == 0 {
            check = 0xffff;
        }
        frame[self.check_at()..self.check_at() + 2].copy_from_slice(&check.to_be_bytes());
        frame
    }

    /// The virtio header of [`partial`](Self::partial); `gso_size` 0 for an ordinary frame.
    pub(crate) fn vnet(&self, gso_size: u16) -> vnet::Header {
        vnet::Header {
            flags: vnet::NEEDS_CSUM,
            gso_type: match (gso_size, self.udp, self.v6) {
                (0, ..) => vnet::GSO_NONE,
                (_, true, _) => vnet::GSO_UDP_L4,
                (_, false, false) => vnet::GSO_TCPV4,
                (_, false, true) => vnet::GSO_TCPV6,
            },
            hdr_len: self.header_len() as u16,
            gso_size,
            csum_start: self.l4() as u16,
            csum_offset: (self.check_at() - self.l4()) as u16,
        }
    }

    /// Two families, two transports, up to two tags.
    pub(crate) fn variants(base: &Self) -> Vec<Self> {
        let mut all = Vec::new();
        for v6 in [false, true] {
            for udp in [false, true] {
                for tags in 0..=2 {
                    all.push(Self { v6, udp, tags, ..base.clone() });
                }
            }
        }
        all
    }
}

/// Cuts a super-frame and gives the frames as they go on the wire.
pub(crate) fn cut(vnet: &vnet::Header, frame: &[u8], max_frame: usize) -> Vec<Vec<u8>> {
    let mut frame = frame.to_vec();
    match segment::plan(vnet, &mut frame, max_frame).unwrap() {
        Plan::Single => vec![frame],
        Plan::Segments(segments) => (0..segments.count())
            .map(|i| {
                let mut out = vec![0xa5; segments.frame_len(i)];
                assert_eq!(segments.write(i, &frame, &mut out), out.len());
                out
            })
            .collect(),
    }
}

/// The header for the same packet without its `l3` bytes of link layer.
pub(crate) fn unlinked(vnet: &vnet::Header, l3: usize) -> vnet::Header {
    let l3 = l3 as u16;
    let less = |field: u16| field.saturating_sub(l3);
    vnet::Header { hdr_len: less(vnet.hdr_len), csum_start: less(vnet.csum_start), ..*vnet }
}

/// As [`cut`], of the packet that begins at `l3` of the frame and is handed over by a TUN.
pub(crate) fn cut_packet(
    vnet: &vnet::Header,
    (frame, l3): (&[u8], usize),
    max_packet: usize,
) -> Vec<Vec<u8>> {
    let mut packet = frame[l3..].to_vec();
    match segment::plan_on(Link::None, &unlinked(vnet, l3), &mut packet, max_packet).unwrap() {
        Plan::Single => vec![packet],
        Plan::Segments(segments) => (0..segments.count())
            .map(|i| {
                let mut out = vec![0xa5; segments.frame_len(i)];
                assert_eq!(segments.write(i, &packet, &mut out), out.len());
                out
            })
            .collect(),
    }
}

/// What a sink was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) tag: u32,
    pub(crate) vnet: vnet::Header,
    pub(crate) frame: Vec<u8>,
    pub(crate) pieces: Vec<Range<usize>>,
    pub(crate) rebuilt: bool,
}

pub(crate) struct Gather<'a> {
    pub(crate) arena: &'a [u8],
    pub(crate) written: Vec<Written>,
}

impl Sink for Gather<'_> {
    fn frame(&mut self, tag: u32, vnet: &vnet::Header, headers: &[u8], pieces: &[Range<usize>]) {
        let mut frame = headers.to_vec();
        for piece in pieces {
            frame.extend(&self.arena[piece.clone()]);
        }
        let (vnet, pieces, rebuilt) = (*vnet, pieces.to_vec(), !headers.is_empty());
        self.written.push(Written { tag, vnet, frame, pieces, rebuilt });
    }
}

/// A frame to push.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) frame: Vec<u8>,
    pub(crate) tag: u32,
    pub(crate) gso_size: u16,
}

impl From<Vec<u8>> for Arrival {
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, tag: 1, gso_size: 0 }
    }
}

/// Pushes a batch and flushes.
pub(crate) fn receive(arrivals: &[Arrival], mtu: u16) -> (Vec<Seen>, Vec<Written>) {
    receive_on(Link::Ethernet, arrivals, mtu)
}

/// As [`receive`], over any link.
pub(crate) fn receive_on(link: Link, arrivals: &[Arrival], mtu: u16) -> (Vec<Seen>, Vec<Written>) {
    let mut arena = vec![0xee; 3];
    let mut ranges = Vec::new();
    for arrival in arrivals {
        ranges.push(arena.len()..arena.len() + arrival.frame.len());
        arena.extend(&arrival.frame);
        arena.push(0xee);
    }
    let mut sink = Gather { arena: &arena, written: Vec::new() };
    let mut coalescer = Coalescer::new();
    let seen = arrivals
        .iter()
        .zip(&ranges)
        .map(|(arrival, range)| {
            let Arrival { tag, gso_size, .. } = *arrival;
            coalescer.push_on(link, &arena, range.clone(), (tag, gso_size, mtu), &mut sink)
        })
        .collect();
    coalescer.flush(&arena, &mut sink);
    let first = sink.written.len();
    coalescer.flush(&arena, &mut sink);
    assert_eq!(sink.written.len(), first, "a flush leaves nothing");
    (seen, sink.written)
}

/// As [`receive`] for plain frames of one port.
pub(crate) fn receive_frames(frames: &[Vec<u8>], mtu: u16) -> (Vec<Seen>, Vec<Written>) {
    let arrivals: Vec<_> = frames.iter().cloned().map(Arrival::from).collect();
    receive(&arrivals, mtu)
}

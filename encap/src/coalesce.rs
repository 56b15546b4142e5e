//! Inbound: makes super-frames for a TAP of what the wire delivers.
//!
//! # Theory of operation
//!
//! Purpose: one write of a 64 KB super-frame to a TAP costs hardly more than one of a small frame,
//! so segments of a flow that arrive together are joined again; and what a kernel VTEP hands over
//! unfinished (super-frames, partial checksums) is described to the TAP as what it is.
//!
//! Steps of [`Coalescer::push`]:
//! 1. The frame's layers are found. What is no whole TCP segment or UDP datagram passes at once.
//! 2. Its checksum is judged, over the IP packet alone (Ethernet padding left out): *valid*;
//!    *partial*, when it does not verify but the field is the folded sum of the pseudo-header for
//!    the frame's own length, which is how a kernel VTEP on an offloading underlay leaves it; or
//!    *bad*. Bad frames pass unmodified and without any flag, for the end host to reject.
//! 3. A valid frame of the flow's next bytes joins the open super-frame of its flow, or opens one.
//!    Only headers are compared and a range is noted; no payload is touched again.
//! 4. Everything else that belongs to an open flow ends it first, so the order within a flow never
//!    changes, and then passes alone. A frame that comes with a segment size, or of TCP one that is
//!    longer than the MTU, is a super-frame already: it passes with a segmentation type, its
//!    checksum field turned to the pseudo-header's sum if it was complete. UDP that is longer and
//!    comes without a size is one datagram, or several whose sizes are lost ([`is_unfinished_datagram`]).
//!
//! A frame joins when all of these equal the first one's: Ethernet header with tags, addresses,
//! ports, TOS or traffic class and flow label, TTL or hop limit, don't-fragment; without IP options
//! or extension headers; and, for IPv4 that may be fragmented, the identification that a cut would
//! give it. TCP: the next sequence number, the same acknowledgement, window, urgent field and
//! options, no flag but ACK and PSH, and payload no longer than the first one's; a shorter one or
//! PSH closes. UDP: payload no longer than the first one's; a shorter one closes. (These are the
//! conditions of the kernel's GRO, net/ipv4/tcp_offload.c and udp_offload.c.)
//!
//! What a super-frame says to the TAP: lengths and IPv4 checksum of the whole, the checksum field
//! holding the uncomplemented pseudo-header sum, `NEEDS_CSUM`, and the payload of the first segment
//! as segment size. This vouches for the data, hence step 2.
//!
//! A TAP of a kernel that does not know super-frames of UDP ([`Coalescer::set_uso`]) gets none:
//! datagrams pass alone, and one that comes with a segment size is cut.
//!
//! Limits: [`FLOWS_MAX`] open flows, of which the oldest makes room; [`SEGMENTS_MAX`] segments and
//! 65535 bytes of IP packet per super-frame. Frames are never held on a timer: the caller flushes
//! at the end of every receive batch, oldest flow first.
//!
//! Ownership: the caller owns the arena; between the first [`push`](Coalescer::push) and the
//! [`flush`](Coalescer::flush) it passes the same memory and leaves pushed frames unchanged. Open
//! flows refer to it by ranges. One coalescer belongs to one worker. Nothing is allocated after
//! [`Coalescer::new`].

mod candidate;
mod output;

use core::ops::Range;

use crate::bytes::u32_at;
use crate::layers::{Network, Protocol, Transport};
use crate::{Link, flow, tcp, udp, vnet};
use candidate::Candidate;

/// Flows that can be open at once.
pub const FLOWS_MAX: usize = 48;

/// Segments that one super-frame holds at most; also the most pieces that a [`Sink`] sees.
pub const SEGMENTS_MAX: usize = 64;

/// IP length of a super-frame at most.
const PACKET_LEN_MAX: usize = 65_535;

/// More slots than flows: slots are taken in a ring, so that their order is the order of opening
/// and closed ones may lie between open ones.
const SLOTS: usize = 64;
const BUCKETS: usize = 128;
const NOWHERE: u8 = u8::MAX;

/// What a frame's checksum said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// The checksum is wrong.
    BadChecksum,
    /// Not verified: other protocols, fragments, malformed headers, UDP without a checksum.
    Other,
    /// Only the pseudo-header's sum: left unfinished by a kernel VTEP.
    Partial,
    /// The checksum is right.
    Valid,
}

/// Whether a UDP packet is whole but for its checksum, which is only the pseudo-header's sum.
#[must_use]
pub fn is_unfinished_datagram(link: Link, frame: &[u8]) -> bool {
    let found =
        Network::parse(link, frame).filter(|ip| !ip.routing && ip.protocol == udp::PROTOCOL);
    let candidate = found.and_then(|ip| {
        let transport = Transport::parse(frame, &ip)?;
        Some(Candidate { bytes: frame, frame: 0..frame.len(), tag: 0, hash: 0, ip, transport })
    });
    candidate.is_some_and(|candidate| candidate.judge().1 == Seen::Partial)
}

/// Takes frames that are final.
pub trait Sink {
    /// One frame for the port `tag`: write `vnet`, then `headers`, then all `pieces` one after
    /// another.
    ///
    /// `headers` are rebuilt headers, or empty when the pieces hold the whole frame. `pieces` are
    /// ranges of the arena, 1 to [`SEGMENTS_MAX`] of them.
    fn frame(&mut self, tag: u32, vnet: &vnet::Header, headers: &[u8], pieces: &[Range<usize>]);
}

/// Joins frames of a batch; see the [module](self).
#[derive(Debug)]
pub struct Coalescer {
    flows: Box<[Flow]>,
    /// First slot of each hash bucket; slots of one bucket are chained.
    buckets: [u8; BUCKETS],
    /// The slot to take next. Open flows are oldest first from here, all the way round.
    head: usize,
    open: usize,
    /// The flow that the last frame opened or continued.
    recent: usize,
    /// The TAP takes super-frames of UDP.
    uso: bool,
}

#[derive(Clone, Debug)]
struct Flow {
    open: bool,
    protocol: Protocol,
    /// Next slot of the same bucket.
    next: u8,
    /// PSH was seen, and so ends the super-frame.
    pushed: bool,
    hash: u32,
    tag: u32,
    /// The first frame, in the arena.
    first: Range<usize>,
    /// Layers of the first frame.
    ip: Network,
    /// Offset of the payload in the first frame.
    header_len: usize,
    /// Payload length of the first frame.
    size: usize,
    /// The sequence number that joins.
    sequence: u32,
    /// IP length of the super-frame so far.
    packet_len: usize,
    count: usize,
    /// Payloads, in the arena.
    pieces: [Range<usize>; SEGMENTS_MAX],
}

impl Flow {
    const CLOSED: Self = Self {
        open: false,
        protocol: Protocol::Tcp,
        next: NOWHERE,
        pushed: false,
        hash: 0,
        tag: 0,
        first: 0..0,
        ip: Network::NOWHERE,
        header_len: 0,
        size: 0,
        sequence: 0,
        packet_len: 0,
        count: 0,
        pieces: [const { 0..0 }; SEGMENTS_MAX],
    };
}

impl Coalescer {
    /// No open flows; the only allocation.
    #[must_use]
    pub fn new() -> Self {
        Self {
            flows: vec![Flow::CLOSED; SLOTS].into_boxed_slice(),
            buckets: [NOWHERE; BUCKETS],
            head: 0,
            open: 0,
            recent: 0,
            uso: true,
        }
    }

    /// Says whether the TAP takes super-frames of UDP, which Linux before 6.2 refuses. Without,
    /// datagrams are not joined, and those that came joined are told apart again.
    pub fn set_uso(&mut self, uso: bool) {
        self.uso = uso;
    }

    /// Takes one inner Ethernet frame, and gives to `sink` whatever becomes final by it.
    ///
    /// `frame` is its range in `arena`, which holds all frames of the batch. `tag` names the port;
    /// it is part of the flow. `gso_size` is the one of [`vxlan::Element`](crate::vxlan::Element).
    /// `mtu` is the port's IP MTU in bytes; a longer packet is a super-frame. A range outside the
    /// arena is left out.
    pub fn push(
        &mut self,
        arena: &[u8],
        frame: Range<usize>,
        tag: u32,
        gso_size: u16,
        mtu: u16,
        sink: &mut impl Sink,
    ) -> Seen {
        self.push_on(Link::Ethernet, arena, frame, (tag, gso_size, mtu), sink)
    }

    /// As [`push`](Self::push), for a frame of any link; `(tag, gso_size, mtu)` as there. All frames
    /// of one tag are of one link.
    pub fn push_on(
        &mut self,
        link: Link,
        arena: &[u8],
        frame: Range<usize>,
        (tag, gso_size, mtu): (u32, u16, u16),
        sink: &mut impl Sink,
    ) -> Seen {
        let Some(bytes) = arena.get(frame.clone()) else { return Seen::Other };
        if gso_size == 0 && self.goes_on(arena, bytes, &frame, tag, sink) {
            return Seen::Valid;
        }
        let Some(ip) = Network::parse(link, bytes) else {
            sink.frame(tag, &vnet::Header::NONE, &[], &[frame]);
            return Seen::Other;
        };
        let transport = if ip.routing { None } else { Transport::parse(bytes, &ip) };
        let Some(transport) = transport else {
            if ip.opaque || matches!(ip.protocol, tcp::PROTOCOL | udp::PROTOCOL) {
                self.close_pair(arena, bytes, &ip, tag, sink);
            }
            sink.frame(tag, &vnet::Header::NONE, &[], &[frame]);
            return Seen::Other;
        };
        let hash = flow::transport(ip.addresses(bytes), u32_at(bytes, ip.l4), ip.protocol, tag);
        let candidate = Candidate { bytes, frame, tag, hash, ip, transport };
        let slot = self.find(arena, &candidate);
        let (partial, seen) = candidate.judge();
        let size = candidate.super_frame(gso_size, mtu);
        let takes = self.uso || candidate.transport.protocol == Protocol::Tcp;
        // A datagram above the MTU meets the kernel's own limits alone.
        let fits = ip.end - ip.l3 <= usize::from(mtu);
        if seen == Seen::Valid && size.is_none() && fits && takes && candidate.can_join() {
            self.join(arena, candidate, slot, sink);
            return seen;
        }
        if let Some(slot) = slot {
            self.close(arena, slot, sink);
        }
        match size {
            Some(size) if !takes && matches!(seen, Seen::Partial | Seen::Valid) => {
                output::cut(&candidate, usize::from(size), sink);
            }
            _ => output::pass(&candidate, partial, seen, size, sink),
        }
        seen
    }

    /// The short way for bulk data: the frame is the next segment of the flow that the last one
    /// belonged to, of the same length, with the same headers but for the fields that must differ,
    /// and a right checksum. Then it is joined; else nothing happens, and the long way finds out
    /// what it is.
    fn goes_on(
        &mut self,
        arena: &[u8],
        bytes: &[u8],
        frame: &Range<usize>,
        tag: u32,
        sink: &mut impl Sink,
    ) -> bool {
        let slot = self.recent;
        let Some(flow) = self.flows.get_mut(slot) else { return false };
        if !flow.open || flow.tag != tag || flow.count >= SEGMENTS_MAX {
            return false;
        }
        let Some(first) = arena.get(flow.first.clone()) else { return false };
        if !candidate::repeats(flow, first, bytes) {
            return false;
        }
        let Some(piece) = flow.pieces.get_mut(flow.count) else { return false };
        *piece = frame.start + flow.header_len..frame.end;
        flow.count += 1;
        flow.packet_len += flow.size;
        flow.sequence = flow.sequence.wrapping_add(flow.size as u32);
        if flow.count == SEGMENTS_MAX {
            self.close(arena, slot, sink);
        }
        true
    }

    /// Gives everything that is open to `sink`, oldest flow first. Call it at the end of a batch.
    pub fn flush(&mut self, arena: &[u8], sink: &mut impl Sink) {
        for step in 0..SLOTS {
            if self.open == 0 {
                return;
            }
            let slot = (self.head + step) % SLOTS;
            if self.flows.get(slot).is_some_and(|flow| flow.open) {
                self.close(arena, slot, sink);
            }
        }
    }

    /// The open flow with the candidate's tag, addresses, ports and protocol.
    fn find(&self, arena: &[u8], candidate: &Candidate<'_>) -> Option<usize> {
        let mut slot = *self.buckets.get(candidate.hash as usize % BUCKETS)?;
        while let Some(flow) = self.flows.get(usize::from(slot)) {
            if flow.hash == candidate.hash
                && flow.tag == candidate.tag
                && flow.protocol == candidate.transport.protocol
                && let Some(first) = arena.get(flow.first.clone())
                && flow.ip.addresses(first) == candidate.ip.addresses(candidate.bytes)
                && u32_at(first, flow.ip.l4) == u32_at(candidate.bytes, candidate.ip.l4)
            {
                return Some(usize::from(slot));
            }
            slot = flow.next;
        }
        None
    }

    /// Adds a frame that may be joined to its open flow, or ends that and opens another.
    fn join(
        &mut self,
        arena: &[u8],
        candidate: Candidate<'_>,
        slot: Option<usize>,
        sink: &mut impl Sink,
    ) {
        if let Some(slot) = slot
            && let Some(flow) = self.flows.get_mut(slot)
        {
            let first = arena.get(flow.first.clone()).unwrap_or(&[]);
            if candidate.continues(flow, first)
                && let Some(piece) = flow.pieces.get_mut(flow.count)
            {
                let len = candidate.payload_len();
                *piece = candidate.payload();
                flow.count += 1;
                flow.packet_len += len;
                flow.sequence = flow.sequence.wrapping_add(len as u32);
                flow.pushed = candidate.is_pushed();
                self.recent = slot;
                if flow.pushed || len < flow.size || flow.count == SEGMENTS_MAX {
                    self.close(arena, slot, sink);
                }
                return;
            }
            self.close(arena, slot, sink);
        }
        if candidate.is_pushed() {
            sink.frame(candidate.tag, &output::VERIFIED, &[], &[candidate.frame]);
        } else {
            self.open(arena, &candidate, sink);
        }
    }

    fn open(&mut self, arena: &[u8], candidate: &Candidate<'_>, sink: &mut impl Sink) {
        if self.open >= FLOWS_MAX {
            self.close_oldest(arena, sink);
        }
        let slot = self.head;
        if self.flows.get(slot).is_some_and(|flow| flow.open) {
            self.close(arena, slot, sink);
        }
        let (Some(flow), Some(bucket)) =
            (self.flows.get_mut(slot), self.buckets.get_mut(candidate.hash as usize % BUCKETS))
        else {
            return;
        };
        flow.open = true;
        flow.protocol = candidate.transport.protocol;
        flow.next = *bucket;
        flow.pushed = false;
        flow.hash = candidate.hash;
        flow.tag = candidate.tag;
        flow.first = candidate.frame.clone();
        flow.ip = candidate.ip;
        flow.header_len = candidate.transport.payload;
        flow.size = candidate.payload_len();
        flow.sequence = candidate.sequence().wrapping_add(flow.size as u32);
        flow.packet_len = candidate.ip.end - candidate.ip.l3;
        flow.count = 1;
        flow.pieces[0] = candidate.payload();
        *bucket = slot as u8;
        self.recent = slot;
        self.head = (slot + 1) % SLOTS;
        self.open += 1;
    }

    fn close_oldest(&mut self, arena: &[u8], sink: &mut impl Sink) {
        let oldest = (0..SLOTS)
            .map(|step| (self.head + step) % SLOTS)
            .find(|slot| self.flows.get(*slot).is_some_and(|flow| flow.open));
        if let Some(slot) = oldest {
            self.close(arena, slot, sink);
        }
    }

    /// Ends all flows between a packet's addresses, in order: for packets whose ports are unknown.
    fn close_pair(
        &mut self,
        arena: &[u8],
        bytes: &[u8],
        ip: &Network,
        tag: u32,
        sink: &mut impl Sink,
    ) {
        if self.open == 0 {
            return;
        }
        for step in 0..SLOTS {
            let slot = (self.head + step) % SLOTS;
            let Some(flow) = self.flows.get(slot) else { return };
            if flow.open
                && flow.tag == tag
                && let Some(first) = arena.get(flow.first.clone())
                && flow.ip.addresses(first) == ip.addresses(bytes)
            {
                self.close(arena, slot, sink);
            }
        }
    }

    /// Takes a flow out of the table and gives what it holds to `sink`.
    fn close(&mut self, arena: &[u8], slot: usize, sink: &mut impl Sink) {
        let Some(flow) = self.flows.get_mut(slot).filter(|flow| flow.open) else { return };
        flow.open = false;
        self.open -= 1;
        let (bucket, next) = (flow.hash as usize % BUCKETS, flow.next);
        self.unlink(bucket, slot, next);
        if let Some(flow) = self.flows.get(slot) {
            output::flow(arena, flow, sink);
        }
    }

    fn unlink(&mut self, bucket: usize, slot: usize, next: u8) {
        let Some(mut link) = self.buckets.get(bucket).copied() else { return };
        if usize::from(link) == slot {
            self.buckets[bucket] = next;
            return;
        }
        while let Some(flow) = self.flows.get_mut(usize::from(link)) {
            if usize::from(flow.next) == slot {
                flow.next = next;
                return;
            }
            link = flow.next;
        }
    }
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

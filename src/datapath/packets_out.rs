//! Outbound, for networks of packets: from a TUN to the underlay.
//!
//! # Theory of operation
//!
//! ```text
//!   read from the port: [virtio header 12][IP packet or super-packet]
//!     │ whole, TTL left, a source of this host, no loop (RFC 2003 section 3.2)
//!     │ route of the destination ─► none, or this host: answered "unreachable", also where the
//!     │    packet came from another host: the answer comes back to us and goes there
//!     ▼
//!   VTEP ─► path ─► IP-in-IP: raw socket      IP in UDP: socket by flow hash, port by family inside
//!     │ longer than the path takes ─► cut where the sender allows it, or answered "too big"
//!     ▼
//!   SendQueue: the packet where it was read, or segments in the scratch
//! ```
//!
//! What the private router reports of a packet from another host (too big, TTL exceeded) goes out in
//! the name of that packet's destination, as all our answers do.
//!
//! The outer header is the kernel's: what is queued is the bare inner packet. The outer packet has the
//! don't-fragment bit set, so a path that takes less is learned and told to the sender. Only IPv6 on a
//! path that leaves it less than 1,280 bytes is fragmented outside.
//!
//! What the underlay says of a path by ICMP carries too little of the inner packet to answer its
//! sender (RFC 2003 section 4), so it is kept with the path: a smaller MTU until it expires, and that
//! the VTEP is unreachable until a next packet, which is sent all the same and whose sender is told.

use encap::fragment::Fragments;
use encap::mtu::Encapsulation;
use encap::{Link, ecn, flow, mss, segment, tcp, vnet};
use fdb::{NetworkTables, Place, Routed, VtepKey};

use super::batch::{Key, SendQueue};
use super::drop::DropReason;
use super::outbound::{Offer, Outbound, Outcome, Turn};
use super::packet::Packet;
use super::port::PortState;
use super::responder::{self, Unreachable};
use crate::telemetry::counters::WorkerCounters;
use crate::underlay::raw::Kind;
use crate::underlay::udp::Flavor;

/// The least MTU of IPv6 (RFC 8200 section 5).
const IPV6_LEAST: u16 = 1280;

impl Outbound {
    /// As [`Outbound::frame`], for a packet.
    pub(super) fn packet(
        &mut self,
        turn: Turn<'_>,
        port: &mut PortState,
        arena: &mut [u8],
        at: usize,
        len: usize,
    ) -> Outcome {
        let found = turn.snapshot.network(port.network);
        let Some((tables, routed)) =
            found.and_then(|tables| Some((tables, tables.params().routed.as_ref()?)))
        else {
            // The port outlives its network for a moment while it is taken down.
            port.stats.drops.add(DropReason::OutRouteUnknown, 1);
            return Outcome::Done;
        };
        let read = arena.get_mut(at..at + len);
        let Some((header, mut packet, bytes)) =
            read.and_then(<[u8]>::split_first_chunk_mut::<{ vnet::LEN }>).and_then(
                |(header, bytes)| Some((vnet::Header::parse(header), Packet::parse(bytes)?, bytes)),
            )
        else {
            port.stats.drops.add(DropReason::OutMalformed, 1);
            return Outcome::Done;
        };
        if let Some(address) = packet.reported_by_router(bytes)
            && tables.route(address).is_some_and(|route| route.place == Place::Local)
        {
            // Its own address is on every host, so that no other host takes a packet from it.
            packet.rename(bytes, address);
        }
        let start = at + vnet::LEN;
        let vtep = match self.way(tables, routed, &packet) {
            Ok(vtep) => vtep,
            Err((reason, told)) => {
                port.stats.drops.add(reason, 1);
                let bytes = arena.get(start..start + packet.len).unwrap_or_default();
                return told.map_or(Outcome::Done, |why| self.tell(turn, port, bytes, why));
            }
        };
        let offer = Offer { tables, header, at: start, len: packet.len };
        if !self.queue.has_room(offer.most_datagrams(), offer.scratch()) && !self.queue.is_empty() {
            return Outcome::Full;
        }
        self.carry(turn, port, arena, (&offer, routed), &packet, vtep)
    }

    /// Which VTEP a packet goes to, or why to none and what its sender is told.
    fn way(
        &self,
        tables: &NetworkTables,
        routed: &Routed,
        packet: &Packet,
    ) -> Result<VtepKey, (DropReason, Option<Unreachable>)> {
        let silent = |reason| Err((reason, None));
        if packet.ttl == 0 {
            return silent(DropReason::OutTtl);
        }
        if self.own.contains(&packet.source) {
            return silent(DropReason::OutLoop);
        }
        let here = match tables.route(packet.source).map(|route| route.place) {
            Some(Place::Local) => true,
            // It came from there, and the router found no endpoint that it is for.
            Some(Place::Vtep(_)) => {
                return match tables.route(packet.destination).map(|route| route.place) {
                    Some(Place::Local) => Err((DropReason::OutRouteLocal, Some(Unreachable::Host))),
                    None if holds(routed, packet.destination) => {
                        Err((DropReason::OutRouteUnknown, Some(Unreachable::Host)))
                    }
                    _ => silent(DropReason::OutSourceNotLocal),
                };
            }
            None => packet.is_of_nameless_router() || holds(routed, packet.source),
        };
        if !here {
            return silent(DropReason::OutSourceForeign);
        }
        if packet.is_for_group() {
            return silent(DropReason::OutGroup);
        }
        match tables.route(packet.destination).map(|route| route.place) {
            Some(Place::Vtep(vtep)) => Ok(vtep),
            Some(Place::Local) => Err((DropReason::OutRouteLocal, Some(Unreachable::Host))),
            None if holds(routed, packet.destination) => {
                Err((DropReason::OutRouteUnknown, Some(Unreachable::Host)))
            }
            None => Err((DropReason::OutRouteUnknown, Some(Unreachable::Net))),
        }
    }

    fn carry(
        &mut self,
        turn: Turn<'_>,
        port: &PortState,
        arena: &mut [u8],
        (offer, routed): (&Offer<'_>, &Routed),
        packet: &Packet,
        vtep: VtepKey,
    ) -> Outcome {
        let dropped = |reason| port.stats.drops.add(reason, 1);
        let Some(path) = self.paths.resolve(turn.snapshot, vtep, turn.now_ms).copied() else {
            dropped(DropReason::OutVtepUnknown);
            return Outcome::Done;
        };
        if packet.source == path.ip() || packet.destination == path.ip() {
            dropped(DropReason::OutLoop);
            return Outcome::Done;
        }
        let Some(bytes) = arena.get_mut(offer.at..offer.at + offer.len) else {
            return Outcome::Done;
        };
        let (ipv6, inner_ipv6) = (path.is_ipv6(), packet.destination.is_ipv6());
        let encapsulation = path.encapsulation(routed);
        let fits = path.max_packet(encapsulation);
        // IPv6 never gets by with less; then the outer packet is fragmented (RFC 4213 section 3.2.2,
        // RFC 2473 section 7.1).
        let df = !inner_ipv6 || fits >= IPV6_LEAST;
        let max = if df { fits } else { IPV6_LEAST };
        let (gso, key) = if encapsulation == Encapsulation::IpUdp {
            // What is fragmented is not segmented as well.
            let gso = df && path.checksum && path.takes_gso(turn.now_ms);
            let flavor = Flavor { ipv6, df, checksum: path.checksum }.index() as u8;
            let to = if inner_ipv6 { routed.ports.v6 } else { routed.ports.v4 };
            let key = Key {
                to: self.paths.at_port(vtep, to),
                flavor,
                bucket: (flow::hash_packet(bytes) % self.fan) as u8,
                tos: ecn::encapsulate(packet.tos),
            };
            (gso, key)
        } else {
            let key = Key {
                to: self.paths.at_port(vtep, 0),
                flavor: Kind { ipv6, inner_ipv6, fragments: !df }.flavor(),
                bucket: 0,
                // The whole byte, as RFC 2003 section 3.1 has it.
                tos: packet.tos & !ecn::MASK | ecn::encapsulate(packet.tos),
            };
            (false, key)
        };
        if routed.mss
            && packet.protocol == tcp::PROTOCOL
            && mss::clamp(Link::None, bytes, max, offer.header.flags & vnet::NEEDS_CSUM != 0)
        {
            self.counters.mss_lowered.add(1);
        }
        match segment::plan_on(Link::None, &offer.header, bytes, usize::from(max)) {
            Ok(segment::Plan::Single) => {
                if offer.header.flags & vnet::NEEDS_CSUM != 0 {
                    self.counters.checksums_completed.add(1);
                }
                self.queue.push_whole(key, offer.at..offer.at + offer.len, gso);
                port.stats.traffic.frames_out.add(1);
                port.stats.traffic.bytes_out.add(offer.len as u64);
            }
            Ok(segment::Plan::Segments(segments)) => {
                let count = segments.count();
                if !self.queue.has_room(count, count * segments.header_len() + bytes.len()) {
                    // Segments of a few bytes each, which no TCP makes (its least is 48).
                    dropped(DropReason::OutMalformed);
                    return Outcome::Done;
                }
                let mut written = 0;
                for index in 0..count {
                    let len = segments.write(index, bytes, self.queue.room());
                    written += len;
                    self.queue.push_written(key, len, gso);
                }
                self.counters.super_frames_out.add(1);
                self.counters.segments_out.add(count as u64);
                port.stats.traffic.frames_out.add(count as u64);
                port.stats.traffic.bytes_out.add(written as u64);
            }
            Err(segment::Error::TooBig) => {
                if let Some(outcome) =
                    fragment(&mut self.queue, &self.counters, port, (offer, bytes), (max, key, gso))
                {
                    return outcome;
                }
                dropped(DropReason::OutTooBig);
                return match responder::packet_too_big(bytes, max, self.reply.as_mut_slice()) {
                    Some(_) if !port.may_tell_size(turn.now_ms) => {
                        self.counters.answers_limited.add(1);
                        Outcome::Done
                    }
                    Some(len) => {
                        self.counters.too_big_answers.add(1);
                        Outcome::Reply(len)
                    }
                    None => Outcome::Done,
                };
            }
            Err(segment::Error::Malformed(_)) => {
                dropped(DropReason::OutMalformed);
                return Outcome::Done;
            }
        }
        if self.paths.take_unreachable(vtep, turn.now_ms) {
            return self.tell(turn, port, bytes, Unreachable::Host);
        }
        Outcome::Done
    }

    /// Answers a packet that cannot be delivered, where its protocol has that.
    fn tell(
        &mut self,
        turn: Turn<'_>,
        port: &PortState,
        packet: &[u8],
        why: Unreachable,
    ) -> Outcome {
        match responder::unreachable(packet, why, self.reply.as_mut_slice()) {
            Some(_) if !port.may_tell(turn.now_ms) => {
                self.counters.answers_limited.add(1);
                Outcome::Done
            }
            Some(len) => {
                self.counters.unreachable_answers.add(1);
                Outcome::Reply(len)
            }
            None => Outcome::Done,
        }
    }
}

/// Queues a packet that is too long and may be cut as fragments (RFC 2003 section 5); `None` when it may
/// not.
fn fragment(
    queue: &mut SendQueue,
    counters: &WorkerCounters,
    port: &PortState,
    (offer, packet): (&Offer<'_>, &mut [u8]),
    (max, key, gso): (u16, Key, bool),
) -> Option<Outcome> {
    let fragments = Fragments::plan(packet, max.into())?;
    let count = fragments.count();
    if !queue.has_room(count, fragments.most_bytes()) {
        // What no queue has room for is refused as a whole.
        return if queue.is_empty() { None } else { Some(Outcome::Full) };
    }
    // Finishes the checksum. A super-packet is told of: its sender chose the size.
    let plan = segment::plan_on(Link::None, &offer.header, packet, usize::MAX);
    if !matches!(plan, Ok(segment::Plan::Single)) {
        return None;
    }
    if offer.header.flags & vnet::NEEDS_CSUM != 0 {
        counters.checksums_completed.add(1);
    }
    let mut bytes = 0;
    for index in 0..count {
        let len = fragments.write(index, packet, queue.room());
        bytes += len;
        queue.push_written(key, len, gso);
    }
    counters.fragmented_out.add(1);
    port.stats.traffic.frames_out.add(count as u64);
    port.stats.traffic.bytes_out.add(bytes as u64);
    Some(Outcome::Done)
}

/// Whether one of the network's subnets holds the address.
pub(super) fn holds(routed: &Routed, address: std::net::IpAddr) -> bool {
    routed.subnets.iter().any(|subnet| fdb::Prefix::new(address, subnet.len()) == Some(*subnet))
}

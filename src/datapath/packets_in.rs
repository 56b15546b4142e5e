//! Inbound, for networks of packets: from the underlay to a TUN.
//!
//! # Theory of operation
//!
//! ```text
//!   receive batch: datagrams and trains, or packets of a raw socket, in an arena
//!     │ outer source ─► known VTEP
//!     │ train ─► elements: one packet each, or one inner super-packet
//!     │    of the family that the protocol or port is for, whole, TTL left
//!     │    a probe ─► the agent         a tunnel to ourselves ─► loop
//!     │    destination ─► network, VTEP admitted, an address of this host
//!     │    source ─► routed to that VTEP, or to nobody yet within the subnets
//!     │    ECN combined (RFC 6040)
//!     ▼
//!   Coalescer: checksums verified, consecutive segments of a flow joined
//!     ▼
//!   port write: [virtio header][rebuilt headers][payload pieces of the arena]
//! ```
//!
//! As for frames, every check is made on every packet of a train.
//!
//! The kernel's GRO joins IP-in-IP before a raw socket sees it, and an offloading underlay never cut
//! it: then a TCP super-packet with a partial checksum arrives that says no segment size. The coalescer
//! finds both, and cuts to the MTU, which TCP does not mind. Datagrams of UDP cannot be told apart
//! without their size: what is longer than the MTU and has a partial checksum is dropped. A complete
//! one is that of a single datagram, from a network whose MTU is larger there.

use std::net::IpAddr;

use encap::{Link, coalesce, ecn, ipip, ipudp, mss, tcp};
use fdb::{NetworkKey, Place, Snapshot, SourceCheck, Via, VtepKey};

use super::drop::DropReason;
use super::inbound::{Deliver, ELEMENTS, Inbound, PortSink, same_host};
use super::outbound::Turn;
use super::packet::Packet;
use super::packets_out::holds;
use super::path::Paths;
use super::probe;
use crate::sys::mmsg::Received;
use crate::underlay::Carries;

/// By what socket a batch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Protocol or port.
    pub via: Via,
    /// The family that it is for.
    pub carries: Carries,
    /// The outer IPv4 header comes first.
    pub outer_header: bool,
}

/// Two addresses behind a VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PassedPacket {
    source: IpAddr,
    destination: IpAddr,
    via: Via,
    vtep: VtepKey,
    network: NetworkKey,
}

/// Why a packet does not go on, and whose drop it is.
type Refusal = (DropReason, Option<NetworkKey>);

impl Inbound {
    /// Handles what one receive put at `meta.offset..` of the arena. `paths` are those of the other
    /// direction.
    pub fn packets(
        &mut self,
        turn: Turn<'_>,
        from: Source,
        arena: &mut [u8],
        meta: &Received,
        paths: &mut Paths,
        out: &mut impl Deliver,
    ) {
        self.counters.messages_in.add(1);
        self.counters.bytes_in.add(meta.len as u64);
        let Some(datagram) = arena.get(meta.offset..meta.offset + meta.len) else { return };
        let (mut tos, mut whole) = (meta.tos, 0..datagram.len());
        if from.outer_header {
            let Some(outer) = ipip::outer(datagram) else {
                self.counters.datagrams_in.add(1);
                self.drops.add(DropReason::InMalformed, 1);
                return;
            };
            (tos, whole) = (outer.tos, outer.inner);
        }
        let at = meta.offset + whole.start;
        let train = ipudp::train(datagram.get(whole).unwrap_or_default(), meta.gro_size);
        let count = train.clone().take(ELEMENTS).count();
        self.counters.datagrams_in.add(count as u64);
        let Some(vtep) = meta.source.and_then(|source| turn.snapshot.vtep_by_address(source))
        else {
            self.drops.add(DropReason::InVtepUnknown, count.max(1) as u64);
            return;
        };
        if meta.truncated {
            self.drops.add(DropReason::InTruncated, count.max(1) as u64);
            return;
        }
        self.heard.mark(vtep, turn.now_ms);
        for element in train.take(ELEMENTS) {
            let range = at + element.packet.start..at + element.packet.end;
            let Some(bytes) = arena.get_mut(range.clone()) else { continue };
            let Some(packet) = Packet::parse(bytes) else {
                self.drops.add(DropReason::InMalformed, 1);
                continue;
            };
            if packet.source.is_ipv6() != (from.carries == Carries::Ipv6) {
                self.drops.add(DropReason::InFamily, 1);
                continue;
            }
            let is_of_sender = |source| {
                let known = || turn.snapshot.vtep_by_address(source);
                Some(source) == meta.source
                    || known().is_some_and(|inner| same_host(turn.snapshot, inner, vtep))
            };
            if let Some(payload) = probe::of(&packet, bytes, &self.advertised, is_of_sender) {
                if !self.probes.push(meta.source, from.via, payload) {
                    self.drops.add(DropReason::InProbeOverflow, 1);
                }
                continue;
            }
            let network = match self.check_packet(turn, from.via, vtep, tos, &packet, bytes) {
                Ok(network) => network,
                Err((reason, network)) => {
                    match network.and_then(|network| out.port(network)) {
                        Some(port) => port.stats.drops.add(reason, 1),
                        None => self.drops.add(reason, 1),
                    }
                    continue;
                }
            };
            let found = turn.snapshot.network(network).zip(out.port(network));
            let Some((tables, port)) = found else {
                self.drops.add(DropReason::InNetworkUnknown, 1);
                continue;
            };
            let mtu = tables.params().mtu;
            if from.via == Via::Ip
                && packet.len > usize::from(mtu)
                && coalesce::is_unfinished_datagram(Link::None, bytes)
            {
                port.stats.drops.add(DropReason::InDatagramSizes, 1);
                continue;
            }
            if let Some(routed) = tables.params().routed.as_ref()
                && routed.mss
                && packet.protocol == tcp::PROTOCOL
                && let Some(path) = paths.resolve(turn.snapshot, vtep, turn.now_ms)
                && mss::clamp_received(
                    Link::None,
                    bytes,
                    path.max_packet(path.encapsulation(routed)),
                )
            {
                self.counters.mss_lowered.add(1);
            }
            port.stats.traffic.frames_in.add(1);
            port.stats.traffic.bytes_in.add(packet.len as u64);
            let range = range.start..range.start + packet.len;
            self.pass_on(arena, range, (network, element.gso_size, mtu), out);
        }
    }

    /// Which network a packet is for, or why it is for none.
    fn check_packet(
        &mut self,
        turn: Turn<'_>,
        via: Via,
        vtep: VtepKey,
        outer_tos: u8,
        packet: &Packet,
        bytes: &mut [u8],
    ) -> Result<NetworkKey, Refusal> {
        let Packet { source, destination, .. } = *packet;
        let passed = self.passed_packet.filter(|passed| {
            (passed.source, passed.destination) == (source, destination)
                && (passed.via, passed.vtep) == (via, vtep)
        });
        if packet.is_tunnel_to(bytes, &self.own) {
            return Err((DropReason::InNested, None));
        }
        let network = match passed {
            Some(passed) => passed.network,
            None => self.check_addresses(turn.snapshot, via, vtep, packet)?,
        };
        if packet.ttl == 0 {
            return Err((DropReason::InTtl, Some(network)));
        }
        match ecn::decapsulate(packet.tos, outer_tos) {
            ecn::Decapsulated::Keep => {}
            ecn::Decapsulated::Set(bits) => ecn::set_ecn_on(Link::None, bytes, bits),
            ecn::Decapsulated::Drop => return Err((DropReason::InEcn, Some(network))),
        }
        Ok(network)
    }

    /// The checks that depend on nothing but the addresses, the way of arrival and the VTEP.
    fn check_addresses(
        &mut self,
        snapshot: &Snapshot,
        via: Via,
        vtep: VtepKey,
        packet: &Packet,
    ) -> Result<NetworkKey, Refusal> {
        let Packet { source, destination, .. } = *packet;
        let found = snapshot
            .routed(via, destination)
            .and_then(|key| Some((key, snapshot.network(key)?)))
            .and_then(|(key, tables)| Some((key, tables, tables.params().routed.as_ref()?)));
        let Some((network, tables, routed)) = found else {
            return Err((DropReason::InNetworkUnknown, None));
        };
        let refused = |reason| Err((reason, Some(network)));
        if !tables.admits(vtep) {
            return refused(DropReason::InVtepNotMember);
        }
        if !packet.has_host_source() {
            return refused(DropReason::InSourceInvalid);
        }
        let owned = match tables.route(source).map(|route| route.place) {
            Some(Place::Local) => return refused(DropReason::InSourceOwn),
            Some(Place::Vtep(owner)) if owner == vtep || same_host(snapshot, owner, vtep) => true,
            Some(Place::Vtep(_)) => return refused(DropReason::InSourceSpoofed),
            None if packet.is_of_nameless_router() => true,
            None if !holds(routed, source) => return refused(DropReason::InSourceForeign),
            None if tables.params().source_check == SourceCheck::Strict => {
                return refused(DropReason::InSourcePending);
            }
            None => false,
        };
        match tables.route(destination).map(|route| route.place) {
            Some(Place::Local) => {}
            _ => return refused(DropReason::InDestinationNotHere),
        }
        if !owned {
            // Not remembered: each such packet counts.
            self.counters.source_pending.add(1);
        } else if !packet.is_of_nameless_router() {
            // Of that router ICMP alone is taken, which addresses do not tell.
            self.passed_packet = Some(PassedPacket { source, destination, via, vtep, network });
        }
        Ok(network)
    }

    /// Gives a packet that passed all checks to the coalescer.
    fn pass_on(
        &mut self,
        arena: &[u8],
        range: core::ops::Range<usize>,
        (network, gso_size, mtu): (NetworkKey, u16, u16),
        out: &mut impl Deliver,
    ) {
        let mut sink = PortSink { arena, out, counters: &self.counters };
        let seen =
            self.coalescer.push_on(Link::None, arena, range, (network.0, gso_size, mtu), &mut sink);
        self.counters.saw(seen);
        if !self.coalesce {
            self.coalescer.flush(arena, &mut sink);
        }
    }
}

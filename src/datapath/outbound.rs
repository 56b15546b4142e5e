//! Outbound: frames from a port to the underlay. Packets of a TUN take the way of
//! `packets_out` from the beginning.
//!
//! # Theory of operation
//!
//! ```text
//!   read from the port: [virtio header 12][Ethernet frame or super-frame]
//!     │ source and destination checks
//!     ├─ group address ─► ARP/ND: answered from the tables, or its rule
//!     │                   else: ingress replication within the budget, after a copy for this
//!     │                   host where the switch carries its local frames
//!     └─ unicast ───────► MAC table ─► local: given back to the port as it was read
//!                            ▼
//!                          VTEP ─► path
//!                            │
//!          single frame ─────┤ checksum finished in place; the VXLAN header overwrites the last
//!                            │ 8 bytes of the virtio header, so the datagram is one piece
//!          super-frame ──────┘ segmented: rebuilt headers in scratch, payload stays in the arena
//!     ▼
//!   SendQueue, flushed by the worker before the arena is read into again
//! ```
//!
//! Nothing is allocated, copied (but headers), locked, logged or formatted here. Every frame ends
//! in the queue, in a reply to its sender, or in one counted drop.

use std::net::IpAddr;
use std::sync::Arc;

use encap::{Link, MacAddr, ecn, flow, segment, vnet, vxlan};
use fdb::{NetworkTables, Place, Snapshot, VtepKey};

use super::batch::{Key, SendQueue};
use super::drop::DropReason;
use super::path::{Destination, Paths};
use super::port::PortState;
use super::responder::{self, Answer};
use crate::telemetry::counters::WorkerCounters;
use crate::underlay::udp::Flavor;

/// Ethernet header bytes.
const ETHERNET_LEN: usize = 14;
/// Room for an ARP or ND answer, or an ICMP answer with the quoted packet.
pub const REPLY_BYTES: usize = 1536;

/// The state of the outbound half of one worker.
pub struct Outbound {
    /// Datagrams waiting for the flush.
    pub queue: SendQueue,
    /// The way to each VTEP.
    pub paths: Paths,
    /// This host's VTEP addresses.
    pub own: Vec<IpAddr>,
    pub(super) fan: u32,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) reply: Box<[u8; REPLY_BYTES]>,
    /// Set between [`Outcome::Full`] or [`Outcome::LocalAndOn`] and the frame's next offer.
    resume: Option<Resume>,
}

/// A flooded frame that filled the queue before every VTEP had its copy, or whose copy for this host
/// had to be written first.
#[derive(Clone, Copy)]
struct Resume {
    /// As it is now: the one in the arena is overwritten by the VXLAN header, and its checksum work
    /// is done.
    header: vnet::Header,
    /// Copies that are queued already.
    copies: usize,
}

/// What the caller does after a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Queued or dropped.
    Done,
    /// The queue is full: flush and offer the same frame again.
    Full,
    /// Write what was read back to the port: it is for containers of this host.
    Local,
    /// As [`Self::Local`], then offer the same frame again: it is for other hosts too.
    LocalAndOn,
    /// Write this many bytes of [`Outbound::reply`] to the port.
    Reply(usize),
}

/// The turn's view of the tables.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// One generation.
    pub snapshot: &'a Snapshot,
    /// Milliseconds of the worker's clock.
    pub now_ms: u64,
}

impl Outbound {
    /// `segments` as probed, `fan` send sockets per flavor.
    #[must_use]
    pub fn new(segments: u16, fan: usize, counters: Arc<WorkerCounters>) -> Self {
        Self {
            queue: SendQueue::new(segments),
            paths: Paths::default(),
            own: Vec::new(),
            fan: u32::try_from(fan.clamp(1, 64)).unwrap_or(1),
            counters,
            reply: Box::new([0; REPLY_BYTES]),
            resume: None,
        }
    }

    /// The bytes of the last [`Outcome::Reply`].
    #[must_use]
    pub fn reply(&self, len: usize) -> &[u8] {
        self.reply.get(..len).unwrap_or_default()
    }

    /// Handles what one read put at `at..at + len` of the arena, virtio header first.
    pub fn frame(
        &mut self,
        turn: Turn<'_>,
        port: &mut PortState,
        arena: &mut [u8],
        at: usize,
        len: usize,
    ) -> Outcome {
        if port.link == Link::None {
            return self.packet(turn, port, arena, at, len);
        }
        let drop = |reason| {
            port.stats.drops.add(reason, 1);
            Outcome::Done
        };
        let Some(tables) = turn.snapshot.network(port.network) else {
            // The port outlives its network for a moment while it is taken down.
            return drop(DropReason::OutDestinationUnknown);
        };
        let Some(bytes) = arena.get(at..at + len) else {
            return drop(DropReason::OutMalformed);
        };
        let (Some(header), Some(frame)) =
            (bytes.first_chunk::<{ vnet::LEN }>(), bytes.get(vnet::LEN..))
        else {
            return drop(DropReason::OutMalformed);
        };
        let header = vnet::Header::parse(header);
        let (Some(destination), Some(source), true) = (
            MacAddr::from_slice(frame),
            frame.get(6..).and_then(MacAddr::from_slice),
            frame.len() >= ETHERNET_LEN,
        ) else {
            return drop(DropReason::OutMalformed);
        };
        if !source.is_unicast() {
            return drop(DropReason::OutSourceInvalid);
        }
        if let Some(gateway) = &tables.params().gateway
            && (source == gateway.mac || destination == gateway.mac)
        {
            return drop(DropReason::OutGateway);
        }
        if let Some(entry) = tables.mac(source)
            && entry.place != Place::Local
        {
            return drop(DropReason::OutSourceNotLocal);
        }
        let mut offer = Offer { tables, header, at: at + vnet::LEN, len: len - vnet::LEN };
        if let Some(resume) = self.resume.take() {
            offer.header = resume.header;
            return self.replicate(turn, port, arena, offer, resume.copies);
        }
        if destination.is_multicast() {
            self.group(turn, port, arena, &offer, destination)
        } else {
            match tables.mac(destination).map(|entry| entry.place) {
                Some(Place::Vtep(vtep)) => self.unicast(turn, port, arena, &offer, vtep),
                Some(Place::Local) if port.local && destination != source => {
                    given_back(port, &offer);
                    Outcome::Local
                }
                Some(Place::Local) => drop(DropReason::OutDestinationLocal),
                None if tables.params().flood_unknown => self.unknown(turn, port, arena, &offer),
                None => drop(DropReason::OutDestinationUnknown),
            }
        }
    }

    fn group(
        &mut self,
        turn: Turn<'_>,
        port: &mut PortState,
        arena: &mut [u8],
        offer: &Offer<'_>,
        destination: MacAddr,
    ) -> Outcome {
        if is_link_local_control(destination) {
            port.stats.drops.add(DropReason::OutLinkLocalControl, 1);
            return Outcome::Done;
        }
        let frame = offer.bytes(arena);
        let everyone = port.local;
        match responder::answer(offer.tables, frame, everyone, self.reply.as_mut_slice()) {
            Answer::Reply(len) => {
                self.counters.suppressed.add(1);
                return Outcome::Reply(len);
            }
            Answer::LeftToTarget => {
                self.counters.suppressed_local.add(1);
                return Outcome::Done;
            }
            Answer::OwnProbe => {
                self.counters.probes_ignored.add(1);
                return Outcome::Done;
            }
            Answer::UnknownTarget if !offer.tables.params().flood_arp => {
                port.stats.drops.add(DropReason::OutNeighborUnknown, 1);
                return Outcome::Done;
            }
            Answer::UnknownTarget | Answer::NotAsked => {}
        }
        let params = offer.tables.params();
        let carried = match destination {
            MacAddr::BROADCAST => params.flood_broadcast,
            _ => params.flood_multicast,
        };
        if !carried && !port.local {
            port.stats.drops.add(DropReason::OutFloodDisabled, 1);
            return Outcome::Done;
        }
        if !within_budget(turn, port, offer) {
            return Outcome::Done;
        }
        if port.local {
            given_back(port, offer);
            if !carried || offer.tables.flood().is_empty() {
                return Outcome::Local;
            }
            // Before the copies for others, which are made in place of what was read.
            self.resume = Some(Resume { header: offer.header, copies: 0 });
            return Outcome::LocalAndOn;
        }
        self.replicate(turn, port, arena, *offer, 0)
    }

    /// A frame for a MAC that nobody knows: a copy for each VTEP of the network.
    fn unknown(
        &mut self,
        turn: Turn<'_>,
        port: &mut PortState,
        arena: &mut [u8],
        offer: &Offer<'_>,
    ) -> Outcome {
        if !within_budget(turn, port, offer) {
            return Outcome::Done;
        }
        self.replicate(turn, port, arena, *offer, 0)
    }

    /// One copy for each VTEP of the network, but the first `done`.
    fn replicate(
        &mut self,
        turn: Turn<'_>,
        port: &mut PortState,
        arena: &mut [u8],
        mut offer: Offer<'_>,
        done: usize,
    ) -> Outcome {
        let vteps = offer.tables.flood();
        let each = offer.most_datagrams();
        for (copies, vtep) in vteps.iter().enumerate().skip(done) {
            if !self.queue.has_room(each, offer.scratch()) && !self.queue.is_empty() {
                self.resume = Some(Resume { header: offer.header, copies });
                return Outcome::Full;
            }
            // An ICMP answer to a group frame would be wrong, so the size is not told to anyone;
            // the drop is counted where it happens.
            match self.send(turn, port, arena, &mut offer, *vtep) {
                Ok(()) => self.counters.flood_copies.add(1),
                Err(Refused::TooBig(_) | Refused::Unknown) => {}
                // It is for every VTEP, and counted.
                Err(Refused::Malformed) => break,
            }
        }
        Outcome::Done
    }

    fn unicast(
        &mut self,
        turn: Turn<'_>,
        port: &mut PortState,
        arena: &mut [u8],
        offer: &Offer<'_>,
        vtep: VtepKey,
    ) -> Outcome {
        let each = offer.most_datagrams();
        if !self.queue.has_room(each, offer.scratch()) && !self.queue.is_empty() {
            return Outcome::Full;
        }
        let mut offer = *offer;
        match self.send(turn, port, arena, &mut offer, vtep) {
            Ok(()) | Err(Refused::Malformed | Refused::Unknown) => Outcome::Done,
            Err(Refused::TooBig(max_frame)) => {
                let mtu = u16::try_from(max_frame.saturating_sub(ETHERNET_LEN)).unwrap_or(u16::MAX);
                let frame = offer.bytes(arena);
                match responder::too_big(frame, mtu, self.reply.as_mut_slice()) {
                    Some(_) if !port.may_tell_size(turn.now_ms) => {
                        self.counters.answers_limited.add(1);
                        Outcome::Done
                    }
                    Some(len) => {
                        self.counters.too_big_answers.add(1);
                        Outcome::Reply(len)
                    }
                    None => Outcome::Done,
                }
            }
        }
    }

    /// Queues the frame for one VTEP. `Err` when it cannot; that drop is counted already.
    fn send(
        &mut self,
        turn: Turn<'_>,
        port: &PortState,
        arena: &mut [u8],
        offer: &mut Offer<'_>,
        vtep: VtepKey,
    ) -> Result<(), Refused> {
        let params = offer.tables.params();
        let Some(path) = self.paths.resolve(turn.snapshot, vtep, turn.now_ms) else {
            port.stats.drops.add(DropReason::OutVtepUnknown, 1);
            return Err(Refused::Unknown);
        };
        let max_frame = path.max_frame;
        let mut gso = path.checksum && path.takes_gso(turn.now_ms);
        let flavor =
            Flavor { ipv6: path.is_ipv6(), df: params.df, checksum: path.checksum }.index() as u8;
        let Some(frame) = arena.get_mut(offer.at..offer.at + offer.len) else {
            return Ok(());
        };
        let key = Key {
            to: Destination::of_vtep(vtep),
            flavor,
            bucket: (flow::hash(frame) % self.fan) as u8,
            tos: ecn::encapsulate(ecn::tos_of(frame).unwrap_or(0)),
        };
        let mut plan = segment::plan(&offer.header, frame, max_frame);
        if !params.df && matches!(plan, Err(segment::Error::TooBig)) {
            // Without don't-fragment the underlay cuts what is too long, as Swarm's overlay lets it. The
            // kernel does not segment what it fragments.
            gso = false;
            plan = segment::plan(&offer.header, frame, usize::MAX);
        }
        let plan = match plan {
            Ok(plan) => plan,
            Err(segment::Error::TooBig) => {
                port.stats.drops.add(DropReason::OutTooBig, 1);
                return Err(Refused::TooBig(max_frame));
            }
            Err(segment::Error::Malformed(_)) => {
                port.stats.drops.add(DropReason::OutMalformed, 1);
                return Err(Refused::Malformed);
            }
        };
        match plan {
            segment::Plan::Single => {
                if offer.header.flags & vnet::NEEDS_CSUM != 0 {
                    self.counters.checksums_completed.add(1);
                    // The checksum is complete now, also for the copies to other VTEPs.
                    offer.header = vnet::Header::NONE;
                }
                let start = offer.at - vxlan::HEADER_LEN;
                if let Some(room) = arena.get_mut(start..offer.at) {
                    room.copy_from_slice(&vxlan::emit(params.vni));
                }
                self.queue.push_whole(key, start..offer.at + offer.len, gso);
                port.stats.traffic.frames_out.add(1);
                port.stats.traffic.bytes_out.add(offer.len as u64);
            }
            segment::Plan::Segments(segments) => {
                let header = vxlan::emit(params.vni);
                let header_len = vxlan::HEADER_LEN + segments.header_len();
                let count = segments.count();
                if !self.queue.has_room(count, count * header_len + frame.len()) {
                    // Segments of a few bytes each, which no TCP makes (its least is 48).
                    port.stats.drops.add(DropReason::OutMalformed, 1);
                    return Err(Refused::Malformed);
                }
                let mut bytes = 0;
                for index in 0..count {
                    let room = self.queue.room();
                    let Some((vxlan_room, rest)) =
                        room.split_first_chunk_mut::<{ vxlan::HEADER_LEN }>()
                    else {
                        break;
                    };
                    *vxlan_room = header;
                    let len = segments.write(index, frame, rest);
                    bytes += len;
                    self.queue.push_written(key, vxlan::HEADER_LEN + len, gso);
                }
                self.counters.super_frames_out.add(1);
                self.counters.segments_out.add(count as u64);
                port.stats.traffic.frames_out.add(count as u64);
                port.stats.traffic.bytes_out.add(bytes as u64);
            }
        }
        Ok(())
    }
}

/// Takes a flooded frame from the budget, or drops it.
fn within_budget(turn: Turn<'_>, port: &PortState, offer: &Offer<'_>) -> bool {
    let rate = offer.tables.params().flood_rate;
    let within = port.budget.take(offer.frames(), rate, turn.now_ms);
    if !within {
        port.stats.drops.add(DropReason::OutFloodBudget, 1);
    }
    within
}

/// Counts a frame that goes back to the port.
fn given_back(port: &PortState, offer: &Offer<'_>) {
    port.stats.traffic.frames_local.add(1);
    port.stats.traffic.bytes_local.add(offer.len as u64);
}

/// Why a frame was not queued for a VTEP.
#[derive(Clone, Copy, Debug)]
enum Refused {
    /// Larger than this many bytes, the most that the path takes.
    TooBig(usize),
    /// The frame itself is wrong.
    Malformed,
    /// The tables do not describe the VTEP.
    Unknown,
}

/// VXLAN, Ethernet with two tags, IP and TCP with all options: the most that one rebuilt header
/// takes.
const HEADER_ROOM: usize = vxlan::HEADER_LEN + 22 + 60 + 60;

/// A frame in the arena on its way out.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) tables: &'a NetworkTables,
    pub(super) header: vnet::Header,
    pub(super) at: usize,
    pub(super) len: usize,
}

impl Offer<'_> {
    fn bytes<'b>(&self, arena: &'b [u8]) -> &'b [u8] {
        arena.get(self.at..self.at + self.len).unwrap_or_default()
    }

    /// How many frames it is on a wire.
    fn frames(&self) -> u64 {
        match (self.header.gso_type, usize::from(self.header.gso_size)) {
            (vnet::GSO_NONE, _) | (_, 0) => 1,
            (_, size) => self.len.div_ceil(size) as u64,
        }
    }

    /// An upper bound of the bytes that its datagrams for one VTEP take in the scratch.
    pub(super) fn scratch(&self) -> usize {
        if self.header.gso_type == vnet::GSO_NONE {
            0
        } else {
            self.most_datagrams() * HEADER_ROOM + self.len
        }
    }

    /// An upper bound of the datagrams that this frame becomes for one VTEP.
    pub(super) fn most_datagrams(&self) -> usize {
        if self.header.gso_type == vnet::GSO_NONE {
            1
        } else {
            // Cutting to a smaller path at most multiplies the count; 536 bytes is the least that
            // a path MTU of 576 leaves.
            self.len / usize::from(self.header.gso_size.clamp(1, 400)) + 1
        }
    }
}

/// 01:80:c2:00:00:0x, which a bridge never forwards (IEEE 802.1D section 7.12.6).
fn is_link_local_control(mac: MacAddr) -> bool {
    matches!(mac.0, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last & 0xf0 == 0)
}

//! Inbound: datagrams from the underlay to the ports.
//!
//! # Theory of operation
//!
//! ```text
//!   receive batch: datagrams and trains in an arena
//!     │ outer source ─► known VTEP
//!     │ train ─► elements (one VXLAN header and inner frame each; or one inner super-frame)
//!     │    VNI and port ─► network, VTEP admitted
//!     │    inner source MAC ─► owned by that VTEP, or by nobody yet; never the gateway's
//!     │    ARP and ND ─► nothing that contradicts the tables
//!     │    inner destination MAC ─► an endpoint here, or a group
//!     │    ECN combined (RFC 6040)
//!     ▼
//!   Coalescer: checksums verified, consecutive segments of a flow joined
//!     ▼
//!   port write: [virtio header][rebuilt headers][payload pieces of the arena]
//! ```
//!
//! Every check is made on every inner frame of a train: a train is the kernel's grouping, not the
//! sender's promise. All flows are flushed at the end of each receive batch, so nothing waits.

use std::io::IoSlice;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use encap::coalesce::{Coalescer, Sink};
use encap::{MacAddr, ecn, vnet, vxlan};
use fdb::{
    MacEntry, Millis, NetworkKey, NetworkTables, Origin, Place, Snapshot, SourceCheck, VtepKey,
};

use super::claim;
use super::drop::DropReason;
use super::heard::Heard;
use super::inner::Inner;
use super::learn::{LearnQueue, Learned, Share, Taken};
use super::outbound::Turn;
use super::packets_in::PassedPacket;
use super::port::PortState;
use super::probe::Probes;
use crate::sys::mmsg::Received;
use crate::telemetry::counters::{DropCounters, WorkerCounters};

const ETHERNET_LEN: usize = 14;
/// Gather entries of one port write: virtio header, rebuilt headers and the payload pieces of the
/// longest super-frame that the coalescer makes, with room to spare.
const SLICES: usize = 80;

/// The most elements of one train; the kernel coalesces at most 64 datagrams (`UDP_GRO_CNT_MAX`).
pub(super) const ELEMENTS: usize = 256;

/// Where finished frames go: a port's queue, or a test's list.
pub trait Deliver {
    /// Writes one frame to the port of `network`; false when the port refused it.
    fn deliver(&mut self, network: NetworkKey, pieces: &[IoSlice<'_>]) -> bool;
    /// The port of `network` on this worker.
    fn port(&self, network: NetworkKey) -> Option<&PortState>;
}

/// Two MACs of a network behind a VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passed {
    destination: MacAddr,
    source: MacAddr,
    network: NetworkKey,
    vtep: VtepKey,
}

/// The state of the inbound half of one worker.
pub struct Inbound {
    pub(super) coalescer: Coalescer,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) drops: Arc<DropCounters>,
    learn: Arc<LearnQueue>,
    pub(super) heard: Arc<Heard>,
    /// The last frame that passed the checks of its addresses in this batch.
    passed: Option<Passed>,
    /// As `passed`, for packets.
    pub(super) passed_packet: Option<PassedPacket>,
    pub(super) probes: Arc<Probes>,
    /// Where probes are for.
    pub(super) advertised: Vec<IpAddr>,
    pub(super) own: Vec<(IpAddr, u16)>,
    pub(super) coalesce: bool,
    confirm: Millis,
    share: Share,
    elements: Vec<vxlan::Element>,
}

impl Inbound {
    /// `own` are the addresses and ports that this host's VTEPs listen on; `coalesce` false writes
    /// every frame by itself; a learned address is confirmed to the writer when its last confirmation
    /// is as old as `confirm`.
    #[must_use]
    pub fn new(
        own: Vec<(IpAddr, u16)>,
        coalesce: bool,
        confirm: Millis,
        counters: Arc<WorkerCounters>,
        drops: Arc<DropCounters>,
        learn: Arc<LearnQueue>,
        heard: Arc<Heard>,
    ) -> Self {
        Self {
            coalescer: Coalescer::new(),
            counters,
            drops,
            learn,
            heard,
            passed: None,
            passed_packet: None,
            probes: Arc::default(),
            advertised: Vec::new(),
            own,
            coalesce,
            confirm,
            share: Share::default(),
            elements: Vec::with_capacity(ELEMENTS),
        }
    }

    /// Gives the probes of packets that come to `advertised`, which others know this host by, to this
    /// queue, shared with the other workers.
    #[must_use]
    pub fn with_probes(self, probes: Arc<Probes>, advertised: Vec<IpAddr>) -> Self {
        Self { probes, advertised, ..self }
    }

    /// Whether the ports take super-frames of UDP.
    pub fn set_uso(&mut self, uso: bool) {
        self.coalescer.set_uso(uso);
    }

    /// One more address and port that this host listens on.
    pub fn add_own(&mut self, own: (IpAddr, u16)) {
        self.own.push(own);
    }

    /// Handles one received datagram or train. `port` is the UDP port it came to.
    pub fn datagram(
        &mut self,
        turn: Turn<'_>,
        udp_port: u16,
        arena: &mut [u8],
        meta: &Received,
        out: &mut impl Deliver,
    ) {
        let snapshot = turn.snapshot;
        self.counters.messages_in.add(1);
        self.counters.bytes_in.add(meta.len as u64);
        let Some(datagram) = arena.get(meta.offset..meta.offset + meta.len) else { return };
        // The elements are taken down first, as the ECN step below writes to the arena.
        self.elements.clear();
        self.elements.extend(vxlan::train(datagram, meta.gro_size).take(ELEMENTS));
        self.counters.datagrams_in.add(self.elements.len() as u64);
        let Some(vtep) = meta.source.and_then(|source| snapshot.vtep_by_address(source)) else {
            self.drops.add(DropReason::InVtepUnknown, self.elements.len().max(1) as u64);
            return;
        };
        if meta.truncated {
            self.drops.add(DropReason::InTruncated, 1);
            return;
        }
        self.heard.mark(vtep, turn.now_ms);
        let mut last = None;
        for index in 0..self.elements.len() {
            let Some(element) = self.elements.get(index).cloned() else { return };
            let vni = match element.vni {
                Ok(vni) => vni,
                Err(vxlan::Error::Truncated) => {
                    self.drops.add(DropReason::InTruncated, 1);
                    continue;
                }
                Err(vxlan::Error::VniFlagClear) => {
                    self.drops.add(DropReason::InVniFlagClear, 1);
                    continue;
                }
            };
            // The elements of a train are mostly of one network.
            let found = match last {
                Some((of, found)) if of == vni => Some(found),
                _ => snapshot
                    .by_vni(udp_port, vni)
                    .and_then(|network| Some((network, snapshot.network(network)?))),
            };
            last = found.map(|found| (vni, found));
            let Some((network, tables)) = found else {
                self.drops.add(DropReason::InVniUnknown, 1);
                continue;
            };
            let Some(port) = out.port(network) else {
                self.drops.add(DropReason::InVniUnknown, 1);
                continue;
            };
            let range = meta.offset + element.frame.start..meta.offset + element.frame.end;
            let Some(frame) = arena.get_mut(range.clone()) else { continue };
            match self.check(turn, network, tables, vtep, meta.tos, frame) {
                Ok(()) => {}
                Err(reason) => {
                    port.stats.drops.add(reason, 1);
                    continue;
                }
            }
            port.stats.traffic.frames_in.add(1);
            port.stats.traffic.bytes_in.add(range.len() as u64);
            let mtu = tables.params().mtu;
            let mut sink = PortSink { arena, out, counters: &self.counters };
            let seen =
                self.coalescer.push(arena, range, network.0, element.gso_size, mtu, &mut sink);
            self.counters.saw(seen);
            if !self.coalesce {
                self.coalescer.flush(arena, &mut sink);
            }
        }
    }

    /// Writes everything that still waits for a next segment. Called at the end of each batch.
    pub fn flush(&mut self, arena: &[u8], out: &mut impl Deliver) {
        let mut sink = PortSink { arena, out, counters: &self.counters };
        self.coalescer.flush(arena, &mut sink);
        self.passed = None;
        self.passed_packet = None;
    }

    fn check(
        &mut self,
        turn: Turn<'_>,
        network: NetworkKey,
        tables: &NetworkTables,
        vtep: VtepKey,
        outer_tos: u8,
        frame: &mut [u8],
    ) -> Result<(), DropReason> {
        if frame.len() < ETHERNET_LEN {
            return Err(DropReason::InTruncated);
        }
        let (Some(destination), Some(source)) =
            (MacAddr::from_slice(frame), frame.get(6..).and_then(MacAddr::from_slice))
        else {
            return Err(DropReason::InTruncated);
        };
        let params = tables.params();
        let passing = Passed { destination, source, network, vtep };
        if self.passed != Some(passing) {
            self.check_macs(turn, tables, &passing)?;
            // Not where each frame counts: the next one may be learned, or still have no owner.
            if tables.mac(source).is_some() && !params.learning {
                self.passed = Some(passing);
            }
        }
        if let Some(inner) = Inner::parse(frame) {
            if let Some(gateway) = &params.gateway
                && claim::names_one_of(&inner, &gateway.addresses)
            {
                return Err(DropReason::InGateway);
            }
            if params.source_check == SourceCheck::MacIp
                && let Some(address) = inner.source_address()
                && let Some(owner) = tables.neighbor(address)
                && owner.mac != source
            {
                return Err(DropReason::InSourceAddressSpoofed);
            }
            if claim::contradicts(&inner, source, tables) {
                return Err(DropReason::InSourceAddressSpoofed);
            }
            if inner.is_vxlan_to(&self.own) {
                return Err(DropReason::InNested);
            }
        }
        if let Some(inner_tos) = ecn::tos_of(frame) {
            match ecn::decapsulate(inner_tos, outer_tos) {
                ecn::Decapsulated::Keep => {}
                ecn::Decapsulated::Set(bits) => ecn::set_ecn(frame, bits),
                ecn::Decapsulated::Drop => return Err(DropReason::InEcn),
            }
        }
        Ok(())
    }

    /// The checks that depend on nothing but the two MACs, the network and the VTEP.
    fn check_macs(
        &mut self,
        turn: Turn<'_>,
        tables: &NetworkTables,
        passing: &Passed,
    ) -> Result<(), DropReason> {
        let Passed { destination, source, network, vtep } = *passing;
        let params = tables.params();
        let Some(vtep) = admitted(turn.snapshot, tables, vtep) else {
            return Err(DropReason::InVtepNotMember);
        };
        if !source.is_unicast() {
            return Err(DropReason::InSourceInvalid);
        }
        if let Some(gateway) = &params.gateway
            && (source == gateway.mac || destination == gateway.mac)
        {
            return Err(DropReason::InGateway);
        }
        match tables.mac(source).copied() {
            None if params.learning => {
                self.learn(turn, network, source, teacher(turn.snapshot, tables, vtep));
            }
            None if params.source_check == SourceCheck::Strict => {
                return Err(DropReason::InSourcePending);
            }
            None => self.counters.source_pending.add(1),
            Some(MacEntry { place: Place::Local, .. }) => return Err(DropReason::InSourceOwn),
            Some(MacEntry { place: Place::Vtep(owner), origin: Origin::Learned { at } }) => {
                // Confirmed now and then, not per frame; a move is told at once.
                let teacher = teacher(turn.snapshot, tables, vtep);
                if owner != teacher || Millis(turn.now_ms).since(at) >= self.confirm {
                    self.learn(turn, network, source, teacher);
                }
            }
            Some(MacEntry { place: Place::Vtep(owner), .. }) => {
                if owner != vtep && !same_host(turn.snapshot, owner, vtep) {
                    return Err(DropReason::InSourceSpoofed);
                }
            }
        }
        if destination.is_multicast() {
            if matches!(destination.0, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last & 0xf0 == 0) {
                return Err(DropReason::InLinkLocalControl);
            }
        } else {
            match tables.mac(destination).map(|entry| entry.place) {
                Some(Place::Local) => {}
                _ => return Err(DropReason::InDestinationNotHere),
            }
        }
        Ok(())
    }

    fn learn(&mut self, turn: Turn<'_>, network: NetworkKey, mac: MacAddr, vtep: VtepKey) {
        let learned = Learned { network, mac, vtep };
        match self.share.take(learned, turn.now_ms) {
            Taken::Told => {}
            Taken::Spent => self.counters.learn_limited.add(1),
            Taken::Fresh if self.learn.push(learned) => {}
            Taken::Fresh => self.counters.learn_overflow.add(1),
        }
    }
}

/// A host with an IPv4 and an IPv6 VTEP may send from either, and one address may have several VTEPs
/// on different ports.
pub(super) fn same_host(snapshot: &Snapshot, one: VtepKey, other: VtepKey) -> bool {
    let (Some(one), Some(other)) = (snapshot.vtep(one), snapshot.vtep(other)) else { return false };
    one.address == other.address || one.host.is_some() && one.host == other.host
}

/// The VTEP that a frame comes from, where the network admits it. One address may be several static
/// VTEPs, at the ports of several networks: the source tells the address only.
fn admitted(snapshot: &Snapshot, tables: &NetworkTables, vtep: VtepKey) -> Option<VtepKey> {
    if tables.admits(vtep) {
        return Some(vtep);
    }
    at_address(snapshot, tables, snapshot.vtep(vtep)?.address)
}

/// The static VTEP of a network with this address.
fn at_address(snapshot: &Snapshot, tables: &NetworkTables, address: IpAddr) -> Option<VtepKey> {
    let same = |key: &&VtepKey| snapshot.vtep(**key).is_some_and(|it| it.address == address);
    tables.static_vteps().iter().find(same).copied()
}

/// The VTEP that a MAC is learned behind: where a host's address has a static VTEP of this network
/// too, only that one can have said something unknown, as a host's endpoints are in the store.
fn teacher(snapshot: &Snapshot, tables: &NetworkTables, vtep: VtepKey) -> VtepKey {
    let Some(seen) = snapshot.vtep(vtep).filter(|seen| seen.host.is_some()) else { return vtep };
    at_address(snapshot, tables, seen.address).unwrap_or(vtep)
}

/// Writes what the coalescer finishes to the port that its tag names.
pub(super) struct PortSink<'a, D> {
    pub(super) arena: &'a [u8],
    pub(super) out: &'a mut D,
    pub(super) counters: &'a WorkerCounters,
}

impl<D: Deliver> Sink for PortSink<'_, D> {
    fn frame(&mut self, tag: u32, header: &vnet::Header, headers: &[u8], pieces: &[Range<usize>]) {
        let header_bytes = header.emit();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 1;
        slices[0] = IoSlice::new(&header_bytes);
        if !headers.is_empty() {
            slices[1] = IoSlice::new(headers);
            used = 2;
        }
        for piece in pieces {
            if let (Some(slice), Some(bytes)) =
                (slices.get_mut(used), self.arena.get(piece.clone()))
            {
                *slice = IoSlice::new(bytes);
                used += 1;
            }
        }
        self.counters.port_writes.add(1);
        if header.gso_type != vnet::GSO_NONE {
            self.counters.super_frames_in.add(1);
            self.counters.coalesced_in.add(pieces.len() as u64);
        }
        let network = NetworkKey(tag);
        if !self.out.deliver(network, &slices[..used])
            && let Some(port) = self.out.port(network)
        {
            port.stats.drops.add(DropReason::InPortError, pieces.len().max(1) as u64);
        }
    }
}

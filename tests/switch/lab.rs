//! Hosts in one process, and the wire between them.
//!
//! # Theory of operation
//!
//! A [`Host`] is what one worker is made of, without its descriptors: tables, both halves of the
//! datapath, ports that record what is written to them, and a [`Wire`] that records what is sent
//! and fails as it is told. [`Lab::carry`] takes what one host sent to the others, cut into
//! datagrams as the network does, or as the trains that `UDP_GRO` makes of them again.
//!
//! Host `h` has VTEP slot `h`, one port in network 0, and the endpoints `16 h + 1` to `16 h + 3`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use encap::{Link, Vni, vnet, vxlan};
use fdb::{
    Delta, MacEntry, Millis, Neighbor, Network, NetworkKey, Origin, Place, Reader, Revision,
    SourceCheck, Vtep, VtepKey, Writer,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skybridge::datapath::batch::{Outlet, Transmit};
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::flood::Budget;
use skybridge::datapath::heard::Heard;
use skybridge::datapath::inbound::{Deliver, Inbound};
use skybridge::datapath::learn::LearnQueue;
use skybridge::datapath::outbound::{Outbound, Outcome, Turn};
use skybridge::datapath::packets_in::Source;
use skybridge::datapath::path::Paths;
use skybridge::datapath::port::{Answers, PortState, PortStats};
use skybridge::datapath::probe::Probes;
use skybridge::sys::mmsg::{FURTHER, Message, Piece, Received, SLOT};
use skybridge::telemetry::counters::{DropCounters, WorkerCounters};
use skybridge::underlay::udp::Flavor;

use super::frames::{mac, v4, v6};
use super::packets;

pub const UDP_PORT: u16 = vxlan::PORT;
pub const UNDERLAY_MTU: u16 = 1500;
/// Inner MTU over IPv4.
pub const MTU: u16 = 1450;
pub const NETWORK: NetworkKey = NetworkKey(0);
/// A second network, for which no host has a port.
pub const ELSEWHERE: NetworkKey = NetworkKey(1);
/// The first of the flavors that are raw sockets.
pub const RAW: u8 = Flavor::COUNT as u8;
const BATCH: usize = 16;
const ARENA: usize = 8 * 65_664;

pub fn vni(network: NetworkKey) -> Vni {
    Vni::new(100 + network.0).unwrap()
}

pub fn vtep_address(slot: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xc000_0201 + slot as u32))
}

pub fn vtep_address_v6(slot: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, slot as u16 + 1))
}

/// What other hosts would know a VTEP as behind NAT.
pub fn translated(slot: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xcb00_7101 + slot as u32))
}

/// A VTEP of a host of its own.
pub fn vtep(slot: usize) -> Vtep {
    Vtep {
        address: vtep_address(slot),
        port: UDP_PORT,
        mtu: UNDERLAY_MTU,
        accept: Vec::new(),
        host: Some(format!("host-{slot}").into()),
        checksum: true,
        suspect: false,
        ip_in_ip: true,
    }
}

pub fn network(key: NetworkKey) -> Network {
    Network {
        vni: vni(key),
        udp_port: UDP_PORT,
        mtu: MTU,
        name: "net".into(),
        id: "id".into(),
        learning: false,
        flood_unknown: false,
        flood_broadcast: true,
        flood_multicast: true,
        flood_rate: 10_000,
        flood_arp: false,
        source_check: SourceCheck::Mac,
        df: true,
        switch_local: false,
        gateway: None,
        routed: None,
    }
}

/// One send as the kernel was given it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub flavor: u8,
    pub bucket: u8,
    /// The VTEP's slot.
    pub destination: u32,
    /// Where it is not the VTEP's own; 0 for IP-in-IP.
    pub port: Option<u16>,
    pub tos: u8,
    /// 0 for a single datagram.
    pub segment: usize,
    pub bytes: Vec<u8>,
}

impl Sent {
    /// As the kernel cuts it.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let size = if self.segment == 0 { self.bytes.len() } else { self.segment };
        self.bytes.chunks(size)
    }
}

/// Records sends, and fails as told.
pub struct Wire {
    pub sent: Vec<Sent>,
    /// Taken by one call each, 0 for success.
    pub faults: VecDeque<i32>,
    /// Whether segmentation works.
    pub gso: bool,
    /// Segments that one send may have.
    pub segments: usize,
    /// Path MTU in bytes; datagrams above it fail as on Linux.
    pub mtu: usize,
    /// Messages that one call takes.
    pub per_call: usize,
    /// What [`Transmit::wait`] answers.
    pub wakes: bool,
    pub waits: usize,
    pub calls: usize,
    /// The error queue.
    pub errors: Vec<(IpAddr, u16)>,
    /// Addresses of the VTEP slots.
    pub addresses: Vec<IpAddr>,
}

impl Wire {
    fn one(
        &mut self,
        (flavor, bucket): (u8, u8),
        (destination, port): (u32, Option<u16>),
        buffers: [&[u8]; 2],
        own: &[Piece],
        m: &Message,
    ) -> i32 {
        let bytes: Vec<u8> = own
            .iter()
            .flat_map(|piece| {
                let from = piece.offset as usize;
                &buffers[piece.buffer as usize][from..from + piece.len as usize]
            })
            .copied()
            .collect();
        assert!(bytes.len() <= 65_507, "longer than a UDP datagram");
        let segment = usize::from(m.segment);
        let raw = flavor >= RAW;
        let udp = if raw { 0 } else { 8 };
        let headers = udp + if flavor & 1 == 0 { 20 } else { 40 };
        let df = if raw { (flavor - RAW) & 4 == 0 } else { flavor & 2 != 0 };
        assert_eq!(raw, port == Some(0), "raw sockets have no ports");
        assert!(!raw || segment == 0, "nothing is cut behind a raw socket");
        if segment != 0 {
            assert!(bytes.len() > segment, "one segment is no train");
            assert!(bytes.len().div_ceil(segment) <= self.segments);
            assert!(flavor & 4 != 0, "segmentation on a socket without checksums");
            if !self.gso {
                return libc::EINVAL;
            }
            if segment + headers > self.mtu {
                // Without an entry in the error queue, with DF or without.
                return libc::EMSGSIZE;
            }
        } else if df && bytes.len() + headers > self.mtu {
            let to = self.addresses[destination as usize];
            self.errors.push((to, self.mtu as u16));
            return libc::EMSGSIZE;
        }
        self.sent.push(Sent { flavor, bucket, destination, port, tos: m.tos, segment, bytes });
        0
    }

    /// All datagrams sent so far, with their destination.
    pub fn datagrams(&self) -> Vec<(u32, Vec<u8>)> {
        self.sent
            .iter()
            .flat_map(|sent| sent.datagrams().map(|d| (sent.destination, d.to_vec())))
            .collect()
    }
}

impl Transmit for Wire {
    fn send(
        &mut self,
        flavor: u8,
        bucket: u8,
        paths: &Paths,
        buffers: [&[u8]; 2],
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        self.calls += 1;
        let mut errno = self.faults.pop_front().unwrap_or(0);
        let mut done = 0;
        for message in messages.iter().take(self.per_call) {
            let list = paths.addresses()[usize::from(message.destination & FURTHER != 0)];
            assert!(((message.destination & !FURTHER) as usize) < list.len());
            let (vtep, port) = paths.at_index(message.destination).unwrap();
            let from = message.first_piece as usize;
            let own = &pieces[from..from + message.pieces as usize];
            if errno == 0 {
                errno = self.one((flavor, bucket), (vtep.0, port), buffers, own, message);
            }
            if errno != 0 {
                break;
            }
            done += 1;
        }
        if done == 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(done) }
    }

    fn wait(&mut self, _: u8, _: u8) -> bool {
        self.waits += 1;
        self.wakes
    }

    fn learn(&mut self, _: u8, _: u8, paths: &mut Paths, now_ms: u64) -> u64 {
        let errors = std::mem::take(&mut self.errors);
        for (destination, mtu) in &errors {
            paths.learn_mtu(*destination, *mtu, now_ms);
        }
        errors.len() as u64
    }
}

/// A write to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub network: NetworkKey,
    pub header: vnet::Header,
    pub frame: Vec<u8>,
}

/// Ports that record.
pub struct Taps {
    pub ports: Vec<Option<PortState>>,
    pub written: Vec<Written>,
    pub refuses: bool,
}

impl Deliver for Taps {
    fn deliver(&mut self, network: NetworkKey, pieces: &[IoSlice<'_>]) -> bool {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter()).copied().collect();
        let header = vnet::Header::parse(bytes.first_chunk().unwrap());
        let frame = bytes[vnet::LEN..].to_vec();
        assert!(frame.len() <= 65_535 + 22, "longer than an IP packet");
        if !self.refuses {
            self.written.push(Written { network, header, frame });
        }
        !self.refuses
    }

    fn port(&self, network: NetworkKey) -> Option<&PortState> {
        self.ports.get(network.0 as usize)?.as_ref()
    }
}

/// A datagram or train on its way into a host.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub source: IpAddr,
    pub bytes: Vec<u8>,
    pub gro_size: usize,
    pub tos: u8,
    pub truncated: bool,
    /// Of packets, by what it came.
    pub packets: Option<Source>,
}

impl Arrived {
    /// `frame` from VTEP `slot`, for network 0.
    pub fn frame(slot: usize, frame: &[u8]) -> Self {
        Self::of(slot, NETWORK, frame)
    }

    pub fn of(slot: usize, network: NetworkKey, frame: &[u8]) -> Self {
        let mut bytes = vxlan::emit(vni(network)).to_vec();
        bytes.extend(frame);
        Self::raw(slot, bytes)
    }

    pub fn raw(slot: usize, bytes: Vec<u8>) -> Self {
        Self {
            source: vtep_address(slot),
            bytes,
            gro_size: 0,
            tos: 0,
            truncated: false,
            packets: None,
        }
    }
}

/// Of a host.
#[derive(Clone, Copy)]
pub struct Options {
    pub segments: u16,
    pub coalesce: bool,
    pub fan: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segments: 64, coalesce: true, fan: 4 }
    }
}

pub struct Host {
    pub writer: Writer,
    pub reader: Reader,
    pub outbound: Outbound,
    pub inbound: Inbound,
    pub counters: Arc<WorkerCounters>,
    pub drops: Arc<DropCounters>,
    pub learn: Arc<LearnQueue>,
    pub heard: Arc<Heard>,
    pub probes: Arc<Probes>,
    pub taps: Taps,
    pub wire: Wire,
    /// Answers written back to the port.
    pub replies: Vec<Vec<u8>>,
    pub now_ms: u64,
    /// How often a frame had to be offered again.
    pub full: usize,
    arena: Vec<u8>,
    at: usize,
}

impl Host {
    fn new(slot: usize, options: Options) -> Self {
        let (writer, reader) = fdb::channel();
        let counters = Arc::new(WorkerCounters::default());
        let drops = Arc::new(DropCounters::default());
        let learn = Arc::new(LearnQueue::default());
        let heard = Arc::new(Heard::default());
        let mut outbound = Outbound::new(options.segments, options.fan, Arc::clone(&counters));
        outbound.paths.set_own_mtu(UNDERLAY_MTU, 0);
        let own = [vtep_address(slot), vtep_address_v6(slot)].map(|address| (address, UDP_PORT));
        let inbound = Inbound::new(
            own.to_vec(),
            options.coalesce,
            Millis(10_000),
            Arc::clone(&counters),
            Arc::clone(&drops),
            Arc::clone(&learn),
            Arc::clone(&heard),
        );
        let probes = Arc::new(Probes::default());
        let known = vec![vtep_address(slot), vtep_address_v6(slot), translated(slot)];
        let inbound = inbound.with_probes(Arc::clone(&probes), known);
        outbound.paths.share(Arc::clone(&heard));
        outbound.own = vec![vtep_address(slot), vtep_address_v6(slot)];
        let port = PortState {
            network: NETWORK,
            stats: Arc::new(PortStats::default()),
            budget: Arc::new(Budget::default()),
            answers: Answers::default(),
            local: false,
            link: Link::Ethernet,
        };
        Self {
            writer,
            reader,
            outbound,
            inbound,
            counters,
            drops,
            learn,
            heard,
            probes,
            taps: Taps { ports: vec![Some(port)], written: Vec::new(), refuses: false },
            wire: Wire {
                sent: Vec::new(),
                faults: VecDeque::new(),
                gso: true,
                segments: usize::from(options.segments),
                mtu: usize::MAX,
                per_call: usize::MAX,
                wakes: true,
                waits: 0,
                calls: 0,
                errors: Vec::new(),
                addresses: Vec::new(),
            },
            replies: Vec::new(),
            now_ms: 0,
            full: 0,
            arena: vec![0; ARENA],
            at: 0,
        }
    }

    /// Changes the tables.
    pub fn apply(&mut self, deltas: impl IntoIterator<Item = Delta>) {
        for delta in deltas {
            self.writer.apply(delta);
        }
        self.writer.publish();
        self.writer.reclaim();
    }

    pub fn set_network(&mut self, change: impl FnOnce(&mut Network)) {
        let mut changed = network(NETWORK);
        change(&mut changed);
        self.apply([Delta::PutNetwork { key: NETWORK, network: changed }]);
    }

    pub fn set_vtep(&mut self, slot: usize, change: impl FnOnce(&mut Vtep)) {
        let mut changed = vtep(slot);
        change(&mut changed);
        self.wire.addresses.resize(self.wire.addresses.len().max(slot + 1), vtep_address(0));
        self.wire.addresses[slot] = changed.address;
        self.apply([Delta::PutVtep { key: VtepKey(slot as u32), vtep: changed }]);
    }

    pub fn put_endpoint(&mut self, n: u8, place: Place) {
        let origin = Origin::Store { revision: Revision(1) };
        let neighbor = Neighbor { mac: mac(n), place, origin };
        self.apply([
            Delta::PutMac { network: NETWORK, mac: mac(n), entry: MacEntry { place, origin } },
            Delta::PutNeighbor { network: NETWORK, ip: v4(n).into(), neighbor },
            Delta::PutNeighbor { network: NETWORK, ip: v6(n).into(), neighbor },
        ]);
    }

    pub fn port(&mut self) -> &mut PortState {
        self.taps.ports[0].as_mut().unwrap()
    }

    /// What the worker does with one read, the flush at the end of the round left out.
    pub fn offer(&mut self, header: &vnet::Header, frame: &[u8]) -> Outcome {
        let mut read = header.emit().to_vec();
        read.extend(frame);
        self.offer_read(&read)
    }

    pub fn offer_read(&mut self, read: &[u8]) -> Outcome {
        if self.at + read.len() > self.arena.len() {
            self.flush();
        }
        let (at, len) = (self.at, read.len());
        self.arena[at..at + len].copy_from_slice(read);
        let snapshot = self.reader.load();
        let turn = Turn { snapshot: &snapshot, now_ms: self.now_ms };
        let before = self.full;
        let outcome = loop {
            let port = self.taps.ports[0].as_mut().unwrap();
            let outcome = self.outbound.frame(turn, port, &mut self.arena, at, len);
            if matches!(outcome, Outcome::Local | Outcome::LocalAndOn) {
                let read = self.arena[at..at + len].to_vec();
                self.taps.deliver(NETWORK, &[IoSlice::new(&read)]);
            }
            if outcome == Outcome::LocalAndOn {
                continue;
            }
            if outcome != Outcome::Full {
                break outcome;
            }
            self.full += 1;
            assert!(self.full - before < 100_000, "a frame that is never done");
            self.send_queue();
        };
        if let Outcome::Reply(len) = outcome {
            self.replies.push(self.outbound.reply(len).to_vec());
        }
        self.at = (at + len).next_multiple_of(64);
        outcome
    }

    fn send_queue(&mut self) {
        let Outbound { queue, paths, .. } = &mut self.outbound;
        queue.flush(
            &self.arena,
            &mut Outlet {
                transmit: &mut self.wire,
                paths,
                now_ms: self.now_ms,
                counters: &self.counters,
                drops: &self.drops,
            },
        );
    }

    /// The end of a round.
    pub fn flush(&mut self) {
        self.send_queue();
        self.at = 0;
    }

    /// One frame, as a round of its own.
    pub fn send(&mut self, header: &vnet::Header, frame: &[u8]) -> Outcome {
        let outcome = self.offer(header, frame);
        self.flush();
        outcome
    }

    pub fn send_whole(&mut self, frame: &[u8]) -> Outcome {
        self.send(&vnet::Header::NONE, frame)
    }

    /// Receives in batches as the worker does.
    pub fn receive(&mut self, arrived: &[Arrived]) {
        let mut arena = vec![0; BATCH.min(arrived.len()) * SLOT];
        for batch in arrived.chunks(BATCH) {
            let snapshot = self.reader.load();
            let turn = Turn { snapshot: &snapshot, now_ms: self.now_ms };
            for (index, datagram) in batch.iter().enumerate() {
                let offset = index * SLOT;
                arena[offset..offset + datagram.bytes.len()].copy_from_slice(&datagram.bytes);
                let meta = Received {
                    offset,
                    len: datagram.bytes.len(),
                    gro_size: datagram.gro_size,
                    tos: datagram.tos,
                    truncated: datagram.truncated,
                    source: Some(datagram.source),
                };
                let (paths, taps) = (&mut self.outbound.paths, &mut self.taps);
                match datagram.packets {
                    None => self.inbound.datagram(turn, UDP_PORT, &mut arena, &meta, taps),
                    Some(from) => {
                        self.inbound.packets(turn, from, &mut arena, &meta, paths, taps);
                    }
                }
            }
            self.inbound.flush(&arena, &mut self.taps);
        }
    }

    /// Everything that was dropped: why, counted where, how often.
    pub fn dropped(&self) -> Vec<(DropReason, At, u64)> {
        let mut all = Vec::new();
        for reason in DropReason::ALL {
            all.push((*reason, At::Worker, self.drops.get(*reason)));
            for port in self.taps.ports.iter().flatten() {
                all.push((*reason, At::Port, port.stats.drops.get(*reason)));
            }
        }
        all.retain(|(.., count)| *count != 0);
        all
    }

    /// Frames that the port gave to the queue.
    pub fn frames_out(&self) -> u64 {
        self.taps.ports[0].as_ref().unwrap().stats.traffic.frames_out.get()
    }

    /// Frames that were accepted for the port.
    pub fn frames_in(&self) -> u64 {
        self.taps.ports[0].as_ref().unwrap().stats.traffic.frames_in.get()
    }
}

/// Which counters a drop belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Port,
    Worker,
}

/// What the network between hosts does.
pub struct Weather {
    /// Trains arrive as they were sent; else the network has cut them.
    pub trains: bool,
    /// Of a hundred arrivals.
    pub lost_percent: u32,
    /// Flows overtake each other; one flow never itself.
    pub reorders: bool,
    pub random: StdRng,
}

impl Weather {
    pub fn fair(trains: bool) -> Self {
        Self { trains, lost_percent: 0, reorders: false, random: StdRng::seed_from_u64(1) }
    }
}

pub struct Lab {
    pub hosts: Vec<Host>,
}

impl Lab {
    pub fn new(hosts: usize, options: Options) -> Self {
        let mut lab = Self { hosts: (0..hosts).map(|slot| Host::new(slot, options)).collect() };
        for (own, host) in lab.hosts.iter_mut().enumerate() {
            host.apply(
                [NETWORK, ELSEWHERE].map(|key| Delta::PutNetwork { key, network: network(key) }),
            );
            for slot in 0..hosts {
                host.set_vtep(slot, |_| {});
                let place =
                    if slot == own { Place::Local } else { Place::Vtep(VtepKey(slot as u32)) };
                for endpoint in 1..=3 {
                    host.put_endpoint(slot as u8 * 16 + endpoint, place);
                }
            }
            let others = (0..hosts).filter(|slot| *slot != own);
            let vteps = others.map(|slot| VtepKey(slot as u32)).collect();
            host.apply([Delta::SetFlood { network: NETWORK, vteps }]);
        }
        lab
    }

    /// Takes what `from` sent to where it goes.
    pub fn carry(&mut self, from: usize, weather: &mut Weather) {
        let mut flows: Vec<((u32, u8), VecDeque<Arrived>)> = Vec::new();
        for sent in std::mem::take(&mut self.hosts[from].wire.sent) {
            let way = (sent.destination, sent.bucket);
            let source = self.hosts[from].wire.addresses[from];
            let arrived = |bytes: &[u8], gro_size| {
                let plain =
                    Arrived { gro_size, tos: sent.tos, ..Arrived::raw(from, bytes.to_vec()) };
                packets::arrived(&sent, Arrived { source, ..plain })
            };
            let all: Vec<Arrived> = if weather.trains {
                vec![arrived(&sent.bytes, sent.segment)]
            } else {
                sent.datagrams().map(|datagram| arrived(datagram, 0)).collect()
            };
            let index = flows.iter().position(|(key, _)| *key == way).unwrap_or_else(|| {
                flows.push((way, VecDeque::new()));
                flows.len() - 1
            });
            for datagram in all {
                if weather.random.random_range(0..100) >= weather.lost_percent {
                    flows[index].1.push_back(datagram);
                }
            }
        }
        let mut inboxes: Vec<Vec<Arrived>> = self.hosts.iter().map(|_| Vec::new()).collect();
        while !flows.is_empty() {
            let index =
                if weather.reorders { weather.random.random_range(0..flows.len()) } else { 0 };
            let ((destination, _), queue) = &mut flows[index];
            match queue.pop_front() {
                Some(datagram) => inboxes[*destination as usize].push(datagram),
                None => drop(flows.remove(index)),
            }
        }
        for (host, inbox) in self.hosts.iter_mut().zip(inboxes) {
            host.receive(&inbox);
        }
    }
}

//! A worker: one thread that moves frames both ways, to completion.
//!
//! # Theory of operation
//!
//! ```text
//!            ┌────────────── epoll ──────────────┐
//!   ports ──►│ queue k of every TAP and TUN      │──► Outbound ──► SendQueue ──► sendmmsg
//!   VTEPs ──►│ own receive sockets, raw sockets  │──► Inbound  ──► Coalescer ──► writev
//!   control ►│ eventfd: commands                 │
//!            └───────────────────────────────────┘
//! ```
//!
//! Worker k owns queue k of every TAP and TUN and its own sockets; nothing on the way of a frame is shared
//! between workers but the counters that others read and the bounded queue of learned addresses.
//!
//! A *turn*: wait; load one table snapshot; serve each ready descriptor for a bounded number of
//! rounds, so that one busy port cannot starve the rest; wait again. A round reads until the arena
//! is full or nothing is left, then sends everything: no frame is held for a later one. Small
//! frames lie tightly packed in the arena, so that a round stays in the cache.
//!
//! The worker never frees a table generation (the writer does) and never allocates per frame. Its
//! errors are counters. It ends when told to, and gives its descriptors back by dropping them.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use fdb::{NetworkKey, Via};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::batch::Outlet;
use super::drop::DropReason;
use super::flood::Budget;
use super::heard::Heard;
use super::inbound::{Deliver, Inbound};
use super::outbound::{Outbound, Outcome, Turn};
use super::packets_in::Source;
use super::path::Paths;
use super::port::{Answers, PortState, PortStats};
use super::pulse::Pulse;
use super::transmit::{Underlay, learn_from};
use crate::port::queue::Queue;
use crate::sys::arena::Arena;
use crate::sys::mmsg::{RecvBatch, SLOT};
use crate::telemetry::counters::{DropCounters, WorkerCounters};
use crate::underlay::Carries;
use crate::underlay::raw::RawSocket;
use crate::underlay::udp::{Flavor, Listener, Sender, Sockets};

/// Bytes of the read arena: four super-frames, or some hundred small frames, so that they and what
/// they become stay in the cache.
const ARENA_BYTES: usize = 4 * READ_BYTES;
/// Room that every read is offered: the largest super-frame with its headers.
const READ_BYTES: usize = 65_536 + 128;
/// Frames of one round.
const FRAMES_PER_ROUND: usize = 256;
/// Receive slots of one call.
const RECV_SLOTS: usize = 16;
/// Rounds that one ready descriptor gets in a turn.
const ROUNDS: usize = 4;
/// How often learned path MTUs are looked over.
const EXPIRE_MS: u64 = 5_000;

/// What the agent asks of a running worker.
pub enum Command {
    /// Serve this queue from now on.
    AddPort {
        /// The network's slot.
        network: NetworkKey,
        /// This worker's queue.
        queue: Queue,
        /// Its counters.
        stats: Arc<PortStats>,
        /// The port's budget, shared with the other workers.
        budget: Arc<Budget>,
        /// Whether frames between two containers of this host come to it.
        local: bool,
    },
    /// From now on frames between two containers of this host come to the network's port, or none
    /// do.
    SetLocal {
        /// The network's slot.
        network: NetworkKey,
        /// Whether they do.
        local: bool,
        /// Told when it is so.
        done: crossbeam_channel::Sender<()>,
    },
    /// Stop serving the network's port and close its queue.
    RemovePort {
        /// The network's slot.
        network: NetworkKey,
        /// Told when the queue is closed.
        done: crossbeam_channel::Sender<()>,
    },
    /// Write a frame made by the agent (an announcement) to the port.
    Inject {
        /// The network's slot.
        network: NetworkKey,
        /// The frame, Ethernet header first.
        frame: Vec<u8>,
    },
    /// This host's underlay MTU in bytes is now this.
    SetUnderlayMtu(u16),
    /// Receive from one more socket, of this host's own address.
    Listen {
        /// Where it listens.
        at: std::net::SocketAddr,
        /// The socket.
        listener: Listener,
    },
    /// Send and receive IP-in-IP with this socket, of this host's own address.
    ListenIp {
        /// Where it is bound.
        at: std::net::IpAddr,
        /// The socket.
        socket: RawSocket,
    },
    /// Send from another source port from now on.
    Replace {
        /// The fan.
        flavor: Flavor,
        /// Which socket of it.
        number: usize,
        /// What takes its place.
        sender: Sender,
        /// Told when the former socket is closed.
        done: crossbeam_channel::Sender<()>,
    },
    /// End.
    Stop,
}

/// What a worker starts with.
pub struct Setup {
    /// Its sockets.
    pub sockets: Sockets,
    /// What was granted and is allowed.
    pub offload: crate::underlay::probe::UdpOffload,
    /// Send sockets per fan.
    pub fan: usize,
    /// This host's VTEP addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// This host's underlay MTU in bytes.
    pub underlay_mtu: u16,
    /// The tables.
    pub tables: fdb::Reader,
    /// Frames moving in.
    pub inbound: Inbound,
    /// What all workers know of the VTEPs.
    pub heard: Arc<Heard>,
    /// Commands.
    pub commands: Receiver<Command>,
    /// Made readable when a command waits.
    pub wake: Arc<EventFd>,
    /// Where it says that it still turns.
    pub pulse: Arc<Pulse>,
    /// Counters.
    pub counters: Arc<WorkerCounters>,
    /// Drops where no network is known, and those of the underlay.
    pub drops: Arc<DropCounters>,
    /// The zero of the tables' clock.
    pub epoch: Instant,
}

/// The identity of a descriptor in epoll's data word.
const KIND_PORT: u64 = 1 << 60;
const KIND_LISTENER: u64 = 2 << 60;
const KIND_SENDER: u64 = 3 << 60;
const KIND_WAKE: u64 = 4 << 60;
const KIND_RAW: u64 = 5 << 60;
const KIND_MASK: u64 = 0xf << 60;

struct Port {
    queue: Queue,
    state: PortState,
}

/// Ports by network slot.
#[derive(Default)]
struct Ports(Vec<Option<Port>>);

impl Ports {
    fn get(&self, network: NetworkKey) -> Option<&Port> {
        self.0.get(network.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, network: NetworkKey) -> Option<&mut Port> {
        self.0.get_mut(network.0 as usize)?.as_mut()
    }
}

impl Deliver for Ports {
    fn deliver(&mut self, network: NetworkKey, pieces: &[IoSlice<'_>]) -> bool {
        self.get(network).is_some_and(|port| port.queue.write(pieces).is_ok())
    }

    fn port(&self, network: NetworkKey) -> Option<&PortState> {
        self.get(network).map(|port| &port.state)
    }
}

/// A running worker's insides.
pub struct Worker {
    epoll: Epoll,
    wake: Arc<EventFd>,
    pulse: Arc<Pulse>,
    commands: Receiver<Command>,
    tables: fdb::Reader,
    ports: Ports,
    outbound: Outbound,
    inbound: Inbound,
    transmit: Underlay,
    arena: Arena,
    recv: RecvBatch,
    counters: Arc<WorkerCounters>,
    drops: Arc<DropCounters>,
    started: Instant,
    expired_ms: u64,
}

impl Worker {
    /// Registers everything with epoll.
    ///
    /// # Errors
    /// When epoll cannot be made or refuses a descriptor.
    pub fn new(setup: Setup) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&setup.wake, EpollEvent::new(EpollFlags::EPOLLIN, KIND_WAKE))?;
        for (index, listener) in setup.sockets.listeners.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, KIND_LISTENER | index as u64);
            epoll.add(listener, event)?;
        }
        for (index, sender) in setup.sockets.senders().enumerate() {
            // Only errors are of interest, and those are always told.
            epoll.add(sender, EpollEvent::new(EpollFlags::empty(), KIND_SENDER | index as u64))?;
        }
        let mut outbound =
            Outbound::new(setup.offload.gso_segments, setup.fan, Arc::clone(&setup.counters));
        outbound.paths.set_own_mtu(setup.underlay_mtu, 0);
        outbound.paths.share(setup.heard);
        outbound.own = setup.addresses;
        Ok(Self {
            epoll,
            wake: setup.wake,
            pulse: setup.pulse,
            commands: setup.commands,
            tables: setup.tables,
            ports: Ports::default(),
            outbound,
            inbound: setup.inbound,
            transmit: Underlay::new(setup.sockets, Arc::clone(&setup.counters)),
            arena: Arena::new(ARENA_BYTES),
            recv: RecvBatch::new(RECV_SLOTS),
            counters: setup.counters,
            drops: setup.drops,
            started: setup.epoch,
            expired_ms: 0,
        })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When epoll itself fails, which only a defect can cause.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.counters.turns.add(1);
            let now_ms = self.started.elapsed().as_millis() as u64;
            if now_ms.saturating_sub(self.expired_ms) > EXPIRE_MS {
                self.expired_ms = now_ms;
                self.outbound.paths.expire(now_ms);
            }
            for event in &events[..ready] {
                let index = event.data() & !KIND_MASK;
                match event.data() & KIND_MASK {
                    KIND_PORT => {
                        self.serve_port(NetworkKey(index as u32), now_ms);
                    }
                    KIND_LISTENER => self.serve_listener(index as usize, now_ms),
                    KIND_RAW => {
                        let failed = event.events().contains(EpollFlags::EPOLLERR);
                        self.serve_raw(index as usize, failed, now_ms);
                    }
                    KIND_SENDER => self.serve_errors(index as usize, now_ms),
                    _ => {
                        let _ = self.wake.read();
                        self.pulse.answer();
                        if self.obey(now_ms) {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Carries out the commands that wait. True when one of them was to stop.
    fn obey(&mut self, now_ms: u64) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::AddPort { network, queue, stats, budget, local } => {
                    let link = queue.link();
                    let answers = Answers::default();
                    let state = PortState { network, stats, budget, answers, local, link };
                    self.add_port(queue, state);
                }
                Command::SetLocal { network, local, done } => {
                    if let Some(port) = self.ports.get_mut(network) {
                        port.state.local = local;
                    }
                    let _ = done.send(());
                }
                Command::RemovePort { network, done } => {
                    self.remove_port(network);
                    let _ = done.send(());
                }
                Command::Inject { network, frame } => {
                    let header = encap::vnet::Header::NONE.emit();
                    let pieces = [IoSlice::new(&header), IoSlice::new(&frame)];
                    if self.ports.deliver(network, &pieces) {
                        self.counters.injected.add(1);
                    }
                }
                Command::SetUnderlayMtu(mtu) => self.outbound.paths.set_own_mtu(mtu, now_ms),
                Command::Listen { at, listener } => self.listen(at, listener),
                Command::ListenIp { at, socket } => self.listen_ip(at, socket),
                Command::Replace { flavor, number, sender, done } => {
                    self.replace(flavor, number, sender);
                    let _ = done.send(());
                }
                Command::Stop => return true,
            }
        }
        false
    }

    fn listen(&mut self, at: std::net::SocketAddr, listener: Listener) {
        let listeners = &mut self.transmit.sockets.listeners;
        let data = KIND_LISTENER | listeners.len() as u64;
        if let Err(err) = self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, data)) {
            tracing::error!(%at, %err, "a new receive socket cannot be waited for");
            return;
        }
        listeners.push(listener);
        self.inbound.add_own((at.ip(), at.port()));
    }

    fn listen_ip(&mut self, at: std::net::IpAddr, socket: RawSocket) {
        let index = socket.kind.index();
        let wanted = if socket.kind.fragments { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let event = EpollEvent::new(wanted, KIND_RAW | index as u64);
        if let Err(err) = self.epoll.add(&socket, event) {
            tracing::error!(%at, %err, "a new raw socket cannot be waited for");
            return;
        }
        if let Some(place) = self.transmit.raw.get_mut(index) {
            *place = Some(socket);
        }
        self.inbound.add_own((at, 0));
    }

    fn replace(&mut self, flavor: Flavor, number: usize, sender: Sender) {
        let sockets = &mut self.transmit.sockets;
        let Some(index) = sockets.index_of(flavor, number) else { return };
        let event = EpollEvent::new(EpollFlags::empty(), KIND_SENDER | index as u64);
        if let Err(err) = self.epoll.add(&sender, event) {
            tracing::error!(%err, "a new send socket's errors cannot be waited for");
        }
        // The former one leaves epoll as it is closed.
        sockets.replace(flavor, number, sender);
    }

    fn add_port(&mut self, queue: Queue, state: PortState) {
        let network = state.network;
        self.remove_port(network);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, KIND_PORT | u64::from(network.0));
        if let Err(err) = self.epoll.add(&queue, event) {
            tracing::error!(network = network.0, %err, "a port cannot be waited for");
            return;
        }
        // All ports are of one kernel.
        self.inbound.set_uso(queue.takes_uso());
        let index = network.0 as usize;
        if self.ports.0.len() <= index {
            self.ports.0.resize_with(index + 1, || None);
        }
        self.ports.0[index] = Some(Port { queue, state });
    }

    fn remove_port(&mut self, network: NetworkKey) {
        if let Some(slot) = self.ports.0.get_mut(network.0 as usize)
            && let Some(port) = slot.take()
        {
            let _ = self.epoll.delete(&port.queue);
        }
    }

    fn serve_port(&mut self, network: NetworkKey, now_ms: u64) {
        let snapshot = self.tables.load();
        let turn = Turn { snapshot: &snapshot, now_ms };
        let Some(port) = self.ports.get_mut(network) else { return };
        for _ in 0..ROUNDS {
            let mut at = 0;
            let mut drained = false;
            for _ in 0..FRAMES_PER_ROUND {
                let Some(room) = self.arena.get_mut(at..at + READ_BYTES) else { break };
                let len = match port.queue.read(room) {
                    Ok(len) => len,
                    Err(error) => {
                        // Nothing left, or the device is down or gone: the agent sees to that.
                        if error.raw_os_error() == Some(libc::EBADFD) {
                            // A deleted device is reported as an error for ever.
                            let _ = self.epoll.delete(&port.queue);
                        }
                        drained = true;
                        break;
                    }
                };
                self.counters.port_reads.add(1);
                let offer = |outbound: &mut Outbound, state: &mut PortState, arena: &mut [u8]| {
                    outbound.frame(turn, state, arena, at, len)
                };
                let mut outcome = offer(&mut self.outbound, &mut port.state, &mut self.arena);
                while matches!(outcome, Outcome::Full | Outcome::LocalAndOn) {
                    if outcome == Outcome::LocalAndOn {
                        give_back(port, &self.arena, at, len, &self.counters);
                    } else {
                        flush(
                            &mut self.outbound,
                            &self.arena,
                            &mut self.transmit,
                            now_ms,
                            &self.counters,
                            &self.drops,
                        );
                    }
                    outcome = offer(&mut self.outbound, &mut port.state, &mut self.arena);
                }
                if outcome == Outcome::Local {
                    give_back(port, &self.arena, at, len, &self.counters);
                }
                if let Outcome::Reply(reply_len) = outcome {
                    let header = encap::vnet::Header::NONE.emit();
                    let reply = self.outbound.reply(reply_len);
                    if port.queue.write(&[IoSlice::new(&header), IoSlice::new(reply)]).is_err() {
                        port.state.stats.drops.add(DropReason::InPortError, 1);
                    }
                }
                // The next frame begins on a cache line of its own.
                at = (at + len).next_multiple_of(64);
            }
            flush(
                &mut self.outbound,
                &self.arena,
                &mut self.transmit,
                now_ms,
                &self.counters,
                &self.drops,
            );
            if drained {
                return;
            }
        }
    }

    fn serve_listener(&mut self, index: usize, now_ms: u64) {
        let snapshot = self.tables.load();
        let turn = Turn { snapshot: &snapshot, now_ms };
        let Some(listener) = self.transmit.sockets.listeners.get(index) else { return };
        if listener.carries != Carries::Frames {
            let source = Source {
                via: Via::Udp(listener.port),
                carries: listener.carries,
                outer_header: false,
            };
            let ends = (&mut self.recv, &mut self.inbound, &mut self.ports);
            let paths = &mut self.outbound.paths;
            receive_packets(listener.as_fd(), source, turn, ends, paths, &self.counters);
            return;
        }
        for _ in 0..ROUNDS {
            let Ok(count) = self.recv.recv(listener.as_fd()) else { return };
            self.counters.receive_calls.add(1);
            for datagram in 0..count {
                let Some(meta) = self.recv.meta(datagram) else { break };
                let arena = self.recv.arena();
                self.inbound.datagram(turn, listener.port, arena, &meta, &mut self.ports);
            }
            self.inbound.flush(self.recv.arena(), &mut self.ports);
            if count < RECV_SLOTS {
                return;
            }
        }
    }

    fn serve_raw(&mut self, index: usize, failed: bool, now_ms: u64) {
        let snapshot = self.tables.load();
        let turn = Turn { snapshot: &snapshot, now_ms };
        let Some(socket) = self.transmit.raw.get(index).and_then(Option::as_ref) else { return };
        let kind = socket.kind;
        if failed {
            // What the path said would fail the next receive.
            let paths = &mut self.outbound.paths;
            let errors = learn_from(socket.as_fd(), paths, now_ms, &self.counters);
            self.counters.underlay_errors.add(errors);
            socket.take_error();
        }
        if kind.fragments {
            return;
        }
        let source = Source { via: Via::Ip, carries: kind.carries(), outer_header: !kind.ipv6 };
        let ends = (&mut self.recv, &mut self.inbound, &mut self.ports);
        receive_packets(
            socket.as_fd(),
            source,
            turn,
            ends,
            &mut self.outbound.paths,
            &self.counters,
        );
    }

    fn serve_errors(&mut self, index: usize, now_ms: u64) {
        if let Some(sender) = self.transmit.sockets.senders().nth(index) {
            let paths = &mut self.outbound.paths;
            let errors = learn_from(sender.as_fd(), paths, now_ms, &self.counters);
            self.counters.underlay_errors.add(errors);
            if errors == 0 {
                // A pending error without a queue entry would wake us for ever.
                let _ = sender.take_error();
            }
        }
    }
}

/// Serves a socket whose datagrams are packets.
fn receive_packets(
    socket: BorrowedFd<'_>,
    source: Source,
    turn: Turn<'_>,
    (recv, inbound, ports): (&mut RecvBatch, &mut Inbound, &mut Ports),
    paths: &mut Paths,
    counters: &WorkerCounters,
) {
    for _ in 0..ROUNDS {
        let Ok(count) = recv.recv(socket) else { return };
        counters.receive_calls.add(1);
        for datagram in 0..count {
            let Some(meta) = recv.meta(datagram) else { break };
            inbound.packets(turn, source, recv.arena(), &meta, paths, ports);
        }
        inbound.flush(recv.arena(), ports);
        if count < RECV_SLOTS {
            return;
        }
    }
}

/// Writes a frame back to the port just as it was read: virtio header, partial checksum and all, so
/// that a super-frame stays one.
fn give_back(port: &Port, arena: &Arena, at: usize, len: usize, counters: &WorkerCounters) {
    counters.port_writes.add(1);
    let frame = arena.get(at..at + len).unwrap_or_default();
    if port.queue.write(&[IoSlice::new(frame)]).is_err() {
        port.state.stats.drops.add(DropReason::InPortError, 1);
    }
}

fn flush(
    outbound: &mut Outbound,
    arena: &[u8],
    transmit: &mut Underlay,
    now_ms: u64,
    counters: &WorkerCounters,
    drops: &DropCounters,
) {
    let Outbound { queue, paths, .. } = outbound;
    queue.flush(arena, &mut Outlet { transmit, paths, now_ms, counters, drops });
}

const _: () = assert!(READ_BYTES > SLOT, "a read takes the largest frame that a datagram holds");

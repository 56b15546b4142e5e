//! The agent's handle on the workers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use crossbeam_utils::CachePadded;
use dashmap::DashMap;
use fdb::NetworkKey;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::drop::DropReason;
use super::flood::Budget;
use super::heard::Heard;
use super::inbound::Inbound;
use super::learn::{self, LearnQueue};
use super::ledger::{self, Ledger};
use super::port::PortStats;
use super::probe::Probes;
use super::pulse::Pulse;
use super::worker::{Command, Setup, Worker};
use crate::port::queue::Queue;
use crate::sys::sockopt::Queued;
use crate::sys::{privilege, thread};
use crate::telemetry::counters::{DropCounters, WorkerCounters};
use crate::underlay::probe::UdpOffload;
use crate::underlay::udp::{self, Listener, Plan, Sockets};
use crate::underlay::{self, Carries, Watcher};

/// How long a worker may take to answer a command before it is given up.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands that may wait for a worker.
const COMMANDS: usize = 1024;

/// What the datapath starts with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads, each with its queue of every port and its sockets.
    pub workers: usize,
    /// VTEP addresses of this host, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// What other hosts know them as: others behind NAT.
    pub advertised: Vec<IpAddr>,
    /// UDP ports to listen on.
    pub ports: Vec<u16>,
    /// Source ports per worker and fan.
    pub fan: usize,
    /// UDP offloads to use, probed and cut down by configuration.
    pub offload: UdpOffload,
    /// Join received segments into super-frames.
    pub coalesce: bool,
    /// Nice value of the workers' threads.
    pub nice: i32,
    /// This host's underlay MTU in bytes.
    pub underlay_mtu: u16,
    /// How old the last confirmation of a learned address gets before it is confirmed again.
    pub confirm: fdb::Millis,
    /// The zero of the tables' clock ([`fdb::Millis`]).
    pub epoch: Instant,
}

/// Why the datapath did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread or descriptor could not be made.
    #[error("cannot start worker {index}: {source}")]
    Worker {
        /// Which one.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The underlay could not be opened.
    #[error(transparent)]
    Underlay(#[from] underlay::Error),
}

pub(super) struct Running {
    commands: Sender<Command>,
    /// The most commands that have waited.
    commands_high: AtomicUsize,
    wake: Arc<EventFd>,
    pulse: Arc<Pulse>,
    counters: Arc<WorkerCounters>,
    drops: Arc<DropCounters>,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Running {
    /// False when the worker has ended, or does not take commands any more.
    pub(super) fn tell(&self, command: Command) -> bool {
        let sent = self.commands.send_timeout(command, COMMAND_TIMEOUT).is_ok();
        self.commands_high.fetch_max(self.commands.len(), Ordering::Relaxed);
        sent && self.wake.write(1).is_ok()
    }
}

/// A port as the agent knows it.
struct Port {
    /// What the kernel tells of it, written by the agent.
    kernel: Arc<PortStats>,
    /// Frames that its queues had no room for, as the device last told.
    overflowed: u64,
}

/// The running datapath. Dropping it stops the workers.
pub struct Datapath {
    pub(super) config: Config,
    pub(super) workers: Vec<CachePadded<Running>>,
    learn: Arc<LearnQueue>,
    heard: Arc<Heard>,
    probes: Arc<Probes>,
    ledger: Ledger,
    ports: DashMap<NetworkKey, Port>,
    /// The UDP ports that are listened on, and for what.
    pub(super) listening: Mutex<Vec<(u16, Carries)>>,
    /// Whether the raw sockets are open.
    pub(super) raw: Mutex<bool>,
    /// The ports of the send sockets, the same for all workers.
    pub(super) sources: Mutex<udp::SourcePorts>,
    /// The workers' receive sockets, to be looked at only.
    pub(super) watched: Mutex<Vec<Watcher>>,
    /// The most bytes that waited in one of them, as far as it was seen.
    received_high: AtomicU64,
    /// Datagrams that they had no room for, at the last look.
    overflowed: AtomicU64,
    underlay_mtu: AtomicU16,
}

impl Datapath {
    /// Opens the underlay and starts the workers.
    ///
    /// # Errors
    /// See [`Error`]; nothing keeps running then.
    pub fn start(config: Config, tables: &fdb::Reader) -> Result<Self, Error> {
        for address in &config.addresses {
            for port in &config.ports {
                udp::claim(SocketAddr::new(*address, *port))?;
            }
        }
        let mut datapath = Self {
            workers: Vec::new(),
            learn: Arc::new(LearnQueue::default()),
            heard: Arc::new(Heard::default()),
            probes: Arc::default(),
            ledger: Ledger::default(),
            ports: DashMap::new(),
            listening: Mutex::new(
                config.ports.iter().map(|port| (*port, Carries::Frames)).collect(),
            ),
            raw: Mutex::default(),
            sources: Mutex::default(),
            watched: Mutex::default(),
            received_high: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            underlay_mtu: AtomicU16::new(config.underlay_mtu),
            config,
        };
        let mut ports = None;
        for index in 0..datapath.config.workers.max(1) {
            let running = datapath.start_worker(index, tables, &mut ports)?;
            datapath.workers.push(CachePadded::new(running));
        }
        datapath.sources = Mutex::new(ports.unwrap_or_default());
        Ok(datapath)
    }

    fn start_worker(
        &self,
        index: usize,
        tables: &fdb::Reader,
        ports: &mut Option<udp::SourcePorts>,
    ) -> Result<Running, Error> {
        let config = &self.config;
        let failed = |source| Error::Worker { index, source };
        let plan = Plan {
            addresses: config.addresses.clone(),
            ports: config.ports.clone(),
            fan: config.fan,
            offload: config.offload,
        };
        let sockets = Sockets::open(&plan, ports.as_ref())?;
        ports.get_or_insert_with(|| sockets.source_ports());
        let watchers = sockets.listeners.iter().flat_map(Listener::watcher);
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).extend(watchers);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let wake = Arc::new(wake);
        let (commands, receiver) = crossbeam_channel::bounded(COMMANDS);
        let pulse = Arc::new(Pulse::default());
        let counters = Arc::new(WorkerCounters::default());
        let drops = Arc::new(DropCounters::default());
        let own = config
            .addresses
            .iter()
            .flat_map(|address| config.ports.iter().map(|port| (*address, *port)))
            .collect();
        let worker = Worker::new(Setup {
            sockets,
            offload: config.offload,
            fan: config.fan,
            addresses: config.addresses.clone(),
            underlay_mtu: config.underlay_mtu,
            tables: tables.clone(),
            inbound: Inbound::new(
                own,
                config.coalesce,
                config.confirm,
                Arc::clone(&counters),
                Arc::clone(&drops),
                Arc::clone(&self.learn),
                Arc::clone(&self.heard),
            )
            .with_probes(Arc::clone(&self.probes), config.advertised.clone()),
            heard: Arc::clone(&self.heard),
            commands: receiver,
            wake: Arc::clone(&wake),
            pulse: Arc::clone(&pulse),
            counters: Arc::clone(&counters),
            drops: Arc::clone(&drops),
            epoch: config.epoch,
        })
        .map_err(failed)?;
        let nice = config.nice;
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Err(err) = thread::set_nice(nice) {
                    tracing::warn!(worker = index, nice, %err, "the worker's nice value stays as it is");
                }
                // All it needs is open. What it reads comes from strangers.
                if let Err(err) = privilege::hold(privilege::NOTHING) {
                    tracing::warn!(worker = index, %err, "a worker keeps its capabilities");
                }
                let result = worker.run();
                if let Err(err) = &result {
                    tracing::error!(worker = index, %err, "a worker ended");
                }
                result
            })
            .map_err(failed)?;
        Ok(Running {
            commands,
            commands_high: AtomicUsize::new(0),
            wake,
            pulse,
            counters,
            drops,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Gives queue k to worker k. `queues` holds one per worker, `name` is the network's: its totals
    /// go on where an earlier port left them. `overflowed` is what the device has told so far of
    /// frames that its queues had no room for. `local` says whether frames between two containers of
    /// this host come to them.
    pub fn add_port(
        &self,
        network: NetworkKey,
        name: &str,
        queues: Vec<Queue>,
        overflowed: u64,
        local: bool,
    ) {
        let name: Arc<str> = name.into();
        let shared = Arc::new(Budget::default());
        for (worker, queue) in self.workers.iter().zip(queues) {
            let stats = self.ledger.open(&name);
            let budget = Arc::clone(&shared);
            worker.tell(Command::AddPort { network, queue, stats, budget, local });
        }
        let kernel = self.ledger.open(&name);
        self.ports.insert(network, Port { kernel, overflowed });
    }

    /// Says whether frames between two containers of this host come to the port of `network`, and
    /// waits until every worker knows.
    pub fn set_local(&self, network: NetworkKey, local: bool) {
        self.ask_all(|done| Command::SetLocal { network, local, done });
    }

    /// Gives every worker a command and waits until all have carried it out.
    fn ask_all(&self, command: impl Fn(Sender<()>) -> Command) {
        let (done, finished) = crossbeam_channel::bounded(self.workers.len());
        let told = self.workers.iter().filter(|worker| worker.tell(command(done.clone()))).count();
        for _ in 0..told {
            let _ = finished.recv_timeout(COMMAND_TIMEOUT);
        }
    }

    /// Takes the port from every worker and waits until its queues are closed.
    pub fn remove_port(&self, network: NetworkKey) {
        self.ask_all(|done| Command::RemovePort { network, done });
        self.ports.remove(&network);
    }

    /// Notes how many frames the queues of a port had no room for, since the device was made.
    pub fn note_overflow(&self, network: NetworkKey, overflowed: u64) {
        if let Some(mut port) = self.ports.get_mut(&network) {
            // A device that was made anew counts from zero.
            let since = if overflowed < port.overflowed { 0 } else { port.overflowed };
            port.kernel.drops.add(DropReason::OutPortOverflow, overflowed - since);
            port.overflowed = overflowed;
        }
    }

    /// Writes `frame` to the port of `network`, from the first worker.
    pub fn inject(&self, network: NetworkKey, frame: Vec<u8>) {
        if let Some(worker) = self.workers.first() {
            worker.tell(Command::Inject { network, frame });
        }
    }

    /// This host's underlay MTU in bytes, as the workers know it.
    #[must_use]
    pub fn underlay_mtu(&self) -> u16 {
        self.underlay_mtu.load(Ordering::Relaxed)
    }

    /// Tells every worker this host's underlay MTU in bytes.
    pub fn set_underlay_mtu(&self, mtu: u16) {
        self.underlay_mtu.store(mtu, Ordering::Relaxed);
        for worker in &self.workers {
            worker.tell(Command::SetUnderlayMtu(mtu));
        }
    }

    /// Addresses learned from frames, for the table writer.
    #[must_use]
    pub fn learned(&self) -> &LearnQueue {
        &self.learn
    }

    /// Probes of the tunnels, received from other hosts.
    #[must_use]
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// Whether a valid datagram came from `vtep` since the last call.
    #[must_use]
    pub fn heard(&self, vtep: fdb::VtepKey) -> bool {
        self.heard.take(vtep)
    }

    /// Sums of the workers' counters, in the order of [`WorkerCounters::DESCRIPTIONS`].
    #[must_use]
    pub fn counters(&self) -> Vec<Vec<u64>> {
        self.workers.iter().map(|worker| worker.counters.values()).collect()
    }

    /// What passed the ports of each network that was here since the start, in the order of
    /// [`PortCounters::DESCRIPTIONS`](crate::telemetry::counters::PortCounters::DESCRIPTIONS).
    #[must_use]
    pub fn traffic(&self) -> Vec<(Arc<str>, Vec<u64>)> {
        self.ledger.traffic()
    }

    /// Frames dropped for each reason, in the order of [`DropReason::ALL`]: where no network was
    /// known, and by network.
    #[must_use]
    pub fn drops(&self) -> Vec<Drops> {
        let (mut without, by_network) = self.ledger.drops();
        for (reason, sum) in DropReason::ALL.iter().zip(&mut without) {
            *sum += self.workers.iter().map(|worker| worker.drops.get(*reason)).sum::<u64>();
        }
        if let Some(sum) = without.get_mut(DropReason::InUnderlayOverflow as usize) {
            *sum += self.received().dropped;
        }
        let of = |(index, without_network)| Drops {
            without_network,
            by_network: by_network
                .iter()
                .filter_map(|(name, drops)| {
                    let count = drops.get(index).copied().filter(|count| *count != 0)?;
                    Some((Arc::clone(name), count))
                })
                .collect(),
        };
        without.into_iter().enumerate().map(of).collect()
    }

    /// What waits in the receive sockets: the fullest one, its limit, and what all had no room for.
    fn received(&self) -> Queued {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Queued::default();
        for queue in watched.iter().flat_map(Watcher::queue) {
            sum.dropped += queue.dropped;
            sum.used_bytes = sum.used_bytes.max(queue.used_bytes);
            sum.limit_bytes = sum.limit_bytes.max(queue.limit_bytes);
        }
        // A look now and then does not see it full; that it had no room does.
        let full = self.overflowed.fetch_max(sum.dropped, Ordering::Relaxed) < sum.dropped;
        let high = if full { sum.limit_bytes } else { sum.used_bytes };
        self.received_high.fetch_max(high, Ordering::Relaxed);
        sum
    }

    /// Asks every worker whether it still turns. Returns those that have not answered since the
    /// last time; one that is asked for the first time is believed.
    #[must_use]
    pub fn stalled(&self) -> Vec<usize> {
        let stalled = self.workers.iter().enumerate().filter(|(_, worker)| {
            let answered = worker.pulse.ask();
            // A full counter of the eventfd means that it is readable already.
            let _ = worker.wake.write(1);
            !answered
        });
        stalled.map(|(index, _)| index).collect()
    }

    /// The datapath's bounds, as full as they are.
    #[must_use]
    pub fn bounds(&self) -> Vec<Bound> {
        let received = self.received();
        let commands = |of: fn(&Running) -> usize| {
            self.workers.iter().map(|worker| of(worker)).max().unwrap_or_default() as u64
        };
        vec![
            Bound {
                name: "worker_commands",
                unit: "commands",
                help: "Commands of the agent that wait for one worker; the agent waits for room.",
                used: Some(commands(|worker| worker.commands.len())),
                limit: COMMANDS as u64,
                high: Some(commands(|worker| worker.commands_high.load(Ordering::Relaxed))),
            },
            Bound {
                name: "learn_queue",
                unit: "entries",
                help: "Learned addresses on the way to the tables; more are counted as learn_overflow and seen again with the next frame.",
                used: Some(self.learn.len() as u64),
                limit: learn::CAPACITY as u64,
                high: Some(self.learn.high() as u64),
            },
            Bound {
                name: "network_totals",
                unit: "networks",
                help: "Networks whose totals are kept, here or gone; those of more are added up without a name.",
                used: Some(self.ledger.networks() as u64),
                limit: ledger::NETWORKS as u64,
                high: Some(self.ledger.networks() as u64),
            },
            Bound {
                name: "underlay_receive_buffer",
                unit: "bytes",
                help: "Datagrams that wait in one receive socket, with the kernel's overhead; more are dropped as in_underlay_overflow.",
                used: Some(received.used_bytes),
                limit: received.limit_bytes,
                high: Some(self.received_high.load(Ordering::Relaxed)),
            },
        ]
    }
}

/// Something bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Its stable name.
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// What it is, and what happens at the limit.
    pub help: &'static str,
    /// How much there is now; `None` where the kernel does not tell.
    pub used: Option<u64>,
    /// How much there may be.
    pub limit: u64,
    /// The most that there was since the agent started, as far as it was looked at.
    pub high: Option<u64>,
}

/// How often a reason was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Before a network was known, or in the underlay.
    pub without_network: u64,
    /// By the network's name, only those that have any; networks that are gone keep theirs.
    pub by_network: Vec<(Arc<str>, u64)>,
}

impl Drop for Datapath {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.tell(Command::Stop);
        }
        for worker in &self.workers {
            let thread = worker.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        }
    }
}

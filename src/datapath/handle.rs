//! The agent's handle on the workers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::Mutex;
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
use super::learn::LearnQueue;
use super::port::PortStats;
use super::worker::{Command, Setup, Worker};
use crate::port::tap::Queue;
use crate::sys::thread;
use crate::telemetry::counters::{DropCounters, PortCounters, WorkerCounters};
use crate::underlay;
use crate::underlay::probe::UdpOffload;
use crate::underlay::udp::{self, Plan, Sockets};

/// How long a worker may take to answer a command before it is given up.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// What the datapath starts with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads, each with its queue of every port and its sockets.
    pub workers: usize,
    /// VTEP addresses of this host, at most one per family.
    pub addresses: Vec<IpAddr>,
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

struct Running {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    counters: Arc<WorkerCounters>,
    drops: Arc<DropCounters>,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Running {
    /// False when the worker has ended.
    fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok() && self.wake.write(1).is_ok()
    }
}

/// The running datapath. Dropping it stops the workers.
pub struct Datapath {
    config: Config,
    workers: Vec<CachePadded<Running>>,
    learn: Arc<LearnQueue>,
    heard: Arc<Heard>,
    /// Drops at ports that are gone, so that a total never falls.
    retired: Mutex<Vec<u64>>,
    stats: DashMap<NetworkKey, Vec<Arc<PortStats>>>,
    listening: Mutex<Vec<u16>>,
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
            retired: Mutex::new(vec![0; DropReason::ALL.len()]),
            stats: DashMap::new(),
            listening: Mutex::new(config.ports.clone()),
            config,
        };
        let mut ports = None;
        for index in 0..datapath.config.workers.max(1) {
            let running = datapath.start_worker(index, tables, &mut ports)?;
            datapath.workers.push(CachePadded::new(running));
        }
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
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let wake = Arc::new(wake);
        let (commands, receiver) = crossbeam_channel::bounded(1024);
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
            ),
            commands: receiver,
            wake: Arc::clone(&wake),
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
                let result = worker.run();
                if let Err(err) = &result {
                    tracing::error!(worker = index, %err, "a worker ended");
                }
                result
            })
            .map_err(failed)?;
        Ok(Running { commands, wake, counters, drops, thread: Mutex::new(Some(thread)) })
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Gives queue k to worker k. `queues` holds one per worker. `local` says whether frames between
    /// two containers of this host come to them.
    pub fn add_port(&self, network: NetworkKey, queues: Vec<Queue>, local: bool) {
        let mut all = Vec::with_capacity(self.workers.len());
        let shared = Arc::new(Budget::default());
        for (worker, queue) in self.workers.iter().zip(queues) {
            let stats = Arc::new(PortStats::default());
            all.push(Arc::clone(&stats));
            let budget = Arc::clone(&shared);
            worker.tell(Command::AddPort { network, queue, stats, budget, local });
        }
        self.stats.insert(network, all);
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
        if let Some((_, all)) = self.stats.remove(&network) {
            let mut retired = self.retired.lock().unwrap_or_else(|poison| poison.into_inner());
            for (total, reason) in retired.iter_mut().zip(DropReason::ALL) {
                *total += all.iter().map(|stats| stats.drops.get(*reason)).sum::<u64>();
            }
        }
    }

    /// Writes `frame` to the port of `network`, from the first worker.
    pub fn inject(&self, network: NetworkKey, frame: Vec<u8>) {
        if let Some(worker) = self.workers.first() {
            worker.tell(Command::Inject { network, frame });
        }
    }

    /// Tells every worker this host's underlay MTU in bytes.
    pub fn set_underlay_mtu(&self, mtu: u16) {
        for worker in &self.workers {
            worker.tell(Command::SetUnderlayMtu(mtu));
        }
    }

    /// Listens on one more UDP port, if it does not yet.
    ///
    /// # Errors
    /// As [`udp::claim`].
    pub fn listen(&self, port: u16) -> Result<(), underlay::Error> {
        let mut listening = self.listening.lock().unwrap_or_else(|poison| poison.into_inner());
        if listening.contains(&port) {
            return Ok(());
        }
        for address in &self.config.addresses {
            udp::claim(SocketAddr::new(*address, port))?;
        }
        for address in &self.config.addresses {
            for worker in &self.workers {
                worker.tell(Command::Listen(SocketAddr::new(*address, port)));
            }
        }
        listening.push(port);
        Ok(())
    }

    /// Addresses learned from frames, for the table writer.
    #[must_use]
    pub fn learned(&self) -> &LearnQueue {
        &self.learn
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

    /// What passed the port of `network`, in the order of [`PortCounters::DESCRIPTIONS`].
    #[must_use]
    pub fn port_counters(&self, network: NetworkKey) -> Vec<u64> {
        let mut sum = vec![0; PortCounters::DESCRIPTIONS.len()];
        if let Some(all) = self.stats.get(&network) {
            for stats in all.iter() {
                for (total, value) in sum.iter_mut().zip(stats.traffic.values()) {
                    *total += value;
                }
            }
        }
        sum
    }

    /// Frames dropped for `reason`: where no network was known, and by network.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> Drops {
        let at_workers: u64 = self.workers.iter().map(|worker| worker.drops.get(reason)).sum();
        let retired = self.retired.lock().unwrap_or_else(|poison| poison.into_inner());
        let without_network = at_workers + retired.get(reason as usize).copied().unwrap_or(0);
        let by_network = self
            .stats
            .iter()
            .map(|entry| {
                let count = entry.value().iter().map(|stats| stats.drops.get(reason)).sum();
                (*entry.key(), count)
            })
            .filter(|(_, count)| *count != 0)
            .collect();
        Drops { without_network, by_network }
    }
}

/// How often a reason was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Before a network was known, in the underlay, or in networks that are no longer here.
    pub without_network: u64,
    /// By network, only those that have any.
    pub by_network: Vec<(NetworkKey, u64)>,
}

impl Drop for Datapath {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.tell(Command::Stop);
        }
        for worker in &self.workers {
            let thread = worker.thread.lock().unwrap_or_else(|poison| poison.into_inner()).take();
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        }
    }
}

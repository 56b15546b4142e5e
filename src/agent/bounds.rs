//! What is bounded on this host, how full it is and was.
//!
//! Every queue and table that outsiders can fill has a limit with a name. What the datapath has it
//! tells itself ([`Datapath::bounds`](crate::datapath::Datapath::bounds)); the rest is looked at
//! once a second, which is how exact a high-water mark can be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use super::Agent;
use super::state::Stage;
use crate::datapath::{Bound, heard};
use crate::link::network::TAP_QUEUE_FRAMES;
use crate::link::source_check;

/// The most that was seen of each.
#[derive(Default)]
pub struct Marks {
    high: Mutex<BTreeMap<&'static str, u64>>,
    /// Batches of the watch that wait to be applied, and how many may.
    batches: AtomicU64,
    batches_max: AtomicU64,
}

impl Marks {
    fn mark(&self, name: &'static str, used: u64) -> u64 {
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = high.entry(name).or_default();
        *mark = used.max(*mark);
        *mark
    }

    /// Notes how many batches of the watch wait, of how many that may.
    pub fn batches(&self, waiting: usize, limit: usize) {
        self.batches.store(waiting as u64, Ordering::Relaxed);
        self.batches_max.store(limit as u64, Ordering::Relaxed);
        self.mark("watch_batches", waiting as u64);
    }
}

/// All that is bounded, in a stable order.
#[must_use]
pub fn all(agent: &Agent) -> Vec<Bound> {
    let mut bounds = agent.datapath.bounds();
    let mut add = |name, unit, help, used: Option<u64>, limit: u64| {
        let high = used.map(|used| agent.marks.mark(name, used));
        bounds.push(Bound { name, unit, help, used, limit, high });
    };
    add(
        "port_queue",
        "frames",
        "Frames that wait in one queue of a network's port; more are dropped as out_port_overflow.",
        None,
        TAP_QUEUE_FRAMES.into(),
    );
    let snapshot = agent.tables.reader().load();
    let (limits, retired) = agent.tables.writer_limits();
    let fullest = snapshot.networks().map(|(_, tables)| tables.learned_len()).max();
    add(
        "learned_addresses",
        "entries",
        "Learned addresses of one network, the fullest; the oldest of the VTEP with the most make room.",
        Some(fullest.unwrap_or_default() as u64),
        limits.learned_per_network as u64,
    );
    add(
        "table_generations",
        "generations",
        "Former generations of the tables that a worker may still read; more are freed by the last reader.",
        Some(retired as u64),
        limits.retired as u64,
    );
    add(
        "vteps",
        "vteps",
        "VTEPs in the tables; whether those beyond are heard is not known.",
        Some(snapshot.vteps_len() as u64),
        heard::SLOTS as u64,
    );
    add(
        "networks",
        "networks",
        "Networks in the tables of this host; more are refused.",
        Some(snapshot.networks_len() as u64),
        fdb::SLOTS_MAX.into(),
    );
    add(
        "watch_batches",
        "batches",
        "Changes of the store that wait to be applied; the watch waits for room.",
        Some(agent.marks.batches.load(Ordering::Relaxed)),
        agent.marks.batches_max.load(Ordering::Relaxed),
    );
    let mut ports: BTreeMap<String, u64> = BTreeMap::new();
    for note in agent.attachments().into_iter().filter(|note| note.stage == Stage::Attached) {
        *ports.entry(note.network).or_default() += 1;
    }
    add(
        "endpoints_per_network",
        "endpoints",
        "Endpoints of one network on this host, the fullest: the kernel's bridge takes no more ports.",
        Some(ports.into_values().max().unwrap_or_default()),
        source_check::PORTS_MAX.into(),
    );
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let open = std::fs::read_dir("/proc/self/fd").map(|all| all.count() as u64).ok();
        add(
            "open_files",
            "files",
            "Descriptors of the agent; an attach that gets none fails.",
            open,
            soft,
        );
    }
    bounds
}

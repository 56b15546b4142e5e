//! What a worker keeps of one port.

use std::sync::Arc;

use encap::Link;
use fdb::NetworkKey;

use super::flood::Budget;
use crate::telemetry::counters::{DropCounters, PortCounters};

/// ICMP answers of each kind of one port and worker, in a second and at once (RFC 4443 section 2.4 (f)).
const ANSWERS_PER_SECOND: u32 = 1000;
const ANSWERS_AT_ONCE: u32 = 100;

/// Counters of one port on one worker, read by others.
#[derive(Debug, Default)]
pub struct PortStats {
    /// What passed.
    pub traffic: PortCounters,
    /// What did not, where the network was known.
    pub drops: DropCounters,
}

/// What the sandboxes behind a port are told, as one worker counts it. That packets are too long is
/// never short because of the others: connections wait for it.
#[derive(Debug, Default)]
pub struct Answers {
    too_big: Budget,
    unreachable: Budget,
}

/// A port as the frame-moving code sees it: which network it is, its counters and its budget.
pub struct PortState {
    /// The network's slot in the tables.
    pub network: NetworkKey,
    /// Shared with readers of statistics.
    pub stats: Arc<PortStats>,
    /// Of ingress replication, shared with the other workers.
    pub budget: Arc<Budget>,
    /// Budgets of ICMP answers, this worker's own.
    pub answers: Answers,
    /// Frames between two containers of this host come here and are given back.
    pub local: bool,
    /// What it reads and writes: frames, or packets.
    pub link: Link,
}

impl PortState {
    /// Whether one more answer "unreachable" may be written to the port now.
    pub fn may_tell(&self, now_ms: u64) -> bool {
        self.answers.unreachable.take_of(1, ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now_ms)
    }

    /// Whether one more answer "too big" may be written to the port now.
    pub fn may_tell_size(&self, now_ms: u64) -> bool {
        self.answers.too_big.take_of(1, ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now_ms)
    }
}

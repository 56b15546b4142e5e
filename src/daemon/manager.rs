//! What the service manager is told (`sd_notify(3)`): ready, how it goes, that we live.
//!
//! # Theory of operation
//!
//! `READY=1` is sent when there are tables to forward by: those of the last run, or a first listing
//! of the store. Where neither comes soon the agent is ready all the same, with its status saying
//! what is missing: whoever waits for it would wait for the store.
//!
//! Alive is more than that a process exists. At each beat every worker is asked whether it still
//! turns, by its wake-up descriptor, so an idle one answers as well; and the task that keeps the
//! tables must have come round lately. The beat itself needs a thread of the control plane. Only
//! when all of that holds, `WATCHDOG=1` is sent; else nothing is, and the manager restarts the agent
//! when its patience (`WATCHDOG_USEC`) ends, which costs containers nothing. Without a manager the
//! same looks end in a warning of `skybridge status`.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::Agent;
use crate::agent::tasks::SessionState;

/// How long tables are waited for before the manager is told that the agent is ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// How often the state is looked at for the manager's status line.
const STATUS: Duration = Duration::from_secs(1);
/// The longest time between two beats.
const BEAT: Duration = Duration::from_secs(5);
/// The shortest time that the keeping of the tables may stand still before it counts as stuck: it
/// waits for netlink and takes in listings of any size.
const STILL: Duration = Duration::from_secs(5);
/// Beats in a row that must fail before a person is told.
const FAILED_BEATS: u32 = 2;
/// What needs attention.
const STALLED: &str = "stalled";

/// Tells of readiness once, and of the state as it changes, for ever.
pub(super) async fn tell(agent: Arc<Agent>) {
    let mut tick = interval(STATUS / 10);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let has_tables =
        || agent.tables.is_complete() || agent.tables.view(|view| view.revision().0) != 0;
    while !has_tables() && agent.started.elapsed() < READY_PATIENCE {
        tick.tick().await;
    }
    let mut told = status(&agent).await;
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&told)]);
    let mut tick = interval(STATUS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = status(&agent).await;
        if now != told {
            let _ = sd_notify::notify(&[NotifyState::Status(&now)]);
            told = now;
        }
    }
}

/// One line: what is here, and what is wrong.
async fn status(agent: &Agent) -> String {
    let store = match (agent.watch_status().is_connected(), agent.session().state) {
        (true, SessionState::Held) => "store connected",
        (true, _) => "store connected, no lease",
        (false, _) if agent.tables.is_complete() => "store away, forwarding goes on",
        (false, _) => "store not reached yet",
    };
    let networks = agent.networks.all().await.len();
    let endpoints = agent.attachments().len();
    let hosts = agent.tables.view(|view| view.hosts().count());
    let warnings = match agent.warnings().len() {
        0 => String::new(),
        1 => "; 1 warning, see `skybridge status`".to_owned(),
        some => format!("; {some} warnings, see `skybridge status`"),
    };
    format!("{networks} networks and {endpoints} endpoints here, {hosts} hosts, {store}{warnings}")
}

/// Beats for as long as workers and control plane go on, for ever.
pub(super) async fn beat(agent: Arc<Agent>) {
    let patience = sd_notify::watchdog_enabled();
    // Several beats within the manager's patience: one that comes late is no reason to restart.
    let every = patience.map_or(BEAT, |patience| (patience / 4).min(BEAT));
    let still = patience.map_or(STILL, |patience| (patience / 2).max(STILL));
    let mut tick = interval(every.max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = 0;
    // The first question has no answer to be late.
    let _ = agent.datapath.stalled();
    tick.tick().await;
    loop {
        tick.tick().await;
        match stuck(&agent, still) {
            None => {
                failed = 0;
                agent.clear_warning(STALLED);
                if patience.is_some() {
                    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                }
            }
            Some(what) => {
                failed += 1;
                if failed >= FAILED_BEATS {
                    let next = "the agent's log may say why; restart the agent, containers keep \
                                their interfaces";
                    agent.warn(STALLED, what, Some(next.to_owned()));
                }
            }
        }
    }
}

/// What does not go on.
fn stuck(agent: &Agent, still: Duration) -> Option<String> {
    let workers = agent.datapath.stalled();
    if !workers.is_empty() {
        let numbers: Vec<String> = workers.iter().map(usize::to_string).collect();
        return Some(format!("worker {} does not turn any more", numbers.join(", ")));
    }
    let followed: Instant = *agent.followed.lock().unwrap_or_else(PoisonError::into_inner);
    let stands = followed.elapsed();
    (stands > still)
        .then(|| format!("the tables have not been looked after for {} s", stands.as_secs()))
}

//! The agent's tasks: what goes on without anybody asking.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use membership::gateway;
use membership::key::NetworkId;
use membership::session;
use membership::view::Journal;
use membership::watch::Watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use super::attention::Attention;
use super::reserve;
use super::state::{Attachment, Publication, Stage};
use crate::control::types;
use crate::driver::{attach, offline, presence};
use crate::link;

/// How often learned addresses are taken from the workers.
const LEARN_TICK: Duration = Duration::from_millis(50);
/// How often timers are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often attachments are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// How often the first registration is looked for.
const REGISTERED: Duration = Duration::from_millis(200);
/// The least time between two looks at what the store has under this host's name.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// Events that are applied and published together, where so many wait.
const EVENTS_MAX: usize = 4096;
/// The least time between two snapshots.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);
/// The longest time that the journal has to bridge.
const SNAPSHOT_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether this host's lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Held and renewed.
    Held,
    /// It ended, or cannot be renewed now.
    Lost,
    /// None was granted yet.
    Starting,
}

/// The session as last seen.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Whether the lease is held.
    pub state: SessionState,
    /// Its id.
    pub lease: Option<i64>,
    /// Its time to live.
    pub ttl: Duration,
    /// How often this host's agent started.
    pub incarnation: u64,
}

/// Applies the watch to the tables, and time and learned addresses with it, for ever.
pub async fn follow(agent: Arc<Agent>, mut watch: Watch) {
    let mut soon = interval(LEARN_TICK);
    soon.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut attention = Attention::default();
    let mut synced = false;
    loop {
        tokio::select! {
            batch = watch.next() => {
                let Some(mut batch) = batch else { return };
                let (waiting, limit) = watch.waiting();
                agent.marks.batches(waiting, limit);
                // What has piled up makes one generation.
                while batch.events.len() < EVENTS_MAX
                    && let Some(next) = watch.try_next()
                {
                    batch.join(next);
                }
                let complete = batch.complete;
                agent.doubts.look(&agent, &batch);
                let asked = reserve::is_asked(&agent, &batch.events);
                let lines = Journal::lines(&batch.events);
                let announcements = agent.tables.apply(batch);
                note(&agent, &lines);
                agent.tables.announce(announcements, &agent.datapath);
                agent.doubts.raise();
                if asked {
                    agent.reserve.wake();
                }
                agent.claims.notify_one();
                if complete {
                    settle_mtus(&agent).await;
                    agent.settle_carriers().await;
                    if !synced {
                        synced = true;
                        tracing::info!(
                            revision = agent.tables.view(|view| view.revision().0),
                            "the store's records are known"
                        );
                        tokio::spawn(after_first_listing(Arc::clone(&agent)));
                    }
                }
            }
            _ = soon.tick() => {
                let announcements = agent.tables.learn(agent.datapath.learned().drain());
                agent.tables.announce(announcements, &agent.datapath);
            }
            _ = tick.tick() => {
                let session = agent.session();
                agent.reserve.contact(session.state == SessionState::Held, session.ttl);
                let announcements = agent.tables.tick(|vtep| agent.datapath.heard(vtep));
                agent.tables.announce(announcements, &agent.datapath);
                agent.claims.notify_one();
                // A host that left for good no longer holds the MTU down, and no record says so.
                settle_mtus(&agent).await;
                agent.settle_carriers().await;
                attention.look(&agent);
                let _ = super::bounds::all(&agent);
                *agent.followed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
        }
    }
}

/// Notes what the session says. Returns when this host is refused before it was ever admitted,
/// with the reason; later refusals are warnings, because traffic goes on.
pub async fn follow_session(agent: Arc<Agent>, session: Arc<session::Session>) -> String {
    let mut state = session.state();
    let mut reached = agent.tables.reached();
    let mut checked: Option<Instant> = None;
    loop {
        let now = state.borrow_and_update().clone();
        let before = agent.session().state;
        let (held, lease) = match now {
            session::SessionState::Online { lease, .. } => {
                agent.clear_warning("session");
                (SessionState::Held, Some(lease))
            }
            session::SessionState::Refused { cause, .. } if before == SessionState::Starting => {
                return cause;
            }
            session::SessionState::Refused { cause, .. } => {
                agent.warn("session", format!("this host is refused: {cause}"), None);
                (SessionState::Lost, None)
            }
            session::SessionState::Offline { .. } if before == SessionState::Starting => {
                (SessionState::Starting, None)
            }
            session::SessionState::Offline { .. } => (SessionState::Lost, None),
        };
        {
            let mut noted = agent.session.lock().unwrap_or_else(PoisonError::into_inner);
            noted.state = held;
            noted.lease = lease;
            noted.incarnation = session.incarnation();
        }
        if held == SessionState::Held {
            // What waited for the store is told now.
            agent.present.notify_one();
        }
        loop {
            // The watch may lag behind the session, so this is no more than a reason to look.
            let doubtful = held == SessionState::Held && !is_told_rightly(&agent);
            let pause = checked
                .map_or(Duration::ZERO, |at| CHECK_PAUSE.saturating_sub(at.elapsed()))
                .max(CHECK_PAUSE / 10);
            tokio::select! {
                changed = state.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return "the session ended by itself".to_owned(),
                },
                Ok(()) = reached.changed() => {}
                () = tokio::time::sleep(pause), if doubtful => {
                    checked = Some(Instant::now());
                    session.check();
                }
            }
        }
    }
}

/// Whether the records, as far as the watch has told of them, have this run of this host.
pub(super) fn is_told_rightly(agent: &Agent) -> bool {
    if !agent.tables.is_complete() || !agent.watch_status().is_connected() {
        return true;
    }
    let incarnation = agent.incarnation();
    agent.tables.view(|view| {
        let present = view.host(&agent.name).and_then(|host| host.present.as_ref());
        present.is_some_and(|item| {
            item.record.id == agent.id && item.record.incarnation == incarnation
        })
    })
}

/// Tells the store what it could not be told, and notices sandboxes that are gone, for ever.
pub async fn look_after(agent: Arc<Agent>) {
    let mut tick = interval(LOOK_AFTER);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = agent.watch.clone();
    let mut connected = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // A store that is back is told at once. The status also tells of each revision, and with
            // each of them we would meet a detach that is still going on.
            Ok(()) = status.changed() => {
                let before = std::mem::replace(&mut connected, status.borrow().is_connected());
                if before || !connected {
                    continue;
                }
            }
            () = agent.present.notified() => {}
        }
        finish_detaches(&agent).await;
        offline::publish(&agent).await;
        if agent.tables.is_complete() {
            // What could not be set up before, or whose network has come back.
            restore_attachments(&agent, false).await;
        }
        detach_gone(&agent).await;
        agent.networks.note_overflows(&agent.datapath).await;
        if agent.session().state == SessionState::Held && agent.watch_status().is_connected() {
            // A request whose answer was lost may be carried out after all that undid it.
            remove_orphans(&agent).await;
        }
    }
}

/// Completes detaches that were cut off, or that the store could not be told of.
async fn finish_detaches(agent: &Agent) {
    let leaving = agent.attachments().into_iter().filter(|note| note.stage == Stage::Detaching);
    let mut all_told = true;
    for mut note in leaving {
        if let Err(err) = attach::take_down(agent, &mut note).await {
            let text = format!("endpoint {} cannot be removed: {err}", note.endpoint);
            agent.warn("take-down", text, err.next_step);
            return;
        }
        if note.publication != Publication::Queued && !agent.watch_status().is_connected() {
            all_told = false;
        } else if attach::forget(agent, &note).await {
            tracing::info!(endpoint = %note.endpoint, "the store knows of a detach now");
        } else {
            // The next one would wait as long in vain.
            return;
        }
    }
    agent.clear_warning("take-down");
    if all_told {
        agent.clear_warning(attach::DETACHES);
    }
}

/// Writes down what was applied, for an agent that starts while the store is away.
fn note(agent: &Agent, lines: &[u8]) {
    let mut journal = agent.journal.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(err) = journal.append(lines) {
        warn_of_disk(agent, &err);
    }
}

fn warn_of_disk(agent: &Agent, err: &dyn std::fmt::Display) {
    agent.warn(
        "snapshot",
        format!("the snapshot of the tables cannot be written: {err}"),
        Some("is the disk of the state directory full or read-only?".to_owned()),
    );
}

/// Writes the snapshot of the records while they change, for ever: with the journal since then it
/// is what an agent that starts while the store is away forwards from.
pub async fn keep_snapshot(agent: Arc<Agent>) {
    let mut reached = agent.tables.reached();
    while reached.changed().await.is_ok() {
        let began = Instant::now();
        save_snapshot(&agent).await;
        // A large snapshot is written less often, so that it takes a small share of the time.
        let pause = (10 * began.elapsed()).clamp(SNAPSHOT_PAUSE, SNAPSHOT_PAUSE_MAX);
        tokio::time::sleep(pause).await;
    }
}

/// Writes the snapshot of the records now.
pub async fn save_snapshot(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    let saved = tokio::task::spawn_blocking(move || {
        let _turn = agent.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let journal = || agent.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if agent.tables.view(|view| view.revision().0) == 0 {
            return;
        }
        if let Err(err) = journal().rotate() {
            warn_of_disk(&agent, &err);
            return;
        }
        let view = agent.tables.view(Clone::clone);
        if let Err(err) = view.save(&agent.state.path().join(super::SNAPSHOT)) {
            warn_of_disk(&agent, &err);
            return;
        }
        match journal().folded() {
            Ok(()) => agent.clear_warning("snapshot"),
            Err(err) => warn_of_disk(&agent, &err),
        }
    });
    let _ = saved.await;
}

/// Restores the attachments of an earlier run whose networks are known. The `first` time, before
/// anything can be asked of this agent, those that were being made are undone. True when some wait
/// for the records of their networks.
pub async fn restore_attachments(agent: &Agent, first: bool) -> bool {
    let _turn = agent.restoring.lock().await;
    let mut waiting = false;
    for note in agent.attachments() {
        match note.stage {
            // Of this run: it goes on.
            Stage::Attaching if !first => {}
            Stage::Attaching => {
                tracing::info!(endpoint = %note.endpoint, "undoing an attach that was cut off");
                take_down(agent, note).await;
            }
            Stage::Attached => {
                let id = NetworkId::new(&note.network).ok();
                let known = id.as_ref().and_then(|id| agent.known_network(id));
                let Some(network) = known else {
                    waiting = true;
                    continue;
                };
                let key = format!("restore-{}", note.endpoint);
                if agent.is_settled(&note.endpoint) {
                    continue;
                }
                match attach::restore(agent, &note, &network).await {
                    Ok(()) => {
                        agent.mark_settled(&note.endpoint);
                        agent.clear_warning(&key);
                        tracing::info!(
                            endpoint = %note.endpoint, network = %note.network_name,
                            "attachment taken over"
                        );
                    }
                    Err(err) if err.is(types::ErrorCode::NotFound) => {
                        tracing::info!(
                            endpoint = %note.endpoint, sandbox = %note.sandbox,
                            "the sandbox of an attachment is gone; detaching it"
                        );
                        take_down(agent, note).await;
                    }
                    Err(err) => agent.warn(
                        &key,
                        format!("endpoint {} cannot be set up again: {err}", note.endpoint),
                        err.next_step,
                    ),
                }
            }
            // Nothing is missing but the store's word, or it was cut off.
            Stage::Detaching => take_down(agent, note).await,
            Stage::Quarantined if presence::sandbox_is_gone(agent, &note).await => {
                take_down(agent, note).await;
            }
            // Docker goes on with it, or it is collected ([`crate::driver::docker`]).
            Stage::Quarantined | Stage::Reserved => {}
        }
    }
    waiting
}

/// Takes an attachment down without the store, which may be away for long.
async fn take_down(agent: &Agent, mut note: Attachment) {
    if let Err(err) = attach::take_down(agent, &mut note).await {
        // Tried again with the other detaches.
        tracing::warn!(endpoint = %note.endpoint, %err, "an attachment is not wholly removed");
    }
}

async fn after_first_listing(agent: Arc<Agent>) {
    restore_attachments(&agent, false).await;
    if let Err(err) = agent.remove_unused_networks().await {
        tracing::warn!(%err, "namespaces of networks that nothing uses are left");
    }
    finish_detaches(&agent).await;
    // Only who is admitted under this name may say what is left over of it.
    while agent.session().state == SessionState::Starting {
        tokio::time::sleep(REGISTERED).await;
    }
    remove_orphans(&agent).await;
}

/// Endpoints that the store says are here and that nothing here knows of: of a request that was given
/// up and carried out all the same, of an earlier run that lost its notes, or of a machine that had
/// this name before. A note is written before its record, so a record without one is nobody's; the
/// notes are read last for the same reason. Those of a newer run of this host are its own business.
pub async fn remove_orphans(agent: &Agent) {
    if !agent.tables.is_complete() {
        return;
    }
    let here: Vec<_> = agent.tables.view(|view| {
        view.endpoints()
            .filter(|item| item.record.host == agent.name)
            .filter(|item| item.record.incarnation <= agent.incarnation())
            // Those of the host itself have no note ([`super::routers`]).
            .filter(|item| !gateway::is_host_endpoint(&item.record.id))
            .map(|item| Arc::clone(&item.record))
            .collect()
    });
    let noted: BTreeSet<String> =
        agent.attachments().into_iter().map(|note| note.endpoint).collect();
    let orphans = here.into_iter().filter(|record| !noted.contains(record.id.as_str()));
    for record in orphans {
        tracing::warn!(endpoint = %record.id, "an endpoint of this host is not attached; removing");
        let removed =
            membership::endpoint::remove(&agent.store, &record.network, &record.id, attach::REST)
                .await;
        match removed {
            // A store that was restored may have lost it meanwhile.
            Ok(_) | Err(membership::endpoint::Error::NotFound { .. }) => {}
            Err(err) => tracing::warn!(endpoint = %record.id, %err, "cannot remove it"),
        }
    }
}

/// Detaches endpoints whose interface went away with its sandbox.
async fn detach_gone(agent: &Arc<Agent>) {
    for local in agent.networks.all().await {
        // Before the ports, so that an endpoint that comes meanwhile does not look like one gone.
        let noted = agent.attachments();
        let Ok(found) = link::endpoint::find(&local.namespace, agent.networks.owner()).await else {
            continue;
        };
        let present: BTreeSet<String> =
            found.into_iter().filter_map(|port| port.endpoint).collect();
        let gone = noted.into_iter().filter(|note| {
            note.stage == Stage::Attached
                && note.network == local.id.as_str()
                && agent.is_settled(&note.endpoint)
                && !present.contains(&note.endpoint)
        });
        for note in gone {
            // Docker repeats a Join whose answer it has not heard, with an interface made anew.
            let same = agent.attachment(&note.endpoint).as_ref() == Some(&note);
            if !same || !presence::port_is_gone(agent, &note).await {
                continue;
            }
            tracing::info!(
                endpoint = %note.endpoint, sandbox = %note.sandbox,
                "an interface is gone with its sandbox; detaching it"
            );
            if let Err(err) = attach::detach_one(agent, note).await {
                tracing::warn!(%err, "cannot detach");
            }
        }
    }
}

/// Gives the devices of each network the MTU that its tables have.
pub async fn settle_mtus(agent: &Agent) {
    for local in agent.networks.all().await {
        let wanted = agent.tables.network_mtu(&local.id);
        let before = local.mtu();
        if wanted == before || wanted == 0 {
            continue;
        }
        let sandboxes = async || {
            let here = agent
                .attachments()
                .into_iter()
                .filter(|note| note.network == local.id.as_str() && note.stage == Stage::Attached);
            for note in here {
                let Ok(reference) = note.sandbox.parse::<link::NetNsRef>() else { continue };
                let Ok(sandbox) = link::NetNs::open(&reference) else { continue };
                let owner = agent.networks.owner();
                let set =
                    link::endpoint::set_mtu(&sandbox, owner, &note.endpoint, u32::from(wanted));
                if let Err(err) = set.await {
                    tracing::warn!(endpoint = %note.endpoint, %err, "cannot set the MTU");
                }
            }
        };
        // Lowered from the senders inward, raised from the wire outward.
        if wanted < before {
            sandboxes().await;
        }
        if let Err(err) = local.namespace.set_mtu(u32::from(wanted)).await {
            tracing::warn!(network = %local.id, %err, "cannot set the MTU of the bridge");
            continue;
        }
        if wanted > before {
            sandboxes().await;
        }
        local.set_mtu(wanted);
        agent.routers.wake();
        tracing::info!(network = %local.id, before, mtu = wanted, "the network's MTU changed");
    }
}

/// What the datapath's capabilities are, by the names of the configuration.
pub async fn offloads(agent: &Agent) -> Vec<types::Offload> {
    let config = agent.datapath.config();
    let port = agent.networks.all().await.first().map(|local| local.offload);
    let disabled = &agent.config.datapath.disable;
    let item = |name: &str, on: bool, lacking: &str| {
        let off = disabled.iter().any(|mask| mask.to_string() == name);
        types::Offload {
            name: name.to_owned(),
            state: if on && !off { types::OffloadState::On } else { types::OffloadState::Off },
            reason: match (on, off) {
                (_, true) => Some("switched off by the configuration".to_owned()),
                (false, false) => Some(lacking.to_owned()),
                (true, false) => None,
            },
        }
    };
    let unknown = "known when the first network is set up here";
    let kernel = "this kernel does not have it";
    let port_item = |name: &str, on: Option<bool>| {
        item(name, on.unwrap_or(false), if on.is_none() { unknown } else { kernel })
    };
    vec![
        port_item("csum", port.map(|port| port.csum)),
        port_item("tso", port.map(|port| port.tso)),
        port_item("uso", port.map(|port| port.uso)),
        item("udp-gso", config.offload.gso_segments > 1, kernel),
        item("udp-gro", config.offload.gro, kernel),
        item("coalesce", config.coalesce, kernel),
    ]
}

/// Counters of the table writer.
#[must_use]
pub fn table_counters(agent: &Agent) -> Vec<types::Counter> {
    let stats = agent.tables.writer_stats();
    let rows = [
        ("table_deltas", "deltas", "Changes applied to the tables.", stats.deltas),
        ("table_generations", "generations", "Generations published.", stats.publications),
        ("table_reclaimed", "generations", "Generations freed.", stats.reclaimed),
        ("table_stale", "deltas", "Changes that were older than what is there.", stats.stale),
        ("table_refused", "deltas", "Changes refused by the limits of the tables.", stats.refused),
        ("table_full", "deltas", "Changes refused because keys collide.", stats.full),
        ("learned", "entries", "Addresses learned from frames.", stats.learned),
        ("learn_moved", "entries", "Learned addresses that moved.", stats.learn_moved),
        ("learn_refused", "entries", "Addresses that were not learned.", stats.learn_refused),
        ("learn_evicted", "entries", "Learned addresses that made room.", stats.learn_evicted),
        ("learn_expired", "entries", "Learned addresses that aged out.", stats.learn_expired),
    ];
    rows.into_iter()
        .map(|(name, unit, help, value)| types::Counter {
            name: name.to_owned(),
            help: help.to_owned(),
            unit: unit.to_owned(),
            value,
            workers: Vec::new(),
        })
        .collect()
}

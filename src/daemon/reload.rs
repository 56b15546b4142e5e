//! `SIGHUP`: the configuration is read again while the agent runs.
//!
//! # Theory of operation
//!
//! ```text
//!   file, flags, environment -> other settings -> a connection of its own -> is it our store?
//!        |                          |                   |                        |
//!        +---- cannot be read ------+--- no answer -----+--- another store ------+--> refused
//!                                                                                |
//!                                           watch and session move over <-- yes -+
//! ```
//!
//! What says where the store is and who we are to it takes effect: endpoints, TLS files (read again
//! even where their names are the same), user and password. Other keys are named and keep their
//! values until the agent is started again. The new settings are tried on a connection of their own
//! first, so one of two things is true at every moment: the former ones are in use, or new ones
//! that have been seen to work. Only when the former ones do not work either, new ones are taken
//! whose store does not answer yet.
//!
//! The lease goes on over the new connection and the watch resumes at its revision, so other hosts
//! see nothing. The datapath takes no part.

use std::sync::Arc;

use membership::key::Key;
use membership::record::HostRecord;
use membership::store::{self, Store};
use tokio::signal::unix::Signal;

use super::store_config;
use crate::agent::Agent;
use crate::agent::tasks::SessionState;
use crate::config::{self, Effective};
use crate::control::types::Reload;

/// The keys that take effect without a restart.
const KEYS: &[&str] = &[
    "stores",
    "insecure_store",
    "tls.ca",
    "tls.certificate",
    "tls.key",
    "tls.server_name",
    "user.name",
    "user.password_file",
];

/// What needs attention after a reload that was refused.
const REFUSED: &str = "reload";

/// Why the new settings are not taken.
struct Refusal {
    cause: String,
    next_step: String,
}

/// Reads the configuration again at each `signal`, for ever.
pub(super) async fn serve(
    agent: Arc<Agent>,
    mut signal: Signal,
    mut running: Effective,
    read: config::Read,
) {
    while signal.recv().await.is_some() {
        tell_manager_begun();
        let outcome = reload(&agent, &mut running, &read).await;
        agent.note_reload(outcome.clone());
        tell(&agent, &outcome);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
}

/// With `Type=notify-reload`, `systemctl reload` waits from this to the next `READY=1`.
fn tell_manager_begun() {
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]);
    }
}

fn tell(agent: &Agent, outcome: &Reload) {
    let changed = outcome.changed.join(", ");
    if !outcome.kept.is_empty() {
        tracing::warn!(
            keys = outcome.kept.join(", "),
            "the configuration has values that need a restart of the agent; the former ones are kept"
        );
    }
    match &outcome.cause {
        Some(cause) if !outcome.applied => {
            // Each refusal has a line; what needs attention is logged when it begins.
            tracing::warn!(err = cause, "the configuration was not reloaded, nothing is changed");
            let text = format!("the configuration was not reloaded, nothing is changed: {cause}");
            agent.warn(REFUSED, text, outcome.next_step.clone());
        }
        Some(cause) => {
            agent.clear_warning(REFUSED);
            tracing::warn!(changed, err = cause, "the configuration is reloaded");
        }
        None => {
            agent.clear_warning(REFUSED);
            tracing::info!(changed, "the configuration is reloaded");
        }
    }
}

async fn reload(agent: &Agent, running: &mut Effective, read: &config::Read) -> Reload {
    let mut outcome = Reload {
        since_ms: 0,
        applied: false,
        changed: Vec::new(),
        kept: Vec::new(),
        cause: None,
        next_step: None,
    };
    let taken = async {
        let mut fresh = read()
            .map_err(|error| Refusal { cause: error.to_string(), next_step: error.next_step() })?;
        let (changed, kept) = differences(running, &fresh);
        outcome.kept = kept;
        fresh.config.store.prefix.clone_from(&running.config.store.prefix);
        outcome.cause = take(agent, &fresh).await?;
        outcome.changed = changed;
        outcome.applied = true;
        adopt(running, fresh);
        Ok::<(), Refusal>(())
    }
    .await;
    if let Err(refusal) = taken {
        outcome.cause = Some(refusal.cause);
        outcome.next_step = Some(refusal.next_step);
    }
    outcome
}

/// The keys with other values: those that take effect, and those that do not.
fn differences(running: &Effective, fresh: &Effective) -> (Vec<String>, Vec<String>) {
    let now = |key| fresh.settings.iter().find(|setting| setting.key == key);
    let other = running
        .settings
        .iter()
        .filter(|before| now(before.key).is_none_or(|now| now.value != before.value));
    let names = other.map(|setting| setting.key);
    let (changed, kept): (Vec<&str>, Vec<&str>) = names.partition(|key| KEYS.contains(key));
    let owned = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
    (owned(changed), owned(kept))
}

/// Uses the new settings, if they work. What is still wrong with them is returned.
async fn take(agent: &Agent, fresh: &Effective) -> Result<Option<String>, Refusal> {
    let wanted = store_config(&fresh.config).map_err(|failure| Refusal {
        cause: match &failure.cause {
            Some(cause) => format!("{failure}: {cause}"),
            None => failure.to_string(),
        },
        next_step: failure.next_step.unwrap_or_else(again),
    })?;
    let refused = |error: store::Error| Refusal { cause: error.to_string(), next_step: again() };
    let tried = Store::lazy(wanted).map_err(refused)?;
    let wrong = match is_ours(agent, &tried).await {
        Ok(()) => None,
        Err(Unfit::Other(refusal)) => return Err(refusal),
        Err(Unfit::Store(error))
            if error.is_transient() && !agent.watch_status().is_connected() =>
        {
            Some(error.to_string())
        }
        Err(Unfit::Store(error)) => return Err(refused(error)),
    };
    agent.store.adopt(&tried).map_err(refused)?;
    Ok(wrong)
}

fn again() -> String {
    "correct it and reload again; until then the former settings are in use".to_owned()
}

/// Why a store cannot be ours.
enum Unfit {
    Other(Refusal),
    Store(store::Error),
}

/// Whether the store answers, lets us read, and is the one that this host is known in: another one
/// would tell of no endpoint, and the tables would be emptied.
async fn is_ours(agent: &Agent, tried: &Store) -> Result<(), Unfit> {
    let known = match tried.get::<HostRecord>(&Key::KnownHost(agent.name.clone())).await {
        Ok(found) => found.is_some_and(|found| found.record.id == agent.id),
        // There is something, and whatever is wrong with it is not the connection's fault.
        Err(store::Error::Record(_)) => true,
        Err(error) => return Err(Unfit::Store(error)),
    };
    if known || agent.session().state == SessionState::Starting {
        return Ok(());
    }
    Err(Unfit::Other(Refusal {
        cause: format!(
            "the store at {} does not know this host: it is another store, or its records have not \
             been copied",
            tried.endpoints()
        ),
        next_step: "copy the records into it and reload again, or restart the agent to join the \
                    other store without them"
            .to_owned(),
    }))
}

/// What takes effect is running now; the rest stays as it was, and is named again next time.
fn adopt(running: &mut Effective, fresh: Effective) {
    for setting in fresh.settings {
        if !KEYS.contains(&setting.key) {
            continue;
        }
        if let Some(before) = running.settings.iter_mut().find(|known| known.key == setting.key) {
            *before = setting;
        }
    }
    let store = fresh.config.store;
    running.config.store.endpoints = store.endpoints;
    running.config.store.insecure = store.insecure;
    running.config.store.tls = store.tls;
    running.config.store.user = store.user;
}

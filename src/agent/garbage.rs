//! Garbage collection, by itself and on demand.
//!
//! # Theory of operation
//!
//! One agent collects: the first, by name, of those that are present as its tables show them. Two
//! that both think so do no harm, since every removal is a transaction that compares what its reason
//! was ([`membership::gc`]).
//!
//! By itself it removes what hosts have that were absent for longer than the grace, unless so many
//! went together that the store or the network is the likelier cause. Orphans (addresses without
//! endpoint, names without network) it removes once it has seen them for as long: somebody may be
//! putting the records back. `skybridge gc` shows both at once, and with `--apply` does not wait for
//! the latter.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use membership::gc::{self, Collected, Finding, GcError, Options, Outcome};
use membership::key::{HostName, Key};

use super::tasks::SessionState;
use super::{Agent, store_error};
use crate::control::types::{CollectGarbage, Error, Garbage, GarbageState};
use crate::driver::attach::REST;

/// Looks within one grace.
const LOOKS: u32 = 12;
/// The least and the longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Collects what nobody has, for ever, while this host is the one to do it.
pub async fn keep(agent: Arc<Agent>) {
    let grace = agent.config.store.garbage_after;
    let pause = (grace / LOOKS).clamp(PAUSE.0, PAUSE.1);
    let mut seen = HashMap::new();
    loop {
        tokio::time::sleep(pause).await;
        if !is_due(&agent) {
            seen.clear();
            continue;
        }
        if let Err(err) = round(&agent, grace, &mut seen).await {
            tracing::debug!(%err, "garbage is not collected now");
        }
    }
}

/// Whether this host is present, and the first of those that are.
fn is_due(agent: &Agent) -> bool {
    let held = agent.session().state == SessionState::Held;
    let connected = agent.watch_status().is_connected() && agent.tables.is_complete();
    held && connected
        && agent.tables.view(|view| {
            let mut present = view.hosts().filter(|(_, host)| host.is_present());
            present.next().is_none_or(|(first, _)| *first == agent.name)
        })
}

async fn round(
    agent: &Agent,
    grace: Duration,
    seen: &mut HashMap<String, Instant>,
) -> Result<(), GcError> {
    gc::mark_absent(&agent.store, &agent.name, grace).await?;
    let frozen: BTreeSet<HostName> =
        agent.tables.reconciler(|reconciler, _| reconciler.frozen().into_iter().cloned().collect());
    let mut now = HashMap::new();
    let options = Options { grace, host: None };
    let done = gc::collect(&agent.store, &options, REST, |finding| {
        if finding.is_absence() {
            return finding.host.as_ref().is_none_or(|host| !frozen.contains(host));
        }
        let since = seen.get(&finding.key).copied().unwrap_or_else(Instant::now);
        now.insert(finding.key.clone(), since);
        !finding.is_named_only() && since.elapsed() >= grace
    })
    .await?;
    *seen = now;
    for failed in done {
        if let Outcome::Failed(cause) = failed.outcome {
            tracing::warn!(key = failed.finding.key, cause, "garbage cannot be removed");
        }
    }
    Ok(())
}

/// Looks for garbage, and removes it where that is asked for.
///
/// # Errors
/// When the store is away, or the host that shall be gone is there or unknown.
pub async fn on_demand(agent: &Agent, request: CollectGarbage) -> Result<Vec<Garbage>, Error> {
    let host = request.host.map(HostName::new).transpose();
    let host = host.map_err(|err| Error::bad_request(err.to_string()))?;
    let grace = agent.config.store.garbage_after;
    let options = Options { grace, host };
    let failed = |err: GcError| match &err {
        GcError::Present(_) => Error::conflict(err.to_string()),
        GcError::Unknown(_) => Error::not_found(err.to_string()),
        GcError::Store(store) => store_error(store),
    };
    if !request.apply {
        let found = gc::find(&agent.store, &options).await.map_err(failed)?;
        return Ok(found
            .iter()
            .map(|found| row(agent, found, GarbageState::Found, None))
            .collect());
    }
    let marked = gc::mark_absent(&agent.store, &agent.name, grace).await;
    marked.map_err(|err| store_error(&err))?;
    let done = gc::collect(&agent.store, &options, REST, |_| true).await.map_err(failed)?;
    tracing::info!(count = done.len(), "garbage was collected on demand");
    Ok(done.iter().map(|collected| told(agent, collected)).collect())
}

fn told(agent: &Agent, collected: &Collected) -> Garbage {
    let (state, cause) = match &collected.outcome {
        Outcome::Removed => (GarbageState::Removed, None),
        Outcome::Changed => (GarbageState::Changed, None),
        Outcome::Named => (GarbageState::Named, None),
        Outcome::Failed(cause) => (GarbageState::Failed, Some(cause.clone())),
    };
    row(agent, &collected.finding, state, cause)
}

fn row(agent: &Agent, finding: &Finding, state: GarbageState, cause: Option<String>) -> Garbage {
    let state = if finding.is_named_only() { GarbageState::Named } else { state };
    let full = format!("{}{}", agent.store.keys().root(), finding.key);
    let network = match agent.store.keys().parse(full.as_bytes()) {
        Ok(
            Key::Address(network, _)
            | Key::Block(network, _)
            | Key::Endpoint(network, _)
            | Key::Mac(network, _)
            | Key::Resting(network, _),
        ) => agent.known_network(&network).map(|record| record.name.to_string()),
        _ => None,
    };
    Garbage {
        kind: finding.kind.as_str().to_owned(),
        key: finding.key.clone(),
        network,
        host: finding.host.as_ref().map(ToString::to_string),
        reason: finding.reason.clone(),
        age_ms: finding.age.map(|age| age.as_millis() as u64),
        state,
        cause,
    }
}

//! Garbage collection: what no living owner has.
//!
//! # Theory of operation
//!
//! ```text
//!   one listing of everything ─► model ─► findings, each with its reason
//!                                            │ apply: one transaction each, that compares again
//!                                            ▼            what the reason was
//!                                     removed, or "changed meanwhile"
//! ```
//!
//! **Absence.** A host's records outlive its lease, because a host that only lost the store goes on
//! forwarding. Whoever collects first writes `absent/HOST` under a lease of twice the grace
//! ([`mark_absent`]); how much of that lease is used says how long the host has been absent at least,
//! by the store's clock and nobody else's. A host that registers deletes the mark in the same
//! transaction. A mark that has lost its lease (copied into another store, say) counts for nothing
//! and is written anew. Removing an endpoint compares that its host is absent and that the mark is
//! the one that was read.
//!
//! **Orphans.** Addresses and MACs without endpoint, maps of blocks that do not say what the
//! addresses say, names, VNIs and addresses of a network that has no record. A network without
//! record whose endpoints are on hosts that live is left alone: somebody may bring the record back,
//! and no address of it must be given twice then. A record that cannot be read exists; nothing that
//! hangs on it is garbage.
//!
//! Nothing here trusts its listing when it writes: every transaction compares the revisions that the
//! finding was made of, or reads again.

mod apply;
mod find;
mod model;

use std::time::Duration;

use serde::Serialize;

use crate::key::{HostName, Key, Range};
use crate::record::{AbsentRecord, Extra, VERSION, now_seconds};
use crate::store::{Error, Store};

pub use apply::{Collected, Outcome, collect};
use find::Action;
use model::Model;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a host must be absent before what it has is collected.
    pub grace: Duration,
    /// A host that will not come back: what it has is collected at once, and its `known/` record
    /// with it, if it is absent.
    pub host: Option<HostName>,
}

/// What kind of thing nobody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An endpoint of a host that is gone, with its MAC and addresses.
    Endpoint,
    /// An address without endpoint.
    Address,
    /// A MAC without endpoint.
    Mac,
    /// A block of a host that is gone, or one whose maps do not say what its addresses say.
    Block,
    /// A resting address that would rest for ever.
    Resting,
    /// Blocks, addresses and MACs of a network that has no record.
    Addresses,
    /// A name of a network that has no record.
    Name,
    /// A VNI of a network that has no record.
    Vni,
    /// A network of Docker on a host that is gone.
    Docker,
    /// The record of a host that was removed.
    Host,
    /// Two endpoints with one address or MAC: named, and not removed.
    Duplicate,
}

impl Kind {
    /// Its name in listings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Address => "address",
            Self::Mac => "mac",
            Self::Block => "block",
            Self::Resting => "resting",
            Self::Addresses => "addresses",
            Self::Name => "name",
            Self::Vni => "vni",
            Self::Docker => "docker",
            Self::Host => "host",
            Self::Duplicate => "duplicate",
        }
    }
}

/// One thing that nobody has.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Its key below the prefix; for several keys what they begin with.
    pub key: String,
    /// Why nobody has it.
    pub reason: String,
    /// The host that had it, where one is named.
    pub host: Option<HostName>,
    /// For how long at least nobody has had it, where the store knows.
    pub age: Option<Duration>,
    action: Action,
}

impl Finding {
    /// Whether it follows from the absence of a host for longer than the grace, and from nothing
    /// else: such may be collected without anybody looking.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        self.age.is_some()
    }

    /// Whether it is only named and never removed.
    #[must_use]
    pub fn is_named_only(&self) -> bool {
        matches!(self.action, Action::None)
    }
}

/// Why nothing was looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GcError {
    /// The host that shall be gone is there.
    #[error("host {0} is present: stop its agent first, and wait until its lease has ended")]
    Present(HostName),
    /// No such host was ever there.
    #[error("host {0} is not known: `skybridge hosts` lists those that are")]
    Unknown(HostName),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Looks for what nobody has, by one listing at one revision. Changes nothing.
///
/// # Errors
///
/// [`GcError`].
pub async fn find(store: &Store, options: &Options) -> Result<Vec<Finding>, GcError> {
    let model = Model::read(store, options).await?;
    if let Some(host) = &options.host {
        if model.present.contains(host) {
            return Err(GcError::Present(host.clone()));
        }
        if !model.known.contains_key(host) && !model.names_host(host) {
            return Err(GcError::Unknown(host.clone()));
        }
    }
    Ok(find::findings(&model))
}

/// Marks the hosts that are absent and not marked yet: from now on their grace runs. Hosts that came
/// back meanwhile are left alone. Returns those that were marked.
///
/// # Errors
///
/// Why the store did not do it.
pub async fn mark_absent(
    store: &Store,
    by: &HostName,
    grace: Duration,
) -> Result<Vec<HostName>, Error> {
    let model = Model::read(store, &Options { grace, host: None }).await?;
    let mut marked = Vec::new();
    for host in model.unmarked() {
        let lease = store.grant(grace.saturating_mul(2)).await?;
        let key = Key::Absent(host.clone());
        let record = AbsentRecord {
            version: VERSION,
            host: host.clone(),
            seen_by: by.clone(),
            since: now_seconds(),
            extra: Extra::new(),
        };
        let before = model.marks.get(&host).map_or(0, |mark| mark.revision);
        let when = vec![store.absent(&Key::Host(host.clone())), store.unchanged(&key, before)];
        let then = vec![store.put(&key, &record, lease)?];
        if store.txn(when, then, Vec::new()).await?.succeeded {
            tracing::info!(%host, "the host is absent; its grace begins");
            marked.push(host);
        } else {
            store.revoke(lease).await?;
        }
    }
    Ok(marked)
}

/// Everything under the prefix, as one listing.
async fn everything(store: &Store) -> Result<Vec<crate::store::Entry>, Error> {
    Ok(store.list(Range::All).await?.1)
}

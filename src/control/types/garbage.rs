//! What no living owner has.

use serde::{Deserialize, Serialize};

/// Asks for what no living owner has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectGarbage {
    /// Whether it is removed; else it is only looked for.
    #[serde(default)]
    pub apply: bool,
    /// A host that will not come back: what it has is garbage at once.
    #[serde(default)]
    pub host: Option<String>,
}

/// What became of garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GarbageState {
    /// Somebody changed it while it was removed; it is looked at again the next time.
    Changed,
    /// It could not be removed.
    Failed,
    /// It was found, and nothing was to be removed.
    Found,
    /// It is never removed, and somebody must look.
    Named,
    /// It is gone.
    Removed,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// Something that no living owner has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// What it is: `endpoint`, `address`, `mac`, `block`, `resting`, `addresses`, `name`, `vni`,
    /// `host` or `duplicate`.
    pub kind: String,
    /// Its key in the store, without the prefix; for several keys what they begin with.
    pub key: String,
    /// The network's name, where it is of one that has a record.
    pub network: Option<String>,
    /// The host that had it.
    pub host: Option<String>,
    /// Why nobody has it.
    pub reason: String,
    /// For how many milliseconds at least nobody has had it, where the store knows.
    pub age_ms: Option<u64>,
    /// What became of it.
    pub state: GarbageState,
    /// Why it could not be removed.
    pub cause: Option<String>,
}

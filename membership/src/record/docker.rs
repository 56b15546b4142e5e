//! Docker's networks.

use serde::{Deserialize, Serialize};

use super::{Extra, Stored, VERSION};

/// A network of a host's Docker, at `docker/NETWORK/HOST/ID`. Docker gives a network of local scope
/// another id on each host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerRecord {
    /// Version of the record.
    pub version: u32,
    /// Whether Docker has told this host of the network.
    #[serde(default)]
    pub created: bool,
    /// Whether it was allocated here for a whole Swarm.
    #[serde(default)]
    pub allocated: bool,
    /// The ids under which Docker asks for its addresses.
    #[serde(default)]
    pub pools: Vec<String>,
    /// Whether it must not reach beyond itself.
    #[serde(default)]
    pub internal: bool,
    /// Whether Docker gives its containers a second interface for what lies beyond.
    #[serde(default)]
    pub gwbridge: bool,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for DockerRecord {
    fn default() -> Self {
        Self {
            version: VERSION,
            created: false,
            allocated: false,
            pools: Vec::new(),
            internal: false,
            gwbridge: true,
            extra: Extra::new(),
        }
    }
}

impl Stored for DockerRecord {}

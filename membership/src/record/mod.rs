//! The records of the store: JSON objects, each with a `version`.
//!
//! A reader of version N takes N and N + 1 and refuses higher ones by name. Fields that it does
//! not know are kept in `extra` and written back by whoever rewrites the record, as is its
//! version. A record that is too large, newer or malformed is an [`Error`] that names its key; the
//! caller sets it aside and goes on with the others.

mod docker;
mod host;
mod ipam;
mod network;
mod range;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use docker::DockerRecord;
pub use host::{AbsentRecord, HostRecord, VtepClaimRecord, VtepRecord};
pub use ipam::{AddressRecord, Bitmap, BlockRecord, MacRecord, RestRecord};
pub use network::{
    Compat, Encapsulate, EndpointRecord, GuardRecord, ImportedMac, Local, Mode, NameRecord,
    NetworkOptions, NetworkRecord, OptionError, SourceCheck, StaticMac, StaticVtep, VniRecord,
};
pub use range::{AddressRange, RangeError};

use crate::key::Key;

/// The version that this code writes.
pub const VERSION: u32 = 1;
/// Largest record in bytes.
pub const SIZE_MAX: usize = 64 * 1024;

/// Fields of a record that this version does not know.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// Why a record is set aside, or cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The record and its key name different objects.
    #[error("record at `{key}` contradicts its key: it names {named}")]
    Contradicts {
        /// The key.
        key: String,
        /// What the record names.
        named: String,
    },
    /// No JSON, a missing field, or a value that this version does not know.
    #[error("record at `{key}` is malformed: {cause}")]
    Malformed {
        /// The key.
        key: String,
        /// What the parser says.
        cause: String,
    },
    /// Written by a version that this one cannot read.
    #[error(
        "record at `{key}` has version {version}, and this program reads up to {}: upgrade it",
        VERSION + 1
    )]
    Newer {
        /// The key.
        key: String,
        /// The version of the record.
        version: u32,
    },
    /// Over [`SIZE_MAX`].
    #[error("record at `{key}` has {size} bytes, and {SIZE_MAX} are allowed")]
    Oversized {
        /// The key.
        key: String,
        /// Its size in bytes.
        size: usize,
    },
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// A type that is stored as a record.
pub trait Stored: Serialize + DeserializeOwned {
    /// What the record names, when that is something else than `key` does.
    fn contradicts(&self, key: &Key) -> Option<Key> {
        let _ = key;
        None
    }

    /// Parses a record. Takes any bytes.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`].
    fn decode(key: &Key, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > SIZE_MAX {
            return Err(Error::Oversized { key: key.to_string(), size: bytes.len() });
        }
        let malformed = |error: serde_json::Error| Error::Malformed {
            key: key.to_string(),
            cause: error.to_string(),
        };
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.version > VERSION + 1 {
            return Err(Error::Newer { key: key.to_string(), version: head.version });
        }
        let record: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        match record.contradicts(key) {
            Some(named) => {
                Err(Error::Contradicts { key: key.to_string(), named: named.to_string() })
            }
            None => Ok(record),
        }
    }

    /// The bytes to store at `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Oversized`] when labels or lists make it larger than readers take.
    fn encode(&self, key: &Key) -> Result<Vec<u8>, Error> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| Error::Malformed { key: key.to_string(), cause: error.to_string() })?;
        if bytes.len() > SIZE_MAX {
            return Err(Error::Oversized { key: key.to_string(), size: bytes.len() });
        }
        Ok(bytes)
    }
}

/// Any record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// At [`Key::Absent`].
    Absent(AbsentRecord),
    /// At [`Key::Address`].
    Address(AddressRecord),
    /// At [`Key::Block`].
    Block(BlockRecord),
    /// At [`Key::Docker`].
    Docker(DockerRecord),
    /// At [`Key::Endpoint`].
    Endpoint(EndpointRecord),
    /// At [`Key::Guard`].
    Guard(GuardRecord),
    /// At [`Key::Host`].
    Host(HostRecord),
    /// At [`Key::KnownHost`].
    KnownHost(HostRecord),
    /// At [`Key::Mac`].
    Mac(MacRecord),
    /// At [`Key::Name`].
    Name(NameRecord),
    /// At [`Key::Network`].
    Network(NetworkRecord),
    /// At [`Key::Resting`].
    Resting(RestRecord),
    /// At [`Key::Vni`].
    Vni(VniRecord),
    /// At [`Key::VtepClaim`].
    VtepClaim(VtepClaimRecord),
}

impl Record {
    /// Parses the record that belongs at `key`. Takes any bytes.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`].
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self, Error> {
        Ok(match key {
            Key::Absent(_) => Self::Absent(Stored::decode(key, bytes)?),
            Key::Address(..) => Self::Address(Stored::decode(key, bytes)?),
            Key::Block(..) => Self::Block(Stored::decode(key, bytes)?),
            Key::Docker(..) => Self::Docker(Stored::decode(key, bytes)?),
            Key::Endpoint(..) => Self::Endpoint(Stored::decode(key, bytes)?),
            Key::Guard(_) => Self::Guard(Stored::decode(key, bytes)?),
            Key::Host(_) => Self::Host(Stored::decode(key, bytes)?),
            Key::KnownHost(_) => Self::KnownHost(Stored::decode(key, bytes)?),
            Key::Mac(..) => Self::Mac(Stored::decode(key, bytes)?),
            Key::Name(_) => Self::Name(Stored::decode(key, bytes)?),
            Key::Network(_) => Self::Network(Stored::decode(key, bytes)?),
            Key::Resting(..) => Self::Resting(Stored::decode(key, bytes)?),
            Key::Vni(_) => Self::Vni(Stored::decode(key, bytes)?),
            Key::VtepClaim(_) => Self::VtepClaim(Stored::decode(key, bytes)?),
        })
    }
}

impl Record {
    /// The record as JSON, as it lies in the store.
    pub(crate) fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Absent(record) => serde_json::to_value(record),
            Self::Address(record) => serde_json::to_value(record),
            Self::Block(record) => serde_json::to_value(record),
            Self::Docker(record) => serde_json::to_value(record),
            Self::Endpoint(record) => serde_json::to_value(record),
            Self::Guard(record) => serde_json::to_value(record),
            Self::Host(record) | Self::KnownHost(record) => serde_json::to_value(record),
            Self::Mac(record) => serde_json::to_value(record),
            Self::Name(record) => serde_json::to_value(record),
            Self::Network(record) => serde_json::to_value(record),
            Self::Resting(record) => serde_json::to_value(record),
            Self::Vni(record) => serde_json::to_value(record),
            Self::VtepClaim(record) => serde_json::to_value(record),
        }
    }
}

/// Seconds since 1970, for people who read the records; nothing is ordered or decided by it.
#[must_use]
pub fn now_seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

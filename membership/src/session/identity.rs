//! Who this host is, over restarts.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file;
use crate::key::HostId;

/// The file in the state directory.
const FILE: &str = "identity.json";

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file holds something else. A new identity is not made by itself: the store knows the old
    /// one.
    #[error(
        "identity file {} is damaged ({cause}): restore it, or remove it to let this host start \
         as a new one", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The file cannot be read or written.
    #[error(
        "identity file {} cannot be {what} ({source}): check the state directory", path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Who this host is: an id made once, and a count of its starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The id.
    pub id: HostId,
    /// How often it has started.
    pub incarnation: u64,
}

impl Identity {
    /// Reads the identity in a state directory, or makes one with incarnation 0.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn load_or_create(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| IdentityError::Damaged { path, cause: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self { id: HostId::random(), incarnation: 0 };
                identity.save(directory)?;
                Ok(identity)
            }
            Err(source) => Err(IdentityError::File { path, what: "read", source }),
        }
    }

    /// Reads or makes the identity and counts one start, durably.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn start(directory: &Path) -> Result<Self, IdentityError> {
        let mut identity = Self::load_or_create(directory)?;
        identity.incarnation = identity.incarnation.saturating_add(1);
        identity.save(directory)?;
        Ok(identity)
    }

    /// Writes the identity durably, replacing the file in one step.
    ///
    /// # Errors
    ///
    /// [`IdentityError::File`].
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join(FILE);
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|bytes| file::replace(&path, &bytes));
        written.map_err(|source| IdentityError::File { path, what: "written", source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_lasts_and_starts_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::start(directory.path()).unwrap();
        let second = Identity::start(directory.path()).unwrap();
        assert_eq!(first.id, second.id);
        assert_eq!((first.incarnation, second.incarnation), (1, 2));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), b"{").unwrap();
        let error = Identity::load_or_create(directory.path()).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("damaged"), "{error}");
    }
}

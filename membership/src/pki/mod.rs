//! Certificates of the embedded store: its own authority, the store's and the hosts'.
//!
//! # Theory of operation
//!
//! The host that serves the store makes an authority once and keeps its key. The authority signs
//! one certificate for the store, for the addresses it serves at, one for each host (common name =
//! host name, for clients only), and one for the administrator (`root`). All lie in the state
//! directory's `pki/`, which is for its owner only:
//!
//! ```text
//!   ca.pem          the authority's certificate: whom this host trusts        every host
//!   host.pem        key and certificate that this host shows the store        every host
//!   joined.json     endpoints, prefix and name, from the store that was joined  joined hosts
//!   authority.pem   key and certificate of the authority                      serving host
//!   store.pem       key and certificate of the store, and the authority's     serving host
//!   root.pem        key and certificate of the administrator                  serving host
//!   invitations.json  tokens that were given, without their secrets           serving host
//! ```
//!
//! A key and its certificate are one file, so that one rename replaces both and a crash leaves the
//! old pair or the new one. The authority lives ten years, its certificates one; each is replaced
//! when a third of its life is left ([`Facts::is_due`]), the store's and its own host's by the
//! serving host itself, a joined host's by asking the store ([`crate::join`]).
//!
//! All of the cryptography is that of `rcgen`, `rustls` and `webpki`.

mod authority;
mod facts;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use authority::{Authority, Name};
pub(crate) use authority::{public_key, request};
pub(crate) use facts::fingerprint_of_pem;
pub use facts::{Facts, Fingerprint, common_name};

use crate::file;

/// The directory of all this, within the state directory.
pub const DIRECTORY: &str = "pki";

/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// Why a certificate cannot be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} holds no usable {what}: {cause}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(String),
    /// A request for a certificate that cannot be granted.
    #[error("the certificate request is refused: {0}")]
    Request(String),
}

/// Where the files of a state directory are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Those of a state directory.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { directory: state_dir.join(DIRECTORY) }
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// This host's key and certificate.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.directory.join("host.pem")
    }

    /// What a joined host was told.
    #[must_use]
    pub fn joined(&self) -> PathBuf {
        self.directory.join("joined.json")
    }

    /// The authority's key and certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }

    /// The store's key and certificate.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.directory.join("store.pem")
    }

    /// The administrator's key and certificate.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.join("root.pem")
    }

    /// The tokens that were given.
    #[must_use]
    pub fn invitations(&self) -> PathBuf {
        self.directory.join("invitations.json")
    }

    /// Makes the directory, for its owner only.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn make(&self) -> Result<(), Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|source| Error::File { what: "make", path: self.directory.clone(), source })
    }
}

/// What a joined host knows of its store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Format; this program writes and reads 1.
    pub version: u32,
    /// The name under which this host joined.
    pub name: String,
    /// URLs of the store.
    pub endpoints: Vec<String>,
    /// In front of the store's keys.
    #[serde(default)]
    pub prefix: String,
}

/// The version of [`Joined`] and of the other JSON files here.
pub(crate) const VERSION: u32 = 1;

impl Joined {
    /// What the state directory says; `None` where this host has not joined a store.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Damaged`].
    pub fn load(files: &Files) -> Result<Option<Self>, Error> {
        let path = files.joined();
        let Some(text) = read_optional(&path)? else { return Ok(None) };
        let damaged =
            |cause: String| Error::Damaged { path: path.clone(), what: "joined store", cause };
        let joined: Self =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if joined.version != VERSION {
            return Err(damaged(format!("its version is {}", joined.version)));
        }
        if joined.endpoints.is_empty() {
            return Err(damaged("it has no endpoints".to_owned()));
        }
        Ok(Some(joined))
    }
}

/// Reads a text file of bounded size.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    read_optional(path)?.ok_or_else(|| Error::File {
        what: "read",
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// The same; `None` where there is none.
pub(crate) fn read_optional(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read as _;
    let failed = |source| Error::File { what: "read", path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Replaces a file, mode 0600.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    file::replace(path, text.as_bytes()).map_err(|source| Error::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

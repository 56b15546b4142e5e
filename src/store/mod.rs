//! The store from the outside: serving the embedded one, its certificates, joining it, and what an
//! administrator does with any store that speaks the etcd API.

pub mod access;
pub mod admin;
pub mod certificates;
pub mod join;
pub mod serve;

use std::io;
use std::path::PathBuf;

use membership::{embedded, pki, transfer};

/// Why a command on the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's own file.
    #[error(transparent)]
    Embedded(#[from] embedded::Error),
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
    /// Joining.
    #[error(transparent)]
    Join(#[from] membership::join::Error),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] membership::store::Error),
    /// The text is no token.
    #[error(transparent)]
    Token(#[from] membership::join::ParseTokenError),
    /// Export and import.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
}

impl Error {
    /// What to do next, where the message does not say it.
    #[must_use]
    pub fn next_step(&self) -> Option<String> {
        use membership::store::Error as StoreError;
        let store = |error: &StoreError| match error {
            StoreError::Access { .. } => Some(
                "run it where the store's agent runs, or name a user or certificate that may: \
                 --store-user, --tls-certificate"
                    .to_owned(),
            ),
            _ => None,
        };
        match self {
            Self::File { .. } => Some("check its path, owner and mode".to_owned()),
            Self::Join(error) => Some(error.next_step()),
            Self::Token(_) => {
                Some("copy the whole line that `skybridge store token` printed".to_owned())
            }
            Self::Store(error) => store(error),
            Self::Transfer(transfer::Error::Store(error)) => store(error),
            Self::Transfer(transfer::Error::Exists { .. }) => Some(
                "compare them with an export of that store; --overwrite replaces them".to_owned(),
            ),
            Self::Embedded(_) | Self::Pki(_) | Self::Transfer(_) => None,
        }
    }
}

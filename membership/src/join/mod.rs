//! How a host comes to its certificate: it joins an embedded store by a token, and renews.
//!
//! # Theory of operation
//!
//! ```text
//!   serving host                                 new host
//!   skybridge store token  --- token, by hand -->  skybridge join TOKEN
//!                          <-- TLS, pinned by the fingerprint in the token ---
//!                          <-- secret, name, request signed by the host's new key ---
//!     checks, signs, crosses the token off
//!                          --- certificate, authority, endpoints, prefix -->  pki/ written
//! ```
//!
//! The new host speaks to nobody whose authority has another fingerprint, so the secret goes to the
//! store and nowhere else. Its key never leaves it. It writes `joined.json` last: without that file
//! it has not joined, whatever else lies there.
//!
//! A joined host asks for its next certificate ([`renew`]) with the one it has.

mod connect;
pub(crate) mod proto;
mod token;

use std::time::{Duration, SystemTime};

use crate::key::HostName;
use crate::pki::{self, Facts, Files, Fingerprint, Joined};
use connect::{Trust, call};
use proto::{Admitted, JoinRequest, RenewRequest};
pub use token::{JoinToken, ParseTokenError};

/// How long each step (connection, handshake, answer) may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a host has not joined, or has not renewed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has joined before.
    #[error("this host has joined a store already, as {name}")]
    AlreadyJoined {
        /// Under which name.
        name: String,
        /// Where that is kept.
        files: Files,
    },
    /// The answer makes no sense.
    #[error("the store's answer cannot be used: {cause}")]
    Answer {
        /// What is wrong.
        cause: String,
    },
    /// The certificate that this host has cannot be used.
    #[error("this host's certificate cannot be used: {cause}")]
    Identity {
        /// What is wrong.
        cause: String,
    },
    /// No endpoint that could be tried.
    #[error("the token names no endpoint that can be used")]
    NoEndpoint,
    /// Something else than such a store answers.
    #[error("what answers at {endpoint} lets no hosts join")]
    NoStore {
        /// Where.
        endpoint: String,
    },
    /// Certificates or their files.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The store says no.
    #[error("the store refuses: {cause}")]
    Refused {
        /// What it says.
        cause: String,
    },
    /// This host serves a store of its own.
    #[error("this host serves an embedded store itself")]
    Serves,
    /// The store at that address has another authority.
    #[error("the store at {endpoint} is not the one that the token is of")]
    Stranger {
        /// Where.
        endpoint: String,
    },
    /// TLS failed.
    #[error("TLS with {endpoint} failed: {cause}")]
    Tls {
        /// Where.
        endpoint: String,
        /// What the library says.
        cause: String,
    },
    /// No connection.
    #[error("the store at {endpoint} cannot be reached: {cause}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        cause: String,
    },
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn next_step(&self) -> String {
        match self {
            Self::AlreadyJoined { files, .. } => format!(
                "start its agent; to join another store, stop the agent and remove {} first",
                files.directory().display()
            ),
            Self::Answer { .. } => "compare the versions of both programs".to_owned(),
            Self::Identity { .. } => {
                "join this host anew with a token of `skybridge store token`".to_owned()
            }
            Self::NoEndpoint | Self::Refused { .. } => {
                "make a new token on the host that serves the store: `skybridge store token`"
                    .to_owned()
            }
            Self::NoStore { .. } => {
                "does its agent run with --embedded-store and without --insecure-store?".to_owned()
            }
            Self::Pki(_) => "check the directory's owner, mode and free space".to_owned(),
            Self::Serves => "start its agent; the others join it".to_owned(),
            Self::Stranger { .. } => {
                "nothing was sent; if the store was set up anew, make a new token there, else find \
                 out who answers at that address"
                    .to_owned()
            }
            Self::Tls { .. } => {
                "are both clocks right, and does the store serve at that address?".to_owned()
            }
            Self::Unreachable { .. } => {
                "does the serving host's agent run, and is its port open from here? The token is \
                 still good"
                    .to_owned()
            }
        }
    }
}

/// Joins the store of `token` as `name` and writes what this host needs into `files`. On any error
/// nothing is left there.
///
/// # Errors
///
/// See [`Error`].
pub async fn join(token: &JoinToken, name: &HostName, files: &Files) -> Result<Joined, Error> {
    if let Some(joined) = Joined::load(files)? {
        return Err(Error::AlreadyJoined { name: joined.name, files: files.clone() });
    }
    if files.authority().exists() {
        return Err(Error::Serves);
    }
    let fresh = !files.directory().exists();
    let joined = exchange(token, name, files).await;
    if joined.is_err() {
        // What was there before it was of no use either: without `joined.json` nobody reads it.
        for path in [files.joined(), files.host(), files.ca()] {
            let _ = std::fs::remove_file(path);
        }
        if fresh {
            let _ = std::fs::remove_dir(files.directory());
        }
    }
    joined
}

async fn exchange(token: &JoinToken, name: &HostName, files: &Files) -> Result<Joined, Error> {
    // The token is used up by the call, so that the files can be written is tried before it.
    files.make()?;
    let (key, request) = pki::request(name.as_str())?;
    pki::write(&files.host(), &key)?;
    let message = JoinRequest {
        id: token.id.to_vec(),
        secret: token.secret.to_vec(),
        name: name.to_string(),
        request,
    };
    let trust = Trust::Fingerprint(token.fingerprint);
    let admitted: Admitted = call(&token.endpoints, &trust, proto::JOIN, message).await?;
    let certificate = checked(&admitted, &key, name.as_str(), Some(token.fingerprint))?;
    let joined = Joined {
        version: pki::VERSION,
        name: name.to_string(),
        endpoints: endpoints(&admitted)?,
        prefix: admitted.prefix,
    };
    pki::write(&files.ca(), &admitted.authority)?;
    pki::write(&files.host(), &(key + &certificate))?;
    let json = serde_json::to_string_pretty(&joined)
        .map_err(|error| Error::Answer { cause: error.to_string() })?;
    pki::write(&files.joined(), &(json + "\n"))?;
    Ok(joined)
}

/// Asks the joined store for this host's next certificate, with the one it has, when that is due.
/// Tells when the certificate that it then has ends, and whether it is a new one.
///
/// # Errors
///
/// See [`Error`]; the certificate that this host has stays.
pub async fn renew(files: &Files, joined: &Joined) -> Result<(SystemTime, bool), Error> {
    let facts = Facts::load(&files.host())?;
    if !facts.is_due(SystemTime::now()) {
        return Ok((facts.until, false));
    }
    let (ca, identity) = (pki::read(&files.ca())?, pki::read(&files.host())?);
    let (key, request) = pki::request(&joined.name)?;
    let trust = Trust::Authority { ca: &ca, identity: &identity };
    let message = RenewRequest { request };
    let admitted: Admitted = call(&joined.endpoints, &trust, proto::RENEW, message).await?;
    let certificate = checked(&admitted, &key, &joined.name, None)?;
    let until = Facts::of_pem(&certificate).map_err(|cause| Error::Answer { cause })?.until;
    pki::write(&files.host(), &(key + &certificate))?;
    Ok((until, true))
}

/// The certificate of an answer, if it is what was asked for.
fn checked(
    admitted: &Admitted,
    key: &str,
    name: &str,
    authority: Option<Fingerprint>,
) -> Result<String, Error> {
    let wrong = |cause: String| Error::Answer { cause };
    let facts = Facts::of_pem(&admitted.certificate).map_err(wrong)?;
    if facts.common_name != name {
        return Err(wrong(format!("the certificate is for {:?}", facts.common_name)));
    }
    if facts.public_key != pki::public_key(key)? {
        return Err(wrong("the certificate is for another key".to_owned()));
    }
    if let Some(wanted) = authority
        && pki::fingerprint_of_pem(&admitted.authority).map_err(wrong)? != wanted
    {
        return Err(wrong("it has another authority".to_owned()));
    }
    Ok(admitted.certificate.clone())
}

fn endpoints(admitted: &Admitted) -> Result<Vec<String>, Error> {
    let good =
        |url: &String| url.starts_with("https://") && url.parse::<tonic::transport::Uri>().is_ok();
    if admitted.endpoints.is_empty() || !admitted.endpoints.iter().all(good) {
        return Err(Error::Answer { cause: "it has no usable endpoints".to_owned() });
    }
    Ok(admitted.endpoints.clone())
}

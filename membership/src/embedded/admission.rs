//! Who may join the store: its authority, and the invitations that were given.
//!
//! # Theory of operation
//!
//! An invitation is a token for one host and one use. Of its secret only the hash is kept, in
//! `invitations.json`, so that whoever reads that file joins nothing. The order when one is used is:
//! everything is checked and the certificate is signed, the host becomes a user of the store, the
//! invitation is crossed off on disk, and only then the certificate leaves. So a token never gives
//! two certificates, also across a crash; at worst it gives none, and a new one is needed.

use std::net::IpAddr;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tonic::Status;

use super::auth::ROOT;
use super::limits;
use super::server::Tls;
use super::store::Store;
use crate::join::JoinToken;
use crate::join::proto::Admitted;
use crate::key::HostName;
use crate::pki::{self, Authority, Files, Name};

/// Where the store is, and who serves it.
#[derive(Clone, Debug)]
pub struct Place {
    /// URLs that hosts are told.
    pub endpoints: Vec<String>,
    /// Addresses that the store's certificate is for.
    pub addresses: Vec<IpAddr>,
    /// In front of the store's keys.
    pub prefix: String,
    /// The host that serves it.
    pub host: HostName,
    /// How long certificates count; `None` is a year.
    pub life: Option<Duration>,
}

/// Why no token is given.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// It would live too short or too long.
    #[error("a token lives from one second to {} days", limits::INVITATION_LIFE.as_secs() / 86_400)]
    Life,
    /// The host's name is the administrator's.
    #[error("a host cannot be called `{ROOT}`: that is the name of the store's administrator")]
    Name,
    /// It cannot be kept.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// There are too many.
    #[error("there are {} tokens already that nobody has used", limits::INVITATIONS)]
    TooMany,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Invitation {
    id: String,
    /// Hash of the secret.
    proof: String,
    /// The only host that may use it.
    #[serde(default)]
    host: Option<String>,
    /// Seconds since 1970.
    expires: u64,
    /// Who has used it.
    #[serde(default)]
    used_by: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Invitations {
    version: u32,
    invitations: Vec<Invitation>,
}

/// Lets hosts in.
#[derive(Debug)]
pub struct Admission {
    authority: Authority,
    files: Files,
    place: Place,
    /// Held while an invitation is given or used, to its end on disk.
    invitations: Mutex<Invitations>,
    rate: StdMutex<Rate>,
}

impl Admission {
    /// The authority of a state directory with what it has signed for this host, made where it is
    /// missing or ends soon. Blocks for file operations.
    ///
    /// # Errors
    ///
    /// Why a file cannot be read or written.
    pub fn open(files: Files, place: Place) -> Result<Arc<Self>, pki::Error> {
        if place.host.as_str() == ROOT {
            return Err(pki::Error::Make(InviteError::Name.to_string()));
        }
        let mut authority = Authority::open(&files)?;
        if let Some(life) = place.life {
            authority = authority.with_life(life);
        }
        let path = files.invitations();
        let invitations = match pki::read_optional(&path)? {
            None => Invitations { version: pki::VERSION, invitations: Vec::new() },
            Some(text) => serde_json::from_str(&text).map_err(|error| pki::Error::Damaged {
                path,
                what: "list of tokens",
                cause: error.to_string(),
            })?,
        };
        let admission = Self {
            authority,
            files,
            place,
            invitations: Mutex::new(invitations),
            rate: StdMutex::default(),
        };
        admission.keep()?;
        Ok(Arc::new(admission))
    }

    /// Makes anew what ends soon; tells whether there was anything. Blocks for file operations.
    ///
    /// # Errors
    ///
    /// Why a file cannot be written.
    pub fn keep(&self) -> Result<bool, pki::Error> {
        let names: Vec<Name> = self.place.addresses.iter().copied().map(Name::Ip).collect();
        let store = self.authority.keep_store(&self.files, &names)?;
        let host = self.authority.keep_client(&self.files.host(), self.place.host.as_str())?;
        let root = self.authority.keep_client(&self.files.root(), ROOT)?;
        Ok(store || host || root)
    }

    pub(super) fn tls(&self) -> Tls {
        Tls {
            certificate: self.files.store(),
            key: self.files.store(),
            client_ca: Some(self.files.ca()),
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.place.prefix
    }

    pub(super) fn host(&self) -> &str {
        self.place.host.as_str()
    }

    /// Gives a token for one host (any, when none is named), to be used within `life`.
    ///
    /// # Errors
    ///
    /// See [`InviteError`].
    pub async fn invite(
        &self,
        host: Option<&HostName>,
        life: Duration,
    ) -> Result<JoinToken, InviteError> {
        if life < Duration::from_secs(1) || life > limits::INVITATION_LIFE {
            return Err(InviteError::Life);
        }
        if host.is_some_and(|host| host.as_str() == ROOT) {
            return Err(InviteError::Name);
        }
        let now = now();
        let token = JoinToken::new(self.place.endpoints.clone(), self.authority.fingerprint());
        let mut held = self.invitations.lock().await;
        let mut invitations = remembered(&held.invitations, now);
        let open = |known: &&Invitation| known.used_by.is_none() && known.expires > now;
        if invitations.iter().filter(open).count() >= limits::INVITATIONS {
            return Err(InviteError::TooMany);
        }
        invitations.push(Invitation {
            id: URL_SAFE_NO_PAD.encode(token.id),
            proof: URL_SAFE_NO_PAD.encode(JoinToken::proof(&token.secret)),
            host: host.map(ToString::to_string),
            expires: now.saturating_add(life.as_secs()),
            used_by: None,
        });
        self.replace(&mut held, invitations).await?;
        Ok(token)
    }

    /// Writes the list and keeps it in memory once it is on disk.
    async fn replace(
        &self,
        held: &mut Invitations,
        invitations: Vec<Invitation>,
    ) -> Result<(), pki::Error> {
        let fresh = Invitations { version: pki::VERSION, invitations };
        let json = serde_json::to_string_pretty(&fresh)
            .map_err(|error| pki::Error::Make(error.to_string()))?;
        let path = self.files.invitations();
        let written = tokio::task::spawn_blocking(move || pki::write(&path, &json)).await;
        written.unwrap_or_else(|gone| Err(pki::Error::Make(gone.to_string())))?;
        *held = fresh;
        Ok(())
    }

    /// Lets a host in that has a token.
    pub(super) async fn join(
        &self,
        store: &Store,
        id: &[u8],
        secret: &[u8],
        name: &str,
        request: Vec<u8>,
    ) -> Result<Admitted, Status> {
        let free = self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !free {
            let text = "too many hosts try to join at once; wait a second and run it again";
            return Err(Status::resource_exhausted(text));
        }
        let host =
            HostName::new(name).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if host.as_str() == ROOT {
            return Err(Status::invalid_argument(InviteError::Name.to_string()));
        }
        // Whoever goes away in the middle has used its token all the same, or not at all.
        let mut held = self.invitations.lock().await;
        let now = now();
        let place = find(&held.invitations, id, secret, host.as_str(), now)
            .map_err(Status::permission_denied)?;
        let admitted = self.sign(request, host.as_str()).await?;
        let user = host.to_string();
        store.write(move |txn| txn.change_auth(|auth| auth.admit(&user))).await?;
        let mut invitations = held.invitations.clone();
        if let Some(invitation) = invitations.get_mut(place) {
            invitation.used_by = Some(host.to_string());
        }
        let invitations = remembered(&invitations, now);
        self.replace(&mut held, invitations)
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(admitted)
    }

    /// Signs a request and adds what the host needs to use the store.
    pub(super) async fn sign(&self, request: Vec<u8>, name: &str) -> Result<Admitted, Status> {
        let certificate = self.authority.sign(&request, name).map_err(|error| match error {
            pki::Error::Request(_) => Status::invalid_argument(error.to_string()),
            other => Status::internal(other.to_string()),
        })?;
        Ok(Admitted {
            certificate,
            authority: self.authority.pem().to_owned(),
            endpoints: self.place.endpoints.clone(),
            prefix: self.place.prefix.clone(),
        })
    }
}

/// Those that are still good, and those whose end may still be asked for.
fn remembered(invitations: &[Invitation], now: u64) -> Vec<Invitation> {
    let memory = limits::INVITATION_MEMORY.as_secs();
    let kept = invitations.iter().filter(|known| known.expires.saturating_add(memory) > now);
    kept.cloned().collect()
}

/// The place of the invitation that a token is of, if it may be used now by that host.
fn find(
    invitations: &[Invitation],
    id: &[u8],
    secret: &[u8],
    host: &str,
    now: u64,
) -> Result<usize, String> {
    let id = URL_SAFE_NO_PAD.encode(id);
    let proof = URL_SAFE_NO_PAD.encode(JoinToken::proof(secret));
    // Hashes are compared, so the time that it takes tells nothing of the secret.
    let known =
        invitations.iter().enumerate().find(|(_, known)| known.id == id && known.proof == proof);
    let Some((place, invitation)) = known else {
        return Err("the token is not one of this store's, or has ended long ago".to_owned());
    };
    if let Some(other) = &invitation.used_by {
        return Err(format!(
            "the token was used already, by host {other}: it lets in one host, once"
        ));
    }
    if invitation.expires <= now {
        return Err(format!("the token ended {} s ago", now - invitation.expires));
    }
    match &invitation.host {
        Some(wanted) if wanted != host => Err(format!(
            "the token is for host {wanted}, not for {host}: give --name {wanted} there"
        )),
        _ => Ok(place),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How many calls may be looked at: [`limits::JOIN_BURST`] in a row, then one each
/// [`limits::JOIN_EVERY`].
#[derive(Debug, Default)]
struct Rate {
    /// When the bucket is full again.
    full: Option<Instant>,
}

impl Rate {
    fn take(&mut self, now: Instant) -> bool {
        let full = self.full.map_or(now, |full| full.max(now)) + limits::JOIN_EVERY;
        let free = full.saturating_duration_since(now) <= limits::JOIN_EVERY * limits::JOIN_BURST;
        if free {
            self.full = Some(full);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lets_in_one_host_once_and_in_time() {
        let proof = URL_SAFE_NO_PAD.encode(JoinToken::proof(b"secret"));
        let id = URL_SAFE_NO_PAD.encode(b"id");
        let mut known =
            Invitation { id, proof, host: Some("h2".to_owned()), expires: 100, used_by: None };
        let tried = |known: &Invitation, secret: &[u8], host: &str, now: u64| {
            find(std::slice::from_ref(known), b"id", secret, host, now)
        };
        assert_eq!(tried(&known, b"secret", "h2", 99), Ok(0));
        let refused = |known: &Invitation, secret: &[u8], host: &str, now: u64, word: &str| {
            let cause = tried(known, secret, host, now).unwrap_err();
            assert!(cause.contains(word), "{cause}");
        };
        refused(&known, b"other", "h2", 99, "not one of this store's");
        refused(&known, b"secret", "h3", 99, "for host h2");
        refused(&known, b"secret", "h2", 100, "ended 0 s ago");
        known.used_by = Some("h2".to_owned());
        refused(&known, b"secret", "h2", 99, "used already");
        assert_eq!(remembered(&[known.clone()], 100).len(), 1);
        assert!(remembered(&[known], 100 + limits::INVITATION_MEMORY.as_secs()).is_empty());
    }

    #[test]
    fn calls_are_bounded_in_rate() {
        let mut rate = Rate::default();
        let start = Instant::now();
        let taken = (0..100).filter(|_| rate.take(start)).count();
        assert_eq!(taken, limits::JOIN_BURST as usize);
        assert!(!rate.take(start) && rate.take(start + limits::JOIN_EVERY));
        let later = start + limits::JOIN_EVERY * 1000;
        assert_eq!((0..100).filter(|_| rate.take(later)).count(), limits::JOIN_BURST as usize);
    }
}

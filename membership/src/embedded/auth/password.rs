//! Passwords: argon2id, a bounded number at a time, on threads that may block.
//!
//! Each hash takes [`limits::PASSWORD_KIB`] of memory and some tens of milliseconds of a CPU on
//! purpose. At most [`limits::PASSWORD_HASHES`] run at once and [`limits::PASSWORD_QUEUE`] wait;
//! further ones are refused, so that logins cannot take the store's host down.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use super::super::error::Refusal;
use super::super::limits;

/// A hash of no password, so that a login of an unknown user takes as long as one of a known.
const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2t5YnJpZGdlLWRlY295$\
                     6Ol4Wn9sCwTnNvM4cPCBZcGm6B8EHoQ2p6v7yJhZ3rQ";

/// Hashes and checks passwords.
pub(crate) struct Hasher {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self {
            running: Arc::new(Semaphore::new(limits::PASSWORD_HASHES)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// The hash of a password, with its own salt and parameters in it.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Refusal> {
        self.run(move || {
            let salt: [u8; 16] = rand::random();
            let salt = SaltString::encode_b64(&salt).map_err(failed)?;
            let hash = argon2()?.hash_password(password.as_bytes(), &salt).map_err(failed)?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Whether a password has that hash. Without a hash it has not, after the same time.
    pub(crate) async fn check(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, Refusal> {
        self.run(move || {
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(|| DECOY.to_owned());
            let hash = PasswordHash::new(&hash).map_err(failed)?;
            Ok(argon2()?.verify_password(password.as_bytes(), &hash).is_ok() && known)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let _waiting = Waiting::new(&self.waiting)?;
        let permit = Arc::clone(&self.running).acquire_owned().await;
        let permit = permit.map_err(|_| Refusal::Stopped)?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .unwrap_or(Err(Refusal::Stopped))
    }
}

/// One who runs or waits; counted until it is dropped, also when its client goes away.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Result<Self, Refusal> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let waiting = Self(count);
        if before >= limits::PASSWORD_HASHES + limits::PASSWORD_QUEUE {
            return Err(Refusal::TooManyRequests);
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn argon2() -> Result<Argon2<'static>, Refusal> {
    let (memory, passes) = (limits::PASSWORD_KIB, limits::PASSWORD_PASSES);
    let params = Params::new(memory, passes, 1, None).map_err(failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::PasswordHash(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_hash_and_no_other() {
        let hasher = Hasher::new();
        let hash = hasher.hash("secret".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$") && !hash.contains("secret"));
        assert_ne!(hash, hasher.hash("secret".to_owned()).await.unwrap(), "the salt is its own");
        assert!(hasher.check("secret".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!hasher.check("Secret".to_owned(), Some(hash)).await.unwrap());
        assert!(!hasher.check(String::new(), None).await.unwrap());
        assert!(hasher.check("x".to_owned(), Some("junk".to_owned())).await.is_err());
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_refused() {
        let hasher = Hasher::new();
        let most = limits::PASSWORD_HASHES + limits::PASSWORD_QUEUE;
        let all: Vec<_> = (0..most).map(|_| Waiting::new(&hasher.waiting).unwrap()).collect();
        let refused = hasher.hash("secret".to_owned()).await;
        assert_eq!(refused, Err(Refusal::TooManyRequests));
        drop(all);
        hasher.hash("secret".to_owned()).await.unwrap();
    }
}

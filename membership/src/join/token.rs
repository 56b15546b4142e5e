//! The token that lets one host join: where the store is, how to recognise it, and a secret.
//!
//! ```text
//!   skybridge1.BASE64URL( JSON { e: [endpoints], f: fingerprint of the authority, i: id, s: secret } )
//! ```

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::pki::Fingerprint;

/// What a token begins with; the number is that of its format.
const PREFIX: &str = "skybridge1.";
/// Longest token that is looked at, in letters.
const LENGTH_MAX: usize = 4096;
/// Most endpoints in a token.
const ENDPOINTS_MAX: usize = 16;

/// A token as `skybridge store token` prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// URLs of the store.
    pub endpoints: Vec<String>,
    /// By which its authority is recognised.
    pub fingerprint: Fingerprint,
    /// Which invitation it is.
    pub(crate) id: [u8; 8],
    pub(crate) secret: [u8; 16],
}

#[derive(Deserialize, Serialize)]
struct Text {
    e: Vec<String>,
    f: String,
    i: String,
    s: String,
}

impl JoinToken {
    /// A new one with its own random id and secret.
    pub(crate) fn new(endpoints: Vec<String>, fingerprint: Fingerprint) -> Self {
        // The crate's default generator is a cryptographic one.
        Self { endpoints, fingerprint, id: rand::random(), secret: rand::random() }
    }

    /// What the store keeps in place of the secret.
    pub(crate) fn proof(secret: &[u8]) -> [u8; 32] {
        Sha256::digest(secret).into()
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    /// With the secret: the token itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Text {
            e: self.endpoints.clone(),
            f: self.fingerprint.to_string(),
            i: URL_SAFE_NO_PAD.encode(self.id),
            s: URL_SAFE_NO_PAD.encode(self.secret),
        };
        let json = serde_json::to_vec(&text).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

/// The text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("that is no join token: {0}")]
pub struct ParseTokenError(&'static str);

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let wrong = ParseTokenError;
        let text = text.trim();
        if text.len() > LENGTH_MAX {
            return Err(wrong("it is too long"));
        }
        let body = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| wrong("it does not begin with `skybridge1.`"))?;
        let cut = wrong("a part of it is missing or changed");
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| cut.clone())?;
        let Text { e: endpoints, f, i, s } =
            serde_json::from_slice(&json).map_err(|_| cut.clone())?;
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| cut.clone());
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
            return Err(wrong("it names no store, or too many"));
        }
        Ok(Self {
            endpoints,
            fingerprint: f.parse().map_err(|_| cut.clone())?,
            id: bytes(&i)?.try_into().map_err(|_| cut.clone())?,
            secret: bytes(&s)?.try_into().map_err(|_| cut.clone())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_hides_its_secret_from_logs() {
        let endpoints = vec!["https://192.0.2.1:2379".to_owned()];
        let token = JoinToken::new(endpoints, Fingerprint([7; 32]));
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{text}");
        let secret = URL_SAFE_NO_PAD.encode(token.secret);
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn no_part_of_a_token_is_one_and_nothing_panics() {
        let endpoints = vec!["https://[2001:db8::1]:2379".to_owned()];
        let text = JoinToken::new(endpoints, Fingerprint([7; 32])).to_string();
        for end in 0..text.len() {
            assert!(text[..end].parse::<JoinToken>().is_err(), "{end}");
        }
        for wrong in ["", "skybridge1.", "skybridge2.e30", "skybridge1.e30", &"x".repeat(9999)] {
            assert!(wrong.parse::<JoinToken>().is_err(), "{wrong}");
        }
    }
}

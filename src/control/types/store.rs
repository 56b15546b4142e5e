//! The store as the agent reaches it, and tokens by which hosts join it.

use serde::{Deserialize, Serialize};

/// How the agent reaches its store. Secrets are named by their files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreAccess {
    /// URLs of the store.
    pub endpoints: Vec<String>,
    /// In front of `/skybridge/`.
    pub prefix: String,
    /// File of the authorities that the store's certificate must come from.
    pub ca: Option<String>,
    /// File of the certificate that is shown to the store: the administrator's, where the agent
    /// has it.
    pub certificate: Option<String>,
    /// File of its key.
    pub key: Option<String>,
    /// Name that the store's certificate must have.
    pub server_name: Option<String>,
    /// User name for the store.
    pub user: Option<String>,
    /// File of that user's password.
    pub password_file: Option<String>,
}

/// A token is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeToken {
    /// The only host that may use it; any when not given.
    #[serde(default)]
    pub host: Option<String>,
    /// How long it may be used, in milliseconds.
    pub ttl_ms: u64,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The token itself. Whoever has it can join.
    pub token: String,
    /// The only host that may use it.
    pub host: Option<String>,
    /// Milliseconds until it ends.
    pub expires_in_ms: u64,
    /// URLs of the store that it leads to.
    pub endpoints: Vec<String>,
    /// Fingerprint of the store's authority: SHA-256 of its certificate, URL-safe base64.
    pub fingerprint: String,
}

//! `skybridge join`: this host's way to its certificate.

use std::path::Path;

use membership::join::JoinToken;
use membership::key::HostName;
use membership::pki::{Files, Joined};

use super::Error;

/// Joins the store of `token` under `name` and keeps what the agent needs in `state_dir`.
///
/// # Errors
/// See [`Error`]; nothing is left in the state directory then.
pub async fn join(token: &str, name: &str, state_dir: &Path) -> Result<Joined, Error> {
    let token: JoinToken = token.parse()?;
    let name = HostName::new(name).map_err(membership::store::Error::from)?;
    let fresh = !state_dir.exists();
    let joined = membership::join::join(&token, &name, &Files::of(state_dir)).await;
    if joined.is_err() && fresh {
        // Made by us, and empty: else it stays.
        let _ = std::fs::remove_dir(state_dir);
    }
    Ok(joined?)
}

//! What the control API tells of the store, and the tokens by which hosts join it.

use std::path::Path;
use std::time::Duration;

use membership::embedded::InviteError;
use membership::key::HostName;
use membership::pki::Files;

use super::Agent;
use crate::control::types::{Error, MakeToken, StoreAccess, Token};

/// How this agent reaches its store; as its administrator, where it serves it with an authority.
#[must_use]
pub fn access(agent: &Agent) -> StoreAccess {
    let store = &agent.config.store;
    let text = |path: &Path| path.display().to_string();
    let identity = if agent.admission.is_some() {
        let root = Files::of(&agent.config.state_dir).root();
        Some((root.clone(), root))
    } else {
        store.tls.as_ref().and_then(|tls| tls.identity.clone())
    };
    StoreAccess {
        endpoints: store.endpoints.clone(),
        prefix: store.prefix.clone(),
        ca: store.tls.as_ref().map(|tls| text(&tls.ca)),
        certificate: identity.as_ref().map(|(certificate, _)| text(certificate)),
        key: identity.as_ref().map(|(_, key)| text(key)),
        server_name: store.tls.as_ref().and_then(|tls| tls.server_name.clone()),
        user: store.user.as_ref().map(|user| user.name.clone()),
        password_file: store.user.as_ref().map(|user| text(&user.password_file)),
    }
}

/// Makes a token by which a host joins the store that this agent serves.
///
/// # Errors
/// When this agent serves no such store, or the request makes no sense.
pub async fn make_token(agent: &Agent, request: MakeToken) -> Result<Token, Error> {
    let Some(admission) = &agent.admission else {
        return Err(no_authority(agent));
    };
    let host = request
        .host
        .as_deref()
        .map(HostName::new)
        .transpose()
        .map_err(|error| Error::bad_request(error.to_string()))?;
    let life = Duration::from_millis(request.ttl_ms);
    let made = admission.invite(host.as_ref(), life).await.map_err(|error| match &error {
        InviteError::Life | InviteError::Name => Error::bad_request(error.to_string()),
        InviteError::TooMany => {
            Error::conflict(error.to_string()).next_step("use them, or wait until they end")
        }
        InviteError::Pki(_) => Error::internal("the token cannot be kept").cause(error.to_string()),
    })?;
    tracing::info!(host = request.host, ttl_ms = request.ttl_ms, "a token to join was given");
    Ok(Token {
        token: made.to_string(),
        host: request.host,
        expires_in_ms: request.ttl_ms,
        endpoints: made.endpoints.clone(),
        fingerprint: made.fingerprint.to_string(),
    })
}

fn no_authority(agent: &Agent) -> Error {
    let error = Error::conflict("hosts cannot join at this agent");
    match agent.config.store.embedded {
        None => error
            .cause("it does not serve the embedded store")
            .next_step("run it on the host whose agent has --embedded-store"),
        Some(_) => error
            .cause("it serves the embedded store in clear, where hosts need no certificate")
            .next_step(
                "start the agents of other hosts with --store; or serve it on an address that they \
                 reach, without --insecure-store",
            ),
    }
}

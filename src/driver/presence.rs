//! Whether what an attachment is for is still there.
//!
//! A sandbox that we are told of is there while it can be opened. Docker moves the interface when it
//! likes, into a sandbox that may come later or not be seen from here: there the port tells, which
//! dies with its other end, wherever that is.

use membership::key::NetworkId;

use super::attach::open_sandbox;
use crate::agent::networks::LocalNetwork;
use crate::agent::state::Attachment;
use crate::agent::{Agent, link_error};
use crate::control::types::{Error, ErrorCode};
use crate::link::endpoint::{port, set_mtu};
use crate::link::{NetNs, NetworkNs, handover};

/// Whether the sandbox of an attachment is gone. Where this cannot be told it is not.
pub async fn sandbox_is_gone(agent: &Agent, note: &Attachment) -> bool {
    if note.docker.is_none() {
        return open_sandbox(&note.sandbox).is_err_and(|err| err.is(ErrorCode::NotFound));
    }
    port_is_gone(agent, note).await
}

/// Whether an attachment has no port any more: it dies with the interface in the sandbox.
pub async fn port_is_gone(agent: &Agent, note: &Attachment) -> bool {
    let id = NetworkId::new(&note.network).ok();
    let local = match &id {
        Some(id) => agent.networks.get(id).await,
        None => None,
    };
    let owner = agent.networks.owner();
    let found = match &local {
        Some(local) => port(&local.namespace, owner, &note.endpoint).await,
        None => match NetworkNs::open(&agent.pin_of(&note.network)).await {
            Ok(namespace) => port(&namespace, owner, &note.endpoint).await,
            Err(err) => Err(err),
        },
    };
    match found {
        Ok(found) => found.is_none(),
        Err(err) => link_error(&err).is(ErrorCode::NotFound),
    }
}

/// Takes the port of Docker's endpoint over. It dies with its other end, so while it is there the
/// container is.
///
/// # Errors
/// `NotFound` without a port, or what could not be set up.
pub(super) async fn take_over(
    agent: &Agent,
    note: &Attachment,
    local: &LocalNetwork,
) -> Result<(), Error> {
    let failed = |err| link_error(&err);
    let (owner, mtu) = (agent.networks.owner(), u32::from(local.mtu()));
    let isolated = local.is_switched();
    let taken =
        handover::take_over(&local.namespace, owner, &note.endpoint, note.mac, mtu, isolated);
    if !taken.await.map_err(failed)? {
        return Err(Error::not_found("the interface is gone, and Docker knows of no other one"));
    }
    agent.guard_port(local, note).await?;
    // The MTU may have changed meanwhile. Whom we cannot reach keeps the one it has.
    for place in [open_sandbox(&note.sandbox).ok(), NetNs::host().ok()].into_iter().flatten() {
        if let Err(err) = set_mtu(&place, owner, &note.endpoint, mtu).await {
            tracing::debug!(endpoint = %note.endpoint, %err, "the MTU cannot be looked at");
        }
    }
    Ok(())
}

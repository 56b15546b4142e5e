//! Errors of the parts as errors of the API: what failed, why, and the next step.
//!
//! The parts' own texts already end in a next step where they know one; here they get the code that
//! decides the HTTP status and, for commands, what to look at.

use membership::{endpoint, ipam, network, store};

use super::state;
use crate::control::types::{Error, ErrorCode};
use crate::link;

/// Of the store.
#[must_use]
pub fn store_error(error: &store::Error) -> Error {
    let code = match error {
        store::Error::Access { .. } | store::Error::Config(_) | store::Error::TlsFile { .. } => {
            ErrorCode::Internal
        }
        store::Error::Record(_) | store::Error::Key(_) => ErrorCode::Conflict,
        _ => ErrorCode::Unavailable,
    };
    Error::new(code, "the store did not do it")
        .cause(error.to_string())
        .next_step("`skybridge status` shows the store connection; traffic goes on without it")
}

/// Of operations on networks.
#[must_use]
pub fn network_error(error: &network::Error) -> Error {
    match error {
        network::Error::Store(store) => store_error(store),
        network::Error::NotFound(name) => Error::not_found(format!("no network {name}"))
            .next_step("`skybridge network ls` lists the networks"),
        network::Error::NameTaken { .. }
        | network::Error::VniTaken { .. }
        | network::Error::IdTaken(_)
        | network::Error::Overlap { .. }
        | network::Error::Domain { .. }
        | network::Error::NoUdpPort
        | network::Error::OwnUdpPort { .. }
        | network::Error::InUse { .. }
        | network::Error::InDocker { .. } => Error::conflict(error.to_string()),
        _ => Error::bad_request(error.to_string()),
    }
}

/// Of operations on endpoints.
#[must_use]
pub fn endpoint_error(error: &endpoint::Error) -> Error {
    match error {
        endpoint::Error::Store(store) => store_error(store),
        endpoint::Error::Address(ipam::Error::Store(store)) => store_error(store),
        _ => Error::conflict(error.to_string()),
    }
}

/// Of namespaces and devices.
#[must_use]
pub fn link_error(error: &link::Error) -> Error {
    let code = match error {
        link::Error::NamespaceGone { .. } | link::Error::NotANamespace { .. } => {
            ErrorCode::NotFound
        }
        link::Error::InterfaceExists { .. }
        | link::Error::AddressPresent { .. }
        | link::Error::RouteExists { .. } => ErrorCode::Conflict,
        link::Error::InvalidIfname { .. }
        | link::Error::InvalidMac { .. }
        | link::Error::MtuTooSmall { .. } => ErrorCode::BadRequest,
        _ => ErrorCode::Internal,
    };
    Error::new(code, error.to_string())
}

/// Of the state directory.
#[must_use]
pub fn state_error(error: &state::Error) -> Error {
    Error::internal("this host's state cannot be kept")
        .cause(error.to_string())
        .next_step("is the disk full or read-only? `--state-dir` names the directory")
}

//! The transport-facing end: sockets towards other VTEPs.
//!
//! - [`udp`]: a worker's sockets, one receive socket per address and port and a fan of send sockets.
//! - [`probe`]: what this kernel's UDP offloads can do, tried once at start.
//! - [`holder`]: who has the port that we wanted.

pub mod holder;
pub mod probe;
pub mod udp;

use std::io;
use std::net::SocketAddr;

/// Why the underlay could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another socket has the port.
    #[error(
        "UDP {address} is in use by {holder}: stop it, or give this agent another port with \
         --udp-port"
    )]
    InUse {
        /// What was to be bound.
        address: SocketAddr,
        /// Who has it, as far as can be told.
        holder: holder::Holder,
    },
    /// No interface has the VTEP address.
    #[error(
        "no interface of this host has the VTEP address {address}: `ip address` lists what it has; \
         set --vtep to one of them"
    )]
    NotLocal {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The kernel refused a step.
    #[error("cannot {step} on {address}: {source}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// Of which socket.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

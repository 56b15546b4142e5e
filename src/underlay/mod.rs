//! The transport-facing end: sockets towards other VTEPs.
//!
//! - [`udp`]: a worker's sockets, one receive socket per address and port and a fan of send sockets.
//! - [`raw`]: its raw sockets, for IP-in-IP;
//! - [`probe`]: what this kernel's UDP offloads can do, tried once at start.
//! - [`holder`]: who has the port that we wanted.

pub mod holder;
pub mod probe;
pub mod raw;
pub mod udp;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use crate::sys::sockopt;

/// Kinds of sockets that send: the fans of [`udp::Flavor`] and then [`raw::Kind`].
pub const FLAVORS: usize = udp::Flavor::COUNT + raw::Kind::COUNT;

/// What arrives at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Ethernet frames in VXLAN.
    Frames,
    /// Bare IPv4 packets.
    Ipv4,
    /// Bare IPv6 packets.
    Ipv6,
}

/// A receive socket, to be looked at only.
#[derive(Debug)]
pub struct Watcher(socket2::Socket);

impl Watcher {
    /// What the kernel keeps of the datagrams that wait in it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn queue(&self) -> io::Result<sockopt::Queued> {
        sockopt::queued(self.0.as_fd())
    }
}

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
    /// We have the port ourselves, for something else.
    #[error(
        "UDP port {port} of this agent already carries something else, so {for_what} cannot be \
         received there: give one of the two networks another port"
    )]
    Ours {
        /// The port.
        port: u16,
        /// What was to be received.
        for_what: &'static str,
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

//! What this kernel's UDP sockets can do. Probed once at start by trying, never by version number.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use crate::sys::mmsg::{self, Address, Message, Piece, SendBatch};
use crate::sys::sockopt;

/// Capabilities of UDP sockets here. Each may also be switched off by configuration, which lowers
/// the value before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOffload {
    /// Datagrams that one send may be cut into; 1 without `UDP_SEGMENT`.
    pub gso_segments: u16,
    /// `UDP_GRO` exists.
    pub gro: bool,
}

impl UdpOffload {
    /// Neither offload.
    pub const NONE: Self = Self { gso_segments: 1, gro: false };

    /// Tries on a loopback socket of its own. Whatever fails counts as absent.
    #[must_use]
    pub fn probe() -> Self {
        let Ok(socket) = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) else {
            // Without loopback (a namespace whose lo is down) nothing can be sent to try it; the
            // options themselves still tell whether the kernel knows them.
            return Self::by_options();
        };
        let by_options = Self::by_options();
        let Ok(to) = socket.local_addr() else { return by_options };
        if by_options.gso_segments == 1 {
            return by_options;
        }
        // 128 since kernel 6.9, 64 before (UDP_MAX_SEGMENTS, include/linux/udp.h).
        let most = if sends_segments(&socket, to, 128) { 128 } else { by_options.gso_segments };
        Self { gso_segments: most, ..by_options }
    }

    fn by_options() -> Self {
        let Ok(socket) = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
        else {
            return Self::NONE;
        };
        let has =
            |name, value| sockopt::set_int(socket.as_fd(), libc::SOL_UDP, name, value).is_ok();
        Self {
            gso_segments: if has(mmsg::UDP_SEGMENT, 1400) { 64 } else { 1 },
            gro: has(mmsg::UDP_GRO, 1),
        }
    }
}

fn sends_segments(socket: &UdpSocket, to: SocketAddr, count: u16) -> bool {
    let bytes = vec![0u8; usize::from(count)];
    let pieces = [Piece { buffer: 0, offset: 0, len: u32::from(count) }];
    let messages = [Message { destination: 0, segment: 1, tos: 0, first_piece: 0, pieces: 1 }];
    let sent = SendBatch::new(1, 1).send(
        socket.as_fd(),
        false,
        [&[Address::from(to)], &[]],
        [&bytes, &[]],
        &pieces,
        &messages,
    );
    matches!(sent, Ok(1))
}

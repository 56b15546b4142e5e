//! A worker's end of the underlay: which socket a message leaves by, and what the sockets' error
//! queues teach about the paths.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use socket2::SockRef;

use super::batch::{MESSAGES_PER_CALL, PIECES_PER_CALL, Transmit};
use super::path::Paths;
use crate::sys::mmsg::{Message, Piece, SendBatch};
use crate::sys::sockopt::Icmp;
use crate::telemetry::counters::WorkerCounters;
use crate::underlay::raw::{Kind, RawSocket};
use crate::underlay::udp::{self, Flavor, Sockets};

/// How long a full socket is waited for before its datagrams are dropped.
const SEND_WAIT_MS: u16 = 10;

/// Entries of an error queue that are read at once: anybody can make the path say many things.
const ERRORS_PER_CALL: usize = 64;

/// The worker's end of the underlay.
pub(super) struct Underlay {
    pub(super) sockets: Sockets,
    pub(super) raw: [Option<RawSocket>; Kind::COUNT],
    batch: SendBatch,
    counters: Arc<WorkerCounters>,
}

impl Underlay {
    pub(super) fn new(sockets: Sockets, counters: Arc<WorkerCounters>) -> Self {
        let batch = SendBatch::new(MESSAGES_PER_CALL, PIECES_PER_CALL);
        Self { sockets, raw: Default::default(), batch, counters }
    }

    fn socket(&self, flavor: u8, bucket: u8) -> Option<BorrowedFd<'_>> {
        find(&self.sockets, &self.raw, flavor, bucket)
    }
}

/// The socket `bucket` of the fan `flavor`, or the raw socket that the flavor stands for.
fn find<'a>(
    sockets: &'a Sockets,
    raw: &'a [Option<RawSocket>],
    flavor: u8,
    bucket: u8,
) -> Option<BorrowedFd<'a>> {
    let flavor = usize::from(flavor);
    match flavor.checked_sub(Flavor::COUNT) {
        None => Some(sockets.fan(flavor).get(usize::from(bucket))?.as_fd()),
        Some(index) => Some(raw.get(index)?.as_ref()?.as_fd()),
    }
}

impl Transmit for Underlay {
    fn send(
        &mut self,
        flavor: u8,
        bucket: u8,
        paths: &Paths,
        buffers: [&[u8]; 2],
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        let Self { sockets, raw, batch, .. } = self;
        let Some(socket) = find(sockets, raw, flavor, bucket) else {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        };
        let ipv6 = flavor & 1 != 0;
        debug_assert_eq!(
            Flavor { ipv6, df: false, checksum: false }.index() & 1,
            usize::from(ipv6)
        );
        batch.send(socket, ipv6, paths.addresses(), buffers, pieces, messages)
    }

    fn wait(&mut self, flavor: u8, bucket: u8) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(socket) = self.socket(flavor, bucket) else { return false };
        let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
        matches!(poll(&mut fds, PollTimeout::from(SEND_WAIT_MS)), Ok(1))
    }

    fn learn(&mut self, flavor: u8, bucket: u8, paths: &mut Paths, now_ms: u64) -> u64 {
        let Some(socket) = self.socket(flavor, bucket) else { return 0 };
        learn_from(socket, paths, now_ms, &self.counters)
    }
}

/// Reads a send socket's error queue, and how many there were. The rest of many is told of again at
/// the next turn.
pub(super) fn learn_from(
    socket: BorrowedFd<'_>,
    paths: &mut Paths,
    now_ms: u64,
    counters: &WorkerCounters,
) -> u64 {
    let mut count = 0;
    for error in udp::take_errors(socket).take(ERRORS_PER_CALL) {
        count += 1;
        if let (Some(destination), Some(mtu)) = (error.destination, error.mtu) {
            paths.learn_mtu(destination, u16::try_from(mtu).unwrap_or(u16::MAX), now_ms);
        }
        if let (Some(destination), Some(icmp)) = (error.destination, error.icmp)
            && says_unreachable(icmp)
        {
            paths.note_unreachable(destination, now_ms);
        }
    }
    if count == ERRORS_PER_CALL as u64 {
        counters.underlay_errors_left.add(1);
        // The next one in the queue is the socket's pending error now, and would fail the next send.
        let _ = SockRef::from(&socket).take_error();
    }
    count
}

/// What of a tunnel's errors the sender of a packet inside it is told as "unreachable" (RFC 2003
/// section 4, RFC 2473 section 8.2): that there is no way, or that it is too long. Not that nobody
/// listens at the port, which is between the VTEPs.
fn says_unreachable(icmp: Icmp) -> bool {
    const V4_UNREACHABLE: u8 = 3;
    const V4_TIME_EXCEEDED: u8 = 11;
    const V6_UNREACHABLE: u8 = 1;
    const V6_TIME_EXCEEDED: u8 = 3;
    const V6_PARAMETER_PROBLEM: u8 = 4;
    match icmp {
        // Not port unreachable, fragmentation needed and source route failed.
        Icmp::V4 { kind: V4_UNREACHABLE, code } => !matches!(code, 3..=5),
        Icmp::V6 { kind: V6_UNREACHABLE, code } => code != 4,
        Icmp::V4 { kind, .. } => kind == V4_TIME_EXCEEDED,
        // Nobody there speaks the protocol: what is code 2 of "unreachable" in IPv4.
        Icmp::V6 { kind: V6_PARAMETER_PROBLEM, code } => code == 1,
        Icmp::V6 { kind, .. } => kind == V6_TIME_EXCEEDED,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::sys::sockopt;

    #[test]
    fn an_error_queue_is_read_a_part_at_a_time() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        sockopt::set_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut sent = 0;
        while sent < 2 * ERRORS_PER_CALL {
            // The kernel tells of the error before by failing a send.
            sent += usize::from(socket.send_to(&[0; 10], closed).is_ok());
        }
        let (mut paths, counters) = (Paths::default(), WorkerCounters::default());
        let first = learn_from(socket.as_fd(), &mut paths, 0, &counters);
        assert_eq!((first, counters.underlay_errors_left.get()), (ERRORS_PER_CALL as u64, 1));
    }

    #[test]
    fn that_nobody_there_speaks_the_protocol_is_unreachable_in_both_families() {
        for (kind, code, says) in [(3, 2, true), (3, 3, false), (3, 4, false), (12, 1, false)] {
            assert_eq!(says_unreachable(Icmp::V4 { kind, code }), says);
        }
        for (kind, code, says) in [(4, 1, true), (4, 0, false), (1, 4, false), (2, 0, false)] {
            assert_eq!(says_unreachable(Icmp::V6 { kind, code }), says);
        }
    }
}

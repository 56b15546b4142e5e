//! A worker's UDP sockets.
//!
//! # Theory of operation
//!
//! *Receiving*: one socket per VTEP address and UDP port, bound to exactly that address (a port
//! that is open on all addresses is reachable from outside), shared between workers by
//! `SO_REUSEPORT`, which spreads flows by their outer addresses and ports. `UDP_GRO` lets the
//! kernel hand over trains.
//!
//! *Sending*: a socket has one source port, and the source port is the only entropy that the
//! underlay's ECMP and the receiver's queues see (RFC 7348 section 5). So each worker has a fan of
//! `K` send sockets on kernel-chosen ports and picks one by the inner flow's hash. The ports are the
//! same for all workers: were they a worker's own, a flow that changes its queue would change its
//! port, with it the worker that receives it, with that the queue of the answers, and so on for
//! ever, reordering as it goes. One flow, one port. Don't-fragment and the UDP checksum are properties of a socket, not of a datagram, hence a
//! fan per combination that is asked for ([`Flavor`]). The source address is always the
//! advertised one: kernel peers drop what comes from another.
//!
//! *Errors*: `IP_RECVERR` is set on send sockets, so what the path says (too big, unreachable) is
//! queued with its destination and read by the worker.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{Carries, Error, Watcher, holder, probe::UdpOffload};
use crate::sys::mmsg;
use crate::sys::sockopt::{self, QueuedError};

/// Bytes asked for each socket buffer; the default overflows on bursts of super-frames.
const BUFFER_BYTES: usize = 8 << 20;
/// A source port that Azure's fabric reserves for itself.
const RESERVED_SOURCE_PORT: u16 = 65330;
/// Attempts to get a source port that is not one of those to avoid.
const SOURCE_PORT_TRIES: usize = 64;

const IP_PMTUDISC_DONT: i32 = 0;
const IP_PMTUDISC_DO: i32 = 2;
/// `UDP_NO_CHECK6_TX` and `UDP_NO_CHECK6_RX` (`include/uapi/linux/udp.h`).
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;
/// TTL and hop limit of what we send, as the kernel's vxlan device with default settings.
pub(super) const TTL: u32 = 64;

/// `BPF_RET | BPF_K` with zero: accepts no byte of any datagram. Nobody reads from a send socket, and
/// what is sent to its port would fill the memory that its error queue needs too.
pub(super) const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// What the send sockets of one fan have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flavor {
    /// IPv6 underlay.
    pub ipv6: bool,
    /// Don't-fragment set on IPv4; path MTU respected.
    pub df: bool,
    /// Outer UDP checksum sent.
    pub checksum: bool,
}

impl Flavor {
    /// How many combinations there are.
    pub const COUNT: usize = 8;

    /// A dense number below [`Self::COUNT`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.ipv6) | usize::from(self.df) << 1 | usize::from(self.checksum) << 2
    }

    /// All combinations, in the order of [`Self::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(|i| Self { ipv6: i & 1 != 0, df: i & 2 != 0, checksum: i & 4 != 0 })
    }
}

/// What to open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VTEP addresses of this host, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// UDP ports to listen on.
    pub ports: Vec<u16>,
    /// Send sockets per fan.
    pub fan: usize,
    /// What may be used.
    pub offload: UdpOffload,
}

/// The source ports of each fan, by [`Flavor::index`].
pub type SourcePorts = [Vec<u16>; Flavor::COUNT];

/// A receive socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// The UDP port, half of the look-up key of a received VNI.
    pub port: u16,
    /// What the datagrams hold.
    pub carries: Carries,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener {
    /// Opens a receive socket at `at`, which other workers' may share.
    ///
    /// # Errors
    /// As [`Sockets::open`].
    pub fn open(at: SocketAddr, carries: Carries, offload: UdpOffload) -> Result<Self, Error> {
        Ok(Self { socket: listen(at, offload)?, port: at.port(), carries })
    }

    /// One more handle of the same socket, to look at it from elsewhere.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn watcher(&self) -> io::Result<Watcher> {
        Ok(Watcher(self.socket.try_clone()?))
    }
}

/// A send socket.
#[derive(Debug)]
pub struct Sender(Socket);

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Sender {
    /// Opens a send socket of `flavor` on `port`, or on a free one that is none of `avoid`.
    ///
    /// # Errors
    /// As [`Sockets::open`].
    pub fn open(
        address: IpAddr,
        flavor: Flavor,
        avoid: &[u16],
        port: Option<u16>,
    ) -> Result<Self, Error> {
        sender(address, flavor, avoid, port).map(Self)
    }

    /// Its source port.
    #[must_use]
    pub fn port(&self) -> u16 {
        port_of(&self.0)
    }
}

/// All underlay sockets of one worker.
#[derive(Debug)]
pub struct Sockets {
    /// Receive sockets, one per address and port.
    pub listeners: Vec<Listener>,
    fans: [Vec<Socket>; Flavor::COUNT],
}

impl Sockets {
    /// Opens a worker's sockets. The first worker gets ports of the kernel's choice, the others
    /// those of the first.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotLocal`], or the step that failed.
    pub fn open(plan: &Plan, ports: Option<&SourcePorts>) -> Result<Self, Error> {
        let mut listeners = Vec::new();
        let mut fans: [Vec<Socket>; Flavor::COUNT] = Default::default();
        for address in &plan.addresses {
            for port in &plan.ports {
                let at = SocketAddr::new(*address, *port);
                listeners.push(Listener::open(at, Carries::Frames, plan.offload)?);
            }
            for flavor in Flavor::all().filter(|flavor| flavor.ipv6 == address.is_ipv6()) {
                for number in 0..plan.fan.max(1) {
                    let port = ports.and_then(|all| all[flavor.index()].get(number)).copied();
                    fans[flavor.index()].push(sender(*address, flavor, &plan.ports, port)?);
                }
            }
        }
        Ok(Self { listeners, fans })
    }

    /// The source ports, for the next worker.
    #[must_use]
    pub fn source_ports(&self) -> SourcePorts {
        std::array::from_fn(|flavor| self.fans[flavor].iter().map(port_of).collect())
    }

    /// The place of a send socket among [`Self::senders`].
    #[must_use]
    pub fn index_of(&self, flavor: Flavor, number: usize) -> Option<usize> {
        let fan = self.fans.get(flavor.index())?;
        let before: usize = self.fans.iter().take(flavor.index()).map(Vec::len).sum();
        (number < fan.len()).then_some(before + number)
    }

    /// Puts `sender` in the place of a send socket, which is closed.
    pub fn replace(&mut self, flavor: Flavor, number: usize, sender: Sender) {
        let place = self.fans.get_mut(flavor.index()).and_then(|fan| fan.get_mut(number));
        if let Some(place) = place {
            *place = sender.0;
        }
    }

    /// The send sockets of a flavor; empty when this host has no VTEP of that family.
    #[must_use]
    pub fn fan(&self, flavor: usize) -> &[Socket] {
        self.fans.get(flavor).map_or(&[], Vec::as_slice)
    }

    /// Every send socket.
    pub fn senders(&self) -> impl Iterator<Item = &Socket> {
        self.fans.iter().flatten()
    }
}

/// Whether somebody else has `at`. `SO_REUSEPORT` sockets of one user share a port silently, so
/// that two agents would each see half of the traffic; a bind without it tells.
///
/// # Errors
/// [`Error::InUse`] with the holder, or [`Error::NotLocal`].
pub fn claim(at: SocketAddr) -> Result<(), Error> {
    let socket = new_socket(at)?;
    bind(&socket, at)
}

/// Reads what the path said about earlier sends of `socket`, one at a time.
pub fn take_errors(socket: BorrowedFd<'_>) -> impl Iterator<Item = QueuedError> {
    std::iter::from_fn(move || sockopt::take_error(socket).ok().flatten())
}

fn listen(at: SocketAddr, offload: UdpOffload) -> Result<Socket, Error> {
    let socket = new_socket(at)?;
    let step = |step, source| Error::Socket { step, address: at, source };
    socket.set_reuse_port(true).map_err(|e| step("share the port between workers", e))?;
    raise_buffer(socket.as_fd(), libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
    let fd = socket.as_fd();
    if at.is_ipv6() {
        sockopt::set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)
            .map_err(|e| step("ask for the traffic class", e))?;
        sockopt::set_int(fd, libc::SOL_UDP, UDP_NO_CHECK6_RX, 1)
            .map_err(|e| step("accept zero checksums", e))?;
    } else {
        sockopt::set_int(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)
            .map_err(|e| step("ask for the TOS", e))?;
    }
    if offload.gro {
        sockopt::set_int(fd, libc::SOL_UDP, mmsg::UDP_GRO, 1)
            .map_err(|e| step("ask for coalesced datagrams", e))?;
    }
    bind(&socket, at)?;
    Ok(socket)
}

fn port_of(socket: &Socket) -> u16 {
    socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket())
        .map_or(0, |address| address.port())
}

/// Opens a send socket on `port`, or on a free one that is none of `avoid`.
fn sender(
    address: IpAddr,
    flavor: Flavor,
    avoid: &[u16],
    port: Option<u16>,
) -> Result<Socket, Error> {
    let any = SocketAddr::new(address, port.unwrap_or(0));
    let step = |step, source| Error::Socket { step, address: any, source };
    let mut last = None;
    for _ in 0..SOURCE_PORT_TRIES {
        let socket = new_socket(any)?;
        let share =
            || socket.set_reuse_port(true).map_err(|e| step("share the port between workers", e));
        if port.is_some() {
            share()?;
        }
        socket
            .attach_filter(&[DROP_ALL])
            .map_err(|e| step("keep datagrams off the send socket", e))?;
        raise_buffer(socket.as_fd(), libc::SO_SNDBUFFORCE, libc::SO_SNDBUF);
        let fd = socket.as_fd();
        let discover = if flavor.df { IP_PMTUDISC_DO } else { IP_PMTUDISC_DONT };
        let (level, discovery, errors) = if flavor.ipv6 {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_RECVERR)
        } else {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_RECVERR)
        };
        sockopt::set_int(fd, level, discovery, discover)
            .map_err(|e| step("choose fragmentation", e))?;
        sockopt::set_int(fd, level, errors, 1).map_err(|e| step("ask for path errors", e))?;
        if flavor.ipv6 {
            socket.set_unicast_hops_v6(TTL).map_err(|e| step("set the hop limit", e))?;
        } else {
            socket.set_ttl_v4(TTL).map_err(|e| step("set the TTL", e))?;
        }
        if !flavor.checksum {
            let (level, name) = if flavor.ipv6 {
                (libc::SOL_UDP, UDP_NO_CHECK6_TX)
            } else {
                (libc::SOL_SOCKET, libc::SO_NO_CHECK)
            };
            sockopt::set_int(fd, level, name, 1).map_err(|e| step("send no checksum", e))?;
        }
        bind(&socket, any)?;
        if port.is_none() {
            // Not before: a socket that shares may be given any port that others share already,
            // one of the same fan, or of another program, whose traffic it would then take.
            share()?;
        }
        let chosen = port_of(&socket);
        if chosen != RESERVED_SOURCE_PORT && !avoid.contains(&chosen) {
            return Ok(socket);
        }
        // Kept open until the next try, so that the kernel does not choose the same port again.
        last = Some(socket);
    }
    drop(last);
    Err(step("find a free source port", io::Error::from_raw_os_error(libc::EADDRINUSE)))
}

fn new_socket(at: SocketAddr) -> Result<Socket, Error> {
    let step = |step, source| Error::Socket { step, address: at, source };
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))
        .map_err(|e| step("open a UDP socket", e))?;
    socket.set_nonblocking(true).map_err(|e| step("make the socket non-blocking", e))?;
    if at.is_ipv6() {
        socket.set_only_v6(true).map_err(|e| step("keep IPv4 off the socket", e))?;
    }
    Ok(socket)
}

/// A port that somebody has is tried so often, with this pause: a program that is just being started
/// has copies of our descriptors until it runs, among them of sockets that we have closed.
const BIND_TRIES: u32 = 10;
const BIND_PAUSE: Duration = Duration::from_millis(5);

fn bind(socket: &Socket, at: SocketAddr) -> Result<(), Error> {
    let taken = |bound: &io::Result<()>| {
        bound.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EADDRINUSE))
    };
    let mut bound = socket.bind(&at.into());
    for _ in 0..BIND_TRIES {
        if !taken(&bound) {
            break;
        }
        std::thread::sleep(BIND_PAUSE);
        bound = socket.bind(&at.into());
    }
    bound.map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            Error::InUse { address: at, holder: holder::of_udp_port(at.port()) }
        }
        Some(libc::EADDRNOTAVAIL) => Error::NotLocal { address: at },
        _ => Error::Socket { step: "bind", address: at, source },
    })
}

/// Without `CAP_NET_ADMIN` the forced size is refused, and the plain one is cut to the system's
/// limit: slower under bursts, not wrong.
pub(super) fn raise_buffer(fd: BorrowedFd<'_>, forced: i32, plain: i32) {
    let bytes = i32::try_from(BUFFER_BYTES).unwrap_or(i32::MAX);
    if sockopt::set_int(fd, libc::SOL_SOCKET, forced, bytes).is_err() {
        let _ = sockopt::set_int(fd, libc::SOL_SOCKET, plain, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::{Duration, Instant};

    fn plan() -> Plan {
        Plan {
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            ports: Vec::new(),
            fan: 16,
            offload: UdpOffload::NONE,
        }
    }

    #[test]
    fn source_ports_differ_within_a_worker_and_agree_between_workers() {
        let first = Sockets::open(&plan(), None).unwrap();
        let ports = first.source_ports();
        let all: Vec<u16> = ports.iter().flatten().copied().collect();
        assert_eq!(all.len(), 4 * 16);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        let second = Sockets::open(&plan(), Some(&ports)).unwrap();
        assert_eq!(second.source_ports(), ports);
    }

    #[test]
    fn what_strangers_send_to_a_source_port_hides_no_path_error() {
        let sockets = Sockets::open(&plan(), None).unwrap();
        let sender = sockets.senders().next().unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = (Ipv4Addr::LOCALHOST, port_of(sender));
        for len in [1000, 0] {
            for _ in 0..3000 {
                stranger.send_to(&vec![0; len], to).unwrap();
            }
        }
        // A port that nobody has: the answer is an ICMP error.
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        sender.send_to(&[0; 10], &closed.into()).unwrap();
        let begun = Instant::now();
        let found = std::iter::from_fn(|| {
            std::thread::sleep(Duration::from_millis(1));
            (begun.elapsed() < Duration::from_secs(5)).then(|| take_errors(sender.as_fd()).next())
        })
        .flatten()
        .next();
        assert_eq!(found.map(|error| error.errno), Some(libc::ECONNREFUSED));
    }
}

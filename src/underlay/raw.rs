//! A worker's raw sockets: IP-in-IP, protocol 4 with IPv4 inside and 41 with IPv6 (RFC 2003, RFC 4213,
//! RFC 2473).
//!
//! # Theory of operation
//!
//! One socket per VTEP address and family inside, bound to exactly that address; it sends and
//! receives. The kernel makes the outer header: TTL 64, don't-fragment set, so that a path that takes
//! less says so, and the TOS by control message. The source is the address that it is bound to.
//!
//! Raw sockets do not share a load: each gets a copy of every packet of its protocol. So every
//! worker's socket has a filter that takes the packets of its share of the inner address pairs, and no
//! packet is seen twice. One worker that receives for all would spare nothing: the others need a socket
//! to send, which the kernel offers the same copies. (A copy shares the packet's data.) The kernel offers
//! packets from the moment that a socket is made, for any address until it is bound: it takes none
//! until it is bound, and what came before is thrown away. What is too
//! short to have inner addresses is the first worker's, to be counted. A packet that finds the buffers
//! of all full makes the kernel answer that nobody here speaks the protocol.
//!
//! One more socket of each address only sends: IPv6 that must go in fragments.
//!
//! IPv4 sockets deliver the outer header in front, IPv6 sockets do not.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::udp::{DROP_ALL, Flavor, TTL, raise_buffer};
use super::{Carries, Error};
use crate::sys::sockopt;

const IP_PMTUDISC_DONT: i32 = 0;
const IP_PMTUDISC_DO: i32 = 2;
/// Packets that a socket has room for before its buffer is raised, and many more.
const DRAIN_MOST: usize = 100_000;

/// What tells a worker's raw sockets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// IPv6 underlay.
    pub ipv6: bool,
    /// IPv6 packets inside.
    pub inner_ipv6: bool,
    /// It sends only, and what is too long for the path in fragments: IPv6 packets where the path
    /// leaves them less than their least MTU (RFC 4213 section 3.2).
    pub fragments: bool,
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// A dense number below [`Self::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.ipv6 as usize | (self.inner_ipv6 as usize) << 1 | (self.fragments as usize) << 2
    }

    /// Its number among all kinds of sockets that send, behind those of [`Flavor`]. As there, the lowest
    /// bit is the underlay's family.
    #[must_use]
    pub const fn flavor(self) -> u8 {
        (Flavor::COUNT + self.index()) as u8
    }

    /// What its packets hold.
    #[must_use]
    pub const fn carries(self) -> Carries {
        if self.inner_ipv6 { Carries::Ipv6 } else { Carries::Ipv4 }
    }

    fn protocol(self) -> u8 {
        if self.inner_ipv6 { encap::ipip::IPV6 } else { encap::ipip::IPV4 }
    }
}

/// A raw socket of one worker.
#[derive(Debug)]
pub struct RawSocket {
    socket: Socket,
    /// Which one it is.
    pub kind: Kind,
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl RawSocket {
    /// Opens the sockets at `address` of worker `worker` out of `workers`: one for each family inside, and
    /// the one that sends fragments. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// [`Error::NotLocal`], or the step that failed.
    pub fn open(address: IpAddr, worker: u32, workers: u32) -> Result<[Self; 3], Error> {
        let open = |inner_ipv6, fragments| {
            let kind = Kind { ipv6: address.is_ipv6(), inner_ipv6, fragments };
            Ok::<_, Error>(Self { socket: socket(address, kind, worker, workers)?, kind })
        };
        Ok([open(false, false)?, open(true, false)?, open(true, true)?])
    }

    /// One more handle of the same socket, to look at it from elsewhere.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn watcher(&self) -> io::Result<super::Watcher> {
        Ok(super::Watcher(self.socket.try_clone()?))
    }

    /// Takes the error that waits for the next call, which otherwise would have it.
    pub fn take_error(&self) {
        let _ = self.socket.take_error();
    }
}

/// The kernel's own tunnel devices in this network namespace that take whatever comes for no other
/// tunnel, as their modules make them.
#[must_use]
pub fn kernel_tunnels() -> Vec<&'static str> {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let has = |name: &&str| {
        devices.lines().any(|line| {
            line.trim_start().strip_prefix(*name).is_some_and(|rest| rest.starts_with(':'))
        })
    };
    ["tunl0", "sit0", "ip6tnl0"].into_iter().filter(has).collect()
}

fn socket(address: IpAddr, kind: Kind, worker: u32, workers: u32) -> Result<Socket, Error> {
    let at = SocketAddr::new(address, 0);
    let step = |step, source| Error::Socket { step, address: at, source };
    let protocol = Protocol::from(i32::from(kind.protocol()));
    let socket = Socket::new(Domain::for_address(at), Type::RAW, Some(protocol))
        .map_err(|e| step("open a raw socket (it needs CAP_NET_RAW)", e))?;
    let filter =
        |what, filter: &[SockFilter]| socket.attach_filter(filter).map_err(|e| step(what, e));
    filter("take no packets yet", &[DROP_ALL])?;
    socket.set_nonblocking(true).map_err(|e| step("make the socket non-blocking", e))?;
    let fd = socket.as_fd();
    raise_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF);
    raise_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
    let set = |what, level, name, value| {
        sockopt::set_int(fd, level, name, value).map_err(|e| step(what, e))
    };
    let discover = if kind.fragments { IP_PMTUDISC_DONT } else { IP_PMTUDISC_DO };
    if kind.ipv6 {
        set("choose fragmentation", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
        set("ask for path errors", libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
        set("ask for the traffic class", libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        // Too long is an error here, and no packet in two fragments.
        let forbid = i32::from(!kind.fragments);
        set("forbid fragments", libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, forbid)?;
        socket.set_unicast_hops_v6(TTL).map_err(|e| step("set the hop limit", e))?;
    } else {
        set("choose fragmentation", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
        set("ask for path errors", libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
        socket.set_ttl_v4(TTL).map_err(|e| step("set the TTL", e))?;
    }
    socket.bind(&at.into()).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => Error::NotLocal { address: at },
        _ => step("bind", source),
    })?;
    drain(&socket);
    if kind.fragments {
        return Ok(socket);
    }
    filter("share packets between workers", &share(kind, worker, workers))?;
    Ok(socket)
}

/// Throws away what came before the first filter: of other workers' shares, or for other addresses.
fn drain(socket: &Socket) {
    for _ in 0..DRAIN_MOST {
        match socket.recv(&mut [MaybeUninit::uninit(); 1]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// The filter of one worker's share: a hash of the inner addresses, through the number of workers.
fn share(kind: Kind, worker: u32, workers: u32) -> [SockFilter; 17] {
    let one = |code, k| SockFilter::new(code, 0, 0, k);
    // X: where the inner packet begins, behind the header length of `P[0] & 0xf` words or at once.
    let begin = if kind.ipv6 { one(0x01, 0) } else { one(0xb1, 0) };
    // The last words of the addresses: what differs most.
    let (header, source, destination) = if kind.inner_ipv6 { (40, 20, 36) } else { (20, 12, 16) };
    let whole = u32::MAX;
    [
        begin,
        one(0x80, 0),                         // A = length
        one(0x1c, 0),                         // A -= X
        SockFilter::new(0x35, 0, 10, header), // A >= header, else the last but two
        one(0x40, source),                    // A = P[X + source]
        one(0x02, 0),                         // M[0] = A
        one(0x40, destination),               // A = P[X + destination]
        one(0x07, 0),                         // X = A
        one(0x60, 0),                         // A = M[0]
        one(0xac, 0),                         // A ^= X
        one(0x24, 0x9e37_79b1),               // A *= golden ratio: every bit reaches the upper ones
        one(0x74, 16),                        // A >>= 16
        one(0x94, workers.max(1)),            // A %= workers
        SockFilter::new(0x15, 1, 2, worker),  // A == worker
        one(0x06, if worker == 0 { whole } else { 0 }),
        one(0x06, whole),
        one(0x06, 0),
    ]
}

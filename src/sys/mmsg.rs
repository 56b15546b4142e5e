//! `sendmmsg(2)` and `recvmmsg(2)`, with control messages per datagram.
//!
//! # Theory of operation
//!
//! Both directions own every array that the kernel reads or writes (headers, addresses, control
//! buffers, iovecs) and allocate them once. A send is described by [`Message`]s whose bytes are
//! [`Piece`]s of buffers that the caller lends for the length of the call; the pointers are made
//! from those borrows inside the call and never survive it. A receive fills one arena of fixed
//! slots, so that a datagram is afterwards just a range of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::arena::Arena;

/// `SOL_UDP`, `UDP_SEGMENT` (`include/uapi/linux/udp.h`).
pub const UDP_SEGMENT: i32 = 103;
/// `SOL_UDP`, `UDP_GRO`.
pub const UDP_GRO: i32 = 104;

/// Room for a segment size and a TOS, with alignment: two control messages of 24 bytes at most.
const SEND_CONTROL: usize = 64;
/// Room for a GRO size and a TOS with headroom for what a later kernel may add.
const RECV_CONTROL: usize = 128;
/// The most datagram bytes of one slot: a UDP payload is shorter than 64 KiB.
pub const SLOT: usize = 65_536;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct SendControl([u8; SEND_CONTROL]);

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct RecvControl([u8; RECV_CONTROL]);

/// A socket address in the kernel's form, made once per destination.
#[derive(Clone, Copy)]
pub struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let converted = socket2::SockAddr::from(address);
        // SAFETY: `sockaddr_storage` is plain old data for which zero bytes are valid.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let len = converted.len();
        // SAFETY: the source holds `len` valid bytes and `len` never exceeds the size of
        // `sockaddr_storage`, which is what socket2 keeps them in; the two do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                converted.as_ptr().cast::<u8>(),
                (&raw mut storage).cast::<u8>(),
                len as usize,
            );
        }
        Self { storage, len }
    }
}

/// Bytes of one of the buffers lent to [`SendBatch::send`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Piece {
    /// Which of the buffers.
    pub buffer: u32,
    /// The first byte.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

/// A destination with this bit counts in the second list of addresses.
pub const FURTHER: u32 = 1 << 31;

/// One `sendmsg` of a batch: one datagram, or several that the kernel cuts at `segment` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Index into the first list of addresses, or with [`FURTHER`] into the second.
    pub destination: u32,
    /// Segment size in bytes; 0 for a single datagram.
    pub segment: u16,
    /// Outer TOS or traffic class; 0 leaves the socket's own.
    pub tos: u8,
    /// The first of its pieces.
    pub first_piece: u32,
    /// How many pieces.
    pub pieces: u32,
}

/// Arrays for `sendmmsg`, allocated once. Used by one thread.
pub struct SendBatch {
    headers: Vec<libc::mmsghdr>,
    controls: Vec<SendControl>,
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the raw pointers inside are scratch that each call of `send` overwrites before use; none
// is read between calls, so moving the value to another thread is sound.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// For at most `messages` messages with `pieces` pieces together in one call.
    #[must_use]
    pub fn new(messages: usize, pieces: usize) -> Self {
        Self {
            headers: Vec::with_capacity(messages),
            controls: vec![SendControl([0; SEND_CONTROL]); messages],
            iovecs: Vec::with_capacity(pieces),
        }
    }

    /// Sends as many of `messages` as the kernel takes in one call, in order, without waiting.
    /// Returns how many; the rest failed with an error that a call beginning there will tell.
    ///
    /// `ipv6` says the socket's family, which decides the control message of the TOS.
    ///
    /// # Errors
    /// Of the first message, as `sendmsg(2)`: `EAGAIN` full socket buffer, `EMSGSIZE` longer than
    /// the path takes, `EINVAL` or `EIO` no segmentation offload towards there. `EINVAL` too when a
    /// piece or an address does not exist, which is a defect of the caller.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        ipv6: bool,
        addresses: [&[Address]; 2],
        buffers: [&[u8]; 2],
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        self.headers.clear();
        self.iovecs.clear();
        let messages = &messages[..messages.len().min(self.controls.len())];
        for message in messages {
            let from = message.first_piece as usize;
            let own = pieces.get(from..from + message.pieces as usize).ok_or_else(invalid)?;
            for piece in own {
                let buffer = buffers.get(piece.buffer as usize).ok_or_else(invalid)?;
                let from = piece.offset as usize;
                let bytes = buffer.get(from..from + piece.len as usize).ok_or_else(invalid)?;
                self.iovecs.push(libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                });
            }
        }
        // Complete from here on, so its place is final; taken once, as a later borrow of the vector
        // would end what the earlier pointers may be used for.
        let iovecs = self.iovecs.as_mut_ptr();
        let mut first_iovec = 0;
        for (message, control) in messages.iter().zip(&mut self.controls) {
            let list = addresses[usize::from(message.destination & FURTHER != 0)];
            let address =
                list.get((message.destination & !FURTHER) as usize).ok_or_else(invalid)?;
            let mut used = 0;
            if message.segment != 0 {
                used += put_control(
                    &mut control.0[used..],
                    libc::SOL_UDP,
                    UDP_SEGMENT,
                    &message.segment.to_ne_bytes(),
                );
            }
            if message.tos != 0 {
                let (level, kind) = if ipv6 {
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
                } else {
                    (libc::IPPROTO_IP, libc::IP_TOS)
                };
                let tos = i32::from(message.tos).to_ne_bytes();
                used += put_control(&mut control.0[used..], level, kind, &tos);
            }
            // SAFETY: `mmsghdr` is plain old data for which zero bytes are valid.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            let inner = &mut header.msg_hdr;
            inner.msg_name = (&raw const address.storage).cast_mut().cast();
            inner.msg_namelen = address.len;
            inner.msg_iov = iovecs.wrapping_add(first_iovec);
            inner.msg_iovlen = message.pieces as _;
            if used != 0 {
                inner.msg_control = control.0.as_mut_ptr().cast();
                inner.msg_controllen = used as _;
            }
            first_iovec += message.pieces as usize;
            self.headers.push(header);
        }
        // SAFETY: each header points to live arrays of this value or to borrows of this call, with
        // the true lengths; the kernel only reads through the name, iovec and control pointers of a
        // send, and writes `msg_len` in `headers`, which is borrowed mutably.
        let sent = super::check(unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        })?;
        Ok(sent.unsigned_abs() as usize)
    }
}

/// What the kernel says of one received datagram, or of one train that it coalesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where its first byte lies in the arena.
    pub offset: usize,
    /// Its length in bytes.
    pub len: usize,
    /// The size of each segment but the last, from `UDP_GRO`; 0 when the kernel said none.
    pub gro_size: usize,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// Longer than the slot, so cut.
    pub truncated: bool,
    /// Outer source; IPv4-mapped addresses are given as IPv4.
    pub source: Option<IpAddr>,
}

/// Arrays and the arena for `recvmmsg`, allocated once. Used by one thread.
pub struct RecvBatch {
    headers: Vec<libc::mmsghdr>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<RecvControl>,
    iovecs: Vec<libc::iovec>,
    arena: Arena,
    count: usize,
}

// SAFETY: the raw pointers inside point into the value's own heap arrays, which move with it.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    /// With `slots` slots of [`SLOT`] bytes.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        // SAFETY: `mmsghdr` is plain old data for which zero bytes are valid.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        // SAFETY: `sockaddr_storage` is plain old data for which zero bytes are valid.
        let name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Self {
            headers: vec![header; slots],
            names: vec![name; slots],
            controls: vec![RecvControl([0; RECV_CONTROL]); slots],
            iovecs: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; slots],
            arena: Arena::new(slots * SLOT),
            count: 0,
        }
    }

    /// How many slots a call can fill.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.headers.len()
    }

    /// Receives what is waiting, without waiting for more. Returns how many datagrams.
    ///
    /// # Errors
    /// As `recvmsg(2)`; `WouldBlock` when there is none.
    pub fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.count = 0;
        let slots = self.arena.chunks_exact_mut(SLOT);
        for ((((header, name), control), iovec), slot) in self
            .headers
            .iter_mut()
            .zip(&mut self.names)
            .zip(&mut self.controls)
            .zip(&mut self.iovecs)
            .zip(slots)
        {
            iovec.iov_base = slot.as_mut_ptr().cast();
            iovec.iov_len = slot.len();
            let inner = &mut header.msg_hdr;
            inner.msg_name = (&raw mut *name).cast();
            inner.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            inner.msg_iov = &raw mut *iovec;
            inner.msg_iovlen = 1;
            inner.msg_control = control.0.as_mut_ptr().cast();
            inner.msg_controllen = RECV_CONTROL as _;
            inner.msg_flags = 0;
        }
        // SAFETY: every pointer of every header was set above to a distinct live element of this
        // value's arrays with its true size, and the value is borrowed mutably for the call.
        let received = super::check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })?;
        self.count = received.unsigned_abs() as usize;
        Ok(self.count)
    }

    /// What is known of datagram `index` of the last receive; `None` past the last.
    #[must_use]
    pub fn meta(&self, index: usize) -> Option<Received> {
        if index >= self.count {
            return None;
        }
        let header = self.headers.get(index)?;
        let control = self.controls.get(index)?;
        let mut found = Received {
            offset: index * SLOT,
            len: (header.msg_len as usize).min(SLOT),
            gro_size: 0,
            tos: 0,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            source: address_of(self.names.get(index)?),
        };
        let used = header.msg_hdr.msg_controllen.min(RECV_CONTROL);
        for message in control_messages(&control.0[..used]) {
            match (message.level, message.kind) {
                (libc::SOL_UDP, UDP_GRO) => {
                    if let Some(bytes) = message.data.first_chunk::<4>() {
                        found.gro_size = usize::try_from(i32::from_ne_bytes(*bytes)).unwrap_or(0);
                    }
                }
                // The kernel gives an IPv4 TOS as one byte and a traffic class as an int.
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    found.tos = message.data.first().copied().unwrap_or(0);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    if let Some(bytes) = message.data.first_chunk::<4>() {
                        found.tos = (i32::from_ne_bytes(*bytes) & 0xff) as u8;
                    }
                }
                _ => {}
            }
        }
        Some(found)
    }

    /// The slots' bytes, valid until the next receive.
    #[must_use]
    pub fn arena(&mut self) -> &mut [u8] {
        &mut self.arena
    }
}

/// One control message.
pub(super) struct ControlMessage<'a> {
    pub(super) level: i32,
    pub(super) kind: i32,
    pub(super) data: &'a [u8],
}

/// `struct cmsghdr` on 64-bit Linux: length (with the header) 8 bytes, level 4, type 4.
const CONTROL_HEADER: usize = 16;

const fn aligned(len: usize) -> usize {
    (len + 7) & !7
}

/// Walks a control buffer. Lengths that do not fit end the walk.
pub(super) fn control_messages(mut bytes: &[u8]) -> impl Iterator<Item = ControlMessage<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<CONTROL_HEADER>()?;
        let [a, b, c, d, e, f, g, h, level @ ..] = *header;
        let len = usize::try_from(u64::from_ne_bytes([a, b, c, d, e, f, g, h])).ok()?;
        let [l0, l1, l2, l3, k0, k1, k2, k3] = level;
        let data = bytes.get(CONTROL_HEADER..len)?;
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some(ControlMessage {
            level: i32::from_ne_bytes([l0, l1, l2, l3]),
            kind: i32::from_ne_bytes([k0, k1, k2, k3]),
            data,
        })
    })
}

/// Writes one control message and returns the room it took. `room` is a buffer of this module that
/// holds every combination it is asked for.
fn put_control(room: &mut [u8], level: i32, kind: i32, data: &[u8]) -> usize {
    let len = CONTROL_HEADER + data.len();
    room[..8].copy_from_slice(&(len as u64).to_ne_bytes());
    room[8..12].copy_from_slice(&level.to_ne_bytes());
    room[12..16].copy_from_slice(&kind.to_ne_bytes());
    room[16..len].copy_from_slice(data);
    aligned(len)
}

/// The address of an IPv4 or IPv6 socket name, mapped addresses as IPv4.
pub(super) fn address_of(name: &libc::sockaddr_storage) -> Option<IpAddr> {
    socket_address(name).map(|address| address.ip().to_canonical())
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which is smaller than
            // and no more aligned than `sockaddr_storage`, and has no invalid bit patterns.
            let v4 = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for `sockaddr_in6`.
            let v6 = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn pair() -> (UdpSocket, UdpSocket) {
        let (a, b) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        (a, b)
    }

    #[test]
    fn pieces_are_gathered_and_cut_into_segments() {
        let (a, b) = pair();
        let addresses = [Address::from(b.local_addr().unwrap())];
        let first = [1u8; 20];
        let second = [2u8; 100];
        let pieces = [
            Piece { buffer: 0, offset: 0, len: 10 },
            Piece { buffer: 1, offset: 5, len: 40 },
            Piece { buffer: 0, offset: 10, len: 10 },
        ];
        let messages = [
            Message { destination: 0, segment: 25, tos: 2, first_piece: 0, pieces: 2 },
            Message { destination: 0, segment: 0, tos: 0, first_piece: 2, pieces: 1 },
        ];
        let mut batch = SendBatch::new(8, 64);
        let sent = batch
            .send(a.as_fd(), false, [&addresses, &[]], [&first, &second], &pieces, &messages)
            .unwrap();
        assert_eq!(sent, 2);
        let mut recv = RecvBatch::new(4);
        let mut lens = Vec::new();
        b.set_nonblocking(false).unwrap();
        while lens.len() < 3 {
            let mut peek = [0u8; 1];
            b.peek(&mut peek).unwrap();
            let n = recv.recv(b.as_fd()).unwrap();
            for i in 0..n {
                let meta = recv.meta(i).unwrap();
                assert_eq!(meta.source, Some("127.0.0.1".parse().unwrap()));
                lens.push(meta.len);
            }
        }
        assert_eq!(lens, [25, 25, 10]);
    }

    #[test]
    fn a_piece_outside_its_buffer_is_refused() {
        let (a, b) = pair();
        let addresses = [Address::from(b.local_addr().unwrap())];
        let pieces = [Piece { buffer: 0, offset: 0, len: 11 }];
        let messages =
            [Message { destination: FURTHER, segment: 0, tos: 0, first_piece: 0, pieces: 1 }];
        let refused = SendBatch::new(1, 1)
            .send(a.as_fd(), false, [&[], &addresses], [&[0; 10], &[]], &pieces, &messages)
            .unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_control_buffer_with_lengths_that_lie_ends_the_walk() {
        for len in [0u64, 1, 15, 17, 1 << 40, u64::MAX] {
            let mut bytes = [0u8; 32];
            bytes[..8].copy_from_slice(&len.to_ne_bytes());
            assert!(control_messages(&bytes).count() <= 1);
        }
    }
}

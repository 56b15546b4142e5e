//! Integer socket options and the socket error queue.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets an `int` socket option.
///
/// # Errors
/// As `setsockopt(2)`; `ENOPROTOOPT` is how an old kernel says that it lacks the option.
pub fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is one int that outlives the call, and its true size is given.
    super::check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// What waits in a socket, and what did not fit (`SO_MEMINFO`, `include/uapi/linux/sock_diag.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Bytes of memory that received datagrams take now.
    pub used_bytes: u64,
    /// How many they may take.
    pub limit_bytes: u64,
    /// Datagrams that were dropped before anybody could read them, since the socket was opened.
    pub dropped: u64,
}

/// Reads what waits in a socket.
///
/// # Errors
/// As `getsockopt(2)`; `ENOPROTOOPT` before Linux 4.12.
pub fn queued(fd: BorrowedFd<'_>) -> io::Result<Queued> {
    const SO_MEMINFO: i32 = 55;
    // `SK_MEMINFO_RMEM_ALLOC` and so on; those of older kernels stay zero.
    const RMEM_ALLOC: usize = 0;
    const RCVBUF: usize = 1;
    const DROPS: usize = 8;
    const VARS: usize = 9;
    let mut values = [0u32; VARS];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: `values` and `len` outlive the call, and `len` is the true size of `values`.
    super::check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    Ok(Queued {
        used_bytes: values[RMEM_ALLOC].into(),
        limit_bytes: values[RCVBUF].into(),
        dropped: values[DROPS].into(),
    })
}

/// One entry of a socket's error queue (`IP_RECVERR`, `include/uapi/linux/errqueue.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// The errno that the kernel made of it, for example `EMSGSIZE` or `ECONNREFUSED`.
    pub errno: i32,
    /// Where the failed datagram was going.
    pub destination: Option<IpAddr>,
    /// The path MTU in bytes, for `EMSGSIZE`.
    pub mtu: Option<u32>,
    /// Who said so by ICMP, as its type and code; `None` when the kernel itself found it out.
    pub icmp: Option<Icmp>,
}

/// Type and code of an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Of IPv4 (RFC 792).
    V4 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Of IPv6 (RFC 4443).
    V6 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
}

/// Takes one entry from the error queue of an IPv4 or IPv6 datagram socket, without waiting.
/// `Ok(None)` when it is empty.
///
/// # Errors
/// As `recvmsg(2)`.
pub fn take_error(fd: BorrowedFd<'_>) -> io::Result<Option<QueuedError>> {
    #[repr(align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    // The payload is the failed datagram, of which nothing is needed.
    let mut payload = [0u8; 1];
    let mut iov = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: `sockaddr_storage` is plain old data for which zero bytes are valid.
    let mut name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: `msghdr` is plain old data for which zero bytes are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `header` is to a live local with the size stated beside it.
    let received = unsafe {
        libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if received < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    let used = (header.msg_controllen as usize).min(control.0.len());
    let mut found = QueuedError {
        errno: 0,
        destination: super::mmsg::address_of(&name),
        mtu: None,
        icmp: None,
    };
    for message in super::mmsg::control_messages(&control.0[..used]) {
        let ours = (message.level == libc::IPPROTO_IP && message.kind == libc::IP_RECVERR)
            || (message.level == libc::IPPROTO_IPV6 && message.kind == libc::IPV6_RECVERR);
        // struct sock_extended_err: errno u32, origin, type, code, pad (u8 each), info u32, data u32.
        if let (true, Some(fields)) = (ours, message.data.first_chunk::<16>()) {
            let word = |at: usize| {
                u32::from_ne_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]])
            };
            found.errno = word(0).cast_signed();
            if found.errno == libc::EMSGSIZE {
                found.mtu = Some(word(8));
            }
            // `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6`.
            let (kind, code) = (fields[5], fields[6]);
            found.icmp = match fields[4] {
                2 => Some(Icmp::V4 { kind, code }),
                3 => Some(Icmp::V6 { kind, code }),
                _ => None,
            };
        }
    }
    Ok(Some(found))
}

//! The only module with `unsafe`: the system calls that no crate offers in a shape we can use.
//!
//! Every function takes and gives borrowed descriptors and slices, never raw pointers, so that the
//! obligations of each call are met inside the function that makes it.
//!
//! - [`arena`]: buffers on huge pages.
//! - [`mmsg`]: `sendmmsg` and `recvmmsg` with a control message of its own per datagram, which
//!   neither `nix` nor `socket2` can say (UDP segment size and TOS differ from one to the next).
//! - [`privilege`]: capabilities, by crates that are safe; it stands here because each of them is a
//!   property of a thread.
//! - [`sockopt`]: integer socket options and the socket error queue.
//! - [`thread`]: how a thread is scheduled.
//! - [`tun`]: TUN/TAP queues with virtio headers and offloads.

pub mod arena;
pub mod mmsg;
pub mod privilege;
pub mod sockopt;
pub mod thread;
pub mod tun;

use std::io;

/// The result of a system call that answers -1 on failure.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

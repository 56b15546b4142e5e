//! TUN/TAP queues (`drivers/net/tun.c`, `include/uapi/linux/if_tun.h`).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `TUN_F_CSUM`: frames may be read with a partial checksum.
pub const OFFLOAD_CSUM: u32 = 0x01;
/// `TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN`: TCP super-frames may be read.
pub const OFFLOAD_TSO: u32 = 0x02 | 0x04 | 0x08;
/// `TUN_F_USO4 | TUN_F_USO6`: UDP super-frames may be read. The kernel takes both or none.
pub const OFFLOAD_USO: u32 = 0x20 | 0x40;

/// What the frames of a device begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// An Ethernet header.
    Tap,
    /// An IP header.
    Tun,
}

/// Opens one more queue of the multi-queue device `name` in the calling thread's network namespace,
/// creating it when it does not exist.
///
/// The queue is non-blocking and carries a virtio-net header of `header_len` bytes in front of each
/// frame. The offload mask belongs to the device, not to the queue, and outlives a detach on a
/// persistent device, so the caller sets it after each open ([`set_offload`]).
///
/// # Errors
/// `EBUSY` when the device has a queue of another kind, `EINVAL` when a persistent device was made
/// with other flags or as the other kind of device, or `name` is no interface name, `EPERM` without `CAP_NET_ADMIN`.
pub fn open_queue(device: Device, name: &str, header_len: i32) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: `ifreq` is a plain C structure for which all-zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.is_ascii() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let kind = match device {
        Device::Tap => libc::IFF_TAP,
        Device::Tun => libc::IFF_TUN,
    };
    let flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    // All four flags lie in the low 16 bits, which is what the kernel reads.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and `request` is an `ifreq` that outlives the call.
    super::check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    super::check(unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_len)
    })?;
    Ok(file.into())
}

/// Sets what may be read from the device of `queue`: a combination of the `OFFLOAD_*` masks.
///
/// # Errors
/// `EINVAL` when the kernel does not know one of the bits, or TSO is asked for without CSUM.
pub fn set_offload(queue: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is borrowed, so open.
    super::check(unsafe {
        libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask))
    })?;
    Ok(())
}

/// Lets the device outlive its last descriptor, or not.
///
/// # Errors
/// As the kernel says; `EPERM` when another user owns the device.
pub fn set_persistent(queue: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value; the descriptor is borrowed, so open.
    super::check(unsafe {
        libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent))
    })?;
    Ok(())
}

//! The queues of a network's TAP or TUN.
//!
//! # Theory of operation
//!
//! The device is always opened multi-queue, with one queue too, because a persistent device keeps the
//! flag it was made with and an agent may come back with another number of workers. It is
//! persistent, so it (and what the bridge or the routes know of it) survives the agent. A queue's
//! descriptor works from any namespace, whichever the device is in.
//!
//! A TAP has frames with an Ethernet header, a TUN has bare IP packets: a queue knows its
//! [`Link`]. Either way each frame carries a 12-byte virtio-net header. The offload mask says what may be *read*
//! (partial checksums, super-frames); super-frames may be written whatever it says, those of UDP
//! where the kernel knows them. The mask is of the device and outlives us, so it is set at every open, from the richest that the kernel takes
//! down to none.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use encap::{Link, vnet};

use crate::sys::tun::{self, Device};

/// What may be read from a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortOffload {
    /// Partial checksums.
    pub csum: bool,
    /// TCP super-frames; needs `csum`.
    pub tso: bool,
    /// UDP super-frames (Linux 6.2 and newer); needs `csum`.
    pub uso: bool,
}

impl PortOffload {
    /// All that there is.
    pub const ALL: Self = Self { csum: true, tso: true, uso: true };

    fn mask(self) -> u32 {
        let mut mask = 0;
        if self.csum {
            mask |= tun::OFFLOAD_CSUM;
            mask |= if self.tso { tun::OFFLOAD_TSO } else { 0 };
            mask |= if self.uso { tun::OFFLOAD_USO } else { 0 };
        }
        mask
    }

    /// This set and ever poorer ones, to be tried in order.
    fn ladder(self) -> [Self; 4] {
        let csum = Self { uso: false, tso: false, ..self };
        [self, Self { uso: false, ..self }, csum, Self { csum: false, ..csum }]
    }
}

/// One queue of a TAP or TUN. Used by one worker.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    link: Link,
    uso: bool,
}

/// Opens `queues` queues of the device `name` in the calling thread's network namespace, creating
/// it or taking over the present one, and makes it persistent. Returns them with the offloads that
/// the kernel granted out of `wanted`.
///
/// # Errors
/// As `open_queue`: `EBUSY` when other descriptors still hold the queues, `EINVAL` when a device of
/// that name was made with other flags.
pub(super) fn open(
    device: Device,
    name: &str,
    queues: usize,
    wanted: PortOffload,
) -> io::Result<(Vec<Queue>, PortOffload)> {
    let header = i32::try_from(vnet::LEN).unwrap_or(i32::MAX);
    let link = match device {
        Device::Tap => Link::Ethernet,
        Device::Tun => Link::None,
    };
    let mut opened = Vec::with_capacity(queues);
    for _ in 0..queues.max(1) {
        opened.push(Queue { fd: tun::open_queue(device, name, header)?, link, uso: false });
    }
    let mut granted = PortOffload { csum: false, tso: false, uso: false };
    let mut uso = false;
    if let Some(first) = opened.first() {
        tun::set_persistent(first.as_fd(), true)?;
        // Whatever is wanted: what the kernel would not let us read it also refuses to be written.
        uso = tun::set_offload(first.as_fd(), PortOffload::ALL.mask()).is_ok();
        let mut refused = None;
        for set in wanted.ladder() {
            match tun::set_offload(first.as_fd(), set.mask()) {
                Ok(()) => {
                    granted = set;
                    refused = None;
                    break;
                }
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
    }
    opened.iter_mut().for_each(|queue| queue.uso = uso);
    Ok((opened, granted))
}

impl Queue {
    /// What its frames begin with.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// Whether super-frames of UDP may be written to it (Linux 6.2 and newer).
    #[must_use]
    pub fn takes_uso(&self) -> bool {
        self.uso
    }

    /// Reads one frame behind its virtio header into `room`, which takes 64 KiB and more.
    /// Returns the bytes read, header included.
    ///
    /// # Errors
    /// `WouldBlock` when none is waiting; `EIO` while the device is down; `EBADFD` after the device
    /// was deleted.
    #[inline]
    pub fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(&self.fd, room).map_err(io::Error::from)
    }

    /// Writes one frame: the virtio header, then its bytes in order.
    ///
    /// # Errors
    /// `EIO` while the device is down, `EINVAL` when header and frame disagree, `EBADFD` after the
    /// device was deleted.
    #[inline]
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        nix::sys::uio::writev(&self.fd, pieces).map_err(io::Error::from)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

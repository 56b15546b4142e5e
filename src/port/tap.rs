//! A network's TAP: the port of a network of Ethernet frames.

use std::io;

use crate::sys::tun::Device;

pub use super::queue::{PortOffload, Queue};

/// Opens `queues` queues of the TAP `name`; see [`queue`](super::queue).
///
/// # Errors
/// `EBUSY` when other descriptors still hold the queues, `EINVAL` when a device of that name was
/// made with other flags.
pub fn open(
    name: &str,
    queues: usize,
    wanted: PortOffload,
) -> io::Result<(Vec<Queue>, PortOffload)> {
    super::queue::open(Device::Tap, name, queues, wanted)
}

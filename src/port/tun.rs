//! A network's TUN: the port of a network of IP packets.

use std::io;

use super::queue::{PortOffload, Queue};
use crate::sys::tun::Device;

/// Opens `queues` queues of the TUN `name`; see [`queue`](super::queue).
///
/// # Errors
/// `EBUSY` when other descriptors still hold the queues, `EINVAL` when a device of that name was
/// made with other flags.
pub fn open(
    name: &str,
    queues: usize,
    wanted: PortOffload,
) -> io::Result<(Vec<Queue>, PortOffload)> {
    super::queue::open(Device::Tun, name, queues, wanted)
}

//! The overlay-facing end: the device through which a network's frames enter and leave the switch.
//!
//! - [`tap`]: of a network of Ethernet frames;
//! - [`tun`]: of a network of IP packets;
//! - [`queue`]: what both share, one queue for each worker.

pub mod queue;
pub mod tap;
pub mod tun;

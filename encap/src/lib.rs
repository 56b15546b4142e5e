#![forbid(unsafe_code)]
//! Bytes: every header and transformation of the datapath, without I/O, clock or heap on the hot
//! path.

pub mod mac;
pub mod vni;

pub use mac::{MacAddr, ParseMacError};
pub use vni::{Vni, VniError};

#![forbid(unsafe_code)]
//! Bytes: every header and transformation of the datapath, without I/O, clock or heap on the hot
//! path.
//!
//! # Map
//!
//! Names and numbers: [`MacAddr`], [`Vni`]; [`mtu`], what encapsulations cost.
//!
//! Headers, one file per protocol, each with its field offsets, a checked view and a builder:
//! [`ethernet`], [`vlan`], [`arp`], [`ipv4`], [`ipv6`], [`tcp`], [`udp`], [`icmpv4`], [`icmpv6`],
//! [`ndp`], [`vxlan`], and [`vnet`] for the virtio header of a TAP. `arp` and `ndp` also answer
//! questions for addresses, `icmpv4` and `icmpv6` packets that do not fit.
//!
//! Pieces of the datapath's work: [`checksum`], [`ecn`] across the tunnel, [`flow`] hash,
//! [`fragment`]s, [`mss`] of TCP, and the two that carry the weight:
//!
//! ```text
//! outbound   TAP  ->  vnet::Header::parse  ->  segment::plan  ->  vxlan::emit   ->  underlay
//! inbound    TAP  <-  vnet::Header::emit   <-  coalesce       <-  vxlan::train  <-  underlay
//! ```
//!
//! The same two serve the packets of a TUN, which have no Ethernet header: functions that take a
//! [`Link`] are told so. [`ipip`] and [`ipudp`] are the encapsulations that go with it.
//!
//! # Contract
//!
//! No function panics, whatever bytes it is given. A view is made by a function that checks
//! (`parse`), returns `None` (or a small error) for bytes that are not one, and afterwards only
//! reads what was checked. Lengths in headers are checked against the bytes there are; checksums
//! only where a function says so. Writers take a buffer and give the length they wrote, or an array;
//! they write every byte of what they give. Ranges and offsets count from the first byte of the
//! slice that the function was given, mostly the Ethernet header, or the IP header where
//! there is none. Up to two VLAN tags are looked
//! through everywhere.
//!
//! Only small functions are marked inline: the others stay compiled here, optimised, even when a
//! debug build of another crate calls them.

mod bytes;
mod layers;
mod link;

pub mod arp;
pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod ethernet;
pub mod flow;
pub mod fragment;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipip;
pub mod ipudp;
pub mod ipv4;
pub mod ipv6;
pub mod mac;
pub mod mss;
pub mod mtu;
pub mod ndp;
pub mod probe;
pub mod segment;
pub mod tcp;
pub mod udp;
pub mod vlan;
pub mod vnet;
pub mod vni;
pub mod vxlan;

pub use link::Link;
pub use mac::{MacAddr, ParseMacError};
pub use vni::{Vni, VniError};

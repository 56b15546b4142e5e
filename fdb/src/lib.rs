#![forbid(unsafe_code)]
//! Every table that the datapath reads: where a MAC is, who has an address, which VTEP has a range
//! of addresses, whom to flood to.
//!
//! # Theory of operation
//!
//! ```text
//!   membership, configuration, learning        one writer thread         workers, listings
//!   -------- Delta --------------------->  Writer: apply, publish  --->  Reader: load
//!                                                 |    ^                    |
//!                                                 |    +-- reclaim <--------+ Snapshot
//!                                                 +--> Generation n
//! ```
//!
//! - [`Delta`] is the only input. It says what is claimed, by whom and with which revision; its
//!   documentation has the rules of precedence.
//! - [`Writer`] applies deltas to a working state and publishes it as a [`Snapshot`] with a new
//!   [`Generation`]. MACs, neighbors, flood lists, VTEPs and parameters of one generation appear
//!   together. One thread owns it.
//! - [`Reader`] loads the current snapshot without waiting and without freeing anything. A worker
//!   loads one per turn and makes all decisions of the turn on it.
//! - Large tables are copy-on-write (see [`fanout`]): a change costs microseconds with a million
//!   entries, and generations share all that did not change.
//!
//! Limits: [`Limits`] bounds learned entries and retired snapshots, [`SLOTS_MAX`] the dense keys.
//! What is refused, ignored or evicted is counted in [`Stats`]. Nothing here does I/O, waits or
//! reads a clock: time is an argument.

mod claims;
mod delta;
mod dense;
mod domains;
pub mod fanout;
pub mod hash;
mod learn;
mod page;
mod reader;
mod routes;
mod snapshot;
mod types;
mod writer;

pub use delta::Delta;
pub use dense::SLOTS_MAX;
pub use reader::{Loaded, Reader, channel, channel_with};
pub use snapshot::{NetworkTables, Snapshot};
pub use types::{
    Carrier, Gateway, Generation, MacEntry, Millis, Neighbor, Network, NetworkKey, Origin,
    OriginKind, Place, Prefix, Revision, Route, Routed, SourceCheck, UdpPorts, Via, Vtep, VtepKey,
};
pub use writer::{Limits, Stats, Writer};

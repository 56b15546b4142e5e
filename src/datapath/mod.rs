//! The datapath: frames between ports and the underlay.
//!
//! # Theory of operation
//!
//! A frame's way is one list of modules, read down for outbound and up for inbound:
//!
//! ```text
//!   port::tap            a queue of a network's TAP
//!   datapath::worker     the thread, its turn, its descriptors
//!   datapath::outbound   checks, look-up, segmentation       datapath::inbound
//!   datapath::responder  ARP/ND and ICMP answers
//!   datapath::flood      ingress replication's budget
//!   fdb snapshot         one generation of all tables
//!   encap                the bytes
//!   datapath::batch      datagrams to sends
//!   underlay::udp        sockets
//!   sys::mmsg            system calls
//! ```
//!
//! The datapath knows tables and bytes. It does not know the store, records, or an async runtime;
//! [`Datapath`] is the handle by which the agent gives it ports and reads its counters.

pub mod batch;
pub mod claim;
pub mod drop;
pub mod flood;
pub mod heard;
pub mod hellos;
pub mod inbound;
pub mod inner;
pub mod learn;
pub mod ledger;
pub mod outbound;
pub mod path;
pub mod port;
pub mod pulse;
pub mod responder;
pub mod worker;

mod handle;
mod sources;

pub use handle::{Bound, Config, Datapath, Drops, Error};

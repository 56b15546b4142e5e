//! The datapath: frames between ports and the underlay.
//!
//! # Theory of operation
//!
//! A frame's way is one list of modules, read down for outbound and up for inbound:
//!
//! ```text
//!   port::queue          a queue of a network's TAP          or TUN
//!   datapath::worker     the thread, its turn, its descriptors
//!   datapath::outbound   checks, look-up, segmentation       datapath::inbound
//!   datapath::packets_out   the same for packets             datapath::packets_in
//!   datapath::responder  ARP/ND and ICMP answers
//!   datapath::flood      ingress replication's budget
//!   fdb snapshot         one generation of all tables
//!   encap                the bytes
//!   datapath::batch      datagrams to sends
//!   underlay::udp, raw   sockets
//!   sys::mmsg            system calls
//! ```
//!
//! A port is of one kind for as long as it is there: frames of a TAP go by the tables of MACs and in
//! VXLAN, packets of a TUN by routes, and in IP or UDP.
//!
//! The datapath knows tables and bytes. It does not know the store, records, or an async runtime;
//! [`Datapath`] is the handle by which the agent gives it ports and reads its counters.

pub mod batch;
pub mod claim;
pub mod drop;
pub mod flood;
pub mod heard;
pub mod inbound;
pub mod inner;
pub mod learn;
pub mod ledger;
pub mod outbound;
pub mod packet;
pub mod packets_in;
pub mod path;
pub mod port;
pub mod probe;
pub mod pulse;
pub mod responder;
pub mod worker;

mod handle;
mod packets_out;
mod sources;
mod transmit;

pub use handle::{Bound, Config, Datapath, Drops, Error};

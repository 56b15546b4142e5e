#![forbid(unsafe_code)]
//! Records: everything this host knows from and tells to the shared store, which speaks the etcd
//! v3 API.
//!
//! # Theory of operation
//!
//! ```text
//!               +--> watch::Watch --> view::View --> reconcile::Reconciler --> fdb::Delta
//!   store::Store|                          |
//!               +--> session::Session      +--> listings, snapshot file
//!               +--> network, endpoint, ipam: operations, one transaction each
//! ```
//!
//! - [`key`] alone builds and parses keys, [`record`] has the JSON behind them.
//! - [`store`] is the client: deadlines, leader required, errors that say what to do.
//! - [`session`] keeps this host present under a lease; [`watch`] lists and follows everything;
//!   [`view`] mirrors it in memory; [`reconcile`] turns it into deltas of the tables.
//! - [`network`], [`endpoint`] and [`ipam`] are what users and drivers ask for. Each is one
//!   transaction that compares what it read, is tried again when others were faster, and recognises
//!   its own effect when an answer was lost.
//! - [`restore`] writes again what the store has lost of somebody who is alive, [`gc`] removes what
//!   no living owner has.
//! - [`embedded`] is a server of the same API for those who have no etcd, [`pki`] its certificates,
//!   [`join`] the way of a host to one of them.
//!
//! The store is the truth, and forwarding does not wait for it: when it is away, the view and the
//! tables stay as they are, and everything here tries again by itself. No packet is seen here.

mod backoff;
pub mod docker;
pub mod embedded;
pub mod endpoint;
mod file;
pub mod gateway;
pub mod gc;
pub mod ipam;
pub mod join;
pub mod key;
pub mod network;
pub mod pki;
pub mod reconcile;
pub mod record;
pub mod restore;
pub mod session;
pub mod store;
pub mod transfer;
pub mod view;
pub mod watch;

//! The embedded store: an etcd v3 API server in one process, on redb.
//!
//! # Theory of operation
//!
//! One host serves this store for all the others, through the same API as an etcd cluster, so that
//! there is one client code path. **It is not replicated**: while its host is down networks go on
//! and nothing new can be created. Growing up means to export the records, import them into an
//! etcd cluster and change the endpoint list.
//!
//! ```text
//!   gRPC      rpc::{kv, watch, lease, maintenance, cluster, auth}       many tokio tasks
//!               |  reads                       | writes (bounded queue)
//!               v                              v
//!   memory    State: index + revision log  <- writer thread: check, apply, encode
//!               ^ at the visible revision      |  one redb transaction per batch, fsync
//!               |                              v
//!               +---------- publish -------- backend (redb file)
//! ```
//!
//! * **Writes** go through one thread (`writer`). It takes what is queued, applies each request
//!   to the memory at the next revision, and commits the whole batch in one durable redb
//!   transaction (group commit). Only then the revision becomes *visible* and the requests are
//!   answered: an answer, a read or an event never tells of a write that a crash could take back.
//! * **Reads** never touch the disk. Every version of every key since the last compaction is in
//!   memory (`mvcc`), so a read is a look-up at a revision, and what the writer has applied but
//!   not committed lies above the visible revision, where no reader looks. (Three runs of
//!   `tests/embedded/load.rs`, release build, two busy cores: 10,000 keys listed in pages of 500 in
//!   9 to 29 ms, etcd 3.7 beside it 27 to 45 ms; puts of 32 clients at 0.56 to 0.97 of its rate.)
//! * **Watches** pull (`watch`). A watch is a position in the revision log; a slow client stands
//!   further back and costs nothing. When compaction overtakes it, it is canceled with the
//!   compact revision, as etcd does. There is no queue that could grow.
//! * **Users and roles** (`auth`) are etcd's, kept beside the data and changed by the writer.
//! * **Hosts** are let in by certificates of the store's own authority (`admission`, `tls`): who has
//!   none can join with a token, and do nothing else.
//! * **Leases** (`lease`) are kept on disk with their ttl; renewals live in memory. After a
//!   restart every lease gets its full ttl again, as a new etcd leader does, and a pause of the
//!   whole process (a stopped VM) is added to every deadline, since nobody could renew meanwhile.
//!
//! Memory holds the live data (at most [`limits::LIVE_BYTES`]) and the history (at most about
//! [`limits::HISTORY_BYTES`] and [`limits::HISTORY_REVISIONS`] revisions, then it is compacted by
//! itself). The size is that of a control plane: tens of thousands of keys.
//!
//! **Failure**: when the disk refuses a commit, the store stops writing for good and says so to
//! every writer; readers go on at the last visible revision. A restart recovers what is on disk.

mod admission;
mod auth;
mod backend;
mod check;
mod error;
mod lease;
mod mvcc;
mod record;
mod rpc;
mod store;
mod tls;
mod txn;
mod watch;
mod writer;

pub mod limits;
pub mod server;
pub mod transfer;

pub use admission::{Admission, InviteError, Place};
pub use error::Error;
pub use server::{Config, Server, ShownCertificate, Tls};

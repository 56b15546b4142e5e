//! The embedded store beside a real etcd: the same client does the same things with both, and every
//! answer, event and error text has to be the same. Then what only concerns the embedded store:
//! kill -9, restart, `etcdctl`, size.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests, with figures told")]

#[path = "common/port.rs"]
mod port;

#[path = "embedded/harness.rs"]
mod harness;

#[path = "embedded/ctl.rs"]
mod ctl;
#[path = "embedded/durability.rs"]
mod durability;
#[path = "embedded/kv.rs"]
mod kv;
#[path = "embedded/lease.rs"]
mod lease;
#[path = "embedded/limits.rs"]
mod limits;
#[path = "embedded/load.rs"]
mod load;
#[path = "embedded/random.rs"]
mod random;
#[path = "embedded/server.rs"]
mod server;
#[path = "embedded/tls.rs"]
mod tls;
#[path = "embedded/txn.rs"]
mod txn;
#[path = "embedded/watch.rs"]
mod watch;

//! The embedded store beside etcd 3.4, 3.5, 3.6 and 3.7: the same client does the same things with
//! all, and every answer, event and error text has to be the same; where older versions of etcd
//! differ, a table in `harness` says so. `etcdctl` does the same things with all of them too. Then
//! what only concerns the embedded store: kill -9, restart, size.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests, with figures told")]

#[path = "common/port.rs"]
mod port;

#[path = "embedded/harness.rs"]
mod harness;

#[path = "embedded/auth.rs"]
mod auth;
#[path = "embedded/ctl.rs"]
mod ctl;
#[path = "embedded/durability.rs"]
mod durability;
#[path = "embedded/join.rs"]
mod join;
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
#[path = "embedded/transfer.rs"]
mod transfer;
#[path = "embedded/txn.rs"]
mod txn;
#[path = "embedded/watch.rs"]
mod watch;

//! Every bound of the embedded store, with its reason.

use std::time::Duration;

/// Largest request in bytes of its keys and values: etcd's `--max-request-bytes` default.
pub const REQUEST_BYTES: usize = 1536 * 1024;

/// Room for the framing of a request above [`REQUEST_BYTES`], so that one that is a little too
/// large still gets etcd's own error instead of one of the transport.
pub const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;

/// Most operations in each list of one transaction: etcd's `--max-txn-ops` default.
pub const TXN_OPS: usize = 128;

/// Most watches on one stream. A client of ours has a handful; `etcdctl` has one. A stream looks at
/// each of its watches once per revision, so this bounds the work of one connection.
pub const WATCHES_PER_STREAM: usize = 1024;

/// Most open watch streams. Each is one task and one position in the log.
pub const WATCH_STREAMS: usize = 4096;

/// Most leases. A host has one, a resting address one more.
pub const LEASES: usize = 65_536;

/// Shortest lease in seconds: what etcd grants with its default election timeout (1.5 s, rounded
/// up). A shorter wish is raised to this.
pub const LEASE_MIN_TTL: i64 = 2;

/// Longest lease in seconds: etcd's own bound.
pub const LEASE_MAX_TTL: i64 = 9_000_000_000;

/// Revisions that stay readable and watchable. Older ones are compacted by themselves once the
/// history is a tenth longer than this. At ten changes a second it is a quarter of an hour, far
/// more than a watch is ever away without listing again.
pub const HISTORY_REVISIONS: i64 = 10_000;

/// Bytes of keys and values in the history above which the older half is compacted, however few
/// revisions it is: memory is bounded by size, not by count alone.
pub const HISTORY_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of live keys and values above which a put is refused (`database space exceeded`).
/// Deletes are always taken. A record is some hundred bytes, so this is far above need.
pub const LIVE_BYTES: usize = 256 * 1024 * 1024;

/// Most users. Every change of a user or role writes all of them, so their number is that of a
/// control plane: one per host and some people.
pub const AUTH_USERS: usize = 4096;

/// Most roles.
pub const AUTH_ROLES: usize = 1024;

/// Most permissions of one role.
pub const AUTH_PERMISSIONS: usize = 256;

/// Longest name of a user or role in bytes.
pub const AUTH_NAME_BYTES: usize = 256;

/// Most tokens at a time; beyond them the one that was not used for longest goes.
pub const AUTH_TOKENS: usize = 16_384;

/// How long a token lives after its last use: etcd's own.
pub const AUTH_TOKEN_TTL: Duration = Duration::from_secs(300);

/// Memory of one password hash in KiB, and its passes: the first choice of the OWASP password
/// storage sheet for argon2id with one lane.
pub const PASSWORD_KIB: u32 = 19_456;

/// Passes over that memory.
pub const PASSWORD_PASSES: u32 = 2;

/// Password hashes that run at once.
pub const PASSWORD_HASHES: usize = 2;

/// Password hashes that may wait.
pub const PASSWORD_QUEUE: usize = 64;

/// TLS connections at a time. Each costs some tens of kilobytes.
pub const CONNECTIONS: usize = 4096;

/// TLS handshakes at a time, and so how many that dawdle can keep others waiting.
pub const HANDSHAKES: usize = 64;

/// How long a TLS handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Pause after a connection could not be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections at a time of clients that have no certificate, where hosts may join.
pub const STRANGERS: usize = 64;

/// How long such a connection lasts; joining takes one call.
pub const STRANGER_LIFE: Duration = Duration::from_secs(30);

/// Calls to join that are looked at in a row.
pub const JOIN_BURST: u32 = 20;

/// How often a further one is.
pub const JOIN_EVERY: Duration = Duration::from_millis(200);

/// Invitations that are neither used nor expired.
pub const INVITATIONS: usize = 256;

/// How long an invitation that is used or expired is remembered, to say so to who comes late.
pub const INVITATION_MEMORY: Duration = Duration::from_secs(86_400);

/// Longest life of an invitation.
pub const INVITATION_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// Requests waiting for the writer. Further ones wait in their own tasks.
pub const WRITE_QUEUE: usize = 1024;

/// Requests in one group commit. More would only make the first of them wait longer.
pub const BATCH_REQUESTS: usize = 512;

/// Bytes of changes after which a group commit is closed.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of events that a watch stream gathers in one turn (one revision may exceed it, since the
/// events of a revision are not split).
pub const WATCH_TURN_BYTES: usize = 512 * 1024;

/// Revisions that a watch stream walks in one turn while it holds the read lock.
pub const WATCH_TURN_REVISIONS: i64 = 1000;

/// Responses ready for a client that does not read. Behind them the stream stops pulling.
pub const WATCH_RESPONSES: usize = 8;

/// Control answers (created, canceled) a stream may owe before it stops reading requests.
pub const WATCH_CONTROL: usize = 64;

/// Keys and values in one message of a streamed range.
pub const RANGE_STREAM_BYTES: usize = 512 * 1024;

/// How often an idle watch that asked for it is told the revision it has seen. Shorter than etcd's
/// ten minutes, so that an idle watch stays well inside the history.
pub const WATCH_PROGRESS: Duration = Duration::from_secs(60);

/// How often expired leases are looked for: etcd's 500 ms is the larger part of its delay.
pub const LEASE_TICK: Duration = Duration::from_millis(200);

/// A tick of the lease clock that is later than this means the process was stopped; every lease is
/// extended by the pause.
pub const LEASE_PAUSE: Duration = Duration::from_secs(1);

/// A pause from this on is warned of: the shortest lease would have ended in it.
pub const LEASE_NOTICED: Duration = Duration::from_secs(LEASE_MIN_TTL as u64);

/// How long a shutdown waits for open streams to end.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Cache of redb. All reads are served from our own memory, so its pages are only written.
pub const PAGE_CACHE_BYTES: usize = 16 * 1024 * 1024;

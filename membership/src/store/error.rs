//! What can go wrong between us and the store, in words that say what to do.

use std::error::Error as _;

use tonic::Code;

use crate::{key, record};

/// Why the store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Wrong or missing credentials, or a role that does not allow it.
    #[error(
        "store at {endpoints} refuses the request ({cause}): check the user, password and client \
         certificate, and the role of this host"
    )]
    Access {
        /// Where.
        endpoints: String,
        /// What the store says.
        cause: String,
    },
    /// Other writers were faster too often.
    #[error("{what} met other writers {attempts} times in a row: try again")]
    Busy {
        /// What was tried.
        what: &'static str,
        /// How often.
        attempts: u32,
    },
    /// The revision asked for is no longer kept.
    #[error("store has compacted its history: what was asked for must be listed again")]
    Compacted,
    /// The configuration of the store cannot be used.
    #[error("store configuration cannot be used: {0}")]
    Config(String),
    /// The store is full.
    #[error(
        "store at {endpoints} is full ({cause}): compact and defragment it, or raise its quota"
    )]
    Full {
        /// Where.
        endpoints: String,
        /// What the store says.
        cause: String,
    },
    /// The revision asked for has not been written.
    #[error("store has not got to the revision that was asked for: it was restored from a backup")]
    Future,
    /// A name that is no key.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// The lease has ended.
    #[error("lease has ended")]
    LeaseEnded,
    /// A quorum is missing.
    #[error(
        "store at {endpoints} has no leader: more than half of its members must be up and reach \
         each other"
    )]
    NoLeader {
        /// Where.
        endpoints: String,
    },
    /// A record that this program cannot read or write.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// Any other answer.
    #[error("store at {endpoints} answers {code:?}: {cause}")]
    Rpc {
        /// Where.
        endpoints: String,
        /// The gRPC code.
        code: Code,
        /// What the store says.
        cause: String,
    },
    /// No answer in time.
    #[error(
        "store at {endpoints} does not answer within {seconds} s: is it overloaded, stopped, or \
         cut off by a firewall?"
    )]
    Timeout {
        /// Where.
        endpoints: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A certificate or key file that cannot be read.
    #[error("TLS file {path} cannot be read ({cause}): check its path and permissions")]
    TlsFile {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// No connection.
    #[error("store at {endpoints} does not answer ({cause}): {hint}")]
    Unreachable {
        /// Where.
        endpoints: String,
        /// Why, as the operating system or TLS says.
        cause: String,
        /// What to do next.
        hint: &'static str,
    },
}

impl Error {
    /// Whether the same request may succeed later without anybody changing anything here.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. }
                | Self::NoLeader { .. }
                | Self::Timeout { .. }
                | Self::Unreachable { .. }
        )
    }

    /// Sorts what the client library reports.
    pub(crate) fn from_client(error: &etcd_client::Error, endpoints: &str) -> Self {
        let endpoints = endpoints.to_owned();
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::from_status(status, endpoints),
            etcd_client::Error::InvalidArgs(cause) => Self::Config(cause.clone()),
            etcd_client::Error::InvalidUri(cause) => Self::Config(format!(
                "an endpoint is no URL ({cause}): write it as http://192.0.2.1:2379"
            )),
            etcd_client::Error::LeaseKeepAliveError(cause) if cause == "lease not found" => {
                Self::LeaseEnded
            }
            other => {
                let cause = deepest(other);
                let hint = hint(&cause);
                Self::Unreachable { endpoints, cause, hint }
            }
        }
    }

    fn from_status(status: &tonic::Status, endpoints: String) -> Self {
        let message = status.message().trim_start_matches("etcdserver: ").to_owned();
        let has = |part: &str| message.contains(part);
        match status.code() {
            _ if has("no leader") || has("leader changed") => Self::NoLeader { endpoints },
            _ if has("has been compacted") => Self::Compacted,
            _ if has("is a future revision") => Self::Future,
            _ if has("lease not found") => Self::LeaseEnded,
            _ if has("database space exceeded") => Self::Full { endpoints, cause: message },
            Code::Unauthenticated | Code::PermissionDenied => {
                Self::Access { endpoints, cause: message }
            }
            // etcd answers a missing token and a wrong password with InvalidArgument.
            Code::InvalidArgument if has("user name") || has("authentication failed") => {
                Self::Access { endpoints, cause: message }
            }
            Code::FailedPrecondition if has("authentication is not enabled") => {
                Self::Access { endpoints, cause: message }
            }
            // The alert with which a TLS server ends a connection in clear, read as HTTP/2.
            Code::Internal if has("h2 protocol error") => Self::Unreachable {
                endpoints,
                cause: message,
                hint: "what answers there does not speak etcd's protocol in clear: does it want \
                       https://?",
            },
            Code::DeadlineExceeded => Self::Timeout { endpoints, seconds: 0 },
            // A connection that breaks within an answer is told as an error of HTTP/2.
            Code::Internal if has("h2 protocol error") => {
                let cause = status.source().map_or_else(|| message.clone(), deepest);
                let hint = hint("closed");
                Self::Unreachable { endpoints, cause, hint }
            }
            Code::Unavailable | Code::Cancelled | Code::Unknown => {
                let cause = status.source().map_or_else(|| message.clone(), deepest);
                let hint = hint(&cause);
                Self::Unreachable { endpoints, cause, hint }
            }
            code => Self::Rpc { endpoints, code, cause: message },
        }
    }
}

/// The innermost cause, which is the one that tells something.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    let text = current.to_string();
    // The number says less than the words before it.
    let text = text.split(" (os error").next().unwrap_or_default();
    text.strip_prefix("Connection")
        .map_or_else(|| text.to_owned(), |rest| format!("connection{rest}"))
}

fn hint(cause: &str) -> &'static str {
    let lower = cause.to_ascii_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("certificate") || has("tls") || has("handshake") || has("corrupt message") {
        "check that both ends use TLS, and the CA, certificate and key"
    } else if has("refused") {
        "is etcd, or the host with the embedded store, running there?"
    } else if has("broken pipe") || has("reset") || has("closed") {
        "is etcd, or the host with the embedded store, running there, and does it want https://?"
    } else if has("dns") || has("lookup") || has("name or service") {
        "check the name in the endpoint list"
    } else {
        "check the address, the route and the firewall between here and there"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(code: Code, message: &str) -> Error {
        let status = tonic::Status::new(code, message);
        Error::from_client(&etcd_client::Error::GRpcStatus(status), "http://192.0.2.1:2379")
    }

    #[test]
    fn a_store_that_wants_tls_is_told_apart() {
        let clear = sorted(Code::Internal, "h2 protocol error: http2 error");
        assert!(clear.to_string().contains("does it want https://?"), "{clear}");
        let other = sorted(Code::Internal, "something else");
        assert!(matches!(other, Error::Rpc { .. }), "{other}");
    }

    #[test]
    fn answers_are_sorted() {
        let no_leader = sorted(Code::Unavailable, "etcdserver: no leader");
        assert!(matches!(no_leader, Error::NoLeader { .. }) && no_leader.is_transient());
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(sorted(Code::OutOfRange, compacted), Error::Compacted);
        let future = "etcdserver: mvcc: required revision is a future revision";
        assert_eq!(sorted(Code::OutOfRange, future), Error::Future);
        let access = sorted(Code::InvalidArgument, "etcdserver: user name is empty");
        assert!(matches!(access, Error::Access { .. }) && !access.is_transient());
        let broken = sorted(Code::Internal, "h2 protocol error: http2 error");
        assert!(matches!(broken, Error::Unreachable { .. }) && broken.is_transient());
        let lease = "etcdserver: requested lease not found";
        assert_eq!(sorted(Code::NotFound, lease), Error::LeaseEnded);
    }
}

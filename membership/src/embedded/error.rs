//! Errors: why the server cannot start ([`Error`]), and why a request is refused ([`Refusal`], with
//! etcd's own texts and codes, since clients compare them).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tonic::{Code, Status};

/// Why the embedded store cannot start or work on its data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is taken or not on this host.
    #[error("the store cannot listen on {address}: {source}; {hint}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A record of the file cannot be read.
    #[error(
        "the store's file {} is damaged: {what}; restore the directory from a backup, or import an export into an empty one", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The first thing found wrong.
        what: String,
    },
    /// The data directory cannot be made or opened.
    #[error("the store cannot use its data directory {}: {source}; check its owner, mode and free space", path.display())]
    DataDir {
        /// The path that failed.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another server has the data directory.
    #[error(
        "the data directory {} is in use by {holder}; stop that one, or give this store another directory", path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that has it, as far as it can be told.
        holder: String,
    },
    /// The file was written by a newer version.
    #[error(
        "the store's file {} has format {found}, this program reads up to {supported}; start the newer program again, or export with it and import here", path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Format found.
        found: u64,
        /// Newest format this program knows.
        supported: u64,
    },
    /// The store refused what its own host needs.
    #[error("the store refuses to let its own host in: {0}; see `etcdctl user list`")]
    Refused(String),
    /// The database failed.
    #[error("the store's file {} failed while {doing}: {source}; check the disk, its free space and its log", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What redb said.
        source: Box<redb::Error>,
    },
    /// A thread cannot be started.
    #[error("the store cannot start its writer: {source}; check the limit of processes")]
    Thread {
        /// What the kernel said.
        source: io::Error,
    },
    /// A TLS file cannot be read or used.
    #[error("the store cannot use the TLS file {}: {what}; it must be PEM and readable", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Writing an export failed.
    #[error("the export cannot be written: {source}")]
    Transfer {
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a request is refused. The texts are etcd's (`api/v3rpc/rpctypes/error.go`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    #[error("etcdserver: invalid sort option")]
    InvalidSort,
    #[error("etcdserver: invalid auth token")]
    InvalidToken,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("the password cannot be hashed: {0}")]
    PasswordHash(String),
    #[error("auth: authentication failed, password was given for no password user")]
    PasswordNotUsed,
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    #[error("etcdserver: permission not given")]
    PermissionMissing,
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    #[error("etcdserver: role name already exists")]
    RoleExists,
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    #[error("etcdserver: root user does not have root role")]
    RootRoleMissing,
    #[error("etcdserver: root user does not exist")]
    RootUserMissing,
    #[error("etcdserver: server stopped")]
    Stopped,
    #[error("etcdserver: storage failed, restart the store: {0}")]
    StorageFailed(String),
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    #[error("etcdserver: user name already exists")]
    UserExists,
    #[error("etcdserver: user name not found")]
    UserNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
}

impl Refusal {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::AuthFailed
            | Self::DuplicateKey
            | Self::EmptyKey
            | Self::InvalidAuthManagement
            | Self::InvalidSort
            | Self::KeyNotFound
            | Self::LeaseProvided
            | Self::PermissionMissing
            | Self::RoleEmpty
            | Self::TooManyOps
            | Self::TooLarge
            | Self::UserEmpty
            | Self::ValueProvided => Code::InvalidArgument,
            Self::AuthNotEnabled
            | Self::LeaseExists
            | Self::PermissionNotGranted
            | Self::RoleExists
            | Self::RoleNotFound
            | Self::RoleNotGranted
            | Self::RootRoleMissing
            | Self::RootUserMissing
            | Self::UserExists
            | Self::UserNotFound => Code::FailedPrecondition,
            Self::InvalidToken => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::PasswordHash(_) => Code::Internal,
            Self::PasswordNotUsed => Code::Unknown,
            Self::LeaseNotFound => Code::NotFound,
            Self::NoSpace | Self::TooManyRequests => Code::ResourceExhausted,
            Self::Stopped => Code::Unavailable,
            Self::StorageFailed(_) => Code::DataLoss,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

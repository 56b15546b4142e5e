//! Network namespaces: finding, entering and pinning them.
//!
//! A namespace belongs to a thread. [`run_in`] therefore enters one only on a thread of its own,
//! which ends with the closure: no thread of a pool can be left in the wrong namespace, and a
//! failure to return is impossible because nothing returns. A socket stays in the namespace it was
//! opened in, so the closure opens sockets and gives them back.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::statfs::{self, NSFS_MAGIC};

use super::Error;

/// Where `ip netns` keeps its names (iproute2 include/namespace.h).
const NAMED: &str = "/run/netns";
/// The network namespace of the thread that opens it.
const OF_THREAD: &str = "/proc/thread-self/ns/net";

/// How a user names a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NetNsRef {
    /// A name below /run/netns.
    Name(String),
    /// An absolute path to a namespace file.
    Path(PathBuf),
    /// The namespace of a process.
    Pid(u32),
}

impl NetNsRef {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Name(name) => Path::new(NAMED).join(name),
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }

    /// As messages speak of it.
    fn label(&self) -> String {
        match self {
            Self::Name(_) | Self::Path(_) => format!("network namespace {self}"),
            Self::Pid(pid) => format!("the network namespace of process {pid}"),
        }
    }

    fn step(&self) -> &'static str {
        match self {
            Self::Name(_) => "`ip netns` lists those that exist",
            Self::Path(_) => "there is no such file; the container has probably ended",
            Self::Pid(_) => "there is no such process; it has probably ended",
        }
    }
}

impl FromStr for NetNsRef {
    type Err = Error;

    /// Digits are a PID, what begins with a slash is a path, all else is a name. A namespace whose
    /// name is a number can be given by its path.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidReference { text: text.into() };
        if text.starts_with('/') {
            Ok(Self::Path(text.into()))
        } else if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            match text.parse() {
                Ok(0) | Err(_) => Err(invalid()),
                Ok(pid) => Ok(Self::Pid(pid)),
            }
        } else if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0']) {
            Err(invalid())
        } else {
            Ok(Self::Name(text.into()))
        }
    }
}

impl fmt::Display for NetNsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "{pid}"),
        }
    }
}

/// What tells one namespace from another while both exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetNsId {
    /// Device of the nsfs file.
    pub dev: u64,
    /// Its inode. The kernel may use it again once the namespace is gone.
    pub ino: u64,
}

/// A network namespace that stays alive as long as this handle or a clone of it.
#[derive(Debug, Clone)]
pub struct NetNs {
    file: Arc<File>,
    id: NetNsId,
    label: Arc<str>,
}

impl NetNs {
    /// Opens a namespace by a user's reference, and makes sure that it can be entered.
    ///
    /// # Errors
    /// `NamespaceGone`, `NotANamespace`, `Permission`, `Thread`.
    pub fn open(reference: &NetNsRef) -> Result<Self, Error> {
        let label = reference.label();
        let namespace = Self::open_path(&reference.path(), &label, reference.step())?;
        run_in(&namespace, || ())?;
        Ok(namespace)
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `NamespaceGone` without /proc.
    pub fn current() -> Result<Self, Error> {
        Self::open_path(
            Path::new(OF_THREAD),
            "the network namespace of this thread",
            "is /proc mounted?",
        )
    }

    /// The namespace the process was started in: for the agent, its host.
    ///
    /// # Errors
    /// `NamespaceGone` without /proc.
    pub fn host() -> Result<Self, Error> {
        Self::open_path(
            Path::new("/proc/self/ns/net"),
            "the host's network namespace",
            "is /proc mounted?",
        )
    }

    /// What tells it from others.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// The name for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    fn open_path(path: &Path, label: &str, step: &'static str) -> Result<Self, Error> {
        // A FIFO or a device someone names by mistake must not block or do anything.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        Error::Permission { doing: format!("open {label}") }
                    }
                    io::ErrorKind::NotFound => Error::NamespaceGone { what: label.into(), step },
                    // /proc/PID/ns/net of a process that is just ending.
                    _ if error.raw_os_error() == Some(libc::ESRCH) => {
                        Error::NamespaceGone { what: label.into(), step }
                    }
                    _ => Error::NotANamespace { what: label.into(), reason: "it cannot be opened" },
                }
            })?;
        Self::from_file(file, label)
    }

    fn from_file(file: File, label: &str) -> Result<Self, Error> {
        let not = |reason| Error::NotANamespace { what: label.into(), reason };
        let kind = statfs::fstatfs(file.as_fd()).map_err(|_| not("its file system is unknown"))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(not("it is an ordinary file or folder"));
        }
        let metadata = file.metadata().map_err(|_| not("it cannot be read"))?;
        let id = NetNsId { dev: metadata.dev(), ino: metadata.ino() };
        Ok(Self { file: Arc::new(file), id, label: label.into() })
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for NetNs {}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetNs {
    /// The descriptor as netlink attributes carry it; valid while `self` lives.
    pub(crate) fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Runs `work` in `namespace` on a thread of its own and returns what it gives. Blocks until then,
/// so `work` is short. A panic in it goes on in the caller.
///
/// # Errors
/// `Permission` or `NotANamespace` when it cannot be entered, `Thread` when none can be started.
pub fn run_in<T: Send>(namespace: &NetNs, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_thread(|| {
        nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
            Errno::EPERM => Error::Permission { doing: format!("enter {}", namespace.label) },
            _ => Error::NotANamespace {
                what: namespace.label.to_string(),
                reason: "it is a namespace of another kind",
            },
        })?;
        Ok(work())
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(Error::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

// ===== pins =====

/// What [`NetNs::create_pinned`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// The namespace was there and goes on.
    Adopted,
    /// There was a file without a namespace on it, as a reboot or a kill leaves; it has one now.
    Completed,
    /// There was nothing.
    Created,
}

impl NetNs {
    /// Takes over the namespace pinned at `path`, or makes one and pins it there: a bind mount in
    /// the mount namespace of this process, so that it outlives us ([`pins_outlive_us`]).
    ///
    /// # Errors
    /// `PinObstructed` when something else stands there, `Permission`, `Pin`, `Thread`.
    pub fn create_pinned(path: &Path) -> Result<(Self, Pinned), Error> {
        let found = match Self::open_pin(path) {
            Ok(namespace) => return Ok((namespace, Pinned::Adopted)),
            Err(Error::NamespaceGone { .. }) => Pinned::Created,
            Err(Error::NotANamespace { .. }) => Pinned::Completed,
            Err(error) => return Err(error),
        };
        let failed = |doing| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    Error::Permission { doing: format!("{doing} {}", path.display()) }
                }
                _ => Error::Pin { doing, path: path.into(), source },
            }
        };
        if found == Pinned::Created {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
            }
            let open = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path);
            open.map_err(failed("make"))?;
        } else {
            let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
            if !metadata.is_file() || metadata.len() > 0 {
                return Err(Error::PinObstructed {
                    path: path.into(),
                    reason: "it is not the empty file that a pin is mounted on",
                });
            }
        }
        let made = on_thread(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                Errno::EPERM => Error::Permission { doing: "make a network namespace".into() },
                _ => failed("make a network namespace for")(errno.into()),
            })?;
            let none = None::<&Path>;
            nix::mount::mount(Some(OF_THREAD), path, none, MsFlags::MS_BIND, none)
                .map_err(|errno| failed("mount a network namespace on")(errno.into()))?;
            Self::open_pin(path)
        });
        match made {
            Ok(namespace) => Ok((namespace, found)),
            Err(error) => {
                // An empty file would be completed at the next try, but need not stay.
                let removed = if found == Pinned::Created { fs::remove_file(path) } else { Ok(()) };
                match removed.map_err(failed("remove")) {
                    Ok(()) => Err(error),
                    Err(undo) => Err(Error::Undo { cause: error.into(), undo: vec![undo] }),
                }
            }
        }
    }

    /// Opens the namespace pinned at `path`.
    ///
    /// # Errors
    /// `NamespaceGone` when nothing is there, `NotANamespace` when it is a file without a mount.
    pub fn open_pin(path: &Path) -> Result<Self, Error> {
        let step = "the network is not on this host; creating or attaching makes it";
        let namespace =
            Self::open_path(path, &format!("network namespace {}", path.display()), step)?;
        run_in(&namespace, || ())?;
        Ok(namespace)
    }
}

/// Removes the pin at `path`; its namespace goes when nothing else holds it. Returns whether there
/// was anything.
///
/// # Errors
/// `Pin`, `Permission`.
pub fn unpin(path: &Path) -> Result<bool, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::Permission { doing: format!("remove {}", path.display()) }
        }
        _ => Error::Pin { doing: "remove", path: path.into(), source },
    };
    // More than one mount lies there if two agents pinned at once; each is taken off.
    loop {
        match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => (),
            // Not a mount point, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Whether a pin made now is still there when we are gone: not so in a private mount namespace, as
/// `ip netns exec` and systemd's `PrivateMounts` make, unless someone else lives in it.
/// `None` when process 1 cannot be looked at.
pub fn pins_outlive_us() -> Option<bool> {
    let identity = |path: &str| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    Some(identity("/proc/1/ns/mnt")? == identity("/proc/self/ns/mnt")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_process_slash_a_path_all_else_a_name() {
        assert_eq!("12".parse::<NetNsRef>().unwrap(), NetNsRef::Pid(12));
        assert_eq!("/run/x".parse::<NetNsRef>().unwrap(), NetNsRef::Path("/run/x".into()));
        assert_eq!("c1".parse::<NetNsRef>().unwrap(), NetNsRef::Name("c1".into()));
        for wrong in ["", "0", "99999999999", ".", "..", "a/b"] {
            assert!(wrong.parse::<NetNsRef>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_namespace_is_told_apart() {
        let open = |text: &str| NetNs::open(&text.parse().unwrap()).unwrap_err();
        assert!(matches!(open("skybridge-none"), Error::NamespaceGone { .. }));
        assert!(matches!(open("4194305"), Error::NamespaceGone { .. }));
        assert!(matches!(open("/dev/null"), Error::NotANamespace { .. }));
        assert!(matches!(open("/proc"), Error::NotANamespace { .. }));
        assert!(matches!(open("/etc/passwd/x"), Error::NotANamespace { .. }));
    }

    #[test]
    fn a_namespace_is_equal_to_itself_only_by_identity() {
        assert_eq!(NetNs::current().unwrap(), NetNs::host().unwrap());
    }
}

//! What this host's agent keeps on disk: its lock, its attachments.
//!
//! # Theory of operation
//!
//! ```text
//!   STATE_DIR/lock                     held exclusively while an agent runs
//!   STATE_DIR/identity.json            this host's identity and incarnation (membership)
//!   STATE_DIR/tables.json              the last known records (membership)
//!   STATE_DIR/tables.log[.old]         what changed of them since
//!   STATE_DIR/reserved.json            addresses to attach with while the store is away
//!   STATE_DIR/kernel.json              the kernel's devices that are followed
//!   STATE_DIR/docker.json              what Docker's networks are
//!   STATE_DIR/attachments/ENDPOINT     one file per attachment, JSON
//! ```
//!
//! An attachment's file is written before the first device of it is made and removed after the last
//! one is gone, so whatever a crash leaves half made has a file that names it. Files are replaced
//! by rename, never written in place. A file that cannot be read is set aside with `.bad` behind
//! its name and reported; the others count.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use encap::MacAddr;
use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent runs on it.
    #[error(
        "another agent{holder} runs with the state directory {dir}: stop it, or give this one a \
         directory of its own with --state-dir"
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// ` (process N)` when it left its id.
        holder: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// What to do.
    #[must_use]
    pub fn next_step(&self) -> Option<String> {
        let Self::File { path, source, .. } = self else { return None };
        let step = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                "the disk is full: make room on the file system of"
            }
            Some(libc::EROFS) => {
                "the file system is read-only: mount it writable, or choose another --state-dir than that of"
            }
            Some(libc::EACCES | libc::EPERM) => {
                "the agent overrides no file permissions, even as root: make its user the owner of"
            }
            _ => "check the directory and its disk, or choose another --state-dir than that of",
        };
        Some(format!("{step} {}", path.display()))
    }
}

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Being made; after a crash it is undone.
    Attaching,
    /// In use.
    Attached,
    /// Taken down here; its record in the store still has to go.
    Detaching,
    /// Has its addresses and its record, and no interface yet or any more: Docker makes an endpoint
    /// before it says where it is.
    Reserved,
    /// Cut off here: the store gave what it has to somebody else. It waits to be detached.
    Quarantined,
}

/// What the store knows of an attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Publication {
    /// Its record is there.
    #[default]
    Done,
    /// It was never asked: the record waits for it.
    Queued,
    /// It was asked and did not answer: the record may be there.
    Unsure,
}

/// One attachment of a sandbox on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Version of this file's format.
    pub version: u32,
    /// How far it is.
    pub stage: Stage,
    /// The endpoint's id, empty until the store has given one.
    pub endpoint: String,
    /// The network's id.
    pub network: String,
    /// The network's name when it was attached, for people.
    pub network_name: String,
    /// The endpoint's name, may be empty.
    pub name: String,
    /// The sandbox as the user named it.
    pub sandbox: String,
    /// The interface in the sandbox.
    pub ifname: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses with their prefix lengths.
    pub ips: Vec<IpNet>,
    /// Default routes that were set.
    pub gateways: Vec<IpAddr>,
    /// Labels as given.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What the store knows of it.
    #[serde(default)]
    pub publication: Publication,
    /// Docker's id of the network, where Docker moves the interface and gives it its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,
    /// Whether Docker has taken the interface out of the host's namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
    /// Why it is quarantined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Attachment {
    /// Whether it is in use, and the store was told of it.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.stage == Stage::Attached && self.publication == Publication::Done
    }
}

/// The format that this program writes; it reads this and the next.
pub const VERSION: u32 = 1;

/// Extension of a file that is being written.
const FRESH: &str = "new";

/// The locked state directory.
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory when needed and locks it for as long as the value lives.
    ///
    /// # Errors
    /// [`Error::Locked`] while another agent has it, or the file operation that failed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { what, path, source }
        };
        let attachments = path.join("attachments");
        // Its owner's alone: certificates and the embedded store lie below it. One that is there
        // keeps the mode that somebody gave it.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&attachments).map_err(failed("make", &attachments))?;
        let lock_path = path.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let pid = format!("{}\n", std::process::id());
                lock.set_len(0).map_err(failed("write", &lock_path))?;
                lock.write_all(pid.as_bytes()).map_err(failed("write", &lock_path))?;
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let holder = fs::read_to_string(&lock_path)
                    .ok()
                    .and_then(|text| text.trim().parse::<u32>().ok())
                    .map_or_else(String::new, |pid| format!(" (process {pid})"));
                Err(Error::Locked { dir: path.to_owned(), holder })
            }
            Err((_, errno)) => Err(failed("lock", &lock_path)(errno.into())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All attachments. Files that cannot be read are set aside and their names returned.
    #[must_use]
    pub fn attachments(&self) -> (Vec<Attachment>, Vec<PathBuf>) {
        let (mut found, mut bad) = (Vec::new(), Vec::new());
        let Ok(entries) = fs::read_dir(self.path.join("attachments")) else {
            return (found, bad);
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == FRESH) {
                // A write that a crash cut short; what it would have replaced counts.
                let _ = fs::remove_file(&path);
                continue;
            }
            if path.extension().is_some() {
                // Set aside earlier.
                continue;
            }
            let parsed = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Attachment>(&bytes).ok())
                .filter(|attachment| attachment.version <= VERSION + 1);
            match parsed {
                Some(attachment) => found.push(attachment),
                None => {
                    let aside = path.with_extension("bad");
                    let _ = fs::rename(&path, &aside);
                    bad.push(aside);
                }
            }
        }
        found.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        (found, bad)
    }

    /// Writes an attachment, replacing what was there.
    ///
    /// # Errors
    /// The file operation that failed; the old state stays.
    pub fn put(&self, attachment: &Attachment) -> Result<(), Error> {
        let path = self.file(&attachment.endpoint);
        let bytes = serde_json::to_vec_pretty(attachment).unwrap_or_default();
        replace(&path, &bytes)
    }

    /// Forgets an attachment; one that is not there is no error.
    ///
    /// # Errors
    /// The file operation that failed.
    pub fn remove(&self, endpoint: &str) -> Result<(), Error> {
        let path = self.file(endpoint);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::File { what: "remove", path, source }),
        }
    }

    fn file(&self, endpoint: &str) -> PathBuf {
        // Endpoint ids are hexadecimal; whatever else a record says must not name another folder.
        let safe: String = endpoint.chars().filter(char::is_ascii_alphanumeric).collect();
        self.path.join("attachments").join(safe)
    }
}

/// Writes a file whole or not at all, and lasting when it returns.
///
/// # Errors
/// The file operation that failed; the old content stays.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |what| move |source| Error::File { what, path: path.to_owned(), source };
    // Two writers of one file must not write into each other's.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let fresh = path.with_extension(format!("{write}.{FRESH}"));
    let written = File::create(&fresh).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let replaced = written
        .map_err(failed("write"))
        .and_then(|()| fs::rename(&fresh, path).map_err(failed("replace")));
    if let Err(error) = replaced {
        // A full disk is not made fuller by what does not count.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    if let Some(dir) = path.parent().and_then(|dir| File::open(dir).ok()) {
        dir.sync_all().map_err(failed("replace"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(endpoint: &str) -> Attachment {
        Attachment {
            version: VERSION,
            stage: Stage::Attached,
            endpoint: endpoint.to_owned(),
            network: "n1".to_owned(),
            network_name: "blue".to_owned(),
            name: String::new(),
            sandbox: "c1".to_owned(),
            ifname: "eth0".to_owned(),
            mac: MacAddr([0, 0, 0x5e, 0, 0x53, 1]),
            ips: vec!["198.51.100.2/24".parse().unwrap()],
            gateways: Vec::new(),
            labels: Default::default(),
            publication: Publication::Done,
            docker: None,
            moved: false,
            reason: None,
        }
    }

    #[test]
    fn attachments_survive_and_bad_ones_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.put(&example("aa11")).unwrap();
        fs::write(dir.path().join("attachments/bb22"), b"{").unwrap();
        fs::write(dir.path().join("attachments/cc33.new"), b"{").unwrap();
        let (found, bad) = state.attachments();
        assert_eq!(found, [example("aa11")]);
        assert_eq!(bad.len(), 1);
        assert!(!dir.path().join("attachments/cc33.new").exists(), "cut short by a crash");
        assert_eq!(state.attachments().1.len(), 0);
        state.remove("aa11").unwrap();
        state.remove("aa11").unwrap();
        assert!(state.attachments().0.is_empty());
    }

    #[test]
    fn a_second_agent_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).err().unwrap().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn an_endpoint_id_cannot_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.file("../../etc"), dir.path().join("attachments/etc"));
    }
}

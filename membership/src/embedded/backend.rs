//! The disk: one redb file, and the lock that keeps a second server out.
//!
//! Tables: `meta` (format, identity, counters), `revisions` (every version since the last
//! compaction, see [`super::record`]), `leases` (id to ttl), `auth` (users and roles, one value).
//! Only the writer thread has it.
//! Every commit is durable before it returns (`Durability::Immediate`: data, then fsync).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::auth::Auth;
use super::error::Error;
use super::limits;
use super::mvcc::{FIRST_REVISION, NEVER_COMPACTED};
use super::record::Version;

/// Format of the file. Raised when an older program could not read it any more, or would read past
/// something that matters: format 2 has users and roles.
const FORMAT: u64 = 2;

const FILE: &str = "store.redb";
const LOCK: &str = "lock";

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISIONS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("revisions");
const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");
const AUTH: TableDefinition<&str, &[u8]> = TableDefinition::new("auth");

const KEY_FORMAT: &str = "format";
const KEY_CLUSTER: &str = "cluster-id";
const KEY_MEMBER: &str = "member-id";
const KEY_TERM: &str = "term";
const KEY_REVISION: &str = "revision";
const KEY_COMPACTED: &str = "compacted";
const KEY_AUTH: &str = "state";

/// Who this store is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    /// How often it was started: what an election term is to a cluster.
    pub(crate) term: u64,
}

/// What the file holds.
pub(crate) struct Loaded {
    pub(crate) identity: Identity,
    pub(crate) versions: Vec<Version>,
    pub(crate) leases: BTreeMap<i64, i64>,
    pub(crate) auth: Auth,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
}

/// A change of the lease table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeaseChange {
    Granted { id: i64, ttl: i64 },
    Revoked { id: i64 },
}

/// What one commit writes.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) versions: Vec<Arc<Version>>,
    pub(crate) leases: Vec<LeaseChange>,
    /// Users and roles as they are after it, when they changed.
    pub(crate) auth: Option<Arc<Auth>>,
    /// Places of versions to forget, and the revision this compacts to.
    pub(crate) compaction: Option<(i64, Vec<(i64, u32)>)>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.versions.is_empty()
            && self.leases.is_empty()
            && self.auth.is_none()
            && self.compaction.is_none()
    }
}

/// The open file. The lock lasts as long as this value.
pub(crate) struct Backend {
    database: Database,
    path: PathBuf,
    _lock: File,
}

impl Backend {
    /// Opens or makes the file in `dir` and reads it.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Loaded), Error> {
        // Records and, later, credentials: for the owner only.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| Error::DataDir { path: dir.to_path_buf(), source })?;
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        let database = Database::builder()
            .set_cache_size(limits::PAGE_CACHE_BYTES)
            .create(&path)
            .map_err(|source| match source {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                Error::InUse { path: dir.to_path_buf(), holder: "another program".to_owned() }
            }
            source => storage(&path, "opening", source),
        })?;
        // The name of a new file must last as its contents do.
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| Error::DataDir { path: dir.to_path_buf(), source })?;
        let backend = Self { database, path, _lock: lock };
        let identity = backend.identify()?;
        let loaded = backend.load(identity)?;
        Ok((backend, loaded))
    }

    /// Size of the file in bytes.
    pub(crate) fn file_size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    /// Checks the format, makes an identity for a new file and counts the start.
    fn identify(&self) -> Result<Identity, Error> {
        let failed = |source: redb::Error| storage(&self.path, "opening", source);
        let mut write = self.database.begin_write().map_err(|source| failed(source.into()))?;
        write.set_durability(Durability::Immediate).map_err(|source| failed(source.into()))?;
        let identity = {
            let mut meta = write.open_table(META).map_err(|source| failed(source.into()))?;
            let read = |key: &str| -> Result<Option<u64>, redb::StorageError> {
                Ok(meta.get(key)?.map(|guard| guard.value()))
            };
            let found = read(KEY_FORMAT).map_err(|source| failed(source.into()))?;
            if let Some(found) = found.filter(|found| *found > FORMAT) {
                return Err(Error::NewerFormat {
                    path: self.path.clone(),
                    found,
                    supported: FORMAT,
                });
            }
            let stored = |key: &str| read(key).map_err(|source| failed(source.into()));
            let identity = Identity {
                cluster: stored(KEY_CLUSTER)?.unwrap_or_else(random_id),
                member: stored(KEY_MEMBER)?.unwrap_or_else(random_id),
                term: stored(KEY_TERM)?.unwrap_or(0).saturating_add(1),
            };
            for (key, value) in [
                (KEY_FORMAT, FORMAT),
                (KEY_CLUSTER, identity.cluster),
                (KEY_MEMBER, identity.member),
                (KEY_TERM, identity.term),
            ] {
                meta.insert(key, value).map_err(|source| failed(source.into()))?;
            }
            identity
        };
        // A reader finds the tables of a new file from the first day.
        write.open_table(REVISIONS).map_err(|source| failed(source.into()))?;
        write.open_table(LEASES).map_err(|source| failed(source.into()))?;
        write.open_table(AUTH).map_err(|source| failed(source.into()))?;
        write.commit().map_err(|source| failed(source.into()))?;
        Ok(identity)
    }

    fn load(&self, identity: Identity) -> Result<Loaded, Error> {
        let corrupt =
            |what: &str| Error::Corrupt { path: self.path.clone(), what: what.to_owned() };
        let tables = || -> Result<_, redb::Error> {
            let read = self.database.begin_read()?;
            let meta = read.open_table(META)?;
            let number = |key: &str| -> Result<Option<u64>, redb::Error> {
                Ok(meta.get(key)?.map(|guard| guard.value()))
            };
            let (revision, compacted) = (number(KEY_REVISION)?, number(KEY_COMPACTED)?);
            let mut versions = Vec::new();
            for entry in read.open_table(REVISIONS)?.iter()? {
                let (place, bytes) = entry?;
                let (main, sub) = place.value();
                versions.push(Version::decode(main, sub, bytes.value()));
            }
            let mut leases = BTreeMap::new();
            for entry in read.open_table(LEASES)?.iter()? {
                let (id, ttl) = entry?;
                leases.insert(id.value(), ttl.value());
            }
            let auth = read.open_table(AUTH)?.get(KEY_AUTH)?.map(|auth| Auth::decode(auth.value()));
            Ok((revision, compacted, versions, leases, auth))
        };
        let (revision, compacted, versions, leases, auth) =
            tables().map_err(|source| storage(&self.path, "reading", source))?;
        let auth = auth
            .transpose()
            .map_err(|cause| corrupt(&format!("users and roles cannot be read ({cause})")))?
            .unwrap_or_default();
        let number = |stored: Option<u64>, missing: i64| {
            stored.map_or(Ok(missing), |number| {
                i64::try_from(number).map_err(|_| corrupt("a revision out of range"))
            })
        };
        let revision = number(revision, FIRST_REVISION)?;
        let compacted = number(compacted, NEVER_COMPACTED)?;
        let versions = versions.into_iter().collect::<Result<Vec<_>, _>>().map_err(corrupt)?;
        if compacted > revision || versions.last().is_some_and(|last| last.modified > revision) {
            return Err(corrupt("a record above the last revision"));
        }
        // Every revision since the compaction has at least one record.
        let kept = usize::try_from(revision - compacted.max(FIRST_REVISION)).unwrap_or(usize::MAX);
        if kept > versions.len() {
            return Err(corrupt("revisions are missing"));
        }
        Ok(Loaded { identity, versions, leases, auth, revision, compacted })
    }

    /// Writes `changes` and the counters in one durable transaction.
    pub(crate) fn commit(&self, changes: &Changes, revision: i64) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut revisions = write.open_table(REVISIONS)?;
            for version in &changes.versions {
                let place = (unsigned(version.modified), u64::from(version.sub));
                revisions.insert(place, version.encode().as_slice())?;
            }
            let mut meta = write.open_table(META)?;
            if let Some((at, forgotten)) = &changes.compaction {
                for (main, sub) in forgotten {
                    revisions.remove((unsigned(*main), u64::from(*sub)))?;
                }
                meta.insert(KEY_COMPACTED, unsigned(*at))?;
            }
            meta.insert(KEY_REVISION, unsigned(revision))?;
            if !changes.leases.is_empty() {
                let mut leases = write.open_table(LEASES)?;
                for change in &changes.leases {
                    match *change {
                        LeaseChange::Granted { id, ttl } => leases.insert(id, ttl)?,
                        LeaseChange::Revoked { id } => leases.remove(id)?,
                    };
                }
            }
        }
        if let Some(auth) = &changes.auth {
            write.open_table(AUTH)?.insert(KEY_AUTH, auth.encode().as_slice())?;
        }
        write.commit()?;
        Ok(())
    }

    /// Gives free pages back to the file system.
    pub(crate) fn defragment(&mut self) -> Result<(), redb::Error> {
        // redb moves a bounded number of pages per call and tells whether it moved any.
        while self.database.compact()? {}
        Ok(())
    }
}

/// Revisions are never negative once they are stored.
fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// An id that is not zero and not negative as a signed number, as etcd's tools print them.
fn random_id() -> u64 {
    rand::random_range(1..=i64::MAX as u64)
}

fn storage(path: &Path, doing: &'static str, source: impl Into<redb::Error>) -> Error {
    Error::Storage { path: path.to_path_buf(), doing, source: Box::new(source.into()) }
}

/// Takes the lock of the data directory and writes our process id into it.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let failed = |source| Error::DataDir { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // What is in it is only for the message.
            let _ = (&file).take(32).read_to_string(&mut pid);
            let holder = match pid.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(Error::InUse { path: dir.to_path_buf(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (_first, _) = Backend::open(dir.path()).unwrap();
        let Err(error) = Backend::open(dir.path()) else { panic!("opened twice") };
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    }

    #[test]
    fn a_newer_format_is_refused_with_cause_and_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let (backend, _) = Backend::open(dir.path()).unwrap();
        let write = backend.database.begin_write().unwrap();
        write.open_table(META).unwrap().insert(KEY_FORMAT, FORMAT + 1).unwrap();
        write.commit().unwrap();
        drop(backend);
        let Err(error) = Backend::open(dir.path()) else { panic!("opened a newer file") };
        assert!(matches!(error, Error::NewerFormat { found, .. } if found == FORMAT + 1));
        assert!(error.to_string().contains("start the newer program"), "{error}");
    }

    #[test]
    fn a_damaged_record_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (backend, _) = Backend::open(dir.path()).unwrap();
        let write = backend.database.begin_write().unwrap();
        write.open_table(REVISIONS).unwrap().insert((1, 0), [9_u8; 3].as_slice()).unwrap();
        write.commit().unwrap();
        drop(backend);
        let Err(error) = Backend::open(dir.path()) else { panic!("opened a damaged file") };
        assert!(error.to_string().contains("unknown kind"), "{error}");
    }

    #[test]
    fn identity_lasts_and_the_term_counts_starts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Backend::open(dir.path()).unwrap().1.identity;
        let second = Backend::open(dir.path()).unwrap().1.identity;
        assert_eq!((first.cluster, first.member), (second.cluster, second.member));
        assert_eq!((first.term, second.term), (1, 2));
    }
}

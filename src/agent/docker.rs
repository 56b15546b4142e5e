//! What this host keeps on disk of its Docker's networks.
//!
//! Docker tells of a network once, and asks for its pool before that. So a pool that was asked for
//! is on the disk before it is answered, and outlives a restart of the agent until the network
//! comes. What each network is stands in the store; the copy here is written to the store again when
//! that lacks it ([`super::republish`]). It is there after the record and goes before it, so that
//! nothing comes back that Docker has removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use membership::docker::DockerNetwork;
use membership::key::{DockerId, HostName, NetworkId};
use membership::record::{DockerRecord, now_seconds};
use serde::{Deserialize, Serialize};

use super::state;

/// The file, in the state directory.
const FILE: &str = "docker.json";
/// Version of the file.
const VERSION: u32 = 1;
/// Seconds for which a pool counts as a hint for the network that Docker makes next.
const PENDING: u64 = 60;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct File {
    version: u32,
    pending: Vec<Pending>,
    networks: Vec<Noted>,
}

/// A pool that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    pool: String,
    /// Seconds since 1970.
    at: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Noted {
    network: String,
    id: String,
    record: DockerRecord,
}

impl Noted {
    fn is(&self, network: &NetworkId, id: &DockerId) -> bool {
        self.network == network.as_str() && self.id == id.as_str()
    }
}

/// What is kept.
#[derive(Debug)]
pub struct Dockers {
    path: PathBuf,
    file: Mutex<File>,
}

impl Dockers {
    /// What the last run has left. A file that cannot be read is set aside, and there is nothing then.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let file = match read(&path) {
            Ok(file) => file,
            Err(cause) => {
                let aside = path.with_extension("bad");
                let _ = fs::rename(&path, &aside);
                tracing::warn!(
                    file = %path.display(), set_aside = %aside.display(), %cause,
                    "what was kept of Docker's networks cannot be read; the store has it"
                );
                File::default()
            }
        };
        Self { path, file: Mutex::new(file) }
    }

    /// Keeps a pool for the network that is made of it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn ask(&self, pool: String) -> Result<(), state::Error> {
        let now = now_seconds();
        self.change(|file| {
            file.pending.retain(|pending| is_fresh(pending, now) && pending.pool != pool);
            file.pending.push(Pending { pool, at: now });
        })
    }

    /// The pools that were asked for and may have no network yet, the last one first.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        let now = now_seconds();
        let file = self.lock();
        let fresh = file.pending.iter().rev().filter(|pending| is_fresh(pending, now));
        fresh.map(|pending| pending.pool.clone()).collect()
    }

    /// The pool that was asked for last, if that was within this many seconds.
    #[must_use]
    pub fn last(&self, seconds: u64) -> Option<String> {
        let now = now_seconds();
        let file = self.lock();
        let last = file.pending.last().filter(|last| now.saturating_sub(last.at) <= seconds);
        last.map(|last| last.pool.clone())
    }

    /// Keeps a copy of a record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put(&self, noted: &DockerNetwork) -> Result<(), state::Error> {
        self.change(|file| {
            file.networks.retain(|other| !other.is(&noted.network, &noted.id));
            file.networks.push(Noted {
                network: noted.network.to_string(),
                id: noted.id.to_string(),
                record: noted.record.clone(),
            });
            file.networks.sort_by(|a, b| (&a.network, &a.id).cmp(&(&b.network, &b.id)));
        })
    }

    /// Forgets the copy of a record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, noted: &DockerNetwork) -> Result<(), state::Error> {
        self.change(|file| file.networks.retain(|other| !other.is(&noted.network, &noted.id)))
    }

    /// The copies, as records of this host.
    #[must_use]
    pub fn networks(&self, host: &HostName) -> Vec<DockerNetwork> {
        let file = self.lock();
        let found = file.networks.iter().filter_map(|noted| {
            Some(DockerNetwork {
                network: NetworkId::new(&noted.network).ok()?,
                host: host.clone(),
                id: DockerId::new(&noted.id).ok()?,
                record: noted.record.clone(),
            })
        });
        found.collect()
    }

    fn change(&self, change: impl FnOnce(&mut File)) -> Result<(), state::Error> {
        let mut file = self.lock();
        let mut changed = file.clone();
        change(&mut changed);
        changed.version = VERSION;
        if changed == *file {
            return Ok(());
        }
        state::replace(&self.path, &serde_json::to_vec_pretty(&changed).unwrap_or_default())?;
        *file = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<File> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(File::default()),
        Err(err) => Err(err),
    }
}

fn is_fresh(pending: &Pending, now: u64) -> bool {
    now.saturating_sub(pending.at) < PENDING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_knows_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostName::new("h1").unwrap();
        let noted = DockerNetwork {
            network: NetworkId::new("n1").unwrap(),
            host: host.clone(),
            id: DockerId::new("d1").unwrap(),
            record: DockerRecord { created: true, ..DockerRecord::default() },
        };
        let first = Dockers::open(dir.path());
        first.ask("192.0.2.0/24;vni=7".to_owned()).unwrap();
        first.ask("198.51.100.0/24".to_owned()).unwrap();
        first.put(&noted).unwrap();
        let second = Dockers::open(dir.path());
        assert_eq!(second.pending(), ["198.51.100.0/24", "192.0.2.0/24;vni=7"]);
        assert_eq!(second.last(PENDING).as_deref(), Some("198.51.100.0/24"));
        assert_eq!(second.networks(&host), vec![noted.clone()]);
        second.remove(&noted).unwrap();
        assert_eq!(Dockers::open(dir.path()).networks(&host), []);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "no JSON").unwrap();
        assert_eq!(Dockers::open(dir.path()).pending(), Vec::<String>::new());
        assert_eq!(fs::read(dir.path().join("docker.bad")).unwrap(), b"no JSON");
    }

    #[test]
    fn a_pool_is_a_hint_for_a_minute() {
        let pending = Pending { pool: "192.0.2.0/24".to_owned(), at: 1000 };
        assert!(is_fresh(&pending, 1059) && !is_fresh(&pending, 1060));
    }
}

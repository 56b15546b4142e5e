//! What was applied since the snapshot, so that an agent that is killed knows it.
//!
//! # Theory of operation
//!
//! ```text
//!   applied events ──► NAME.log            rotate: NAME.log ─► NAME.log.old, then the snapshot
//!                                          of what has been applied, then NAME.log.old goes
//!   start: snapshot, then NAME.log.old, then NAME.log
//! ```
//!
//! A snapshot of many endpoints is large, so it is written seldom; a line per change costs little,
//! and lies with the kernel when the process is killed. Lines are written after their events were
//! applied: whatever lies in the old file is in a snapshot that is taken after the rotation. The
//! other way about lines may be replayed that the snapshot has already, which changes nothing, since
//! all that followed them are replayed too. A line that a crash cut short is left out.
//!
//! The machine may lose the last lines with its power, as they are not synced; the store has them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use fdb::Revision;
use serde::{Deserialize, Serialize};

use super::View;
use crate::key::{Key, Keys};
use crate::record::Record;
use crate::watch::Event;

/// One change.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    key: &'a str,
    revision: i64,
    /// Absent when the key was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<serde_json::Value>,
}

/// The journal beside a snapshot.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<File>,
}

impl Journal {
    /// The journal at `path`; nothing is opened before something is written.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Applies what lies in the journal at `path` to the view of its snapshot.
    ///
    /// # Errors
    ///
    /// When a file is there and cannot be read.
    pub fn replay(path: &Path, view: &mut View) -> io::Result<usize> {
        let mut count = 0;
        for path in [old(path), path.to_owned()] {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for event in bytes.split(|byte| *byte == b'\n').filter_map(parse) {
                view.apply(event);
                count += 1;
            }
        }
        Ok(count)
    }

    /// The lines of these events, as far as a snapshot holds what they change.
    #[must_use]
    pub fn lines(events: &[Event]) -> Vec<u8> {
        let mut lines = Vec::new();
        for event in events {
            let (key, revision, record) = match event {
                Event::Put { key, record, revision } => (key, revision, Some(record)),
                Event::Delete { key, revision } => (key, revision, None),
                Event::Bad { .. } | Event::DeleteBad { .. } => continue,
            };
            let kept = matches!(
                key,
                Key::Host(_) | Key::KnownHost(_) | Key::Network(_) | Key::Endpoint(..)
            );
            let record = record.map(|record| record.to_json());
            // A record that cannot be written was never read.
            if !kept || matches!(record, Some(Err(_))) {
                continue;
            }
            let record = record.and_then(Result::ok);
            let line = Line { key: &key.to_string(), revision: revision.0, record };
            if serde_json::to_writer(&mut lines, &line).is_ok() {
                lines.push(b'\n');
            }
        }
        lines
    }

    /// Appends lines of events that have been applied.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                use std::os::unix::fs::OpenOptionsExt as _;
                let mut file =
                    OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
                // Ends a line that a crash cut short.
                file.write_all(b"\n")?;
                self.file.insert(file)
            }
        };
        let written = file.write_all(lines);
        if written.is_err() {
            // What may be half a line is ended by the next opening.
            self.file = None;
        }
        written
    }

    /// Begins a new file: what was appended so far goes with [`Self::folded`]. While an earlier
    /// file waits for that, the present one goes on.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn rotate(&mut self) -> io::Result<()> {
        let old = old(&self.path);
        if old.try_exists()? {
            return Ok(());
        }
        self.file = None;
        match fs::rename(&self.path, old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A snapshot that was taken after [`Self::rotate`] is on disk.
    ///
    /// # Errors
    ///
    /// When the disk refuses.
    pub fn folded(&mut self) -> io::Result<()> {
        match fs::remove_file(old(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".old");
    path.with_file_name(name)
}

fn parse(line: &[u8]) -> Option<Event> {
    let Line { key, revision, record } = serde_json::from_slice(line).ok()?;
    // The journal is one store's, so its keys need no prefix of their own.
    let keys = Keys::new("").ok()?;
    let key = keys.parse(format!("{}{key}", keys.root()).as_bytes()).ok()?;
    let revision = Revision(revision);
    match record {
        None => Some(Event::Delete { key, revision }),
        Some(record) => {
            let record = Record::decode(&key, record.to_string().as_bytes()).ok()?;
            Some(Event::Put { key, record: Box::new(record), revision })
        }
    }
}

#[cfg(test)]
mod tests {
    use encap::MacAddr;

    use super::*;
    use crate::key::{HostId, HostName};
    use crate::record::HostRecord;

    fn put(name: &str, mtu: u16, revision: i64) -> Event {
        let name = HostName::new(name).unwrap();
        let mac = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
        let mut record = HostRecord::new(name.clone(), HostId::new("id").unwrap(), 1, mac);
        record.underlay_mtu = mtu;
        let record = Box::new(Record::Host(record));
        Event::Put { key: Key::Host(name), record, revision: Revision(revision) }
    }

    fn delete(name: &str, revision: i64) -> Event {
        let key = Key::Host(HostName::new(name).unwrap());
        Event::Delete { key, revision: Revision(revision) }
    }

    /// What an agent that starts now would know.
    fn start(directory: &Path) -> View {
        let mut view = View::load(&directory.join("tables.json")).unwrap().unwrap_or_default();
        Journal::replay(&directory.join("tables.log"), &mut view).unwrap();
        view
    }

    fn same(one: &View, other: &View) {
        let hosts = |view: &View| {
            view.hosts().map(|(name, host)| (name.clone(), host.clone())).collect::<Vec<_>>()
        };
        assert_eq!(hosts(one), hosts(other));
    }

    /// An agent that dies after each step knows all that was applied.
    #[test]
    fn whenever_it_dies_all_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tables.log");
        let mut view = View::new();
        let mut journal = Journal::new(path.clone());
        let apply = |view: &mut View, journal: &mut Journal, event: Event| {
            let lines = Journal::lines(std::slice::from_ref(&event));
            view.apply(event);
            journal.append(&lines).unwrap();
            same(view, &start(directory.path()));
        };
        apply(&mut view, &mut journal, put("h1", 1, 1));
        apply(&mut view, &mut journal, put("h2", 1, 2));
        for round in 0..3 {
            journal.rotate().unwrap();
            same(&view, &start(directory.path()));
            apply(&mut view, &mut journal, put("h1", 10 + round, 10 + i64::from(round)));
            let snapshot = view.clone();
            apply(&mut view, &mut journal, delete("h2", 20 + i64::from(round)));
            apply(&mut view, &mut journal, put("h3", 10 + round, 30 + i64::from(round)));
            snapshot.save(&directory.path().join("tables.json")).unwrap();
            same(&view, &start(directory.path()));
            // A snapshot that failed leaves the old file, and the next rotation keeps it.
            if round != 1 {
                journal.folded().unwrap();
            }
            same(&view, &start(directory.path()));
            apply(&mut view, &mut journal, put("h2", 1, 40 + i64::from(round)));
        }
        // A crash cut a line short, and another run goes on.
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut view = start(directory.path());
        let mut journal = Journal::new(path);
        apply(&mut view, &mut journal, put("h4", 4, 50));
        assert!(start(directory.path()).host(&HostName::new("h4").unwrap()).is_some());
    }
}

//! Export, import, compaction and state of a store, over the etcd API: embedded and etcd alike.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use membership::embedded;
use membership::store::{Error as StoreError, Member, Scope};
use membership::transfer::{self, Exported, ImportOptions, Imported};
use serde::{Deserialize, Serialize};

use super::Error;
use super::access::Access;

/// What a member says about itself, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its URL.
    pub endpoint: String,
    /// Whether it answers.
    pub answers: bool,
    /// Version of its server.
    pub version: Option<String>,
    /// Whether it leads the cluster.
    pub leads: bool,
    /// The revision of its latest change.
    pub revision: Option<i64>,
    /// Size of its file in bytes.
    pub size_bytes: Option<u64>,
    /// Bytes of it that are in use; what is above is given back by a defragmentation.
    pub in_use_bytes: Option<u64>,
    /// What is wrong with it, or why it does not answer.
    pub errors: Vec<String>,
}

impl MemberStatus {
    fn new(endpoint: &str, answer: Result<Member, Error>) -> Self {
        let endpoint = endpoint.to_owned();
        match answer {
            Ok(member) => {
                let mut errors = member.errors;
                if !member.led {
                    errors.push("it has no leader".to_owned());
                }
                Self {
                    endpoint,
                    answers: true,
                    version: Some(member.version),
                    leads: member.leads,
                    revision: Some(member.revision),
                    size_bytes: Some(member.size),
                    in_use_bytes: Some(member.in_use),
                    errors,
                }
            }
            Err(error) => Self {
                endpoint,
                answers: false,
                version: None,
                leads: false,
                revision: None,
                size_bytes: None,
                in_use_bytes: None,
                errors: vec![error.to_string()],
            },
        }
    }
}

/// What a compaction did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// What is older than this revision is forgotten.
    pub revision: i64,
    /// Whether it was already.
    pub already: bool,
    /// Members whose files were defragmented.
    pub defragmented: Vec<String>,
}

/// Asks every member.
pub async fn status(access: &Access) -> Vec<MemberStatus> {
    let mut members = Vec::new();
    let asked: Vec<_> = access
        .endpoints()
        .iter()
        .map(|endpoint| {
            let (access, endpoint) = (access.clone(), endpoint.clone());
            tokio::spawn(async move {
                let answer = async { Ok(access.member(&endpoint)?.member().await?) }.await;
                MemberStatus::new(&endpoint, answer)
            })
        })
        .collect();
    for member in asked {
        // It neither panics nor is aborted.
        members.extend(member.await.ok());
    }
    members
}

/// Forgets the history but the last `keep` revisions; with `defragment`, makes the members' files
/// smaller, one after the other.
///
/// # Errors
/// When the store does not do it.
pub async fn compact(access: &Access, keep: u64, defragment: bool) -> Result<Compacted, Error> {
    let store = access.store()?;
    let latest = store.member().await?.revision;
    let revision = latest.saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX)).max(1);
    let already = match store.compact(revision).await {
        Ok(()) => false,
        Err(StoreError::Compacted) => true,
        Err(error) => return Err(error.into()),
    };
    let mut defragmented = Vec::new();
    if defragment {
        for endpoint in access.endpoints() {
            access.member(endpoint)?.defragment().await?;
            defragmented.push(endpoint.clone());
        }
    }
    Ok(Compacted { revision, already, defragmented })
}

/// Writes the keys to `output`, or to standard output.
///
/// # Errors
/// When the store or the file does not do it; a file is whole or as it was before.
pub async fn export(
    access: &Access,
    scope: Scope,
    output: Option<&Path>,
) -> Result<Exported, Error> {
    let store = access.store()?;
    match output {
        None => Ok(transfer::export(&store, scope, BufWriter::new(io::stdout())).await?),
        Some(path) => {
            let mut fresh = Fresh::new(path)?;
            let exported = transfer::export(&store, scope, &mut fresh.file).await?;
            fresh.keep()?;
            Ok(exported)
        }
    }
}

/// The same for the directory of an embedded store that nobody serves.
///
/// # Errors
/// As [`export`].
pub fn export_dir(data: &Path, output: Option<&Path>) -> Result<Exported, Error> {
    if !data.is_dir() {
        let source = io::ErrorKind::NotFound.into();
        return Err(Error::File { what: "read the store in", path: data.to_owned(), source });
    }
    match output {
        None => Ok(embedded::transfer::export_dir(data, BufWriter::new(io::stdout()))?),
        Some(path) => {
            let mut fresh = Fresh::new(path)?;
            let exported = embedded::transfer::export_dir(data, &mut fresh.file)?;
            fresh.keep()?;
            Ok(exported)
        }
    }
}

/// Puts the keys of a file, or of standard input where it is `-`, into the store.
///
/// # Errors
/// When a line is wrong, a key is there with another value, or the store does not do it.
pub async fn import(
    access: &Access,
    input: &Path,
    options: ImportOptions,
) -> Result<Imported, Error> {
    let store = access.store()?;
    if input == Path::new("-") {
        return Ok(transfer::import(&store, io::stdin().lock(), options).await?);
    }
    let file = File::open(input).map_err(|source| Error::File {
        what: "open",
        path: input.to_owned(),
        source,
    })?;
    Ok(transfer::import(&store, BufReader::new(file), options).await?)
}

/// A file beside the one that it becomes once it is whole, for its owner only.
struct Fresh<'a> {
    path: &'a Path,
    beside: std::path::PathBuf,
    file: BufWriter<File>,
}

impl<'a> Fresh<'a> {
    fn new(path: &'a Path) -> Result<Self, Error> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = std::path::PathBuf::from(beside);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .map_err(|source| Error::File { what: "write", path: beside.clone(), source })?;
        Ok(Self { path, beside, file: BufWriter::new(file) })
    }

    fn keep(mut self) -> Result<(), Error> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| std::fs::rename(&self.beside, self.path))
            .map_err(|source| Error::File { what: "write", path: self.path.to_owned(), source })
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = std::fs::remove_file(&self.beside);
    }
}

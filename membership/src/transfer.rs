//! Export and import of a store's keys, as lines of JSON, over the etcd API.
//!
//! # Theory of operation
//!
//! The first line says what it is; each further line is one key. Strings that are UTF-8 are written
//! as they are, others as base64 under another name, so that the file can be read, compared and
//! edited. Revisions are told and not moved: the importing store counts its own.
//!
//! ```text
//! {"format":"skybridge-store","version":1,"revision":42}
//! {"key":"/skybridge/v1/names/blue","value":"{...}","created":7,"modified":9}
//! {"key64":"AP8=","value64":"/w==","created":8,"modified":8,"leased":true}
//! ```
//!
//! A key under a lease is marked. Its lease means a session of a running host, which publishes it
//! anew, so an import leaves such keys out and counts them.
//!
//! An import reads the whole file, then looks at what is there, and only then writes: in
//! transactions that each hold only if their keys are still as they were seen. A key that is there
//! with the same value is left alone, so an import that broke off can simply be run again.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::store::{self, Scope, Store};

const FORMAT: &str = "skybridge-store";
const VERSION: u32 = 1;
/// Keys in one transaction of an import; etcd takes 128.
const BATCH_KEYS: usize = 100;
/// Bytes in one transaction of an import; etcd takes 1.5 MiB.
const BATCH_BYTES: usize = 1024 * 1024;
/// Keys that are looked at in one request; each may be a request large.
const LOOK_KEYS: usize = 16;
/// Largest key with its value in bytes: what etcd takes in a request, less its framing.
const ENTRY_MAX: usize = 1536 * 1024 - 1024;
/// Most bytes of an import: what the embedded store holds.
const IMPORT_MAX: usize = 256 * 1024 * 1024;
/// Keys that an error names.
const NAMED: usize = 3;

/// Why records were not moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key was changed by somebody else meanwhile.
    #[error(
        "{key} was changed by somebody else while {written} of {all} keys were written: stop the \
         agents, then run the import again"
    )]
    Changed {
        /// Which key.
        key: String,
        /// Keys that are written.
        written: usize,
        /// Keys that were to be written.
        all: usize,
    },
    /// There are keys with other values.
    #[error("{count} keys are there already with other values ({names}); nothing was written")]
    Exists {
        /// How many.
        count: usize,
        /// Some of them.
        names: String,
    },
    /// A line cannot be understood.
    #[error("line {line} is no record of an export: {what}; nothing was written")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The file.
    #[error("the file cannot be read or written: {0}")]
    Transfer(#[from] io::Error),
}

#[derive(Deserialize, Serialize)]
struct Head {
    format: String,
    version: u32,
    revision: i64,
}

#[derive(Default, Deserialize, Serialize)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value64: Option<String>,
    #[serde(default)]
    created: i64,
    #[serde(default)]
    modified: i64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leased: bool,
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Keys written.
    pub keys: u64,
    /// Revision at which they were read.
    pub revision: i64,
}

/// How an import treats what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Replace keys that are there with other values.
    pub overwrite: bool,
    /// Only look and count.
    pub dry_run: bool,
}

/// What an import did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Keys that were not there.
    pub created: u64,
    /// Keys that were there with another value.
    pub replaced: u64,
    /// Keys that were there with the same value.
    pub unchanged: u64,
    /// Keys left out because a lease held them.
    pub leased: u64,
}

/// One key, as an export writes it.
pub(crate) struct Exportable<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) leased: bool,
}

pub(crate) fn write_head(out: &mut impl Write, revision: i64) -> io::Result<()> {
    let head = Head { format: FORMAT.to_owned(), version: VERSION, revision };
    write_line(out, &head)
}

pub(crate) fn write_entry(out: &mut impl Write, entry: &Exportable<'_>) -> io::Result<()> {
    let (key, key64) = text_or_base64(entry.key);
    let (value, value64) = text_or_base64(entry.value);
    let (created, modified, leased) = (entry.created, entry.modified, entry.leased);
    write_line(out, &Line { key, key64, value, value64, created, modified, leased })
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut json = serde_json::to_vec(line)?;
    json.push(b'\n');
    out.write_all(&json)
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// Writes the keys of a store as they are at one revision.
///
/// # Errors
///
/// [`Error::Store`] and [`Error::Transfer`]; what was written then is not whole.
pub async fn export(store: &Store, scope: Scope, mut out: impl Write) -> Result<Exported, Error> {
    let mut pages = store.pages(scope);
    let (mut keys, mut first) = (0, true);
    while let Some(page) = store.page(&mut pages).await? {
        if std::mem::take(&mut first) {
            write_head(&mut out, pages.revision)?;
        }
        for entry in page {
            let exportable = Exportable {
                key: &entry.key,
                value: &entry.value,
                created: entry.create_revision,
                modified: entry.mod_revision,
                leased: entry.lease != 0,
            };
            write_entry(&mut out, &exportable)?;
            keys += 1;
        }
    }
    out.flush()?;
    Ok(Exported { keys, revision: pages.revision })
}

/// Puts the keys of an export into a store.
///
/// # Errors
///
/// [`Error::Line`] names the first line that is not understood, [`Error::Exists`] keys that are
/// there with other values; nothing is written then. [`Error::Changed`] when others write at the
/// same time. [`Error::Store`] and [`Error::Transfer`].
pub async fn import(
    store: &Store,
    input: impl BufRead,
    options: ImportOptions,
) -> Result<Imported, Error> {
    let (wanted, leased) = parse(input)?;
    let mut imported = Imported { leased, ..Imported::default() };
    // Each key to be put with the revision at which it was seen.
    let mut puts: Vec<(&[u8], &[u8], i64)> = Vec::new();
    let mut different: Vec<&[u8]> = Vec::new();
    let all: Vec<(&Vec<u8>, &Vec<u8>)> = wanted.iter().collect();
    for some in all.chunks(LOOK_KEYS) {
        let keys: Vec<&[u8]> = some.iter().map(|(key, _)| key.as_slice()).collect();
        let found: HashMap<Vec<u8>, (Vec<u8>, i64)> = store
            .raw(&keys)
            .await?
            .into_iter()
            .map(|entry| (entry.key, (entry.value, entry.mod_revision)))
            .collect();
        for (key, value) in some {
            match found.get(key.as_slice()) {
                None => {
                    imported.created += 1;
                    puts.push((key, value, 0));
                }
                Some((present, _)) if present == *value => imported.unchanged += 1,
                Some((_, revision)) => {
                    imported.replaced += 1;
                    different.push(key);
                    puts.push((key, value, *revision));
                }
            }
        }
    }
    if !different.is_empty() && !options.overwrite {
        let names = different.iter().take(NAMED).map(|key| shown(key)).collect::<Vec<_>>();
        let more = if different.len() > NAMED { ", ..." } else { "" };
        let names = names.join(", ") + more;
        return Err(Error::Exists { count: different.len(), names });
    }
    if !options.dry_run {
        write(store, &puts).await?;
    }
    Ok(imported)
}

async fn write(store: &Store, puts: &[(&[u8], &[u8], i64)]) -> Result<(), Error> {
    let mut written = 0;
    while let Some(rest) = puts.get(written..).filter(|rest| !rest.is_empty()) {
        let mut bytes = 0;
        let fits = rest.iter().take(BATCH_KEYS).take_while(|(key, value, _)| {
            bytes += key.len() + value.len();
            bytes <= BATCH_BYTES
        });
        // One that is larger by itself goes alone.
        let batch = rest.get(..fits.count().max(1)).unwrap_or(rest);
        if !store.put_raw(batch).await?
            && let Some(key) = changed(store, batch).await?
        {
            let key = shown(key);
            return Err(Error::Changed { key, written, all: puts.len() });
        }
        written += batch.len();
    }
    Ok(())
}

/// A key of a batch that does not have its value. None when the batch was written after all: a
/// call whose answer was lost is repeated, and then finds its own work.
async fn changed<'a>(
    store: &Store,
    batch: &[(&'a [u8], &'a [u8], i64)],
) -> Result<Option<&'a [u8]>, Error> {
    for some in batch.chunks(LOOK_KEYS) {
        let keys: Vec<&[u8]> = some.iter().map(|(key, ..)| *key).collect();
        let found = store.raw(&keys).await?;
        for (key, value, _) in some {
            if !found.iter().any(|entry| entry.key == *key && entry.value == *value) {
                return Ok(Some(key));
            }
        }
    }
    Ok(None)
}

/// A key for a message.
fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).chars().take(120).collect()
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);
type Wanted = BTreeMap<Vec<u8>, Vec<u8>>;

/// All keys of an export that no lease held, and how many one did.
fn parse(input: impl BufRead) -> Result<(Wanted, u64), Error> {
    let mut wanted = BTreeMap::new();
    let (mut leased, mut bytes) = (0, 0);
    let mut lines = input.lines().enumerate();
    let head = lines.next().map(|(_, line)| line).transpose()?.unwrap_or_default();
    check_head(&head).map_err(|what| Error::Line { line: 1, what })?;
    for (place, line) in lines {
        let line = line?;
        let wrong = |what: String| Error::Line { line: place + 1, what };
        if line.trim().is_empty() {
            continue;
        }
        let Some((key, value)) = parse_line(&line).map_err(wrong)? else {
            leased += 1;
            continue;
        };
        bytes += key.len() + value.len();
        if bytes > IMPORT_MAX {
            return Err(wrong(format!("it is beyond {} MiB", IMPORT_MAX / 1024 / 1024)));
        }
        if wanted.insert(key, value).is_some() {
            return Err(wrong("its key came before".to_owned()));
        }
    }
    Ok((wanted, leased))
}

fn check_head(line: &str) -> Result<(), String> {
    let head: Head = serde_json::from_str(line)
        .map_err(|error| format!("it does not say that this is an export: {error}"))?;
    if head.format != FORMAT {
        return Err(format!("its format is {:?}, not {FORMAT:?}", head.format));
    }
    if head.version > VERSION {
        return Err(format!("its version is {}, this program reads {VERSION}", head.version));
    }
    Ok(())
}

/// Key and value of a line; `None` when a lease held the key.
fn parse_line(line: &str) -> Result<Option<Pair>, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if line.leased {
        return Ok(None);
    }
    let key = bytes(line.key, line.key64).ok_or("its key is missing or not base64")?;
    let value = bytes(line.value, line.value64).ok_or("its value is missing or not base64")?;
    if key.is_empty() {
        return Err("its key is empty".to_owned());
    }
    if key.len() + value.len() > ENTRY_MAX {
        return Err("it is larger than a request may be".to_owned());
    }
    Ok(Some((key, value)))
}

fn bytes(text: Option<String>, base64: Option<String>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(base64)) => STANDARD.decode(base64).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<(Wanted, u64), String> {
        let text = format!("{{\"format\":\"{FORMAT}\",\"version\":1,\"revision\":4}}\n{lines}");
        parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut text = Vec::new();
        write_head(&mut text, 7).unwrap();
        for (key, value, leased) in [
            (&b"a"[..], &b"1\n\"\xc3\xa9"[..], false),
            (b"\0\xff", b"\xff", false),
            (b"s", b"x", true),
        ] {
            let entry = Exportable { key, value, created: 1, modified: 2, leased };
            write_entry(&mut text, &entry).unwrap();
        }
        let (wanted, leased) = parse(text.as_slice()).unwrap();
        assert_eq!(leased, 1);
        let expected =
            [(b"\0\xff".to_vec(), b"\xff".to_vec()), (b"a".to_vec(), b"1\n\"\xc3\xa9".to_vec())];
        assert_eq!(wanted.into_iter().collect::<Vec<_>>(), expected);
        assert_eq!(text.split(|byte| *byte == b'\n').count(), 5, "one line per key");
    }

    #[test]
    fn lines_that_are_wrong_are_named() {
        assert_eq!(read("\n{\"key\":\"a\",\"value\":\"1\"}\n").unwrap().0.len(), 1);
        for (line, word) in [
            ("{", "line 2"),
            ("{\"key\":\"a\"}", "its value is missing"),
            ("{\"value\":\"a\"}", "its key is missing"),
            ("{\"key\":\"\",\"value\":\"\"}", "its key is empty"),
            ("{\"key64\":\"!\",\"value\":\"\"}", "not base64"),
            ("{\"key\":\"a\",\"key64\":\"YQ==\",\"value\":\"\"}", "its key is missing"),
            ("{\"key\":\"a\",\"value\":\"1\"}\n{\"key64\":\"YQ==\",\"value\":\"2\"}", "line 3"),
        ] {
            let said = read(line).unwrap_err();
            assert!(said.contains(word), "{line}: {said}");
        }
        for head in ["", "junk", "{\"format\":\"x\",\"version\":1,\"revision\":1}"] {
            let error = parse(head.as_bytes()).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Line { line: 1, .. }), "{error}");
        }
        let newer = format!("{{\"format\":\"{FORMAT}\",\"version\":2,\"revision\":4}}");
        assert!(parse(newer.as_bytes()).unwrap_err().to_string().contains("its version is 2"));
    }
}

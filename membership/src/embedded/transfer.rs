//! Export and import of all keys, as lines of JSON.
//!
//! The first line says what it is; each further line is one key. Strings that are UTF-8 are
//! written as they are, others as base64 under another name, so that the file can be read, compared
//! and edited. Revisions are not moved: the importing store counts its own.
//!
//! ```text
//! {"format":"skybridge-store","version":1,"revision":42}
//! {"key":"/skybridge/v1/names/blue","value":"{...}"}
//! {"key64":"AP8=","value64":"/w==","leased":true}
//! ```
//!
//! A key under a lease is marked. Its lease means a session of a running host, which publishes it
//! anew, so an import leaves such keys out and counts them.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use etcd_client::proto::PbPutRequest;
use serde::{Deserialize, Serialize};

use super::error::{Error, Refusal};
use super::limits;
use super::record::Version;
use super::server::Server;
use super::store::Store;

const FORMAT: &str = "skybridge-store";
const VERSION: u32 = 1;

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
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leased: bool,
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Keys written.
    pub keys: u64,
    /// Revision at which they were read.
    pub revision: i64,
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys put.
    pub keys: u64,
    /// Keys left out because a lease held them.
    pub leased: u64,
}

/// Writes all keys of a running store at its current revision.
///
/// # Errors
///
/// [`Error::Transfer`] when `out` fails.
pub fn export(server: &Server, out: impl Write) -> Result<Exported, Error> {
    export_store(server.store(), out)
}

/// Writes all keys of the store in `dir`, which no server may be using.
///
/// # Errors
///
/// Those of opening the directory (see [`Server::start`]), and [`Error::Transfer`].
pub fn export_dir(dir: &Path, out: impl Write) -> Result<Exported, Error> {
    let (store, writer) = Store::open(dir)?;
    let exported = export_store(&store, out);
    store.stop_writer_now();
    // The directory is free for others once its thread has ended.
    let _ = writer.join();
    exported
}

fn export_store(store: &Store, mut out: impl Write) -> Result<Exported, Error> {
    let (revision, versions): (i64, Vec<Arc<Version>>) = store.read(|state| {
        let all = super::mvcc::KeyRange::new(&[0], &[0]);
        (state.visible(), state.range(&all, state.visible(), 0).versions)
    });
    let mut line = |json: serde_json::Result<Vec<u8>>| -> std::io::Result<()> {
        let mut json = json?;
        json.push(b'\n');
        out.write_all(&json)
    };
    let failed = |source| Error::Transfer { source };
    let head = Head { format: FORMAT.to_owned(), version: VERSION, revision };
    line(serde_json::to_vec(&head)).map_err(failed)?;
    let mut keys = 0;
    for version in versions {
        let (key, key64) = text_or_base64(&version.key);
        let (value, value64) = text_or_base64(&version.value);
        let record = Line { key, key64, value, value64, leased: version.lease != 0 };
        line(serde_json::to_vec(&record)).map_err(failed)?;
        keys += 1;
    }
    out.flush().map_err(failed)?;
    Ok(Exported { keys, revision })
}

/// Puts all keys of an export into a running store, in transactions of bounded size. Keys that are
/// there already are overwritten, others stay.
///
/// # Errors
///
/// [`Error::ImportLine`] names the first line that is not understood: nothing after the
/// transaction before it is put. [`Error::Transfer`] when `input` fails, [`Error::Refused`] when the
/// store refuses a put.
pub async fn import(server: &Server, input: impl BufRead) -> Result<Imported, Error> {
    import_store(server.store(), input).await
}

async fn import_store(store: &Store, input: impl BufRead) -> Result<Imported, Error> {
    let mut imported = Imported::default();
    let mut lines = input.lines().enumerate();
    let head = match lines.next() {
        Some((_, line)) => line.map_err(|source| Error::Transfer { source })?,
        None => String::new(),
    };
    check_head(&head).map_err(|what| Error::ImportLine { line: 1, what })?;
    let mut batch = Vec::new();
    let mut bytes = 0;
    for (place, line) in lines {
        let line = line.map_err(|source| Error::Transfer { source })?;
        if line.trim().is_empty() {
            continue;
        }
        let put = match parse(&line).map_err(|what| Error::ImportLine { line: place + 1, what })? {
            Some(put) => put,
            None => {
                imported.leased += 1;
                continue;
            }
        };
        bytes += put.key.len() + put.value.len();
        batch.push(put);
        if batch.len() >= limits::TXN_OPS || bytes >= limits::REQUEST_BYTES {
            imported.keys += put_all(store, std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
    }
    imported.keys += put_all(store, batch).await?;
    Ok(imported)
}

async fn put_all(store: &Store, puts: Vec<PbPutRequest>) -> Result<u64, Error> {
    let count = puts.len() as u64;
    store
        .write(move |txn| puts.into_iter().try_for_each(|put| txn.put(put).map(drop)))
        .await
        .map_err(|refusal: Refusal| Error::Refused(refusal.to_string()))?;
    Ok(count)
}

fn check_head(line: &str) -> Result<(), String> {
    let head: Head = serde_json::from_str(line).map_err(|error| {
        format!("the first line does not tell an export of this store: {error}")
    })?;
    if head.format != FORMAT {
        return Err(format!("its format is {:?}, not {FORMAT:?}", head.format));
    }
    if head.version > VERSION {
        return Err(format!("its version is {}, this program reads {VERSION}", head.version));
    }
    Ok(())
}

/// The put of a line; `None` when a lease held the key.
fn parse(line: &str) -> Result<Option<PbPutRequest>, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if line.leased {
        return Ok(None);
    }
    let key = bytes(line.key, line.key64).ok_or("its key is missing or not base64")?;
    let value = bytes(line.value, line.value64).ok_or("its value is missing or not base64")?;
    if key.is_empty() {
        return Err("its key is empty".to_owned());
    }
    if key.len() + value.len() > limits::REQUEST_BYTES {
        return Err("it is larger than a request may be".to_owned());
    }
    Ok(Some(PbPutRequest { key, value, ..PbPutRequest::default() }))
}

fn bytes(text: Option<String>, base64: Option<String>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(base64)) => decode64(&base64),
        _ => None,
    }
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(encode64(bytes))),
    }
}

/// RFC 4648 section 4.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for place in 0..3 {
            bits = bits << 8 | u32::from(group.get(place).copied().unwrap_or(0));
        }
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place) & 63) as usize;
            let used = place <= group.len();
            text.push(if used { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    text
}

fn decode64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            let value = ALPHABET.iter().position(|letter| letter == digit)?;
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        bits <<= 6 * (4 - group.len());
        // A group of n digits holds n - 1 bytes.
        bytes.extend(bits.to_be_bytes().iter().skip(1).take(group.len().checked_sub(1)?));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc_both_ways() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(encode64(bytes.as_bytes()), text);
            assert_eq!(decode64(text).unwrap(), bytes.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode64(&encode64(&all)).unwrap(), all);
        for wrong in ["Z", "Zg=", "Z===", "====", "Zg!=", "Zm9vé"] {
            assert!(decode64(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn an_export_imports_into_another_store_and_says_what_it_left_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (from_dir, to_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut text = Vec::new();
        let (from, thread) = Store::open(from_dir.path()).unwrap();
        runtime.block_on(async {
            let (lease, _) = from.write(|txn| txn.grant(None, 60)).await.unwrap();
            for (key, value, lease) in
                [(&b"a"[..], &b"1"[..], 0), (b"\0\xff", b"\xff", 0), (b"session", b"x", lease)]
            {
                let put = PbPutRequest {
                    key: key.to_vec(),
                    value: value.to_vec(),
                    lease,
                    ..PbPutRequest::default()
                };
                from.write(move |txn| txn.put(put)).await.unwrap();
            }
            from.stop_writer().await;
        });
        thread.join().unwrap();
        drop(from);
        let exported = export_dir(from_dir.path(), &mut text).unwrap();
        assert_eq!(exported, Exported { keys: 3, revision: 4 });

        let (to, thread) = Store::open(to_dir.path()).unwrap();
        let imported = runtime.block_on(import_store(&to, text.as_slice())).unwrap();
        assert_eq!(imported, Imported { keys: 2, leased: 1 });
        let value = to.read(|state| state.get(b"\0\xff", 2).map(|version| version.value.to_vec()));
        assert_eq!(value.unwrap(), b"\xff");
        let wrong = runtime.block_on(import_store(&to, &b"{\"key\":\"a\"}\n"[..]));
        assert!(matches!(wrong, Err(Error::ImportLine { line: 1, .. })));
        let mut wrong = text.split(|byte| *byte == b'\n').next().unwrap().to_vec();
        wrong.extend_from_slice(b"\n{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":1}\n");
        let wrong = runtime.block_on(import_store(&to, wrong.as_slice()));
        assert!(matches!(wrong, Err(Error::ImportLine { line: 3, .. })));
        to.stop_writer_now();
        thread.join().unwrap();
    }
}

//! One version of one key, and its form on disk.
//!
//! ```text
//!   table "revisions": (main, sub) -> record
//!   +------+---------+---------+---------+---------+-----+-------+
//!   | kind | create  | version |  lease  | key len | key | value |
//!   |  1   |  8 LE   |  8 LE   |  8 LE   |  4 LE   |     | rest  |
//!   +------+---------+---------+---------+---------+-----+-------+
//!   kind 0: put; kind 1: delete (create, version and lease zero, no value)
//! ```

use std::sync::Arc;

use etcd_client::proto::{PbEvent, PbKeyValue};

const KIND_PUT: u8 = 0;
const KIND_DELETE: u8 = 1;
const HEADER_LEN: usize = 1 + 8 + 8 + 8 + 4;

/// What one version costs in memory besides its key and value: three allocations with their
/// headers, the numbers, and its places in the index and the log.
const VERSION_OVERHEAD: usize = 160;

/// One version of a key: what a put or a delete left behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) key: Arc<[u8]>,
    pub(crate) value: Box<[u8]>,
    /// Revision of this change.
    pub(crate) modified: i64,
    /// Place of this change within its revision.
    pub(crate) sub: u32,
    /// Revision that created the key; 0 in a tombstone.
    pub(crate) created: i64,
    /// Changes since creation, from 1; 0 in a tombstone.
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) deleted: bool,
}

impl Version {
    pub(crate) fn to_pb(&self, keys_only: bool) -> PbKeyValue {
        PbKeyValue {
            key: self.key.to_vec(),
            create_revision: self.created,
            mod_revision: self.modified,
            version: self.version,
            value: if keys_only { Vec::new() } else { self.value.to_vec() },
            lease: self.lease,
        }
    }

    pub(crate) fn to_event(&self, previous: Option<&Self>) -> PbEvent {
        PbEvent {
            r#type: i32::from(self.deleted),
            kv: Some(self.to_pb(false)),
            prev_kv: previous.map(|version| version.to_pb(false)),
        }
    }

    /// Bytes of memory this version stands for.
    pub(crate) fn size(&self) -> usize {
        self.key.len() + self.value.len() + VERSION_OVERHEAD
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.key.len() + self.value.len());
        out.push(if self.deleted { KIND_DELETE } else { KIND_PUT });
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.lease.to_le_bytes());
        // A key is at most a request long, which is far below 4 GiB.
        out.extend_from_slice(&u32::try_from(self.key.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.value);
        out
    }

    /// The version that was stored at (`main`, `sub`), or what is wrong with the bytes.
    pub(crate) fn decode(main: u64, sub: u64, bytes: &[u8]) -> Result<Self, &'static str> {
        let (&kind, rest) = bytes.split_first().ok_or("an empty record")?;
        let deleted = match kind {
            KIND_PUT => false,
            KIND_DELETE => true,
            _ => return Err("a record of unknown kind"),
        };
        let (created, rest) = take_i64(rest)?;
        let (version, rest) = take_i64(rest)?;
        let (lease, rest) = take_i64(rest)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or("a truncated record")?;
        let len = u32::from_le_bytes(*len) as usize;
        let (key, value) = rest.split_at_checked(len).ok_or("a truncated key")?;
        if key.is_empty() {
            return Err("a record without key");
        }
        Ok(Self {
            key: key.into(),
            value: value.into(),
            modified: i64::try_from(main).map_err(|_| "a revision out of range")?,
            sub: u32::try_from(sub).map_err(|_| "a sub-revision out of range")?,
            created,
            version,
            lease,
            deleted,
        })
    }
}

fn take_i64(bytes: &[u8]) -> Result<(i64, &[u8]), &'static str> {
    let (number, rest) = bytes.split_first_chunk::<8>().ok_or("a truncated record")?;
    Ok((i64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(deleted: bool) -> Version {
        Version {
            key: Arc::from(&b"k\0\xff"[..]),
            value: Box::from(&b"v"[..]),
            modified: 7,
            sub: 3,
            created: 5,
            version: 2,
            lease: -9,
            deleted,
        }
    }

    #[test]
    fn a_record_reads_back_as_written() {
        for deleted in [false, true] {
            let version = sample(deleted);
            assert_eq!(Version::decode(7, 3, &version.encode()).unwrap(), version);
        }
    }

    #[test]
    fn no_prefix_of_a_record_panics_or_is_taken_for_one() {
        let bytes = sample(false).encode();
        for len in 0..HEADER_LEN + 3 {
            assert!(Version::decode(7, 3, &bytes[..len]).is_err(), "{len}");
        }
        assert!(Version::decode(7, 3, &[9; 64]).is_err());
        assert!(Version::decode(u64::MAX, 3, &bytes).is_err());
    }
}

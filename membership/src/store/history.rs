//! Looking back: a key as it was, and how many there were.

use etcd_client::GetOptions;

use super::{Entry, Error, Store};
use crate::key::Range;

/// A key at a revision.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// The store's revision when it answered; no member has a lower one that it calls current.
    pub(crate) revision: i64,
    /// The key then; `None` when it was absent.
    pub(crate) entry: Option<Entry>,
}

impl Store {
    /// Reads a full key as it was at `revision`; 0 is now.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] and [`Error::Future`] for a revision that the store does not have any
    /// more, or not yet; else why there is no answer.
    pub(crate) async fn look(&self, key: &[u8], revision: i64) -> Result<Look, Error> {
        let options = (revision != 0).then(|| GetOptions::new().with_revision(revision));
        let answer = self
            .call(|mut c| {
                let (key, options) = (key.to_vec(), options.clone());
                async move { c.kv.get(key, options).await }
            })
            .await?;
        Ok(Look {
            revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision),
            entry: answer.kvs().first().map(Entry::new),
        })
    }

    /// How many keys of a range there were at `revision`; 0 is now.
    ///
    /// # Errors
    ///
    /// As [`Self::look`].
    pub(crate) async fn count(&self, range: Range<'_>, revision: i64) -> Result<usize, Error> {
        let prefix = self.keys().range(range);
        let mut options = GetOptions::new().with_prefix().with_count_only();
        if revision != 0 {
            options = options.with_revision(revision);
        }
        let answer = self
            .call(|mut c| {
                let (prefix, options) = (prefix.clone(), options.clone());
                async move { c.kv.get(prefix, Some(options)).await }
            })
            .await?;
        Ok(usize::try_from(answer.count()).unwrap_or(0))
    }
}

//! Looking back: one key as it was, and who answers.

use etcd_client::GetOptions;

use super::{Entry, Error, Store};

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
}

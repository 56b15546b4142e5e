//! What an administrator asks of a store: its state, compaction, all keys as they are.

use std::sync::{Arc, PoisonError};

use etcd_client::{Compare, CompareOp, TxnOp};

use super::{Connection, Entry, Error, Pages, Store};

/// What one member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Version of the server.
    pub version: String,
    /// Size of its file in bytes.
    pub size: u64,
    /// Bytes of it that are in use.
    pub in_use: u64,
    /// The revision of its latest change.
    pub revision: i64,
    /// Whether it leads.
    pub leads: bool,
    /// Whether it knows a leader.
    pub led: bool,
    /// What is wrong with it.
    pub errors: Vec<String>,
}

/// Which keys are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All keys of the store, whoever uses it.
    All,
    /// Those below `PREFIX/skybridge/`.
    Skybridge,
}

impl Store {
    /// Asks the endpoint for its state; of several endpoints one answers.
    ///
    /// # Errors
    ///
    /// Each variant that says why there is no answer.
    pub async fn member(&self) -> Result<Member, Error> {
        let status = self.call(|mut c| async move { c.maintenance.status().await }).await?;
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Member {
            version: status.version().to_owned(),
            size: bytes(status.db_size()),
            in_use: bytes(status.raft_used_db_size()),
            revision: status.header().map_or(0, etcd_client::ResponseHeader::revision),
            leads: status.leader() == status.header().map_or(0, |header| header.member_id()),
            led: status.leader() != 0,
            errors: status.errors().to_vec(),
        })
    }

    /// Forgets the history below `revision`.
    ///
    /// # Errors
    ///
    /// [`Error::Compacted`] when that is done already, else why it is not done.
    pub async fn compact(&self, revision: i64) -> Result<(), Error> {
        let compacted = self.call(|mut c| async move { c.kv.compact(revision, None).await }).await;
        compacted.map(|_| ())
    }

    /// Gives free space of the endpoint's file back; of several endpoints one does.
    ///
    /// # Errors
    ///
    /// Why it is not done.
    pub async fn defragment(&self) -> Result<(), Error> {
        self.call(|mut c| async move { c.maintenance.defragment().await }).await.map(|_| ())
    }

    /// Reads the files of certificates and keys anew, with the configuration as it is. Open watches
    /// and sessions move over when their streams end.
    pub fn refresh(&self) {
        let mut current = self.inner.connection.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(Connection::new(current.config.clone()));
    }

    /// The first page of a listing; [`Self::page`] gives it and the further ones.
    pub(crate) fn pages(&self, scope: Scope) -> Pages {
        match scope {
            Scope::All => Pages::everything(),
            Scope::Skybridge => Pages::new(self.keys().root().trim_end_matches("v1/")),
        }
    }

    /// Keys by their bytes, at one revision; those that are not there are left out.
    pub(crate) async fn raw(&self, keys: &[&[u8]]) -> Result<Vec<Entry>, Error> {
        let reads = keys.iter().map(|key| TxnOp::get(*key, None)).collect();
        Ok(self.read(reads).await?.reads.into_iter().flatten().collect())
    }

    /// Puts keys that are at the revisions given (0: absent), all or none. False when one is not.
    pub(crate) async fn put_raw(&self, puts: &[(&[u8], &[u8], i64)]) -> Result<bool, Error> {
        let unchanged =
            puts.iter().map(|(key, _, at)| Compare::mod_revision(*key, CompareOp::Equal, *at));
        let ops = puts.iter().map(|(key, value, _)| TxnOp::put(*key, *value, None));
        Ok(self.txn(unchanged.collect(), ops.collect(), Vec::new()).await?.succeeded)
    }
}

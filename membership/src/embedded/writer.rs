//! The writer thread: the only one that changes anything, with group commit.
//!
//! # Theory of operation
//!
//! It waits for a command, takes what else is queued (bounded in number and bytes), applies each in
//! memory above the visible revision, commits all in one durable transaction, publishes, and
//! answers. While the disk syncs, the next batch gathers in the queue: the more writers wait,
//! the more share one sync. Compaction and defragmentation run alone between batches.
//!
//! After a failed commit nothing is written any more: what was applied stays invisible, every
//! later write is refused with the cause, and a restart reads the truth from the disk.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};

use super::backend::{Backend, Changes};
use super::error::Refusal;
use super::limits;
use super::mvcc::FIRST_REVISION;
use super::store::Shared;
use super::txn::WriteTxn;

/// Answers a request once its batch is on disk (or has failed).
pub(crate) type Ack = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

/// A request to run on the writer thread; it gets a refusal in place of the store when the store
/// cannot write any more.
pub(crate) type Job = Box<dyn FnOnce(Result<&mut WriteTxn<'_>, Refusal>) -> Ack + Send>;

/// What the writer does.
pub(crate) enum Command {
    /// Forget the history below a revision.
    Compact { at: i64, reply: oneshot::Sender<Result<(), Refusal>> },
    /// Shrink the file.
    Defragment { reply: oneshot::Sender<Result<(), Refusal>> },
    /// End the thread; what is queued behind it is refused.
    Stop,
    /// Change something.
    Write(Job),
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    backend: Backend,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, backend: Backend) -> Self {
        Self { shared, backend }
    }

    /// Works until it is stopped or every sender is gone. Blocks: for a thread of its own.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut next = None;
        while let Some(command) = next.take().or_else(|| commands.blocking_recv()) {
            match command {
                Command::Write(job) => next = self.batch(job, &mut commands),
                Command::Compact { at, reply } => {
                    // The asker may have gone; the work is done all the same.
                    let _ = reply.send(self.compact(at));
                }
                Command::Defragment { reply } => {
                    let _ = reply.send(self.defragment());
                }
                Command::Stop => return,
            }
            self.shared.set_file_size(self.backend.file_size());
        }
    }

    /// Runs `first` and what else is queued in one commit; gives back the command that ended it.
    fn batch(&self, first: Job, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        let mut changes = Changes::default();
        let mut acks = Vec::new();
        let mut bytes = 0;
        let mut job = first;
        let next = loop {
            let before = changes.versions.len();
            acks.push(match self.shared.check_writable() {
                Err(refusal) => job(Err(refusal)),
                Ok(()) => self.shared.apply(&mut changes, Instant::now(), job),
            });
            let added = changes.versions.iter().skip(before);
            bytes += added.map(|version| version.size()).sum::<usize>();
            if acks.len() >= limits::BATCH_REQUESTS || bytes >= limits::BATCH_BYTES {
                break None;
            }
            match commands.try_recv() {
                Ok(Command::Write(next)) => job = next,
                Ok(other) => break Some(other),
                Err(_) => break None,
            }
        };
        let outcome = self.commit(&changes);
        for ack in acks {
            ack(outcome.clone());
        }
        if outcome.is_ok() {
            self.trim_history();
        }
        next
    }

    /// Makes `changes` durable and then visible.
    fn commit(&self, changes: &Changes) -> Result<(), Refusal> {
        if changes.is_empty() {
            return Ok(());
        }
        let revision = self.shared.read(|state| state.applied());
        match self.backend.commit(changes, revision) {
            Ok(()) => {
                self.shared.publish();
                Ok(())
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    fn fail(&self, error: &redb::Error) -> Refusal {
        error!(%error, "the store cannot write and refuses all changes until it is restarted");
        let cause = error.to_string();
        self.shared.fail(cause.clone());
        Refusal::StorageFailed(cause)
    }

    fn compact(&self, at: i64) -> Result<(), Refusal> {
        self.shared.check_writable()?;
        let forgotten = self.shared.compact(at)?;
        let changes = Changes { compaction: Some((at, forgotten)), ..Changes::default() };
        self.commit(&changes)
    }

    fn defragment(&mut self) -> Result<(), Refusal> {
        self.shared.check_writable()?;
        self.backend.defragment().map_err(|error| self.fail(&error))
    }

    /// Compacts by itself when the history is longer or larger than its bounds.
    fn trim_history(&self) {
        let at = self.shared.read(|state| {
            let first = state.compacted().max(FIRST_REVISION);
            let length = state.visible() - first;
            if length > limits::HISTORY_REVISIONS + limits::HISTORY_REVISIONS / 10 {
                Some(state.visible() - limits::HISTORY_REVISIONS)
            } else if state.history_bytes() > limits::HISTORY_BYTES && length > 0 {
                // The older half; the rest follows with the next commits if it is not enough.
                Some(state.visible() - length / 2)
            } else {
                None
            }
        });
        if let Some(at) = at {
            debug!(revision = at, "compacting the history to its bounds");
            if let Err(error) = self.compact(at) {
                warn!(%error, "the history could not be compacted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use etcd_client::proto::PbPutRequest;

    use super::super::mvcc::State;
    use super::super::store::Store;
    use super::*;

    fn put(key: &str, value_len: usize) -> PbPutRequest {
        PbPutRequest { key: key.into(), value: vec![0; value_len], ..PbPutRequest::default() }
    }

    fn with_store(test: impl AsyncFn(&Store)) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (store, thread) = Store::open(dir.path()).unwrap();
        runtime.block_on(test(&store));
        store.stop_writer_now();
        thread.join().unwrap();
    }

    #[test]
    fn the_history_is_bounded_in_revisions() {
        with_store(async |store| {
            let last = limits::HISTORY_REVISIONS * 12 / 10;
            let writes: Vec<_> =
                (0..last).map(|_| store.write(|txn| txn.put(put("k", 1)))).collect();
            for write in futures(writes).await {
                write.unwrap();
            }
            store.read(|state| {
                assert_eq!(state.visible(), last + 1);
                let kept = state.visible() - state.compacted();
                let most = limits::HISTORY_REVISIONS * 11 / 10 + 1;
                assert!((limits::HISTORY_REVISIONS..=most).contains(&kept), "{kept}");
                assert_eq!(state.versions().count() as i64, kept + 1);
            });
        });
    }

    #[test]
    fn the_history_is_bounded_in_bytes() {
        with_store(async |store| {
            for _ in 0..150 {
                store.write(|txn| txn.put(put("k", 1_000_000))).await.unwrap();
            }
            let bytes = store.read(State::history_bytes);
            assert!(bytes <= limits::HISTORY_BYTES, "{bytes}");
        });
    }

    #[test]
    fn live_data_is_bounded_and_deletes_are_taken() {
        with_store(async |store| {
            let large = || put("k", limits::LIVE_BYTES);
            let refused = store.write(move |txn| txn.put(large())).await;
            assert_eq!(refused, Err(Refusal::NoSpace));
            store.write(|txn| txn.put(put("k", 1))).await.unwrap();
            assert_eq!(store.read(State::visible), 2);
        });
    }

    #[test]
    fn requests_that_wait_share_a_commit() {
        with_store(async |store| {
            let commits = Arc::new(AtomicUsize::new(0));
            let mut visible = store.subscribe();
            let counted = Arc::clone(&commits);
            let writes: Vec<_> = (0..500)
                .map(|n| store.write(move |txn| txn.put(put(&format!("k{n}"), 1))))
                .collect();
            let count = async {
                while visible.changed().await.is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    if *visible.borrow() == 501 {
                        return;
                    }
                }
            };
            tokio::join!(futures(writes), count);
            let commits = commits.load(Ordering::Relaxed);
            assert!(commits < 100, "{commits} commits for 500 writes");
        });
    }

    /// All of `futures`, running at once.
    async fn futures<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
        let mut futures: Vec<_> = futures.into_iter().map(Box::pin).map(Some).collect();
        let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
        std::future::poll_fn(move |context| {
            for (future, done) in futures.iter_mut().zip(&mut done) {
                if let Some(running) = future
                    && let std::task::Poll::Ready(value) = running.as_mut().poll(context)
                {
                    *done = Some(value);
                    *future = None;
                }
            }
            if futures.iter().all(Option::is_none) {
                return std::task::Poll::Ready(done.iter_mut().filter_map(Option::take).collect());
            }
            std::task::Poll::Pending
        })
        .await
    }

    #[test]
    fn after_a_failed_commit_nothing_is_written_and_reads_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::without_thread(dir.path()).unwrap();
        let write = |writer: &mut Writer, value_len: usize| {
            let (sender, mut receiver) = oneshot::channel();
            let job: Job = Box::new(move |txn| {
                let outcome = txn.and_then(|txn| txn.put(put("k", value_len)).map(drop));
                Box::new(move |durable| drop(sender.send(durable.and(outcome))))
            });
            let (_, mut none) = mpsc::channel(1);
            assert!(writer.batch(job, &mut none).is_none());
            receiver.try_recv().unwrap()
        };
        assert_eq!(write(&mut writer, 1), Ok(()));
        writer.fail(&redb::Error::Corrupted("the disk is gone".to_owned()));
        let refused = write(&mut writer, 2).unwrap_err();
        assert!(refused.to_string().contains("the disk is gone"), "{refused}");
        assert!(writer.compact(2).is_err() && writer.defragment().is_err());
        let value = store.read(|state| state.get(b"k", state.visible()).map(|kv| kv.value.len()));
        assert_eq!(value, Some(1));
    }
}

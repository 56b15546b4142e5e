//! The readers' end.

use core::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::snapshot::Snapshot;
use crate::writer::{Limits, Writer};

/// Loads the current snapshot. Clone one for each thread.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<ArcSwap<Snapshot>>,
}

/// A snapshot on loan: dereferences to it, and gives it back when dropped.
///
/// Meant for one turn of a worker. Keep few per thread, and not for long: the snapshot stays in
/// memory meanwhile.
pub struct Loaded(Guard<Arc<Snapshot>>);

/// The two ends of new, empty tables with default limits.
#[must_use]
pub fn channel() -> (Writer, Reader) {
    channel_with(Limits::default())
}

/// The two ends of new, empty tables.
#[must_use]
pub fn channel_with(limits: Limits) -> (Writer, Reader) {
    let writer = Writer::new(limits);
    let shared = writer.shared();
    (writer, Reader { shared })
}

impl Reader {
    /// The current snapshot. Never waits; costs a few nanoseconds and no shared counter.
    #[must_use]
    pub fn load(&self) -> Loaded {
        Loaded(self.shared.load())
    }

    /// The current snapshot for keeping, as a listing does. Touches a shared counter.
    ///
    /// The writer frees it after the last of these is dropped, unless the writer is gone or had
    /// too many to wait for.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.shared.load_full()
    }
}

impl Deref for Loaded {
    type Target = Snapshot;

    #[inline]
    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl core::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Loaded").field(&self.generation()).finish()
    }
}

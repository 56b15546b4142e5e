//! Which VTEPs valid datagrams came from lately: a host whose lease ended stays in flood lists for
//! as long as it is heard.

use std::sync::atomic::{AtomicBool, Ordering};

use fdb::VtepKey;

/// VTEPs that are followed; those beyond are never reported as heard.
pub const SLOTS: usize = 65_536;

/// One mark per VTEP slot, set by the workers and taken by the control plane.
#[derive(Debug)]
pub struct Heard(Box<[AtomicBool]>);

impl Default for Heard {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicBool::new(false)).collect())
    }
}

impl Heard {
    /// Notes a datagram of `vtep`. A set mark is only read, so that workers do not fight for its
    /// cache line.
    #[inline]
    pub fn mark(&self, vtep: VtepKey) {
        if let Some(mark) = self.0.get(vtep.0 as usize)
            && !mark.load(Ordering::Relaxed)
        {
            mark.store(true, Ordering::Relaxed);
        }
    }

    /// Whether `vtep` was heard since the last call.
    pub fn take(&self, vtep: VtepKey) -> bool {
        self.0.get(vtep.0 as usize).is_some_and(|mark| mark.swap(false, Ordering::Relaxed))
    }
}

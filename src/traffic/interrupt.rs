//! SIGINT and SIGTERM end a sender as its time would: it asks for the report and prints it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// How often a loop asks.
const EVERY: Duration = Duration::from_millis(10);

/// Holds both signals back from this thread and from those that it starts, to the end of the
/// process: one that comes when all is sent must not cost the report, and the wait for that is short.
pub(super) struct Interrupt {
    /// `None` where the system has none to give; then the signals do what they always do.
    file: Option<SignalFd>,
    came: AtomicBool,
}

impl Interrupt {
    pub(super) fn begin() -> Self {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let file = SignalFd::with_flags(&signals, flags).ok();
        let file = file.filter(|_| signals.thread_block().is_ok());
        Self { file, came: AtomicBool::new(false) }
    }

    /// For one loop.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { interrupt: self, next: Instant::now() }
    }

    pub(super) fn came(&self) -> bool {
        // Read once, told to every loop.
        if let Some(file) = &self.file
            && matches!(file.read_signal(), Ok(Some(_)))
        {
            self.came.store(true, Ordering::Relaxed);
        }
        self.came.load(Ordering::Relaxed)
    }
}

pub(super) struct Watch<'a> {
    interrupt: &'a Interrupt,
    next: Instant,
}

impl Watch<'_> {
    /// Whether it is time to end, looked up at most every 10 ms.
    pub(super) fn over(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + EVERY;
        self.interrupt.came()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_signal_is_told_to_every_loop_and_kills_nobody() {
        let interrupt = Interrupt::begin();
        let [mut one, mut other] = [interrupt.watch(), interrupt.watch()];
        let now = Instant::now();
        assert!(!one.over(now) && !other.over(now));
        // To this thread alone: the other tests of the process go on.
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        assert!(!one.over(now), "not asked again so soon");
        let later = now + EVERY;
        assert!(one.over(later) && other.over(later) && one.over(later + EVERY));
    }
}

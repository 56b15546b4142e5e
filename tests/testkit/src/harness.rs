//! The harness: which tests there are, what they need, and which may run side by side.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Trial};

use crate::capability::{Cap, missing};

/// The most tests that run at a time: each starts several agents, and they must not starve.
const MAX_THREADS: usize = 2;
/// The list at the end has this many tests.
const LONGEST: usize = 20;

thread_local! {
    static CURRENT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The name of the test that this thread runs.
pub(crate) fn current_test() -> String {
    let name = CURRENT.with_borrow(String::clone);
    if name.is_empty() { "a test".to_owned() } else { name }
}

/// The tests of one binary.
#[derive(Debug, Default)]
pub struct Suite {
    trials: Vec<Trial>,
    /// Those that measure time come last: among the others each would wait for what runs beside
    /// it, and what comes next would wait for it.
    timed: Vec<Trial>,
    /// Ordinary tests share it, those that measure time hold it alone.
    machine: Arc<RwLock<()>>,
    clock: Arc<Clock>,
}

/// What each test took that passed.
#[derive(Debug, Default)]
struct Clock(Mutex<Vec<(Duration, String)>>);

impl Clock {
    fn run(&self, body: impl FnOnce()) {
        let started = Instant::now();
        body();
        let took = (started.elapsed(), current_test());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }

    /// Where the time of a run went: what to look at when it is too long.
    fn report(&self) {
        let mut took = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        took.sort();
        let mut text = "The longest:\n".to_owned();
        for (time, name) in took.iter().rev().take(LONGEST) {
            let _infallible = writeln!(text, "{:7.1} s  {name}", time.as_secs_f64());
        }
        // Nobody reads what goes into a closed pipe.
        let _: std::io::Result<()> = std::io::stdout().write_all(text.as_bytes());
    }
}

impl Suite {
    /// A suite without tests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a test; it is listed as ignored, with the reason, where one of `caps` is missing.
    pub fn test(
        &mut self,
        name: impl Into<String>,
        caps: &'static [Cap],
        body: impl FnOnce() + Send + 'static,
    ) {
        let (machine, clock) = (Arc::clone(&self.machine), Arc::clone(&self.clock));
        self.trials.push(trial(name.into(), caps, move || {
            let _shared = machine.read().unwrap_or_else(PoisonError::into_inner);
            clock.run(body);
        }));
    }

    /// Adds a test that measures time: it has the machine for itself.
    pub fn timed(
        &mut self,
        name: impl Into<String>,
        caps: &'static [Cap],
        body: impl FnOnce() + Send + 'static,
    ) {
        let (machine, clock) = (Arc::clone(&self.machine), Arc::clone(&self.clock));
        self.timed.push(trial(name.into(), caps, move || {
            let _alone = machine.write().unwrap_or_else(PoisonError::into_inner);
            clock.run(body);
        }));
    }

    /// Runs what the command line asks for and ends the process.
    pub fn run(mut self) -> ! {
        let mut arguments = Arguments::from_args();
        arguments.test_threads =
            Some(arguments.test_threads.map_or(MAX_THREADS, |threads| threads.min(MAX_THREADS)));
        crate::sweep();
        self.trials.append(&mut self.timed);
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        if !arguments.list {
            self.clock.report();
        }
        conclusion.exit()
    }
}

fn trial(name: String, caps: &'static [Cap], body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name.clone(), move || match missing(caps)? {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => {
            CURRENT.set(name);
            body();
            Ok(Completion::Completed)
        }
    })
}

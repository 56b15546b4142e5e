//! The harness: which tests there are, what they need, and which may run side by side.

use std::cell::RefCell;
use std::sync::{Arc, RwLock};

use libtest_mimic::{Arguments, Completion, Trial};

use crate::capability::{Cap, missing};

/// The most tests that run at a time: each starts several agents, and they must not starve.
const MAX_THREADS: usize = 2;

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
    /// Ordinary tests share it, those that measure time hold it alone.
    machine: Arc<RwLock<()>>,
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
        let machine = Arc::clone(&self.machine);
        self.add(name, caps, move || {
            let _shared = machine.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            body();
        });
    }

    /// Adds a test that measures time: it has the machine for itself.
    pub fn timed(
        &mut self,
        name: impl Into<String>,
        caps: &'static [Cap],
        body: impl FnOnce() + Send + 'static,
    ) {
        let machine = Arc::clone(&self.machine);
        self.add(name, caps, move || {
            let _alone = machine.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            body();
        });
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        caps: &'static [Cap],
        body: impl FnOnce() + Send + 'static,
    ) {
        let name = name.into();
        let trial = Trial::ignorable_test(name.clone(), move || match missing(caps)? {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => {
                CURRENT.set(name);
                body();
                Ok(Completion::Completed)
            }
        });
        self.trials.push(trial);
    }

    /// Runs what the command line asks for and ends the process.
    pub fn run(self) -> ! {
        let mut arguments = Arguments::from_args();
        arguments.test_threads =
            Some(arguments.test_threads.map_or(MAX_THREADS, |threads| threads.min(MAX_THREADS)));
        crate::sweep();
        libtest_mimic::run(&arguments, self.trials).exit()
    }
}

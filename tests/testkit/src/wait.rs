use std::thread;
use std::time::{Duration, Instant};

/// Waits until `condition` gives a value, and gives it with the time that took.
///
/// # Panics
///
/// After `deadline`, with `what` in the message.
#[track_caller]
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return (value, started.elapsed());
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_gives_its_value() {
        let mut left = 3;
        let (value, elapsed) = wait_until("three steps", Duration::from_secs(5), || {
            left -= 1;
            (left == 0).then_some("there")
        });
        assert_eq!(value, "there");
        assert!(elapsed >= Duration::from_millis(10));
    }

    #[test]
    #[should_panic(expected = "not within 20ms: the impossible")]
    fn a_condition_that_stays_false_panics_with_its_name() {
        wait_until("the impossible", Duration::from_millis(20), || None::<()>);
    }
}

//! Scheduling of the calling thread (`setpriority(2)`).

use std::io;

/// Sets the nice value of the calling thread only, -20 (first) to 19 (last): on Linux it belongs to
/// the thread, not to the process.
///
/// # Errors
/// `EACCES` when a lower value than the present one is asked for without `CAP_SYS_NICE` or a
/// sufficient `RLIMIT_NICE`.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: `setpriority` takes no pointer; 0 names the calling thread.
    super::check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touches_the_calling_thread_only() {
        let nice = |who| {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{who}/stat")).unwrap();
            let behind_name = stat.rsplit_once(") ").unwrap().1.to_owned();
            behind_name.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let main = std::process::id();
        let before = nice(main);
        std::thread::spawn(move || {
            set_nice(before + 3).unwrap();
            assert_eq!(nice(nix::unistd::gettid().as_raw().unsigned_abs()), before + 3);
        })
        .join()
        .unwrap();
        assert_eq!(nice(main), before);
    }
}

//! Programs: short ones with a time limit, long ones with their output in files.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The time that a command gets unless it asks for more.
const LIMIT: Duration = Duration::from_secs(60);

/// What a command came to.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// Exit code, or the signal that ended it.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Finished {
    /// The exit code, −signal if there is none.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| -self.status.signal().unwrap_or(1))
    }

    /// Panics with everything known unless the command succeeded.
    #[track_caller]
    #[must_use]
    pub fn expect_success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    ///
    /// If it is not JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|err| panic!("{err} in {self}"))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {} after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.status, self.elapsed, self.stdout, self.stderr
        )
    }
}

/// Runs `command` to its end, for at most a minute.
///
/// # Panics
///
/// If it cannot be started or takes longer.
#[track_caller]
pub fn run(command: Command) -> Finished {
    run_within(command, LIMIT)
}

/// Runs `command` to its end, for at most `limit`.
///
/// # Panics
///
/// If it cannot be started or takes longer.
#[track_caller]
pub fn run_within(mut command: Command, limit: Duration) -> Finished {
    let line = command_line(&command);
    // Files and not pipes: nothing blocks on output that nobody reads.
    let mut stdout = tempfile::tempfile().expect("the temporary directory takes files");
    let mut stderr = tempfile::tempfile().expect("the temporary directory takes files");
    let clone = |file: &File| file.try_clone().expect("a file descriptor is free");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(clone(&stdout))
        .stderr(clone(&stderr))
        .spawn()
        .unwrap_or_else(|err| panic!("cannot start `{line}`: {err}"));
    let mut nap = Duration::from_micros(200);
    let (status, late) = loop {
        match child.try_wait() {
            Ok(Some(status)) => break (status, false),
            Ok(None) if started.elapsed() < limit => {
                thread::sleep(nap);
                nap = (nap * 2).min(Duration::from_millis(2));
            }
            Ok(None) => {
                let _: std::io::Result<()> = child.kill();
                break (child.wait().expect("our own child can be waited for"), true);
            }
            Err(err) => panic!("cannot wait for `{line}`: {err}"),
        }
    };
    let elapsed = started.elapsed();
    let finished = Finished {
        command: line,
        status,
        stdout: contents(&mut stdout),
        stderr: contents(&mut stderr),
        elapsed,
    };
    assert!(!late, "more than {limit:?}: {finished}");
    finished
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .expect("a temporary file can be read back");
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn command_line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A program that goes on until it is stopped; killed when dropped.
#[derive(Debug)]
pub struct Process {
    line: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `LOGS/NAME.out` and `LOGS/NAME.log`.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    pub fn spawn(mut command: Command, logs: &Path, name: &str) -> Self {
        let line = command_line(&command);
        let stdout = logs.join(format!("{name}.out"));
        let stderr = logs.join(format!("{name}.log"));
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap_or_else(|err| panic!("cannot write {}: {err}", path.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open(&stdout))
            .stderr(open(&stderr))
            .spawn()
            .unwrap_or_else(|err| panic!("cannot start `{line}`: {err}"));
        Self { line, child, stdout, stderr }
    }

    /// The process id; `nsenter` has become the program itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True until it has ended.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.running()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _: nix::Result<()> = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end by itself.
    ///
    /// # Panics
    ///
    /// If it still runs after `limit`.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let started = Instant::now();
        while self.running() && started.elapsed() < limit {
            thread::sleep(Duration::from_millis(2));
        }
        let ended = !self.running();
        if !ended {
            self.signal(Signal::SIGKILL);
        }
        let status = self.child.wait().expect("our own child can be waited for");
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let finished = Finished {
            command: self.line.clone(),
            status,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            elapsed: started.elapsed(),
        };
        assert!(ended, "more than {limit:?}: {finished}");
        finished
    }

    /// Asks it to end and kills it if it has not within `limit`; true if it ended when asked.
    pub fn stop(&mut self, limit: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        let started = Instant::now();
        while self.running() {
            if started.elapsed() >= limit {
                self.kill();
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Kills it at once and reaps it.
    pub fn kill(&mut self) {
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<ExitStatus> = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_gives_its_output_and_code() {
        let finished = run(shell("echo out; echo err >&2; exit 3"));
        assert_eq!(finished.code(), 3);
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    #[should_panic(expected = "more than 50ms")]
    fn a_command_that_hangs_is_ended() {
        let _ = run_within(shell("exec sleep 20"), Duration::from_millis(50));
    }

    #[test]
    fn a_process_is_stopped_and_its_output_kept() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.01; done";
        let mut process = Process::spawn(shell(script), dir.path(), "p");
        let log = dir.path().join("p.out");
        crate::wait_until("the first line", Duration::from_secs(5), || {
            fs::read_to_string(&log).is_ok_and(|text| text == "up\n").then_some(())
        });
        assert!(process.running());
        assert!(process.stop(Duration::from_secs(5)));
        assert_eq!(fs::read_to_string(&log).unwrap(), "up\nasked\n");
    }
}

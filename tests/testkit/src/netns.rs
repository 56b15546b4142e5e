//! Network namespaces with a name, for as long as a value lives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::process::{Finished, run};

/// Where `ip netns` keeps names.
const DIRECTORY: &str = "/run/netns";
/// First letters of every name made here; the process id follows.
const PREFIX: &str = "skt";

/// A prefix for names that no other lab of this machine uses: `sktPID-N`.
pub(crate) fn unique_prefix() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Removes the namespaces of test runs that were killed, and what still runs in them.
///
/// A run is known by its process id in the name; one whose process lives is left alone.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !fs::exists(format!("/proc/{owner}")).unwrap_or(true) {
            drop(Netns { name, ours: true });
        }
    }
}

/// A named network namespace; removed with all its processes when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    /// Whether what runs inside was started for it.
    ours: bool,
}

impl Netns {
    /// Makes the namespace and brings its loopback up. IPv6 duplicate address detection is off
    /// for all interfaces to come: it would cost each of them a second.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[track_caller]
    pub fn create(name: impl Into<String>) -> Self {
        let name = name.into();
        let mut command = Command::new("ip");
        command.args(["netns", "add", &name]);
        let _ = run(command).expect_success();
        let netns = Self { name, ours: true };
        netns.ip("link set lo up");
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0");
        netns
    }

    /// Gives the namespace of a process a name, which goes when the value is dropped; the processes
    /// inside are left alone.
    ///
    /// # Panics
    ///
    /// If there is no such process, or the name is taken.
    #[track_caller]
    pub(crate) fn of_process(name: &str, pid: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "attach", name, pid]);
        let _ = run(command).expect_success();
        Self { name: name.to_owned(), ours: false }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&self.name)
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a program inside and gives its result, whatever it is.
    #[track_caller]
    pub fn try_exec(&self, program: &str, args: &[&str]) -> Finished {
        let mut command = self.command(program);
        command.args(args);
        run(command)
    }

    /// Runs a program inside and gives its output.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn exec(&self, program: &str, args: &[&str]) -> String {
        self.try_exec(program, args).expect_success().stdout
    }

    /// Runs `ip` inside with the words of `args`.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn ip(&self, args: &str) -> String {
        self.tool("ip", args)
    }

    /// Runs `bridge` inside with the words of `args`.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn bridge(&self, args: &str) -> String {
        self.tool("bridge", args)
    }

    /// iproute2 changes the namespace itself, which saves a process.
    #[track_caller]
    fn tool(&self, program: &str, args: &str) -> String {
        let mut command = Command::new(program);
        command.args(["-n", &self.name]).args(args.split_whitespace());
        run(command).expect_success().stdout
    }

    /// Like [`ip`](Self::ip) with `-j`, parsed.
    ///
    /// # Panics
    ///
    /// If it fails or does not give JSON.
    #[track_caller]
    pub fn ip_json(&self, args: &str) -> serde_json::Value {
        let text = self.ip(&format!("-j {args}"));
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).unwrap_or_else(|err| panic!("{err} in {text}"))
    }

    /// Sets a kernel parameter inside, by its path below `/proc/sys`; one that this kernel does
    /// not have is left out.
    pub fn sysctl(&self, path: &str, value: &str) {
        self.enter(|| {
            // `/proc/sys/net` shows the namespace of the thread that opens it.
            let _: std::io::Result<()> = fs::write(format!("/proc/sys/{path}"), value);
        });
    }

    /// Switches features of an interface on or off with ethtool; features that the device does not
    /// let change are left as they are.
    #[track_caller]
    pub fn ethtool(&self, interface: &str, features: &[&str], on: bool) {
        for feature in features {
            let value = if on { "on" } else { "off" };
            let _ = self.try_exec("ethtool", &["-K", interface, feature, value]);
        }
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay inside.
    ///
    /// # Panics
    ///
    /// If the namespace cannot be entered, and when `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        enter(&self.path(), work)
    }

    /// The ids of the processes inside.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let mut command = Command::new("ip");
        command.args(["netns", "pids", &self.name]);
        let output = command.output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// Runs `work` on a thread of its own inside the namespace at `path`.
pub(crate) fn enter<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let entered = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(path)
                .unwrap_or_else(|err| panic!("cannot open {}: {err}", path.display()));
            setns(file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|err| panic!("cannot enter {}: {err}", path.display()));
            work()
        });
        thread.join()
    });
    entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing else than what was started for this namespace runs in one of ours.
        for pid in if self.ours { self.pids() } else { Vec::new() } {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _: nix::Result<()> = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _: std::io::Result<std::process::Output> =
            Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

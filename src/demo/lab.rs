//! Hosts, wires and containers made of network namespaces on this machine.
//!
//! # Theory of operation
//!
//! ```text
//!   host h1 ─ eth0 ─┐                     ┌─ eth0 ─ host h2
//!   192.0.2.1       ├─ br0 in the switch ─┤       192.0.2.2
//!   host h3 ─ eth0 ─┘
//! ```
//!
//! Every namespace has a name of its own with the process id in it, so that two labs never meet.
//! Whatever is made is noted at once, and `Drop` takes it down again: processes first, then
//! namespaces, then files. Topology is built with the `ip` program, which users can repeat by hand;
//! programs are started with `nsenter`, because `ip netns exec` would give an agent a mount
//! namespace in which its pins are lost.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How the wire between hosts behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// veth as it is: super-frames cross it unsegmented, like a NIC with every tunnel offload.
    Offloading,
    /// No transmit offload: every packet is cut and checksummed before the wire.
    Plain,
}

/// Why the lab cannot be built, or a program in it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program ended with an error.
    #[error("`{command}` failed: {message}")]
    Command {
        /// What was run.
        command: String,
        /// What it said.
        message: String,
    },
    /// The machine lacks something.
    #[error("{what}: {next}")]
    Lacking {
        /// What.
        what: String,
        /// What to do.
        next: &'static str,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A file or process could not be made.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A running lab.
pub struct Lab {
    prefix: String,
    dir: PathBuf,
    hosts: usize,
    namespaces: Vec<String>,
    children: Vec<Child>,
    keep: bool,
}

impl Lab {
    /// Checks what is needed and builds `hosts` hosts on one switch.
    ///
    /// # Errors
    /// [`Error::Lacking`] with the next step, or the command that failed; what was made is removed.
    pub fn new(hosts: usize, underlay: Underlay) -> Result<Self, Error> {
        require()?;
        let prefix = format!("sbdemo{}", std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        let io = |what: String| move |source| Error::Io { what, source };
        fs::create_dir_all(&dir).map_err(io(format!("make {}", dir.display())))?;
        let mut lab =
            Self { prefix, dir, hosts, namespaces: Vec::new(), children: Vec::new(), keep: false };
        let switch = lab.add_namespace("sw")?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for number in 1..=hosts {
            let host = lab.add_namespace(&format!("h{number}"))?;
            let port = format!("p{number}");
            let address = format!("{}/24", lab.address(number));
            ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &host,
            ])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &host, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &host, "link", "set", "eth0", "up"])?;
            if underlay == Underlay::Plain {
                plain(&switch, &port)?;
                plain(&host, "eth0")?;
            }
        }
        Ok(lab)
    }

    /// Leaves everything up at the end.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// How many hosts there are.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// The namespace called `suffix` in this lab.
    #[must_use]
    pub fn namespace(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.prefix)
    }

    /// The underlay address of host `number`, from 1.
    #[must_use]
    pub fn address(&self, number: usize) -> String {
        format!("192.0.2.{number}")
    }

    /// The folder for files of the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes one more namespace with its loopback up and returns its full name.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_namespace(&mut self, suffix: &str) -> Result<String, Error> {
        let name = self.namespace(suffix);
        // Noted first: an interrupt may end `ip` when the namespace is there already.
        self.namespaces.push(name.clone());
        ip(&["netns", "add", &name])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        // Docker's bridge-netfilter hook would cost every frame of a kernel bridge a rule walk.
        for knob in ["iptables", "ip6tables", "arptables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{knob}");
            let _ = self
                .command(&name, "sh", &["-c", &format!("[ ! -e {path} ] || echo 0 > {path}")])
                .output();
        }
        Ok(name)
    }

    /// `program` to be run in `namespace`.
    #[must_use]
    pub fn command(&self, namespace: &str, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(program).args(args);
        command
    }

    /// Starts `program` in `namespace` with its output in `NAME.log` of the lab's folder, to be
    /// ended with the lab.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &mut self,
        namespace: &str,
        name: &str,
        program: &str,
        args: &[&str],
    ) -> Result<(), Error> {
        let io = |what: String| move |source| Error::Io { what, source };
        let path = self.log(name);
        let log = fs::File::create(&path).map_err(io(format!("write {}", path.display())))?;
        let copy = log.try_clone().map_err(io(format!("write {}", path.display())))?;
        let child = self
            .command(namespace, program, args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy)
            // An interrupt at the terminal is for the demo, which ends its programs in order.
            .process_group(0)
            .spawn()
            .map_err(io(format!("start {program}")))?;
        self.children.push(child);
        Ok(())
    }

    /// The log of what was started as `name`.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Whether all that was started still runs; the exit status of the first that does not.
    pub fn ended(&mut self) -> Option<String> {
        self.children.iter_mut().find_map(|child| {
            let status = child.try_wait().ok().flatten()?;
            Some(status.to_string())
        })
    }

    /// The process ids of what was started, in order.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.children.iter().map(Child::id)
    }

    /// Ends everything that was started, in order, and waits for it.
    pub fn stop(&mut self) {
        for child in &mut self.children {
            let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        self.stop();
        for name in self.namespaces.iter().rev() {
            let _ = ip(&["netns", "del", name]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// [`Error::Command`] with what it said.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let text = format!("{command:?}").replace('"', "");
    let failed = |message: String| Error::Command { command: text.clone(), message };
    let output: Output =
        command.stdin(Stdio::null()).output().map_err(|err| failed(err.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Err(failed(said))
}

/// Runs `ip` with `args`.
///
/// # Errors
/// [`Error::Command`] with what it said.
pub fn ip(args: &[&str]) -> Result<String, Error> {
    run(Command::new("ip").args(args))
}

/// Asks `check` until it answers, for `seconds` at most.
///
/// # Errors
/// [`Error::Late`] naming `what`.
pub fn wait<T>(what: &str, seconds: u64, mut check: impl FnMut() -> Option<T>) -> Result<T, Error> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = check() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::Late { what: what.to_owned(), seconds });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn plain(namespace: &str, device: &str) -> Result<(), Error> {
    // veth coalesces on receive only when the sending side has all of these off.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).args([
        "ethtool",
        "-K",
        device,
        "tx-udp_tnl-segmentation",
        "off",
        "tx-udp_tnl-csum-segmentation",
        "off",
        "tx-udp-segmentation",
        "off",
        "tso",
        "off",
        "tx",
        "off",
        "gso",
        "on",
        "gro",
        "on",
    ]);
    run(&mut command).map(drop)
}

fn require() -> Result<(), Error> {
    let lacking = |what: &str, next| Err(Error::Lacking { what: what.to_owned(), next });
    if !nix::unistd::geteuid().is_root() {
        return lacking("making network namespaces needs root", "run it again with sudo");
    }
    if !Path::new("/dev/net/tun").exists() {
        return lacking(
            "this machine has no /dev/net/tun",
            "load the tun module (`modprobe tun`), or give the container the device",
        );
    }
    for (program, next) in [
        ("ip", "install it with `apt-get install iproute2`"),
        ("bridge", "install it with `apt-get install iproute2`"),
        ("nsenter", "install it with `apt-get install util-linux`"),
    ] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
        if !found {
            return Err(Error::Lacking {
                what: format!("the program `{program}` is missing"),
                next,
            });
        }
    }
    Ok(())
}

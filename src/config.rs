//! The agent's configuration.
//!
//! # Theory of operation
//!
//! ```text
//!   defaults  <  file (TOML)  <  environment  <  flags
//! ```
//!
//! Each layer is read as it is written, the strongest one that has a key wins, and only then the
//! value is parsed and checked, so that one message says what is wrong wherever it was written: the
//! key, the file and line or the flag, the cause, the next step. What wins is kept with its source;
//! `skybridge agent --check` prints it as a file that means the same.
//!
//! Machine facts live here, cluster facts (networks, VNIs, options) in the store, nothing in both.
//! Secrets are named by their files and never held here.

mod file;
mod flags;
mod keys;
mod layers;
mod parse;
mod resolve;
mod store;
#[cfg(test)]
mod tests;
mod vtep;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

pub use flags::Flags;
pub use keys::{KEYS, Key, example};
pub(crate) use parse::{duration, duration_text};
pub(crate) use store::plaintext_listener;

/// Where the configuration file is when it is not named.
pub const DEFAULT_FILE: &str = "/etc/skybridge/skybridge.toml";
/// Where the control socket is when it is not named.
pub const DEFAULT_SOCKET: &str = "/run/skybridge/agent.sock";
/// Where the agent keeps its state when it is not told.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/skybridge";
/// IANA's port for VXLAN (RFC 7348 section 5).
pub const DEFAULT_UDP_PORT: u16 = 4789;
/// The port of the etcd client API.
pub const DEFAULT_STORE_PORT: u16 = 2379;
/// Most worker threads.
pub const WORKERS_MAX: usize = 64;
/// Most source ports per worker.
pub const SOURCE_PORTS_MAX: usize = 64;
/// Most VTEPs of a host: one per family.
pub const VTEPS_MAX: usize = 2;
/// Most store endpoints.
pub const STORES_MAX: usize = 16;

/// Environment variables that are read.
pub mod environment {
    /// The configuration file.
    pub const CONFIG: &str = "SKYBRIDGE_CONFIG";
    /// The control socket.
    pub const SOCKET: &str = "SKYBRIDGE_SOCKET";
    /// The store's endpoints, separated by commas.
    pub const STORES: &str = "SKYBRIDGE_STORES";
}

/// A capability of the datapath that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Joining received segments into super-frames.
    Coalesce,
    /// Partial checksums at the ports.
    Csum,
    /// A queue of each port per worker.
    Multiqueue,
    /// TCP super-frames at the ports.
    Tso,
    /// Received datagrams coalesced by the kernel.
    UdpGro,
    /// Sent datagrams segmented by the kernel.
    UdpGso,
    /// UDP super-frames at the ports.
    Uso,
}

impl Capability {
    /// Every capability.
    pub const ALL: &'static [Self] = &[
        Self::Coalesce,
        Self::Csum,
        Self::Multiqueue,
        Self::Tso,
        Self::UdpGro,
        Self::UdpGso,
        Self::Uso,
    ];

    /// The name in the configuration and in `skybridge status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coalesce => "coalesce",
            Self::Csum => "csum",
            Self::Multiqueue => "multiqueue",
            Self::Tso => "tso",
            Self::UdpGro => "udp-gro",
            Self::UdpGso => "udp-gso",
            Self::Uso => "uso",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no capability of the datapath has that name")]
pub struct ParseCapabilityError;

impl FromStr for Capability {
    type Err = ParseCapabilityError;

    fn from_str(text: &str) -> Result<Self, ParseCapabilityError> {
        Self::ALL.iter().copied().find(|c| c.name() == text).ok_or(ParseCapabilityError)
    }
}

/// One VTEP of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// The address that other hosts send to and that this host sends from, as they see it.
    pub advertise: IpAddr,
    /// The address of this machine that is bound; another one than `advertise` behind 1:1 NAT.
    pub bind: IpAddr,
    /// UDP port.
    pub port: u16,
    /// Underlay MTU in bytes; `None` reads it from the interface.
    pub mtu: Option<u16>,
    /// Further source addresses that other hosts take as this VTEP.
    pub accept: Vec<IpAddr>,
}

/// TLS towards the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that the store's certificate must come from, PEM.
    pub ca: PathBuf,
    /// This host's certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the store's certificate must have, when it is not that of the endpoint.
    pub server_name: Option<String>,
}

/// Who this host is to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// The file that holds the password, on its first line.
    pub password_file: PathBuf,
}

/// The store and the host's session in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Endpoints, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// In front of `/skybridge/v1/`; empty, or begins with a slash and does not end with one.
    pub prefix: String,
    /// The address on which this agent serves the embedded store.
    pub embedded: Option<SocketAddr>,
    /// The embedded store has an authority of its own and lets in only its hosts.
    pub authority: bool,
    /// Plaintext is allowed beyond loopback.
    pub insecure: bool,
    /// TLS.
    pub tls: Option<Tls>,
    /// User and password.
    pub user: Option<User>,
    /// Time to live of the host's lease.
    pub lease: Duration,
    /// How long a suspect host stays in flood lists.
    pub hold_down: Duration,
    /// How long a suspect host's records are kept.
    pub garbage_after: Duration,
    /// Addresses per network that are reserved for attaching without the store.
    pub reserved_addresses: usize,
}

/// A duration as the configuration writes it.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    duration_text(duration)
}

/// The datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// Worker threads.
    pub workers: usize,
    /// Source ports of each worker, by which the underlay spreads flows.
    pub source_ports: usize,
    /// A learned address is forgotten when it was not seen for this long.
    pub learned_age: Duration,
    /// Nice value of the worker threads.
    pub nice: i32,
    /// Capabilities that are not used even where they exist.
    pub disable: BTreeSet<Capability>,
}

/// The ways out of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Where the IPv4 addresses of their two ends come from.
    pub ipv4: Ipv4Net,
    /// Where the IPv6 addresses of their two ends come from.
    pub ipv6: Ipv6Net,
}

/// Which Docker networks a driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DockerScope {
    /// Those of one Docker.
    Local,
    /// Those of all Dockers with one cluster store, or of a Swarm.
    Global,
}

impl DockerScope {
    /// Its name, here and in Docker's protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Local => "local",
        }
    }
}

/// The driver for Docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docker {
    /// Its name, as Docker's users write it.
    pub name: String,
    /// Which networks it has.
    pub scope: DockerScope,
    /// Where Docker finds it.
    pub socket: PathBuf,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter such as `info` or `skybridge=debug,membership=info`.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

/// What the agent is started with, whole and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The host's name, unique in the cluster.
    pub name: String,
    /// VTEPs, at most one per family. Empty only for a clean-up.
    pub vteps: Vec<Vtep>,
    /// UDP port of networks that do not say another one.
    pub udp_port: u16,
    /// The store. Its endpoints are empty only for a clean-up.
    pub store: Store,
    /// The datapath.
    pub datapath: Datapath,
    /// The ways out of networks.
    pub uplink: Uplink,
    /// Where the agent keeps its state; names of pins and devices derive from it.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The group whose members may use the control socket.
    pub socket_group: Option<String>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The driver for Docker, where there is to be one.
    pub docker: Option<Docker>,
    /// The log.
    pub log: Log,
}

impl Config {
    /// Where the embedded store keeps its data.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.state_dir.join("store")
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// An environment variable.
    Environment(&'static str),
    /// The configuration file.
    File {
        /// Which one.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A flag.
    Flag(&'static str),
    /// What `skybridge join` wrote, or the authority of the store that this agent serves.
    State(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File { path, line } => write!(f, "file {}, line {line}", path.display()),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::State(path) => write!(f, "state {}", path.display()),
        }
    }
}

/// One key of the effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key as the file has it, such as `log.level`.
    pub key: &'static str,
    /// Its value in TOML; `None` when it is not set.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: Source,
}

/// The configuration with the source of each value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The configuration.
    pub config: Config,
    /// Every key, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
}

/// Reads the configuration again: the same flags and environment, the file as it is now.
pub type Read = Box<dyn Fn() -> Result<Effective, Error> + Send + Sync>;

impl fmt::Display for Effective {
    /// A file that means the same, with the source of each value as a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# The effective configuration; behind each value, where it comes from.")?;
        for Setting { key, value, source } in &self.settings {
            let line = match value {
                Some(value) => format!("{key} = {value}"),
                None => format!("# {key} is not set"),
            };
            writeln!(f, "{line:<58}  # {source}")?;
        }
        Ok(())
    }
}

/// What the configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Taking everything down; VTEPs and store may be left out.
    CleanUp,
    /// Running the agent.
    Run,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What this host knows of the store that it has joined cannot be read.
    #[error("what this host knows of the store that it has joined cannot be read: {source}")]
    Joined {
        /// Where that is.
        directory: PathBuf,
        /// What is wrong.
        source: membership::pki::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not the TOML that we know.
    #[error("{path}, line {line}: {cause}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        cause: String,
        /// What to do.
        next_step: String,
    },
    /// A value cannot be.
    #[error("`{key}` ({from}): {cause}")]
    Value {
        /// The key as the file has it.
        key: &'static str,
        /// Where the value was written.
        from: Source,
        /// What is wrong.
        cause: String,
        /// What to write instead.
        next_step: String,
    },
    /// A value is needed and nobody gave it.
    #[error("`{key}` is not set")]
    Missing {
        /// The key as the file has it.
        key: &'static str,
        /// What to do.
        next_step: String,
    },
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn next_step(&self) -> String {
        match self {
            Self::Joined { directory, .. } => format!(
                "read it as root; if it is damaged, remove {} and join anew with `skybridge join \
                 TOKEN`",
                directory.display()
            ),
            Self::Read { .. } => {
                format!(
                    "name another file with --config, or make it readable (default {DEFAULT_FILE})"
                )
            }
            Self::Syntax { next_step, .. }
            | Self::Value { next_step, .. }
            | Self::Missing { next_step, .. } => next_step.clone(),
        }
    }
}

/// Reads and checks everything. `environment` looks a variable up; an empty one counts as unset.
///
/// # Errors
/// See [`Error`]; the first fault found.
pub fn load(
    flags: &Flags,
    environment: impl Fn(&str) -> Option<String>,
    purpose: Purpose,
) -> Result<Effective, Error> {
    let environment = |name| environment(name).filter(|value| !value.is_empty());
    let named = flags.config.clone().or_else(|| environment(environment::CONFIG).map(Into::into));
    let text = match &named {
        Some(path) => Some((path.clone(), read(path)?)),
        None if Path::new(DEFAULT_FILE).exists() => {
            let path = PathBuf::from(DEFAULT_FILE);
            let text = read(&path)?;
            Some((path, text))
        }
        None => None,
    };
    resolve::resolve(flags, &environment, text, purpose)
}

/// The store that `flags` alone name: neither a file nor the environment is looked at.
///
/// # Errors
/// See [`Error`]; the first fault found.
pub fn store_of(flags: &Flags) -> Result<Store, Error> {
    let effective = resolve::resolve(flags, &|_| None, None, Purpose::CleanUp)?;
    Ok(effective.config.store)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

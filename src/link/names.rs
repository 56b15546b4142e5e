//! The names of everything we make on a host, derived so that agents cannot collide.
//!
//! A pin's name holds the hash of the agent's state directory and the network. Inside a private
//! namespace, which belongs to one agent and one network, bridge and TAP have fixed names and a
//! port's name is the hash of its endpoint. Both ends of a veth carry an alias with agent and
//! endpoint in plain text: it stays when a runtime renames or moves the sandbox's end.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Error;

/// The bridge in a network's private namespace.
pub const BRIDGE: &str = "br0";
/// The switch's TAP there.
pub const TAP: &str = "tap0";
/// The switch's TUN, in the namespace of a network that is routed.
pub const TUN: &str = "tun0";
/// What the names of endpoints' ports begin with.
pub const PORT: &str = "ve";
/// What the names of uplinks of all owners begin with.
pub const UPLINK: &str = "sky";
/// Where pins lie unless told otherwise.
pub const PIN_DIR: &str = "/run/skybridge/netns";
/// Longest interface name, in bytes (IFNAMSIZ without its zero).
pub const IFNAME_MAX: usize = 15;

/// Length that a network id may have to appear in a pin's name as it is.
const PLAIN_MAX: usize = 80;

/// The owner of what is made: one agent's state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    hash: String,
    pin_dir: PathBuf,
}

/// A pin found on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Its file.
    pub path: PathBuf,
    /// The network's id, unless it had to be hashed.
    pub network: Option<String>,
}

impl Owner {
    /// The owner for a state directory, with pins in [`PIN_DIR`].
    pub fn new(state_dir: &Path) -> Self {
        Self::with_pin_dir(state_dir, Path::new(PIN_DIR))
    }

    /// As [`Owner::new`] with another folder for the pins; owners may share it.
    pub fn with_pin_dir(state_dir: &Path, pin_dir: &Path) -> Self {
        let absolute = fs::canonicalize(state_dir)
            .or_else(|_| std::path::absolute(state_dir))
            .unwrap_or_else(|_| state_dir.into());
        let hash = digest(&[absolute.as_os_str().as_encoded_bytes()], 8);
        Self { hash, pin_dir: pin_dir.into() }
    }

    /// Eight hex digits that stand for the state directory.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Where the private namespace of a network is pinned.
    pub fn pin(&self, network: &str) -> PathBuf {
        let plain =
            network.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let name = if plain && (1..=PLAIN_MAX).contains(&network.len()) {
            format!("{}-{network}", self.hash)
        } else {
            format!("{}.{}", self.hash, digest(&[network.as_bytes()], 32))
        };
        self.pin_dir.join(name)
    }

    /// All pins of this owner, sorted by path.
    ///
    /// # Errors
    /// `Pin` when the folder cannot be read; a folder that does not exist has none.
    pub fn pins(&self) -> Result<Vec<Pin>, Error> {
        let failed = |source| Error::Pin { doing: "list", path: self.pin_dir.clone(), source };
        let entries = match fs::read_dir(&self.pin_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut pins = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&self.hash)) else {
                continue;
            };
            let network = rest.strip_prefix('-').map(str::to_owned);
            if network.is_some() || rest.starts_with('.') {
                pins.push(Pin { path: entry.path(), network });
            }
        }
        pins.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(pins)
    }

    /// The name of an endpoint's port in the private namespace.
    pub fn port(&self, endpoint: &str) -> String {
        format!("{PORT}{}", digest(&[self.hash.as_bytes(), endpoint.as_bytes()], 12))
    }

    /// What the names of all uplinks of this owner begin with, and nobody else's here.
    pub fn uplinks(&self) -> String {
        format!("{UPLINK}{}", self.hash.get(..4).unwrap_or_default())
    }

    /// The name of a network's uplink in the host's namespace.
    pub fn uplink(&self, network: &str) -> String {
        let digest = digest(&[self.hash.as_bytes(), b"uplink", network.as_bytes()], 8);
        format!("{}{digest}", self.uplinks())
    }

    /// The alias that an uplink carries.
    pub fn uplink_alias(&self, network: &str) -> String {
        format!("skybridge-uplink:{}:{network}", self.hash)
    }

    /// The network whose uplink an alias speaks of, if it is ours.
    pub fn uplink_network<'a>(&self, alias: &'a str) -> Option<&'a str> {
        alias.strip_prefix("skybridge-uplink:")?.strip_prefix(&self.hash)?.strip_prefix(':')
    }

    /// A name for the sandbox's end that no one else has, for runtimes that move and rename it.
    pub fn passing(&self, endpoint: &str) -> String {
        format!("vs{}", digest(&[self.hash.as_bytes(), endpoint.as_bytes()], 12))
    }

    /// The alias that both ends of an endpoint's veth carry.
    pub fn alias(&self, endpoint: &str) -> String {
        format!("skybridge:{}:{endpoint}", self.hash)
    }

    /// The endpoint an alias speaks of, if it is ours.
    pub fn endpoint<'a>(&self, alias: &'a str) -> Option<&'a str> {
        alias.strip_prefix("skybridge:")?.strip_prefix(&self.hash)?.strip_prefix(':')
    }
}

/// Refuses what the kernel would refuse as an interface name (net/core/dev.c, `dev_valid_name`), and
/// `%`, which it takes for a template.
///
/// # Errors
/// `InvalidIfname`.
pub fn check_ifname(ifname: &str) -> Result<(), Error> {
    let bad = |byte: u8| byte.is_ascii_whitespace() || b"/:%\0\x0b".contains(&byte);
    let right = (1..=IFNAME_MAX).contains(&ifname.len())
        && ifname != "."
        && ifname != ".."
        && !ifname.bytes().any(bad);
    if right { Ok(()) } else { Err(Error::InvalidIfname { ifname: ifname.into() }) }
}

/// The first `digits` hex digits of a SHA-256 over parts, each behind its length.
fn digest(parts: &[&[u8]], digits: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut text = String::with_capacity(64);
    for byte in hasher.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ_between_owners() {
        let a = Owner::new(Path::new("/nowhere/a"));
        let b = Owner::new(Path::new("/nowhere/b"));
        assert_ne!(a.hash(), b.hash());
        assert_ne!(a.port("e1"), b.port("e1"));
        assert_ne!(a.port("e1"), a.port("e2"));
        assert_ne!(a.pin("n"), b.pin("n"));
        assert_ne!(a.uplink("n1"), b.uplink("n1"));
        assert_ne!(a.uplink("n1"), a.uplink("n2"));
        assert!(a.uplink("n1").starts_with(&a.uplinks()) && a.uplinks() != b.uplinks());
        for name in [a.port("e1"), a.passing("e1"), a.uplink("n1"), BRIDGE.into(), TAP.into()] {
            check_ifname(&name).unwrap();
        }
    }

    #[test]
    fn an_alias_is_read_by_its_owner_only() {
        let a = Owner::new(Path::new("/nowhere/a"));
        let b = Owner::new(Path::new("/nowhere/b"));
        assert_eq!(a.endpoint(&a.alias("x:y")), Some("x:y"));
        assert_eq!(b.endpoint(&a.alias("x")), None);
        assert_eq!(a.endpoint("skybridge:"), None);
        assert_eq!(a.uplink_network(&a.uplink_alias("n1")), Some("n1"));
        assert_eq!(b.uplink_network(&a.uplink_alias("n1")), None);
        assert_eq!(a.endpoint(&a.uplink_alias("n1")), None);
    }

    #[test]
    fn pins_are_found_again_whatever_the_network_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner::with_pin_dir(Path::new("/nowhere/a"), dir.path());
        let other = Owner::with_pin_dir(Path::new("/nowhere/b"), dir.path());
        let odd = "../../x y";
        for path in [owner.pin("net-1"), owner.pin(odd), other.pin("net-1")] {
            assert_eq!(path.parent(), Some(dir.path()));
            fs::write(path, "").unwrap();
        }
        let mut found =
            owner.pins().unwrap().into_iter().map(|pin| pin.network).collect::<Vec<_>>();
        found.sort();
        assert_eq!(found, [None, Some("net-1".into())]);
    }

    #[test]
    fn interface_names_are_checked_as_the_kernel_does() {
        for right in ["eth0", "a", "abcdefghijklmno"] {
            check_ifname(right).unwrap();
        }
        for wrong in ["", ".", "..", "abcdefghijklmnop", "a b", "a/b", "a:b", "eth%d", "a\n"] {
            assert!(check_ifname(wrong).is_err(), "{wrong:?}");
        }
    }
}

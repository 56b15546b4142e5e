//! The keys of the store: the only place that builds and parses them.
//!
//! All keys lie under `PREFIX/skybridge/v1/`, where `PREFIX` is configurable. They carry immutable
//! ids; names point to ids.
//!
//! ```text
//!   absent/HOST                     a host that was seen absent, under a lease of its own
//!   docker/NETWORK/HOST/ID          a network of a host's Docker that is this network
//!   hosts/HOST                      a host that is present, under its lease
//!   known/HOST                      the same record without a lease: a host that is away
//!   vteps/ADDRESS                   who advertises a VTEP address, under the host's lease
//!   names/NAME                      name of a network -> its id
//!   networks/NETWORK                a network
//!   vnis/VNI                        who holds a VNI
//!   endpoints/NETWORK/ENDPOINT      an endpoint
//!   ipam/NETWORK/blocks/CIDR        a block of addresses and its owner
//!   ipam/NETWORK/addresses/IP       who holds an address
//!   ipam/NETWORK/macs/MAC           who holds a MAC
//!   ipam/NETWORK/resting/IP         a released address, under a lease of its own
//! ```
//!
//! Each key has exactly one spelling: [`Keys::parse`] refuses whatever [`Keys::encode`] would not
//! have written, so two keys can never mean the same object.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use encap::{MacAddr, Vni};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What follows the configurable prefix.
const ROOT: &str = "/skybridge/v1/";
/// Longest configurable prefix in bytes.
const PREFIX_MAX: usize = 256;
/// Longest name or id in bytes.
const NAME_MAX: usize = 64;

/// Why a text is no name, id, prefix or key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name or id with other characters or of another length.
    #[error(
        "{what} `{text}` is not valid: write 1 to {max} letters, digits, `_`, `.` or `-`, the \
         first a letter or digit"
    )]
    Name {
        /// Which kind of name.
        what: &'static str,
        /// The text, cut to a readable length.
        text: String,
        /// The longest allowed length.
        max: usize,
    },
    /// A prefix that is too long or has other than printable characters.
    #[error(
        "store prefix `{0}` is not valid: write at most 256 printable characters without spaces, \
         such as /site-a"
    )]
    Prefix(String),
    /// The key does not lie under our prefix.
    #[error("key `{0}` lies outside the prefix")]
    Outside(String),
    /// The key lies under our prefix and names nothing that we know.
    #[error("key `{0}` names nothing known")]
    Unknown(String),
    /// The key names an object in another spelling than the canonical one.
    #[error("key `{0}` is not in its canonical spelling")]
    Spelling(String),
}

/// Cuts `text` for messages, so that a hostile one does not fill a log.
fn shown(text: &str) -> String {
    const SHOWN: usize = 96;
    let mut cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

fn is_name(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= max
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A random identifier of 16 hexadecimal characters.
fn random() -> String {
    format!("{:016x}", rand::random::<u64>())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// Checks the text.
            ///
            /// # Errors
            ///
            /// [`Error::Name`] for other characters or another length.
            pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
                let text = text.as_ref();
                if is_name(text, $max) {
                    Ok(Self(text.into()))
                } else {
                    Err(Error::Name { what: $what, text: shown(text), max: $max })
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.into()
            }
        }
    };
}

name!(
    /// The immutable id of a network.
    NetworkId, "network id", NAME_MAX
);
name!(
    /// The immutable id of an endpoint, unique within its network.
    EndpointId, "endpoint id", NAME_MAX
);
name!(
    /// The identity of a host, made once and kept in its state directory.
    HostId, "host id", NAME_MAX
);
name!(
    /// The name of a host, unique within the store.
    HostName, "host name", 63
);
name!(
    /// The user's name for a network, unique within the store.
    NetworkName, "network name", 63
);
name!(
    /// Docker's id of one of its networks.
    DockerId, "Docker network id", NAME_MAX
);

macro_rules! random {
    ($($type:ident),*) => { $(
        impl $type {
            /// A new random one, of 16 hexadecimal characters.
            #[must_use]
            pub fn random() -> Self {
                Self(random().into())
            }
        }
    )* };
}
random!(NetworkId, EndpointId, HostId);

/// A key without its prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A host that was seen absent.
    Absent(HostName),
    /// Who holds an address of a network.
    Address(NetworkId, IpAddr),
    /// A block of addresses of a network.
    Block(NetworkId, IpNet),
    /// A network of a host's Docker that is this network.
    Docker(NetworkId, HostName, DockerId),
    /// An endpoint of a network.
    Endpoint(NetworkId, EndpointId),
    /// A host that is present.
    Host(HostName),
    /// A host that was present at some time.
    KnownHost(HostName),
    /// Who holds a MAC of a network.
    Mac(NetworkId, MacAddr),
    /// The network of a name.
    Name(NetworkName),
    /// A network.
    Network(NetworkId),
    /// An address of a network that was released and must rest.
    Resting(NetworkId, IpAddr),
    /// Who holds a VNI.
    Vni(Vni),
    /// Who advertises a VTEP address.
    VtepClaim(IpAddr),
}

impl fmt::Display for Key {
    /// The key below the prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(host) => write!(f, "absent/{host}"),
            Self::Address(network, ip) => write!(f, "ipam/{network}/addresses/{ip}"),
            Self::Block(network, cidr) => write!(f, "ipam/{network}/blocks/{cidr}"),
            Self::Docker(network, host, id) => write!(f, "docker/{network}/{host}/{id}"),
            Self::Endpoint(network, endpoint) => write!(f, "endpoints/{network}/{endpoint}"),
            Self::Host(host) => write!(f, "hosts/{host}"),
            Self::KnownHost(host) => write!(f, "known/{host}"),
            Self::Mac(network, mac) => write!(f, "ipam/{network}/macs/{mac}"),
            Self::Name(name) => write!(f, "names/{name}"),
            Self::Network(network) => write!(f, "networks/{network}"),
            Self::Resting(network, ip) => write!(f, "ipam/{network}/resting/{ip}"),
            Self::Vni(vni) => write!(f, "vnis/{vni}"),
            Self::VtepClaim(ip) => write!(f, "vteps/{ip}"),
        }
    }
}

/// A range of keys that share a beginning.
#[derive(Clone, Copy, Debug)]
pub enum Range<'a> {
    /// Everything of ours.
    All,
    /// The addresses of a network.
    Addresses(&'a NetworkId),
    /// The blocks of a network.
    Blocks(&'a NetworkId),
    /// The networks of hosts' Dockers that are this network.
    Docker(&'a NetworkId),
    /// The endpoints of a network.
    Endpoints(&'a NetworkId),
    /// The networks of hosts' Dockers.
    EveryDocker,
    /// The endpoints of all networks.
    EveryEndpoint,
    /// The hosts that are present.
    Hosts,
    /// Everything about the addresses of a network.
    Ipam(&'a NetworkId),
    /// The hosts that were present at some time.
    KnownHosts,
    /// The networks.
    Networks,
    /// The resting addresses of a network.
    Resting(&'a NetworkId),
    /// The VNIs in use.
    Vnis,
}

/// Builds and parses keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    root: Box<str>,
}

impl Keys {
    /// Keys under `prefix` + `/skybridge/v1/`. Slashes at the end of the prefix are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Prefix`] for a prefix over 256 bytes or with other than printable ASCII characters.
    pub fn new(prefix: &str) -> Result<Self, Error> {
        let trimmed = prefix.trim_end_matches('/');
        if trimmed.len() > PREFIX_MAX || !trimmed.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Prefix(shown(prefix)));
        }
        Ok(Self { root: format!("{trimmed}{ROOT}").into() })
    }

    /// What all keys begin with.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The full key.
    #[must_use]
    pub fn encode(&self, key: &Key) -> String {
        format!("{}{key}", self.root)
    }

    /// What the keys of a range begin with. It ends in `/`, so no other key begins with it.
    #[must_use]
    pub fn range(&self, range: Range<'_>) -> String {
        let root = &self.root;
        match range {
            Range::All => root.to_string(),
            Range::Addresses(network) => format!("{root}ipam/{network}/addresses/"),
            Range::Blocks(network) => format!("{root}ipam/{network}/blocks/"),
            Range::Docker(network) => format!("{root}docker/{network}/"),
            Range::EveryDocker => format!("{root}docker/"),
            Range::Endpoints(network) => format!("{root}endpoints/{network}/"),
            Range::EveryEndpoint => format!("{root}endpoints/"),
            Range::Hosts => format!("{root}hosts/"),
            Range::Ipam(network) => format!("{root}ipam/{network}/"),
            Range::KnownHosts => format!("{root}known/"),
            Range::Networks => format!("{root}networks/"),
            Range::Resting(network) => format!("{root}ipam/{network}/resting/"),
            Range::Vnis => format!("{root}vnis/"),
        }
    }

    /// The object that a full key names. Takes any bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`], [`Error::Unknown`] or [`Error::Spelling`], each with the key.
    pub fn parse(&self, key: &[u8]) -> Result<Key, Error> {
        let Ok(text) = std::str::from_utf8(key) else {
            return Err(Error::Unknown(shown(&String::from_utf8_lossy(key))));
        };
        let Some(rest) = text.strip_prefix(self.root.as_ref()) else {
            return Err(Error::Outside(shown(text)));
        };
        let parsed = parse_rest(rest).ok_or_else(|| Error::Unknown(shown(text)))?;
        if parsed.to_string() == rest { Ok(parsed) } else { Err(Error::Spelling(shown(text))) }
    }
}

fn parse_rest(rest: &str) -> Option<Key> {
    let (kind, rest) = rest.split_once('/')?;
    Some(match kind {
        "absent" => Key::Absent(rest.parse().ok()?),
        "docker" => {
            let (network, rest) = rest.split_once('/')?;
            let (host, id) = rest.split_once('/')?;
            Key::Docker(network.parse().ok()?, host.parse().ok()?, id.parse().ok()?)
        }
        "endpoints" => {
            let (network, endpoint) = rest.split_once('/')?;
            Key::Endpoint(network.parse().ok()?, endpoint.parse().ok()?)
        }
        "hosts" => Key::Host(rest.parse().ok()?),
        "ipam" => {
            let (network, rest) = rest.split_once('/')?;
            let network = network.parse().ok()?;
            let (kind, rest) = rest.split_once('/')?;
            match kind {
                "addresses" => Key::Address(network, rest.parse().ok()?),
                "blocks" => Key::Block(network, rest.parse().ok()?),
                "macs" => Key::Mac(network, rest.parse().ok()?),
                "resting" => Key::Resting(network, rest.parse().ok()?),
                _ => return None,
            }
        }
        "known" => Key::KnownHost(rest.parse().ok()?),
        "names" => Key::Name(rest.parse().ok()?),
        "networks" => Key::Network(rest.parse().ok()?),
        "vnis" => Key::Vni(rest.parse().ok()?),
        "vteps" => Key::VtepClaim(rest.parse().ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(NetworkName::new("web-1.prod_x").is_ok());
        for text in ["", "-a", ".a", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(NetworkName::new(text).is_err(), "{text}");
        }
        assert!(EndpointId::new("a".repeat(64)).is_ok());
    }

    #[test]
    fn prefix_is_configurable() {
        assert_eq!(Keys::new("").unwrap().root(), "/skybridge/v1/");
        assert_eq!(Keys::new("/site-a/").unwrap().root(), "/site-a/skybridge/v1/");
        assert!(Keys::new("a b").is_err());
    }

    #[test]
    fn one_spelling_only() {
        let keys = Keys::new("").unwrap();
        let parse = |rest: &str| keys.parse(format!("/skybridge/v1/{rest}").as_bytes());
        assert!(parse("ipam/n1/blocks/192.0.2.0/26").is_ok());
        assert!(parse("ipam/n1/addresses/2001:db8::1").is_ok());
        assert!(matches!(parse("ipam/n1/addresses/2001:DB8::1"), Err(Error::Spelling(_))));
        assert!(matches!(parse("vnis/0042"), Err(Error::Spelling(_))));
        assert!(matches!(parse("vnis/16777216"), Err(Error::Unknown(_))));
        assert!(matches!(parse("hosts/"), Err(Error::Unknown(_))));
        assert!(matches!(parse("hosts/a/b"), Err(Error::Unknown(_))));
        assert!(matches!(keys.parse(b"/other"), Err(Error::Outside(_))));
        assert!(matches!(keys.parse(b"/skybridge/v1/\xff"), Err(Error::Unknown(_))));
    }
}

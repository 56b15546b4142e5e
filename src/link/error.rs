//! What can go wrong between us and the kernel's links and namespaces.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the link module: what failed, why, and where there is one, the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox has this address on another interface.
    #[error(
        "address {address} is already on {ifname} in {sandbox}; \
         ask for another address, or remove it there first"
    )]
    AddressPresent {
        /// The address.
        address: IpAddr,
        /// The interface that has it.
        ifname: String,
        /// The sandbox.
        sandbox: String,
    },
    /// The network has a port of this endpoint already.
    #[error("endpoint {endpoint} is already plugged in at {port}; detach it first")]
    AlreadyPlugged {
        /// The endpoint.
        endpoint: String,
        /// Its port in the private namespace.
        port: String,
    },
    /// The sandbox has an interface of this name already.
    #[error(
        "{sandbox} already has an interface {ifname}; \
         choose another name with --ifname, or delete that interface"
    )]
    InterfaceExists {
        /// The name.
        ifname: String,
        /// The sandbox.
        sandbox: String,
    },
    /// An interface name that the kernel does not take.
    #[error(
        "{ifname:?} cannot be an interface name: it takes 1 to 15 bytes without \
         spaces, '/', ':' and '%', and neither \".\" nor \"..\""
    )]
    InvalidIfname {
        /// The name asked for.
        ifname: String,
    },
    /// A MAC that no endpoint can have.
    #[error("{mac} cannot be the MAC of an endpoint: it is zero, or a group's")]
    InvalidMac {
        /// The MAC asked for.
        mac: encap::MacAddr,
    },
    /// Text that names no namespace.
    #[error(
        "{text:?} names no network namespace; give a name from /run/netns, an absolute path or a PID"
    )]
    InvalidReference {
        /// The text.
        text: String,
    },
    /// An MTU that IPv6 cannot have.
    #[error(
        "MTU {mtu} is too small for IPv6, which needs 1280 (RFC 8200 section 5); \
         raise the MTU of the underlay, or use a network without IPv6"
    )]
    MtuTooSmall {
        /// The MTU asked for.
        mtu: u32,
    },
    /// The namespace is not there (any more).
    #[error("{what} is gone: {step}")]
    NamespaceGone {
        /// The namespace.
        what: String,
        /// Where to look.
        step: &'static str,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {doing}: {source}")]
    Netlink {
        /// The request.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The private namespace lacks a device that ought to be there.
    #[error("{what} has no {link}; run the agent, which makes it anew")]
    NoLink {
        /// Where it was looked for.
        what: String,
        /// The device.
        link: String,
    },
    /// No interface has the VTEP address.
    #[error(
        "no interface of this host has the VTEP address {address}; present are {present}; \
         correct --vtep or add the address"
    )]
    NoSuchAddress {
        /// The address asked for.
        address: IpAddr,
        /// All that exist.
        present: Addresses,
    },
    /// The path is something else than a network namespace.
    #[error("{what} is not a network namespace: {reason}")]
    NotANamespace {
        /// The path.
        what: String,
        /// What it is.
        reason: &'static str,
    },
    /// `nft` is missing or refused the rules.
    #[error("cannot {doing} with nft: {reason}")]
    Nft {
        /// What was tried.
        doing: &'static str,
        /// Its message.
        reason: String,
    },
    /// The kernel refused for lack of privilege.
    #[error("no permission to {doing}; run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    Permission {
        /// What was tried.
        doing: String,
    },
    /// A pin could not be made or removed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Pin {
        /// What was tried.
        doing: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that is not ours stands where a pin belongs.
    #[error("{} is in the way: {reason}; move it away", .path.display())]
    PinObstructed {
        /// The pin.
        path: PathBuf,
        /// What stands there.
        reason: &'static str,
    },
    /// A port did not begin to forward.
    #[error(
        "port {port} does not forward {} ms after it was set up (state {state}); \
         see `ip -d link` in the network's namespace",
        .waited.as_millis()
    )]
    PortNotForwarding {
        /// The port.
        port: String,
        /// The state it is in.
        state: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Another route to this destination is in the sandbox.
    #[error(
        "{sandbox} already has another route to {destination}; \
         attach without --default-route, or remove that route"
    )]
    RouteExists {
        /// The destination.
        destination: String,
        /// The sandbox.
        sandbox: String,
    },
    /// The host has a route of its own where one of ours would have to be.
    #[error(
        "the host has a route to {route} through {ifname} already, which is within {subnet} of the \
         network; remove it, or choose another subnet for the network"
    )]
    RouteTaken {
        /// The network's subnet.
        subnet: ipnet::IpNet,
        /// The host's route.
        route: ipnet::IpNet,
        /// Its interface.
        ifname: String,
    },
    /// No pair of addresses is left for an uplink.
    #[error(
        "all addresses of {pool} are in use on this host; give a larger pool with `uplink.{key}`"
    )]
    PoolUsed {
        /// The pool.
        pool: ipnet::IpNet,
        /// Its key in the configuration.
        key: &'static str,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot set {name} to {value}: {source}; is /proc/sys writable for the agent?")]
    Sysctl {
        /// Path below /proc/sys.
        name: String,
        /// The value wanted.
        value: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread to enter a network namespace: {0}")]
    Thread(#[source] io::Error),
    /// The kernel did not answer.
    #[error("cannot {doing}: the kernel did not answer within {} s", .after.as_secs())]
    Timeout {
        /// The request.
        doing: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// A change failed, and so did taking back what had been made of it.
    #[error("{cause}; taking back what was made failed as well: {}", join(.undo))]
    Undo {
        /// Why the change failed.
        cause: Box<Self>,
        /// Why its parts could not be removed.
        undo: Vec<Self>,
    },
}

impl Error {
    /// The kernel's error number, where there is one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. }
            | Self::Pin { source, .. }
            | Self::Sysctl { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The addresses of a host, as (interface, address with prefix length).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(pub Vec<(String, ipnet::IpNet)>);

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (position, (ifname, address)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{address} ({ifname})")?;
        }
        Ok(())
    }
}

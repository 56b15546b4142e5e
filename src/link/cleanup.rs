//! Removing everything that an agent of this state directory ever made on the host.

use std::fmt;
use std::path::PathBuf;

use super::view::Kind;
use super::{Error, NetNs, Netlink, Owner, direct, firewall, network, nft, permission};

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A veth of an endpoint.
    Link {
        /// Its name.
        name: String,
        /// The endpoint it belonged to.
        endpoint: String,
        /// The namespace it was in.
        place: String,
    },
    /// The host's end of a network's uplink.
    Uplink {
        /// Its name.
        name: String,
        /// The network's id.
        network: String,
    },
    /// Rules in the host's namespace.
    Rules {
        /// Which.
        what: String,
    },
    /// Routes to what other hosts had directly.
    Routes,
    /// A network's namespace with its bridge and TAP, or the empty file left of its pin.
    Network {
        /// The pin.
        pin: PathBuf,
    },
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { name, endpoint, place } => {
                write!(f, "link {name} of endpoint {endpoint} in {place}")
            }
            Self::Uplink { name, network } => write!(f, "uplink {name} of network {network}"),
            Self::Rules { what } => write!(f, "rules {what}"),
            Self::Routes => f.write_str("direct routes to other hosts"),
            Self::Network { pin } => write!(f, "network namespace {}", pin.display()),
        }
    }
}

/// What [`run`] did.
#[derive(Debug, Default)]
pub struct Report {
    /// What it removed, in order.
    pub removed: Vec<Removed>,
    /// What it could not do.
    pub failed: Vec<Error>,
}

/// Removes all namespaces of `owner`, and veths with its alias in them and in the host's namespace
/// (where a runtime puts back what it does not need any more). Goes on over failures. May be
/// repeated; no agent of this state directory may be running.
pub async fn run(owner: &Owner) -> Report {
    let mut report = Report::default();
    let pins = match owner.pins() {
        Ok(pins) => pins,
        Err(error) => {
            report.failed.push(error);
            Vec::new()
        }
    };
    for pin in pins {
        if let Ok(namespace) = NetNs::open_pin(&pin.path) {
            links(owner, &namespace, &mut report).await;
        }
        match network::remove(&pin.path).await {
            Ok(true) => report.removed.push(Removed::Network { pin: pin.path }),
            Ok(false) => (),
            Err(error) => report.failed.push(error),
        }
    }
    match NetNs::host() {
        Ok(host) => {
            links(owner, &host, &mut report).await;
            routes(&host, &mut report).await;
            rules(owner, &host, &mut report).await;
        }
        Err(error) => report.failed.push(error),
    }
    report
}

/// Removes what other people's rules were asked for, and our own. Without nft there is nothing.
async fn rules(owner: &Owner, host: &NetNs, report: &mut Report) {
    let permission = permission::remove(host, owner).await;
    let table = firewall::remove(host, owner).await;
    match (permission, table) {
        (Ok(permission), Ok(table)) => {
            if permission > 0 {
                let what = format!("{} in {permission} tables", permission::chain(owner));
                report.removed.push(Removed::Rules { what });
            }
            if table {
                let what = format!("inet {}", firewall::table(owner));
                report.removed.push(Removed::Rules { what });
            }
        }
        (Err(Error::Nft { .. }), Err(Error::Nft { .. })) if !nft::is_installed() => {}
        (permission, table) => {
            report.failed.extend([permission.err(), table.err()].into_iter().flatten());
        }
    }
}

/// Removes the routes to what other hosts had directly.
async fn routes(host: &NetNs, report: &mut Report) {
    let removed = async { direct::remove(&Netlink::open(host)?).await };
    match removed.await {
        Ok(true) => report.removed.push(Removed::Routes),
        Ok(false) => (),
        Err(error) => report.failed.push(error),
    }
}

async fn links(owner: &Owner, namespace: &NetNs, report: &mut Report) {
    let removed = async {
        let netlink = Netlink::open(namespace)?;
        for link in netlink.links().await? {
            if let Some(network) = owner.uplink_network(&link.alias) {
                if netlink.delete(&link).await? {
                    let network = network.to_owned();
                    report.removed.push(Removed::Uplink { name: link.name, network });
                }
                continue;
            }
            let Some(endpoint) = owner.endpoint(&link.alias).filter(|_| link.kind == Kind::Veth)
            else {
                continue;
            };
            if netlink.delete(&link).await? {
                report.removed.push(Removed::Link {
                    endpoint: endpoint.into(),
                    place: namespace.label().into(),
                    name: link.name,
                });
            }
        }
        Ok(())
    };
    if let Err(error) = removed.await {
        report.failed.push(error);
    }
}

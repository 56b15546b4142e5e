//! Whether the host forwards, which masquerading needs.

use super::nft::in_namespace;
use super::{Error, NetNs, sysctl};

const V4: &str = "net/ipv4/ip_forward";
const V6: &str = "net/ipv6/conf/all/forwarding";

/// Whether the host forwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Has the host forward these families, and gives the settings that were changed for it. Another one
/// that forwards already is left on.
///
/// A host that forwards IPv6 does not listen to router advertisements any more, and would lose its
/// own default route when that expires; interfaces that listen now are told to go on
/// (`accept_ra=2`, Documentation/networking/ip-sysctl.rst).
///
/// # Errors
/// `Sysctl`.
pub async fn enable(host: &NetNs, wanted: Forwarding) -> Result<Vec<String>, Error> {
    in_namespace(host, move || {
        let mut changed = Vec::new();
        if wanted.v4 && sysctl::ensure(V4, "1")? {
            changed.push(V4.replace('/', "."));
        }
        if wanted.v6 && sysctl::read(V6).as_deref() == Some("0") {
            for interface in listening() {
                let name = format!("net/ipv6/conf/{interface}/accept_ra");
                if sysctl::ensure(&name, "2")? {
                    changed.push(name.replace('/', "."));
                }
            }
            if sysctl::ensure(V6, "1")? {
                changed.push(V6.replace('/', "."));
            }
        }
        Ok(changed)
    })
    .await
}

/// Whether the host forwards now.
///
/// # Errors
/// When the namespace cannot be entered.
pub async fn state(host: &NetNs) -> Result<Forwarding, Error> {
    let on = |name| sysctl::read(name).as_deref() == Some("1");
    in_namespace(host, move || Ok(Forwarding { v4: on(V4), v6: on(V6) })).await
}

/// Interfaces that listen to router advertisements as long as nothing is forwarded.
fn listening() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"))
        .filter(|name| {
            sysctl::read(&format!("net/ipv6/conf/{name}/accept_ra")).as_deref() == Some("1")
        })
        .collect()
}

//! What names, subnets, numbers and addresses must look like.
//!
//! The command line parses its arguments with the functions here, and the server applies
//! [`Check`] to every request, so that both refuse the same things with the same words. Whatever
//! needs to know the cluster (is the name taken, is the address inside the subnet of an existing
//! network) is the agent's to say.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use encap::{MacAddr, Vni};
use ipnet::IpNet;

use super::types::{
    Attach, CollectGarbage, CreateNetwork, Detach, Error, Gateway, KernelAction, LinkKernel,
    MakeToken, UpdateNetwork, VtepAdd,
};

/// Longest name of a network, endpoint or host, in bytes.
pub const NAME_MAX: usize = 63;
/// Longest interface name in bytes (`IFNAMSIZ` of include/uapi/linux/if.h without the final zero).
pub const IFNAME_MAX: usize = 15;
/// Most subnets of one network.
pub const SUBNETS_MAX: usize = 16;
/// Smallest MTU of a network in bytes: what every IPv4 host takes (RFC 791).
pub const MTU_MIN: u16 = 576;
/// Smallest MTU of a network with an IPv6 subnet in bytes (RFC 8200 section 5).
pub const MTU_MIN_IPV6: u16 = 1280;
/// Largest MTU of a network in bytes: 65535 less the outer IPv6, UDP, VXLAN and inner Ethernet
/// headers.
pub const MTU_MAX: u16 = 65_535 - 70;
/// Most options, and most labels, of one object.
pub const PAIRS_MAX: usize = 64;
/// Longest key of an option or label in bytes.
pub const KEY_MAX: usize = 63;
/// Longest value of an option or label in bytes.
pub const VALUE_MAX: usize = 255;

/// A value that cannot be: what is wrong with it, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong, one clause.
    pub cause: String,
    /// What to write instead, one clause.
    pub next_step: String,
}

impl Invalid {
    pub(crate) fn new(cause: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { cause: cause.into(), next_step: next_step.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.next_step)
    }
}

impl std::error::Error for Invalid {}

/// A name of a network, endpoint or host.
///
/// # Errors
/// When it is empty, too long, or has other characters than letters, digits, `-`, `_` and `.`.
pub fn name(text: &str) -> Result<String, Invalid> {
    let rule = format!(
        "write 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, the first a letter or digit"
    );
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    match text {
        "" => Err(Invalid::new("the name is empty", rule)),
        _ if text.len() > NAME_MAX => {
            Err(Invalid::new(format!("the name has {} bytes", text.len()), rule))
        }
        _ if !first || !rest => Err(Invalid::new("not a name", rule)),
        _ => Ok(text.to_owned()),
    }
}

/// The id of a network, endpoint or host, or a name: what a look-up takes.
///
/// # Errors
/// See [`name()`].
pub fn reference(text: &str) -> Result<String, Invalid> {
    // Ids are hexadecimal and shorter than the longest name, so the rule of names covers both.
    name(text)
}

/// A subnet of a network.
///
/// # Errors
/// When it is no CIDR, has host bits set, holds no two addresses, or lies in a range that hosts
/// cannot have.
pub fn subnet(text: &str) -> Result<IpNet, Invalid> {
    let example = "write a subnet such as 198.51.100.0/24 or 2001:db8:51::/64";
    if let Ok(address) = text.parse::<IpAddr>() {
        let len = if address.is_ipv4() { 24 } else { 64 };
        let next = IpNet::new(address, len).map(|net| net.trunc().to_string());
        let next = next.unwrap_or_default();
        return Err(Invalid::new(
            "the prefix length is missing",
            format!("write it behind a slash, such as {next}"),
        ));
    }
    let net: IpNet = text.parse().map_err(|_| Invalid::new("not a subnet", example))?;
    check_subnet(net)?;
    Ok(net)
}

/// A range of addresses: one address, two with `-` between them, or a prefix.
///
/// # Errors
/// When it is none of these, or its ends are of two families or the wrong way round.
pub fn range(text: &str) -> Result<String, Invalid> {
    let ends = match text.split_once('-') {
        Some((first, last)) => (first.parse::<IpAddr>().ok(), last.parse::<IpAddr>().ok()),
        None => {
            let net = text.parse::<IpNet>().ok();
            let one = text.parse().ok().or_else(|| net.map(|net| net.network()));
            (one, one)
        }
    };
    match ends {
        (Some(first), Some(last)) if first.is_ipv4() == last.is_ipv4() && first <= last => {
            Ok(text.to_owned())
        }
        (Some(_), Some(_)) => Err(Invalid::new(
            "the last address does not follow the first",
            "write the lower one first, both of one family",
        )),
        _ => Err(Invalid::new(
            "not a range of addresses",
            "write one such as 198.51.100.9, 198.51.100.10-198.51.100.20 or 198.51.100.64/26",
        )),
    }
}

fn check_subnet(net: IpNet) -> Result<(), Invalid> {
    if net.trunc() != net {
        return Err(Invalid::new(
            format!("{net} has host bits set"),
            format!("write {}, the subnet that holds it", net.trunc()),
        ));
    }
    let most = if net.addr().is_ipv4() { 30 } else { 126 };
    if net.prefix_len() > most {
        return Err(Invalid::new(
            format!("{net} has no room for two endpoints"),
            format!("write a prefix length of at most {most}"),
        ));
    }
    let network = net.network();
    let kind = match network {
        _ if net.prefix_len() == 0 => Some("is every address"),
        _ if network.is_multicast() => Some("is multicast"),
        _ if network.is_loopback() => Some("is loopback"),
        _ if network.is_unspecified() => Some("starts at the unspecified address"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("is link-local"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("is link-local"),
        _ => None,
    };
    match kind {
        Some(kind) => Err(Invalid::new(
            format!("{net} {kind}"),
            "write a subnet of private or of your own addresses",
        )),
        None => Ok(()),
    }
}

/// A VNI that a network can have.
///
/// # Errors
/// When it is no number from 1 to 16777215.
pub fn vni(text: &str) -> Result<u32, Invalid> {
    let number = text.parse::<u32>().unwrap_or(0);
    check_vni(number)?;
    Ok(number)
}

fn check_vni(number: u32) -> Result<(), Invalid> {
    match Vni::new(number) {
        Some(vni) if vni.get() != 0 => Ok(()),
        _ => Err(Invalid::new("not a VNI", format!("write a number from 1 to {}", Vni::MAX))),
    }
}

/// The MTU of a network in bytes.
///
/// # Errors
/// When it is no number from 576 to 65465.
pub fn mtu(text: &str) -> Result<u16, Invalid> {
    let bytes = text.parse::<u16>().unwrap_or(0);
    check_mtu(bytes, false)?;
    Ok(bytes)
}

fn check_mtu(bytes: u16, ipv6: bool) -> Result<(), Invalid> {
    let least = if ipv6 { MTU_MIN_IPV6 } else { MTU_MIN };
    if (least..=MTU_MAX).contains(&bytes) {
        return Ok(());
    }
    let cause = if ipv6 && bytes >= MTU_MIN {
        format!("an MTU of {bytes} is too small for IPv6")
    } else {
        "not an MTU of a network".to_owned()
    };
    Err(Invalid::new(cause, format!("write a number of bytes from {least} to {MTU_MAX}")))
}

/// The MAC of an endpoint.
///
/// # Errors
/// When it is no MAC, or zero, or a group address.
pub fn mac(text: &str) -> Result<MacAddr, Invalid> {
    let example = "write six hexadecimal bytes, such as 02:42:c6:33:64:02";
    let mac: MacAddr = text.parse().map_err(|_| Invalid::new("not a MAC address", example))?;
    check_mac(mac)?;
    Ok(mac)
}

fn check_mac(mac: MacAddr) -> Result<(), Invalid> {
    let next = "write a unicast address, such as 02:42:c6:33:64:02";
    match mac {
        MacAddr::ZERO => Err(Invalid::new("the zero address names no interface", next)),
        _ if mac.is_multicast() => Err(Invalid::new(format!("{mac} is a group address"), next)),
        _ => Ok(()),
    }
}

/// An address of an endpoint or VTEP.
///
/// # Errors
/// When it is no address, has a prefix length, or is one that no host can have.
pub fn ip(text: &str) -> Result<IpAddr, Invalid> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Err(Invalid::new(
            "an address goes without prefix length here",
            format!("write {}", net.addr()),
        ));
    }
    let example = "write an address such as 198.51.100.2 or 2001:db8:51::2";
    let ip: IpAddr = text.parse().map_err(|_| Invalid::new("not an IP address", example))?;
    check_ip(ip)?;
    Ok(ip)
}

fn check_ip(ip: IpAddr) -> Result<(), Invalid> {
    let kind = match ip {
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 form",
        _ => return Ok(()),
    };
    Err(Invalid::new(format!("{ip} is {kind}"), "write the address of one host"))
}

/// An interface name.
///
/// # Errors
/// When the kernel would refuse it (`dev_valid_name` of net/core/dev.c), or it is `lo`.
pub fn ifname(text: &str) -> Result<String, Invalid> {
    let rule = format!("write 1 to {IFNAME_MAX} characters without `/`, `:` and spaces");
    let valid = (1..=IFNAME_MAX).contains(&text.len())
        && !matches!(text, "." | ".." | "lo" | "all" | "default")
        && text.chars().all(|c| c.is_ascii_graphic() && !"/:%".contains(c));
    if valid { Ok(text.to_owned()) } else { Err(Invalid::new("not an interface name", rule)) }
}

/// How a sandbox is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Netns {
    /// Below `/run/netns`.
    Name(String),
    /// A file that is a network namespace.
    Path(PathBuf),
    /// The id of a process in it.
    Pid(u32),
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "{pid}"),
        }
    }
}

/// A sandbox: a number is a process id, what has a `/` is a path, anything else a name.
///
/// # Errors
/// When it is empty, process 0, or a name that no file can have.
pub fn netns(text: &str) -> Result<Netns, Invalid> {
    let rule = "write a name below /run/netns, a path such as /proc/PID/ns/net, or a process id";
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse::<i32>().ok().and_then(|pid| u32::try_from(pid).ok()) {
            Some(pid) if pid > 0 => Ok(Netns::Pid(pid)),
            _ => Err(Invalid::new("not a process id", rule)),
        };
    }
    if text.contains('\0') || text.is_empty() || text == "." || text == ".." {
        return Err(Invalid::new("not a network namespace", rule));
    }
    if text.contains('/') {
        return Ok(Netns::Path(PathBuf::from(text)));
    }
    Ok(Netns::Name(text.to_owned()))
}

/// A sandbox as the agent, another process in another directory, can resolve it: paths are made
/// absolute against `directory`, and `/proc/self` becomes `/proc/PID` with `pid`.
///
/// # Errors
/// See [`netns`].
pub fn netns_for_agent(text: &str, directory: &Path, pid: u32) -> Result<String, Invalid> {
    let Netns::Path(path) = netns(text)? else { return Ok(text.to_owned()) };
    let mut absolute = PathBuf::new();
    for component in directory.join(path).components() {
        // `..` is left to the kernel: it may follow a link.
        if component != Component::CurDir {
            absolute.push(component);
        }
    }
    for own in ["/proc/self", "/proc/thread-self"] {
        if let Ok(rest) = absolute.strip_prefix(own) {
            absolute = Path::new("/proc").join(pid.to_string()).join(rest);
            break;
        }
    }
    absolute.into_os_string().into_string().map_err(|_| {
        Invalid::new("the path is not UTF-8", "give the id of a process in the namespace instead")
    })
}

/// `KEY=VALUE` of an option or label.
///
/// # Errors
/// When there is no `=`, the key is no name, or the value is too long.
pub fn pair(text: &str) -> Result<(String, String), Invalid> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Invalid::new("there is no `=`", "write KEY=VALUE"));
    };
    check_pair(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn check_pair(key: &str, value: &str) -> Result<(), Invalid> {
    let valid = (1..=KEY_MAX).contains(&key.len())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if !valid {
        return Err(Invalid::new(
            format!("`{key}` is no key"),
            format!("write 1 to {KEY_MAX} letters, digits, `-`, `_`, `.` or `/`"),
        ));
    }
    if value.len() > VALUE_MAX || value.chars().any(char::is_control) {
        return Err(Invalid::new(
            format!("the value of `{key}` is too long or has control characters"),
            format!("write at most {VALUE_MAX} printable bytes"),
        ));
    }
    Ok(())
}

// ===== impl Check =====

/// A request that can be checked without knowing the cluster.
pub trait Check {
    /// Refuses what can never be done.
    ///
    /// # Errors
    /// A bad request with its cause and next step.
    fn check(&self) -> Result<(), Error>;
}

/// Gives a value's fault the name of the request's part that has it.
fn part<T>(what: &str, result: Result<T, Invalid>) -> Result<T, Error> {
    result.map_err(|invalid| {
        Error::bad_request(format!("wrong {what}"))
            .cause(invalid.cause)
            .next_step(invalid.next_step)
    })
}

fn check_pairs<V>(
    what: &str,
    pairs: &BTreeMap<String, V>,
    value: impl Fn(&V) -> &str,
) -> Result<(), Error> {
    if pairs.len() > PAIRS_MAX {
        return Err(Error::bad_request(format!("there are {} {what}s", pairs.len()))
            .next_step(format!("give at most {PAIRS_MAX}")));
    }
    pairs.iter().try_for_each(|(key, v)| part(what, check_pair(key, value(v))))
}

impl Check for CollectGarbage {
    fn check(&self) -> Result<(), Error> {
        self.host.iter().try_for_each(|host| part("host", name(host).map(drop)))
    }
}

impl Check for CreateNetwork {
    fn check(&self) -> Result<(), Error> {
        part("name", name(&self.name))?;
        if self.subnets.is_empty() || self.subnets.len() > SUBNETS_MAX {
            return Err(Error::bad_request(format!("there are {} subnets", self.subnets.len()))
                .next_step(format!("give 1 to {SUBNETS_MAX}, such as --subnet 198.51.100.0/24")));
        }
        for (index, net) in self.subnets.iter().enumerate() {
            part("subnet", check_subnet(*net))?;
            let overlaps = |other: &&IpNet| other.contains(net) || net.contains(*other);
            if let Some(other) = self.subnets.iter().take(index).find(overlaps) {
                return Err(Error::bad_request("two subnets of the network overlap")
                    .cause(format!("{net} and {other} share addresses"))
                    .next_step("give subnets that lie apart"));
            }
        }
        if let Some(vni) = self.vni {
            part("VNI", check_vni(vni))?;
        }
        if self.udp_port == Some(0) {
            return Err(Error::bad_request("there is no UDP port 0")
                .next_step("give one from 1 to 65535, or none for that of each host"));
        }
        if let Some(mtu) = self.mtu {
            let ipv6 = self.subnets.iter().any(|net| net.addr().is_ipv6());
            part("MTU", check_mtu(mtu, ipv6))?;
        }
        self.check_gateway()?;
        self.exclude.iter().try_for_each(|text| part("excluded range", range(text).map(drop)))?;
        check_pairs("option", &self.options, String::as_str)?;
        check_pairs("label", &self.labels, String::as_str)
    }
}

impl CreateNetwork {
    fn check_gateway(&self) -> Result<(), Error> {
        let Gateway::Addresses(addresses) = &self.gateway else { return Ok(()) };
        let next = "give one address of each subnet's family, or `none`";
        for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            if addresses.iter().filter(|ip| family(ip)).count() > 1 || addresses.is_empty() {
                return Err(Error::bad_request("wrong gateway")
                    .cause("there is not one address per family")
                    .next_step(next));
            }
        }
        for address in addresses {
            let Some(net) = self.subnets.iter().find(|net| net.contains(address)) else {
                return Err(Error::bad_request("wrong gateway")
                    .cause(format!("{address} is in no subnet of the network"))
                    .next_step(next));
            };
            let edge =
                *address == net.network() || (address.is_ipv4() && *address == net.broadcast());
            if edge {
                return Err(Error::bad_request("wrong gateway")
                    .cause(format!("{address} is the first or last address of {net}"))
                    .next_step("give an address that a host can have"));
            }
        }
        Ok(())
    }
}

impl Check for UpdateNetwork {
    fn check(&self) -> Result<(), Error> {
        if self.is_empty() {
            return Err(Error::bad_request("nothing to change").next_step(
                "give --mtu, --option or --label; subnets, mode and VNI stay for the life of a \
                 network",
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != 0) {
            part("MTU", check_mtu(mtu, false))?;
        }
        let value = |value: &Option<String>| value.clone().unwrap_or_default();
        for (what, pairs) in [("option", &self.options), ("label", &self.labels)] {
            let pairs = pairs.iter().map(|(key, v)| (key.clone(), value(v))).collect();
            check_pairs(what, &pairs, String::as_str)?;
        }
        Ok(())
    }
}

impl Check for VtepAdd {
    fn check(&self) -> Result<(), Error> {
        part("VTEP address", check_ip(self.address))?;
        if self.port == Some(0) {
            return Err(
                Error::bad_request("wrong port").next_step("give a UDP port from 1 to 65535")
            );
        }
        for known in &self.macs {
            part("MAC", check_mac(known.mac))?;
            known.ips.iter().try_for_each(|ip| part("address", check_ip(*ip)))?;
        }
        Ok(())
    }
}

impl Check for LinkKernel {
    fn check(&self) -> Result<(), Error> {
        part("device", ifname(&self.dev).map(drop))?;
        self.vtep.map_or(Ok(()), |vtep| part("VTEP address", check_ip(vtep)))?;
        self.host.iter().try_for_each(|host| part("host", name(host).map(drop)))?;
        match &self.netns {
            Some(netns) => check_netns(netns),
            None if self.action == KernelAction::Stop => Ok(()),
            None => Err(Error::bad_request("no namespace is given")
                .next_step("give that of the device with --netns")),
        }
    }
}

impl Check for MakeToken {
    fn check(&self) -> Result<(), Error> {
        self.host.as_deref().map_or(Ok(()), |host| part("host", name(host)).map(drop))
    }
}

impl Check for Attach {
    fn check(&self) -> Result<(), Error> {
        part("network", reference(&self.network))?;
        check_netns(&self.netns)?;
        self.ips.iter().try_for_each(|ip| part("address", check_ip(*ip)))?;
        if let Some(mac) = self.mac {
            part("MAC", check_mac(mac))?;
        }
        if let Some(endpoint) = &self.moves {
            part("endpoint", reference(endpoint))?;
            if !self.ips.is_empty() || self.mac.is_some() {
                return Err(Error::bad_request("a move cannot ask for addresses or a MAC")
                    .cause("the endpoint keeps those that it has")
                    .next_step("leave the addresses and the MAC out"));
            }
        }
        part("interface name", ifname(&self.ifname))?;
        if let Some(text) = &self.name {
            part("name", name(text))?;
        }
        check_pairs("label", &self.labels, String::as_str)
    }
}

impl Check for Detach {
    fn check(&self) -> Result<(), Error> {
        self.target()?;
        for text in [&self.network, &self.endpoint].into_iter().flatten() {
            part("name or id", reference(text))?;
        }
        self.netns.as_deref().map_or(Ok(()), check_netns)
    }
}

fn check_netns(text: &str) -> Result<(), Error> {
    match part("sandbox", netns(text))? {
        Netns::Path(path) if path.is_relative() => Err(Error::bad_request("wrong sandbox")
            .cause(format!(
                "{} is a relative path, and the agent has its own directory",
                path.display()
            ))
            .next_step("give an absolute path")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

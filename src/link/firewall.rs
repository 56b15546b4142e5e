//! Our own rules in the host's namespace: what may pass an uplink, and masquerading.
//!
//! # Theory of operation
//!
//! One table of the `inet` family for each agent, replaced whole in one transaction:
//!
//! ```text
//!   prerouting    within a network whose packets go as they are: not tracked. The two directions,
//!                 and the packets before and after, may go another way
//!   forward       between two networks: never. Out: only where masquerading is on. In: what
//!                 belongs to a connection from inside, or was sent in by a port forwarding.
//!                 Within a network whose packets go as they are, by the underlay's interfaces: all,
//!                 and errors about them; into such a network from another one: nothing
//!   input         from a network without access to its host: nothing new
//!   output        to such a network: nothing new
//!   postrouting   masquerade; UDP with source ports that none of this host's own senders has
//! ```
//!
//! A drop here is final whatever other tables say, an accept is not: other base chains are asked
//! too ([`super::permission`]). So all that is forbidden is forbidden here, and nothing else.
//!
//! The range of UDP ports matters because the switch sends and receives VXLAN from the same host
//! address: a container's flow that kept the switch's port as its own, towards another VTEP, would
//! take the answers of that VTEP to the container.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::names::UPLINK;
use super::nft::{in_namespace, nft};
use super::{Error, NetNs, Owner};

/// A network's way out through this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Its uplink's name in the host's namespace.
    pub uplink: String,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// Whether it is masqueraded to the world.
    pub masquerade: bool,
    /// Whether it and the host may talk.
    pub host_access: bool,
    /// Whether its packets may come from and go to other hosts as they are.
    pub direct: bool,
}

impl Way {
    /// The subnets by family: what nft calls it, and a set.
    fn sets(&self) -> Vec<(&'static str, String)> {
        let of = |v6: bool| {
            let all = self.subnets.iter().filter(move |subnet| subnet.addr().is_ipv6() == v6);
            all.map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let sets = [("ip", of(false)), ("ip6", of(true))];
        sets.into_iter().filter(|(_, set)| !set.is_empty()).collect()
    }
}

/// All rules of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Whose.
    pub owner: Owner,
    /// For these networks, sorted.
    pub ways: Vec<Way>,
    /// Names of the interfaces that other hosts' packets come by as they are, sorted.
    pub underlays: Vec<String>,
    /// Source ports for masqueraded UDP.
    pub udp_ports: RangeInclusive<u16>,
}

/// The name of an owner's table.
#[must_use]
pub fn table(owner: &Owner) -> String {
    format!("skybridge_{}", owner.hash())
}

/// The UDP ports for masqueraded flows: the largest range above the privileged ones that has none of
/// `own` and, where that leaves any room to speak of, none of those that the kernel gives to the
/// host's own sockets. The switch's send sockets are among the latter.
#[must_use]
pub fn udp_ports(own: &[u16], ephemeral: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    /// Fewer would run out.
    const ENOUGH: u16 = 1024;
    let largest = |avoided: &dyn Fn(u16) -> bool| {
        let (mut best, mut first) = (0..=0_u16, None);
        for port in 1024..=u16::MAX {
            if avoided(port) {
                first = None;
                continue;
            }
            let first = *first.get_or_insert(port);
            if best == (0..=0) || port - first > best.end() - best.start() {
                best = first..=port;
            }
        }
        best
    };
    let narrow = largest(&|port| own.contains(&port) || ephemeral.contains(&port));
    if narrow.end() - narrow.start() >= ENOUGH { narrow } else { largest(&|p| own.contains(&p)) }
}

impl Rules {
    /// What `nft -f` takes: the table as it shall be, in one transaction.
    #[must_use]
    pub fn script(&self) -> String {
        let name = table(&self.owner);
        let ours = self.owner.uplinks();
        let mut text = remove_script(&self.owner);
        let mut line = |rest: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{rest}");
        };
        line(format_args!("add table inet {name}"));
        for (chain, kind, priority) in [
            ("prerouting", "filter hook prerouting", -300),
            ("forward", "filter hook forward", 0),
            ("input", "filter hook input", 0),
            ("output", "filter hook output", 0),
            ("postrouting", "nat hook postrouting", 100),
        ] {
            line(format_args!(
                "add chain inet {name} {chain} {{ type {kind} priority {priority}; policy accept; }}"
            ));
        }
        let mut rule = |chain: &str, rest: std::fmt::Arguments<'_>| {
            line(format_args!("add rule inet {name} {chain} {rest}"));
        };
        let (from, to) = (format!("iifname \"{ours}*\""), format!("oifname \"{ours}*\""));
        rule("forward", format_args!("{from} oifname \"{UPLINK}*\" counter drop"));
        let quoted: Vec<String> = self.underlays.iter().map(|name| format!("\"{name}\"")).collect();
        let underlays = format!("{{ {} }}", quoted.join(", "));
        for way in self.ways.iter().filter(|way| way.direct && !quoted.is_empty()) {
            let uplink = &way.uplink;
            for (word, set) in way.sets() {
                let within = format!("{word} saddr {{ {set} }} {word} daddr {{ {set} }}");
                let (out, back) = (
                    format!("iifname \"{uplink}\" oifname {underlays}"),
                    format!("iifname {underlays} oifname \"{uplink}\""),
                );
                rule("prerouting", format_args!("iifname \"{uplink}\" {within} notrack"));
                rule("prerouting", format_args!("iifname {underlays} {within} notrack"));
                rule("forward", format_args!("{out} {within} accept"));
                rule("forward", format_args!("{back} {within} accept"));
                let errors = match word {
                    "ip" => {
                        "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
                    }
                    _ => {
                        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, \
                         parameter-problem }"
                    }
                };
                rule("forward", format_args!("{back} {word} daddr {{ {set} }} {errors} accept"));
            }
        }
        // The table of routes is one for all: what is not of a network does not get into it as it is.
        for way in self.ways.iter().filter(|way| way.direct && !quoted.is_empty()) {
            for (word, set) in way.sets() {
                let into = format!("oifname {underlays} {word} daddr {{ {set} }}");
                rule("forward", format_args!("{from} {into} counter drop"));
            }
        }
        for way in self.ways.iter().filter(|way| way.masquerade) {
            rule("forward", format_args!("iifname \"{}\" accept", way.uplink));
        }
        rule("forward", format_args!("{from} counter drop"));
        rule("forward", format_args!("{to} ct state established,related accept"));
        rule("forward", format_args!("{to} ct status dnat accept"));
        rule("forward", format_args!("{to} counter drop"));
        for way in self.ways.iter().filter(|way| !way.host_access) {
            let uplink = &way.uplink;
            rule("input", format_args!("iifname \"{uplink}\" ct state established,related accept"));
            // The two ends of the uplink must find each other.
            rule(
                "input",
                format_args!(
                    "iifname \"{uplink}\" \
                     icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept"
                ),
            );
            rule("input", format_args!("iifname \"{uplink}\" counter drop"));
            rule("output", format_args!("oifname \"{uplink}\" ct state new counter drop"));
        }
        let ports = format!("{}-{}", self.udp_ports.start(), self.udp_ports.end());
        for way in self.ways.iter().filter(|way| way.masquerade) {
            for subnet in &way.subnets {
                let family = if matches!(subnet.addr(), IpAddr::V4(_)) { "ip" } else { "ip6" };
                let sets = way.sets().into_iter().filter(|(word, _)| way.direct && *word == family);
                // What goes to other hosts as it is keeps its source.
                let beyond: String =
                    sets.map(|(word, set)| format!(" {word} daddr != {{ {set} }}")).collect();
                let from = format!("{family} saddr {subnet}{beyond} oifname != \"{UPLINK}*\"");
                rule("postrouting", format_args!("{from} meta l4proto udp masquerade to :{ports}"));
                rule("postrouting", format_args!("{from} masquerade"));
            }
        }
        text
    }
}

fn remove_script(owner: &Owner) -> String {
    let name = table(owner);
    // Removes the table whether it is there or not.
    format!("add table inet {name}\ndelete table inet {name}\n")
}

/// Writes the rules, and gives the table as nft shows it then: what [`present`] gives until somebody
/// else changes it. Without a way the table is removed, and nothing is given.
///
/// # Errors
/// `Nft`; the rules are then as they were.
pub async fn apply(host: &NetNs, rules: &Rules) -> Result<Option<String>, Error> {
    let (text, name) = match rules.ways.is_empty() {
        true => (remove_script(&rules.owner), None),
        false => (rules.script(), Some(table(&rules.owner))),
    };
    in_namespace(host, move || {
        nft("write the rules of the uplinks", &["-f", "-"], &text)?;
        match name {
            Some(name) => list(&name).map(Some),
            None => Ok(None),
        }
    })
    .await
}

/// The table as nft shows it, without counters; `None` when there is none, or no nft to ask.
///
/// # Errors
/// When the namespace cannot be entered.
pub async fn present(host: &NetNs, owner: &Owner) -> Result<Option<String>, Error> {
    let name = table(owner);
    // That the table is missing is an error to nft.
    in_namespace(host, move || Ok(list(&name).ok())).await
}

fn list(table: &str) -> Result<String, Error> {
    nft("read the rules of the uplinks", &["-s", "list", "table", "inet", table], "")
}

/// Removes an owner's table. Returns whether there was one.
///
/// # Errors
/// `Nft`.
pub async fn remove(host: &NetNs, owner: &Owner) -> Result<bool, Error> {
    let (text, name) = (remove_script(owner), table(owner));
    in_namespace(host, move || {
        let there = list(&name).is_ok();
        if there {
            nft("remove the rules of the uplinks", &["-f", "-"], &text)?;
        }
        Ok(there)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_ports_of_masqueraded_flows_are_none_of_our_own() {
        assert_eq!(udp_ports(&[4789], &(32768..=60999)), 4790..=32767);
        assert_eq!(udp_ports(&[4789, 20000], &(32768..=60999)), 4790..=19999);
        // All ports may be the host's: then only our own are avoided.
        assert_eq!(udp_ports(&[4789, 40000], &(1024..=65535)), 4790..=39999);
        assert_eq!(udp_ports(&[], &(1024..=65535)), 1024..=65535);
    }

    fn rules(masquerade: bool, host_access: bool) -> String {
        with_direct(masquerade, host_access, false)
    }

    fn with_direct(masquerade: bool, host_access: bool, direct: bool) -> String {
        let owner = Owner::new(Path::new("/nowhere/a"));
        let way = Way {
            uplink: owner.uplink("n1"),
            subnets: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            masquerade,
            host_access,
            direct,
        };
        let underlays = vec!["eth0".to_owned(), "eth1".to_owned()];
        Rules { owner, ways: vec![way], underlays, udp_ports: 4790..=32767 }.script()
    }

    #[test]
    fn a_network_without_masquerading_does_not_get_out() {
        let text = rules(false, true);
        assert!(!text.contains("masquerade"), "{text}");
        let forward: Vec<&str> = text.lines().filter(|line| line.contains(" forward ")).collect();
        assert!(!forward.iter().any(|line| line.ends_with("\" accept")), "{text}");
        let text = rules(true, true);
        assert!(text.contains("ip saddr 192.0.2.0/24 oifname != \"sky*\" meta l4proto udp"));
        assert!(text.contains("ip6 saddr 2001:db8::/64"), "{text}");
    }

    #[test]
    fn packets_that_go_as_they_are_pass_and_keep_their_source() {
        let text = with_direct(true, false, true);
        let forward: Vec<&str> = text.lines().filter(|line| line.contains(" forward ")).collect();
        let at = |part: &str| forward.iter().position(|line| line.contains(part)).unwrap();
        let within = "ip6 saddr { 2001:db8::/64 } ip6 daddr { 2001:db8::/64 }";
        let passes = at(&format!("{within} accept"));
        // Only by the underlay: any other interface could claim to be a host.
        assert!(forward[passes].contains("{ \"eth0\", \"eth1\" }"), "{}", forward[passes]);
        assert!(text.contains(&format!("iifname {{ \"eth0\", \"eth1\" }} {within} notrack")));
        // Never from one network to another, but before anything else is ended.
        assert!(at("oifname \"sky*\" counter drop") < passes);
        assert!(passes < forward.iter().rposition(|line| line.ends_with("drop")).unwrap());
        // Nor from elsewhere into one by the table of routes, which all share; also not masqueraded.
        let into = at("ip6 daddr { 2001:db8::/64 } counter drop");
        let out = forward.iter().position(|line| line.ends_with("\" accept")).unwrap();
        assert!(passes < into && into < out, "{text}");
        let beyond = "ip saddr 192.0.2.0/24 ip daddr != { 192.0.2.0/24 } oifname != \"sky*\" masq";
        assert!(text.contains(beyond), "{text}");
        assert!(!rules(true, false).contains("daddr"));
    }

    #[test]
    fn a_network_without_access_and_its_host_do_not_talk() {
        assert!(!rules(true, true).contains(" input iifname"));
        let text = rules(true, false);
        let end = text.lines().rfind(|line| line.contains(" input ")).unwrap();
        assert!(end.ends_with("counter drop"), "{text}");
        assert!(text.contains("ct state new counter drop"), "{text}");
    }
}

//! A namespace with an interface in an overlay network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::lab::{Family, Lab};
use crate::netns::Netns;

/// A namespace with an interface in an overlay network, whoever made it.
#[derive(Debug, Clone)]
pub struct Container {
    netns: Arc<Netns>,
    ifname: String,
    mac: [u8; 6],
    mtu: u16,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl Container {
    /// Reads the interface `ifname` of `netns` as it is now.
    ///
    /// # Panics
    ///
    /// If it is not there.
    #[track_caller]
    #[must_use]
    pub fn inspect(netns: Arc<Netns>, ifname: &str) -> Self {
        let answer = netns.ip_json(&format!("addr show dev {ifname}"));
        let link = &answer[0];
        let mac = link["address"].as_str().and_then(parse_mac);
        let mtu = link["mtu"].as_u64().and_then(|mtu| u16::try_from(mtu).ok());
        let address = |family: &str| {
            let entries = link["addr_info"].as_array().into_iter().flatten();
            entries
                .filter(|entry| entry["family"] == family && entry["scope"] == "global")
                .find_map(|entry| entry["local"].as_str()?.parse::<IpAddr>().ok())
        };
        let ipv4 = match address("inet") {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        };
        let ipv6 = match address("inet6") {
            Some(IpAddr::V6(ip)) => Some(ip),
            _ => None,
        };
        Self {
            ifname: ifname.to_owned(),
            mac: mac.unwrap_or_else(|| panic!("no MAC in {answer}")),
            mtu: mtu.unwrap_or_else(|| panic!("no MTU in {answer}")),
            ipv4,
            ipv6,
            netns,
        }
    }

    /// A sandbox with addresses like `198.51.100.9/24` on `eth0`, the other end of which is the
    /// interface `name` of `host`, up.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[track_caller]
    pub fn plug(lab: &Lab, host: &Netns, (name, mtu): (&str, u16), addresses: &[&str]) -> Self {
        let sandbox = lab.sandbox(name);
        host.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            sandbox.name()
        ));
        host.ip(&format!("link set {name} up"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            sandbox.ip(&format!("addr add {address} dev eth0 {nodad}"));
        }
        sandbox.ip("link set eth0 up");
        Self::inspect(sandbox, "eth0")
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The interface's name.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// The interface's MAC.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The interface's MTU in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The interface's address of the family.
    ///
    /// # Panics
    ///
    /// If it has none.
    #[track_caller]
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        let address = match family {
            Family::V4 => self.ipv4.map(IpAddr::from),
            Family::V6 => self.ipv6.map(IpAddr::from),
        };
        address.unwrap_or_else(|| panic!("{} has no {family:?} address", self.netns.name()))
    }

    /// The families that the interface has an address of.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let v4 = self.ipv4.map(|_| Family::V4);
        let v6 = self.ipv6.map(|_| Family::V6);
        v4.into_iter().chain(v6).collect()
    }

    /// Switches all offloads of the interface on or off.
    #[track_caller]
    pub fn set_offloads(&self, on: bool) {
        set_offloads(&self.netns, &self.ifname, on);
    }

    /// Checksum errors that the kernel of this container has counted, over all protocols: a frame
    /// whose inner checksum is wrong on arrival shows here and nowhere else.
    #[must_use]
    pub fn checksum_errors(&self) -> u64 {
        let read = |path: &str| {
            self.netns.enter(|| {
                let path = format!("/proc/thread-self/net/{path}");
                std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"))
            })
        };
        paired_counters(&read("snmp"), "InCsumErrors")
            + listed_counters(&read("snmp6"), "InCsumErrors")
    }
}

/// Switches all offloads of an interface on or off, as `ethtool -K` does.
#[track_caller]
pub(crate) fn set_offloads(netns: &Netns, ifname: &str, on: bool) {
    netns.ethtool(ifname, &["tx", "rx", "tso", "gso", "gro", "tx-udp-segmentation"], on);
}

/// The sum of the counters of that name in the form of `/proc/net/snmp`: a line of names, a line
/// of values, for each protocol.
fn paired_counters(text: &str, name: &str) -> u64 {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .chunks_exact(2)
        .flat_map(|pair| pair[0].split_whitespace().zip(pair[1].split_whitespace()))
        .filter(|(key, _)| *key == name)
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// The sum of the counters whose name ends so in the form of `/proc/net/snmp6`: one per line.
fn listed_counters(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .filter(|(key, _)| key.ends_with(name))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_forms_are_summed() {
        let snmp = "Icmp: InMsgs InErrors InCsumErrors\nIcmp: 9 8 1\nUdp: InDatagrams InCsumErrors\nUdp: 5 2\n";
        assert_eq!(paired_counters(snmp, "InCsumErrors"), 3);
        let snmp6 = "Icmp6InCsumErrors               \t4\nUdp6InCsumErrors \t5\nUdp6InErrors \t7\n";
        assert_eq!(listed_counters(snmp6, "InCsumErrors"), 9);
    }

    #[test]
    fn macs_are_parsed_whole() {
        assert_eq!(parse_mac("00:00:5e:00:53:01"), Some([0, 0, 0x5e, 0, 0x53, 1]));
        assert_eq!(parse_mac("00:00:5e:00:53"), None);
        assert_eq!(parse_mac("00:00:5e:00:53:01:02"), None);
    }
}

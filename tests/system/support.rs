//! What several modules of the system tests share.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;
use testkit::traffic::{self, Tcp, Udp};
use testkit::{Agent, Cap, Container, Family, Lab, Store, Underlay};

/// What every test with agents needs.
pub(crate) const AGENTS: &[Cap] = &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft];
/// With a real etcd beside them.
pub(crate) const WITH_ETCD: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd];
/// With an etcd that is managed by `etcdctl` and has certificates of `openssl`.
pub(crate) const WITH_TLS: &[Cap] = &[
    Cap::Root,
    Cap::Links,
    Cap::Tun,
    Cap::Ethtool,
    Cap::Nft,
    Cap::Etcd,
    Cap::Etcdctl,
    Cap::Openssl,
];
/// With the kernel's vxlan device on the other side.
pub(crate) const WITH_VXLAN: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Vxlan];

/// The network of most tests.
pub(crate) const NETWORK: &str = "blue";
/// Its VNI.
pub(crate) const VNI: u32 = 7001;
/// How it is made: both families inside.
pub(crate) const DUAL: &[&str] =
    &["--subnet", "198.51.100.0/24", "--subnet", "2001:db8:1::/64", "--vni", "7001"];

/// For the titles of matrix tests.
pub(crate) fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// A lab with an agent on each host, the network, and a container on each: `c1` on host 1, ...
pub(crate) fn cluster(
    hosts: usize,
    underlay: Underlay,
    store: Store,
    family: Family,
) -> (Lab, Vec<Agent>, Vec<Container>) {
    let lab = Lab::with_hosts(hosts).underlay(underlay).build();
    let all: Vec<usize> = (1..=hosts).collect();
    let agents = lab.start_agents(&all, store, family);
    agents[0].create_network(NETWORK, DUAL);
    let containers = containers(&lab, &agents);
    (lab, agents, containers)
}

/// A container of the network on each agent's host.
pub(crate) fn containers(lab: &Lab, agents: &[Agent]) -> Vec<Container> {
    (1..)
        .zip(agents)
        .map(|(index, agent)| agent.container(lab, NETWORK, &format!("c{index}"), &[]))
        .collect()
}

/// Pings of all sizes and verified TCP and UDP from `a` to `b` over each family that both have:
/// small, as large as fits, and larger than fits.
pub(crate) fn exchange(lab: &Lab, a: &Container, b: &Container, bytes: u64) {
    for family in a.families() {
        let to = b.address(family);
        let fits = traffic::largest_ping(a.mtu(), family);
        for size in [56, fits, fits + 1, 5000] {
            traffic::ping(a.netns(), to, size);
        }
        traffic::tcp(lab, a, b, family, Tcp { bytes, streams: 1, odd_sizes: true });
        traffic::tcp(lab, a, b, family, Tcp { bytes, streams: 4, odd_sizes: false });
        for (size, gso) in [(18, false), (1200, false), (1200, true), (4000, false)] {
            let how = Udp { count: 500, size, rate: 2500, gso };
            traffic::udp(lab, a, b, family, how);
        }
    }
}

/// As listings show it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Pings and verified TCP from `a` to `b` over each family that both have. Unlike [`exchange`] it
/// says nothing of loss, which a busy machine makes by itself.
pub(crate) fn carry(lab: &Lab, a: &Container, b: &Container, bytes: u64) {
    for family in a.families() {
        traffic::ping(a.netns(), b.address(family), 56);
        traffic::tcp(lab, a, b, family, Tcp { bytes, streams: 2, odd_sizes: true });
    }
}

/// The number that `drops --json` gives for a reason, 0 if it is not listed.
pub(crate) fn drops(agent: &Agent, reason: &str) -> u64 {
    find_reason(&agent.json(&["drops"]), reason).unwrap_or(0)
}

/// Finds `{"reason": NAME, "count": N}` or `"NAME": N` at any depth, and adds up all of them.
fn find_reason(value: &Value, reason: &str) -> Option<u64> {
    let sum = |found: Vec<u64>| (!found.is_empty()).then(|| found.iter().sum());
    match value {
        Value::Array(items) => {
            sum(items.iter().filter_map(|item| find_reason(item, reason)).collect())
        }
        Value::Object(fields) => {
            let named = fields.values().any(|value| value == reason);
            let count = ["count", "frames", "total", "drops"]
                .iter()
                .find_map(|key| fields.get(*key).and_then(Value::as_u64));
            match (named, count) {
                (true, Some(count)) => Some(count),
                _ => fields.get(reason).and_then(Value::as_u64).or_else(|| {
                    sum(fields.values().filter_map(|item| find_reason(item, reason)).collect())
                }),
            }
        }
        _ => None,
    }
}

/// Asserts that no container's kernel has counted a checksum error.
#[track_caller]
pub(crate) fn assert_no_checksum_errors(containers: &[&Container]) {
    for container in containers {
        let name = container.netns().name();
        assert_eq!(container.checksum_errors(), 0, "checksum errors counted in {name}");
    }
}

/// Prints a measured figure where a person sees it, also when the test passes.
pub(crate) fn measured(what: &str, value: impl std::fmt::Display) {
    let mut line = String::new();
    let _: std::fmt::Result = writeln!(line, "measured: {what}: {value}");
    let _: std::io::Result<()> = std::io::stderr().lock().write_all(line.as_bytes());
}

/// A number of a report.
#[track_caller]
pub(crate) fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {report}"))
}

//! Each capability of the datapath switched off: slower, never wrong.

use testkit::traffic::{self, Tcp, Udp};
use testkit::{AgentSpec, Family, KernelVtep, Lab, Store, Suite, Underlay, VtepSpec};

use crate::support::{
    AGENTS, DUAL, NETWORK, VNI, WITH_VXLAN, assert_no_checksum_errors, containers,
};

pub(crate) const MASKS: [(&str, &[&str]); 8] = [
    ("tso", &["tso"]),
    ("uso", &["uso"]),
    ("csum", &["csum"]),
    ("udp_gso", &["udp-gso"]),
    ("udp_gro", &["udp-gro"]),
    ("coalesce", &["coalesce"]),
    ("multiqueue", &["multiqueue"]),
    ("all", &["tso", "uso", "csum", "udp-gso", "udp-gro", "coalesce", "multiqueue"]),
];

pub(crate) fn register(suite: &mut Suite) {
    for (name, mask) in MASKS {
        for underlay in [Underlay::Offloading, Underlay::Plain] {
            let title = format!("offload::without_{name}_{underlay:?}").to_lowercase();
            suite.test(title, AGENTS, move || between_agents(mask, underlay));
        }
        suite.test(format!("offload::without_{name}_to_kernel"), WITH_VXLAN, move || {
            to_kernel(mask);
        });
    }
    for workers in ["1", "3"] {
        suite.test(format!("offload::workers_{workers}"), AGENTS, move || {
            check(Underlay::Offloading, |spec| spec.args(&["--workers", workers]));
        });
    }
}

/// The line of the configuration that switches capabilities off.
pub(crate) fn disable(mask: &[&str]) -> String {
    let list: Vec<_> = mask.iter().map(|name| format!("\"{name}\"")).collect();
    format!("disable = [{}]", list.join(", "))
}

fn between_agents(mask: &[&str], underlay: Underlay) {
    check(underlay, |spec| spec.config("[datapath]").config(&disable(mask)));
}

/// Runs the byte tests between two agents that are started as `change` says.
fn check(underlay: Underlay, change: impl Fn(AgentSpec) -> AgentSpec) {
    let lab = Lab::with_hosts(2).underlay(underlay).build();
    let agents: Vec<_> = [1, 2]
        .map(|host| lab.start_agent(host, change(lab.spec(host, Store::Embedded, Family::V4))))
        .into();
    agents[0].create_network(NETWORK, DUAL);
    let ends = containers(&lab, &agents);
    bytes(&lab, &ends[0], &ends[1]);
    bytes(&lab, &ends[1], &ends[0]);
    assert_no_checksum_errors(&[&ends[0], &ends[1]]);
}

fn to_kernel(mask: &[&str]) {
    let lab = Lab::with_hosts(2).build();
    let spec = lab.spec(1, Store::Embedded, Family::V4);
    let agent = lab.start_agent(1, spec.config("[datapath]").config(&disable(mask)));
    agent.create_network(NETWORK, &[DUAL, &["--option", "learning=true"]].concat());
    let other = lab.host(2);
    let address = other.address(Family::V4).to_string();
    let _ = agent.cli(&["network", "vtep", "add", NETWORK, &address]);
    let vtep = VtepSpec::new(VNI, Family::V4).remote(agent.vtep());
    let kernel = KernelVtep::create(&lab, other, &vtep);
    let ours = agent.container(&lab, NETWORK, "c1", &[]);
    let theirs = kernel.container(&lab, "k1", &["198.51.100.200/24", "2001:db8:1::200/64"]);
    bytes(&lab, &ours, &theirs);
    bytes(&lab, &theirs, &ours);
    assert_no_checksum_errors(&[&ours, &theirs]);
}

/// TCP and UDP of several shapes from one container to another, over each family that both have.
pub(crate) fn bytes(lab: &Lab, from: &testkit::Container, to: &testkit::Container) {
    for family in from.families() {
        let how = Tcp { bytes: 8_000_001, streams: 2, odd_sizes: true };
        traffic::tcp(lab, from, to, family, how);
        for (size, gso) in [(64, false), (1200, true), (3000, false)] {
            let how = Udp { count: 500, size, rate: 2500, gso };
            traffic::udp(lab, from, to, family, how);
        }
    }
}

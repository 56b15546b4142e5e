//! Open vSwitch's userspace datapath on the other side, and all three in one network.

use testkit::traffic::{self, Tcp, Udp};
use testkit::{Agent, Cap, Container, Family, KernelVtep, Lab, OvsVtep};
use testkit::{Store, Suite, Underlay, VtepSpec};

use crate::support::{DUAL, NETWORK, VNI, assert_no_checksum_errors, mac_text, word};

const BYTES: u64 = 2_000_001;

const WITH_OVS: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Vxlan, Cap::Ovs];

/// Addresses that IPAM gives to nobody on its own this early.
const OVS_ADDRESSES: &[&str] = &["198.51.100.210/24", "2001:db8:1::210/64"];
const KERNEL_ADDRESSES: &[&str] = &["198.51.100.200/24", "2001:db8:1::200/64"];

pub(crate) fn register(suite: &mut Suite) {
    for family in [Family::V4, Family::V6] {
        suite.test(format!("ovs::both_directions_{}", word(family)), WITH_OVS, move || {
            both_directions(family);
        });
        suite.test(format!("ovs::three_ways_{}", word(family)), WITH_OVS, move || {
            three_ways(family);
        });
    }
}

/// An agent on host 1 whose network has each of the other hosts as a static VTEP.
fn agent(lab: &Lab, family: Family) -> Agent {
    let agent = lab.start_agent(1, lab.spec(1, Store::Embedded, family));
    agent.create_network(NETWORK, &[DUAL, &["--option", "learning=true"]].concat());
    for host in &lab.hosts()[1..] {
        let _ = agent.cli(&["network", "vtep", "add", NETWORK, &host.address(family).to_string()]);
    }
    agent
}

fn both_directions(family: Family) {
    let lab = Lab::with_hosts(2).underlay(Underlay::Plain).build();
    let agent = agent(&lab, family);
    let ovs = OvsVtep::create(&lab, lab.host(2), family, VNI, &[agent.vtep()]);
    let ours = agent.container(&lab, NETWORK, "c1", &[]);
    let theirs = ovs.container(&lab, "o1", OVS_ADDRESSES);
    assert_eq!(ours.mtu(), theirs.mtu(), "both sides come to the same MTU");
    traffic::ping(theirs.netns(), ours.address(Family::V4), 56);
    talk(&lab, &ours, &theirs);
    talk(&lab, &theirs, &ours);
    assert_no_checksum_errors(&[&ours, &theirs]);
}

/// Sizes below and above the MTU, TCP, and UDP at a rate that one thread of the userspace datapath can
/// carry.
fn talk(lab: &Lab, from: &Container, to: &Container) {
    for family in from.families() {
        let address = to.address(family);
        let fits = traffic::largest_ping(from.mtu(), family);
        for size in [56, fits, fits + 1, 5000] {
            traffic::ping(from.netns(), address, size);
        }
        traffic::tcp(lab, from, to, family, Tcp { bytes: BYTES, streams: 2, odd_sizes: true });
        // Its receive buffer holds some ninety packets. Of those that are sent in trains or go in
        // fragments, more must not come than it holds while its thread does not run for a while.
        for (size, gso, rate) in
            [(18, false, 1000), (1200, false, 1000), (1200, true, 200), (4000, false, 200)]
        {
            let how = Udp { count: 200, size, rate, gso };
            traffic::udp(lab, from, to, family, how);
        }
    }
}

/// Each speaks with each other: what one learned from another is where the third finds it too.
fn three_ways(family: Family) {
    let lab = Lab::with_hosts(3).underlay(Underlay::Plain).build();
    let agent = agent(&lab, family);
    let [_, two, three] = [1, 2, 3].map(|host| lab.host(host).address(family));
    let spec = VtepSpec::new(VNI, family).remote(agent.vtep()).remote(three).checksum(true);
    let kernel = KernelVtep::create(&lab, lab.host(2), &spec);
    let ovs = OvsVtep::create(&lab, lab.host(3), family, VNI, &[agent.vtep(), two]);
    let ends: [Container; 3] = [
        agent.container(&lab, NETWORK, "c1", &[]),
        kernel.container(&lab, "k1", KERNEL_ADDRESSES),
        ovs.container(&lab, "o1", OVS_ADDRESSES),
    ];
    for from in &ends {
        for to in ends.iter().filter(|to| to.mac() != from.mac()) {
            talk(&lab, from, to);
        }
    }
    assert_no_checksum_errors(&ends.each_ref());
    let fdb = agent.json(&["fdb"]).to_string();
    for end in &ends {
        assert!(fdb.contains(&mac_text(end.mac())), "{:?} in {fdb}", end.mac());
    }
}

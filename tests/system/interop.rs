//! The Linux kernel's vxlan device on the other side, known as a static VTEP.

use testkit::traffic::{self, Udp};
use testkit::{Agent, Container, Family, KernelVtep, Lab, Store, Suite, Underlay, VtepSpec};

use crate::support::{
    DUAL, NETWORK, VNI, WITH_VXLAN, assert_no_checksum_errors, exchange, mac_text, word,
};

const BYTES: u64 = 20_000_001;

/// Addresses that IPAM gives to nobody on its own this early, for the kernel's containers.
const KERNEL_ADDRESSES: &[&str] = &["198.51.100.200/24", "2001:db8:1::200/64"];

#[derive(Clone, Copy)]
struct Case {
    underlay: Underlay,
    family: Family,
    offloads: bool,
    checksum: bool,
}

pub(crate) fn register(suite: &mut Suite) {
    for underlay in [Underlay::Offloading, Underlay::Plain] {
        for family in [Family::V4, Family::V6] {
            for (offloads, checksum) in [(true, false), (true, true), (false, false)] {
                let name = format!(
                    "interop::{}_{underlay:?}_offloads_{}_checksum_{}",
                    word(family),
                    if offloads { "on" } else { "off" },
                    if checksum { "on" } else { "off" },
                )
                .to_lowercase();
                let case = Case { underlay, family, offloads, checksum };
                suite.test(name, WITH_VXLAN, move || both_directions(case));
            }
        }
    }
    suite.test("interop::learning_follows_a_move", WITH_VXLAN, learning_follows_a_move);
    suite.test("interop::two_agents_and_a_kernel", WITH_VXLAN, two_agents_and_a_kernel);
    suite.test("interop::static_vtep_comes_and_goes", WITH_VXLAN, static_vtep_comes_and_goes);
}

/// Agents on hosts 1.., with a network that learns behind the kernel's VTEP on the last host.
fn lab_with_kernel(agents: usize, case: Case) -> (Lab, Vec<Agent>, KernelVtep) {
    let lab = Lab::with_hosts(agents + 1).underlay(case.underlay).build();
    let on: Vec<usize> = (1..=agents).collect();
    let agents = lab.start_agents(&on, Store::Embedded, case.family);
    agents[0].create_network(NETWORK, &[DUAL, &["--option", "learning=true"]].concat());
    let last = lab.host(on.len() + 1);
    let address = last.address(case.family).to_string();
    let _ = agents[0].cli(&["network", "vtep", "add", NETWORK, &address]);
    let mut spec = VtepSpec::new(VNI, case.family).checksum(case.checksum);
    for agent in &agents {
        spec = spec.remote(agent.vtep());
    }
    let kernel = KernelVtep::create(&lab, last, &spec);
    (lab, agents, kernel)
}

fn both_directions(case: Case) {
    let (lab, agents, kernel) = lab_with_kernel(1, case);
    let ours = agents[0].container(&lab, NETWORK, "c1", &[]);
    let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
    assert_eq!(ours.mtu(), theirs.mtu(), "both sides come to the same MTU");
    if !case.offloads {
        ours.set_offloads(false);
        theirs.set_offloads(false);
        kernel.set_port_offloads("k1", false);
    }
    // The kernel side speaks first once: what it floods must be answered and learned.
    traffic::ping(theirs.netns(), ours.address(Family::V4), 56);
    exchange(&lab, &ours, &theirs, BYTES);
    exchange(&lab, &theirs, &ours, BYTES);
    if case.offloads {
        // Inner USO: one datagram of the underlay holds one large inner super-frame.
        for family in ours.families() {
            for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
                for size in [500, 1200, 1372] {
                    let how = Udp { count: 1600, size, rate: 5000, gso: true };
                    traffic::udp(&lab, from, to, family, how);
                }
            }
        }
    }
    assert_no_checksum_errors(&[&ours, &theirs]);
}

const PLAIN_CASE: Case =
    Case { underlay: Underlay::Offloading, family: Family::V4, offloads: true, checksum: false };

/// A MAC that is seen behind another container of the kernel's side stays reachable, and one that
/// the store gives to an endpoint of ours is not taken over by what is learned.
fn learning_follows_a_move() {
    let (lab, agents, kernel) = lab_with_kernel(1, PLAIN_CASE);
    let ours = agents[0].container(&lab, NETWORK, "c1", &[]);
    let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
    let to = theirs.address(Family::V4);
    traffic::ping(ours.netns(), to, 56);
    let learned = agents[0].json(&["fdb"]).to_string();
    let mac = mac_text(theirs.mac());
    assert!(learned.contains(&mac), "{mac} is not in {learned}");
    assert!(learned.contains("learned"), "{learned}");
    // The address moves to another container there, with another MAC.
    theirs.netns().ip("link set eth0 down");
    let moved = kernel.container(&lab, "k2", KERNEL_ADDRESSES);
    traffic::ping(moved.netns(), ours.address(Family::V4), 56);
    traffic::ping(ours.netns(), to, 56);
}

fn two_agents_and_a_kernel() {
    let (lab, agents, kernel) = lab_with_kernel(2, PLAIN_CASE);
    let ours: Vec<Container> = (1..)
        .zip(&agents)
        .map(|(index, agent)| agent.container(&lab, NETWORK, &format!("c{index}"), &[]))
        .collect();
    let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
    for container in &ours {
        exchange(&lab, container, &theirs, BYTES / 10);
        exchange(&lab, &theirs, container, BYTES / 10);
    }
    exchange(&lab, &ours[0], &ours[1], BYTES / 10);
    assert_no_checksum_errors(&[&ours[0], &ours[1], &theirs]);
}

fn static_vtep_comes_and_goes() {
    let (lab, agents, kernel) = lab_with_kernel(1, PLAIN_CASE);
    let ours = agents[0].container(&lab, NETWORK, "c1", &[]);
    let theirs = kernel.container(&lab, "k1", KERNEL_ADDRESSES);
    let to = theirs.address(Family::V4);
    let address = kernel.address().to_string();
    traffic::ping(ours.netns(), to, 56);
    let listed = agents[0].json(&["network", "vtep", "ls", NETWORK]).to_string();
    assert!(listed.contains(&address), "{listed}");
    let _ = agents[0].cli(&["network", "vtep", "rm", NETWORK, &address]);
    testkit::wait_until("its frames are refused", std::time::Duration::from_secs(5), || {
        (!traffic::reaches(ours.netns(), to)).then_some(())
    });
    let _ = agents[0].cli(&["network", "vtep", "add", NETWORK, &address]);
    testkit::wait_until("its frames are taken again", std::time::Duration::from_secs(5), || {
        traffic::reaches(ours.netns(), to).then_some(())
    });
}

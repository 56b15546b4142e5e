//! A peer that is a kernel: `ipip.bpf.c` in place of its ipip device, with its segmentation, its
//! checksums and its joining.

use std::net::IpAddr;
use std::process::Command;

use fdb::Carrier;
use testkit::{Cap, Family, Lab, Netns, Suite, Underlay};

use super::{ADDRESSES, End, MTU, address, tcp, udp};
use crate::support::word;

const NEEDED: &[Cap] = &[Cap::Bpf, Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool];
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/system/tunnels/ipip.bpf.c");
const BULK: &str = "60000001";

pub(super) fn register(suite: &mut Suite) {
    for under in [Family::V4, Family::V6] {
        for underlay in [Underlay::Offloading, Underlay::Plain] {
            let name = format!("tunnels::ipip_with_a_kernel_{underlay:?}_{}", word(under));
            suite.test(name.to_lowercase(), NEEDED, move || both_ways(underlay, under));
        }
    }
}

/// Makes host 2 an end of the tunnel to host 1.
fn tunnel(lab: &Lab, under: Family) {
    let netns = lab.host(2).netns();
    let object = lab.directory().join("ipip.o");
    let bytes = |host: usize| match lab.host(host).address(under) {
        IpAddr::V4(address) => format!("{:?}", address.octets()),
        IpAddr::V6(address) => format!("{:?}", address.octets()),
    };
    let define = |name: &str, host| format!("-D{name}={}", bytes(host).trim_matches(['[', ']']));
    let mut compile = Command::new("bpf-gcc");
    compile.args(["-O2", "-c", SOURCE, "-o"]).arg(&object);
    compile.args([define("OWN", 2), define("PEER", 1)]);
    compile.arg(if under == Family::V4 { "-DOUTER=4" } else { "-DOUTER=6" });
    // The compiler for BPF knows no place of the kernel's headers.
    let triplet = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    compile.args(["-idirafter", "/usr/include", "-idirafter", &triplet]);
    let _ = testkit::run(compile).expect_success();
    let _ = netns.exec("tc", &["qdisc", "add", "dev", "eth0", "clsact"]);
    let object = object.display().to_string();
    for (hook, section) in [("egress", "tc/out"), ("ingress", "tc/in")] {
        let filter = ["filter", "add", "dev", "eth0", hook];
        let _ = netns
            .exec("tc", &[&filter[..], &["bpf", "da", "obj", &object, "sec", section]].concat());
    }
    for (family, subnet) in [(Family::V4, "198.51.100.0/24"), (Family::V6, "2001:db8:1::/64")] {
        let (own, next) = (address(2, 1, family), lab.host(1).address(family));
        netns.ip(&format!("addr add {own} dev lo"));
        netns.ip(&format!("route add {subnet} via {next} dev eth0 src {own} mtu {MTU}"));
    }
}

fn both_ways(underlay: Underlay, under: Family) {
    let lab = Lab::with_hosts(2).underlay(underlay).build();
    let end = End::start(&lab, 1, Carrier::IpIp, under);
    end.listen(&lab);
    tunnel(&lab, under);
    let netns: &Netns = lab.host(2).netns();
    for family in [Family::V4, Family::V6] {
        let (ours, theirs) = (address(1, 1, family), address(2, 1, family));
        tcp(&lab, &end.overlay, netns, theirs, BULK);
        tcp(&lab, netns, &end.overlay, ours, BULK);
        for gso in [false, true] {
            udp(&lab, &end.overlay, netns, theirs, gso);
        }
        // bpf_skb_adjust_room takes super-frames of TCP only.
        for number in 1..=ADDRESSES {
            udp(&lab, netns, &end.overlay, address(1, number, family), false);
        }
    }
    assert_eq!(end.dropped(), []);
    assert_eq!(end.counter("bad_checksum_in").iter().sum::<u64>(), 0);
    let received = end.counter("datagrams_in");
    assert!(received.iter().all(|count| *count > 0), "every worker has a share: {received:?}");
}

//! What of an exchange with a device stays, and what goes: with the network, with the device, with the
//! agent, and when it is stopped.

use std::net::IpAddr;

use serde_json::{Value, json};
use testkit::{Agent, Family, Lab, traffic, wait_until};

use super::{
    OWN, SOON, SWARM, Sandbox, agents, create, imported, link, linked, state, wait_entered,
    wait_gone, wait_imported,
};
use crate::support::mac_text;

/// The notes that an agent has on disk.
fn notes(agent: &Agent) -> usize {
    let text = std::fs::read_to_string(agent.state_dir().join("kernel.json")).unwrap_or_default();
    let notes: Value = serde_json::from_str(&text).unwrap_or_default();
    notes["links"].as_array().map_or(0, Vec::len)
}

/// The devices that an agent follows, one way.
fn rows(agent: &Agent, way: &str) -> usize {
    let listed = agent.cli(&["network", "vtep", "ls", SWARM]).stdout;
    listed.lines().filter(|line| line.split_whitespace().nth(1) == Some(way)).count()
}

/// With the network go its notes and entries, and another one with its VNI has the device to itself.
pub(super) fn a_removed_network_is_given_up() {
    let lab = Lab::with_hosts(2).build();
    let sandbox = Sandbox::new(&lab, lab.host(2), "ov2");
    let agents = agents(&lab, 2);
    link(&agents[1], &sandbox.path());
    let c1 = agents[0].container(&lab, SWARM, "c1", &[]);
    wait_entered(&sandbox, &c1);
    assert_eq!(notes(&agents[1]), 2);
    // While the agent is away, so that its entries are still there when it finds the network gone.
    agents[1].kill9();
    agents[0].detach(SWARM, &c1);
    let _ = agents[0].cli(&["network", "rm", SWARM]);
    agents[1].start();
    let given_up = || (notes(&agents[1]) == 0).then_some(());
    wait_until("its notes are gone", SOON, given_up);
    let entries = sandbox.entries();
    assert!(!entries.contains(&mac_text(c1.mac())), "{entries}");
    create(&agents[0]);
    link(&agents[1], &sandbox.path());
    let c2 = agents[0].container(&lab, SWARM, "c2", &[]);
    wait_entered(&sandbox, &c2);
    assert_eq!((rows(&agents[1], "export"), rows(&agents[1], "import")), (1, 1));
    agents[0].detach(SWARM, &c2);
    let _ = agents[0].cli(&["network", "rm", SWARM]);
    wait_until("its notes are gone again", SOON, given_up);
    assert!(!sandbox.entries().contains(&mac_text(c2.mac())), "{}", sandbox.entries());
}

/// A device is followed once each way, for one network.
pub(super) fn a_device_is_followed_once() {
    let lab = Lab::with_hosts(1).build();
    let sandbox = Sandbox::new(&lab, lab.host(1), "ov1");
    let agents = agents(&lab, 1);
    agents[0].create_network(OWN, &["--subnet", "198.51.100.0/24"]);
    let path = sandbox.path();
    let import = ["network", "vtep", "import", SWARM, "--netns", &path];
    let _ = agents[0].cli(&import);
    let _ = agents[0].cli(&[&import[..], &["--vtep", "192.0.2.77"]].concat());
    assert_eq!(rows(&agents[0], "import"), 1);
    // One that is waited for may be anything.
    let import = |network| ["network", "vtep", "import", network, "--netns", "/run/netns/none"];
    let _ = agents[0].cli(&import(SWARM));
    let refused = agents[0].try_cli(&import(OWN));
    assert!(!refused.status.success() && refused.stderr.contains(SWARM), "{refused}");
    // All of a device's, all of the network's.
    let stop = ["network", "vtep", "import", SWARM, "--stop"];
    let refused = agents[0].try_cli(&[&stop[..], &["--dev", "vxlan1"]].concat());
    assert!(!refused.status.success() && refused.stderr.contains("followed"), "{refused}");
    let refused = agents[0].try_cli(&[&stop[..], &["--host", "nobody"]].concat());
    assert!(!refused.status.success() && refused.stderr.contains("nobody"), "{refused}");
    let _ = agents[0].cli(&stop);
    assert_eq!((rows(&agents[0], "import"), notes(&agents[0])), (0, 0));
    // What is no vxlan device is not waited for.
    let words = ["network", "vtep", "export", SWARM, "--netns", &path, "--dev", "br0", "--watch"];
    let refused = agents[0].try_cli(&words);
    assert!(!refused.status.success() && refused.stderr.contains("br0"), "{refused}");
}

/// What is known of a device that is not there any more does not outlive those whom it is about.
pub(super) fn what_is_gone_is_not_kept() {
    let lab = Lab::with_hosts(3).build();
    let (sandboxes, [k1, k2], agents) = linked(&lab);
    let _c3 = agents[2].container(&lab, SWARM, "c3", &[]);
    wait_imported(&agents[2], &k1, lab.host(1));
    wait_imported(&agents[2], &k2, lab.host(2));

    // A second import, of a device that never comes, says nothing of its own.
    let none = "/run/netns/none";
    let _ = agents[0].cli(&["network", "vtep", "import", SWARM, "--netns", none]);
    let other = [0, 0, 0x5e, 0, 0x53, 0x77];
    let entry = format!("{} dev vxlan0 dst 192.0.2.77 self permanent", mac_text(other));
    sandboxes[0].netns.bridge(&format!("fdb add {entry}"));
    wait_until("another entry is imported", SOON, || imported(&agents[2], other).map(drop));
    sandboxes[0].netns.bridge(&format!("fdb del {entry}"));
    wait_gone(&agents[2], other);
    let _ = agents[0].cli(&["network", "vtep", "import", SWARM, "--netns", none, "--stop"]);

    // The device goes while its agent is away: what was on its side goes, what it knew stays.
    agents[1].kill9();
    sandboxes[1].netns.ip("link del vxlan0");
    let (mac, at) = (mac_text(k2.mac()), lab.host(2).address(Family::V4));
    sandboxes[0].netns.bridge(&format!("fdb del {mac} dev vxlan0 dst {at} self"));
    agents[1].start();
    wait_gone(&agents[2], k2.mac());
    wait_imported(&agents[2], &k1, lab.host(1));
    // Until the host that it is about takes it back.
    sandboxes[0].netns.ip("link del k1");
    wait_gone(&agents[2], k1.mac());
    assert_eq!(state(&agents[1], "import"), json!("waiting"));
}

/// What an agent said of a network goes with its last import, also when its notes are lost.
pub(super) fn nobody_says_what_nobody_follows() {
    let lab = Lab::with_hosts(2).build();
    let sandbox = Sandbox::new(&lab, lab.host(2), "ov2");
    let k1 = sandbox.container(&lab, "k1", "203.0.113.11/24");
    let agents = agents(&lab, 2);
    link(&agents[1], &sandbox.path());
    let c1 = agents[0].container(&lab, SWARM, "c1", &[]);
    wait_imported(&agents[0], &k1, lab.host(2));
    wait_entered(&sandbox, &c1);

    for text in ["store", "lease", "watch", "does not go on"] {
        agents[1].allow_log(text);
    }
    // Without the store the import cannot be taken back: it goes on, and so is told.
    agents[0].kill9();
    let stop = ["network", "vtep", "import", SWARM, "--stop"];
    let refused = agents[1].try_cli(&stop);
    assert!(!refused.status.success() && refused.stderr.contains("not stopped"), "{refused}");
    assert_eq!(notes(&agents[1]), 2);
    agents[0].start();
    wait_until("it can be taken back", SOON, || {
        agents[1].try_cli(&stop).status.success().then_some(())
    });
    wait_gone(&agents[0], k1.mac());

    let _ = agents[1].cli(&["network", "vtep", "import", SWARM, "--netns", &sandbox.path()]);
    wait_imported(&agents[0], &k1, lab.host(2));
    agents[1].stop();
    std::fs::remove_file(agents[1].state_dir().join("kernel.json")).unwrap();
    agents[1].start();
    wait_gone(&agents[0], k1.mac());

    // What was entered once is taken back by the name of the device.
    let mac = mac_text(c1.mac());
    let stop = ["network", "vtep", "export", SWARM, "--netns", &sandbox.path(), "--stop"];
    let _ = agents[1].cli(&stop);
    assert!(!sandbox.entries().contains(&mac), "{}", sandbox.entries());
    // And by --cleanup where it is followed.
    link(&agents[1], &sandbox.path());
    wait_entered(&sandbox, &c1);
    agents[1].stop();
    assert_eq!(agents[1].clean_up().code(), 0);
    assert!(!sandbox.entries().contains(&mac), "{}", sandbox.entries());
    assert_eq!(notes(&agents[1]), 0);
    agents[1].start();
    wait_gone(&agents[0], k1.mac());
}

/// What a device has is not given out, although it is in our part of the subnet.
pub(super) fn imported_addresses_are_not_given_out() {
    let lab = Lab::with_hosts(2).build();
    let sandbox = Sandbox::new(&lab, lab.host(2), "ov2");
    let taken: Vec<_> = [128, 129]
        .map(|last| sandbox.container(&lab, &format!("k{last}"), &format!("203.0.113.{last}/24")))
        .into();
    let agents = agents(&lab, 2);
    link(&agents[1], &sandbox.path());
    let _first = agents[0].container(&lab, SWARM, "first", &["--ip", "203.0.113.200"]);
    let late = lab.sandbox("late");
    for container in &taken {
        wait_imported(&agents[0], container, lab.host(2));
    }
    let ours = agents[0].container(&lab, SWARM, "ours", &[]);
    let at = ours.address(Family::V4);
    assert!(taken.iter().all(|container| container.address(Family::V4) != at), "{at}");
    let wanted: IpAddr = taken[0].address(Family::V4);
    let attach = |words: &[&str]| {
        agents[0].try_cli(&[&["attach", SWARM, "--netns", late.name()], words].concat())
    };
    let refused = attach(&["--ip", &wanted.to_string()]);
    assert!(!refused.status.success() && refused.stderr.contains("static VTEP"), "{refused}");
    let refused = attach(&["--mac", &mac_text(taken[1].mac())]);
    assert!(!refused.status.success() && refused.stderr.contains("static VTEP"), "{refused}");
    wait_entered(&sandbox, &ours);
    traffic::ping(ours.netns(), wanted, 56);
}

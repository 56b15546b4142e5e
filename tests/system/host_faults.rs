//! Faults of the host itself: what a reboot leaves, devices half made, an underlay that changes, a
//! port that the kernel has, a disk that is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testkit::{
    Agent, AgentSpec, Container, Family, Finished, KernelVtep, Lab, Store, Suite, VtepSpec, run,
    run_within, traffic, wait_until,
};

use crate::faults::{count, get, network_id, notes, own_endpoints, pins, put, warnings};
use crate::support::{
    AGENTS, DUAL, NETWORK, VNI, WITH_ETCD, WITH_VXLAN, carry, containers, measured,
};

pub(crate) fn register(suite: &mut Suite) {
    suite.test("host::start_after_a_reboot", WITH_ETCD, start_after_a_reboot);
    suite.test("host::half_made_devices", AGENTS, half_made_devices);
    suite.test("host::the_underlay_address_is_replaced", AGENTS, the_address_is_replaced);
    suite.test("host::the_underlay_mtu_changes", AGENTS, the_mtu_changes);
    suite.test("host::a_missing_address_is_named", AGENTS, a_missing_address_is_named);
    suite.test("host::docker_swarm_has_the_port", WITH_VXLAN, docker_swarm_has_the_port);
    suite.test("host::the_state_directory_is_full", WITH_ETCD, || state_directory(false));
    suite.test("host::the_state_directory_is_read_only", WITH_ETCD, || state_directory(true));
}

const SOON: Duration = Duration::from_secs(20);

/// The pin of an agent's network, by the network's id.
fn pin(network: &str) -> PathBuf {
    let found = fs::read_dir("/run/skybridge/netns").unwrap().flatten();
    let mut found = found
        .map(|entry| entry.path())
        .filter(|path| path.display().to_string().ends_with(network));
    let pin = found.next().expect("the network has a pin");
    assert!(found.next().is_none(), "one agent has the network");
    pin
}

/// Runs `ip` in a pinned namespace.
fn ip_in(pin: &Path, words: &str) -> Finished {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", pin.display())).args(["--", "ip"]);
    command.args(words.split_whitespace());
    run(command)
}

fn umount(path: &Path) {
    let mut command = Command::new("umount");
    command.arg("--lazy").arg(path);
    let _ = run(command).expect_success();
}

/// After a reboot: all namespaces are gone, the state directory is not; beside that, pins of
/// another time, notes that are half written or nonsense, and a record of another boot.
fn start_after_a_reboot() {
    let lab = Lab::with_hosts(2).build();
    let agents: Vec<Agent> =
        [1, 2].map(|host| lab.start_agent(host, lab.spec(host, Store::Etcd, Family::V4))).into();
    agents[0].create_network(NETWORK, DUAL);
    let stays = agents[0].container(&lab, NETWORK, "c1", &[]);
    // Not of the lab: the reboot takes it.
    let gone = format!("{}-gone", lab.prefix());
    let _ = lab.switch().exec("ip", &["netns", "add", &gone]);
    let fixed = ["--ip", "198.51.100.40", "--ip", "2001:db8:1::40"];
    let _ = agents[1].cli(&[&["attach", NETWORK, "--netns", &gone], &fixed[..]].concat());
    let network = network_id(&agents[0]);
    agents[1].kill9();
    let _ = lab.switch().exec("ip", &["netns", "del", &gone]);
    let hash = |agent: &Agent| {
        let all = fs::read_dir("/run/skybridge/netns").unwrap().flatten();
        let owner = skybridge::link::Owner::new(&agent.state_dir()).hash().to_owned();
        let found = all
            .map(|entry| entry.path())
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&owner));
        (owner, found.expect("the agent has a pin"))
    };
    let (owner, own) = hash(&agents[1]);
    umount(&own);
    assert!(own.exists(), "the file of the pin is left");
    let folder = own.parent().unwrap().to_owned();
    // A network that nobody knows any more: once with a namespace, once without.
    let stale = [format!("{owner}-aaaaaaaaaaaa"), format!("{owner}-bbbbbbbbbbbb")];
    let stale = stale.map(|name| folder.join(name));
    for path in &stale {
        fs::write(path, "").unwrap();
    }
    let mut mount = Command::new("mount");
    let other = lab.sandbox("stale");
    mount.arg("--bind").arg(other.path()).arg(&stale[0]);
    let _ = run(mount).expect_success();
    let attachments = agents[1].state_dir().join("attachments");
    fs::write(attachments.join("feed0001.7.new"), "{").unwrap();
    fs::write(attachments.join("feed0002"), "no JSON").unwrap();
    // The record of the host is that of another boot, and no lease takes it away.
    let key = "/skybridge/v1/hosts/h2";
    wait_until("the lease of the killed agent ends", Duration::from_secs(40), || {
        (count(&lab, key) == 0).then_some(())
    });
    let known = get(&lab, "/skybridge/v1/known/h2");
    let mut record: serde_json::Value = serde_json::from_str(&known).unwrap();
    assert!(record["boot_id"].as_str().is_some_and(|boot| boot.len() > 30), "{record}");
    record["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    put(&lab, key, &record.to_string());
    agents[1].allow_log("cannot be read and was set aside");
    agents[1].allow_log("is not attached; removing");
    agents[1].start();
    let endpoints = format!("/skybridge/v1/endpoints/{network}/");
    let ((), took) = wait_until("what the reboot took is withdrawn", SOON, || {
        let left = notes(&agents[1]).iter().filter(|name| !name.ends_with(".bad")).count();
        let clean = stale.iter().all(|path| !path.exists()) && !own.exists();
        (count(&lab, &endpoints) == 1 && left == 0 && clean).then_some(())
    });
    measured("a start after a reboot has cleaned up after", format_args!("{took:?}"));
    assert!(!warnings(&agents[1]).contains("feed0001"), "what was cut short is no news");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(get(&lab, key).contains(boot.trim()), "the record is of this boot");
    // Whoever comes back gets its address again, once it has rested.
    let again = lab.sandbox("again");
    let args = ["attach", NETWORK, "--netns", again.name()];
    let _ = wait_until("the addresses can be had again", Duration::from_secs(90), || {
        agents[1].try_cli(&[&args, &fixed[..]].concat()).status.success().then_some(())
    });
    traffic::ping(stays.netns(), Container::inspect(again, "eth0").address(Family::V4), 56);
}

/// Devices in every half-made or broken state are completed at the next start, and a container
/// keeps its interface wherever the kernel has kept it.
fn half_made_devices() {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    agents[0].create_network(NETWORK, DUAL);
    let mine = agents[1].container(&lab, NETWORK, "c2", &[]);
    let network = network_id(&agents[0]);
    let pin = pin(&network);
    let peer = agents[0].container(&lab, NETWORK, "c1", &[]);
    traffic::ping(peer.netns(), mine.address(Family::V4), 56);
    let port = {
        let links = ip_in(&pin, "-o link show type veth").expect_success().stdout;
        let name = links.split(": ").nth(1).unwrap();
        name.split('@').next().unwrap().to_owned()
    };
    let broken = [
        ("no TAP", vec!["link del tap0".to_owned()]),
        ("the TAP outside the bridge", vec!["link set tap0 nomaster".to_owned()]),
        ("everything down", vec!["link set tap0 down".to_owned(), "link set br0 down".to_owned()]),
        (
            "another MTU",
            vec!["link set br0 mtu 1280".to_owned(), "link set tap0 mtu 1280".to_owned()],
        ),
        ("the veth outside the bridge", vec![format!("link set {port} nomaster")]),
        (
            "the veth unlocked and down",
            vec![
                format!("link set {port} type bridge_slave learning on flood on"),
                format!("link set {port} down"),
            ],
        ),
        ("a bridge of other settings", vec!["link set br0 type bridge ageing_time 100".to_owned()]),
        ("no bridge", vec!["link del br0".to_owned()]),
    ];
    for (what, commands) in broken {
        agents[1].kill9();
        for words in &commands {
            let _ = ip_in(&pin, words).expect_success();
        }
        agents[1].start();
        wait_until(&format!("traffic after: {what}"), SOON, || {
            traffic::reaches(peer.netns(), mine.address(Family::V4)).then_some(())
        });
        assert_eq!(own_endpoints(&agents[1]).len(), 1, "{what}");
    }
    carry(&lab, &peer, &mine, 200_000);
    // With its namespace the interface has gone too: the sandbox gets it anew, as it was.
    agents[1].kill9();
    let _ = ip_in(&pin, &format!("link del {port}")).expect_success();
    umount(&pin);
    agents[1].start();
    wait_until("traffic with a namespace made anew", SOON, || {
        traffic::reaches(peer.netns(), mine.address(Family::V4)).then_some(())
    });
    assert_eq!((own_endpoints(&agents[1]).len(), pins(&network)), (1, 2), "one pin per host");
    let again = Container::inspect(mine.netns().clone(), "eth0");
    assert_eq!(again.families().len(), 2);
    carry(&lab, &peer, &again, 200_000);
}

/// A host comes back with another underlay address: the others send there, endpoints stay.
fn the_address_is_replaced() {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    agents[0].create_network(NETWORK, DUAL);
    let containers = containers(&lab, &agents);
    let (from, to) = (containers[0].netns(), containers[1].address(Family::V4));
    traffic::ping(from, to, 56);
    for agent in &agents {
        for text in ["store", "lease", "watch", "needs attention"] {
            agent.allow_log(text);
        }
    }
    // While it runs: it goes on trying, and says what is missing.
    let host = lab.host(2);
    host.netns().ip("addr del 192.0.2.2/24 dev eth0");
    host.netns().ip("addr add 192.0.2.102/24 dev eth0");
    wait_until("the missing address is named", SOON, || {
        warnings(&agents[1]).contains("192.0.2.2").then_some(())
    });
    agents[1].stop();
    let refused = run_within(agents[1].command(), SOON);
    assert_eq!(refused.code(), 1, "{refused}");
    for word in ["192.0.2.2", "192.0.2.102"] {
        assert!(refused.stderr.contains(word), "{word} is not named: {refused}");
    }
    let spec = AgentSpec::new([192, 0, 2, 102].into()).store(([192, 0, 2, 1], 2379).into());
    let moved = lab.start_agent(2, spec);
    for text in ["store", "lease", "watch", "needs attention"] {
        moved.allow_log(text);
    }
    let ((), took) = wait_until("traffic goes to the other address", SOON, || {
        traffic::reaches(from, to).then_some(())
    });
    measured("traffic over the new VTEP address after its start", format_args!("{took:?}"));
    let fdb = agents[0].json(&["fdb"]).to_string();
    assert!(fdb.contains("192.0.2.102") && !fdb.contains("192.0.2.2\""), "{fdb}");
    carry(&lab, &containers[0], &containers[1], 200_000);
}

/// The MTU of one host's underlay changes while everything runs: every container of the network
/// follows, and what fits goes through.
fn the_mtu_changes() {
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
    agents[0].create_network(NETWORK, DUAL);
    let containers = containers(&lab, &agents);
    for (underlay, inner) in [(1400, 1350), (1500, 1450)] {
        lab.host(2).netns().ip(&format!("link set eth0 mtu {underlay}"));
        let ((), took) = wait_until("all interfaces follow", SOON, || {
            let mtu =
                |container: &Container| Container::inspect(container.netns().clone(), "eth0").mtu();
            containers.iter().all(|container| mtu(container) == inner).then_some(())
        });
        measured(
            &format!("underlay MTU {underlay}: interfaces follow after"),
            format_args!("{took:?}"),
        );
        let largest = traffic::largest_ping(inner, Family::V4);
        traffic::ping(containers[0].netns(), containers[1].address(Family::V4), largest);
        assert_eq!(agents[1].json(&["status"])["datapath"]["mtu"], underlay);
        let hosts = agents[0].json(&["hosts"]);
        let told = hosts.as_array().unwrap().iter().find(|host| host["name"] == "h2").unwrap();
        assert_eq!(told["mtu"], underlay, "{hosts}");
        carry(&lab, &containers[0], &containers[1], 500_000);
    }
}

fn a_missing_address_is_named() {
    let lab = Lab::with_hosts(1).build();
    let agent = lab.start_agents(&[1], Store::Etcd, Family::V4).remove(0);
    for text in ["store", "lease", "watch", "needs attention"] {
        agent.allow_log(text);
    }
    let netns = lab.host(1).netns();
    for (break_it, named, mend) in [
        ("addr del 192.0.2.1/24 dev eth0", "192.0.2.1", "addr add 192.0.2.1/24 dev eth0"),
        (
            "link set eth0 down",
            "eth0, which has the VTEP address 192.0.2.1, is down",
            "link set eth0 up",
        ),
    ] {
        netns.ip(break_it);
        wait_until("it is named", SOON, || warnings(&agent).contains(named).then_some(()));
        netns.ip(mend);
        wait_until("it is over", SOON, || (!warnings(&agent).contains("192.0.2.1")).then_some(()));
    }
}

/// Docker Swarm makes its vxlan device in the host's namespace and moves it into one of its own:
/// the socket stays and no device is to be seen. The agent says what that is.
fn docker_swarm_has_the_port() {
    let lab = Lab::with_hosts(1).build();
    let host = lab.host(1);
    let _kernel = KernelVtep::create(&lab, host, &VtepSpec::new(VNI, Family::V4));
    let hidden = lab.sandbox("swarm");
    host.netns().ip(&format!("link set {} netns {}", KernelVtep::DEVICE, hidden.name()));
    hidden.ip(&format!("link set {} up", KernelVtep::DEVICE));
    let agent = lab.agent(1, lab.spec(1, Store::Embedded, Family::V4));
    let refused = run_within(agent.command(), SOON);
    assert_eq!(refused.code(), 1, "{refused}");
    for word in ["4789", "kernel", "Docker Swarm", "docker network ls", "--udp-port"] {
        assert!(refused.stderr.contains(word), "{word} is not said: {refused}");
    }
}

/// A file system of its own for an agent's state; taken away with it.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"]).arg(&path);
        let _ = run(mount).expect_success();
        Self(path)
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&self.0);
        let _ = run(mount).expect_success();
    }

    fn fill(&self) {
        // Until nothing goes any more, not even a byte.
        for size in [65_536, 4096, 1] {
            for number in 0.. {
                let path = self.0.join(format!("fill-{size}-{number}"));
                if fs::write(&path, vec![0x5e; size]).is_err() {
                    break;
                }
                assert!(number < 10_000);
            }
        }
    }

    /// Fills it until what the agent writes by itself a second after a change has left no room.
    fn keep_full(&self) {
        wait_until("the disk stays full", SOON, || {
            self.fill();
            std::thread::sleep(Duration::from_millis(1500));
            fs::write(self.0.join("fill-last"), [0x5e]).is_err().then_some(())
        });
    }

    fn make_room(&self) {
        for entry in fs::read_dir(&self.0).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("fill-") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// A state directory that takes nothing any more: traffic goes on, an attach is refused with the
/// reason and leaves nothing, a start is refused, and once there is room again nothing is lost.
fn state_directory(read_only: bool) {
    let lab = Lab::with_hosts(2).build();
    let first = lab.start_agent(1, lab.spec(1, Store::Etcd, Family::V4));
    let second = lab.agent(2, lab.spec(2, Store::Etcd, Family::V4));
    let disk = Disk::mount(second.state_dir());
    second.start();
    first.create_network(NETWORK, DUAL);
    let containers = containers(&lab, &[first.clone(), second.clone()]);
    let (peer, mine) = (&containers[0], &containers[1]);
    carry(&lab, peer, mine, 200_000);
    for text in ["needs attention", "the last contact with the store cannot be noted"] {
        second.allow_log(text);
    }
    let said = if read_only { "Read-only file system" } else { "No space left on device" };
    let break_it = || if read_only { disk.remount("ro") } else { disk.fill() };
    let mend = || if read_only { disk.remount("rw") } else { disk.make_room() };
    // Files that are open for writing keep a file system from becoming read-only.
    if !read_only {
        disk.keep_full();
        let sandbox = lab.sandbox("late");
        let refused = second.try_cli(&["attach", NETWORK, "--netns", sandbox.name()]);
        assert_eq!(refused.code(), 1, "{refused}");
        for word in [said, "try:"] {
            assert!(refused.stderr.contains(word), "{word:?} is not said: {refused}");
        }
        assert!(!sandbox.try_exec("ip", &["link", "show", "eth0"]).status.success());
        assert_eq!(own_endpoints(&second).len(), 1);
        traffic::ping(peer.netns(), mine.address(Family::V4), 56);
        assert!(second.log().matches("cannot be noted").count() <= 1, "said once");
        mend();
        let late = second.attach(&sandbox, NETWORK, &[]);
        traffic::ping(peer.netns(), late.address(Family::V4), 56);
        second.detach(NETWORK, &late);
    }
    second.stop();
    break_it();
    let refused = run_within(second.command(), SOON);
    assert_eq!(refused.code(), 1, "{refused}");
    for word in [said, "try:"] {
        assert!(refused.stderr.contains(word), "{word:?} is not said: {refused}");
    }
    assert!(refused.stderr.contains(&second.state_dir().display().to_string()), "{refused}");
    mend();
    second.start();
    assert_eq!(own_endpoints(&second).len(), 1);
    wait_until("traffic is back", SOON, || {
        traffic::reaches(peer.netns(), mine.address(Family::V4)).then_some(())
    });
    carry(&lab, peer, mine, 200_000);
    second.stop();
    drop(disk);
}

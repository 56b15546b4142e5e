//! The lab itself: it must carry traffic without us, and leave nothing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::traffic::{self, Tcp, Udp};
use testkit::{Cap, Capture, Family, KernelVtep, Lab, Netns, Suite, Tap, Underlay, VtepSpec};

use crate::support::assert_no_checksum_errors;

pub(crate) fn register(suite: &mut Suite) {
    suite.test("lab::leaves_nothing", &[Cap::Root, Cap::Links, Cap::Ethtool], leaves_nothing);
    suite.test(
        "lab::leaves_nothing_after_a_panic",
        &[Cap::Root, Cap::Links, Cap::Ethtool],
        leaves_nothing_after_a_panic,
    );
    for underlay in [Underlay::Offloading, Underlay::Plain] {
        for family in [Family::V4, Family::V6] {
            let name = format!("lab::kernel_vteps_{underlay:?}_{family:?}").to_lowercase();
            let caps = &[Cap::Root, Cap::Links, Cap::Ethtool, Cap::Vxlan, Cap::Tcpdump];
            suite.test(name, caps, move || kernel_vteps(underlay, family));
        }
    }
    suite.test(
        "lab::etcd_survives_a_kill",
        &[Cap::Root, Cap::Links, Cap::Ethtool, Cap::Etcd],
        etcd_survives_a_kill,
    );
    suite.test("lab::interrupted_senders", &[Cap::Root, Cap::Links], interrupted_senders);
    suite.test("lab::crafted_frames", &[Cap::Root, Cap::Links, Cap::Tun], crafted_frames);
}

/// A sender that is told to end gives its report, whatever it is at: still sending, letting the last
/// datagrams arrive, or waiting for the receiver's word.
fn interrupted_senders() {
    let lab = Lab::with_hosts(2).build();
    let (from, to) = (lab.host(1), lab.host(2));
    let port = traffic::next_port();
    let address = format!("{}:{port}", to.address(Family::V4));
    for kind in ["udp", "tcp"] {
        let [receive, send] = [format!("{kind}-receive"), format!("{kind}-send")];
        let logs = lab.logs();
        let receiver = traffic::start(to.netns(), &logs, &receive, &[&receive, &address]);
        let args = [send.as_str(), &address, "--seconds", "30", "--verify"];
        let rate = if kind == "udp" { &["--rate", "1000"][..] } else { &[] };
        let args = [&args[..], rate].concat();
        let mut sender = traffic::start(from.netns(), &logs, &send, &args);
        let status = format!("/proc/{}/status", sender.pid());
        testkit::wait_until("the sender holds SIGINT back", Duration::from_secs(10), || {
            let text = fs::read_to_string(&status).ok()?;
            let blocked = text.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
            let blocked = u64::from_str_radix(blocked.trim(), 16).ok()?;
            (blocked & 1 << (Signal::SIGINT as u64 - 1) != 0).then_some(())
        });
        let before = received_bytes(to.netns());
        testkit::wait_until("traffic flows", Duration::from_secs(10), || {
            (received_bytes(to.netns()) > before + 20_000).then_some(())
        });
        testkit::wait_until("the sender has ended", Duration::from_secs(10), || {
            sender.signal(Signal::SIGINT);
            (!sender.running()).then_some(())
        });
        let sent = sender.finish(Duration::ZERO).expect_success().json();
        let received = receiver.finish(Duration::from_secs(10)).expect_success().json();
        assert!(received["bytes"].as_u64() > Some(0), "{received}");
        assert_eq!(sent["bytes"], received["bytes"], "{sent} {received}");
    }
}

fn received_bytes(netns: &Netns) -> u64 {
    let links = netns.ip_json("-s link show dev eth0");
    links[0]["stats64"]["rx"]["bytes"].as_u64().expect("a counter of bytes")
}

fn namespaces_of(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&format!("{prefix}-")))
        .collect()
}

fn leaves_nothing() {
    let lab = Lab::with_hosts(2).mtu(9000).underlay(Underlay::Plain).build();
    let (prefix, directory) = (lab.prefix().to_owned(), lab.directory().to_owned());
    let sandbox = lab.sandbox("box");
    let mut sleeper = sandbox.command("sleep");
    sleeper.arg("60");
    let mut sleeper = testkit::Process::spawn(sleeper, &lab.logs(), "sleeper");
    assert_eq!(namespaces_of(&prefix).len(), 4);
    assert_eq!(lab.host(1).netns().ip_json("link show dev eth0")[0]["mtu"], 9000);
    for family in [Family::V4, Family::V6] {
        traffic_without_agent(&lab, family);
    }
    drop(sandbox);
    drop(lab);
    assert!(namespaces_of(&prefix).is_empty(), "{:?}", namespaces_of(&prefix));
    assert!(!directory.exists());
    // The process that was left in a namespace went with it.
    testkit::wait_until("the sleeper is gone", Duration::from_secs(5), || {
        (!sleeper.running()).then_some(())
    });
}

fn traffic_without_agent(lab: &Lab, family: Family) {
    let (from, to) = (lab.host(1), lab.host(2));
    traffic::ping(from.netns(), to.address(family), 8000);
}

fn leaves_nothing_after_a_panic() {
    let prefix = std::sync::Mutex::new(String::new());
    let failed = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let lab = Lab::with_hosts(1).silent().build();
            prefix.lock().unwrap().push_str(lab.prefix());
            // No message: nothing has failed, and the hook that prints panics would say so.
            std::panic::resume_unwind(Box::new(()));
        });
        thread.join().is_err()
    });
    assert!(failed);
    let prefix = prefix.into_inner().unwrap();
    assert!(!prefix.is_empty() && namespaces_of(&prefix).is_empty());
}

/// Two kernels talk to each other as the interoperability tests expect one of them to. If this
/// fails, the fault is in the lab or the generator, not in the switch.
fn kernel_vteps(underlay: Underlay, family: Family) {
    let lab = Lab::with_hosts(2).underlay(underlay).build();
    let spec = VtepSpec::new(7001, family).checksum(underlay == Underlay::Plain);
    let [one, two] = [1, 2].map(|host| {
        let remote = lab.host(3 - host).address(family);
        KernelVtep::create(&lab, lab.host(host), &spec.clone().remote(remote))
    });
    let a = one.container(&lab, "k1", &["198.51.100.1/24", "2001:db8:1::1/64"]);
    let b = two.container(&lab, "k2", &["198.51.100.2/24", "2001:db8:1::2/64"]);
    let capture = Capture::start(lab.host(2).netns(), "eth0", "udp port 4789", &lab.logs(), "wire");
    for family in a.families() {
        traffic::ping(a.netns(), b.address(family), traffic::largest_ping(a.mtu(), family) + 1);
        let how = Tcp { bytes: 20_000_000, streams: 2, odd_sizes: true };
        traffic::tcp(&lab, &a, &b, family, how);
        for gso in [false, true] {
            let how = Udp { count: 2000, size: 1200, rate: 20_000, gso };
            traffic::udp(&lab, &a, &b, family, how);
        }
    }
    assert_no_checksum_errors(&[&a, &b]);
    let packets = capture.stop();
    assert!(packets.len() > 1000, "{} packets on the wire", packets.len());
}

/// The store of the lab answers from every host over both families, also after a crash.
fn etcd_survives_a_kill() {
    let lab = Lab::with_hosts(2).build();
    let etcd = lab.etcd();
    for life in 0..2 {
        for (host, family) in [(1, Family::V4), (2, Family::V6)] {
            let healthy = || {
                lab.host(host).netns().enter(|| {
                    let mut stream = TcpStream::connect(etcd.address(family)).ok()?;
                    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
                    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).ok()?;
                    answer.contains(r#""health":"true""#).then_some(())
                })
            };
            testkit::wait_until("etcd is healthy", Duration::from_secs(10), healthy);
        }
        if life == 0 {
            etcd.kill9();
            let address = etcd.address(Family::V4);
            assert!(lab.host(1).netns().enter(|| TcpStream::connect(address)).is_err());
            etcd.restart();
        }
    }
}

/// A frame put into one end of a bridge by hand comes out at the other as it was.
fn crafted_frames() {
    let lab = Lab::with_hosts(1).build();
    let sandbox = lab.sandbox("box");
    let host = lab.host(1).netns();
    host.ip("link add br1 type bridge mcast_snooping 0");
    host.ip("link set br1 up");
    host.ip(&format!("link add v0 type veth peer name eth0 netns {}", sandbox.name()));
    sandbox.ip("link set eth0 up");
    host.ip("link set v0 master br1 up");
    let mut tap = Tap::create(host, "t0", 1500);
    host.ip("link set t0 master br1 up");
    let frame = testkit::udp_frame(
        ([0xff; 6], [0, 0, 0x5e, 0, 0x53, 1]),
        ([198, 51, 100, 1].into(), [198, 51, 100, 2].into()),
        (1000, 2000),
        b"by hand",
    );
    let wanted = frame.clone();
    let (found, _) =
        testkit::wait_until("the frame crosses the bridge", Duration::from_secs(5), || {
            testkit::send_frames(&sandbox, "eth0", std::slice::from_ref(&frame));
            tap.receive(Duration::from_millis(100), |got| got == wanted)
        });
    assert_eq!(found, frame);
    tap.send(&frame);
}

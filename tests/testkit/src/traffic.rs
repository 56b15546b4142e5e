//! The built-in traffic generator, between two containers.
//!
//! Each function starts `skybridge traffic` on both sides, waits for both, and checks what every
//! run must fulfil; it gives the reports for what a test wants to know beyond that.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::container::Container;
use crate::lab::{Family, Lab};
use crate::netns::Netns;
use crate::process::{Finished, Process};
use crate::{binary, run_within};

/// The longest that one run of the generator may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Both reports of a transfer.
#[derive(Debug)]
pub struct Transfer {
    /// The sender's report.
    pub sender: Value,
    /// The receiver's report.
    pub receiver: Value,
}

/// How TCP is sent.
#[derive(Debug, Clone, Copy)]
pub struct Tcp {
    /// Bytes over all streams.
    pub bytes: u64,
    /// Parallel connections.
    pub streams: u16,
    /// Writes of odd sizes.
    pub odd_sizes: bool,
}

/// How UDP is sent.
#[derive(Debug, Clone, Copy)]
pub struct Udp {
    /// Datagrams.
    pub count: u64,
    /// Payload of each in bytes.
    pub size: u16,
    /// Datagrams per second.
    pub rate: u64,
    /// With UDP_SEGMENT, as QUIC does: a super-frame leaves the container.
    pub gso: bool,
}

/// A generator that runs in a namespace until its own end.
#[track_caller]
#[must_use]
pub fn start(netns: &Netns, logs: &Path, name: &str, args: &[&str]) -> Process {
    let mut command = netns.command(binary());
    command.arg("traffic").args(args);
    Process::spawn(command, logs, &format!("{}-{name}", netns.name()))
}

/// Runs a generator in a namespace to its end.
#[track_caller]
pub fn finish(netns: &Netns, args: &[&str]) -> Finished {
    let mut command = netns.command(binary());
    command.arg("traffic").args(args);
    run_within(command, LIMIT)
}

/// A port that no other transfer of this process uses.
#[must_use]
pub fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000
}

/// Moves bytes over TCP and verifies each of them.
///
/// # Panics
///
/// If a byte is wrong or missing.
#[track_caller]
pub fn tcp(lab: &Lab, from: &Container, to: &Container, family: Family, how: Tcp) -> Transfer {
    let port = next_port();
    let address = SocketAddr::new(to.address(family), port).to_string();
    let name = format!("tcp-{port}");
    let receiver = start(to.netns(), &lab.logs(), &name, &["tcp-receive", &address]);
    let (bytes, streams) = (how.bytes.to_string(), how.streams.to_string());
    let mut args = vec!["tcp-send", &address, "--verify", "--bytes", &bytes];
    args.extend(["--streams", &streams]);
    if how.odd_sizes {
        args.push("--odd-sizes");
    }
    let sender = finish(from.netns(), &args).expect_success().json();
    let receiver = receiver.finish(LIMIT).expect_success().json();
    assert_eq!(sender["bytes"], how.bytes, "{sender}");
    assert_eq!(receiver["bytes"], how.bytes, "{receiver}");
    assert!(sender["sha256"].is_string(), "{sender}");
    assert_eq!(sender["sha256"], receiver["sha256"]);
    Transfer { sender, receiver }
}

/// Sends verified datagrams from one container to another, like [`datagrams`].
#[track_caller]
pub fn udp(lab: &Lab, from: &Container, to: &Container, family: Family, how: Udp) -> Transfer {
    datagrams(&lab.logs(), from.netns(), (to.netns(), to.address(family)), how)
}

/// Sends verified datagrams from a namespace to an address in another.
///
/// Order alone has a second and a third try. The kernel keeps it only among packets of one
/// processor (`enqueue_to_backlog` in net/core/dev.c): what a thread left in the backlog there is
/// overtaken when the scheduler moves the thread, be it the sender's or a worker's between the
/// two. That is rare; a switch that reorders does so every time.
///
/// # Panics
///
/// If one is corrupt, doubled or lost, or if some are out of order each time.
#[track_caller]
pub fn datagrams(logs: &Path, from: &Netns, (there, to): (&Netns, IpAddr), how: Udp) -> Transfer {
    let mut transfer = send_datagrams(logs, from, (there, to), how);
    for _ in 0..2 {
        if transfer.receiver["reordered"] == 0 {
            break;
        }
        transfer = send_datagrams(logs, from, (there, to), how);
    }
    assert_eq!(transfer.receiver["reordered"], 0, "out of order each time: {}", transfer.receiver);
    transfer
}

#[track_caller]
fn send_datagrams(logs: &Path, from: &Netns, (there, to): (&Netns, IpAddr), how: Udp) -> Transfer {
    let port = next_port();
    let address = SocketAddr::new(to, port).to_string();
    let name = format!("udp-{port}");
    let receiver = start(there, logs, &name, &["udp-receive", &address]);
    let (count, size) = (how.count.to_string(), how.size.to_string());
    let rate = how.rate.to_string();
    let mut args = vec!["udp-send", &address, "--verify", "--count", &count, "--size", &size];
    args.extend(["--rate", &rate]);
    if how.gso {
        args.push("--gso");
    }
    let sender = finish(from, &args).expect_success().json();
    let receiver = receiver.finish(LIMIT).expect_success().json();
    for key in ["lost", "duplicates", "corrupt"] {
        assert_eq!(receiver[key], 0, "{key} in {receiver}");
    }
    assert_eq!(receiver["received"], how.count, "{receiver}");
    Transfer { sender, receiver }
}

/// Pings with `size` bytes of data and gives the report.
///
/// # Panics
///
/// If one of five echo requests is not answered, or wrongly.
#[track_caller]
pub fn ping(from: &Netns, to: IpAddr, size: u16) -> Value {
    let (to, size) = (to.to_string(), size.to_string());
    // A host that has not heard of the address yet drops the first question for it; the kernel asks
    // again after a second.
    let args = ["ping", &to, "--size", &size, "--count", "5", "--timeout", "3"];
    finish(from, &args).expect_success().json()
}

/// True if one echo request is answered within a second.
#[track_caller]
#[must_use]
pub fn reaches(from: &Netns, to: IpAddr) -> bool {
    let to = to.to_string();
    finish(from, &["ping", &to, "--count", "1", "--timeout", "1"]).status.success()
}

/// The data of the largest echo request that fits `mtu` in one packet.
#[must_use]
pub fn largest_ping(mtu: u16, family: Family) -> u16 {
    let headers = match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    };
    mtu - headers
}

//! Throughput side by side: the raw underlay, the kernel's vxlan device and Skybridge, interleaved
//! in one run, because a machine's speed drifts and only ratios of neighbors in time can be
//! trusted.

use std::process::Stdio;

use super::lab::{Error, Lab, ip, run};

/// UDP port of the kernel's vxlan devices; ours has the standard one.
const KERNEL_PORT: &str = "4790";
/// VNI of the kernel's vxlan devices.
const KERNEL_VNI: &str = "77";
/// UDP payload of a "64-byte packet".
const SMALL: &str = "64";

/// One way between two sandboxes.
#[derive(Clone, Debug)]
pub struct Way {
    /// What carries it.
    pub name: &'static str,
    /// Namespace of the sender.
    pub from: String,
    /// Namespace of the receiver.
    pub to: String,
    /// The receiver's address there.
    pub address: String,
}

/// What one run over one way showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// One TCP stream, Gbit/s.
    pub tcp_gbit: f64,
    /// CPU seconds of the whole machine per 10^9 bytes of that.
    pub tcp_cpu_per_gb: f64,
    /// Small UDP datagrams received per second.
    pub udp_pps: f64,
    /// CPU microseconds of the whole machine per datagram received.
    pub udp_cpu_us: f64,
    /// Median round trip of one small TCP message, microseconds.
    pub rtt_us: f64,
}

impl Figures {
    /// The median of each figure.
    #[must_use]
    pub fn median(runs: &[Self]) -> Self {
        let of = |get: fn(&Self) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(get).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        Self {
            tcp_gbit: of(|f| f.tcp_gbit),
            tcp_cpu_per_gb: of(|f| f.tcp_cpu_per_gb),
            udp_pps: of(|f| f.udp_pps),
            udp_cpu_us: of(|f| f.udp_cpu_us),
            rtt_us: of(|f| f.rtt_us),
        }
    }
}

/// Builds the kernel's own overlay beside ours between hosts 1 and 2: a vxlan device and a bridge
/// on each, and one container behind each bridge. `None` with the reason when the kernel has no
/// vxlan device.
///
/// # Errors
/// When another step fails.
pub fn kernel_overlay(lab: &mut Lab) -> Result<Result<Way, String>, Error> {
    for number in 1..=2 {
        let other = 3 - number;
        let host = lab.namespace(&format!("h{number}"));
        let local = lab.address(number);
        let made = ip(&[
            "-n",
            &host,
            "link",
            "add",
            "kv0",
            "type",
            "vxlan",
            "id",
            KERNEL_VNI,
            "local",
            &local,
            "dstport",
            KERNEL_PORT,
            "dev",
            "eth0",
        ]);
        if let Err(Error::Command { message, .. }) = &made {
            return Ok(Err(message.clone()));
        }
        made?;
        let container = lab.add_namespace(&format!("k{number}"))?;
        let address = format!("203.0.113.{number}/24");
        let mtu = "1450";
        ip(&["-n", &host, "link", "add", "kbr0", "type", "bridge", "mcast_snooping", "0"])?;
        ip(&[
            "-n", &host, "link", "add", "kve0", "mtu", mtu, "type", "veth", "peer", "name", "eth0",
            "netns", &container,
        ])?;
        ip(&["-n", &container, "link", "set", "eth0", "mtu", mtu])?;
        ip(&["-n", &container, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &container, "link", "set", "eth0", "up"])?;
        for device in ["kv0", "kve0"] {
            ip(&["-n", &host, "link", "set", device, "master", "kbr0", "up"])?;
        }
        ip(&["-n", &host, "link", "set", "kbr0", "up"])?;
        let destination = lab.address(other);
        run(&mut lab.command(
            &host,
            "bridge",
            &["fdb", "append", "00:00:00:00:00:00", "dev", "kv0", "dst", &destination],
        ))?;
    }
    Ok(Ok(Way {
        name: "kernel vxlan",
        from: lab.namespace("k1"),
        to: lab.namespace("k2"),
        address: "203.0.113.2".to_owned(),
    }))
}

/// The bare underlay between hosts 1 and 2.
#[must_use]
pub fn raw_underlay(lab: &Lab) -> Way {
    Way {
        name: "raw underlay",
        from: lab.namespace("h1"),
        to: lab.namespace("h2"),
        address: lab.address(2),
    }
}

/// Measures one way once: `seconds` of TCP, then of small UDP, then round trips.
///
/// # Errors
/// When a generator fails; the message is its own.
pub fn measure(lab: &Lab, way: &Way, seconds: f64) -> Result<Figures, Error> {
    let (tcp_gbit, tcp_cpu_per_gb) = tcp(lab, way, seconds, 1)?;
    let (udp_pps, udp_cpu_us) = small_packets(lab, way, seconds)?;
    let rtt_us = round_trip(lab, way)?;
    Ok(Figures { tcp_gbit, tcp_cpu_per_gb, udp_pps, udp_cpu_us, rtt_us })
}

/// Gbit/s of `streams` TCP streams together, and CPU seconds of the whole machine per 10^9 bytes.
///
/// # Errors
/// When a generator fails.
pub fn tcp(lab: &Lab, way: &Way, seconds: f64, streams: u16) -> Result<(f64, f64), Error> {
    let (seconds, streams) = (seconds.to_string(), streams.to_string());
    let before = cpu_seconds();
    let send = ["tcp-send", "--seconds", &seconds, "--streams", &streams];
    let report = pair(lab, way, &["tcp-receive"], &send)?;
    let spent = cpu_seconds() - before;
    let gigabytes = number(&report["bytes"]) / 1e9;
    Ok((number(&report["gbit_per_s"]), per(spent, gigabytes)))
}

/// Small UDP datagrams received per second, and CPU microseconds of the whole machine for each.
///
/// # Errors
/// When a generator fails.
pub fn small_packets(lab: &Lab, way: &Way, seconds: f64) -> Result<(f64, f64), Error> {
    let seconds = seconds.to_string();
    let before = cpu_seconds();
    let send = ["udp-send", "--size", SMALL, "--seconds", &seconds];
    let report = pair(lab, way, &["udp-receive"], &send)?;
    let spent = cpu_seconds() - before;
    let received = &report["receiver"];
    Ok((number(&received["datagrams_per_s"]), per(spent * 1e6, number(&received["received"]))))
}

/// Median round trip of one small TCP message, in microseconds.
///
/// # Errors
/// When a generator fails.
pub fn round_trip(lab: &Lab, way: &Way) -> Result<f64, Error> {
    let report = pair(lab, way, &["pong", "--seconds", "10"], &["latency", "--count", "2000"])?;
    Ok(number(&report["rtt_us"]["median"]))
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn per(total: f64, count: f64) -> f64 {
    if count > 0.0 { total / count } else { 0.0 }
}

/// Moves `bytes` over `way` with every byte checked and both hashes compared; returns the hash.
///
/// # Errors
/// When a byte differed or the transfer failed.
pub fn checked_transfer(lab: &Lab, way: &Way, bytes: u64) -> Result<String, Error> {
    let bytes = bytes.to_string();
    let sent = pair(lab, way, &["tcp-receive"], &["tcp-send", "--bytes", &bytes, "--verify"])?;
    Ok(sent["sha256"].as_str().unwrap_or_default().to_owned())
}

/// Runs a receiver and a sender against each other and returns the sender's report.
fn pair(lab: &Lab, way: &Way, receive: &[&str], send: &[&str]) -> Result<serde_json::Value, Error> {
    let program = own_program()?;
    let bracketed =
        if way.address.contains(':') { format!("[{}]", way.address) } else { way.address.clone() };
    let at = format!("{bracketed}:7700");
    let arguments = |mode: &[&str]| {
        let mut all = vec!["traffic".to_owned(), mode.first().copied().unwrap_or("").to_owned()];
        all.push(at.clone());
        all.extend(mode.iter().skip(1).map(|arg| (*arg).to_owned()));
        all
    };
    let receive = arguments(receive);
    let receive: Vec<&str> = receive.iter().map(String::as_str).collect();
    let mut receiver = lab
        .command(&way.to, &program, &receive)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| Error::Io { what: "start a receiver".to_owned(), source })?;
    let send = arguments(send);
    let send: Vec<&str> = send.iter().map(String::as_str).collect();
    let sent = run(&mut lab.command(&way.from, &program, &send));
    if receive.contains(&"pong") || sent.is_err() {
        let _ = receiver.kill();
    }
    let _ = receiver.wait();
    let text = sent?;
    serde_json::from_str(&text).map_err(|err| Error::Command {
        command: format!("traffic {}", send.join(" ")),
        message: format!("its report cannot be read: {err}"),
    })
}

/// The path of this very program.
///
/// # Errors
/// When the kernel does not tell.
pub fn own_program() -> Result<String, Error> {
    let path = match std::env::var_os("SKYBRIDGE_PROGRAM") {
        Some(path) => path.into(),
        None => std::env::current_exe()
            .map_err(|source| Error::Io { what: "find this program".to_owned(), source })?,
    };
    Ok(path.to_string_lossy().into_owned())
}

/// CPU seconds that this machine has spent on anything but idling and niced work.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq
    let busy: f64 = [0, 2, 5, 6].iter().filter_map(|index| fields.get(*index)).sum();
    busy / 100.0
}

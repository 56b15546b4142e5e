//! The end-to-end comparison: Skybridge beside the kernel's vxlan device and the raw underlay.
//!
//! # Theory of operation
//!
//! Two hosts are made of namespaces on this machine, once with a wire that offloads (veth as it is)
//! and once with a plain one (every packet cut and checksummed before the wire). On each, the three
//! ways are measured in turn, round after round, because only figures that are neighbors in time
//! can be compared on a machine whose speed drifts. What is printed are medians and their ratio to
//! the kernel's device of the same run. Generators, agents and both "hosts" share the CPUs, so
//! throughput is bounded by CPU per byte; the CPU columns count the whole machine.

use std::process::{Command, ExitCode};

use skybridge::demo::lab::{self, Error, Lab, Underlay};
use skybridge::demo::measure::{self, Way};

/// Rounds, unless the first argument says otherwise.
const ROUNDS: usize = 5;
/// Seconds of each run, unless the second argument says otherwise.
const SECONDS: f64 = 3.0;
/// Our modes, with the name that each has in the tables and the part of a subnet that it gets.
const MODES: [(&str, &str, u8); 3] =
    [("vxlan", "skybridge", 0), ("ipip", "- ipip", 64), ("ipudp", "- ipudp", 128)];

/// Name and decimals.
const COLUMNS: &[(&str, usize)] = &[
    ("TCP 1 Gbit/s", 2),
    ("CPU s/GB", 2),
    ("TCP 4 Gbit/s", 2),
    ("64 B pkt/s", 0),
    ("CPU us/pkt", 1),
    ("RTT us", 0),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS).max(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let mut out = std::io::stdout();
    match run(&mut out, rounds, seconds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("error: the bench stopped\ncause: {error}\n").as_bytes(),
            );
            ExitCode::FAILURE
        }
    }
}

fn run(out: &mut impl std::io::Write, rounds: usize, seconds: f64) -> Result<(), Error> {
    for (model, name) in [
        (Underlay::Offloading, "Offloading underlay (veth as it is)"),
        (Underlay::Plain, "Plain underlay (no transmit offload)"),
    ] {
        let mut lab = Lab::new(2, model)?;
        let mut ways = vec![measure::raw_underlay(&lab)];
        match measure::kernel_overlay(&mut lab)? {
            Ok(way) => ways.push(way),
            Err(reason) => {
                let _ = writeln!(out, "no kernel vxlan device to compare with: {reason}");
            }
        }
        ways.extend(overlays(&mut lab)?);
        let mut runs = vec![Vec::new(); ways.len()];
        for _ in 0..rounds {
            for (way, runs) in ways.iter().zip(&mut runs) {
                runs.push(all(&lab, way, seconds)?);
            }
        }
        let _ = writeln!(out, "\n{name}, medians of {rounds} rounds of {seconds} s\n");
        let _ = writeln!(out, "{}", table(&ways, &runs));
        clean_up(&mut lab)?;
    }
    Ok(())
}

/// One round of one way, in the order of the columns.
fn all(lab: &Lab, way: &Way, seconds: f64) -> Result<Vec<f64>, Error> {
    let (one, cpu) = measure::tcp(lab, way, seconds, 1)?;
    let (four, _) = measure::tcp(lab, way, seconds, 4)?;
    let (packets, each) = measure::small_packets(lab, way, seconds)?;
    Ok(vec![one, cpu, four, packets, each, measure::round_trip(lab, way)?])
}

/// Two agents, a network of each mode, a container of each on each host.
fn overlays(lab: &mut Lab) -> Result<Vec<Way>, Error> {
    let program = measure::own_program()?;
    let path = |lab: &Lab, name: String| lab.dir().join(name).to_string_lossy().into_owned();
    let store = format!("{}:2379", lab.address(1));
    for number in 1..=2 {
        let name = format!("h{number}");
        let (state, socket) =
            (path(lab, format!("{name}-state")), path(lab, format!("{name}.sock")));
        let (address, url) = (lab.address(number), format!("http://{store}"));
        let mut args = vec!["agent", "--name", &name, "--vtep", &address, "--insecure-store"];
        args.extend(["--state-dir", &state, "--socket", &socket]);
        args.extend(if number == 1 { ["--embedded-store", &store] } else { ["--store", &url] });
        let host = lab.namespace(&name);
        lab.start(&host, &name, &program, &args)?;
    }
    for number in 1..=2 {
        let socket = path(lab, format!("h{number}.sock"));
        lab::wait("the agents being ready", 20, || {
            let mut status = Command::new(&program);
            let text = lab::run(status.args(["status", "--json", "--socket", &socket])).ok()?;
            text.contains("\"ready\": true").then_some(())
        })?;
    }
    let mut ways = Vec::new();
    for (mode, name, first) in MODES {
        for number in 1..=2 {
            let socket = path(lab, format!("h{number}.sock"));
            let command = |args: &[&str]| {
                lab::run(Command::new(&program).args(args).args(["--socket", &socket])).map(drop)
            };
            if number == 1 {
                let subnet = format!("198.51.100.{first}/26");
                command(&["network", "create", mode, "--subnet", &subnet, "--mode", mode])?;
            }
            let sandbox = lab.add_namespace(&format!("{mode}{number}"))?;
            command(&["attach", mode, "--netns", &sandbox, "--ip", &address(first, number)])?;
        }
        ways.push(Way {
            name,
            from: lab.namespace(&format!("{mode}1")),
            to: lab.namespace(&format!("{mode}2")),
            address: address(first, 2),
        });
    }
    Ok(ways)
}

/// The address of a host's container in the part of the subnet that begins at `first`.
fn address(first: u8, number: u8) -> String {
    format!("198.51.100.{}", first.saturating_add(10).saturating_add(number))
}

/// What the agents pinned outlives them on purpose, so it is removed by their own means.
fn clean_up(lab: &mut Lab) -> Result<(), Error> {
    lab.stop();
    let program = measure::own_program()?;
    for number in 1..=2 {
        let state = lab.dir().join(format!("h{number}-state"));
        lab::run(Command::new(&program).args(["agent", "--cleanup", "--state-dir"]).arg(state))?;
    }
    Ok(())
}

fn median(runs: &[Vec<f64>], column: usize) -> f64 {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run.get(column).copied()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn table(ways: &[Way], runs: &[Vec<Vec<f64>>]) -> String {
    let kernel = ways.iter().position(|way| way.name == "kernel vxlan").and_then(|i| runs.get(i));
    let mut text = format!("{:<14}", "");
    for (name, _) in COLUMNS {
        text.push_str(&format!("{name:>14}{:>7}", "ratio"));
    }
    for (way, runs) in ways.iter().zip(runs) {
        text.push_str(&format!("\n{:<14}", way.name));
        for (column, (_, decimals)) in COLUMNS.iter().enumerate() {
            let value = median(runs, column);
            let ratio = kernel.map_or(f64::NAN, |kernel| value / median(kernel, column));
            text.push_str(&format!("{value:>14.decimals$}{ratio:>7.2}"));
        }
    }
    text
}

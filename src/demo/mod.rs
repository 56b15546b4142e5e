//! `skybridge demo`: hosts as namespaces on this machine, end to end, with figures.
//!
//! # Theory of operation
//!
//! The demo is a user of the product like any other: it runs this very program's commands, prints
//! each before it runs it, and shows their output unchanged. The first host serves the embedded
//! store; every host runs an agent; one network gets a container on each host. Then pings between
//! all of them, a transfer whose bytes are checked, the listings, and a comparison with the raw
//! underlay and the kernel's vxlan device in the same run.
//!
//! An interrupt is noticed between two steps (a running program of the demo gets the same signal
//! from the terminal and ends by itself), and everything is taken down by `Drop` on every way out.

pub mod lab;
pub mod measure;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Error, Lab, Underlay, run as run_command, wait};
use measure::{Figures, Way};

/// The demo's network.
const NETWORK: &str = "demo";
const SUBNET: &str = "198.51.100.0/24";
const SUBNET6: &str = "2001:db8:51::/64";
/// Bytes of the checked transfer.
const CHECKED_BYTES: u64 = 256 << 20;
/// Rounds of the comparison; the median is shown.
const ROUNDS: usize = 3;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many hosts, 2 to 9.
    pub hosts: usize,
    /// Leave everything up at the end and say how to enter it.
    pub keep: bool,
    /// Colours.
    pub color: bool,
    /// Seconds of each TCP and UDP run of the comparison; 0 leaves the comparison out.
    pub seconds: f64,
}

struct Demo {
    lab: Lab,
    program: String,
    color: bool,
    interrupted: Arc<AtomicBool>,
}

/// Runs the demo. The exit code is 0 only when every step did what it should.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    watch_signals(&interrupted);
    match demo(options, &interrupted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupted.load(Ordering::Relaxed) => {
            say("\ninterrupted: everything is taken down again");
            ExitCode::FAILURE
        }
        Err(error) => {
            let mut out = std::io::stderr().lock();
            let _ = writeln!(out, "error: the demo stopped\ncause: {error}");
            if let Error::Lacking { next, .. } = error {
                let _ = writeln!(out, "try: {next}");
            }
            ExitCode::FAILURE
        }
    }
}

fn demo(options: &Options, interrupted: &Arc<AtomicBool>) -> Result<(), Error> {
    let hosts = options.hosts.clamp(2, 9);
    let program = measure::own_program()?;
    let lab = Lab::new(hosts, Underlay::Offloading)?;
    let mut demo =
        Demo { lab, program, color: options.color, interrupted: Arc::clone(interrupted) };
    demo.title(&format!("{hosts} hosts, one network, {hosts} containers"));
    demo.draw();
    demo.title("An agent on each host, the embedded store on the first");
    for number in 1..=hosts {
        demo.start_agent(number)?;
    }
    for number in 1..=hosts {
        demo.wait_for_agent(number)?;
    }
    demo.title("A network, and a container on each host");
    demo.show(1, &["network", "create", NETWORK, "--subnet", SUBNET, "--subnet", SUBNET6])?;
    let mut addresses = Vec::new();
    for number in 1..=hosts {
        addresses.push(demo.attach(number)?);
    }
    demo.title("Every container pings every other");
    demo.ping_all(&addresses)?;
    let overlay = Way {
        name: "skybridge",
        from: demo.lab.namespace("c1"),
        to: demo.lab.namespace("c2"),
        address: addresses.get(1).cloned().unwrap_or_default(),
    };
    demo.title(&format!("{} MB from c1 to c2, every byte checked", CHECKED_BYTES >> 20));
    let hash = measure::checked_transfer(&demo.lab, &overlay, CHECKED_BYTES)?;
    say(&format!("  sent and received SHA-256 {hash}"));
    demo.title("What the first host knows");
    for listing in [&["status"][..], &["hosts"], &["endpoints"], &["fdb"], &["neighbors"]] {
        demo.show(1, listing)?;
    }
    if options.seconds > 0.0 {
        demo.title("Throughput, interleaved, medians of this run");
        demo.compare(overlay, options.seconds)?;
    }
    if options.keep {
        demo.keep();
    } else {
        say("\nDone; everything is taken down again. `--keep` leaves it up.");
    }
    Ok(())
}

impl Demo {
    fn start_agent(&mut self, number: usize) -> Result<(), Error> {
        self.check()?;
        let host = self.lab.namespace(&format!("h{number}"));
        let name = format!("h{number}");
        let address = self.lab.address(number);
        let state = self.path(&format!("{name}-state"));
        let socket = self.socket(number);
        let store = format!("{}:2379", self.lab.address(1));
        let url = format!("http://{store}");
        let program = self.program.clone();
        let mut args = vec![
            "agent",
            "--name",
            &name,
            "--vtep",
            &address,
            "--insecure-store",
            "--state-dir",
            &state,
            "--socket",
            &socket,
        ];
        if number == 1 {
            args.extend(["--embedded-store", &store]);
        } else {
            args.extend(["--store", &url]);
        }
        self.command_line(&args);
        self.lab.start(&host, &name, &program, &args)
    }

    fn wait_for_agent(&mut self, number: usize) -> Result<(), Error> {
        let socket = self.socket(number);
        let program = self.program.clone();
        let log = self.lab.log(&format!("h{number}"));
        let interrupted = Arc::clone(&self.interrupted);
        let lab = &mut self.lab;
        wait(&format!("agent h{number} being ready"), 20, || {
            if interrupted.load(Ordering::Relaxed) {
                return Some(Err(stopped()));
            }
            if let Some(status) = lab.ended() {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                return Some(Err(Error::Command {
                    command: "skybridge agent".to_owned(),
                    message: format!("{status}\n{text}"),
                }));
            }
            let text =
                run_command(Command::new(&program).args(["status", "--json", "--socket", &socket]));
            let status: serde_json::Value = serde_json::from_str(&text.ok()?).ok()?;
            (status["store"]["state"] == "connected").then_some(Ok(()))
        })?
    }

    fn attach(&mut self, number: usize) -> Result<String, Error> {
        let name = format!("c{number}");
        let namespace = self.lab.add_namespace(&name)?;
        let text = self
            .show(number, &["attach", NETWORK, "--netns", &namespace, "--name", &name, "--json"])?;
        let attached: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let address = attached["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.as_str())
            .find(|ip| ip.contains('.'))
            .and_then(|ip| ip.split('/').next())
            .unwrap_or_default()
            .to_owned();
        Ok(address)
    }

    fn ping_all(&self, addresses: &[String]) -> Result<(), Error> {
        let mut header = "        ".to_owned();
        for number in 1..=addresses.len() {
            header.push_str(&format!("{:>10}", format!("c{number}")));
        }
        say(&header);
        for from in 1..=addresses.len() {
            let mut row = format!("  c{from}    ");
            for (index, address) in addresses.iter().enumerate() {
                if index + 1 == from {
                    row.push_str(&format!("{:>10}", "-"));
                    continue;
                }
                self.check()?;
                let namespace = self.lab.namespace(&format!("c{from}"));
                let args = ["traffic", "ping", address, "--count", "3"];
                let text = run_command(&mut self.lab.command(&namespace, &self.program, &args))?;
                let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                let median = report["rtt_us"]["median"].as_f64().unwrap_or(0.0);
                row.push_str(&format!("{:>10}", format!("{:.2} ms", median / 1000.0)));
            }
            say(&row);
        }
        Ok(())
    }

    fn compare(&mut self, overlay: Way, seconds: f64) -> Result<(), Error> {
        let mut ways = vec![measure::raw_underlay(&self.lab)];
        match measure::kernel_overlay(&mut self.lab)? {
            Ok(way) => ways.push(way),
            Err(reason) => say(&format!("  no kernel vxlan device to compare with: {reason}")),
        }
        ways.push(overlay);
        let progress = indicatif::ProgressBar::new((ROUNDS * ways.len()) as u64);
        if let Ok(style) = indicatif::ProgressStyle::with_template("  {bar:30} {msg}") {
            progress.set_style(style);
        }
        let mut runs = vec![Vec::new(); ways.len()];
        for round in 1..=ROUNDS {
            for (way, runs) in ways.iter().zip(&mut runs) {
                self.check()?;
                progress.set_message(format!("round {round}: {}", way.name));
                runs.push(measure::measure(&self.lab, way, seconds)?);
                progress.inc(1);
            }
        }
        progress.finish_and_clear();
        say(&table(&ways, &runs));
        Ok(())
    }

    /// Runs a command of this program against host `number`, prints it and its output.
    fn show(&self, number: usize, args: &[&str]) -> Result<String, Error> {
        self.check()?;
        let socket = self.socket(number);
        let mut args = args.to_vec();
        args.extend(["--socket", &socket]);
        self.command_line(&args);
        let text = run_command(Command::new(&self.program).args(&args))?;
        for line in text.lines() {
            say(&format!("  {line}"));
        }
        Ok(text)
    }

    fn keep(&mut self) {
        self.lab.keep();
        say("\nEverything stays up. To look around:");
        for number in 1..=self.lab.hosts() {
            say(&format!(
                "  host h{number}        nsenter --net=/run/netns/{}    ({} status --socket {})",
                self.lab.namespace(&format!("h{number}")),
                self.program,
                self.socket(number),
            ));
            let container = self.lab.namespace(&format!("c{number}"));
            say(&format!("  container c{number}   nsenter --net=/run/netns/{container}"));
        }
        let pids: Vec<String> = self.lab.pids().map(|pid| pid.to_string()).collect();
        say(&format!(
            "To take it down:\n  kill {}; ip netns | awk '/^{}-/ {{print $1}}' | xargs -n1 ip netns del; rm -r {}",
            pids.join(" "),
            self.lab.namespace("").trim_end_matches('-'),
            self.lab.dir().display(),
        ));
    }

    fn draw(&self) {
        let hosts = self.lab.hosts();
        let line = |cell: &dyn Fn(usize) -> String| {
            let cells: Vec<String> = (1..=hosts).map(cell).collect();
            say(&format!("  {}", cells.join("  ")));
        };
        line(&|n| format!("┌─ host h{n} ────────┐"));
        line(&|n| format!("│  container c{n}    │"));
        line(&|_| "│       │ veth      │".to_owned());
        line(&|_| "│  bridge ─ TAP     │".to_owned());
        line(&|_| "│       │           │".to_owned());
        line(&|n| {
            let what = if n == 1 { "agent + store" } else { "agent" };
            format!("│  {what:<17}│")
        });
        line(&|n| format!("│  {:<17}│", self.lab.address(n)));
        line(&|_| "└───────┬───────────┘".to_owned());
        let width = hosts * 23;
        say(&format!("  ────────┴{}  underlay 192.0.2.0/24, UDP 4789", "─".repeat(width - 12)));
    }

    fn title(&self, text: &str) {
        let (bold, plain) = if self.color { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        say(&format!("\n{bold}{text}{plain}\n"));
    }

    fn command_line(&self, args: &[&str]) {
        let (dim, plain) = if self.color { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        say(&format!("{dim}$ skybridge {}{plain}", args.join(" ")));
    }

    fn socket(&self, number: usize) -> String {
        self.path(&format!("h{number}.sock"))
    }

    fn path(&self, name: &str) -> String {
        let path: &Path = self.lab.dir();
        path.join(name).to_string_lossy().into_owned()
    }

    fn check(&self) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) { Err(stopped()) } else { Ok(()) }
    }
}

fn stopped() -> Error {
    Error::Command { command: "demo".to_owned(), message: "interrupted".to_owned() }
}

/// The comparison as a table: medians, and each way's share of the kernel's device.
#[must_use]
pub fn table(ways: &[Way], runs: &[Vec<Figures>]) -> String {
    let medians: Vec<Figures> = runs.iter().map(|runs| Figures::median(runs)).collect();
    let kernel = ways.iter().position(|way| way.name == "kernel vxlan");
    let base = kernel.and_then(|index| medians.get(index)).copied();
    let ratio = |value: f64, base: Option<f64>| match base {
        Some(base) if base > 0.0 => format!("{:.2}", value / base),
        _ => "-".to_owned(),
    };
    let mut text = format!(
        "  {:<14}{:>12}{:>8}{:>12}{:>14}{:>8}{:>12}{:>12}\n",
        "", "TCP Gbit/s", "ratio", "CPU s/GB", "64 B pkt/s", "ratio", "CPU us/pkt", "RTT us",
    );
    for (way, median) in ways.iter().zip(&medians) {
        text.push_str(&format!(
            "  {:<14}{:>12.2}{:>8}{:>12.2}{:>14.0}{:>8}{:>12.1}{:>12.0}\n",
            way.name,
            median.tcp_gbit,
            ratio(median.tcp_gbit, base.map(|b| b.tcp_gbit)),
            median.tcp_cpu_per_gb,
            median.udp_pps,
            ratio(median.udp_pps, base.map(|b| b.udp_pps)),
            median.udp_cpu_us,
            median.rtt_us,
        ));
    }
    text.push_str(
        "  ratio: to the kernel's vxlan device. One TCP stream; CPU of the whole machine.",
    );
    text
}

fn watch_signals(interrupted: &Arc<AtomicBool>) {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGHUP);
    // Blocked in every thread from here on, and waited for by one of our own.
    if set.thread_block().is_err() {
        return;
    }
    let flag = Arc::clone(interrupted);
    std::thread::spawn(move || {
        while set.wait().is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
}

fn say(text: &str) {
    // A closed pipe is the reader's choice; the demo still cleans up.
    let _ = writeln!(std::io::stdout(), "{text}");
}

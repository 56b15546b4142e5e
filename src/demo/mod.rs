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
//! from the terminal and ends by itself), and everything is taken down by `Drop` on every way out: the
//! agents end, each host is cleaned up by `skybridge agent --cleanup`, as its pins would outlive the
//! lab, then the lab itself goes.

pub mod lab;
pub mod measure;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Error, Lab, Underlay, run as run_command, wait};
use measure::{Figures, Way};

use crate::control::types::Mode;

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
    /// Mode of the network.
    pub mode: Mode,
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
    kept: bool,
}

impl Drop for Demo {
    fn drop(&mut self) {
        if !self.kept {
            self.clean_up();
        }
    }
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
    let mut demo = Demo {
        lab,
        program,
        color: options.color,
        interrupted: Arc::clone(interrupted),
        kept: false,
    };
    demo.title(&format!("{hosts} hosts, one network, {hosts} containers"));
    demo.draw(options.mode);
    demo.title("An agent on each host, the embedded store on the first");
    for number in 1..=hosts {
        demo.start_agent(number)?;
    }
    for number in 1..=hosts {
        demo.wait_for_agent(number)?;
    }
    demo.title("A network, and a container on each host");
    let mode = options.mode.to_string();
    let mut create = vec!["network", "create", NETWORK, "--subnet", SUBNET, "--subnet", SUBNET6];
    if options.mode != Mode::Vxlan {
        create.extend(["--mode", &mode]);
    }
    demo.show(1, &create)?;
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
    let tables = match options.mode {
        Mode::Vxlan => &["fdb", "neighbors"][..],
        Mode::Ipip | Mode::Ipudp => &["routes"],
    };
    for listing in ["status", "hosts", "endpoints"].iter().chain(tables) {
        demo.show(1, &[*listing])?;
    }
    if options.seconds > 0.0 {
        demo.title("Throughput, interleaved, medians of this run");
        demo.compare(overlay, options.seconds)?;
    }
    if options.keep {
        demo.keep()?;
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
                // A host that has not heard of the address yet drops the first question for it; the
                // kernel asks again after a second.
                let args = ["traffic", "ping", address, "--count", "3", "--timeout", "3"];
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

    fn keep(&mut self) -> Result<(), Error> {
        let script = self.path("down");
        std::fs::write(&script, self.take_down())
            .map_err(|source| Error::Io { what: format!("write {script}"), source })?;
        self.lab.keep();
        self.kept = true;
        say("\nEverything stays up. To look around, as root:\n");
        for number in 1..=self.lab.hosts() {
            let host = self.lab.namespace(&format!("h{number}"));
            let container = self.lab.namespace(&format!("c{number}"));
            say(&format!("  host h{number}       nsenter --net=/run/netns/{host}"));
            say(&format!(
                "  agent h{number}      {} status --socket {}",
                self.program,
                self.socket(number)
            ));
            say(&format!("  container c{number}  nsenter --net=/run/netns/{container}"));
        }
        say(&format!("\nTo take it down:\n\n  sh {script}"));
        Ok(())
    }

    /// A shell script that removes what `--keep` left.
    fn take_down(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
        let pids: Vec<String> = self.lab.pids().map(|pid| pid.to_string()).collect();
        let hosts: Vec<String> = (1..=self.lab.hosts()).map(|n| format!("h{n}")).collect();
        let prefix = self.lab.namespace("");
        let dir = self.lab.dir().display().to_string();
        format!(
            "# Takes a kept demo of skybridge down.\n\
             kill {pids}\n\
             for host in {hosts}; do\n    \
                 # An agent that still ends holds its state directory.\n    \
                 for try in $(seq 100); do\n        \
                     nsenter --net=/run/netns/{prefix}$host {program} agent --cleanup \\\n            \
                         --state-dir {dir}/$host-state >/dev/null 2>&1 && break\n        \
                     sleep 0.1\n    \
                 done\n\
             done\n\
             for namespace in $(ip netns list | awk '/^{prefix}/ {{print $1}}'); do\n    \
                 ip netns del \"$namespace\"\n\
             done\n\
             rm -r {dir}\n",
            pids = pids.join(" "),
            hosts = hosts.join(" "),
            program = quoted(&self.program),
            dir = quoted(&dir),
        )
    }

    /// Ends the agents and has each remove its pins and devices, which outlive a mere end.
    fn clean_up(&self) {
        use nix::sys::signal::{Signal, kill};
        for pid in self.lab.pids() {
            let _ = kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
        for number in 1..=self.lab.hosts() {
            let state = self.path(&format!("h{number}-state"));
            if !Path::new(&state).exists() {
                continue;
            }
            let host = self.lab.namespace(&format!("h{number}"));
            let args = ["agent", "--cleanup", "--state-dir", &state];
            // An agent that still ends holds its state directory.
            let done = wait("the clean-up", 5, || {
                run_command(&mut self.lab.command(&host, &self.program, &args)).ok()
            });
            if done.is_err() {
                say(&format!("  host h{number} was not cleaned up; see /run/skybridge/netns"));
            }
        }
    }

    fn draw(&self, mode: Mode) {
        /// Columns between the borders of a box, and between two boxes.
        const INNER: usize = 19;
        const GAP: usize = 2;
        /// Boxes that fit a terminal of 80 columns.
        const SHOWN: usize = 3;
        let hosts = self.lab.hosts();
        let line = |left: char, right: char, cell: &dyn Fn(usize) -> String, fill: char| {
            let mut text = " ".to_owned();
            for number in (1..=hosts).filter(|n| *n < SHOWN || *n == hosts) {
                if number == hosts && hosts > SHOWN {
                    text.push_str(" ..");
                }
                let mut inside = cell(number);
                let missing = INNER.saturating_sub(inside.chars().count());
                inside.extend(std::iter::repeat_n(fill, missing));
                text.push_str(&format!("{:GAP$}{left}{inside}{right}", ""));
            }
            say(text.trim_end());
        };
        let row = |cell: &dyn Fn(usize) -> String| line('│', '│', cell, ' ');
        line('┌', '┐', &|n| format!("─ host h{n} "), '─');
        row(&|n| format!("  container c{n}"));
        row(&|_| "       │ veth".to_owned());
        let (inside, port, wire) = match mode {
            Mode::Vxlan => ("    bridge", "       │ TAP", "       │ UDP 4789"),
            Mode::Ipip => ("    routes", "       │ TUN", "       │ IP in IP"),
            Mode::Ipudp => ("    routes", "       │ TUN", "       │ UDP 4760"),
        };
        row(&|_| inside.to_owned());
        row(&|_| port.to_owned());
        row(&|n| if n == 1 { "  agent, store" } else { "  agent" }.to_owned());
        row(&|_| wire.to_owned());
        row(&|n| format!("  {}", self.lab.address(n)));
        line('└', '┘', &|_| "───────┬".to_owned(), '─');
        line(' ', ' ', &|_| "       │".to_owned(), ' ');
        let shown = hosts.min(SHOWN);
        let dots = if hosts > SHOWN { 3 } else { 0 };
        let width = shown * (INNER + 2 + GAP) - GAP + dots;
        say(&format!("   {:═^width$}", " underlay 192.0.2.0/24 "));
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

/// Notes an interrupt. Handlers and not a blocked mask: programs that the demo starts would inherit a
/// mask and could not be ended.
fn watch_signals(interrupted: &Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let flag = Arc::clone(interrupted);
        let entered = runtime.enter();
        let Ok(mut signals) = signal(kind) else { continue };
        drop(entered);
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
    }
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
}

fn say(text: &str) {
    // A closed pipe is the reader's choice; the demo still cleans up.
    let _ = writeln!(std::io::stdout(), "{text}");
}

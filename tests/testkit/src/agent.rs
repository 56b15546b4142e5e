//! The real program on a host of the lab.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::container::Container;
use crate::lab::{Host, Lab, lock};
use crate::netns::Netns;
use crate::process::{Finished, Process, run, run_within};
use crate::{binary, wait_until};

/// The time an agent gets to become ready.
const READY: Duration = Duration::from_secs(20);
/// A third of what systemd gives a service.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    vtep: IpAddr,
    bind: Option<IpAddr>,
    stores: Vec<String>,
    embedded: Option<SocketAddr>,
    config: Option<String>,
    args: Vec<String>,
    secure: bool,
    environment: Vec<(String, String)>,
    unit: Option<PathBuf>,
}

impl AgentSpec {
    /// An agent with this VTEP address and no store yet.
    #[must_use]
    pub fn new(vtep: IpAddr) -> Self {
        let (stores, args, environment) = (Vec::new(), Vec::new(), Vec::new());
        let (bind, embedded, config, unit) = (None, None, None, None);
        Self { vtep, bind, stores, embedded, config, args, secure: false, environment, unit }
    }

    /// Says that its host has this address where others know another one, as behind NAT.
    #[must_use]
    pub fn bind(mut self, address: IpAddr) -> Self {
        self.bind = Some(address);
        let vtep = self.vtep;
        self.config(&format!("vtep = [{{ address = \"{vtep}\", bind = \"{address}\" }}]"))
    }

    /// Sets an environment variable for it.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it under the settings of a systemd unit, see [`sandbox`](crate::sandbox).
    #[must_use]
    pub fn unit(mut self, unit: impl Into<PathBuf>) -> Self {
        self.unit = Some(unit.into());
        self
    }

    /// Does without `--insecure-store`: an embedded store has its own authority then, and an agent
    /// without a store uses the one that its host has joined.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.secure = true;
        self
    }

    /// Uses the store at `address`, in clear.
    #[must_use]
    pub fn store(self, address: SocketAddr) -> Self {
        self.store_url(&format!("http://{address}"))
    }

    /// Uses the store at `url`.
    #[must_use]
    pub fn store_url(mut self, url: &str) -> Self {
        self.stores.push(url.to_owned());
        self
    }

    /// Serves the embedded store at `address` and uses it.
    #[must_use]
    pub fn embedded_store(mut self, address: SocketAddr) -> Self {
        self.embedded = Some(address);
        self
    }

    /// Adds lines to the agent's configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        let config = self.config.get_or_insert_default();
        config.push_str(toml);
        config.push('\n');
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// An agent of a lab. Clones are the same agent.
#[derive(Debug, Clone)]
pub struct Agent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    spec: AgentSpec,
    netns: Arc<Netns>,
    directory: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
    allowed: Mutex<Vec<String>>,
}

impl Agent {
    pub(crate) fn new(lab: &Lab, host: &Host, spec: AgentSpec) -> Self {
        let name = format!("h{}", host.index());
        Self::named(lab, host, &name, &name, spec)
    }

    pub(crate) fn named(
        lab: &Lab,
        host: &Host,
        name: &str,
        directory: &str,
        spec: AgentSpec,
    ) -> Self {
        let (name, log) = (name.to_owned(), lab.logs().join(format!("{directory}.log")));
        let directory = lab.directory().join(directory);
        fs::create_dir_all(&directory).expect("the lab's directory takes directories");
        if let Some(config) = &spec.config {
            fs::write(directory.join("skybridge.toml"), config).expect("a new file can be written");
        }
        Self(Arc::new(Inner {
            name,
            spec,
            netns: Arc::clone(host.netns()),
            directory,
            log,
            process: Mutex::default(),
            allowed: Mutex::default(),
        }))
    }

    /// Its name, as other hosts see it: `h1`, `h2`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The namespace of its host.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.0.netns
    }

    /// The address of its VTEP.
    #[must_use]
    pub fn vtep(&self) -> IpAddr {
        self.0.spec.vtep
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.directory.join("agent.sock")
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.0.directory.join("state")
    }

    /// Its log so far, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.0.log).unwrap_or_default()
    }

    /// The arguments that say who and where it is, the same for `agent` and `agent --cleanup`.
    fn place(&self) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        let mut args = vec![
            "--state-dir".to_owned(),
            path(self.state_dir()),
            "--socket".to_owned(),
            path(self.socket()),
        ];
        if self.0.spec.config.is_some() {
            args.extend(["--config".to_owned(), path(self.0.directory.join("skybridge.toml"))]);
        }
        args
    }

    /// The command that starts it.
    #[must_use]
    pub fn command(&self) -> std::process::Command {
        let spec = &self.0.spec;
        let mut command = match &spec.unit {
            None => self.0.netns.command(binary()),
            Some(unit) => {
                let runner = std::env::current_exe().expect("a process knows its program");
                let mut command = self.0.netns.command(runner);
                command.arg(crate::sandbox::RUN).arg(unit).arg(binary());
                command
            }
        };
        command.env("NO_COLOR", "1").arg("agent").args(self.place());
        for (name, value) in &spec.environment {
            command.env(name, value);
        }
        command.args(["--name", &self.0.name]);
        if spec.bind.is_none() {
            command.args(["--vtep", &spec.vtep.to_string()]);
        }
        if !spec.secure {
            command.arg("--insecure-store");
        }
        if let Some(address) = spec.embedded {
            command.args(["--embedded-store", &address.to_string()]);
        }
        for store in &spec.stores {
            command.args(["--store", store]);
        }
        command.args(&spec.args);
        command
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it runs already, ends, or is not ready in time.
    #[track_caller]
    pub fn start(&self) {
        self.start_without_waiting();
        self.wait_ready();
    }

    /// Starts it and returns at once.
    ///
    /// # Panics
    ///
    /// If it runs already or cannot be started.
    #[track_caller]
    pub fn start_without_waiting(&self) {
        assert!(!self.running(), "{} runs already", self.name());
        let (logs, name) = (self.0.log.with_file_name(""), self.0.log.file_stem());
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let process = Process::spawn(self.command(), &logs, &name);
        *lock(&self.0.process) = Some(process);
    }

    /// Waits until it answers that it is ready.
    ///
    /// # Panics
    ///
    /// If it ends or is not ready in time.
    #[track_caller]
    pub fn wait_ready(&self) -> Duration {
        let ((), elapsed) = wait_until(&format!("{} is ready", self.name()), READY, || {
            assert!(self.running(), "{} ended:\n{}", self.name(), self.log());
            let answer = self.try_cli(&["status", "--json"]);
            (answer.status.success() && answer.json()["ready"] != false).then_some(())
        });
        elapsed
    }

    /// True while its process lives.
    #[must_use]
    pub fn running(&self) -> bool {
        lock(&self.0.process).as_mut().is_some_and(Process::running)
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// If it was never started.
    #[track_caller]
    #[must_use]
    pub fn pid(&self) -> u32 {
        lock(&self.0.process).as_ref().expect("the agent was started").pid()
    }

    /// Ends it as a crash would.
    pub fn kill9(&self) {
        if let Some(mut process) = lock(&self.0.process).take() {
            process.kill();
        }
    }

    /// Ends it as an operator would.
    ///
    /// It may say that the store did not take the lease back within a second: that a disk was slow
    /// is no fault of it.
    ///
    /// # Panics
    ///
    /// If it has not ended after half a minute.
    #[track_caller]
    pub fn stop(&self) {
        self.allow_log("the lease could not be ended");
        let process = lock(&self.0.process).take();
        if let Some(mut process) = process {
            assert!(process.stop(STOP_WITHIN), "{} does not stop", self.name());
        }
    }

    /// Sends it a signal, for example SIGSTOP.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = lock(&self.0.process).as_mut() {
            process.signal(signal);
        }
    }

    pub(crate) fn stop_quietly(&self, limit: Duration) {
        if let Some(mut process) = lock(&self.0.process).take() {
            process.signal(Signal::SIGCONT);
            process.stop(limit);
        }
    }

    pub(crate) fn clean_up_quietly(&self) {
        let mut command = self.cleanup_command();
        let _: std::io::Result<std::process::Output> = command.output();
    }

    fn cleanup_command(&self) -> std::process::Command {
        let mut command = self.0.netns.command(binary());
        command.env("NO_COLOR", "1").args(["agent", "--cleanup"]).args(self.place());
        command.args(["--name", &self.0.name, "--vtep", &self.0.spec.vtep.to_string()]);
        command.arg("--insecure-store");
        if let Some(address) = self.0.spec.embedded {
            command.args(["--embedded-store", &address.to_string()]);
        }
        for store in &self.0.spec.stores {
            command.args(["--store", store]);
        }
        command
    }

    /// Removes what the stopped agent ever made: `skybridge agent --cleanup`.
    #[track_caller]
    pub fn clean_up(&self) -> Finished {
        run(self.cleanup_command())
    }

    /// Runs another command of the program against this agent and gives its result.
    #[track_caller]
    pub fn try_cli(&self, args: &[&str]) -> Finished {
        run_within(self.cli_command(args), Duration::from_secs(30))
    }

    fn cli_command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.0.netns.command(binary());
        command.env("NO_COLOR", "1").args(args).arg("--socket").arg(self.socket());
        command
    }

    pub(crate) fn cli_quietly(&self, args: &[&str]) -> String {
        let output = self.cli_command(args).output();
        let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs another command of the program against this agent.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Finished {
        self.try_cli(args).expect_success()
    }

    /// Runs a listing with `--json` and gives the answer.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        self.cli(&[args, &["--json"]].concat()).json()
    }

    /// `skybridge network create NAME` with further arguments.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn create_network(&self, name: &str, args: &[&str]) {
        let _ = self.cli(&[&["network", "create", name], args].concat());
    }

    /// Attaches a new namespace `name` to `network` and gives it as a container.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn container(&self, lab: &Lab, network: &str, name: &str, args: &[&str]) -> Container {
        self.attach(&lab.sandbox(name), network, args)
    }

    /// Attaches a namespace to `network`.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn attach(&self, sandbox: &Arc<Netns>, network: &str, args: &[&str]) -> Container {
        let place = ["attach", network, "--netns", sandbox.name()];
        let _ = self.cli(&[&place, args].concat());
        let ifname = args
            .iter()
            .position(|arg| *arg == "--ifname")
            .and_then(|at| args.get(at + 1))
            .unwrap_or(&"eth0");
        Container::inspect(Arc::clone(sandbox), ifname)
    }

    /// Detaches a container's namespace from `network`.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn detach(&self, network: &str, container: &Container) {
        let _ = self.cli(&["detach", network, "--netns", container.netns().name()]);
    }

    /// Log lines that contain `text` are expected of this test.
    pub fn allow_log(&self, text: &str) {
        lock(&self.0.allowed).push(text.to_owned());
    }

    /// Warnings, errors and panics in the log that no [`allow_log`](Self::allow_log) expects.
    #[must_use]
    pub fn unexpected_log_lines(&self) -> Vec<String> {
        let allowed = lock(&self.0.allowed);
        alarming(&self.log(), &allowed)
    }

    /// Waits until the log has a line with `text`.
    ///
    /// # Panics
    ///
    /// After `deadline`.
    #[track_caller]
    pub fn wait_log(&self, text: &str, deadline: Duration) -> Duration {
        let started = Instant::now();
        wait_until(&format!("{} logs {text:?}", self.name()), deadline, || {
            self.log().contains(text).then_some(())
        });
        started.elapsed()
    }

    /// A file of this agent's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }
}

/// The lines of `log` at WARN or worse, or of a panic, without those that contain one of `allowed`.
fn alarming(log: &str, allowed: &[String]) -> Vec<String> {
    log.lines()
        .filter(|line| {
            // "TIME LEVEL target: message", or one JSON object with a level.
            let level = line.split_whitespace().nth(1).unwrap_or_default();
            matches!(level, "WARN" | "ERROR")
                || line.contains("\"level\":\"WARN\"")
                || line.contains("\"level\":\"ERROR\"")
                || line.contains("panicked at")
        })
        .filter(|line| !allowed.iter().any(|text| line.contains(text.as_str())))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarming_lines_are_found_and_expected_ones_are_not() {
        let log = "\
2026-01-01T00:00:00Z  INFO skybridge: started WARN in the text\n\
2026-01-01T00:00:00Z  WARN skybridge: the store is away\n\
2026-01-01T00:00:00Z ERROR skybridge: no socket\n\
{\"timestamp\":\"x\",\"level\":\"WARN\",\"fields\":{}}\n\
thread 'worker' panicked at src/lib.rs:1:1:\n";
        assert_eq!(alarming(log, &[]).len(), 4);
        let allowed = ["the store is away".to_owned(), "no socket".to_owned()];
        assert_eq!(alarming(log, &allowed).len(), 2);
    }

    #[test]
    fn specs_collect() {
        let spec = AgentSpec::new([192, 0, 2, 1].into())
            .store(([192, 0, 2, 254], 2379).into())
            .config("[datapath]")
            .config("disable = [\"tso\"]")
            .args(&["--workers", "1"]);
        assert_eq!(spec.config.as_deref(), Some("[datapath]\ndisable = [\"tso\"]\n"));
        assert_eq!((spec.stores.len(), spec.args.len()), (1, 2));
    }
}

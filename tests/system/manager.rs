//! What a service manager is told: a socket in its place, real agents, threads that stand still.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use testkit::{Agent, Family, Lab, Store, Suite, wait_until};

use crate::support::{AGENTS, DUAL, NETWORK, WITH_ETCD};

/// The manager's patience in these tests.
const WATCHDOG: Duration = Duration::from_secs(2);

pub(crate) fn register(suite: &mut Suite) {
    suite.test("manager::ready_status_reload_stop", AGENTS, ready_status_reload_stop);
    suite.test("manager::ready_without_a_store", WITH_ETCD, ready_without_a_store);
    suite.timed("manager::watchdog", AGENTS, watchdog);
}

/// The receiving end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(lab: &Lab) -> Self {
        let path = lab.directory().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self { socket, path: path.display().to_string() }
    }

    /// The next message, if one comes soon.
    fn message(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    /// Waits for a message with `text` and gives all that came, that one last.
    #[track_caller]
    fn wait(&self, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        wait_until(&format!("{text} is told"), Duration::from_secs(30), || {
            all.extend(self.message());
            all.last().is_some_and(|last| last.contains(text)).then_some(())
        });
        all
    }

    /// How many pings come in this time.
    fn pings(&self, time: Duration) -> usize {
        let begun = Instant::now();
        let mut count = 0;
        while begun.elapsed() < time {
            count += usize::from(self.message().is_some_and(|text| text.contains("WATCHDOG=1")));
        }
        count
    }

    /// Takes what waits.
    fn drain(&self) {
        while self.message().is_some() {}
    }
}

fn ready_status_reload_stop() {
    let lab = Lab::with_hosts(1).build();
    let manager = Manager::new(&lab);
    let spec = lab.spec(1, Store::Embedded, Family::V4).env("NOTIFY_SOCKET", &manager.path);
    let agent = lab.agent(1, spec);
    agent.start_without_waiting();
    let told = manager.wait("READY=1");
    assert_eq!(told.len(), 1, "nothing is said before: {told:?}");
    // The tables are there at that moment.
    assert_eq!(agent.json(&["status"])["ready"], true);
    assert!(told[0].contains("STATUS="), "{told:?}");
    agent.create_network(NETWORK, DUAL);
    let _container = agent.container(&lab, NETWORK, "c1", &[]);
    let _ = manager.wait("1 networks and 1 endpoints here");
    agent.signal(Signal::SIGHUP);
    let told = manager.wait("RELOADING=1");
    assert!(told.last().unwrap().contains("MONOTONIC_USEC="), "{told:?}");
    let _ = manager.wait("READY=1");
    agent.stop();
    let _ = manager.wait("STOPPING=1");
}

/// Ready without a store: at once with the tables of the last run, and with none after a while.
fn ready_without_a_store() {
    let lab = Lab::with_hosts(1).build();
    let manager = Manager::new(&lab);
    let spec = lab.spec(1, Store::Etcd, Family::V4).env("NOTIFY_SOCKET", &manager.path);
    let agent = lab.start_agent(1, spec);
    for text in ["store", "watch", "lease", "session"] {
        agent.allow_log(text);
    }
    agent.create_network(NETWORK, DUAL);
    let _container = agent.container(&lab, NETWORK, "c1", &[]);
    agent.stop();
    lab.etcd().kill9();
    manager.drain();
    for tables in [true, false] {
        let begun = Instant::now();
        agent.start_without_waiting();
        let told = manager.wait("READY=1");
        let took = begun.elapsed();
        assert!(told.iter().any(|text| text.contains("store not reached yet")), "{told:?}");
        if tables {
            assert!(
                told.iter().any(|text| text.contains("1 networks and 1 endpoints")),
                "{told:?}"
            );
        } else {
            assert!(took >= Duration::from_secs(10), "ready without tables after {took:?}");
        }
        agent.kill9();
        manager.drain();
        for name in ["tables.json", "tables.log", "tables.log.old"] {
            let _ = fs::remove_file(agent.state_dir().join(name));
        }
    }
    lab.etcd().restart();
    agent.start();
}

/// Threads that a debugger holds; they go on when this is dropped.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn threads(agent: &Agent, name: &str) -> Self {
        let mut held = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().flatten() {
            let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if !comm.starts_with(name) {
                continue;
            }
            let thread = Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap());
            ptrace::attach(thread).unwrap();
            waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
            held.push(thread);
        }
        assert!(!held.is_empty(), "no thread is called {name}");
        Self(held)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for thread in &self.0 {
            let _ = ptrace::detach(*thread, None);
        }
    }
}

/// The pings stop when one worker stands still, and when the control plane does, and come back.
fn watchdog() {
    let lab = Lab::with_hosts(1).build();
    let manager = Manager::new(&lab);
    let micros = WATCHDOG.as_micros().to_string();
    let spec = lab.spec(1, Store::Embedded, Family::V4);
    let spec = spec.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", &micros);
    let agent = lab.start_agent(1, spec.args(&["--workers", "2"]));
    agent.allow_log("needs attention");
    for text in ["store", "lease", "watch"] {
        agent.allow_log(text);
    }
    let _ = manager.wait("READY=1");
    // An idle worker is alive.
    assert!(manager.pings(3 * WATCHDOG) >= 3);
    for name in ["worker-1", "control"] {
        let frozen = Frozen::threads(&agent, name);
        // What was on its way when the thread stopped.
        let _ = manager.pings(WATCHDOG);
        assert_eq!(manager.pings(2 * WATCHDOG), 0, "{name} stands still and nobody notices");
        if name == "worker-1" {
            let warnings = agent.json(&["status"])["warnings"].to_string();
            assert!(warnings.contains("worker 1 does not turn any more"), "{warnings}");
        }
        drop(frozen);
        wait_until("pings come again", Duration::from_secs(20), || {
            (manager.pings(WATCHDOG) > 0).then_some(())
        });
    }
    wait_until("nothing needs attention", Duration::from_secs(20), || {
        let warnings = agent.json(&["status"])["warnings"].to_string();
        (!warnings.contains("does not turn")).then_some(())
    });
}

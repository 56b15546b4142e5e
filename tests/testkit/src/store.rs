//! A real etcd: one member or several, in clear or with certificates, with backups.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Family, lock};
use crate::netns::{self, Netns};
use crate::pki::Pki;
use crate::process::{Finished, Process, run};
use crate::wait_until;

const PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// The last host number of the first member's addresses; the others follow downward.
const FIRST: u8 = 254;
/// The longest that a cluster may take to answer.
const READY: Duration = Duration::from_secs(20);

/// What an etcd should be.
#[derive(Debug, Default)]
pub struct EtcdSpec {
    members: usize,
    pki: Option<Pki>,
}

impl EtcdSpec {
    /// One member, in clear.
    #[must_use]
    pub fn new() -> Self {
        Self { members: 1, pki: None }
    }

    /// So many members.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// With the certificate `server` of `pki`; clients need one of its authority too.
    #[must_use]
    pub fn tls(mut self, pki: Pki) -> Self {
        self.pki = Some(pki);
        self
    }
}

/// An etcd cluster on the switch of a lab; killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    spec: EtcdSpec,
    netns: String,
    directory: PathBuf,
    logs: PathBuf,
    processes: Vec<Mutex<Option<Process>>>,
    user: Mutex<Option<String>>,
}

impl Etcd {
    pub(crate) fn start(switch: &Netns, directory: &Path, logs: &Path, spec: EtcdSpec) -> Self {
        // The switch has the first member's addresses from the start.
        for member in 1..spec.members {
            let [v4, v6] = [Family::V4, Family::V6].map(|family| address(member, family).ip());
            switch.ip(&format!("addr add {v4}/24 dev br0"));
            switch.ip(&format!("addr add {v6}/64 dev br0 nodad"));
        }
        let etcd = Self {
            netns: switch.path().display().to_string(),
            directory: directory.to_owned(),
            logs: logs.to_owned(),
            processes: (0..spec.members).map(|_| Mutex::default()).collect(),
            user: Mutex::default(),
            spec,
        };
        etcd.restart();
        etcd.wait_listening(etcd.members());
        // One member elects itself, after a second too. A store that asks for certificates has
        // users that are made first.
        if etcd.members() > 1 || etcd.spec.pki.is_none() {
            etcd.wait_healthy();
        }
        etcd
    }

    /// How many members it has.
    #[must_use]
    pub fn members(&self) -> usize {
        self.processes.len()
    }

    /// The first member's client address of the family.
    #[must_use]
    pub fn address(&self, family: Family) -> SocketAddr {
        address(0, family)
    }

    /// The URLs that clients use, one per member.
    #[must_use]
    pub fn urls(&self, family: Family) -> Vec<String> {
        (0..self.members()).map(|member| self.url(member, family)).collect()
    }

    fn url(&self, member: usize, family: Family) -> String {
        let scheme = if self.spec.pki.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", address(member, family))
    }

    /// Starts every member that does not run, on the data it had.
    ///
    /// # Panics
    ///
    /// If one cannot be started.
    #[track_caller]
    pub fn restart(&self) {
        for member in 0..self.members() {
            let mut process = lock(&self.processes[member]);
            if !process.as_mut().is_some_and(Process::running) {
                let name = format!("etcd{}", suffix(member));
                *process = Some(Process::spawn(self.command(member), &self.logs, &name));
            }
        }
    }

    fn command(&self, member: usize) -> Command {
        let Ok(path) = etcd_bin_vendored_linux_amd64::etcd_bin_path();
        let client = [Family::V4, Family::V6].map(|family| self.url(member, family)).join(",");
        let mut command = self.within(&path.display().to_string());
        command.arg("--data-dir").arg(self.data(member));
        command.args(["--name", &name(member), "--log-level", "warn", "--unsafe-no-fsync"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        let own = peer(member);
        command.args(["--listen-peer-urls", &own, "--initial-advertise-peer-urls", &own]);
        command.args(["--initial-cluster", &self.peers()]);
        if let Some(pki) = &self.spec.pki {
            command.arg("--cert-file").arg(pki.certificate("server"));
            command.arg("--key-file").arg(pki.key("server"));
            command.arg("--trusted-ca-file").arg(pki.ca()).arg("--client-cert-auth");
        }
        command
    }

    fn within(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns)).arg("--").arg(program);
        command
    }

    fn data(&self, member: usize) -> PathBuf {
        self.directory.join(format!("etcd{}", suffix(member)))
    }

    fn peers(&self) -> String {
        let peers = (0..self.members()).map(|member| format!("{}={}", name(member), peer(member)));
        peers.collect::<Vec<_>>().join(",")
    }

    /// Ends all members as a crash would.
    pub fn kill9(&self) {
        for member in 0..self.members() {
            self.kill9_member(member);
        }
    }

    /// Ends one member as a crash would.
    pub fn kill9_member(&self, member: usize) {
        if let Some(mut process) = lock(&self.processes[member]).take() {
            process.kill();
        }
    }

    /// Sends all members a signal, for example SIGSTOP.
    pub fn signal(&self, signal: Signal) {
        for process in &self.processes {
            if let Some(process) = lock(process).as_mut() {
                process.signal(signal);
            }
        }
    }

    /// Runs `etcdctl` against all members.
    #[track_caller]
    pub fn try_ctl(&self, args: &[&str]) -> Finished {
        self.ctl_at(&self.urls(Family::V4).join(","), args)
    }

    /// Runs `etcdctl` against all members.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> Finished {
        self.try_ctl(args).expect_success()
    }

    #[track_caller]
    fn ctl_at(&self, endpoints: &str, args: &[&str]) -> Finished {
        let mut command = self.within("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints]);
        command.args(["--dial-timeout", "1s", "--command-timeout", "5s"]);
        if let Some(pki) = &self.spec.pki {
            command.arg("--cacert").arg(pki.ca());
            command.arg("--cert").arg(pki.certificate("client"));
            command.arg("--key").arg(pki.key("client"));
        }
        if let Some(user) = &*lock(&self.user) {
            command.args(["--user", user]);
        }
        command.args(args);
        run(command)
    }

    /// Who `etcdctl` is from now on, as `NAME:PASSWORD`.
    pub fn log_in(&self, user: &str) {
        *lock(&self.user) = Some(user.to_owned());
    }

    /// Waits until it takes writes.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    #[track_caller]
    pub fn wait_healthy(&self) -> Duration {
        // `etcdctl` looks for a server that does not listen yet only once a second.
        self.wait_listening(1);
        if self.spec.pki.is_some() {
            let put = || self.try_ctl(&["put", "/lab/healthy", ""]).status.success().then_some(());
            return wait_until("etcd takes writes", READY, put).1;
        }
        let healthy = |member: usize| {
            let mut stream = TcpStream::connect(address(member, Family::V4)).ok()?;
            stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.contains(r#""health":"true""#).then_some(())
        };
        netns::enter(Path::new(&self.netns), || {
            wait_until("etcd is healthy", READY, || (0..self.members()).find_map(healthy)).1
        })
    }

    fn wait_listening(&self, members: usize) {
        let listens = |member: &usize| {
            let address = address(*member, Family::V4);
            TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
        };
        netns::enter(Path::new(&self.netns), || {
            wait_until("etcd listens", READY, || {
                ((0..self.members()).filter(listens).count() >= members).then_some(())
            });
        });
    }

    /// The member that leads.
    ///
    /// # Panics
    ///
    /// If no running one does within the time of an election.
    #[track_caller]
    #[must_use]
    pub fn leader(&self) -> usize {
        let leader = || {
            (0..self.members()).find(|member| {
                let args = ["endpoint", "status", "-w", "json"];
                let status = self.ctl_at(&self.url(*member, Family::V4), &args);
                status.status.success() && {
                    let status = &status.json()[0]["Status"];
                    status["leader"] == status["header"]["member_id"]
                }
            })
        };
        wait_until("a member leads", READY, leader).0
    }

    /// Saves a snapshot of the cluster to `file`.
    ///
    /// # Panics
    ///
    /// If it cannot be saved.
    #[track_caller]
    pub fn backup(&self, file: &Path) {
        let args = ["snapshot", "save", &file.display().to_string()];
        let _ = self.ctl_at(&self.url(0, Family::V4), &args).expect_success();
    }

    /// Ends the cluster, puts it back to what `file` holds and starts it.
    ///
    /// # Panics
    ///
    /// If it cannot be restored.
    #[track_caller]
    pub fn restore(&self, file: &Path) {
        self.kill9();
        for member in 0..self.members() {
            let data = self.data(member);
            fs::remove_dir_all(&data).expect("etcd has left its data");
            let mut command = self.within("etcdctl");
            command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(file);
            command.arg("--data-dir").arg(data).args(["--name", &name(member)]);
            command.args(["--initial-cluster", &self.peers()]);
            command.args(["--initial-advertise-peer-urls", &peer(member)]);
            let _ = run(command).expect_success();
        }
        self.restart();
    }
}

fn address(member: usize, family: Family) -> SocketAddr {
    let member = u8::try_from(member).expect("a cluster has few members");
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, FIRST - member).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(FIRST - member)).into(),
    };
    SocketAddr::new(ip, PORT)
}

fn peer(member: usize) -> String {
    format!("http://{}:{PEER_PORT}", address(member, Family::V4).ip())
}

fn name(member: usize) -> String {
    format!("lab{}", suffix(member))
}

/// Nothing for the first, so that the usual names stay.
fn suffix(member: usize) -> String {
    if member == 0 { String::new() } else { format!("{}", member + 1) }
}

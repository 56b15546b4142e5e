//! A real etcd.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Family, lock};
use crate::netns::Netns;
use crate::process::Process;
use crate::wait_until;

const PORT: u16 = 2379;
const IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);

/// A single etcd server on the switch of a lab; killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    netns: String,
    data: PathBuf,
    logs: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Etcd {
    pub(crate) fn start(switch: &Netns, data: &Path, logs: &Path) -> Self {
        let etcd = Self {
            netns: switch.path().display().to_string(),
            data: data.to_owned(),
            logs: logs.to_owned(),
            process: Mutex::default(),
        };
        etcd.restart();
        switch.enter(|| {
            wait_until("etcd listens", Duration::from_secs(20), || {
                let address = etcd.address(Family::V4);
                TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
            });
        });
        etcd
    }

    /// Its client address of the family.
    #[must_use]
    pub fn address(&self, family: Family) -> SocketAddr {
        let ip: IpAddr = match family {
            Family::V4 => IPV4.into(),
            Family::V6 => IPV6.into(),
        };
        SocketAddr::new(ip, PORT)
    }

    /// Starts it, again after [`kill9`](Self::kill9), on the same data.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    pub fn restart(&self) {
        let Ok(path) = etcd_bin_vendored_linux_amd64::etcd_bin_path();
        let client = format!("http://{IPV4}:{PORT},http://[{IPV6}]:{PORT}");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns)).arg("--").arg(path);
        command.arg("--data-dir").arg(&self.data);
        command.args(["--name", "lab", "--log-level", "warn", "--unsafe-no-fsync"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        // No peers; the port must only be free in this namespace.
        let peer = "http://127.0.0.1:2380";
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &format!("lab={peer}")]);
        *lock(&self.process) = Some(Process::spawn(command, &self.logs, "etcd"));
    }

    /// Ends it as a crash would.
    pub fn kill9(&self) {
        if let Some(mut process) = lock(&self.process).take() {
            process.kill();
        }
    }

    /// Sends it a signal, for example SIGSTOP.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = lock(&self.process).as_mut() {
            process.signal(signal);
        }
    }
}

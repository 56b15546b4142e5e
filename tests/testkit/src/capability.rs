//! What a test needs of the machine.

use std::collections::HashMap;
use std::fs::File;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::unistd::Uid;

use crate::docker::DockerRelease;
use crate::netns::unique_prefix;

/// The environment variable that turns missing capabilities into failures: `all`, or a list of
/// names separated by commas.
const REQUIRE: &str = "SKYBRIDGE_TEST_REQUIRE";

/// Something that a test needs and a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cap {
    /// `bpf-gcc`, a C compiler for the kernel's virtual machine, is installed.
    Bpf,
    /// Docker with its containerd and runc, and a static busybox, are installed or unpacked.
    Docker,
    /// So are those of a later Debian, unpacked.
    DockerLater,
    /// The real etcd server of the crate runs here.
    Etcd,
    /// `etcdctl` is installed.
    Etcdctl,
    /// `ethtool` is installed.
    Ethtool,
    /// `iptables`, as it speaks to nftables.
    Iptables,
    /// The kernel's bridge and veth devices, and iproute2.
    Links,
    /// `openssl` is installed.
    Openssl,
    /// `nft` is installed and the kernel takes a table.
    Nft,
    /// Open vSwitch is installed or unpacked.
    Ovs,
    /// Root, and network namespaces may be made.
    Root,
    /// `socat` is installed.
    Socat,
    /// `systemd-analyze` is installed; systemd need not run.
    SystemdAnalyze,
    /// `tcpdump` is installed.
    Tcpdump,
    /// `/dev/net/tun` opens.
    Tun,
    /// The kernel's vxlan device.
    Vxlan,
}

impl Cap {
    /// Its name in `SKYBRIDGE_TEST_REQUIRE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Docker => "docker",
            Self::DockerLater => "docker-later",
            Self::Etcd => "etcd",
            Self::Etcdctl => "etcdctl",
            Self::Ethtool => "ethtool",
            Self::Iptables => "iptables",
            Self::Links => "links",
            Self::Nft => "nft",
            Self::Openssl => "openssl",
            Self::Ovs => "ovs",
            Self::Root => "root",
            Self::Socat => "socat",
            Self::SystemdAnalyze => "systemd-analyze",
            Self::Tcpdump => "tcpdump",
            Self::Tun => "tun",
            Self::Vxlan => "vxlan",
        }
    }

    /// Why it is missing, `None` if it is there.
    fn probe(self) -> Option<String> {
        match self {
            Self::Bpf => {
                works(Command::new("bpf-gcc").arg("--version"), "bpf-gcc is not installed")
            }
            Self::Docker => crate::docker::probe(DockerRelease::Usual),
            Self::DockerLater => crate::docker::probe(DockerRelease::Later),
            Self::Etcd => {
                let Ok(path) = etcd_bin_vendored_linux_amd64::etcd_bin_path();
                works(Command::new(path).arg("--version"), "the etcd server does not run here")
            }
            Self::Etcdctl => works(
                Command::new("etcdctl").env("ETCDCTL_API", "3").arg("version"),
                "etcdctl is not installed",
            ),
            Self::Openssl => {
                works(Command::new("openssl").arg("version"), "openssl is not installed")
            }
            Self::Ethtool => {
                works(Command::new("ethtool").arg("--version"), "ethtool is not installed")
            }
            Self::Iptables => works(
                Command::new("iptables-nft").arg("--version"),
                "iptables-nft is not installed",
            ),
            Self::Links => in_namespace(&[
                "link add probe0 type veth peer name probe1",
                "link add probe2 type bridge mcast_snooping 0",
            ]),
            Self::Nft => {
                let check = ["--check", "add table inet skybridge_probe"];
                works(Command::new("nft").args(check), "nft cannot add a table")
            }
            Self::Ovs => works(&mut crate::ovs::probe(), "Open vSwitch is not here"),
            Self::Root if !Uid::effective().is_root() => Some("not root".to_owned()),
            Self::Root => in_namespace(&[]),
            Self::Socat => works(Command::new("socat").arg("-V"), "socat is not installed"),
            Self::SystemdAnalyze => works(
                Command::new("systemd-analyze").arg("--version"),
                "systemd-analyze is not installed",
            ),
            Self::Tcpdump => {
                works(Command::new("tcpdump").arg("--version"), "tcpdump is not installed")
            }
            Self::Tun => File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .err()
                .map(|err| format!("/dev/net/tun: {err}")),
            Self::Vxlan => in_namespace(&["link add probe0 type vxlan id 1 dstport 4789"]),
        }
    }
}

fn works(command: &mut Command, otherwise: &str) -> Option<String> {
    match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            Some(format!("{otherwise}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(err) => Some(format!("{otherwise}: {err}")),
    }
}

/// Tries `ip` commands in a namespace made for it.
fn in_namespace(commands: &[&str]) -> Option<String> {
    let name = unique_prefix();
    let made = works(Command::new("ip").args(["netns", "add", &name]), "no network namespaces");
    if made.is_some() {
        return made;
    }
    let missing = commands.iter().find_map(|words| {
        let mut command = Command::new("ip");
        works(command.args(["-n", &name]).args(words.split_whitespace()), "the kernel lacks it")
    });
    let _: std::io::Result<std::process::Output> =
        Command::new("ip").args(["netns", "del", &name]).output();
    missing
}

/// The first of `caps` that this machine lacks, as a sentence. Each is probed once.
///
/// # Errors
///
/// `Err` with the same sentence if `SKYBRIDGE_TEST_REQUIRE` says that it must be there.
pub fn missing(caps: &[Cap]) -> Result<Option<String>, String> {
    static PROBED: Mutex<Option<HashMap<Cap, Option<String>>>> = Mutex::new(None);

    let required = std::env::var(REQUIRE).unwrap_or_default();
    let mut probed = PROBED.lock().unwrap_or_else(PoisonError::into_inner);
    let probed = probed.get_or_insert_default();
    for cap in caps {
        let reason = probed.entry(*cap).or_insert_with(|| cap.probe());
        if let Some(reason) = reason {
            let sentence = format!("needs {}: {reason}", cap.name());
            let must = required.split(',').any(|word| word == "all" || word == cap.name());
            return if must { Err(sentence) } else { Ok(Some(sentence)) };
        }
    }
    Ok(None)
}

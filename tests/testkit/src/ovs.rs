//! Open vSwitch's userspace datapath as the other side: a VXLAN of its own that shares nothing with
//! the kernel's.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::container::Container;
use crate::lab::{Family, Host, Lab};
use crate::netns::Netns;
use crate::process::{Process, run};
use crate::wait_until;

/// Where `.ci/unpack` puts packages that are not installed.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debian");
/// How long its daemons may take to answer.
const READY: Duration = Duration::from_secs(20);
/// The bridge with the underlay interface.
const UNDERLAY: &str = "phy";
/// The bridge with the containers and the tunnels.
const OVERLAY: &str = "int";

/// A program or file of Open vSwitch: the unpacked one, or else that of the machine.
fn part(place: &str) -> PathBuf {
    let unpacked = Path::new(UNPACKED).join(place);
    if unpacked.exists() { unpacked } else { Path::new("/").join(place) }
}

/// The switch's daemon, in the two places where Debian has it.
fn daemon() -> PathBuf {
    let own = part("usr/lib/openvswitch-switch/ovs-vswitchd");
    if own.exists() { own } else { part("usr/sbin/ovs-vswitchd") }
}

/// A command that says whether Open vSwitch is here.
pub(crate) fn probe() -> Command {
    let mut command = Command::new(daemon());
    command.arg("--version");
    command
}

/// A host of a lab on which Open vSwitch does what an agent would. The underlay's interface belongs
/// to it, and its underlay addresses to its bridge.
///
/// It takes no partial checksums, neither from containers nor from the underlay: the lab must be a
/// plain one.
#[derive(Debug)]
pub struct OvsVtep {
    netns: Arc<Netns>,
    directory: PathBuf,
    mtu: u16,
    /// In the order in which they end.
    _daemons: [Process; 2],
}

impl OvsVtep {
    /// Starts it on `host`, with a tunnel of `vni` to each of `remotes`, which do not hear of each
    /// other's frames through it.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    #[must_use]
    pub fn create(lab: &Lab, host: &Host, family: Family, vni: u32, remotes: &[IpAddr]) -> Self {
        let netns = Arc::clone(host.netns());
        let directory = lab.directory().join(format!("ovs{}", host.index()));
        std::fs::create_dir(&directory).expect("the lab's directory takes another one");
        let (database, schema) =
            (directory.join("conf.db"), part("usr/share/openvswitch/vswitch.ovsschema"));
        let mut make = Command::new(part("usr/bin/ovsdb-tool"));
        make.arg("create").arg(&database).arg(schema);
        let _ = run(make).expect_success();

        let file = |name: &str| directory.join(name).display().to_string();
        let mut server = within(&netns, &directory, &part("usr/sbin/ovsdb-server"));
        server.arg(&database).arg(format!("--remote=punix:{}", file("db.sock")));
        server.arg(format!("--unixctl={}", file("db.ctl")));
        let server = Process::spawn(server, &lab.logs(), "ovsdb");
        wait_until("ovsdb-server listens", READY, || {
            directory.join("db.sock").exists().then_some(())
        });
        let overhead = match family {
            Family::V4 => 50,
            Family::V6 => 70,
        };
        let mut switch = within(&netns, &directory, &daemon());
        switch.arg(format!("unix:{}", file("db.sock")));
        switch.arg(format!("--unixctl={}", file("switch.ctl")));
        // `ovs-vsctl init` comes first: the daemon does nothing without it.
        let mtu = lab.mtu() - overhead;
        vsctl(&netns, &directory, "--no-wait init");
        let switch = Process::spawn(switch, &lab.logs(), "ovs");
        let vtep = Self { netns, directory, mtu, _daemons: [switch, server] };
        vtep.set(&format!(
            "add-br {UNDERLAY} -- set bridge {UNDERLAY} datapath_type=netdev \
             -- add-port {UNDERLAY} eth0"
        ));
        for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
            let address = host.address(family);
            vtep.netns.ip(&format!("addr del {address}/{length} dev eth0"));
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            vtep.netns.ip(&format!("addr add {address}/{length} dev {UNDERLAY} {nodad}"));
        }
        vtep.netns.ip(&format!("link set {UNDERLAY} mtu {} up", lab.mtu()));
        let mut words = format!("add-br {OVERLAY} -- set bridge {OVERLAY} datapath_type=netdev");
        for (index, remote) in remotes.iter().enumerate() {
            let port = format!("vx{index}");
            words += &format!(
                " -- add-port {OVERLAY} {port} -- set port {port} protected=true \
                 -- set interface {port} type=vxlan options:key={vni} \
                 options:remote_ip=\"{remote}\""
            );
        }
        vtep.set(&words);
        vtep
    }

    /// A container behind this VTEP with addresses like `198.51.100.9/24`.
    ///
    /// # Panics
    ///
    /// If the kernel or the switch refuses.
    #[track_caller]
    #[must_use]
    pub fn container(&self, lab: &Lab, name: &str, addresses: &[&str]) -> Container {
        let container = Container::plug(lab, &self.netns, (name, self.mtu), addresses);
        self.set(&format!("add-port {OVERLAY} {name}"));
        container.set_offloads(false);
        container
    }

    #[track_caller]
    fn set(&self, words: &str) {
        vsctl(&self.netns, &self.directory, words);
    }
}

/// A program of the switch in the host's namespace, all its files in `directory`.
fn within(netns: &Netns, directory: &Path, program: &Path) -> Command {
    let mut command = netns.command(program);
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(variable, directory);
    }
    command
}

#[track_caller]
fn vsctl(netns: &Netns, directory: &Path, words: &str) {
    let mut command = within(netns, directory, &part("usr/bin/ovs-vsctl"));
    command.arg(format!("--db=unix:{}", directory.join("db.sock").display()));
    command.args(["--timeout", "20"]).args(words.split_whitespace());
    let _ = run(command).expect_success();
}

//! Hosts on a switch.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::agent::{Agent, AgentSpec};
use crate::harness;
use crate::netns::{Netns, unique_prefix};
use crate::store::{Etcd, EtcdSpec};

/// What the devices between the hosts do for them.
///
/// The difference decides what a socket receives from a kernel vxlan device on the other side, and
/// a factor of two in every comparison of throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// veth as it comes: super-frames cross unsegmented and without checksums, as with a NIC that
    /// segments tunnels, or between guests of one machine.
    Offloading,
    /// A NIC without any offload: the kernel segments before the device and its GRO joins after.
    Plain,
}

/// The address family of the underlay, or of what travels inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which store the agents share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// The one that the agent of host 1 serves.
    Embedded,
    /// A real etcd on the switch.
    Etcd,
}

/// Collects what a lab should be.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    hosts: usize,
    mtu: u16,
    underlay: Underlay,
    silent: bool,
}

impl LabBuilder {
    /// Explains nothing when the test panics: for tests of panics themselves.
    #[must_use]
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// The MTU of the underlay in bytes; 1500 unless said otherwise.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// What the underlay does; [`Underlay::Offloading`] unless said otherwise.
    #[must_use]
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = underlay;
        self
    }

    /// Builds it.
    ///
    /// # Panics
    ///
    /// If a device cannot be made.
    #[track_caller]
    #[must_use]
    pub fn build(self) -> Lab {
        let prefix = unique_prefix();
        let directory = tempfile::Builder::new()
            .prefix(&format!("{prefix}-"))
            .tempdir()
            .expect("the temporary directory takes a directory");
        fs::create_dir(directory.path().join("logs")).expect("a new directory takes entries");

        let switch = Netns::create(format!("{prefix}-sw"));
        switch.ip("link add br0 type bridge mcast_snooping 0");
        switch.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        switch.sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
        switch.ip(&format!("link set br0 mtu {} up", self.mtu));
        switch.ip("addr add 192.0.2.254/24 dev br0");
        switch.ip("addr add 2001:db8::fe/64 dev br0 nodad");

        let mut hosts = Vec::with_capacity(self.hosts);
        for index in 1..=self.hosts {
            let netns = Arc::new(Netns::create(format!("{prefix}-h{index}")));
            let mtu = self.mtu;
            switch.ip(&format!(
                "link add p{index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
                netns.name()
            ));
            if self.underlay == Underlay::Plain {
                without_offload(&switch, &format!("p{index}"));
                without_offload(&netns, "eth0");
            }
            switch.ip(&format!("link set p{index} master br0 up"));
            let host = Host { index, netns };
            host.netns.ip(&format!("addr add {}/24 dev eth0", host.ipv4()));
            host.netns.ip(&format!("addr add {}/64 dev eth0 nodad", host.ipv6()));
            host.netns.ip("link set eth0 up");
            hosts.push(host);
        }
        let namespaces = hosts.iter().map(|host| Arc::clone(&host.netns)).collect();
        Lab {
            agents: Mutex::default(),
            namespaces: Mutex::new(namespaces),
            hosts,
            etcd: Mutex::default(),
            switch,
            directory,
            prefix,
            mtu: self.mtu,
            silent: self.silent,
            test: harness::current_test(),
        }
    }
}

/// Turns off what a NIC without offloads does not do. All TSO features must go: with some of them
/// left on, veth does not run its receive side through GRO, and the mixture is like no real NIC.
#[track_caller]
fn without_offload(netns: &Netns, interface: &str) {
    let off = [
        "tx-udp_tnl-segmentation",
        "tx-udp_tnl-csum-segmentation",
        "tx-udp-segmentation",
        "tso",
        "tx",
    ];
    netns.ethtool(interface, &off, false);
    netns.ethtool(interface, &["gso", "gro"], true);
}

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    index: usize,
    netns: Arc<Netns>,
}

impl Host {
    /// Its number, from 1.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// Its underlay address of the family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4().into(),
            Family::V6 => self.ipv6().into(),
        }
    }

    /// Drops every TCP segment of this host to and from `port`, without a word: its link to
    /// whatever is there is gone, and nothing else.
    #[track_caller]
    pub fn drop_tcp(&self, port: u16) {
        let rules = format!(
            "table inet lab_cut {{
                chain out {{ type filter hook output priority 0; tcp dport {port} drop; }}
                chain in {{ type filter hook input priority 0; tcp sport {port} drop; }}
            }}"
        );
        let _ = self.netns.exec("nft", &[&rules]);
    }

    /// Takes [`drop_tcp`](Self::drop_tcp) back.
    #[track_caller]
    pub fn pass_tcp(&self) {
        let _ = self.netns.exec("nft", &["delete", "table", "inet", "lab_cut"]);
    }

    fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, u8::try_from(self.index).expect("a lab has few hosts"))
    }

    fn ipv6(&self) -> Ipv6Addr {
        let index = u16::try_from(self.index).expect("a lab has few hosts");
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, index)
    }
}

/// Hosts joined by a switch; see the crate's picture. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    // In the order of their end: agents before what they use.
    agents: Mutex<Vec<Agent>>,
    etcd: Mutex<Option<Arc<Etcd>>>,
    namespaces: Mutex<Vec<Arc<Netns>>>,
    hosts: Vec<Host>,
    switch: Netns,
    directory: TempDir,
    prefix: String,
    mtu: u16,
    silent: bool,
    test: String,
}

impl Lab {
    /// A lab of `hosts` hosts, to be built.
    #[must_use]
    pub fn with_hosts(hosts: usize) -> LabBuilder {
        LabBuilder { hosts, mtu: 1500, underlay: Underlay::Offloading, silent: false }
    }

    /// Host `index`, from 1.
    ///
    /// # Panics
    ///
    /// If the lab has no such host.
    #[track_caller]
    #[must_use]
    pub fn host(&self, index: usize) -> &Host {
        index.checked_sub(1).and_then(|at| self.hosts.get(at)).expect("the lab has that host")
    }

    /// All hosts, in order.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The namespace of the switch.
    #[must_use]
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// The MTU of the underlay.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// What all names of this lab begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A directory of the lab's own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where logs go; all of them are printed when the test fails.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    /// A new, empty namespace, to be attached or used by hand. `name` must be new in this lab.
    #[track_caller]
    pub fn sandbox(&self, name: &str) -> Arc<Netns> {
        let netns = Arc::new(Netns::create(format!("{}-{name}", self.prefix)));
        lock(&self.namespaces).push(Arc::clone(&netns));
        netns
    }

    /// Starts a real etcd on the switch, once; later calls give the same one.
    #[track_caller]
    pub fn etcd(&self) -> Arc<Etcd> {
        if let Some(etcd) = &*lock(&self.etcd) {
            return Arc::clone(etcd);
        }
        self.etcd_with(EtcdSpec::new())
    }

    /// Starts an etcd cluster on the switch, which [`etcd`](Self::etcd) gives from then on.
    ///
    /// # Panics
    ///
    /// If there is one already.
    #[track_caller]
    pub fn etcd_with(&self, spec: EtcdSpec) -> Arc<Etcd> {
        let mut etcd = lock(&self.etcd);
        assert!(etcd.is_none(), "a lab has one etcd");
        let started = Etcd::start(&self.switch, self.directory.path(), &self.logs(), spec);
        Arc::clone(etcd.insert(Arc::new(started)))
    }

    /// Starts an agent and waits until it is ready.
    #[track_caller]
    pub fn start_agent(&self, host: usize, spec: AgentSpec) -> Agent {
        let agent = self.agent(host, spec);
        agent.start();
        agent
    }

    /// An agent that is not started yet.
    #[track_caller]
    pub fn agent(&self, host: usize, spec: AgentSpec) -> Agent {
        let agent = Agent::new(self, self.host(host), spec);
        lock(&self.agents).push(agent.clone());
        agent
    }

    /// An agent of `host` that calls itself `name`, with a directory and a log of its own below
    /// `directory`; not started yet.
    #[track_caller]
    pub fn agent_as(&self, name: &str, directory: &str, host: usize, spec: AgentSpec) -> Agent {
        let agent = Agent::named(self, self.host(host), name, directory, spec);
        lock(&self.agents).push(agent.clone());
        agent
    }

    /// Starts an agent on every host of `on`, all with the same store.
    #[track_caller]
    pub fn start_agents(&self, on: &[usize], store: Store, underlay: Family) -> Vec<Agent> {
        on.iter().map(|host| self.start_agent(*host, self.spec(*host, store, underlay))).collect()
    }

    /// How an agent of `host` is started to share `store`.
    #[track_caller]
    #[must_use]
    pub fn spec(&self, host: usize, store: Store, underlay: Family) -> AgentSpec {
        let vtep = self.host(host).address(underlay);
        let spec = AgentSpec::new(vtep);
        match store {
            Store::Embedded => {
                let serving = SocketAddr::new(self.host(1).address(underlay), 2379);
                if host == 1 { spec.embedded_store(serving) } else { spec.store(serving) }
            }
            Store::Etcd => {
                self.etcd().urls(underlay).iter().fold(spec, |spec, url| spec.store_url(url))
            }
        }
    }

    /// Prints everything that may explain a failure.
    fn explain(&self) {
        let mut out = io::stderr().lock();
        let name = &self.test;
        let mut section = |title: &str, text: &str| {
            if !text.trim().is_empty() {
                let _: io::Result<()> =
                    writeln!(out, "\n===== {name}: {title}\n{}", text.trim_end());
            }
        };
        let mut logs: Vec<_> = fs::read_dir(self.logs())
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        logs.sort();
        for log in logs.iter().filter(|log| log.extension().is_none_or(|ext| ext != "pcap")) {
            let text = fs::read(log).unwrap_or_default();
            section(&log.display().to_string(), tail(&String::from_utf8_lossy(&text), 200));
        }
        for agent in lock(&self.agents).iter().filter(|agent| agent.running()) {
            for listing in ["status", "hosts", "fdb", "neighbors", "routes", "drops", "stats"] {
                let output = agent.cli_quietly(&[listing]);
                section(&format!("{}: {listing}", agent.name()), &output);
            }
        }
        let namespaces = lock(&self.namespaces);
        for netns in std::iter::once(&self.switch).chain(namespaces.iter().map(AsRef::as_ref)) {
            let commands: [(&str, &[&str]); 6] = [
                ("ip", &["-d", "-s", "addr"]),
                ("ip", &["route"]),
                ("ip", &["neigh"]),
                ("bridge", &["fdb"]),
                ("nft", &["list", "ruleset"]),
                ("nstat", &["-as"]),
            ];
            for (program, args) in commands {
                let mut command = netns.command(program);
                let output = command.args(args).output();
                let text = output.map(|output| output.stdout).unwrap_or_default();
                let title = format!("{}: {program} {}", netns.name(), args.join(" "));
                section(&title, &String::from_utf8_lossy(&text));
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let agents = lock(&self.agents).clone();
        let mut complaints: Vec<String> = Vec::new();
        for agent in &agents {
            for line in agent.unexpected_log_lines() {
                complaints.push(format!("{}: {line}", agent.name()));
            }
        }
        let panicking = std::thread::panicking();
        if (panicking || !complaints.is_empty()) && !self.silent {
            self.explain();
        }
        // The store's host goes last, so that the others can take their leave.
        for agent in agents.iter().rev() {
            agent.stop_quietly(Duration::from_secs(5));
            agent.clean_up_quietly();
        }
        if !panicking {
            assert!(complaints.is_empty(), "unexpected log lines:\n{}", complaints.join("\n"));
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last `lines` lines.
fn tail(text: &str, lines: usize) -> &str {
    let start = text.rmatch_indices('\n').nth(lines).map_or(0, |(at, _)| at + 1);
    text.get(start..).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_text() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\n", 5), "a\n");
    }
}

//! Namespaces and sandboxes of one test, and frames sent and seen in them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use encap::MacAddr;
use ipnet::IpNet;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use skybridge::link::endpoint::{self, Plug, Plugged};
use skybridge::link::source_check::{Carrier, Guarded};
use skybridge::link::{
    NetNs, NetNsRef, NetworkLink, NetworkNs, Owner, cleanup, netns, network, run_in,
};

pub const MTU: u32 = 1450;
pub const BRIDGE_MAC: MacAddr = MacAddr([0x02, 0, 0x5e, 0, 0x53, 0xfe]);

/// The folder, namespaces and devices of one test; removed at its end, a panic included.
pub struct World {
    pub folder: PathBuf,
    pub owner: Owner,
    pub sandboxes: Vec<PathBuf>,
}

impl World {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "the link tests make network namespaces and need root: run them with sudo"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("sky-link-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let owner = Owner::with_pin_dir(&folder, &folder.join("pins"));
        Self { folder, owner, sandboxes: Vec::new() }
    }

    pub fn sandbox(&mut self, name: &str) -> NetNs {
        let path = self.folder.join(name);
        self.sandboxes.push(path.clone());
        NetNs::create_pinned(&path).unwrap();
        let sandbox = NetNs::open(&NetNsRef::Path(path)).unwrap();
        ip(&sandbox, "link set lo up");
        sandbox
    }

    pub fn wanted(&self) -> NetworkLink {
        NetworkLink { pin: self.owner.pin("net"), mtu: MTU, router: false, bridge_mac: BRIDGE_MAC }
    }

    pub async fn network(&self) -> NetworkNs {
        network::ensure(&self.wanted()).await.unwrap()
    }

    /// Two sandboxes plugged in and up.
    pub async fn pair(&mut self, network: &NetworkNs, isolated: bool) -> [Plugged; 2] {
        let [a, b] = [self.sandbox("a"), self.sandbox("b")];
        let mut plugs = [plug(&a, "e1", 1), plug(&b, "e2", 2)];
        plugs.iter_mut().for_each(|plug| plug.isolated = isolated);
        let mut plugged = Vec::new();
        for plug in &plugs {
            let one = endpoint::plug(network, &self.owner, plug).await.unwrap();
            endpoint::up(network, &one).await.unwrap();
            plugged.push(one);
        }
        plugged.try_into().unwrap()
    }

    pub fn mounts(&self) -> usize {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        // The tenth world's folder begins like the first one's.
        let folder = self.folder.display();
        let within = [format!("{folder}/"), format!("{folder} ")];
        mounts.lines().filter(|line| within.iter().any(|text| line.contains(text))).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let owner = self.owner.clone();
        // A runtime cannot be entered from within another one.
        let report = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(cleanup::run(&owner))
        });
        let failed = report.join().map_or_else(
            |_| vec!["panic".into()],
            |report| report.failed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        );
        let unpinned = self.sandboxes.iter().filter(|path| netns::unpin(path).is_err()).count();
        let mounts = self.mounts();
        let removed = std::fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            assert_eq!((failed, unpinned, mounts), (vec![], 0, 0));
            removed.unwrap();
        }
    }
}

pub fn plug(sandbox: &NetNs, endpoint: &str, number: u8) -> Plug {
    Plug {
        subnets: Vec::new(),
        endpoint: endpoint.into(),
        sandbox: sandbox.clone(),
        ifname: "eth0".into(),
        mac: MacAddr([0x02, 0x42, 192, 0, 2, number]),
        addresses: vec![
            format!("192.0.2.{number}/24").parse().unwrap(),
            format!("2001:db8::{number:x}/64").parse().unwrap(),
        ],
        mtu: MTU,
        gateways: Vec::new(),
        isolated: false,
    }
}

pub fn guarded(plugged: &Plugged) -> Guarded {
    Guarded {
        port: plugged.port.name.clone(),
        index: plugged.port.index,
        mac: plugged.plug.mac,
        addresses: plugged.plug.addresses.iter().map(IpNet::addr).collect(),
        carrier: Carrier::Bridge,
    }
}

pub fn run(namespace: &NetNs, program: &str, arguments: &str) -> (bool, String) {
    let run = || Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let output = run_in(namespace, run).unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

pub fn ip(namespace: &NetNs, arguments: &str) -> String {
    let (right, text) = run(namespace, "ip", arguments);
    assert!(right, "ip {arguments}: {text}");
    text
}

pub fn ip_of(plugged: &Plugged, family: usize) -> IpAddr {
    plugged.plug.addresses[family].addr()
}

/// One datagram there and one back; how long it took, or `None` when nothing came within 300 ms.
pub fn exchange(from: &Plugged, to: &Plugged, family: usize) -> Option<Duration> {
    let started = Instant::now();
    let open = |end: &Plugged| {
        let local = SocketAddr::new(ip_of(end, family), 0);
        let socket = run_in(&end.plug.sandbox, || UdpSocket::bind(local)).unwrap().ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        Some(socket)
    };
    let (client, server) = (open(from)?, open(to)?);
    let mut room = [0; 64];
    client.send_to(b"there", server.local_addr().unwrap()).ok()?;
    let (_, back) = server.recv_from(&mut room).ok()?;
    assert_eq!(back, client.local_addr().unwrap());
    server.send_to(b"back", back).ok()?;
    client.recv_from(&mut room).ok()?;
    Some(started.elapsed())
}

/// A raw socket that sees all frames of a namespace.
pub fn sniffer(namespace: &NetNs) -> std::os::fd::OwnedFd {
    let open = || {
        let all = SockProtocol::EthAll;
        socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)
    };
    run_in(namespace, open).unwrap().unwrap()
}

/// The frames that come within `time` and contain `mark`.
pub fn frames(sniffer: &std::os::fd::OwnedFd, time: Duration, mark: &[u8]) -> Vec<Vec<u8>> {
    let until = Instant::now() + time;
    let mut found = Vec::new();
    let mut room = vec![0; 65536];
    loop {
        // What lies there when the time is over counts, however late this thread comes to look.
        let left = until.saturating_duration_since(Instant::now());
        let flags = if left.is_zero() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        let limit = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap().max(1));
        socket::setsockopt(sniffer, ReceiveTimeout, &limit).unwrap();
        match socket::recv(sniffer.as_raw_fd(), &mut room, flags) {
            Ok(len) => {
                if mark.is_empty() || room[..len].windows(mark.len()).any(|window| window == mark) {
                    found.push(room[..len].to_vec());
                }
            }
            Err(_) if left.is_zero() => return found,
            Err(_) => {}
        }
    }
}

/// Sends a frame out of the sandbox's interface as it is.
pub fn inject(plugged: &Plugged, frame: &[u8]) {
    let send = || {
        let interfaces = nix::ifaddrs::getifaddrs().unwrap();
        let address = interfaces.filter(|one| one.interface_name == plugged.plug.ifname);
        let address = address.filter_map(|one| Some(*one.address?.as_link_addr()?)).next().unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = socket::socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
        socket::sendto(raw.as_raw_fd(), frame, &address, MsgFlags::empty()).unwrap();
    };
    run_in(&plugged.plug.sandbox, send).unwrap();
}

pub fn ethernet(to: MacAddr, from: MacAddr, kind: u16, body: &[&[u8]]) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0[..], &kind.to_be_bytes()[..]].concat();
    body.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

pub fn arp(from: MacAddr, sender_mac: MacAddr, sender: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let target = [0, 0, 0, 0, 0, 0, 192, 0, 2, 2];
    ethernet(MacAddr::BROADCAST, from, 0x0806, &[&head, &sender_mac.0, &sender, &target])
}

pub fn ipv4(from: MacAddr, to: MacAddr, source: [u8; 4], mark: &[u8]) -> Vec<u8> {
    let len = u8::try_from(20 + mark.len()).unwrap();
    let head = [0x45, 0, 0, len, 0, 0, 0, 0, 64, 253, 0, 0];
    ethernet(to, from, 0x0800, &[&head, &source, &[192, 0, 2, 2], mark])
}

pub fn ipv6(from: MacAddr, source: &str, next: u8, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(body.len()).unwrap();
    let all_nodes = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    let [source, to] =
        [source, "ff02::1"].map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let head = [0x60, 0, 0, 0, 0, len, next, 255];
    ethernet(all_nodes, from, 0x86dd, &[&head, &source, &to, body])
}

pub fn advertisement(target: &str, mark: &[u8]) -> Vec<u8> {
    let target = target.parse::<std::net::Ipv6Addr>().unwrap().octets();
    [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target, mark].concat()
}

pub fn flags(network: &NetworkNs, device: &str) -> String {
    ip(network.namespace(), &format!("-d link show dev {device}"))
}

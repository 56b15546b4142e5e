//! IP-in-IP and IP in UDP on the real kernel: two datapaths without an agent, a TUN each, and as peers
//! of another make socat and the kernel (`tunnels/kernel.rs`).

mod kernel;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fdb::{
    Carrier, Delta, Network, NetworkKey, Origin, Place, Prefix, Revision, Route, Routed,
    SourceCheck, UdpPorts, Vtep, VtepKey, Writer,
};
use skybridge::datapath::drop::DropReason;
use skybridge::datapath::{Config, Datapath};
use skybridge::port::queue::PortOffload;
use skybridge::port::tun;
use skybridge::telemetry::counters::WorkerCounters;
use skybridge::underlay::probe::UdpOffload;
use skybridge::underlay::raw::RawSocket;
use testkit::traffic::{self, Udp};
use testkit::{Cap, Family, Lab, Netns, Process, Suite, Underlay, wait_until};

use crate::support::word;

const NEEDED: &[Cap] = &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool];
const WITH_SOCAT: &[Cap] = &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Socat];

const NETWORK: NetworkKey = NetworkKey(0);
const PORTS: UdpPorts = UdpPorts { v4: 4760, v6: 4761 };
const WORKERS: usize = 2;
/// Addresses of each end in each family.
const ADDRESSES: u8 = 4;
const BYTES: &str = "3000001";
/// What fits IP in UDP over IPv6, the smallest.
const MTU: u16 = 1452;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn register(suite: &mut Suite) {
    for carrier in [Carrier::IpIp, Carrier::IpUdp] {
        let name = match carrier {
            Carrier::IpIp => "ipip",
            Carrier::IpUdp => "ipudp",
        };
        for under in [Family::V4, Family::V6] {
            suite.test(format!("tunnels::{name}_over_{}", word(under)), NEEDED, move || {
                both_families_cross(carrier, under);
            });
        }
        suite.test(format!("tunnels::{name}_smaller_path"), NEEDED, move || {
            a_smaller_path_is_told_to_senders(carrier);
        });
        suite.test(format!("tunnels::{name}_with_socat"), WITH_SOCAT, move || {
            another_make_is_understood(carrier);
        });
    }
    kernel::register(suite);
    suite.test("tunnels::nobody_listens_is_told", NEEDED, nobody_listens_is_told);
    suite.test("tunnels::joined_by_the_kernel", NEEDED, what_the_kernel_joined_arrives);
    suite.test("tunnels::falls_back_to_udp", NEEDED, falls_back_to_udp);
    suite.test("tunnels::opened_under_traffic", NEEDED, sockets_that_open_under_traffic_share_it);
}

/// Address `number` of end `end`.
fn address(end: u8, number: u8, family: Family) -> IpAddr {
    let last = end * 16 + number;
    match family {
        Family::V4 => [198, 51, 100, last].into(),
        Family::V6 => [0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(last)].into(),
    }
}

fn prefix(address: IpAddr, v4: u8, v6: u8) -> Prefix {
    Prefix::new(address, if address.is_ipv4() { v4 } else { v6 }).unwrap()
}

/// A datapath on a host of the lab, and the namespace that it joins to the other.
struct End {
    number: u8,
    overlay: Arc<Netns>,
    datapath: Datapath,
    writer: Writer,
}

impl End {
    fn start(lab: &Lab, number: u8, carrier: Carrier, under: Family) -> Self {
        let (writer, reader) = fdb::channel();
        let host = lab.host(number.into());
        let config = || Config {
            workers: WORKERS,
            addresses: vec![host.address(Family::V4), host.address(Family::V6)],
            advertised: Vec::new(),
            ports: vec![4789],
            // So many that the kernel's hash of the outer ports does not put all on one worker.
            fan: 16,
            offload: UdpOffload::probe(),
            coalesce: true,
            confirm: fdb::Millis(10_000),
            nice: 0,
            underlay_mtu: 1500,
            epoch: Instant::now(),
        };
        let datapath = host.netns().enter(|| Datapath::start(config(), &reader)).unwrap();
        let mut end = Self { number, overlay: overlay(lab, number), datapath, writer };
        end.fill(lab, carrier, under, |_| {});
        let (queues, granted) =
            end.overlay.enter(|| tun::open("tun0", WORKERS, PortOffload::ALL)).unwrap();
        assert!(granted.csum && granted.tso, "{granted:?}");
        dress(&end.overlay, number);
        end.datapath.add_port(NETWORK, "net", queues, 0, false);
        end
    }

    /// Both ends' VTEPs, addresses and the network.
    fn fill(&mut self, lab: &Lab, carrier: Carrier, under: Family, change: impl Fn(&mut Vtep)) {
        let subnets = [Family::V4, Family::V6].map(|family| prefix(address(0, 0, family), 24, 64));
        let network = Network {
            vni: encap::Vni::new(4096).unwrap(),
            udp_port: 4789,
            mtu: MTU,
            name: "net".into(),
            id: "net".into(),
            learning: false,
            flood_unknown: false,
            flood_broadcast: false,
            flood_multicast: false,
            flood_rate: 0,
            flood_arp: false,
            source_check: SourceCheck::Strict,
            df: true,
            switch_local: false,
            gateway: None,
            routed: Some(Routed {
                carrier,
                fallback: true,
                ports: PORTS,
                subnets: subnets.into(),
                mss: false,
            }),
        };
        self.writer.apply(Delta::PutNetwork { key: NETWORK, network });
        for end in 1..=2 {
            let mut vtep = Vtep {
                address: lab.host(end.into()).address(under),
                port: 4789,
                mtu: 1500,
                accept: Vec::new(),
                host: Some(format!("h{end}").into()),
                checksum: true,
                suspect: false,
                ip_in_ip: true,
            };
            change(&mut vtep);
            let key = VtepKey(end.into());
            self.writer.apply(Delta::PutVtep { key, vtep });
            let place = if end == self.number { Place::Local } else { Place::Vtep(key) };
            for family in [Family::V4, Family::V6] {
                let prefix = prefix(address(end, 0, family), 28, 124);
                let origin = Origin::Store { revision: Revision(1) };
                let route = Route { place, origin };
                self.writer.apply(Delta::PutRoute { network: NETWORK, prefix, route });
            }
        }
        self.writer.publish();
    }

    fn listen(&self, lab: &Lab) {
        let all = || {
            self.datapath.listen_ip()?;
            self.datapath.listen_ip()?;
            self.datapath.listen_routed(PORTS)?;
            self.datapath.listen_routed(PORTS)
        };
        lab.host(self.number.into()).netns().enter(all).unwrap();
    }

    /// A counter of each worker.
    fn counter(&self, name: &str) -> Vec<u64> {
        let at = WorkerCounters::DESCRIPTIONS.iter().position(|(it, ..)| *it == name).unwrap();
        self.datapath.counters().iter().map(|worker| worker[at]).collect()
    }

    fn dropped(&self) -> Vec<(&'static str, u64)> {
        let all = DropReason::ALL.iter().zip(self.datapath.drops());
        let sums = all.map(|(reason, drops)| {
            let networks: u64 = drops.by_network.iter().map(|(_, count)| count).sum();
            (reason.name(), drops.without_network + networks)
        });
        sums.filter(|(_, count)| *count != 0).collect()
    }
}

fn overlay(lab: &Lab, number: u8) -> Arc<Netns> {
    let overlay = lab.sandbox(&format!("o{number}"));
    // No address of its own making, so no neighbor discovery.
    overlay.sysctl("net/ipv6/conf/default/addr_gen_mode", "1");
    overlay
}

/// Gives tun0 its addresses.
fn dress(netns: &Netns, number: u8) {
    netns.ip(&format!("link set tun0 mtu {MTU} up"));
    for one in 1..=ADDRESSES {
        netns.ip(&format!("addr add {}/32 dev tun0", address(number, one, Family::V4)));
        netns.ip(&format!("addr add {}/128 dev tun0 nodad", address(number, one, Family::V6)));
    }
    let (v4, v6) = (address(number, 1, Family::V4), address(number, 1, Family::V6));
    netns.ip(&format!("route add 198.51.100.0/24 dev tun0 src {v4}"));
    netns.ip(&format!("route add 2001:db8:1::/64 dev tun0 src {v6}"));
}

/// Two ends that listen.
fn ends(lab: &Lab, carrier: Carrier, under: Family) -> [End; 2] {
    let ends = [1, 2].map(|number| End::start(lab, number, carrier, under));
    ends.iter().for_each(|end| end.listen(lab));
    ends
}

/// Bytes over TCP, verified, to address `number` of end `to`.
fn tcp(lab: &Lab, from: &Netns, there: &Netns, to: IpAddr, bytes: &str) {
    let port = traffic::next_port();
    let at = SocketAddr::new(to, port).to_string();
    let receiver =
        traffic::start(there, &lab.logs(), &format!("tcp-{port}"), &["tcp-receive", &at]);
    let args = ["tcp-send", &at, "--verify", "--bytes", bytes, "--streams", "3", "--odd-sizes"];
    let sent = traffic::finish(from, &args).expect_success().json();
    let got = receiver.finish(LIMIT).expect_success().json();
    assert_eq!(sent["sha256"], got["sha256"]);
}

/// Datagrams, each there once.
fn udp(lab: &Lab, from: &Netns, there: &Netns, to: IpAddr, gso: bool) {
    let how = Udp { count: 300, size: 1000, rate: 1000, gso };
    traffic::datagrams(&lab.logs(), from, (there, to), how);
}

fn both_families_cross(carrier: Carrier, under: Family) {
    let lab = Lab::with_hosts(2).build();
    let ends = ends(&lab, carrier, under);
    for family in [Family::V4, Family::V6] {
        for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            for number in 1..=ADDRESSES {
                let target = address(to.number, number, family);
                udp(&lab, &from.overlay, &to.overlay, target, number % 2 == 0);
            }
            tcp(&lab, &from.overlay, &to.overlay, address(to.number, 1, family), BYTES);
        }
    }
    for end in &ends {
        assert_eq!(end.dropped(), []);
        assert!(end.counter("super_frames_out").iter().sum::<u64>() > 0, "cut here");
        let received = end.counter("datagrams_in");
        assert!(received.iter().all(|count| *count > 0), "every worker has a share: {received:?}");
        let other = &ends[usize::from(end.number == 1)];
        // The last acknowledgments may still be under way, or sent and not yet counted.
        wait_until("what is sent is there, each once", LIMIT, || {
            let sent: u64 = end.counter("datagrams_out").iter().sum();
            let there: u64 = other.counter("datagrams_in").iter().sum();
            // The kernel joins what is IP in IP, but never doubles.
            let once = there == sent || carrier == Carrier::IpIp && there < sent;
            once.then_some(())
        });
    }
}

fn a_smaller_path_is_told_to_senders(carrier: Carrier) {
    let lab = Lab::with_hosts(2).build();
    let ends = ends(&lab, carrier, Family::V4);
    // Behind the back of the datapath.
    lab.host(1).netns().ip("link set eth0 mtu 1340");
    let most = 1340 - if carrier == Carrier::IpIp { 20 } else { 28 };
    for family in [Family::V4, Family::V6] {
        let to = address(2, 1, family);
        // The first one teaches the path, the next one's sender is told.
        let args = ["-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", "1380", &to.to_string()];
        let told = ends[0].overlay.try_exec("ping", &args).stdout;
        let said = [format!("mtu = {most}"), format!("mtu={most}")];
        assert!(said.iter().any(|said| told.contains(said)), "{told}");
        tcp(&lab, &ends[0].overlay, &ends[1].overlay, to, BYTES);
    }
    if carrier == Carrier::IpUdp {
        // Too little for IPv6, which may not be refused 1,280 bytes: the outer packet is fragmented.
        lab.host(1).netns().ip("link set eth0 mtu 1300");
        tcp(&lab, &ends[0].overlay, &ends[1].overlay, address(2, 2, Family::V6), BYTES);
    }
    assert!(ends[0].counter("too_big_answers").iter().sum::<u64>() > 0);
    let dropped = ends[0].dropped();
    let allowed = ["out_too_big", "out_path_mtu"];
    assert!(dropped.iter().all(|(reason, _)| allowed.contains(reason)), "{dropped:?}");
}

fn nobody_listens_is_told() {
    let lab = Lab::with_hosts(2).build();
    let end = End::start(&lab, 1, Carrier::IpIp, Family::V4);
    end.listen(&lab);
    // The other host's kernel says so of a packet, and the next one's sender is told.
    let to = address(2, 1, Family::V4).to_string();
    let begun = Instant::now();
    loop {
        let told = end.overlay.try_exec("ping", &["-c", "2", "-i", "0.2", "-W", "1", &to]).stdout;
        if told.contains("Destination Host Unreachable") {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{told} {:?}", end.dropped());
    }
    assert!(end.counter("unreachable_answers").iter().sum::<u64>() > 0);
}

fn what_the_kernel_joined_arrives() {
    // Cut at the sender's card and joined by the receiver's GRO, before the raw socket.
    let lab = Lab::with_hosts(2).underlay(Underlay::Plain).build();
    let ends = ends(&lab, Carrier::IpIp, Family::V4);
    for family in [Family::V4, Family::V6] {
        tcp(&lab, &ends[0].overlay, &ends[1].overlay, address(2, 1, family), BYTES);
        udp(&lab, &ends[0].overlay, &ends[1].overlay, address(2, 2, family), true);
    }
    assert_eq!(ends[1].dropped(), []);
    assert_eq!(ends[1].counter("bad_checksum_in").iter().sum::<u64>(), 0);
}

fn falls_back_to_udp() {
    let lab = Lab::with_hosts(2).build();
    let mut ends = ends(&lab, Carrier::IpIp, Family::V4);
    // A fabric that drops protocol 4.
    lab.switch().exec("nft", &["add", "table", "bridge", "fabric"]);
    let chain = "{ type filter hook forward priority 0; }";
    lab.switch().exec("nft", &["add", "chain", "bridge", "fabric", "forward", chain]);
    let rule = ["add", "rule", "bridge", "fabric", "forward", "ip", "protocol", "4", "drop"];
    lab.switch().exec("nft", &rule);
    let to = address(2, 1, Family::V4);
    assert!(!traffic::reaches(&ends[0].overlay, to));
    for end in &mut ends {
        end.fill(&lab, Carrier::IpIp, Family::V4, |vtep| vtep.ip_in_ip = false);
    }
    tcp(&lab, &ends[0].overlay, &ends[1].overlay, to, BYTES);
    for end in &ends {
        assert_eq!(end.dropped(), []);
    }
}

/// The other host, joined by socat alone: a TUN and a socket, packet by packet.
fn another_make(lab: &Lab, carrier: Carrier, ipv6: bool) -> Process {
    let netns = lab.host(2).netns();
    let [ours, theirs] = [1, 2].map(|host| lab.host(host).address(Family::V4));
    let device = if ipv6 { "tun6" } else { "tun0" };
    let tun = format!("TUN,tun-name={device},tun-type=tun,iff-no-pi,iff-up");
    let socket = match carrier {
        Carrier::IpIp => {
            format!("IP4-DATAGRAM:{ours}:{},bind={theirs}", if ipv6 { 41 } else { 4 })
        }
        Carrier::IpUdp => {
            let port = if ipv6 { PORTS.v6 } else { PORTS.v4 };
            format!("UDP4-DATAGRAM:{ours}:{port},bind={theirs}:{port}")
        }
    };
    let mut command = netns.command("socat");
    command.args(["-b", "65536", &tun, &socket]);
    let process = Process::spawn(command, &lab.logs(), &format!("socat-{device}"));
    let begun = Instant::now();
    while !netns.try_exec("ip", &["link", "show", "dev", device, "up"]).status.success() {
        assert!(begun.elapsed() < LIMIT, "socat makes no {device}");
        std::thread::sleep(Duration::from_millis(10));
    }
    netns.ip(&format!("link set {device} mtu {MTU}"));
    process
}

fn another_make_is_understood(carrier: Carrier) {
    let lab = Lab::with_hosts(2).underlay(Underlay::Plain).build();
    let end = End::start(&lab, 1, carrier, Family::V4);
    end.listen(&lab);
    let netns = lab.host(2).netns();
    // socat takes what a packet is, and not what GRO makes of many.
    netns.ethtool("eth0", &["gro", "rx-gro-hw"], false);
    netns.sysctl("net/ipv6/conf/default/addr_gen_mode", "1");
    let peers = [false, true].map(|ipv6| another_make(&lab, carrier, ipv6));
    for (family, device, subnet) in
        [(Family::V4, "tun0", "198.51.100.0/24"), (Family::V6, "tun6", "2001:db8:1::/64")]
    {
        let own = address(2, 1, family);
        let len = if own.is_ipv4() { "32" } else { "128 nodad" };
        let (bits, flags) = len.split_once(' ').unwrap_or((len, ""));
        netns.ip(&format!("addr add {own}/{bits} dev {device} {flags}"));
        netns.ip(&format!("route add {subnet} dev {device} src {own}"));
        tcp(&lab, &end.overlay, netns, own, BYTES);
        tcp(&lab, netns, &end.overlay, address(1, 1, family), BYTES);
        udp(&lab, &end.overlay, netns, own, false);
        udp(&lab, netns, &end.overlay, address(1, 1, family), false);
    }
    assert_eq!(end.dropped(), []);
    drop(peers);
}

/// Raw sockets that are opened while packets arrive: each packet is for one of them, and for none that
/// is bound to another address.
fn sockets_that_open_under_traffic_share_it() {
    const OPENED: u32 = 40;
    let lab = Lab::with_hosts(1).build();
    let netns = lab.host(1).netns();
    let (ours, others) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
    let stop = AtomicBool::new(false);
    let socket = netns.enter(|| raw_socket(ours)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut packet = [0; 64];
            packet[0] = 0x45;
            for number in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // The number is the inner destination, so that both workers have a share.
                packet[16..20].copy_from_slice(&number.to_be_bytes());
                for to in [ours, others] {
                    // A full buffer is no trouble.
                    let _ = socket.send_to(&packet, &SocketAddr::new(to, 0).into());
                }
            }
        });
        let received: Vec<_> = (0..OPENED)
            .map(|_| {
                let open = |worker| RawSocket::open(ours, worker, 2).unwrap();
                let sockets = netns.enter(|| [open(0), open(1)]);
                sockets.map(|[inner_v4, ..]| {
                    let begun = Instant::now();
                    let mut numbers = Vec::new();
                    while numbers.len() < 100 && begun.elapsed() < LIMIT {
                        let mut packet = [0; 84];
                        let len = nix::unistd::read(inner_v4.as_fd(), &mut packet);
                        if len == Ok(packet.len()) {
                            assert_eq!(packet[16..20], [127, 0, 0, 1], "for another address");
                            numbers.push(packet[36..40].to_vec());
                        }
                    }
                    numbers
                })
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for [one, other] in received {
            assert!(one.len() >= 100 && other.len() >= 100, "both have a share");
            assert!(!one.iter().any(|number| other.contains(number)), "a packet twice");
        }
    });
}

/// Sends IP-in-IP from `address`.
fn raw_socket(address: IpAddr) -> std::io::Result<socket2::Socket> {
    let protocol = socket2::Protocol::from(4);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(protocol))?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    Ok(socket)
}

//! One example of everything the API can say.

use std::net::IpAddr;

use encap::MacAddr;
use skybridge::control::types::*;
use skybridge::store::admin::MemberStatus;

pub(crate) fn mac(last: u8) -> MacAddr {
    MacAddr([0x00, 0x00, 0x5e, 0x00, 0x53, last])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vtep(address: &str) -> HostVtep {
    HostVtep { address: ip(address), port: 4789 }
}

pub(crate) fn networks() -> Vec<Network> {
    vec![
        Network {
            id: "9c41d7e02b6a".to_owned(),
            name: "green".to_owned(),
            mode: "vxlan".to_owned(),
            vni: Some(5001),
            udp_port: Some(8472),
            subnets: vec!["203.0.113.0/24".parse().unwrap()],
            mtu: 8950,
            reaches: Vec::new(),
            endpoints: 0,
            hosts: 0,
            state: NetworkState::Absent,
        },
        Network {
            id: "e07b3c5a9d18".to_owned(),
            name: "red".to_owned(),
            mode: "ipip".to_owned(),
            vni: None,
            udp_port: None,
            subnets: vec!["203.0.113.0/24".parse().unwrap()],
            mtu: 1480,
            reaches: Vec::new(),
            endpoints: 2,
            hosts: 1,
            state: NetworkState::Absent,
        },
        Network {
            id: "51f0a3b87e2c".to_owned(),
            name: "blue".to_owned(),
            mode: "vxlan".to_owned(),
            vni: Some(4097),
            udp_port: Some(4789),
            subnets: vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:51::/64".parse().unwrap()],
            mtu: 1450,
            reaches: vec!["world".to_owned(), "host".to_owned()],
            endpoints: 3,
            hosts: 2,
            state: NetworkState::Up,
        },
    ]
}

pub(crate) fn network() -> NetworkDetail {
    NetworkDetail {
        network: networks().remove(2),
        mtu_requested: None,
        gateways: vec![ip("198.51.100.1"), ip("2001:db8:51::1")],
        gateway_mac: Some("02:42:c6:33:64:01".parse().unwrap()),
        exclude: vec!["198.51.100.200-198.51.100.220".to_owned()],
        pools: pools(),
        nat_outgoing: true,
        host_access: true,
        options: [("source_check".to_owned(), "mac".to_owned())].into(),
        labels: [("team".to_owned(), "web".to_owned())].into(),
        host_names: vec!["h1".to_owned(), "h2".to_owned()],
        static_vteps: vteps(),
        revision: Some(812),
        local: Some(LocalNetwork {
            namespace: "/run/skybridge/ns/51f0a3b87e2c".into(),
            bridge: Some("br0".to_owned()),
            port: "tap0".to_owned(),
            queues: 2,
            endpoints: 2,
            reserved: vec![ip("198.51.100.4"), ip("2001:db8:51::4")],
            host_ips: vec![ip("198.51.100.5"), ip("2001:db8:51::5")],
            uplink: Some("sky1f0a9c3b7d22".to_owned()),
            uplink_addresses: vec![
                "169.254.64.0/31".parse().unwrap(),
                "fdb1:5c7e:d42::/127".parse().unwrap(),
            ],
            reason: None,
        }),
    }
}

fn pools() -> Vec<Pool> {
    let host = |name: &str, endpoints| PoolHost {
        host: name.to_owned(),
        endpoints,
        reserved: 8,
        blocks: 2,
    };
    vec![
        Pool {
            subnet: "198.51.100.0/24".parse().unwrap(),
            capacity: 232,
            used: 199,
            reserved: 16,
            percent: 85,
            hosts: vec![host("h1", 2), host("h2", 181)],
        },
        Pool {
            subnet: "2001:db8:51::/64".parse().unwrap(),
            capacity: u64::MAX,
            used: 9,
            reserved: 8,
            percent: 0,
            hosts: vec![host("h1", 1)],
        },
    ]
}

pub(crate) fn failed_network() -> NetworkDetail {
    let mut detail = network();
    detail.network.state = NetworkState::Failed;
    detail.mtu_requested = Some(1400);
    detail.static_vteps.clear();
    detail.gateways.clear();
    detail.gateway_mac = None;
    detail.nat_outgoing = false;
    detail.host_access = false;
    detail.labels.clear();
    let reason = Some("cannot make the bridge: Operation not permitted".to_owned());
    detail.local = detail.local.map(|local| LocalNetwork {
        reason,
        host_ips: Vec::new(),
        uplink: None,
        uplink_addresses: Vec::new(),
        ..local
    });
    detail
}

pub(crate) fn vteps() -> Vec<StaticVtep> {
    vec![
        StaticVtep {
            network: "blue".to_owned(),
            address: ip("2001:db8::9"),
            port: 4789,
            macs: vec![],
            imported: vec![ImportedMac {
                mac: mac(11),
                ips: vec![ip("198.51.100.11")],
                by: vec!["h1".to_owned(), "h2".to_owned()],
            }],
            learned: 4,
            revision: Some(815),
        },
        StaticVtep {
            network: "blue".to_owned(),
            address: ip("192.0.2.9"),
            port: 8472,
            macs: vec![
                StaticMac { mac: mac(9), ips: vec![ip("198.51.100.9"), ip("2001:db8:51::9")] },
                StaticMac { mac: mac(10), ips: vec![] },
            ],
            imported: vec![],
            learned: 0,
            revision: Some(814),
        },
    ]
}

pub(crate) fn exported() -> Vec<ExportedEntry> {
    vec![ExportedEntry {
        endpoint: "3f9c2a71b0d84e55".to_owned(),
        host: "h3".to_owned(),
        mac: mac(2),
        ips: vec![ip("198.51.100.2"), ip("2001:db8:51::2")],
        vtep: ip("192.0.2.3"),
        port: 4789,
    }]
}

pub(crate) fn kernel_links() -> Vec<KernelLink> {
    let link = KernelLink {
        network: "blue".to_owned(),
        direction: KernelDirection::Export,
        netns: "/run/docker/netns/*-k3xf9w2m1q".to_owned(),
        dev: "vxlan0".to_owned(),
        state: KernelState::Following,
        since_ms: 61_000,
        entries: 1,
        conflicts: vec!["198.51.100.2 is there already, with 00:00:5e:00:53:0c".to_owned()],
        reason: None,
    };
    let import = KernelLink {
        direction: KernelDirection::Import,
        state: KernelState::Waiting,
        entries: 2,
        conflicts: Vec::new(),
        reason: Some("no namespace matches /run/docker/netns/*-k3xf9w2m1q".to_owned()),
        ..link.clone()
    };
    vec![link, import]
}

pub(crate) fn link_kernel() -> LinkKernel {
    LinkKernel {
        direction: KernelDirection::Import,
        action: KernelAction::Follow,
        netns: Some("/run/docker/netns/*-k3xf9w2m1q".to_owned()),
        dev: DEFAULT_DEVICE.to_owned(),
        vtep: Some(ip("192.0.2.1")),
        host: None,
    }
}

pub(crate) fn namespace() -> Namespace {
    Namespace {
        network: "blue".to_owned(),
        path: "/run/skybridge/ns/51f0a3b87e2c".into(),
        bridge: Some("br0".to_owned()),
        port: "tap0".to_owned(),
    }
}

pub(crate) fn attachment() -> Attachment {
    Attachment {
        endpoint: "3f9c2a71b0d84e55".to_owned(),
        name: Some("web".to_owned()),
        network: "blue".to_owned(),
        ips: vec!["198.51.100.2/24".parse().unwrap(), "2001:db8:51::2/64".parse().unwrap()],
        mac: mac(2),
        ifname: "eth0".to_owned(),
        mtu: 1450,
        gateways: vec![ip("198.51.100.1")],
        host: "h1".to_owned(),
        elapsed_ms: 7.25,
        queued: false,
    }
}

pub(crate) fn garbage(applied: bool) -> Vec<Garbage> {
    let state = if applied { GarbageState::Removed } else { GarbageState::Found };
    vec![
        Garbage {
            kind: "name".to_owned(),
            key: "names/old".to_owned(),
            network: None,
            host: None,
            reason: "network 51f0a3b87e2c0001 has no record".to_owned(),
            age_ms: None,
            state,
            cause: None,
        },
        Garbage {
            kind: "endpoint".to_owned(),
            key: "endpoints/51f0a3b87e2c4d90/3f9c2a71b0d84e55".to_owned(),
            network: Some("blue".to_owned()),
            host: Some("h3".to_owned()),
            reason: "host h3 has been absent for 26 h (198.51.100.7)".to_owned(),
            age_ms: Some(93_600_000),
            state,
            cause: None,
        },
    ]
}

pub(crate) fn detached() -> Vec<Detached> {
    let detached = |queued: bool| Detached {
        endpoint: "3f9c2a71b0d84e55".to_owned(),
        name: queued.then(|| "web".to_owned()),
        network: "blue".to_owned(),
        ips: vec![ip("198.51.100.2")],
        queued,
    };
    vec![detached(false), detached(true)]
}

pub(crate) fn hosts() -> Vec<Host> {
    vec![
        Host {
            name: "h2".to_owned(),
            id: "d41d8cd98f00b204".to_owned(),
            incarnation: 1,
            vteps: vec![vtep("192.0.2.2")],
            mtu: 0,
            modes: vec!["vxlan".to_owned()],
            version: "0.1.0".to_owned(),
            state: HostState::Suspect,
            since_ms: Some(45_000),
            is_self: false,
            path: Some(HostPath {
                used: "ipudp".to_owned(),
                why: "ipip stopped working".to_owned(),
                since_ms: 12_000,
                ways: vec![
                    HostWay {
                        way: "ipip".to_owned(),
                        reaches: false,
                        arrives: true,
                        works_ms: None,
                    },
                    HostWay {
                        way: "ipudp".to_owned(),
                        reaches: true,
                        arrives: true,
                        works_ms: Some(3_600_000),
                    },
                ],
            }),
            networks: 1,
            endpoints: 1,
        },
        Host {
            name: "h1".to_owned(),
            id: "7c1e6b3a90f24d18".to_owned(),
            incarnation: 12,
            vteps: vec![vtep("192.0.2.1"), vtep("2001:db8::1")],
            mtu: 1500,
            modes: ["vxlan", "ipip", "ipudp"].map(str::to_owned).into(),
            version: "0.1.0".to_owned(),
            state: HostState::Alive,
            since_ms: Some(11_580_000),
            is_self: true,
            path: None,
            networks: 1,
            endpoints: 2,
        },
    ]
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    let endpoint = |last: u8, host: &str, state| Endpoint {
        id: format!("3f9c2a71b0d84e{last:02x}"),
        name: (last == 2).then(|| "web".to_owned()),
        network: "blue".to_owned(),
        host: host.to_owned(),
        mac: mac(last),
        ips: vec![IpAddr::from([198, 51, 100, last]), ip(&format!("2001:db8:51::{last:x}"))],
        age_ms: (state != EndpointState::Queued).then_some(u64::from(last) * 1_000_000),
        revision: (state != EndpointState::Queued).then_some(800 + i64::from(last)),
        state,
    };
    vec![
        endpoint(3, "h2", EndpointState::Suspect),
        endpoint(4, "h1", EndpointState::Queued),
        endpoint(2, "h1", EndpointState::Attached),
    ]
}

pub(crate) fn fdb() -> Vec<FdbEntry> {
    let entry = FdbEntry {
        network: "blue".to_owned(),
        vni: 4097,
        mac: mac(2),
        place: PlaceKind::Local,
        vtep: None,
        host: Some("h1".to_owned()),
        source: SourceKind::Store,
        revision: Some(802),
        age_ms: Some(2_000_000),
    };
    let far = FdbEntry { place: PlaceKind::Vtep, ..entry.clone() };
    vec![
        FdbEntry {
            mac: mac(11),
            vtep: Some(ip("192.0.2.9")),
            host: None,
            source: SourceKind::Learned,
            revision: None,
            age_ms: Some(800),
            ..far.clone()
        },
        FdbEntry {
            mac: mac(9),
            vtep: Some(ip("192.0.2.9")),
            host: None,
            source: SourceKind::Static,
            revision: Some(814),
            age_ms: None,
            ..far.clone()
        },
        FdbEntry {
            mac: mac(3),
            vtep: Some(ip("192.0.2.2")),
            host: Some("h2".to_owned()),
            revision: Some(803),
            ..far
        },
        entry,
    ]
}

pub(crate) fn neighbors() -> Vec<NeighborEntry> {
    fdb()
        .into_iter()
        .filter(|entry| entry.source != SourceKind::Learned)
        .map(|entry| NeighborEntry {
            network: entry.network,
            vni: entry.vni,
            ip: IpAddr::from([198, 51, 100, entry.mac.0[5]]),
            mac: entry.mac,
            place: entry.place,
            vtep: entry.vtep,
            host: entry.host,
            source: entry.source,
            revision: entry.revision,
            age_ms: entry.age_ms,
        })
        .collect()
}

pub(crate) fn routes() -> Vec<RouteEntry> {
    let entry = RouteEntry {
        network: "red".to_owned(),
        prefix: "198.51.100.0/29".parse().unwrap(),
        place: PlaceKind::Local,
        vtep: None,
        host: Some("h1".to_owned()),
        source: SourceKind::Store,
        revision: Some(804),
        age_ms: Some(61_000),
    };
    let far = RouteEntry {
        prefix: "198.51.100.8/29".parse().unwrap(),
        place: PlaceKind::Vtep,
        vtep: Some(ip("192.0.2.2")),
        host: Some("h2".to_owned()),
        revision: Some(806),
        ..entry.clone()
    };
    let moved = RouteEntry {
        prefix: "198.51.100.3/32".parse().unwrap(),
        revision: Some(911),
        age_ms: Some(800),
        ..far.clone()
    };
    vec![far, moved, entry]
}

pub(crate) fn drops() -> Vec<Drops> {
    let reason = |name: &str, direction, network: Option<&str>, count| Drops {
        reason: name.to_owned(),
        direction,
        network: network.map(str::to_owned),
        endpoint: name.starts_with("veth").then(|| "9f2c41d80b7e6a35".to_owned()),
        count,
        description: format!("What {name} means, one sentence."),
        hint: "`skybridge endpoints` lists who exists".to_owned(),
    };
    vec![
        reason("out_neighbor_unknown", Direction::Outbound, Some("blue"), 3),
        reason("in_truncated", Direction::Inbound, None, 0),
        reason("out_neighbor_unknown", Direction::Outbound, Some("green"), 1),
        reason("in_vtep_unknown", Direction::Inbound, None, 1204),
        reason("veth_source_arp", Direction::Outbound, Some("blue"), 12),
    ]
}

fn counter(name: &str, unit: &str, workers: &[u64]) -> Counter {
    Counter {
        name: name.to_owned(),
        help: format!("What {name} counts."),
        unit: unit.to_owned(),
        value: workers.iter().sum(),
        workers: workers.to_vec(),
    }
}

pub(crate) fn stats() -> Stats {
    Stats {
        uptime_ms: 11_580_000,
        workers: 2,
        counters: vec![
            counter("datagrams_out", "datagrams", &[120_400, 98_000]),
            counter("bytes_out", "bytes", &[181_000_000, 147_000_000]),
            counter("gso_fallbacks", "messages", &[0, 0]),
        ],
        networks: vec![
            NetworkStats {
                network: "green".to_owned(),
                counters: vec![counter("frames_in", "frames", &[0, 0])],
            },
            NetworkStats {
                network: "blue".to_owned(),
                counters: vec![counter("frames_in", "frames", &[77_000, 4])],
            },
        ],
        limits: vec![
            Limit {
                name: "learn_queue".to_owned(),
                help: "Learned addresses on the way to the tables.".to_owned(),
                unit: "entries".to_owned(),
                used: Some(3),
                limit: 4096,
                high: Some(120),
            },
            Limit {
                name: "port_queue".to_owned(),
                help: "Frames that wait in one queue of a port.".to_owned(),
                unit: "frames".to_owned(),
                used: None,
                limit: 1000,
                high: None,
            },
        ],
    }
}

/// [`stats`] two seconds later, with traffic.
pub(crate) fn later_stats() -> Stats {
    let mut later = stats();
    later.uptime_ms += 2_000;
    for counter in &mut later.counters {
        counter.value = counter.value.saturating_mul(2);
    }
    later.networks[1].counters[0].value += 5_000;
    later
}

pub(crate) fn status() -> Status {
    let offload = |name: &str, state, reason: Option<&str>| Offload {
        name: name.to_owned(),
        state,
        reason: reason.map(str::to_owned),
    };
    Status {
        ready: true,
        host: "h1".to_owned(),
        id: "7c1e6b3a90f24d18".to_owned(),
        incarnation: 12,
        version: "0.1.0".to_owned(),
        uptime_ms: 11_580_000,
        store: Store {
            state: StoreState::Connected,
            endpoint: Some("http://192.0.2.1:2379".to_owned()),
            revision: Some(812),
            since_ms: 11_579_000,
            cause: None,
            embedded: Some("192.0.2.1:2379".to_owned()),
        },
        session: Session {
            state: SessionState::Held,
            lease: Some("694d8f2c1a3b5e07".to_owned()),
            ttl_ms: 10_000,
        },
        convergence: Some(Convergence {
            changes: Latency { count: 640, p50_us: 85, p99_us: 912, max_us: 4_210 },
            own: Latency { count: 12, p50_us: 3_450, p99_us: 9_875, max_us: 9_875 },
            listing: Some(Listing { took_us: 183_400, endpoints: 10_000 }),
        }),
        reload: Some(Reload {
            since_ms: 125_000,
            applied: true,
            changed: vec!["stores".to_owned(), "user.name".to_owned()],
            kept: vec!["udp_port".to_owned()],
            cause: None,
            next_step: None,
        }),
        datapath: Datapath {
            workers: 2,
            generation: 57,
            offloads: vec![
                offload("tso", OffloadState::On, None),
                offload("uso", OffloadState::Off, Some("configuration")),
                offload("udp-gso", OffloadState::Lost, Some("the driver answered EIO")),
                offload("udp-gro", OffloadState::On, None),
            ],
            vteps: vec![vtep("192.0.2.1"), vtep("2001:db8::1")],
            mtu: 1500,
        },
        outside: Some(Outside {
            table: "inet skybridge_1f0a2b3c".to_owned(),
            forwards_ipv4: true,
            forwards_ipv6: true,
            changed: vec!["net.ipv4.ip_forward".to_owned()],
            permission: vec!["ip filter DOCKER-USER".to_owned()],
            refused: Vec::new(),
            reasserted: 2,
            udp_ports: Some("4790-32767".to_owned()),
        }),
        networks: networks(),
        drops_total: 1208,
        warnings: vec![Warning {
            since_ms: 45_000,
            text: "host h2 is suspect: its lease has ended".to_owned(),
            next_step: Some("is the agent on h2 running, and does it reach the store?".to_owned()),
        }],
    }
}

/// An agent that has lost its store.
pub(crate) fn lonely_status() -> Status {
    let mut status = status();
    status.ready = false;
    status.store = Store {
        state: StoreState::Away,
        since_ms: 61_000,
        cause: Some("connection refused".to_owned()),
        embedded: None,
        ..status.store
    };
    status.session = Session { state: SessionState::Lost, lease: None, ..status.session };
    status.convergence = Some(Convergence::default());
    status.reload = Some(Reload {
        since_ms: 4_000,
        applied: false,
        changed: Vec::new(),
        kept: Vec::new(),
        cause: Some("`stores` is not set".to_owned()),
        next_step: Some("name the store with --store http://HOST:2379".to_owned()),
    });
    status.networks.clear();
    status.warnings.clear();
    status.drops_total = 0;
    status.datapath.offloads.clear();
    status.datapath.mtu = 0;
    status
}

pub(crate) fn create_network() -> CreateNetwork {
    CreateNetwork {
        exclude: Vec::new(),
        name: "blue".to_owned(),
        subnets: vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:51::/64".parse().unwrap()],
        mode: Mode::Vxlan,
        vni: Some(4097),
        udp_port: Some(8472),
        mtu: Some(1400),
        gateway: Gateway::Addresses(vec![ip("198.51.100.1"), ip("2001:db8:51::1")]),
        nat_outgoing: false,
        options: [("source_check".to_owned(), "mac".to_owned())].into(),
        labels: [("team".to_owned(), "web".to_owned())].into(),
    }
}

pub(crate) fn update_network() -> UpdateNetwork {
    UpdateNetwork {
        mtu: Some(1400),
        nat_outgoing: None,
        options: [("source_check".to_owned(), Some("strict".to_owned()))].into(),
        labels: [("team".to_owned(), None)].into(),
    }
}

pub(crate) fn vtep_add() -> VtepAdd {
    VtepAdd {
        address: ip("192.0.2.9"),
        port: Some(8472),
        macs: vec![StaticMac { mac: mac(9), ips: vec![ip("198.51.100.9")] }],
    }
}

pub(crate) fn attach() -> Attach {
    Attach {
        network: "blue".to_owned(),
        netns: "c1".to_owned(),
        ips: vec![ip("198.51.100.2")],
        mac: Some(mac(2)),
        moves: None,
        ifname: "eth0".to_owned(),
        name: Some("web".to_owned()),
        default_route: true,
        labels: [("team".to_owned(), "web".to_owned())].into(),
    }
}

pub(crate) fn detach() -> Detach {
    Detach { network: Some("blue".to_owned()), netns: Some("c1".to_owned()), endpoint: None }
}

pub(crate) fn store_access() -> StoreAccess {
    let pki = |name: &str| Some(format!("/var/lib/skybridge/pki/{name}"));
    StoreAccess {
        endpoints: vec!["https://192.0.2.1:2379".to_owned()],
        prefix: String::new(),
        ca: pki("ca.pem"),
        certificate: pki("root.pem"),
        key: pki("root.pem"),
        server_name: None,
        user: None,
        password_file: None,
    }
}

pub(crate) fn make_token() -> MakeToken {
    MakeToken { host: Some("h2".to_owned()), ttl_ms: 3_600_000 }
}

pub(crate) fn token() -> Token {
    Token {
        token: "skybridge1.eyJlIjpbImh0dHBzOi8vMTkyLjAuMi4xOjIzNzkiXX0".to_owned(),
        host: Some("h2".to_owned()),
        expires_in_ms: 3_600_000,
        endpoints: vec!["https://192.0.2.1:2379".to_owned()],
        fingerprint: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc".to_owned(),
    }
}

pub(crate) fn members() -> Vec<MemberStatus> {
    let member = |endpoint: &str, leads: bool, errors: Vec<String>| MemberStatus {
        endpoint: endpoint.to_owned(),
        answers: true,
        version: Some("3.7.2".to_owned()),
        leads,
        revision: Some(4711),
        size_bytes: Some(20_480_000),
        in_use_bytes: Some(512_000),
        errors,
    };
    let away = MemberStatus {
        endpoint: "https://192.0.2.13:2379".to_owned(),
        answers: false,
        version: None,
        leads: false,
        revision: None,
        size_bytes: None,
        in_use_bytes: None,
        errors: vec![
            "store at https://192.0.2.13:2379 does not answer (connection refused)".into(),
        ],
    };
    vec![
        member("https://192.0.2.11:2379", true, Vec::new()),
        member("https://192.0.2.12:2379", false, vec!["it has no leader".to_owned()]),
        away,
    ]
}

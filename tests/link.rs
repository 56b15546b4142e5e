//! Links and namespaces on the real kernel: needs root and leaves nothing behind.
//!
//! - this file: what is made, taken over, completed and removed;
//! - `link/spoofing.rs`: what a sandbox cannot claim to be;
//! - `link/cost.rs`: what the source check costs, by hand;
//! - `link/world.rs`: namespaces and sandboxes of one test, and frames in them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(unreachable_pub, reason = "the modules belong to this file alone")]
#![allow(clippy::print_stdout, reason = "timings are for the reader of a test run")]

#[path = "link/cost.rs"]
mod cost;
#[path = "link/spoofing.rs"]
mod spoofing;
#[path = "link/world.rs"]
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use encap::MacAddr;
use skybridge::link::endpoint::{self, Plug};
use skybridge::link::names::{BRIDGE, TAP};
use skybridge::link::view::{FdbKind, Kind};
use skybridge::link::{
    Error, NetNs, NetNsRef, NetworkNs, Owner, Pinned, cleanup, netns, network, run_in, underlay,
};

use world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sandboxes_talk_at_once_and_leave_nothing() {
    let mut world = World::new();
    let network = world.network().await;
    assert_eq!(network.pinned(), Pinned::Created);
    let [a, b] = [world.sandbox("a"), world.sandbox("b")];
    let (mut plugged, mut took) = (Vec::new(), Vec::new());
    for plug in [plug(&a, "e1", 1), plug(&b, "e2", 2)] {
        let started = Instant::now();
        let one = endpoint::plug(&network, &world.owner, &plug).await.unwrap();
        let made = started.elapsed();
        assert!(!one.port.up && !one.inner.up);
        endpoint::up(&network, &one).await.unwrap();
        let whole = started.elapsed();
        println!("plug {made:?}, plug and up {whole:?}");
        took.push(whole);
        plugged.push(one);
    }
    // Of the faster one: the kernel's lock may be held for long by namespaces that are taken down.
    assert!(took.iter().min() < Some(&Duration::from_millis(500)), "{took:?}");
    let [one, two] = plugged.try_into().unwrap();
    // No duplicate address detection: IPv6 first, within the 300 ms that one exchange may take.
    println!("first IPv6 exchange {:?}", exchange(&one, &two, 1).unwrap());
    println!("first IPv4 exchange {:?}", exchange(&one, &two, 0).unwrap());
    let addresses = ip(&a, "-6 address show dev eth0");
    assert!(addresses.contains("fe80::42:c0ff:fe00:201/64 scope link nodad"), "{addresses}");
    assert!(!addresses.contains("tentative"), "{addresses}");

    let state = network.inspect().await.unwrap();
    assert_eq!((state.ports.len(), state.tap), (2, None));
    for plugged in [&one, &two] {
        let entry = state.fdb.iter().find(|entry| entry.mac == plugged.plug.mac).unwrap();
        assert_eq!((entry.kind, entry.port), (FdbKind::Static, plugged.port.index));
    }
    let port = flags(&network, &one.port.name);
    for setting in ["learning off", "locked on", " flood off", "mcast_flood on", "bcast_flood on"] {
        assert!(port.contains(setting), "{setting}: {port}");
    }
    let bridge = flags(&network, BRIDGE);
    for setting in ["stp_state 0", "forward_delay 0", "mcast_snooping 0", "vlan_filtering 0"] {
        assert!(bridge.contains(setting), "{setting}: {bridge}");
    }
    for endpoint in ["e1", "e2"] {
        assert!(endpoint::unplug(Some(&network), &world.owner, endpoint, None).await.unwrap());
        assert!(!endpoint::unplug(Some(&network), &world.owner, endpoint, None).await.unwrap());
    }
    assert!(!run(&a, "ip", "link show eth0").0);
    assert!(network::remove(network.pin()).await.unwrap());
    assert!(!network::remove(network.pin()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_infrastructure_is_silent_and_bridge_netfilter_off() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, two] = world.pair(&network, false).await;
    let seen = frames(&sniffer(&two.plug.sandbox), Duration::from_millis(700), &[]);
    let sources = [one.plug.mac, two.plug.mac].map(|mac| mac.0.to_vec());
    let strange = seen.iter().filter(|frame| !sources.contains(&frame[6..12].to_vec()));
    assert_eq!(strange.count(), 0, "{seen:02x?}");
    let read = |name: &'static str| {
        let path = Path::new("/proc/sys/net").join(name);
        run_in(network.namespace(), || std::fs::read_to_string(path).unwrap_or_else(|_| "0".into()))
            .unwrap()
    };
    for name in
        ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-arptables", "ipv4/ip_forward"]
    {
        assert_eq!(read(name).trim(), "0", "{name}");
    }
    for name in ["ipv6/conf/br0/disable_ipv6", "ipv6/conf/default/disable_ipv6"] {
        assert_eq!(read(name).trim(), "1", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plug_cut_off_anywhere_is_completed_or_made_again() {
    let mut world = World::new();
    let network = world.network().await;
    let [_one, two] = world.pair(&network, false).await;
    let sandbox = world.sandbox("c");
    let third = plug(&sandbox, "e3", 3);
    let (mut adopted, mut finished) = (0, 0);
    for round in 0..24 {
        let limit = Duration::from_micros(150 * round);
        let cut = tokio::time::timeout(limit, endpoint::plug(&network, &world.owner, &third));
        finished += u32::from(cut.await.is_ok());
        let plugged = match endpoint::adopt(&network, &world.owner, &third).await.unwrap() {
            Some(plugged) => {
                adopted += 1;
                plugged
            }
            None => endpoint::plug(&network, &world.owner, &third).await.unwrap(),
        };
        endpoint::up(&network, &plugged).await.unwrap();
        assert!(exchange(&plugged, &two, 0).is_some() && exchange(&two, &plugged, 1).is_some());
        assert!(endpoint::unplug(Some(&network), &world.owner, "e3", None).await.unwrap());
    }
    println!("24 plugs cut off: {finished} finished, {adopted} taken over");
    assert_eq!(endpoint::find(&network, &world.owner).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_half_made_is_completed() {
    let mut world = World::new();
    let wanted = world.wanted();
    // A pin without a namespace, as after a reboot.
    std::fs::create_dir_all(wanted.pin.parent().unwrap()).unwrap();
    std::fs::write(&wanted.pin, "").unwrap();
    let network = network::ensure(&wanted).await.unwrap();
    assert_eq!(network.pinned(), Pinned::Completed);

    // A bridge with other settings, and a link of another kind in its place.
    let space = network.namespace().clone();
    ip(&space, "link set br0 down");
    ip(&space, "link set br0 type bridge stp_state 1 forward_delay 1500 mcast_snooping 1");
    ip(&space, "link set br0 address 02:00:5e:00:53:01 mtu 1400");
    let again = network::ensure(&wanted).await.unwrap();
    assert_eq!((again.pinned(), again.bridge()), (Pinned::Adopted, network.bridge()));
    let bridge = again.inspect().await.unwrap().bridge;
    assert_eq!((bridge.mac, bridge.mtu, bridge.up), (BRIDGE_MAC, MTU, true));
    assert_eq!(bridge.bridge, Some(Default::default()));
    ip(&space, "link delete br0");
    ip(&space, "link add br0 type veth peer name other");
    let network = network::ensure(&wanted).await.unwrap();
    assert_eq!(network.inspect().await.unwrap().bridge.kind, Kind::Bridge);

    // A port without its entry and with other settings, and a sandbox's end changed by its owner.
    let [one, two] = world.pair(&network, false).await;
    let port = &one.port.name;
    let (right, text) =
        run(&space, "bridge", &format!("fdb del {} dev {port} master", one.plug.mac));
    assert!(right, "{text}");
    let (right, text) =
        run(&space, "bridge", &format!("fdb add 02:00:5e:00:53:02 dev {port} master static"));
    assert!(right, "{text}");
    ip(&space, &format!("link set {port} mtu 1300 nomaster"));
    ip(&space, &format!("link set {port} master br0"));
    ip(&one.plug.sandbox, "link set eth0 mtu 1300");
    ip(&one.plug.sandbox, "address flush dev eth0");
    assert!(exchange(&two, &one, 0).is_none());
    let adopted = endpoint::adopt(&network, &world.owner, &one.plug).await.unwrap().unwrap();
    assert_eq!((adopted.port.index, adopted.inner.index), (one.port.index, one.inner.index));
    endpoint::up(&network, &adopted).await.unwrap();
    assert!(exchange(&one, &two, 0).is_some() && exchange(&two, &one, 1).is_some());
    let found = endpoint::find(&network, &world.owner).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].macs, [one.plug.mac]);
    let view = found[0].port.port.unwrap();
    assert!(view.locked && !view.learning && !view.flood && found[0].port.mtu == MTU);

    // A veth that was made but not named yet: found, and replaced by the next plug.
    let c = world.sandbox("c");
    let third = plug(&c, "e3", 3);
    let name = world.owner.port("e3");
    ip(&space, &format!("link add {name} master br0 type veth peer name eth9"));
    let found = endpoint::find(&network, &world.owner).await.unwrap();
    assert_eq!(found.iter().filter(|port| port.endpoint.is_none()).count(), 1);
    assert_eq!(endpoint::adopt(&network, &world.owner, &third).await.unwrap(), None);
    let third = endpoint::plug(&network, &world.owner, &third).await.unwrap();
    endpoint::up(&network, &third).await.unwrap();
    assert!(exchange(&third, &two, 0).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_back_takes_over_all() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, two] = world.pair(&network, false).await;
    let bridge = network.bridge();
    drop(network);
    assert!(exchange(&one, &two, 0).is_some());
    let network = world.network().await;
    assert_eq!((network.pinned(), network.bridge()), (Pinned::Adopted, bridge));
    let found = endpoint::find(&network, &world.owner).await.unwrap();
    let names = found.iter().map(|port| port.endpoint.as_deref()).collect::<Vec<_>>();
    assert_eq!(names, [Some("e1"), Some("e2")]);
    assert!(found.iter().all(|port| port.has_peer && port.port.operational));
    for plugged in [&one, &two] {
        let adopted =
            endpoint::adopt(&network, &world.owner, &plugged.plug).await.unwrap().unwrap();
        assert_eq!(adopted.port.index, plugged.port.index);
        assert_eq!(adopted.inner.index, plugged.inner.index);
        endpoint::up(&network, &adopted).await.unwrap();
    }
    assert!(exchange(&one, &two, 1).is_some());
    // Another sandbox than the port leads to: what is left is removed, nothing is taken over.
    let other = world.sandbox("c");
    let moved = Plug { sandbox: other, ..one.plug.clone() };
    assert_eq!(endpoint::adopt(&network, &world.owner, &moved).await.unwrap(), None);
    assert_eq!(endpoint::find(&network, &world.owner).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_is_gone_does_not_hinder_detaching() {
    let mut world = World::new();
    let network = world.network().await;
    let sandbox = world.sandbox("gone");
    let one = endpoint::plug(&network, &world.owner, &plug(&sandbox, "e1", 1)).await.unwrap();
    endpoint::up(&network, &one).await.unwrap();
    let path = world.sandboxes[0].clone();
    assert!(netns::unpin(&path).unwrap());
    drop((sandbox, one));
    let error = NetNs::open(&NetNsRef::Path(path)).unwrap_err();
    assert!(matches!(error, Error::NamespaceGone { .. }), "{error}");
    // The kernel takes its time to end a namespace; whether the port is still there or not, the
    // call succeeds and it is gone afterwards.
    endpoint::unplug(Some(&network), &world.owner, "e1", None).await.unwrap();
    assert!(endpoint::find(&network, &world.owner).await.unwrap().is_empty());
    // And with the network gone, from the sandbox's side there is nothing to do either.
    network::remove(network.pin()).await.unwrap();
    let sandbox = world.sandbox("other");
    assert!(!endpoint::unplug(None, &world.owner, "e1", Some(&sandbox)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_plugged_is_refused_and_leaves_nothing() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, _two] = world.pair(&network, false).await;
    let owner = world.owner.clone();
    let sandbox = one.plug.sandbox.clone();
    let refuse = async |plug: &Plug| endpoint::plug(&network, &owner, plug).await.unwrap_err();
    let error = refuse(&plug(&sandbox, "e3", 3)).await;
    assert!(matches!(error, Error::InterfaceExists { .. }), "{error}");
    let error = refuse(&Plug { ifname: "eth1".into(), ..plug(&sandbox, "e3", 1) }).await;
    assert!(matches!(error, Error::AddressPresent { .. }), "{error}");
    let error = refuse(&Plug { ifname: "eth1/x".into(), ..plug(&sandbox, "e3", 3) }).await;
    assert!(matches!(error, Error::InvalidIfname { .. }), "{error}");
    let error = refuse(&Plug { ifname: "eth1".into(), ..plug(&sandbox, "e1", 3) }).await;
    assert!(matches!(error, Error::AlreadyPlugged { .. }), "{error}");
    let third = Plug { ifname: "eth1".into(), ..plug(&sandbox, "e3", 3) };
    let error = refuse(&Plug { mtu: 1279, ..third.clone() }).await;
    assert!(matches!(error, Error::MtuTooSmall { .. }), "{error}");
    let group = MacAddr([0x03, 0, 0x5e, 0, 0x53, 1]);
    let error = refuse(&Plug { mac: group, ..third.clone() }).await;
    assert!(matches!(error, Error::InvalidMac { .. }), "{error}");
    // The kernel refuses a multicast address only when the veth is there already.
    let addresses = vec!["192.0.2.3/24".parse().unwrap(), "ff02::3/64".parse().unwrap()];
    let error = refuse(&Plug { addresses, ..third.clone() }).await;
    assert!(matches!(error, Error::Netlink { .. }), "{error}");
    assert_eq!(endpoint::find(&network, &owner).await.unwrap().len(), 2);
    assert!(!ip(&sandbox, "link show").contains("eth1"));
    let links = ip(network.namespace(), "-o link show");
    assert_eq!(links.lines().count(), 4, "{links}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_routes_come_with_up_and_refuse_to_replace() {
    let mut world = World::new();
    let network = world.network().await;
    let sandbox = world.sandbox("a");
    let gateways = ["192.0.2.254", "2001:db8::fe"].map(|text| text.parse().unwrap()).to_vec();
    let first = Plug { gateways, ..plug(&sandbox, "e1", 1) };
    let one = endpoint::plug(&network, &world.owner, &first).await.unwrap();
    for _ in 0..2 {
        endpoint::up(&network, &one).await.unwrap();
    }
    assert!(ip(&sandbox, "route").contains("default via 192.0.2.254 dev eth0"));
    assert!(ip(&sandbox, "-6 route").contains("default via 2001:db8::fe dev eth0"));
    let gateways = vec!["198.51.100.1".parse().unwrap()];
    let second = Plug { ifname: "eth1".into(), gateways, ..plug(&sandbox, "e2", 2) };
    let two = endpoint::plug(&network, &world.owner, &second).await.unwrap();
    let error = endpoint::up(&network, &two).await.unwrap_err();
    assert!(matches!(error, Error::RouteExists { .. }), "{error}");
    // A gateway off the subnet is reached on the link.
    ip(&sandbox, "route del default");
    endpoint::up(&network, &two).await.unwrap();
    assert!(ip(&sandbox, "route").contains("default via 198.51.100.1 dev eth1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tap_gets_what_is_unknown_and_isolated_ports_only_the_tap() {
    let mut world = World::new();
    let network = world.network().await;
    let error = network.attach_tap(TAP, MTU).await.unwrap_err();
    assert!(matches!(error, Error::NoLink { .. }), "{error}");
    let space = network.namespace().clone();
    ip(&space, "tuntap add dev tap0 mode tap multi_queue");
    let tap = network.attach_tap(TAP, MTU).await.unwrap();
    let check = async |network: &NetworkNs| {
        let present = network.inspect().await.unwrap().tap.unwrap();
        let port = present.port.unwrap();
        assert!(port.flood && port.multicast_flood && port.broadcast_flood);
        assert!(!port.learning && !port.locked && !port.isolated);
        assert_eq!((present.index, present.up, present.mtu), (tap.index, true, MTU));
    };
    check(&network).await;
    ip(&space, "link set tap0 mtu 1400");
    ip(&space, "link set tap0 type bridge_slave learning on flood off locked on");
    network.attach_tap(TAP, MTU).await.unwrap();
    check(&network).await;
    let read = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/tap0/disable_ipv6");
    assert_eq!(run_in(&space, read).unwrap().unwrap_or_else(|_| "1".into()).trim(), "1");

    let [one, two] = world.pair(&network, true).await;
    assert!(exchange(&one, &two, 0).is_none());
    for plugged in [&one, &two] {
        let local = Plug { isolated: false, ..plugged.plug.clone() };
        endpoint::adopt(&network, &world.owner, &local).await.unwrap().unwrap();
    }
    ip(&one.plug.sandbox, "neighbour flush all");
    assert!(exchange(&one, &two, 0).is_some());

    network.set_mtu(1400).await.unwrap();
    let sandbox = &one.plug.sandbox;
    // By alias, whatever a runtime has called it.
    ip(sandbox, "link set eth0 down name net7");
    assert!(endpoint::set_mtu(sandbox, &world.owner, "e1", 1400).await.unwrap());
    assert!(!endpoint::set_mtu(sandbox, &world.owner, "e2", 1400).await.unwrap());
    assert!(ip(sandbox, "link show net7").contains("mtu 1400"));
    let state = network.inspect().await.unwrap();
    let mtus = state.ports.iter().chain([&state.bridge]).chain(&state.tap).map(|link| link.mtu);
    assert_eq!(mtus.collect::<Vec<_>>(), [1400; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_removes_what_is_ours_and_nothing_else() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, _two] = world.pair(&network, false).await;
    let stranger = Owner::with_pin_dir(Path::new("/nonexistent"), &world.folder.join("pins"));
    let foreign = stranger.pin("net");
    world.sandboxes.push(foreign.clone());
    NetNs::create_pinned(&foreign).unwrap();
    std::fs::write(world.owner.pin("rest"), "").unwrap();
    let report = cleanup::run(&world.owner).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let removed = report.removed.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(removed.len(), 4, "{removed:?}");
    assert!(removed[0].contains("endpoint e1"), "{removed:?}");
    assert!(!run(&one.plug.sandbox, "ip", "link show eth0").0);
    assert!(NetNs::open_pin(&foreign).is_ok());
    assert!(world.owner.pins().unwrap().is_empty());
    assert!(cleanup::run(&world.owner).await.removed.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_does_not_bury_what_is_not_ours() {
    let world = World::new();
    let path = world.folder.join("text");
    std::fs::write(&path, "someone's").unwrap();
    let error = NetNs::create_pinned(&path).unwrap_err();
    assert!(matches!(error, Error::PinObstructed { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "someone's");
    let error = NetNs::open(&NetNsRef::Path("/proc/self/ns/mnt".into())).unwrap_err();
    assert!(matches!(error, Error::NotANamespace { .. }), "{error}");
    assert_eq!(NetNs::open(&NetNsRef::Pid(std::process::id())).unwrap(), NetNs::host().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_interface_of_a_vtep_is_found_by_its_address() {
    let mut world = World::new();
    let host = world.sandbox("host");
    ip(&host, "link add eth0 mtu 1400 type veth peer name other");
    ip(&host, "address add 198.51.100.1/24 dev eth0");
    ip(&host, "link set eth0 up");
    ip(&host, "link set other up");
    ip(&host, "route add 203.0.113.0/24 via 198.51.100.9 mtu 1300");
    let vtep = "198.51.100.1".parse().unwrap();
    let found = underlay::interface(&host, vtep).await.unwrap();
    assert_eq!((&*found.name, found.mtu, found.prefix_len), ("eth0", 1400, 24));
    let error = underlay::interface(&host, "198.51.100.2".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("198.51.100.1/24 (eth0)"), "{error}");
    let path = async |to: &str| underlay::path(&host, vtep, to.parse().unwrap()).await.unwrap();
    assert_eq!(path("198.51.100.9").await.unwrap().mtu, 1400);
    assert_eq!(path("203.0.113.1").await.unwrap().mtu, 1300);
    assert_eq!(path("192.0.2.1").await, None);
}

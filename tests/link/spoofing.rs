//! What a sandbox cannot claim to be.

use std::time::{Duration, Instant};

use encap::MacAddr;
use skybridge::link::endpoint::link_local;
use skybridge::link::source_check;

use super::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoofed_mac_is_stopped_by_the_locked_port_alone() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, two] = world.pair(&network, false).await;
    let mark = b"skybridge-mark-1";
    let sniffer = sniffer(&two.plug.sandbox);
    let source = [192, 0, 2, 1];
    for thief in [two.plug.mac, MacAddr([0x02, 0, 0x5e, 0, 0x53, 9])] {
        inject(&one, &ipv4(thief, MacAddr::BROADCAST, source, mark));
    }
    assert_eq!(frames(&sniffer, Duration::from_millis(200), mark).len(), 0);
    inject(&one, &ipv4(one.plug.mac, two.plug.mac, source, mark));
    assert_eq!(frames(&sniffer, Duration::from_millis(200), mark).len(), 1);
    // Nor did the bridge come to believe it.
    let fdb = network.inspect().await.unwrap().fdb;
    let entry = fdb.iter().find(|entry| entry.mac == two.plug.mac).unwrap();
    assert_eq!(entry.port, two.port.index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoofed_addresses_are_stopped_and_counted() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, two] = world.pair(&network, false).await;
    let both = [guarded(&one), guarded(&two)];
    let started = Instant::now();
    source_check::apply(&network, &both).await.unwrap();
    println!("source check of two ports {:?}", started.elapsed());
    let (mac, mark) = (one.plug.mac, b"skybridge-mark-2");
    let own = link_local(mac).to_string();
    let other = MacAddr([0x02, 0, 0x5e, 0, 0x53, 9]);
    let sniffer = sniffer(&two.plug.sandbox);
    let tagged = {
        let mut frame = ipv4(mac, two.plug.mac, [192, 0, 2, 77], mark);
        frame.splice(12..12, [0x81, 0, 0, 5]);
        frame
    };
    for wrong in [
        ipv4(other, two.plug.mac, [192, 0, 2, 1], mark),
        ipv4(mac, two.plug.mac, [192, 0, 2, 77], mark),
        ipv4(mac, two.plug.mac, [0; 4], mark),
        tagged,
        [arp(mac, mac, [192, 0, 2, 77]), mark.to_vec()].concat(),
        [arp(mac, other, [192, 0, 2, 1]), mark.to_vec()].concat(),
        ipv6(mac, "2001:db8::77", 253, mark),
        ipv6(mac, "fe80::77", 253, mark),
        ipv6(mac, &own, 58, &advertisement("2001:db8::2", mark)),
    ] {
        inject(&one, &wrong);
    }
    assert_eq!(frames(&sniffer, Duration::from_millis(200), mark).len(), 0);
    let drops = source_check::drops(&network).await.unwrap();
    let counted = drops[&one.port.name];
    let kinds = [counted.mac, counted.arp, counted.ip, counted.ip6, counted.nd];
    assert_eq!(kinds, [1, 2, 3, 2, 1], "{drops:?}");
    assert_eq!(drops[&two.port.name].total(), 0);

    let right = [
        [arp(mac, mac, [192, 0, 2, 1]), mark.to_vec()].concat(),
        [arp(mac, mac, [0; 4]), mark.to_vec()].concat(),
        ipv4(mac, two.plug.mac, [192, 0, 2, 1], mark),
        ipv6(mac, "2001:db8::1", 253, mark),
        ipv6(mac, "::", 253, mark),
        ipv6(mac, &own, 58, &advertisement("2001:db8::1", mark)),
    ];
    right.iter().for_each(|frame| inject(&one, frame));
    assert_eq!(frames(&sniffer, Duration::from_millis(200), mark).len(), right.len());
    assert!(exchange(&one, &two, 0).is_some() && exchange(&two, &one, 1).is_some());

    // Rules of a port that stays keep their counters, those of one that goes are removed.
    source_check::apply(&network, &both[..1]).await.unwrap();
    let drops = source_check::drops(&network).await.unwrap();
    assert_eq!(drops.keys().collect::<Vec<_>>(), [&one.port.name]);
    assert_eq!(drops[&one.port.name].total(), counted.total());
    source_check::remove(&network).await.unwrap();
    assert!(source_check::drops(&network).await.unwrap().is_empty());

    // A table of another layout is replaced.
    let space = network.namespace();
    for text in ["table bridge skybridge", "map bridge skybridge ports { type ifname : verdict; }"]
    {
        let (right, text) = run(space, "nft", &format!("add {text}"));
        assert!(right, "{text}");
    }
    source_check::apply(&network, &both).await.unwrap();
    assert_eq!(source_check::drops(&network).await.unwrap().len(), 2);
    assert!(exchange(&one, &two, 0).is_some() && exchange(&two, &one, 1).is_some());
}

//! Static VTEPs, what is imported of them, and networks with a port of their own or like Swarm's.

use super::*;

#[test]
fn static_vteps_are_flooded_to_and_make_the_network_learn() {
    let mut agent = three();
    let mut record = network_record("n1", 4096);
    let mut vtep = StaticVtep::new(ip("203.0.113.9"));
    vtep.macs = vec![StaticMac { mac: mac(9), ips: vec![ip("192.0.2.9")] }];
    record.static_vteps = vec![vtep];
    agent.put_network(record.clone());
    let key = agent.reconciler.network_key(&network_id("n1")).unwrap();
    let tables = agent.tables();
    let network = tables.network(key).unwrap();
    assert!(network.params().learning && network.params().flood_unknown);
    assert!(network.params().flood_arp);
    assert_eq!(agent.flood("n1"), set(&["203.0.113.9", "h2", "h3"]));
    assert_eq!(network.mac(mac(9)).unwrap().origin, Origin::Static);
    assert_eq!(network.neighbor(ip("192.0.2.9")).unwrap().mac, mac(9));
    assert_eq!(network.static_vteps().len(), 1);
    // Changed, then gone.
    record.static_vteps[0].macs.clear();
    record.static_vteps[0].port = Some(8472);
    agent.put_network(record.clone());
    assert_eq!(agent.place_of("n1", mac(9)), None);
    record.static_vteps.clear();
    agent.put_network(record);
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    assert_eq!(agent.tables().vteps_len(), 2);
}

/// What a device says late, or of an address that was given out twice, does not lead our own astray.
#[test]
fn what_an_endpoint_claims_is_no_import() {
    let mut agent = three();
    let mut record = network_record("n1", 4096);
    let mut vtep = StaticVtep::new(ip("203.0.113.9"));
    let known = |last: u8| ImportedMac {
        ips: vec![ip(&format!("192.0.2.{last}"))],
        by: vec![host("h3")],
        ..ImportedMac::new(mac(last))
    };
    vtep.imported = vec![known(7), known(8)];
    record.static_vteps = vec![vtep];
    agent.put_network(record.clone());
    assert_eq!(agent.place_of("n1", mac(7)).as_deref(), Some("203.0.113.9"));
    // The one has the MAC, the other has the address.
    agent.put_endpoint(endpoint_record("n1", "e7", "h2", mac(7), &[]));
    agent.put_endpoint(endpoint_record("n1", "e8", "h2", mac(18), &["192.0.2.8"]));
    agent.put_network(record);
    let key = agent.reconciler.network_key(&network_id("n1")).unwrap();
    assert_eq!(agent.place_of("n1", mac(7)).as_deref(), Some("h2"));
    assert_eq!(agent.place_of("n1", mac(8)).as_deref(), Some("203.0.113.9"));
    let tables = agent.tables();
    let network = tables.network(key).unwrap();
    assert!(network.neighbor(ip("192.0.2.7")).is_none());
    assert_eq!(network.neighbor(ip("192.0.2.8")).unwrap().mac, mac(18));
    // With the endpoints gone the device is believed again.
    for id in ["e7", "e8"] {
        agent.delete_endpoint("n1", id);
    }
    assert_eq!(agent.place_of("n1", mac(7)).as_deref(), Some("203.0.113.9"));
    let tables = agent.tables();
    assert_eq!(tables.network(key).unwrap().neighbor(ip("192.0.2.8")).unwrap().mac, mac(8));
}

/// Two networks name one address, each with its own port.
#[test]
fn a_static_address_is_reached_at_the_port_of_each_network() {
    let mut agent = three();
    for (name, vni, port) in [("n1", 4096, 4789), ("n2", 4097, 4790)] {
        let mut record = network_record(name, vni);
        record.udp_port = Some(port);
        record.static_vteps = vec![StaticVtep::new(ip("203.0.113.9"))];
        agent.put_network(record);
        let deltas = agent.reconciler.activate(&agent.view, &network_id(name));
        agent.write(&deltas);
        let key = agent.reconciler.network_key(&network_id(name)).unwrap();
        let tables = agent.tables();
        let statics = tables.network(key).unwrap().static_vteps();
        let ports: Vec<u16> = statics.iter().map(|key| tables.vtep(*key).unwrap().port).collect();
        assert_eq!(ports, [port]);
    }
}

#[test]
fn swarm_networks_have_no_broadcast_and_no_df() {
    let mut agent = three();
    let mut record = network_record("n1", 4096);
    record.options.compat = Some(Compat::Swarm);
    agent.put_network(record);
    let key = agent.reconciler.network_key(&network_id("n1")).unwrap();
    let tables = agent.tables();
    let params = tables.network(key).unwrap().params();
    assert!(!params.df && !params.flood_broadcast);
}

/// What Docker's overlay knows is all there is: nothing is learned or flooded, also where static
/// VTEPs are, and its containers have one MTU whatever the underlay takes.
#[test]
fn swarm_networks_learn_nothing_and_have_the_overlays_mtu() {
    let mut agent = Agent::with(Defaults {
        vteps: vec![VtepRecord { mtu: 9000, ..VtepRecord::new(ip("198.51.100.1"), 4789) }],
        ..Defaults::default()
    });
    let mut record = network_record("n1", 4096);
    record.options.compat = Some(Compat::Swarm);
    let mut vtep = StaticVtep::new(ip("203.0.113.9"));
    let (own, other) = (host("h2"), host("h3"));
    let by = vec![own, other];
    vtep.imported =
        vec![ImportedMac { ips: vec![ip("192.0.2.9")], by, ..ImportedMac::new(mac(9)) }];
    record.static_vteps = vec![vtep];
    agent.put_network(record.clone());
    agent.put_endpoint(endpoint_record("n1", "mine", "own", mac(1), &[]));
    let key = agent.reconciler.network_key(&network_id("n1")).unwrap();
    let params = |agent: &Agent| agent.tables().network(key).unwrap().params().clone();
    let found = params(&agent);
    assert!(!found.learning && !found.flood_unknown && !found.flood_arp);
    assert_eq!(found.mtu, 1450);
    let tables = agent.tables();
    let network = tables.network(key).unwrap();
    assert_eq!(network.mac(mac(9)).unwrap().origin, Origin::Static, "imported, and known");
    assert_eq!(network.neighbor(ip("192.0.2.9")).unwrap().mac, mac(9));
    record.mtu = Some(1400);
    agent.put_network(record.clone());
    assert_eq!(params(&agent).mtu, 1400);
    record.options.learning = Some(true);
    agent.put_network(record);
    assert!(params(&agent).learning, "who asks for it has it");
}

/// A network with a UDP port of its own reaches every host at that port, whatever the host's is.
#[test]
fn a_port_of_its_own_holds_on_every_host() {
    let mut agent = three();
    let mut record = network_record("n2", 4097);
    record.udp_port = Some(4790);
    // On the address of a host: what Docker's own overlay has there.
    record.static_vteps = vec![StaticVtep::new(ip("198.51.100.2"))];
    agent.put_network(record);
    agent.put_endpoint(endpoint_record("n2", "mine", "own", mac(21), &[]));
    agent.put_endpoint(endpoint_record("n2", "theirs", "h2", mac(22), &["192.0.2.22"]));
    let port = |agent: &Agent, network: &str, last: u8| {
        let key = agent.reconciler.network_key(&network_id(network)).unwrap();
        let tables = agent.tables();
        match tables.network(key).unwrap().mac(mac(last)).unwrap().place {
            Place::Vtep(key) => tables.vtep(key).map(|vtep| (vtep.host.clone(), vtep.port)),
            Place::Local => None,
        }
    };
    assert_eq!(port(&agent, "n2", 22), Some((Some("h2".into()), 4790)));
    assert_eq!(port(&agent, "n1", 2), Some((Some("h2".into()), 4789)));
    assert_eq!(agent.flood("n2"), set(&["h2", "198.51.100.2"]));
    // Every network admits what comes from the host, so the host has the address.
    let tables = agent.tables();
    let seen = tables.vtep_by_address(ip("198.51.100.2")).unwrap();
    assert_eq!(tables.vtep(seen).unwrap().host.as_deref(), Some("h2"));
    let before = tables.vteps_len();
    agent.delete(Key::Network(network_id("n2")));
    assert_eq!(agent.tables().vteps_len(), before - 3, "two hosts at that port, one static VTEP");
}

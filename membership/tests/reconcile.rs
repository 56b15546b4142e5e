//! From view to tables, without a store: the tables are those of the `fdb` crate.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::{MacAddr, Vni};
use fdb::{Delta, Millis, Origin, OriginKind, Place, Revision, Snapshot, VtepKey, Writer};
use membership::key::{EndpointId, HostId, HostName, Key, NetworkId, NetworkName};
use membership::reconcile::{Claim, Defaults, Reconciler};
use membership::record::{
    Compat, EndpointRecord, Extra, HostRecord, ImportedMac, NetworkRecord, Record, StaticMac,
    StaticVtep, VERSION, VtepRecord,
};
use membership::view::View;
use membership::watch::Event;
use proptest::prelude::*;

fn host(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0, 0, 0x5e, 0, 0x53, last])
}

fn network_id(text: &str) -> NetworkId {
    NetworkId::new(text).unwrap()
}

fn host_record(name: &str, vteps: &[(&str, u16)]) -> HostRecord {
    let id = HostId::new(format!("id-{name}")).unwrap();
    let mut record = HostRecord::new(host(name), id, 1, mac(0xff));
    record.vteps = vteps
        .iter()
        .map(|(address, mtu)| VtepRecord { mtu: *mtu, ..VtepRecord::new(ip(address), 4789) })
        .collect();
    record
}

fn network_record(id: &str, vni: u32) -> NetworkRecord {
    let name = NetworkName::new(format!("net-{id}")).unwrap();
    let mut record = NetworkRecord::new(network_id(id), name, Vni::new(vni).unwrap());
    record.subnets = vec!["192.0.2.0/24".parse().unwrap()];
    record.created = 0;
    record
}

fn endpoint_record(
    network: &str,
    id: &str,
    on: &str,
    mac: MacAddr,
    ips: &[&str],
) -> EndpointRecord {
    EndpointRecord {
        version: VERSION,
        id: EndpointId::new(id).unwrap(),
        network: network_id(network),
        host: host(on),
        incarnation: 1,
        mac,
        ips: ips.iter().map(|text| ip(text)).collect(),
        name: None,
        labels: BTreeMap::new(),
        created: 0,
        extra: Extra::new(),
    }
}

/// View, reconciler and tables, wired as an agent wires them.
struct Agent {
    view: View,
    reconciler: Reconciler,
    writer: Writer,
    now: Millis,
    revision: i64,
}

impl Agent {
    fn new() -> Self {
        Self::with(Defaults {
            vteps: vec![VtepRecord::new(ip("198.51.100.1"), 4789)],
            ..Defaults::default()
        })
    }

    fn with(defaults: Defaults) -> Self {
        Self {
            view: View::new(),
            reconciler: Reconciler::new(host("own"), defaults),
            writer: fdb::channel().0,
            now: Millis(1_000_000),
            revision: 0,
        }
    }

    fn event(&mut self, event: Event) -> Vec<Delta> {
        let change = self.view.apply(event);
        let deltas = self.reconciler.apply(&self.view, &change, self.now);
        self.write(&deltas);
        deltas
    }

    fn write(&mut self, deltas: &[Delta]) {
        for delta in deltas {
            self.writer.apply(delta.clone());
        }
        let stats = self.writer.stats();
        assert_eq!((stats.unknown_network, stats.refused, stats.stale), (0, 0, 0), "{deltas:?}");
    }

    fn put(&mut self, key: Key, record: Record) -> Vec<Delta> {
        self.revision += 1;
        let revision = Revision(self.revision);
        self.event(Event::Put { key, record: Box::new(record), revision })
    }

    fn delete(&mut self, key: Key) -> Vec<Delta> {
        self.revision += 1;
        self.event(Event::Delete { key, revision: Revision(self.revision) })
    }

    fn put_host(&mut self, record: HostRecord) -> Vec<Delta> {
        let mut deltas = self.put(Key::Host(record.name.clone()), Record::Host(record.clone()));
        deltas.extend(self.put(Key::KnownHost(record.name.clone()), Record::KnownHost(record)));
        deltas
    }

    fn expire(&mut self, name: &str) -> Vec<Delta> {
        self.delete(Key::Host(host(name)))
    }

    fn put_network(&mut self, record: NetworkRecord) -> Vec<Delta> {
        self.put(Key::Network(record.id.clone()), Record::Network(record))
    }

    fn put_endpoint(&mut self, record: EndpointRecord) -> Vec<Delta> {
        let key = Key::Endpoint(record.network.clone(), record.id.clone());
        self.put(key, Record::Endpoint(record))
    }

    fn delete_endpoint(&mut self, network: &str, id: &str) -> Vec<Delta> {
        self.delete(Key::Endpoint(network_id(network), EndpointId::new(id).unwrap()))
    }

    /// Lets time pass, with every tick that is due.
    fn pass(&mut self, span: u64) {
        let end = Millis(self.now.0 + span);
        while let Some(deadline) = self.reconciler.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(deadline);
            let deltas = self.reconciler.tick(&self.view, self.now);
            self.write(&deltas);
        }
        self.now = end;
    }

    fn tables(&self) -> Snapshot {
        self.writer.working().clone()
    }

    fn flood(&self, network: &str) -> BTreeSet<String> {
        let key = self.reconciler.network_key(&network_id(network)).unwrap();
        let tables = self.tables();
        let flood = tables.network(key).unwrap().flood().to_vec();
        flood.iter().map(|key| place(&tables, Place::Vtep(*key))).collect()
    }

    fn place_of(&self, network: &str, mac: MacAddr) -> Option<String> {
        let key = self.reconciler.network_key(&network_id(network))?;
        let tables = self.tables();
        tables.network(key)?.mac(mac).map(|entry| place(&tables, entry.place))
    }
}

fn place(tables: &Snapshot, place: Place) -> String {
    match place {
        Place::Local => "local".to_owned(),
        Place::Vtep(key) => {
            let vtep = tables.vtep(key).expect("an entry points to a VTEP that is there");
            vtep.host.as_ref().map_or_else(|| vtep.address.to_string(), ToString::to_string)
        }
    }
}

/// An agent with two other hosts and one network that it takes part in.
fn three() -> Agent {
    three_with(Defaults {
        vteps: vec![VtepRecord::new(ip("198.51.100.1"), 4789)],
        ..Defaults::default()
    })
}

fn three_with(defaults: Defaults) -> Agent {
    let mut agent = Agent::with(defaults);
    agent.put_host(host_record("own", &[("198.51.100.1", 0)]));
    agent.put_host(host_record("h2", &[("198.51.100.2", 0)]));
    agent.put_host(host_record("h3", &[("198.51.100.3", 0)]));
    agent.put_network(network_record("n1", 4096));
    agent.put_endpoint(endpoint_record("n1", "mine", "own", mac(1), &["192.0.2.1"]));
    agent.put_endpoint(endpoint_record("n1", "e2", "h2", mac(2), &["192.0.2.2"]));
    agent.put_endpoint(endpoint_record("n1", "e3", "h3", mac(3), &["192.0.2.3"]));
    agent
}

fn set(hosts: &[&str]) -> BTreeSet<String> {
    hosts.iter().map(ToString::to_string).collect()
}

#[test]
fn entries_of_a_network_with_a_local_endpoint() {
    let agent = three();
    assert_eq!(agent.place_of("n1", mac(1)).as_deref(), Some("local"));
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h2"));
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    let key = agent.reconciler.network_key(&network_id("n1")).unwrap();
    let tables = agent.tables();
    let network = tables.network(key).unwrap();
    let neighbor = network.neighbor(ip("192.0.2.3")).unwrap();
    assert_eq!(neighbor.mac, mac(3));
    assert!(matches!(neighbor.origin, Origin::Store { .. }));
    let params = network.params();
    assert!(!params.learning && !params.flood_unknown && !params.flood_arp);
    assert!(params.flood_broadcast && params.df && !params.switch_local);
    assert_eq!((params.mtu, params.udp_port), (1450, 4789));
    assert_eq!(agent.reconciler.network_of(key), Some(&network_id("n1")));
}

#[test]
fn a_network_without_local_endpoint_has_no_tables_until_asked_for() {
    let mut agent = three();
    agent.put_network(network_record("n2", 4097));
    agent.put_endpoint(endpoint_record("n2", "e2", "h2", mac(2), &["192.0.2.2"]));
    assert_eq!(agent.reconciler.network_key(&network_id("n2")), None);
    let deltas = agent.reconciler.activate(&agent.view, &network_id("n2"));
    agent.write(&deltas);
    assert_eq!(agent.place_of("n2", mac(2)).as_deref(), Some("h2"));
    let deltas = agent.reconciler.deactivate(&agent.view, &network_id("n2"));
    assert!(matches!(deltas.as_slice(), [Delta::RemoveNetwork { .. }]), "{deltas:?}");
    // The last local endpoint goes, the tables too; the slot is used again.
    let before = agent.reconciler.network_key(&network_id("n1")).unwrap();
    agent.delete_endpoint("n1", "mine");
    assert_eq!(agent.reconciler.network_key(&network_id("n1")), None);
    let deltas = agent.reconciler.activate(&agent.view, &network_id("n2"));
    agent.write(&deltas);
    assert_eq!(agent.reconciler.network_key(&network_id("n2")), Some(before));
    // Asked for before its record is known.
    let deltas = agent.reconciler.activate(&agent.view, &network_id("n3"));
    assert!(deltas.is_empty());
    agent.put_network(network_record("n3", 4098));
    assert!(agent.reconciler.network_key(&network_id("n3")).is_some());
}

#[test]
fn a_host_that_changes_its_address_keeps_its_slot() {
    let mut agent = three();
    let before = agent.reconciler.vtep_key(&host("h2")).unwrap();
    let deltas = agent.put_host(host_record("h2", &[("198.51.100.22", 0)]));
    assert_eq!(deltas.len(), 1, "one put of the VTEP, no entry moves: {deltas:?}");
    let Delta::PutVtep { key, vtep } = &deltas[0] else { panic!("{deltas:?}") };
    assert_eq!((*key, vtep.address), (before, ip("198.51.100.22")));
    assert_eq!(agent.reconciler.host_of(before), Some(&host("h2")));
}

#[test]
fn a_host_is_reached_by_a_family_that_we_have() {
    let mut agent = three();
    agent.put_host(host_record("h2", &[("2001:db8::2", 0), ("198.51.100.2", 0)]));
    let key = agent.reconciler.vtep_key(&host("h2")).unwrap();
    assert_eq!(agent.tables().vtep(key).unwrap().address, ip("198.51.100.2"));
    assert!(agent.tables().vtep_by_address(ip("2001:db8::2")).is_some(), "its other source");
    // Without a common family it has no place, and comes back with one.
    agent.put_host(host_record("h2", &[("2001:db8::2", 0)]));
    assert_eq!(agent.place_of("n1", mac(2)), None);
    assert_eq!(agent.flood("n1"), set(&["h3"]));
    agent.put_host(host_record("h2", &[("198.51.100.2", 0)]));
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h2"));
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
}

#[test]
fn a_suspect_host_keeps_its_unicast_and_leaves_the_flood_list_later() {
    let mut agent = three();
    for number in 4..9 {
        let name = format!("h{number}");
        agent.put_host(host_record(&name, &[(&format!("198.51.100.{number}"), 0)]));
    }
    agent.expire("h2");
    let key = agent.reconciler.vtep_key(&host("h2")).unwrap();
    assert!(agent.tables().vtep(key).unwrap().suspect);
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h2"));
    agent.pass(29_000);
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    // Its VTEP is heard: another hold-down.
    agent.reconciler.heard(key, agent.now);
    agent.pass(29_000);
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    agent.pass(1_000);
    assert_eq!(agent.flood("n1"), set(&["h3"]));
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h2"));
    assert_eq!(agent.reconciler.next_deadline(), None);
    // It returns.
    agent.put_host(host_record("h2", &[("198.51.100.2", 0)]));
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    assert!(!agent.tables().vtep(key).unwrap().suspect);
    assert_eq!(agent.reconciler.suspects().count(), 0);
}

#[test]
fn a_collected_host_takes_its_entries_with_it() {
    let mut agent = three();
    agent.expire("h2");
    agent.delete(Key::KnownHost(host("h2")));
    assert_eq!(agent.place_of("n1", mac(2)), None);
    assert_eq!(agent.flood("n1"), set(&["h3"]));
    assert_eq!(agent.tables().vteps_len(), 1);
    // The slot goes to the next host, and the old entries are not its.
    agent.put_host(host_record("h4", &[("198.51.100.4", 0)]));
    assert_eq!(agent.tables().vteps_len(), 2);
    assert_eq!(agent.place_of("n1", mac(2)), None);
}

#[test]
fn many_that_expire_together_freeze_the_flood_lists() {
    let mut agent = three();
    agent.expire("h2");
    agent.expire("h3");
    agent.pass(60_000);
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    assert_eq!(agent.reconciler.frozen(), vec![&host("h2"), &host("h3")]);
    // One returns: the other is alone and leaves.
    agent.put_host(host_record("h3", &[("198.51.100.3", 0)]));
    agent.pass(0);
    assert_eq!(agent.flood("n1"), set(&["h3"]));
    assert!(agent.reconciler.frozen().is_empty());
}

#[test]
fn expiry_together_is_found_whatever_the_hold_down() {
    // Hosts that expire at these times, and who is in the flood list long after.
    for (hold_down, times, stay) in [
        (30_000, [0, 9_000], true),
        (30_000, [0, 11_000], false),
        // The first has left when the second expires, and comes back.
        (1_000, [0, 9_000], true),
        (1_000, [9_000, 0], true),
        (1_000, [0, 11_000], false),
        (0, [0, 0], true),
    ] {
        let defaults = Defaults {
            vteps: vec![VtepRecord::new(ip("198.51.100.1"), 4789)],
            hold_down: Millis(hold_down),
            ..Defaults::default()
        };
        let mut agent = three_with(defaults);
        let mut due: Vec<(u64, &str)> = times.into_iter().zip(["h2", "h3"]).collect();
        due.sort_unstable();
        let mut passed = 0;
        for (at, name) in due {
            agent.pass(at - passed);
            passed = at;
            agent.expire(name);
        }
        agent.pass(60_000);
        let all: &[&str] = if stay { &["h2", "h3"] } else { &[] };
        assert_eq!(agent.flood("n1"), set(all), "hold-down {hold_down}, expiry at {times:?}");
        assert_eq!(agent.reconciler.frozen().len(), all.len());
        assert!(agent.place_of("n1", mac(2)).is_some() && agent.place_of("n1", mac(3)).is_some());
    }
}

#[test]
fn a_host_that_left_and_is_heard_gets_broadcasts_again() {
    let mut agent = three();
    agent.expire("h2");
    let key = agent.reconciler.vtep_key(&host("h2")).unwrap();
    agent.pass(40_000);
    assert_eq!(agent.flood("n1"), set(&["h3"]));
    agent.reconciler.heard(key, agent.now);
    agent.pass(0);
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]));
    agent.pass(30_000);
    assert_eq!(agent.flood("n1"), set(&["h3"]));
    assert_eq!(agent.reconciler.next_deadline(), None);
}

#[test]
fn hosts_that_were_away_from_the_start_are_no_news() {
    let mut agent = Agent::new();
    agent.put_network(network_record("n1", 4096));
    agent.put_endpoint(endpoint_record("n1", "mine", "own", mac(1), &[]));
    for (name, address) in [("h2", "198.51.100.2"), ("h3", "198.51.100.3")] {
        let record = host_record(name, &[(address, 0)]);
        agent.put(Key::KnownHost(host(name)), Record::KnownHost(record));
        agent.put_endpoint(endpoint_record("n1", name, name, mac(address.as_bytes()[11]), &[]));
    }
    assert_eq!(agent.flood("n1"), set(&["h2", "h3"]), "the listing may not be complete yet");
    agent.pass(30_000);
    assert_eq!(agent.flood("n1"), set(&[]));
    assert!(agent.reconciler.frozen().is_empty());
    assert!(agent.place_of("n1", mac(b'2')).is_some(), "their endpoints are still reached");
}

#[test]
fn the_newer_claim_wins_and_the_loser_is_reported() {
    let mut agent = three();
    agent.put_endpoint(endpoint_record("n1", "moved", "h3", mac(2), &["192.0.2.2"]));
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h3"));
    let conflicts = agent.reconciler.conflicts();
    assert_eq!(conflicts.len(), 2, "MAC and address: {conflicts:?}");
    for conflict in &conflicts {
        assert_eq!(conflict.winner.as_str(), "moved");
        assert_eq!(conflict.losers, vec![(EndpointId::new("e2").unwrap(), host("h2"))]);
        assert!(matches!(conflict.claim, Claim::Mac(_) | Claim::Ip(_)));
    }
    // The newer one goes: the older one has it again, although its revision is lower.
    agent.delete_endpoint("n1", "moved");
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h2"));
    assert!(agent.reconciler.conflicts().is_empty());
}

#[test]
fn a_suspect_claim_loses_to_a_live_one_whatever_the_revision() {
    let mut agent = three();
    agent.put_endpoint(endpoint_record("n1", "moved", "h3", mac(2), &["192.0.2.2"]));
    agent.expire("h3");
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h2"), "the older one is alive");
    agent.expire("h2");
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h3"), "both suspect: the newer");
    agent.put_host(host_record("h2", &[("198.51.100.2", 0)]));
    agent.put_host(host_record("h3", &[("198.51.100.3", 0)]));
    assert_eq!(agent.place_of("n1", mac(2)).as_deref(), Some("h3"));
}

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

#[test]
fn the_mtu_is_the_least_of_the_hosts() {
    let mut agent = Agent::with(Defaults {
        vteps: vec![VtepRecord { mtu: 9000, ..VtepRecord::new(ip("198.51.100.1"), 4789) }],
        ..Defaults::default()
    });
    let n1 = network_id("n1");
    agent.put_network(network_record("n1", 4096));
    agent.put_endpoint(endpoint_record("n1", "mine", "own", mac(1), &[]));
    let mtu = |agent: &Agent| {
        let key = agent.reconciler.network_key(&n1).unwrap();
        let told = agent.reconciler.network_mtu(&agent.view, &n1).unwrap();
        assert_eq!(agent.tables().network(key).unwrap().params().mtu, told);
        told
    };
    assert_eq!(mtu(&agent), 8950);
    agent.put_host(host_record("h2", &[("198.51.100.2", 1500)]));
    assert_eq!(mtu(&agent), 1450);
    agent.put_host(host_record("h3", &[("2001:db8::3", 1500), ("198.51.100.3", 1500)]));
    assert_eq!(mtu(&agent), 1430, "somebody may be reached by IPv6");
    let mut record = network_record("n1", 4096);
    record.mtu = Some(1300);
    agent.put_network(record);
    assert_eq!(mtu(&agent), 1300);
    agent.put_network(network_record("n1", 4096));
    agent.expire("h3");
    assert_eq!(mtu(&agent), 1430, "it may come back");
    agent.put_host(host_record("h4", &[("198.51.100.4", 1500)]));
    agent.pass(30_000);
    assert_eq!(mtu(&agent), 1450);
}

/// What the tables say, by names instead of slots.
fn picture(tables: &Snapshot) -> String {
    let mut lines = BTreeSet::new();
    for (_, network) in tables.networks() {
        let id = &network.params().id;
        lines.insert(format!("{id} {:?}", network.params()));
        for (mac, entry) in network.macs() {
            lines.insert(format!("{id} {mac} {} {:?}", place(tables, entry.place), entry.origin));
        }
        for (ip, neighbor) in network.neighbors() {
            let at = place(tables, neighbor.place);
            lines.insert(format!("{id} {ip} {} {at} {:?}", neighbor.mac, neighbor.origin));
        }
        let names = |keys: &[VtepKey]| {
            keys.iter().map(|key| place(tables, Place::Vtep(*key))).collect::<BTreeSet<_>>()
        };
        lines.insert(format!("{id} flood {:?}", names(network.flood())));
        lines.insert(format!("{id} static {:?}", names(network.static_vteps())));
        assert_eq!(network.macs_of(OriginKind::Learned), 0);
    }
    for (_, vtep) in tables.vteps() {
        lines.insert(format!("{vtep:?}"));
    }
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

#[derive(Clone, Debug)]
enum Step {
    Activate(usize, bool),
    DeleteEndpoint(usize, usize),
    DeleteHost(usize),
    DeleteKnown(usize),
    DeleteNetwork(usize),
    PutEndpoint { network: usize, id: usize, host: usize, mac: u8, ips: Vec<u8> },
    PutHost { host: usize, vteps: Vec<u8> },
    PutNetwork { network: usize, statics: Vec<u8> },
}

const HOSTS: [&str; 4] = ["own", "h1", "h2", "h3"];
const NETWORKS: [&str; 2] = ["n0", "n1"];

fn step() -> impl Strategy<Value = Step> {
    let (network, host, id) = (0..NETWORKS.len(), 0..HOSTS.len(), 0..6_usize);
    prop_oneof![
        1 => (network.clone(), any::<bool>()).prop_map(|(n, on)| Step::Activate(n, on)),
        3 => (network.clone(), id.clone()).prop_map(|(n, id)| Step::DeleteEndpoint(n, id)),
        2 => host.clone().prop_map(Step::DeleteHost),
        1 => host.clone().prop_map(Step::DeleteKnown),
        1 => network.clone().prop_map(Step::DeleteNetwork),
        8 => (network.clone(), id, host.clone(), 1..5_u8, prop::collection::vec(1..6_u8, 0..3))
            .prop_map(|(network, id, host, mac, ips)| {
                Step::PutEndpoint { network, id, host, mac, ips }
            }),
        3 => (host, prop::collection::vec(1..200_u8, 0..3))
            .prop_map(|(host, vteps)| Step::PutHost { host, vteps }),
        2 => (network, prop::collection::vec(1..4_u8, 0..3))
            .prop_map(|(network, statics)| Step::PutNetwork { network, statics }),
    ]
}

impl Agent {
    fn step(&mut self, step: &Step) {
        let endpoint = |id: &usize| EndpointId::new(format!("e{id}")).unwrap();
        match step {
            Step::Activate(network, on) => {
                let id = network_id(NETWORKS[*network]);
                let deltas = if *on {
                    self.reconciler.activate(&self.view, &id)
                } else {
                    self.reconciler.deactivate(&self.view, &id)
                };
                self.write(&deltas);
            }
            Step::DeleteEndpoint(network, id) => {
                self.delete(Key::Endpoint(network_id(NETWORKS[*network]), endpoint(id)));
            }
            Step::DeleteHost(name) => drop(self.expire(HOSTS[*name])),
            Step::DeleteKnown(name) => drop(self.delete(Key::KnownHost(host(HOSTS[*name])))),
            Step::DeleteNetwork(network) => {
                self.delete(Key::Network(network_id(NETWORKS[*network])));
            }
            Step::PutEndpoint { network, id, host, mac: last, ips } => {
                let ips: Vec<String> = ips.iter().map(|last| format!("192.0.2.{last}")).collect();
                let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
                let id = endpoint(id);
                let (network, host) = (NETWORKS[*network], HOSTS[*host]);
                self.put_endpoint(endpoint_record(network, id.as_str(), host, mac(*last), &ips));
            }
            Step::PutHost { host, vteps } => {
                // A host's addresses are its own: what two hosts claim is refused by the session.
                let address = |last: &u8| format!("198.51.{host}.{last}");
                let addresses: BTreeSet<String> = vteps.iter().map(address).collect();
                let vteps: Vec<(&str, u16)> = addresses.iter().map(|a| (a.as_str(), 0)).collect();
                self.put_host(host_record(HOSTS[*host], &vteps));
            }
            Step::PutNetwork { network, statics } => {
                let mut record = network_record(NETWORKS[*network], 100 + *network as u32);
                record.udp_port = (*network == 1).then_some(4790);
                for last in statics.iter().collect::<BTreeSet<_>>() {
                    let mut vtep = StaticVtep::new(ip(&format!("203.0.113.{last}")));
                    let ips = vec![ip(&format!("192.0.2.{last}"))];
                    if *last == 3 {
                        let known = ImportedMac { ips, ..ImportedMac::new(mac(*last)) };
                        vtep.imported = vec![known];
                    } else {
                        vtep.macs = vec![StaticMac { mac: mac(*last), ips }];
                    }
                    // Networks that disagree about a VTEP.
                    vtep.port = (*last == 2).then_some(8472 + *network as u16);
                    record.static_vteps.push(vtep);
                }
                self.put_network(record);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Change by change or all at once, in any history: the tables are the same.
    #[test]
    fn following_equals_building(steps in prop::collection::vec(step(), 1..60)) {
        let mut agent = Agent::new();
        let mut asked = BTreeSet::new();
        for step in &steps {
            agent.step(step);
            if let Step::Activate(network, on) = step {
                if *on { asked.insert(*network); } else { asked.remove(network); }
            }
        }
        let mut fresh = Agent::new();
        let deltas = fresh.reconciler.resync(&agent.view, fresh.now);
        fresh.write(&deltas);
        for network in asked {
            let id = network_id(NETWORKS[network]);
            let deltas = fresh.reconciler.activate(&agent.view, &id);
            fresh.write(&deltas);
        }
        prop_assert_eq!(picture(&agent.tables()), picture(&fresh.tables()));
        prop_assert_eq!(agent.reconciler.conflicts(), fresh.reconciler.conflicts());
        // And again, with what is there: nothing to do.
        let again = agent.reconciler.resync(&agent.view, agent.now);
        prop_assert!(again.is_empty(), "{:?}", again);
    }
}

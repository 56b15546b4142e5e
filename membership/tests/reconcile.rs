//! From view to tables, without a store: the tables are those of the `fdb` crate.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "reconcile/property.rs"]
mod property;
#[path = "reconcile/statics.rs"]
mod statics;

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

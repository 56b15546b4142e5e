//! Routed networks from view to tables, without a store.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::{MacAddr, Vni};
use fdb::{Carrier, Delta, Millis, Place, Revision, Snapshot, Writer};
use ipnet::IpNet;
use membership::key::{EndpointId, HostId, HostName, Key, NetworkId};
use membership::reconcile::{Defaults, Reconciler};
use membership::record::{
    BlockRecord, EndpointRecord, Extra, HostRecord, Mode, NetworkRecord, Record, VERSION,
    VtepRecord,
};
use membership::view::View;
use membership::watch::Event;
use proptest::prelude::*;

const SUBNET: &str = "192.0.2.0/24";
const HOSTS: [&str; 4] = ["own", "h1", "h2", "h3"];

fn host(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

/// The block of eight addresses, as a /24 has them.
fn block(number: u8) -> IpNet {
    IpNet::new(address(number * 8), 29).unwrap()
}

struct Agent {
    view: View,
    reconciler: Reconciler,
    writer: Writer,
    revision: i64,
    /// What the store has, kept by simpler means.
    endpoints: BTreeMap<u8, (usize, Vec<u8>, i64)>,
    blocks: BTreeMap<u8, usize>,
    /// Present hosts, and those that were.
    present: BTreeSet<usize>,
    known: BTreeMap<usize, bool>,
}

impl Agent {
    fn new() -> Self {
        let own = VtepRecord::new(IpAddr::from([198, 51, 100, 1]), 4789).all_modes();
        let defaults = Defaults { vteps: vec![own], ..Defaults::default() };
        let mut agent = Self {
            view: View::new(),
            reconciler: Reconciler::new(host("own"), defaults),
            writer: fdb::channel().0,
            revision: 0,
            endpoints: BTreeMap::new(),
            blocks: BTreeMap::new(),
            present: BTreeSet::new(),
            known: BTreeMap::new(),
        };
        let deltas = agent.reconciler.activate(&agent.view, &Self::network());
        agent.write(&deltas);
        agent.put(Key::Network(Self::network()), Record::Network(Self::record()));
        agent
    }

    fn network() -> NetworkId {
        NetworkId::new("n1").unwrap()
    }

    fn record() -> NetworkRecord {
        let name = "red".parse().unwrap();
        let mut record = NetworkRecord::new(Self::network(), name, Vni::new(4096).unwrap());
        record.mode = Mode::IpIp;
        record.subnets = vec![SUBNET.parse().unwrap()];
        record.created = 0;
        record
    }

    fn write(&mut self, deltas: &[Delta]) {
        deltas.iter().for_each(|delta| self.writer.apply(delta.clone()));
        let stats = self.writer.stats();
        assert_eq!((stats.unknown_network, stats.refused, stats.stale), (0, 0, 0), "{deltas:?}");
    }

    fn event(&mut self, event: Event) -> Vec<Delta> {
        let change = self.view.apply(event);
        let deltas = self.reconciler.apply(&self.view, &change, Millis(1_000_000));
        self.write(&deltas);
        deltas
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

    fn put_host(&mut self, number: usize, carries: bool) {
        let name = host(HOSTS[number]);
        let id = HostId::new(format!("id-{name}")).unwrap();
        let mut record = HostRecord::new(name.clone(), id, 1, MacAddr([2, 0, 0, 0, 0, 1]));
        let vtep = VtepRecord::new(IpAddr::from([198, 51, 100, number as u8 + 1]), 4789);
        record.vteps = vec![if carries { vtep.all_modes() } else { vtep }];
        self.put(Key::Host(name.clone()), Record::Host(record.clone()));
        self.put(Key::KnownHost(name), Record::KnownHost(record));
        self.present.insert(number);
        self.known.insert(number, carries);
    }

    fn put_endpoint(&mut self, id: u8, on: usize, ips: &[u8]) {
        let record = EndpointRecord {
            version: VERSION,
            id: EndpointId::new(format!("e{id}")).unwrap(),
            network: Self::network(),
            host: host(HOSTS[on]),
            incarnation: 1,
            mac: MacAddr([0, 0, 0x5e, 0, 0x53, id]),
            ips: ips.iter().map(|last| address(*last)).collect(),
            name: None,
            labels: BTreeMap::new(),
            created: 0,
            extra: Extra::new(),
        };
        self.put(Key::Endpoint(Self::network(), record.id.clone()), Record::Endpoint(record));
        self.endpoints.insert(id, (on, ips.to_vec(), self.revision));
    }

    fn put_block(&mut self, number: u8, on: usize) -> Vec<Delta> {
        let key = Key::Block(Self::network(), block(number));
        self.blocks.insert(number, on);
        self.put(key, Record::Block(BlockRecord::new(host(HOSTS[on]))))
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::PutHost(number, carries) => self.put_host(*number, *carries),
            Step::Expire(number) => {
                self.delete(Key::Host(host(HOSTS[*number])));
                self.present.remove(number);
            }
            Step::Collect(number) => {
                self.delete(Key::KnownHost(host(HOSTS[*number])));
                if !self.present.contains(number) {
                    self.known.remove(number);
                }
            }
            Step::PutEndpoint(id, on, ips) => self.put_endpoint(*id, *on, ips),
            Step::DeleteEndpoint(id) => {
                let id_text = EndpointId::new(format!("e{id}")).unwrap();
                self.delete(Key::Endpoint(Self::network(), id_text));
                self.endpoints.remove(id);
            }
            Step::PutBlock(number, on) => drop(self.put_block(*number, *on)),
            Step::DeleteBlock(number) => {
                self.delete(Key::Block(Self::network(), block(*number)));
                self.blocks.remove(number);
            }
        }
    }

    fn tables(&self) -> Snapshot {
        self.writer.working().clone()
    }

    fn has(&self, tables: &Snapshot, last: u8) -> Option<String> {
        let key = self.reconciler.network_key(&Self::network()).unwrap();
        let route = tables.network(key).unwrap().route(address(last))?;
        Some(place(tables, route.place))
    }

    /// Where an address is, by the rules as they are written down.
    fn should_have(&self, last: u8) -> Option<String> {
        let reached = |on: usize| on == 0 || self.known.get(&on) == Some(&true);
        let claims =
            self.endpoints.iter().filter(|(_, (on, ips, _))| ips.contains(&last) && reached(*on));
        // The host is there; the newer; the greater id.
        let winner = claims
            .map(|(id, (on, _, revision))| {
                (*on == 0 || self.present.contains(on), *revision, id, *on)
            })
            .max();
        let owner = self.blocks.get(&(last / 8)).copied().filter(|on| reached(*on));
        let at = winner.map(|(.., on)| on).or(owner)?;
        Some(if at == 0 { "local".to_owned() } else { HOSTS[at].to_owned() })
    }
}

fn place(tables: &Snapshot, place: Place) -> String {
    match place {
        Place::Local => "local".to_owned(),
        Place::Vtep(key) => {
            let vtep = tables.vtep(key).expect("a route leads to a VTEP that is there");
            vtep.host.as_ref().map_or_else(|| vtep.address.to_string(), ToString::to_string)
        }
    }
}

/// What the tables say, by names instead of slots. Revisions are those of when a route came to be,
/// which whoever starts later does not know.
fn picture(tables: &Snapshot) -> Vec<String> {
    let (_, network) = tables.networks().next().unwrap();
    assert_eq!((network.macs_len(), network.neighbors_len(), network.flood().len()), (0, 0, 0));
    let mut lines: Vec<String> = network
        .routes()
        .map(|(prefix, route)| format!("{prefix} {}", place(tables, route.place)))
        .collect();
    lines.sort();
    lines
}

#[test]
fn blocks_carry_most_and_single_addresses_the_rest() {
    let mut agent = Agent::new();
    (1..4).for_each(|number| agent.put_host(number, true));
    agent.put_block(0, 0);
    agent.put_block(1, 1);
    agent.put_endpoint(1, 0, &[2]);
    agent.put_endpoint(2, 1, &[9]);
    assert_eq!(picture(&agent.tables()), ["192.0.2.0/29 local", "192.0.2.8/29 h1"]);
    // Borrowed out of another's block, and moved away with its address.
    agent.put_endpoint(3, 2, &[10]);
    agent.put_endpoint(1, 3, &[2]);
    assert_eq!(
        picture(&agent.tables()),
        ["192.0.2.0/29 local", "192.0.2.10/32 h2", "192.0.2.2/32 h3", "192.0.2.8/29 h1"]
    );
    // And back: its block says so again.
    agent.put_endpoint(1, 0, &[2]);
    assert_eq!(agent.has(&agent.tables(), 2).as_deref(), Some("local"));
    assert_eq!(picture(&agent.tables()).len(), 3);
    // An address that is given out changes the block's record, and no route.
    assert!(agent.put_block(1, 1).is_empty());
}

#[test]
fn the_parameters_say_how_packets_are_carried() {
    let mut agent = Agent::new();
    let params = |agent: &Agent| {
        let key = agent.reconciler.network_key(&Agent::network()).unwrap();
        agent.tables().network(key).unwrap().params().clone()
    };
    let before = params(&agent);
    let routed = before.routed.unwrap();
    assert_eq!((routed.carrier, routed.fallback, before.mtu), (Carrier::IpIp, false, 1480));
    assert_eq!((routed.ports.v4, routed.ports.v6, routed.subnets.len()), (4760, 4761, 1));
    assert!(!before.flood_broadcast && !before.flood_unknown && before.gateway.is_none());
    let mut record = Agent::record();
    record.mode = Mode::IpUdp;
    record.udp_port = Some(4770);
    agent.put(Key::Network(Agent::network()), Record::Network(record));
    let after = params(&agent);
    let routed = after.routed.unwrap();
    assert_eq!((routed.carrier, routed.ports.v6, after.mtu), (Carrier::IpUdp, 4771, 1472));
}

#[test]
fn a_host_that_cannot_carry_the_mode_has_no_routes_and_is_named() {
    let mut agent = Agent::new();
    agent.put_host(1, false);
    agent.put_block(1, 1);
    agent.put_endpoint(2, 1, &[9, 17]);
    assert!(picture(&agent.tables()).is_empty());
    let unable: Vec<_> = agent.reconciler.unable(&Agent::network()).cloned().collect();
    assert_eq!(unable, [host("h1")]);
    // It is upgraded.
    agent.put_host(1, true);
    assert_eq!(picture(&agent.tables()), ["192.0.2.17/32 h1", "192.0.2.8/29 h1"]);
    assert_eq!(agent.reconciler.unable(&Agent::network()).count(), 0);
}

/// Who starts without the store has the routes of the last run.
#[test]
fn blocks_are_in_the_snapshot() {
    let mut agent = Agent::new();
    agent.put_host(1, true);
    agent.put_block(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tables.json");
    agent.view.save(&path).unwrap();
    let mut fresh = Agent::new();
    fresh.view = View::load(&path).unwrap().unwrap();
    let deltas = fresh.reconciler.deactivate(&View::new(), &Agent::network());
    fresh.write(&deltas);
    let deltas = fresh.reconciler.resync(&fresh.view, Millis(1_000_000));
    fresh.write(&deltas);
    let deltas = fresh.reconciler.activate(&fresh.view, &Agent::network());
    fresh.write(&deltas);
    assert_eq!(picture(&fresh.tables()), ["192.0.2.8/29 h1"]);
}

#[derive(Clone, Debug)]
enum Step {
    Collect(usize),
    DeleteBlock(u8),
    DeleteEndpoint(u8),
    Expire(usize),
    PutBlock(u8, usize),
    PutEndpoint(u8, usize, Vec<u8>),
    PutHost(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let (other, any_host, block) = (1..HOSTS.len(), 0..HOSTS.len(), 0..3_u8);
    prop_oneof![
        1 => other.clone().prop_map(Step::Collect),
        2 => block.clone().prop_map(Step::DeleteBlock),
        3 => (0..6_u8).prop_map(Step::DeleteEndpoint),
        2 => other.clone().prop_map(Step::Expire),
        5 => (block, any_host.clone()).prop_map(|(block, on)| Step::PutBlock(block, on)),
        8 => (0..6_u8, any_host, prop::collection::vec(0..24_u8, 0..3))
            .prop_map(|(id, on, ips)| Step::PutEndpoint(id, on, ips)),
        4 => (other, prop::bool::weighted(0.85)).prop_map(|(on, can)| Step::PutHost(on, can)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// In any history the tables are those of who starts at its end, and every address leads to who
    /// has it.
    #[test]
    fn following_equals_building_and_the_rules(steps in prop::collection::vec(step(), 1..60)) {
        let mut agent = Agent::new();
        for step in &steps {
            agent.step(step);
            let tables = agent.tables();
            for last in 0..26 {
                let (has, should) = (agent.has(&tables, last), agent.should_have(last));
                prop_assert_eq!(has, should, "192.0.2.{} after {:?}", last, step);
            }
        }
        let mut fresh = Agent::new();
        fresh.view = agent.view.clone();
        let deltas = fresh.reconciler.deactivate(&View::new(), &Agent::network());
        fresh.write(&deltas);
        let deltas = fresh.reconciler.resync(&agent.view, Millis(1_000_000));
        fresh.write(&deltas);
        let deltas = fresh.reconciler.activate(&agent.view, &Agent::network());
        fresh.write(&deltas);
        prop_assert_eq!(picture(&agent.tables()), picture(&fresh.tables()));
        let again = agent.reconciler.resync(&agent.view, Millis(1_000_000));
        prop_assert!(again.is_empty(), "{:?}", again);
    }
}

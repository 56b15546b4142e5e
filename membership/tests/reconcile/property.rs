//! Following change by change comes to the same tables as building them anew.

use proptest::prelude::*;

use super::*;

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

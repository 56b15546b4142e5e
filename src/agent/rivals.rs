//! Records that contradict each other: each is right by itself, and not all can be.
//!
//! Transactions keep this program from writing such records; a person with `etcdctl`, or records
//! that were copied together from two stores, can. What two endpoints claim is told by the
//! reconciler, which has to choose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use membership::view::View;

/// What more than one has, by a key of its own.
pub(super) fn find(view: &View) -> Vec<(String, String)> {
    let mut claims: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for item in view.networks() {
        let record = &item.record;
        let who = format!("network {} ({})", record.name, record.id);
        let port = record.udp_port.map(|port| format!(" at UDP port {port}")).unwrap_or_default();
        claims.entry(format!("VNI {}{port}", record.vni)).or_default().insert(who.clone());
        claims.entry(format!("the network name {}", record.name)).or_default().insert(who);
    }
    for (name, host) in view.hosts() {
        let present = host.present.iter().flat_map(|item| &item.record.vteps);
        // A host that has gone may have left its address to another one.
        let addresses: BTreeSet<IpAddr> = present.map(|vtep| vtep.advertise).collect();
        for address in addresses {
            let claim = format!("VTEP address {address}");
            claims.entry(claim).or_default().insert(format!("host {name}"));
        }
    }
    let contested = claims.into_iter().filter(|(_, who)| who.len() > 1);
    contested
        .map(|(claim, who)| {
            let who = who.into_iter().collect::<Vec<_>>().join(" and ");
            (format!("rivals {claim}"), format!("{claim} belongs to {who} at the same time"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use encap::{MacAddr, Vni};
    use fdb::Revision;
    use membership::key::{HostId, HostName, Key, NetworkId, NetworkName};
    use membership::record::{HostRecord, NetworkRecord, Record, VtepRecord};
    use membership::watch::Event;

    use super::*;

    fn put(view: &mut View, key: Key, record: Record) {
        view.apply(Event::Put { key, record: Box::new(record), revision: Revision(1) });
    }

    fn network(view: &mut View, id: &str, name: &str, vni: u32, port: Option<u16>) {
        let id = NetworkId::new(id).unwrap();
        let (name, vni) = (NetworkName::new(name).unwrap(), Vni::new(vni).unwrap());
        let mut record = NetworkRecord::new(id.clone(), name, vni);
        record.udp_port = port;
        put(view, Key::Network(id), Record::Network(record));
    }

    fn host(view: &mut View, name: &str, present: bool) {
        let name = HostName::new(name).unwrap();
        let id = HostId::new(name.as_str()).unwrap();
        let mac = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
        let mut record = HostRecord::new(name.clone(), id, 1, mac);
        record.vteps = vec![VtepRecord::new("192.0.2.1".parse().unwrap(), 4789)];
        match present {
            true => put(view, Key::Host(name), Record::Host(record)),
            false => put(view, Key::KnownHost(name), Record::KnownHost(record)),
        }
    }

    #[test]
    fn only_what_cannot_be_is_told() {
        let mut view = View::new();
        network(&mut view, "n1", "blue", 7001, None);
        network(&mut view, "n2", "red", 7002, None);
        // The port tells them apart on the wire.
        network(&mut view, "n3", "green", 7001, Some(8472));
        host(&mut view, "h1", true);
        host(&mut view, "h0", false);
        assert_eq!(find(&view), []);
        network(&mut view, "n4", "blue", 7002, None);
        host(&mut view, "h2", true);
        let texts: Vec<String> = find(&view).into_iter().map(|(_, text)| text).collect();
        assert_eq!(
            texts,
            [
                "VNI 7002 belongs to network blue (n4) and network red (n2) at the same time",
                "VTEP address 192.0.2.1 belongs to host h1 and host h2 at the same time",
                "the network name blue belongs to network blue (n1) and network blue (n4) at the \
                 same time",
            ]
        );
    }
}

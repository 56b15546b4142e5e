//! Which network a packet is for that comes without a number of one.
//!
//! # Theory of operation
//!
//! ```text
//!   IP-in-IP        --> { 198.51.100.0/24 -> a, 2001:db8:1::/64 -> a, 203.0.113.0/25 -> b }
//!   UDP, port 4760  --> { 198.51.100.0/24 -> a,                       203.0.113.0/25 -> b }
//!   UDP, port 4761  --> {                       2001:db8:1::/64 -> a }
//!   UDP, port 6000  --> { 198.51.100.0/24 -> c }
//! ```
//!
//! Networks that share a way of arrival are one routing domain: the destination tells them apart, so
//! their subnets must not overlap, which whoever creates networks sees to. Where two do, the longer
//! prefix has an address, and of equal ones the network with the lower key.
//!
//! A network that is sent as IP-in-IP is taken from UDP as well: another host may have found that
//! IP-in-IP does not reach us.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::routes::Routes;
use crate::types::{Carrier, Network, NetworkKey, Via};

/// The routing domains, sorted by their way of arrival: a handful.
#[derive(Clone, Debug, Default)]
pub(crate) struct Domains(Arc<[(Via, Routes<NetworkKey>)]>);

impl Domains {
    /// Those of the networks, which come in ascending order of their keys.
    pub(crate) fn of<'a>(networks: impl Iterator<Item = (NetworkKey, &'a Network)>) -> Self {
        let mut domains: BTreeMap<Via, Routes<NetworkKey>> = BTreeMap::new();
        for (key, network) in networks {
            let Some(routed) = &network.routed else { continue };
            for subnet in &routed.subnets {
                let v4 = subnet.address().is_ipv4();
                let udp = Via::Udp(if v4 { routed.ports.v4 } else { routed.ports.v6 });
                let ip = (routed.carrier == Carrier::IpIp).then_some(Via::Ip);
                for via in ip.into_iter().chain([udp]) {
                    let routes = domains.entry(via).or_insert_with(Routes::new);
                    if routes.get(*subnet).is_none() {
                        // A fan-out of so few keys is never full.
                        let _ = routes.insert(*subnet, key);
                    }
                }
            }
        }
        Self(domains.into_iter().collect())
    }

    #[inline]
    pub(crate) fn find(&self, via: Via, destination: IpAddr) -> Option<NetworkKey> {
        let at = self.0.binary_search_by_key(&via, |(via, _)| *via).ok()?;
        self.0.get(at)?.1.find(destination).copied()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.iter().map(|(_, routes)| size_of::<Via>() + routes.memory_bytes()).sum()
    }
}

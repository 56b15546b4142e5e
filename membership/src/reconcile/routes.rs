//! The routes of a routed network: blocks of hosts, and single addresses that are elsewhere.
//!
//! # Theory of operation
//!
//! ```text
//!   block 198.51.100.64/26 of h2  ──►  198.51.100.64/26 via h2
//!   endpoint .70 on h2            ──►  nothing: its block says so
//!   endpoint .71 on h3            ──►  198.51.100.71/32 via h3   (moved there, or borrowed)
//! ```
//!
//! A host gives out addresses of its own blocks first, so almost all endpoints are where their
//! block's route leads, and tables stay as small as there are blocks. Who has an address is decided
//! as for MACs (`decide` of the module above); only what comes of it differs.
//!
//! A block's record changes with every address that is given out of it, and its route does not: an
//! entry keeps the revision at which it came to be where it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fdb::{Delta, NetworkKey, Origin, OriginKind, Place, Prefix, Revision, Route};
use ipnet::IpNet;

use super::Reconciler;
use super::network::place_of;
use crate::ipam::plan;
use crate::key::{HostName, NetworkId};
use crate::record::Mode;
use crate::view::View;

/// What the tables of one routed network have of routes.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) mode: Mode,
    subnets: Vec<IpNet>,
    blocks: BTreeMap<IpNet, (HostName, Revision)>,
    put: BTreeMap<Prefix, (Place, Revision)>,
}

impl Routes {
    pub(super) fn new(mode: Mode, subnets: Vec<IpNet>) -> Self {
        Self { mode, subnets, blocks: BTreeMap::new(), put: BTreeMap::new() }
    }

    /// Takes the subnets over; true when they are others than before.
    pub(super) fn set_subnets(&mut self, subnets: &[IpNet]) -> bool {
        let changed = self.subnets != subnets;
        if changed {
            self.subnets = subnets.to_vec();
        }
        changed
    }

    /// The host whose block an address lies in.
    fn owner(&self, ip: IpAddr) -> Option<&HostName> {
        let subnet = self.subnets.iter().copied().find(|subnet| subnet.contains(&ip))?;
        let (cidr, _) = plan::block_of(subnet, ip);
        self.blocks.get(&cidr).map(|(host, _)| host)
    }

    /// Makes the route of a single address what it shall be: who has it, on which host.
    pub(super) fn put_address(
        &mut self,
        key: NetworkKey,
        ip: IpAddr,
        winner: Option<(&HostName, Place, Revision)>,
        out: &mut Vec<Delta>,
    ) {
        let full = if ip.is_ipv4() { 32 } else { 128 };
        let Some(prefix) = Prefix::new(ip, full) else { return };
        let wanted = winner.filter(|(host, ..)| self.owner(ip) != Some(*host));
        self.set(key, prefix, wanted.map(|(_, place, revision)| (place, revision)), out);
    }

    fn set(
        &mut self,
        network: NetworkKey,
        prefix: Prefix,
        wanted: Option<(Place, Revision)>,
        out: &mut Vec<Delta>,
    ) {
        let before = self.put.get(&prefix).copied();
        if before.map(|(place, _)| place) == wanted.map(|(place, _)| place) {
            return;
        }
        let stays = matches!((before, wanted), (Some((_, old)), Some((_, new))) if new >= old);
        if before.is_some() && !stays {
            out.push(Delta::RemoveRoute { network, prefix, origin: OriginKind::Store });
            self.put.remove(&prefix);
        }
        if let Some((place, revision)) = wanted {
            let route = Route { place, origin: Origin::Store { revision } };
            out.push(Delta::PutRoute { network, prefix, route });
            self.put.insert(prefix, (place, revision));
        }
    }
}

impl Reconciler {
    /// The blocks of a network whose tables were just made.
    pub(super) fn refresh_blocks(
        &mut self,
        view: &View,
        network: &NetworkId,
        out: &mut Vec<Delta>,
    ) {
        let blocks: Vec<IpNet> = view.blocks_of(network).map(|(cidr, _)| *cidr).collect();
        for cidr in blocks {
            self.block_changed(view, network, cidr, out);
        }
    }

    /// A block came, went, or has another owner.
    pub(super) fn block_changed(
        &mut self,
        view: &View,
        network: &NetworkId,
        cidr: IpNet,
        out: &mut Vec<Delta>,
    ) {
        if cidr.prefix_len() == cidr.max_prefix_len() {
            // The blocks of the smallest subnets are single addresses, which have routes anyway.
            return;
        }
        let found = view.blocks_of(network).find(|(present, _)| **present == cidr);
        let now = found.map(|(_, item)| (item.record.host.clone(), item.revision()));
        let Some(tables) = self.tables.get_mut(network) else { return };
        let Some(routes) = tables.routes.as_mut() else { return };
        let before = match &now {
            Some(now) => routes.blocks.insert(cidr, now.clone()),
            None => routes.blocks.remove(&cidr),
        };
        if before.map(|(host, _)| host) == now.map(|(host, _)| host) {
            return;
        }
        self.put_block(network, cidr, out);
        // Addresses that the block's route led to may need their own now, and the other way round.
        let Some(tables) = self.tables.get(network) else { return };
        let inside = tables.addresses_in(cidr);
        self.decide(network, inside, out);
    }

    /// The routes of a host's blocks, when its place has changed.
    pub(super) fn refresh_blocks_of(
        &mut self,
        network: &NetworkId,
        host: &HostName,
        out: &mut Vec<Delta>,
    ) {
        let Some(routes) = self.tables.get(network).and_then(|tables| tables.routes.as_ref())
        else {
            return;
        };
        let of_host = routes.blocks.iter().filter(|(_, (owner, _))| owner == host);
        let blocks: Vec<IpNet> = of_host.map(|(cidr, _)| *cidr).collect();
        for cidr in blocks {
            self.put_block(network, cidr, out);
        }
    }

    fn put_block(&mut self, network: &NetworkId, cidr: IpNet, out: &mut Vec<Delta>) {
        let Some(tables) = self.tables.get_mut(network) else { return };
        let key = tables.key;
        let Some(routes) = tables.routes.as_mut() else { return };
        let Some(prefix) = Prefix::new(cidr.network(), cidr.prefix_len()) else { return };
        let wanted = routes.blocks.get(&cidr).and_then(|(host, revision)| {
            let place = place_of(&self.own, &self.vteps, host, routes.mode, None)?;
            Some((place, *revision))
        });
        routes.set(key, prefix, wanted, out);
    }
}

//! The IPAM driver: pools, and the addresses of containers before there is an endpoint.
//!
//! A pool is no record: its id says all of it. A gateway is no address that is given out: it is part
//! of the network, the same on every host, and so is what `--aux-address` sets aside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use encap::Vni;
use ipnet::IpNet;
use membership::ipam;
use membership::key::{EndpointId, Key, NetworkId, NetworkName};
use membership::record::{AddressRange, AddressRecord, NetworkRecord};
use serde_json::json;

use super::network::is_of_one_docker;
use super::options::Which;
use super::{Answer, Driver, types};
use crate::agent::state::{Attachment, Stage};
use crate::agent::{endpoint_error, network_error, state_error, store_error};
use crate::config::DockerScope;
use crate::control::types::Error;
use crate::driver::{attach, presence};

/// What an address is wanted for, in the options of a request.
const ADDRESS_TYPE: &str = "RequestAddressType";
const GATEWAY: &str = "com.docker.network.gateway";
/// How long an address that was asked for belongs to whom it was given, without an endpoint. Docker
/// goes on within milliseconds; afterwards its start has failed, and the next one asks again.
const JUST: Duration = Duration::from_secs(30);

/// What a pool is, in Docker's hands as a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolId {
    /// Its prefix.
    pub prefix: IpNet,
    /// What containers get addresses of, where that is less.
    pub range: Option<IpNet>,
    /// Which network it is of, where the user said so.
    pub which: Which,
    /// Tells a prefix that we chose from those that users wrote.
    pub chosen: Option<String>,
}

impl PoolId {
    /// Whether it says no more than its prefix.
    pub(super) fn is_bare(&self) -> bool {
        self.range.is_none() && self.which == Which::default() && self.chosen.is_none()
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        if let Some(range) = &self.range {
            write!(f, ";range={range}")?;
        }
        if let Some(name) = &self.which.network {
            write!(f, ";network={name}")?;
        }
        if let Some(vni) = &self.which.vni {
            write!(f, ";vni={vni}")?;
        }
        if let Some(chosen) = &self.chosen {
            write!(f, ";chosen={chosen}")?;
        }
        Ok(())
    }
}

impl FromStr for PoolId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            let shown: String = text.chars().take(96).collect();
            Error::bad_request(format!("`{shown}` is no pool of this driver"))
                .next_step("remove the network, and create it again")
        };
        let mut parts = text.split(';');
        let prefix = parts.next().and_then(|prefix| prefix.parse().ok()).ok_or_else(bad)?;
        let mut pool = Self { prefix, range: None, which: Which::default(), chosen: None };
        for part in parts {
            match part.split_once('=').ok_or_else(bad)? {
                ("range", range) => pool.range = Some(range.parse().map_err(|_| bad())?),
                ("network", name) => {
                    pool.which.network = Some(NetworkName::new(name).map_err(|_| bad())?);
                }
                ("vni", vni) => {
                    let vni = vni.parse().ok().and_then(Vni::new).ok_or_else(bad)?;
                    pool.which.vni = Some(vni);
                }
                ("chosen", nonce) => pool.chosen = Some(nonce.to_owned()),
                _ => return Err(bad()),
            }
        }
        Ok(pool)
    }
}

/// A network as it is for one allocation: only this prefix, and only its range.
pub(super) fn only(
    record: &NetworkRecord,
    prefixes: &[IpNet],
    range: Option<IpNet>,
) -> NetworkRecord {
    let mut record = record.clone();
    record.subnets.retain(|subnet| prefixes.contains(subnet));
    if let (Some(range), [prefix]) = (range, prefixes) {
        let below = before(range.network()).filter(|last| *last >= prefix.network());
        let above = after(range.broadcast()).filter(|first| *first <= prefix.broadcast());
        let below = below.and_then(|last| AddressRange::new(prefix.network(), last));
        let above = above.and_then(|first| AddressRange::new(first, prefix.broadcast()));
        record.exclude.extend(below.into_iter().chain(above));
    }
    record
}

fn before(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_sub(1).map(|ip| Ipv4Addr::from(ip).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_sub(1).map(|ip| Ipv6Addr::from(ip).into()),
    }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|ip| Ipv4Addr::from(ip).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|ip| Ipv6Addr::from(ip).into()),
    }
}

/// An address as Docker writes it, with or without a prefix length.
pub(super) fn address_of(text: &str) -> Result<IpAddr, Error> {
    let bare = text.split('/').next().unwrap_or_default();
    bare.parse().map_err(|_| Error::bad_request(format!("`{text}` is no address")))
}

/// A prefix as Docker writes it.
pub(super) fn prefix_of(text: &str) -> Result<IpNet, Error> {
    let prefix: Result<IpNet, _> = text.parse();
    prefix
        .map(|prefix| prefix.trunc())
        .map_err(|_| Error::bad_request(format!("`{text}` is no prefix such as 192.0.2.0/24")))
}

fn is_set_aside(network: &NetworkRecord, ip: IpAddr) -> bool {
    network.exclude.iter().any(|range| range.contains(ip))
}

fn given(ip: IpAddr, prefix: IpNet) -> Answer {
    Ok(json!({ "Address": format!("{ip}/{}", prefix.prefix_len()), "Data": {} }))
}

impl Driver {
    /// RequestPool.
    pub(super) async fn request_pool(&self, asked: types::Pool) -> Answer {
        let which = Which::of_pool(&asked.options)?;
        let all = self.networks().await?;
        let known = self.by_which(&all, &which)?;
        let mut chosen = None;
        let prefix = match (asked.pool.as_str(), known) {
            ("", _) if !asked.sub_pool.is_empty() => {
                return Err(Error::bad_request("an --ip-range needs the --subnet that it is of")
                    .next_step("give --subnet too"));
            }
            ("", Some(network)) => {
                let mut subnets = network.subnets.iter().copied();
                subnets.find(|subnet| subnet.addr().is_ipv6() == asked.v6).ok_or_else(|| {
                    let family = if asked.v6 { "IPv6" } else { "IPv4" };
                    Error::conflict(format!("network {} has no {family} subnet", network.name))
                        .next_step("`skybridge network inspect` shows those that it has")
                })?
            }
            ("", None) => match self.partner(&all, asked.v6).await? {
                Some(prefix) => prefix,
                None => {
                    chosen = Some(format!("{:08x}", rand::random::<u32>()));
                    self.choose(&all, asked.v6)?
                }
            },
            (text, _) => prefix_of(text)?,
        };
        let range = match asked.sub_pool.as_str() {
            "" => None,
            text => Some(prefix_of(text)?),
        };
        if let Some(range) = range.filter(|range| !prefix.contains(range)) {
            return Err(Error::bad_request(format!("range {range} is no part of {prefix}")));
        }
        if let Some(network) = known {
            super::network::check_subnet(network, prefix)?;
        }
        let pool = PoolId { prefix, range, which, chosen };
        if self.joins_by_prefix(&pool) {
            self.by_prefixes(&all, &[prefix])?;
        }
        if asked.pool.is_empty() && self.repeats.is_tired(&pool.to_string(), Instant::now()) {
            return Err(Error::conflict(format!("{prefix} is asked for over and over"))
                .cause("Docker seems to want another one, since this host has a route there")
                .next_step(format!("give --subnet {prefix}")));
        }
        let answer = json!({ "PoolID": pool.to_string(), "Pool": prefix.to_string(), "Data": {} });
        self.agent.dockers.ask(pool.to_string()).map_err(|err| state_error(&err))?;
        Ok(answer)
    }

    /// Whether a pool's network is the one with its prefix.
    pub(super) fn joins_by_prefix(&self, pool: &PoolId) -> bool {
        self.scope == DockerScope::Local && pool.which == Which::default() && pool.chosen.is_none()
    }

    /// The pool of this prefix that was asked for last.
    pub(super) fn pending(&self, prefix: IpNet) -> Option<PoolId> {
        self.all_pending().find(|pool| pool.prefix == prefix)
    }

    pub(super) fn all_pending(&self) -> impl Iterator<Item = PoolId> {
        self.agent.dockers.pending().into_iter().filter_map(|pool| pool.parse().ok())
    }

    /// RequestAddress.
    pub(super) async fn request_address(&self, asked: types::Address) -> Answer {
        let pool: PoolId = asked.pool.parse()?;
        let wanted = match asked.address.as_str() {
            "" => None,
            text => Some(address_of(text)?),
        };
        if let Some(ip) = wanted.filter(|ip| !pool.prefix.contains(ip)) {
            return Err(Error::bad_request(format!("address {ip} lies outside {}", pool.prefix))
                .next_step("ask for one of the subnet, or for none"));
        }
        if asked.options.get(ADDRESS_TYPE).is_some_and(|what| what == GATEWAY) {
            return self.gateway(&pool, wanted).await;
        }
        match (self.bound(&pool).await?, wanted) {
            // Set aside, by this network's creation on another host. Docker asks for it before it
            // tells of the network; a container that asks for it is refused its endpoint.
            (Some(network), Some(ip)) if is_set_aside(&network, ip) => given(ip, pool.prefix),
            (Some(network), _) => self.address(&pool, &network, wanted).await,
            // Of a network that is just being made: an address that is set aside.
            (None, Some(ip)) => given(ip, pool.prefix),
            (None, None) => {
                Err(Error::not_found(format!("no network of this store has {}", pool.prefix))
                    .next_step(
                        "use it with the network driver of the same name: `docker network create \
                         -d skybridge --ipam-driver skybridge`",
                    ))
            }
        }
    }

    /// A gateway, which is the same on every host.
    async fn gateway(&self, pool: &PoolId, wanted: Option<IpAddr>) -> Answer {
        let all = self.networks().await?;
        let known = match self.by_which(&all, &pool.which)? {
            None if self.joins_by_prefix(pool) => self.by_prefixes(&all, &[pool.prefix])?,
            known => known,
        };
        let present = known.and_then(|network| network.gateway_of(pool.prefix));
        match (known, present, wanted) {
            (_, Some(present), Some(wanted)) if present != wanted => {
                let name = known.map(|network| network.name.to_string()).unwrap_or_default();
                Err(Error::conflict(format!(
                    "network {name} has the gateway {present}, not {wanted}"
                ))
                .next_step(format!("give --gateway {present}, or leave it out")))
            }
            (_, Some(present), _) => given(present, pool.prefix),
            (Some(network), None, Some(wanted)) => {
                Err(Error::conflict(format!("network {} has no gateway {wanted}", network.name))
                    .next_step("leave --gateway out"))
            }
            // Docker wants one. This is no container's, whatever the network has.
            (Some(_), None, None) => given(pool.prefix.network(), pool.prefix),
            (None, None, Some(wanted)) => given(wanted, pool.prefix),
            (None, None, None) => {
                let first = after(pool.prefix.network()).unwrap_or_else(|| pool.prefix.network());
                given(first, pool.prefix)
            }
        }
    }

    /// An address of a network for a container.
    async fn address(
        &self,
        pool: &PoolId,
        network: &NetworkRecord,
        wanted: Option<IpAddr>,
    ) -> Answer {
        let agent = &self.agent;
        let early = self.early_id()?;
        let scoped = only(network, &[pool.prefix], pool.range.filter(|_| wanted.is_none()));
        let asked: Vec<IpAddr> = wanted.into_iter().collect();
        if let Some(ip) = wanted {
            // Each leader of a Swarm asks for what the one before has given to containers.
            if self.is_of_swarm(&network.id).await? && self.holder(&network.id, ip).await?.is_some()
            {
                return given(ip, pool.prefix);
            }
            let before = self.early().get(&(network.id.clone(), ip)).copied();
            if before.is_some_and(|at| at.elapsed() < JUST) {
                return Err(Error::conflict(format!("address {ip} is just given to a container"))
                    .next_step("ask for another"));
            }
            let _turn = self.endpoints.lock().await;
            self.evict(&network.id, ip, None).await?;
        }
        let given_out = ipam::allocate(&agent.store, &scoped, &agent.name, &early, &asked).await;
        let given_out = given_out.map_err(|err| endpoint_error(&err.into()))?;
        let Some(allocation) = given_out.first() else {
            return Err(Error::conflict(format!(
                "network {} has no subnet {}",
                network.name, pool.prefix
            )));
        };
        self.early().insert((network.id.clone(), allocation.ip), Instant::now());
        given(allocation.ip, pool.prefix)
    }

    /// ReleaseAddress. What nobody holds is released already.
    pub(super) async fn release_address(&self, asked: types::Address) -> Answer {
        let pool: PoolId = asked.pool.parse()?;
        let ip = address_of(&asked.address)?;
        let done = Ok(json!({}));
        let Some(network) = self.bound(&pool).await? else { return done };
        let Some(holder) = self.holder(&network.id, ip).await? else { return done };
        let early = self.early_id()?;
        if holder.early && holder.endpoint == early {
            // Nobody has used it.
            let released =
                ipam::release(&self.agent.store, &network.id, &early, &[ip], Duration::ZERO).await;
            released.map_err(|err| endpoint_error(&err.into()))?;
            self.early().remove(&(network.id.clone(), ip));
            return done;
        }
        let _turn = self.endpoints.lock().await;
        self.evict(&network.id, ip, None).await?;
        done
    }

    /// Who holds an address that Docker asked for and that has no endpoint yet: this host, and in a
    /// Swarm a manager too.
    pub(super) fn early_holder(&self, holder: &AddressRecord) -> Option<EndpointId> {
        let ours = self.early_id().is_ok_and(|early| early == holder.endpoint);
        let theirs = self.scope == DockerScope::Global;
        (holder.early && (ours || theirs)).then(|| holder.endpoint.clone())
    }

    /// Who holds an address.
    pub(super) async fn holder(
        &self,
        network: &NetworkId,
        ip: IpAddr,
    ) -> Result<Option<AddressRecord>, Error> {
        let key = Key::Address(network.clone(), ip);
        let found = self.agent.store.get::<AddressRecord>(&key).await;
        Ok(found.map_err(|err| store_error(&err))?.map(|found| found.record))
    }

    /// Ends the endpoint of this host's Docker that has an address, if its sandbox is gone: Docker was
    /// killed, or this agent was away when it ended. Never the one that asks. With `endpoints` held.
    pub(super) async fn evict(
        &self,
        network: &NetworkId,
        ip: IpAddr,
        asks: Option<&EndpointId>,
    ) -> Result<(), Error> {
        let has = |note: &&Attachment| {
            note.docker.is_some()
                && asks.is_none_or(|id| note.endpoint != id.as_str())
                && note.network == network.as_str()
                && note.ips.iter().any(|net| net.addr() == ip)
        };
        let notes = self.agent.attachments();
        for note in notes.iter().filter(has) {
            if self.is_dead(note).await {
                tracing::info!(endpoint = %note.endpoint, %ip, "Docker has forgotten an endpoint");
                attach::detach_one(&self.agent, note.clone()).await?;
            }
        }
        Ok(())
    }

    /// Whether nothing of a container is behind an endpoint any more. One that has no interface yet,
    /// or has it in the host's namespace, is just starting or stopping: how long it may be so is the
    /// matter of [`super::keep`].
    async fn is_dead(&self, note: &Attachment) -> bool {
        match note.stage {
            Stage::Detaching => true,
            Stage::Attached | Stage::Quarantined => presence::port_is_gone(&self.agent, note).await,
            Stage::Attaching | Stage::Reserved => false,
        }
    }

    pub(super) fn early(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<(NetworkId, IpAddr), Instant>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network that Docker made of a pool, whichever host told us.
    async fn bound(&self, pool: &PoolId) -> Result<Option<Arc<NetworkRecord>>, Error> {
        let text = pool.to_string();
        let noted = self.noted().await?;
        if let Some(noted) = noted.iter().find(|noted| noted.record.pools.contains(&text)) {
            return Ok(Some(self.agent.network_record(noted.network.as_str()).await?));
        }
        // Noted by a request that was repeated late, without what the pool says.
        let bare = pool.prefix.to_string();
        let mut ours = noted
            .iter()
            .filter(|noted| noted.host == self.agent.name && noted.record.pools.contains(&bare));
        let (Some(only), None) = (ours.next(), ours.next()) else { return Ok(None) };
        let network = self.agent.network_record(only.network.as_str()).await?;
        let which = &pool.which;
        let is_meant = which.network.as_ref().is_none_or(|name| *name == network.name)
            && which.vni.is_none_or(|vni| vni == network.vni);
        Ok(Some(network).filter(|_| is_meant))
    }

    /// Whether a Swarm has a network, and nobody else's Docker.
    async fn is_of_swarm(&self, network: &NetworkId) -> Result<bool, Error> {
        if self.scope != DockerScope::Global {
            return Ok(false);
        }
        let noted = self.noted().await?;
        let mut ids = noted.iter().filter(|noted| noted.network == *network).map(|noted| &noted.id);
        Ok(!ids.any(|id| is_of_one_docker(id.as_str())))
    }

    /// All networks as the store has them now.
    pub(super) async fn networks(&self) -> Result<Vec<NetworkRecord>, Error> {
        let all = membership::network::list(&self.agent.store).await;
        let all = all.map_err(|err| network_error(&err))?;
        Ok(all.into_iter().map(|found| found.record).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_pool_says_all_of_it() {
        for text in [
            "198.51.100.0/24",
            "2001:db8::/64",
            "198.51.100.0/24;range=198.51.100.128/25;network=web",
            "198.51.100.0/24;vni=42",
            "10.208.1.0/24;chosen=00ff00ff",
        ] {
            let pool: PoolId = text.parse().unwrap();
            assert_eq!(pool.to_string(), text);
        }
        for text in ["", "x", "198.51.100.0/24;", "198.51.100.0/24;what=x", "198.51.100.0/24;vni=x"]
        {
            assert!(text.parse::<PoolId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_leaves_the_rest_out() {
        let prefix: IpNet = "198.51.100.0/24".parse().unwrap();
        let mut record = NetworkRecord::new(
            NetworkId::random(),
            NetworkName::new("web").unwrap(),
            Vni::new(7).unwrap(),
        );
        record.subnets = vec![prefix, "2001:db8::/64".parse().unwrap()];
        let scoped = only(&record, &[prefix], Some("198.51.100.64/26".parse().unwrap()));
        assert_eq!(scoped.subnets, [prefix]);
        let shown: Vec<String> = scoped.exclude.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["198.51.100.0-198.51.100.63", "198.51.100.128-198.51.100.255"]);
        assert!(only(&record, &[prefix], Some(prefix)).exclude.is_empty());
    }
}

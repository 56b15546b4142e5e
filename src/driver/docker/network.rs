//! Networks: which one Docker means, and making it where nobody has.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use membership::docker::{self, DockerNetwork, MADE_BY};
use membership::gateway;
use membership::key::{DockerId, NetworkId, NetworkName};
use membership::network::{self, NetworkSpec};
use membership::record::{AddressRange, DockerRecord, NetworkOptions, NetworkRecord};
use serde::Deserialize;
use serde_json::{Value, json};

use super::options::{Options, Which};
use super::pool::{PoolId, address_of, prefix_of};
use super::{Answer, Driver, GLOBAL_SPACE, LOCAL_SPACE, types};
use crate::agent::tables::ECHO;
use crate::agent::{network_error, state_error, store_error};
use crate::config::DockerScope;
use crate::control::types::Error;
use crate::driver::attach;

/// How often a network that goes in the same moment is made again.
const ATTEMPTS: usize = 4;
/// Characters of Docker's id in the name of a network that nothing else names.
const SHORT: usize = 12;

/// A network as Docker describes it.
struct Asked {
    id: DockerId,
    options: Options,
    pools: Vec<PoolId>,
    gateways: Vec<IpAddr>,
    aside: Vec<IpAddr>,
    /// Docker chose the subnets, each Docker for itself.
    dockers_choice: bool,
}

/// A pool's id, or the one that is noted already and says more: a request that is repeated late finds
/// no pool that was asked for.
fn whole(pool: &PoolId, noted: &[String]) -> String {
    let fuller = |text: &&String| {
        text.parse().is_ok_and(|noted: PoolId| noted.prefix == pool.prefix) && pool.is_bare()
    };
    noted.iter().find(fuller).cloned().unwrap_or_else(|| pool.to_string())
}

/// Refuses a prefix that is no subnet of a network.
pub(super) fn check_subnet(network: &NetworkRecord, prefix: IpNet) -> Result<(), Error> {
    if network.subnets.contains(&prefix) {
        return Ok(());
    }
    let subnets: Vec<String> = network.subnets.iter().map(ToString::to_string).collect();
    let subnets = subnets.join(", ");
    Err(Error::conflict(format!("network {} has no subnet {prefix}", network.name))
        .cause(format!("its subnets are {subnets}"))
        .next_step("give --subnet with one of them, or leave --subnet out"))
}

/// Where Docker is told which prefixes to take by itself.
const DAEMON_FILE: &str = "/etc/docker/daemon.json";

/// What Docker takes prefixes of, and how long they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct AddressPool {
    base: IpNet,
    size: u8,
}

/// The `default-address-pools` of Docker's own configuration, where it has any.
fn address_pools(text: &str) -> Vec<AddressPool> {
    let file: Value = serde_json::from_str(text).unwrap_or_default();
    let pools = file.get("default-address-pools").cloned().unwrap_or_default();
    serde_json::from_value(pools).unwrap_or_default()
}

/// Whether Docker may have taken a prefix by itself. Unless it is told others (moby,
/// `libnetwork/ipamutils`) it takes 172.17.0.0/16 to 172.31.0.0/16, and /20s of 192.168.0.0/16.
fn is_dockers_choice(prefix: IpNet, pools: &[AddressPool]) -> bool {
    if !pools.is_empty() {
        let of = |pool: &AddressPool| {
            pool.size == prefix.prefix_len() && pool.base.trunc().contains(&prefix)
        };
        return pools.iter().any(of);
    }
    let IpNet::V4(prefix) = prefix else { return false };
    matches!(
        (prefix.addr().octets(), prefix.prefix_len()),
        ([172, 17..=31, ..], 16) | ([192, 168, ..], 20)
    )
}

/// Whether an id was given by a Docker, by itself or with a cluster store: 32 random bytes in hex
/// (moby, `pkg/stringid`). Those of a Swarm have 25 characters (swarmkit, `identity`).
pub(super) fn is_of_one_docker(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Driver {
    fn read(&self, asked: &types::Network, options: Options) -> Result<Asked, Error> {
        let id = DockerId::new(&asked.id).map_err(|err| Error::bad_request(err.to_string()))?;
        let mut options = options;
        let (mut pools, mut gateways, mut aside) = (Vec::new(), Vec::new(), Vec::new());
        let mut dockers_choice = false;
        let daemon = std::fs::read_to_string(DAEMON_FILE).unwrap_or_default();
        let defaults = address_pools(&daemon);
        for subnet in asked.ipv4.iter().chain(&asked.ipv6) {
            if subnet.pool.is_empty() {
                continue;
            }
            let prefix = prefix_of(&subnet.pool)?;
            let ours = [LOCAL_SPACE, GLOBAL_SPACE].contains(&subnet.address_space.as_str());
            dockers_choice |= !ours && is_dockers_choice(prefix, &defaults);
            let pool = match self.pending(prefix).filter(|_| ours) {
                Some(pool) => pool,
                None => PoolId { prefix, range: None, which: Which::default(), chosen: None },
            };
            let which = &mut options.which;
            which.network = which.network.take().or_else(|| pool.which.network.clone());
            which.vni = which.vni.or(pool.which.vni);
            if !subnet.gateway.is_empty() {
                gateways.push(address_of(&subnet.gateway)?);
            }
            for address in subnet.aux_addresses.values() {
                aside.push(address_of(address)?);
            }
            pools.push(pool);
        }
        Ok(Asked { id, options, pools, gateways, aside, dockers_choice })
    }

    /// CreateNetwork.
    pub(super) async fn create_network(&self, asked: types::Network) -> Answer {
        let asked = self.read(&asked, Options::of_network(&asked.options)?)?;
        let turn = self.networks.lock().await;
        // AllocateNetwork is not told of it, and may come after.
        let internal = asked.options.internal;
        let created = |record: &mut DockerRecord| {
            record.created = true;
            record.internal = internal;
        };
        self.note(&asked, created).await?;
        drop(turn);
        Ok(json!({}))
    }

    /// AllocateNetwork, at a Swarm's manager: what it answers comes back as the user's options in
    /// every host's CreateNetwork.
    pub(super) async fn allocate(&self, asked: types::Network) -> Answer {
        let mut options = asked.options.clone();
        let asked = self.read(&asked, Options::flat(&options)?)?;
        let turn = self.networks.lock().await;
        let network = self.note(&asked, |record| record.allocated = true).await?;
        drop(turn);
        options.insert("network".to_owned(), Value::from(network.name.as_str()));
        options.insert("vni".to_owned(), Value::from(network.vni.get().to_string()));
        let texts = options.into_iter().map(|(name, value)| match value {
            Value::String(text) => (name, Value::String(text)),
            other => (name, Value::String(other.to_string())),
        });
        Ok(json!({ "Options": texts.collect::<serde_json::Map<_, _>>() }))
    }

    /// Finds or makes the network, and notes that it is Docker's.
    async fn note(
        &self,
        asked: &Asked,
        change: impl Fn(&mut DockerRecord),
    ) -> Result<Arc<NetworkRecord>, Error> {
        for _ in 0..ATTEMPTS {
            let network = self.network(asked).await?;
            if network.mode.is_routed() {
                return Err(Error::conflict(format!(
                    "network {} is of mode {}, and Docker's interfaces need one of frames",
                    network.name, network.mode
                ))
                .next_step("name one that was made without --mode, or another VNI"));
            }
            let noted = self.noted().await?;
            let mine = noted.iter().find(|noted| {
                noted.host == self.agent.name && noted.id == asked.id && noted.network == network.id
            });
            for noted in noted.iter().filter(|noted| noted.host == self.agent.name) {
                let shared = noted
                    .record
                    .pools
                    .iter()
                    .any(|pool| asked.pools.iter().any(|asked| asked.to_string() == *pool));
                if shared && noted.network != network.id {
                    return Err(Error::conflict(
                        "another network of this Docker has the same subnet and is not the same",
                    )
                    .next_step(format!(
                        "tell the pools apart: give --ipam-opt network={0} beside -o network={0}",
                        network.name
                    )));
                }
            }
            let mut record = mine.map(|noted| noted.record.clone()).unwrap_or_default();
            record.pools = asked.pools.iter().map(|pool| whole(pool, &record.pools)).collect();
            record.gwbridge = asked.options.gwbridge.unwrap_or(true);
            change(&mut record);
            let noted = DockerNetwork {
                network: network.id.clone(),
                host: self.agent.name.clone(),
                id: asked.id.clone(),
                record,
            };
            let put = docker::put(&self.agent.store, &noted).await;
            // Somebody may have removed it in this moment.
            if put.map_err(|err| store_error(&err))? {
                self.keep_copy(&noted)?;
                tracing::info!(network = %network.name, docker = %asked.id, "a network of Docker");
                return self.agent.network_record(network.id.as_str()).await;
            }
        }
        Err(Error::conflict("the network is made and removed all the time")
            .next_step("create it again when that has ended"))
    }

    /// The network that is meant.
    async fn network(&self, asked: &Asked) -> Result<NetworkRecord, Error> {
        for _ in 0..ATTEMPTS {
            let all = self.networks().await?;
            if let Some(found) = self.find(&all, asked)? {
                return self.join_network(found, asked).await;
            }
            let spec = self.spec(asked)?;
            match network::create(&self.agent.store, &spec).await {
                Ok(record) => return Ok(record),
                // Another host was asked for the same in the same moment.
                Err(network::Error::NameTaken { .. }) => {}
                Err(network::Error::VniTaken { .. }) if asked.options.which.network.is_none() => {}
                Err(err) => return Err(network_error(&err)),
            }
        }
        // One with the same name, and not with all of these subnets.
        let (all, name) = (self.networks().await?, self.name_of(asked)?);
        if let Some(found) = all.iter().find(|network| network.name == name) {
            asked.pools.iter().try_for_each(|pool| check_subnet(found, pool.prefix))?;
        }
        Err(Error::conflict(format!("the name {name} is taken by another network"))
            .next_step("say which network it is with -o network=NAME"))
    }

    fn find<'a>(
        &self,
        all: &'a [NetworkRecord],
        asked: &Asked,
    ) -> Result<Option<&'a NetworkRecord>, Error> {
        if let Some(found) = self.by_which(all, &asked.options.which)? {
            return Ok(Some(found));
        }
        let named = |name: &NetworkName| all.iter().find(|network| network.name == *name);
        if asked.options.which != Which::default() {
            return Ok(None);
        }
        if self.is_by_itself(asked) {
            return Ok(named(&self.name_of(asked)?));
        }
        let written = asked.pools.iter().filter(|pool| pool.chosen.is_none());
        let prefixes: Vec<IpNet> = written.map(|pool| pool.prefix).collect();
        self.by_prefixes(all, &prefixes)
    }

    /// Whether a network is not the one that others with the same subnets have.
    fn is_by_itself(&self, asked: &Asked) -> bool {
        let written = asked.pools.iter().any(|pool| pool.chosen.is_none());
        // A global one has one id on all hosts, and Docker gives its subnets to it alone.
        !written || asked.dockers_choice || self.scope == DockerScope::Global
    }

    /// The name that a network gets, the same on every host that is asked the same.
    fn name_of(&self, asked: &Asked) -> Result<NetworkName, Error> {
        let which = &asked.options.which;
        let written = asked.pools.iter().find(|pool| pool.chosen.is_none());
        let chosen = asked.pools.iter().find_map(|pool| pool.chosen.as_deref());
        let chosen = chosen.filter(|_| written.is_none());
        let name = match (&which.network, which.vni, chosen, written) {
            (Some(name), ..) => return Ok(name.clone()),
            (None, Some(vni), ..) => format!("docker-vni-{vni}"),
            (None, None, Some(chosen), _) if self.scope == DockerScope::Local => {
                format!("docker-{chosen}")
            }
            (None, None, _, Some(pool)) if !self.is_by_itself(asked) => {
                let prefix = pool.prefix.to_string();
                format!("docker-{}", prefix.replace(['/', ':'], "-"))
            }
            _ => {
                let id: String = asked.id.as_str().chars().take(SHORT).collect();
                format!("docker-{id}")
            }
        };
        NetworkName::new(&name).map_err(|err| Error::internal(err.to_string()))
    }

    fn spec(&self, asked: &Asked) -> Result<NetworkSpec, Error> {
        let subnets: Vec<IpNet> = asked.pools.iter().map(|pool| pool.prefix).collect();
        let mut spec = NetworkSpec::new(self.name_of(asked)?, subnets);
        spec.vni = asked.options.which.vni;
        spec.mtu = asked.options.mtu;
        spec.udp_port = asked.options.udp_port;
        // One that a container could have is the network's; another one is Docker's fancy.
        let usable = |ip: &&IpAddr| {
            let home = spec.subnets.iter().find(|subnet| subnet.contains(*ip));
            home.is_some_and(|subnet| **ip != subnet.network() && **ip != subnet.broadcast())
        };
        spec.gateways = asked.gateways.iter().filter(usable).copied().collect();
        spec.exclude = asked.aside.iter().filter_map(|ip| AddressRange::new(*ip, *ip)).collect();
        for (name, value) in &asked.options.network {
            let set = spec.options.set(name, value);
            set.map_err(|err| Error::bad_request(err.to_string()))?;
        }
        spec.labels.insert(MADE_BY.0.to_owned(), MADE_BY.1.to_owned());
        Ok(spec)
    }

    /// Checks that a network is what Docker thinks that it is, and sets aside what Docker wants.
    async fn join_network(
        &self,
        found: &NetworkRecord,
        asked: &Asked,
    ) -> Result<NetworkRecord, Error> {
        let name = &found.name;
        for pool in &asked.pools {
            let v6 = |subnet: &IpNet| subnet.addr().is_ipv6();
            let of_swarm =
                self.scope == DockerScope::Global && !is_of_one_docker(asked.id.as_str());
            if of_swarm && v6(&pool.prefix) && !found.subnets.iter().any(v6) {
                return Err(Error::conflict(format!("network {name} has no IPv6 subnet"))
                    .cause("a Swarm allocates a network before it tells of IPv6")
                    .next_step(format!(
                        "make it with `skybridge network create NAME --subnet IPV4 --subnet {}`, and \
                         take it with `docker network create -o network=NAME`",
                        pool.prefix
                    )));
            }
            check_subnet(found, pool.prefix).map_err(|err| {
                // Nobody has written it, and the next time it would be another one.
                if !asked.dockers_choice && pool.chosen.is_none() {
                    return err;
                }
                let prefix = pool.prefix;
                err.next_step(format!(
                    "{prefix} was chosen since none was given: add --ipam-driver skybridge \
                     --ipam-opt network={name}, or --subnet with one that the network has"
                ))
            })?;
        }
        let differs = |what: &str, theirs: String| {
            Err(Error::conflict(format!("network {name} is there already with another {what}"))
                .cause(theirs)
                .next_step("write the same options on every host, or leave them out on the others"))
        };
        let options = &asked.options;
        if let Some(vni) = options.which.vni.filter(|vni| *vni != found.vni) {
            return differs("VNI", format!("it is {}, not {vni}", found.vni));
        }
        if options.mtu.is_some() && options.mtu != found.mtu {
            let has = found.mtu.map_or_else(|| "automatic".to_owned(), |mtu| mtu.to_string());
            return differs("mtu", format!("it is {has}"));
        }
        if options.udp_port.is_some() && options.udp_port != found.udp_port {
            let has =
                found.udp_port.map_or_else(|| "that of the hosts".to_owned(), |it| it.to_string());
            return differs("udp_port", format!("it is {has}"));
        }
        for (option, value) in &options.network {
            let mut wanted: NetworkOptions = found.options.clone();
            let set = wanted.set(option, value);
            set.map_err(|err| Error::bad_request(err.to_string()))?;
            if wanted != found.options {
                return differs(option, format!("{option}={value} is not what it has"));
            }
        }
        for ip in &asked.gateways {
            let present = found.subnet_of(*ip).and_then(|subnet| found.gateway_of(subnet));
            if let Some(present) = present.filter(|present| present != ip) {
                return Err(Error::conflict(format!("network {name} has the gateway {present}"))
                    .cause(format!("Docker has chosen {ip}"))
                    .next_step(format!("give --gateway {present}")));
            }
        }
        let missing: Vec<AddressRange> = asked
            .aside
            .iter()
            .filter(|ip| !found.exclude.iter().any(|range| range.contains(**ip)))
            .filter_map(|ip| AddressRange::new(*ip, *ip))
            .collect();
        if missing.is_empty() {
            return Ok(found.clone());
        }
        let changed = network::update(&self.agent.store, found.id.as_str(), |record| {
            record.exclude.extend(
                missing
                    .iter()
                    .filter(|range| !record.exclude.contains(range))
                    .copied()
                    .collect::<Vec<_>>(),
            );
            Ok(())
        });
        changed.await.map_err(|err| network_error(&err))
    }

    /// The network that options name, where there is one.
    pub(super) fn by_which<'a>(
        &self,
        all: &'a [NetworkRecord],
        which: &Which,
    ) -> Result<Option<&'a NetworkRecord>, Error> {
        let named = which.network.as_ref();
        if let Some(found) = named.and_then(|name| all.iter().find(|net| net.name == *name)) {
            return match which.vni {
                Some(vni) if vni != found.vni => Err(Error::conflict(format!(
                    "network {} has VNI {}, not {vni}",
                    found.name, found.vni
                ))
                .next_step("give either the name or the VNI")),
                _ => Ok(Some(found)),
            };
        }
        if named.is_some() {
            return Ok(None);
        }
        Ok(which.vni.and_then(|vni| all.iter().find(|network| network.vni == vni)))
    }

    /// The one network that has all these subnets.
    pub(super) fn by_prefixes<'a>(
        &self,
        all: &'a [NetworkRecord],
        prefixes: &[IpNet],
    ) -> Result<Option<&'a NetworkRecord>, Error> {
        let has = |network: &&NetworkRecord| {
            prefixes.iter().all(|prefix| network.subnets.contains(prefix))
        };
        let found: Vec<&NetworkRecord> = all.iter().filter(has).collect();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            several => {
                let names: Vec<&str> =
                    several.iter().map(|network| network.name.as_str()).collect();
                Err(Error::conflict("more than one network has this subnet")
                    .cause(names.join(", "))
                    .next_step("say which: --ipam-opt network=NAME -o network=NAME"))
            }
        }
    }

    /// DeleteNetwork. In a cluster with one store of Docker it may reach another host than
    /// CreateNetwork did.
    pub(super) async fn delete_network(&self, asked: types::Network) -> Answer {
        // Endpoints that Docker did not end are ended with their network.
        for note in self.agent.attachments() {
            if note.docker.as_deref() == Some(&*asked.id) {
                attach::detach_one(&self.agent, note).await?;
            }
        }
        let turn = self.networks.lock().await;
        let mut noted = self.noted_as(&asked.id).await?;
        // A Swarm tells each host for itself, so what is left are others'.
        let told = noted.iter().any(|noted| noted.host == self.agent.name);
        if told || !is_of_one_docker(&asked.id) {
            noted.retain(|noted| noted.host == self.agent.name);
        }
        let gone = self.forget(noted, |record| record.created = false).await?;
        drop(turn);
        self.gone(gone).await
    }

    /// FreeNetwork. Each leader of a Swarm allocates for itself, and only the last one frees.
    pub(super) async fn free(&self, asked: types::Network) -> Answer {
        let turn = self.networks.lock().await;
        let noted = self.noted_as(&asked.id).await?;
        let gone = self.forget(noted, |record| record.allocated = false).await?;
        drop(turn);
        self.gone(gone).await
    }

    /// Keeps a copy of this host's record on the disk, except with a cluster store: there any host may
    /// be told that the network is removed.
    pub(super) fn keep_copy(&self, noted: &DockerNetwork) -> Result<(), Error> {
        let anybodys = self.scope == DockerScope::Global && is_of_one_docker(noted.id.as_str());
        if noted.host != self.agent.name || anybodys {
            return Ok(());
        }
        self.agent.dockers.put(noted).map_err(|err| state_error(&err))
    }

    /// What is noted under an id of Docker, on any host.
    async fn noted_as(&self, id: &str) -> Result<Vec<DockerNetwork>, Error> {
        let mut noted = self.noted().await?;
        noted.retain(|noted| noted.id.as_str() == id);
        Ok(noted)
    }

    /// Changes what is noted, and gives the networks that went with the last note of them.
    async fn forget(
        &self,
        noted: Vec<DockerNetwork>,
        change: impl Fn(&mut DockerRecord),
    ) -> Result<Vec<NetworkId>, Error> {
        let mut left = Vec::new();
        for mut noted in noted {
            let before = noted.record.clone();
            change(&mut noted.record);
            // What its host removes in this moment must not come back.
            if noted.record == before && (before.created || before.allocated) {
                continue;
            }
            // Before the record, or it would be written again.
            if noted.host == self.agent.name {
                self.agent.dockers.remove(&noted).map_err(|err| state_error(&err))?;
            }
            let failed = |err: membership::store::Error| store_error(&err);
            if noted.record.created || noted.record.allocated {
                docker::put(&self.agent.store, &noted).await.map_err(failed)?;
                self.keep_copy(&noted)?;
            } else if let Some(gone) =
                docker::remove(&self.agent.store, &noted).await.map_err(failed)?
            {
                left.push(gone.id);
                tracing::info!(network = %gone.name, docker = %noted.id, "Docker's network is removed");
            }
        }
        Ok(left)
    }

    /// The answer that networks are gone, when they are from what is listed here too.
    async fn gone(&self, networks: Vec<NetworkId>) -> Answer {
        for id in networks {
            // Should this host's watch be slow, it is gone all the same.
            let _: Result<(), Error> = self.agent.tables.wait_for_network(&id, false, ECHO).await;
        }
        Ok(json!({}))
    }

    /// GwAllocCheck: whether Docker needs no gateway. It asks before there is a pool.
    pub(super) async fn gateways(&self, asked: types::Network) -> Answer {
        let options = Options::of_network(&asked.options)?;
        let all = self.networks().await?;
        let known = self.by_which(&all, &options.which)?;
        let lacks = |v6: bool| {
            known.is_some_and(|network| {
                !gateway::own(network).iter().any(|gateway| gateway.addr().is_ipv6() == v6)
            })
        };
        Ok(json!({ "SkipIPv4": lacks(false), "SkipIPv6": lacks(true) }))
    }

    /// The network with Docker's id: noted here, or else by any host.
    pub(super) async fn known(
        &self,
        id: &str,
    ) -> Result<(DockerRecord, Arc<NetworkRecord>), Error> {
        let noted = self.noted().await?;
        let Some(found) = noted.into_iter().find(|noted| noted.id.as_str() == id) else {
            return Err(Error::not_found(format!("no network of Docker has the id {id}"))
                .cause("its record is not in the store of this host's agent")
                .next_step(
                    "is the store another one than when it was created? remove it with `docker \
                     network rm`, and create it again",
                ));
        };
        let network = self.agent.network_record(found.network.as_str()).await?;
        Ok((found.record, network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_takes_by_itself_is_known() {
        for (text, by_itself) in [
            ("172.17.0.0/16", true),
            ("172.31.0.0/16", true),
            ("192.168.240.0/20", true),
            ("172.17.0.0/24", false),
            ("172.32.0.0/16", false),
            ("10.0.0.0/24", false),
            ("2001:db8::/64", false),
        ] {
            assert_eq!(is_dockers_choice(text.parse().unwrap(), &[]), by_itself, "{text}");
        }
    }

    #[test]
    fn dockers_own_configuration_says_what_it_takes_by_itself() {
        let pools = address_pools(
            r#"{ "debug": true, "default-address-pools": [{ "base": "10.200.0.0/16", "size": 24 }] }"#,
        );
        for (text, by_itself) in
            [("10.200.7.0/24", true), ("10.200.0.0/20", false), ("172.17.0.0/16", false)]
        {
            assert_eq!(is_dockers_choice(text.parse().unwrap(), &pools), by_itself, "{text}");
        }
        for text in ["", "{", "{}", r#"{ "default-address-pools": 7 }"#] {
            assert_eq!(address_pools(text), [], "{text}");
        }
    }
}

//! Endpoints: made before Docker says where they are, joined to a sandbox, left, removed.

use std::net::IpAddr;

use encap::MacAddr;
use ipnet::IpNet;
use membership::endpoint::{self, EndpointSpec};
use membership::gateway;
use membership::key::EndpointId;
use membership::record::{DockerRecord, EndpointRecord, NetworkRecord};
use serde_json::{Value, json};

use super::pool::{address_of, only};
use super::{Answer, Driver, types};
use crate::agent::state::{self, Attachment, Publication, Stage};
use crate::agent::tables::ECHO;
use crate::agent::{endpoint_error, link_error, network_error, routers};
use crate::control::types::{Error, ErrorCode};
use crate::driver::attach;
use crate::link::endpoint::{Plug, Plugged, plug, unplug};
use crate::link::{NetNs, handover};

/// What Docker puts before the number of the interface in the container.
const PREFIX: &str = "eth";
/// Ports that the user wants to be published.
const PORT_MAP: &str = "com.docker.network.portmap";

/// Whether the store has said what an endpoint has. Until then its note is a plan: the agent may have
/// been stopped before or after the record was written.
fn is_made(note: &Attachment) -> bool {
    note.publication == Publication::Done && note.mac != MacAddr::ZERO
}

fn id_of(text: &str) -> Result<EndpointId, Error> {
    EndpointId::new(text).map_err(|err| Error::bad_request(err.to_string()))
}

impl Driver {
    /// CreateEndpoint. Only what Docker left empty may be filled in the answer.
    pub(super) async fn create_endpoint(&self, asked: types::Endpoint) -> Answer {
        let id = id_of(&asked.id)?;
        let interface = &asked.interface;
        let ips: Vec<IpAddr> = [&interface.ipv4, &interface.ipv6]
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(|text| address_of(text))
            .collect::<Result<_, _>>()?;
        let mac: Option<MacAddr> = match interface.mac.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Error::bad_request(format!("`{text}` is no MAC address"))
                    .next_step("write six bytes such as 02:00:5e:00:53:01 behind --mac-address")
            })?),
        };
        let (docker, network) = self.known(&asked.network).await?;
        check_ports(&network, &docker, &asked.options)?;
        let _turn = self.endpoints.lock().await;
        let record = match self.agent.attachment(id.as_str()) {
            Some(note) if note.docker.is_none() || note.stage == Stage::Detaching => {
                return Err(Error::conflict("the endpoint is just being removed")
                    .next_step("start the container again in some seconds"));
            }
            // Docker has not heard our answer.
            Some(note) if is_made(&note) => note,
            // There is none, or its making was cut off.
            _ => self.make(&asked.network, &network, &id, &ips, mac).await?,
        };
        Ok(json!({ "Interface": filled(interface, &record) }))
    }

    async fn make(
        &self,
        docker: &str,
        network: &NetworkRecord,
        id: &EndpointId,
        ips: &[IpAddr],
        mac: Option<MacAddr>,
    ) -> Result<Attachment, Error> {
        let agent = &self.agent;
        if mac.is_some() && mac == gateway::mac(network) {
            let name = &network.name;
            return Err(Error::conflict(format!("the gateway of network {name} has that MAC"))
                .next_step("ask for another MAC, or leave --mac-address out"));
        }
        let mut adopt = None;
        for ip in ips {
            self.evict(&network.id, *ip, Some(id)).await?;
            if let Some(holder) = self.holder(&network.id, *ip).await? {
                adopt = adopt.or_else(|| self.early_holder(&holder));
            }
        }
        // Docker gives addresses of the families that it has enabled, and no others shall be had.
        let subnets: Vec<IpNet> = ips.iter().filter_map(|ip| network.subnet_of(*ip)).collect();
        let scoped = if ips.is_empty() { network.clone() } else { only(network, &subnets, None) };
        if let Some(ip) = ips.iter().find(|ip| network.subnet_of(**ip).is_none()) {
            return Err(Error::conflict(format!("network {} has no subnet of {ip}", network.name))
                .next_step("remove Docker's network, and create it with the right --subnet"));
        }
        let mut note = Attachment {
            version: state::VERSION,
            stage: Stage::Reserved,
            endpoint: id.to_string(),
            network: network.id.to_string(),
            network_name: network.name.to_string(),
            name: String::new(),
            sandbox: String::new(),
            ifname: agent.networks.owner().passing(id.as_str()),
            mac: mac.unwrap_or_default(),
            ips: attach::with_prefixes(ips, network),
            gateways: Vec::new(),
            labels: Default::default(),
            publication: Publication::Unsure,
            docker: Some(docker.to_owned()),
            moved: false,
            reason: None,
        };
        agent.put_attachment(&note)?;
        agent.tables.expect_endpoint(id);
        let spec = EndpointSpec {
            id: Some(id.clone()),
            ips: ips.to_vec(),
            mac,
            adopt,
            again: true,
            ..EndpointSpec::default()
        };
        let made =
            endpoint::create(&agent.store, &scoped, &agent.name, agent.incarnation(), &spec).await;
        let record: EndpointRecord = match made {
            Ok(record) => record,
            Err(error) => {
                let error = explain(endpoint_error(&error));
                // What the store may still do is undone when it answers.
                note.stage = Stage::Detaching;
                agent.put_attachment(&note)?;
                if !error.is(ErrorCode::Unavailable) {
                    attach::forget(agent, &note).await;
                }
                return Err(error);
            }
        };
        for ip in &record.ips {
            self.early().remove(&(network.id.clone(), *ip));
        }
        note.publication = Publication::Done;
        note.mac = record.mac;
        note.ips = attach::with_prefixes(&record.ips, network);
        agent.put_attachment(&note)?;
        Ok(note)
    }

    /// Join. The interface lies in the host's namespace, where Docker looks for it.
    pub(super) async fn join(&self, asked: types::Endpoint) -> Answer {
        let id = id_of(&asked.id)?;
        let _turn = self.endpoints.lock().await;
        let known = self.agent.attachment(id.as_str());
        let usable = known.filter(|note| note.stage != Stage::Detaching && note.docker.is_some());
        let Some(mut note) = usable else {
            return Err(Error::not_found(format!("there is no endpoint {id} on this host"))
                .cause("it was removed, since no container followed it for a minute")
                .next_step("start the container again"));
        };
        let (docker, network) = self.known(&asked.network).await?;
        if !is_made(&note) {
            let ips: Vec<IpAddr> = note.ips.iter().map(IpNet::addr).collect();
            let mac = Some(note.mac).filter(|mac| *mac != MacAddr::ZERO);
            note = self.make(&asked.network, &network, &id, &ips, mac).await?;
        }
        if let Err(error) = self.plug_in(&mut note, &network, &asked.sandbox).await {
            // Docker removes the endpoint next; nothing of the interface is left until then.
            self.plug_out(&note).await?;
            return Err(error);
        }
        let name = note.ifname.clone();
        tracing::info!(
            network = %network.name, endpoint = %id, mac = %note.mac, ips = ?note.ips,
            sandbox = %note.sandbox, "joined by Docker"
        );
        self.agent.routers.wake();
        Ok(answer(&name, &note, &network, &docker))
    }

    async fn plug_in(
        &self,
        note: &mut Attachment,
        network: &NetworkRecord,
        sandbox: &str,
    ) -> Result<(), Error> {
        let agent = &self.agent;
        let owner = agent.networks.owner();
        let failed = |err: crate::link::Error| link_error(&err);
        let id = id_of(&note.endpoint)?;
        let host = NetNs::host().map_err(failed)?;
        let local =
            agent.networks.hold(network, &note.endpoint, &agent.tables, &agent.datapath).await?;
        routers::settle(agent, &local).await;
        // One of an earlier Join whose answer Docker has not heard. Whoever sees that it is missing
        // must not take its sandbox for gone.
        note.stage = Stage::Reserved;
        note.moved = false;
        agent.put_attachment(note)?;
        agent.mark_unsettled(&note.endpoint);
        unplug(Some(&local.namespace), owner, &note.endpoint, None).await.map_err(failed)?;
        let wanted = Plug {
            endpoint: note.endpoint.clone(),
            sandbox: host,
            ifname: note.ifname.clone(),
            mac: note.mac,
            addresses: Vec::new(),
            subnets: Vec::new(),
            mtu: u32::from(local.mtu()),
            gateways: Vec::new(),
            isolated: local.is_switched(),
        };
        let plugged: Plugged = plug(&local.namespace, owner, &wanted).await.map_err(failed)?;
        agent.tables.wait_for_endpoint(&network.id, &id, ECHO).await?;
        agent.guard_port(&local, note).await?;
        handover::open(&local.namespace, &plugged).await.map_err(failed)?;
        sandbox.clone_into(&mut note.sandbox);
        note.stage = Stage::Attached;
        agent.mark_settled(&note.endpoint);
        agent.put_attachment(note)
    }

    /// Takes the interface away and lets go of the network; the endpoint stays.
    async fn plug_out(&self, note: &Attachment) -> Result<(), Error> {
        let agent = &self.agent;
        // First of all, so that nobody takes an interface that is missing for a sandbox that ended.
        agent.change_attachment(&note.endpoint, |noted| {
            if noted.stage != Stage::Detaching {
                noted.stage = Stage::Reserved;
                noted.sandbox.clear();
                noted.moved = false;
                noted.reason = None;
            }
        })?;
        agent.mark_unsettled(&note.endpoint);
        let id = membership::key::NetworkId::new(&note.network);
        let id = id.map_err(|err| Error::internal(err.to_string()))?;
        let Some(local) = agent.networks.get(&id).await else { return Ok(()) };
        unplug(Some(&local.namespace), agent.networks.owner(), &note.endpoint, None)
            .await
            .map_err(|err| link_error(&err))?;
        agent.unguard_port(&local, &note.endpoint).await?;
        drop(local);
        attach::release(agent, &id, &note.endpoint).await
    }

    /// Leave. Docker has put the interface back; one that nobody knows has left already.
    pub(super) async fn leave(&self, asked: types::Endpoint) -> Answer {
        let _turn = self.endpoints.lock().await;
        if let Some(note) = self.note_of(&asked.id) {
            self.plug_out(&note).await?;
            tracing::info!(network = %note.network_name, endpoint = %note.endpoint, "left by Docker");
        }
        Ok(json!({}))
    }

    /// DeleteEndpoint.
    pub(super) async fn delete_endpoint(&self, asked: types::Endpoint) -> Answer {
        let _turn = self.endpoints.lock().await;
        if let Some(note) = self.note_of(&asked.id) {
            attach::detach_one(&self.agent, note).await?;
        }
        Ok(json!({}))
    }

    /// EndpointOperInfo: what `docker network inspect` cannot know.
    pub(super) async fn endpoint_info(&self, asked: types::Endpoint) -> Answer {
        let Some(note) = self.note_of(&asked.id) else {
            return Err(Error::not_found(format!("there is no endpoint {} here", asked.id)));
        };
        let network = membership::network::get(&self.agent.store, &note.network).await;
        let network = network.map_err(|err| network_error(&err))?.record;
        Ok(json!({ "Value": {
            "skybridge.network": network.name.as_str(),
            "skybridge.vni": network.vni.get().to_string(),
            "skybridge.mac": note.mac.to_string(),
        }}))
    }

    fn note_of(&self, id: &str) -> Option<Attachment> {
        self.agent.attachment(id).filter(|note| note.docker.is_some())
    }
}

/// Refuses ports that shall be published from a network that does not use Docker's bridge. They are
/// in the options of the endpoint for which the user asked for them; those of Join are the sandbox's,
/// the same for all of its networks.
fn check_ports(
    network: &NetworkRecord,
    docker: &DockerRecord,
    options: &serde_json::Map<String, Value>,
) -> Result<(), Error> {
    let maps = options.get(PORT_MAP).and_then(Value::as_array);
    let published = maps.is_some_and(|maps| !maps.is_empty());
    if !published || !gateway::is_routed(network) || docker.internal {
        return Ok(());
    }
    Err(Error::conflict("ports cannot be published from this network")
        .cause(format!(
            "network {} has a way out of its own, and Docker's bridge is not used",
            network.name
        ))
        .next_step(
            "leave --publish out: with host_access the container's own address is reached from \
             this host; or use a network without nat_outgoing and host_access",
        ))
}

/// Adds what Docker's users can do about an address or MAC that is taken.
fn explain(error: Error) -> Error {
    if error.is(ErrorCode::Conflict) && error.next_step.is_none() {
        return error.next_step(
            "where Docker's own IPAM gives the addresses, each host gives the same ones: create the \
             network with --ipam-driver skybridge, or with another --ip-range on each host",
        );
    }
    error
}

fn filled(interface: &types::Interface, note: &Attachment) -> Value {
    let mut filled = serde_json::Map::new();
    let of = |v6: bool| note.ips.iter().find(|net| net.addr().is_ipv6() == v6);
    // Docker that has no address at all takes ours.
    if interface.ipv4.is_empty() && interface.ipv6.is_empty() {
        if let Some(net) = of(false) {
            filled.insert("Address".to_owned(), net.to_string().into());
        }
        if let Some(net) = of(true) {
            filled.insert("AddressIPv6".to_owned(), net.to_string().into());
        }
    }
    if interface.mac.is_empty() {
        filled.insert("MacAddress".to_owned(), note.mac.to_string().into());
    }
    Value::Object(filled)
}

fn answer(name: &str, note: &Attachment, network: &NetworkRecord, docker: &DockerRecord) -> Value {
    let routed = gateway::is_routed(network) && !docker.internal;
    let gateway = |v6: bool| {
        let ours = note.ips.iter().find(|net| net.addr().is_ipv6() == v6);
        let own = gateway::own(network);
        let found = own
            .iter()
            .find(|gateway| ours.is_some_and(|net| net.trunc().contains(&gateway.addr())));
        found.filter(|_| routed).map(|gateway| gateway.addr().to_string()).unwrap_or_default()
    };
    json!({
        "InterfaceName": { "SrcName": name, "DstPrefix": PREFIX },
        "Gateway": gateway(false),
        "GatewayIPv6": gateway(true),
        "StaticRoutes": [],
        "DisableGatewayService": !docker.gwbridge,
    })
}

//! The control API's operations: requests to deeds, tables to listings.

mod listings;
mod network;
mod status;

use std::net::IpAddr;
use std::sync::Arc;

use fdb::{NetworkTables, Place, Revision, Snapshot};
use ipnet::IpNet;
use membership::network as records;
use membership::record::{NetworkRecord, StaticMac, StaticVtep};

use super::garbage;
use super::kernel;
use super::tables::ECHO;
use super::{Agent, network_error, store};
use crate::control::Api;
use crate::control::types::{self, Error};
use crate::driver::attach;
use listings::{PlaceOf, SourceOf};

type Answer<T> = Result<T, Error>;

/// The agent as the control server sees it.
#[derive(Clone)]
pub struct Control(pub Arc<Agent>);

impl Api for Control {
    async fn status(&self) -> Answer<types::Status> {
        status::status(&self.0).await
    }

    async fn hosts(&self) -> Answer<Vec<types::Host>> {
        Ok(status::hosts(&self.0))
    }

    async fn networks(&self) -> Answer<Vec<types::Network>> {
        network::networks(&self.0).await
    }

    async fn network(&self, network: String) -> Answer<types::NetworkDetail> {
        let record = self.0.network_record(&network).await?;
        network::detail(&self.0, &record).await
    }

    async fn create_network(&self, request: types::CreateNetwork) -> Answer<types::NetworkDetail> {
        let agent = &self.0;
        let spec = network::spec_of(request)?;
        let record =
            records::create(&agent.store, &spec).await.map_err(|err| network_error(&err))?;
        agent.tables.wait_for_network(&record.id, true, ECHO).await?;
        tracing::info!(network = %record.name, vni = %record.vni, "network created");
        network::detail(agent, &record).await
    }

    async fn update_network(
        &self,
        network: String,
        request: types::UpdateNetwork,
    ) -> Answer<types::NetworkDetail> {
        let agent = &self.0;
        // Options are tried on a copy first, so that a wrong one is told as a bad request.
        let mut trial = (*agent.network_record(&network).await?).clone();
        network::change(&mut trial, &request)?;
        let record = records::update(&agent.store, &network, |record| {
            // What the trial took, a newer record of the same network takes too.
            let _ = network::change(record, &request);
            Ok(())
        })
        .await
        .map_err(|err| network_error(&err))?;
        let id = record.id.clone();
        let wanted = record.clone();
        agent
            .tables
            .wait(ECHO, move |view| view.network(&id).is_some_and(|item| *item.record == wanted))
            .await?;
        super::tasks::settle_mtus(agent).await;
        network::detail(agent, &record).await
    }

    async fn remove_network(&self, network: String) -> Answer<()> {
        let agent = &self.0;
        let record = records::remove(&agent.store, &network, false)
            .await
            .map_err(|err| network_error(&err))?;
        agent.tables.wait_for_network(&record.id, false, ECHO).await?;
        tracing::info!(network = %record.name, "network removed");
        Ok(())
    }

    async fn vteps(&self, network: String) -> Answer<Vec<types::StaticVtep>> {
        let record = self.0.network_record(&network).await?;
        Ok(network::static_vteps(&self.0, &record))
    }

    async fn add_vtep(
        &self,
        network: String,
        request: types::VtepAdd,
    ) -> Answer<types::StaticVtep> {
        let agent = &self.0;
        let mut vtep = StaticVtep::new(request.address);
        vtep.port = request.port;
        vtep.macs = request
            .macs
            .into_iter()
            .map(|known| StaticMac { mac: known.mac, ips: known.ips })
            .collect();
        let (record, revision) = records::vtep_add(&agent.store, &network, &vtep)
            .await
            .map_err(|err| network_error(&err))?;
        wait_for_revision(agent, revision).await?;
        network::static_vteps(agent, &record)
            .into_iter()
            .find(|listed| listed.address == vtep.address)
            .ok_or_else(|| Error::internal("the VTEP was added and is gone again"))
    }

    async fn remove_vtep(&self, network: String, address: IpAddr) -> Answer<()> {
        let agent = &self.0;
        let (_, revision) = records::vtep_remove(&agent.store, &network, address)
            .await
            .map_err(|err| network_error(&err))?;
        wait_for_revision(agent, revision).await
    }

    async fn exported(&self, network: String) -> Answer<Vec<types::ExportedEntry>> {
        let record = self.0.network_record(&network).await?;
        Ok(kernel::exported(&self.0, &record))
    }

    async fn kernel_links(&self, network: String) -> Answer<Vec<types::KernelLink>> {
        let record = self.0.network_record(&network).await?;
        Ok(kernel::links(&self.0, &record))
    }

    async fn link_kernel(
        &self,
        network: String,
        request: types::LinkKernel,
    ) -> Answer<Vec<types::KernelLink>> {
        kernel::change(&self.0, &network, request).await
    }

    async fn namespace(&self, network: String) -> Answer<types::Namespace> {
        let agent = &self.0;
        let record = agent.network_record(&network).await?;
        let local = agent.networks.get(&record.id).await.ok_or_else(|| {
            Error::not_found(format!("network {} is not set up on this host", record.name))
                .next_step("it is as soon as a sandbox of this host is attached to it")
        })?;
        Ok(types::Namespace {
            network: record.name.to_string(),
            path: local.namespace.pin().to_owned(),
            bridge: (!local.is_routed()).then(|| crate::link::names::BRIDGE.to_owned()),
            port: local.port().to_owned(),
        })
    }

    async fn attach(&self, request: types::Attach) -> Answer<types::Attachment> {
        attach::attach(&self.0, request).await
    }

    async fn detach(&self, request: types::Detach) -> Answer<Vec<types::Detached>> {
        attach::detach(&self.0, request).await
    }

    async fn endpoints(&self, network: Option<String>) -> Answer<Vec<types::Endpoint>> {
        let only = self.only(network).await?;
        Ok(listings::endpoints(&self.0, only.as_deref()))
    }

    async fn fdb(&self, network: Option<String>) -> Answer<Vec<types::FdbEntry>> {
        let only = self.only(network).await?;
        let mut listed = Vec::new();
        self.each_network(only.as_deref(), |snapshot, tables| {
            let imported = listings::imported(&self.0, tables);
            for (mac, entry) in tables.macs() {
                let place = PlaceOf::of(snapshot, entry.place);
                let source = SourceOf::of(&self.0, entry.origin).of_import(&imported, mac);
                listed.push(types::FdbEntry {
                    network: tables.params().name.to_string(),
                    vni: tables.params().vni.get(),
                    mac,
                    place: place.kind,
                    vtep: place.vtep,
                    host: place.host.or_else(|| self.own_name(entry.place)),
                    source: source.kind,
                    revision: source.revision,
                    age_ms: source.age_ms,
                });
            }
        });
        Ok(listed)
    }

    async fn neighbors(&self, network: Option<String>) -> Answer<Vec<types::NeighborEntry>> {
        let only = self.only(network).await?;
        let mut listed = Vec::new();
        self.each_network(only.as_deref(), |snapshot, tables| {
            let imported = listings::imported(&self.0, tables);
            for (ip, neighbor) in tables.neighbors() {
                let place = PlaceOf::of(snapshot, neighbor.place);
                let source =
                    SourceOf::of(&self.0, neighbor.origin).of_import(&imported, neighbor.mac);
                listed.push(types::NeighborEntry {
                    network: tables.params().name.to_string(),
                    vni: tables.params().vni.get(),
                    ip,
                    mac: neighbor.mac,
                    place: place.kind,
                    vtep: place.vtep,
                    host: place.host.or_else(|| self.own_name(neighbor.place)),
                    source: source.kind,
                    revision: source.revision,
                    age_ms: source.age_ms,
                });
            }
        });
        Ok(listed)
    }

    async fn routes(&self, network: Option<String>) -> Answer<Vec<types::RouteEntry>> {
        let only = self.only(network).await?;
        let mut listed = Vec::new();
        self.each_network(only.as_deref(), |snapshot, tables| {
            for (prefix, route) in tables.routes() {
                let Ok(range) = IpNet::new(prefix.address(), prefix.len()) else { continue };
                let place = PlaceOf::of(snapshot, route.place);
                let source = SourceOf::of(&self.0, route.origin);
                listed.push(types::RouteEntry {
                    network: tables.params().name.to_string(),
                    prefix: range,
                    place: place.kind,
                    vtep: place.vtep,
                    host: place.host.or_else(|| self.own_name(route.place)),
                    source: source.kind,
                    revision: source.revision,
                    age_ms: source.age_ms,
                });
            }
        });
        Ok(listed)
    }

    async fn drops(&self) -> Answer<Vec<types::Drops>> {
        self.0.networks.note_overflows(&self.0.datapath).await;
        let mut listed = listings::drops(&self.0);
        listed.extend(listings::bridge_drops(&self.0).await);
        Ok(listed)
    }

    async fn store(&self) -> Answer<types::StoreAccess> {
        Ok(store::access(&self.0))
    }

    async fn make_token(&self, request: types::MakeToken) -> Answer<types::Token> {
        store::make_token(&self.0, request).await
    }

    async fn collect_garbage(&self, request: types::CollectGarbage) -> Answer<Vec<types::Garbage>> {
        garbage::on_demand(&self.0, request).await
    }

    async fn stats(&self) -> Answer<types::Stats> {
        Ok(listings::stats(&self.0))
    }
}

impl Control {
    async fn only(&self, network: Option<String>) -> Answer<Option<Arc<NetworkRecord>>> {
        match network {
            Some(name) => self.0.network_record(&name).await.map(Some),
            None => Ok(None),
        }
    }

    fn each_network(
        &self,
        only: Option<&NetworkRecord>,
        mut visit: impl FnMut(&Snapshot, &NetworkTables),
    ) {
        let snapshot = self.0.tables.reader().load();
        for (_, tables) in snapshot.networks() {
            if only.is_none_or(|record| *record.id.as_str() == *tables.params().id) {
                visit(&snapshot, tables);
            }
        }
    }

    fn own_name(&self, place: Place) -> Option<String> {
        (place == Place::Local).then(|| self.0.name.to_string())
    }
}

/// Waits until this host's watch has told of what the store had at a revision.
async fn wait_for_revision(agent: &Agent, revision: Revision) -> Answer<()> {
    agent.tables.wait(ECHO, move |view| view.revision() >= revision).await
}

//! The source checks at the ports of this host's sandboxes, and who carries what these say to each
//! other.
//!
//! A port's check comes and goes by itself. All of a network's are written together once in a run,
//! because an earlier one may have left others, and whenever a single one cannot be changed.
//!
//! The rules also decide whether the bridge or the switch carries local frames (`local = kernel |
//! switch`). A change of that while sandboxes talk loses no frame: the switch is ready before the
//! first frame comes to it, and is so until after the last. For the moment between, a group frame may
//! reach a neighbor twice, but never its own sender.

use std::collections::BTreeMap;

use super::networks::LocalNetwork;
use super::state::{Attachment, Stage};
use super::{Agent, Error, link_error};
use crate::link::source_check::{self, Carrier, Guarded};
use crate::link::{self, endpoint};

/// The warning that addresses are not checked.
const UNCHECKED: &str = "source-check";

fn guarded(port: (String, u32), note: &Attachment, carrier: Carrier) -> Guarded {
    let addresses = note.ips.iter().map(ipnet::IpNet::addr).collect();
    Guarded { port: port.0, index: port.1, mac: note.mac, addresses, carrier }
}

/// Who carries the local frames of a network that is not just changing.
fn carrier(local: &LocalNetwork) -> Carrier {
    match (local.is_routed(), local.is_switched()) {
        (true, _) => Carrier::Router,
        (false, true) => Carrier::Switch,
        (false, false) => Carrier::Bridge,
    }
}

impl Agent {
    /// Has the sources of an attachment's port checked, which may not be noted as attached yet.
    ///
    /// # Errors
    /// When the rules are refused for another reason than that nft is missing; where the switch
    /// carries local frames for that reason too.
    pub async fn guard_port(&self, local: &LocalNetwork, note: &Attachment) -> Result<(), Error> {
        // Who comes second sees what the first has done, so that neither takes a check back.
        let mut all = local.guarded.lock().await;
        let failed = |err| link_error(&err);
        let owner = self.networks.owner();
        let found =
            endpoint::port(&local.namespace, owner, &note.endpoint).await.map_err(failed)?;
        if let (Some(present), Some(port)) = (all.as_mut(), found) {
            // A port that was made anew has left its old index in the map.
            let wanted = guarded(port, note, carrier(local));
            let same = present
                .get(&note.endpoint)
                .is_none_or(|before| (&before.port, before.index) == (&wanted.port, wanted.index));
            if same && source_check::put(&local.namespace, &wanted).await.is_ok() {
                present.insert(note.endpoint.clone(), wanted);
                self.clear_warning(UNCHECKED);
                return Ok(());
            }
        }
        *all = self.guard_all(local, Some(note), carrier(local)).await?;
        Ok(())
    }

    /// Has the switch or the bridge carry local frames, as the options of the networks now say.
    pub async fn settle_carriers(&self) {
        for local in self.networks.all().await {
            let wanted = self.tables.switches_locally(local.key);
            let key = format!("local-{}", local.id);
            if wanted == local.is_switched() {
                self.clear_warning(&key);
                continue;
            }
            match self.turn(&local, wanted).await {
                Ok(()) => {
                    self.clear_warning(&key);
                    tracing::info!(network = %local.id, switch = wanted, "local frames are turned");
                }
                Err(err) => {
                    let text = format!("the option `local` of network {} waits: {err}", local.id);
                    self.warn(&key, text, err.next_step);
                }
            }
        }
    }

    async fn turn(&self, local: &LocalNetwork, switched: bool) -> Result<(), Error> {
        let mut all = local.guarded.lock().await;
        let failed = |err| link_error(&err);
        let isolate = || endpoint::set_isolated(&local.namespace, self.networks.owner(), switched);
        if switched {
            self.guard_all(local, None, Carrier::Both).await?;
            self.datapath.set_local(local.key, true);
            match self.guard_all(local, None, Carrier::Switch).await {
                Ok(guarded) => *all = guarded,
                Err(err) => {
                    self.datapath.set_local(local.key, false);
                    return Err(err);
                }
            }
            local.set_switched(true);
            isolate().await.map_err(failed)
        } else {
            isolate().await.map_err(failed)?;
            *all = self.guard_all(local, None, Carrier::Bridge).await?;
            local.set_switched(false);
            self.datapath.set_local(local.key, false);
            Ok(())
        }
    }

    /// Ends the check of an endpoint's port, which is gone.
    ///
    /// # Errors
    /// As [`Self::guard_port`].
    pub async fn unguard_port(&self, local: &LocalNetwork, endpoint: &str) -> Result<(), Error> {
        let mut all = local.guarded.lock().await;
        if let Some(present) = all.as_mut() {
            let Some(port) = present.remove(endpoint) else { return Ok(()) };
            if source_check::take(&local.namespace, &port).await.is_ok() {
                return Ok(());
            }
        }
        *all = self.guard_all(local, None, carrier(local)).await?;
        Ok(())
    }

    /// Has exactly the ports of the network's attachments checked, and that of `extra`. Gives what is
    /// checked then; `None` when nothing can be.
    async fn guard_all(
        &self,
        local: &LocalNetwork,
        extra: Option<&Attachment>,
        carrier: Carrier,
    ) -> Result<Option<BTreeMap<String, Guarded>>, Error> {
        let id = local.id.as_str();
        let noted = self.attachments();
        let here = noted.iter().filter(|note| note.network == id && note.stage != Stage::Detaching);
        let notes: BTreeMap<&str, &Attachment> =
            here.chain(extra).map(|note| (note.endpoint.as_str(), note)).collect();
        let found = endpoint::find(&local.namespace, self.networks.owner())
            .await
            .map_err(|err| link_error(&err))?;
        let mut all = BTreeMap::new();
        let mut ports = Vec::new();
        for found in found {
            let note = found.endpoint.as_deref().and_then(|endpoint| notes.get(endpoint));
            if let Some(note) = note {
                let port = guarded((found.port.name, found.port.index), note, carrier);
                all.insert(note.endpoint.clone(), port.clone());
                ports.push(port);
            }
        }
        match source_check::apply(&local.namespace, &ports).await {
            Ok(()) => {
                self.clear_warning(UNCHECKED);
                Ok(Some(all))
            }
            Err(err @ link::Error::Nft { .. }) if carrier == Carrier::Bridge => {
                // The bridge still refuses foreign MACs; what is missing is the check of addresses.
                self.warn(
                    UNCHECKED,
                    format!("the source addresses of sandboxes are not checked: {err}"),
                    Some("install nftables (`apt-get install nftables`)".to_owned()),
                );
                Ok(None)
            }
            Err(err) => Err(link_error(&err)),
        }
    }
}

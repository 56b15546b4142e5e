//! Endpoints of this host whose MAC or address somebody else has.
//!
//! # Theory of operation
//!
//! ```text
//!   two records claim one thing          all hosts choose the same winner (membership::reconcile)
//!   our record is gone, another has      the endpoint was moved away, or its record was lost while
//!   what it had                          this host was cut off from the store
//!      └─► cut off here: port down, its MAC out of the bridge; named in `status` and `endpoints`
//!   it wins, or the other is gone        set up again, and written again where it has no record
//! ```
//!
//! The tables send every frame to the winner from the moment at which they know, also those of this
//! host's containers once the bridge has forgotten the MAC. The note of the attachment says that it
//! is cut off, so a restart changes nothing of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use membership::key::{EndpointId, NetworkId};
use membership::reconcile::Claim;

use super::state::{Attachment, Publication, Stage};
use super::{Agent, link_error};
use crate::driver::attach;
use crate::link;

/// Changes that come within this time of each other are looked at together.
const TOGETHER: Duration = Duration::from_millis(10);

/// Why each endpoint of this host that lost a claim has lost it.
type Lost = BTreeMap<EndpointId, String>;

/// Looks after the claims of this host's endpoints whenever the tables may have changed, for ever.
pub async fn run(agent: Arc<Agent>) {
    loop {
        agent.claims.notified().await;
        if agent.tables.is_complete() {
            settle(&agent).await;
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

async fn settle(agent: &Agent) {
    let lost = lost(agent);
    let told: Vec<(Attachment, NetworkId, EndpointId)> = agent
        .attachments()
        .into_iter()
        .filter(|note| note.publication == Publication::Done)
        .filter_map(|note| {
            let ids = (NetworkId::new(&note.network).ok()?, EndpointId::new(&note.endpoint).ok()?);
            Some((note, ids.0, ids.1))
        })
        .collect();
    let present: Vec<bool> = agent.tables.view(|view| {
        told.iter().map(|(_, network, id)| view.endpoint(network, id).is_some()).collect()
    });
    for ((note, network, id), present) in told.iter().zip(present) {
        let done = match (note.stage, lost.get(id)) {
            (Stage::Attached, Some(why)) => {
                tracing::warn!(endpoint = %id, network = %note.network_name, why, "cut off");
                cut_off(agent, note, network, why.clone()).await
            }
            (Stage::Attached, None) if !present => match agent.rival(note) {
                Some(why) => {
                    tracing::info!(endpoint = %id, network = %note.network_name, why, "cut off");
                    cut_off(agent, note, network, why).await
                }
                None => Ok(()),
            },
            (Stage::Quarantined, None) if present || agent.rival(note).is_none() => {
                heal(agent, note, network).await
            }
            _ => Ok(()),
        };
        if let Err(err) = done {
            // Looked at again within a second.
            tracing::debug!(endpoint = %id, err, "what an endpoint claims cannot be settled now");
        }
    }
}

fn lost(agent: &Agent) -> Lost {
    let conflicts = agent.tables.reconciler(|reconciler, _| reconciler.conflicts());
    let mut lost = Lost::new();
    for conflict in conflicts {
        let what = match conflict.claim {
            Claim::Ip(ip) => format!("address {ip}"),
            Claim::Mac(mac) => format!("MAC {mac}"),
        };
        for (endpoint, host) in conflict.losers {
            if host == agent.name {
                let why =
                    format!("{what} is endpoint {}'s on {}", conflict.winner, conflict.winner_host);
                lost.entry(endpoint).or_insert(why);
            }
        }
    }
    lost
}

impl Agent {
    /// Who has the MAC or an address of an attachment whose own record is gone.
    #[must_use]
    pub fn rival(&self, note: &Attachment) -> Option<String> {
        let network = NetworkId::new(&note.network).ok()?;
        self.tables.view(|view| {
            let rival = view.endpoints_of(&network).map(|item| &item.record).find(|other| {
                let same = |ip: &std::net::IpAddr| note.ips.iter().any(|net| net.addr() == *ip);
                other.id.as_str() != note.endpoint
                    && (other.mac == note.mac || other.ips.iter().any(same))
            })?;
            Some(format!("endpoint {} on {} has taken its place", rival.id, rival.host))
        })
    }
}

async fn cut_off(
    agent: &Agent,
    note: &Attachment,
    network: &NetworkId,
    why: String,
) -> Result<(), String> {
    if let Some(local) = agent.networks.get(network).await {
        let down =
            link::endpoint::down(&local.namespace, agent.networks.owner(), note.endpoint.as_str());
        down.await.map_err(|err| link_error(&err).to_string())?;
    }
    let changed = agent.change_attachment(&note.endpoint, |note| {
        if note.stage == Stage::Attached {
            note.stage = Stage::Quarantined;
            note.reason = Some(why);
        }
    });
    changed.map_err(|err| err.to_string())
}

async fn heal(agent: &Agent, note: &Attachment, network: &NetworkId) -> Result<(), String> {
    let _turn = agent.restoring.lock().await;
    let Some(record) = agent.known_network(network) else { return Ok(()) };
    let mut healed = None;
    let changed = agent.change_attachment(&note.endpoint, |note| {
        if note.stage == Stage::Quarantined {
            note.stage = Stage::Attached;
            note.reason = None;
            healed = Some(note.clone());
        }
    });
    changed.map_err(|err| err.to_string())?;
    let Some(healed) = healed else { return Ok(()) };
    // If it cannot be set up now, whoever looks after attachments goes on.
    agent.mark_unsettled(&healed.endpoint);
    attach::restore(agent, &healed, &record).await.map_err(|err| err.to_string())?;
    agent.mark_settled(&healed.endpoint);
    // If the store does not have it any more, it is written again.
    agent.doubts.suspect();
    tracing::info!(endpoint = %healed.endpoint, network = %healed.network_name, "no longer cut off");
    Ok(())
}

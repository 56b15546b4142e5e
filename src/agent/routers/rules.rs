//! The host's rules: what may pass the uplinks, and what is asked of other people's rules.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::PoisonError;
use std::time::Duration;

use membership::key::NetworkId;

use super::Host;
use crate::agent::Agent;
use crate::agent::state::Stage;
use crate::link::firewall::{self, Rules, Way};
use crate::link::forwarding::{self, Forwarding};
use crate::link::{self, NetNs, permission, uplink};

/// How long after a failure the rules are looked at once more.
const AGAIN: Duration = Duration::from_millis(300);
/// How long an agent that starts waits with changing the rules for attachments that it has not restored
/// yet.
const RESTORING: Duration = Duration::from_secs(60);
/// The warning that rules cannot be written.
const RULES: &str = "uplink-rules";

/// What is written.
#[derive(Default)]
pub(super) struct Written {
    rules: Option<Rules>,
    /// The table as nft showed it after it was written.
    shown: Option<String>,
    /// Chains of others that need not be asked.
    open: permission::Open,
}

/// Writes the host's rules where they are not those of the networks that are set up here; with `check`
/// also where somebody else changed them.
pub async fn write(agent: &Agent, check: bool) {
    if is_restoring(agent).await {
        return;
    }
    let mut result = write_now(agent, check).await;
    if result.is_err() {
        // Somebody may be reloading their rules in this moment: what was listed is gone already.
        tokio::time::sleep(AGAIN).await;
        result = write_now(agent, check).await;
    }
    match result {
        Ok(()) => agent.clear_warning(RULES),
        Err(error) => agent.warn(
            RULES,
            format!("networks do not reach the world or this host: {error}"),
            Some("it is tried again by itself; `nft list ruleset` shows what is there".to_owned()),
        ),
    }
}

/// Whether attachments of an earlier run are still to come: their rules must not go meanwhile.
async fn is_restoring(agent: &Agent) -> bool {
    agent.started.elapsed() <= RESTORING && !pending(agent).await.is_empty()
}

/// The networks of attachments that are still to be restored: what an earlier run has left of them
/// carries packets.
pub(super) async fn pending(agent: &Agent) -> BTreeSet<NetworkId> {
    let mut found = BTreeSet::new();
    for note in agent.attachments() {
        if note.stage != Stage::Attached {
            continue;
        }
        let Ok(id) = NetworkId::new(&note.network) else { continue };
        let may_come = !agent.tables.is_complete() || agent.known_network(&id).is_some();
        if may_come && agent.networks.get(&id).await.is_none() {
            found.insert(id);
        }
    }
    found
}

async fn write_now(agent: &Agent, check: bool) -> Result<(), link::Error> {
    let mut written = agent.routers.written.lock().await;
    let host = NetNs::host()?;
    let owner = agent.networks.owner();
    let ways: Vec<Way> = {
        let ways = agent.routers.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.values().cloned().collect()
    };
    let udp_ports = firewall::udp_ports(&own_ports(agent), &ephemeral());
    let before = written.rules.as_ref().map(|rules| rules.underlays.clone());
    let underlays = underlays(agent, &ways, before.unwrap_or_default()).await?;
    let rules = Rules { owner: owner.clone(), ways, underlays, udp_ports };
    let changed = written.rules.as_ref() != Some(&rules);
    if !changed && (!check || rules.ways.is_empty()) {
        return Ok(());
    }
    if changed && let Err(error) = remove_unruled(agent, &rules).await {
        tracing::warn!(%error, "a way out that no network has may be left");
    }
    if rules.ways.is_empty() {
        let removed = async {
            firewall::remove(&host, owner).await?;
            permission::remove(&host, owner).await
        };
        match removed.await {
            // Nothing of this run is there, and without nft nothing of an earlier one.
            Err(link::Error::Nft { .. }) if written.rules.is_none() => {}
            removed => drop(removed?),
        }
        agent.routers.note(|host| *host = Host::default());
        written.rules = Some(rules);
        return Ok(());
    }
    let lost = !changed && firewall::present(&host, owner).await? != written.shown;
    if changed || lost {
        written.shown = firewall::apply(&host, &rules).await?;
    }
    let has = |v6: bool| {
        // As they are, packets go in the families of the underlay.
        let under = agent.config.vteps.iter().any(|vtep| vtep.bind.is_ipv6() == v6);
        let mut out = rules.ways.iter().filter(|way| way.masquerade || (way.direct && under));
        out.any(|way| way.subnets.iter().any(|subnet| subnet.addr().is_ipv6() == v6))
    };
    let wanted = Forwarding { v4: has(false), v6: has(true) };
    let set = forwarding::enable(&host, wanted).await?;
    let forwarding = forwarding::state(&host).await?;
    let open = std::mem::take(&mut written.open);
    let permission;
    (permission, written.open) = permission::settle(&host, owner, open).await?;
    let again = lost || (!changed && permission.made > 0);
    if again {
        tracing::info!(
            rules = lost,
            jumps = permission.made,
            "the host's firewall was changed; the rules of the uplinks are there again"
        );
    }
    if !set.is_empty() {
        tracing::info!(settings = set.join(", "), "the host forwards now, which ways out need");
    }
    let refused = permission.refused.iter().map(|(place, error)| format!("{place} ({error})"));
    let refused: Vec<String> = refused.collect();
    agent.routers.note(|host| {
        for place in refused.iter().filter(|place| !host.refused.contains(place)) {
            tracing::warn!(%place, "a chain refuses what is forwarded and cannot be asked");
        }
        host.refused = refused;
        host.table = Some(format!("inet {}", firewall::table(owner)));
        host.udp_ports = Some(rules.udp_ports.clone());
        host.permission = permission.places;
        host.reasserted += u64::from(again);
        host.changed.extend(set);
        host.forwarding = forwarding;
        host.uplinks = rules.ways.iter().map(|way| way.uplink.clone()).collect();
    });
    written.rules = Some(rules);
    Ok(())
}

/// The UDP ports that the switch receives on, those of networks that are not here yet included.
fn own_ports(agent: &Agent) -> Vec<u16> {
    let mut ports = agent.datapath.config().ports.clone();
    agent.tables.view(|view| {
        for item in view.networks() {
            if item.record.mode.is_routed() {
                let (v4, v6) = membership::network::udp_ports(&item.record);
                ports.extend([v4, v6]);
            } else {
                ports.extend(item.record.udp_port);
            }
        }
    });
    ports
}

/// The ports that the kernel gives to sockets which ask for none.
fn ephemeral() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    numbers.next().unwrap_or(32_768)..=numbers.next().unwrap_or(60_999)
}

/// Names of the interfaces that other hosts' packets come by as they are, where any do. One that is gone
/// for a moment stays in the rules.
async fn underlays(
    agent: &Agent,
    ways: &[Way],
    mut before: Vec<String>,
) -> Result<Vec<String>, link::Error> {
    if !ways.iter().any(|way| way.direct) {
        return Ok(Vec::new());
    }
    let vteps: Vec<_> = agent.config.vteps.iter().map(|vtep| vtep.bind).collect();
    let found = link::underlay::interfaces(agent.routers.netlink().await?, &vteps).await?;
    if found.len() == vteps.len() {
        before.clear();
    }
    before.extend(found.into_iter().map(|interface| interface.name));
    before.sort();
    before.dedup();
    Ok(before)
}

/// Removes uplinks that no rule speaks of: an earlier run has left them, and their network is gone.
async fn remove_unruled(agent: &Agent, rules: &Rules) -> Result<(), link::Error> {
    let host = agent.routers.netlink().await?;
    let pending = pending(agent).await;
    for link in host.links().await? {
        let Some(network) = agent.networks.owner().uplink_network(&link.alias) else { continue };
        let awaited = pending.iter().any(|id| id.as_str() == network);
        if !awaited && !rules.ways.iter().any(|way| way.uplink == link.name) {
            uplink::remove(host, &link.name).await?;
            tracing::info!(uplink = %link.name, "removed the way out of a network that has none");
        }
    }
    Ok(())
}

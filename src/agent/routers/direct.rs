//! The host's half of what goes directly: routes to what other hosts of the same subnet have
//! ([`crate::link::direct`]).
//!
//! All hosts of the subnet have routes here, whatever way is used to them: which way that is, the
//! private namespaces say alone. So what arrives as it is finds its way back, as strict hosts demand,
//! also while the two hosts are of two minds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use membership::gateway;

use super::gives_way;
use crate::agent::networks::LocalNetwork;
use crate::agent::{Agent, paths};
use crate::link;
use crate::link::direct::{self, Direct, Half};

/// The warning that routes of the host cannot be written.
const DIRECT: &str = "direct-routes";

/// Brings the host's half to what it shall be. With `keep` the routes that private namespaces still lead
/// to stay as they were; with `check` it is read what is there.
pub(super) async fn settle(agent: &Agent, locals: &[Arc<LocalNetwork>], keep: bool, check: bool) {
    let mut routes: BTreeMap<IpNet, IpAddr> = BTreeMap::new();
    let mut uplinks = Vec::new();
    for local in locals {
        let Some(record) = agent.known_network(&local.id) else { continue };
        if gateway::goes_direct(&record) && !gives_way(agent, &record) {
            uplinks.push(agent.networks.owner().uplink(record.id.as_str()));
            routes.extend(paths::neighbor_routes(agent, &record));
        }
    }
    uplinks.sort_unstable();
    let mut present = agent.routers.direct.lock().await;
    if uplinks.is_empty() && present.as_ref().is_some_and(|half| *half == Half::default()) {
        return;
    }
    let error = match settle_half(agent, routes, uplinks, keep, check, present.clone()).await {
        Ok((now, error)) => {
            *present = Some(now);
            error
        }
        Err(error) => Some(error),
    };
    match error {
        None => agent.clear_warning(DIRECT),
        Some(error) => agent.warn(
            DIRECT,
            format!("packets that could go directly are encapsulated: {error}"),
            Some("it is tried again by itself".to_owned()),
        ),
    }
}

async fn settle_half(
    agent: &Agent,
    mut wanted: BTreeMap<IpNet, IpAddr>,
    uplinks: Vec<String>,
    keep: bool,
    check: bool,
    before: Option<Half>,
) -> Result<(Half, Option<link::Error>), link::Error> {
    let host = agent.routers.netlink().await?;
    let vteps: Vec<IpAddr> = agent.config.vteps.iter().map(|vtep| vtep.bind).collect();
    // One that is gone has taken its routes along.
    let interfaces = link::underlay::interfaces(host, &vteps).await?;
    // A strict host takes hellos only where it would send its own.
    for (to, via) in paths::hello_routes(agent) {
        wanted.entry(to).or_insert(via);
    }
    let mut routes: Vec<Direct> = Vec::with_capacity(wanted.len());
    for (to, via) in wanted {
        let found = interfaces.iter().find(|interface| {
            let subnet = IpNet::new(interface.address, interface.prefix_len);
            subnet.is_ok_and(|subnet| subnet.contains(&via))
        });
        routes.extend(found.map(|found| Direct { to, via, interface: found.index }));
    }
    let mut half = Half { routes, uplinks };
    let present = match &before {
        Some(before) => before.clone(),
        None => direct::present(host).await?,
    };
    if keep {
        let gone = |it: &&Direct| !half.routes.iter().any(|route| route.to == it.to);
        let left: Vec<Direct> = present.routes.iter().filter(gone).cloned().collect();
        half.routes.extend(left);
        half.uplinks.extend(present.uplinks.iter().cloned());
    }
    half.routes.sort_unstable();
    half.uplinks.sort_unstable();
    half.uplinks.dedup();
    if check || present != half {
        let settled = direct::settle(host, &half, before.as_ref()).await?;
        if settled.lost {
            tracing::info!("somebody had removed routes to other hosts; they are there again");
        }
        half.routes.retain(|route| !settled.refused.contains(route));
        if let Some(error) = settled.error {
            return Ok((half, Some(error)));
        }
    }
    Ok((half, None))
}

/// Those of `wanted` that the host has routes to: a private namespace leads nothing else there.
///
/// # Errors
/// `Netlink`, `Timeout`.
pub(super) async fn written(
    agent: &Agent,
    mut wanted: Vec<IpNet>,
) -> Result<Vec<IpNet>, link::Error> {
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let known = agent.routers.direct.lock().await.clone();
    let half = match known {
        Some(half) => half,
        // What an earlier run has left, until this one has looked at it.
        None => direct::present(agent.routers.netlink().await?).await?,
    };
    wanted.retain(|to| half.routes.iter().any(|it| it.to == *to));
    Ok(wanted)
}

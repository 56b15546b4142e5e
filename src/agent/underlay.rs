//! This host's own end of the underlay, followed while it runs.
//!
//! # Theory of operation
//!
//! Addresses come and go and MTUs change while the agent runs: a DHCP lease, a bond that is rebuilt,
//! an operator. Sockets are bound to addresses, not to interfaces, so they go on by themselves when
//! an address is back; until then a warning says which is missing. A changed MTU is acted upon: the
//! workers cut to it at once, the networks' MTU is computed anew here, and the host's record tells
//! the others, who do the same. An MTU that the configuration fixes is left alone.
//!
//! The interfaces are looked at every few seconds: that is soon enough for what people do, and finds
//! what a lost notification would not.

use std::sync::Arc;
use std::time::Duration;

use membership::record::HostRecord;
use membership::session::Session;
use tokio::time::{MissedTickBehavior, interval};

use super::{Agent, tasks};
use crate::link::{self, NetNs};

/// How often the interfaces are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// What needs attention.
const UNDERLAY: &str = "underlay";

/// Follows the interfaces of the VTEP addresses, for ever. `host` is what the session tells.
pub async fn follow(agent: Arc<Agent>, session: Arc<Session>, mut host: HostRecord) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(found) = look(&agent).await else { continue };
        match &found.wrong {
            Some((text, next_step)) => {
                agent.warn(UNDERLAY, text.clone(), Some((*next_step).to_owned()));
            }
            None => agent.clear_warning(UNDERLAY),
        }
        let mut changed = false;
        for (record, mtu) in host.vteps.iter_mut().zip(found.mtus) {
            if let Some(mtu) = mtu.filter(|mtu| *mtu != record.mtu) {
                tracing::info!(
                    vtep = %record.advertise, before = record.mtu, mtu, "the underlay's MTU changed"
                );
                record.mtu = mtu;
                changed = true;
            }
        }
        if !changed {
            continue;
        }
        host.underlay_mtu = host.vteps.iter().map(|vtep| vtep.mtu).min().unwrap_or(0);
        agent.datapath.set_underlay_mtu(host.underlay_mtu);
        agent.tables.set_own_vteps(&host.vteps);
        tasks::settle_mtus(&agent).await;
        if let Err(err) = session.update(host.clone()).await {
            // It is published when the store is back.
            tracing::debug!(%err, "the store was not told of the underlay's MTU yet");
        }
    }
}

struct Found {
    /// The MTU of each VTEP's interface, where it is known and the configuration does not fix it.
    mtus: Vec<Option<u16>>,
    wrong: Option<(String, &'static str)>,
}

/// `None` when the kernel does not answer.
async fn look(agent: &Agent) -> Option<Found> {
    let namespace = NetNs::host().ok()?;
    let mut found = Found { mtus: Vec::new(), wrong: None };
    for vtep in &agent.config.vteps {
        match link::underlay::interface(&namespace, vtep.bind).await {
            Ok(interface) => {
                let mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
                found.mtus.push(vtep.mtu.is_none().then_some(mtu));
                if !interface.operational {
                    let text = format!(
                        "{}, which has the VTEP address {}, is down",
                        interface.name, vtep.bind
                    );
                    found.wrong = Some((text, "set it up; traffic comes back by itself"));
                }
            }
            Err(err @ link::Error::NoSuchAddress { .. }) => {
                found.mtus.push(None);
                let next_step = "give the address back to its interface, and traffic comes back by \
                                 itself; or set --vtep to another one and restart the agent";
                found.wrong = Some((err.to_string(), next_step));
            }
            Err(err) => {
                tracing::debug!(%err, "the underlay cannot be looked at");
                return None;
            }
        }
    }
    Some(found)
}

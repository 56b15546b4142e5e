//! Keeps this host's certificates from ending.
//!
//! # Theory of operation
//!
//! A certificate is replaced when a third of its life is left. The serving host signs its own and
//! the store's; a joined host asks the store. The new one is used for connections from then on, and
//! those that are open stay: nothing is restarted. What does not work is a warning of `skybridge
//! status` and is tried again, for the four months that the old one still counts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use membership::embedded::{Admission, ShownCertificate};
use membership::pki::{Facts, Files, Joined};
use tokio::time::sleep;

use super::Error;
use crate::agent::Agent;
use crate::config::Config;

/// How often it is looked whether one is due.
const LOOK: Duration = Duration::from_secs(3600);
/// How soon a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(300);
/// The key of the warning.
const WARNING: &str = "certificate";

/// Who renews the certificates of this host.
pub enum Keeper {
    /// The store's own authority, which is here.
    Authority {
        /// What signs.
        admission: Arc<Admission>,
        /// What the store shows.
        shown: Option<ShownCertificate>,
    },
    /// The store that this host has joined.
    Joined {
        /// Where the certificate is.
        files: Files,
        /// The store.
        joined: Joined,
    },
}

impl Keeper {
    /// The keeper of an agent whose certificates are ours; `None` where they are somebody else's,
    /// or there are none.
    #[must_use]
    pub fn of(
        config: &Config,
        admission: Option<Arc<Admission>>,
        shown: Option<ShownCertificate>,
    ) -> Option<Self> {
        if let Some(admission) = admission {
            return Some(Self::Authority { admission, shown });
        }
        let files = Files::of(&config.state_dir);
        let (certificate, _) = config.store.tls.as_ref()?.identity.as_ref()?;
        if *certificate != files.host() {
            return None;
        }
        let joined = Joined::load(&files).ok()??;
        Some(Self::Joined { files, joined })
    }

    /// Renews what is due; tells whether anything was.
    async fn renew(&self) -> Result<bool, Error> {
        match self {
            Self::Authority { admission, shown } => {
                let (admission, shown) = (Arc::clone(admission), shown.clone());
                let keep = move || -> Result<bool, Error> {
                    let renewed = admission.keep()?;
                    if let Some(shown) = shown.filter(|_| renewed) {
                        shown.reload()?;
                    }
                    Ok(renewed)
                };
                let kept = tokio::task::spawn_blocking(keep).await;
                // It does not panic; a runtime that ends takes us with it.
                kept.unwrap_or(Ok(false))
            }
            Self::Joined { files, joined } => {
                Ok(membership::join::renew(files, joined).await.map(|(_, renewed)| renewed)?)
            }
        }
    }
}

/// Renews certificates for as long as the agent runs.
pub async fn keep(agent: Arc<Agent>, keeper: Keeper) {
    loop {
        let pause = match keeper.renew().await {
            Ok(renewed) => {
                if renewed {
                    agent.store.refresh();
                    tracing::info!("the certificate for the store is renewed");
                }
                agent.clear_warning(WARNING);
                LOOK
            }
            Err(error) => {
                agent.warn(WARNING, told(&agent, &error), error.next_step());
                RETRY
            }
        };
        sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
    }
}

fn told(agent: &Agent, error: &Error) -> String {
    let facts = Facts::load(&Files::of(&agent.config.state_dir).host());
    let left = facts.map(|facts| facts.left(SystemTime::now())).unwrap_or_default();
    let when = match left.as_secs() / 86_400 {
        _ if left.is_zero() => "has ended or cannot be read".to_owned(),
        0 => format!("ends in {} h", left.as_secs() / 3600),
        days => format!("ends in {days} days"),
    };
    format!("this host's certificate for the store {when} and cannot be renewed: {error}")
}

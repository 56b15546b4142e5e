//! The embedded store as a part of a process: its threads, its authority, its start and stop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use membership::embedded::{self, Admission, Place, ShownCertificate, Tls};
use membership::key::HostName;
use membership::pki::Files;

use crate::config::Config;
use crate::sys::privilege;

/// How long a stop may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A running embedded store with threads of its own: a slow disk must not hold up the agent.
pub struct EmbeddedStore {
    server: embedded::Server,
    runtime: tokio::runtime::Runtime,
    /// Where it listens.
    pub address: String,
    /// By whom hosts are let in, where it has an authority.
    pub admission: Option<Arc<Admission>>,
}

impl EmbeddedStore {
    /// Starts the store that an agent serves.
    ///
    /// # Errors
    /// Why it cannot be started, in words.
    pub fn of_agent(config: &Config, listen: SocketAddr) -> Result<Self, String> {
        let mut wanted = embedded::Config::new(listen, config.store_dir());
        if config.store.authority {
            let place = place(config, listen)?;
            let admission = Admission::open(Files::of(&config.state_dir), place)
                .map_err(|error| error.to_string())?;
            wanted.advertise = config.store.endpoints.first().cloned();
            wanted.admission = Some(admission);
        }
        Self::start(wanted)
    }

    /// Starts a store by itself.
    ///
    /// # Errors
    /// Why it cannot be started, in words.
    pub fn alone(listen: SocketAddr, data: PathBuf, tls: Option<Tls>) -> Result<Self, String> {
        let mut wanted = embedded::Config::new(listen, data);
        wanted.tls = tls;
        Self::start(wanted)
    }

    fn start(wanted: embedded::Config) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            // It opens files and connections of its own only, and what it reads comes from others.
            .on_thread_start(|| {
                if let Err(err) = privilege::hold(privilege::NOTHING) {
                    tracing::warn!(%err, "a thread of the store keeps its capabilities");
                }
            })
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let admission = wanted.admission.clone();
        let server =
            runtime.block_on(embedded::Server::start(wanted)).map_err(|error| error.to_string())?;
        let address = server.local_addr().to_string();
        tracing::info!(%address, "serving the embedded store");
        Ok(Self { server, runtime, address, admission })
    }

    /// What replaces its certificate while it runs.
    #[must_use]
    pub fn certificate(&self) -> Option<ShownCertificate> {
        self.server.certificate()
    }

    /// Waits until the process is told to stop.
    ///
    /// # Errors
    /// When it cannot listen to signals.
    pub fn wait(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        self.runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            Ok(())
        })
    }

    /// Finishes what is queued and ends its threads.
    pub fn stop(self) {
        self.runtime.block_on(self.server.shutdown());
        self.runtime.shutdown_timeout(GOODBYE);
    }
}

/// Where hosts find the store, and what its certificate is for.
fn place(config: &Config, listen: SocketAddr) -> Result<Place, String> {
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let reached: Vec<IpAddr> = if listen.ip().is_unspecified() {
        config.vteps.iter().map(|vtep| vtep.advertise).collect()
    } else {
        vec![listen.ip()]
    };
    addresses.extend(&reached);
    let url = |ip: &IpAddr| format!("https://{}", SocketAddr::new(*ip, listen.port()));
    Ok(Place {
        endpoints: reached.iter().map(url).collect(),
        addresses,
        prefix: config.store.prefix.clone(),
        host: HostName::new(&config.name).map_err(|error| error.to_string())?,
        life: None,
    })
}

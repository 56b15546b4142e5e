//! The server: its configuration, start and stop.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle as Task;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use super::admission::Admission;
use super::error::Error;
use super::store::Store;
use super::{limits, rpc, tls};

/// How the embedded store is served.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Address and port to listen on; port 0 lets the kernel choose ([`Server::local_addr`]).
    pub listen: SocketAddr,
    /// Directory of the store's file; made when missing, locked while the server runs.
    pub data_dir: PathBuf,
    /// The URL told to clients that ask for the members; `None` tells the listening address.
    pub advertise: Option<String>,
    /// Certificates; `None` serves plaintext, or with those of [`Self::admission`].
    pub tls: Option<Tls>,
    /// The store's own authority, by which hosts join; its certificates are used then.
    pub admission: Option<Arc<Admission>>,
    /// The name told to clients that ask for the members.
    pub name: String,
    /// How often an idle watch that asked for it hears the revision.
    pub watch_progress: Duration,
}

impl Config {
    /// Plaintext on `listen`, with the data in `data_dir` and defaults for the rest.
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen,
            data_dir: data_dir.into(),
            advertise: None,
            tls: None,
            admission: None,
            name: "skybridge".to_owned(),
            watch_progress: limits::WATCH_PROGRESS,
        }
    }
}

/// PEM files of a TLS server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate of this server, with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// When given, clients must show a certificate signed by this CA.
    pub client_ca: Option<PathBuf>,
}

/// The certificate that a running store shows.
#[derive(Clone, Debug)]
pub struct ShownCertificate(Arc<tls::Shown>);

impl ShownCertificate {
    /// Reads its files anew; connections from now on are shown what they hold. Blocks for that.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`]; what is shown stays then.
    pub fn reload(&self) -> Result<(), Error> {
        self.0.reload()
    }
}

/// A running embedded store. Dropping it stops it without waiting; [`Server::shutdown`] waits.
pub struct Server {
    store: Arc<Store>,
    local_addr: SocketAddr,
    certificate: Option<Arc<tls::Shown>>,
    serving: Option<Task<Result<(), tonic::transport::Error>>>,
    expiry: Task<()>,
    writer: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds the address, opens the data directory and serves from then on.
    ///
    /// Must be called within a tokio runtime with time and I/O.
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] when the address is taken or not ours, [`Error::InUse`] when another server
    /// has the data directory, [`Error::NewerFormat`], [`Error::Corrupt`] and [`Error::Storage`]
    /// by the state of the file, [`Error::Tls`] for its certificates. Nothing keeps running.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let builder = tonic::transport::Server::builder()
            .accept_http1(true)
            // A client that vanished without a word frees its watches after about half a minute.
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)));
        let files = match &config.admission {
            Some(admission) => Some(admission.tls()),
            None => config.tls.clone(),
        };
        let strangers = config.admission.is_some();
        let loaded = files.as_ref().map(|files| tls::load(files, strangers)).transpose()?;
        let bind = |source: io::Error| {
            let hint = bind_hint(source.kind());
            Error::Bind { address: config.listen, source, hint }
        };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        let dir = config.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir)).await;
        let (store, writer) = match opened {
            Ok(opened) => opened?,
            Err(gone) => return Err(Error::Thread { source: io::Error::other(gone) }),
        };

        if let Some(admission) = &config.admission {
            let (prefix, host) = (admission.prefix().to_owned(), admission.host().to_owned());
            let open = store.write(move |txn| {
                txn.change_auth(|auth| auth.open_to_hosts(&prefix).and_then(|()| auth.admit(&host)))
            });
            open.await.map_err(|refusal| Error::Refused(refusal.to_string()))?;
        }
        if loaded.is_none() && store.auth().enabled() {
            warn!(
                "users and roles are switched on in this store, and it is served in clear: every \
                 client needs a user and a password"
            );
        }
        let scheme = if loaded.is_some() { "https" } else { "http" };
        let member = rpc::Member {
            name: config.name.clone(),
            url: config.advertise.clone().unwrap_or_else(|| format!("{scheme}://{local_addr}")),
        };
        let router = rpc::router(builder, &store, member, config.watch_progress, config.admission);
        let mut stopping = store.stopping();
        let stopped = async move {
            // An error means the store is gone, which is a stop as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let (serving, certificate) = match loaded {
            Some((tls, certificate)) => {
                let incoming = tls::accept(listener, tls, strangers);
                let serving = router.serve_with_incoming_shutdown(incoming, stopped);
                (tokio::spawn(serving), Some(certificate))
            }
            None => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                (tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped)), None)
            }
        };
        let expiry = tokio::spawn(Arc::clone(&store).expire_leases());
        info!(address = %local_addr, dir = %config.data_dir.display(), "the embedded store serves");
        let (serving, writer) = (Some(serving), Some(writer));
        Ok(Self { store, local_addr, certificate, serving, expiry, writer })
    }

    /// What replaces the certificate while the server runs; `None` for one in clear.
    pub fn certificate(&self) -> Option<ShownCertificate> {
        self.certificate.clone().map(ShownCertificate)
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The last revision that is readable.
    pub fn revision(&self) -> i64 {
        self.store.read(|state| state.visible())
    }

    /// Ends the streams, finishes queued writes and releases the address and the directory.
    pub async fn shutdown(mut self) {
        self.store.stop_streams();
        if let Some(mut serving) = self.serving.take()
            && tokio::time::timeout(limits::SHUTDOWN_GRACE, &mut serving).await.is_err()
        {
            warn!("clients kept their connections; they are closed");
            serving.abort();
        }
        self.expiry.abort();
        self.store.stop_writer().await;
        if let Some(writer) = self.writer.take() {
            // The join itself cannot fail in a way that matters here: the thread has ended.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        info!(address = %self.local_addr, "the embedded store has stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.store.stop_streams();
        if let Some(serving) = &self.serving {
            serving.abort();
        }
        self.expiry.abort();
        if self.writer.is_some() {
            self.store.stop_writer_now();
        }
    }
}

fn bind_hint(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => {
            "another program listens there (`ss -ltnp` names it): stop it or choose another port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this host has that address: choose one of `ip addr`"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need root: choose a higher one",
        _ => "check the address",
    }
}

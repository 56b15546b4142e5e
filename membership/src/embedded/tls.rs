//! TLS of the server: certificates that can be replaced while it runs, and connections that are
//! bounded in number before they are trusted.
//!
//! # Theory of operation
//!
//! One task accepts. Each handshake runs in a task of its own, at most [`limits::HANDSHAKES`] at
//! once and [`limits::HANDSHAKE`] long. A client that shows a certificate must show a good one.
//! Where hosts may join, one that shows none is let in as well, as a stranger: there are few of
//! them at a time, each is cut off after [`limits::STRANGER_LIFE`], and the services refuse
//! everything to them but to join (see [`super::rpc`]).

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use tracing::debug;

use super::error::Error;
use super::limits;
use super::server::Tls;

/// The certificate that is shown, and where it comes from.
#[derive(Debug)]
pub(crate) struct Shown {
    files: Tls,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Shown {
    /// Reads the files anew; connections from now on are shown what they hold.
    pub(crate) fn reload(&self) -> Result<(), Error> {
        let fresh = Arc::new(certified(&self.files, &self.provider)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Reads the files and makes the server's configuration. With `strangers`, clients may come without
/// a certificate.
pub(crate) fn load(files: &Tls, strangers: bool) -> Result<(Arc<ServerConfig>, Arc<Shown>), Error> {
    let provider = Arc::new(ring::default_provider());
    let current = RwLock::new(Arc::new(certified(files, &provider)?));
    let shown = Arc::new(Shown { files: files.clone(), provider: Arc::clone(&provider), current });
    let failed = |path: &Path, error: &dyn std::fmt::Display| wrong(path, error);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&files.certificate, &error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| failed(path, &error))?;
            }
            let mut verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if strangers {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|error| failed(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(config), shown))
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Tls { path: path.to_owned(), what: error.to_string() }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| wrong(path, &error))
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(path, &error))?;
    if found.is_empty() { Err(wrong(path, &"it holds no certificate")) } else { Ok(found) }
}

fn certified(files: &Tls, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|error| wrong(&files.key, &error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| wrong(&files.key, &error))
}

/// A connection with its place among the bounded number, and the end of a stranger's time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Accepts until nobody takes the connections any more. With `strangers`, clients without a
/// certificate are bounded more tightly.
pub(crate) fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    strangers: bool,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES));
        let known = Arc::new(Semaphore::new(limits::CONNECTIONS));
        let strangers = strangers.then(|| Arc::new(Semaphore::new(limits::STRANGERS)));
        loop {
            let Ok(place) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, or a client that left at once.
                sleep(limits::ACCEPT_PAUSE).await;
                continue;
            };
            let (acceptor, sender) = (TlsAcceptor::from(Arc::clone(&config)), sender.clone());
            let (known, strangers) = (Arc::clone(&known), strangers.clone());
            tokio::spawn(async move {
                let _place = place;
                match shake(acceptor, stream, known, strangers).await {
                    // Nobody takes it once the server stops.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(error) => debug!(%error, "a client is not let in"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn shake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    known: Arc<Semaphore>,
    strangers: Option<Arc<Semaphore>>,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = timeout(limits::HANDSHAKE, acceptor.accept(stream)).await??;
    let shown = stream.get_ref().1.peer_certificates().is_some();
    let (places, deadline) = match strangers.filter(|_| !shown) {
        Some(strangers) => (strangers, Some(Box::pin(sleep(limits::STRANGER_LIFE)))),
        None => (known, None),
    };
    let place = places
        .try_acquire_owned()
        .map_err(|_| io::Error::other("there are too many connections already"))?;
    Ok(Connection { stream, deadline, _place: place })
}

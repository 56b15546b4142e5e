//! The connection on which a host joins: TLS to a store whose authority is known by its
//! fingerprint, or by its certificate once the host has joined.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Request;
use tonic::codegen::Service;
use tonic::transport::{Endpoint, Uri};
use tonic_prost::ProstCodec;

use super::{Error, PATIENCE, proto};
use crate::pki::Fingerprint;

/// By what the store is recognised, and what it is shown.
pub(super) enum Trust<'a> {
    /// By the fingerprint of its authority; nothing is shown.
    Fingerprint(Fingerprint),
    /// By its authority (PEM); this host's key and certificate (PEM) are shown.
    Authority { ca: &'a str, identity: &'a str },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Takes a server whose chain has the authority with that fingerprint, and which webpki then finds
/// to be signed by it and to have the name that was dialled.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    /// Whether the chain had no such authority.
    stranger: Arc<AtomicBool>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|ca| Fingerprint::of(ca) == self.fingerprint);
        let Some(pinned) = pinned else {
            self.stranger.store(true, Ordering::Relaxed);
            return Err(rustls::Error::General("another authority".to_owned()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Calls one method of the joining service at the first endpoint that can be reached.
pub(super) async fn call<Req, Res>(
    endpoints: &[String],
    trust: &Trust<'_>,
    path: &'static str,
    message: Req,
) -> Result<Res, Error>
where
    Req: Message + Send + Sync + Clone + 'static,
    Res: Message + Default + Send + Sync + 'static,
{
    let mut unreachable = None;
    for endpoint in endpoints {
        match connect(endpoint, trust).await {
            Ok(stream) => return ask(endpoint, stream, path, message).await,
            // Another endpoint may do; a store that is not ours will not become it.
            Err(error @ Error::Unreachable { .. }) => unreachable = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(unreachable.unwrap_or(Error::NoEndpoint))
}

async fn connect(endpoint: &str, trust: &Trust<'_>) -> Result<TlsStream<TcpStream>, Error> {
    let unreachable = |cause: String| Error::Unreachable { endpoint: endpoint.to_owned(), cause };
    let uri: Uri = endpoint.parse().map_err(|_| Error::NoEndpoint)?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().ok_or(Error::NoEndpoint)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::NoEndpoint)?;
    let stranger = Arc::new(AtomicBool::new(false));
    let config = config(trust, &stranger)?;
    let late = |_| unreachable(format!("no answer within {} s", PATIENCE.as_secs()));
    let stream = timeout(PATIENCE, TcpStream::connect((host, port)))
        .await
        .map_err(late)?
        .map_err(|error| unreachable(error.to_string()))?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match timeout(PATIENCE, shaken).await.map_err(late)? {
        Ok(stream) => Ok(stream),
        Err(_) if stranger.load(Ordering::Relaxed) => {
            Err(Error::Stranger { endpoint: endpoint.to_owned() })
        }
        Err(error) => Err(Error::Tls { endpoint: endpoint.to_owned(), cause: error.to_string() }),
    }
}

fn config(trust: &Trust<'_>, stranger: &Arc<AtomicBool>) -> Result<ClientConfig, Error> {
    let damaged = |cause: &dyn std::fmt::Display| Error::Identity { cause: cause.to_string() };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| damaged(&error))?;
    let mut config = match trust {
        Trust::Fingerprint(fingerprint) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                fingerprint: *fingerprint,
                stranger: Arc::clone(stranger),
                provider: provider(),
            }))
            .with_no_client_auth(),
        Trust::Authority { ca, identity } => {
            let ca = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|e| damaged(&e))?;
            let mut roots = RootCertStore::empty();
            roots.add(ca).map_err(|error| damaged(&error))?;
            let chain = CertificateDer::pem_slice_iter(identity.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| damaged(&error))?;
            let key = PrivateKeyDer::from_pem_slice(identity.as_bytes())
                .map_err(|error| damaged(&error))?;
            builder
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .map_err(|error| damaged(&error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A connector that has one connection, which is there already.
struct Connected(Option<TlsStream<TcpStream>>);

impl Service<Uri> for Connected {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the connection broke");
        ready(self.0.take().map(TokioIo::new).ok_or_else(gone))
    }
}

async fn ask<Req, Res>(
    endpoint: &str,
    stream: TlsStream<TcpStream>,
    path: &'static str,
    message: Req,
) -> Result<Res, Error>
where
    Req: Message + Send + Sync + 'static,
    Res: Message + Default + Send + Sync + 'static,
{
    let broken = |cause: String| Error::Unreachable { endpoint: endpoint.to_owned(), cause };
    // TLS is done already, so the transport must not begin it again.
    let plain = endpoint.replacen("https://", "http://", 1);
    let transport = Endpoint::from_shared(plain).map_err(|_| Error::NoEndpoint)?;
    let channel = transport
        .timeout(PATIENCE)
        .connect_with_connector(Connected(Some(stream)))
        .await
        .map_err(|error| broken(error.to_string()))?;
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(proto::MESSAGE_MAX);
    grpc.ready().await.map_err(|error| broken(error.to_string()))?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    let codec = ProstCodec::<Req, Res>::default();
    match grpc.unary(Request::new(message), path, codec).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Err(broken(status.message().to_owned()))
            }
            tonic::Code::Unimplemented => Err(Error::NoStore { endpoint: endpoint.to_owned() }),
            _ => Err(Error::Refused { cause: status.message().to_owned() }),
        },
    }
}

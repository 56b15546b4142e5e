//! The service by which hosts join and renew. It is all that a client without certificate gets.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::codegen::{Service, http};
use tonic::service::AxumBody;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status};

use super::super::admission::Admission;
use super::super::store::Store;
use super::caller::common_name;
use super::unary::{Answer, unary};
use crate::join::proto::{self, Admitted, JoinRequest, RenewRequest};

/// What a client without certificate hears.
pub(crate) const ONLY_HOSTS: &str = "this store lets in only hosts that have joined it: run \
                                     `skybridge store token` on the host that serves it, and \
                                     `skybridge join TOKEN` here";

/// Whether the client has shown a certificate; the transport has found it good then.
pub(crate) fn shows_certificate(extensions: &http::Extensions) -> bool {
    let info = extensions.get::<TlsConnectInfo<TcpConnectInfo>>();
    info.and_then(TlsConnectInfo::peer_certs).is_some_and(|certificates| !certificates.is_empty())
}

/// Refuses clients without certificate.
pub(crate) fn only_hosts(request: Request<()>) -> Result<Request<()>, Status> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let shown = info.and_then(TlsConnectInfo::peer_certs);
    match shown.filter(|certificates| !certificates.is_empty()) {
        Some(_) => Ok(request),
        None => Err(Status::unauthenticated(ONLY_HOSTS)),
    }
}

#[derive(Clone)]
pub(crate) struct JoinService {
    store: Arc<Store>,
    admission: Arc<Admission>,
}

impl JoinService {
    pub(crate) fn new(store: Arc<Store>, admission: Arc<Admission>) -> Self {
        Self { store, admission }
    }

    async fn join(self, request: Request<JoinRequest>) -> Result<Response<Admitted>, Status> {
        let JoinRequest { id, secret, name, request } = request.into_inner();
        let admitted = self.admission.join(&self.store, &id, &secret, &name, request).await;
        match admitted {
            Ok(admitted) => {
                tracing::info!(host = %name, "a host has joined the store");
                Ok(Response::new(admitted))
            }
            Err(status) => {
                // Quoted: a stranger has written it.
                let name: String = name.chars().take(64).collect();
                tracing::warn!(host = ?name, cause = status.message(), "a host has not joined");
                Err(status)
            }
        }
    }

    async fn renew(self, request: Request<RenewRequest>) -> Result<Response<Admitted>, Status> {
        let name = common_name(&request).ok_or_else(|| Status::unauthenticated(ONLY_HOSTS))?;
        if !self.store.auth().is_host(&name) {
            return Err(Status::permission_denied(format!(
                "host {name} is no host of this store any more"
            )));
        }
        let admitted = self.admission.sign(request.into_inner().request, &name).await?;
        tracing::info!(host = %name, "a host has its next certificate");
        Ok(Response::new(admitted))
    }
}

impl Service<http::Request<AxumBody>> for JoinService {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<AxumBody>) -> Self::Future {
        let service = self.clone();
        let request = request.map(tonic::body::Body::new);
        if request.uri().path() == proto::RENEW {
            unary(request, proto::MESSAGE_MAX, move |request| service.renew(request))
        } else {
            unary(request, proto::MESSAGE_MAX, move |request| service.join(request))
        }
    }
}

//! etcd's Auth service. Authentication is not served yet: `AuthStatus` says that it is off, a
//! login is answered as etcd answers while it is off, and nothing can be set up.
//!
//! The generated service cannot be implemented outside the client crate, which does not export
//! `AuthStatusRequest`. So requests are routed here by their path, and the one answer with a body
//! is encoded by a service whose message has the same wire form: `AuthStatusResponse` is (1 header,
//! 2 enabled, 3 revision), `WatchResponse` is (1 header, 2 id, 3 created), all numbers varints.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use etcd_client::proto::{PbWatchRequest, PbWatchResponse, PbWatchServer, PbWatchService};
use tokio_stream::Once;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::super::store::Store;

const STATUS_PATH: &str = "/etcdserverpb.Auth/AuthStatus";
const ENCODER_PATH: &str = "/etcdserverpb.Watch/Watch";
const LOGIN_PATH: &str = "/etcdserverpb.Auth/Authenticate";

/// What etcd says to a login while authentication is off; its clients then go on without.
const OFF: &str = "etcdserver: authentication is not enabled";

#[derive(Clone)]
pub(crate) struct AuthService {
    status: PbWatchServer<StatusEncoder>,
}

impl AuthService {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { status: PbWatchServer::new(StatusEncoder { store }) }
    }
}

impl NamedService for AuthService {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<http::Request<Body>> for AuthService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let refusal = match request.uri().path() {
            STATUS_PATH => {
                *request.uri_mut() = http::Uri::from_static(ENCODER_PATH);
                return self.status.call(request);
            }
            LOGIN_PATH => Status::failed_precondition(OFF),
            _ => Status::unimplemented("the embedded store has no users and roles"),
        };
        Box::pin(ready(Ok(refusal.into_http())))
    }
}

struct StatusEncoder {
    store: Arc<Store>,
}

#[tonic::async_trait]
impl PbWatchService for StatusEncoder {
    type WatchStream = Once<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        _request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let status = PbWatchResponse {
            header: Some(self.store.current_header()),
            // Not enabled, at revision 1: what a fresh etcd says.
            watch_id: 0,
            created: true,
            ..PbWatchResponse::default()
        };
        Ok(Response::new(tokio_stream::once(Ok(status))))
    }
}

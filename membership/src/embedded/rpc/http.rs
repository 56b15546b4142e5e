//! The two plain HTTP answers that monitors ask of etcd on its client port.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use serde_json::json;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::service::AxumBody;

use super::super::store::Store;
use super::join::{ONLY_HOSTS, shows_certificate};
use super::maintenance::VERSION_JSON;

pub(crate) const HEALTH_PATH: &str = "/health";
pub(crate) const VERSION_PATH: &str = "/version";

/// Answers `/health` and `/version`.
#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) store: Arc<Store>,
    /// Whether clients without a certificate are answered.
    pub(crate) strangers: bool,
}

impl Plain {
    fn answer(&self, path: &str) -> (http::StatusCode, String) {
        if path == VERSION_PATH {
            return (http::StatusCode::OK, VERSION_JSON.to_owned());
        }
        match self.store.check_writable() {
            Ok(()) => (http::StatusCode::OK, json!({"health": "true", "reason": ""}).to_string()),
            Err(refusal) => {
                let text = json!({"health": "false", "reason": refusal.to_string()});
                (http::StatusCode::SERVICE_UNAVAILABLE, text.to_string())
            }
        }
    }
}

impl Service<http::Request<AxumBody>> for Plain {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<AxumBody>) -> Self::Future {
        let (status, text) = if self.strangers || shows_certificate(request.extensions()) {
            self.answer(request.uri().path())
        } else {
            (http::StatusCode::FORBIDDEN, json!({"error": ONLY_HOSTS}).to_string())
        };
        let mut response = http::Response::new(Body::new(text));
        *response.status_mut() = status;
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        ready(Ok(response))
    }
}

//! Docker's plugin protocol: HTTP/1.1 on a unix socket, one POST per operation.
//!
//! Docker sends no content type and for some methods no body. What it wants of an answer: a failed
//! operation is HTTP 200 with the text in a field that is `Err` for the network driver and `Error`
//! for the IPAM driver; an unknown method is 404, which Docker takes for one that is not needed.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::Driver;
use crate::control::types::Error;

/// What both sides say that they speak.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// Largest request in bytes: one with a thousand port maps is a tenth of it.
const BODY_MAX: usize = 1024 * 1024;
/// So much of a larger one is read before it is refused.
const DRAIN_MAX: usize = 16 * BODY_MAX;
/// How long requests may go on when the agent stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Serves Docker until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: UnixListener,
    driver: Arc<Driver>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (tell, mut told) = tokio::sync::watch::channel(false);
    let stopped = async move {
        stop.await;
        let _ = tell.send(true);
    };
    let router = Router::new().fallback(call).with_state(driver);
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped);
    let overdue = async move {
        let _ = told.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        result = async { server.await } => result,
        () = overdue => Ok(()),
    }
}

async fn call(State(driver): State<Arc<Driver>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "Docker's plugin protocol has POST only\n")
            .into_response();
    }
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let body = match read(request.into_body()).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let body = if body.iter().all(u8::is_ascii_whitespace) {
        Ok(Value::Object(serde_json::Map::new()))
    } else {
        serde_json::from_slice(&body)
    };
    let body = match body {
        Ok(Value::Null) => Value::Object(serde_json::Map::new()),
        Ok(body) => body,
        Err(err) => {
            return (StatusCode::BAD_REQUEST, format!("the request is no JSON: {err}\n"))
                .into_response();
        }
    };
    let field = if method.starts_with("IpamDriver.") { "Error" } else { "Err" };
    let asked = method.clone();
    // A caller that goes away must not leave half an operation.
    let answer = match tokio::spawn(async move { driver.answer(&asked, body).await }).await {
        Ok(answer) => answer,
        Err(err) => {
            tracing::error!(%err, method, "an operation for Docker failed");
            Some(Err(Error::internal("the agent failed at this operation")
                .cause("a defect of the agent")
                .next_step("report it with the agent's log; the agent itself goes on")))
        }
    };
    match answer {
        None => (StatusCode::NOT_FOUND, format!("no method {method}\n")).into_response(),
        Some(Ok(answer)) => reply(&answer),
        Some(Err(error)) => {
            tracing::info!(method, %error, "Docker is refused");
            reply(&json!({ field: text(&error) }))
        }
    }
}

/// The body. What is too large is read all the same, up to a limit: a socket that is closed with bytes
/// unread takes the answer along (unix(7), `ECONNRESET`).
async fn read(mut body: Body) -> Result<Vec<u8>, Response> {
    let refuse = |status: StatusCode, text: &'static str| (status, text).into_response();
    let (mut bytes, mut len) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(refuse(StatusCode::BAD_REQUEST, "the request ends early\n"));
        };
        let Some(data) = frame.data_ref() else { continue };
        len = len.saturating_add(data.len());
        if len <= BODY_MAX {
            bytes.extend_from_slice(data);
        } else if len > DRAIN_MAX {
            break;
        }
    }
    if len > BODY_MAX {
        return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is larger than 1 MiB\n"));
    }
    Ok(bytes)
}

fn reply(answer: &Value) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], answer.to_string()).into_response()
}

/// What failed, why, and the next step, in Docker's one line.
fn text(error: &Error) -> String {
    match &error.next_step {
        Some(next_step) => format!("{error}; {next_step}"),
        None => error.to_string(),
    }
}

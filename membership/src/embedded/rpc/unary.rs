//! A gRPC method with one request and one answer, for services whose code is not generated.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;

use prost::Message;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What a service answers with.
pub(crate) type Answer =
    Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

type Reply<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// The method, once: a request has one call.
struct Once<F>(Option<F>);

impl<F, Fut, Req, Res> UnaryService<Req> for Once<F>
where
    F: FnOnce(Request<Req>) -> Fut,
    Fut: Future<Output = Result<Response<Res>, Status>> + Send + 'static,
    Res: Send + 'static,
{
    type Response = Res;
    type Future = Reply<Res>;

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        match self.0.take() {
            Some(method) => Box::pin(method(request)),
            None => Box::pin(std::future::ready(Err(Status::internal("called twice")))),
        }
    }
}

/// Decodes the request (at most `largest` bytes), runs `method` and encodes its answer.
pub(crate) fn unary<Req, Res, F, Fut>(
    request: http::Request<Body>,
    largest: usize,
    method: F,
) -> Answer
where
    Req: Message + Default + Send + 'static,
    Res: Message + Send + 'static,
    F: FnOnce(Request<Req>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response<Res>, Status>> + Send + 'static,
{
    Box::pin(async move {
        let codec = ProstCodec::<Res, Req>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(largest);
        Ok(grpc.unary(Once(Some(method)), request).await)
    })
}

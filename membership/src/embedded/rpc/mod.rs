//! The gRPC services: they translate, and leave the deciding to the modules above.
//!
//! Known limit: `etcdctl` 3.4 sends a whole URL as the authority of `endpoint status`, `endpoint
//! hashkv` and `defrag` when its endpoint is given with a scheme; the HTTP/2 library refuses that.
//! An endpoint given as `host:port` works everywhere.

mod auth;
mod caller;
mod cluster;
mod http;
mod join;
mod kv;
mod lease;
mod maintenance;
pub(crate) mod unary;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer,
};
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::admission::Admission;
use super::limits;
use super::store::Store;
use crate::join::proto;

/// What the member list tells about this server.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) url: String,
}

/// All services of the store on one server.
pub(crate) fn router(
    mut builder: Server,
    store: &Arc<Store>,
    member: Member,
    progress: Duration,
    admission: Option<Arc<Admission>>,
) -> Router {
    let largest = limits::REQUEST_BYTES + limits::REQUEST_OVERHEAD_BYTES;
    let kv = kv::KvService::new(Arc::clone(store));
    let watch = watch::WatchService::new(Arc::clone(store), progress);
    let lease = lease::LeaseService::new(Arc::clone(store));
    let cluster = cluster::ClusterService::new(Arc::clone(store), member);
    let maintenance = maintenance::MaintenanceService::new(Arc::clone(store));
    let plain = http::Plain { store: Arc::clone(store), strangers: admission.is_none() };
    let mut services = Routes::new(PbKvServer::new(kv).max_decoding_message_size(largest))
        .add_service(PbWatchServer::new(watch).max_decoding_message_size(largest))
        .add_service(PbLeaseServer::new(lease).max_decoding_message_size(largest))
        .add_service(PbClusterServer::new(cluster).max_decoding_message_size(largest))
        .add_service(PbMaintenanceServer::new(maintenance).max_decoding_message_size(largest))
        .add_service(auth::AuthService::new(Arc::clone(store)))
        .into_axum_router()
        .route_service(http::HEALTH_PATH, plain.clone())
        .route_service(http::VERSION_PATH, plain);
    if let Some(admission) = admission {
        // What is added behind this layer is all that a client without certificate gets.
        let join = join::JoinService::new(Arc::clone(store), admission);
        services = services
            .layer(InterceptorLayer::new(join::only_hosts))
            .route_service(proto::JOIN, join.clone())
            .route_service(proto::RENEW, join);
    }
    builder.add_routes(Routes::from(services))
}

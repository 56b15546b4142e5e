//! etcd's Lease service.

use std::sync::Arc;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseService, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::super::auth::permission::Kind;
use super::super::error::Refusal;
use super::super::store::Store;
use super::caller::{Credentials, caller};

pub(crate) struct LeaseService {
    store: Arc<Store>,
}

impl LeaseService {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl PbLeaseService for LeaseService {
    type LeaseKeepAliveStream = ReceiverStream<Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        self.store.auth().known(&caller(&self.store, &request)?)?;
        let request = request.into_inner();
        let wanted = (request.id != 0).then_some(request.id);
        let (id, ttl) = self.store.write(move |txn| txn.grant(wanted, request.ttl)).await?;
        let header = Some(self.store.current_header());
        Ok(Response::new(PbLeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let who = caller(&self.store, &request)?;
        self.store.auth().known(&who)?;
        let id = request.into_inner().id;
        let revoke = self.store.write(move |txn| {
            txn.permit_revoke(&who, id)?;
            txn.revoke(id).map(|()| txn.revision())
        });
        let header = Some(self.store.header(revoke.await?));
        Ok(Response::new(PbLeaseRevokeResponse { header }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let credentials = Credentials::of(&request);
        let mut requests = request.into_inner();
        let store = Arc::clone(&self.store);
        let mut stopping = store.stopping();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    request = requests.next() => request,
                    () = sender.closed() => return,
                    _ = stopping.wait_for(|stop| *stop) => {
                        // The client may be gone as well.
                        let _ = sender.try_send(Err(Refusal::Stopped.into()));
                        return;
                    }
                };
                let Some(Ok(request)) = request else { return };
                let permitted = credentials.caller(&store).and_then(|who| {
                    store.auth().known(&who)?;
                    store.permit_lease(&who, request.id, Kind::Write)
                });
                if let Err(refusal) = permitted {
                    let _ = sender.send(Err(refusal.into())).await;
                    return;
                }
                // The header is taken before the renewal, so that its revision is never later than
                // the moment at which the lease was alive.
                let header = Some(store.current_header());
                let ttl = store.renew(request.id).unwrap_or(0);
                let response = PbLeaseKeepAliveResponse { header, id: request.id, ttl };
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let who = caller(&self.store, &request)?;
        self.store.auth().known(&who)?;
        let request = request.into_inner();
        if request.keys {
            self.store.permit_lease(&who, request.id, Kind::Read)?;
        }
        let header = Some(self.store.current_header());
        let response = match self.store.remaining(request.id, request.keys) {
            Some(lease) => PbLeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: lease.ttl,
                granted_ttl: lease.granted,
                keys: lease.keys,
            },
            None => PbLeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: -1,
                ..PbLeaseTimeToLiveResponse::default()
            },
        };
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let who = caller(&self.store, &request)?;
        self.store.auth().known(&who)?;
        let ids = self.store.lease_ids();
        for id in &ids {
            self.store.permit_lease(&who, *id, Kind::Read)?;
        }
        let header = Some(self.store.current_header());
        let leases = ids.into_iter().map(|id| PbLeaseStatus { id }).collect();
        Ok(Response::new(PbLeaseLeasesResponse { header, leases }))
    }
}

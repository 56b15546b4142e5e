//! etcd's Cluster service: a cluster of one, which cannot grow.

use std::sync::Arc;

use etcd_client::proto::{
    PbClusterService, PbMember, PbMemberAddRequest, PbMemberAddResponse, PbMemberListRequest,
    PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse, PbMemberRemoveRequest,
    PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::super::store::Store;
use super::Member;
use super::caller::caller;

const ALONE: &str = "the embedded store has one member and is not replicated; for more, export it, \
                     import into an etcd cluster and change the endpoint list";

pub(crate) struct ClusterService {
    store: Arc<Store>,
    member: Member,
}

impl ClusterService {
    pub(crate) fn new(store: Arc<Store>, member: Member) -> Self {
        Self { store, member }
    }
}

#[tonic::async_trait]
impl PbClusterService for ClusterService {
    async fn member_add(
        &self,
        _request: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(Status::unimplemented(ALONE))
    }

    async fn member_remove(
        &self,
        _request: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(Status::unimplemented(ALONE))
    }

    async fn member_update(
        &self,
        _request: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(Status::unimplemented(ALONE))
    }

    async fn member_list(
        &self,
        request: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        self.store.auth().known(&caller(&self.store, &request)?)?;
        let member = PbMember {
            id: self.store.identity().member,
            name: self.member.name.clone(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: vec![self.member.url.clone()],
            is_learner: false,
        };
        let header = Some(self.store.current_header());
        Ok(Response::new(PbMemberListResponse { header, members: vec![member] }))
    }

    async fn member_promote(
        &self,
        _request: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(Status::unimplemented(ALONE))
    }
}

//! etcd's Maintenance service, as far as it means something for one process.

use std::sync::Arc;

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest,
    PbSnapshotResponse, PbStatusRequest, PbStatusResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::super::error::Refusal;
use super::super::limits;
use super::super::mvcc::State;
use super::super::store::Store;
use super::caller::caller;

/// The etcd release whose API this is, marked as ours.
const VERSION: &str = concat!("3.5.30+skybridge.", env!("CARGO_PKG_VERSION"));

/// The answer to `GET /version`.
pub(crate) const VERSION_JSON: &str = concat!(
    r#"{"etcdserver":"3.5.30+skybridge."#,
    env!("CARGO_PKG_VERSION"),
    r#"","etcdcluster":"3.5.0"}"#
);

/// The action of an alarm request that only asks.
const ALARM_GET: i32 = 0;

pub(crate) struct MaintenanceService {
    store: Arc<Store>,
}

impl MaintenanceService {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn admin<T>(&self, request: &Request<T>) -> Result<(), Refusal> {
        self.store.auth().admin(&caller(&self.store, request)?)
    }

    /// Hash of all versions at or below `at`. It compares two embedded stores, not one with etcd.
    fn hash(&self, at: i64) -> Result<PbHashKvResponse, Refusal> {
        let (hash, compacted, visible, at) = self.store.read(|state| {
            let at = if at <= 0 { state.visible() } else { at };
            if at > state.visible() {
                return Err(Refusal::FutureRevision);
            }
            if at < state.compacted() {
                return Err(Refusal::Compacted);
            }
            Ok((hash_versions(state, at), state.compacted(), state.visible(), at))
        })?;
        Ok(PbHashKvResponse {
            header: Some(self.store.header(visible)),
            hash,
            compact_revision: compacted,
            hash_revision: at,
        })
    }
}

/// FNV-1a over the stored form of every version, with its place.
fn hash_versions(state: &State, at: i64) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    for version in state.versions().filter(|version| version.modified <= at) {
        add(&version.modified.to_le_bytes());
        add(&version.sub.to_le_bytes());
        add(&version.encode());
    }
    hash
}

#[tonic::async_trait]
impl PbMaintenanceService for MaintenanceService {
    type SnapshotStream = Empty<Result<PbSnapshotResponse, Status>>;

    async fn alarm(
        &self,
        request: Request<PbAlarmRequest>,
    ) -> Result<Response<PbAlarmResponse>, Status> {
        self.store.auth().known(&caller(&self.store, &request)?)?;
        if request.into_inner().action != ALARM_GET {
            return Err(Status::unimplemented("the embedded store has no alarms to set or clear"));
        }
        let header = Some(self.store.current_header());
        Ok(Response::new(PbAlarmResponse { header, alarms: Vec::new() }))
    }

    async fn status(
        &self,
        request: Request<PbStatusRequest>,
    ) -> Result<Response<PbStatusResponse>, Status> {
        // Every host asks for it to see whether the store is there.
        self.store.auth().known(&caller(&self.store, &request)?)?;
        let (revision, bytes) = self.store.read(|state| (state.visible(), state.total_bytes()));
        let identity = self.store.identity();
        let index = u64::try_from(revision).unwrap_or(0);
        let size = i64::try_from(self.store.file_size()).unwrap_or(i64::MAX);
        Ok(Response::new(PbStatusResponse {
            header: Some(self.store.header(revision)),
            version: VERSION.to_owned(),
            db_size: size,
            db_size_in_use: i64::try_from(bytes).unwrap_or(i64::MAX).min(size),
            db_size_quota: limits::LIVE_BYTES as i64,
            leader: identity.member,
            raft_index: index,
            raft_applied_index: index,
            raft_term: identity.term,
            storage_version: "3.5.0".to_owned(),
            errors: self
                .store
                .check_writable()
                .err()
                .map(|refusal| refusal.to_string())
                .into_iter()
                .collect(),
            ..PbStatusResponse::default()
        }))
    }

    async fn defragment(
        &self,
        request: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        self.admin(&request)?;
        self.store.defragment().await?;
        // etcd gives no header here.
        Ok(Response::new(PbDefragmentResponse { header: None }))
    }

    async fn hash(
        &self,
        request: Request<PbHashRequest>,
    ) -> Result<Response<PbHashResponse>, Status> {
        self.admin(&request)?;
        let hashed = self.hash(0)?;
        Ok(Response::new(PbHashResponse { header: hashed.header, hash: hashed.hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<PbHashKvRequest>,
    ) -> Result<Response<PbHashKvResponse>, Status> {
        self.admin(&request)?;
        Ok(Response::new(self.hash(request.into_inner().revision)?))
    }

    async fn snapshot(
        &self,
        _request: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "the embedded store has no etcd snapshots; use `skybridge store export`",
        ))
    }

    async fn move_leader(
        &self,
        _request: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Status::unimplemented("the embedded store has one member; it always leads"))
    }

    async fn downgrade(
        &self,
        _request: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Status::unimplemented("the embedded store has no downgrades"))
    }
}

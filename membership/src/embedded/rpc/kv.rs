//! etcd's KV service.

use std::sync::Arc;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKeyValue,
    PbKvService, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
    PbRangeStreamResponse, PbResponseHeader, PbTxnRequest, PbTxnResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::super::error::Refusal;
use super::super::store::Store;
use super::super::{check, limits, txn};
use super::caller::caller;

pub(crate) struct KvService {
    store: Arc<Store>,
}

impl KvService {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn read(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, Refusal> {
        let selection = self.store.read(|state| txn::select(state, state.visible(), request))?;
        let header = self.store.header(selection.revision);
        Ok(txn::assemble(selection, request, header))
    }

    fn fill(&self, header: &mut Option<PbResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.store.header(revision));
    }
}

#[tonic::async_trait]
impl PbKvService for KvService {
    type RangeStreamStream = ReceiverStream<Result<PbRangeStreamResponse, Status>>;

    async fn range(
        &self,
        request: Request<PbRangeRequest>,
    ) -> Result<Response<PbRangeResponse>, Status> {
        let who = caller(&self.store, &request)?;
        let request = request.into_inner();
        check::check_range(&request)?;
        self.store.auth().read(&who, &request.key, &request.range_end)?;
        Ok(Response::new(self.read(&request)?))
    }

    /// The same result in messages of bounded size; the last one has the header and the count.
    async fn range_stream(
        &self,
        request: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let who = caller(&self.store, &request)?;
        let request = request.into_inner();
        check::check_range(&request)?;
        self.store.auth().read(&who, &request.key, &request.range_end)?;
        if !txn::is_default_order(request.sort_target, request.sort_order) {
            let text = "RangeStream does not support custom sort orders";
            return Err(Status::unimplemented(text));
        }
        if txn::has_revision_filter(&request) {
            let text = "RangeStream does not support revision filters";
            return Err(Status::unimplemented(text));
        }
        let mut whole = self.read(&request)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut kvs = std::mem::take(&mut whole.kvs).into_iter().peekable();
            loop {
                let chunk = chunk(&mut kvs);
                let last = kvs.peek().is_none();
                let response = if last {
                    PbRangeResponse { kvs: chunk, ..std::mem::take(&mut whole) }
                } else {
                    PbRangeResponse { kvs: chunk, ..PbRangeResponse::default() }
                };
                let message = PbRangeStreamResponse { range_response: Some(response) };
                if sender.send(Ok(message)).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let who = caller(&self.store, &request)?;
        let request = request.into_inner();
        check::check_put(&request)?;
        check::check_size(check::put_size(&request))?;
        let put = self.store.write(move |txn| {
            txn.permit_put(&who, &request)?;
            txn.put(request)
        });
        let mut response = put.await?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let who = caller(&self.store, &request)?;
        let request = request.into_inner();
        check::check_key(&request.key)?;
        check::check_size(request.key.len().saturating_add(request.range_end.len()))?;
        let delete = self.store.write(move |txn| {
            txn.auth().delete(&who, &request.key, &request.range_end, request.prev_kv)?;
            Ok(txn.delete(&request))
        });
        let mut response = delete.await?;
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let who = caller(&self.store, &request)?;
        let request = request.into_inner();
        check::check_txn(&request)?;
        let mut response = if check::is_read_only(&request) {
            self.store.auth().txn(&who, None, &request)?;
            let (now, selected) = self.store.read(|state| {
                let now = state.visible();
                (now, txn::select_txn(state, now, request))
            });
            txn::assemble_txn(selected?, self.store.header(now))
        } else {
            check::check_size(check::txn_size(&request))?;
            let run = self.store.write(move |txn| {
                txn.permit_txn(&who, &request)?;
                txn.txn(request)
            });
            run.await?
        };
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        // As etcd 3.7; before it, anybody might forget the history of everybody.
        self.store.auth().admin(&caller(&self.store, &request)?)?;
        // Physical or not makes no difference: the answer always comes after the removal.
        self.store.compact(request.into_inner().revision).await?;
        Ok(Response::new(PbCompactionResponse { header: Some(self.store.current_header()) }))
    }
}

fn chunk(kvs: &mut std::iter::Peekable<impl Iterator<Item = PbKeyValue>>) -> Vec<PbKeyValue> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while bytes < limits::RANGE_STREAM_BYTES {
        let Some(kv) = kvs.next() else { break };
        bytes += kv.key.len() + kv.value.len();
        chunk.push(kv);
    }
    chunk
}

//! etcd's Watch service: one task per stream.
//!
//! # Theory of operation
//!
//! The task owns the stream's [`Watches`]. It waits for a request, a new revision, the progress
//! clock, or room in the short queue to the client, and never for anything else while holding
//! something. Answers to requests go first and in order, so a watch's `created` precedes its
//! events and nothing follows its `canceled`. Events are pulled only when there is room for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbEvent, PbKeyValue, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::super::error::Refusal;
use super::super::limits;
use super::super::mvcc::{KeyRange, State};
use super::super::store::Store;
use super::super::watch::{Delivery, NO_WATCH, Watch, Watches};
use super::caller::Credentials;

/// etcd's filter numbers.
const FILTER_NO_PUT: i32 = 0;
const FILTER_NO_DELETE: i32 = 1;

pub(crate) struct WatchService {
    store: Arc<Store>,
    progress: Duration,
}

impl WatchService {
    pub(crate) fn new(store: Arc<Store>, progress: Duration) -> Self {
        Self { store, progress: progress.max(Duration::from_millis(1)) }
    }
}

#[tonic::async_trait]
impl PbWatchService for WatchService {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let permit = Arc::clone(&self.store.watch_streams)
            .try_acquire_owned()
            .map_err(|_| Refusal::TooManyRequests)?;
        let (sender, receiver) = mpsc::channel(limits::WATCH_RESPONSES);
        let stream = Stream {
            store: Arc::clone(&self.store),
            credentials: Credentials::of(&request),
            watches: Watches::default(),
            ready: VecDeque::new(),
            progress_asked: false,
            visible: self.store.subscribe(),
            _permit: permit,
        };
        tokio::spawn(stream.run(request.into_inner(), sender, self.progress));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Stream {
    store: Arc<Store>,
    credentials: Credentials,
    watches: Watches,
    /// Responses in their order that have not found room yet.
    ready: VecDeque<PbWatchResponse>,
    /// The client asked for the revision all its watches have reached.
    progress_asked: bool,
    visible: watch::Receiver<i64>,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    async fn run(
        mut self,
        mut requests: Streaming<PbWatchRequest>,
        sender: mpsc::Sender<Result<PbWatchResponse, Status>>,
        progress: Duration,
    ) {
        let mut stopping = self.store.stopping();
        let mut clock = interval_at(Instant::now() + progress, progress);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reading = true;
        loop {
            let visible = *self.visible.borrow_and_update();
            let work = !self.ready.is_empty()
                || self.watches.behind(visible)
                || (self.progress_asked && self.watches.all_at(visible));
            let takes = reading && self.ready.len() < limits::WATCH_CONTROL;
            tokio::select! {
                request = requests.next(), if takes => match request {
                    Some(Ok(request)) => self.request(request),
                    Some(Err(_)) => return,
                    // The client only stopped asking; its watches go on, as in etcd.
                    None => reading = false,
                },
                room = sender.reserve(), if work => {
                    let Ok(room) = room else { return };
                    if let Some(response) = self.next_response() {
                        room.send(Ok(response));
                    }
                }
                changed = self.visible.changed() => if changed.is_err() { return },
                _ = clock.tick() => self.tell_progress(),
                () = sender.closed() => return,
                _ = stopping.wait_for(|stop| *stop) => {
                    // The client may be gone as well.
                    let _ = sender.try_send(Err(Refusal::Stopped.into()));
                    return;
                }
            }
        }
    }

    fn next_response(&mut self) -> Option<PbWatchResponse> {
        if self.ready.is_empty() {
            let watches = &mut self.watches;
            let (deliveries, visible) =
                self.store.read(|state| (watches.pull(state), state.visible()));
            for delivery in deliveries {
                self.deliver(delivery);
            }
            if self.ready.is_empty() && self.progress_asked && self.watches.all_at(visible) {
                self.progress_asked = false;
                self.ready.push_back(self.response(NO_WATCH, visible));
            }
        }
        self.ready.pop_front()
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Compacted { id, compacted, revision } => {
                let response = self.response(id, revision);
                self.ready.push_back(PbWatchResponse {
                    canceled: true,
                    compact_revision: compacted,
                    ..response
                });
            }
            Delivery::Events { id, revision, changes, fragment } => {
                let events = changes
                    .into_iter()
                    .map(|(change, previous)| change.to_event(previous.as_deref()))
                    .collect();
                let pieces = if fragment { split(events) } else { vec![events] };
                let last = pieces.len().saturating_sub(1);
                for (place, events) in pieces.into_iter().enumerate() {
                    let fragment = place < last;
                    let response = self.response(id, revision);
                    self.ready.push_back(PbWatchResponse { fragment, events, ..response });
                }
            }
        }
    }

    fn tell_progress(&mut self) {
        let visible = self.store.read(State::visible);
        // A watch that is behind or owed a response gets its revision with that.
        if self.ready.is_empty() {
            for id in self.watches.due_progress(visible) {
                self.ready.push_back(self.response(id, visible));
            }
        }
    }

    fn request(&mut self, request: PbWatchRequest) {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let visible = self.store.read(State::visible);
                // An empty key means the smallest one.
                let key = if create.key.is_empty() { vec![0] } else { create.key };
                let watch = Watch {
                    range: KeyRange::new(&key, &create.range_end),
                    next: if create.start_revision == 0 {
                        visible + 1
                    } else {
                        create.start_revision
                    },
                    puts: !create.filters.contains(&FILTER_NO_PUT),
                    deletes: !create.filters.contains(&FILTER_NO_DELETE),
                    previous: create.prev_kv,
                    progress: create.progress_notify,
                    fragment: create.fragment,
                    quiet: true,
                };
                let created = if create.start_revision < 0 {
                    Err("etcdserver: mvcc: required revision has been compacted".to_owned())
                } else {
                    self.permit(&key, &create.range_end)
                        .map_err(|refusal| go_error(&refusal))
                        .and_then(|()| {
                            let created = self.watches.create(create.watch_id, watch);
                            created.map_err(str::to_owned)
                        })
                };
                let response = self.response(*created.as_ref().unwrap_or(&NO_WATCH), visible);
                self.ready.push_back(PbWatchResponse {
                    created: true,
                    canceled: created.is_err(),
                    cancel_reason: created.err().unwrap_or_default(),
                    ..response
                });
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(PbWatchRequestUnion::ProgressRequest(_)) => self.progress_asked = true,
            None => {}
        }
    }

    /// Whether the client may read the range now. A watch that goes on is not judged again, as in
    /// etcd.
    ///
    /// Deviation: some releases of etcd judge a watch without end by its first key alone.
    fn permit(&self, key: &[u8], range_end: &[u8]) -> Result<(), Refusal> {
        let caller = self.credentials.caller(&self.store)?;
        self.store.auth().read(&caller, key, range_end)
    }

    fn cancel(&mut self, id: i64) {
        // etcd does not answer for a watch it does not know.
        if self.watches.cancel(id) {
            let visible = self.store.read(State::visible);
            // What it was owed is not sent any more.
            self.ready.retain(|ready| ready.created || ready.watch_id != id);
            let response = self.response(id, visible);
            self.ready.push_back(PbWatchResponse { canceled: true, ..response });
        }
    }

    fn response(&self, watch_id: i64, revision: i64) -> PbWatchResponse {
        PbWatchResponse {
            header: Some(self.store.header(revision)),
            watch_id,
            ..PbWatchResponse::default()
        }
    }
}

/// The text of a refusal in a message: that of the Go type, which clients look for.
fn go_error(refusal: &Refusal) -> String {
    format!("rpc error: code = {:?} desc = {refusal}", refusal.code())
}

/// Cuts events into pieces below the size of a request, at least one event each.
fn split(events: Vec<PbEvent>) -> Vec<Vec<PbEvent>> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    let mut bytes = 0;
    for event in events {
        let size = size(event.kv.as_ref()) + size(event.prev_kv.as_ref());
        if !piece.is_empty() && bytes + size > limits::REQUEST_BYTES {
            pieces.push(std::mem::take(&mut piece));
            bytes = 0;
        }
        bytes += size;
        piece.push(event);
    }
    pieces.push(piece);
    pieces
}

/// Bytes of a key-value in a message: its two strings and at most 64 for numbers and framing.
fn size(kv: Option<&PbKeyValue>) -> usize {
    kv.map_or(0, |kv| kv.key.len() + kv.value.len() + 64)
}

//! Requests on the multi-version memory: range, put, delete and transactions, with etcd's checks.
//!
//! # Theory of operation
//!
//! A transaction is decided before it changes anything: all comparisons, also those of nested
//! transactions, look at the store as it was ([`plan`]); then every operation that will run is
//! checked ([`check`]); then it runs and cannot fail. So a refusal leaves nothing half done. All
//! changes of one transaction have one revision and are numbered in it.

use std::sync::Arc;
use std::time::Instant;

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnResponse,
};

use super::auth::permission::Kind;
use super::auth::{Auth, Caller};
use super::backend::{Changes, LeaseChange};
use super::check::{put_size, txn_size};
use super::error::Refusal;
use super::lease::Leases;
use super::limits;
use super::mvcc::{Found, KeyRange, State};
use super::record::Version;

// Numbers of etcd's enumerations, which the client crate does not export as types.
pub(crate) const SORT_NONE: i32 = 0;
const SORT_ASCEND: i32 = 1;
pub(crate) const SORT_DESCEND: i32 = 2;
pub(crate) const SORT_BY_KEY: i32 = 0;
const SORT_BY_VERSION: i32 = 1;
const SORT_BY_CREATE: i32 = 2;
const SORT_BY_MOD: i32 = 3;
pub(crate) const SORT_BY_VALUE: i32 = 4;
const COMPARE_VERSION: i32 = 0;
const COMPARE_CREATE: i32 = 1;
const COMPARE_MOD: i32 = 2;
const COMPARE_VALUE: i32 = 3;
const COMPARE_LEASE: i32 = 4;
const RESULT_EQUAL: i32 = 0;
const RESULT_GREATER: i32 = 1;
const RESULT_LESS: i32 = 2;
const RESULT_NOT_EQUAL: i32 = 3;

// ===== reads =====

/// What a range request selects, before it is copied into a response.
pub(crate) struct Selection {
    found: Found,
    /// Revision the store is at, for the header.
    pub(crate) revision: i64,
}

/// Reads a range of the store as it is at `now`. Only clones pointers, so that the lock is short.
pub(crate) fn select(
    state: &State,
    now: i64,
    request: &PbRangeRequest,
) -> Result<Selection, Refusal> {
    if request.revision > now {
        return Err(Refusal::FutureRevision);
    }
    let at = if request.revision <= 0 { now } else { request.revision };
    if at < state.compacted() {
        return Err(Refusal::Compacted);
    }
    let range = KeyRange::new(&request.key, &request.range_end);
    let found = if request.count_only {
        Found { versions: Vec::new(), count: state.count(&range, at) }
    } else {
        let all = !is_default_order(request.sort_target, request.sort_order)
            || has_revision_filter(request);
        let limit = match usize::try_from(request.limit) {
            // One more than asked for tells whether there is more.
            Ok(limit) if limit > 0 && !all => limit.saturating_add(1),
            _ => 0,
        };
        state.range(&range, at, limit)
    };
    Ok(Selection { found, revision: now })
}

/// Whether results in the order of their keys are in the order asked for.
pub(crate) fn is_default_order(target: i32, order: i32) -> bool {
    order == SORT_NONE || (target == SORT_BY_KEY && order == SORT_ASCEND)
}

/// Whether the request selects by create or mod revision.
pub(crate) fn has_revision_filter(request: &PbRangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Filters, sorts and cuts a selection, and copies it.
pub(crate) fn assemble(
    selection: Selection,
    request: &PbRangeRequest,
    header: PbResponseHeader,
) -> PbRangeResponse {
    let Selection { found: Found { mut versions, count }, .. } = selection;
    if has_revision_filter(request) {
        let within = |number: i64, min: i64, max: i64| {
            (min == 0 || number >= min) && (max == 0 || number <= max)
        };
        versions.retain(|version| {
            within(version.modified, request.min_mod_revision, request.max_mod_revision)
                && within(version.created, request.min_create_revision, request.max_create_revision)
        });
    }
    // A target without an order means ascending, as in etcd.
    let order = match request.sort_order {
        SORT_NONE if request.sort_target != SORT_BY_KEY => SORT_ASCEND,
        order => order,
    };
    if !is_default_order(request.sort_target, order) {
        versions.sort_by(|a, b| {
            let ordering = match request.sort_target {
                SORT_BY_VERSION => a.version.cmp(&b.version),
                SORT_BY_CREATE => a.created.cmp(&b.created),
                SORT_BY_MOD => a.modified.cmp(&b.modified),
                SORT_BY_VALUE => a.value.cmp(&b.value),
                _ => a.key.cmp(&b.key),
            };
            if order == SORT_DESCEND { ordering.reverse() } else { ordering }
        });
    }
    let more = match usize::try_from(request.limit) {
        Ok(limit) if limit > 0 && versions.len() > limit => {
            versions.truncate(limit);
            true
        }
        _ => false,
    };
    PbRangeResponse {
        header: Some(header),
        kvs: versions.iter().map(|version| version.to_pb(request.keys_only)).collect(),
        more,
        count: i64::try_from(count).unwrap_or(i64::MAX),
    }
}

/// What a transaction of ranges selects, before it is copied into a response.
pub(crate) struct TxnSelection {
    succeeded: bool,
    selections: Vec<(PbRangeRequest, Selection)>,
}

/// Reads a transaction of ranges at revision `now`. Only clones pointers.
pub(crate) fn select_txn(
    state: &State,
    now: i64,
    request: PbTxnRequest,
) -> Result<TxnSelection, Refusal> {
    let planned = plan(state, now, request);
    check(state, now, None, &planned)?;
    let mut selections = Vec::with_capacity(planned.ops.len());
    for op in planned.ops {
        if let PlannedOp::Range(range) = op {
            let selection = select(state, now, &range)?;
            selections.push((range, selection));
        }
    }
    Ok(TxnSelection { succeeded: planned.succeeded, selections })
}

/// Copies the results of a transaction of ranges.
pub(crate) fn assemble_txn(selected: TxnSelection, header: PbResponseHeader) -> PbTxnResponse {
    let range = |(request, selection): (PbRangeRequest, Selection)| {
        let header = bare_header(selection.revision);
        response(PbTxnOpResponse::ResponseRange(assemble(selection, &request, header)))
    };
    PbTxnResponse {
        header: Some(header),
        succeeded: selected.succeeded,
        responses: selected.selections.into_iter().map(range).collect(),
    }
}

// ===== transactions =====

/// A transaction whose branches are chosen.
pub(crate) struct Planned {
    succeeded: bool,
    ops: Vec<PlannedOp>,
}

enum PlannedOp {
    Delete(PbDeleteRequest),
    Put(PbPutRequest),
    Range(PbRangeRequest),
    Txn(Planned),
}

/// Chooses the branches by the store as it is at `now`.
pub(crate) fn plan(state: &State, now: i64, request: PbTxnRequest) -> Planned {
    let succeeded = request.compare.iter().all(|compare| holds(state, now, compare));
    let ops = if succeeded { request.success } else { request.failure };
    let ops = ops
        .into_iter()
        .filter_map(|op| {
            Some(match op.request? {
                PbTxnOpRequest::RequestRange(range) => PlannedOp::Range(range),
                PbTxnOpRequest::RequestPut(put) => PlannedOp::Put(put),
                PbTxnOpRequest::RequestDeleteRange(delete) => PlannedOp::Delete(delete),
                PbTxnOpRequest::RequestTxn(txn) => PlannedOp::Txn(plan(state, now, txn)),
            })
        })
        .collect();
    Planned { succeeded, ops }
}

/// Whether a comparison holds for every key of its range. A missing key compares as zeros, and
/// never by value.
fn holds(state: &State, now: i64, compare: &PbCompare) -> bool {
    let found = state.range(&KeyRange::new(&compare.key, &compare.range_end), now, 0);
    if found.versions.is_empty() {
        return compare.target != COMPARE_VALUE && holds_for(compare, None);
    }
    found.versions.iter().all(|version| holds_for(compare, Some(version)))
}

fn holds_for(compare: &PbCompare, version: Option<&Version>) -> bool {
    let union = compare.target_union.as_ref();
    let number = |pick: fn(&Version) -> i64, wanted: Option<i64>| {
        version.map_or(0, pick).cmp(&wanted.unwrap_or(0))
    };
    let ordering = match compare.target {
        COMPARE_VALUE => {
            let wanted = match union {
                Some(PbTargetUnion::Value(value)) => value.as_slice(),
                _ => &[],
            };
            version.map_or(&[][..], |version| &version.value).cmp(wanted)
        }
        COMPARE_CREATE => number(
            |version| version.created,
            match union {
                Some(PbTargetUnion::CreateRevision(wanted)) => Some(*wanted),
                _ => None,
            },
        ),
        COMPARE_MOD => number(
            |version| version.modified,
            match union {
                Some(PbTargetUnion::ModRevision(wanted)) => Some(*wanted),
                _ => None,
            },
        ),
        COMPARE_VERSION => number(
            |version| version.version,
            match union {
                Some(PbTargetUnion::Version(wanted)) => Some(*wanted),
                _ => None,
            },
        ),
        COMPARE_LEASE => number(
            |version| version.lease,
            match union {
                Some(PbTargetUnion::Lease(wanted)) => Some(*wanted),
                _ => None,
            },
        ),
        // etcd leaves an unknown target "equal".
        _ => std::cmp::Ordering::Equal,
    };
    match compare.result {
        RESULT_EQUAL => ordering.is_eq(),
        RESULT_GREATER => ordering.is_gt(),
        RESULT_LESS => ordering.is_lt(),
        RESULT_NOT_EQUAL => ordering.is_ne(),
        // etcd lets an unknown result pass.
        _ => true,
    }
}

/// Refuses what would fail half-way. `leases` is `None` for a transaction that puts nothing.
fn check(
    state: &State,
    now: i64,
    leases: Option<&Leases>,
    planned: &Planned,
) -> Result<(), Refusal> {
    for op in &planned.ops {
        match op {
            PlannedOp::Delete(_) => {}
            PlannedOp::Put(put) => check_put_on(state, now, leases, put)?,
            PlannedOp::Range(range) => {
                if range.revision > now {
                    return Err(Refusal::FutureRevision);
                }
                if range.revision != 0 && range.revision < state.compacted() {
                    return Err(Refusal::Compacted);
                }
            }
            PlannedOp::Txn(nested) => check(state, now, leases, nested)?,
        }
    }
    Ok(())
}

fn check_put_on(
    state: &State,
    now: i64,
    leases: Option<&Leases>,
    put: &PbPutRequest,
) -> Result<(), Refusal> {
    if put.lease != 0 && !leases.is_some_and(|leases| leases.contains(put.lease)) {
        return Err(Refusal::LeaseNotFound);
    }
    if (put.ignore_value || put.ignore_lease) && state.get(&put.key, now).is_none() {
        return Err(Refusal::KeyNotFound);
    }
    Ok(())
}

fn response(response: PbTxnOpResponse) -> PbResponseOp {
    PbResponseOp { response: Some(response) }
}

/// The header inside a transaction's response: etcd fills nothing but the revision.
fn bare_header(revision: i64) -> PbResponseHeader {
    PbResponseHeader { revision, ..PbResponseHeader::default() }
}

// ===== impl WriteTxn =====

/// One request on the writer thread: it sees its own changes, all at one revision.
pub(crate) struct WriteTxn<'a> {
    state: &'a mut State,
    leases: &'a mut Leases,
    auth: &'a mut Arc<Auth>,
    changes: &'a mut Changes,
    revision: i64,
    sub: u32,
    now: Instant,
}

impl<'a> WriteTxn<'a> {
    /// A transaction at the revision after the last applied one; what it does is added to
    /// `changes`.
    pub(crate) fn new(
        state: &'a mut State,
        leases: &'a mut Leases,
        auth: &'a mut Arc<Auth>,
        changes: &'a mut Changes,
        now: Instant,
    ) -> Self {
        let revision = state.applied() + 1;
        Self { state, leases, auth, changes, revision, sub: 0, now }
    }

    /// The revision for the header: the new one once something has changed.
    pub(crate) fn revision(&self) -> i64 {
        self.state.applied()
    }

    /// Users and roles as they are after everything before this request.
    pub(crate) fn auth(&self) -> &Auth {
        self.auth
    }

    /// Changes users and roles; a refusal leaves them as they were.
    pub(crate) fn change_auth(
        &mut self,
        change: impl FnOnce(&mut Auth) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut next = Auth::clone(self.auth);
        change(&mut next)?;
        *self.auth = Arc::new(next);
        self.changes.auth = Some(Arc::clone(self.auth));
        Ok(())
    }

    /// Whether somebody may put that.
    pub(crate) fn permit_put(&self, caller: &Caller, put: &PbPutRequest) -> Result<(), Refusal> {
        self.auth.put(caller, self.leases, put)
    }

    /// Whether somebody may run either branch of that.
    pub(crate) fn permit_txn(&self, caller: &Caller, txn: &PbTxnRequest) -> Result<(), Refusal> {
        self.auth.txn(caller, Some(self.leases), txn)
    }

    /// Whether somebody may end that lease, and so delete its keys.
    pub(crate) fn permit_revoke(&self, caller: &Caller, id: i64) -> Result<(), Refusal> {
        self.auth.lease(caller, self.leases, id, Kind::Write)
    }

    fn check_space(&self, bytes: usize) -> Result<(), Refusal> {
        if self.state.live_bytes().saturating_add(bytes) > limits::LIVE_BYTES {
            return Err(Refusal::NoSpace);
        }
        Ok(())
    }

    /// etcd's Put.
    pub(crate) fn put(&mut self, request: PbPutRequest) -> Result<PbPutResponse, Refusal> {
        self.check_space(put_size(&request))?;
        check_put_on(self.state, self.state.applied(), Some(self.leases), &request)?;
        Ok(self.apply_put(request))
    }

    /// etcd's DeleteRange.
    pub(crate) fn delete(&mut self, request: &PbDeleteRequest) -> PbDeleteResponse {
        let range = KeyRange::new(&request.key, &request.range_end);
        let found = self.state.range(&range, self.state.applied(), 0);
        let prev_kvs: Vec<PbKeyValue> = if request.prev_kv {
            found.versions.iter().map(|version| version.to_pb(false)).collect()
        } else {
            Vec::new()
        };
        for version in &found.versions {
            self.apply_delete(version);
        }
        PbDeleteResponse {
            header: Some(bare_header(self.revision())),
            deleted: i64::try_from(found.count).unwrap_or(i64::MAX),
            prev_kvs,
        }
    }

    /// etcd's Txn.
    pub(crate) fn txn(&mut self, request: PbTxnRequest) -> Result<PbTxnResponse, Refusal> {
        self.check_space(txn_size(&request))?;
        let now = self.state.applied();
        let planned = plan(self.state, now, request);
        check(self.state, now, Some(self.leases), &planned)?;
        let mut response = self.apply_txn(planned)?;
        response.header = Some(bare_header(self.revision()));
        Ok(response)
    }

    /// Grants a lease; `None` lets the store choose the id.
    pub(crate) fn grant(&mut self, id: Option<i64>, ttl: i64) -> Result<(i64, i64), Refusal> {
        let id = id.unwrap_or_else(|| {
            loop {
                let id = rand::random_range(1..=i64::MAX);
                if !self.leases.contains(id) {
                    break id;
                }
            }
        });
        let ttl = self.leases.grant(id, ttl, self.now)?;
        self.changes.leases.push(LeaseChange::Granted { id, ttl });
        Ok((id, ttl))
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(crate) fn revoke(&mut self, id: i64) -> Result<(), Refusal> {
        let keys = self.leases.remove(id).ok_or(Refusal::LeaseNotFound)?;
        self.changes.leases.push(LeaseChange::Revoked { id });
        for key in keys {
            if let Some(version) = self.state.get(&key, self.state.applied()).cloned() {
                self.apply_delete(&version);
            }
        }
        Ok(())
    }

    /// Ends a lease unless it was renewed in time.
    pub(crate) fn expire(&mut self, id: i64) -> Result<(), Refusal> {
        if self.leases.has_expired(id, self.now) { self.revoke(id) } else { Ok(()) }
    }

    fn apply_txn(&mut self, planned: Planned) -> Result<PbTxnResponse, Refusal> {
        let mut responses = Vec::with_capacity(planned.ops.len());
        for op in planned.ops {
            responses.push(response(match op {
                PlannedOp::Delete(delete) => {
                    PbTxnOpResponse::ResponseDeleteRange(self.delete(&delete))
                }
                PlannedOp::Put(put) => PbTxnOpResponse::ResponsePut(self.apply_put(put)),
                PlannedOp::Range(range) => {
                    // The check has been passed, so this only fails if nothing was changed.
                    let selection = select(self.state, self.state.applied(), &range)?;
                    let header = bare_header(selection.revision);
                    PbTxnOpResponse::ResponseRange(assemble(selection, &range, header))
                }
                PlannedOp::Txn(nested) => PbTxnOpResponse::ResponseTxn(self.apply_txn(nested)?),
            }));
        }
        Ok(PbTxnResponse {
            // Only the outermost one tells a revision.
            header: Some(bare_header(0)),
            succeeded: planned.succeeded,
            responses,
        })
    }

    fn apply_put(&mut self, request: PbPutRequest) -> PbPutResponse {
        let before = self.state.get(&request.key, self.state.applied()).cloned();
        let key =
            before.as_ref().map_or_else(|| request.key.into(), |before| Arc::clone(&before.key));
        let value = match &before {
            Some(before) if request.ignore_value => before.value.clone(),
            _ => request.value.into_boxed_slice(),
        };
        let lease = match &before {
            Some(before) if request.ignore_lease => before.lease,
            _ => request.lease,
        };
        let old_lease = before.as_ref().map_or(0, |before| before.lease);
        self.leases.attach(&key, old_lease, lease);
        self.insert(Version {
            key,
            value,
            modified: self.revision,
            sub: self.sub,
            created: before.as_ref().map_or(self.revision, |before| before.created),
            version: before.as_ref().map_or(1, |before| before.version.saturating_add(1)),
            lease,
            deleted: false,
        });
        PbPutResponse {
            header: Some(bare_header(self.revision())),
            prev_kv: before.filter(|_| request.prev_kv).map(|before| before.to_pb(false)),
        }
    }

    fn apply_delete(&mut self, before: &Version) {
        self.leases.attach(&before.key, before.lease, 0);
        self.insert(Version {
            key: Arc::clone(&before.key),
            value: Box::default(),
            modified: self.revision,
            sub: self.sub,
            created: 0,
            version: 0,
            lease: 0,
            deleted: true,
        });
    }

    fn insert(&mut self, version: Version) {
        let version = Arc::new(version);
        self.sub = self.sub.saturating_add(1);
        self.changes.versions.push(Arc::clone(&version));
        self.state.insert(version);
    }
}

//! What is wrong with a request by itself, whatever the store holds: etcd's checks before a request
//! is taken at all.

use std::collections::{HashMap, HashSet};

use etcd_client::proto::{
    PbPutRequest, PbRangeRequest, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
};

use super::error::Refusal;
use super::limits;
use super::mvcc::KeyRange;
use super::txn::{SORT_BY_KEY, SORT_BY_VALUE, SORT_DESCEND, SORT_NONE};

/// Bytes of a request as far as its sender decides them.
pub(crate) fn txn_size(request: &PbTxnRequest) -> usize {
    let compares = request.compare.iter().map(|compare| {
        let value = match &compare.target_union {
            Some(PbTargetUnion::Value(value)) => value.len(),
            _ => 8,
        };
        compare.key.len() + compare.range_end.len() + value
    });
    let ops = request.success.iter().chain(&request.failure).map(|op| match &op.request {
        Some(PbTxnOpRequest::RequestRange(range)) => range.key.len() + range.range_end.len(),
        Some(PbTxnOpRequest::RequestPut(put)) => put_size(put),
        Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
            delete.key.len() + delete.range_end.len()
        }
        Some(PbTxnOpRequest::RequestTxn(txn)) => txn_size(txn),
        None => 0,
    });
    compares.sum::<usize>() + ops.sum::<usize>()
}

/// Bytes of a put as far as its sender decides them.
pub(crate) fn put_size(request: &PbPutRequest) -> usize {
    request.key.len() + request.value.len()
}

/// Refuses what etcd refuses by size.
pub(crate) fn check_size(bytes: usize) -> Result<(), Refusal> {
    if bytes > limits::REQUEST_BYTES { Err(Refusal::TooLarge) } else { Ok(()) }
}

/// Refuses a range that is wrong by itself.
pub(crate) fn check_range(request: &PbRangeRequest) -> Result<(), Refusal> {
    check_key(&request.key)?;
    let order = SORT_NONE..=SORT_DESCEND;
    let target = SORT_BY_KEY..=SORT_BY_VALUE;
    if !order.contains(&request.sort_order) || !target.contains(&request.sort_target) {
        return Err(Refusal::InvalidSort);
    }
    Ok(())
}

/// Refuses a put that is wrong by itself.
pub(crate) fn check_put(request: &PbPutRequest) -> Result<(), Refusal> {
    check_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// Refuses a request without key.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Refuses a transaction that is wrong by itself.
pub(crate) fn check_txn(request: &PbTxnRequest) -> Result<(), Refusal> {
    check_ops(request, limits::TXN_OPS)?;
    check_overlaps(&request.success)?;
    check_overlaps(&request.failure)?;
    Ok(())
}

/// `room` is what is left of the operations, less the longest list of each level above.
fn check_ops(request: &PbTxnRequest, room: usize) -> Result<(), Refusal> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let room = room.checked_sub(longest).ok_or(Refusal::TooManyOps)?;
    for compare in &request.compare {
        check_key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => check_range(range)?,
            Some(PbTxnOpRequest::RequestPut(put)) => check_put(put)?,
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => check_key(&delete.key)?,
            Some(PbTxnOpRequest::RequestTxn(txn)) => check_ops(txn, room)?,
            // etcd's answer to an empty operation.
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// Refuses lists that put a key twice, or put one they delete; gives the puts and deletes of the
/// list and all below it. The branches of a nested transaction exclude each other, so both may put
/// the same key.
fn check_overlaps(ops: &[PbTxnRequestOp]) -> Result<(HashSet<&[u8]>, Vec<KeyRange>), Refusal> {
    let mut deletes: Vec<KeyRange> = Vec::new();
    for op in ops {
        if let Some(PbTxnOpRequest::RequestDeleteRange(delete)) = &op.request {
            deletes.push(KeyRange::verbatim(&delete.key, &delete.range_end));
        }
    }
    // Each put with the number of the nested branch pair it came from.
    let mut puts: HashMap<&[u8], usize> = HashMap::new();
    let deleted =
        |deletes: &[KeyRange], key: &[u8]| deletes.iter().any(|range| range.contains(key));
    for (place, op) in ops.iter().enumerate() {
        let Some(PbTxnOpRequest::RequestTxn(txn)) = &op.request else { continue };
        let (then_puts, then_deletes) = check_overlaps(&txn.success)?;
        let (else_puts, else_deletes) = check_overlaps(&txn.failure)?;
        for key in then_puts.into_iter().chain(else_puts) {
            let elsewhere = puts.insert(key, place).is_some_and(|other| other != place);
            if elsewhere || deleted(&deletes, key) {
                return Err(Refusal::DuplicateKey);
            }
        }
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        let Some(PbTxnOpRequest::RequestPut(put)) = &op.request else { continue };
        let key = put.key.as_slice();
        if puts.insert(key, usize::MAX).is_some() || deleted(&deletes, key) {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok((puts.into_keys().collect(), deletes))
}

/// Whether a transaction can be answered by a reader (etcd's rule: nothing but ranges).
pub(crate) fn is_read_only(request: &PbTxnRequest) -> bool {
    let range = |op: &PbTxnRequestOp| matches!(op.request, Some(PbTxnOpRequest::RequestRange(_)));
    request.success.iter().chain(&request.failure).all(range)
}

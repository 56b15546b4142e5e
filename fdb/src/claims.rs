//! Precedence between the claims on one key.
//!
//! # Theory of operation
//!
//! A key has at most one static and one store claim. The table shows the better one; a store claim
//! beneath a static one waits here, in a map of the writer. See [`crate::Delta`] for the rules.

use std::collections::BTreeMap;

use crate::types::{Claim, Origin, OriginKind};

/// What becomes of the table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<V> {
    /// It goes.
    Hide,
    /// It stays.
    Keep,
    /// It stays, as a put may not have a learned origin.
    Refused,
    /// It becomes this.
    Show(V),
    /// It stays, as the put is older than the present claim.
    Stale,
}

fn is_older(new: Origin, present: Origin) -> bool {
    match (new, present) {
        (Origin::Store { revision: new }, Origin::Store { revision: present }) => new < present,
        _ => false,
    }
}

/// Puts `value` on `key`, whose entry in the table is `present`.
pub(crate) fn put<K: Ord, V: Claim>(
    beneath: &mut BTreeMap<K, V>,
    key: K,
    present: Option<V>,
    value: V,
) -> Outcome<V> {
    if present == Some(value) {
        return Outcome::Keep;
    }
    let present_kind = present.map(|present| present.origin().kind());
    match (value.origin().kind(), present, present_kind) {
        (OriginKind::Learned, _, _) => Outcome::Refused,
        (OriginKind::Static, Some(present), Some(OriginKind::Store)) => {
            beneath.insert(key, present);
            Outcome::Show(value)
        }
        (OriginKind::Store, _, Some(OriginKind::Static)) => {
            if beneath.get(&key).is_some_and(|old| is_older(value.origin(), old.origin())) {
                return Outcome::Stale;
            }
            beneath.insert(key, value);
            Outcome::Keep
        }
        (OriginKind::Store, Some(present), _) if is_older(value.origin(), present.origin()) => {
            Outcome::Stale
        }
        _ => Outcome::Show(value),
    }
}

/// Removes the claim of `kind` on `key`, whose entry in the table is `present`.
pub(crate) fn remove<K: Ord, V: Claim>(
    beneath: &mut BTreeMap<K, V>,
    key: K,
    present: Option<V>,
    kind: OriginKind,
) -> Outcome<V> {
    let Some(present) = present else { return Outcome::Keep };
    if present.origin().kind() == kind {
        // Only a static claim has another beneath it.
        return beneath.remove(&key).map_or(Outcome::Hide, Outcome::Show);
    }
    if kind == OriginKind::Store {
        beneath.remove(&key);
    }
    Outcome::Keep
}

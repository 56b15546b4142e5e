//! Copy-on-write arrays indexed by the control plane's dense slots.
//!
//! # Theory of operation
//!
//! A [`Dense`] is an array of chunks of 64 optional values, each chunk and each value behind an
//! `Arc`. A clone shares everything. A change copies the chunk list, one chunk and one value, or
//! nothing of what the clone alone holds. A [`KeySet`] is a bit set with the same habit.

use std::sync::Arc;

const CHUNK_BITS: u32 = 6;
const CHUNK_LEN: usize = 1 << CHUNK_BITS;

/// One past the largest dense slot that is accepted: 2^20.
///
/// A bound on what one wrong key can make the tables allocate.
pub const SLOTS_MAX: u32 = 1 << 20;

type Chunk<T> = Arc<[Option<Arc<T>>]>;

/// See the head of the module.
#[derive(Debug)]
pub(crate) struct Dense<T> {
    chunks: Arc<[Chunk<T>]>,
    len: usize,
}

impl<T> Clone for Dense<T> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks), len: self.len }
    }
}

fn split(slot: u32) -> (usize, usize) {
    ((slot >> CHUNK_BITS) as usize, slot as usize % CHUNK_LEN)
}

impl<T> Dense<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Arc::new([]), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        let (chunk, at) = split(slot);
        self.chunks.get(chunk)?.get(at)?.as_deref()
    }

    /// Puts `value` into `slot`. `false`, and no change, for a slot from [`SLOTS_MAX`] on.
    pub(crate) fn set(&mut self, slot: u32, value: T) -> bool {
        if slot >= SLOTS_MAX {
            return false;
        }
        let (chunk, at) = split(slot);
        if chunk >= self.chunks.len() {
            let empty: Chunk<T> = (0..CHUNK_LEN).map(|_| None).collect();
            let missing = chunk + 1 - self.chunks.len();
            let grown = self.chunks.iter().cloned().chain(std::iter::repeat_n(empty, missing));
            self.chunks = grown.collect();
        }
        let old = self.slot_mut(chunk, at).and_then(|place| place.replace(Arc::new(value)));
        self.len += usize::from(old.is_none());
        true
    }

    /// Whether there was a value.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        if self.get(slot).is_none() {
            return false;
        }
        let (chunk, at) = split(slot);
        if let Some(place) = self.slot_mut(chunk, at) {
            *place = None;
            self.len -= 1;
        }
        true
    }

    /// The value of `slot`, copied first when another clone shares it.
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T>
    where
        T: Clone,
    {
        // A miss must not copy the path.
        self.get(slot)?;
        let (chunk, at) = split(slot);
        self.slot_mut(chunk, at)?.as_mut().map(Arc::make_mut)
    }

    fn slot_mut(&mut self, chunk: usize, at: usize) -> Option<&mut Option<Arc<T>>> {
        Arc::make_mut(Arc::make_mut(&mut self.chunks).get_mut(chunk)?).get_mut(at)
    }

    /// All values with their slots, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .zip(0u32..)
            .filter_map(|(value, slot)| Some((slot, value.as_deref()?)))
    }

    /// Bytes of the array itself and of `T`, without what `T` points to.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.chunks.len() * (CHUNK_LEN * size_of::<usize>() + 32) + self.len * (size_of::<T>() + 16)
    }
}

/// See the head of the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySet(Arc<[u64]>);

impl KeySet {
    pub(crate) fn new() -> Self {
        Self(Arc::new([]))
    }

    #[inline]
    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Whether the set changed. The caller keeps `slot` below [`SLOTS_MAX`].
    pub(crate) fn set(&mut self, slot: u32, present: bool) -> bool {
        if self.contains(slot) == present {
            return false;
        }
        let word = slot as usize / 64;
        if word >= self.0.len() {
            let missing = word + 1 - self.0.len();
            self.0 = self.0.iter().copied().chain(std::iter::repeat_n(0, missing)).collect();
        }
        if let Some(word) = Arc::make_mut(&mut self.0).get_mut(word) {
            *word ^= 1 << (slot % 64);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_do_not_see_later_changes() {
        let mut now = Dense::new();
        assert!(now.set(3, "three") && now.set(200, "two hundred"));
        let before = now.clone();
        assert!(now.remove(3) && !now.remove(3));
        *now.get_mut(200).unwrap() = "changed";
        assert_eq!(before.iter().collect::<Vec<_>>(), [(3, &"three"), (200, &"two hundred")]);
        assert_eq!(now.iter().collect::<Vec<_>>(), [(200, &"changed")]);
        assert_eq!((before.len(), now.len()), (2, 1));
    }

    #[test]
    fn refuses_slots_beyond_the_bound() {
        let mut dense = Dense::new();
        assert!(!dense.set(SLOTS_MAX, ()) && !dense.set(u32::MAX, ()));
        assert!(dense.set(SLOTS_MAX - 1, ()));
        assert_eq!(dense.get(u32::MAX), None);
    }

    #[test]
    fn key_sets_add_and_remove() {
        let mut set = KeySet::new();
        assert!(set.set(70, true) && !set.set(70, true) && set.contains(70));
        let before = set.clone();
        assert!(set.set(70, false) && !set.contains(70) && !set.contains(7000));
        assert!(before.contains(70));
    }
}

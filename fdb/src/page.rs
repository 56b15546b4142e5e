//! The leaf of a [`crate::fanout::Fanout`]: a small open-addressed table in one allocation.
//!
//! # Theory of operation
//!
//! A page is a power of two of slots, 4 to 128, at most three quarters of them used. A key sits at
//! or after the slot that the lower bits of its hash name, with no vacant slot in between; removal
//! moves the following entries back, so there are no tombstones. Slots lie inline behind the
//! `Arc`'s header and their number is in the fat pointer: a look-up in a cold page costs one cache
//! miss, sometimes two neighboring ones.
//!
//! Pages are shared between the generations of a table. [`PageRef::make_mut`] copies one that is.

use std::sync::Arc;

use crate::hash::{Key, Seed};

/// Slots of the largest page.
pub(crate) const SLOTS_MAX: usize = 128;
/// Entries of the largest page.
pub(crate) const LEN_MAX: usize = room(SLOTS_MAX);

type Slot<K, V> = Option<(K, V)>;

/// Entries that a page of `slots` slots takes.
const fn room(slots: usize) -> usize {
    slots - slots / 4
}

/// A page of `S` slots: `[Slot; N]` when it is made, `[Slot]` from then on.
pub(crate) struct Page<S: ?Sized> {
    /// How many leading bits of the hash all keys of this page share.
    depth: u8,
    /// Used slots.
    len: u8,
    slots: S,
}

/// A shared page.
pub(crate) struct PageRef<K, V>(Arc<Page<[Slot<K, V>]>>);

impl<K, V> Clone for PageRef<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

// ===== impl PageRef =====

impl<K: Key, V: Copy> PageRef<K, V> {
    /// An empty page with room for `len` entries, at most [`LEN_MAX`].
    pub(crate) fn new(depth: u32, len: usize) -> Self {
        fn of<K: Copy, V: Copy, const N: usize>(depth: u8) -> Arc<Page<[Slot<K, V>]>> {
            Arc::new(Page { depth, len: 0, slots: [None; N] })
        }
        // A depth is at most 64, the bits of a hash.
        let depth = depth as u8;
        Self(match len {
            0..=3 => of::<K, V, 4>(depth),
            4..=6 => of::<K, V, 8>(depth),
            7..=12 => of::<K, V, 16>(depth),
            13..=24 => of::<K, V, 32>(depth),
            25..=48 => of::<K, V, 64>(depth),
            _ => of::<K, V, SLOTS_MAX>(depth),
        })
    }

    /// A page of these entries with room for one more where a page can have it. At most
    /// [`LEN_MAX`] entries.
    pub(crate) fn of(
        depth: u32,
        len: usize,
        entries: impl Iterator<Item = (K, V)>,
        seed: &Seed,
    ) -> Self {
        let mut page = Self::new(depth, (len + 1).min(LEN_MAX));
        let inner = page.make_mut();
        for (key, value) in entries {
            inner.insert(seed.hash(&key), key, value);
        }
        page
    }

    /// Write access; copies the page first when it is shared.
    pub(crate) fn make_mut(&mut self) -> &mut Page<[Slot<K, V>]> {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = self.0.copy();
        }
        Arc::get_mut(&mut self.0).expect("a page just copied has one owner")
    }

    pub(crate) fn depth(&self) -> u32 {
        u32::from(self.0.depth)
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.0.len)
    }

    pub(crate) fn slots(&self) -> usize {
        self.0.slots.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= room(self.slots())
    }

    /// Whether it can become larger instead of being split.
    pub(crate) fn can_grow(&self) -> bool {
        self.slots() < SLOTS_MAX
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.0) + 2 * size_of::<usize>()
    }

    #[inline]
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<&V> {
        let page = &*self.0;
        let at = page.find(hash, key)?;
        page.slots.get(at)?.as_ref().map(|(_, value)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> + use<'_, K, V> {
        self.0.slots.iter().flatten()
    }
}

// ===== impl Page =====

impl<K: Key, V: Copy> Page<[Slot<K, V>]> {
    fn copy(&self) -> Arc<Self> {
        fn of<K: Copy, V: Copy, const N: usize>(
            page: &Page<[Slot<K, V>]>,
        ) -> Arc<Page<[Slot<K, V>]>> {
            let mut slots = [None; N];
            slots.copy_from_slice(&page.slots);
            Arc::new(Page { depth: page.depth, len: page.len, slots })
        }
        match self.slots.len() {
            4 => of::<K, V, 4>(self),
            8 => of::<K, V, 8>(self),
            16 => of::<K, V, 16>(self),
            32 => of::<K, V, 32>(self),
            64 => of::<K, V, 64>(self),
            _ => of::<K, V, SLOTS_MAX>(self),
        }
    }

    /// The slot of `key`.
    #[inline]
    fn find(&self, hash: u64, key: &K) -> Option<usize> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            match self.slots.get(at)? {
                Some((present, _)) if present == key => return Some(at),
                Some(_) => at = (at + 1) & mask,
                None => return None,
            }
        }
    }

    /// Replaces the value of a present key, and gives the old one back.
    pub(crate) fn replace(&mut self, hash: u64, key: &K, value: V) -> Option<V> {
        let at = self.find(hash, key)?;
        let (_, present) = self.slots.get_mut(at)?.as_mut()?;
        Some(core::mem::replace(present, value))
    }

    /// Adds an absent key. The caller has seen that the page is not full.
    pub(crate) fn insert(&mut self, hash: u64, key: K, value: V) {
        debug_assert!(usize::from(self.len) < room(self.slots.len()), "page is full");
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].is_some() {
            at = (at + 1) & mask;
        }
        self.slots[at] = Some((key, value));
        self.len += 1;
    }

    /// Removes a key, and gives its value back.
    pub(crate) fn remove(&mut self, hash: u64, key: &K, seed: &Seed) -> Option<V> {
        let mut hole = self.find(hash, key)?;
        let (_, value) = self.slots[hole].take()?;
        self.len -= 1;
        let mask = self.slots.len() - 1;
        let mut at = (hole + 1) & mask;
        while let Some((key, _)) = &self.slots[at] {
            // An entry may move back to the hole unless its home lies between the two.
            let home = seed.hash(key) as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
            at = (at + 1) & mask;
        }
        Some(value)
    }
}

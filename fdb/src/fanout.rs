//! The map behind every large table: a copy-on-write fan-out over hashed keys.
//!
//! # Theory of operation
//!
//! ```text
//!   directory          chunks of 64            pages of 4 to 128 slots
//!   +---+
//!   | *-+--> [ * * * * ... * ] -+----------->  [ . k . k k . . k ]
//!   | *-+--> [ * * * * ... * ]   \--+------->  [ k . . k . k k . ]
//!   | : |                        /
//!   +---+    neighbors may share one page
//! ```
//!
//! Extendible hashing (R. Fagin and others, ACM TODS 4/3, 1979): the upper `depth` bits of a key's
//! hash name an entry of the directory, which points to a page. A full page of 128 slots is split
//! by one more bit; when it already used all `depth` bits, the directory doubles first. So pages
//! are split one at a time and no insertion rehashes the table. Pages that ran empty are merged,
//! and the directory is halved when no page needs its last bit.
//!
//! Every level is behind an `Arc`. A clone of the table costs one counter; a change afterwards
//! copies the directory's list of chunks, one chunk and one page, and further changes of the same
//! batch find those already their own. At 1e6 entries that is a few hundred counters and 4 KiB,
//! where one flat list of pages would be 16,000 counters.
//!
//! # Bounds
//!
//! No page has more than 128 slots or 96 entries, so no look-up compares more than that, whatever
//! the keys are. The directory has at most 16 times the entries that evenly filled pages would
//! need. If keys nevertheless collide so much that neither rule leaves room for another (with a
//! secret seed: never), the table is rebuilt with another seed, and if three seeds do not help the
//! insertion is refused with [`Full`].
//!
//! # Why this structure
//!
//! Medians of `cargo bench -p bench --bench fdb` on a 2-vCPU virtual machine (AMD EPYC, 2 MiB L2,
//! 32 MiB L3, Linux 6.18, rustc 1.95; 10 samples in 0.4 s each), all with the same hash, keys and
//! values, look-ups in random order. The machine was shared and this is one quiet run; the longest
//! change is from another. A run under heavy load gave figures up to 14 times as high from 1e4
//! entries on; the order of fan-out and trie stayed except for changes at 1e4. "fdb" is this
//! structure within the whole of [`crate::Writer`] and [`crate::Snapshot`].
//!
//! ```text
//!                                  1e2      1e3      1e4      1e5      1e6
//!   look-up, hit     fan-out        8       12       12       24       57  ns
//!                    rpds trie     15       22       33      180      410
//!                    left-right     6        8        7       17       41
//!                    fdb           13       14       15       37      105
//!   look-up, miss    fan-out       12       10       10       40       85  ns
//!                    rpds trie      9        9       17       55      388
//!                    left-right     5        3        4       10       14
//!                    fdb           15        9       17       43      121
//!   one change and   fan-out        0.3      0.3      0.8      1.2      3.3  us
//!   publication      rpds trie      0.4      0.6      1.1      1.7      3.2
//!                    left-right     0.05     0.04     0.06     0.2      0.4
//!                    fdb            0.6      0.6      1.1      1.3      7.4
//!   256 changes and  fan-out        7       10       43      118      363  us
//!   publication      rpds trie     14       37       95      441      823
//!                    left-right     7        6        7       23       64
//!                    fdb           19       22       67      107      605
//!   longest change   fan-out                                            0.5  ms
//!   while growing    rpds trie                                          1.7
//!   to 1e6           left-right                                        47.5
//!                    fdb                                                1.5
//!   memory per       fan-out                                           69  bytes
//!   entry            rpds trie                                        144
//!                    left-right                                       138
//! ```
//!
//! Loading the snapshot costs 5 to 7 ns with each, once per turn.
//!
//! The trie is the same idea with 32-wide nodes and an allocation per entry: slower hits and
//! batches, twice the memory; only misses in small tables are faster. Left-right has the fastest
//! medians, and is not taken all the same: its writer waits at every publication for readers of the
//! other map, so one listing or one descheduled worker holds up all changes; a reader cannot keep a
//! generation; when its maps grow, the writer stands still for tens of milliseconds; and it needs
//! twice the memory. What it would save is 3 to 17 ns per hit, 6 to 71 ns per miss, up to 3 us per
//! change and up to 0.3 ms per batch.

use std::sync::Arc;

use crate::hash::{Key, Seed};
use crate::page::{LEN_MAX, PageRef};

const CHUNK_BITS: u32 = 6;
const CHUNK_LEN: usize = 1 << CHUNK_BITS;
/// Two pages are merged when they hold no more entries than this together.
const MERGE_LEN: usize = LEN_MAX / 2;
/// A page is looked at for merging when it holds no more entries than this.
const SPARSE_LEN: usize = LEN_MAX / 8;
/// How many times the directory of evenly filled pages the directory may have.
const DIRECTORY_SLACK: usize = 16;
/// Seeds that are tried before an insertion is refused.
const SEEDS_MAX: u32 = 3;

/// The keys collide under every seed that was tried. See the head of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl core::fmt::Display for Full {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("too many keys with one hash")
    }
}

impl core::error::Error for Full {}

/// At most [`CHUNK_LEN`] consecutive entries of the directory.
struct Chunk<K, V>(Arc<[PageRef<K, V>]>);

impl<K, V> Clone for Chunk<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A hash map whose clones share what did not change. See the head of the module.
pub struct Fanout<K, V> {
    directory: Arc<[Chunk<K, V>]>,
    /// The directory has 2^depth entries.
    depth: u32,
    /// Pages that use all `depth` bits.
    deepest: usize,
    len: usize,
    seed: Seed,
}

impl<K, V> Clone for Fanout<K, V> {
    fn clone(&self) -> Self {
        Self { directory: Arc::clone(&self.directory), ..*self }
    }
}

impl<K: Key + core::fmt::Debug, V: Copy + core::fmt::Debug> core::fmt::Debug for Fanout<K, V> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// What the tables use besides look-up and change.
impl<K: Key, V: Copy> Fanout<K, V> {
    /// An empty table that hashes with `seed`.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self::from_pages(vec![PageRef::new(0, 0)], 0, seed)
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let hash = self.seed.hash(key);
        self.page(self.index(hash))?.get(hash, key)
    }

    /// Sets the value of `key` and gives the old one back.
    ///
    /// # Errors
    ///
    /// [`Full`] when the keys collide beyond the table's bounds; the table is unchanged then.
    pub fn insert(&mut self, key: K, value: V) -> Result<Option<V>, Full> {
        let mut seeds = 0;
        loop {
            match self.try_insert(key, value) {
                Err(Full) if seeds < SEEDS_MAX => {
                    seeds += 1;
                    if let Some(rebuilt) = self.rebuilt(Seed::random()) {
                        *self = rebuilt;
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Removes `key` and gives its value back.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        // A miss must not copy the path.
        self.get(key)?;
        let seed = self.seed;
        let hash = seed.hash(key);
        let index = self.index(hash);
        let (removed, len) = self.change(index, |page| {
            let inner = page.make_mut();
            (inner.remove(hash, key, &seed), page.len())
        });
        self.len -= usize::from(removed.is_some());
        if len <= SPARSE_LEN {
            self.merge(index);
        }
        removed
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pages().flat_map(|page| page.iter()).map(|(key, value)| (key, value))
    }

    /// Approximate size in bytes of the memory that this table reaches, shared or not.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let directory = (size_of::<PageRef<K, V>>() << self.depth)
            + self.directory.len() * (size_of::<Chunk<K, V>>() + 2 * size_of::<usize>());
        directory + self.pages().map(PageRef::memory_bytes).sum::<usize>()
    }
}

/// Directory and pages.
impl<K: Key, V: Copy> Fanout<K, V> {
    fn from_pages(pages: Vec<PageRef<K, V>>, depth: u32, seed: Seed) -> Self {
        let mut table = Self { directory: Arc::new([]), depth: 0, deepest: 1, len: 0, seed };
        table.set_directory(pages, depth);
        table
    }

    /// Replaces the directory by `pages`, one for each of its 2^depth entries.
    fn set_directory(&mut self, pages: Vec<PageRef<K, V>>, depth: u32) {
        self.directory = pages.chunks(CHUNK_LEN).map(|chunk| Chunk(chunk.into())).collect();
        self.depth = depth;
        self.deepest = self.pages().filter(|page| page.depth() == depth).count();
    }

    fn index(&self, hash: u64) -> usize {
        // Two shifts, as a shift by all 64 bits is not defined and depth may be 0.
        (hash >> 1 >> (63 - self.depth)) as usize
    }

    #[inline]
    fn page(&self, index: usize) -> Option<&PageRef<K, V>> {
        self.directory.get(index >> CHUNK_BITS)?.0.get(index % CHUNK_LEN)
    }

    fn entry_mut(&mut self, index: usize) -> &mut PageRef<K, V> {
        let chunk = &mut Arc::make_mut(&mut self.directory)[index >> CHUNK_BITS];
        &mut Arc::make_mut(&mut chunk.0)[index % CHUNK_LEN]
    }

    /// Every entry of the directory.
    fn entries(&self) -> impl Iterator<Item = &PageRef<K, V>> {
        self.directory.iter().flat_map(|chunk| chunk.0.iter())
    }

    /// Every page once: one of depth d fills 2^(depth - d) consecutive entries of the directory.
    fn pages(&self) -> impl Iterator<Item = &PageRef<K, V>> {
        let mut skip = 0usize;
        self.entries().filter(move |page| {
            let first = skip == 0;
            if first {
                skip = 1 << (self.depth - page.depth());
            }
            skip -= 1;
            first
        })
    }

    /// The entries of the directory that point to the same page as `index`.
    fn span(&self, index: usize, page_depth: u32) -> core::ops::Range<usize> {
        let len = 1 << (self.depth - page_depth);
        let first = index & !(len - 1);
        first..first + len
    }

    /// Changes the page at `index` in all its entries of the directory, in place when no other
    /// table shares it.
    fn change<R>(&mut self, index: usize, change: impl FnOnce(&mut PageRef<K, V>) -> R) -> R {
        let depth = self.depth;
        let entry = self.entry_mut(index);
        if entry.depth() == depth {
            return change(entry);
        }
        let mut page = entry.clone();
        let span = self.span(index, page.depth());
        // The page must have one owner to be changed in place: its entries let go of it meanwhile.
        let vacant = PageRef::new(0, 0);
        self.fill(span.clone(), &vacant);
        let result = change(&mut page);
        self.fill(span, &page);
        result
    }

    fn fill(&mut self, span: core::ops::Range<usize>, page: &PageRef<K, V>) {
        for index in span {
            *self.entry_mut(index) = page.clone();
        }
    }

    fn try_insert(&mut self, key: K, value: V) -> Result<Option<V>, Full> {
        let hash = self.seed.hash(&key);
        if self.get(&key).is_some() {
            let index = self.index(hash);
            return Ok(self.change(index, |page| page.make_mut().replace(hash, &key, value)));
        }
        loop {
            let index = self.index(hash);
            if self.page(index).is_some_and(PageRef::is_full) {
                self.make_room(index)?;
                continue;
            }
            self.change(index, |page| page.make_mut().insert(hash, key, value));
            self.len += 1;
            return Ok(None);
        }
    }

    /// Grows the full page at `index`, or splits it, or doubles the directory so that it can be.
    fn make_room(&mut self, index: usize) -> Result<(), Full> {
        let page = self.entry_mut(index).clone();
        let depth = page.depth();
        if page.can_grow() {
            let larger = PageRef::of(depth, page.len(), page.iter().copied(), &self.seed);
            self.fill(self.span(index, depth), &larger);
            return Ok(());
        }
        if depth == self.depth {
            let even = self.len.div_ceil(LEN_MAX).next_power_of_two();
            if 2usize << depth > even * DIRECTORY_SLACK {
                return Err(Full);
            }
            let doubled = self.entries().flat_map(|page| [page.clone(), page.clone()]).collect();
            self.set_directory(doubled, self.depth + 1);
            return Ok(());
        }
        let span = self.span(index, depth);
        let middle = span.start + span.len() / 2;
        let seed = self.seed;
        let upper = |(key, _): &&(K, V)| seed.hash(key) << depth >> 63 == 1;
        let upper_len = page.iter().filter(upper).count();
        let high = PageRef::of(depth + 1, upper_len, page.iter().filter(upper).copied(), &seed);
        let low = PageRef::of(
            depth + 1,
            page.len() - upper_len,
            page.iter().filter(|entry| !upper(entry)).copied(),
            &seed,
        );
        self.fill(span.start..middle, &low);
        self.fill(middle..span.end, &high);
        if depth + 1 == self.depth {
            self.deepest += 2;
        }
        Ok(())
    }

    /// Merges the sparse page at `index` with its sibling while both are, shrinks what is left.
    fn merge(&mut self, index: usize) {
        let mut index = index;
        while let Some(page) = self.page(index).cloned() {
            let depth = page.depth();
            let span = self.span(index, depth);
            let sibling = self.page(span.start ^ span.len()).cloned();
            let sibling = sibling
                .filter(|other| depth > 0 && other.depth() == depth)
                .filter(|other| page.len() + other.len() <= MERGE_LEN);
            let Some(sibling) = sibling else {
                if page.slots() > 8 && page.len() < page.slots() / 8 {
                    let smaller = PageRef::of(depth, page.len(), page.iter().copied(), &self.seed);
                    self.fill(span, &smaller);
                }
                return;
            };
            let len = page.len() + sibling.len();
            let entries = page.iter().chain(sibling.iter()).copied();
            let merged = PageRef::of(depth - 1, len, entries, &self.seed);
            self.fill(self.span(index, depth - 1), &merged);
            if depth == self.depth {
                self.deepest -= 2;
            }
            while self.deepest == 0 && self.depth > 0 {
                let halved = self.entries().step_by(2).cloned().collect();
                self.set_directory(halved, self.depth - 1);
                index >>= 1;
            }
        }
    }

    /// The same entries under another seed; `None` when they collide under that one too.
    fn rebuilt(&self, seed: Seed) -> Option<Self> {
        let mut table = Self::new(seed);
        for (key, value) in self.iter() {
            table.try_insert(*key, *value).ok()?;
        }
        Some(table)
    }
}

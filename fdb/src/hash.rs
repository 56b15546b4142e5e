//! The keyed hash of the tables.
//!
//! # Theory of operation
//!
//! Keys come from the network: whoever can send a frame into a learning network chooses MACs. The
//! hash is therefore drawn from a family by a secret [`Seed`], one per table.
//!
//! The family is multiply-shift on 128 bits: `(a0 * x0 + a1 * x1 + b) mod 2^128`, upper 64 bits,
//! with `a0`, `a1` and `b` random (M. Dietzfelbinger, "Universal hashing and k-wise independent
//! random variables via integer arithmetic without primes", 1996). It is pairwise independent: for
//! any two different keys, chosen without knowledge of the seed, the two hashes are independent
//! and uniform. The number of keys in a page then has the same mean and variance as if the hash
//! were random. A bijective finalizer, which keeps that property, breaks up the arithmetic
//! progressions in which MACs are handed out.
//!
//! A sender cannot see a hash. If one finds colliding keys nevertheless, the table's bounds hold
//! (see [`crate::fanout`]) and the table draws another seed.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use core::fmt;

use encap::{MacAddr, Vni};

/// A key of a [`crate::fanout::Fanout`], small enough to be hashed as two words.
pub trait Key: Copy + Eq {
    /// The key as numbers. Different keys should give different words.
    fn words(&self) -> [u64; 2];
}

impl Key for u64 {
    fn words(&self) -> [u64; 2] {
        [*self, 0]
    }
}

impl Key for MacAddr {
    fn words(&self) -> [u64; 2] {
        [self.to_u64(), 0]
    }
}

impl Key for IpAddr {
    fn words(&self) -> [u64; 2] {
        match self {
            // The upper half is out of the range of unicast IPv6.
            Self::V4(ip) => [u64::from(ip.to_bits()), u64::MAX],
            Self::V6(ip) => {
                let bits = ip.to_bits();
                [bits as u64, (bits >> 64) as u64]
            }
        }
    }
}

/// UDP port and VNI, which together name the network of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortVni(pub(crate) u16, pub(crate) Vni);

impl Key for PortVni {
    fn words(&self) -> [u64; 2] {
        [u64::from(self.0) << 32 | u64::from(self.1.get()), 0]
    }
}

/// The secret that draws one hash function from the family.
#[derive(Clone, Copy)]
pub struct Seed {
    a: [u128; 2],
    b: u128,
}

impl Seed {
    /// A random seed, from the process's random state (the system's randomness, read once).
    #[must_use]
    pub fn random() -> Self {
        Self::draw(&RandomState::new())
    }

    /// A seed from the caller's numbers, for tests that must repeat.
    #[must_use]
    pub fn from_words(words: [u64; 6]) -> Self {
        let [a, b, c, d, e, f] = words;
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        Self { a: [join(a, b), join(c, d)], b: join(e, f) }
    }

    fn draw(state: &RandomState) -> Self {
        Self::from_words(core::array::from_fn(|i| state.hash_one(i)))
    }

    /// The hash of `key`: its upper bits choose the page, its lower bits the slot.
    #[inline]
    #[must_use]
    pub fn hash<K: Key>(&self, key: &K) -> u64 {
        let [x, y] = key.words();
        let [a, c] = self.a;
        let sum = u128::from(x)
            .wrapping_mul(a)
            .wrapping_add(u128::from(y).wrapping_mul(c))
            .wrapping_add(self.b);
        let z = (sum >> 64) as u64;
        let z = (z ^ z >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z ^ z >> 29
    }
}

/// Shows that there is a seed, never which.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_and_stay_secret() {
        let (one, two) = (Seed::random(), Seed::random());
        assert_ne!(one.hash(&7u64), two.hash(&7u64));
        assert_eq!(format!("{one:?}"), "Seed(..)");
    }

    /// Handing out MACs one after another must not fill one page before the others.
    #[test]
    fn progressions_spread_evenly() {
        for stride in [1u64, 2, 256, 1 << 24, 0x0001_0001_0001] {
            let seed = Seed::random();
            let mut pages = [0u32; 256];
            for i in 0..256 * 64 {
                pages[(seed.hash(&(i * stride)) >> 56) as usize] += 1;
            }
            let most = pages.iter().max().copied().unwrap();
            assert!(most < 64 * 3, "stride {stride}: {most} keys in one of 256 pages");
        }
    }
}

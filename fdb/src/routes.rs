//! Longest-prefix routes: which VTEP has a range of addresses, and which network.
//!
//! # Theory of operation
//!
//! ```text
//!   levels, longest first     /32 --> { 198.51.100.9 }
//!                             /26 --> { 198.51.100.0, 198.51.100.64, ... }
//!                             /24 --> { 198.51.100.0 }
//! ```
//!
//! One hash table per prefix length that is in use. A look-up masks the address once per length,
//! longest first, and takes the first hit. Networks use two or three lengths (blocks, single
//! addresses, a subnet), so that is two or three look-ups of a [`Fanout`], which does not depend on
//! how many routes there are; at most 33 for IPv4 and 129 for IPv6. A trie would bound that better
//! and cost a chain of dependent loads for each packet.
//!
//! A change copies the list of levels, which is short, and what the fan-out copies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::fanout::{Fanout, Full};
use crate::hash::Seed;
use crate::types::Prefix;

/// The routes of one prefix length. The keys are addresses without host bits.
#[derive(Clone, Debug)]
struct Level<T: Copy> {
    len: u8,
    routes: Fanout<IpAddr, T>,
}

/// What prefixes lead to.
#[derive(Clone, Debug)]
pub(crate) struct Routes<T: Copy> {
    /// Longest first.
    v4: Arc<[Level<T>]>,
    v6: Arc<[Level<T>]>,
}

/// An address without the bits behind the first `len`.
pub(crate) fn masked(ip: IpAddr, len: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let shift = 32_u32.saturating_sub(u32::from(len));
            let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let shift = 128_u32.saturating_sub(u32::from(len));
            let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

impl<T: Copy> Routes<T> {
    pub(crate) fn new() -> Self {
        Self { v4: Arc::new([]), v6: Arc::new([]) }
    }

    fn levels(&self, ip: IpAddr) -> &Arc<[Level<T>]> {
        if ip.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn levels_mut(&mut self, ip: IpAddr) -> &mut Arc<[Level<T>]> {
        if ip.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    /// What the longest prefix that holds `ip` leads to.
    #[inline]
    pub(crate) fn find(&self, ip: IpAddr) -> Option<&T> {
        self.levels(ip).iter().find_map(|level| level.routes.get(&masked(ip, level.len)))
    }

    pub(crate) fn get(&self, prefix: Prefix) -> Option<&T> {
        let levels = self.levels(prefix.address());
        levels.iter().find(|level| level.len == prefix.len())?.routes.get(&prefix.address())
    }

    pub(crate) fn insert(&mut self, prefix: Prefix, route: T) -> Result<(), Full> {
        let levels = self.levels_mut(prefix.address());
        let mut changed = levels.to_vec();
        let at = changed.partition_point(|level| level.len > prefix.len());
        if changed.get(at).is_none_or(|level| level.len != prefix.len()) {
            let routes = Fanout::new(Seed::random());
            changed.insert(at, Level { len: prefix.len(), routes });
        }
        if let Some(level) = changed.get_mut(at) {
            level.routes.insert(prefix.address(), route)?;
        }
        *levels = changed.into();
        Ok(())
    }

    pub(crate) fn remove(&mut self, prefix: Prefix) {
        let levels = self.levels_mut(prefix.address());
        let mut changed = levels.to_vec();
        for level in changed.iter_mut().filter(|level| level.len == prefix.len()) {
            level.routes.remove(&prefix.address());
        }
        changed.retain(|level| !level.routes.is_empty());
        *levels = changed.into();
    }

    /// All routes, longest prefixes first, otherwise in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        self.v4.iter().chain(self.v6.iter()).flat_map(|level| {
            let prefix = |ip: &IpAddr| Prefix::new(*ip, level.len);
            level.routes.iter().filter_map(move |(ip, route)| Some((prefix(ip)?, route)))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.v4.iter().chain(self.v6.iter()).map(|level| level.routes.len()).sum()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let levels = self.v4.iter().chain(self.v6.iter());
        levels.map(|level| size_of::<Level<T>>() + level.routes.memory_bytes()).sum()
    }
}

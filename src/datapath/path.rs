//! The path to each VTEP: its address in the kernel's form, what fits it, what it refuses.
//!
//! # Theory of operation
//!
//! A worker keeps one [`Path`] per VTEP slot. It is refreshed when the table generation moves, and
//! remembers what sending taught: a smaller path MTU (from the socket error queue) and a refusal of
//! UDP segmentation. Both are forgotten after a while, so that a healed path is used in full again.

use std::net::{IpAddr, SocketAddr};

use encap::mtu::{self, Encapsulation};
use fdb::{Generation, Snapshot, VtepKey};

use crate::sys::mmsg::Address;

/// A learned path MTU holds as long as the kernel's own (`net.ipv4.route.mtu_expires`).
const MTU_LIFETIME_MS: u64 = 600_000;
/// A path that refused UDP segmentation is tried again after this long.
const GSO_RETRY_MS: u64 = 60_000;
/// What a path is never believed to take less than, as an ICMP answer may be forged: the kernel's own
/// floor (`net.ipv4.route.min_pmtu`), and RFC 8200 section 5.
const LEAST_MTU_V4: u16 = 552;
const LEAST_MTU_V6: u16 = 1280;
/// Ethernet header of the inner frame, which counts against the inner MTU's frame but not its IP.
const ETHERNET_LEN: usize = 14;

/// What is known of the way to one VTEP.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    address: SocketAddr,
    /// Outer UDP checksum is sent to it.
    pub checksum: bool,
    /// Underlay MTU in bytes as the VTEP's host publishes it; 0 unknown.
    advertised_mtu: u16,
    learned_mtu: u16,
    learned_at_ms: u64,
    gso_refused_at_ms: Option<u64>,
    generation: Generation,
    /// The largest inner frame that fits, Ethernet header included, in bytes.
    pub max_frame: usize,
}

impl Path {
    /// IPv6 underlay.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// Whether UDP segmentation may be tried now.
    #[must_use]
    pub fn takes_gso(&self, now_ms: u64) -> bool {
        self.gso_refused_at_ms.is_none_or(|at| now_ms.saturating_sub(at) > GSO_RETRY_MS)
    }

    /// The path refused UDP segmentation.
    pub fn refuse_gso(&mut self, now_ms: u64) {
        self.gso_refused_at_ms = Some(now_ms);
    }

    fn fit(&mut self, own_mtu: u16, now_ms: u64) {
        if self.learned_mtu != 0 && now_ms.saturating_sub(self.learned_at_ms) > MTU_LIFETIME_MS {
            self.learned_mtu = 0;
        }
        let least = [self.advertised_mtu, self.learned_mtu]
            .into_iter()
            .filter(|mtu| *mtu != 0)
            .fold(own_mtu, u16::min);
        let inner = least.saturating_sub(mtu::overhead(Encapsulation::Vxlan, self.is_ipv6()));
        self.max_frame = usize::from(inner) + ETHERNET_LEN;
    }
}

/// A worker's paths, by VTEP slot.
#[derive(Default)]
pub struct Paths {
    paths: Vec<Option<Path>>,
    addresses: Vec<Address>,
    own_mtu: u16,
}

impl Paths {
    /// Sets this host's underlay MTU in bytes.
    pub fn set_own_mtu(&mut self, own_mtu: u16, now_ms: u64) {
        if self.own_mtu != own_mtu {
            self.own_mtu = own_mtu;
            for path in self.paths.iter_mut().flatten() {
                path.fit(own_mtu, now_ms);
            }
        }
    }

    /// Forgets learned path MTUs that are past their lifetime. Called every few seconds.
    pub fn expire(&mut self, now_ms: u64) {
        for path in self.paths.iter_mut().flatten().filter(|path| path.learned_mtu != 0) {
            path.fit(self.own_mtu, now_ms);
        }
    }

    /// The path to `key`, brought up to the snapshot; `None` when the snapshot has no such VTEP.
    #[inline]
    pub fn resolve(&mut self, snapshot: &Snapshot, key: VtepKey, now_ms: u64) -> Option<&Path> {
        let index = key.0 as usize;
        let current = self
            .paths
            .get(index)
            .and_then(Option::as_ref)
            .is_some_and(|path| path.generation == snapshot.generation());
        if !current {
            self.refresh(snapshot, key, now_ms);
        }
        self.paths.get(index).and_then(Option::as_ref)
    }

    #[cold]
    fn refresh(&mut self, snapshot: &Snapshot, key: VtepKey, now_ms: u64) {
        let index = key.0 as usize;
        let Some(vtep) = snapshot.vtep(key) else {
            if let Some(slot) = self.paths.get_mut(index) {
                *slot = None;
            }
            return;
        };
        let address = SocketAddr::new(vtep.address, vtep.port);
        if self.paths.len() <= index {
            // Grows when a host joins, not per packet.
            self.paths.resize(index + 1, None);
            self.addresses.resize(index + 1, Address::from(address));
        }
        let own_mtu = self.own_mtu;
        if let (Some(slot), Some(kernel_form)) =
            (self.paths.get_mut(index), self.addresses.get_mut(index))
        {
            // What was learned belongs to the address, not to the slot.
            let kept = slot.filter(|path| path.address == address);
            let mut path = kept.unwrap_or_else(|| Path {
                address,
                checksum: true,
                advertised_mtu: 0,
                learned_mtu: 0,
                learned_at_ms: 0,
                gso_refused_at_ms: None,
                generation: snapshot.generation(),
                max_frame: 0,
            });
            path.checksum = vtep.checksum;
            path.advertised_mtu = vtep.mtu;
            path.generation = snapshot.generation();
            path.fit(own_mtu, now_ms);
            *kernel_form = Address::from(address);
            *slot = Some(path);
        }
    }

    /// The path to `key` if it was resolved before.
    pub fn get_mut(&mut self, key: VtepKey) -> Option<&mut Path> {
        self.paths.get_mut(key.0 as usize)?.as_mut()
    }

    /// Destinations in the kernel's form, indexed by VTEP slot.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The path said that `mtu` bytes is the most it takes towards `destination`.
    pub fn learn_mtu(&mut self, destination: IpAddr, mtu: u16, now_ms: u64) {
        let own_mtu = self.own_mtu;
        let mtu = mtu.max(if destination.is_ipv4() { LEAST_MTU_V4 } else { LEAST_MTU_V6 });
        for path in self.paths.iter_mut().flatten() {
            if path.address.ip() == destination {
                path.learned_mtu = mtu;
                path.learned_at_ms = now_ms;
                path.fit(own_mtu, now_ms);
            }
        }
    }
}

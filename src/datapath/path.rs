//! The path to each VTEP: its address in the kernel's form, what fits it, what it refuses.
//!
//! # Theory of operation
//!
//! A worker keeps one [`Path`] per VTEP slot. It is refreshed when the table generation moves, and
//! remembers what sending taught: a smaller path MTU (from the socket error queue) and a refusal of
//! UDP segmentation. Both are forgotten after a while, so that a healed path is used in full again.
//!
//! That the VTEP was said to be unreachable is told to the next sender once it has been said for
//! a second while nothing came from its address, to any worker ([`Heard`]), and for as long as it
//! is said anew: Linux says "protocol unreachable" also of a raw socket whose buffer is full, and
//! such an answer would end TCP connections that are being opened.
//!
//! The place of a datagram's destination is a [`Destination`]: the VTEP's slot for its own port, or a
//! number given on first use for any other port, or for none (IP-in-IP has no ports).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use encap::mtu::{self, Encapsulation};
use fdb::{Carrier, Generation, Routed, Snapshot, VtepKey};

use super::heard::Heard;
use crate::sys::mmsg::{Address, FURTHER};

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

/// Destinations of other ports than the VTEPs' own that are kept; with more, all are forgotten at the
/// next [`Paths::expire`] and found anew.
const FURTHER_MOST: usize = 65_536;

/// Where a datagram goes, as the kernel's form of it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination(u32);

impl Destination {
    /// The VTEP's own port.
    #[must_use]
    pub const fn of_vtep(key: VtepKey) -> Self {
        Self(key.0)
    }

    /// The index for [`crate::sys::mmsg::Message`].
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }
}

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
    /// IP-in-IP gets through to it, as far as is known.
    pub ip_in_ip: bool,
    /// Of the times when it was said to be unreachable, the last that a sender was told of.
    told: u64,
    /// The slot that is marked when something comes from its address.
    heard_as: VtepKey,
    /// Bytes of the largest outer packet that fits.
    outer: u16,
    /// The largest inner frame that fits in VXLAN, Ethernet header included, in bytes.
    pub max_frame: usize,
}

impl Path {
    /// IPv6 underlay.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// The VTEP's address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The largest inner IP packet that fits, in bytes.
    #[inline]
    #[must_use]
    pub fn max_packet(&self, encapsulation: Encapsulation) -> u16 {
        mtu::inner(encapsulation, self.is_ipv6(), self.outer)
    }

    /// What packets of this network are put into on their way to the VTEP.
    #[inline]
    #[must_use]
    pub fn encapsulation(&self, routed: &Routed) -> Encapsulation {
        match routed.carrier {
            Carrier::IpIp if self.ip_in_ip || !routed.fallback => Encapsulation::IpIp,
            Carrier::IpIp | Carrier::IpUdp => Encapsulation::IpUdp,
        }
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
        self.outer = least;
        self.max_frame = usize::from(self.max_packet(Encapsulation::Vxlan)) + ETHERNET_LEN;
    }
}

/// A worker's paths, by VTEP slot.
#[derive(Default)]
pub struct Paths {
    paths: Vec<Option<Path>>,
    addresses: Vec<Address>,
    further: Vec<Address>,
    /// Whose the further addresses are, and at which port.
    owners: Vec<(VtepKey, u16)>,
    numbers: HashMap<(VtepKey, u16), u32>,
    /// The further destination that was asked for last.
    recent: Option<((VtepKey, u16), Destination)>,
    own_mtu: u16,
    /// The VTEPs at an address, each at a port of its own.
    by_address: HashMap<IpAddr, Vec<VtepKey>>,
    /// What all workers know.
    heard: Arc<Heard>,
}

impl Paths {
    /// Shares what all workers know of the VTEPs.
    pub fn share(&mut self, heard: Arc<Heard>) {
        self.heard = heard;
    }

    /// Sets this host's underlay MTU in bytes.
    pub fn set_own_mtu(&mut self, own_mtu: u16, now_ms: u64) {
        if self.own_mtu != own_mtu {
            self.own_mtu = own_mtu;
            for path in self.paths.iter_mut().flatten() {
                path.fit(own_mtu, now_ms);
            }
        }
    }

    /// Forgets learned path MTUs that are past their lifetime. Called every few seconds, while nothing
    /// waits to be sent.
    pub fn expire(&mut self, now_ms: u64) {
        if self.further.len() > FURTHER_MOST {
            self.further.clear();
            self.owners.clear();
            self.numbers.clear();
            self.recent = None;
        }
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
            if let Some(gone) = self.paths.get_mut(index).and_then(Option::take) {
                self.forget_address(gone.ip(), key);
            }
            return;
        };
        let address = SocketAddr::new(vtep.address, vtep.port);
        if self.paths.len() <= index {
            // Grows when a host joins, not per packet.
            self.paths.resize(index + 1, None);
            self.addresses.resize(index + 1, Address::from(address));
        }
        let known = self.paths.get(index).and_then(Option::as_ref).map(Path::ip);
        if known != Some(address.ip()) {
            if let Some(former) = known {
                self.forget_address(former, key);
            }
            self.by_address.entry(address.ip()).or_default().push(key);
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
                ip_in_ip: true,
                told: 0,
                heard_as: key,
                outer: 0,
                max_frame: 0,
            });
            path.checksum = vtep.checksum;
            path.advertised_mtu = vtep.mtu;
            path.ip_in_ip = vtep.ip_in_ip;
            path.heard_as = snapshot.vtep_by_address(address.ip()).unwrap_or(key);
            path.generation = snapshot.generation();
            path.fit(own_mtu, now_ms);
            if kept.is_none() {
                let further = self.owners.iter().zip(&mut self.further);
                for ((_, port), form) in further.filter(|((owner, _), _)| *owner == key) {
                    *form = Address::from(SocketAddr::new(address.ip(), *port));
                }
            }
            *kernel_form = Address::from(address);
            *slot = Some(path);
        }
    }

    fn forget_address(&mut self, address: IpAddr, key: VtepKey) {
        if let Some(keys) = self.by_address.get_mut(&address) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// The place of `port` of a VTEP whose path was resolved; 0 where the transport has no ports.
    #[inline]
    pub fn at_port(&mut self, key: VtepKey, port: u16) -> Destination {
        match self.recent {
            Some((of, destination)) if of == (key, port) => destination,
            _ => self.find_port(key, port),
        }
    }

    fn find_port(&mut self, key: VtepKey, port: u16) -> Destination {
        let number = match self.numbers.get(&(key, port)) {
            Some(number) => *number,
            None => {
                let Some(Some(path)) = self.paths.get(key.0 as usize) else {
                    return Destination::of_vtep(key);
                };
                // Grows with the first packet to it.
                let number = self.further.len() as u32;
                self.further.push(Address::from(SocketAddr::new(path.address.ip(), port)));
                self.owners.push((key, port));
                self.numbers.insert((key, port), number);
                number
            }
        };
        let destination = Destination(FURTHER | number);
        self.recent = Some(((key, port), destination));
        destination
    }

    /// The VTEP at a [`Destination::index`], and the port where it is not the VTEP's own.
    #[must_use]
    pub fn at_index(&self, index: u32) -> Option<(VtepKey, Option<u16>)> {
        if index & FURTHER == 0 {
            return Some((VtepKey(index), None));
        }
        let (vtep, port) = *self.owners.get((index & !FURTHER) as usize)?;
        Some((vtep, Some(port)))
    }

    /// The path to `destination` if it was resolved before.
    pub fn get_mut(&mut self, destination: Destination) -> Option<&mut Path> {
        let (vtep, _) = self.at_index(destination.0)?;
        self.paths.get_mut(vtep.0 as usize)?.as_mut()
    }

    /// Destinations in the kernel's form: the VTEPs' own ports, indexed by slot, and all others.
    #[must_use]
    pub fn addresses(&self) -> [&[Address]; 2] {
        [&self.addresses, &self.further]
    }

    /// Whether a sender is to be told that `key` is unreachable: one of each worker, each time that it
    /// is said.
    #[inline]
    pub fn take_unreachable(&mut self, key: VtepKey, now_ms: u64) -> bool {
        let Some(Some(path)) = self.paths.get_mut(key.0 as usize) else { return false };
        let Some(said) = self.heard.unreachable(key, path.heard_as, now_ms) else { return false };
        std::mem::replace(&mut path.told, said) != said
    }

    /// The path said that `destination` cannot be reached.
    pub fn note_unreachable(&mut self, destination: IpAddr, now_ms: u64) {
        for key in self.by_address.get(&destination).into_iter().flatten() {
            if let Some(Some(path)) = self.paths.get(key.0 as usize) {
                self.heard.note_unreachable(*key, path.heard_as, now_ms);
            }
        }
    }

    /// The path said that `mtu` bytes is the most it takes towards `destination`.
    pub fn learn_mtu(&mut self, destination: IpAddr, mtu: u16, now_ms: u64) {
        let own_mtu = self.own_mtu;
        let mtu = mtu.max(if destination.is_ipv4() { LEAST_MTU_V4 } else { LEAST_MTU_V6 });
        for key in self.by_address.get(&destination).into_iter().flatten() {
            if let Some(Some(path)) = self.paths.get_mut(key.0 as usize) {
                path.learned_mtu = mtu;
                path.learned_at_ms = now_ms;
                path.fit(own_mtu, now_ms);
            }
        }
    }
}

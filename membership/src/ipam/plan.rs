//! The arithmetic of blocks and the choice of an address, without the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::key::HostName;
use crate::record::{BlockRecord, NetworkRecord, StaticVtep};

/// Longest addresses: bits of the family.
const fn bits(net: IpNet) -> u8 {
    match net {
        IpNet::V4(_) => 32,
        IpNet::V6(_) => 128,
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn from_number(ipv6: bool, number: u128) -> IpAddr {
    if ipv6 {
        Ipv6Addr::from(number).into()
    } else {
        // The callers stay within a subnet, so the number has 32 bits.
        Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
    }
}

/// The prefix length of a subnet's blocks: a subnet holds at least 32 of them where it can, and a
/// block at most 64 addresses (IPv4 /26, IPv6 /122).
#[must_use]
pub fn block_len(subnet: IpNet) -> u8 {
    let bits = bits(subnet);
    subnet.prefix_len().saturating_add(5).clamp(bits - 6, bits)
}

/// The block of an address of `subnet`, and its offset there.
#[must_use]
pub fn block_of(subnet: IpNet, ip: IpAddr) -> (IpNet, u32) {
    let len = block_len(subnet);
    let host_bits = bits(subnet) - len;
    let number = number(ip);
    let base = number >> host_bits << host_bits;
    let cidr = IpNet::new(from_number(ip.is_ipv6(), base), len).unwrap_or(subnet);
    // At most six host bits.
    (cidr, u32::try_from(number - base).unwrap_or(0))
}

/// The offset of an address in a block; `None` when it lies outside.
#[must_use]
pub fn offset(block: IpNet, ip: IpAddr) -> Option<u32> {
    if !block.contains(&ip) {
        return None;
    }
    u32::try_from(number(ip) - number(block.network())).ok()
}

/// The address at an offset of a block.
#[must_use]
pub fn address(block: IpNet, offset: u32) -> IpAddr {
    let base = number(block.network());
    from_number(block.addr().is_ipv6(), base.saturating_add(u128::from(offset)))
}

/// What an address is, when it is none to give out.
#[must_use]
pub fn excluded(network: &NetworkRecord, subnet: IpNet, ip: IpAddr) -> Option<&'static str> {
    if ip == subnet.network() {
        // RFC 4291 section 2.6.1 for IPv6: the subnet-router anycast address.
        let router = "the subnet-router address";
        return Some(if ip.is_ipv6() { router } else { "the network address" });
    }
    if !ip.is_ipv6() && ip == subnet.broadcast() {
        return Some("the broadcast address");
    }
    if network.gateways.contains(&ip) {
        return Some("the gateway");
    }
    network.exclude.iter().any(|range| range.contains(ip)).then_some("an excluded address")
}

/// Whether an address is known behind a static VTEP, by hand or from a kernel device.
#[must_use]
pub fn is_behind_vtep(network: &NetworkRecord, ip: IpAddr) -> bool {
    let mut known = network.static_vteps.iter().flat_map(StaticVtep::known);
    known.any(|(_, ips)| ips.contains(&ip))
}

/// How many addresses of a subnet can be given out; saturates for an IPv6 /0.
#[must_use]
pub fn capacity(network: &NetworkRecord, subnet: IpNet) -> u128 {
    let all =
        1_u128.checked_shl(u32::from(bits(subnet) - subnet.prefix_len())).unwrap_or(u128::MAX);
    let single = |ip: IpAddr| (number(ip), number(ip));
    let mut barred = vec![single(subnet.network())];
    if !subnet.addr().is_ipv6() {
        barred.push(single(subnet.broadcast()));
    }
    barred.extend(network.gateways.iter().filter(|ip| subnet.contains(*ip)).map(|ip| single(*ip)));
    let ranges = network.exclude.iter().filter(|range| subnet.contains(&range.first()));
    barred.extend(ranges.map(|range| (number(range.first()), number(range.last()))));
    barred.sort_unstable();
    // What several of them bar counts once.
    let mut next = 0;
    let mut count = 0_u128;
    for (first, last) in barred {
        let first = first.max(next);
        if first <= last {
            count = count.saturating_add((last - first).saturating_add(1));
            next = last.saturating_add(1);
        }
    }
    all.saturating_sub(count)
}

/// The blocks of one subnet and what rests in it.
#[derive(Debug)]
pub struct Scene<'a> {
    network: &'a NetworkRecord,
    subnet: IpNet,
    blocks: BTreeMap<IpNet, &'a BlockRecord>,
    barred: BTreeSet<IpNet>,
    resting: &'a BTreeSet<IpAddr>,
    /// What is known behind static VTEPs.
    behind: BTreeSet<IpAddr>,
}

impl<'a> Scene<'a> {
    /// Of all blocks of the network those of the subnet are taken.
    pub fn new(
        network: &'a NetworkRecord,
        subnet: IpNet,
        blocks: impl Iterator<Item = (IpNet, &'a BlockRecord)>,
        resting: &'a BTreeSet<IpAddr>,
    ) -> Self {
        let len = block_len(subnet);
        let blocks =
            blocks.filter(|(cidr, _)| cidr.prefix_len() == len && subnet.contains(cidr)).collect();
        let known = network.static_vteps.iter().flat_map(StaticVtep::known);
        let behind = known.flat_map(|(_, ips)| ips).copied().collect();
        Self { network, subnet, blocks, barred: BTreeSet::new(), resting, behind }
    }

    /// Nothing is taken from these blocks.
    #[must_use]
    pub fn without(mut self, blocks: impl Iterator<Item = IpNet>) -> Self {
        self.barred = blocks.collect();
        self
    }

    /// How many addresses are given out or reserved.
    #[must_use]
    pub fn used(&self) -> u128 {
        self.blocks.values().map(|block| u128::from(block.allocated.count())).sum()
    }

    /// The block and offset that `host` should take next, or `None` when the subnet is exhausted:
    /// the lowest free address of its own blocks, else of an unclaimed block, else of another
    /// host's. `spread` 0 takes the first of those blocks; a host that lost against another tries a
    /// random one of the first few, so that many that start together do not meet again and again.
    #[must_use]
    pub fn choose(&self, host: &HostName, spread: u32) -> Option<(IpNet, u32)> {
        let own = self.blocks.iter().filter(|(_, block)| block.host == *host);
        if let Some(found) = own.filter_map(|(cidr, block)| self.free(*cidr, Some(block))).next() {
            return Some(found);
        }
        let few = (1_usize << spread.min(4)).min(16);
        let unclaimed: Vec<_> = self.unclaimed().take(few).collect();
        if let Some(found) = pick(&unclaimed) {
            return Some(found);
        }
        let others = self.blocks.iter().filter(|(_, block)| block.host != *host);
        let borrowed: Vec<_> =
            others.filter_map(|(cidr, block)| self.free(*cidr, Some(block))).take(few).collect();
        pick(&borrowed)
    }

    /// What `host` should reserve next: an address of its own blocks or of an unclaimed one that
    /// is not in `skip`. Nothing is borrowed for that.
    #[must_use]
    pub fn reservable(&self, host: &HostName, skip: &BTreeSet<IpAddr>) -> Option<(IpNet, u32)> {
        let own = self.blocks.iter().filter(|(_, block)| block.host == *host);
        let own = own.map(|(cidr, block)| (*cidr, Some(*block)));
        let free = |(cidr, block): (IpNet, Option<&BlockRecord>)| {
            self.free_of(cidr, block)
                .find(|offset| !skip.contains(&address(cidr, *offset)))
                .map(|offset| (cidr, offset))
        };
        own.chain(self.unclaimed().map(|(cidr, _)| (cidr, None))).find_map(free)
    }

    /// Unclaimed blocks with an address to give out, lowest first. A block without one (all of its
    /// addresses excluded or resting) is passed over, and an excluded range in one step, so this
    /// ends after at most as many blocks as are claimed or resting, some more for each excluded
    /// range, and the ones taken.
    fn unclaimed(&self) -> impl Iterator<Item = (IpNet, u32)> {
        let len = block_len(self.subnet);
        let size = 1_u128 << (bits(self.subnet) - len);
        let first = number(self.subnet.network());
        let ipv6 = self.subnet.addr().is_ipv6();
        let count = 1_u128 << (len - self.subnet.prefix_len()).min(127);
        let mut index = 0_u128;
        std::iter::from_fn(move || {
            while index < count {
                let base = from_number(ipv6, first + index * size);
                let cidr = IpNet::new(base, len).ok()?;
                index += 1;
                let ranges = self.network.exclude.iter();
                let mut over = ranges.filter(|range| {
                    range.contains(cidr.network()) && range.contains(cidr.broadcast())
                });
                if let Some(range) = over.next() {
                    // The first block that is not wholly inside.
                    index = index.max((number(range.last()).saturating_add(1) - first) / size);
                    continue;
                }
                if self.blocks.contains_key(&cidr) || self.barred.contains(&cidr) {
                    continue;
                }
                if let Some(found) = self.free(cidr, None) {
                    return Some(found);
                }
            }
            None
        })
    }

    /// The lowest free address of a block.
    fn free(&self, cidr: IpNet, block: Option<&BlockRecord>) -> Option<(IpNet, u32)> {
        self.free_of(cidr, block).next().map(|offset| (cidr, offset))
    }

    /// The offsets of a block's free addresses, lowest first.
    fn free_of(&self, cidr: IpNet, block: Option<&BlockRecord>) -> impl Iterator<Item = u32> {
        let size = 1_u32 << (bits(cidr) - cidr.prefix_len()).min(6);
        let allocated = block.map(|block| block.allocated).unwrap_or_default();
        (0..size).filter(move |offset| {
            let ip = address(cidr, *offset);
            !allocated.contains(*offset)
                && excluded(self.network, self.subnet, ip).is_none()
                && !self.resting.contains(&ip)
                && !self.behind.contains(&ip)
        })
    }
}

fn pick(from: &[(IpNet, u32)]) -> Option<(IpNet, u32)> {
    match from {
        [] => None,
        [only] => Some(*only),
        many => many.get(rand::random_range(0..many.len())).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{NetworkId, NetworkName};
    use crate::record::{ImportedMac, StaticMac};

    fn network(subnet: &str) -> NetworkRecord {
        let name = NetworkName::new("web").unwrap();
        let vni = encap::Vni::new(4096).unwrap();
        let mut network = NetworkRecord::new(NetworkId::new("n1").unwrap(), name, vni);
        network.subnets = vec![subnet.parse().unwrap()];
        network
    }

    #[test]
    fn block_sizes() {
        let len = |subnet: &str| block_len(subnet.parse().unwrap());
        assert_eq!(len("198.51.0.0/16"), 26);
        assert_eq!(len("192.0.2.0/24"), 29);
        assert_eq!(len("192.0.2.0/30"), 32);
        assert_eq!(len("0.0.0.0/0"), 26);
        assert_eq!(len("2001:db8::/64"), 122);
        assert_eq!(len("2001:db8::/120"), 125);
        assert_eq!(len("::/0"), 122);
    }

    #[test]
    fn own_block_then_unclaimed_then_borrowed() {
        let network = network("192.0.2.0/30");
        let subnet = network.subnets[0];
        let (h1, h2) = (HostName::new("h1").unwrap(), HostName::new("h2").unwrap());
        let mut resting = BTreeSet::new();
        let first = Scene::new(&network, subnet, std::iter::empty(), &resting).choose(&h1, 0);
        assert_eq!(first, Some(("192.0.2.1/32".parse().unwrap(), 0)));
        let mut full = BlockRecord::new(h1.clone());
        full.allocated.insert(0);
        let blocks = vec![("192.0.2.1/32".parse().unwrap(), &full)];
        let second = Scene::new(&network, subnet, blocks.clone().into_iter(), &resting);
        assert_eq!(second.choose(&h1, 0), Some(("192.0.2.2/32".parse().unwrap(), 0)));
        // Empty, and of the other host: borrowed.
        let empty = BlockRecord::new(h2);
        let mut with_empty = blocks;
        with_empty.push(("192.0.2.2/32".parse().unwrap(), &empty));
        let third = Scene::new(&network, subnet, with_empty.clone().into_iter(), &resting);
        assert_eq!(third.choose(&h1, 0), Some(("192.0.2.2/32".parse().unwrap(), 0)));
        resting.insert("192.0.2.2".parse().unwrap());
        let fourth = Scene::new(&network, subnet, with_empty.into_iter(), &resting);
        assert_eq!(fourth.choose(&h1, 0), None);
        assert_eq!(fourth.used(), 1);
        assert_eq!(capacity(&network, subnet), 2);
    }

    #[test]
    fn excluded_addresses() {
        let mut network = network("192.0.2.0/24");
        network.gateways = vec!["192.0.2.9".parse().unwrap()];
        let what = |ip: &str| excluded(&network, network.subnets[0], ip.parse().unwrap());
        assert_eq!(what("192.0.2.0"), Some("the network address"));
        assert_eq!(what("192.0.2.255"), Some("the broadcast address"));
        assert_eq!(what("192.0.2.9"), Some("the gateway"));
        assert_eq!(what("192.0.2.1"), None);
        network.exclude = vec!["192.0.2.8-192.0.2.20".parse().unwrap()];
        let what = |ip: &str| excluded(&network, network.subnets[0], ip.parse().unwrap());
        assert_eq!(what("192.0.2.20"), Some("an excluded address"));
        assert_eq!(what("192.0.2.21"), None);
        // The gateway lies within the range and counts once.
        assert_eq!(capacity(&network, network.subnets[0]), 254 - 13);
    }

    #[test]
    fn what_is_behind_a_static_vtep_is_not_given_out() {
        let mut network = network("192.0.2.0/29");
        let mut vtep = StaticVtep::new("198.51.100.9".parse().unwrap());
        let mac = |last| encap::MacAddr([0, 0, 0x5e, 0, 0x53, last]);
        let ips = vec!["192.0.2.1".parse().unwrap()];
        vtep.macs.push(StaticMac { mac: mac(1), ips });
        let ips = vec!["192.0.2.2".parse().unwrap()];
        vtep.imported.push(ImportedMac { ips, ..ImportedMac::new(mac(2)) });
        network.static_vteps.push(vtep);
        let resting = BTreeSet::new();
        let scene = Scene::new(&network, network.subnets[0], std::iter::empty(), &resting);
        let host = HostName::new("h1").unwrap();
        let (block, offset) = scene.choose(&host, 0).unwrap();
        assert_eq!(address(block, offset), "192.0.2.3".parse::<IpAddr>().unwrap());
        let (block, offset) = scene.reservable(&host, &BTreeSet::new()).unwrap();
        assert_eq!(address(block, offset), "192.0.2.3".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn large_exclusions_are_passed_over_in_one_step() {
        for (subnet, range, first) in [
            ("2001:db8::/64", "2001:db8::-2001:db8::7fff:ffff:ffff:ffff", "2001:db8::8000:0:0:0"),
            ("10.0.0.0/8", "10.0.0.0/9", "10.128.0.0"),
            ("192.0.2.0/24", "192.0.2.1-192.0.2.77", "192.0.2.78"),
        ] {
            let mut network = network(subnet);
            network.exclude = vec![range.parse().unwrap()];
            let resting = BTreeSet::new();
            let scene = Scene::new(&network, network.subnets[0], std::iter::empty(), &resting);
            let host = HostName::new("h1").unwrap();
            let (block, offset) = scene.choose(&host, 0).unwrap();
            assert_eq!(address(block, offset), first.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn block_and_offset_are_inverse() {
        for (subnet, ip) in [("198.51.0.0/16", "198.51.7.77"), ("2001:db8::/64", "2001:db8::4:77")]
        {
            let ip: IpAddr = ip.parse().unwrap();
            let (block, at) = block_of(subnet.parse().unwrap(), ip);
            assert_eq!((address(block, at), offset(block, ip)), (ip, Some(at)));
        }
    }
}

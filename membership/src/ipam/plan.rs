//! The arithmetic of blocks and the choice of an address, without the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::key::HostName;
use crate::record::{BlockRecord, NetworkRecord};

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
        return Some(if ip.is_ipv6() { "subnet-router address" } else { "network address" });
    }
    if !ip.is_ipv6() && ip == subnet.broadcast() {
        return Some("broadcast address");
    }
    network.gateways.contains(&ip).then_some("gateway")
}

/// How many addresses of a subnet can be given out; saturates for an IPv6 /0.
#[must_use]
pub fn capacity(network: &NetworkRecord, subnet: IpNet) -> u128 {
    let all =
        1_u128.checked_shl(u32::from(bits(subnet) - subnet.prefix_len())).unwrap_or(u128::MAX);
    let ends = if subnet.addr().is_ipv6() { 1 } else { 2 };
    let gateways = network.gateways.iter().filter(|ip| subnet.contains(*ip)).count();
    all.saturating_sub(ends).saturating_sub(u128::try_from(gateways).unwrap_or(0))
}

/// The blocks of one subnet and what rests in it.
#[derive(Debug)]
pub struct Scene<'a> {
    network: &'a NetworkRecord,
    subnet: IpNet,
    blocks: BTreeMap<IpNet, &'a BlockRecord>,
    barred: BTreeSet<IpNet>,
    resting: &'a BTreeSet<IpAddr>,
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
        Self { network, subnet, blocks, barred: BTreeSet::new(), resting }
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

    /// Unclaimed blocks with an address to give out, lowest first. A block without one (all of its
    /// addresses excluded or resting) is passed over, so this ends after at most as many blocks as
    /// are claimed, excluded or resting, and the ones taken.
    fn unclaimed(&self) -> impl Iterator<Item = (IpNet, u32)> {
        let len = block_len(self.subnet);
        let size = 1_u128 << (bits(self.subnet) - len);
        let first = number(self.subnet.network());
        let ipv6 = self.subnet.addr().is_ipv6();
        let count = 1_u128 << (len - self.subnet.prefix_len()).min(127);
        (0..count).filter_map(move |index| {
            let base = from_number(ipv6, first + index * size);
            let cidr = IpNet::new(base, len).ok()?;
            if self.blocks.contains_key(&cidr) || self.barred.contains(&cidr) {
                None
            } else {
                self.free(cidr, None)
            }
        })
    }

    /// The lowest free address of a block.
    fn free(&self, cidr: IpNet, block: Option<&BlockRecord>) -> Option<(IpNet, u32)> {
        let size = 1_u32 << (bits(cidr) - cidr.prefix_len()).min(6);
        let allocated = block.map(|block| block.allocated).unwrap_or_default();
        (0..size)
            .find(|offset| {
                let ip = address(cidr, *offset);
                !allocated.contains(*offset)
                    && excluded(self.network, self.subnet, ip).is_none()
                    && !self.resting.contains(&ip)
            })
            .map(|offset| (cidr, offset))
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
        assert_eq!(what("192.0.2.0"), Some("network address"));
        assert_eq!(what("192.0.2.255"), Some("broadcast address"));
        assert_eq!(what("192.0.2.9"), Some("gateway"));
        assert_eq!(what("192.0.2.1"), None);
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

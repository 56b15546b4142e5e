//! Subnets that nobody wrote.
//!
//! Docker up to 26 asks for another pool for as long as the answer overlaps with a route of its host,
//! without end (moby, libnetwork `requestPoolHelper`). So what is chosen here keeps off these routes,
//! and what cannot be another one, that of a network which was named, is refused when it was not
//! wanted too often.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use membership::record::NetworkRecord;

use super::Driver;
use super::pool::PoolId;
use crate::control::types::Error;

/// Where they come from: /24s of it.
const CHOSEN: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 208, 0, 0), 12);
/// How many random subnets are tried.
const CHOICES: usize = 256;
/// The IPv4 routes of this process's namespace.
const ROUTES: &str = "/proc/net/route";
/// More often than anybody asks for the same at once.
const TIRED: u32 = 16;
/// Docker asks again within milliseconds.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Seconds within which Docker asks for the pool of the second family after the first one's.
const JUST: u64 = 10;

/// How often the same pool was asked for at once.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<Option<(String, Instant, u32)>>);

impl Repeats {
    /// Counts one more; true when Docker seems to want another one.
    pub(super) fn is_tired(&self, pool: &str, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match last.take() {
            Some((same, at, count)) if same == pool && now.duration_since(at) < AT_ONCE => count,
            _ => 0,
        };
        if count >= TIRED {
            return true;
        }
        *last = Some((pool.to_owned(), now, count + 1));
        false
    }
}

/// The destinations of `/proc/net/route`, without the default route.
fn destinations(text: &str) -> Vec<Ipv4Net> {
    let number = |field: Option<&str>| u32::from_str_radix(field?, 16).ok().map(u32::from_be);
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let destination = number(fields.nth(1))?;
        let mask = number(fields.nth(5))?;
        Ipv4Net::with_netmask(destination.into(), mask.into()).ok()
    };
    text.lines().skip(1).filter_map(line).filter(|net| net.prefix_len() > 0).collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl Driver {
    /// A subnet that nobody has, so far.
    pub(super) fn choose(&self, all: &[NetworkRecord], v6: bool) -> Result<IpNet, Error> {
        let pending: Vec<PoolId> = self.all_pending().collect();
        let text = std::fs::read_to_string(ROUTES).unwrap_or_default();
        let routes: Vec<IpNet> = destinations(&text).into_iter().map(IpNet::V4).collect();
        let taken = |candidate: &IpNet| {
            let subnets = all.iter().flat_map(|network| &network.subnets);
            let asked = pending.iter().map(|pool| &pool.prefix);
            subnets.chain(asked).chain(&routes).any(|other| overlap(other, candidate))
        };
        for _ in 0..CHOICES {
            let candidate = if v6 {
                // A unique local prefix (RFC 4193): 40 random bits, subnet 0.
                let random = u128::from(rand::random::<u64>() >> 24) << 80;
                let ip = Ipv6Addr::from((0xfd_u128 << 120) | random);
                IpNet::V6(Ipv6Net::new_assert(ip, 64))
            } else {
                let index = rand::random_range(0..1_u32 << (24 - CHOSEN.prefix_len()));
                let ip = Ipv4Addr::from(u32::from(CHOSEN.addr()) | index << 8);
                IpNet::V4(Ipv4Net::new_assert(ip, 24))
            };
            if !taken(&candidate) {
                return Ok(candidate);
            }
        }
        let wide = routes.iter().find(|route| route.contains(&IpNet::V4(CHOSEN)));
        let error = Error::conflict(format!("no free subnet was found in {CHOSEN}"));
        let error = match wide {
            Some(route) => error.cause(format!("this host has a route to {route}")),
            None => error,
        };
        Err(error.next_step("give one with --subnet"))
    }

    /// The subnet of the other family in the network whose written pool Docker has just asked for: on
    /// the first host it was chosen, and the same command must come to the same network here.
    pub(super) async fn partner(
        &self,
        all: &[NetworkRecord],
        v6: bool,
    ) -> Result<Option<IpNet>, Error> {
        let Some(text) = self.agent.dockers.last(JUST) else { return Ok(None) };
        let Ok(last) = text.parse::<PoolId>() else { return Ok(None) };
        if last.prefix.addr().is_ipv6() == v6 || !self.joins_by_prefix(&last) {
            return Ok(None);
        }
        // That of a network which is made already is no part of this one.
        let noted = self.noted().await?;
        let mut ours = noted.iter().filter(|noted| noted.host == self.agent.name);
        if ours.any(|noted| noted.record.pools.contains(&text)) {
            return Ok(None);
        }
        let Some(network) = self.by_prefixes(all, &[last.prefix])? else { return Ok(None) };
        Ok(network.subnets.iter().copied().find(|subnet| subnet.addr().is_ipv6() == v6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_a_host_are_read() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    wg0\t0000D00A\t00000000\t0001\t0\t0\t0\t0000F0FF\t0\t0\t0\n\
                    eth0\t0A0200C0\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
                    bad\tx\n";
        let wanted: Vec<Ipv4Net> =
            ["10.208.0.0/12", "192.0.2.10/32"].map(|net| net.parse().unwrap()).into();
        // The file has the bytes of the wire as a number of this machine's.
        assert_eq!(
            destinations(text),
            if cfg!(target_endian = "little") { wanted } else { vec![] }
        );
    }

    #[test]
    fn the_same_again_and_again_is_refused_once() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        for _ in 0..TIRED {
            assert!(!repeats.is_tired("198.51.100.0/24", now));
        }
        assert!(repeats.is_tired("198.51.100.0/24", now));
        assert!(!repeats.is_tired("198.51.100.0/24", now), "the user tries again");
        assert!(!repeats.is_tired("203.0.113.0/24", now));
        assert!(!repeats.is_tired("203.0.113.0/24", now + AT_ONCE));
    }
}

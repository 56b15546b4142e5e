//! What can be said of a network without the store.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{EXCLUDE_MAX, Error, MTU_MIN_V4, MTU_MIN_V6, SUBNETS_MAX};
use crate::gateway;
use crate::ipam::plan;
use crate::record::{Mode, NetworkRecord, StaticVtep};

/// Checks everything of a network that can be checked without the store.
///
/// # Errors
///
/// [`Error::Subnet`], [`Error::Gateway`], [`Error::NoGateway`], [`Error::Exclude`], [`Error::Mtu`],
/// [`Error::ModeOption`], [`Error::UdpPort`], [`Error::VniZero`] or
/// [`Error::Vtep`].
pub fn check(record: &NetworkRecord) -> Result<(), Error> {
    if record.vni.get() == 0 {
        return Err(Error::VniZero(record.vni));
    }
    check_subnets(&record.subnets)?;
    check_gateways(record)?;
    check_exclude(record)?;
    check_way_out(record)?;
    check_mode(record)?;
    if let Some(mtu) = record.mtu {
        let has_v6 = record.subnets.iter().any(|subnet| subnet.addr().is_ipv6());
        let (family, least) = if has_v6 { ("IPv6", MTU_MIN_V6) } else { ("IPv4", MTU_MIN_V4) };
        if mtu < least {
            return Err(Error::Mtu { mtu, family, least });
        }
    }
    record.static_vteps.iter().try_for_each(check_vtep)
}

fn check_subnets(subnets: &[IpNet]) -> Result<(), Error> {
    for (index, subnet) in subnets.iter().enumerate() {
        let bad = |cause: String| Err(Error::Subnet { subnet: *subnet, cause });
        if index >= SUBNETS_MAX {
            return bad(format!("a network has at most {SUBNETS_MAX} subnets"));
        }
        if *subnet != subnet.trunc() {
            return bad(format!("it has host bits set; did you mean {}?", subnet.trunc()));
        }
        let (longest, smallest) = if subnet.addr().is_ipv6() { (126, "/126") } else { (30, "/30") };
        if subnet.prefix_len() > longest {
            return bad(format!("it is too small; {smallest} is the smallest"));
        }
        let ip = subnet.addr();
        if ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() {
            return bad("its addresses cannot be those of endpoints".to_owned());
        }
        if let Some(other) = subnets
            .iter()
            .take(index)
            .find(|other| other.contains(subnet) || subnet.contains(*other))
        {
            return bad(format!("it overlaps with {other}"));
        }
    }
    Ok(())
}

fn check_gateways(record: &NetworkRecord) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for gateway in &record.gateways {
        let bad = |cause| Err(Error::Gateway { gateway: *gateway, cause });
        let Some(subnet) = record.subnet_of(*gateway) else {
            return bad("it lies outside the subnets");
        };
        // What the gateways themselves exclude does not count here.
        let ends = NetworkRecord { gateways: Vec::new(), exclude: Vec::new(), ..record.clone() };
        if plan::excluded(&ends, subnet, *gateway).is_some() {
            return bad("it is the network or broadcast address");
        }
        if !seen.insert(subnet) {
            return bad("its subnet has one already");
        }
    }
    Ok(())
}

/// Options that belong to the other kind of network.
fn check_mode(record: &NetworkRecord) -> Result<(), Error> {
    let (mode, options) = (record.mode, &record.options);
    let routed = mode.is_routed();
    let no_frames = "it carries packets by routes, and neither MACs nor frames to all";
    let of_frames = [
        (options.broadcast.is_some(), "broadcast", no_frames),
        (options.compat.is_some(), "compat", "only vxlan has foreign data paths to behave like"),
        (options.flood_rate.is_some(), "flood_rate", no_frames),
        (options.flood_unknown.is_some(), "flood_unknown", no_frames),
        (options.learning.is_some(), "learning", "who has an address comes from the store alone"),
        (options.local.is_some(), "local", "the kernel routes between the sandboxes of a host"),
        (options.multicast.is_some(), "multicast", no_frames),
        (
            options.source_check.is_some(),
            "source_check",
            "the sources of its packets are always checked",
        ),
    ];
    let of_packets = [
        (options.encapsulate.is_some(), "encapsulate", "its frames always are encapsulated"),
        (options.mss_clamp.is_some(), "mss_clamp", "nothing routes its packets"),
    ];
    let wrong = if routed { of_frames.as_slice() } else { of_packets.as_slice() };
    if let Some((_, option, cause)) = wrong.iter().find(|(given, ..)| *given) {
        return Err(Error::ModeOption { option, mode, cause });
    }
    if routed && let Some(vtep) = record.static_vteps.first() {
        let cause = format!("a network of mode {mode} has no VTEPs outside of the store");
        return Err(Error::Vtep { address: vtep.address, cause });
    }
    if routed && record.subnets.is_empty() {
        let (option, cause) = ("no subnet", "its hosts have routes to subnets");
        return Err(Error::ModeOption { option, mode, cause });
    }
    if let Some(port) = record.udp_port {
        if mode == Mode::IpIp {
            let cause = "its packets are carried without UDP";
            return Err(Error::ModeOption { option: "udp_port", mode, cause });
        }
        if mode == Mode::IpUdp && !(1..u16::MAX).contains(&port) {
            return Err(Error::UdpPort { port, cause: "there are no such two ports".to_owned() });
        }
    }
    Ok(())
}

/// What leaves a vxlan network leaves it through its gateway; a routed one is led out without.
fn check_way_out(record: &NetworkRecord) -> Result<(), Error> {
    if record.mode.is_routed() {
        return Ok(());
    }
    let asked = [
        (gateway::masquerades(record), "nat_outgoing"),
        (gateway::reaches_hosts(record), "host_access"),
    ];
    match asked.iter().find(|(on, _)| *on) {
        Some((_, option)) if gateway::own(record).is_empty() => Err(Error::NoGateway(option)),
        _ => Ok(()),
    }
}

fn check_exclude(record: &NetworkRecord) -> Result<(), Error> {
    for (index, range) in record.exclude.iter().enumerate() {
        let bad = |cause: String| Err(Error::Exclude { range: *range, cause });
        if index >= EXCLUDE_MAX {
            return bad(format!("a network has at most {EXCLUDE_MAX} such ranges"));
        }
        let home = record.subnet_of(range.first());
        if home.is_none() || home != record.subnet_of(range.last()) {
            return bad("write addresses of one subnet of the network".to_owned());
        }
    }
    Ok(())
}

pub(super) fn check_vtep(vtep: &StaticVtep) -> Result<(), Error> {
    let bad = |cause: String| Err(Error::Vtep { address: vtep.address, cause });
    let ip = vtep.address;
    if ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() {
        return bad("it is no unicast address of an underlay".to_owned());
    }
    if vtep.port == Some(0) {
        return bad("its port is 0".to_owned());
    }
    match vtep.known().find(|(mac, _)| !mac.is_unicast()) {
        Some((mac, _)) => bad(format!("{mac} is no address of an interface")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{NetworkId, NetworkName};
    use crate::network::NetworkSpec;

    fn mode(mode: Mode, options: &[(&str, &str)]) -> Result<(), String> {
        let subnets = vec!["192.0.2.0/24".parse().unwrap()];
        let mut spec = NetworkSpec::new(NetworkName::new("web").unwrap(), subnets);
        spec.mode = mode;
        for (name, value) in options {
            spec.options.set(name, value).map_err(|error| error.to_string())?;
        }
        let record = spec.record(NetworkId::random(), encap::Vni::new(7).unwrap());
        check(&record).map_err(|error| error.to_string())
    }

    #[test]
    fn options_belong_to_modes() {
        for (routed, options) in [
            (false, &[("learning", "true")][..]),
            (false, &[("flood_rate", "5"), ("local", "kernel")]),
            (false, &[("compat", "swarm")]),
            (false, &[("source_check", "strict")]),
            (true, &[("mss_clamp", "true")]),
            (true, &[("encapsulate", "always")]),
            (true, &[("encapsulate", "auto")]),
            (true, &[("encapsulate", "cross-subnet")]),
        ] {
            for of in [Mode::IpIp, Mode::IpUdp, Mode::Vxlan] {
                let found = mode(of, options);
                assert_eq!(found.is_ok(), routed == of.is_routed(), "{of} {options:?}: {found:?}");
                if let Err(text) = found {
                    assert!(text.contains("cannot be used in a network of mode"), "{text}");
                }
            }
        }
        assert_eq!(mode(Mode::IpUdp, &[("nat_outgoing", "true"), ("host_access", "on")]), Ok(()));
        let error = mode(Mode::IpUdp, &[("udp_port", "7")]).unwrap_err();
        assert!(error.contains("cannot be changed"), "{error}");
    }

    fn checked(subnets: &[&str], gateways: &[&str]) -> Result<(), String> {
        let subnets = subnets.iter().map(|text| text.parse().unwrap()).collect();
        let mut spec = NetworkSpec::new(NetworkName::new("web").unwrap(), subnets);
        spec.gateways = gateways.iter().map(|text| text.parse().unwrap()).collect();
        let record = spec.record(NetworkId::random(), encap::Vni::new(7).unwrap());
        check(&record).map_err(|error| error.to_string())
    }

    #[test]
    fn subnets_are_checked() {
        assert_eq!(checked(&["192.0.2.0/24", "2001:db8::/64"], &["192.0.2.1"]), Ok(()));
        for (subnets, gateways, says) in [
            (&["192.0.2.1/24"][..], &[][..], "did you mean 192.0.2.0/24?"),
            (&["192.0.2.0/31"], &[], "too small"),
            (&["2001:db8::/127"], &[], "too small"),
            (&["192.0.2.0/24", "192.0.2.128/25"], &[], "overlaps with 192.0.2.0/24"),
            (&["192.0.2.0/24", "192.0.2.0/24"], &[], "overlaps"),
            (&["224.0.0.0/24"], &[], "endpoints"),
            (&["192.0.2.0/24"], &["198.51.100.1"], "outside"),
            (&["192.0.2.0/24"], &["192.0.2.255"], "broadcast"),
            (&["192.0.2.0/24"], &["192.0.2.1", "192.0.2.2"], "one already"),
        ] {
            let error = checked(subnets, gateways).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}

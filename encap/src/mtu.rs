//! MTU arithmetic: what an encapsulation takes from the underlay's MTU.

/// How inner packets are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// IP in IP, protocol 4 or 41 (RFC 2003, RFC 2473, RFC 4213).
    IpIp,
    /// IP directly in UDP.
    IpUdp,
    /// An Ethernet frame in VXLAN in UDP (RFC 7348).
    Vxlan,
}

/// Bytes of underlay MTU that are not inner IP packet: outer IP header (no options) to inner
/// Ethernet header. An inner VLAN tag takes four more.
#[must_use]
pub const fn overhead(encapsulation: Encapsulation, underlay_is_ipv6: bool) -> u16 {
    let ip = if underlay_is_ipv6 { 40 } else { 20 };
    match encapsulation {
        Encapsulation::IpIp => ip,
        Encapsulation::IpUdp => ip + 8,
        Encapsulation::Vxlan => ip + 8 + 8 + 14,
    }
}

/// The largest inner IP packet (untagged) that fits an underlay MTU; 0 when nothing fits.
#[must_use]
pub const fn inner(encapsulation: Encapsulation, underlay_is_ipv6: bool, underlay_mtu: u16) -> u16 {
    underlay_mtu.saturating_sub(overhead(encapsulation, underlay_is_ipv6))
}

/// The underlay MTU that an inner MTU needs; saturates at 65535.
#[must_use]
pub const fn underlay(encapsulation: Encapsulation, underlay_is_ipv6: bool, inner_mtu: u16) -> u16 {
    inner_mtu.saturating_add(overhead(encapsulation, underlay_is_ipv6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_figures() {
        assert_eq!(inner(Encapsulation::Vxlan, false, 1500), 1450);
        assert_eq!(inner(Encapsulation::Vxlan, true, 1500), 1430);
        assert_eq!(inner(Encapsulation::IpIp, false, 1500), 1480);
        assert_eq!(inner(Encapsulation::IpUdp, true, 1500), 1452);
        assert_eq!(inner(Encapsulation::Vxlan, false, 20), 0);
        assert_eq!(underlay(Encapsulation::Vxlan, false, 1450), 1500);
    }
}

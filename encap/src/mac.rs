//! Ethernet addresses.

use core::fmt;
use core::str::FromStr;

/// A 48-bit Ethernet (MAC) address in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, which never names an interface.
    pub const ZERO: Self = Self([0; 6]);

    /// The first six bytes of `bytes`; `None` when there are fewer.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk::<6>().map(|b| Self(*b))
    }

    /// The predictable address of an endpoint: `02:42` and the four IPv4 bytes, as Docker does.
    #[must_use]
    pub fn from_ipv4(ip: core::net::Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The IPv4 address that [`Self::from_ipv4`] makes this MAC of.
    #[must_use]
    pub fn to_ipv4(self) -> Option<core::net::Ipv4Addr> {
        match self.0 {
            [0x02, 0x42, a, b, c, d] => Some([a, b, c, d].into()),
            _ => None,
        }
    }

    /// The MAC that an IPv6 link-local address was made of (RFC 4291 appendix A), if it was.
    #[must_use]
    pub fn from_link_local(ip: core::net::Ipv6Addr) -> Option<Self> {
        match ip.octets() {
            [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
                Some(Self([a ^ 2, b, c, d, e, f])).filter(|mac| mac.is_unicast())
            }
            _ => None,
        }
    }

    /// The address as a number below 2^48, first byte most significant.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// Group bit set: multicast or broadcast (IEEE 802).
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// An address that an interface can have: neither zero nor a group address.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != Self::ZERO
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six two-digit hexadecimal bytes with `:` between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMacError;

impl fmt::Display for ParseMacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a MAC address: write six hexadecimal bytes, such as 02:42:c0:00:02:01")
    }
}

impl core::error::Error for ParseMacError {}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(ParseMacError)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() { Err(ParseMacError) } else { Ok(Self(bytes)) }
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let mac = MacAddr([0x00, 0x00, 0x5e, 0x00, 0x53, 0xaf]);
        assert_eq!(mac.to_string(), "00:00:5e:00:53:af");
        assert_eq!("00:00:5E:00:53:af".parse(), Ok(mac));
    }

    #[test]
    fn refuses_what_is_not_an_address() {
        for text in
            ["", "00:00:5e:00:53", "00:00:5e:00:53:af:01", "0:00:5e:00:53:af", "+1:00:5e:00:53:af"]
        {
            assert_eq!(text.parse::<MacAddr>(), Err(ParseMacError), "{text}");
        }
    }

    #[test]
    fn group_and_zero_addresses_are_not_unicast() {
        assert!(!MacAddr::ZERO.is_unicast());
        assert!(!MacAddr::BROADCAST.is_unicast());
        let of_ip = MacAddr::from_ipv4([192, 0, 2, 1].into());
        assert!(of_ip.is_unicast());
        assert_eq!(of_ip.to_ipv4(), Some([192, 0, 2, 1].into()));
        assert_eq!(MacAddr::ZERO.to_ipv4(), None);
        let link_local = "fe80::42:c0ff:fe00:201".parse().unwrap();
        assert_eq!(MacAddr::from_link_local(link_local), Some(of_ip));
        for other in ["2001:db8::42:c0ff:fe00:201", "fe80::1", "fe80::300:ff:fe00:1"] {
            assert_eq!(MacAddr::from_link_local(other.parse().unwrap()), None, "{other}");
        }
    }
}

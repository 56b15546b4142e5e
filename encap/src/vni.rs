//! The VXLAN network identifier.

use core::fmt;
use core::str::FromStr;

/// A 24-bit VXLAN network identifier (RFC 7348 section 5).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier, 2^24 - 1.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// `None` above 2^24 - 1. Zero is a number that the wire can carry; whether a network may have
    /// it is the control plane's matter.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    /// From the three bytes on the wire.
    #[must_use]
    pub const fn from_be_bytes(bytes: [u8; 3]) -> Self {
        let [a, b, c] = bytes;
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    /// The three bytes on the wire.
    #[must_use]
    pub const fn to_be_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// The number, below 2^24.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The number does not fit 24 bits, or the text is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VniError;

impl fmt::Display for VniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a VNI: write a number from 0 to 16777215")
    }
}

impl core::error::Error for VniError {}

impl TryFrom<u32> for Vni {
    type Error = VniError;
    fn try_from(value: u32) -> Result<Self, VniError> {
        Self::new(value).ok_or(VniError)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl FromStr for Vni {
    type Err = VniError;
    fn from_str(text: &str) -> Result<Self, VniError> {
        text.parse::<u32>().ok().and_then(Self::new).ok_or(VniError)
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_24_bits() {
        assert_eq!(Vni::new(1 << 24), None);
        assert_eq!(Vni::new(0x0001_0203).map(Vni::to_be_bytes), Some([1, 2, 3]));
        assert_eq!(Vni::from_be_bytes([0xff; 3]), Vni::MAX);
    }
}

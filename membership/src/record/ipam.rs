//! Blocks, addresses and MACs.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Extra, Stored, VERSION};
use crate::key::{EndpointId, HostName};

/// A set of offsets within a block of at most 64 addresses. In JSON sixteen hexadecimal digits, the
/// lowest bit being the block's first address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bitmap(u64);

impl Bitmap {
    /// Whether `offset` is in the set.
    #[must_use]
    pub fn contains(self, offset: u32) -> bool {
        offset < 64 && self.0 >> offset & 1 == 1
    }

    /// Adds `offset`; one above 63 is not taken.
    pub fn insert(&mut self, offset: u32) {
        if offset < 64 {
            self.0 |= 1 << offset;
        }
    }

    /// Takes `offset` out.
    pub fn remove(&mut self, offset: u32) {
        if offset < 64 {
            self.0 &= !(1 << offset);
        }
    }

    /// How many are in the set.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether none is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The offsets, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |offset| self.contains(*offset))
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Bitmap> for String {
    fn from(map: Bitmap) -> Self {
        format!("{:016x}", map.0)
    }
}

impl TryFrom<String> for Bitmap {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("not a map of sixteen hexadecimal digits");
        }
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| "not a map of sixteen hexadecimal digits")
    }
}

/// As serde asks for it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_empty(map: &Bitmap) -> bool {
    map.is_empty()
}

/// A block of addresses, at `ipam/NETWORK/blocks/CIDR`. Changed by compare-and-swap only, in one
/// transaction with the addresses that it gives out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Version of the record.
    pub version: u32,
    /// The host that allocates from it first.
    pub host: HostName,
    /// Addresses that are given out, reserved ones included.
    pub allocated: Bitmap,
    /// Addresses that the owner holds for attaching without the store. A subset of `allocated`.
    #[serde(default)]
    pub reserved: Bitmap,
    /// Reserved addresses that somebody asks the owner to give up, since they were asked for by
    /// name. The owner clears it.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub wanted: Bitmap,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl BlockRecord {
    /// An empty block of `host`.
    #[must_use]
    pub fn new(host: HostName) -> Self {
        Self {
            version: VERSION,
            host,
            allocated: Bitmap::default(),
            reserved: Bitmap::default(),
            wanted: Bitmap::default(),
            extra: Extra::new(),
        }
    }
}

impl Stored for BlockRecord {}

/// Who holds an address, at `ipam/NETWORK/addresses/IP`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// Version of the record.
    pub version: u32,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The host of the endpoint.
    pub host: HostName,
    /// The block that the address was taken from.
    pub block: IpNet,
    /// Whether it was given out before its endpoint exists, as Docker asks for addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early: bool,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Stored for AddressRecord {}

/// Who holds a MAC, at `ipam/NETWORK/macs/MAC`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MacRecord {
    /// Version of the record.
    pub version: u32,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The host of the endpoint.
    pub host: HostName,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Stored for MacRecord {}

/// An address that was released and rests, at `ipam/NETWORK/resting/IP` under a lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestRecord {
    /// Version of the record.
    pub version: u32,
    /// The endpoint that had it.
    pub endpoint: EndpointId,
    /// The host of that endpoint.
    pub host: HostName,
    /// Fields of later versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Stored for RestRecord {}

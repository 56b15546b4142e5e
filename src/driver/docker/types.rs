//! What Docker asks (moby, `libnetwork/drivers/remote/api` and `libnetwork/ipams/remote/api`).
//!
//! Every field may be missing, null or empty, and there may be others.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// About a network.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Network {
    /// Docker's id.
    #[serde(rename = "NetworkID", deserialize_with = "nullable")]
    pub id: String,
    /// Options, those of the user within another one or, for a Swarm's manager, as they are.
    #[serde(rename = "Options", deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    /// Its IPv4 subnets.
    #[serde(rename = "IPv4Data", deserialize_with = "nullable")]
    pub ipv4: Vec<Subnet>,
    /// Its IPv6 subnets.
    #[serde(rename = "IPv6Data", deserialize_with = "nullable")]
    pub ipv6: Vec<Subnet>,
}

/// A subnet as an IPAM driver gave it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Subnet {
    /// Whose it is.
    #[serde(deserialize_with = "nullable")]
    pub address_space: String,
    /// Its prefix.
    #[serde(deserialize_with = "nullable")]
    pub pool: String,
    /// The gateway, with the prefix length.
    #[serde(deserialize_with = "nullable")]
    pub gateway: String,
    /// Addresses that no container may have, with or without the prefix length.
    #[serde(deserialize_with = "nullable")]
    pub aux_addresses: BTreeMap<String, String>,
}

/// About an endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    /// Docker's id of the network.
    #[serde(rename = "NetworkID", deserialize_with = "nullable")]
    pub network: String,
    /// Docker's id of the endpoint.
    #[serde(rename = "EndpointID", deserialize_with = "nullable")]
    pub id: String,
    /// What Docker knows of its interface.
    #[serde(rename = "Interface", deserialize_with = "nullable")]
    pub interface: Interface,
    /// The namespace.
    #[serde(rename = "SandboxKey", deserialize_with = "nullable")]
    pub sandbox: String,
    /// Options.
    #[serde(rename = "Options", deserialize_with = "nullable")]
    pub options: Map<String, Value>,
}

/// An interface. What is empty may be filled by the driver, and nothing else.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    /// IPv4 address with its prefix length.
    #[serde(rename = "Address", deserialize_with = "nullable")]
    pub ipv4: String,
    /// IPv6 address with its prefix length.
    #[serde(rename = "AddressIPv6", deserialize_with = "nullable")]
    pub ipv6: String,
    /// MAC.
    #[serde(rename = "MacAddress", deserialize_with = "nullable")]
    pub mac: String,
}

/// Asks for a pool.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Pool {
    /// The prefix, or nothing.
    #[serde(deserialize_with = "nullable")]
    pub pool: String,
    /// The part of it that containers get their addresses of.
    #[serde(deserialize_with = "nullable")]
    pub sub_pool: String,
    /// The user's options.
    #[serde(deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    /// Whether IPv6 is wanted.
    #[serde(deserialize_with = "nullable")]
    pub v6: bool,
}

/// Asks for an address, or gives one back.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    /// The pool's id.
    #[serde(rename = "PoolID", deserialize_with = "nullable")]
    pub pool: String,
    /// The address.
    #[serde(rename = "Address", deserialize_with = "nullable")]
    pub address: String,
    /// Options.
    #[serde(rename = "Options", deserialize_with = "nullable")]
    pub options: Map<String, Value>,
}

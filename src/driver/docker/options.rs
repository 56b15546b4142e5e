//! What users write behind `-o` and `--ipam-opt`.

use encap::Vni;
use membership::key::NetworkName;
use membership::record::NetworkOptions;
use serde_json::{Map, Value};

use crate::control::types::Error;

/// Where Docker puts the user's options.
const GENERIC: &str = "com.docker.network.generic";
/// Whether the network must not reach beyond itself.
const INTERNAL: &str = "com.docker.network.internal";
/// Docker's own names for what we have shorter ones for.
const MTU: &str = "com.docker.network.driver.mtu";
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// Docker's own options, which are for Docker.
const DOCKERS: &str = "com.docker.";

/// Which network is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Which {
    /// By its name.
    pub network: Option<NetworkName>,
    /// By its VNI.
    pub vni: Option<Vni>,
}

/// The options of a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Options {
    /// Which network it is.
    pub which: Which,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Its UDP port, if not that of the hosts.
    pub udp_port: Option<u16>,
    /// Whether Docker may give containers an interface to its own bridge.
    pub gwbridge: Option<bool>,
    /// Whether it must not reach beyond itself.
    pub internal: bool,
    /// Options of the network itself, by name.
    pub network: Vec<(String, String)>,
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn name_of(value: &str) -> Result<NetworkName, Error> {
    NetworkName::new(value).map_err(|err| Error::bad_request(err.to_string()))
}

fn vni_of(value: &str) -> Result<Vni, Error> {
    let vni = value.trim().parse().ok().and_then(Vni::new).filter(|vni| vni.get() != 0);
    vni.ok_or_else(|| {
        Error::bad_request(format!("option vni cannot be `{value}`"))
            .next_step("write a number from 1 to 16777215")
    })
}

fn switch(name: &str, value: &str) -> Result<bool, Error> {
    match value {
        "" | "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(Error::bad_request(format!("option {name} cannot be `{value}`"))
            .next_step("write true or false")),
    }
}

impl Which {
    /// Reads `--ipam-opt`. Names with a dot, and Docker's own such as `RequestAddressType`, are for
    /// others.
    pub(super) fn of_pool(options: &Map<String, Value>) -> Result<Self, Error> {
        let mut which = Self::default();
        for (name, value) in options {
            match name.as_str() {
                "network" => which.network = Some(name_of(&text(value))?),
                "vni" => which.vni = Some(vni_of(&text(value))?),
                other if other.contains('.') => {}
                other if other.starts_with(|first: char| first.is_ascii_uppercase()) => {}
                other => {
                    return Err(Error::bad_request(format!("there is no IPAM option `{other}`"))
                        .next_step("those of --ipam-opt are network and vni"));
                }
            }
        }
        Ok(which)
    }
}

impl Options {
    /// Reads the options of CreateNetwork.
    pub(super) fn of_network(all: &Map<String, Value>) -> Result<Self, Error> {
        let empty = Map::new();
        let mut options =
            Self::flat(all.get(GENERIC).and_then(Value::as_object).unwrap_or(&empty))?;
        options.internal = all.get(INTERNAL).and_then(Value::as_bool).unwrap_or(false);
        Ok(options)
    }

    /// Reads the user's options by themselves.
    pub(super) fn flat(given: &Map<String, Value>) -> Result<Self, Error> {
        let mut options = Self::default();
        for (name, value) in given {
            let value = text(value);
            match name.as_str() {
                "network" => options.which.network = Some(name_of(&value)?),
                "vni" => options.which.vni = Some(vni_of(&value)?),
                VXLAN_IDS => {
                    let first = value.split(',').next().unwrap_or_default();
                    options.which.vni = Some(vni_of(first)?);
                }
                "mtu" | MTU => {
                    let mtu = value.parse().map_err(|_| {
                        Error::bad_request(format!("option mtu cannot be `{value}`"))
                            .next_step("write the number of bytes, such as 1450")
                    })?;
                    options.mtu = Some(mtu);
                }
                "gwbridge" => options.gwbridge = Some(switch(name, &value)?),
                other if other.starts_with(DOCKERS) => {}
                _ => match NetworkOptions::udp_port(name, &value) {
                    Ok(None) => {
                        NetworkOptions::default()
                            .set(name, &value)
                            .map_err(|err| unknown(name, &err.to_string()))?;
                        options.network.push((name.clone(), value));
                    }
                    Ok(port) => options.udp_port = port,
                    Err(err) => return Err(unknown(name, &err.to_string())),
                },
            }
        }
        Ok(options)
    }
}

fn unknown(name: &str, cause: &str) -> Error {
    Error::bad_request(format!("option {name} of the network cannot be taken")).cause(cause).next_step(
        "`docker network create -o` also takes network, vni, mtu and gwbridge; docs/docker.md has \
         them all",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flat(given: Value) -> Result<Options, Error> {
        Options::flat(given.as_object().unwrap())
    }

    #[test]
    fn options_are_read() {
        let all = json!({
            GENERIC: { "vni": "42", "mtu": "1400", "nat_outgoing": "", "com.docker.x": "y" },
            INTERNAL: true,
        });
        let options = Options::of_network(all.as_object().unwrap()).unwrap();
        assert_eq!(options.which.vni, Vni::new(42));
        assert_eq!((options.mtu, options.internal), (Some(1400), true));
        assert_eq!(options.network, [("nat_outgoing".to_owned(), String::new())]);
        let dockers = flat(json!({ VXLAN_IDS: "9001,9002", MTU: "1300" })).unwrap();
        assert_eq!((dockers.which.vni, dockers.mtu), (Vni::new(9001), Some(1300)));
        let port = flat(json!({ "udp-port": "4790" })).unwrap();
        assert_eq!((port.udp_port, port.network), (Some(4790), Vec::new()));
        assert_eq!(
            flat(json!({ "network": "web" })).unwrap().which.network,
            NetworkName::new("web").ok()
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (given, says) in [
            (json!({ "vni": "0" }), "16777215"),
            (json!({ "vni": "x" }), "16777215"),
            (json!({ "mtu": "big" }), "bytes"),
            (json!({ "network": "a/b" }), "letters"),
            (json!({ "encrypted": "" }), "nat_outgoing"),
            (json!({ "gwbridge": "perhaps" }), "true or false"),
            (json!({ "udp_port": "many" }), "65534"),
        ] {
            let error = flat(given).unwrap_err();
            let whole = format!("{error}; {}", error.next_step.clone().unwrap_or_default());
            assert!(whole.contains(says), "{whole}");
        }
        assert!(Which::of_pool(json!({ "pool.x": "y" }).as_object().unwrap()).is_ok());
        assert!(Which::of_pool(json!({ "RequestAddressType": "y" }).as_object().unwrap()).is_ok());
        assert!(Which::of_pool(json!({ "nettwork": "y" }).as_object().unwrap()).is_err());
    }
}

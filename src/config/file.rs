//! The file as it is written, with the place of each value.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::keys::KEYS;
use super::{Error, parse};

type Value<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) name: Value<String>,
    pub(super) vtep: Value<Vteps>,
    pub(super) udp_port: Value<i64>,
    pub(super) stores: Value<Vec<String>>,
    pub(super) embedded_store: Value<String>,
    pub(super) insecure_store: Value<bool>,
    pub(super) store_prefix: Value<String>,
    pub(super) workers: Value<i64>,
    pub(super) state_dir: Value<String>,
    pub(super) socket: Value<String>,
    pub(super) socket_group: Value<String>,
    pub(super) metrics: Value<String>,
    pub(super) tls: Tls,
    pub(super) user: User,
    pub(super) session: Session,
    pub(super) datapath: Datapath,
    pub(super) uplink: Uplink,
    pub(super) docker: Docker,
    pub(super) log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) ca: Value<String>,
    pub(super) certificate: Value<String>,
    pub(super) key: Value<String>,
    pub(super) server_name: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct User {
    pub(super) name: Value<String>,
    pub(super) password_file: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Session {
    pub(super) lease: Value<String>,
    pub(super) hold_down: Value<String>,
    pub(super) garbage_after: Value<String>,
    pub(super) reserved_addresses: Value<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Datapath {
    pub(super) source_ports: Value<i64>,
    pub(super) learned_age: Value<String>,
    pub(super) nice: Value<i64>,
    pub(super) disable: Value<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Uplink {
    pub(super) ipv4: Value<String>,
    pub(super) ipv6: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Docker {
    pub(super) enabled: Value<bool>,
    pub(super) name: Value<String>,
    pub(super) scope: Value<String>,
    pub(super) socket: Value<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: Value<String>,
    pub(super) format: Value<String>,
}

/// A VTEP as a table. An address alone is a table with only that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vtep {
    pub(super) address: String,
    pub(super) bind: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) mtu: Option<i64>,
    #[serde(default)]
    pub(super) accept: Vec<String>,
}

/// One VTEP or a list of them, each an address or a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vteps(pub(super) Vec<Vtep>);

struct OneVtep(Vtep);

impl<'de> Deserialize<'de> for OneVtep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Vteps(vteps) = deserializer.deserialize_any(VtepVisitor { list: false })?;
        vteps.into_iter().next().map(Self).ok_or_else(|| de::Error::custom("no VTEP"))
    }
}

impl<'de> Deserialize<'de> for Vteps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VtepVisitor { list: true })
    }
}

/// Takes one VTEP, and a list of them where `list` is set.
struct VtepVisitor {
    list: bool,
}

impl<'de> Visitor<'de> for VtepVisitor {
    type Value = Vteps;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address, a table with `address`, or a list of these")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vteps, E> {
        let address = String::deserialize(StrDeserializer::<E>::new(text))?;
        Ok(Vteps(vec![Vtep { address, ..Vtep::default() }]))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vteps, A::Error> {
        Vtep::deserialize(MapAccessDeserializer::new(map)).map(|vtep| Vteps(vec![vtep]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vteps, A::Error> {
        if !self.list {
            return Err(de::Error::custom("a list of VTEPs inside a list"));
        }
        let mut vteps = Vec::new();
        while let Some(OneVtep(vtep)) = seq.next_element()? {
            vteps.push(vtep);
        }
        Ok(Vteps(vteps))
    }
}

/// Parses the file's text.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, Error> {
    toml::from_str(text).map_err(|err| {
        let line = err.span().map_or(1, |span| line_of(text, span.start));
        let message = err.message().trim().to_owned();
        let unknown =
            message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let (cause, next_step) = match unknown {
            Some(key) => (format!("there is no key `{key}` here"), near(key)),
            None => (message, "write it as the documentation of the keys shows".to_owned()),
        };
        Error::Syntax { path: path.to_owned(), line, cause, next_step }
    })
}

/// The line of a byte offset, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// What an unknown key was probably meant to be.
fn near(key: &str) -> String {
    let leaf = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
    let best = KEYS
        .iter()
        .map(|known| (parse::distance(key, leaf(known.name)), known.name))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    match best {
        Some((0, name)) => format!("the key is `{name}`: mind the table that it is in"),
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => {
            let names: Vec<&str> = KEYS.iter().map(|known| known.name).collect();
            format!("remove it; the keys are {}", names.join(", "))
        }
    }
}

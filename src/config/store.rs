//! The store: endpoints, what may be in clear, credentials.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use membership::pki::Joined;
use toml::Spanned;
use toml::value::{Array, Value};

use super::layers::{Found, Layers, list, path_text, wrong};
use super::parse::{Endpoint, EndpointError};
use super::{
    DEFAULT_STORE_PORT, Error, Flags, Purpose, STORES_MAX, Source, Tls, User, environment, file,
};
use crate::control::check::Invalid;

pub(super) fn address(text: &str) -> Result<SocketAddr, Invalid> {
    let example = "write an address and a port, such as 192.0.2.1:2379 or [2001:db8::1]:2379";
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err(Invalid::new(format!("`{text}` has port 0"), example)),
        Err(_) => Err(Invalid::new(format!("`{text}` is not an address with a port"), example)),
    }
}

pub(super) fn embedded_of(found: Found<String>) -> Result<Found<SocketAddr>, Error> {
    found.parse("embedded_store", |text| address(&text))
}

/// Refuses to serve the store in clear where others can reach it.
///
/// # Errors
/// When `address` is not loopback and `insecure` was not said.
pub(crate) fn plaintext_listener(address: SocketAddr, insecure: bool) -> Result<(), Invalid> {
    if insecure || address.ip().is_loopback() {
        return Ok(());
    }
    Err(Invalid::new(
        format!("the store would be served in clear at {address}, where other machines reach it"),
        format!(
            "give certificates with --tls-certificate, --tls-key and --tls-client-ca, serve it at \
             127.0.0.1:{}, or give --insecure-store if you trust everyone on that network",
            address.port()
        ),
    ))
}

/// What decides whether an endpoint of the store may be used.
pub(super) struct Trust {
    pub(super) insecure: bool,
    pub(super) tls: bool,
    pub(super) embedded: Option<Found<SocketAddr>>,
    /// The embedded store has an authority of its own.
    pub(super) authority: bool,
    pub(super) joined: Option<Found<Joined>>,
}

pub(super) fn stores(
    layers: &mut Layers<'_>,
    flags: &Flags,
    file: Option<Spanned<Vec<String>>>,
    trust: &Trust,
    purpose: Purpose,
) -> Result<Vec<String>, Error> {
    const KEY: &str = "stores";
    let split = |text: String| {
        let parts = text.split(',').map(|part| part.trim().to_owned());
        parts.filter(|part| !part.is_empty()).collect()
    };
    let flag = list(flags.store.clone());
    let found = layers.pick_with(flag, "store", environment::STORES, split, file);
    let found = match (found, &trust.embedded) {
        (Some(found), embedded) => {
            let own = embedded.as_ref().map(|found| found.value);
            found.parse(KEY, |written| endpoints(&written, own, trust))?
        }
        (None, Some(embedded)) => Found {
            value: vec![own_endpoint(embedded.value, trust.authority).url()],
            source: embedded.source.clone(),
        },
        (None, None) if trust.joined.is_some() => {
            let joined = trust.joined.clone().map(|Found { value, source }| (value, source));
            let (value, source) = joined.unzip();
            let value = value.map(|joined| joined.endpoints).unwrap_or_default();
            Found { value, source: source.unwrap_or(Source::Default) }
        }
        (None, None) if purpose == Purpose::CleanUp => Found::default(Vec::new()),
        (None, None) => {
            return Err(Error::Missing {
                key: KEY,
                next_step: "join the host that serves it with `skybridge join TOKEN`, let this \
                            one serve it with --embedded-store IP:2379, or name an etcd with \
                            --store"
                    .to_owned(),
            });
        }
    };
    let value: Array = found.value.iter().cloned().map(Value::String).collect();
    if value.is_empty() {
        layers.note_unset(KEY);
    } else {
        layers.note(KEY, &found, Value::Array(value));
    }
    Ok(found.value)
}

/// Where this agent reaches the store that it serves itself.
fn own_endpoint(listen: SocketAddr, tls: bool) -> Endpoint {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Endpoint { tls, host: ip.to_string(), port: listen.port() }
}

fn endpoints(
    written: &[String],
    own: Option<SocketAddr>,
    trust: &Trust,
) -> Result<Vec<String>, Invalid> {
    if written.is_empty() || written.len() > STORES_MAX {
        return Err(Invalid::new(
            format!("there are {} endpoints", written.len()),
            format!("give 1 to {STORES_MAX}"),
        ));
    }
    let mut parsed = Vec::new();
    for text in written {
        let endpoint =
            Endpoint::parse(text, DEFAULT_STORE_PORT).map_err(|err| no_endpoint(text, err))?;
        if endpoint.tls && !trust.tls {
            return Err(Invalid::new(
                format!("{text} needs to know whom to trust"),
                "give the certificate of the store's authority with --tls-ca, or [tls] ca",
            ));
        }
        if !endpoint.tls && !endpoint.is_loopback() && !trust.insecure {
            return Err(Invalid::new(
                format!("{text} would carry the store's data and password in clear"),
                "use an https:// endpoint, or give --insecure-store if you trust everyone on that \
                 network",
            ));
        }
        parsed.push(endpoint);
    }
    if let Some(own) = own {
        let itself = |endpoint: &Endpoint| match endpoint.host.parse::<IpAddr>() {
            Ok(ip) => endpoint.port == own.port() && (ip == own.ip() || own.ip().is_unspecified()),
            // A name: only the resolver knows whether it is this machine.
            Err(_) => endpoint.port == own.port(),
        };
        if !parsed.iter().any(itself) {
            return Err(Invalid::new(
                format!("none of the endpoints is the embedded store at {own}"),
                "leave --store away to use the embedded store, or --embedded-store to use the other",
            ));
        }
    }
    let mut urls: Vec<String> = Vec::new();
    for url in parsed.iter().map(Endpoint::url) {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

fn no_endpoint(text: &str, err: EndpointError) -> Invalid {
    let example = "write http://HOST:2379 or https://HOST:2379";
    let cause = match err {
        EndpointError::Host => "has no host",
        EndpointError::Path => "has more than host and port",
        EndpointError::Port => "has no port from 1 to 65535",
        EndpointError::Scheme => {
            let fixed = Endpoint::parse(&format!("http://{text}"), DEFAULT_STORE_PORT);
            let next =
                fixed.map_or_else(|_| example.to_owned(), |fixed| format!("write {}", fixed.url()));
            return Invalid::new(format!("`{text}` does not begin with http:// or https://"), next);
        }
    };
    Invalid::new(format!("`{text}` {cause}"), example)
}

pub(super) fn store_prefix(text: String) -> Result<String, Invalid> {
    let trimmed = text.trim_end_matches('/');
    let valid = trimmed.is_empty()
        || (trimmed.starts_with('/')
            && trimmed.len() <= 128
            && trimmed.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)));
    if valid {
        Ok(trimmed.to_owned())
    } else {
        Err(Invalid::new(
            format!("`{text}` is no prefix of keys"),
            "write something such as /prod: a slash, then letters, digits, `-`, `_`, `.`",
        ))
    }
}

pub(super) fn tls_of(
    layers: &mut Layers<'_>,
    flags: &Flags,
    tls: file::Tls,
    own: Option<Found<Tls>>,
) -> Result<Option<Tls>, Error> {
    let flag = |path: &Option<PathBuf>| path.as_deref().map(path_text);
    let ca = layers.pick(flag(&flags.tls_ca), "tls-ca", tls.ca);
    let certificate = layers.pick(flag(&flags.tls_certificate), "tls-certificate", tls.certificate);
    let key = layers.pick(flag(&flags.tls_key), "tls-key", tls.key);
    let server_name = layers.pick(None, "", tls.server_name);
    let needs = |key: &'static str, found: &Found<String>, other: &str| {
        let next = format!("set {other} too, or leave {key} away");
        wrong(key, &found.source, Invalid::new(format!("it needs {other}"), next))
    };
    match (&ca, &certificate, &key) {
        (None, Some(found), _) => return Err(needs("tls.certificate", found, "tls.ca")),
        (None, _, Some(found)) => return Err(needs("tls.key", found, "tls.ca")),
        (_, Some(found), None) => return Err(needs("tls.certificate", found, "tls.key")),
        (_, None, Some(found)) => return Err(needs("tls.key", found, "tls.certificate")),
        _ => {}
    }
    if let (None, Some(found)) = (&ca, &server_name) {
        return Err(needs("tls.server_name", found, "tls.ca"));
    }
    let (ca, certificate, key) = match own {
        None => (ca, certificate, key),
        Some(Found { value, source }) => {
            let found = |path: &Path| Found { value: path_text(path), source: source.clone() };
            let own_ca = found(&value.ca);
            if let Some(ca) = ca.filter(|ca| ca.value != own_ca.value) {
                let cause =
                    "the store that this host serves or has joined has an authority of its own";
                let next = "leave the certificates away, or name another store with stores";
                return Err(wrong("tls.ca", &ca.source, Invalid::new(cause, next)));
            }
            let (certificate, key) =
                value.identity.as_ref().map(|(c, k)| (found(c), found(k))).unzip();
            (Some(own_ca), certificate, key)
        }
    };
    let ca = layers.note_option("tls.ca", ca, Clone::clone);
    let certificate = layers.note_option("tls.certificate", certificate, Clone::clone);
    let key = layers.note_option("tls.key", key, Clone::clone);
    let server_name = layers.note_option("tls.server_name", server_name, Clone::clone);
    Ok(ca.map(|ca| Tls {
        ca: ca.into(),
        identity: certificate.zip(key).map(|(certificate, key)| (certificate.into(), key.into())),
        server_name,
    }))
}

pub(super) fn user_of(
    layers: &mut Layers<'_>,
    flags: &Flags,
    user: file::User,
) -> Result<Option<User>, Error> {
    let password = flags.store_password_file.as_deref().map(path_text);
    let name = layers.pick(flags.store_user.clone(), "store-user", user.name);
    let password = layers.pick(password, "store-password-file", user.password_file);
    let needs = |key: &'static str, found: &Found<String>, other: &str| {
        let next = format!("set {other} too, or leave {key} away");
        wrong(key, &found.source, Invalid::new(format!("it needs {other}"), next))
    };
    match (&name, &password) {
        (Some(found), None) => return Err(needs("user.name", found, "user.password_file")),
        (None, Some(found)) => return Err(needs("user.password_file", found, "user.name")),
        _ => {}
    }
    let name = layers.note_option("user.name", name, Clone::clone);
    let password = layers.note_option("user.password_file", password, Clone::clone);
    Ok(name.zip(password).map(|(name, file)| User { name, password_file: file.into() }))
}

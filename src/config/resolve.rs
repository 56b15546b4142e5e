//! From the layers to one checked configuration.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::value::{Array, Table, Value};

use super::file::{self, File, Vteps};
use super::parse::{self, Endpoint, EndpointError};
use super::{
    Capability, Config, DEFAULT_SOCKET, DEFAULT_STATE_DIR, DEFAULT_STORE_PORT, DEFAULT_UDP_PORT,
    Datapath, Effective, Error, Flags, KEYS, Log, LogFormat, Purpose, SOURCE_PORTS_MAX, STORES_MAX,
    Setting, Source, Store, Tls, User, VTEPS_MAX, Vtep, WORKERS_MAX, environment,
};
use crate::control::check::{self, Invalid};

/// Workers when nobody says and the machine has more CPUs.
const DEFAULT_WORKERS_MAX: usize = 8;

/// A value and where it was written.
#[derive(Clone, Debug)]
struct Found<T> {
    value: T,
    source: Source,
}

impl<T> Found<T> {
    fn default(value: T) -> Self {
        Self { value, source: Source::Default }
    }

    fn parse<U>(
        self,
        key: &'static str,
        parse: impl FnOnce(T) -> Result<U, Invalid>,
    ) -> Result<Found<U>, Error> {
        let Self { value, source } = self;
        match parse(value) {
            Ok(value) => Ok(Found { value, source }),
            Err(invalid) => Err(wrong(key, &source, invalid)),
        }
    }
}

fn wrong(key: &'static str, source: &Source, invalid: Invalid) -> Error {
    let Invalid { cause, next_step } = invalid;
    Error::Value { key, from: source.clone(), cause, next_step }
}

/// The layers, and what was taken from them so far.
struct Layers<'a> {
    file: Option<(PathBuf, String)>,
    environment: &'a dyn Fn(&'static str) -> Option<String>,
    settings: Vec<Setting>,
}

impl Layers<'_> {
    /// The strongest layer's value.
    fn pick<T>(
        &self,
        flag: Option<T>,
        flag_name: &'static str,
        file: Option<Spanned<T>>,
    ) -> Option<Found<T>> {
        match flag {
            Some(value) => Some(Found { value, source: Source::Flag(flag_name) }),
            None => file.map(|found| {
                let line = self.line(found.span().start);
                Found { value: found.into_inner(), source: line }
            }),
        }
    }

    /// As [`Self::pick`], with an environment variable between.
    fn pick_with<T>(
        &self,
        flag: Option<T>,
        flag_name: &'static str,
        variable: &'static str,
        from_text: impl FnOnce(String) -> T,
        file: Option<Spanned<T>>,
    ) -> Option<Found<T>> {
        if flag.is_some() {
            return self.pick(flag, flag_name, None);
        }
        match (self.environment)(variable) {
            Some(text) => {
                Some(Found { value: from_text(text), source: Source::Environment(variable) })
            }
            None => self.pick(None, flag_name, file),
        }
    }

    fn line(&self, offset: usize) -> Source {
        let (path, text) = self.file.clone().unwrap_or_default();
        Source::File { path, line: file::line_of(&text, offset) }
    }

    /// Notes what is in effect.
    fn note<T>(&mut self, key: &'static str, found: &Found<T>, value: impl Into<Value>) {
        let value = Some(value.into().to_string());
        self.settings.push(Setting { key, value, source: found.source.clone() });
    }

    fn note_unset(&mut self, key: &'static str) {
        self.settings.push(Setting { key, value: None, source: Source::Default });
    }

    fn note_option<T>(
        &mut self,
        key: &'static str,
        found: Option<Found<T>>,
        text: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match found {
            Some(found) => {
                self.note(key, &found, text(&found.value));
                Some(found.value)
            }
            None => {
                self.note_unset(key);
                None
            }
        }
    }

    fn number<T: TryFrom<i64> + Copy>(
        &mut self,
        key: &'static str,
        found: Option<Found<i64>>,
        default: i64,
        range: RangeInclusive<i64>,
    ) -> Result<T, Error> {
        let found = found.unwrap_or(Found::default(default));
        let found = found.parse(key, |value| number(value, &range))?;
        self.note(key, &found, found.value);
        T::try_from(found.value).map_err(|_| wrong(key, &found.source, out_of(found.value, &range)))
    }

    fn duration(
        &mut self,
        key: &'static str,
        found: Option<Spanned<String>>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, Error> {
        let found = match self.pick(None, "", found) {
            None => Found::default(default),
            Some(found) => found.parse(key, |text| {
                let ends = (range.start(), range.end());
                parse::duration(&text).filter(|value| range.contains(value)).ok_or_else(|| {
                    Invalid::new(
                        format!("`{text}` is not a duration that it can have"),
                        format!(
                            "write a number with ms, s, m, h or d, from {} to {}",
                            parse::duration_text(*ends.0),
                            parse::duration_text(*ends.1)
                        ),
                    )
                })
            })?,
        };
        self.note(key, &found, parse::duration_text(found.value));
        Ok(found.value)
    }
}

fn out_of(value: i64, range: &RangeInclusive<i64>) -> Invalid {
    Invalid::new(
        format!("{value} is out of range"),
        format!("write a number from {} to {}", range.start(), range.end()),
    )
}

fn number(value: i64, range: &RangeInclusive<i64>) -> Result<i64, Invalid> {
    if range.contains(&value) { Ok(value) } else { Err(out_of(value, range)) }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn list<T>(values: Vec<T>) -> Option<Vec<T>> {
    (!values.is_empty()).then_some(values)
}

pub(super) fn resolve(
    flags: &Flags,
    environment: &dyn Fn(&'static str) -> Option<String>,
    text: Option<(PathBuf, String)>,
    purpose: Purpose,
) -> Result<Effective, Error> {
    let file = match &text {
        Some((path, text)) => file::parse(path, text)?,
        None => File::default(),
    };
    let mut layers = Layers { file: text, environment, settings: Vec::new() };
    let File { tls, user, session, datapath, log, .. } = file;

    let name = host_name(&mut layers, flags, file.name)?;
    let found = layers.pick(flags.udp_port, "udp-port", file.udp_port);
    let udp_port = layers.number("udp_port", found, i64::from(DEFAULT_UDP_PORT), 1..=65_535)?;
    let vteps = vteps(&mut layers, flags, file.vtep, udp_port, purpose)?;

    let insecure = flags.insecure_store.then_some(true);
    let insecure = layers.pick(insecure, "insecure-store", file.insecure_store);
    let insecure = insecure.unwrap_or(Found::default(false));
    layers.note("insecure_store", &insecure, insecure.value);
    let tls = tls_of(&mut layers, flags, tls)?;
    let user = user_of(&mut layers, flags, user)?;
    let embedded = layers.pick(flags.embedded_store.clone(), "embedded-store", file.embedded_store);
    let embedded = embedded.map(|found| embedded_of(found, insecure.value)).transpose()?;
    let endpoints = stores(
        &mut layers,
        flags,
        file.stores,
        &Trust { insecure: insecure.value, tls: tls.is_some(), embedded: embedded.clone() },
        purpose,
    )?;
    let embedded = layers.note_option("embedded_store", embedded, SocketAddr::to_string);
    let prefix = layers.pick(flags.store_prefix.clone(), "store-prefix", file.store_prefix);
    let prefix = prefix.unwrap_or(Found::default(String::new()));
    let prefix = prefix.parse("store_prefix", store_prefix)?;
    layers.note("store_prefix", &prefix, prefix.value.as_str());
    let seconds = Duration::from_secs;
    let store = Store {
        endpoints,
        prefix: prefix.value,
        embedded,
        insecure: insecure.value,
        tls,
        user,
        lease: layers.duration(
            "session.lease",
            session.lease,
            seconds(10),
            seconds(2)..=seconds(600),
        )?,
        hold_down: layers.duration(
            "session.hold_down",
            session.hold_down,
            seconds(30),
            seconds(0)..=seconds(3600),
        )?,
        garbage_after: layers.duration(
            "session.garbage_after",
            session.garbage_after,
            seconds(86_400),
            seconds(60)..=seconds(90 * 86_400),
        )?,
        reserved_addresses: {
            let found = layers.pick(None, "", session.reserved_addresses);
            layers.number("session.reserved_addresses", found, 8, 0..=256)?
        },
    };
    let datapath = datapath_of(&mut layers, flags, file.workers, datapath)?;

    let state_dir = flags.state_dir.as_deref().map(path_text);
    let state_dir = layers.pick(state_dir, "state-dir", file.state_dir);
    let state_dir = directory(&mut layers, "state_dir", state_dir, DEFAULT_STATE_DIR)?;
    let socket = flags.socket.as_deref().map(path_text);
    let variable = environment::SOCKET;
    let socket = layers.pick_with(socket, "socket", variable, |text| text, file.socket);
    let socket = directory(&mut layers, "socket", socket, DEFAULT_SOCKET)?;
    let group = layers.pick(flags.socket_group.clone(), "socket-group", file.socket_group);
    let socket_group = layers.note_option("socket_group", group, Clone::clone);
    let metrics = layers.pick(flags.metrics.clone(), "metrics", file.metrics);
    let metrics = metrics.map(|found| found.parse("metrics", |text| address(&text))).transpose()?;
    let metrics = layers.note_option("metrics", metrics, SocketAddr::to_string);
    let log = log_of(&mut layers, flags, log)?;

    let mut settings = layers.settings;
    settings.sort_by_key(|setting| KEYS.iter().position(|key| key.name == setting.key));
    let config = Config {
        name,
        vteps,
        udp_port,
        store,
        datapath,
        state_dir,
        socket,
        socket_group,
        metrics,
        log,
    };
    Ok(Effective { config, settings })
}

fn host_name(
    layers: &mut Layers<'_>,
    flags: &Flags,
    file: Option<Spanned<String>>,
) -> Result<String, Error> {
    let found = layers.pick(flags.name.clone(), "name", file).unwrap_or_else(|| {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        // The first label: the rest is the domain, which hosts of one cluster share.
        let label = host.unwrap_or_default().split('.').next().unwrap_or_default().to_owned();
        Found::default(label)
    });
    let found = found.parse("name", |text| {
        check::name(&text).map_err(|invalid| Invalid {
            cause: format!("`{text}`: {}", invalid.cause),
            next_step: format!("{}, with --name", invalid.next_step),
        })
    })?;
    layers.note("name", &found, found.value.as_str());
    Ok(found.value)
}

fn vteps(
    layers: &mut Layers<'_>,
    flags: &Flags,
    file: Option<Spanned<Vteps>>,
    udp_port: u16,
    purpose: Purpose,
) -> Result<Vec<Vtep>, Error> {
    const KEY: &str = "vtep";
    let flag = list(flags.vtep.clone()).map(|addresses| {
        let vtep = |address| file::Vtep { address, ..file::Vtep::default() };
        Vteps(addresses.into_iter().map(vtep).collect())
    });
    let Some(found) = layers.pick(flag, "vtep", file) else {
        layers.note_unset(KEY);
        return match purpose {
            Purpose::CleanUp => Ok(Vec::new()),
            Purpose::Run => Err(Error::Missing { key: KEY, next_step: suggest_vtep() }),
        };
    };
    let found = found.parse(KEY, |Vteps(written)| {
        let vteps: Vec<Vtep> =
            written.into_iter().map(|vtep| vtep_of(vtep, udp_port)).collect::<Result<_, _>>()?;
        let one_each = |family: fn(&IpAddr) -> bool| {
            vteps.iter().filter(|vtep| family(&vtep.advertise)).count() <= 1
        };
        let count = vteps.len();
        if count == 0
            || count > VTEPS_MAX
            || !one_each(IpAddr::is_ipv4)
            || !one_each(IpAddr::is_ipv6)
        {
            return Err(Invalid::new(
                "a host has one VTEP per family",
                "give one IPv4 address, one IPv6 address, or one of each",
            ));
        }
        Ok(vteps)
    })?;
    let value = Value::Array(found.value.iter().map(|vtep| vtep_value(vtep, udp_port)).collect());
    layers.note(KEY, &found, value);
    Ok(found.value)
}

fn vtep_of(written: file::Vtep, udp_port: u16) -> Result<Vtep, Invalid> {
    let unicast = |text: &str| {
        check::ip(text)
            .map_err(|invalid| Invalid { cause: format!("`{text}`: {}", invalid.cause), ..invalid })
    };
    let advertise = unicast(&written.address)?;
    let bind = written.bind.as_deref().map_or(Ok(advertise), unicast)?;
    let accept = written.accept.iter().map(|text| unicast(text)).collect::<Result<Vec<_>, _>>()?;
    let other = |ip: &&IpAddr| ip.is_ipv4() != advertise.is_ipv4();
    if let Some(other) = accept.iter().chain([&bind]).find(other) {
        return Err(Invalid::new(
            format!("{other} is of another family than {advertise}"),
            "give the addresses of one VTEP in one family",
        ));
    }
    let port = number(written.port.unwrap_or(udp_port.into()), &(1..=65_535))?;
    let mtu = written.mtu.map(|mtu| number(mtu, &(576..=65_535))).transpose()?;
    Ok(Vtep {
        advertise,
        bind,
        port: u16::try_from(port).unwrap_or(udp_port),
        mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()),
        accept,
    })
}

fn vtep_value(vtep: &Vtep, udp_port: u16) -> Value {
    let text = |ip: &IpAddr| Value::String(ip.to_string());
    let mut table = Table::new();
    table.insert("address".to_owned(), text(&vtep.advertise));
    if vtep.bind != vtep.advertise {
        table.insert("bind".to_owned(), text(&vtep.bind));
    }
    if vtep.port != udp_port {
        table.insert("port".to_owned(), Value::Integer(vtep.port.into()));
    }
    if let Some(mtu) = vtep.mtu {
        table.insert("mtu".to_owned(), Value::Integer(mtu.into()));
    }
    if !vtep.accept.is_empty() {
        table.insert("accept".to_owned(), Value::Array(vtep.accept.iter().map(text).collect()));
    }
    if table.len() == 1 { text(&vtep.advertise) } else { Value::Table(table) }
}

/// Names this machine's addresses, so that the user sees which one to write.
fn suggest_vtep() -> String {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let ip: IpAddr = match interface.address {
            Some(address) => match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().into(),
                (_, Some(v6)) if !v6.ip().is_unicast_link_local() => v6.ip().into(),
                _ => continue,
            },
            None => continue,
        };
        if !ip.is_loopback() {
            found.push(format!("{ip} ({})", interface.interface_name));
        }
    }
    found.truncate(4);
    let here = match found.is_empty() {
        true => String::new(),
        false => format!("; this machine has {}", found.join(", ")),
    };
    format!("give the underlay address that other hosts reach this one at, with --vtep IP{here}")
}

fn address(text: &str) -> Result<SocketAddr, Invalid> {
    let example = "write an address and a port, such as 192.0.2.1:2379 or [2001:db8::1]:2379";
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err(Invalid::new(format!("`{text}` has port 0"), example)),
        Err(_) => Err(Invalid::new(format!("`{text}` is not an address with a port"), example)),
    }
}

fn embedded_of(found: Found<String>, insecure: bool) -> Result<Found<SocketAddr>, Error> {
    found.parse("embedded_store", |text| {
        let address = address(&text)?;
        plaintext_listener(address, insecure)?;
        Ok(address)
    })
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
            "serve it at 127.0.0.1:{}, or give --insecure-store if you trust everyone on that \
             network",
            address.port()
        ),
    ))
}

/// What decides whether an endpoint of the store may be used.
struct Trust {
    insecure: bool,
    tls: bool,
    embedded: Option<Found<SocketAddr>>,
}

fn stores(
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
            value: vec![own_endpoint(embedded.value).url()],
            source: embedded.source.clone(),
        },
        (None, None) if purpose == Purpose::CleanUp => Found::default(Vec::new()),
        (None, None) => {
            return Err(Error::Missing {
                key: KEY,
                next_step: "name the store with --store http://HOST:2379, or let one host serve \
                            it with --embedded-store IP:2379"
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
fn own_endpoint(listen: SocketAddr) -> Endpoint {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Endpoint { tls: false, host: ip.to_string(), port: listen.port() }
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

fn store_prefix(text: String) -> Result<String, Invalid> {
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

fn tls_of(layers: &mut Layers<'_>, flags: &Flags, tls: file::Tls) -> Result<Option<Tls>, Error> {
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

fn user_of(
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

fn datapath_of(
    layers: &mut Layers<'_>,
    flags: &Flags,
    workers: Option<Spanned<i64>>,
    datapath: file::Datapath,
) -> Result<Datapath, Error> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let default = i64::try_from(cpus.min(DEFAULT_WORKERS_MAX)).unwrap_or(1);
    let workers = layers.pick(flags.workers, "workers", workers);
    let workers = layers.number("workers", workers, default, 1..=WORKERS_MAX as i64)?;
    let source_ports = layers.pick(None, "", datapath.source_ports);
    let source_ports =
        layers.number("datapath.source_ports", source_ports, 8, 1..=SOURCE_PORTS_MAX as i64)?;
    let disable = layers.pick(list(flags.disable.clone()), "disable", datapath.disable);
    let disable = disable.unwrap_or(Found::default(Vec::new()));
    let disable = disable.parse("datapath.disable", |names| {
        let names = names.iter().filter(|name| !name.is_empty());
        names.map(|name| capability(name)).collect::<Result<BTreeSet<_>, _>>()
    })?;
    let names = disable.value.iter().map(|c| Value::String(c.to_string())).collect();
    layers.note("datapath.disable", &disable, Value::Array(names));
    Ok(Datapath { workers, source_ports, disable: disable.value })
}

fn capability(name: &str) -> Result<Capability, Invalid> {
    name.parse().map_err(|_| {
        let names: Vec<&str> = Capability::ALL.iter().map(|c| c.name()).collect();
        Invalid::new(
            format!("there is no capability `{name}`"),
            format!("the capabilities are {}", names.join(", ")),
        )
    })
}

/// An absolute path without `..`, so that it means the same wherever the agent was started.
fn directory(
    layers: &mut Layers<'_>,
    key: &'static str,
    found: Option<Found<String>>,
    default: &str,
) -> Result<PathBuf, Error> {
    let default = || Found::default(default.to_owned());
    let found = found.unwrap_or_else(default).parse(key, |text| {
        let next = "write an absolute path";
        if text.is_empty() || text.contains('\0') {
            return Err(Invalid::new("not a path", next));
        }
        std::path::absolute(&text).map_err(|err| Invalid::new(format!("`{text}`: {err}"), next))
    })?;
    layers.note(key, &found, path_text(&found.value));
    Ok(found.value)
}

fn log_of(layers: &mut Layers<'_>, flags: &Flags, log: file::Log) -> Result<Log, Error> {
    let level = layers.pick(flags.log_level.clone(), "log-level", log.level);
    let level = level.unwrap_or_else(|| Found::default("info".to_owned()));
    let level = level.parse("log.level", |text| {
        match tracing_subscriber::EnvFilter::builder().parse(&text) {
            Ok(_) if !text.trim().is_empty() => Ok(text),
            _ => Err(Invalid::new(
                format!("`{text}` is no filter"),
                "write error, warn, info, debug, or a filter such as skybridge=debug",
            )),
        }
    })?;
    layers.note("log.level", &level, level.value.as_str());
    let format = layers.pick(flags.log_format.clone(), "log-format", log.format);
    let format = format.unwrap_or_else(|| Found::default("text".to_owned()));
    let format = format.parse("log.format", |text| match text.as_str() {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err(Invalid::new(format!("`{text}` is no format"), "write text or json")),
    })?;
    let name = match format.value {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    };
    layers.note("log.format", &format, name);
    Ok(Log { level: level.value, format: format.value })
}

//! From the layers to one checked configuration.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use membership::pki::{Files, Joined};
use toml::Spanned;
use toml::value::Value;

use super::file::{self, File};
use super::layers::{Found, Layers, list, path_text, wrong};
use super::store::{Trust, address, embedded_of, store_prefix, stores, tls_of, user_of};
use super::vtep::vteps;
use super::{
    Capability, Config, DEFAULT_SOCKET, DEFAULT_STATE_DIR, DEFAULT_UDP_PORT, Datapath, Docker,
    DockerScope, Effective, Error, Flags, KEYS, Log, LogFormat, Purpose, SOURCE_PORTS_MAX, Source,
    Store, Tls, Uplink, WORKERS_MAX, environment,
};
use crate::control::check::{self, Invalid};

/// Workers when nobody says and the machine has more CPUs.
const DEFAULT_WORKERS_MAX: usize = 8;

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
    let File { tls, user, session, datapath, uplink, docker, log, .. } = file;

    let state_dir = flags.state_dir.as_deref().map(path_text);
    let state_dir = layers.pick(state_dir, "state-dir", file.state_dir);
    let state_dir = directory(&mut layers, "state_dir", state_dir, DEFAULT_STATE_DIR)?;
    let files = Files::of(&state_dir);
    let elsewhere = !flags.store.is_empty()
        || flags.embedded_store.is_some()
        || environment(environment::STORES).is_some()
        || file.stores.is_some()
        || file.embedded_store.is_some();
    let joined = if elsewhere || purpose == Purpose::CleanUp { None } else { joined(&files)? };

    let name = host_name(&mut layers, flags, file.name, joined.as_ref())?;
    let found = layers.pick(flags.udp_port, "udp-port", file.udp_port);
    let udp_port = layers.number("udp_port", found, i64::from(DEFAULT_UDP_PORT), 1..=65_535)?;
    let vteps = vteps(&mut layers, flags, file.vtep, udp_port, purpose)?;

    let insecure = flags.insecure_store.then_some(true);
    let insecure = layers.pick(insecure, "insecure-store", file.insecure_store);
    let insecure = insecure.unwrap_or_else(|| Found::default(false));
    layers.note("insecure_store", &insecure, insecure.value);
    let embedded = layers.pick(flags.embedded_store.clone(), "embedded-store", file.embedded_store);
    let embedded = embedded.map(embedded_of).transpose()?;
    // In clear only where nobody else reaches it, or where that was said.
    let authority = embedded.as_ref().is_some_and(|listen| {
        !insecure.value && !listen.value.ip().is_loopback() && purpose == Purpose::Run
    });
    let own = match (&joined, authority) {
        (Some(joined), _) => Some(joined.source.clone()),
        (None, true) => Some(Source::State(files.authority())),
        (None, false) => None,
    };
    let tls = tls_of(&mut layers, flags, tls, own.map(|source| own_tls(&files, source)))?;
    let user = user_of(&mut layers, flags, user)?;
    let endpoints = stores(
        &mut layers,
        flags,
        file.stores,
        &Trust {
            insecure: insecure.value,
            tls: tls.is_some(),
            embedded: embedded.clone(),
            authority,
            joined: joined.clone(),
        },
        purpose,
    )?;
    let embedded = layers.note_option("embedded_store", embedded, SocketAddr::to_string);
    let prefix = layers.pick(flags.store_prefix.clone(), "store-prefix", file.store_prefix);
    let prefix = prefix.unwrap_or_else(|| match joined {
        Some(Found { value, source }) => Found { value: value.prefix, source },
        None => Found::default(String::new()),
    });
    let prefix = prefix.parse("store_prefix", store_prefix)?;
    layers.note("store_prefix", &prefix, prefix.value.as_str());
    let seconds = Duration::from_secs;
    let store = Store {
        endpoints,
        prefix: prefix.value,
        embedded,
        authority,
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
    let uplink = Uplink {
        ipv4: pool(&mut layers, "uplink.ipv4", uplink.ipv4, DEFAULT_UPLINK_V4, 30)?,
        ipv6: pool(&mut layers, "uplink.ipv6", uplink.ipv6, DEFAULT_UPLINK_V6, 126)?,
    };

    let socket = flags.socket.as_deref().map(path_text);
    let variable = environment::SOCKET;
    let socket = layers.pick_with(socket, "socket", variable, |text| text, file.socket);
    let socket = directory(&mut layers, "socket", socket, DEFAULT_SOCKET)?;
    let group = layers.pick(flags.socket_group.clone(), "socket-group", file.socket_group);
    let socket_group = layers.note_option("socket_group", group, Clone::clone);
    let metrics = layers.pick(flags.metrics.clone(), "metrics", file.metrics);
    let metrics = metrics.map(|found| found.parse("metrics", |text| address(&text))).transpose()?;
    let metrics = layers.note_option("metrics", metrics, SocketAddr::to_string);
    let docker = docker_of(&mut layers, flags, docker)?;
    let log = log_of(&mut layers, flags, log)?;

    let mut settings = layers.settings;
    settings.sort_by_key(|setting| KEYS.iter().position(|key| key.name == setting.key));
    let config = Config {
        name,
        vteps,
        udp_port,
        store,
        datapath,
        uplink,
        state_dir,
        socket,
        socket_group,
        metrics,
        docker,
        log,
    };
    Ok(Effective { config, settings })
}

/// The store that this host has joined.
fn joined(files: &Files) -> Result<Option<Found<Joined>>, Error> {
    let directory = files.directory().to_owned();
    let found = Joined::load(files).map_err(|source| Error::Joined { directory, source })?;
    Ok(found.map(|value| Found { value, source: Source::State(files.joined()) }))
}

/// The certificates in the state directory.
fn own_tls(files: &Files, source: Source) -> Found<Tls> {
    let identity = Some((files.host(), files.host()));
    Found { value: Tls { ca: files.ca(), identity, server_name: None }, source }
}

fn host_name(
    layers: &mut Layers<'_>,
    flags: &Flags,
    file: Option<Spanned<String>>,
    joined: Option<&Found<Joined>>,
) -> Result<String, Error> {
    let found = layers.pick(flags.name.clone(), "name", file).unwrap_or_else(|| {
        if let Some(Found { value, source }) = joined {
            return Found { value: value.name.clone(), source: source.clone() };
        }
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
    if let Some(joined) = joined.filter(|joined| joined.value.name != found.value) {
        let was = &joined.value.name;
        let next =
            format!("leave it away or write {was}; another name needs another `skybridge join`");
        let cause = format!("this host has joined its store as {was}, not as {}", found.value);
        return Err(wrong("name", &found.source, Invalid::new(cause, next)));
    }
    layers.note("name", &found, found.value.as_str());
    Ok(found.value)
}

/// Before the containers, behind what the machine itself needs to be reached.
const NICE: i64 = -6;

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
    let learned_age = layers.duration(
        "datapath.learned_age",
        datapath.learned_age,
        Duration::from_secs(300),
        Duration::from_secs(2)..=Duration::from_secs(86_400),
    )?;
    let nice = layers.pick(None, "", datapath.nice);
    let nice = layers.number("datapath.nice", nice, NICE, -20..=19)?;
    let disable = layers.pick(list(flags.disable.clone()), "disable", datapath.disable);
    let disable = disable.unwrap_or_else(|| Found::default(Vec::new()));
    let disable = disable.parse("datapath.disable", |names| {
        let names = names.iter().filter(|name| !name.is_empty());
        names.map(|name| capability(name)).collect::<Result<BTreeSet<_>, _>>()
    })?;
    let names = disable.value.iter().map(|c| Value::String(c.to_string())).collect();
    layers.note("datapath.disable", &disable, Value::Array(names));
    Ok(Datapath { workers, source_ports, learned_age, nice, disable: disable.value })
}

/// Link-local, and not where clouds have their metadata (169.254.169.254).
const DEFAULT_UPLINK_V4: &str = "169.254.64.0/18";
/// A unique local prefix (RFC 4193) of this program.
const DEFAULT_UPLINK_V6: &str = "fdb1:5c7e:d42::/64";

/// A prefix that holds two pairs of addresses at least.
fn pool<T>(
    layers: &mut Layers<'_>,
    key: &'static str,
    found: Option<Spanned<String>>,
    default: &str,
    longest: u8,
) -> Result<T, Error>
where
    T: std::str::FromStr + Copy + ToString + Into<ipnet::IpNet>,
{
    let found = layers.pick(None, "", found).unwrap_or_else(|| Found::default(default.to_owned()));
    let found = found.parse(key, |text| {
        let next = format!("write a prefix of this family, at most /{longest}, such as {default}");
        let invalid = |cause: &str| Invalid::new(format!("`{text}`: {cause}"), next.clone());
        let pool: T = text.parse().map_err(|_| invalid("no such prefix"))?;
        let net: ipnet::IpNet = pool.into();
        if net.prefix_len() > longest {
            return Err(invalid("it is too small"));
        }
        if net != net.trunc() {
            return Err(invalid("it has host bits set"));
        }
        Ok(pool)
    })?;
    layers.note(key, &found, found.value.to_string());
    Ok(found.value)
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

/// An absolute path, so that it means the same wherever the agent was started.
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

/// Where Docker looks for sockets of plugins (moby, pkg/plugins/discovery_unix.go).
const DOCKER_PLUGINS: &str = "/run/docker/plugins";

fn docker_of(
    layers: &mut Layers<'_>,
    flags: &Flags,
    docker: file::Docker,
) -> Result<Option<Docker>, Error> {
    let enabled = layers.pick(flags.docker.then_some(true), "docker", docker.enabled);
    let enabled = enabled.unwrap_or_else(|| Found::default(false));
    layers.note("docker.enabled", &enabled, enabled.value);
    let name = layers.pick(flags.docker_name.clone(), "docker-name", docker.name);
    let name = name.unwrap_or_else(|| Found::default("skybridge".to_owned()));
    let name = name.parse("docker.name", |text| {
        check::name(&text).map_err(|invalid| Invalid {
            cause: format!("`{text}`: {}", invalid.cause),
            next_step: invalid.next_step,
        })
    })?;
    layers.note("docker.name", &name, name.value.as_str());
    let scope = layers.pick(flags.docker_scope.clone(), "docker-scope", docker.scope);
    let scope = scope.unwrap_or_else(|| Found::default("local".to_owned()));
    let scope = scope.parse("docker.scope", |text| match text.as_str() {
        "global" => Ok(DockerScope::Global),
        "local" => Ok(DockerScope::Local),
        _ => Err(Invalid::new(format!("`{text}` is no scope"), "write local or global")),
    })?;
    layers.note("docker.scope", &scope, scope.value.name());
    let socket = flags.docker_socket.as_deref().map(path_text);
    let socket = layers.pick(socket, "docker-socket", docker.socket);
    let default = format!("{DOCKER_PLUGINS}/{}.sock", name.value);
    let socket = directory(layers, "docker.socket", socket, &default)?;
    let (name, scope) = (name.value, scope.value);
    Ok(enabled.value.then_some(Docker { name, scope, socket }))
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

//! The agent as a process: ordered start, wiring, ordered stop.
//!
//! # Theory of operation
//!
//! Start, each step ready before the next:
//!
//! 1. privileges given up but what is needed; state directory locked; identity read, this start
//!    counted
//! 2. underlay: interfaces of the VTEP addresses and their MTU
//! 3. embedded store, where this host serves it
//! 4. tables from the last snapshot; workers and their sockets
//! 5. attachments of the last run taken over: traffic flows from here on, store or not
//! 6. watch, session, control socket, metrics; what only the start needed is given up; `READY=1` to
//!    the service manager, once there are tables (`manager`)
//!
//! `SIGHUP` reads the configuration again and moves to another store connection (`reload`).
//!
//! Stop is the reverse and takes nothing down: namespaces, bridges, TAPs and the containers'
//! interfaces stay for the next start. `skybridge agent --cleanup` is what removes them.
//!
//! Threads: one tokio runtime for all control, one of its own for the embedded store (a slow disk
//! must not hold up the agent), and the workers, which know neither.

mod manager;
mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use membership::embedded::Tls;
use membership::key::HostName;
use membership::reconcile::Defaults;
use membership::record::{HostRecord, VtepRecord};
use membership::session::{Identity, Session};
use membership::store::{Credentials, Store, StoreConfig, TlsFiles};
use membership::view::{Journal, View};
use membership::watch::{Watch, WatchConfig};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::networks::Networks;
use crate::agent::state::StateDir;
use crate::agent::tables::Tables;
use crate::agent::tasks::{self, SessionState, SessionView};
use crate::agent::{
    Agent, JOURNAL, Parts, SNAPSHOT, api, claims, kernel, paths, republish, routers,
};
use crate::config::{self, Capability, Config, Effective, LogFormat};
use crate::control::server;
use crate::datapath::{self, Datapath};
use crate::driver::docker;
use crate::link::{self, NetNs, Owner};
use crate::port::tap::PortOffload;
use crate::store::certificates::{self, Keeper};
use crate::store::serve::EmbeddedStore;
use crate::sys::privilege;
use crate::telemetry::{logs, metrics};
use crate::underlay;
use crate::underlay::probe::UdpOffload;

/// How long the session may take to say goodbye to the store.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long one request to the store may take: somebody waits at a command for one or two of them.
const STORE_REQUEST: Duration = Duration::from_secs(3);
/// Control-plane threads: requests are few and short.
const CONTROL_THREADS: usize = 2;

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    what: String,
    /// Why.
    pub cause: Option<String>,
    /// What to do.
    pub next_step: Option<String>,
}

impl Failure {
    fn new(what: impl Into<String>, cause: impl ToString) -> Self {
        Self { what: what.into(), cause: Some(cause.to_string()), next_step: None }
    }

    fn next(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = Some(next_step.into());
        self
    }
}

/// Runs the agent until it is told to stop. `read` reads the configuration again.
///
/// # Errors
/// With cause and next step; what was started is stopped again.
pub fn run(effective: Effective, read: config::Read) -> Result<ExitCode, Failure> {
    let config = &effective.config;
    let format = match config.log.format {
        LogFormat::Json => logs::Format::Json,
        LogFormat::Text => logs::Format::Text,
    };
    logs::init(&config.log.level, format)
        .map_err(|err| Failure::new("the log cannot be written", err))?;
    raise_descriptor_limit();
    give_up_privileges();
    let state = StateDir::open(&config.state_dir).map_err(|err| {
        let next_step = err.next_step();
        Failure { next_step, ..Failure::new("the agent cannot start", err) }
    })?;
    let embedded = match config.store.embedded {
        Some(listen) => Some(EmbeddedStore::of_agent(config, listen).map_err(no_store)?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .on_thread_start(|| hold(privilege::RUNNING))
        .enable_all()
        .build()
        .map_err(|err| Failure::new("the agent cannot start its threads", err))?;
    let ended = runtime.block_on(serve(effective, read, state, embedded.as_ref()));
    drop(runtime);
    if let Some(embedded) = embedded {
        embedded.stop();
    }
    ended.map(|()| ExitCode::SUCCESS)
}

/// Removes everything that this host's agent ever made, and says what.
///
/// # Errors
/// When an agent still runs, or something could not be removed.
pub fn clean_up(config: &Config, mut say: impl FnMut(&str)) -> Result<ExitCode, Failure> {
    let state = StateDir::open(&config.state_dir)
        .map_err(|err| Failure::new("nothing was removed", err))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::new("nothing was removed", err))?;
    let owner = Owner::new(&config.state_dir);
    let report = runtime.block_on(link::cleanup::run(&owner));
    for removed in &report.removed {
        say(&format!("removed {removed}"));
    }
    let cleaned = runtime.block_on(kernel::clean_up(&config.state_dir));
    for removed in &cleaned.removed {
        say(&format!("removed {removed}"));
    }
    let notes = state.attachments().0;
    for note in &notes {
        // The records go with the next start, or by garbage collection.
        let mut left = note.clone();
        left.stage = crate::agent::state::Stage::Detaching;
        if let Err(err) = state.put(&left) {
            return Err(Failure::new("an attachment cannot be noted as gone", err));
        }
    }
    let failed: Vec<String> =
        report.failed.iter().map(ToString::to_string).chain(cleaned.failed).collect();
    if let Some(first) = failed.first() {
        return Err(Failure::new(format!("{} things could not be removed", failed.len()), first)
            .next("run it again once that is mended"));
    }
    let removed = report.removed.len() + cleaned.removed.len();
    say(&format!("{removed} things removed, {} attachments ended", notes.len()));
    Ok(ExitCode::SUCCESS)
}

/// Runs the embedded store by itself until it is told to stop.
///
/// # Errors
/// With cause and next step.
pub fn store(listen: SocketAddr, data: PathBuf, tls: Option<Tls>) -> Result<ExitCode, Failure> {
    logs::init("info", logs::Format::Text)
        .map_err(|err| Failure::new("the log cannot be written", err))?;
    give_up_privileges();
    let store = EmbeddedStore::alone(listen, data, tls).map_err(no_store)?;
    // Its files are its owner's and its port is bound.
    hold(privilege::NOTHING);
    let serving = format!("serving at {}", store.address);
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&serving)]);
    let ended = store.wait();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    store.stop();
    ended.map_err(|err| Failure::new("the embedded store cannot wait for signals", err))?;
    Ok(ExitCode::SUCCESS)
}

fn no_store(cause: String) -> Failure {
    Failure::new("the embedded store cannot start", cause)
}

async fn serve(
    effective: Effective,
    read: config::Read,
    state: StateDir,
    embedded: Option<&EmbeddedStore>,
) -> Result<(), Failure> {
    let cannot = |cause: String| Failure::new("the agent cannot start", cause);
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| cannot(e.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| cannot(e.to_string()))?;
    // From the first moment: without a handler the signal would end the process.
    let hangup = signal(SignalKind::hangup()).map_err(|e| cannot(e.to_string()))?;
    let config = Arc::new(effective.config.clone());
    let name = HostName::new(&config.name).map_err(|err| cannot(err.to_string()))?;
    let identity = Identity::start(state.path()).map_err(|err| {
        cannot(err.to_string()).next(format!(
            "is the disk of {} full or read-only? nothing is lost: make room, and start again",
            state.path().display()
        ))
    })?;
    let vteps = own_vteps(&config).await?;
    let underlay_mtu = vteps.iter().map(|vtep| vtep.mtu).min().unwrap_or(0);

    let snapshot = state.path().join(SNAPSHOT);
    let mut view = match View::load(&snapshot) {
        Ok(view) => view.unwrap_or_default(),
        Err(err) => {
            tracing::warn!(%err, "the snapshot of the tables cannot be used");
            View::default()
        }
    };
    if let Err(err) = Journal::replay(&state.path().join(JOURNAL), &mut view) {
        tracing::warn!(%err, "what changed since the snapshot of the tables cannot be read");
    }
    let known = view.known();
    let defaults = Defaults {
        udp_port: config.udp_port,
        vteps: vteps.clone(),
        hold_down: fdb::Millis(config.store.hold_down.as_millis() as u64),
        ..Defaults::default()
    };
    let learned_age = fdb::Millis(config.datapath.learned_age.as_millis() as u64);
    let tables = Tables::new(name.clone(), defaults, view, learned_age);
    let datapath = match start_datapath(&config, underlay_mtu, &tables) {
        Ok(datapath) => datapath,
        Err(err) => return Err(explain(err).await),
    };
    let store = Store::lazy(store_config(&config)?).map_err(|err| cannot(err.to_string()))?;
    let owner = Owner::new(state.path());
    let router_mac = routers::router_mac(identity.id.as_str());
    let workers = datapath.config().workers;
    let networks = Networks::new(owner, workers, port_offload(&config), router_mac);
    let wanted = WatchConfig { grace: republish::grace(&config), ..WatchConfig::default() };
    let watch = Watch::start(store.clone(), wanted, known);
    let host = host_record(&name, &identity, &vteps, underlay_mtu);
    let session = Arc::new(Session::spawn(store.clone(), host.clone(), config.store.lease));
    let (notes, bad) = state.attachments();
    let agent = Arc::new(Agent::new(Parts {
        name,
        id: identity.id.clone(),
        config: Arc::clone(&config),
        store,
        tables,
        datapath,
        networks,
        state,
        attachments: notes.into_iter().map(|note| (note.endpoint.clone(), note)).collect(),
        session: SessionView {
            state: SessionState::Starting,
            lease: None,
            ttl: config.store.lease,
            incarnation: identity.incarnation,
        },
        watch: watch.status(),
        embedded: embedded.map(|embedded| embedded.address.clone()),
        admission: embedded.and_then(|embedded| embedded.admission.clone()),
    }));
    for path in bad {
        agent.warn(
            "attachments",
            format!("the attachment file {} cannot be read and was set aside", path.display()),
            Some("detach and attach that sandbox again".to_owned()),
        );
    }
    if link::pins_outlive_us() == Some(false) {
        agent.warn(
            "pins",
            "this agent has a mount namespace of its own: when it ends, its networks end too, and \
             containers lose their interfaces"
                .to_owned(),
            Some(
                "start it in the host's mount namespace: no PrivateMounts or the like in its unit, \
                 `nsenter --net=...` instead of `ip netns exec`"
                    .to_owned(),
            ),
        );
    }
    let mut socket = server::bind(&config.socket, config.socket_group.as_deref())
        .map_err(|err| Failure::new(err.to_string(), "").without_cause().next(err.next_step()))?;
    let listener = socket.take_listener().ok_or_else(|| cannot("no listener".to_owned()))?;
    let mut docker_socket = docker_socket(&config)?;
    // The socket has its group and the workers their nice value.
    hold(privilege::RUNNING);

    if tasks::restore_attachments(&agent, true).await {
        tracing::info!("some attachments wait for the store to tell of their networks");
    }
    let mut ended = tokio::task::JoinSet::new();
    ended.spawn(tasks::follow(Arc::clone(&agent), watch));
    ended.spawn(tasks::look_after(Arc::clone(&agent)));
    ended.spawn(republish::run(Arc::clone(&agent)));
    ended.spawn(claims::run(Arc::clone(&agent)));
    ended.spawn(tasks::keep_snapshot(Arc::clone(&agent)));
    ended.spawn(crate::agent::reserve::keep(Arc::clone(&agent)));
    ended.spawn(crate::agent::garbage::keep(Arc::clone(&agent)));
    ended.spawn(crate::agent::underlay::follow(Arc::clone(&agent), Arc::clone(&session), host));
    ended.spawn(routers::keep(Arc::clone(&agent)));
    ended.spawn(paths::keep(Arc::clone(&agent)));
    ended.spawn(kernel::run(Arc::clone(&agent)));
    ended.spawn(reload::serve(Arc::clone(&agent), hangup, effective, read));
    let shown = embedded.and_then(EmbeddedStore::certificate);
    if let Some(keeper) = Keeper::of(&config, agent.admission.clone(), shown) {
        ended.spawn(certificates::keep(Arc::clone(&agent), keeper));
    }
    let refused = tokio::spawn(tasks::follow_session(Arc::clone(&agent), Arc::clone(&session)));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let docker_stopped = stopped.clone();
    let docker_until = async move {
        let mut stopped = docker_stopped;
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let until = async move {
        let mut stopped = stopped;
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let api = Arc::new(api::Control(Arc::clone(&agent)));
    let control = tokio::spawn(server::serve(listener, api, until));
    let mut docker_served = None;
    if let Some((docker, socket)) = config.docker.as_ref().zip(docker_socket.as_mut()) {
        let listener = socket.take_listener().ok_or_else(|| cannot("no listener".to_owned()))?;
        let driver = docker::Driver::new(Arc::clone(&agent), docker.scope);
        ended.spawn(Arc::clone(&driver).keep());
        docker_served = Some(tokio::spawn(serve_docker(listener, driver, docker_until)));
        tracing::info!(
            name = docker.name, scope = docker.scope.name(), socket = %docker.socket.display(),
            "Docker is served"
        );
    }
    if let Some(address) = config.metrics {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(|err| cannot(format!("metrics cannot be served on {address}: {err}")))?;
        ended.spawn(metrics::serve(listener, metrics_source(&agent)));
    }
    ended.spawn(manager::tell(Arc::clone(&agent)));
    ended.spawn(manager::beat(Arc::clone(&agent)));
    tracing::info!(
        host = %agent.name, id = %agent.id, socket = %config.socket.display(), "the agent runs"
    );

    let mut refused = refused;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        refusal = &mut refused => Err(match refusal {
            Ok(cause) => Failure::new("this host is not admitted to the cluster", cause),
            Err(err) => Failure::new("the session ended", err),
        }),
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    tracing::info!("the agent stops; containers keep their interfaces");
    let _ = stop.send(true);
    // What Docker has asked for goes on for a moment, and needs the session. It ends by itself.
    let docker_ends = async {
        if let Some(served) = docker_served {
            let _ = served.await;
        }
    };
    let _ = tokio::join!(tokio::time::timeout(GOODBYE, control), docker_ends);
    refused.abort();
    // One that has ended may have been asked for its outcome above, and must not be asked twice.
    if !refused.is_finished() {
        let _ = refused.await;
    }
    ended.shutdown().await;
    if let Ok(session) = Arc::try_unwrap(session) {
        let _ = tokio::time::timeout(GOODBYE, session.close()).await;
    }
    tasks::save_snapshot(&agent).await;
    result
}

/// The socket of Docker's plugin, where there is to be one.
fn docker_socket(config: &Config) -> Result<Option<server::Socket>, Failure> {
    let Some(docker) = &config.docker else { return Ok(None) };
    let bound = server::bind(&docker.socket, None).map_err(|err| {
        let next_step = err.next_step().replace("--socket", "--docker-socket");
        Failure::new(err.to_string(), "").without_cause().next(next_step)
    })?;
    Ok(Some(bound))
}

async fn serve_docker(
    listener: tokio::net::UnixListener,
    driver: Arc<docker::Driver>,
    until: impl Future<Output = ()> + Send + 'static,
) {
    if let Err(err) = docker::serve(listener, driver, until).await {
        tracing::error!(%err, "Docker is not served any more");
    }
}

impl Failure {
    fn without_cause(mut self) -> Self {
        self.cause = None;
        self
    }
}

async fn own_vteps(config: &Config) -> Result<Vec<VtepRecord>, Failure> {
    let failed = |err: link::Error| Failure::new("the VTEP address cannot be used", err);
    let namespace = NetNs::current().map_err(failed)?;
    let mut records = Vec::with_capacity(config.vteps.len());
    for vtep in &config.vteps {
        let interface = link::underlay::interface(&namespace, vtep.bind).await.map_err(failed)?;
        let mut record = VtepRecord::new(vtep.advertise, vtep.port).all_modes();
        let found = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
        record.mtu = vtep.mtu.unwrap_or(found);
        record.accept = vtep.accept.clone();
        tracing::info!(
            vtep = %vtep.advertise, port = vtep.port, interface = interface.name,
            mtu = record.mtu, "VTEP"
        );
        records.push(record);
    }
    Ok(records)
}

fn host_record(
    name: &HostName,
    identity: &Identity,
    vteps: &[VtepRecord],
    underlay_mtu: u16,
) -> HostRecord {
    let router_mac = routers::router_mac(identity.id.as_str());
    let mut host =
        HostRecord::new(name.clone(), identity.id.clone(), identity.incarnation, router_mac);
    host.boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default();
    host.underlay_mtu = underlay_mtu;
    host.software = concat!("skybridge ", env!("CARGO_PKG_VERSION")).to_owned();
    host.vteps = vteps.to_vec();
    host
}

/// Learned addresses are confirmed well before they age, and not more often than is of use.
fn confirm_age(learned_age: Duration) -> fdb::Millis {
    fdb::Millis((learned_age.as_millis() as u64 / 4).min(10_000))
}

fn start_datapath(
    config: &Config,
    underlay_mtu: u16,
    tables: &Tables,
) -> Result<Datapath, datapath::Error> {
    let off = |capability| config.datapath.disable.contains(&capability);
    let mut offload = UdpOffload::probe();
    if off(Capability::UdpGso) {
        offload.gso_segments = 1;
    }
    if off(Capability::UdpGro) {
        offload.gro = false;
    }
    let mut ports: Vec<u16> = config.vteps.iter().map(|vtep| vtep.port).collect();
    ports.push(config.udp_port);
    ports.sort_unstable();
    ports.dedup();
    let workers = if off(Capability::Multiqueue) { 1 } else { config.datapath.workers.max(1) };
    Datapath::start(
        datapath::Config {
            workers,
            addresses: config.vteps.iter().map(|vtep| vtep.bind).collect(),
            advertised: config.vteps.iter().map(|vtep| vtep.advertise).collect(),
            ports,
            fan: config.datapath.source_ports,
            offload,
            coalesce: !off(Capability::Coalesce),
            nice: config.datapath.nice,
            underlay_mtu,
            confirm: confirm_age(config.datapath.learned_age),
            epoch: tables.epoch(),
        },
        tables.reader(),
    )
}

/// Adds to an error of the datapath what only netlink knows: which vxlan device has the port.
async fn explain(error: datapath::Error) -> Failure {
    let failure = Failure::new("the datapath cannot start", &error);
    // A kernel tunnel's socket looks like one whose owner cannot be seen.
    let datapath::Error::Underlay(underlay::Error::InUse { address, .. }) = error else {
        return failure;
    };
    let Ok(namespace) = NetNs::current() else { return failure };
    let Ok(netlink) = link::Netlink::open(&namespace) else { return failure };
    let devices = netlink.vxlan_devices().await.unwrap_or_default();
    let names: Vec<String> = devices
        .into_iter()
        .filter(|(_, port)| *port == address.port())
        .map(|(name, _)| name)
        .collect();
    if names.is_empty() {
        return failure;
    }
    failure.next(format!(
        "the port is held by the vxlan device {}: delete it (`ip link del`), or give this agent \
         another port with --udp-port, on every host the same",
        names.join(", ")
    ))
}

fn port_offload(config: &Config) -> PortOffload {
    let on = |capability| !config.datapath.disable.contains(&capability);
    PortOffload {
        csum: on(Capability::Csum),
        tso: on(Capability::Csum) && on(Capability::Tso),
        uso: on(Capability::Csum) && on(Capability::Uso),
    }
}

fn store_config(config: &Config) -> Result<StoreConfig, Failure> {
    let mut wanted = StoreConfig::new(config.store.endpoints.iter().cloned());
    wanted.prefix = config.store.prefix.clone();
    wanted.request_timeout = STORE_REQUEST;
    wanted.tls = config.store.tls.as_ref().map(|tls| TlsFiles {
        ca: tls.ca.clone(),
        cert: tls.identity.as_ref().map(|(cert, _)| cert.clone()),
        key: tls.identity.as_ref().map(|(_, key)| key.clone()),
        server_name: tls.server_name.clone(),
    });
    if let Some(user) = &config.store.user {
        let text = std::fs::read_to_string(&user.password_file).map_err(|err| {
            Failure::new("the password of the store cannot be read", err)
                .next(format!("check {}", user.password_file.display()))
        })?;
        let password = text.lines().next().unwrap_or_default().to_owned();
        wanted.user = Some(Credentials { name: user.name.clone(), password });
    }
    Ok(wanted)
}

fn metrics_source(agent: &Arc<Agent>) -> metrics::Source {
    let agent = Arc::clone(agent);
    Arc::new(move || crate::agent::figures::figures(&agent))
}

/// From here on nothing can be gained that the agent does not need, by this process or by what it
/// executes. It goes on where that is refused: a container may have taken away more than we give up.
fn give_up_privileges() {
    match privilege::begin() {
        Ok(stay) if stay.is_empty() => {}
        Ok(stay) => {
            let stay: Vec<String> = stay.iter().map(ToString::to_string).collect();
            tracing::debug!(
                capabilities = stay.join(" "),
                "the bounding set keeps more than is needed; without CAP_SETPCAP it cannot be cut"
            );
        }
        Err(err) => tracing::warn!(%err, "privileges that are not needed cannot be given up"),
    }
}

/// Cuts the calling thread's capabilities.
fn hold(wanted: &[caps::Capability]) {
    if let Err(err) = privilege::hold(wanted) {
        tracing::warn!(%err, "a thread keeps capabilities that it does not need");
    }
}

/// Each worker has dozens of sockets and each network a queue per worker.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(err) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%err, "the limit of open files cannot be raised");
    }
}

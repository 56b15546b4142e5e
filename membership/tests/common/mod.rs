//! Stores to test against: the embedded one and etcd 3.4 to 3.7.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use etcd_servers::Version;
use membership::embedded;
use membership::store::{Store, StoreConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Every wait for a condition ends here.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Embedded,
    Etcd(Version),
}

/// Defines each function as a test against each store.
#[macro_export]
macro_rules! on_each_store {
    ($($name:ident),* $(,)?) => {
        mod embedded { $( #[test] fn $name() {
            $crate::common::run($crate::common::Backend::Embedded, super::$name);
        } )* }
        $crate::on_etcd!(etcd_3_4 V3_4 $($name)*);
        $crate::on_etcd!(etcd_3_5 V3_5 $($name)*);
        $crate::on_etcd!(etcd_3_6 V3_6 $($name)*);
        $crate::on_etcd!(etcd_3_7 V3_7 $($name)*);
    };
}

/// Defines each function as a test against one version of etcd.
#[macro_export]
macro_rules! on_etcd {
    ($module:ident $version:ident $($name:ident)*) => {
        mod $module { $( #[test] fn $name() {
            let version = etcd_servers::Version::$version;
            $crate::common::run($crate::common::Backend::Etcd(version), super::$name);
        } )* }
    };
}

mod port;

pub(crate) use port::free_port;

/// An etcd process. Killed when dropped.
pub struct Etcd {
    version: Version,
    directory: TempDir,
    port: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    pub fn start(version: Version) -> Self {
        let (port, peer) = (free_port(), free_port());
        let directory = tempfile::tempdir().unwrap();
        let mut etcd = Self { version, directory, port, peer, child: None };
        etcd.spawn();
        etcd
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn spawn(&mut self) {
        let path = self.version.server().unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let child = Command::new(path)
            .args(["--name", "t", "--log-level", "error", "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(self.directory.path())
            .args(["--listen-client-urls", &self.url()])
            .args(["--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("t={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The etcd that tests of one binary share while several run; the last one ends it.
static SHARED: Mutex<BTreeMap<Version, Weak<Etcd>>> = Mutex::new(BTreeMap::new());

fn shared(version: Version) -> Arc<Etcd> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.get(&version).and_then(Weak::upgrade).unwrap_or_else(|| {
        let etcd = Arc::new(Etcd::start(version));
        shared.insert(version, Arc::downgrade(&etcd));
        etcd
    })
}

struct Embedded {
    server: Option<embedded::Server>,
    config: embedded::Config,
    directory: TempDir,
}

enum Server {
    Alone(Etcd),
    Embedded(Box<Embedded>),
    Shared(Arc<Etcd>),
}

/// A store to test against, with a prefix of its own.
pub struct World {
    server: Server,
    url: String,
    prefix: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl World {
    async fn new(backend: Backend, alone: bool) -> Self {
        let (server, url) = match backend {
            Backend::Etcd(version) if alone => {
                let etcd = Etcd::start(version);
                let url = etcd.url();
                (Server::Alone(etcd), url)
            }
            Backend::Etcd(version) => {
                let etcd = shared(version);
                let url = etcd.url();
                (Server::Shared(etcd), url)
            }
            Backend::Embedded => {
                let directory = tempfile::tempdir().unwrap();
                let listen = format!("127.0.0.1:{}", free_port()).parse().unwrap();
                let config = embedded::Config::new(listen, directory.path());
                let server = embedded::Server::start(config.clone()).await.unwrap();
                let url = format!("http://{listen}");
                let server = Some(server);
                let embedded = Embedded { server, config, directory };
                (Server::Embedded(Box::new(embedded)), url)
            }
        };
        Self::of(server, url).await
    }

    async fn of(server: Server, url: String) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("/test-{}-{count}", std::process::id());
        let world = Self { server, url, prefix };
        world.answers().await;
        world
    }

    /// A server that no other test uses, for tests that end or compact it.
    pub async fn alone(backend: Backend) -> Self {
        Self::new(backend, true).await
    }

    pub fn config(&self) -> StoreConfig {
        let mut config = StoreConfig::new([self.url.clone()]);
        config.prefix.clone_from(&self.prefix);
        config
    }

    /// A client with a connection of its own, as another host has.
    pub fn store(&self) -> Store {
        Store::lazy(self.config()).unwrap()
    }

    async fn answers(&self) {
        let store = self.store();
        until("the store answers", async || store.status().await.is_ok()).await;
    }

    /// The library's client, to put things that our own would not.
    pub async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([&self.url], None).await.unwrap()
    }

    /// Ends the server, as hard as it can be.
    pub async fn stop(&mut self) {
        match &mut self.server {
            Server::Alone(etcd) => etcd.kill(),
            Server::Embedded(embedded) => {
                if let Some(server) = embedded.server.take() {
                    server.shutdown().await;
                }
            }
            Server::Shared(_) => panic!("a shared server is not stopped"),
        }
    }

    fn data(&self) -> &Path {
        match &self.server {
            Server::Alone(etcd) => etcd.directory.path(),
            Server::Embedded(embedded) => embedded.directory.path(),
            Server::Shared(_) => panic!("a shared server is not restored"),
        }
    }

    /// A copy of the data of the server, which is away while it is made.
    pub async fn backup(&mut self) -> TempDir {
        self.stop().await;
        let copy = tempfile::tempdir().unwrap();
        copy_tree(self.data(), copy.path());
        self.restart().await;
        copy
    }

    /// Puts a copy in the place of the data of a server that was stopped.
    pub fn restore(&self, copy: &TempDir) {
        for entry in std::fs::read_dir(self.data()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
        copy_tree(copy.path(), self.data());
    }

    /// Starts the server again on its data.
    pub async fn restart(&mut self) {
        match &mut self.server {
            Server::Alone(etcd) => etcd.spawn(),
            Server::Embedded(embedded) => {
                let config = embedded.config.clone();
                embedded.server = Some(embedded::Server::start(config).await.unwrap());
            }
            Server::Shared(_) => panic!("a shared server is not restarted"),
        }
        self.answers().await;
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs one test body in a runtime of its own.
pub fn run<F: Future<Output = ()>>(backend: Backend, body: impl FnOnce(Backend, World) -> F) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new(backend, false).await;
        body(backend, world).await;
    });
}

/// Waits until `condition` holds; panics with `what` at the deadline.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a [`Door`] does with connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests pass, answers are lost.
    Deaf,
    /// Requests are held back, and pass a while after the state ends, each connection's at another
    /// moment: the store does then what nobody waits for any more.
    Late,
    /// Everything passes.
    Open,
    /// Connections are cut, new ones too.
    Shut,
    /// Connections stay and nothing passes.
    Stalled,
}

/// A TCP relay before the store.
pub struct Door {
    port: u16,
    /// The state, and how often the door was shut.
    state: watch::Sender<(State, u64)>,
    connections: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Door {
    pub async fn open(world: &World) -> Self {
        let target = world.url.trim_start_matches("http://").to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, receiver) = watch::channel((State::Open, 0));
        let connections = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, state, count) = (target.clone(), receiver.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    count.fetch_add(1, Ordering::Relaxed);
                    relay(client, target, state).await;
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, state, connections, task }
    }

    /// How many connections are open now.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, state: State) {
        self.state.send_modify(|(now, shut)| {
            *shut += u64::from(state == State::Shut);
            *now = state;
        });
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, target: String, mut state: watch::Receiver<(State, u64)>) {
    let moving = |(state, _): &(State, u64)| *state != State::Stalled;
    let Ok((now, born)) = state.wait_for(moving).await.map(|state| *state) else { return };
    if now == State::Shut {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut client_in, mut client_out) = client.into_split();
    let (mut server_in, mut server_out) = server.into_split();
    let hears = state.clone();
    let down = async {
        let mut bytes = [0; 16 * 1024];
        while let Ok(len @ 1..) = server_in.read(&mut bytes).await {
            if hears.borrow().0 != State::Deaf && client_out.write_all(&bytes[..len]).await.is_err()
            {
                return;
            }
        }
    };
    let mut late = state.clone();
    let up = async {
        let mut bytes = [0; 16 * 1024];
        while let Ok(len @ 1..) = client_in.read(&mut bytes).await {
            if late.borrow().0 == State::Late {
                let _ = late.wait_for(|(state, _)| *state != State::Late).await;
                sleep(Duration::from_millis(rand::random_range(0..250))).await;
            }
            if server_out.write_all(&bytes[..len]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = state.wait_for(|(now, shut)| *now == State::Stalled || *shut != born) => {}
    }
    // A stalled connection ends without a word when traffic flows again.
    let _ = state.wait_for(moving).await;
}

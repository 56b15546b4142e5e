//! Both stores, and the transcript in which their answers are compared.

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, WatchResponse, WatchStream};
use membership::embedded::{Config, Server};
use tempfile::TempDir;

/// Longer than anything here takes; a test that hangs fails by this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How often an idle watch hears the revision, in both stores.
const PROGRESS: Duration = Duration::from_millis(300);

pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A running store. It ends with this value.
pub(crate) struct Backend {
    pub(crate) endpoint: String,
    _running: Running,
    _dir: TempDir,
}

enum Running {
    Embedded(#[expect(dead_code, reason = "kept for its drop")] Server),
    Etcd(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Etcd(child) = self {
            // It has gone already when this fails.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Backend {
    pub(crate) async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(LOOPBACK, dir.path());
        config.watch_progress = PROGRESS;
        let server = Server::start(config).await.unwrap();
        let endpoint = format!("http://{}", server.local_addr());
        Self { endpoint, _running: Running::Embedded(server), _dir: dir }
    }

    /// A real etcd that does not wait for the disk, for speed.
    pub(crate) async fn etcd() -> Self {
        Self::etcd_with(&["--unsafe-no-fsync"]).await
    }

    /// A real etcd as it is in earnest.
    pub(crate) async fn durable_etcd() -> Self {
        Self::etcd_with(&[]).await
    }

    async fn etcd_with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (free_url(), free_url());
        let child = Command::new(etcd_bin_vendored_linux_amd64::etcd_bin_path().unwrap())
            .args(["--name", "one", "--log-level", "panic"])
            .args(arguments)
            .arg(format!("--data-dir={}", dir.path().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=one={peer}"))
            .arg(format!("--watch-progress-notify-interval={}ms", PROGRESS.as_millis()))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let backend = Self { endpoint: client, _running: Running::Etcd(child), _dir: dir };
        // It answers once it has elected itself.
        let ready = async {
            loop {
                let asked = async { backend.client().await?.get("ready", None).await };
                if asked.await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, ready).await.expect("etcd has not become ready");
        backend
    }

    pub(crate) async fn client(&self) -> Result<Client, Error> {
        let options = ConnectOptions::new().with_timeout(DEADLINE);
        Client::connect([&self.endpoint], Some(options)).await
    }
}

fn free_url() -> String {
    format!("http://127.0.0.1:{}", crate::port::free_port())
}

/// What a store answered, in a form that is the same for equal behaviour.
#[derive(Default)]
pub(crate) struct Transcript(Vec<String>);

impl Transcript {
    /// Notes the answer to a request.
    pub(crate) fn note<T: Debug>(&mut self, what: &str, answer: Result<T, Error>) {
        let text = match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(Error::GRpcStatus(status)) => {
                format!("refused: {:?} {:?}", status.code(), status.message())
            }
            Err(error) => format!("failed: {error:?}"),
        };
        self.say(what, &normal(&text));
    }

    /// Notes a line as it is.
    pub(crate) fn say(&mut self, what: &str, text: &str) {
        self.0.push(format!("{what}: {text}"));
    }
}

/// Replaces what differs between any two clusters: their ids and term, where they are given.
fn normal(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((place, name)) = ["cluster_id: ", "member_id: ", "raft_term: "]
        .into_iter()
        .filter_map(|name| rest.find(name).map(|place| (place + name.len(), name)))
        .min()
    {
        let (before, after) = rest.split_at(place);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        out.push_str(before);
        out.push_str(if &after[..digits] == "0" { "0" } else { "some" });
        rest = &after[digits..];
        let _ = name;
    }
    out + rest
}

/// Runs `scenario` on both stores and compares what they said.
pub(crate) async fn compare(scenario: impl AsyncFn(&mut Client, &mut Transcript)) {
    let run = async |backend: Backend| {
        let mut transcript = Transcript::default();
        let mut client = backend.client().await.unwrap();
        tokio::time::timeout(DEADLINE, scenario(&mut client, &mut transcript))
            .await
            .unwrap_or_else(|_| transcript_stuck());
        transcript.0
    };
    let (etcd, embedded) = tokio::join!(async { run(Backend::etcd().await).await }, async {
        run(Backend::embedded().await).await
    });
    for (place, (etcd, embedded)) in etcd.iter().zip(&embedded).enumerate() {
        assert!(etcd == embedded, "line {place} differs\n    etcd: {etcd}\nembedded: {embedded}");
    }
    assert_eq!(etcd.len(), embedded.len());
    assert!(!etcd.is_empty(), "the scenario noted nothing");
}

fn transcript_stuck() {
    panic!("the scenario did not end within {DEADLINE:?}");
}

/// The next message of a watch.
pub(crate) async fn message(stream: &mut WatchStream) -> WatchResponse {
    tokio::time::timeout(DEADLINE, stream.message())
        .await
        .expect("the watch says nothing")
        .unwrap()
        .expect("the watch has ended")
}

/// The next `count` events of all watches of a stream, each with its watch. How a store spreads
/// revisions over messages is its own affair; their order is not.
pub(crate) async fn events(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut events = Vec::new();
    while events.len() < count {
        let response = message(stream).await;
        assert!(!response.canceled(), "{response:?}");
        for event in response.events() {
            let header = response.header().unwrap().revision();
            let kv = event.kv().unwrap();
            assert!(header >= kv.mod_revision(), "header {header} below {kv:?}");
            events.push(format!("{} {event:?}", response.watch_id()));
        }
    }
    events.sort();
    assert_eq!(events.len(), count, "{events:?}");
    events
}

//! Both stores, and the transcript in which their answers are compared.

use std::fmt::Debug;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, WatchResponse, WatchStream};
use etcd_servers::Version;
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
    pub(crate) async fn etcd(version: Version) -> Self {
        Self::etcd_with(version, &["--unsafe-no-fsync"]).await
    }

    /// A real etcd as it is in earnest.
    pub(crate) async fn durable_etcd() -> Self {
        Self::etcd_with(Version::NEWEST, &[]).await
    }

    async fn etcd_with(version: Version, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (free_url(), free_url());
        let experimental = match version {
            Version::V3_4 | Version::V3_5 => "experimental-watch-progress-notify-interval",
            Version::V3_6 | Version::V3_7 => "watch-progress-notify-interval",
        };
        let child = Command::new(version.server().unwrap())
            .args(["--name", "one", "--log-level", "panic"])
            .args(arguments)
            .arg(format!("--data-dir={}", dir.path().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=one={peer}"))
            .arg(format!("--{experimental}={}ms", PROGRESS.as_millis()))
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).unwrap())
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
        if tokio::time::timeout(DEADLINE, ready).await.is_err() {
            let log = std::fs::read_to_string(backend._dir.path().join("log")).unwrap();
            panic!("etcd {version} has not become ready:\n{log}");
        }
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
pub(crate) struct Transcript(Vec<Line>);

#[derive(Debug, PartialEq, Eq)]
struct Line {
    what: String,
    answer: String,
}

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
        self.0.push(Line { what: what.to_owned(), answer: text.to_owned() });
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

/// Where older versions of etcd are known to answer otherwise than the newest. What the embedded
/// store answers is what the newest does, without exception.
struct Difference {
    versions: &'static [Version],
    /// Part of what the newest answers.
    newest: &'static str,
    /// Part of what these versions answer in its place.
    older: &'static [&'static str],
}

const DIFFERENCES: &[Difference] = &[
    // The method is new in 3.7; our client does not use it.
    Difference {
        versions: &[Version::V3_4, Version::V3_5, Version::V3_6],
        newest: "",
        older: &["refused: Unimplemented \"unknown method RangeStream"],
    },
    // A list of alarms has no header in 3.4.
    Difference {
        versions: &[Version::V3_4],
        newest: "AlarmResponse { header: Some(",
        older: &["AlarmResponse { header: None, alarms: [] }"],
    },
    // Of two faults in one transaction, these name that of the put; it is refused either way.
    Difference {
        versions: &[Version::V3_4, Version::V3_5],
        newest: "refused: OutOfRange \"etcdserver: mvcc: required revision is a future revision\"",
        older: &[
            "refused: InvalidArgument \"etcdserver: key not found\"",
            "refused: NotFound \"etcdserver: requested lease not found\"",
        ],
    },
];

/// Whether `version` may answer `found` where the newest answers `newest`.
fn is_known(version: Version, newest: &Line, found: &Line) -> bool {
    newest.what == found.what
        && DIFFERENCES.iter().any(|difference| {
            difference.versions.contains(&version)
                && newest.answer.contains(difference.newest)
                && difference.older.iter().any(|part| found.answer.contains(part))
        })
}

/// Runs `scenario` on the embedded store and on each version of etcd, and compares what they say
/// with what the newest says.
pub(crate) async fn compare(scenario: impl AsyncFn(&mut Client, &mut Transcript)) {
    let run = async |version: Option<Version>| {
        let backend = match version {
            None => Backend::embedded().await,
            Some(version) => Backend::etcd(version).await,
        };
        let mut transcript = Transcript::default();
        let mut client = backend.client().await.unwrap();
        let scenario = scenario(&mut client, &mut transcript);
        if tokio::time::timeout(DEADLINE, scenario).await.is_err() {
            panic!("the scenario did not end within {DEADLINE:?} on {}", name(version));
        }
        (version, transcript.0)
    };
    let (newest, embedded, v3_4, v3_5, v3_6) = tokio::join!(
        run(Some(Version::NEWEST)),
        run(None),
        run(Some(Version::V3_4)),
        run(Some(Version::V3_5)),
        run(Some(Version::V3_6)),
    );
    let (_, newest) = newest;
    assert!(!newest.is_empty(), "the scenario noted nothing");
    for (version, found) in [embedded, v3_4, v3_5, v3_6] {
        let name = name(version);
        for (place, (newest, found)) in newest.iter().zip(&found).enumerate() {
            let same =
                newest == found || version.is_some_and(|version| is_known(version, newest, found));
            assert!(
                same,
                "line {place} differs, {}\netcd {}: {}\n{name}: {}",
                newest.what,
                Version::NEWEST,
                newest.answer,
                found.answer
            );
        }
        assert_eq!(newest.len(), found.len(), "{name}");
    }
}

fn name(version: Option<Version>) -> String {
    version.map_or_else(|| "the embedded store".to_owned(), |version| format!("etcd {version}"))
}

/// Runs `scenario`, which makes its own clients, on the embedded store and on the newest etcd.
pub(crate) async fn compare_backends(scenario: impl AsyncFn(&Backend, &mut Transcript)) {
    let run = async |backend: Backend| {
        let mut transcript = Transcript::default();
        let ended = tokio::time::timeout(DEADLINE, scenario(&backend, &mut transcript)).await;
        assert!(ended.is_ok(), "the scenario did not end within {DEADLINE:?}");
        transcript.0
    };
    let (etcd, embedded) =
        tokio::join!(async { run(Backend::etcd(Version::NEWEST).await).await }, async {
            run(Backend::embedded().await).await
        });
    let differing: Vec<String> = etcd
        .iter()
        .zip(&embedded)
        .filter(|(etcd, embedded)| etcd != embedded)
        .map(|(etcd, embedded)| {
            let (what, etcd, embedded) = (&etcd.what, &etcd.answer, &embedded.answer);
            format!("{what} differs\n    etcd: {etcd}\nembedded: {embedded}")
        })
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert_eq!(etcd.len(), embedded.len());
    assert!(!etcd.is_empty(), "the scenario noted nothing");
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

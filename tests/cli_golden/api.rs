//! Server and client over a real socket.

use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use skybridge::control::Client;
use skybridge::control::client;
use skybridge::control::server::{self, BindError};
use skybridge::control::types::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::{Fake, Slow};
use crate::samples;

/// A served fake.
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    attached: Arc<AtomicUsize>,
    slow: Arc<Slow>,
    bound: server::Socket,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
    _directory: TempDir,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/agent.sock");
        let mut bound = server::bind(&socket, None).unwrap();
        let fake = Fake::default();
        let (attached, slow) = (Arc::clone(&fake.attached), Arc::clone(&fake.slow));
        let (stop, stopped) = oneshot::channel();
        let listener = bound.take_listener().unwrap();
        let stopped = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server::serve(listener, Arc::new(fake), stopped));
        Self { socket, attached, slow, bound, stop, task, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Sends bytes, closes that direction when `close` says so, and gives what comes back.
    async fn raw(&self, bytes: &[u8], close: bool) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        // The server may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        if close {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn post(&self, path: &str, body: &str) -> (String, Error) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = self.raw(request.as_bytes(), false).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
    }
}

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

#[test]
fn every_operation_goes_there_and_back() {
    run(async {
        let agent = Agent::start();
        let client = agent.client();
        assert_eq!(client.status().await.unwrap(), samples::status());
        assert_eq!(client.hosts().await.unwrap(), samples::hosts());
        assert_eq!(client.networks().await.unwrap(), samples::networks());
        assert_eq!(client.network("blue").await.unwrap(), samples::network());
        let created = client.create_network(&samples::create_network()).await.unwrap();
        assert_eq!(created, samples::network());
        let updated = client.update_network("blue", &samples::update_network()).await.unwrap();
        assert_eq!(updated, samples::network());
        client.remove_network("blue").await.unwrap();
        assert_eq!(client.vteps("blue").await.unwrap(), samples::vteps());
        let added = client.add_vtep("blue", &samples::vtep_add()).await.unwrap();
        assert_eq!(added, samples::vteps()[1]);
        client.remove_vtep("blue", [192, 0, 2, 9].into()).await.unwrap();
        assert_eq!(client.exported("blue").await.unwrap(), samples::exported());
        assert_eq!(client.kernel_links("blue").await.unwrap(), samples::kernel_links());
        let linked = client.link_kernel("blue", &samples::link_kernel()).await.unwrap();
        assert_eq!(linked, samples::kernel_links());
        assert_eq!(client.namespace("blue").await.unwrap(), samples::namespace());
        assert_eq!(client.attach(&samples::attach()).await.unwrap(), samples::attachment());
        assert_eq!(client.detach(&samples::detach()).await.unwrap(), samples::detached());
        assert_eq!(client.endpoints(None).await.unwrap(), samples::endpoints());
        assert_eq!(client.endpoints(Some("blue")).await.unwrap(), samples::endpoints());
        assert_eq!(client.fdb(None).await.unwrap(), samples::fdb());
        assert_eq!(client.neighbors(Some("blue")).await.unwrap(), samples::neighbors());
        assert_eq!(client.routes(Some("blue")).await.unwrap(), samples::routes());
        assert_eq!(client.drops().await.unwrap(), samples::drops());
        let wanted = CollectGarbage { apply: true, host: Some("h3".to_owned()) };
        assert_eq!(client.collect_garbage(&wanted).await.unwrap(), samples::garbage(true));
        assert_eq!(client.stats().await.unwrap(), samples::stats());
        assert_eq!(client.store().await.unwrap(), samples::store_access());
        let token = client.make_token(&samples::make_token()).await.unwrap();
        assert_eq!(token, samples::token());
    });
}

#[test]
fn errors_arrive_as_the_agent_made_them() {
    run(async {
        let agent = Agent::start();
        let error = agent.client().network("red").await.unwrap_err();
        let client::Error::Agent(error) = error else { panic!("{error}") };
        assert!(error.is(ErrorCode::NotFound), "{error}");
        assert_eq!(error.next_step.unwrap(), "`skybridge network ls` shows which there are");
        let taken = CreateNetwork { name: "red".to_owned(), ..samples::create_network() };
        let error = agent.client().create_network(&taken).await.unwrap_err();
        let client::Error::Agent(error) = error else { panic!("{error}") };
        assert_eq!((error.http_status(), error.code.as_str()), (409, "conflict"));
        let error = agent.client().network("..").await.unwrap_err();
        let client::Error::Agent(error) = error else { panic!("{error}") };
        assert!(error.is(ErrorCode::BadRequest), "{error}");
    });
}

#[test]
fn a_panic_is_one_failed_operation() {
    run(async {
        let agent = Agent::start();
        let error = agent.client().network("panic").await.unwrap_err();
        let client::Error::Agent(error) = error else { panic!("{error}") };
        assert!(error.is(ErrorCode::Internal), "{error}");
        agent.client().status().await.unwrap();
    });
}

#[test]
fn a_client_that_goes_away_cancels_nothing() {
    run(async {
        let agent = Agent::start();
        let slow = Attach { netns: "slow".to_owned(), ..samples::attach() };
        let impatient = agent.client().timeout(Duration::from_millis(50));
        let error = impatient.attach(&slow).await.unwrap_err();
        assert!(matches!(error, client::Error::Timeout { .. }), "{error}");
        // That one may have given up before its request was sent; this one goes when it has come.
        let client = agent.client();
        tokio::select! {
            answer = client.attach(&slow) => panic!("nobody has let it pass: {answer:?}"),
            () = agent.slow.come.notified() => {}
        }
        assert_eq!(agent.attached.load(Ordering::SeqCst), 0);
        agent.slow.gate.add_permits(1);
        let deadline = Instant::now() + Duration::from_secs(5);
        while agent.attached.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "the attachment was cancelled");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn bodies_are_checked_and_limited() {
    run(async {
        let agent = Agent::start();
        let cases = [
            ("", "400", "bad_request"),
            ("{", "400", "bad_request"),
            ("[1,2]", "400", "bad_request"),
            ("\u{0}\u{1}", "400", "bad_request"),
            (r#"{"network":"blue","netns":"c1","extra":1}"#, "400", "bad_request"),
            (r#"{"network":"a/b","netns":"c1"}"#, "400", "bad_request"),
            (r#"{"network":"blue","netns":"relative/path"}"#, "400", "bad_request"),
            (r#"{"network":"blue","netns":"c1","mac":"ff:ff:ff:ff:ff:ff"}"#, "400", "bad_request"),
        ];
        for (body, status, code) in cases {
            let (line, error) = agent.post("/v1/attach", body).await;
            assert!(line.contains(status) && error.code == code, "{body}: {line} {error:?}");
        }
        assert_eq!(agent.attached.load(Ordering::SeqCst), 0);
        let large = format!(r#"{{"network":"{}"}}"#, "x".repeat(server::BODY_MAX));
        let (line, error) = agent.post("/v1/attach", &large).await;
        assert!(line.contains("413") && error.is(ErrorCode::TooLarge), "{line} {error:?}");
        let (line, error) = agent.post("/v1/nothing", "{}").await;
        assert!(line.contains("501") && error.is(ErrorCode::Unsupported), "{line} {error:?}");
        let (line, error) = agent.post("/v1/status", "{}").await;
        assert!(line.contains("405") && error.is(ErrorCode::MethodNotAllowed), "{line} {error:?}");
        let answer = agent.raw(b"GET /v1/fdb?netwrok=blue HTTP/1.0\r\n\r\n", false).await;
        assert!(answer.contains("400") && answer.contains("bad_request"), "{answer}");
        let answer = agent.raw(b"GET /v1/networks/%ff HTTP/1.0\r\n\r\n", false).await;
        assert!(answer.contains("400") && answer.contains("bad_request"), "{answer}");
    });
}

#[test]
fn random_bytes_harm_nobody() {
    run(async {
        let agent = Agent::start();
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let heads: [&[u8]; 4] = [
            b"",
            b"POST /v1/attach HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n",
            b"GET /v1/",
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        for round in 0..200 {
            let mut bytes = heads[round % heads.len()].to_vec();
            let len = rng.random_range(0..600);
            bytes.extend((0..len).map(|_| rng.random::<u8>()));
            let _ = agent.raw(&bytes, true).await;
        }
        agent.client().status().await.unwrap();
        assert!(!agent.task.is_finished());
    });
}

#[test]
fn the_server_ends_when_told_and_takes_its_socket_with_it() {
    run(async {
        let agent = Agent::start();
        // A client that says nothing must not hold the agent up for ever.
        let silent = UnixStream::connect(&agent.socket).await.unwrap();
        agent.client().status().await.unwrap();
        let started = Instant::now();
        agent.stop.send(()).unwrap();
        agent.task.await.unwrap().unwrap();
        assert!(started.elapsed() < server::STOP_GRACE + Duration::from_secs(2));
        assert!(agent.socket.exists());
        drop(agent.bound);
        assert!(!agent.socket.exists());
        drop(silent);
    });
}

#[test]
fn the_socket_is_for_owner_and_group() {
    run(async {
        let agent = Agent::start();
        let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
    });
}

#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    run(async {
        let agent = Agent::start();
        let error = server::bind(&agent.socket, None).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(error.next_step().contains("--socket"));
        agent.client().status().await.unwrap();

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = server::bind(&path, None).unwrap();
        // Another one that replaced ours is not ours to remove.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody's").unwrap();
        drop(bound);
        assert!(path.exists());
        let error = server::bind(&path, None).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's");
    });
}

#[test]
fn of_many_agents_that_start_at_once_one_gets_the_socket() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = Arc::new(directory.path().join("agent.sock"));
        drop(std::os::unix::net::UnixListener::bind(&*path).unwrap());
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = Arc::clone(&path);
                tokio::task::spawn_blocking(move || server::bind(&path, None))
            })
            .collect();
        let mut bound = Vec::new();
        for start in starts {
            match start.await.unwrap() {
                Ok(socket) => bound.push(socket),
                Err(error) => assert!(matches!(error, BindError::InUse { .. }), "{error}"),
            }
        }
        assert_eq!(bound.len(), 1);
    });
}

#[test]
fn impossible_sockets_are_explained() {
    run(async {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        assert!(matches!(server::bind(&long, None).unwrap_err(), BindError::TooLong { .. }));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let error = server::bind(&path, Some("no-such-group")).unwrap_err();
        assert!(error.to_string().contains("no-such-group"), "{error}");
        assert!(!path.exists());
        let error = server::bind(Path::new("/proc/agent.sock"), None).unwrap_err();
        assert!(matches!(error, BindError::Io { .. }), "{error}");
    });
}

#[test]
fn no_agent_is_told_apart_from_a_broken_one() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let error = Client::new(&path).status().await.unwrap_err();
        assert!(matches!(error, client::Error::NoAgent { .. }), "{error}");
        assert!(error.next_step().unwrap().contains("skybridge agent"));

        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let garbage = tokio::spawn(async move {
            for answer in ["", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"]
            {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let client = Client::new(&path);
        for _ in 0..2 {
            let error = client.status().await.unwrap_err();
            assert!(matches!(error, client::Error::Broken { .. }), "{error}");
        }
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, client::Error::Answer { .. }), "{error}");
        garbage.await.unwrap();
    });
}

//! Hosts join the store by tokens and come with its certificates; nobody else is let in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use membership::embedded::{Admission, Config, InviteError, Place, Server};
use membership::join::{self, JoinToken};
use membership::key::HostName;
use membership::pki::{Facts, Files, Fingerprint, Joined};
use membership::store::{Store, StoreConfig, TlsFiles};
use tempfile::TempDir;

use super::harness::DEADLINE;

const HOUR: Duration = Duration::from_secs(3600);

fn name(text: &str) -> HostName {
    HostName::new(text).unwrap()
}

fn files(dir: &TempDir) -> Files {
    Files::of(dir.path())
}

/// A store with its own authority, served by host `h1`.
struct Cluster {
    dir: TempDir,
    admission: Arc<Admission>,
    server: Server,
    url: String,
}

impl Cluster {
    async fn start() -> Self {
        Self::with_life(None).await
    }

    async fn with_life(life: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, crate::port::free_port()));
        Self::serve(dir, free, life).await
    }

    async fn serve(dir: TempDir, address: SocketAddr, life: Option<Duration>) -> Self {
        let url = format!("https://{address}");
        let place = Place {
            endpoints: vec![url.clone()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            prefix: String::new(),
            host: name("h1"),
            life,
        };
        let admission = Admission::open(files(&dir), place).unwrap();
        let mut config = Config::new(address, dir.path().join("store"));
        config.admission = Some(Arc::clone(&admission));
        let server = Server::start(config).await.unwrap();
        Self { dir, admission, server, url }
    }

    async fn restart(self) -> Self {
        let Self { dir, server, .. } = self;
        let address = server.local_addr();
        server.shutdown().await;
        Self::serve(dir, address, None).await
    }

    async fn token(&self, host: Option<&str>) -> JoinToken {
        self.admission.invite(host.map(name).as_ref(), HOUR).await.unwrap()
    }

    async fn joined(&self, host: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        join::join(&self.token(None).await, &name(host), &files(&dir)).await.unwrap();
        dir
    }

    /// A client that shows the certificate in `identity`.
    async fn client(&self, identity: &Path) -> Result<Client, Error> {
        let ca = std::fs::read(files(&self.dir).ca()).unwrap();
        let pem = std::fs::read(identity).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(&pem, &pem));
        let options = ConnectOptions::new().with_tls(tls).with_timeout(DEADLINE);
        Client::connect([&self.url], Some(options)).await
    }
}

async fn put(client: &mut Client, key: &str) -> Result<(), String> {
    match client.put(key, "1", None).await {
        Ok(_) => Ok(()),
        Err(Error::GRpcStatus(status)) => Err(status.message().to_owned()),
        Err(error) => Err(format!("{error:?}")),
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_host_joins_and_may_what_a_host_needs() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let token = cluster.token(Some("h2")).await.to_string();
    let joined = join::join(&token.parse().unwrap(), &name("h2"), &files(&dir)).await.unwrap();
    assert_eq!((joined.name.as_str(), &joined.endpoints), ("h2", &vec![cluster.url.clone()]));
    assert_eq!(Joined::load(&files(&dir)).unwrap().unwrap(), joined);
    for path in [files(&dir).host(), files(&dir).ca(), files(&dir).joined()] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    assert_eq!(Facts::load(&files(&dir).host()).unwrap().common_name, "h2");

    // As an agent does it.
    let mut config = StoreConfig::new(joined.endpoints.clone());
    config.tls = Some(TlsFiles {
        ca: files(&dir).ca(),
        cert: Some(files(&dir).host()),
        key: Some(files(&dir).host()),
        server_name: None,
    });
    Store::connect(config).await.unwrap();

    let mut host = cluster.client(&files(&dir).host()).await.unwrap();
    put(&mut host, "/skybridge/v1/x").await.unwrap();
    let denied = "etcdserver: permission denied";
    assert_eq!(put(&mut host, "/other").await.unwrap_err(), denied);
    assert!(host.user_list().await.is_err() && host.auth_disable().await.is_err());
    let mut own = cluster.client(&files(&cluster.dir).host()).await.unwrap();
    put(&mut own, "/skybridge/v1/y").await.unwrap();
    let mut root = cluster.client(&files(&cluster.dir).root()).await.unwrap();
    put(&mut root, "/other").await.unwrap();
    assert_eq!(root.user_list().await.unwrap().users(), ["h1", "h2", "root"]);

    // A host that is taken out, as an operator does it, has no rights any more.
    let (url, pki) = (cluster.url.clone(), files(&cluster.dir).directory().to_owned());
    let output = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").current_dir(pki).args(["--endpoints", &url]);
        command.args(["--cacert", "ca.pem", "--cert", "root.pem", "--key", "root.pem"]);
        command.args(["user", "delete", "h2"]).output()
    });
    let output = output.await.unwrap().expect("etcdctl is needed: apt-get install etcd-client");
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "User h2 deleted\n");
    assert_eq!(put(&mut host, "/skybridge/v1/x").await.unwrap_err(), denied);
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn who_has_no_certificate_of_the_store_is_not_let_in() {
    let cluster = Cluster::start().await;
    let ca = std::fs::read(files(&cluster.dir).ca()).unwrap();
    let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
    let options = ConnectOptions::new().with_tls(tls).with_timeout(DEADLINE);
    let mut stranger = Client::connect([&cluster.url], Some(options)).await.unwrap();
    let said = put(&mut stranger, "/skybridge/v1/x").await.unwrap_err();
    assert!(said.contains("skybridge join TOKEN"), "{said}");
    for said in [
        stranger.get("", None).await.map(|_| ()),
        stranger.watch("", None).await.map(|_| ()),
        stranger.lease_grant(60, None).await.map(|_| ()),
        stranger.auth_disable().await.map(|_| ()),
        stranger.status().await.map(|_| ()),
        stranger.member_list().await.map(|_| ()),
    ] {
        let said = said.unwrap_err().to_string();
        assert!(said.contains("skybridge join TOKEN"), "{said}");
    }
    let other = Cluster::start().await;
    let foreign = match cluster.client(&files(&other.dir).root()).await {
        Ok(mut client) => put(&mut client, "/skybridge/v1/x").await,
        Err(error) => Err(error.to_string()),
    };
    assert!(foreign.is_err(), "a certificate of another store was taken");
    // The store's own certificate is none of a client.
    let server = match cluster.client(&files(&cluster.dir).store()).await {
        Ok(mut client) => put(&mut client, "/skybridge/v1/x").await,
        Err(error) => Err(error.to_string()),
    };
    assert!(server.is_err(), "the store's certificate was taken as a host's");
}

#[tokio::test]
async fn a_token_that_does_not_fit_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start().await;
    let refused = async |token: &JoinToken, host: &str, words: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let error = join::join(token, &name(host), &files(&dir)).await.unwrap_err();
        let text = format!("{error}; {}", error.next_step());
        for word in words {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
        assert_eq!(entries(dir.path()), Vec::<String>::new(), "{text}");
    };
    let bound = cluster.token(Some("h2")).await;
    refused(&bound, "h3", &["for host h2", "--name h2"]).await;
    let dir = cluster.joined("h4").await;
    let once = cluster.token(None).await;
    let fresh = tempfile::tempdir().unwrap();
    join::join(&once, &name("h5"), &files(&fresh)).await.unwrap();
    refused(&once, "h6", &["used already, by host h5", "skybridge store token"]).await;
    refused(&once, "h5", &["used already"]).await;
    refused(&cluster.token(None).await, "root", &["administrator"]).await;

    let short = cluster.admission.invite(None, Duration::from_secs(1)).await.unwrap();
    let ended = SystemTime::now() + Duration::from_secs(2);
    while SystemTime::now() < ended {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused(&short, "h6", &["the token ended"]).await;

    let mut stranger = cluster.token(None).await;
    stranger.fingerprint = Fingerprint([7; 32]);
    refused(&stranger, "h6", &["is not the one that the token is of", "nothing was sent"]).await;
    let other = Cluster::start().await;
    let mut elsewhere = other.token(None).await;
    elsewhere.fingerprint = cluster.token(None).await.fingerprint;
    elsewhere.endpoints = vec![cluster.url.clone()];
    refused(&elsewhere, "h6", &["not one of this store's"]).await;
    let mut nowhere = cluster.token(None).await;
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, crate::port::free_port()));
    nowhere.endpoints = vec![format!("https://{free}")];
    refused(&nowhere, "h6", &["cannot be reached", "The token is still good"]).await;
    // Another endpoint of the same token may do.
    nowhere.endpoints.push(cluster.url.clone());
    join::join(&nowhere, &name("h7"), &files(&tempfile::tempdir().unwrap())).await.unwrap();

    // Who has joined, or serves, does not join.
    let token = cluster.token(None).await;
    let error = join::join(&token, &name("h4"), &files(&dir)).await.unwrap_err();
    assert!(error.to_string().contains("joined a store already, as h4"), "{error}");
    assert!(files(&dir).host().exists(), "what it had is gone");
    let error = join::join(&token, &name("h1"), &files(&other.dir)).await.unwrap_err();
    assert!(error.to_string().contains("serves"), "{error}");
    // And none of them used the token up.
    join::join(&token, &name("h8"), &files(&tempfile::tempdir().unwrap())).await.unwrap();
}

#[tokio::test]
async fn tokens_and_users_live_through_a_restart() {
    let cluster = Cluster::start().await;
    let (open, used) = (cluster.token(None).await, cluster.token(None).await);
    let dir = tempfile::tempdir().unwrap();
    join::join(&used, &name("h2"), &files(&dir)).await.unwrap();
    let kept = std::fs::read_to_string(files(&cluster.dir).invitations()).unwrap();
    let text = open.to_string();
    let json = URL_SAFE_NO_PAD.decode(text.strip_prefix("skybridge1.").unwrap()).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(kept.contains(json["i"].as_str().unwrap()), "{kept}");
    assert!(!kept.contains(json["s"].as_str().unwrap()), "the secret lies on disk");
    let cluster = cluster.restart().await;
    let mut host = cluster.client(&files(&dir).host()).await.unwrap();
    put(&mut host, "/skybridge/v1/x").await.unwrap();
    let again = tempfile::tempdir().unwrap();
    let error = join::join(&used, &name("h3"), &files(&again)).await.unwrap_err();
    assert!(error.to_string().contains("used already"), "{error}");
    join::join(&open, &name("h3"), &files(&again)).await.unwrap();
}

#[tokio::test]
async fn the_number_and_life_of_tokens_are_bounded() {
    let cluster = Cluster::start().await;
    for life in [Duration::ZERO, HOUR * 24 * 31] {
        let refused = cluster.admission.invite(None, life).await;
        assert!(matches!(refused, Err(InviteError::Life)));
    }
    for _ in 0..256 {
        cluster.token(None).await;
    }
    let refused = cluster.admission.invite(None, HOUR).await;
    assert!(matches!(refused, Err(InviteError::TooMany)));
}

#[tokio::test]
async fn certificates_are_renewed_before_they_end_while_everything_runs() {
    let life = Duration::from_secs(10);
    let cluster = Cluster::with_life(Some(life)).await;
    let dir = cluster.joined("h2").await;
    let joined = Joined::load(&files(&dir)).unwrap().unwrap();
    let first = Facts::load(&files(&dir).host()).unwrap();
    assert_eq!(join::renew(&files(&dir), &joined).await.unwrap(), (first.until, false));
    let shown = Facts::load(&files(&cluster.dir).store()).unwrap();
    while !first.is_due(SystemTime::now()) || !shown.is_due(SystemTime::now()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (until, renewed) = join::renew(&files(&dir), &joined).await.unwrap();
    assert!(renewed && until > first.until, "{until:?} {:?}", first.until);
    assert!(cluster.admission.keep().unwrap());
    cluster.server.certificate().unwrap().reload().unwrap();
    while first.left(SystemTime::now()) + shown.left(SystemTime::now()) > Duration::ZERO {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Both first certificates have ended.
    let mut host = cluster.client(&files(&dir).host()).await.unwrap();
    put(&mut host, "/skybridge/v1/x").await.unwrap();

    let mut root = cluster.client(&files(&cluster.dir).root()).await.unwrap();
    root.user_delete("h2").await.unwrap();
    let second = Facts::load(&files(&dir).host()).unwrap();
    while !second.is_due(SystemTime::now()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = join::renew(&files(&dir), &joined).await.unwrap_err();
    assert!(error.to_string().contains("no host of this store any more"), "{error}");
    assert_eq!(Facts::load(&files(&dir).host()).unwrap(), second);
}

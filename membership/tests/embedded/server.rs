//! What only concerns the embedded server: its start, its stop, its members, its answers to tools.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use etcd_client::{Client, Error};
use membership::embedded::{self, Config, Server};

use super::harness::{Backend, DEADLINE, LOOPBACK, compare};

#[tokio::test]
async fn an_address_in_use_is_named_with_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = taken.local_addr().unwrap();
    let error = Server::start(Config::new(address, dir.path())).await.unwrap_err();
    assert!(matches!(error, embedded::Error::Bind { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("choose another port"), "{text}");
    let elsewhere = "192.0.2.1:0".parse().unwrap();
    let error = Server::start(Config::new(elsewhere, dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("no interface of this host"), "{error}");
    // Nothing was left behind that would hinder a start.
    drop(taken);
    Server::start(Config::new(address, dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_directory_in_use_is_refused_and_free_after_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::start(Config::new(LOOPBACK, dir.path())).await.unwrap();
    let error = Server::start(Config::new(LOOPBACK, dir.path())).await.unwrap_err();
    assert!(matches!(error, embedded::Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains("stop that one"), "{error}");
    let address = first.local_addr();
    let endpoint = format!("http://{address}");
    let mut client = Client::connect([&endpoint], None).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    let mut watch = client.watch("a", None).await.unwrap();
    assert!(watch.message().await.unwrap().unwrap().created());
    first.shutdown().await;
    match watch.message().await {
        Err(Error::GRpcStatus(status)) => {
            assert_eq!(status.message(), "etcdserver: server stopped");
        }
        other => panic!("the watch goes on: {other:?}"),
    }
    let second = Server::start(Config::new(address, dir.path())).await.unwrap();
    let mut client = Client::connect([&endpoint], None).await.unwrap();
    let found = client.get("a", None).await.unwrap();
    assert_eq!(found.kvs().first().unwrap().value(), b"1");
    assert_eq!(found.header().unwrap().revision(), 2);
    assert_eq!(second.revision(), 2);
    second.shutdown().await;
}

#[tokio::test]
async fn members_status_and_auth_answer_like_a_cluster_of_one() {
    compare(async |client, log| {
        client.put("a", "1", None).await.unwrap();
        let status = client.status().await.unwrap();
        let members = client.member_list().await.unwrap();
        let member = members.members().first().unwrap();
        assert!(status.version().starts_with("3."), "{}", status.version());
        assert!(status.db_size() > 0 && status.raft_index() > 0 && status.raft_term() > 0);
        log.say("leads itself", &(status.leader() == member.id()).to_string());
        log.say("members", &members.members().len().to_string());
        log.say("urls", &member.client_urls().len().to_string());
        let alarms =
            client.alarm(etcd_client::AlarmAction::Get, etcd_client::AlarmType::None, None);
        log.note("alarms", alarms.await);
        log.note("defragment", client.defragment().await);
        let future = client.hash_kv(50).await;
        log.note("hash of the future", future);
        let hash = client.hash_kv(2).await.unwrap();
        log.say("hash", &(hash.hash() == client.hash_kv(0).await.unwrap().hash()).to_string());
        log.note("auth is off", client.auth_disable().await.map(|_| ()).or(Ok(())));
    })
    .await;
}

#[tokio::test]
async fn a_login_while_authentication_is_off_is_answered_as_etcd_does() {
    let backend = Backend::embedded().await;
    let options = etcd_client::ConnectOptions::new().with_user("root", "secret");
    match Client::connect([&backend.endpoint], Some(options)).await {
        Err(Error::GRpcStatus(status)) => {
            assert_eq!(status.message(), "etcdserver: authentication is not enabled");
        }
        Err(error) => panic!("{error}"),
        // The client may also go on without a token.
        Ok(_) => {}
    }
}

#[tokio::test]
async fn health_and_version_are_told_over_plain_http() {
    let backend = Backend::embedded().await;
    let address = backend.endpoint.trim_start_matches("http://").to_owned();
    for (path, expected) in
        [("/health", r#""health":"true""#), ("/version", r#""etcdserver":"3.5"#)]
    {
        let address = address.clone();
        let ask = move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: store\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = tokio::task::spawn_blocking(ask).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(expected), "{answer}");
    }
}

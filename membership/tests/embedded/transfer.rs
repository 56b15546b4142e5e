//! Records move between stores, embedded and etcd alike.

use etcd_client::{Client, LeaseGrantOptions, PutOptions};
use etcd_servers::Version;
use membership::embedded::{Config, Server, transfer::export_dir};
use membership::store::{Scope, Store, StoreConfig};
use membership::transfer::{Error, Exported, ImportOptions, Imported, export, import};

use super::harness::{Backend, LOOPBACK};

/// More than one page and one transaction, keys and values that are no text, leases, large values.
async fn fill(client: &mut Client) {
    for n in 0..700 {
        client.put(format!("/skybridge/v1/k{n:03}"), format!("value {n}"), None).await.unwrap();
    }
    for n in 0..4 {
        client.put(format!("/skybridge/v1/large{n}"), vec![b'x'; 700_000], None).await.unwrap();
    }
    client.put(b"/skybridge/\xff".to_vec(), b"\0\xff".to_vec(), None).await.unwrap();
    client.put("/other", "1", None).await.unwrap();
    client.lease_grant(600, Some(LeaseGrantOptions::new().with_id(7))).await.unwrap();
    let leased = PutOptions::new().with_lease(7);
    client.put("/skybridge/v1/leased", "1", Some(leased)).await.unwrap();
}

fn records(text: &[u8]) -> Vec<serde_json::Value> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).skip(1);
    lines
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_slice(line).unwrap();
            for revision in ["created", "modified"] {
                assert!(record[revision].as_i64().unwrap() > 1);
                record.as_object_mut().unwrap().remove(revision);
            }
            record
        })
        .collect()
}

async fn connect(backend: &Backend) -> Store {
    Store::connect(StoreConfig::new([&backend.endpoint])).await.unwrap()
}

async fn there_and_back(from: Backend, to: Backend) {
    fill(&mut from.client().await.unwrap()).await;
    let (source, target) = (connect(&from).await, connect(&to).await);
    let mut text = Vec::new();
    let exported = export(&source, Scope::Skybridge, &mut text).await.unwrap();
    assert_eq!(exported, Exported { keys: 706, revision: 708 });
    let mut all = Vec::new();
    assert_eq!(export(&source, Scope::All, &mut all).await.unwrap().keys, 707);

    let dry = ImportOptions { dry_run: true, ..ImportOptions::default() };
    let expected = Imported { created: 705, leased: 1, ..Imported::default() };
    assert_eq!(import(&target, text.as_slice(), dry).await.unwrap(), expected);
    assert_eq!(export(&target, Scope::All, &mut Vec::new()).await.unwrap().keys, 0);
    let plain = ImportOptions::default();
    assert_eq!(import(&target, text.as_slice(), plain).await.unwrap(), expected);
    let again = Imported { unchanged: 705, leased: 1, ..Imported::default() };
    assert_eq!(import(&target, text.as_slice(), plain).await.unwrap(), again);
    let mut copy = Vec::new();
    export(&target, Scope::All, &mut copy).await.unwrap();
    let unleased = |text: &[u8]| {
        let all = records(text).into_iter();
        all.filter(|record| record["leased"] != true).collect::<Vec<_>>()
    };
    assert_eq!(unleased(&text), unleased(&copy));

    // What is there is not replaced unless that is asked for, and nothing is half done.
    let mut client = to.client().await.unwrap();
    client.put("/skybridge/v1/k007", "mine", None).await.unwrap();
    client.delete("/skybridge/v1/k000", None).await.unwrap();
    let error = import(&target, text.as_slice(), plain).await.unwrap_err();
    assert!(matches!(error, Error::Exists { count: 1, .. }), "{error}");
    assert!(error.to_string().contains("/skybridge/v1/k007"), "{error}");
    assert_eq!(client.get("/skybridge/v1/k000", None).await.unwrap().count(), 0);
    let overwrite = ImportOptions { overwrite: true, ..plain };
    let expected = Imported { created: 1, replaced: 1, unchanged: 703, leased: 1 };
    assert_eq!(import(&target, text.as_slice(), overwrite).await.unwrap(), expected);
    let found = client.get("/skybridge/v1/k007", None).await.unwrap();
    assert_eq!(found.kvs().first().unwrap().value(), b"value 7");

    // The history goes, the keys stay.
    let revision = target.member().await.unwrap().revision;
    target.compact(revision).await.unwrap();
    target.defragment().await.unwrap();
    assert!(target.compact(revision).await.is_err());
    let member = target.member().await.unwrap();
    assert!(member.led && member.leads && member.errors.is_empty(), "{member:?}");
    assert!(member.size > 0 && member.in_use > 0, "{member:?}");
    assert_eq!(export(&target, Scope::All, &mut Vec::new()).await.unwrap().keys, 705);
}

#[tokio::test]
async fn records_move_from_the_embedded_store_to_etcd() {
    there_and_back(Backend::embedded().await, Backend::etcd(Version::NEWEST).await).await;
}

#[tokio::test]
async fn records_move_from_etcd_to_the_embedded_store() {
    there_and_back(Backend::etcd(Version::NEWEST).await, Backend::embedded().await).await;
}

#[tokio::test]
async fn a_store_that_nobody_serves_is_exported_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::new(LOOPBACK, dir.path())).await.unwrap();
    let endpoint = format!("http://{}", server.local_addr());
    fill(&mut Client::connect([&endpoint], None).await.unwrap()).await;
    let mut served = Vec::new();
    let store = Store::connect(StoreConfig::new([&endpoint])).await.unwrap();
    export(&store, Scope::All, &mut served).await.unwrap();
    let path = dir.path().to_owned();
    let in_use = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || export_dir(&path, &mut Vec::new())).await.unwrap()
    };
    assert!(in_use.unwrap_err().to_string().contains("is in use by"));
    server.shutdown().await;
    let exported = move || {
        let mut text = Vec::new();
        export_dir(&path, &mut text).map(|exported| (exported, text))
    };
    let (exported, text) = tokio::task::spawn_blocking(exported).await.unwrap().unwrap();
    assert_eq!((exported.keys, text), (707, served));
}

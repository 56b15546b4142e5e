//! Size and speed, with the figures told: many keys in pages, many writers, a slow watch.

use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, Txn, TxnOp, WatchOptions};

use super::harness::{Backend, events, message};

const KEYS: usize = 10_000;
const PAGE: i64 = 500;

async fn list(client: &mut Client) -> usize {
    let mut key = b"k/".to_vec();
    let mut revision = 0;
    let mut total = 0;
    loop {
        let options = GetOptions::new().with_range("k0").with_limit(PAGE).with_revision(revision);
        let page = client.get(key, Some(options)).await.unwrap();
        revision = page.header().unwrap().revision();
        total += page.kvs().len();
        let Some(last) = page.kvs().last().filter(|_| page.more()) else { return total };
        key = [last.key(), b"\0"].concat();
    }
}

async fn measure(name: &str, backend: Backend) {
    let mut client = backend.client().await.unwrap();
    let options = WatchOptions::new().with_all_keys();
    let mut stream = client.watch("", Some(options)).await.unwrap();
    assert!(message(&mut stream).await.created());
    let watching = tokio::spawn(async move {
        let mut seen = 0;
        while seen < KEYS {
            seen += message(&mut stream).await.events().len();
        }
        Instant::now()
    });
    let start = Instant::now();
    let writers = (0..4).map(|writer| {
        let mut client = client.clone();
        tokio::spawn(async move {
            for batch in 0..KEYS / 4 / 100 {
                let puts: Vec<_> = (0..100)
                    .map(|n| {
                        let key = format!("k/{writer}/{batch:03}/{n:03}");
                        TxnOp::put(key, vec![b'v'; 200], None)
                    })
                    .collect();
                client.txn(Txn::new().and_then(puts)).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let written = start.elapsed();
    let watched = watching.await.unwrap() - start;
    let start = Instant::now();
    assert_eq!(list(&mut client).await, KEYS);
    let listed = start.elapsed();
    let start = Instant::now();
    let single = (0..32).map(|writer| {
        let mut client = client.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                client.put(format!("s/{writer}"), n.to_string(), None).await.unwrap();
            }
        })
    });
    for writer in single.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let puts = 640.0 / start.elapsed().as_secs_f64();
    println!(
        "{name}: {KEYS} keys written in {written:?}, all seen by a watch after {watched:?}, listed \
         in pages of {PAGE} in {listed:?}; single puts of 32 writers: {puts:.0}/s"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_are_written_watched_and_listed_in_pages() {
    measure("embedded", Backend::embedded().await).await;
    measure("etcd", Backend::durable_etcd().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_not_read_gets_everything_later_and_others_do_not_wait() {
    let backend = Backend::embedded().await;
    let mut client = backend.client().await.unwrap();
    let options = || Some(WatchOptions::new().with_prefix());
    let mut slow = client.watch("k", options()).await.unwrap();
    let mut quick = client.watch("k", options()).await.unwrap();
    assert!(message(&mut slow).await.created());
    assert!(message(&mut quick).await.created());
    // 40 MB: far more than sockets and windows hold.
    let start = Instant::now();
    for n in 0..200 {
        client.put(format!("k{n:03}"), vec![b'v'; 200_000], None).await.unwrap();
        events(&mut quick, 1).await;
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "the slow watch holds up the others: {took:?}");
    let mut seen = Vec::new();
    while seen.len() < 200 {
        for event in message(&mut slow).await.events() {
            seen.push(event.kv().unwrap().mod_revision());
        }
    }
    assert_eq!(seen, (2..=201).collect::<Vec<_>>(), "every revision once and in order");
}

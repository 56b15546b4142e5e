//! Random requests, the same to both stores; and a restart that must change nothing.

use std::collections::BTreeMap;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, LeaseGrantOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};
use membership::embedded::{Config, Server};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::harness::{LOOPBACK, Transcript, compare, message};

const REQUESTS: usize = 300;

/// Requests over few keys, so that they meet.
struct Requests(StdRng);

impl Requests {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: i64) -> i64 {
        self.0.random_range(0..bound)
    }

    fn often(&mut self) -> bool {
        self.0.random_bool(0.5)
    }

    fn key(&mut self) -> Vec<u8> {
        let keys: [&[u8]; 8] = [b"a", b"a\0", b"ab", b"b", b"c", b"\xff", b"\0", b""];
        // The empty key is rare: it is refused.
        let place = if self.below(40) == 0 { 7 } else { self.below(7) };
        keys[place as usize].to_vec()
    }

    fn end(&mut self) -> Vec<u8> {
        let ends: [&[u8]; 7] = [b"", b"\0", b"b", b"ab", b"c", b"\xff", b"a"];
        ends[self.below(7) as usize].to_vec()
    }

    fn get(&mut self) -> GetOptions {
        let mut options = GetOptions::new().with_range(self.end());
        if self.often() {
            options = options.with_limit(self.below(5) - 1);
        }
        if self.below(3) == 0 {
            options = options.with_revision(self.below(200) - 1);
        }
        match self.below(8) {
            // Not keys alone: etcd 3.7 leaves out their leases, which all before it told.
            0 | 1 => options = options.with_count_only(),
            2 => options = options.with_min_mod_revision(self.below(100)),
            3 => options = options.with_max_create_revision(self.below(100)),
            4 => options = options.with_sort(SortTarget::Mod, SortOrder::Descend),
            5 => options = options.with_sort(SortTarget::Key, SortOrder::Descend),
            _ => {}
        }
        options
    }

    fn put(&mut self) -> (Vec<u8>, PutOptions) {
        let mut options = PutOptions::new();
        if self.often() {
            options = options.with_prev_key();
        }
        let mut value = self.below(4).to_string().into_bytes();
        match self.below(8) {
            0 => options = options.with_lease(self.below(5)),
            1 => {
                options = options.with_ignore_value();
                value.clear();
            }
            2 => options = options.with_ignore_lease(),
            _ => {}
        }
        (value, options)
    }

    fn compare(&mut self) -> Compare {
        let ops = [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];
        let op = ops[self.below(4) as usize];
        let (key, number) = (self.key(), self.below(30));
        let compare = match self.below(5) {
            0 => Compare::version(key, op, number / 8),
            1 => Compare::create_revision(key, op, number),
            2 => Compare::mod_revision(key, op, number),
            3 => Compare::lease(key, op, number % 5),
            _ => Compare::value(key, op, (number % 4).to_string()),
        };
        if self.often() { compare } else { compare.with_range(self.end()) }
    }

    fn txn(&mut self, depth: usize) -> Txn {
        let compares: Vec<_> = (0..self.below(3)).map(|_| self.compare()).collect();
        let then: Vec<_> = (0..self.below(4)).map(|_| self.op(depth)).collect();
        let other: Vec<_> = (0..self.below(4)).map(|_| self.op(depth)).collect();
        Txn::new().when(compares).and_then(then).or_else(other)
    }

    fn op(&mut self, depth: usize) -> TxnOp {
        let key = self.key();
        match self.below(if depth == 0 { 6 } else { 8 }) {
            0 | 1 => TxnOp::get(key, Some(self.get())),
            2..=4 => {
                let (value, options) = self.put();
                TxnOp::put(key, value, Some(options))
            }
            5 => {
                let options = DeleteOptions::new().with_range(self.end()).with_prev_key();
                TxnOp::delete(key, Some(options))
            }
            _ => TxnOp::txn(self.txn(depth - 1)),
        }
    }

    async fn send(&mut self, client: &mut Client, log: &mut Transcript) {
        let key = self.key();
        match self.below(20) {
            0..=4 => {
                let options = self.get();
                let what = format!("get {key:?} {options:?}");
                log.note(&what, client.get(key, Some(options)).await);
            }
            5..=9 => {
                let (value, options) = self.put();
                let what = format!("put {key:?} {value:?} {options:?}");
                log.note(&what, client.put(key, value, Some(options)).await);
            }
            10 | 11 => {
                let mut options = DeleteOptions::new().with_range(self.end());
                if self.often() {
                    options = options.with_prev_key();
                }
                let what = format!("delete {key:?} {options:?}");
                log.note(&what, client.delete(key, Some(options)).await);
            }
            12..=17 => {
                let txn = self.txn(2);
                log.note(&format!("{txn:?}"), client.txn(txn).await);
            }
            18 => {
                let id = self.below(4) + 1;
                let options = LeaseGrantOptions::new().with_id(id);
                if self.often() {
                    log.note("grant", client.lease_grant(600, Some(options)).await);
                } else {
                    log.note("revoke", client.lease_revoke(id).await);
                }
            }
            _ => {
                // Rarely far, so that there is history to read.
                let revision = self.below(30) * self.below(6);
                log.note(&format!("compact {revision}"), client.compact(revision, None).await);
            }
        }
    }
}

/// Everything that can be read, at every revision.
async fn history(client: &mut Client) -> Vec<String> {
    let all = || GetOptions::new().with_all_keys();
    let current = client.get("", Some(all())).await.unwrap();
    let revision = current.header().unwrap().revision();
    let mut lines = Vec::new();
    for revision in 1..=revision {
        let answer = client.get("", Some(all().with_revision(revision))).await;
        lines.push(match answer {
            Ok(answer) => format!("{revision}: {:?}", answer.kvs()),
            Err(error) => format!("{revision}: {error}"),
        });
    }
    let leases = client.leases().await.unwrap();
    let mut ids: Vec<_> = leases.leases().iter().map(|lease| lease.id()).collect();
    // etcd lists them by their deadlines, which say nothing here.
    ids.sort_unstable();
    lines.push(format!("leases {ids:?}"));
    for id in ids {
        let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let lease = client.lease_time_to_live(id, Some(options)).await.unwrap();
        lines.push(format!("lease {id} {} {:?}", lease.granted_ttl(), lease.keys()));
    }
    lines
}

#[tokio::test]
async fn random_requests_get_the_same_answers_and_events() {
    for seed in 0..3 {
        println!("seed {seed}");
        compare(async |client, log| {
            let options = WatchOptions::new().with_all_keys().with_prev_key();
            let mut stream = client.watch("", Some(options)).await.unwrap();
            assert!(message(&mut stream).await.created());
            let mut requests = Requests::new(seed);
            for _ in 0..REQUESTS {
                requests.send(client, log).await;
            }
            // What the watch has seen, up to a last key that nothing else writes.
            client.put("zz", "end", None).await.unwrap();
            let mut seen = BTreeMap::new();
            loop {
                let response = message(&mut stream).await;
                for event in response.events() {
                    let kv = event.kv().unwrap();
                    let place = (kv.mod_revision(), seen.len());
                    // Which versions before an event are still known depends on how soon it was
                    // sent; compaction runs in between.
                    seen.insert(place, format!("{:?} {kv:?}", event.event_type()));
                }
                let last = response.events().last();
                if last.is_some_and(|event| event.kv().unwrap().key() == b"zz") {
                    break;
                }
            }
            for (_, event) in seen {
                log.say("event", &event);
            }
            for line in history(client).await {
                log.say("history", &line);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_restart_changes_nothing_that_can_be_read_or_watched() {
    for seed in 10..13 {
        let dir = tempfile::tempdir().unwrap();
        let mut before = Vec::new();
        for restart in [false, true] {
            let server = Server::start(Config::new(LOOPBACK, dir.path())).await.unwrap();
            let endpoint = format!("http://{}", server.local_addr());
            let mut client = Client::connect([endpoint], None).await.unwrap();
            if !restart {
                let mut requests = Requests::new(seed);
                for _ in 0..REQUESTS {
                    requests.send(&mut client, &mut Transcript::default()).await;
                }
                // Something to compact that no request has compacted, and something after it.
                let mut revision = 0;
                for n in 0..30 {
                    let put = client.put("zz", n.to_string(), None).await.unwrap();
                    revision = put.header().unwrap().revision();
                }
                client.compact(revision - 20, None).await.unwrap();
            }
            let mut lines = history(&mut client).await;
            let revision = server.revision();
            let options = WatchOptions::new().with_all_keys().with_prev_key();
            let options = options.with_start_revision(revision - 19);
            let mut stream = client.watch("", Some(options)).await.unwrap();
            assert!(message(&mut stream).await.created());
            let mut last = 0;
            while last < revision {
                let response = message(&mut stream).await;
                lines.extend(response.events().iter().map(|event| format!("{event:?}")));
                last = response.header().unwrap().revision();
            }
            if restart {
                assert_eq!(before, lines, "seed {seed}");
            }
            before = lines;
            server.shutdown().await;
        }
    }
}

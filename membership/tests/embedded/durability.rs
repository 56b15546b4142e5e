//! kill -9 and restart: what was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, Permission,
    PutOptions, Txn, TxnOp,
};
use membership::embedded::{Config, Server};

use super::harness::{DEADLINE, LOOPBACK};

/// Set in the child: the directory it serves.
const DIR: &str = "EMBEDDED_STORE_CHILD_DIR";

/// Not a test by itself: serves a store until it is killed when [`DIR`] is set.
#[test]
fn child_server() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::start(Config::new(LOOPBACK, dir)).await.unwrap();
        println!("serving {}", server.local_addr());
        std::future::pending::<()>().await;
    });
}

struct ChildServer {
    child: Child,
    endpoint: String,
}

impl ChildServer {
    fn start(dir: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durability::child_server", "--nocapture"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let address = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("serving ").map(|(_, address)| address.to_owned()))
            .expect("the child has not started");
        Self { child, endpoint: format!("http://{address}") }
    }

    /// SIGKILL, in the middle of whatever it does.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Writes pairs in transactions until the connection breaks; notes what was acknowledged.
/// Values grow from round to round, so that none of an earlier one passes for a later one.
async fn write_until_killed(
    endpoint: String,
    worker: usize,
    from: u64,
    acked: Arc<Mutex<BTreeMap<String, u64>>>,
) {
    let Ok(mut client) = Client::connect([&endpoint], None).await else { return };
    for n in from.. {
        let (one, two) = (format!("one/{worker}/{}", n % 50), format!("two/{worker}/{}", n % 50));
        let value = n.to_string();
        let ops = [
            TxnOp::put(one.as_str(), value.as_str(), None),
            TxnOp::put(two.as_str(), value.as_str(), None),
        ];
        if client.txn(Txn::new().and_then(ops)).await.is_err() {
            return;
        }
        acked.lock().unwrap().insert(one, n);
    }
}

#[tokio::test]
async fn every_acknowledged_write_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let acked = Arc::new(Mutex::new(BTreeMap::new()));
    let mut total = 0;
    for round in 1..=3 {
        let from = round * 1_000_000;
        let server = ChildServer::start(dir.path());
        let writers: Vec<_> = (0..8)
            .map(|worker| {
                let acked = Arc::clone(&acked);
                tokio::spawn(write_until_killed(server.endpoint.clone(), worker, from, acked))
            })
            .collect();
        while acked.lock().unwrap().values().max().copied().unwrap_or(0) < from + 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        let server = ChildServer::start(dir.path());
        let mut client = Client::connect([&server.endpoint], None).await.unwrap();
        let stored = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
        let stored: BTreeMap<String, u64> = stored
            .kvs()
            .iter()
            .map(|kv| (kv.key_str().unwrap().to_owned(), kv.value_str().unwrap().parse().unwrap()))
            .collect();
        let acked = acked.lock().unwrap().clone();
        for (key, value) in &acked {
            let found = stored.get(key).copied();
            // A write that was not acknowledged any more may be there as well.
            assert!(found >= Some(*value), "round {round}: {key} is {found:?}, acked {value}");
            let twin = stored.get(&key.replacen("one", "two", 1)).copied();
            assert_eq!(found, twin, "round {round}: half a transaction at {key}");
        }
        total += acked.len();
        server.kill();
    }
    println!("kill -9 three times: {total} acknowledged keys compared, none lost");
}

/// What one writer of the next test was told is done.
#[derive(Default)]
struct Done {
    roles: u64,
    leases: u64,
    compacted: i64,
}

/// Adds roles, each with a permission; grants leases, each with a key; compacts behind them. Until
/// the connection breaks.
async fn change_until_killed(endpoint: String, round: u64, done: Arc<Mutex<Done>>) {
    let Ok(mut client) = Client::connect([&endpoint], None).await else { return };
    for n in 1.. {
        let name = format!("r{round}-{n}");
        if client.role_add(name.as_str()).await.is_err() {
            return;
        }
        let permission = Permission::read_write(name.as_str());
        if client.role_grant_permission(name.as_str(), permission).await.is_err() {
            return;
        }
        done.lock().unwrap().roles = n;
        let id = (round * 1_000_000 + n) as i64;
        let options = LeaseGrantOptions::new().with_id(id);
        if client.lease_grant(600, Some(options)).await.is_err() {
            return;
        }
        let options = PutOptions::new().with_lease(id);
        let Ok(put) = client.put(name.as_str(), "1", Some(options)).await else { return };
        done.lock().unwrap().leases = n;
        let at = put.header().unwrap().revision() - 1;
        if client.compact(at, None).await.is_err() {
            return;
        }
        done.lock().unwrap().compacted = at;
    }
}

#[tokio::test]
async fn users_leases_and_compactions_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=2 {
        let server = ChildServer::start(dir.path());
        let done = Arc::new(Mutex::new(Done::default()));
        let writer = change_until_killed(server.endpoint.clone(), round, Arc::clone(&done));
        let writer = tokio::spawn(writer);
        while done.lock().unwrap().leases < 30 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        writer.await.unwrap();
        let server = ChildServer::start(dir.path());
        let mut client = Client::connect([&server.endpoint], None).await.unwrap();
        let Done { roles, leases, compacted } = *done.lock().unwrap();
        for n in 1..=roles {
            let name = format!("r{round}-{n}");
            let role = client.role_get(name.as_str()).await.unwrap();
            assert_eq!(role.permissions(), [Permission::read_write(name.as_str())]);
        }
        let held: BTreeSet<i64> =
            client.leases().await.unwrap().leases().iter().map(|lease| lease.id()).collect();
        for n in 1..=leases {
            let id = (round * 1_000_000 + n) as i64;
            assert!(held.contains(&id), "lease {n} of {leases} is gone");
            let options = LeaseTimeToLiveOptions::new().with_keys();
            let lease = client.lease_time_to_live(id, Some(options)).await.unwrap();
            assert_eq!(lease.keys(), [format!("r{round}-{n}").into_bytes()]);
        }
        let before = GetOptions::new().with_revision(compacted - 1);
        let refused = client.get("x", Some(before)).await.unwrap_err().to_string();
        assert!(refused.contains("has been compacted"), "{refused}");
        server.kill();
    }

    // Authentication itself: on, it stays on.
    let server = ChildServer::start(dir.path());
    let mut client = Client::connect([&server.endpoint], None).await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    server.kill();
    let server = ChildServer::start(dir.path());
    let mut client = Client::connect([&server.endpoint], None).await.unwrap();
    let refused = client.get("x", None).await.unwrap_err().to_string();
    assert!(refused.contains("user name is empty"), "{refused}");
    let options = ConnectOptions::new().with_user("root", "secret");
    let mut client = Client::connect([&server.endpoint], Some(options)).await.unwrap();
    client.get("x", None).await.unwrap();
    server.kill();
}

#[tokio::test]
async fn leases_survive_a_restart_with_their_full_ttl_and_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let server = ChildServer::start(dir.path());
    let mut client = Client::connect([&server.endpoint], None).await.unwrap();
    let short = Duration::from_secs(5);
    client
        .lease_grant(short.as_secs() as i64, Some(LeaseGrantOptions::new().with_id(5)))
        .await
        .unwrap();
    client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(6))).await.unwrap();
    for (key, lease) in [("short", 5), ("long", 6)] {
        client.put(key, "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    }
    server.kill();
    // Before the store can count from anything.
    let start = tokio::time::Instant::now();
    let server = ChildServer::start(dir.path());
    let mut client = Client::connect([&server.endpoint], None).await.unwrap();
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let lease = client.lease_time_to_live(6, Some(options)).await.unwrap();
    // What is left is rounded down.
    let left = Duration::from_secs(u64::try_from(lease.ttl()).unwrap() + 1);
    assert!(left + start.elapsed() >= Duration::from_secs(60), "{lease:?}");
    assert_eq!(lease.keys(), [b"long".to_vec()]);
    loop {
        let left = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
        if left.count() == 1 {
            assert_eq!(left.kvs().first().unwrap().key(), b"long");
            break;
        }
        assert!(start.elapsed() < DEADLINE, "the short lease does not expire");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() >= short, "the short lease did not get its full ttl");
    server.kill();
}

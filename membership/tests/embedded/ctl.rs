//! `etcdctl` gets the same answers from the embedded store and from each etcd.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use etcd_servers::Version;

use super::harness::Backend;

fn etcdctl(endpoint: &str) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", endpoint);
    command
}

/// Runs one command with `input`; gives its output, and fails with it when it fails.
fn run(endpoint: &str, arguments: &[&str], input: &str) -> String {
    let mut child = etcdctl(endpoint)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl is needed: apt-get install etcd-client");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "etcdctl {arguments:?}: {text}{errors}");
    text + &errors
}

fn tour(endpoint: &str, version: &str) {
    let ctl = |arguments: &[&str]| run(endpoint, arguments, "");
    assert_eq!(ctl(&["put", "a", "1"]), "OK\n");
    assert_eq!(ctl(&["put", "b", "2"]), "OK\n");
    assert_eq!(ctl(&["put", "--prev-kv", "a", "3"]), "OK\na\n1\n");
    assert_eq!(ctl(&["get", "a"]), "a\n3\n");
    assert_eq!(ctl(&["get", "--rev=2", "a"]), "a\n1\n");
    assert_eq!(ctl(&["get", "--prefix", "", "--keys-only"]), "a\n\nb\n\n");
    assert_eq!(ctl(&["get", "--from-key", "b", "--print-value-only"]), "2\n");
    assert!(ctl(&["get", "a", "-w", "json"]).contains("\"mod_revision\":4"));
    assert_eq!(
        ctl(&["get", "--prefix", "", "--order=DESCEND", "--limit=1", "--sort-by=KEY"]),
        "b\n2\n"
    );

    let transaction = "version(\"a\") = \"2\"\n\nput c 4\nget a\n\nget b\n\n";
    let answer = run(endpoint, &["txn", "-i"], transaction);
    assert!(
        answer.contains("SUCCESS") && answer.contains("OK") && answer.contains("a\n3"),
        "{answer}"
    );
    assert_eq!(ctl(&["del", "c"]), "1\n");

    // A watch from the past, until it has said what it has to.
    let mut watch = etcdctl(endpoint)
        .args(["watch", "--prefix", "", "--rev=2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> = BufReader::new(watch.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter(|line| !line.is_empty())
        .take(14)
        .collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    let seen = lines.join(" ");
    assert_eq!(seen, "PUT a 1 PUT b 2 PUT a 3 PUT c 4 DELETE c");

    let granted = ctl(&["lease", "grant", "60"]);
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert!(granted.contains("granted with TTL(60s)"), "{granted}");
    assert_eq!(ctl(&["put", &format!("--lease={id}"), "leased", "1"]), "OK\n");
    assert!(ctl(&["lease", "list"]).contains(&id));
    assert!(ctl(&["lease", "keep-alive", "--once", &id]).contains("keepalived with TTL(60)"));
    let left = ctl(&["lease", "timetolive", &id, "--keys"]);
    assert!(left.contains("granted with TTL(60s)") && left.contains("leased"), "{left}");
    assert!(ctl(&["lease", "revoke", &id]).contains("revoked"));
    assert_eq!(ctl(&["get", "leased"]), "");

    assert!(ctl(&["endpoint", "health"]).contains("is healthy"));
    let status = ctl(&["endpoint", "status", "-w", "json"]);
    assert!(status.contains(&format!("\"version\":\"{version}")), "{status}");
    assert!(ctl(&["endpoint", "status", "-w", "table"]).contains("true"), "it leads");
    assert!(ctl(&["member", "list"]).contains(endpoint));
    assert!(ctl(&["compaction", "5"]).contains("compacted revision 5"));
    assert!(ctl(&["defrag"]).contains("Finished"));
    assert!(ctl(&["alarm", "list"]).is_empty());
    let hash = ctl(&["endpoint", "hashkv"]);
    assert!(hash.starts_with(endpoint), "{hash}");
}

/// What an operator does to switch authentication on, and what each user may then do.
fn auth_tour(endpoint: &str) {
    let ctl = |arguments: &[&str]| run(endpoint, arguments, "");
    let as_user = |user: &str, arguments: &[&str]| {
        let mut command = etcdctl(endpoint);
        let output = command.args(["--user", user]).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    assert_eq!(ctl(&["user", "add", "root:secret"]), "User root created\n");
    assert!(ctl(&["user", "grant-role", "root", "root"]).contains("granted"));
    assert_eq!(ctl(&["role", "add", "host"]), "Role host created\n");
    let grant = ["role", "grant-permission", "host", "readwrite", "/skybridge/", "--prefix"];
    assert!(ctl(&grant).contains("Role host updated"));
    assert!(
        ctl(&["role", "get", "host"]).contains("[/skybridge/, /skybridge0) (prefix /skybridge/)")
    );
    assert_eq!(ctl(&["user", "add", "h1:pass"]), "User h1 created\n");
    assert!(ctl(&["user", "grant-role", "h1", "host"]).contains("granted"));
    assert_eq!(ctl(&["auth", "enable"]), "Authentication Enabled\n");

    let (done, said) = as_user("h1:wrong", &["get", "/skybridge/x"]);
    assert!(!done && said.contains("authentication failed"), "{said}");
    let (done, said) = as_user("h1:pass", &["put", "/skybridge/x", "1"]);
    assert!(done && said == "OK\n", "{said}");
    let (done, said) = as_user("h1:pass", &["put", "/other", "1"]);
    assert!(!done && said.contains("permission denied"), "{said}");
    let (done, said) = as_user("h1:pass", &["user", "list"]);
    assert!(!done && said.contains("permission denied"), "{said}");
    let (done, said) = as_user("root:secret", &["get", "--prefix", "/"]);
    assert!(done && said == "/skybridge/x\n1\n", "{said}");
    let revoke = ["role", "revoke-permission", "host", "/skybridge/", "--prefix"];
    assert!(as_user("root:secret", &revoke).0);
    let (done, said) = as_user("h1:pass", &["get", "/skybridge/x"]);
    assert!(!done && said.contains("permission denied"), "{said}");
    assert!(as_user("root:secret", &["auth", "disable"]).0);
    assert_eq!(ctl(&["get", "/skybridge/x"]), "/skybridge/x\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_sets_up_users_and_roles() {
    let backend = Backend::embedded().await;
    let endpoint = backend.endpoint.trim_start_matches("http://").to_owned();
    tokio::task::spawn_blocking(move || auth_tour(&endpoint)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_gets_the_answers_it_expects() {
    let embedded = (Backend::embedded().await, "3.5.30+skybridge".to_owned());
    let mut tours = tokio::task::JoinSet::new();
    let tour = |(backend, version): (Backend, String)| {
        // Without the scheme: etcdctl 3.4 would send a URL as the authority of `endpoint status`,
        // which HTTP/2 libraries stricter than Go's refuse.
        move || {
            let running: Backend = backend;
            tour(running.endpoint.trim_start_matches("http://"), &version);
        }
    };
    tours.spawn_blocking(tour(embedded));
    for version in Version::ALL {
        tours.spawn_blocking(tour((Backend::etcd(version).await, format!("{version}."))));
    }
    while let Some(toured) = tours.join_next().await {
        toured.unwrap();
    }
}

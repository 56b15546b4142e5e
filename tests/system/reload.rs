//! `SIGHUP`: other endpoints, certificates and passwords while traffic runs; and what may a host
//! write, with authentication on.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::traffic;
use testkit::{
    Agent, AgentSpec, Container, EtcdSpec, Family, Lab, Pki, Process, Suite, wait_until,
};

use crate::scene::Mesh;
use crate::support::{DUAL, NETWORK, WITH_TLS, measured};

/// The time that a reload and what follows from it may take.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn register(suite: &mut Suite) {
    suite.test("reload::another_endpoint", WITH_TLS, another_endpoint);
    suite.test("reload::another_certificate", WITH_TLS, another_certificate);
    suite.test("reload::another_password_and_roles", WITH_TLS, another_password_and_roles);
    suite.test("reload::what_cannot_be_used_is_refused", WITH_TLS, what_cannot_be_used_is_refused);
}

/// An agent that has everything about its store from its file.
fn start(lab: &Lab, host: usize, config: &str) -> Agent {
    let spec = AgentSpec::new(lab.host(host).address(Family::V4)).config(config);
    lab.start_agent(host, spec)
}

fn rewrite(agent: &Agent, config: &str) {
    fs::write(agent.directory().join("skybridge.toml"), config).unwrap();
}

/// Reloads and gives what it came to.
fn reload(agent: &Agent) -> Value {
    // Each outcome is one line, written when `status` has it.
    let outcomes = || {
        let ends = ["was not reloaded, nothing is changed err=", "is reloaded changed="];
        let log = agent.log();
        log.lines().filter(|line| ends.iter().any(|end| line.contains(end))).count()
    };
    let before = outcomes();
    agent.signal(Signal::SIGHUP);
    let ((), took) =
        wait_until("the reload has an outcome", SOON, || (outcomes() > before).then_some(()));
    measured("reload to its outcome", format!("{:.0} ms", took.as_secs_f64() * 1e3));
    agent.json(&["status"])["reload"].clone()
}

fn stores(urls: &[String]) -> String {
    format!("stores = {urls:?}\n")
}

fn session(agent: &Agent) -> (String, String) {
    let status = agent.json(&["status"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&status["session"]["state"]), text(&status["session"]["lease"]))
}

fn wait_connected(agent: &Agent) {
    wait_until("the store is connected and the lease held", SOON, || {
        let status = agent.json(&["status"]);
        let well = status["store"]["state"] == "connected" && status["session"]["state"] == "held";
        well.then_some(())
    });
}

/// Verified datagrams run in both directions while `work` is done; none may be lost.
fn without_loss(lab: &Lab, [a, b]: [&Container; 2], work: impl FnOnce()) {
    let mesh = Mesh::among(lab, &[a, b], 1000);
    work();
    mesh.lost_nothing("a reload");
}

fn pair(lab: &Lab, agents: [&Agent; 2]) -> [Container; 2] {
    [("c1", agents[0]), ("c2", agents[1])]
        .map(|(name, agent)| agent.container(lab, NETWORK, name, &[]))
}

/// From the first member of a cluster to the second, and the first is ended.
fn another_endpoint() {
    let lab = Lab::with_hosts(2).build();
    let etcd = lab.etcd_with(EtcdSpec::new().members(3));
    let urls = etcd.urls(Family::V4);
    let agents = [1, 2].map(|host| start(&lab, host, &stores(&urls[..1])));
    agents[0].create_network(NETWORK, DUAL);
    let [a, b] = pair(&lab, [&agents[0], &agents[1]]);
    let before = agents.each_ref().map(session);
    without_loss(&lab, [&a, &b], || {
        for agent in &agents {
            rewrite(agent, &stores(&urls[1..2]));
            let outcome = reload(agent);
            assert_eq!(outcome["applied"], true, "{outcome}");
            assert_eq!(outcome["changed"], serde_json::json!(["stores"]), "{outcome}");
        }
        etcd.kill9_member(0);
        for agent in &agents {
            let status = agent.json(&["status"]);
            assert_eq!(status["store"]["endpoint"], urls[1].as_str());
        }
        // Whoever led, two members are enough, and the new way works.
        wait_until("something new is written", SOON, || {
            let name = ["network", "create", "red", "--subnet", "203.0.113.0/24"];
            agents[0].try_cli(&name).status.success().then_some(())
        });
    });
    for agent in &agents {
        for text in ["leader", "answer", "interrupted", "not present"] {
            // An election, if the first member led.
            agent.allow_log(text);
        }
        wait_connected(agent);
    }
    assert_eq!(before, agents.each_ref().map(session), "the leases went on");
    let suspects = agents[1].json(&["hosts"]).to_string();
    assert!(!suspects.contains("suspect"), "{suspects}");
}

/// A certificate in the same files for another user; the former user is removed.
fn another_certificate() {
    let lab = Lab::with_hosts(2).build();
    let pki = Pki::create(&lab.directory().join("pki"));
    let day = Duration::from_secs(86_400);
    pki.issue("server", &["192.0.2.254", "127.0.0.1"], day);
    for name in ["root", "h1", "h2", "h1-new"] {
        pki.issue(name, &[], day);
    }
    let etcd = lab.etcd_with(EtcdSpec::new().tls(pki.clone()));
    let root = |args: &[&str]| {
        let mut command = lab.switch().command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.urls(Family::V4)[0]]);
        command.arg("--cacert").arg(pki.ca()).arg("--cert").arg(pki.certificate("root"));
        command.arg("--key").arg(pki.key("root")).args(args);
        let _ = testkit::run(command).expect_success();
    };
    // The common name of the certificate is the user.
    for user in ["root", "h1", "h2", "h1-new"] {
        root(&["user", "add", user, "--no-password"]);
        root(&["user", "grant-role", user, "root"]);
    }
    root(&["auth", "enable"]);
    let config = |name: &str| format!("{}{}\n", stores(&etcd.urls(Family::V4)), pki.config(name));
    let agents = [start(&lab, 1, &config("h1")), start(&lab, 2, &config("h2"))];
    agents[0].create_network(NETWORK, DUAL);
    let [a, b] = pair(&lab, [&agents[0], &agents[1]]);
    let before = session(&agents[0]);
    without_loss(&lab, [&a, &b], || {
        fs::copy(pki.certificate("h1-new"), pki.certificate("h1")).unwrap();
        fs::copy(pki.key("h1-new"), pki.key("h1")).unwrap();
        let outcome = reload(&agents[0]);
        assert_eq!(outcome["applied"], true, "{outcome}");
        assert_eq!(outcome["changed"], serde_json::json!([]), "only files: {outcome}");
        root(&["user", "delete", "h1"]);
        let _ = agents[0].cli(&["network", "create", "red", "--subnet", "203.0.113.0/24"]);
        wait_connected(&agents[0]);
    });
    assert_eq!(before, session(&agents[0]), "the lease went on");
}

/// The shell lines of `docs/store.md` under a heading.
fn documented(heading: &str) -> Vec<String> {
    let text = include_str!("../../docs/store.md");
    let section = text.split(&format!("## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// The roles as they are documented; then a password that is changed, and a user that is removed.
fn another_password_and_roles() {
    let lab = Lab::with_hosts(3).build();
    let etcd = lab.etcd();
    let url = etcd.urls(Family::V4).remove(0);
    let shell = |script: &str, variables: &[(&str, &str)], user: &str| {
        let mut command = lab.switch().command("sh");
        command.args(["-eu", "-c", script]).env("ETCDCTL_API", "3");
        command.env("ETCDCTL_ENDPOINTS", &url).env("PREFIX", "/lab");
        command.envs(variables.iter().copied());
        if !user.is_empty() {
            command.env("ETCDCTL_USER", user);
        }
        testkit::run(command)
    };
    let [shared, host, operator] = <[String; 3]>::try_from(documented("Users and roles in etcd"))
        .expect("three blocks of commands");
    let _ = shell(&shared, &[("ROOT_PASSWORD", "root-secret")], "").expect_success();
    for (name, vtep) in [("h1", "192.0.2.1"), ("h2", "192.0.2.2"), ("h3", "192.0.2.3")] {
        let variables = [("HOST", name), ("VTEPS", vtep), ("PASSWORD", "first")];
        let _ = shell(&host, &variables, "").expect_success();
    }
    let _ = shell(&operator, &[("HOST", "h1")], "").expect_success();
    let _ = shell("etcdctl auth enable", &[], "").expect_success();
    let root = |script: &str| shell(script, &[], "root:root-secret");

    let agents = [1, 2, 3].map(|host| {
        let name = format!("h{host}");
        let file = lab.directory().join(format!("{name}.password"));
        fs::write(&file, "first\n").unwrap();
        let user = format!("[user]\nname = {name:?}\npassword_file = {file:?}\n");
        let prefix = "store_prefix = \"/lab\"\n";
        start(&lab, host, &format!("{}{prefix}{user}", stores(std::slice::from_ref(&url))))
    });
    let password = |agent: &Agent, text: &str| {
        let file = lab.directory().join(format!("{}.password", agent.name()));
        fs::write(file, format!("{text}\n")).unwrap();
    };
    // The operator's host makes networks, the others attach to them and make none.
    agents[0].create_network(NETWORK, DUAL);
    let create = ["network", "create", "red", "--subnet", "203.0.113.0/24"];
    let refused = agents[1].try_cli(&create);
    assert!(!refused.status.success(), "{refused}");
    assert!(refused.stderr.contains("permission denied") && refused.stderr.contains("role"));
    let [a, b] = pair(&lab, [&agents[0], &agents[1]]);
    let c = agents[2].container(&lab, NETWORK, "c3", &[]);
    traffic::ping(c.netns(), a.address(Family::V4), 56);
    agents[2].detach(NETWORK, &c);
    // What h2's user may not do, tried by hand.
    for (key, allowed) in [
        ("hosts/h1", false),
        ("known/h1", false),
        ("vteps/192.0.2.1", false),
        ("networks/x", false),
        ("hosts/h2x", false),
        ("endpoints/x/y", true),
    ] {
        let script = format!("etcdctl put /lab/skybridge/v1/{key} x");
        let put = shell(&script, &[], "h2:first");
        assert_eq!(put.status.success(), allowed, "{key}: {put}");
        assert!(allowed || put.stderr.contains("permission denied"), "{put}");
    }
    let _ = root("etcdctl del /lab/skybridge/v1/endpoints/x/y").expect_success();
    let lease = session(&agents[0]).1;
    let revoke = shell(&format!("etcdctl lease revoke {lease}"), &[], "h2:first");
    assert!(!revoke.status.success(), "another host's lease was ended: {revoke}");
    let outside = shell("etcdctl get /elsewhere", &[], "h2:first");
    assert!(!outside.status.success(), "{outside}");
    for agent in &agents {
        // The record that was put by hand, and what happens to the users below.
        for text in
            ["set aside", "refuse", "interrupted", "not present", "reload", "detaches", "answer"]
        {
            agent.allow_log(text);
        }
    }

    // A password: in etcd, then in the file. In between the store refuses the host.
    without_loss(&lab, [&a, &b], || {
        let _ = root("echo second | etcdctl user passwd --interactive=false h2").expect_success();
        let outcome = reload(&agents[1]);
        assert_eq!(outcome["applied"], false, "the old password: {outcome}");
        assert!(outcome["cause"].to_string().contains("authentication failed"), "{outcome}");
        password(&agents[1], "second");
        let outcome = reload(&agents[1]);
        assert_eq!(outcome["applied"], true, "{outcome}");
        wait_connected(&agents[1]);
    });
    let warnings = agents[1].json(&["status"])["warnings"].to_string();
    assert!(!warnings.contains("reload"), "{warnings}");
    let again = agents[1].container(&lab, NETWORK, "c4", &[]);
    traffic::ping(again.netns(), a.address(Family::V4), 56);

    // A user that is removed: writes are refused at once. etcd lets an open watch go on until its
    // connection ends; then that is refused too. Forwarding goes on.
    without_loss(&lab, [&a, &b], || {
        let _ = root("etcdctl user delete h2").expect_success();
        let sandbox = lab.sandbox("c5");
        let attach = agents[1].try_cli(&["attach", NETWORK, "--netns", sandbox.name()]);
        assert!(!attach.status.success(), "{attach}");
        assert!(attach.stderr.contains("check the user, password"), "{attach}");
        etcd.kill9();
        etcd.restart();
        wait_until("the refusal is told", SOON, || {
            let store = agents[1].json(&["status"])["store"].clone();
            let told = store["cause"].to_string().contains("check the user, password");
            (store["state"] == "away" && told).then_some(())
        });
    });
    let user = "etcdctl user add h2:second; etcdctl user grant-role h2 skybridge-reader; \
                etcdctl user grant-role h2 skybridge-h2";
    let _ = root(user).expect_success();
    wait_connected(&agents[1]);
    traffic::ping(b.netns(), a.address(Family::V4), 56);
}

/// Each fault leaves everything as it was, with the cause in the log and in `status`.
fn what_cannot_be_used_is_refused() {
    let lab = Lab::with_hosts(1).build();
    let etcd = lab.etcd();
    let good = stores(&etcd.urls(Family::V4));
    let agent = start(&lab, 1, &good);
    agent.allow_log("reload");
    agent.create_network(NETWORK, DUAL);
    wait_connected(&agent);
    let before = session(&agent);
    // Another store on the same machine: nothing of ours is in it.
    let mut command = agent.netns().command(testkit::binary());
    let data = lab.directory().join("other-store");
    command.args(["store", "--listen", "127.0.0.1:2399", "--data"]).arg(data);
    let _other = Process::spawn(command, &lab.logs(), "other-store");
    wait_until("the other store listens", SOON, || {
        agent.netns().enter(|| TcpStream::connect("127.0.0.1:2399").ok())
    });
    let cases = [
        ("stores = [".to_owned(), "line 1"),
        (format!("{good}no_such_key = 1\n"), "no_such_key"),
        (stores(&["http://192.0.2.99:2379".to_owned()]), "192.0.2.99"),
        (
            format!("{good}[user]\nname = \"h1\"\npassword_file = \"/nowhere\"\n"),
            "password of the store cannot be read",
        ),
        (stores(&["http://127.0.0.1:2399".to_owned()]), "does not know this host"),
        (format!("{good}[tls]\nca = \"/nowhere\"\n"), "certificates are configured"),
    ];
    for (file, cause) in cases {
        rewrite(&agent, &file);
        let outcome = reload(&agent);
        assert_eq!(outcome["applied"], false, "{outcome}");
        assert!(outcome["cause"].to_string().contains(cause), "{cause}: {outcome}");
        assert!(outcome["next_step"].is_string(), "{outcome}");
        assert!(agent.log().contains(cause), "the log names the cause");
        let status = agent.json(&["status"]);
        assert_eq!(status["store"]["endpoint"], etcd.urls(Family::V4)[0].as_str());
        assert_eq!(status["store"]["state"], "connected");
        assert!(status["warnings"].to_string().contains("not reloaded"), "{status}");
    }
    // What needs a restart is named, and the rest is taken.
    agent.allow_log("need a restart");
    rewrite(&agent, &format!("udp_port = 4790\n{good}"));
    for _ in 0..2 {
        let outcome = reload(&agent);
        assert_eq!(outcome["applied"], true, "{outcome}");
        assert_eq!(outcome["kept"], serde_json::json!(["udp_port"]), "{outcome}");
    }
    let text = agent.cli(&["status"]).stdout;
    assert!(text.contains("after a restart: udp_port"), "{text}");
    rewrite(&agent, &good);
    let outcome = reload(&agent);
    assert_eq!(outcome["kept"], serde_json::json!([]), "{outcome}");
    assert_eq!(before, session(&agent), "the lease went on");
    assert!(!agent.json(&["status"])["warnings"].to_string().contains("not reloaded"));
}

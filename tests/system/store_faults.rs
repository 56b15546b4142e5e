//! What a store can suffer, under traffic that is counted: no frame is lost because of it, and
//! every table is what the store says soon after its return.
//!
//! `SKYBRIDGE_TEST_LONG=1` takes default times and minutes where the usual run has short times and
//! as many of them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testkit::{Cap, EtcdSpec, Family, Lab, Pki, Proxy, Store, Suite, wait_until};

use crate::scene::{ALLOWED, Mesh, SHORT, Scene, long};
use crate::support::{AGENTS, WITH_TLS, measured};

const CAPS: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd, Cap::Etcdctl];

pub(crate) fn register(suite: &mut Suite) {
    suite.timed("store_faults::killed", CAPS, killed);
    suite.timed("store_faults::stopped", CAPS, stopped);
    suite.timed("store_faults::leader_killed", CAPS, leader_killed);
    suite.timed("store_faults::quorum_lost", CAPS, quorum_lost);
    suite.timed("store_faults::compacted_while_away", CAPS, compacted_while_away);
    suite.timed("store_faults::slow", CAPS, slow);
    suite.timed("store_faults::restored", CAPS, restored);
    suite.timed("store_faults::embedded_restored", AGENTS, embedded_restored);
    suite.timed("store_faults::certificate_expired", WITH_TLS, certificate_expired);
    suite.timed("store_faults::role_revoked", CAPS, role_revoked);
}

/// kill -9 of the only member, away for more than two leases.
fn killed() {
    let scene = Scene::three();
    let etcd = scene.etcd();
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    etcd.kill9();
    std::thread::sleep(Duration::from_secs(5));
    etcd.restart();
    etcd.wait_healthy();
    let back = Instant::now();
    scene.put_marker(&scene.agents[1]);
    scene.wait_equal("etcd killed and restarted", back);
    mesh.lost_nothing("etcd killed and restarted");
}

/// A store that is silent and not gone: connections stay open and nothing is answered.
fn stopped() {
    let scene = Scene::three();
    let etcd = scene.etcd();
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    etcd.signal(Signal::SIGSTOP);
    for agent in &scene.agents {
        Scene::wait_away(agent);
    }
    std::thread::sleep(Duration::from_secs(4));
    etcd.signal(Signal::SIGCONT);
    let back = Instant::now();
    etcd.wait_healthy();
    scene.put_marker(&scene.agents[2]);
    scene.wait_equal("etcd stopped and continued", back);
    mesh.lost_nothing("etcd stopped and continued");
}

/// The member that leads is killed, twice: each time another one is elected.
fn leader_killed() {
    let lab = Lab::with_hosts(3).build();
    let etcd = lab.etcd_with(EtcdSpec::new().members(3));
    let scene = Scene::new(lab, |lab, host| lab.spec(host, Store::Etcd, Family::V4).config(SHORT));
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    for round in 1..=2 {
        let leader = etcd.leader();
        etcd.kill9_member(leader);
        let killed = Instant::now();
        etcd.wait_healthy();
        let back = Instant::now();
        measured(
            "a cluster that lost its leader takes writes again",
            format_args!("{:.1?}", back - killed),
        );
        scene.put_marker(&scene.agents[round]);
        scene.wait_equal("leader killed", back);
        etcd.restart();
        etcd.wait_healthy();
    }
    scene.wait_equal("all members back", Instant::now());
    mesh.lost_nothing("leader killed twice");
}

/// Two of three members are down for ten leases, or for three minutes with default times.
fn quorum_lost() {
    let lab = Lab::with_hosts(3).build();
    let etcd = lab.etcd_with(EtcdSpec::new().members(3));
    let (config, outage) = if long() { ("", 180) } else { (SHORT, 20) };
    let scene = Scene::new(lab, |lab, host| lab.spec(host, Store::Etcd, Family::V4).config(config));
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    for member in [1, 2] {
        etcd.kill9_member(member);
    }
    for agent in &scene.agents {
        Scene::wait_away(agent);
        let status = agent.json(&["status"]).to_string();
        assert!(status.contains("leader") || status.contains("answer"), "it says why: {status}");
    }
    std::thread::sleep(Duration::from_secs(outage));
    etcd.restart();
    etcd.wait_healthy();
    let back = Instant::now();
    scene.put_marker(&scene.agents[0]);
    scene.wait_equal("quorum lost and found", back);
    mesh.lost_nothing("quorum lost");
}

/// One host's watch is cut off while the others change and compact the store.
fn compacted_while_away() {
    let scene = Scene::three();
    let etcd = scene.etcd();
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    scene.lab.host(3).drop_tcp(2379);
    Scene::wait_away(&scene.agents[2]);
    scene.put_marker(&scene.agents[0]);
    let late = scene.agents[1].container(&scene.lab, crate::support::NETWORK, "late", &[]);
    let revision = etcd.ctl(&["endpoint", "status", "-w", "json"]).json();
    let revision = revision[0]["Status"]["header"]["revision"].to_string();
    let _ = etcd.ctl(&["compact", &revision]);
    scene.lab.host(3).pass_tcp();
    let back = Instant::now();
    scene.wait_equal("compacted while one was away", back);
    assert!(scene.agents[2].log().contains("compacted"), "the case that was meant");
    testkit::traffic::ping(scene.containers[2].netns(), late.address(Family::V4), 56);
    mesh.lost_nothing("compacted while one was away");
}

/// A wire to the store that delays by hundreds of milliseconds, and stands still at times.
fn slow() {
    let lab = Lab::with_hosts(3).build();
    let etcd = lab.etcd().address(Family::V4);
    let listen = std::net::SocketAddr::new(etcd.ip(), 2378);
    let proxy = Proxy::start(lab.switch(), listen, etcd);
    let vtep = |lab: &Lab, host: usize| lab.host(host).address(Family::V4);
    let scene = Scene::new(lab, |lab, host| {
        testkit::AgentSpec::new(vtep(lab, host)).store(listen).config(SHORT)
    });
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    // A round trip of 600 ms under a lease of two seconds: nobody becomes suspect.
    proxy.delay(Duration::from_millis(300));
    std::thread::sleep(Duration::from_secs(6));
    for agent in &scene.agents {
        let hosts = agent.json(&["hosts"]).to_string();
        assert!(!hosts.contains("suspect"), "{hosts}");
        // A beat may be late and say so for one round trip; the lease goes on.
        wait_until("the session is held", ALLOWED, || {
            (agent.json(&["status"])["session"]["state"] == "held").then_some(())
        });
    }
    scene.put_marker(&scene.agents[0]);
    scene.wait_equal("a store 300 ms away in each direction", Instant::now());
    for stall in [1, 4] {
        proxy.hold(true);
        std::thread::sleep(Duration::from_secs(stall));
        proxy.hold(false);
        let back = Instant::now();
        scene.put_marker(&scene.agents[1]);
        scene.wait_equal(&format!("a slow store that stood still for {stall} s"), back);
    }
    proxy.cut();
    scene.wait_equal("connections to a slow store cut", Instant::now());
    mesh.lost_nothing("a slow store");
}

/// The store is put back to a backup. What was attached and made since is written again by its
/// owners, what was detached since is removed again, and nobody loses a frame meanwhile. The
/// revision does not tell: it is beyond the old one before the agents may look.
fn restored() {
    let scene = Scene::three();
    let (lab, etcd) = (&scene.lab, scene.etcd());
    scene.agents[0].allow_log("is not attached; removing");
    let gone = scene.agents[0].container(lab, crate::support::NETWORK, "gone", &[]);
    let file = lab.directory().join("backup.db");
    etcd.backup(&file);
    let mut talking = scene.containers.clone();
    // After the backup: two endpoints that talk, one that goes, a network of its own.
    talking.push(scene.agents[1].container(lab, crate::support::NETWORK, "late", &[]));
    scene.agents[0].detach(crate::support::NETWORK, &gone);
    scene.agents[2].create_network("green", &["--subnet", "203.0.113.0/24"]);
    let green: Vec<_> = [1, 2]
        .map(|at: usize| scene.agents[at].container(lab, "green", &format!("green{at}"), &[]))
        .into();
    scene.wait_equal("before the restoration", Instant::now());
    let mesh = Mesh::start(lab, &talking);
    let green = Mesh::start(lab, &green);
    // No agent sees it before its revision is beyond what they know.
    for host in lab.hosts() {
        host.drop_tcp(2379);
    }
    etcd.restore(&file);
    etcd.wait_healthy();
    for _ in 0..40 {
        let _ = etcd.ctl(&["put", "/elsewhere", ""]);
    }
    for host in lab.hosts() {
        host.pass_tcp();
    }
    let back = Instant::now();
    let networks = || etcd.ctl(&["get", "--prefix", "--keys-only", "/skybridge/v1/names/"]).stdout;
    wait_until("what came after the backup is there again", ALLOWED, || {
        (networks().contains("/green") && scene.endpoints_in_store() == 6).then_some(())
    });
    measured("the store is whole again after", format_args!("{:.1?}", back.elapsed()));
    scene.wait_equal("restored from a backup", back);
    for agent in &scene.agents {
        assert!(agent.log().contains("gone back"), "{} has noticed", agent.name());
    }
    mesh.lost_nothing("restored from a backup");
    green.lost_nothing("a network that the backup lacks");
    // It is owned again, not only there: it can be detached and its address taken.
    scene.agents[1].detach(crate::support::NETWORK, &talking[3]);
    let address = talking[3].address(Family::V4).to_string();
    let again =
        scene.agents[2].container(lab, crate::support::NETWORK, "again", &["--ip", &address]);
    testkit::traffic::ping(scene.containers[0].netns(), again.address(Family::V4), 56);
}

/// The embedded store's file is put back to a copy while its host's agent is down.
fn embedded_restored() {
    let lab = Lab::with_hosts(3).build();
    let spec = |host| lab.spec(host, Store::Embedded, Family::V4).config(SHORT);
    let agents = [1, 2, 3].map(|host| lab.start_agent(host, spec(host)));
    for agent in &agents {
        for text in ["store", "lease", "watch", "needs attention"] {
            agent.allow_log(text);
        }
    }
    agents[0].create_network(crate::support::NETWORK, crate::support::DUAL);
    let containers = crate::support::containers(&lab, &agents[1..]);
    let file = agents[0].state_dir().join("store/store.redb");
    let copy = lab.directory().join("copy.redb");
    agents[0].kill9();
    std::fs::copy(&file, &copy).unwrap();
    agents[0].start();
    let endpoints = |agent: &testkit::Agent| agent.json(&["endpoints"]).as_array().unwrap().len();
    let late = wait_until("the store takes endpoints", ALLOWED, || {
        let sandbox = lab.sandbox(&format!("late{}", testkit::traffic::next_port()));
        let attach = ["attach", crate::support::NETWORK, "--netns", sandbox.name()];
        let done = agents[2].try_cli(&attach).status.success();
        done.then(|| testkit::Container::inspect(sandbox, "eth0"))
    })
    .0;
    wait_until("all know it", ALLOWED, || {
        agents.iter().all(|agent| endpoints(agent) == 3).then_some(())
    });
    let talking = [containers[0].clone(), containers[1].clone(), late.clone()];
    let mesh = Mesh::start(&lab, &talking);
    agents[0].kill9();
    std::fs::copy(&copy, &file).unwrap();
    agents[0].start();
    let back = Instant::now();
    wait_until("all know all of it again", ALLOWED, || {
        agents.iter().all(|agent| endpoints(agent) == 3).then_some(())
    });
    wait_until("it is in the store, not only remembered", ALLOWED, || {
        agents[2].log().contains("written to the store again").then_some(())
    });
    measured("the embedded store is whole again after", format_args!("{:.1?}", back.elapsed()));
    mesh.lost_nothing("the embedded store restored from a copy");
}

/// The store's certificate expires; nobody can connect until it is renewed, and nobody minds.
fn certificate_expired() {
    let lab = Lab::with_hosts(3).build();
    let pki = Pki::create(&lab.directory().join("pki"));
    let names = ["192.0.2.254", "2001:db8::fe"];
    let day = Duration::from_secs(86_400);
    pki.issue("server", &names, day);
    let etcd = lab.etcd_with(EtcdSpec::new().tls(pki.clone()));
    let tls = format!("{SHORT}\n{}", pki.config("client"));
    let scene = Scene::new(lab, |lab, host| lab.spec(host, Store::Etcd, Family::V4).config(&tls));
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    // It has expired when etcd shows it next.
    pki.issue("server", &names, Duration::from_secs(1));
    std::thread::sleep(Duration::from_secs(2));
    etcd.kill9();
    etcd.restart();
    for agent in &scene.agents {
        wait_until("it says what is wrong", ALLOWED, || {
            agent.json(&["status"]).to_string().to_lowercase().contains("expired").then_some(())
        });
    }
    std::thread::sleep(Duration::from_secs(4));
    pki.issue("server", &names, day);
    let back = Instant::now();
    etcd.wait_healthy();
    scene.put_marker(&scene.agents[1]);
    scene.wait_equal("an expired certificate renewed", back);
    mesh.lost_nothing("an expired certificate");
}

/// The agents' role is taken from their user, and given back.
fn role_revoked() {
    let lab = Lab::with_hosts(3).build();
    let etcd = lab.etcd();
    let password = lab.directory().join("password");
    std::fs::write(&password, "for a test\n").unwrap();
    for args in [
        &["role", "add", "agents"][..],
        &["role", "grant-permission", "agents", "--prefix=true", "readwrite", "/skybridge/"],
        &["user", "add", "agent:for a test"],
        &["user", "grant-role", "agent", "agents"],
        &["user", "add", "root:root"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        let _ = etcd.ctl(args);
    }
    etcd.log_in("root:root");
    let user = format!("{SHORT}\n[user]\nname = \"agent\"\npassword_file = {password:?}");
    let scene = Scene::new(lab, |lab, host| lab.spec(host, Store::Etcd, Family::V4).config(&user));
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    let _ = etcd.ctl(&["user", "revoke-role", "agent", "agents"]);
    // Its streams end, and each that is opened again is refused.
    etcd.kill9();
    etcd.restart();
    for agent in &scene.agents {
        wait_until("it says what is wrong", ALLOWED, || {
            let status = agent.json(&["status"]).to_string();
            status.contains("permission denied").then_some(())
        });
    }
    std::thread::sleep(Duration::from_secs(3));
    let _ = etcd.ctl(&["user", "grant-role", "agent", "agents"]);
    let back = Instant::now();
    scene.put_marker(&scene.agents[2]);
    scene.wait_equal("a role given back", back);
    mesh.lost_nothing("a role revoked");
}

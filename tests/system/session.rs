//! A host's presence: cut off from the store alone, stopped and continued, replaced.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::{Agent, Cap, Family, Lab, Store, Suite, wait_until};

use crate::scene::{ALLOWED, Mesh, SHORT, Scene, long};
use crate::support::{NETWORK, measured};

const CAPS: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd, Cap::Etcdctl];

pub(crate) fn register(suite: &mut Suite) {
    suite.timed("session::only_the_store_link", CAPS, only_the_store_link);
    suite.timed("session::stopped_and_continued", CAPS, stopped_and_continued);
    suite.timed("session::replaced_while_stopped", CAPS, replaced_while_stopped);
    suite.test("session::a_lost_record_is_written_again", CAPS, a_lost_record_is_written_again);
}

/// What the store says of a host, `None` while it is absent.
fn stored(scene: &Scene, kind: &str, host: &str) -> Option<Value> {
    let key = format!("/skybridge/v1/{kind}/{host}");
    let found = scene.etcd().ctl(&["get", "--print-value-only", &key]);
    (!found.stdout.trim().is_empty()).then(|| found.json())
}

fn incarnation(scene: &Scene, kind: &str, host: &str) -> Option<u64> {
    stored(scene, kind, host)?["incarnation"].as_u64()
}

/// One host of three loses its link to the store and nothing else, for ten hold-downs (with
/// `SKYBRIDGE_TEST_LONG=1` for five minutes, which are ten of the default ones). It is suspect all
/// the time, and no frame is lost in any direction.
fn only_the_store_link() {
    let (config, outage) = if long() { ("", 300) } else { (SHORT, 20) };
    let lab = Lab::with_hosts(3).build();
    let scene = Scene::new(lab, |lab, host| lab.spec(host, Store::Etcd, Family::V4).config(config));
    let cut_off = &scene.agents[0];
    // The lease must end, agents must notice, and what comes after is counted too.
    let mesh = Mesh::start(&scene.lab, &scene.containers);
    scene.lab.host(1).drop_tcp(2379);
    let since = Instant::now();
    scene.wait_suspect(cut_off);
    Scene::wait_away(cut_off);
    assert_eq!(incarnation(&scene, "hosts", "h1"), None, "its lease has ended");
    std::thread::sleep(Duration::from_secs(outage).saturating_sub(since.elapsed()));
    // It was heard all the time, so its broadcasts are still wanted: it stays in flood lists.
    let drops = scene.agents[1].json(&["drops"]).to_string();
    assert!(cut_off.running(), "{drops}");
    scene.lab.host(1).pass_tcp();
    let back = Instant::now();
    scene.put_marker(&scene.agents[1]);
    scene.wait_equal("a host that had lost only its store", back);
    mesh.lost_nothing("one host without its store");
}

/// An agent is stopped for far longer than its lease and then goes on. It does nothing of what it
/// meant to do when it was stopped that others have changed since, and is present again as the
/// same run. The traffic of the others is not touched.
fn stopped_and_continued() {
    let scene = Scene::three();
    let stopped = &scene.agents[0];
    let before = incarnation(&scene, "hosts", "h1");
    let seconds = if long() { 60 } else { 14 };
    let mesh = Mesh::start(&scene.lab, &scene.containers[1..]);
    stopped.signal(Signal::SIGSTOP);
    let since = Instant::now();
    for agent in &scene.agents[1..] {
        wait_until("it is suspect", ALLOWED, || is(agent, "h1", "suspect").then_some(()));
    }
    // The others go on changing things meanwhile.
    let late = scene.agents[1].container(&scene.lab, NETWORK, "late", &[]);
    scene.agents[2].detach(NETWORK, &scene.agents[2].container(&scene.lab, NETWORK, "gone", &[]));
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(since.elapsed()));
    stopped.signal(Signal::SIGCONT);
    let back = Instant::now();
    scene.wait_equal("an agent stopped and continued", back);
    assert_eq!(incarnation(&scene, "hosts", "h1"), before, "the same run");
    assert_eq!(incarnation(&scene, "known", "h1"), before);
    for (from, to) in [(&scene.containers[0], &late), (&late, &scene.containers[0])] {
        testkit::traffic::ping(from.netns(), to.address(Family::V4), 56);
    }
    mesh.lost_nothing("an agent stopped and continued");
}

/// While an agent is stopped, the operator brings up its host elsewhere with a copy of its state.
/// When the old one goes on it finds a newer run under its name: it says so, writes nothing, and
/// the store keeps what the new one wrote.
fn replaced_while_stopped() {
    let lab = Lab::with_hosts(4).build();
    let spec = |lab: &Lab, host| lab.spec(host, Store::Etcd, Family::V4).config(SHORT);
    let scene = Scene::of(lab, &[1, 2, 3], spec);
    let old = &scene.agents[0];
    let before = incarnation(&scene, "hosts", "h1").unwrap();
    let mesh = Mesh::start(&scene.lab, &scene.containers[1..]);
    old.signal(Signal::SIGSTOP);
    for agent in &scene.agents[1..] {
        wait_until("it is suspect", ALLOWED, || is(agent, "h1", "suspect").then_some(()));
    }
    let new = scene.lab.agent_as("h1", "replacement", 4, spec(&scene.lab, 4));
    for text in ["store", "lease", "watch", "remov", "sandbox", "attach", "second time"] {
        new.allow_log(text);
        old.allow_log(text);
    }
    let copied = Command::new("cp").arg("-a").arg(old.state_dir()).arg(new.state_dir()).status();
    assert!(copied.unwrap().success());
    new.start();
    let speaks = || (incarnation(&scene, "hosts", "h1") == Some(before + 1)).then_some(());
    wait_until("the new run speaks for the host", ALLOWED, speaks);
    let here = new.container(&scene.lab, NETWORK, "here", &[]);
    let revision = |scene: &Scene| {
        let args = ["get", "--prefix", "/skybridge/v1/", "--keys-only"];
        scene.etcd().ctl(&args).stdout
    };
    let keys = revision(&scene);
    let taken = stored(&scene, "hosts", "h1").unwrap();
    old.signal(Signal::SIGCONT);
    let ((), took) = wait_until("the old one says who is in its way", ALLOWED, || {
        let warnings = old.json(&["status"])["warnings"].to_string();
        warnings.contains("runs a second time").then_some(())
    });
    measured("an agent that was replaced while stopped knows after", format_args!("{took:.1?}"));
    // It may not attach under a name that another run has.
    let refused = old.try_cli(&["attach", NETWORK, "--netns", scene.lab.sandbox("no").name()]);
    assert!(!refused.status.success(), "{refused}");
    assert!(format!("{refused}").contains("second time"), "{refused}");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(stored(&scene, "hosts", "h1").unwrap(), taken);
    assert_eq!(incarnation(&scene, "known", "h1"), Some(before + 1));
    assert_eq!(revision(&scene), keys, "nothing came and nothing went");
    for (from, to) in [(&scene.containers[1], &here), (&here, &scene.containers[2])] {
        testkit::traffic::ping(from.netns(), to.address(Family::V4), 56);
    }
    mesh.lost_nothing("an agent replaced while it was stopped");
}

/// Somebody deletes the records of a host and of an endpoint that are alive: both are written
/// again at once.
fn a_lost_record_is_written_again() {
    let scene = Scene::three();
    let etcd = scene.etcd();
    let ids = || etcd.ctl(&["get", "--prefix", "--keys-only", "/skybridge/v1/endpoints/"]).stdout;
    let before = ids();
    let deleted = Instant::now();
    let _ = etcd.ctl(&["del", "--prefix", "/skybridge/v1/endpoints/"]);
    for host in ["hosts/h2", "known/h2", "hosts/h3"] {
        let _ = etcd.ctl(&["del", &format!("/skybridge/v1/{host}")]);
    }
    wait_until("the same endpoints are there again", ALLOWED, || (ids() == before).then_some(()));
    scene.wait_equal("records deleted by hand", deleted);
    for kind in ["hosts", "known"] {
        assert!(incarnation(&scene, kind, "h2").is_some(), "{kind}/h2");
    }
    let [a, b, c] = [0, 1, 2].map(|at| &scene.containers[at]);
    for (from, to) in [(a, b), (b, c), (c, a)] {
        testkit::traffic::ping(from.netns(), to.address(Family::V4), 56);
    }
}

fn is(agent: &Agent, host: &str, state: &str) -> bool {
    let hosts = agent.json(&["hosts"]);
    let mut hosts = hosts.as_array().into_iter().flatten();
    hosts.any(|found| found["name"] == host && found["state"] == state)
}

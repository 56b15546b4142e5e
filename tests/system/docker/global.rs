//! Global scope: two Dockers with one cluster store, which is told to one of their drivers only.

use testkit::docker::ClusterStore;
use testkit::{DockerRelease, Family, traffic};

use super::{Scene, seen};

pub(crate) fn global_scope() {
    let scene = Scene::new("global", DockerRelease::Usual);
    let store = ClusterStore::start(&scene.lab);
    for (docker, host) in scene.dockers.iter().zip(scene.lab.hosts()) {
        let advertise = format!("--cluster-advertise={}:2375", host.address(Family::V4));
        docker.start(&[&format!("--cluster-store={}", store.url()), &advertise]);
    }
    let [one, two] = scene.dockers.as_slice() else { panic!("two of them") };
    let before = scene.traces();
    let _ = one.docker(&[
        "network",
        "create",
        "-d",
        "skybridge",
        "--ipam-driver",
        "skybridge",
        "--subnet",
        "198.51.100.0/24",
        "-o",
        "vni=4242",
        "web",
    ]);
    let id = |docker: &testkit::Docker| {
        docker.docker(&["network", "inspect", "--format", "{{.Id}}", "web"])
    };
    testkit::wait_until("the other Docker knows it", super::ALLOWED, || {
        two.try_docker(&["network", "inspect", "web"]).status.success().then_some(())
    });
    assert_eq!(id(one), id(two), "one network with one id");
    let first = one.run("c1", "web", &[]);
    let second = two.run("c2", "web", &["--ip", "198.51.100.9"]);
    assert_eq!(seen(two, "c2", "web")["IPAddress"], "198.51.100.9");
    traffic::ping(first.netns(), second.address(Family::V4), 56);
    traffic::ping(second.netns(), first.address(Family::V4), 56);
    assert_eq!(scene.agents[0].json(&["endpoints"]).as_array().map(Vec::len), Some(2));
    // An agent that comes back finds by the id what was never told to it.
    scene.agents[1].kill9();
    scene.agents[1].start();
    let third = two.run("c3", "web", &[]);
    traffic::ping(third.netns(), first.address(Family::V4), 56);
    drop((first, second, third));
    let _ = one.docker(&["rm", "-f", "c1"]);
    let _ = two.docker(&["rm", "-f", "c2", "c3"]);
    let _ = two.docker(&["network", "rm", "web"]);
    scene.wait_traces(&before);
}

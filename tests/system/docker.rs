//! Docker networks.

use testkit::{Cap, Docker, Lab, Suite};

const WITH_DOCKER: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd, Cap::Docker];

pub(crate) fn register(suite: &mut Suite) {
    suite.test("docker::daemons_live_side_by_side", WITH_DOCKER, daemons_live_side_by_side);
}

/// The lab's own part: two daemons, one of which crashes and comes back.
fn daemons_live_side_by_side() {
    let lab = Lab::with_hosts(2).build();
    let daemons = [1, 2].map(|host| Docker::new(&lab, lab.host(host)));
    for docker in &daemons {
        docker.start(&[]);
        let _ = docker.docker(&["run", "-d", "--name", "c1", "--network", "none", "bb"]);
        let key = docker.docker(&["inspect", "-f", "{{.NetworkSettings.SandboxKey}}", "c1"]);
        assert!(std::fs::exists(&key).unwrap(), "the sandbox {key} is seen from outside");
        assert_eq!(docker.exec("c1", &["hostname"]).trim().len(), 12);
    }
    daemons[0].kill9();
    assert!(!daemons[0].try_docker(&["ps"]).status.success());
    daemons[0].start(&[]);
    let _ = daemons[0].docker(&["start", "c1"]);
    assert_eq!(daemons[1].docker(&["ps", "--format", "{{.Names}}"]), "c1");
    for docker in &daemons {
        assert_eq!(docker.docker(&["rm", "-f", "c1"]), "c1");
    }
}

//! Other people's firewalls on the host, which drop what is forwarded unless they are asked.

use std::io::Write as _;
use std::process::Stdio;

use testkit::{Agent, Family, Lab, Netns, traffic, wait_until};

use super::{
    FAMILIES, GREEN, SOON, World, nothing_is_left, reaches_world, start, wait_reaches, with,
};
use crate::support::measured;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Firewall {
    /// As Docker makes it with iptables on nftables.
    Docker,
    /// The same chains, made without iptables.
    DockerNft,
    /// As Docker makes it with iptables of the older kernel interface.
    Legacy,
    /// A table of somebody's own, with the policy drop.
    Nft,
    /// As RHEL's iptables services make it: what no rule has accepted is rejected by the last one.
    RejectsLast,
    /// The same with the older kernel interface.
    LegacyRejectsLast,
    /// As firewalld makes it, with its priority.
    Firewalld,
}

impl Firewall {
    /// The commands that make it, as after a boot.
    pub(super) fn load(self, netns: &Netns) {
        match self {
            Self::Docker => iptables(netns, NFT, &DOCKER),
            Self::Legacy => iptables(netns, LEGACY, &DOCKER),
            Self::RejectsLast => iptables(netns, NFT, &REJECTS_LAST),
            Self::LegacyRejectsLast => iptables(netns, LEGACY, &REJECTS_LAST),
            Self::Firewalld => nft(netns, &format!("add table inet firewalld\n{FIREWALLD}")),
            Self::DockerNft => {
                for family in ["ip", "ip6"] {
                    let rules = format!(
                        "add table {family} filter\n\
                         add chain {family} filter FORWARD \
                         {{ type filter hook forward priority 0; policy drop; }}\n\
                         add chain {family} filter DOCKER-USER\n\
                         add chain {family} filter DOCKER-FORWARD\n\
                         add rule {family} filter DOCKER-USER counter return\n\
                         add rule {family} filter FORWARD counter jump DOCKER-USER\n\
                         add rule {family} filter FORWARD counter jump DOCKER-FORWARD\n"
                    );
                    nft(netns, &rules);
                }
            }
            Self::Nft => nft(
                netns,
                "add table inet mine\n\
                 add chain inet mine forward { type filter hook forward priority 0; policy drop; }\n\
                 add rule inet mine forward ct state established,related accept\n",
            ),
        }
    }

    /// Throws everything away, ours too, and loads it again.
    fn reload(self, netns: &Netns) {
        if self.is_legacy() {
            for command in LEGACY {
                for words in [["-F"], ["-X"]] {
                    netns.exec(command, &words);
                }
            }
        }
        netns.exec("nft", &["flush", "ruleset"]);
        self.load(netns);
    }

    fn is_legacy(self) -> bool {
        matches!(self, Self::Legacy | Self::LegacyRejectsLast)
    }

    /// Where our jumps belong.
    fn places(self) -> &'static [&'static str] {
        match self {
            Self::Docker | Self::DockerNft => &["ip filter DOCKER-USER", "ip6 filter DOCKER-USER"],
            Self::Legacy => &["ip filter DOCKER-USER (legacy)", "ip6 filter DOCKER-USER (legacy)"],
            Self::Nft => &["inet mine forward"],
            Self::RejectsLast => &["ip filter FORWARD", "ip6 filter FORWARD"],
            Self::LegacyRejectsLast => {
                &["ip filter FORWARD (legacy)", "ip6 filter FORWARD (legacy)"]
            }
            Self::Firewalld => &["inet firewalld filter_FORWARD"],
        }
    }
}

/// What is in firewalld's table.
const FIREWALLD: &str = "\
    add chain inet firewalld filter_FORWARD \
    { type filter hook forward priority 10; policy accept; }\n\
    add chain inet firewalld filter_FORWARD_POLICIES\n\
    add rule inet firewalld filter_FORWARD ct state { established, related } accept\n\
    add rule inet firewalld filter_FORWARD ct status dnat accept\n\
    add rule inet firewalld filter_FORWARD iifname lo accept\n\
    add rule inet firewalld filter_FORWARD ct state invalid drop\n\
    add rule inet firewalld filter_FORWARD jump filter_FORWARD_POLICIES\n\
    add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited\n";
const NFT: [&str; 2] = ["iptables-nft", "ip6tables-nft"];
const LEGACY: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];
const DOCKER: [&str; 6] = [
    "-P FORWARD DROP",
    "-N DOCKER-USER",
    "-A DOCKER-USER -j RETURN",
    "-N DOCKER-FORWARD",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-FORWARD",
];
const REJECTS_LAST: [&str; 2] =
    ["-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A FORWARD -j REJECT"];

fn iptables(netns: &Netns, commands: [&str; 2], rules: &[&str]) {
    for command in commands {
        for words in rules {
            netns.exec(command, &words.split_whitespace().collect::<Vec<_>>());
        }
    }
}

fn nft(netns: &Netns, rules: &str) {
    netns.exec("nft", &[rules]);
}

fn permission(agent: &Agent) -> Vec<String> {
    let status = agent.json(&["status"]);
    let places = status["outside"]["permission"].as_array().cloned().unwrap_or_default();
    places.iter().filter_map(|place| place.as_str().map(str::to_owned)).collect()
}

pub(super) fn one_that_drops(firewall: Firewall) {
    let lab = Lab::with_hosts(1).build();
    let _world = World::behind(&lab, 1, 1500);
    let host = lab.host(1).netns();
    firewall.load(host);
    let agent = &start(&lab, &[1])[0];
    agent.create_network(GREEN, &with(&["--nat-outgoing"]));
    let inside = agent.container(&lab, GREEN, "c1", &["--default-route"]);
    reaches_world(&inside);
    assert_eq!(permission(agent), firewall.places());

    // A packet that is not ours is dropped as before.
    let stranger = lab.sandbox("stranger");
    host.ip(&format!("link add s0 type veth peer name eth0 netns {}", stranger.name()));
    host.ip("addr add 203.0.113.129/30 dev s0");
    host.ip("link set s0 up");
    stranger.ip("addr add 203.0.113.130/30 dev eth0");
    stranger.ip("link set eth0 up");
    stranger.ip("route add default via 203.0.113.129");
    assert!(!traffic::reaches(&stranger, World::address(Family::V4)));

    for round in 1..=2 {
        firewall.reload(host);
        let begun = std::time::Instant::now();
        for family in FAMILIES {
            let world = World::address(family);
            wait_reaches("the world after a reload", inside.netns(), world);
        }
        measured(
            &format!("{firewall:?}, reload {round}"),
            format_args!("reached again after {:.1} s", begun.elapsed().as_secs_f64()),
        );
        wait_until("leave to pass everywhere", SOON, || {
            (permission(agent) == firewall.places()).then_some(())
        });
        reaches_world(&inside);
    }
    wait_until("both reloads are counted", SOON, || {
        (agent.json(&["status"])["outside"]["reasserted"].as_u64() >= Some(2)).then_some(())
    });
    if firewall == Firewall::Docker {
        // Its own tool still reads what is there.
        let listed = host.exec("iptables-nft", &["-S"]);
        assert!(listed.contains("-A DOCKER-USER -j SKYBRIDGE-"), "{listed}");
    }

    agent.stop();
    let _ = agent.clean_up().expect_success();
    nothing_is_left(agent);
    if firewall.is_legacy() {
        let listed = host.exec("iptables-legacy", &["-S"]);
        assert!(!listed.contains("SKYBRIDGE") && listed.contains("-A FORWARD"), "{listed}");
    }
}

/// The kernel lets nobody else change a table whose program has said that it owns it. That is told, the
/// others are asked all the same, and nothing is written again and again.
pub(super) fn one_of_its_owner() {
    let lab = Lab::with_hosts(1).build();
    let _world = World::behind(&lab, 1, 1500);
    let host = lab.host(1).netns();
    Firewall::DockerNft.load(host);
    let mut owner = host.command("nft");
    let mut owner = owner.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let rules = format!("add table inet firewalld {{ flags owner; }}\n{FIREWALLD}");
    owner.stdin.as_mut().unwrap().write_all(rules.as_bytes()).unwrap();
    wait_until("the table is there", SOON, || {
        let listed =
            host.try_exec("nft", &["list", "chain", "inet", "firewalld", "filter_FORWARD"]);
        listed.stdout.contains("reject").then_some(())
    });
    let agent = &start(&lab, &[1])[0];
    agent.allow_log("cannot be asked");
    agent.create_network(GREEN, &with(&["--nat-outgoing"]));
    let inside = agent.container(&lab, GREEN, "c1", &["--default-route"]);
    let outside = || agent.json(&["status"])["outside"].clone();
    wait_until("the refusal is told", SOON, || {
        outside()["refused"][0]
            .as_str()?
            .starts_with("inet firewalld filter_FORWARD (")
            .then_some(())
    });
    assert_eq!(permission(agent), Firewall::DockerNft.places());
    let text = agent.cli(&["status"]).stdout;
    assert!(text.contains("refused by inet firewalld filter_FORWARD"), "{text}");
    assert!(!traffic::reaches(inside.netns(), World::address(Family::V4)));
    let log = agent.log();
    assert_eq!(log.matches("cannot be asked").count(), 1, "{log}");
    assert_eq!(outside()["reasserted"], 0, "{}", outside());
    // The table goes with its owner.
    drop(owner.stdin.take());
    let _ = owner.wait().unwrap();
    wait_until("nobody refuses any more", SOON, || {
        (outside()["refused"].as_array()?.is_empty()).then_some(())
    });
    reaches_world(&inside);
}

//! Pools and gateways that Docker asks for before it tells of the network.

use serde_json::{Value, json};
use testkit::Lab;

use super::faults::Hand;
use super::replay::{agent, ask};

/// The same command on two hosts is one network, also where IPv6 is wanted and no prefix is written: the
/// second host gets what was chosen for the first.
pub(crate) fn prefix_that_nobody_wrote() {
    let lab = Lab::with_hosts(2).build();
    let agents = [1, 2].map(|host| agent(&lab, host, "local"));
    let pools = agents.each_ref().map(|(_, socket)| {
        let hand = Hand { socket, network: "0123456789abcdef" };
        let space = "skybridge-local";
        let written = json!({ "Pool": "198.51.100.0/24", "AddressSpace": space });
        let _ = hand.done("IpamDriver.RequestPool", &written);
        let asked = json!({ "V6": true, "AddressSpace": space });
        let chosen = hand.done("IpamDriver.RequestPool", &asked)["Pool"].clone();
        let data = |pool: &Value| json!([{ "AddressSpace": space, "Pool": pool }]);
        let create = json!({
            "NetworkID": hand.network,
            "Options": {},
            "IPv4Data": data(&json!("198.51.100.0/24")),
            "IPv6Data": data(&chosen),
        });
        let _ = hand.done("NetworkDriver.CreateNetwork", &create);
        // The next network's, which has no IPv4, is another one.
        assert_ne!(hand.done("IpamDriver.RequestPool", &asked)["Pool"], chosen);
        chosen
    });
    assert_eq!(pools[0], pools[1]);
    let listed = agents[0].0.json(&["network", "ls"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
}

/// Docker up to 26 asks without end for another pool than one that its host has a route to. What we
/// choose keeps off routes; what is named is refused in the end.
pub(crate) fn pools_beside_routes() {
    let lab = Lab::with_hosts(1).build();
    let (host, socket) = agent(&lab, 1, "local");
    host.create_network("blue", &["--subnet", "198.51.100.0/24"]);
    let hand = Hand { socket: &socket, network: "0123456789abcdef" };
    let named = json!({ "Options": { "network": "blue" } });
    let ended = (0..50).map(|_| ask(&socket, "IpamDriver.RequestPool", &named));
    let refused = ended.filter_map(|answer| Some(answer["Error"].as_str()?.to_owned())).next();
    assert!(
        refused.as_ref().is_some_and(|it| it.contains("--subnet 198.51.100.0/24")),
        "{refused:?}"
    );
    let written = json!({ "Options": { "network": "blue" }, "Pool": "198.51.100.0/24" });
    for _ in 0..50 {
        let _ = hand.done("IpamDriver.RequestPool", &written);
    }
    // Half of what we choose from.
    let _ = host.netns().ip("route add unreachable 10.208.0.0/13");
    let _ = host.netns().ip("route add 10.216.0.0/14 dev eth0");
    for _ in 0..20 {
        let chosen = hand.done("IpamDriver.RequestPool", &json!({}))["Pool"].clone();
        let pool = chosen.as_str().unwrap();
        let second: u8 = pool.split('.').nth(1).unwrap().parse().unwrap();
        assert!((220..224).contains(&second), "{pool}");
    }
    let _ = host.netns().ip("route add 10.0.0.0/8 dev eth0");
    let refused = ask(&socket, "IpamDriver.RequestPool", &json!({}));
    assert!(refused["Error"].as_str().is_some_and(|it| it.contains("10.0.0.0/8")), "{refused}");
}

/// Docker's interfaces need frames.
pub(crate) fn routed_networks_are_refused() {
    let lab = Lab::with_hosts(1).build();
    let (host, socket) = agent(&lab, 1, "local");
    host.create_network("red", &["--mode", "ipip", "--subnet", "198.51.100.0/24"]);
    let space = "skybridge-local";
    let create = json!({
        "NetworkID": "0123456789abcdef",
        "Options": { "com.docker.network.generic": { "network": "red" } },
        "IPv4Data": [{ "AddressSpace": space, "Pool": "198.51.100.0/24" }],
    });
    let refused = ask(&socket, "NetworkDriver.CreateNetwork", &create);
    assert!(refused["Err"].as_str().is_some_and(|it| it.contains("mode ipip")), "{refused}");
}

/// Docker from 28 on asks first whether it needs a gateway.
pub(crate) fn gateways_that_are_not_needed() {
    let lab = Lab::with_hosts(1).build();
    let (host, socket) = agent(&lab, 1, "local");
    host.create_network("blue", &["--subnet", "198.51.100.0/24", "--subnet", "2001:db8:1::/64"]);
    host.create_network("red", &["--subnet", "203.0.113.0/24", "--gateway", "203.0.113.1"]);
    let skips = |name: &str| {
        let asked = json!({ "Options": { "com.docker.network.generic": { "network": name } } });
        let told = ask(&socket, "NetworkDriver.GwAllocCheck", &asked);
        [told["SkipIPv4"].clone(), told["SkipIPv6"].clone()]
    };
    assert_eq!(skips("blue"), [true, true]);
    assert_eq!(skips("red"), [false, true]);
    assert_eq!(skips("new"), [false, false]);
}

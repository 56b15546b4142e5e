//! Every key of the file: what it means, its default, an example.

/// One key of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key, with its table in front, such as `log.level`.
    pub name: &'static str,
    /// What it means, with units and limits.
    pub doc: &'static str,
    /// What it is when nobody says.
    pub default: &'static str,
    /// A value in TOML.
    pub example: &'static str,
}

const fn key(
    name: &'static str,
    default: &'static str,
    example: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, doc, default, example }
}

/// Every key, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    key(
        "name",
        "the name under which this host has joined its store, else the machine's host name",
        r#""h1""#,
        "Name of this host, unique in the cluster.",
    ),
    key(
        "vtep",
        "must be set",
        r#""192.0.2.1""#,
        "Underlay address of this host, one per family: an address, a list of addresses, or a list \
         of tables { address, bind, port, mtu, accept }. `address` is what other hosts send to; \
         `bind` is this machine's own address where that differs (1:1 NAT); `mtu` in bytes \
         replaces the interface's; `accept` lists further source addresses that this host's \
         datagrams may have.",
    ),
    key("udp_port", "4789", "4789", "UDP port of the underlay, 1 to 65535."),
    key(
        "stores",
        "the embedded store where there is one, else the store that this host has joined, else they \
         must be set",
        r#"["http://192.0.2.1:2379"]"#,
        "Endpoints of the store, an etcd cluster or the host that serves the embedded one. \
         `https://` needs [tls].",
    ),
    key(
        "embedded_store",
        "not served",
        r#""192.0.2.1:2379""#,
        "Serve the embedded store at this address and use it. One host of the cluster does. Beyond \
         loopback it has an authority of its own and hosts join it with tokens, unless \
         insecure_store is set.",
    ),
    key(
        "insecure_store",
        "false",
        "false",
        "Allow the store in clear (`http://`) beyond loopback. Whoever can reach it or listen in \
         can then change every network: only on an underlay that you trust.",
    ),
    key(
        "store_prefix",
        r#""""#,
        r#""/prod""#,
        "Put in front of the store's keys, so that several clusters can share one etcd.",
    ),
    key(
        "workers",
        "one per CPU, at most 8",
        "2",
        "Worker threads of the datapath, 1 to 64. Each takes a CPU under load.",
    ),
    key(
        "state_dir",
        r#""/var/lib/skybridge""#,
        r#""/var/lib/skybridge""#,
        "Where the agent keeps its state. Names of namespaces and devices derive from it, so two \
         agents on one machine need two.",
    ),
    key(
        "socket",
        r#""/run/skybridge/agent.sock""#,
        r#""/run/skybridge/agent.sock""#,
        "Control socket, made with mode 0660.",
    ),
    key(
        "socket_group",
        "the agent's own group",
        r#""skybridge""#,
        "Group whose members may use the control socket.",
    ),
    key("metrics", "not served", r#""127.0.0.1:9474""#, "Serve metrics at this address."),
    key(
        "tls.ca",
        "not set",
        r#""/etc/skybridge/ca.pem""#,
        "Certificates of the authority that the store's certificate must come from, PEM.",
    ),
    key(
        "tls.certificate",
        "not set",
        r#""/etc/skybridge/h1.pem""#,
        "This host's certificate for the store, PEM. Needs tls.key.",
    ),
    key("tls.key", "not set", r#""/etc/skybridge/h1.key""#, "The key of that certificate, PEM."),
    key(
        "tls.server_name",
        "the endpoint's host",
        r#""store.example""#,
        "Name that the store's certificate must have.",
    ),
    key("user.name", "not set", r#""h1""#, "User name for the store."),
    key(
        "user.password_file",
        "not set",
        r#""/etc/skybridge/password""#,
        "File with that user's password on its first line.",
    ),
    key(
        "session.lease",
        r#""10s""#,
        r#""10s""#,
        "Time to live of this host's lease, 2s to 10m. A host whose lease ends is suspect; its \
         entries stay in use.",
    ),
    key(
        "session.hold_down",
        r#""30s""#,
        r#""30s""#,
        "How long a suspect host still gets broadcasts, 0s to 1h.",
    ),
    key(
        "session.garbage_after",
        r#""24h""#,
        r#""24h""#,
        "How long the records of a suspect host are kept before they are collected, 1m to 90d. The \
         same on every host: for nine tenths of it a host attaches without the store.",
    ),
    key(
        "session.reserved_addresses",
        "8",
        "8",
        "Addresses of each family that this host reserves in each of its networks for attaching \
         while the store is away, 0 to 256, and at most a sixteenth of a subnet.",
    ),
    key(
        "datapath.source_ports",
        "8",
        "8",
        "UDP source ports per worker, 1 to 64; the underlay spreads flows by them.",
    ),
    key(
        "datapath.learned_age",
        r#""5m""#,
        r#""5m""#,
        "A learned address is forgotten when it was not seen for this long, 2s to 24h.",
    ),
    key(
        "datapath.nice",
        "-6",
        "-6",
        "Nice value of the worker threads, -20 to 19. The kernel forwards before any process runs; \
         the workers should come before the containers that they serve.",
    ),
    key(
        "datapath.disable",
        "[]",
        r#"["uso"]"#,
        "Capabilities not to use even where they exist: tso, uso, csum, udp-gso, udp-gro, \
         coalesce, multiqueue.",
    ),
    key(
        "uplink.ipv4",
        r#""169.254.64.0/18""#,
        r#""169.254.64.0/18""#,
        "Where the IPv4 addresses of uplinks come from, two for each network with nat_outgoing or \
         host_access on this host. Only the two ends of an uplink use them; no interface of the \
         host or of a network may have an address of it.",
    ),
    key(
        "uplink.ipv6",
        r#""fdb1:5c7e:d42::/64""#,
        r#""fdb1:5c7e:d42::/64""#,
        "Where the IPv6 addresses of uplinks come from.",
    ),
    key(
        "docker.enabled",
        "false",
        "true",
        "Whether this agent is a network and IPAM driver of this host's Docker.",
    ),
    key(
        "docker.name",
        r#""skybridge""#,
        r#""skybridge""#,
        "Name of the driver, as in `docker network create -d NAME`.",
    ),
    key(
        "docker.scope",
        r#""local""#,
        r#""local""#,
        "Scope of the driver's networks: local for Docker without a cluster; global for Docker up to \
         20.10 with a cluster store, or in a Swarm.",
    ),
    key(
        "docker.socket",
        "/run/docker/plugins/NAME.sock",
        r#""/run/docker/plugins/skybridge.sock""#,
        "Where Docker finds the driver. Docker looks into /run/docker/plugins for sockets, and into \
         /etc/docker/plugins for files that name them.",
    ),
    key(
        "log.level",
        r#""info""#,
        r#""info""#,
        "What is logged: error, warn, info, debug, or a filter such as skybridge=debug.",
    ),
    key("log.format", r#""text""#, r#""text""#, "How the log is written: text or json."),
];

/// Columns of the example's comments.
const WIDTH: usize = 96;

/// A file that shows every key with its meaning and default, all commented out.
#[must_use]
pub fn example() -> String {
    let mut text = "# Skybridge agent. Every key has a default or a flag; `skybridge agent --check` shows what\n\
                    # is in effect and where it comes from.\n"
        .to_owned();
    let mut table = "";
    for Key { name, doc, default, example } in KEYS {
        let (own_table, leaf) = name.split_once('.').unwrap_or(("", name));
        if own_table != table {
            table = own_table;
            text.push_str(&format!("\n[{table}]\n"));
        }
        text.push('\n');
        for line in wrap(&format!("{doc} Default: {default}."), WIDTH) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("#{leaf} = {example}\n"));
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

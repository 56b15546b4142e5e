//! Leave to pass, asked of other people's rules in the host's namespace.
//!
//! # Theory of operation
//!
//! Every base chain that hooks `forward` is asked, and one that drops has the last word: an accept in
//! our own table does not help where Docker has set the policy of FORWARD to DROP. So a chain of ours
//! is put into the very table that drops, and a jump to it at the top of
//!
//! - `DOCKER-USER`, which Docker keeps for others and never empties, where it exists;
//! - otherwise any chain at `forward` that lets nothing pass by itself: by its policy, or by a rule
//!   without a condition that drops or rejects, as firewalld has it.
//!
//! The chain accepts what comes from and goes to our uplinks, by their names' beginning; what of that
//! is forbidden is dropped by [`super::firewall`], so this opens nothing else. Its rules are of the kind
//! that `iptables` makes itself, so its listings go on working. Rules of the older kernel interface,
//! which nft does not see, are changed with `iptables-legacy`.
//!
//! Whoever reloads a firewall throws the jump away. It is looked for again and again, and asked for
//! again where it is missing.

use std::fmt;
use std::fmt::Write as _;
use std::process::Command;

use serde_json::Value;

use super::nft::{in_namespace, nft, objects};
use super::{Error, NetNs, Owner};

/// What this does, for errors.
const DOING: &str = "ask the host's firewall to let uplinks pass";
/// The chain that Docker keeps for the rules of others.
const DOCKER_USER: &str = "DOCKER-USER";
/// The commands of the older interface, by family.
const LEGACY: [(&str, &str, &str); 2] = [
    ("ip", "iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
    ("ip6", "ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
];

/// A chain of somebody else that has a jump to ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain with the jump.
    pub chain: String,
    /// Whether it is one of the older kernel interface.
    pub legacy: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)?;
        if self.legacy { f.write_str(" (legacy)") } else { Ok(()) }
    }
}

/// What was found and done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permission {
    /// Where the jumps are.
    pub places: Vec<Place>,
    /// How many of them had to be made.
    pub made: usize,
}

/// The name of an owner's chain.
#[must_use]
pub fn chain(owner: &Owner) -> String {
    format!("SKYBRIDGE-{}", owner.hash())
}

/// Makes the jumps that are missing.
///
/// # Errors
/// `Nft`, also for `iptables-legacy`.
pub async fn settle(host: &NetNs, owner: &Owner) -> Result<Permission, Error> {
    let owner = owner.clone();
    in_namespace(host, move || {
        let mut permission = Permission::default();
        let chains = objects(DOING, &["-j", "list", "chains"])?;
        let mut chains: Vec<Chain<'_>> = chains.iter().filter_map(Chain::read).collect();
        for Chain { family, table, name, drops, .. } in chains.iter_mut().filter(|it| it.forwards) {
            if !*drops {
                let rules = objects(DOING, &["-j", "list", "chain", family, table, name])?;
                *drops = rules.iter().filter_map(|it| it.get("rule")).any(refuses_all);
            }
        }
        let (own, uplinks) = (chain(&owner), owner.uplinks());
        let mut text = String::new();
        for place in wanted(&chains) {
            let (jump, rules) = granted(&place, &own, &uplinks)?;
            if !jump || !rules {
                grant(&mut text, &place, &own, &uplinks, jump);
                permission.made += 1;
            }
            permission.places.push(place);
        }
        if !text.is_empty() {
            nft(DOING, &["-f", "-"], &text)?;
        }
        for (family, command, names) in LEGACY {
            legacy(family, command, names, &own, &uplinks, &mut permission)?;
        }
        Ok(permission)
    })
    .await
}

/// Removes the jumps and the chains. Returns from how many tables.
///
/// # Errors
/// `Nft`.
pub async fn remove(host: &NetNs, owner: &Owner) -> Result<usize, Error> {
    let own = chain(owner);
    in_namespace(host, move || {
        let chains = objects(DOING, &["-j", "list", "chains"])?;
        let chains: Vec<Chain<'_>> = chains.iter().filter_map(Chain::read).collect();
        let mut text = String::new();
        let mut removed = 0;
        for Chain { family, table, .. } in chains.iter().filter(|chain| chain.name == own) {
            for object in objects(DOING, &["-a", "-j", "list", "table", family, table])? {
                let Some(rule) = object.get("rule").filter(|rule| jumps_to(rule, &own)) else {
                    continue;
                };
                let name = rule.get("chain").and_then(Value::as_str).unwrap_or_default();
                let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or_default();
                // Writing to a string cannot fail.
                let _ = writeln!(text, "delete rule {family} {table} {name} handle {handle}");
            }
            let _ = writeln!(text, "flush chain {family} {table} {own}");
            let _ = writeln!(text, "delete chain {family} {table} {own}");
            removed += 1;
        }
        if !text.is_empty() {
            nft("take back the leave to pass", &["-f", "-"], &text)?;
        }
        for (_, command, names) in LEGACY {
            removed += usize::from(legacy_remove(command, names, &own)?);
        }
        Ok(removed)
    })
    .await
}

/// A chain as nft lists it.
#[derive(Debug, Clone, Copy)]
struct Chain<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
    /// Hooks `forward` to filter.
    forwards: bool,
    /// And lets nothing pass by itself: by its policy, as far as it is read.
    drops: bool,
}

impl<'a> Chain<'a> {
    fn read(object: &'a Value) -> Option<Self> {
        let chain = object.get("chain")?;
        let text = |key: &str| chain.get(key).and_then(Value::as_str);
        let family = text("family")?;
        let forwards = text("hook") == Some("forward") && text("type") == Some("filter");
        let drops = forwards && text("policy") == Some("drop");
        let routed = matches!(family, "ip" | "ip6" | "inet");
        let (table, name) = (text("table")?, text("name")?);
        routed.then_some(Self { family, table, name, forwards, drops })
    }

    fn place(&self) -> Place {
        Place {
            family: self.family.into(),
            table: self.table.into(),
            chain: self.name.into(),
            legacy: false,
        }
    }
}

/// Where jumps belong: in each `DOCKER-USER`, and in each chain that drops in a table without one.
fn wanted(chains: &[Chain<'_>]) -> Vec<Place> {
    let docker: Vec<&Chain<'_>> = chains.iter().filter(|it| it.name == DOCKER_USER).collect();
    let covered = |chain: &&Chain<'_>| {
        !docker.iter().any(|it| (it.family, it.table) == (chain.family, chain.table))
    };
    let dropping = chains.iter().filter(|chain| chain.drops).filter(covered);
    let mut places: Vec<Place> = dropping.map(Chain::place).collect();
    places.extend(docker.iter().map(|chain| chain.place()));
    places.sort();
    places
}

/// Whether a rule drops or rejects whatever comes to it.
fn refuses_all(rule: &Value) -> bool {
    let mut refuses = false;
    for expression in rule.get("expr").and_then(Value::as_array).into_iter().flatten() {
        let Some(kind) = expression.as_object().and_then(|it| it.keys().next()) else {
            return false;
        };
        match kind.as_str() {
            "counter" | "log" => {}
            "drop" | "reject" => refuses = true,
            // A target or a match of iptables that nft has no words for.
            "xt" if expression.pointer("/xt/name").is_some_and(|name| name == "REJECT") => {
                refuses = true;
            }
            // Whatever else is a condition, or another verdict.
            _ => return false,
        }
    }
    refuses
}

fn jumps_to(rule: &Value, own: &str) -> bool {
    let expressions = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    expressions
        .filter_map(|expression| expression.get("jump")?.get("target")?.as_str())
        .any(|target| target == own)
}

/// Whether the jump is there, and whether both rules of our chain are.
fn granted(place: &Place, own: &str, uplinks: &str) -> Result<(bool, bool), Error> {
    let Place { family, table, chain, .. } = place;
    let list = |name: &str| objects(DOING, &["-j", "list", "chain", family, table, name]);
    let jump = list(chain)?.iter().filter_map(|it| it.get("rule")).any(|it| jumps_to(it, own));
    // A chain that is not there cannot be listed.
    if !jump {
        return Ok((false, false));
    }
    let rules = list(own)?;
    let accepted = rules.iter().filter_map(|it| it.get("rule")).filter(|rule| {
        let text = rule.to_string();
        text.contains(&format!("\"{uplinks}*\"")) && text.contains("\"accept\"")
    });
    Ok((true, accepted.count() == 2))
}

fn grant(text: &mut String, place: &Place, own: &str, uplinks: &str, jump: bool) {
    let Place { family, table, chain, .. } = place;
    let mut line = |rest: fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{rest}");
    };
    line(format_args!("add chain {family} {table} {own}"));
    line(format_args!("flush chain {family} {table} {own}"));
    for way in ["iifname", "oifname"] {
        line(format_args!("add rule {family} {table} {own} {way} \"{uplinks}*\" counter accept"));
    }
    if !jump {
        // At the top: what follows may drop.
        line(format_args!("insert rule {family} {table} {chain} counter jump {own}"));
    }
}

// ===== the older kernel interface =====

/// The rules of the filter table, where it is in use in the calling thread's namespace.
fn legacy_rules(command: &str, names: &str) -> Result<Option<String>, Error> {
    // Only asking would make the table.
    let used = std::fs::read_to_string(names).unwrap_or_default();
    if !used.lines().any(|table| table == "filter") {
        return Ok(None);
    }
    run_legacy(command, &["-S"])
}

/// `None` when the command is not installed.
fn run_legacy(command: &str, arguments: &[&str]) -> Result<Option<String>, Error> {
    let failed = |reason: String| Error::Nft { doing: DOING, reason };
    let output = match Command::new(command).arg("-w").args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(format!("{command}: {error}"))),
    };
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{command}: {}", message.lines().next().unwrap_or("no message"))))
}

fn legacy(
    family: &str,
    command: &str,
    names: &str,
    own: &str,
    uplinks: &str,
    permission: &mut Permission,
) -> Result<(), Error> {
    let Some(rules) = legacy_rules(command, names)? else { return Ok(()) };
    let has = |wanted: &str| rules.lines().any(|line| line == wanted);
    let chain = if has(&format!("-N {DOCKER_USER}")) {
        DOCKER_USER
    } else if rules.lines().any(legacy_refuses_all) {
        "FORWARD"
    } else {
        return Ok(());
    };
    let name = format!("{uplinks}+");
    let accept = |way: &str| format!("-A {own} {way} {name} -j ACCEPT");
    let whole = has(&format!("-A {chain} -j {own}")) && has(&accept("-i")) && has(&accept("-o"));
    if !whole {
        if has(&format!("-N {own}")) {
            run_legacy(command, &["-F", own])?;
        } else {
            run_legacy(command, &["-N", own])?;
        }
        for way in ["-i", "-o"] {
            run_legacy(command, &["-A", own, way, &name, "-j", "ACCEPT"])?;
        }
        if !has(&format!("-A {chain} -j {own}")) {
            run_legacy(command, &["-I", chain, "-j", own])?;
        }
        permission.made += 1;
    }
    permission.places.push(Place {
        family: family.into(),
        table: "filter".into(),
        chain: chain.into(),
        legacy: true,
    });
    Ok(())
}

/// Whether a line of the listing says that FORWARD lets nothing pass by itself.
fn legacy_refuses_all(line: &str) -> bool {
    let rest = line.strip_prefix("-A FORWARD -j ").unwrap_or_default();
    line == "-P FORWARD DROP" || matches!(rest.split(' ').next(), Some("DROP" | "REJECT"))
}

fn legacy_remove(command: &str, names: &str, own: &str) -> Result<bool, Error> {
    let Some(rules) = legacy_rules(command, names)? else { return Ok(false) };
    let there = rules.lines().any(|line| line == format!("-N {own}"));
    for line in rules.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["-A", chain, "-j", target] = words[..]
            && target == own
        {
            run_legacy(command, &["-D", chain, "-j", own])?;
        }
    }
    if there {
        run_legacy(command, &["-F", own])?;
        run_legacy(command, &["-X", own])?;
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn jumps_belong_where_docker_asks_for_them_or_where_the_policy_drops() {
        let base = |family: &str, table: &str, name: &str, policy: &str| {
            json!({"chain": {"family": family, "table": table, "name": name, "type": "filter",
                "hook": "forward", "policy": policy}})
        };
        let objects = [
            json!({"metainfo": {}}),
            base("ip", "filter", "FORWARD", "drop"),
            json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}),
            base("ip6", "filter", "FORWARD", "drop"),
            base("inet", "mine", "fwd", "drop"),
            base("inet", "open", "fwd", "accept"),
            base("bridge", "l2", "fwd", "drop"),
        ];
        let chains: Vec<Chain<'_>> = objects.iter().filter_map(Chain::read).collect();
        let places: Vec<String> = wanted(&chains).iter().map(ToString::to_string).collect();
        assert_eq!(places, ["inet mine fwd", "ip filter DOCKER-USER", "ip6 filter FORWARD"]);
    }

    #[test]
    fn a_rule_that_refuses_all_has_no_condition() {
        let refuses = |expressions: Value| refuses_all(&json!({ "expr": expressions }));
        let counter = || json!({"counter": {"packets": 0, "bytes": 0}});
        assert!(refuses(json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}])));
        assert!(refuses(json!([{"log": {"prefix": "no "}}, {"drop": null}])));
        assert!(refuses(json!([counter(), {"xt": {"type": "target", "name": "REJECT"}}])));
        let condition = json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}},
            "right": "eth0"}});
        assert!(!refuses(json!([condition, {"drop": null}])));
        let invalid = json!({"xt": {"type": "match", "name": "conntrack"}});
        assert!(!refuses(json!([invalid, counter(), {"drop": null}])));
        assert!(!refuses(json!([{"limit": {"rate": 5, "per": "second"}}, {"drop": null}])));
        assert!(!refuses(json!([counter(), {"accept": null}])) && !refuses(json!([counter()])));
        for (line, says) in [
            ("-P FORWARD DROP", true),
            ("-A FORWARD -j REJECT --reject-with icmp-host-prohibited", true),
            ("-A FORWARD -j DROP", true),
            ("-A FORWARD -i eth0 -j DROP", false),
            ("-A FORWARD -j DROPPED", false),
            ("-A INPUT -j DROP", false),
            ("-P FORWARD ACCEPT", false),
        ] {
            assert_eq!(legacy_refuses_all(line), says, "{line}");
        }
    }

    #[test]
    fn a_jump_is_told_by_its_target() {
        let rule = json!({"expr": [{"counter": {}}, {"jump": {"target": "SKYBRIDGE-a"}}]});
        assert!(jumps_to(&rule, "SKYBRIDGE-a") && !jumps_to(&rule, "SKYBRIDGE-b"));
    }
}

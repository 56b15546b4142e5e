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

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::nft::{in_namespace, nft, objects};
use super::{Error, NetNs, Owner};

/// What this does, for errors.
const DOING: &str = "ask the host's firewall to let uplinks pass";
/// A chain that lets something pass is not listed again for this many times as long as that took.
const LISTED: u32 = 50;
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
#[derive(Debug, Default)]
pub struct Permission {
    /// Where the jumps are.
    pub places: Vec<Place>,
    /// How many of them had to be made.
    pub made: usize,
    /// Where they could not be made, and why: the kernel lets nobody else change the table of a program
    /// that has said that it owns it.
    pub refused: Vec<(Place, Error)>,
}

/// Chains that let something pass by themselves, and until when they are taken for such.
pub type Open = BTreeMap<Place, Instant>;

/// The name of an owner's chain.
#[must_use]
pub fn chain(owner: &Owner) -> String {
    format!("SKYBRIDGE-{}", owner.hash())
}

/// Makes the jumps that are missing, each by itself. Gives what `open` is to be the next time.
///
/// # Errors
/// `Nft` when the chains cannot be listed, also for `iptables-legacy`.
pub async fn settle(
    host: &NetNs,
    owner: &Owner,
    mut open: Open,
) -> Result<(Permission, Open), Error> {
    let owner = owner.clone();
    in_namespace(host, move || {
        let mut permission = Permission::default();
        let chains = objects(DOING, &["-j", "list", "chains"])?;
        let chains: Vec<Chain<'_>> = chains.iter().filter_map(Chain::read).collect();
        let (own, uplinks) = (chain(&owner), owner.uplinks());
        let (candidates, now) = (candidates(&chains), Instant::now());
        open.retain(|place, until| {
            now < *until && candidates.iter().any(|it| it.place() == *place)
        });
        for candidate in candidates {
            let place = candidate.place();
            if open.contains_key(&place) {
                continue;
            }
            let began = Instant::now();
            // What cannot be listed is gone again, or has a name that nft's language has no room for.
            let Ok(rules) = list(&place, &place.chain) else { continue };
            if !candidate.drops && !rules.iter().any(refuses_all) {
                // A long chain is not to keep a processor busy.
                open.insert(place, Instant::now() + LISTED * began.elapsed());
                continue;
            }
            match settle_place(&place, &rules, &own, &uplinks) {
                Ok(made) => {
                    permission.made += usize::from(made);
                    permission.places.push(place);
                }
                Err(error) => permission.refused.push((place, error)),
            }
        }
        for (family, command, names) in LEGACY {
            legacy(family, command, names, &own, &uplinks, &mut permission)?;
        }
        Ok((permission, open))
    })
    .await
}

/// Makes the jump at `place`, the rules of which were listed, and our chain there, where either is not
/// whole. Whether it was not.
fn settle_place(place: &Place, rules: &[Value], own: &str, uplinks: &str) -> Result<bool, Error> {
    let jump = rules.iter().any(|rule| jumps_to(rule, own));
    // A chain that is not there cannot be listed.
    if jump && accepts(&list(place, own)?, uplinks) {
        return Ok(false);
    }
    nft(DOING, &["-f", "-"], &grant(place, own, uplinks, jump))?;
    Ok(true)
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
    /// Jumps belong there without a look at its rules: its policy is drop, or it is Docker's for others.
    drops: bool,
}

impl<'a> Chain<'a> {
    fn read(object: &'a Value) -> Option<Self> {
        let chain = object.get("chain")?;
        let text = |key: &str| chain.get(key).and_then(Value::as_str);
        let family = text("family")?;
        let (table, name) = (text("table")?, text("name")?);
        let forwards = text("hook") == Some("forward") && text("type") == Some("filter");
        let drops = name == DOCKER_USER || forwards && text("policy") == Some("drop");
        let routed = matches!(family, "ip" | "ip6" | "inet");
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

/// Where jumps may belong: in each `DOCKER-USER`, and in the chains at `forward` of tables without one.
fn candidates<'a>(chains: &[Chain<'a>]) -> Vec<Chain<'a>> {
    let docker = |it: &Chain<'_>| it.name == DOCKER_USER;
    let mut found: Vec<Chain<'a>> = chains
        .iter()
        .filter(|chain| {
            let covered =
                |it: &Chain<'_>| docker(it) && (it.family, it.table) == (chain.family, chain.table);
            docker(chain) || chain.forwards && !chains.iter().any(covered)
        })
        .copied()
        .collect();
    found.sort_by_key(Chain::place);
    found
}

/// The rules of a chain in the table of `place`.
fn list(place: &Place, chain: &str) -> Result<Vec<Value>, Error> {
    let listed = objects(DOING, &["-j", "list", "chain", &place.family, &place.table, chain])?;
    Ok(listed.into_iter().filter_map(|mut it| it.get_mut("rule").map(Value::take)).collect())
}

/// Whether a rule drops or rejects whatever comes to it.
fn refuses_all(rule: &Value) -> bool {
    let mut verdict = None;
    for expression in rule.get("expr").and_then(Value::as_array).into_iter().flatten() {
        let Some((kind, what)) = expression.as_object().and_then(|it| it.iter().next()) else {
            return false;
        };
        let named = |name: &str| what.get("name").is_some_and(|it| it == name);
        match kind.as_str() {
            "counter" | "log" => {}
            "xt" if named("comment") => {}
            // nft has no words for a target of iptables, and before 1.0.6 not even its name: what stands
            // alone is one then, and mostly this one.
            "xt" if named("REJECT") || what.is_null() && verdict.is_none() => verdict = Some("xt"),
            "drop" | "reject" if verdict.is_none() => verdict = Some("its own"),
            // Whatever else is a condition, or another verdict.
            _ => return false,
        }
    }
    verdict.is_some()
}

fn jumps_to(rule: &Value, own: &str) -> bool {
    let expressions = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    expressions
        .filter_map(|expression| expression.get("jump")?.get("target")?.as_str())
        .any(|target| target == own)
}

/// Whether the rules of our chain are what they shall be.
fn accepts(rules: &[Value], uplinks: &str) -> bool {
    let accepted = rules.iter().filter(|rule| {
        let text = rule.to_string();
        text.contains(&format!("\"{uplinks}*\"")) && text.contains("\"accept\"")
    });
    accepted.count() == 2
}

/// The commands that make our chain and, where it is missing, the jump.
fn grant(place: &Place, own: &str, uplinks: &str, jump: bool) -> String {
    let Place { family, table, chain, .. } = place;
    let mut lines = vec![
        format!("add chain {family} {table} {own}"),
        format!("flush chain {family} {table} {own}"),
    ];
    for way in ["iifname", "oifname"] {
        lines.push(format!("add rule {family} {table} {own} {way} \"{uplinks}*\" counter accept"));
    }
    if !jump {
        // At the top: what follows may drop.
        lines.push(format!("insert rule {family} {table} {chain} counter jump {own}"));
    }
    lines.join("\n") + "\n"
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
    let rest = line.strip_prefix("-A FORWARD ").unwrap_or_default();
    let rest = match rest.strip_prefix("-m comment --comment ") {
        // What is of more than one word is quoted.
        Some(text) if text.starts_with('"') => text.rsplit_once("\" ").map_or("", |it| it.1),
        Some(text) => text.split_once(' ').map_or("", |it| it.1),
        None => rest,
    };
    let target = rest.strip_prefix("-j ").unwrap_or_default();
    line == "-P FORWARD DROP" || matches!(target.split(' ').next(), Some("DROP" | "REJECT"))
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
        let found = candidates(&chains);
        let places: Vec<_> = found.iter().map(|it| (it.place().to_string(), it.drops)).collect();
        let places: Vec<_> = places.iter().map(|(text, drops)| (text.as_str(), *drops)).collect();
        let wanted = [
            ("inet mine fwd", true),
            ("inet open fwd", false),
            ("ip filter DOCKER-USER", true),
            ("ip6 filter FORWARD", true),
        ];
        assert_eq!(places, wanted);
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
        let comment = json!({"xt": {"type": "match", "name": "comment"}});
        assert!(refuses(json!([comment, counter(), {"drop": null}])));
        // As before nft 1.0.6: a target, a match with a verdict, and both.
        let xt = || json!({"xt": null});
        assert!(refuses(json!([counter(), xt()])));
        assert!(!refuses(json!([xt(), counter(), {"drop": null}])));
        assert!(!refuses(json!([xt(), counter(), xt()])));
        for (line, says) in [
            ("-P FORWARD DROP", true),
            ("-A FORWARD -j REJECT --reject-with icmp-host-prohibited", true),
            ("-A FORWARD -j DROP", true),
            ("-A FORWARD -m comment --comment \"999 \\\"drop\\\" all\" -j DROP", true),
            (
                "-A FORWARD -m comment --comment last -j REJECT --reject-with icmp6-port-unreachable",
                true,
            ),
            ("-A FORWARD -m comment --comment \"a -j DROP\" -j ACCEPT", false),
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

//! The rules as nft reads them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::super::endpoint::link_local;
use super::super::names::TAP;
use super::{Carrier, Error, Guarded, Present};

/// Family and name of the table at the bridge.
const TABLE: &str = "bridge skybridge";
/// Family and name of the table before it.
const INGRESS: &str = "netdev skybridge";
/// Removes the tables whether they are there or not.
pub(super) const REMOVE: &str = "add table bridge skybridge\ndelete table bridge skybridge\n\
     add table netdev skybridge\ndelete table netdev skybridge\n";
/// Ports that a bridge can have (net/bridge/br_private.h, `BR_MAX_PORTS`).
pub const PORTS_MAX: u32 = 1024;
/// The checks, as the counters are called.
const CHECKS: [&str; 5] = ["mac", "arp", "ip", "ip6", "nd"];

/// The transaction that turns what is `stale` into the rules of `ports`.
pub(super) fn whole(ports: &[Guarded], mut stale: Present) -> Result<String, Error> {
    let at_bridge = |guarded: &&Guarded| guarded.carrier != Carrier::Router;
    let switched = ports.iter().filter(at_bridge).any(|it| it.carrier != Carrier::Bridge);
    let mut text = base();
    let _ = writeln!(text, "flush map {TABLE} ports");
    for guarded in ports.iter().filter(at_bridge) {
        stale.checked.remove(&guarded.port);
        check_at_bridge(&mut text, guarded)?;
    }
    text.push_str(&hook());
    for port in stale.checked {
        forget(&mut text, TABLE, &port);
    }
    // The rule at the way out costs every frame that the bridge forwards, so it is there only where
    // it is needed.
    let _ = writeln!(text, "add chain {TABLE} echo {ECHO_HOOK}");
    let _ = writeln!(text, "add set {TABLE} own {OWN_TYPE}");
    let _ = writeln!(text, "flush chain {TABLE} echo\nflush set {TABLE} own");
    if switched {
        text.push_str(&echo_rule());
        ports.iter().filter(at_bridge).for_each(|guarded| spare_sender(&mut text, guarded));
    } else {
        let _ = writeln!(text, "delete chain {TABLE} echo\ndelete set {TABLE} own");
    }
    for guarded in ports.iter().filter(|guarded| guarded.carrier.is_at_ingress()) {
        stale.diverted.remove(&guarded.port);
        at_ingress(&mut text, guarded)?;
    }
    for port in stale.diverted {
        undivert(&mut text, &port);
    }
    Ok(text)
}

/// The transaction that adds one port.
pub(super) fn put(guarded: &Guarded) -> Result<String, Error> {
    if guarded.carrier == Carrier::Router {
        let mut text = String::new();
        at_ingress(&mut text, guarded)?;
        return Ok(text);
    }
    let mut text = base();
    check_at_bridge(&mut text, guarded)?;
    text.push_str(&hook());
    if guarded.carrier != Carrier::Bridge {
        let _ = writeln!(text, "add chain {TABLE} echo {ECHO_HOOK}");
        let _ = writeln!(text, "add set {TABLE} own {OWN_TYPE}\nflush chain {TABLE} echo");
        text.push_str(&echo_rule());
        spare_sender(&mut text, guarded);
    }
    if guarded.carrier == Carrier::Switch {
        at_ingress(&mut text, guarded)?;
    }
    Ok(text)
}

/// The transaction that takes one port out.
pub(super) fn take(guarded: &Guarded) -> Result<String, Error> {
    let Guarded { port, index, mac, .. } = guarded;
    checked(port)?;
    if guarded.carrier == Carrier::Router {
        let mut text = String::new();
        undivert(&mut text, port);
        return Ok(text);
    }
    let mut text = format!("delete element {TABLE} ports {{ {index} }}\n");
    forget(&mut text, TABLE, port);
    if guarded.carrier != Carrier::Bridge {
        let _ = writeln!(text, "delete element {TABLE} own {{ {index} . {mac} }}");
    }
    if guarded.carrier == Carrier::Switch {
        undivert(&mut text, port);
    }
    Ok(text)
}

/// The table with its chain and map, where they are not there.
fn base() -> String {
    // By index and with a size, because the kernel looks such a map up fastest.
    format!(
        "add table {TABLE}\n\
         add chain {TABLE} ports {{ type filter hook prerouting priority -300; }}\n\
         add map {TABLE} ports {{ type iface_index : verdict; size {PORTS_MAX}; }}\n"
    )
}

/// The rule that leads to the ports' chains.
fn hook() -> String {
    format!("flush chain {TABLE} ports\nadd rule {TABLE} ports iif vmap @ports\n")
}

const ECHO_HOOK: &str = "{ type filter hook forward priority -300; }";
const OWN_TYPE: &str = "{ type iface_index . ether_addr; }";

/// The rule that holds a frame back from its own sender.
fn echo_rule() -> String {
    format!("add rule {TABLE} echo oif . ether saddr @own drop\n")
}

/// What a port has sent does not come back to it.
fn spare_sender(text: &mut String, guarded: &Guarded) {
    let Guarded { index, mac, .. } = guarded;
    let _ = writeln!(text, "add element {TABLE} own {{ {index} . {mac} }}");
}

/// A name that cannot carry rules.
fn checked(port: &str) -> Result<(), Error> {
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let reason = format!("{port:?} cannot be the name of a port");
        return Err(Error::Nft { doing: "apply the source check", reason });
    }
    Ok(())
}

/// Removes a port's chain, after the map has let go of it, and its counters.
fn forget(text: &mut String, table: &str, port: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "delete chain {table} {port}");
    for check in CHECKS {
        let _ = writeln!(text, "add counter {table} {port}_{check}");
        let _ = writeln!(text, "delete counter {table} {port}_{check}");
    }
}

/// The chain of a port at the bridge, and its place in the map.
fn check_at_bridge(text: &mut String, guarded: &Guarded) -> Result<(), Error> {
    let Guarded { port, index, .. } = guarded;
    checked(port)?;
    counters(text, TABLE, port);
    let _ = writeln!(text, "add chain {TABLE} {port}\nflush chain {TABLE} {port}");
    rules(text, TABLE, guarded, "accept");
    let _ = writeln!(text, "add element {TABLE} ports {{ {index} : jump {port} }}");
    Ok(())
}

/// The chain of a port before the bridge, or where there is none.
fn at_ingress(text: &mut String, guarded: &Guarded) -> Result<(), Error> {
    let port = &guarded.port;
    checked(port)?;
    let _ = writeln!(text, "add table {INGRESS}");
    counters(text, INGRESS, port);
    // Made anew, as it may be bound to a device of that name that is gone.
    discard_chain(text, port);
    let _ = writeln!(
        text,
        "add chain {INGRESS} {port} {{ type filter hook ingress device \"{port}\" priority 0; }}"
    );
    let pass = match guarded.carrier {
        Carrier::Switch => format!("fwd to \"{TAP}\""),
        Carrier::Bridge | Carrier::Both | Carrier::Router => "accept".to_owned(),
    };
    rules(text, INGRESS, guarded, &pass);
    let _ = writeln!(text, "add rule {INGRESS} {port} {pass}");
    Ok(())
}

/// Removes a port's chain before the bridge. The kernel may have done so with the device.
fn undivert(text: &mut String, port: &str) {
    let _ = writeln!(text, "add table {INGRESS}\nadd chain {INGRESS} {port}");
    let _ = writeln!(text, "flush chain {INGRESS} {port}");
    forget(text, INGRESS, port);
}

fn discard_chain(text: &mut String, port: &str) {
    let _ = writeln!(text, "add chain {INGRESS} {port}\nflush chain {INGRESS} {port}");
    let _ = writeln!(text, "delete chain {INGRESS} {port}");
}

fn counters(text: &mut String, table: &str, port: &str) {
    for check in CHECKS {
        let _ = writeln!(text, "add counter {table} {port}_{check}");
    }
}

/// The checks of a port. What is right and frequent leaves them by `pass`, the rest at their end.
fn rules(text: &mut String, table: &str, guarded: &Guarded, pass: &str) {
    let Guarded { port, mac, addresses, .. } = guarded;
    let mut rule = |rest: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "add rule {table} {port} {rest}");
    };
    let drop = |check: &str| format!("counter name {port}_{check} drop");
    rule(format_args!("ether saddr != {mac} {}", drop("mac")));
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).map(ToString::to_string);
    let v4 = v4.collect::<Vec<_>>();
    let v6 = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    });
    let v6 = v6.chain([link_local(*mac)]).collect::<BTreeSet<_>>();
    let sources = v6.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !v4.is_empty() {
        rule(format_args!("meta protocol ip ip saddr {{ {} }} {pass}", v4.join(", ")));
    }
    rule(format_args!(
        "meta protocol ip6 meta l4proto != ipv6-icmp ip6 saddr {{ {sources} }} {pass}"
    ));
    rule(format_args!("meta protocol ip {}", drop("ip")));
    let senders = ["0.0.0.0"].into_iter().chain(v4.iter().map(String::as_str));
    let senders = senders.collect::<Vec<_>>().join(", ");
    rule(format_args!("meta protocol arp arp saddr ether != {mac} {}", drop("arp")));
    rule(format_args!("meta protocol arp arp saddr ip != {{ {senders} }} {}", drop("arp")));
    rule(format_args!("meta protocol ip6 ip6 saddr != {{ ::, {sources} }} {}", drop("ip6")));
    // The target lies behind four octets of ICMPv6 header and four of flags (RFC 4861 4.4).
    let targets = v6.iter().map(|address| format!("{:#x}", u128::from(*address)));
    let targets = targets.collect::<Vec<_>>().join(", ");
    rule(format_args!(
        "meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type nd-neighbor-advert \
         @th,64,128 != {{ {targets} }} {}",
        drop("nd")
    ));
}

#[cfg(test)]
mod tests {
    use encap::MacAddr;

    use super::*;

    fn guarded(port: &str, addresses: &[&str], carrier: Carrier) -> Guarded {
        Guarded {
            port: port.into(),
            index: 7,
            mac: MacAddr([0x02, 0x42, 192, 0, 2, 5]),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            carrier,
        }
    }

    fn present(checked: &[&str], diverted: &[&str]) -> Present {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Present { checked: set(checked), diverted: set(diverted) }
    }

    #[test]
    fn a_port_without_ipv4_may_send_none() {
        let ports = [guarded("ve1", &["2001:db8::5"], Carrier::Bridge)];
        let text = whole(&ports, Present::default()).unwrap();
        assert!(!text.contains("meta protocol ip ip saddr"), "{text}");
        assert!(text.contains("ve1 meta protocol ip counter name ve1_ip drop"), "{text}");
        assert!(text.contains("arp saddr ip != { 0.0.0.0 }"), "{text}");
        assert!(
            text.contains("ip6 saddr != { ::, 2001:db8::5, fe80::42:c0ff:fe00:205 }"),
            "{text}"
        );
    }

    #[test]
    fn ports_that_are_gone_lose_their_chain_after_the_map_let_go_of_it() {
        let ports = [guarded("ve1", &["192.0.2.5"], Carrier::Bridge)];
        let text = whole(&ports, present(&["ve1", "ve2"], &[])).unwrap();
        assert!(!text.contains("delete chain bridge skybridge ve1"), "{text}");
        let flush = text.find("flush map bridge skybridge ports").unwrap();
        assert!(flush < text.find("delete chain bridge skybridge ve2").unwrap());
    }

    #[test]
    fn a_port_is_diverted_only_while_the_switch_carries() {
        let port = |carrier| [guarded("ve1", &["192.0.2.5"], carrier)];
        let text = whole(&port(Carrier::Switch), Present::default()).unwrap();
        assert!(text.contains("netdev skybridge ve1 fwd to \"tap0\""), "{text}");
        assert!(text.contains("own { 7 . 02:42:c0:00:02:05 }"), "{text}");
        let text = whole(&port(Carrier::Both), Present::default()).unwrap();
        assert!(!text.contains("fwd to") && text.contains("own { 7 ."), "{text}");
        let text = whole(&port(Carrier::Bridge), present(&["ve1"], &["ve1"])).unwrap();
        assert!(!text.contains("fwd to") && !text.contains("own { 7"), "{text}");
        assert!(text.contains("delete chain netdev skybridge ve1"), "{text}");
        assert!(text.contains("delete chain bridge skybridge echo"), "{text}");
    }

    #[test]
    fn a_port_name_cannot_carry_rules() {
        let bad = guarded("ve1 { }", &[], Carrier::Switch);
        assert!(whole(std::slice::from_ref(&bad), Present::default()).is_err());
        assert!(put(&bad).is_err() && take(&bad).is_err());
    }
}

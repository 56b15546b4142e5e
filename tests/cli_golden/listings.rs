//! Text and JSON of every listing, help of every command, the example configuration.

use clap::CommandFactory as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skybridge::cli::render::{self, Sorted as _};
use skybridge::cli::{Cli, Style};
use skybridge::control::types::*;

use crate::{golden, samples};

const PLAIN: Style = Style::PLAIN;

#[test]
fn listings_look_as_they_did() {
    let texts = [
        ("status", render::status(&samples::status(), PLAIN)),
        ("status_without_store", render::status(&samples::lonely_status(), PLAIN)),
        ("hosts", render::hosts(&samples::hosts(), PLAIN)),
        ("networks", render::networks(&samples::networks(), PLAIN)),
        ("network", render::network(&samples::network(), PLAIN)),
        ("network_failed", render::network(&samples::failed_network(), PLAIN)),
        ("vteps", render::vteps(&samples::vteps(), PLAIN)),
        ("exported", render::exported(&samples::exported(), Some("/run/netns/a"), "vxlan0")),
        ("kernel_links", render::kernel_links(&samples::kernel_links(), PLAIN)),
        ("attachment", render::attachment(&samples::attachment(), PLAIN)),
        ("detached", render::detached(&samples::detached(), PLAIN)),
        ("endpoints", render::endpoints(&samples::endpoints(), PLAIN)),
        ("garbage", render::garbage(&samples::garbage(false), PLAIN)),
        ("garbage_removed", render::garbage(&samples::garbage(true), PLAIN)),
        ("fdb", render::fdb(&samples::fdb(), PLAIN)),
        ("neighbors", render::neighbors(&samples::neighbors(), PLAIN)),
        ("routes", render::routes(&samples::routes(), PLAIN)),
        ("drops", render::drops(&samples::drops(), false, PLAIN)),
        ("drops_all", render::drops(&samples::drops(), true, PLAIN)),
        ("stats", render::stats(&samples::stats(), false, false, PLAIN)),
        ("stats_all", render::stats(&samples::stats(), true, false, PLAIN)),
        ("stats_workers", render::stats(&samples::stats(), false, true, PLAIN)),
        ("members", render::members(&samples::members(), PLAIN)),
        ("rates", render::rates(&samples::stats(), &samples::later_stats(), false, PLAIN)),
    ];
    for (name, text) in texts {
        golden(&format!("text/{name}.txt"), &text);
        for line in text.lines() {
            assert_eq!(line, line.trim_end(), "{name} has a line that ends in spaces");
        }
    }
}

#[test]
fn empty_listings_say_what_to_do() {
    let texts = [
        render::hosts(&[], PLAIN),
        render::networks(&[], PLAIN),
        render::vteps(&[], PLAIN),
        render::endpoints(&[], PLAIN),
        render::garbage(&[], PLAIN),
        render::fdb(&[], PLAIN),
        render::neighbors(&[], PLAIN),
        render::routes(&[], PLAIN),
        render::drops(&[], false, PLAIN),
        render::detached(&[], PLAIN),
    ];
    golden("text/empty.txt", &texts.concat());
}

#[test]
fn colours_change_no_text() {
    let mut text = render::status(&samples::status(), Style::COLOR);
    assert!(text.contains("\x1b[32mready\x1b[0m"));
    while let Some(start) = text.find('\x1b') {
        let end = start + text[start..].find('m').unwrap();
        text.replace_range(start..=end, "");
    }
    assert_eq!(text, render::status(&samples::status(), PLAIN));
}

#[test]
fn a_restart_between_two_looks_does_not_wrap_rates() {
    let mut restarted = samples::stats();
    restarted.uptime_ms = 1_000;
    restarted.counters[0].value = 500;
    let text = render::rates(&samples::later_stats(), &restarted, false, PLAIN);
    assert!(text.contains("restarted"), "{text}");
    assert!(text.contains("500"), "{text}");
}

/// JSON as `--json` prints it, read back to the same value.
fn json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let text = serde_json::to_string_pretty(value).unwrap();
    golden(&format!("json/{name}.json"), &format!("{text}\n"));
    let back: T = serde_json::from_str(&text).unwrap();
    assert_eq!(*value, back, "{name}");
}

#[test]
fn json_has_the_names_it_had() {
    let mut hosts = samples::hosts();
    hosts.sort_rows();
    json("status", &samples::status());
    json("hosts", &hosts);
    json("networks", &samples::networks());
    json("network", &samples::network());
    json("vteps", &samples::vteps());
    json("exported", &samples::exported());
    json("kernel_links", &samples::kernel_links());
    json("request_link_kernel", &samples::link_kernel());
    json("namespace", &samples::namespace());
    json("attachment", &samples::attachment());
    json("detached", &samples::detached());
    json("garbage", &samples::garbage(true));
    json("endpoints", &samples::endpoints());
    json("fdb", &samples::fdb());
    json("neighbors", &samples::neighbors());
    json("routes", &samples::routes());
    json("drops", &samples::drops());
    json("stats", &samples::stats());
    json("store", &samples::store_access());
    json("members", &samples::members());
    json("token", &samples::token());
    json("request_make_token", &samples::make_token());
    json("request_create_network", &samples::create_network());
    json("request_update_network", &samples::update_network());
    json("request_vtep_add", &samples::vtep_add());
    json("request_attach", &samples::attach());
    json("request_detach", &samples::detach());
    json("error", &Error::conflict("taken").cause("by h2").next_step("take another"));
}

#[test]
fn requests_need_only_what_has_no_default() {
    let create: CreateNetwork =
        serde_json::from_str(r#"{"name":"blue","subnets":["198.51.100.0/24"]}"#).unwrap();
    assert_eq!((create.gateway, create.mode), (Gateway::None, Mode::Vxlan));
    for (text, gateway) in [
        (r#""none""#, Gateway::None),
        (r#""198.51.100.1""#, Gateway::Addresses(vec![[198, 51, 100, 1].into()])),
        (r#"["198.51.100.1"]"#, Gateway::Addresses(vec![[198, 51, 100, 1].into()])),
    ] {
        assert_eq!(serde_json::from_str::<Gateway>(text).unwrap(), gateway);
    }
    let attach: Attach = serde_json::from_str(r#"{"network":"blue","netns":"c1"}"#).unwrap();
    assert_eq!(attach.ifname, "eth0");
    for unknown in [r#"{"network":"b","netns":"c","ipz":[]}"#, r#"{"network":"b"}"#] {
        assert!(serde_json::from_str::<Attach>(unknown).is_err());
    }
}

#[test]
fn answers_of_a_newer_agent_are_read() {
    let mut value = serde_json::to_value(samples::hosts()).unwrap();
    value[0]["state"] = "resting".into();
    value[0]["more"] = true.into();
    let hosts: Vec<Host> = serde_json::from_value(value).unwrap();
    assert_eq!(hosts[0].state, HostState::Unknown);
}

fn help(command: &mut clap::Command, path: &str) {
    let text = command.render_long_help().to_string();
    golden(&format!("help/{path}.txt"), &text);
    for line in text.lines() {
        assert!(line.chars().count() <= 110, "{path}: {line}");
    }
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        .map(|sub| sub.get_name().to_owned())
        .collect();
    if names.is_empty() {
        assert!(text.contains("Example"), "{path} has no example");
    }
    for name in names {
        let sub = command.find_subcommand_mut(&name).unwrap();
        help(sub, &format!("{path}_{name}"));
    }
}

#[test]
fn help_reads_as_it_did() {
    let mut command = Cli::command().term_width(100);
    command.build();
    help(&mut command, "skybridge");
}

#[test]
fn the_grouped_list_has_every_command() {
    let mut command = Cli::command();
    let text = command.render_long_help().to_string();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let line = format!("\n  {:<9}  ", sub.get_name());
        assert_eq!(text.matches(&line).count(), 1, "{}", sub.get_name());
    }
}

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_example_configuration_reads_as_it_did() {
    golden("skybridge.toml", &skybridge::config::example());
}

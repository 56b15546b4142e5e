//! `skybridge demo` in each mode, without the comparison.

use std::fs;
use std::time::Duration;

use testkit::{Cap, Suite, binary, run_within};

const CAPS: &[Cap] = &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft];

pub(crate) fn register(suite: &mut Suite) {
    for (mode, table) in [("vxlan", "fdb"), ("ipip", "routes"), ("ipudp", "routes")] {
        suite.test(format!("demo::{mode}"), CAPS, move || shows_and_tidies_up(mode, table));
    }
}

fn shows_and_tidies_up(mode: &str, table: &str) {
    let mut command = std::process::Command::new(binary());
    command.args(["demo", "--mode", mode, "--seconds", "0", "--no-color"]);
    let shown = run_within(command, Duration::from_secs(120)).expect_success().stdout;
    let table = format!("$ skybridge {table} ");
    for wanted in ["Every container pings every other", "every byte checked", &table, "Done;"] {
        assert!(shown.contains(wanted), "no `{wanted}` in:\n{shown}");
    }
    let (_, rest) = shown.split_once("/tmp/sbdemo").unwrap();
    let name = format!("sbdemo{}", rest.split('/').next().unwrap());
    for place in ["/run/netns", "/tmp"] {
        let left = fs::read_dir(place).unwrap().flatten().map(|entry| entry.file_name());
        // Another demo may run beside this one, under a longer number.
        let ours = |file: &str| file == name || file.starts_with(&format!("{name}-"));
        let left: Vec<_> = left.filter(|file| ours(&file.to_string_lossy())).collect();
        assert!(left.is_empty(), "left in {place}: {left:?}");
    }
}

//! The documents say what the program does: commands, flags, keys, reasons, metrics, examples.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::CommandFactory as _;
use skybridge::cli::Cli;
use skybridge::config;
use skybridge::datapath::drop::DropReason;
use skybridge::telemetry::counters::{PortCounters, WorkerCounters};
use skybridge::telemetry::metrics::BOUNDS;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// Every visible command with its long flags.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    fn visit(command: &clap::Command, path: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        let flags = command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .filter_map(|argument| argument.get_long())
            .filter(|flag| !["help", "version"].contains(flag))
            .map(str::to_owned)
            .collect();
        for sub in command.get_subcommands() {
            if !sub.is_hide_set() && sub.get_name() != "help" {
                visit(sub, &path, found);
            }
        }
        found.insert(path, flags);
    }
    let mut found = BTreeMap::new();
    visit(&Cli::command(), "", &mut found);
    found
}

/// The sections of the reference that are headed by a command, with the flags that they name.
fn sections() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut section = None;
    for line in read("docs/reference.md").lines() {
        if let Some(heading) = line.strip_prefix('#') {
            let heading = heading.trim_start_matches('#').trim();
            section = heading.starts_with("skybridge").then(|| heading.to_owned());
            if let Some(section) = &section {
                let fresh = found.insert(section.clone(), BTreeSet::new()).is_none();
                assert!(fresh, "docs/reference.md has two sections {section}");
            }
        } else if let Some(section) = &section {
            found.get_mut(section).unwrap().extend(flags_in(line));
        }
    }
    found
}

/// The rows of a table that open with a flag.
fn flags_in(line: &str) -> Option<String> {
    let cell = line.strip_prefix("| `")?.split('`').next()?;
    let flag = cell.split(", ").last()?.strip_prefix("--")?;
    Some(flag.split(' ').next()?.to_owned())
}

#[track_caller]
fn same(what: &str, known: &BTreeSet<String>, written: &BTreeSet<String>) {
    let missing: Vec<_> = known.difference(written).collect();
    let unknown: Vec<_> = written.difference(known).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{what}: the document lacks {missing:?}, and has {unknown:?} that do not exist"
    );
}

#[test]
fn the_reference_has_every_command_and_flag_and_no_other() {
    let known = commands();
    let written = sections();
    let names = |map: &BTreeMap<String, BTreeSet<String>>| map.keys().cloned().collect();
    same("commands", &names(&known), &names(&written));
    for (command, flags) in &known {
        same(command, flags, &written[command]);
    }
}

/// First cells, in backticks, of the table below `heading`.
fn table_below(document: &str, heading: &str) -> BTreeSet<String> {
    let lines = document.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading);
    let lines = lines.skip(1).take_while(|line| !line.starts_with('#'));
    let cell = |line: &str| line.strip_prefix("| `")?.split('`').next().map(str::to_owned);
    lines.filter_map(cell).collect()
}

#[test]
fn the_reference_has_every_configuration_key_with_its_default() {
    let text = read("docs/reference.md");
    let known = config::KEYS.iter().map(|key| key.name.to_owned()).collect();
    same("keys", &known, &table_below(&text, "Configuration keys"));
    for key in config::KEYS {
        let row = format!("| `{}` | {} | {} |", key.name, key.default, key.doc);
        assert!(text.contains(&row), "docs/reference.md lacks the row\n{row}");
    }
}

#[test]
fn the_reference_has_every_environment_variable() {
    use config::environment::{CONFIG, SOCKET, STORES};
    let known = [CONFIG, SOCKET, STORES, "NO_COLOR", "SHELL"].map(str::to_owned).into();
    same("variables", &known, &table_below(&read("docs/reference.md"), "Environment"));
}

#[test]
fn troubleshooting_has_every_drop_reason_as_the_program_tells_it() {
    let text = read("docs/troubleshooting.md");
    let known = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    same("reasons", &known, &table_below(&text, "Drop reasons"));
    for reason in DropReason::ALL {
        let row = format!("| `{}` | {} | {} |", reason.name(), reason.description(), reason.hint());
        assert!(text.contains(&row), "docs/troubleshooting.md lacks the row\n{row}");
    }
}

#[test]
fn metrics_has_every_metric() {
    let text = read("docs/metrics.md");
    let mut known = BTreeSet::from(["skybridge_drops_total".to_owned()]);
    for (table, prefix) in
        [(WorkerCounters::DESCRIPTIONS, "worker"), (PortCounters::DESCRIPTIONS, "network")]
    {
        for (name, unit, help) in table {
            let row = format!("| `skybridge_{prefix}_{name}_total` | {unit} | {help} |");
            assert!(text.contains(&row), "docs/metrics.md lacks the row\n{row}");
            known.insert(format!("skybridge_{prefix}_{name}_total"));
        }
    }
    // The gauges need a running agent to be listed; their names stand as literals in one file.
    let source = read("src/agent/figures.rs");
    for literal in source.split('"').filter(|text| text.starts_with("skybridge_")) {
        known.insert(literal.to_owned());
    }
    known.extend(BOUNDS.iter().map(|(name, _)| (*name).to_owned()));
    let cell = |line: &str| line.strip_prefix("| `")?.split('`').next().map(str::to_owned);
    same("metrics", &known, &text.lines().filter_map(cell).collect());
}

#[test]
fn operations_has_every_limit() {
    // They need a running agent to be listed; their names stand as literals in two files.
    let mut known = BTreeSet::new();
    for (file, before) in [("src/agent/bounds.rs", "add("), ("src/datapath/handle.rs", "name: ")] {
        let source = read(file);
        for text in source.split(before).skip(1) {
            let literal =
                text.trim_start().strip_prefix('"').and_then(|text| text.split('"').next());
            known.extend(literal.map(str::to_owned));
        }
    }
    assert!(known.len() > 8, "{known:?}");
    same("limits", &known, &table_below(&read("docs/operations.md"), "Limits"));
}

/// `skybridge ...` command lines in the code blocks of a document.
fn examples(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block = false;
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            block = !block;
        }
        if !block && !line.starts_with("    ") {
            continue;
        }
        let line = line.trim().trim_start_matches("$ ");
        let line = line.split_once("# ").map_or(line, |(_, command)| command);
        // What has these is a synopsis.
        let synopsis = line.contains("[OPTIONS]") || line.contains('<');
        if line.starts_with("skybridge ") && !synopsis {
            found.push(line.to_owned());
        }
    }
    found
}

/// The words of a command line; what a shell would fill in is a process id.
fn words(line: &str) -> Vec<String> {
    let mut text = line.to_owned();
    while let Some(start) = text.find("$(") {
        let end = start + text[start..].rfind(')').unwrap();
        text.replace_range(start..=end, "4711");
    }
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn command_lines_of_the_documents_parse() {
    let mut count = 0;
    for name in [
        "README.md",
        "docs/docker.md",
        "docs/metrics.md",
        "docs/operations.md",
        "docs/reference.md",
        "docs/store.md",
        "docs/swarm.md",
        "docs/troubleshooting.md",
    ] {
        for line in examples(&read(name)) {
            if let Err(err) = Cli::command().try_get_matches_from(words(&line)) {
                panic!("{name}: {line}\n{err}");
            }
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} command lines were found");
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in [
        "README.md",
        "docs/docker.md",
        "docs/metrics.md",
        "docs/operations.md",
        "docs/reference.md",
        "docs/store.md",
        "docs/swarm.md",
        "docs/troubleshooting.md",
    ] {
        let text = read(name);
        let folder = root.join(name);
        let folder = folder.parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.starts_with("http") && !target.starts_with('#') {
                assert!(folder.join(target).exists(), "{name} links to {target}");
            }
        }
    }
}

/// Tests that the document on reliability names are there.
#[test]
fn promises_are_tested() {
    let text = read("docs/reliability.md");
    let named: BTreeSet<&str> =
        text.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let (module, test) = name.split_once("::").unwrap();
        // The module `host` is in a file of a longer name.
        let file = if module == "host" { "host_faults" } else { module };
        let source = read(&format!("tests/system/{file}.rs"));
        assert!(source.contains(&format!("\"{module}::{test}")), "{name} is no test");
    }
}

//! Keeps the import borders: which crate and which module may know which.
//!
//! ```text
//!     encap  <-  fdb  <-  membership  <-  root package (src/)
//!     bytes      tables    records         sockets, threads, processes
//! ```
//!
//! The sources are read as text: comments and literals are blanked, `use` trees are unfolded, and
//! every path with `::` counts, so a reference without `use` is seen too. `super` is resolved by
//! the file's place. A border is broken by a name, so the message says file and name.

use std::fs;
use std::path::{Path, PathBuf};

/// Names that code below a folder must not refer to, and why.
struct Border {
    folder: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const BORDERS: &[Border] = &[
    Border {
        folder: "encap/src",
        forbidden: &[
            "fdb",
            "membership",
            "skybridge",
            "tokio",
            "nix",
            "libc",
            "std::fs",
            "std::thread",
            "std::process",
            "std::time::Instant",
            "std::time::SystemTime",
            "std::net::UdpSocket",
            "std::net::TcpStream",
        ],
        why: "encap is bytes: no I/O, no clock, none of our crates",
    },
    Border {
        folder: "fdb/src",
        forbidden: &[
            "membership",
            "skybridge",
            "tokio",
            "etcd_client",
            "nix",
            "libc",
            "std::fs",
            "std::process",
            "std::time::Instant",
            "std::time::SystemTime",
            "std::net::UdpSocket",
        ],
        why: "fdb is tables: no I/O, time is an argument, only encap below it",
    },
    Border {
        folder: "membership/src",
        forbidden: &[
            "skybridge",
            "libc",
            "rtnetlink",
            "std::net::UdpSocket",
            "std::process::Command",
        ],
        why: "membership is records: only encap and fdb below it, no packet",
    },
    Border {
        folder: "src/datapath",
        forbidden: &[
            "membership",
            "tokio",
            "etcd_client",
            "axum",
            "hyper",
            "rtnetlink",
            "crate::agent",
            "crate::cli",
            "crate::config",
            "crate::control",
            "crate::daemon",
            "crate::demo",
            "crate::driver",
            "crate::link",
            "crate::traffic",
        ],
        why: "the datapath knows tables and bytes, never the store or an async runtime",
    },
    Border {
        folder: "src/port",
        forbidden: &[
            "membership",
            "tokio",
            "etcd_client",
            "crate::cli",
            "crate::control",
            "crate::datapath",
            "crate::driver",
            "crate::link",
            "crate::underlay",
        ],
        why: "a port is one end of the datapath and knows neither the other end nor the middle",
    },
    Border {
        folder: "src/underlay",
        forbidden: &[
            "membership",
            "tokio",
            "etcd_client",
            "crate::cli",
            "crate::control",
            "crate::datapath",
            "crate::driver",
            "crate::link",
            "crate::port",
        ],
        why: "the underlay is one end of the datapath and knows neither the other end nor the middle",
    },
    Border {
        folder: "src/sys",
        forbidden: &[
            "fdb",
            "membership",
            "tokio",
            "crate::cli",
            "crate::control",
            "crate::datapath",
            "crate::driver",
            "crate::link",
            "crate::port",
            "crate::telemetry",
            "crate::underlay",
        ],
        why: "sys wraps system calls and knows nothing above them",
    },
    Border {
        folder: "src/link",
        forbidden: &["membership", "crate::cli", "crate::control", "crate::datapath"],
        why: "link does what it is told to the host's links and asks nobody",
    },
    Border {
        folder: "src/cli",
        forbidden: &[
            "fdb",
            "crate::control::server",
            "crate::datapath",
            "crate::driver",
            "crate::link",
            "crate::port",
            "crate::sys",
            "crate::underlay",
        ],
        why: "commands talk to the agent through control::client and to nothing else",
    },
    Border {
        folder: "src/traffic",
        forbidden: &[
            "encap",
            "fdb",
            "membership",
            "tokio",
            "crate::agent",
            "crate::cli",
            "crate::control",
            "crate::datapath",
            "crate::driver",
            "crate::link",
            "crate::port",
            "crate::sys",
            "crate::underlay",
        ],
        why: "a generator that shares code with what it tests would share its faults",
    },
];

/// Where the keyword `unsafe` may stand.
const UNSAFE: &str = "src/sys";

/// Folders in which it may not, beside the whole of `src`.
const SAFE: &[&str] =
    &["src", "encap", "fdb", "membership", "bench", "tests/system", "tests/testkit"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below `folder`, and the file `FOLDER.rs` if there is one.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let beside = root().join(format!("{folder}.rs"));
    if beside.is_file() {
        found.push(beside);
    }
    let mut open = vec![root().join(folder)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The text with comments and the contents of literals replaced by spaces.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let from = i;
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                while i < chars.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            ('r', '"' | '#') if !identifier(i.checked_sub(1).map_or(' ', at)) => {
                let hashes = (i + 1..).take_while(|at_| at(*at_) == '#').count();
                if at(i + 1 + hashes) == '"' {
                    i += 2 + hashes;
                    let closed = |i: usize| at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#');
                    while i < chars.len() && !closed(i) {
                        i += 1;
                    }
                    i += 1 + hashes;
                } else {
                    // A raw identifier.
                    out.push('r');
                    i += 2;
                    continue;
                }
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character and not a lifetime.
            ('\'', '\\') => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (other, _) => {
                out.push(other);
                i += 1;
                continue;
            }
        }
        out.extend((from..i.min(chars.len())).map(|i| if at(i) == '\n' { '\n' } else { ' ' }));
    }
    out
}

fn identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Identifiers, `::` and single other characters, in order.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        if identifier(c) {
            let mut word = String::from(c);
            while let Some(c) = chars.next_if(|c| identifier(*c)) {
                word.push(c);
            }
            tokens.push(word);
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            tokens.push("::".to_owned());
        } else if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    tokens
}

/// Every path in the code: those of `use` trees unfolded, and each `a::b` elsewhere.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut i = 0;
    while let Some(token) = tokens.get(i) {
        if token == "use" {
            i = unfold(tokens, i + 1, &mut Vec::new(), &mut found);
            continue;
        }
        let starts = token.chars().next().is_some_and(identifier);
        let mut path = Vec::new();
        while starts && tokens.get(i).is_some_and(|word| word.chars().all(identifier)) {
            path.extend(tokens.get(i).cloned());
            if tokens.get(i + 1).is_none_or(|next| next != "::") {
                break;
            }
            i += 2;
        }
        if path.len() > 1 || tokens.get(i).is_some_and(|next| next == "::") {
            found.push(path);
        }
        i += 1;
    }
    found
}

/// Unfolds one `use` tree from token `i` on; gives the index after it.
fn unfold(
    tokens: &[String],
    mut i: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> usize {
    let depth = prefix.len();
    while let Some(token) = tokens.get(i) {
        match token.as_str() {
            "::" => i += 1,
            "{" => {
                i += 1;
                while tokens.get(i).is_some_and(|token| token != "}") {
                    i = unfold(tokens, i, prefix, found);
                    if tokens.get(i).is_some_and(|token| token == ",") {
                        i += 1;
                    }
                }
                prefix.truncate(depth);
                return i + 1;
            }
            "," | "}" | ";" => break,
            "as" => i += 2,
            word => {
                prefix.push(word.to_owned());
                i += 1;
            }
        }
    }
    found.push(prefix.clone());
    prefix.truncate(depth);
    i
}

/// The module path of a file of the root package, from `crate` on; empty for other packages.
fn module(file: &Path) -> Vec<String> {
    let Ok(inside) = file.strip_prefix(root().join("src")) else { return Vec::new() };
    let mut module = vec!["crate".to_owned()];
    module.extend(
        inside
            .with_extension("")
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .filter(|part| !matches!(part.as_str(), "mod" | "lib" | "main")),
    );
    module
}

/// The path with leading `self` and `super` replaced by where they lead.
fn resolved(path: &[String], module: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|word| *word == "super").count();
    let rest = &path[ups..];
    match rest.first() {
        Some(first) if first == "self" && ups == 0 => [module, &rest[1..]].concat(),
        _ if ups > 0 => [&module[..module.len().saturating_sub(ups)], rest].concat(),
        _ => rest.to_vec(),
    }
}

fn matches(path: &[String], forbidden: &str) -> bool {
    let mut words = path.iter();
    forbidden.split("::").all(|part| words.next().is_some_and(|word| word == part))
}

#[test]
fn nothing_points_to_the_right() {
    let mut broken = Vec::new();
    for border in BORDERS {
        for file in files(border.folder) {
            let text = fs::read_to_string(&file).unwrap();
            let module = module(&file);
            for path in paths(&tokens(&blanked(&text))) {
                let path = resolved(&path, &module);
                for forbidden in border.forbidden.iter().filter(|name| matches(&path, name)) {
                    let file = file.strip_prefix(root()).unwrap_or(&file).display();
                    let path = path.join("::");
                    broken.push(format!("{file}: {path} ({forbidden}): {}", border.why));
                }
            }
        }
    }
    broken.dedup();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys() {
    let mut broken = Vec::new();
    for file in SAFE.iter().flat_map(|folder| files(folder)) {
        let inside = file.strip_prefix(root()).unwrap_or(&file);
        if inside.starts_with(UNSAFE) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        if tokens(&blanked(&text)).iter().any(|token| token == "unsafe") {
            broken.push(inside.display().to_string());
        }
    }
    assert!(broken.is_empty(), "`unsafe` outside {UNSAFE}: {broken:?}");
}

/// The manifests say the same: a dependency that is not declared cannot be used by accident.
#[test]
fn manifests_point_to_the_left() {
    let order = ["encap", "fdb", "membership", "skybridge"];
    for (index, name) in order.iter().enumerate().take(3) {
        let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let dependencies = text.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for right in &order[index..] {
            let declared = dependencies.lines().any(|line| {
                line.strip_prefix(right).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
            });
            assert!(!declared, "{name} depends on {right}");
        }
    }
}

#[test]
fn the_reader_sees_every_form_of_reference() {
    let code = r##"
        //! membership::in_a_comment
        use crate::{cli, control::{client as c, server}};
        use std::io; /* use tokio::x; /* nested */ */
        pub(crate) use super::link::Veth;
        const TEXT: &str = "fdb::in_a_string \" still";
        const RAW: &str = r#"etcd_client::"raw"#;
        fn f<'a>(x: &'a str) -> char { let q = '\''; let c = ':'; nix::sys::stat::fstat(x) }
    "##;
    let module: Vec<String> = ["crate", "datapath", "worker"].map(str::to_owned).into();
    let seen: Vec<String> = paths(&tokens(&blanked(code)))
        .iter()
        .map(|path| resolved(path, &module).join("::"))
        .collect();
    for wanted in [
        "crate::cli",
        "crate::control::client",
        "crate::control::server",
        "std::io",
        "crate::datapath::link::Veth",
        "nix::sys::stat::fstat",
    ] {
        assert!(seen.iter().any(|path| path == wanted), "{wanted} is not in {seen:?}");
    }
    for hidden in ["membership", "tokio", "fdb", "etcd_client"] {
        assert!(!seen.iter().any(|path| path.starts_with(hidden)), "{hidden} is in {seen:?}");
    }
}

//! The program itself: output, errors, exit codes.

use std::path::Path;
use std::process::{Command, Output};

use crate::api::{Agent, run};
use crate::golden;

fn skybridge(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skybridge"));
    command.args(args).env("NO_COLOR", "1").env("COLUMNS", "100");
    for variable in ["SKYBRIDGE_CONFIG", "SKYBRIDGE_SOCKET", "SKYBRIDGE_STORES"] {
        command.env_remove(variable);
    }
    command.output().unwrap()
}

#[track_caller]
fn ok(args: &[&str]) -> String {
    let output = skybridge(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && error.is_empty(), "{args:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that fails with `code` and prints nothing else.
#[track_caller]
fn fails(code: i32, args: &[&str]) -> String {
    let output = skybridge(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{error}");
    assert!(output.stdout.is_empty(), "{args:?}");
    error
}

fn golden_text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn commands_print_what_the_agent_says() {
    run(async {
        let agent = Agent::start();
        let socket = agent.socket.to_str().unwrap().to_owned();
        tokio::task::spawn_blocking(move || {
            let with = |args: &[&str]| ok(&[args, &["--socket", &socket]].concat());
            if std::env::var_os("SKYBRIDGE_UPDATE_GOLDEN").is_none() {
                for name in
                    ["status", "hosts", "endpoints", "fdb", "neighbors", "routes", "drops", "stats"]
                {
                    assert_eq!(with(&[name]), golden_text(&format!("text/{name}.txt")), "{name}");
                }
            }
            let endpoints: serde_json::Value =
                serde_json::from_str(&with(&["endpoints", "blue", "--json"])).unwrap();
            let hosts: Vec<&str> = endpoints
                .as_array()
                .unwrap()
                .iter()
                .map(|endpoint| endpoint["host"].as_str().unwrap())
                .collect();
            assert_eq!(hosts, ["h1", "h1", "h2"], "sorted");
            let create = "network create blue --subnet 198.51.100.0/24 --subnet 2001:db8:51::/64 \
                          --vni 4097 --udp-port 8472 --mtu 1400 --gateway 198.51.100.1 \
                          --gateway 2001:db8:51::1 --option source_check=mac --label team=web";
            let words = |text: &'static str| text.split_whitespace().collect::<Vec<_>>();
            assert!(with(&words(create)).contains("VNI 4097"));
            let update = "network update blue --mtu 1400 \
                          --option source_check=strict --label team";
            assert!(with(&words(update)).contains("198.51.100.0/24"));
            let add = "network vtep add blue 192.0.2.9 --port 8472 \
                       --mac 00:00:5e:00:53:09=198.51.100.9";
            assert!(with(&words(add)).contains("8472"));
            let import = "network vtep import blue --vtep 192.0.2.1 \
                          --netns /run/docker/netns/*-k3xf9w2m1q";
            assert_eq!(with(&words(import)), golden_text("text/kernel_links.txt"));
            let listed = with(&words("network vtep ls blue"));
            assert!(listed.ends_with(&golden_text("text/kernel_links.txt")), "{listed}");
            let export = with(&words("network vtep export blue --netns /run/netns/a"));
            assert_eq!(export, golden_text("text/exported.txt"));
            let rm = with(&words("network vtep rm blue 192.0.2.9"));
            assert_eq!(rm, "removed VTEP 192.0.2.9 from network blue\n");
            assert_eq!(with(&["network", "rm", "blue"]), "removed network blue\n");
            let attach: serde_json::Value =
                serde_json::from_str(&with(&["attach", "blue", "--netns", "c1", "--json"]))
                    .unwrap();
            assert_eq!(attach["ips"][0], "198.51.100.2/24");
            assert!(with(&["detach", "blue", "--netns", "/proc/self/ns/net"]).contains("detached"));
            assert!(with(&["detach", "--id", "3f9c2a71b0d84e55"]).contains("detached"));

            let args = ["store", "token", "--host", "h2", "--socket", &socket];
            let output = skybridge(&args);
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text, format!("{}\n", crate::samples::token().token), "only the token");
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(said, "for host h2, once, within 1h; there: skybridge join TOKEN\n");

            let error = fails(1, &["fdb", "red", "--socket", &socket]);
            assert_eq!(
                error,
                "error: there is no network `red`\n\
                 try: `skybridge network ls` shows which there are\n"
            );
            let create = ["network", "create", "red", "--subnet", "198.51.100.0/24"];
            let error = fails(1, &[&create[..], &["--socket", &socket]].concat());
            assert_eq!(
                error,
                "error: the subnet is taken\ncause: network `blue` has 198.51.100.0/24\n\
                 try: give another --subnet\n"
            );
            // The fake's namespace is not there.
            let error = fails(1, &["enter", "blue", "--socket", &socket]);
            assert!(error.contains("cannot open /run/skybridge/ns/51f0a3b87e2c"), "{error}");
        })
        .await
        .unwrap();
    });
}

#[test]
fn no_agent_is_an_error_with_a_next_step() {
    let error = fails(1, &["status", "--socket", "/nonexistent/agent.sock"]);
    golden("errors/no_agent.txt", &error);
}

#[test]
fn wrong_usage_is_told_before_anything_is_asked() {
    let cases: &[&[&str]] = &[
        &["network", "create", "blue"],
        &["network", "create", "-x", "--subnet", "198.51.100.0/24"],
        &["network", "create", "bl ue", "--subnet", "198.51.100.0/24"],
        &["network", "create", "blue", "--subnet", "198.51.100.7/24"],
        &["network", "create", "blue", "--subnet", "198.51.100.7"],
        &["network", "create", "blue", "--subnet", "198.51.100.0/24", "--vni", "16777216"],
        &["network", "create", "blue", "--subnet", "198.51.100.0/24", "--mtu", "100"],
        &["network", "create", "blue", "--subnet", "2001:db8::/64", "--mtu", "1000"],
        &["network", "create", "blue", "--subnet", "198.51.100.0/24", "--gateway", "203.0.113.1"],
        &["network", "create", "blue", "--subnet", "198.51.100.0/24", "--mode", "l3"],
        &["network", "create", "blue", "--subnet", "198.51.100.0/24", "--option", "x"],
        &["network", "update", "blue"],
        &["network", "vtep", "add", "blue", "224.0.0.1"],
        &["attach", "blue"],
        &["attach", "blue", "--netns", "0"],
        &["attach", "blue", "--netns", "c1", "--mac", "01:00:5e:00:00:01"],
        &["attach", "blue", "--netns", "c1", "--ip", "198.51.100.2/24"],
        &["attach", "blue", "--netns", "c1", "--ifname", "a-name-that-is-too-long"],
        &["detach", "blue"],
        &["detach", "--netns", "c1"],
        &["detach", "blue", "--netns", "c1", "--id", "e1"],
        &["stats", "--interval", "2"],
        &["demo", "--hosts", "1"],
        &["store", "--listen", "192.0.2.1:2379"],
        &["store", "--tls-certificate", "/h1.pem"],
        &["store", "token", "--ttl", "soon"],
        &["store", "token", "--host", "h 2"],
        &["store", "export", "--data", "/srv", "--store", "http://127.0.0.1:2379"],
        &["store", "status", "--tls-ca", "/ca.pem"],
        &["store", "status", "--store", "http://192.0.2.1:2379"],
        &["store", "status", "--store", "https://192.0.2.1:2379"],
        &["store", "import"],
        &["join"],
        &["join", "TOKEN", "--name", "h 2"],
        &["agent", "--check", "--cleanup"],
        &["frobnicate"],
    ];
    let mut text = String::new();
    for args in cases {
        text.push_str(&format!("$ skybridge {}\n", args.join(" ")));
        text.push_str(&fails(2, args));
        text.push('\n');
    }
    golden("errors/usage.txt", &text);
}

#[test]
fn help_and_version_are_no_errors() {
    assert!(ok(&["help"]).contains("The first five minutes"));
    assert!(ok(&["--help"]).contains("Exit codes"));
    assert!(ok(&["help", "attach"]).contains("Examples"));
    assert!(ok(&["--version"]).starts_with("skybridge "));
    let output = skybridge(&[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn check_prints_a_configuration_that_means_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skybridge.toml");
    std::fs::write(
        &file,
        "name = \"h1\"\nvtep = [\"192.0.2.1\", \"2001:db8::1\"]\nworkers = 2\n\n\
         [datapath]\ndisable = [\"uso\", \"udp-gso\"]\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let args = ["agent", "--check", "--config", file, "--store", "http://127.0.0.1:2379"];
    let text = ok(&args);
    golden("check.txt", &text.replace(file, "/etc/skybridge/skybridge.toml"));
    let copy = directory.path().join("copy.toml");
    std::fs::write(&copy, &text).unwrap();
    let again = ok(&["agent", "--check", "--config", copy.to_str().unwrap()]);
    let values = |text: &str| {
        let values = text.lines().filter_map(|line| line.split_once("  #"));
        values.map(|(value, _)| value.trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&text), values(&again));
}

#[test]
fn wrong_configuration_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skybridge.toml");
    let path = file.to_str().unwrap();
    let mut text = String::new();
    for (content, args) in [
        ("vtep = \"192.0.2.1\"\nwokers = 2\n", &[][..]),
        ("vtep = \"192.0.2.1\"\nworkers = 200\n", &["--store", "http://127.0.0.1:2379"][..]),
        ("vtep = 7\n", &[]),
        ("vtep = \"192.0.2.1\"\nstores = [\"http://192.0.2.9:2379\"]\n", &[]),
        ("vtep = \"192.0.2.1\"\n", &["--store", "192.0.2.9:2379"]),
        (
            "vtep = \"192.0.2.1\"\n[tls]\nca = \"/ca.pem\"\n",
            &["--embedded-store", "192.0.2.1:2379"],
        ),
        ("vtep = \"192.0.2.1\"\n", &[]),
        ("vtep = \"192.0.2.1\"\n", &["--store", "http://127.0.0.1:2379", "--disable", "gso"]),
    ] {
        std::fs::write(&file, content).unwrap();
        let args = [&["agent", "--name", "h1", "--config", path], args].concat();
        text.push_str(&fails(2, &args).replace(path, "skybridge.toml"));
        text.push('\n');
    }
    golden("errors/configuration.txt", &text);
    let missing = directory.path().join("none.toml");
    let error = fails(2, &["agent", "--config", missing.to_str().unwrap()]);
    assert!(error.contains("cannot read the configuration file"), "{error}");
}

#[test]
fn commands_on_the_store_say_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let state = path("state");
    let error = fails(1, &["join", "skybridge1.e30", "--name", "h2", "--state-dir", &state]);
    assert!(error.contains("that is no join token") && error.contains("try: copy"), "{error}");
    assert!(!Path::new(&state).exists(), "something was left");
    let nowhere = "skybridge1.eyJlIjpbImh0dHBzOi8vMTI3LjAuMC4xOjEiXSwiZiI6IkJ3Y0hCd2NIQndjSEJ3\
                   Y0hCd2NIQndjSEJ3Y0hCd2NIQndjSEJ3Y0hCd2MiLCJpIjoiQUFBQUFBQUFBQUEiLCJzIjoiQUFB\
                   QUFBQUFBQUFBQUFBQUFBQUFBQSJ9";
    let error = fails(1, &["join", nowhere, "--name", "h2", "--state-dir", &state]);
    assert!(error.contains("127.0.0.1:1") && error.contains("cannot be reached"), "{error}");
    assert!(error.contains("The token is still good"), "{error}");
    assert!(!Path::new(&state).exists(), "something was left");

    let socket = path("none.sock");
    let error = fails(1, &["store", "status", "--socket", &socket]);
    assert!(error.contains("no agent answers") && error.contains("--store"), "{error}");
    let away = ["--store", "http://127.0.0.1:1"];
    let output = skybridge(&[&["store", "status"], &away[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("away") && text.contains("connection refused"), "{text}");
    let error = fails(1, &[&["store", "import", &path("none.jsonl")], &away[..]].concat());
    assert!(error.contains("none.jsonl"), "{error}");
    let out = path("out.jsonl");
    let error = fails(1, &[&["store", "export", "--output", &out], &away[..]].concat());
    assert!(error.contains("does not answer"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "something was left");
    let error = fails(1, &["store", "export", "--data", &path("nothing")]);
    assert!(error.contains("nothing"), "{error}");
    assert!(!Path::new(&path("nothing")).exists(), "a store was made");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let program = env!("CARGO_BIN_EXE_skybridge");
    // 101 is the exit code of a panic, 141 that of SIGPIPE.
    let script = format!("{program} help agent | true; test ${{PIPESTATUS[0]}} -eq 0");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
}

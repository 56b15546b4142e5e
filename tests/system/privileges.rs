//! What the agent may do, and who may use it: capabilities of every thread, the shipped units, the
//! control socket's group, and that no secret is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testkit::traffic;
use testkit::{
    AgentSpec, Cap, Family, Finished, Lab, Process, Store, Suite, binary, run, sandbox, wait_until,
};

use crate::paths::wait_for;
use crate::support::{AGENTS, DUAL, NETWORK, carry, containers};

const UNITS: &[Cap] = &[Cap::SystemdAnalyze];
pub(crate) const UNDER_UNIT: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd, Cap::SystemdAnalyze];

pub(crate) fn register(suite: &mut Suite) {
    suite.test("privileges::only_what_is_needed", AGENTS, || only_what_is_needed(false));
    suite.test("privileges::only_what_is_needed_under_the_unit", UNDER_UNIT, || {
        only_what_is_needed(true);
    });
    suite.test("privileges::packets_under_the_unit", UNDER_UNIT, packets_under_the_unit);
    suite.test("privileges::the_store_needs_none", UNDER_UNIT, the_store_needs_none);
    suite.test("privileges::units_are_hardened", UNITS, units_are_hardened);
    suite.test("privileges::units_are_valid", UNITS, units_are_valid);
    suite.test("privileges::no_mount_namespace", &[], no_mount_namespace);
    suite.test("privileges::the_socket_has_a_group", AGENTS, the_socket_has_a_group);
    suite.test("privileges::secrets_are_not_told", AGENTS, secrets_are_not_told);
}

/// A unit file of this repository.
pub(crate) fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

// ===== capabilities =====

/// Bits of `include/uapi/linux/capability.h`.
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_RAW: u64 = 1 << 13;
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const RUNNING: u64 = NET_BIND_SERVICE | NET_ADMIN | NET_RAW | SYS_PTRACE | SYS_ADMIN;

/// The capability sets of one thread, by their names in `/proc/PID/status`, and its name.
fn threads(pid: u32) -> Vec<(String, BTreeMap<String, u64>)> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("status")) else { continue };
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let lines: BTreeMap<&str, &str> = lines.map(|(key, value)| (key, value.trim())).collect();
        let mut sets = BTreeMap::new();
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            sets.insert(name.to_owned(), u64::from_str_radix(lines[name], 16).unwrap());
        }
        sets.insert("NoNewPrivs".to_owned(), lines["NoNewPrivs"].parse().unwrap());
        found.push((lines["Name"].to_owned(), sets));
    }
    found
}

/// Every thread of a process has what its work needs and nothing else.
fn assert_capabilities(pid: u32, control: u64) {
    let found = threads(pid);
    for (name, sets) in &found {
        let worker = name.starts_with("worker-") || name.starts_with("store");
        let wanted = if worker { 0 } else { control };
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(sets[set], wanted, "{set} of {name}: {:x}", sets[set]);
        }
        assert_eq!(sets["CapBnd"], RUNNING, "the bounding set of {name}: {:x}", sets["CapBnd"]);
        assert_eq!((sets["CapInh"], sets["CapAmb"]), (0, 0), "{name}");
        assert_eq!(sets["NoNewPrivs"], 1, "{name}");
    }
    assert!(found.len() >= 3, "{found:?}");
}

/// Threads hold what they need; and with that, all that an agent does works: each way to name a
/// sandbox, source checks, a network on another port, static VTEPs, restart, cleanup.
fn only_what_is_needed(under_unit: bool) {
    let lab = Lab::with_hosts(2).build();
    let spec = |host: usize| {
        let spec = lab.spec(host, Store::Embedded, Family::V4).args(&["--workers", "2"]);
        if under_unit { spec.unit(unit("skybridge.service")) } else { spec }
    };
    let agents = [lab.start_agent(1, spec(1)), lab.start_agent(2, spec(2))];
    for agent in &agents {
        assert_capabilities(agent.pid(), RUNNING);
        if under_unit {
            let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
            let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
            let filters: u32 = filters.map_or(0, |count| count.trim().parse().unwrap());
            assert!(filters >= 4, "the runner has set no filters: {status}");
        }
    }
    let names: Vec<String> = threads(agents[0].pid()).into_iter().map(|(name, _)| name).collect();
    for wanted in ["worker-0", "worker-1", "store", "control"] {
        assert!(names.iter().any(|name| name.starts_with(wanted)), "no {wanted} in {names:?}");
    }
    agents[0].create_network(NETWORK, DUAL);
    let containers = containers(&lab, &agents);
    carry(&lab, &containers[0], &containers[1], 1_000_000);

    // A sandbox by its path, and by a process of somebody else.
    let by_path = lab.sandbox("path");
    let path = by_path.path().display().to_string();
    let _ = agents[1].cli(&["attach", NETWORK, "--netns", &path]);
    let by_pid = lab.sandbox("pid");
    let mut sleep = by_pid.command("setpriv");
    sleep.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sleep", "600"]);
    let mut sleep = Process::spawn(sleep, &lab.logs(), "sleep");
    let pid = sleep.pid().to_string();
    wait_until("the process is somebody else's", Duration::from_secs(10), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        (status.contains("Name:\tsleep") && status.contains("Uid:\t65534")).then_some(())
    });
    let _ = agents[1].cli(&["attach", NETWORK, "--netns", &pid]);
    for sandbox in [&by_path, &by_pid] {
        traffic::ping(sandbox, containers[0].address(Family::V4), 56);
    }
    // A forged source is stopped at the veth, by rules that the agent has set.
    by_path.ip("addr add 198.51.100.77/24 dev eth0");
    let forged = ["-c", "1", "-W", "1", "-I", "198.51.100.77", "198.51.100.1"];
    assert!(!by_path.try_exec("ping", &forged).status.success());
    assert!(
        crate::support::drops(&agents[1], "veth_source_ip") > 0
            || crate::support::drops(&agents[1], "veth_source_arp") > 0
    );
    // Everything that was only needed once is needed again after a restart.
    agents[1].kill9();
    agents[1].start();
    assert_capabilities(agents[1].pid(), RUNNING);
    carry(&lab, &containers[1], &containers[0], 1_000_000);
    let _ = agents[1].cli(&["detach", NETWORK, "--netns", &pid]);
    sleep.kill();
}

/// Networks of packets need no more: raw sockets and those of UDP, hellos, routes in the host's own
/// namespace, masquerading, and all of it again after a restart.
fn packets_under_the_unit() {
    let lab = Lab::with_hosts(2).build();
    let spec =
        |host: usize| lab.spec(host, Store::Embedded, Family::V4).unit(unit("skybridge.service"));
    let agents = [lab.start_agent(1, spec(1)), lab.start_agent(2, spec(2))];
    let more = ["--nat-outgoing", "--option", "host_access=true"];
    let ways = [
        ("ipip", &["--subnet", "198.51.100.0/25", "--subnet", "2001:db8:1::/80"], "always"),
        ("ipudp", &["--subnet", "198.51.100.128/25", "--subnet", "2001:db8:1:1::/80"], "always"),
        ("auto", &["--subnet", "203.0.113.0/25", "--subnet", "2001:db8:1:2::/80"], "auto"),
    ];
    let mut pairs = Vec::new();
    for (name, subnets, way) in ways {
        let mode = if name == "auto" { "ipip" } else { name };
        let way = format!("encapsulate={way}");
        let args = [&subnets[..], &["--mode", mode, "--option", &way], &more];
        agents[0].create_network(name, &args.concat());
        pairs.push([0, 1].map(|at| {
            agents[at].container(&lab, name, &format!("{name}{at}"), &["--default-route"])
        }));
    }
    wait_for("direct", [&agents[0], &agents[1]]);
    let all = || {
        for [a, b] in &pairs {
            carry(&lab, a, b, 200_000);
            carry(&lab, b, a, 200_000);
            for family in [Family::V4, Family::V6] {
                // Masqueraded, as the other host knows no way back; and from the host itself.
                traffic::ping(a.netns(), lab.host(2).address(family), 56);
                traffic::ping(lab.host(1).netns(), b.address(family), 56);
            }
        }
    };
    all();
    agents[1].kill9();
    agents[1].start();
    assert_capabilities(agents[1].pid(), RUNNING);
    wait_for("direct", [&agents[0], &agents[1]]);
    all();
}

/// The store by itself gives up everything, also as an ordinary user and under its unit.
fn the_store_needs_none() {
    let lab = Lab::with_hosts(1).build();
    let netns = lab.host(1).netns();
    let unit = unit("skybridge-store.service").display().to_string();
    let runner = std::env::current_exe().unwrap().display().to_string();
    let program = binary().display().to_string();
    for (name, before) in [("root", vec![]), ("unit", vec![runner.as_str(), "--under-unit", &unit])]
    {
        let data = lab.directory().join(name).display().to_string();
        let words =
            [before, vec![&program, "store", "--listen", "127.0.0.1:2379", "--data", &data]];
        let words = words.concat();
        let mut command = netns.command(words[0]);
        command.args(&words[1..]);
        let mut store = Process::spawn(command, &lab.logs(), name);
        let log = lab.logs().join(format!("{name}.log"));
        wait_until("the store serves", Duration::from_secs(20), || {
            assert!(store.running(), "{}", fs::read_to_string(&log).unwrap_or_default());
            fs::read_to_string(&log).ok()?.contains("serving the embedded store").then_some(())
        });
        wait_until("it has given up what it had", Duration::from_secs(10), || {
            threads(store.pid())
                .iter()
                .all(|(_, sets)| sets["CapPrm"] == 0 && sets["NoNewPrivs"] == 1)
                .then_some(())
        });
        let put = netns
            .exec(&program, &["store", "status", "--store", "http://127.0.0.1:2379", "--json"]);
        assert!(put.contains("\"answers\": true") || put.contains("\"answers\":true"), "{put}");
        assert!(store.stop(Duration::from_secs(10)));
    }
}

// ===== units =====

/// A copy whose program exists on this machine, for `systemd-analyze`.
fn copy(directory: &Path, name: &str) -> String {
    let text = fs::read_to_string(unit(name)).unwrap();
    let program = binary().display().to_string();
    assert!(text.contains("ExecStart=/usr/local/bin/skybridge "), "{text}");
    let path = directory.join(name);
    fs::write(&path, text.replace("/usr/local/bin/skybridge", &program)).unwrap();
    path.display().to_string()
}

fn analyze(args: &[&str]) -> Finished {
    let mut command = Command::new("systemd-analyze");
    command.args(args);
    run(command)
}

/// The exposure that `systemd-analyze security` computes is no more than was reached, in tenths.
/// What is left of the agent's is its work: links, mounts, namespaces, no mount namespace.
fn units_are_hardened() {
    let directory = tempfile::tempdir().unwrap();
    for (name, threshold) in [("skybridge.service", "55"), ("skybridge-store.service", "15")] {
        let unit = copy(directory.path(), name);
        let threshold = format!("--threshold={threshold}");
        let found = analyze(&["security", "--offline=true", "--no-pager", &threshold, &unit]);
        assert!(found.status.success(), "{found}");
        assert!(found.stdout.contains("Overall exposure level"), "{found}");
    }
}

fn units_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["skybridge.service", "skybridge-store.service"] {
        let found = analyze(&["verify", "--man=no", &copy(directory.path(), name)]);
        assert!(found.status.success(), "{found}");
        assert!(!found.stderr.contains(name), "{found}");
    }
}

/// No setting of the agent's unit gives it a mount namespace: its pins would die with it.
/// (systemd src/core/execute.c, `exec_needs_mount_namespace`; systemd.exec(5) names them.)
fn no_mount_namespace() {
    let settings = sandbox::service_settings(&unit("skybridge.service")).unwrap();
    let forbidden = [
        "BindPaths",
        "BindReadOnlyPaths",
        "CacheDirectory",
        "ConfigurationDirectory",
        "DynamicUser",
        "ExecPaths",
        "ExtensionDirectories",
        "ExtensionImages",
        "InaccessiblePaths",
        "IPCNamespacePath",
        "LoadCredential",
        "LogNamespace",
        "LogsDirectory",
        "MountAPIVFS",
        "MountFlags",
        "MountImages",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateTmp",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "RuntimeDirectory",
        "StateDirectory",
        "TemporaryFileSystem",
    ];
    for name in forbidden {
        assert!(!settings.contains_key(name), "{name} in the agent's unit");
    }
    // That the rest of it leaves the pins alone is shown by recovery::kill_of_an_agent_under_the_unit.
    assert!(settings.len() > 15, "{settings:?}");
}

// ===== the control socket =====

/// Members of the socket's group use the agent, others are told why they cannot.
fn the_socket_has_a_group() {
    const GROUP: &str = "64738";
    let lab = Lab::with_hosts(1).build();
    // Others must be able to come to the socket, and to the program.
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = lab.directory().join("skybridge");
    fs::copy(binary(), &program).unwrap();
    let spec = lab.spec(1, Store::Embedded, Family::V4).args(&["--socket-group", GROUP]);
    let agent = lab.start_agent(1, spec.unit(unit("skybridge.service")));
    for path in [lab.directory(), agent.directory(), &program] {
        open(path);
    }
    let found = fs::symlink_metadata(agent.socket()).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&found).to_string(), GROUP);
    let state = fs::metadata(agent.state_dir()).unwrap().permissions().mode();
    assert_eq!(state & 0o777, 0o700, "the state directory is its owner's alone");
    let ask = |groups: &[&str]| {
        let mut command = agent.netns().command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534"]).args(groups);
        command.arg(&program).args(["status", "--socket"]).arg(agent.socket());
        run(command)
    };
    let member = ask(&["--groups", GROUP]).expect_success();
    assert!(member.stdout.contains(agent.name()), "{member}");
    let stranger = ask(&["--clear-groups"]);
    assert_eq!(stranger.code(), 1, "{stranger}");
    let socket = agent.socket().display().to_string();
    for word in ["no permission", &socket, GROUP, "try:", "root"] {
        assert!(stranger.stderr.contains(word), "no {word:?} in {stranger}");
    }
    // What is not there to be asked for is not taken for a lack of permission.
    assert!(!stranger.stderr.contains("is the agent running"), "{stranger}");
}

// ===== secrets =====

const PASSWORD: &str = "correct-horse-battery-5e0053";

/// Passwords, tokens and keys are in no log at any level, no listing, no error, and not among the
/// arguments of any process.
fn secrets_are_not_told() {
    let lab = Lab::with_hosts(2).build();
    let address = std::net::SocketAddr::new(lab.host(1).address(Family::V4), 2379);
    let noisy = "debug,hyper=trace,tonic=trace,h2=trace,rustls=trace,membership=trace";
    let args = ["--log-level", noisy];
    let spec = AgentSpec::new(lab.host(1).address(Family::V4)).embedded_store(address).secure();
    let first = lab.start_agent(1, spec.args(&args));
    let token = first.cli(&["store", "token"]).stdout.trim().to_owned();
    assert!(token.len() > 40, "{token}");

    // The token comes by standard input, where `ps` does not show it.
    let second = lab.agent(2, AgentSpec::new(lab.host(2).address(Family::V4)).secure().args(&args));
    let mut join = lab.host(2).netns().command("sh");
    let script = "printf '%s\\n' \"$TOKEN\" | \"$0\" join - --name h2 --state-dir \"$1\"";
    join.args(["-c", script]).arg(binary()).arg(second.state_dir()).env("TOKEN", &token);
    let joined = run(join).expect_success();
    second.start();

    // A password that the store does not take.
    let file = lab.directory().join("password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let file = file.display().to_string();
    let ca = second.state_dir().join("pki/ca.pem").display().to_string();
    let refused = lab.agent_as(
        "h3",
        "third",
        2,
        AgentSpec::new(lab.host(2).address(Family::V4))
            .secure()
            .store_url("https://192.0.2.1:2379")
            .args(&[
                "--tls-ca",
                &ca,
                "--store-user",
                "h2",
                "--store-password-file",
                &file,
                "--udp-port",
                "4790",
            ])
            .args(&args),
    );
    for text in ["store", "watch", "lease", "session"] {
        for agent in [&first, &second, &refused] {
            agent.allow_log(text);
        }
    }
    let mut check = refused.command();
    check.arg("--check");
    let check = run(check).expect_success();
    refused.start_without_waiting();
    wait_until("it has asked the store", Duration::from_secs(20), || {
        (refused.log().len() > 500 && refused.socket().exists()).then_some(())
    });
    let wrong = run(lab.host(2).netns().command(binary()).tap(&["join", &format!("{token}x")]));
    assert!(!wrong.status.success(), "{wrong}");

    let mut told = vec![
        ("join", format!("{joined}")),
        ("check", format!("{check}")),
        ("a wrong token", wrong.stderr),
    ];
    for agent in [&first, &second] {
        for listing in ["status", "hosts", "stats", "drops"] {
            told.push(("listing", agent.cli(&[listing, "--json"]).stdout));
        }
        told.push(("log", agent.log()));
    }
    told.push(("status", format!("{}", refused.try_cli(&["status", "--json"]))));
    told.push(("store status", format!("{}", refused.try_cli(&["store", "status"]))));
    told.push(("log", refused.log()));
    for agent in [&first, &second, &refused] {
        let arguments = fs::read(format!("/proc/{}/cmdline", agent.pid())).unwrap_or_default();
        told.push(("arguments", String::from_utf8_lossy(&arguments).into_owned()));
    }
    let mut secrets = vec![("password", PASSWORD.to_owned())];
    // The last part of a token is its secret; the rest says where the store is.
    secrets.push(("token", token[token.len() - 24..].to_owned()));
    for path in ["pki/authority.pem", "pki/root.pem", "pki/host.pem", "pki/store.pem"] {
        for agent in [&first, &second] {
            let text = fs::read_to_string(agent.state_dir().join(path)).unwrap_or_default();
            let key = text.split("PRIVATE KEY-----").nth(1).unwrap_or_default();
            if let Some(line) = key.lines().find(|line| line.len() > 30) {
                secrets.push(("key", line.to_owned()));
            }
        }
    }
    assert!(secrets.len() >= 5, "{}", secrets.len());
    for (what, secret) in &secrets {
        for (place, text) in &told {
            assert!(!text.contains(secret.as_str()), "the {what} is told in {place}:\n{text}");
        }
    }
    let logged: usize = told.iter().filter(|(place, _)| *place == "log").map(|it| it.1.len()).sum();
    assert!(logged > 10_000, "only {logged} bytes of log: was it noisy?");
    refused.kill9();
}

/// Arguments in the middle of an expression.
trait WithArgs {
    fn tap(self, args: &[&str]) -> Self;
}

impl WithArgs for Command {
    fn tap(mut self, args: &[&str]) -> Self {
        self.args(args);
        self
    }
}

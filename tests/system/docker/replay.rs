//! What real Docker daemons asked of a driver, played against ours.
//!
//! `tests/fixtures/docker` has the commands and requests of each host in order, with the answers of
//! the driver that was there. Ours gives other pool ids and other addresses where one rests; they
//! are put into the later requests as Docker would.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Map, Value, json};
use testkit::{Agent, Family, Lab, Store, wait_until};

use super::ALLOWED;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/docker");

/// Sends one request as Docker does, and gives status and body.
#[track_caller]
pub(crate) fn send(socket: &Path, head: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("the plugin's socket takes connections");
    // One that is too long is answered before its end is read.
    let _: std::io::Result<()> = write!(
        stream,
        "{head} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.unwrap_or_else(|| panic!("{answer}")), body.unwrap_or_default())
}

/// Asks for a method and gives its answer.
#[track_caller]
pub(crate) fn ask(socket: &Path, method: &str, request: &Value) -> Value {
    let body = if request.is_null() { String::new() } else { request.to_string() };
    let (status, body) = send(socket, &format!("POST /{method}"), &body);
    assert_eq!(status, 200, "{method}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|err| panic!("{method}: {err} in {body}"))
}

/// An agent that serves Docker, with its socket.
pub(crate) fn agent(lab: &Lab, host: usize, scope: &str) -> (Agent, std::path::PathBuf) {
    let socket = lab.directory().join(format!("docker{host}.sock"));
    let path = socket.display().to_string();
    let spec = lab.spec(host, Store::Embedded, Family::V4);
    let spec = spec.args(&["--docker", "--docker-scope", scope, "--docker-socket", &path]);
    (lab.start_agent(host, spec), socket)
}

/// The requests of a host between two commands.
type Part = Vec<(String, Value, Value)>;

/// The requests of each host, cut at the commands, which both hosts have.
fn parts(text: &str) -> [Vec<Part>; 2] {
    let mut hosts = [vec![Part::new()], vec![Part::new()]];
    let mut at = 0;
    let commands = text.lines().filter(|line| line.contains("\"command\"")).count();
    let mut seen = 0;
    let two = text.contains("\"on\":\"host2\"");
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of the fixture is JSON");
        match line["on"].as_str() {
            None => {
                seen += 1;
                // The commands come once per host.
                if two && seen == commands / 2 + 1 {
                    at = 1;
                }
                hosts[at].push(Part::new());
            }
            Some(on) => {
                at = usize::from(on == "host2");
                let method = line["method"].as_str().unwrap_or_default().to_owned();
                let last = hosts[at].last_mut().expect("there is a first part");
                last.push((method, line["request"].clone(), line["response"].clone()));
            }
        }
    }
    hosts
}

/// Puts what we answered in the place of what was answered then.
fn translated(value: &Value, ours: &BTreeMap<String, String>) -> Value {
    match value {
        Value::String(text) => json!(ours.get(text).unwrap_or(text)),
        Value::Array(items) => items.iter().map(|item| translated(item, ours)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, item)| (name.clone(), translated(item, ours)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

pub(crate) fn replay(name: &str) {
    let text = std::fs::read_to_string(format!("{FIXTURES}/{name}.jsonl")).unwrap();
    let scope = if matches!(name, "kv" | "swarm") { "global" } else { "local" };
    let lab = Lab::with_hosts(2).build();
    let agents = [1, 2].map(|host| agent(&lab, host, scope));
    let links = || agents.each_ref().map(|(agent, _)| agent.netns().ip("-br link"));
    let before = links();
    let hosts = parts(&text);
    let mut ours = BTreeMap::new();
    let mut options = Value::Null;
    let mut played = 0;
    for index in 0..hosts.iter().map(Vec::len).max().unwrap_or(0) {
        for (host, (_, socket)) in hosts.iter().zip(&agents) {
            for (method, request, recorded) in host.get(index).into_iter().flatten() {
                let mut request = translated(request, &ours);
                if method == "NetworkDriver.CreateNetwork" && !options.is_null() {
                    request["Options"]["com.docker.network.generic"] = options.clone();
                }
                let answer = ask(socket, method, &request);
                check(method, &request, &answer, scope);
                note(&mut ours, method, recorded, &answer);
                if method == "NetworkDriver.AllocateNetwork" {
                    options = answer["Options"].clone();
                }
                played += 1;
            }
        }
    }
    assert!(played > 12, "{played} requests of {name}");
    for (agent, _) in &agents {
        for listing in ["endpoints", "network"] {
            let words: &[&str] = if listing == "network" { &["network", "ls"] } else { &[listing] };
            // The one that was not asked hears of it from the store.
            wait_until(&format!("no {listing} left at {}", agent.name()), ALLOWED, || {
                (agent.json(words) == json!([])).then_some(())
            });
        }
        let notes = std::fs::read_dir(agent.state_dir().join("attachments")).unwrap().count();
        assert_eq!(notes, 0, "notes of {}", agent.name());
    }
    assert_eq!(links(), before);
}

/// Remembers what stands for what from now on.
fn note(ours: &mut BTreeMap<String, String>, method: &str, recorded: &Value, answer: &Value) {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    match method {
        "IpamDriver.RequestPool" => {
            ours.insert(text(recorded, "PoolID"), text(answer, "PoolID"));
        }
        "IpamDriver.RequestAddress" => {
            let (then, now) = (text(recorded, "Address"), text(answer, "Address"));
            let bare = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
            ours.insert(bare(&then), bare(&now));
            ours.insert(then, now);
        }
        "NetworkDriver.GetCapabilities" | "IpamDriver.GetDefaultAddressSpaces" => {
            for field in ["LocalDefaultAddressSpace", "GlobalDefaultAddressSpace"] {
                if !text(recorded, field).is_empty() {
                    ours.insert(text(recorded, field), text(answer, field));
                }
            }
        }
        _ => {}
    }
}

/// What Docker insists on.
fn check(method: &str, request: &Value, answer: &Value, scope: &str) {
    let whole = format!("{method} {request} -> {answer}");
    assert!(answer.get("Err").is_none() && answer.get("Error").is_none(), "{whole}");
    match method {
        "Plugin.Activate" => {
            assert_eq!(answer["Implements"], json!(["NetworkDriver", "IpamDriver"]), "{whole}");
        }
        "NetworkDriver.GetCapabilities" => assert_eq!(answer["Scope"], scope, "{whole}"),
        "NetworkDriver.CreateEndpoint" => {
            // What is there already must not be given again.
            let filled = answer["Interface"].as_object().expect(&whole);
            for (field, value) in filled {
                assert!(request["Interface"][field] == "" && value != "", "{whole}");
            }
            assert!(filled.contains_key("MacAddress") || request["Interface"]["MacAddress"] != "");
        }
        "NetworkDriver.Join" => {
            assert_eq!(answer["InterfaceName"]["DstPrefix"], "eth", "{whole}");
            assert!(answer["InterfaceName"]["SrcName"].as_str().is_some_and(|n| n.len() < 16));
        }
        "NetworkDriver.AllocateNetwork" => {
            let options = answer["Options"].as_object().expect(&whole);
            assert_eq!(options["vni"], "77", "{whole}");
            assert!(options.values().all(Value::is_string), "{whole}");
        }
        "IpamDriver.RequestPool" => assert_eq!(answer["Pool"], request["Pool"], "{whole}"),
        "IpamDriver.RequestAddress" => {
            let wanted = request["Address"].as_str().unwrap_or_default();
            let given = answer["Address"].as_str().unwrap_or_default();
            assert!(given.starts_with(wanted) && given.ends_with("/24"), "{whole}");
        }
        _ => {}
    }
}

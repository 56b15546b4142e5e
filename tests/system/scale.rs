//! Ten thousand endpoints: how long until the tables hold them, and how fast they follow then.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{Agent, Cap, Family, Lab, Store, Suite, traffic, wait_until};

use crate::support::{DUAL, NETWORK, measured};

const CAPS: &[Cap] =
    &[Cap::Root, Cap::Links, Cap::Tun, Cap::Ethtool, Cap::Nft, Cap::Etcd, Cap::Etcdctl];
const ENDPOINTS: usize = 10_000;
/// Records of one transaction; etcd takes 128.
const PIECE: usize = 100;
/// Changes one by one, with all of those in place.
const SINGLE: usize = 50;
/// Ten times what is promised of a store that comes back.
const LISTED_WITHIN: Duration = Duration::from_secs(20);
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);

pub(crate) fn register(suite: &mut Suite) {
    for (name, store) in [("embedded", Store::Embedded), ("etcd", Store::Etcd)] {
        let name = format!("scale::ten_thousand_endpoints_{name}");
        suite.timed(name, CAPS, move || ten_thousand_endpoints(store));
    }
}

/// `etcdctl` against either store.
struct Ctl<'a> {
    lab: &'a Lab,
    endpoint: String,
}

impl Ctl<'_> {
    fn run(&self, script: &str) -> String {
        let mut command = self.lab.switch().command("sh");
        command.args(["-c", script]).env("ETCDCTL_API", "3");
        command.env("ETCDCTL_ENDPOINTS", &self.endpoint);
        testkit::run(command).expect_success().stdout
    }

    /// The value of the first key that begins so.
    fn first(&self, prefix: &str) -> Value {
        let script = format!("etcdctl get --prefix --limit=1 --print-value-only {prefix}");
        serde_json::from_str(&self.run(&script)).unwrap()
    }

    fn put_all(&self, records: &[(String, Value)]) {
        let mut input = "\n".to_owned();
        for (key, value) in records {
            writeln!(input, "put {key} {:?}", value.to_string()).unwrap();
        }
        input.push_str("\n\n");
        let file = self.lab.directory().join("txn");
        fs::write(&file, input).unwrap();
        let answer = self.run(&format!("etcdctl txn < {}", file.display()));
        assert!(answer.starts_with("SUCCESS"), "{answer}");
    }
}

fn endpoints(agent: &Agent) -> usize {
    agent.json(&["fdb"]).as_array().unwrap().len()
}

fn convergence(agent: &Agent) -> Value {
    agent.json(&["status"])["convergence"].clone()
}

fn ms(micros: &Value) -> String {
    format!("{:.2} ms", micros.as_f64().unwrap() / 1e3)
}

fn ten_thousand_endpoints(store: Store) {
    let word = format!("{store:?}").to_lowercase();
    let lab = Lab::with_hosts(2).build();
    let agents = lab.start_agents(&[1, 2], store, Family::V4);
    // A store that others keep busy may take its time over 10 000 records.
    agents.iter().for_each(|agent| agent.allow_log("the watch of the store is interrupted"));
    agents[0].create_network(NETWORK, DUAL);
    let a = agents[0].container(&lab, NETWORK, "c1", &[]);
    let b = agents[1].container(&lab, NETWORK, "c2", &[]);
    let endpoint = match store {
        Store::Embedded => "192.0.2.1:2379".to_owned(),
        Store::Etcd => lab.etcd().address(Family::V4).to_string(),
    };
    let ctl = Ctl { lab: &lab, endpoint };
    let root = "/skybridge/v1";

    // A third host that is known and has them all.
    let mut host = ctl.first(&format!("{root}/known/h2"));
    host["name"] = json!("h3");
    host["id"] = json!("00000000000000h3");
    host["vteps"][0]["advertise"] = json!("192.0.2.99");
    let template = ctl.first(&format!("{root}/endpoints/"));
    let network = template["network"].as_str().unwrap().to_owned();
    let record = |number: usize| {
        let mut record = template.clone();
        let id = format!("{number:016x}");
        let (high, low) = (number >> 8, number & 0xff);
        record["id"] = json!(id);
        record["host"] = json!("h3");
        record["mac"] = json!(format!("00:00:5e:01:{high:02x}:{low:02x}"));
        record["ips"] = json!([format!("2001:db8:1::1:{number:x}")]);
        (format!("{root}/endpoints/{network}/{id}"), record)
    };
    ctl.put_all(&[(format!("{root}/known/h3"), host.clone()), (format!("{root}/hosts/h3"), host)]);
    let records: Vec<_> = (1..=ENDPOINTS).map(record).collect();
    let began = Instant::now();
    for piece in records.chunks(PIECE) {
        ctl.put_all(piece);
    }
    measured(&format!("{word}: 10000 endpoints written"), format!("{:?}", began.elapsed()));
    for agent in &agents {
        let (_, took) = wait_until("all are in the tables", LISTED_WITHIN, || {
            (endpoints(agent) > ENDPOINTS).then_some(())
        });
        let lag = convergence(agent)["changes"].clone();
        measured(
            &format!("{word}: {} in all tables after the last write", agent.name()),
            format!(
                "{took:?}; pieces of {PIECE}: {} (99 % in {})",
                ms(&lag["p50_us"]),
                ms(&lag["p99_us"])
            ),
        );
    }

    // From nothing: the second host has lost what it knew.
    let began = Instant::now();
    agents[1].stop();
    measured(&format!("{word}: a stop with 10000 endpoints"), format!("{:?}", began.elapsed()));
    fs::remove_file(agents[1].state_dir().join("tables.json")).unwrap();
    agents[1].start();
    wait_until("the listing is in the tables", LISTED_WITHIN, || {
        (endpoints(&agents[1]) > ENDPOINTS).then_some(())
    });
    let listing = convergence(&agents[1])["listing"].clone();
    assert!(listing["endpoints"].as_u64().unwrap() as usize > ENDPOINTS, "{listing}");
    let took = Duration::from_micros(listing["took_us"].as_u64().unwrap());
    assert!(took < LISTED_WITHIN, "{listing}");
    measured(&format!("{word}: listing of 10000 to its generation"), format!("{took:?}"));

    // One by one, with all of them in place. Only these have come since the start.
    let before = convergence(&agents[1])["changes"]["count"].as_u64().unwrap();
    for number in 1..=SINGLE {
        ctl.put_all(&[record(ENDPOINTS + number)]);
    }
    let (changes, _) = wait_until("each is in the tables", LISTED_WITHIN, || {
        let changes = convergence(&agents[1])["changes"].clone();
        (endpoints(&agents[1]) > ENDPOINTS + SINGLE).then_some(changes)
    });
    assert!(changes["count"].as_u64().unwrap() > before, "{changes}");
    let (half, most) = (ms(&changes["p50_us"]), ms(&changes["p99_us"]));
    assert!(Duration::from_micros(changes["p99_us"].as_u64().unwrap()) < FOLLOWED_WITHIN);
    measured(&format!("{word}: a change to its generation"), format!("{half} (99 % in {most})"));
    let own = agents[1].container(&lab, NETWORK, "c3", &[]);
    let wrote = convergence(&agents[1])["own"].clone();
    assert_eq!(wrote["count"], 1, "{wrote}");
    assert!(Duration::from_micros(wrote["max_us"].as_u64().unwrap()) < FOLLOWED_WITHIN);
    measured(&format!("{word}: an own write to its generation"), ms(&wrote["max_us"]));
    traffic::ping(a.netns(), b.address(Family::V4), 56);
    traffic::ping(a.netns(), own.address(Family::V4), 56);
}

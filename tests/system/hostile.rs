//! Whatever the wire and the containers can throw at an agent: it goes on, its memory stays bounded,
//! every drop has a name, and good traffic passes where the attack leaves the machine room.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::traffic;
use testkit::{
    Agent, Attack, Container, Dice, Family, Lab, Pace, Store, Suite, udp_frame, wait_until,
};

use crate::support::{AGENTS, DUAL, NETWORK, VNI, containers, measured};

mod packets;

/// How long the wire is flooded at full speed.
const FLOOD: Duration = Duration::from_secs(30);
/// Good traffic's datagrams per second and seconds beside an attack that leaves room.
const GOOD: (u64, u64) = (2000, 8);
/// Datagrams per second of an attack that leaves room.
const BESIDE: u64 = 10_000;
/// Resident memory that an attack may cost, in KiB.
const MEMORY_KIB: u64 = 64 << 10;

pub(crate) fn register(suite: &mut Suite) {
    suite.timed("hostile::wire_at_full_speed", AGENTS, wire_at_full_speed);
    suite.timed("hostile::wire_beside_good_traffic", AGENTS, wire_beside_good_traffic);
    suite.timed(
        "hostile::every_datagram_is_accounted_for",
        AGENTS,
        every_datagram_is_accounted_for,
    );
    suite.timed("hostile::containers", AGENTS, storms_from_containers);
    for mode in ["ipip", "ipudp"] {
        suite.timed(format!("hostile::wire_at_full_speed_{mode}"), AGENTS, move || {
            packets::wire_at_full_speed(mode);
        });
        suite.timed(format!("hostile::every_packet_is_accounted_for_{mode}"), AGENTS, move || {
            packets::every_packet_is_accounted_for(mode);
        });
    }
}

/// Agents on hosts 1 and 2 with a container each; host 3 is a stranger.
struct Scene {
    // Dropped in this order: containers first, the lab last.
    ends: Vec<Container>,
    agents: Vec<Agent>,
    lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::with_hosts(3).build();
        let agents = lab.start_agents(&[1, 2], Store::Embedded, Family::V4);
        agents[0].create_network(NETWORK, DUAL);
        let ends = containers(&lab, &agents);
        let scene = Self { ends, agents, lab };
        scene.ping();
        scene
    }

    fn ping(&self) {
        for (from, to) in [(0, 1), (1, 0)] {
            for family in [Family::V4, Family::V6] {
                traffic::ping(self.ends[from].netns(), self.ends[to].address(family), 56);
            }
        }
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.agents[0].vtep(), 4789)
    }

    /// Malice from a host's VTEP address to the first agent.
    fn attack(&self, host: usize, pace: Pace, seed: u64) -> Attack {
        let forger = Forger::new(self, seed);
        let from = self.lab.host(host).address(Family::V4);
        Attack::datagrams(self.lab.host(host).netns(), (from, self.target()), pace, None, {
            let mut forger = forger;
            move |buffer| forger.datagram(buffer)
        })
    }

    /// As [`Self::attack`], in trains of datagrams of one length, of which one or more are bad.
    fn trains(&self, host: usize, pace: Pace, seed: u64) -> Attack {
        self.trains_of((host, self.target()), pace, seed, Forger::good, Forger::datagram)
    }

    /// Trains to any port, of what `good` and `any` make.
    fn trains_of(
        &self,
        (host, to): (usize, SocketAddr),
        pace: Pace,
        seed: u64,
        good: fn(&mut Forger, &mut Vec<u8>),
        any: fn(&mut Forger, &mut Vec<u8>),
    ) -> Attack {
        const SIZE: u16 = 300;
        let mut forger = Forger::new(self, seed);
        let host = self.lab.host(host);
        let ends = (host.address(Family::V4), to);
        Attack::datagrams(host.netns(), ends, pace, Some(SIZE), move |train| {
            let bad = forger.dice.below(20);
            for index in 0..20 {
                let mut datagram = Vec::new();
                let chosen = index == bad || forger.dice.below(8) == 0;
                (if chosen { any } else { good })(&mut forger, &mut datagram);
                datagram.resize(usize::from(SIZE), 0);
                train.extend(datagram);
            }
        })
    }
}

/// Makes VXLAN that is random, mutated, or wrong on purpose.
struct Forger {
    dice: Dice,
    good: Vec<u8>,
    addresses: [Ipv4Addr; 2],
    macs: [[u8; 6]; 2],
    vtep: Ipv4Addr,
}

impl Forger {
    fn new(scene: &Scene, seed: u64) -> Self {
        let v4 = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => unreachable!("asked for IPv4"),
        };
        let addresses = [0, 1].map(|index: usize| v4(scene.ends[index].address(Family::V4)));
        let macs = [scene.ends[0].mac(), scene.ends[1].mac()];
        let good = udp_frame((macs[0], macs[1]), (addresses[1], addresses[0]), (9, 9), &[0; 200]);
        Self { dice: Dice::new(seed), good, addresses, macs, vtep: v4(scene.agents[0].vtep()) }
    }

    fn header(&mut self, out: &mut Vec<u8>) {
        let [_, high, middle, low] = VNI.to_be_bytes();
        out.extend([8, 0, 0, 0, high, middle, low, 0]);
    }

    fn good(&mut self, out: &mut Vec<u8>) {
        self.header(out);
        out.extend_from_slice(&self.good);
    }

    fn ethernet(&mut self, out: &mut Vec<u8>, kind: u16) {
        out.extend(self.macs[0]);
        out.extend(self.macs[1]);
        out.extend(kind.to_be_bytes());
    }

    fn noise(&mut self, out: &mut Vec<u8>, most: usize) {
        let from = out.len();
        out.resize(from + self.dice.below(most), 0);
        let dice = &mut self.dice;
        dice.fill(&mut out[from..]);
    }

    /// Other bytes in one to four places.
    fn mutate(&mut self, out: &mut [u8]) {
        for _ in 0..=self.dice.below(4) {
            let at = self.dice.below(out.len());
            out[at] = self.dice.byte();
        }
    }

    fn datagram(&mut self, out: &mut Vec<u8>) {
        match self.dice.below(14) {
            0 => self.noise(out, 1400),
            1 => {
                self.header(out);
                self.noise(out, 1400);
            }
            2..=4 => {
                self.good(out);
                self.mutate(out);
            }
            5 => {
                self.good(out);
                let cut = self.dice.below(out.len());
                out.truncate(cut);
            }
            6 => self.nested(out),
            7 => self.ipv4(out),
            8 => self.ipv6(out),
            9 => self.neighbors(out),
            10 => self.tags(out),
            11 => self.sources(out),
            12 => {
                // Another VNI, or other flags.
                self.good(out);
                let at = self.dice.of(&[0, 4, 5, 6]);
                out[at] ^= 1 << self.dice.below(8);
            }
            _ => self.good(out),
        }
    }

    /// VXLAN in VXLAN for the same VTEP: a loop, if it were taken.
    fn nested(&mut self, out: &mut Vec<u8>) {
        let mut inner = Vec::new();
        self.good(&mut inner);
        for _ in 0..=self.dice.below(3) {
            let (to, from) = ((self.macs[0], self.macs[1]), (self.addresses[1], self.vtep));
            let frame = udp_frame(to, from, (4789, 4789), &inner);
            inner.clear();
            self.header(&mut inner);
            inner.extend(frame);
        }
        out.extend(inner);
    }

    /// Header lengths, total lengths, fragments and options that lie.
    fn ipv4(&mut self, out: &mut Vec<u8>) {
        self.header(out);
        self.ethernet(out, 0x0800);
        self.ipv4_packet(out);
    }

    fn ipv4_packet(&mut self, out: &mut Vec<u8>) {
        let length = self.dice.of(&[0_u16, 19, 20, 28, 65_535, 228]);
        out.extend([0x40 | self.dice.below(16) as u8, 0]);
        out.extend(length.to_be_bytes());
        out.extend([0, 1, self.dice.of(&[0, 0x20, 0x40, 0x80, 0x3f]), self.dice.byte()]);
        out.extend([self.dice.byte(), self.dice.of(&[1, 4, 6, 17, 47, 132]), 0, 0]);
        out.extend(self.addresses[1].octets());
        out.extend(self.addresses[0].octets());
        self.noise(out, 400);
    }

    /// Extension headers that lie, jumbograms, fragments.
    fn ipv6(&mut self, out: &mut Vec<u8>) {
        self.header(out);
        self.ethernet(out, 0x86dd);
        self.ipv6_packet(out);
    }

    fn ipv6_packet(&mut self, out: &mut Vec<u8>) {
        out.extend([0x60, 0, 0, 0]);
        out.extend(self.dice.of(&[0_u16, 8, 40, 1400, 65_535]).to_be_bytes());
        out.extend([self.dice.of(&[0, 6, 17, 43, 44, 50, 51, 58, 60, 135]), 64]);
        self.noise(out, 33);
        for _ in 0..self.dice.below(12) {
            let next = self.dice.of(&[0, 43, 44, 60, 17, 58]);
            // RFC 2675: the jumbo payload option.
            out.extend([next, self.dice.of(&[0, 1, 255]), 0xc2, 4, 0xff, 0xff, 0xff, 0xff]);
        }
        self.noise(out, 200);
    }

    /// ARP and neighbor discovery about everybody.
    fn neighbors(&mut self, out: &mut Vec<u8>) {
        self.header(out);
        if self.dice.below(2) == 0 {
            out.extend([0xff; 6]);
            out.extend(self.macs[1]);
            out.extend([8, 6, 0, 1, 8, 0, 6, 4, 0]);
            out.push(1 + self.dice.below(4) as u8);
            out.extend(self.dice.of(&self.macs.clone()));
            out.extend([198, 51, 100, self.dice.byte()]);
            out.extend([0; 6]);
            out.extend([198, 51, 100, self.dice.byte()]);
        } else {
            out.extend([0x33, 0x33, 0xff, self.dice.byte(), self.dice.byte(), self.dice.byte()]);
            out.extend(self.macs[1]);
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
            self.noise(out, 33);
            out.extend([self.dice.of(&[133, 134, 135, 136, 137]), 0]);
            self.noise(out, 60);
        }
    }

    /// Tags upon tags.
    fn tags(&mut self, out: &mut Vec<u8>) {
        self.header(out);
        out.extend(self.macs[0]);
        out.extend(self.macs[1]);
        for _ in 0..=self.dice.below(300) {
            out.extend(self.dice.of(&[[0x81, 0, 0, 1], [0x88, 0xa8, 0, 1]]));
        }
        let at = self.dice.below(out.len());
        out.extend([8, 0]);
        if self.dice.below(3) == 0 {
            out.truncate(at);
        }
    }

    /// Source MACs of this host, of nobody, of groups; sources that others own.
    fn sources(&mut self, out: &mut Vec<u8>) {
        self.good(out);
        let mac = match self.dice.below(4) {
            0 => self.macs[0],
            1 => [0; 6],
            2 => [1, 0, 0x5e, 0, 0x53, 1],
            _ => {
                let mut mac = [0; 6];
                self.dice.fill(&mut mac);
                mac[0] = 2;
                mac
            }
        };
        out[14..20].copy_from_slice(&mac);
        if self.dice.below(2) == 0 {
            out[8 + 26..8 + 30].copy_from_slice(&self.addresses[0].octets());
        }
    }
}

/// What an agent's process holds.
#[derive(Debug)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: u64,
}

impl Held {
    fn of(agent: &Agent) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
        Self { resident_kib: field("VmRSS:"), descriptors, threads: field("Threads:") }
    }

    #[track_caller]
    fn still_holds(&self, agent: &Agent, what: &str) {
        let now = Self::of(agent);
        measured(
            what,
            format_args!(
                "memory {} to {} KiB, {} descriptors, {} threads",
                self.resident_kib, now.resident_kib, now.descriptors, now.threads
            ),
        );
        assert!(now.resident_kib < self.resident_kib + MEMORY_KIB, "{self:?}, now {now:?}");
        // A connection of the command line may be open still.
        assert!(now.descriptors <= self.descriptors + 4, "{self:?}, now {now:?}");
        // Threads of the control plane come and go with its work.
        assert!(now.threads <= self.threads + 8, "{self:?}, now {now:?}");
    }
}

/// The agent runs, answers, and has dropped under names that it can explain.
#[track_caller]
fn goes_on(scene: &Scene) {
    for agent in &scene.agents {
        assert!(agent.running(), "{} has ended: {}", agent.name(), agent.log());
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    }
    // What lies in its sockets leaves no room for anything else until it is dealt with.
    let mut last = None;
    wait_until("what the attack has left is dealt with", Duration::from_secs(20), || {
        let now = accounts(&scene.agents[0]);
        (last.replace(now) == Some(now)).then_some(())
    });
    scene.ping();
    let listed = scene.agents[0].json(&["drops"]);
    for row in listed.as_array().unwrap() {
        assert!(!row["hint"].as_str().unwrap().is_empty(), "{row}");
    }
}

/// Random, mutated and structured datagrams from a VTEP and from a stranger, as fast as they can, for
/// half a minute.
fn wire_at_full_speed() {
    let scene = Scene::new();
    let held = Held::of(&scene.agents[0]);
    let free = Pace::default();
    let attacks = [scene.attack(2, free, 1), scene.trains(2, free, 2), scene.attack(3, free, 3)];
    flood(&scene, attacks, FLOOD);
    goes_on(&scene);
    held.still_holds(&scene.agents[0], "the wire at full speed");
}

/// Lets attacks go on for a time. The control plane answers all the while.
#[track_caller]
fn flood(scene: &Scene, attacks: [Attack; 3], time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let asked = Instant::now();
        let _ = scene.agents[0].json(&["status"]);
        assert!(asked.elapsed() < Duration::from_secs(5), "status took {:?}", asked.elapsed());
        std::thread::sleep(Duration::from_millis(500));
    }
    let sent: u64 = attacks.map(Attack::stop).iter().sum();
    measured("the wire at full speed", format_args!("{sent} sends in {time:?}"));
    assert!(sent > time.as_secs() * 3000, "the machine made only {sent}");
}

/// An attack that leaves the machine room leaves good traffic its rate.
fn wire_beside_good_traffic() {
    let scene = Scene::new();
    let [to, from] = &scene.ends[..] else { unreachable!("two containers") };
    let (rate, seconds) = GOOD;
    let port = traffic::next_port();
    let address = SocketAddr::new(to.address(Family::V4), port).to_string();
    let logs = scene.lab.logs();
    let receiver = traffic::start(to.netns(), &logs, "good-in", &["udp-receive", &address]);
    let pace = Pace { rate: BESIDE / 2, count: 0 };
    let attacks = [scene.attack(2, pace, 4), scene.attack(3, pace, 5)];
    let (rate, count) = (rate.to_string(), (rate * seconds).to_string());
    let args = ["udp-send", &address, "--count", &count, "--size", "1000", "--rate", &rate];
    let _ = traffic::finish(from.netns(), &args).expect_success();
    let sent: u64 = attacks.map(Attack::stop).iter().sum();
    let report = receiver.finish(Duration::from_secs(60)).json();
    let (all, lost) = (report["received"].as_u64().unwrap(), report["lost"].as_u64().unwrap());
    measured(
        "beside an attack",
        format_args!("{lost} of {} good datagrams lost, {sent} bad ones", all + lost),
    );
    assert!(lost * 10 <= all + lost, "{report}");
    assert_eq!(report["corrupt"], 0, "{report}");
    goes_on(&scene);
}

fn counter(stats: &Value, name: &str) -> u64 {
    let all = stats["counters"].as_array().unwrap();
    let found = all.iter().find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {stats}"))["value"].as_u64().unwrap()
}

/// All datagrams that arrived: accepted frames and inbound drops are as many.
fn accounts(agent: &Agent) -> (u64, u64, u64) {
    let stats = agent.json(&["stats"]);
    let networks = stats["networks"].as_array().unwrap();
    let accepted = networks.iter().map(|item| counter(item, "frames_in")).sum();
    let drops = agent.json(&["drops"]);
    let inbound = drops.as_array().unwrap().iter().filter(|row| row["direction"] == "inbound");
    let dropped = inbound.map(|row| row["count"].as_u64().unwrap()).sum();
    (counter(&stats, "datagrams_in"), accepted, dropped)
}

/// Waits until as much as `send` says that it sent, or more, has arrived, and all of that is
/// accepted or dropped under a name.
#[track_caller]
fn all_accounted_for(scene: &Scene, send: impl FnOnce(&Scene) -> u64) {
    let agent = &scene.agents[0];
    let before = accounts(agent);
    let sent = send(scene);
    let mut last = None;
    let deadline = Instant::now() + Duration::from_secs(20);
    let (arrived, accepted, dropped) = loop {
        let (arrived, accepted, dropped) = accounts(agent);
        let now = (arrived - before.0, accepted - before.1, dropped - before.2);
        let still = last.replace(now) == Some(now);
        if still && now.0 >= sent && now.1 + now.2 == now.0 {
            break now;
        }
        assert!(Instant::now() < deadline, "{sent} sent; arrived, accepted, dropped: {now:?}");
    };
    measured(
        "accounts",
        format_args!("{sent} sent, {arrived} arrived, {accepted} accepted, {dropped} dropped"),
    );
}

fn every_datagram_is_accounted_for() {
    const COUNT: u64 = 60_000;
    let scene = Scene::new();
    let pace = Pace { rate: 10_000, count: COUNT };
    all_accounted_for(&scene, |scene| {
        scene.attack(2, pace, 6).finish() + scene.attack(3, pace, 7).finish()
    });
    // A train may pass for one super-frame, by what its first header says, and is one frame then.
    let trains = Pace { rate: 500, count: 1000 };
    all_accounted_for(&scene, |scene| scene.trains(2, trains, 8).finish());
    goes_on(&scene);
}

/// A container forges MACs and addresses and storms with ARP and ND; its neighbor, and the others'
/// tables, do not notice.
fn storms_from_containers() {
    let scene = Scene::new();
    let neighbor = scene.agents[0].container(&scene.lab, NETWORK, "neighbor", &[]);
    let held = Held::of(&scene.agents[0]);
    let known = |agent: &Agent| {
        let all = agent.json(&["fdb"]);
        let macs = all.as_array().unwrap().iter().map(|row| row["mac"].to_string());
        macs.collect::<BTreeSet<_>>()
    };
    wait_until("all three are known", Duration::from_secs(10), || {
        (known(&scene.agents[1]).len() == 3).then_some(())
    });
    let before = known(&scene.agents[1]);
    let attacker = &scene.ends[0];
    let (own, mut forger) = (attacker.mac(), Forger::new(&scene, 9));
    let storm = Attack::frames(attacker.netns(), attacker.ifname(), Pace::default(), move |out| {
        let mut datagram = Vec::new();
        match forger.dice.below(4) {
            0 => forger.neighbors(&mut datagram),
            1 => forger.tags(&mut datagram),
            2 => forger.ipv6(&mut datagram),
            _ => forger.sources(&mut datagram),
        }
        out.extend(datagram.get(8..).unwrap_or_default());
        out.resize(out.len().clamp(60, 1400), 0);
        // Half of it under its own name, half under others'.
        if forger.dice.below(2) == 0 {
            out[6..12].copy_from_slice(&own);
        } else {
            forger.dice.fill(&mut out[6..12]);
            out[6] &= 0xfe;
        }
    });
    let until = Instant::now() + Duration::from_secs(8);
    let (mut rounds, mut lost) = (0, 0);
    while Instant::now() < until {
        rounds += 1;
        let to = scene.ends[1].address(Family::V4);
        lost += u32::from(!traffic::reaches(neighbor.netns(), to));
    }
    let sent = storm.stop();
    measured("a container's storm", format_args!("{sent} frames; {lost} of {rounds} pings lost"));
    assert!(sent > 20_000, "the machine made only {sent}");
    assert_eq!(lost, 0, "its neighbor was cut off");
    goes_on(&scene);
    traffic::ping(neighbor.netns(), scene.ends[1].address(Family::V6), 56);
    held.still_holds(&scene.agents[0], "a container's storm");
    assert_eq!(known(&scene.agents[1]), before);
}

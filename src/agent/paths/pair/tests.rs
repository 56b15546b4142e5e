#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

const PAUSE: Millis = Millis(400);
const LATENCY: u64 = 1;

/// Two hosts and the wires between them, millisecond by millisecond.
struct World {
    now: Millis,
    pairs: [Pair; 2],
    runs: [u64; 2],
    /// By sender and way: whether hellos pass.
    passes: [[bool; Way::COUNT]; 2],
    allowed: [bool; Way::COUNT],
    changes: [Vec<(u64, Change)>; 2],
}

impl World {
    fn new() -> Self {
        Self {
            now: Millis(10_000),
            pairs: [Pair::new(false, Millis(10_000)), Pair::new(false, Millis(10_000))],
            runs: [1, 1],
            passes: [[true; Way::COUNT]; 2],
            allowed: [false, true, true],
            changes: [Vec::new(), Vec::new()],
        }
    }

    fn set(&mut self, way: Way, passes: bool) {
        for sender in &mut self.passes {
            sender[way.index()] = passes;
        }
    }

    fn run(&mut self, ms: u64) {
        let mut flying: Vec<(u64, usize, Hello)> = Vec::new();
        let end = self.now.0 + ms;
        while self.now.0 < end {
            let now = self.now;
            for host in 0..2 {
                // The hosts are not in step.
                if (now.0 + 130 * host as u64).is_multiple_of(PAUSE.0) {
                    for way in Way::ALL {
                        let hello =
                            self.pairs[host].next(way, host as u64, self.runs[host], PAUSE, now);
                        if self.passes[host][way.index()] {
                            flying.push((now.0 + LATENCY, 1 - host, hello));
                        }
                    }
                }
            }
            flying.retain(|(at, to, hello)| {
                let due = *at == now.0;
                if due {
                    self.pairs[*to].hear(hello, now);
                }
                !due
            });
            if now.0.is_multiple_of(100) {
                for host in 0..2 {
                    let allowed = self.allowed;
                    let change = self.pairs[host].choose(|way| allowed[way.index()], PAUSE, now);
                    self.changes[host].extend(change.map(|change| (now.0, change)));
                }
            }
            self.now.0 += 1;
        }
    }

    fn used(&self) -> [Way; 2] {
        [0, 1].map(|host| self.pairs[host].used().0)
    }

    /// How long ago each host changed its way the last time.
    fn took(&mut self, began: Millis) -> u64 {
        let last = |changes: &Vec<(u64, Change)>| changes.last().map_or(0, |(at, _)| at - began.0);
        self.changes.iter().map(last).max().unwrap()
    }
}

#[test]
fn starts_with_the_surest_and_climbs() {
    let mut world = World::new();
    assert_eq!(world.used(), [Way::Udp; 2]);
    world.run(4_000);
    assert_eq!(world.used(), [Way::IpIp; 2]);
    let change = Change { from: Way::Udp, to: Way::IpIp, why: Why::Works };
    assert!(world.changes.iter().all(|changes| changes.len() == 1 && changes[0].1 == change));
    world.allowed[0] = true;
    world.run(200);
    assert_eq!(world.used(), [Way::Direct; 2], "it has worked all the time");
    world.allowed[0] = false;
    world.run(200);
    assert_eq!(world.used(), [Way::IpIp; 2]);
    assert_eq!(world.pairs[0].used().2, Why::Withdrawn(Way::Direct));
}

#[test]
fn a_way_that_fails_is_left_within_three_seconds_and_taken_again() {
    let mut world = World::new();
    world.run(130_000);
    let began = world.now;
    world.set(Way::IpIp, false);
    world.run(3_000);
    assert_eq!(world.used(), [Way::Udp; 2]);
    assert!(world.took(began) <= 2_500, "{}", world.took(began));
    assert_eq!(world.pairs[1].used().2, Why::Failed(Way::IpIp));
    world.run(20_000);
    let began = world.now;
    world.set(Way::IpIp, true);
    world.run(4_000);
    assert_eq!(world.used(), [Way::IpIp; 2]);
    assert!(world.took(began) <= 3_000, "{}", world.took(began));
}

#[test]
fn one_direction_is_none() {
    let mut world = World::new();
    world.run(10_000);
    world.passes[0][Way::IpIp.index()] = false;
    world.run(3_000);
    assert_eq!(world.used(), [Way::Udp; 2]);
    let report = world.pairs[0].report(PAUSE, world.now)[Way::IpIp.index()];
    assert_eq!((report.arrives, report.reaches, report.works_since), (true, false, None));
}

#[test]
fn silence_changes_nothing() {
    let mut world = World::new();
    world.run(10_000);
    Way::ALL.into_iter().for_each(|way| world.set(way, false));
    world.run(60_000);
    assert_eq!(world.used(), [Way::IpIp; 2]);
    // Back by one way only.
    world.set(Way::Udp, true);
    world.run(1_000);
    assert_eq!(world.used(), [Way::Udp; 2]);
}

#[test]
fn lost_hellos_are_borne() {
    let mut world = World::new();
    world.run(10_000);
    for _ in 0..5 {
        world.set(Way::IpIp, false);
        world.run(1_100);
        world.set(Way::IpIp, true);
        world.run(2_000);
    }
    assert_eq!(world.changes.iter().map(Vec::len).max(), Some(1), "{:?}", world.changes);
}

#[test]
fn a_way_that_comes_and_goes_is_followed_less_and_less() {
    let mut world = World::new();
    world.run(10_000);
    for _ in 0..60 {
        world.set(Way::IpIp, false);
        world.run(4_000);
        world.set(Way::IpIp, true);
        world.run(6_000);
    }
    // Ten minutes of it: down and up six times at most, then no more while it lasts.
    let changes = world.changes[0].len();
    assert!(changes <= 9, "{changes}");
    assert_eq!(world.used(), [Way::Udp; 2]);
    // Steady again, it is believed again.
    world.run(70_000);
    assert_eq!(world.used(), [Way::IpIp; 2]);
}

#[test]
fn a_restart_of_the_other_host_changes_nothing() {
    let mut world = World::new();
    world.run(10_000);
    let [first, _] = &mut world.changes;
    first.clear();
    world.pairs[1] = Pair::new(false, world.now);
    world.runs[1] = 2;
    world.run(10_000);
    assert_eq!(world.used(), [Way::IpIp; 2]);
    assert_eq!(world.changes[0], [], "the host that went on");
}

/// A host whose agent starts goes on as it was, and finds out what became of that.
#[test]
fn what_was_inherited_is_kept_while_it_works() {
    for works in [true, false] {
        let mut world = World::new();
        world.allowed = [true; Way::COUNT];
        world.pairs[0] = Pair::new(true, world.now);
        // The other ways are heard first.
        world.set(Way::Direct, false);
        world.run(1_200);
        world.set(Way::Direct, works);
        world.run(10_000);
        let changes: Vec<Way> = world.changes[0].iter().map(|(_, change)| change.to).collect();
        assert_eq!(changes, if works { vec![] } else { vec![Way::IpIp] });
    }
    // Nobody answers: what the kernel carries goes on.
    let mut world = World::new();
    world.allowed = [true; Way::COUNT];
    world.pairs[0] = Pair::new(true, world.now);
    world.passes = [[false; Way::COUNT]; 2];
    world.run(10_000);
    assert_eq!(world.used()[0], Way::Direct);
}

#[test]
fn what_cannot_go_directly_does_not_follow_every_turn() {
    let mut world = World::new();
    world.allowed = [true; Way::COUNT];
    world.run(10_000);
    assert_eq!(world.used(), [Way::Direct; 2]);
    let now = world.now;
    assert_eq!(world.pairs[0].tunnel(now), Way::IpIp);
    world.set(Way::IpIp, false);
    world.run(4_000);
    let now = world.now;
    assert_eq!(world.pairs[0].tunnel(now), Way::Udp);
    world.set(Way::IpIp, true);
    world.run(1_000);
    let now = world.now;
    assert_eq!(world.pairs[0].tunnel(now), Way::Udp, "not at once");
    world.run(2_000);
    let now = world.now;
    assert_eq!(world.pairs[0].tunnel(now), Way::IpIp);
}

#[test]
fn late_and_foreign_words_are_not_believed() {
    let mut pair = Pair::new(false, Millis(0));
    let mut other = Pair::new(false, Millis(0));
    // It claims to have heard what was never sent.
    let mut hello = other.next(Way::Udp, 2, 1, PAUSE, Millis(0));
    hello.heard[Way::Udp.index()] = Some(Heard { sequence: 50, age_ms: 0 });
    pair.hear(&hello, Millis(10));
    let report = |pair: &Pair, now| pair.report(PAUSE, Millis(now))[Way::Udp.index()];
    assert_eq!((report(&pair, 10).arrives, report(&pair, 10).reaches), (true, false));
    // An overtaken hello does not bring a way back to life.
    let late = other.next(Way::Udp, 2, 1, PAUSE, Millis(400));
    let next = other.next(Way::Udp, 2, 1, PAUSE, Millis(800));
    pair.hear(&next, Millis(801));
    pair.hear(&late, Millis(2_400));
    assert!(report(&pair, 2_400).arrives);
    assert!(!report(&pair, 2_402).arrives);
}

//! Which way leads from this host to another one: what is known, and what follows from it.
//!
//! # Theory of operation
//!
//! ```text
//!   hello by way w ─► other host ─► its next hellos, by whatever way: "heard w, 80 ms ago"
//! ```
//!
//! Both hosts send hellos by every way, all the time, and say in each what they heard. A way *works*
//! while the other host says that our hellos arrive by it and its own do too: a way that lets packets
//! pass in one direction only is none. Four hellos that are missing in a row end it.
//!
//! The cheapest way that works is used. When it stops working, the next cheapest that works is used at
//! once. A cheaper one is used again when it has worked for a while; that while doubles each time it
//! fails soon afterwards, so that a way that comes and goes is not followed. When no way works, the
//! other host is gone or its agent is: nothing is known then, and the way stays.
//!
//! No clock and no socket here: time is an argument.

use encap::probe::{Heard, Hello, Way};
use fdb::Millis;

/// Pauses after which a hello is missed: three may be lost in a row.
const MISSING: u64 = 4;
/// That ours arrive is told with the other host's next hello, so a pause later.
const UNTOLD: u64 = MISSING + 1;
/// How long a cheaper way must have worked before it is used, at first and at most.
const SETTLE: Millis = Millis(1_500);
const SETTLE_MAX: Millis = Millis(60_000);
/// How long a way of an earlier run is used although nothing is heard by it.
const GRACE: Millis = Millis(3_000);
/// A way that worked for this long is trusted as at first.
const TRUSTED: Millis = Millis(120_000);

/// What is known of one way.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Number of the last hello that was sent.
    sent: u32,
    /// The last hello that arrived, and when.
    heard: Option<(u32, Millis)>,
    /// When the other host last had a hello of ours, by our clock.
    arrived: Option<Millis>,
    /// Since when it works.
    since: Option<Millis>,
    /// How long it must work before it is used; zero is [`SETTLE`].
    settle: Millis,
    /// When it began to be used, if it is.
    taken: Option<Millis>,
}

/// Why a way is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing is known yet.
    Start,
    /// The cheapest that works.
    Works,
    /// A cheaper one, this, stopped working.
    Failed(Way),
    /// A cheaper one, this, is not to be used any more.
    Withdrawn(Way),
}

/// A change of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The one before.
    pub from: Way,
    /// The one from now on.
    pub to: Way,
    /// Why.
    pub why: Why,
}

/// What is known of the ways to one other host.
#[derive(Clone, Debug)]
pub struct Pair {
    ways: [State; Way::COUNT],
    /// The run of the other host that hellos came from.
    run: Option<u64>,
    /// When that changed.
    renewed: Option<Millis>,
    /// Its pause between hellos.
    pause: Millis,
    used: Way,
    since: Millis,
    why: Why,
    /// How packets go that cannot go directly, while others do.
    tunnel: Way,
}

/// How a way is doing, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The way.
    pub way: Way,
    /// Since when it works, if it does.
    pub works_since: Option<Millis>,
    /// Whether hellos of the other host arrive by it.
    pub arrives: bool,
    /// Whether the other host says that ours arrive.
    pub reaches: bool,
}

impl Pair {
    /// Nothing is known: the surest way is used, or directly what an earlier run of this host has left
    /// so.
    #[must_use]
    pub fn new(inherited: bool, now: Millis) -> Self {
        Self {
            ways: [State::default(); Way::COUNT],
            run: None,
            renewed: None,
            pause: Millis(0),
            used: if inherited { Way::Direct } else { Way::Udp },
            since: now,
            why: Why::Start,
            tunnel: Way::Udp,
        }
    }

    /// The way that is used, since when and why.
    #[must_use]
    pub fn used(&self) -> (Way, Millis, Why) {
        (self.used, self.since, self.why)
    }

    /// The next hello to send by `way`. `pause` is the time to the one after it.
    pub fn next(&mut self, way: Way, sender: u64, run: u64, pause: Millis, now: Millis) -> Hello {
        let heard = self.ways.map(|state| {
            let (sequence, at) = state.heard?;
            let age_ms = u32::try_from(now.since(at).0).unwrap_or(u32::MAX - 1);
            Some(Heard { sequence, age_ms: age_ms.min(u32::MAX - 1) })
        });
        let state = &mut self.ways[way.index()];
        state.sent = state.sent.wrapping_add(1);
        Hello {
            way,
            pause_ms: u16::try_from(pause.0).unwrap_or(u16::MAX),
            sender,
            run,
            sequence: state.sent,
            heard,
        }
    }

    /// A hello of the other host arrived by the way that it names.
    pub fn hear(&mut self, hello: &Hello, now: Millis) {
        if self.run != Some(hello.run) {
            // It starts anew: it knows of nothing that was sent to its former run.
            self.renewed = self.run.replace(hello.run).map(|_| now);
            for state in &mut self.ways {
                state.heard = None;
                state.arrived = None;
            }
        }
        self.pause = Millis(u64::from(hello.pause_ms));
        let state = &mut self.ways[hello.way.index()];
        // One that was overtaken says nothing new of the way; what it heard is older too.
        let newer =
            state.heard.is_none_or(|(last, _)| hello.sequence.wrapping_sub(last).cast_signed() > 0);
        if !newer {
            return;
        }
        state.heard = Some((hello.sequence, now));
        for (state, heard) in self.ways.iter_mut().zip(hello.heard) {
            let Some(heard) = heard else { continue };
            // What was not sent in this run was heard of an earlier one.
            let ours =
                heard.sequence != 0 && state.sent.wrapping_sub(heard.sequence).cast_signed() >= 0;
            let at = Millis(now.0.saturating_sub(u64::from(heard.age_ms)));
            if ours && state.arrived.is_none_or(|before| before < at) {
                state.arrived = Some(at);
            }
        }
    }

    /// Whether hellos arrive and whether ours do. `pause` is that of our own hellos.
    fn directions(&self, way: Way, pause: Millis, now: Millis) -> (bool, bool) {
        let state = &self.ways[way.index()];
        let arrives = state.heard.is_some_and(|(_, at)| now.since(at).0 <= MISSING * self.pause.0);
        let told = UNTOLD * pause.0.max(self.pause.0);
        (arrives, state.arrived.is_some_and(|at| now.since(at).0 <= told))
    }

    /// Brings what works up to date and takes the best of the ways that `allowed` says. Gives what
    /// changed.
    pub fn choose(
        &mut self,
        allowed: impl Fn(Way) -> bool,
        pause: Millis,
        now: Millis,
    ) -> Option<Change> {
        for way in Way::ALL {
            let works = self.directions(way, pause, now) == (true, true);
            let state = &mut self.ways[way.index()];
            match (works, state.since) {
                (true, None) => state.since = Some(now),
                (false, Some(_)) => state.since = None,
                (true, Some(since)) if now.since(since) >= TRUSTED => state.settle = SETTLE,
                _ => {}
            }
        }
        let works = |way: &Way| self.ways[way.index()].since.is_some();
        let used_works = works(&self.used);
        // What an earlier run of either host used is not doubted before there was time to hear of it.
        let inherited = self.why == Why::Start && self.used == Way::Direct;
        let early = (inherited && now.since(self.since) < GRACE)
            || self.renewed.is_some_and(|at| now.since(at) < GRACE);
        if early && !used_works && allowed(self.used) {
            return None;
        }
        let withdrawn = !allowed(self.used);
        let candidates = || Way::ALL.into_iter().filter(|way| allowed(*way));
        let settled = |way: &Way| {
            let state = &self.ways[way.index()];
            state.since.is_some_and(|since| now.since(since) >= state.settle.max(SETTLE))
        };
        let (to, why) = if withdrawn {
            // Whatever is known, it must be left; the surest is last.
            let to = candidates().find(works).or_else(|| candidates().last())?;
            (to, Why::Withdrawn(self.used))
        } else if !used_works && let Some(to) = candidates().find(|way| works(way)) {
            (to, if to > self.used { Why::Failed(self.used) } else { Why::Works })
        } else {
            (candidates().find(|way| *way < self.used && settled(way))?, Why::Works)
        };
        if to == self.used {
            return None;
        }
        let change = Change { from: self.used, to, why };
        let left = &mut self.ways[self.used.index()];
        if let (Why::Failed(_), Some(taken)) = (why, left.taken) {
            let soon = now.since(taken) < TRUSTED;
            let next = Millis(left.settle.max(SETTLE).0 * 2);
            left.settle = if soon { next.min(SETTLE_MAX) } else { SETTLE };
        }
        left.taken = None;
        self.ways[to.index()].taken = Some(now);
        (self.used, self.since, self.why) = (to, now, why);
        Some(change)
    }

    /// How packets go that cannot go directly, since their family is not the underlay's: as all do, or
    /// in IP when that has worked for a while, and until it does not.
    pub fn tunnel(&mut self, now: Millis) -> Way {
        let state = &self.ways[Way::IpIp.index()];
        let worked = state.since.map(|since| now.since(since));
        self.tunnel = match (self.used, worked) {
            (Way::Direct, None) => Way::Udp,
            (Way::Direct, Some(worked)) if worked >= state.settle.max(SETTLE) => Way::IpIp,
            (Way::Direct, Some(_)) => self.tunnel,
            (used, _) => used,
        };
        self.tunnel
    }

    /// How every way is doing.
    #[must_use]
    pub fn report(&self, pause: Millis, now: Millis) -> [Report; Way::COUNT] {
        Way::ALL.map(|way| {
            let (arrives, reaches) = self.directions(way, pause, now);
            Report { way, works_since: self.ways[way.index()].since, arrives, reaches }
        })
    }
}

#[cfg(test)]
mod tests;

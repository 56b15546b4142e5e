//! Tries to reach an address until it answers, and says when it did.
//!
//! A new attempt starts every interval (1 ms) without waiting for the one before: an ARP request or
//! a SYN that is lost at the start would otherwise be repeated by the kernel only a second later
//! and hide the moment of interest.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::icmp::Echo;
use super::{Error, Report, seconds};

/// Connection attempts open at a time; the oldest is given up for a new one.
const MAX_PENDING: usize = 128;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The address to reach
    address: IpAddr,
    /// Connect to this TCP port instead of sending echo requests
    #[arg(long)]
    tcp: Option<u16>,
    /// Seconds between two attempts
    #[arg(long, default_value = "0.001", value_parser = seconds)]
    interval: Duration,
    /// Seconds after which the address is unreachable
    #[arg(long, default_value = "10", value_parser = seconds)]
    deadline: Duration,
}

/// Times of day are those of `CLOCK_REALTIME`, for comparison with other processes of the machine.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    ok: bool,
    attempts: u64,
    elapsed_ms: f64,
    started_unix_us: u64,
    /// Absent if it was never reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached_unix_us: Option<u64>,
}

impl Report for Outcome {
    fn ok(&self) -> bool {
        self.ok
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome, Error> {
    let started = Instant::now();
    let started_unix_us = unix_us();
    let until = started + args.deadline;
    // A zero interval would be a flood.
    let interval = args.interval.max(Duration::from_micros(100));
    let mut attempt: Box<dyn Attempt> = match args.tcp {
        Some(port) => Box::new(Connecting::new(SocketAddr::new(args.address, port))),
        None => Box::new(Echoing {
            address: args.address,
            echo: Echo::open(args.address, 56)?,
            sequence: 0,
        }),
    };
    let mut attempts = 0;
    let mut reached = false;
    while !reached && Instant::now() < until {
        let next = Instant::now() + interval;
        attempts += 1;
        reached = attempt.start()? || attempt.answered(next)?;
    }
    Ok(Outcome {
        ok: reached,
        attempts,
        elapsed_ms: started.elapsed().as_secs_f64() * 1e3,
        started_unix_us,
        reached_unix_us: reached.then(unix_us),
    })
}

fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

trait Attempt {
    /// Starts one more attempt; true if it succeeded at once.
    fn start(&mut self) -> Result<bool, Error>;
    /// Waits until `until` for any attempt to succeed.
    fn answered(&mut self, until: Instant) -> Result<bool, Error>;
}

struct Echoing {
    address: IpAddr,
    echo: Echo,
    sequence: u16,
}

impl Attempt for Echoing {
    fn start(&mut self) -> Result<bool, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        // No route and no answer are what this waits to see end.
        if self.echo.connect(self.address).is_ok() {
            let _: std::io::Result<()> = self.echo.send(self.sequence);
        }
        Ok(false)
    }

    fn answered(&mut self, until: Instant) -> Result<bool, Error> {
        let wait = until.saturating_duration_since(Instant::now());
        Ok(self.echo.receive(wait)?.is_some_and(|reply| reply.intact))
    }
}

struct Connecting {
    to: SocketAddr,
    pending: VecDeque<Socket>,
}

impl Connecting {
    fn new(to: SocketAddr) -> Self {
        Self { to, pending: VecDeque::with_capacity(MAX_PENDING) }
    }
}

impl Attempt for Connecting {
    fn start(&mut self) -> Result<bool, Error> {
        let socket = Socket::new(Domain::for_address(self.to), Type::STREAM, None)
            .map_err(Error::socket("open a socket"))?;
        socket.set_nonblocking(true).map_err(Error::socket("prepare a socket"))?;
        match socket.connect(&self.to.into()) {
            Ok(()) => return Ok(true),
            Err(err)
                if err.kind() == ErrorKind::WouldBlock
                    || err.raw_os_error() == Some(libc::EINPROGRESS) =>
            {
                if self.pending.len() == MAX_PENDING {
                    self.pending.pop_front();
                }
                self.pending.push_back(socket);
            }
            Err(_) => {}
        }
        Ok(false)
    }

    fn answered(&mut self, until: Instant) -> Result<bool, Error> {
        loop {
            // A socket that failed has an error, one that is still trying has no peer.
            self.pending.retain(|socket| matches!(socket.take_error(), Ok(None)));
            if self.pending.iter().any(|socket| socket.peer_addr().is_ok()) {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            thread::sleep(left.min(Duration::from_micros(200)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn args(port: u16, deadline: Duration) -> Args {
        let address = "127.0.0.1".parse().unwrap();
        Args { address, tcp: Some(port), interval: Duration::from_millis(1), deadline }
    }

    #[test]
    fn a_listener_that_comes_up_is_reached() {
        // On a busy machine the probe may begin when the short pauses are over.
        for pause in [60, 500, 3000] {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let (outcome, up) = thread::scope(|scope| {
                let probe = scope.spawn(|| run(&args(port, Duration::from_secs(30))).unwrap());
                thread::sleep(Duration::from_millis(pause));
                let up = unix_us();
                let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
                (probe.join().unwrap(), up)
            });
            assert!(outcome.ok, "{outcome:?}");
            assert!(outcome.reached_unix_us.unwrap() >= up, "{outcome:?} {up}");
            if outcome.started_unix_us + 40_000 < up {
                assert!(outcome.attempts > 1 && outcome.elapsed_ms >= 40.0, "{outcome:?}");
                return;
            }
        }
        panic!("the probe never began before the listener was up");
    }

    #[test]
    fn an_address_that_stays_away_ends_the_probe() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let outcome = run(&args(port, Duration::from_millis(50))).unwrap();
        assert!(!outcome.ok && outcome.reached_unix_us.is_none(), "{outcome:?}");
    }
}

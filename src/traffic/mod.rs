//! Traffic that checks itself: the generator behind the demo, the benches and the system tests.
//!
//! # Theory of operation
//!
//! Every mode runs inside the network namespace in which it is started and speaks only through that
//! namespace's sockets, so what it measures is what an application there would see.
//!
//! ```text
//!   tcp-send ──hello, stream──▶ tcp-receive      one connection per stream
//!            ◀──receipt────────                  bytes, hash, first wrong position
//!   udp-send ──hello, data, fin──▶ udp-receive   numbered datagrams
//!            ◀──report────────────               lost, reordered, duplicated, corrupt
//!   ping, probe ──echo request──▶ the kernel of the other container
//!   latency ──one message at a time──▶ pong      TCP and UDP
//! ```
//!
//! The data is a pseudo-random sequence in which each byte depends on its position
//! ([`pattern`]), so a receiver finds the first wrong byte without having the original: a frame
//! that is lost, doubled or put in the wrong place shows as surely as a flipped bit. A SHA-256 of
//! the whole is compared beside it. Both are done only with `--verify`; without it no byte is
//! looked at, because a benchmark must load the network and not the generator.
//!
//! Senders retry their first contact until the receiver answers, so the two sides need no
//! start order. Each loop ends by count or by time, whatever the network does; those of senders end by
//! SIGINT and SIGTERM too, with their report. Each mode prints one
//! JSON object on standard output; it carries `"ok"`, and the exit code says the same.

mod icmp;
mod interrupt;
mod latency;
pub mod pattern;
mod ping;
mod probe;
mod tcp;
mod udp;

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;

/// Arguments of `skybridge traffic`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Measures round trips of one small message at a time against `pong`
    Latency(latency::Args),
    /// Sends ICMP echo requests and checks the answers
    Ping(ping::Args),
    /// Answers `latency` on TCP and UDP
    Pong(latency::PongArgs),
    /// Tries to reach an address every millisecond until it answers
    Probe(probe::Args),
    /// Receives the streams of one `tcp-send`
    TcpReceive(tcp::ReceiveArgs),
    /// Sends streams over TCP
    TcpSend(tcp::SendArgs),
    /// Receives the datagrams of one `udp-send`
    UdpReceive(udp::ReceiveArgs),
    /// Sends numbered datagrams
    UdpSend(udp::SendArgs),
}

/// What can end a traffic run before it has a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A local address could not be bound.
    #[error("cannot listen on {address}: {source}; check that the address is up in this namespace")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// No contact with the other side within the time allowed.
    #[error("no contact with {address} within {seconds} s ({last}); is the receiver running?")]
    Contact {
        /// The receiver's address.
        address: SocketAddr,
        /// The time that was allowed.
        seconds: f64,
        /// The last failure seen.
        last: String,
    },
    /// The other side does not speak this protocol, or another version of it.
    #[error("the other side at {address} does not answer as a traffic receiver")]
    Protocol {
        /// The address of the other side.
        address: SocketAddr,
    },
    /// The result could not be written.
    #[error("cannot write the report: {0}")]
    Report(#[source] io::Error),
    /// A socket operation failed.
    #[error("cannot {operation}: {source}")]
    Socket {
        /// What was tried, in the words of a sentence.
        operation: &'static str,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// The run was not over when its time was.
    #[error("not finished after {seconds} s while waiting for {what}")]
    TimedOut {
        /// The time that was allowed.
        seconds: f64,
        /// What was waited for.
        what: &'static str,
    },
    /// An echo request needs an address family that the socket does not have.
    #[error("cannot open an ICMP socket for {address}: {source}; this needs root or CAP_NET_RAW")]
    Icmp {
        /// The address to be reached.
        address: IpAddr,
        /// The answer of the kernel.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names the operation that failed.
    fn socket(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Socket { operation, source }
    }
}

/// Runs one mode to its end and prints its report as one line of JSON.
///
/// The exit code is 0 only if the report says `"ok": true`.
///
/// # Errors
///
/// Any [`Error`]: the run ended without a result.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    match &args.mode {
        Mode::Latency(args) => finish(&latency::run(args)?),
        Mode::Ping(args) => finish(&ping::run(args)?),
        Mode::Pong(args) => finish(&latency::pong(args)?),
        Mode::Probe(args) => finish(&probe::run(args)?),
        Mode::TcpReceive(args) => finish(&tcp::receive(args)?),
        Mode::TcpSend(args) => finish(&tcp::send(args)?),
        Mode::UdpReceive(args) => finish(&udp::receive(args)?),
        Mode::UdpSend(args) => finish(&udp::send(args)?),
    }
}

/// A report that knows whether the run was good.
trait Report: Serialize {
    fn ok(&self) -> bool;
}

fn finish(report: &impl Report) -> Result<ExitCode, Error> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, report).map_err(|err| Error::Report(err.into()))?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(Error::Report)?;
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Parses a duration given as seconds, for clap.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, for example 2.5".to_owned())?;
    // An hour bounds every run; nothing here is meant to be a service.
    if !(0.0..=3600.0).contains(&seconds) {
        return Err("give 0 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn gbit_per_s(bytes: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { bytes as f64 * 8.0 / seconds / 1e9 } else { 0.0 }
}

/// Round trips in microseconds, as every report shows them.
#[derive(Debug, Clone, Default, Serialize)]
struct RoundTrips {
    min: f64,
    median: f64,
    mean: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl RoundTrips {
    /// Orders `samples` and takes the quantiles; all zero if there are none.
    fn of(samples: &mut [Duration]) -> Self {
        samples.sort_unstable();
        let micros = |d: Duration| d.as_secs_f64() * 1e6;
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
            return Self::default();
        };
        let at = |quantile: f64| {
            let index = ((samples.len() - 1) as f64 * quantile).round() as usize;
            samples.get(index).copied().map_or(0.0, micros)
        };
        Self {
            min: micros(*first),
            median: at(0.5),
            mean: micros(samples.iter().sum::<Duration>()) / samples.len() as f64,
            p99: at(0.99),
            p999: at(0.999),
            max: micros(*last),
        }
    }
}

/// Segments retransmitted by TCP in this network namespace since it was created, 0 if unknown.
///
/// The namespace's own counter (`RetransSegs` of RFC 4022) and not one connection's: the reports
/// give the difference over a run, and a container of a test runs nothing else.
fn retransmitted_segments() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/snmp") else { return 0 };
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find(|(name, _)| *name == "RetransSegs")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_row() {
        let mut samples: Vec<_> = (1..=1001).rev().map(Duration::from_micros).collect();
        let trips = RoundTrips::of(&mut samples);
        assert_eq!(trips.min.round(), 1.0);
        assert_eq!(trips.median.round(), 501.0);
        assert_eq!(trips.p99.round(), 991.0);
        assert_eq!(trips.p999.round(), 1000.0);
        assert_eq!(trips.max.round(), 1001.0);
    }

    #[test]
    fn no_samples_give_zeros() {
        assert_eq!(RoundTrips::of(&mut []).max, 0.0);
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err());
        assert!(seconds("NaN").is_err());
        assert!(seconds("1e9").is_err());
    }
}

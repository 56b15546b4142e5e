//! Echo requests one after the other, with the data checked.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::icmp::{Echo, MAX_DATA};
use super::{Error, Report, RoundTrips, seconds};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The address to reach
    address: IpAddr,
    /// Echo requests to send
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Bytes of data in each; above the MTU it travels in fragments
    #[arg(long, default_value_t = 56, value_parser = clap::value_parser!(u16).range(0..=MAX_DATA as i64))]
    size: u16,
    /// Seconds between two requests
    #[arg(long, default_value = "0.02", value_parser = seconds)]
    interval: Duration,
    /// Seconds to wait for each reply
    #[arg(long, default_value = "1", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    ok: bool,
    sent: u16,
    received: u16,
    lost: u16,
    duplicates: u16,
    corrupt: u16,
    size: u16,
    rtt_us: RoundTrips,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

impl Report for Outcome {
    fn ok(&self) -> bool {
        self.ok
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome, Error> {
    let mut echo = Echo::open(args.address, usize::from(args.size))?;
    echo.connect(args.address).map_err(Error::socket("find a route"))?;
    let mut trips = Vec::with_capacity(usize::from(args.count));
    let (mut received, mut duplicates, mut corrupt) = (0, 0, 0);
    let mut last_error = None;
    for sequence in 0..args.count {
        let sent_at = Instant::now();
        if let Err(err) = echo.send(sequence) {
            last_error = Some(err.to_string());
            thread::sleep(args.interval);
            continue;
        }
        loop {
            let left = args.timeout.saturating_sub(sent_at.elapsed());
            match echo.receive(left)? {
                Some(reply) if reply.sequence == sequence => {
                    trips.push(sent_at.elapsed());
                    received += 1;
                    corrupt += u16::from(!reply.intact);
                    break;
                }
                Some(_) => duplicates += 1,
                None => break,
            }
        }
        if sequence + 1 < args.count {
            thread::sleep(args.interval.saturating_sub(sent_at.elapsed()));
        }
    }
    // A second reply to the last request would come at once.
    while echo.receive(Duration::from_millis(5))?.is_some() {
        duplicates += 1;
    }
    Ok(Outcome {
        ok: received == args.count && corrupt == 0 && duplicates == 0,
        sent: args.count,
        received,
        lost: args.count - received,
        duplicates,
        corrupt,
        size: args.size,
        rtt_us: RoundTrips::of(&mut trips),
        last_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(address: &str, size: u16) -> Args {
        Args {
            address: address.parse().unwrap(),
            count: 3,
            size,
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(2),
        }
    }

    /// Raw sockets need a privilege that a build machine may not give; loopback must answer then.
    fn run_if_allowed(address: &str, size: u16) {
        match run(&args(address, size)) {
            Ok(outcome) => assert!(outcome.ok, "{outcome:?}"),
            Err(Error::Icmp { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
            }
            Err(Error::Socket { source, .. }) if address.contains(':') => {
                // No IPv6 on this machine.
                assert_eq!(source.kind(), std::io::ErrorKind::AddrNotAvailable);
            }
            Err(err) => panic!("{err}"),
        }
    }

    #[test]
    fn loopback_answers_over_ipv4() {
        run_if_allowed("127.0.0.1", 56);
        run_if_allowed("127.0.0.1", 65_000);
        run_if_allowed("127.0.0.1", 0);
    }

    #[test]
    fn loopback_answers_over_ipv6() {
        run_if_allowed("::1", 56);
        run_if_allowed("::1", 65_001);
    }
}

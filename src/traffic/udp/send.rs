//! The sender: greets until it is answered, sends, and asks for the report until it comes.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

use super::{HEADER_LEN, Header, Kind, MAX_SEQUENCE, Received, STRIDE, VERIFY};
use crate::traffic::interrupt::Interrupt;
use crate::traffic::{Error, Report, gbit_per_s, pattern, seconds};

/// The largest UDP payload that both address families carry in one send with `UDP_SEGMENT`.
const MAX_SIZE: usize = 65_487;
/// Kernels before 6.9 take no more (`UDP_MAX_SEGMENTS` in `include/linux/udp.h`).
const MAX_SEGMENTS: usize = 64;
/// Rest between the last datagram and the question for the report.
const SETTLE: Duration = Duration::from_millis(150);
/// The least time for the report to come.
const REPORT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(in crate::traffic) struct SendArgs {
    /// Address and port of the receiver
    to: SocketAddr,
    /// UDP payload of each datagram, in bytes
    #[arg(long, default_value_t = 1200, value_parser = clap::value_parser!(u16).range(HEADER_LEN as i64..=MAX_SIZE as i64))]
    size: u16,
    /// Datagrams to send
    #[arg(long, conflicts_with = "seconds", required_unless_present = "seconds",
        value_parser = clap::value_parser!(u64).range(1..MAX_SEQUENCE))]
    count: Option<u64>,
    /// Send for this time instead
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Datagrams per second; as fast as possible if absent
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Fill and check the payload
    #[arg(long)]
    verify: bool,
    /// Send up to 64 datagrams per call with UDP_SEGMENT
    #[arg(long)]
    gso: bool,
    /// Seconds to wait for the receiver
    #[arg(long, default_value = "10", value_parser = seconds)]
    contact: Duration,
    /// Seconds after which sending ends, however far it is
    #[arg(long, default_value = "300", value_parser = seconds)]
    deadline: Duration,
}

/// The sender's result, with the receiver's inside.
#[derive(Debug, Serialize)]
pub(in crate::traffic) struct Sent {
    ok: bool,
    sent: u64,
    size: u16,
    bytes: u64,
    seconds: f64,
    datagrams_per_s: f64,
    gbit_per_s: f64,
    /// Datagrams that the kernel refused for want of buffers; they were sent again.
    retried: u64,
    receiver: Received,
}

impl Report for Sent {
    fn ok(&self) -> bool {
        self.ok
    }
}

pub(in crate::traffic) fn send(args: &SendArgs) -> Result<Sent, Error> {
    let any = if args.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(Error::socket("open a socket"))?;
    socket.connect(args.to).map_err(Error::socket("find a route"))?;
    let session: u16 = rand::random();
    let flags = if args.verify { VERIFY } else { 0 };
    let hello = Header { kind: Kind::Hello, flags, session, number: u64::from(args.size) };
    ask(&socket, args, hello, Kind::Welcome, || args.contact)?;

    let stream = Outgoing::new(args, session)?;
    let interrupt = Interrupt::begin();
    let started = Instant::now();
    let (sent, retried) = stream.run(&socket, args, started, &interrupt)?;
    let elapsed = started.elapsed();
    stream.end(&socket)?;

    thread::sleep(SETTLE);
    let end = Header { kind: Kind::End, flags, session, number: sent };
    // Who interrupts may have ended the receiver too, and does not wait for long.
    let allowed = || if interrupt.came() { REPORT } else { args.contact.max(REPORT) };
    let report = ask(&socket, args, end, Kind::Report, allowed)?;
    // One that is lost costs the receiver its time for stragglers, nothing else.
    let bye = Header { kind: Kind::Bye, ..end };
    let _: io::Result<usize> = socket.send(&bye.emit());
    let receiver: Received =
        serde_json::from_slice(&report).map_err(|_| Error::Protocol { address: args.to })?;
    let bytes = sent * u64::from(args.size);
    Ok(Sent {
        ok: receiver.ok,
        sent,
        size: args.size,
        bytes,
        seconds: elapsed.as_secs_f64(),
        datagrams_per_s: sent as f64 / elapsed.as_secs_f64().max(1e-9),
        gbit_per_s: gbit_per_s(bytes, elapsed),
        retried,
        receiver,
    })
}

/// Repeats `question` every 20 ms until a datagram of kind `answer` comes; gives its payload.
fn ask(
    socket: &UdpSocket,
    args: &SendArgs,
    question: Header,
    answer: Kind,
    allowed: impl Fn() -> Duration,
) -> Result<Vec<u8>, Error> {
    let begun = Instant::now();
    let mut buffer = [0; 2048];
    let mut last = "no answer".to_owned();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .map_err(Error::socket("set a time limit"))?;
    while begun.elapsed() < allowed() {
        if let Err(err) = socket.send(&question.emit()) {
            last = err.to_string();
            thread::sleep(Duration::from_millis(20));
        }
        match socket.recv(&mut buffer) {
            Ok(len) => {
                if let Some((header, payload)) = Header::parse(&buffer[..len])
                    && header.kind == answer
                    && header.session == question.session
                {
                    return Ok(payload.to_vec());
                }
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // Refused: an ICMP answer to an earlier try, at once; do not spin on it.
            Err(err) => {
                last = err.to_string();
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    Err(Error::Contact { address: args.to, seconds: allowed().as_secs_f64(), last })
}

/// So many datagrams per second.
struct Pace {
    rate: u64,
    begun: Instant,
}

impl Pace {
    /// What may go out together: sleeping is coarse at high rates.
    const BURST: Duration = Duration::from_millis(20);

    /// How long it is until the next datagram, after `sent` of them; `None` if it is due.
    ///
    /// A process that did not run does not make up for it in one burst, which no queue on the way
    /// would hold: what is more than [`Self::BURST`] late is sent that much later.
    fn ahead(&mut self, sent: u64, now: Instant) -> Option<Duration> {
        let at = self.begun + Duration::from_secs_f64(sent as f64 / self.rate as f64);
        if let Some(late) = now.checked_duration_since(at) {
            self.begun += late.saturating_sub(Self::BURST);
            return None;
        }
        Some(at - now)
    }
}

/// The datagrams to be sent and how.
struct Outgoing {
    session: u16,
    flags: u8,
    size: usize,
    /// Datagrams per call.
    segments: usize,
    gso: bool,
}

impl Outgoing {
    fn new(args: &SendArgs, session: u16) -> Result<Self, Error> {
        let size = usize::from(args.size);
        let segments = if args.gso { (MAX_SIZE / size).clamp(1, MAX_SEGMENTS) } else { 1 };
        let flags = if args.verify { VERIFY } else { 0 };
        Ok(Self { session, flags, size, segments, gso: args.gso })
    }

    /// Sends all of it; how many datagrams, and how many of them again.
    fn run(
        &self,
        socket: &UdpSocket,
        args: &SendArgs,
        started: Instant,
        interrupt: &Interrupt,
    ) -> Result<(u64, u64), Error> {
        if self.gso {
            self.set_segment_size(socket, self.size as i32)?;
        }
        let deadline = started + args.seconds.unwrap_or(args.deadline).min(args.deadline);
        let count = args.count.unwrap_or(MAX_SEQUENCE - 1);
        let mut watch = interrupt.watch();
        let mut pace = args.rate.map(|rate| Pace { rate, begun: started });
        let mut buffer = vec![0; self.size * self.segments];
        let (mut sent, mut retried) = (0_u64, 0_u64);
        while sent < count {
            let now = Instant::now();
            if now >= deadline || watch.over(now) {
                break;
            }
            if let Some(ahead) = pace.as_mut().and_then(|pace| pace.ahead(sent, now)) {
                thread::sleep(ahead.min(deadline.saturating_duration_since(now)));
                continue;
            }
            let segments = self.segments.min(usize::try_from(count - sent).unwrap_or(usize::MAX));
            let train = &mut buffer[..segments * self.size];
            self.compose(sent, train);
            match socket.send(train) {
                Ok(_) => sent += segments as u64,
                // Refused is the ICMP answer to an earlier datagram; this one was not sent.
                Err(err)
                    if matches!(
                        err.raw_os_error(),
                        Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED)
                    ) =>
                {
                    retried += segments as u64;
                    thread::yield_now();
                }
                Err(source) => return Err(Error::Socket { operation: "send", source }),
            }
        }
        Ok((sent, retried))
    }

    fn compose(&self, first: u64, train: &mut [u8]) {
        for (number, datagram) in (first..).zip(train.chunks_exact_mut(self.size)) {
            let header =
                Header { kind: Kind::Data, flags: self.flags, session: self.session, number };
            if let Some((head, payload)) = datagram.split_first_chunk_mut::<HEADER_LEN>() {
                *head = header.emit();
                if self.flags & VERIFY != 0 {
                    pattern::fill(u64::from(self.session), number.wrapping_mul(STRIDE), payload);
                }
            }
        }
    }

    /// Makes the socket send single datagrams again.
    fn end(&self, socket: &UdpSocket) -> Result<(), Error> {
        if self.gso { self.set_segment_size(socket, 0) } else { Ok(()) }
    }

    fn set_segment_size(&self, socket: &UdpSocket, size: i32) -> Result<(), Error> {
        setsockopt(socket, sockopt::UdpGsoSegment, &size)
            .map_err(|err| Error::Socket { operation: "set UDP_SEGMENT", source: err.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::udp::receive::{ReceiveArgs, receive_on};

    fn transfer(bind: &str, gso: bool, gro: bool, rate: Option<u64>) -> (Sent, Received) {
        let socket = UdpSocket::bind(bind).unwrap();
        let second = Duration::from_secs(10);
        let receive_args = ReceiveArgs {
            bind: socket.local_addr().unwrap(),
            gro,
            contact: second,
            stall: second,
            deadline: second,
        };
        let send_args = SendArgs {
            to: receive_args.bind,
            size: 1200,
            count: Some(1001),
            seconds: None,
            rate,
            verify: true,
            gso,
            contact: second,
            deadline: second,
        };
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive_on(&socket, &receive_args).unwrap());
            let sent = send(&send_args).unwrap();
            (sent, receiver.join().unwrap())
        })
    }

    fn assert_whole(sent: &Sent, received: &Received) {
        assert!(sent.ok && received.ok, "{sent:?} {received:?}");
        assert_eq!(sent.sent, 1001);
        assert_eq!(received.received, 1001);
        assert_eq!((received.lost, received.corrupt, received.duplicates), (0, 0, 0));
        assert_eq!(&sent.receiver, received);
    }

    #[test]
    fn datagrams_at_a_rate_arrive_whole() {
        let (sent, received) = transfer("127.0.0.1:0", false, false, Some(10_000));
        assert_whole(&sent, &received);
        assert!(sent.seconds > 0.09, "{sent:?}");
    }

    #[test]
    fn trains_arrive_whole_with_and_without_gro() {
        for gro in [false, true] {
            let (sent, received) = transfer("[::1]:0", true, gro, Some(50_000));
            assert_whole(&sent, &received);
        }
    }

    #[test]
    fn a_pace_is_kept_and_not_made_up_for() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut pace = Pace { rate: 1000, begun };
        assert_eq!(pace.ahead(0, at(0)), None);
        assert_eq!(pace.ahead(7, at(4)), Some(Duration::from_millis(3)));
        assert_eq!(pace.ahead(7, at(7)), None);
        // Late by 20 ms, all that is due goes out; by half a second, no more than that either.
        assert_eq!((pace.ahead(10, at(30)), pace.ahead(30, at(30))), (None, None));
        assert_eq!(pace.ahead(31, at(30)), Some(Duration::from_millis(1)));
        assert_eq!((pace.ahead(31, at(531)), pace.ahead(51, at(531))), (None, None));
        assert_eq!(pace.ahead(52, at(531)), Some(Duration::from_millis(1)));
    }
}

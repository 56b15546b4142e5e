//! Numbered UDP datagrams: loss, order, duplicates and corruption.
//!
//! ```text
//!   0        4      5       6         8                16
//!   ┌────────┬──────┬───────┬─────────┬─────────────────┬───────────────────────┐
//!   │ "skud" │ kind │ flags │ session │ sequence number │ the sequence, checked │
//!   └────────┴──────┴───────┴─────────┴─────────────────┴───────────────────────┘
//! ```
//!
//! The sender greets until it is answered, sends, waits a moment for what is still under way, and
//! asks for the report until it comes. Flat out it is a plain loop of `send`: what an application
//! does, and what a comparison of two networks must leave the same. With `--gso` one call carries
//! up to 64 datagrams by `UDP_SEGMENT`, as QUIC stacks send.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use serde::{Deserialize, Serialize};

use super::interrupt::Interrupt;
use super::{Error, Report, gbit_per_s, pattern, seconds};

const MAGIC: [u8; 4] = *b"skud";
const HEADER_LEN: usize = 16;
/// The largest UDP payload that both address families carry in one send with `UDP_SEGMENT`.
const MAX_SIZE: usize = 65_487;
/// Kernels before 6.9 take no more (`UDP_MAX_SEGMENTS` in `include/linux/udp.h`).
const MAX_SEGMENTS: usize = 64;
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// Sequence numbers that the receiver keeps apart; later ones count as corrupt.
const MAX_SEQUENCE: u64 = 1 << 30;
/// Flag: the payload is the checked sequence.
const VERIFY: u8 = 1;
/// Distance between the payloads of two datagrams in the checked sequence.
const STRIDE: u64 = 1 << 16;
/// Rest between the last datagram and the question for the report.
const SETTLE: Duration = Duration::from_millis(150);
/// The least time for the report to come.
const REPORT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct SendArgs {
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

#[derive(Debug, clap::Args)]
pub(super) struct ReceiveArgs {
    /// Address and port to bind
    bind: SocketAddr,
    /// Take trains of datagrams with UDP_GRO, as QUIC stacks do
    #[arg(long)]
    gro: bool,
    /// Seconds to wait for the sender
    #[arg(long, default_value = "30", value_parser = seconds)]
    contact: Duration,
    /// Seconds of silence after which the sender is taken for gone
    #[arg(long, default_value = "20", value_parser = seconds)]
    stall: Duration,
    /// Seconds after which the run ends, however far it is
    #[arg(long, default_value = "300", value_parser = seconds)]
    deadline: Duration,
}

/// What the receiver counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Received {
    ok: bool,
    /// Different datagrams that arrived whole.
    received: u64,
    /// Datagrams sent, by the sender's word.
    sent: u64,
    lost: u64,
    /// Arrived after one with a higher number.
    reordered: u64,
    duplicates: u64,
    /// Wrong length, wrong payload, or a number that was never sent.
    corrupt: u64,
    /// Payload bytes of what arrived whole.
    bytes: u64,
    /// From the first to the last datagram.
    seconds: f64,
    datagrams_per_s: f64,
    longest_pause_ms: f64,
}

impl Report for Received {
    fn ok(&self) -> bool {
        self.ok
    }
}

/// The sender's result, with the receiver's inside.
#[derive(Debug, Serialize)]
pub(super) struct Sent {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hello = 1,
    Welcome = 2,
    Data = 3,
    End = 4,
    Report = 5,
    Bye = 6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: Kind,
    flags: u8,
    session: u16,
    /// `Data`: the number of the datagram; `Hello`: the payload size; `End`: how many were sent.
    number: u64,
}

impl Header {
    fn emit(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.kind as u8;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&self.session.to_be_bytes());
        out[8..].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    fn parse(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let [magic @ .., kind, flags, s0, s1, n0, n1, n2, n3, n4, n5, n6, n7] = header;
        if *magic != MAGIC {
            return None;
        }
        let kind = match kind {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Data,
            4 => Kind::End,
            5 => Kind::Report,
            6 => Kind::Bye,
            _ => return None,
        };
        let session = u16::from_be_bytes([*s0, *s1]);
        let number = u64::from_be_bytes([*n0, *n1, *n2, *n3, *n4, *n5, *n6, *n7]);
        Some((Self { kind, flags: *flags, session, number }, payload))
    }
}

// ===== the sender =====

pub(super) fn send(args: &SendArgs) -> Result<Sent, Error> {
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

// ===== the receiver =====

pub(super) fn receive(args: &ReceiveArgs) -> Result<Received, Error> {
    let socket =
        UdpSocket::bind(args.bind).map_err(|source| Error::Bind { address: args.bind, source })?;
    receive_on(&socket, args)
}

fn receive_on(socket: &UdpSocket, args: &ReceiveArgs) -> Result<Received, Error> {
    // Without CAP_NET_ADMIN the system's limit applies, which is only smaller.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        let _: nix::Result<()> = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
    }
    if args.gro {
        setsockopt(socket, sockopt::UdpGroSegment, &true)
            .map_err(|err| Error::Socket { operation: "set UDP_GRO", source: err.into() })?;
    }
    let mut buffer = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(i32);
    let begun = Instant::now();
    let mut counts: Option<Counts> = None;
    let mut last = begun;
    loop {
        let until = match &counts {
            None => begun + args.contact,
            Some(counts) if counts.reported => last + Duration::from_secs(1),
            Some(_) => last + args.stall,
        }
        .min(begun + args.contact + args.deadline);
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            break;
        }
        socket
            .set_read_timeout(Some(wait.max(Duration::from_millis(1))))
            .map_err(Error::socket("set a time limit"))?;
        // The time limit is set anew only here, so a burst costs no further call per datagram.
        loop {
            let (len, segment, from) = match take(socket, args.gro, &mut buffer, &mut control) {
                Ok(taken) => taken,
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break;
                }
                Err(err) if err.kind() == ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Socket { operation: "receive", source }),
            };
            last = Instant::now();
            let mut over = false;
            let mut control_seen = false;
            for datagram in buffer[..len].chunks(segment.max(1)) {
                let Some((header, payload)) = Header::parse(datagram) else {
                    if let Some(counts) = &mut counts {
                        counts.result.corrupt += 1;
                    }
                    continue;
                };
                match header.kind {
                    Kind::Hello => {
                        control_seen = true;
                        // A new session begins anew; a repeated greeting does not.
                        if counts.as_ref().is_none_or(|c| c.session != header.session) {
                            counts = Some(Counts::new(header));
                        }
                        let welcome = Header { kind: Kind::Welcome, ..header };
                        let _: io::Result<usize> = socket.send_to(&welcome.emit(), from);
                    }
                    Kind::Data => {
                        if let Some(counts) = &mut counts {
                            counts.data(header, payload, last);
                        }
                    }
                    Kind::End => {
                        control_seen = true;
                        if let Some(counts) = &mut counts
                            && counts.session == header.session
                        {
                            let answer = counts.report(header)?;
                            let _: io::Result<usize> = socket.send_to(&answer, from);
                        }
                    }
                    Kind::Bye => {
                        over = counts.as_ref().is_some_and(|c| c.session == header.session);
                    }
                    Kind::Report | Kind::Welcome => {}
                }
            }
            if over {
                return Ok(counts.map(|counts| counts.result).unwrap_or_default());
            }
            if control_seen || last >= until {
                break;
            }
        }
    }
    match counts {
        Some(counts) if counts.reported => Ok(counts.result),
        Some(_) => {
            Err(Error::TimedOut { seconds: args.stall.as_secs_f64(), what: "the sender's end" })
        }
        None => Err(Error::TimedOut { seconds: args.contact.as_secs_f64(), what: "a sender" }),
    }
}

/// Takes one datagram, or a train: the length, the length of one segment, and the sender.
fn take(
    socket: &UdpSocket,
    gro: bool,
    buffer: &mut [u8],
    control: &mut [u8],
) -> io::Result<(usize, usize, SocketAddr)> {
    use std::os::fd::AsRawFd as _;

    if !gro {
        let (len, from) = socket.recv_from(buffer)?;
        return Ok((len, len, from));
    }
    let mut iov = [io::IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(control), MsgFlags::empty())?;
    let segment = message.cmsgs().map_err(io::Error::from)?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let from = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    });
    let from = from.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    Ok((message.bytes, segment.unwrap_or(message.bytes), from))
}

/// The receiver's account of one session.
struct Counts {
    session: u16,
    size: usize,
    verify: bool,
    /// One bit per sequence number.
    seen: Vec<u64>,
    next: u64,
    first_at: Option<Instant>,
    last_at: Option<Instant>,
    longest_pause: Duration,
    reported: bool,
    result: Received,
}

impl Counts {
    fn new(hello: Header) -> Self {
        Self {
            session: hello.session,
            size: usize::try_from(hello.number).unwrap_or(usize::MAX),
            verify: hello.flags & VERIFY != 0,
            seen: Vec::new(),
            next: 0,
            first_at: None,
            last_at: None,
            longest_pause: Duration::ZERO,
            reported: false,
            result: Received::default(),
        }
    }

    fn data(&mut self, header: Header, payload: &[u8], now: Instant) {
        let number = header.number;
        let wrong = header.session != self.session
            || number >= MAX_SEQUENCE
            || payload.len() + HEADER_LEN != self.size
            || self.verify
                && pattern::first_difference(
                    u64::from(self.session),
                    number.wrapping_mul(STRIDE),
                    payload,
                )
                .is_some();
        if wrong {
            self.result.corrupt += 1;
            return;
        }
        let (index, bit) = ((number / 64) as usize, 1 << (number % 64));
        if index >= self.seen.len() {
            self.seen.resize((index + 1).next_power_of_two(), 0);
        }
        if let Some(word) = self.seen.get_mut(index) {
            if *word & bit != 0 {
                self.result.duplicates += 1;
                return;
            }
            *word |= bit;
        }
        if number < self.next {
            self.result.reordered += 1;
        } else {
            self.next = number + 1;
        }
        self.result.received += 1;
        self.result.bytes += self.size as u64;
        if let Some(last) = self.last_at {
            self.longest_pause = self.longest_pause.max(now.duration_since(last));
        }
        self.first_at.get_or_insert(now);
        self.last_at = Some(now);
    }

    /// Closes the account at the sender's word and gives the datagram that carries it.
    fn report(&mut self, end: Header) -> Result<Vec<u8>, Error> {
        let elapsed = match (self.first_at, self.last_at) {
            (Some(first), Some(last)) => last.duration_since(first),
            _ => Duration::ZERO,
        };
        let result = &mut self.result;
        result.sent = end.number;
        result.lost = end.number.saturating_sub(result.received);
        result.seconds = elapsed.as_secs_f64();
        result.datagrams_per_s = result.received as f64 / elapsed.as_secs_f64().max(1e-9);
        result.longest_pause_ms = self.longest_pause.as_secs_f64() * 1e3;
        if self.next > end.number {
            // Numbers beyond the end: they passed for good ones and were never sent.
            result.corrupt += self.next - end.number;
        }
        // Loss is for the caller to judge: flat out it is expected.
        result.ok = result.corrupt == 0 && result.received > 0;
        self.reported = true;
        let mut answer = Header { kind: Kind::Report, ..end }.emit().to_vec();
        serde_json::to_writer(&mut answer, result).map_err(|err| Error::Report(err.into()))?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn counts() -> Counts {
        Counts::new(Header { kind: Kind::Hello, flags: VERIFY, session: 9, number: 100 })
    }

    fn data(counts: &mut Counts, number: u64) {
        let mut payload = [0; 84];
        pattern::fill(9, number * STRIDE, &mut payload);
        let header = Header { kind: Kind::Data, flags: VERIFY, session: 9, number };
        counts.data(header, &payload, Instant::now());
    }

    #[test]
    fn loss_order_duplicates_and_corruption_are_told_apart() {
        let mut counts = counts();
        for number in [0, 1, 4, 3, 3, 6] {
            data(&mut counts, number);
        }
        let header = Header { kind: Kind::Data, flags: VERIFY, session: 9, number: 5 };
        counts.data(header, &[0; 84], Instant::now());
        counts.data(header, &[0; 83], Instant::now());
        counts.report(Header { kind: Kind::End, flags: 0, session: 9, number: 8 }).unwrap();
        let result = counts.result;
        assert_eq!((result.received, result.lost), (5, 3));
        assert_eq!((result.reordered, result.duplicates, result.corrupt), (1, 1, 2));
        assert!(!result.ok);
    }

    #[test]
    fn headers_round_trip_and_strangers_are_refused() {
        let header = Header { kind: Kind::End, flags: 1, session: 77, number: u64::MAX - 5 };
        assert_eq!(Header::parse(&header.emit()), Some((header, &[][..])));
        assert_eq!(Header::parse(&[0xa5; 64]), None);
        assert_eq!(Header::parse(b"skud"), None);
    }

    #[test]
    fn a_receiver_nobody_talks_to_ends() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let short = Duration::from_millis(30);
        let args = ReceiveArgs {
            bind: socket.local_addr().unwrap(),
            gro: false,
            contact: short,
            stall: short,
            deadline: short,
        };
        assert!(matches!(receive_on(&socket, &args), Err(Error::TimedOut { .. })));
    }
}

//! TCP streams, verified byte for byte or flat out.
//!
//! Each connection opens with a [`Hello`], carries the stream, and is closed in the direction of
//! the data. The receiver then answers with a [`Receipt`], so a sender knows what really arrived
//! and its clock stops only when the last byte was read on the other side.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::interrupt::{Interrupt, Watch};
use super::{Error, Report, gbit_per_s, pattern, retransmitted_segments, seconds};

const BUFFER_SIZE: usize = 256 * 1024;
const MAX_STREAMS: u16 = 256;

/// Write sizes that hit every alignment: single bytes, primes, around an MSS, around 64 KiB.
const ODD_SIZES: [usize; 12] =
    [1, 7, 1399, 13, 65537, 1449, 131_071, 536, 3, 32_749, 8191, BUFFER_SIZE - 1];

#[derive(Debug, clap::Args)]
pub(super) struct SendArgs {
    /// Address and port of the receiver
    to: SocketAddr,
    /// Bytes to send, over all streams
    #[arg(long, conflicts_with = "seconds", required_unless_present = "seconds")]
    bytes: Option<u64>,
    /// Send for this time instead
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Parallel connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_STREAMS)))]
    streams: u16,
    /// Send the checked sequence and compare SHA-256 of both ends
    #[arg(long)]
    verify: bool,
    /// Write in odd sizes without delay, so that segments of all lengths occur
    #[arg(long)]
    odd_sizes: bool,
    /// Seconds to wait for the receiver to listen
    #[arg(long, default_value = "10", value_parser = seconds)]
    contact: Duration,
    /// Seconds without any progress after which the run has failed
    #[arg(long, default_value = "20", value_parser = seconds)]
    stall: Duration,
    /// Seconds after which the run has failed, however far it is
    #[arg(long, default_value = "300", value_parser = seconds)]
    deadline: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct ReceiveArgs {
    /// Address and port to listen on
    bind: SocketAddr,
    /// Seconds to wait for the first connection
    #[arg(long, default_value = "30", value_parser = seconds)]
    contact: Duration,
    /// Seconds without any progress after which the run has failed
    #[arg(long, default_value = "20", value_parser = seconds)]
    stall: Duration,
    /// Seconds after which the run has failed, however far it is
    #[arg(long, default_value = "300", value_parser = seconds)]
    deadline: Duration,
}

/// The result of one side, all streams together.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    role: &'static str,
    ok: bool,
    bytes: u64,
    seconds: f64,
    gbit_per_s: f64,
    streams: u16,
    /// Segments that this namespace retransmitted during the run.
    retransmits: u64,
    /// The longest time without progress on any one stream.
    longest_pause_ms: f64,
    /// SHA-256 of the stream, or of the streams' hashes in order; absent without `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

impl Report for Outcome {
    fn ok(&self) -> bool {
        self.ok
    }
}

/// The first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hello {
    verify: bool,
    streams: u16,
    index: u16,
    seed: u64,
}

impl Hello {
    const LEN: usize = 24;
    const MAGIC: [u8; 8] = *b"skytcp\0\x01";

    fn emit(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&Self::MAGIC);
        out[8] = u8::from(self.verify);
        out[10..12].copy_from_slice(&self.streams.to_be_bytes());
        out[12..14].copy_from_slice(&self.index.to_be_bytes());
        out[16..].copy_from_slice(&self.seed.to_be_bytes());
        out
    }

    fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [magic @ .., b8, _, s0, s1, i0, i1, _, _, d0, d1, d2, d3, d4, d5, d6, d7] = bytes;
        let hello = Self {
            verify: *b8 == 1,
            streams: u16::from_be_bytes([*s0, *s1]),
            index: u16::from_be_bytes([*i0, *i1]),
            seed: u64::from_be_bytes([*d0, *d1, *d2, *d3, *d4, *d5, *d6, *d7]),
        };
        let known = *magic == Self::MAGIC
            && (1..=MAX_STREAMS).contains(&hello.streams)
            && hello.index < hello.streams;
        known.then_some(hello)
    }
}

/// The receiver's answer at the end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Receipt {
    bytes: u64,
    /// Position of the first wrong byte, `u64::MAX` if none.
    wrong_at: u64,
    sha256: [u8; 32],
}

impl Receipt {
    const LEN: usize = 48;

    fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.bytes.to_be_bytes());
        out[8..16].copy_from_slice(&self.wrong_at.to_be_bytes());
        out[16..].copy_from_slice(&self.sha256);
        out
    }

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let (numbers, sha256) = bytes.split_at(16);
        let (count, wrong_at) = numbers.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| (n << 8) | u64::from(*b));
        let mut hash = [0; 32];
        hash.copy_from_slice(sha256);
        Self { bytes: number(count), wrong_at: number(wrong_at), sha256: hash }
    }
}

/// What one stream came to on one side.
struct Stream {
    bytes: u64,
    longest_pause: Duration,
    sha256: [u8; 32],
    error: Option<String>,
}

pub(super) fn send(args: &SendArgs) -> Result<Outcome, Error> {
    let retransmits = retransmitted_segments();
    let deadline = Instant::now() + args.deadline;
    let seed = rand::random();
    let mut connections = Vec::with_capacity(usize::from(args.streams));
    for index in 0..args.streams {
        let mut connection = connect(args.to, args.contact)?;
        connection
            .set_read_timeout(nonzero(args.stall))
            .and_then(|()| connection.set_write_timeout(nonzero(args.stall)))
            .and_then(|()| connection.set_nodelay(args.odd_sizes))
            .map_err(Error::socket("prepare the connection"))?;
        let hello = Hello { verify: args.verify, streams: args.streams, index, seed };
        connection.write_all(&hello.emit()).map_err(Error::socket("send the greeting"))?;
        connections.push((hello, connection));
    }

    let interrupt = &Interrupt::begin();
    let started = Instant::now();
    let streams: Vec<Stream> = thread::scope(|scope| {
        let running: Vec<_> = connections
            .into_iter()
            .map(|(hello, connection)| {
                let end = match args.seconds {
                    Some(time) => End::At((started + time).min(deadline)),
                    None => End::After(share(args.bytes.unwrap_or(0), args.streams, hello.index)),
                };
                let watch = interrupt.watch();
                scope.spawn(move || {
                    send_stream(connection, hello, (end, watch), args.odd_sizes, deadline)
                })
            })
            .collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut outcome = Outcome::of("sender", &streams, started.elapsed(), args.verify);
    outcome.ok &= streams.len() == usize::from(args.streams);
    outcome.retransmits = retransmitted_segments().saturating_sub(retransmits);
    Ok(outcome)
}

/// When a stream is over.
#[derive(Clone, Copy)]
enum End {
    After(u64),
    At(Instant),
}

/// The part of `bytes` that stream `index` of `streams` carries.
fn share(bytes: u64, streams: u16, index: u16) -> u64 {
    let (streams, index) = (u64::from(streams), u64::from(index));
    bytes / streams + u64::from(index < bytes % streams)
}

fn connect(to: SocketAddr, contact: Duration) -> Result<TcpStream, Error> {
    let until = Instant::now() + contact;
    loop {
        // Attempts are short, so that one lost SYN does not cost TCP's whole second.
        match TcpStream::connect_timeout(&to, Duration::from_millis(250)) {
            Ok(stream) => return Ok(stream),
            Err(source) if Instant::now() < until => {
                if source.kind() != ErrorKind::TimedOut {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            Err(last) => {
                return Err(Error::Contact {
                    address: to,
                    seconds: contact.as_secs_f64(),
                    last: last.to_string(),
                });
            }
        }
    }
}

fn send_stream(
    mut connection: TcpStream,
    hello: Hello,
    (end, mut watch): (End, Watch<'_>),
    odd_sizes: bool,
    deadline: Instant,
) -> Stream {
    let seed = hello.seed.wrapping_add(u64::from(hello.index));
    let mut buffer = vec![0; BUFFER_SIZE];
    pattern::fill(seed, 0, &mut buffer);
    let mut hash = Sha256::new();
    let mut pace = Pace::new();
    let mut sent = 0_u64;
    let mut sizes = ODD_SIZES.iter().cycle();
    let mut error = None;
    loop {
        let size = if odd_sizes { sizes.next().copied().unwrap_or(1) } else { BUFFER_SIZE };
        let now = pace.step();
        let size = match end {
            _ if watch.over(now) => 0,
            End::After(bytes) => size.min(usize::try_from(bytes - sent).unwrap_or(size)),
            End::At(instant) if now >= instant => 0,
            End::At(_) => size,
        };
        if size == 0 {
            break;
        }
        if now >= deadline {
            error = Some(format!("stream {}: out of time after {sent} bytes", hello.index));
            break;
        }
        let piece = &mut buffer[..size.min(BUFFER_SIZE)];
        if hello.verify {
            pattern::fill(seed, sent, piece);
            hash.update(&*piece);
        }
        if let Err(err) = connection.write_all(piece) {
            error = Some(format!("stream {}: write after {sent} bytes: {err}", hello.index));
            break;
        }
        sent += size as u64;
    }
    let sha256: [u8; 32] = hash.finalize().into();
    let error = error.or_else(|| {
        let receipt = connection.shutdown(Shutdown::Write).and_then(|()| {
            let mut bytes = [0; Receipt::LEN];
            connection.read_exact(&mut bytes).map(|()| Receipt::parse(&bytes))
        });
        match receipt {
            Err(err) => Some(format!("stream {}: no receipt: {err}", hello.index)),
            Ok(receipt) => disagreement(hello, sent, &sha256, &receipt),
        }
    });
    Stream { bytes: sent, longest_pause: pace.longest, sha256, error }
}

fn disagreement(hello: Hello, sent: u64, sha256: &[u8; 32], receipt: &Receipt) -> Option<String> {
    let index = hello.index;
    if receipt.bytes != sent {
        Some(format!("stream {index}: sent {sent} bytes, {} arrived", receipt.bytes))
    } else if hello.verify && receipt.wrong_at != u64::MAX {
        Some(format!("stream {index}: wrong from byte {}", receipt.wrong_at))
    } else if hello.verify && receipt.sha256 != *sha256 {
        Some(format!("stream {index}: the hashes differ"))
    } else {
        None
    }
}

pub(super) fn receive(args: &ReceiveArgs) -> Result<Outcome, Error> {
    let listener = TcpListener::bind(args.bind)
        .map_err(|source| Error::Bind { address: args.bind, source })?;
    receive_on(&listener, args)
}

fn receive_on(listener: &TcpListener, args: &ReceiveArgs) -> Result<Outcome, Error> {
    let retransmits = retransmitted_segments();
    let begun = Instant::now();
    let first = accept(listener, args, begun + args.contact, args.contact)?;
    let deadline = Instant::now() + args.deadline;
    let started = Instant::now();
    let (expected, verify) = (first.0.streams, first.0.verify);
    let streams = thread::scope(|scope| {
        let mut running = Vec::with_capacity(usize::from(expected));
        let mut next = Some(first);
        while let Some((hello, connection)) = next.take() {
            running.push(scope.spawn(move || receive_stream(connection, hello, deadline)));
            if running.len() < usize::from(expected) {
                next = Some(accept(listener, args, started + args.stall, args.stall)?);
            }
        }
        let streams = running.into_iter().filter_map(|thread| thread.join().ok());
        Ok::<Vec<Stream>, Error>(streams.collect())
    })?;
    let mut outcome = Outcome::of("receiver", &streams, started.elapsed(), verify);
    outcome.ok &= streams.len() == usize::from(expected);
    outcome.retransmits = retransmitted_segments().saturating_sub(retransmits);
    Ok(outcome)
}

/// Accepts one connection that greets properly; others (a port scan, a probe) are closed.
fn accept(
    listener: &TcpListener,
    args: &ReceiveArgs,
    until: Instant,
    allowed: Duration,
) -> Result<(Hello, TcpStream), Error> {
    listener.set_nonblocking(true).map_err(Error::socket("prepare the listener"))?;
    loop {
        match listener.accept() {
            Ok((mut connection, _)) => {
                let mut bytes = [0; Hello::LEN];
                let read = connection
                    .set_nonblocking(false)
                    .and_then(|()| connection.set_read_timeout(nonzero(args.stall)))
                    .and_then(|()| connection.read_exact(&mut bytes));
                if let (Ok(()), Some(hello)) = (read, Hello::parse(&bytes)) {
                    return Ok((hello, connection));
                }
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(source) => return Err(Error::Socket { operation: "accept", source }),
        }
        if Instant::now() >= until {
            return Err(Error::TimedOut { seconds: allowed.as_secs_f64(), what: "a sender" });
        }
    }
}

fn receive_stream(mut connection: TcpStream, hello: Hello, deadline: Instant) -> Stream {
    let seed = hello.seed.wrapping_add(u64::from(hello.index));
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut hash = Sha256::new();
    let mut pace = Pace::new();
    let mut received = 0_u64;
    let mut wrong_at = None;
    let mut error = None;
    loop {
        let len = match connection.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(err) if err.kind() == ErrorKind::Interrupted => continue,
            Err(err) => {
                error = Some(format!("stream {}: read after {received}: {err}", hello.index));
                break;
            }
        };
        let now = pace.step();
        if hello.verify {
            let piece = &buffer[..len];
            if wrong_at.is_none() {
                wrong_at =
                    pattern::first_difference(seed, received, piece).map(|at| received + at as u64);
            }
            hash.update(piece);
        }
        received += len as u64;
        if now >= deadline {
            error = Some(format!("stream {}: out of time after {received} bytes", hello.index));
            break;
        }
    }
    let sha256 = hash.finalize().into();
    let receipt = Receipt { bytes: received, wrong_at: wrong_at.unwrap_or(u64::MAX), sha256 };
    // A sender whose data arrived wrong gets its receipt too: it must learn of it.
    let error = error
        .or_else(|| {
            let sent = connection.write_all(&receipt.emit());
            sent.err().map(|err| format!("stream {}: cannot answer: {err}", hello.index))
        })
        .or_else(|| wrong_at.map(|at| format!("stream {}: wrong from byte {at}", hello.index)));
    Stream { bytes: received, longest_pause: pace.longest, sha256, error }
}

/// Watches the time between steps.
struct Pace {
    last: Instant,
    longest: Duration,
}

impl Pace {
    fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO }
    }

    /// Takes note of progress and returns the time of it.
    fn step(&mut self) -> Instant {
        let now = Instant::now();
        self.longest = self.longest.max(now.duration_since(self.last));
        self.last = now;
        now
    }
}

impl Outcome {
    fn of(role: &'static str, streams: &[Stream], elapsed: Duration, verify: bool) -> Self {
        let bytes = streams.iter().map(|s| s.bytes).sum();
        let errors: Vec<_> = streams.iter().filter_map(|s| s.error.clone()).collect();
        let sha256 = match streams {
            [only] => only.sha256,
            many => {
                // Streams end in any order; their hashes are put in one that both sides share.
                let mut hashes: Vec<_> = many.iter().map(|s| s.sha256).collect();
                hashes.sort_unstable();
                Sha256::digest(hashes.concat()).into()
            }
        };
        let longest = streams.iter().map(|s| s.longest_pause).max().unwrap_or_default();
        Self {
            role,
            ok: errors.is_empty() && !streams.is_empty(),
            bytes,
            seconds: elapsed.as_secs_f64(),
            gbit_per_s: gbit_per_s(bytes, elapsed),
            streams: u16::try_from(streams.len()).unwrap_or(u16::MAX),
            retransmits: 0,
            longest_pause_ms: longest.as_secs_f64() * 1e3,
            sha256: verify.then(|| sha256.iter().map(|byte| format!("{byte:02x}")).collect()),
            errors,
        }
    }
}

/// A socket timeout of zero is refused by the standard library; it means "no waiting" here.
fn nonzero(time: Duration) -> Option<Duration> {
    Some(time.max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(bind: &str, streams: u16, verify: bool, odd_sizes: bool) -> (Outcome, Outcome) {
        let listener = TcpListener::bind(bind).unwrap();
        let second = Duration::from_secs(10);
        let receive_args = ReceiveArgs {
            bind: listener.local_addr().unwrap(),
            contact: second,
            stall: second,
            deadline: second,
        };
        let send_args = SendArgs {
            to: receive_args.bind,
            bytes: Some(3_000_001),
            seconds: None,
            streams,
            verify,
            odd_sizes,
            contact: second,
            stall: second,
            deadline: second,
        };
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive_on(&listener, &receive_args).unwrap());
            let sender = send(&send_args).unwrap();
            (sender, receiver.join().unwrap())
        })
    }

    #[test]
    fn a_verified_stream_arrives_with_the_same_hash() {
        let (sender, receiver) = transfer("127.0.0.1:0", 1, true, true);
        assert!(sender.ok && receiver.ok, "{sender:?} {receiver:?}");
        assert_eq!(sender.bytes, 3_000_001);
        assert_eq!(receiver.bytes, 3_000_001);
        assert!(sender.sha256.is_some());
        assert_eq!(sender.sha256, receiver.sha256);
    }

    #[test]
    fn streams_over_ipv6_share_the_bytes() {
        let (sender, receiver) = transfer("[::1]:0", 4, true, false);
        assert!(sender.ok && receiver.ok, "{sender:?} {receiver:?}");
        assert_eq!((sender.bytes, receiver.bytes), (3_000_001, 3_000_001));
        assert_eq!((sender.streams, receiver.streams), (4, 4));
        assert_eq!(sender.sha256, receiver.sha256);
    }

    #[test]
    fn without_verification_nothing_is_hashed() {
        let (sender, receiver) = transfer("127.0.0.1:0", 2, false, false);
        assert!(sender.ok && receiver.ok, "{sender:?} {receiver:?}");
        assert!(sender.sha256.is_none() && receiver.sha256.is_none());
    }

    #[test]
    fn a_wrong_byte_is_reported_by_both_sides() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let second = Duration::from_secs(10);
        let args = ReceiveArgs { bind: address, contact: second, stall: second, deadline: second };
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive_on(&listener, &args).unwrap());
            let mut connection = TcpStream::connect(address).unwrap();
            let hello = Hello { verify: true, streams: 1, index: 0, seed: 5 };
            connection.write_all(&hello.emit()).unwrap();
            let mut data = vec![0; 10_000];
            pattern::fill(5, 0, &mut data);
            data[7777] ^= 1;
            connection.write_all(&data).unwrap();
            connection.shutdown(Shutdown::Write).unwrap();
            let mut bytes = [0; Receipt::LEN];
            connection.read_exact(&mut bytes).unwrap();
            assert_eq!(Receipt::parse(&bytes).wrong_at, 7777);
            assert!(!receiver.join().unwrap().ok);
        });
    }

    #[test]
    fn greetings_and_receipts_round_trip() {
        let hello = Hello { verify: true, streams: 256, index: 255, seed: 0x0102_0304_0506_0708 };
        assert_eq!(Hello::parse(&hello.emit()), Some(hello));
        assert_eq!(Hello::parse(&[0xa5; Hello::LEN]), None);
        let receipt = Receipt { bytes: 1 << 40, wrong_at: 77, sha256: [3; 32] };
        assert_eq!(Receipt::parse(&receipt.emit()), receipt);
    }

    #[test]
    fn shares_add_up() {
        let total: u64 = (0..7).map(|index| share(1_000_003, 7, index)).sum();
        assert_eq!(total, 1_000_003);
    }

    #[test]
    fn nobody_listening_is_a_contact_error() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let err = connect(free, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(err, Error::Contact { .. }), "{err}");
    }
}

//! Round trips of one small message at a time, over TCP and UDP.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::{Error, Report, RoundTrips, seconds};

const MAX_SIZE: usize = 1024;
/// Untimed exchanges before the measurement, so that neighbors are known and queues warm.
const WARM_UP: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address and port of `pong`
    to: SocketAddr,
    /// TCP or UDP
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// Exchanges to measure
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// Bytes of one message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=MAX_SIZE as i64))]
    size: u16,
    /// Seconds to wait for `pong` to answer first
    #[arg(long, default_value = "10", value_parser = seconds)]
    contact: Duration,
    /// Seconds after which the measurement ends, however far it is
    #[arg(long, default_value = "60", value_parser = seconds)]
    deadline: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct PongArgs {
    /// Address and port to answer on, TCP and UDP
    bind: SocketAddr,
    /// Seconds to answer for
    #[arg(long, default_value = "60", value_parser = seconds)]
    seconds: Duration,
}

#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    ok: bool,
    transport: Transport,
    exchanges: usize,
    lost: u64,
    rtt_us: RoundTrips,
}

impl Report for Outcome {
    fn ok(&self) -> bool {
        self.ok
    }
}

#[derive(Debug, Serialize)]
pub(super) struct PongOutcome {
    ok: bool,
    answered: u64,
}

impl Report for PongOutcome {
    fn ok(&self) -> bool {
        self.ok
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome, Error> {
    let mut exchange: Box<dyn Exchange> = match args.transport {
        Transport::Tcp => Box::new(connect(args)?),
        Transport::Udp => Box::new(open(args)?),
    };
    let mut message = vec![0; usize::from(args.size)];
    let mut trips = Vec::with_capacity(args.count as usize);
    let deadline = Instant::now() + args.deadline;
    let mut lost = 0;
    for number in 0..WARM_UP + u64::from(args.count) {
        if let Some((head, _)) = message.split_first_chunk_mut::<8>() {
            *head = number.to_be_bytes();
        }
        let begun = Instant::now();
        if exchange.once(&message).map_err(Error::socket("exchange a message"))? {
            if number >= WARM_UP {
                trips.push(begun.elapsed());
            }
        } else {
            lost += 1;
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(Outcome {
        ok: trips.len() == args.count as usize && lost == 0,
        transport: args.transport,
        exchanges: trips.len(),
        lost,
        rtt_us: RoundTrips::of(&mut trips),
    })
}

/// Sends a message and waits for it to come back; false if it was lost.
trait Exchange {
    fn once(&mut self, message: &[u8]) -> io::Result<bool>;
}

struct Stream(TcpStream, [u8; MAX_SIZE]);

impl Exchange for Stream {
    fn once(&mut self, message: &[u8]) -> io::Result<bool> {
        self.0.write_all(message)?;
        let answer = &mut self.1[..message.len().min(MAX_SIZE)];
        self.0.read_exact(answer)?;
        if answer == message { Ok(true) } else { Err(io::Error::other("a wrong answer")) }
    }
}

struct Datagrams(UdpSocket, [u8; MAX_SIZE]);

impl Exchange for Datagrams {
    fn once(&mut self, message: &[u8]) -> io::Result<bool> {
        self.0.send(message)?;
        loop {
            match self.0.recv(&mut self.1) {
                Ok(len) if self.1.get(..len) == Some(message) => return Ok(true),
                // The late answer to an earlier message.
                Ok(_) => {}
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(err) => return Err(err),
            }
        }
    }
}

fn connect(args: &Args) -> Result<Stream, Error> {
    let until = Instant::now() + args.contact;
    loop {
        match TcpStream::connect_timeout(&args.to, Duration::from_millis(250)) {
            Ok(stream) => {
                stream
                    .set_nodelay(true)
                    .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(5))))
                    .map_err(Error::socket("prepare the connection"))?;
                return Ok(Stream(stream, [0; MAX_SIZE]));
            }
            Err(err) if Instant::now() >= until => return Err(no_contact(args, &err)),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn open(args: &Args) -> Result<Datagrams, Error> {
    let any = if args.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(Error::socket("open a socket"))?;
    socket.connect(args.to).map_err(Error::socket("find a route"))?;
    let until = Instant::now() + args.contact;
    let mut datagrams = Datagrams(socket, [0; MAX_SIZE]);
    let limit = |datagrams: &Datagrams, time| {
        datagrams.0.set_read_timeout(Some(time)).map_err(Error::socket("set a time limit"))
    };
    limit(&datagrams, Duration::from_millis(50))?;
    loop {
        let err = match datagrams.once(&u64::MAX.to_be_bytes()) {
            Ok(true) => {
                limit(&datagrams, Duration::from_millis(500))?;
                return Ok(datagrams);
            }
            Ok(false) => io::Error::from(ErrorKind::TimedOut),
            Err(err) => err,
        };
        if Instant::now() >= until {
            return Err(no_contact(args, &err));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn no_contact(args: &Args, last: &io::Error) -> Error {
    let seconds = args.contact.as_secs_f64();
    Error::Contact { address: args.to, seconds, last: last.to_string() }
}

pub(super) fn pong(args: &PongArgs) -> Result<PongOutcome, Error> {
    let bind = |source| Error::Bind { address: args.bind, source };
    let listener = TcpListener::bind(args.bind).map_err(bind)?;
    let address = listener.local_addr().map_err(Error::socket("read the address"))?;
    let socket = UdpSocket::bind(address).map_err(|source| Error::Bind { address, source })?;
    let until = Instant::now() + args.seconds;
    answer(&listener, &socket, || Instant::now() < until)
}

fn answer(
    listener: &TcpListener,
    socket: &UdpSocket,
    on: impl Fn() -> bool,
) -> Result<PongOutcome, Error> {
    let tick = Duration::from_millis(50);
    listener.set_nonblocking(true).map_err(Error::socket("prepare the listener"))?;
    socket.set_read_timeout(Some(tick)).map_err(Error::socket("set a time limit"))?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let datagrams = scope.spawn(|| {
            let mut buffer = [0; MAX_SIZE];
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer)
                    && socket.send_to(&buffer[..len], from).is_ok()
                {
                    answered += 1;
                }
            }
            answered
        });
        let mut streams = Vec::new();
        while on() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let over = &over;
                    streams.push(scope.spawn(move || echo_stream(stream, tick, over)));
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
        over.store(true, Ordering::Relaxed);
        let streams = streams.into_iter().filter_map(|thread| thread.join().ok()).sum::<u64>();
        let answered = streams + datagrams.join().unwrap_or(0);
        Ok(PongOutcome { ok: true, answered })
    })
}

fn echo_stream(mut stream: TcpStream, tick: Duration, over: &AtomicBool) -> u64 {
    let prepared = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.set_read_timeout(Some(tick)));
    if prepared.is_err() {
        return 0;
    }
    let mut buffer = [0; MAX_SIZE];
    let mut answered = 0;
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => match buffer.get(..len).map(|data| stream.write_all(data)) {
                Some(Ok(())) => answered += 1,
                _ => break,
            },
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_transports_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(to).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let pong = scope.spawn(|| {
                let limit = Instant::now() + Duration::from_secs(90);
                let on = || !over.load(Ordering::Relaxed) && Instant::now() < limit;
                answer(&listener, &socket, on).unwrap()
            });
            let outcomes = [Transport::Tcp, Transport::Udp].map(|transport| {
                let most = Duration::from_secs(30);
                run(&Args { to, transport, count: 50, size: 64, contact: most, deadline: most })
            });
            over.store(true, Ordering::Relaxed);
            for outcome in outcomes.map(Result::unwrap) {
                assert!(outcome.ok, "{outcome:?}");
                assert!(outcome.rtt_us.median > 0.0 && outcome.rtt_us.p99 >= outcome.rtt_us.median);
            }
            assert!(pong.join().unwrap().answered >= 140);
        });
    }
}

//! The receiver: answers, counts, and closes the account at the sender's word.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};

use super::{HEADER_LEN, Header, Kind, MAX_SEQUENCE, Received, STRIDE, VERIFY};
use crate::traffic::{Error, pattern, seconds};

const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

#[derive(Debug, clap::Args)]
pub(in crate::traffic) struct ReceiveArgs {
    /// Address and port to bind
    pub(super) bind: SocketAddr,
    /// Take trains of datagrams with UDP_GRO, as QUIC stacks do
    #[arg(long)]
    pub(super) gro: bool,
    /// Seconds to wait for the sender
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub(super) contact: Duration,
    /// Seconds of silence after which the sender is taken for gone
    #[arg(long, default_value = "20", value_parser = seconds)]
    pub(super) stall: Duration,
    /// Seconds after which the run ends, however far it is
    #[arg(long, default_value = "300", value_parser = seconds)]
    pub(super) deadline: Duration,
}

pub(in crate::traffic) fn receive(args: &ReceiveArgs) -> Result<Received, Error> {
    let socket =
        UdpSocket::bind(args.bind).map_err(|source| Error::Bind { address: args.bind, source })?;
    receive_on(&socket, args)
}

pub(super) fn receive_on(socket: &UdpSocket, args: &ReceiveArgs) -> Result<Received, Error> {
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

//! Streams of datagrams or frames as nobody decent sends them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::inject::{FrameSocket, protocol_socket};
use crate::netns::Netns;

/// Datagrams or frames between two looks at the clock.
const BURST: u64 = 32;

/// Numbers that look random and are the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Begins a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() >> 33).unwrap_or(0) % limit.max(1)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.number().to_be_bytes()[0]
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let drawn = self.number().to_ne_bytes();
            piece.copy_from_slice(&drawn[..piece.len()]);
        }
    }

    /// One of several.
    pub fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// A running stream; it ends when this is stopped or dropped.
#[derive(Debug)]
pub struct Attack {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Attack {
    /// Sends datagrams from `from` (any port) in `netns` to `to`, each made by `make` into an empty
    /// buffer; at most `rate` per second if that is not 0, at most `count` if that is not 0. With
    /// `train` what is made is cut into datagrams of that many bytes by the kernel, so that it
    /// arrives in one piece.
    ///
    /// # Panics
    ///
    /// If no socket can be opened.
    #[track_caller]
    pub fn datagrams(
        netns: &Netns,
        (from, to): (IpAddr, SocketAddr),
        pace: Pace,
        train: Option<u16>,
        mut make: impl FnMut(&mut Vec<u8>) + Send + 'static,
    ) -> Self {
        let socket = netns.enter(|| {
            let socket = UdpSocket::bind((from, 0)).expect("the host has the address");
            socket.connect(to).expect("the host has a route");
            socket
        });
        if let Some(size) = train {
            setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(size))
                .expect("the kernel has UDP segmentation");
        }
        Self::run(pace, move |buffer| {
            make(buffer);
            match socket.send(buffer) {
                Ok(_) => true,
                // Refused by ICMP, or no room: it is not counted.
                Err(err) if transient(&err) => false,
                Err(err) => panic!("cannot send {} bytes: {err}", buffer.len()),
            }
        })
    }

    /// Sends frames out of an interface, each made by `make` into an empty buffer.
    ///
    /// # Panics
    ///
    /// If the interface is not there.
    #[track_caller]
    pub fn frames(
        netns: &Netns,
        interface: &str,
        pace: Pace,
        mut make: impl FnMut(&mut Vec<u8>) + Send + 'static,
    ) -> Self {
        let socket = FrameSocket::open(netns, interface);
        Self::run(pace, move |buffer| {
            make(buffer);
            socket.send(buffer).is_ok()
        })
    }

    /// Sends IPv4 packets with a payload of any `protocol`, each made by `make` into an empty buffer.
    ///
    /// # Panics
    ///
    /// If no socket can be opened.
    #[track_caller]
    pub fn packets(
        netns: &Netns,
        (from, to): (Ipv4Addr, Ipv4Addr),
        protocol: u8,
        pace: Pace,
        mut make: impl FnMut(&mut Vec<u8>) + Send + 'static,
    ) -> Self {
        let socket = protocol_socket(netns, protocol, from);
        let to = socket2::SockAddr::from(SocketAddr::from((to, 0)));
        Self::run(pace, move |buffer| {
            make(buffer);
            match socket.send_to(buffer, &to) {
                Ok(_) => true,
                Err(err) if transient(&err) => false,
                Err(err) => panic!("cannot send {} bytes: {err}", buffer.len()),
            }
        })
    }

    fn run(pace: Pace, mut send: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            let (mut sent, mut tried) = (0_u64, 0_u64);
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) && (pace.count == 0 || tried < pace.count) {
                buffer.clear();
                sent += u64::from(send(&mut buffer));
                tried += 1;
                if pace.rate > 0 && tried % BURST == 0 {
                    let due = Duration::from_micros(tried * 1_000_000 / pace.rate);
                    std::thread::sleep(due.saturating_sub(started.elapsed()));
                }
            }
            sent
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it and says how many were sent.
    ///
    /// # Panics
    ///
    /// If the stream broke off.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().expect("the stream went on"))
    }

    /// Waits until all are sent and says how many that were.
    ///
    /// # Panics
    ///
    /// If the stream broke off.
    pub fn finish(mut self) -> u64 {
        self.thread.take().map_or(0, |thread| thread.join().expect("the stream went on"))
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _: std::thread::Result<u64> = thread.join();
        }
    }
}

/// How fast and how many; 0 is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Per second.
    pub rate: u64,
    /// In all.
    pub count: u64,
}

fn transient(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    ) || err.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32)
}

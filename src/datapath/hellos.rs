//! Hellos of other hosts ([`encap::probe`]) on their way from the workers to the agent.
//!
//! They come as packets of no network, so a look at one costs no packet of a network anything. The
//! queue is bounded; what finds no room is dropped and counted, and the next hello says the same.

use std::net::IpAddr;

use crossbeam_queue::ArrayQueue;
use encap::probe;

/// Hellos that wait: those of a thousand hosts by every way.
pub const CAPACITY: usize = 4096;

/// A packet that may be a hello.
#[derive(Clone, Copy, Debug)]
pub struct Caught {
    /// The outer source.
    pub from: IpAddr,
    /// Whether it came in UDP; else in IP.
    pub in_udp: bool,
    len: u8,
    bytes: [u8; probe::PACKET_MAX],
}

const _: () = assert!(probe::PACKET_MAX <= u8::MAX as usize);

impl Caught {
    /// The inner packet.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// What became of a packet that belongs to no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// The agent gets it.
    Taken,
    /// It is no hello.
    Stranger,
    /// There is no room.
    Full,
}

/// The queue.
#[derive(Debug)]
pub struct Hellos(ArrayQueue<Caught>);

impl Default for Hellos {
    fn default() -> Self {
        Self(ArrayQueue::new(CAPACITY))
    }
}

impl Hellos {
    /// Takes `packet`, which came from the VTEP at `from`, if it looks like a hello.
    pub fn offer(&self, from: IpAddr, in_udp: bool, packet: &[u8]) -> Offered {
        let mut bytes = [0; probe::PACKET_MAX];
        let Some(room) = bytes.get_mut(..packet.len()) else { return Offered::Stranger };
        if probe::packet(packet).is_none() {
            return Offered::Stranger;
        }
        room.copy_from_slice(packet);
        let caught = Caught { from, in_udp, len: packet.len() as u8, bytes };
        match self.0.push(caught) {
            Ok(()) => Offered::Taken,
            Err(_) => Offered::Full,
        }
    }

    /// Takes all that wait now.
    pub fn drain(&self) -> impl Iterator<Item = Caught> {
        (0..CAPACITY).map_while(|_| self.0.pop())
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

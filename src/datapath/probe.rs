//! Probes of the tunnels between hosts: packets from VTEP to VTEP inside the tunnel, which no network
//! has. They are for the agent, which learns by them what gets through.

use std::net::IpAddr;

use crossbeam_queue::ArrayQueue;
use encap::udp;
use fdb::Via;

use super::packet::Packet;

/// Bytes of a probe's payload at most; a longer one is cut.
pub const PAYLOAD: usize = 64;
/// Probes that wait for the agent: those of a thousand hosts by every way. Those of more are dropped and
/// counted, and the next ones say the same.
pub const CAPACITY: usize = 4096;

/// A received probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The VTEP that sent it, by the outer source.
    pub source: IpAddr,
    /// How it came.
    pub via: Via,
    len: usize,
    bytes: [u8; PAYLOAD],
}

impl Probe {
    /// What it carries.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Probes on their way from the workers to the agent.
#[derive(Debug)]
pub struct Probes(ArrayQueue<Probe>);

impl Default for Probes {
    fn default() -> Self {
        Self(ArrayQueue::new(CAPACITY))
    }
}

impl Probes {
    /// Takes one; whether there was room.
    pub(super) fn push(&self, source: Option<IpAddr>, via: Via, payload: &[u8]) -> bool {
        let Some(source) = source else { return false };
        let mut probe = Probe { source, via, len: 0, bytes: [0; PAYLOAD] };
        for (to, from) in probe.bytes.iter_mut().zip(payload) {
            *to = *from;
            probe.len += 1;
        }
        self.0.push(probe).is_ok()
    }

    /// Takes what is waiting.
    pub fn drain(&self) -> impl Iterator<Item = Probe> + '_ {
        std::iter::from_fn(|| self.0.pop())
    }
}

/// The payload of a probe: to the port, from an address of the host that the outer packet came from, to
/// an address that others know us by. Neither need be an outer one: on the way addresses may be
/// translated, and a host may send from another one than it is reached at.
pub(super) fn of<'a>(
    packet: &Packet,
    bytes: &'a [u8],
    own: &[IpAddr],
    is_of_sender: impl FnOnce(IpAddr) -> bool,
) -> Option<&'a [u8]> {
    if packet.udp_port(bytes) != Some(encap::probe::PORT)
        || !own.contains(&packet.destination)
        || !is_of_sender(packet.source)
    {
        return None;
    }
    bytes.get(packet.header_len + udp::HEADER_LEN..packet.len)
}

//! Probes of the tunnels between hosts: packets from VTEP to VTEP inside the tunnel, which no network
//! has. They are for the agent, which learns by them what gets through.

use std::net::IpAddr;

use crossbeam_queue::ArrayQueue;
use encap::udp;
use fdb::Via;

use super::packet::Packet;

/// The UDP port inside.
pub const PORT: u16 = 4759;
/// Bytes of a probe's payload at most; a longer one is cut.
pub const PAYLOAD: usize = 64;
/// Probes that wait for the agent; those of more are lost, as on the wire.
pub const CAPACITY: usize = 256;

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
    pub(super) fn push(&self, source: Option<IpAddr>, via: Via, payload: &[u8]) {
        let Some(source) = source else { return };
        let mut probe = Probe { source, via, len: 0, bytes: [0; PAYLOAD] };
        for (to, from) in probe.bytes.iter_mut().zip(payload) {
            *to = *from;
            probe.len += 1;
        }
        let _ = self.0.push(probe);
    }

    /// Takes what is waiting.
    pub fn drain(&self) -> impl Iterator<Item = Probe> + '_ {
        std::iter::from_fn(|| self.0.pop())
    }
}

/// The payload of a probe: from the sender of the outer packet, to a VTEP address of ours, to the port.
pub(super) fn of<'a>(
    packet: &Packet,
    bytes: &'a [u8],
    outer: Option<IpAddr>,
    own: &[(IpAddr, u16)],
) -> Option<&'a [u8]> {
    if Some(packet.source) != outer
        || packet.udp_port(bytes) != Some(PORT)
        || !own.iter().any(|(address, _)| *address == packet.destination)
    {
        return None;
    }
    bytes.get(packet.header_len + udp::HEADER_LEN..packet.len)
}

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

use serde::{Deserialize, Serialize};

use super::Report;

mod receive;
mod send;

pub(super) use receive::{ReceiveArgs, receive};
pub(super) use send::{SendArgs, send};

const MAGIC: [u8; 4] = *b"skud";
const HEADER_LEN: usize = 16;
/// Sequence numbers that the receiver keeps apart; later ones count as corrupt.
const MAX_SEQUENCE: u64 = 1 << 30;
/// Flag: the payload is the checked sequence.
const VERIFY: u8 = 1;
/// Distance between the payloads of two datagrams in the checked sequence.
const STRIDE: u64 = 1 << 16;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_strangers_are_refused() {
        let header = Header { kind: Kind::End, flags: 1, session: 77, number: u64::MAX - 5 };
        assert_eq!(Header::parse(&header.emit()), Some((header, &[][..])));
        assert_eq!(Header::parse(&[0xa5; 64]), None);
        assert_eq!(Header::parse(b"skud"), None);
    }
}

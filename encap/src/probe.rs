//! What two hosts send each other to learn which ways lead from one to the other.
//!
//! A hello is a whole IP packet with UDP inside, between addresses of the two hosts, so that it goes
//! every way that packets of a network go: plainly, in IP, or in UDP. Each says by which way it is
//! sent, and which hellos of the other host arrived by each way. All numbers are big-endian.
//!
//! ```text
//!    0  "SKYP"       4  version 1      5  way         6  pause to the next hello, in ms
//!    8  sender (8)                    16  run of the sender (8)
//!   24  sequence number
//!   28  for each way: the last number heard (4), how long ago in ms (4)
//! ```

use core::net::IpAddr;

use crate::checksum::Sum;
use crate::{Link, ipv4, ipv6, layers, udp};

/// UDP port of hellos, in the packet that is carried.
pub const PORT: u16 = 4759;
/// Bytes of a hello behind its UDP header.
pub const PAYLOAD_LEN: usize = 28 + 8 * Way::COUNT;
/// Bytes of the longest packet with a hello.
pub const PACKET_MAX: usize = ipv6::HEADER_LEN + udp::HEADER_LEN + PAYLOAD_LEN;

const MAGIC: [u8; 4] = *b"SKYP";
const VERSION: u8 = 1;
const TTL: u8 = 64;
/// An age that says: never.
const NEVER: u32 = u32::MAX;

/// How a packet gets to another host, the cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// As it is, by the routes of the kernel.
    Direct,
    /// In IP, protocol 4 or 41.
    IpIp,
    /// In UDP.
    Udp,
}

impl Way {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// All, the cheapest first.
    pub const ALL: [Self; Self::COUNT] = [Self::Direct, Self::IpIp, Self::Udp];

    /// A dense number below [`Self::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Direct => 0,
            Self::IpIp => 1,
            Self::Udp => 2,
        }
    }

    /// Its stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::IpIp => "ipip",
            Self::Udp => "ipudp",
        }
    }
}

/// The last hello that arrived by one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its number.
    pub sequence: u32,
    /// How long ago it arrived when this was said, in milliseconds.
    pub age_ms: u32,
}

/// What a hello says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// By which way it is sent.
    pub way: Way,
    /// When the next one comes, in milliseconds.
    pub pause_ms: u16,
    /// Identity of the sender.
    pub sender: u64,
    /// Which run of the sender; its numbers are of this run.
    pub run: u64,
    /// Its number among those of this way.
    pub sequence: u32,
    /// What arrived from the receiver, by the numbers of the ways.
    pub heard: [Option<Heard>; Way::COUNT],
}

impl Hello {
    /// Writes the packet that says so from `source`, with any UDP port, to `destination` and gives its
    /// length; `None` when the two are not of one family or `out` has less than [`PACKET_MAX`] bytes.
    #[must_use]
    pub fn emit(
        &self,
        (source, port): (IpAddr, u16),
        destination: IpAddr,
        out: &mut [u8],
    ) -> Option<usize> {
        let len = udp::HEADER_LEN + PAYLOAD_LEN;
        let (pseudo, start) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4::Header {
                    tos: 0,
                    ident: self.sequence as u16,
                    dont_fragment: true,
                    ttl: TTL,
                    protocol: udp::PROTOCOL,
                    source,
                    destination,
                };
                let (room, _) = out.split_first_chunk_mut()?;
                *room = header.emit(len)?;
                let sum = Sum::of(&source.octets()).bytes(&destination.octets());
                (sum, ipv4::HEADER_LEN)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6::Header {
                    traffic_class: 0,
                    flow_label: 0,
                    next_header: udp::PROTOCOL,
                    hop_limit: TTL,
                    source,
                    destination,
                };
                let (room, _) = out.split_first_chunk_mut()?;
                *room = header.emit(len)?;
                let sum = Sum::of(&source.octets()).bytes(&destination.octets());
                (sum, ipv6::HEADER_LEN)
            }
            _ => return None,
        };
        let datagram = out.get_mut(start..start + len)?;
        let (header, payload) = datagram.split_first_chunk_mut::<{ udp::HEADER_LEN }>()?;
        *header = udp::emit(port, PORT, PAYLOAD_LEN)?;
        payload.copy_from_slice(&self.payload());
        let sum = pseudo.u16(u16::from(udp::PROTOCOL)).u16(len as u16).bytes(datagram);
        datagram.get_mut(6..8)?.copy_from_slice(&sum.finish_udp().to_be_bytes());
        Some(start + len)
    }

    /// Its bytes behind the UDP header.
    #[must_use]
    pub fn payload(&self) -> [u8; PAYLOAD_LEN] {
        let mut out = [0; PAYLOAD_LEN];
        let heard = self.heard.map(|heard| {
            let (sequence, age) = heard.map_or((0, NEVER), |it| (it.sequence, it.age_ms));
            [sequence.to_be_bytes(), age.to_be_bytes()]
        });
        let parts = [
            &MAGIC[..],
            &[VERSION, self.way.index() as u8],
            &self.pause_ms.to_be_bytes(),
            &self.sender.to_be_bytes(),
            &self.run.to_be_bytes(),
            &self.sequence.to_be_bytes(),
            heard.as_flattened().as_flattened(),
        ];
        let mut rest = &mut out[..];
        for part in parts {
            let Some((room, after)) = rest.split_at_mut_checked(part.len()) else { break };
            room.copy_from_slice(part);
            rest = after;
        }
        out
    }

    /// Reads what stands behind a UDP header; `None` when it is no hello, or one of another version.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_be_bytes(*payload.get(at..)?.first_chunk()?));
        let [.., version, way] = payload.first_chunk::<6>()?;
        if !payload.starts_with(&MAGIC) || *version != VERSION {
            return None;
        }
        let mut heard = [None; Way::COUNT];
        for (index, slot) in heard.iter_mut().enumerate() {
            let (sequence, age_ms) = (u32_at(28 + 8 * index)?, u32_at(32 + 8 * index)?);
            *slot = (age_ms != NEVER).then_some(Heard { sequence, age_ms });
        }
        Some(Self {
            way: *Way::ALL.get(usize::from(*way))?,
            pause_ms: u16::from_be_bytes(*payload.get(6..)?.first_chunk()?),
            sender: u64_at(8)?,
            run: u64_at(16)?,
            sequence: u32_at(24)?,
            heard,
        })
    }
}

/// The source, destination and hello of an IP packet; `None` when it holds none. Checksums are
/// verified.
#[must_use]
pub fn packet(bytes: &[u8]) -> Option<(IpAddr, IpAddr, Hello)> {
    let network = layers::Network::parse(Link::None, bytes)?;
    if network.protocol != udp::PROTOCOL || !network.plain || network.fragment {
        return None;
    }
    let (source, destination, pseudo): (IpAddr, IpAddr, Sum) = match network.version {
        layers::Version::V4 => {
            let view = ipv4::Packet::parse(bytes).filter(ipv4::Packet::checksum_verifies)?;
            let (from, to) = (view.source(), view.destination());
            (from.into(), to.into(), Sum::of(&from.octets()).bytes(&to.octets()))
        }
        layers::Version::V6 => {
            let view = ipv6::Packet::parse(bytes)?;
            let (from, to) = (view.source(), view.destination());
            (from.into(), to.into(), Sum::of(&from.octets()).bytes(&to.octets()))
        }
    };
    let datagram = bytes.get(network.l4..network.end)?;
    let view = udp::Datagram::parse(datagram)?;
    let sum = pseudo.u16(u16::from(udp::PROTOCOL)).u16(datagram.len() as u16).bytes(datagram);
    if view.destination() != PORT || !sum.verifies() {
        return None;
    }
    Some((source, destination, Hello::parse(view.payload())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            way: Way::IpIp,
            pause_ms: 400,
            sender: 0x0123_4567_89ab_cdef,
            run: 7,
            sequence: 0x0102_0304,
            heard: [None, Some(Heard { sequence: 9, age_ms: 17 }), None],
        }
    }

    #[test]
    fn packets_say_what_was_written() {
        let pairs: [(IpAddr, IpAddr); 2] = [
            ([192, 0, 2, 1].into(), [192, 0, 2, 2].into()),
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()),
        ];
        for (source, destination) in pairs {
            let mut out = [0; PACKET_MAX];
            let len = hello().emit((source, PORT), destination, &mut out).unwrap();
            assert_eq!(packet(&out[..len]), Some((source, destination, hello())));
            for at in 0..len {
                let mut bad = out;
                bad[at] ^= 1;
                let read = packet(&bad[..len]);
                // Fields that no checksum covers: traffic class, flow label and hop limit of IPv6.
                let free = source.is_ipv6() && (at < 4 || at == 7);
                assert!(read.is_none() || free, "{at}: {read:?}");
                assert_eq!(packet(&out[..at]), None);
            }
            assert_eq!(hello().emit((source, PORT), destination, &mut out[..len - 1]), None);
        }
        let [(v4, _), (v6, _)] = pairs;
        assert_eq!(hello().emit((v4, PORT), v6, &mut [0; PACKET_MAX]), None);
    }

    #[test]
    fn strangers_are_no_hellos() {
        let payload = hello().payload();
        assert_eq!(Hello::parse(&payload), Some(hello()));
        assert_eq!(Hello::parse(&payload[..PAYLOAD_LEN - 1]), None);
        let longer: Vec<u8> = payload.iter().copied().chain([1, 2]).collect();
        assert_eq!(Hello::parse(&longer), Some(hello()), "a later version may say more");
        for (at, value) in [(0, b'X'), (4, 2), (5, 3)] {
            let mut other = payload;
            other[at] = value;
            assert_eq!(Hello::parse(&other), None);
        }
    }
}

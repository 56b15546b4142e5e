//! ICMP and ICMPv6 echo through a raw socket, shared by `ping` and `probe`.
//!
//! RFC 792 and RFC 4443 section 4: type, code, checksum, identifier, sequence number, data. The
//! kernel fills the ICMPv6 checksum; the IPv4 one is ours. Raw IPv4 sockets deliver the IP header
//! too, raw IPv6 sockets do not.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Error, pattern};

const HEADER_LEN: usize = 8;
/// Largest data of an echo request that both families can carry.
pub(super) const MAX_DATA: usize = 65_535 - 40 - HEADER_LEN;

/// A connected socket that sends echo requests and takes the replies to them.
#[derive(Debug)]
pub(super) struct Echo {
    socket: Socket,
    ipv6: bool,
    identifier: u16,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

/// What a reply was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) sequence: u16,
    /// The data came back as it was sent.
    pub(super) intact: bool,
}

impl Echo {
    pub(super) fn open(address: IpAddr, size: usize) -> Result<Self, Error> {
        let ipv6 = address.is_ipv6();
        let (domain, protocol) =
            if ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))
            .map_err(|source| Error::Icmp { address, source })?;
        // A larger echo than the path takes is fragmented: the default of raw sockets.
        socket.set_send_buffer_size(1 << 18).map_err(Error::socket("size the socket"))?;
        Ok(Self {
            socket,
            ipv6,
            identifier: rand::random(),
            request: vec![0; HEADER_LEN + size.min(MAX_DATA)],
            buffer: vec![0; 1 << 16],
        })
    }

    /// Ties the socket to the destination; fails while there is no route to it.
    pub(super) fn connect(&self, address: IpAddr) -> io::Result<()> {
        self.socket.connect(&SocketAddr::new(address, 0).into())
    }

    pub(super) fn send(&mut self, sequence: u16) -> io::Result<()> {
        let kind = if self.ipv6 { 128 } else { 8 };
        if let Some((head, data)) = self.request.split_first_chunk_mut::<HEADER_LEN>() {
            let [i0, i1] = self.identifier.to_be_bytes();
            let [s0, s1] = sequence.to_be_bytes();
            *head = [kind, 0, 0, 0, i0, i1, s0, s1];
            pattern::fill(u64::from(self.identifier), u64::from(sequence), data);
        }
        if !self.ipv6 {
            let checksum = internet_checksum(&self.request).to_be_bytes();
            self.request[2..4].copy_from_slice(&checksum);
        }
        self.socket.write(&self.request).map(|_| ())
    }

    /// The next reply to one of our requests, `None` if none came within `wait`.
    pub(super) fn receive(&mut self, wait: Duration) -> Result<Option<Reply>, Error> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_micros(1))))
                .map_err(Error::socket("set a time limit"))?;
            match self.socket.read(&mut self.buffer) {
                Ok(len) => {
                    let reply = self.buffer.get(..len).and_then(|packet| self.parse(packet));
                    if reply.is_some() {
                        return Ok(reply);
                    }
                }
                // An ICMP error about an earlier request (no route, no neighbor) is reported here.
                Err(err)
                    if matches!(
                        err.kind(),
                        ErrorKind::HostUnreachable
                            | ErrorKind::NetworkUnreachable
                            | ErrorKind::ConnectionRefused
                            | ErrorKind::Interrupted
                            | ErrorKind::WouldBlock
                            | ErrorKind::TimedOut
                    ) => {}
                Err(err) if err.raw_os_error() == Some(libc::EMSGSIZE) => {}
                Err(source) => return Err(Error::Socket { operation: "receive", source }),
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    fn parse(&self, packet: &[u8]) -> Option<Reply> {
        let (message, wanted) = if self.ipv6 {
            (packet, 129)
        } else {
            (packet.get(usize::from(packet.first()? & 0x0f) * 4..)?, 0)
        };
        let (head, data) = message.split_first_chunk::<HEADER_LEN>()?;
        let [kind, 0, _, _, i0, i1, s0, s1] = *head else { return None };
        if kind != wanted || u16::from_be_bytes([i0, i1]) != self.identifier {
            return None;
        }
        let sequence = u16::from_be_bytes([s0, s1]);
        let intact = message.len() == self.request.len()
            && (self.ipv6 || internet_checksum(message) == 0)
            && pattern::first_difference(u64::from(self.identifier), u64::from(sequence), data)
                .is_none();
        Some(Reply { sequence, intact })
    }
}

/// The checksum of RFC 1071 over `data`, complemented; over data that contains it, 0 if right.
fn internet_checksum(data: &[u8]) -> u16 {
    let mut pairs = data.chunks_exact(2);
    let mut sum: u64 = pairs.by_ref().map(|p| u64::from(p[0]) << 8 | u64::from(p[1])).sum();
    sum += pairs.remainder().first().map_or(0, |last| u64::from(*last) << 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&data), !0xddf2);
        let mut whole = data.to_vec();
        whole.extend((!0xddf2_u16).to_be_bytes());
        assert_eq!(internet_checksum(&whole), 0);
        assert_eq!(internet_checksum(&[0xff]), !0xff00);
    }
}

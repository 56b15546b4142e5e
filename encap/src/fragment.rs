//! Fragments of an IPv4 packet (RFC 791 section 3.2).
//!
//! All have the packet's identification and as much payload as fits, in units of eight bytes; all but
//! the last say that more follow. Options that are not to be copied become no-operations in all but
//! the first, as in Linux, so that every header has one length. A fragment may be cut again.

use crate::bytes::{put_u16, u16_at};
use crate::checksum::Sum;
use crate::ipv4;

const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Bytes that the offset counts.
const UNIT: usize = 8;

/// How a packet is cut. Valid with the packet it was planned for, unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Fragments {
    header_len: usize,
    end: usize,
    /// Payload bytes of each but the last.
    size: usize,
    /// Flags and offset of the packet itself.
    flags: u16,
}

impl Fragments {
    /// Of the packet at the front of `packet` into ones of at most `max` bytes; `None` when it is no
    /// IPv4 packet, must not be cut, or there is no room for a unit of payload.
    #[must_use]
    pub fn plan(packet: &[u8], max: usize) -> Option<Self> {
        let view = ipv4::Packet::parse(packet)?;
        let header_len = view.header_len();
        let size = max.checked_sub(header_len)? / UNIT * UNIT;
        let flags = u16_at(packet, ipv4::field::FLAGS);
        let end = view.total_len();
        let fits = usize::from(flags & OFFSET) + (end - header_len) / UNIT <= usize::from(OFFSET);
        (size != 0 && fits && !view.dont_fragment()).then_some(Self {
            header_len,
            end,
            size,
            flags,
        })
    }

    /// How many, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.end - self.header_len).div_ceil(self.size).max(1)
    }

    /// An upper bound of the bytes of all.
    #[must_use]
    pub fn most_bytes(&self) -> usize {
        self.end + self.count() * self.header_len
    }

    /// Writes fragment `i` of `packet` to the beginning of `out` and gives its length; 0, and writes
    /// nothing, when `i` is not below [`count`](Self::count) or `out` or `packet` is too short.
    pub fn write(&self, i: usize, packet: &[u8], out: &mut [u8]) -> usize {
        let from = self.header_len.saturating_add(i.saturating_mul(self.size));
        let to = from.saturating_add(self.size).min(self.end);
        let len = self.header_len + to.saturating_sub(from);
        let (Some(header), Some(payload), Some(out)) =
            (packet.get(..self.header_len), packet.get(from..to), out.get_mut(..len))
        else {
            return 0;
        };
        if i >= self.count() {
            return 0;
        }
        let (new_header, room) = out.split_at_mut(self.header_len);
        new_header.copy_from_slice(header);
        room.copy_from_slice(payload);
        if i != 0 {
            blank_options(new_header.get_mut(ipv4::HEADER_LEN..).unwrap_or_default());
        }
        let more = if to < self.end { MORE } else { self.flags & MORE };
        let offset = (self.flags & OFFSET) + (i * self.size / UNIT) as u16;
        put_u16(new_header, ipv4::field::TOTAL_LEN, len as u16);
        put_u16(new_header, ipv4::field::FLAGS, (self.flags & !(MORE | OFFSET)) | more | offset);
        put_u16(new_header, ipv4::field::CHECKSUM, 0);
        let check = Sum::of(new_header).finish();
        put_u16(new_header, ipv4::field::CHECKSUM, check);
        len
    }
}

/// Makes no-operations of the options that belong to the first fragment only.
fn blank_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    while let Some(&kind) = options.first() {
        let len = match (kind, options.get(1)) {
            (END, _) => return,
            (NO_OPERATION, _) => 1,
            (_, Some(&len)) if len >= 2 && usize::from(len) <= options.len() => usize::from(len),
            _ => return,
        };
        let (option, rest) = options.split_at_mut(len);
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: usize, dont_fragment: bool) -> Vec<u8> {
        let header = ipv4::Header {
            tos: 5,
            ident: 77,
            dont_fragment,
            ttl: 9,
            protocol: 17,
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
        };
        let mut packet = header.emit(payload).unwrap().to_vec();
        packet.extend((0..payload).map(|at| (at * 7 + at / 256) as u8));
        packet
    }

    fn cut(packet: &[u8], max: usize) -> Vec<Vec<u8>> {
        let fragments = Fragments::plan(packet, max).unwrap();
        let all: Vec<Vec<u8>> = (0..fragments.count())
            .map(|i| {
                let mut out = vec![0; max];
                let len = fragments.write(i, packet, &mut out);
                out.truncate(len);
                out
            })
            .collect();
        assert!(all.iter().map(Vec::len).sum::<usize>() <= fragments.most_bytes());
        assert_eq!(fragments.write(fragments.count(), packet, &mut vec![0; max]), 0);
        assert_eq!(fragments.write(0, packet, &mut [0; 20]), 0);
        all
    }

    /// Puts them together, in any order.
    fn whole(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = vec![0; 0];
        for fragment in fragments.iter().rev() {
            let view = ipv4::Packet::parse(fragment).unwrap();
            assert!(view.checksum_verifies());
            assert_eq!((view.ident(), view.tos(), view.ttl()), (77, 5, 9));
            let at = view.fragment_offset();
            payload.resize(payload.len().max(at + view.payload().len()), 0);
            payload[at..at + view.payload().len()].copy_from_slice(view.payload());
        }
        payload
    }

    #[test]
    fn fragments_hold_the_payload_once_and_fit() {
        for (payload, max) in [(3000, 1480), (1481, 1480), (1460, 1480), (65_000, 28), (8, 1480)] {
            let original = packet(payload, false);
            let fragments = cut(&original, max);
            assert!(fragments.iter().all(|fragment| fragment.len() <= max));
            assert_eq!(whole(&fragments), original[20..]);
            let more = |fragment: &Vec<u8>| u16_at(fragment, ipv4::field::FLAGS) & MORE != 0;
            let (last, others) = fragments.split_last().unwrap();
            assert!(others.iter().all(more) && !more(last));
        }
    }

    #[test]
    fn a_fragment_is_cut_again() {
        let original = packet(3000, false);
        let again: Vec<_> =
            cut(&original, 1480).iter().flat_map(|fragment| cut(fragment, 600)).collect();
        assert_eq!(whole(&again), original[20..]);
        let more = again.iter().filter(|it| u16_at(it, ipv4::field::FLAGS) & MORE == 0);
        assert_eq!(more.count(), 1);
    }

    #[test]
    fn what_must_not_be_cut_is_not() {
        assert!(Fragments::plan(&packet(3000, true), 1480).is_none());
        assert!(Fragments::plan(&packet(3000, false), 27).is_none());
        assert!(Fragments::plan(&[0x60; 100], 1480).is_none());
        let mut beyond = packet(3000, false);
        beyond[6..8].copy_from_slice(&OFFSET.to_be_bytes());
        assert!(Fragments::plan(&beyond, 1480).is_none());
    }

    #[test]
    fn options_are_copied_that_say_so() {
        let mut original = packet(108, false);
        original.splice(20..20, [0x07, 3, 4, 0x82, 4, 1, 2, 0]);
        original[0] = 0x47;
        original[3] = 136;
        let fragments = cut(&original, 80);
        assert_eq!(fragments[0][20..28], [0x07, 3, 4, 0x82, 4, 1, 2, 0]);
        assert_eq!(fragments[1][20..28], [1, 1, 1, 0x82, 4, 1, 2, 0]);
        assert_eq!(whole(&fragments), original[28..]);
    }
}

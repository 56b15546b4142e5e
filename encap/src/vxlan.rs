//! VXLAN (RFC 7348) and the shapes in which the kernel hands over its datagrams.
//!
//! ```text
//!  0       1                       4                       7       8
//! +-------+-----------------------+-----------------------+-------+
//! |....I..|        reserved       |          VNI          | resv. |
//! +-------+-----------------------+-----------------------+-------+
//! |  inner Ethernet frame, without FCS ...
//! ```
//!
//! A UDP socket with `UDP_GRO` gives either one datagram; or a *train*, datagrams of equal length
//! (the last may be shorter) one after another with their size in a control message; or, from a
//! kernel VTEP over an underlay that does not segment, one datagram that holds a whole inner
//! super-frame. For an inner UDP super-frame the control message holds the *inner* segment size,
//! so that the two must be told apart by the first inner frame's length; see [`train`].

use core::ops::Range;

use crate::bytes::array_at;
use crate::layers::Network;
use crate::{Link, Vni};

mod field {
    pub(super) const VNI: usize = 4;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// The port that IANA assigned.
pub const PORT: u16 = 4789;

/// The VNI field counts; must be set (section 5).
const FLAG_VNI: u8 = 0x08;

/// Why a datagram is no VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// Fewer bytes than a header.
    Truncated,
    /// The I flag is not set.
    VniFlagClear,
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "shorter than a VXLAN header",
            Self::VniFlagClear => "VXLAN header without the VNI flag",
        })
    }
}

impl core::error::Error for Error {}

/// The header as the kernel's vxlan device sends it: the I flag, the VNI, all else zero.
#[must_use]
#[inline]
pub fn emit(vni: Vni) -> [u8; HEADER_LEN] {
    let [a, b, c] = vni.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

/// Reads the header at the front of a UDP payload.
//= https://www.rfc-editor.org/rfc/rfc7348#section-5 (reserved fields are ignored on receipt)
///
/// # Errors
/// [`Error::Truncated`] below 8 bytes, [`Error::VniFlagClear`] without the I flag.
pub fn parse(datagram: &[u8]) -> Result<Vni, Error> {
    let header: &[u8; HEADER_LEN] = datagram.first_chunk().ok_or(Error::Truncated)?;
    if header[0] & FLAG_VNI == 0 {
        return Err(Error::VniFlagClear);
    }
    Ok(Vni::from_be_bytes(array_at(header, field::VNI)))
}

/// One VXLAN packet of a received UDP payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// What its header says.
    pub vni: Result<Vni, Error>,
    /// The inner Ethernet frame, as a range of the datagram; possibly empty.
    pub frame: Range<usize>,
    /// Not 0: the frame is one inner super-frame of segments with this many payload bytes.
    pub gso_size: u16,
}

/// Iterator over the packets of a received UDP payload; see [`train`].
#[derive(Clone, Debug)]
pub struct Train<'a> {
    datagram: &'a [u8],
    next: usize,
    /// Bytes per packet, header included; at least 1.
    stride: usize,
    gso_size: u16,
}

/// Splits a received UDP payload into its VXLAN packets. An empty payload gives one truncated
/// element.
///
/// `gro_size` is the value of the `UDP_GRO` control message, 0 without one. When the first inner IP
/// packet alone says that it is longer than `gro_size` and the datagram holds all of it, the
/// payload is not a train but one VXLAN header and one inner super-frame with that segment size.
#[must_use]
pub fn train(datagram: &[u8], gro_size: usize) -> Train<'_> {
    let whole = Train { datagram, next: 0, stride: datagram.len().max(1), gso_size: 0 };
    if gro_size == 0 || gro_size >= datagram.len() {
        return whole;
    }
    let frame = datagram.get(HEADER_LEN..).unwrap_or(&[]);
    let claimed = Network::parse(Link::Ethernet, frame).map_or(0, |ip| HEADER_LEN + ip.end);
    match u16::try_from(gro_size) {
        Ok(gso_size) if claimed > gro_size => Train { gso_size, ..whole },
        _ => Train { stride: gro_size, ..whole },
    }
}

impl Iterator for Train<'_> {
    type Item = Element;

    fn next(&mut self) -> Option<Element> {
        let len = self.datagram.len();
        if self.next >= len && !(len == 0 && self.next == 0) {
            return None;
        }
        let start = self.next;
        let end = start.saturating_add(self.stride).min(len);
        self.next = start.saturating_add(self.stride);
        Some(Element {
            vni: parse(self.datagram.get(start..end).unwrap_or(&[])),
            frame: (start + HEADER_LEN).min(end)..end,
            gso_size: self.gso_size,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.datagram.len().saturating_sub(self.next).div_ceil(self.stride);
        (left, Some(left.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MacAddr, ethernet, ipv4, udp};

    fn packet(udp_payload: usize) -> Vec<u8> {
        let ip = ipv4::Header {
            tos: 0,
            ident: 0,
            dont_fragment: true,
            ttl: 64,
            protocol: udp::PROTOCOL,
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
        };
        let mut bytes = emit(Vni::MAX).to_vec();
        bytes.extend(ethernet::emit(MacAddr::ZERO, MacAddr::ZERO, ethernet::EtherType::IPV4));
        bytes.extend(ip.emit(udp::HEADER_LEN + udp_payload).unwrap());
        bytes.extend(udp::emit(1, 2, udp_payload).unwrap());
        bytes.resize(bytes.len() + udp_payload, 0xa5);
        bytes
    }

    #[test]
    fn header_is_the_kernels_and_reserved_bits_are_ignored() {
        let vni = Vni::new(0x0001_0203).unwrap();
        assert_eq!(emit(vni), [8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(parse(&[0xff, 1, 2, 3, 1, 2, 3, 0xff, 9]), Ok(vni));
        assert_eq!(parse(&[0xf7, 0, 0, 0, 1, 2, 3, 0]), Err(Error::VniFlagClear));
        assert_eq!(parse(&[8; 7]), Err(Error::Truncated));
    }

    #[test]
    fn single_datagram_is_one_element() {
        let bytes = packet(100);
        for gro_size in [0, bytes.len(), 60_000, usize::MAX] {
            let all: Vec<_> = train(&bytes, gro_size).collect();
            assert_eq!(all, [Element { vni: Ok(Vni::MAX), frame: 8..bytes.len(), gso_size: 0 }]);
        }
        let all: Vec<_> = train(&[], 0).collect();
        assert_eq!(all, [Element { vni: Err(Error::Truncated), frame: 0..0, gso_size: 0 }]);
    }

    #[test]
    fn train_is_split_and_its_last_may_be_shorter() {
        let mut bytes = packet(100);
        let stride = bytes.len();
        bytes.extend(packet(100));
        bytes.extend(packet(40));
        let all: Vec<_> = train(&bytes, stride).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].frame, stride + 8..2 * stride);
        assert_eq!(all[2].frame, 2 * stride + 8..bytes.len());
        assert!(all.iter().all(|e| e.vni == Ok(Vni::MAX) && e.gso_size == 0));
        assert_eq!(train(&bytes, stride).size_hint(), (3, Some(3)));
    }

    #[test]
    fn rest_too_short_for_a_header_is_truncated() {
        let mut bytes = packet(100);
        let stride = bytes.len();
        bytes.extend([8, 0, 0]);
        let all: Vec<_> = train(&bytes, stride).collect();
        assert_eq!(all[1].vni, Err(Error::Truncated));
        assert!(all[1].frame.is_empty());
    }

    #[test]
    fn inner_super_frame_is_kept_whole() {
        let bytes = packet(3000);
        let all: Vec<_> = train(&bytes, 1000).collect();
        assert_eq!(all, [Element { vni: Ok(Vni::MAX), frame: 8..bytes.len(), gso_size: 1000 }]);
    }

    #[test]
    fn first_frame_that_lies_about_its_length_does_not_join_the_rest() {
        let mut bytes = packet(100);
        let stride = bytes.len();
        bytes.extend(packet(100));
        // The first packet claims 60000 bytes, more than the whole datagram holds.
        bytes[8 + 14 + 2..8 + 14 + 4].copy_from_slice(&60_000_u16.to_be_bytes());
        assert_eq!(train(&bytes, stride).count(), 2);
    }
}

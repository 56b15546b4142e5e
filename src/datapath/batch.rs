//! Outbound batching: datagrams of a turn, grouped into as few sends as the wire allows.
//!
//! # Theory of operation
//!
//! ```text
//!   push(key, pieces) ──► datagrams ──► messages (open per key) ──► flush: sendmmsg per socket
//! ```
//!
//! A *datagram* is one VXLAN packet in one piece: a frame in the read arena with its header written
//! in place in front of it, or a segment of a super-frame written to the scratch; of a network of
//! packets the bare inner packet, the payload of a UDP or of a raw socket. Segments lie
//! there one behind the other, so that a message of them is one piece for the kernel too: gathering
//! 44 headers and payloads costs it more than the copy, which the checksum pays for anyway.
//!
//! A *message* is one `sendmsg`: consecutive datagrams to one VTEP, from one socket, with one TOS,
//! all of one length, of which only the last may be shorter; the kernel cuts it again
//! (`UDP_SEGMENT`). Unrelated flows share a message when their lengths agree: that is what makes
//! small packets cheap. A message is bounded by the segments that the kernel takes and by 65,507
//! bytes.
//!
//! *Order*: datagrams of one key (destination, socket, TOS) leave in the order of `push`; a flow always
//! maps to one socket. Messages of one socket are sent in the order in which they were opened, and
//! a message that was pushed out of the table of open ones is never added to again.
//!
//! *Limits*: [`DATAGRAMS`] per flush and [`SCRATCH_BYTES`] of segments; the caller flushes
//! when [`SendQueue::has_room`] says so. All memory is allocated once.
//!
//! *Failure*: a send that fails is resolved here and now, message by message: segmentation refused
//! is repeated datagram by datagram, a full socket is waited for within a small bound, anything
//! else drops the message under its named reason. Later messages still go.

use std::io;

use super::drop::DropReason;
use super::path::{Destination, Paths};
use crate::sys::arena::Arena;
use crate::sys::mmsg::{Message, Piece};
use crate::telemetry::counters::{DropCounters, WorkerCounters};

/// The most datagrams between two flushes.
pub const DATAGRAMS: usize = 4096;
/// Bytes of segments between two flushes: four super-frames, or one that is cut into the smallest
/// segments that TCP makes.
pub const SCRATCH_BYTES: usize = 384 * 1024;
/// The most bytes of one send: the largest UDP payload over IPv4.
const MESSAGE_BYTES: usize = 65_507;
/// Slots of the table of open messages; more keys than this in one flush only cost batching.
const OPEN_SLOTS: usize = 256;
/// Messages of one `sendmmsg`.
pub const MESSAGES_PER_CALL: usize = 64;
/// Pieces of all messages of one call, bounded so that the arrays stay in the cache.
pub const PIECES_PER_CALL: usize = 2048;

const NONE: u32 = u32::MAX;

/// What all datagrams of a message share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The destination.
    pub to: Destination,
    /// Fan of send sockets ([`crate::underlay::udp::Flavor::index`]), or the raw socket
    /// ([`crate::underlay::raw::Kind::flavor`]).
    pub flavor: u8,
    /// Which socket of the fan.
    pub bucket: u8,
    /// Outer TOS.
    pub tos: u8,
}

impl Key {
    fn slot(self) -> usize {
        let mixed = self.to.index().wrapping_mul(0x9e37_79b1)
            ^ u32::from(self.bucket).wrapping_mul(0x85eb_ca6b)
            ^ u32::from(self.flavor) << 7
            ^ u32::from(self.tos) << 13;
        ((mixed >> 16) ^ mixed) as usize % OPEN_SLOTS
    }
}

#[derive(Clone, Copy)]
struct Datagram {
    piece: Piece,
    next: u32,
}

#[derive(Clone, Copy)]
struct Pending {
    key: Key,
    /// Length of every datagram but the last.
    segment: u32,
    bytes: u32,
    count: u32,
    head: u32,
    tail: u32,
    open: bool,
}

/// The transport that a flush sends on.
pub trait Transmit {
    /// Sends as many of `messages` as go, in order, from socket `bucket` of fan `flavor`.
    ///
    /// # Errors
    /// Of the first message. See [`crate::sys::mmsg::SendBatch::send`].
    fn send(
        &mut self,
        flavor: u8,
        bucket: u8,
        paths: &Paths,
        buffers: [&[u8]; 2],
        pieces: &[Piece],
        messages: &[Message],
    ) -> io::Result<usize>;

    /// Waits until that socket takes more, within a small bound; false when it did not.
    fn wait(&mut self, flavor: u8, bucket: u8) -> bool;

    /// Reads what the path said about that socket's earlier sends and teaches `paths`.
    fn learn(&mut self, flavor: u8, bucket: u8, paths: &mut Paths, now_ms: u64) -> u64;
}

/// Where a flush goes to, and what it counts and learns.
pub struct Outlet<'a, T> {
    /// The sockets.
    pub transmit: &'a mut T,
    /// What is known of the way to each VTEP.
    pub paths: &'a mut Paths,
    /// The turn's time in milliseconds.
    pub now_ms: u64,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
    /// The worker's drops.
    pub drops: &'a DropCounters,
}

impl<T: Transmit> Outlet<'_, T> {
    fn learn(&mut self, flavor: u8, bucket: u8) -> u64 {
        let errors = self.transmit.learn(flavor, bucket, self.paths, self.now_ms);
        self.counters.underlay_errors.add(errors);
        errors
    }
}

/// Datagrams waiting for the end of the turn.
pub struct SendQueue {
    datagrams: Vec<Datagram>,
    messages: Vec<Pending>,
    open: Box<[u32; OPEN_SLOTS]>,
    scratch: Arena,
    scratch_used: usize,
    /// Segments of one message; 1 switches segmentation off.
    segments: u32,
    /// Keys used since the last flush, as one bit per bucket of each flavor.
    used: [u64; crate::underlay::FLAVORS],
    call_pieces: Vec<Piece>,
    call_messages: Vec<Message>,
    call_pending: Vec<u32>,
    /// A full socket was waited for in vain in this flush; the others are not waited for again.
    stuck: bool,
}

impl SendQueue {
    /// `segments` as probed, 1 to switch segmentation off.
    #[must_use]
    pub fn new(segments: u16) -> Self {
        Self {
            datagrams: Vec::with_capacity(DATAGRAMS),
            messages: Vec::with_capacity(DATAGRAMS),
            open: Box::new([NONE; OPEN_SLOTS]),
            scratch: Arena::new(SCRATCH_BYTES),
            scratch_used: 0,
            segments: u32::from(segments.max(1)),
            used: Default::default(),
            call_pieces: Vec::with_capacity(PIECES_PER_CALL),
            call_messages: Vec::with_capacity(MESSAGES_PER_CALL),
            call_pending: Vec::with_capacity(MESSAGES_PER_CALL),
            stuck: false,
        }
    }

    /// Whether `datagrams` more, of which `bytes` go to the scratch, still fit.
    #[inline]
    #[must_use]
    pub fn has_room(&self, datagrams: usize, bytes: usize) -> bool {
        self.datagrams.len() + datagrams <= DATAGRAMS && self.scratch_used + bytes <= SCRATCH_BYTES
    }

    /// Nothing is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// The free scratch. A datagram is written to its beginning before [`Self::push_written`].
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        self.scratch.get_mut(self.scratch_used..).unwrap_or_default()
    }

    /// The datagram of `len` bytes that was just written to [`Self::room`].
    #[inline]
    pub fn push_written(&mut self, key: Key, len: usize, gso: bool) {
        let piece = Piece { buffer: 1, offset: self.scratch_used as u32, len: len as u32 };
        self.scratch_used += len;
        self.push(key, piece, gso);
    }

    /// A datagram that lies in the arena as it is.
    #[inline]
    pub fn push_whole(&mut self, key: Key, datagram: core::ops::Range<usize>, gso: bool) {
        let piece = Piece { buffer: 0, offset: datagram.start as u32, len: datagram.len() as u32 };
        self.push(key, piece, gso);
    }

    #[inline]
    fn push(&mut self, key: Key, piece: Piece, gso: bool) {
        let len = piece.len;
        let index = self.datagrams.len() as u32;
        self.datagrams.push(Datagram { piece, next: NONE });
        let slot = key.slot();
        if let Some(message) = self.messages.get_mut(self.open[slot] as usize) {
            let fits = message.open
                && gso
                && message.key == key
                && len <= message.segment
                && message.count < self.segments
                && message.bytes as usize + len as usize <= MESSAGE_BYTES;
            if fits {
                self.datagrams[message.tail as usize].next = index;
                message.tail = index;
                message.bytes += len;
                message.count += 1;
                message.open = len == message.segment;
                return;
            }
        }
        self.open[slot] = self.messages.len() as u32;
        self.used[usize::from(key.flavor) % self.used.len()] |= 1 << (key.bucket % 64);
        self.messages.push(Pending {
            key,
            segment: len,
            bytes: len,
            count: 1,
            head: index,
            tail: index,
            // What the kernel may not cut is not joined by others either.
            open: gso && self.segments > 1,
        });
    }

    /// Sends everything and forgets it.
    pub fn flush(&mut self, arena: &[u8], out: &mut Outlet<'_, impl Transmit>) {
        if self.datagrams.is_empty() {
            return;
        }
        for flavor in 0..self.used.len() {
            let mut buckets = self.used[flavor];
            while buckets != 0 {
                let bucket = buckets.trailing_zeros() as u8;
                buckets &= buckets - 1;
                self.flush_socket(flavor as u8, bucket, arena, out);
            }
        }
        self.datagrams.clear();
        self.messages.clear();
        self.open.fill(NONE);
        self.scratch_used = 0;
        self.used = Default::default();
        self.stuck = false;
    }

    fn flush_socket(
        &mut self,
        flavor: u8,
        bucket: u8,
        arena: &[u8],
        out: &mut Outlet<'_, impl Transmit>,
    ) {
        let mut next = 0;
        while next < self.messages.len() {
            self.call_messages.clear();
            self.call_pieces.clear();
            self.call_pending.clear();
            while let Some(pending) = self.messages.get(next) {
                let ours = pending.key.flavor == flavor && pending.key.bucket == bucket;
                if ours {
                    let full = self.call_messages.len() == MESSAGES_PER_CALL
                        || self.call_pieces.len() + pending.count as usize > PIECES_PER_CALL;
                    if full && !self.call_messages.is_empty() {
                        break;
                    }
                    let pending = *pending;
                    self.call_pending.push(next as u32);
                    self.describe(&pending);
                }
                next += 1;
            }
            if self.call_messages.is_empty() {
                return;
            }
            self.send_call(flavor, bucket, arena, out);
        }
    }

    /// Adds `pending` to the arrays of the next call.
    fn describe(&mut self, pending: &Pending) {
        let first_piece = self.call_pieces.len() as u32;
        let mut at = pending.head;
        while let Some(datagram) = self.datagrams.get(at as usize) {
            let piece = datagram.piece;
            match self.call_pieces.get_mut(first_piece as usize..).and_then(<[_]>::last_mut) {
                Some(last)
                    if last.buffer == piece.buffer && last.offset + last.len == piece.offset =>
                {
                    last.len += piece.len;
                }
                _ => self.call_pieces.push(piece),
            }
            at = datagram.next;
        }
        self.call_messages.push(Message {
            destination: pending.key.to.index(),
            segment: if pending.count > 1 { pending.segment as u16 } else { 0 },
            tos: pending.key.tos,
            first_piece,
            pieces: self.call_pieces.len() as u32 - first_piece,
        });
    }

    fn send_call(
        &mut self,
        flavor: u8,
        bucket: u8,
        arena: &[u8],
        out: &mut Outlet<'_, impl Transmit>,
    ) {
        let mut from = 0;
        // A pending socket error is told to the next send, whichever that is: it gets a second try.
        let mut retried = false;
        while let Some(messages) = self.call_messages.get(from..).filter(|rest| !rest.is_empty()) {
            out.counters.send_calls.add(1);
            let buffers = [arena, &self.scratch];
            let error = match out.transmit.send(
                flavor,
                bucket,
                out.paths,
                buffers,
                &self.call_pieces,
                messages,
            ) {
                Ok(sent) => {
                    for index in from..from + sent {
                        self.count_sent(index, out.counters);
                    }
                    from += sent.max(1);
                    retried = false;
                    continue;
                }
                Err(error) => error,
            };
            let Some(pending) =
                self.call_pending.get(from).and_then(|i| self.messages.get(*i as usize)).copied()
            else {
                return;
            };
            let count = u64::from(pending.count);
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    if !retried && !self.stuck {
                        if out.transmit.wait(flavor, bucket) {
                            retried = true;
                            continue;
                        }
                        // One wait per flush: a dead interface must not hold up the other ports.
                        self.stuck = true;
                    }
                    out.drops.add(DropReason::OutUnderlayBusy, count);
                }
                Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) if pending.count > 1 => {
                    if let Some(path) = out.paths.get_mut(pending.key.to) {
                        path.refuse_gso(out.now_ms);
                    }
                    out.counters.gso_fallbacks.add(1);
                    self.send_singly(&pending, flavor, bucket, arena, out);
                }
                Some(libc::EMSGSIZE) => {
                    if out.learn(flavor, bucket) != 0 && !retried {
                        retried = true;
                        continue;
                    }
                    if pending.count > 1 {
                        // The kernel never fragments what it would have to cut as well, nor does
                        // it queue an error for it. One by one, datagrams are fragmented where DF
                        // is clear, and else tell the path's MTU.
                        out.counters.gso_fallbacks.add(1);
                        self.send_singly(&pending, flavor, bucket, arena, out);
                    } else {
                        out.drops.add(DropReason::OutPathMtu, count);
                    }
                }
                Some(libc::EAFNOSUPPORT) => {
                    out.drops.add(DropReason::OutFamilyUnavailable, count);
                }
                Some(libc::EINTR) => continue,
                _ => {
                    let learned = out.learn(flavor, bucket);
                    if learned != 0 && !retried {
                        retried = true;
                        continue;
                    }
                    out.drops.add(DropReason::OutUnderlayError, count);
                }
            }
            retried = false;
            from += 1;
        }
    }

    /// Sends the datagrams of a message one by one, after the path refused to have it cut.
    fn send_singly(
        &self,
        pending: &Pending,
        flavor: u8,
        bucket: u8,
        arena: &[u8],
        out: &mut Outlet<'_, impl Transmit>,
    ) {
        let mut at = pending.head;
        while let Some(datagram) = self.datagrams.get(at as usize) {
            let pieces = [datagram.piece];
            let message = Message {
                destination: pending.key.to.index(),
                segment: 0,
                tos: pending.key.tos,
                first_piece: 0,
                pieces: 1,
            };
            out.counters.send_calls.add(1);
            let buffers = [arena, &self.scratch];
            match out.transmit.send(flavor, bucket, out.paths, buffers, &pieces, &[message]) {
                Ok(_) => {
                    out.counters.messages_out.add(1);
                    out.counters.datagrams_out.add(1);
                    out.counters.bytes_out.add(u64::from(datagram.piece.len));
                }
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    out.learn(flavor, bucket);
                    out.drops.add(DropReason::OutPathMtu, 1);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    out.drops.add(DropReason::OutUnderlayBusy, 1);
                }
                Err(_) => out.drops.add(DropReason::OutUnderlayError, 1),
            }
            at = datagram.next;
        }
    }

    fn count_sent(&self, index: usize, counters: &WorkerCounters) {
        let pending = self.call_pending.get(index).and_then(|i| self.messages.get(*i as usize));
        if let Some(pending) = pending {
            counters.messages_out.add(1);
            counters.datagrams_out.add(u64::from(pending.count));
            counters.bytes_out.add(u64::from(pending.bytes));
        }
    }
}

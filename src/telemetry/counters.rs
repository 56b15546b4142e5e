//! Counters of the datapath.
//!
//! # Theory of operation
//!
//! Each counter has one writer, the worker that owns it, so that an increment is a plain load and
//! store without a locked instruction. Readers sum over the workers when somebody asks. Each worker
//! has blocks of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use encap::coalesce::Seen;

use crate::datapath::drop::DropReason;

/// A counter with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The present value, from any thread.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$meta:meta])* $block:ident { $($field:ident, $unit:literal, $help:literal;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $block {
            $(#[doc = $help] pub $field: Counter,)*
        }

        impl $block {
            /// Name, unit and help of each counter, in declaration order.
            pub const DESCRIPTIONS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($field), $unit, $help),)*];

            /// The present values, in declaration order.
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$field.get(),)*]
            }
        }
    };
}

counters! {
    /// What one worker did, over all its ports.
    WorkerCounters {
        turns, "turns", "Times the worker woke up.";
        port_reads, "reads", "Reads from ports, one frame or super-frame each.";
        port_writes, "writes", "Writes to ports, one frame or super-frame each.";
        super_frames_out, "frames", "Super-frames read from ports and segmented here.";
        segments_out, "frames", "Segments made of super-frames.";
        super_frames_in, "frames", "Super-frames written to ports, coalesced here or by the sender.";
        coalesced_in, "frames", "Received frames that left as a part of a super-frame.";
        checksums_completed, "frames", "Partial checksums of single frames finished before the wire.";
        fragmented_out, "frames", "IPv4 packets longer than the path takes that were cut into fragments, as their senders allow.";
        partial_in, "frames", "Received frames with a partial checksum, from a VTEP on an offloading underlay.";
        bad_checksum_in, "frames", "Received frames whose inner checksum is wrong; passed on for the end host to count.";
        source_pending, "frames", "Received frames whose source MAC or address has no owner yet; accepted.";
        datagrams_out, "datagrams", "Datagrams given to the underlay.";
        bytes_out, "bytes", "Bytes of datagrams given to the underlay, VXLAN header included, outer IP and UDP header not.";
        messages_out, "messages", "Sends, each of one datagram or of several of one length.";
        send_calls, "calls", "System calls for sending.";
        datagrams_in, "datagrams", "Datagrams received, after splitting what the kernel coalesced.";
        bytes_in, "bytes", "Bytes of datagrams received, VXLAN header included; of IP-in-IP over IPv4 the outer header too.";
        messages_in, "messages", "Receives, each of one datagram or of several coalesced by the kernel.";
        receive_calls, "calls", "System calls for receiving.";
        flood_copies, "datagrams", "Copies made by ingress replication.";
        suppressed, "frames", "ARP requests and neighbor solicitations answered from the tables.";
        suppressed_local, "frames", "ARP requests and neighbor solicitations left to their target on this host.";
        probes_ignored, "frames", "Address probes for the asker's own address, left unanswered.";
        too_big_answers, "frames", "ICMP answers sent for frames that the path does not take.";
        unreachable_answers, "frames", "ICMP answers sent for packets that cannot be delivered.";
        answers_limited, "frames", "ICMP answers not sent because the port had had its share.";
        mss_lowered, "frames", "First packets of TCP connections whose maximum segment size was lowered to the path.";
        underlay_errors, "errors", "Errors read from the underlay sockets' error queues.";
        underlay_errors_left, "reads", "Times that a socket's error queue held as many errors as are read at once; the rest waits for the next turn.";
        gso_fallbacks, "messages", "Sends repeated without UDP segmentation because the path refused it.";
        learn_overflow, "entries", "Learned addresses lost because the queue to the table writer was full.";
        learn_limited, "entries", "Learned addresses not told to the table writer yet because their VTEP had its share.";
        injected, "frames", "Announcements written to ports.";
    }
}

impl WorkerCounters {
    /// Counts what the coalescer found a checksum to be.
    #[inline]
    pub fn saw(&self, seen: Seen) {
        match seen {
            Seen::BadChecksum => self.bad_checksum_in.add(1),
            Seen::Partial => self.partial_in.add(1),
            Seen::Other | Seen::Valid => {}
        }
    }
}

counters! {
    /// What one worker did for one port.
    PortCounters {
        frames_out, "frames", "Frames of the network given to the underlay, after segmentation.";
        bytes_out, "bytes", "Bytes of those frames, Ethernet header included where there is one.";
        frames_in, "frames", "Frames of the network accepted from the underlay, before coalescing.";
        bytes_in, "bytes", "Bytes of those frames, Ethernet header included where there is one.";
        frames_local, "frames", "Frames and super-frames between containers of this host that the switch carried (`local=switch`).";
        bytes_local, "bytes", "Bytes of those frames, Ethernet header included where there is one.";
    }
}

/// One counter per drop reason.
#[derive(Debug)]
pub struct DropCounters([Counter; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl DropCounters {
    /// Counts `n` frames dropped for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].add(n);
    }

    /// How many were dropped for `reason`.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }
}

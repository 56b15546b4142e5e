//! The only input of the tables.

use std::net::IpAddr;

use encap::MacAddr;

use crate::types::{
    MacEntry, Millis, Neighbor, Network, NetworkKey, OriginKind, Prefix, Route, Vtep, VtepKey,
};

/// One change of the tables.
///
/// Deltas are applied in the order given and appear together at the next publication. A delta
/// that names a network which was not put is ignored and counted. Every delta is idempotent.
///
/// # Static, store, learned
///
/// A MAC (or neighbor address, or prefix) of a network has at most one static and one store claim, beside
/// at most one learned entry when it has neither. Look-ups see the best: static over store over
/// learned. A store claim beneath a static one is kept and comes back when the static one is
/// removed. A learned entry is displaced by either and does not come back.
///
/// Within the store's claim the higher revision wins: a put with a lower revision than the
/// present claim's is ignored and counted, one with the same or a higher revision replaces it.
/// Two endpoints that claim one MAC are for the caller to resolve. A removal names the kind of
/// claim, not a revision, and leaves no trace: a later put of any revision is taken. The caller
/// therefore orders removals and puts of one key as the store did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// Removes the learned entries, of all networks, that were last confirmed `max_age` ago or
    /// longer.
    Age {
        /// The present time.
        now: Millis,
        /// The age at which an entry goes.
        max_age: Millis,
    },
    /// Learns or confirms that `mac` is behind `vtep`. The only source of learned entries.
    ///
    /// Refused and counted: in a network that does not learn, from a VTEP that the network does
    /// not admit, for a MAC that is no unicast address. Ignored and counted: a MAC with a static
    /// or store claim. When the network is full, the oldest entry of the VTEP with the most
    /// learned entries makes room.
    Learn {
        /// The network.
        network: NetworkKey,
        /// The source MAC that was seen.
        mac: MacAddr,
        /// The VTEP that sent it.
        vtep: VtepKey,
        /// When.
        at: Millis,
    },
    /// Adds or replaces the claim of `entry`'s origin on `mac`. A learned origin is refused.
    PutMac {
        /// The network.
        network: NetworkKey,
        /// The MAC.
        mac: MacAddr,
        /// Place and origin.
        entry: MacEntry,
    },
    /// Adds or replaces the claim of `neighbor`'s origin on `ip`. A learned origin is refused.
    PutNeighbor {
        /// The network.
        network: NetworkKey,
        /// The address; an IPv4-mapped one is taken as IPv4.
        ip: IpAddr,
        /// MAC, place and origin.
        neighbor: Neighbor,
    },
    /// Adds a network, or replaces the parameters of one and keeps its entries. Ending `learning`
    /// removes the learned ones.
    ///
    /// When two networks have the same UDP port and VNI, the lower key has the look-up.
    PutNetwork {
        /// The slot.
        key: NetworkKey,
        /// The parameters.
        network: Network,
    },
    /// Adds or replaces the claim of `route`'s origin on `prefix`. A learned origin is refused. Of
    /// several prefixes that hold an address the longest has it, whatever their origins.
    PutRoute {
        /// The network.
        network: NetworkKey,
        /// The range of addresses.
        prefix: Prefix,
        /// Place and origin.
        route: Route,
    },
    /// Adds or replaces a VTEP.
    ///
    /// When two VTEPs have the same address, one that has it as its own goes before one that only
    /// accepts it, then the lower key.
    PutVtep {
        /// The slot.
        key: VtepKey,
        /// The VTEP.
        vtep: Vtep,
    },
    /// Removes the claim of this kind on `mac`, or its learned entry.
    RemoveMac {
        /// The network.
        network: NetworkKey,
        /// The MAC.
        mac: MacAddr,
        /// Which claim goes.
        origin: OriginKind,
    },
    /// Removes the claim of this kind on `ip`.
    RemoveNeighbor {
        /// The network.
        network: NetworkKey,
        /// The address; an IPv4-mapped one is taken as IPv4.
        ip: IpAddr,
        /// Which claim goes.
        origin: OriginKind,
    },
    /// Removes a network and everything in it.
    RemoveNetwork {
        /// The slot.
        key: NetworkKey,
    },
    /// Removes the claim of this kind on `prefix`.
    RemoveRoute {
        /// The network.
        network: NetworkKey,
        /// The range of addresses.
        prefix: Prefix,
        /// Which claim goes.
        origin: OriginKind,
    },
    /// Removes a VTEP, what was learned from it, and its place in flood and static lists. Static
    /// and store entries that point to it stay until they are removed themselves.
    RemoveVtep {
        /// The slot.
        key: VtepKey,
    },
    /// Replaces the ingress replication list of a network. Repeated keys are dropped.
    SetFlood {
        /// The network.
        network: NetworkKey,
        /// The complete list, in the order of sending.
        vteps: Vec<VtepKey>,
    },
    /// Replaces the list of static VTEPs that a network admits. VTEPs with a host are admitted by
    /// every network and need not be listed.
    SetStaticVteps {
        /// The network.
        network: NetworkKey,
        /// The complete list, in any order.
        vteps: Vec<VtepKey>,
    },
}

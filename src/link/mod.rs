//! Links and namespaces of the host: what the kernel carries between a sandbox and the switch.
//!
//! # Theory of operation
//!
//! ```text
//!   sandbox           private namespace of a network            agent
//!   +--------+        +------------------------------+        +---------+
//!   |  eth0 -|- veth -|- ve<hash>                    |        |         |
//!   +--------+        |            br0         tap0 -|--------|- queues |
//!   +--------+        |                              |        |         |
//!   |  eth0 -|- veth -|- ve<hash>                    |        +---------+
//!   +--------+        +------------------------------+
//! ```
//!
//! Each network has a namespace of its own ([`network`]), pinned so that it outlives the agent
//! ([`netns`]). In the host's namespace a bridge would pass through the host's FORWARD policy, which
//! Docker sets to DROP; here bridge-netfilter is off before there is a bridge. The infrastructure
//! itself is silent: IPv6 is off on bridge and ports, so they send no router solicitation, no
//! listener report and no duplicate address detection, and nothing there has an address but a
//! gateway.
//!
//! Attaching has two steps ([`endpoint`]): `plug` makes everything with both ends down, then the
//! tables of the cluster change, then `up` lets frames flow. A port takes frames only from its
//! endpoint's MAC (`locked`, with one static entry) and gets no unknown unicast; what it says in
//! IP, ARP and ND is checked by rules of ours ([`source_check`]).
//!
//! A network of packets ([`routed`]) has no bridge: the kernel routes in its namespace, between the
//! sandboxes of this host and the switch's TUN.
//!
//! A network with a gateway has a [`router`] in its namespace. One that reaches beyond has an
//! [`uplink`] from there to the host's namespace, where [`firewall`] says what may pass and
//! [`permission`] asks the rules of others to let it.
//!
//! Everything is level-triggered: the present state is read, what differs is corrected, what cannot
//! be changed is replaced, and nothing is remembered between calls. An agent that was killed at any
//! point finds what it left by its names and aliases ([`names`]) and completes or removes it.
//!
//! Privileges: `CAP_NET_ADMIN`, and `CAP_SYS_ADMIN` to enter and pin namespaces. /proc/sys must be
//! writable, so a unit cannot set `ProtectKernelTunables`: a new namespace starts with
//! bridge-netfilter on, and nothing but the sysctl turns it off.
//!
//! Threads: requests are async on the caller's tokio runtime; entering a namespace blocks for well
//! under a millisecond on a thread of its own.

pub mod cleanup;
pub mod direct;
pub mod endpoint;
mod error;
pub mod firewall;
pub mod forwarding;
pub mod handover;
pub mod names;
pub mod netlink;
pub mod netns;
pub mod network;
mod nft;
pub mod permission;
pub mod routed;
pub mod router;
mod routing;
pub mod source_check;
mod sysctl;
pub mod underlay;
pub mod uplink;
pub mod view;
pub mod vxlan;

pub use error::{Addresses, Error};
pub use names::Owner;
pub use netlink::Netlink;
pub use netns::{NetNs, NetNsId, NetNsRef, Pinned, pins_outlive_us, run_in};
pub use network::{NetworkLink, NetworkNs};

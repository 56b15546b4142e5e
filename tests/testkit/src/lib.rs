//! Whole hosts on one machine, for the tests of the whole.
//!
//! # Theory of operation
//!
//! ```text
//!      host 1                    switch                    host 2
//!   ┌───────────────┐     ┌────────────────────┐     ┌───────────────┐
//!   │ agent 1  eth0 ├─────┤ p1     br0      p2 ├─────┤ eth0  agent 2 │     a Lab
//!   └──┬─────────┬──┘     │   192.0.2.254 (etcd)     └──┬────────────┘
//!      │attach   │        └────────────────────┘        │
//!   ┌──┴───┐ ┌───┴──┐                                ┌──┴───┐
//!   │ c1   │ │ c2   │                                │ c3   │               Containers
//!   └──────┘ └──────┘                                └──────┘
//! ```
//!
//! A [`Lab`] is a set of network namespaces: hosts, and a switch with a bridge that joins them.
//! Host K has 192.0.2.K and 2001:db8::K. An [`Agent`] is the real program in a host's namespace, a
//! [`Container`] is a namespace that it attached, a [`KernelVtep`] does on another host with the
//! kernel's vxlan device what an agent would do. Traffic is that of `skybridge traffic`, started
//! inside the containers.
//!
//! Names carry the process id and a counter, so that tests of several runs do not meet. Everything
//! is removed when the [`Lab`] is dropped, also when the test panics; what a killed run left behind
//! is removed by the next one ([`sweep`]). Nothing outside these namespaces is touched.
//!
//! Helpers panic at the caller's line with the command and its output: a test reads as what should
//! happen. When a test fails, its lab prints the logs, links, addresses and counters of all hosts.
//! An agent's unexpected warnings and errors fail the test too.
//!
//! Programs are started with `nsenter --net`, not `ip netns exec`: the latter gives them a private
//! mount namespace, in which the pins of an agent would die with it.

mod agent;
mod attack;
mod capability;
mod capture;
mod container;
pub mod docker;
mod harness;
mod inject;
pub mod invariant;
mod lab;
mod netns;
mod ovs;
mod pki;
mod process;
mod proxy;
pub mod sandbox;
mod store;
pub mod traffic;
mod vtep;
mod wait;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use agent::{Agent, AgentSpec};
pub use attack::{Attack, Dice, Pace};
pub use capability::{Cap, missing};
pub use capture::Capture;
pub use container::Container;
pub use docker::{Docker, DockerRelease};
pub use harness::Suite;
pub use inject::{Tap, send_frames, send_protocol, udp_frame};
pub use lab::{Family, Host, Lab, LabBuilder, Store, Underlay};
pub use netns::{Netns, sweep};
pub use ovs::OvsVtep;
pub use pki::Pki;
pub use process::{Finished, Process, run, run_within};
pub use proxy::Proxy;
pub use store::{Etcd, EtcdSpec};
pub use vtep::{KernelVtep, VtepSpec};
pub use wait::wait_until;

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Says which `skybridge` the lab starts. The first call counts.
///
/// The environment variable `SKYBRIDGE_TEST_BINARY` wins, so that an installed or an older binary
/// can be tested.
pub fn use_binary(built: impl Into<PathBuf>) {
    let path =
        std::env::var_os("SKYBRIDGE_TEST_BINARY").map_or_else(|| built.into(), PathBuf::from);
    BINARY.get_or_init(|| path);
}

/// The `skybridge` under test.
///
/// # Panics
///
/// If [`use_binary`] was not called.
#[must_use]
pub fn binary() -> &'static Path {
    BINARY.get().expect("the test binary calls use_binary first")
}

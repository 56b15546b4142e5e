//! What the process and its threads are allowed (`capabilities(7)`, `prctl(2)`).
//!
//! # Theory of operation
//!
//! Capabilities belong to threads. [`begin`] is called while there is one thread, so what it takes
//! away is gone for all: the bounding set, the inheritable and the ambient set, and the chance to
//! gain anything by executing a program. The permitted set is cut to what the agent needs, plus
//! what only its start needs; the main thread gives the latter up with [`hold`] once the start is
//! over, and every other thread begins with a [`hold`] of its own.
//!
//! What is missing from the start (a container without `CAP_SYS_PTRACE`, a unit with a smaller
//! bounding set) stays missing: the operation that needs it says so.

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What the agent's control plane needs for as long as it runs:
///
/// - `CAP_NET_ADMIN`: TAPs, links, addresses, `nft`, and socket buffers beyond the system's limit;
/// - `CAP_NET_BIND_SERVICE`: a UDP port below 1024 for a network that asks for one;
/// - `CAP_NET_RAW`: sockets of protocol 4 and 41, of hellos, and the firewalls of `iptables-legacy`;
/// - `CAP_SYS_ADMIN`: namespaces are entered, made and pinned;
/// - `CAP_SYS_PTRACE`: a sandbox is named by the id of its process, `/proc/PID/ns/net`.
pub const RUNNING: &[Capability] = &[
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

/// What only the start needs: the control socket's group, and the workers' nice value.
pub const STARTING: &[Capability] = &[Capability::CAP_CHOWN, Capability::CAP_SYS_NICE];

/// Workers and the embedded store: their descriptors are open, and nothing else asks for any.
pub const NOTHING: &[Capability] = &[];

/// Gives up, for the whole process and all that it will execute, everything but [`RUNNING`], and
/// keeps [`STARTING`] for the calling thread. Returns the capabilities that stay in the bounding
/// set because the process may not take them out (it lacks `CAP_SETPCAP`); no program that is
/// executed gains them all the same.
///
/// # Errors
/// What the kernel refused; some may be given up then.
pub fn begin() -> io::Result<Vec<Capability>> {
    let mut stay = Vec::new();
    for capability in caps::all() {
        // One that this kernel does not know is an error of the look.
        let has = caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false);
        if has
            && !RUNNING.contains(&capability)
            && caps::drop(None, CapSet::Bounding, capability).is_err()
        {
            stay.push(capability);
        }
    }
    // A kernel without ambient capabilities (before 4.3) has none to clear.
    let _ = caps::clear(None, CapSet::Ambient);
    hold(&[RUNNING, STARTING].concat())?;
    nix::sys::prctl::set_no_new_privs()?;
    stay.sort_by_key(|capability| capability.index());
    Ok(stay)
}

/// Cuts the calling thread's capabilities to those of `wanted` that it has.
///
/// # Errors
/// What the kernel refused.
pub fn hold(wanted: &[Capability]) -> io::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(other)?;
    let kept: CapsHashSet =
        wanted.iter().copied().filter(|wanted| permitted.contains(wanted)).collect();
    caps::clear(None, CapSet::Inheritable).map_err(other)?;
    // Effective first: it must lie within permitted at every moment.
    caps::set(None, CapSet::Effective, &kept).map_err(other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(other)
}

fn other(error: CapsError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_of(which: CapSet) -> CapsHashSet {
        caps::read(None, which).unwrap()
    }

    #[test]
    fn a_thread_gives_up_what_it_does_not_hold_and_others_do_not() {
        let before = set_of(CapSet::Permitted);
        std::thread::spawn(move || {
            hold(RUNNING).unwrap();
            let kept = set_of(CapSet::Permitted);
            assert!(kept.iter().all(|capability| RUNNING.contains(capability)));
            assert!(RUNNING.iter().all(|wanted| kept.contains(wanted) == before.contains(wanted)));
            assert_eq!(set_of(CapSet::Effective), kept);
            hold(NOTHING).unwrap();
            assert!(set_of(CapSet::Permitted).is_empty());
            // What is gone does not come back.
            hold(RUNNING).unwrap();
            assert!(set_of(CapSet::Permitted).is_empty());
            assert!(set_of(CapSet::Inheritable).is_empty());
        })
        .join()
        .unwrap();
        assert_eq!(set_of(CapSet::Permitted), {
            let here = std::thread::spawn(|| set_of(CapSet::Permitted));
            here.join().unwrap()
        });
    }
}

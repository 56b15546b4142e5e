//! Who holds a UDP port: the answer to "address in use".

use std::fmt;
use std::fs;
use std::path::Path;

/// The holder of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A socket without a process: the kernel's vxlan device, as Docker Swarm makes it too.
    Kernel,
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name, from `/proc/PID/comm`.
        name: String,
    },
    /// A socket that no process here has: the kernel's, whose vxlan device was moved into another
    /// network namespace, or that of a process of another PID namespace.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str(
                "the kernel (a vxlan device of this network namespace, such as Docker Swarm's \
                 overlay makes)",
            ),
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Unknown => f.write_str(
                "a socket that no process here has, probably the kernel's: Docker Swarm's overlay \
                 moves its vxlan devices into other network namespaces (`docker network ls` shows \
                 its networks)",
            ),
        }
    }
}

/// Looks for the holder of UDP `port` in this network namespace.
#[must_use]
pub fn of_udp_port(port: u16) -> Holder {
    let mut inodes = Vec::new();
    for table in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        inodes.extend(text.lines().skip(1).filter_map(|line| inode_of(line, port)));
    }
    if inodes.is_empty() {
        // A kernel tunnel's socket is hashed like any other but has no file; some kernels leave it
        // out of the table altogether, and nothing else binds a port without being listed.
        return Holder::Kernel;
    }
    if inodes.iter().all(|inode| *inode == 0) {
        return Holder::Kernel;
    }
    process_with(&inodes).unwrap_or(Holder::Unknown)
}

/// The inode column of a `/proc/net/udp` line when its local port is `port`.
fn inode_of(line: &str, port: u16) -> Option<u64> {
    let mut columns = line.split_whitespace();
    let local = columns.nth(1)?;
    let (_, hex) = local.rsplit_once(':')?;
    if u16::from_str_radix(hex, 16).ok()? != port {
        return None;
    }
    columns.nth(7)?.parse().ok()
}

fn process_with(inodes: &[u64]) -> Option<Holder> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            if socket_inode(&target).is_some_and(|inode| inodes.contains(&inode)) {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                return Some(Holder::Process { pid, name: name.trim_end().to_owned() });
            }
        }
    }
    None
}

fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn names_the_process_that_has_the_port() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let holder = of_udp_port(socket.local_addr().unwrap().port());
        assert!(
            matches!(&holder, Holder::Process { pid, .. } if *pid == std::process::id()),
            "{holder:?}"
        );
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        for line in ["", "1: x", "1: 0100007F:12B5", "1: 0100007F:zz 0 0 0 0 0 0 0 5"] {
            assert_eq!(inode_of(line, 4789), None, "{line}");
        }
    }
}

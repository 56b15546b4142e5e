//! Listening on further ports while the switch runs.
//!
//! The kernel chose the source ports of our send sockets, so one of them may be the very port that
//! a network is to be received on. Then the send socket makes way: each worker gets another one in
//! its place, on a port that nobody wants, before the port is claimed. The flows of that socket
//! change their source port once.
//!
//! Ports for packets of networks without frames, and the raw sockets of IP-in-IP, are opened here as
//! well, when the first network asks for them.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use fdb::UdpPorts;

use super::handle::Datapath;
use super::worker::Command;
use crate::underlay::raw::{self, RawSocket};
use crate::underlay::udp::{self, Flavor, Listener, Sender};
use crate::underlay::{self, Carries};

/// How long a worker may take to close a socket that makes way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Datapath {
    /// Listens on one more UDP port for VXLAN, if it does not yet.
    ///
    /// # Errors
    /// As [`udp::claim`], or [`underlay::Error::Ours`] for a port that carries packets; nothing
    /// listens on it then.
    pub fn listen(&self, port: u16) -> Result<(), underlay::Error> {
        self.listen_for(port, Carries::Frames)
    }

    /// Listens for IP packets in UDP, if it does not yet.
    ///
    /// # Errors
    /// As [`Self::listen`], with VXLAN for packets.
    pub fn listen_routed(&self, ports: UdpPorts) -> Result<(), underlay::Error> {
        self.listen_for(ports.v4, Carries::Ipv4)?;
        self.listen_for(ports.v6, Carries::Ipv6)
    }

    /// Opens the raw sockets for IP-in-IP, if they are not open yet. The calling thread needs
    /// `CAP_NET_RAW`.
    ///
    /// # Errors
    /// As [`RawSocket::open`]; none is open then.
    pub fn listen_ip(&self) -> Result<(), underlay::Error> {
        let mut open = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        if *open {
            return Ok(());
        }
        for device in raw::kernel_tunnels() {
            tracing::warn!(
                device,
                "a tunnel device of the kernel takes IP-in-IP packets too, so each may arrive twice; \
                 remove it (`ip link del`, or unload its module) unless it is for other peers"
            );
        }
        let workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        let mut opened = Vec::new();
        for (number, worker) in (0..workers).zip(&self.workers) {
            for address in &self.config.addresses {
                for socket in RawSocket::open(*address, number, workers)? {
                    opened.push((worker, *address, socket));
                }
            }
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for (worker, at, socket) in opened {
            watched.extend(socket.watcher());
            worker.tell(Command::ListenIp { at, socket });
        }
        *open = true;
        Ok(())
    }

    fn listen_for(&self, port: u16, carries: Carries) -> Result<(), underlay::Error> {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, present)) = listening.iter().find(|(taken, _)| *taken == port) {
            let for_what = match carries {
                _ if *present == carries => return Ok(()),
                Carries::Frames => "VXLAN",
                Carries::Ipv4 => "IPv4 in UDP",
                Carries::Ipv6 => "IPv6 in UDP",
            };
            return Err(underlay::Error::Ours { port, for_what });
        }
        let taken: Vec<u16> = listening.iter().map(|(port, _)| *port).collect();
        self.make_way(port, &taken)?;
        let addresses = self.config.addresses.iter().map(|ip| SocketAddr::new(*ip, port));
        for at in addresses.clone() {
            udp::claim(at)?;
        }
        let mut opened = Vec::new();
        for worker in &self.workers {
            for at in addresses.clone() {
                opened.push((worker, at, Listener::open(at, carries, self.config.offload)?));
            }
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for (worker, at, listener) in opened {
            watched.extend(listener.watcher());
            worker.tell(Command::Listen { at, listener });
        }
        listening.push((port, carries));
        Ok(())
    }

    /// Moves our own send sockets away from `port`.
    fn make_way(&self, port: u16, listening: &[u16]) -> Result<(), underlay::Error> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for flavor in Flavor::all() {
            let fan = sources.get_mut(flavor.index()).into_iter().flatten().enumerate();
            for (number, held) in fan.filter(|(_, held)| **held == port) {
                let ours = |ip: &&std::net::IpAddr| ip.is_ipv6() == flavor.ipv6;
                let Some(address) = self.config.addresses.iter().find(ours) else { continue };
                let mut chosen = None;
                let mut fresh = Vec::with_capacity(self.workers.len());
                for _ in &self.workers {
                    let sender = Sender::open(*address, flavor, listening, chosen)?;
                    chosen = Some(sender.port());
                    fresh.push(sender);
                }
                let (done, closed) = crossbeam_channel::bounded(self.workers.len());
                let mut told = 0;
                for (worker, sender) in self.workers.iter().zip(fresh) {
                    let done = done.clone();
                    let replace = Command::Replace { flavor, number, sender, done };
                    told += usize::from(worker.tell(replace));
                }
                for _ in 0..told {
                    let _ = closed.recv_timeout(CLOSE_TIMEOUT);
                }
                tracing::info!(
                    port,
                    instead = chosen,
                    "a source port makes way for a network's own port"
                );
                *held = chosen.unwrap_or_default();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, UdpSocket};
    use std::time::Instant;

    use super::super::handle::Config;
    use super::*;
    use crate::underlay::probe::UdpOffload;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn datapath(workers: usize) -> Datapath {
        let free = UdpSocket::bind((HOME, 0)).unwrap().local_addr().unwrap().port();
        let config = Config {
            workers,
            addresses: vec![HOME],
            advertised: vec![HOME],
            ports: vec![free],
            fan: 4,
            offload: UdpOffload::NONE,
            coalesce: true,
            confirm: fdb::Millis(10_000),
            nice: 0,
            underlay_mtu: 1500,
            epoch: Instant::now(),
        };
        let (_writer, reader) = fdb::channel();
        Datapath::start(config, &reader).unwrap()
    }

    fn sources(datapath: &Datapath) -> Vec<u16> {
        datapath.sources.lock().unwrap().iter().flatten().copied().collect()
    }

    /// Datagrams that were received and not liked.
    fn refused(datapath: &Datapath) -> u64 {
        datapath.drops().iter().map(|drops| drops.without_network).sum()
    }

    #[test]
    fn our_own_source_port_makes_way_for_a_port_to_listen_on() {
        for workers in [1, 3] {
            let datapath = datapath(workers);
            let before = sources(&datapath);
            for port in [before[0], before[5]] {
                datapath.listen(port).unwrap();
                datapath.listen(port).unwrap();
                let after = sources(&datapath);
                assert!(!after.contains(&port), "{after:?} still has {port}");
                assert_eq!(after.len(), before.len());
                assert!(UdpSocket::bind((HOME, port)).is_err(), "nobody listens on {port}");
                // What is sent there is received: a stranger's, and counted so.
                let counted = refused(&datapath);
                let stranger = UdpSocket::bind((HOME, 0)).unwrap();
                stranger.send_to(b"x", (HOME, port)).unwrap();
                let begun = Instant::now();
                while refused(&datapath) == counted {
                    assert!(begun.elapsed() < Duration::from_secs(10), "it was not received");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    #[test]
    fn a_port_carries_one_thing() {
        let datapath = datapath(2);
        let free = || UdpSocket::bind((HOME, 0)).unwrap().local_addr().unwrap().port();
        let ports = UdpPorts { v4: free(), v6: free() };
        datapath.listen_routed(ports).unwrap();
        datapath.listen_routed(ports).unwrap();
        for port in [ports.v4, ports.v6] {
            let refused = datapath.listen(port).unwrap_err();
            assert!(matches!(refused, underlay::Error::Ours { .. }), "{refused}");
        }
        let turned = UdpPorts { v4: ports.v6, v6: ports.v4 };
        assert!(datapath.listen_routed(turned).is_err());
        // A packet that is none is counted where it arrives.
        let counted = refused(&datapath);
        let stranger = UdpSocket::bind((HOME, 0)).unwrap();
        stranger.send_to(b"x", (HOME, ports.v4)).unwrap();
        let begun = Instant::now();
        while refused(&datapath) == counted {
            assert!(begun.elapsed() < Duration::from_secs(10), "it was not received");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_port_of_somebody_else_is_refused_with_its_holder_and_can_be_had_later() {
        let datapath = datapath(2);
        let other = UdpSocket::bind((HOME, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let refused = datapath.listen(port).unwrap_err();
        assert!(matches!(refused, underlay::Error::InUse { .. }), "{refused}");
        drop(other);
        datapath.listen(port).unwrap();
    }
}

//! Frames made by hand.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};

use crate::netns::Netns;

/// Sends raw Ethernet frames out of an interface, as a program with CAP_NET_RAW in a container
/// could.
///
/// # Panics
///
/// If the interface is not there or refuses a frame.
#[track_caller]
pub fn send_frames(netns: &Netns, interface: &str, frames: &[Vec<u8>]) {
    let socket = FrameSocket::open(netns, interface);
    for frame in frames {
        socket.send(frame).unwrap_or_else(|err| panic!("cannot send {} bytes: {err}", frame.len()));
    }
}

/// Sends one IPv4 packet with a payload of any `protocol` that the kernel gives no header of its own.
///
/// # Panics
///
/// If the namespace has no route or the kernel refuses it.
#[track_caller]
pub fn send_protocol(
    netns: &Netns,
    protocol: u8,
    (from, to): (Ipv4Addr, Ipv4Addr),
    payload: &[u8],
) {
    let socket = protocol_socket(netns, protocol, from);
    let to = socket2::SockAddr::from(SocketAddr::from((to, 0)));
    socket.send_to(payload, &to).expect("the packet is sent");
}

/// A raw socket of a protocol, at an address of a namespace.
#[track_caller]
pub(crate) fn protocol_socket(netns: &Netns, protocol: u8, from: Ipv4Addr) -> socket2::Socket {
    let socket = netns.enter(|| {
        socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::from(i32::from(protocol))),
        )
        .expect("root may open a raw socket")
    });
    let from = socket2::SockAddr::from(SocketAddr::from((from, 0)));
    socket.bind(&from).expect("the namespace has the address");
    socket
}

/// A packet socket that sends out of one interface.
pub(crate) struct FrameSocket {
    socket: OwnedFd,
    // The kernel's own listing gives the link-layer address in the form that sendto takes.
    address: nix::sys::socket::SockaddrStorage,
}

impl FrameSocket {
    #[track_caller]
    pub(crate) fn open(netns: &Netns, interface: &str) -> Self {
        netns.enter(|| {
            let address = nix::ifaddrs::getifaddrs()
                .expect("interfaces can be listed")
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address.filter(|address| address.as_link_addr().is_some()))
                .unwrap_or_else(|| panic!("no interface {interface}"));
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)
                .expect("root may open a packet socket");
            Self { socket, address }
        })
    }

    pub(crate) fn send(&self, frame: &[u8]) -> nix::Result<usize> {
        sendto(self.socket.as_raw_fd(), frame, &self.address, MsgFlags::empty())
    }
}

/// A TAP device as a virtual machine would have it: every frame passes through this value.
pub struct Tap {
    device: tun::Device,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

impl Tap {
    /// Makes the device `name` inside `netns` and brings it up.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[track_caller]
    #[must_use]
    pub fn create(netns: &Netns, name: &str, mtu: u16) -> Self {
        let device = netns.enter(|| {
            let mut configuration = tun::Configuration::default();
            configuration.tun_name(name).layer(tun::Layer::L2).mtu(mtu).up();
            tun::create(&configuration).unwrap_or_else(|err| panic!("cannot make {name}: {err}"))
        });
        device.set_nonblock().expect("a TAP can be non-blocking");
        Self { device }
    }

    /// Sends one frame into the kernel.
    ///
    /// # Panics
    ///
    /// If the device refuses it.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        self.device.write_all(frame).expect("an open TAP takes frames");
    }

    /// The next frame for which `wanted` holds, `None` if none comes within `wait`.
    pub fn receive(
        &mut self,
        wait: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let until = Instant::now() + wait;
        let mut buffer = vec![0; 1 << 16];
        while Instant::now() < until {
            match self.device.read(&mut buffer) {
                Ok(len) if wanted(&buffer[..len]) => return Some(buffer[..len].to_vec()),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(err) => panic!("cannot read from the TAP: {err}"),
            }
        }
        None
    }
}

/// An Ethernet frame with an IPv4 UDP datagram, its checksums right, for crafted traffic.
///
/// `payload` must fit an IPv4 packet.
#[must_use]
pub fn udp_frame(
    (to_mac, from_mac): ([u8; 6], [u8; 6]),
    (from, to): (Ipv4Addr, Ipv4Addr),
    (from_port, to_port): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).expect("the payload fits a datagram");
    let mut frame = Vec::with_capacity(42 + payload.len());
    frame.extend(to_mac);
    frame.extend(from_mac);
    frame.extend([0x08, 0x00]);
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    let mut udp = [0; 8];
    udp[0..2].copy_from_slice(&from_port.to_be_bytes());
    udp[2..4].copy_from_slice(&to_port.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let [len_high, len_low] = udp_len.to_be_bytes();
    let pseudo = [0, 17, len_high, len_low];
    let sum = match checksum(&[&ip[12..20], &pseudo, &udp, payload]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    frame.extend(udp);
    frame.extend(payload);
    frame
}

/// RFC 1071 over pieces of even length; only the last may be odd.
fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

//! A host that sends datagrams in the name of the server.

use std::fs;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};

use crate::lab::HEAD_ADDRESS;
use crate::server::ServerProc;

/// Sends UDP datagrams with a forged source address and port.
#[derive(Debug)]
pub struct Forger {
    socket: OwnedFd,
    source: SocketAddrV4,
}

impl Forger {
    /// Creates a forger of datagrams from `source`. Must be called on the forging host.
    pub fn new(source: SocketAddrV4) -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW));
        let socket = socket.expect("a raw socket, which needs root");
        Self { socket, source }
    }

    /// Sends a datagram. The kernel fills in length, identification and checksum of the IP header;
    /// the UDP checksum 0 means that there is none.
    pub fn send(&self, to: SocketAddrV4, payload: &[u8]) {
        let length = u16::try_from(8 + payload.len()).expect("one datagram");
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0];
        packet.extend(self.source.ip().octets());
        packet.extend(to.ip().octets());
        packet.extend(
            [self.source.port(), to.port(), length, 0].map(u16::to_be_bytes).as_flattened(),
        );
        packet.extend(payload);
        rustix::net::sendto(&self.socket, &packet, SendFlags::empty(), &to).expect("a network");
    }
}

/// Returns the address and port that the server's datagrams come from.
pub fn sending_socket(server: &ServerProc<'_>) -> SocketAddrV4 {
    let table = fs::read_to_string(format!("/proc/{}/net/udp", server.proc().pid()));
    let table = table.expect("the sockets of a running server");
    let address = format!("{:08X}:", u32::from_le_bytes(HEAD_ADDRESS.octets()));
    let port = table
        .lines()
        .find_map(|line| line.split_whitespace().nth(1)?.strip_prefix(&address))
        .expect("a UDP socket on the head's address");
    SocketAddrV4::new(HEAD_ADDRESS, u16::from_str_radix(port, 16).expect("a port"))
}

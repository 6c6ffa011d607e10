//! A socket that hears one multicast group.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tracing::warn;

use crate::quiet;

/// Room for what arrives while this program does not run: half a second at 1 Gbit/s, 50 ms at 10 Gbit/s.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Below this, bursts are lost on most machines.
const SMALL_BUFFER: usize = 1 << 20;

/// A member of one group.
#[derive(Debug)]
pub(super) struct GroupSocket(Socket);

impl GroupSocket {
    /// Hears the datagrams to this group and port that come in by the interface with this index.
    pub(super) fn subscribe(group: SocketAddrV4, interface: u32) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        enlarge_buffer(&socket)?;
        // None is vital: without them datagrams come one by one, drops go uncounted, and what came before what is guessed.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
        let _ = setsockopt(&socket, sockopt::ReceiveTimestampns, &true);
        // Only what is sent to this group, whatever else this machine is a member of.
        socket.set_multicast_all_v4(false)?;
        socket.bind(&group.into())?;
        socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(interface))?;
        Ok(Self(socket))
    }
}

impl AsFd for GroupSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As root beyond the system's limit, else up to it.
fn enlarge_buffer(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    // The kernel reports twice what it grants.
    let granted = socket.recv_buffer_size()? / 2;
    if granted < SMALL_BUFFER
        && let Some(more) = quiet::allow("small receive buffer", &granted)
    {
        warn!(granted, "small receive buffer, pages will be lost: raise net.core.rmem_max{more}");
    }
    Ok(())
}

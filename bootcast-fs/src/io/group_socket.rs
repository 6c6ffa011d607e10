//! UDP socket that receives one multicast group on one port.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tracing::warn;

use crate::log_limit;

/// Size of the receive buffer in bytes. It holds half a second at 1 Gbit/s, or 50 ms at 10 Gbit/s,
/// for times when the receive thread is not scheduled.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Receive buffers smaller than this, in bytes, cause a warning: on most machines they overflow in
/// bursts.
const SMALL_BUFFER: usize = 1 << 20;

/// A UDP socket subscribed to one group.
#[derive(Debug)]
pub(super) struct GroupSocket {
    socket: Socket,
    group: SocketAddrV4,
    /// Index of the interface on which datagrams arrive.
    interface: u32,
}

impl GroupSocket {
    /// Opens a socket for the datagrams to this group and port that arrive on the interface with
    /// this index.
    pub(super) fn subscribe(group: SocketAddrV4, interface: u32) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        enlarge_buffer(&socket)?;
        // Failures are ignored. Without GRO datagrams are read one by one, without RXQ_OVFL drops
        // are not counted, and without timestamps the order of the two ports is unknown.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
        let _ = setsockopt(&socket, sockopt::ReceiveTimestampns, &true);
        // Linux would otherwise also deliver other groups that this machine has joined on this
        // port.
        socket.set_multicast_all_v4(false)?;
        socket.bind(&group.into())?;
        socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(interface))?;
        Ok(Self { socket, group, interface })
    }

    /// Returns the MTU of the interface on which datagrams arrive: the path MTU of a socket that
    /// would send to the group from there.
    pub(super) fn mtu(&self) -> io::Result<u32> {
        let probe = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        let any = Ipv4Addr::UNSPECIFIED;
        rustix::net::sockopt::set_ip_multicast_if_with_ifindex(&probe, &any, &any, self.interface)?;
        // Connecting a UDP socket sends nothing.
        probe.connect(&self.group.into())?;
        let mtu = getsockopt(&probe, sockopt::IpMtu)?;
        u32::try_from(mtu).map_err(io::Error::other)
    }
}

impl AsFd for GroupSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Enlarges the receive buffer: beyond `net.core.rmem_max` as root, otherwise up to it. Warns if
/// the buffer stays small.
fn enlarge_buffer(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    // The kernel reports twice the size that it granted (socket(7), SO_RCVBUF).
    let granted = socket.recv_buffer_size()? / 2;
    if granted < SMALL_BUFFER
        && let Some(more) = log_limit::allow("small receive buffer", &granted)
    {
        warn!(
            granted,
            "small receive buffer, so pages will be lost: raise net.core.rmem_max{more}"
        );
    }
    Ok(())
}

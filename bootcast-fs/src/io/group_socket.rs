//! Socket that receives one multicast group.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tracing::warn;

use crate::quiet;

/// Receive buffer in bytes: half a second at 1 Gbit/s, 50 ms at 10 Gbit/s, for times in which this
/// program does not run.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Buffers smaller than this lose bursts on most machines.
const SMALL_BUFFER: usize = 1 << 20;

/// A socket subscribed to one group.
#[derive(Debug)]
pub(super) struct GroupSocket {
    socket: Socket,
    group: SocketAddrV4,
    /// Index of the interface that the datagrams come in by.
    interface: u32,
}

impl GroupSocket {
    /// Receives datagrams to this group and port that arrive on the interface with this index.
    pub(super) fn subscribe(group: SocketAddrV4, interface: u32) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        enlarge_buffer(&socket)?;
        // None of these is vital. Without them datagrams arrive one by one, drops are not counted,
        // or the order of the two ports is guessed.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
        let _ = setsockopt(&socket, sockopt::ReceiveTimestampns, &true);
        // Only datagrams of this group, whatever other groups this machine has joined.
        socket.set_multicast_all_v4(false)?;
        socket.bind(&group.into())?;
        socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(interface))?;
        Ok(Self { socket, group, interface })
    }

    /// The MTU of the interface that the datagrams come in by, as a path to the group from there.
    pub(super) fn mtu(&self) -> io::Result<u32> {
        let probe = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        let any = Ipv4Addr::UNSPECIFIED;
        rustix::net::sockopt::set_ip_multicast_if_with_ifindex(&probe, &any, &any, self.interface)?;
        // Does not send anything.
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

/// Enlarges the receive buffer: beyond the system's limit as root, else up to it.
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

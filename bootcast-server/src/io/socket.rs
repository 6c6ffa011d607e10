//! UDP socket that sends batches of datagrams with few system calls.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bootcast_proto::{Backoff, BitRate};
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::group_watch::OwnSender;
use super::interface::Interface;

/// Maximum number of datagrams in one send with GSO (generic segmentation offload). The kernel's
/// limit is 64 (`UDP_MAX_SEGMENTS` before 6.9). At an MTU of 1500, 44 datagrams are the most that
/// [`GSO_MAX_BYTES`] allows.
const GSO_MAX_DATAGRAMS: usize = 44;

/// Maximum number of bytes in one send with GSO: the largest UDP payload over IPv4.
const GSO_MAX_BYTES: usize = 65_507;

/// Time that a full socket buffer takes to drain at the configured rate.
const SEND_BUFFER_TIME: Duration = Duration::from_millis(4);

/// Bounds of the socket buffer in bytes: the kernel's usual default, and about what 8 Gbit/s carry
/// in 4 ms.
const SEND_BUFFER_BYTES: std::ops::RangeInclusive<u64> = 212_992..=4_194_304;

/// Options of the sending socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketConfig {
    /// TTL of the datagrams.
    pub ttl: u8,
    /// Length of a full datagram in bytes.
    pub datagram_len: usize,
    /// Rate ceiling, which determines the size of the socket buffer.
    pub rate: BitRate,
}

/// Why datagrams were not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The socket buffer is full. Call [`MulticastSocket::wait_writable`].
    #[error("socket buffer full")]
    Full,
    /// The kernel is short of memory. Polling the socket does not show when this ends.
    #[error("no buffer space")]
    NoBuffers,
    /// The interface is down or gone. It may come back.
    #[error("{0}")]
    Down(Errno),
    /// The kernel refuses datagrams to this group, for example because of a firewall. It may accept
    /// those to other groups.
    #[error("{0}")]
    Refused(Errno),
}

/// Sends datagrams to groups through one interface.
#[derive(Debug)]
pub struct MulticastSocket {
    socket: UdpSocket,
    datagram_len: usize,
    /// Whether GSO is on: the kernel splits one large buffer into datagrams.
    gso: bool,
    /// When GSO is tried again after it failed; `None` if the kernel does not know it.
    gso_retry: Option<Retry>,
}

/// Attempts at something that failed.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    /// Failures before the next attempt.
    failures: u32,
}

/// Pauses before GSO is tried again. A device may lack it for a moment, while somebody changes its
/// options, and some lack it for good.
const GSO_RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(600));

/// Returns the number of datagrams of `datagram_len` bytes that one system call can send.
pub fn batch_datagrams(datagram_len: usize) -> usize {
    (GSO_MAX_BYTES / datagram_len).clamp(1, GSO_MAX_DATAGRAMS)
}

impl MulticastSocket {
    /// Opens a socket on the interface, with GSO if the kernel supports it.
    pub fn open(interface: &Interface, config: &SocketConfig) -> std::io::Result<Self> {
        let socket = UdpSocket::bind((interface.address, 0))?;
        socket.set_nonblocking(true)?;
        socket.set_multicast_ttl_v4(u32::from(config.ttl))?;
        socket.set_multicast_loop_v4(true)?;
        let buffer = config
            .rate
            .bytes_in(SEND_BUFFER_TIME)
            .clamp(*SEND_BUFFER_BYTES.start(), *SEND_BUFFER_BYTES.end());
        let buffer = usize::try_from(buffer).unwrap_or(usize::MAX);
        socket2::SockRef::from(&socket).set_send_buffer_size(buffer)?;
        let datagram_len = config.datagram_len;
        let mut socket = Self { socket, datagram_len, gso: false, gso_retry: None };
        socket.set_interface(interface)?;
        Ok(socket)
    }

    /// Returns what tells the datagrams on this interface from those of other senders.
    pub fn own_sender(&self, interface: &Interface) -> std::io::Result<OwnSender> {
        match self.socket.local_addr()? {
            SocketAddr::V4(address) => Ok(OwnSender { address, interface: interface.index }),
            SocketAddr::V6(_) => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    /// Sends through this interface from now on. Keeps the source address and port, by which
    /// clients recognise a cast.
    pub fn set_interface(&mut self, interface: &Interface) -> std::io::Result<()> {
        rustix::net::sockopt::set_ip_multicast_if_with_ifindex(
            &self.socket,
            &Ipv4Addr::UNSPECIFIED,
            &interface.address,
            interface.index,
        )?;
        self.gso = self.set_gso(true);
        self.gso_retry = None;
        Ok(())
    }

    /// Sends consecutive datagrams, all full except the last. Returns the number of bytes sent,
    /// which are whole datagrams from the front.
    pub fn send(&mut self, datagrams: &[u8], group: SocketAddrV4) -> Result<usize, SendError> {
        if self.gso_retry.is_some_and(|retry| !self.gso && retry.at <= Instant::now()) {
            self.gso = self.set_gso(true);
        }
        if !self.gso || datagrams.len() <= self.datagram_len {
            return self.send_each(datagrams, group).map_err(Self::error);
        }
        match rustix::net::sendto(&self.socket, datagrams, SendFlags::empty(), &group) {
            // Either the device cannot segment after all (no checksum offload, IPsec), or the call
            // failed for another reason and fails again.
            Err(Errno::INVAL | Errno::IO | Errno::OPNOTSUPP | Errno::MSGSIZE) => {
                let sent = self.send_each(datagrams, group).map_err(Self::error)?;
                self.give_gso_up();
                Ok(sent)
            }
            sent => {
                if sent.is_ok() && self.gso_retry.take().is_some() {
                    tracing::info!("the interface does UDP segmentation offload again");
                }
                sent.map_err(Self::error)
            }
        }
    }

    /// Sends without GSO for a while.
    fn give_gso_up(&mut self) {
        self.set_gso(false);
        self.gso = false;
        let failures = self.gso_retry.map_or(0, |retry| retry.failures);
        if failures == 0 {
            tracing::info!("the interface has no UDP segmentation offload: sending without it");
        }
        let at = Instant::now() + GSO_RETRY.pause(failures);
        self.gso_retry = Some(Retry { at, failures: failures.saturating_add(1) });
    }

    /// Waits until the socket accepts datagrams again or the timeout expires.
    pub fn wait_writable(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).ok();
        let mut waiting = [PollFd::new(&self.socket, PollFlags::OUT)];
        // An interrupted wait is merely short.
        let _ = poll(&mut waiting, timeout.as_ref());
    }

    /// Sends datagrams without GSO, in one call of sendmmsg(2).
    fn send_each(&mut self, datagrams: &[u8], group: SocketAddrV4) -> Result<usize, Errno> {
        let group = Some(SockaddrIn::from(group));
        let slices: Vec<[IoSlice<'_>; 1]> =
            datagrams.chunks(self.datagram_len).map(|one| [IoSlice::new(one)]).collect();
        let groups = vec![group; slices.len()];
        let mut headers = MultiHeaders::preallocate(slices.len(), None);
        if self.gso {
            self.set_gso(false);
        }
        let sent = sendmmsg(
            self.socket.as_raw_fd(),
            &mut headers,
            &slices,
            &groups,
            [],
            MsgFlags::empty(),
        );
        let sent = sent
            .map(|results| results.map(|message| message.bytes).sum())
            .map_err(|errno| Errno::from_raw_os_error(errno as i32));
        if self.gso {
            self.set_gso(true);
        }
        sent
    }

    /// Turns GSO on or off. Returns whether the kernel accepted that.
    fn set_gso(&self, on: bool) -> bool {
        let len = if on { i32::try_from(self.datagram_len).unwrap_or(0) } else { 0 };
        setsockopt(&self.socket, UdpGsoSegment, &len).is_ok()
    }

    /// Classifies an error by what the caller can do.
    fn error(errno: Errno) -> SendError {
        match errno {
            Errno::AGAIN | Errno::INTR => SendError::Full,
            Errno::NOBUFS | Errno::NOMEM => SendError::NoBuffers,
            Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NODEV
            | Errno::NXIO
            | Errno::ADDRNOTAVAIL => SendError::Down(errno),
            other => SendError::Refused(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::interface::resolve;

    const DATAGRAM: usize = 1472;

    /// Creates a receiver that joined a group, and a sender to it.
    fn pair() -> (UdpSocket, SocketAddrV4, MulticastSocket) {
        let group = Ipv4Addr::new(239, 254, 17, 1);
        let member = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        member.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let port = member.local_addr().unwrap().port();
        let loopback = resolve(Some(&"lo".parse().unwrap()), group).unwrap();
        let config =
            SocketConfig { ttl: 1, datagram_len: DATAGRAM, rate: "1gbit".parse().unwrap() };
        let sender = MulticastSocket::open(&loopback, &config).unwrap();
        (member, SocketAddrV4::new(group, port), sender)
    }

    /// Three full datagrams and a short one, each filled with its own byte.
    fn batch() -> Vec<u8> {
        let full = (0..3).flat_map(|byte| std::iter::repeat_n(byte, DATAGRAM));
        full.chain([3; 100]).collect()
    }

    fn received(member: &UdpSocket) -> Vec<(usize, u8)> {
        let mut datagram = vec![0; 65_536];
        let one = |_| (member.recv(&mut datagram).unwrap(), datagram[0]);
        (0..4).map(one).collect()
    }

    const WHOLE_BATCH: [(usize, u8); 4] = [(DATAGRAM, 0), (DATAGRAM, 1), (DATAGRAM, 2), (100, 3)];

    #[test]
    fn a_batch_arrives_as_separate_datagrams() {
        let (member, group, mut sender) = pair();
        assert_eq!(sender.send(&batch(), group), Ok(batch().len()));
        assert_eq!(received(&member), WHOLE_BATCH);
    }

    #[test]
    fn without_gso_a_batch_arrives_as_the_same_datagrams() {
        let (member, group, mut sender) = pair();
        sender.gso = false;
        sender.set_gso(false);
        assert_eq!(sender.send(&batch(), group), Ok(batch().len()));
        assert_eq!(received(&member), WHOLE_BATCH);
    }

    #[test]
    fn gso_that_failed_is_tried_again() {
        let (member, group, mut sender) = pair();
        for failures in 1..4 {
            sender.give_gso_up();
            assert!(!sender.gso);
            let retry = sender.gso_retry.as_mut().unwrap();
            assert_eq!(retry.failures, failures);
            retry.at += Duration::from_secs(3600);
            assert_eq!(sender.send(&batch(), group), Ok(batch().len()));
            assert!(!sender.gso);
            received(&member);
            sender.gso_retry.as_mut().unwrap().at = Instant::now();
            // A single datagram does not show whether it works.
            sender.send(&batch()[..100], group).unwrap();
            assert!(sender.gso && sender.gso_retry.is_some());
            member.recv(&mut [0; 2000]).unwrap();
        }
        assert_eq!(sender.send(&batch(), group), Ok(batch().len()));
        assert_eq!(received(&member), WHOLE_BATCH);
        assert!(sender.gso && sender.gso_retry.is_none());
    }

    #[test]
    fn a_forbidden_destination_is_refused_and_does_not_count_as_interface_down() {
        let (_, group, mut sender) = pair();
        // The kernel forbids broadcasts unless the socket enables them.
        let forbidden = SocketAddrV4::new(Ipv4Addr::BROADCAST, group.port());
        let refused = Err(SendError::Refused(Errno::ACCESS));
        assert_eq!(sender.send(&batch(), forbidden), refused);
        assert_eq!(sender.send(&batch()[..100], forbidden), refused);
    }

    #[test]
    fn the_source_of_the_datagrams_survives_a_change_of_interface() {
        let (member, group, mut sender) = pair();
        let mut source = || {
            sender.send(&[7; 100], group).unwrap();
            let loopback = resolve(Some(&"lo".parse().unwrap()), *group.ip()).unwrap();
            sender.set_interface(&loopback).unwrap();
            member.recv_from(&mut [0; 100]).unwrap().1
        };
        assert_eq!(source(), source());
    }

    #[test]
    fn a_batch_fits_the_largest_udp_payload() {
        assert_eq!(batch_datagrams(DATAGRAM), 44);
        assert_eq!(batch_datagrams(17), 44);
        assert_eq!(batch_datagrams(8972), 7);
        assert_eq!(batch_datagrams(65_507), 1);
    }
}

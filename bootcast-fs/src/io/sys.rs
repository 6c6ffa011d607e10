//! `recvmmsg` with the metadata of each message: sender, time of arrival, the segment size if GRO
//! merged datagrams, and the socket's drop count.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Bytes of a slot: the largest message that a UDP socket with GRO returns.
const SLOT_LEN: usize = 65_536;
/// Distance between the starts of two slots, in bytes. Datagrams that arrive one by one fill only
/// the starts of slots. At a power of two these would compete for the same few CPU cache sets.
const SLOT_STRIDE: usize = SLOT_LEN + 1536;
/// Most messages that one call receives.
const SLOTS: usize = 32;
/// Most messages that one call receives after messages larger than [`LARGE`] on average. Their
/// bytes are then still in the CPU cache when they are checked and stored.
const FEW_SLOTS: usize = 4;
/// Mean message size, in bytes, above which the next call receives [`FEW_SLOTS`].
const LARGE: usize = 8 << 10;
/// Bytes of a `sockaddr_in`.
const ADDRESS_LEN: libc::socklen_t = 16;
const _: () = assert!(ADDRESS_LEN as usize == size_of::<libc::sockaddr_in>());
/// Bytes of an `int` in a control message.
const INT_LEN: libc::c_uint = 4;
const _: () = assert!(INT_LEN as usize == size_of::<libc::c_int>());
/// Bytes of a `timespec` with 64-bit fields in a control message.
const TIME_LEN: libc::c_uint = 16;

/// Space for the three control messages of a datagram: segment size, drop count and timestamp.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 96]);

/// A batch of received messages. Each call of `receive` reuses the buffers.
pub(super) struct RecvBatch {
    buffer: Vec<u8>,
    addresses: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    /// Number of messages that the next call will request.
    slots: usize,
    /// Number of messages that the last call requested.
    requested: usize,
    /// Number of messages that the last call received.
    received: usize,
    /// Number of messages already taken from the batch.
    taken: usize,
}

/// One message: a datagram, or several of equal length that GRO merged (the last may be shorter).
pub(super) struct Message<'a> {
    pub(super) from: SocketAddr,
    bytes: &'a [u8],
    /// Bytes of each datagram except the last.
    segment: usize,
    /// Number of datagrams that the socket dropped since its creation, modulo 2^32. `None` if the
    /// kernel does not state it.
    pub(super) drops: Option<u32>,
    /// Time of arrival since 1970, from the kernel; `None` if the socket has no timestamps.
    /// Messages that arrived before the kernel began to take timestamps have the time of their
    /// reading.
    at: Option<Duration>,
}

impl<'a> Message<'a> {
    /// Returns the datagrams of the message.
    pub(super) fn datagrams(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment)
    }
}

// SAFETY: the raw pointers inside `headers` and `iovecs` point into the other fields' heap memory
// and are written anew by every `receive` before they are used.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    pub(super) fn new() -> Self {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (address, header, iovec) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            buffer: vec![0; SLOTS * SLOT_STRIDE],
            addresses: vec![address; SLOTS],
            controls: vec![Control([0; 96]); SLOTS],
            headers: vec![header; SLOTS],
            iovecs: vec![iovec; SLOTS],
            slots: SLOTS,
            requested: SLOTS,
            received: 0,
            taken: 0,
        }
    }

    /// Receives waiting messages, without blocking. Returns their number.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.clear();
        self.requested = self.slots;
        for (slot, bytes) in
            self.buffer.chunks_exact_mut(SLOT_STRIDE).take(self.requested).enumerate()
        {
            self.iovecs[slot] =
                libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: SLOT_LEN };
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_iov = &raw mut self.iovecs[slot];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.addresses[slot]).cast();
            header.msg_namelen = ADDRESS_LEN;
            header.msg_control = (&raw mut self.controls[slot]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: the first `requested` headers were set just above. Each points to live, disjoint
        // buffers of the lengths that it states.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                libc::c_uint::try_from(self.requested).unwrap_or(1),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(received) => {
                self.received = received;
                let bytes: usize =
                    self.headers[..received].iter().map(|it| it.msg_len as usize).sum();
                self.slots = if bytes > received * LARGE { FEW_SLOTS } else { SLOTS };
                Ok(received)
            }
            Err(_) => match io::Error::last_os_error() {
                error
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    Ok(0)
                }
                error => Err(error),
            },
        }
    }

    /// Returns the number of messages that the last call received.
    pub(super) fn len(&self) -> usize {
        self.received
    }

    /// Returns whether the last call filled every slot, so that more messages may wait.
    pub(super) fn is_full(&self) -> bool {
        self.received == self.requested
    }

    /// Drops the messages of the last call.
    pub(super) fn clear(&mut self) {
        (self.received, self.taken) = (0, 0);
    }

    /// Returns the time of arrival of the first message that was not taken. `None` if there is no
    /// such message or its time is unknown.
    pub(super) fn next_at(&self) -> Option<Duration> {
        (self.taken < self.received).then(|| self.message(self.taken).at).flatten()
    }

    /// Returns whether every message was taken.
    pub(super) fn is_used_up(&self) -> bool {
        self.taken == self.received
    }

    /// Takes the messages that arrived no later than `until`, or all if `until` is `None`. A
    /// message of unknown time counts as early.
    pub(super) fn take_until(
        &mut self,
        until: Option<Duration>,
    ) -> impl Iterator<Item = Message<'_>> {
        let start = self.taken;
        let is_later = |slot: usize| until.is_some_and(|until| self.message(slot).at > Some(until));
        let end = (start..self.received).find(|slot| is_later(*slot)).unwrap_or(self.received);
        self.taken = end;
        let batch: &Self = self;
        (start..end).map(|slot| batch.message(slot))
    }

    /// Returns all messages of the last call.
    pub(super) fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        (0..self.received).map(|slot| self.message(slot))
    }

    fn message(&self, slot: usize) -> Message<'_> {
        let header = &self.headers[slot];
        let len = (header.msg_len as usize).min(SLOT_LEN);
        let bytes = &self.buffer[slot * SLOT_STRIDE..][..len];
        let (mut segment, mut drops, mut at) = (len, None, None);
        // SAFETY: the kernel filled `msg_control` of this header up to `msg_controllen`, and the
        // CMSG_* functions stay inside it. Each payload is read only after a check that it is long
        // enough, as bytes, which have no alignment.
        unsafe {
            let mut next = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            while let Some(message) = next.as_ref() {
                let has_int = message.cmsg_len >= libc::CMSG_LEN(INT_LEN) as usize;
                let value = libc::CMSG_DATA(next).cast::<[u8; INT_LEN as usize]>();
                let has_time = message.cmsg_len >= libc::CMSG_LEN(TIME_LEN) as usize;
                match (message.cmsg_level, message.cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) if has_int => {
                        segment = usize::try_from(i32::from_ne_bytes(value.read())).unwrap_or(len);
                    }
                    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if has_int => {
                        drops = Some(u32::from_ne_bytes(value.read()));
                    }
                    (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) if has_time => {
                        at = time(libc::CMSG_DATA(next).cast::<[[u8; 8]; 2]>().read());
                    }
                    _ => {}
                }
                next = libc::CMSG_NXTHDR(&raw const header.msg_hdr, next);
            }
        }
        let address = &self.addresses[slot];
        let host = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        let from = SocketAddr::from((host, u16::from_be(address.sin_port)));
        Message { from, bytes, segment: segment.max(1), drops, at }
    }
}

/// Parses a `struct timespec` of two 64-bit words: seconds and nanoseconds.
fn time(words: [[u8; 8]; 2]) -> Option<Duration> {
    let [seconds, nanoseconds] = words.map(i64::from_ne_bytes);
    Some(Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::{Instant, SystemTime};

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    /// Binds a socket on which each peek sees the datagram after the last one that was peeked at.
    fn receiver() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let first: libc::c_int = 0;
        // SAFETY: the address and the length are those of a live int, which the kernel only reads.
        let set = unsafe {
            let value = (&raw const first).cast();
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEEK_OFF,
                value,
                INT_LEN,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        socket
    }

    /// Waits until the next datagram is in the queue. A busy machine delivers it with a delay.
    fn wait_queued(to: &UdpSocket) {
        to.peek(&mut vec![0; SLOT_LEN]).expect("a datagram within the deadline");
    }

    /// Sends a datagram and waits until it is in the queue of `to`.
    fn deliver(from: &UdpSocket, bytes: &[u8], to: &UdpSocket) {
        from.send_to(bytes, to.local_addr().unwrap()).unwrap();
        wait_queued(to);
    }

    #[test]
    fn large_messages_are_received_four_at_a_time() {
        let socket = receiver();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut batch = RecvBatch::new();
        let mut receive_sizes = |count: usize, len: usize| {
            let bytes = vec![1; len];
            for _ in 0..count {
                deliver(&sender, &bytes, &socket);
            }
            let receive = || batch.receive(socket.as_fd()).unwrap();
            std::iter::repeat_with(receive).take_while(|received| *received > 0).collect::<Vec<_>>()
        };
        assert_eq!(receive_sizes(6, 9000), [6]);
        assert_eq!(receive_sizes(6, 9000), [4, 2]);
        assert_eq!(receive_sizes(6, 1472), [4, 2]);
        assert_eq!(receive_sizes(6, 1472), [6]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a deadline")]
    fn messages_of_two_sockets_are_taken_in_the_order_of_arrival() {
        let sockets = [receiver(), receiver()];
        for socket in &sockets {
            setsockopt(socket, sockopt::ReceiveTimestampns, &true).unwrap();
        }
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let [mut left, mut right] = [RecvBatch::new(), RecvBatch::new()];
        // The kernel begins to take timestamps shortly after the host's first socket asked for
        // them, in a work queue (net/core/dev.c, net_enable_timestamp). An earlier datagram gets
        // the time of its first use.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut has_time_of_arrival = || {
            sender.send_to(&[0], sockets[0].local_addr().unwrap()).unwrap();
            let arrived = SystemTime::UNIX_EPOCH.elapsed().unwrap();
            wait_queued(&sockets[0]);
            assert_eq!(left.receive(sockets[0].as_fd()).unwrap(), 1);
            left.next_at().is_some_and(|at| at <= arrived)
        };
        while !has_time_of_arrival() {
            assert!(Instant::now() < deadline, "the kernel takes no timestamps");
        }
        for (number, to) in [0, 0, 1, 0, 1, 1].into_iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            deliver(&sender, &[number], &sockets[to]);
        }
        assert_eq!(left.receive(sockets[0].as_fd()).unwrap(), 3);
        assert_eq!(right.receive(sockets[1].as_fd()).unwrap(), 3);
        let mut seen = Vec::new();
        let take = |batch: &mut RecvBatch, until, seen: &mut Vec<_>| {
            seen.extend(batch.take_until(until).map(|message| message.bytes[0]));
        };
        while !left.is_used_up() {
            take(&mut left, right.next_at(), &mut seen);
            take(&mut right, left.next_at(), &mut seen);
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        assert!(right.is_used_up() && right.next_at().is_none());
    }

    #[test]
    fn each_datagram_is_received_once_with_its_sender() {
        let receiver = receiver();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut batch = RecvBatch::new();
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 0);
        for number in 0..40u8 {
            deliver(&sender, &[number; 100], &receiver);
        }
        let mut seen = Vec::new();
        while batch.receive(receiver.as_fd()).unwrap() > 0 {
            for message in batch.messages() {
                assert_eq!(message.from, sender.local_addr().unwrap());
                seen.extend(message.datagrams().map(|datagram| (datagram[0], datagram.len())));
            }
        }
        assert_eq!(seen, (0..40).map(|number| (number, 100)).collect::<Vec<_>>());
    }
}

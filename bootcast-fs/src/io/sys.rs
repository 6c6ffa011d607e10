//! `recvmmsg` with the facts that accompany a datagram: sender, time of arrival, segment size if
//! GRO joined several, and the socket's drop count.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Largest message that a UDP socket with GRO returns, in bytes.
const SLOT_LEN: usize = 65_536;
/// Distance between slots. Datagrams that arrive one by one fill only the starts of the slots. At a
/// power of two, these starts would compete for the same few cache sets.
const SLOT_STRIDE: usize = SLOT_LEN + 1536;
/// Most messages in one call.
const SLOTS: usize = 32;
/// Most messages in one call if they are this large on average, so that data is still in the CPU
/// cache when it is checked and stored.
const FEW_SLOTS: usize = 4;
const LARGE: usize = 8 << 10;
/// Length of a `sockaddr_in`.
const ADDRESS_LEN: libc::socklen_t = 16;
const _: () = assert!(ADDRESS_LEN as usize == size_of::<libc::sockaddr_in>());
/// Length of an int in a control message.
const INT_LEN: libc::c_uint = 4;
const _: () = assert!(INT_LEN as usize == size_of::<libc::c_int>());
/// Length of a time in a control message.
const TIME_LEN: libc::c_uint = 16;

/// Space for three control messages: two ints and a time.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 96]);

/// A batch of received messages. Each call reuses the buffers.
pub(super) struct RecvBatch {
    buffer: Vec<u8>,
    addresses: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    /// Number of messages that the next call requests, and that the last call requested.
    slots: usize,
    asked: usize,
    received: usize,
    /// Number of messages already taken from the batch.
    taken: usize,
}

/// One message: a datagram, or several of equal length that GRO joined (the last may be shorter).
pub(super) struct Message<'a> {
    pub(super) from: SocketAddr,
    bytes: &'a [u8],
    segment: usize,
    /// Datagrams that the socket dropped since its creation, as counted by the kernel (modulo
    /// 2^32).
    pub(super) drops: Option<u32>,
    /// Time of arrival by the clock of the kernel's timestamps; `None` if the socket has none. It
    /// is the time of reading for messages that arrived before the kernel began to stamp.
    at: Option<Duration>,
}

impl<'a> Message<'a> {
    /// Datagrams in the message.
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
            asked: SLOTS,
            received: 0,
            taken: 0,
        }
    }

    /// Receives what is there without waiting. Returns 0 if nothing is there.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.clear();
        self.asked = self.slots;
        for (slot, bytes) in self.buffer.chunks_exact_mut(SLOT_STRIDE).take(self.asked).enumerate()
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
        // SAFETY: the first `asked` headers each point to live, disjoint buffers of the lengths
        // they state, set just above.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                libc::c_uint::try_from(self.asked).unwrap_or(1),
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

    /// Messages that the last call returned.
    pub(super) fn len(&self) -> usize {
        self.received
    }

    /// Whether the last call filled every slot, so that more may wait.
    pub(super) fn is_full(&self) -> bool {
        self.received == self.asked
    }

    /// Drops the messages of the last call.
    pub(super) fn clear(&mut self) {
        (self.received, self.taken) = (0, 0);
    }

    /// Time of arrival of the first message not taken; `None` if there is none or its time is
    /// unknown.
    pub(super) fn next_at(&self) -> Option<Duration> {
        (self.taken < self.received).then(|| self.message(self.taken).at).flatten()
    }

    /// Whether every message was taken.
    pub(super) fn is_used_up(&self) -> bool {
        self.taken == self.received
    }

    /// Takes the messages that arrived until `until`. Takes all if that is `None` or a message's
    /// time is unknown.
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

    /// Messages of the last call.
    pub(super) fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        (0..self.received).map(|slot| self.message(slot))
    }

    fn message(&self, slot: usize) -> Message<'_> {
        let header = &self.headers[slot];
        let len = (header.msg_len as usize).min(SLOT_LEN);
        let bytes = &self.buffer[slot * SLOT_STRIDE..][..len];
        let (mut segment, mut drops, mut at) = (len, None, None);
        // SAFETY: the kernel filled `msg_control` of this header up to `msg_controllen`; CMSG_*
        // stay inside it, and the payload of each message read here is checked to hold what is
        // read, at any alignment.
        unsafe {
            let mut next = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            while let Some(message) = next.as_ref() {
                let enough = message.cmsg_len >= libc::CMSG_LEN(INT_LEN) as usize;
                let value = libc::CMSG_DATA(next).cast::<[u8; INT_LEN as usize]>();
                let has_time = message.cmsg_len >= libc::CMSG_LEN(TIME_LEN) as usize;
                match (message.cmsg_level, message.cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) if enough => {
                        segment = usize::try_from(i32::from_ne_bytes(value.read())).unwrap_or(len);
                    }
                    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if enough => {
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

    /// Binds a socket on which every peek sees the datagram behind the one of the last peek.
    fn receiver() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let first: libc::c_int = 0;
        // SAFETY: the kernel reads the int that it is given the address and the length of.
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

    /// Waits until the next datagram is in the queue. A busy machine delivers it some time after
    /// it was sent.
    fn wait_queued(to: &UdpSocket) {
        to.peek(&mut vec![0; SLOT_LEN]).expect("a datagram within the deadline");
    }

    /// Sends a datagram and waits until it is in the queue of `to`.
    fn deliver(from: &UdpSocket, bytes: &[u8], to: &UdpSocket) {
        from.send_to(bytes, to.local_addr().unwrap()).unwrap();
        wait_queued(to);
    }

    #[test]
    fn large_messages_are_taken_a_few_at_a_time() {
        let socket = receiver();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut batch = RecvBatch::new();
        let mut taken_of = |count: usize, len: usize| {
            let bytes = vec![1; len];
            for _ in 0..count {
                deliver(&sender, &bytes, &socket);
            }
            let receive = || batch.receive(socket.as_fd()).unwrap();
            std::iter::repeat_with(receive).take_while(|taken| *taken > 0).collect::<Vec<_>>()
        };
        assert_eq!(taken_of(6, 9000), [6]);
        assert_eq!(taken_of(6, 9000), [4, 2]);
        assert_eq!(taken_of(6, 1472), [4, 2]);
        assert_eq!(taken_of(6, 1472), [6]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a deadline")]
    fn messages_are_taken_in_the_order_in_which_they_came_to_two_sockets() {
        let sockets = [receiver(), receiver()];
        for socket in &sockets {
            setsockopt(socket, sockopt::ReceiveTimestampns, &true).unwrap();
        }
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let [mut left, mut right] = [RecvBatch::new(), RecvBatch::new()];
        // The kernel begins to stamp what arrives a moment after the host's first socket asked for
        // it (net/core/dev.c, net_enable_timestamp: a work queue does it). A datagram from before
        // that gets the time at which it is first looked at.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut is_stamped_on_arrival = || {
            sender.send_to(&[0], sockets[0].local_addr().unwrap()).unwrap();
            let arrived = SystemTime::UNIX_EPOCH.elapsed().unwrap();
            wait_queued(&sockets[0]);
            assert_eq!(left.receive(sockets[0].as_fd()).unwrap(), 1);
            left.next_at().is_some_and(|at| at <= arrived)
        };
        while !is_stamped_on_arrival() {
            assert!(Instant::now() < deadline, "what arrives is not stamped");
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
    fn datagrams_come_with_their_sender_and_none_comes_twice() {
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

//! The two sockets of an object, and the order of arrival between them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use tracing::debug;

use crate::io::group_socket::GroupSocket;
use crate::io::interface::InterfaceChoice;
use crate::io::now;
use crate::io::requests::ServerAddress;
use crate::io::sys::RecvBatch;
use crate::object::{Object, Ready};
use crate::receiver::Subscription;

/// Most batches taken from one socket before the others are served.
const BATCHES_A_TURN: usize = 8;
/// Most batches while datagrams of the repair channel may have arrived later: as many as a full
/// receive buffer holds.
const MAX_BATCHES: usize = 1024;
/// After this many data messages the repair socket is polled again, so that beacons are never older
/// than the pages they count.
const REPAIR_POLL_INTERVAL_MESSAGES: usize = 8;

/// Port of a group. Also the lowest bit of its `epoll` data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Pages = 0,
    Repair = 1,
}

impl Channel {
    /// Returns the `epoll` data of this channel of an object. Objects count from 1, so it is never
    /// 0 or 1.
    fn epoll_data(self, object: u64) -> epoll::EventData {
        epoll::EventData::new_u64(object * 2 + self as u64)
    }

    /// Returns the object and the channel of `epoll` data.
    pub(super) fn of_epoll_data(data: u64) -> (u64, Self) {
        (data / 2, if data % 2 == Self::Repair as u64 { Self::Repair } else { Self::Pages })
    }
}

/// Opens sockets on the interface that multicast of the server arrives on.
#[derive(Debug)]
pub(in crate::io) struct Subscriber {
    pub(in crate::io) interface: InterfaceChoice,
    pub(in crate::io) server: Arc<ServerAddress>,
}

impl Subscriber {
    /// Opens the sockets of `object`. Tells the object which of them cannot be opened.
    pub(super) fn subscribe(
        &self,
        epoll: &OwnedFd,
        object: &Object,
        subscription: &Subscription,
    ) -> SocketPair {
        let open = |group, channel| self.open(epoll, object, group, channel);
        SocketPair {
            pages: open(subscription.connect, Channel::Pages),
            repair: subscription.repair.and_then(|group| open(group, Channel::Repair)),
            place: self.interface().ok().map(|interface| (*subscription, interface)),
        }
    }

    /// Returns the index of the interface, or 0 to let the kernel choose.
    pub(super) fn interface(&self) -> io::Result<u32> {
        self.server.last().map_or(Ok(0), |server| self.interface.index(server))
    }

    fn open(
        &self,
        epoll: &OwnedFd,
        object: &Object,
        group: SocketAddrV4,
        channel: Channel,
    ) -> Option<CountingSocket> {
        match self.try_open(epoll, group, channel.epoll_data(object.id())) {
            Ok(socket) => {
                if let (Channel::Pages, Ok(mtu)) = (channel, socket.mtu()) {
                    object.handle_mtu(mtu, now());
                }
                Some(CountingSocket { socket, drops: 0 })
            }
            Err(error) => {
                debug!(path = %object.key().path, %group, %error, "cannot listen to the group");
                let is_repair = channel == Channel::Repair;
                object.handle_no_socket(is_repair, &error.to_string(), now());
                None
            }
        }
    }

    fn try_open(
        &self,
        epoll: &OwnedFd,
        group: SocketAddrV4,
        data: epoll::EventData,
    ) -> io::Result<GroupSocket> {
        let socket = GroupSocket::subscribe(group, self.interface()?)?;
        epoll::add(epoll, &socket, data, epoll::EventFlags::IN)?;
        Ok(socket)
    }
}

/// Buffers for one batch of each channel, used for all objects in turn.
pub(super) struct Batches {
    pages: RecvBatch,
    repair: RecvBatch,
}

impl Batches {
    pub(super) fn new() -> Self {
        Self { pages: RecvBatch::new(), repair: RecvBatch::new() }
    }
}

/// The sockets of one object. Both are `None` while it is not subscribed.
#[derive(Debug, Default)]
pub(super) struct SocketPair {
    pages: Option<CountingSocket>,
    repair: Option<CountingSocket>,
    /// Group and ports that the sockets listen to, and the index of their interface.
    place: Option<(Subscription, u32)>,
}

impl SocketPair {
    /// Returns what to listen to on `interface`; `None` if the sockets do, or if there are none.
    pub(super) fn moved_to(&self, interface: u32) -> Option<Subscription> {
        let (subscription, present) = self.place?;
        (present != interface).then_some(subscription)
    }

    /// Receives what waits, and hands it to `object` in the order of arrival: a beacon counts what
    /// was sent before it, and the report compares this with what had arrived by then.
    ///
    /// `ready` is the channel that `epoll` named. Calls `answer` with the reads that can be
    /// answered. Returns the number of messages with pages.
    pub(super) fn receive(
        &mut self,
        object: &Object,
        ready: Channel,
        batches: &mut Batches,
        mut answer: impl FnMut(Vec<Ready>),
    ) -> u32 {
        let Batches { pages, repair } = batches;
        let mut messages = 0;
        repair.clear();
        if ready == Channel::Repair {
            self.poll_repair(object, repair);
        }
        for batch in 0..MAX_BATCHES {
            let goes_on = batch < BATCHES_A_TURN || !repair.is_used_up();
            if !goes_on || !self.poll_pages(object, pages) {
                break;
            }
            messages += pages.len();
            let is_behind = pages.len() > REPAIR_POLL_INTERVAL_MESSAGES || pages.is_full();
            if is_behind && repair.is_used_up() {
                self.poll_repair(object, repair);
            }
            while !pages.is_used_up() {
                answer(object.receive(&take_earlier(pages, repair), now()));
                if !pages.is_used_up() {
                    object.receive_repair(&take_earlier(repair, pages), now());
                }
            }
            if !pages.is_full() || object.is_resting() {
                break;
            }
        }
        pages.clear();
        if !repair.is_used_up() {
            object.receive_repair(&take_earlier(repair, pages), now());
        }
        u32::try_from(messages).unwrap_or(u32::MAX)
    }

    /// Receives a batch of pages. Returns `false` if none waits.
    fn poll_pages(&mut self, object: &Object, batch: &mut RecvBatch) -> bool {
        self.pages.as_mut().is_some_and(|socket| socket.receive(object, batch))
    }

    /// Receives a batch of the repair channel, which is empty if nothing waits.
    fn poll_repair(&mut self, object: &Object, batch: &mut RecvBatch) {
        if !self.repair.as_mut().is_some_and(|socket| socket.receive(object, batch)) {
            batch.clear();
        }
    }
}

/// A socket whose drops are counted.
#[derive(Debug)]
struct CountingSocket {
    socket: GroupSocket,
    /// The kernel's drop count at the last batch.
    drops: u32,
}

impl CountingSocket {
    /// Receives what waits into `batch`. Returns `false` if that is nothing.
    fn receive(&mut self, object: &Object, batch: &mut RecvBatch) -> bool {
        match batch.receive(self.socket.as_fd()) {
            Ok(received) => {
                self.count_drops(object, batch);
                received > 0
            }
            Err(error) => {
                debug!(path = %object.key().path, %error, "receive failed");
                false
            }
        }
    }

    fn count_drops(&mut self, object: &Object, batch: &RecvBatch) {
        if let Some(drops) = batch.messages().filter_map(|message| message.drops).last()
            && drops != self.drops
        {
            let lost = datagrams_in(drops.wrapping_sub(self.drops), batch);
            self.drops = drops;
            object.count_drops(lost);
            debug!(path = %object.key().path, lost, "this machine was too slow for the stream");
        }
    }
}

/// Estimates the datagrams in dropped buffers. The kernel counts buffers, each of which may hold
/// several datagrams (GRO), presumably as many as those received.
fn datagrams_in(buffers: u32, batch: &RecvBatch) -> u64 {
    let (mut messages, mut datagrams) = (0, 0);
    for message in batch.messages() {
        messages += 1;
        datagrams += message.datagrams().count() as u64;
    }
    u64::from(buffers) * datagrams / messages.max(1)
}

/// Takes the messages of `batch` that arrived before the rest of `other`. Returns their datagrams
/// and senders.
fn take_earlier<'a>(batch: &'a mut RecvBatch, other: &RecvBatch) -> Vec<(SocketAddr, &'a [u8])> {
    let messages: Vec<_> = batch.take_until(other.next_at()).collect();
    let mut datagrams = Vec::with_capacity(messages.iter().map(|it| it.datagrams().len()).sum());
    for message in messages {
        let from = message.from;
        datagrams.extend(message.datagrams().map(|datagram| (from, datagram)));
    }
    datagrams
}

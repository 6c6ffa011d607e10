//! The receive thread: reads the sockets of all objects, stores pages, and runs the objects'
//! timers.
//!
//! It sleeps in `epoll` until a datagram arrives, an object's timer expires, or another thread asks
//! it to attend to an object. It sends no requests itself: see [`super::requests`].

mod coalescing;
mod inbox;
mod sockets;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use tracing::{debug, info, warn};

use super::answers::Answers;
use super::now;
use super::reception::MulticastMonitor;
use super::requests::{Request, Requests};
use crate::log_limit;
use crate::object::{Object, Work};
use crate::receiver::{Action, Reception};
use coalescing::{ArrivalRate, COALESCE_DELAY};
use sockets::{Batches, Channel, SocketPair};

pub(super) use inbox::Inbox;
pub(super) use sockets::Subscriber;

/// The thread wakes at least this often, in case a wake-up is lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Time between two looks whether multicast arrives on another interface now: one that was made
/// anew, or to which the route leads.
const INTERFACE_INTERVAL: Duration = Duration::from_millis(500);
/// Nice value of the receive thread. docs/SEMANTICS.md, "Priority".
const NICENESS: i32 = -10;
/// `epoll` data of the inbox.
const INBOX: u64 = 0;

/// The parts of the intake that the receive thread uses.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Objects to attend to.
    pub(super) inbox: Arc<Inbox>,
    /// Sends requests.
    pub(super) requests: Requests,
    /// Queue of the answer thread.
    pub(super) answers: Answers,
    /// Whether multicast arrives.
    pub(super) multicast: Arc<MulticastMonitor>,
    /// Opens sockets.
    pub(super) subscriber: Subscriber,
}

/// State of the receive thread.
struct ReceiveThread {
    parts: Receiving,
    epoll: OwnedFd,
    /// Objects that take part in a cast or try to, by their id.
    attended: BTreeMap<u64, Attended>,
    batches: Batches,
    arrivals: ArrivalRate,
    /// When to look at the interface.
    interface_at: Instant,
}

/// An object and its sockets.
struct Attended {
    object: Arc<Object>,
    sockets: SocketPair,
    reception: Reception,
}

impl Attended {
    fn new(object: Arc<Object>) -> Self {
        Self { object, sockets: SocketPair::default(), reception: Reception::Unknown }
    }
}

impl Receiving {
    /// Starts the thread. It ends after [`Inbox::stop`].
    pub(super) fn start(self) -> io::Result<JoinHandle<()>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &self.inbox, epoll::EventData::new_u64(INBOX), epoll::EventFlags::IN)?;
        let mut receive = ReceiveThread {
            parts: self,
            epoll,
            attended: BTreeMap::new(),
            batches: Batches::new(),
            arrivals: ArrivalRate::new(now()),
            interface_at: now(),
        };
        let thread = std::thread::Builder::new().name("receive".into());
        thread.spawn(move || receive.run())
    }
}

impl ReceiveThread {
    fn run(&mut self) {
        raise_priority();
        let mut events = Vec::with_capacity(64);
        while !self.parts.inbox.is_stopping() {
            self.wait(&mut events);
            for event in &events {
                let data = event.data.u64();
                if data != INBOX {
                    let (id, channel) = Channel::of_epoll_data(data);
                    self.receive(id, channel);
                }
            }
            if events.iter().any(|event| event.data.u64() == INBOX) {
                self.attend_to_inbox();
            }
            self.follow_interface();
            // After reading the sockets, because a thread that was held up must not take that for
            // silence.
            self.attend_to_due();
            self.coalesce();
        }
    }

    /// Waits for events until a timer expires.
    fn wait(&self, events: &mut Vec<epoll::Event>) {
        let timeout = rustix::event::Timespec::try_from(self.time_left()).ok();
        events.clear();
        let buffer = rustix::buffer::spare_capacity(events);
        if let Err(error) = epoll::wait(&self.epoll, buffer, timeout.as_ref())
            && error != rustix::io::Errno::INTR
            && let Some(more) = log_limit::allow("cannot wait for datagrams", &error)
        {
            warn!(%error, "cannot wait for datagrams{more}");
        }
    }

    /// Time until something is due.
    fn time_left(&self) -> Duration {
        let next =
            self.attended.values().filter_map(|attended| attended.object.poll_timeout()).min();
        let longest = if self.attended.is_empty() { LONGEST_SLEEP } else { INTERFACE_INTERVAL };
        next.map_or(longest, |next| next.saturating_duration_since(now())).min(longest)
    }

    /// Listens on another interface if multicast arrives there now.
    fn follow_interface(&mut self) {
        let now = now();
        if now < self.interface_at || self.attended.is_empty() {
            return;
        }
        self.interface_at = now + INTERFACE_INTERVAL;
        // An interface that is gone may come back.
        let Ok(interface) = self.parts.subscriber.interface() else { return };
        for Attended { object, sockets, .. } in self.attended.values_mut() {
            if let Some(subscription) = sockets.moved_to(interface) {
                info!(path = %object.key().path, interface, "listening on another interface");
                *sockets = self.parts.subscriber.subscribe(&self.epoll, object, &subscription);
            }
        }
    }

    /// Lets messages accumulate where they arrive densely and no reader is in a hurry.
    #[expect(clippy::disallowed_methods, reason = "time is all that is waited for")]
    fn coalesce(&mut self) {
        let now = now();
        let is_hurried = |attended: &Attended| attended.object.is_hurried(now);
        if self.arrivals.is_dense(now) && !self.attended.values().any(is_hurried) {
            std::thread::sleep(COALESCE_DELAY);
        }
    }

    /// Receives from the sockets of an object.
    fn receive(&mut self, id: u64, channel: Channel) {
        let Some(Attended { object, sockets, .. }) = self.attended.get_mut(&id) else { return };
        let answer = |reads| self.parts.answers.answer(object, reads);
        self.arrivals.add(sockets.receive(object, channel, &mut self.batches, answer));
        if let Some(rebuilding) = object.begin_rebuilding() {
            self.parts.requests.send(object, Request::Rebuild(rebuilding));
        }
        self.attend(id, now());
    }

    /// Attends to the objects whose timers have expired.
    fn attend_to_due(&mut self) {
        let now = now();
        let is_due = |object: &Object| object.poll_timeout().is_some_and(|due| due <= now);
        let due: Vec<u64> = self
            .attended
            .iter()
            .filter(|(_, attended)| is_due(&attended.object))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.attend(id, now);
        }
    }

    /// Attends to the objects that other threads named.
    fn attend_to_inbox(&mut self) {
        let now = now();
        for (object, in_flight) in self.parts.inbox.take() {
            let id = object.id();
            self.attended.entry(id).or_insert(Attended::new(object));
            self.attend(id, now);
            drop(in_flight);
        }
    }

    /// Does the work of an object, and forgets it when it rests.
    fn attend(&mut self, id: u64, now: Instant) {
        let Some(attended) = self.attended.get_mut(&id) else { return };
        let is_resting = loop {
            let work = attended.object.poll(now);
            let is_resting = work.is_resting;
            if !attended.execute(work, &self.parts, &self.epoll, now) {
                break is_resting;
            }
        };
        if is_resting {
            self.attended.remove(&id);
        }
    }
}

impl Attended {
    /// Executes `work`. Returns `true` if it subscribed to a group, so that the object must be
    /// polled again: opening a socket can have failed.
    fn execute(&mut self, work: Work, parts: &Receiving, epoll: &OwnedFd, now: Instant) -> bool {
        let Work { actions, token, fetch, notices, reception, .. } = work;
        let object = &self.object;
        let send = |request| parts.requests.send(object, request);
        let mut has_subscribed = false;
        for action in actions {
            match action {
                Action::Unsubscribe => self.sockets = SocketPair::default(),
                Action::Subscribe(subscription) => {
                    self.sockets = parts.subscriber.subscribe(epoll, object, &subscription);
                    has_subscribed = true;
                }
                Action::Lists(request) => send(Request::Lists(request)),
                Action::ZeroMap => send(Request::ZeroMap),
                Action::PageHashes(request) => send(Request::PageHashes(request)),
                Action::Replace(leaf) => send(Request::Replace(leaf)),
                Action::Join => send(Request::Join),
                Action::Leave(token) => send(Request::Leave(token)),
                // Without a token these belong to a membership that has ended.
                Action::Report(report) => {
                    if let Some(token) = token.clone() {
                        send(Request::Report(token, report));
                    }
                }
                Action::Want(want) => {
                    if let Some(token) = token.clone() {
                        send(Request::Want(token, want));
                    }
                }
            }
        }
        for notice in notices {
            parts.multicast.record_notice(&notice, now);
        }
        if std::mem::replace(&mut self.reception, reception) != reception {
            parts.multicast.record_reception(reception);
        }
        if let Some(part) = fetch {
            send(Request::Fetch(part));
        }
        if let Some(verifying) = object.begin_verifying(now) {
            send(Request::Verify(verifying));
        }
        if let Some(reusing) = object.begin_reusing() {
            send(Request::Reuse(reusing));
        }
        if let Some(sharing) = object.begin_sharing() {
            send(Request::Share(sharing));
        }
        has_subscribed
    }
}

/// Raises the thread's priority: what is not taken from a socket in time is lost, while everything
/// else can wait. Keeps the default priority without `CAP_SYS_NICE`.
fn raise_priority() {
    let this = Some(rustix::thread::gettid());
    if let Err(error) = rustix::process::setpriority_process(this, NICENESS) {
        debug!(%error, "the receive thread keeps its usual priority");
    }
}

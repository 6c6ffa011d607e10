//! The receive thread: reads sockets, stores pages in objects, and sends joins and leaves.
//!
//! One thread serves all objects. It sleeps in `epoll` until a datagram arrives, an object's timer
//! expires, or another thread asks it to attend to an object. A second thread answers the reads
//! that arrived pages complete, so that copying to readers does not delay the socket.

mod listening;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::{Report, Want, WantBody};
use rustix::event::{EventfdFlags, epoll};
use tokio::runtime::Handle;
use tracing::{debug, info, warn};

use super::control::{Control, ControlError};
use super::fetch::fetch;
use super::group_socket::GroupSocket;
use super::interface::InterfaceChoice;
use super::now;
use super::reception::{Availability, MulticastMonitor};
use super::sys::RecvBatch;
use crate::log_limit;
use crate::object::{Object, Ready, Wants};
use crate::receiver::{
    Action, Counters, Fetch, FetchError, JoinError, Reception, ReportError, Subscription,
};
use listening::hear;

/// The thread wakes at least this often, in case a wake-up is lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Most batches taken from one socket before the others are served.
const BATCHES_A_TURN: usize = 8;
/// Most batches while datagrams of the repair channel may have arrived later: as many as a full
/// receive buffer holds.
const BATCHES_BEFORE: usize = 1024;
/// If messages arrive closer than this on average, they gather for [`GATHER`] before the thread
/// wakes.
const DENSE: Duration = Duration::from_micros(200);
/// How long the receive thread lets datagrams accumulate before it wakes.
const GATHER: Duration = Duration::from_millis(4);
/// Time over which the average is taken. The pages of a single read also arrive close together.
const COUNTED: Duration = Duration::from_millis(4);
/// How long blocks that can be rebuilt gather, unless nothing else is missing. The symbols of a
/// window arrive block by block, and neighbours are rebuilt from one reading of their pages.
const REBUILD_GATHER: Duration = Duration::from_millis(20);
/// After this many data messages the repair socket is polled again, so that beacons are never older
/// than the pages they count.
const FEW_MESSAGES: usize = 8;
/// Nice value of the receive thread. docs/SEMANTICS.md, "Priority".
const NICENESS: i32 = -10;
/// Reads of up to this many bytes are answered by the receive thread itself.
const ANSWERED_AT_ONCE: u64 = 16 << 10;
/// `epoll` data of the eventfd. Objects count from 1, and each has two numbers.
const WAKE: u64 = 0;

/// Configuration of the receive thread.
#[derive(Clone, Debug)]
pub struct IntakeConfig {
    /// Client for requests to the server.
    pub control: Control,
    /// Interface that datagrams arrive on.
    pub interface: InterfaceChoice,
    /// Runtime for the requests.
    pub runtime: Handle,
}

/// The receive thread and its answering thread. Dropping it ends both.
#[derive(Debug)]
pub struct Intake {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    config: IntakeConfig,
    wake: OwnedFd,
    /// Objects to attend to.
    inbox: Mutex<Vec<(Arc<Object>, UnderWay)>>,
    stop: AtomicBool,
    /// Address at which the server was last reached.
    server: Mutex<Option<SocketAddr>>,
    /// Number of requests in flight, so that an orderly end can wait for the leaves.
    requests: tokio::sync::watch::Sender<usize>,
    answers: mpsc::Sender<(Arc<Object>, Vec<Ready>)>,
    multicast: MulticastMonitor,
}

impl Intake {
    /// Starts the threads.
    pub fn start(config: IntakeConfig) -> io::Result<Self> {
        let (answers, ready) = mpsc::channel::<(Arc<Object>, Vec<Ready>)>();
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            config,
            wake,
            inbox: Mutex::default(),
            stop: AtomicBool::new(false),
            server: Mutex::default(),
            requests: tokio::sync::watch::Sender::new(0),
            answers,
            multicast: MulticastMonitor::default(),
        });
        let answering = std::thread::Builder::new().name("answer".into());
        answering.spawn(move || {
            for (object, reads) in ready {
                for read in reads {
                    object.answer(read);
                }
            }
        })?;
        let mut receiving = Receiving::new(shared.clone())?;
        let thread = std::thread::Builder::new().name("receive".into());
        let thread = thread.spawn(move || receiving.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Makes the receive thread attend to `object`, which was opened, closed or answered.
    pub fn attend(&self, object: &Arc<Object>) {
        self.shared.attend(object);
    }

    /// Sends a demand that a read caused, without involving the receive thread.
    pub fn demand(&self, object: &Arc<Object>, wants: Wants) {
        if let Some((token, want)) = wants.now {
            self.shared.want(object, token, want);
        }
        if wants.attend {
            self.attend(object);
        }
    }

    /// Waits until no request is in flight, or until `patience` is over.
    pub async fn drain(&self, patience: Duration) {
        let mut requests = self.shared.requests.subscribe();
        let drained = requests.wait_for(|count| *count == 0);
        if tokio::time::timeout(patience, drained).await.is_err() {
            debug!("ended with requests still in flight");
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn ring(&self) {
        // If the counter is full, the thread is being woken anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn attend(self: &Arc<Self>, object: &Arc<Object>) {
        // Counts as a request from here on, so that `drain` waits for leaves that this may cause.
        let entry = (object.clone(), self.begin_request());
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        self.ring();
    }

    /// Counts a request as in flight until the result is dropped.
    fn begin_request(self: &Arc<Self>) -> UnderWay {
        self.requests.send_modify(|count| *count += 1);
        UnderWay(self.clone())
    }

    fn hand_out(&self, object: &Arc<Object>, reads: Vec<Ready>) {
        if !reads.is_empty() {
            // The answering thread lives as long as this sender.
            let _ = self.answers.send((object.clone(), reads));
        }
    }

    /// Like [`Self::hand_out`], for the receive thread: reads that take less time than waking
    /// another thread are answered at once.
    fn answer(&self, object: &Arc<Object>, reads: Vec<Ready>) {
        if reads.iter().map(|read| read.bytes.end - read.bytes.start).sum::<u64>()
            > ANSWERED_AT_ONCE
        {
            return self.hand_out(object, reads);
        }
        for read in reads {
            object.answer(read);
        }
    }

    /// Joins in the background and passes the result to the object.
    fn join(self: &Arc<Self>, object: &Arc<Object>) {
        let request = self.begin_request();
        let (shared, object) = (self.clone(), object.clone());
        self.config.runtime.spawn(async move {
            let path = &object.key().path;
            let result =
                match shared.config.control.join(path, object.fill(), object.resumes()).await {
                    Ok((answer, server)) => {
                        info!(%path, group = %answer.connect, pages = answer.pages, "joined");
                        if let Some(server) = server {
                            *shared.server.lock().unwrap_or_else(PoisonError::into_inner) =
                                Some(server);
                        }
                        Ok(answer)
                    }
                    Err(error) => {
                        log_join_error(&object, &error);
                        Err(error)
                    }
                };
            let reads = object.joined(result, now());
            match shared.multicast.availability(now()) {
                Availability::Available => {}
                Availability::RetryDue => object.presume_no_multicast(false, now()),
                Availability::Unavailable => object.presume_no_multicast(true, now()),
            }
            shared.hand_out(&object, reads);
            shared.attend(&object);
            drop(request);
        });
    }

    fn leave(self: &Arc<Self>, object: &Arc<Object>, token: Token) {
        let request = self.begin_request();
        let (shared, object) = (self.clone(), object.clone());
        self.config.runtime.spawn(async move {
            let path = &object.key().path;
            match shared.config.control.leave(path, &token).await {
                Ok(()) => {
                    let complete = object.is_complete();
                    let Counters { bad, strangers, forged, drops, .. } = object.counters();
                    info!(%path, %token, complete, bad, strangers, forged, drops, "left");
                }
                Err(error) => {
                    if let Some(more) = log_limit::allow("cannot leave", &error) {
                        warn!(%path, %token, %error, "cannot leave the cast{more}");
                    }
                }
            }
            drop(request);
            save(object).await;
        });
    }

    /// Rebuilds pages in the background.
    #[expect(clippy::disallowed_methods, reason = "time is all that is waited for")]
    fn rebuild(self: &Arc<Self>, object: &Arc<Object>) {
        let request = self.begin_request();
        let (shared, object) = (self.clone(), object.clone());
        self.config.runtime.spawn_blocking(move || {
            loop {
                if !object.lacks_only_decodable() {
                    std::thread::sleep(REBUILD_GATHER);
                }
                if !object.rebuild(|reads| shared.hand_out(&object, reads)) {
                    break;
                }
            }
            shared.attend(&object);
            drop(request);
        });
    }

    /// Fetches in the background. An orderly end does not wait for it: what arrived counts.
    fn fetch(self: &Arc<Self>, object: &Arc<Object>, part: Fetch) {
        let (shared, object) = (self.clone(), object.clone());
        self.config.runtime.spawn(async move {
            let (path, control) = (&object.key().path, &shared.config.control);
            let hand_out = |reads| shared.hand_out(&object, reads);
            let result = fetch(control, &object, &part, hand_out).await;
            let Fetch { id, bytes } = part;
            match &result {
                Ok(()) => debug!(%path, ?bytes, "fetched"),
                Err(FetchError::Retry { .. }) if object.fetch_failures() == 0 => {
                    if let Some(more) = log_limit::allow("cannot fetch yet", "") {
                        warn!(%path, "cannot fetch over HTTP yet, trying again{more}");
                    }
                }
                Err(error) => debug!(%path, ?bytes, ?error, "not fetched"),
            }
            let reads = object.fetch_ended(id, result, now());
            shared.hand_out(&object, reads);
            shared.attend(&object);
        });
    }

    /// Reports in the background and passes the result to the object.
    fn report(self: &Arc<Self>, object: &Arc<Object>, report: Report) {
        let Some(token) = object.token() else { return };
        let request = self.begin_request();
        let (shared, object) = (self.clone(), object.clone());
        self.config.runtime.spawn(async move {
            let path = &object.key().path;
            let result = shared.config.control.report(path, &token, &report).await;
            let (needs, bulk) = (report.needs.len(), report.bulk.len());
            match &result {
                Ok(_) => debug!(%path, %token, needs, bulk, "reported"),
                Err(error) => debug!(%path, %token, needs, bulk, %error, "report failed"),
            }
            let unreadable = result.as_ref().map_or(&[][..], Vec::as_slice);
            if !unreadable.is_empty() {
                shared.hand_out(&object, object.unreadable_pages(unreadable, now()));
            }
            object.reported(&token, result.map(drop).map_err(|error| verdict(&error)), now());
            shared.attend(&object);
            drop(request);
        });
    }

    /// Demands pages in the background and passes the result to the object.
    fn want(self: &Arc<Self>, object: &Arc<Object>, token: Token, want: Want) {
        let request = self.begin_request();
        let (shared, object) = (self.clone(), object.clone());
        self.config.runtime.spawn(async move {
            let path = &object.key().path;
            let (runs, later) = (want.now.len(), want.later.len());
            let body = WantBody { want, useful: Some(object.useful()) };
            let result = shared.config.control.want(path, &token, &body).await;
            match &result {
                Ok(answer) => {
                    let queue = answer.queue;
                    debug!(%path, %token, runs, later, ?queue, "demanded");
                }
                Err(error) => debug!(%path, %token, runs, later, %error, "demand failed"),
            }
            let unreadable = result.as_ref().map_or(&[][..], |answer| &answer.unreadable);
            let ends = !unreadable.is_empty();
            if ends {
                shared.hand_out(&object, object.unreadable_pages(unreadable, now()));
            }
            let result = result.map(|answer| answer.queue).map_err(|error| verdict(&error));
            let attend = object.wanted(&token, &body.want, result, now());
            if attend || ends {
                shared.attend(&object);
            }
            drop(request);
        });
    }
}

/// What a failed report or demand says about the membership.
fn verdict(error: &ControlError) -> ReportError {
    if error.is_not_found() { ReportError::UnknownMember } else { ReportError::Temporary }
}

/// Logs the first failure and the change to slow retries, not every attempt.
fn log_join_error(object: &Object, error: &JoinError) {
    let path = &object.key().path;
    match error {
        JoinError::Retry { reason, .. } if object.join_failures() == 0 => {
            if let Some(more) = log_limit::allow("cannot join yet", reason) {
                warn!(%path, reason, "cannot join yet, trying again{more}");
            }
        }
        JoinError::Retry { reason, .. } => debug!(%path, reason, "cannot join yet"),
        JoinError::NotFound(message)
        | JoinError::Refused(message)
        | JoinError::Garbled(message) => {
            if let Some(more) = log_limit::allow("join refused", message) {
                info!(%path, message, "join refused{more}");
            }
        }
    }
}

/// Makes a checkpoint on a thread that may wait for the disk.
async fn save(object: Arc<Object>) {
    let saving = tokio::task::spawn_blocking(move || {
        // The object logs what went wrong.
        let _ = object.checkpoint();
    });
    // Awaiting fails only if the runtime ends, which makes checkpoints by itself.
    let _ = saving.await;
}

/// Counts something that an orderly end waits for.
struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.send_modify(|count| *count -= 1);
    }
}

impl std::fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnderWay")
    }
}

/// State of the receive thread.
struct Receiving {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    attended: BTreeMap<u64, Attended>,
    pages: RecvBatch,
    repair: RecvBatch,
    /// Messages since then, and whether they arrived close together before.
    messages: u32,
    counted_since: Instant,
    is_dense: bool,
}

struct Attended {
    object: Arc<Object>,
    pages: Option<Ear>,
    repair: Option<Ear>,
    reception: Reception,
}

impl Attended {
    fn new(object: Arc<Object>) -> Self {
        Self { object, pages: None, repair: None, reception: Reception::Unknown }
    }
}

/// A socket of an object.
struct Ear {
    socket: GroupSocket,
    /// The kernel's drop count at the last look.
    drops: u32,
}

impl Ear {
    /// Receives what is there into `batch`. Returns `false` if that is nothing.
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
            let lost = scaled(drops.wrapping_sub(self.drops), batch);
            self.drops = drops;
            object.count_drops(lost);
            debug!(path = %object.key().path, lost, "this machine was too slow for the stream");
        }
    }
}

/// Port of a group. Also the lowest bit of its `epoll` data.
#[derive(Clone, Copy)]
enum Channel {
    Pages = 0,
    Repair = 1,
}

impl Receiving {
    fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            shared,
            epoll,
            attended: BTreeMap::new(),
            pages: RecvBatch::new(),
            repair: RecvBatch::new(),
            messages: 0,
            counted_since: now(),
            is_dense: false,
        })
    }

    fn run(&mut self) {
        raise_priority();
        let mut events = Vec::with_capacity(64);
        while !self.shared.stop.load(Ordering::Acquire) {
            let sleep = self.time_left();
            let timeout = rustix::event::Timespec::try_from(sleep).ok();
            events.clear();
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
                && let Some(more) = log_limit::allow("cannot wait for datagrams", &error)
            {
                warn!(%error, "cannot wait for datagrams{more}");
            }
            for data in events.iter().map(|event| event.data.u64()).filter(|data| *data != WAKE) {
                self.receive(data / 2, data % 2 == Channel::Repair as u64);
            }
            if events.iter().any(|event| event.data.u64() == WAKE) {
                self.take_inbox();
            }
            // After reading the sockets, because a thread that was held up must not take that for
            // silence.
            self.tend_due();
            self.gather();
        }
    }

    /// Lets messages gather where they come one by one and fast, and nobody is in a hurry: to wake
    /// up costs more than to read one.
    #[expect(clippy::disallowed_methods, reason = "time is all that is waited for")]
    fn gather(&mut self) {
        let now = now();
        let elapsed = now.saturating_duration_since(self.counted_since);
        if elapsed >= COUNTED {
            self.is_dense = DENSE * std::mem::take(&mut self.messages) > elapsed;
            self.counted_since = now;
        }
        let is_hurried = |attended: &Attended| attended.object.is_hurried(now);
        if self.is_dense && !self.attended.values().any(is_hurried) {
            std::thread::sleep(GATHER);
        }
    }

    /// Time until something is due.
    fn time_left(&self) -> Duration {
        let next = self.attended.values().filter_map(|attended| attended.object.due()).min();
        next.map_or(LONGEST_SLEEP, |next| next.saturating_duration_since(now())).min(LONGEST_SLEEP)
    }

    /// Tends to the objects whose timers have expired.
    fn tend_due(&mut self) {
        let now = now();
        let is_due = |object: &Object| object.due().is_some_and(|due| due <= now);
        let due: Vec<u64> = self
            .attended
            .iter()
            .filter(|(_, attended)| is_due(&attended.object))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.tend(id, now);
        }
    }

    fn take_inbox(&mut self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut counter);
        let objects =
            std::mem::take(&mut *self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        let now = now();
        for (object, request) in objects {
            let id = object.id();
            self.attended.entry(id).or_insert(Attended::new(object));
            self.tend(id, now);
            drop(request);
        }
    }

    /// Executes the actions of an object, and forgets it when it has none and needs none.
    fn tend(&mut self, id: u64, now: Instant) {
        let Some(attended) = self.attended.get_mut(&id) else { return };
        let object = attended.object.clone();
        for action in object.tend(now) {
            match action {
                Action::Join => self.shared.join(&object),
                Action::Leave(token) => self.shared.leave(&object, token),
                Action::Report(report) => self.shared.report(&object, report),
                Action::Want(want) => {
                    // Without a token the report belongs to a membership that has ended.
                    if let Some(token) = object.token() {
                        self.shared.want(&object, token, want);
                    }
                }
                Action::Unsubscribe => (attended.pages, attended.repair) = (None, None),
                Action::Subscribe(Subscription { connect, repair, .. }) => {
                    let (shared, epoll) = (&self.shared, &self.epoll);
                    let hear = |group, channel| hear(shared, epoll, &object, group, channel);
                    attended.pages = hear(connect, Channel::Pages);
                    attended.repair = repair.and_then(|group| hear(group, Channel::Repair));
                }
            }
        }
        for notice in object.take_notices() {
            self.shared.multicast.record_notice(&notice, self.shared.config.control.server(), now);
        }
        let reception = object.reception();
        if std::mem::replace(&mut attended.reception, reception) != reception {
            self.shared.multicast.record_reception(reception, self.shared.config.control.server());
        }
        if let Some(part) = object.poll_fetch(now) {
            self.shared.fetch(&object, part);
        }
        if object.is_resting() {
            self.attended.remove(&id);
        }
    }

    /// Receives from the sockets of an object in the order of arrival: a beacon counts what was
    /// sent before it, and the report compares this with what had arrived by then.
    fn receive(&mut self, id: u64, is_repair: bool) {
        let Some(Attended { object, pages, repair, .. }) = self.attended.get_mut(&id) else {
            return;
        };
        let object = object.clone();
        let mut hear_repair = |batch: &mut RecvBatch| {
            if !repair.as_mut().is_some_and(|ear| ear.receive(&object, batch)) {
                batch.clear();
            }
        };
        self.repair.clear();
        if is_repair {
            hear_repair(&mut self.repair);
        }
        for batch in 0..BATCHES_BEFORE {
            let goes_on = batch < BATCHES_A_TURN || !self.repair.is_used_up();
            let ear = pages.as_mut().filter(|_| goes_on);
            if !ear.is_some_and(|ear| ear.receive(&object, &mut self.pages)) {
                break;
            }
            let received = self.pages.len();
            self.messages =
                self.messages.saturating_add(u32::try_from(received).unwrap_or(u32::MAX));
            let is_behind = received > FEW_MESSAGES || self.pages.is_full();
            if is_behind && self.repair.is_used_up() {
                hear_repair(&mut self.repair);
            }
            while !self.pages.is_used_up() {
                let reads = object.receive(&taken(&mut self.pages, &self.repair), now());
                self.shared.answer(&object, reads);
                if !self.pages.is_used_up() {
                    object.receive_repair(&taken(&mut self.repair, &self.pages), now());
                }
            }
            if !self.pages.is_full() || object.is_resting() {
                break;
            }
        }
        self.pages.clear();
        if !self.repair.is_used_up() {
            object.receive_repair(&taken(&mut self.repair, &self.pages), now());
        }
        if object.begin_rebuilding() {
            self.shared.rebuild(&object);
        }
        self.tend(id, now());
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

/// Converts dropped buffers to datagrams. The kernel counts buffers, each of which may hold several
/// datagrams (GRO), presumably as many as those received.
fn scaled(buffers: u32, batch: &RecvBatch) -> u64 {
    let (mut came, mut held) = (0, 0);
    for message in batch.messages() {
        came += 1;
        held += message.datagrams().count() as u64;
    }
    u64::from(buffers) * held / came.max(1)
}

/// Takes the messages of a batch that arrived before the rest of another batch, with their senders.
fn taken<'a>(batch: &'a mut RecvBatch, other: &RecvBatch) -> Vec<(SocketAddr, &'a [u8])> {
    let messages: Vec<_> = batch.take_until(other.next_at()).collect();
    let mut datagrams = Vec::with_capacity(messages.iter().map(|it| it.datagrams().len()).sum());
    for message in messages {
        let from = message.from;
        datagrams.extend(message.datagrams().map(|datagram| (from, datagram)));
    }
    datagrams
}

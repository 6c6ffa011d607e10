//! Loop of the sender thread: takes commands, and sends datagrams at the scheduler's pace.

mod commands;
mod log;
mod reading;
mod stream_buffer;
mod unreadable;
mod versions;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bootcast_proto::log_limit::Limiter;
use bootcast_proto::wire::end_datagram;
use bootcast_proto::{PageRange, Profile, RemotePath};

use self::log::SenderLog;
pub(super) use self::reading::Outcome;
use self::reading::{CastReader, Part};
use self::versions::VersionRound;
use super::{Command, SenderConfig};
use crate::cast::{CastId, EndReason, Event, Scheduler, Sending, Settings, Symbol, Transmit};
use crate::io::group_watch::{GroupWatch, Heard};
use crate::io::interface;
use crate::io::profiles::LearnedProfile;
use crate::io::reader::stage::Stage;
use crate::io::reader::symbols::Rows;
use crate::io::socket::{MulticastSocket, SendError};

/// Maximum number of batches in a burst, after which commands are taken. A burst takes about 2 ms
/// at 10 Gbit/s.
const BURST_BATCHES: u32 = 32;

/// Maximum number of commands between two bursts, so that a storm of joins does not stop the casts.
const BURST_COMMANDS: usize = 256;

/// Time to wait for a full socket before commands are taken.
const WRITABLE_TIMEOUT: Duration = Duration::from_millis(2);

/// Pause before the next attempt when the kernel is short of memory.
const NO_BUFFERS_PAUSE: Duration = Duration::from_millis(1);

/// Pause between two attempts to send while the interface is down.
const DOWN_PAUSE: Duration = Duration::from_millis(250);

/// Next step of the loop, after a burst.
enum Next {
    /// Take commands that arrived, then send more.
    Continue,
    /// Sleep until this time or the next command.
    WaitUntil(Instant),
    /// Sleep until the next command.
    WaitForCommand,
}

/// State of the sender thread.
pub(super) struct Driver {
    config: SenderConfig,
    socket: MulticastSocket,
    scheduler: Scheduler,
    /// Threads that read files.
    stage: Stage,
    /// Listens for other senders in the groups of casts.
    groups: GroupWatch,
    /// Channel of this thread's own commands, for the outcomes of the stage.
    outcomes: mpsc::Sender<Command>,
    readers: BTreeMap<CastId, CastReader>,
    /// Casts that ended, and whose last datagrams wait for their bytes or for the socket.
    ended: Vec<CastId>,
    rows: Rows,
    /// Datagrams that the socket did not accept yet.
    unsent: Option<Transmit>,
    /// Time of the next attempt; `None` unless the interface is down.
    down_until: Option<Instant>,
    /// Limits the warnings about files that cannot be read to one a minute for each path.
    unreadable_warnings: Limiter<RemotePath, Instant>,
    log: SenderLog,
    version_round: VersionRound,
    started: Instant,
    /// Bytes read by casts that have ended.
    bytes_read: u64,
}

impl Driver {
    /// Creates a driver that gets the outcomes of `stage` through `outcomes`, as commands.
    pub(super) fn new(
        config: SenderConfig,
        settings: Settings,
        socket: MulticastSocket,
        stage: Stage,
        groups: GroupWatch,
        outcomes: mpsc::Sender<Command>,
    ) -> Self {
        let now = Instant::now();
        Self {
            scheduler: Scheduler::new(settings, config.page_size.wire_len(), now),
            config,
            socket,
            stage,
            groups,
            outcomes,
            readers: BTreeMap::new(),
            ended: Vec::new(),
            rows: Rows::default(),
            unsent: None,
            down_until: None,
            unreadable_warnings: Limiter::new(),
            log: SenderLog::default(),
            version_round: VersionRound::new(now),
            started: now,
            bytes_read: 0,
        }
    }

    /// Runs until [`Command::Stop`] arrives.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let now = Instant::now();
            self.scheduler.handle_timeout(now);
            self.check_versions(now);
            self.remove_ended_casts();
            let next = self.send_burst();
            self.remove_ended_casts();
            if self.handle_commands(commands, &next).is_break() {
                break;
            }
        }
        self.groups.stop();
        let now = Instant::now();
        self.scheduler.handle_stop(now);
        self.send_end_announcements(now);
        self.remove_ended_casts();
        // What waits for a file system that hangs is dropped.
        while let Some((&cast, _)) = self.readers.first_key_value() {
            self.remove_reader(cast);
        }
    }

    /// Sends what is due, at most [`BURST_BATCHES`] batches. Looks up the interface first if it is
    /// down.
    fn send_burst(&mut self) -> Next {
        if let Some(until) = self.down_until {
            if Instant::now() < until {
                return Next::WaitUntil(until);
            }
            self.find_interface();
        }
        for _ in 0..BURST_BATCHES {
            let unsent = self.unsent.take();
            let Some(batch) = unsent.or_else(|| self.scheduler.poll_transmit(Instant::now()))
            else {
                return self.scheduler.poll_timeout().map_or(Next::WaitForCommand, Next::WaitUntil);
            };
            let group = batch.group;
            match self.send(batch) {
                Ok(()) => {
                    if self.down_until.take().is_some() {
                        self.log.log_up(&self.config.interface);
                    }
                }
                Err(SendError::Full) => {
                    self.socket.wait_writable(WRITABLE_TIMEOUT);
                    return Next::Continue;
                }
                Err(SendError::NoBuffers) => {
                    return Next::WaitUntil(Instant::now() + NO_BUFFERS_PAUSE);
                }
                Err(SendError::Down(errno)) => return Next::WaitUntil(self.handle_down(errno)),
                Err(SendError::Refused(errno)) => {
                    self.log.log_refused(group, errno, Instant::now());
                }
            }
        }
        Next::Continue
    }

    /// Announces the end of all casts once, without waiting for a full socket: after a failed send,
    /// the other announcements are omitted.
    fn send_end_announcements(&mut self, now: Instant) {
        self.unsent = None;
        while let Some(announcement) = self.scheduler.poll_transmit(now) {
            if self.send(announcement).is_err() {
                break;
            }
        }
    }

    /// Sends datagrams that the scheduler handed out. Those that the socket does not accept yet are
    /// kept in `unsent`; those that the kernel refuses are dropped. A file that cannot be read ends
    /// its cast.
    fn send(&mut self, transmit: Transmit) -> Result<(), SendError> {
        match &transmit.content {
            Sending::Pages(pages) => self.send_pages(&transmit, *pages),
            Sending::Symbols(symbols) => self.send_symbols(&transmit, symbols),
            Sending::Beacon(beacon) => {
                let mut beacon = beacon.encode();
                self.seal(transmit.cast, &mut beacon);
                let sent = self.socket.send(&beacon, transmit.group);
                self.keep_unsent(sent, transmit)
            }
            Sending::LeafList(list) => {
                // A cast that ended meanwhile has no values, and nothing to send.
                let list = self.scheduler.encode_leaf_list(transmit.cast, *list);
                let Some(mut list) = list else { return Ok(()) };
                self.seal(transmit.cast, &mut list);
                let sent = self.socket.send(&list, transmit.group);
                self.keep_unsent(sent, transmit)
            }
            Sending::End(next_beacon) => {
                let mut end = end_datagram(Some(*next_beacon));
                self.seal(transmit.cast, &mut end);
                let sent = self.socket.send(&end, transmit.group);
                self.keep_unsent(sent, transmit)
            }
        }
    }

    /// Tags a datagram of this cast, which may have ended.
    fn seal(&self, cast: CastId, datagram: &mut [u8]) {
        if let Some(keys) = &self.config.keys {
            keys.of(cast).seal(datagram);
        }
    }

    /// Keeps the datagrams for another attempt if they were not sent. Drops refused ones.
    fn keep_unsent(
        &mut self,
        sent: Result<usize, SendError>,
        transmit: Transmit,
    ) -> Result<(), SendError> {
        sent.map(drop).inspect_err(|error| {
            if !matches!(error, SendError::Refused(_)) {
                self.unsent = Some(transmit);
            }
        })
    }

    /// Sends pages, and leaves out those that cannot be read. Those that are not read yet are taken
    /// back by the scheduler.
    fn send_pages(&mut self, transmit: &Transmit, mut rest: PageRange) -> Result<(), SendError> {
        let datagram_len = self.config.socket.datagram_len;
        let Transmit { cast, group, demanded, lane, .. } = *transmit;
        let part = if demanded { Part::Demanded(lane) } else { Part::Stream };
        let with = |rest| Transmit { content: Sending::Pages(rest), ..transmit.clone() };
        loop {
            let run = self.readable_run(transmit, &mut rest);
            if run.is_empty() {
                return Ok(());
            }
            // A cast that ended meanwhile has no reader, and nothing to send.
            let Some(reader) = self.readers.get_mut(&cast) else { return Ok(()) };
            if reader.pages(part, run).is_none() && !self.read_cached(cast, part, run) {
                self.wait_for_pages(part, run, with(rest));
                return Ok(());
            }
            if part == Part::Stream {
                self.read_ahead(cast, run);
            }
            let reader = self.readers.get_mut(&cast);
            let Some(datagrams) = reader.and_then(|it| it.pages(part, run)) else { return Ok(()) };
            match self.socket.send(datagrams, group) {
                // Whole datagrams were sent. Only the last one of the file may be short.
                Ok(bytes) => {
                    let pages = u32::try_from(bytes.div_ceil(datagram_len)).unwrap_or(u32::MAX);
                    rest = PageRange::new(rest.start.0.saturating_add(pages), rest.end.0);
                }
                Err(error) => return self.keep_unsent(Err(error), with(rest)),
            }
        }
    }

    /// Sends repair symbols, and leaves out those of blocks that cannot be read. Those that are not
    /// encoded yet are taken back by the scheduler.
    fn send_symbols(&mut self, transmit: &Transmit, symbols: &[Symbol]) -> Result<(), SendError> {
        let Transmit { cast, group, .. } = *transmit;
        let with = |rest| Transmit { content: Sending::Symbols(rest), ..transmit.clone() };
        let mut rest = self.readable_symbols(cast, symbols);
        while !rest.is_empty() {
            let Some(reader) = self.readers.get_mut(&cast) else { return Ok(()) };
            let Some(datagrams) = reader.symbols(&rest) else {
                self.wait_for_symbols(&rest, with(rest.clone()));
                return Ok(());
            };
            match self.socket.send(datagrams, group) {
                Ok(bytes) => {
                    let count = bytes.div_ceil(self.config.socket.datagram_len).min(rest.len());
                    let unsent = rest.split_off(count);
                    reader.discard(&rest);
                    rest = unsent;
                }
                Err(error) => return self.keep_unsent(Err(error), with(rest)),
            }
        }
        Ok(())
    }

    /// Waits as `next` says, then executes the commands that arrived.
    fn handle_commands(&mut self, commands: &Receiver<Command>, next: &Next) -> ControlFlow<()> {
        let first = match next {
            Next::Continue => commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
            Next::WaitUntil(until) => {
                commands.recv_timeout(until.saturating_duration_since(Instant::now()))
            }
            Next::WaitForCommand => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(command) => self.execute(command)?,
            Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        }
        for command in commands.try_iter().take(BURST_COMMANDS) {
            self.execute(command)?;
        }
        ControlFlow::Continue(())
    }

    /// Hands out profiles that are to be kept. Logs the ends of casts, and drops their readers once
    /// their last datagrams are sent.
    fn remove_ended_casts(&mut self) {
        while let Some(event) = self.scheduler.poll_event() {
            match event {
                Event::BudgetUsedUp(principal, path) => {
                    self.log.log_budget(principal, &path, Instant::now());
                }
                Event::RationUsedUp(principal, path) => {
                    self.log.log_ration(principal, &path, Instant::now());
                }
                Event::Profile(cast, profile) => self.keep_profile(cast, profile),
                Event::Ended(ended) => {
                    self.groups.end(ended.cast);
                    self.ended.push(ended.cast);
                    self.log.log_end(&ended, Instant::now());
                }
            }
        }
        let unsent = self.unsent.as_ref().map(|unsent| unsent.cast);
        let is_sent =
            |cast: &mut CastId| !self.scheduler.is_waiting(*cast) && unsent != Some(*cast);
        let sent: Vec<_> = self.ended.extract_if(.., is_sent).collect();
        for cast in sent {
            self.remove_reader(cast);
        }
    }

    /// Passes a profile on to be kept.
    fn keep_profile(&self, cast: CastId, profile: Profile) {
        // The reader of a cast is there until after the end of the cast was handled.
        let Some(reader) = self.readers.get(&cast) else { return };
        // Fails if the server stops without waiting for profiles, as in tests.
        let _ = self.config.profiles.send(LearnedProfile { version: reader.version(), profile });
    }

    /// Handles an interface that is down. Returns the time of the next attempt.
    fn handle_down(&mut self, errno: rustix::io::Errno) -> Instant {
        let now = Instant::now();
        if self.down_until.is_none() {
            self.log.log_down(&self.config, errno, now);
        }
        let until = now + DOWN_PAUSE;
        self.down_until = Some(until);
        until
    }

    /// Listens to the groups on the present interface, for senders other than the present socket.
    fn watch_groups(&self) {
        match self.socket.own_sender(&self.config.interface) {
            Ok(own) => self.groups.set_own(own),
            Err(error) => tracing::debug!(%error, "the address of the socket is not known"),
        }
    }

    /// Handles another sender in the group of a cast. The one with the lower address and port keeps
    /// the group.
    fn handle_heard(&mut self, (cast, other): Heard) {
        let Ok(own) = self.socket.own_sender(&self.config.interface) else { return };
        let Some(group) = self.scheduler.cast(cast).map(|view| view.group) else { return };
        let now = Instant::now();
        let keeps = own.address < other;
        if let Some(taken) = self.scheduler.handle_taken(cast, keeps, now) {
            self.log.log_taken(group, other, taken, now);
        }
    }

    /// Looks up the interface again, because one that comes back may have another index or address.
    /// If that fails, the next send fails too, and another pause follows.
    fn find_interface(&mut self) {
        let config = &mut self.config;
        let found = interface::resolve(config.interface_name.as_ref(), config.any_group);
        let Ok(interface) = found else { return };
        if interface.address == config.interface.address {
            if self.socket.set_interface(&interface).is_ok() {
                config.interface = interface;
                self.watch_groups();
            }
            return;
        }
        // Members know the old address from their join, and drop datagrams from another one.
        let Ok(socket) = MulticastSocket::open(&interface, &config.socket) else { return };
        tracing::warn!(
            interface = interface.name, old = %config.interface.address, new = %interface.address,
            "the source address changed: all casts end, and their members join again"
        );
        self.socket = socket;
        self.unsent = None;
        config.source_address.set(interface.address);
        config.interface = interface;
        self.watch_groups();
        self.scheduler.handle_end_of_all(EndReason::AddressChanged, Instant::now());
        self.remove_ended_casts();
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;

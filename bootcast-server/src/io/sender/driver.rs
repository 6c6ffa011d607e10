//! Loop of the sender thread: takes commands, and sends datagrams at the scheduler's pace.

mod log;
mod unreadable;

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bootcast_proto::api::{CastStatus, Report, Status, WantBody};
use bootcast_proto::log_limit::Limiter;
use bootcast_proto::wire::end_datagram;
use bootcast_proto::{Geometry, PageRange, RemotePath, Token};

use self::log::{Begun, SenderLog};
use super::{Command, JoinError, SenderConfig, WantAnswer};
use crate::cast::{
    CastId, EndReason, Event, Scheduler, Sending, Settings, Symbol, Transmit, pair_to_range,
};
use crate::io::interface;
use crate::io::page_reader::{PageReader, ReadError};
use crate::io::repair_reader::{RepairReader, Rows};
use crate::io::socket::{MulticastSocket, SendError};
use crate::source::{OpenFile, SourceError, Version};

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

/// Period in which the path of every running cast is checked once for a new version. A cast of a
/// changed file therefore ends within a second.
const VERSION_ROUND: Duration = Duration::from_secs(1);

/// Maximum number of checks in a period. Each checks a few casts, so that a slow disk interrupts
/// sending only briefly.
const VERSION_ROUND_CHECKS: u32 = 64;

/// Bytes that all casts together read ahead.
const READ_AHEAD_TOTAL: usize = 64 << 20;

/// Range of the bytes that one cast reads ahead.
const READ_AHEAD: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;

/// Bytes of symbols that are encoded ahead for all casts together.
const ENCODE_AHEAD_TOTAL: usize = 64 << 20;

/// Maximum number of bytes of symbols that are encoded ahead for one cast: room for eight
/// symbols of 1456 bytes of each of the 512 blocks of the largest window.
const ENCODE_AHEAD_MAX: usize = 6 << 20;

/// Next step of the loop, after a burst.
enum Next {
    /// Take commands that arrived, then send more.
    Continue,
    /// Sleep until this time or the next command.
    WaitUntil(Instant),
    /// Sleep until the next command.
    WaitForCommand,
}

/// Readers of one cast's file.
struct CastReader {
    pages: PageReader,
    /// Reader of demanded pages. Separate, so that the stream's reader keeps what it read ahead.
    demanded: PageReader,
    repair: Option<RepairReader>,
}

impl CastReader {
    fn bytes_read(&self) -> u64 {
        let repair = self.repair.as_ref().map_or(0, RepairReader::bytes_read);
        self.pages.bytes_read() + self.demanded.bytes_read() + repair
    }
}

/// Progress of checking the paths of all casts for new versions.
struct VersionRound {
    /// Time of the next check.
    next: Instant,
    /// Time between two checks.
    interval: Duration,
    /// Number of casts in one check.
    casts: usize,
    /// Cast that was checked last; `None` if the next check starts a new round.
    last: Option<CastId>,
}

/// State of the sender thread.
pub(super) struct Driver {
    config: SenderConfig,
    socket: MulticastSocket,
    scheduler: Scheduler,
    readers: BTreeMap<CastId, CastReader>,
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
    pub(super) fn new(config: SenderConfig, settings: Settings, socket: MulticastSocket) -> Self {
        let now = Instant::now();
        Self {
            scheduler: Scheduler::new(settings, config.page_size.wire_len(), now),
            config,
            socket,
            readers: BTreeMap::new(),
            rows: Rows::default(),
            unsent: None,
            down_until: None,
            unreadable_warnings: Limiter::new(),
            log: SenderLog::default(),
            version_round: VersionRound {
                next: now,
                interval: VERSION_ROUND,
                casts: 0,
                last: None,
            },
            started: now,
            bytes_read: 0,
        }
    }

    /// Runs until [`Command::Stop`] arrives or every handle is dropped.
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
        let now = Instant::now();
        self.scheduler.handle_stop(now);
        self.send_end_announcements(now);
        self.remove_ended_casts();
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

    /// Sends pages, and leaves out those that cannot be read.
    fn send_pages(&mut self, transmit: &Transmit, mut rest: PageRange) -> Result<(), SendError> {
        let read_ahead = READ_AHEAD_TOTAL / self.readers.len().max(1);
        let read_ahead = read_ahead.clamp(*READ_AHEAD.start(), *READ_AHEAD.end());
        let datagram_len = self.config.socket.datagram_len;
        let Transmit { cast, group, demanded, .. } = *transmit;
        let mut failures = 0;
        loop {
            let run = self.readable_run(transmit, &mut rest);
            if run.is_empty() {
                return Ok(());
            }
            // A cast that ended meanwhile has no reader, and nothing to send.
            let Some(reader) = self.readers.get_mut(&cast) else { return Ok(()) };
            let (reader, read_ahead) =
                if demanded { (&mut reader.demanded, 0) } else { (&mut reader.pages, read_ahead) };
            let sent = match reader.datagrams(run, read_ahead) {
                Ok((_, datagrams)) => self.socket.send(datagrams, group),
                Err(error) => {
                    let pages: Vec<_> = run.iter().collect();
                    self.handle_unreadable_pages(cast, &pages, &error, &mut failures);
                    if self.scheduler.cast(cast).is_none() {
                        return Ok(());
                    }
                    continue;
                }
            };
            match sent {
                // Whole datagrams were sent. Only the last one of the file may be short.
                Ok(bytes) => {
                    let pages = u32::try_from(bytes.div_ceil(datagram_len)).unwrap_or(u32::MAX);
                    rest = PageRange::new(rest.start.0.saturating_add(pages), rest.end.0);
                }
                Err(error) => {
                    if !matches!(error, SendError::Refused(_)) {
                        let content = Sending::Pages(rest);
                        self.unsent = Some(Transmit { cast, group, content, demanded });
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Sends repair symbols, and leaves out those of blocks that cannot be read.
    fn send_symbols(&mut self, transmit: &Transmit, symbols: &[Symbol]) -> Result<(), SendError> {
        let ahead_bytes = (ENCODE_AHEAD_TOTAL / self.readers.len().max(1)).min(ENCODE_AHEAD_MAX);
        let Transmit { cast, group, .. } = *transmit;
        let mut rest = symbols.to_vec();
        let mut failures = 0;
        while !rest.is_empty() {
            let reader = self.readers.get_mut(&cast).and_then(|reader| reader.repair.as_mut());
            let Some(reader) = reader else { return Ok(()) };
            let sent = match reader.datagrams(&rest, ahead_bytes, &mut self.rows) {
                Ok(datagrams) => self.socket.send(datagrams, group),
                Err(error) => {
                    rest = self.handle_unreadable_blocks(cast, &rest, &error, &mut failures);
                    continue;
                }
            };
            match sent {
                Ok(bytes) => {
                    let count = bytes.div_ceil(self.config.socket.datagram_len).min(rest.len());
                    let unsent = rest.split_off(count);
                    reader.discard(&rest);
                    rest = unsent;
                }
                Err(error) => {
                    if !matches!(error, SendError::Refused(_)) {
                        let content = Sending::Symbols(rest);
                        self.unsent = Some(Transmit { cast, group, content, demanded: false });
                    }
                    return Err(error);
                }
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

    /// Executes a command. Undoes a join whose client disconnected before the reply, because that
    /// client would never leave.
    fn execute(&mut self, command: Command) -> ControlFlow<()> {
        let now = Instant::now();
        match command {
            Command::Join { path, etag, open, geometry, token, kind, reply } => {
                if self.is_outdated(&path, open.version) {
                    // A failed reply means that the client disconnected.
                    let _ = reply.send(Err(JoinError::Outdated));
                    return ControlFlow::Continue(());
                }
                let name = token.clone();
                let joined = self.scheduler.handle_join(&path, &etag, geometry, token, kind, now);
                if let Ok(joined) = joined {
                    let group = joined.group;
                    if joined.has_started_cast {
                        self.add_reader(joined.cast, open, geometry);
                        let (cast, size) = (joined.cast, geometry.size());
                        let begun = Begun { cast, path: &path, etag: &etag, size, group };
                        self.log.log_begin(&begun, now);
                    }
                    let members = self.member_count(joined.cast);
                    tracing::debug!(cast = %joined.cast, %path, token = %name, members, "joined");
                }
                if reply.send(joined.map_err(JoinError::from)).is_err() {
                    self.scheduler.handle_leave(&path, &name, now);
                }
            }
            Command::Leave { path, token, reply } => {
                let left = self.scheduler.handle_leave(&path, &token, now);
                if let Some(cast) = left {
                    let members = self.member_count(cast);
                    tracing::debug!(%cast, %path, %token, members, "left");
                }
                let _ = reply.send(left.is_some());
            }
            Command::Report { path, token, report, reply } => {
                let accepted = self.scheduler.handle_report(&path, &token, &report, now);
                let needs = report.needs.len();
                let Report { bulk, sent, received, drops, .. } = &report;
                tracing::debug!(
                    %path, %token, accepted, needs, ?bulk, sent, received, drops,
                    "report received"
                );
                let _ = reply.send(accepted.then(|| self.scheduler.select_unreadable(&path, &[])));
            }
            Command::Want { path, token, want, reply } => {
                let _ = reply.send(self.demand(&path, &token, want, now));
            }
            Command::Status { reply } => {
                let _ = reply.send(self.status(now));
            }
            Command::Stop => return ControlFlow::Break(()),
        }
        self.remove_ended_casts();
        ControlFlow::Continue(())
    }

    /// Adds the readers of a cast that starts.
    fn add_reader(&mut self, cast: CastId, open: OpenFile, geometry: Geometry) {
        let key = self.config.keys.as_ref().map(|keys| keys.of(cast));
        let pages = PageReader::new(open, geometry, self.config.layout).tagged(key);
        let repair = self.scheduler.layout(&geometry);
        let repair = repair.map(|layout| pages.for_repair(layout));
        let demanded = pages.for_demand();
        self.readers.insert(cast, CastReader { pages, demanded, repair });
    }

    /// Queues demanded pages. Returns `None` if the token may not demand.
    fn demand(
        &mut self,
        path: &RemotePath,
        token: &Token,
        want: WantBody,
        now: Instant,
    ) -> Option<WantAnswer> {
        let WantBody { want, useful } = want;
        if let Some(useful) = useful {
            self.scheduler.handle_progress(path, token, useful);
        }
        let queue_time = self.scheduler.handle_want(path, token, &want, now);
        tracing::trace!(%path, %token, ?queue_time, ?want, "pages demanded");
        let pairs = want.now.iter().chain(&want.later);
        let demanded: Vec<_> =
            pairs.filter_map(|(first, count)| pair_to_range(*first, *count)).collect();
        let queue_time = queue_time?;
        let unreadable = self.scheduler.select_unreadable(path, &demanded);
        Some(WantAnswer { queue_time, unreadable })
    }
}

impl Driver {
    /// Checks the next few casts, if that is due. Ends those whose path now leads to another
    /// version or nowhere.
    fn check_versions(&mut self, now: Instant) {
        let round = &mut self.version_round;
        if now < round.next {
            return;
        }
        if round.last.is_none() {
            let casts = u32::try_from(self.readers.len()).unwrap_or(u32::MAX);
            let checks = casts.clamp(1, VERSION_ROUND_CHECKS);
            round.interval = VERSION_ROUND / checks;
            round.casts = casts.div_ceil(checks) as usize;
        }
        round.next = now + round.interval;
        let after = round.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.readers.range((after, Bound::Unbounded));
        let due: Vec<_> = rest.by_ref().take(round.casts).collect();
        round.last = rest.next().and(due.last()).map(|&(&cast, _)| cast);
        let changed = |&(&cast, reader): &(&CastId, &CastReader)| {
            let path = self.scheduler.cast(cast)?.path;
            match self.config.source.version(path) {
                Ok(version) if version == reader.pages.version() => None,
                // The server lacks descriptors or memory; this says nothing about the file.
                Err(SourceError::Busy) => None,
                Ok(_) | Err(_) => Some(cast),
            }
        };
        let changed: Vec<_> = due.iter().filter_map(changed).collect();
        for cast in changed {
            self.scheduler.handle_end(cast, EndReason::FileChanged, now);
        }
    }

    /// Returns whether the path leads to the version that its cast sends, and not to `version`.
    /// This happens if the file is replaced after a join opened it, and a later join arrives first.
    fn is_outdated(&self, path: &RemotePath, version: Version) -> bool {
        let running = self.scheduler.cast_of(path).and_then(|view| self.readers.get(&view.id));
        running.map(|reader| reader.pages.version()).is_some_and(|running| {
            running != version
                && self.config.source.version(path).is_ok_and(|present| present == running)
        })
    }

    /// Drops the readers of casts that ended, and logs their ends.
    fn remove_ended_casts(&mut self) {
        while let Some(Event::Ended(ended)) = self.scheduler.poll_event() {
            if let Some(reader) = self.readers.remove(&ended.cast) {
                self.bytes_read += reader.bytes_read();
            }
            self.log.log_end(&ended, Instant::now());
        }
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

    /// Looks up the interface again, because one that comes back may have another index or address.
    /// If that fails, the next send fails too, and another pause follows.
    fn find_interface(&mut self) {
        let config = &mut self.config;
        let found = interface::resolve(config.interface_name.as_ref(), config.any_group);
        let Ok(interface) = found else { return };
        if interface.address == config.interface.address {
            if self.socket.set_interface(&interface).is_ok() {
                config.interface = interface;
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
        self.scheduler.handle_end_of_all(EndReason::AddressChanged, Instant::now());
        self.remove_ended_casts();
    }

    /// Returns the number of members of a cast; 0 if it has ended.
    fn member_count(&self, cast: CastId) -> usize {
        self.scheduler.cast(cast).map_or(0, |view| view.cast.members())
    }

    /// Returns the state of the server for `/status`.
    fn status(&self, now: Instant) -> Status {
        let casts = self.scheduler.casts().map(|view| CastStatus {
            path: view.path.encode(),
            etag: view.etag.clone(),
            group: view.group.to_string(),
            size: view.geometry.size(),
            pages: view.geometry.pages(),
            page_size: view.geometry.page_size().get(),
            members: u32::try_from(view.cast.members()).unwrap_or(u32::MAX),
            unicast: u32::try_from(view.cast.unicast_members()).unwrap_or(u32::MAX),
            joins: view.cast.joins(),
            pages_sent: view.cast.pages_sent(),
            demanded: view.cast.demanded(),
            symbols_sent: view.cast.symbols_sent(),
            repair_level: view.cast.redundancy(),
            rate_bps: view.rate.bits_per_second(),
            passes: view.cast.passes(),
            age_s: now.saturating_duration_since(view.started_at).as_secs(),
        });
        let reading: u64 = self.readers.values().map(CastReader::bytes_read).sum();
        let mut totals = self.scheduler.totals();
        totals.bytes_read = self.bytes_read + reading;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_duration_since(self.started).as_secs(),
            rate_bps: self.scheduler.rate().bits_per_second(),
            casts: casts.collect(),
            totals,
        }
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;

//! The loop of the sender's thread: commands in, runs of pages out, at the pace of the scheduler.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bootcast_proto::PageRange;
use bootcast_proto::api::{CastStatus, Status};
use bootcast_proto::wire::end_datagram;

use super::{Command, SenderConfig};
use crate::cast::{
    CastId, CastView, EndReason, Event, Scheduler, Sending, Settings, Symbol, Transmit,
};
use crate::io::interface;
use crate::io::page_reader::{PageReader, ReadError};
use crate::io::repair_reader::{RepairReader, Rows};
use crate::io::socket::{MulticastSocket, SendError};
use crate::source::SourceError;

/// Runs between two looks at the commands: about 2 ms of sending at 10 Gbit/s.
const BURST_RUNS: u32 = 32;

/// Commands between two bursts, so that a storm of joins does not silence the casts.
const BURST_COMMANDS: usize = 256;

/// How long a full socket is waited for before commands are looked at.
const WRITABLE_WAIT: Duration = Duration::from_millis(2);

/// Pause where the kernel has no memory.
const NO_BUFFERS_PAUSE: Duration = Duration::from_millis(1);

/// Pause between two attempts on an interface that is down.
const DOWN_PAUSE: Duration = Duration::from_millis(250);

/// How often the paths of running casts are looked up again.
const VERSION_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Memory of all read windows together, and of one.
const WINDOWS_BYTES: usize = 64 << 20;
const WINDOW_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;

/// Memory of all symbols that were made before they are wanted, and of those of one cast.
const READY_BYTES: usize = 64 << 20;
const READY_BYTES_MAX: usize = 6 << 20;

/// What the loop does next.
enum Next {
    /// More commands, more pages.
    GoOn,
    /// Nothing before this.
    WaitUntil(Instant),
    /// Nothing without a command.
    WaitForCommand,
}

/// The file of a cast, for either port.
struct CastReader {
    pages: PageReader,
    repair: Option<RepairReader>,
}

impl CastReader {
    fn bytes_read(&self) -> u64 {
        self.pages.bytes_read() + self.repair.as_ref().map_or(0, RepairReader::bytes_read)
    }
}

pub(super) struct Driver {
    config: SenderConfig,
    socket: MulticastSocket,
    scheduler: Scheduler,
    readers: BTreeMap<CastId, CastReader>,
    rows: Rows,
    /// What the socket did not take yet.
    unsent: Option<Transmit>,
    /// The interface is down; try again then.
    down_until: Option<Instant>,
    next_version_check: Instant,
    started: Instant,
    /// Of casts that ended.
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
            next_version_check: now,
            started: now,
            bytes_read: 0,
        }
    }

    /// Until [`Command::Stop`], or every handle is gone.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let now = Instant::now();
            self.scheduler.handle_timeout(now);
            self.check_versions(now);
            self.clean_up();
            let next = self.send_burst();
            self.clean_up();
            if self.obey(commands, &next).is_break() {
                break;
            }
        }
        let now = Instant::now();
        self.scheduler.handle_stop(now);
        self.send_farewells(now);
        self.clean_up();
    }

    /// Sends what is due, a bounded number of runs.
    fn send_burst(&mut self) -> Next {
        if let Some(until) = self.down_until {
            if Instant::now() < until {
                return Next::WaitUntil(until);
            }
            self.reopen();
        }
        for _ in 0..BURST_RUNS {
            let unsent = self.unsent.take();
            let Some(run) = unsent.or_else(|| self.scheduler.poll_transmit(Instant::now())) else {
                return self.scheduler.poll_timeout().map_or(Next::WaitForCommand, Next::WaitUntil);
            };
            match self.send(run) {
                Ok(()) => {
                    if self.down_until.take().is_some() {
                        tracing::info!(interface = self.config.interface.name, "interface is back");
                    }
                }
                Err(SendError::Full) => {
                    self.socket.wait_writable(WRITABLE_WAIT);
                    return Next::GoOn;
                }
                Err(SendError::NoBuffers) => {
                    return Next::WaitUntil(Instant::now() + NO_BUFFERS_PAUSE);
                }
                Err(SendError::Down(errno)) => return Next::WaitUntil(self.on_down(errno)),
            }
        }
        Next::GoOn
    }

    /// Says that all casts are over, once: nobody waits for more. What the socket does not take is lost, as on the way.
    fn send_farewells(&mut self, now: Instant) {
        self.unsent = None;
        while let Some(farewell) = self.scheduler.poll_transmit(now) {
            if self.send(farewell).is_err() {
                break;
            }
        }
    }

    /// Sends what the scheduler handed out; what does not go out is kept as unsent. A file that cannot be read ends its cast.
    fn send(&mut self, transmit: Transmit) -> Result<(), SendError> {
        match &transmit.what {
            Sending::Pages(pages) => self.send_pages(&transmit, *pages),
            Sending::Symbols(symbols) => self.send_symbols(&transmit, symbols),
            Sending::Beacon(beacon) => {
                let sent = self.socket.send(&beacon.encode(), transmit.group);
                self.keep_unsent(sent, transmit)
            }
            Sending::End => {
                let sent = self.socket.send(&end_datagram(), transmit.group);
                self.keep_unsent(sent, transmit)
            }
        }
    }

    fn keep_unsent(
        &mut self,
        sent: Result<usize, SendError>,
        transmit: Transmit,
    ) -> Result<(), SendError> {
        sent.map(drop).inspect_err(|_| self.unsent = Some(transmit))
    }

    fn send_pages(&mut self, transmit: &Transmit, mut left: PageRange) -> Result<(), SendError> {
        let window = WINDOWS_BYTES / self.readers.len().max(1);
        let window = window.clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
        let datagram_len = self.config.socket.datagram_len;
        let Transmit { cast, group, .. } = *transmit;
        while !left.is_empty() {
            // A cast that ended meanwhile has no reader and nothing to send.
            let Some(reader) = self.readers.get_mut(&cast) else { return Ok(()) };
            let sent = match reader.pages.datagrams(left, window) {
                Ok((_, datagrams)) => self.socket.send(datagrams, group),
                Err(error) => {
                    self.end_unreadable(cast, &error);
                    return Ok(());
                }
            };
            match sent {
                // Whole datagrams, of which only the last may be short.
                Ok(bytes) => {
                    let pages = u32::try_from(bytes.div_ceil(datagram_len)).unwrap_or(u32::MAX);
                    left = PageRange::new(left.start.0.saturating_add(pages), left.end.0);
                }
                Err(error) => {
                    self.unsent = Some(Transmit { cast, group, what: Sending::Pages(left) });
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn send_symbols(&mut self, transmit: &Transmit, symbols: &[Symbol]) -> Result<(), SendError> {
        let ready_bytes = (READY_BYTES / self.readers.len().max(1)).min(READY_BYTES_MAX);
        let Transmit { cast, group, .. } = *transmit;
        let mut left = symbols;
        while !left.is_empty() {
            let reader = self.readers.get_mut(&cast).and_then(|reader| reader.repair.as_mut());
            let Some(reader) = reader else { return Ok(()) };
            let sent = match reader.datagrams(left, ready_bytes, &mut self.rows) {
                Ok(datagrams) => self.socket.send(datagrams, group),
                Err(error) => {
                    self.end_unreadable(cast, &error);
                    return Ok(());
                }
            };
            match sent {
                Ok(bytes) => {
                    let count = bytes.div_ceil(self.config.socket.datagram_len).min(left.len());
                    let (gone, rest) = left.split_at(count);
                    reader.forget(gone);
                    left = rest;
                }
                Err(error) => {
                    let what = Sending::Symbols(left.to_vec());
                    self.unsent = Some(Transmit { cast, group, what });
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits as `next` says, then carries out the commands that came.
    fn obey(&mut self, commands: &Receiver<Command>, next: &Next) -> ControlFlow<()> {
        let first = match next {
            Next::GoOn => commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
            Next::WaitUntil(until) => {
                commands.recv_timeout(until.saturating_duration_since(Instant::now()))
            }
            Next::WaitForCommand => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(command) => self.carry_out(command)?,
            Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        }
        for command in commands.try_iter().take(BURST_COMMANDS) {
            self.carry_out(command)?;
        }
        ControlFlow::Continue(())
    }

    /// A reply that nobody waits for any more is dropped: the client went away.
    fn carry_out(&mut self, command: Command) -> ControlFlow<()> {
        let now = Instant::now();
        match command {
            Command::Join { path, etag, open, geometry, token, kind, reply } => {
                let name = token.clone();
                let joined = self.scheduler.handle_join(&path, &etag, geometry, token, kind, now);
                if let Ok(joined) = joined {
                    let group = joined.group;
                    if joined.began {
                        let pages = PageReader::new(open, geometry, self.config.layout);
                        let repair = self.scheduler.layout(&geometry);
                        let repair = repair.map(|layout| pages.for_repair(layout));
                        self.readers.insert(joined.cast, CastReader { pages, repair });
                        let size = geometry.size();
                        tracing::info!(cast = %joined.cast, %path, %group, size, %etag, "cast began");
                    }
                    let members = self.members(joined.cast);
                    tracing::info!(cast = %joined.cast, %path, token = %name, members, "joined");
                }
                let _ = reply.send(joined);
            }
            Command::Leave { path, token, reply } => {
                let left = self.scheduler.handle_leave(&path, &token, now);
                if let Some(cast) = left {
                    let members = self.members(cast);
                    tracing::info!(%cast, %path, %token, members, "left");
                }
                let _ = reply.send(left.is_some());
            }
            Command::Report { path, token, report, reply } => {
                let known = self.scheduler.handle_report(&path, &token, &report, now);
                let needs = report.needs.len();
                tracing::debug!(%path, %token, known, needs, bulk = ?report.bulk, "reported");
                let _ = reply.send(known);
            }
            Command::Status { reply } => {
                let _ = reply.send(self.status(now));
            }
            Command::Stop => return ControlFlow::Break(()),
        }
        self.clean_up();
        ControlFlow::Continue(())
    }
}

impl Driver {
    /// Ends the casts whose path leads to another version by now, or nowhere.
    fn check_versions(&mut self, now: Instant) {
        if now < self.next_version_check {
            return;
        }
        self.next_version_check = now + VERSION_CHECK_INTERVAL;
        let changed = |view: &CastView<'_>| match self.config.source.version(view.path) {
            Ok(version) => {
                self.readers.get(&view.id).is_some_and(|it| it.pages.version() != version)
            }
            // Of the server, not of the file.
            Err(SourceError::Busy) => false,
            Err(_) => true,
        };
        let changed: Vec<_> = self.scheduler.casts().filter(changed).map(|view| view.id).collect();
        for cast in changed {
            self.scheduler.handle_end(cast, EndReason::FileChanged, now);
        }
    }

    fn end_unreadable(&mut self, cast: CastId, error: &ReadError) {
        let now = Instant::now();
        match error {
            ReadError::Changed => self.scheduler.handle_end(cast, EndReason::FileChanged, now),
            ReadError::Io(errno) => {
                tracing::warn!(%cast, %errno, "cannot read the file");
                self.scheduler.handle_end(cast, EndReason::Unreadable, now);
            }
        }
    }

    /// Drops what belongs to casts that ended.
    fn clean_up(&mut self) {
        while let Some(Event::Ended { cast, path, group, reason, passes }) =
            self.scheduler.poll_event()
        {
            if let Some(reader) = self.readers.remove(&cast) {
                self.bytes_read += reader.bytes_read();
            }
            tracing::info!(%cast, %path, %group, %reason, passes, "cast ended");
        }
    }

    /// Says it once; returns when to try again.
    fn on_down(&mut self, errno: rustix::io::Errno) -> Instant {
        if self.down_until.is_none() {
            let interface = &self.config.interface.name;
            tracing::warn!(interface, %errno, "cannot send: waiting for the interface");
        }
        let until = Instant::now() + DOWN_PAUSE;
        self.down_until = Some(until);
        until
    }

    /// A new socket: an interface that comes back may have another number.
    fn reopen(&mut self) {
        let config = &mut self.config;
        let found = interface::resolve(config.interface_name.as_ref(), config.any_group);
        // Where that fails, the old socket fails again and another pause follows.
        if let Ok(interface) = found
            && interface.address == config.interface.address
            && let Ok(socket) = MulticastSocket::open(&interface, &config.socket)
        {
            config.interface = interface;
            self.socket = socket;
        }
    }

    fn members(&self, cast: CastId) -> usize {
        self.scheduler.cast(cast).map_or(0, |view| view.cast.members())
    }

    fn status(&self, now: Instant) -> Status {
        let casts = self.scheduler.casts().map(|view| CastStatus {
            path: view.path.encode(),
            etag: view.etag.clone(),
            group: view.group.to_string(),
            size: view.geometry.size(),
            pages: view.geometry.pages(),
            page_size: view.geometry.page_size().get(),
            members: u32::try_from(view.cast.members()).unwrap_or(u32::MAX),
            joins: view.cast.joins(),
            pages_sent: view.cast.pages_sent(),
            symbols_sent: view.cast.symbols_sent(),
            repair_level: view.cast.redundancy(),
            passes: view.cast.passes(),
            age_s: now.saturating_duration_since(view.began).as_secs(),
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

//! What the sender thread asks the reader stage for, and what it does with the outcomes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bootcast_proto::{Geometry, PageRange};

use super::stream_buffer::{Limits, NextRead, StreamBuffer};
use super::unreadable::MAX_FAILURES;
use super::{CastId, Driver, Symbol, Transmit};
use crate::cast::{Lane, MemberKind};
use crate::io::reader::ReadFailure;
use crate::io::reader::pages::{PageBuffer, PageReader};
use crate::io::reader::source::{PageSource, ReadError};
use crate::io::reader::stage::{FileSystem, Purpose};
use crate::io::reader::symbols::{SymbolBuffer, SymbolReader, SymbolsRead};
use crate::io::sender::Command;
use crate::source::Version;

/// Bytes of symbols that are encoded ahead for all casts together.
const ENCODE_AHEAD_TOTAL: usize = 64 << 20;

/// Maximum number of bytes of symbols that are encoded ahead for one cast: room for eight
/// symbols of 1456 bytes of each of the 512 blocks of the largest window.
const ENCODE_AHEAD_MAX: usize = 6 << 20;

/// Bytes that the sender reads from the page cache at a time for a stream.
const CACHED_READ_BYTES: usize = 128 << 10;

/// Ceiling up to which the sender reads pages of streams itself where that takes no waiting. It
/// needs a second of CPU time for a GiB then. At higher rates a second processor does a part of
/// that.
const MAX_INLINE_RATE: u64 = 2_500_000_000;

/// Part of a cast that reads on its own. The stage does one job at a time for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::io::sender) enum Part {
    /// Pages of the stream.
    Stream,
    /// Demanded pages, handed out in this lane.
    Demanded(Lane),
    /// Repair symbols.
    Symbols,
}

/// Outcome of a job of the reader stage.
#[derive(Debug)]
pub(in crate::io::sender) enum Outcome {
    /// Pages were read, or this run of them cannot be.
    Pages { part: Part, run: PageRange, read: Result<PageBuffer, ReadFailure> },
    /// Symbols were encoded.
    Symbols(SymbolsRead),
    /// The path was checked for a new version.
    Version(Checked),
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io::sender) enum Checked {
    /// The version that is being sent.
    Same,
    /// Nothing. The file may be renamed, and come back.
    Missing,
    /// Another version, or something else than a file.
    Changed,
}

/// What is read of one cast's file.
pub(super) struct CastReader {
    pages: PageReader,
    symbols: Option<SymbolReader>,
    pub(super) purpose: Purpose,
    stream: StreamBuffer,
    /// Demanded pages that were read last in each lane.
    demanded: BTreeMap<Lane, PageBuffer>,
    encoded: SymbolBuffer,
    /// Parts that the stage works for.
    busy: Vec<Part>,
    /// Parts that datagrams wait for, which the scheduler took back.
    awaited: Vec<Part>,
    /// Number of failed reads since the last successful one.
    failures: BTreeMap<Part, u32>,
    /// Whether the symbols that are handed out next are given up.
    gives_up_symbols: bool,
    /// Whether the stage checks the path for a new version.
    pub(super) is_checked: bool,
    /// Whether the path led nowhere at the last check.
    pub(super) is_missing: bool,
    bytes_read: u64,
}

impl Part {
    /// Returns the lane of the datagrams that need this part.
    fn lane(self) -> Lane {
        match self {
            Self::Stream | Self::Symbols => Lane::Turn,
            Self::Demanded(lane) => lane,
        }
    }
}

impl CastReader {
    /// Returns the version that is being sent.
    pub(super) fn version(&self) -> Version {
        self.pages.source().version()
    }

    /// Returns the number of bytes that were read from the file.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Returns the datagrams of the first pages of `run`; `None` if they are not read yet.
    pub(super) fn pages(&mut self, part: Part, run: PageRange) -> Option<&[u8]> {
        match part {
            Part::Demanded(lane) => self.demanded.get(&lane)?.datagrams(run),
            Part::Stream | Part::Symbols => self.stream.datagrams(run),
        }
    }

    /// Reads demanded pages that are in the page cache. Returns whether they are.
    fn read_demanded_cached(&mut self, lane: Lane, run: PageRange) -> bool {
        let spare = self.demanded.remove(&lane).unwrap_or_default();
        let read = self.pages.read_cached(run, 0, spare);
        let is_cached = read.is_ok();
        let buffer = read.unwrap_or_else(|spare| spare);
        self.bytes_read += buffer.bytes();
        self.demanded.insert(lane, buffer);
        is_cached
    }

    /// Reads pages of the stream that are in the page cache. Returns whether they are.
    fn read_stream_cached(&mut self, run: PageRange) -> bool {
        let pages = self.pages.clone().of_stream();
        let bytes_read = &mut self.bytes_read;
        self.stream.read_cached(|spare| {
            let read = pages.read_cached(run, CACHED_READ_BYTES, spare);
            read.inspect(|buffer| *bytes_read += buffer.bytes())
        })
    }

    /// Returns the datagrams of these symbols; `None` if they are not encoded yet.
    pub(super) fn symbols(&mut self, symbols: &[Symbol]) -> Option<&[u8]> {
        let key = self.symbols.as_ref()?.key();
        self.encoded.datagrams(symbols, key)
    }

    /// Discards symbols that were sent.
    pub(super) fn discard(&mut self, sent: &[Symbol]) {
        self.encoded.discard(sent);
    }

    /// Whether symbols that could not be read several times are given up. Resets that.
    pub(super) fn take_give_up(&mut self) -> bool {
        std::mem::take(&mut self.gives_up_symbols)
    }

    /// Records a failed read. Returns how many there were since the last successful one.
    fn count_failure(&mut self, part: Part) -> u32 {
        let failures = self.failures.entry(part).or_default();
        *failures += 1;
        *failures
    }
}

impl Driver {
    /// Adds the reader of a cast that starts, and reads the first pages of its stream.
    pub(super) fn add_reader(
        &mut self,
        cast: CastId,
        source: Arc<dyn PageSource>,
        geometry: Geometry,
        kind: MemberKind,
    ) {
        let key = self.config.keys.as_ref().map(|keys| keys.of(cast));
        let file_system = FileSystem(source.version().device());
        let pages = PageReader::new(source, geometry, self.config.layout).tagged(key);
        let layout = self.scheduler.layout(&geometry);
        let reader = CastReader {
            symbols: layout.map(|layout| pages.for_repair(layout)),
            pages,
            purpose: Purpose { cast: Some(cast), file_system },
            stream: StreamBuffer::new(),
            demanded: BTreeMap::new(),
            encoded: SymbolBuffer::default(),
            busy: Vec::new(),
            awaited: Vec::new(),
            failures: BTreeMap::new(),
            gives_up_symbols: false,
            is_checked: false,
            is_missing: false,
            bytes_read: 0,
        };
        self.readers.insert(cast, reader);
        let first = PageRange::new(0, 1);
        if kind != MemberKind::Demand
            && geometry.pages() > 0
            && !self.read_cached(cast, Part::Stream, first)
        {
            self.read_pages(cast, Part::Stream, first);
        }
    }

    /// Reads pages that datagrams wait for without waiting for a disk or another thread. Returns
    /// whether that was possible: the page cache has them, and the part is not busy.
    pub(super) fn read_cached(&mut self, cast: CastId, part: Part, run: PageRange) -> bool {
        let is_slow = self.scheduler.rate().bits_per_second() <= MAX_INLINE_RATE;
        let reader = self.readers.get_mut(&cast).filter(|reader| !reader.busy.contains(&part));
        let Some(reader) = reader else { return false };
        let is_read = match part {
            Part::Demanded(lane) => reader.read_demanded_cached(lane, run),
            Part::Stream => is_slow && reader.read_stream_cached(run),
            Part::Symbols => false,
        };
        if is_read {
            reader.failures.remove(&part);
        }
        is_read
    }

    /// Takes pages back until the stage has read them.
    pub(super) fn wait_for_pages(&mut self, part: Part, run: PageRange, transmit: Transmit) {
        self.read_pages(transmit.cast, part, run);
        self.wait_for(part, transmit);
    }

    /// Takes symbols back until the stage has encoded them.
    pub(super) fn wait_for_symbols(&mut self, symbols: &[Symbol], transmit: Transmit) {
        self.encode_symbols(transmit.cast, symbols);
        self.wait_for(Part::Symbols, transmit);
    }

    fn wait_for(&mut self, part: Part, transmit: Transmit) {
        if let Some(reader) = self.readers.get_mut(&transmit.cast) {
            debug_assert!(reader.busy.contains(&part), "the datagrams would wait forever");
            reader.awaited.push(part);
            self.scheduler.handle_waiting(transmit);
        }
    }

    /// Reads the pages behind those that the stream sends now, unless that is under way.
    pub(super) fn read_ahead(&mut self, cast: CastId, run: PageRange) {
        let limits = Limits::share(self.readers.len());
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let pages = reader.pages.pages();
        if let Some(read) = reader.stream.poll_read_ahead(run, pages, limits) {
            self.submit_pages(cast, Part::Stream, read);
        }
    }

    /// Reads pages that datagrams wait for, unless the part is busy: then its outcome comes first.
    fn read_pages(&mut self, cast: CastId, part: Part, run: PageRange) {
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let read = match part {
            Part::Demanded(lane) => {
                let is_free = !reader.busy.contains(&part);
                let memory = reader.demanded.remove(&lane).unwrap_or_default();
                is_free.then_some(NextRead { run, bytes: 0, memory })
            }
            Part::Stream | Part::Symbols => reader.stream.poll_read(run),
        };
        if let Some(read) = read {
            self.submit_pages(cast, part, read);
        }
    }

    fn submit_pages(&mut self, cast: CastId, part: Part, read: NextRead) {
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        assert!(!reader.busy.contains(&part), "two outcomes would claim one buffer of cast {cast}");
        reader.busy.push(part);
        let pages = reader.pages.clone();
        let pages = if part == Part::Stream { pages.of_stream() } else { pages };
        let NextRead { run, bytes, memory } = read;
        self.submit(cast, move || {
            let read = pages.read(run, bytes, memory);
            Outcome::Pages { part, run, read }
        });
    }

    /// Encodes those of the symbols that are not encoded, unless some are being encoded already.
    fn encode_symbols(&mut self, cast: CastId, symbols: &[Symbol]) {
        let ahead_bytes = (ENCODE_AHEAD_TOTAL / self.readers.len().max(1)).min(ENCODE_AHEAD_MAX);
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let is_busy = reader.busy.contains(&Part::Symbols);
        let Some(symbol_reader) = reader.symbols.clone().filter(|_| !is_busy) else { return };
        reader.busy.push(Part::Symbols);
        let missing = symbols.iter().filter(|symbol| !reader.encoded.contains(**symbol));
        let missing: Vec<_> = missing.copied().collect();
        let ahead_bytes = ahead_bytes.saturating_sub(reader.encoded.bytes());
        let rows = self.rows.clone();
        self.submit(cast, move || {
            Outcome::Symbols(symbol_reader.read(&missing, ahead_bytes, &rows))
        });
    }

    /// Gives a job for a cast to the stage. Its outcome comes back as a command.
    pub(super) fn submit(&self, cast: CastId, job: impl FnOnce() -> Outcome + Send + 'static) {
        let Some(reader) = self.readers.get(&cast) else { return };
        let outcomes = self.outcomes.clone();
        self.stage.submit(reader.purpose, move || {
            // Nobody waits for it if the sender has stopped.
            let _ = outcomes.send(Command::Outcome(cast, job()));
        });
    }

    /// Lets the stage drop a source, which may close its file. That may block as a read does.
    pub(super) fn close(&self, source: Arc<dyn PageSource>) {
        let file_system = FileSystem(source.version().device());
        self.stage.submit(Purpose { cast: None, file_system }, move || drop(source));
    }

    /// Drops the reader of a cast, and closes its file once no job reads it.
    pub(super) fn remove_reader(&mut self, cast: CastId) {
        if let Some(reader) = self.readers.remove(&cast) {
            self.bytes_read += reader.bytes_read;
            let source = Arc::clone(reader.pages.source());
            drop(reader);
            self.close(source);
        }
    }

    /// Handles the outcome of a job of the stage. Ignores it if the cast has ended.
    pub(super) fn handle_outcome(&mut self, cast: CastId, outcome: Outcome) {
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let part = match &outcome {
            Outcome::Pages { part, .. } => *part,
            Outcome::Symbols(_) => Part::Symbols,
            Outcome::Version(checked) => {
                reader.is_checked = false;
                return self.handle_checked(cast, *checked);
            }
        };
        reader.busy.retain(|busy| *busy != part);
        let is_awaited = reader.awaited.contains(&part);
        reader.awaited.retain(|awaited| *awaited != part);
        match outcome {
            Outcome::Pages { run, read, .. } => {
                self.handle_pages(cast, part, run, read, is_awaited);
            }
            Outcome::Symbols(read) => self.handle_symbols(cast, read),
            Outcome::Version(_) => {}
        }
        if is_awaited {
            self.scheduler.handle_ready(cast, part.lane());
        }
    }

    fn handle_pages(
        &mut self,
        cast: CastId,
        part: Part,
        run: PageRange,
        read: Result<PageBuffer, ReadFailure>,
        is_awaited: bool,
    ) {
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        let (buffer, failure) = match read {
            Ok(buffer) => (Some(buffer), None),
            Err(failure) => (None, Some(failure)),
        };
        if let Some(buffer) = &buffer {
            reader.bytes_read += buffer.bytes();
            reader.failures.remove(&part);
        }
        match part {
            Part::Demanded(lane) => reader.demanded.extend(buffer.map(|buffer| (lane, buffer))),
            Part::Stream | Part::Symbols => reader.stream.handle_read(buffer),
        }
        let Some(mut failure) = failure else { return };
        let failures = reader.count_failure(part);
        if failure.error.is_local_to_bytes() {
            if failure.unreadable.is_empty() && failures >= MAX_FAILURES && is_awaited {
                failure.unreadable = run.iter().collect();
            }
            self.handle_unreadable_pages(cast, &failure);
        } else if is_awaited || matches!(failure.error, ReadError::Changed) {
            // If nothing waits for it, a later read finds out whether the error lasts.
            self.end_unreadable(cast, &failure.error);
        }
    }

    fn handle_symbols(&mut self, cast: CastId, read: SymbolsRead) {
        let Some(reader) = self.readers.get_mut(&cast) else { return };
        reader.bytes_read += read.bytes_read;
        reader.encoded.append(read.encoded);
        let Some(failure) = read.failure else {
            reader.failures.remove(&Part::Symbols);
            return;
        };
        let failures = reader.count_failure(Part::Symbols);
        if failure.error.is_local_to_bytes() {
            // If no page is unreadable by itself, the error may have been temporary.
            reader.gives_up_symbols = failure.unreadable.is_empty() && failures >= MAX_FAILURES;
            self.handle_unreadable_pages(cast, &failure);
        } else {
            self.end_unreadable(cast, &failure.error);
        }
    }
}

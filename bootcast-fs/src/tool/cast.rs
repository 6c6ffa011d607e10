//! Fetches by multicast, as a member of the file's cast for as long as needed.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::ToolError;
use super::output;
use super::progress::Progress;
use super::range::{ByteRange, RangeFetch};
use super::signals::Signals;
use super::url::Target;
use crate::cache::{Cache, ObjectKey, Store};
use crate::io::{Intake, IntakeConfig, InterfaceChoice, now, seed};
use crate::object::{Object, Opening};
use crate::receiver::{Failure, Fill, Timing, UnicastMode};

/// Timing of the membership: join again after `silence` without a datagram, leave at once when
/// done.
const TIMING: Timing = Timing { linger: Duration::ZERO, silence: Duration::from_secs(2) };
/// How long the end of a fetch waits for its leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes written to the output at a time.
const PIECE: u64 = 1 << 20;
/// How often the progress is checked.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Fetch of a file as a member of its cast.
#[derive(Debug)]
pub(super) struct CastFetch {
    target: Target,
    intake: Intake,
    /// Longest time without a new page; `None` for ever.
    patience: Option<Duration>,
}

impl CastFetch {
    /// Prepares to receive. Needs the runtime.
    pub(super) fn new(
        target: &Target,
        interface: InterfaceChoice,
        patience: Option<Duration>,
    ) -> Result<Self, ToolError> {
        interface.check().map_err(|error| ToolError::Usage(error.to_string()))?;
        let runtime = tokio::runtime::Handle::current();
        let config = IntakeConfig { control: target.control.clone(), interface, runtime };
        let intake = Intake::start(config)
            .map_err(|error| ToolError::Local(format!("cannot start to receive: {error}")))?;
        Ok(Self { target: target.clone(), intake, patience })
    }

    /// Receives into `file`. Returns the size.
    pub(super) async fn fill(
        &self,
        file: File,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let object = self.object(file, Fill::Full);
        let show = || progress.show(object.received(), object.size_at_most());
        let complete = self.follow(&object, show, signals, completion(&object)).await;
        complete?;
        // Known because the file is complete.
        let size = object.size().unwrap_or_default();
        object.store().set_size(size).map_err(|error| ToolError::streaming(&error))?;
        Ok(size)
    }

    /// Writes the file to `stream`, in order, as pages arrive. Returns the size.
    pub(super) async fn stream(
        &self,
        stream: &File,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let stream = stream.try_clone().map_err(|error| ToolError::streaming(&error))?;
        let object = self.object(output::spool()?, Fill::Full);
        let show = || progress.show(object.received(), object.size_at_most());
        self.follow(&object, show, signals, hand_on(&object, Arc::new(stream))).await
    }

    /// Writes a part of the file to `stream`, in order, as pages arrive. Returns the size of the
    /// part.
    pub(super) async fn part(
        &self,
        range: ByteRange,
        stream: &File,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let stream = stream.try_clone().map_err(|error| ToolError::streaming(&error))?;
        let object = self.object(output::spool()?, Fill::Demand);
        let (written, total) = (Cell::new(0), Cell::new(None));
        let show = || progress.show(written.get(), total.get());
        let fetch = RangeFetch::new(range, &object, &self.intake, &written, &total);
        let outcome = self.follow(&object, show, signals, fetch.run(Arc::new(stream))).await;
        outcome.map_err(|error| match error {
            ToolError::Changed if written.get() > 0 => ToolError::ChangedMidway(written.get()),
            error => error,
        })
    }

    fn object(&self, room: File, fill: Fill) -> Arc<Object> {
        let key = ObjectKey {
            server: self.target.control.server().to_owned(),
            path: self.target.path.clone(),
            etag: None,
        };
        let store = Store::nameless(room, Cache::Disk(std::env::temp_dir()));
        let object = Object::new(key, store, None, TIMING, fill, seed());
        Arc::new(object.with_unicast(UnicastMode::Auto))
    }

    /// Runs `work` as a member, and leaves afterwards however it ends.
    async fn follow<T>(
        &self,
        object: &Arc<Object>,
        show: impl Fn(),
        signals: &mut Signals,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        object.open();
        self.intake.attend(object);
        let watched = async {
            tokio::select! {
                done = work => done,
                stalled = self.watch_over(object, show) => Err(stalled),
            }
        };
        let outcome = signals.guard(watched).await;
        object.shut_down();
        self.intake.attend(object);
        self.intake.drain(LEAVE_PATIENCE).await;
        outcome
    }

    /// Shows the progress. Returns when there was none for too long.
    async fn watch_over(&self, object: &Object, show: impl Fn()) -> ToolError {
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        let mut last = (heard(object), now());
        loop {
            looks.tick().await;
            show();
            let heard = heard(object);
            if heard != last.0 || object.is_complete() {
                last = (heard, now());
            }
            if self.patience.is_some_and(|patience| last.1 + patience <= now()) {
                return self.stalled(object, last.1);
            }
        }
    }

    /// Explains why nothing arrives, as far as this side can tell.
    fn stalled(&self, object: &Object, since: Instant) -> ToolError {
        let waited =
            humantime::format_duration(Duration::from_secs(now().duration_since(since).as_secs()));
        let server = self.target.control.server();
        ToolError::TimedOut(match object.opening() {
            Opening::Pending | Opening::Failed(_) => {
                format!("{server} took no join for {waited}: it is away or overloaded")
            }
            Opening::Open if heard(object) == 0 && object.counters().forged > 0 => format!(
                "joined, but for {waited} nothing arrived except datagrams that are not {server}'s: \
                 something else sends to its group in its name, try --unicast"
            ),
            Opening::Open if heard(object) == 0 => format!(
                "joined, but nothing arrived for {waited}: check that multicast from {server} gets \
                 here (firewall, --interface, IGMP querier), or try --unicast"
            ),
            Opening::Open => format!(
                "nothing arrived any more for {waited}: check {server} and the network, or try \
                 --unicast"
            ),
        })
    }
}

/// Number of pages and symbols received, new or not. A pass may take long and bring only one
/// missing page.
fn heard(object: &Object) -> u64 {
    let counters = object.counters();
    counters.pages + counters.duplicates + counters.symbols
}

/// Resolves when every page is here.
async fn completion(object: &Object) -> Result<(), ToolError> {
    let mut changes = object.watch();
    while !object.is_complete() {
        if let Opening::Failed(failure) = object.opening() {
            return Err(failure.into());
        }
        // The object outlives this borrow of it.
        let _ = changes.changed().await;
    }
    Ok(())
}

/// Writes what is contiguous from the start until everything is written. Returns the number of
/// bytes.
async fn hand_on(object: &Arc<Object>, stream: Arc<File>) -> Result<u64, ToolError> {
    let mut changes = object.watch();
    let mut written = 0;
    loop {
        let is_complete = object.is_complete();
        let here = object.contiguous();
        if written < here {
            let piece = written..here.min(written + PIECE);
            written = piece.end;
            let (object, stream) = (object.clone(), stream.clone());
            let copied = tokio::task::spawn_blocking(move || copy(&object, &stream, piece)).await;
            copied
                .unwrap_or_else(|error| Err(io::Error::other(error)))
                .map_err(|error| ToolError::streaming(&error))?;
        } else if is_complete {
            return Ok(written);
        } else if let Opening::Failed(failure) = object.opening() {
            return Err(match failure {
                Failure::Stale if written > 0 => ToolError::ChangedMidway(written),
                Failure::Store(text) => {
                    ToolError::Local(format!("cannot spool in $TMPDIR or memory: {text}"))
                }
                failure => failure.into(),
            });
        } else {
            let _ = changes.changed().await;
        }
    }
}

/// Copies one piece and frees its space: a held page is never written again.
fn copy(object: &Object, mut stream: &File, piece: Range<u64>) -> io::Result<()> {
    let len = piece.end - piece.start;
    let mut buffer = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    object.store().read_exact_at(&mut buffer, piece.start)?;
    stream.write_all(&buffer)?;
    object.give_back(piece.end);
    Ok(())
}

//! Fetching by multicast: as a member of the file's cast, for no longer than it takes.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::ToolError;
use super::output;
use super::progress::Progress;
use super::signals::Signals;
use super::url::Target;
use crate::cache::{Cache, ObjectKey, Store};
use crate::io::{Intake, IntakeConfig, InterfaceChoice, now, seed};
use crate::object::{Object, Opening};
use crate::receiver::{Failure, Timing};

/// A member that hears nothing joins again after `silence`, and leaves as soon as it is not wanted.
const TIMING: Timing = Timing { linger: Duration::ZERO, silence: Duration::from_secs(2) };
/// How long the end waits for the server to hear of it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes handed on at a time.
const PIECE: u64 = 1 << 20;
/// How often the progress is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Fetches a file as a member of its cast.
#[derive(Debug)]
pub(super) struct CastFetch {
    target: Target,
    intake: Intake,
    /// Longest time without any page; for ever where `None`.
    patience: Option<Duration>,
}

impl CastFetch {
    /// Gets ready to receive. Needs the runtime.
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

    /// Fills `file`; returns the size.
    pub(super) async fn fill(
        &self,
        file: File,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let object = self.object(file);
        let complete = self.follow(&object, progress, signals, completion(&object)).await;
        complete?;
        // Known, because complete.
        let size = object.size().unwrap_or_default();
        object.store().set_size(size).map_err(|error| ToolError::streaming(&error))?;
        Ok(size)
    }

    /// Writes the file to `stream`, in order and as soon as it can be; returns the size.
    pub(super) async fn stream(
        &self,
        stream: &File,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let stream = stream.try_clone().map_err(|error| ToolError::streaming(&error))?;
        let object = self.object(output::spool()?);
        self.follow(&object, progress, signals, hand_on(&object, Arc::new(stream))).await
    }

    fn object(&self, file: File) -> Arc<Object> {
        let key = ObjectKey {
            server: self.target.control.server().to_owned(),
            path: self.target.path.clone(),
            etag: None,
        };
        let store = Store::nameless(file, Cache::Disk(std::env::temp_dir()));
        Arc::new(Object::new(key, store, None, TIMING, seed()))
    }

    /// Is a member while `work` lasts, and none any more afterwards, however it ends.
    async fn follow<T>(
        &self,
        object: &Arc<Object>,
        progress: &Progress,
        signals: &mut Signals,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        object.open();
        self.intake.attend(object);
        let watched = async {
            tokio::select! {
                done = work => done,
                stalled = self.watch_over(object, progress) => Err(stalled),
            }
        };
        let outcome = signals.guard(watched).await;
        object.shut_down();
        self.intake.attend(object);
        self.intake.drain(LEAVE_PATIENCE).await;
        outcome
    }

    /// Shows the progress; returns when there was none for too long.
    async fn watch_over(&self, object: &Object, progress: &Progress) -> ToolError {
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        let mut last = (heard(object), now());
        loop {
            looks.tick().await;
            progress.show(object.received(), object.size_at_most());
            let heard = heard(object);
            if heard != last.0 || object.is_complete() {
                last = (heard, now());
            }
            if self.patience.is_some_and(|patience| last.1 + patience <= now()) {
                return self.stalled(object, last.1);
            }
        }
    }

    /// Why nothing arrives, as far as that can be told from here.
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

/// Pages and symbols of the cast that came, new or not: a pass may take long, and lack one page only.
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

/// Writes what is here without a gap, until it is all; returns how much that was.
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

/// Hands one piece on, and gives room back: a page that is held is never written again.
fn copy(object: &Object, mut stream: &File, piece: Range<u64>) -> io::Result<()> {
    let len = piece.end - piece.start;
    let mut buffer = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    object.store().read_exact_at(&mut buffer, piece.start)?;
    stream.write_all(&buffer)?;
    object.give_back(piece.end);
    Ok(())
}

//! Fetches over plain HTTP, if multicast does not arrive or is not wanted.

use std::time::{Duration, Instant};

use bootcast_proto::Etag;
use bootcast_proto::log_limit::{Limiter, Suppressed};
use tokio::io::AsyncWriteExt;
use tracing::info;

use super::error::ToolError;
use super::output::Sink;
use super::progress::Progress;
use super::stall::StallClock;
use super::url::Target;
use crate::io::{ControlError, FileAnswer, now};

/// First pause before a broken connection is replaced. It doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two connections.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Bytes in one write.
const PIECE: usize = 1 << 20;

/// Fetch over plain HTTP that survives broken connections.
#[derive(Debug)]
pub(super) struct UnicastFetch<'a> {
    target: &'a Target,
    clock: StallClock,
    progress: &'a Progress,
    output: tokio::fs::File,
    sink: Sink,
    /// Offset of the first byte to fetch.
    first: u64,
    /// Number of bytes written from there on.
    written: u64,
    /// Offset behind the last byte to fetch; `None` for the end of the file.
    end: Option<u64>,
    /// Version of the file. Without one, a broken fetch cannot be resumed.
    etag: Option<Etag>,
    size: Option<u64>,
    /// How the last connection was lost, if nothing was written since.
    lost: Option<ControlError>,
    /// Causes of lost connections that were logged.
    losses: Limiter<String, Instant>,
}

/// State of a fetch that another transport began.
#[derive(Debug)]
pub(super) struct Begun {
    /// Offset of the first byte to fetch.
    pub(super) first: u64,
    /// Number of bytes written from there on.
    pub(super) written: u64,
    /// Offset behind the last byte to fetch; `None` for the end of the file.
    pub(super) end: Option<u64>,
    /// Version of the written bytes.
    pub(super) etag: Etag,
}

/// How one connection ended.
enum Connection {
    /// Everything was written.
    Done,
    /// The connection failed.
    Broken(ControlError),
}

impl<'a> UnicastFetch<'a> {
    /// Creates a fetch of the whole file into `sink`. Gives up after `patience` without a byte.
    pub(super) fn new(
        target: &'a Target,
        patience: Option<Duration>,
        progress: &'a Progress,
        sink: &Sink,
    ) -> Result<Self, ToolError> {
        let mut output = tokio::fs::File::from_std(sink.duplicate()?);
        output.set_max_buf_size(PIECE);
        Ok(Self {
            target,
            clock: StallClock::new(patience),
            progress,
            output,
            sink: sink.clone(),
            first: 0,
            written: 0,
            end: None,
            etag: None,
            size: None,
            lost: None,
            losses: Limiter::new(),
        })
    }

    /// Creates a fetch of the rest of what another transport began.
    pub(super) fn going_on(
        target: &'a Target,
        patience: Option<Duration>,
        progress: &'a Progress,
        sink: &Sink,
        begun: Begun,
    ) -> Result<Self, ToolError> {
        let Begun { first, written, end, etag } = begun;
        let fetch = Self::new(target, patience, progress, sink)?;
        Ok(Self { first, written, end, etag: Some(etag), ..fetch })
    }

    /// Fetches. Returns the number of bytes written in all. If the file changed, the error is
    /// [`ToolError::ChangedMidway`], or [`ToolError::Changed`] before the first byte.
    pub(super) async fn run(&mut self) -> Result<u64, ToolError> {
        let outcome = self.copy().await;
        let flushed = self.output.flush().await;
        outcome.map_err(|error| match error {
            ToolError::Changed if self.written > 0 => ToolError::ChangedMidway(self.written),
            error => error,
        })?;
        flushed.map_err(|error| self.sink.failed(&error))?;
        Ok(self.written)
    }

    /// Offset of the next byte to fetch.
    fn position(&self) -> u64 {
        self.first + self.written
    }

    /// Whether the fetch is bound to a version, and so resumes after an interruption.
    fn is_begun(&self) -> bool {
        self.written > 0 || self.etag.is_some()
    }

    /// Connects as often as needed.
    async fn copy(&mut self) -> Result<(), ToolError> {
        let mut pause = RETRY_MIN;
        let mut last = self.written;
        while let Connection::Broken(error) = self.connect().await? {
            if !self.is_begun() {
                return Err(error.into());
            }
            if self.written > last {
                last = self.written;
                pause = RETRY_MIN;
            }
            let (cause, written) = (error.to_string(), self.written);
            if let Some(suppressed) = self.losses.allow(&cause, now()) {
                info!(
                    error = cause,
                    written,
                    "connection lost, going on{}",
                    Suppressed(suppressed)
                );
            }
            self.lost = Some(error);
            self.patiently(tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(RETRY_MAX);
        }
        Ok(())
    }

    /// Copies what one connection brings.
    async fn connect(&mut self) -> Result<Connection, ToolError> {
        let Target { control, path } = self.target;
        let request = control.file(path, self.position(), self.etag.as_ref());
        let answer = match self.patiently(request).await? {
            Ok(answer) => answer,
            Err(error) if error.is_temporary() => return Ok(Connection::Broken(error)),
            Err(error) if self.is_begun() && error.is_not_found() => {
                return Err(ToolError::Changed);
            }
            Err(error) => return Err(error.into()),
        };
        self.adopt(&answer)?;
        let mut response = answer.response;
        loop {
            match self.patiently(response.chunk()).await? {
                Ok(Some(bytes)) => self.write(&bytes).await?,
                Ok(None) => return Ok(Connection::Done),
                Err(error) => return Ok(Connection::Broken(control.unreachable(&error))),
            }
            if self.end.is_some_and(|end| end <= self.position()) {
                return Ok(Connection::Done);
            }
        }
    }

    /// Checks that the answer belongs to the version that was begun, or begins with its version.
    fn adopt(&mut self, answer: &FileAnswer) -> Result<(), ToolError> {
        if self.is_begun() {
            let same = self.etag.is_some() && answer.etag == self.etag;
            let continues = answer.offset == self.position();
            if !(same && continues) {
                return Err(ToolError::Changed);
            }
        } else {
            self.etag.clone_from(&answer.etag);
        }
        self.size = answer.size;
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ToolError> {
        let wanted = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.position()));
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(bytes.len());
        let written = self.clock.pause(self.output.write_all(&bytes[..len])).await;
        written.map_err(|error| self.sink.failed(&error))?;
        self.written += len as u64;
        self.lost = None;
        let end = self.end.or(self.size);
        self.progress.show(self.written, end.map(|end| end.saturating_sub(self.first)));
        Ok(())
    }

    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<T, ToolError> {
        self.clock.within(work).await.map_err(|waited| self.stalled(waited))
    }

    /// Explains why nothing new arrives, as far as this side can tell.
    fn stalled(&self, waited: Duration) -> ToolError {
        let server = self.target.control.server();
        let waited = humantime::format_duration(waited);
        ToolError::TimedOut(match &self.lost {
            None => format!("{server} sent nothing for {waited}"),
            Some(ControlError::Unreachable { is_connected: true, .. }) => format!(
                "nothing new arrived for {waited}: {server} ends each connection at byte {}, where it \
                 may be unable to read the file",
                self.position()
            ),
            Some(error) => format!("nothing new arrived for {waited}: {error}"),
        })
    }
}

//! Fetches a file over plain HTTP, if multicast does not arrive or is not wanted.

use std::time::{Duration, Instant};

use bootcast_proto::Etag;
use bootcast_proto::log_limit::{Limiter, Suppressed};
use bytes::Bytes;
use tracing::info;

use super::error::ToolError;
use super::output::{InOrder, Sink, Zeros, blocking};
use super::progress::Progress;
use super::proof::Gate;
use super::stall::StallClock;
use super::url::Target;
use crate::io::{ControlError, FileAnswer, now};
use crate::receiver::REQUEST_BACKOFF;

/// Fetch over plain HTTP that reconnects when a connection breaks.
#[derive(Debug)]
pub(super) struct UnicastFetch<'a> {
    target: &'a Target,
    clock: StallClock,
    progress: &'a Progress,
    output: InOrder,
    /// Offset of the first byte to fetch.
    first: u64,
    /// Number of bytes written from there on.
    written: u64,
    /// Offset behind the last byte to fetch; `None` for the end of the file.
    end: Option<u64>,
    /// Version of the file. Without a version, a broken fetch cannot resume.
    etag: Option<Etag>,
    /// Size of the whole file, if the server stated it.
    size: Option<u64>,
    /// Error of the last connection, if nothing was written since.
    last_error: Option<ControlError>,
    /// Rate limit for log messages about lost connections, by cause.
    log_limiter: Limiter<String, Instant>,
    /// Proves bytes before they are written.
    gate: Option<Gate>,
}

/// Point at which a fetch resumes what another transport began.
#[derive(Debug)]
pub(super) struct ResumePoint {
    /// Offset of the first byte to fetch.
    pub(super) first: u64,
    /// Number of bytes written from there on.
    pub(super) written: u64,
    /// Offset behind the last byte to fetch; `None` for the end of the file.
    pub(super) end: Option<u64>,
    /// Version of the written bytes.
    pub(super) etag: Etag,
}

/// End of a connection.
enum Connection {
    /// All bytes were written.
    Done,
    /// The connection failed.
    Broken(ControlError),
}

impl<'a> UnicastFetch<'a> {
    /// Creates a fetch of the whole file into `output`. It gives up after `timeout` without a new
    /// byte.
    pub(super) fn new(
        target: &'a Target,
        timeout: Option<Duration>,
        progress: &'a Progress,
        output: InOrder,
    ) -> Self {
        Self {
            target,
            clock: StallClock::new(timeout),
            progress,
            output,
            first: 0,
            written: 0,
            end: None,
            etag: None,
            size: None,
            last_error: None,
            log_limiter: Limiter::new(),
            gate: None,
        }
    }

    /// Creates a fetch of the bytes that another transport did not write.
    pub(super) fn resume(
        target: &'a Target,
        timeout: Option<Duration>,
        progress: &'a Progress,
        sink: &Sink,
        from: ResumePoint,
    ) -> Self {
        let ResumePoint { first, written, end, etag } = from;
        let fetch = Self::new(target, timeout, progress, sink.in_order(Zeros::Written));
        Self { first, written, end, etag: Some(etag), ..fetch }
    }

    /// Proves bytes before they are written.
    pub(super) fn through(self, gate: Option<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// Fetches the bytes. Returns how many were written in all, also by another transport.
    ///
    /// If the file changes, fails with [`ToolError::ChangedMidway`], or with [`ToolError::Changed`]
    /// before the first byte.
    pub(super) async fn run(&mut self) -> Result<u64, ToolError> {
        self.copy().await.map_err(|error| match error {
            ToolError::Changed if self.written > 0 => ToolError::ChangedMidway(self.written),
            error => error,
        })?;
        self.output.finish().map_err(|error| self.output.error(&error))?;
        Ok(self.written)
    }

    /// Returns the offset of the next byte to fetch.
    fn position(&self) -> u64 {
        self.first + self.written
    }

    /// Returns whether the fetch is bound to a version, so that another version is an error.
    fn is_bound(&self) -> bool {
        self.written > 0 || self.etag.is_some()
    }

    /// Copies all bytes, over as many connections as needed.
    async fn copy(&mut self) -> Result<(), ToolError> {
        let mut failures = 0;
        let mut last = self.written;
        while let Connection::Broken(error) = self.connect().await? {
            if !self.is_bound() {
                return Err(error.into());
            }
            if self.written > last {
                last = self.written;
                failures = 0;
            }
            let (cause, written) = (error.to_string(), self.written);
            if let Some(suppressed) = self.log_limiter.allow(&cause, now()) {
                let more = Suppressed(suppressed);
                info!(error = cause, written, "connection lost, reconnecting{more}");
            }
            let pause = REQUEST_BACKOFF.pause(failures).max(error.retry_after());
            self.last_error = Some(error);
            self.within_timeout(tokio::time::sleep(pause)).await?;
            failures += 1;
        }
        Ok(())
    }

    /// Copies the bytes of one connection.
    async fn connect(&mut self) -> Result<Connection, ToolError> {
        let Target { control, path } = self.target;
        let request = control.file(path, self.position(), self.etag.as_ref());
        let answer = match self.within_timeout(request).await? {
            Ok(answer) => answer,
            Err(error) if error.is_temporary() => return Ok(Connection::Broken(error)),
            Err(error) if self.is_bound() && error.is_not_found() => {
                return Err(ToolError::Changed);
            }
            Err(error) => return Err(error.into()),
        };
        self.check_version(&answer)?;
        let mut response = answer.response;
        loop {
            match self.within_timeout(response.chunk()).await? {
                Ok(Some(bytes)) => self.write(bytes).await?,
                Ok(None) => return Ok(Connection::Done),
                Err(error) => return Ok(Connection::Broken(control.unreachable(&error))),
            }
            if self.end.is_some_and(|end| end <= self.position()) {
                return Ok(Connection::Done);
            }
        }
    }

    /// Checks that the answer continues the version of the bytes so far. The first answer decides
    /// the version.
    fn check_version(&mut self, answer: &FileAnswer) -> Result<(), ToolError> {
        if self.is_bound() {
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

    /// Writes the bytes of a response that belong to the range.
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), ToolError> {
        let wanted = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.position()));
        bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        let len = bytes.len();
        if let Some(gate) = &mut self.gate {
            bytes = self.clock.pause(gate.pass(&bytes)).await?.into();
        }
        let mut output = self.output.clone();
        let writing = blocking(move || output.write(&bytes).map(|()| output));
        let written = self.clock.pause(writing).await;
        self.output = written.map_err(|error| self.output.error(&error))?;
        self.written += len as u64;
        self.last_error = None;
        let end = self.end.or(self.size);
        self.progress.show(self.written, end.map(|end| end.saturating_sub(self.first)));
        Ok(())
    }

    /// Runs `work` until the timeout.
    async fn within_timeout<T>(&self, work: impl Future<Output = T>) -> Result<T, ToolError> {
        self.clock.within(work).await.map_err(|waited| self.stalled(waited))
    }

    /// Creates the error of a fetch that stalled, with the most likely cause.
    fn stalled(&self, waited: Duration) -> ToolError {
        let server = self.target.control.server();
        let waited = humantime::format_duration(waited);
        ToolError::TimedOut(match &self.last_error {
            None => format!("{server} sent nothing for {waited}"),
            Some(ControlError::Unreachable { is_connected: true, .. }) => format!(
                "nothing new arrived for {waited}: {server} closes each connection at byte {}, \
                 perhaps because it cannot read the file there",
                self.position()
            ),
            Some(error) => format!("nothing new arrived for {waited}: {error}"),
        })
    }
}

//! Fetching over plain HTTP: where multicast does not reach, or is not wanted.

use std::fs::File;
use std::time::Duration;

use bootcast_proto::Etag;
use tokio::io::AsyncWriteExt;
use tracing::info;

use super::error::ToolError;
use super::progress::Progress;
use super::url::Target;
use crate::io::{ControlError, FileAnswer, now};

/// First pause before a broken connection is made anew; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;

/// A fetch over plain HTTP that survives broken connections.
#[derive(Debug)]
pub(super) struct UnicastFetch<'a> {
    target: &'a Target,
    /// Longest time without a byte; for ever where `None`.
    patience: Option<Duration>,
    progress: &'a Progress,
    output: tokio::fs::File,
    written: u64,
    /// Of what was written; without one a broken fetch cannot go on.
    etag: Option<Etag>,
    size: Option<u64>,
}

/// What became of one connection.
enum Connection {
    /// The file is at its end.
    Done,
    /// It broke off.
    Broken(ControlError),
}

impl<'a> UnicastFetch<'a> {
    /// A fetch into `output`, from the beginning.
    pub(super) fn new(
        target: &'a Target,
        patience: Option<Duration>,
        progress: &'a Progress,
        output: File,
    ) -> Self {
        let mut output = tokio::fs::File::from_std(output);
        output.set_max_buf_size(PIECE);
        Self { target, patience, progress, output, written: 0, etag: None, size: None }
    }

    /// Fetches; returns the size. [`ToolError::Changed`] once another version is met.
    pub(super) async fn run(&mut self) -> Result<u64, ToolError> {
        let outcome = self.copy().await;
        let flushed = self.output.flush().await;
        outcome?;
        flushed.map_err(|error| ToolError::streaming(&error))?;
        Ok(self.written)
    }

    /// Bytes that were written, from the beginning of the file.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Connects as often as it takes.
    async fn copy(&mut self) -> Result<(), ToolError> {
        let mut pause = RETRY_MIN;
        let mut last = (self.written, now());
        while let Connection::Broken(error) = self.connect().await? {
            if self.written == 0 {
                return Err(error.into());
            }
            if self.written > last.0 {
                last = (self.written, now());
                pause = RETRY_MIN;
            } else if let Some(patience) = self.patience.filter(|&limit| last.1 + limit <= now()) {
                let waited = humantime::format_duration(patience);
                return Err(ToolError::TimedOut(format!("tried for {waited}: {error}")));
            }
            info!(%error, written = self.written, "connection lost, going on");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        Ok(())
    }

    /// Copies what one connection brings.
    async fn connect(&mut self) -> Result<Connection, ToolError> {
        let Target { control, path } = self.target;
        let request = control.file(path, self.written, self.etag.as_ref());
        let answer = match self.patiently(request).await? {
            Ok(answer) => answer,
            Err(error) if error.is_temporary() => return Ok(Connection::Broken(error)),
            Err(error) if self.written > 0 && error.is_not_found() => {
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
        }
    }

    /// Takes the answer for the version that was begun, or begins with it.
    fn adopt(&mut self, answer: &FileAnswer) -> Result<(), ToolError> {
        if self.written > 0 {
            let same = self.etag.is_some() && answer.etag == self.etag;
            let continues = answer.offset == self.written;
            return if same && continues { Ok(()) } else { Err(ToolError::Changed) };
        }
        self.etag.clone_from(&answer.etag);
        self.size = answer.size;
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ToolError> {
        self.output.write_all(bytes).await.map_err(|error| ToolError::streaming(&error))?;
        self.written += bytes.len() as u64;
        self.progress.show(self.written, self.size);
        Ok(())
    }

    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<T, ToolError> {
        let Some(patience) = self.patience else { return Ok(work.await) };
        tokio::time::timeout(patience, work).await.map_err(|_| {
            let server = self.target.control.server();
            let waited = humantime::format_duration(patience);
            ToolError::TimedOut(format!("{server} sent nothing for {waited}"))
        })
    }
}

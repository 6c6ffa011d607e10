//! Fetches over plain HTTP, if multicast does not arrive or is not wanted.

use std::fs::File;
use std::time::Duration;

use bootcast_proto::Etag;
use tokio::io::AsyncWriteExt;
use tracing::info;

use super::error::ToolError;
use super::progress::Progress;
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
    /// Longest time without a byte; `None` for ever.
    patience: Option<Duration>,
    progress: &'a Progress,
    output: tokio::fs::File,
    written: u64,
    /// Version of the bytes written so far. Without a version a broken fetch cannot continue.
    etag: Option<Etag>,
    size: Option<u64>,
}

/// How a connection ended.
enum Connection {
    /// The end of the file was reached.
    Done,
    /// The connection failed.
    Broken(ControlError),
}

impl<'a> UnicastFetch<'a> {
    /// Creates a fetch into `output`, from the beginning.
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

    /// Fetches the file. Returns the size, or [`ToolError::Changed`] if another version appears.
    pub(super) async fn run(&mut self) -> Result<u64, ToolError> {
        let outcome = self.copy().await;
        let flushed = self.output.flush().await;
        outcome?;
        flushed.map_err(|error| ToolError::streaming(&error))?;
        Ok(self.written)
    }

    /// Number of bytes written, from the beginning of the file.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Connects as often as needed.
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

    /// Checks that the answer belongs to the version that was begun, or begins with its version.
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

//! `bootcast get --range`: fetches a part of a file by demanding its pages.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::error::ToolError;
use super::output::{Sink, blocking};
use super::relay::Relayed;
use super::spool::Spool;
use super::stall::StallClock;
use crate::io::{Intake, now};
use crate::object::{Object, Opening, Unread, Waiter};
use crate::receiver::Failure;

/// Most bytes of one read.
const PIECE_LEN: u64 = 256 << 10;
/// Most reads that wait for pages at the same time.
const MAX_READS: usize = 4;

/// A range of bytes as the user types it: `0-499`, `500-`, `-500`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteRange {
    /// From this first byte to this last byte, or to the end of the file.
    From(u64, Option<u64>),
    /// This many bytes at the end.
    Last(u64),
}

/// The text is not a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected first and last byte, as in 0-499, 500- or -500")]
pub(super) struct ByteRangeError;

impl FromStr for ByteRange {
    type Err = ByteRangeError;

    fn from_str(text: &str) -> Result<Self, ByteRangeError> {
        let number = |text: &str| match text {
            "" => Ok(None),
            // Refuses "+5", which the integer parser would accept.
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map(Some).map_err(|_| ByteRangeError)
            }
            _ => Err(ByteRangeError),
        };
        let (first, last) = text.split_once('-').ok_or(ByteRangeError)?;
        match (number(first)?, number(last)?) {
            (Some(first), Some(last)) if last < first => Err(ByteRangeError),
            (Some(first), last) => Ok(Self::From(first, last)),
            (None, Some(0) | None) => Err(ByteRangeError),
            (None, Some(count)) => Ok(Self::Last(count)),
        }
    }
}

impl ByteRange {
    /// Returns the part of the range within a file of `size` bytes. Fails if it is empty.
    fn within(self, size: u64) -> Result<Range<u64>, ToolError> {
        let bytes = match self {
            Self::From(first, last) => {
                first..last.map_or(size, |last| last.saturating_add(1).min(size))
            }
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        if bytes.start < bytes.end {
            return Ok(bytes);
        }
        Err(ToolError::Usage(format!("--range is outside the file, which has {size} bytes")))
    }
}

/// Fetch of a part of a file.
#[derive(Debug)]
pub(super) struct RangeFetch<'a> {
    range: ByteRange,
    object: &'a Arc<Object>,
    intake: &'a Intake,
    spool: &'a Spool,
    sink: &'a Sink,
    clock: &'a StallClock,
    /// Number of bytes written.
    written: Cell<u64>,
    /// Start and end of the range in the file, once the file's size is known.
    bytes: Cell<Option<(u64, u64)>>,
}

impl<'a> RangeFetch<'a> {
    /// Creates a fetch of `range` from `object` into `sink`. It stops `clock` while the sink
    /// blocks.
    pub(super) fn new(
        range: ByteRange,
        object: &'a Arc<Object>,
        intake: &'a Intake,
        spool: &'a Spool,
        sink: &'a Sink,
        clock: &'a StallClock,
    ) -> Self {
        let (written, bytes) = (Cell::new(0), Cell::new(None));
        Self { range, object, intake, spool, sink, clock, written, bytes }
    }

    /// Returns the number of bytes written.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Returns the range in the file, once the file's size is known.
    pub(super) fn bytes(&self) -> Option<Range<u64>> {
        self.bytes.get().map(|(start, end)| start..end)
    }

    /// Returns the number of bytes in that range.
    pub(super) fn total(&self) -> Option<u64> {
        self.bytes().map(|bytes| bytes.end - bytes.start)
    }

    /// Writes the bytes in order, as they arrive.
    pub(super) async fn run(&self) -> Result<Relayed, ToolError> {
        let mut rest = self.range.within(self.size().await?)?;
        self.bytes.set(Some((rest.start, rest.end)));
        let mut reads = VecDeque::new();
        loop {
            while reads.len() < MAX_READS && !rest.is_empty() {
                let piece = rest.start..rest.end.min(rest.start + PIECE_LEN);
                rest.start = piece.end;
                reads.push_back(self.read(piece));
            }
            let Some(read) = reads.pop_front() else { return Ok(Relayed::All) };
            // Every read is answered, at the latest when the object is shut down.
            let piece = match read.await.unwrap_or(Err(Unread::ShutDown)) {
                Ok(piece) => piece,
                Err(Unread::Store(text) | Unread::Failed(Failure::Store(text))) => {
                    return Ok(Relayed::SpoolFull(text));
                }
                Err(error) => return Err(error.into()),
            };
            let (len, sink) = (piece.len() as u64, self.sink.clone());
            let writing = self.clock.pause(blocking(move || sink.write_all(&piece))).await;
            writing.map_err(|error| self.sink.write_error(&error))?;
            self.written.set(self.written.get() + len);
            if self.spool.is_full() && self.object.snapshot().etag.is_some() {
                return Ok(Relayed::SpoolFull("it is full".to_owned()));
            }
        }
    }

    /// Waits until the size of the file is known.
    async fn size(&self) -> Result<u64, ToolError> {
        let size = self.object.wait_for(|snapshot| match snapshot.opening {
            Opening::Failed(failure) => Some(Err(failure.into())),
            Opening::Open | Opening::Pending => snapshot.size.map(Ok),
        });
        size.await
    }

    /// Starts a read, which demands the pages that are missing.
    fn read(&self, bytes: Range<u64>) -> oneshot::Receiver<Result<Vec<u8>, Unread>> {
        let (answer, answered) = oneshot::channel();
        let follow_up = self.object.read(bytes, Box::new(ReadWaiter(answer)), now());
        self.intake.follow_up(self.object, follow_up);
        answered
    }
}

/// A read that waits for its pages.
struct ReadWaiter(oneshot::Sender<Result<Vec<u8>, Unread>>);

impl Waiter for ReadWaiter {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        // Fails only if the fetch was dropped, and then nothing needs the answer.
        let _ = self.0.send(outcome.map(<[u8]>::to_vec));
    }

    fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_the_syntax_of_curl() {
        for (text, range) in [
            ("0-499", ByteRange::From(0, Some(499))),
            ("7-7", ByteRange::From(7, Some(7))),
            ("500-", ByteRange::From(500, None)),
            ("-500", ByteRange::Last(500)),
        ] {
            assert_eq!(text.parse(), Ok(range), "{text}");
        }
        for bad in [
            "",
            "-",
            "5",
            "9-3",
            "-0",
            "a-b",
            "0x1-2",
            "1-2,4-5",
            "+1-2",
            "1--2",
            "1-99999999999999999999",
        ] {
            assert_eq!(bad.parse::<ByteRange>(), Err(ByteRangeError), "{bad}");
        }
    }

    #[test]
    fn a_range_ends_with_the_file_and_fails_if_it_begins_there() {
        let within = |text: &str, size| text.parse::<ByteRange>().unwrap().within(size).ok();
        assert_eq!(within("10-19", 100), Some(10..20));
        assert_eq!(within("90-200", 100), Some(90..100));
        assert_eq!(within("90-", 100), Some(90..100));
        assert_eq!(within("-30", 100), Some(70..100));
        assert_eq!(within("-300", 100), Some(0..100));
        assert_eq!(within("0-18446744073709551615", 100), Some(0..100));
        for text in ["100-", "100-200"] {
            assert_eq!(within(text, 100), None, "{text}");
        }
        assert_eq!(within("-1", 0), None);
    }
}

//! Writes a file from the spool to a stream, in order, while pages still arrive.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::error::ToolError;
use super::output::{Sink, blocking};
use super::spool::Spool;
use super::stall::StallClock;
use crate::object::{Object, Opening};
use crate::receiver::Failure;

/// Bytes written at a time.
const PIECE: u64 = 1 << 20;
/// How often the size of the spool is checked.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// How a relay ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    /// Everything was written.
    All,
    /// The spool has no room for this reason. The rest has to be fetched another way.
    SpoolFull(String),
}

/// Writes a file to a stream as soon as its next bytes are here.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    object: &'a Arc<Object>,
    spool: &'a Spool,
    sink: &'a Sink,
    clock: &'a StallClock,
    /// Number of bytes written.
    written: Cell<u64>,
    /// Whether the spool reached its limit, and the cast was left.
    is_full: Cell<bool>,
    filled: Notify,
}

impl<'a> Relay<'a> {
    /// Relays `object` to `sink`. `clock` stands still while the sink blocks.
    pub(super) fn new(
        object: &'a Arc<Object>,
        spool: &'a Spool,
        sink: &'a Sink,
        clock: &'a StallClock,
    ) -> Self {
        let (written, is_full) = (Cell::new(0), Cell::new(false));
        Self { object, spool, sink, clock, written, is_full, filled: Notify::new() }
    }

    /// Number of bytes written.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Runs until everything is written. Calls `leave` when the spool reaches its limit, so that no
    /// more pages arrive; those that are contiguous are still written.
    pub(super) async fn run(&self, leave: impl Fn()) -> Result<Relayed, ToolError> {
        tokio::select! {
            relayed = self.hand_on() => relayed,
            never = self.watch_spool(leave) => match never {},
        }
    }

    async fn watch_spool(&self, leave: impl Fn()) -> Infallible {
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        loop {
            looks.tick().await;
            // A plain server has no other way to send a file, which may use all the space there is.
            let has_other_way = self.object.etag().is_some() && !self.object.is_complete();
            if has_other_way && !self.is_full.get() && self.spool.is_full() {
                self.is_full.set(true);
                leave();
                self.filled.notify_one();
            }
        }
    }

    async fn hand_on(&self) -> Result<Relayed, ToolError> {
        let mut changes = self.object.watch();
        loop {
            let is_complete = self.object.is_complete();
            let (written, here) = (self.written.get(), self.object.contiguous());
            if written < here {
                let piece = written..here.min(written + PIECE);
                if let Some(unreadable) = self.clock.pause(self.copy(piece.clone())).await? {
                    return Ok(Relayed::SpoolFull(unreadable.to_string()));
                }
                self.written.set(piece.end);
            } else if is_complete {
                return Ok(Relayed::All);
            } else if self.is_full.get() {
                return Ok(Relayed::SpoolFull("it is full".to_owned()));
            } else if let Opening::Failed(failure) = self.object.opening() {
                return match failure {
                    Failure::Stale if written > 0 => Err(ToolError::ChangedMidway(written)),
                    Failure::Store(text) => Ok(Relayed::SpoolFull(text)),
                    failure => Err(failure.into()),
                };
            } else {
                tokio::select! {
                    // The object outlives this borrow of it.
                    _ = changes.changed() => {}
                    () = self.filled.notified() => {}
                }
            }
        }
    }

    /// Copies one piece and frees its space: a held page is never written again. Returns an error
    /// of the spool, which does not end the command.
    async fn copy(&self, piece: Range<u64>) -> Result<Option<io::Error>, ToolError> {
        let (object, sink) = (self.object.clone(), self.sink.clone());
        let copied = blocking(move || {
            let len = usize::try_from(piece.end - piece.start).map_err(io::Error::other)?;
            let mut buffer = vec![0; len];
            if let Err(unreadable) = object.store().read_exact_at(&mut buffer, piece.start) {
                return Ok(Some(unreadable));
            }
            sink.write_all(&buffer)?;
            object.give_back(piece.end);
            Ok(None)
        });
        copied.await.map_err(|error| self.sink.failed(&error))
    }
}

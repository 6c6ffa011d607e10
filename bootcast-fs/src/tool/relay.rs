//! Writes a file from its spool to a stream, in order, while pages still arrive.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use super::error::ToolError;
use super::output::{Sink, blocking};
use super::proof::Gate;
use super::spool::Spool;
use super::stall::StallClock;
use crate::object::{Object, Opening, Snapshot};
use crate::receiver::Failure;

/// Most bytes that are copied in one step.
const PIECE_LEN: u64 = 1 << 20;
/// Time between two checks of the spool's size.
const CHECK_PERIOD: Duration = Duration::from_millis(50);

/// End of a relay.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    /// All bytes were written.
    All,
    /// The spool cannot take more bytes, for this reason. The rest must be fetched over HTTP.
    SpoolFull(String),
}

/// Writes a file to a stream as soon as its next bytes have arrived.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    object: &'a Arc<Object>,
    spool: &'a Spool,
    sink: &'a Sink,
    clock: &'a StallClock,
    /// Number of bytes written.
    written: Cell<u64>,
    /// Whether the spool reached its limit, so that the cast was left.
    is_full: Cell<bool>,
    /// Wakes the writer when `is_full` is set.
    filled: Notify,
    /// Proves bytes before they are written.
    gate: Mutex<Option<Gate>>,
}

impl<'a> Relay<'a> {
    /// Creates a relay from `object` to `sink`. It stops `clock` while the sink blocks.
    pub(super) fn new(
        object: &'a Arc<Object>,
        spool: &'a Spool,
        sink: &'a Sink,
        gate: Option<Gate>,
        clock: &'a StallClock,
    ) -> Self {
        let (written, is_full) = (Cell::new(0), Cell::new(false));
        let (filled, gate) = (Notify::new(), Mutex::new(gate));
        Self { object, spool, sink, clock, written, is_full, filled, gate }
    }

    /// Returns the gate, which may hold the last bytes of [`Self::written`].
    pub(super) fn into_gate(self) -> Option<Gate> {
        self.gate.into_inner()
    }

    /// Returns the number of bytes written.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Runs until all bytes are written. Calls `leave` when the spool reaches its limit, so that no
    /// more pages arrive. The held pages up to the first gap are still written.
    pub(super) async fn run(&self, leave: impl Fn()) -> Result<Relayed, ToolError> {
        tokio::select! {
            relayed = self.write_in_order() => relayed,
            never = self.watch_spool(leave) => match never {},
        }
    }

    /// Calls `leave` once the spool is full.
    async fn watch_spool(&self, leave: impl Fn()) -> Infallible {
        let mut ticks = tokio::time::interval(CHECK_PERIOD);
        loop {
            ticks.tick().await;
            // A plain server serves no files over HTTP. There the spool may use all free space.
            if self.is_full.get() || !self.spool.is_full() {
                continue;
            }
            let snapshot = self.object.snapshot();
            if snapshot.etag.is_some() && !snapshot.is_complete {
                self.is_full.set(true);
                leave();
                self.filled.notify_one();
            }
        }
    }

    /// Writes pieces as they arrive.
    async fn write_in_order(&self) -> Result<Relayed, ToolError> {
        let mut changes = self.object.watch();
        loop {
            let Snapshot { contiguous, is_complete, opening, .. } = self.object.snapshot();
            let written = self.written.get();
            if written < contiguous {
                let piece = written..contiguous.min(written + PIECE_LEN);
                if let Some(unreadable) = self.clock.pause(self.copy(piece.clone())).await? {
                    return Ok(Relayed::SpoolFull(unreadable.to_string()));
                }
                self.written.set(piece.end);
            } else if is_complete {
                return Ok(Relayed::All);
            } else if self.is_full.get() {
                return Ok(Relayed::SpoolFull("it is full".to_owned()));
            } else if let Opening::Failed(failure) = opening {
                return match failure {
                    Failure::Stale if written > 0 => Err(ToolError::ChangedMidway(written)),
                    Failure::Store(text) => Ok(Relayed::SpoolFull(text)),
                    failure => Err(failure.into()),
                };
            } else {
                tokio::select! {
                    // Fails only if the object is gone, but `self` borrows it.
                    _ = changes.changed() => {}
                    () = self.filled.notified() => {}
                }
            }
        }
    }

    /// Copies one piece and frees its space in the spool, where it is not needed again. Returns
    /// `Some` if the spool cannot be read, which does not end the command.
    async fn copy(&self, piece: Range<u64>) -> Result<Option<io::Error>, ToolError> {
        let object = self.object.clone();
        let bytes = blocking(move || {
            let len = usize::try_from(piece.end - piece.start).map_err(io::Error::other)?;
            let mut buffer = vec![0; len];
            object.store().read_exact_at(&mut buffer, piece.start).map(|()| buffer)
        });
        let mut bytes = match bytes.await {
            Ok(bytes) => bytes,
            Err(unreadable) => return Ok(Some(unreadable)),
        };
        if let Some(gate) = &mut *self.gate.lock().await {
            bytes = gate.pass(&bytes).await?;
        }
        let (object, sink) = (self.object.clone(), self.sink.clone());
        let written = blocking(move || {
            sink.write_all(&bytes)?;
            object.free_before(piece.end);
            Ok(())
        });
        written.await.map(|()| None).map_err(|error| self.sink.write_error(&error))
    }
}

//! Casts with readers waiting for pages: they send before all others, but leave them a share.

use std::collections::VecDeque;

use super::CastId;
use super::precedence::Precedence;

/// Round robin over the urgent casts.
#[derive(Debug, Default)]
pub(super) struct Urgent {
    /// Urgent casts in the order of their turns, each once. Some may have sent all demanded pages
    /// meanwhile, or have ended.
    turns: VecDeque<CastId>,
    /// Priority of urgent casts over the others, in bytes on the wire.
    precedence: Precedence,
}

impl Urgent {
    /// Adds a cast with demanded pages.
    pub(super) fn push(&mut self, cast: CastId) {
        if !self.turns.contains(&cast) {
            self.turns.push_back(cast);
        }
    }

    /// Cast whose turn it is.
    pub(super) fn front(&self) -> Option<CastId> {
        self.turns.front().copied()
    }

    /// Removes the front because it has nothing urgent to send.
    pub(super) fn pop(&mut self) {
        self.turns.pop_front();
    }

    /// Passes the turn on: the front may not send at present.
    pub(super) fn skip(&mut self) {
        if !self.turns.is_empty() {
            self.turns.rotate_left(1);
        }
    }

    /// Number of urgent casts.
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// All urgent casts, the front first.
    pub(super) fn iter(&self) -> impl Iterator<Item = CastId> {
        self.turns.iter().copied()
    }

    /// Whether it is the other casts' turn to send `batch` bytes.
    pub(super) fn is_used_up(&self, batch: u64) -> bool {
        self.precedence.is_used_up(batch)
    }

    /// Counts urgent bytes of the front and passes the turn on.
    pub(super) fn on_sent(&mut self, bytes: u64, batch: u64) {
        self.precedence.on_first(bytes, batch);
        self.skip();
    }

    /// Counts bytes that no reader waits for.
    pub(super) fn on_other(&mut self, bytes: u64) {
        self.precedence.on_others(bytes);
    }

    /// Ends the other casts' turn early because they have nothing to send.
    pub(super) fn on_nobody_else(&mut self) {
        self.precedence.on_nobody_else();
    }
}

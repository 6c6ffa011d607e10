//! Casts of which readers wait for pages: they send before all others, but not alone.

use std::collections::VecDeque;

use super::CastId;
use super::precedence::Precedence;

/// Whose turn it is among them.
#[derive(Debug, Default)]
pub(super) struct Urgent {
    /// Each once, in the order of their turns. Some may have sent meanwhile what was asked for, or be gone.
    turns: VecDeque<CastId>,
    /// In bytes on the wire.
    precedence: Precedence,
}

impl Urgent {
    /// Somebody asked for pages of this cast.
    pub(super) fn push(&mut self, cast: CastId) {
        if !self.turns.contains(&cast) {
            self.turns.push_back(cast);
        }
    }

    /// Who has its turn.
    pub(super) fn front(&self) -> Option<CastId> {
        self.turns.front().copied()
    }

    /// The front has nothing to send any more.
    pub(super) fn pop(&mut self) {
        self.turns.pop_front();
    }

    /// All of them, the front first.
    pub(super) fn iter(&self) -> impl Iterator<Item = CastId> {
        self.turns.iter().copied()
    }

    /// Whether the others have their turn, of `batch` bytes.
    pub(super) fn is_used_up(&self, batch: u64) -> bool {
        self.precedence.is_used_up(batch)
    }

    /// The front sent so many bytes: the next has its turn.
    pub(super) fn on_sent(&mut self, bytes: u64, batch: u64) {
        self.precedence.on_first(bytes, batch);
        if !self.turns.is_empty() {
            self.turns.rotate_left(1);
        }
    }

    /// Somebody sent so many bytes that no reader waits for.
    pub(super) fn on_other(&mut self, bytes: u64) {
        self.precedence.on_others(bytes);
    }

    /// Nobody has anything to send but for waiting readers.
    pub(super) fn on_nobody_else(&mut self) {
        self.precedence.on_nobody_else();
    }
}

//! Urgent casts: readers wait for their pages, so they send before all other casts. The others keep
//! a tenth of the rate.

use std::collections::VecDeque;

use super::CastId;
use super::precedence::Precedence;

/// Round robin over the urgent casts, and their priority over the others.
#[derive(Debug, Default)]
pub(super) struct UrgentCasts {
    /// Urgent casts in the order of their turns, each once. A cast stays here until its turn, even
    /// if it has sent all its urgent pages or has ended.
    turns: VecDeque<CastId>,
    /// Priority of urgent casts over the others, in bytes on the wire.
    precedence: Precedence,
}

impl UrgentCasts {
    /// Adds a cast with urgent pages.
    pub(super) fn push(&mut self, cast: CastId) {
        if !self.turns.contains(&cast) {
            self.turns.push_back(cast);
        }
    }

    /// Returns the cast whose turn it is.
    pub(super) fn front(&self) -> Option<CastId> {
        self.turns.front().copied()
    }

    /// Removes the front, because it has no urgent pages.
    pub(super) fn pop(&mut self) {
        let front = self.turns.pop_front();
        debug_assert!(front.is_some(), "a turn ends that no cast had");
    }

    /// Moves the front to the back, because it may not send at present.
    pub(super) fn skip(&mut self) {
        if !self.turns.is_empty() {
            self.turns.rotate_left(1);
        }
    }

    /// Returns the number of urgent casts.
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Iterates over all urgent casts, the front first.
    pub(super) fn iter(&self) -> impl Iterator<Item = CastId> {
        self.turns.iter().copied()
    }

    /// Whether the urgent casts must let the others send about `batch` bytes first.
    pub(super) fn must_yield(&self, batch: u64) -> bool {
        self.precedence.must_yield(batch)
    }

    /// Counts urgent bytes that the front sent, and moves it to the back. `batch` is the size of a
    /// full batch on the wire.
    pub(super) fn on_sent(&mut self, bytes: u64, batch: u64) {
        debug_assert!(!self.turns.is_empty(), "a cast sends out of turn");
        self.precedence.on_prioritised_sent(bytes, batch);
        self.skip();
    }

    /// Counts bytes that are not urgent.
    pub(super) fn on_others_sent(&mut self, bytes: u64) {
        self.precedence.on_others_sent(bytes);
    }

    /// Ends the turn of the other casts early, because they have nothing to send.
    pub(super) fn on_others_idle(&mut self) {
        self.precedence.on_others_idle();
    }
}

//! Decides whether the cast is over. docs/PROTOCOL.md, "Repair channel".
//!
//! A stranger may send an old datagram of a cast's end again, so an end is believed only if the
//! cast is quiet afterwards. A member that joins again in vain waits twice as long each time.

use std::time::{Duration, Instant};

use bootcast_proto::Backoff;

/// Longest pause before a member joins again.
const PAUSE_MAX: Duration = Duration::from_secs(32);

/// Announced end of the cast, and how often in a row a new membership brought nothing.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// When to join again because an end was announced, unless something newer arrives.
    due: Option<Instant>,
    /// Number of the beacon that would have followed that end, if it is known.
    next_beacon: Option<u32>,
    /// Memberships in a row that were lost before anything new arrived.
    in_vain: u32,
}

impl Ends {
    /// Starts a membership.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// Handles an announced end, which is to be believed at `at`. Its cast would have sent the
    /// beacon `next` after it. Of several ends the last one counts.
    pub(super) fn announced(&mut self, next: Option<u32>, at: Instant) {
        let is_first = self.due.is_none();
        self.due.get_or_insert(at);
        self.next_beacon = if is_first { next } else { self.next_beacon.max(next) };
    }

    /// Handles a newer beacon. Unless it was sent before the end, the cast goes on.
    pub(super) fn beacon(&mut self, number: u32) {
        if self.next_beacon.is_none_or(|next| next <= number) {
            self.due = None;
        }
    }

    /// Records that something new arrived.
    pub(super) fn progressed(&mut self) {
        *self = Self::default();
    }

    /// When to join again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Records that the end was believed.
    pub(super) fn believed(&mut self) {
        self.due = None;
    }

    /// Returns the pause before the next join: `first` at first, then twice as long each time.
    pub(super) fn pause(&mut self, first: Duration) -> Duration {
        let pause = Backoff::new(first, PAUSE_MAX.max(first)).pause(self.in_vain);
        debug_assert!(first <= pause, "a member joins again too soon");
        self.in_vain = self.in_vain.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_memberships_in_a_row_are_followed_ever_more_slowly_until_something_new_comes() {
        let mut ends = Ends::default();
        let first = Duration::from_millis(100);
        let pauses: Vec<_> = (0..12).map(|_| ends.pause(first)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[11]), (first, 2 * first, PAUSE_MAX));
        ends.begin();
        assert_eq!(ends.pause(first), PAUSE_MAX, "a join alone is no progress");
        ends.progressed();
        assert_eq!(ends.pause(first), first);
    }
}

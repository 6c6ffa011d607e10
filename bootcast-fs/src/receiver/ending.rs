//! Whether the cast is over. docs/PROTOCOL.md, "Repair channel".
//!
//! An end may be one that was said before, and sent again by a stranger: it is believed only where
//! the cast is quiet afterwards. Who joins again for nothing, for whatever reason, waits twice as
//! long each time.

use std::time::{Duration, Instant};

/// The longest pause before a member joins again.
const PAUSE_MAX: Duration = Duration::from_secs(32);

/// What was said of the end of the cast, and how often in a row this member believed it in vain.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// An end was said: the member joins again then, unless something newer comes.
    due: Option<Instant>,
    /// Memberships in a row that were lost before anything new came.
    in_vain: u32,
}

impl Ends {
    /// A membership begins.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// An end was said, which is to be believed at this time.
    pub(super) fn said(&mut self, at: Instant) {
        self.due.get_or_insert(at);
    }

    /// A newer beacon came: the cast goes on.
    pub(super) fn beacon(&mut self) {
        self.due = None;
    }

    /// Something new came.
    pub(super) fn progressed(&mut self) {
        *self = Self::default();
    }

    /// When to join again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The end was believed.
    pub(super) fn believed(&mut self) {
        self.due = None;
    }

    /// The pause before the next join: `first` at first, then twice as long each time.
    pub(super) fn pause(&mut self, first: Duration) -> Duration {
        let pause = first.saturating_mul(1 << self.in_vain.min(16)).min(PAUSE_MAX.max(first));
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

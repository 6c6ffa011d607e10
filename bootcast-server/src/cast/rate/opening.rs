//! The first moments of a cast whose ceiling is a guess: looks follow each other within
//! milliseconds, so that a wrong guess costs little and a right one is found soon.

use std::time::{Duration, Instant};

/// Time between two reports of a member, and between two looks.
pub(super) const INTERVAL: Duration = Duration::from_millis(10);

/// The opening is over after so many looks in a row that left the rate as it was, with nothing left
/// to be tried.
const CALM_LOOKS: u32 = 4;

/// It is over after this time, counted from the first datagram.
const LONGEST: Duration = Duration::from_secs(1);

/// It is over after this time where nobody reported.
const SILENCE: Duration = Duration::from_millis(250);

/// Members that do not tell which datagrams they count are believed so long after the rate fell.
/// The queue before a narrow place may hold what was sent in this time.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// Follows the opening from look to look.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// When the first datagram went out.
    began: Option<Instant>,
    /// Looks in a row that changed nothing.
    calm: u32,
    /// Somebody reported.
    is_heard: bool,
}

impl Opening {
    /// Datagrams went out.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// Members told what they got. `is_calm`: the rate stays as it was, and nothing is left to try.
    pub(super) fn on_look(&mut self, is_calm: bool) {
        self.is_heard = true;
        self.calm = if is_calm { self.calm + 1 } else { 0 };
    }

    /// Whether anybody reported.
    pub(super) fn is_heard(&self) -> bool {
        self.is_heard
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let Some(began) = self.began else { return false };
        let longest = if self.is_heard { LONGEST } else { SILENCE };
        self.calm >= CALM_LOOKS || began + longest <= now
    }
}

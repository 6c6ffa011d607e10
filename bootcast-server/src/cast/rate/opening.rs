//! The opening of a cast whose ceiling is a guess: the rate is updated every few milliseconds, so
//! that a wrong guess costs little and the right rate is found soon.

use std::time::{Duration, Instant};

/// Time between two reports of a panel member, and between two updates of the rate.
pub(super) const INTERVAL: Duration = Duration::from_millis(10);

/// Number of updates in a row without a change, and with no higher rate left to try, that end the
/// opening.
const STABLE_UPDATES: u32 = 4;

/// Longest opening, counted from the first datagram.
const MAX_DURATION: Duration = Duration::from_secs(1);

/// Longest opening if no member reports, counted likewise.
const NO_REPORT_TIMEOUT: Duration = Duration::from_millis(250);

/// Time after a reduction for which reports without `seen` are ignored. They may count datagrams
/// that were sent before it, and a queue before a bottleneck can delay these for as long.
pub(super) const QUEUE_DRAIN_TIME: Duration = Duration::from_millis(250);

/// Progress of an opening.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// When the first datagram went out.
    began: Option<Instant>,
    /// Updates in a row that changed nothing.
    stable_updates: u32,
    /// Whether any member reported counters.
    has_reports: bool,
}

impl Opening {
    /// Records that datagrams went out.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// Records an update from members' reports. `is_stable` says that the rate stayed as it was and
    /// no higher one is left to try.
    pub(super) fn on_update(&mut self, is_stable: bool) {
        self.has_reports = true;
        self.stable_updates = if is_stable { self.stable_updates + 1 } else { 0 };
    }

    /// Whether any member reported counters.
    pub(super) fn has_reports(&self) -> bool {
        self.has_reports
    }

    /// Whether the opening is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let Some(began) = self.began else { return false };
        let longest = if self.has_reports { MAX_DURATION } else { NO_REPORT_TIMEOUT };
        self.stable_updates >= STABLE_UPDATES || began + longest <= now
    }
}

//! Pauses between requests of one kind that fail.

use std::time::{Duration, Instant};

use bootcast_proto::Backoff;

/// Pauses after requests that fail.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// Requests of one kind that failed in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// Handles a request that failed. The server asks for a pause of `after` at least.
    pub(super) fn failed(&mut self, after: Duration, now: Instant) {
        let pause = RETRY.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.at = Some(now + pause.max(after).min(RETRY.longest));
    }

    /// Whether the last request failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// Whether the next request may go out.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| at <= now)
    }

    /// When the next request may go out; `None` for now.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }
}

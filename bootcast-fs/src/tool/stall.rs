//! Detects that a fetch makes no progress, for `--timeout`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::io::now;

/// Measures the time since the last new byte.
///
/// The clock stops while the output is written, so that a slow reader is not taken for a stall.
#[derive(Debug)]
pub(super) struct StallClock {
    /// Longest time without a new byte; `None` for no limit.
    limit: Option<Duration>,
    /// Time of the last new byte, or of the last restart.
    since: Cell<Instant>,
    is_paused: Cell<bool>,
}

impl StallClock {
    /// Creates a clock that starts now. `limit` is the longest time without a new byte.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, since: Cell::new(now()), is_paused: Cell::new(false) }
    }

    /// Sets the clock to zero, because a new byte arrived.
    pub(super) fn restart(&self) {
        self.since.set(now());
    }

    /// Stops the clock while `work` runs, and restarts it from zero afterwards.
    pub(super) async fn pause<T>(&self, work: impl Future<Output = T>) -> T {
        self.is_paused.set(true);
        let done = work.await;
        self.is_paused.set(false);
        self.restart();
        done
    }

    /// Returns the time since the last new byte if it exceeds the limit.
    pub(super) fn expired(&self) -> Option<Duration> {
        let waited = now().saturating_duration_since(self.since.get());
        let is_expired = !self.is_paused.get() && self.limit.is_some_and(|limit| limit <= waited);
        is_expired.then_some(waited)
    }

    /// Runs `work` until the limit is reached. Fails with the limit.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Duration> {
        let Some(limit) = self.limit else { return Ok(work.await) };
        let left = limit.saturating_sub(now().saturating_duration_since(self.since.get()));
        tokio::time::timeout(left, work).await.map_err(|_| limit)
    }
}

/// Detects progress from the counters of an object.
#[derive(Debug, Default)]
pub(super) struct ProgressDetector {
    /// Number of new pages at the last call.
    pages: u64,
    /// Number of duplicate pages at the last new page, and at the last call.
    duplicates: (u64, u64),
}

impl ProgressDetector {
    /// Returns whether there was progress since the last call. `pages` and `duplicates` are the
    /// object's counters.
    ///
    /// A plain server repeats the whole file for one lost page. So up to `pass` duplicates after a
    /// new page count as progress too. `pass` is the number of pages of the file on a plain server,
    /// and 0 on others.
    pub(super) fn update(&mut self, pages: u64, duplicates: u64, pass: u64) -> bool {
        let is_new = pages > self.pages;
        if is_new {
            (self.pages, self.duplicates.0) = (pages, duplicates);
        }
        let repeats = duplicates > self.duplicates.1 && duplicates - self.duplicates.0 <= pass;
        self.duplicates.1 = duplicates;
        is_new || repeats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn only_new_pages_are_progress() {
        let mut progress = ProgressDetector::default();
        assert!(!progress.update(0, 0, 0));
        assert!(progress.update(5, 0, 0));
        assert!(!progress.update(5, 0, 0), "nothing arrived");
        assert!(!progress.update(5, 100, 0), "the same pages again");
        assert!(progress.update(6, 200, 0));
    }

    #[test]
    fn duplicates_of_one_pass_of_a_plain_server_are_progress() {
        let mut progress = ProgressDetector::default();
        assert!(progress.update(99, 0, 100));
        assert!(progress.update(99, 60, 100));
        assert!(progress.update(99, 100, 100));
        assert!(!progress.update(99, 101, 100), "a whole pass without the page");
        assert!(!progress.update(99, 150, 100));
        assert!(progress.update(100, 151, 100));
        assert!(progress.update(100, 251, 100), "the next pass");
    }

    #[test]
    fn a_clock_without_a_limit_never_expires() {
        let clock = StallClock::new(None);
        assert_eq!(clock.expired(), None);
        assert_eq!(runtime().block_on(clock.within(async { 1 })), Ok(1));
    }

    #[test]
    fn a_paused_clock_never_expires() {
        let clock = StallClock::new(Some(Duration::ZERO));
        assert!(clock.expired().is_some());
        runtime().block_on(clock.pause(async { assert_eq!(clock.expired(), None) }));
        let waited = runtime().block_on(clock.within(std::future::pending::<()>()));
        assert_eq!(waited, Err(Duration::ZERO));
    }
}

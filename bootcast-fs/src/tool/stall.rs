//! The clock behind `--timeout`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::io::now;

/// Measures how long no new byte has come.
///
/// It stands still while the output is written: a slow reader is no fault of the network.
#[derive(Debug)]
pub(super) struct StallClock {
    /// Longest time without a new byte; `None` for ever.
    limit: Option<Duration>,
    since: Cell<Instant>,
    is_paused: Cell<bool>,
}

impl StallClock {
    /// Creates a clock that starts now.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, since: Cell::new(now()), is_paused: Cell::new(false) }
    }

    /// Starts again from zero: a new byte came.
    pub(super) fn restart(&self) {
        self.since.set(now());
    }

    /// Stops the clock while `work` runs, and starts it again from zero afterwards.
    pub(super) async fn pause<T>(&self, work: impl Future<Output = T>) -> T {
        self.is_paused.set(true);
        let done = work.await;
        self.is_paused.set(false);
        self.restart();
        done
    }

    /// Returns the time without a new byte if it is too long.
    pub(super) fn expired(&self) -> Option<Duration> {
        let waited = now().saturating_duration_since(self.since.get());
        let is_over = !self.is_paused.get() && self.limit.is_some_and(|limit| limit <= waited);
        is_over.then_some(waited)
    }

    /// Waits for `work`, but no longer than the time that is left. Fails with the limit.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Duration> {
        let Some(limit) = self.limit else { return Ok(work.await) };
        let left = limit.saturating_sub(now().saturating_duration_since(self.since.get()));
        tokio::time::timeout(left, work).await.map_err(|_| limit)
    }
}

/// Detects progress from the counters of an object.
#[derive(Debug, Default)]
pub(super) struct Progressed {
    pages: u64,
    /// Duplicate pages at the last new page, and at the last call.
    duplicates: (u64, u64),
}

impl Progressed {
    /// Returns whether a new page came since the last call.
    ///
    /// A plain server repeats the whole file for one lost page. For such a server `pass` is the
    /// number of pages of the file, and as many duplicates count as progress too. Otherwise it is
    /// 0.
    pub(super) fn look(&mut self, pages: u64, duplicates: u64, pass: u64) -> bool {
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
        let mut progressed = Progressed::default();
        assert!(!progressed.look(0, 0, 0));
        assert!(progressed.look(5, 0, 0));
        assert!(!progressed.look(5, 0, 0), "nothing came");
        assert!(!progressed.look(5, 100, 0), "the same pages again");
        assert!(progressed.look(6, 200, 0));
    }

    #[test]
    fn one_pass_of_a_plain_server_is_waited_for() {
        let mut progressed = Progressed::default();
        assert!(progressed.look(99, 0, 100));
        assert!(progressed.look(99, 60, 100));
        assert!(progressed.look(99, 100, 100));
        assert!(!progressed.look(99, 101, 100), "a whole pass without the page");
        assert!(!progressed.look(99, 150, 100));
        assert!(progressed.look(100, 151, 100));
        assert!(progressed.look(100, 251, 100), "the next pass");
    }

    #[test]
    fn a_clock_without_a_limit_never_expires() {
        let clock = StallClock::new(None);
        assert_eq!(clock.expired(), None);
        assert_eq!(runtime().block_on(clock.within(async { 1 })), Ok(1));
    }

    #[test]
    fn a_clock_that_stands_still_never_expires() {
        let clock = StallClock::new(Some(Duration::ZERO));
        assert!(clock.expired().is_some());
        runtime().block_on(clock.pause(async { assert_eq!(clock.expired(), None) }));
        let waited = runtime().block_on(clock.within(std::future::pending::<()>()));
        assert_eq!(waited, Err(Duration::ZERO));
    }
}

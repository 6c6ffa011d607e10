//! Unreadable pages of one file. The cast leaves them out, and answers to members name them.

use std::time::{Duration, Instant};

use bootcast_proto::{PageRange, RangeMap};

/// Shortest time before a page is tried again, in seconds.
const RETRY_S: u64 = 30;

/// Granularity of the retry times, in seconds. Neighbouring pages that are found within this time
/// have equal retry times and are stored as one run.
const STEP_S: u64 = 10;

/// Maximum number of runs that one answer names: bounds the length of its header.
const ANSWER_RUNS_MAX: usize = 64;

/// Pages that could not be read recently.
#[derive(Debug)]
pub(super) struct Unreadable {
    created_at: Instant,
    /// Retry time of each unreadable page, in seconds since `created_at`.
    pages: RangeMap<u64>,
    /// Earliest retry time.
    first_retry: Option<u64>,
    /// Page from which on the next answer names runs that were not asked for.
    next_named: u32,
}

impl Unreadable {
    /// Creates the state of a file whose pages are all presumed readable.
    pub(super) fn new(created_at: Instant) -> Self {
        Self { created_at, pages: RangeMap::default(), first_retry: None, next_named: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Iterates over the runs of unreadable pages, in ascending order.
    pub(super) fn runs(&self) -> impl Iterator<Item = PageRange> {
        self.pages.iter().map(|(run, _)| run)
    }

    /// Returns the readable pages of these runs.
    pub(super) fn readable(&self, runs: &[PageRange]) -> Vec<PageRange> {
        runs.iter().flat_map(|run| self.pages.gaps(*run)).collect()
    }

    /// Marks pages that could not be read.
    pub(super) fn insert(&mut self, pages: PageRange, now: Instant) {
        let retry = (self.seconds(now) + RETRY_S).next_multiple_of(STEP_S);
        self.pages.insert(pages, retry);
        self.first_retry = Some(self.first_retry.map_or(retry, |first| first.min(retry)));
        self.assert_invariants();
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        assert!(
            self.first_retry.is_some() || self.pages.is_empty(),
            "unreadable pages would never be tried again"
        );
        debug_assert!(
            self.pages.iter().all(|(_, retry)| self.first_retry <= Some(retry)),
            "a page is due before the first retry"
        );
    }

    /// Removes the pages that may be tried again, and returns them.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<PageRange> {
        let seconds = self.seconds(now);
        if self.first_retry.is_none_or(|first| seconds < first) {
            return Vec::new();
        }
        let expired = self.pages.iter().filter(|(_, retry)| *retry <= seconds);
        let expired: Vec<_> = expired.map(|(run, _)| run).collect();
        for run in &expired {
            self.pages.remove(*run);
        }
        self.first_retry = self.pages.iter().map(|(_, retry)| retry).min();
        self.assert_invariants();
        expired
    }

    /// Returns when [`Self::take_expired`] has something to remove.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        Some(self.created_at + Duration::from_secs(self.first_retry?))
    }

    /// Returns the first run of unreadable pages within `pages`.
    pub(super) fn first_in(&self, pages: PageRange) -> Option<PageRange> {
        self.pages.parts(pages).next().map(|(run, _)| run)
    }

    /// Selects the runs that an answer names: those within `requested` first, then others in turn.
    pub(super) fn select(&mut self, requested: &[PageRange]) -> Vec<PageRange> {
        let within = requested.iter().flat_map(|range| self.pages.parts(*range));
        let mut selected: Vec<_> = within.map(|(run, _)| run).take(ANSWER_RUNS_MAX).collect();
        let behind = PageRange::new(self.next_named, u32::MAX);
        let before = PageRange::new(0, self.next_named);
        let rest = self.pages.parts(behind).chain(self.pages.parts(before));
        let rest = rest.map(|(run, _)| run).filter(|run| !selected.contains(run));
        let rest: Vec<_> = rest.take(ANSWER_RUNS_MAX - selected.len()).collect();
        selected.extend(rest);
        debug_assert!(
            selected.len() <= ANSWER_RUNS_MAX,
            "the header of an answer would be too long"
        );
        self.next_named = selected.last().map_or(0, |run| run.end.0);
        selected
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.created_at).as_secs()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    fn range(start: u32, end: u32) -> PageRange {
        PageRange::new(start, end)
    }

    #[test]
    fn a_page_is_tried_again_after_the_retry_time() {
        let now = Instant::now();
        let mut unreadable = Unreadable::new(now);
        assert_eq!(unreadable.expires_at(), None);
        unreadable.insert(range(5, 8), now);
        let at = unreadable.expires_at().unwrap();
        assert!(at >= now + Duration::from_secs(RETRY_S));
        assert_eq!(unreadable.take_expired(now + Duration::from_secs(RETRY_S - 1)), []);
        assert_eq!(unreadable.first_in(range(0, 7)), Some(range(5, 7)));
        assert_eq!(unreadable.take_expired(at), [range(5, 8)]);
        assert_eq!(unreadable.first_in(range(0, 100)), None);
    }

    #[test]
    fn requested_runs_are_named_first_and_the_others_in_turn() {
        let now = Instant::now();
        let mut unreadable = Unreadable::new(now);
        for k in 0..200 {
            unreadable.insert(range(10 * k, 10 * k + 1), now);
        }
        let named = unreadable.select(&[range(1500, 1511), range(3, 4)]);
        assert_eq!(named[..2], [range(1500, 1501), range(1510, 1511)]);
        assert_eq!(named.len(), ANSWER_RUNS_MAX);
        let mut all = std::collections::BTreeSet::new();
        for _ in 0..10 {
            all.extend(unreadable.select(&[]).iter().map(|run| run.start.0));
        }
        assert_eq!(all.len(), 200);
    }

    #[test]
    fn neighbouring_pages_found_one_after_the_other_form_one_run() {
        let now = Instant::now();
        let mut unreadable = Unreadable::new(now);
        for page in 0..1000 {
            unreadable.insert(range(page, page + 1), now + Duration::from_millis(page.into()));
        }
        assert_eq!(unreadable.select(&[]), [range(0, 1000)]);
    }
}

//! Unreadable pages of one file: the cast leaves them out, and members that want them are told.

use std::time::{Duration, Instant};

use bootcast_proto::{PageRange, RangeMap};

/// Shortest time before a page is tried again, in seconds.
const RETRY_S: u64 = 30;

/// Granularity of the retry times, in seconds: neighbours found within it are kept as one run.
const STEP_S: u64 = 10;

/// Most runs that one answer names.
const TOLD_RUNS: usize = 64;

/// Pages that could not be read recently.
#[derive(Debug)]
pub(super) struct Unreadable {
    began: Instant,
    /// When each page may be tried again, in seconds since `began`.
    pages: RangeMap<u64>,
    /// Earliest of these times.
    first_retry: Option<u64>,
    /// Page at which the next answer starts to name runs.
    told_to: u32,
}

impl Unreadable {
    /// Starts with all pages presumed readable.
    pub(super) fn new(began: Instant) -> Self {
        Self { began, pages: RangeMap::default(), first_retry: None, told_to: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Runs of unreadable pages, ascending.
    pub(super) fn runs(&self) -> impl Iterator<Item = PageRange> {
        self.pages.iter().map(|(run, _)| run)
    }

    /// Removes unreadable pages from the pairs of a want.
    pub(super) fn without(&self, pairs: &[(u32, u32)]) -> Vec<(u32, u32)> {
        let runs = pairs.iter().filter_map(|&(first, count)| run_of(first, count));
        let readable = runs.flat_map(|run| self.pages.gaps(run).collect::<Vec<_>>());
        readable.map(|run| (run.start.0 + 1, run.len())).collect()
    }

    /// Records pages that could not be read.
    pub(super) fn insert(&mut self, pages: PageRange, now: Instant) {
        let retry = (self.seconds(now) + RETRY_S).next_multiple_of(STEP_S);
        self.pages.insert(pages, retry);
        self.first_retry = Some(self.first_retry.map_or(retry, |first| first.min(retry)));
    }

    /// Forgets the pages that may be tried again, and returns them.
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
        expired
    }

    /// When [`Self::take_expired`] is due.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        Some(self.began + Duration::from_secs(self.first_retry?))
    }

    /// First run of unreadable pages among `pages`.
    pub(super) fn first_in(&self, pages: PageRange) -> Option<PageRange> {
        self.pages.parts(pages).next().map(|(run, _)| run)
    }

    /// Selects the runs that an answer names: those of `asked` first, then others in turn.
    pub(super) fn tell(&mut self, asked: &[PageRange]) -> Vec<PageRange> {
        let own = asked.iter().flat_map(|asked| self.pages.parts(*asked));
        let mut told: Vec<_> = own.map(|(run, _)| run).take(TOLD_RUNS).collect();
        let behind = PageRange::new(self.told_to, u32::MAX);
        let before = PageRange::new(0, self.told_to);
        let rest = self.pages.parts(behind).chain(self.pages.parts(before));
        let rest = rest.map(|(run, _)| run).filter(|run| !told.contains(run));
        let rest: Vec<_> = rest.take(TOLD_RUNS - told.len()).collect();
        told.extend(rest);
        self.told_to = told.last().map_or(0, |run| run.end.0);
        told
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }
}

/// Pages of a pair in a want: the first page, counted from 1, and their number.
pub fn run_of(first: u32, count: u32) -> Option<PageRange> {
    let start = first.checked_sub(1)?;
    Some(PageRange::new(start, start.saturating_add(count)))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    fn range(start: u32, end: u32) -> PageRange {
        PageRange::new(start, end)
    }

    #[test]
    fn a_page_may_be_tried_again_after_half_a_minute() {
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
    fn what_was_asked_for_is_told_first_and_the_rest_in_turn() {
        let now = Instant::now();
        let mut unreadable = Unreadable::new(now);
        for k in 0..200 {
            unreadable.insert(range(10 * k, 10 * k + 1), now);
        }
        let told = unreadable.tell(&[range(1500, 1511), range(3, 4)]);
        assert_eq!(told[..2], [range(1500, 1501), range(1510, 1511)]);
        assert_eq!(told.len(), TOLD_RUNS);
        let mut all = std::collections::BTreeSet::new();
        for _ in 0..10 {
            all.extend(unreadable.tell(&[]).iter().map(|run| run.start.0));
        }
        assert_eq!(all.len(), 200);
    }

    #[test]
    fn neighbours_found_one_after_the_other_are_one_run() {
        let now = Instant::now();
        let mut unreadable = Unreadable::new(now);
        for page in 0..1000 {
            unreadable.insert(range(page, page + 1), now + Duration::from_millis(page.into()));
        }
        assert_eq!(unreadable.tell(&[]), [range(0, 1000)]);
    }
}

//! Pages that came in datagrams and are not stored yet.

use bootcast_proto::{PageIndex, PageRange};

/// Upper bound of the tracked runs, so that a batch without order takes neither room nor time
/// without end. Further pages count as repeated, but they are stored all the same.
///
/// A batch of datagrams has at most some 1400 pages; so it has fewer runs unless every sixth page
/// is lost.
const MAX_RUNS: usize = 256;

/// New pages of the present batch of datagrams, which are stored together.
///
/// A page that comes several times in a batch is missing each time, but only the first is news.
#[derive(Debug, Default)]
pub(super) struct PagesInFlight {
    /// Runs of consecutive pages, in the order of their arrival. No page is in two of them.
    runs: Vec<PageRange>,
}

impl PagesInFlight {
    /// Records a missing page that came. Returns whether it is the first of its batch.
    pub(super) fn record(&mut self, page: PageIndex) -> bool {
        if self.runs.iter().any(|run| run.contains(page)) {
            return false;
        }
        // The stream continues the newest run, unless demanded pages came in between.
        if let Some(run) = self.runs.iter_mut().rfind(|run| run.end == page) {
            run.end = PageIndex(page.0 + 1);
            return true;
        }
        let has_room = self.runs.len() < MAX_RUNS;
        if has_room {
            self.runs.push(PageRange::single(page));
        }
        has_room
    }

    /// Whether some of these pages may be in the present batch.
    pub(super) fn may_have(&self, pages: PageRange) -> bool {
        let overlaps = |run: &PageRange| run.start < pages.end && pages.start < run.end;
        self.runs.len() == MAX_RUNS || self.runs.iter().any(overlaps)
    }

    /// Starts another batch: the pages are stored, or will not be.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news<const N: usize>(batch: &mut PagesInFlight, pages: [u32; N]) -> [bool; N] {
        pages.map(|page| batch.record(PageIndex(page)))
    }

    #[test]
    fn a_page_is_news_once_in_a_batch() {
        let mut batch = PagesInFlight::default();
        let is_first = news(&mut batch, [3, 4, 3, 9, 4, 9, 5]);
        assert_eq!(is_first, [true, true, false, true, false, false, true]);
        let has = |first, end| batch.may_have(PageRange::new(first, end));
        assert_eq!([has(0, 3), has(5, 6), has(6, 9), has(9, 10)], [false, true, false, true]);
        batch.clear();
        assert!(batch.record(PageIndex(3)));
    }

    #[test]
    fn a_run_that_reaches_another_one_makes_no_news_of_its_pages() {
        let mut batch = PagesInFlight::default();
        assert_eq!(news(&mut batch, [5, 3, 4, 5, 6]), [true, true, true, false, true]);
    }

    #[test]
    fn pages_of_two_positions_in_turn_are_two_runs() {
        let mut batch = PagesInFlight::default();
        assert!(
            (0..1000).all(|at| batch.record(PageIndex(at)) && batch.record(PageIndex(9000 + at)))
        );
        assert_eq!(batch.runs.len(), 2);
    }

    #[test]
    fn a_batch_without_order_takes_no_room_without_end() {
        let mut batch = PagesInFlight::default();
        let news = (0..1000).filter(|at| batch.record(PageIndex(at * 2))).count();
        assert_eq!((news, batch.runs.len()), (MAX_RUNS, MAX_RUNS));
    }
}

//! Pages that arrived and are not stored yet.

use bootcast_proto::{PageIndex, PageRange};

/// Most runs of pages that are tracked. Others count as repeated: a batch has fewer.
const MAX_RUNS: usize = 256;

/// New pages of the present batch of datagrams, which are stored together.
///
/// A page that comes several times in a batch is missing each time, but only the first is news.
#[derive(Debug, Default)]
pub(super) struct PagesInFlight {
    runs: Vec<PageRange>,
}

impl PagesInFlight {
    /// Records a missing page that arrived. Returns whether it is the first of its batch.
    pub(super) fn record(&mut self, page: PageIndex) -> bool {
        if let Some(run) = self.runs.last_mut().filter(|run| run.end == page) {
            run.end = PageIndex(page.0 + 1);
            return true;
        }
        let is_first = !self.runs.iter().any(|run| run.contains(page));
        if is_first && self.runs.len() < MAX_RUNS {
            self.runs.push(PageRange::single(page));
            return true;
        }
        debug_assert!(self.runs.len() <= MAX_RUNS, "a batch of {} runs", self.runs.len());
        false
    }

    /// Starts another batch.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_news_once_in_a_batch() {
        let mut batch = PagesInFlight::default();
        let is_first: Vec<_> =
            [3, 4, 3, 9, 4, 9, 5].map(|page| batch.record(PageIndex(page))).into();
        assert_eq!(is_first, [true, true, false, true, false, false, true]);
        batch.clear();
        assert!(batch.record(PageIndex(3)));
    }

    #[test]
    fn a_batch_without_order_takes_no_room_without_end() {
        let mut batch = PagesInFlight::default();
        let news = (0..1000).filter(|at| batch.record(PageIndex(at * 2))).count();
        assert_eq!((news, batch.runs.len()), (MAX_RUNS, MAX_RUNS));
    }
}

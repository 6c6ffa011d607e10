//! Demands for all that is missing of a file, where that is so little that no stream should run for
//! it.

use std::collections::VecDeque;
use std::time::Instant;

use bootcast_proto::{PageIndex, PageRange};

use super::demand::{Demand, DemandView, WaitId};
use super::reads::Access;

/// Maximum number of pages that are demanded at a time. At 1 Gbit/s these are 3 ms, for which pages
/// that readers wait for are held up.
const MAX_PAGES: u32 = 256;

/// Maximum number of pages of one wait.
const MAX_RUN: u32 = 32;

/// Missing pages that are demanded in ascending order.
#[derive(Debug, Default)]
pub(super) struct Remainder {
    /// Page at which the search for missing pages goes on.
    next: PageIndex,
    /// Waits, as reads have, in ascending order.
    waits: VecDeque<(WaitId, PageRange)>,
    /// Number of pages in `waits`.
    pages: u32,
}

impl Remainder {
    /// Ends the waits whose pages arrived, and begins others.
    pub(super) fn handle_timeout(
        &mut self,
        demand: &mut Demand,
        view: DemandView<'_>,
        now: Instant,
    ) {
        while let Some(&(wait, pages)) = self.waits.front()
            && view.arrived.contains_all(within(pages, view))
        {
            self.waits.pop_front();
            self.pages -= pages.len();
            demand.end_wait(wait);
        }
        while self.pages < MAX_PAGES {
            let Some(run) = self.next_run(view) else { break };
            let bytes = view.geometry.byte_range(run);
            let wait = demand.begin_wait(&bytes, Access::Following, Some(view.geometry), now);
            self.waits.push_back((wait, run));
            self.pages += run.len();
        }
        debug_assert!(self.pages < MAX_PAGES + MAX_RUN, "{} pages are demanded", self.pages);
    }

    /// Returns the next missing pages. After the last one it begins again, once nothing is under
    /// way: pages were skipped.
    fn next_run(&mut self, view: DemandView<'_>) -> Option<PageRange> {
        let all = view.geometry.all();
        let first =
            view.arrived.first_missing(PageRange::new(self.next.0.min(all.end.0), all.end.0));
        let Some(first) = first else {
            if self.waits.is_empty() {
                self.next = PageIndex(0);
            }
            return None;
        };
        let is_missing = |page: &u32| !view.arrived.contains(PageIndex(*page));
        let most = all.end.0.min(first.0 + MAX_RUN);
        let end = (first.0 + 1..most).take_while(is_missing).last().unwrap_or(first.0) + 1;
        self.next = PageIndex(end);
        Some(PageRange::new(first.0, end))
    }

    /// Ends the waits for some of these pages. They are demanded again when all others have come.
    pub(super) fn skip(&mut self, runs: &[PageRange], demand: &mut Demand) {
        let overlaps = |pages: &PageRange| {
            runs.iter().any(|run| run.start < pages.end && pages.start < run.end)
        };
        let (mut kept, mut count) = (VecDeque::new(), 0);
        for (wait, pages) in self.waits.drain(..) {
            if overlaps(&pages) {
                demand.end_wait(wait);
            } else {
                count += pages.len();
                kept.push_back((wait, pages));
            }
        }
        (self.waits, self.pages) = (kept, count);
    }

    /// Ends all waits.
    pub(super) fn end(&mut self, demand: &mut Demand) {
        for (wait, _) in self.waits.drain(..) {
            demand.end_wait(wait);
        }
        self.pages = 0;
    }
}

/// Returns those of these pages that the file has. A later join may have made its pages larger.
fn within(pages: PageRange, view: DemandView<'_>) -> PageRange {
    let end = view.geometry.pages();
    PageRange::new(pages.start.0.min(end), pages.end.0.min(end))
}

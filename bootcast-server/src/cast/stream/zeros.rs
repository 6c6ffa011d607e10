//! Pages of zeros, which the stream leaves out for members that have the zero map.
//! docs/PROTOCOL.md, "Pages of zeros".

use std::time::Instant;

use bootcast_proto::{BlockLayout, PageIndex, PageRange, RangeMap, WindowIndex};

use super::{Audience, Stream};

impl Stream {
    /// Takes over which pages consist of zeros.
    pub(in super::super) fn set_zeros(&mut self, zeros: RangeMap<()>) {
        self.zeros = zeros;
    }

    /// Returns the number of pages that were left out, over all passes.
    pub(in super::super) fn zero_pages(&self) -> u64 {
        self.zero_pages
    }

    /// Moves behind the pages of zeros that come next, if this audience does not need them. Must
    /// come before [`Self::poll`]. Returns a window that ends with such pages, if all of it was
    /// wanted and it has other pages too. There may be more to move behind then.
    pub(in super::super) fn skip_zeros(
        &mut self,
        audience: Audience,
        now: Instant,
    ) -> Option<WindowIndex> {
        if audience != Audience::ZeroMapHolders || self.zeros.is_empty() {
            return None;
        }
        let layout = self.layout?;
        while let Some(page) = self.next_wanted() {
            let window = layout.window_of(page);
            let limit = layout.pages_of(window).start.0 + self.wanted[window.0 as usize];
            let next = self.zeros.gaps(PageRange::new(page.0, limit)).next();
            let next = next.map_or(limit, |other| other.start.0);
            if next == page.0 {
                return None;
            }
            self.leave_out(PageRange::new(page.0, next), now);
            if next < limit {
                return None;
            }
            let finished = self.finish_window(window, layout);
            if limit == self.pages {
                self.finish_pass(now);
            }
            self.assert_invariants();
            if finished.is_some_and(|window| self.has_other_pages(window, layout)) {
                return finished;
            }
        }
        None
    }

    /// Moves behind these pages, which begin with the next wanted one, without sending them.
    fn leave_out(&mut self, pages: PageRange, now: Instant) {
        self.skip_to_wanted();
        debug_assert_eq!(self.next, pages.start, "pages that nobody wants are left out");
        if pages.start.0 == 0 {
            self.pass_started_at = now;
        }
        self.begin_window(pages.start);
        self.zero_pages += u64::from(pages.len());
        self.next = pages.end;
    }

    /// Returns the pages of a run before the first page of zeros that this audience does not need.
    pub(super) fn before_zeros(&self, run: PageRange, audience: Audience) -> PageRange {
        if audience != Audience::ZeroMapHolders {
            return run;
        }
        let zeros = self.zeros.parts(run).next();
        let end = zeros.map_or(run.end, |(zeros, ())| PageIndex(zeros.start.0));
        PageRange { start: run.start, end }
    }

    /// Whether not all pages of a window consist of zeros.
    fn has_other_pages(&self, window: WindowIndex, layout: BlockLayout) -> bool {
        self.zeros.gaps(layout.pages_of(window)).next().is_some()
    }
}

//! Follows the server's stream, and which windows it has passed since this member joined.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::limits::MISSED_DIVISOR;
use bootcast_proto::{BlockLayout, PageIndex, WindowIndex};

/// Time for which the stream must rest until all windows count as passed, although this member has
/// not seen the stream move since it asked for windows.
const REST_GRACE: Duration = Duration::from_millis(500);

/// Pages by which a page of the stream may be ahead of the last beacon's position, in addition to
/// twice the pages received since that beacon.
const AHEAD: u32 = 64;

/// Windows that the stream passed between two beacons.
///
/// Only beacons state the position: they are numbered, and state the promises at the same time. A
/// page could have overtaken others, and a demanded page belongs to no pass.
#[derive(Debug, Default)]
pub(super) struct PassedWindows {
    /// Position of the stream in the last beacon; `None` until the first one.
    from: Option<PageIndex>,
    /// First new page received before any beacon.
    first: Option<PageIndex>,
    /// Window whose beginning was sent before this member joined. It counts as passed when the
    /// stream has brought the beginning too.
    half: Option<u32>,
    /// Whether the stream has moved since this member last asked for windows.
    moved: bool,
    /// New pages received since the last beacon.
    since_beacon: u32,
    /// Pages received since this member last asked, new or not.
    seen: u32,
    /// Value of `moved` at the last beacon.
    had_moved: bool,
    resting_since: Option<Instant>,
}

impl PassedWindows {
    /// Handles a page that may be the stream's. Only a new one tells where the stream is.
    pub(super) fn page(&mut self, page: PageIndex, is_new: bool) {
        self.seen = self.seen.saturating_add(1);
        if !is_new {
            return;
        }
        self.since_beacon = self.since_beacon.saturating_add(1);
        match self.from {
            Some(from) => self.moved |= self.is_way(from, page),
            None => _ = self.first.get_or_insert(page),
        }
    }

    /// Whether the stream may have moved from `from` to `to` since the last beacon, judged by the
    /// number of pages received since.
    fn is_way(&self, from: PageIndex, to: PageIndex) -> bool {
        let most = self.since_beacon.saturating_mul(2).saturating_add(AHEAD);
        to.0.checked_sub(from.0).is_some_and(|ahead| ahead <= most)
    }

    /// Records that this member asked for windows. Until the stream moves again, its rest does not
    /// mean that it has passed them.
    pub(super) fn windows_asked(&mut self) {
        self.moved = false;
        self.had_moved = false;
        self.seen = 0;
        self.resting_since = None;
    }

    /// Handles a beacon. Returns the windows that the stream passed since the last one, as two
    /// ranges: the stream may have begun anew at page 0 in between.
    pub(super) fn beacon(
        &mut self,
        position: PageIndex,
        layout: BlockLayout,
        now: Instant,
    ) -> [Range<u32>; 2] {
        let end = end_of(layout);
        let before = self.take_way(position, layout);
        let at = |page| layout.window_of(page).0;
        if position >= end {
            let since = *self.resting_since.get_or_insert(now);
            let is_over = self.moved || since + REST_GRACE <= now;
            self.half = self.half.filter(|_| !is_over);
            return if is_over { [0..layout.windows(), 0..0] } else { [0..0, 0..0] };
        }
        self.resting_since = None;
        let start = PageIndex(0);
        let had_moved = std::mem::replace(&mut self.had_moved, self.moved);
        let came = u64::from(self.seen) * 2 >= u64::from(end.0);
        if (before, position, had_moved, came) == (start, start, true, true) {
            // The whole of a small file was sent between two beacons, and waits for its next pass.
            return [0..layout.windows(), 0..0];
        }
        self.moved |= position != start;
        // The stream leaves the window for the first time.
        let is_left = at(before) != at(position) || position < before;
        let first = at(before) + u32::from(is_left && self.half.take_if(|_| is_left).is_some());
        debug_assert!(at(position) < layout.windows(), "the stream is behind the last window");
        if before <= position {
            [first..at(position), 0..0]
        } else if before >= end {
            [0..at(position), 0..0]
        } else {
            [first..layout.windows(), 0..at(position)]
        }
    }

    /// Replaces the position in the last beacon by this one, and returns it. For the first beacon,
    /// returns the page with which this member began to follow the stream.
    fn take_way(&mut self, position: PageIndex, layout: BlockLayout) -> PageIndex {
        let before = self.from.replace(position).unwrap_or_else(|| {
            let rests = position >= end_of(layout);
            let first = self.first.filter(|first| rests || self.is_way(*first, position));
            self.moved |= first.is_some();
            let begun = first.unwrap_or(position);
            self.half = missed_beginning(begun, layout);
            begun
        });
        self.since_beacon = 0;
        before
    }
}

/// Returns the window of the page, if so many of its pages lie before this one that the stream
/// must bring them again.
fn missed_beginning(page: PageIndex, layout: BlockLayout) -> Option<u32> {
    let window = layout.window_of(page);
    let pages = layout.pages_of(window);
    let missed = page.0.saturating_sub(pages.start.0);
    (pages.contains(page) && missed > pages.len() / MISSED_DIVISOR).then_some(window.0)
}

/// Page after the last.
fn end_of(layout: BlockLayout) -> PageIndex {
    layout.pages_of(WindowIndex(layout.windows().saturating_sub(1))).end
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    /// Pages of the test file, in windows 0 to 3 of 128 pages.
    const PAGES: u32 = 500;

    struct Heard(PassedWindows, Instant);

    impl Heard {
        fn new() -> Self {
            Self(PassedWindows::default(), Instant::now())
        }

        /// Receives this page, and so many others that the stream may be a window further.
        fn page(&mut self, page: u32) {
            (page..PAGES.min(page + 40)).for_each(|page| self.0.page(PageIndex(page), true));
        }

        /// Windows passed when a beacon arrives 25 ms after the one before.
        fn beacon(&mut self, position: u32) -> Vec<u32> {
            self.1 += Duration::from_millis(25);
            let layout = BlockLayout::new(PAGES, 1).unwrap();
            self.0.beacon(PageIndex(position), layout, self.1).into_iter().flatten().collect()
        }
    }

    #[test]
    fn a_window_whose_beginning_was_missed_is_passed_when_that_came_too() {
        let mut heard = Heard::new();
        assert!(heard.beacon(300).is_empty());
        assert!(heard.beacon(383).is_empty());
        assert!(heard.beacon(384).is_empty());
        assert_eq!(heard.beacon(10), [3]);
        assert_eq!(heard.beacon(300), [0, 1]);
        assert_eq!(heard.beacon(384), [2]);
    }

    #[test]
    fn a_window_that_was_heard_from_its_third_page_on_is_passed_at_its_end() {
        let mut heard = Heard::new();
        heard.page(258);
        assert_eq!(heard.beacon(384), [2]);
    }

    #[test]
    fn a_stream_that_begins_again_has_passed_the_end() {
        let mut heard = Heard::new();
        heard.beacon(300);
        assert_eq!(heard.beacon(130), [3, 0]);
        assert_eq!(heard.beacon(129), [1, 2, 3, 0]);
    }

    #[test]
    fn a_stream_that_came_to_rest_has_passed_the_window_whose_beginning_was_missed() {
        let mut heard = Heard::new();
        heard.page(300);
        assert_eq!(heard.beacon(PAGES), [0, 1, 2, 3]);
    }

    #[test]
    fn a_stream_that_rests_has_passed_everything() {
        let mut heard = Heard::new();
        heard.page(0);
        assert_eq!(heard.beacon(PAGES), [0, 1, 2, 3]);
    }

    #[test]
    fn a_rest_before_the_stream_began_to_move_tells_nothing_for_a_while() {
        let mut heard = Heard::new();
        assert!(heard.beacon(PAGES).is_empty());
        for _ in 1..20 {
            assert!(heard.beacon(PAGES).is_empty());
        }
        assert_eq!(heard.beacon(PAGES), [0, 1, 2, 3]);
        heard.0.windows_asked();
        assert!(heard.beacon(PAGES).is_empty());
        assert!(heard.beacon(10).is_empty());
        assert_eq!(heard.beacon(PAGES), [0, 1, 2, 3]);
    }

    #[test]
    fn a_small_file_that_went_by_between_two_beacons_is_passed() {
        let mut heard = Heard::new();
        assert!(heard.beacon(0).is_empty());
        (0..PAGES / 2).for_each(|page| heard.0.page(PageIndex(page), true));
        assert!(heard.beacon(0).is_empty());
        assert_eq!(heard.beacon(0), [0, 1, 2, 3]);
    }

    #[test]
    fn pages_that_somebody_demanded_before_the_stream_began_pass_nothing() {
        let mut heard = Heard::new();
        heard.0.page(PageIndex(400), true);
        assert!(heard.beacon(0).is_empty());
        for page in [0, 1, 300, 200] {
            heard.0.page(PageIndex(page), true);
            assert!(heard.beacon(0).is_empty());
        }
        assert!(heard.beacon(10).is_empty());
        assert_eq!(heard.beacon(130), [0]);
    }

    #[test]
    fn the_first_page_tells_where_the_stream_began_unless_the_beacon_is_elsewhere() {
        let mut heard = Heard::new();
        (0..140).for_each(|page| heard.0.page(PageIndex(page), true));
        assert_eq!(heard.beacon(140), [0]);
        let mut heard = Heard::new();
        heard.0.page(PageIndex(0), true);
        assert!(heard.beacon(300).is_empty());
    }
}

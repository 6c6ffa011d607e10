//! Where the server's stream is, and which windows it has passed since this member joined.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockLayout, PageIndex, WindowIndex};

/// How long the stream rests before a member that never saw it move since it asked takes that for an answer.
const REST_GRACE: Duration = Duration::from_millis(500);

/// How far ahead of the beacon's position a page may be that the stream sent since, beyond twice the pages that came since.
const AHEAD: u32 = 64;
/// A member that heard a window from no more than this share of it on has missed too little for the stream to bring it again.
const MISSED_SHARE: u32 = 64;

/// The way of the stream from beacon to beacon.
///
/// Beacons alone tell where it is: they are numbered, and tell what was promised at the same time. A page that overtook
/// others could not be told from one of the next round, and one that somebody demanded is of no round at all.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// What the next beacon's way begins from; `None` until the first one.
    from: Option<PageIndex>,
    /// The first page that came before any beacon.
    first: Option<PageIndex>,
    /// The window whose beginning this member missed: it is passed when the stream has brought that too.
    half: Option<u32>,
    /// Seen on its way since this member asked for it last.
    moved: bool,
    /// Pages that came since the last beacon.
    since_beacon: u32,
    /// Pages that came since this member asked last.
    seen: u32,
    /// As of the last beacon.
    had_moved: bool,
    resting_since: Option<Instant>,
}

impl Stream {
    /// A page came that may be the stream's.
    pub(super) fn page(&mut self, page: PageIndex) {
        self.seen = self.seen.saturating_add(1);
        self.since_beacon = self.since_beacon.saturating_add(1);
        match self.from {
            Some(from) => self.moved |= self.is_way(from, page),
            None => _ = self.first.get_or_insert(page),
        }
    }

    /// Whether the stream may have gone from the one to the other with as many pages as came since the last beacon.
    fn is_way(&self, from: PageIndex, to: PageIndex) -> bool {
        let most = self.since_beacon.saturating_mul(2).saturating_add(AHEAD);
        to.0.checked_sub(from.0).is_some_and(|ahead| ahead <= most)
    }

    /// This member asked for windows: a rest that was seen before the stream moves tells nothing of them.
    pub(super) fn asked(&mut self) {
        self.moved = false;
        self.had_moved = false;
        self.seen = 0;
        self.resting_since = None;
    }

    /// A beacon says where the stream is. Returns the numbers of the windows that it passed on the way: those that it brought, and
    /// those that it has no mind to bring.
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
            // All of a small file went by between two beacons, and waits for its next pass.
            return [0..layout.windows(), 0..0];
        }
        self.moved |= position != start;
        // The first time that the stream leaves it.
        let is_left = at(before) != at(position) || position < before;
        let first = at(before) + u32::from(is_left && self.half.take_if(|_| is_left).is_some());
        if before <= position {
            [first..at(position), 0..0]
        } else if before >= end {
            [0..at(position), 0..0]
        } else {
            [first..layout.windows(), 0..at(position)]
        }
    }

    /// Where the way to this position began; the next one begins there.
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

/// The window of this page, where so much lies before the page that the stream must bring it.
fn missed_beginning(page: PageIndex, layout: BlockLayout) -> Option<u32> {
    let window = layout.window_of(page);
    let pages = layout.pages_of(window);
    let missed = page.0.saturating_sub(pages.start.0);
    (pages.contains(page) && missed > pages.len() / MISSED_SHARE).then_some(window.0)
}

/// The page behind the last.
fn end_of(layout: BlockLayout) -> PageIndex {
    layout.pages_of(WindowIndex(layout.windows().saturating_sub(1))).end
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    /// Windows of 128 pages: 0 to 3.
    const PAGES: u32 = 500;

    struct Heard(Stream, Instant);

    impl Heard {
        fn new() -> Self {
            Self(Stream::default(), Instant::now())
        }

        /// This page came, and so many more that the stream may be a window further.
        fn page(&mut self, page: u32) {
            (page..PAGES.min(page + 40)).for_each(|page| self.0.page(PageIndex(page)));
        }

        /// The windows passed when a beacon comes 25 ms after the one before.
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
        heard.0.asked();
        assert!(heard.beacon(PAGES).is_empty());
        assert!(heard.beacon(10).is_empty());
        assert_eq!(heard.beacon(PAGES), [0, 1, 2, 3]);
    }

    #[test]
    fn a_small_file_that_went_by_between_two_beacons_is_passed() {
        let mut heard = Heard::new();
        assert!(heard.beacon(0).is_empty());
        (0..PAGES / 2).for_each(|page| heard.0.page(PageIndex(page)));
        assert!(heard.beacon(0).is_empty());
        assert_eq!(heard.beacon(0), [0, 1, 2, 3]);
    }

    #[test]
    fn pages_that_somebody_demanded_before_the_stream_began_pass_nothing() {
        let mut heard = Heard::new();
        heard.0.page(PageIndex(400));
        assert!(heard.beacon(0).is_empty());
        for page in [0, 1, 300, 200] {
            heard.0.page(PageIndex(page));
            assert!(heard.beacon(0).is_empty());
        }
        assert!(heard.beacon(10).is_empty());
        assert_eq!(heard.beacon(130), [0]);
    }

    #[test]
    fn the_first_page_tells_where_the_stream_began_unless_the_beacon_is_elsewhere() {
        let mut heard = Heard::new();
        (0..140).for_each(|page| heard.0.page(PageIndex(page)));
        assert_eq!(heard.beacon(140), [0]);
        let mut heard = Heard::new();
        heard.0.page(PageIndex(0));
        assert!(heard.beacon(300).is_empty());
    }
}

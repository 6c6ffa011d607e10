//! The stream: the pages of one file in file order, for all members at once.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::limits::MISSED_DIVISOR;
use bootcast_proto::{BlockLayout, PageIndex, PageRange, RangeMap, WindowIndex};

mod zeros;

/// Shortest time between the starts of two passes for plain members.
///
/// Without it, a file of a few pages would be sent thousands of times and use up all idle passes
/// before a leave or the IGMP report of the next client arrives.
pub const PASS_INTERVAL: Duration = Duration::from_millis(100);

/// Members that the stream is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Plain members, and perhaps others: all pages, pass after pass.
    Everybody,
    /// Only extended members: the wanted windows.
    Extended,
    /// Only extended members that have the zero map: the wanted windows, without pages of zeros.
    ZeroMapHolders,
}

/// Consecutive pages to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) pages: PageRange,
    /// The window of these pages, if all of it was wanted and these are its last pages.
    pub(super) finished: Option<WindowIndex>,
}

/// Position of the stream, and the windows that extended members want.
#[derive(Debug)]
pub(super) struct Stream {
    pages: u32,
    /// Windows of the file; `None` without a repair channel.
    layout: Option<BlockLayout>,
    /// First page of the next run. Below `pages` unless that is 0.
    next: PageIndex,
    /// For each window, the number of pages that are wanted, counted from its beginning.
    wanted: Vec<u32>,
    /// Number of windows with wanted pages.
    wanted_windows: usize,
    /// Number of pages at the beginning of the current window that are wanted again after its end,
    /// because a member missed them.
    wanted_again: u32,
    /// Windows that become wanted once nothing else is to be sent.
    deferred: Vec<bool>,
    /// Number of deferred windows.
    deferred_windows: usize,
    pass_started_at: Instant,
    /// Earliest start of the next pass for plain members.
    not_before: Instant,
    passes: u32,
    pages_sent: u64,
    /// Pages of zeros, which need not be sent to members that have the zero map.
    zeros: RangeMap<()>,
    /// Number of pages of zeros that were left out, over all passes.
    zero_pages: u64,
}

impl Stream {
    pub(super) fn new(pages: u32, layout: Option<BlockLayout>, now: Instant) -> Self {
        let windows = layout.map_or(0, BlockLayout::windows) as usize;
        Self {
            pages,
            layout,
            next: PageIndex(0),
            wanted: vec![0; windows],
            wanted_windows: 0,
            wanted_again: 0,
            deferred: vec![false; windows],
            deferred_windows: 0,
            pass_started_at: now,
            not_before: now,
            passes: 0,
            pages_sent: 0,
            zeros: RangeMap::default(),
            zero_pages: 0,
        }
    }

    /// Restarts with the first page of the file at `at`.
    pub(super) fn restart(&mut self, at: Instant) {
        self.next = PageIndex(0);
        self.wanted_again = 0;
        self.not_before = at;
        self.assert_invariants();
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        assert!(self.next.0 < self.pages.max(1), "the stream is behind the end of the file");
        assert!(
            self.wanted_windows <= self.wanted.len(),
            "more windows are wanted than the file has: the stream would never rest"
        );
        debug_assert!(
            self.wanted_again == 0 || self.wanted_again <= self.next.0,
            "pages are wanted again that were not sent"
        );
    }

    /// Whether the number of wanted windows is right. The time that this takes grows with the file.
    fn counts_wanted_windows(&self) -> bool {
        self.wanted.iter().filter(|wanted| **wanted > 0).count() == self.wanted_windows
    }

    /// Marks all windows as wanted, because a client joined. The beginning of the current window is
    /// sent again if the client missed too much of it.
    pub(super) fn want_all(&mut self) {
        self.want(0, u32::MAX);
        self.drop_deferred();
    }

    fn drop_deferred(&mut self) {
        self.deferred.fill(false);
        self.deferred_windows = 0;
    }

    /// Marks `count` windows from `first` on as wanted. Windows that the file does not have are
    /// ignored. Returns whether this changed anything.
    pub(super) fn want(&mut self, first: u32, count: u32) -> bool {
        let Some(layout) = self.layout else { return false };
        let mut changed = false;
        for number in self.existing(first, count) {
            let window = WindowIndex(number);
            let wanted = &mut self.wanted[number as usize];
            let pages = layout.pages_of(window).len();
            changed |= *wanted < pages;
            self.wanted_windows += usize::from(*wanted == 0);
            *wanted = pages;
            if window == layout.window_of(self.next) {
                let missed = self.missed_pages();
                changed |= self.wanted_again < missed;
                self.wanted_again = self.wanted_again.max(missed);
            }
        }
        debug_assert!(count < u32::MAX || self.counts_wanted_windows());
        self.assert_invariants();
        changed
    }

    /// Defers `count` windows from `first` on, until [`Self::want_deferred`] makes them wanted.
    pub(super) fn defer(&mut self, first: u32, count: u32) {
        for window in self.existing(first, count) {
            let was_deferred = std::mem::replace(&mut self.deferred[window as usize], true);
            self.deferred_windows += usize::from(!was_deferred);
        }
    }

    /// Marks the deferred windows as wanted. Returns whether this changed anything.
    pub(super) fn want_deferred(&mut self) -> bool {
        if self.deferred_windows == 0 {
            return false;
        }
        let windows = self.existing(0, u32::MAX);
        let deferred: Vec<_> = windows.filter(|it| self.deferred[*it as usize]).collect();
        self.drop_deferred();
        deferred.into_iter().fold(false, |changed, window| self.want(window, 1) | changed)
    }

    /// Drops all wanted and deferred windows, because the last extended member is gone.
    pub(super) fn want_none(&mut self) {
        self.wanted.fill(0);
        self.wanted_windows = 0;
        self.wanted_again = 0;
        self.drop_deferred();
    }

    /// Whether extended members want the window that the stream is in.
    pub(super) fn is_wanted(&self) -> bool {
        let window = self.layout.map(|layout| layout.window_of(self.next));
        window.is_some_and(|window| self.wanted[window.0 as usize] > 0)
    }

    /// Whether every wanted window has been sent.
    pub(super) fn is_done(&self) -> bool {
        self.wanted_windows == 0
    }

    /// Returns the next run of at most `budget` pages. It crosses neither the end of the file nor
    /// the end of a window.
    pub(super) fn poll(&mut self, budget: u32, audience: Audience, now: Instant) -> Option<Run> {
        if self.poll_at(audience).is_none_or(|at| now < at) || self.pages == 0 {
            return None;
        }
        if audience != Audience::Everybody {
            self.skip_to_wanted();
        }
        if self.next.0 == 0 {
            self.pass_started_at = now;
        }
        let window = self.layout.map(|layout| (layout.window_of(self.next), layout));
        let limit = window.map_or(self.pages, |(window, layout)| {
            let pages = layout.pages_of(window);
            match audience {
                Audience::Everybody => pages.end.0,
                Audience::Extended | Audience::ZeroMapHolders => {
                    pages.start.0 + self.wanted[window.0 as usize]
                }
            }
        });
        let end = self.next.0.saturating_add(budget).min(limit);
        let pages = self.before_zeros(PageRange::new(self.next.0, end), audience);
        if pages.is_empty() {
            // The driver would ask again at once, without end.
            assert!(budget == 0, "the stream has pages to send, but not at {}", self.next);
            return None;
        }
        self.pages_sent += u64::from(pages.len());
        self.begin_window(pages.start);
        self.next = pages.end;
        let ended = window.filter(|_| pages.end.0 == limit);
        let finished = ended.and_then(|(window, layout)| self.finish_window(window, layout));
        if pages.end.0 == self.pages {
            self.finish_pass(now);
        }
        self.assert_invariants();
        Some(Run { pages, finished })
    }

    /// Returns the earliest time at which [`Self::poll`] has pages; `None` while none are wanted.
    pub(super) fn poll_at(&self, audience: Audience) -> Option<Instant> {
        match audience {
            Audience::Everybody => Some(self.not_before),
            Audience::Extended | Audience::ZeroMapHolders => {
                (!self.is_done()).then_some(self.pass_started_at)
            }
        }
    }

    /// Returns the page that is sent next; the number of pages in the file while the stream rests.
    pub(super) fn position(&self, audience: Audience) -> PageIndex {
        match audience {
            Audience::Everybody => self.next,
            Audience::Extended | Audience::ZeroMapHolders => {
                self.next_wanted().unwrap_or(PageIndex(self.pages))
            }
        }
    }

    /// Returns the number of pages sent, over all passes.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    /// Returns the number of completed passes.
    pub(super) fn passes(&self) -> u32 {
        self.passes
    }

    /// Clips `count` windows from `first` on to the windows of the file.
    fn existing(&self, first: u32, count: u32) -> Range<u32> {
        let windows = u32::try_from(self.wanted.len()).unwrap_or(u32::MAX);
        first.min(windows)..first.saturating_add(count).min(windows)
    }

    /// Returns the number of pages of the current window that were sent, or 0 if they are so few
    /// that a member that missed them relies on repair.
    fn missed_pages(&self) -> u32 {
        let Some(layout) = self.layout else { return 0 };
        let window = layout.pages_of(layout.window_of(self.next));
        let sent = self.next.0.saturating_sub(window.start.0);
        if sent > window.len() / MISSED_DIVISOR { sent } else { 0 }
    }

    /// Moves to the next wanted window, unless further pages of the current one are wanted.
    fn skip_to_wanted(&mut self) {
        if let Some(page) = self.next_wanted()
            && page != self.next
        {
            self.next = page;
            self.wanted_again = 0;
        }
    }

    /// Returns `next` if pages of its window are wanted from there on, else the first page of the
    /// next wanted window, wrapping at the end of the file.
    fn next_wanted(&self) -> Option<PageIndex> {
        let layout = self.layout.filter(|_| !self.is_done())?;
        let here = layout.window_of(self.next).0;
        let start = |window| layout.pages_of(WindowIndex(window)).start;
        if self.next.0 < start(here).0 + self.wanted[here as usize] {
            return Some(self.next);
        }
        let windows = layout.windows();
        let mut others = (here + 1..windows).chain(0..=here);
        others.find(|&window| self.wanted[window as usize] > 0).map(start)
    }

    /// Drops the window that begins with `page` from the deferred ones if all of it is wanted,
    /// because the members that asked for it receive it now.
    fn begin_window(&mut self, page: PageIndex) {
        let Some(layout) = self.layout.filter(|_| self.deferred_windows > 0) else { return };
        let window = layout.window_of(page);
        let pages = layout.pages_of(window);
        if page == pages.start && self.wanted[window.0 as usize] == pages.len() {
            let was_deferred = std::mem::take(&mut self.deferred[window.0 as usize]);
            self.deferred_windows -= usize::from(was_deferred);
        }
    }

    /// Marks a window as sent, except for the pages that are wanted again. Returns the window if
    /// all of it was wanted.
    fn finish_window(&mut self, window: WindowIndex, layout: BlockLayout) -> Option<WindowIndex> {
        let wanted_again = std::mem::take(&mut self.wanted_again);
        let wanted = self.wanted.get_mut(window.0 as usize).filter(|wanted| **wanted > 0)?;
        let was_wanted = std::mem::replace(wanted, wanted_again);
        self.wanted_windows -= usize::from(wanted_again == 0);
        debug_assert!(wanted_again < was_wanted, "a window is sent again as a whole");
        (was_wanted == layout.pages_of(window).len()).then_some(window)
    }

    /// Counts a pass and moves to the first page of the file.
    fn finish_pass(&mut self, now: Instant) {
        self.passes = self.passes.saturating_add(1);
        self.next = PageIndex(0);
        self.not_before = now.max(self.pass_started_at + PASS_INTERVAL);
    }
}

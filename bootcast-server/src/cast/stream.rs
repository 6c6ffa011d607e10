//! The stream: the pages of one file in the order of sending.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockLayout, PageIndex, PageRange, WindowIndex};

/// Shortest time from the start of a pass for plain members to the next.
///
/// Otherwise a file of a few pages would go round thousands of times, and use up all idle passes,
/// before a leave or the next client's IGMP report arrives.
pub const PASS_INTERVAL: Duration = Duration::from_millis(100);

/// 1 / this is the share of a window that repair can replace. A member that misses no more of a
/// window's beginning needs nothing again.
const MISSED_SHARE: u32 = 64;

/// Members that the stream serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Plain members too: all pages, pass after pass.
    Everybody,
    /// Extended members only: the wanted windows.
    Extended,
}

/// Consecutive pages to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) pages: PageRange,
    /// The wanted window that is completely sent after these pages, if there is one.
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
    /// For each window, how many of its first pages are wanted.
    wanted: Vec<u32>,
    /// Number of windows with wanted pages.
    wanted_windows: usize,
    /// How many first pages of the current window are wanted again after its end, because a member
    /// missed them.
    again: u32,
    /// Windows that are wanted once nothing else is to be sent.
    held: BTreeSet<u32>,
    pass_began: Instant,
    /// Earliest start of the next pass for plain members.
    not_before: Instant,
    passes: u32,
    pages_sent: u64,
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
            again: 0,
            held: BTreeSet::new(),
            pass_began: now,
            not_before: now,
            passes: 0,
            pages_sent: 0,
        }
    }

    /// Restarts with page 1 at `at`.
    pub(super) fn restart(&mut self, at: Instant) {
        self.next = PageIndex(0);
        self.again = 0;
        self.not_before = at;
    }

    /// Wants every page, because a client joined. The window being sent gets its beginning again.
    pub(super) fn want_all(&mut self) {
        self.want(0, u32::MAX);
        self.held.clear();
    }

    /// Wants these windows as well. Returns whether that changed anything. Ignores windows that the
    /// file does not have.
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
                let missed = self.progress();
                changed |= self.again < missed;
                self.again = self.again.max(missed);
            }
        }
        changed
    }

    /// Wants these windows once [`Self::want_held`] is called.
    pub(super) fn hold(&mut self, first: u32, count: u32) {
        let windows = self.existing(first, count);
        self.held.extend(windows);
    }

    /// Wants the deferred windows. Returns whether that changed anything.
    pub(super) fn want_held(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        held.into_iter().fold(false, |changed, window| self.want(window, 1) | changed)
    }

    /// Drops all wanted windows: the last extended member is gone.
    pub(super) fn want_none(&mut self) {
        self.wanted.fill(0);
        self.wanted_windows = 0;
        self.again = 0;
        self.held.clear();
    }

    /// Whether every wanted window has been sent.
    pub(super) fn is_done(&self) -> bool {
        self.wanted_windows == 0
    }

    /// Returns the next run of at most `budget` pages. It crosses neither the end of the file nor
    /// of a window.
    pub(super) fn poll(&mut self, budget: u32, audience: Audience, now: Instant) -> Option<Run> {
        if self.poll_at(audience).is_none_or(|at| now < at) || self.pages == 0 {
            return None;
        }
        if audience == Audience::Extended {
            self.skip_to_wanted();
        }
        if self.next.0 == 0 {
            self.pass_began = now;
        }
        let window = self.layout.map(|layout| (layout.window_of(self.next), layout));
        let limit = window.map_or(self.pages, |(window, layout)| {
            let pages = layout.pages_of(window);
            match audience {
                Audience::Everybody => pages.end.0,
                Audience::Extended => pages.start.0 + self.wanted[window.0 as usize],
            }
        });
        let pages = PageRange::new(self.next.0, self.next.0.saturating_add(budget).min(limit));
        if pages.is_empty() {
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
        Some(Run { pages, finished })
    }

    /// Earliest time at which [`Self::poll`] has pages; `None` while no pages are wanted.
    pub(super) fn poll_at(&self, audience: Audience) -> Option<Instant> {
        match audience {
            Audience::Everybody => Some(self.not_before),
            Audience::Extended => (!self.is_done()).then_some(self.pass_began),
        }
    }

    /// Page that goes out next; the number of pages while the stream rests.
    pub(super) fn position(&self, audience: Audience) -> PageIndex {
        match audience {
            Audience::Everybody => self.next,
            Audience::Extended => self.next_wanted().unwrap_or(PageIndex(self.pages)),
        }
    }

    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    pub(super) fn passes(&self) -> u32 {
        self.passes
    }

    /// Clips a range of windows to those of the file.
    fn existing(&self, first: u32, count: u32) -> Range<u32> {
        let windows = u32::try_from(self.wanted.len()).unwrap_or(u32::MAX);
        first.min(windows)..first.saturating_add(count).min(windows)
    }

    /// Pages of the current window that were sent, if they are more than repair can replace; else
    /// 0.
    fn progress(&self) -> u32 {
        let Some(layout) = self.layout else { return 0 };
        let window = layout.pages_of(layout.window_of(self.next));
        let sent = self.next.0.saturating_sub(window.start.0);
        if sent > window.len() / MISSED_SHARE { sent } else { 0 }
    }

    /// Moves to the first page of the next wanted window, unless the current window is wanted.
    fn skip_to_wanted(&mut self) {
        if let Some(page) = self.next_wanted()
            && page != self.next
        {
            self.next = page;
            self.again = 0;
        }
    }

    /// Returns `next` if pages of its window are wanted from there on, else the start of the next
    /// wanted window, wrapping.
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

    /// A wanted window that begins now need not be kept back any more: all that asked for it before
    /// receive it.
    fn begin_window(&mut self, page: PageIndex) {
        let Some(layout) = self.layout.filter(|_| !self.held.is_empty()) else { return };
        let window = layout.window_of(page);
        let pages = layout.pages_of(window);
        if page == pages.start && self.wanted[window.0 as usize] == pages.len() {
            self.held.remove(&window.0);
        }
    }

    /// Returns the window if all of it was wanted, and marks it as sent.
    fn finish_window(&mut self, window: WindowIndex, layout: BlockLayout) -> Option<WindowIndex> {
        let again = std::mem::take(&mut self.again);
        let wanted = self.wanted.get_mut(window.0 as usize).filter(|wanted| **wanted > 0)?;
        let was_wanted = std::mem::replace(wanted, again);
        self.wanted_windows -= usize::from(again == 0);
        (was_wanted == layout.pages_of(window).len()).then_some(window)
    }

    fn finish_pass(&mut self, now: Instant) {
        self.passes = self.passes.saturating_add(1);
        self.next = PageIndex(0);
        self.not_before = now.max(self.pass_began + PASS_INTERVAL);
    }
}

//! The pages of one file in the order of sending.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockLayout, PageIndex, PageRange, WindowIndex};

/// A pass for plain members begins no sooner than this after the one before.
///
/// A file of a few pages would otherwise go round thousands of times, and all of its idle passes
/// be over, before a client's leave or the next client's membership gets through.
pub const PASS_INTERVAL: Duration = Duration::from_millis(100);

/// Who finds a window no more than this share through has missed so little of it that repair brings it.
const MISSED_SHARE: u32 = 64;

/// For whom the stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Plain members too: all pages, pass after pass.
    Everybody,
    /// Extended members only: the windows that are wanted.
    Extended,
}

/// Consecutive pages to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) pages: PageRange,
    /// The wanted window that these pages end, all of which was sent.
    pub(super) finished: Option<WindowIndex>,
}

/// Where the stream is, and which windows extended members want of it.
#[derive(Debug)]
pub(super) struct Stream {
    pages: u32,
    /// `None`: without a repair channel there are no windows.
    layout: Option<BlockLayout>,
    /// First page of the next run; below `pages` unless that is 0.
    next: PageIndex,
    /// Of each window, how many of its first pages.
    wanted: Vec<u32>,
    /// How many of `wanted` are not 0.
    wanted_windows: usize,
    /// Of the window of `next`, how many of its first pages are wanted again at its end: somebody missed them.
    again: u32,
    /// Windows that are wanted once there is nothing else to do.
    held: BTreeSet<u32>,
    pass_began: Instant,
    /// The next pass for plain members begins then.
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

    /// Begins with page 1 at `at`.
    pub(super) fn restart(&mut self, at: Instant) {
        self.next = PageIndex(0);
        self.again = 0;
        self.not_before = at;
    }

    /// Wants every page: a client joined. Of the window that is being sent, that means its beginning again.
    pub(super) fn want_all(&mut self) {
        self.want(0, u32::MAX);
        self.held.clear();
    }

    /// Wants these windows as well; `true` where that changed anything. Those that the file does not have do not count.
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

    /// Wants these windows when [`Self::want_held`] says so.
    pub(super) fn hold(&mut self, first: u32, count: u32) {
        let windows = self.existing(first, count);
        self.held.extend(windows);
    }

    /// Wants what was held; `true` where that changed anything.
    pub(super) fn want_held(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        held.into_iter().fold(false, |changed, window| self.want(window, 1) | changed)
    }

    /// Wants nothing any more: no extended member is left.
    pub(super) fn want_none(&mut self) {
        self.wanted.fill(0);
        self.wanted_windows = 0;
        self.again = 0;
        self.held.clear();
    }

    /// Whether every window that was wanted has been sent.
    pub(super) fn is_done(&self) -> bool {
        self.wanted_windows == 0
    }

    /// The next run of at most `budget` pages; it crosses neither the end of the file nor that of a window.
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
        self.next = pages.end;
        let ended = window.filter(|_| pages.end.0 == limit);
        let finished = ended.and_then(|(window, layout)| self.finish_window(window, layout));
        if pages.end.0 == self.pages {
            self.finish_pass(now);
        }
        Some(Run { pages, finished })
    }

    /// From when on [`Self::poll`] has pages; `None` while nobody wants any.
    pub(super) fn poll_at(&self, audience: Audience) -> Option<Instant> {
        match audience {
            Audience::Everybody => Some(self.not_before),
            Audience::Extended => (!self.is_done()).then_some(self.pass_began),
        }
    }

    /// The page that goes out next; the page behind the last while the stream rests.
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

    /// Numbers of those windows of the range that the file has.
    fn existing(&self, first: u32, count: u32) -> Range<u32> {
        let windows = u32::try_from(self.wanted.len()).unwrap_or(u32::MAX);
        first.min(windows)..first.saturating_add(count).min(windows)
    }

    /// Pages of the window of `next` that were sent, where they are more than repair brings.
    fn progress(&self) -> u32 {
        let Some(layout) = self.layout else { return 0 };
        let window = layout.pages_of(layout.window_of(self.next));
        let sent = self.next.0.saturating_sub(window.start.0);
        if sent > window.len() / MISSED_SHARE { sent } else { 0 }
    }

    /// Moves on to the first page of the next wanted window, unless the stream is in a wanted one.
    fn skip_to_wanted(&mut self) {
        if let Some(page) = self.next_wanted()
            && page != self.next
        {
            self.next = page;
            self.again = 0;
        }
    }

    /// `next` if pages of its window are wanted from there on, else where the next wanted window begins, from here on and wrapping.
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

    /// The window if all of it was wanted.
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

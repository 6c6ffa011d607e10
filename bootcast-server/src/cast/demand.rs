//! Demanded pages: they go out before the stream, in the order of the requests. docs/PROTOCOL.md,
//! "Demand".
//!
//! Requests are not to be trusted: one may name pages that the file does not have, all of 2^32, or
//! the same page a thousand times. The queues bound memory and work, and each member has a share of
//! them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{PageIndex, PageRange, RangeMap, Token};

/// Most pages in either queue.
const QUEUE_PAGES: u32 = 65_536;

/// Most pages of one member in a queue: it takes sixteen members to fill one.
const MEMBER_PAGES: u32 = 4096;

/// Most pairs of either kind that are read of one request.
const REQUEST_PAIRS: usize = 1024;

/// How long a page is under way to a member that states no delay.
const DELAY: Duration = Duration::from_millis(4);

/// Longest delay that is believed.
const DELAY_MAX: Duration = Duration::from_millis(100);

/// How long sent pages are remembered. A member that lags behind by more may get pages twice.
const MEMORY: Duration = Duration::from_millis(500);

/// Most runs that are remembered. At 10 Gbit/s a thousand full ones take 50 ms.
const RECENT_RUNS: usize = 1024;

/// Queues of demanded pages, and pages sent recently.
#[derive(Debug)]
pub(super) struct Demand {
    /// Number of pages in the file.
    pages: u32,
    /// Pages that readers wait for.
    now: Queue,
    /// Pages that readers will probably read next. No page is in both queues.
    later: Queue,
    recent: Recent,
    /// Last page of a want from a member on a lossy path, with the member.
    repeat: Option<(PageIndex, Token)>,
    pages_sent: u64,
}

impl Demand {
    /// Creates empty queues for a file of `pages` pages.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            pages,
            now: Queue::default(),
            later: Queue::default(),
            recent: Recent::default(),
            repeat: None,
            pages_sent: 0,
        }
    }

    /// Queues the requested pages that are neither queued nor under way.
    pub(super) fn handle_want(&mut self, token: &Token, want: &Want, now: Instant) {
        self.recent.forget_before(now);
        let view = self.recent.view(want, now);
        let (mut lost, mut newest) = (Vec::new(), None);
        for &pair in want.now.iter().take(REQUEST_PAIRS) {
            if self.now.room(token) == 0 {
                break;
            }
            let asked = self.in_file(pair);
            for range in self.recent.missing(asked, &view, self.now.room(token)) {
                lost.extend(self.recent.parts(range));
                let new = self.recent.gaps(range);
                for queued in new.into_iter().flat_map(|run| self.now.push(token, run, now)) {
                    self.later.remove(queued);
                    newest = Some(queued);
                }
            }
        }
        // Lost pages were demanded earlier than all waiting ones.
        for range in lost.into_iter().rev() {
            for queued in self.now.push_first(token, range, now) {
                self.later.remove(queued);
                newest.get_or_insert(queued);
            }
        }
        if let Some(newest) = newest {
            let page = PageIndex(newest.end.0 - 1);
            self.repeat = want.lossy.then(|| (page, token.clone()));
        }
        for &pair in want.later.iter().take(REQUEST_PAIRS) {
            let asked = self.in_file(pair);
            for range in self.recent.missing(asked, &view, self.later.room(token)) {
                for range in self.now.missing(range, self.later.room(token)) {
                    self.later.push(token, range, now);
                }
            }
        }
    }

    /// Handles pages that were sent, on demand or not: they need not be sent again.
    pub(super) fn on_sent(&mut self, range: PageRange, now: Instant) {
        self.now.remove(range);
        self.later.remove(range);
        self.recent.insert(range, now);
    }

    /// Drops all demands, because no member is left that made them.
    pub(super) fn clear(&mut self) {
        self.repeat = None;
        self.now = Queue::default();
        self.later = Queue::default();
    }

    /// Since when readers have been waiting for pages; `None` while none does.
    pub(super) fn urgent_since(&self) -> Option<Instant> {
        self.now.since()
    }

    /// Since when pages of the second queue have been waiting.
    pub(super) fn later_since(&self) -> Option<Instant> {
        self.later.since()
    }

    /// Upper bound of the pages that readers wait for: some may have been sent meanwhile.
    pub(super) fn urgent_pages(&self) -> u32 {
        self.now.kept
    }

    /// How many pages, of at most `budget`, go out next for waiting readers.
    pub(super) fn next_urgent(&self, budget: u32) -> u32 {
        self.now.next(budget).map_or(0, PageRange::len)
    }

    /// Returns the next consecutive pages that readers wait for, at most `budget`.
    pub(super) fn poll_urgent(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let run = self.now.next(budget)?;
        let run = self.sent(run, now);
        if self.now.since().is_none() {
            self.repeat_last_of(run, now);
        }
        Some(run)
    }

    /// Queues the last page of the run again if it ends a want of a lossy path. Its second copy
    /// shows the member at once what of the want was lost.
    fn repeat_last_of(&mut self, run: PageRange, now: Instant) {
        let Some((page, token)) = self.repeat.take() else { return };
        if page.0 + 1 == run.end.0 {
            self.now.push(&token, PageRange::single(page), now);
        }
    }

    /// Returns the next consecutive pages of the second queue, at most `budget`.
    pub(super) fn poll_later(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let run = self.later.next(budget)?;
        Some(self.sent(run, now))
    }

    /// Number of pages sent on demand.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    fn sent(&mut self, run: PageRange, now: Instant) -> PageRange {
        self.on_sent(run, now);
        self.pages_sent += u64::from(run.len());
        run
    }

    /// Pages of the file in a pair of first page, counted from 1, and number of pages.
    fn in_file(&self, (first, count): (u32, u32)) -> PageRange {
        let end = (u64::from(first) + u64::from(count)).saturating_sub(1);
        let end = u32::try_from(end).map_or(self.pages, |end| end.min(self.pages));
        PageRange::new(first.saturating_sub(1).min(end), end)
    }
}

fn first_of(run: PageRange, budget: u32) -> PageRange {
    PageRange::new(run.start.0, run.start.0.saturating_add(budget).min(run.end.0))
}

/// A queue of pages in the order of the requests.
#[derive(Debug, Default)]
struct Queue {
    /// Requests with their members, oldest first. Pages that were sent meanwhile stay until their
    /// turn. The front begins with a waiting page.
    asked: VecDeque<(PageRange, Token)>,
    /// Number of pages in `asked`, including those that were sent.
    kept: u32,
    /// Pages of `asked` by member; no entry is 0.
    by_member: BTreeMap<Token, u32>,
    /// Pages that wait to be sent.
    waiting: RangeMap<()>,
    /// Since when the queue has not been empty.
    since: Option<Instant>,
}

impl Queue {
    fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Number of pages that this member may still queue.
    fn room(&self, token: &Token) -> u32 {
        let own = self.by_member.get(token).map_or(0, |kept| *kept);
        (QUEUE_PAGES - self.kept).min(MEMBER_PAGES.saturating_sub(own))
    }

    /// Parts of `range` that do not wait here, at most `limit` of them.
    fn missing(&self, range: PageRange, limit: u32) -> Vec<PageRange> {
        self.waiting.gaps(range).take(limit as usize).collect()
    }

    /// Queues the pages of `range` that do not wait yet, as far as there is room. Returns the parts
    /// that were added.
    fn push(&mut self, token: &Token, range: PageRange, now: Instant) -> Vec<PageRange> {
        let queued = self.take_in(token, range, now);
        self.asked.extend(queued.iter().map(|run| (*run, token.clone())));
        queued
    }

    /// Like [`Self::push`], in front of all others.
    fn push_first(&mut self, token: &Token, range: PageRange, now: Instant) -> Vec<PageRange> {
        let queued = self.take_in(token, range, now);
        for run in queued.iter().rev() {
            self.asked.push_front((*run, token.clone()));
        }
        queued
    }

    /// Counts the pages of `range` that do not wait yet, as far as there is room, and returns them.
    fn take_in(&mut self, token: &Token, range: PageRange, now: Instant) -> Vec<PageRange> {
        let mut queued = Vec::new();
        for gap in self.missing(range, self.room(token)) {
            let run = first_of(gap, self.room(token));
            if run.is_empty() {
                break;
            }
            self.kept += run.len();
            *self.by_member.entry(token.clone()).or_insert(0) += run.len();
            self.waiting.insert(run, ());
            self.since.get_or_insert(now);
            queued.push(run);
        }
        queued
    }

    /// Removes pages from the waiting ones.
    fn remove(&mut self, range: PageRange) {
        if self.asked.is_empty() {
            return;
        }
        self.waiting.remove(range);
        while let Some((asked, _)) = self.asked.front() {
            let asked = *asked;
            let waits = self.waiting.parts(asked).next().map(|(part, ())| part.start);
            let gone = waits.unwrap_or(asked.end).0 - asked.start.0;
            self.forget_front(gone);
            if waits.is_some() {
                return;
            }
        }
        self.since = None;
    }

    /// Drops the first pages of the front, and the front if none are left.
    fn forget_front(&mut self, pages: u32) {
        let Some((range, token)) = self.asked.front_mut() else { return };
        range.start.0 += pages;
        self.kept -= pages;
        if let Some(own) = self.by_member.get_mut(token) {
            *own -= pages;
            if *own == 0 {
                self.by_member.remove(token);
            }
        }
        if range.is_empty() {
            self.asked.pop_front();
        }
    }

    /// Pages to send next, at most `budget` and at least one: the first of the front, and those of
    /// following requests if they are consecutive.
    fn next(&self, budget: u32) -> Option<PageRange> {
        let mut run: Option<PageRange> = None;
        for (range, _) in &self.asked {
            let Some((part, ())) = self.waiting.parts(*range).next() else { break };
            let follows = run.is_none_or(|run| run.end == part.start && part.start == range.start);
            if !follows {
                break;
            }
            run = Some(PageRange::new(run.map_or(part.start.0, |run| run.start.0), part.end.0));
            if part.end != range.end || run.is_some_and(|run| budget <= run.len()) {
                break;
            }
        }
        run.map(|run| first_of(run, budget)).filter(|run| !run.is_empty())
    }
}

/// Time and number of a sent run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    /// Number of the run: two may have left at the same time.
    run: u64,
    at: Instant,
}

/// What a requesting member knows of the pages that were sent.
#[derive(Debug)]
struct MemberView {
    /// Page that arrived there last, and when it was sent.
    came: Option<(PageIndex, Sent)>,
    /// If the member receives nothing, pages sent before this are no longer under way to it.
    since: Option<Instant>,
}

impl MemberView {
    /// Pages of `part` that are under way to the member: the last ones of a run, or none. Datagrams
    /// keep their order, so pages sent before one that arrived are lost, however recent they are.
    fn under_way(&self, part: PageRange, sent: Sent) -> PageRange {
        let none = PageRange::new(part.end.0, part.end.0);
        if self.since.is_some_and(|since| sent.at <= since) {
            return none;
        }
        match self.came {
            Some((_, came)) if sent.run < came.run => none,
            Some((page, came)) if sent.run == came.run => {
                PageRange::new(part.start.0.max(page.0).min(part.end.0), part.end.0)
            }
            Some(_) | None => part,
        }
    }
}

/// Pages that were sent recently.
#[derive(Debug, Default)]
struct Recent {
    /// Time at which each page was last sent.
    sent: RangeMap<Sent>,
    /// Runs with the times they were sent, oldest first.
    order: VecDeque<(PageRange, Sent)>,
    runs: u64,
}

impl Recent {
    fn insert(&mut self, range: PageRange, now: Instant) {
        self.forget_before(now);
        if self.order.len() >= RECENT_RUNS {
            self.forget_oldest();
        }
        self.runs += 1;
        let sent = Sent { run: self.runs, at: now };
        self.sent.insert(range, sent);
        self.order.push_back((range, sent));
    }

    fn forget_before(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(_, sent)| sent.at + MEMORY <= now) {
            self.forget_oldest();
        }
    }

    /// Drops the oldest run, except for pages sent again since.
    fn forget_oldest(&mut self) {
        let Some((range, oldest)) = self.order.pop_front() else { return };
        let old = self.sent.parts(range).filter(|(_, sent)| sent.run <= oldest.run);
        let old: Vec<_> = old.map(|(part, _)| part).collect();
        for part in old {
            self.sent.remove(part);
        }
    }

    /// View of the member that sent this want.
    fn view(&self, want: &Want, now: Instant) -> MemberView {
        let came = want.came.checked_sub(1).map(PageIndex);
        let came = came.and_then(|page| {
            let (_, sent) = self.sent.parts(PageRange::single(page)).next()?;
            Some((page, sent))
        });
        let delay = match want.delay_us {
            0 => DELAY,
            delay => Duration::from_micros(delay.into()).min(DELAY_MAX),
        };
        // While pages arrive there, their order tells the member what is lost.
        let is_silent = want.late || came.is_none();
        MemberView { came, since: now.checked_sub(delay).filter(|_| is_silent) }
    }

    /// Parts of a range that were sent recently.
    fn parts(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        self.sent.parts(range).map(|(part, _)| part)
    }

    /// Parts of a range that were not sent recently.
    fn gaps(&self, range: PageRange) -> Vec<PageRange> {
        self.sent.gaps(range).collect()
    }

    /// Parts of a range that are not under way to the member, at most `limit` of them.
    fn missing(&self, range: PageRange, view: &MemberView, limit: u32) -> Vec<PageRange> {
        let parts = self.sent.parts(range).map(|(part, sent)| view.under_way(part, sent));
        let behind = PageRange::new(range.end.0, range.end.0);
        let mut next = range.start.0;
        let runs = parts.filter(|part| !part.is_empty()).chain([behind]).filter_map(|part| {
            let run = PageRange::new(next, part.start.0);
            next = part.end.0;
            (!run.is_empty()).then_some(run)
        });
        runs.take(limit as usize).collect()
    }
}

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;

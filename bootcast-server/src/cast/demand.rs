//! Pages that members asked for: they go out before the stream, in the order of asking. docs/PROTOCOL.md, "Demand".
//!
//! What is asked for is not to be trusted: a request may name pages that the file does not have, all of 2^32, or the same a
//! thousand times. Memory and work are bounded by what is kept of it, and each member has a share of that.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{PageRange, Token};

use super::range_map::RangeMap;

/// Pages that are kept in either queue.
const QUEUE_PAGES: u32 = 65_536;

/// Of them, those of one member: sixteen must conspire before another is not heard.
const MEMBER_PAGES: u32 = 4096;

/// Pairs of either kind that are looked at of one request.
const REQUEST_PAIRS: usize = 1024;

/// Pages that were sent less than this ago are still on their way.
const ON_THE_WAY: Duration = Duration::from_millis(4);

/// Runs that are remembered as such. At 10 Gbit/s a thousand full ones take 50 ms.
const RECENT_RUNS: usize = 1024;

/// What waits to be sent because somebody asked for it, and what was sent just now.
#[derive(Debug)]
pub(super) struct Demand {
    /// In the file.
    pages: u32,
    /// Readers wait for these.
    now: Queue,
    /// Readers will probably want these next. No page is in both.
    later: Queue,
    recent: Recent,
    pages_sent: u64,
}

impl Demand {
    /// `pages`: those of the file.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            pages,
            now: Queue::default(),
            later: Queue::default(),
            recent: Recent::default(),
            pages_sent: 0,
        }
    }

    /// Queues what is not queued nor on its way.
    pub(super) fn handle_want(&mut self, token: &Token, want: &Want, now: Instant) {
        self.recent.forget_before(now);
        for &pair in want.now.iter().take(REQUEST_PAIRS) {
            let asked = self.in_file(pair);
            for range in self.recent.missing(asked, self.now.room(token)) {
                for queued in self.now.push(token, range, now) {
                    self.later.remove(queued);
                }
            }
        }
        for &pair in want.later.iter().take(REQUEST_PAIRS) {
            let asked = self.in_file(pair);
            for range in self.recent.missing(asked, self.later.room(token)) {
                for range in self.now.missing(range, self.later.room(token)) {
                    self.later.push(token, range, now);
                }
            }
        }
    }

    /// These pages went out, on demand or not: nobody has to wait for them any more.
    pub(super) fn on_sent(&mut self, range: PageRange, now: Instant) {
        self.now.remove(range);
        self.later.remove(range);
        self.recent.insert(range, now);
    }

    /// Nobody is left who asked.
    pub(super) fn clear(&mut self) {
        self.now = Queue::default();
        self.later = Queue::default();
    }

    /// Since when readers wait for pages; `None` while none does.
    pub(super) fn urgent_since(&self) -> Option<Instant> {
        self.now.since()
    }

    /// Since when there are pages that readers will want next.
    pub(super) fn later_since(&self) -> Option<Instant> {
        self.later.since()
    }

    /// How many pages of at most `budget` go out next for readers that wait.
    pub(super) fn next_urgent(&self, budget: u32) -> u32 {
        self.now.next(budget).map_or(0, PageRange::len)
    }

    /// The next consecutive pages that readers wait for, at most `budget`.
    pub(super) fn poll_urgent(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let run = self.now.next(budget)?;
        Some(self.sent(run, now))
    }

    /// The next consecutive pages that readers will want next, at most `budget`.
    pub(super) fn poll_later(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let run = self.later.next(budget)?;
        Some(self.sent(run, now))
    }

    /// Pages that went out on demand.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    fn sent(&mut self, run: PageRange, now: Instant) -> PageRange {
        self.on_sent(run, now);
        self.pages_sent += u64::from(run.len());
        run
    }

    /// Pages of the file out of a pair of the first, counted from 1, and how many.
    fn in_file(&self, (first, count): (u32, u32)) -> PageRange {
        let end = (u64::from(first) + u64::from(count)).saturating_sub(1);
        let end = u32::try_from(end).map_or(self.pages, |end| end.min(self.pages));
        PageRange::new(first.saturating_sub(1).min(end), end)
    }
}

fn first_of(run: PageRange, budget: u32) -> PageRange {
    PageRange::new(run.start.0, run.start.0.saturating_add(budget).min(run.end.0))
}

/// Pages in the order of asking.
#[derive(Debug, Default)]
struct Queue {
    /// Who asked for what, the oldest first. Pages that were sent meanwhile stay until they would have their turn. The front
    /// begins with a page that waits.
    asked: VecDeque<(PageRange, Token)>,
    /// Pages of `asked`, those that were sent included.
    kept: u32,
    /// The same by who asked; nobody has 0.
    by_member: BTreeMap<Token, u32>,
    /// Pages that wait, each since it was asked for.
    waiting: RangeMap<()>,
    /// Since when there are some without interruption.
    since: Option<Instant>,
}

impl Queue {
    fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Pages that this member may queue yet.
    fn room(&self, token: &Token) -> u32 {
        let own = self.by_member.get(token).map_or(0, |kept| *kept);
        (QUEUE_PAGES - self.kept).min(MEMBER_PAGES.saturating_sub(own))
    }

    /// The first runs that do not wait here, `limit` of them: each has a page at least.
    fn missing(&self, range: PageRange, limit: u32) -> Vec<PageRange> {
        self.waiting.gaps(range).take(limit as usize).collect()
    }

    /// Queues what of the range does not wait yet, as far as there is room; returns what waits of it now and did not before.
    fn push(&mut self, token: &Token, range: PageRange, now: Instant) -> Vec<PageRange> {
        let mut queued = Vec::new();
        for gap in self.missing(range, self.room(token)) {
            let run = first_of(gap, self.room(token));
            if run.is_empty() {
                break;
            }
            self.kept += run.len();
            *self.by_member.entry(token.clone()).or_insert(0) += run.len();
            self.asked.push_back((run, token.clone()));
            self.waiting.insert(run, ());
            self.since.get_or_insert(now);
            queued.push(run);
        }
        queued
    }

    /// These do not wait any more.
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

    /// Forgets the first pages of the front, which is gone without pages.
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

    /// What goes out next, at most `budget` pages and at least one: the first pages of the front, and those that were
    /// asked for next if they follow.
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

/// Pages that are still on their way, unless they were lost.
#[derive(Debug, Default)]
struct Recent {
    /// When each was sent last.
    sent: RangeMap<Instant>,
    /// What was sent when, the oldest first.
    order: VecDeque<(PageRange, Instant)>,
}

impl Recent {
    fn insert(&mut self, range: PageRange, now: Instant) {
        self.forget_before(now);
        if self.order.len() >= RECENT_RUNS {
            self.forget_oldest();
        }
        self.sent.insert(range, now);
        self.order.push_back((range, now));
    }

    fn forget_before(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(_, at)| *at + ON_THE_WAY <= now) {
            self.forget_oldest();
        }
    }

    /// What was sent again since stays.
    fn forget_oldest(&mut self) {
        let Some((range, at)) = self.order.pop_front() else { return };
        let old = self.sent.parts(range).filter(|(_, sent)| *sent <= at);
        let old: Vec<_> = old.map(|(part, _)| part).collect();
        for part in old {
            self.sent.remove(part);
        }
    }

    /// The first runs that are not on their way, `limit` of them: each has a page at least.
    fn missing(&self, range: PageRange, limit: u32) -> Vec<PageRange> {
        self.sent.gaps(range).take(limit as usize).collect()
    }
}

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;

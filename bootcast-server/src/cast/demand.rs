//! Demanded pages, which go out before the stream. docs/PROTOCOL.md, "Demand".
//!
//! Requests cannot be trusted: one may name pages that the file does not have, all of 2^32, or the
//! same page a thousand times. The queues bound memory and work, and limit each member and each
//! principal to a share.

mod queue;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::limits::WANT_RUNS_READ;
use bootcast_proto::{PageIndex, PageRange, RangeMap};

pub(in crate::cast) use queue::Asker;
use queue::Queue;

/// Time for which a page counts as in flight to a member that states no delay.
const DEFAULT_DELAY: Duration = Duration::from_millis(4);

/// Longest delay that a member can state; longer ones are cut.
const MAX_DELAY: Duration = Duration::from_millis(100);

/// Time for which sent pages are remembered. A member that lags behind by more may get pages twice.
const HISTORY: Duration = Duration::from_millis(500);

/// Most sent runs that are remembered. At 10 Gbit/s a thousand full ones take 50 ms.
const MAX_HISTORY_RUNS: usize = 1024;

/// Queues of demanded pages, and the pages sent recently.
#[derive(Debug)]
pub(super) struct Demand {
    /// Number of pages in the file.
    pages: u32,
    /// Pages that readers wait for.
    urgent: Queue,
    /// Pages that readers will probably need next.
    later: Queue,
    /// Pages beyond the rations of principals, which wait until nothing else is to be sent. No page
    /// is in two queues.
    idle: Queue,
    sent_pages: SentPages,
    /// Last page of the newest want if its member's path is lossy, with the member. It is sent
    /// twice.
    repeat: Option<(PageIndex, Asker)>,
    /// Number of pages sent on demand.
    pages_sent: u64,
}

impl Demand {
    /// Creates empty queues for a file of `pages` pages.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            pages,
            urgent: Queue::default(),
            later: Queue::default(),
            idle: Queue::default(),
            sent_pages: SentPages::default(),
            repeat: None,
            pages_sent: 0,
        }
    }

    /// Queues the demanded pages that are neither queued nor in flight to the member. Returns how
    /// many go before others now.
    pub(super) fn handle_want(
        &mut self,
        asker: impl Into<Asker>,
        want: &Want,
        now: Instant,
    ) -> u32 {
        let asker = &asker.into();
        let before = self.urgent.requested_pages + self.later.requested_pages;
        self.queue(asker, want, now);
        let after = self.urgent.requested_pages + self.later.requested_pages;
        after.saturating_sub(before)
    }

    /// Queues demanded pages behind everything else, unless they go before it anyway. Returns how
    /// many are queued so.
    pub(super) fn handle_idle_want(&mut self, asker: &Asker, want: &Want, now: Instant) -> u32 {
        let before = self.idle.requested_pages;
        self.sent_pages.forget_before(now);
        let arrivals = self.sent_pages.arrivals(want, now);
        for &run in want.now.iter().chain(&want.later).take(2 * WANT_RUNS_READ) {
            let demanded = self.in_file(run);
            let room = self.idle.room(asker);
            for range in self.sent_pages.not_in_flight(demanded, &arrivals, room) {
                for range in self.urgent.not_queued(range, room) {
                    for range in self.later.not_queued(range, room) {
                        self.idle.push_back(asker, range, now);
                    }
                }
            }
        }
        self.idle.requested_pages - before
    }

    fn queue(&mut self, asker: &Asker, want: &Want, now: Instant) {
        self.sent_pages.forget_before(now);
        let arrivals = self.sent_pages.arrivals(want, now);
        let (mut lost, mut newest) = (Vec::new(), None);
        for &run in want.now.iter().take(WANT_RUNS_READ) {
            if self.urgent.room(asker) == 0 {
                break;
            }
            let demanded = self.in_file(run);
            let room = self.urgent.room(asker);
            for range in self.sent_pages.not_in_flight(demanded, &arrivals, room) {
                lost.extend(self.sent_pages.parts(range));
                let unsent = self.sent_pages.gaps(range);
                for queued in
                    unsent.into_iter().flat_map(|run| self.urgent.push_back(asker, run, now))
                {
                    self.later.remove(queued);
                    self.idle.remove(queued);
                    newest = Some(queued);
                }
            }
        }
        // Lost pages were demanded earlier than all waiting ones.
        for range in lost.into_iter().rev() {
            for queued in self.urgent.push_front(asker, range, now) {
                self.later.remove(queued);
                self.idle.remove(queued);
                newest.get_or_insert(queued);
            }
        }
        if let Some(newest) = newest {
            let page = PageIndex(newest.end.0 - 1);
            self.repeat = want.lossy.then(|| (page, asker.clone()));
        }
        for &run in want.later.iter().take(WANT_RUNS_READ) {
            let demanded = self.in_file(run);
            let room = self.later.room(asker);
            for range in self.sent_pages.not_in_flight(demanded, &arrivals, room) {
                for range in self.urgent.not_queued(range, self.later.room(asker)) {
                    for queued in self.later.push_back(asker, range, now) {
                        self.idle.remove(queued);
                    }
                }
            }
        }
    }

    /// Records pages that were sent, on demand or not, and removes them from the queues.
    pub(super) fn on_sent(&mut self, range: PageRange, now: Instant) {
        self.urgent.remove(range);
        self.later.remove(range);
        self.idle.remove(range);
        self.sent_pages.insert(range, now);
    }

    /// Drops all demands, because no member is left.
    pub(super) fn clear(&mut self) {
        self.repeat = None;
        self.urgent = Queue::default();
        self.later = Queue::default();
        self.idle = Queue::default();
    }

    /// Returns when readers began to wait for pages; `None` while none waits.
    pub(super) fn urgent_since(&self) -> Option<Instant> {
        self.urgent.since()
    }

    /// Returns when the queue of later pages became non-empty; `None` while it is empty.
    pub(super) fn later_since(&self) -> Option<Instant> {
        self.later.since()
    }

    /// Returns an upper bound of the number of pages that readers wait for. It may include pages
    /// that were sent meanwhile.
    pub(super) fn urgent_pages(&self) -> u32 {
        self.urgent.requested_pages
    }

    /// Returns how many pages [`Self::poll_urgent`] would return.
    pub(super) fn next_urgent(&self, budget: u32) -> u32 {
        self.urgent.next(budget).map_or(0, PageRange::len)
    }

    /// Returns the next consecutive pages that readers wait for, at most `budget`.
    pub(super) fn poll_urgent(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let (run, turn) = (self.urgent.next(budget)?, self.urgent.turn());
        let run = self.hand_out(run, now);
        self.urgent.end_turn(turn);
        if self.urgent.since().is_none() {
            self.repeat_last_of(run, now);
        }
        Some(run)
    }

    /// Queues the last page of the run again if it ends a want of a member on a lossy path. The
    /// second copy shows the member at once which pages of the want were lost.
    fn repeat_last_of(&mut self, run: PageRange, now: Instant) {
        let Some((page, asker)) = self.repeat.take() else { return };
        if page.0 + 1 == run.end.0 {
            self.urgent.push_back(&asker, PageRange::single(page), now);
        }
    }

    /// Returns the next consecutive pages of the queue of later pages, at most `budget`.
    pub(super) fn poll_later(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let (run, turn) = (self.later.next(budget)?, self.later.turn());
        let run = self.hand_out(run, now);
        self.later.end_turn(turn);
        Some(run)
    }

    /// Returns when the queue of pages beyond the rations became non-empty; `None` while it is
    /// empty.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.idle.since()
    }

    /// Returns the next consecutive pages beyond the rations, at most `budget`.
    pub(super) fn poll_idle(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let (run, turn) = (self.idle.next(budget)?, self.idle.turn());
        let run = self.hand_out(run, now);
        self.idle.end_turn(turn);
        Some(run)
    }

    /// Number of pages sent on demand.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    /// Records a run as sent on demand and returns it.
    fn hand_out(&mut self, run: PageRange, now: Instant) -> PageRange {
        self.on_sent(run, now);
        self.pages_sent += u64::from(run.len());
        assert!(run.end.0 <= self.pages, "pages {run} are demanded of a file of {}", self.pages);
        debug_assert!(
            ![&self.urgent, &self.later, &self.idle].iter().any(|queue| queue.waits(run)),
            "{run} would be sent twice"
        );
        run
    }

    /// Returns those pages of a pair that the file has. A pair states the first page, counted from
    /// 1, and the number of pages.
    fn in_file(&self, run: PageRange) -> PageRange {
        let end = run.end.0.min(self.pages);
        PageRange::new(run.start.0.min(end), end)
    }
}

/// Returns the first `budget` pages of a run, or all of it.
pub(super) fn first_of(run: PageRange, budget: u32) -> PageRange {
    PageRange::new(run.start.0, run.start.0.saturating_add(budget).min(run.end.0))
}

/// Number and time of a sent run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SentRun {
    /// Number of the run. It orders runs that left at the same time.
    number: u64,
    at: Instant,
}

/// Pages that arrived at a member, as far as its want says.
#[derive(Debug)]
struct Arrivals {
    /// Page that arrived last, if it was sent recently, and its run.
    newest: Option<(PageIndex, SentRun)>,
    /// If pages stopped arriving, those sent at this time or before are no longer in flight.
    lost_until: Option<Instant>,
}

impl Arrivals {
    /// Returns the pages of `part`, sent in `run`, that are in flight to the member: the last ones
    /// of the part, or none. Datagrams keep their order, so pages sent before one that arrived are
    /// lost, however recent they are.
    fn in_flight(&self, part: PageRange, run: SentRun) -> PageRange {
        let none = PageRange::new(part.end.0, part.end.0);
        if self.lost_until.is_some_and(|lost_until| run.at <= lost_until) {
            return none;
        }
        match self.newest {
            Some((_, newest)) if run.number < newest.number => none,
            Some((page, newest)) if run.number == newest.number => {
                PageRange::new(part.start.0.max(page.0).min(part.end.0), part.end.0)
            }
            Some(_) | None => part,
        }
    }
}

/// Pages that were sent recently.
#[derive(Debug, Default)]
struct SentPages {
    /// Run in which each page was last sent.
    last_run: RangeMap<SentRun>,
    /// Pages of each run, oldest first.
    runs: VecDeque<(PageRange, SentRun)>,
    /// Number of the newest run.
    newest: u64,
}

impl SentPages {
    /// Records a run that is sent now.
    fn insert(&mut self, range: PageRange, now: Instant) {
        self.forget_before(now);
        if self.runs.len() >= MAX_HISTORY_RUNS {
            self.forget_oldest();
        }
        self.newest += 1;
        let run = SentRun { number: self.newest, at: now };
        self.last_run.insert(range, run);
        self.runs.push_back((range, run));
        debug_assert!(self.runs.len() <= MAX_HISTORY_RUNS, "the history would grow without end");
    }

    /// Forgets runs sent more than [`HISTORY`] before `now`.
    fn forget_before(&mut self, now: Instant) {
        while self.runs.front().is_some_and(|(_, run)| run.at + HISTORY <= now) {
            self.forget_oldest();
        }
    }

    /// Forgets the oldest run, except for pages sent again since.
    fn forget_oldest(&mut self) {
        let Some((range, oldest)) = self.runs.pop_front() else { return };
        let old = self.last_run.parts(range).filter(|(_, run)| run.number <= oldest.number);
        let old: Vec<_> = old.map(|(part, _)| part).collect();
        for part in old {
            self.last_run.remove(part);
        }
        debug_assert!(
            !self.runs.is_empty() || self.last_run.is_empty(),
            "pages are remembered of runs that are forgotten"
        );
    }

    /// Evaluates which pages arrived at the member that sent this want.
    fn arrivals(&self, want: &Want, now: Instant) -> Arrivals {
        let newest = want.came.checked_sub(1).map(PageIndex);
        let newest = newest.and_then(|page| {
            let (_, run) = self.last_run.parts(PageRange::single(page)).next()?;
            Some((page, run))
        });
        let delay = match want.delay_us {
            0 => DEFAULT_DELAY,
            delay => Duration::from_micros(delay.into()).min(MAX_DELAY),
        };
        // While pages arrive, their order alone tells which are lost.
        let is_silent = want.late || newest.is_none();
        Arrivals { newest, lost_until: now.checked_sub(delay).filter(|_| is_silent) }
    }

    /// Returns the parts of a range that were sent recently.
    fn parts(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        self.last_run.parts(range).map(|(part, _)| part)
    }

    /// Returns the parts of a range that were not sent recently.
    fn gaps(&self, range: PageRange) -> Vec<PageRange> {
        self.last_run.gaps(range).collect()
    }

    /// Returns the parts of a range that are not in flight to the member, at most `limit` of them.
    fn not_in_flight(&self, range: PageRange, arrivals: &Arrivals, limit: u32) -> Vec<PageRange> {
        let in_flight = self.last_run.parts(range).map(|(part, run)| arrivals.in_flight(part, run));
        let end = PageRange::new(range.end.0, range.end.0);
        let mut next = range.start.0;
        let in_flight = in_flight.filter(|part| !part.is_empty());
        let gaps = in_flight.chain([end]).filter_map(|part| {
            let gap = PageRange::new(next, part.start.0);
            next = part.end.0;
            (!gap.is_empty()).then_some(gap)
        });
        gaps.take(limit as usize).collect()
    }
}

#[cfg(test)]
#[path = "demand_tests.rs"]
pub(in crate::cast) mod tests;

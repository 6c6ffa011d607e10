//! Tracks demanded pages, and detects which of them were lost on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::{PageIndex, PageRange};

use super::patience::Patience;

/// Maximum number of times that the order of arrival alone has a page demanded again. After that,
/// only a timeout does.
pub(super) const QUICK_TIMES: u32 = 3;
/// Number of demanded pages that must arrive without a loss until the path no longer counts as
/// lossy. On a lossy path, the server sends the last page of a request twice.
pub(super) const LOSSY_PAGES: u32 = 1000;

/// Missing pages that readers wait for.
///
/// The server sends demanded pages in the order of the demands. So a page is lost if one arrives
/// that was demanded later. If no later one is left, a timeout decides (*patience*). It starts when
/// the server says that the page has left its queue, and again with each page that arrives.
#[derive(Debug, Default)]
pub(super) struct AskedPages {
    pages: BTreeMap<PageIndex, Asked>,
    /// When to demand each page: at once for new and lost ones, at the timeout for those demanded
    /// more than once.
    due: BTreeSet<(Instant, PageIndex)>,
    /// Demanded pages, in the order of the demands.
    order: BTreeMap<u64, PageIndex>,
    /// Positions in `order` of pages that were demanded once.
    once: BTreeSet<u64>,
    /// Requests with pages in `order`, and perhaps older ones.
    requests: VecDeque<Request>,
    /// Number of demands so far, and thus the position of the next one in the order.
    turns: u64,
    /// Pages that were not demanded yet.
    fresh: usize,
    /// When a demanded page last arrived.
    progress: Option<Instant>,
    /// Queueing time that the server last reported.
    queue: Duration,
    patience: Patience,
    /// Page that arrived last, with its time.
    came: Option<(PageIndex, Instant)>,
    /// Page that had arrived last when pages were last stored. All pages that arrived before it
    /// are stored.
    stored: Option<PageIndex>,
    /// Missing pages demanded before this position in the order are lost.
    overtaken: u64,
    /// Whether the timeout expired while nothing at all arrived.
    is_late: bool,
    /// Number of pages for which the path still counts as lossy.
    lossy_for: u32,
}

/// A demanded page.
#[derive(Clone, Copy, Debug)]
struct Asked {
    since: Instant,
    due: Option<Instant>,
    /// Position of its last demand in the order, and that of the first one.
    turn: Option<u64>,
    first_turn: u64,
    times: u32,
}

/// A request, by the positions of its pages in the order.
#[derive(Debug)]
struct Request {
    first: u64,
    end: u64,
    at: Instant,
    /// Time until its pages leave the server; a guess until the answer states it.
    queue: Duration,
    is_answered: bool,
}

impl AskedPages {
    /// Forgets all pages. Keeps what was learned about the path.
    pub(super) fn clear(&mut self) {
        let patience = std::mem::take(&mut self.patience);
        let (turns, lossy_for) = (self.turns, self.lossy_for);
        *self = Self { turns, patience, lossy_for, ..Self::default() };
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        let pages = self.pages.len();
        assert!(
            self.fresh <= pages && self.order.len() <= pages && self.due.len() <= pages,
            "{} new, {} demanded and {} due of {pages} pages",
            self.fresh,
            self.order.len(),
            self.due.len()
        );
        assert!(self.once.len() <= self.order.len(), "a demand counts twice");
        // Pages without a request would have no timeout, and their readers would wait for ever.
        assert!(self.order.is_empty() || !self.requests.is_empty(), "demands without a request");
        debug_assert!(self.order.last_key_value().is_none_or(|(turn, _)| *turn < self.turns));
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub(super) fn contains(&self, page: PageIndex) -> bool {
        self.pages.contains_key(&page)
    }

    /// Whether this page was demanded and is not stored yet.
    pub(super) fn was_asked_for(&self, page: PageIndex) -> bool {
        self.pages.get(&page).is_some_and(|asked| asked.times > 0)
    }

    /// Whether a demanded page has not arrived.
    pub(super) fn is_owed(&self) -> bool {
        self.pages.len() > self.fresh
    }

    /// Demanded pages within a range.
    pub(super) fn within(&self, pages: PageRange) -> impl Iterator<Item = PageIndex> + '_ {
        self.pages.range(pages.start..pages.end).map(|(page, _)| *page)
    }

    /// Adds a page that a reader waits for and that was not demanded yet.
    pub(super) fn add(&mut self, page: PageIndex, now: Instant) {
        let asked = Asked { since: now, due: Some(now), turn: None, first_turn: 0, times: 0 };
        if self.pages.insert(page, asked).is_none() {
            self.fresh += 1;
        }
        self.due.insert((now, page));
        self.assert_invariants();
    }

    /// Forgets a page that no reader waits for any more.
    pub(super) fn forget(&mut self, page: PageIndex) {
        self.wait_no_more(page);
        if self.pages.remove(&page).is_some_and(|asked| asked.times == 0) {
            self.fresh -= 1;
        }
        self.forget_requests();
        self.assert_invariants();
    }

    /// Removes a page from the order of demands and from those that are due.
    fn wait_no_more(&mut self, page: PageIndex) {
        let Some(asked) = self.pages.get_mut(&page) else { return };
        if let Some(turn) = asked.turn.take() {
            self.order.remove(&turn);
            self.once.remove(&turn);
        }
        if let Some(due) = asked.due.take() {
            self.due.remove(&(due, page));
        }
    }

    fn forget_requests(&mut self) {
        let first = self.order.first_key_value().map_or(u64::MAX, |(turn, _)| *turn);
        while self.requests.front().is_some_and(|request| request.end <= first) {
            self.requests.pop_front();
        }
    }

    fn request_of(&self, turn: u64) -> Option<&Request> {
        let behind = self.requests.partition_point(|request| request.first <= turn);
        self.requests.get(behind.checked_sub(1)?).filter(|request| turn < request.end)
    }

    /// Handles the datagram of a page, which is stored next.
    pub(super) fn came(&mut self, page: PageIndex, now: Instant) {
        self.came = Some((page, now));
        self.is_late = false;
        let Some(asked) = self.pages.get(&page).copied().filter(|asked| asked.times > 0) else {
            return;
        };
        self.lossy_for = self.lossy_for.saturating_sub(1);
        self.progress = Some(now);
        if let Some(turn) = asked.turn.filter(|_| asked.times == 1)
            && let Some(request) = self.request_of(turn).filter(|request| turn + 1 == request.end)
        {
            // The last page of a request arrives when the server's queue is empty. If it overtakes
            // the answer, there was no queue.
            let queue = if request.is_answered { request.queue } else { Duration::ZERO };
            self.patience.measured(now.saturating_duration_since(request.at + queue));
        }
        self.wait_no_more(page);
        self.overtaken = self.overtaken.max(asked.first_turn);
        self.forget_requests();
        self.assert_invariants();
    }

    /// Records that all pages that arrived are stored.
    pub(super) fn all_stored(&mut self) {
        let Some((page, now)) = self.came else { return };
        self.stored = Some(page);
        let earlier: Vec<_> = self.order.range(..self.overtaken).map(|(_, page)| *page).collect();
        for page in earlier {
            if self.pages[&page].times <= QUICK_TIMES {
                self.ask_again(page, now);
                self.lossy_for = LOSSY_PAGES;
            }
        }
    }

    pub(super) fn ask_again(&mut self, page: PageIndex, now: Instant) {
        self.wait_no_more(page);
        if let Some(asked) = self.pages.get_mut(&page) {
            asked.due = Some(now);
            self.due.insert((now, page));
        }
    }

    /// When the timeout of the pages demanded once expires, oldest request first.
    fn patience_ends(&self) -> Option<Instant> {
        let request = self.request_of(*self.once.first()?)?;
        let out = request.at + request.queue;
        Some(self.progress.map_or(out, |progress| progress.max(out)) + self.patience.patience(1))
    }

    /// Declares pages lost whose timeout has expired. Call it only after all received datagrams
    /// were handled: a busy machine must not take its own delay for a loss.
    pub(super) fn lose_late(&mut self, now: Instant) {
        let silent_since = self.came.map(|(_, at)| at + self.patience.patience(1));
        if self.patience_ends().is_some_and(|at| at <= now) {
            self.patience.ran_out();
            self.ask_request_again(now);
        }
        let is_silent = silent_since.is_none_or(|since| since <= now);
        self.is_late = is_silent && self.is_losing(now);
    }

    /// Demands the pages of the oldest request again that were demanded once.
    fn ask_request_again(&mut self, now: Instant) {
        let Some(&first) = self.once.first() else { return };
        let end = self.request_of(first).map_or(first + 1, |request| request.end);
        let late: Vec<_> = self.once.range(first..end).map(|turn| self.order[turn]).collect();
        for page in late {
            self.ask_again(page, now);
        }
        self.forget_requests();
    }

    /// When something is due; may lie in the past.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.first().map(|(due, _)| *due);
        [due, self.patience_ends()].into_iter().flatten().min()
    }

    /// Whether a lost page must be demanded by now.
    pub(super) fn is_losing(&self, now: Instant) -> bool {
        let mut due = self.due.iter().take_while(|(due, _)| *due <= now);
        due.any(|(_, page)| self.was_asked_for(*page))
    }

    /// Selects the pages to demand now, longest waits first, as long as `add` accepts them. Returns
    /// the positions of this request in the order. Calls `gave_up` for pages that were demanded too
    /// often without arriving.
    pub(super) fn gather(
        &mut self,
        now: Instant,
        mut add: impl FnMut(PageIndex) -> bool,
        mut gave_up: impl FnMut(PageIndex, Instant, u32),
    ) -> Option<u64> {
        let first = self.turns;
        while let Some(&(due, page)) = self.due.first().filter(|(due, _)| *due <= now) {
            if !add(page) {
                break;
            }
            // The timeout of pages demanded more than once is `due`.
            self.wait_no_more(page);
            let asked = self.pages.get_mut(&page).expect("what is due is asked for");
            debug_assert!(asked.due.is_none() && due <= now);
            if asked.times == 0 {
                (self.fresh, asked.first_turn) = (self.fresh - 1, self.turns);
            }
            asked.times = asked.times.saturating_add(1);
            asked.turn = Some(self.turns);
            if asked.times == 1 {
                self.once.insert(self.turns);
            } else {
                let again = now + self.queue + self.patience.patience(asked.times);
                asked.due = Some(again);
                self.due.insert((again, page));
            }
            gave_up(page, asked.since, asked.times);
            self.order.insert(self.turns, page);
            self.turns += 1;
        }
        self.forget_requests();
        (first < self.turns).then(|| {
            let (end, queue) = (self.turns, self.queue);
            self.requests.push_back(Request { first, end, at: now, queue, is_answered: false });
            self.assert_invariants();
            first
        })
    }

    /// Handles the answer to the request that starts at this position in the order. Its pages leave
    /// the server after this time.
    pub(super) fn answered(&mut self, first: u64, queue: Duration) {
        let Some(request) = self.requests.iter_mut().find(|it| it.first == first) else { return };
        let longer = queue.saturating_sub(request.queue);
        (request.queue, request.is_answered) = (queue, true);
        let places = request.first..request.end;
        let pages: Vec<_> = self.order.range(places).map(|(_, page)| *page).collect();
        self.queue = queue;
        for page in pages {
            let Some(asked) = self.pages.get_mut(&page) else { continue };
            if let Some(due) = &mut asked.due {
                self.due.remove(&(*due, page));
                *due += longer;
                self.due.insert((*due, page));
            }
        }
    }

    /// Last page that arrived and is stored, counted from 1; 0 if there is none.
    pub(super) fn last_came(&self) -> u32 {
        self.stored.map_or(0, |page| page.0 + 1)
    }

    /// Time within which a page usually arrives; `None` before it is known.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.patience.usual()
    }

    /// Whether nothing arrived during the timeout of the pages that are demanded again.
    pub(super) fn is_late(&self) -> bool {
        self.is_late
    }

    /// Whether pages were lost recently.
    pub(super) fn is_lossy(&self) -> bool {
        self.lossy_for > 0
    }
}

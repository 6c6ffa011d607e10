//! Pages that the server is asked for, and which of them got lost on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bootcast_proto::{PageIndex, PageRange};

use super::patience::Patience;

/// So often in a row the order of arrival alone has a page asked for again. Then it takes patience.
pub(super) const QUICK_TIMES: u32 = 3;
/// After a loss so many pages that come are asked for with a page to spare.
pub(super) const LOSSY_PAGES: u32 = 1000;

/// Pages that readers wait for and that are not here.
///
/// The server sends what it is asked for in the order of asking. Hence a page is lost when one came
/// that was asked for later. Where none is left to come later, a page is lost when patience is at
/// its end: that begins when the server says that the page is out, and anew with each page that
/// comes.
#[derive(Debug, Default)]
pub(super) struct AskedPages {
    pages: BTreeMap<PageIndex, Asked>,
    /// When to ask for which page: at once for new and lost ones, when patience is at its end for
    /// those that were asked for more than once.
    due: BTreeSet<(Instant, PageIndex)>,
    /// Pages that the server was asked for, in the order of asking.
    order: BTreeMap<u64, PageIndex>,
    /// Places in `order` of pages that were asked for once.
    once: BTreeSet<u64>,
    /// Requests with pages in `order`, and perhaps older ones.
    requests: VecDeque<Request>,
    /// Pages asked for so far: the next one's place in the order.
    turns: u64,
    /// Pages that the server was not asked for yet.
    fresh: usize,
    /// When a page came last that was asked for.
    progress: Option<Instant>,
    /// What the server told last of its queue.
    queue: Duration,
    patience: Patience,
    /// The page that came last, and when.
    came: Option<(PageIndex, Instant)>,
    /// The same as of when pages were stored last: up to it there is nothing that came and is not
    /// stored.
    stored: Option<PageIndex>,
    /// What was asked for before this place in the order, and did not come, is lost.
    overtaken: u64,
    /// Patience ended while nothing at all came.
    is_late: bool,
    /// Pages yet for which the path counts as lossy.
    lossy_for: u32,
}

/// A page that is asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    since: Instant,
    due: Option<Instant>,
    /// Its place in the order of asking, and that of the first time.
    turn: Option<u64>,
    first_turn: u64,
    times: u32,
}

/// A request, by the places of its pages in the order of asking.
#[derive(Debug)]
struct Request {
    first: u64,
    end: u64,
    at: Instant,
    /// Until its pages are out. A guess until the answer tells.
    queue: Duration,
    is_answered: bool,
}

impl AskedPages {
    /// Forgets all pages. What was learned of the path stays.
    pub(super) fn clear(&mut self) {
        let patience = std::mem::take(&mut self.patience);
        let (turns, lossy_for) = (self.turns, self.lossy_for);
        *self = Self { turns, patience, lossy_for, ..Self::default() };
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

    /// Whether the server was asked for this page, which is not stored yet.
    pub(super) fn was_asked_for(&self, page: PageIndex) -> bool {
        self.pages.get(&page).is_some_and(|asked| asked.times > 0)
    }

    /// Whether the server owes a page.
    pub(super) fn is_owed(&self) -> bool {
        self.pages.len() > self.fresh
    }

    /// The pages of a range that are asked for.
    pub(super) fn within(&self, pages: PageRange) -> impl Iterator<Item = PageIndex> + '_ {
        self.pages.range(pages.start..pages.end).map(|(page, _)| *page)
    }

    /// A reader waits for a page that is not asked for yet.
    pub(super) fn add(&mut self, page: PageIndex, now: Instant) {
        let asked = Asked { since: now, due: Some(now), turn: None, first_turn: 0, times: 0 };
        if self.pages.insert(page, asked).is_none() {
            self.fresh += 1;
        }
        self.due.insert((now, page));
    }

    /// Nobody waits for this page any more.
    pub(super) fn forget(&mut self, page: PageIndex) {
        self.wait_no_more(page);
        if self.pages.remove(&page).is_some_and(|asked| asked.times == 0) {
            self.fresh -= 1;
        }
        self.forget_requests();
    }

    /// Takes a page out of the order of asking, and out of what is due.
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

    /// The datagram of a page came, which is to be stored next.
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
            // The last of a request comes when the server's queue is over. One that overtakes the
            // answer met none.
            let queue = if request.is_answered { request.queue } else { Duration::ZERO };
            self.patience.measured(now.saturating_duration_since(request.at + queue));
        }
        self.wait_no_more(page);
        self.overtaken = self.overtaken.max(asked.first_turn);
        self.forget_requests();
    }

    /// All pages that came are stored, or were before.
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

    fn ask_again(&mut self, page: PageIndex, now: Instant) {
        self.wait_no_more(page);
        if let Some(asked) = self.pages.get_mut(&page) {
            asked.due = Some(now);
            self.due.insert((now, page));
        }
    }

    /// When patience with the pages is at its end that were asked for once, the oldest first.
    fn patience_ends(&self) -> Option<Instant> {
        let request = self.request_of(*self.once.first()?)?;
        let out = request.at + request.queue;
        Some(self.progress.map_or(out, |progress| progress.max(out)) + self.patience.patience(1))
    }

    /// Takes pages for lost with which patience is at its end. To be called when all datagrams were
    /// looked at that have arrived: a machine that is busy must not take its own delay for a loss.
    pub(super) fn lose_late(&mut self, now: Instant) {
        let silent_since = self.came.map(|(_, at)| at + self.patience.patience(1));
        if self.patience_ends().is_some_and(|at| at <= now) {
            self.patience.ran_out();
            self.ask_request_again(now);
        }
        let is_silent = silent_since.is_none_or(|since| since <= now);
        self.is_late = is_silent && self.is_losing(now);
    }

    /// Has the pages asked for again that belong to the oldest request and were asked for once.
    fn ask_request_again(&mut self, now: Instant) {
        let Some(&first) = self.once.first() else { return };
        let end = self.request_of(first).map_or(first + 1, |request| request.end);
        let late: Vec<_> = self.once.range(first..end).map(|turn| self.order[turn]).collect();
        for page in late {
            self.ask_again(page, now);
        }
        self.forget_requests();
    }

    /// When something is due; may have passed.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.first().map(|(due, _)| *due);
        [due, self.patience_ends()].into_iter().flatten().min()
    }

    /// Whether a page must be asked for again by now.
    pub(super) fn is_losing(&self, now: Instant) -> bool {
        let mut due = self.due.iter().take_while(|(due, _)| *due <= now);
        due.any(|(_, page)| self.was_asked_for(*page))
    }

    /// The pages to ask for now, those that have waited longest first, as long as `add` takes them.
    /// Returns the places of this request in the order of asking; `gave_up` is told of pages that
    /// were asked for so often that they do not come.
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
            // Of those that were asked for more than once patience ended with `due`.
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
            first
        })
    }

    /// The server took the request that began at this place in the order: its pages are out after
    /// this time.
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

    /// The page that came last of those that are stored, counted from 1; 0 where none did.
    pub(super) fn last_came(&self) -> u32 {
        self.stored.map_or(0, |page| page.0 + 1)
    }

    /// Time within which a page usually comes; `None` before that is known.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.patience.usual()
    }

    /// Whether the pages that are asked for again were waited for in silence.
    pub(super) fn is_late(&self) -> bool {
        self.is_late
    }

    /// Whether pages got lost lately.
    pub(super) fn is_lossy(&self) -> bool {
        self.lossy_for > 0
    }
}

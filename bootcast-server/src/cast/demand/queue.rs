//! Queue of demanded pages.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bootcast_proto::limits::WANT_PAGES;
use bootcast_proto::{PageRange, RangeMap, Token};

use super::first_of;
use crate::cast::principal::Principal;

/// Most pages in a queue: it takes sixteen members of four principals to fill one.
pub(super) const QUEUE_PAGES: u32 = 65_536;

/// Most pages of one principal in a queue.
pub(super) const PRINCIPAL_PAGES: u32 = QUEUE_PAGES / 4;

/// Member that demands pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cast) struct Asker {
    /// Name of the membership.
    pub(in crate::cast) token: Token,
    /// Whose it is, if that is known.
    pub(in crate::cast) principal: Option<Principal>,
}

impl From<&Token> for Asker {
    fn from(token: &Token) -> Self {
        Self { token: token.clone(), principal: None }
    }
}

/// Queue of pages. Principals take turns; the requests of each are served in their order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Requested runs of each principal with their members, oldest first. Pages that were sent
    /// meanwhile stay until their run reaches the front. No line is empty.
    lines: BTreeMap<Option<Principal>, Line>,
    /// Principals with a line, each once. It is the turn of the front, whose line begins with a
    /// waiting page.
    turns: VecDeque<Option<Principal>>,
    /// Number of pages in `lines`, including those that were sent meanwhile.
    pub(super) requested_pages: u32,
    /// Number of such pages of each member that has any.
    by_member: BTreeMap<Token, u32>,
    /// Pages that wait to be sent.
    waiting: RangeMap<()>,
    /// Since when the queue has not been empty.
    since: Option<Instant>,
}

/// A principal whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn(Option<Principal>);

/// Requests of one principal.
#[derive(Debug, Default)]
struct Line {
    requests: VecDeque<(PageRange, Token)>,
    /// Number of pages in `requests`.
    pages: u32,
}

impl Queue {
    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        let is_empty = self.turns.is_empty();
        assert!(
            self.requested_pages <= QUEUE_PAGES && (self.requested_pages == 0) == is_empty,
            "{} pages of {} principals",
            self.requested_pages,
            self.turns.len()
        );
        // A principal without a turn would never be served.
        assert!(self.turns.len() == self.lines.len(), "principals do not take turns");
        // A queue that claims to have pages and sends none would keep the driver busy for ever.
        assert!(self.since.is_none() == is_empty, "since when pages wait is not known");
        assert!(self.waiting.is_empty() == is_empty, "pages wait that no request names");
        debug_assert!(self.by_member.is_empty() == is_empty, "pages of no member are queued");
        debug_assert!(
            self.front().is_none_or(|(run, _)| self.waits(PageRange::single(run.start))),
            "the next request begins with a page that was sent"
        );
    }

    /// Whether any of these pages wait here.
    pub(super) fn waits(&self, range: PageRange) -> bool {
        self.waiting.parts(range).next().is_some()
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether nothing is kept of any request.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.requested_pages == 0 && self.by_member.is_empty() && self.lines.is_empty()
    }

    /// Returns the number of pages that this member may still queue.
    pub(super) fn room(&self, asker: &Asker) -> u32 {
        let own = self.by_member.get(&asker.token).map_or(0, |pages| *pages);
        let line = asker.principal.and_then(|_| self.lines.get(&asker.principal));
        let line = line.map_or(0, |line| line.pages);
        let room = (QUEUE_PAGES - self.requested_pages).min(PRINCIPAL_PAGES.saturating_sub(line));
        room.min(WANT_PAGES.saturating_sub(own))
    }

    /// Returns the parts of `range` that do not wait here, at most `limit` of them.
    pub(super) fn not_queued(&self, range: PageRange, limit: u32) -> Vec<PageRange> {
        self.waiting.gaps(range).take(limit as usize).collect()
    }

    /// Queues the pages of `range` that do not wait yet, as far as there is room. Returns the parts
    /// that were added.
    pub(super) fn push_back(
        &mut self,
        asker: &Asker,
        range: PageRange,
        now: Instant,
    ) -> Vec<PageRange> {
        let queued = self.admit(asker, range, now);
        if !queued.is_empty() {
            let requests = queued.iter().map(|run| (*run, asker.token.clone()));
            let line = self.line(asker.principal);
            line.pages += queued.iter().map(|run| run.len()).sum::<u32>();
            line.requests.extend(requests);
        }
        self.assert_invariants();
        queued
    }

    /// Does the same as [`Self::push_back`], in front of all other requests of this principal.
    pub(super) fn push_front(
        &mut self,
        asker: &Asker,
        range: PageRange,
        now: Instant,
    ) -> Vec<PageRange> {
        let queued = self.admit(asker, range, now);
        for run in queued.iter().rev() {
            let line = self.line(asker.principal);
            line.pages += run.len();
            line.requests.push_front((*run, asker.token.clone()));
        }
        self.assert_invariants();
        queued
    }

    /// Returns the line of a principal, which gets a turn if it had none.
    fn line(&mut self, principal: Option<Principal>) -> &mut Line {
        self.lines.entry(principal).or_insert_with(|| {
            self.turns.push_back(principal);
            Line::default()
        })
    }

    /// Returns the next request.
    fn front(&self) -> Option<&(PageRange, Token)> {
        self.lines.get(self.turns.front()?)?.requests.front()
    }

    /// Returns whose turn it is.
    pub(super) fn turn(&self) -> Option<Turn> {
        self.turns.front().copied().map(Turn)
    }

    /// Ends a turn, after a run was sent in it.
    pub(super) fn end_turn(&mut self, turn: Option<Turn>) {
        if turn.is_some() && self.turn() == turn {
            self.turns.rotate_left(1);
            self.drop_finished();
        }
    }

    /// Marks the pages of `range` that do not wait yet as waiting, as far as there is room, and
    /// returns them.
    fn admit(&mut self, asker: &Asker, range: PageRange, now: Instant) -> Vec<PageRange> {
        let mut queued = Vec::new();
        let mut room = self.room(asker);
        for gap in self.not_queued(range, room) {
            let run = first_of(gap, room);
            if run.is_empty() {
                break;
            }
            room -= run.len();
            self.requested_pages += run.len();
            let own = self.by_member.entry(asker.token.clone()).or_insert(0);
            *own += run.len();
            debug_assert!(*own <= WANT_PAGES, "a member takes more than its share of the queue");
            self.waiting.insert(run, ());
            self.since.get_or_insert(now);
            queued.push(run);
        }
        queued
    }

    /// Removes pages that were sent from the waiting ones, and finished requests of the principal
    /// whose turn it is.
    pub(super) fn remove(&mut self, range: PageRange) {
        if !self.turns.is_empty() {
            self.waiting.remove(range);
            self.drop_finished();
        }
    }

    /// Removes finished requests until the front begins with a waiting page.
    fn drop_finished(&mut self) {
        while let Some((front, _)) = self.front() {
            let front = *front;
            let first_waiting = self.waiting.parts(front).next().map(|(part, ())| part.start);
            let finished = first_waiting.unwrap_or(front.end).0 - front.start.0;
            self.shorten_front(finished);
            if first_waiting.is_some() {
                self.assert_invariants();
                return;
            }
        }
        self.since = None;
        self.assert_invariants();
    }

    /// Removes the first `pages` pages of the front, and the front if none are left.
    fn shorten_front(&mut self, pages: u32) {
        let Some(&principal) = self.turns.front() else { return };
        let Some(line) = self.lines.get_mut(&principal) else { return };
        let Some((range, token)) = line.requests.front_mut() else { return };
        range.start.0 += pages;
        self.requested_pages -= pages;
        line.pages -= pages;
        if let Some(own) = self.by_member.get_mut(token) {
            *own -= pages;
            if *own == 0 {
                self.by_member.remove(token);
            }
        }
        if range.is_empty() {
            line.requests.pop_front();
            if line.requests.is_empty() {
                self.lines.remove(&principal);
                self.turns.pop_front();
            }
        }
    }

    /// Returns the pages to send next, at most `budget`; `None` if none wait. These are the first
    /// waiting pages of the front, and those of the following requests if they are consecutive.
    pub(super) fn next(&self, budget: u32) -> Option<PageRange> {
        let mut run: Option<PageRange> = None;
        let line = self.turns.front().and_then(|principal| self.lines.get(principal));
        for (range, _) in line.into_iter().flat_map(|line| &line.requests) {
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

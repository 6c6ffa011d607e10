//! Client side of demand: waiting reads, requests to send, and their answers.

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{JoinAnswer, Token};

use super::course::Course;
use super::demand::View;
use super::repair::Repair;
use super::{Assembly, Fill, Receiver, ReportError, WaitId};

/// First pause before a forgotten member joins again, from the second time in a row on. It doubles
/// each time.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);
/// Most doublings of the pause.
const MAX_DOUBLINGS: u32 = 6;

impl Receiver {
    /// Sets which pages should arrive; all, by default.
    #[must_use]
    pub fn with_fill(mut self, fill: Fill) -> Self {
        self.demand.set_fill(fill);
        self
    }

    /// Which pages should arrive.
    pub fn fill(&self) -> Fill {
        self.demand.fill()
    }

    /// Adopts the answer's facts about the stream, and whether the server supports demand.
    pub(super) fn begin_demand(&mut self, answer: &JoinAnswer, now: Instant) {
        let Some(assembly) = &self.assembly else { return };
        let (pages, rate) = (assembly.geometry().pages(), answer.extensions.rate);
        self.course = Some(Course::new(pages, answer.page_size, rate, now));
        // Without a lease a member cannot demand.
        let is_known = answer.extensions.lease.is_some();
        self.demand.begin(is_known, assembly.geometry(), now);
        let on_demand = is_known && self.fill() == Fill::Demand;
        self.membership.expect(!on_demand || self.demand.is_waiting(), now);
    }

    /// Handles a read of these bytes, all within the file. Returns an identifier of its wait if
    /// some are missing. Run what is due afterwards.
    pub fn handle_read(&mut self, bytes: &Range<u64>, now: Instant) -> Option<WaitId> {
        let access = self.demand.note_read(
            bytes,
            view(self.assembly.as_ref(), self.course.as_ref(), self.repair.as_ref()),
        );
        self.unicast.fetches.read(bytes);
        self.retry_unreadable(bytes, now);
        if self.holds(bytes) {
            return None;
        }
        let geometry = self.assembly.as_ref().map(Assembly::geometry);
        Some(self.demand.begin_wait(bytes, access, geometry, now))
    }

    /// Ends the wait of a read, for whatever reason.
    pub fn handle_wait_over(&mut self, wait: WaitId) {
        self.demand.end_wait(wait);
    }

    /// Issues a demand if one is due: the part of [`Self::handle_timeout`] for callers that cannot
    /// execute other actions.
    pub fn want_if_due(&mut self, now: Instant) {
        if !self.may_want() {
            return;
        }
        if let Some(view) = view(self.assembly.as_ref(), self.course.as_ref(), self.repair.as_ref())
        {
            self.demand.handle_timeout(view, now);
        }
        if self.fill() == Fill::Demand && self.demand.is_known() {
            let is_waiting = self.demand.is_waiting();
            self.membership.expect(is_waiting, now);
            if is_waiting {
                self.unicast.expect(now);
            } else {
                self.unicast.expect_nothing();
            }
        }
        for pages in self.demand.take_overdue() {
            self.fetch_now(pages);
        }
    }

    /// Whether a random reader waits, so that the time of each page matters.
    pub fn is_hurried(&self, now: Instant) -> bool {
        self.demand.is_hurried(now)
    }

    /// Declares overdue demanded pages lost.
    pub(super) fn lose_late_pages(&mut self, now: Instant) {
        if self.may_want() {
            self.demand.lose_late(now);
        }
    }

    /// When a demand may be due.
    pub(super) fn poll_demand(&self) -> Option<Instant> {
        self.demand.poll_timeout().filter(|_| self.may_want())
    }

    /// Whether demands may go out; a member that receives nothing fetches instead.
    fn may_want(&self) -> bool {
        let is_member = self.membership.token().is_some() && !self.is_complete();
        is_member && self.unicast.may_want()
    }

    /// Returns a demand to send now, which [`Self::poll_action`] would return last. Call it after
    /// [`Self::handle_timeout`].
    pub fn poll_want(&mut self) -> Option<Want> {
        self.demand.poll_want().inspect(|_| self.unicast.wanted())
    }

    /// Handles the answer to a demand of the membership `token`. It states when the demanded pages
    /// leave the server.
    pub fn handle_wanted(
        &mut self,
        token: &Token,
        want: &Want,
        result: Result<Duration, ReportError>,
        now: Instant,
    ) {
        if self.membership.token() != Some(token) {
            // The answer belongs to a membership that has ended.
            return;
        }
        match result {
            Ok(queue) => {
                self.forgotten = 0;
                self.demand.answered(want, Some(queue));
                self.reporter.renew(now);
            }
            Err(ReportError::Temporary) => self.demand.answered(want, None),
            Err(ReportError::UnknownMember) => {
                self.demand.answered(want, None);
                self.join_anew(now);
            }
        }
    }

    /// Joins again because the server forgot this member; at once the first time, because a reader
    /// waits.
    fn join_anew(&mut self, now: Instant) {
        let doublings = self.forgotten.checked_sub(1);
        let pause = doublings.map(|doublings| REJOIN_PAUSE * (1 << doublings.min(MAX_DOUBLINGS)));
        self.forgotten = self.forgotten.saturating_add(1);
        self.membership.join_again(now + pause.unwrap_or_default());
    }
}

/// State of the pages that decisions depend on.
fn view<'a>(
    assembly: Option<&'a Assembly>,
    course: Option<&'a Course>,
    repair: Option<&'a Repair>,
) -> Option<View<'a>> {
    let (assembly, course) = (assembly?, course?);
    Some(View { geometry: assembly.geometry(), held: assembly.held(), course, repair })
}

#[cfg(test)]
mod tests;

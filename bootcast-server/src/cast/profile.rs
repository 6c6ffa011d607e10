//! The profile of a cast's file: which leaves its members wanted first, and when they are sent to
//! members that hold nothing yet. docs/PROTOCOL.md, "Profile".
//!
//! Members cannot be trusted: one may want pages that no reader needs, or join again and again. So
//! the number of leaves is bounded, and a join causes at most one profile to be sent. When the last
//! member that asked for it leaves, none of it is sent until another one joins.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::limits::WANT_PAGES;
use bootcast_proto::profile::PROFILE_LEAVES;
use bootcast_proto::{Geometry, PageRange, Profile, RangeMap, Token};

use super::demand::first_of;

/// Time from the join of a member within which its wants become part of the profile.
const RECORD_TIME: Duration = Duration::from_secs(180);

/// Time from a change of the profile until it is handed out to be kept.
const KEEP_DELAY: Duration = Duration::from_secs(10);

/// Time from the last join of a member that holds nothing to the first page of the profile.
const HOLD: Duration = Duration::from_millis(200);

/// The same from the first of these joins, at most.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// The profile of one cast's file.
#[derive(Debug)]
pub(super) struct CastProfile {
    geometry: Geometry,
    profile: Profile,
    /// End of the period in which every want becomes part of the profile, because nothing was known
    /// at the first join. Afterwards two members must want a leaf. `None` if something was known.
    first_until: Option<Instant>,
    /// Candidates of the profile that are new in this cast, with the member that wanted each.
    proposed: BTreeMap<u64, Token>,
    /// Profile of earlier casts that the last join brought. `profile` contains it.
    known: Option<Arc<Profile>>,
    /// Members that held nothing when they joined, with the end of the time in which their wants
    /// become part of the profile.
    fresh: BTreeMap<Token, Instant>,
    /// Pages of the profile that some of these members, or of earlier ones, may not have got.
    waiting: RangeMap<()>,
    /// Pages that wait from the next join on: all that do not wait now, and perhaps others.
    idle: RangeMap<()>,
    /// Index of the run of the profile that is sent next. After the last one follows the first.
    next_run: usize,
    /// Join since which pages have waited, and when they may be sent; `None` while none waits for a
    /// member.
    hold: Option<Hold>,
    /// Time of the first change that was not handed out to be kept.
    changed_at: Option<Instant>,
    /// Number of pages sent as part of the profile.
    pages_sent: u64,
}

/// Time in which the group of members forms that get the profile together.
#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Instant,
    until: Instant,
}

impl CastProfile {
    /// Creates the empty profile of a cast without members.
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            profile: Profile::new(geometry.size()),
            first_until: None,
            proposed: BTreeMap::new(),
            known: None,
            fresh: BTreeMap::new(),
            waiting: RangeMap::default(),
            idle: RangeMap::default(),
            next_run: 0,
            hold: None,
            changed_at: None,
            pages_sent: 0,
        }
    }

    /// Adds what earlier casts of this content learned. Ignores a profile of another size.
    pub(super) fn learn(&mut self, known: &Arc<Profile>) {
        let is_of_file = known.size() == self.geometry.size();
        debug_assert!(is_of_file, "the profile of another file");
        // In a storm of joins, all of them bring the same profile.
        let is_merged = self.known.as_ref().is_some_and(|merged| Arc::ptr_eq(merged, known));
        if !is_of_file || is_merged {
            return;
        }
        self.known = Some(Arc::clone(known));
        if self.profile.merge(known) {
            for run in self.profile.runs() {
                self.idle.insert(pages_of(&self.profile, run, &self.geometry), ());
            }
            let profile = &self.profile;
            self.proposed.retain(|leaf, _| profile.has_candidate(*leaf));
        }
    }

    /// Handles the join of a member that holds nothing. All of the profile is sent, once for all
    /// who join meanwhile: those who join later get what they missed when the rest is sent.
    pub(super) fn handle_join(&mut self, token: Token, now: Instant) {
        let until = now + RECORD_TIME;
        self.fresh.insert(token, until);
        if self.profile.is_empty() {
            self.first_until.get_or_insert(until);
        }
        // A page becomes idle when it is sent. So a storm of joins costs no more work than sending.
        for (pages, ()) in std::mem::take(&mut self.idle).iter() {
            self.waiting.insert(pages, ());
        }
        if !self.waiting.is_empty() {
            let since = self.hold.map_or(now, |hold| hold.since);
            let until = (now + HOLD).min(since + HOLD_MAX);
            self.hold = Some(Hold { since, until });
        }
        self.assert_invariants();
    }

    /// Records pages that a member wants, also those that its readers will probably read next.
    /// Ignores members that held something when they joined, and wants long after the join.
    pub(super) fn handle_want(&mut self, token: &Token, want: &Want, now: Instant) {
        if self.fresh.get(token).is_none_or(|until| *until <= now) {
            return;
        }
        let mut room = WANT_PAGES;
        for run in want.now.iter().chain(&want.later) {
            let run = first_of(*run, room);
            room -= run.len();
            for leaf in self.profile.leaves_wanted_by(run, &self.geometry) {
                self.record(leaf, token, now);
            }
        }
        self.assert_invariants();
    }

    /// Records a leaf that a member wants. It becomes part of the profile if nothing is known yet,
    /// or if another member wanted it before. Otherwise it becomes a candidate.
    fn record(&mut self, leaf: u64, token: &Token, now: Instant) {
        if self.profile.contains(leaf) {
            return;
        }
        let is_first = self.first_until.is_some_and(|until| now < until);
        // A candidate that is not new in this cast was wanted by a member of an earlier one.
        let is_confirmed =
            self.profile.has_candidate(leaf) && self.proposed.get(&leaf) != Some(token);
        let has_changed = if is_first || is_confirmed {
            self.proposed.remove(&leaf);
            self.idle.insert(pages_of(&self.profile, &(leaf..leaf + 1), &self.geometry), ());
            self.profile.extend(leaf..leaf + 1)
        } else if self.profile.propose(leaf) {
            self.proposed.insert(leaf, token.clone());
            true
        } else {
            false
        };
        if has_changed {
            self.changed_at.get_or_insert(now);
        }
    }

    /// Removes a member that left, or that multicast does not reach.
    pub(super) fn handle_leave(&mut self, token: &Token) {
        self.fresh.remove(token);
        self.on_members_gone();
    }

    /// Removes all members for which `is_member` is `false`.
    pub(super) fn retain(&mut self, is_member: impl Fn(&Token) -> bool) {
        self.fresh.retain(|token, _| is_member(token));
        self.on_members_gone();
    }

    fn on_members_gone(&mut self) {
        if self.fresh.is_empty() {
            self.hold = None;
        }
        self.assert_invariants();
    }

    /// Handles pages that were sent, for whatever reason.
    pub(super) fn on_sent(&mut self, pages: PageRange) {
        if self.hold.is_none() {
            return;
        }
        for (sent, ()) in self.waiting.parts(pages) {
            self.idle.insert(sent, ());
        }
        self.waiting.remove(pages);
        if self.waiting.is_empty() {
            self.hold = None;
        }
        self.assert_invariants();
    }

    /// Returns the time from which [`Self::poll`] has pages; `None` while none waits.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        self.hold.map(|hold| hold.until)
    }

    /// Returns the next pages of the profile, at most `budget`. `None` until [`Self::poll_at`].
    pub(super) fn poll(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        if self.poll_at().is_none_or(|at| now < at) {
            return None;
        }
        let runs = self.profile.runs();
        let (before, after) = runs.split_at(self.next_run.min(runs.len()));
        let in_turn = after.iter().zip(self.next_run..).chain(before.iter().zip(0..));
        let next = in_turn.into_iter().find_map(|(run, index)| {
            let pages = pages_of(&self.profile, run, &self.geometry);
            let (part, ()) = self.waiting.parts(pages).next()?;
            Some((part, pages.end.0, index))
        });
        let (part, end, index) = next.expect("the waiting pages are those of the profile");
        let pages = first_of(part, budget);
        let rest = PageRange::new(pages.end.0, end);
        let is_run_sent = self.waiting.parts(rest).next().is_none();
        self.next_run = if is_run_sent { index + 1 } else { index };
        self.pages_sent += u64::from(pages.len());
        Some(pages)
    }

    /// Number of pages sent as part of the profile.
    pub(super) fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    /// Returns when [`Self::take_changed`] is due; `None` while nothing changed.
    pub(super) fn keep_at(&self) -> Option<Instant> {
        self.changed_at.map(|at| at + KEEP_DELAY)
    }

    /// Returns the profile if it changed since the last call, so that it should be kept.
    pub(super) fn take_changed(&mut self) -> Option<Profile> {
        self.changed_at.take().map(|_| self.profile.clone())
    }

    /// Number of members that held nothing when they joined.
    pub(super) fn members(&self) -> usize {
        self.fresh.len()
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        // The driver would spin if the profile claimed to have pages and sent none.
        assert!(
            self.hold.is_some() == (!self.waiting.is_empty() && !self.fresh.is_empty()),
            "pages of the profile wait for nobody, or nobody knows since when"
        );
        debug_assert!(
            self.proposed.len() <= PROFILE_LEAVES,
            "leaves are proposed that are no candidates"
        );
    }
}

/// Returns the pages that a run of leaves of the profile touches.
fn pages_of(profile: &Profile, run: &Range<u64>, geometry: &Geometry) -> PageRange {
    geometry.pages_covering(profile.bytes_of(run))
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;

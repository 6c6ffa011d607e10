//! Requests of members: reports and demands.

use std::time::Instant;

use bootcast_proto::api::{Report, Want};
use bootcast_proto::limits::REPORT_RUNS;
use bootcast_proto::{PageRange, Token};

use super::super::demand::{Asker, first_of};
use super::super::members::{Impairment, MemberKind};
use super::super::principal::Principal;
use super::super::stream::Audience;
use super::{BLOCK_PAGES, Cast, State};
use crate::cast::repair::{Author, Repair};

impl Cast {
    /// Handles a report: renews the lease and takes over what the member lacks. Returns `false` if
    /// the token has no lease. The needs of a member that only demands are ignored.
    pub fn handle_report(&mut self, token: &Token, report: &Report, now: Instant) -> bool {
        let Some(kind) = self.members.renew(token, now) else { return false };
        self.members.set_has_zero_map(token, report.zeros);
        let requested = self.requested_pages(report);
        let standing = self.credits.handle_report(token, report, requested);
        if standing.has_progress {
            self.members.prove(token);
        }
        let impairment = match (report.unicast, standing.is_served) {
            (true, _) => Some(Impairment::Unicast),
            (false, false) if kind == MemberKind::Extended => Some(Impairment::NoCredit),
            (false, _) => report.stream_only.then_some(Impairment::StreamOnly),
        };
        let has_changed = self.members.set_impairment(token, impairment) != impairment;
        if has_changed {
            self.on_members_gone();
        }
        if matches!(impairment, Some(Impairment::Unicast | Impairment::NoCredit)) {
            // Nothing is sent for a deaf member. Its report says nothing about the others' needs.
            self.profile.handle_leave(token);
            if has_changed {
                self.probe.restart(now);
            }
            return true;
        }
        if kind == MemberKind::Demand {
            return true;
        }
        // A report that asks for nothing is no sign that fill symbols are of use.
        if requested > 0 {
            self.on_heard(MemberKind::Extended);
        }
        self.apply_report(token, report, now);
        self.assert_invariants();
        true
    }

    /// Takes over the needs and windows that a report asks for.
    fn apply_report(&mut self, token: &Token, report: &Report, now: Instant) {
        let members = self.members.receivers();
        let (owner, ration) = self.ration_of(token, self.members.principals() > 1);
        // With other members, windows wait until the repair of the others is sent. In the hold
        // nothing was sent that could be lacking, and the group forms: its windows are the stream.
        let is_deferred = members > 1
            && !matches!(self.state, State::Holding { .. })
            && self.audience() != Audience::Everybody
            && self.members.repair_receivers() > 0;
        let mut wants_more = false;
        for (first, count) in bulk_runs(report) {
            if is_deferred {
                self.stream.defer(first, count);
            } else {
                wants_more |= self.stream.want(first, count);
            }
        }
        if let Some(repair) = &mut self.repair {
            let author = Author { principal: owner, ration };
            let served = repair.handle_report(report, members, author, now);
            if wants_more {
                repair.on_change(now);
            }
            self.take_ration(owner, ration, served.promised, served.deferred);
        }
        self.notify_repair();
    }

    /// Records the `useful` that a demand of a member states.
    pub fn handle_progress(&mut self, token: &Token, useful: u64) {
        if self.members.has_lease(token) && self.credits.handle_progress(token, useful) {
            self.members.prove(token);
        }
    }

    /// Queues the readable pages that a member demands, if it has credit. Returns `false` if the
    /// token has no lease.
    pub fn handle_want(&mut self, token: &Token, want: &Want, now: Instant) -> bool {
        let Some(kind) = self.members.renew(token, now) else { return false };
        let pages_in = |runs: &[PageRange]| {
            runs.iter().map(|run| u64::from(self.pages.min(run.len()))).sum::<u64>()
        };
        let requested = pages_in(&want.now) + pages_in(&want.later);
        let mut credit = self.credits.handle_want(token, requested, now);
        debug_assert!(credit <= requested, "credit for more pages than were demanded");
        if credit == 0 && requested > 0 {
            return true;
        }
        self.on_heard(kind);
        if self.members.has_requested_leaves(token) {
            self.leaf_lists.handle_want(want, now);
        }
        if self.unreadable.is_empty() && credit == requested {
            self.queue_want(token, want, now);
            self.profile.handle_want(token, want, now);
        } else {
            let mut served = want.clone();
            served.now = self.unreadable.readable(&split_runs(&want.now, &mut credit).0);
            served.later = self.unreadable.readable(&split_runs(&want.later, &mut credit).0);
            self.queue_want(token, &served, now);
            self.profile.handle_want(token, &served, now);
        }
        self.assert_invariants();
        true
    }

    /// Queues demanded pages: those within the ration of the member's principal before everything
    /// else, the others behind it.
    fn queue_want(&mut self, token: &Token, want: &Want, now: Instant) {
        let has_stream = self.members.whole_file_members() > 0 && self.members.principals() > 1;
        let has_others = self.rations.has_neighbours() || has_stream;
        let (principal, ration) = self.ration_of(token, has_others);
        let asker = Asker { token: token.clone(), principal };
        let (first, idle) = match &split_want(want, ration) {
            Some((first, rest)) => {
                let queued = self.demand.handle_want(asker.clone(), first, now);
                (queued, self.demand.handle_idle_want(&asker, rest, now))
            }
            None => (self.demand.handle_want(asker, want, now), 0),
        };
        self.take_ration(principal, ration, first.into(), idle.into());
    }

    /// Returns the principal of a member, and what may go first for it; `u64::MAX` if there are no
    /// others whom this would hold up.
    fn ration_of(&self, token: &Token, has_others: bool) -> (Option<Principal>, u64) {
        let owner = self.members.owner_of(token);
        let ration = owner.filter(|_| has_others).map_or(u64::MAX, |owner| {
            let symbols = self.repair.as_ref().map_or(0, Repair::symbols_sent);
            self.rations.left(owner, self.stream.pages_sent() + symbols)
        });
        (owner, ration)
    }

    /// Takes what goes first out of the ration of a principal, and records what does not.
    fn take_ration(&mut self, owner: Option<Principal>, ration: u64, first: u64, deferred: u64) {
        let Some(owner) = owner.filter(|_| ration < u64::MAX) else { return };
        self.rations.take(owner, first);
        self.members.record_deferred(owner, deferred);
    }

    /// Returns an upper bound of the pages and symbols that a report asks for.
    fn requested_pages(&self, report: &Report) -> u64 {
        let Some(layout) = self.repair.as_ref().map(Repair::layout) else { return 0 };
        let window = u64::from(layout.interleave()) * u64::from(BLOCK_PAGES);
        let bulk = bulk_runs(report).into_iter().map(|(first, count)| {
            window * u64::from(count.min(layout.windows().saturating_sub(first)))
        });
        let pages: u64 = bulk.sum();
        pages.min(self.pages.into()) + report.needs.len() as u64
    }
}

/// Returns the runs of windows that a report asks for in bulk, without overlap and in order: who
/// names the same windows many times makes no more work than one who names them once.
fn bulk_runs(report: &Report) -> Vec<(u32, u32)> {
    let mut runs: Vec<_> = report.bulk.iter().take(REPORT_RUNS).copied().collect();
    runs.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(runs.len());
    for (first, count) in runs {
        let end = first.saturating_add(count);
        match merged.last_mut() {
            Some((last, length)) if first <= *last + *length => {
                *length = (*length).max(end - *last);
            }
            _ => merged.push((first, end - first)),
        }
    }
    merged
}

/// Splits a want into its first `pages` pages and the rest. `None` if there is no rest.
fn split_want(want: &Want, pages: u64) -> Option<(Want, Want)> {
    let named: u64 = want.now.iter().chain(&want.later).map(|run| u64::from(run.len())).sum();
    if named <= pages {
        return None;
    }
    let mut left = pages;
    let (now, rest_now) = split_runs(&want.now, &mut left);
    let (later, rest_later) = split_runs(&want.later, &mut left);
    let first = Want { now, later, ..want.clone() };
    let rest = Want { now: rest_now, later: rest_later, ..want.clone() };
    Some((first, rest))
}

/// Returns the first pages of these runs, as many as the credit allows, and the others. Takes the
/// first ones off the credit.
fn split_runs(runs: &[PageRange], credit: &mut u64) -> (Vec<PageRange>, Vec<PageRange>) {
    let (mut served, mut others) = (Vec::new(), Vec::new());
    for run in runs.iter().filter(|run| !run.is_empty()) {
        let first = first_of(*run, u32::try_from(*credit).unwrap_or(u32::MAX));
        *credit -= u64::from(first.len());
        let rest = PageRange::new(first.end.0, run.end.0);
        served.extend(Some(first).filter(|run| !run.is_empty()));
        others.extend(Some(rest).filter(|run| !run.is_empty()));
    }
    (served, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bulk: &[(u32, u32)]) -> Vec<(u32, u32)> {
        bulk_runs(&Report { bulk: bulk.to_vec(), ..Report::default() })
    }

    #[test]
    fn windows_that_are_named_many_times_are_asked_for_once() {
        assert_eq!(runs(&[(0, u32::MAX); 256]), [(0, u32::MAX)]);
        assert_eq!(runs(&[(7, 3), (0, 5), (4, 2), (8, 1)]), [(0, 6), (7, 3)]);
        assert_eq!(runs(&[(0, 2), (2, 2)]), [(0, 4)]);
        assert_eq!(runs(&[(u32::MAX, u32::MAX), (5, 0)]), [(5, 0), (u32::MAX, 0)]);
        assert_eq!(runs(&[(0, 1); REPORT_RUNS + 1]).len(), 1);
    }

    #[test]
    fn a_want_is_split_after_so_many_pages() {
        let runs = |runs: &[(u32, u32)]| -> Vec<_> {
            runs.iter().map(|&(start, end)| PageRange::new(start, end)).collect()
        };
        let want = Want {
            now: runs(&[(0, 3), (10, 12)]),
            later: runs(&[(20, 24)]),
            came: 7,
            ..Want::default()
        };
        assert_eq!(split_want(&want, 9), None);
        let (first, rest) = split_want(&want, 4).unwrap();
        assert_eq!((first.now, first.later), (runs(&[(0, 3), (10, 11)]), vec![]));
        assert_eq!((rest.now, rest.later), (runs(&[(11, 12)]), runs(&[(20, 24)])));
        // A pair may ask for nothing.
        let odd = Want { now: runs(&[(9, 9), (0, 3)]), ..Want::default() };
        let (first, rest) = split_want(&odd, 2).unwrap();
        assert_eq!((first.now, rest.now), (runs(&[(0, 2)]), runs(&[(2, 3)])));
        let (first, rest) = split_want(&want, 0).unwrap();
        assert_eq!((first.now.len(), &rest), (0, &want));
        let (first, rest) = split_want(&want, 6).unwrap();
        assert_eq!((first.later, rest.later), (runs(&[(20, 21)]), runs(&[(21, 24)])));
    }
}

//! What members ask for: their reports and demands.

use std::time::Instant;

use bootcast_proto::Token;
use bootcast_proto::api::{Report, Want};

use super::super::members::{Impairment, MemberKind};
use super::super::stream::Audience;
use super::{BLOCK_PAGES, BULK_MAX, Cast};
use crate::cast::repair::Repair;

impl Cast {
    /// Takes over what a member lacks. Returns `false` if the token has no lease. A member that
    /// only demands lacks nothing.
    pub fn handle_report(&mut self, token: &Token, report: &Report, now: Instant) -> bool {
        let Some(kind) = self.members.renew(token, now) else { return false };
        let asks = self.pages_asked(report);
        let is_served = self.standings.handle_report(token, report, asks);
        let impairment = match (report.unicast, is_served) {
            (true, _) => Some(Impairment::Unicast),
            (false, false) if kind == MemberKind::Extended => Some(Impairment::Futile),
            (false, _) => report.stream_only.then_some(Impairment::StreamOnly),
        };
        let is_news = self.members.set_impairment(token, impairment) != impairment;
        if is_news {
            self.on_members_gone();
        }
        if matches!(impairment, Some(Impairment::Unicast | Impairment::Futile)) {
            // Nothing is sent for it, and it says nothing of what others need.
            if is_news {
                self.probe.begin(now);
            }
            return true;
        }
        if kind == MemberKind::Demand {
            return true;
        }
        // A report that asks for nothing is no sign that anything is wanted.
        if asks > 0 {
            self.on_heard(MemberKind::Extended);
        }
        self.take_needs(report, now);
        true
    }

    /// Takes over what a report asks for.
    fn take_needs(&mut self, report: &Report, now: Instant) {
        let members = self.members.hearing();
        // Who is not alone lets the others have their repair first.
        let is_held =
            members > 1 && self.audience() == Audience::Extended && self.members.repairing() > 0;
        let mut wanted = false;
        for &(first, count) in report.bulk.iter().take(BULK_MAX) {
            if is_held {
                self.stream.hold(first, count);
            } else {
                wanted |= self.stream.want(first, count);
            }
        }
        if let Some(repair) = &mut self.repair {
            repair.handle_report(report, members, now);
            if wanted {
                repair.on_change(now);
            }
        }
        self.note_stream();
    }

    /// Records what was of use to a member that demands pages.
    pub fn handle_progress(&mut self, token: &Token, useful: u64) {
        if self.members.has_lease(token) {
            self.standings.handle_progress(token, useful);
        }
    }

    /// Queues pages that a member demands. Returns `false` if the token has no lease.
    pub fn handle_want(&mut self, token: &Token, want: &Want, now: Instant) -> bool {
        let Some(kind) = self.members.renew(token, now) else { return false };
        let pages = |pairs: &[(u32, u32)]| {
            pairs.iter().map(|(_, count)| u64::from(self.pages.min(*count))).sum::<u64>()
        };
        let asks = pages(&want.now) + pages(&want.later);
        if !self.standings.handle_want(token, asks, now) {
            return true;
        }
        self.on_heard(kind);
        if self.unreadable.is_empty() {
            self.demand.handle_want(token, want, now);
        } else {
            let mut readable = want.clone();
            readable.now = self.unreadable.without(&want.now);
            readable.later = self.unreadable.without(&want.later);
            self.demand.handle_want(token, &readable, now);
        }
        true
    }

    /// Pages and symbols that a report asks for, at most.
    fn pages_asked(&self, report: &Report) -> u64 {
        let Some(layout) = self.repair.as_ref().map(Repair::layout) else { return 0 };
        let window = u64::from(layout.interleave()) * u64::from(BLOCK_PAGES);
        let bulk = report.bulk.iter().take(BULK_MAX);
        let bulk = bulk.map(|&(first, count)| {
            window * u64::from(count.min(layout.windows().saturating_sub(first)))
        });
        let asks: u64 = bulk.sum();
        asks.min(self.pages.into()) + report.needs.len() as u64
    }
}

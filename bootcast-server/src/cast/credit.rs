//! Credit: how much a member may ask for without progress. docs/PROTOCOL.md, "What the server does
//! for deaf members".
//!
//! A member may ask again and again and receive nothing, because the network drops what is sent or
//! because the member only pretends. Sending for it takes rate from all other members. Each member
//! therefore has a credit: its requests use it up, and any progress that it reports restores it. A
//! report is served as a whole while any credit is left, a demand as far as the credit reaches.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::Report;
use bootcast_proto::limits::HEARD_DIVISOR;

/// Credit of reports, in files. Chosen in docs/adr/0011-deafness-and-credit.md.
const REPORTED_FILES: u64 = 2;

/// Minimum credit of reports, in pages and symbols; applies to small files.
const REPORTED_PAGES_MIN: u64 = 1024;

/// Credit of demands, in pages. A member whose demands do not state `useful` has
/// [`REPORTED_FILES`] more.
const DEMANDED_PAGES: u64 = 4096;

/// Time after which a member whose demands are refused may demand [`RETRY_PAGES`] again.
/// Without them it could not show progress once datagrams reach it.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Credit of demands after each [`RETRY_INTERVAL`], in pages.
const RETRY_PAGES: u64 = 64;

/// Credits of the members that asked for something.
#[derive(Debug)]
pub(super) struct Credits {
    /// Number of pages in the file.
    pages: u64,
    by_member: BTreeMap<Token, Credit>,
}

/// Result of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Whether the member has credit for what it asks for.
    pub(super) is_served: bool,
    /// Whether the report shows that the member received something.
    pub(super) has_progress: bool,
}

/// Credit of one member, as the part that is used up.
#[derive(Clone, Copy, Debug, Default)]
struct Credit {
    /// `useful` as the member stated it last.
    useful: u64,
    /// Whether the demands of the member state `useful`.
    demands_state_useful: bool,
    /// `sent` in the last report with counters.
    sent: u64,
    /// `received` in the last report with counters.
    received: u64,
    /// Pages and symbols that its reports asked for since its last progress.
    reported: u64,
    /// Pages that it demanded since its last progress.
    demanded: u64,
    /// When its demands were first refused; `None` while they are served.
    refused_since: Option<Instant>,
}

impl Credits {
    /// Creates the credits for a file of `pages` pages.
    pub(super) fn new(pages: u32) -> Self {
        Self { pages: pages.into(), by_member: BTreeMap::new() }
    }

    /// Records a report that asks for `requested` pages and symbols.
    pub(super) fn handle_report(
        &mut self,
        token: &Token,
        report: &Report,
        requested: u64,
    ) -> Standing {
        let credit = self.by_member.entry(token.clone()).or_default();
        let has_progress = credit.update_counters(report) | credit.update_useful(report.useful);
        if has_progress {
            credit.restore();
        }
        let limit = REPORTED_PAGES_MIN.max(REPORTED_FILES.saturating_mul(self.pages));
        let is_served = credit.reported < limit;
        if is_served {
            credit.reported = credit.reported.saturating_add(requested);
        }
        Standing { is_served, has_progress }
    }

    /// Records the `useful` that a demand of a member states. Returns whether it grew.
    pub(super) fn handle_progress(&mut self, token: &Token, useful: u64) -> bool {
        let credit = self.by_member.entry(token.clone()).or_default();
        credit.demands_state_useful = true;
        let has_progress = credit.update_useful(useful);
        if has_progress {
            credit.restore();
        }
        has_progress
    }

    /// Records a demand for `requested` pages. Returns for how many of them the member has credit.
    pub(super) fn handle_want(&mut self, token: &Token, requested: u64, now: Instant) -> u64 {
        let credit = self.by_member.entry(token.clone()).or_default();
        // The progress of a member that does not state it is unknown, so its credit is larger.
        let extra =
            if credit.demands_state_useful { 0 } else { REPORTED_FILES.saturating_mul(self.pages) };
        let limit = DEMANDED_PAGES.saturating_add(extra);
        if credit.refused_since.is_some_and(|since| since + RETRY_INTERVAL <= now) {
            credit.demanded = limit.saturating_sub(RETRY_PAGES);
            credit.refused_since = None;
        }
        let served = requested.min(limit.saturating_sub(credit.demanded));
        credit.demanded = credit.demanded.saturating_add(served);
        if served < requested {
            credit.refused_since.get_or_insert(now);
        }
        served
    }

    /// Number of members that asked for something.
    pub(super) fn len(&self) -> usize {
        self.by_member.len()
    }

    /// Forgets a member that left.
    pub(super) fn forget(&mut self, token: &Token) {
        self.by_member.remove(token);
    }

    /// Forgets all tokens for which `is_member` is `false`.
    pub(super) fn retain(&mut self, is_member: impl Fn(&Token) -> bool) {
        self.by_member.retain(|token, _| is_member(token));
    }
}

impl Credit {
    /// Stores the counters of a report. Returns whether they show progress since the last ones.
    fn update_counters(&mut self, report: &Report) -> bool {
        if report.sent == 0 {
            return false;
        }
        let sent = report.sent.saturating_sub(self.sent);
        let received = report.received.saturating_sub(self.received);
        (self.sent, self.received) = (report.sent, report.received);
        received > 0 && received.saturating_mul(HEARD_DIVISOR) >= sent
    }

    /// Stores `useful`. Returns whether it grew.
    fn update_useful(&mut self, useful: u64) -> bool {
        let before = std::mem::replace(&mut self.useful, useful);
        useful > before
    }

    /// Restores the full credit after progress.
    fn restore(&mut self) {
        (self.reported, self.demanded, self.refused_since) = (0, 0, None);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    const PAGES: u32 = 10_000;

    fn token() -> Token {
        Token::from_random(1)
    }

    fn is_served(credits: &mut Credits, report: &Report) -> bool {
        credits.handle_report(&token(), report, PAGES.into()).is_served
    }

    #[test]
    fn without_progress_a_member_is_served_two_files() {
        let mut credits = Credits::new(PAGES);
        let served = (0..50).filter(|_| is_served(&mut credits, &Report::default())).count();
        assert_eq!(served, 2);
        let few = Report { sent: 50_000, received: 99, ..Report::default() };
        assert!(!is_served(&mut credits, &few), "one datagram in 500 is no progress");
        let progress = Report { useful: 1, ..Report::default() };
        assert!(is_served(&mut credits, &progress));
    }

    #[test]
    fn a_member_with_progress_in_every_report_is_always_served() {
        let mut credits = Credits::new(PAGES);
        for round in 1..100 {
            let report = Report { useful: round, ..Report::default() };
            assert!(is_served(&mut credits, &report));
        }
        let mut credits = Credits::new(PAGES);
        for round in 1..100 {
            let report =
                Report { sent: round * 10_000, received: round * 500, ..Report::default() };
            assert!(is_served(&mut credits, &report));
        }
    }

    #[test]
    fn demands_without_progress_are_served_only_once_per_retry_interval() {
        let mut now = Instant::now();
        let mut credits = Credits::new(PAGES);
        let mut served = 0;
        let mut demanded_in = |credits: &mut Credits, useful: Option<u64>, seconds, pages| {
            (0..seconds * 10u64).for_each(|_| {
                now += Duration::from_millis(100);
                if let Some(useful) = useful {
                    credits.handle_progress(&token(), useful);
                }
                served += credits.handle_want(&token(), pages, now);
            });
            std::mem::take(&mut served)
        };
        assert_eq!(demanded_in(&mut credits, Some(0), 29, 100), DEMANDED_PAGES);
        assert_eq!(demanded_in(&mut credits, Some(0), 301, 10_000), 10 * RETRY_PAGES);
        assert!(demanded_in(&mut credits, Some(1), 1, 64) > 0);
        let mut credits = Credits::new(PAGES);
        assert!(
            demanded_in(&mut credits, None, 29, 64) > DEMANDED_PAGES,
            "it does not state `useful`"
        );
    }
}

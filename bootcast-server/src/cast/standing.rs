//! Whether what is sent for a member has any effect. docs/PROTOCOL.md, "What the server sends".
//!
//! A member may ask for ever and receive nothing: the network drops what is sent, or somebody only
//! pretends. What is sent for it takes the rate from all others. A member is therefore served on
//! credit: what it asks for is added up, and any progress that it reports clears the account.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::Report;

/// Files that a member may ask for by its reports without any progress.
const FILES: u64 = 2;
/// The least number of pages of which the same is true.
const PAGES_MIN: u64 = 1024;
/// Pages that a member may demand without any progress, if its demands tell its progress.
const DEMANDED: u64 = 4096;
/// What came is progress if it is at least this share of what was sent meanwhile.
const HEARD_SHARE: u64 = 32;
/// A member whose demands are not served may try again after this time, for this many pages.
const TRY_AGAIN: Duration = Duration::from_secs(30);
const TRIED: u64 = 64;

/// Accounts of members that asked for something.
#[derive(Debug)]
pub(super) struct Standings {
    /// Pages of the file.
    pages: u64,
    of: BTreeMap<Token, Standing>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// What the member reported last.
    useful: u64,
    /// Its demands tell its progress.
    is_telling: bool,
    sent: u64,
    received: u64,
    /// Pages and symbols that it asked for since its last progress.
    asked: u64,
    /// The same, of those that it demanded.
    demanded: u64,
    /// Since when its demands are not served.
    refused_since: Option<Instant>,
}

impl Standings {
    pub(super) fn new(pages: u32) -> Self {
        Self { pages: pages.into(), of: BTreeMap::new() }
    }

    /// Takes note of a report that asks for so many pages and symbols. Returns whether they are to
    /// be sent.
    pub(super) fn handle_report(&mut self, token: &Token, report: &Report, asks: u64) -> bool {
        let standing = self.of.entry(token.clone()).or_default();
        if standing.counters(report) | standing.useful(report.useful) {
            standing.clear();
        }
        let limit = PAGES_MIN.max(FILES.saturating_mul(self.pages));
        let is_served = standing.asked < limit;
        if is_served {
            standing.asked = standing.asked.saturating_add(asks);
        }
        is_served
    }

    /// Takes note of what was of use to a member that demands pages.
    pub(super) fn handle_progress(&mut self, token: &Token, useful: u64) {
        let standing = self.of.entry(token.clone()).or_default();
        standing.is_telling = true;
        if standing.useful(useful) {
            standing.clear();
        }
    }

    /// Takes note of a demand for so many pages. Returns whether it is to be served.
    pub(super) fn handle_want(&mut self, token: &Token, asks: u64, now: Instant) -> bool {
        let standing = self.of.entry(token.clone()).or_default();
        // A member that does not tell its progress is believed to have some for longer.
        let untold = if standing.is_telling { 0 } else { FILES.saturating_mul(self.pages) };
        let limit = DEMANDED.saturating_add(untold);
        if standing.refused_since.is_some_and(|since| since + TRY_AGAIN <= now) {
            standing.demanded = limit.saturating_sub(TRIED);
            standing.refused_since = None;
        }
        let is_served = standing.demanded < limit;
        if is_served {
            standing.demanded = standing.demanded.saturating_add(asks);
        } else {
            standing.refused_since.get_or_insert(now);
        }
        is_served
    }

    /// A member left.
    pub(super) fn forget(&mut self, token: &Token) {
        self.of.remove(token);
    }

    /// Keeps the accounts of these members only.
    pub(super) fn retain(&mut self, is_member: impl Fn(&Token) -> bool) {
        self.of.retain(|token, _| is_member(token));
    }
}

impl Standing {
    /// Takes over the counters of a report. Returns whether enough of what was sent came.
    fn counters(&mut self, report: &Report) -> bool {
        if report.sent == 0 {
            return false;
        }
        let sent = report.sent.saturating_sub(self.sent);
        let received = report.received.saturating_sub(self.received);
        (self.sent, self.received) = (report.sent, report.received);
        received > 0 && received.saturating_mul(HEARD_SHARE) >= sent
    }

    /// Takes over what was of use to the member so far. Returns whether that is more than before.
    fn useful(&mut self, useful: u64) -> bool {
        let before = std::mem::replace(&mut self.useful, useful);
        useful > before
    }

    fn clear(&mut self) {
        (self.asked, self.demanded, self.refused_since) = (0, 0, None);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const PAGES: u32 = 10_000;

    fn token() -> Token {
        Token::from_random(1)
    }

    fn asks(standings: &mut Standings, report: &Report) -> bool {
        standings.handle_report(&token(), report, PAGES.into())
    }

    #[test]
    fn a_member_that_never_gets_anything_is_served_two_files_and_no_more() {
        let mut standings = Standings::new(PAGES);
        let served = (0..50).filter(|_| asks(&mut standings, &Report::default())).count();
        assert_eq!(served, 2);
        let few = Report { sent: 50_000, received: 99, ..Report::default() };
        assert!(!asks(&mut standings, &few), "a datagram in a thousand is nothing");
        let progress = Report { useful: 1, ..Report::default() };
        assert!(asks(&mut standings, &progress));
    }

    #[test]
    fn a_member_that_gets_a_little_each_time_is_served_for_ever() {
        let mut standings = Standings::new(PAGES);
        for round in 1..100 {
            let told = Report { useful: round, ..Report::default() };
            assert!(asks(&mut standings, &told));
        }
        let mut standings = Standings::new(PAGES);
        for round in 1..100 {
            let told = Report { sent: round * 10_000, received: round * 500, ..Report::default() };
            assert!(asks(&mut standings, &told));
        }
    }

    #[test]
    fn demands_that_bring_nothing_are_served_now_and_then_only() {
        let mut now = Instant::now();
        let mut standings = Standings::new(PAGES);
        let mut served = 0;
        let mut wants = |standings: &mut Standings, useful: Option<u64>, seconds: u64| {
            (0..seconds * 10).for_each(|_| {
                now += Duration::from_millis(100);
                if let Some(useful) = useful {
                    standings.handle_progress(&token(), useful);
                }
                served += u64::from(standings.handle_want(&token(), 64, now)) * 64;
            });
            std::mem::take(&mut served)
        };
        assert_eq!(wants(&mut standings, Some(0), 29), DEMANDED);
        assert!(wants(&mut standings, Some(0), 300) <= 10 * TRIED);
        assert!(wants(&mut standings, Some(1), 1) > 0);
        let mut standings = Standings::new(PAGES);
        assert!(wants(&mut standings, None, 29) > DEMANDED, "it does not tell");
    }
}

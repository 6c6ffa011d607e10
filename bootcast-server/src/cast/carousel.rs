//! One running cast: a carousel of pages that turns while somebody needs it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bootcast_proto::{PageIndex, PageRange, Token};

/// From the join that starts the carousel to its first page.
///
/// Within it a client reads the answer and opens its socket, and the switches on the way hear of its
/// membership (IGMP). What is sent earlier is lost and costs a second pass.
pub const HOLD: Duration = Duration::from_millis(100);

/// A pass begins no sooner than this after the one before.
///
/// A file of a few pages would otherwise go round thousands of times, and all of its idle passes
/// be over, before a client's leave or the next client's membership gets through.
pub const PASS_INTERVAL: Duration = Duration::from_millis(100);

/// When a cast gives up.
#[derive(Clone, Copy, Debug)]
pub struct CastPolicy {
    /// Passes without a join or a leave after which nobody is believed to listen.
    pub idle_passes: NonZeroU32,
    /// How long a cast without members can be joined again. Nothing is sent meanwhile.
    pub linger: Duration,
}

/// Why a cast ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// Every member has all pages.
    #[error("last member left")]
    LastLeave,
    /// The members that are left seem to be gone.
    #[error("idle passes")]
    IdlePasses,
    /// The file is not what was announced any more.
    #[error("file changed")]
    FileChanged,
    /// The file cannot be read.
    #[error("file unreadable")]
    Unreadable,
    /// The server stops.
    #[error("server stops")]
    Stopped,
}

/// ```text
///              +------- pass over, too early for the next -------+
///              v                                                 |
///  join --> Waiting -- until --> Sending -- idle passes --> Ended|
///              ^                    |  `-------------------------+
///            join               last leave
///              |                    v
///              +---------------- Lingering -- until --> Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next pass begins at `until`.
    Waiting { until: Instant },
    /// In a pass.
    Sending { pass_began: Instant },
    /// Nobody needs anything; ends at `until`.
    Lingering { until: Instant },
    /// For good.
    Ended(EndReason),
}

/// One version of one file on its way to its members.
#[derive(Debug)]
pub struct Cast {
    policy: CastPolicy,
    /// Pages in the file.
    pages: u32,
    members: BTreeSet<Token>,
    state: State,
    /// First page of the next run.
    next: PageIndex,
    /// Pages sent since the last join or leave.
    quiet_pages: u64,
    joins: u64,
    pages_sent: u64,
    passes: u32,
}

impl Cast {
    /// A cast that nobody joined yet: it lingers.
    pub fn new(pages: u32, policy: CastPolicy, now: Instant) -> Self {
        Self {
            policy,
            pages,
            members: BTreeSet::new(),
            state: State::Lingering { until: now + policy.linger },
            next: PageIndex(0),
            quiet_pages: 0,
            joins: 0,
            pages_sent: 0,
            passes: 0,
        }
    }

    /// Adds a member. A running carousel goes on where it is; a lingering one starts with page 1.
    pub fn handle_join(&mut self, token: Token, now: Instant) {
        self.members.insert(token);
        self.joins += 1;
        self.quiet_pages = 0;
        match self.state {
            State::Lingering { .. } => {
                self.next = PageIndex(0);
                self.state = State::Waiting { until: now + HOLD };
            }
            State::Waiting { .. } | State::Sending { .. } | State::Ended(_) => {}
        }
    }

    /// Removes a member; `false` where the token is none.
    pub fn handle_leave(&mut self, token: &Token, now: Instant) -> bool {
        if !self.members.remove(token) {
            return false;
        }
        self.quiet_pages = 0;
        if self.members.is_empty() {
            self.linger(now);
        }
        true
    }

    /// Ends the cast for a reason that lies outside of it. An ended cast keeps its first reason.
    pub fn handle_end(&mut self, reason: EndReason) {
        if self.ended().is_none() {
            self.state = State::Ended(reason);
        }
    }

    /// Runs what is due at `now`. Calling early changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Waiting { until } if until <= now => {
                if self.pages == 0 {
                    self.linger(now);
                } else {
                    self.state = State::Sending { pass_began: now };
                }
            }
            State::Lingering { until } if until <= now => {
                self.state = State::Ended(EndReason::LastLeave);
            }
            State::Waiting { .. }
            | State::Sending { .. }
            | State::Lingering { .. }
            | State::Ended(_) => {}
        }
    }

    /// The next run of at most `budget` pages, within one pass; `None` while nothing is to be sent.
    pub fn poll_transmit(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let State::Sending { pass_began } = self.state else { return None };
        let run = PageRange::new(self.next.0, self.next.0.saturating_add(budget).min(self.pages));
        if run.is_empty() {
            return None;
        }
        self.next = run.end;
        self.pages_sent += u64::from(run.len());
        self.quiet_pages += u64::from(run.len());
        if run.end.0 == self.pages {
            self.finish_pass(pass_began, now);
        }
        let idle = u64::from(self.policy.idle_passes.get()) * u64::from(self.pages);
        if self.quiet_pages >= idle {
            self.state = State::Ended(EndReason::IdlePasses);
        }
        Some(run)
    }

    /// When to call [`Self::handle_timeout`]; changes with every other call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } | State::Lingering { until } => Some(until),
            State::Sending { .. } | State::Ended(_) => None,
        }
    }

    /// Whether [`Self::poll_transmit`] has pages to hand out.
    pub fn is_sending(&self) -> bool {
        matches!(self.state, State::Sending { .. })
    }

    /// Why it ended, once it did.
    pub fn ended(&self) -> Option<EndReason> {
        match self.state {
            State::Ended(reason) => Some(reason),
            State::Waiting { .. } | State::Sending { .. } | State::Lingering { .. } => None,
        }
    }

    /// Clients that joined and did not leave.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Joins since it began.
    pub fn joins(&self) -> u64 {
        self.joins
    }

    /// Pages handed out since it began.
    pub fn pages_sent(&self) -> u64 {
        self.pages_sent
    }

    /// Whole passes over the file.
    pub fn passes(&self) -> u32 {
        self.passes
    }

    fn finish_pass(&mut self, pass_began: Instant, now: Instant) {
        self.passes = self.passes.saturating_add(1);
        self.next = PageIndex(0);
        let earliest = pass_began + PASS_INTERVAL;
        self.state = if now < earliest {
            State::Waiting { until: earliest }
        } else {
            State::Sending { pass_began: now }
        };
    }

    fn linger(&mut self, now: Instant) {
        self.state = if self.policy.linger.is_zero() {
            State::Ended(EndReason::LastLeave)
        } else {
            State::Lingering { until: now + self.policy.linger }
        };
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: CastPolicy =
        CastPolicy { idle_passes: NonZeroU32::new(5).unwrap(), linger: Duration::from_millis(500) };

    fn token(number: u128) -> Token {
        Token::from_random(number)
    }

    fn joined(pages: u32, now: Instant) -> Cast {
        let mut cast = Cast::new(pages, POLICY, now);
        cast.handle_join(token(1), now);
        cast
    }

    /// Lets time pass to the next timer. `false` where there is none.
    fn advance(cast: &mut Cast, now: &mut Instant) -> bool {
        let Some(timer) = cast.poll_timeout() else { return false };
        *now = timer.max(*now);
        cast.handle_timeout(*now);
        true
    }

    /// Every page in the order of sending, until the cast ends or `limit` pages went out.
    fn run(cast: &mut Cast, budget: u32, now: &mut Instant, limit: usize) -> Vec<u32> {
        let mut sent = Vec::new();
        while sent.len() < limit && cast.ended().is_none() {
            match cast.poll_transmit(budget, *now) {
                Some(pages) => sent.extend(pages.iter().map(|page| page.0)),
                None => assert!(advance(cast, now), "neither pages nor a timer nor an end"),
            }
        }
        sent
    }

    #[test]
    fn the_first_page_waits_for_the_hold() {
        let start = Instant::now();
        let mut cast = joined(3, start);
        cast.handle_timeout(start + HOLD / 2);
        assert_eq!(cast.poll_transmit(9, start), None);
        assert_eq!(cast.poll_timeout(), Some(start + HOLD));
        cast.handle_timeout(start + HOLD);
        assert_eq!(cast.poll_transmit(9, start + HOLD), Some(PageRange::new(0, 3)));
    }

    #[test]
    fn a_run_never_crosses_the_end_of_a_pass() {
        let mut now = Instant::now();
        let mut cast = joined(10, now);
        advance(&mut cast, &mut now);
        let runs: Vec<_> =
            std::iter::from_fn(|| cast.poll_transmit(4, now)).map(PageRange::len).collect();
        assert_eq!(runs, [4, 4, 2]);
        assert_eq!(cast.passes(), 1);
    }

    #[test]
    fn passes_of_a_small_file_keep_their_distance() {
        let start = Instant::now();
        let mut now = start;
        let mut cast = joined(1, now);
        let sent = run(&mut cast, 44, &mut now, usize::MAX);
        assert_eq!(sent.len(), 5);
        assert_eq!(now, start + HOLD + 4 * PASS_INTERVAL);
    }

    #[test]
    fn a_second_join_does_not_restart_the_carousel() {
        let mut now = Instant::now();
        let mut cast = joined(100, now);
        assert_eq!(run(&mut cast, 10, &mut now, 30).len(), 30);
        cast.handle_join(token(2), now);
        assert_eq!(cast.poll_transmit(10, now), Some(PageRange::new(30, 40)));
    }

    #[test]
    fn a_cast_ends_after_its_idle_passes() {
        let mut now = Instant::now();
        let mut cast = joined(7, now);
        assert_eq!(run(&mut cast, 3, &mut now, usize::MAX).len(), 35);
        assert_eq!(cast.ended(), Some(EndReason::IdlePasses));
    }

    #[test]
    fn a_join_or_a_leave_begins_the_idle_passes_anew() {
        for joins in [true, false] {
            let mut now = Instant::now();
            let mut cast = joined(10, now);
            cast.handle_join(token(2), now);
            run(&mut cast, 7, &mut now, 47);
            if joins {
                cast.handle_join(token(3), now);
            } else {
                assert!(cast.handle_leave(&token(2), now));
            }
            let rest = run(&mut cast, 1, &mut now, usize::MAX);
            assert_eq!(rest.len(), 50);
        }
    }

    #[test]
    fn a_cast_that_everybody_left_lingers_silently_and_ends() {
        let mut now = Instant::now();
        let mut cast = joined(10, now);
        run(&mut cast, 3, &mut now, 3);
        assert!(cast.handle_leave(&token(1), now));
        assert_eq!(cast.poll_transmit(3, now), None);
        assert_eq!(cast.poll_timeout(), Some(now + POLICY.linger));
        assert_eq!(cast.ended(), None);
        advance(&mut cast, &mut now);
        assert_eq!(cast.ended(), Some(EndReason::LastLeave));
    }

    #[test]
    fn without_linger_the_last_leave_ends_the_cast_at_once() {
        let now = Instant::now();
        let policy = CastPolicy { linger: Duration::ZERO, ..POLICY };
        let mut cast = Cast::new(10, policy, now);
        cast.handle_join(token(1), now);
        cast.handle_join(token(2), now);
        assert!(cast.handle_leave(&token(1), now));
        assert_eq!(cast.ended(), None);
        assert!(cast.handle_leave(&token(2), now));
        assert_eq!(cast.ended(), Some(EndReason::LastLeave));
    }

    #[test]
    fn a_lingering_cast_that_is_joined_starts_with_page_1_after_a_hold() {
        let mut now = Instant::now();
        let mut cast = joined(10, now);
        run(&mut cast, 3, &mut now, 3);
        cast.handle_leave(&token(1), now);
        cast.handle_join(token(2), now);
        assert_eq!(cast.poll_timeout(), Some(now + HOLD));
        advance(&mut cast, &mut now);
        assert_eq!(cast.poll_transmit(3, now), Some(PageRange::new(0, 3)));
    }

    #[test]
    fn an_unknown_token_changes_nothing() {
        let mut now = Instant::now();
        let mut cast = joined(10, now);
        run(&mut cast, 3, &mut now, 6);
        let before = format!("{cast:?}");
        assert!(!cast.handle_leave(&token(9), now));
        assert_eq!(format!("{cast:?}"), before);
    }

    #[test]
    fn an_empty_file_sends_nothing_and_its_cast_still_ends() {
        let start = Instant::now();
        let mut now = start;
        let mut cast = joined(0, now);
        assert!(run(&mut cast, 44, &mut now, usize::MAX).is_empty());
        assert_eq!(now, start + HOLD + POLICY.linger);
    }

    #[test]
    fn an_ended_cast_keeps_its_reason_and_says_nothing_more() {
        let now = Instant::now();
        let mut cast = joined(10, now);
        cast.handle_end(EndReason::FileChanged);
        cast.handle_end(EndReason::Stopped);
        cast.handle_join(token(2), now);
        cast.handle_timeout(now + HOLD);
        assert_eq!(cast.ended(), Some(EndReason::FileChanged));
        assert_eq!((cast.poll_transmit(5, now + HOLD), cast.poll_timeout()), (None, None));
    }

    proptest! {
        #[test]
        fn every_pass_sends_every_page_in_order(
            pages in 1u32..300, budgets in proptest::collection::vec(1u32..60, 1..20),
        ) {
            let mut now = Instant::now();
            let mut cast = joined(pages, now);
            let mut sent = Vec::new();
            for &budget in budgets.iter().cycle() {
                sent.extend(run(&mut cast, budget, &mut now, 1));
                now += Duration::from_millis(3);
                if cast.ended().is_some() {
                    break;
                }
            }
            let five_passes: Vec<u32> = (0..5).flat_map(|_| 0..pages).collect();
            prop_assert_eq!(sent, five_passes);
            prop_assert_eq!(cast.passes(), 5);
        }
    }
}

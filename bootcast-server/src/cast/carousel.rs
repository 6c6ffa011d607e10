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

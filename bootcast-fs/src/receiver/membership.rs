//! Decides when to be a member: join, join again, linger, leave.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use bootcast_proto::api::{Report, Want};
use bootcast_proto::limits::RETRY_AFTER_MAX;
use bootcast_proto::{Backoff, Token};

use super::page_hashes::HashRequest;
use super::verification::{ListRequest, Replacement};

/// Pauses after requests that fail, while the server is away.
pub const REQUEST_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// Longest time of silence before a new join, in units of the first.
const MAX_SILENCE_FACTOR: u32 = 16;
/// Time of silence before a new join, if silence is expected.
const LONG_SILENCE: Duration = Duration::from_secs(60);

/// Something that the driver must do. Actions must be executed in the order they are returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a join; answer with `handle_join` or `handle_join_error`.
    Join,
    /// Send a leave; the answer does not matter.
    Leave(Token),
    /// Listen to this group and to no other.
    Subscribe(Subscription),
    /// Stop listening.
    Unsubscribe,
    /// Send a report; answer with `handle_report_answer`.
    Report(Report),
    /// Demand pages; answer with `handle_wanted`.
    Want(Want),
    /// Request the zero map; answer with `begin_zeros` or `handle_no_zeros`.
    ZeroMap,
    /// Request hashes; answer with `handle_lists` or `handle_lists_failed`.
    Lists(ListRequest),
    /// Request the hashes of pages; answer with `handle_page_hashes`.
    PageHashes(HashRequest),
    /// Fetch wrong leaves over HTTP and store the right ones; answer with `handle_replaced`.
    Replace(Replacement),
}

/// Destination of a cast's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Group and port of the pages.
    pub connect: SocketAddrV4,
    /// Only address whose datagrams count, if it is known.
    pub source: Option<IpAddr>,
    /// Group and port of the repair channel, if it is useful.
    pub repair: Option<SocketAddrV4>,
}

/// Interpretation of silence by a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Silence {
    /// The cast is lost: join again soon.
    #[default]
    Short,
    /// Silence is expected: still join again now and then.
    Long,
    /// Silence is expected, and a lost cast shows in another way: never join again.
    Endless,
}

/// Time without datagrams where some are expected.
#[derive(Clone, Copy, Debug)]
pub(super) struct SilentSince {
    since: Instant,
    /// Length of the first silence after which a member joins again.
    patience: Duration,
}

impl SilentSince {
    /// When to ask the server for a sign of life.
    pub(super) fn ask_at(self) -> Instant {
        self.since + self.patience * 3 / 4
    }

    /// When a member joins again.
    pub(super) fn end(self) -> Instant {
        self.since + self.patience
    }
}

/// Times that the user may choose.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time for which a membership outlives its last reader.
    pub linger: Duration,
    /// Time without datagrams after which a member joins again. Doubles with each join that
    /// brought nothing.
    pub silence: Duration,
}

/// Whether and how this client takes part in the cast of one file.
///
/// ```text
/// Idle --open--> Joining --answer--> Member --silence--> Rejoining
///  ^                |                  |  ^---- answer -----'  |
///  '--- complete, failed, or unread for longer than linger ----'
/// ```
///
/// A failed join is repeated, ever more slowly, for as long as the file is wanted. A member stays
/// subscribed while it joins again, because the silence may have been the network's.
#[derive(Debug)]
pub(super) struct Membership {
    timing: Timing,
    state: State,
    readers: usize,
    /// End of the linger time; set while no reader is left but the membership is kept.
    linger_until: Option<Instant>,
    /// Joins in a row after which nothing new came.
    deaf: u32,
    silence: Silence,
    /// Whether silence is no reason to join again.
    may_be_silent: bool,
    /// Subscription of the newest membership.
    subscription: Option<Subscription>,
    /// Whether membership is of no more use: all pages are held, or can never arrive.
    over: bool,
    /// Whether another process of this machine is the member, so that this one does not join.
    follows: bool,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum State {
    Idle,
    Joining(Attempt),
    Member { token: Token, heard: Instant },
    Rejoining { token: Token, attempt: Attempt },
}

/// A join in flight or due.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    failures: u32,
    /// When to send the join again; `None` while it is in flight.
    retry_at: Option<Instant>,
}

impl Attempt {
    const FIRST: Self = Self { failures: 0, retry_at: None };

    fn failed(self, now: Instant, at_least: Duration) -> Self {
        let pause = REQUEST_BACKOFF.pause(self.failures).max(at_least.min(RETRY_AFTER_MAX));
        Self { failures: self.failures.saturating_add(1), retry_at: Some(now + pause) }
    }

    fn is_due(self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }

    fn sent(self) -> Self {
        Self { retry_at: None, ..self }
    }
}

impl Membership {
    /// Starts without readers. With `over`, no join is ever needed.
    pub(super) fn new(timing: Timing, over: bool) -> Self {
        Self {
            timing,
            state: State::Idle,
            readers: 0,
            linger_until: None,
            deaf: 0,
            silence: Silence::default(),
            may_be_silent: false,
            subscription: None,
            over,
            follows: false,
            actions: VecDeque::new(),
        }
    }

    /// Adds a reader.
    pub(super) fn opened(&mut self) {
        self.readers += 1;
        self.linger_until = None;
        self.wake();
        self.assert_invariants();
    }

    /// Does not join from now on, because another process of this machine is the member.
    pub(super) fn follow(&mut self) {
        debug_assert!(self.is_idle(), "a member follows another one");
        self.follows = true;
    }

    /// Joins from now on like any client.
    pub(super) fn stop_following(&mut self) {
        self.follows = false;
        self.wake();
    }

    /// Whether another process of this machine is the member.
    pub(super) fn follows(&self) -> bool {
        self.follows
    }

    /// Removes a reader. The last one starts the linger time.
    pub(super) fn closed(&mut self, now: Instant) {
        debug_assert!(self.readers > 0, "a reader closes a file that it did not open");
        self.readers = self.readers.saturating_sub(1);
        if self.readers == 0 && !matches!(self.state, State::Idle) {
            self.linger_until = Some(now + self.timing.linger);
            self.handle_timeout(now);
        }
    }

    /// Handles a successful join. If the membership is no longer wanted, it is given back.
    pub(super) fn joined(&mut self, token: Token, subscription: Subscription, now: Instant) {
        let previous = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {
                self.actions.push_back(Action::Leave(token));
                return;
            }
            State::Joining(_) => None,
            State::Member { token, .. } | State::Rejoining { token, .. } => Some(token),
        };
        self.subscription = Some(subscription);
        self.actions.push_back(Action::Subscribe(subscription));
        self.actions.extend(previous.map(Action::Leave));
        self.state = State::Member { token, heard: now };
        self.assert_invariants();
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        let is_idle = matches!(self.state, State::Idle);
        // The server would send for a member that needs nothing.
        assert!(!self.over || is_idle, "a member stays although its membership is over");
        assert!(!self.follows || is_idle, "a member follows another one");
        assert!(
            self.linger_until.is_none() || (self.readers == 0 && !is_idle),
            "{} readers of a membership that ends soon",
            self.readers
        );
        debug_assert!(
            !self.is_member() || self.subscription.is_some(),
            "a member does not know its group"
        );
    }

    /// Whether no membership follows: all pages are held, or can never arrive.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Handles a join that failed for a reason that may pass. `retry_after` is the server's
    /// request.
    pub(super) fn join_failed(&mut self, now: Instant, retry_after: Duration) {
        match &mut self.state {
            State::Joining(attempt) | State::Rejoining { attempt, .. } => {
                *attempt = attempt.failed(now, retry_after);
            }
            State::Idle | State::Member { .. } => {}
        }
    }

    /// Records that the cast showed that it goes on.
    pub(super) fn heard(&mut self, now: Instant) {
        if let State::Member { heard, .. } = &mut self.state {
            *heard = now;
        }
    }

    /// Records that something new arrived: the next silence is the first one.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.heard(now);
        if self.is_member() {
            self.deaf = 0;
        }
    }

    /// Time without datagrams of a member that expects some.
    pub(super) fn silence(&self) -> Option<SilentSince> {
        match &self.state {
            State::Member { heard, .. } if !self.may_be_silent => {
                Some(SilentSince { since: *heard, patience: self.timing.silence })
            }
            State::Idle | State::Joining(_) | State::Member { .. } | State::Rejoining { .. } => {
                None
            }
        }
    }

    /// Sets whether datagrams are expected from now on. Silence counts from the moment they are.
    pub(super) fn expect(&mut self, something: bool, now: Instant) {
        let begins = something && self.may_be_silent;
        self.may_be_silent = !something;
        if let (true, State::Member { heard, .. }) = (begins, &mut self.state) {
            *heard = now;
        }
    }

    /// Gives the present membership up. Joins again at `at` and stays subscribed until then.
    pub(super) fn join_again(&mut self, at: Instant) {
        if let State::Member { token, .. } = &self.state {
            let attempt = Attempt { failures: 0, retry_at: Some(at) };
            self.state = State::Rejoining { token: token.clone(), attempt };
        }
    }

    /// Leaves for as long as nothing more can come.
    pub(super) fn rest(&mut self) {
        self.leave();
    }

    /// Joins, if a reader is there and nothing else is in flight, because something may come again.
    pub(super) fn wake(&mut self) {
        if matches!(self.state, State::Idle) && !self.over && !self.follows && self.readers > 0 {
            self.state = State::Joining(Attempt::FIRST);
            self.actions.push_back(Action::Join);
        }
    }

    /// Whether something is to be done at once.
    pub(super) fn has_action(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Ends membership for good.
    pub(super) fn end(&mut self) {
        self.over = true;
        self.leave();
    }

    /// Allows membership again, because pages are missing that were here.
    pub(super) fn reopen(&mut self) {
        self.over = false;
    }

    /// Sets the meaning of silence from now on.
    pub(super) fn expect_silence(&mut self, silence: Silence) {
        self.silence = silence;
    }

    /// Leaves and enters the group, for switches that forgot this member.
    pub(super) fn listen_anew(&mut self) {
        if let Some(subscription) = self.subscription.filter(|_| self.is_member()) {
            self.actions.push_back(Action::Unsubscribe);
            self.actions.push_back(Action::Subscribe(subscription));
        }
    }

    /// When a member that last received something at `heard` joins again. A client that receives no
    /// multicast must not keep a cast alive by joining it again and again.
    fn rejoin_at(&self, heard: Instant) -> Option<Instant> {
        match self.silence {
            _ if self.may_be_silent => None,
            Silence::Short => {
                let first = self.timing.silence;
                let patience = Backoff::new(first, first * MAX_SILENCE_FACTOR);
                Some(heard + patience.pause(self.deaf))
            }
            Silence::Long => Some(heard + LONG_SILENCE),
            Silence::Endless => None,
        }
    }

    fn leave(&mut self) {
        self.linger_until = None;
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle | State::Joining(_) => {}
            State::Member { token, .. } | State::Rejoining { token, .. } => {
                self.actions.push_back(Action::Unsubscribe);
                self.actions.push_back(Action::Leave(token));
            }
        }
        self.assert_invariants();
    }

    /// Runs what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.linger_until.is_some_and(|until| until <= now) {
            self.leave();
        }
        let is_silent = match &self.state {
            State::Member { heard, .. } => self.rejoin_at(*heard).is_some_and(|at| at <= now),
            State::Idle | State::Joining(_) | State::Rejoining { .. } => false,
        };
        match &mut self.state {
            State::Joining(attempt) | State::Rejoining { attempt, .. } if attempt.is_due(now) => {
                *attempt = attempt.sent();
                self.actions.push_back(Action::Join);
            }
            State::Member { token, .. } if is_silent => {
                let token = token.clone();
                self.deaf += 1;
                self.state = State::Rejoining { token, attempt: Attempt::FIRST };
                self.actions.push_back(Action::Join);
            }
            State::Idle | State::Joining(_) | State::Member { .. } | State::Rejoining { .. } => {}
        }
        self.assert_invariants();
    }

    /// When `handle_timeout` is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Idle => None,
            State::Joining(attempt) | State::Rejoining { attempt, .. } => attempt.retry_at,
            State::Member { heard, .. } => self.rejoin_at(*heard),
        };
        [own, self.linger_until].into_iter().flatten().min()
    }

    /// Queues an action of this member.
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Returns the next action.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Token of the present membership, if there is one.
    pub(super) fn token(&self) -> Option<&Token> {
        match &self.state {
            State::Member { token, .. } => Some(token),
            State::Idle | State::Joining(_) | State::Rejoining { .. } => None,
        }
    }

    /// Number of readers.
    pub(super) fn readers(&self) -> usize {
        self.readers
    }

    /// Whether it is neither a member nor joining.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.actions.is_empty()
    }

    /// Number of joins in a row that failed.
    pub(super) fn failures(&self) -> u32 {
        match &self.state {
            State::Idle | State::Member { .. } => 0,
            State::Joining(attempt) | State::Rejoining { attempt, .. } => attempt.failures,
        }
    }

    /// Whether it is a member, as far as known.
    pub(super) fn is_member(&self) -> bool {
        matches!(self.state, State::Member { .. } | State::Rejoining { .. })
    }
}

#[cfg(test)]
mod tests;

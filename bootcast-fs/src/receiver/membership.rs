//! Decides when to be a member: join, join again, linger, leave.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use bootcast_proto::Token;
use bootcast_proto::api::{Report, Want};

/// First pause after a failed join. It doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause between joins while the server is away.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Most doublings of the time of silence: up to 16 times the first.
const MAX_DEAF_DOUBLINGS: u32 = 4;
/// Time of silence before a new join, if silence is expected.
const LONG_SILENCE: Duration = Duration::from_secs(60);
/// Longest `Retry-After` of a server that is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// What the driver must do. Actions must be executed in the order they are returned.
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

/// How a member interprets silence.
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
    /// How long a membership outlives its last reader.
    pub linger: Duration,
    /// How long a member receives nothing before it joins again. Doubles with each join that
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
        let doubled = RETRY_MIN.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(RETRY_MAX).max(at_least.min(RETRY_AFTER_MAX));
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
            actions: VecDeque::new(),
        }
    }

    /// Adds a reader.
    pub(super) fn opened(&mut self) {
        self.readers += 1;
        self.linger_until = None;
        if matches!(self.state, State::Idle) && !self.over {
            self.state = State::Joining(Attempt::FIRST);
            self.actions.push_back(Action::Join);
        }
        self.assert_invariants();
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

    /// The cast showed that it goes on.
    pub(super) fn heard(&mut self, now: Instant) {
        if let State::Member { heard, .. } = &mut self.state {
            *heard = now;
        }
    }

    /// Something new came: the next silence is the first one.
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

    /// Gives the present membership up: joins again at `at` and stays subscribed until then.
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

    /// Something may come again: joins, where a reader is there and nothing else is under way.
    pub(super) fn wake(&mut self) {
        if matches!(self.state, State::Idle) && !self.over && self.readers > 0 {
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
                Some(heard + self.timing.silence * (1 << self.deaf.min(MAX_DEAF_DOUBLINGS)))
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
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const TIMING: Timing =
        Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };

    fn token(number: u128) -> Token {
        Token::from_random(number)
    }

    fn place(host: u8) -> Subscription {
        let connect = SocketAddrV4::new([239, 255, 0, host].into(), 9000);
        Subscription { connect, source: None, repair: None }
    }

    fn actions(membership: &mut Membership) -> Vec<Action> {
        std::iter::from_fn(|| membership.poll_action()).collect()
    }

    fn member(now: Instant) -> Membership {
        let mut membership = Membership::new(TIMING, false);
        membership.opened();
        membership.joined(token(1), place(1), now);
        assert_eq!(actions(&mut membership), [Action::Join, Action::Subscribe(place(1))]);
        membership
    }

    #[test]
    fn two_readers_share_one_join() {
        let mut membership = member(Instant::now());
        membership.opened();
        assert_eq!(actions(&mut membership), []);
    }

    #[test]
    fn when_all_is_here_the_leave_goes_out() {
        let mut membership = member(Instant::now());
        membership.end();
        assert_eq!(actions(&mut membership), [Action::Unsubscribe, Action::Leave(token(1))]);
        membership.opened();
        assert_eq!(actions(&mut membership), []);
        assert!(membership.is_idle());
    }

    #[test]
    fn the_last_close_lingers_and_then_leaves() {
        let start = Instant::now();
        let mut membership = member(start);
        membership.closed(start);
        let second = Duration::from_secs(1);
        for elapsed in 1..10 {
            membership.heard(start + second * elapsed);
            membership.handle_timeout(start + second * elapsed);
            assert_eq!(actions(&mut membership), []);
        }
        assert_eq!(membership.poll_timeout(), Some(start + TIMING.linger));
        membership.handle_timeout(start + TIMING.linger);
        assert_eq!(actions(&mut membership), [Action::Unsubscribe, Action::Leave(token(1))]);
    }

    #[test]
    fn an_open_within_the_linger_time_keeps_the_membership() {
        let start = Instant::now();
        let mut membership = member(start);
        membership.closed(start);
        membership.opened();
        membership.heard(start + TIMING.linger);
        membership.handle_timeout(start + TIMING.linger);
        assert_eq!(actions(&mut membership), []);
    }

    #[test]
    fn silence_joins_again_and_gives_the_old_membership_back() {
        let start = Instant::now();
        let mut membership = member(start);
        let later = start + TIMING.silence;
        membership.handle_timeout(later);
        assert_eq!(actions(&mut membership), [Action::Join]);
        membership.joined(token(2), place(2), later);
        assert_eq!(
            actions(&mut membership),
            [Action::Subscribe(place(2)), Action::Leave(token(1))]
        );
    }

    #[test]
    fn who_gets_nothing_new_joins_ever_more_seldom_until_a_page_comes() {
        let mut now = Instant::now();
        let mut membership = member(now);
        let mut pauses = Vec::new();
        for number in 2..10 {
            let due = membership.poll_timeout().unwrap();
            pauses.push(due - now);
            now = due;
            membership.handle_timeout(now);
            membership.joined(token(number), place(1), now);
            actions(&mut membership);
        }
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[7]), (TIMING.silence, TIMING.silence * 16));
        membership.heard(now);
        assert_eq!(membership.poll_timeout(), Some(now + TIMING.silence * 16), "nothing new");
        membership.progressed(now);
        assert_eq!(membership.poll_timeout(), Some(now + TIMING.silence));
    }

    #[test]
    fn a_wish_for_an_endless_pause_is_granted_for_half_a_minute() {
        let now = Instant::now();
        let mut membership = Membership::new(TIMING, false);
        membership.opened();
        membership.join_failed(now, Duration::MAX);
        assert_eq!(membership.poll_timeout(), Some(now + RETRY_AFTER_MAX));
    }

    #[test]
    fn a_failed_join_is_repeated_ever_more_slowly_for_ever() {
        let mut now = Instant::now();
        let mut membership = Membership::new(TIMING, false);
        membership.opened();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert_eq!(actions(&mut membership), [Action::Join]);
            membership.join_failed(now, Duration::ZERO);
            let next = membership.poll_timeout().unwrap();
            pauses.push(next - now);
            now = next;
            membership.handle_timeout(now);
        }
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[39]), (RETRY_MIN, RETRY_MAX));
    }

    #[test]
    fn a_join_that_is_answered_after_everybody_left_is_given_back() {
        let start = Instant::now();
        let mut membership = Membership::new(Timing { linger: Duration::ZERO, ..TIMING }, false);
        membership.opened();
        membership.closed(start);
        membership.joined(token(1), place(1), start);
        assert_eq!(actions(&mut membership), [Action::Join, Action::Leave(token(1))]);
        assert!(membership.is_idle());
    }
}

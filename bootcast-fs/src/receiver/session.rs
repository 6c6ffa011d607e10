//! One membership after the other: when to be a member, which datagrams to believe, and whether the
//! cast is over.

use std::net::{SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::limits::{END_PATIENCE, END_PATIENCE_AT_FIRST};
use bootcast_proto::wire::Page;
use bootcast_proto::{BlockIndex, Geometry, JoinAnswer, PageIndex, Token};

use super::demand::Fill;
use super::ends::Ends;
use super::gate::{Checked, Epoch, Gate};
use super::membership::{Action, Membership, Silence, SilentSince, Subscription, Timing};
use super::senders::Senders;

/// Members of a cast that ended join again spread over this time.
pub(super) const REJOIN_SPREAD: Duration = Duration::from_millis(200);

/// Why missing pages can never arrive. Final.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server no longer has this version.
    #[error("the file changed on the server")]
    Stale,
    /// The server has no such file.
    #[error("{0}")]
    NotFound(String),
    /// The server refuses the file.
    #[error("{0}")]
    Refused(String),
    /// The server's answer does not follow the protocol.
    #[error("{0}")]
    Garbled(String),
    /// Pages cannot be stored here.
    #[error("cannot store what arrives: {0}")]
    Store(String),
}

/// Wishes that a join states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    /// Which pages should arrive.
    pub fill: Fill,
    /// Whether a part of the file is here, so that not all of it need come again.
    pub resumes: bool,
    /// Whether the cast should bring leaf lists.
    pub wants_leaf_lists: bool,
    /// Whether the server should send the profile: what readers of this content wanted first.
    pub wants_profile: bool,
}

/// Why a join had no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// A reason that may pass: no connection, an overloaded server, a file whose casts keep ending.
    Retry {
        /// The server's `Retry-After`, or zero.
        after: Duration,
        /// Message of the server, or the reason why nothing came.
        reason: String,
    },
    /// 404.
    NotFound(String),
    /// Another refusal.
    Refused(String),
    /// The answer does not follow the protocol.
    Garbled(String),
}

/// Datagrams by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages that were stored or rebuilt.
    pub pages: u64,
    /// Pages that were here already.
    pub duplicates: u64,
    /// Repair symbols, useful or not.
    pub symbols: u64,
    /// Datagrams that do not fit the cast.
    pub bad: u64,
    /// Datagrams from another address than the server's.
    pub strangers: u64,
    /// Datagrams from the server's address with a wrong tag.
    pub forged: u64,
    /// Datagrams of senders that are not listened to, because they forged, and pages that do not
    /// have the server's hash, or came before it.
    pub ignored: u64,
    /// Datagrams that this machine's socket had no room for.
    pub drops: u64,
    /// Leaves that arrived with wrong bytes.
    pub wrong_leaves: u64,
    /// Leaves that were taken from an older version.
    pub reused_leaves: u64,
}

/// Membership of one client in the casts of one version.
#[derive(Debug)]
pub(super) struct Session {
    membership: Membership,
    gate: Gate,
    senders: Senders,
    /// Announcements of the end of the cast.
    ends: Ends,
    /// Pages and symbols of this membership that were new.
    useful: u64,
    /// Wishes of the join in flight, or of the last one.
    asked: JoinOptions,
    /// Set once; no membership begins afterwards.
    failure: Option<Failure>,
}

impl Session {
    /// Starts without readers. If the file `is_complete`, no join is ever needed.
    pub(super) fn new(timing: Timing, is_complete: bool) -> Self {
        Self {
            membership: Membership::new(timing, is_complete),
            gate: Gate::default(),
            senders: Senders::default(),
            ends: Ends::default(),
            useful: 0,
            asked: JoinOptions {
                fill: Fill::Full,
                resumes: false,
                wants_leaf_lists: false,
                wants_profile: false,
            },
            failure: None,
        }
    }

    /// Asserts what holds between any two calls.
    pub(super) fn assert_invariants(&self, is_complete: bool) {
        assert!(
            self.membership.is_over() || self.failure.is_none(),
            "a member stays although the file failed"
        );
        debug_assert!(
            self.membership.is_over() || !is_complete,
            "a member stays although the file is complete"
        );
    }

    /// Adds a reader.
    pub(super) fn handle_open(&mut self) {
        self.membership.opened();
    }

    /// Removes a reader.
    pub(super) fn handle_close(&mut self, now: Instant) {
        self.membership.closed(now);
    }

    /// Number of readers.
    pub(super) fn readers(&self) -> usize {
        self.membership.readers()
    }

    /// Records what the next join asks for.
    pub(super) fn record_join(&mut self, asked: JoinOptions) {
        self.asked = asked;
    }

    /// Returns which pages the last join asked for.
    pub(super) fn joined_fill(&self) -> Fill {
        self.asked.fill
    }

    /// Handles an answer to a join. `has_repair`: this member should listen to the repair channel.
    /// Returns `false` if the file failed meanwhile: its membership is given back.
    pub(super) fn handle_join(
        &mut self,
        answer: &JoinAnswer,
        has_repair: bool,
        now: Instant,
    ) -> bool {
        let port = answer.extensions.repair.filter(|_| has_repair);
        let subscription = Subscription {
            connect: answer.connect,
            source: answer.extensions.source,
            repair: port.map(|port| SocketAddrV4::new(*answer.connect.ip(), port)),
        };
        self.membership.joined(answer.token.clone(), subscription, now);
        self.failure.is_none()
    }

    /// Starts a membership whose answer was accepted. `has_pages`: some are here already. Returns
    /// whether its join said that a part of the file is here.
    pub(super) fn begin(&mut self, answer: &JoinAnswer, has_pages: bool) -> bool {
        self.gate.begin(answer);
        self.senders.begin(has_pages);
        self.useful = 0;
        self.ends.begin();
        std::mem::take(&mut self.asked.resumes)
    }

    /// Handles a join that failed for a reason that may pass.
    pub(super) fn join_failed(&mut self, retry_after: Duration, now: Instant) {
        self.membership.join_failed(now, retry_after);
    }

    /// Facts that datagrams are checked against.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Names the present membership.
    pub(super) fn epoch(&self) -> Epoch {
        self.gate.epoch()
    }

    /// Whether a datagram may be believed; counts it if not.
    pub(super) fn admits(&self, checked: &Checked<'_>, counters: &mut Counters) -> bool {
        self.gate.admits(checked, counters)
    }

    /// Whether a datagram has the right tag, whatever address it comes from.
    pub(super) fn is_tagged(&self, checked: &Checked<'_>) -> bool {
        self.gate.is_tagged(checked)
    }

    /// Records the sender of a datagram that fits the cast.
    pub(super) fn record_sender(&mut self, sender: SocketAddr) {
        self.gate.record_sender(sender);
    }

    /// Records the sender of a page that is about to be stored.
    pub(super) fn record_page(&mut self, from: SocketAddr, page: PageIndex) {
        if let Some(sender) = self.gate.learn_sender(from) {
            self.senders.record_page(sender, page);
        }
    }

    /// Records the sender of a symbol that is about to be stored.
    pub(super) fn record_symbol(&mut self, from: SocketAddr, block: BlockIndex) {
        if let Some(sender) = self.gate.learn_sender(from) {
            self.senders.record_symbol(sender, block);
        }
    }

    /// Handles a page that is here already. Returns whether it shows that its sender is right.
    pub(super) fn record_repeat(&mut self, from: SocketAddr, page: Page<'_>) -> bool {
        if !self.senders.wants_repeats() {
            return false;
        }
        let sender = self.gate.learn_sender(from);
        sender.is_some_and(|sender| self.senders.record_repeat(sender, page.index, page.payload))
    }

    /// Senders of the present membership.
    pub(super) fn senders_mut(&mut self) -> &mut Senders {
        &mut self.senders
    }

    /// Addresses of the senders of the pages that cover these bytes, as far as they are known.
    pub(super) fn addresses(&self, bytes: &Range<u64>, geometry: &Geometry) -> Vec<SocketAddr> {
        let senders = self.senders.senders(bytes, geometry);
        senders.into_iter().filter_map(|sender| self.gate.address(sender)).collect()
    }

    /// Whether pages were wrong again and again, and no sender can be ignored for it.
    pub(super) fn is_nobody_to_blame(&self) -> bool {
        self.senders.is_nobody_to_blame()
    }

    /// Ignores the next sender that forged again and again. Returns its address.
    pub(super) fn ignore_next(&mut self) -> Option<SocketAddr> {
        let sender = self.senders.poll_ignored()?;
        self.gate.ignore(sender);
        self.gate.address(sender)
    }

    /// Handles a new page or a useful symbol.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.membership.progressed(now);
        self.ends.progressed();
        self.useful += 1;
    }

    /// Pages and symbols of this membership that were new.
    pub(super) fn useful(&self) -> u64 {
        self.useful
    }

    /// Records that the cast goes on, although nothing new came.
    pub(super) fn record_sign_of_life(&mut self, now: Instant) {
        self.membership.heard(now);
    }

    /// Handles a beacon newer than all before, with its number.
    pub(super) fn handle_beacon(&mut self, number: u32, now: Instant) {
        self.ends.beacon(number);
        self.membership.heard(now);
    }

    /// Handles a datagram that says that the cast ended, and that its next beacon would have had
    /// the number `next`. `newest` is the number of the newest beacon. `draw` returns a random time
    /// up to its argument, so that members do not join all at once.
    pub(super) fn handle_cast_end(
        &mut self,
        next: Option<u32>,
        newest: Option<u32>,
        draw: impl FnOnce(Duration) -> Duration,
        now: Instant,
    ) {
        if next.zip(newest).is_some_and(|(next, newest)| next <= newest) {
            // It is older than the beacon: a stranger sent it again.
            return;
        }
        let is_established = newest.is_some() && self.useful > 0;
        let quiet = if is_established { END_PATIENCE } else { END_PATIENCE_AT_FIRST };
        let pause = draw(REJOIN_SPREAD.saturating_sub(END_PATIENCE));
        self.ends.announced(next, now + quiet + pause);
    }

    /// Joins again if the cast ended and nothing of it came since.
    pub(super) fn rejoin_if_ended(&mut self, now: Instant) {
        if self.ends.due().is_some_and(|at| at <= now) {
            self.ends.believed();
            let pause = self.ends.pause(REJOIN_SPREAD).saturating_sub(REJOIN_SPREAD);
            self.membership.join_again(now + pause);
        }
    }

    /// Joins again because the server forgot this member, ever more seldom while that brings
    /// nothing. `draw` is as in [`Self::handle_cast_end`].
    pub(super) fn rejoin_forgotten(
        &mut self,
        draw: impl FnOnce(Duration) -> Duration,
        now: Instant,
    ) {
        let pause = self.ends.pause(draw(REJOIN_SPREAD));
        self.membership.join_again(now + pause);
    }

    /// Joins again at this time.
    pub(super) fn join_again(&mut self, at: Instant) {
        self.membership.join_again(at);
    }

    /// Sets whether datagrams are expected from now on.
    pub(super) fn expect(&mut self, something: bool, now: Instant) {
        self.membership.expect(something, now);
    }

    /// Sets the meaning of silence from now on.
    pub(super) fn expect_silence(&mut self, silence: Silence) {
        self.membership.expect_silence(silence);
    }

    /// Time without datagrams where some are expected.
    pub(super) fn silence(&self) -> Option<SilentSince> {
        self.membership.silence()
    }

    /// Leaves and enters the group, for switches that forgot this member.
    pub(super) fn relisten(&mut self) {
        self.membership.listen_anew();
    }

    /// Leaves for as long as nothing more can come.
    pub(super) fn rest(&mut self) {
        self.membership.rest();
    }

    /// Joins if a reader is there and nothing else is in flight: something may come again.
    pub(super) fn wake(&mut self) {
        self.membership.wake();
    }

    /// Does not join from now on, because another process of this machine is the member.
    pub(super) fn follow(&mut self) {
        self.membership.follow();
    }

    /// Joins from now on like any client.
    pub(super) fn stop_following(&mut self) {
        self.membership.stop_following();
    }

    /// Whether another process of this machine is the member.
    pub(super) fn follows(&self) -> bool {
        self.membership.follows()
    }

    /// Allows membership again, because pages are missing that were here.
    pub(super) fn reopen(&mut self) {
        if self.failure.is_none() {
            self.membership.reopen();
        }
    }

    /// Ends membership for good.
    pub(super) fn end(&mut self) {
        self.membership.end();
    }

    /// Ends membership for good because missing pages can never arrive. Keeps the first failure.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.membership.end();
    }

    /// Why missing pages can never arrive, if so.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Runs what is due, except [`Self::rejoin_if_ended`].
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.membership.handle_timeout(now);
    }

    /// When [`Self::handle_timeout`] or [`Self::rejoin_if_ended`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.membership.poll_timeout(), self.ends.due()].into_iter().flatten().min()
    }

    /// Queues an action of this member.
    pub(super) fn queue(&mut self, action: Action) {
        self.membership.act(action);
    }

    /// Returns the next action.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.membership.poll_action()
    }

    /// Whether [`Self::poll_action`] would return an action.
    pub(super) fn has_action(&self) -> bool {
        self.membership.has_action()
    }

    /// Token of the present membership, if there is one.
    pub(super) fn token(&self) -> Option<&Token> {
        self.membership.token()
    }

    /// Whether this client is a member or joins again.
    pub(super) fn is_member(&self) -> bool {
        self.membership.is_member()
    }

    /// Whether it is neither a member nor joining.
    pub(super) fn is_idle(&self) -> bool {
        self.membership.is_idle()
    }

    /// Joins in a row that failed.
    pub(super) fn join_failures(&self) -> u32 {
        self.membership.failures()
    }
}

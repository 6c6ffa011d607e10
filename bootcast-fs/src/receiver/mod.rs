//! Turns datagrams into the pages of one version of one file. Does no I/O: time and datagrams are
//! arguments, and what is to be done comes out as [`Action`]s.

mod access;
mod assembly;
mod channel;
mod course;
mod demand;
mod ending;
mod fetches;
mod gate;
mod hearing;
mod membership;
mod panel;
mod repair;
mod reporter;
mod stream;
mod unicast;
mod unreadable;
mod wants;

use std::net::{SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::join::Extensions;
use bootcast_proto::wire::DataError;
use bootcast_proto::{Etag, JoinAnswer, PageIndex, PageRange, Token};

pub use assembly::{Arrival, Assembly};
pub use channel::{RepairArrival, ReportError};
pub use demand::{Fill, WaitId};
pub use fetches::Fetch;
pub use gate::{Checked, Gate};
pub use membership::{Action, Subscription, Timing};
pub use repair::DecodePlan;
pub use unicast::{Cause, FetchError, Notice, Reception, UnicastMode};

use course::Course;
use demand::Demand;
use ending::Ends;
use membership::Membership;
use panel::Panel;
use repair::Repair;
use reporter::Reporter;
use unicast::Unicast;
use unreadable::Unreadable;

/// Conditions on the file that a join yields.
#[derive(Clone, Debug, Default)]
pub struct Pin {
    /// Version that the file must have; `None` accepts the version of the first answer.
    pub etag: Option<Etag>,
    /// Exact size, if known beforehand.
    pub size: Option<u64>,
}

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

/// Why a join had no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// A reason that may pass: no connection, an overloaded server, a file whose casts keep ending.
    Retry {
        /// The server's `Retry-After`, or zero.
        after: Duration,
        /// What the server said, or why nothing came.
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
    /// Pages that were held already.
    pub duplicates: u64,
    /// Repair symbols, useful or not.
    pub symbols: u64,
    /// Datagrams that do not fit the cast.
    pub bad: u64,
    /// Datagrams from another address than the server's.
    pub strangers: u64,
    /// Datagrams from the server's address with a wrong tag.
    pub forged: u64,
    /// Datagrams that this machine's socket had no room for.
    pub drops: u64,
}

/// Reception of one version of one file.
#[derive(Debug)]
pub struct Receiver {
    pin: Pin,
    membership: Membership,
    /// Held pages; `None` until the first answer states the page size.
    assembly: Option<Assembly>,
    gate: Gate,
    /// Blocks of the present cast; `None` if nothing repairs it or nothing is missing.
    repair: Option<Repair>,
    /// Rises whenever blocks get other pages.
    repair_round: u32,
    reporter: Reporter,
    /// Windows that the report in flight asks for.
    asked_windows: Vec<(u32, u32)>,
    /// Needs of the last report, which the server may have promised meanwhile.
    asked_needs: Vec<(u32, u8)>,
    /// Whether, by the newest beacon, sending the promised symbols takes longer than answering a
    /// report.
    is_supplied: bool,
    unicast: Unicast,
    demand: Demand,
    /// Position of the present cast's stream.
    course: Option<Course>,
    unreadable: Unreadable,
    /// What the server said of the end of the cast.
    ends: Ends,
    /// Pages and symbols of this membership that were new.
    useful: u64,
    /// The join on its way said that a part of the file is here.
    has_resumed: bool,
    /// Demands in a row for which the server did not know this member.
    forgotten: u32,
    failure: Option<Failure>,
    counters: Counters,
    panel: Panel,
}

impl Receiver {
    /// Creates a receiver of the file that `pin` describes. `kept` is what the cache kept of that
    /// version. `seed` must differ between members, because it spreads their actions in time.
    pub fn new(pin: Pin, kept: Option<Assembly>, timing: Timing, seed: u64) -> Self {
        let complete = kept.as_ref().is_some_and(Assembly::is_complete);
        Self {
            pin,
            membership: Membership::new(timing, complete),
            assembly: kept,
            gate: Gate::default(),
            repair: None,
            repair_round: 0,
            reporter: Reporter::new(seed),
            asked_windows: Vec::new(),
            asked_needs: Vec::new(),
            is_supplied: false,
            unicast: Unicast::default(),
            demand: Demand::default(),
            course: None,
            unreadable: Unreadable::default(),
            ends: Ends::default(),
            useful: 0,
            has_resumed: false,
            forgotten: 0,
            failure: None,
            counters: Counters::default(),
            panel: Panel::default(),
        }
    }

    /// Handles a reader that opened the file.
    pub fn handle_open(&mut self) {
        self.membership.opened();
    }

    /// Handles a reader that closed the file.
    pub fn handle_close(&mut self, now: Instant) {
        self.membership.closed(now);
    }

    /// Handles the answer to a join.
    pub fn handle_join(&mut self, answer: &JoinAnswer, now: Instant) {
        let repairs = self.fill() == Fill::Full && answer.block_layout().is_some();
        let port = answer.extensions.repair.filter(|_| repairs);
        let subscription = Subscription {
            connect: answer.connect,
            source: answer.extensions.source,
            repair: port.map(|port| SocketAddrV4::new(*answer.connect.ip(), port)),
        };
        self.membership.joined(answer.token.clone(), subscription, now);
        if self.failure.is_some() {
            // This join was under way when the file failed, so its membership is given back. After
            // a data loss its pages would be stored, and read, where others got lost.
            return;
        }
        if !self.adopt(answer) {
            self.fail(Failure::Stale);
            return;
        }
        self.gate.begin(answer);
        self.useful = 0;
        self.ends.begin();
        self.begin_repair(answer, now);
        self.begin_demand(answer, now);
        self.begin_unicast(answer, now);
        self.end_if_complete();
        self.assert_invariants();
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        assert!(
            self.repair.is_none() || self.assembly.is_some(),
            "blocks are repaired of a file that is not known"
        );
        debug_assert!(
            self.repair.is_none() || !self.is_complete(),
            "blocks are repaired of a file that is complete"
        );
        debug_assert!(
            self.membership.is_over() || !(self.is_complete() || self.failure.is_some()),
            "membership goes on although nothing can come any more"
        );
    }

    /// Accepts the answer if it has the pinned version, or pins its version. Returns `false` for
    /// another version.
    fn adopt(&mut self, answer: &JoinAnswer) -> bool {
        let Extensions { etag, size, .. } = &answer.extensions;
        if differ(self.pin.etag.as_ref(), etag.as_ref()) || differ(self.pin.size, *size) {
            return false;
        }
        let fits = if let Some(assembly) = &mut self.assembly {
            assembly.continue_with(answer)
        } else {
            self.assembly = Some(Assembly::begin(answer, self.pin.size));
            true
        };
        self.pin.etag = self.pin.etag.take().or_else(|| etag.clone());
        self.pin.size = self.pin.size.or(*size);
        fits
    }

    /// Whether a part of the file is here, so that a join need not bring all of it again. Told with
    /// the join; the first report then says what is lacking.
    pub fn resumes(&mut self) -> bool {
        let assembly = self.assembly.as_ref();
        self.has_resumed = self.fill() == Fill::Full
            && assembly.is_some_and(|assembly| assembly.held().held() > 0);
        self.has_resumed
    }

    /// Pages and symbols of the present membership that were of use.
    pub fn useful(&self) -> u64 {
        self.useful
    }

    /// Handles a join without a usable answer.
    pub fn handle_join_error(&mut self, error: JoinError, now: Instant) {
        match error {
            JoinError::Retry { after, .. } => self.membership.join_failed(now, after),
            // If a version was there before, "not found" means that it is gone.
            JoinError::NotFound(_) if self.assembly.is_some() => self.fail(Failure::Stale),
            JoinError::NotFound(message) => self.fail(Failure::NotFound(message)),
            JoinError::Refused(message) => self.fail(Failure::Refused(message)),
            JoinError::Garbled(message) => self.fail(Failure::Garbled(message)),
        }
    }

    /// Handles a datagram from `from`. A new page must be stored before [`Self::handle_stored`].
    pub fn handle_datagram<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &'a [u8],
        now: Instant,
    ) -> Arrival<'a> {
        self.handle_checked(&self.gate.check(from, datagram), now)
    }

    /// Like [`Self::handle_datagram`], for a datagram whose tag was checked before.
    pub fn handle_checked<'a>(&mut self, checked: &Checked<'a>, now: Instant) -> Arrival<'a> {
        if !self.gate.admits(checked, &mut self.counters) {
            return Arrival::Bad(DataError::Index);
        }
        let Some(assembly) = &mut self.assembly else {
            return Arrival::Bad(DataError::Index);
        };
        let arrival = assembly.arrived(checked.bytes);
        let (page, is_new) = match arrival {
            Arrival::New(page) => (page.index, true),
            Arrival::Duplicate(page) => {
                self.counters.duplicates += 1;
                (page, false)
            }
            Arrival::Bad(_) => {
                self.counters.bad += 1;
                return arrival;
            }
        };
        self.handle_page(page, now);
        self.gate.heard_from(checked.from);
        self.page_came(page, is_new, now);
        // A duplicate can prove that the last page is a phantom.
        self.end_if_complete();
        self.assert_invariants();
        arrival
    }

    fn handle_page(&mut self, page: PageIndex, now: Instant) {
        self.panel.received();
        let was_asked_for = self.demand.is_asked(page);
        self.demand.came(page, now);
        if was_asked_for {
            // A demanded page says nothing about the stream.
            return;
        }
        if let Some(repair) = &mut self.repair {
            repair.page_seen(page);
        }
    }

    /// Number that changes with every join: earlier datagrams may have other offsets.
    pub fn epoch(&self) -> u32 {
        self.gate.epoch()
    }

    /// Facts that datagrams are checked against at present.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Counts datagrams that the socket had no room for.
    pub fn handle_drops(&mut self, datagrams: u64) {
        self.counters.drops += datagrams;
        self.panel.dropped(datagrams);
        self.unicast.hearing_dropped(datagrams);
    }

    /// Handles pages that were stored.
    pub fn handle_stored(&mut self, pages: PageRange) {
        self.note_in_blocks(pages);
        self.demand.stored(pages);
        if let Some(assembly) = &mut self.assembly {
            assembly.stored(pages);
            self.counters.pages += u64::from(pages.len());
        }
        self.end_if_complete();
        self.rest_if_nothing_can_come();
        self.assert_invariants();
    }

    /// Handles a store that may have lost data: nothing in it counts any more.
    pub fn handle_store_lost(&mut self, message: String) {
        self.assembly = None;
        self.repair = None;
        self.fail(Failure::Store(message));
        self.assert_invariants();
    }

    /// Handles a store that accepts no more pages.
    pub fn handle_store_error(&mut self, message: String) {
        self.fail(Failure::Store(message));
    }

    fn end_if_complete(&mut self) {
        if self.is_complete() {
            self.repair = None;
            self.membership.end();
        }
    }

    fn fail(&mut self, failure: Failure) {
        if !self.is_complete() {
            self.failure.get_or_insert(failure);
        }
        self.membership.end();
    }

    /// Ends the membership because the client is stopping.
    pub fn shut_down(&mut self) {
        self.membership.end();
    }

    /// Runs what is due. Call it after the datagrams that have arrived were handed in: what is
    /// overdue counts as lost.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lose_late_pages(now);
        self.want_if_due(now);
        self.tend_unicast(now);
        self.rejoin_if_ended(now);
        self.membership.handle_timeout(now);
        self.report_if_due(now);
        self.assert_invariants();
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = [self.membership.poll_timeout(), self.poll_report(), self.poll_demand()];
        own.into_iter().chain([self.poll_unicast(), self.ends.due()]).flatten().min()
    }

    /// Returns the next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        let is_deaf = self.unicast.is_deaf();
        let mut actions = std::iter::from_fn(|| self.membership.poll_action());
        let action = actions.find(|action| !(is_deaf && matches!(action, Action::Subscribe(_))));
        action.or_else(|| self.poll_want().map(Action::Want))
    }

    /// Whether [`Self::poll_action`] is worth asking at once.
    pub fn has_action(&self) -> bool {
        self.membership.has_action()
    }

    /// Whether every page is held.
    pub fn is_complete(&self) -> bool {
        self.assembly.as_ref().is_some_and(Assembly::is_complete)
    }

    /// Whether all of these bytes are held.
    pub fn holds(&self, bytes: &Range<u64>) -> bool {
        self.assembly.as_ref().is_some_and(|assembly| assembly.holds(bytes))
    }

    /// Exact size, once known.
    pub fn size(&self) -> Option<u64> {
        self.assembly.as_ref().and_then(Assembly::size).or(self.pin.size)
    }

    /// Version, once known. A plain server names none.
    pub fn etag(&self) -> Option<&Etag> {
        self.pin.etag.as_ref()
    }

    /// Why missing pages can never arrive, if so.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Held pages, once the page size is known.
    pub fn assembly(&self) -> Option<&Assembly> {
        self.assembly.as_ref()
    }

    /// Datagrams so far, by result.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Number of readers.
    pub fn readers(&self) -> usize {
        self.membership.readers()
    }

    /// Whether there is nothing to do for this file except to keep it.
    pub fn is_idle(&self) -> bool {
        self.membership.is_idle()
    }

    /// Whether this version can be opened: the server confirmed it in this membership, or all of it
    /// is held, or the server is away and some of it is held.
    pub fn is_confirmed(&self) -> bool {
        let begun = self.assembly.is_some();
        begun && (self.is_complete() || self.is_member() || self.join_failures() > 0)
    }

    /// Whether it is a member of a cast.
    pub fn is_member(&self) -> bool {
        self.membership.is_member()
    }

    /// Token of the present membership.
    pub fn token(&self) -> Option<&Token> {
        self.membership.token()
    }

    /// Joins in a row that failed.
    pub fn join_failures(&self) -> u32 {
        self.membership.failures()
    }
}

/// Whether both are known and differ.
fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use std::net::IpAddr;

    use bootcast_proto::{Layout, PageSize};

    use super::*;

    const TIMING: Timing =
        Timing { linger: Duration::from_secs(10), silence: Duration::from_secs(2) };
    const SERVER: SocketAddr =
        SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 40_000);

    fn answer(token: u128, etag: Option<&str>) -> JoinAnswer {
        JoinAnswer {
            connect: "239.255.0.1:9000".parse().unwrap(),
            token: Token::from_random(token),
            pages: 2,
            page_size: PageSize::new(4).unwrap(),
            extensions: Extensions {
                size: Some(6),
                etag: etag.map(|etag| Etag::new(etag).unwrap()),
                rate: None,
                source: Some(SERVER.ip()),
                ..Extensions::default()
            },
        }
    }

    fn actions(receiver: &mut Receiver) -> Vec<Action> {
        std::iter::from_fn(|| receiver.poll_action()).collect()
    }

    fn joined(now: Instant) -> Receiver {
        let mut receiver = Receiver::new(Pin::default(), None, TIMING, 1);
        receiver.handle_open();
        receiver.handle_join(&answer(1, Some("v1")), now);
        actions(&mut receiver);
        receiver
    }

    /// Feeds a page and marks it as held.
    fn feed(receiver: &mut Receiver, number: u32, payload: &[u8], now: Instant) {
        let mut bytes = Layout::Base.header(PageIndex(number - 1), 2, payload).to_vec();
        bytes.extend_from_slice(payload);
        if let Arrival::New(page) = receiver.handle_datagram(SERVER, &bytes, now) {
            receiver.handle_stored(PageRange::single(page.index));
        }
    }

    #[test]
    fn the_leave_goes_out_when_all_pages_are_there() {
        let now = Instant::now();
        let mut receiver = joined(now);
        feed(&mut receiver, 1, b"aaaa", now);
        assert_eq!(actions(&mut receiver), []);
        feed(&mut receiver, 2, b"bb", now);
        let leave = Action::Leave(Token::from_random(1));
        assert_eq!(actions(&mut receiver), [Action::Unsubscribe, leave]);
        assert!(receiver.is_complete() && receiver.is_idle());
    }

    #[test]
    fn a_strangers_datagram_is_counted_and_forgotten() {
        let now = Instant::now();
        let mut receiver = joined(now);
        let mut bytes = Layout::Base.header(PageIndex(0), 2, b"evil").to_vec();
        bytes.extend_from_slice(b"evil");
        let stranger = SocketAddr::from(([192, 0, 2, 66], SERVER.port()));
        assert!(matches!(receiver.handle_datagram(stranger, &bytes, now), Arrival::Bad(_)));
        assert_eq!(receiver.counters().strangers, 1);
        assert!(!receiver.holds(&(0..4)));
    }

    #[test]
    fn another_cast_on_the_same_group_is_silence_until_the_next_join() {
        let start = Instant::now();
        let mut receiver = joined(start);
        feed(&mut receiver, 1, b"aaaa", start);
        let restarted = SocketAddr::new(SERVER.ip(), SERVER.port() + 1);
        let mut bytes = Layout::Base.header(PageIndex(1), 2, b"zz").to_vec();
        bytes.extend_from_slice(b"zz");
        let later = start + TIMING.silence;
        assert!(matches!(receiver.handle_datagram(restarted, &bytes, later), Arrival::Bad(_)));
        receiver.handle_timeout(later);
        assert_eq!(actions(&mut receiver), [Action::Join]);
        receiver.handle_join(&answer(2, Some("v1")), later);
        assert!(matches!(receiver.handle_datagram(restarted, &bytes, later), Arrival::New(_)));
    }

    #[test]
    fn a_server_that_comes_back_with_the_same_version_goes_on_where_it_was() {
        let start = Instant::now();
        let mut receiver = joined(start);
        feed(&mut receiver, 1, b"aaaa", start);
        let later = start + TIMING.silence;
        receiver.handle_timeout(later);
        assert_eq!(actions(&mut receiver), [Action::Join]);
        receiver.handle_join(&answer(2, Some("v1")), later);
        assert!(receiver.holds(&(0..4)));
        feed(&mut receiver, 2, b"bb", later);
        assert!(receiver.is_complete());
    }

    #[test]
    fn another_version_is_never_mixed_in_and_the_membership_is_given_back() {
        let start = Instant::now();
        let mut receiver = joined(start);
        receiver.handle_timeout(start + TIMING.silence);
        actions(&mut receiver);
        receiver.handle_join(&answer(2, Some("v2")), start + TIMING.silence);
        assert_eq!(receiver.failure(), Some(&Failure::Stale));
        let left: Vec<_> = actions(&mut receiver)
            .into_iter()
            .filter(|action| matches!(action, Action::Leave(_)))
            .collect();
        assert_eq!(left, [1, 2].map(|token| Action::Leave(Token::from_random(token))));
        feed(&mut receiver, 2, b"bb", start + TIMING.silence);
        assert!(receiver.is_idle());
    }

    #[test]
    fn a_file_that_vanished_is_stale_for_those_who_have_begun_it() {
        let now = Instant::now();
        let mut begun = joined(now);
        begun.handle_join_error(JoinError::NotFound("no such file".into()), now);
        assert_eq!(begun.failure(), Some(&Failure::Stale));
        let mut new = Receiver::new(Pin::default(), None, TIMING, 1);
        new.handle_open();
        new.handle_join_error(JoinError::NotFound("no such file".into()), now);
        assert_eq!(new.failure(), Some(&Failure::NotFound("no such file".into())));
    }

    #[test]
    fn what_was_kept_complete_never_joins() {
        let geometry = bootcast_proto::Geometry::new(6, PageSize::new(4).unwrap()).unwrap();
        let mut held = bootcast_proto::PageSet::new(2);
        held.insert_range(PageRange::new(0, 2));
        let kept = Some(Assembly::resume(geometry, held));
        let mut receiver = Receiver::new(Pin::default(), kept, TIMING, 1);
        receiver.handle_open();
        assert_eq!(actions(&mut receiver), []);
        assert!(receiver.holds(&(0..6)));
    }
}

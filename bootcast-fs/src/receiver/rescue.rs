//! Decides when to fetch a file over HTTP because no multicast arrives, and when to return to
//! multicast. docs/PROTOCOL.md, "Unicast".

mod deafness;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{JoinAnswer, PageRange};

use super::fetches::{Fetch, Fetches, Missing, Scope};
use super::hearing::{Hearing, PATIENCE};
use super::membership::{Silence, SilentSince};
use super::{Assembly, Fill};
pub use deafness::{Cause, Notice};
pub(super) use deafness::{PageArrival, Repeat};
use deafness::{Probe, Returns};

/// Time between two times that a member that receives nothing enters its group again, in case a
/// switch forgot it.
const RELISTEN: Duration = Duration::from_secs(60);
/// After this many refusals in a row over HTTP of a version that can be joined, the server counts
/// as one without files over HTTP.
pub(super) const MAX_CONTRADICTIONS: u32 = 3;

/// Whether a file may be fetched over HTTP if multicast does not bring it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnicastMode {
    /// While no multicast arrives.
    Auto,
    /// Never: without multicast, readers wait.
    #[default]
    Never,
    /// From the start, without listening to any group.
    Always,
}

/// Way in which the file arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// Not known yet.
    Unknown,
    /// By multicast: a datagram of the present cast arrived.
    Multicast,
    /// Over HTTP, because no datagram arrived.
    Unicast,
}

/// Why a fetch ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// A reason that may pass.
    Retry {
        /// The server's `Retry-After`, or zero.
        after: Duration,
    },
    /// The path leads to another version or nowhere.
    Changed,
    /// The server refuses.
    Refused(String),
    /// The answer does not follow the protocol.
    Garbled(String),
    /// The server cannot read these bytes of the file.
    Unreadable(Range<u64>),
    /// The bytes cannot be stored. The receiver knows.
    Store,
}

/// Whether one receiver relies on multicast.
///
/// ```text
///  join --> Listening --- no page for a second ---> Fetching
///             |                                     ^    |
///          full page    pages sent, none came; -----'    | several full pages, and no sooner
///             v         silence, server alive            | than the last relapse allows
///           Hearing <------------------------------------'
/// ```
#[derive(Debug, Default)]
pub(super) struct Rescue {
    mode: UnicastMode,
    server: Server,
    hearing: Hearing,
    /// Since when pages should come and no full one did.
    awaited_since: Option<Instant>,
    /// Whether a full page or a useful symbol of the present cast arrived.
    has_heard: bool,
    is_fetching: bool,
    returns: Returns,
    probe: Probe,
    /// Notices for the user.
    notices: Vec<Notice>,
    /// UDP ports of the present cast: that of the pages, and that of the repair channel.
    ports: (u16, u16),
    /// Times that this member asked for pages that a closed repair channel does not bring.
    asked: u32,
    /// When it asks again.
    ask_at: Option<Instant>,
    /// Whether the newest report said that this member fetches.
    reports_unicast: bool,
    /// Fetches in a row for which the server denied a version that can be joined.
    contradictions: u32,
    relisten: Relisten,
    fetches: Fetches,
    /// Decisions that the other machines must follow.
    events: VecDeque<RescueEvent>,
}

/// State of the other machines that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct RescueView<'a> {
    /// Pages of the file; `None` until the page size is known.
    pub(super) assembly: Option<&'a Assembly>,
    /// Datagrams that the server sent, by the newest beacon.
    pub(super) sent: u64,
    /// Time without datagrams where some are expected.
    pub(super) silence: Option<SilentSince>,
    /// Whether this client is a member or joins again.
    pub(super) is_member: bool,
    /// Whether the membership has a token, so that requests may go out.
    pub(super) has_token: bool,
    /// Whether this client is a member and lacks pages that can still arrive.
    pub(super) needs_pages: bool,
}

/// Decision that the other machines must follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RescueEvent {
    /// Report as soon as possible.
    Report,
    /// Interpret silence like this from now on.
    Silence(Silence),
    /// Multicast brings the file again: all that is missing may be reported.
    MulticastReturned,
    /// Leave the group and enter it again.
    Relisten,
    /// Demand these pages, which nothing else brings.
    Want(Want),
}

/// State of the reception, for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReportState {
    /// Whether nothing of the repair channel comes.
    pub(super) stream_only: bool,
    /// Whether this member fetches the file, so that it needs nothing from the cast.
    pub(super) unicast: bool,
}

/// State of a member that fetches and tries to receive multicast again.
#[derive(Clone, Copy, Debug, Default)]
struct Relisten {
    /// When to enter the group again.
    at: Option<Instant>,
    /// Whether one demand may go out, to see if its pages arrive.
    may_demand: bool,
}

/// State of the present cast's server.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    /// Whether it serves files of this version over HTTP.
    has_files: bool,
    /// Whether reports keep the membership, so that no new join is needed.
    has_lease: bool,
    /// Whether it believes that this member fetches the file.
    believes: bool,
}

impl Rescue {
    fn begin_membership(
        &mut self,
        answer: &JoinAnswer,
        listens_to_repair: bool,
        expects_pages: bool,
    ) {
        // A member without a lease cannot demand: it gets the stream.
        let expects_stream = expects_pages || answer.extensions.lease.is_none();
        self.hearing.begin(listens_to_repair, expects_stream);
        self.ports = (answer.connect.port(), answer.extensions.repair.unwrap_or_default());
        self.probe = Probe::None;
        self.returns.waits = false;
        (self.ask_at, self.asked) = (None, 0);
        let is_versioned = answer.extensions.etag.is_some() && answer.extensions.size.is_some();
        self.server = Server {
            has_files: is_versioned && self.contradictions < MAX_CONTRADICTIONS,
            has_lease: answer.extensions.lease.is_some(),
            believes: false,
        };
        self.awaited_since = None;
        self.has_heard = false;
        self.is_fetching |= self.mode == UnicastMode::Always;
        self.is_fetching &= self.server.has_files;
        self.assert_invariants();
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        debug_assert!(
            self.server.has_files || !self.is_fetching,
            "a member fetches from a server without files"
        );
        debug_assert!(
            self.server.has_files || self.awaited_since.is_none(),
            "a member would fetch soon from a server without files"
        );
    }

    /// Sets whether pages should come from now on.
    pub(super) fn expect(&mut self, something: bool, now: Instant) {
        if !something {
            self.awaited_since = None;
        } else if self.may_fall_back() && !self.is_fetching {
            self.awaited_since.get_or_insert(now);
        }
    }

    /// Whether the file may be fetched where multicast does not bring it.
    fn may_fall_back(&self) -> bool {
        self.mode == UnicastMode::Auto && self.server.has_files
    }

    /// When the stream has brought what it will, and the closed repair channel cannot bring the
    /// rest.
    fn stalled_at(&self) -> Option<Instant> {
        let stalled = self.hearing.stalled_at().filter(|_| !self.is_fetching)?;
        Some(self.ask_at.map_or(stalled, |at| at.max(stalled)))
    }

    /// Whether pages were sent by the beacons and none came: what is counted then says nothing of
    /// the rate.
    pub(super) fn is_suspect(&self, sent: u64) -> bool {
        self.hearing.is_suspect(sent)
    }

    /// Counts datagrams that this machine's sockets had no room for.
    pub(super) fn handle_drops(&mut self, datagrams: u64) {
        self.hearing.dropped(datagrams);
    }

    /// Whether beacons are expected and do not come.
    fn lacks_repair(&self) -> bool {
        self.hearing.is_repair_closed()
    }

    /// Whether the server must be told of a change. A new membership says nothing until it is known
    /// whether datagrams arrive.
    fn must_report(&self) -> bool {
        let Server { has_lease, believes, .. } = self.server;
        has_lease && believes != self.is_fetching && self.awaited_since.is_none()
    }

    /// Whether missing pages should be reported.
    pub(super) fn relies_on_multicast(&self) -> bool {
        !self.is_fetching
    }

    /// Whether a demand may go out. A member that fetches gets one each time it enters its group
    /// again.
    pub(super) fn may_want(&self) -> bool {
        self.relies_on_multicast() || self.relisten.may_demand
    }

    /// Records that a demand goes out.
    pub(super) fn wanted(&mut self) {
        self.relisten.may_demand = false;
    }

    /// Whether no group is listened to.
    pub(super) fn is_deaf(&self) -> bool {
        self.mode == UnicastMode::Always && self.server.has_files
    }

    /// Sets whether the file may be fetched over HTTP. Never, by default.
    pub(super) fn set_mode(&mut self, mode: UnicastMode) {
        self.mode = mode;
    }

    /// Starts a membership whose answer was accepted. `listens_to_repair`: there is a repair
    /// channel, and this member listens to it. `expects_pages`: the server sends pages unasked.
    pub(super) fn begin(
        &mut self,
        answer: &JoinAnswer,
        listens_to_repair: bool,
        expects_pages: bool,
        now: Instant,
    ) {
        self.begin_membership(answer, listens_to_repair, expects_pages);
        if expects_pages {
            self.expect(true, now);
        }
        self.review_silence();
        self.request_report();
    }

    /// Fetches from the beginning, and listens all the same, because multicast did not come for
    /// other files lately. With `reports` the server hears of it at once and sends nothing for this
    /// member. Otherwise it gets a second to show that multicast comes again.
    pub(super) fn presume_no_multicast(&mut self, reports: bool, now: Instant) {
        if self.awaited_since.is_some() && !self.has_heard {
            self.is_fetching = true;
            if reports {
                self.awaited_since = None;
                self.relisten.at = Some(now + RELISTEN);
            }
            self.review_silence();
            self.request_report();
        }
    }

    /// Runs what is due. Must be called before `Session` handles the time-out, because that would
    /// join again for silence.
    pub(super) fn handle_timeout(&mut self, view: &RescueView<'_>, now: Instant) {
        self.fetches.handle_timeout(now);
        let is_overdue = self.awaited_since.take_if(|since| *since + PATIENCE <= now).is_some();
        if is_overdue && view.is_member {
            self.nothing_came(view, now);
        }
        if self.hearing.handle_timeout(now) {
            self.notify(Cause::RepairLost { port: self.ports.1 }, false);
            self.events.push_back(RescueEvent::Report);
        }
        if self.stalled_at().is_some_and(|at| at <= now) && view.needs_pages {
            self.go_on_without_repair(view, now);
        }
        self.tend_silence(view.silence, now);
        let relistens = self.relisten.at.take_if(|at| *at <= now).is_some();
        if relistens && self.is_fetching && view.needs_pages {
            self.events.push_back(RescueEvent::Relisten);
            self.relisten = Relisten { at: Some(now + RELISTEN), may_demand: true };
        }
        self.assert_invariants();
    }

    /// When [`Self::handle_timeout`] is due, while a member.
    pub(super) fn poll_timeout(&self, silence: Option<SilentSince>) -> Option<Instant> {
        let silence = self.fetchable_silence(silence).and_then(|silence| match self.probe {
            Probe::None => Some(silence.ask_at()),
            Probe::Asked => None,
            Probe::Answered => Some(silence.end()),
        });
        let patience = self.awaited_since.map(|since| since + PATIENCE);
        let own = [patience, self.relisten.at, self.fetches.poll_timeout()];
        let repair = [self.hearing.repair_deadline(), self.stalled_at()];
        own.into_iter().chain(repair).chain([silence]).flatten().min()
    }

    /// Returns what the other machines must do, oldest first.
    pub(super) fn poll_event(&mut self) -> Option<RescueEvent> {
        self.events.pop_front()
    }

    /// Tells the membership what silence means from now on.
    fn review_silence(&mut self) {
        let Self { is_fetching, returns, server: Server { has_lease, .. }, .. } = self;
        let silence = match (*is_fetching || returns.waits, *has_lease) {
            (false, _) => Silence::Short,
            // The answers to reports tell whether the cast still exists.
            (true, true) => Silence::Endless,
            (true, false) => Silence::Long,
        };
        self.events.push_back(RescueEvent::Silence(silence));
    }

    /// Requests a report as soon as possible if the server must be told of a change.
    pub(super) fn request_report(&mut self) {
        if self.must_report() {
            self.events.push_back(RescueEvent::Report);
        }
    }

    /// Returns the state of the reception, for the report that goes out now.
    pub(super) fn report_state(&mut self) -> ReportState {
        let state = ReportState {
            stream_only: self.lacks_repair(),
            unicast: self.is_fetching && self.awaited_since.is_none(),
        };
        self.reports_unicast = state.unicast;
        state
    }

    /// Handles an accepted report.
    pub(super) fn report_accepted(&mut self) {
        self.server.believes = self.reports_unicast;
        if self.probe == Probe::Asked {
            self.probe = Probe::Answered;
        }
        self.request_report();
    }

    /// Returns how the file arrives at present. A file fetched by choice learns nothing about
    /// multicast.
    pub(super) fn reception(&self) -> Reception {
        let fetches = self.is_fetching && !self.is_deaf();
        match (fetches, self.has_heard) {
            (true, _) => Reception::Unicast,
            (false, true) => Reception::Multicast,
            (false, false) => Reception::Unknown,
        }
    }

    /// Fetches these pages even while multicast arrives: they were demanded and did not come.
    pub(super) fn fetch_now(&mut self, pages: PageRange) {
        if self.may_fetch_named() {
            self.fetches.name(pages);
        }
    }

    /// Whether single pages may be fetched.
    pub(super) fn may_fetch_named(&self) -> bool {
        self.mode != UnicastMode::Never && self.server.has_files
    }

    /// Returns what may be fetched at present.
    pub(super) fn scope(&self, fill: Fill) -> Scope {
        match (self.is_fetching, fill) {
            (false, _) => Scope::Named,
            (true, Fill::Demand) => Scope::Waited,
            (true, Fill::Full) => Scope::All,
        }
    }

    /// Whether [`Self::poll_fetch`] may return a request.
    pub(super) fn may_fetch(&self) -> bool {
        self.is_fetching || self.fetches.has_named()
    }

    /// Returns a request to send.
    pub(super) fn poll_fetch(&mut self, missing: &Missing<'_>, now: Instant) -> Option<Fetch> {
        if !self.may_fetch() {
            return None;
        }
        self.fetches.poll(missing, now)
    }

    /// Handles that all bytes of a fetch before `next` are stored. Returns `false` if the request
    /// should end.
    pub(super) fn handle_fetched(&mut self, id: u64, next: u64, missing: &Missing<'_>) -> bool {
        self.contradictions = 0;
        self.fetches.came(id, next, missing) && self.may_fetch()
    }

    /// Records a refusal over HTTP of a version that can be joined.
    pub(super) fn file_changed(&mut self) {
        self.contradictions += 1;
    }

    /// Ends a fetch. `failed` holds the pause that the server asked for after an error.
    pub(super) fn fetch_ended(&mut self, id: u64, failed: Option<Duration>, now: Instant) {
        self.fetches.ended(id, failed, now);
    }

    /// Handles a read of these bytes, whether they are here or not.
    pub(super) fn read(&mut self, bytes: &Range<u64>) {
        self.fetches.read(bytes);
    }

    /// Fetches in a row that brought nothing.
    pub(super) fn fetch_failures(&self) -> u32 {
        self.fetches.failures()
    }
}

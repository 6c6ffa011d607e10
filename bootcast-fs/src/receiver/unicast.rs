//! Decides when to fetch a file over HTTP because no multicast arrives, and when to return to
//! multicast. docs/PROTOCOL.md, "Unicast".

mod deafness;

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::{JoinAnswer, PageRange, PageSet};

use super::fetches::{Fetch, Fetches, Missing, Scope};
use super::hearing::{Hearing, PATIENCE};
use super::membership::Silence;
use super::{Assembly, Failure, Fill, Receiver};
pub use deafness::{Cause, Notice};
use deafness::{Probe, Returns};

/// How often a member that receives nothing enters its group again, in case a switch forgot it.
const RELISTEN: Duration = Duration::from_secs(60);
/// After this many refusals in a row over HTTP of a version that can be joined, the server counts
/// as one without files over HTTP.
const MAX_CONTRADICTIONS: u32 = 3;

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

/// How the file arrives.
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
pub(super) struct Unicast {
    mode: UnicastMode,
    server: Server,
    hearing: Hearing,
    /// Pages should come since then, and no full one did.
    awaited_since: Option<Instant>,
    /// A full page or a useful symbol of the present cast came.
    has_heard: bool,
    is_fetching: bool,
    returns: Returns,
    probe: Probe,
    /// What the user is to be told.
    notices: Vec<Notice>,
    /// UDP ports of the present cast: of the pages and of the repair channel.
    ports: (u16, u16),
    /// Before pages are asked for that a closed repair channel does not bring.
    ask_pause: Duration,
    ask_at: Option<Instant>,
    /// Whether a report with the news is in flight.
    telling: bool,
    /// Fetches in a row for which the server denied a version that can be joined.
    contradictions: u32,
    relisten: Relisten,
    pub(super) fetches: Fetches,
}

/// How a member that fetches tries to receive multicast again.
#[derive(Clone, Copy, Debug, Default)]
struct Relisten {
    /// When to enter the group again.
    at: Option<Instant>,
    /// Whether one demand may go out, to see if its pages arrive.
    probes: bool,
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

impl Unicast {
    /// A membership begins. `listens_to_repair`: there is a repair channel, and this member hears
    /// it.
    fn joined(&mut self, answer: &JoinAnswer, listens_to_repair: bool) {
        self.hearing.begin(listens_to_repair);
        self.ports = (answer.connect.port(), answer.extensions.repair.unwrap_or_default());
        self.probe = Probe::None;
        self.returns.waits = false;
        (self.ask_at, self.ask_pause) = (None, PATIENCE);
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

    /// Pages should come from now on, if not before.
    pub(super) fn expect(&mut self, now: Instant) {
        if self.mode == UnicastMode::Auto && self.server.has_files && !self.is_fetching {
            self.awaited_since.get_or_insert(now);
        }
    }

    /// Whether the file may be fetched where multicast does not bring it.
    fn may_fall_back(&self) -> bool {
        self.mode == UnicastMode::Auto && self.server.has_files
    }

    /// Expects no datagrams at present.
    pub(super) fn expect_nothing(&mut self) {
        self.awaited_since = None;
    }

    /// Runs what is due. Returns whether nothing arrived for too long.
    fn handle_timeout(&mut self, now: Instant) -> bool {
        self.fetches.handle_timeout(now);
        self.awaited_since.take_if(|since| *since + PATIENCE <= now).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let patience = self.awaited_since.map(|since| since + PATIENCE);
        let own = [patience, self.relisten.at, self.fetches.poll_timeout()];
        let repair = [self.hearing.repair_deadline(), self.stalled_at()];
        own.into_iter().chain(repair).flatten().min()
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

    /// This machine's sockets had no room for datagrams.
    pub(super) fn hearing_dropped(&mut self, datagrams: u64) {
        self.hearing.dropped(datagrams);
    }

    /// Whether beacons are expected and do not come.
    pub(super) fn lacks_repair(&self) -> bool {
        self.hearing.is_repair_closed()
    }

    /// Whether the server must be told of a change. A new membership says nothing until it is known
    /// whether datagrams arrive.
    fn has_news(&self) -> bool {
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
        self.relies_on_multicast() || self.relisten.probes
    }

    /// Records that a demand goes out.
    pub(super) fn wanted(&mut self) {
        self.relisten.probes = false;
    }

    /// Whether no group is listened to.
    pub(super) fn is_deaf(&self) -> bool {
        self.mode == UnicastMode::Always && self.server.has_files
    }
}

impl Receiver {
    /// Sets whether the file may be fetched over HTTP. Never, by default.
    pub fn set_unicast(&mut self, mode: UnicastMode) {
        self.unicast.mode = mode;
    }

    /// Multicast did not come for other files lately: fetches from the beginning, and listens all
    /// the same. `tells`: the server hears of it at once, and sends nothing for this member; else
    /// it gets a second to show that multicast comes again.
    pub fn presume_no_multicast(&mut self, tells: bool, now: Instant) {
        let unicast = &mut self.unicast;
        if unicast.awaited_since.is_some() && !unicast.has_heard {
            unicast.is_fetching = true;
            if tells {
                unicast.awaited_since = None;
                unicast.relisten.at = Some(now + RELISTEN);
            }
            self.adjust_silence();
            self.tell_news(now);
        }
    }

    /// Starts a membership whose answer was accepted: the server sends for it.
    pub(super) fn begin_unicast(&mut self, answer: &JoinAnswer, now: Instant) {
        self.unicast.joined(answer, self.repair.is_some());
        if self.fill() == Fill::Full {
            self.unicast.expect(now);
        }
        self.adjust_silence();
        self.tell_news(now);
    }

    /// Runs what is due. Comes before the membership's turn, which would join again for silence.
    pub(super) fn tend_unicast(&mut self, now: Instant) {
        if self.unicast.handle_timeout(now) && self.membership.is_member() {
            self.become_deaf_of_nothing(now);
        }
        if self.unicast.hearing.handle_timeout(now) {
            let port = self.unicast.ports.1;
            self.unicast.notify(Cause::RepairLost { port }, false);
            self.reporter.hurry(now);
        }
        if self.unicast.stalled_at().is_some_and(|at| at <= now) && self.wants_fetches() {
            self.go_on_without_repair(now);
        }
        self.tend_silence(now);
        if self.unicast.relisten.at.take_if(|at| *at <= now).is_some() && self.is_fetching() {
            self.membership.listen_anew();
            self.unicast.relisten.probes = true;
            self.unicast.relisten.at = Some(now + RELISTEN);
        }
        self.unicast.assert_invariants();
    }

    /// When [`Self::tend_unicast`] is due.
    pub(super) fn poll_unicast(&self) -> Option<Instant> {
        if !self.membership.is_member() {
            return None;
        }
        let silence = self.silence().and_then(|silence| match self.unicast.probe {
            Probe::None => Some(silence.ask_at()),
            Probe::Asked => None,
            Probe::Answered => Some(silence.end()),
        });
        [self.unicast.poll_timeout(), silence].into_iter().flatten().min()
    }

    fn adjust_silence(&mut self) {
        let Unicast { is_fetching, returns, server: Server { has_lease, .. }, .. } = self.unicast;
        self.membership.expect_silence(match (is_fetching || returns.waits, has_lease) {
            (false, _) => Silence::Short,
            // The answers to reports tell whether the cast still exists.
            (true, true) => Silence::Endless,
            (true, false) => Silence::Long,
        });
    }

    /// Requests a report as soon as possible if the server must be told of a change.
    pub(super) fn tell_news(&mut self, now: Instant) {
        if self.unicast.has_news() {
            self.reporter.hurry(now);
        }
    }

    /// What a member that fetches the file tells instead of what it lacks, and what every member
    /// tells of how it hears.
    pub(super) fn note_in_report(&mut self, report: &mut Report) {
        report.useful = self.useful;
        report.stream_only = self.unicast.lacks_repair();
        report.unicast = self.unicast.is_fetching && self.unicast.awaited_since.is_none();
        self.unicast.telling = report.unicast;
        if report.unicast {
            (report.needs, report.bulk) = (Vec::new(), Vec::new());
        }
    }

    /// Handles an accepted report.
    pub(super) fn told(&mut self, now: Instant) {
        self.unicast.server.believes = self.unicast.telling;
        if self.unicast.probe == Probe::Asked {
            self.unicast.probe = Probe::Answered;
        }
        self.tell_news(now);
    }

    fn is_fetching(&self) -> bool {
        self.unicast.is_fetching && self.wants_fetches()
    }

    fn wants_fetches(&self) -> bool {
        self.failure.is_none() && self.membership.is_member() && !self.is_complete()
    }

    /// How the file arrives at present. A file fetched by choice learns nothing about multicast.
    pub fn reception(&self) -> Reception {
        let fetches = self.unicast.is_fetching && !self.unicast.is_deaf();
        match (fetches, self.unicast.has_heard) {
            (true, _) => Reception::Unicast,
            (false, true) => Reception::Multicast,
            (false, false) => Reception::Unknown,
        }
    }

    /// Fetches these pages even while multicast arrives: they were demanded and did not come.
    pub(super) fn fetch_now(&mut self, pages: PageRange) {
        if self.unicast.mode != UnicastMode::Never && self.unicast.server.has_files {
            self.unicast.fetches.name(pages);
        }
    }

    /// What may be fetched at present.
    fn scope(&self) -> Scope {
        match (self.unicast.is_fetching, self.fill()) {
            (false, _) => Scope::Named,
            (true, Fill::Demand) => Scope::Waited,
            (true, Fill::Full) => Scope::All,
        }
    }

    /// Whether [`Self::poll_fetch`] may return a request.
    pub fn may_fetch(&self) -> bool {
        self.unicast.is_fetching || self.unicast.fetches.has_named()
    }

    /// Returns a request to send. `oldest` holds the bytes that the longest waiting reader asked
    /// for. Report progress with [`Self::handle_fetched`] and the end with
    /// [`Self::handle_fetch_end`].
    pub fn poll_fetch(&mut self, oldest: Option<&Range<u64>>, now: Instant) -> Option<Fetch> {
        let assembly =
            self.assembly.as_ref().filter(|_| self.may_fetch() && self.wants_fetches())?;
        let held = self.unreadable.or_held(assembly.held());
        let missing = missing(assembly, &held, oldest, self.scope());
        self.unicast.fetches.poll(&missing, now)
    }

    /// Handles that all bytes of a fetch before `next` are stored. Returns `false` if the request
    /// should end.
    pub fn handle_fetched(&mut self, id: u64, next: u64, oldest: Option<&Range<u64>>) -> bool {
        let Some(assembly) = self.assembly.as_ref().filter(|_| self.wants_fetches()) else {
            return false;
        };
        let held = self.unreadable.or_held(assembly.held());
        let missing = missing(assembly, &held, oldest, self.scope());
        self.unicast.contradictions = 0;
        self.unicast.fetches.came(id, next, &missing) && self.may_fetch()
    }

    /// Ends a fetch.
    pub fn handle_fetch_end(&mut self, id: u64, result: Result<(), FetchError>, now: Instant) {
        let failed = match result {
            Ok(()) => None,
            Err(FetchError::Retry { after }) => Some(after),
            Err(FetchError::Changed) => {
                // The answer to a join decides.
                self.unicast.contradictions += 1;
                self.membership.join_again(now);
                Some(Duration::ZERO)
            }
            Err(FetchError::Refused(message)) => {
                self.fail(Failure::Refused(message));
                Some(Duration::ZERO)
            }
            Err(FetchError::Garbled(message)) => {
                self.fail(Failure::Garbled(message));
                Some(Duration::ZERO)
            }
            Err(FetchError::Unreadable(bytes)) => {
                let geometry = self.assembly.as_ref().map(Assembly::geometry);
                let pages = geometry.map(|geometry| geometry.pages_covering(bytes));
                self.handle_unreadable(pages.as_slice(), now);
                None
            }
            Err(FetchError::Store) => Some(Duration::ZERO),
        };
        self.unicast.fetches.ended(id, failed, now);
    }

    /// Fetches in a row that brought nothing.
    pub fn fetch_failures(&self) -> u32 {
        self.unicast.fetches.failures()
    }
}

fn missing<'a>(
    assembly: &'a Assembly,
    held: &'a PageSet,
    oldest: Option<&'a Range<u64>>,
    scope: Scope,
) -> Missing<'a> {
    Missing { geometry: assembly.geometry(), held, oldest, scope }
}

#[cfg(test)]
#[path = "unicast_tests.rs"]
mod tests;

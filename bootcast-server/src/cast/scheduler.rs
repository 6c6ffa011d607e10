//! All casts of one interface: decides which of them sends next, and how much.

mod budgets;
mod ended;
mod leaves;
mod profiles;
mod requests;
mod running;
mod sizes;
mod taken;
mod turns;
mod urgent_turns;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use bootcast_proto::api::{Budgets, Totals};
use bootcast_proto::units::wire_len;
use bootcast_proto::{BitRate, BlockLayout, Etag, Geometry, PageRange, Profile, RemotePath, Token};

use super::accounts::{Accounts, PlainTrust};
use super::end_announcements::EndAnnouncements;
use super::principal::{Principal, share_of};
use super::rate::{Allowance, CeilingSource, RateControl};
use super::restart_backoff::RestartBackoff;
use super::urgent::UrgentCasts;
use super::{Cast, CastPolicy, EndReason, GroupPool, MemberKind, Pacer, RepairSettings, Sending};
pub use ended::Ended;
use running::Running;
use sizes::{END_LEN, datagrams, wire_bytes};
pub use taken::Taken;
pub use waiting::Lane;
use waiting::WaitingTransmits;

/// Shortest sleep of the driver between two bursts: it wakes about once a millisecond at most.
const TICK: Duration = Duration::from_millis(1);

/// Maximum number of members of one cast. More are a sign of a client that joins in a loop.
pub const MAX_MEMBERS: usize = 65_536;

/// Identifies a cast within one run of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CastId(pub u64);

impl fmt::Display for CastId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Settings that all casts of the interface share.
#[derive(Debug)]
pub struct Settings {
    /// Ceiling: the upper bound of the sending rate of all casts together.
    pub rate: BitRate,
    /// Where `rate` comes from. This determines the rate at which casts start.
    pub rate_source: CeilingSource,
    /// Pages in a full batch, at least 1. One system call sends a batch.
    pub batch_pages: u32,
    /// UDP port of every group.
    pub data_port: u16,
    /// Maximum number of casts at the same time.
    pub max_casts: usize,
    /// Limits after which a cast ends on its own.
    pub policy: CastPolicy,
    /// Number of passes that plain members get.
    pub plain: PlainTrust,
    /// Pool that the groups of casts are taken from.
    pub groups: GroupPool,
    /// Settings of the repair channel; `None` treats all members as plain ones.
    pub repair: Option<RepairSettings>,
}

/// Client that joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// Name of the membership.
    pub token: Token,
    /// Which extensions the client knows, and whether it wants the whole file.
    pub kind: MemberKind,
    /// Whose client it is.
    pub principal: Principal,
}

/// Result of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Cast that the member belongs to.
    pub cast: CastId,
    /// Group and port that its pages go to.
    pub group: SocketAddrV4,
    /// Whether this join started the cast.
    pub has_started_cast: bool,
    /// Present sending rate of the cast.
    pub rate: BitRate,
    /// Members of the cast, this one included.
    pub members: u64,
}

/// Why a join was refused. All reasons but [`Self::PlainDenied`] are temporary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// The limit `max_casts` is reached.
    #[error("too many casts run already: try again later")]
    TooManyCasts,
    /// All groups are lent or in quarantine.
    #[error("no multicast group is free: try again later")]
    NoGroup,
    /// The limit [`MAX_MEMBERS`] is reached.
    #[error("this cast has too many members: try again later")]
    TooManyMembers,
    /// The principal has its share of the members of this cast.
    #[error("this host has {0} memberships of this file, its share of all: leave first")]
    TooManyOfHost(usize),
    /// The principal has started its share of the casts that run.
    #[error("this host has started {0} of the casts that run, its share of all: leave first")]
    TooManyCastsOfHost(usize),
    /// The principal has used up its budget for members that proved nothing.
    #[error(
        "too much was sent to this host for plain members that never left: let them leave when \
         they are done, use `bootcast get`, or try again later"
    )]
    BudgetUsedUp {
        /// Time until the budget is enough for a pass over the file.
        after: Duration,
    },
    /// The server takes no plain members.
    #[error("this server takes no plain members: use `bootcast get`, or fetch /file/ over HTTP")]
    PlainDenied,
    /// The file's casts failed several times in a row.
    #[error("casts of this file keep ending ({reason}): try again later")]
    Backoff {
        /// Reason of the failures.
        reason: EndReason,
        /// Time until a new cast may start.
        after: Duration,
    },
}

/// Datagrams to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Cast that sends. It may have ended already if `content` announces its end.
    pub cast: CastId,
    /// Destination: the group with the port of the pages or of the repair channel.
    pub group: SocketAddrV4,
    /// Content: at most `batch_pages` datagrams.
    pub content: Sending,
    /// Whether the pages were demanded, or are part of a profile. The following pages are then
    /// unlikely to be sent next, so reading ahead is of no use.
    pub demanded: bool,
    /// Order in which the datagrams were handed out.
    pub lane: Lane,
}

/// Result of polling the casts for something to send.
enum Polled {
    Sent(Transmit),
    /// Casts may have something to send, but the pacer of the interface does not allow it yet.
    Throttled,
    /// Casts have something to send, but their own rates do not allow it yet.
    CastsThrottled,
    /// No cast has anything to send.
    Nothing,
}

/// A change that the driver has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A cast ended and its group was returned.
    Ended(Ended),
    /// The principal has used up its budget for members that proved nothing. So its plain members
    /// of this file were forgotten, or its join was refused or asks for nothing.
    BudgetUsedUp(Principal, RemotePath),
    /// The principal asked for more of this file than goes before what others wait for.
    RationUsedUp(Principal, RemotePath),
    /// The profile of the file that a cast sends changed, and should be kept. Comes before the end
    /// of the cast.
    Profile(CastId, Profile),
}

/// Read access to a running cast.
#[derive(Clone, Copy, Debug)]
pub struct CastView<'a> {
    /// Identifier of the cast.
    pub id: CastId,
    /// Path of its file.
    pub path: &'a RemotePath,
    /// Version of its file.
    pub etag: &'a Etag,
    /// Size and pages of its file.
    pub geometry: Geometry,
    /// Group and port that its pages go to.
    pub group: SocketAddrV4,
    /// When its first member joined.
    pub started_at: Instant,
    /// Members, passes and counters.
    pub cast: &'a Cast,
    /// Present sending rate, at most the ceiling of all casts.
    pub rate: BitRate,
}

/// All casts of one interface, at most one for each path: the newest version.
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
    /// Bytes on the wire of a full batch of full pages.
    batch_wire: u64,
    pacer: Pacer,
    casts: BTreeMap<CastId, Running>,
    by_path: BTreeMap<RemotePath, CastId>,
    /// All casts in the order of their turns, each once. It is the turn of the front.
    turns: VecDeque<CastId>,
    /// Whether the front has received its quantum for this turn.
    has_quantum: bool,
    urgent: UrgentCasts,
    /// Datagrams that the driver took back until their bytes are read.
    waiting: WaitingTransmits,
    /// Whether the last poll found nothing to send.
    idle: bool,
    end_announcements: EndAnnouncements,
    restart_backoff: RestartBackoff,
    next_id: CastId,
    events: VecDeque<Event>,
    accounts: Accounts,
    totals: Totals,
    /// How often budgets were used up.
    budgets: Budgets,
    /// Rate at which new casts start: what got through to the last cast with congestion. `None` if
    /// there was none, or if a later cast reached the ceiling.
    last_good: Option<BitRate>,
    /// When a cast ended last because another sender uses its group.
    last_taken: Option<Instant>,
}

impl Scheduler {
    /// Creates a scheduler without casts. `page_wire` is the number of bytes that a full page
    /// occupies on the wire.
    pub fn new(settings: Settings, page_wire: u64, now: Instant) -> Self {
        let batch = u64::from(settings.batch_pages) * page_wire;
        Self {
            pacer: Pacer::new(settings.rate, batch, now),
            batch_wire: batch,
            accounts: Accounts::new(settings.rate, settings.policy.idle_passes),
            settings,
            casts: BTreeMap::new(),
            by_path: BTreeMap::new(),
            turns: VecDeque::new(),
            has_quantum: false,
            urgent: UrgentCasts::default(),
            waiting: WaitingTransmits::default(),
            idle: true,
            end_announcements: EndAnnouncements::default(),
            restart_backoff: RestartBackoff::default(),
            next_id: CastId(0),
            events: VecDeque::new(),
            totals: Totals::default(),
            budgets: Budgets::default(),
            last_good: None,
            last_taken: None,
        }
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        let casts = self.casts.len();
        // A cast without a turn would never send, and a turn without a cast would send for nobody.
        assert!(self.turns.len() == casts, "{} turns of {casts} casts", self.turns.len());
        assert!(
            self.by_path.len() == casts,
            "{} paths of {casts} casts: two versions of a file run at once",
            self.by_path.len()
        );
        debug_assert!(casts <= self.settings.max_casts, "{casts} casts are more than allowed");
        debug_assert!(!self.has_quantum || casts > 0, "no cast has a quantum");
    }

    /// Handles pages of a cast that cannot be read. They are not sent for a while.
    pub fn handle_unreadable(&mut self, id: CastId, pages: PageRange, now: Instant) {
        if let Some(running) = self.casts.get_mut(&id) {
            running.cast.handle_unreadable(pages, now);
        }
    }

    /// Removes pages or symbols from the counters: they were handed out but not sent, because their
    /// data cannot be read.
    pub fn handle_unsent(&mut self, id: CastId, unsent: &Sending) {
        let (Some(running), totals) = (self.casts.get_mut(&id), &mut self.totals) else { return };
        let count = datagrams(unsent);
        running.control.on_unsent(count);
        let wire = wire_bytes(&running.geometry, unsent);
        debug_assert!(totals.bytes_sent >= wire, "more bytes were not sent than were handed out");
        totals.bytes_sent = totals.bytes_sent.saturating_sub(wire);
        if let Sending::Pages(pages) = unsent {
            running.cast.handle_unsent(pages.len());
            totals.pages_sent = totals.pages_sent.saturating_sub(count);
        } else {
            totals.symbols_sent = totals.symbols_sent.saturating_sub(count);
        }
    }

    /// Returns the first run of unreadable pages of a cast within `pages`.
    pub fn unreadable_in(&self, id: CastId, pages: PageRange) -> Option<PageRange> {
        self.casts.get(&id)?.cast.unreadable_in(pages)
    }

    /// Selects the unreadable pages of the cast of this path that an answer names: those within
    /// `requested` first.
    pub fn select_unreadable(
        &mut self,
        path: &RemotePath,
        requested: &[PageRange],
    ) -> Vec<PageRange> {
        let running = self.by_path.get(path).and_then(|id| self.casts.get_mut(id));
        running.map(|running| running.cast.select_unreadable(requested)).unwrap_or_default()
    }

    /// Ends a cast for a reason that the driver found. Of a cast that has ended, drops what still
    /// waits to be sent.
    pub fn handle_end(&mut self, id: CastId, reason: EndReason, now: Instant) {
        if let Some(running) = self.casts.get_mut(&id) {
            running.cast.handle_end(reason);
            self.reap(id, now);
            debug_assert!(!self.casts.contains_key(&id), "a cast that has ended still runs");
        } else {
            self.waiting.forget(id);
        }
    }

    /// Ends all casts for a reason that the driver found. New casts may start afterwards.
    pub fn handle_end_of_all(&mut self, reason: EndReason, now: Instant) {
        let ids: Vec<_> = self.casts.keys().copied().collect();
        for id in ids {
            self.handle_end(id, reason, now);
        }
    }

    /// Ends all casts, because the server stops. The announcements of their ends are due at once.
    pub fn handle_stop(&mut self, now: Instant) {
        self.handle_end_of_all(EndReason::Stopped, now);
    }

    /// Handles the timers that are due at `now`. An early call changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        for (id, running) in &mut self.casts {
            running.cast.handle_timeout(now);
            let changed = running.cast.poll_profile(now);
            self.events.extend(changed.map(|profile| Event::Profile(*id, profile)));
        }
        let ids: Vec<_> = self.casts.keys().copied().collect();
        for id in ids {
            self.reap(id, now);
        }
    }

    /// Returns the next datagrams to send; `None` until [`Self::poll_timeout`].
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some((cast, group, next_beacon)) = self.end_announcements.poll(now) {
            self.charge(wire_len(END_LEN), now);
            let content = Sending::End(next_beacon);
            return Some(Transmit { cast, group, content, demanded: false, lane: Lane::Turn });
        }
        match self.poll_ready(now) {
            Polled::Sent(transmit) => return Some(transmit),
            Polled::Throttled => return None,
            Polled::CastsThrottled | Polled::Nothing => {}
        }
        if self.urgent.must_yield(self.batch_wire) {
            match self.poll_turns(now) {
                Polled::Sent(transmit) => return Some(transmit),
                Polled::Throttled => return None,
                Polled::CastsThrottled => {}
                Polled::Nothing => self.urgent.on_others_idle(),
            }
        }
        for poll in [Self::poll_urgent, Self::poll_turns] {
            match poll(self, now) {
                Polled::Sent(transmit) => return Some(transmit),
                Polled::Throttled => return None,
                Polled::CastsThrottled | Polled::Nothing => {}
            }
        }
        // Time in which a cast waits for its bytes may be made up for.
        self.idle = self.waiting.is_empty();
        None
    }

    /// Returns when to call [`Self::handle_timeout`] and [`Self::poll_transmit`] again; `None` if
    /// nothing happens without a join. Every other call may change the time.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = self.casts.values().filter_map(|running| running.cast.poll_timeout());
        let turns = self.casts.iter().filter(|(id, _)| !self.is_waiting(**id));
        let paced = turns.filter_map(|(_, running)| {
            let page_wire = running.geometry.page_size().wire_len();
            let batch = u64::from(self.settings.batch_pages) * page_wire;
            let ready = self.pacer.ready_at(batch, TICK);
            let ready = running.allowance.ready_at(TICK).map_or(ready, |own| own.max(ready));
            Some(running.cast.poll_transmit_at()?.max(ready))
        });
        let urgent = self.urgent.iter().filter(|id| !self.waiting.contains(*id, Lane::Urgent));
        let urgent = urgent.filter_map(|id| {
            let (since, bytes) = self.urgent_run(id)?;
            // If the urgent casts must yield, a whole batch of another cast comes first.
            let bytes =
                if self.urgent.must_yield(self.batch_wire) { self.batch_wire } else { bytes };
            let ready = since.max(self.pacer.ready_at(bytes, TICK));
            let own = self.casts.get(&id)?.urgent_allowance();
            Some(own.and_then(|own| own.ready_at(TICK)).map_or(ready, |own| own.max(ready)))
        });
        let ready = self.ready_transmit_at().into_iter().chain(self.end_announcements.due_at());
        timers.chain(paced).chain(urgent).chain(ready).min()
    }

    /// Returns the next event, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Looks up a running cast.
    pub fn cast(&self, id: CastId) -> Option<CastView<'_>> {
        self.casts.get(&id).map(|running| running.view(id))
    }

    /// Looks up the running cast of a path.
    pub fn cast_of(&self, path: &RemotePath) -> Option<CastView<'_>> {
        self.by_path.get(path).and_then(|&id| self.cast(id))
    }

    /// Iterates over the running casts, oldest first.
    pub fn casts(&self) -> impl Iterator<Item = CastView<'_>> {
        self.casts.iter().map(|(&id, running)| running.view(id))
    }

    /// Returns the counters of all casts since the server started. The driver adds `bytes_read`.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns how often budgets were used up since the server started.
    pub fn budgets(&self) -> Budgets {
        self.budgets
    }

    /// Returns the windows and blocks of a file; `None` if it gets no repair.
    pub fn layout(&self, geometry: &Geometry) -> Option<BlockLayout> {
        self.settings.repair.as_ref()?.layout(geometry)
    }

    /// Returns the ceiling: the upper bound of the sending rate of all casts together.
    pub fn rate(&self) -> BitRate {
        self.settings.rate
    }

    /// Starts a cast without members in a group of its own.
    fn start_cast(
        &mut self,
        path: &RemotePath,
        etag: &Etag,
        geometry: Geometry,
        principal: Principal,
        now: Instant,
    ) -> Result<CastId, JoinRefusal> {
        if let Some((reason, after)) = self.restart_backoff.pause(path, now) {
            return Err(JoinRefusal::Backoff { reason, after });
        }
        if self.casts.len() >= self.settings.max_casts {
            return Err(JoinRefusal::TooManyCasts);
        }
        let started = self.casts.values().filter(|it| it.started_by == principal).count();
        if started >= share_of(self.settings.max_casts) {
            return Err(JoinRefusal::TooManyCastsOfHost(started));
        }
        let address = self.settings.groups.take(now).ok_or(JoinRefusal::NoGroup)?;
        // The members of both casts would get the pages of two files.
        assert!(
            self.casts.values().all(|running| *running.group.ip() != address),
            "the group {address} is lent twice"
        );
        // They would be taken for pages of the new cast.
        self.waiting.forget_group(address);
        let repair = self.settings.repair.as_ref();
        let page_wire = geometry.page_size().wire_len();
        let (ceiling, source) = (self.settings.rate, self.settings.rate_source);
        let control = RateControl::new(ceiling, source, self.last_good, page_wire, now);
        let pages = self.settings.batch_pages;
        let allowance = Allowance::new(ceiling, control.rate(), page_wire, pages, now);
        let id = self.next_id;
        self.next_id.0 += 1;
        let mut cast = Cast::new(&geometry, self.settings.policy, repair, now);
        cast.set_pace(control.is_opening(), control.datagram_time());
        self.casts.insert(
            id,
            Running {
                path: path.clone(),
                etag: etag.clone(),
                geometry,
                group: SocketAddrV4::new(address, self.settings.data_port),
                started_at: now,
                started_by: principal,
                cast,
                control,
                allowance,
                deficit: 0,
                strangers: None,
            },
        );
        self.by_path.insert(path.clone(), id);
        self.turns.push_back(id);
        self.share_panel();
        self.totals.casts += 1;
        Ok(id)
    }

    /// Settles the accounts of its members, and schedules the announcement of the end if the cast
    /// requests it. Removes a cast that has ended and returns its group to the pool.
    fn reap(&mut self, id: CastId, now: Instant) {
        self.settle(id, now);
        let Some(running) = self.casts.get_mut(&id) else { return };
        let announcement = running.cast.poll_end_announcement();
        let reason = running.cast.end_reason();
        if let Some(next_beacon) = announcement {
            let channel = self.destination(id, &Sending::End(next_beacon));
            self.end_announcements.push(id, channel, next_beacon, now);
        }
        let Some(reason) = reason else { return };
        self.waiting.forget(id);
        let mut running = self.casts.remove(&id).expect("looked up above");
        let changed = running.cast.poll_profile(now);
        self.events.extend(changed.map(|profile| Event::Profile(id, profile)));
        self.by_path.remove(&running.path);
        if self.turns.front() == Some(&id) {
            self.has_quantum = false;
        }
        self.turns.retain(|&turn| turn != id);
        self.assert_invariants();
        let (rate, last_good) = (running.control.rate(), running.control.last_good());
        if last_good.is_some() || rate == self.settings.rate {
            self.last_good = last_good;
        }
        self.share_panel();
        if reason == EndReason::GroupTaken {
            self.settings.groups.give_back_taken(*running.group.ip(), now);
        } else {
            self.settings.groups.give_back(*running.group.ip(), now);
        }
        let duration = now.saturating_duration_since(running.started_at);
        if reason == EndReason::LastLeave && running.is_sent() {
            self.restart_backoff.on_success(&running.path);
        }
        // A cast that ends without members makes nobody join again.
        if running.cast.members() > 0 {
            self.restart_backoff.on_end(&running.path, reason, duration, now);
        }
        self.events.push_back(Event::Ended(Ended::new(id, running, reason, duration)));
    }

    /// Divides the panel members among the casts.
    fn share_panel(&mut self) {
        let casts = self.casts.len();
        for running in self.casts.values_mut() {
            running.control.share_panel(casts);
        }
    }

    /// Charges bytes on the wire to the pacer. Idle time before them is not made up for.
    fn charge(&mut self, bytes: u64, now: Instant) {
        debug_assert!(bytes > 0, "datagrams that cost nothing would be sent without a limit");
        if std::mem::take(&mut self.idle) {
            self.pacer.restart(now);
        }
        self.pacer.take(bytes, now);
        self.totals.bytes_sent += bytes;
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;

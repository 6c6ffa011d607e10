//! One running cast: sends the pages of a file and their repair symbols while members need them.

use std::collections::BTreeSet;
mod asking;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bootcast_proto::wire::{Beacon, HEADER_LEN};
use bootcast_proto::{BLOCK_PAGES, BlockLayout, Geometry, PageRange, Token};

use super::demand::Demand;
use super::members::{MemberKind, Members};
use super::multicast_probe::MulticastProbe;
use super::precedence::Precedence;
use super::repair::{Repair, Situation, Symbol};
use super::standing::Standings;
use super::stream::{Audience, Stream};
use super::unreadable::Unreadable;

/// The hold: longest time from the join that starts a cast to its first page.
///
/// In this time a client reads the answer and opens its socket, and the switches on the way learn
/// of its membership (IGMP). Pages sent earlier are lost, and cost a plain member a second pass.
pub const HOLD: Duration = Duration::from_millis(100);

/// Hold after the last join if all members have repair: repairing what they miss takes no longer
/// than waiting.
pub const SHORT_HOLD: Duration = Duration::from_millis(20);

/// Most runs of windows read of one report. A member that lacks more reports again.
const BULK_MAX: usize = 256;

/// When a cast ends without a request.
#[derive(Clone, Copy, Debug)]
pub struct CastPolicy {
    /// Passes since its join after which a plain member is believed to be gone.
    pub idle_passes: NonZeroU32,
    /// How long a cast without members can still be joined. Nothing is sent meanwhile.
    pub linger: Duration,
}

/// Settings of the repair channel of all casts.
#[derive(Clone, Copy, Debug)]
pub struct RepairSettings {
    /// Blocks in a window, at least 1.
    pub interleave: u32,
    /// UDP port of the channel, in every group.
    pub repair_port: u16,
    /// Time after which a silent extended member is forgotten.
    pub lease: Duration,
}

impl RepairSettings {
    /// Windows and blocks of a file. A window has no more blocks than the file, and no more than a
    /// beacon can state. `None` if the pages are too small for a beacon.
    pub fn layout(&self, geometry: &Geometry) -> Option<BlockLayout> {
        let room = datagram_len(geometry).checked_sub(Beacon::datagram_len(1, 0))?;
        let per_block = Beacon::datagram_len(1, 1) - Beacon::datagram_len(1, 0);
        let told = u32::try_from(room / per_block).unwrap_or(u32::MAX);
        let in_file = geometry.pages().div_ceil(BLOCK_PAGES).max(1);
        BlockLayout::new(geometry.pages(), self.interleave.min(told).min(in_file))
    }
}

/// Why a cast ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum EndReason {
    /// Every member has left.
    #[error("last member left")]
    LastLeave,
    /// The remaining plain members seem to be gone.
    #[error("idle passes")]
    IdlePasses,
    /// The leases of the remaining members have expired.
    #[error("leases are over")]
    LeasesOver,
    /// The file is no longer the announced version.
    #[error("file changed")]
    FileChanged,
    /// The file cannot be read.
    #[error("file unreadable")]
    Unreadable,
    /// The server sends from another address, which members were not told.
    #[error("address changed")]
    AddressChanged,
    /// The server is stopping.
    #[error("server stops")]
    Stopped,
}

/// Datagrams to send next. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Pages: of the stream, within one pass and one window, or demanded ones.
    Pages(PageRange),
    /// Repair symbols.
    Symbols(Vec<Symbol>),
    /// A beacon.
    Beacon(Beacon),
    /// The cast is over; the number that the next beacon would have had.
    End(u32),
}

impl Sending {
    /// Number of datagrams.
    pub fn datagrams(&self) -> u32 {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Symbols(symbols) => u32::try_from(symbols.len()).unwrap_or(u32::MAX),
            Self::Beacon(_) | Self::End(_) => 1,
        }
    }
}

/// ```text
///  join --> Holding -- until --> Serving -- idle passes, leases over --> Ended
///           ^     ^--- first ---'  |
///           |          taker   last leave
///         join                     v
///           +----------------- Lingering -- until --> Ended
/// ```
///
/// A taker is a member that wants the whole file. What is asked for is sent in `Holding` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The hold: the group forms. Serves from `until` on.
    Holding { since: Instant, until: Instant },
    /// Sends what members need.
    Serving,
    /// No member is left; ends at `until`.
    Lingering { until: Instant },
    /// Ended for good.
    Ended(EndReason),
}

/// One version of one file being sent to its members.
#[derive(Debug)]
pub struct Cast {
    policy: CastPolicy,
    /// Number of pages in the file.
    pages: u32,
    state: State,
    members: Members,
    stream: Stream,
    repair: Option<Repair>,
    demand: Demand,
    /// Priority of demanded pages over the rest, in pages.
    precedence: Precedence,
    probe: MulticastProbe,
    unreadable: Unreadable,
    /// Pages handed out that the driver could not read.
    unsent: u64,
    /// Whether the stream sent last, not the fill symbols.
    stream_was_last: bool,
    /// Pages that the carousel sent for plain members.
    carousel_pages: u64,
    standings: Standings,
    joins: u64,
    /// Whether extended members may still wait and must be told of the end.
    owes_farewell: bool,
    /// Whether an extended member joined since the last farewell.
    was_extended: bool,
}

impl Cast {
    /// Creates a cast without members; it lingers.
    pub fn new(
        geometry: &Geometry,
        policy: CastPolicy,
        repair: Option<&RepairSettings>,
        now: Instant,
    ) -> Self {
        let layout = repair.and_then(|repair| repair.layout(geometry));
        let channel = |layout| Repair::new(layout, datagram_len(geometry), now);
        Self {
            policy,
            pages: geometry.pages(),
            state: State::Lingering { until: now + policy.linger },
            members: Members::new(repair.map_or(Duration::ZERO, |repair| repair.lease)),
            stream: Stream::new(geometry.pages(), layout, now),
            repair: layout.map(channel),
            demand: Demand::new(geometry.pages()),
            precedence: Precedence::default(),
            probe: MulticastProbe::new(now),
            unreadable: Unreadable::new(now),
            unsent: 0,
            stream_was_last: false,
            carousel_pages: 0,
            standings: Standings::new(geometry.pages()),
            joins: 0,
            owes_farewell: false,
            was_extended: false,
        }
    }

    /// Sets whether the cast opens, and how long a full datagram takes at its rate: that bounds how
    /// soon beacons follow each other.
    pub fn set_pace(&mut self, is_opening: bool, datagram: Duration) {
        if let Some(repair) = &mut self.repair {
            repair.set_pace(is_opening, datagram);
        }
    }

    /// Adds a member. A running stream goes on where it is. It starts with page 1 for the first
    /// member that wants the whole file.
    pub fn handle_join(&mut self, token: Token, kind: MemberKind, now: Instant) {
        // Without a repair channel every member knows only the base protocol.
        let kind = if self.repair.is_some() { kind } else { MemberKind::Plain };
        let begins = self.members.takers() == 0 && kind != MemberKind::Demand;
        self.members.join(token, kind, self.carousel_pages, now);
        self.joins += 1;
        self.on_heard(kind);
        match self.state {
            State::Lingering { .. } => {
                self.owes_farewell = false;
                self.hold(now, now);
            }
            State::Holding { .. } | State::Serving if begins => self.hold(now, now),
            State::Holding { since, .. } if kind != MemberKind::Demand => self.hold(since, now),
            State::Holding { .. } | State::Serving | State::Ended(_) => {}
        }
        match kind {
            MemberKind::Plain => {}
            MemberKind::Extended | MemberKind::Resuming => {
                self.was_extended = true;
                if kind == MemberKind::Extended {
                    self.stream.want_all();
                }
                if let Some(repair) = &mut self.repair {
                    repair.on_change(now);
                }
                self.note_stream();
            }
            MemberKind::Demand => self.was_extended = true,
        }
    }

    /// Removes a member. Returns `false` if the token is not a member.
    pub fn handle_leave(&mut self, token: &Token, now: Instant) -> bool {
        let Some(kind) = self.members.leave(token) else { return false };
        self.standings.forget(token);
        self.on_heard(kind);
        self.on_members_gone();
        if self.members.is_empty() {
            self.linger(now);
        }
        true
    }

    /// These pages could not be read: they are left out, and so are the symbols of their blocks.
    pub fn handle_unreadable(&mut self, pages: PageRange, now: Instant) {
        let pages = PageRange::new(pages.start.0, pages.end.0.min(self.pages));
        self.unreadable.insert(pages, now);
        if let Some(repair) = &mut self.repair {
            let layout = repair.layout();
            pages.iter().for_each(|page| repair.forbid(layout.place(page).0));
        }
    }

    /// So many pages that were handed out were not sent, because they cannot be read.
    pub fn handle_unsent(&mut self, pages: u32) {
        self.unsent += u64::from(pages);
    }

    /// The first of these pages that cannot be read, and those that follow it.
    pub fn unreadable_in(&self, pages: PageRange) -> Option<PageRange> {
        self.unreadable.first_in(pages)
    }

    /// Names unreadable pages for an answer to a member that asked for `asked`.
    pub fn tell_unreadable(&mut self, asked: &[PageRange]) -> Vec<PageRange> {
        self.unreadable.tell(asked)
    }

    /// Lets pages be tried again whose time has come.
    fn expire_unreadable(&mut self, now: Instant) {
        let expired = self.unreadable.take_expired(now);
        let Some(repair) = &mut self.repair else { return };
        let layout = repair.layout();
        let blocks: BTreeSet<_> =
            expired.iter().flat_map(|run| run.iter()).map(|page| layout.place(page).0).collect();
        for block in &blocks {
            repair.allow(*block);
        }
        if !blocks.is_empty() {
            let rest: Vec<_> = self.unreadable.runs().collect();
            rest.iter().flat_map(|run| run.iter()).for_each(|page| {
                repair.forbid(layout.place(page).0);
            });
        }
    }

    /// Ends the cast for an external reason. A cast that has ended keeps its first reason.
    pub fn handle_end(&mut self, reason: EndReason) {
        if self.ended().is_none() {
            self.end(reason);
        }
    }

    /// Runs what is due at `now`. An early call changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire_unreadable(now);
        match self.state {
            State::Holding { until, .. } if until <= now => {
                if self.pages == 0 {
                    self.linger(now);
                } else {
                    self.state = State::Serving;
                }
            }
            State::Lingering { until } if until <= now => self.end(EndReason::LastLeave),
            State::Serving => {
                if self.members.forget_silent(now) {
                    let members = &self.members;
                    self.standings.retain(|token| members.has_lease(token));
                    self.on_members_gone();
                    if self.members.is_empty() {
                        self.end(EndReason::LeasesOver);
                    }
                }
            }
            State::Holding { .. } | State::Lingering { .. } | State::Ended(_) => {}
        }
    }

    /// Returns the next datagrams for waiting readers, at most `budget` pages. Beacons that are due
    /// go first.
    pub fn poll_urgent(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        if !self.sends_demand() || self.demand.urgent_since().is_none() || budget == 0 {
            return None;
        }
        if self.state == State::Serving
            && let Some(beacon) = self.poll_beacon(now)
        {
            return Some(Sending::Beacon(beacon));
        }
        let pages = self.demand.poll_urgent(budget, now)?;
        Some(self.send_demanded(pages, budget))
    }

    /// Since when [`Self::poll_urgent`] has something, and how many pages of at most `budget` that
    /// is; `None` while it has nothing.
    pub fn urgent(&self, budget: u32) -> Option<(Instant, u32)> {
        let since = self.demand.urgent_since().filter(|_| self.sends_demand())?;
        Some((since, self.demand.next_urgent(budget)))
    }

    /// How many pages readers wait for, at most.
    pub fn urgent_pages(&self) -> u32 {
        if self.sends_demand() { self.demand.urgent_pages() } else { 0 }
    }

    /// Returns the next datagrams other than those for waiting readers, at most as long on the wire
    /// as `budget` full pages. `None` until [`Self::poll_transmit_at`].
    pub fn poll_transmit(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        if !self.sends_demand() || budget == 0 {
            return None;
        }
        if self.state == State::Serving
            && let Some(beacon) = self.poll_beacon(now).or_else(|| self.poll_recall(now))
        {
            return Some(Sending::Beacon(beacon));
        }
        if let Some(pages) = self.poll_recalling_pages(budget, now) {
            return Some(Sending::Pages(pages));
        }
        if self.precedence.is_used_up(budget.into()) {
            if let Some(other) = self.poll_unasked(budget, now) {
                return Some(other);
            }
            self.precedence.on_nobody_else();
        }
        if let Some(pages) = self.demand.poll_later(budget, now) {
            return Some(self.send_demanded(pages, budget));
        }
        self.poll_unasked(budget, now)
    }

    /// Earliest time at which [`Self::poll_transmit`] has something; may lie in the past.
    pub fn poll_transmit_at(&self) -> Option<Instant> {
        if !self.sends_demand() {
            return None;
        }
        let later = self.demand.later_since();
        if self.state != State::Serving {
            return later;
        }
        let situation = self.situation();
        let heard = self.members.repairing() > 0;
        let repair = self.repair.as_ref().filter(|_| heard);
        let repair = repair.and_then(|repair| repair.poll_at(situation));
        let probe = self.probe.poll_at(&self.members);
        [later, self.stream.poll_at(self.audience()), repair, probe].into_iter().flatten().min()
    }

    /// When to call [`Self::handle_timeout`]; every other call may change it.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Holding { until, .. } | State::Lingering { until } => Some(until),
            State::Serving => self.members.check_at(),
            State::Ended(_) => return None,
        };
        [own, self.unreadable.expires_at()].into_iter().flatten().min()
    }

    /// Where the group is to hear that the cast is over: the number that the next beacon would
    /// have had. Says so once.
    pub fn poll_farewell(&mut self) -> Option<u32> {
        let next_beacon = self.repair.as_ref().map_or(0, Repair::next_beacon);
        std::mem::take(&mut self.owes_farewell).then_some(next_beacon)
    }

    /// Reason of the end, once the cast has ended.
    pub fn ended(&self) -> Option<EndReason> {
        match self.state {
            State::Ended(reason) => Some(reason),
            State::Holding { .. } | State::Serving | State::Lingering { .. } => None,
        }
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Members that fetch the file over HTTP.
    pub fn unicast_members(&self) -> usize {
        self.members.unicast()
    }

    /// Members that report counters.
    pub fn reporting_members(&self) -> usize {
        self.members.extended()
    }

    /// Joins since the cast started.
    pub fn joins(&self) -> u64 {
        self.joins
    }

    /// Pages handed out since the cast started.
    pub fn pages_sent(&self) -> u64 {
        let sent = self.stream.pages_sent() + self.demand.pages_sent() + self.probe.pages_sent();
        sent.saturating_sub(self.unsent)
    }

    /// Pages handed out on demand, a part of [`Self::pages_sent`].
    pub fn demanded(&self) -> u64 {
        self.demand.pages_sent()
    }

    /// Completed passes over the file.
    pub fn passes(&self) -> u32 {
        self.stream.passes()
    }

    /// Repair symbols handed out since the cast started.
    pub fn symbols_sent(&self) -> u64 {
        self.repair.as_ref().map_or(0, Repair::symbols_sent)
    }

    /// Redundancy at present: symbols that every block of a window gets without reports.
    pub fn redundancy(&self) -> u32 {
        self.repair.as_ref().map_or(0, Repair::redundancy)
    }
}

impl Cast {
    /// Repair channel, if any member listens to it.
    fn channel(&mut self) -> Option<&mut Repair> {
        self.repair.as_mut().filter(|_| self.members.repairing() > 0)
    }

    fn audience(&self) -> Audience {
        if self.members.has_plain() { Audience::Everybody } else { Audience::Extended }
    }

    fn situation(&self) -> Situation {
        Situation {
            position: self.stream.position(self.audience()),
            stream_done: self.stream.is_done(),
            members: self.members.hearing(),
        }
    }

    /// Returns a beacon for members that receive nothing, so that they notice when multicast
    /// reaches them again.
    fn poll_recall(&mut self, now: Instant) -> Option<Beacon> {
        let is_due = self.probe.poll_at(&self.members).is_some_and(|at| at <= now);
        if !is_due || !self.probe.owes_beacon() {
            return None;
        }
        self.probe.on_beacon(now);
        let situation = self.situation();
        Some(self.repair.as_mut()?.beacon(situation, now))
    }

    /// Pages behind such a beacon: whether these come, it does not tell.
    fn poll_recalling_pages(&mut self, budget: u32, now: Instant) -> Option<PageRange> {
        let is_due = self.probe.poll_at(&self.members).is_some_and(|at| at <= now);
        if self.state != State::Serving || !is_due {
            return None;
        }
        let pages = self.probe.poll_pages(self.pages, budget)?;
        self.unreadable.first_in(pages).is_none().then_some(pages)
    }

    fn poll_beacon(&mut self, now: Instant) -> Option<Beacon> {
        let situation = self.situation();
        self.channel()?.poll_beacon(situation, now)
    }

    fn poll_fill(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        let situation = self.situation();
        if self.channel()?.is_idle(situation, now) && self.stream.want_held() {
            self.channel()?.on_change(now);
            self.note_stream();
            return self.poll_stream(budget, now);
        }
        let symbols = self.channel()?.poll_fill(budget, situation, now)?;
        self.stream_was_last = false;
        Some(Sending::Symbols(symbols))
    }

    /// Whether demands are answered in the present state.
    fn sends_demand(&self) -> bool {
        match self.state {
            State::Holding { .. } | State::Serving => true,
            State::Lingering { .. } | State::Ended(_) => false,
        }
    }

    fn send_demanded(&mut self, pages: PageRange, budget: u32) -> Sending {
        self.precedence.on_first(pages.len().into(), budget.into());
        if let Some(repair) = self.channel() {
            repair.on_sent();
        }
        Sending::Pages(pages)
    }

    /// Returns datagrams that no reader waits for.
    fn poll_unasked(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        if self.state != State::Serving {
            return None;
        }
        let sending = self.poll_promised(budget).or_else(|| {
            let fill = if self.stream_was_last { self.poll_fill(budget, now) } else { None };
            fill.or_else(|| self.poll_stream(budget, now)).or_else(|| self.poll_fill(budget, now))
        })?;
        self.precedence.on_others(sending.datagrams().into());
        Some(sending)
    }

    fn poll_promised(&mut self, budget: u32) -> Option<Sending> {
        let symbols = self.channel()?.poll_promised(budget)?;
        Some(Sending::Symbols(symbols))
    }

    fn poll_stream(&mut self, budget: u32, now: Instant) -> Option<Sending> {
        let audience = self.audience();
        let run = self.stream.poll(budget, audience, now)?;
        self.stream_was_last = true;
        self.demand.on_sent(run.pages, now);
        let members = self.members.hearing();
        if let Some(repair) = self.channel() {
            repair.on_sent();
            if let Some(window) = run.finished {
                repair.on_window(window, members, now);
            }
        }
        self.note_stream();
        if audience == Audience::Everybody {
            self.count_carousel(run.pages);
        }
        Some(Sending::Pages(run.pages))
    }

    /// Tells the repair channel whether the stream rests.
    fn note_stream(&mut self) {
        let is_done = self.stream.is_done();
        if let Some(repair) = self.channel() {
            repair.set_resting(is_done);
        }
    }

    /// Forgets plain members that the carousel passed too often since they joined.
    fn count_carousel(&mut self, pages: PageRange) {
        self.carousel_pages += u64::from(pages.len());
        let idle = u64::from(self.policy.idle_passes.get()) * u64::from(self.pages);
        if self.members.forget_plain(self.carousel_pages, idle) && self.members.is_empty() {
            self.end(EndReason::IdlePasses);
        }
    }

    /// Handles a join, leave, report or want. A member that only demands keeps only its own demands
    /// going.
    fn on_heard(&mut self, kind: MemberKind) {
        if kind == MemberKind::Demand {
            return;
        }
        if let Some(repair) = &mut self.repair {
            repair.on_activity();
        }
    }

    /// Drops what no remaining member needs.
    fn on_members_gone(&mut self) {
        if self.members.extended() == 0 {
            self.stream.want_none();
        }
        if self.members.repairing() == 0
            && let Some(repair) = &mut self.repair
        {
            repair.drop_promises();
        }
    }

    /// Starts or extends the hold. It started at `since`; the last member that wants the file
    /// joined now.
    fn hold(&mut self, since: Instant, now: Instant) {
        let latest = since + HOLD;
        let until = if self.members.has_plain() { latest } else { latest.min(now + SHORT_HOLD) };
        self.stream.restart(until);
        self.state = State::Holding { since, until };
    }

    fn linger(&mut self, now: Instant) {
        self.demand.clear();
        if self.policy.linger.is_zero() {
            self.end(EndReason::LastLeave);
        } else {
            self.say_farewell();
            self.state = State::Lingering { until: now + self.policy.linger };
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.say_farewell();
        self.state = State::Ended(reason);
    }

    fn say_farewell(&mut self) {
        self.owes_farewell |= std::mem::take(&mut self.was_extended);
    }
}

/// Length of a full datagram in bytes, the same on both ports.
fn datagram_len(geometry: &Geometry) -> usize {
    HEADER_LEN + geometry.page_size().get() as usize
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;

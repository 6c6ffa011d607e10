//! One running cast: sends the pages of a file and their repair symbols while members need them.

mod invariants;
mod leaves;
mod membership;
mod profile;
mod requests;
mod sending;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bootcast_proto::limits::{HOLD, SHORT_HOLD};
use bootcast_proto::wire::{Beacon, HEADER_LEN, LeafSpan};
use bootcast_proto::{BLOCK_PAGES, BlockLayout, Geometry, PageRange, Token};

use super::accounts::Entry;
use super::credit::Credits;
use super::demand::Demand;
use super::leaf_lists::LeafLists;
use super::members::{MemberKind, Members};
use super::multicast_probe::MulticastProbe;
use super::precedence::Precedence;
use super::principal::Principal;
use super::profile::CastProfile;
use super::rations::Rations;
use super::repair::{Repair, Situation, Symbol};
use super::stream::{Audience, Stream};
use super::unreadable::Unreadable;

/// Limits after which a cast ends on its own.
#[derive(Clone, Copy, Debug)]
pub struct CastPolicy {
    /// Passes after its join until a plain member is believed to be gone.
    pub idle_passes: NonZeroU32,
    /// Time for which a cast without members can still be joined. Nothing is sent meanwhile.
    pub linger: Duration,
}

/// Settings that the repair channels of all casts share.
#[derive(Clone, Copy, Debug)]
pub struct RepairSettings {
    /// Blocks in a window, at least 1.
    pub interleave: u32,
    /// UDP port of the repair channel in every group.
    pub repair_port: u16,
    /// Time after which a silent extended member is forgotten.
    pub lease: Duration,
}

impl RepairSettings {
    /// Returns the windows and blocks of a file; `None` if the pages are too small for a beacon. A
    /// window has no more blocks than the file, and no more than one beacon can state.
    pub fn layout(&self, geometry: &Geometry) -> Option<BlockLayout> {
        let room = datagram_len(geometry).checked_sub(Beacon::datagram_len(1, 0))?;
        let per_block = Beacon::datagram_len(1, 1) - Beacon::datagram_len(1, 0);
        let in_beacon = u32::try_from(room / per_block).unwrap_or(u32::MAX);
        let in_file = geometry.pages().div_ceil(BLOCK_PAGES).max(1);
        BlockLayout::new(geometry.pages(), self.interleave.min(in_beacon).min(in_file))
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
    #[error("leases expired")]
    LeasesExpired,
    /// The file is no longer the announced version.
    #[error("file changed")]
    FileChanged,
    /// The file cannot be read.
    #[error("file unreadable")]
    Unreadable,
    /// The server now sends from another address than the one it announced to the members.
    #[error("address changed")]
    AddressChanged,
    /// Another sender uses the group.
    #[error("group in use by another sender")]
    GroupTaken,
    /// The server is stopping.
    #[error("server stops")]
    Stopped,
}

/// Datagrams to send next. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Pages of the stream, within one pass and one window; or demanded pages.
    Pages(PageRange),
    /// Repair symbols.
    Symbols(Vec<Symbol>),
    /// A beacon.
    Beacon(Beacon),
    /// Values of these leaves, in one datagram.
    LeafList(LeafSpan),
    /// The end of the cast, with the number that the next beacon would have had.
    End(u32),
}

impl Sending {
    /// Returns the number of datagrams.
    pub fn datagrams(&self) -> u32 {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Symbols(symbols) => u32::try_from(symbols.len()).unwrap_or(u32::MAX),
            Self::Beacon(_) | Self::LeafList(_) | Self::End(_) => 1,
        }
    }
}

/// State of a cast.
///
/// ```text
///  join --> Holding -- until --> Serving -- idle passes, leases expired --> Ended
///           ^     ^--- join (*) --'  |
///           |                    last leave
///         join                       v
///           +------------------- Lingering -- until --> Ended
/// ```
///
/// (*) of the first member that wants the whole file. Demanded pages are sent in `Holding` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The group forms; only demanded pages are sent. The hold lasts from `since` to `until`.
    Holding { since: Instant, until: Instant },
    /// Sends what members need.
    Serving,
    /// There is no member. The cast ends at `until` unless a client joins.
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
    /// Bytes of a full page.
    page_bytes: u64,
    state: State,
    members: Members,
    stream: Stream,
    repair: Option<Repair>,
    demand: Demand,
    profile: CastProfile,
    leaf_lists: LeafLists,
    /// Priority of demanded pages over other datagrams, in pages.
    precedence: Precedence,
    probe: MulticastProbe,
    unreadable: Unreadable,
    /// Number of pages that were handed out but could not be read.
    unsent: u64,
    /// Whether the stream was sent more recently than fill symbols. The two alternate.
    stream_was_last: bool,
    /// Number of pages that the carousel has sent for plain members.
    carousel_pages: u64,
    credits: Credits,
    rations: Rations,
    joins: u64,
    /// Whether the end must be announced: members with a lease may still wait for datagrams.
    must_announce_end: bool,
    /// Whether a member with a lease has joined since the last announcement of the end.
    had_leased: bool,
}

impl Cast {
    /// Creates a cast without members, which lingers.
    pub fn new(
        geometry: &Geometry,
        policy: CastPolicy,
        repair: Option<&RepairSettings>,
        now: Instant,
    ) -> Self {
        let layout = repair.and_then(|repair| repair.layout(geometry));
        let repair_of = |layout| Repair::new(layout, datagram_len(geometry), now);
        Self {
            policy,
            pages: geometry.pages(),
            page_bytes: geometry.page_size().get().into(),
            state: State::Lingering { until: now + policy.linger },
            members: Members::new(repair.map_or(Duration::ZERO, |repair| repair.lease)),
            stream: Stream::new(geometry.pages(), layout, now),
            repair: layout.map(repair_of),
            demand: Demand::new(geometry.pages()),
            profile: CastProfile::new(*geometry),
            leaf_lists: LeafLists::new(*geometry, now),
            precedence: Precedence::default(),
            probe: MulticastProbe::new(now),
            unreadable: Unreadable::new(now),
            unsent: 0,
            stream_was_last: false,
            carousel_pages: 0,
            credits: Credits::new(geometry.pages()),
            rations: Rations::new(geometry.pages()),
            joins: 0,
            must_announce_end: false,
            had_leased: false,
        }
    }

    /// Sets whether the cast opens, and how long a full datagram takes at its rate. Both determine
    /// the interval of beacons.
    pub fn set_pace(&mut self, is_opening: bool, datagram: Duration) {
        if let Some(repair) = &mut self.repair {
            repair.set_pace(is_opening, datagram);
        }
    }

    /// Sets whether the streams of other casts run, so that demands must leave them their share.
    pub(super) fn set_has_neighbours(&mut self, has_neighbours: bool) {
        self.rations.set_has_neighbours(has_neighbours);
    }

    /// Returns the entries for the accounts of principals since the last call.
    pub(super) fn take_entries(&mut self) -> Vec<Entry> {
        self.members.take_entries()
    }

    /// Returns the number of members that want the whole file.
    pub fn whole_file_members(&self) -> usize {
        self.members.whole_file_members()
    }

    /// Whether the token is a member.
    pub(super) fn is_member(&self, token: &Token) -> bool {
        self.members.contains(token)
    }

    /// Returns the number of memberships of a principal.
    pub fn members_of(&self, principal: Principal) -> usize {
        self.members.of_principal(principal)
    }

    /// Handles pages that could not be read. Neither they nor symbols of their blocks are sent
    /// until the pages may be tried again.
    pub fn handle_unreadable(&mut self, pages: PageRange, now: Instant) {
        let pages = PageRange::new(pages.start.0, pages.end.0.min(self.pages));
        self.unreadable.insert(pages, now);
        if let Some(repair) = &mut self.repair {
            let layout = repair.layout();
            pages.iter().for_each(|page| repair.forbid(layout.place(page).0));
        }
    }

    /// Handles `pages` pages that were handed out but not sent, because they cannot be read.
    pub fn handle_unsent(&mut self, pages: u32) {
        self.unsent += u64::from(pages);
    }

    /// Handles pages that are sent after all, after [`Self::handle_unsent`].
    pub(super) fn handle_sent_late(&mut self, pages: u32) {
        debug_assert!(self.unsent >= u64::from(pages), "they were not taken back");
        self.unsent = self.unsent.saturating_sub(pages.into());
    }

    /// Returns the first run of unreadable pages within `pages`.
    pub fn unreadable_in(&self, pages: PageRange) -> Option<PageRange> {
        self.unreadable.first_in(pages)
    }

    /// Selects the unreadable pages that an answer names: those within `requested` first.
    pub fn select_unreadable(&mut self, requested: &[PageRange]) -> Vec<PageRange> {
        self.unreadable.select(requested)
    }

    /// Allows the pages whose retry time has come, and symbols of their blocks, to be sent again.
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

    /// Ends the cast for an external reason. If the cast has ended already, its reason stays.
    pub fn handle_end(&mut self, reason: EndReason) {
        if self.end_reason().is_none() {
            self.end(reason);
        }
    }

    /// Handles the timers that are due at `now`. An early call changes nothing.
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
                    self.credits.retain(|token| members.has_lease(token));
                    self.profile.retain(|token| members.has_lease(token));
                    self.on_members_gone();
                    if self.members.is_empty() {
                        self.end(EndReason::LeasesExpired);
                    }
                }
            }
            State::Holding { .. } | State::Lingering { .. } | State::Ended(_) => {}
        }
        self.assert_invariants();
    }

    /// Returns when to call [`Self::handle_timeout`]. Every other call may change the time.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Holding { until, .. } | State::Lingering { until } => Some(until),
            State::Serving => self.members.check_at(),
            State::Ended(_) => return None,
        };
        [own, self.unreadable.expires_at(), self.profile.keep_at()].into_iter().flatten().min()
    }

    /// Returns `Some` once when the end of the cast must be announced to its group: the number that
    /// the next beacon would have had.
    pub fn poll_end_announcement(&mut self) -> Option<u32> {
        let next_beacon = self.repair.as_ref().map_or(0, Repair::next_beacon);
        std::mem::take(&mut self.must_announce_end).then_some(next_beacon)
    }

    /// Returns why the cast has ended; `None` while it runs.
    pub fn end_reason(&self) -> Option<EndReason> {
        match self.state {
            State::Ended(reason) => Some(reason),
            State::Holding { .. } | State::Serving | State::Lingering { .. } => None,
        }
    }

    /// Returns the number of members.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Returns the number of members that fetch the file over HTTP.
    pub fn unicast_members(&self) -> usize {
        self.members.unicast()
    }

    /// Returns the number of extended members that receive datagrams. They may report counters.
    pub fn reporting_members(&self) -> usize {
        self.members.extended()
    }

    /// Returns the number of joins since the cast started.
    pub fn joins(&self) -> u64 {
        self.joins
    }

    /// Whether anything is sent for the member: it has a lease and does not count as deaf.
    pub fn serves(&self, token: &Token) -> bool {
        self.members.serves(token)
    }

    /// Returns the number of principals that have members.
    pub(super) fn principals(&self) -> usize {
        self.members.principals()
    }

    /// Returns the number of pages sent since the cast started.
    pub fn pages_sent(&self) -> u64 {
        let sent = self.stream.pages_sent() + self.demand.pages_sent() + self.profile.pages_sent();
        (sent + self.probe.pages_sent()).saturating_sub(self.unsent)
    }

    /// Returns the number of pages of zeros that the stream left out since the cast started.
    pub fn zero_pages(&self) -> u64 {
        self.stream.zero_pages()
    }

    /// Returns the number of pages handed out on demand, unreadable ones included.
    pub fn demanded(&self) -> u64 {
        self.demand.pages_sent()
    }

    /// Returns the number of completed passes over the file.
    pub fn passes(&self) -> u32 {
        self.stream.passes()
    }

    /// Returns the number of repair symbols handed out since the cast started.
    pub fn symbols_sent(&self) -> u64 {
        self.repair.as_ref().map_or(0, Repair::symbols_sent)
    }

    /// Returns the present redundancy: symbols that every block of a window gets without a report.
    pub fn redundancy(&self) -> u32 {
        self.repair.as_ref().map_or(0, Repair::redundancy)
    }
}

impl Cast {
    /// Returns the repair state if any member receives the repair channel.
    fn active_repair(&mut self) -> Option<&mut Repair> {
        self.repair.as_mut().filter(|_| self.members.repair_receivers() > 0)
    }

    fn audience(&self) -> Audience {
        if self.members.has_plain() {
            Audience::Everybody
        } else if self.members.all_have_zero_map() {
            Audience::ZeroMapHolders
        } else {
            Audience::Extended
        }
    }

    fn situation(&self) -> Situation {
        Situation {
            position: self.stream.position(self.audience()),
            stream_done: self.stream.is_done(),
            members: self.members.receivers(),
        }
    }

    /// Whether demanded pages are sent in the present state.
    fn sends_demand(&self) -> bool {
        match self.state {
            State::Holding { .. } | State::Serving => true,
            State::Lingering { .. } | State::Ended(_) => false,
        }
    }

    /// Updates the repair channel on whether the stream rests.
    fn notify_repair(&mut self) {
        let is_done = self.stream.is_done();
        if let Some(repair) = self.active_repair() {
            repair.set_resting(is_done);
        }
    }

    /// Handles a join, leave, report or want as a sign that fill symbols are of use. A member that
    /// only demands gives no such sign.
    fn on_heard(&mut self, kind: MemberKind) {
        if kind == MemberKind::Demand {
            return;
        }
        if let Some(repair) = &mut self.repair {
            repair.on_activity();
        }
    }

    /// Drops wanted windows and promises that no remaining member needs.
    fn on_members_gone(&mut self) {
        if self.members.extended() == 0 {
            self.stream.want_none();
        }
        if !self.members.want_leaf_lists() {
            self.leaf_lists.drop_stream();
        }
        if self.members.repair_receivers() == 0
            && let Some(repair) = &mut self.repair
        {
            repair.drop_promises();
        }
    }

    /// Starts a hold, or extends the one that began at `since`, because a member joined at `now`.
    fn hold(&mut self, since: Instant, now: Instant) {
        debug_assert!(self.end_reason().is_none(), "a cast that has ended starts no hold");
        let latest = since + HOLD;
        let until = if self.members.has_plain() { latest } else { latest.min(now + SHORT_HOLD) };
        self.stream.restart(until);
        self.leaf_lists.restart();
        self.state = State::Holding { since, until };
    }

    /// Ends the cast after the linger time, because it has no member.
    fn linger(&mut self, now: Instant) {
        self.demand.clear();
        self.leaf_lists.drop_demanded();
        if self.policy.linger.is_zero() {
            self.end(EndReason::LastLeave);
        } else {
            self.request_end_announcement();
            self.state = State::Lingering { until: now + self.policy.linger };
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.request_end_announcement();
        self.state = State::Ended(reason);
    }

    /// Makes [`Self::poll_end_announcement`] announce the end, if there were members with a lease.
    fn request_end_announcement(&mut self) {
        self.must_announce_end |= std::mem::take(&mut self.had_leased);
    }
}

/// Returns the UDP payload length of a full datagram in bytes. It is the same on both ports.
fn datagram_len(geometry: &Geometry) -> usize {
    HEADER_LEN + geometry.page_size().get() as usize
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "lifecycle/zeros_tests.rs"]
mod zeros_tests;

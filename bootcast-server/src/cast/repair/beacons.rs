//! Beacons, which state the levels and how many members may report.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bootcast_proto::limits::{BEACON_INTERVAL, BEACON_INTERVAL_MAX};
use bootcast_proto::wire::{Beacon, Pace};
use bootcast_proto::{Backoff, BlockLayout, Share, WindowIndex};

use super::Situation;
use super::levels::Levels;
use super::reporters::{FEW_MEMBERS, Reporters, spread};

/// Time between two beacons while the cast opens, when members report every 10 ms.
const OPENING_INTERVAL: Duration = Duration::from_millis(5);

/// Times between two beacons while the cast waits for reports. The first is short because the
/// beacon that members wait for may get lost.
const WAITING: Backoff = Backoff::new(Duration::from_millis(5), BEACON_INTERVAL_MAX);

/// 1 / this is the largest share of the rate that beacons take. On a slow path, repair symbols and
/// demanded pages must still go out between them.
const RATE_DIVISOR: u32 = 8;

/// Shortest time between an urgent beacon and the one before.
const URGENT_INTERVAL: Duration = Duration::from_millis(2);

/// Number of reports since the last beacon that make the next one urgent, if there are many
/// members. Members that would report next then learn which promises the first reports brought.
const URGENT_REPORTS: u32 = 4;

/// Number of reports in a period below which more members may report.
const FEW_REPORTS: u32 = 25;

/// Number of reports in a period above which fewer members may report.
const MANY_REPORTS: u32 = 50;

/// Factor by which the permit rises or falls.
const PERMIT_STEP: u64 = 4;

/// Most times that the spread is halved while all of many members may report and few do.
const MAX_HALVINGS: u32 = 2;

/// Composes beacons, decides when they go out, and adapts permit and spread to the reports.
#[derive(Debug)]
pub(super) struct Beacons {
    layout: BlockLayout,
    /// Length of a full datagram in bytes, the upper bound of a beacon's.
    datagram_len: usize,
    /// Number of the next beacon.
    number: u32,
    /// Time of the last beacon.
    last_at: Instant,
    /// Whether pages or symbols were sent since the last beacon.
    has_sent: bool,
    /// Whether members wait for the next beacon.
    is_urgent: bool,
    /// Time between two beacons while the cast sends.
    sending_interval: Duration,
    /// Shortest time between two beacons at the present rate.
    min_interval: Duration,
    /// Number of beacons in a row after which nothing new was sent.
    repetitions: u32,
    /// Spread in the last beacon.
    spread: Duration,
    /// Window at which the next search for changed levels starts.
    next_window: WindowIndex,
    /// Permit that few reports have raised. It holds if it exceeds the one that follows
    /// from the number of members.
    raised_permit: Share,
    /// Number of times that the spread of many members is halved at present.
    halvings: u32,
    /// Reports in this period.
    reports: u32,
    /// Reports since the last beacon.
    unanswered: u32,
    /// Start of the period in which reports are counted.
    period_began: Instant,
}

impl Beacons {
    /// Creates the state of a cast without beacons. `datagram_len` is the length of a full datagram
    /// in bytes.
    pub(super) fn new(layout: BlockLayout, datagram_len: usize, now: Instant) -> Self {
        Self {
            layout,
            datagram_len,
            number: 0,
            last_at: now,
            has_sent: false,
            is_urgent: false,
            sending_interval: BEACON_INTERVAL,
            min_interval: Duration::ZERO,
            repetitions: 0,
            spread: Duration::ZERO,
            next_window: WindowIndex(0),
            raised_permit: Share::NONE,
            halvings: 0,
            reports: 0,
            unanswered: 0,
            period_began: now,
        }
    }

    /// Sets whether the cast opens, and how long a full datagram takes at its rate.
    ///
    /// While a cast opens, beacons follow each other sooner. The first one goes out before the
    /// first page, because members count datagrams from their first beacon on.
    pub(super) fn set_pace(&mut self, is_opening: bool, datagram: Duration) {
        self.min_interval = datagram * RATE_DIVISOR;
        self.sending_interval = if is_opening { OPENING_INTERVAL } else { BEACON_INTERVAL };
        self.is_urgent |= is_opening && self.number == 0;
    }

    /// Records that pages or symbols were sent.
    pub(super) fn on_sent(&mut self) {
        self.has_sent = true;
    }

    /// Number of the next beacon.
    pub(super) fn next_number(&self) -> u32 {
        self.number
    }

    /// Makes the next beacon urgent.
    pub(super) fn make_urgent(&mut self) {
        self.is_urgent = true;
    }

    /// Counts a report of needs by one of `members` members.
    pub(super) fn count_report(&mut self, members: usize) {
        self.reports = self.reports.saturating_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
        self.is_urgent |= members > FEW_MEMBERS && self.unanswered >= URGENT_REPORTS;
    }

    /// Returns when the next beacon is due. `has_unsent` says that promised symbols are not sent
    /// yet. While nothing is sent, beacons go out only until all reports have arrived at
    /// `reports_due_at`.
    pub(super) fn due_at(
        &self,
        situation: Situation,
        has_unsent: bool,
        reports_due_at: Option<Instant>,
    ) -> Option<Instant> {
        // Many members left since the last beacon, so the others may report within a shorter
        // spread.
        let is_spread_shorter = situation.stream_done && self.spread > 4 * spread_of(situation);
        let are_reports_awaited = self.has_sent || reports_due_at > Some(self.last_at);
        if self.is_urgent || (is_spread_shorter && are_reports_awaited) {
            let min_interval = if self.number == 0 { Duration::ZERO } else { self.min_interval };
            return Some(self.last_at + URGENT_INTERVAL.max(min_interval));
        }
        if self.has_sent || has_unsent {
            return Some(self.last_at + self.sending_interval.max(self.min_interval));
        }
        let at = self.last_at + WAITING.pause(self.repetitions);
        reports_due_at.filter(|&reports_due_at| at < reports_due_at).map(|_| at)
    }

    /// Adapts permit and spread to the number of reports: few reports let more members report, and
    /// sooner; many reports do the opposite. Returns whether the permit rose.
    pub(super) fn adjust_permit(&mut self, situation: Situation, now: Instant) -> bool {
        debug_assert!(self.halvings <= MAX_HALVINGS, "the spread would become too short");
        if now < self.period_began + spread_of(situation) {
            return false;
        }
        let permit = self.permit(situation.members);
        let reports = std::mem::take(&mut self.reports);
        self.period_began = now;
        let few = reports < FEW_REPORTS;
        let all_may = permit == Share::ALL;
        if reports > MANY_REPORTS {
            self.raised_permit = permit.divided_by(PERMIT_STEP);
            self.halvings = 0;
        } else if few && all_may {
            self.halvings = (self.halvings + 1).min(MAX_HALVINGS);
        } else if few {
            self.raised_permit = permit.times(PERMIT_STEP);
        }
        few && !all_may
    }

    /// Returns the number of members and the present permit.
    pub(super) fn reporters(&self, members: usize) -> Reporters {
        Reporters { members, permit: self.permit(members) }
    }

    /// Composes the next beacon. It states changed levels first, then those of other windows in
    /// turn, as many as fit. The scheduler adds the rate.
    pub(super) fn compose(
        &mut self,
        situation: Situation,
        levels: &mut Levels,
        now: Instant,
    ) -> Beacon {
        let windows = self.choose_windows(levels);
        let number = self.number;
        self.number = self.number.wrapping_add(1);
        self.last_at = now;
        let has_news = self.has_sent || self.is_urgent;
        self.repetitions = if has_news { 0 } else { self.repetitions.saturating_add(1) };
        self.has_sent = false;
        self.is_urgent = false;
        self.unanswered = 0;
        self.spread = self.spread(situation);
        Beacon {
            number,
            position: situation.position,
            members: u32::try_from(situation.members).unwrap_or(u32::MAX),
            permit: self.permit(situation.members),
            spread_ms: u16::try_from(self.spread.as_millis()).unwrap_or(u16::MAX),
            pace: Pace::default(),
            windows: windows.into_iter().map(|it| (it, levels.of_window(it))).collect(),
        }
    }

    /// Returns the spread of reports. It follows the number of members if they are few, and the
    /// number of their reports if they are many.
    fn spread(&self, situation: Situation) -> Duration {
        let spread = spread_of(situation);
        if situation.members > FEW_MEMBERS { spread / (1 << self.halvings) } else { spread }
    }

    /// Returns the share of the members that may report.
    fn permit(&self, members: usize) -> Share {
        Share::of(FEW_MEMBERS as u64, members as u64).max(self.raised_permit)
    }

    /// Chooses the windows that the next beacon states, as many as fit.
    fn choose_windows(&mut self, levels: &mut Levels) -> BTreeSet<WindowIndex> {
        let mut chosen = BTreeSet::new();
        let mut blocks = 0;
        // Every window fits alone. The loop stops when the largest window would no longer fit, so
        // that a changed window is never taken and then left out.
        let largest = self.layout.interleave().min(self.layout.blocks()) as usize;
        let windows = self.layout.windows();
        while chosen.len() < windows as usize
            && Beacon::datagram_len(chosen.len() + 1, blocks + largest) <= self.datagram_len
        {
            let changed = levels.take_changed(self.next_window);
            let window = changed.unwrap_or(self.next_window);
            self.next_window = WindowIndex((window.0 + 1) % windows);
            if chosen.insert(window) {
                let range = self.layout.blocks_of(window);
                blocks += (range.end - range.start) as usize;
            }
        }
        // The encoded beacon is sent from a buffer of this length.
        let len = Beacon::datagram_len(chosen.len(), blocks);
        assert!(chosen.is_empty() || len <= self.datagram_len, "a beacon of {len} bytes");
        chosen
    }
}

/// Returns the spread without halvings.
fn spread_of(situation: Situation) -> Duration {
    spread(situation.members, situation.stream_done)
}

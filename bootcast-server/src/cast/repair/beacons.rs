//! Beacons: tell members the levels, and whether they may report.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bootcast_proto::wire::{Beacon, Pace};
use bootcast_proto::{BlockLayout, WindowIndex};

use super::Situation;
use super::levels::Levels;
use super::reporters::{EVERYBODY, FEW_MEMBERS, Reporters, spread};

/// Time between two beacons while the cast sends.
const BUSY_INTERVAL: Duration = Duration::from_millis(25);

/// The same while the cast opens and its rate is searched for.
const OPENING_INTERVAL: Duration = Duration::from_millis(5);

/// Time between two beacons while the cast waits for reports: the first interval, doubled each time
/// up to the second. It starts short because the beacon that waiting members need most may get
/// lost.
const WAITING_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(50));

/// Beacons take at most 1 / this of the rate, so that on a slow path repair symbols and demanded
/// pages still go out between them.
const RATE_DIVISOR: u32 = 8;

/// Shortest time before an urgent beacon.
const URGENT_INTERVAL: Duration = Duration::from_millis(2);

/// Among many members, a beacon becomes urgent after this many reports, so that members who would
/// report next learn what the first reports achieved.
const REPORTS_AT_ONCE: u32 = 4;

/// With fewer reports in a period than this, more members may report.
const FEW_REPORTS: u32 = 25;

/// With more reports in a period than this, fewer members may report.
const MANY_REPORTS: u32 = 50;

/// Factor by which the permit rises or falls.
const PERMIT_STEP: u64 = 4;

/// Upper bound on halvings of the spread. It is halved where all of many members may report and few
/// do.
const HALVINGS: u32 = 2;

#[derive(Debug)]
pub(super) struct Beacons {
    layout: BlockLayout,
    datagram_len: usize,
    number: u32,
    last_at: Instant,
    /// Whether something was sent since the last beacon.
    sent_since: bool,
    /// Whether members wait for the next beacon.
    is_urgent: bool,
    /// Time between two beacons while the cast sends.
    busy: Duration,
    /// Shortest time between two beacons at the present rate.
    shortest: Duration,
    /// Time until the next beacon while nothing changes.
    waiting: Duration,
    /// Spread in the last beacon.
    spread: Duration,
    /// Window at which the next search for changed levels starts.
    next_window: WindowIndex,
    /// Permit beyond what the number of members allows, in 1/65536.
    raised_permit: u64,
    /// How often the spread of many members is halved at present.
    halvings: u32,
    reports: u32,
    /// Reports since the last beacon.
    unanswered: u32,
    /// Start of the period in which reports are counted.
    period_began: Instant,
}

impl Beacons {
    pub(super) fn new(layout: BlockLayout, datagram_len: usize, now: Instant) -> Self {
        Self {
            layout,
            datagram_len,
            number: 0,
            last_at: now,
            sent_since: false,
            is_urgent: false,
            busy: BUSY_INTERVAL,
            shortest: Duration::ZERO,
            waiting: WAITING_INTERVALS.0,
            spread: Duration::ZERO,
            next_window: WindowIndex(0),
            raised_permit: 0,
            halvings: 0,
            reports: 0,
            unanswered: 0,
            period_began: now,
        }
    }

    /// Sets whether the cast opens, and how long a full datagram takes at its rate. While a cast
    /// opens, beacons follow each other sooner, and the first one goes out before the first page,
    /// because members count from their first beacon on.
    pub(super) fn set_pace(&mut self, is_opening: bool, datagram: Duration) {
        self.shortest = datagram * RATE_DIVISOR;
        self.busy = if is_opening { OPENING_INTERVAL } else { BUSY_INTERVAL };
        self.is_urgent |= is_opening && self.number == 0;
    }

    pub(super) fn on_sent(&mut self) {
        self.sent_since = true;
    }

    /// Returns the number of the next beacon.
    pub(super) fn next_number(&self) -> u32 {
        self.number
    }

    /// Makes the next beacon urgent.
    pub(super) fn on_urgent(&mut self) {
        self.is_urgent = true;
    }

    /// Counts a report of needs by one of `members` members.
    pub(super) fn count_report(&mut self, members: usize) {
        self.reports = self.reports.saturating_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
        self.is_urgent |= members > FEW_MEMBERS && self.unanswered >= REPORTS_AT_ONCE;
    }

    /// When the next beacon is due. If there is nothing to send, reports are awaited until
    /// `calm_at`.
    pub(super) fn due_at(
        &self,
        situation: Situation,
        is_owing: bool,
        calm_at: Option<Instant>,
    ) -> Option<Instant> {
        // Many members left since the last beacon: the others may now report with a shorter spread.
        let is_sooner = situation.stream_done && self.spread > 4 * spread_of(situation);
        if self.is_urgent || (is_sooner && (self.sent_since || calm_at > Some(self.last_at))) {
            let shortest = if self.number == 0 { Duration::ZERO } else { self.shortest };
            return Some(self.last_at + URGENT_INTERVAL.max(shortest));
        }
        if self.sent_since || is_owing {
            return Some(self.last_at + self.busy.max(self.shortest));
        }
        let at = self.last_at + self.waiting;
        calm_at.filter(|&calm_at| at < calm_at).map(|_| at)
    }

    /// Adapts permit and spread to the number of reports: few reports let more members report, and
    /// sooner; many reports do the opposite. Returns whether the permit rose.
    pub(super) fn adjust_permit(&mut self, situation: Situation, now: Instant) -> bool {
        if now < self.period_began + spread_of(situation) {
            return false;
        }
        let permit = self.permit(situation.members);
        let reports = std::mem::take(&mut self.reports);
        self.period_began = now;
        let few = reports < FEW_REPORTS;
        let all_may = permit >= EVERYBODY;
        if reports > MANY_REPORTS {
            self.raised_permit = permit / PERMIT_STEP;
            self.halvings = 0;
        } else if few && all_may {
            self.halvings = (self.halvings + 1).min(HALVINGS);
        } else if few {
            self.raised_permit = permit * PERMIT_STEP;
        }
        few && !all_may
    }

    /// Members that may report, as beacons state it.
    pub(super) fn reporters(&self, members: usize) -> Reporters {
        Reporters { members, permit: self.permit(members) }
    }

    /// Composes a beacon: changed levels first, then those of other windows in turn, as many as
    /// fit. The scheduler adds the rate.
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
        let has_news = self.sent_since || self.is_urgent;
        let (first, longest) = WAITING_INTERVALS;
        self.waiting = if has_news { first } else { longest.min(2 * self.waiting) };
        self.sent_since = false;
        self.is_urgent = false;
        self.unanswered = 0;
        self.spread = self.spread(situation);
        let permit = self.permit(situation.members);
        Beacon {
            number,
            position: situation.position,
            members: u32::try_from(situation.members).unwrap_or(u32::MAX),
            permit: u16::try_from(permit).unwrap_or(u16::MAX),
            spread_ms: u16::try_from(self.spread.as_millis()).unwrap_or(u16::MAX),
            pace: Pace::default(),
            windows: windows.into_iter().map(|it| (it, levels.of_window(it))).collect(),
        }
    }

    /// Spread of reports: follows the number of few members, and the number of reports of many.
    fn spread(&self, situation: Situation) -> Duration {
        let spread = spread_of(situation);
        if situation.members > FEW_MEMBERS { spread / (1 << self.halvings) } else { spread }
    }

    /// Share that may report, in 1/65536, rounded up.
    fn permit(&self, members: usize) -> u64 {
        let few = (FEW_MEMBERS as u64 * EVERYBODY).div_ceil(members.max(1) as u64);
        few.max(self.raised_permit).min(EVERYBODY)
    }

    fn choose_windows(&mut self, levels: &mut Levels) -> BTreeSet<WindowIndex> {
        let mut chosen = BTreeSet::new();
        let mut blocks = 0;
        // Every window fits alone. The size of the largest decides when to stop, so no window is
        // skipped.
        let largest = self.layout.interleave().min(self.layout.blocks()) as usize;
        let windows = self.layout.windows();
        while chosen.len() < windows as usize
            && Beacon::datagram_len(chosen.len() + 1, blocks + largest) <= self.datagram_len
        {
            let news = levels.take_news(self.next_window);
            let window = news.unwrap_or(self.next_window);
            self.next_window = WindowIndex((window.0 + 1) % windows);
            if chosen.insert(window) {
                let range = self.layout.blocks_of(window);
                blocks += (range.end - range.start) as usize;
            }
        }
        chosen
    }
}

fn spread_of(situation: Situation) -> Duration {
    spread(situation.members, situation.stream_done)
}

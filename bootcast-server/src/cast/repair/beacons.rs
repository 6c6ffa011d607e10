//! What members are told of the cast: levels, and whether they may speak.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bootcast_proto::wire::{Beacon, Pace};
use bootcast_proto::{BlockLayout, WindowIndex};

use super::Situation;
use super::levels::Levels;
use super::reporters::{EVERYBODY, FEW_MEMBERS, Reporters, spread};

/// Between two beacons while the cast sends.
const BUSY_INTERVAL: Duration = Duration::from_millis(25);

/// Between two beacons while it waits for reports: at first, as the one that those who wait need most may get lost, then twice as
/// long each time, and at most.
const WAITING_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(50));

/// Before one that cannot wait.
const URGENT_INTERVAL: Duration = Duration::from_millis(2);

/// After so many reports of many members a beacon cannot wait: those who would ask next are to know what the first ones brought.
const REPORTS_AT_ONCE: u32 = 4;

/// Fewer reports in a period than this, and more members may speak.
const FEW_REPORTS: u32 = 25;

/// More reports than this, and fewer members may speak.
const MANY_REPORTS: u32 = 50;

/// So many times as many, or as few.
const PERMIT_STEP: u64 = 4;

/// Where all of many members may speak and few do, the time over which their reports are spread is halved up to so many times.
const HALVINGS: u32 = 2;

#[derive(Debug)]
pub(super) struct Beacons {
    layout: BlockLayout,
    datagram_len: usize,
    number: u32,
    last_at: Instant,
    /// Something went out since the last one.
    sent_since: bool,
    /// Members wait for the next one.
    is_urgent: bool,
    /// Until the next one, if there is nothing to be told.
    waiting: Duration,
    /// What the last one said of it.
    spread: Duration,
    /// Where the look over the windows goes on.
    next_window: WindowIndex,
    /// Share of members that may report beyond what their number allows, in 1/65536.
    raised_permit: u64,
    /// How often the spread of many is halved.
    halvings: u32,
    reports: u32,
    /// Reports since the last beacon.
    unanswered: u32,
    /// Reports are counted from here on.
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

    pub(super) fn on_sent(&mut self) {
        self.sent_since = true;
    }

    /// There is something to be told without delay.
    pub(super) fn on_urgent(&mut self) {
        self.is_urgent = true;
    }

    /// One of so many members reported what it lacks.
    pub(super) fn count_report(&mut self, members: usize) {
        self.reports = self.reports.saturating_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
        self.is_urgent |= members > FEW_MEMBERS && self.unanswered >= REPORTS_AT_ONCE;
    }

    /// When the next one is due. `calm_at`: until then reports are waited for, if there is nothing to send.
    pub(super) fn due_at(
        &self,
        situation: Situation,
        is_owing: bool,
        calm_at: Option<Instant>,
    ) -> Option<Instant> {
        // Many have left since the last one: those who remain may say at once what they lack.
        let is_sooner = situation.stream_done && self.spread > 4 * spread_of(situation);
        if self.is_urgent || (is_sooner && (self.sent_since || calm_at > Some(self.last_at))) {
            return Some(self.last_at + URGENT_INTERVAL);
        }
        if self.sent_since || is_owing {
            return Some(self.last_at + BUSY_INTERVAL);
        }
        let at = self.last_at + self.waiting;
        calm_at.filter(|&calm_at| at < calm_at).map(|_| at)
    }

    /// Lets more members speak, and sooner, where those who may have little to say, and fewer and later where they say much; `true`
    /// where more may.
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

    /// Those to whom the beacons speak.
    pub(super) fn reporters(&self, members: usize) -> Reporters {
        Reporters { members, permit: self.permit(members) }
    }

    /// Levels with news first, then those of the other windows in turn, as many as fit. What is to be told of the rate is the
    /// scheduler's to add.
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

    /// That of few members follows their number; that of many, how much they have to say.
    fn spread(&self, situation: Situation) -> Duration {
        let spread = spread_of(situation);
        if situation.members > FEW_MEMBERS { spread / (1 << self.halvings) } else { spread }
    }

    /// In 1/65536, rounded up.
    fn permit(&self, members: usize) -> u64 {
        let few = (FEW_MEMBERS as u64 * EVERYBODY).div_ceil(members.max(1) as u64);
        few.max(self.raised_permit).min(EVERYBODY)
    }

    fn choose_windows(&mut self, levels: &mut Levels) -> BTreeSet<WindowIndex> {
        let mut chosen = BTreeSet::new();
        let mut blocks = 0;
        // Every window fits alone, and the largest that still fits decides: no window is passed over.
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

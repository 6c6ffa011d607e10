//! The repair channel of one cast: what is promised, what is owed, and who is to speak about it.
//! docs/PROTOCOL.md, "Repair".
//!
//! | module | decides |
//! |---|---|
//! | [`levels`] | which symbol goes out next |
//! | [`redundancy`] | how many symbols a window gets unasked |
//! | [`beacons`] | when and what members hear of all that, and how many of them may report |
//! | [`fill`] | what is sent when everything promised is |

mod beacons;
mod fill;
mod levels;
mod redundancy;

use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::fec::RepairIndex;
use bootcast_proto::wire::Beacon;
use bootcast_proto::{BlockIndex, BlockLayout, PageIndex, WindowIndex};

use beacons::Beacons;
use fill::Fill;
use levels::Levels;
use redundancy::Redundancy;

/// Up to this many members all may report, and the spread follows their number.
const FEW_MEMBERS: usize = 100;

/// Range of the time over which few members' reports are spread; and that of many.
const SPREAD_MIN: Duration = Duration::from_millis(10);
const SPREAD_MANY: Duration = Duration::from_millis(200);

/// What a report takes from the end of its timer to its promise, at most.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// A repair symbol to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Of which block.
    pub block: BlockIndex,
    /// Which of its symbols.
    pub number: RepairIndex,
    /// Symbols that the block will have got in all; 255 stands for more.
    pub promised: u8,
}

/// What repair has to know of the rest of its cast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// The page that the stream sends next.
    pub(super) position: PageIndex,
    /// Whether the stream brought every window that was asked for.
    pub(super) stream_done: bool,
    /// Members of either kind.
    pub(super) members: usize,
}

#[derive(Debug)]
pub(super) struct Repair {
    levels: Levels,
    redundancy: Redundancy,
    beacons: Beacons,
    fill: Fill,
    /// The last join, promise or wish: there may be an answer to it.
    changed_at: Instant,
}

impl Repair {
    /// `datagram_len`: bytes of a full datagram.
    pub(super) fn new(layout: BlockLayout, datagram_len: usize, now: Instant) -> Self {
        Self {
            levels: Levels::new(layout),
            redundancy: Redundancy::default(),
            beacons: Beacons::new(layout, datagram_len, now),
            fill: Fill::new(layout.blocks(), now),
            changed_at: now,
        }
    }

    /// Somebody joined, left or reported.
    pub(super) fn on_heard(&mut self) {
        self.fill.on_heard();
    }

    /// What members lack changed, or what they are told.
    pub(super) fn on_change(&mut self, now: Instant) {
        self.changed_at = now;
    }

    /// Nobody is left to whom anything was promised.
    pub(super) fn on_deserted(&mut self) {
        self.levels.drop_promises();
    }

    /// Takes over what a member needs.
    pub(super) fn handle_report(&mut self, report: &Report, now: Instant) {
        if !report.needs.is_empty() || !report.bulk.is_empty() {
            self.beacons.count_report();
        }
        let mut raised = false;
        for &(block, need) in &report.needs {
            raised |= self.levels.promise(BlockIndex(block), need.into());
        }
        if raised {
            self.on_change(now);
        }
    }

    /// The stream brought a window that was wanted.
    pub(super) fn on_window(&mut self, window: WindowIndex, members: usize, now: Instant) {
        self.learn(members, now);
        let untouched = self.levels.promise_more(window, self.redundancy.symbols());
        if untouched {
            self.redundancy.watch(window, now + 2 * spread(members));
        }
        self.on_sent();
        self.on_change(now);
    }

    /// Pages or symbols went out.
    pub(super) fn on_sent(&mut self) {
        self.beacons.on_sent();
    }

    /// The next beacon, if one is due.
    pub(super) fn poll_beacon(&mut self, situation: Situation, now: Instant) -> Option<Beacon> {
        if self.beacon_at(situation).is_none_or(|at| now < at) {
            return None;
        }
        self.learn(situation.members, now);
        if self.beacons.adjust_permit(situation, self.levels.is_owing(), now) {
            self.on_change(now);
        }
        Some(self.beacon(situation, now))
    }

    /// A beacon, due or not.
    pub(super) fn beacon(&mut self, situation: Situation, now: Instant) -> Beacon {
        self.beacons.compose(situation, &mut self.levels, now)
    }

    /// Promised symbols, the first of every block before the second of any.
    pub(super) fn poll_promised(&mut self, budget: u32) -> Option<Vec<Symbol>> {
        let symbols = self.levels.poll(budget);
        if symbols.is_empty() {
            return None;
        }
        self.on_sent();
        Some(symbols)
    }

    /// More symbols of every block in turn, once nobody seems to have a better idea.
    pub(super) fn poll_fill(
        &mut self,
        budget: u32,
        situation: Situation,
        now: Instant,
    ) -> Option<Vec<Symbol>> {
        if self.fill_at(situation).is_none_or(|at| now < at) {
            return None;
        }
        for block in self.fill.poll(budget, now) {
            self.levels.promise_one(block);
        }
        self.poll_promised(budget)
    }

    /// From when on one of the `poll_` has something.
    pub(super) fn poll_at(&self, situation: Situation) -> Option<Instant> {
        let owed = self.levels.is_owing().then_some(self.changed_at);
        [owed, self.beacon_at(situation), self.fill_at(situation)].into_iter().flatten().min()
    }

    /// Symbols of each block that a window gets unasked.
    pub(super) fn redundancy(&self) -> u32 {
        self.redundancy.symbols()
    }

    pub(super) fn symbols_sent(&self) -> u64 {
        self.levels.symbols_sent()
    }

    fn learn(&mut self, members: usize, now: Instant) {
        if members > 0 {
            self.redundancy.learn(&self.levels, now);
        }
    }

    fn beacon_at(&self, situation: Situation) -> Option<Instant> {
        let calm_at = situation.stream_done.then(|| self.changed_at + patience(situation.members));
        self.beacons.due_at(self.levels.is_owing(), calm_at)
    }

    fn fill_at(&self, situation: Situation) -> Option<Instant> {
        if !situation.stream_done || self.levels.is_owing() {
            return None;
        }
        Some(self.fill.due_at()?.max(self.changed_at + patience(situation.members)))
    }
}

/// The time over which the reports of so many members are spread.
fn spread(members: usize) -> Duration {
    if members > FEW_MEMBERS {
        return SPREAD_MANY;
    }
    SPREAD_MIN.max(Duration::from_millis(members as u64))
}

/// How long a report may be under way that answers the last change.
fn patience(members: usize) -> Duration {
    2 * spread(members) + REPORT_DELAY
}

#[cfg(test)]
mod tests;

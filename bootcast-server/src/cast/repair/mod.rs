//! The repair channel of one cast: which symbols are promised, and which members report.
//! docs/PROTOCOL.md, "Repair".
//!
//! | module | decides |
//! |---|---|
//! | [`levels`] | which symbol goes out next |
//! | [`redundancy`] | how many symbols a window gets without reports |
//! | [`beacons`] | when a beacon goes out, what it says, and how many members may report |
//! | [`reporters`] | how many members may report, and over which time |
//! | [`outliers`] | which members are served last |
//! | [`fill`] | which symbols go out when everything promised is sent |

mod beacons;
mod fill;
mod levels;
mod outliers;
mod redundancy;
mod reporters;

use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::fec::RepairIndex;
use bootcast_proto::wire::Beacon;
use bootcast_proto::{BlockIndex, BlockLayout, PageIndex, WindowIndex};

use beacons::Beacons;
use fill::Fill;
use levels::Levels;
use outliers::Outliers;
use redundancy::Redundancy;
use reporters::{patience, spread};

/// A repair symbol to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Block that the symbol belongs to.
    pub block: BlockIndex,
    /// Number of the symbol in its block.
    pub number: RepairIndex,
    /// Symbols promised for the block in all, capped at 255.
    pub promised: u8,
}

/// State of the rest of the cast that repair depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// Page that the stream sends next.
    pub(super) position: PageIndex,
    /// Whether the stream has sent every window that was asked for.
    pub(super) stream_done: bool,
    /// Members that want the whole file and receive datagrams.
    pub(super) members: usize,
}

#[derive(Debug)]
pub(super) struct Repair {
    levels: Levels,
    redundancy: Redundancy,
    beacons: Beacons,
    outliers: Outliers,
    fill: Fill,
    /// Whether a beacon has told the members that the stream rests.
    is_resting: bool,
    /// Time of the last join, promise or request: reports that answer it may still be on their way.
    changed_at: Instant,
}

impl Repair {
    /// Creates the state for a file without promises. `datagram_len` is the length of a full
    /// datagram in bytes.
    pub(super) fn new(layout: BlockLayout, datagram_len: usize, now: Instant) -> Self {
        Self {
            levels: Levels::new(layout),
            redundancy: Redundancy::default(),
            beacons: Beacons::new(layout, datagram_len, now),
            outliers: Outliers::new(now),
            fill: Fill::new(layout.blocks(), now),
            is_resting: false,
            changed_at: now,
        }
    }

    /// Sets whether the cast opens, and how long a full datagram takes at its rate.
    pub(super) fn set_pace(&mut self, is_opening: bool, datagram: Duration) {
        self.beacons.set_pace(is_opening, datagram);
    }

    /// Handles a sign of life: a join, a leave or a report.
    pub(super) fn on_heard(&mut self) {
        self.fill.on_heard();
    }

    /// Handles a change in what members lack or in what beacons say.
    pub(super) fn on_change(&mut self, now: Instant) {
        self.changed_at = now;
    }

    /// Drops all promises: no member is left that they were made to.
    pub(super) fn on_deserted(&mut self) {
        self.levels.drop_promises();
    }

    /// Takes over the needs in a report of one of `members` members.
    pub(super) fn handle_report(&mut self, report: &Report, members: usize, now: Instant) {
        if report.needs.is_empty() && report.bulk.is_empty() {
            return;
        }
        self.beacons.count_report(members);
        let reporters = self.beacons.reporters(members);
        let redundancy = self.redundancy.symbols();
        let is_outlier = self.outliers.is_outlier(report, &self.levels, redundancy, reporters, now);
        let mut raised = false;
        for &(block, need) in &report.needs {
            let (block, need) = (BlockIndex(block), need.into());
            raised |= if is_outlier {
                self.levels.defer(block, need)
            } else {
                self.levels.ask(block, need)
            };
        }
        if raised {
            self.on_change(now);
        }
    }

    /// Handles a wanted window whose pages the stream has sent.
    pub(super) fn on_window(&mut self, window: WindowIndex, members: usize, now: Instant) {
        self.learn(members, now);
        self.redundancy.begin(window, &mut self.levels, now + 2 * spread(members, false));
        self.on_sent();
        self.on_change(now);
    }

    /// Handles the stream coming to rest or running again.
    pub(super) fn on_stream(&mut self, stream_done: bool) {
        if std::mem::replace(&mut self.is_resting, stream_done) == stream_done {
            return;
        }
        self.beacons.on_urgent();
        if stream_done {
            let rounds = self.redundancy.symbols().isqrt();
            let windows: Vec<_> = self.redundancy.awaiting_reports().collect();
            self.fill.begin_with(windows.into_iter(), rounds, self.levels.layout());
        }
    }

    /// Handles sent pages or symbols.
    pub(super) fn on_sent(&mut self) {
        self.beacons.on_sent();
    }

    /// Returns the next beacon if one is due.
    pub(super) fn poll_beacon(&mut self, situation: Situation, now: Instant) -> Option<Beacon> {
        if self.beacon_at(situation).is_none_or(|at| now < at) {
            return None;
        }
        self.learn(situation.members, now);
        if self.beacons.adjust_permit(situation, now) {
            self.on_change(now);
        }
        Some(self.beacon(situation, now))
    }

    /// Returns a beacon, due or not.
    pub(super) fn beacon(&mut self, situation: Situation, now: Instant) -> Beacon {
        self.beacons.compose(situation, &mut self.levels, now)
    }

    /// Sends no symbols of a block from now on: a page of it cannot be read.
    pub(super) fn forbid(&mut self, block: BlockIndex) {
        self.levels.forbid(block);
    }

    /// Sends symbols of a block again.
    pub(super) fn allow(&mut self, block: BlockIndex) {
        self.levels.allow(block);
    }

    pub(super) fn layout(&self) -> BlockLayout {
        self.levels.layout()
    }

    /// Returns promised symbols, the first of every block before the second of any.
    pub(super) fn poll_promised(&mut self, budget: u32) -> Option<Vec<Symbol>> {
        let symbols = self.levels.poll(budget);
        if symbols.is_empty() {
            return None;
        }
        self.on_sent();
        if self.is_resting && !self.levels.is_owing() {
            self.beacons.on_urgent();
        }
        Some(symbols)
    }

    /// Returns symbols that no promise covers: deferred needs first, then more symbols of every
    /// block in turn. `None` until reports had time to arrive.
    pub(super) fn poll_fill(
        &mut self,
        budget: u32,
        situation: Situation,
        now: Instant,
    ) -> Option<Vec<Symbol>> {
        if self.fill_at(situation).is_none_or(|at| now < at) {
            return None;
        }
        if self.levels.has_deferred() {
            self.levels.promise_deferred(budget);
        } else {
            for block in self.fill.poll(budget, now) {
                self.levels.promise_one(block);
            }
        }
        let symbols = self.levels.poll(budget);
        self.on_sent();
        (!symbols.is_empty()).then_some(symbols)
    }

    /// Whether everything promised is sent and fill symbols may go out.
    pub(super) fn is_idle(&self, situation: Situation, now: Instant) -> bool {
        !self.levels.has_deferred() && self.fill_at(situation).is_some_and(|at| at <= now)
    }

    /// Earliest time at which one of the `poll_` functions has something.
    pub(super) fn poll_at(&self, situation: Situation) -> Option<Instant> {
        let owed = self.levels.is_owing().then_some(self.changed_at);
        [owed, self.beacon_at(situation), self.fill_at(situation)].into_iter().flatten().min()
    }

    /// Redundancy at present: symbols that every block of a window gets without reports.
    pub(super) fn redundancy(&self) -> u32 {
        self.redundancy.symbols()
    }

    /// The number of the next beacon.
    pub(super) fn next_beacon(&self) -> u32 {
        self.beacons.next_number()
    }

    pub(super) fn symbols_sent(&self) -> u64 {
        self.levels.symbols_sent()
    }

    fn learn(&mut self, members: usize, now: Instant) {
        if members > 0 {
            let reporters = self.beacons.reporters(members);
            self.redundancy.learn(&mut self.levels, reporters, now);
        }
    }

    fn beacon_at(&self, situation: Situation) -> Option<Instant> {
        let calm_at = situation.stream_done.then(|| self.calm_at(situation));
        self.beacons.due_at(situation, self.levels.is_owing(), calm_at)
    }

    fn fill_at(&self, situation: Situation) -> Option<Instant> {
        if !situation.stream_done || self.levels.is_owing() {
            return None;
        }
        if self.levels.has_deferred() {
            return Some(self.changed_at);
        }
        // Among many members, one is practically certain to lack something.
        let reporters = self.beacons.reporters(situation.members);
        let is_sure = !reporters.are_few() && self.redundancy.symbols() > 0;
        let from = if is_sure { self.changed_at } else { self.calm_at(situation) };
        Some(self.fill.due_at()?.max(from))
    }

    fn calm_at(&self, situation: Situation) -> Instant {
        self.changed_at + patience(situation.members, situation.stream_done)
    }
}

#[cfg(test)]
mod tests;

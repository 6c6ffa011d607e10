//! Repair channel of one cast: decides which symbols are promised and how many members report.
//! docs/PROTOCOL.md, "Repair".
//!
//! | module | decides |
//! |---|---|
//! | [`levels`] | which promised symbol goes out next |
//! | [`redundancy`] | how many symbols the blocks of a window get without reports |
//! | [`beacons`] | when a beacon goes out, what it states, and how many members may report |
//! | [`reporters`] | over which time members spread their reports, and when all have arrived |
//! | [`outliers`] | whose needs are served last |
//! | [`fill`] | which blocks get symbols when everything promised is sent |

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

use super::principal::Principal;

use beacons::Beacons;
use fill::Fill;
use levels::Levels;
use outliers::Outliers;
use redundancy::Redundancy;
use reporters::{report_timeout, spread};

/// Repair symbol to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Block that the symbol belongs to.
    pub block: BlockIndex,
    /// Number of the symbol in its block.
    pub number: RepairIndex,
    /// Symbols promised of the block in all; 255 stands for 255 or more.
    pub promised: u8,
}

/// Author of a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Author {
    /// Whose report it is, if that is known.
    pub(super) principal: Option<Principal>,
    /// Symbols that may be promised because of it; `u64::MAX` if there are no others whom these
    /// would hold up.
    pub(super) ration: u64,
}

/// Symbols that a report asked for beyond what was promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Served {
    /// Those that are promised now.
    pub(super) promised: u64,
    /// Those that are deferred, because they exceed the ration.
    pub(super) deferred: u64,
}

/// State of the cast outside its repair channel that repair depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// Page that the stream sends next.
    pub(super) position: PageIndex,
    /// Whether the stream has sent every window that was asked for.
    pub(super) stream_done: bool,
    /// Number of members that want the whole file and receive datagrams.
    pub(super) members: usize,
}

/// Repair channel of one cast.
#[derive(Debug)]
pub(super) struct Repair {
    levels: Levels,
    redundancy: Redundancy,
    beacons: Beacons,
    outliers: Outliers,
    fill: Fill,
    /// Whether the stream rests: it has sent every window that was asked for.
    is_resting: bool,
    /// Time of the last change that members may answer with reports, such as a join or a promise.
    changed_at: Instant,
}

impl Repair {
    /// Creates the channel of a new cast, without promises. `datagram_len` is the length of a full
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

    /// Sets whether the cast opens, and how long a full datagram takes at its rate. Both bound the
    /// time between beacons.
    pub(super) fn set_pace(&mut self, is_opening: bool, datagram: Duration) {
        self.beacons.set_pace(is_opening, datagram);
    }

    /// Handles a sign of life of a member: a join, a leave, a want, or a report that asks for
    /// something.
    pub(super) fn on_activity(&mut self) {
        self.fill.on_activity();
    }

    /// Handles a change that members may answer with reports.
    pub(super) fn on_change(&mut self, now: Instant) {
        self.changed_at = now;
    }

    /// Drops all promises, because no member listens to the channel any more.
    pub(super) fn drop_promises(&mut self) {
        self.levels.drop_promises();
    }

    /// Takes over the needs in a report of one of `members` members. What goes beyond the ration of
    /// its author is deferred.
    pub(super) fn handle_report(
        &mut self,
        report: &Report,
        members: usize,
        author: Author,
        now: Instant,
    ) -> Served {
        let mut served = Served::default();
        if report.needs.is_empty() && report.bulk.is_empty() {
            return served;
        }
        self.beacons.count_report(members);
        let reporters = self.beacons.reporters(members);
        let redundancy = self.redundancy.symbols();
        let is_outlier = self.outliers.is_outlier(report, &self.levels, redundancy, reporters, now);
        if !is_outlier {
            self.redundancy.handle_needs(&report.needs, self.levels.layout(), author);
        }
        let mut raised = false;
        for &(block, need) in &report.needs {
            let (block, need) = (BlockIndex(block), u32::from(need));
            let promised = self.levels.promised(block).unwrap_or(need);
            let more = u64::from(need.saturating_sub(promised));
            let (is_raised, count) = if is_outlier {
                (self.levels.defer(block, need), None)
            } else if served.promised + more <= author.ration {
                (self.levels.promise_need(block, need), Some(&mut served.promised))
            } else {
                (self.levels.defer(block, need), Some(&mut served.deferred))
            };
            raised |= is_raised;
            if let Some(count) = count.filter(|_| is_raised) {
                *count += more;
            }
        }
        if raised {
            self.on_change(now);
        }
        served
    }

    /// Handles the end of a window in the stream, and promises it the redundancy.
    pub(super) fn on_window(&mut self, window: WindowIndex, members: usize, now: Instant) {
        self.learn(members, now);
        self.redundancy.watch(window, &mut self.levels, now + 2 * spread(members, false));
        self.on_sent();
        self.on_change(now);
    }

    /// Sets whether the stream rests. When it comes to rest or runs again, a beacon is urgent.
    pub(super) fn set_resting(&mut self, is_resting: bool) {
        if std::mem::replace(&mut self.is_resting, is_resting) == is_resting {
            return;
        }
        self.beacons.make_urgent();
        if is_resting {
            let rounds = self.redundancy.symbols().isqrt();
            let windows: Vec<_> = self.redundancy.awaiting_reports().collect();
            self.fill.prioritise(windows.into_iter(), rounds, self.levels.layout());
        }
    }

    /// Records that pages or symbols were sent.
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

    /// Excludes a block from repair, because one of its pages cannot be read.
    pub(super) fn forbid(&mut self, block: BlockIndex) {
        self.levels.forbid(block);
    }

    /// Allows symbols of a block again.
    pub(super) fn allow(&mut self, block: BlockIndex) {
        self.levels.allow(block);
    }

    /// Windows and blocks of the file.
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
        if self.is_resting && !self.levels.has_unsent() {
            self.beacons.make_urgent();
        }
        Some(symbols)
    }

    /// Returns symbols that are sent when no promise is left: those of deferred needs first, then
    /// fill symbols of every block in turn. `None` until reports had time to arrive.
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

    /// Whether fill symbols may go out, because nothing promised or deferred is left.
    pub(super) fn is_idle(&self, situation: Situation, now: Instant) -> bool {
        !self.levels.has_deferred() && self.fill_at(situation).is_some_and(|at| at <= now)
    }

    /// Returns the earliest time at which one of the `poll_` functions returns something. It may
    /// lie in the past.
    pub(super) fn poll_at(&self, situation: Situation) -> Option<Instant> {
        let promised = self.levels.has_unsent().then_some(self.changed_at);
        [promised, self.beacon_at(situation), self.fill_at(situation)].into_iter().flatten().min()
    }

    /// Present redundancy: symbols that every block gets without a report.
    pub(super) fn redundancy(&self) -> u32 {
        self.redundancy.symbols()
    }

    /// Number of the next beacon.
    pub(super) fn next_beacon(&self) -> u32 {
        self.beacons.next_number()
    }

    /// Number of symbols sent.
    pub(super) fn symbols_sent(&self) -> u64 {
        self.levels.symbols_sent()
    }

    /// Returns the windows whose reports may still arrive.
    #[cfg(test)]
    pub(super) fn awaited_windows(&self) -> Vec<WindowIndex> {
        self.redundancy.awaiting_reports().collect()
    }

    /// Adapts the redundancy to the needs reported so far.
    fn learn(&mut self, members: usize, now: Instant) {
        if members > 0 {
            let reporters = self.beacons.reporters(members);
            self.redundancy.learn(&mut self.levels, reporters, now);
        }
    }

    /// Returns when the next beacon is due.
    fn beacon_at(&self, situation: Situation) -> Option<Instant> {
        let reports_due_at = situation.stream_done.then(|| self.reports_due_at(situation));
        self.beacons.due_at(situation, self.levels.has_unsent(), reports_due_at)
    }

    /// Returns when deferred needs or fill symbols may be sent.
    fn fill_at(&self, situation: Situation) -> Option<Instant> {
        if !situation.stream_done || self.levels.has_unsent() {
            return None;
        }
        if self.levels.has_deferred() {
            return Some(self.changed_at);
        }
        // With losses among many members, one of them is practically certain to lack something.
        let reporters = self.beacons.reporters(situation.members);
        let is_need_certain = !reporters.are_few() && self.redundancy.symbols() > 0;
        let from = if is_need_certain { self.changed_at } else { self.reports_due_at(situation) };
        Some(self.fill.due_at()?.max(from))
    }

    /// Returns when all reports that answer the last change should have arrived.
    fn reports_due_at(&self, situation: Situation) -> Instant {
        self.changed_at + report_timeout(situation.members, situation.stream_done)
    }
}

#[cfg(test)]
mod tests;

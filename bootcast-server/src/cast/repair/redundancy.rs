//! Redundancy: symbols that every block gets without reports.

use std::collections::VecDeque;
use std::time::Instant;

use bootcast_proto::WindowIndex;

use super::levels::Levels;
use super::reporters::Reporters;

/// Upper bound of the redundancy: half as many symbols as a block has pages.
const MOST: u32 = 64;

/// Windows with fewer blocks say too little about needs, unless the file has no larger ones.
const TELLING_BLOCKS: usize = 32;

/// Bounds on the share of a window's blocks, in thousandths, that need more than the redundancy.
/// Above `most` the redundancy rises; below `least` it falls.
#[derive(Clone, Copy, Debug)]
struct Aim {
    most: u64,
    least: u64,
}

/// Bounds for few members: all of them report, and soon, so redundancy only covers what nearly
/// every block needs.
const OF_FEW: Aim = Aim { most: 900, least: 500 };

/// Bounds for many members: reports take long and must stay few, so few blocks are left to them.
const OF_MANY: Aim = Aim { most: 160, least: 20 };

/// A window whose reports may still arrive.
#[derive(Debug)]
struct Watched {
    window: WindowIndex,
    /// Symbols that each block had got when the stream passed the window.
    base: Vec<u32>,
    /// Redundancy that its blocks got at first.
    given: u32,
    /// Largest permit since the stream passed the window, in 1/65536. Needs reported under it stay
    /// valid when the permit falls.
    permit: u64,
    reports_due_at: Instant,
}

/// Learns the redundancy from reported needs. Starts at 0: a network without loss pays nothing.
#[derive(Debug, Default)]
pub(super) struct Redundancy {
    symbols: u32,
    /// Windows that are watched, in the order of the stream.
    watched: VecDeque<Watched>,
}

impl Redundancy {
    /// Redundancy at present, in symbols per block.
    pub(super) fn symbols(&self) -> u32 {
        self.symbols
    }

    /// Promises a window that the stream has passed its redundancy, and watches its needs until
    /// `reports_due_at`.
    pub(super) fn begin(
        &mut self,
        window: WindowIndex,
        levels: &mut Levels,
        reports_due_at: Instant,
    ) {
        self.watched.retain(|watched| watched.window != window);
        let base: Vec<u32> = levels.sent_in(window).collect();
        levels.promise_above(window, &base, self.symbols);
        let given = self.symbols;
        self.watched.push_back(Watched { window, base, given, permit: 0, reports_due_at });
    }

    /// Windows whose needs are not all known yet.
    pub(super) fn awaiting_reports(&self) -> impl Iterator<Item = WindowIndex> {
        self.watched.iter().map(|watched| watched.window)
    }

    /// Learns from the windows whose needs are known by now. A raised redundancy is promised to the
    /// watched windows too.
    pub(super) fn learn(&mut self, levels: &mut Levels, reporters: Reporters, now: Instant) {
        let before = self.symbols;
        for watched in &mut self.watched {
            watched.permit = watched.permit.max(reporters.permit);
        }
        let telling = TELLING_BLOCKS.min(levels.blocks_of_a_window());
        for watched in self.watched.iter().filter(|watched| watched.base.len() >= telling) {
            self.symbols = self.symbols.max(watched.needed(levels, reporters).min(MOST));
        }
        if self.symbols > before {
            for watched in &self.watched {
                levels.promise_above(watched.window, &watched.base, self.symbols);
            }
        }
        while self.watched.front().is_some_and(|it| it.reports_due_at <= now)
            && let Some(watched) = self.watched.pop_front()
        {
            if watched.given == self.symbols && watched.base.len() >= telling {
                self.symbols -= watched.spared(levels, reporters);
            }
        }
    }
}

impl Watched {
    /// Redundancy that would cover all blocks of this window, except the share left to reports.
    fn needed(&self, levels: &Levels, reporters: Reporters) -> u32 {
        let mut needs: Vec<u32> = self.needs(levels).collect();
        needs.sort_unstable();
        let left = self.seen_by(reporters).share_of(aim(reporters).most, needs.len());
        needs.iter().rev().nth(left).copied().unwrap_or(0)
    }

    /// How much the redundancy may fall: by one if hardly any block needed more, by a quarter if
    /// none did, because then the excess is unknown.
    fn spared(&self, levels: &Levels, reporters: Reporters) -> u32 {
        let short = self.needs(levels).filter(|&need| need > self.given).count();
        if short == 0 {
            (self.given / 4).max(self.given.min(1))
        } else if short <= self.seen_by(reporters).share_of(aim(reporters).least, self.base.len()) {
            self.given.min(1)
        } else {
            0
        }
    }

    /// Members whose reports show the needs of this window.
    fn seen_by(&self, reporters: Reporters) -> Reporters {
        Reporters { permit: self.permit, ..reporters }
    }

    /// Needs of each block in excess of `base`; 0 for blocks nobody reported.
    fn needs(&self, levels: &Levels) -> impl Iterator<Item = u32> {
        levels
            .asked_in(self.window)
            .zip(&self.base)
            .map(|(asked, base)| asked.saturating_sub(*base))
    }
}

fn aim(reporters: Reporters) -> Aim {
    if reporters.are_few() { OF_FEW } else { OF_MANY }
}

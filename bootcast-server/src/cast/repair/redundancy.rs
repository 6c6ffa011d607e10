//! How many symbols a window gets before anybody asks.

use std::collections::VecDeque;
use std::time::Instant;

use bootcast_proto::WindowIndex;

use super::levels::Levels;
use super::reporters::Reporters;

/// More is never sent unasked: half of what the pages themselves take.
const MOST: u32 = 64;

/// Windows with fewer blocks tell too little, unless there is no other.
const TELLING_BLOCKS: usize = 32;

/// Shares of a window's blocks, in thousandths, that may need more than they got unasked: with more of them it becomes more, with fewer
/// it becomes less.
#[derive(Clone, Copy, Debug)]
struct Aim {
    most: u64,
    least: u64,
}

/// Few members tell all of their needs, and soon: what is sent unasked is what nearly every block needs anyway.
const OF_FEW: Aim = Aim { most: 900, least: 500 };

/// The reports of many take long, and are not to become many: few blocks are left to them.
const OF_MANY: Aim = Aim { most: 160, least: 20 };

/// A window whose reports are still under way.
#[derive(Debug)]
struct Watched {
    window: WindowIndex,
    /// What each of its blocks had got when the stream had passed it.
    base: Vec<u32>,
    /// Symbols that its blocks got unasked, at first.
    given: u32,
    /// The largest share of the members that could report since then, in 1/65536: what they asked for stays asked for when fewer may.
    permit: u64,
    settled_at: Instant,
}

/// Follows the needs that are reported. Begins with none: the first window of a clean network costs nothing.
#[derive(Debug, Default)]
pub(super) struct Redundancy {
    symbols: u32,
    /// In the order of the stream.
    watched: VecDeque<Watched>,
}

impl Redundancy {
    /// For each block of a window.
    pub(super) fn symbols(&self) -> u32 {
        self.symbols
    }

    /// The stream has passed this window: promises it what windows get, and watches for what it needs.
    pub(super) fn begin(&mut self, window: WindowIndex, levels: &mut Levels, settled_at: Instant) {
        self.watched.retain(|watched| watched.window != window);
        let base: Vec<u32> = levels.sent_in(window).collect();
        levels.promise_above(window, &base, self.symbols);
        let given = self.symbols;
        self.watched.push_back(Watched { window, base, given, permit: 0, settled_at });
    }

    /// Windows whose needs are not all known yet.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = WindowIndex> {
        self.watched.iter().map(|watched| watched.window)
    }

    /// Follows the needs that are known by now. What it becomes is promised to the windows under watch as well.
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
        while self.watched.front().is_some_and(|it| it.settled_at <= now)
            && let Some(watched) = self.watched.pop_front()
        {
            if watched.given == self.symbols && watched.base.len() >= telling {
                self.symbols -= watched.spared(levels, reporters);
            }
        }
    }
}

impl Watched {
    /// What all of its blocks need but those that are left to reports.
    fn needed(&self, levels: &Levels, reporters: Reporters) -> u32 {
        let mut needs: Vec<u32> = self.needs(levels).collect();
        needs.sort_unstable();
        let left = self.seen_by(reporters).share_of(aim(reporters).most, needs.len());
        needs.iter().rev().nth(left).copied().unwrap_or(0)
    }

    /// How many fewer the next windows are to get unasked: one where hardly any of its blocks needed more than they got. Where none
    /// did, nobody knows how much too many those were: a quarter of them.
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

    /// Those through whom its needs are seen.
    fn seen_by(&self, reporters: Reporters) -> Reporters {
        Reporters { permit: self.permit, ..reporters }
    }

    /// What was asked for each of its blocks since the stream passed it; 0 where nobody asked.
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

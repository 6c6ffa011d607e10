//! Redundancy: the symbols that every block gets without a report.

use std::collections::VecDeque;
use std::time::Instant;

use bootcast_proto::{BlockLayout, Share, WindowIndex};

use super::Author;
use super::levels::Levels;
use super::reporters::Reporters;
use crate::cast::principal::Principal;

/// Upper bound of the redundancy, in symbols per block: half the pages of a block.
const MAX_SYMBOLS: u32 = 64;

/// Fewest blocks of a window that shows needs well enough to change the redundancy. If the file has
/// no larger windows, its full windows count.
const MIN_WINDOW_BLOCKS: usize = 32;

/// Target range for the share of a window's blocks that need more symbols than the redundancy, in
/// thousandths.
#[derive(Clone, Copy, Debug)]
struct TargetRange {
    /// Share above which the redundancy rises.
    max: u64,
    /// Share at or below which it falls.
    min: u64,
}

/// Target for few members. All of them report, and soon, so redundancy only covers what nearly
/// every block needs.
const FEW_MEMBERS_TARGET: TargetRange = TargetRange { max: 900, min: 500 };

/// Target for many members. Reports take long and must stay few, so few blocks are left to them.
const MANY_MEMBERS_TARGET: TargetRange = TargetRange { max: 160, min: 20 };

/// Window whose reports may still arrive.
#[derive(Debug)]
struct Watched {
    window: WindowIndex,
    /// Symbols that each block had got when the stream passed the window.
    base: Vec<u32>,
    /// Redundancy when the stream passed the window.
    initial: u32,
    /// Highest permit since the stream passed the window. Needs reported under it stay known when
    /// the permit falls.
    permit: Share,
    /// When all reports of its needs should have arrived.
    reports_due_at: Instant,
    /// What principals said of its needs.
    witnesses: Witnesses,
}

/// Largest needs that two principals reported. A single one that lies must not make the server send
/// more for all.
#[derive(Clone, Copy, Debug, Default)]
struct Witnesses {
    largest: Option<(Principal, u32)>,
    /// Largest need of the others.
    second: u32,
}

impl Witnesses {
    fn add(&mut self, principal: Principal, need: u32) {
        match &mut self.largest {
            Some((largest, most)) if *largest == principal => *most = need.max(*most),
            Some((_, most)) if need <= *most => self.second = need.max(self.second),
            largest => {
                let before = largest.replace((principal, need));
                self.second = before.map_or(0, |(_, most)| most.max(self.second));
            }
        }
    }
}

/// Learns the redundancy from reported needs. It starts at 0, so a network without loss pays
/// nothing.
#[derive(Debug, Default)]
pub(super) struct Redundancy {
    /// Redundancy at present, in symbols per block.
    symbols: u32,
    /// Watched windows, in the order of the stream.
    watched: VecDeque<Watched>,
    /// Whether several principals report, so that needs must be confirmed by a second one.
    needs_confirmation: bool,
}

impl Redundancy {
    /// Redundancy at present, in symbols per block.
    pub(super) fn symbols(&self) -> u32 {
        self.symbols
    }

    /// Promises the redundancy to a window that the stream has passed, and watches its needs until
    /// `reports_due_at`.
    pub(super) fn watch(
        &mut self,
        window: WindowIndex,
        levels: &mut Levels,
        reports_due_at: Instant,
    ) {
        self.watched.retain(|watched| watched.window != window);
        let base: Vec<u32> = levels.sent_in(window).collect();
        levels.promise_above(window, &base, self.symbols);
        let initial = self.symbols;
        debug_assert!(
            base.len() == levels.layout().blocks_of(window).len() && !base.is_empty(),
            "a window of {} blocks is watched",
            base.len()
        );
        self.watched.push_back(Watched {
            window,
            base,
            initial,
            permit: Share::NONE,
            reports_due_at,
            witnesses: Witnesses::default(),
        });
    }

    /// Records who reports which needs.
    pub(super) fn handle_needs(
        &mut self,
        needs: &[(u32, u8)],
        layout: BlockLayout,
        Author { principal, ration }: Author,
    ) {
        // The ration of a principal that is alone has no end.
        self.needs_confirmation = principal.is_some() && ration < u64::MAX;
        let Some(principal) = principal else { return };
        for watched in &mut self.watched {
            let blocks = layout.blocks_of(watched.window);
            for &(block, need) in needs.iter().filter(|(block, _)| blocks.contains(block)) {
                let base = watched.base[(block - blocks.start) as usize];
                watched.witnesses.add(principal, u32::from(need).saturating_sub(base));
            }
        }
    }

    /// Returns the windows whose reports may still arrive.
    pub(super) fn awaiting_reports(&self) -> impl Iterator<Item = WindowIndex> {
        self.watched.iter().map(|watched| watched.window)
    }

    /// Raises the redundancy if watched windows need more, and promises it to these windows too.
    /// Lowers it if windows whose reports are due needed less, and stops watching these.
    pub(super) fn learn(&mut self, levels: &mut Levels, reporters: Reporters, now: Instant) {
        let before = self.symbols;
        for watched in &mut self.watched {
            watched.permit = watched.permit.max(reporters.permit);
        }
        let min_blocks = MIN_WINDOW_BLOCKS.min(levels.blocks_of_a_window());
        for watched in self.watched.iter().filter(|watched| watched.base.len() >= min_blocks) {
            let confirmed =
                if self.needs_confirmation { watched.witnesses.second } else { MAX_SYMBOLS };
            let needed = watched.needed(levels, reporters).min(confirmed);
            self.symbols = self.symbols.max(needed.min(MAX_SYMBOLS));
        }
        if self.symbols > before {
            for watched in &self.watched {
                levels.promise_above(watched.window, &watched.base, self.symbols);
            }
        }
        while self.watched.front().is_some_and(|it| it.reports_due_at <= now)
            && let Some(watched) = self.watched.pop_front()
        {
            if watched.initial == self.symbols && watched.base.len() >= min_blocks {
                self.symbols -= watched.surplus(levels, reporters);
            }
        }
        debug_assert!(self.symbols <= MAX_SYMBOLS, "a redundancy of {} symbols", self.symbols);
    }
}

impl Watched {
    /// Returns the redundancy that would cover all blocks of this window, except the share left to
    /// reports.
    fn needed(&self, levels: &Levels, reporters: Reporters) -> u32 {
        let mut needs: Vec<u32> = self.needs(levels).collect();
        needs.sort_unstable();
        let uncovered = self.reported_by(reporters).share_of(target(reporters).max, needs.len());
        needs.iter().rev().nth(uncovered).copied().unwrap_or(0)
    }

    /// Returns by how much the redundancy may fall: by one symbol if few blocks needed more than
    /// it, and by a quarter if none did, because then the surplus is unknown.
    fn surplus(&self, levels: &Levels, reporters: Reporters) -> u32 {
        let short = self.needs(levels).filter(|&need| need > self.initial).count();
        let min = target(reporters).min;
        if short == 0 {
            (self.initial / 4).max(self.initial.min(1))
        } else if short <= self.reported_by(reporters).share_of(min, self.base.len()) {
            self.initial.min(1)
        } else {
            0
        }
    }

    /// Returns the members whose reports show the needs of this window.
    fn reported_by(&self, reporters: Reporters) -> Reporters {
        Reporters { permit: self.permit, ..reporters }
    }

    /// Returns the need of each block in excess of `base`; 0 for blocks that no member reported.
    fn needs(&self, levels: &Levels) -> impl Iterator<Item = u32> {
        levels.needs_in(self.window).zip(&self.base).map(|(need, base)| need.saturating_sub(*base))
    }
}

fn target(reporters: Reporters) -> TargetRange {
    if reporters.are_few() { FEW_MEMBERS_TARGET } else { MANY_MEMBERS_TARGET }
}

//! Fill symbols, which are sent without a promise while members remain and nothing else is to be
//! sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockIndex, BlockLayout, WindowIndex};

/// Shortest time between the starts of two rounds. Without it, the blocks of a small file would get
/// thousands of symbols before a leave arrives.
const ROUND_INTERVAL: Duration = Duration::from_millis(10);

/// Number of rounds without a sign of life after which no member seems to listen, and fill stops.
/// 32 symbols replace a quarter of a block's pages. A member that lacks more reports windows, and
/// each such report restarts the count.
const MAX_ROUNDS: u32 = 32;

/// Cycles through all blocks, after a few rounds over the windows whose reports are awaited.
#[derive(Debug)]
pub(super) struct Fill {
    /// Number of blocks in the file.
    blocks: u32,
    /// Block that gets the next symbol.
    next: u32,
    /// Start of the next round, or of the present one.
    round_at: Instant,
    /// Complete rounds since the last sign of life of a member.
    rounds: u32,
    /// Blocks that get symbols before the next round.
    priority: VecDeque<BlockIndex>,
}

impl Fill {
    pub(super) fn new(blocks: u32, now: Instant) -> Self {
        Self { blocks, next: 0, round_at: now, rounds: 0, priority: VecDeque::new() }
    }

    /// Handles a sign of life of a member, so that fill goes on.
    pub(super) fn on_activity(&mut self) {
        self.rounds = 0;
    }

    /// Gives these windows `rounds` rounds before the next round over all blocks.
    pub(super) fn prioritise(
        &mut self,
        windows: impl Iterator<Item = WindowIndex> + Clone,
        rounds: u32,
        layout: BlockLayout,
    ) {
        let round = windows.flat_map(|window| layout.blocks_of(window));
        let all = (0..rounds).flat_map(|_| round.clone());
        self.priority = all.map(BlockIndex).collect();
    }

    /// Returns when the next symbol is due; `None` while no member seems to listen.
    pub(super) fn due_at(&self) -> Option<Instant> {
        (self.rounds < MAX_ROUNDS && self.blocks > 0).then_some(self.round_at)
    }

    /// Returns the blocks that get a symbol now, at most `budget` and within one round.
    pub(super) fn poll(&mut self, budget: u32, now: Instant) -> Vec<BlockIndex> {
        if !self.priority.is_empty() {
            let count = self.priority.len().min(budget as usize);
            return self.priority.drain(..count).collect();
        }
        let start = self.next;
        let end = start.saturating_add(budget).min(self.blocks);
        if start == 0 {
            self.round_at = now;
        }
        self.next = end;
        if end == self.blocks {
            self.next = 0;
            self.rounds += 1;
            self.round_at += ROUND_INTERVAL;
        }
        debug_assert!(self.next < self.blocks.max(1), "fill is behind the last block");
        (start..end).map(BlockIndex).collect()
    }
}

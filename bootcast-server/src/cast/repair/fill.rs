//! Fill symbols: sent without a request while members remain and nothing else is to be sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockIndex, BlockLayout, WindowIndex};

/// Shortest time from the start of a round to the next. A file of few blocks would otherwise be
/// sent thousands of times before a leave arrives.
const ROUND_INTERVAL: Duration = Duration::from_millis(10);

/// After this many rounds without a request, nobody seems to listen and fill stops. A member that
/// lacks more than a quarter of a window requests pages, and every request restarts the rounds.
const QUIET_ROUNDS: u32 = 32;

/// Cycles through all blocks, after a few rounds over the windows whose needs are not known yet.
#[derive(Debug)]
pub(super) struct Fill {
    blocks: u32,
    next: u32,
    /// Start of the next round, or of the present one.
    round_at: Instant,
    /// Rounds since the last request.
    rounds: u32,
    /// Blocks that get symbols before the next round.
    first: VecDeque<BlockIndex>,
}

impl Fill {
    pub(super) fn new(blocks: u32, now: Instant) -> Self {
        Self { blocks, next: 0, round_at: now, rounds: 0, first: VecDeque::new() }
    }

    pub(super) fn on_heard(&mut self) {
        self.rounds = 0;
    }

    /// Puts `rounds` over these windows in front: the stream came to rest.
    pub(super) fn begin_with(
        &mut self,
        windows: impl Iterator<Item = WindowIndex> + Clone,
        rounds: u32,
        layout: BlockLayout,
    ) {
        let round = windows.flat_map(|window| layout.blocks_of(window));
        let all = (0..rounds).flat_map(|_| round.clone());
        self.first = all.map(BlockIndex).collect();
    }

    /// When the next block is due; `None` while nobody seems to listen.
    pub(super) fn due_at(&self) -> Option<Instant> {
        (self.rounds < QUIET_ROUNDS && self.blocks > 0).then_some(self.round_at)
    }

    /// Returns the blocks that get a symbol now: at most `budget`, within one round.
    pub(super) fn poll(&mut self, budget: u32, now: Instant) -> Vec<BlockIndex> {
        if !self.first.is_empty() {
            let count = self.first.len().min(budget as usize);
            return self.first.drain(..count).collect();
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
        (start..end).map(BlockIndex).collect()
    }
}

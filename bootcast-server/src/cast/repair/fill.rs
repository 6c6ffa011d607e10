//! Symbols that nobody asked for, when members remain and nothing else is to be sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bootcast_proto::{BlockIndex, BlockLayout, WindowIndex};

/// A round begins no sooner than this after the one before: a file of few blocks would otherwise be
/// sent thousands of times before a leave gets through.
const ROUND_INTERVAL: Duration = Duration::from_millis(10);

/// After so many rounds in which nothing was heard nobody seems to listen: who lacks more than a quarter of a window
/// asks for pages, and who asks begins the rounds anew.
const QUIET_ROUNDS: u32 = 32;

/// Goes round over all blocks; before that, over those of the windows whose needs are not known yet.
#[derive(Debug)]
pub(super) struct Fill {
    blocks: u32,
    next: u32,
    /// The next round begins then, or began.
    round_at: Instant,
    /// Rounds since anything was heard.
    rounds: u32,
    /// Goes before the next round.
    first: VecDeque<BlockIndex>,
}

impl Fill {
    pub(super) fn new(blocks: u32, now: Instant) -> Self {
        Self { blocks, next: 0, round_at: now, rounds: 0, first: VecDeque::new() }
    }

    pub(super) fn on_heard(&mut self) {
        self.rounds = 0;
    }

    /// The stream rests: `rounds` over these windows go first.
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

    /// From when on there is a block; `None` while nobody seems to listen.
    pub(super) fn due_at(&self) -> Option<Instant> {
        (self.rounds < QUIET_ROUNDS && self.blocks > 0).then_some(self.round_at)
    }

    /// Blocks that get a symbol now: at most `budget`, within one round.
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

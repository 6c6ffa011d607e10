//! Levels: how many symbols each block got and is promised.

use std::collections::BTreeSet;

use bootcast_proto::fec::REPAIRS;
use bootcast_proto::wire::{Level, symbol_number};
use bootcast_proto::{BlockIndex, BlockLayout, WindowIndex};

use super::Symbol;

/// Most symbols of a block that are promised and not sent: the next one would repeat the first.
const OWED_MAX: u32 = 128;
const _: () = assert!(OWED_MAX as usize == REPAIRS);

/// Symbols of one block since the cast started.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u32,
    /// Symbols promised in all. Never below `sent`.
    promised: u32,
    /// Highest need of members that are not outliers.
    asked: u32,
    /// Highest need of outliers, served after all others.
    deferred: u32,
}

#[derive(Debug)]
pub(super) struct Levels {
    layout: BlockLayout,
    /// Counts of every block.
    counts: Vec<Count>,
    /// Blocks with unsent promises, ordered by the symbols each got.
    owed: BTreeSet<(u32, BlockIndex)>,
    /// Blocks with deferred needs above their promise, ordered by the symbols each got when it was
    /// queued.
    deferred: BTreeSet<(u32, BlockIndex)>,
    /// Windows whose levels changed since a beacon told them.
    news: BTreeSet<WindowIndex>,
    /// Blocks that get no symbols, because a page of theirs cannot be read.
    forbidden: BTreeSet<BlockIndex>,
    symbols_sent: u64,
}

impl Levels {
    pub(super) fn new(layout: BlockLayout) -> Self {
        Self {
            layout,
            counts: vec![Count::default(); layout.blocks() as usize],
            owed: BTreeSet::new(),
            deferred: BTreeSet::new(),
            news: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            symbols_sent: 0,
        }
    }

    /// Promises the block `level` symbols in all, at most [`OWED_MAX`] beyond those sent. Returns
    /// `false` if it already had as many, or does not exist.
    pub(super) fn promise(&mut self, block: BlockIndex, level: u32) -> bool {
        let Some(count) = self.counts.get_mut(block.0 as usize) else { return false };
        if self.forbidden.contains(&block) {
            return false;
        }
        let level = level.min(count.sent.saturating_add(OWED_MAX));
        if level <= count.promised {
            return false;
        }
        count.promised = level;
        self.owed.insert((count.sent, block));
        self.news.insert(self.layout.window_of_block(block));
        true
    }

    /// Promises one symbol more than the block got.
    pub(super) fn promise_one(&mut self, block: BlockIndex) {
        if let Some(count) = self.counts.get(block.0 as usize) {
            self.promise(block, count.sent.saturating_add(1));
        }
    }

    /// Raises the promise of each block in a window to `more` above its entry in `base`.
    pub(super) fn promise_above(&mut self, window: WindowIndex, base: &[u32], more: u32) {
        for (block, base) in self.layout.blocks_of(window).zip(base) {
            self.promise(BlockIndex(block), base.saturating_add(more));
        }
        self.news.insert(window);
    }

    /// Promises what a member needs. Returns whether it was not promised before.
    pub(super) fn ask(&mut self, block: BlockIndex, need: u32) -> bool {
        if self.forbidden.contains(&block) {
            return false;
        }
        if let Some(count) = self.counts.get_mut(block.0 as usize) {
            count.asked = count.asked.max(need);
        }
        self.promise(block, need)
    }

    /// Gives a block no symbols from now on, and takes back what was promised. Members may believe
    /// in the promises still: they are told of the unreadable page in another way.
    pub(super) fn forbid(&mut self, block: BlockIndex) {
        let Some(count) = self.counts.get_mut(block.0 as usize) else { return };
        if !self.forbidden.insert(block) {
            return;
        }
        self.owed.remove(&(count.sent, block));
        self.deferred.retain(|(_, deferred)| *deferred != block);
        (count.promised, count.asked, count.deferred) = (count.sent, 0, 0);
        self.news.insert(self.layout.window_of_block(block));
    }

    /// Gives a block symbols again.
    pub(super) fn allow(&mut self, block: BlockIndex) {
        self.forbidden.remove(&block);
    }

    /// Defers what an outlier needs. Returns whether the need is higher than those before.
    pub(super) fn defer(&mut self, block: BlockIndex, need: u32) -> bool {
        let Some(count) = self.counts.get_mut(block.0 as usize) else { return false };
        if need <= count.deferred.max(count.promised) || self.forbidden.contains(&block) {
            return false;
        }
        if count.deferred <= count.promised {
            self.deferred.insert((count.promised, block));
        }
        count.deferred = need;
        true
    }

    /// Promises one symbol to each of up to `budget` blocks with deferred needs, those with the
    /// fewest symbols first.
    pub(super) fn promise_deferred(&mut self, budget: u32) {
        for _ in 0..budget {
            let Some((_, block)) = self.deferred.pop_first() else { return };
            let Count { promised, deferred, .. } = self.counts[block.0 as usize];
            if promised < deferred {
                self.promise_one(block);
            }
            if promised + 1 < deferred {
                self.deferred.insert((promised + 1, block));
            }
        }
    }

    /// Whether needs are deferred.
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Takes back unsent promises and forgets deferred needs.
    pub(super) fn drop_promises(&mut self) {
        for (_, block) in std::mem::take(&mut self.deferred) {
            self.counts[block.0 as usize].deferred = 0;
        }
        for (_, block) in std::mem::take(&mut self.owed) {
            let count = &mut self.counts[block.0 as usize];
            count.promised = count.sent;
        }
    }

    /// Returns at most `budget` promised symbols, of the blocks that got the fewest first.
    pub(super) fn poll(&mut self, budget: u32) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        for _ in 0..budget {
            let Some((sent, block)) = self.owed.pop_first() else { break };
            let count = &mut self.counts[block.0 as usize];
            count.sent += 1;
            if count.sent < count.promised {
                self.owed.insert((count.sent, block));
            }
            self.news.insert(self.layout.window_of_block(block));
            let number = symbol_number(sent);
            symbols.push(Symbol { block, number, promised: saturated(count.promised) });
        }
        self.symbols_sent += symbols.len() as u64;
        symbols
    }

    /// Whether promised symbols are unsent.
    pub(super) fn is_owing(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Takes the first window with changed levels, from `from` on and wrapping.
    pub(super) fn take_news(&mut self, from: WindowIndex) -> Option<WindowIndex> {
        let next = self.news.range(from..).next().or_else(|| self.news.first()).copied()?;
        self.news.take(&next)
    }

    /// Levels of a window's blocks in the form of a beacon.
    pub(super) fn of_window(&self, window: WindowIndex) -> Vec<Level> {
        let counts = self.layout.blocks_of(window).map(|block| self.counts[block as usize]);
        let level = |count: Count| Level {
            sent: saturated(count.sent),
            promised: saturated(count.promised),
        };
        counts.map(level).collect()
    }

    pub(super) fn layout(&self) -> BlockLayout {
        self.layout
    }

    /// Number of blocks in a window, except for the last window.
    pub(super) fn blocks_of_a_window(&self) -> usize {
        self.layout.blocks_of(WindowIndex(0)).len()
    }

    /// Symbols promised to a block in all; `None` if there is no such block.
    pub(super) fn promised(&self, block: BlockIndex) -> Option<u32> {
        self.counts.get(block.0 as usize).map(|count| count.promised)
    }

    /// Symbols sent of each block in a window.
    pub(super) fn sent_in(&self, window: WindowIndex) -> impl Iterator<Item = u32> {
        self.layout.blocks_of(window).map(|block| self.counts[block as usize].sent)
    }

    /// Highest need of each block in a window.
    pub(super) fn asked_in(&self, window: WindowIndex) -> impl Iterator<Item = u32> {
        self.layout.blocks_of(window).map(|block| self.counts[block as usize].asked)
    }

    pub(super) fn symbols_sent(&self) -> u64 {
        self.symbols_sent
    }
}

fn saturated(count: u32) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

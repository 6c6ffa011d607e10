//! How many symbols each block got and will get.

use std::collections::BTreeSet;

use bootcast_proto::fec::REPAIRS;
use bootcast_proto::wire::{Level, symbol_number};
use bootcast_proto::{BlockIndex, BlockLayout, WindowIndex};

use super::Symbol;

/// Symbols of a block that are owed at a time, at most: more would be the same ones again.
const OWED_MAX: u32 = 128;
const _: () = assert!(OWED_MAX as usize == REPAIRS);

/// Symbols of one block since the cast began.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u32,
    /// Never below `sent`.
    promised: u32,
}

#[derive(Debug)]
pub(super) struct Levels {
    layout: BlockLayout,
    /// Of every block.
    counts: Vec<Count>,
    /// Blocks with promises to keep, after how many symbols each got.
    owed: BTreeSet<(u32, BlockIndex)>,
    /// Windows with news since they were told last.
    news: BTreeSet<WindowIndex>,
    symbols_sent: u64,
}

impl Levels {
    pub(super) fn new(layout: BlockLayout) -> Self {
        Self {
            layout,
            counts: vec![Count::default(); layout.blocks() as usize],
            owed: BTreeSet::new(),
            news: BTreeSet::new(),
            symbols_sent: 0,
        }
    }

    /// Promises the block `level` symbols in all, but no more than [`OWED_MAX`] at a time. `false` where it had as many, or there
    /// is no such block.
    pub(super) fn promise(&mut self, block: BlockIndex, level: u32) -> bool {
        let Some(count) = self.counts.get_mut(block.0 as usize) else { return false };
        let level = level.min(count.sent.saturating_add(OWED_MAX));
        if level <= count.promised {
            return false;
        }
        count.promised = level;
        self.owed.insert((count.sent, block));
        self.news.insert(self.layout.window_of_block(block));
        true
    }

    /// Promises a symbol more than the block got.
    pub(super) fn promise_one(&mut self, block: BlockIndex) {
        if let Some(count) = self.counts.get(block.0 as usize) {
            self.promise(block, count.sent.saturating_add(1));
        }
    }

    /// Promises each block of a window `more` symbols than it got. `true` where none of them had been promised any.
    pub(super) fn promise_more(&mut self, window: WindowIndex, more: u32) -> bool {
        let mut untouched = true;
        for block in self.layout.blocks_of(window) {
            let Count { sent, promised } = self.counts[block as usize];
            untouched &= promised == 0;
            self.promise(BlockIndex(block), sent.saturating_add(more));
        }
        self.news.insert(window);
        untouched
    }

    /// Takes back what was promised and not sent.
    pub(super) fn drop_promises(&mut self) {
        for (_, block) in std::mem::take(&mut self.owed) {
            let count = &mut self.counts[block.0 as usize];
            count.promised = count.sent;
        }
    }

    /// At most `budget` promised symbols, of the blocks that got fewest first.
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

    /// Whether symbols are promised and not sent.
    pub(super) fn is_owing(&self) -> bool {
        !self.owed.is_empty()
    }

    /// The first window with news, from `from` on and wrapping; it has none any more.
    pub(super) fn take_news(&mut self, from: WindowIndex) -> Option<WindowIndex> {
        let next = self.news.range(from..).next().or_else(|| self.news.first()).copied()?;
        self.news.take(&next)
    }

    /// As a beacon tells them.
    pub(super) fn of_window(&self, window: WindowIndex) -> Vec<Level> {
        let counts = self.layout.blocks_of(window).map(|block| self.counts[block as usize]);
        let level = |count: Count| Level {
            sent: saturated(count.sent),
            promised: saturated(count.promised),
        };
        counts.map(level).collect()
    }

    /// What each block of a window is promised in all.
    pub(super) fn promised_in(&self, window: WindowIndex) -> impl Iterator<Item = u32> {
        self.layout.blocks_of(window).map(|block| self.counts[block as usize].promised)
    }

    pub(super) fn symbols_sent(&self) -> u64 {
        self.symbols_sent
    }
}

fn saturated(count: u32) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

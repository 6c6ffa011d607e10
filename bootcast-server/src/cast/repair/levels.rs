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
    /// The highest need that counts for what is sent unasked.
    asked: u32,
    /// The highest need of those who let others go first.
    held: u32,
}

#[derive(Debug)]
pub(super) struct Levels {
    layout: BlockLayout,
    /// Of every block.
    counts: Vec<Count>,
    /// Blocks with promises to keep, after how many symbols each got.
    owed: BTreeSet<(u32, BlockIndex)>,
    /// Blocks with held needs above what is promised, after how many symbols each had got when that was looked at last.
    held: BTreeSet<(u32, BlockIndex)>,
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
            held: BTreeSet::new(),
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

    /// Promises each block of a window `more` symbols than its `base`, which is what each had got at some time.
    pub(super) fn promise_above(&mut self, window: WindowIndex, base: &[u32], more: u32) {
        for (block, base) in self.layout.blocks_of(window).zip(base) {
            self.promise(BlockIndex(block), base.saturating_add(more));
        }
        self.news.insert(window);
    }

    /// Promises what a member needs; `true` where that had not been promised.
    pub(super) fn ask(&mut self, block: BlockIndex, need: u32) -> bool {
        if let Some(count) = self.counts.get_mut(block.0 as usize) {
            count.asked = count.asked.max(need);
        }
        self.promise(block, need)
    }

    /// Keeps what a member needs that lets others go first; `true` where that is news.
    pub(super) fn hold(&mut self, block: BlockIndex, need: u32) -> bool {
        let Some(count) = self.counts.get_mut(block.0 as usize) else { return false };
        if need <= count.held.max(count.promised) {
            return false;
        }
        if count.held <= count.promised {
            self.held.insert((count.promised, block));
        }
        count.held = need;
        true
    }

    /// Promises a symbol of up to `budget` blocks with held needs, of those that got fewest first.
    pub(super) fn promise_held(&mut self, budget: u32) {
        for _ in 0..budget {
            let Some((_, block)) = self.held.pop_first() else { return };
            let Count { promised, held, .. } = self.counts[block.0 as usize];
            if promised < held {
                self.promise_one(block);
            }
            if promised + 1 < held {
                self.held.insert((promised + 1, block));
            }
        }
    }

    /// Whether needs are held.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes back what was promised and not sent, and forgets what is held.
    pub(super) fn drop_promises(&mut self) {
        for (_, block) in std::mem::take(&mut self.held) {
            self.counts[block.0 as usize].held = 0;
        }
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

    pub(super) fn layout(&self) -> BlockLayout {
        self.layout
    }

    /// Blocks of a window that is not the last one.
    pub(super) fn blocks_of_a_window(&self) -> usize {
        self.layout.blocks_of(WindowIndex(0)).len()
    }

    /// What a block is promised in all; `None` where there is no such block.
    pub(super) fn promised(&self, block: BlockIndex) -> Option<u32> {
        self.counts.get(block.0 as usize).map(|count| count.promised)
    }

    /// What each block of a window got.
    pub(super) fn sent_in(&self, window: WindowIndex) -> impl Iterator<Item = u32> {
        self.layout.blocks_of(window).map(|block| self.counts[block as usize].sent)
    }

    /// What was asked for each block of a window, in all.
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

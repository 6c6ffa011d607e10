//! Levels: how many symbols of each block were sent and are promised.

use std::collections::BTreeSet;

use bootcast_proto::fec::REPAIRS;
use bootcast_proto::wire::{Level, symbol_number};
use bootcast_proto::{BlockIndex, BlockLayout, WindowIndex};

use super::Symbol;

/// Most symbols of a block that are promised and not sent. With one more, the last of them would
/// repeat the first.
const MAX_UNSENT: u32 = 128;
const _: () = assert!(MAX_UNSENT as usize == REPAIRS);

/// Symbols of one block since the cast started.
#[derive(Clone, Copy, Debug, Default)]
struct BlockLevel {
    /// Symbols sent.
    sent: u32,
    /// Symbols promised in all. Never below `sent`.
    promised: u32,
    /// Highest need of members that are not outliers.
    need: u32,
    /// Highest need of outliers, which are served after all others.
    deferred_need: u32,
}

/// Levels and needs of all blocks.
#[derive(Debug)]
pub(super) struct Levels {
    layout: BlockLayout,
    blocks: Vec<BlockLevel>,
    /// Blocks with promised symbols that are not sent, ordered by the number of symbols sent.
    unsent: BTreeSet<(u32, BlockIndex)>,
    /// Blocks with deferred needs above their promise, ordered by the promise when they were
    /// queued.
    deferred: BTreeSet<(u32, BlockIndex)>,
    /// Windows whose levels changed since a beacon stated them.
    changed: BTreeSet<WindowIndex>,
    /// Blocks that get no symbols, because one of their pages cannot be read.
    forbidden: BTreeSet<BlockIndex>,
    /// Symbols of all blocks sent.
    symbols_sent: u64,
}

impl Levels {
    /// Creates the levels of a new cast, without symbols and promises.
    pub(super) fn new(layout: BlockLayout) -> Self {
        Self {
            layout,
            blocks: vec![BlockLevel::default(); layout.blocks() as usize],
            unsent: BTreeSet::new(),
            deferred: BTreeSet::new(),
            changed: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            symbols_sent: 0,
        }
    }

    /// Promises the block `level` symbols in all, at most [`MAX_UNSENT`] beyond those sent. Returns
    /// whether this raises the promise. A block that is forbidden or does not exist is ignored.
    pub(super) fn promise(&mut self, block: BlockIndex, level: u32) -> bool {
        let Some(entry) = self.blocks.get_mut(block.0 as usize) else { return false };
        if self.forbidden.contains(&block) {
            return false;
        }
        let level = level.min(entry.sent.saturating_add(MAX_UNSENT));
        if level <= entry.promised {
            return false;
        }
        debug_assert!(entry.sent < level, "a promise of symbols that were sent already");
        entry.promised = level;
        self.unsent.insert((entry.sent, block));
        self.changed.insert(self.layout.window_of_block(block));
        true
    }

    /// Promises one symbol more than were sent of the block.
    pub(super) fn promise_one(&mut self, block: BlockIndex) {
        if let Some(entry) = self.blocks.get(block.0 as usize) {
            self.promise(block, entry.sent.saturating_add(1));
        }
    }

    /// Raises the promise of each block in a window to `more` above its entry in `base`. Beacons
    /// state the window even if nothing changes.
    pub(super) fn promise_above(&mut self, window: WindowIndex, base: &[u32], more: u32) {
        for (block, base) in self.layout.blocks_of(window).zip(base) {
            self.promise(BlockIndex(block), base.saturating_add(more));
        }
        self.changed.insert(window);
    }

    /// Promises the symbols that a member needs. Returns whether this raises the promise.
    pub(super) fn promise_need(&mut self, block: BlockIndex, need: u32) -> bool {
        if self.forbidden.contains(&block) {
            return false;
        }
        if let Some(entry) = self.blocks.get_mut(block.0 as usize) {
            entry.need = entry.need.max(need);
        }
        self.promise(block, need)
    }

    /// Excludes a block from sending, and revokes its promise. Members may still rely on that
    /// promise until an answer of the server names the unreadable page.
    pub(super) fn forbid(&mut self, block: BlockIndex) {
        let Some(entry) = self.blocks.get_mut(block.0 as usize) else { return };
        if !self.forbidden.insert(block) {
            return;
        }
        self.unsent.remove(&(entry.sent, block));
        self.deferred.retain(|(_, deferred)| *deferred != block);
        (entry.promised, entry.need, entry.deferred_need) = (entry.sent, 0, 0);
        self.changed.insert(self.layout.window_of_block(block));
    }

    /// Allows symbols of a block again.
    pub(super) fn allow(&mut self, block: BlockIndex) {
        self.forbidden.remove(&block);
    }

    /// Defers the need of an outlier. Returns whether it exceeds the promise and all deferred needs
    /// before.
    pub(super) fn defer(&mut self, block: BlockIndex, need: u32) -> bool {
        let Some(entry) = self.blocks.get_mut(block.0 as usize) else { return false };
        if need <= entry.deferred_need.max(entry.promised) || self.forbidden.contains(&block) {
            return false;
        }
        if entry.deferred_need <= entry.promised {
            self.deferred.insert((entry.promised, block));
        }
        entry.deferred_need = need;
        true
    }

    /// Promises one symbol to each of up to `budget` blocks with deferred needs, those with the
    /// fewest symbols first.
    pub(super) fn promise_deferred(&mut self, budget: u32) {
        for _ in 0..budget {
            let Some((_, block)) = self.deferred.pop_first() else { return };
            let BlockLevel { promised, deferred_need, .. } = self.blocks[block.0 as usize];
            if promised < deferred_need {
                self.promise_one(block);
            }
            if promised + 1 < deferred_need {
                self.deferred.insert((promised + 1, block));
            }
        }
    }

    /// Whether any need is deferred.
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Revokes promises of unsent symbols and forgets deferred needs.
    pub(super) fn drop_promises(&mut self) {
        for (_, block) in std::mem::take(&mut self.deferred) {
            self.blocks[block.0 as usize].deferred_need = 0;
        }
        for (_, block) in std::mem::take(&mut self.unsent) {
            let entry = &mut self.blocks[block.0 as usize];
            entry.promised = entry.sent;
        }
    }

    /// Returns at most `budget` promised symbols, first of the blocks of which the fewest were
    /// sent.
    pub(super) fn poll(&mut self, budget: u32) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        for _ in 0..budget {
            let Some((sent, block)) = self.unsent.pop_first() else { break };
            let entry = &mut self.blocks[block.0 as usize];
            assert!(sent == entry.sent, "a symbol of block {block} would be sent a second time");
            assert!(sent < entry.promised, "symbol {sent} of block {block} was not promised");
            debug_assert!(!self.forbidden.contains(&block), "block {block} cannot be read");
            entry.sent += 1;
            if entry.sent < entry.promised {
                self.unsent.insert((entry.sent, block));
            }
            self.changed.insert(self.layout.window_of_block(block));
            let number = symbol_number(sent);
            symbols.push(Symbol { block, number, promised: saturated(entry.promised) });
        }
        self.symbols_sent += symbols.len() as u64;
        symbols
    }

    /// Whether any promised symbol is not sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Takes the first window with changed levels, from `from` on and wrapping around.
    pub(super) fn take_changed(&mut self, from: WindowIndex) -> Option<WindowIndex> {
        let next = self.changed.range(from..).next().or_else(|| self.changed.first()).copied()?;
        self.changed.take(&next)
    }

    /// Returns the levels of a window's blocks as a beacon states them.
    pub(super) fn of_window(&self, window: WindowIndex) -> Vec<Level> {
        let entries = self.layout.blocks_of(window).map(|block| self.blocks[block as usize]);
        debug_assert!(
            entries
                .clone()
                .all(|it| { it.sent <= it.promised && it.promised - it.sent <= MAX_UNSENT })
        );
        let level = |entry: BlockLevel| Level {
            sent: saturated(entry.sent),
            promised: saturated(entry.promised),
        };
        entries.map(level).collect()
    }

    /// Windows and blocks of the file.
    pub(super) fn layout(&self) -> BlockLayout {
        self.layout
    }

    /// Number of blocks in each window but the last.
    pub(super) fn blocks_of_a_window(&self) -> usize {
        self.layout.blocks_of(WindowIndex(0)).len()
    }

    /// Returns the number of symbols promised of a block in all; `None` if there is no such block.
    pub(super) fn promised(&self, block: BlockIndex) -> Option<u32> {
        self.blocks.get(block.0 as usize).map(|entry| entry.promised)
    }

    /// Returns the number of symbols sent of each block in a window.
    pub(super) fn sent_in(&self, window: WindowIndex) -> impl Iterator<Item = u32> {
        self.layout.blocks_of(window).map(|block| self.blocks[block as usize].sent)
    }

    /// Returns the highest need of each block in a window, without those of outliers.
    pub(super) fn needs_in(&self, window: WindowIndex) -> impl Iterator<Item = u32> {
        self.layout.blocks_of(window).map(|block| self.blocks[block as usize].need)
    }

    /// Number of symbols of all blocks sent.
    pub(super) fn symbols_sent(&self) -> u64 {
        self.symbols_sent
    }
}

/// Returns the count as the wire states it, where 255 stands for 255 or more.
fn saturated(count: u32) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

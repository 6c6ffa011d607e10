//! State of a cast's blocks: missing pages, stored symbols, and what was sent and promised.
//! docs/PROTOCOL.md, "When a client reports".

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Report;
use bootcast_proto::fec::{REPAIRS, RepairIndex, SourceIndex};
use bootcast_proto::limits::{REPORT_NEEDS, REPORT_RUNS};
use bootcast_proto::wire::{Beacon, Level};
use bootcast_proto::{
    BLOCK_PAGES, BlockIndex, BlockLayout, PageIndex, PageSet, PageSize, WindowIndex,
};

use super::passed_windows::PassedWindows;
use super::repair_loop::Round;

/// If 1 / this of a window's pages or more are missing, the stream should bring the whole window.
const BULK_SHARE: u32 = 4;
/// Highest count that a level can express; higher ones count as this.
const MAX_LEVEL: u8 = u8::MAX;

/// Everything needed to rebuild a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodePlan {
    /// Block to rebuild.
    pub block: BlockIndex,
    /// Pages to rebuild.
    pub missing: Vec<(SourceIndex, PageIndex)>,
    /// All other pages of the block.
    pub present: Vec<(SourceIndex, PageIndex)>,
    /// Symbols to use, as many as pages are missing.
    pub symbols: Vec<RepairIndex>,
    /// Round of the blocks.
    pub(super) round: Round,
}

/// Blocks of the present cast. Stored symbols outlive it as long as the blocks stay the same.
#[derive(Debug)]
pub(super) struct Repair {
    layout: BlockLayout,
    page_size: PageSize,
    blocks: Vec<Block>,
    /// Stored symbols of each block: bit `n` stands for symbol `n`.
    symbols: Vec<u128>,
    windows: Vec<Window>,
    passed: PassedWindows,
    /// Blocks that lack something unpromised.
    short: u32,
    /// Symbols of all blocks that are promised and not sent.
    owed: u64,
    /// Blocks with enough symbols that nobody is rebuilding yet.
    decodable: BTreeSet<BlockIndex>,
}

/// Value of a symbol that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SymbolArrival {
    /// Whether it helps to rebuild a block, and must be stored.
    pub(super) is_useful: bool,
    /// Whether it is useful, or the newest of its block. Any other may be a copy that a stranger
    /// sent again.
    pub(super) is_new: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    missing: u8,
    level: Level,
    is_short: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Whether the stream has passed the window and a beacon has stated its promises.
    is_closed: bool,
    /// Blocks of the window that lack something unpromised.
    short: u32,
}

impl Repair {
    /// Creates the blocks of a file of which the pages `held` are here.
    pub(super) fn new(layout: BlockLayout, page_size: PageSize, held: &PageSet) -> Self {
        let blocks = (0..layout.windows())
            .flat_map(|window| block_sizes(layout, WindowIndex(window)))
            .map(|missing| Block { missing, ..Block::default() })
            .collect();
        let mut repair = Self {
            layout,
            page_size,
            blocks,
            symbols: vec![0; layout.blocks() as usize],
            windows: vec![Window::default(); layout.windows() as usize],
            passed: PassedWindows::default(),
            short: 0,
            owed: 0,
            decodable: BTreeSet::new(),
        };
        if !held.is_empty() {
            for page in (0..held.pages()).map(PageIndex).filter(|page| held.contains(*page)) {
                let block = layout.place(page).0;
                repair.blocks[block.0 as usize].missing -= 1;
            }
        }
        debug_assert_eq!(repair.blocks.len(), repair.symbols.len(), "blocks of the file");
        repair
    }

    /// Asserts what holds of a block between any two calls.
    fn assert_invariants(&self, block: BlockIndex) {
        let Block { missing, is_short, .. } = self.blocks[block.0 as usize];
        let window = self.windows[self.layout.window_of_block(block).0 as usize];
        debug_assert!(u32::from(missing) <= BLOCK_PAGES, "block {block} lacks {missing} pages");
        debug_assert!(window.short <= self.short, "{} short blocks in all", self.short);
        debug_assert!(
            !is_short || (window.is_closed && window.short > 0),
            "block {block} is reported before the stream has passed it"
        );
    }

    /// Starts another membership: counts of sent and promised symbols start again.
    pub(super) fn begin_cast(&mut self) {
        self.passed = PassedWindows::default();
        (self.short, self.owed) = (0, 0);
        self.windows.fill(Window::default());
        for block in &mut self.blocks {
            block.level = Level::default();
            block.is_short = false;
        }
    }

    pub(super) fn layout(&self) -> BlockLayout {
        self.layout
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Whether the stream has passed the page's window, so that repair brings its missing pages.
    pub(super) fn is_closed(&self, page: PageIndex) -> bool {
        self.windows[self.layout.window_of(page).0 as usize].is_closed
    }

    /// Whether some block lacks something unpromised.
    pub(super) fn is_short(&self) -> bool {
        self.short > 0
    }

    /// Time that the server needs at this rate on the wire for symbols that are promised and not
    /// sent.
    pub(super) fn time_owed(&self, rate_kbps: u32) -> Duration {
        let bits = self.owed * self.page_size.wire_len() * 8;
        Duration::from_millis(bits.checked_div(rate_kbps.into()).unwrap_or(0))
    }

    /// Whether all of these needs are promised by now; `false` if there are none.
    pub(super) fn is_promised(&self, needs: &[(u32, u8)]) -> bool {
        let is_promised = |&(block, need): &(u32, u8)| {
            self.blocks.get(block as usize).is_some_and(|it| it.level.promised >= need)
        };
        !needs.is_empty() && needs.iter().all(is_promised)
    }

    /// Handles a page of the stream.
    pub(super) fn page_seen(&mut self, page: PageIndex, is_new: bool) {
        self.passed.page(page, is_new);
    }

    /// Handles a stored page that was missing.
    pub(super) fn page_stored(&mut self, page: PageIndex) {
        let block = self.layout.place(page).0;
        let missing = &mut self.blocks[block.0 as usize].missing;
        debug_assert!(*missing > 0, "page {page} was not missing in block {block}");
        *missing = missing.saturating_sub(1);
        self.weigh(block);
        self.offer(block);
    }

    /// Handles a symbol.
    pub(super) fn symbol_seen(
        &mut self,
        block: BlockIndex,
        number: RepairIndex,
        promised: u8,
    ) -> SymbolArrival {
        let known = self.blocks[block.0 as usize].level.sent;
        let sent = count_at(number, promised).unwrap_or(0);
        self.learn(block, Level { sent, promised });
        let is_useful =
            self.lacking(block) > 0 && self.symbols[block.0 as usize] & bit(number) == 0;
        // A count that has reached its end tells nothing any more.
        let is_new = is_useful || known < sent || known == MAX_LEVEL;
        SymbolArrival { is_useful, is_new }
    }

    /// Handles a stored symbol.
    pub(super) fn symbol_stored(&mut self, block: BlockIndex, number: RepairIndex) {
        if let Some(held) = self.symbols.get_mut(block.0 as usize) {
            *held |= bit(number);
            self.weigh(block);
            self.offer(block);
        }
    }

    /// Handles that the stored symbols of a block are unusable.
    pub(super) fn symbols_lost(&mut self, block: BlockIndex) {
        if let Some(held) = self.symbols.get_mut(block.0 as usize) {
            *held = 0;
            self.weigh(block);
        }
    }

    /// Handles a beacon that was not overtaken.
    pub(super) fn beacon(&mut self, beacon: &Beacon, now: Instant) {
        for (window, levels) in &beacon.windows {
            for (number, level) in self.layout.blocks_of(*window).zip(levels) {
                self.learn(BlockIndex(number), *level);
            }
        }
        for passed in self.passed.beacon(beacon.position, self.layout, now) {
            self.close(passed);
        }
    }

    /// Updates what was sent and promised of a block from a level that may be outdated.
    fn learn(&mut self, block: BlockIndex, level: Level) {
        let owed = |level: &Level| u64::from(level.promised.saturating_sub(level.sent));
        let known = &mut self.blocks[block.0 as usize].level;
        let before = owed(known);
        known.sent = known.sent.max(level.sent);
        known.promised = known.promised.max(level.promised);
        self.owed = self.owed - before + owed(known);
        self.weigh(block);
    }

    fn close(&mut self, windows: Range<u32>) {
        for window in windows {
            if !std::mem::replace(&mut self.windows[window as usize].is_closed, true) {
                self.layout
                    .blocks_of(WindowIndex(window))
                    .for_each(|it| self.weigh(BlockIndex(it)));
            }
        }
    }

    /// Forgets promises of unsent symbols.
    pub(super) fn forget_promises(&mut self) {
        self.owed = 0;
        for block in 0..self.layout.blocks() {
            let level = &mut self.blocks[block as usize].level;
            level.promised = level.sent;
            self.weigh(BlockIndex(block));
        }
    }

    /// Makes all missing pages reportable, wherever the stream is.
    pub(super) fn close_all(&mut self) {
        self.close(0..self.layout.windows());
    }

    /// Handles an accepted report that asked for these windows: the stream will pass them again.
    pub(super) fn reopen(&mut self, bulk: &[(u32, u32)]) {
        if !bulk.is_empty() {
            self.passed.windows_asked();
        }
        for window in bulk.iter().flat_map(|(first, count)| *first..*first + *count) {
            self.windows[window as usize].is_closed = false;
            self.layout.blocks_of(WindowIndex(window)).for_each(|it| self.weigh(BlockIndex(it)));
        }
    }

    /// Symbols that the block lacks, whatever was promised.
    fn lacking(&self, block: BlockIndex) -> u32 {
        let missing = u32::from(self.blocks[block.0 as usize].missing);
        missing.saturating_sub(self.symbols[block.0 as usize].count_ones())
    }

    fn need(&self, block: BlockIndex) -> u8 {
        let sent = self.blocks[block.0 as usize].level.sent;
        need(sent, self.symbols[block.0 as usize], self.lacking(block))
    }

    /// Updates the counts of blocks that lack something.
    fn weigh(&mut self, block: BlockIndex) {
        let window = self.layout.window_of_block(block).0 as usize;
        let known = self.blocks[block.0 as usize];
        let is_short = self.windows[window].is_closed
            && self.lacking(block) > 0
            && self.need(block) > known.level.promised;
        if is_short != known.is_short {
            self.blocks[block.0 as usize].is_short = is_short;
            for count in [&mut self.windows[window].short, &mut self.short] {
                *count = if is_short { *count + 1 } else { *count - 1 };
            }
        }
        self.assert_invariants(block);
    }

    fn is_decodable(&self, block: BlockIndex) -> bool {
        self.blocks[block.0 as usize].missing > 0 && self.lacking(block) == 0
    }

    /// Offers the block for decoding if it can be rebuilt.
    fn offer(&mut self, block: BlockIndex) {
        if self.is_decodable(block) {
            self.decodable.insert(block);
        }
    }

    /// Returns the lowest block that can be rebuilt.
    pub(super) fn poll_decodable(&mut self) -> Option<BlockIndex> {
        while let Some(block) = self.decodable.pop_first() {
            if self.is_decodable(block) {
                return Some(block);
            }
        }
        None
    }

    /// Whether [`Self::poll_decodable`] may return a block.
    pub(super) fn has_decodable(&self) -> bool {
        !self.decodable.is_empty()
    }

    /// Missing pages that can be rebuilt.
    pub(super) fn decodable_pages(&self) -> u32 {
        let missing = |block: &BlockIndex| u32::from(self.blocks[block.0 as usize].missing);
        self.decodable.iter().map(missing).sum()
    }

    /// Plan to rebuild the block; `None` if that is impossible.
    pub(super) fn decode_plan(&self, block: BlockIndex, held: &PageSet) -> Option<DecodePlan> {
        let symbols = *self.symbols.get(block.0 as usize)?;
        if !self.is_decodable(block) {
            return None;
        }
        let (present, missing): (Vec<_>, Vec<_>) =
            self.layout.pages_in(block).partition(|(_, page)| held.contains(*page));
        let symbols = (0..REPAIRS)
            .filter_map(RepairIndex::new)
            .filter(|number| symbols & bit(*number) != 0)
            .take(missing.len())
            .collect::<Vec<_>>();
        debug_assert!(
            missing.len() == usize::from(self.blocks[block.0 as usize].missing)
                && missing.len() == symbols.len(),
            "block {block} lacks {} pages and has {} symbols",
            missing.len(),
            symbols.len()
        );
        Some(DecodePlan { block, missing, present, symbols, round: Round::default() })
    }

    /// Report of the blocks that lack something unpromised, lowest first: their needs, or their
    /// windows if much is missing.
    pub(super) fn report(&self) -> Report {
        let mut report = Report::default();
        let short = self.windows.iter().zip(0..).filter(|(window, _)| window.short > 0);
        for (_, window) in short {
            if report.needs.len() >= REPORT_NEEDS || report.bulk.len() >= REPORT_RUNS {
                break;
            }
            self.report_window(window, &mut report);
        }
        report.needs.truncate(REPORT_NEEDS);
        debug_assert!(report.bulk.len() <= REPORT_RUNS, "the server reads no more runs of windows");
        debug_assert!(
            self.short == 0 || !report.needs.is_empty() || !report.bulk.is_empty(),
            "blocks are short, but the report asks for nothing"
        );
        report
    }

    fn report_window(&self, window: u32, report: &mut Report) {
        let blocks = self.layout.blocks_of(WindowIndex(window));
        let lacking: u32 = blocks.clone().map(|block| self.lacking(BlockIndex(block))).sum();
        if lacking * BULK_SHARE < self.layout.pages_of(WindowIndex(window)).len() {
            let short = blocks.filter(|block| self.blocks[*block as usize].is_short);
            report.needs.extend(short.map(|block| (block, self.need(BlockIndex(block)))));
            return;
        }
        match report.bulk.last_mut() {
            Some((first, count)) if *first + *count == window => *count += 1,
            _ => report.bulk.push((window, 1)),
        }
    }
}

/// Number of pages in each block of a window.
fn block_sizes(layout: BlockLayout, window: WindowIndex) -> impl Iterator<Item = u8> {
    let (pages, blocks) = (layout.pages_of(window).len(), layout.blocks_of(window));
    let stride = blocks.end - blocks.start;
    (0..stride).map(move |block| {
        u8::try_from((pages - block).div_ceil(stride)).expect("a block has at most 128 pages")
    })
}

fn bit(number: RepairIndex) -> u128 {
    1 << number.get()
}

/// Returns the number of symbols of the block that had been sent with this one, by its number and
/// the number of symbols that were promised then. `None` if the two contradict each other. The
/// result may be too low if `promised` is 255, which stands for 255 or more.
///
/// Numbers start again after 127, and no more than 128 are promised and not sent. So one count
/// fits.
fn count_at(number: RepairIndex, promised: u8) -> Option<u8> {
    let unsent = usize::from(promised).checked_sub(number.get() + 1)? % REPAIRS;
    let sent = promised.checked_sub(u8::try_from(unsent).ok()?);
    debug_assert!(sent.is_some_and(|sent| sent > 0 && sent <= promised), "a symbol was not sent");
    sent
}

/// Returns how many symbols must have been sent in all until, after the first `sent` of them,
/// `lacking` have numbers that are not in `held`.
fn need(sent: u8, held: u128, lacking: u32) -> u8 {
    let fresh = (u32::from(sent)..).filter(|number| held & (1 << (number % 128)) == 0);
    let last = lacking.checked_sub(1).and_then(|skipped| fresh.clone().nth(skipped as usize));
    last.map_or(sent, |last| u8::try_from(last + 1).unwrap_or(MAX_LEVEL))
}

#[cfg(test)]
mod tests;

//! Division of a file's pages into windows and blocks of the repair code. docs/PROTOCOL.md,
//! "Windows and blocks".
//!
//! A window is a run of consecutive pages. Its blocks are interleaved: neighbouring pages belong to
//! different blocks. A burst of losses therefore hits many blocks a little, while pages still go
//! out in file order.

use core::fmt;
use core::num::NonZeroU32;

use crate::fec::{SOURCES, SourceIndex};
use crate::ids::{PageIndex, PageRange};

/// Largest number of pages in a block: [`SOURCES`] as a `u32`, the type of page numbers.
pub const BLOCK_PAGES: u32 = 128;
const _: () = assert!(BLOCK_PAGES as usize == SOURCES);

/// Largest number of blocks in a window. Such a window has 8.4 million pages.
pub const MAX_INTERLEAVE: u32 = 65_536;

/// Position of a window in its file, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowIndex(pub u32);

/// Position of a block in its file, counted from 0 through all windows without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Windows and blocks of a file with a given number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    pages: u32,
    interleave: NonZeroU32,
}

impl BlockLayout {
    /// Creates the layout with `interleave` blocks in a window. `None` unless `interleave` is 1 to
    /// [`MAX_INTERLEAVE`].
    pub fn new(pages: u32, interleave: u32) -> Option<Self> {
        let interleave = NonZeroU32::new(interleave).filter(|it| it.get() <= MAX_INTERLEAVE)?;
        Some(Self { pages, interleave })
    }

    /// Blocks in a window. The last window may have fewer.
    pub fn interleave(self) -> u32 {
        self.interleave.get()
    }

    /// Pages in a window. The last window may have fewer.
    fn window_len(self) -> u64 {
        u64::from(BLOCK_PAGES) * u64::from(self.interleave.get())
    }

    /// Number of windows in the file.
    pub fn windows(self) -> u32 {
        narrow(u64::from(self.pages).div_ceil(self.window_len()))
    }

    /// Number of blocks in the file.
    pub fn blocks(self) -> u32 {
        match self.windows().checked_sub(1) {
            Some(last) => self.blocks_of(WindowIndex(last)).end,
            None => 0,
        }
    }

    /// Window that a page lies in.
    pub fn window_of(self, page: PageIndex) -> WindowIndex {
        WindowIndex(narrow(u64::from(page.0) / self.window_len()))
    }

    /// Window that a block lies in.
    pub fn window_of_block(self, block: BlockIndex) -> WindowIndex {
        WindowIndex(block.0 / self.interleave)
    }

    /// Pages of a window; empty beyond the last window.
    pub fn pages_of(self, window: WindowIndex) -> PageRange {
        let start = u64::from(window.0) * self.window_len();
        let limit = u64::from(self.pages);
        PageRange::new(narrow(start.min(limit)), narrow((start + self.window_len()).min(limit)))
    }

    /// Blocks of a window as a range of block numbers; empty beyond the last window.
    pub fn blocks_of(self, window: WindowIndex) -> core::ops::Range<u32> {
        let start = window.0.saturating_mul(self.interleave.get());
        start..start.saturating_add(self.pages_of(window).len().div_ceil(BLOCK_PAGES))
    }

    /// Block that a page lies in, and the position of the page in that block.
    pub fn place(self, page: PageIndex) -> (BlockIndex, SourceIndex) {
        let window = self.window_of(page);
        let blocks = self.blocks_of(window);
        let offset = page.0 - self.pages_of(window).start.0;
        let stride = blocks.end - blocks.start;
        let source = SourceIndex::new((offset / stride) as usize);
        (
            BlockIndex(blocks.start + offset % stride),
            source.expect("a window has at most 128 pages for each of its blocks"),
        )
    }

    /// Page at a position of a block. `None` if the file has no such block or the block no such
    /// page.
    pub fn page_at(self, block: BlockIndex, source: SourceIndex) -> Option<PageIndex> {
        let window = self.window_of_block(block);
        let (pages, blocks) = (self.pages_of(window), self.blocks_of(window));
        if !blocks.contains(&block.0) {
            return None;
        }
        let stride = u64::from(blocks.end - blocks.start);
        let offset = source.get() as u64 * stride + u64::from(block.0 - blocks.start);
        (offset < u64::from(pages.len())).then(|| PageIndex(pages.start.0 + narrow(offset)))
    }

    /// Pages of a block with their positions, ascending.
    pub fn pages_in(&self, block: BlockIndex) -> impl Iterator<Item = (SourceIndex, PageIndex)> {
        (0..SOURCES)
            .filter_map(SourceIndex::new)
            .map_while(move |source| Some((source, self.page_at(block, source)?)))
    }
}

/// Converts a number that is computed from page numbers and at most the page count.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).expect("bounded by a page count")
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_worked_example_of_the_protocol_holds() {
        // docs/PROTOCOL.md, "Windows and blocks": 1000 pages, interleave 4.
        let layout = BlockLayout::new(1000, 4).unwrap();
        assert_eq!((layout.windows(), layout.blocks()), (2, 8));
        assert_eq!(layout.place(PageIndex(6)), (BlockIndex(2), SourceIndex::new(1).unwrap()));
        assert_eq!(layout.place(PageIndex(517)), (BlockIndex(5), SourceIndex::new(1).unwrap()));
        assert_eq!(layout.pages_in(BlockIndex(7)).count(), 122);
    }

    #[test]
    fn a_file_without_pages_has_neither_windows_nor_blocks() {
        let layout = BlockLayout::new(0, 16).unwrap();
        assert_eq!((layout.windows(), layout.blocks()), (0, 0));
        assert_eq!(layout.page_at(BlockIndex(0), SourceIndex::new(0).unwrap()), None);
    }

    #[test]
    fn an_interleave_out_of_range_is_refused() {
        assert_eq!(BlockLayout::new(1, 0), None);
        assert_eq!(BlockLayout::new(1, MAX_INTERLEAVE + 1), None);
        assert!(BlockLayout::new(u32::MAX, 1).unwrap().blocks() > 0);
    }

    proptest! {
        #[test]
        fn every_page_has_one_place_and_every_block_at_most_128_pages(
            pages in 0u32..40_000, interleave in 1u32..60,
        ) {
            let layout = BlockLayout::new(pages, interleave).unwrap();
            let mut seen = std::vec![false; pages as usize];
            for block in (0..layout.blocks()).map(BlockIndex) {
                let places: Vec<_> = layout.pages_in(block).collect();
                prop_assert!((1..=SOURCES).contains(&places.len()));
                for (source, page) in places {
                    prop_assert_eq!(layout.place(page), (block, source));
                    prop_assert!(!std::mem::replace(&mut seen[page.0 as usize], true));
                }
            }
            prop_assert!(seen.into_iter().all(|seen| seen));
        }

        #[test]
        fn no_number_panics(
            pages: u32, interleave in 1..=MAX_INTERLEAVE, number: u32, source in 0..SOURCES,
        ) {
            let layout = BlockLayout::new(pages, interleave).unwrap();
            let source = SourceIndex::new(source).unwrap();
            if let Some(page) = layout.page_at(BlockIndex(number), source) {
                prop_assert_eq!(layout.place(page), (BlockIndex(number), source));
            }
            if number < pages {
                let (block, source) = layout.place(PageIndex(number));
                prop_assert_eq!(layout.page_at(block, source), Some(PageIndex(number)));
            }
        }
    }
}

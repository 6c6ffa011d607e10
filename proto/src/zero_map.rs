//! The zero map of a file: which of its leaves consist of zeros. docs/PROTOCOL.md, "Manifest".

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::geometry::Geometry;
use crate::ids::PageRange;
use crate::manifest::{ContentTree, LEAF_BYTES};
use crate::range_map::RangeMap;

/// Minimum length of a run of zeros whose pages the stream leaves out, in leaves: 64 KiB.
const MIN_RUN: u64 = 4;

/// Maximum number of runs whose pages the stream leaves out: bounds the memory that a file with a
/// hole at every second place takes.
const MAX_RUNS: usize = 1 << 16;

/// Set of leaves of one file whose bytes are all 0. Other leaves may consist of zeros too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZeroMap {
    leaves: u64,
    /// Leaf k is bit k mod 8 of byte k div 8.
    bits: Vec<u8>,
}

impl ZeroMap {
    /// Creates the map of a file with this many leaves, none of which is known to be zeros.
    pub fn new(leaves: u64) -> Self {
        Self { leaves, bits: vec![0; index(leaves.div_ceil(8))] }
    }

    /// Decodes a map; `None` if it has another length, or bits behind the last leaf.
    pub fn from_bytes(leaves: u64, bytes: &[u8]) -> Option<Self> {
        let is_long_enough = bytes.len() as u64 == leaves.div_ceil(8);
        let rest = bytes
            .last()
            .filter(|_| !leaves.is_multiple_of(8))
            .map_or(0, |last| last >> (leaves % 8));
        (is_long_enough && rest == 0).then(|| Self { leaves, bits: bytes.to_vec() })
    }

    /// Returns the map as it is sent and kept: a bit for each leaf.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Adds a leaf.
    ///
    /// # Panics
    ///
    /// If the file has no such leaf.
    pub fn insert(&mut self, leaf: u64) {
        assert!(leaf < self.leaves, "leaf {leaf} of {}", self.leaves);
        self.bits[index(leaf / 8)] |= 1 << (leaf % 8);
    }

    /// Whether the leaf is known to consist of zeros.
    pub fn contains(&self, leaf: u64) -> bool {
        leaf < self.leaves && self.bits[index(leaf / 8)] & (1 << (leaf % 8)) != 0
    }

    /// Iterates over the runs of leaves, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        core::iter::from_fn(move || {
            let start = self.next(next, true)?;
            next = self.next(start, false).unwrap_or(self.leaves);
            Some(start..next)
        })
    }

    /// Returns the pages that lie wholly in runs of at least 64 KiB, as far as the map has no more
    /// than 65,536 such runs.
    pub fn pages(&self, geometry: &Geometry) -> RangeMap<()> {
        let mut pages = RangeMap::default();
        let long = self.runs().filter(|run| run.end - run.start >= MIN_RUN);
        for run in long.take(MAX_RUNS) {
            pages.insert(self.pages_in(&run, geometry), ());
        }
        pages
    }

    /// Returns the pages that lie wholly in a run of leaves.
    ///
    /// # Panics
    ///
    /// If the file of the geometry has another number of leaves.
    pub fn pages_in(&self, run: &Range<u64>, geometry: &Geometry) -> PageRange {
        let tree = ContentTree::new(geometry.size());
        assert_eq!(tree.leaves(), self.leaves, "the zero map of another file");
        let page_size = u64::from(geometry.page_size().get());
        let first = (run.start * LEAF_BYTES).div_ceil(page_size);
        let is_last = run.end == self.leaves;
        let end = if is_last { geometry.pages().into() } else { run.end * LEAF_BYTES / page_size };
        let page = |number: u64| u32::try_from(number).expect("the file has no such page");
        PageRange::new(page(first), page(end.max(first)))
    }

    /// Returns the number of leaves of the file.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Returns the first leaf from `from` on that is in the map, or is not.
    fn next(&self, from: u64, is_in: bool) -> Option<u64> {
        let skipped = if is_in { 0 } else { u8::MAX };
        let mut leaf = from;
        while leaf < self.leaves {
            if leaf.is_multiple_of(8) && self.bits[index(leaf / 8)] == skipped {
                leaf += 8;
            } else if self.contains(leaf) == is_in {
                return Some(leaf);
            } else {
                leaf += 1;
            }
        }
        None
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("the map is in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::PageSize;

    fn map(leaves: u64, zeros: impl IntoIterator<Item = u64>) -> ZeroMap {
        let mut map = ZeroMap::new(leaves);
        for leaf in zeros {
            map.insert(leaf);
        }
        map
    }

    fn pages(map: &ZeroMap, size: u64, page_size: u64) -> Vec<PageRange> {
        let geometry = Geometry::new(size, PageSize::new(page_size).unwrap()).unwrap();
        map.pages(&geometry).iter().map(|(run, ())| run).collect()
    }

    #[test]
    fn leaf_9_is_bit_1_of_the_second_byte() {
        assert_eq!(map(10, [0, 9]).as_bytes(), [1, 2]);
        assert_eq!(ZeroMap::from_bytes(10, &[1, 2]), Some(map(10, [0, 9])));
        assert_eq!(ZeroMap::from_bytes(10, &[1, 4]), None, "there is no leaf 10");
        assert_eq!(ZeroMap::from_bytes(10, &[1]), None);
        assert_eq!(ZeroMap::from_bytes(8, &[255]), Some(map(8, 0..8)));
        assert_eq!(ZeroMap::from_bytes(0, &[]), Some(ZeroMap::new(0)));
    }

    #[test]
    fn only_pages_that_lie_wholly_in_long_runs_are_left_out() {
        let size = 20 * LEAF_BYTES;
        // 16,384 = 11 * 1456 + 368.
        let run = PageRange::new(12, 56);
        assert_eq!(pages(&map(20, 1..5), size, 1456), [run]);
        assert_eq!(pages(&map(20, 1..4), size, 1456), [], "48 KiB");
        // The last page, which is shorter, is one of them.
        assert_eq!(pages(&map(20, 16..20), size, 1456), [PageRange::new(181, 226)]);
        assert_eq!(pages(&map(20, 0..20), size, 1456), [PageRange::new(0, 226)]);
        assert_eq!(pages(&map(20, 2..6), size, 65_490), [], "no page lies wholly in it");
    }

    proptest! {
        #[test]
        fn runs_are_those_of_the_leaves(zeros: [bool; 67]) {
            let leaves = (0..67).filter(|leaf| zeros[index(*leaf)]);
            let map = map(67, leaves.clone());
            prop_assert_eq!(map.runs().flatten().collect::<Vec<_>>(), leaves.collect::<Vec<_>>());
            let runs: Vec<_> = map.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(ZeroMap::from_bytes(67, map.as_bytes()), Some(map));
        }
    }
}
